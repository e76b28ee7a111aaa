/* The CUDA kernels on simulated GPUs, against their plain-C twins. Arguments: the simulator's library, and optionally devices as digits
 * ("03"), a kernel and a seed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../kernels/bits.h"
#include "tally.h"

static void check_device(tally *t, const char *kernel, uint64_t seed)
{
    dllm_device *device;
    if (dllm_device_open(&device, t->table, 0) < 0) {
        printf("FAILED %s: %s\n", t->table, dllm_last_error());
        t->failed++;
        return;
    }
    check_table(t, device, kernel, seed);
    dllm_device_close(device);
}

/* ---- attention gives a row the same bits whether blocks share its keys out or one block takes all --------------------------------- */
enum { QUERIES = 70, KEYS = 600, HEADS = 2, DIM = 64, WIDE = HEADS * DIM, CHANGED = 80 };

static dllm_mat matrix(dllm_device *d, int64_t rows, uint32_t seed)
{
    static uint16_t image[KEYS * WIDE];
    for (int64_t i = 0; i < rows * WIDE; i++)
        image[i] = dllm_to_bf16((float)((seed = seed * 1664525u + 1013904223u) >> 16) * 0x1p-15f - 1);
    void *p = d->ops->alloc(d, (size_t)rows * WIDE * sizeof *image);
    d->ops->copy_in(d, p, image, (size_t)rows * WIDE * sizeof *image);
    return (dllm_mat){ .data = p, .rows = rows, .cols = WIDE, .stride = WIDE, .dtype = DLLM_BF16 };
}

static void attend(dllm_device *d, dllm_mat out, dllm_mat q, dllm_mat k, dllm_mat v, const dllm_span *span,
                   const dllm_columns *columns)
{
    const dllm_rows rows = { .n = QUERIES }, changed = { .first = 300, .n = CHANGED };
    const dllm_spans spans = { span, columns, 1, QUERIES, KEYS };
    if (columns) d->ops->attend_delta(d, out, q, rows, q, rows, k, v, changed, spans, HEADS, HEADS);
    else d->ops->attend(d, out, q, rows, k, v, spans, HEADS, HEADS);
}

static int compare_attention(const char *name)
{
    static uint16_t got[2][QUERIES * WIDE];
    dllm_device *d;
    if (dllm_device_open(&d, name, 0) < 0) return 1;
    const dllm_config c = {
        .layers = 1, .heads = HEADS, .kv_heads = HEADS, .head_dim = DIM, .dim = WIDE, .ffn_dim = 1, .vocab = 1
    };
    const dllm_mat q = matrix(d, QUERIES, 1), k = matrix(d, KEYS, 2), v = matrix(d, KEYS, 3), out = matrix(d, QUERIES, 4);
    dllm_span *span = d->ops->alloc_shared(d, sizeof *span);
    dllm_columns *columns = d->ops->alloc_shared(d, sizeof *columns);
    const size_t most = d->ops->scratch(d, &c, DLLM_BF16, QUERIES, KEYS), least = d->ops->scratch(d, &c, DLLM_BF16, 1, 1);
    d->scratch = d->ops->alloc(d, most);
    *span = (dllm_span){ 0, QUERIES, 0, KEYS };
    *columns = (dllm_columns){ 0, CHANGED };
    int different = 0;
    for (int delta = 0; delta < 2; delta++) {
        for (int shared = 0; shared < 2; shared++) {
            d->scratch_bytes = shared ? most : least;
            attend(d, out, q, k, v, span, delta ? columns : NULL);
            d->ops->copy_out(d, got[shared], out.data, sizeof *got);
        }
        different += memcmp(got[0], got[1], sizeof *got) != 0 || d->ops->sync(d) != 0;
    }
    void *const device[] = { q.data, k.data, v.data, out.data, d->scratch };
    for (int i = 0; i < 5; i++) d->ops->free(d, device[i]);
    d->ops->free_shared(d, span);
    d->ops->free_shared(d, columns);
    dllm_device_close(d);
    return different;
}

int main(int argc, char **argv)
{
    if (argc < 2 || dllm_cuda_sim_load(argv[1]) < 0) {
        printf("FAILED to open the simulator: %s\n", argc < 2 ? "no path" : dllm_last_error());
        return 1;
    }
    tally t = { 0 };
    for (const char *digit = argc > 2 ? argv[2] : "3"; *digit; digit++) {
        char name[] = "cuda-sim:?";
        name[strlen(name) - 1] = *digit;
        t.table = name;
        const int different = compare_attention(name);
        if (different) printf("FAILED %s: attention depends on who takes the keys\n", name);
        t.failed += different;
        check_device(&t, argc > 3 ? argv[3] : "", argc > 4 ? strtoull(argv[4], NULL, 0) : 1);
    }
    printf("%d passed, %d failed\n", t.passed, t.failed);
    return t.failed ? 1 : 0;
}
