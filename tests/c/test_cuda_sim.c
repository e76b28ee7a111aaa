/* The CUDA kernels on simulated GPUs, against their plain-C twins. Arguments: the simulator's library, and optionally devices as digits
 * ("03"), a kernel and a seed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../kernels/check/check.h"

typedef struct {
    const char *device;
    int passed, failed;
} tally;

static void report(void *arg, const dllm_check_result *r)
{
    tally *t = arg;
    if (r->ok) t->passed++;
    else t->failed++;
    if (!r->ok)
        printf("FAILED %s %s: %s: error %.3g, tolerance %g epsilons. %s\n", t->device, r->kernel, r->name, r->error, r->tolerance,
               r->why);
}

static void check_device(tally *t, const char *kernel, uint64_t seed)
{
    dllm_device *device;
    const int status = dllm_device_open(&device, t->device, 0);
    const int before = t->failed, failures = status < 0 ? status : dllm_check(device, kernel, seed, false, report, t);
    if (failures != t->failed - before) {
        printf("FAILED %s: the check itself gives %d %s\n", t->device, failures, status < 0 ? dllm_last_error() : "");
        t->failed++;
    }
    if (status == 0) dllm_device_close(device);
}

int main(int argc, char **argv)
{
    if (argc < 2 || dllm_cuda_sim_load(argv[1]) < 0) {
        printf("FAILED to open the simulator: %s\n", argc < 2 ? "no path" : dllm_last_error());
        return 1;
    }
    tally t = { 0 };
    for (const char *digit = argc > 2 ? argv[2] : "3"; *digit; digit++) {
        char name[] = "cuda-sim:?";
        name[strlen(name) - 1] = *digit;
        t.device = name;
        check_device(&t, argc > 3 ? argv[3] : "", argc > 4 ? strtoull(argv[4], NULL, 0) : 1);
    }
    printf("%d passed, %d failed\n", t.passed, t.failed);
    return t.failed ? 1 : 0;
}
