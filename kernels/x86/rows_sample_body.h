/* rows_sample_body.h: predict and nll for the vectors that simd.h gives; the plain-C kernel's own function draws where filters or
 * recorded numbers decide. */
#include "../c/c.h"
#include "panel_body.h"
#include "rows.h"

static int64_t panel_of(int64_t n, int64_t at) { return n - at < PANEL ? n - at : PANEL; }

static bool draws_from_rows(const struct rows_job *job) { return job->noise || dllm_filters(job->how, job->x.cols); }

/* What the plain-C function wants of scratch; each thread has its own. */
static size_t heap_bytes(int64_t n) { return ((size_t)n * sizeof(int32_t) + 63) / 64 * 64; }

static int32_t draw_from_row(const struct rows_job *job, float *z, int32_t i, int thread)
{
    const int64_t n = job->x.cols;
    const char *noise = job->noise;
    if (noise) noise += (size_t)job->noise_rows[i] * (size_t)n * (job->how->gumbel ? sizeof(double) : sizeof(float));
    strike(z, n, 0, job->how->banned, job->how->n_banned);
    return dllm_draw_c(z, n, job->how, &job->keys[i], noise,
                       (int32_t *)(void *)((char *)job->d->scratch + (size_t)thread * heap_bytes(n)));
}

/* A panel of a row whose token is known. */
static void weigh_panel(struct tally *t, float *z, int64_t n, int32_t first, const dllm_sampling *how, int32_t token)
{
    const bool here = token >= first && token < first + n;
    strike(z, n, first, how->unscored, how->n_unscored);
    weigh(t, z, n, how->score);
    t->token = token;
    t->lot = here ? 0 : -INFINITY;
    t->logit = here ? z[token - first] : -INFINITY;
}

static void predict_row(const struct rows_job *job, int32_t i, int thread)
{
    const int64_t n = job->x.cols;
    float *z = dllm_at(job->x, i);
    const bool known = draws_from_rows(job);
    const int32_t token = known ? draw_from_row(job, z, i, thread) : -1;
    struct row_tally row = DLLM_NO_PANELS;
    double bound = -INFINITY;
    for (int64_t at = 0; at < n; at += PANEL) {
        struct tally t;
        if (known) weigh_panel(&t, z + at, panel_of(n, at), (int32_t)at, job->how, token);
        else read_panel(&t, z + at, panel_of(n, at), (int32_t)at, job->how, &job->keys[i], &bound);
        dllm_panel_join(&row, &t);
    }
    dllm_panel_settle(&row, job->how, &job->keys[i], (int32_t *)job->result[0] + i, (float *)job->result[1] + i,
                      (float *)job->result[2] + i);
}

static void predict(dllm_device *d, int32_t *token, float *score, float *prob, dllm_mat logits, int32_t n, const dllm_sampling *how,
                    const dllm_key *keys, const void *noise, const int32_t *noise_rows)
{
    struct rows_job job = { predict_row, d, .x = logits, .n = n, .result = { token, score, prob }, .how = how, .keys = keys };
    job.noise = noise;
    job.noise_rows = noise_rows;
    int threads = d->threads;
    while (draws_from_rows(&job) && threads > 1 && heap_bytes(logits.cols) * (size_t)threads > d->scratch_bytes) threads--;
    dllm_rows_run(&job, threads, logits.cols);
}

static void nll_row(const struct rows_job *job, int32_t i, int thread)
{
    const float *z = dllm_at(job->x, i);
    struct row_tally row = DLLM_NO_PANELS;
    for (int64_t at = 0; at < job->x.cols; at += PANEL) {
        struct tally t = { .token = 0 };
        weigh(&t, z + at, panel_of(job->x.cols, at), DLLM_SCORE_PROB);
        dllm_panel_join(&row, &t);
    }
    ((float *)job->result[0])[i] = (float)(log1p(row.rest) + ((double)row.highest - (double)z[job->ids[i]]));
}

static void nll(dllm_device *d, float *out, dllm_mat logits, const int32_t *target, int32_t n)
{
    struct rows_job job = { nll_row, d, .x = logits, .n = n, .result = { out }, .ids = target };
    dllm_rows_run(&job, d->threads, logits.cols);
}
