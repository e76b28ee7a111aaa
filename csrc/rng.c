#include "rng.h"

#include <math.h>

/* Mixes seed and stream into Philox's 64-bit key (the finaliser of SplitMix64), so that streams of one seed are unrelated. */
static uint64_t mix(uint64_t z)
{
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint64_t dllm_random_seed(const dllm_key *key) { return mix(key->seed + 0x9e3779b97f4a7c15u * (mix(key->stream) + 1)); }

void dllm_random(uint32_t out[4], const dllm_key *key, dllm_use use, uint32_t block)
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

float dllm_uniform(const dllm_key *key, dllm_use use)
{
    uint32_t w[4];
    dllm_random(w, key, use, 0);
    return (float)(w[0] >> 8) * 0x1p-24f;
}

/* -ln of a number inside (0, 1): never 0, which a draw p / q could not stand. */
float dllm_exponential_of(uint32_t a) { return (float)-log(((double)a + 0.5) * 0x1p-32); }

float dllm_exponential(const dllm_key *key, dllm_use use)
{
    uint32_t w[4];
    dllm_random(w, key, use, 0);
    return dllm_exponential_of(w[0]);
}
