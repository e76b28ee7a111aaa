/* tally.h: cases of kernels against their plain-C twins, counted table by table. */
#ifndef DLLM_TEST_TALLY_H
#define DLLM_TEST_TALLY_H
#include <stdio.h>

#include "../../kernels/check/check.h"

typedef struct {
    const char *table;
    int passed, failed;
} tally;

static void count_case(void *arg, const dllm_check_result *r)
{
    tally *t = arg;
    if (r->ok) t->passed++;
    else t->failed++;
    if (!r->ok)
        printf("FAILED %s %s: %s: error %.3g, tolerance %g epsilons. %s\n", t->table, r->kernel, r->name, r->error, r->tolerance,
               r->why);
}

static inline void check_table(tally *t, const dllm_device *device, const char *kernel, uint64_t seed)
{
    const int before = t->failed, failures = dllm_check(device, kernel, seed, false, count_case, t);
    if (failures == t->failed - before) return;
    printf("FAILED %s: the check itself gives %d\n", t->table, failures);
    t->failed++;
}
#endif
