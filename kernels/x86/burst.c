/* burst.c: as many multiply-adds between registers as the instructions of a level can make: no matrix product can be faster. Enough
 * sums run side by side that none waits for another. */
#include "x86.h"

#if defined(__x86_64__)
#include <immintrin.h>

/* The empty instructions change their operands for all the compiler knows: no two sums are one, and none is known beforehand. */
#define BURST(name, isa, vector, chains, zero, multiply_add, operations)                                                           \
    __attribute__((target(isa))) static uint64_t name(int64_t rounds)                                                              \
    {                                                                                                                              \
        vector sum[chains], x = zero(), y = zero();                                                                                \
        _Pragma("GCC unroll 32") for (int i = 0; i < chains; i++)                                                                  \
        {                                                                                                                          \
            sum[i] = zero();                                                                                                       \
            __asm__ volatile("" : "+v"(sum[i]));                                                                                   \
        }                                                                                                                          \
        for (int64_t r = 0; r < rounds; r++) {                                                                                     \
            __asm__ volatile("" : "+v"(x), "+v"(y));                                                                               \
            _Pragma("GCC unroll 32") for (int i = 0; i < chains; i++) sum[i] = multiply_add(sum[i], x, y);                         \
        }                                                                                                                          \
        _Pragma("GCC unroll 32") for (int i = 0; i < chains; i++) __asm__ volatile("" : : "v"(sum[i]));                            \
        return (uint64_t)rounds * (chains) * (operations);                                                                         \
    }

#define FMA256(sum, x, y) _mm256_fmadd_ps(x, y, sum)
#define FMA512(sum, x, y) _mm512_fmadd_ps(x, y, sum)
#define PAIRS512(sum, x, y) _mm512_dpbf16_ps(sum, (__m512bh)(x), (__m512bh)(y))
#define BYTES256(sum, x, y) _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), y))
#define BYTES512(sum, x, y) _mm512_dpbusd_epi32(sum, x, y)
BURST(avx2_f32, "avx2,fma", __m256, 12, _mm256_setzero_ps, FMA256, 16)
BURST(avx512_f32, "avx512f", __m512, 24, _mm512_setzero_ps, FMA512, 32)
BURST(avx512_bf16, "avx512f,avx512bf16", __m512, 24, _mm512_setzero_ps, PAIRS512, 64)
BURST(avx2_i8, "avx2", __m256i, 12, _mm256_setzero_si256, BYTES256, 64)
BURST(avx512_i8, "avx512f,avx512vnni", __m512i, 24, _mm512_setzero_si512, BYTES512, 128)

#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16,amx-int8")
#include "tiles.h"

static uint64_t amx_bf16(int64_t rounds)
{
    configure_tiles();
    for (int64_t r = 0; r < rounds; r++) { /* four sums of two tiles each way, as a product has them */
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return (uint64_t)rounds * 4 * 2 * 16 * 16 * 32;
}

static uint64_t amx_i8(int64_t rounds)
{
    configure_tiles();
    for (int64_t r = 0; r < rounds; r++) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_release();
    return (uint64_t)rounds * 4 * 2 * 16 * 16 * 64;
}
#pragma GCC pop_options

dllm_burst *dllm_x86_burst(dllm_x86_level level, dllm_dtype t, bool vnni)
{
    if (t == DLLM_I8) return level == DLLM_X86_AMX ? amx_i8 : level == DLLM_X86_AVX2 || !vnni ? avx2_i8 : avx512_i8;
    if (level == DLLM_X86_AMX && t == DLLM_BF16) return amx_bf16;
    if (level >= DLLM_X86_AVX512BF16 && t == DLLM_BF16) return avx512_bf16;
    return level == DLLM_X86_AVX2 ? avx2_f32 : avx512_f32; /* other dtypes are widened first */
}
#endif
