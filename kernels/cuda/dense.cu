/* Matrix product with weights as PyTorch stores them, y = x * Wt + b, for any dtypes: tiles of float32 and plain multiply-adds, each sum
 * in the order of its columns. Products of two 16-bit matrices of one dtype go to the tensor cores (dense_mma.cu), those of many rows to
 * a library, if there is one (blas.cu). */
#include "dense.h"

enum { ROWS = 32, FEATURES = 64, DEPTH = 16, THREADS = 128, PAD = 1 };

struct tiles {
    float x[DEPTH][ROWS + PAD], w[DEPTH][FEATURES + PAD];
};

__device__ static void load_tiles(tiles *t, const dense_job &job, int32_t first_row, int64_t first_feature, int64_t k)
{
    for (int i = (int)threadIdx.x; i < ROWS * DEPTH; i += THREADS) {
        const int r = i / DEPTH, c = i % DEPTH;
        const bool there = first_row + r < job.in_rows.n && k + c < job.w.cols;
        t->x[c][r] = there ? get(dllm_at(job.x, dllm_row(job.in_rows, first_row + r)), job.x.dtype, k + c) : 0;
    }
    for (int i = (int)threadIdx.x; i < FEATURES * DEPTH; i += THREADS) {
        const int f = i / DEPTH, c = i % DEPTH;
        const bool there = first_feature + f < job.w.rows && k + c < job.w.cols;
        t->w[c][f] = there ? get(dllm_at(job.w, first_feature + f), job.w.dtype, k + c) : 0;
    }
}

/* A thread sums four rows by four features. */
static __global__ void __launch_bounds__(THREADS) multiply(dense_job job)
{
    DLLM_SHARED(tiles, t);
    const int64_t first_feature = (int64_t)blockIdx.x * FEATURES;
    const int32_t first_row = (int32_t)blockIdx.y * ROWS, r0 = (int32_t)threadIdx.x / 16 * 4, f0 = (int32_t)threadIdx.x % 16;
    float sum[4][4] = {};
    for (int64_t k = 0; k < job.w.cols; k += DEPTH) {
        load_tiles(t, job, first_row, first_feature, k);
        __syncthreads();
        for (int c = 0; c < DEPTH; c++) {
#pragma unroll
            for (int i = 0; i < 16; i++) sum[i / 4][i % 4] += t->x[c][r0 + i / 4] * t->w[c][f0 + 16 * (i % 4)];
        }
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < 4; r++) {
        const int32_t row = first_row + r0 + r;
        if (row >= job.in_rows.n) break;
#pragma unroll
        for (int f = 0; f < 4; f++) {
            if (first_feature + f0 + 16 * f < job.w.rows) finish(job, row, first_feature + f0 + 16 * f, sum[r][f]);
        }
    }
}

void dllm_linear_cuda(dllm_device *d, dllm_mat out, dllm_rows out_rows, dllm_mat x, dllm_rows in_rows, dllm_mat w, dllm_mat bias)
{
    if (in_rows.n == 0) return;
    const dense_job job = { out, x, w, bias, out_rows, in_rows };
    if (dllm_linear_blas(d, job)) return;
    if (x.dtype == w.dtype && x.dtype != DLLM_F32) {
        dllm_linear_mma(d, job);
        return;
    }
    const dim3 grid((unsigned)((w.rows + FEATURES - 1) / FEATURES), (unsigned)(in_rows.n + ROWS - 1) / ROWS);
    launch(d, "linear", multiply, grid, THREADS, sizeof(tiles), job);
}
