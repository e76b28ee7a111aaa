/* Cases of the kernels that go over rows, element by element or pair by pair: embed, rmsnorm, rope, swiglu, add, guidance. */
#include <math.h>

#include "trial.h"

/* Sizes that are multiples of no vector, of every vector, and smaller than any. The last ones are for timing. */
typedef struct {
    int32_t n, cols, gap;
    bool gathered;
    double scale;
} shape;
static const shape shapes[] = {
    { 0, 16, 0, false, 1 },   { 0, 16, 3, true, 1 },     { 1, 1, 0, false, 1 },      { 1, 64, 0, true, 1 },
    { 2, 7, 1, false, 1 },    { 3, 8, 0, true, 1e-4 },   { 5, 31, 4, true, 1 },      { 7, 33, 0, false, 100 },
    { 6, 129, 7, true, 10 },  { 4, 1000, 24, false, 1 }, { 17, 96, 0, true, 1 },     { 40, 2049, 3, true, 1 },
    { 3, 40, 8, true, 1e-6 }, { 33, 16, 0, false, 1 },   { 512, 4096, 0, false, 1 },
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static int n_shapes(const dllm_checker *k) { return dllm_trial_timing(k) ? N_SHAPES : N_SHAPES - 1; }

static void name(dllm_trial *t, const shape *s, dllm_trial_kind a, dllm_trial_kind b)
{
    dllm_trial_name(t, "n %d cols %d%s%s scale %g %s %s", (int)s->n, (int)s->cols, s->gap ? " strided" : "",
                    s->gathered ? " gathered" : "", s->scale, dllm_trial_kind_name(a), dllm_trial_kind_name(b));
}

/* A matrix with room for the rows of the trial and three more. */
static void add_matrix(dllm_trial *t, dllm_trial_role role, dllm_trial_kind kind, const shape *s)
{
    dllm_trial_add(t, role, kind, s->n + 3, s->cols, s->cols + s->gap);
}

/* Once all matrices are there: where the rows of two of them lie. */
static void place(dllm_trial *t, const shape *s, int one, int other)
{
    const int arrays[2] = { one, other };
    for (int i = 0; i < 2; i++) {
        if (s->gathered) dllm_trial_gather(t, arrays[i]);
        else t->array[arrays[i]].first = dllm_trial_below(t->checker, 3);
    }
}

/* ---- embed ------------------------------------------------------------------------------------------------------------------ */
enum { EMBED_TABLE, EMBED_IDS, EMBED_X };

static void run_embed(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    d->ops->embed(d, dllm_trial_mat(t, EMBED_X, at, 0), dllm_trial_rows(t, EMBED_X, at, first, n),
                  dllm_trial_mat(t, EMBED_TABLE, at, 0), at[EMBED_IDS]);
}

static void embed_case(dllm_checker *k, const shape *s, dllm_trial_kind x, dllm_trial_kind table)
{
    dllm_trial t;
    dllm_trial_begin(k, &t, "embed", s->n);
    name(&t, s, x, table);
    t.run = run_embed;
    dllm_trial_add(&t, TRIAL_IN, table, 50, s->cols, s->cols + s->gap);
    dllm_trial_add_shared(&t, TRIAL_IN, TRIAL_I32, s->n + 3, 1);
    add_matrix(&t, TRIAL_OUT, x, s);
    if (s->gathered) dllm_trial_gather(&t, EMBED_X);
    else t.array[EMBED_X].first = dllm_trial_below(k, 3);
    dllm_trial_fill(&t, EMBED_TABLE, s->scale);
    for (int32_t r = 0; r < s->n + 3; r++) dllm_trial_set(&t, EMBED_IDS, r, 0, dllm_trial_below(k, 50));
    dllm_trial_end(&t);
}

void dllm_check_embed(dllm_checker *k)
{
    for (int i = 0; i < n_shapes(k); i++) {
        for (int j = 0; j < 9; j++) embed_case(k, &shapes[i], dllm_trial_floats[j % 3], dllm_trial_floats[j / 3]);
    }
}

/* ---- rmsnorm ---------------------------------------------------------------------------------------------------------------- */
enum { NORM_X, NORM_W, NORM_OUT };

static void run_rmsnorm(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    d->ops->rmsnorm(d, dllm_trial_mat(t, NORM_OUT, at, 0), dllm_trial_rows(t, NORM_OUT, at, first, n),
                    dllm_trial_mat(t, NORM_X, at, 0), dllm_trial_rows(t, NORM_X, at, first, n), dllm_trial_mat(t, NORM_W, at, 0),
                    t->scalar);
}

static void rmsnorm_case(dllm_checker *k, const shape *s, dllm_trial_kind x, dllm_trial_kind w)
{
    dllm_trial t;
    dllm_trial_begin(k, &t, "rmsnorm", s->n);
    name(&t, s, x, w);
    t.run = run_rmsnorm;
    t.counts = true;
    t.scalar = dllm_trial_below(k, 2) ? 1e-5f : 1e-6f;
    t.tolerance = x == TRIAL_F32 ? 4 : 2; /* the sum of squares, seen: 2.7; or two roundings that fall to the other side */
    add_matrix(&t, TRIAL_IN, x, s);
    dllm_trial_add(&t, TRIAL_IN, w, 1, s->cols, 0);
    add_matrix(&t, TRIAL_OUT, x, s);
    place(&t, s, NORM_X, NORM_OUT);
    dllm_trial_fill(&t, NORM_X, s->scale);
    dllm_trial_fill(&t, NORM_W, 1);
    dllm_trial_end(&t);
}

void dllm_check_rmsnorm(dllm_checker *k)
{
    for (int i = 0; i < n_shapes(k); i++) {
        for (int j = 0; j < 9; j++) rmsnorm_case(k, &shapes[i], dllm_trial_floats[j % 3], dllm_trial_floats[j / 3]);
    }
}

/* ---- swiglu, add, guide ----------------------------------------------------------------------------------------------------- */
enum { PAIR_A, PAIR_B, PAIR_OUT };

static void run_swiglu(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    const int out = t->flag ? PAIR_A : PAIR_OUT;
    d->ops->swiglu(d, dllm_trial_mat(t, out, at, 0), dllm_trial_mat(t, PAIR_A, at, 0), dllm_trial_mat(t, PAIR_B, at, 0),
                   dllm_trial_rows(t, out, at, first, n));
}

static void run_add(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    d->ops->add(d, dllm_trial_mat(t, PAIR_A, at, 0), dllm_trial_rows(t, PAIR_A, at, first, n), dllm_trial_mat(t, PAIR_B, at, 0),
                dllm_trial_rows(t, PAIR_B, at, first, n));
}

static void run_guide(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    d->ops->guide(d, dllm_trial_mat(t, PAIR_A, at, first), dllm_trial_mat(t, PAIR_B, at, first), n, t->scalar);
}

/* Large gates reach the ends of the exponential. */
static void swiglu_case(dllm_checker *k, const shape *s, dllm_trial_kind kind, bool in_place)
{
    dllm_trial t;
    dllm_trial_begin(k, &t, "swiglu", s->n);
    name(&t, s, kind, kind);
    t.run = run_swiglu;
    t.counts = true;
    t.flag = in_place;
    t.tolerance = kind == TRIAL_F32 ? 5 : 2; /* seen: 2.5; or two roundings that fall to the other side */
    add_matrix(&t, in_place ? TRIAL_OUT : TRIAL_IN, kind, s);
    add_matrix(&t, TRIAL_IN, kind, s);
    if (!in_place) add_matrix(&t, TRIAL_OUT, kind, s);
    if (s->gathered) dllm_trial_gather(&t, in_place ? PAIR_A : PAIR_OUT);
    dllm_trial_fill(&t, PAIR_A, 3 * (kind == TRIAL_F16 ? fmin(s->scale, 10) : s->scale)); /* products stay below 65504 */
    dllm_trial_fill(&t, PAIR_B, 1);
    dllm_trial_end(&t);
}

void dllm_check_swiglu(dllm_checker *k)
{
    for (int i = 0; i < n_shapes(k); i++) {
        for (int j = 0; j < 6; j++) swiglu_case(k, &shapes[i], dllm_trial_floats[j % 3], j >= 3);
    }
}

static void add_case(dllm_checker *k, const shape *s, dllm_trial_kind x, dllm_trial_kind y)
{
    dllm_trial t;
    dllm_trial_begin(k, &t, "add", s->n);
    name(&t, s, x, y);
    t.run = run_add; /* one operation and one rounding: nothing to tolerate */
    add_matrix(&t, TRIAL_OUT, x, s);
    add_matrix(&t, TRIAL_IN, y, s);
    place(&t, s, PAIR_A, PAIR_B);
    dllm_trial_fill(&t, PAIR_A, s->scale);
    dllm_trial_fill(&t, PAIR_B, 1);
    dllm_trial_end(&t);
}

void dllm_check_add(dllm_checker *k)
{
    for (int i = 0; i < n_shapes(k); i++) {
        for (int j = 0; j < 9; j++) add_case(k, &shapes[i], dllm_trial_floats[j % 3], dllm_trial_floats[j / 3]);
    }
}

/* The row of PAIR_A is moved by that of PAIR_B, as the scalar says. gathered: rows of PAIR_B may lie anywhere. */
static void guide_case(dllm_checker *k, const shape *s, const char *kernel,
                       void (*run_it)(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n),
                       bool gathered)
{
    dllm_trial t;
    dllm_trial_begin(k, &t, kernel, s->n);
    name(&t, s, TRIAL_F32, TRIAL_F32);
    t.run = run_it;
    t.scalar = (float)(0.5 + 3 * dllm_trial_uniform(k));
    t.tolerance = 1;
    add_matrix(&t, TRIAL_OUT, TRIAL_F32, s);
    add_matrix(&t, TRIAL_IN, TRIAL_F32, s);
    if (gathered) dllm_trial_gather(&t, PAIR_B);
    dllm_trial_fill(&t, PAIR_A, s->scale);
    dllm_trial_fill(&t, PAIR_B, s->scale);
    for (int32_t r = 0; r < s->n; r++)
        dllm_trial_slack(&t, PAIR_A, r, 100 * s->scale * dllm_trial_epsilon(TRIAL_F32)); /* fused or not */
    dllm_trial_end(&t);
}

void dllm_check_guide(dllm_checker *k)
{
    for (int i = 0; i < n_shapes(k); i++) guide_case(k, &shapes[i], "guide", run_guide, false);
}

static void run_guide_keep(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    d->ops->guide_keep(d, dllm_trial_mat(t, PAIR_OUT, at, 0), dllm_trial_rows(t, PAIR_OUT, at, first, n),
                       dllm_trial_mat(t, PAIR_A, at, first), dllm_trial_mat(t, PAIR_B, at, first));
}

static void run_guide_again(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    d->ops->guide_again(d, dllm_trial_mat(t, PAIR_A, at, first), dllm_trial_mat(t, PAIR_B, at, 0),
                        dllm_trial_rows(t, PAIR_B, at, first, n), t->scalar);
}

void dllm_check_guide_keep(dllm_checker *k)
{
    for (int i = 0; i < n_shapes(k); i++) {
        const shape *s = &shapes[i];
        dllm_trial t;
        dllm_trial_begin(k, &t, "guide_keep", s->n);
        name(&t, s, TRIAL_F32, TRIAL_F32);
        t.run = run_guide_keep; /* one operation: nothing to tolerate */
        for (int m = 0; m < 3; m++) add_matrix(&t, m == PAIR_OUT ? TRIAL_OUT : TRIAL_IN, TRIAL_F32, s);
        if (s->gathered) dllm_trial_gather(&t, PAIR_OUT);
        dllm_trial_fill(&t, PAIR_A, s->scale);
        dllm_trial_fill(&t, PAIR_B, s->scale);
        dllm_trial_end(&t);
    }
}

void dllm_check_guide_again(dllm_checker *k)
{
    for (int i = 0; i < n_shapes(k); i++) guide_case(k, &shapes[i], "guide_again", run_guide_again, shapes[i].gathered);
}

/* ---- rope ------------------------------------------------------------------------------------------------------------------- */
enum { ROPE_X, ROPE_COS, ROPE_SIN };

static void run_rope(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    d->ops->rope(d, dllm_trial_mat(t, ROPE_X, at, 0), dllm_trial_rows(t, ROPE_X, at, first, n), dllm_trial_mat(t, ROPE_COS, at, 0),
                 dllm_trial_mat(t, ROPE_SIN, at, 0), dllm_trial_rows(t, ROPE_COS, at, first, n), t->head_dim, t->flag);
}

static void fill_angles(dllm_trial *t, dllm_trial_kind kind)
{
    for (int64_t r = 0; r < t->array[ROPE_COS].rows; r++) {
        for (int64_t c = 0; c < t->array[ROPE_COS].cols; c++) {
            const double angle = (double)(r * 37 % 500) * pow(1e4, -2. * (double)c / t->head_dim);
            dllm_trial_set(t, ROPE_COS, r, c, dllm_round((float)cos(angle), (dllm_dtype)kind));
            dllm_trial_set(t, ROPE_SIN, r, c, dllm_round((float)sin(angle), (dllm_dtype)kind));
        }
    }
}

static void rope_case(dllm_checker *k, const shape *s, int32_t head_dim, dllm_trial_kind kind, bool round_products)
{
    dllm_trial t;
    dllm_trial_begin(k, &t, "rope", s->n);
    shape whole = *s;
    whole.cols = (s->cols + head_dim - 1) / head_dim * head_dim;
    name(&t, &whole, kind, round_products ? kind : TRIAL_F32);
    t.run = run_rope;
    t.counts = true;
    t.head_dim = head_dim;
    t.flag = round_products;
    t.tolerance = 1;
    add_matrix(&t, TRIAL_OUT, kind, &whole);
    for (int i = 0; i < 2; i++) dllm_trial_add(&t, TRIAL_IN, TRIAL_F32, s->n + 3, head_dim / 2, head_dim / 2 + s->gap);
    place(&t, s, ROPE_X, ROPE_COS);
    dllm_trial_fill(&t, ROPE_X, s->scale);
    fill_angles(&t, round_products ? kind : TRIAL_F32);
    for (int32_t r = 0; r < s->n; r++)
        dllm_trial_slack(&t, ROPE_X, r, 10 * s->scale * dllm_trial_epsilon(TRIAL_F32)); /* fused or not */
    dllm_trial_end(&t);
}

void dllm_check_rope(dllm_checker *k)
{
    static const int32_t head_dims[] = { 2, 8, 12, 16, 64, 128 };
    for (int i = 0; i < n_shapes(k); i++) {
        for (int j = 0; j < 36; j++) rope_case(k, &shapes[i], head_dims[j / 6], dllm_trial_floats[j % 3], j / 3 % 2);
    }
}
