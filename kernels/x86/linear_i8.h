/* linear_i8.h: products of int8 weights: one driver, three ways to multiply. Rows of x become int8 once a call, in tiles of 16 rows
 * x 64 k; a panel of weights, 32 outputs, is the unit of work and lies in one piece. Sums are exact, so that all ways agree bit for
 * bit in whatever order they sum. */
#ifndef DLLM_X86_LINEAR_I8_H
#define DLLM_X86_LINEAR_I8_H
#include "../int8.h"
#include "linear.h"
#if defined(__x86_64__)

enum {
    I8_ROWS = 8,                        /* of x that a call of multiply() takes at most */
    I8_STEP_BYTES = 2 * DLLM_I8_TILE,   /* of a panel in 64 k */
    I8_STEP_LINES = I8_STEP_BYTES / 64, /* that are fetched in a step if nothing else fetches them */
    I8_MAX_ROWS = 512                   /* packed at a time */
};

/* Weights to be fetched meanwhile: some lines a step. */
struct i8_ahead {
    const char *w;
    int64_t lines;
};

/* Some rows of x, that lie in one tile, against a panel. */
struct i8_tile {
    const char *x, *w;
    int64_t steps;
    const int32_t *bias; /* what the sums begin with, one a row */
    struct i8_ahead ahead;
    int32_t *sums; /* [rows][32] */
};

struct i8_kind {
    /* n numbers to vectors of 64 int8, DLLM_I8_TILE bytes apart; zeros to the end of the last. Returns the scale. total: sum of the
     * int8. */
    float (*pack)(char *to, const void *from, dllm_dtype t, int64_t n, int32_t *total);
    int32_t bias;                          /* times total is what sums begin with */
    void (*multiply[4])(struct i8_tile t); /* 1, 2, 4, 8 rows */
    /* out[at ... at + n] = sums * w_scale * x_scale + bias -> t, n at most 32. */
    void (*store)(void *out, dllm_dtype t, int64_t at, int64_t n, const int32_t *sums, const float *w_scale, float x_scale,
                  dllm_mat bias);
};

/* One pass over the weights for up to I8_MAX_ROWS rows. */
struct i8_pass {
    const struct product *p;
    const struct i8_kind *kind;
    int64_t first, rows;  /* of in_rows and out_rows */
    int64_t steps, tiles; /* of k; of 16 rows */
    int64_t panels, panels_a_task, tiles_a_task, row_tasks;
    char *x, *homes; /* [tiles][steps][DLLM_I8_TILE]; of the AMX unit, [threads][own_bytes] */
    int64_t own_bytes;
    float *scale; /* of every row */
    int32_t *bias;
};

extern const struct i8_kind dllm_i8_avx2, dllm_i8_avx512;
void dllm_linear_i8(const struct product *p, const struct i8_kind *kind, bool amx);
size_t dllm_linear_i8_scratch(int threads, int64_t rows, int64_t k);
/* Task: some panels and some tiles, on the AMX unit. */
void dllm_i8_run_amx(void *pass, int task, int thread);

static inline const char *i8_panel(const dllm_mat *w, int64_t panel)
{
    return (const char *)w->data + panel * DLLM_I8_PANEL * w->stride;
}

/* Row `row` of the pass to its place; sums: of a panel. */
static inline void i8_store(const struct i8_pass *s, int64_t row, int64_t panel, const int32_t *sums)
{
    const struct product *p = s->p;
    const int64_t first = panel * DLLM_I8_PANEL;
    s->kind->store(dllm_at(p->out, dllm_row(p->out_rows, (int32_t)(s->first + row))), p->out.dtype, first,
                   at_most(DLLM_I8_PANEL, p->w.rows - first), sums, p->w.scale + first, s->scale[row], p->bias);
}
#endif
#endif
