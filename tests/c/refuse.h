/* refuse.h: what the tests of files and formats count, and how they expect a refusal. */
#ifndef DLLM_TEST_REFUSE_H
#define DLLM_TEST_REFUSE_H
#include <stdio.h>
#include <string.h>

#include "../../csrc/dllm.h"

static int passed, failed;

static inline bool check(bool good, const char *what)
{
    if (good) passed++;
    else failed++, printf("FAILED %s; last error: %s\n", what, dllm_last_error());
    return good;
}

/* A refusal is a status and a message that says what and which number. */
static inline void refuse(int got, int status, const char *part, const char *what)
{
    char text[400];
    snprintf(text, sizeof text, "%.200s (status %d, message with \"%.100s\" expected)", what, got, part);
    check(got == status && strstr(dllm_last_error(), part), text);
}

static inline int report(void)
{
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
#endif
