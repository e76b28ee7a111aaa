/* forward.c: one pass of the network over the row sets of the plans. It recomputes what they name and reads what is kept for the rest. */
#include <string.h>

#include "session.h"

/* ---- what a layer recomputes ----------------------------------------------------------------------------------------------- */
static void choose_rows(dllm_session *s)
{
    const bool last = s->layer == s->model->config.layers - 1;
    for (int b = 0; b < s->n_sequences; b++) {
        const dllm_plan *p = &s->plans[b];
        const dllm_rows wanted = last && !p->last_whole ? s->sequences[b].ask : p->rows;
        s->layer_rows[b] = (dllm_layer_rows){ .v = p->changed, .k = p->changed, .exact = p->changed, .out = wanted, .ffn = wanted };
        if (last && !p->last_whole) s->layer_rows[b].exact = wanted;
    }
    s->places_used = 0;
}

/* Queries and keys of every sequence; the queries lie packed from 0 in the order of the exact sets. */
static int spans(dllm_session *s)
{
    int n = 0;
    for (int32_t b = 0, at = 0; b < s->n_sequences; b++) {
        const int32_t n_q = s->layer_rows[b].exact.n;
        if (n_q == 0) continue;
        const dllm_plan *p = &s->plans[b];
        s->spans[n++] = (dllm_span){ at, n_q, (int32_t)(dllm_first_slot(s, b) - p->slot_shift), p->n_keys };
        at += n_q;
    }
    return n;
}

/* ---- accounting: what the sets cost, and what an uncached pass would ---------------------------------------------------------- */
static uint64_t layer_flops(const dllm_config *c, uint64_t kv_rows, uint64_t q_rows, uint64_t pairs, uint64_t out, uint64_t ffn)
{
    const uint64_t dim = (uint64_t)c->dim, wide = (uint64_t)(c->heads * c->head_dim), kv = (uint64_t)(c->kv_heads * c->head_dim);
    return 2 * dim * (kv * kv_rows + wide * q_rows + wide * out) + 4 * wide * pairs + 6 * dim * (uint64_t)c->ffn_dim * ffn;
}

static void count(dllm_session *s, int n_spans)
{
    const dllm_config *c = &s->model->config;
    dllm_stats *st = &s->stats;
    uint64_t v = 0, k = 0, q = 0, out = 0, ffn = 0, pairs = 0;
    for (int i = 0; i < n_spans; i++) pairs += (uint64_t)s->spans[i].n_q * (uint64_t)s->spans[i].n_keys;
    for (int b = 0; b < s->n_sequences; b++) {
        const dllm_layer_rows *r = &s->layer_rows[b];
        const dllm_sequence *w = &s->sequences[b];
        v += (uint64_t)r->v.n;
        k += (uint64_t)r->k.n;
        q += (uint64_t)r->exact.n;
        out += (uint64_t)r->out.n;
        ffn += (uint64_t)r->ffn.n;
        if (s->plans[b].rows.n == 0) continue; /* finished */
        const uint64_t len = (uint64_t)w->len, wanted = s->layer == c->layers - 1 ? (uint64_t)w->ask.n : len;
        st->flops_uncached += layer_flops(c, 2 * len, wanted, wanted * len, wanted, wanted);
    }
    st->rows_v += v;
    st->rows_k += k;
    st->rows_q += q;
    st->rows_out += out;
    st->rows_ffn += ffn;
    st->flops += layer_flops(c, v + k, q, pairs, out, ffn);
}

/* ---- the layer -------------------------------------------------------------------------------------------------------------- */
static void attention(dllm_session *s, const dllm_layer *w, dllm_rows exact, int n_spans)
{
    dllm_device *d = &s->device;
    const dllm_ops *op = d->ops;
    const dllm_config *c = &s->model->config;
    const dllm_rows v = dllm_pack_rows(s, DLLM_SET_V), v_slots = dllm_pack_slots(s, DLLM_SET_V);
    const dllm_rows k = dllm_pack_rows(s, DLLM_SET_K), k_slots = dllm_pack_slots(s, DLLM_SET_K);
    const dllm_rows packed = dllm_range(0, exact.n);
    op->linear(d, s->values, v_slots, s->h, v, w->v, w->v_bias);
    op->linear(d, s->keys, k_slots, s->h, k, w->k, w->k_bias);
    op->rope(d, s->keys, k_slots, s->cos, s->sin, k, c->head_dim, !c->rope_f32);
    op->linear(d, s->q, packed, s->h, exact, w->q, w->q_bias);
    op->rope(d, s->q, packed, s->cos, s->sin, exact, c->head_dim, !c->rope_f32);
    op->attend(d, s->context, exact, s->q, s->keys, s->values, s->spans, n_spans, c->heads, c->kv_heads);
}

static void feed_forward(dllm_session *s, const dllm_layer *w, dllm_rows rows)
{
    dllm_device *d = &s->device;
    const dllm_ops *op = d->ops;
    const dllm_rows packed = dllm_range(0, rows.n);
    const dllm_mat none = { 0 };
    op->rmsnorm(d, s->h, packed, s->x, rows, w->ffn_norm, s->model->config.norm_eps);
    op->linear(d, s->gate, packed, s->h, packed, w->gate, none);
    op->linear(d, s->up, packed, s->h, packed, w->up, none);
    op->swiglu(d, s->gate, s->gate, s->up, rows.n);
    op->linear(d, s->h, packed, s->gate, packed, w->down, none);
    op->add(d, s->x, rows, s->h, packed);
}

static void run_layer(dllm_session *s)
{
    dllm_device *d = &s->device;
    const dllm_ops *op = d->ops;
    const dllm_layer *w = &s->model->weights.layers[s->layer];
    choose_rows(s);
    const dllm_rows moved = dllm_pack_rows(s, DLLM_SET_V), exact = dllm_pack_rows(s, DLLM_SET_EXACT);
    const dllm_rows out = dllm_pack_rows(s, DLLM_SET_OUT), ffn = dllm_pack_rows(s, DLLM_SET_FFN);
    const int n_spans = spans(s);
    op->rmsnorm(d, s->h, moved, s->x, moved, w->attn_norm, s->model->config.norm_eps);
    attention(s, w, exact, n_spans);
    op->linear(d, s->h, dllm_range(0, out.n), s->context, out, w->o, (dllm_mat){ 0 });
    op->add(d, s->x, out, s->h, dllm_range(0, out.n));
    feed_forward(s, w, ffn);
    count(s, n_spans);
}

/* ---- the pass --------------------------------------------------------------------------------------------------------------- */
static void keep_hidden(dllm_session *s, dllm_mat m)
{
    const size_t row = (size_t)m.cols * dllm_dtype_size(m.dtype);
    memcpy(s->hidden, m.data, row * (size_t)s->rows);
    s->hidden += row * (size_t)s->rows;
}

/* Guidance asks what the model would say without the prompt. */
static void blank_condition(dllm_session *s)
{
    memcpy(s->ids[1], s->ids[0], (size_t)s->rows * sizeof(int32_t));
    for (int b = 0; b < s->n_sequences; b++) {
        const dllm_sequence *q = &s->sequences[b];
        for (int32_t r = 0; r < q->condition; r++) s->ids[1][q->first + r] = s->params.mask_id;
    }
}

static void run_branch(dllm_session *s)
{
    const dllm_model *m = s->model;
    const dllm_ops *op = s->device.ops;
    s->layer = 0;
    for (int b = 0; b < s->n_sequences; b++) s->layer_rows[b].out = s->plans[b].rows;
    s->places_used = 0;
    op->embed(&s->device, s->x, dllm_pack_rows(s, DLLM_SET_OUT), m->weights.embed, s->ids[s->branch]);
    for (; s->layer < m->config.layers; s->layer++) {
        if (s->hidden) keep_hidden(s, s->x);
        run_layer(s);
    }
    for (int b = 0; b < s->n_sequences; b++) s->layer_rows[b].out = s->sequences[b].ask;
    s->places_used = 0;
    const dllm_rows ask = dllm_pack_rows(s, DLLM_SET_OUT);
    op->rmsnorm(&s->device, s->final[s->branch], dllm_range(0, ask.n), s->x, ask, m->weights.norm, m->config.norm_eps);
    if (s->hidden) keep_hidden(s, s->final[s->branch]);
    s->stats.forwards++;
}

void dllm_forward(dllm_session *s)
{
    if (s->branches > 1) blank_condition(s);
    for (s->branch = 0; s->branch < s->branches; s->branch++) run_branch(s);
    s->branch = 0;
}

void dllm_head(dllm_session *s, dllm_rows at)
{
    dllm_device *d = &s->device;
    const dllm_weights *w = &s->model->weights;
    const uint64_t cost = 2 * (uint64_t)at.n * (uint64_t)w->head.rows * (uint64_t)w->head.cols;
    for (int b = 0; b < s->branches; b++) {
        d->ops->linear(d, s->logits[b], dllm_range(0, at.n), s->final[b], at, w->head, (dllm_mat){ 0 });
        s->stats.rows_head += (uint64_t)at.n;
        s->stats.flops += cost;
        s->stats.flops_uncached += cost;
    }
    if (s->branches > 1) d->ops->guide(d, s->logits[0], s->logits[1], at.n, s->params.cfg_scale);
}
