/* simd.h: one vector type for code that is the same with 8 lanes and with 16. Include after the target pragma, with LANES defined.
 * */
#ifndef DLLM_SIMD_H
#define DLLM_SIMD_H
#if LANES == 16
#include "vec512.h"

typedef __m512 vec;
VEC vec vset(float x) { return _mm512_set1_ps(x); }
VEC vec vadd(vec a, vec b) { return _mm512_add_ps(a, b); }
VEC vec vsub(vec a, vec b) { return _mm512_sub_ps(a, b); }
VEC vec vmul(vec a, vec b) { return _mm512_mul_ps(a, b); }
VEC vec vdiv(vec a, vec b) { return _mm512_div_ps(a, b); }
VEC vec vmax(vec a, vec b) { return _mm512_max_ps(a, b); }
VEC vec vmin(vec a, vec b) { return _mm512_min_ps(a, b); }
VEC vec vfma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); } /* a b + c */
VEC vec vwhole(vec x) { return _mm512_roundscale_ps(x, 8); }           /* nearest integer */
VEC vec vscale(vec x, vec n) { return _mm512_scalef_ps(x, n); }        /* x 2^n, n whole */
VEC vec vget(const float *p) { return _mm512_loadu_ps(p); }
VEC void vput(float *p, vec x) { _mm512_storeu_ps(p, x); }
/* n elements, the other lanes 0; more than LANES mean LANES, 0 or less none */
VEC vec vload(const void *p, dllm_dtype t, int64_t i, int64_t n) { return load16(p, t, i, lanes16(n)); }
VEC void vstore(void *p, dllm_dtype t, int64_t i, int64_t n, vec x) { store16(p, t, i, lanes16(n), x); }
VEC vec vround(vec x, dllm_dtype t) { return round16(x, t); }
VEC vec vfirst(vec x, int64_t n, float other) { return _mm512_mask_mov_ps(vset(other), lanes16(n), x); }
/* x = m 2^e with m in [0.75, 1.5), for normal positive x */
VEC vec vsplit(vec x, vec *e)
{
    const vec m = _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
    *e = _mm512_getexp_ps(
        _mm512_mask_add_ps(x, _mm512_cmp_ps_mask(m, vset(1), _CMP_LT_OQ), x, x)); /* halved mantissas count twice */
    return m;
}
VEC uint32_t vequal(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); } /* a bit a lane */
VEC uint32_t vless(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
VEC vec vunless(vec x, vec a, vec b)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ), x);
} /* x, 0 where a = b */

/* Of 32 bits; where products are made, numbers are the lower halves of 64 bits, and the upper halves do not matter. */
typedef __m512i words;
VEC words wset(uint32_t x) { return _mm512_set1_epi32((int)x); }
VEC words wcount(uint32_t x) /* x, x + 2, ..., in lower halves */
{
    return _mm512_add_epi32(wset(x), _mm512_setr_epi32(0, 0, 2, 0, 4, 0, 6, 0, 8, 0, 10, 0, 12, 0, 14, 0));
}
VEC words wproduct(words a, uint32_t b) { return _mm512_mul_epu32(a, wset(b)); } /* of lower halves, to both */
VEC words wupper(words a) { return _mm512_shuffle_epi32(a, (_MM_PERM_ENUM)0xf5); }
VEC words wlower(words even, words odd)
{
    return _mm512_mask_shuffle_epi32(even, 0xaaaa, odd, (_MM_PERM_ENUM)0xa0);
} /* of both, in turns */
VEC words wxor3(words a, words b, words c) { return _mm512_ternarylogic_epi32(a, b, c, 0x96); }
VEC words wmax(words a, words b) { return _mm512_max_epu32(a, b); }
VEC uint32_t watleast(words a, uint32_t b) { return _mm512_cmpge_epu32_mask(a, wset(b)); } /* a bit a word */
VEC void wput(uint32_t *p, words x) { _mm512_storeu_si512(p, x); }
VEC words wget(const uint32_t *p) { return _mm512_loadu_si512(p); }
VEC void vtranspose(vec r[16])
{
    __m512i t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) t[i] = _mm512_castps_si512(r[i]);
    transpose16(t);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) r[i] = _mm512_castsi512_ps(t[i]);
}
#else
#include "vec256.h"

typedef __m256 vec;
VEC vec vset(float x) { return _mm256_set1_ps(x); }
VEC vec vadd(vec a, vec b) { return _mm256_add_ps(a, b); }
VEC vec vsub(vec a, vec b) { return _mm256_sub_ps(a, b); }
VEC vec vmul(vec a, vec b) { return _mm256_mul_ps(a, b); }
VEC vec vdiv(vec a, vec b) { return _mm256_div_ps(a, b); }
VEC vec vmax(vec a, vec b) { return _mm256_max_ps(a, b); }
VEC vec vmin(vec a, vec b) { return _mm256_min_ps(a, b); }
VEC vec vfma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
VEC vec vwhole(vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
VEC vec vscale(vec x, vec n) /* in two halves: 2^n alone may be no normal number */
{
    const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), bias = _mm256_set1_epi32(127);
    const vec a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    const vec b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23));
    return vmul(vmul(x, a), b);
}
VEC vec vget(const float *p) { return _mm256_loadu_ps(p); }
VEC void vput(float *p, vec x) { _mm256_storeu_ps(p, x); }
VEC vec vload(const void *p, dllm_dtype t, int64_t i, int64_t n) { return n > 0 ? load8(p, t, i, n) : _mm256_setzero_ps(); }
VEC void vstore(void *p, dllm_dtype t, int64_t i, int64_t n, vec x)
{
    if (n > 0) store8(p, t, i, n, x);
}
VEC vec vround(vec x, dllm_dtype t)
{
    if (t == DLLM_F32) return x;
    if (t == DLLM_BF16) return widen8_bf16(narrow8_bf16(x));
    return _mm256_cvtph_ps(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
VEC vec vfirst(vec x, int64_t n, float other)
{
    const __m256 lane = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_blendv_ps(vset(other), x, _mm256_cmp_ps(lane, vset(n > 8 ? 8 : (float)n), _CMP_LT_OQ));
}
VEC vec vsplit(vec x, vec *e)
{
    const __m256i u = _mm256_castps_si256(x);
    const __m256i n = _mm256_srai_epi32(_mm256_sub_epi32(u, _mm256_set1_epi32(0x3f400000)), 23);
    *e = _mm256_cvtepi32_ps(n);
    return _mm256_castsi256_ps(_mm256_sub_epi32(u, _mm256_slli_epi32(n, 23)));
}
VEC uint32_t vequal(vec a, vec b) { return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
VEC uint32_t vless(vec a, vec b) { return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
VEC vec vunless(vec x, vec a, vec b) { return _mm256_and_ps(x, _mm256_cmp_ps(a, b, _CMP_NEQ_UQ)); }

typedef __m256i words;
VEC words wset(uint32_t x) { return _mm256_set1_epi32((int)x); }
VEC words wcount(uint32_t x) { return _mm256_add_epi32(wset(x), _mm256_setr_epi32(0, 0, 2, 0, 4, 0, 6, 0)); }
VEC words wproduct(words a, uint32_t b) { return _mm256_mul_epu32(a, wset(b)); }
VEC words wupper(words a) { return _mm256_shuffle_epi32(a, 0xf5); }
VEC words wlower(words even, words odd) { return _mm256_blend_epi32(even, _mm256_shuffle_epi32(odd, 0xa0), 0xaa); }
VEC words wxor3(words a, words b, words c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
VEC words wmax(words a, words b) { return _mm256_max_epu32(a, b); }
VEC uint32_t watleast(words a, uint32_t b)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(wmax(a, wset(b)), a)));
}
VEC void wput(uint32_t *p, words x) { _mm256_storeu_si256((__m256i *)(void *)p, x); }
VEC words wget(const uint32_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }
VEC void vtranspose(vec r[8])
{
    vec a[8], b[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) { /* b[i], b[4 + i]: columns i and 4 + i of rows 0-3, of rows 4-7 */
        const vec w = a[i / 2], x = a[i / 2 + 2], y = a[i / 2 + 4], z = a[i / 2 + 6];
        b[i] = i % 2 ? _mm256_shuffle_ps(w, x, 0xee) : _mm256_shuffle_ps(w, x, 0x44);
        b[4 + i] = i % 2 ? _mm256_shuffle_ps(y, z, 0xee) : _mm256_shuffle_ps(y, z, 0x44);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(b[i], b[4 + i], 0x20);
        r[4 + i] = _mm256_permute2f128_ps(b[i], b[4 + i], 0x31);
    }
}
#endif

/* Exponentials, to 8e-8. None is below 2^-100: sums that have a 1 in them cannot tell, and denormal numbers, which begin at 2^-126,
 * cost a hundred cycles each. This is 2^(n + f) by a minimax polynomial of 2^f, |f| <= 1/2. */
VEC vec vexp2_split(vec n, vec f)
{
    vec p = vset(0x1.41fbbcp-13f);
    p = vfma(p, f, vset(0x1.5f3e52p-10f));
    p = vfma(p, f, vset(0x1.3b2d4cp-7f));
    p = vfma(p, f, vset(0x1.c6aee8p-5f));
    p = vfma(p, f, vset(0x1.ebfbdcp-3f));
    p = vfma(p, f, vset(0x1.62e43p-1f));
    return vscale(vfma(p, f, vset(1)), n);
}

/* x at most 120 */
VEC vec vexp2(vec x)
{
    x = vmax(x, vset(-100));
    const vec n = vwhole(x);
    return vexp2_split(n, vsub(x, n));
}

/* e^x, infinity above 89; log2(e) in two parts keeps the fraction exact for large x */
VEC vec vexp(vec x)
{
    x = vmax(vmin(x, vset(90)), vset(-69));
    const vec n = vwhole(vmul(x, vset(0x1.715476p+0f)));
    return vexp2_split(n, vfma(x, vset(0x1.4ae0cp-26f), vfma(x, vset(0x1.715476p+0f), vsub(vset(0), n))));
}

/* ln(x) to 1e-7 for normal positive x: ln(1 + f) = f + f^2 P(f), -1/4 <= f < 1/2 */
VEC vec vlog(vec x)
{
    vec e;
    const vec f = vsub(vsplit(x, &e), vset(1));
    vec p = vset(0x1.bb740cp-5f);
    p = vfma(p, f, vset(-0x1.ee4786p-4f));
    p = vfma(p, f, vset(0x1.32deep-3f));
    p = vfma(p, f, vset(-0x1.5887fcp-3f));
    p = vfma(p, f, vset(0x1.99216cp-3f));
    p = vfma(p, f, vset(-0x1.ffdd9ep-3f));
    p = vfma(p, f, vset(0x1.5555e6p-2f));
    p = vfma(p, f, vset(-0x1.000014p-1f));
    p = vfma(vmul(f, f), p, f);
    return vfma(e, vset(0x1.62e43p-1f), vfma(e, vset(-0x1.05c611p-29f), p));
}

/* Across the lanes, in one order: halves onto halves */
#if LANES == 16
VEC __m256 vhalf(vec x, bool upper) { return upper ? _mm512_extractf32x8_ps(x, 1) : _mm512_castps512_ps256(x); }
VEC float vsum(vec x)
{
    const __m256 y = _mm256_add_ps(vhalf(x, false), vhalf(x, true));
#else
VEC float vsum(vec y)
{
#endif
    __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    z = _mm_add_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}

#if LANES == 16
VEC float vhighest(vec x)
{
    const __m256 y = _mm256_max_ps(vhalf(x, false), vhalf(x, true));
#else
VEC float vhighest(vec y)
{
#endif
    __m128 z = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    z = _mm_max_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_max_ss(z, _mm_movehdup_ps(z)));
}
#endif
