/* linear_i8_avx2.c: int8 weights in 256-bit vectors, 4 rows of x against 16 outputs at a time. The instruction multiplies bytes
 * without a sign by bytes with one: sizes of the weights by x with the weights' signs. Two products never leave 16 bits. */
#include "linear_i8.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#include "vec256.h"

VEC uint32_t largest(const void *from, const dllm_dtype t, int64_t n)
{
    __m256i most = _mm256_setzero_si256();
    for (int64_t i = 0; i < n; i += 8) {
        const __m256i size = _mm256_and_si256(_mm256_castps_si256(load8(from, t, i, n - i)), _mm256_set1_epi32(0x7fffffff));
        most = _mm256_max_epu32(most, size);
    }
    uint32_t sizes[8], all = 0;
    _mm256_storeu_si256((__m256i *)(void *)sizes, most);
    for (int i = 0; i < 8; i++) all = sizes[i] > all ? sizes[i] : all;
    return all;
}

VEC __m256i steps8(const void *from, const dllm_dtype t, int64_t i, int64_t n, __m256 inverse)
{
    return i < n ? _mm256_cvtps_epi32(_mm256_mul_ps(load8(from, t, i, n - i), inverse)) : _mm256_setzero_si256();
}

VEC void round_all(char *to, const void *from, const dllm_dtype t, int64_t n, float steps)
{
    const __m256 inverse = _mm256_set1_ps(steps);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int64_t i = 0; i < n; i += 64, to += DLLM_I8_TILE) {
        for (int64_t half = 0; half < 64; half += 32) {
            const int64_t j = i + half;
            const __m256i a = _mm256_packs_epi32(steps8(from, t, j, n, inverse), steps8(from, t, j + 8, n, inverse));
            const __m256i b = _mm256_packs_epi32(steps8(from, t, j + 16, n, inverse), steps8(from, t, j + 24, n, inverse));
            const __m256i all = _mm256_packs_epi16(a, b); /* by lanes of 128 bits */
            _mm256_store_si256((__m256i *)(void *)(to + half), _mm256_permutevar8x32_epi32(all, order));
        }
    }
}

static float pack(char *to, const void *from, dllm_dtype t, int64_t n, int32_t *total)
{
    const uint32_t size = t == DLLM_F32    ? largest(from, DLLM_F32, n)
                          : t == DLLM_BF16 ? largest(from, DLLM_BF16, n)
                                           : largest(from, DLLM_F16, n);
    const dllm_i8_unit u = dllm_i8_unit_of(size);
    *total = 0;           /* nobody asks */
    if (u.inverse == 0) { /* not finite: all steps are 0 */
        for (int64_t i = 0; i < n; i += 64, to += DLLM_I8_TILE) memset(to, 0, 64);
        return u.scale;
    }
    if (t == DLLM_F32) round_all(to, from, DLLM_F32, n, u.inverse);
    else if (t == DLLM_BF16) round_all(to, from, DLLM_BF16, n, u.inverse);
    else round_all(to, from, DLLM_F16, n, u.inverse);
    return u.scale;
}

VEC __m256i load32(const char *p) { return _mm256_load_si256((const __m256i *)(const void *)p); }

/* rows of x against one tile of every step: 16 outputs. */
VEC void run_half(const int rows, const char *x, const char *w, int64_t steps, struct i8_ahead ahead, int32_t *sums)
{
    __m256i acc[8]; /* a constant size: with a variable one gcc keeps it in memory */
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
    for (int i = 0; i < 2 * rows; i++) acc[i] = _mm256_setzero_si256();
    for (int64_t s = 0; s < steps; s++, x += DLLM_I8_TILE, w += I8_STEP_BYTES) {
        for (int64_t line = 0; line < ahead.lines; line++, ahead.w += 64) _mm_prefetch(ahead.w, _MM_HINT_T1);
        for (int q = 0; q < 16; q++) {
            const __m256i w0 = load32(w + q * 64), w1 = load32(w + q * 64 + 32);
            const __m256i size0 = _mm256_abs_epi8(w0), size1 = _mm256_abs_epi8(w1);
#pragma GCC unroll 4
            for (int m = 0; m < rows; m++) {
                int32_t four;
                memcpy(&four, x + m * 64 + q * 4, 4);
                const __m256i v = _mm256_set1_epi32(four);
                const __m256i y0 = _mm256_maddubs_epi16(size0, _mm256_sign_epi8(v, w0));
                const __m256i y1 = _mm256_maddubs_epi16(size1, _mm256_sign_epi8(v, w1));
                acc[2 * m] = _mm256_add_epi32(acc[2 * m], _mm256_madd_epi16(y0, ones));
                acc[2 * m + 1] = _mm256_add_epi32(acc[2 * m + 1], _mm256_madd_epi16(y1, ones));
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < 2 * rows; i++) _mm256_store_si256((__m256i *)(void *)(sums + i / 2 * DLLM_I8_PANEL + i % 2 * 8), acc[i]);
}

VEC void run_tile(const int rows, const struct i8_tile t)
{
    run_half(rows, t.x, t.w, t.steps, t.ahead, t.sums);
    run_half(rows, t.x, t.w + DLLM_I8_TILE, t.steps, (struct i8_ahead){ t.w, 0 }, t.sums + 16);
}

static void multiply1(struct i8_tile t) { run_tile(1, t); }
static void multiply2(struct i8_tile t) { run_tile(2, t); }
static void multiply4(struct i8_tile t) { run_tile(4, t); }

static void multiply8(struct i8_tile t)
{
    run_tile(4, t);
    t.x += 4 * 64;
    t.sums += 4 * DLLM_I8_PANEL;
    t.ahead.lines = 0;
    run_tile(4, t);
}

static void store(void *out, dllm_dtype t, int64_t at, int64_t n, const int32_t *sums, const float *w_scale, float x_scale,
                  dllm_mat bias)
{
    for (int64_t i = 0; i < n; i += 8) {
        const __m256 sum = _mm256_cvtepi32_ps(_mm256_load_si256((const __m256i *)(const void *)(sums + i)));
        __m256 y = _mm256_mul_ps(_mm256_mul_ps(sum, _mm256_loadu_ps(w_scale + i)), _mm256_set1_ps(x_scale));
        if (bias.data) y = _mm256_add_ps(y, load8(bias.data, bias.dtype, at + i, n - i));
        store8(out, t, at + i, n - i, y);
    }
}

const struct i8_kind dllm_i8_avx2 = { .pack = pack, .multiply = { multiply1, multiply2, multiply4, multiply8 }, .store = store };
#endif
