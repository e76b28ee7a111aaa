/* linear_avx512f.c: dot tiles of float32, for every pair of dtypes: what is narrower is widened on the way in. */
#include "linear.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#include <immintrin.h>
#define MULTIPLY_ADD(sum, x, w) _mm512_fmadd_ps(x, w, sum)
#include "dot512.h"

static void spread(char *to, int64_t stride, const void *from, dllm_dtype t, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16, to += stride) _mm512_store_ps(to, load16(from, t, i, lanes16(n - i)));
}

const struct dot dllm_dot_avx512f = { .step = 16,
                                      .size = 4,
                                      .mr = ROWS,
                                      .nr = OUTPUTS,
                                      .native = DLLM_F32,
                                      .spread = spread,
                                      .tile = { tile1, tile2, tile3, tile4 },
                                      .store = store };
#endif
