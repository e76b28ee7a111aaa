/* Cases of the kernels that read logits: predict, head_predict and nll. */
#include <math.h>
#include <string.h>

#include "../../csrc/rng.h"
#include "../int8.h"
#include "trial.h"

enum { SAMPLE_LOGITS, SAMPLE_TOKEN, SAMPLE_SCORE, SAMPLE_PROB, SAMPLE_KEYS, SAMPLE_NOISE, SAMPLE_NOISE_ROWS };
enum { HEAD_X, HEAD_W = SAMPLE_NOISE, HEAD_SCALE }; /* the others as above; HEAD_SCALE: of int8 weights */

typedef enum { PLAIN, TIES, PEAKED, FLAT, N_LOOKS } look; /* of the logits */

typedef struct {
    int32_t n, vocab, gap;
} shape;
static const shape shapes[] = { { 0, 8, 0 },   { 1, 1, 0 },    { 2, 5, 1 },    { 3, 17, 0 },
                                { 7, 100, 3 }, { 5, 1000, 0 }, { 2, 5003, 0 }, { 32, 126464, 0 } };
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* A way to draw and score */
typedef struct {
    const char *name;
    bool gumbel, recorded, argmax; /* recorded: noise */
    float temperature, top_p;
    int32_t top_k, banned, unscored;
    dllm_score score;
} way;
static const way ways[] = {
    { "greedy", .gumbel = true, .top_p = 1 },
    { "greedy banned unscored", .gumbel = true, .top_p = 1, .banned = 2, .unscored = 2 },
    { "greedy random", .gumbel = true, .top_p = 1, .score = DLLM_SCORE_RANDOM },
    { "greedy margin", .top_p = 1, .score = DLLM_SCORE_MARGIN },
    { "greedy entropy", .top_p = 1, .score = DLLM_SCORE_ENTROPY, .banned = 1 },
    { "greedy origin", .top_p = 1, .score = DLLM_SCORE_ORIGIN },
    { "greedy top-p entropy", .top_p = 0.7f, .score = DLLM_SCORE_ENTROPY },
    { "greedy top-k margin", .top_p = 1, .top_k = 3, .score = DLLM_SCORE_MARGIN },
    { "best rescaled margin", .argmax = true, .temperature = 0.3f, .top_p = 1, .score = DLLM_SCORE_MARGIN },
    { "best rescaled banned unscored", .argmax = true, .recorded = true, .temperature = 2, .top_p = 1, .banned = 1, .unscored = 2 },
    { "best rescaled top-k", .argmax = true, .temperature = 0.7f, .top_p = 0.9f, .top_k = 3, .score = DLLM_SCORE_ENTROPY },
    { "best not rescaled", .argmax = true, .top_p = 1 },
    { "gumbel recorded", .gumbel = true, .recorded = true, .temperature = 0.7f, .top_p = 1 },
    { "gumbel", .gumbel = true, .temperature = 1, .top_p = 1, .banned = 1, .unscored = 1 },
    { "draw recorded", .recorded = true, .temperature = 0.5f, .top_p = 1 },
    { "draw", .temperature = 1.3f, .top_p = 1, .score = DLLM_SCORE_MARGIN },
    { "draw top-p", .temperature = 1, .top_p = 0.9f, .score = DLLM_SCORE_ENTROPY, .banned = 1 },
    { "draw top-k", .recorded = true, .temperature = 0.3f, .top_p = 1, .top_k = 5 },
    { "draw top-p top-k", .temperature = 1, .top_p = 0.8f, .top_k = 50, .score = DLLM_SCORE_MARGIN },
};
enum { N_WAYS = sizeof ways / sizeof *ways };

static void run_predict(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    d->ops->predict(d, (int32_t *)at[SAMPLE_TOKEN] + first, (float *)at[SAMPLE_SCORE] + first, (float *)at[SAMPLE_PROB] + first,
                    dllm_trial_mat(t, SAMPLE_LOGITS, at, first), n, &t->how, (const dllm_key *)at[SAMPLE_KEYS] + first,
                    t->flag ? at[SAMPLE_NOISE] : NULL, t->flag ? (const int32_t *)at[SAMPLE_NOISE_ROWS] + first : NULL);
}

static double logit(const dllm_trial *t, int32_t i, int32_t token)
{
    if (t->run == run_predict) return dllm_trial_get(t, SAMPLE_LOGITS, i, token);
    double sum = 0;
    for (int64_t c = 0; c < t->config.dim; c++)
        sum += dllm_trial_get(t, HEAD_X, dllm_trial_place(t, HEAD_X, i), c) * dllm_trial_get(t, HEAD_W, token, c);
    return sum;
}

/* The number that the drawn token has the most of, in logarithms. */
static double lot(const dllm_trial *t, int32_t i, int32_t token)
{
    const double z = logit(t, i, token), temperature = (double)t->how.temperature;
    const int64_t noise_row = t->flag ? (int64_t)dllm_trial_get(t, SAMPLE_NOISE_ROWS, i, 0) : 0;
    const int per_block = t->how.gumbel ? 2 : 4, at = token % per_block;
    const dllm_trial_array *keys = &t->array[SAMPLE_KEYS];
    uint32_t w[4];
    if (!t->flag) dllm_random(w, (const dllm_key *)(keys->image + keys->start) + i, DLLM_USE_TOKEN, (uint32_t)(token / per_block));
    if (t->how.gumbel)
        return z - temperature * log(-log(t->flag ? dllm_trial_get(t, SAMPLE_NOISE, noise_row, token)
                                                  : dllm_uniform_of(w[2 * at], w[2 * at + 1])));
    return z / temperature - log(t->flag ? dllm_trial_get(t, SAMPLE_NOISE, noise_row, token) : (double)dllm_exponential_of(w[at]));
}

/* Only a draw may go another way, and only between tokens that the twin, too, holds for all but equal. */
static bool near_tie(const dllm_trial *t, void *const *want, void *const *got, int32_t i)
{
    const int32_t a = ((const int32_t *)want[SAMPLE_TOKEN])[i], b = ((const int32_t *)got[SAMPLE_TOKEN])[i];
    if (a == b || t->how.temperature <= 0 || t->how.argmax || b < 0 || b >= t->config.vocab) return false;
    const bool filtered = !t->how.gumbel && (t->how.top_p < 1 || t->how.top_k > 0);
    const double lot_a = lot(t, i, a), lot_b = lot(t, i, b);
    return !filtered && fabs(lot_a - lot_b) <= 1e-5 * (1 + fabs(lot_a));
}

static void fill_logits(dllm_trial *t, look l)
{
    const dllm_trial_array *a = &t->array[SAMPLE_LOGITS];
    static const double scales[N_LOOKS] = { 3, 1, 40, 1e-3 };
    dllm_trial_fill(t, SAMPLE_LOGITS, scales[l]);
    for (int64_t r = 0; l == TIES && r < a->rows; r++) {
        for (int64_t c = 0; c < a->cols; c++)
            dllm_trial_set(t, SAMPLE_LOGITS, r, c, floor(2 * dllm_trial_get(t, SAMPLE_LOGITS, r, c)) / 2);
    }
}

static void fill_noise(dllm_trial *t)
{
    const dllm_trial_array *a = &t->array[SAMPLE_NOISE];
    for (int64_t r = 0; r < a->rows; r++) {
        for (int64_t c = 0; c < a->cols; c++) {
            const double u = dllm_trial_uniform(t->checker);
            dllm_trial_set(t, SAMPLE_NOISE, r, c, a->kind == TRIAL_F64 ? u : -log(1 - u) + 1e-9);
        }
    }
    for (int32_t i = 0; i < t->rows; i++) dllm_trial_set(t, SAMPLE_NOISE_ROWS, i, 0, t->rows - 1 - i);
}

static void fill_keys(dllm_trial *t)
{
    const dllm_trial_array *a = &t->array[SAMPLE_KEYS];
    for (int32_t i = 0; a->image && i < t->rows; i++)
        ((dllm_key *)(a->image + a->start))[i] =
            (dllm_key){ (uint64_t)dllm_trial_below(t->checker, 1000), (uint64_t)i, 3, (uint32_t)(5 * i) };
}

/* Tokens that may not be drawn, or not be scored; the greatest logits among them, or the case would tell nothing. */
static void choose_tokens(dllm_trial *t, const way *w, int32_t vocab)
{
    t->how.n_banned = w->banned < vocab ? w->banned : 0;
    t->how.n_unscored = w->unscored < vocab ? w->unscored : 0;
    for (int i = 0; i < 2; i++) {
        t->how.banned[i] = dllm_trial_below(t->checker, vocab);
        t->how.unscored[i] = (t->how.banned[0] + 1 + i) % vocab;
        for (int32_t r = i; r < t->rows; r += 2) {
            if (i < w->banned) dllm_trial_set(t, SAMPLE_LOGITS, r, t->how.banned[i], 50);
            if (i < w->unscored) dllm_trial_set(t, SAMPLE_LOGITS, r, t->how.unscored[i], 20);
        }
    }
}

static dllm_sampling sampling_of(const way *w)
{
    return (dllm_sampling){ .score = w->score,
                            .gumbel = w->gumbel,
                            .argmax = w->argmax,
                            .temperature = w->temperature,
                            .top_p = w->top_p,
                            .top_k = w->top_k };
}

static void predict_case(dllm_checker *k, const shape *s, const way *w, look l)
{
    dllm_trial t;
    dllm_trial_begin(k, &t, "predict", s->n);
    static const char *looks[] = { "", " ties", " peaked", " flat" };
    dllm_trial_name(&t, "n %d vocab %d%s %s%s", (int)s->n, (int)s->vocab, s->gap ? " strided" : "", w->name, looks[l]);
    t.run = run_predict;
    t.excuse = near_tie;
    t.flag = w->recorded;
    t.tolerance = 6; /* float32 sums of many exponentials, seen: 3.6 */
    t.config.vocab = s->vocab;
    t.how = sampling_of(w);
    dllm_trial_add(&t, TRIAL_SPENT, TRIAL_F32, s->n + 1, s->vocab, s->vocab + s->gap);
    dllm_trial_add_shared(&t, TRIAL_OUT, TRIAL_I32, s->n + 1, 1);
    dllm_trial_add_shared(&t, TRIAL_OUT, TRIAL_F32, s->n + 1, 1);
    dllm_trial_add_shared(&t, TRIAL_OUT, TRIAL_F32, s->n + 1, 1);
    dllm_trial_add_shared(&t, TRIAL_IN, TRIAL_KEY, s->n + 1, 1);
    dllm_trial_add_shared(&t, TRIAL_IN, w->gumbel ? TRIAL_F64 : TRIAL_F32, w->recorded ? s->n + 1 : 0, s->vocab);
    dllm_trial_add_shared(&t, TRIAL_IN, TRIAL_I32, s->n + 1, 1);
    fill_logits(&t, l);
    fill_noise(&t);
    fill_keys(&t);
    choose_tokens(&t, w, s->vocab);
    for (int32_t i = 0; i < s->n; i++)
        dllm_trial_slack(&t, SAMPLE_SCORE, i, dllm_trial_epsilon(TRIAL_F32)); /* differences, logarithms near 0 */
    dllm_trial_end(&t);
}

void dllm_check_predict(dllm_checker *k)
{
    for (int i = 0; i < N_SHAPES - 1; i++) {
        for (int j = 0; j < N_WAYS * N_LOOKS; j++) predict_case(k, &shapes[i], &ways[j / N_LOOKS], (look)(j % N_LOOKS));
    }
    for (int j = 0; dllm_trial_timing(k) && j < N_WAYS; j++) predict_case(k, &shapes[N_SHAPES - 1], &ways[j], PLAIN);
}

/* ---- head_predict ----------------------------------------------------------------------------------------------------------- */
/* n rows, k columns in */
typedef struct {
    int32_t n, k, vocab, gap;
    bool gathered;
} head_shape;
static const head_shape head_shapes[] = {
    { 0, 8, 5, 0, false },     { 1, 1, 1, 0, false },    { 2, 33, 7, 3, true },     { 3, 64, 385, 0, false },
    { 7, 100, 1000, 1, true }, { 70, 16, 400, 0, true }, { 9, 40, 2305, 5, false }, { 32, 512, 32000, 0, false },
};
enum { N_HEAD_SHAPES = sizeof head_shapes / sizeof *head_shapes };

static dllm_mat head_weights(const dllm_trial *t, void *const *at)
{
    dllm_mat w = dllm_trial_mat(t, HEAD_W, at, 0);
    if (w.dtype != DLLM_I8) return w;
    w.rows = t->config.vocab;
    w.cols = t->config.dim;
    w.stride = dllm_i8_stride(w.cols);
    w.scale = at[HEAD_SCALE];
    return w;
}

static void run_head(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    d->ops->head_predict(d, (int32_t *)at[SAMPLE_TOKEN] + first, (float *)at[SAMPLE_SCORE] + first,
                         (float *)at[SAMPLE_PROB] + first, dllm_trial_mat(t, HEAD_X, at, 0),
                         dllm_trial_rows(t, HEAD_X, at, first, n), head_weights(t, at), &t->how,
                         (const dllm_key *)at[SAMPLE_KEYS] + first);
}

/* Quarters: their products and sums are exact in any order, so tables agree on every logit, and many are equal. */
static void fill_quarters(dllm_trial *t, int array, double scale)
{
    const dllm_trial_array *a = &t->array[array];
    dllm_trial_fill(t, array, scale);
    for (int64_t r = 0; r < a->rows; r++) {
        for (int64_t c = 0; c < a->cols; c++) dllm_trial_set(t, array, r, c, floor(4 * dllm_trial_get(t, array, r, c)) / 4);
    }
}

/* Sums of int8 products are exact anyway. */
static void fill_head_i8(dllm_trial *t, const head_shape *s)
{
    const int64_t stride = dllm_i8_stride(s->k);
    for (int64_t o = 0; o < s->vocab; o++) {
        for (int64_t j = 0; j < s->k; j++)
            dllm_trial_set(t, HEAD_W, 0, dllm_i8_at(stride, o, j), dllm_trial_below(t->checker, 255) - 127);
        dllm_trial_set(t, HEAD_SCALE, 0, o, 0.02 / sqrt(s->k));
    }
}

/* The logits of tokens that may not be drawn or scored are the greatest of some row. */
static void choose_head_tokens(dllm_trial *t, const way *w, const head_shape *s, bool greatest)
{
    t->how.n_banned = w->banned < s->vocab ? w->banned : 0;
    t->how.n_unscored = w->unscored < s->vocab ? w->unscored : 0;
    for (int i = 0; i < 2; i++) {
        t->how.banned[i] = dllm_trial_below(t->checker, s->vocab);
        t->how.unscored[i] = (t->how.banned[0] + 1 + i) % s->vocab;
        for (int64_t c = 0; greatest && s->n > 0 && c < s->k; c++) {
            const double x = dllm_trial_get(t, HEAD_X, dllm_trial_place(t, HEAD_X, i % s->n), c);
            if (i < w->banned) dllm_trial_set(t, HEAD_W, t->how.banned[i], c, x);
            if (i < w->unscored) dllm_trial_set(t, HEAD_W, t->how.unscored[i], c, x);
        }
    }
}

static void begin_head(dllm_checker *k, dllm_trial *t, const head_shape *s, const way *w, dllm_trial_kind x,
                       dllm_trial_kind weights, const char *more)
{
    dllm_trial_begin(k, t, "head_predict", s->n);
    dllm_trial_name(t, "n %d k %d vocab %d%s%s %s %s x %s%s", (int)s->n, (int)s->k, (int)s->vocab, s->gap ? " strided" : "",
                    s->gathered ? " gathered" : "", w->name, dllm_trial_kind_name(x), dllm_trial_kind_name(weights), more);
    t->act = (dllm_dtype)x;
    t->config.dim = s->k;
    t->config.vocab = s->vocab;
    t->how = sampling_of(w);
}

static void head_case(dllm_checker *k, const head_shape *s, const way *w, dllm_trial_kind x, dllm_trial_kind weights)
{
    dllm_trial t;
    begin_head(k, &t, s, w, x, weights, "");
    t.run = run_head;
    t.excuse = weights == TRIAL_I8 ? NULL : near_tie; /* int8 products are the same everywhere */
    t.tolerance = 6;                                  /* as of predict; seen: 2.1 */
    dllm_trial_add(&t, TRIAL_IN, x, s->n + 3, s->k, s->k + s->gap);
    dllm_trial_add_shared(&t, TRIAL_OUT, TRIAL_I32, s->n + 1, 1);
    dllm_trial_add_shared(&t, TRIAL_OUT, TRIAL_F32, s->n + 1, 1);
    dllm_trial_add_shared(&t, TRIAL_OUT, TRIAL_F32, s->n + 1, 1);
    dllm_trial_add_shared(&t, TRIAL_IN, TRIAL_KEY, s->n + 1, 1);
    if (weights == TRIAL_I8) {
        dllm_trial_add(&t, TRIAL_IN, weights, 1, (int64_t)dllm_i8_tiles(s->vocab, s->k), 0);
        dllm_trial_add(&t, TRIAL_IN, TRIAL_F32, 1, dllm_i8_up(s->vocab, DLLM_I8_PANEL), 0);
    } else {
        dllm_trial_add(&t, TRIAL_IN, weights, s->vocab, s->k, s->k + s->gap);
    }
    if (s->gathered) dllm_trial_gather(&t, HEAD_X);
    else t.array[HEAD_X].first = dllm_trial_below(k, 3);
    fill_quarters(&t, HEAD_X, 1);
    if (weights == TRIAL_I8) fill_head_i8(&t, s);
    else fill_quarters(&t, HEAD_W, 3 / sqrt(s->k));
    fill_keys(&t);
    choose_head_tokens(&t, w, s, weights != TRIAL_I8);
    for (int32_t i = 0; i < s->n; i++)
        dllm_trial_slack(&t, SAMPLE_SCORE, i, dllm_trial_epsilon(TRIAL_F32)); /* differences, logarithms near 0 */
    dllm_trial_end(&t);
}

/* The bits are those of linear and predict on the same table: numbers whose sums have an order, and inputs long enough to be cut. What is
 * compared with the twin is whether they are. */
enum { BOTH_FUSED = SAMPLE_TOKEN, BOTH_APART, BOTH_SAME, BOTH_LOGITS = HEAD_SCALE }; /* the others as above */
static const head_shape both_shapes[] = { { 66, 72, 200, 0, false }, { 5, 1100, 130, 3, true } };

static bool same_bits(const dllm_trial *t, void *const *at, int32_t i)
{
    for (int k = 0; k < 3; k++) {
        const size_t place = (size_t)(k * t->rows + i) * sizeof(float);
        if (memcmp((char *)at[BOTH_FUSED] + place, (char *)at[BOTH_APART] + place, sizeof(float))) return false;
    }
    return true;
}

static void run_both(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    const dllm_mat x = dllm_trial_mat(t, HEAD_X, at, 0), w = dllm_trial_mat(t, HEAD_W, at, 0), none = { 0 };
    const dllm_mat logits = dllm_trial_mat(t, BOTH_LOGITS, at, 0);
    const dllm_rows rows = dllm_trial_rows(t, HEAD_X, at, first, n);
    const dllm_key *keys = (const dllm_key *)at[SAMPLE_KEYS] + first;
    int32_t *const fused = (int32_t *)at[BOTH_FUSED] + first, *const apart = (int32_t *)at[BOTH_APART] + first;
    d->ops->head_predict(d, fused, (float *)fused + t->rows, (float *)fused + 2 * t->rows, x, rows, w, &t->how, keys);
    d->ops->linear(d, logits, (dllm_rows){ .n = n }, x, rows, w, none);
    d->ops->predict(d, apart, (float *)apart + t->rows, (float *)apart + 2 * t->rows, logits, n, &t->how, keys, NULL, NULL);
    const int status = d->ops->sync(d);
    if (status < 0) d->failed = status; /* for the harness to find */
    for (int32_t i = first; i < first + n; i++) ((int32_t *)at[BOTH_SAME])[i] = same_bits(t, at, i);
}

static void both_case(dllm_checker *k, const head_shape *s, const way *w, dllm_trial_kind x, dllm_trial_kind weights)
{
    dllm_trial t;
    begin_head(k, &t, s, w, x, weights, ", beside linear and predict");
    t.run = run_both;
    dllm_trial_add(&t, TRIAL_IN, x, s->n + 3, s->k, s->k + s->gap);
    dllm_trial_add_shared(&t, TRIAL_WORK, TRIAL_I32, 3, s->n);
    dllm_trial_add_shared(&t, TRIAL_WORK, TRIAL_I32, 3, s->n);
    dllm_trial_add_shared(&t, TRIAL_OUT, TRIAL_I32, s->n, 1);
    dllm_trial_add_shared(&t, TRIAL_IN, TRIAL_KEY, s->n + 1, 1);
    dllm_trial_add(&t, TRIAL_IN, weights, s->vocab, s->k, s->k + s->gap);
    dllm_trial_add(&t, TRIAL_WORK, TRIAL_F32, s->n, s->vocab, 0);
    if (s->gathered) dllm_trial_gather(&t, HEAD_X);
    dllm_trial_fill(&t, HEAD_X, 1);
    dllm_trial_fill(&t, HEAD_W, 3 / sqrt(s->k));
    fill_keys(&t);
    choose_head_tokens(&t, w, s, true);
    dllm_trial_end(&t);
}

void dllm_check_head_predict(dllm_checker *k)
{
    for (int j = 0; j < N_WAYS; j++) {
        if (ways[j].recorded || ways[j].top_p < 1 || ways[j].top_k > 0) continue;
        both_case(k, &both_shapes[j % 2], &ways[j], TRIAL_BF16, TRIAL_BF16);
        both_case(k, &both_shapes[(j + 1) % 2], &ways[j], dllm_trial_floats[j % 3], dllm_trial_floats[j % 2 ? j % 3 : 0]);
    }
    for (int i = 0; i < (dllm_trial_timing(k) ? N_HEAD_SHAPES : N_HEAD_SHAPES - 1); i++) {
        for (int j = 0; j < N_WAYS * 9; j++) {
            const way *w = &ways[j / 9];
            if (w->recorded || w->top_p < 1 || w->top_k > 0) continue;
            if (j % 9 != 4 && j % 9 != (i + j / 9) % 9) continue; /* bfloat16, and one other pair of dtypes */
            head_case(k, &head_shapes[i], w, dllm_trial_floats[j % 3], dllm_trial_floats[j / 3 % 3]);
            if (j % 9 == 4 && dllm_trial_int8(k)) head_case(k, &head_shapes[i], w, dllm_trial_floats[j % 3], TRIAL_I8);
        }
    }
}

/* ---- nll -------------------------------------------------------------------------------------------------------------------- */
enum { NLL_LOGITS, NLL_TARGET, NLL_OUT };

static void run_nll(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    d->ops->nll(d, (float *)at[NLL_OUT] + first, dllm_trial_mat(t, NLL_LOGITS, at, first), (const int32_t *)at[NLL_TARGET] + first,
                n);
}

void dllm_check_nll(dllm_checker *k)
{
    for (int i = 0; i < (dllm_trial_timing(k) ? N_SHAPES : N_SHAPES - 1) * N_LOOKS; i++) {
        const shape *s = &shapes[i / N_LOOKS];
        dllm_trial t;
        dllm_trial_begin(k, &t, "nll", s->n);
        dllm_trial_name(&t, "n %d vocab %d%s look %d", (int)s->n, (int)s->vocab, s->gap ? " strided" : "", i % N_LOOKS);
        t.run = run_nll;
        t.tolerance = 4; /* seen: 0.9 */
        t.config.vocab = s->vocab;
        dllm_trial_add(&t, TRIAL_IN, TRIAL_F32, s->n + 1, s->vocab, s->vocab + s->gap);
        dllm_trial_add_shared(&t, TRIAL_IN, TRIAL_I32, s->n + 1, 1);
        dllm_trial_add_shared(&t, TRIAL_OUT, TRIAL_F32, s->n + 1, 1);
        fill_logits(&t, (look)(i % N_LOOKS));
        for (int32_t r = 0; r < s->n; r++) {
            dllm_trial_set(&t, NLL_TARGET, r, 0, dllm_trial_below(k, s->vocab));
            dllm_trial_slack(&t, NLL_OUT, r, dllm_trial_epsilon(TRIAL_F32)); /* a logarithm near 0 */
        }
        dllm_trial_end(&t);
    }
}
