/* cuda.h: what the CUDA plug-in libdllm_cuda.so is to the core: one table behind one exported function. Plain C, so that both
 * sides of the border include it: no type of CUDA or of C++ crosses it. The plug-in needs no NVIDIA library to be loaded; the
 * runtime in it is linked statically and looks for the driver when it is first asked for something. */
#ifndef DLLM_CUDA_H
#define DLLM_CUDA_H
#include "../ops.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { DLLM_CUDA_ABI = 4 }; /* counts the changes to this table */

typedef struct {
    int abi; /* DLLM_CUDA_ABI of the plug-in; stays the first member */
    /* How many devices there are; negative: none can be used, last_error() says why. */
    int (*device_count)(void);
    /* "NVIDIA H200, sm_90, 143771 MiB", or negative. */
    int (*device_info)(int device, char *out, size_t bytes);
    /* The kernels for a device, or NULL: last_error() says why it cannot run them. */
    const dllm_ops *(*ops)(int device);
    const char *(*last_error)(void); /* of the calling thread */
    /* Looks for cuBLAS: the copy that is loaded, the one at path (NULL: none), the system's; a simulator takes that at path alone. Devices
     * that are opened from then on may use it. 0, and "cuBLAS 13.1 (PLACE)" in out, or negative, and out says why there is none. */
    int (*library)(const char *path, char *out, size_t bytes);
    /* The number of the GPU whose memory p is in; -1: memory that the host can read. */
    int (*place)(const void *p);
    /* What the stream `later` is asked from now on comes after what `earlier` was asked until now, both on that GPU; NULL: the default stream.
     * 0 or negative. */
    int (*order)(int device, void *later, void *earlier);
} dllm_cuda;

#define DLLM_CUDA_GET "dllm_cuda_get"
typedef const dllm_cuda *dllm_cuda_getter(void);
#ifdef __cplusplus
}
#endif
#endif
