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

/* The rows before the answer that this layer recomputes. */
static dllm_rows prompt_rows(const dllm_session *s, const dllm_sequence *q, const phase *now)
{
    const int32_t travel = s->plans[q->index].rows.first;
    return dllm_range(travel, now->prompt_due || s->layer == 0 ? now->first - travel : 0);
}

static void choose(dllm_session *s, dllm_sequence *q, dllm_layer_rows *r)
{
    const phase now = phase_of(s, q);
    const bool whole_answer = now.answer_due || s->layer == 0;
    const dllm_rows prompt = prompt_rows(s, q, &now);
    const dllm_rows both = prompt.n ? dllm_range(prompt.first, q->len - prompt.first) : dllm_range(now.first, q->len - now.first);
    const dllm_rows due = whole_answer ? both : prompt;
    r->v = r->norm = whole_answer || now.ratio > 0 ? both : prompt;
    r->k = r->exact = r->out = r->ffn = due;
    dllm_watch_mode(s, q, (whole_answer ? 0 : 2) + (now.prompt_due || s->layer == 0 ? 0 : 1));
}

/* V-verify: the m answer rows whose values turned most since the previous pass. */
static void after_values(dllm_session *s, dllm_sequence *q, dllm_layer_rows *r, const float *similarity)
{
    const phase now = phase_of(s, q);
    if (now.answer_due || s->layer == 0 || now.ratio == 0) return;
    const dllm_rows prompt = prompt_rows(s, q, &now);
    const int32_t n = q->len - now.first;
    float *turned = s->space;
    for (int32_t i = 0; i < n; i++) turned[i] = -similarity[prompt.n + i];
    dllm_rows chosen = { .idx = q->pick[1] };
    chosen.n = dllm_highest(q->pick[1], turned, n, (int32_t)((double)n * now.ratio), turned + n);
    for (int32_t i = 0; i < chosen.n; i++) q->pick[1][i] += now.first;
    dllm_watch_chosen(s, q, chosen);
    dllm_watch_seen(s, q, dllm_range(now.first, n), similarity + prompt.n);
    r->k = r->exact = r->out = r->ffn = dllm_join(q->pick[0], prompt, chosen);
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
    .after_values = after_values,
};
