/* vec512.h: 16 numbers of any dtype as float32 and back, for files whose target has avx512f, bw, vl and dq. Include after the
 * pragma. */
#ifndef DLLM_VEC512_H
#define DLLM_VEC512_H
#include <immintrin.h>

#include "../bits.h"

#define VEC static inline __attribute__((always_inline))

/* Lanes below n, for any n: none if n <= 0, all if n >= 16. */
VEC __mmask16 lanes16(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }

VEC __m512 widen_bf16(__m256i b) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16)); }

/* To nearest even; a NaN stays a NaN. */
VEC __m256i narrow_bf16(__m512 x)
{
    const __m512i u = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, _mm512_srli_epi32(u, 16), _mm512_set1_epi32(64));
    return _mm512_cvtepi32_epi16(r);
}

/* Elements i, i + 1, ... of p in the lanes of m, 0 in the others; memory of the others is not touched. */
VEC __m512 load16(const void *p, dllm_dtype t, int64_t i, __mmask16 m)
{
    if (t == DLLM_F32) return _mm512_maskz_loadu_ps(m, (const float *)p + i);
    const __m256i b = _mm256_maskz_loadu_epi16(m, (const uint16_t *)p + i);
    return t == DLLM_BF16 ? widen_bf16(b) : _mm512_cvtph_ps(b);
}

VEC void store16(void *p, dllm_dtype t, int64_t i, __mmask16 m, __m512 x)
{
    if (t == DLLM_F32) _mm512_mask_storeu_ps((float *)p + i, m, x);
    else
        _mm256_mask_storeu_epi16((uint16_t *)p + i, m,
                                 t == DLLM_BF16 ? narrow_bf16(x)
                                                : _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/* x as it would be read back after being stored as t */
VEC __m512 round16(__m512 x, dllm_dtype t)
{
    if (t == DLLM_F32) return x;
    if (t == DLLM_BF16) return widen_bf16(narrow_bf16(x));
    return _mm512_cvtph_ps(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/* r[i][j] becomes r[j][i], of 32-bit elements. */
VEC void transpose16(__m512i r[16])
{
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) { /* lane l of r[4 i + j] now holds column 4 l + j of rows 4 i ... 4 i + 3 */
        const __m512i even0 = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88), odd0 = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
        const __m512i even8 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88),
                      odd8 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
        t[j] = _mm512_shuffle_i32x4(even0, even8, 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(odd0, odd8, 0x88);
        t[8 + j] = _mm512_shuffle_i32x4(even0, even8, 0xdd);
        t[12 + j] = _mm512_shuffle_i32x4(odd0, odd8, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) r[i] = t[i];
}
#endif
