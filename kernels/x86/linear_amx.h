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

/* The C tile of tokens from row on and outputs from first on, plus bias, to its place: in the output, or in what a sink takes. */
static inline void store_tile(const struct amx_pass *a, const char *home, int64_t row, int64_t first, float *sunk)
{
    const struct product *p = a->p;
    const dllm_dtype t = sunk ? DLLM_F32 : p->out.dtype;
    const int64_t to = sunk ? first % p->sink->columns : first, end = at_most(row + 16, a->rows);
    const __mmask16 m = lanes16(p->w.rows - first);
    const __m512 bias = p->bias.data ? load16(p->bias.data, p->bias.dtype, first, m) : _mm512_setzero_ps();
    __asm__ volatile("" : : "r"(home) : "memory"); /* tile stores do not tell the compiler what they write */
    __m512i r[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) r[i] = _mm512_load_si512(home + i * 64);
    transpose16(r);
    for (const __m512i *sums = r; row < end; row++, sums++) {
        void *out = sunk ? sunk + row * p->sink->columns : dllm_at(p->out, dllm_row(p->out_rows, (int32_t)(a->first + row)));
        store16(out, t, to, m, _mm512_add_ps(_mm512_castsi512_ps(*sums), bias));
    }
}
#endif
