/* linear_amx.h: what the two ways over the AMX unit share. Include under its target.
 *
 * A tile of A is 16 weight rows x 32 k. A tile of B is 32 k x 16 tokens in k pairs: x is packed so once a pass. A tile of C is
 * 16 outputs x 16 tokens of float32. Sums run in ascending k whatever the cut: C tiles that leave the unit come back unchanged. */
#ifndef DLLM_X86_LINEAR_AMX_H
#define DLLM_X86_LINEAR_AMX_H
#include "linear.h"
#include "tiles.h"
#include "vec512.h"

/* One pass over the weights, and memory for what both ways keep: packed x, and C tiles that are outside the unit. */
struct amx_pass {
    const struct product *p;
    int threads;
    int64_t first, rows; /* of in_rows and out_rows */
    char *packed, *homes;
};

enum {
    AMX_TILE = 1024,  /* bytes */
    AMX_FEW = 192,    /* rows of x whose products wait for memory */
    AMX_PADDED = 32,  /* rows and k of x are packed in multiples of this, */
    AMX_OUTPUTS = 256 /* and a thread has homes for so many outputs of a row */
};

/* Rows of weights to be fetched to L2 while others are worked on. */
struct ahead {
    const char *w;
    int64_t stride, rows;
};

void dllm_linear_amx_few(const struct amx_pass *a);
void dllm_linear_amx_many(const struct amx_pass *a);

/* 16 tokens x 32 k to 16 pairs of k x 16 tokens. */
static inline void pack_tile(char *to, const struct product *p, int64_t first, int64_t n, int64_t k)
{
    const int64_t left = p->x.cols - k;
    const __mmask32 m = left >= 32 ? ~0u : (1u << left) - 1;
    __m512i r[16];
    for (int64_t i = 0; i < 16; i++)
        r[i] = i < n ? _mm512_maskz_loadu_epi16(m, (const uint16_t *)dllm_at(p->x, dllm_row(p->in_rows, (int32_t)(first + i))) + k)
                     : _mm512_setzero_si512();
    transpose16(r);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) _mm512_store_si512(to + i * 64, r[i]);
}

VEC void transpose_tile(char *to, const char *from)
{
    __m512i r[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) r[i] = _mm512_load_si512(from + i * 64);
    transpose16(r);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) _mm512_store_si512(to + i * 64, r[i]);
}

/* Two C tiles, of tokens from row on and outputs from first and from first + 16 on, plus bias, to their places: in the output, or in
 * what a sink takes. Together they are a whole line of it; the second is not read if there are no such outputs. */
static inline void store_pair(const struct amx_pass *a, const char *home, const char *second, int64_t row, int64_t first,
                              float *sunk)
{
    const struct product *p = a->p;
    const dllm_dtype t = sunk ? DLLM_F32 : p->out.dtype;
    const int64_t to = sunk ? first % p->sink->columns : first, n = at_most(16, a->rows - row), left = p->w.rows - first;
    const __mmask16 m0 = lanes16(left), m1 = lanes16(left - 16);
    const dllm_mat *b = &p->bias;
    const __m512 bias0 = b->data ? load16(b->data, b->dtype, first, m0) : _mm512_setzero_ps();
    const __m512 bias1 = b->data ? load16(b->data, b->dtype, first + 16, m1) : _mm512_setzero_ps();
    char sums[2 * AMX_TILE] __attribute__((aligned(64)));
    __asm__ volatile("" : : "r"(home), "r"(second) : "memory"); /* tile stores do not tell the compiler what they write */
    transpose_tile(sums, home);
    if (m1) transpose_tile(sums + AMX_TILE, second);
    for (int64_t i = 0; i < n; i++, row++) {
        void *out = sunk ? sunk + row * p->sink->columns : dllm_at(p->out, dllm_row(p->out_rows, (int32_t)(a->first + row)));
        store16(out, t, to, m0, _mm512_add_ps(_mm512_load_ps(sums + i * 64), bias0));
        if (m1) store16(out, t, to + 16, m1, _mm512_add_ps(_mm512_load_ps(sums + AMX_TILE + i * 64), bias1));
    }
}
#endif
