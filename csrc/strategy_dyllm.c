/* DyLLM (arXiv 2603.08026): after some full steps only rows whose attention context turned are recomputed. Rows whose own input stood still
 * feel the others through the values that moved (the delta form); a row whose context's cosine with what it was stays above tau keeps
 * its feed-forward output. Three of four partial steps leave the prompt out.
 *
 * A context may stand still although the row's own token is new: where logits are shifted a row speaks for the next one before and after.
 * Such a row goes on with what the mask gave, unless keep_seed holds it among the salient ones. */
#include <math.h>

#include "session.h"

enum { TAU, FULL_STEPS, WHOLE_INTERVAL, REFRESH_INTERVAL, SEED_ALL, KEEP_SEED };
enum { ALWAYS_WHOLE = 4 }; /* the official code never leaves the prompt out before this step */
enum { MODE_FULL, MODE_WHOLE, MODE_ANSWER };

static int mode_of(const dllm_session *s, const dllm_sequence *q)
{
    const double *o = s->params.options;
    const int32_t t = q->passes[s->branch] + 1, full = o[FULL_STEPS] > 1 ? (int32_t)o[FULL_STEPS] : 1,
                  refresh = (int32_t)o[REFRESH_INTERVAL];
    if (t <= full || (refresh > 0 && (t - full) % refresh == 0)) return MODE_FULL;
    return t > ALWAYS_WHOLE && t % (int32_t)o[WHOLE_INTERVAL] != 0 ? MODE_ANSWER : MODE_WHOLE;
}

static int32_t slots(const dllm_session *s, const dllm_sequence *q) { return q->len; }

static void plan(dllm_session *s, dllm_sequence *q, dllm_plan *p)
{
    const int mode = mode_of(s, q);
    const int32_t from = mode == MODE_ANSWER ? q->prompt : 0;
    p->rows = dllm_range(from, q->len - from);
    p->changed = dllm_from(q->fresh, from); /* a filled mask of the prompt waits for a whole step */
    if (mode == MODE_FULL || s->params.options[SEED_ALL] != 0) p->changed = p->rows;
    p->n_keys = q->len;
    p->store = true;
    p->full = mode == MODE_FULL;
    p->carry = from ? -1 : q->prompt - 1;
}

static void after_context(dllm_session *s, dllm_sequence *q, dllm_due *due)
{
    due->limit = s->params.options[TAU];
    if (s->params.options[KEEP_SEED] != 0) due->held = q->fresh;
    dllm_watch_mode(s, q, mode_of(s, q));
}

const dllm_strategy dllm_strategy_dyllm = {
    .name = "dyllm",
    .keeps = DLLM_KEEP_CONTEXT | DLLM_KEEP_FFN | DLLM_COMPARE_VALUES,
    .options = {
        { "tau", "a row is salient if its context's cosine with the kept one is below", 0.99, -2, INFINITY },
        { "full_steps", "full steps at the start", 4, 0, 1 << 30 },
        { "whole_interval", "partial steps between two that include the prompt", 4, 1, 1 << 30 },
        { "refresh_interval", "steps between full ones after the first; 0: none", 0, 0, 1 << 30 },
        { "seed_all", "1: every row counts as changed in the first layer; with tau inf and whole_interval 1 the uncached model", 0, 0, 1 },
        { "keep_seed", "1: a row whose id is new is salient in every layer of the pass that first sees it", 0, 0, 1 },
    },
    .slots = slots,
    .plan = plan,
    .after_context = after_context,
};
