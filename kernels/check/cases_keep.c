/* Cases of the kernels that caching methods use: attend_delta, copy, replace, cosine, importance. */
#include <math.h>

#include "trial.h"

/* ---- attend_delta: the rows of a trial are its queries, as in cases_attention.c ---------------------------------------------- */
enum { DELTA_Q, DELTA_K, DELTA_DV, DELTA_OUT, DELTA_OLD, DELTA_SPANS, DELTA_COLUMNS, DELTA_CHANGED, MAX_SPANS = 4, BEFORE = 2 };

typedef struct {
    int n;
    int32_t queries[MAX_SPANS], keys[MAX_SPANS], columns[MAX_SPANS];
} spans;
static const spans span_sets[] = {
    { 0, { 0 }, { 0 }, { 0 } },
    { 1, { 1 }, { 1 }, { 1 } },
    { 4, { 5, 0, 3, 20 }, { 17, 9, 0, 33 }, { 4, 3, 0, 33 } },
    { 3, { 33, 2, 7 }, { 70, 40, 5 }, { 1, 0, 2 } },
    { 3, { 50, 1, 64 }, { 129, 300, 64 }, { 65, 16, 31 } },
    { 2, { 2, 40 }, { 1030, 2 }, { 100, 2 } },
    { 1, { 256 }, { 1280 }, { 16 } },
    { 1, { 256 }, { 1280 }, { 64 } },
};
enum { N_SPAN_SETS = sizeof span_sets / sizeof *span_sets, N_TIMED = 2 };

typedef struct {
    int32_t heads, kv_heads, head_dim, gap;
    bool gathered, in_place, ranged; /* ranged: the changed slots are a range, not a list */
    double scale, moved;             /* of queries and keys, of the values' changes */
} delta_shape;
static const delta_shape delta_shapes[] = {
    { 1, 1, 8, 0, false, false, false, 1, 1 },    { 2, 2, 12, 3, true, true, false, 1, 1e-3 },
    { 4, 2, 16, 0, true, false, true, 1, 1 },     { 4, 1, 64, 64, false, true, true, 1, 30 },
    { 2, 2, 128, 0, true, true, false, 1, 1 },    { 6, 3, 32, 0, false, false, false, 4, 1 },
    { 7, 1, 24, 1, false, false, true, 1e-3, 1 }, { 3, 3, 96, 32, true, false, false, 1, 1 },
    { 2, 1, 5, 0, false, true, false, 1, 1 },     { 4, 2, 160, 0, true, true, true, 0.5, 1e-5 },
};
static const delta_shape timed_shape = { 32, 32, 128, 0, false, false, false, 1, 1 };

static void run_delta(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    dllm_span *clipped = at[DELTA_SPANS];
    for (int i = 0; i < t->n_spans; i++) {
        int32_t field[4];
        for (int c = 0; c < 4; c++) field[c] = (int32_t)dllm_trial_get(t, DELTA_SPANS, i, c);
        const int32_t from = field[0] > first ? field[0] : first;
        const int32_t end = field[0] + field[1] < first + n ? field[0] + field[1] : first + n;
        clipped[i] = (dllm_span){ from, end > from ? end - from : 0, field[2], field[3] };
    }
    const int old = t->flag ? DELTA_OUT : DELTA_OLD;
    dllm_rows changed = { .first = BEFORE, .n = (int32_t)t->array[DELTA_DV].rows };
    if (t->array[DELTA_CHANGED].rows) changed = (dllm_rows){ .idx = at[DELTA_CHANGED], .n = (int32_t)t->array[DELTA_CHANGED].rows };
    const dllm_spans all = { clipped, at[DELTA_COLUMNS], t->n_spans, t->count ? t->rows : n, (int32_t)t->keys };
    d->ops->attend_delta(d, dllm_trial_mat(t, DELTA_OUT, at, 0), dllm_trial_mat(t, DELTA_Q, at, 0),
                         dllm_trial_rows(t, DELTA_OUT, at, 0, t->rows), dllm_trial_mat(t, old, at, 0),
                         dllm_trial_rows(t, old, at, 0, t->rows), dllm_trial_mat(t, DELTA_K, at, 0),
                         dllm_trial_mat(t, DELTA_DV, at, 0), changed, all, t->heads, t->kv_heads);
}

/* Which slots of a span changed: `count` of its keys, each once, in steps that wrap around, so not in order. */
static void choose_columns(dllm_trial *t, int32_t at, int32_t count, int32_t k_first, int32_t keys)
{
    const int32_t step = keys > 2 && keys % 7 ? 7 : 1, start = dllm_trial_below(t->checker, keys ? keys : 1);
    for (int32_t c = 0; c < count; c++) dllm_trial_set(t, DELTA_CHANGED, at + c, 0, k_first + (start + c * step) % keys);
}

static void fill_spans(dllm_trial *t, const spans *s, bool ranged, int64_t slots)
{
    int32_t first = 0, packed = 0;
    for (int i = 0; i < s->n; i++) {
        const int place = s->n - 1 - i;
        const int32_t keys = s->keys[i], k_first = BEFORE + dllm_trial_below(t->checker, (int32_t)slots - BEFORE - keys + 1);
        const int32_t from = ranged ? k_first - BEFORE + dllm_trial_below(t->checker, keys - s->columns[i] + 1) : packed;
        const int32_t fields[4] = { first, s->queries[i], k_first, keys }, columns[2] = { from, s->columns[i] };
        for (int c = 0; c < 4; c++) dllm_trial_set(t, DELTA_SPANS, place, c, fields[c]);
        for (int c = 0; c < 2; c++) dllm_trial_set(t, DELTA_COLUMNS, place, c, columns[c]);
        if (!ranged) choose_columns(t, packed, s->columns[i], k_first, keys);
        first += s->queries[i];
        packed += s->columns[i];
    }
}

/* As for attend: an error of the scores is a relative error of the weights, and one weight near 1 that rounds to the other side
 * moves a sum by half an epsilon of the greatest change. */
static double delta_slack(const delta_shape *s, dllm_trial_kind kind)
{
    const double rounding = kind == TRIAL_F32 ? 0 : dllm_trial_epsilon(kind);
    const double scores = s->scale * s->scale * sqrt(s->head_dim) + 4;
    return s->moved * (rounding + scores * dllm_trial_epsilon(TRIAL_F32));
}

/* Outputs and what they were: one array, or two with their rows in different orders. */
static void place_delta(dllm_trial *t, bool gathered)
{
    for (int array = DELTA_OUT; array <= (t->flag ? DELTA_OUT : DELTA_OLD); array++) {
        if (gathered) dllm_trial_gather(t, array);
        else t->array[array].first = dllm_trial_below(t->checker, 3);
    }
}

static void add_delta_arrays(dllm_trial *t, const delta_shape *s, const spans *set, dllm_trial_kind kind, int32_t changed)
{
    const int64_t wide = s->heads * s->head_dim, narrow = s->kv_heads * s->head_dim, slots = t->keys + 5 + BEFORE;
    dllm_trial_add(t, TRIAL_IN, kind, t->rows + 3, wide, wide + s->gap);
    dllm_trial_add(t, TRIAL_IN, kind, slots, narrow, narrow + s->gap);
    dllm_trial_add(t, TRIAL_IN, kind, s->ranged ? slots : changed, narrow, narrow + s->gap);
    dllm_trial_add(t, TRIAL_OUT, kind, t->rows + 3, wide, wide + s->gap);
    dllm_trial_add(t, TRIAL_IN, kind, s->in_place ? 0 : t->rows + 3, wide, wide + 2 * s->gap);
    dllm_trial_add_shared(t, TRIAL_WORK, TRIAL_I32, MAX_SPANS, 4);
    dllm_trial_add_shared(t, TRIAL_IN, TRIAL_I32, MAX_SPANS, 2);
    dllm_trial_add_shared(t, TRIAL_IN, TRIAL_I32, s->ranged ? 0 : changed, 1);
    place_delta(t, s->gathered);
    dllm_trial_fill(t, DELTA_Q, s->scale);
    dllm_trial_fill(t, DELTA_K, s->scale);
    dllm_trial_fill(t, DELTA_DV, s->moved);
    dllm_trial_fill(t, s->in_place ? DELTA_OUT : DELTA_OLD, 1);
    fill_spans(t, set, s->ranged, slots);
}

static void delta_case(dllm_checker *k, const delta_shape *s, const spans *set, dllm_trial_kind kind)
{
    int32_t queries = 0, keys = 0, changed = 0;
    for (int i = 0; i < set->n; i++) {
        queries += set->queries[i];
        changed += set->columns[i];
        keys = set->keys[i] > keys ? set->keys[i] : keys;
    }
    dllm_trial t;
    dllm_trial_begin(k, &t, "attend_delta", queries);
    dllm_trial_name(&t, "spans %d queries %d keys %d changed %d heads %d/%d x %d%s%s%s%s scale %g %s", set->n, (int)queries,
                    (int)keys, (int)changed, (int)s->heads, (int)s->kv_heads, (int)s->head_dim, s->gap ? " strided" : "",
                    s->gathered ? " gathered" : "", s->in_place ? " in place" : "", s->ranged ? " range" : "", s->scale,
                    dllm_trial_kind_name(kind));
    t.run = run_delta;
    t.counts = true;
    t.flag = s->in_place;
    t.heads = t.config.heads = s->heads;
    t.kv_heads = t.config.kv_heads = s->kv_heads;
    t.head_dim = t.config.head_dim = s->head_dim;
    t.n_spans = set->n;
    t.act = (dllm_dtype)kind;
    t.keys = keys;
    t.tolerance = 1;
    add_delta_arrays(&t, s, set, kind, changed);
    for (int32_t i = 0; i < queries; i++) dllm_trial_slack(&t, DELTA_OUT, i, delta_slack(s, kind));
    dllm_trial_end(&t);
}

void dllm_check_attend_delta(dllm_checker *k)
{
    enum { N_SHAPES = sizeof delta_shapes / sizeof *delta_shapes };
    for (int i = 0; i < N_SPAN_SETS - N_TIMED; i++) {
        for (int j = 0; j < 3 * N_SHAPES; j++) delta_case(k, &delta_shapes[j / 3], &span_sets[i], dllm_trial_floats[j % 3]);
    }
    for (int i = N_SPAN_SETS - N_TIMED; i < N_SPAN_SETS && dllm_trial_timing(k); i++) {
        delta_case(k, &timed_shape, &span_sets[i], TRIAL_BF16);
        delta_case(k, &timed_shape, &span_sets[i], TRIAL_F32);
    }
}

/* ---- copy, replace, cosine --------------------------------------------------------------------------------------------------- */
enum { PAIR_A, PAIR_B, PAIR_OUT };

typedef struct {
    int32_t n, cols, gap;
    bool gathered;
    double scale;
} shape;
static const shape shapes[] = {
    { 0, 16, 0, false, 1 },   { 0, 16, 3, true, 1 },     { 1, 1, 0, false, 1 },      { 1, 64, 0, true, 1 },
    { 2, 7, 1, false, 1 },    { 3, 8, 0, true, 1e-12 },  { 5, 31, 4, true, 1 },      { 7, 33, 0, false, 100 },
    { 6, 129, 7, true, 3e3 }, { 4, 1000, 24, false, 1 }, { 17, 96, 0, true, 1 },     { 40, 2049, 3, true, 1 },
    { 3, 40, 8, true, 1e-5 }, { 33, 16, 0, false, 1 },   { 256, 4096, 0, false, 1 },
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* Two matrices and perhaps a column of results. */
static void add_pair(dllm_trial *t, const shape *s, dllm_trial_role a_role, dllm_trial_kind a, dllm_trial_role b_role,
                     dllm_trial_kind b)
{
    dllm_trial_name(t, "n %d cols %d%s%s scale %g %s %s", (int)s->n, (int)s->cols, s->gap ? " strided" : "",
                    s->gathered ? " gathered" : "", s->scale, dllm_trial_kind_name(a), dllm_trial_kind_name(b));
    dllm_trial_add(t, a_role, a, s->n + 3, s->cols, s->cols + s->gap);
    dllm_trial_add(t, b_role, b, s->n + 3, s->cols, s->cols + 2 * s->gap);
    if (a_role == TRIAL_IN && b_role == TRIAL_IN) dllm_trial_add_shared(t, TRIAL_OUT, TRIAL_F32, s->n + 3, 1);
    dllm_trial_fill(t, PAIR_A, s->scale);
    dllm_trial_fill(t, PAIR_B, s->scale);
}

/* Once all arrays are there: where the rows of one lie. */
static void place(dllm_trial *t, bool gathered, int array)
{
    if (gathered) dllm_trial_gather(t, array);
    else t->array[array].first = dllm_trial_below(t->checker, 3);
}

static void run_copy(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    d->ops->copy(d, dllm_trial_mat(t, PAIR_B, at, 0), dllm_trial_rows(t, PAIR_B, at, first, n), dllm_trial_mat(t, PAIR_A, at, 0),
                 dllm_trial_rows(t, PAIR_A, at, first, n));
}

static void run_replace(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    d->ops->replace(d, dllm_trial_mat(t, PAIR_B, at, 0), dllm_trial_rows(t, PAIR_B, at, first, n),
                    dllm_trial_mat(t, PAIR_A, at, first));
}

static void run_cosine(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    d->ops->cosine(d, (float *)at[PAIR_OUT] + first, dllm_trial_mat(t, PAIR_A, at, 0), dllm_trial_rows(t, PAIR_A, at, first, n),
                   dllm_trial_mat(t, PAIR_B, at, 0), dllm_trial_rows(t, PAIR_B, at, first, n), t->scalar);
}

static int n_shapes(const dllm_checker *k) { return dllm_trial_timing(k) ? N_SHAPES : N_SHAPES - 1; }

void dllm_check_copy(dllm_checker *k)
{
    for (int i = 0; i < 3 * n_shapes(k); i++) {
        const shape *s = &shapes[i / 3];
        dllm_trial t;
        dllm_trial_begin(k, &t, "copy", s->n);
        t.run = run_copy;
        add_pair(&t, s, TRIAL_IN, dllm_trial_floats[i % 3], TRIAL_OUT, dllm_trial_floats[i % 3]);
        place(&t, s->gathered, PAIR_A);
        place(&t, s->gathered, PAIR_B);
        dllm_trial_end(&t);
    }
}

void dllm_check_replace(dllm_checker *k)
{
    for (int i = 0; i < 9 * n_shapes(k); i++) {
        const shape *s = &shapes[i / 9];
        dllm_trial t;
        dllm_trial_begin(k, &t, "replace", s->n);
        t.counts = true;
        t.run = run_replace; /* one subtraction and one rounding: nothing to tolerate */
        add_pair(&t, s, TRIAL_OUT, dllm_trial_floats[i % 3], TRIAL_OUT, dllm_trial_floats[i / 3 % 3]);
        place(&t, s->gathered, PAIR_B);
        dllm_trial_end(&t);
    }
}

/* Rows that stood still, turned round, moved a little, vanished; every fifth has nothing to do with its partner. */
static void fill_partners(dllm_trial *t)
{
    static const double factors[] = { 1, -3, 1, 0 };
    for (int32_t i = 0; i < t->rows; i++) {
        const int64_t a = dllm_trial_place(t, PAIR_A, i), b = dllm_trial_place(t, PAIR_B, i);
        for (int64_t c = 0; i % 5 < 4 && c < t->array[PAIR_B].cols; c++) {
            const double wobble = i % 5 == 2 ? 0.1 * dllm_trial_uniform(t->checker) : 0;
            dllm_trial_set(t, PAIR_B, b, c, dllm_trial_get(t, PAIR_A, a, c) * (factors[i % 5] + wobble));
        }
    }
}

void dllm_check_cosine(dllm_checker *k)
{
    for (int i = 0; i < 9 * n_shapes(k); i++) {
        const shape *s = &shapes[i / 9];
        dllm_trial t;
        dllm_trial_begin(k, &t, "cosine", s->n);
        t.run = run_cosine;
        t.scalar = i % 2 ? 1e-8f : 1e-16f;
        t.tolerance = 1;
        add_pair(&t, s, TRIAL_IN, dllm_trial_floats[i % 3], TRIAL_IN, dllm_trial_floats[i / 3 % 3]);
        place(&t, s->gathered, PAIR_A);
        place(&t, s->gathered, PAIR_B);
        fill_partners(&t);
        for (int32_t r = 0; r < s->n; r++)
            dllm_trial_slack(&t, PAIR_OUT, r, 2 * dllm_trial_epsilon(TRIAL_F32)); /* products cancel */
        dllm_trial_end(&t);
    }
}

/* ---- importance: the rows of a trial are its keys ---------------------------------------------------------------------------- */
enum { HEED_Q, HEED_K, HEED_OUT };

typedef struct {
    int32_t queries, keys, heads, kv_heads, head_dim, gap;
    bool gathered;
    double scale;
} heed_shape;
static const heed_shape heed_shapes[] = {
    { 3, 0, 2, 1, 8, 0, false, 1 },      { 1, 1, 1, 1, 1, 0, false, 1 },      { 2, 3, 2, 2, 5, 3, true, 1 },
    { 4, 17, 4, 2, 16, 0, true, 1 },     { 32, 70, 7, 1, 24, 1, false, 100 }, { 33, 40, 6, 3, 32, 5, false, 1e-4 },
    { 64, 129, 28, 4, 128, 0, true, 1 }, { 5, 300, 2, 2, 160, 0, false, 1 },  { 32, 1280, 32, 32, 128, 0, false, 1 },
};
enum { N_HEED_SHAPES = sizeof heed_shapes / sizeof *heed_shapes };

static void run_importance(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    const int32_t queries = (int32_t)t->array[HEED_Q].rows - 3;
    d->ops->importance(d, (float *)at[HEED_OUT] + first, dllm_trial_mat(t, HEED_Q, at, 0),
                       dllm_trial_rows(t, HEED_Q, at, 0, queries), dllm_trial_mat(t, HEED_K, at, 0),
                       dllm_trial_rows(t, HEED_K, at, first, n), t->heads, t->kv_heads);
}

static void importance_case(dllm_checker *k, const heed_shape *s, dllm_trial_kind kind)
{
    dllm_trial t;
    dllm_trial_begin(k, &t, "importance", s->keys);
    dllm_trial_name(&t, "queries %d keys %d heads %d/%d x %d%s%s scale %g %s", (int)s->queries, (int)s->keys, (int)s->heads,
                    (int)s->kv_heads, (int)s->head_dim, s->gap ? " strided" : "", s->gathered ? " gathered" : "", s->scale,
                    dllm_trial_kind_name(kind));
    t.run = run_importance;
    t.heads = t.config.heads = s->heads;
    t.kv_heads = t.config.kv_heads = s->kv_heads;
    t.config.head_dim = s->head_dim;
    t.act = (dllm_dtype)kind;
    t.keys = s->keys;
    t.tolerance = 1;
    const int64_t wide = s->heads * s->head_dim, narrow = s->kv_heads * s->head_dim;
    dllm_trial_add(&t, TRIAL_IN, kind, s->queries + 3, wide, wide + s->gap);
    dllm_trial_add(&t, TRIAL_IN, kind, s->keys + 3, narrow, narrow + s->gap);
    dllm_trial_add_shared(&t, TRIAL_OUT, TRIAL_F32, s->keys + 3, 1);
    place(&t, s->gathered, HEED_Q);
    place(&t, s->gathered, HEED_K);
    dllm_trial_fill(&t, HEED_Q, s->scale);
    dllm_trial_fill(&t, HEED_K, s->scale);
    for (int32_t i = 0; i < s->keys; i++) { /* what float32 sums may lose where they cancel */
        const double key = dllm_trial_norm(&t, HEED_K, dllm_trial_place(&t, HEED_K, i));
        dllm_trial_slack(&t, HEED_OUT, i, 2 * dllm_trial_epsilon(TRIAL_F32) * s->scale / s->kv_heads * key);
    }
    dllm_trial_end(&t);
}

void dllm_check_importance(dllm_checker *k)
{
    for (int i = 0; i < N_HEED_SHAPES - !dllm_trial_timing(k); i++) {
        for (int j = 0; j < 3; j++) importance_case(k, &heed_shapes[i], dllm_trial_floats[j]);
    }
}
