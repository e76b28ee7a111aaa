/* Rows in, rows out: embedding, residual add, guidance. */
#include "c.h"

void dllm_embed_c(dllm_device *d, dllm_mat x, dllm_rows rows, dllm_mat table, const int32_t *ids)
{
    for (int32_t i = 0; i < rows.n; i++) {
        const int32_t r = dllm_row(rows, i);
        const void *from = dllm_at(table, ids[r]);
        void *to = dllm_at(x, r);
        for (int64_t j = 0; j < x.cols; j++) dllm_put(to, x.dtype, j, dllm_get(from, table.dtype, j));
    }
}

void dllm_add_c(dllm_device *d, dllm_mat x, dllm_rows rows, dllm_mat y, dllm_rows y_rows)
{
    for (int32_t i = 0; i < rows.n; i++) {
        void *to = dllm_at(x, dllm_row(rows, i));
        const void *from = dllm_at(y, dllm_row(y_rows, i));
        for (int64_t j = 0; j < x.cols; j++) dllm_put(to, x.dtype, j, dllm_get(to, x.dtype, j) + dllm_get(from, y.dtype, j));
    }
}

void dllm_guide_c(dllm_device *d, dllm_mat c, dllm_mat u, int32_t n, float scale)
{
    for (int32_t i = 0; i < n; i++) {
        float *with = dllm_at(c, i);
        const float *without = dllm_at(u, i);
        for (int64_t j = 0; j < c.cols; j++) with[j] = without[j] + (scale + 1) * (with[j] - without[j]);
    }
}

void dllm_guide_keep_c(dllm_device *d, dllm_mat kept, dllm_rows rows, dllm_mat c, dllm_mat u)
{
    for (int32_t i = 0; i < rows.n; i++) {
        const float *with = dllm_at(c, i), *without = dllm_at(u, i);
        float *moved = dllm_at(kept, dllm_row(rows, i));
        for (int64_t j = 0; j < c.cols; j++) moved[j] = with[j] - without[j];
    }
}

void dllm_guide_again_c(dllm_device *d, dllm_mat c, dllm_mat kept, dllm_rows rows, float scale)
{
    for (int32_t i = 0; i < rows.n; i++) {
        float *with = dllm_at(c, i);
        const float *moved = dllm_at(kept, dllm_row(rows, i));
        for (int64_t j = 0; j < c.cols; j++) with[j] = with[j] - moved[j] + (scale + 1) * moved[j];
    }
}
