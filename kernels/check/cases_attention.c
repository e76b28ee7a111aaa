/* Cases of attention. The rows of a trial are its queries, span after span; asked for some of them, run() clips the spans. */
#include <math.h>

#include "trial.h"

enum { ATTEND_Q, ATTEND_K, ATTEND_V, ATTEND_OUT, ATTEND_SPANS, MAX_SPANS = 4 };

typedef struct {
    int n;
    int32_t queries[MAX_SPANS], keys[MAX_SPANS];
} spans;
static const spans span_sets[] = {
    { 0, { 0 }, { 0 } },
    { 1, { 1 }, { 1 } },
    { 4, { 5, 0, 3, 20 }, { 17, 9, 0, 33 } },
    { 1, { 33 }, { 70 } },
    { 3, { 50, 1, 64 }, { 129, 300, 64 } },
    { 2, { 2, 7 }, { 1030, 2 } },
    { 1, { 32 }, { 1024 } },
    { 1, { 512 }, { 512 } },
};
enum { N_SPAN_SETS = sizeof span_sets / sizeof *span_sets, N_TIMED = 2 };

typedef struct {
    int32_t heads, kv_heads, head_dim, gap;
    bool gathered;
    double scale; /* of queries and keys: a large one leaves one key, a small one makes all equal */
} shape;
static const shape shapes[] = {
    { 1, 1, 8, 0, false, 1 },  { 2, 2, 12, 3, true, 1 },     { 4, 2, 16, 0, true, 1 },     { 4, 1, 64, 64, false, 1 },
    { 2, 2, 128, 0, true, 1 }, { 6, 3, 32, 0, false, 4 },    { 7, 1, 24, 1, false, 1e-3 }, { 3, 3, 96, 32, true, 1 },
    { 2, 1, 5, 0, false, 1 },  { 4, 2, 128, 0, false, 0.5 }, { 2, 1, 160, 0, false, 1 },
};
static const shape timed_shape = { 32, 32, 128, 0, false, 1 };

static void run(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    dllm_span *clipped = at[ATTEND_SPANS];
    for (int i = 0; i < t->n_spans; i++) {
        int32_t field[4];
        for (int c = 0; c < 4; c++) field[c] = (int32_t)dllm_trial_get(t, ATTEND_SPANS, i, c);
        const int32_t from = field[0] > first ? field[0] : first;
        const int32_t end = field[0] + field[1] < first + n ? field[0] + field[1] : first + n;
        clipped[i] = (dllm_span){ from, end > from ? end - from : 0, field[2], field[3] };
    }
    const dllm_spans all = { clipped, NULL, t->n_spans, t->count ? t->rows : n, (int32_t)t->keys };
    d->ops->attend(d, dllm_trial_mat(t, ATTEND_OUT, at, 0), dllm_trial_mat(t, ATTEND_Q, at, 0),
                   dllm_trial_rows(t, ATTEND_OUT, at, 0, t->rows), dllm_trial_mat(t, ATTEND_K, at, 0),
                   dllm_trial_mat(t, ATTEND_V, at, 0), all, t->heads, t->kv_heads);
}

/* Spans take queries in order, and keys from where they like; they need not be listed in order. */
static void fill_spans(dllm_trial *t, const spans *s, int64_t slots)
{
    int32_t first = 0;
    for (int i = 0; i < s->n; i++) {
        const int place = s->n - 1 - i;
        const int32_t fields[4] = { first, s->queries[i], dllm_trial_below(t->checker, (int32_t)slots - s->keys[i] + 1),
                                    s->keys[i] };
        for (int c = 0; c < 4; c++) dllm_trial_set(t, ATTEND_SPANS, place, c, fields[c]);
        first += s->queries[i];
    }
}

/* An error of the scores, which grows with their size, is a relative error of the weights; and weights may round to the other side,
 * a few of many. Values are of size 1. */
static void allow(dllm_trial *t, double scale)
{
    const dllm_trial_kind kind = t->array[ATTEND_OUT].kind;
    const double rounding = kind == TRIAL_F32 ? 0 : dllm_trial_epsilon(kind) / 8;
    const double scores = scale * scale * sqrt(t->head_dim) + 4;
    for (int32_t i = 0; i < t->rows; i++) dllm_trial_slack(t, ATTEND_OUT, i, rounding + scores * dllm_trial_epsilon(TRIAL_F32));
}

static void attend_case(dllm_checker *k, const shape *s, const spans *set, dllm_trial_kind kind)
{
    int32_t queries = 0, keys = 0;
    for (int i = 0; i < set->n; i++) {
        queries += set->queries[i];
        keys = set->keys[i] > keys ? set->keys[i] : keys;
    }
    dllm_trial t;
    dllm_trial_begin(k, &t, "attend", queries);
    dllm_trial_name(&t, "spans %d queries %d keys %d heads %d/%d x %d%s%s scale %g %s", set->n, (int)queries, (int)keys,
                    (int)s->heads, (int)s->kv_heads, (int)s->head_dim, s->gap ? " strided" : "", s->gathered ? " gathered" : "",
                    s->scale, dllm_trial_kind_name(kind));
    t.run = run;
    t.counts = true;
    t.heads = t.config.heads = s->heads;
    t.kv_heads = t.config.kv_heads = s->kv_heads;
    t.head_dim = t.config.head_dim = s->head_dim;
    t.n_spans = set->n;
    t.act = (dllm_dtype)kind;
    t.keys = keys;
    t.tolerance = 4; /* seen: 2.2 */
    const int64_t wide = s->heads * s->head_dim, narrow = s->kv_heads * s->head_dim, slots = keys + 5;
    dllm_trial_add(&t, TRIAL_IN, kind, queries + 3, wide, wide + s->gap);
    dllm_trial_add(&t, TRIAL_IN, kind, slots, narrow, narrow + s->gap);
    dllm_trial_add(&t, TRIAL_IN, kind, slots, narrow, narrow + s->gap);
    dllm_trial_add(&t, TRIAL_OUT, kind, queries + 3, wide, wide + s->gap);
    dllm_trial_add_shared(&t, TRIAL_WORK, TRIAL_I32, MAX_SPANS, 4);
    if (s->gathered) dllm_trial_gather(&t, ATTEND_OUT);
    else t.array[ATTEND_OUT].first = dllm_trial_below(k, 3);
    dllm_trial_fill(&t, ATTEND_Q, s->scale);
    dllm_trial_fill(&t, ATTEND_K, s->scale);
    dllm_trial_fill(&t, ATTEND_V, 1);
    fill_spans(&t, set, slots);
    allow(&t, s->scale);
    dllm_trial_end(&t);
}

void dllm_check_attend(dllm_checker *k)
{
    enum { N_SHAPES = sizeof shapes / sizeof *shapes };
    for (int i = 0; i < N_SPAN_SETS - N_TIMED; i++) {
        for (int j = 0; j < 3 * N_SHAPES; j++) attend_case(k, &shapes[j / 3], &span_sets[i], dllm_trial_floats[j % 3]);
    }
    for (int i = N_SPAN_SETS - N_TIMED; i < N_SPAN_SETS && dllm_trial_timing(k); i++) {
        attend_case(k, &timed_shape, &span_sets[i], TRIAL_BF16);
        attend_case(k, &timed_shape, &span_sets[i], TRIAL_F32);
    }
}
