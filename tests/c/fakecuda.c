/* fakecuda.c: what a test machine without a GPU needs to meet every state that CUDA can be in. Built as a shared library:
 *     -DDRIVER=12040    libcuda.so.1, a driver for CUDA 12.4 that finds no device
 *     -DDEVICES=2       libdllm_cuda.so, a plug-in that sees two devices; -DABI=99: of another version of the table
 *     neither           a library that is no plug-in */
#ifdef DRIVER
int cuDriverGetVersion(int *version)
{
    *version = DRIVER;
    return 0;
}

int cuInit(unsigned flags) { return 100; /* CUDA_ERROR_NO_DEVICE */ }
#elif defined DEVICES
#include <stdio.h>

#include "../../kernels/cuda/cuda.h"
#ifndef ABI
#define ABI DLLM_CUDA_ABI
#endif

static int device_count(void) { return DEVICES; }

static int device_info(int device, char *out, size_t bytes)
{
    snprintf(out, bytes, "Fake GPU %d", device);
    return 0;
}

static const dllm_ops *ops(int device) { return NULL; }

static const char *last_error(void) { return "it is a picture of one"; }

static int library(const char *path, char *out, size_t bytes)
{
    snprintf(out, bytes, "cuBLAS was not found; %s", path ? path : "no path");
    return -1;
}

const dllm_cuda *dllm_cuda_get(void)
{
    static const dllm_cuda table = { ABI, device_count, device_info, ops, last_error, library };
    return &table;
}
#else
int answer(void) { return 42; }
#endif
