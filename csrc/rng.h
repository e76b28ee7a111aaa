/* rng.h: random numbers that are a function of where they are used. Philox4x32-10, keyed by a row's (seed, stream) and counted by
 * (step, row, use, index): the same number on any device, number of threads, and in any batch. */
#ifndef DLLM_RNG_H
#define DLLM_RNG_H
#include "../kernels/ops.h"

typedef enum { DLLM_USE_TOKEN, DLLM_USE_REMASK, DLLM_USE_COIN, DLLM_USE_PLACE } dllm_use;

/* Four words: numbers 4 * block ... 4 * block + 3 of this use. */
void dllm_random(uint32_t out[4], const dllm_key *key, dllm_use use, uint32_t block);

uint64_t dllm_random_seed(const dllm_key *key); /* Philox's own key, for kernels that make many blocks at once */

float dllm_uniform(const dllm_key *key, dllm_use use);     /* [0, 1), 24 bits */
float dllm_exponential(const dllm_key *key, dllm_use use); /* mean 1, > 0 */

/* The 53-bit uniform of two words, and the exponential of one. */
static inline double dllm_uniform_of(uint32_t a, uint32_t b) { return ((a >> 5) * 67108864.0 + (b >> 6)) * 0x1p-53; }
float dllm_exponential_of(uint32_t a);
#endif
