/* device.cu: the plug-in's table, and in one line why there is no CUDA where there is none. */
#include <cstdio>

#include "cuda.h"
#include "dense.h"

static thread_local char why[256] = "no error";

static int fail(cudaError_t error)
{
    snprintf(why, sizeof why, "%s (%s)", cudaGetErrorString(error), cudaGetErrorName(error));
    return -1;
}

/* CUDA calls a missing driver an insufficient one, so the versions tell the cases apart. */
static int no_device(cudaError_t error)
{
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    cudaGetLastError(); /* the error is said here; nobody shall find it again */
    if (driver == 0) snprintf(why, sizeof why, "no CUDA driver: libcuda.so.1 was not found");
    else if (error == cudaErrorInsufficientDriver)
        snprintf(why, sizeof why, "the CUDA driver is too old: it supports CUDA %d.%d, this build needs %d.%d", driver / 1000,
                 driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    else if (error == cudaErrorNoDevice || error == cudaSuccess)
        snprintf(why, sizeof why, "no CUDA device: the driver finds none (or CUDA_VISIBLE_DEVICES hides it)");
    else fail(error);
    return -1;
}

static int device_count(void)
{
    int n = 0;
    const cudaError_t error = cudaGetDeviceCount(&n);
    return error == cudaSuccess && n > 0 ? n : no_device(error);
}

static int device_info(int device, char *out, size_t bytes)
{
    cudaDeviceProp p;
    const cudaError_t error = cudaGetDeviceProperties(&p, device);
    if (error != cudaSuccess) return fail(error);
    snprintf(out, bytes, "%s, sm_%d%d, %zu MiB", p.name, p.major, p.minor, p.totalGlobalMem >> 20);
    return 0;
}

extern const dllm_ops dllm_ops_cuda;

static const dllm_ops *ops(int device)
{
    cudaDeviceProp p;
    const cudaError_t error = cudaGetDeviceProperties(&p, device);
    if (error != cudaSuccess) return (fail(error), nullptr);
    if (p.major >= 8) return &dllm_ops_cuda;
    snprintf(why, sizeof why, "%.150s is sm_%d%d: the kernels need sm_80 or newer", p.name, p.major, p.minor);
    return nullptr;
}

static const char *last_error(void) { return why; }

static int place(const void *p)
{
    cudaPointerAttributes about;
    if (cudaPointerGetAttributes(&about, p) == cudaSuccess) return about.type == cudaMemoryTypeDevice ? about.device : -1;
    cudaGetLastError(); /* an old driver knows nothing of memory that is not CUDA's */
    return -1;
}

static int order(int device, void *later, void *earlier)
{
    const current_gpu gpu(device);
    cudaEvent_t event = nullptr;
    cudaError_t error = gpu.error;
    if (!error) error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    if (!error) error = cudaEventRecord(event, (cudaStream_t)earlier);
    if (!error) error = cudaStreamWaitEvent((cudaStream_t)later, event, 0);
    if (event) cudaEventDestroy(event);
    if (!error) return 0;
    cudaGetLastError();
    return fail(error);
}

extern "C" __attribute__((visibility("default"))) const dllm_cuda *dllm_cuda_get(void)
{
    static const dllm_cuda table = { DLLM_CUDA_ABI, device_count, device_info, ops, last_error, dllm_blas_find, place, order };
    return &table;
}
