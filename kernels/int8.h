/* int8.h: int8 weights: how a row of numbers becomes whole ones, and where those of a matrix lie.
 *
 * A row has one scale: its largest size is 127 steps. Steps never exceed 127, so that sums of two products fit into 16 bits.
 * A matrix lies in panels of 32 rows, a panel in steps of 64 k, a step in two tiles of 16 rows, and a tile as [k / 4][row][k % 4],
 * the order in which both the AMX unit and vectors of 32-bit sums take it. Rows and k are filled up with zeros. */
#ifndef DLLM_INT8_H
#define DLLM_INT8_H
#include <math.h>

#include "bits.h"

enum {
    DLLM_I8_PANEL = 32,
    DLLM_I8_STEP = 64,
    DLLM_I8_TILE = 1024,   /* bytes */
    DLLM_I8_MAX_K = 131072 /* sums of so many products fit into 32 bits */
};

static inline int64_t dllm_i8_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* What dllm_mat.stride says of k columns. */
static inline int64_t dllm_i8_stride(int64_t k) { return dllm_i8_up(k, DLLM_I8_STEP); }

/* Bytes of the tiles of [rows, k], and of its scales, which are filled up as the rows are. */
static inline size_t dllm_i8_tiles(int64_t rows, int64_t k)
{
    return (size_t)(dllm_i8_up(rows, DLLM_I8_PANEL) * dllm_i8_stride(k));
}
static inline size_t dllm_i8_scales(int64_t rows) { return (size_t)dllm_i8_up(rows, DLLM_I8_PANEL) * sizeof(float); }

/* Place of element (row, k). */
static inline int64_t dllm_i8_at(int64_t stride, int64_t row, int64_t k)
{
    const int64_t tile = (row / DLLM_I8_PANEL * (stride / DLLM_I8_STEP) + k / DLLM_I8_STEP) * 2 + row % DLLM_I8_PANEL / 16;
    return tile * DLLM_I8_TILE + k % DLLM_I8_STEP / 4 * 64 + row % 16 * 4 + k % 4;
}

/* Of a row: what one step is worth, and steps per unit. A row that is not finite has scale NaN and no steps, inverse 0. */
typedef struct {
    float scale, inverse;
} dllm_i8_unit;

/* From the row's largest size, as bits without the sign. Rows of zeros, or nearly, are measured with a small rod. */
static inline dllm_i8_unit dllm_i8_unit_of(uint32_t largest)
{
    if (largest >= 0x7f800000u) return (dllm_i8_unit){ NAN, 0 };
    const float size = dllm_of_bits(largest) > 0x1p-100f ? dllm_of_bits(largest) : 0x1p-100f;
    return (dllm_i8_unit){ size / 127.0f, 127.0f / size };
}

static inline dllm_i8_unit dllm_i8_measure(const void *x, dllm_dtype t, int64_t n)
{
    uint32_t largest = 0;
    for (int64_t j = 0; j < n; j++) {
        const uint32_t size = dllm_bits_of(dllm_get(x, t, j)) & 0x7fffffffu;
        if (size > largest) largest = size;
    }
    return dllm_i8_unit_of(largest);
}

/* To nearest, ties to even: the float adder rounds. x finite. */
static inline int8_t dllm_i8_steps(float x, dllm_i8_unit u) { return (int8_t)dllm_bits_of(x * u.inverse + 0x1.8p23f); }

static inline void dllm_i8_round(int8_t *to, const void *x, dllm_dtype t, int64_t n, dllm_i8_unit u)
{
    for (int64_t j = 0; j < n; j++) to[j] = u.inverse > 0 ? dllm_i8_steps(dllm_get(x, t, j), u) : 0;
}
#endif
