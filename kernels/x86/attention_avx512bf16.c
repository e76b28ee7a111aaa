/* Attention of bfloat16 pairs in 512-bit vectors. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,prefer-vector-width=512")
#define LANES 16
#define PAIRS
#include "attention_body.h"

const struct attention_way dllm_attention_avx512bf16 = { run, scratch };
#endif
