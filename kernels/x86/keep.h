/* keep.h: the kernels of caching methods, by vector size. */
#ifndef DLLM_X86_KEEP_H
#define DLLM_X86_KEEP_H
#include "x86.h"
#if defined(__x86_64__)

void dllm_keep_avx2(dllm_ops *t);
void dllm_keep_avx512f(dllm_ops *t);
#endif
#endif
