/* check.h: the one harness for the correctness and the speed of kernels. It runs every member of a table that computes on seeded
 * cases and compares the results with those of the plain-C table, its twin. Guard bytes surround every array, rows that a kernel
 * was not asked for must stay as they were, and a row's bits may depend neither on its company nor on the number of threads. */
#ifndef DLLM_CHECK_H
#define DLLM_CHECK_H
#include "../ops.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    const char *kernel, *name; /* name: of the case; valid during the report */
    double error, tolerance;   /* in epsilons of the output's dtype; infinite where something else than a number is wrong */
    bool ok;
    const char *why;           /* of a failure: what is wrong, "" if the numbers say it all */
    double seconds, seconds_c; /* best of a few runs, and the twin's; 0 without timing */
} dllm_check_result;

/* Checks the device's kernel of that name, or all if it is "" or NULL. timing: also larger cases, and measure. Returns the number of
 * failed cases, or DLLM_E_VALUE for a name that no kernel has. */
int dllm_check(const dllm_device *device, const char *kernel, uint64_t seed, bool timing,
               void (*report)(void *arg, const dllm_check_result *result), void *arg);

/* Best of `laps` seconds of a product of [rows, k] with [n, k], both bfloat16, and with int8 weights. false: out of memory. */
bool dllm_race(const dllm_ops *ops, int64_t n, int64_t k, int32_t rows, int threads, int laps, double seconds[2]);
#ifdef __cplusplus
}
#endif
#endif
