/* Cases of the matrix product. */
#include <math.h>

#include "../int8.h"
#include "trial.h"

enum { DENSE_X, DENSE_W, DENSE_BIAS, DENSE_OUT, DENSE_SCALE };

/* n rows, k columns in, m columns out */
typedef struct {
    int32_t n, k, m, gap;
    bool gathered, bias;
    double scale;
} shape;
static const shape shapes[] = {
    { 0, 32, 16, 0, false, false, 1 },    { 1, 1, 1, 0, false, true, 1 },         { 1, 64, 48, 0, false, false, 1 },
    { 2, 33, 7, 3, true, true, 1 },       { 3, 128, 16, 0, true, false, 1e-4 },   { 5, 96, 100, 8, true, true, 30 },
    { 8, 256, 33, 0, false, false, 1 },   { 13, 100, 65, 4, true, true, 1 },      { 16, 512, 96, 0, false, true, 1 },
    { 17, 31, 6, 1, false, false, 1e4 },  { 37, 160, 50, 0, true, false, 1 },     { 70, 64, 130, 0, false, true, 1 },
    { 4, 9000, 12, 0, false, false, 1 },  { 130, 288, 40, 32, true, true, 1 },    { 600, 32, 18, 0, false, false, 1 },
    { 70, 1100, 20, 0, true, true, 1 },   { 140, 72, 35, 8, false, true, 1 },     { 97, 5900, 6, 4, true, true, 1 },
    { 194, 1100, 34, 0, false, true, 1 }, { 32, 4096, 1024, 0, false, false, 1 }, /* the last one for timing alone */
};
enum {
    N_SHAPES = sizeof shapes / sizeof *shapes,
    LIBRARY_ROWS = 100, /* libraries take no fewer */
    LARGE = 200000      /* numbers in x: for the ways of tiles, which take bfloat16 */
};

static void run(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    const dllm_mat bias = t->flag ? dllm_trial_mat(t, DENSE_BIAS, at, 0) : (dllm_mat){ 0 };
    d->ops->linear(d, dllm_trial_mat(t, DENSE_OUT, at, 0), dllm_trial_rows(t, DENSE_OUT, at, first, n),
                   dllm_trial_mat(t, DENSE_X, at, 0), dllm_trial_rows(t, DENSE_X, at, first, n), dllm_trial_mat(t, DENSE_W, at, 0),
                   bias);
}

/* Any order of a float32 sum over k terms is right to a few epsilons of the sum of their sizes, which the norms bound. */
static void allow(dllm_trial *t, int32_t k)
{
    const double longest = dllm_trial_norm(t, DENSE_W, -1), terms = 2 + sqrt(k) / 4;
    for (int32_t i = 0; i < t->rows; i++) {
        const double size = dllm_trial_norm(t, DENSE_X, dllm_trial_place(t, DENSE_X, i)) * longest;
        dllm_trial_slack(t, DENSE_OUT, i, terms * dllm_trial_epsilon(TRIAL_F32) * size);
    }
}

static void dense_case(dllm_checker *k, const shape *s, dllm_trial_kind x, dllm_trial_kind w, dllm_trial_kind out)
{
    dllm_trial t;
    dllm_trial_begin(k, &t, "linear", s->n);
    dllm_trial_name(&t, "n %d k %d m %d%s%s%s%s scale %g %s x %s -> %s", (int)s->n, (int)s->k, (int)s->m, s->gap ? " strided" : "",
                    s->gathered ? " gathered" : "", s->bias ? " bias" : "", dllm_trial_library(k) ? " library" : "", s->scale,
                    dllm_trial_kind_name(x), dllm_trial_kind_name(w), dllm_trial_kind_name(out));
    t.run = run;
    t.counts = true;
    t.flag = s->bias;
    t.tolerance = 1; /* float32 seen: 0.3; else a rounding that falls to the other side */
    t.act = (dllm_dtype)x;
    t.config.dim = s->k;
    t.config.ffn_dim = s->m;
    dllm_trial_add(&t, TRIAL_IN, x, s->n + 3, s->k, s->k + s->gap);
    dllm_trial_add(&t, TRIAL_IN, w, s->m, s->k, s->k + s->gap);
    dllm_trial_add(&t, TRIAL_IN, w, 1, s->m, 0);
    dllm_trial_add(&t, TRIAL_OUT, out, s->n + 3, s->m, s->m + s->gap);
    if (s->gathered) dllm_trial_gather(&t, DENSE_X);
    if (s->gathered) dllm_trial_gather(&t, DENSE_OUT);
    else t.array[DENSE_OUT].first = dllm_trial_below(k, 3);
    dllm_trial_fill(&t, DENSE_X, s->scale);
    dllm_trial_fill(&t, DENSE_W, 1 / sqrt(s->k));
    dllm_trial_fill(&t, DENSE_BIAS, 1);
    allow(&t, s->k);
    dllm_trial_end(&t);
}

/* ---- int8 weights: all tables agree to the last bit ------------------------------------------------------------------------------- */
static void run_i8(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    const dllm_mat bias = t->flag ? dllm_trial_mat(t, DENSE_BIAS, at, 0) : (dllm_mat){ 0 };
    dllm_mat w = dllm_trial_mat(t, DENSE_W, at, 0);
    w.rows = t->config.ffn_dim;
    w.cols = t->config.dim;
    w.stride = dllm_i8_stride(w.cols);
    w.scale = at[DENSE_SCALE];
    d->ops->linear(d, dllm_trial_mat(t, DENSE_OUT, at, 0), dllm_trial_rows(t, DENSE_OUT, at, first, n),
                   dllm_trial_mat(t, DENSE_X, at, 0), dllm_trial_rows(t, DENSE_X, at, first, n), w, bias);
}

/* Everywhere steps of weights; extreme: all of them the largest, as are those of x, with signs that let sums grow. */
static void fill_i8(dllm_trial *t, const shape *s, bool extreme)
{
    const int64_t stride = dllm_i8_stride(s->k);
    for (int64_t o = 0; o < s->m; o++) {
        for (int64_t j = 0; j < s->k; j++) {
            const double sign = (o + j) % 2 ? 127 : -127, any = dllm_trial_below(t->checker, 255) - 127;
            dllm_trial_set(t, DENSE_W, 0, dllm_i8_at(stride, o, j), extreme ? sign : any);
        }
        dllm_trial_set(t, DENSE_SCALE, 0, o, 0.001 + dllm_trial_uniform(t->checker));
    }
    dllm_trial_fill(t, DENSE_X, s->scale);
    for (int64_t r = 0; extreme && r < s->n + 3; r++)
        for (int64_t j = 0; j < s->k; j++) dllm_trial_set(t, DENSE_X, r, j, j % 2 ? s->scale : -s->scale);
}

/* Rows that are all zeros, nearly, or not finite, which must not touch their neighbours. */
static void spoil_rows(dllm_trial *t, const shape *s)
{
    const double odd[] = { NAN, INFINITY, -INFINITY };
    for (int32_t i = 0; i < 3 && 4 * i + 1 < s->n; i++)
        dllm_trial_set(t, DENSE_X, dllm_trial_place(t, DENSE_X, 4 * i + 1), s->k / 2, odd[i]);
    for (int64_t j = 0; s->n > 3 && j < s->k; j++) {
        dllm_trial_set(t, DENSE_X, dllm_trial_place(t, DENSE_X, 2), j, 0);
        dllm_trial_set(t, DENSE_X, dllm_trial_place(t, DENSE_X, 3), j, j % 2 ? 0x1p-24 : 0);
    }
}

static void dense_i8_case(dllm_checker *k, const shape *s, dllm_trial_kind x, dllm_trial_kind out, bool extreme)
{
    dllm_trial t;
    dllm_trial_begin(k, &t, "linear", s->n);
    dllm_trial_name(&t, "n %d k %d m %d%s%s%s%s scale %g %s x int8 -> %s", (int)s->n, (int)s->k, (int)s->m,
                    s->gap ? " strided" : "", s->gathered ? " gathered" : "", s->bias ? " bias" : "", extreme ? " extreme" : "",
                    s->scale, dllm_trial_kind_name(x), dllm_trial_kind_name(out));
    t.run = run_i8;
    t.flag = s->bias;
    t.act = (dllm_dtype)x;
    t.config.dim = s->k;
    t.config.ffn_dim = s->m;
    dllm_trial_add(&t, TRIAL_IN, x, s->n + 3, s->k, s->k + s->gap);
    dllm_trial_add(&t, TRIAL_IN, TRIAL_I8, 1, (int64_t)dllm_i8_tiles(s->m, s->k), 0);
    dllm_trial_add(&t, TRIAL_IN, x, 1, s->m, 0);
    dllm_trial_add(&t, TRIAL_OUT, out, s->n + 3, s->m, s->m + s->gap);
    dllm_trial_add(&t, TRIAL_IN, TRIAL_F32, 1, dllm_i8_up(s->m, DLLM_I8_PANEL), 0);
    if (s->gathered) dllm_trial_gather(&t, DENSE_X);
    if (s->gathered) dllm_trial_gather(&t, DENSE_OUT);
    else t.array[DENSE_OUT].first = dllm_trial_below(k, 3);
    fill_i8(&t, s, extreme);
    dllm_trial_fill(&t, DENSE_BIAS, 1);
    if (!extreme) spoil_rows(&t, s);
    dllm_trial_end(&t);
}

static void check_i8(dllm_checker *k, const shape *s)
{
    for (int j = 0; j < 3; j++) {
        const dllm_trial_kind x = dllm_trial_floats[j];
        if (x == TRIAL_F16 && s->scale > 1000) continue; /* beyond its range */
        dense_i8_case(k, s, x, x, false);
        if (x != TRIAL_F32) dense_i8_case(k, s, x, TRIAL_F32, s->k > 1000);
    }
}

/* ---- all --------------------------------------------------------------------------------------------------------------------- */
/* Activations of one dtype give that dtype, or float32 for logits; weights may be of any. */
void dllm_check_linear(dllm_checker *k)
{
    for (int i = 0; i < (dllm_trial_timing(k) ? N_SHAPES : N_SHAPES - 1); i++) {
        const shape *s = &shapes[i];
        if (dllm_trial_library(k) && s->n < LIBRARY_ROWS) continue;
        for (int j = 0; j < 9; j++) {
            const dllm_trial_kind x = dllm_trial_floats[j % 3], w = dllm_trial_floats[j / 3];
            if (x == TRIAL_F16 && s->scale > 1000) continue; /* beyond its range */
            if ((int64_t)s->n * s->k > LARGE && (x != TRIAL_BF16 || w != TRIAL_BF16)) continue;
            dense_case(k, s, x, w, x);
            if (x != TRIAL_F32) dense_case(k, s, x, w, TRIAL_F32);
        }
        if (dllm_trial_int8(k)) check_i8(k, s);
    }
}
