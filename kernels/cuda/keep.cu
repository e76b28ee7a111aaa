/* What caching methods ask of rows they keep: copies, how far values moved, how far contexts turned, how much keys matter. A block a
 * row. */
#include "gpu.h"

/* In words as long as the rows' places allow: the bits go as they are. */
static __global__ void copy(dllm_mat dst, dllm_rows dst_rows, dllm_mat src, dllm_rows src_rows)
{
    const char *from = (const char *)dllm_at(src, dllm_row(src_rows, (int32_t)blockIdx.x));
    char *to = (char *)dllm_at(dst, dllm_row(dst_rows, (int32_t)blockIdx.x));
    const int64_t bytes = src.cols * (src.dtype == DLLM_F32 ? 4 : 2),
                  long_words = ((uintptr_t)from | (uintptr_t)to) % 16 ? 0 : bytes / 16;
    for (int64_t j = threadIdx.x; j < long_words; j += blockDim.x) ((uint4 *)to)[j] = ((const uint4 *)from)[j];
    for (int64_t j = long_words * 8 + threadIdx.x; j < bytes / 2; j += blockDim.x)
        ((uint16_t *)to)[j] = ((const uint16_t *)from)[j];
}

void dllm_copy_cuda(dllm_device *d, dllm_mat dst, dllm_rows dst_rows, dllm_mat src, dllm_rows src_rows)
{
    if (src_rows.n) launch(d, "copy", copy, (unsigned)src_rows.n, threads_for(src.cols), 0, dst, dst_rows, src, src_rows);
}

static __global__ void replace(dllm_mat kept, dllm_rows rows, dllm_mat v)
{
    if (beyond(rows)) return;
    void *old = dllm_at(kept, dllm_row(rows, (int32_t)blockIdx.x)), *fresh = dllm_at(v, blockIdx.x);
    for (int64_t j = threadIdx.x * 8; j < v.cols; j += blockDim.x * 8) {
        const eight was = load8(old, kept.dtype, j, v.cols), is = load8(fresh, v.dtype, j, v.cols);
        eight moved;
        for (int i = 0; i < 8; i++) moved.v[i] = is.v[i] - was.v[i];
        store8(old, kept.dtype, j, v.cols, is);
        store8(fresh, v.dtype, j, v.cols, moved);
    }
}

void dllm_replace_cuda(dllm_device *d, dllm_mat kept, dllm_rows rows, dllm_mat v)
{
    if (rows.n) launch(d, "replace", replace, (unsigned)rows.n, threads_for(v.cols), 0, kept, rows, v);
}

static __global__ void cosine(float *out, dllm_mat a, dllm_rows a_rows, dllm_mat b, dllm_rows b_rows, double least)
{
    DLLM_SHARED(float, room);
    const void *x = dllm_at(a, dllm_row(a_rows, (int32_t)blockIdx.x)), *y = dllm_at(b, dllm_row(b_rows, (int32_t)blockIdx.x));
    float xy = 0, xx = 0, yy = 0;
    for (int64_t j = threadIdx.x * 8; j < a.cols; j += blockDim.x * 8) {
        const eight u = load8(x, a.dtype, j, a.cols), v = load8(y, b.dtype, j, a.cols);
        for (int i = 0; i < 8; i++) {
            xy += u.v[i] * v.v[i];
            xx += u.v[i] * u.v[i];
            yy += v.v[i] * v.v[i];
        }
    }
    xy = block_reduce(xy, sum_of<float>, room);
    xx = block_reduce(xx, sum_of<float>, room);
    yy = block_reduce(yy, sum_of<float>, room);
    if (threadIdx.x == 0) out[blockIdx.x] = (float)((double)xy / sqrt(fmax((double)xx, least) * fmax((double)yy, least)));
}

void dllm_cosine_cuda(dllm_device *d, float *out, dllm_mat a, dllm_rows a_rows, dllm_mat b, dllm_rows b_rows, float floor)
{
    if (a_rows.n)
        launch(d, "cosine", cosine, (unsigned)a_rows.n, threads_for(a.cols), 32 * sizeof(float), out, a, a_rows, b, b_rows,
               (double)floor);
}

/* The mean over heads and queries of q.k is the product of k with the queries' sum: first that sum, a thread a channel of k. */
static __global__ void sum_queries(float *summed, dllm_mat q, dllm_rows q_rows, int32_t channels, int32_t head_dim, int32_t group,
                                   float count)
{
    const int32_t c = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x);
    if (c >= channels) return;
    float sum = 0;
    for (int32_t i = 0; i < q_rows.n; i++) {
        const void *row = dllm_at(q, dllm_row(q_rows, i));
        for (int32_t h = 0; h < group; h++) sum += get(row, q.dtype, (int64_t)(c / head_dim * group + h) * head_dim + c % head_dim);
    }
    summed[c] = sum / count;
}

static __global__ void weigh_keys(float *out, const float *summed, dllm_mat k, dllm_rows k_rows)
{
    DLLM_SHARED(float, room);
    const void *key = dllm_at(k, dllm_row(k_rows, (int32_t)blockIdx.x));
    float sum = 0;
    for (int64_t j = threadIdx.x * 8; j < k.cols; j += blockDim.x * 8) {
        const eight a = load8(key, k.dtype, j, k.cols), b = load8(summed, DLLM_F32, j, k.cols);
        for (int i = 0; i < 8; i++) sum += a.v[i] * b.v[i];
    }
    sum = block_reduce(sum, sum_of<float>, room);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

void dllm_importance_cuda(dllm_device *d, float *out, dllm_mat q, dllm_rows q_rows, dllm_mat k, dllm_rows k_rows, int32_t heads,
                          int32_t kv_heads)
{
    if (k_rows.n == 0) return;
    float *summed = (float *)((char *)d->scratch + SCRATCH_COUNTERS);
    const int32_t channels = (int32_t)k.cols;
    launch(d, "importance", sum_queries, (unsigned)(channels + 127) / 128, 128, 0, summed, q, q_rows, channels, channels / kv_heads,
           heads / kv_heads, (float)q_rows.n * (float)heads);
    launch(d, "importance", weigh_keys, (unsigned)k_rows.n, threads_for(k.cols), 32 * sizeof(float), out, summed, k, k_rows);
}
