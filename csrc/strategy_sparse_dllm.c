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

/* The max-pool over scores runs on the line of candidates, where prefix and suffix touch. */
static void after_layer(dllm_session *s, dllm_sequence *q)
{
    dllm_device *d = &s->device;
    const dllm_config *c = &s->model->config;
    if (q->block_step != 1) return;
    const int32_t block = q->hi - q->lo, n = keep(s, q), passing = (int32_t)dllm_first_slot(s, q->index);
    const int32_t kept = (int32_t)(dllm_layer_index(s) * s->kept_slots) + q->slot;
    const dllm_rows chosen = { .idx = s->picked, .n = n }, from = { .idx = s->picked, .first = passing, .n = n };
    dllm_pick *pick = dllm_room_for(s, 1, sizeof *pick);
    *pick = (dllm_pick){ .n = q->len, .gap = q->lo, .n_gap = block, .pool = (int32_t)s->params.options[KERNEL], .take = n };
    d->ops->importance(d, s->similarity, s->q, dllm_range(q->first + q->lo, block), s->keys, dllm_range(passing, q->len), c->heads,
                       c->kv_heads);
    d->ops->pick(d, s->picked, s->similarity, pick, 1);
    dllm_watch_seen(s, q, dllm_range(0, q->len), s->similarity);
    dllm_watch_chosen(s, q, chosen);
    d->ops->copy(d, s->keys, dllm_range(kept, n), s->keys, from);
    d->ops->copy(d, s->values, dllm_range(kept, n), s->values, from);
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
