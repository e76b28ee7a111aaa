/* expect.h: what the C tests count, and how they say what they counted. */
#ifndef DLLM_TEST_EXPECT_H
#define DLLM_TEST_EXPECT_H
#include <stdio.h>

#include "../../csrc/dllm.h"

static int passed, failed;

static inline void expect(bool ok, const char *what, const char *where)
{
    if (ok) passed++;
    else {
        failed++;
        printf("FAILED %s: %s (%s)\n", where, what, dllm_last_error());
    }
}

/* The exit status: a test that checked nothing failed. */
static inline int report(void)
{
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0 || passed == 0;
}
#endif
