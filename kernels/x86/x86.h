/* x86.h: what the files of this folder tell each other. Every file compiles without -m flags: it raises its own target by pragma
 * and is entered only after cpu.c has asked the processor. */
#ifndef DLLM_X86_H
#define DLLM_X86_H
#include "../bits.h"
#include "../ops.h"
#include "../threads.h"
#if defined(__x86_64__)

/* Every level has the levels before it. AVX2 means avx2 + fma + f16c; AVX512F means f + bw + vl + dq, and some of its
 * processors have VNNI too; the levels after it all do. */
typedef enum { DLLM_X86_AVX2 = 1, DLLM_X86_AVX512F, DLLM_X86_AVX512BF16, DLLM_X86_AMX } dllm_x86_level;

/* Each puts its kernels for `level` into a table that holds those of the level below. */
void dllm_x86_linear(dllm_ops *t, dllm_x86_level level, bool vnni);
void dllm_x86_attention(dllm_ops *t, dllm_x86_level level);
void dllm_x86_rows(dllm_ops *t, dllm_x86_level level);
void dllm_x86_keep(dllm_ops *t, dllm_x86_level level);

dllm_burst *dllm_x86_burst(dllm_x86_level level, dllm_dtype t, bool vnni);

/* Bytes of scratch; the arguments of ops.scratch. Kernels run one at a time, so a session needs the larger of the two. */
size_t dllm_x86_linear_scratch(const dllm_device *d, const dllm_config *c, dllm_dtype act, int64_t rows, int64_t keys);
size_t dllm_x86_attention_scratch(const dllm_device *d, const dllm_config *c, dllm_dtype act, int64_t rows, int64_t keys);

#endif
#endif
