/* Matrix product with weights as PyTorch stores them, y = x * Wt + b, for any dtypes: tiles of float32 and plain multiply-adds, each sum
 * in the order of its columns. Products of two 16-bit matrices of one dtype go to the tensor cores (dense_mma.cu), those of many rows to
 * a library, if there is one (blas.cu). */
#include "panel.h"

enum { ROWS = 32, FEATURES = PANEL, DEPTH = 16, THREADS = 128, PAD = 1 };

struct tiles {
    float x[DEPTH][ROWS + PAD], w[DEPTH][FEATURES + PAD];
};

__device__ static void load_tiles(tiles *t, const dense_job &job, int32_t rows, int32_t first_row, int64_t first_feature, int64_t k)
{
    for (int i = (int)threadIdx.x; i < ROWS * DEPTH; i += THREADS) {
        const int r = i / DEPTH, c = i % DEPTH;
        const bool there = first_row + r < rows && k + c < job.w.cols;
        t->x[c][r] = there ? get(dllm_at(job.x, dllm_row(job.in_rows, first_row + r)), job.x.dtype, k + c) : 0;
    }
    for (int i = (int)threadIdx.x; i < FEATURES * DEPTH; i += THREADS) {
        const int f = i / DEPTH, c = i % DEPTH;
        const bool there = first_feature + f < job.w.rows && k + c < job.w.cols;
        t->w[c][f] = there ? get(dllm_at(job.w, first_feature + f), job.w.dtype, k + c) : 0;
    }
}

/* A thread sums four rows by four features, and calls f(row, feature, sum) with the numbers of both in the block. */
template <class F>
__device__ static void sum_up(tiles *t, const dense_job &job, int32_t rows, int32_t first_row, int64_t first_feature, F f)
{
    const int32_t r0 = (int32_t)threadIdx.x / 16 * 4, f0 = (int32_t)threadIdx.x % 16;
    float sum[4][4] = {};
    for (int64_t k = 0; k < job.w.cols; k += DEPTH) {
        load_tiles(t, job, rows, first_row, first_feature, k);
        __syncthreads();
        for (int c = 0; c < DEPTH; c++) {
#pragma unroll
            for (int i = 0; i < 16; i++) sum[i / 4][i % 4] += t->x[c][r0 + i / 4] * t->w[c][f0 + 16 * (i % 4)];
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 16; i++) f(r0 + i / 4, f0 + 16 * (i % 4), sum[i / 4][i % 4]);
}

static __global__ void __launch_bounds__(THREADS) multiply(dense_job job)
{
    DLLM_SHARED(tiles, t);
    const int64_t first_feature = (int64_t)blockIdx.x * FEATURES;
    const int32_t first_row = (int32_t)blockIdx.y * ROWS, rows = dllm_there(job.in_rows);
    if (first_row >= rows) return;
    sum_up(t, job, rows, first_row, first_feature, [&](int32_t row, int32_t feature, float sum) {
        if (first_row + row < rows && first_feature + feature < job.w.rows)
            finish(job, first_row + row, first_feature + feature, sum);
    });
}

/* The same, but what a panel of the head sums up is read at once. */
union head_tiles {
    tiles product;
    float logits[ROWS * LINE];
};

static __global__ void __launch_bounds__(THREADS) head_any(dense_job job, reading r)
{
    DLLM_SHARED(head_tiles, t);
    const int64_t first_feature = (int64_t)blockIdx.x * FEATURES;
    const int32_t first_row = (int32_t)blockIdx.y * ROWS;
    sum_up(&t->product, job, job.in_rows.n, first_row, first_feature,
           [&](int32_t row, int32_t feature, float sum) { t->logits[row * LINE + feature] = sum; });
    __syncthreads();
    read_tile(r, t->logits, ROWS, first_feature, first_row, job.in_rows.n);
}

static dim3 grid_of(const dense_job &job)
{
    return dim3((unsigned)((job.w.rows + FEATURES - 1) / FEATURES), (unsigned)(job.in_rows.n + ROWS - 1) / ROWS);
}

void dllm_head_any(dllm_device *d, const dense_job &job, const reading &r)
{
    launch(d, "head_predict", head_any, grid_of(job), THREADS, sizeof(head_tiles), job, r);
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
    launch(d, "linear", multiply, grid_of(job), THREADS, sizeof(tiles), job);
}
