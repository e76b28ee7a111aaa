/* The CUDA table: streams, memory, failures; the kernels are in the files beside this one. */
#include <cstdio>

#include "attention.h"
#include "cuda.h"
#include "panel.h"

/* ---- failures: the first one stays until sync() tells it -------------------------------------------------------------------------- */
void dllm_cuda_note(dllm_device *d, const char *what, cudaError_t error)
{
    if (error == cudaSuccess || d->failed) return;
    d->failed = error == cudaErrorMemoryAllocation ? DLLM_E_MEMORY : DLLM_E_DEVICE;
    snprintf(d->why, sizeof d->why, "%s: %s: %s (%s)", d->name, what, cudaGetErrorString(error), cudaGetErrorName(error));
}

static int tell(dllm_device *d)
{
    const int status = d->failed;
    d->failed = 0;
    return status;
}

static int sync_cuda(dllm_device *d)
{
    dllm_queue_wait(d);
    return tell(d);
}

/* ---- opening ----------------------------------------------------------------------------------------------------------------------- */
static int open_cuda(dllm_device *d)
{
    const current_gpu gpu(d->index);
    d->queue = d->stream = nullptr; /* of the device that this one is a copy of */
    dllm_cuda_note(d, "opening the device", gpu.error);
    if (!d->failed) dllm_blas_open(d);
    if (!d->failed) dllm_queue_open(d);
    return tell(d);
}

/* ---- memory ------------------------------------------------------------------------------------------------------------------------ */
static void *alloc_cuda(dllm_device *d, size_t bytes)
{
    const current_gpu gpu(d->index);
    void *p = nullptr;
    if (gpu.error || cudaMalloc(&p, bytes ? bytes : 1)) {
        cudaGetLastError(); /* NULL says it */
        return nullptr;
    }
    dllm_cuda_note(d, "clearing memory", cudaMemsetAsync(p, 0, bytes, (cudaStream_t)d->stream));
    return p;
}

static void free_cuda(dllm_device *d, void *p)
{
    dllm_queue_wait(d);
    cudaFree(p);
}

static void copy(dllm_device *d, void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    if (!bytes) return;
    dllm_queue_flush(d);
    dllm_cuda_note(d, "copying", cudaMemcpyAsync(to, from, bytes, kind, (cudaStream_t)d->stream));
    dllm_cuda_note(d, "copying", cudaStreamSynchronize((cudaStream_t)d->stream));
}

static void copy_in_cuda(dllm_device *d, void *to, const void *from, size_t bytes)
{
    copy(d, to, from, bytes, cudaMemcpyHostToDevice);
}

static void copy_out_cuda(dllm_device *d, void *to, const void *from, size_t bytes)
{
    copy(d, to, from, bytes, cudaMemcpyDeviceToHost);
}

/* Pinned and mapped: with unified addresses its pointer is good on both sides. */
static void *alloc_shared_cuda(dllm_device *d, size_t bytes)
{
    const current_gpu gpu(d->index);
    void *p = nullptr;
    if (gpu.error || cudaHostAlloc(&p, bytes ? bytes : 1, cudaHostAllocMapped | cudaHostAllocPortable)) {
        cudaGetLastError();
        return nullptr;
    }
    memset(p, 0, bytes);
    return p;
}

static void free_shared_cuda(dllm_device *d, void *p)
{
    dllm_queue_wait(d);
    cudaFreeHost(p);
}

static size_t larger_size(size_t a, size_t b) { return a > b ? a : b; }

/* Products and attention leave partial sums there, predictions tallies, importance one row of keys; a library works there. */
static size_t scratch_cuda(const dllm_device *d, const dllm_config *c, dllm_dtype, int64_t rows, int64_t keys)
{
    const int64_t wide = (int64_t)c->heads * c->head_dim, narrow_cols = (int64_t)c->kv_heads * c->head_dim;
    const int64_t shapes[][2] = { { wide, c->dim },       { narrow_cols, c->dim }, { c->dim, wide },
                                  { c->ffn_dim, c->dim }, { c->dim, c->ffn_dim },  { c->vocab, c->dim } };
    size_t most = SCRATCH_COUNTERS + (size_t)narrow_cols * sizeof(float);
    most = larger_size(most, SCRATCH_COUNTERS + (size_t)keys * sizeof(uint32_t)); /* what picks order by */
    most = larger_size(most, dllm_attend_scratch(c->heads, c->head_dim, rows, keys));
    most = larger_size(most, dllm_blas_scratch(d, rows));
    most = larger_size(most, dllm_reading_scratch(c->vocab));
    for (const auto &s : shapes) most = larger_size(most, dllm_linear_scratch(s[0], s[1]));
    return most;
}

extern const dllm_ops dllm_ops_cuda = {
    DLLM_OPS_ABI,
    "cuda",
    open_cuda,
    dllm_queue_close,
    alloc_cuda,
    free_cuda,
    copy_in_cuda,
    copy_out_cuda,
    alloc_shared_cuda,
    free_shared_cuda,
    sync_cuda,
    scratch_cuda,
    dllm_embed_cuda,
    dllm_rmsnorm_cuda,
    dllm_linear_cuda,
    dllm_rope_cuda,
    dllm_attend_cuda,
    dllm_attend_delta_cuda,
    dllm_copy_cuda,
    dllm_replace_cuda,
    dllm_cosine_cuda,
    dllm_importance_cuda,
    dllm_pick_cuda,
    dllm_turn_cuda,
    dllm_swiglu_cuda,
    dllm_add_cuda,
    dllm_guide_cuda,
    dllm_guide_keep_cuda,
    dllm_guide_again_cuda,
    dllm_predict_cuda,
    dllm_head_predict_cuda,
    dllm_nll_cuda,
};
