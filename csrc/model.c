/* model.c: an immutable model: a device, a config, and weights: somebody else's, or, where kernels cannot reach those, copies. */
#include <stdio.h>
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

/* ---- weights on a device with memory of its own ----------------------------------------------------------------------------------- */
enum { PARTS = sizeof(dllm_layer) / sizeof(dllm_mat) };
static const char *const part_names[PARTS] = { "attn_norm", "q",      "k",        "v",    "o",  "q_bias",
                                               "k_bias",    "v_bias", "ffn_norm", "gate", "up", "down" };

typedef struct {
    dllm_device *device;
    size_t copied;
} copier;

/* *m, which is the caller's, becomes a copy of it without gaps between rows, or nothing. layer < 0: outside the layers. */
static int copy_matrix(copier *to, dllm_mat *m, int layer, const char *name)
{
    const dllm_ops *op = to->device->ops;
    const dllm_mat from = *m;
    const size_t bytes = dllm_mat_bytes(from), row = (size_t)from.cols * dllm_dtype_size(from.dtype),
                 stride = (size_t)from.stride * dllm_dtype_size(from.dtype);
    char where[32] = "", *p = op->alloc(to->device, bytes);
    if (layer >= 0) snprintf(where, sizeof where, "layer %d, ", layer);
    m->data = p;
    m->stride = m->cols;
    FAIL_IF(!p, DLLM_E_MEMORY, "model: %s is out of memory for weights: %s%s: %lld x %lld in %s, %zu bytes, after %zu bytes",
            to->device->name, where, name, (long long)from.rows, (long long)from.cols, dllm_dtype_name(from.dtype), bytes,
            to->copied);
    if (row == stride) op->copy_in(to->device, p, from.data, bytes);
    for (int64_t r = 0; row != stride && r < from.rows; r++)
        op->copy_in(to->device, p + (size_t)r * row, (const char *)from.data + (size_t)r * stride, row);
    to->copied += bytes;
    return 0;
}

static int copy_layer(copier *to, dllm_layer *layer, const dllm_layer *from, int l)
{
    dllm_mat *part = (dllm_mat *)layer;
    const dllm_mat *source = (const dllm_mat *)from;
    for (int i = 0; i < PARTS; i++) {
        part[i] = source[i];
        if (part[i].data) TRY(copy_matrix(to, &part[i], l, part_names[i]));
    }
    return 0;
}

/* The model's matrices are none at first, so that what was copied can be told from what was not when one copy fails. */
static int copy_weights(dllm_model *m, const dllm_weights *w)
{
    copier to = { .device = m->device };
    dllm_mat *const ends[] = { &m->weights.embed, &m->weights.norm, &m->weights.head };
    const dllm_mat sources[] = { w->embed, w->norm, w->head };
    static const char *const names[] = { "embedding", "norm", "head" };
    for (int l = 0; l < m->config.layers; l++) TRY(copy_layer(&to, &m->weights.layers[l], &w->layers[l], l));
    for (int i = 0; i < 3; i++) {
        *ends[i] = sources[i];
        if (i == 2 && w->head.data == w->embed.data) ends[i]->data = m->weights.embed.data;
        else TRY(copy_matrix(&to, ends[i], -1, names[i]));
    }
    const int status = m->device->ops->sync(m->device);
    return status < 0 ? dllm_fail(status, "model: copying weights: %s", m->device->why) : 0;
}

static void free_copies(dllm_model *m)
{
    dllm_weights *w = &m->weights;
    if (w->head.data == w->embed.data) w->head.data = NULL;
    void *const ends[] = { w->embed.data, w->norm.data, w->head.data };
    for (int i = 0; i < 3; i++) {
        if (ends[i]) m->device->ops->free(m->device, ends[i]);
    }
    for (int i = 0; i < m->config.layers * PARTS; i++) {
        void *p = ((dllm_mat *)w->layers)[i].data;
        if (p) m->device->ops->free(m->device, p);
    }
}

/* ---- models ----------------------------------------------------------------------------------------------------------------------- */
int dllm_model_open(dllm_model **out, dllm_device *d, const dllm_config *c, const dllm_weights *w, dllm_dtype act)
{
    *out = NULL;
    FAIL_IF(act != DLLM_F32 && act != DLLM_BF16 && act != DLLM_F16, DLLM_E_TYPE, "dtype %d: float32, bfloat16 or float16 expected",
            act);
    const size_t bytes = (size_t)c->layers * sizeof *w->layers;
    const bool host = dllm_is_host(d);
    FAIL_IF(w->head.dtype == DLLM_I8 && !host, DLLM_E_DEVICE, "int8 weights run on the CPU, not on %s", d->name);
    dllm_model *m = calloc(1, sizeof *m);
    dllm_layer *layers = calloc(1, bytes);
    if (!m || !layers) {
        free(m);
        free(layers);
        return dllm_fail(DLLM_E_MEMORY, "model: out of memory for %zu bytes", sizeof *m + bytes);
    }
    *m = (dllm_model){ .device = d, .config = *c, .act = act, .copied = !host };
    if (host) {
        memcpy(layers, w->layers, bytes);
        m->weights = *w;
    }
    m->weights.layers = layers;
    const int status = host ? 0 : copy_weights(m, w);
    if (status < 0) dllm_model_close(m);
    else *out = m;
    return status;
}

void dllm_model_close(dllm_model *m)
{
    if (!m) return;
    if (m->copied) free_copies(m);
    free(m->weights.layers);
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
        for (int i = 0; i < PARTS; i++) {
            if (parts[i].data) bytes += dllm_mat_bytes(parts[i]);
        }
    }
    return bytes;
}
