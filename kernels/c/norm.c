/* RMSNorm: the normalised value is rounded before it meets the weight, as PyTorch's models do. */
#include <math.h>

#include "c.h"

void dllm_rmsnorm_c(dllm_device *d, dllm_mat out, dllm_rows out_rows, dllm_mat x, dllm_rows rows, dllm_mat w, float eps)
{
    for (int32_t i = 0; i < rows.n; i++) {
        const void *from = dllm_at(x, dllm_row(rows, i));
        void *to = dllm_at(out, dllm_row(out_rows, i));
        double squares = 0;
        for (int64_t j = 0; j < x.cols; j++) {
            const double v = dllm_get(from, x.dtype, j);
            squares += v * v;
        }
        const float scale = (float)(1 / sqrt(squares / (double)x.cols + eps));
        for (int64_t j = 0; j < x.cols; j++) {
            const float unit = dllm_round(dllm_get(from, x.dtype, j) * scale, out.dtype);
            dllm_put(to, out.dtype, j, unit * dllm_get(w.data, w.dtype, j));
        }
    }
}
