/* dLLM-Cache (arXiv 2506.06295): K, V, attention and feed-forward outputs of every row are kept. The prompt is refreshed every Kp passes,
 * the answer every Kr; in between, the share rho of the answer's rows whose values turned most is recomputed. Layer 0 is always fresh.
 * Prompt rows that are not refreshed do not travel, which is exact: nobody reads their residual stream. Dream's last prompt row does,
 * because the first answer token's logits are asked of it: above layer 0 it is summed from what is kept. */
#include "session.h"

enum { PROMPT_INTERVAL, ANSWER_INTERVAL, RATIO };

typedef struct {
    bool prompt_due, answer_due; /* in this pass, above layer 0 */
    int32_t first;               /* row of the answer, or of the first mask in the prompt: rows before it never change */
    double ratio;
} phase;

static phase phase_of(const dllm_session *s, const dllm_sequence *q)
{
    const double *o = s->params.options;
    const int32_t t = q->passes[s->branch];
    return (phase){ t % (int32_t)o[PROMPT_INTERVAL] == 0, t % (int32_t)o[ANSWER_INTERVAL] == 0, q->fixed, o[RATIO] };
}

static int32_t slots(const dllm_session *s, const dllm_sequence *q) { return q->len; }

static void plan(dllm_session *s, dllm_sequence *q, dllm_plan *p)
{
    const phase now = phase_of(s, q);
    const int32_t speaker = s->model->config.shift_logits && now.first > 0 ? now.first - 1 : now.first;
    const int32_t from = now.prompt_due ? 0 : speaker;
    p->rows = p->changed = dllm_range(from, q->len - from);
    p->n_keys = q->len;
    p->store = true;
}

static void choose(dllm_session *s, dllm_sequence *q, dllm_layer_rows *r)
{
    const phase now = phase_of(s, q);
    const bool whole_prompt = now.prompt_due || s->layer == 0, whole_answer = now.answer_due || s->layer == 0;
    const int32_t first = whole_prompt ? s->plans[q->index].rows.first : now.first;
    const dllm_rows prompt = dllm_range(first, now.first - first), both = dllm_range(first, q->len - first);
    r->v = r->norm = whole_answer || now.ratio > 0 ? both : prompt;
    r->k = r->q = r->exact = r->out = r->ffn = whole_answer ? both : prompt;
    if (!whole_answer && now.ratio > 0) { /* V-verify */
        r->among = dllm_range(now.first, q->len - now.first);
        r->moved = (int32_t)((double)r->among.n * now.ratio);
    }
    dllm_watch_mode(s, q, (whole_answer ? 0 : 2) + (whole_prompt ? 0 : 1));
}

const dllm_strategy dllm_strategy_dllm_cache = {
    .name = "dllm-cache",
    .keeps = DLLM_KEEP_ATTN | DLLM_KEEP_FFN | DLLM_COMPARE_VALUES,
    .options = {
        { "prompt_interval_steps", "passes between refreshes of the prompt", 50, 1, 1 << 30 },
        { "gen_interval_steps", "passes between refreshes of the answer", 7, 1, 1 << 30 },
        { "transfer_ratio", "share of the answer recomputed in between", 0.25, 0, 1 },
    },
    .slots = slots,
    .plan = plan,
    .choose = choose,
};
