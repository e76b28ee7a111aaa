/* rng.h: random numbers that are a function of where they are used. Philox4x32-10, keyed by a row's (seed, stream) and counted by
 * (step, row, use, index): the same number on any device, number of threads, and in any batch. */
#ifndef DLLM_RNG_H
#define DLLM_RNG_H
#include <math.h>

#include "../kernels/ops.h"

typedef enum { DLLM_USE_TOKEN, DLLM_USE_REMASK, DLLM_USE_COIN, DLLM_USE_PLACE } dllm_use;

/* Mixes seed and stream into Philox's 64-bit key (the finaliser of SplitMix64), so that streams of one seed are unrelated. */
DLLM_INLINE uint64_t dllm_mix(uint64_t z)
{
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Philox's own key. */
DLLM_INLINE uint64_t dllm_random_seed(const dllm_key *key)
{
    return dllm_mix(key->seed + 0x9e3779b97f4a7c15u * (dllm_mix(key->stream) + 1));
}

/* Four words: numbers 4 * block ... 4 * block + 3 of this use. */
DLLM_INLINE void dllm_random(uint32_t out[4], const dllm_key *key, dllm_use use, uint32_t block)
{
    const uint64_t k = dllm_random_seed(key);
    uint32_t k0 = (uint32_t)k, k1 = (uint32_t)(k >> 32);
    uint32_t c0 = block, c1 = key->row, c2 = key->step, c3 = (uint32_t)use;
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xd2511f53u * c0, p1 = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* [0, 1), 24 bits */
DLLM_INLINE float dllm_uniform(const dllm_key *key, dllm_use use)
{
    uint32_t w[4];
    dllm_random(w, key, use, 0);
    return (float)(w[0] >> 8) * 0x1p-24f;
}

/* The 53-bit uniform of two words. */
DLLM_INLINE double dllm_uniform_of(uint32_t a, uint32_t b) { return ((a >> 5) * 67108864.0 + (b >> 6)) * 0x1p-53; }

/* -ln of a number inside (0, 1): mean 1, and never 0, which a draw p / q could not stand. */
DLLM_INLINE float dllm_exponential_of(uint32_t a) { return (float)-log(((double)a + 0.5) * 0x1p-32); }

DLLM_INLINE float dllm_exponential(const dllm_key *key, dllm_use use)
{
    uint32_t w[4];
    dllm_random(w, key, use, 0);
    return dllm_exponential_of(w[0]);
}
#endif
