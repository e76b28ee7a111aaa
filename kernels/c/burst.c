/* As many multiply-adds as plain C makes of float32. */
#include "c.h"

enum { CHAINS = 32 }; /* independent sums, so that none waits for another */

uint64_t dllm_burst_c(int64_t rounds)
{
    float sum[CHAINS] = { 0 }, x[CHAINS];
    for (int i = 0; i < CHAINS; i++) x[i] = 1 + (float)i;
    for (int64_t r = 0; r < rounds; r++) {
        for (int i = 0; i < CHAINS; i++) sum[i] += x[i] * 0.5f;
        __asm__ volatile("" : : "r"(x) : "memory"); /* the products are to be made anew every round */
    }
    __asm__ volatile("" : : "r"(sum) : "memory");
    return 2 * CHAINS * (uint64_t)rounds;
}
