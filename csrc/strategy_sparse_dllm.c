/* Sparse-dLLM (arXiv 2508.02558): the first two steps of a block run dense; at the second every layer keeps the K and V of the rows outside
 * the block that its queries weigh most; later steps run the block's rows alone, over kept and own keys. */
#include <math.h>

#include "session.h"

enum { KEEP_RATIO, KERNEL };

/* The product is rounded as the official code does it, in double: 0.58 * 50 keeps 28. */
static int32_t keep(const dllm_session *s, const dllm_sequence *q)
{
    return (int32_t)((double)(q->len - dllm_block_len(&s->params)) * s->params.options[KEEP_RATIO]);
}

static int check(const dllm_params *p, const dllm_config *c)
{
    const double kernel = p->options[KERNEL];
    FAIL_IF(kernel != floor(kernel) || (kernel > 0 && fmod(kernel, 2) != 1), DLLM_E_VALUE,
            "sparse-dllm: kernel_size %g is even: an odd number, or 0 for no pooling, expected", kernel);
    FAIL_IF(p->rule == DLLM_RULE_STEADY, DLLM_E_VALUE,
            "sparse-dllm keeps what one open block looks at: the dyllm rule may decode in two");
    return 0;
}

static int32_t slots(const dllm_session *s, const dllm_sequence *q) { return keep(s, q) + dllm_block_len(&s->params); }

static void plan(dllm_session *s, dllm_sequence *q, dllm_plan *p)
{
    const dllm_rows block = dllm_range(q->lo, q->hi - q->lo);
    if (q->block_step < 2) {
        p->rows = p->changed = dllm_range(0, q->len);
        p->n_keys = q->len;
        p->carry = q->lo - 1;
        if (q->block_step == 1) p->inspect = block;
        return;
    }
    p->rows = p->changed = block;
    p->n_keys = keep(s, q) + block.n;
    p->slot_shift = keep(s, q) - q->lo;
    p->store = true;
}

/* Where the block's first row lies among the exact rows, which hold the whole block. */
static int32_t place_of(dllm_rows exact, int32_t row)
{
    int32_t at = 0;
    while (dllm_row(exact, at) != row) at++;
    return at;
}

/* Running maximum over `kernel` neighbours on the line of candidates, where prefix and suffix touch. */
static void pool(float *out, const float *score, int32_t n, int32_t kernel)
{
    const int32_t half = kernel / 2;
    for (int32_t i = 0; i < n; i++) {
        out[i] = score[i];
        for (int32_t j = i - half < 0 ? 0 : i - half; j <= i + half && j < n; j++) out[i] = score[j] > out[i] ? score[j] : out[i];
    }
}

static void after_layer(dllm_session *s, dllm_sequence *q, dllm_rows exact, int32_t first_query)
{
    dllm_device *d = &s->device;
    const dllm_config *c = &s->model->config;
    if (q->block_step != 1) return;
    const int32_t block = q->hi - q->lo, others = q->len - block, passing = (int32_t)dllm_first_slot(s, q->index);
    const int32_t kept = (int32_t)((s->branch * c->layers + s->layer) * s->kept_slots) + q->slot;
    float *score = s->similarity, *pooled = s->space;
    d->ops->importance(d, score, s->q, dllm_range(first_query + place_of(exact, q->lo), block), s->keys,
                       dllm_range(passing, q->len), c->heads, c->kv_heads);
    dllm_wait(s);
    dllm_watch_seen(s, q, dllm_range(0, q->len), score);
    for (int32_t i = q->lo; i < others; i++) score[i] = score[i + block];
    pool(pooled, score, others, (int32_t)s->params.options[KERNEL]);
    int32_t *rows = dllm_room(s, keep(s, q));
    const int32_t n = dllm_highest(rows, pooled, others, keep(s, q), pooled + others);
    for (int32_t i = 0; i < n; i++) rows[i] += rows[i] < q->lo ? 0 : block;
    dllm_watch_chosen(s, q, (dllm_rows){ .idx = rows, .n = n });
    for (int32_t i = 0; i < n; i++) rows[i] += passing;
    d->ops->copy(d, s->keys, dllm_range(kept, n), s->keys, (dllm_rows){ .idx = rows, .n = n });
    d->ops->copy(d, s->values, dllm_range(kept, n), s->values, (dllm_rows){ .idx = rows, .n = n });
    dllm_count_rows(s, DLLM_STAGE_CACHE, (uint64_t)block, s->q.cols);
    dllm_count_rows(s, DLLM_STAGE_CACHE, (uint64_t)(q->len + 2 * 2 * n), s->keys.cols);
}

const dllm_strategy dllm_strategy_sparse_dllm = {
    .name = "sparse-dllm",
    .options = {
        { "keep_ratio", "share of the rows outside the block whose K and V are kept", 0.5, 0, 1 },
        { "kernel_size", "width of the max-pool over their scores; 0: none", 3, 0, 1 << 20 },
    },
    .check = check,
    .slots = slots,
    .plan = plan,
    .after_layer = after_layer,
};
