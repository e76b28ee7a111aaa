/* rows.c: the kernels of the rows: which vectors do them, and on how many threads. */
#include "rows.h"

#if defined(__x86_64__)
enum { ENOUGH = 65536 }; /* operations that are worth waking a thread */

static void run_task(void *arg, int task, int thread)
{
    const struct rows_job *job = arg;
    const int32_t first = task * job->rows_a_task, left = job->n - first, n = left < job->rows_a_task ? left : job->rows_a_task;
    for (int32_t i = first; i < first + n; i++) job->row(job, i, thread);
}

void dllm_rows_run(struct rows_job *job, int threads, int64_t work)
{
    if (job->n <= 0) return;
    if (threads <= 1 || job->n * work < ENOUGH) threads = 1;
    const int32_t tasks = threads > 1 && job->n > 4 * threads ? 4 * threads : job->n;
    job->rows_a_task = threads > 1 ? (job->n + tasks - 1) / tasks : job->n;
    dllm_parallel(threads, (job->n + job->rows_a_task - 1) / job->rows_a_task, run_task, job);
}

/* The plain-C kernel wants a row of scratch: each thread has its own. */
static size_t own_bytes(const struct rows_job *job) { return ((size_t)job->x.cols * sizeof(int32_t) + 63) / 64 * 64; }

static void draw_row(const struct rows_job *job, int32_t i, int thread)
{
    dllm_device own = *job->d;
    own.scratch = (char *)own.scratch + (size_t)thread * own_bytes(job);
    dllm_mat logits = job->x;
    logits.data = dllm_at(job->x, i);
    dllm_ops_c.predict(&own, (int32_t *)job->result[0] + i, (float *)job->result[1] + i, (float *)job->result[2] + i, logits, 1,
                       job->how, job->keys + i, job->noise, job->noise ? job->noise_rows + i : NULL);
}

void dllm_rows_draw(struct rows_job *job)
{
    int threads = job->d->threads;
    while (threads > 1 && own_bytes(job) * (size_t)threads > job->d->scratch_bytes) threads--;
    job->row = draw_row;
    dllm_rows_run(job, threads, 64 * job->x.cols);
}

void dllm_x86_rows(dllm_ops *t, dllm_x86_level level)
{
    if (level == DLLM_X86_AVX2) dllm_rows_avx2(t);
    if (level == DLLM_X86_AVX512F) dllm_rows_avx512f(t);
}
#endif
