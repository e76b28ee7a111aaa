/* refuse.h: how the tests of files and formats expect a refusal. */
#ifndef DLLM_TEST_REFUSE_H
#define DLLM_TEST_REFUSE_H
#include <string.h>

#include "expect.h"

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
#endif
