/* The kernels of caching methods in 256-bit vectors. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#define LANES 8
#include "keep_body.h"

void dllm_keep_avx2(dllm_ops *t)
{
    t->replace = replace;
    t->cosine = cosine;
    t->importance = importance;
}
#endif
