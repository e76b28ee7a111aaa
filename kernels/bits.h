/* bits.h: numbers as they are stored. bfloat16 and float16 are uint16_t in memory; rounding is to nearest, ties to even. */
#ifndef DLLM_BITS_H
#define DLLM_BITS_H
#include <string.h>

#include "ops.h"

static inline uint32_t dllm_bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static inline float dllm_of_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}

static inline float dllm_from_bf16(uint16_t b) { return dllm_of_bits((uint32_t)b << 16); }

static inline uint16_t dllm_to_bf16(float x)
{
    const uint32_t u = dllm_bits_of(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 64); /* a quiet NaN stays one */
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static inline float dllm_from_f16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    if (rest >= 0x7c00) return dllm_of_bits(sign | 0x7f800000u | (rest & 0x3ff) << 13);
    if (rest >= 0x400) return dllm_of_bits(sign | ((rest << 13) + 0x38000000u));
    const float tiny = (float)rest * 0x1p-24f; /* subnormal, exact */
    return sign ? -tiny : tiny;
}

static inline uint16_t dllm_to_f16(float x)
{
    const uint32_t u = dllm_bits_of(x), a = u & 0x7fffffffu;
    const uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    if (a > 0x7f800000u) return sign | 0x7e00;
    if (a >= 0x477ff000u) return sign | 0x7c00; /* rounds past 65504 */
    if (a < 0x38800000u) {                      /* subnormal: the float adder does the rounding */
        const float shifted = dllm_of_bits(a) + 0.5f;
        return sign | (uint16_t)(dllm_bits_of(shifted) - 0x3f000000u);
    }
    return sign | (uint16_t)((a - 0x38000000u + 0xfff + (a >> 13 & 1)) >> 13);
}

static inline float dllm_get(const void *p, dllm_dtype t, int64_t i)
{
    if (t == DLLM_F32) return ((const float *)p)[i];
    const uint16_t b = ((const uint16_t *)p)[i];
    return t == DLLM_BF16 ? dllm_from_bf16(b) : dllm_from_f16(b);
}

static inline void dllm_put(void *p, dllm_dtype t, int64_t i, float x)
{
    if (t == DLLM_F32) ((float *)p)[i] = x;
    else ((uint16_t *)p)[i] = t == DLLM_BF16 ? dllm_to_bf16(x) : dllm_to_f16(x);
}

/* x as it would be read back after being stored as t */
static inline float dllm_round(float x, dllm_dtype t)
{
    if (t == DLLM_F32) return x;
    return t == DLLM_BF16 ? dllm_from_bf16(dllm_to_bf16(x)) : dllm_from_f16(dllm_to_f16(x));
}

/* Address of row r. */
DLLM_INLINE void *dllm_at(dllm_mat m, int64_t r) { return (char *)m.data + (size_t)(r * m.stride) * (m.dtype == DLLM_F32 ? 4 : 2); }
#endif
