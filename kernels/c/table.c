/* The plain-C table. Its memory is the process's own; scratch holds one row of whatever a kernel needs a row of and a row
 * of logits, or scores twice. */
#include <stdlib.h>
#include <string.h>

#include "c.h"

static int open_host(dllm_device *d) { return 0; }

static void close_host(dllm_device *d) {}

static void *alloc_host(dllm_device *d, size_t bytes)
{
    const size_t whole = (bytes + 63) & ~(size_t)63;
    void *p = whole < bytes ? NULL : aligned_alloc(64, whole ? whole : 64);
    if (p) memset(p, 0, whole ? whole : 64);
    return p;
}

static void free_host(dllm_device *d, void *p) { free(p); }

static void copy_host(dllm_device *d, void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }

static int sync_host(dllm_device *d)
{
    const int status = d->failed;
    d->failed = 0;
    return status;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static size_t scratch_c(const dllm_device *d, const dllm_config *c, dllm_dtype act, int64_t rows, int64_t keys)
{
    int64_t widest = larger(larger(c->dim, c->ffn_dim), larger(c->heads * c->head_dim, c->vocab));
    return (size_t)larger(larger(widest, keys) + c->vocab, 2 * keys) * sizeof(float);
}

const dllm_ops dllm_ops_c = {
    .abi = DLLM_OPS_ABI,
    .name = "c",
    .open = open_host,
    .close = close_host,
    .alloc = alloc_host,
    .free = free_host,
    .copy_in = copy_host,
    .copy_out = copy_host,
    .alloc_shared = alloc_host,
    .free_shared = free_host,
    .sync = sync_host,
    .scratch = scratch_c,
    .embed = dllm_embed_c,
    .rmsnorm = dllm_rmsnorm_c,
    .linear = dllm_linear_c,
    .rope = dllm_rope_c,
    .attend = dllm_attend_c,
    .attend_delta = dllm_attend_delta_c,
    .copy = dllm_copy_c,
    .replace = dllm_replace_c,
    .cosine = dllm_cosine_c,
    .importance = dllm_importance_c,
    .pick = dllm_pick_c,
    .turn = dllm_turn_c,
    .swiglu = dllm_swiglu_c,
    .add = dllm_add_c,
    .guide = dllm_guide_c,
    .guide_keep = dllm_guide_keep_c,
    .guide_again = dllm_guide_again_c,
    .predict = dllm_predict_c,
    .head_predict = dllm_head_predict_c,
    .nll = dllm_nll_c,
};
