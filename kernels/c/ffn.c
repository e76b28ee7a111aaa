/* The gate of the feed-forward network. */
#include <math.h>

#include "c.h"

void dllm_swiglu_c(dllm_device *d, dllm_mat out, dllm_mat gate, dllm_mat up, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        const void *g = dllm_at(gate, i), *u = dllm_at(up, i);
        void *to = dllm_at(out, i);
        for (int64_t j = 0; j < gate.cols; j++) {
            const float x = dllm_get(g, gate.dtype, j);
            const float silu = dllm_round(x / (1 + expf(-x)), out.dtype);
            dllm_put(to, out.dtype, j, silu * dllm_get(u, up.dtype, j));
        }
    }
}
