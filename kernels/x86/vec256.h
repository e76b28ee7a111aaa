/* vec256.h: 8 numbers of any dtype as float32 and back, for files whose target has avx2, fma and f16c. Include after the pragma.
 * AVX2 has no masks for 16-bit elements, so a partial vector passes through a buffer. */
#ifndef DLLM_VEC256_H
#define DLLM_VEC256_H
#include <immintrin.h>
#include <string.h>

#include "../bits.h"

#define VEC static inline __attribute__((always_inline))

VEC __m256 widen8_bf16(__m128i b) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(b), 16)); }

/* To nearest even; a NaN stays a NaN. */
VEC __m128i narrow8_bf16(__m256 x)
{
    const __m256i u = _mm256_castps_si256(x), high = _mm256_srli_epi32(u, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i r = _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(64)), nan);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08));
}

VEC __m256 load8_whole(const void *p, dllm_dtype t, int64_t i)
{
    if (t == DLLM_F32) return _mm256_loadu_ps((const float *)p + i);
    const __m128i b = _mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)p + i));
    return t == DLLM_BF16 ? widen8_bf16(b) : _mm256_cvtph_ps(b);
}

VEC void store8_whole(void *p, dllm_dtype t, int64_t i, __m256 x)
{
    if (t == DLLM_F32) _mm256_storeu_ps((float *)p + i, x);
    else
        _mm_storeu_si128((__m128i *)(void *)((uint16_t *)p + i),
                         t == DLLM_BF16 ? narrow8_bf16(x) : _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/* Elements i ... i + n of p, n at least 1, in the first lanes, 0 in the others; more than 8 mean 8. */
VEC __m256 load8(const void *p, dllm_dtype t, int64_t i, int64_t n)
{
    if (n >= 8) return load8_whole(p, t, i);
    const size_t size = t == DLLM_F32 ? 4 : 2;
    char part[32] = { 0 };
    memcpy(part, (const char *)p + (size_t)i * size, (size_t)n * size);
    return load8_whole(part, t, 0);
}

VEC void store8(void *p, dllm_dtype t, int64_t i, int64_t n, __m256 x)
{
    if (n >= 8) {
        store8_whole(p, t, i, x);
        return;
    }
    const size_t size = t == DLLM_F32 ? 4 : 2;
    char part[32];
    store8_whole(part, t, 0, x);
    memcpy((char *)p + (size_t)i * size, part, (size_t)n * size);
}
#endif
