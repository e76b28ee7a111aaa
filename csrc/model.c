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

/* ---- weights for a device with memory of its own ---------------------------------------------------------------------------------- */
enum { PARTS = sizeof(dllm_layer) / sizeof(dllm_mat) };
static const char *const part_names[PARTS] = { "attn_norm", "q",      "k",        "v",    "o",  "q_bias",
                                               "k_bias",    "v_bias", "ffn_norm", "gate", "up", "down" };

static int no_room(const dllm_model *m, const char *where, dllm_mat from, size_t bytes, size_t copied)
{
    return dllm_fail(DLLM_E_MEMORY, "model: %s is out of memory for weights: %s: %lld x %lld in %s, %zu bytes, after %zu bytes",
                     m->device->name, where, (long long)from.rows, (long long)from.cols, dllm_dtype_name(from.dtype), bytes,
                     copied);
}

/* *w becomes a copy of it without gaps between rows, which is ours. */
static int copy_matrix(dllm_model *m, dllm_mat *w, const char *where, size_t *copied)
{
    dllm_device *d = m->device;
    const dllm_mat from = *w;
    const size_t bytes = dllm_mat_bytes(from), row = (size_t)from.cols * dllm_dtype_size(from.dtype),
                 stride = (size_t)from.stride * dllm_dtype_size(from.dtype);
    char *p = d->ops->alloc(d, bytes);
    if (!p) return no_room(m, where, from, bytes, *copied);
    m->copies[m->n_copies++] = p;
    w->data = p;
    w->stride = w->cols;
    if (row == stride) d->ops->copy_in(d, p, from.data, bytes);
    for (int64_t r = 0; row != stride && r < from.rows; r++)
        d->ops->copy_in(d, p + (size_t)r * row, (const char *)from.data + (size_t)r * stride, row);
    *copied += bytes;
    return 0;
}

/* What lies on the device stays there, what lies on the host is copied. layer < 0: outside the layers. */
static int settle(dllm_model *m, dllm_mat *w, int layer, const char *name, size_t *copied)
{
    char where[48];
    if (!w->data) return 0;
    if (layer < 0) snprintf(where, sizeof where, "%s", name);
    else snprintf(where, sizeof where, "layer %d, %s", layer, name);
    const int place = dllm_device_place(m->device, w->data);
    if (place == m->device->index) return 0;
    FAIL_IF(place >= 0, DLLM_E_VALUE, "model: weights: %s: on GPU %d, but the model is on %s: all must be on one device", where,
            place, m->device->name);
    return copy_matrix(m, w, where, copied);
}

static int settle_weights(dllm_model *m)
{
    dllm_weights *w = &m->weights;
    dllm_mat *const ends[] = { &w->embed, &w->norm, &w->head };
    static const char *const names[] = { "embedding", "norm", "head" };
    const bool tied = w->head.data == w->embed.data;
    size_t copied = 0;
    for (int i = 0; i < m->config.layers * PARTS; i++)
        TRY(settle(m, (dllm_mat *)w->layers + i, i / PARTS, part_names[i % PARTS], &copied));
    for (int i = 0; i < (tied ? 2 : 3); i++) TRY(settle(m, ends[i], -1, names[i], &copied));
    if (tied) w->head = w->embed;
    const int status = m->device->ops->sync(m->device);
    return status < 0 ? dllm_fail(status, "model: copying weights: %s", m->device->why) : 0;
}

/* ---- models ----------------------------------------------------------------------------------------------------------------------- */
int dllm_model_open(dllm_model **out, dllm_device *d, const dllm_config *c, const dllm_weights *w, dllm_dtype act)
{
    *out = NULL;
    FAIL_IF(act != DLLM_F32 && act != DLLM_BF16 && act != DLLM_F16, DLLM_E_TYPE, "dtype %d: float32, bfloat16 or float16 expected",
            act);
    const size_t bytes = (size_t)c->layers * sizeof *w->layers, most = (size_t)c->layers * PARTS + 3;
    const bool host = dllm_is_host(d);
    FAIL_IF(w->head.dtype == DLLM_I8 && !host, DLLM_E_DEVICE, "int8 weights run on the CPU, not on %s", d->name);
    dllm_model *m = calloc(1, sizeof *m);
    FAIL_IF(!m, DLLM_E_MEMORY, "model: out of memory for %zu bytes", sizeof *m);
    *m = (dllm_model){ .device = d, .config = *c, .act = act, .weights = *w };
    m->weights.layers = calloc(1, bytes);
    if (!host) m->copies = calloc(most, sizeof *m->copies);
    int status = 0;
    if (!m->weights.layers || (!host && !m->copies))
        status = dllm_fail(DLLM_E_MEMORY, "model: out of memory for lists of %d layers, %zu bytes", c->layers,
                           bytes + (host ? 0 : most * sizeof *m->copies));
    else memcpy(m->weights.layers, w->layers, bytes);
    if (status == 0 && !host) status = settle_weights(m);
    if (status < 0) dllm_model_close(m);
    else *out = m;
    return status;
}

void dllm_model_close(dllm_model *m)
{
    if (!m) return;
    for (int i = 0; i < m->n_copies; i++) m->device->ops->free(m->device, m->copies[i]);
    free(m->copies);
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
