/* linear_i8_avx512.c: int8 weights by the VNNI instructions, 8 rows of x against 32 outputs. The instruction multiplies bytes
 * without a sign by bytes with one: weights get 128 added on the way in, and sums begin with what that is too much. */
#include "linear_i8.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")
#include "vec512.h"

VEC __m512i size16(const void *from, dllm_dtype t, int64_t i, int64_t n)
{
    return _mm512_and_si512(_mm512_castps_si512(load16(from, t, i, lanes16(n - i))), _mm512_set1_epi32(0x7fffffff));
}

VEC uint32_t largest(const void *from, const dllm_dtype t, int64_t n)
{
    __m512i a = _mm512_setzero_si512(), b = a;
    for (int64_t i = 0; i < n; i += 32) {
        a = _mm512_max_epu32(a, size16(from, t, i, n));
        b = _mm512_max_epu32(b, size16(from, t, i + 16, n));
    }
    return _mm512_reduce_max_epu32(_mm512_max_epu32(a, b));
}

VEC __m512i steps16(const void *from, const dllm_dtype t, int64_t i, int64_t n, __m512 inverse)
{
    return _mm512_cvtps_epi32(_mm512_mul_ps(load16(from, t, i, lanes16(n - i)), inverse));
}

VEC int32_t round_all(char *to, const void *from, const dllm_dtype t, int64_t n, float steps)
{
    const __m512 inverse = _mm512_set1_ps(steps);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i total = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i += 64, to += DLLM_I8_TILE) {
        const __m512i a = steps16(from, t, i, n, inverse), b = steps16(from, t, i + 16, n, inverse),
                      c = steps16(from, t, i + 32, n, inverse), d = steps16(from, t, i + 48, n, inverse);
        total = _mm512_add_epi32(total, _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d)));
        const __m512i all = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d)); /* by lanes of 128 bits */
        _mm512_store_si512(to, _mm512_permutexvar_epi32(order, all));
    }
    return _mm512_reduce_add_epi32(total);
}

static float pack(char *to, const void *from, dllm_dtype t, int64_t n, int32_t *total)
{
    const uint32_t size = t == DLLM_F32    ? largest(from, DLLM_F32, n)
                          : t == DLLM_BF16 ? largest(from, DLLM_BF16, n)
                                           : largest(from, DLLM_F16, n);
    const dllm_i8_unit u = dllm_i8_unit_of(size);
    if (u.inverse == 0) { /* not finite: all steps are 0 */
        for (int64_t i = 0; i < n; i += 64, to += DLLM_I8_TILE) _mm512_store_si512(to, _mm512_setzero_si512());
        *total = 0;
        return u.scale;
    }
    *total = t == DLLM_F32    ? round_all(to, from, DLLM_F32, n, u.inverse)
             : t == DLLM_BF16 ? round_all(to, from, DLLM_BF16, n, u.inverse)
                              : round_all(to, from, DLLM_F16, n, u.inverse);
    return u.scale;
}

VEC void run_tile(const int rows, const struct i8_tile t)
{
    __m512i acc[2 * I8_ROWS]; /* a constant size: with a variable one gcc keeps it in memory */
    const char *x = t.x, *w = t.w, *ahead = t.ahead.w;
    const __m512i middle = _mm512_set1_epi8((char)0x80);
#pragma GCC unroll 16
    for (int i = 0; i < 2 * rows; i++) acc[i] = _mm512_set1_epi32(t.bias[i / 2]);
    for (int64_t s = 0; s < t.steps; s++, x += DLLM_I8_TILE, w += I8_STEP_BYTES) {
        for (int64_t line = 0; line < t.ahead.lines; line++, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
#pragma GCC unroll 16
        for (int q = 0; q < 16; q++) {
            const __m512i w0 = _mm512_xor_si512(_mm512_load_si512(w + q * 64), middle);
            const __m512i w1 = _mm512_xor_si512(_mm512_load_si512(w + DLLM_I8_TILE + q * 64), middle);
#pragma GCC unroll 8
            for (int m = 0; m < rows; m++) {
                int32_t four;
                memcpy(&four, x + m * 64 + q * 4, 4);
                __m512i v = _mm512_set1_epi32(four);
                __asm__("" : "+v"(v)); /* one load for both products */
                acc[2 * m] = _mm512_dpbusd_epi32(acc[2 * m], w0, v);
                acc[2 * m + 1] = _mm512_dpbusd_epi32(acc[2 * m + 1], w1, v);
            }
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < 2 * rows; i++) _mm512_store_si512(t.sums + i * 16, acc[i]);
}

static void multiply1(struct i8_tile t) { run_tile(1, t); }
static void multiply2(struct i8_tile t) { run_tile(2, t); }
static void multiply4(struct i8_tile t) { run_tile(4, t); }
static void multiply8(struct i8_tile t) { run_tile(8, t); }

static void store(void *out, dllm_dtype t, int64_t at, int64_t n, const int32_t *sums, const float *w_scale, float x_scale,
                  dllm_mat bias)
{
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 m = lanes16(n - i);
        const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + i));
        __m512 y = _mm512_mul_ps(_mm512_mul_ps(sum, _mm512_maskz_loadu_ps(m, w_scale + i)), _mm512_set1_ps(x_scale));
        if (bias.data) y = _mm512_add_ps(y, load16(bias.data, bias.dtype, at + i, m));
        store16(out, t, at + i, m, y);
    }
}

const struct i8_kind dllm_i8_avx512 = {
    .pack = pack, .bias = -128, .multiply = { multiply1, multiply2, multiply4, multiply8 }, .store = store
};
#endif
