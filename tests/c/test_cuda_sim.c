/* The CUDA kernels on simulated GPUs, against their plain-C twins. Arguments: the simulator's library, and optionally devices as digits
 * ("03"), a kernel and a seed. */
#include <stddef.h>
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

enum { QUERIES = 70, KEYS = 600, HEADS = 2, DIM = 64, WIDE = HEADS * DIM, CHANGED = 80 };
enum { ASKED = 70, INNER = 520, VOCAB = 333, MOST = VOCAB * INNER };

static dllm_mat matrix(dllm_device *d, int64_t rows, int64_t cols, dllm_dtype dtype, uint32_t seed)
{
    static float image[MOST];
    for (int64_t i = 0; i < rows * cols; i++)
        dllm_put(image, dtype, i, (float)((seed = seed * 1664525u + 1013904223u) >> 16) * 0x1p-15f - 1);
    const size_t bytes = (size_t)(rows * cols) * dllm_dtype_size(dtype);
    void *p = d->ops->alloc(d, bytes);
    d->ops->copy_in(d, p, image, bytes);
    return (dllm_mat){ .data = p, .rows = rows, .cols = cols, .stride = cols, .dtype = dtype };
}

/* ---- attention gives a row the same bits whether blocks share its keys out or one block takes all --------------------------------- */
static dllm_mat heads(dllm_device *d, int64_t rows, uint32_t seed) { return matrix(d, rows, WIDE, DLLM_BF16, seed); }

static void attend(dllm_device *d, dllm_mat out, dllm_mat q, dllm_mat k, dllm_mat v, const dllm_span *span,
                   const dllm_columns *columns)
{
    const dllm_rows rows = { .n = QUERIES }, changed = { .first = 300, .n = CHANGED };
    if (columns) d->ops->attend_delta(d, out, rows, q, rows, q, k, v, changed, span, columns, 1, HEADS, HEADS);
    else d->ops->attend(d, out, rows, q, k, v, span, 1, HEADS, HEADS);
}

static int compare_attention(const char *name)
{
    static uint16_t got[2][QUERIES * WIDE];
    dllm_device *d;
    if (dllm_device_open(&d, name, 0) < 0) return 1;
    const dllm_config c = {
        .layers = 1, .heads = HEADS, .kv_heads = HEADS, .head_dim = DIM, .dim = WIDE, .ffn_dim = 1, .vocab = 1
    };
    const dllm_mat q = heads(d, QUERIES, 1), k = heads(d, KEYS, 2), v = heads(d, KEYS, 3), out = heads(d, QUERIES, 4);
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

/* ---- head_predict gives the bits of linear and predict: of sums in slices, of any dtypes, in rounds --------------------------------- */
typedef struct {
    int32_t token[ASKED];
    float score[ASKED], prob[ASKED];
    dllm_key keys[ASKED];
} predictions;

static int compare_draws(dllm_device *d, dllm_mat x, dllm_mat w, dllm_mat logits, predictions *p, const dllm_sampling *how)
{
    static predictions want, got;
    const dllm_rows all = { .n = ASKED };
    d->ops->linear(d, logits, all, x, all, w, (dllm_mat){ 0 });
    d->ops->predict(d, p->token, p->score, p->prob, logits, ASKED, how, p->keys, NULL, NULL);
    int failed = d->ops->sync(d) != 0;
    want = *p;
    memset(p, 0xa5, offsetof(predictions, keys));
    d->ops->head_predict(d, p->token, p->score, p->prob, x, all, w, how, p->keys);
    failed += d->ops->sync(d) != 0;
    got = *p;
    return failed + (memcmp(&want, &got, sizeof got) != 0);
}

static int compare_head(const char *name)
{
    static const dllm_sampling ways[] = {
        { .gumbel = true,
          .top_p = 1,
          .score = DLLM_SCORE_MARGIN,
          .banned = { 9, 70 },
          .n_banned = 2,
          .unscored = { 300 },
          .n_unscored = 1 },
        { .gumbel = true, .top_p = 1, .temperature = 0.8f, .score = DLLM_SCORE_RANDOM },
        { .top_p = 1, .temperature = 1.3f, .score = DLLM_SCORE_ENTROPY },
        { .top_p = 1, .temperature = 0.2f, .argmax = true },
    };
    static const dllm_dtype pairs[][2] = {
        { DLLM_BF16, DLLM_BF16 }, { DLLM_F16, DLLM_F16 }, { DLLM_F32, DLLM_F32 }, { DLLM_F32, DLLM_BF16 }
    };
    const dllm_config c = { .layers = 1, .heads = 1, .kv_heads = 1, .head_dim = INNER, .dim = INNER, .ffn_dim = 1, .vocab = VOCAB };
    dllm_device *d;
    if (dllm_device_open(&d, name, 0) < 0) return 1;
    predictions *p = d->ops->alloc_shared(d, sizeof *p);
    for (int32_t i = 0; i < ASKED; i++) p->keys[i] = (dllm_key){ 7, (uint64_t)i, 3, (uint32_t)i };
    d->scratch_bytes = d->ops->scratch(d, &c, DLLM_BF16, ASKED, 1);
    d->scratch = d->ops->alloc(d, d->scratch_bytes);
    int different = 0;
    for (int i = 0; i < 4; i++) {
        const dllm_mat x = matrix(d, ASKED, INNER, pairs[i][0], 5), w = matrix(d, VOCAB, INNER, pairs[i][1], 6);
        const dllm_mat logits = matrix(d, ASKED, VOCAB, DLLM_F32, 7);
        for (int way = 0; way < 4; way++) different += compare_draws(d, x, w, logits, p, &ways[way]);
        void *const device[] = { x.data, w.data, logits.data };
        for (int k = 0; k < 3; k++) d->ops->free(d, device[k]);
    }
    d->ops->free(d, d->scratch);
    d->ops->free_shared(d, p);
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
        const int different = compare_attention(name), apart = compare_head(name);
        if (different) printf("FAILED %s: attention depends on who takes the keys\n", name);
        if (apart) printf("FAILED %s: %d times head_predict is not linear and predict\n", name, apart);
        t.failed += different + apart;
        check_device(&t, argc > 3 ? argv[3] : "", argc > 4 ? strtoull(argv[4], NULL, 0) : 1);
    }
    printf("%d passed, %d failed\n", t.passed, t.failed);
    return t.failed ? 1 : 0;
}
