/* linear.c: matrix products on x86: which way a product goes, and the driver of the dot way. */
#include "linear.h"

#include "linear_i8.h"

#if defined(__x86_64__)
#include <stdio.h>
#include <string.h>

enum {
    RANGE_BYTES = 4096, /* of a row of weights: so many of a panel's rows stay in L1 while all rows of x pass */
    COPY_STRIDE = RANGE_BYTES + 64,
    X_BYTES = 1 << 20, /* of packed x that stay in L2 */
    COLUMNS = 96,      /* outputs whose sums are kept together, a whole number of panels */
    HOME = 24 * 64     /* bytes of a tile's accumulators */
};

/* One pass over the weights for as many rows as X_BYTES holds. */
struct pass {
    const struct product *p;
    const struct dot *kind;
    int64_t first, rows, blocks; /* of in_rows and out_rows; of mr rows */
    int64_t padded;              /* k, up to whole vectors */
    int64_t columns_a_task, blocks_a_task, row_tasks;
    char *packed, *own; /* [blocks][padded / step][rows][step]; a thread's own part */
    int64_t own_bytes;  /* sums [rows][COLUMNS], accumulators [blocks][HOME], nr rows of weights */
};

static int64_t packed_bytes(const struct dot *kind, int64_t rows, int64_t k)
{
    return rows * ceil_div(k, kind->step) * kind->step * kind->size;
}

static int64_t sums_bytes(int64_t rows) { return rows * COLUMNS * 4; }

static int64_t own_bytes(const struct dot *kind, int64_t rows)
{
    return sums_bytes(rows) + ceil_div(rows, kind->mr) * HOME + (int64_t)kind->nr * COPY_STRIDE;
}

/* Rows of one pass: whole blocks, at least one. */
static int64_t rows_a_pass(const struct dot *kind, int64_t rows, int64_t k)
{
    const int64_t fit = at_least(X_BYTES / packed_bytes(kind, 1, k), kind->mr);
    const int64_t passes = ceil_div(rows, fit / kind->mr * kind->mr);
    return ceil_div(ceil_div(rows, passes), kind->mr) * kind->mr;
}

static size_t pass_bytes(const struct dot *kind, int threads, int64_t rows, int64_t k)
{
    return (size_t)(packed_bytes(kind, rows, k) + 64 + threads * own_bytes(kind, rows));
}

size_t dllm_linear_dot_scratch(int threads, int64_t rows, int64_t k)
{
    size_t most = 0;
    const struct dot *const kinds[] = { &dllm_dot_avx2, &dllm_dot_avx512f, &dllm_dot_avx512bf16 };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const int64_t fit = at_least(X_BYTES / packed_bytes(kinds[i], 1, k), kinds[i]->mr) + kinds[i]->mr;
        const size_t bytes = pass_bytes(kinds[i], threads, at_most(fit, rows + kinds[i]->mr), k);
        if (bytes > most) most = bytes;
    }
    return most;
}

void dllm_linear_refuse(dllm_device *d, size_t needed)
{
    if (d->failed) return;
    d->failed = DLLM_E_MEMORY;
    snprintf(d->why, sizeof d->why, "linear: %zu bytes of scratch are needed, the device has %zu", needed, d->scratch_bytes);
}

/* Task: one block of rows. */
static void pack(void *arg, int task, int thread)
{
    const struct pass *s = arg;
    const struct product *p = s->p;
    const int64_t row = (int64_t)task * s->kind->mr, n = at_most(s->kind->mr, s->rows - row),
                  vector = s->kind->step * s->kind->size;
    char *to = s->packed + row * s->padded * s->kind->size;
    for (int64_t i = 0; i < n; i++)
        s->kind->spread(to + i * vector, n * vector, dllm_at(p->x, dllm_row(p->in_rows, (int32_t)(s->first + row + i))), p->x.dtype,
                        p->x.cols);
}

/* A panel: nr rows of weights from row `first`, in k ... k + n. Where n is no whole number of vectors or the dtype is not the
 * tile's, or rows are missing at the end, a copy is used. */
struct panel {
    const char *w;
    int64_t stride;
};

static struct panel take_panel(const struct pass *s, int64_t first, int64_t k, int64_t n, char *copy)
{
    const struct dot *kind = s->kind;
    const dllm_mat *w = &s->p->w;
    const int64_t size = w->dtype == DLLM_F32 ? 4 : 2;
    if (w->dtype == kind->native && n % kind->step == 0 && first + kind->nr <= w->rows)
        return (struct panel){ (const char *)dllm_at(*w, first) + k * size, w->stride * size };
    for (int64_t i = 0; i < kind->nr; i++) {
        const char *row = dllm_at(*w, at_most(first + i, w->rows - 1));
        kind->spread(copy + i * COPY_STRIDE, kind->step * kind->size, row + k * size, w->dtype, n);
    }
    return (struct panel){ copy, COPY_STRIDE };
}

/* A thread's memory. */
struct own {
    float *sums;
    char *homes, *copy;
};

/* One panel against blocks b0 ... b1 over one range of k. While block i is done, row i of the next panel is
 * fetched. */
static void run_panel(const struct pass *s, int64_t first, int64_t k, int64_t n, int64_t b0, int64_t b1, struct own own)
{
    const struct dot *kind = s->kind;
    const dllm_mat *w = &s->p->w;
    const int64_t size = w->dtype == DLLM_F32 ? 4 : 2;
    const struct panel panel = take_panel(s, first, k, n, own.copy);
    struct tile t = { .w = panel.w, .stride = panel.stride, .steps = ceil_div(n, kind->step), .fresh = k == 0, .ld = COLUMNS };
    for (int64_t b = b0; b < b1; b++) {
        const int64_t row = b * kind->mr, rows = at_most(kind->mr, s->rows - row), next = first + kind->nr + b - b0;
        const bool fetch = b - b0 < kind->nr && next < w->rows;
        t.x = s->packed + (row * s->padded + k * rows) * kind->size;
        t.home = own.homes + (b - b0) * HOME;
        t.sums = k + n == w->cols ? own.sums + (b - b0) * kind->mr * COLUMNS : NULL;
        t.ahead = fetch ? (const char *)dllm_at(*w, next) + k * size : panel.w;
        t.hop = fetch ? kind->step * size : 0;
        kind->tile[rows - 1](t);
    }
}

/* At most COLUMNS columns of some blocks of rows. sunk: where a sink wants them. */
static void run_columns(const struct pass *s, int64_t c0, int64_t c1, int64_t b0, int64_t b1, int thread, float *sunk)
{
    const struct product *p = s->p;
    const int64_t r0 = b0 * s->kind->mr, r1 = at_most(b1 * s->kind->mr, s->rows), range = RANGE_BYTES / s->kind->size;
    char *mine = s->own + thread * s->own_bytes, *homes = mine + sums_bytes(s->rows);
    struct own own = { (float *)(void *)mine, homes, homes + s->blocks * HOME };
    for (int64_t c = c0; c < c1; c += s->kind->nr, own.sums += s->kind->nr)
        for (int64_t k = 0; k < p->w.cols; k += range) run_panel(s, c, k, at_most(range, p->w.cols - k), b0, b1, own);
    const float *sums = (const float *)(const void *)mine;
    for (int64_t r = r0; r < r1; r++, sums += COLUMNS) {
        if (sunk) memcpy(sunk + r * p->sink->columns, sums, (size_t)(c1 - c0) * sizeof(float));
        else
            s->kind->store(dllm_at(p->out, dllm_row(p->out_rows, (int32_t)(s->first + r))), p->out.dtype, c0, c1 - c0, sums,
                           p->bias);
    }
}

/* Task: some columns and some blocks of rows. */
static void run(void *arg, int task, int thread)
{
    const struct pass *s = arg;
    const struct sink *sink = s->p->sink;
    const int64_t c0 = task / s->row_tasks * s->columns_a_task, c1 = at_most(c0 + s->columns_a_task, s->p->w.rows);
    const int64_t b0 = task % s->row_tasks * s->blocks_a_task, b1 = at_most(b0 + s->blocks_a_task, s->blocks);
    float *sunk = sink ? dllm_sink_space(sink, thread, s->rows) : NULL;
    for (int64_t c = c0; c < c1; c += COLUMNS)
        run_columns(s, c, at_most(c + COLUMNS, c1), b0, b1, thread, sunk ? sunk + (c - c0) : NULL);
    if (sink) sink->take(sink, thread, sunk, s->first, s->rows, c0, c1 - c0);
}

/* How the work is cut. None of it changes a result. */
static void plan(struct pass *s, int threads)
{
    const int64_t mr = s->kind->mr, nr = s->kind->nr;
    const struct sink *sink = s->p->sink;
    s->blocks = ceil_div(s->rows, mr);
    s->columns_a_task = sink ? sink->columns : nr * at_least(1, at_most(COLUMNS / nr, s->p->w.rows / (nr * threads * 4)));
    s->blocks_a_task = blocks_of_a_task(s->p, s->blocks, ceil_div(s->p->w.rows, s->columns_a_task), threads);
    s->row_tasks = ceil_div(s->blocks, s->blocks_a_task);
}

void dllm_linear_dot(const struct product *p, const struct dot *kind)
{
    const int threads = p->d->threads > 1 ? p->d->threads : 1;
    const int64_t n = p->in_rows.n, k = p->w.cols;
    if (n <= 0) return;
    int64_t rows = rows_a_pass(kind, n, k);
    while (rows > kind->mr && pass_bytes(kind, threads, rows, k) > p->d->scratch_bytes) rows -= kind->mr;
    const size_t needed = pass_bytes(kind, threads, rows, k);
    if (needed > p->d->scratch_bytes) {
        dllm_linear_refuse(p->d, needed);
        return;
    }
    for (int64_t first = 0; first < n; first += rows) {
        struct pass s = { .p = p, .kind = kind, .first = first, .rows = at_most(rows, n - first), .packed = p->d->scratch };
        s.padded = ceil_div(k, kind->step) * kind->step;
        s.own = s.packed + (packed_bytes(kind, s.rows, k) + 63) / 64 * 64;
        s.own_bytes = own_bytes(kind, s.rows);
        plan(&s, threads);
        dllm_parallel(threads, (int)s.blocks, pack, &s);
        dllm_parallel(threads, (int)(ceil_div(p->w.rows, s.columns_a_task) * s.row_tasks), run, &s);
    }
}

static bool both_bf16(const struct product *p) { return p->x.dtype == DLLM_BF16 && p->w.dtype == DLLM_BF16; }

void dllm_product_avx2(const struct product *p)
{
    if (p->w.dtype == DLLM_I8) dllm_linear_i8(p, &dllm_i8_avx2, false);
    else dllm_linear_dot(p, &dllm_dot_avx2);
}

void dllm_product_avx512f(const struct product *p)
{
    if (p->w.dtype == DLLM_I8) dllm_linear_i8(p, &dllm_i8_avx2, false);
    else dllm_linear_dot(p, &dllm_dot_avx512f);
}

void dllm_product_avx512vnni(const struct product *p)
{
    if (p->w.dtype == DLLM_I8) dllm_linear_i8(p, &dllm_i8_avx512, false);
    else dllm_linear_dot(p, &dllm_dot_avx512f);
}

void dllm_product_avx512bf16(const struct product *p)
{
    if (both_bf16(p)) dllm_linear_dot(p, &dllm_dot_avx512bf16);
    else dllm_product_avx512vnni(p);
}

void dllm_product_amx(const struct product *p)
{
    if (both_bf16(p)) dllm_linear_amx(p);
    else if (p->w.dtype == DLLM_I8) dllm_linear_i8(p, &dllm_i8_avx512, true);
    else dllm_linear_dot(p, &dllm_dot_avx512f);
}

#define LINEAR(level)                                                                                                              \
    static void linear_##level(dllm_device *d, dllm_mat out, dllm_rows out_rows, dllm_mat x, dllm_rows in_rows, dllm_mat w,        \
                               dllm_mat bias)                                                                                      \
    {                                                                                                                              \
        dllm_product_##level(&(struct product){ d, out, out_rows, x, in_rows, w, bias, NULL });                                    \
    }
LINEAR(avx2)
LINEAR(avx512f)
LINEAR(avx512vnni)
LINEAR(avx512bf16)
LINEAR(amx)

void dllm_x86_linear(dllm_ops *t, dllm_x86_level level, bool vnni)
{
    t->linear = level == DLLM_X86_AVX2         ? linear_avx2
                : level == DLLM_X86_AVX512F    ? (vnni ? linear_avx512vnni : linear_avx512f)
                : level == DLLM_X86_AVX512BF16 ? linear_avx512bf16
                                               : linear_amx;
}

size_t dllm_x86_linear_scratch(const dllm_device *d, const dllm_config *c, dllm_dtype act, int64_t rows, int64_t keys)
{
    const int64_t k = at_least(at_least(c->dim, c->ffn_dim), (int64_t)c->heads * c->head_dim);
    const int threads = d->threads > 1 ? d->threads : 1;
    const size_t dot = dllm_linear_dot_scratch(threads, rows, k), amx = dllm_linear_amx_scratch(threads, rows, k);
    return (size_t)at_least((int64_t)(dot > amx ? dot : amx), (int64_t)dllm_linear_i8_scratch(threads, rows, k));
}
#endif
