/* probe.cpp: memory and streams of somebody else's; the counters are in runtime.cpp. */
#include "probe.h"

#include "../cuda.h"
#include "../gpu.h"

void *dllm_sim_alloc(int device, size_t bytes)
{
    const current_gpu gpu(device);
    void *p;
    return gpu.error || cudaMalloc(&p, bytes) ? nullptr : p;
}

void dllm_sim_free(void *p) { cudaFree(p); }

void *dllm_sim_stream(int device)
{
    const current_gpu gpu(device);
    cudaStream_t s;
    return gpu.error || cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking) ? nullptr : s;
}

void dllm_sim_close_stream(void *stream) { cudaStreamDestroy((cudaStream_t)stream); }

void dllm_sim_copy(void *to, const void *from, size_t bytes, void *stream)
{
    cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, (cudaStream_t)stream);
}

extern "C" const dllm_cuda *dllm_cuda_get(void);

void dllm_sim_order(int device, void *later, void *earlier) { dllm_cuda_get()->order(device, later, earlier); }

void dllm_sim_sync(void *stream) { cudaStreamSynchronize((cudaStream_t)stream); }

int dllm_sim_current(void)
{
    int device = -1;
    cudaGetDevice(&device);
    return device;
}
