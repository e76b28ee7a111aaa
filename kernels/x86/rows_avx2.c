/* The kernels of the rows in 256-bit vectors. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#define LANES 8
#include "rows_body.h"
#include "rows_sample_body.h"

void dllm_panel_read_avx2(struct tally *t, float *z, int64_t n, int32_t first, const dllm_sampling *how, const dllm_key *key,
                          double *bound)
{
    read_panel(t, z, n, first, how, key, bound);
}

void dllm_rows_avx2(dllm_ops *t)
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
