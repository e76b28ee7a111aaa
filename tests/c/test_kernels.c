/* Every kernel of every level that this processor has, against its plain-C twin. The plain-C table is checked too: against itself,
 * it shows that the harness is fair and that the definition keeps its own promises about guards and rows. */
#include <stdlib.h>

#include "tally.h"

/* Optional arguments: a kernel, and a seed. */
int main(int argc, char **argv)
{
    const char *const *levels;
    const int n = dllm_cpu_levels(&levels);
    const uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    tally t = { 0 };
    for (int i = 0; i < n; i++) {
        t.table = levels[i];
        check_table(&t, &(dllm_device){ .ops = dllm_ops_cpu(levels[i]), .threads = 2 }, argc > 1 ? argv[1] : "", seed);
    }
    printf("%d passed, %d failed\n", t.passed, t.failed);
    return t.failed ? 1 : 0;
}
