/* watch.c: what a caching method did in the latest step, per branch, layer and sequence, for whoever asked to see it. */
#include <math.h>
#include <string.h>

#include "session.h"

void dllm_watch_clear(dllm_session *s)
{
    if (!s->chosen) return;
    const int64_t layers = (int64_t)s->branches * s->model->config.layers;
    memset(s->mode, -1, (size_t)(layers * s->n_sequences));
    memset(s->chosen, 0, (size_t)(layers * s->rows));
    for (int64_t i = 0; i < layers * s->rows; i++) s->seen[i] = NAN;
}

void dllm_watch_mode(dllm_session *s, const dllm_sequence *q, int mode)
{
    if (s->chosen) s->mode[dllm_layer_index(s) * s->n_sequences + q->index] = (int8_t)mode;
}

void dllm_watch_chosen(dllm_session *s, const dllm_sequence *q, dllm_rows chosen)
{
    if (!s->chosen) return;
    chosen = dllm_read_chosen(s, chosen);
    for (int32_t i = 0; i < chosen.n; i++) s->chosen[dllm_layer_index(s) * s->rows + q->first + dllm_row(chosen, i)] = 1;
}

void dllm_watch_seen(dllm_session *s, const dllm_sequence *q, dllm_rows rows, const float *values)
{
    if (!s->chosen) return;
    dllm_wait(s);
    for (int32_t i = 0; i < rows.n; i++) s->seen[dllm_layer_index(s) * s->rows + q->first + dllm_row(rows, i)] = values[i];
}

/* Rows [first, first + n) of a pool, or nothing. */
static dllm_mat view(dllm_mat pool, int64_t first, int64_t n)
{
    if (n == 0) return (dllm_mat){ 0 };
    pool.data = dllm_at(pool, first);
    pool.rows = n;
    return pool;
}

int dllm_session_kept(const dllm_session *s, int sequence, int branch, int layer, dllm_kept *out)
{
    const int layers = s->model->config.layers;
    FAIL_IF(sequence < 0 || sequence >= s->n_sequences || branch < 0 || branch >= s->branches || layer < 0 || layer >= layers,
            DLLM_E_VALUE, "sequence %d, branch %d, layer %d: the session has %d, %d and %d", sequence, branch, layer,
            s->n_sequences, s->branches, layers);
    const dllm_sequence *q = &s->sequences[sequence];
    const unsigned keeps = s->strategy->keeps;
    const int64_t at = (int64_t)branch * layers + layer, row = at * s->rows + q->first, slot = at * s->kept_slots + q->slot;
    const int64_t slots = s->strategy->slots(s, q);
    out->k = view(s->keys, slot, slots);
    out->v = view(s->values, slot, slots);
    out->context = view(s->kept_context, row, keeps & DLLM_KEEP_CONTEXT ? q->len : 0);
    out->attn = view(s->attn, row, keeps & DLLM_KEEP_ATTN ? q->len : 0);
    out->ffn = view(s->ffn, row, keeps & DLLM_KEEP_FFN ? q->len : 0);
    return 0;
}

int dllm_session_watched(const dllm_session *s, const int8_t **mode, const uint8_t **chosen, const float **seen)
{
    FAIL_IF(!s->chosen, DLLM_E_VALUE, "nobody asked to watch this session: set params.watch");
    *mode = s->mode;
    *chosen = s->chosen;
    *seen = s->seen;
    return s->branches * s->model->config.layers;
}
