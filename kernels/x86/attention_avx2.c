/* Attention in 256-bit vectors. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#define LANES 8
#include "attention_body.h"

const struct attention_way dllm_attention_avx2 = { run, scratch };
#endif
