/* forward.c: one pass of the network over the row sets of the plans. It recomputes what they name and reads what is kept for the rest. */
#include <string.h>

#include "session.h"

/* ---- what a layer recomputes ------------------------------------------------------------------------------------------------------- */
static void choose_rows(dllm_session *s)
{
    const dllm_strategy *st = s->strategy;
    const bool keeps = st->keeps != 0, last = s->layer == s->model->config.layers - 1;
    s->follows = s->asks;
    s->asks = false;
    for (int b = 0; b < s->n_sequences; b++) {
        dllm_sequence *q = &s->sequences[b];
        const dllm_plan *p = &s->plans[b];
        const dllm_rows wanted = last && !keeps ? q->ask : p->rows; /* nobody reads the other rows of the last layer */
        dllm_layer_rows *r = &s->layer_rows[b];
        *r = (dllm_layer_rows){ .norm = p->rows, .q = p->rows, .out = wanted, .ffn = wanted, .travel = wanted };
        if (s->follows) continue; /* the others are in turned_rows and turned_rest */
        r->v = r->k = r->exact = p->changed;
        if (st->keeps & DLLM_KEEP_CONTEXT) r->delta = dllm_without(q->room[DLLM_ROOM_SET], p->rows, p->changed);
        if (last && !keeps) r->exact = p->inspect.n ? dllm_join(q->room[DLLM_ROOM_SET], wanted, p->inspect) : wanted;
        r->q = r->delta.n ? p->rows : r->exact;
        r->norm = r->delta.n ? p->rows : r->v;
        if (st->choose && p->rows.n) st->choose(s, q, r);
    }
    dllm_make_room(s);
}

/* In the last layer what is kept of a row serves nobody but the row itself, once it is asked. Rows before the first mask never are, but
 * for the one that speaks for it. (A watched session keeps them all: somebody looks.) */
int32_t dllm_first_read(const dllm_session *s, int b, int layer)
{
    if (layer < s->model->config.layers - 1 || !s->strategy->keeps || s->chosen) return 0;
    return s->sequences[b].fixed - (s->model->config.shift_logits && s->sequences[b].fixed > 0);
}

static void drop_unread(dllm_session *s)
{
    for (int b = 0; b < s->n_sequences; b++) {
        const int32_t from = dllm_first_read(s, b, s->layer);
        if (from == 0 || s->layer_rows[b].among.n)
            continue; /* which rows are picked only the device knows; which turned, `turn` was told */
        dllm_layer_rows *r = &s->layer_rows[b];
        dllm_rows *sets[] = { &r->q, &r->exact, &r->delta, &r->out, &r->ffn, &r->travel };
        for (int i = 0; i < 6; i++) *sets[i] = dllm_from(*sets[i], from);
    }
}

/* Queries and keys of every sequence's exact or delta set, as they lie packed, and the values of the packed v that changed. */
static dllm_spans spans_of(dllm_session *s, dllm_set set)
{
    if (s->follows) return dllm_turned_spans(s, set);
    dllm_span *at = dllm_room_for(s, s->n_sequences, sizeof *at);
    dllm_columns *columns = dllm_room_for(s, s->n_sequences, sizeof *columns);
    dllm_spans all = { .at = at, .columns = columns };
    for (int32_t b = 0, query = 0, column = 0; b < s->n_sequences; b++) {
        const dllm_layer_rows *r = &s->layer_rows[b];
        const int32_t n_q = set == DLLM_SET_DELTA ? r->delta.n : r->exact.n, n_keys = s->plans[b].n_keys;
        if (n_q > 0) {
            columns[all.n] = (dllm_columns){ column, r->v.n };
            at[all.n++] = (dllm_span){ query, n_q, (int32_t)dllm_first_slot(s, b), n_keys };
            if (n_q > all.most_queries) all.most_queries = n_q;
            if (n_keys > all.most_keys) all.most_keys = n_keys;
        }
        query += n_q;
        column += r->v.n;
    }
    return all;
}

/* Rows whose values moved join those that are recomputed anyway. The host goes on with their number. */
static void pick_moved(dllm_session *s)
{
    dllm_pick *picks = dllm_room_for(s, 2 * s->n_sequences, sizeof *picks);
    int n = 0;
    for (int32_t b = 0, at = 0, score = 0; b < s->n_sequences; b++) {
        dllm_layer_rows *r = &s->layer_rows[b];
        const int32_t first = s->sequences[b].first, known = r->k.n;
        score += r->v.n;
        picks[n++] = (dllm_pick){ .n = known, .take = known, .to = at, .add = first + r->k.first };
        picks[n++] = (dllm_pick){ .first = score - r->among.n,
                                  .n = r->among.n,
                                  .lowest = true,
                                  .take = r->moved,
                                  .to = at + known,
                                  .add = first + r->among.first };
        r->k = r->q = r->exact = r->out = r->ffn = (dllm_rows){ .idx = s->picked + at, .first = -first, .n = known + r->moved };
        at += r->k.n;
    }
    s->device.ops->pick(&s->device, s->picked, s->similarity, picks, n);
    for (int32_t b = 0, score = 0; b < s->n_sequences; b++) {
        const dllm_layer_rows *r = &s->layer_rows[b];
        score += r->v.n;
        dllm_watch_chosen(s, &s->sequences[b], dllm_part(r->k, r->k.n - r->moved, r->moved));
        dllm_watch_seen(s, &s->sequences[b], r->among, s->similarity + score - r->among.n);
    }
}

/* ---- the layer ----------------------------------------------------------------------------------------------------------------------- */
/* As many rows, one behind the other. */
static dllm_rows packed_of(dllm_rows rows) { return (dllm_rows){ .n = rows.n, .count = rows.count }; }

/* Values straight into their slots; or, for methods that look at how far they moved, by way of new_values, which then holds that. */
static void project_values(dllm_session *s, const dllm_layer *w)
{
    dllm_device *d = &s->device;
    const dllm_ops *op = d->ops;
    const dllm_rows rows = dllm_pack(s, DLLM_SET_V), slots = dllm_pack_slots(s, DLLM_SET_V);
    const dllm_rows packed = packed_of(rows);
    dllm_enter(s, DLLM_STAGE_V);
    if (!(s->strategy->keeps & DLLM_COMPARE_VALUES)) {
        op->linear(d, s->values, slots, s->h, rows, w->v, w->v_bias);
        return;
    }
    op->linear(d, s->new_values, packed, s->h, rows, w->v, w->v_bias);
    dllm_enter(s, DLLM_STAGE_CACHE);
    bool choosing = false;
    for (int b = 0; b < s->n_sequences; b++) choosing |= s->layer_rows[b].among.n > 0;
    if (choosing) {
        op->cosine(d, s->similarity, s->new_values, packed, s->values, slots, 1e-16f);
        pick_moved(s);
    }
    op->replace(d, s->values, slots, s->new_values);
}

static void attention(dllm_session *s, const dllm_layer *w)
{
    dllm_device *d = &s->device;
    const dllm_ops *op = d->ops;
    const dllm_config *c = &s->model->config;
    const dllm_rows k = dllm_pack(s, DLLM_SET_K), k_slots = dllm_pack_slots(s, DLLM_SET_K);
    dllm_enter(s, DLLM_STAGE_K);
    op->linear(d, s->keys, k_slots, s->h, k, w->k, w->k_bias);
    dllm_enter(s, DLLM_STAGE_ROPE);
    op->rope(d, s->keys, k_slots, s->cos, s->sin, k, c->head_dim, !c->rope_f32);

    const dllm_rows q = dllm_pack(s, DLLM_SET_Q), exact = dllm_pack(s, DLLM_SET_EXACT), delta = dllm_pack(s, DLLM_SET_DELTA);
    dllm_enter(s, DLLM_STAGE_Q);
    op->linear(d, s->q, q, s->h, q, w->q, w->q_bias);
    dllm_enter(s, DLLM_STAGE_ROPE);
    op->rope(d, s->q, q, s->cos, s->sin, q, c->head_dim, !c->rope_f32);
    dllm_enter(s, DLLM_STAGE_ATTENTION);
    op->attend(d, s->context, s->q, exact, s->keys, s->values, spans_of(s, DLLM_SET_EXACT), c->heads, c->kv_heads);
    if (delta.n == 0) return;
    op->attend_delta(d, s->context, s->q, delta, s->kept_context, dllm_kept_rows(s, delta, DLLM_KEEP_CONTEXT), s->keys,
                     s->new_values, dllm_pack_slots(s, DLLM_SET_V), spans_of(s, DLLM_SET_DELTA), c->heads, c->kv_heads);
}

/* How much contexts turned since they were last seen, if anybody asks. */
static void compare_contexts(dllm_session *s, dllm_rows rows)
{
    dllm_device *d = &s->device;
    const dllm_rows kept = dllm_kept_rows(s, rows, DLLM_KEEP_CONTEXT);
    s->asks = dllm_asks_contexts(s);
    dllm_enter(s, DLLM_STAGE_CACHE);
    if (s->asks) {
        d->ops->cosine(d, s->similarity, s->context, rows, s->kept_context, kept, 1e-8f);
        dllm_count_rows(s, DLLM_STAGE_CACHE, 2 * (uint64_t)rows.n, s->context.cols);
        dllm_choose_turned(s, rows);
    }
    d->ops->copy(d, s->kept_context, kept, s->context, rows);
    dllm_count_rows(s, DLLM_STAGE_CACHE, 2 * (uint64_t)rows.n, s->context.cols);
}

static void feed_forward(dllm_session *s, const dllm_layer *w)
{
    dllm_device *d = &s->device;
    const dllm_ops *op = d->ops;
    const dllm_mat none = { 0 };
    const dllm_rows rows = dllm_pack(s, DLLM_SET_FFN), packed = packed_of(rows);
    dllm_enter(s, DLLM_STAGE_NORM);
    op->rmsnorm(d, s->h, packed, s->x, rows, w->ffn_norm, s->model->config.norm_eps);
    dllm_enter(s, DLLM_STAGE_GATE);
    op->linear(d, s->gate, packed, s->h, packed, w->gate, none);
    dllm_enter(s, DLLM_STAGE_UP);
    op->linear(d, s->up, packed, s->h, packed, w->up, none);
    dllm_enter(s, DLLM_STAGE_SWIGLU);
    op->swiglu(d, s->gate, s->gate, s->up, packed);
    dllm_enter(s, DLLM_STAGE_DOWN);
    op->linear(d, s->ffn, dllm_kept_rows(s, rows, DLLM_KEEP_FFN), s->gate, packed, w->down, none);
}

static void run_layer(dllm_session *s)
{
    dllm_device *d = &s->device;
    const dllm_ops *op = d->ops;
    const dllm_layer *w = &s->model->weights.layers[s->layer];
    dllm_enter(s, DLLM_STAGE_PLAN);
    choose_rows(s);
    const dllm_rows norm = dllm_pack(s, DLLM_SET_NORM);
    dllm_enter(s, DLLM_STAGE_NORM);
    op->rmsnorm(d, s->h, norm, s->x, norm, w->attn_norm, s->model->config.norm_eps);
    project_values(s, w);
    drop_unread(s);
    attention(s, w);
    const dllm_rows travel = dllm_pack(s, DLLM_SET_TRAVEL), out = dllm_pack(s, DLLM_SET_OUT);
    if (s->strategy->keeps & DLLM_KEEP_CONTEXT) compare_contexts(s, out);
    dllm_enter(s, DLLM_STAGE_O);
    op->linear(d, s->attn, dllm_kept_rows(s, out, DLLM_KEEP_ATTN), s->context, out, w->o, (dllm_mat){ 0 });
    dllm_enter(s, DLLM_STAGE_ADD);
    op->add(d, s->x, travel, s->attn, dllm_kept_rows(s, travel, DLLM_KEEP_ATTN));
    feed_forward(s, w);
    dllm_enter(s, DLLM_STAGE_ADD);
    op->add(d, s->x, travel, s->ffn, dllm_kept_rows(s, travel, DLLM_KEEP_FFN));
    if (s->strategy->after_layer) dllm_enter(s, DLLM_STAGE_CACHE);
    for (int b = 0; s->strategy->after_layer && b < s->n_sequences; b++)
        if (s->layer_rows[b].exact.n) s->strategy->after_layer(s, &s->sequences[b]);
    dllm_note_layer(s);
}

/* ---- the pass ------------------------------------------------------------------------------------------------------------------------ */
static void keep_hidden(dllm_session *s, dllm_mat m)
{
    dllm_download(s, s->hidden, m, s->rows);
    s->hidden += (size_t)m.cols * dllm_dtype_size(m.dtype) * (size_t)s->rows;
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

/* Final states of carried rows go behind the asked ones, where later passes that leave these rows out find them. */
static void carry_rows(dllm_session *s, dllm_mat final)
{
    int32_t at = 0;
    for (int b = 0; b < s->n_sequences; b++) {
        dllm_sequence *q = &s->sequences[b];
        for (int32_t i = 0; i < q->ask.n; i++) {
            if (dllm_row(q->ask, i) != s->plans[b].carry) continue;
            s->device.ops->copy(&s->device, final, dllm_range((int32_t)s->rows + b, 1), final, dllm_range(at + i, 1));
            dllm_count_rows(s, DLLM_STAGE_CACHE, 2, final.cols);
            q->carried = s->plans[b].carry;
        }
        at += q->ask.n;
    }
}

void dllm_plan_branch(dllm_session *s, int branch)
{
    s->branch = branch;
    s->layer = 0;
    for (int b = 0; b < s->n_sequences; b++) {
        s->plans[b] = (dllm_plan){ .carry = -1 };
        if (s->everyone || !s->sequences[b].done) s->strategy->plan(s, &s->sequences[b], &s->plans[b]);
    }
}

static void run_branch(dllm_session *s)
{
    const dllm_model *m = s->model;
    const dllm_ops *op = s->device.ops;
    for (int b = 0; b < s->n_sequences; b++) {
        s->layer_rows[b] = (dllm_layer_rows){ .travel = s->plans[b].rows, .out = s->sequences[b].ask };
    }
    s->asks = false;
    if (s->branch == 0) s->n_sizes = s->n_counted = 0;
    dllm_make_branch_room(s);
    const dllm_rows travel = dllm_pack(s, DLLM_SET_TRAVEL);
    dllm_enter(s, DLLM_STAGE_EMBED);
    op->embed(&s->device, s->x, travel, m->weights.embed, s->ids[s->branch]);
    for (s->layer = 0; s->layer < m->config.layers; s->layer++) {
        if (s->hidden) keep_hidden(s, s->x);
        run_layer(s);
    }
    for (int b = 0; b < s->n_sequences; b++) s->layer_rows[b].out = s->sequences[b].ask;
    dllm_make_room(s);
    const dllm_rows ask = dllm_pack(s, DLLM_SET_OUT);
    dllm_enter(s, DLLM_STAGE_NORM);
    op->rmsnorm(&s->device, s->final[s->branch], dllm_range(0, ask.n), s->x, ask, m->weights.norm, m->config.norm_eps);
    if (s->hidden) keep_hidden(s, s->final[s->branch]);
    dllm_enter(s, DLLM_STAGE_CACHE);
    carry_rows(s, s->final[s->branch]);
    dllm_count_pass(s, travel.n, ask.n);
    dllm_enter(s, DLLM_STAGE_PLAN);
    for (int b = 0; b < s->n_sequences; b++) s->sequences[b].passes[s->branch] += s->plans[b].rows.n > 0;
    s->stats.forwards++;
}

void dllm_forward(dllm_session *s, bool guided)
{
    run_branch(s);
    if (!guided) return;
    blank_condition(s);
    dllm_plan_branch(s, 1);
    run_branch(s);
    s->branch = 0;
}

/* ---- the head ------------------------------------------------------------------------------------------------------------------------- */
static void head_of(dllm_session *s, int branch, dllm_rows at)
{
    const dllm_weights *w = &s->model->weights;
    dllm_enter(s, DLLM_STAGE_HEAD);
    s->device.ops->linear(&s->device, s->logits[branch], dllm_range(0, at.n), s->final[branch], at, w->head, (dllm_mat){ 0 });
    dllm_count_head(s, at.n, true);
    dllm_enter(s, DLLM_STAGE_PREDICT);
}

void dllm_head_predict(dllm_session *s, int64_t from, int32_t n)
{
    const dllm_rows at = { .idx = s->speaker + from, .n = n };
    dllm_enter(s, DLLM_STAGE_HEAD);
    s->device.ops->head_predict(&s->device, s->token + from, s->score + from, s->prob + from, s->final[0], at,
                                s->model->weights.head, &s->sampling, s->row_keys + from);
    dllm_count_head(s, n, false);
    dllm_enter(s, DLLM_STAGE_PREDICT);
}

/* Packed row whose state lies in row `at` of final. */
static int32_t packed_row(const dllm_session *s, int32_t at)
{
    if (at >= s->rows) return s->sequences[at - s->rows].first + s->sequences[at - s->rows].carried;
    int b = 0;
    for (; at >= s->sequences[b].ask.n; b++) at -= s->sequences[b].ask.n;
    return s->sequences[b].first + dllm_row(s->sequences[b].ask, at);
}

/* Where the residual has what rows of final were moved by. */
static dllm_rows residual_rows(dllm_session *s, dllm_rows at)
{
    dllm_make_room(s);
    int32_t *rows = dllm_room(s, at.n);
    for (int32_t i = 0; i < at.n; i++) rows[i] = packed_row(s, dllm_row(at, i));
    return (dllm_rows){ .idx = rows, .n = at.n };
}

void dllm_keep_residual(dllm_session *s)
{
    for (int32_t from = 0; from < s->n_ask; from += DLLM_HEAD_ROWS) {
        const dllm_rows at = dllm_range(from, s->n_ask - from < DLLM_HEAD_ROWS ? (int32_t)s->n_ask - from : DLLM_HEAD_ROWS);
        head_of(s, 0, at);
        head_of(s, 1, at);
        dllm_count_logits(s, at.n, 3);
        s->device.ops->guide_keep(&s->device, s->residual, residual_rows(s, at), s->logits[0], s->logits[1]);
    }
}

void dllm_head(dllm_session *s, dllm_rows at)
{
    head_of(s, 0, at);
    if (s->branches == 1) return;
    dllm_count_logits(s, at.n, 3);
    if (!s->residual.data) {
        head_of(s, 1, at);
        s->device.ops->guide(&s->device, s->logits[0], s->logits[1], at.n, s->params.cfg_scale);
        return;
    }
    s->device.ops->guide_again(&s->device, s->logits[0], s->residual, residual_rows(s, at), s->params.cfg_scale);
}
