/* Matrix product with weights as PyTorch stores them: y = x * Wt + b. */
#include "../int8.h"
#include "c.h"

static double dot(const float *x, const void *w, dllm_dtype t, int64_t n)
{
    double sum = 0;
    for (int64_t j = 0; j < n; j++) sum += (double)x[j] * (double)dllm_get(w, t, j);
    return sum;
}

/* Whole numbers: the sum is exact in any order. */
static float dot_i8(const int8_t *x, dllm_i8_unit u, dllm_mat w, int64_t row)
{
    const int8_t *steps = w.data;
    int32_t sum = 0;
    for (int64_t j = 0; j < w.cols; j++) sum += x[j] * steps[dllm_i8_at(w.stride, row, j)];
    return (float)sum * w.scale[row] * u.scale;
}

static void linear_i8(dllm_device *d, dllm_mat out, dllm_rows out_rows, dllm_mat x, dllm_rows in_rows, dllm_mat w, dllm_mat bias)
{
    int8_t *row = d->scratch;
    for (int32_t i = 0; i < in_rows.n; i++) {
        const void *from = dllm_at(x, dllm_row(in_rows, i));
        void *to = dllm_at(out, dllm_row(out_rows, i));
        const dllm_i8_unit u = dllm_i8_measure(from, x.dtype, w.cols);
        dllm_i8_round(row, from, x.dtype, w.cols, u);
        for (int64_t o = 0; o < w.rows; o++) {
            const float y = dot_i8(row, u, w, o);
            dllm_put(to, out.dtype, o, bias.data ? y + dllm_get(bias.data, bias.dtype, o) : y);
        }
    }
}

void dllm_linear_c(dllm_device *d, dllm_mat out, dllm_rows out_rows, dllm_mat x, dllm_rows in_rows, dllm_mat w, dllm_mat bias)
{
    float *row = d->scratch;
    if (w.dtype == DLLM_I8) {
        linear_i8(d, out, out_rows, x, in_rows, w, bias);
        return;
    }
    for (int32_t i = 0; i < in_rows.n; i++) {
        const void *from = dllm_at(x, dllm_row(in_rows, i));
        void *to = dllm_at(out, dllm_row(out_rows, i));
        for (int64_t j = 0; j < w.cols; j++) row[j] = dllm_get(from, x.dtype, j);
        for (int64_t o = 0; o < w.rows; o++) {
            const double sum = dot(row, dllm_at(w, o), w.dtype, w.cols);
            dllm_put(to, out.dtype, o, (float)(bias.data ? sum + (double)dllm_get(bias.data, bias.dtype, o) : sum));
        }
    }
}
