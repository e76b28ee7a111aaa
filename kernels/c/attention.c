/* Bidirectional attention of packed sequences. Two passes over the keys: the softmax needs its maximum first. */
#include <math.h>

#include "c.h"

typedef struct {
    const char *q, *k, *v;     /* one head of a query row, of the first key row, of the first value row */
    char *out;
    size_t k_stride, v_stride; /* bytes */
    dllm_dtype dtype;
    int32_t head_dim, n_keys;
} one_head;

static double score(const one_head *a, int32_t key)
{
    const char *k = a->k + (size_t)key * a->k_stride;
    double sum = 0;
    for (int32_t c = 0; c < a->head_dim; c++) sum += (double)dllm_get(a->q, a->dtype, c) * (double)dllm_get(k, a->dtype, c);
    return sum / sqrt(a->head_dim);
}

static void attend_head(const one_head *a, float *p)
{
    float highest = -INFINITY;
    for (int32_t j = 0; j < a->n_keys; j++) {
        p[j] = (float)score(a, j);
        if (p[j] > highest) highest = p[j];
    }
    double total = 0;
    for (int32_t j = 0; j < a->n_keys; j++) {
        const float e = expf(p[j] - highest);
        total += (double)e;
        p[j] = dllm_round(e, a->dtype);
    }
    for (int32_t c = 0; c < a->head_dim; c++) {
        double sum = 0;
        for (int32_t j = 0; j < a->n_keys; j++) sum += (double)p[j] * (double)dllm_get(a->v + (size_t)j * a->v_stride, a->dtype, c);
        dllm_put(a->out, a->dtype, c, a->n_keys ? (float)(sum / total) : 0);
    }
}

void dllm_attend_c(dllm_device *d, dllm_mat out, dllm_rows out_rows, dllm_mat q, dllm_mat k, dllm_mat v, const dllm_span *spans,
                   int n_spans, int32_t heads, int32_t kv_heads)
{
    const int32_t head_dim = (int32_t)(q.cols / heads);
    const size_t size = dllm_dtype_size(q.dtype), head_bytes = (size_t)head_dim * size;
    for (int s = 0; s < n_spans; s++) {
        for (int32_t i = spans[s].q_first; i < spans[s].q_first + spans[s].n_q; i++) {
            for (int32_t h = 0; h < heads; h++) {
                const size_t kv = (size_t)(h / (heads / kv_heads)) * head_bytes;
                const one_head a = {
                    .q = (char *)dllm_at(q, i) + (size_t)h * head_bytes,
                    .k = (char *)dllm_at(k, spans[s].k_first) + kv,
                    .v = (char *)dllm_at(v, spans[s].k_first) + kv,
                    .out = (char *)dllm_at(out, dllm_row(out_rows, i)) + (size_t)h * head_bytes,
                    .k_stride = (size_t)k.stride * size,
                    .v_stride = (size_t)v.stride * size,
                    .dtype = q.dtype,
                    .head_dim = head_dim,
                    .n_keys = spans[s].n_keys,
                };
                attend_head(&a, d->scratch);
            }
        }
    }
}
