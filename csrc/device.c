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
#include "internal.h"

enum { MAX_THREADS = 1024 };

/* ---- the plug-ins ---------------------------------------------------------------------------------------------------------- */
/* The one with CUDA's kernels, and the one that runs the same kernels on simulated GPUs. */
enum { GPU, SIMULATOR, N_PLUGINS };
static const struct {
    const char *device, *file, *what;
} kinds[N_PLUGINS] = {
    { "cuda", "libdllm_cuda.so", "CUDA plug-in" },
    { "cuda-sim", "libdllm_cuda_sim.so", "GPU simulator" },
};
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const dllm_cuda *plugins[N_PLUGINS]; /* guarded by the lock; once found they stay for the life of the process */

static int find_beside_this_library(char *out, size_t bytes, int kind)
{
    Dl_info here;
    const char *slash = dladdr((void *)&lock, &here) && here.dli_fname ? strrchr(here.dli_fname, '/') : NULL;
    const int folder = slash ? (int)(slash - here.dli_fname) : 0;
    const int n = snprintf(out, bytes, "%.*s/%s", slash ? folder : 1, slash ? here.dli_fname : ".", kinds[kind].file);
    FAIL_IF(n < 0 || (size_t)n >= bytes, DLLM_E_DEVICE, "the path of the %s is longer than %zu bytes", kinds[kind].what, bytes);
    return 0;
}

static int open_plugin(const char *path, int kind)
{
    char beside[4096];
    const char *what = kinds[kind].what;
    if (!path) {
        TRY(find_beside_this_library(beside, sizeof beside, kind));
        path = beside;
    }
    FAIL_IF(access(path, F_OK) < 0, DLLM_E_DEVICE, "this installation has no %s: %s is not there%s", what, path,
            kind == GPU ? " (built without nvcc?)" : "");
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    FAIL_IF(!library, DLLM_E_DEVICE, "the %s does not load: %s", what, dlerror());
    void *symbol = dlsym(library, DLLM_CUDA_GET);
    dllm_cuda_getter *get;
    memcpy(&get, &symbol, sizeof get); /* ISO C has no cast from void * to a function */
    const dllm_cuda *found = symbol ? get() : NULL;
    if (found && found->abi == DLLM_CUDA_ABI) {
        plugins[kind] = found;
        return 0;
    }
    if (!found) dllm_fail(DLLM_E_DEVICE, "%s is not a %s of dllm_fast", path, what);
    else
        dllm_fail(DLLM_E_DEVICE, "%s is a %s of another version: its table is number %d, this library reads %d", path, what,
                  found->abi, DLLM_CUDA_ABI);
    dlclose(library);
    return DLLM_E_DEVICE;
}

static int load(const char *path, int kind)
{
    pthread_mutex_lock(&lock);
    const int status = plugins[kind] ? 0 : open_plugin(path, kind);
    const dllm_cuda *cuda = plugins[kind];
    pthread_mutex_unlock(&lock);
    TRY(status);
    const int n = cuda->device_count();
    FAIL_IF(n <= 0, DLLM_E_DEVICE, "%s", cuda->last_error());
    return n;
}

int dllm_cuda_load(const char *path) { return load(path, GPU); }

int dllm_cuda_sim_load(const char *path) { return load(path, SIMULATOR); }

int dllm_cuda_library(const char *device, const char *path, char *out, size_t bytes)
{
    const int kind = strcmp(device, kinds[SIMULATOR].device) == 0 ? SIMULATOR : GPU;
    TRY(load(NULL, kind));
    const int status = plugins[kind]->library(path, out, bytes);
    return status < 0 ? dllm_fail(DLLM_E_DEVICE, "%s", out) : 0;
}

/* The number in "cuda", "cuda:12" or "cuda:12:own", or of the simulator; negative: neither. */
static int parse_cuda(const char *name, int kind, bool *own)
{
    const size_t n = strlen(kinds[kind].device);
    int index = 0, end = 0;
    if (strncmp(name, kinds[kind].device, n)) return -1;
    name += n;
    if (sscanf(name, ":%3d%n", &index, &end) == 1) name += end;
    *own = strcmp(name, ":own") == 0;
    return *name && !*own ? -1 : index;
}

static int take_device(dllm_device *d, const dllm_ops *ops, const char *kind, int index, bool own)
{
    *d = (dllm_device){ .ops = ops, .threads = 1, .index = index, .library = !own };
    snprintf(d->name, sizeof d->name, "%s:%d%s", kind, index, own ? ":own" : "");
    const int status = ops->open(d);
    return status < 0 ? dllm_fail(status, "%s", d->why) : 0;
}

static int open_cuda(dllm_device **out, const char *name, int kind)
{
    char info[256];
    bool own;
    const int index = parse_cuda(name, kind, &own), n = load(NULL, kind);
    TRY(n);
    const dllm_cuda *cuda = plugins[kind];
    FAIL_IF(index >= n, DLLM_E_DEVICE, "%s: the devices are %s:0 to %s:%d", name, kinds[kind].device, kinds[kind].device, n - 1);
    FAIL_IF(cuda->device_info(index, info, sizeof info) < 0, DLLM_E_DEVICE, "%s: %s", name, cuda->last_error());
    const dllm_ops *ops = cuda->ops(index);
    FAIL_IF(!ops, DLLM_E_DEVICE, "%s: found %s, but %s", name, info, cuda->last_error());
    FAIL_IF(ops->abi != DLLM_OPS_ABI, DLLM_E_DEVICE, "%s: its kernel table is number %d, this library reads %d", name, ops->abi,
            DLLM_OPS_ABI);
    dllm_device *d = malloc(sizeof *d);
    FAIL_IF(!d, DLLM_E_MEMORY, "device: out of memory for %zu bytes", sizeof *d);
    const int status = take_device(d, ops, kinds[kind].device, index, own);
    if (status < 0) free(d);
    else *out = d;
    return status;
}

/* The plug-in of a device that is open. */
static const dllm_cuda *plugin_of(const dllm_device *d)
{
    const char *simulated = kinds[SIMULATOR].device;
    return plugins[strncmp(d->name, simulated, strlen(simulated)) == 0 ? SIMULATOR : GPU];
}

int dllm_device_place(const dllm_device *d, const void *p) { return dllm_is_host(d) ? -1 : plugin_of(d)->place(p); }

int dllm_device_after(dllm_device *d, void *stream)
{
    if (dllm_is_host(d)) return 0;
    const dllm_cuda *cuda = plugin_of(d);
    const int status = cuda->order(d->index, d->stream, stream);
    return status < 0 ? dllm_fail(DLLM_E_DEVICE, "%s: waiting for another stream: %s", d->name, cuda->last_error()) : 0;
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
    for (int kind = 0; kind < N_PLUGINS; kind++) {
        bool own;
        if (parse_cuda(name, kind, &own) >= 0) return open_cuda(out, name, kind);
    }
    const bool cpu = strcmp(name, "cpu") == 0, level = strncmp(name, "cpu:", 4) == 0 && name[4];
    const dllm_ops *ops = cpu || level ? dllm_ops_cpu(level ? name + 4 : "") : NULL;
    return ops ? open_cpu(out, ops, threads ? threads : dllm_threads_default()) : unknown(name);
}

void dllm_device_close(dllm_device *d)
{
    if (d) d->ops->close(d);
    free(d);
}

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
