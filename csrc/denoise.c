/* denoise.c: one step of the reverse process, x_t -> x_s: the pass, how sure the model is, what to reveal, and on to the next step. */
#include <math.h>
#include <string.h>

#include "rng.h"
#include "session.h"

static bool free_running(const dllm_params *p) { return p->threshold > -INFINITY || p->factor > 0; }

static int32_t count_masked(const dllm_session *s, const dllm_sequence *q, int32_t lo, int32_t hi)
{
    int32_t n = 0;
    for (int32_t r = lo; r < hi; r++) n += dllm_masked(s, q, r);
    return n;
}

void dllm_open_block(dllm_session *s, dllm_sequence *q)
{
    const int32_t block_len = dllm_block_len(&s->params);
    q->lo = q->prompt + q->block * block_len;
    q->hi = q->lo + block_len < q->len ? q->lo + block_len : q->len;
    q->block_step = 0;
    q->masks = count_masked(s, q, q->lo, q->hi);
}

/* Guidance is asked at every interval and in the first five steps; in between what it added last is kept. */
static bool guidance_due(const dllm_session *s)
{
    enum { WARM_UP = 5 };
    const uint64_t step = s->stats.steps;
    return s->branches > 1 && (step < WARM_UP || step % (uint64_t)s->params.cfg_interval == 0);
}

/* On a device it may be yet to begin. */
static int ask_for_pass(dllm_session *s)
{
    FAIL_IF(s->forwarded, DLLM_E_VALUE, "forward was called twice: decide comes between");
    dllm_begin(s, DLLM_STAGE_PLAN);
    const bool guided = guidance_due(s);
    TRY(dllm_ask(s));
    /* An uncached pass that nobody reads would leave no trace. */
    if (s->n_ask > 0 || dllm_keeps(s)) dllm_forward(s, guided);
    if (guided && s->residual.data) dllm_keep_residual(s);
    s->forwarded = true;
    return 0;
}

int dllm_session_forward(dllm_session *s)
{
    TRY(ask_for_pass(s));
    const int status = dllm_check_device(s);
    s->forwarded = status >= 0;
    if (status >= 0) dllm_finish(s);
    return status;
}

/* ---- after it: tokens and scores --------------------------------------------------------------------------------------------------- */
/* Token draws need noise only at a temperature. LLaDA's official loop draws for every row, Dream's for the masked ones. */
static int token_noise(dllm_session *s, int64_t drawn, const void **noise)
{
    *noise = NULL;
    if (!s->params.noise.draw || s->params.temperature == 0) return 0;
    const int64_t vocab = s->model->config.vocab;
    if (s->params.gumbel) return dllm_draw_noise(s, DLLM_DRAW_TOKEN_UNIFORM, 3, s->n_sequences, dllm_longest(s), vocab, noise);
    return dllm_draw_noise(s, DLLM_DRAW_EXPONENTIAL, 2, drawn, vocab, 0, noise);
}

/* Lines up the candidates that are drawn; returns how many. */
static int64_t line_up(dllm_session *s)
{
    const int64_t len = dllm_longest(s);
    int32_t drawn = 0;
    for (int64_t i = 0, b = 0; i < s->n_candidates; i++) {
        while (s->candidates[i] >= s->sequences[b].first + s->sequences[b].len) b++;
        const dllm_sequence *q = &s->sequences[b];
        if (s->source[i] == -1) continue;
        s->drawn[drawn] = (int32_t)i;
        s->speaker[drawn] = s->source[i];
        s->noise_row[drawn] = s->params.gumbel ? (int32_t)(b * len) + s->candidates[i] - q->first : drawn;
        s->row_keys[drawn++] = dllm_key_of(s, q, s->candidates[i]);
    }
    return drawn;
}

/* The caller's rows of drawn candidates [from, from + n). */
static void take_logits(dllm_session *s, dllm_mat given, int64_t from, int32_t n)
{
    dllm_device *d = &s->device;
    if (dllm_device_place(d, given.data) >= 0) {
        dllm_make_room(s);
        int32_t *rows = dllm_room(s, n);
        for (int32_t i = 0; i < n; i++) rows[i] = s->candidates[s->drawn[from + i]];
        d->ops->copy(d, s->logits[0], dllm_range(0, n), given, (dllm_rows){ .idx = rows, .n = n });
        return;
    }
    for (int32_t i = 0; i < n; i++) dllm_upload(s, s->logits[0], i, dllm_at(given, s->candidates[s->drawn[from + i]]), 1);
}

/* One round of the head: drawn candidates [from, from + n). */
static void draw_tokens(dllm_session *s, int64_t from, int32_t n, dllm_mat given, const void *noise)
{
    if (!given.data && dllm_decodes_fused(s)) {
        dllm_head_predict(s, from, n);
        return;
    }
    if (given.data) take_logits(s, given, from, n);
    if (!given.data) dllm_head(s, (dllm_rows){ .idx = s->speaker + from, .n = n });
    dllm_count_logits(s, n, 1);
    const void *numbers = dllm_lend_noise(s, noise, from, n);
    s->device.ops->predict(&s->device, s->token + from, s->score + from, s->prob + from, s->logits[0], n, &s->sampling,
                           s->row_keys + from, numbers, s->noise_row + from);
}

/* What was drawn goes from the line to the candidates' places, the last one first. */
static void spread_out(dllm_session *s, int64_t drawn)
{
    for (int64_t i = s->n_candidates; i-- > drawn;) {
        const bool mine = drawn > 0 && s->drawn[drawn - 1] == i;
        drawn -= mine;
        s->token[i] = mine ? s->token[drawn] : s->params.mask_id;
        s->score[i] = mine ? s->score[drawn] : NAN;
        s->prob[i] = mine ? s->prob[drawn] : NAN;
    }
}

static int predict(dllm_session *s, dllm_mat given)
{
    const int64_t drawn = line_up(s);
    const void *noise;
    TRY(token_noise(s, drawn, &noise));
    if (given.data) TRY(dllm_need_logits(s));
    for (int64_t at = 0; at < drawn; at += s->head_rows)
        draw_tokens(s, at, (int32_t)(drawn - at < s->head_rows ? drawn - at : s->head_rows), given, noise);
    TRY(dllm_check_device(s));
    spread_out(s, drawn);
    return 0;
}

/* "random" remasking with recorded numbers: [sequences, rows]. */
static int recorded_scores(dllm_session *s)
{
    if (s->params.score != DLLM_SCORE_RANDOM || !s->params.noise.draw) return 0;
    const void *noise;
    const int64_t len = dllm_longest(s);
    TRY(dllm_draw_noise(s, DLLM_DRAW_UNIFORM, 2, s->n_sequences, len, 0, &noise));
    for (int64_t i = 0, b = 0; i < s->n_candidates; i++) {
        while (s->candidates[i] >= s->sequences[b].first + s->sequences[b].len) b++;
        s->score[i] = ((const float *)noise)[b * len + s->candidates[i] - s->sequences[b].first];
    }
    return 0;
}

/* ---- how many, and which ------------------------------------------------------------------------------------------------------------- */
static int32_t at_most(int32_t a, int32_t b) { return a < b ? a : b; }

/* Candidates [first, first + n) of one sequence, by the schedule; threshold and factor are asked once the order is known. */
static int32_t scheduled(const dllm_session *s, const dllm_sequence *q, int32_t n)
{
    if (s->params.score == DLLM_SCORE_ORIGIN) return n;
    if (s->params.rule == DLLM_RULE_STEADY) return at_most(s->params.answer_len / s->params.steps, n);
    if (s->params.rule == DLLM_RULE_FIRST && q->block_step == 0) return n;
    if (s->params.rule != DLLM_RULE_QUOTA) return (int32_t)((float)n * dllm_share(s, q));
    const int32_t steps = dllm_block_steps(&s->params);
    const int32_t quota = q->masks / steps + (q->block_step < q->masks % steps);
    return at_most(quota, n);
}

/* What threshold and factor look at: the token's probability; under DyLLM's rule whatever it orders by. */
static float sureness(const dllm_session *s, int64_t i) { return s->params.rule == DLLM_RULE_STEADY ? s->score[i] : s->prob[i]; }

/* Sure enough by threshold or factor: at least one, so that every step gets on. Expects the order by sureness. */
static int32_t sure_enough(const dllm_session *s, int64_t first, int32_t n)
{
    const dllm_params *p = &s->params;
    int32_t sure = 0;
    while (sure < n) {
        const int64_t i = first + s->order[sure];
        const float limit = p->threshold > -INFINITY ? p->threshold : 1 - p->factor / (float)(sure + 2);
        if (sure > 0 && (sureness(s, i) < limit || (s->token[i] == p->mask_id && p->rule != DLLM_RULE_STEADY))) break;
        sure++;
    }
    return sure;
}

/* Scores as priorities; with alg_temp, rows are drawn with probability softmax(score / alg_temp): top of p / q, q ~ Exp(1). */
static void set_priorities(dllm_session *s, const dllm_sequence *q, int64_t first, int32_t n, const float *recorded)
{
    const dllm_params *p = &s->params;
    float *w = s->priority;
    float highest = -INFINITY;
    for (int32_t i = 0; i < n; i++) {
        w[i] = s->score[first + i];
        if (free_running(p))
            w[i] = s->token[first + i] == p->mask_id && p->rule != DLLM_RULE_STEADY ? -INFINITY : sureness(s, first + i);
        if (w[i] > highest) highest = w[i];
    }
    if (p->alg_temp == 0 || free_running(p)) return;
    double total = 0;
    for (int32_t i = 0; i < n; i++) total += (double)expf((w[i] - highest) / p->alg_temp);
    for (int32_t i = 0; i < n; i++) {
        const dllm_key key = dllm_key_of(s, q, s->candidates[first + i]);
        const float e = recorded ? recorded[s->candidates[first + i] - q->first] : dllm_exponential(&key, DLLM_USE_PLACE);
        w[i] = (float)((double)expf((w[i] - highest) / p->alg_temp) / total) / e;
    }
}

/* Does candidate a go before b? The lower row first among equals. */
static bool before(const float *priority, int32_t a, int32_t b)
{
    return priority[a] > priority[b] || (priority[a] == priority[b] && a < b);
}

static void swap(int32_t *order, int32_t i, int32_t j)
{
    const int32_t kept = order[i];
    order[i] = order[j];
    order[j] = kept;
}

/* Moves entry i of a heap down to where it belongs. */
static void sink(const float *priority, int32_t *heap, int32_t n, int32_t i)
{
    const int32_t moved = heap[i];
    for (int32_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(priority, heap[child + 1], heap[child])) child++;
        if (before(priority, moved, heap[child])) break;
        heap[i] = heap[child];
    }
    heap[i] = moved;
}

/* order[0 .. wanted) = the candidates of highest priority, surest first: a heap gives them up one by one to the places behind it, so
 * that thousands, all of them wanted, cost little more than the few that usually are. */
static void sort_surest(dllm_session *s, int32_t n, int32_t wanted)
{
    int32_t *order = s->order;
    for (int32_t i = 0; i < n; i++) order[i] = i;
    if (wanted == 0) return;
    for (int32_t i = n / 2 - 1; i >= 0; i--) sink(s->priority, order, n, i);
    for (int32_t left = n - 1; left >= n - wanted; left--) {
        swap(order, 0, left);
        sink(s->priority, order, left, 0);
    }
    for (int32_t i = 0; i < n / 2; i++) swap(order, i, n - 1 - i);
}

/* Rows that the next pass must see as changed: those written last, and filled masks of the prompt that no whole pass has seen yet. */
static void set_fresh(dllm_session *s, dllm_sequence *q, int64_t from)
{
    const bool whole = s->plans[q->index].rows.first == 0;
    const int32_t n = (int32_t)(s->n_revealed - from);
    int32_t *sorted = s->order, waiting = 0;
    if (n == 0) return;
    for (int32_t i = 0; i < n; i++) { /* insertion: few rows, in score order */
        const int32_t r = s->revealed[from + i] - q->first;
        int32_t j = i;
        for (; j > 0 && sorted[j - 1] > r; j--) sorted[j] = sorted[j - 1];
        sorted[j] = r;
    }
    while (!whole && waiting < q->fresh.n && q->fresh.idx[waiting] < q->prompt) waiting++;
    const dllm_rows all =
        dllm_join(q->room[DLLM_ROOM_SET], (dllm_rows){ .idx = q->fresh.idx, .n = waiting }, (dllm_rows){ .idx = sorted, .n = n });
    memcpy(q->room[DLLM_ROOM_FRESH], q->room[DLLM_ROOM_SET], (size_t)all.n * sizeof(int32_t));
    q->fresh = (dllm_rows){ .idx = q->room[DLLM_ROOM_FRESH], .n = all.n };
}

void dllm_ids_changed(dllm_session *s, dllm_sequence *q, const int32_t *ids)
{
    dllm_rows changed = { .idx = s->order };
    for (int32_t r = 0; r < q->len; r++) {
        if (ids[q->first + r] != s->ids[0][q->first + r]) s->order[changed.n++] = r;
    }
    const dllm_rows all = dllm_join(q->room[DLLM_ROOM_SET], q->fresh, changed);
    memcpy(q->room[DLLM_ROOM_FRESH], q->room[DLLM_ROOM_SET], (size_t)all.n * sizeof(int32_t));
    q->fresh = (dllm_rows){ .idx = q->room[DLLM_ROOM_FRESH], .n = all.n };
}

/* Writes tokens over masks. A predicted mask id reveals nothing, though it used up its place. Returns what was revealed. */
static int32_t reveal(dllm_session *s, dllm_sequence *q, int64_t first, int32_t wanted)
{
    const int64_t from = s->n_revealed;
    int32_t revealed = 0;
    for (int32_t k = 0; k < wanted; k++) {
        const int64_t i = first + s->order[k];
        if (s->source[i] == -1) continue; /* the origin rule's coin left it out */
        s->ids[0][s->candidates[i]] = s->token[i];
        s->revealed[s->n_revealed++] = s->candidates[i];
        revealed += s->token[i] != s->params.mask_id;
    }
    q->revealed += revealed;
    s->stats.tokens += (uint64_t)revealed;
    set_fresh(s, q, from);
    return revealed;
}

/* ---- on to the next step, block, or the end -------------------------------------------------------------------------------------------- */
/* Everything before the first EOS is fixed: the rest would be cut off anyway. */
static bool ended_early(dllm_session *s, const dllm_sequence *q)
{
    int32_t *ids = s->ids[0] + q->first;
    int32_t r = q->prompt;
    while (r < q->len && ids[r] != s->params.eos_id && !dllm_masked(s, q, r)) r++;
    if (r == q->len || ids[r] != s->params.eos_id) return false;
    for (; r < q->len; r++) {
        if (dllm_masked(s, q, r)) ids[r] = s->params.eos_id;
    }
    return true;
}

/* DyLLM's own end: the first EOS revealed now, surest first, if everything before it is fixed. What is masked stays so. */
static bool ended_at_eos(const dllm_session *s, const dllm_sequence *q, int64_t from)
{
    for (int64_t i = from; s->params.early_stop && i < s->n_revealed; i++) {
        if (s->ids[0][s->revealed[i]] == s->params.eos_id) return count_masked(s, q, 0, s->revealed[i] - q->first) == 0;
    }
    return false;
}

static void advance_steady(dllm_session *s, dllm_sequence *q, int32_t revealed, int64_t from)
{
    const int32_t block_len = dllm_block_len(&s->params), open = q->prompt + block_len * (q->revealed / block_len + 1);
    q->hi = open < q->len ? open : q->len;
    q->done = q->revealed >= s->params.answer_len || ended_at_eos(s, q, from) ||
              (free_running(&s->params) ? revealed == 0 : q->step == s->params.steps);
}

static void advance(dllm_session *s, dllm_sequence *q, int32_t revealed, int64_t from)
{
    q->step++;
    q->block_step++;
    if (s->params.rule == DLLM_RULE_STEADY) {
        advance_steady(s, q, revealed, from);
        return;
    }
    if (s->params.early_stop && ended_early(s, q)) {
        q->done = true;
        return;
    }
    const bool over = free_running(&s->params) ? revealed == 0 || count_masked(s, q, 0, q->hi) == 0
                                               : q->block_step == dllm_block_steps(&s->params);
    if (!over) return;
    q->block++;
    q->done = q->hi >= q->len;
    if (!q->done) dllm_open_block(s, q);
}

/* Reveals in one sequence what the rule allows, of its candidates [first, first + n). */
static int32_t decide_sequence(dllm_session *s, dllm_sequence *q, int64_t first, int32_t n, const float *recorded)
{
    int32_t wanted = free_running(&s->params) ? n : scheduled(s, q, n);
    set_priorities(s, q, first, n, recorded);
    if (s->params.score == DLLM_SCORE_ORIGIN) sort_surest(s, n, 0);
    else sort_surest(s, n, wanted);
    if (free_running(&s->params)) wanted = sure_enough(s, first, n);
    return reveal(s, q, first, wanted);
}

/* alg_temp's draws of places: one [sequences, rows] of recorded numbers, if this step reveals anything at all. */
static int place_noise(dllm_session *s, const void **noise)
{
    *noise = NULL;
    if (!s->params.noise.draw || s->params.alg_temp == 0 || s->params.score == DLLM_SCORE_ORIGIN || free_running(&s->params))
        return 0;
    int32_t most = 0;
    for (int64_t at = 0, b = 0; b < s->n_sequences; b++) {
        const dllm_sequence *q = &s->sequences[b];
        const int64_t from = at;
        while (at < s->n_candidates && s->candidates[at] < q->first + q->len) at++;
        const int32_t wanted = q->done ? 0 : scheduled(s, q, (int32_t)(at - from));
        if (wanted > most) most = wanted;
    }
    return most ? dllm_draw_noise(s, DLLM_DRAW_EXPONENTIAL, 2, s->n_sequences, dllm_longest(s), 0, noise) : 0;
}

static int unfinished(const dllm_session *s)
{
    int n = 0;
    for (int b = 0; b < s->n_sequences; b++) n += !s->sequences[b].done;
    return n;
}

/* Draws tokens, by the caller's logits if there are any, and reveals what the rule allows. */
static int decide(dllm_session *s, dllm_mat logits)
{
    dllm_enter(s, DLLM_STAGE_PREDICT);
    s->forwarded = false;
    s->n_revealed = 0;
    const void *noise;
    TRY(predict(s, logits));
    dllm_enter(s, DLLM_STAGE_DECIDE);
    TRY(recorded_scores(s));
    TRY(place_noise(s, &noise));
    const int64_t len = dllm_longest(s);
    for (int64_t at = 0, b = 0; b < s->n_sequences; b++) {
        dllm_sequence *q = &s->sequences[b];
        const int64_t from = at;
        while (at < s->n_candidates && s->candidates[at] < q->first + q->len) at++;
        if (q->done) continue;
        const float *recorded = noise ? (const float *)noise + b * len : NULL;
        const int64_t revealed_before = s->n_revealed;
        advance(s, q, decide_sequence(s, q, from, (int32_t)(at - from), recorded), revealed_before);
    }
    s->stats.steps++;
    dllm_finish(s);
    return unfinished(s);
}

int dllm_session_decide(dllm_session *s, dllm_mat logits)
{
    FAIL_IF(!s->forwarded && !logits.data, DLLM_E_VALUE, "decide without a forward, and without logits");
    FAIL_IF(logits.data && (logits.rows != s->rows || logits.cols != s->model->config.vocab || logits.dtype != DLLM_F32),
            DLLM_E_VALUE, "logits [%lld, %lld] in %s: [%lld, %d] in float32 expected", (long long)logits.rows,
            (long long)logits.cols, dllm_dtype_name(logits.dtype), (long long)s->rows, s->model->config.vocab);
    const int place = logits.data ? dllm_device_place(&s->device, logits.data) : -1;
    FAIL_IF(place >= 0 && place != s->device.index, DLLM_E_VALUE, "logits on GPU %d for a session on %s", place, s->device.name);
    dllm_begin(s, DLLM_STAGE_PLAN);
    if (!s->forwarded) TRY(dllm_ask(s));
    return decide(s, logits);
}

int dllm_session_step(dllm_session *s)
{
    if (unfinished(s) == 0) return 0;
    TRY(ask_for_pass(s));
    const int left = decide(s, (dllm_mat){ 0 });
    if (left < 0) dllm_abandon(s); /* kernels may still read what the host now changes */
    return left;
}

int dllm_session_run(dllm_session *s, bool (*progress)(void *arg, dllm_session *s), void *arg)
{
    int left = unfinished(s);
    while (left > 0) {
        left = dllm_session_step(s);
        if (left > 0 && progress && !progress(arg, s)) break;
    }
    return left;
}

/* ---- what the latest step saw and did ------------------------------------------------------------------------------------------------ */
int64_t dllm_session_candidates(const dllm_session *s, const int32_t **rows, const int32_t **tokens, const float **scores,
                                const float **probs)
{
    *rows = s->candidates;
    *tokens = s->token;
    *scores = s->score;
    *probs = s->prob;
    return s->n_candidates;
}

int64_t dllm_session_revealed(const dllm_session *s, const int32_t **rows)
{
    *rows = s->revealed;
    return s->n_revealed;
}
