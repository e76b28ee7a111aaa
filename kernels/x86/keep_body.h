/* keep_body.h: replace, cosine and importance for the vectors that simd.h gives. Sums run in vectors over a stretch and in double
 * over the stretches. */
#include <math.h>

#include "keep.h"
#include "rows.h"
#include "simd.h"

enum { STRETCH = 32 * LANES, CHAINS = 2 };

/* ---- replace ----------------------------------------------------------------------------------------------------------------- */
VEC void exchange(const dllm_dtype t, void *v, void *kept, dllm_dtype kept_dtype, int64_t n)
{
    for (int64_t j = 0; j < n; j += LANES) {
        const vec is = vload(v, t, j, n - j), was = vload(kept, kept_dtype, j, n - j);
        vstore(kept, kept_dtype, j, n - j, is);
        vstore(v, t, j, n - j, vsub(is, was));
    }
}

static void replace_row(const struct rows_job *job, int32_t i, int thread)
{
    OF_DTYPE(job->x.dtype, exchange, dllm_at(job->x, i), dllm_at(job->y, dllm_row(job->y_rows, i)), job->y.dtype, job->x.cols);
}

static void replace(dllm_device *d, dllm_mat kept, dllm_rows rows, dllm_mat v)
{
    struct rows_job job = { replace_row, d, .x = v, .y = kept, .y_rows = rows, .n = rows.n };
    dllm_rows_run(&job, d->threads, v.cols);
}

/* ---- cosine ------------------------------------------------------------------------------------------------------------------ */
/* Adds x y, x x and y y of elements [j, end), at most a stretch, to total. */
VEC void add_products(const dllm_dtype t, const void *x, const void *y, dllm_dtype y_dtype, int64_t j, int64_t end, double total[3])
{
    vec sum[3][CHAINS];
    for (int i = 0; i < 3 * CHAINS; i++) sum[i / CHAINS][i % CHAINS] = vset(0);
    for (; j < end; j += CHAINS * LANES) {
#pragma GCC unroll 2
        for (int i = 0; i < CHAINS; i++) {
            const vec u = vload(x, t, j + i * LANES, end - j - i * LANES),
                      v = vload(y, y_dtype, j + i * LANES, end - j - i * LANES);
            sum[0][i] = vfma(u, v, sum[0][i]);
            sum[1][i] = vfma(u, u, sum[1][i]);
            sum[2][i] = vfma(v, v, sum[2][i]);
        }
    }
    for (int i = 0; i < 3; i++) total[i] += (double)vsum(vadd(sum[i][0], sum[i][1]));
}

VEC void compare(const dllm_dtype t, float *out, const void *x, const void *y, dllm_dtype y_dtype, int64_t n, double least)
{
    double total[3] = { 0 };
    for (int64_t j = 0; j < n; j += STRETCH) add_products(t, x, y, y_dtype, j, n - j < STRETCH ? n : j + STRETCH, total);
    *out = (float)(total[0] / sqrt(fmax(total[1], least) * fmax(total[2], least)));
}

static void cosine_row(const struct rows_job *job, int32_t i, int thread)
{
    OF_DTYPE(job->x.dtype, compare, (float *)job->result[0] + i, dllm_at(job->x, dllm_row(job->x_rows, i)),
             dllm_at(job->y, dllm_row(job->y_rows, i)), job->y.dtype, job->x.cols, (double)job->scalar);
}

static void cosine(dllm_device *d, float *out, dllm_mat a, dllm_rows a_rows, dllm_mat b, dllm_rows b_rows, float least)
{
    struct rows_job job = { cosine_row,       d, .x = a, .x_rows = a_rows, .y = b, .y_rows = b_rows, .n = a_rows.n, .scalar = least,
                            .result = { out } };
    dllm_rows_run(&job, d->threads, 2 * a.cols);
}

/* ---- importance -------------------------------------------------------------------------------------------------------------- */
/* The mean over heads and queries of q.k is the product of k with the queries' sum: first that sum, a k/v head a task. */
struct queries {
    dllm_mat q;
    dllm_rows rows;
    int64_t head_dim, group;
    double count;
    float *summed; /* [kv_heads * head_dim] */
};

static void sum_queries(void *arg, int head, int thread)
{
    const struct queries *a = arg;
    float *to = a->summed + head * a->head_dim;
    for (int64_t c = 0; c < a->head_dim; c += LANES) {
        const int64_t n = a->head_dim - c;
        vec sum = vset(0);
        for (int32_t i = 0; i < a->rows.n; i++) {
            const void *row = dllm_at(a->q, dllm_row(a->rows, i));
            for (int64_t h = head * a->group; h < (head + 1) * a->group; h++)
                sum = vadd(sum, vload(row, a->q.dtype, h * a->head_dim + c, n));
        }
        vstore(to, DLLM_F32, c, n, vdiv(sum, vset((float)a->count)));
    }
}

VEC void weigh(const dllm_dtype t, float *out, const void *key, const float *summed, int64_t n)
{
    double total = 0;
    for (int64_t at = 0; at < n; at += STRETCH) {
        const int64_t end = n - at < STRETCH ? n : at + STRETCH;
        vec sum[CHAINS] = { vset(0), vset(0) };
        for (int64_t j = at; j < end; j += CHAINS * LANES) {
#pragma GCC unroll 2
            for (int i = 0; i < CHAINS; i++) {
                const int64_t c = j + i * LANES;
                sum[i] = vfma(vload(key, t, c, end - c), vload(summed, DLLM_F32, c, end - c), sum[i]);
            }
        }
        total += (double)vsum(vadd(sum[0], sum[1]));
    }
    *out = (float)total;
}

static void weigh_row(const struct rows_job *job, int32_t i, int thread)
{
    OF_DTYPE(job->x.dtype, weigh, (float *)job->result[0] + i, dllm_at(job->x, dllm_row(job->x_rows, i)), job->d->scratch,
             job->x.cols);
}

static void importance(dllm_device *d, float *out, dllm_mat q, dllm_rows q_rows, dllm_mat k, dllm_rows k_rows, int32_t heads,
                       int32_t kv_heads)
{
    if (k_rows.n == 0) return;
    struct queries a = { q, q_rows, k.cols / kv_heads, heads / kv_heads, (double)q_rows.n * (double)heads, d->scratch };
    const bool small = (int64_t)q_rows.n * q.cols < 65536;
    dllm_parallel(small ? 1 : d->threads, kv_heads, sum_queries, &a);
    struct rows_job job = { weigh_row, d, .x = k, .x_rows = k_rows, .n = k_rows.n, .result = { out } };
    dllm_rows_run(&job, d->threads, k.cols);
}
