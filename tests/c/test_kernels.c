/* Every kernel of every level that this processor has, against its plain-C twin. The plain-C table is checked too: against itself,
 * it shows that the harness is fair and that the definition keeps its own promises about guards and rows. */
#include <stdio.h>
#include <stdlib.h>

#include "../../kernels/check/check.h"

typedef struct {
    const char *level;
    int passed, failed;
} tally;

static void report(void *arg, const dllm_check_result *r)
{
    tally *t = arg;
    if (r->ok) t->passed++;
    else t->failed++;
    if (!r->ok)
        printf("FAILED %s %s: %s: error %.3g, tolerance %g epsilons. %s\n", t->level, r->kernel, r->name, r->error, r->tolerance,
               r->why);
}

/* Optional arguments: a kernel, and a seed. */
int main(int argc, char **argv)
{
    const char *const *levels;
    const int n = dllm_cpu_levels(&levels);
    const uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    tally t = { 0 };
    for (int i = 0; i < n; i++) {
        t.level = levels[i];
        const dllm_device device = { .ops = dllm_ops_cpu(levels[i]), .threads = 2 };
        const int before = t.failed, failures = dllm_check(&device, argc > 1 ? argv[1] : "", seed, false, report, &t);
        if (failures == t.failed - before) continue;
        printf("FAILED %s: the check itself gives %d\n", levels[i], failures);
        t.failed++;
    }
    printf("%d passed, %d failed\n", t.passed, t.failed);
    return t.failed ? 1 : 0;
}
