/* ask.c: before a pass: which masks may be revealed, and whose logits speak for them. The shift of Dream (a row's logits are computed at the
 * row before) lives here: asked rows and computed rows are different sets. */
#include <string.h>

#include "rng.h"
#include "session.h"

bool dllm_masked(const dllm_session *s, const dllm_sequence *q, int32_t r) { return s->ids[0][q->first + r] == s->params.mask_id; }

/* ---- randomness: recorded numbers if the caller has them, else Philox ------------------------------------------------------------- */
dllm_key dllm_key_of(const dllm_session *s, const dllm_sequence *q, int32_t packed_row)
{
    return (dllm_key){ q->seed, q->stream, (uint32_t)q->step, (uint32_t)(packed_row - q->first) };
}

int dllm_draw_noise(dllm_session *s, dllm_draw kind, int ndim, int64_t a, int64_t b, int64_t c, const void **out)
{
    const int64_t shape[] = { a, b, c };
    *out = s->params.noise.draw(s->params.noise.arg, kind, shape, ndim);
    FAIL_IF(!*out, DLLM_E_CALLBACK, "the noise source gave no numbers");
    return 0;
}

int64_t dllm_longest(const dllm_session *s)
{
    int64_t len = 0;
    for (int b = 0; b < s->n_sequences; b++) len = s->sequences[b].len > len ? s->sequences[b].len : len;
    return len;
}

/* ---- before the forward: candidates, and the rows that speak for them --------------------------------------------------------------- */
/* 1 - t_s / t_t: the share of the masks that this step should reveal. */
float dllm_share(const dllm_session *s, const dllm_sequence *q)
{
    const int32_t i = q->block_step;
    return i < dllm_block_steps(&s->params) - 1 ? 1 - s->times[i + 1] / s->times[i] : 1;
}

/* The row whose logits are row r's: Dream's are computed at the row before. */
static int32_t speaker_of(const dllm_session *s, int32_t r) { return s->model->config.shift_logits && r > 0 ? r - 1 : r; }

static bool travels(const dllm_plan *p, int32_t r) { return r >= p->rows.first && r < p->rows.first + p->rows.n; }

static bool has_speaker(const dllm_session *s, const dllm_sequence *q, int32_t r)
{
    const dllm_plan *p = &s->plans[q->index];
    const int32_t speaker = speaker_of(s, r);
    if (travels(p, speaker)) return true;
    return travels(p, r) && (s->params.shift != DLLM_SHIFT_CARRY || q->carried == speaker);
}

/* Rows that may be revealed now: masks below the open end that somebody speaks for. */
static void choose_candidates(dllm_session *s)
{
    const dllm_rule rule = s->params.rule;
    s->n_candidates = 0;
    for (int b = 0; b < s->n_sequences; b++) {
        const dllm_sequence *q = &s->sequences[b];
        const int32_t from = rule == DLLM_RULE_FIRST ? q->lo : 0,
                      to = rule == DLLM_RULE_FIRST && q->block_step == 0 ? q->lo + 1 : q->hi;
        int32_t most = rule == DLLM_RULE_STEADY ? dllm_block_len(&s->params) : q->len;
        for (int32_t r = from; !q->done && r < to && most > 0; r++) {
            if (!dllm_masked(s, q, r) || !has_speaker(s, q, r)) continue;
            s->candidates[s->n_candidates++] = q->first + r;
            most--;
        }
    }
}

/* The origin rule: every mask is revealed by its own coin. Only those need the head. */
static void flip_coins(dllm_session *s, const dllm_sequence *q, int64_t from, int64_t to, const float *recorded)
{
    for (int64_t i = from; i < to; i++) {
        const dllm_key key = dllm_key_of(s, q, s->candidates[i]);
        const float u = recorded ? recorded[i] : dllm_uniform(&key, DLLM_USE_COIN);
        s->source[i] = u < dllm_share(s, q) ? 0 : -1;
    }
}

/* Does a later sequence lean on the last row of this one, as DyLLM's own code does? */
static bool lends(const dllm_session *s, const dllm_sequence *q)
{
    int b = q->index + 1;
    while (b < s->n_sequences && s->plans[b].rows.n == 0) b++;
    return s->params.shift == DLLM_SHIFT_FLAT && s->model->config.shift_logits && b < s->n_sequences && s->plans[b].rows.first > 0;
}

/* Will a later pass read the state of the row that the plan would carry? Only if the row after it is a mask, and asks the row before
 * as it was. */
static bool carries(const dllm_session *s, const dllm_sequence *q)
{
    const int32_t carry = s->plans[q->index].carry;
    return s->model->config.shift_logits && s->params.shift == DLLM_SHIFT_CARRY && carry >= 0 && carry + 1 < q->len &&
           dllm_masked(s, q, carry + 1);
}

/* Marks the rows of one sequence whose logits somebody wants: its candidates [from, to), guidance, later passes, a neighbour. */
static void mark_wanted(dllm_session *s, const dllm_sequence *q, int64_t from, int64_t to)
{
    const dllm_plan *p = &s->plans[q->index];
    int32_t *wanted = q->room[DLLM_ROOM_SET];
    memset(wanted, 0, (size_t)q->len * sizeof *wanted);
    for (int64_t i = from; i < to; i++) {
        const int32_t r = s->candidates[i] - q->first, speaker = speaker_of(s, r);
        if (s->source[i] >= 0) wanted[travels(p, speaker) ? speaker : r] = 1;
    }
    for (int32_t r = 0; s->residual.data && r < q->len; r++) {
        if (dllm_masked(s, q, r)) wanted[speaker_of(s, r)] = 1;
    }
    if (carries(s, q)) wanted[p->carry] = 1;
    if (p->rows.n > 0 && lends(s, q)) wanted[p->rows.first + p->rows.n - 1] = 1;
}

/* Asks the marked rows that travel; where[r] says which row of final will hold row r. */
static void ask_wanted(dllm_session *s, dllm_sequence *q)
{
    const int32_t *wanted = q->room[DLLM_ROOM_SET];
    int32_t *where = q->room[DLLM_ROOM_PLACES], *mine = s->ask + s->n_ask;
    q->ask = (dllm_rows){ .idx = mine };
    for (int32_t r = 0; r < q->len; r++) {
        where[r] = -1;
        if (!wanted[r] || !travels(&s->plans[q->index], r)) continue;
        where[r] = (int32_t)s->n_ask++;
        mine[q->ask.n++] = r;
    }
}

/* The row of final that speaks for row r. If the row before does not travel: as it was, or as the methods' own code has it. */
static int32_t source_of(const dllm_session *s, const dllm_sequence *q, int32_t r)
{
    const int32_t *where = q->room[DLLM_ROOM_PLACES];
    const int32_t speaker = speaker_of(s, r);
    if (travels(&s->plans[q->index], speaker)) return where[speaker];
    if (s->params.shift == DLLM_SHIFT_CARRY) return (int32_t)s->rows + q->index;
    return s->params.shift == DLLM_SHIFT_FLAT && where[r] > 0 ? where[r] - 1
                                                              : where[r]; /* final is packed: the neighbour's last row */
}

static int choose_asked(dllm_session *s)
{
    const bool origin = s->params.score == DLLM_SCORE_ORIGIN;
    const void *coins = NULL;
    if (origin && s->params.noise.draw) TRY(dllm_draw_noise(s, DLLM_DRAW_UNIFORM, 1, s->n_candidates, 0, 0, &coins));
    s->n_ask = 0;
    int64_t at = 0;
    for (int b = 0; b < s->n_sequences; b++) {
        dllm_sequence *q = &s->sequences[b];
        const int64_t from = at;
        for (; at < s->n_candidates && s->candidates[at] < q->first + q->len; at++) s->source[at] = 0;
        if (origin) flip_coins(s, q, from, at, coins);
        mark_wanted(s, q, from, at);
        ask_wanted(s, q);
        for (int64_t i = from; i < at; i++) {
            if (s->source[i] >= 0) s->source[i] = source_of(s, q, s->candidates[i] - q->first);
        }
    }
    return 0;
}

int dllm_ask(dllm_session *s)
{
    dllm_watch_clear(s);
    dllm_plan_branch(s, 0);
    choose_candidates(s);
    return choose_asked(s);
}
