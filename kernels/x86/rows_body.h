/* rows_body.h: embed, rmsnorm, rope, swiglu, add and guide for the vectors that simd.h gives. Products and sums are not fused, so
 * that they round as the plain-C kernels do. */
#include <math.h>

#include "rows.h"
#include "simd.h"

/* ---- embed ------------------------------------------------------------------------------------------------------------------------- */
static void embed_row(const struct rows_job *job, int32_t i, int thread)
{
    const int32_t r = dllm_row(job->x_rows, i);
    const void *from = dllm_at(job->y, job->ids[r]);
    void *to = dllm_at(job->x, r);
    const dllm_dtype a = job->x.dtype, b = job->y.dtype;
    const int64_t n = job->x.cols;
    if (a == b) memcpy(to, from, (size_t)n * (a == DLLM_F32 ? 4 : 2));
    else
        for (int64_t j = 0; j < n; j += LANES) vstore(to, a, j, n - j, vload(from, b, j, n - j));
}

static void embed(dllm_device *d, dllm_mat x, dllm_rows rows, dllm_mat table, const int32_t *ids)
{
    struct rows_job job = { embed_row, d, .x = x, .x_rows = rows, .y = table, .n = rows.n, .ids = ids };
    dllm_rows_run(&job, d->threads, x.cols);
}

/* ---- rmsnorm ---------------------------------------------------------------------------------------------------------------- */
VEC float squares(const dllm_dtype t, const void *x, int64_t n)
{
    vec sum[4] = { vset(0), vset(0), vset(0), vset(0) };
    int64_t j = 0;
    for (; j + 4 * LANES <= n; j += 4 * LANES) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const vec v = vload(x, t, j + i * LANES, LANES);
            sum[i] = vfma(v, v, sum[i]);
        }
    }
    for (; j < n; j += LANES) {
        const vec v = vload(x, t, j, n - j);
        sum[0] = vfma(v, v, sum[0]);
    }
    return vsum(vadd(vadd(sum[0], sum[1]), vadd(sum[2], sum[3])));
}

VEC void norm(const dllm_dtype t, void *to, const void *from, dllm_mat w, int64_t n, float eps)
{
    const vec scale = vset((float)(1 / sqrt((double)squares(t, from, n) / (double)n + (double)eps)));
    for (int64_t j = 0; j < n; j += LANES) {
        const vec unit = vround(vmul(vload(from, t, j, n - j), scale), t);
        vstore(to, t, j, n - j, vmul(unit, vload(w.data, w.dtype, j, n - j)));
    }
}

static void norm_row(const struct rows_job *job, int32_t i, int thread)
{
    const void *from = dllm_at(job->x, dllm_row(job->x_rows, i));
    void *to = dllm_at(job->out, dllm_row(job->out_rows, i));
    OF_DTYPE(job->x.dtype, norm, to, from, job->y, job->x.cols, job->scalar);
}

static void rmsnorm(dllm_device *d, dllm_mat out, dllm_rows out_rows, dllm_mat x, dllm_rows rows, dllm_mat w, float eps)
{
    struct rows_job job = { norm_row,       d,      .out = out,  .out_rows = out_rows, .x = x,
                            .x_rows = rows, .y = w, .n = rows.n, .scalar = eps };
    dllm_rows_run(&job, d->threads, x.cols);
}

/* ---- rope ------------------------------------------------------------------------------------------------------------------- */
VEC void turn(const dllm_dtype t, void *row, const float *cosines, const float *sines, const struct rows_job *job)
{
    const int64_t half = job->head_dim / 2;
    const dllm_dtype products = job->flag ? t : DLLM_F32;
    for (int64_t a = 0, b = half; a < job->x.cols; a += 2 * half, b += 2 * half) {
        for (int64_t j = 0; j < half; j += LANES) {
            const int64_t n = half - j;
            const vec x = vload(row, t, a + j, n), y = vload(row, t, b + j, n);
            const vec c = vload(cosines, DLLM_F32, j, n), s = vload(sines, DLLM_F32, j, n);
            vstore(row, t, a + j, n, vsub(vround(vmul(x, c), products), vround(vmul(y, s), products)));
            vstore(row, t, b + j, n, vadd(vround(vmul(y, c), products), vround(vmul(x, s), products)));
        }
    }
}

static void rope_row(const struct rows_job *job, int32_t i, int thread)
{
    const int32_t angle = dllm_row(job->y_rows, i);
    OF_DTYPE(job->x.dtype, turn, dllm_at(job->x, dllm_row(job->x_rows, i)), dllm_at(job->y, angle), dllm_at(job->z, angle), job);
}

static void rope(dllm_device *d, dllm_mat x, dllm_rows x_rows, dllm_mat cosines, dllm_mat sines, dllm_rows table_rows,
                 int32_t head_dim, bool round_products)
{
    struct rows_job job = { rope_row, d, .x = x, .x_rows = x_rows, .y = cosines, .z = sines, .y_rows = table_rows, .n = x_rows.n };
    job.head_dim = head_dim;
    job.flag = round_products;
    dllm_rows_run(&job, d->threads, x.cols);
}

/* ---- swiglu, add, guide ----------------------------------------------------------------------------------------------------- */
VEC void gate_row(const dllm_dtype t, void *to, const void *gate, const void *up, int64_t n)
{
    for (int64_t j = 0; j < n; j += LANES) {
        const vec x = vload(gate, t, j, n - j);
        const vec silu = vround(vdiv(x, vadd(vset(1), vexp(vsub(vset(0), x)))), t);
        vstore(to, t, j, n - j, vmul(silu, vload(up, t, j, n - j)));
    }
}

static void swiglu_row(const struct rows_job *job, int32_t i, int thread)
{
    const int32_t row = dllm_row(job->x_rows, i);
    OF_DTYPE(job->out.dtype, gate_row, dllm_at(job->out, row), dllm_at(job->x, row), dllm_at(job->y, row), job->x.cols);
}

static void swiglu(dllm_device *d, dllm_mat out, dllm_mat gate, dllm_mat up, dllm_rows rows)
{
    struct rows_job job = { swiglu_row, d, .out = out, .x = gate, .x_rows = rows, .y = up, .n = rows.n };
    dllm_rows_run(&job, d->threads, 4 * gate.cols);
}

VEC void sum_rows(const dllm_dtype t, void *x, const void *y, dllm_dtype y_dtype, int64_t n)
{
    for (int64_t j = 0; j < n; j += LANES) vstore(x, t, j, n - j, vadd(vload(x, t, j, n - j), vload(y, y_dtype, j, n - j)));
}

static void add_row(const struct rows_job *job, int32_t i, int thread)
{
    OF_DTYPE(job->x.dtype, sum_rows, dllm_at(job->x, dllm_row(job->x_rows, i)), dllm_at(job->y, dllm_row(job->y_rows, i)),
             job->y.dtype, job->x.cols);
}

static void add(dllm_device *d, dllm_mat x, dllm_rows rows, dllm_mat y, dllm_rows y_rows)
{
    struct rows_job job = { add_row, d, .x = x, .x_rows = rows, .y = y, .y_rows = y_rows, .n = rows.n };
    dllm_rows_run(&job, d->threads, x.cols);
}

static void guide_row(const struct rows_job *job, int32_t i, int thread)
{
    float *with = dllm_at(job->x, i);
    const float *without = dllm_at(job->y, i);
    const int64_t n = job->x.cols;
    const vec scale = vset(job->scalar + 1);
    for (int64_t j = 0; j < n; j += LANES) {
        const vec u = vload(without, DLLM_F32, j, n - j), c = vload(with, DLLM_F32, j, n - j);
        vstore(with, DLLM_F32, j, n - j, vadd(u, vmul(scale, vsub(c, u))));
    }
}

static void guide(dllm_device *d, dllm_mat c, dllm_mat u, int32_t n, float scale)
{
    struct rows_job job = { guide_row, d, .x = c, .y = u, .n = n, .scalar = scale };
    dllm_rows_run(&job, d->threads, c.cols);
}
