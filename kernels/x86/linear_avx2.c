/* linear_avx2.c: dot tiles of float32 in 256-bit vectors, 4 tokens x 3 outputs, for every pair of dtypes. */
#include "linear.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#include "vec256.h"

enum { ROWS = 4, OUTPUTS = 3 };

static void spread(char *to, int64_t stride, const void *from, dllm_dtype t, int64_t n)
{
    for (int64_t i = 0; i < n; i += 8, to += stride) _mm256_store_ps((float *)(void *)to, load8(from, t, i, n - i));
}

/* Lane i of the result is the sum of z[i], always in the same order. */
VEC __m128 sum_across(__m256 z0, __m256 z1, __m256 z2, __m256 z3)
{
    const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(z0, z1), _mm256_hadd_ps(z2, z3));
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

VEC void run_tile(const int rows, const struct tile t)
{
    __m256 acc[ROWS * OUTPUTS]; /* a constant size: with a variable one gcc keeps it in memory */
    const char *x = t.x, *w = t.w, *ahead = t.ahead;
    float *home = (float *)(void *)t.home;
#pragma GCC unroll 12
    for (int i = 0; i < ROWS * OUTPUTS; i++)
        acc[i] = i >= rows * OUTPUTS || t.fresh ? _mm256_setzero_ps() : _mm256_load_ps(home + i * 8);
    for (int64_t s = 0; s < t.steps; s++, x += rows * 32, w += 32, ahead += t.hop) {
        __m256 u[OUTPUTS];
        _mm_prefetch(ahead, _MM_HINT_T1);
#pragma GCC unroll 3
        for (int n = 0; n < OUTPUTS; n++) u[n] = _mm256_loadu_ps((const float *)(const void *)(w + n * t.stride));
#pragma GCC unroll 4
        for (int m = 0; m < rows; m++) {
            const __m256 v = _mm256_load_ps((const float *)(const void *)(x + m * 32));
#pragma GCC unroll 3
            for (int n = 0; n < OUTPUTS; n++) acc[m * OUTPUTS + n] = _mm256_fmadd_ps(v, u[n], acc[m * OUTPUTS + n]);
        }
    }
    if (!t.sums) {
#pragma GCC unroll 12
        for (int i = 0; i < rows * OUTPUTS; i++) _mm256_store_ps(home + i * 8, acc[i]);
        return;
    }
#pragma GCC unroll 4
    for (int m = 0; m < rows; m++) {
        float total[4];
        _mm_storeu_ps(total, sum_across(acc[m * OUTPUTS], acc[m * OUTPUTS + 1], acc[m * OUTPUTS + 2], _mm256_setzero_ps()));
        memcpy(t.sums + m * t.ld, total, OUTPUTS * sizeof(float));
    }
}

static void tile1(struct tile t) { run_tile(1, t); }
static void tile2(struct tile t) { run_tile(2, t); }
static void tile3(struct tile t) { run_tile(3, t); }
static void tile4(struct tile t) { run_tile(4, t); }

static void store(void *out, dllm_dtype t, int64_t at, int64_t n, const float *sums, dllm_mat bias)
{
    for (int64_t i = 0; i < n; i += 8) {
        __m256 y = load8(sums, DLLM_F32, i, n - i);
        if (bias.data) y = _mm256_add_ps(y, load8(bias.data, bias.dtype, at + i, n - i));
        store8(out, t, at + i, n - i, y);
    }
}

const struct dot dllm_dot_avx2 = { .step = 8,
                                   .size = 4,
                                   .mr = ROWS,
                                   .nr = OUTPUTS,
                                   .native = DLLM_F32,
                                   .spread = spread,
                                   .tile = { tile1, tile2, tile3, tile4 },
                                   .store = store };
#endif
