/* rows.h: how kernels that go row by row share the rows among threads. */
#ifndef DLLM_X86_ROWS_H
#define DLLM_X86_ROWS_H
#include "x86.h"
#if defined(__x86_64__)

/* The arguments of any of these kernels; a kernel uses the ones it has. row() does row i. */
struct rows_job {
    void (*row)(const struct rows_job *job, int32_t i, int thread);
    dllm_device *d;
    dllm_mat out, x, y, z;
    dllm_rows out_rows, x_rows, y_rows;
    int32_t n, head_dim, rows_a_task;
    float scalar;
    bool flag;
    const int32_t *ids;
    void *result[3];
    const dllm_sampling *how;
    const dllm_key *keys;
    const void *noise;
    const int32_t *noise_rows;
};

/* Calls f with a dtype that the compiler knows. */
#define OF_DTYPE(t, f, ...)                                                                                                        \
    do {                                                                                                                           \
        if ((t) == DLLM_F32) f(DLLM_F32, __VA_ARGS__);                                                                             \
        else if ((t) == DLLM_BF16) f(DLLM_BF16, __VA_ARGS__);                                                                      \
        else f(DLLM_F16, __VA_ARGS__);                                                                                             \
    } while (0)

/* Does all rows, of about `work` simple operations each, on at most `threads` threads. */
void dllm_rows_run(struct rows_job *job, int threads, int64_t work);

void dllm_rows_avx2(dllm_ops *t);
void dllm_rows_avx512f(dllm_ops *t);
#endif
#endif
