/* Products of many rows by a library: a stand-in for cuBLAS, on simulated GPUs. Arguments: the simulator's library, the stand-in, and one
 * that lacks the product. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "../../kernels/check/check.h"

static int failures;
static void (*standin_fail)(int create, int product);
static int (*standin_products)(void);

static void expect(bool right, const char *what, const char *saw)
{
    if (right) return;
    printf("FAILED %s: %s\n", what, saw);
    failures++;
}

static void expect_text(const char *what, const char *saw, const char *wanted) { expect(strstr(saw, wanted) != NULL, what, saw); }

static bool open_standin(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void *symbols[2] = { library ? dlsym(library, "standin_fail") : NULL, library ? dlsym(library, "standin_products") : NULL };
    memcpy(&standin_fail, &symbols[0], sizeof standin_fail);
    memcpy(&standin_products, &symbols[1], sizeof standin_products);
    return symbols[0] && symbols[1];
}

/* ---- the search ------------------------------------------------------------------------------------------------------------------ */
static bool has_library(const char *name)
{
    dllm_device *d;
    if (dllm_device_open(&d, name, 0) < 0) return false;
    const bool has = d->library;
    dllm_device_close(d);
    return has;
}

static void test_search(const char *good, const char *lacking)
{
    char out[1024] = "";
    expect(dllm_cuda_library("cuda-sim", NULL, out, sizeof out) == DLLM_E_DEVICE, "no path", out);
    expect_text("no path", dllm_last_error(), "cuBLAS was not found");
    expect(dllm_cuda_library("cuda-sim", "/nowhere/libcublas.so.13", out, sizeof out) == DLLM_E_DEVICE, "a wrong path", out);
    expect_text("a wrong path", dllm_last_error(), "cuBLAS was not found; /nowhere/libcublas.so.13: cannot open");
    expect(dllm_cuda_library("cuda-sim", lacking, out, sizeof out) == DLLM_E_DEVICE, "a library that lacks a function", out);
    expect_text("a library that lacks a function", dllm_last_error(), "standin_lacking.so lacks cublasGemmEx");
    expect(!has_library("cuda-sim:3"), "a device before there is a library", "has one");

    expect(dllm_cuda_library("cuda-sim", good, out, sizeof out) == 0, "the stand-in", dllm_last_error());
    expect_text("the stand-in", out, "cuBLAS 13.4 (");
    expect_text("the stand-in", out, good);
    expect(dllm_cuda_library("cuda-sim", NULL, out, sizeof out) == 0, "asked again", dllm_last_error());
    expect_text("asked again", out, good);
    expect(has_library("cuda-sim:3") && has_library("cuda-sim"), "a device", "has no library");
    expect(!has_library("cuda-sim:3:own") && !has_library("cuda-sim:own"), "an own device", "has a library");
}

/* ---- products -------------------------------------------------------------------------------------------------------------------- */
static void report(void *arg, const dllm_check_result *r)
{
    int *cases = arg;
    cases[strstr(r->name, "library") != NULL]++;
    if (!r->ok) printf("FAILED %s: error %.3g, tolerance %g epsilons. %s\n", r->name, r->error, r->tolerance, r->why);
    failures += !r->ok;
}

/* The library takes the cases of many rows in one dtype, our own kernels the others. */
static void test_products(const char *name)
{
    dllm_device *d;
    int cases[2] = { 0 };
    const int before = standin_products();
    if (dllm_device_open(&d, name, 0) < 0) {
        expect(false, name, dllm_last_error());
        return;
    }
    expect(dllm_check(d, "linear", 7, false, report, cases) == 0, name, "cases failed");
    dllm_device_close(d);
    const int products = standin_products() - before;
    printf("%s: %d cases of our own, %d of the library, which multiplied %d times\n", name, cases[0], cases[1], products);
    expect(cases[0] > 100 && cases[1] > 0 && products > 30, name, "cases are missing");
}

/* ---- failures -------------------------------------------------------------------------------------------------------------------- */
enum { ROWS = 128, COLS = 8 };

static dllm_mat matrix(dllm_device *d, int64_t rows)
{
    return (dllm_mat){
        .data = d->ops->alloc(d, (size_t)rows * COLS * 4), .rows = rows, .cols = COLS, .stride = COLS, .dtype = DLLM_F32
    };
}

/* 0 or the failure that the product reported; *products: by the library. */
static int multiply(dllm_device *d, int32_t rows, size_t scratch_bytes, int *products)
{
    const dllm_config c = { .layers = 1, .heads = 1, .kv_heads = 1, .head_dim = COLS, .dim = COLS, .ffn_dim = COLS, .vocab = COLS };
    const dllm_mat x = matrix(d, ROWS), w = matrix(d, COLS), out = matrix(d, ROWS);
    const size_t most = d->ops->scratch(d, &c, DLLM_F32, rows, 1);
    const int before = standin_products();
    d->scratch_bytes = scratch_bytes < most ? scratch_bytes : most;
    d->scratch = d->ops->alloc(d, most);
    d->ops->linear(d, out, (dllm_rows){ .n = rows }, x, (dllm_rows){ .n = rows }, w, (dllm_mat){ 0 });
    const int status = d->ops->sync(d);
    *products = standin_products() - before;
    void *const all[] = { x.data, w.data, out.data, d->scratch };
    for (int i = 0; i < 4; i++) d->ops->free(d, all[i]);
    return status;
}

static void test_own(const char *name)
{
    dllm_device *d;
    int products;
    expect(dllm_device_open(&d, name, 0) == 0, name, dllm_last_error());
    expect(multiply(d, ROWS, SIZE_MAX, &products) == 0 && products == 0, name, "the library multiplied");
    dllm_device_close(d);
}

static void test_limits(const char *name)
{
    dllm_device *d;
    int products;
    if (dllm_device_open(&d, name, 0) < 0) {
        expect(false, name, dllm_last_error());
        return;
    }
    expect(multiply(d, ROWS, SIZE_MAX, &products) == 0 && products == 1, "128 rows", "not by the library");
    expect(multiply(d, ROWS - 1, SIZE_MAX, &products) == 0 && products == 0, "127 rows", "by the library");
    expect(multiply(d, ROWS, 1 << 20, &products) == 0 && products == 0, "little scratch", "by the library");
    standin_fail(0, 1);
    expect(multiply(d, ROWS, SIZE_MAX, &products) == DLLM_E_DEVICE && products == 0, "a product that fails", d->why);
    expect_text("a product that fails", d->why, "linear: cuBLAS: the GPU program failed (status 13)");
    standin_fail(0, 0);
    expect(multiply(d, ROWS, SIZE_MAX, &products) == 0 && products == 1, "the product after it", d->why);
    dllm_device_close(d);
}

static void test_handle(void)
{
    dllm_device *d;
    standin_fail(1, 0);
    expect(dllm_device_open(&d, "cuda-sim:9", 0) == DLLM_E_MEMORY && !d, "a handle that fails", dllm_last_error());
    expect_text("a handle that fails", dllm_last_error(), "cuda-sim:9: opening the device: cuBLAS: the resource allocation failed");
    expect(dllm_device_open(&d, "cuda-sim:9:own", 0) == 0, "without a handle", dllm_last_error());
    dllm_device_close(d);
    standin_fail(0, 0);
    expect(has_library("cuda-sim:9"), "a handle after one that failed", dllm_last_error());
}

int main(int argc, char **argv)
{
    if (argc < 4 || dllm_cuda_sim_load(argv[1]) < 0 || !open_standin(argv[2])) {
        printf("FAILED to open the simulator or the stand-in: %s\n", argc < 4 ? "no paths" : dllm_last_error());
        return 1;
    }
    test_search(argv[2], argv[3]);
    test_handle();
    test_limits("cuda-sim:0");
    test_limits("cuda-sim:3");
    test_own("cuda-sim:3:own");
    test_products("cuda-sim:3");
    printf("%d failed\n", failures);
    return failures ? 1 : 0;
}
