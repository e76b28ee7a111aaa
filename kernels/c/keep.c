/* What caching methods ask of rows they keep: copies, how far values moved, how far contexts turned, how much keys matter. */
#include <math.h>
#include <string.h>

#include "c.h"

void dllm_copy_c(dllm_device *d, dllm_mat dst, dllm_rows dst_rows, dllm_mat src, dllm_rows src_rows)
{
    for (int32_t i = 0; i < src_rows.n; i++) {
        memcpy(dllm_at(dst, dllm_row(dst_rows, i)), dllm_at(src, dllm_row(src_rows, i)),
               (size_t)src.cols * dllm_dtype_size(src.dtype));
    }
}

void dllm_replace_c(dllm_device *d, dllm_mat kept, dllm_rows rows, dllm_mat v)
{
    for (int32_t i = 0; i < rows.n; i++) {
        void *old = dllm_at(kept, dllm_row(rows, i)), *new = dllm_at(v, i);
        for (int64_t j = 0; j < v.cols; j++) {
            const float was = dllm_get(old, kept.dtype, j), is = dllm_get(new, v.dtype, j);
            dllm_put(old, kept.dtype, j, is);
            dllm_put(new, v.dtype, j, is - was);
        }
    }
}

void dllm_cosine_c(dllm_device *d, float *out, dllm_mat a, dllm_rows a_rows, dllm_mat b, dllm_rows b_rows, float floor)
{
    for (int32_t i = 0; i < a_rows.n; i++) {
        const void *x = dllm_at(a, dllm_row(a_rows, i)), *y = dllm_at(b, dllm_row(b_rows, i));
        double xy = 0, xx = 0, yy = 0;
        for (int64_t j = 0; j < a.cols; j++) {
            const double u = dllm_get(x, a.dtype, j), v = dllm_get(y, b.dtype, j);
            xy += u * v;
            xx += u * u;
            yy += v * v;
        }
        out[i] = (float)(xy / sqrt(fmax(xx, (double)floor) * fmax(yy, (double)floor)));
    }
}

void dllm_importance_c(dllm_device *d, float *out, dllm_mat q, dllm_rows q_rows, dllm_mat k, dllm_rows k_rows, int32_t heads,
                       int32_t kv_heads)
{
    const int64_t head_dim = k.cols / kv_heads, group = heads / kv_heads;
    float *summed = d->scratch; /* [kv_heads * head_dim]: queries summed over rows and the heads of a group */
    for (int64_t c = 0; c < k.cols; c++) {
        double sum = 0;
        for (int32_t i = 0; i < q_rows.n; i++) {
            const void *row = dllm_at(q, dllm_row(q_rows, i));
            for (int64_t h = 0; h < group; h++)
                sum += (double)dllm_get(row, q.dtype, (c / head_dim * group + h) * head_dim + c % head_dim);
        }
        summed[c] = (float)(sum / ((double)q_rows.n * (double)heads));
    }
    for (int32_t j = 0; j < k_rows.n; j++) {
        const void *key = dllm_at(k, dllm_row(k_rows, j));
        double sum = 0;
        for (int64_t c = 0; c < k.cols; c++) sum += (double)summed[c] * (double)dllm_get(key, k.dtype, c);
        out[j] = (float)sum;
    }
}
