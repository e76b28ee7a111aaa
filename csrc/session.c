/* session.c: opens a timeline and runs passes over it. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../kernels/threads.h"
#include "session.h"

/* Guidance mixes two rows of logits, filters and recorded numbers look at whole ones. */
bool dllm_decodes_fused(const dllm_session *s)
{
    return s->device.ops->head_predict && s->branches == 1 && !dllm_filters(&s->sampling, s->model->config.vocab) &&
           (!s->params.noise.draw || s->params.temperature == 0);
}

/* ---- opening -------------------------------------------------------------------------------------------------------------------- */
static int check_prompts(const dllm_model *m, const dllm_params *p, const dllm_prompt *prompts, int n)
{
    FAIL_IF(n < 1, DLLM_E_VALUE, "%d prompts: at least one expected", n);
    int64_t rows = 0;
    for (int b = 0; b < n; b++) {
        FAIL_IF(prompts[b].n < 0, DLLM_E_VALUE, "prompt %d has %d ids", b, prompts[b].n);
        FAIL_IF(prompts[b].condition < 0 || prompts[b].condition > prompts[b].n, DLLM_E_VALUE, "prompt %d: condition %d of %d ids",
                b, prompts[b].condition, prompts[b].n);
        FAIL_IF((int64_t)prompts[b].n + p->answer_len == 0, DLLM_E_VALUE, "prompt %d is empty and answer_len is 0", b);
        for (int32_t i = 0; i < prompts[b].n; i++) {
            FAIL_IF(prompts[b].ids[i] < 0 || prompts[b].ids[i] >= m->config.vocab, DLLM_E_VALUE,
                    "prompt %d: id %d at position %d is outside the vocabulary of %d", b, prompts[b].ids[i], i, m->config.vocab);
        }
        rows += (int64_t)prompts[b].n + p->answer_len;
    }
    const int64_t most = INT32_MAX / (DLLM_BRANCHES * (int64_t)(m->config.layers + 1));
    FAIL_IF(rows > most, DLLM_E_VALUE, "%lld rows in one batch: at most %lld", (long long)rows, (long long)most);
    return 0;
}

/* cos and sin as PyTorch's models compute them: in float32, and rounded to the model's dtype where it says so. */
void dllm_rope_row(float *cos_row, float *sin_row, int32_t position, int32_t head_dim, float theta)
{
    for (int32_t j = 0; j < head_dim / 2; j++) {
        const float inverse = 1.0f / powf(theta, (float)(2 * j) / (float)head_dim);
        const float angle = (float)position * inverse;
        cos_row[j] = cosf(angle);
        sin_row[j] = sinf(angle);
    }
}

/* Rows [first, first + n->len) of the tables of angles, on the host. */
static void fill_angles(const dllm_session *s, const dllm_sequence *q, const dllm_prompt *p, float *cos_rows, float *sin_rows)
{
    const dllm_config *c = &s->model->config;
    const int32_t half = c->head_dim / 2;
    for (int32_t r = 0, position = -1; r < q->len; r++) {
        position = r < p->n && p->positions ? p->positions[r] : position + 1;
        float *cos_row = cos_rows + (size_t)r * (size_t)half, *sin_row = sin_rows + (size_t)r * (size_t)half;
        dllm_rope_row(cos_row, sin_row, position, c->head_dim, c->rope_theta);
        for (int32_t j = 0; !c->rope_f32 && j < half; j++) {
            cos_row[j] = dllm_round(cos_row[j], s->model->act);
            sin_row[j] = dllm_round(sin_row[j], s->model->act);
        }
    }
}

static int set_angles(dllm_session *s, const dllm_prompt *prompts)
{
    const size_t numbers = (size_t)s->rows * (size_t)s->cos.cols;
    float *tables = malloc(2 * numbers * sizeof *tables + 1);
    FAIL_IF(!tables, DLLM_E_MEMORY, "session: out of memory for rotary angles: %zu bytes", 2 * numbers * sizeof *tables);
    for (int b = 0; b < s->n_sequences; b++) {
        float *mine = tables + (size_t)s->sequences[b].first * (size_t)s->cos.cols;
        fill_angles(s, &s->sequences[b], &prompts[b], mine, mine + numbers);
    }
    dllm_upload(s, s->cos, 0, tables, s->rows);
    dllm_upload(s, s->sin, 0, tables + numbers, s->rows);
    free(tables);
    return 0;
}

static void fill_sequence(dllm_session *s, int b, const dllm_prompt *p, int32_t first)
{
    dllm_sequence *q = &s->sequences[b];
    *q =
        (dllm_sequence){ .first = first, .len = p->n + s->params.answer_len, .prompt = p->n, .seed = p->seed, .stream = p->stream };
    q->index = b;
    q->condition = p->condition ? p->condition : p->n;
    q->carried = -1;
    while (q->fixed < p->n && p->ids[q->fixed] != s->params.mask_id) q->fixed++;
    for (int i = 0; i < DLLM_ROOMS; i++) q->room[i] = s->rooms + i * s->rows + first;
    for (int32_t r = 0; r < q->len; r++) s->ids[0][first + r] = r < p->n ? p->ids[r] : s->params.mask_id;
    q->done = s->params.answer_len == 0;
    if (!q->done) dllm_open_block(s, q);
}

static int open_session(dllm_session *s, const dllm_prompt *prompts)
{
    s->sequences = dllm_take_sequences(s);
    if (!s->sequences) return DLLM_E_MEMORY;
    for (int b = 0; b < s->n_sequences; b++) {
        const dllm_sequence shape = { .len = prompts[b].n + s->params.answer_len, .prompt = prompts[b].n };
        s->rows += shape.len;
        s->kept_slots += s->strategy->slots(s, &shape);
    }
    TRY(dllm_take_memory(s));
    dllm_times(s->times, dllm_block_steps(&s->params), s->params.eps);
    int32_t slot = 0;
    for (int32_t b = 0, first = 0; b < s->n_sequences; b++) {
        fill_sequence(s, b, &prompts[b], first);
        s->sequences[b].slot = slot;
        slot += s->strategy->slots(s, &s->sequences[b]);
        first += s->sequences[b].len;
    }
    TRY(set_angles(s, prompts));
    return dllm_check_device(s);
}

/* A queue of work of its own, before it takes anything. */
static int open_device(dllm_session *s)
{
    s->device = *s->model->device;
    const int status = s->device.ops->open(&s->device);
    return status < 0 ? dllm_fail(status, "session: %s", s->device.why) : 0;
}

int dllm_session_open(dllm_session **out, dllm_model *m, const dllm_params *p, const dllm_prompt *prompts, int n)
{
    *out = NULL;
    TRY(dllm_check_params(p, &m->config));
    TRY(check_prompts(m, p, prompts, n));
    dllm_threads_look();
    dllm_session *s = calloc(1, sizeof *s);
    FAIL_IF(!s, DLLM_E_MEMORY, "session: out of memory for %zu bytes", sizeof *s);
    s->model = m;
    s->params = *p;
    s->sampling = dllm_sampling_of(p);
    s->strategy = p->strategy ? p->strategy : &dllm_strategy_none;
    s->n_sequences = n;
    s->branches = p->cfg_scale > 0 ? 2 : 1;
    s->stats.weight_bytes = dllm_model_bytes(m);
    int status = open_device(s);
    if (status < 0) {
        free(s);
        return status;
    }
    status = open_session(s, prompts);
    if (status < 0) {
        dllm_session_close(s);
        return status;
    }
    *out = s;
    return 0;
}

void dllm_session_close(dllm_session *s)
{
    if (!s) return;
    dllm_give_memory(s);
    s->device.ops->close(&s->device);
    free(s);
}

dllm_device *dllm_session_device(dllm_session *s) { return &s->device; }

/* ---- looking at it --------------------------------------------------------------------------------------------------------------- */
int64_t dllm_session_rows(const dllm_session *s) { return s->rows; }

int64_t dllm_session_offset(const dllm_session *s, int b) { return b < s->n_sequences ? s->sequences[b].first : s->rows; }

void dllm_session_stats(const dllm_session *s, dllm_stats *out)
{
    *out = s->stats;
    out->kernels = s->device.kernels;
    out->launches = s->device.launches;
    for (int i = 0; i < DLLM_STAGES; i++) out->seconds += s->stats.stages[i].seconds;
}

int dllm_session_tokens(const dllm_session *s, int32_t *out, int64_t n)
{
    FAIL_IF(n != s->rows, DLLM_E_VALUE, "room for %lld ids, but the session has %lld rows", (long long)n, (long long)s->rows);
    memcpy(out, s->ids[0], (size_t)n * sizeof *out);
    return 0;
}

int dllm_session_set_tokens(dllm_session *s, const int32_t *ids, int64_t n)
{
    FAIL_IF(n != s->rows, DLLM_E_VALUE, "%lld ids for a session of %lld rows", (long long)n, (long long)s->rows);
    FAIL_IF(s->forwarded, DLLM_E_VALUE, "ids cannot change between forward and decide");
    for (int64_t i = 0; i < n; i++) {
        FAIL_IF(ids[i] < 0 || ids[i] >= s->model->config.vocab, DLLM_E_VALUE, "id %d at row %lld is outside the vocabulary of %d",
                ids[i], (long long)i, s->model->config.vocab);
    }
    for (int b = 0; s->strategy->keeps && b < s->n_sequences; b++) { /* drop_unread() kept nothing for these rows */
        const dllm_sequence *q = &s->sequences[b];
        for (int32_t r = 0; r < q->fixed; r++)
            FAIL_IF(ids[q->first + r] == s->params.mask_id, DLLM_E_VALUE,
                    "sequence %d: row %d of the prompt cannot become a mask under %s, which keeps nothing to fill it from", b, r,
                    s->strategy->name);
    }
    for (int b = 0; b < s->n_sequences; b++) dllm_ids_changed(s, &s->sequences[b], ids);
    memcpy(s->ids[0], ids, (size_t)n * sizeof *ids);
    return 0;
}

/* ---- passes without a step --------------------------------------------------------------------------------------------------------- */
double dllm_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Kernel failures surface here. The clock runs on. */
int dllm_pass(dllm_session *s)
{
    FAIL_IF(s->forwarded, DLLM_E_VALUE, "a pass between forward and decide would lose the forward");
    FAIL_IF(dllm_keeps(s) || s->residual.data, DLLM_E_VALUE,
            "logits of all rows take an uncached pass: open a session without a cache or cfg_interval");
    dllm_begin(s, DLLM_STAGE_PLAN);
    s->n_ask = 0;
    s->everyone = true;
    dllm_plan_branch(s, 0);
    for (int b = 0; b < s->n_sequences; b++) {
        s->sequences[b].ask = dllm_range(0, s->sequences[b].len);
        s->n_ask += s->sequences[b].len;
    }
    dllm_forward(s, s->branches > 1);
    s->everyone = false;
    return dllm_check_device(s);
}

bool dllm_keeps(const dllm_session *s) { return s->kept_slots > 0 || s->strategy->keeps != 0; }

int32_t dllm_speaker(const dllm_session *s, int32_t row, bool shifted)
{
    int b = 0;
    while (row >= s->sequences[b].first + s->sequences[b].len) b++;
    return row - (shifted && s->model->config.shift_logits && row > s->sequences[b].first);
}

int dllm_session_nll(dllm_session *s, const int32_t *rows, const int32_t *targets, int64_t n, float *out)
{
    for (int64_t i = 0; i < n; i++) {
        FAIL_IF(rows[i] < 0 || rows[i] >= s->rows, DLLM_E_VALUE, "row %d of %lld", rows[i], (long long)s->rows);
        FAIL_IF(targets[i] < 0 || targets[i] >= s->model->config.vocab, DLLM_E_VALUE,
                "target id %d is outside the vocabulary of %d", targets[i], s->model->config.vocab);
    }
    TRY(dllm_need_logits(s));
    TRY(dllm_pass(s));
    for (int64_t at = 0; at < n; at += DLLM_HEAD_ROWS) {
        const int32_t m = (int32_t)(n - at < DLLM_HEAD_ROWS ? n - at : DLLM_HEAD_ROWS);
        for (int32_t i = 0; i < m; i++) {
            s->candidates[i] = dllm_speaker(s, rows[at + i], true);
            s->token[i] = targets[at + i];
        }
        dllm_head(s, (dllm_rows){ .idx = s->candidates, .n = m });
        s->device.ops->nll(&s->device, s->score, s->logits[0], s->token, m);
        dllm_count_logits(s, m, 1);
        dllm_wait(s);
        memcpy(out + at, s->score, (size_t)m * sizeof *out);
    }
    s->n_candidates = 0;
    dllm_finish(s);
    return dllm_check_device(s);
}

int dllm_session_hidden(dllm_session *s, void *out, size_t bytes)
{
    const dllm_config *c = &s->model->config;
    const size_t need = (size_t)(c->layers + 1) * (size_t)s->rows * (size_t)c->dim * dllm_dtype_size(s->model->act);
    FAIL_IF(bytes != need, DLLM_E_VALUE, "room for %zu bytes, the hidden states take %zu", bytes, need);
    FAIL_IF(s->branches > 1, DLLM_E_VALUE, "hidden states under guidance: two passes, ask without cfg_scale");
    s->hidden = out;
    const int status = dllm_pass(s);
    if (status >= 0) dllm_finish(s);
    s->hidden = NULL;
    return status;
}
