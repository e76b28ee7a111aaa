/* The arrays of a trial: where rows lie, what is in them, and how a kernel is shown them. */
#include "trial.h"

#include <math.h>
#include <stdlib.h>

enum { GUARD = 128 };

static size_t size_of(dllm_trial_kind k)
{
    static const size_t sizes[] = { 4, 2, 2, 1, 4, 8, sizeof(dllm_key) };
    return sizes[k];
}

double dllm_trial_epsilon(dllm_trial_kind k) { return k == TRIAL_BF16 ? 0x1p-7 : k == TRIAL_F16 ? 0x1p-10 : 0x1p-23; }

/* The pattern is no number that a kernel would give, and differs from byte to byte so that a shift shows. */
static void paint(unsigned char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) p[i] = (unsigned char)(0xa1 + 7 * (i % 11));
}

/* Every other array starts where no vector would like it to. */
int dllm_trial_add(dllm_trial *t, dllm_trial_role role, dllm_trial_kind kind, int64_t rows, int64_t cols, int64_t stride)
{
    dllm_trial_array *a = &t->array[t->n_arrays];
    *a =
        (dllm_trial_array){ .kind = kind, .role = role, .rows = rows, .cols = cols, .stride = stride ? stride : cols, .order = -1 };
    const size_t shift = kind <= TRIAL_F16 && dllm_trial_below(t->checker, 2) ? 1 + (size_t)dllm_trial_below(t->checker, 7) : 0;
    const size_t body = (size_t)(rows * a->stride) * size_of(kind);
    a->start = GUARD + shift * size_of(kind);
    a->bytes = a->start + body + GUARD;
    a->image = malloc(a->bytes);
    if (a->image) {
        paint(a->image, a->bytes);
        for (int64_t r = 0; role != TRIAL_OUT && r < rows; r++)
            memset(a->image + a->start + (size_t)(r * a->stride) * size_of(kind), 0, (size_t)cols * size_of(kind));
    }
    return t->n_arrays++;
}

int dllm_trial_add_shared(dllm_trial *t, dllm_trial_role role, dllm_trial_kind kind, int64_t rows, int64_t cols)
{
    const int array = dllm_trial_add(t, role, kind, rows, cols, 0);
    t->array[array].shared = true;
    return array;
}

void dllm_trial_slack(dllm_trial *t, int array, int32_t row, double slack)
{
    dllm_trial_array *a = &t->array[array];
    if (!a->slack) a->slack = calloc((size_t)t->rows, sizeof(double));
    if (a->slack) a->slack[row] = slack;
}

static unsigned char *element(const dllm_trial *t, int array, int64_t row, int64_t col)
{
    const dllm_trial_array *a = &t->array[array];
    return a->image + a->start + (size_t)(row * a->stride + col) * size_of(a->kind);
}

double dllm_trial_get(const dllm_trial *t, int array, int64_t row, int64_t col)
{
    const dllm_trial_array *a = &t->array[array];
    if (!a->image) return 0;
    const void *p = element(t, array, row, col);
    if (a->kind == TRIAL_I8) return *(const int8_t *)p;
    if (a->kind == TRIAL_I32) return *(const int32_t *)p;
    if (a->kind == TRIAL_F64) return *(const double *)p;
    return (double)dllm_get(p, (dllm_dtype)a->kind, 0);
}

void dllm_trial_set(dllm_trial *t, int array, int64_t row, int64_t col, double value)
{
    const dllm_trial_array *a = &t->array[array];
    if (!a->image) return;
    void *p = element(t, array, row, col);
    if (a->kind == TRIAL_I8) *(int8_t *)p = (int8_t)value;
    else if (a->kind == TRIAL_I32) *(int32_t *)p = (int32_t)value;
    else if (a->kind == TRIAL_F64) *(double *)p = value;
    else dllm_put(p, (dllm_dtype)a->kind, 0, (float)value);
}

void dllm_trial_fill(dllm_trial *t, int array, double scale)
{
    const dllm_trial_array *a = &t->array[array];
    for (int64_t r = 0; r < a->rows; r++) {
        for (int64_t c = 0; c < a->cols; c++) {
            double sum = -2; /* of four uniforms: bell-shaped enough */
            for (int i = 0; i < 4; i++) sum += dllm_trial_uniform(t->checker);
            dllm_trial_set(t, array, r, c, sum * sqrt(3) * scale);
        }
    }
}

double dllm_trial_norm(const dllm_trial *t, int array, int64_t row)
{
    const dllm_trial_array *a = &t->array[array];
    double longest = 0;
    for (int64_t r = row < 0 ? 0 : row; r < (row < 0 ? a->rows : row + 1); r++) {
        double squares = 0;
        for (int64_t c = 0; c < a->cols; c++) squares += dllm_trial_get(t, array, r, c) * dllm_trial_get(t, array, r, c);
        if (squares > longest) longest = squares;
    }
    return sqrt(longest);
}

/* ---- row sets --------------------------------------------------------------------------------------------------------------- */
void dllm_trial_gather(dllm_trial *t, int array)
{
    const int32_t n = (int32_t)t->array[array].rows;
    const int order = dllm_trial_add_shared(t, TRIAL_IN, TRIAL_I32, n, 1);
    const int32_t offset = n % 5 - 2;
    for (int32_t i = 0; i < n; i++) { /* a shuffle that builds as it goes */
        const int32_t j = dllm_trial_below(t->checker, i + 1);
        dllm_trial_set(t, order, i, 0, dllm_trial_get(t, order, j, 0));
        dllm_trial_set(t, order, j, 0, i - offset);
    }
    t->array[array].order = order;
    t->array[array].first = offset;
}

int64_t dllm_trial_place(const dllm_trial *t, int array, int32_t row)
{
    const dllm_trial_array *a = &t->array[array];
    return a->first + (a->order < 0 ? row : (int64_t)dllm_trial_get(t, a->order, row, 0));
}

dllm_mat dllm_trial_mat(const dllm_trial *t, int array, void *const *at, int32_t first)
{
    const dllm_trial_array *a = &t->array[array];
    void *data = (char *)at[array] + (size_t)(first * a->stride) * size_of(a->kind);
    return (dllm_mat){ .data = data, .rows = a->rows - first, .cols = a->cols, .stride = a->stride, .dtype = (dllm_dtype)a->kind };
}

dllm_rows dllm_trial_rows(const dllm_trial *t, int array, void *const *at, int32_t first, int32_t n)
{
    const dllm_trial_array *a = &t->array[array];
    const dllm_rows all = { .idx = a->order < 0 ? NULL : at[a->order], .first = a->first, .n = t->rows };
    dllm_rows part = dllm_part(all, first, t->count ? t->rows - first : n);
    part.count = t->count;
    return part;
}
