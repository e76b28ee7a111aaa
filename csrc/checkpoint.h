/* checkpoint.h: what config.c tells checkpoint.c beyond the public API. */
#ifndef DLLM_CHECKPOINT_H
#define DLLM_CHECKPOINT_H
#include "dllm.h"

/* dllm_config_parse that also says whether the text names a dtype; LLaDA's does not. */
int dllm_config_read(dllm_config *out, bool *has_dtype, const char *json, size_t n);
#endif
