/* model.c: an immutable model: a device, a config, and weights that somebody else owns. */
#include <stdlib.h>
#include <string.h>

#include "../kernels/int8.h"
#include "internal.h"

const char *dllm_version(void) { return DLLM_VERSION; }

size_t dllm_mat_bytes(dllm_mat m)
{
    if (m.dtype == DLLM_I8) return dllm_i8_tiles(m.rows, m.cols) + dllm_i8_scales(m.rows);
    return (size_t)(m.rows * m.cols) * dllm_dtype_size(m.dtype);
}

int dllm_model_open(dllm_model **out, dllm_device *d, const dllm_config *c, const dllm_weights *w, dllm_dtype act)
{
    *out = NULL;
    FAIL_IF(act != DLLM_F32 && act != DLLM_BF16 && act != DLLM_F16, DLLM_E_TYPE, "dtype %d: float32, bfloat16 or float16 expected",
            act);
    FAIL_IF(strncmp(d->name, "cuda:", 5) == 0, DLLM_E_DEVICE, "%s: its kernels can be checked, but sessions run on the CPU",
            d->name);
    FAIL_IF(w->head.dtype == DLLM_I8 && strcmp(d->name, "cpu") != 0, DLLM_E_DEVICE, "int8 weights run on the CPU, not on %s",
            d->name);
    const size_t bytes = (size_t)c->layers * sizeof *w->layers;
    dllm_model *m = calloc(1, sizeof *m);
    dllm_layer *layers = malloc(bytes);
    if (!m || !layers) {
        free(m);
        free(layers);
        return dllm_fail(DLLM_E_MEMORY, "model: out of memory for %zu bytes", sizeof *m + bytes);
    }
    memcpy(layers, w->layers, bytes);
    *m = (dllm_model){ .device = d, .config = *c, .weights = *w, .act = act };
    m->weights.layers = layers;
    *out = m;
    return 0;
}

void dllm_model_close(dllm_model *m)
{
    if (m) free(m->weights.layers);
    free(m);
}

const dllm_config *dllm_model_config(const dllm_model *m) { return &m->config; }
const dllm_weights *dllm_model_weights(const dllm_model *m) { return &m->weights; }
dllm_dtype dllm_model_dtype(const dllm_model *m) { return m->act; }

size_t dllm_model_bytes(const dllm_model *m)
{
    size_t bytes = 0;
    const dllm_weights *w = &m->weights;
    const dllm_mat ends[] = { w->embed, w->norm, w->head };
    for (int i = 0; i < 3; i++) {
        const bool again = i == 2 && w->head.data == w->embed.data;
        bytes += again ? 0 : dllm_mat_bytes(ends[i]);
    }
    for (int l = 0; l < m->config.layers; l++) {
        const dllm_mat *parts = (const dllm_mat *)&w->layers[l];
        for (size_t i = 0; i < sizeof(dllm_layer) / sizeof(dllm_mat); i++) {
            if (parts[i].data) bytes += dllm_mat_bytes(parts[i]);
        }
    }
    return bytes;
}
