/* head.c: the head and its prediction in one: products go into panels of columns, each is read at once, and what is left of the
 * panels is joined once all are there. Threads share the panels; the order in which they are joined is theirs in the row. */
#include <math.h>
#include <string.h>

#include "../../csrc/rng.h"
#include "linear.h"
#include "panel.h"

#if defined(__x86_64__)
enum { ROUND = 64 }; /* rows at a time: what a pass over the weights serves, and what tallies there are room for */

void dllm_panel_join(struct row_tally *row, const struct tally *t)
{
    if (row->token < 0 || t->lot > row->lot) {
        row->lot = t->lot;
        row->token = t->token;
        row->logit = t->logit;
    }
    row->second = fmaxf(fmaxf(row->second, t->second), fminf(row->highest, t->highest));
    if (t->highest == -INFINITY) return;
    const double sum = (double)t->rest, slope = (double)t->slope, apart = (double)t->highest - (double)row->highest;
    if (row->highest == -INFINITY) {
        row->rest = sum;
        row->slope = slope;
    } else if (apart > 0) {
        const double scale = exp(-apart);
        row->slope = scale * (row->slope - apart * (1 + row->rest)) + slope;
        row->rest = scale * (1 + row->rest) + sum;
    } else {
        const double scale = exp(apart);
        row->slope += scale * (slope + apart * (1 + sum));
        row->rest += scale * (1 + sum);
    }
    row->highest = fmaxf(row->highest, t->highest);
}

/* The sums go without the highest logit as far as they can: log1p keeps what little a sure row leaves to the others. */
void dllm_panel_settle(const struct row_tally *row, const dllm_sampling *how, const dllm_key *key, int32_t *token, float *score,
                       float *prob)
{
    const double total = 1 + row->rest, highest = (double)row->highest;
    *token = row->token;
    *score = *prob = (float)(exp((double)row->logit - highest) / total);
    if (how->score == DLLM_SCORE_MARGIN) *score = (float)(1 / total) - (float)(exp((double)row->second - highest) / total);
    if (how->score == DLLM_SCORE_ENTROPY) *score = (float)(row->slope / total - log1p(row->rest));
    if (how->score == DLLM_SCORE_RANDOM) *score = dllm_uniform(key, DLLM_USE_REMASK);
}

/* One round. */
struct head {
    struct sink sink; /* first: a sink is handed back */
    dllm_panel_reader *read;
    const dllm_sampling *how;
    const dllm_key *keys;
    int32_t *token;
    float *score, *prob;
    int64_t rows, panels;
    struct tally *tallies; /* [rows][panels] */
    double *bounds;        /* [threads][rows] */
};

static void take(const struct sink *sink, int thread, float *z, int64_t row, int64_t rows, int64_t first, int64_t n)
{
    const struct head *h = (const struct head *)(const void *)sink;
    for (int64_t i = row; i < row + rows; i++, z += PANEL)
        h->read(&h->tallies[i * h->panels + first / PANEL], z, n, (int32_t)first, h->how, &h->keys[i],
                &h->bounds[thread * h->rows + i]);
}

static void settle(void *arg, int task, int thread)
{
    const struct head *h = arg;
    struct row_tally row = DLLM_NO_PANELS;
    for (int64_t i = 0; i < h->panels; i++) dllm_panel_join(&row, &h->tallies[task * h->panels + i]);
    dllm_panel_settle(&row, h->how, &h->keys[task], &h->token[task], &h->score[task], &h->prob[task]);
}

static size_t tally_bytes(int64_t rows, int64_t vocab)
{
    return ((size_t)(rows * ceil_div(vocab, PANEL)) * sizeof(struct tally) + 63) / 64 * 64;
}

static size_t bound_bytes(int threads, int64_t rows) { return ((size_t)(threads * rows) * sizeof(double) + 63) / 64 * 64; }

static size_t space_bytes(int threads, int64_t rows) { return (size_t)(threads * rows * PANEL) * sizeof(float); }

static size_t own_bytes(int threads, int64_t rows, int64_t vocab)
{
    return tally_bytes(rows, vocab) + bound_bytes(threads, rows) + space_bytes(threads, rows);
}

static int threads_of(const dllm_device *d) { return d->threads > 1 ? d->threads : 1; }

size_t dllm_x86_head_scratch(const dllm_device *d, const dllm_config *c, dllm_dtype act, int64_t rows, int64_t keys)
{
    const int64_t n = at_most(rows, ROUND);
    return own_bytes(threads_of(d), n, c->vocab) + dllm_x86_linear_scratch(d, c, act, n, keys);
}

/* The product of a round gets what the round leaves of scratch. */
static void run_round(dllm_device *d, struct head *h, dllm_product *multiply, dllm_mat x, dllm_rows rows, dllm_mat w)
{
    const int threads = threads_of(d);
    const size_t mine = own_bytes(threads, h->rows, w.rows);
    if (mine > d->scratch_bytes) {
        dllm_linear_refuse(d, mine);
        return;
    }
    dllm_device rest = *d;
    char *at = d->scratch;
    h->tallies = (struct tally *)(void *)at;
    h->bounds = (double *)(void *)(at + tally_bytes(h->rows, w.rows));
    h->sink.space = (float *)(void *)(at + tally_bytes(h->rows, w.rows) + bound_bytes(threads, h->rows));
    rest.scratch = at + mine;
    rest.scratch_bytes -= mine;
    for (int64_t i = 0; i < threads * h->rows; i++) h->bounds[i] = -INFINITY;
    multiply(&(struct product){ .d = &rest, .x = x, .in_rows = rows, .w = w, .sink = &h->sink });
    if (rest.failed && !d->failed) {
        d->failed = rest.failed;
        memcpy(d->why, rest.why, sizeof d->why);
    }
    if (!rest.failed) dllm_parallel(threads, (int)h->rows, settle, h);
}

static void run(dllm_device *d, struct head h, dllm_product *multiply, dllm_mat x, dllm_rows rows, dllm_mat w)
{
    h.sink = (struct sink){ .take = take, .columns = PANEL };
    h.panels = ceil_div(w.rows, PANEL);
    for (int32_t at = 0; at < rows.n; at += ROUND) {
        const dllm_rows some = dllm_part(rows, at, (int32_t)at_most(ROUND, rows.n - at));
        h.rows = some.n;
        run_round(d, &h, multiply, x, some, w);
        h.keys += some.n;
        h.token += some.n;
        h.score += some.n;
        h.prob += some.n;
    }
}

#define HEAD_PREDICT(level, reader)                                                                                                \
    static void head_##level(dllm_device *d, int32_t *token, float *score, float *prob, dllm_mat x, dllm_rows rows, dllm_mat w,    \
                             const dllm_sampling *how, const dllm_key *keys)                                                       \
    {                                                                                                                              \
        run(d, (struct head){ .read = reader, .how = how, .keys = keys, .token = token, .score = score, .prob = prob },            \
            dllm_product_##level, x, rows, w);                                                                                     \
    }
HEAD_PREDICT(avx2, dllm_panel_read_avx2)
HEAD_PREDICT(avx512f, dllm_panel_read_avx512f)
HEAD_PREDICT(avx512vnni, dllm_panel_read_avx512f)
HEAD_PREDICT(avx512bf16, dllm_panel_read_avx512f)
HEAD_PREDICT(amx, dllm_panel_read_avx512f)

void dllm_x86_head(dllm_ops *t, dllm_x86_level level, bool vnni)
{
    t->head_predict = level == DLLM_X86_AVX2         ? head_avx2
                      : level == DLLM_X86_AVX512F    ? (vnni ? head_avx512vnni : head_avx512f)
                      : level == DLLM_X86_AVX512BF16 ? head_avx512bf16
                                                     : head_amx;
}
#endif
