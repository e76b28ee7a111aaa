/* memory.c: what a session holds, and where. Matrices lie in memory of the device, which the host reaches by copies alone, all of them made
 * in this file. Numbers that the host plans with or reads lie in memory that both sides address: what kernels read there stays as it is until the
 * host has waited for them, and what they wrote there is read after that. On a processor both kinds are the process's own
 * memory, kernels are done when their calls return, and nothing is copied. */
#include <stdlib.h>
#include <string.h>

#include "session.h"

enum { MAX_BLOCKS = 64 }; /* logits that come late among them */

/* ---- taking: everything when the session opens; a failure names what asked for how much ----------------------------------------- */
static void keep_block(dllm_session *s, void *p, bool shared, size_t bytes)
{
    s->blocks[s->n_blocks++] = (dllm_block){ p, shared };
    s->stats.scratch_bytes += bytes;
}

static void give_back(dllm_session *s)
{
    const dllm_ops *op = s->device.ops;
    for (int i = 0; i < s->n_blocks; i++) (s->blocks[i].shared ? op->free_shared : op->free)(&s->device, s->blocks[i].data);
}

static void *take_from(dllm_session *s, bool shared, const char *what, int64_t n, size_t size)
{
    const dllm_ops *op = s->device.ops;
    const size_t bytes = (size_t)n * size;
    if (s->n_blocks < 0) return NULL; /* an earlier one failed: its message stays */
    const bool fits = n >= 0 && (n == 0 || bytes / (size_t)n == size);
    void *p = fits ? (shared ? op->alloc_shared : op->alloc)(&s->device, bytes) : NULL;
    if (!p) {
        dllm_fail(DLLM_E_MEMORY, "session: out of memory for %s: %lld x %zu bytes, after %zu bytes were taken", what, (long long)n,
                  size, s->stats.scratch_bytes + s->stats.cache_bytes);
        give_back(s);
        s->n_blocks = -1;
        return NULL;
    }
    keep_block(s, p, shared, bytes);
    return p;
}

/* Numbers of host and device. */
static void *take(dllm_session *s, const char *what, int64_t n, size_t size) { return take_from(s, true, what, n, size); }

static dllm_mat take_mat(dllm_session *s, const char *what, int64_t rows, int64_t cols, dllm_dtype dtype)
{
    void *p = take_from(s, false, what, rows, (size_t)cols * dllm_dtype_size(dtype));
    return (dllm_mat){ .data = p, .rows = rows, .cols = cols, .stride = cols, .dtype = dtype };
}

/* Buffers of the forward pass. What a method does not keep has one matrix for all layers. */
static void take_network(dllm_session *s)
{
    const dllm_config *c = &s->model->config;
    const dllm_dtype act = s->model->act;
    const unsigned keeps = s->strategy->keeps;
    const int64_t rows = s->rows, wide = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim,
                  all = s->branches * c->layers;
    s->x = take_mat(s, "residual stream", rows, c->dim, act);
    s->h = take_mat(s, "normed rows", rows, c->dim, act);
    s->q = take_mat(s, "queries", rows, wide, act);
    s->context = take_mat(s, "attention", rows, wide, act);
    s->gate = take_mat(s, "gate", rows, c->ffn_dim, act);
    s->up = take_mat(s, "up", rows, c->ffn_dim, act);
    s->cos = take_mat(s, "rotary cosines", rows, c->head_dim / 2, DLLM_F32);
    s->sin = take_mat(s, "rotary sines", rows, c->head_dim / 2, DLLM_F32);
    s->keys = take_mat(s, "keys", all * s->kept_slots + rows, kv, act);
    s->values = take_mat(s, "values", all * s->kept_slots + rows, kv, act);
    s->attn = take_mat(s, "attention outputs", keeps & DLLM_KEEP_ATTN ? all * rows : rows, c->dim, act);
    s->ffn = keeps & DLLM_KEEP_FFN ? take_mat(s, "feed-forward outputs", all * rows, c->dim, act) : s->attn;
    if (keeps & DLLM_KEEP_CONTEXT) s->kept_context = take_mat(s, "kept contexts", all * rows, wide, act);
    if (keeps & DLLM_COMPARE_VALUES) s->new_values = take_mat(s, "new values", rows, kv, act);
    const int64_t outputs = !!(keeps & DLLM_KEEP_ATTN) + !!(keeps & DLLM_KEEP_FFN);
    const int64_t numbers = all * (2 * s->kept_slots * kv + rows * (outputs * c->dim + (keeps & DLLM_KEEP_CONTEXT ? wide : 0)));
    s->stats.cache_bytes = (size_t)numbers * dllm_dtype_size(act);
}

/* Recorded numbers of one token. */
static size_t noise_size(const dllm_session *s)
{
    return (size_t)s->model->config.vocab * (s->params.gumbel ? sizeof(double) : sizeof(float));
}

static void take_decoding(dllm_session *s)
{
    const dllm_config *c = &s->model->config;
    const int64_t rows = s->rows;
    const bool host = dllm_is_host(&s->device);
    s->head_rows = rows < DLLM_HEAD_ROWS ? rows : DLLM_HEAD_ROWS;
    for (int b = 0; b < s->branches; b++) {
        s->ids[b] = take(s, "ids", rows, sizeof(int32_t));
        s->final[b] = take_mat(s, "final rows", rows + s->n_sequences, c->dim, s->model->act);
        if (!dllm_decodes_fused(s)) s->logits[b] = take_mat(s, "logits", s->head_rows, c->vocab, DLLM_F32);
    }
    if (s->branches > 1 && s->params.cfg_interval > 1) s->residual = take_mat(s, "guidance residual", rows, c->vocab, DLLM_F32);
    if (!host) s->logits_row = take(s, "a row of logits", c->vocab, sizeof(float));
    if (!host && s->params.noise.draw && s->params.temperature != 0)
        s->noise = take_from(s, false, "recorded numbers", s->head_rows, noise_size(s));
    s->ask = take(s, "asked rows", rows, sizeof *s->ask);
    s->candidates = take(s, "candidates", rows, sizeof *s->candidates);
    s->source = take(s, "sources", rows, sizeof *s->source);
    s->drawn = take(s, "drawn candidates", rows, sizeof *s->drawn);
    s->speaker = take(s, "their sources", rows, sizeof *s->speaker);
    s->noise_row = take(s, "their recorded numbers", rows, sizeof *s->noise_row);
    s->row_keys = take(s, "random keys", rows, sizeof *s->row_keys);
    s->token = take(s, "tokens", rows, sizeof *s->token);
    s->score = take(s, "scores", rows, sizeof *s->score);
    s->prob = take(s, "probabilities", rows, sizeof *s->prob);
    s->priority = take(s, "priorities", rows, sizeof *s->priority);
    s->order = take(s, "order", rows, sizeof *s->order);
    s->revealed = take(s, "revealed rows", rows, sizeof *s->revealed);
}

enum { NUMBERS = sizeof(int32_t) };

/* What one layer asks of kernels, at most, in row numbers: its packed sets, held rows among them, and one of a hook; of every sequence a turn,
 * two picks, and spans with their columns, of exact and of delta attention. */
static int64_t layer_room(const dllm_session *s)
{
    enum {
        SETS = 13,
        OF_A_SEQUENCE = (sizeof(dllm_turn) + 2 * (sizeof(dllm_pick) + sizeof(dllm_span) + sizeof(dllm_columns))) / NUMBERS
    };
    return SETS * s->rows + OF_A_SEQUENCE * s->n_sequences;
}

/* The embedding, the layers, and the last norm with the head. */
static int64_t parts_of_branch(const dllm_session *s) { return s->model->config.layers + 2; }

static int64_t step_room(const dllm_session *s)
{
    return layer_room(s) * (dllm_is_host(&s->device) ? 1 : s->branches * parts_of_branch(s));
}

/* What compared contexts turn into. */
static void take_turned(dllm_session *s)
{
    const int64_t n = s->n_sequences;
    s->turned.rows = take_from(s, false, "turned rows", s->rows, sizeof *s->turned.rows);
    s->turned.rest = take_from(s, false, "other rows", s->rows, sizeof *s->turned.rest);
    s->turned.count = take_from(s, false, "counts of turned rows", 2, sizeof *s->turned.count);
    s->turned.exact = take_from(s, false, "spans of turned rows", n, sizeof *s->turned.exact);
    s->turned.delta = take_from(s, false, "spans of other rows", n, sizeof *s->turned.delta);
    s->turned.columns = take_from(s, false, "columns of turned rows", n, sizeof *s->turned.columns);
    s->told = take(s, "numbers of turned rows", s->branches * s->model->config.layers * n, sizeof *s->told);
}

int dllm_take_memory(dllm_session *s)
{
    const int64_t rows = s->rows, watched = s->params.watch ? s->branches * s->model->config.layers : 0;
    s->plans = take(s, "plans", s->n_sequences, sizeof *s->plans);
    s->layer_rows = take(s, "row sets", s->n_sequences, sizeof *s->layer_rows);
    s->times = take(s, "time schedule", dllm_block_steps(&s->params) + 1, sizeof *s->times);
    s->places = take(s, "row numbers", step_room(s), sizeof *s->places);
    s->rooms = take(s, "row sets of sequences", DLLM_ROOMS * rows, sizeof *s->rooms);
    s->sizes = take(s, "sizes of row sets", s->branches * s->model->config.layers * (int64_t)s->n_sequences, sizeof *s->sizes);
    s->picked = take_from(s, false, "picked rows", rows, sizeof *s->picked);
    s->similarity = take_from(s, s->params.watch, "similarities", rows, sizeof *s->similarity);
    if (s->strategy->after_context) take_turned(s);
    take_network(s);
    take_decoding(s);
    if (watched) {
        s->mode = take(s, "watched modes", watched * s->n_sequences, sizeof *s->mode);
        s->chosen = take(s, "watched rows", watched * rows, sizeof *s->chosen);
        s->seen = take(s, "watched values", watched * rows, sizeof *s->seen);
        s->chosen_seen = take(s, "watched row numbers", rows, sizeof *s->chosen_seen);
    }
    s->device.scratch_bytes = s->device.ops->scratch(&s->device, &s->model->config, s->model->act, rows, rows);
    s->device.scratch = take_from(s, false, "kernel scratch", 1, s->device.scratch_bytes);
    if (s->n_blocks < 0) return DLLM_E_MEMORY;
    s->stats.scratch_bytes -= s->stats.cache_bytes;
    return 0;
}

dllm_sequence *dllm_take_sequences(dllm_session *s)
{
    s->blocks = calloc(MAX_BLOCKS, sizeof *s->blocks);
    if (s->blocks) return take(s, "sequences", s->n_sequences, sizeof(dllm_sequence));
    dllm_fail(DLLM_E_MEMORY, "session: out of memory for a list of %zu bytes", MAX_BLOCKS * sizeof *s->blocks);
    return NULL;
}

int dllm_need_logits(dllm_session *s)
{
    const int64_t vocab = s->model->config.vocab;
    const size_t bytes = (size_t)s->head_rows * (size_t)vocab * sizeof(float);
    if (s->logits[0].data) return 0;
    void *p = s->device.ops->alloc(&s->device, bytes);
    FAIL_IF(!p, DLLM_E_MEMORY, "session: out of memory for logits: %lld x %lld numbers, %zu bytes", (long long)s->head_rows,
            (long long)vocab, bytes);
    s->logits[0] = (dllm_mat){ .data = p, .rows = s->head_rows, .cols = vocab, .stride = vocab, .dtype = DLLM_F32 };
    keep_block(s, p, false, bytes);
    return 0;
}

void dllm_give_memory(dllm_session *s)
{
    give_back(s);
    free(s->blocks);
}

/* ---- waiting -------------------------------------------------------------------------------------------------------------------- */
static int await_device(dllm_session *s)
{
    const double began = dllm_seconds();
    const int status = s->device.ops->sync(&s->device);
    s->stats.waits++;
    s->stats.waited += dllm_seconds() - began;
    if (status < 0) s->n_counted = s->n_sizes; /* nobody knows what these layers did */
    else dllm_count_layers(s);
    return status;
}

/* A failure stays until somebody can tell it. */
void dllm_wait(dllm_session *s)
{
    const int status = await_device(s);
    if (status < 0) s->device.failed = status;
}

void dllm_abandon(dllm_session *s)
{
    dllm_wait(s);
    s->places_used = 0;
}

int dllm_check_device(dllm_session *s)
{
    const int status = await_device(s);
    s->places_used = 0;
    return status < 0 ? dllm_fail(status, "%s", s->device.why) : 0;
}

/* ---- row numbers ---------------------------------------------------------------------------------------------------------------- */
/* On a device each layer of each branch has its part, so that the same is asked of the same places in every step, however many rows an earlier
 * layer named; what comes behind a pass goes on in its last part. */
static int64_t part_begin(const dllm_session *s, int64_t part)
{
    return dllm_is_host(&s->device) ? 0 : (s->branch * parts_of_branch(s) + part) * layer_room(s);
}

void dllm_make_branch_room(dllm_session *s) { s->places_used = part_begin(s, 0); }

void dllm_make_room(dllm_session *s)
{
    const int64_t begin = part_begin(s, 1 + s->layer);
    if (begin > s->places_used || dllm_is_host(&s->device)) s->places_used = begin;
}

int32_t *dllm_room(dllm_session *s, int64_t n)
{
    int32_t *p = s->places + s->places_used;
    s->places_used += n;
    return p;
}

void *dllm_room_for(dllm_session *s, int64_t n, size_t size) { return dllm_room(s, n * (int64_t)(size / NUMBERS)); }

bool dllm_is_picked(const dllm_session *s, dllm_rows rows)
{
    return (uintptr_t)rows.idx - (uintptr_t)s->picked < (size_t)s->rows * sizeof *s->picked;
}

dllm_rows dllm_read_chosen(dllm_session *s, dllm_rows rows)
{
    if (dllm_is_host(&s->device)) return rows;
    s->device.ops->copy_out(&s->device, s->chosen_seen, rows.idx, (size_t)rows.n * sizeof *s->chosen_seen);
    rows.idx = s->chosen_seen;
    return rows;
}

/* ---- copies --------------------------------------------------------------------------------------------------------------------- */
void dllm_upload(dllm_session *s, dllm_mat to, int64_t row, const void *from, int64_t n)
{
    s->device.ops->copy_in(&s->device, dllm_at(to, row), from, (size_t)(n * to.cols) * dllm_dtype_size(to.dtype));
}

void dllm_download(dllm_session *s, void *to, dllm_mat from, int64_t n)
{
    s->device.ops->copy_out(&s->device, to, from.data, (size_t)(n * from.cols) * dllm_dtype_size(from.dtype));
}

const float *dllm_logits_row(dllm_session *s, int32_t i)
{
    dllm_mat row = s->logits[0];
    row.data = dllm_at(row, i);
    if (dllm_is_host(&s->device)) return row.data;
    dllm_download(s, s->logits_row, row, 1);
    return s->logits_row;
}

const void *dllm_lend_noise(dllm_session *s, const void *noise, int64_t from, int32_t n)
{
    if (!noise || dllm_is_host(&s->device)) return noise;
    const size_t bytes = noise_size(s);
    for (int32_t i = 0; i < n; i++) {
        const char *row = (const char *)noise + (size_t)s->noise_row[from + i] * bytes;
        s->device.ops->copy_in(&s->device, (char *)s->noise + (size_t)i * bytes, row, bytes);
        s->noise_row[from + i] = i;
    }
    return s->noise;
}

void dllm_session_read(dllm_session *s, void *out, dllm_mat kept)
{
    if (kept.data) dllm_download(s, out, kept, kept.rows);
}
