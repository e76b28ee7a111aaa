/* Rotary position embedding, rotate-half: channel j and channel j + head_dim / 2 are one point in the plane. */
#include "c.h"

void dllm_rope_c(dllm_device *d, dllm_mat x, dllm_rows x_rows, dllm_mat cos, dllm_mat sin, dllm_rows table_rows, int32_t head_dim,
                 bool round_products)
{
    const dllm_dtype products = round_products ? x.dtype : DLLM_F32;
    const int64_t half = head_dim / 2;
    for (int32_t i = 0; i < x_rows.n; i++) {
        void *row = dllm_at(x, dllm_row(x_rows, i));
        const float *c = dllm_at(cos, dllm_row(table_rows, i)), *s = dllm_at(sin, dllm_row(table_rows, i));
        for (int64_t head = 0; head < x.cols; head += head_dim) {
            for (int64_t j = 0; j < half; j++) {
                const float a = dllm_get(row, x.dtype, head + j), b = dllm_get(row, x.dtype, head + half + j);
                dllm_put(row, x.dtype, head + j, dllm_round(a * c[j], products) - dllm_round(b * s[j], products));
                dllm_put(row, x.dtype, head + half + j, dllm_round(b * c[j], products) + dllm_round(a * s[j], products));
            }
        }
    }
}
