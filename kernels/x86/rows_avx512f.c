/* The kernels of the rows in 512-bit vectors. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#define LANES 16
#include "rows_body.h"
#include "rows_sample_body.h"

void dllm_panel_read_avx512f(struct tally *t, float *z, int64_t n, int32_t first, const dllm_sampling *how, const dllm_key *key,
                             double *bound)
{
    read_panel(t, z, n, first, how, key, bound);
}

void dllm_rows_avx512f(dllm_ops *t)
{
    t->embed = embed;
    t->rmsnorm = rmsnorm;
    t->rope = rope;
    t->swiglu = swiglu;
    t->add = add;
    t->guide = guide;
    t->predict = predict;
    t->nll = nll;
}
#endif
