/* dot512.h: the AVX-512 dot tile, 4 tokens x 6 outputs in 24 accumulators. Include with MULTIPLY_ADD(sum, x, w) defined, which
 * decides what the 64 bytes of a vector hold. */
#include "vec512.h"

enum { ROWS = 4, OUTPUTS = 6, ALL = ROWS * OUTPUTS };

/* Lane i of the result is the sum of z[i], always in the same order. */
VEC __m512 sum_across(const __m512 z[16])
{
    __m512 a[8], b[4];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        a[i] = _mm512_add_ps(_mm512_unpacklo_ps(z[2 * i], z[2 * i + 1]), _mm512_unpackhi_ps(z[2 * i], z[2 * i + 1]));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
        b[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
    const __m512 c = _mm512_add_ps(_mm512_shuffle_f32x4(b[0], b[1], 0x88), _mm512_shuffle_f32x4(b[0], b[1], 0xdd));
    const __m512 d = _mm512_add_ps(_mm512_shuffle_f32x4(b[2], b[3], 0x88), _mm512_shuffle_f32x4(b[2], b[3], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x88), _mm512_shuffle_f32x4(c, d, 0xdd));
}

VEC void run_tile(const int rows, const struct tile t)
{
    __m512 acc[ALL + 8]; /* a constant size: with a variable one gcc keeps it in memory */
    const char *x = t.x, *w = t.w, *ahead = t.ahead;
#pragma GCC unroll 32
    for (int i = 0; i < ALL + 8; i++)
        acc[i] = i >= rows * OUTPUTS || t.fresh ? _mm512_setzero_ps() : _mm512_load_ps(t.home + i * 64);
    for (int64_t s = 0; s < t.steps; s++, x += rows * 64, w += 64, ahead += t.hop) {
        __m512 v[ROWS];
        _mm_prefetch(ahead, _MM_HINT_T1);
#pragma GCC unroll 4
        for (int m = 0; m < rows; m++) v[m] = _mm512_load_ps(x + m * 64);
#pragma GCC unroll 6
        for (int n = 0; n < OUTPUTS; n++) {
            const __m512 u = _mm512_loadu_ps(w + n * t.stride);
#pragma GCC unroll 4
            for (int m = 0; m < rows; m++) acc[m * OUTPUTS + n] = MULTIPLY_ADD(acc[m * OUTPUTS + n], v[m], u);
        }
    }
    if (!t.sums) {
#pragma GCC unroll 24
        for (int i = 0; i < rows * OUTPUTS; i++) _mm512_store_ps(t.home + i * 64, acc[i]);
        return;
    }
    float total[32] __attribute__((aligned(64)));
    _mm512_store_ps(total, sum_across(acc));
    _mm512_store_ps(total + 16, sum_across(acc + 16));
    for (int m = 0; m < rows; m++)
        for (int n = 0; n < OUTPUTS; n++) t.sums[m * t.ld + n] = total[m * OUTPUTS + n];
}

static void tile1(struct tile t) { run_tile(1, t); }
static void tile2(struct tile t) { run_tile(2, t); }
static void tile3(struct tile t) { run_tile(3, t); }
static void tile4(struct tile t) { run_tile(4, t); }

static void store(void *out, dllm_dtype t, int64_t at, int64_t n, const float *sums, dllm_mat bias)
{
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 m = lanes16(n - i);
        __m512 y = _mm512_maskz_loadu_ps(m, sums + i);
        if (bias.data) y = _mm512_add_ps(y, load16(bias.data, bias.dtype, at + i, m));
        store16(out, t, at + i, m, y);
    }
}
