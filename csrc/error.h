/* error.h: how the core fails. A function that can fail returns 0 or a count, or FAIL'ed: a negative status and a message. */
#ifndef DLLM_ERROR_H
#define DLLM_ERROR_H
#include "dllm.h"

/* Records the calling thread's message and returns status, so that `return dllm_fail(...)` is one line. */
__attribute__((format(printf, 2, 3))) int dllm_fail(int status, const char *format, ...);

#define FAIL_IF(condition, status, ...)                                                                                            \
    do {                                                                                                                           \
        if (condition) return dllm_fail(status, __VA_ARGS__);                                                                      \
    } while (0)
#define TRY(expression)                                                                                                            \
    do {                                                                                                                           \
        const int try_status = (expression);                                                                                       \
        if (try_status < 0) return try_status;                                                                                     \
    } while (0)
#endif
