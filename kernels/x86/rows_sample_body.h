/* rows_sample_body.h: predict and nll for the vectors that simd.h gives; the plain-C kernel's own function draws where chance or
 * filters decide. A row is read a few times, from the second time on out of the cache. Sums run in vectors over a stretch and in
 * double over the stretches. */
#include "../../csrc/rng.h"
#include "../c/c.h"
#include "rows.h"
#include "simd.h"

enum { STRETCH = 64 * LANES };

static int64_t stretch_of(int64_t n, int64_t at) { return n - at < STRETCH ? n - at : STRETCH; }

static float highest_of(const float *z, int64_t n)
{
    vec m[4];
    for (int i = 0; i < 4; i++) m[i] = vset(-INFINITY);
    int64_t j = 0;
    for (; j + 4 * LANES <= n; j += 4 * LANES) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) m[i] = vmax(m[i], vget(z + j + i * LANES));
    }
    for (; j < n; j += LANES) m[0] = vmax(m[0], vfirst(vload(z, DLLM_F32, j, n - j), n - j, -INFINITY));
    return vhighest(vmax(vmax(m[0], m[1]), vmax(m[2], m[3])));
}

/* The lowest column of the highest logit: the first stretch that has it is looked through. */
static int32_t argmax(const float *z, int64_t n)
{
    float best = -INFINITY;
    int64_t first = 0;
    for (int64_t at = 0; at < n; at += STRETCH) {
        const float m = highest_of(z + at, stretch_of(n, at));
        if (m > best) {
            best = m;
            first = at;
        }
    }
    const int64_t end = first + stretch_of(n, first);
    for (int64_t j = first; j < end; j++) {
        if (z[j] == best) return (int32_t)j;
    }
    return 0;
}

static double sum_exp(const float *z, int64_t n, float highest)
{
    double total = 0;
    for (int64_t at = 0; at < n; at += STRETCH) {
        const int64_t end = at + stretch_of(n, at);
        vec sum[2] = { vset(0), vset(0) };
        int64_t j = at;
        for (; j + 2 * LANES <= end; j += 2 * LANES) {
            sum[0] = vadd(sum[0], vexp(vsub(vget(z + j), vset(highest))));
            sum[1] = vadd(sum[1], vexp(vsub(vget(z + j + LANES), vset(highest))));
        }
        for (; j < end; j += LANES) {
            const vec e = vexp(vsub(vload(z, DLLM_F32, j, end - j), vset(highest)));
            sum[0] = vadd(sum[0], vfirst(e, end - j, 0));
        }
        total += (double)vsum(vadd(sum[0], sum[1]));
    }
    return total;
}

static float probability(float z, float highest, double total) { return (float)((double)expf(z - highest) / total); }

static float margin(const float *z, int64_t n, float highest, double total)
{
    vec first = vset(-INFINITY), second = first;
    for (int64_t j = 0; j < n; j += LANES) {
        const vec x = vfirst(vload(z, DLLM_F32, j, n - j), n - j, -INFINITY);
        second = vmax(second, vmin(first, x));
        first = vmax(first, x);
    }
    float a[LANES], b[LANES];
    vput(a, first);
    vput(b, second);
    for (int i = 1; i < LANES; i++) {
        b[0] = fmaxf(fmaxf(b[0], b[i]), fminf(a[0], a[i]));
        a[0] = fmaxf(a[0], a[i]);
    }
    return probability(a[0], highest, total) - probability(b[0], highest, total);
}

static float negative_entropy(const float *z, int64_t n, float highest, double total)
{
    const vec share = vset((float)(1 / total));
    double entropy = 0;
    for (int64_t at = 0; at < n; at += STRETCH) {
        const int64_t end = at + stretch_of(n, at);
        vec sum = vset(0);
        for (int64_t j = at; j < end; j += LANES) {
            const vec p = vmul(vexp(vsub(vload(z, DLLM_F32, j, end - j), vset(highest))), share);
            sum = vadd(sum, vfirst(vmul(p, vlog(vadd(p, vset(1e-10f)))), end - j, 0));
        }
        entropy += (double)vsum(sum);
    }
    return (float)entropy;
}

static bool greedy(const dllm_sampling *how, int64_t n)
{
    const bool filtered = !how->gumbel && (how->top_p < 1 || (how->top_k > 0 && how->top_k < n));
    return how->temperature <= 0 && !filtered;
}

/* What the plain-C function wants of scratch; each thread has its own. */
static size_t heap_bytes(int64_t n) { return ((size_t)n * sizeof(int32_t) + 63) / 64 * 64; }

static int32_t draw_token(const struct rows_job *job, float *z, int32_t i, int thread)
{
    const int64_t n = job->x.cols;
    if (greedy(job->how, n)) return argmax(z, n);
    const char *noise = job->noise;
    if (noise) noise += (size_t)job->noise_rows[i] * (size_t)n * (job->how->gumbel ? sizeof(double) : sizeof(float));
    return dllm_draw_c(z, n, job->how, &job->keys[i], noise,
                       (int32_t *)(void *)((char *)job->d->scratch + (size_t)thread * heap_bytes(n)));
}

static void predict_row(const struct rows_job *job, int32_t i, int thread)
{
    const dllm_sampling *how = job->how;
    const int64_t n = job->x.cols;
    float *z = dllm_at(job->x, i), *score = (float *)job->result[1] + i, *prob = (float *)job->result[2] + i;
    for (int32_t b = 0; b < how->n_banned; b++) z[how->banned[b]] = -INFINITY;
    const int32_t token = draw_token(job, z, i, thread);
    for (int32_t b = 0; b < how->n_unscored; b++) z[how->unscored[b]] = -INFINITY;
    const float highest = highest_of(z, n);
    const double total = sum_exp(z, n, highest);
    ((int32_t *)job->result[0])[i] = token;
    *score = *prob = probability(z[token], highest, total);
    if (how->score == DLLM_SCORE_MARGIN) *score = margin(z, n, highest, total);
    if (how->score == DLLM_SCORE_ENTROPY) *score = negative_entropy(z, n, highest, total);
    if (how->score == DLLM_SCORE_RANDOM) *score = dllm_uniform(&job->keys[i], DLLM_USE_REMASK);
}

static void predict(dllm_device *d, int32_t *token, float *score, float *prob, dllm_mat logits, int32_t n, const dllm_sampling *how,
                    const dllm_key *keys, const void *noise, const int32_t *noise_rows)
{
    struct rows_job job = { predict_row, d, .x = logits, .n = n, .result = { token, score, prob }, .how = how, .keys = keys };
    job.noise = noise;
    job.noise_rows = noise_rows;
    int threads = d->threads;
    while (threads > 1 && heap_bytes(logits.cols) * (size_t)threads > d->scratch_bytes) threads--;
    dllm_rows_run(&job, greedy(how, logits.cols) ? d->threads : threads, logits.cols);
}

static void nll_row(const struct rows_job *job, int32_t i, int thread)
{
    const float *z = dllm_at(job->x, i), highest = highest_of(z, job->x.cols);
    ((float *)job->result[0])[i] = (float)(log(sum_exp(z, job->x.cols, highest)) + (double)highest - (double)z[job->ids[i]]);
}

static void nll(dllm_device *d, float *out, dllm_mat logits, const int32_t *target, int32_t n)
{
    struct rows_job job = { nll_row, d, .x = logits, .n = n, .result = { out }, .ids = target };
    dllm_rows_run(&job, d->threads, logits.cols);
}
