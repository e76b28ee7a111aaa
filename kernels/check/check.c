/* The harness: runs a trial on the tested table and on its twin, and judges what came back. */
#include "check.h"

#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "trial.h"

enum { SCRATCH_GUARD = 256, MAX_ARRAYS = sizeof((dllm_trial *)0)->array / sizeof(dllm_trial_array) };

struct dllm_checker {
    const dllm_device *device;
    uint64_t random;
    bool timing, library; /* library: of a device that has one, which takes products whose rows know their company */
    int trials, failures;
    void (*report)(void *arg, const dllm_check_result *result);
    void *arg;
};

/* One table with its memory: the arrays of a trial and scratch. */
typedef struct {
    dllm_device device;
    unsigned char *base[MAX_ARRAYS];
    int32_t *count; /* in memory of the device */
    size_t scratch;
} side;

/* What came back from one run. */
typedef struct {
    unsigned char *array[MAX_ARRAYS];
    void *at[MAX_ARRAYS]; /* row 0 of each */
    const char *why;      /* what went wrong besides numbers, or NULL */
} outcome;

/* ---- random numbers of the harness: xorshift64* ----------------------------------------------------------------------------- */
static uint64_t next(dllm_checker *k)
{
    k->random ^= k->random >> 12;
    k->random ^= k->random << 25;
    k->random ^= k->random >> 27;
    return k->random * 0x2545f4914f6cdd1du;
}

double dllm_trial_uniform(dllm_checker *k) { return (double)(next(k) >> 11) * 0x1p-53; }

int32_t dllm_trial_below(dllm_checker *k, int32_t n) { return (int32_t)(dllm_trial_uniform(k) * n); }

bool dllm_trial_timing(const dllm_checker *k) { return k->timing; }

bool dllm_trial_library(const dllm_checker *k) { return k->library; }

bool dllm_trial_int8(const dllm_checker *k) { return dllm_is_host(k->device); }

/* ---- sides ------------------------------------------------------------------------------------------------------------------ */
/* Matrices lie where kernels are fast, everything else where the host, too, reads and writes. */
static unsigned char *take(dllm_device *d, const dllm_trial_array *a)
{
    return (a->shared ? d->ops->alloc_shared : d->ops->alloc)(d, a->bytes);
}

static void give(dllm_device *d, const dllm_trial_array *a, unsigned char *p)
{
    if (p) (a->shared ? d->ops->free_shared : d->ops->free)(d, p);
}

static void close_side(side *s, const dllm_trial *t)
{
    dllm_device *d = &s->device;
    for (int i = 0; i < t->n_arrays; i++) give(d, &t->array[i], s->base[i]);
    if (s->count) d->ops->free(d, s->count);
    if (d->scratch) d->ops->free(d, d->scratch);
    d->ops->close(d);
}

static bool open_side(side *s, const dllm_device *device, const dllm_trial *t)
{
    *s = (side){ .device = *device };
    dllm_device *d = &s->device;
    const dllm_ops *ops = d->ops;
    d->library = d->library && t->checker->library;
    if (ops->open(d) < 0) return false;
    s->scratch = d->scratch_bytes = ops->scratch(d, &t->config, t->act, t->rows > 0 ? t->rows : 1, t->keys);
    d->scratch = ops->alloc(d, s->scratch + SCRATCH_GUARD);
    s->count = ops->alloc(d, sizeof *s->count);
    bool fine = d->scratch && s->count;
    for (int i = 0; i < t->n_arrays; i++) {
        s->base[i] = take(d, &t->array[i]);
        fine = fine && s->base[i] && t->array[i].image;
    }
    if (!fine) close_side(s, t);
    return fine;
}

static void free_outcome(outcome *o, int n_arrays)
{
    for (int i = 0; i < n_arrays; i++) free(o->array[i]);
}

static void call(side *s, const dllm_trial *t, int32_t first, int32_t n, bool counted)
{
    void *at[MAX_ARRAYS];
    for (int i = 0; i < t->n_arrays; i++) at[i] = s->base[i] + t->array[i].start;
    dllm_trial asked = *t;
    if (counted) asked.count = s->count;
    if (counted) s->device.ops->copy_in(&s->device, s->count, &n, sizeof n);
    t->run(&asked, &s->device, at, first, n);
}

static const char *check_scratch(side *s)
{
    unsigned char guard[SCRATCH_GUARD]; /* zeros, as all memory begins */
    s->device.ops->copy_out(&s->device, guard, (unsigned char *)s->device.scratch + s->scratch, sizeof guard);
    for (size_t i = 0; i < SCRATCH_GUARD; i++) {
        if (guard[i]) return "wrote beyond its scratch";
    }
    return NULL;
}

static outcome run(side *s, const dllm_trial *t, int threads, int32_t first, int32_t n, bool counted)
{
    outcome o = { 0 };
    s->device.threads = threads;
    const dllm_ops *ops = s->device.ops;
    for (int i = 0; i < t->n_arrays; i++) {
        const dllm_trial_array *a = &t->array[i];
        if (a->shared) memcpy(s->base[i], a->image, a->bytes);
        else ops->copy_in(&s->device, s->base[i], a->image, a->bytes);
    }
    call(s, t, first, n, counted);
    o.why = ops->sync(&s->device) ? "the device reported a failure" : check_scratch(s);
    for (int i = 0; i < t->n_arrays; i++) {
        o.array[i] = malloc(t->array[i].bytes);
        if (!o.array[i]) return (free_outcome(&o, i), (outcome){ .why = "out of memory" });
        if (t->array[i].shared) memcpy(o.array[i], s->base[i], t->array[i].bytes);
        else ops->copy_out(&s->device, o.array[i], s->base[i], t->array[i].bytes);
        o.at[i] = o.array[i] + t->array[i].start;
    }
    return o;
}

/* ---- judging ---------------------------------------------------------------------------------------------------------------- */
static size_t element_size(const dllm_trial_array *a)
{
    return a->kind == TRIAL_F64 ? 8 : a->kind == TRIAL_F32 || a->kind == TRIAL_I32 ? 4 : a->kind == TRIAL_I8 ? 1 : 2;
}

static unsigned char *row_of(const dllm_trial *t, int array, unsigned char *bytes, int32_t i)
{
    const dllm_trial_array *a = &t->array[array];
    return bytes + a->start + (size_t)(dllm_trial_place(t, array, i) * a->stride) * element_size(a);
}

/* Everything but the rows asked for must be as it was. */
static bool untouched(const dllm_trial *t, int array, const outcome *o, int32_t first, int32_t n)
{
    const dllm_trial_array *a = &t->array[array];
    unsigned char *copy = malloc(a->bytes);
    if (!copy) return false;
    memcpy(copy, o->array[array], a->bytes);
    for (int32_t i = first; a->role != TRIAL_IN && i < first + n; i++)
        memcpy(row_of(t, array, copy, i), row_of(t, array, a->image, i), (size_t)a->cols * element_size(a));
    const bool same = memcmp(copy, a->image, a->bytes) == 0;
    free(copy);
    return same;
}

static const char *check_untouched(const dllm_trial *t, const outcome *o, int32_t first, int32_t n)
{
    for (int i = 0; i < t->n_arrays; i++) {
        if (t->array[i].role == TRIAL_WORK) continue;
        if (!untouched(t, i, o, first, n))
            return t->array[i].role == TRIAL_IN ? "changed an input" : "wrote where it was not asked to";
    }
    return NULL;
}

static double read(const dllm_trial_array *a, const void *row, int64_t col)
{
    return a->kind == TRIAL_I32 ? (double)((const int32_t *)row)[col] : (double)dllm_get(row, (dllm_dtype)a->kind, col);
}

/* The difference in epsilons of a value of that size, the slack added; the smallest positive number of the dtype counts as nothing.
 * */
static double error_of(const dllm_trial_array *a, double want, double got, double slack)
{
    if (want == got || (isnan(want) && isnan(got))) return 0;
    if (!isfinite(want) || !isfinite(got) || a->kind == TRIAL_I32) return INFINITY;
    const double tiniest = a->kind == TRIAL_F16 ? 0x1p-24 : a->kind == TRIAL_BF16 ? 0x1p-133 : 0x1p-149;
    const double beyond = fabs(want - got) - tiniest, unit = dllm_trial_epsilon(a->kind) * fabs(want) + slack;
    return beyond <= 0 ? 0 : unit < DBL_MIN ? INFINITY : beyond / unit;
}

static double row_error(const dllm_trial *t, const outcome *want, const outcome *got, int32_t i)
{
    double worst = 0;
    for (int k = 0; k < t->n_arrays; k++) {
        const dllm_trial_array *a = &t->array[k];
        if (a->role != TRIAL_OUT) continue;
        const void *w = row_of(t, k, want->array[k], i), *g = row_of(t, k, got->array[k], i);
        for (int64_t c = 0; c < a->cols; c++)
            worst = fmax(worst, error_of(a, read(a, w, c), read(a, g, c), a->slack ? a->slack[i] : 0));
    }
    return worst;
}

static double error(const dllm_trial *t, const outcome *want, const outcome *got, int32_t first, int32_t n)
{
    double worst = 0;
    for (int32_t i = first; i < first + n; i++) {
        const double e = row_error(t, want, got, i);
        if (e > t->tolerance && t->excuse && t->excuse(t, want->at, got->at, i)) continue;
        worst = fmax(worst, e);
    }
    return worst;
}

static bool same_rows(const dllm_trial *t, const outcome *x, const outcome *y, int32_t first, int32_t n)
{
    for (int k = 0; k < t->n_arrays; k++) {
        const dllm_trial_array *a = &t->array[k];
        for (int32_t i = first; a->role == TRIAL_OUT && i < first + n; i++) {
            if (memcmp(row_of(t, k, x->array[k], i), row_of(t, k, y->array[k], i), (size_t)a->cols * element_size(a))) return false;
        }
    }
    return true;
}

/* The same rows in other company: on one thread, alone, with others at another place, and where only the device knows how many they are. A
 * library owes them the right numbers, and the same bits only for the same question. */
static const char *check_company(side *s, const dllm_trial *t, int threads, const outcome *want, const outcome *whole)
{
    const int32_t n = t->rows, middle = n / 2;
    const int32_t parts[][2] = {
        { 0, n }, { middle, n ? 1 : 0 }, { n > 2 ? 1 : 0, n > 2 ? n - 2 : n }, { middle, n - middle }, { 0, middle }, { 0, n },
        { 0, 0 }
    };
    const bool counts = t->counts && !dllm_is_host(&s->device);
    const char *why = NULL;
    for (int p = 0; p < (counts ? 7 : 4) && !why; p++) {
        const int32_t first = parts[p][0], count = parts[p][1];
        outcome o = run(s, t, p == 3 ? threads : 1, first, count, p > 3);
        why = o.why;
        if (!why) why = check_untouched(t, &o, first, count);
        if (!why && p && t->checker->library) why = error(t, want, &o, first, count) > t->tolerance ? "a row is wrong alone" : NULL;
        else if (!why && !same_rows(t, whole, &o, first, count))
            why = p ? "a row depends on its company" : "a row depends on the number of threads";
        free_outcome(&o, t->n_arrays);
    }
    return why;
}

/* ---- timing and reporting --------------------------------------------------------------------------------------------------- */
static double now(void)
{
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The best of up to 20 runs, or of those that begin within `budget` seconds. */
static double measure(side *s, const dllm_trial *t, int threads, double budget)
{
    double best = INFINITY;
    s->device.threads = threads;
    const double begin = now();
    for (int i = 0; i < 20 && (i == 0 || now() - begin < budget); i++) {
        const double from = now();
        call(s, t, 0, t->rows, false);
        s->device.ops->sync(&s->device);
        best = fmin(best, now() - from);
    }
    return best;
}

static void judge(dllm_check_result *r, side *tested, side *twin, const dllm_trial *t)
{
    const dllm_checker *k = t->checker;
    const int threads = k->device->threads;
    outcome want = run(twin, t, 1, 0, t->rows, false), got = run(tested, t, threads, 0, t->rows, false);
    const char *why = want.why ? want.why : got.why;
    if (!why) why = check_untouched(t, &got, 0, t->rows);
    if (!why) r->error = error(t, &want, &got, 0, t->rows);
    if (!why) why = check_company(tested, t, threads, &want, &got);
    free_outcome(&want, t->n_arrays);
    free_outcome(&got, t->n_arrays);
    if (why) {
        r->error = INFINITY;
        r->why = why;
    }
    r->ok = r->error <= r->tolerance;
    if (!k->timing) return;
    r->seconds = measure(tested, t, threads, 1);
    r->seconds_c = measure(twin, t, 1, 0);
}

static void finish(dllm_trial *t)
{
    for (int i = 0; i < t->n_arrays; i++) {
        free(t->array[i].image);
        free(t->array[i].slack);
    }
}

void dllm_trial_begin(dllm_checker *k, dllm_trial *t, const char *kernel, int32_t rows)
{
    *t = (dllm_trial){ .checker = k, .kernel = kernel, .rows = rows, .keys = 1 };
    t->config = (dllm_config){ .layers = 1, .heads = 1, .kv_heads = 1, .head_dim = 1, .dim = 1, .ffn_dim = 1, .vocab = 1 };
}

void dllm_trial_name(dllm_trial *t, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(t->name, sizeof t->name, format, args);
    va_end(args);
}

void dllm_trial_end(dllm_trial *t)
{
    dllm_checker *k = t->checker;
    dllm_check_result r = { .kernel = t->kernel, .name = t->name, .error = INFINITY, .tolerance = t->tolerance, .why = "" };
    side tested, twin;
    if (!open_side(&tested, k->device, t)) {
        r.why = "out of memory";
    } else if (!open_side(&twin, &(dllm_device){ .ops = &dllm_ops_c, .threads = 1 }, t)) {
        r.why = "out of memory";
        close_side(&tested, t);
    } else {
        judge(&r, &tested, &twin, t);
        close_side(&tested, t);
        close_side(&twin, t);
    }
    k->trials++;
    k->failures += !r.ok;
    if (k->report) k->report(k->arg, &r);
    finish(t);
}

/* ---- every kernel has its cases --------------------------------------------------------------------------------------------- */
typedef struct {
    const char *name;
    size_t member;
    void (*cases)(dllm_checker *k);
} kernel;

#define KERNEL(name) { #name, offsetof(dllm_ops, name), dllm_check_##name }
static const kernel kernels[] = {
    KERNEL(embed),        KERNEL(rmsnorm),     KERNEL(linear),  KERNEL(rope),         KERNEL(attend),
    KERNEL(attend_delta), KERNEL(copy),        KERNEL(replace), KERNEL(cosine),       KERNEL(importance),
    KERNEL(pick),         KERNEL(turn),        KERNEL(swiglu),  KERNEL(add),          KERNEL(guide),
    KERNEL(guide_keep),   KERNEL(guide_again), KERNEL(predict), KERNEL(head_predict), KERNEL(nll),
};
enum { N_KERNELS = sizeof kernels / sizeof *kernels, MEMBER = sizeof(void (*)(void)) };
_Static_assert(N_KERNELS *MEMBER + offsetof(dllm_ops, scratch) + MEMBER == sizeof(dllm_ops),
               "a kernel of dllm_ops has no cases here");

/* Only head_predict may be: see ops.h. */
static bool missing(const dllm_ops *ops, const kernel *k)
{
    return k->member == offsetof(dllm_ops, head_predict) && !ops->head_predict;
}

int dllm_check(const dllm_device *device, const char *kernel_name, uint64_t seed, bool timing,
               void (*report)(void *arg, const dllm_check_result *result), void *arg)
{
    const bool all = !kernel_name || !*kernel_name;
    dllm_checker k = { .device = device, .timing = timing, .report = report, .arg = arg };
    bool known = all;
    for (size_t i = 0; i < N_KERNELS; i++) {
        if (!all && strcmp(kernel_name, kernels[i].name)) continue;
        known = true;
        if (missing(device->ops, &kernels[i])) continue;
        const int before = k.trials;
        k.random = (seed * N_KERNELS + i + 1) * 0x9e3779b97f4a7c15u | 1; /* a kernel's cases are the same whichever others run */
        kernels[i].cases(&k);
        k.library = device->library && kernels[i].member == offsetof(dllm_ops, linear);
        if (k.library) kernels[i].cases(&k);
        k.library = false;
        k.failures += k.trials == before || kernels[i].member != offsetof(dllm_ops, embed) + i * MEMBER;
    }
    return known ? k.failures : DLLM_E_VALUE;
}
