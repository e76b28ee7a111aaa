/* linear_avx512bf16.c: dot tiles of bfloat16 pairs. */
#include "linear.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,prefer-vector-width=512")
#include <immintrin.h>
#define MULTIPLY_ADD(sum, x, w) _mm512_dpbf16_ps(sum, (__m512bh)(x), (__m512bh)(w))
#include "dot512.h"

static void spread(char *to, int64_t stride, const void *from, dllm_dtype t, int64_t n)
{
    for (int64_t i = 0; i < n; i += 32, to += stride) {
        const __mmask32 m = n - i >= 32 ? ~0u : (1u << (n - i)) - 1;
        _mm512_store_si512(to, _mm512_maskz_loadu_epi16(m, (const uint16_t *)from + i));
    }
}

const struct dot dllm_dot_avx512bf16 = { .step = 32,
                                         .size = 2,
                                         .mr = ROWS,
                                         .nr = OUTPUTS,
                                         .native = DLLM_BF16,
                                         .spread = spread,
                                         .tile = { tile1, tile2, tile3, tile4 },
                                         .store = store };
#endif
