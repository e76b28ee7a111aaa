/* linear_i8.c: the driver of products with int8 weights. */
#include "linear_i8.h"

#if defined(__x86_64__)
enum { PACK_ROWS = 4, PANELS = 8 }; /* rows of a packing task; panels of a task at most */

/* Task: a few rows of x. */
static void pack(void *arg, int task, int thread)
{
    const struct i8_pass *s = arg;
    const struct product *p = s->p;
    for (int64_t r = (int64_t)task * PACK_ROWS; r < at_most((int64_t)(task + 1) * PACK_ROWS, s->rows); r++) {
        char *to = s->x + r / 16 * s->steps * DLLM_I8_TILE + r % 16 * 64;
        int32_t total;
        s->scale[r] =
            s->kind->pack(to, dllm_at(p->x, dllm_row(p->in_rows, (int32_t)(s->first + r))), p->x.dtype, p->w.cols, &total);
        s->bias[r] = s->kind->bias * total;
    }
}

/* Rows r ... r + n against one panel. */
static void run_rows(const struct i8_pass *s, int64_t r, int64_t n, int64_t panel, struct i8_ahead ahead, float *sunk)
{
    const int kind = n > 4 ? 3 : n > 2 ? 2 : n > 1;
    int32_t sums[I8_ROWS * DLLM_I8_PANEL] __attribute__((aligned(64)));
    s->kind->multiply[kind]((struct i8_tile){ .x = s->x + r / 16 * s->steps * DLLM_I8_TILE + r % 16 * 64,
                                              .w = i8_panel(&s->p->w, panel),
                                              .steps = s->steps,
                                              .bias = s->bias + r,
                                              .ahead = ahead,
                                              .sums = sums });
    for (int64_t i = 0; i < n; i++) i8_store(s, r + i, panel, sums + i * DLLM_I8_PANEL, sunk);
}

/* Task: some panels and some tiles of rows. While a panel meets its rows, a part of the next one comes with each. */
static void run(void *arg, int task, int thread)
{
    const struct i8_pass *s = arg;
    const int64_t p0 = task / s->row_tasks * s->panels_a_task, p1 = at_most(p0 + s->panels_a_task, s->panels);
    const int64_t r0 = task % s->row_tasks * s->tiles_a_task * 16, r1 = at_most(r0 + s->tiles_a_task * 16, s->rows);
    const int64_t lines = ceil_div(I8_STEP_LINES, ceil_div(r1 - r0, I8_ROWS));
    float *sunk = i8_sunk(s, thread);
    for (int64_t panel = p0; panel < p1; panel++) {
        const char *next = i8_panel(&s->p->w, at_most(panel + 1, s->panels - 1)), *end = next + s->steps * I8_STEP_BYTES;
        for (int64_t r = r0; r < r1; r += I8_ROWS, next += lines * s->steps * 64)
            run_rows(s, r, at_most(I8_ROWS, r1 - r), panel, (struct i8_ahead){ next, next < end ? lines : 0 }, sunk);
    }
    i8_take(s, thread, sunk, p0, p1);
}

/* How the work is cut. None of it changes a result. */
static void plan(struct i8_pass *s, int threads)
{
    const struct sink *sink = s->p->sink;
    s->tiles = ceil_div(s->rows, 16);
    s->panels = ceil_div(s->p->w.rows, DLLM_I8_PANEL);
    s->panels_a_task = sink ? sink->columns / DLLM_I8_PANEL : at_least(1, at_most(PANELS, s->panels / (threads * 4)));
    const int64_t columns = ceil_div(s->panels, s->panels_a_task), blocks = ceil_div(s->tiles, 2);
    const int64_t blocks_a_task = blocks_of_a_task(s->p, blocks, columns, threads);
    s->row_tasks = ceil_div(blocks, blocks_a_task);
    s->tiles_a_task = 2 * blocks_a_task;
}

/* ---- scratch: x, homes, scales, biases ---------------------------------------------------------------------------------------- */
static int64_t tiles_of(int64_t rows) { return ceil_div(at_most(rows, I8_MAX_ROWS), DLLM_I8_PANEL) * 2; }

static int64_t x_bytes(int64_t rows, int64_t k) { return tiles_of(rows) * ceil_div(k, DLLM_I8_STEP) * DLLM_I8_TILE; }

/* Sums of a panel with all rows. */
static int64_t own_bytes(int64_t rows) { return tiles_of(rows) * I8_STEP_BYTES; }

size_t dllm_linear_i8_scratch(int threads, int64_t rows, int64_t k)
{
    return (size_t)(x_bytes(rows, k) + threads * own_bytes(rows) + tiles_of(rows) * 16 * 8);
}

void dllm_linear_i8(const struct product *p, const struct i8_kind *kind, bool amx)
{
    const int threads = p->d->threads > 1 ? p->d->threads : 1;
    const int64_t k = p->w.cols;
    if (p->in_rows.n <= 0) return;
    int64_t rows = at_most(p->in_rows.n, I8_MAX_ROWS);
    while (rows > DLLM_I8_PANEL && dllm_linear_i8_scratch(threads, rows, k) > p->d->scratch_bytes) rows -= DLLM_I8_PANEL;
    const size_t needed = dllm_linear_i8_scratch(threads, rows, k);
    if (needed > p->d->scratch_bytes) {
        dllm_linear_refuse(p->d, needed);
        return;
    }
    for (int64_t first = 0; first < p->in_rows.n; first += rows) {
        struct i8_pass s = { .p = p, .kind = kind, .first = first, .rows = at_most(rows, p->in_rows.n - first) };
        s.steps = ceil_div(k, DLLM_I8_STEP);
        s.own_bytes = own_bytes(s.rows);
        s.x = p->d->scratch;
        s.homes = s.x + x_bytes(s.rows, k);
        s.scale = (float *)(void *)(s.homes + threads * s.own_bytes);
        s.bias = (int32_t *)(s.scale + tiles_of(s.rows) * 16);
        plan(&s, threads);
        dllm_parallel(threads, (int)ceil_div(s.rows, PACK_ROWS), pack, &s);
        dllm_parallel(threads, (int)(ceil_div(s.panels, s.panels_a_task) * s.row_tasks), amx ? dllm_i8_run_amx : run, &s);
    }
}
#endif
