/* RMSNorm: a block a row; the normalised value is rounded before it meets the weight, as PyTorch's models do. */
#include "gpu.h"

static __global__ void rmsnorm(dllm_mat out, dllm_rows out_rows, dllm_mat x, dllm_rows rows, dllm_mat w, float eps)
{
    DLLM_SHARED(float, room);
    if (beyond(rows)) return;
    const void *from = dllm_at(x, dllm_row(rows, (int32_t)blockIdx.x));
    void *to = dllm_at(out, dllm_row(out_rows, (int32_t)blockIdx.x));
    float squares = 0;
    for (int64_t j = threadIdx.x * 8; j < x.cols; j += blockDim.x * 8) {
        const eight v = load8(from, x.dtype, j, x.cols);
        for (int i = 0; i < 8; i++) squares += v.v[i] * v.v[i];
    }
    squares = block_reduce(squares, sum_of<float>, room);
    const float scale = (float)(1 / sqrt((double)squares / (double)x.cols + (double)eps));
    for (int64_t j = threadIdx.x * 8; j < x.cols; j += blockDim.x * 8) {
        eight v = load8(from, x.dtype, j, x.cols);
        const eight weight = load8(w.data, w.dtype, j, x.cols);
        for (int i = 0; i < 8; i++) v.v[i] = round_to(v.v[i] * scale, out.dtype) * weight.v[i];
        store8(to, out.dtype, j, x.cols, v);
    }
}

void dllm_rmsnorm_cuda(dllm_device *d, dllm_mat out, dllm_rows out_rows, dllm_mat x, dllm_rows rows, dllm_mat w, float eps)
{
    if (rows.n)
        launch(d, "rmsnorm", rmsnorm, (unsigned)rows.n, threads_for(x.cols), 32 * sizeof(float), out, out_rows, x, rows, w, eps);
}
