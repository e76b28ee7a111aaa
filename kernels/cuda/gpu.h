/* gpu.h: what every kernel file includes. nvcc gives CUDA; any other compiler gives the simulator, which runs the same kernels on the
 * processor. Kernels take dtypes as data and rows in pieces of eight: a branch that a whole grid takes alike costs nothing beside the
 * memory it waits for. Reductions have one order, whatever the grid looks like. */
#ifndef DLLM_GPU_H
#define DLLM_GPU_H
#ifdef __CUDACC__
#include <cfloat>
#include <climits>
#include <cuda_runtime.h>
#define DLLM_SHARED(type, name)                                                                                                    \
    extern __shared__ __align__(128) unsigned char dllm_shared_bytes[];                                                            \
    type *const name = reinterpret_cast<type *>(dllm_shared_bytes)
#else
#include "sim/sim.h"
#define DLLM_SHARED(type, name) type *const name = reinterpret_cast<type *>(sim::shared)
#endif
#include "../bits.h"
#include "../ops.h"
#include "queue.h"

enum : unsigned { ALL_LANES = 0xffffffffu };

/* Bytes of shared memory that a block can have on every GPU from sm_80 on: sm_86, sm_89 and sm_120 have no more. */
enum { MOST_SHARED = 99 << 10 };

/* Scratch begins with counters that are 0 between kernels: blocks that share a result count themselves there. */
enum { SCRATCH_COUNTERS = 8192 };

/* ---- numbers as they are stored -------------------------------------------------------------------------------------------------- */
__device__ inline float widen(uint16_t bits, dllm_dtype t)
{
#ifdef __CUDACC__
    float x;
    if (t == DLLM_BF16) return __uint_as_float((uint32_t)bits << 16);
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
#else
    return t == DLLM_BF16 ? dllm_from_bf16(bits) : dllm_from_f16(bits);
#endif
}

__device__ inline uint16_t narrow(float x, dllm_dtype t)
{
#ifdef __CUDACC__
    uint16_t bits;
    if (t == DLLM_BF16) asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    else asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#else
    return t == DLLM_BF16 ? dllm_to_bf16(x) : dllm_to_f16(x);
#endif
}

__device__ inline float round_to(float x, dllm_dtype t) { return t == DLLM_F32 ? x : widen(narrow(x, t), t); }

__device__ inline float get(const void *row, dllm_dtype t, int64_t i)
{
    return t == DLLM_F32 ? ((const float *)row)[i] : widen(((const uint16_t *)row)[i], t);
}

__device__ inline void put(void *row, dllm_dtype t, int64_t i, float x)
{
    if (t == DLLM_F32) ((float *)row)[i] = x;
    else ((uint16_t *)row)[i] = narrow(x, t);
}

/* Elements j ... j + 7 of a row of n, zeros behind its end. */
struct eight {
    float v[8];
};

__device__ inline bool whole(const void *row, dllm_dtype t, int64_t j, int64_t n)
{
    return j + 8 <= n && ((uintptr_t)row + (uintptr_t)j * (t == DLLM_F32 ? 4 : 2)) % 16 == 0;
}

__device__ inline eight load8(const void *row, dllm_dtype t, int64_t j, int64_t n)
{
    eight x;
    if (!whole(row, t, j, n)) {
        for (int i = 0; i < 8; i++) x.v[i] = j + i < n ? get(row, t, j + i) : 0;
    } else if (t == DLLM_F32) {
        const uint4 a = *(const uint4 *)((const float *)row + j), b = *(const uint4 *)((const float *)row + j + 4);
        const uint32_t w[8] = { a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w };
        for (int i = 0; i < 8; i++) x.v[i] = __uint_as_float(w[i]);
    } else {
        const uint4 a = *(const uint4 *)((const uint16_t *)row + j);
        const uint32_t w[4] = { a.x, a.y, a.z, a.w };
        for (int i = 0; i < 8; i++) x.v[i] = widen((uint16_t)(w[i / 2] >> i % 2 * 16), t);
    }
    return x;
}

__device__ inline void store8(void *row, dllm_dtype t, int64_t j, int64_t n, const eight &x)
{
    if (!whole(row, t, j, n)) {
        for (int i = 0; i < 8 && j + i < n; i++) put(row, t, j + i, x.v[i]);
    } else if (t == DLLM_F32) {
        uint32_t w[8];
        for (int i = 0; i < 8; i++) w[i] = __float_as_uint(x.v[i]);
        *(uint4 *)((float *)row + j) = uint4{ w[0], w[1], w[2], w[3] };
        *(uint4 *)((float *)row + j + 4) = uint4{ w[4], w[5], w[6], w[7] };
    } else {
        uint32_t w[4];
        for (int i = 0; i < 4; i++) w[i] = narrow(x.v[2 * i], t) | (uint32_t)narrow(x.v[2 * i + 1], t) << 16;
        *(uint4 *)((uint16_t *)row + j) = uint4{ w[0], w[1], w[2], w[3] };
    }
}

/* ---- reductions: every thread gets the result, whose order depends on the block's size alone -------------------------------------- */
__device__ inline float larger(float a, float b) { return fmaxf(a, b); }
template <class T> __device__ inline T sum_of(T a, T b) { return a + b; }

/* What the lane `with` away has. */
template <class T> __device__ inline T across(T x, int with)
{
#ifdef __CUDACC__
    static_assert(sizeof x % 4 == 0, "whole words");
    int words[sizeof x / 4];
    memcpy(words, &x, sizeof x);
#pragma unroll
    for (int i = 0; i < (int)(sizeof x / 4); i++) words[i] = __shfl_xor_sync(ALL_LANES, words[i], with);
    memcpy(&x, words, sizeof x);
    return x;
#else
    return __shfl_xor_sync(ALL_LANES, x, with);
#endif
}

template <class T, class F> __device__ inline T warp_reduce(T x, F combine)
{
#pragma unroll
    for (int with = 16; with; with /= 2) x = combine(x, across(x, with));
    return x;
}

/* room: one T a warp, of shared memory that nobody else uses before the block meets again */
template <class T, class F> __device__ inline T block_reduce(T x, F combine, T *room)
{
    x = warp_reduce(x, combine);
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    x = room[0];
    for (unsigned w = 1; w < blockDim.x / 32; w++) x = combine(x, room[w]);
    __syncthreads();
    return x;
}

/* Of n blocks that share a counter: is this the last one? Then it sees what the others wrote, and the counter is 0 again. */
__device__ inline bool last_to_come(uint32_t *counter, unsigned n, int *room)
{
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *room = atomicAdd(counter, 1u) == n - 1;
    __syncthreads();
    const bool last = *room;
    if (!last) return false;
    __threadfence();
    if (threadIdx.x == 0) *counter = 0;
    return true;
}

/* ---- launching ------------------------------------------------------------------------------------------------------------------- */
void dllm_cuda_note(dllm_device *d, const char *what, cudaError_t error); /* remembers a failure, if it is the first */

/* Which GPU is a thread's current one is also the business of others who use CUDA in it, so it becomes again what it was. */
struct current_gpu {
    int before = -1;
    cudaError_t error;
    explicit current_gpu(int index)
    {
        int now = -1;
        error = cudaGetDevice(&now);
        if (error || now == index) return;
        before = now;
        error = cudaSetDevice(index);
    }
    current_gpu(const current_gpu &) = delete;
    ~current_gpu()
    {
        if (before >= 0) cudaSetDevice(before);
    }
};

/* Is this block, of a grid of one a row, for a row that is not there? A grid is made for the most rows there may be. */
__device__ inline bool beyond(dllm_rows rows) { return (int32_t)blockIdx.x >= dllm_there(rows); }

/* Asks for a kernel; see queue.h for when it runs. */
template <class... P, class... A>
void launch(dllm_device *d, const char *name, void (*kernel)(P...), dim3 grid, int threads, size_t shared_bytes, A... args)
{
    static_assert(sizeof...(P) <= MOST_ARGS && (sizeof(P) + ... + 0) + alignof(double) * sizeof...(P) <= ARG_BYTES,
                  "more arguments than a call has room for");
    kernel_call *c = dllm_queue_call(d);
    if (!c) return;
#ifndef __CUDACC__
    sim::know(name, kernel);
#endif
    c->kernel = (const void *)kernel;
    c->name = name;
    c->grid = grid;
    c->threads = (unsigned)threads;
    c->shared_bytes = shared_bytes;
    (add_argument<P>(c, args), ...);
}

/* Threads for a row of n elements in pieces of eight: enough, and a number that follows from n alone. */
static inline int threads_for(int64_t n)
{
    const int64_t warps = (n + 255) / 256;
    return (int)(warps < 1 ? 1 : warps > 8 ? 8 : warps) * 32;
}

/* ---- the kernels: see ops.h ------------------------------------------------------------------------------------------------------ */
void dllm_embed_cuda(dllm_device *d, dllm_mat x, dllm_rows rows, dllm_mat table, const int32_t *ids);
void dllm_add_cuda(dllm_device *d, dllm_mat x, dllm_rows rows, dllm_mat y, dllm_rows y_rows);
void dllm_guide_cuda(dllm_device *d, dllm_mat c, dllm_mat u, int32_t n, float scale);
void dllm_guide_keep_cuda(dllm_device *d, dllm_mat kept, dllm_rows rows, dllm_mat c, dllm_mat u);
void dllm_guide_again_cuda(dllm_device *d, dllm_mat c, dllm_mat kept, dllm_rows rows, float scale);
void dllm_swiglu_cuda(dllm_device *d, dllm_mat out, dllm_mat gate, dllm_mat up, dllm_rows rows);
void dllm_rmsnorm_cuda(dllm_device *d, dllm_mat out, dllm_rows out_rows, dllm_mat x, dllm_rows rows, dllm_mat w, float eps);
void dllm_rope_cuda(dllm_device *d, dllm_mat x, dllm_rows x_rows, dllm_mat cos, dllm_mat sin, dllm_rows table_rows,
                    int32_t head_dim, bool round_products);
void dllm_copy_cuda(dllm_device *d, dllm_mat dst, dllm_rows dst_rows, dllm_mat src, dllm_rows src_rows);
void dllm_replace_cuda(dllm_device *d, dllm_mat kept, dllm_rows rows, dllm_mat v);
void dllm_cosine_cuda(dllm_device *d, float *out, dllm_mat a, dllm_rows a_rows, dllm_mat b, dllm_rows b_rows, float floor);
void dllm_importance_cuda(dllm_device *d, float *out, dllm_mat q, dllm_rows q_rows, dllm_mat k, dllm_rows k_rows, int32_t heads,
                          int32_t kv_heads);
void dllm_pick_cuda(dllm_device *d, int32_t *out, const float *score, const dllm_pick *picks, int n);
void dllm_turn_cuda(dllm_device *d, dllm_turned out, const float *score, const dllm_turn *turns, int n, const int32_t *held);
void dllm_linear_cuda(dllm_device *d, dllm_mat out, dllm_rows out_rows, dllm_mat x, dllm_rows in_rows, dllm_mat w, dllm_mat bias);
void dllm_attend_cuda(dllm_device *d, dllm_mat out, dllm_mat q, dllm_rows rows, dllm_mat k, dllm_mat v, dllm_spans spans,
                      int32_t heads, int32_t kv_heads);
void dllm_attend_delta_cuda(dllm_device *d, dllm_mat out, dllm_mat q, dllm_rows rows, dllm_mat old, dllm_rows old_rows, dllm_mat k,
                            dllm_mat dv, dllm_rows changed, dllm_spans spans, int32_t heads, int32_t kv_heads);
void dllm_predict_cuda(dllm_device *d, int32_t *token, float *score, float *prob, dllm_mat logits, int32_t n,
                       const dllm_sampling *how, const dllm_key *keys, const void *noise, const int32_t *noise_rows);
void dllm_head_predict_cuda(dllm_device *d, int32_t *token, float *score, float *prob, dllm_mat x, dllm_rows rows, dllm_mat w,
                            const dllm_sampling *how, const dllm_key *keys);
void dllm_nll_cuda(dllm_device *d, float *out, dllm_mat logits, const int32_t *target, int32_t n);
#endif
