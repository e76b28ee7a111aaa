/* The kernels of caching methods in 512-bit vectors. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#define LANES 16
#include "keep_body.h"

void dllm_keep_avx512f(dllm_ops *t)
{
    t->replace = replace;
    t->cosine = cosine;
    t->importance = importance;
}
#endif
