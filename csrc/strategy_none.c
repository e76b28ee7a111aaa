/* The uncached model: every row, every step; nothing is kept. */
#include "session.h"

static int32_t slots(const dllm_session *s, const dllm_sequence *q) { return 0; }

static void plan(dllm_session *s, dllm_sequence *q, dllm_plan *p)
{
    p->rows = p->changed = dllm_range(0, q->len);
    p->n_keys = q->len;
}

const dllm_strategy dllm_strategy_none = { .name = "none", .slots = slots, .plan = plan };
