/* Bidirectional attention of packed sequences. Two passes over the keys: the softmax needs its maximum first. */
#include <math.h>

#include "c.h"

typedef struct {
    const char *q, *k, *v; /* one head of a query row, of the first key row, of the first value row */
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

/* Weights of all keys, rounded; returns their sum before rounding. */
static double weigh(const one_head *a, float *p)
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
    return total;
}

static void attend_head(const one_head *a, float *p)
{
    const double total = weigh(a, p);
    for (int32_t c = 0; c < a->head_dim; c++) {
        double sum = 0;
        for (int32_t j = 0; j < a->n_keys; j++) sum += (double)p[j] * (double)dllm_get(a->v + (size_t)j * a->v_stride, a->dtype, c);
        dllm_put(a->out, a->dtype, c, a->n_keys ? (float)(sum / total) : 0);
    }
}

/* Head h of a row of q and out; values start at row v_first of v. */
static one_head head_of(dllm_mat out, dllm_mat q, int32_t row, dllm_mat k, dllm_mat v, int64_t v_first, const dllm_span *span,
                        int32_t h, int32_t heads, int32_t kv_heads)
{
    const int32_t head_dim = (int32_t)(q.cols / heads);
    const size_t size = dllm_dtype_size(q.dtype), head_bytes = (size_t)head_dim * size,
                 kv = (size_t)(h / (heads / kv_heads)) * head_bytes;
    return (one_head){
        .q = (char *)dllm_at(q, row) + (size_t)h * head_bytes,
        .k = (char *)dllm_at(k, span->k_first) + kv,
        .v = (char *)dllm_at(v, v_first) + kv,
        .out = (char *)dllm_at(out, row) + (size_t)h * head_bytes,
        .k_stride = (size_t)k.stride * size,
        .v_stride = (size_t)v.stride * size,
        .dtype = q.dtype,
        .head_dim = head_dim,
        .n_keys = span->n_keys,
    };
}

void dllm_attend_c(dllm_device *d, dllm_mat out, dllm_mat q, dllm_rows rows, dllm_mat k, dllm_mat v, dllm_spans spans,
                   int32_t heads, int32_t kv_heads)
{
    for (int s = 0; s < spans.n; s++) {
        const dllm_span *span = &spans.at[s];
        for (int32_t i = span->q_first; i < span->q_first + span->n_q; i++) {
            for (int32_t h = 0; h < heads; h++) {
                const one_head a = head_of(out, q, dllm_row(rows, i), k, v, span->k_first, span, h, heads, kv_heads);
                attend_head(&a, d->scratch);
            }
        }
    }
}

/* What the values of the changed columns moved, weighed as attention weighs them, on top of the old context. */
static void correct_head(const one_head *a, const char *old, const dllm_rows *changed, int32_t k_first, dllm_columns columns,
                         float *p)
{
    const double total = weigh(a, p);
    for (int32_t c = 0; c < a->head_dim; c++) {
        double sum = 0;
        for (int32_t j = 0; j < columns.n; j++) {
            const int32_t key = dllm_row(*changed, columns.first + j) - k_first;
            sum += (double)p[key] * (double)dllm_get(a->v + (size_t)j * a->v_stride, a->dtype, c);
        }
        dllm_put(a->out, a->dtype, c, dllm_get(old, a->dtype, c) + (columns.n ? (float)(sum / total) : 0));
    }
}

void dllm_attend_delta_c(dllm_device *d, dllm_mat out, dllm_mat q, dllm_rows rows, dllm_mat old, dllm_rows old_rows, dllm_mat k,
                         dllm_mat dv, dllm_rows changed, dllm_spans spans, int32_t heads, int32_t kv_heads)
{
    const size_t head_bytes = (size_t)(q.cols / heads) * dllm_dtype_size(q.dtype);
    for (int s = 0; s < spans.n; s++) {
        const dllm_span *span = &spans.at[s];
        const dllm_columns columns = spans.columns[s];
        for (int32_t i = span->q_first; i < span->q_first + span->n_q; i++) {
            for (int32_t h = 0; h < heads; h++) {
                const one_head a = head_of(out, q, dllm_row(rows, i), k, dv, columns.first, span, h, heads, kv_heads);
                const char *before = (char *)dllm_at(old, dllm_row(old_rows, i)) + (size_t)h * head_bytes;
                correct_head(&a, before, &changed, span->k_first, columns, d->scratch);
            }
        }
    }
}
