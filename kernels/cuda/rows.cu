/* Rows in, rows out: embedding, residual add, guidance, the gate of the feed-forward network, rotary embedding. A block a row. */
#include "gpu.h"

static __global__ void embed(dllm_mat x, dllm_rows rows, dllm_mat table, const int32_t *ids)
{
    const int32_t r = dllm_row(rows, (int32_t)blockIdx.x);
    const void *from = dllm_at(table, ids[r]);
    void *to = dllm_at(x, r);
    for (int64_t j = threadIdx.x * 8; j < x.cols; j += blockDim.x * 8)
        store8(to, x.dtype, j, x.cols, load8(from, table.dtype, j, x.cols));
}

void dllm_embed_cuda(dllm_device *d, dllm_mat x, dllm_rows rows, dllm_mat table, const int32_t *ids)
{
    if (rows.n) launch(d, "embed", embed, (unsigned)rows.n, threads_for(x.cols), 0, x, rows, table, ids);
}

static __global__ void add(dllm_mat x, dllm_rows rows, dllm_mat y, dllm_rows y_rows)
{
    void *to = dllm_at(x, dllm_row(rows, (int32_t)blockIdx.x));
    const void *from = dllm_at(y, dllm_row(y_rows, (int32_t)blockIdx.x));
    for (int64_t j = threadIdx.x * 8; j < x.cols; j += blockDim.x * 8) {
        eight a = load8(to, x.dtype, j, x.cols);
        const eight b = load8(from, y.dtype, j, x.cols);
        for (int i = 0; i < 8; i++) a.v[i] += b.v[i];
        store8(to, x.dtype, j, x.cols, a);
    }
}

void dllm_add_cuda(dllm_device *d, dllm_mat x, dllm_rows rows, dllm_mat y, dllm_rows y_rows)
{
    if (rows.n) launch(d, "add", add, (unsigned)rows.n, threads_for(x.cols), 0, x, rows, y, y_rows);
}

static __global__ void guide(dllm_mat c, dllm_mat u, float scale)
{
    float *with = (float *)dllm_at(c, blockIdx.x);
    const float *without = (const float *)dllm_at(u, blockIdx.x);
    for (int64_t j = (int64_t)blockIdx.y * blockDim.x + threadIdx.x; j < c.cols; j += (int64_t)gridDim.y * blockDim.x)
        with[j] = without[j] + (scale + 1) * (with[j] - without[j]);
}

/* Logits are few rows and wide ones: several blocks share one. */
static dim3 wide_grid(int32_t rows, int64_t cols) { return dim3((unsigned)rows, (unsigned)((cols + 4095) / 4096)); }

void dllm_guide_cuda(dllm_device *d, dllm_mat c, dllm_mat u, int32_t n, float scale)
{
    if (n) launch(d, "guide", guide, wide_grid(n, c.cols), threads_for(c.cols), 0, c, u, scale);
}

static __global__ void guide_keep(dllm_mat kept, dllm_rows rows, dllm_mat c, dllm_mat u)
{
    float *moved = (float *)dllm_at(kept, dllm_row(rows, (int32_t)blockIdx.x));
    const float *with = (const float *)dllm_at(c, blockIdx.x), *without = (const float *)dllm_at(u, blockIdx.x);
    for (int64_t j = (int64_t)blockIdx.y * blockDim.x + threadIdx.x; j < c.cols; j += (int64_t)gridDim.y * blockDim.x)
        moved[j] = with[j] - without[j];
}

void dllm_guide_keep_cuda(dllm_device *d, dllm_mat kept, dllm_rows rows, dllm_mat c, dllm_mat u)
{
    if (rows.n) launch(d, "guide_keep", guide_keep, wide_grid(rows.n, c.cols), threads_for(c.cols), 0, kept, rows, c, u);
}

static __global__ void guide_again(dllm_mat c, dllm_mat kept, dllm_rows rows, float scale)
{
    float *with = (float *)dllm_at(c, blockIdx.x);
    const float *moved = (const float *)dllm_at(kept, dllm_row(rows, (int32_t)blockIdx.x));
    for (int64_t j = (int64_t)blockIdx.y * blockDim.x + threadIdx.x; j < c.cols; j += (int64_t)gridDim.y * blockDim.x)
        with[j] = with[j] - moved[j] + (scale + 1) * moved[j];
}

void dllm_guide_again_cuda(dllm_device *d, dllm_mat c, dllm_mat kept, dllm_rows rows, float scale)
{
    if (rows.n) launch(d, "guide_again", guide_again, wide_grid(rows.n, c.cols), threads_for(c.cols), 0, c, kept, rows, scale);
}

static __global__ void swiglu(dllm_mat out, dllm_mat gate, dllm_mat up, dllm_rows rows)
{
    if (beyond(rows)) return;
    const int32_t row = dllm_row(rows, (int32_t)blockIdx.x);
    const void *g = dllm_at(gate, row), *u = dllm_at(up, row);
    void *to = dllm_at(out, row);
    for (int64_t j = threadIdx.x * 8; j < gate.cols; j += blockDim.x * 8) {
        eight x = load8(g, gate.dtype, j, gate.cols);
        const eight y = load8(u, up.dtype, j, gate.cols);
        for (int i = 0; i < 8; i++) x.v[i] = round_to(x.v[i] / (1 + expf(-x.v[i])), out.dtype) * y.v[i];
        store8(to, out.dtype, j, gate.cols, x);
    }
}

void dllm_swiglu_cuda(dllm_device *d, dllm_mat out, dllm_mat gate, dllm_mat up, dllm_rows rows)
{
    if (rows.n) launch(d, "swiglu", swiglu, (unsigned)rows.n, threads_for(gate.cols), 0, out, gate, up, rows);
}

/* Channel j and channel j + head_dim / 2 are one point in the plane. */
static __global__ void rope(dllm_mat x, dllm_rows x_rows, dllm_mat cos, dllm_mat sin, dllm_rows table_rows, int32_t head_dim,
                            dllm_dtype products)
{
    if (beyond(x_rows)) return;
    void *row = dllm_at(x, dllm_row(x_rows, (int32_t)blockIdx.x));
    const int32_t angle = dllm_row(table_rows, (int32_t)blockIdx.x);
    const float *c = (const float *)dllm_at(cos, angle), *s = (const float *)dllm_at(sin, angle);
    const int32_t half = head_dim / 2;
    for (int32_t at = (int32_t)threadIdx.x; at < x.cols / 2; at += (int32_t)blockDim.x) {
        const int32_t j = at % half;
        const int64_t one = (int64_t)(at / half) * head_dim + j, other = one + half;
        const float a = get(row, x.dtype, one), b = get(row, x.dtype, other);
        put(row, x.dtype, one, round_to(a * c[j], products) - round_to(b * s[j], products));
        put(row, x.dtype, other, round_to(b * c[j], products) + round_to(a * s[j], products));
    }
}

void dllm_rope_cuda(dllm_device *d, dllm_mat x, dllm_rows x_rows, dllm_mat cos, dllm_mat sin, dllm_rows table_rows,
                    int32_t head_dim, bool round_products)
{
    const dllm_dtype products = round_products ? x.dtype : DLLM_F32;
    if (x_rows.n)
        launch(d, "rope", rope, (unsigned)x_rows.n, threads_for(4 * x.cols), 0, x, x_rows, cos, sin, table_rows, head_dim,
               products);
}
