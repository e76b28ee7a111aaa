/* params.c: what one request wants: the families' defaults, and the only place that checks them. */
#include <math.h>
#include <string.h>

#include "session.h"

void dllm_params_init(dllm_params *p, const dllm_config *c)
{
    const bool dream = c->family == DLLM_DREAM;
    *p = (dllm_params){
        .answer_len = dream ? 20 : 128,
        .block_len = dream ? 0 : 128,
        .steps = dream ? 512 : 128,
        .rule = dream ? DLLM_RULE_TIMES : DLLM_RULE_QUOTA,
        .score = dream ? DLLM_SCORE_ORIGIN : DLLM_SCORE_PROB,
        .gumbel = !dream,
        .top_p = 1,
        .eps = 1e-3f,
        .cfg_interval = 1,
        .threshold = -INFINITY,
        .mask_id = c->mask_id,
        .eos_id = c->eos_id,
        .eot_id = c->eot_id,
    };
}

int32_t dllm_block_len(const dllm_params *p) { return p->block_len ? p->block_len : p->answer_len; }

int32_t dllm_block_steps(const dllm_params *p)
{
    if (p->answer_len == 0 || p->rule == DLLM_RULE_STEADY) return p->answer_len ? p->steps : 0;
    return p->steps / (p->answer_len / dllm_block_len(p));
}

/* Blocks and steps. Deciding by threshold or factor, a block takes as many steps as it needs. */
static int check_schedule(const dllm_params *p)
{
    FAIL_IF(p->answer_len < 0, DLLM_E_VALUE, "answer length %d: 0 or more expected", p->answer_len);
    if (p->answer_len == 0) return 0;
    FAIL_IF(p->rule == DLLM_RULE_STEADY && (p->steps < 1 || p->answer_len % p->steps != 0), DLLM_E_VALUE,
            "%d steps do not divide the answer length %d, which this rule needs", p->steps, p->answer_len);
    if (p->rule == DLLM_RULE_STEADY) return 0;
    FAIL_IF(p->block_len < 0 || p->answer_len % dllm_block_len(p) != 0, DLLM_E_VALUE,
            "block length %d does not divide the answer length %d", p->block_len, p->answer_len);
    const int32_t blocks = p->answer_len / dllm_block_len(p);
    FAIL_IF(p->steps < 1, DLLM_E_VALUE, "%d steps: at least 1 expected", p->steps);
    FAIL_IF(p->steps % blocks != 0, DLLM_E_VALUE, "%d steps do not divide evenly over %d blocks of %d", p->steps, blocks,
            dllm_block_len(p));
    return 0;
}

static int check_number(const char *name, float x, float lowest)
{
    FAIL_IF(!(x >= lowest) || isinf(x), DLLM_E_VALUE, "%s %g: a finite number of at least %g expected", name, (double)x,
            (double)lowest);
    return 0;
}

static int check_ids(const dllm_params *p, const dllm_config *c)
{
    FAIL_IF(p->mask_id >= c->vocab || p->eos_id >= c->vocab || p->eot_id >= c->vocab, DLLM_E_VALUE,
            "mask id %d, eos id %d, eot id %d: all must lie in the vocabulary of %d", p->mask_id, p->eos_id, p->eot_id, c->vocab);
    FAIL_IF(p->mask_id < 0 && (p->answer_len > 0 || p->cfg_scale > 0), DLLM_E_VALUE,
            "the checkpoint names no mask id: pass mask_id");
    FAIL_IF(p->eos_id < 0 && (p->early_stop || p->logits_eos_inf || p->confidence_eos_eot_inf), DLLM_E_VALUE,
            "the checkpoint names no eos id: pass eos_id");
    return 0;
}

static int check_strategy(const dllm_params *p, const dllm_config *c)
{
    const dllm_strategy *st = p->strategy;
    for (int i = 0; st && i < DLLM_MAX_OPTIONS && st->options[i].name; i++) {
        const dllm_option *o = &st->options[i];
        FAIL_IF(!(p->options[i] >= o->lowest && p->options[i] <= o->highest), DLLM_E_VALUE, "%s: %s %g: %g to %g expected",
                st->name, o->name, p->options[i], o->lowest, o->highest);
    }
    return st && st->check && p->answer_len > 0 ? st->check(p, c) : 0;
}

int dllm_params_use(dllm_params *p, const char *strategy)
{
    const dllm_strategy *st = dllm_strategy_find(strategy);
    FAIL_IF(!st, DLLM_E_VALUE, "no caching method '%s'", strategy);
    p->strategy = st;
    for (int i = 0; i < DLLM_MAX_OPTIONS; i++) p->options[i] = st->options[i].name ? st->options[i].fallback : 0;
    return 0;
}

int dllm_params_set(dllm_params *p, const char *option, double value)
{
    for (int i = 0; p->strategy && i < DLLM_MAX_OPTIONS && p->strategy->options[i].name; i++) {
        if (strcmp(p->strategy->options[i].name, option) != 0) continue;
        p->options[i] = value;
        return 0;
    }
    return dllm_fail(DLLM_E_VALUE, "%s has no option '%s'", p->strategy ? p->strategy->name : "no caching method", option);
}

int dllm_check_params(const dllm_params *p, const dllm_config *c)
{
    TRY(check_schedule(p));
    TRY(check_number("temperature", p->temperature, 0));
    TRY(check_number("top_p", p->top_p, 0));
    TRY(check_number("alg_temp", p->alg_temp, 0));
    TRY(check_number("cfg_scale", p->cfg_scale, 0));
    TRY(check_number("eps", p->eps, 0));
    FAIL_IF(p->eps > 1, DLLM_E_VALUE, "eps %g: at most 1 expected", (double)p->eps);
    FAIL_IF(p->top_k < 0, DLLM_E_VALUE, "top_k %d: 0 (off) or more expected", p->top_k);
    FAIL_IF(isnan(p->threshold) || isnan(p->factor), DLLM_E_VALUE, "threshold %g, factor %g: numbers expected",
            (double)p->threshold, (double)p->factor);
    FAIL_IF(p->threshold > -INFINITY && p->factor > 0, DLLM_E_VALUE, "threshold %g and factor %g exclude each other",
            (double)p->threshold, (double)p->factor);
    FAIL_IF(p->score == DLLM_SCORE_ORIGIN && p->answer_len > 0 &&
                (p->rule != DLLM_RULE_TIMES || p->threshold > -INFINITY || p->factor > 0),
            DLLM_E_VALUE,
            "alg \"origin\" flips a coin for every mask by the time schedule: it goes with no other rule, threshold or factor");
    FAIL_IF(p->cfg_interval < 1, DLLM_E_VALUE, "cfg_interval %d: at least 1 expected", p->cfg_interval);
    TRY(check_strategy(p, c));
    return check_ids(p, c);
}

static void add_id(int32_t *ids, int32_t *n, int32_t id)
{
    if (id >= 0) ids[(*n)++] = id;
}

/* LLaDA's flags as data. The official code masks EOS for the score only when the noisy logits are the clean ones: at temperature 0. */
dllm_sampling dllm_sampling_of(const dllm_params *p)
{
    dllm_sampling how = { .score = p->score,
                          .gumbel = p->gumbel,
                          .argmax = p->argmax,
                          .temperature = p->temperature,
                          .top_p = p->top_p,
                          .top_k = p->top_k };
    if (p->logits_eos_inf) add_id(how.banned, &how.n_banned, p->eos_id);
    if (p->confidence_eos_eot_inf) add_id(how.unscored, &how.n_unscored, p->eot_id);
    if (p->confidence_eos_eot_inf && p->temperature == 0) add_id(how.unscored, &how.n_unscored, p->eos_id);
    return how;
}

void dllm_times(float *out, int steps, float eps)
{
    const float each = steps > 0 ? (eps - 1) / (float)steps : 0;
    for (int i = 0; i <= steps; i++) {
        out[i] = i < (steps + 1) / 2 ? fmaf(each, (float)i, 1) : fmaf(-each, (float)(steps - i), eps);
    }
}

int dllm_predict(dllm_mat logits, const dllm_params *p, const void *noise, int32_t *token, float *score, float *prob)
{
    const dllm_ops *op = &dllm_ops_c;
    const dllm_config shape = { .vocab = (int32_t)logits.cols };
    FAIL_IF(logits.dtype != DLLM_F32, DLLM_E_TYPE, "logits in %s: float32 expected", dllm_dtype_name(logits.dtype));
    FAIL_IF(logits.cols < 1, DLLM_E_VALUE, "logits of %lld columns", (long long)logits.cols);
    dllm_params alone = *p;
    alone.answer_len = 0; /* no session, so no masks to name */
    TRY(check_ids(&alone, &shape));
    dllm_device d = { .ops = op, .threads = 1 };
    const dllm_sampling how = dllm_sampling_of(p);
    d.scratch = op->alloc(&d, op->scratch(&d, &shape, DLLM_F32, 1, 1));
    FAIL_IF(!d.scratch, DLLM_E_MEMORY, "predict: out of memory for %lld columns", (long long)logits.cols);
    for (int32_t i = 0; i < logits.rows; i++) {
        const dllm_key key = { .row = (uint32_t)i };
        dllm_mat row = logits;
        row.data = dllm_at(logits, i);
        op->predict(&d, token + i, score + i, prob + i, row, 1, &how, &key, noise, &i);
    }
    op->free(&d, d.scratch);
    return 0;
}
