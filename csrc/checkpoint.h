/* checkpoint.h: what the readers of a folder tell each other beyond the public API. */
#ifndef DLLM_CHECKPOINT_H
#define DLLM_CHECKPOINT_H
#include "error.h"

/* dllm_config_parse that also says whether the text names a dtype; LLaDA's does not. */
int dllm_config_read(dllm_config *out, bool *has_dtype, const char *json, size_t n);

/* A line for every file that weights come from: name, size, time of its last change. malloc'ed. */
int dllm_checkpoint_sources(const dllm_checkpoint *c, char **out);
/* The matrix, one of this folder, was read and is not read again: its pages need not stay in this process. */
void dllm_checkpoint_let_go(const dllm_checkpoint *c, const dllm_mat *m);
#endif
