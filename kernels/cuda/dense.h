/* dense.h: a matrix product, between the file that takes it (dense.cu), the one for tensor cores (dense_mma.cu) and the one that asks a
 * library (blas.cu). */
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

/* Looks for the library: 0, and its version and place in out; else negative, and why. */
int dllm_blas_find(const char *path, char *out, size_t bytes);
/* Leaves d->library only if there is one; a failure is in d. */
void dllm_blas_open(dllm_device *d);
size_t dllm_blas_scratch(const dllm_device *d, int64_t rows);
bool dllm_linear_blas(dllm_device *d, const dense_job &job); /* false: the product is not of its kind */

__device__ inline void finish(const dense_job &job, int32_t row, int64_t feature, float sum)
{
    if (job.bias.data) sum += get(job.bias.data, job.bias.dtype, feature);
    put(dllm_at(job.out, dllm_row(job.out_rows, row)), job.out.dtype, feature, sum);
}
#endif
