/* sim.h: CUDA C++ for a plain C++17 compiler. gpu.h includes it where nvcc is not the compiler, and the kernels then run on the
 * processor: one fiber a CUDA thread, one block at a time, in an order that is chosen so that a missing barrier shows. What follows
 * is as much of CUDA as the kernels use; sim.cpp is the scheduler, runtime.cpp the memory and the streams. */
#ifndef DLLM_SIM_H
#define DLLM_SIM_H
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>

#include "../../ops.h"

/* ---- spellings ------------------------------------------------------------------------------------------------------------------- */
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (sim::running->index)
#define blockIdx (sim::block)
#define blockDim (sim::block_size)
#define gridDim (sim::grid_size)
#define __syncthreads() sim::barrier(__LINE__)
#define __syncwarp() sim::sync_warp(__LINE__)
#define __shfl_xor_sync(mask, value, with) sim::shuffle(value, sim::lane() ^ (with), __LINE__)
#define __shfl_sync(mask, value, from) sim::shuffle(value, from, __LINE__)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

/* ---- the block that runs --------------------------------------------------------------------------------------------------------- */
namespace sim {
struct fiber {
    void *stack; /* where it goes on */
    dim3 index;
    int line; /* of the barrier or the warp operation it waits at; 0: it waits for its turn */
    bool done;
    void *fake, *tsan; /* what the sanitizers remember of it */
};
extern fiber *running;
extern dim3 block, block_size, grid_size;
extern unsigned char *shared; /* dynamic shared memory; begins as NaNs */

enum { WARP = 32, MAX_SHARED = 99 << 10 /* of a block, on the GPU that has least */ };
unsigned lane();

/* All threads of the block meet; all lanes of a warp meet; and the latter also exchange something. Exchanges do not order memory. */
void barrier(int line);
void sync_warp(int line);
void exchange(void *value, size_t bytes, unsigned from, int line);
void mma(float *d, const uint32_t *a, const uint32_t *b, dllm_dtype t, int line);
void load_matrices(uint32_t *r, const void *row, bool transposed, int line);

template <class T> T shuffle(T value, unsigned from, int line)
{
    exchange(&value, sizeof value, from, line);
    return value;
}

/* Copies of cp.async land when they are waited for, and no sooner. */
void copy_later(void *to, const void *from, size_t bytes, size_t zeros);
void commit_copies();
void wait_copies(int groups_left);

struct stream;
struct event;
struct graph;
struct graph_node;
struct graph_exec;
void later(stream *queue, std::function<void()> work); /* what the host does itself, when the stream has come to it */

/* A kernel is called by its address and the addresses of its arguments, which it keeps; nvcc makes such a thing of every kernel. */
typedef std::function<std::function<void()>(void **args)> caller;
void know(const char *name, const void *kernel, const caller &call);

template <class... P, size_t... I>
std::function<void()> keep_arguments(void (*kernel)(P...), void **args, std::index_sequence<I...>)
{
    return [kernel, kept = std::make_tuple(*(P *)args[I]...)] { std::apply(kernel, kept); };
}

template <class... P> void know(const char *name, void (*kernel)(P...))
{
    know(name, (const void *)kernel,
         [kernel](void **args) { return keep_arguments(kernel, args, std::index_sequence_for<P...>()); });
}
} // namespace sim

template <class T> T atomicAdd(T *p, T v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
inline void __threadfence() {}
inline float __fadd_rn(float a, float b) { return a + b; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __uint_as_float(unsigned u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}
inline unsigned __float_as_uint(float x)
{
    unsigned u;
    memcpy(&u, &x, 4);
    return u;
}

/* ---- the runtime ----------------------------------------------------------------------------------------------------------------- */
enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101
};
typedef sim::stream *cudaStream_t;
typedef sim::event *cudaEvent_t;
typedef sim::graph *cudaGraph_t;
typedef sim::graph_node *cudaGraphNode_t;
typedef sim::graph_exec *cudaGraphExec_t;
struct cudaKernelNodeParams {
    void *func;
    dim3 grid, block; /* CUDA's names for them are macros here */
    unsigned sharedMemBytes;
    void **kernelParams, **extra;
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum { cudaHostAllocMapped = 2, cudaHostAllocPortable = 1, cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };
enum cudaMemoryType { cudaMemoryTypeUnregistered = 0, cudaMemoryTypeHost = 1, cudaMemoryTypeDevice = 2 };
struct cudaPointerAttributes {
    cudaMemoryType type;
    int device;
};
enum { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaDeviceProp {
    char name[256];
    int major, minor;
    size_t totalGlobalMem;
};
const char *cudaGetErrorString(cudaError_t e);
const char *cudaGetErrorName(cudaError_t e);
cudaError_t cudaDriverGetVersion(int *v);
cudaError_t cudaRuntimeGetVersion(int *v);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *about, const void *p);
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t s);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaStreamDestroy(cudaStream_t s);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags);
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s);
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t e);
cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **args, size_t shared_bytes, cudaStream_t s);
cudaError_t cudaGraphCreate(cudaGraph_t *g, unsigned flags);
cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t *node, cudaGraph_t g, const cudaGraphNode_t *after, size_t n_after,
                                   const cudaKernelNodeParams *p);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long flags);
cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t e, cudaGraphNode_t node, const cudaKernelNodeParams *p);
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e);
cudaError_t cudaGraphDestroy(cudaGraph_t g);
inline cudaError_t cudaFuncSetAttribute(const void *, int, int bytes)
{
    return bytes <= sim::MAX_SHARED ? cudaSuccess : cudaErrorInvalidValue;
}
#endif
