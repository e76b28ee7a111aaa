#include "error.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char message[1024] = "no error";

const char *dllm_last_error(void) { return message; }

int dllm_fail(int status, const char *format, ...)
{
    char text[sizeof message]; /* the arguments may point into the old message */
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    snprintf(message, sizeof message, "%s", text);
    return status;
}
