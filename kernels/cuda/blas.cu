/* Products of many rows by NVIDIA's cuBLAS, where the process has it or can find it: no header of it is read and nothing is linked, so the
 * plug-in loads without it and then multiplies by itself. What is declared here is the stable C interface of versions 12 and 13.
 *
 * The library chooses its way through a product by the product's shape, its rows included, so a row's last bits depend on how many came
 * along: the one exception to the promise of ops.h. A device that is opened without a library keeps the promise: see device.c.
 * Everything else holds: sums are float32 or better (no TF32, no reduction in 16 bits), and the same call gives the same bits. */
#include <climits>
#include <cstdio>
#include <dlfcn.h>
#include <mutex>

#include "dense.h"

/* Products of fewer rows stream the weights once in our own kernels; from here on arithmetic decides. Not measured yet. */
enum { LIBRARY_ROWS = 128 };
/* What NVIDIA advises for Hopper; it must be a session's own, or two streams would share it. */
enum { WORKSPACE = 32 << 20 };

/* ---- what of cuBLAS is called ------------------------------------------------------------------------------------------------------ */
typedef struct cublasContext *handle;
enum { OP_N = 0, OP_T = 1, REAL_32F = 0, REAL_16F = 2, REAL_16BF = 14, COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69 };
enum { ALLOC_FAILED = 3, GEMM_DEFAULT = -1, MATH_FULL_REDUCTIONS = 16, VERSION_MAJOR = 0, VERSION_MINOR = 1 };

struct functions {
    int (*create)(handle *h);
    int (*property)(int which, int *value);
    int (*set_stream)(handle h, cudaStream_t stream);
    int (*set_workspace)(handle h, void *p, size_t bytes);
    int (*set_math)(handle h, int mode);
    int (*gemm)(handle h, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a, int type_a, int lda,
                const void *b, int type_b, int ldb, const void *beta, void *c, int type_c, int ldc, int compute, int algorithm);
    const char *(*status)(int status);
};
static const char *const names[] = { "cublasCreate_v2",   "cublasGetProperty", "cublasSetStream_v2",   "cublasSetWorkspace_v2",
                                     "cublasSetMathMode", "cublasGemmEx",      "cublasGetStatusString" };
enum { N_NAMES = sizeof names / sizeof *names };
static_assert(sizeof(functions) == N_NAMES * sizeof(void *), "a name for every function");

enum { MOST_DEVICES = 64 };
static std::mutex lock; /* guards what follows, and the handles: each serves all streams of a device, one call at a time */
static functions blas;  /* create NULL: not found yet */
static handle handles[MOST_DEVICES]; /* they stay for the life of the process */

/* ---- finding it ------------------------------------------------------------------------------------------------------------------ */
struct text {
    char *at;
    size_t left;
};

template <class... A> static void append(text *t, const char *format, A... args)
{
    const int n = snprintf(t->at, t->left, format, args...);
    const size_t written = n < 0 ? 0 : (size_t)n < t->left ? (size_t)n : t->left ? t->left - 1 : 0;
    t->at += written;
    t->left -= written;
}

/* Whether it is there and complete; if not, why says more than before. */
static bool take_library(const char *path, int flags, text *why)
{
    void *library = dlopen(path, RTLD_LAZY | RTLD_LOCAL | flags);
    if (!library) {
        const char *error = dlerror();
        if (!(flags & RTLD_NOLOAD)) append(why, "; %s", error ? error : path);
        return false;
    }
    void *found[N_NAMES];
    for (int i = 0; i < N_NAMES; i++) {
        found[i] = dlsym(library, names[i]);
        if (found[i]) continue;
        append(why, "; %s lacks %s", path, names[i]);
        dlclose(library);
        return false;
    }
    memcpy(&blas, found, sizeof blas);
    return true;
}

/* The copy that the process has, the one that somebody named, the system's. */
static const char *look(const char *path, text *why)
{
#ifdef __CUDACC__
    static const char *const system[] = { "libcublas.so.13", "libcublas.so.12" };
    for (const char *name : system)
        if (take_library(name, RTLD_NOLOAD, why)) return "loaded before";
    if (path && take_library(path, 0, why)) return path;
    for (const char *name : system)
        if (take_library(name, 0, why)) return "the system's";
#else
    if (path && take_library(path, 0, why)) return path; /* the real one cannot compute in simulated memory */
#endif
    return nullptr;
}

int dllm_blas_find(const char *path, char *out, size_t bytes)
{
    static char where[1024];
    std::lock_guard<std::mutex> hold(lock);
    text said = { out, bytes };
    append(&said, "cuBLAS was not found");
    const char *found = blas.create ? where : look(path, &said);
    if (!found) return -1;
    int major = 0, minor = 0;
    blas.property(VERSION_MAJOR, &major);
    blas.property(VERSION_MINOR, &minor);
    if (found != where) snprintf(where, sizeof where, "%s", found);
    snprintf(out, bytes, "cuBLAS %d.%d (%s)", major, minor, where);
    return 0;
}

/* ---- using it -------------------------------------------------------------------------------------------------------------------- */
static void note(dllm_device *d, const char *what, int status)
{
    if (status == 0 || d->failed) return;
    d->failed = status == ALLOC_FAILED ? DLLM_E_MEMORY : DLLM_E_DEVICE;
    snprintf(d->why, sizeof d->why, "%s: %s: cuBLAS: %s (status %d)", d->name, what, blas.status(status), status);
}

void dllm_blas_open(dllm_device *d)
{
    std::lock_guard<std::mutex> hold(lock);
    d->library = d->library && blas.create && d->index < MOST_DEVICES;
    if (!d->library || handles[d->index]) return;
    handle h = nullptr;
    int status = blas.create(&h);
    if (status == 0) status = blas.set_math(h, MATH_FULL_REDUCTIONS);
    note(d, "opening the device", status);
    if (status == 0) handles[d->index] = h;
}

size_t dllm_blas_scratch(const dllm_device *d, int64_t rows)
{
    return d->library && rows >= LIBRARY_ROWS ? SCRATCH_COUNTERS + (size_t)WORKSPACE : 0;
}

/* Rows that lie one after the other and that the host can count, in dtypes that the library multiplies; a bias that lies in out before is added exactly. */
static bool suits(const dllm_device *d, const dense_job &job)
{
    const dllm_dtype t = job.x.dtype, to = job.out.dtype;
    const bool dtypes = t == job.w.dtype && t != DLLM_I8 && (to == t || to == DLLM_F32);
    const bool bias = !job.bias.data || job.bias.dtype == to || (to == DLLM_F32 && job.bias.dtype != DLLM_I8);
    const bool sizes = job.w.rows <= INT_MAX && job.w.cols <= INT_MAX && job.w.stride <= INT_MAX && job.x.stride <= INT_MAX &&
                       job.out.stride <= INT_MAX;
    return d->library && !job.in_rows.count && job.in_rows.n >= LIBRARY_ROWS && !job.in_rows.idx && !job.out_rows.idx && dtypes &&
           bias && sizes && d->scratch_bytes >= SCRATCH_COUNTERS + (size_t)WORKSPACE;
}

static __global__ void spread(dllm_mat out, dllm_rows rows, dllm_mat bias)
{
    void *row = dllm_at(out, dllm_row(rows, (int32_t)blockIdx.x));
    for (int64_t j = (int64_t)threadIdx.x * 8; j < out.cols; j += (int64_t)blockDim.x * 8)
        store8(row, out.dtype, j, out.cols, load8(bias.data, bias.dtype, j, out.cols));
}

static int type_of(dllm_dtype t) { return t == DLLM_F32 ? REAL_32F : t == DLLM_BF16 ? REAL_16BF : REAL_16F; }

/* The library counts columns first: out, [features, rows] to it, is w transposed times x. */
static int multiply(dllm_device *d, const dense_job &job)
{
    std::lock_guard<std::mutex> hold(lock);
    const handle h = handles[d->index];
    const float one = 1, kept = job.bias.data ? 1 : 0;
    int status = blas.set_stream(h, (cudaStream_t)d->stream);
    if (status == 0) status = blas.set_workspace(h, (char *)d->scratch + SCRATCH_COUNTERS, WORKSPACE);
    if (status) return status;
    return blas.gemm(h, OP_T, OP_N, (int)job.w.rows, job.in_rows.n, (int)job.w.cols, &one, job.w.data, type_of(job.w.dtype),
                     (int)job.w.stride, dllm_at(job.x, job.in_rows.first), type_of(job.x.dtype), (int)job.x.stride, &kept,
                     dllm_at(job.out, job.out_rows.first), type_of(job.out.dtype), (int)job.out.stride,
                     job.x.dtype == DLLM_F32 ? COMPUTE_32F_PEDANTIC : COMPUTE_32F, GEMM_DEFAULT);
}

bool dllm_linear_blas(dllm_device *d, const dense_job &job)
{
    if (!suits(d, job)) return false;
    if (job.bias.data)
        launch(d, "linear", spread, (unsigned)job.in_rows.n, threads_for(job.out.cols), 0, job.out, job.out_rows, job.bias);
    const current_gpu gpu(d->index);
    dllm_cuda_note(d, "linear", gpu.error);
    dllm_queue_flush(d);
#ifdef __CUDACC__
    note(d, "linear", multiply(d, job));
#else
    sim::later((cudaStream_t)d->stream, [=] { note(d, "linear", multiply(d, job)); });
#endif
    d->kernels++;
    d->launches++;
    return true;
}
