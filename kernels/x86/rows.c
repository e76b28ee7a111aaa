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

void dllm_x86_rows(dllm_ops *t, dllm_x86_level level)
{
    if (level == DLLM_X86_AVX2) dllm_rows_avx2(t);
    if (level == DLLM_X86_AVX512F) dllm_rows_avx512f(t);
}
#endif
