/* Cases of the matrix product. */
#include <math.h>

#include "trial.h"

enum { DENSE_X, DENSE_W, DENSE_BIAS, DENSE_OUT };

/* n rows, k columns in, m columns out */
typedef struct {
    int32_t n, k, m, gap;
    bool gathered, bias;
    double scale;
} shape;
static const shape shapes[] = {
    { 0, 32, 16, 0, false, false, 1 },   { 1, 1, 1, 0, false, true, 1 },         { 1, 64, 48, 0, false, false, 1 },
    { 2, 33, 7, 3, true, true, 1 },      { 3, 128, 16, 0, true, false, 1e-4 },   { 5, 96, 100, 8, true, true, 30 },
    { 8, 256, 33, 0, false, false, 1 },  { 13, 100, 65, 4, true, true, 1 },      { 16, 512, 96, 0, false, true, 1 },
    { 17, 31, 6, 1, false, false, 1e4 }, { 37, 160, 50, 0, true, false, 1 },     { 70, 64, 130, 0, false, true, 1 },
    { 4, 9000, 12, 0, false, false, 1 }, { 130, 288, 40, 32, true, true, 1 },    { 600, 32, 18, 0, false, false, 1 },
    { 70, 1100, 20, 0, true, true, 1 },  { 32, 4096, 1024, 0, false, false, 1 },
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

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
    dllm_trial_name(&t, "n %d k %d m %d%s%s%s scale %g %s x %s -> %s", (int)s->n, (int)s->k, (int)s->m, s->gap ? " strided" : "",
                    s->gathered ? " gathered" : "", s->bias ? " bias" : "", s->scale, dllm_trial_kind_name(x),
                    dllm_trial_kind_name(w), dllm_trial_kind_name(out));
    t.run = run;
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
    t.array[DENSE_OUT].first = dllm_trial_below(k, 3);
    dllm_trial_fill(&t, DENSE_X, s->scale);
    dllm_trial_fill(&t, DENSE_W, 1 / sqrt(s->k));
    dllm_trial_fill(&t, DENSE_BIAS, 1);
    allow(&t, s->k);
    dllm_trial_end(&t);
}

/* Activations of one dtype give that dtype, or float32 for logits; weights may be of any. */
void dllm_check_linear(dllm_checker *k)
{
    for (int i = 0; i < (dllm_trial_timing(k) ? N_SHAPES : N_SHAPES - 1); i++) {
        const shape *s = &shapes[i];
        for (int j = 0; j < 9; j++) {
            const dllm_trial_kind x = dllm_trial_floats[j % 3], w = dllm_trial_floats[j / 3];
            if (x == TRIAL_F16 && s->scale > 1000) continue; /* beyond its range */
            dense_case(k, s, x, w, x);
            if (x != TRIAL_F32) dense_case(k, s, x, w, TRIAL_F32);
        }
    }
}
