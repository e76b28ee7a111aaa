/* dense.h: a matrix product, between the file that takes it (dense.cu) and the one for tensor cores (dense_mma.cu). */
#ifndef DLLM_DENSE_H
#define DLLM_DENSE_H
#include "gpu.h"

struct dense_job {
    dllm_mat out, x, w, bias;
    dllm_rows out_rows, in_rows;
};

/* x and w of one 16-bit dtype */
void dllm_linear_mma(dllm_device *d, const dense_job &job);
size_t dllm_linear_scratch(int64_t features, int64_t columns);

__device__ inline void finish(const dense_job &job, int32_t row, int64_t feature, float sum)
{
    if (job.bias.data) sum += get(job.bias.data, job.bias.dtype, feature);
    put(dllm_at(job.out, dllm_row(job.out_rows, row)), job.out.dtype, feature, sum);
}
#endif
