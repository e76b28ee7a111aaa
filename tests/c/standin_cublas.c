/* standin_cublas.c: what the plug-in calls of cuBLAS, in plain C, for tests without a GPU: it refuses every argument that cuBLAS would refuse,
 * and those that it would take but that the plug-in promises not to give, and computes the product. Its numbers come from NVIDIA's
 * manual, not from our own sources. -DLACKING: without the product. standin_fail(...) lets calls fail, standin_products() counts. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../../kernels/bits.h"

enum { SUCCESS = 0, NOT_INITIALIZED = 1, ALLOC_FAILED = 3, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_16F = 2, R_16BF = 14 };

typedef struct cublasContext {
    int magic, math;
    void *stream;
    char *workspace; /* of the stream: a new stream begins without */
    size_t bytes;
} context;

enum { MAGIC = 0x6c61732e };
static context contexts[64];
static int created, products, fail_create, fail_product;

void standin_fail(int create, int product)
{
    fail_create = create;
    fail_product = product;
}

int standin_products(void) { return products; }

int cublasCreate_v2(context **out)
{
    if (fail_create) return ALLOC_FAILED;
    if (created == 64) return NOT_INITIALIZED;
    *out = &contexts[created++];
    (*out)->magic = MAGIC;
    return SUCCESS;
}

int cublasGetProperty(int which, int *value)
{
    if (which < 0 || which > 2 || !value) return INVALID_VALUE;
    *value = (const int[]){ 13, 4, 0 }[which];
    return SUCCESS;
}

const char *cublasGetStatusString(int status)
{
    return status == ALLOC_FAILED       ? "the resource allocation failed"
           : status == EXECUTION_FAILED ? "the GPU program failed"
                                        : "bad";
}

int cublasSetStream_v2(context *h, void *stream)
{
    if (!h || h->magic != MAGIC) return NOT_INITIALIZED;
    h->stream = stream;
    h->workspace = NULL;
    return SUCCESS;
}

int cublasSetWorkspace_v2(context *h, void *p, size_t bytes)
{
    if (!h || h->magic != MAGIC) return NOT_INITIALIZED;
    if ((uintptr_t)p % 256) return INVALID_VALUE;
    h->workspace = p;
    h->bytes = bytes;
    return SUCCESS;
}

int cublasSetMathMode(context *h, int mode)
{
    if (!h || h->magic != MAGIC) return NOT_INITIALIZED;
    h->math = mode;
    return SUCCESS;
}

#ifndef LACKING
static dllm_dtype dtype_of(int type) { return type == R_32F ? DLLM_F32 : type == R_16BF ? DLLM_BF16 : DLLM_F16; }

static bool known(int type) { return type == R_32F || type == R_16F || type == R_16BF; }

/* 111: the operands may be transposed and have leading dimensions; sums in float32 without tricks. */
static bool refused(const context *h, int op_a, int op_b, int m, int n, int k, int type_a, int lda, int type_b, int ldb, int type_c,
                    int ldc, int compute, int algorithm)
{
    const bool sizes = m > 0 && n > 0 && k > 0 && lda >= (op_a ? k : m) && ldb >= (op_b ? n : k) && ldc >= m;
    const bool ops = (op_a == 0 || op_a == 1) && (op_b == 0 || op_b == 1);
    const bool types = known(type_a) && type_a == type_b && (type_c == type_a || type_c == R_32F);
    const bool exact = compute == (type_a == R_32F ? 69 : 68) && h->math == 16 && algorithm == -1;
    return !sizes || !ops || !types || !exact || !h->stream || !h->workspace || h->bytes < 4 << 20;
}

/* Columns first: c[m, n] = alpha op(a)[m, k] op(b)[k, n] + beta c. */
int cublasGemmEx(context *h, int op_a, int op_b, int m, int n, int k, const float *alpha, const void *a, int type_a, int lda,
                 const void *b, int type_b, int ldb, const float *beta, void *c, int type_c, int ldc, int compute, int algorithm)
{
    if (!h || h->magic != MAGIC) return NOT_INITIALIZED;
    if (fail_product) return EXECUTION_FAILED;
    if (refused(h, op_a, op_b, m, n, k, type_a, lda, type_b, ldb, type_c, ldc, compute, algorithm)) return NOT_SUPPORTED;
    memset(h->workspace, 0x5a, 256);
    memset(h->workspace + h->bytes - 256, 0x5a, 256);
    for (int64_t j = 0; j < n; j++) {
        for (int64_t i = 0; i < m; i++) {
            float sum = 0;
            for (int64_t p = 0; p < k; p++)
                sum += dllm_get(a, dtype_of(type_a), op_a ? i * lda + p : p * lda + i) *
                       dllm_get(b, dtype_of(type_b), op_b ? p * ldb + j : j * ldb + p);
            const float before = *beta == 0 ? 0 : *beta * dllm_get(c, dtype_of(type_c), j * ldc + i);
            dllm_put(c, dtype_of(type_c), j * ldc + i, *alpha * sum + before);
        }
    }
    products++;
    return SUCCESS;
}
#endif
