/* Cases of the kernels that go over rows, element by element or pair by pair: embed, rmsnorm, rope, swiglu, add, guide. */
#include <math.h>

#include "trial.h"

/* Sizes that are multiples of no vector, of every vector, and smaller than any. The last ones are for timing. */
typedef struct {
    int32_t n, cols, gap;
    bool gathered;
    double scale;
} shape;
static const shape shapes[] = {
    { 0, 16, 0, false, 1 },  { 0, 16, 3, true, 1 },    { 1, 1, 0, false, 1 },    { 1, 64, 0, true, 1 },   { 2, 7, 1, false, 1 },
    { 3, 8, 0, true, 1e-4 }, { 5, 31, 4, true, 1 },    { 7, 33, 0, false, 100 }, { 6, 129, 7, true, 10 }, { 4, 1000, 24, false, 1 },
    { 17, 96, 0, true, 1 },  { 40, 2049, 3, true, 1 }, { 3, 40, 8, true, 1e-6 }, { 33, 16, 0, false, 1 }, { 512, 4096, 0, false, 1 },
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static int n_shapes(const dllm_checker *k) { return dllm_trial_timing(k) ? N_SHAPES : N_SHAPES - 1; }

static void name(dllm_trial *t, const shape *s, const char *rest)
{
    dllm_trial_name(t, "n %d cols %d%s%s scale %g %s", (int)s->n, (int)s->cols, s->gap ? " strided" : "", s->gathered ? " gathered" : "", s->scale,
                    rest);
}

/* A matrix with room for the trial's rows: gathered, or after a few others. */
static int add_rows(dllm_trial *t, dllm_trial_role role, dllm_trial_kind kind, const shape *s)
{
    const int a = dllm_trial_add(t, role, kind, s->n + 3, s->cols, s->cols + s->gap);
    if (s->gathered) dllm_trial_gather(t, a);
    else t->array[a].first = dllm_trial_below(t->checker, 3);
    return a;
}

/* ---- embed ----------------------------------------------------------------------------------------------------------------------- */
enum { EMBED_TABLE, EMBED_IDS, EMBED_X };

static void run_embed(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    d->ops->embed(d, dllm_trial_mat(t, EMBED_X, at, 0), dllm_trial_rows(t, EMBED_X, at, first, n), dllm_trial_mat(t, EMBED_TABLE, at, 0),
                  at[EMBED_IDS]);
}

static void embed_case(dllm_checker *k, const shape *s, dllm_trial_kind x, dllm_trial_kind table)
{
    dllm_trial t;
    dllm_trial_begin(k, &t, "embed", s->n);
    name(&t, s, dllm_trial_kind_name(x));
    t.run = run_embed;
    dllm_trial_add(&t, TRIAL_IN, table, 50, s->cols, s->cols + s->gap);
    dllm_trial_fill(&t, EMBED_TABLE, s->scale);
    dllm_trial_add(&t, TRIAL_IN, TRIAL_I32, s->n + 3, 1, 0);
    for (int32_t r = 0; r < s->n + 3; r++) dllm_trial_set(&t, EMBED_IDS, r, 0, dllm_trial_below(k, 50));
    add_rows(&t, TRIAL_OUT, x, s);
    dllm_trial_end(&t);
}

void dllm_check_embed(dllm_checker *k)
{
    for (int i = 0; i < n_shapes(k); i++) {
        for (int j = 0; j < 9; j++) embed_case(k, &shapes[i], dllm_trial_floats[j % 3], dllm_trial_floats[j / 3]);
    }
}

/* ---- rmsnorm --------------------------------------------------------------------------------------------------------------------- */
enum { NORM_X, NORM_W, NORM_OUT };

static void run_rmsnorm(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    d->ops->rmsnorm(d, dllm_trial_mat(t, NORM_OUT, at, 0), dllm_trial_rows(t, NORM_OUT, at, first, n), dllm_trial_mat(t, NORM_X, at, 0),
                    dllm_trial_rows(t, NORM_X, at, first, n), dllm_trial_mat(t, NORM_W, at, 0), t->scalar);
}

static void rmsnorm_case(dllm_checker *k, const shape *s, dllm_trial_kind x, dllm_trial_kind w)
{
    const int order[3] = { NORM_X, NORM_W, NORM_OUT };
    dllm_trial t;
    dllm_trial_begin(k, &t, "rmsnorm", s->n);
    name(&t, s, dllm_trial_kind_name(x));
    t.run = run_rmsnorm;
    t.scalar = dllm_trial_below(k, 2) ? 1e-5f : 1e-6f;
    t.tolerance = x == TRIAL_F32 ? 4 : 2; /* the sum of squares; or a rounding that falls to the other side, twice */
    for (int i = 0; i < 3; i++) {
        if (order[i] == NORM_X) add_rows(&t, TRIAL_IN, x, s);
        if (order[i] == NORM_W) dllm_trial_add(&t, TRIAL_IN, w, 1, s->cols, 0);
        if (order[i] == NORM_OUT) add_rows(&t, TRIAL_OUT, x, s);
    }
    dllm_trial_end(&t);
}
