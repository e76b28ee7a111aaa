/* linear.h: the two ways a matrix product runs here. Dot: vectors along k of some tokens and some outputs meet in a tile of
 * accumulators, and are summed across at the end. Tiles: the AMX unit. Weights stay as they lie, rows of [n, k]; only x is
 * rearranged. */
#ifndef DLLM_X86_LINEAR_H
#define DLLM_X86_LINEAR_H
#include "x86.h"
#if defined(__x86_64__)

/* Takes outputs as they come: float32, `columns` at a time, of all rows of a pass. What a thread computes lies in its own part of
 * `space` until it is taken. */
struct sink {
    void (*take)(const struct sink *k, int thread, float *z, int64_t row, int64_t rows, int64_t first, int64_t n);
    int64_t columns; /* whole tiles of every kind */
    float *space;    /* [threads][rows][columns] */
};

static inline float *dllm_sink_space(const struct sink *k, int thread, int64_t rows)
{
    return k->space + thread * rows * k->columns;
}

/* The arguments of ops.linear. sink NULL: outputs go to out. */
struct product {
    dllm_device *d;
    dllm_mat out;
    dllm_rows out_rows;
    dllm_mat x;
    dllm_rows in_rows;
    dllm_mat w, bias;
    const struct sink *sink;
};

/* What one call of a tile gets. */
struct tile {
    const char *x, *w;
    int64_t stride, steps; /* bytes between rows of w */
    char *home;
    bool fresh;
    float *sums;
    int64_t ld;
    const char *ahead;
    int64_t hop;
};

/* One tile of the dot way and what goes with it. A vector holds `step` elements of `size` bytes; x is packed in blocks of up to
 * `mr` rows, [k / step][rows][step]. */
struct dot {
    int step, size, mr, nr;
    dllm_dtype native; /* weights of this dtype are read in place */
    /* Vectors of n elements of `from`, the last one filled up with zeros, to to, to + stride, ... */
    void (*spread)(char *to, int64_t stride, const void *from, dllm_dtype t, int64_t n);
    /* Products of `steps` vectors of one block of x and of nr rows of w, added to the tile's accumulators: zeros if `fresh`, else
     * as they were left in home. sums NULL: left in home (mr * nr vectors). Else sums[m * ld + o] is their sum. Meanwhile fetches a
     * byte a step from `ahead`, hop bytes apart. tile[r - 1] is for blocks of r rows. */
    void (*tile[4])(struct tile t);
    /* Elements at ... at + n of row `out`: sums + bias -> t. */
    void (*store)(void *out, dllm_dtype t, int64_t at, int64_t n, const float *sums, dllm_mat bias);
};

extern const struct dot dllm_dot_avx2, dllm_dot_avx512f, dllm_dot_avx512bf16;
void dllm_linear_dot(const struct product *p, const struct dot *kind);
size_t dllm_linear_dot_scratch(int threads, int64_t rows, int64_t k);

/* x and w bfloat16. */
void dllm_linear_amx(const struct product *p);
size_t dllm_linear_amx_scratch(int threads, int64_t rows, int64_t k);

/* A product as a level does it. */
typedef void dllm_product(const struct product *p);
dllm_product dllm_product_avx2, dllm_product_avx512f, dllm_product_avx512vnni, dllm_product_avx512bf16, dllm_product_amx;

/* Records that the device's scratch is too small. */
void dllm_linear_refuse(dllm_device *d, size_t needed);

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

/* How many of the blocks of x a task takes: all, as sinks want it, unless columns of tasks are too few for the threads. */
static inline int64_t blocks_of_a_task(const struct product *p, int64_t blocks, int64_t columns, int threads)
{
    return p->sink ? blocks : ceil_div(blocks, at_least(1, at_most(blocks, 2 * threads / columns)));
}
#endif
#endif
