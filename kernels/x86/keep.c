/* keep.c: the kernels of caching methods: copies, which no vector would make faster, and which vectors do the others. */
#include "keep.h"

#if defined(__x86_64__)
#include <string.h>

#include "rows.h"

static void copy_row(const struct rows_job *job, int32_t i, int thread)
{
    memcpy(dllm_at(job->out, dllm_row(job->out_rows, i)), dllm_at(job->x, dllm_row(job->x_rows, i)),
           (size_t)job->x.cols * (job->x.dtype == DLLM_F32 ? 4 : 2));
}

static void copy(dllm_device *d, dllm_mat dst, dllm_rows dst_rows, dllm_mat src, dllm_rows src_rows)
{
    struct rows_job job = { copy_row, d, .out = dst, .out_rows = dst_rows, .x = src, .x_rows = src_rows, .n = src_rows.n };
    dllm_rows_run(&job, d->threads, src.cols / 4);
}

void dllm_x86_keep(dllm_ops *t, dllm_x86_level level)
{
    t->copy = copy;
    if (level == DLLM_X86_AVX2) dllm_keep_avx2(t);
    if (level == DLLM_X86_AVX512F) dllm_keep_avx512f(t);
}
#endif
