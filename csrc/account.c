/* account.c: what a session costs, stage by stage: time as it passes, operations and bytes from the row sets that a layer ended up
 * with. */
#include "session.h"

const char *dllm_stage_name(int stage)
{
    static const char *const names[DLLM_STAGES] = {
        "plan", "embed", "norm",   "v",    "k",   "q",     "rope", "attention", "o",
        "gate", "up",    "swiglu", "down", "add", "cache", "head", "predict",   "decide"
    };
    return stage >= 0 && stage < DLLM_STAGES ? names[stage] : NULL;
}

/* ---- time: one look at a clock a change of stage ------------------------------------------------------------------------------------ */
/* Ticks of the clock that costs least to look at. How long they are turns out when the call is over. */
static uint64_t ticks(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t now;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(now));
    return now;
#else
    return (uint64_t)(1e9 * dllm_seconds());
#endif
}

void dllm_begin(dllm_session *s, dllm_stage stage)
{
    s->clock = (dllm_clock){ .began = dllm_seconds(), .entered = ticks(), .stage = stage };
}

void dllm_enter(dllm_session *s, dllm_stage stage)
{
    dllm_clock *c = &s->clock;
    const uint64_t now = ticks();
    if (now > c->entered) c->ticks[c->stage] += now - c->entered; /* on another core it may be a little less */
    c->entered = now;
    c->stage = stage;
}

void dllm_finish(dllm_session *s)
{
    dllm_enter(s, s->clock.stage);
    const double seconds = dllm_seconds() - s->clock.began;
    uint64_t total = 0;
    for (int i = 0; i < DLLM_STAGES; i++) total += s->clock.ticks[i];
    for (int i = 0; i < DLLM_STAGES && total > 0; i++)
        s->stats.stages[i].seconds += seconds * (double)s->clock.ticks[i] / (double)total;
}

/* ---- operations and bytes --------------------------------------------------------------------------------------------------------------- */
static void count(dllm_session *s, dllm_stage stage, uint64_t flops, uint64_t bytes)
{
    s->stats.stages[stage].flops += flops;
    s->stats.stages[stage].bytes += bytes;
}

static uint64_t act_size(const dllm_session *s) { return dllm_dtype_size(s->model->act); }

static uint64_t bytes_of(dllm_mat m) { return m.data ? dllm_mat_bytes(m) : 0; }

void dllm_count_rows(dllm_session *s, dllm_stage stage, uint64_t n, int64_t width)
{
    count(s, stage, 0, n * (uint64_t)width * act_size(s));
}

/* What one layer computes, of all sequences. */
typedef struct {
    uint64_t v, k, q, out, ffn;
    uint64_t pairs;  /* query and key pairs that are scored */
    uint64_t summed; /* of these, pairs whose values are summed */
    uint64_t norm, travel;
    uint64_t keys, values; /* rows that attention reads of the one and of the other */
    uint64_t old;          /* contexts that the delta form starts from */
    uint64_t compared;     /* values that are compared with the kept ones */
} layer_work;

static uint64_t flops_of(const dllm_config *c, const layer_work *w)
{
    const uint64_t dim = (uint64_t)c->dim, wide = (uint64_t)(c->heads * c->head_dim), kv = (uint64_t)(c->kv_heads * c->head_dim);
    return 2 * dim * (kv * (w->v + w->k) + wide * (w->q + w->out)) + 2 * wide * (w->pairs + w->summed) +
           6 * dim * (uint64_t)c->ffn_dim * w->ffn;
}

/* n rows of `from` numbers times a matrix, to rows of `to`. */
static void count_product(dllm_session *s, dllm_stage stage, uint64_t n, dllm_mat w, dllm_mat bias, int64_t from, int64_t to)
{
    if (n == 0) return;
    count(s, stage, 2 * n * (uint64_t)(from * to), bytes_of(w) + bytes_of(bias));
    dllm_count_rows(s, stage, n, from + to);
}

static void count_norm(dllm_session *s, uint64_t n, dllm_mat w)
{
    if (n == 0) return;
    count(s, DLLM_STAGE_NORM, 0, bytes_of(w));
    dllm_count_rows(s, DLLM_STAGE_NORM, n, 2 * (int64_t)s->model->config.dim);
}

static void count_products(dllm_session *s, const dllm_layer *y, const layer_work *w)
{
    const dllm_config *c = &s->model->config;
    const dllm_mat none = { 0 };
    const int64_t dim = c->dim, wide = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    count_product(s, DLLM_STAGE_V, w->v, y->v, y->v_bias, dim, kv);
    count_product(s, DLLM_STAGE_K, w->k, y->k, y->k_bias, dim, kv);
    count_product(s, DLLM_STAGE_Q, w->q, y->q, y->q_bias, dim, wide);
    count_product(s, DLLM_STAGE_O, w->out, y->o, none, wide, dim);
    count_product(s, DLLM_STAGE_GATE, w->ffn, y->gate, none, dim, c->ffn_dim);
    count_product(s, DLLM_STAGE_UP, w->ffn, y->up, none, dim, c->ffn_dim);
    count_product(s, DLLM_STAGE_DOWN, w->ffn, y->down, none, c->ffn_dim, dim);
}

/* What is no product, and what is kept: of values that are compared both are read and both are written, since the kept place gets the
 * new ones and the new place how far they moved. */
static void count_others(dllm_session *s, const dllm_layer *y, const layer_work *w)
{
    const dllm_config *c = &s->model->config;
    const int64_t wide = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    count_norm(s, w->norm, y->attn_norm);
    count_norm(s, w->ffn, y->ffn_norm);
    dllm_count_rows(s, DLLM_STAGE_ROPE, w->q, 2 * wide);
    dllm_count_rows(s, DLLM_STAGE_ROPE, w->k, 2 * kv);
    count(s, DLLM_STAGE_ROPE, 0, (w->q + w->k) * (uint64_t)c->head_dim * sizeof(float)); /* cos and sin */
    count(s, DLLM_STAGE_ATTENTION, 2 * (uint64_t)wide * (w->pairs + w->summed), 0);
    dllm_count_rows(s, DLLM_STAGE_ATTENTION, 2 * w->q + w->old, wide);
    dllm_count_rows(s, DLLM_STAGE_ATTENTION, w->keys + w->values, kv);
    dllm_count_rows(s, DLLM_STAGE_SWIGLU, w->ffn, 3 * (int64_t)c->ffn_dim);
    dllm_count_rows(s, DLLM_STAGE_ADD, w->travel, 2 * 3 * (int64_t)c->dim);
    if (s->strategy->keeps & DLLM_COMPARE_VALUES) dllm_count_rows(s, DLLM_STAGE_CACHE, 4 * w->v + 2 * w->compared, kv);
}

static layer_work work_of(const dllm_layer_sizes *r)
{
    const uint64_t exact = (uint64_t)r->exact, q = (uint64_t)r->q, delta = q - exact, keys = (uint64_t)r->keys, v = (uint64_t)r->v;
    return (layer_work){ .v = v,
                         .k = (uint64_t)r->k,
                         .q = q,
                         .out = (uint64_t)r->out,
                         .ffn = (uint64_t)r->ffn,
                         .pairs = q * keys,
                         .summed = exact * keys + delta * v,
                         .norm = (uint64_t)r->norm,
                         .travel = (uint64_t)r->travel,
                         .keys = ((exact > 0) + (delta > 0)) * keys,
                         .values = (exact > 0) * keys + (delta > 0) * v,
                         .old = delta,
                         .compared = r->compares ? v : 0 };
}

static void add_work(layer_work *all, const layer_work *w)
{
    all->v += w->v;
    all->k += w->k;
    all->q += w->q;
    all->out += w->out;
    all->ffn += w->ffn;
    all->pairs += w->pairs;
    all->summed += w->summed;
    all->norm += w->norm;
    all->travel += w->travel;
    all->keys += w->keys;
    all->values += w->values;
    all->old += w->old;
    all->compared += w->compared;
}

void dllm_note_layer(dllm_session *s)
{
    dllm_layer_sizes *to = s->sizes + (int64_t)s->n_sizes++ * s->n_sequences;
    for (int b = 0; b < s->n_sequences; b++) {
        const dllm_layer_rows *r = &s->layer_rows[b];
        to[b] = (dllm_layer_sizes){ .v = r->v.n,
                                    .k = r->k.n,
                                    .q = r->q.n,
                                    .exact = r->exact.n,
                                    .out = r->out.n,
                                    .ffn = r->ffn.n,
                                    .norm = r->norm.n,
                                    .travel = r->travel.n,
                                    .keys = s->plans[b].n_keys,
                                    .finished = s->plans[b].rows.n == 0,
                                    .compares = r->among.n > 0,
                                    .follows = s->follows,
                                    .asks = s->asks };
    }
}

/* Rows that kernels chose are known by now. */
static void complete(const dllm_session *s, int64_t at, dllm_layer_sizes *r)
{
    if (r->asks) r->ffn = s->told[at][0];
    if (!r->follows) return;
    r->v = r->k = s->told[at - s->n_sequences][0];
    r->exact = s->told[at - s->n_sequences][1];
}

static void count_layer(dllm_session *s, int i)
{
    const dllm_config *c = &s->model->config;
    const dllm_layer *weights = &s->model->weights.layers[i % c->layers];
    const bool last = i % c->layers == c->layers - 1;
    dllm_stats *st = &s->stats;
    layer_work all = { 0 };
    for (int b = 0; b < s->n_sequences; b++) {
        const dllm_sequence *q = &s->sequences[b];
        const int64_t at = (int64_t)i * s->n_sequences + b;
        dllm_layer_sizes *r = &s->sizes[at];
        if (r->finished) continue;
        complete(s, at, r);
        const layer_work w = work_of(r);
        const uint64_t len = (uint64_t)q->len, wanted = last ? (uint64_t)q->ask.n : len;
        const layer_work uncached = { len, len, wanted, wanted, wanted, wanted * len, wanted * len };
        add_work(&all, &w);
        st->flops_uncached += flops_of(c, &uncached);
    }
    st->rows_v += all.v;
    st->rows_k += all.k;
    st->rows_q += all.q;
    st->rows_out += all.out;
    st->rows_ffn += all.ffn;
    st->flops += flops_of(c, &all);
    count_products(s, weights, &all);
    count_others(s, weights, &all);
}

void dllm_count_layers(dllm_session *s)
{
    while (s->n_counted < s->n_sizes) count_layer(s, s->n_counted++);
}

void dllm_count_pass(dllm_session *s, int64_t embedded, int64_t asked)
{
    const dllm_weights *w = &s->model->weights;
    const uint64_t row = (uint64_t)s->model->config.dim * dllm_dtype_size(w->embed.dtype) + sizeof(int32_t);
    count(s, DLLM_STAGE_EMBED, 0, (uint64_t)embedded * row);
    dllm_count_rows(s, DLLM_STAGE_EMBED, (uint64_t)embedded, s->model->config.dim);
    count_norm(s, (uint64_t)asked, w->norm);
}

void dllm_count_head(dllm_session *s, int64_t rows, bool to_memory)
{
    const dllm_mat head = s->model->weights.head;
    const uint64_t n = (uint64_t)rows, cost = 2 * n * (uint64_t)(head.rows * head.cols);
    s->stats.rows_head += n;
    s->stats.flops += cost;
    s->stats.flops_uncached += cost;
    count(s, DLLM_STAGE_HEAD, cost, bytes_of(head) + (to_memory ? n * (uint64_t)head.rows * sizeof(float) : 0));
    dllm_count_rows(s, DLLM_STAGE_HEAD, n, head.cols);
}

void dllm_count_logits(dllm_session *s, int64_t rows, int times)
{
    count(s, DLLM_STAGE_PREDICT, 0, (uint64_t)(rows * times * s->model->config.vocab) * sizeof(float));
}
