/* The gate of the feed-forward network. */
#include <math.h>

#include "c.h"

void dllm_swiglu_c(dllm_device *d, dllm_mat out, dllm_mat gate, dllm_mat up, dllm_rows rows)
{
    for (int32_t i = 0; i < rows.n; i++) {
        const int32_t row = dllm_row(rows, i);
        const void *g = dllm_at(gate, row), *u = dllm_at(up, row);
        void *to = dllm_at(out, row);
        for (int64_t j = 0; j < gate.cols; j++) {
            const float x = dllm_get(g, gate.dtype, j);
            const float silu = dllm_round(x / (1 + expf(-x)), out.dtype);
            dllm_put(to, out.dtype, j, silu * dllm_get(u, up.dtype, j));
        }
    }
}
