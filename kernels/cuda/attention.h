/* attention.h: what the files of attention ask of each other. */
#ifndef DLLM_ATTENTION_H
#define DLLM_ATTENTION_H
#include "gpu.h"

/* attend, or attend_delta if `old` is there: v is then dv. */
struct attention_job {
    dllm_mat out, old, q, k, v;
    dllm_rows rows, old_rows, changed; /* rows: of out and q */
    dllm_spans spans;
    int32_t heads, kv_heads, head_dim;
    float scale; /* of the scores */
};

/* Where head h of row `row` of a matrix of heads begins. */
__device__ inline const char *head_at(const dllm_mat &m, int64_t row, int32_t h, int32_t head_dim)
{
    return (const char *)dllm_at(m, row) + (int64_t)h * head_dim * (m.dtype == DLLM_F32 ? 4 : 2);
}

/* On tensor cores, if they can: false where dtype or head are of another kind. */
bool dllm_attend_mma(dllm_device *d, const attention_job &job, bool delta);
size_t dllm_attend_scratch(int32_t heads, int32_t head_dim, int64_t rows, int64_t keys);
#endif
