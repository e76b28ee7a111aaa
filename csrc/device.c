/* device.c: names to devices. Processors get a kernel table by cpuid; CUDA lies in a plug-in that is opened when somebody asks for it,
 * so that this library loads everywhere. */
#define _GNU_SOURCE /* dladdr */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../kernels/cuda/cuda.h"
#include "../kernels/ops.h"
#include "../kernels/threads.h"
#include "error.h"

enum { MAX_THREADS = 1024 };

/* ---- the plug-in ----------------------------------------------------------------------------------------------------------- */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const dllm_cuda *plugin; /* guarded by the lock; once found it stays for the life of the process */

static int find_beside_this_library(char *out, size_t bytes)
{
    Dl_info here;
    const char *slash = dladdr((void *)&lock, &here) && here.dli_fname ? strrchr(here.dli_fname, '/') : NULL;
    const int folder = slash ? (int)(slash - here.dli_fname) : 0;
    const int n = snprintf(out, bytes, "%.*s/libdllm_cuda.so", slash ? folder : 1, slash ? here.dli_fname : ".");
    FAIL_IF(n < 0 || (size_t)n >= bytes, DLLM_E_DEVICE, "the path of the CUDA plug-in is longer than %zu bytes", bytes);
    return 0;
}

static int open_plugin(const char *path)
{
    char beside[4096];
    if (!path) {
        TRY(find_beside_this_library(beside, sizeof beside));
        path = beside;
    }
    FAIL_IF(access(path, F_OK) < 0, DLLM_E_DEVICE, "this installation has no CUDA plug-in: %s is not there (built without nvcc?)",
            path);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    FAIL_IF(!library, DLLM_E_DEVICE, "the CUDA plug-in does not load: %s", dlerror());
    void *symbol = dlsym(library, DLLM_CUDA_GET);
    dllm_cuda_getter *get;
    memcpy(&get, &symbol, sizeof get); /* ISO C has no cast from void * to a function */
    const dllm_cuda *found = symbol ? get() : NULL;
    if (found && found->abi == DLLM_CUDA_ABI) {
        plugin = found;
        return 0;
    }
    if (!found) dllm_fail(DLLM_E_DEVICE, "%s is not a CUDA plug-in of dllm_fast", path);
    else
        dllm_fail(DLLM_E_DEVICE, "%s is a CUDA plug-in of another version: its table is number %d, this library reads %d", path,
                  found->abi, DLLM_CUDA_ABI);
    dlclose(library);
    return DLLM_E_DEVICE;
}

int dllm_cuda_load(const char *path)
{
    pthread_mutex_lock(&lock);
    const int status = plugin ? 0 : open_plugin(path);
    const dllm_cuda *cuda = plugin;
    pthread_mutex_unlock(&lock);
    TRY(status);
    const int n = cuda->device_count();
    FAIL_IF(n <= 0, DLLM_E_DEVICE, "%s", cuda->last_error());
    return n;
}

/* The number in "cuda" or "cuda:12"; negative: neither. */
static int parse_cuda(const char *name)
{
    int index = 0, end = 0;
    if (strcmp(name, "cuda") == 0) return 0;
    return sscanf(name, "cuda:%3d%n", &index, &end) == 1 && !name[end] ? index : -1;
}

static int open_cuda(const char *name)
{
    char info[256];
    const int index = parse_cuda(name), n = dllm_cuda_load(NULL);
    TRY(n);
    FAIL_IF(index >= n, DLLM_E_DEVICE, "%s: the devices are cuda:0 to cuda:%d", name, n - 1);
    FAIL_IF(plugin->device_info(index, info, sizeof info) < 0, DLLM_E_DEVICE, "%s: %s", name, plugin->last_error());
    return dllm_fail(DLLM_E_DEVICE, "%s: found %s, but this build has no CUDA kernels yet", name, info);
}

/* ---- devices --------------------------------------------------------------------------------------------------------------- */
static int unknown(const char *name)
{
    char levels[256] = "";
    const char *const *names;
    const int n = dllm_cpu_levels(&names);
    for (int i = 0, at = 0; i < n && at < (int)sizeof levels; i++)
        at += snprintf(levels + at, sizeof levels - (size_t)at, ", \"cpu:%s\"", names[i]);
    return dllm_fail(DLLM_E_VALUE, "device \"%.64s\": this machine has \"cpu\"%s; \"cuda\" and \"cuda:N\" need a GPU", name,
                     levels);
}

static int open_cpu(dllm_device **out, const dllm_ops *ops, int threads)
{
    dllm_device *d = calloc(1, sizeof *d);
    FAIL_IF(!d, DLLM_E_MEMORY, "device: out of memory for %zu bytes", sizeof *d);
    d->ops = ops;
    d->threads = threads;
    strcpy(d->name, "cpu");
    *out = d;
    return 0;
}

int dllm_device_open(dllm_device **out, const char *name, int threads)
{
    *out = NULL;
    FAIL_IF(threads < 0 || threads > MAX_THREADS, DLLM_E_VALUE,
            "threads = %d: 1 to %d expected, or 0 for as many as this process may use", threads, MAX_THREADS);
    if (parse_cuda(name) >= 0) return open_cuda(name);
    const bool cpu = strcmp(name, "cpu") == 0, level = strncmp(name, "cpu:", 4) == 0 && name[4];
    const dllm_ops *ops = cpu || level ? dllm_ops_cpu(level ? name + 4 : "") : NULL;
    return ops ? open_cpu(out, ops, threads ? threads : dllm_threads_default()) : unknown(name);
}

void dllm_device_close(dllm_device *d) { free(d); }
const char *dllm_device_name(const dllm_device *d) { return d->name; }
const char *dllm_device_backend(const dllm_device *d) { return d->ops->name; }
int dllm_device_threads(const dllm_device *d) { return d->threads; }

/* ---- threads --------------------------------------------------------------------------------------------------------------- */
int dllm_threads_use(const char *runtime)
{
    const bool any = strcmp(runtime, "auto") == 0;
    FAIL_IF(!any && strcmp(runtime, "own") != 0, DLLM_E_VALUE, "threads \"%.64s\": \"auto\" or \"own\" expected", runtime);
    dllm_threads_allow_borrowing(any);
    return 0;
}

const char *dllm_threads_runtime(void)
{
    dllm_threads_look();
    const char *borrowed = dllm_threads_borrowed();
    return borrowed ? borrowed : "own";
}
