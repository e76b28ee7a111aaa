/* gpu_kernels.c: the time of kernels at the sizes of LLaDA-8B, one CSV line each: kernel,case,seconds,bytes,operations. Bytes are what a kernel
 * must read and write at least, operations its multiplications and additions. Calls follow each other without waiting, over so many
 * copies of the larger operand that no cache holds them all. `make -C tests/c OUT=DIR SANITIZE= CFLAGS=-O2 DIR/gpu_kernels` builds it.
 *     gpu_kernels PLUGIN CUBLAS DEVICE [SHRINK]
 * PLUGIN "-": beside the program's own library; CUBLAS "-": none, "system": wherever the system has it; SHRINK divides the sizes, for trying it out. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../kernels/ops.h"

enum { DIM = 4096, FFN = 12288, VOCAB = 126464, HEADS = 32, MOST_COPIES = 16, WINDOWS = 32, WINDOW = 256 };
static const size_t BEYOND_CACHES = (size_t)512 << 20;
static const double LONG_ENOUGH = 0.02; /* seconds of one measurement */

typedef struct {
    dllm_device *d;
    int shrink;
    const char *kernel;
    char name[96];
    double bytes, operations;
    dllm_mat x, out, more, other, w[MOST_COPIES];
    int copies, call;
    int32_t rows;
    int32_t *count;
    dllm_span *span;
    dllm_columns *columns;
    dllm_turned turned;
    dllm_turn *turns;
    dllm_pick *picks;
    float *numbers, *scores;
    int32_t *ids;
    dllm_key *keys;
    dllm_sampling how;
} bench;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void check(const dllm_device *d, bool fine)
{
    if (fine) return;
    fprintf(stderr, "gpu_kernels: %s\n", d && d->why[0] ? d->why : dllm_last_error());
    exit(1);
}

/* Zeros would let the chip draw less power than it does on numbers. */
static dllm_mat matrix(bench *b, int64_t rows, int64_t cols, dllm_dtype t)
{
    const size_t size = t == DLLM_F32 ? 4 : 2, bytes = (size_t)(rows * cols) * size;
    const dllm_mat m = { .data = b->d->ops->alloc(b->d, bytes), .rows = rows, .cols = cols, .stride = cols, .dtype = t };
    check(b->d, m.data);
    enum { PIECE = 1 << 20 };
    static uint16_t noise[PIECE / 2];
    for (size_t i = 0; i < PIECE / 2 && !noise[PIECE / 2 - 1]; i++) noise[i] = (uint16_t)(0x3c00 + (i * 2654435761u >> 13) % 0x300);
    for (size_t at = 0; at < bytes; at += PIECE)
        b->d->ops->copy_in(b->d, (char *)m.data + at, noise, bytes - at < PIECE ? bytes - at : PIECE);
    return m;
}

static void *shared(bench *b, size_t bytes)
{
    void *p = b->d->ops->alloc_shared(b->d, bytes);
    check(b->d, p);
    return p;
}

static void *on_device(bench *b, size_t bytes)
{
    void *p = b->d->ops->alloc(b->d, bytes);
    check(b->d, p);
    return p;
}

static double lap(bench *b, void (*run)(bench *), int calls)
{
    const double begin = now();
    for (int i = 0; i < calls; i++, b->call++) run(b);
    check(b->d, b->d->ops->sync(b->d) == 0);
    return now() - begin;
}

/* The least of five measurements, each long enough for the clock. */
static void measure(bench *b, const char *kernel, void (*run)(bench *))
{
    int calls = b->copies > 2 ? b->copies : 2;
    lap(b, run, calls);
    while (lap(b, run, calls) < LONG_ENOUGH) calls *= 2;
    double best = 1e30;
    for (int i = 0; i < 5; i++) {
        const double seconds = lap(b, run, calls) / calls;
        if (seconds < best) best = seconds;
    }
    printf("%s,%s,%s,%.9f,%.0f,%.0f\n", dllm_device_name(b->d), kernel, b->name, best, b->bytes, b->operations);
    fflush(stdout);
}

static void release(bench *b)
{
    void *const all[] = { b->x.data, b->out.data, b->more.data, b->other.data };
    for (int i = 0; i < 4; i++)
        if (all[i]) b->d->ops->free(b->d, all[i]);
    for (int i = 0; i < b->copies; i++) b->d->ops->free(b->d, b->w[i].data);
    b->x.data = b->out.data = b->more.data = b->other.data = NULL;
    b->copies = 0;
}

static dllm_rows first(int32_t n) { return (dllm_rows){ .n = n }; }

/* ---- kernels --------------------------------------------------------------------------------------------------------------------- */
static void run_linear(bench *b)
{
    b->d->ops->linear(b->d, b->out, first(b->rows), b->x, first(b->rows), b->w[b->call % b->copies], (dllm_mat){ 0 });
}

static void run_counted(bench *b)
{
    const dllm_rows rows = { .n = WINDOW, .count = b->count };
    b->d->ops->linear(b->d, b->out, rows, b->x, rows, b->w[b->call % b->copies], (dllm_mat){ 0 });
}

/* A grid for so many rows as DyLLM's window has, of which a few are there. */
static void bench_counted(bench *b)
{
    snprintf(b->name, sizeof b->name, "%d of %d rows by %lld x %lld", (int)b->rows, WINDOW, (long long)b->w[0].rows,
             (long long)b->w[0].cols);
    b->d->ops->copy_in(b->d, b->count, &b->rows, sizeof b->rows);
    measure(b, "linear_counted", run_counted);
}

static void bench_linear(bench *b, int32_t rows, int64_t features, int64_t columns)
{
    features /= b->shrink;
    columns /= b->shrink;
    const size_t bytes = (size_t)(features * columns) * 2;
    const bool head = features > FFN;
    b->rows = rows;
    b->x = matrix(b, rows, columns, DLLM_BF16);
    b->out = matrix(b, rows, features, head ? DLLM_F32 : DLLM_BF16);
    do b->w[b->copies++] = matrix(b, features, columns, DLLM_BF16);
    while (b->copies < MOST_COPIES && bytes * (size_t)b->copies < BEYOND_CACHES / (size_t)b->shrink);
    snprintf(b->name, sizeof b->name, "%d rows by %lld x %lld", (int)rows, (long long)features, (long long)columns);
    b->bytes = (double)bytes + 2.0 * rows * (double)columns + (head ? 4.0 : 2.0) * rows * (double)features;
    b->operations = 2.0 * rows * (double)features * (double)columns;
    measure(b, "linear", run_linear);
    if (!head && rows <= WINDOW && !dllm_is_host(b->d)) bench_counted(b);
    release(b);
}

static dllm_spans spans(const bench *b) { return (dllm_spans){ b->span, b->columns, 1, b->span->n_q, b->span->n_keys }; }

static void run_attend(bench *b)
{
    b->d->ops->attend(b->d, b->out, b->x, first(b->rows), b->more, b->other, spans(b), HEADS, HEADS);
}

static void run_delta(bench *b)
{
    b->d->ops->attend_delta(b->d, b->out, b->x, first(b->rows), b->out, first(b->rows), b->more, b->other, first(b->columns->n),
                            spans(b), HEADS, HEADS);
}

static void bench_attention(bench *b, int32_t queries, int32_t keys)
{
    keys /= b->shrink;
    b->rows = queries;
    b->x = matrix(b, queries, DIM, DLLM_BF16);
    b->out = matrix(b, queries, DIM, DLLM_BF16);
    b->more = matrix(b, keys, DIM, DLLM_BF16);
    b->other = matrix(b, keys, DIM, DLLM_BF16);
    *b->span = (dllm_span){ 0, queries, 0, keys };
    *b->columns = (dllm_columns){ 0, keys < 64 ? keys : 64 };
    snprintf(b->name, sizeof b->name, "%d queries of %d heads over %d keys", (int)queries, HEADS, (int)keys);
    b->bytes = 4.0 * DIM * ((double)queries + keys);
    b->operations = 4.0 * DIM * (double)queries * keys;
    measure(b, "attend", run_attend);
    b->bytes = 2.0 * DIM * (4.0 * queries + keys);
    b->operations = 2.0 * DIM * (double)queries * (keys + 2 * b->columns->n);
    measure(b, "attend_delta", run_delta);
    release(b);
}

static void run_rmsnorm(bench *b) { b->d->ops->rmsnorm(b->d, b->out, first(b->rows), b->x, first(b->rows), b->other, 1e-5f); }
static void run_swiglu(bench *b) { b->d->ops->swiglu(b->d, b->out, b->x, b->more, first(b->rows)); }
static void run_add(bench *b) { b->d->ops->add(b->d, b->out, first(b->rows), b->x, first(b->rows)); }
static void run_copy(bench *b) { b->d->ops->copy(b->d, b->out, first(b->rows), b->x, first(b->rows)); }
static void run_cosine(bench *b) { b->d->ops->cosine(b->d, b->numbers, b->x, first(b->rows), b->more, first(b->rows), 1e-8f); }

static void bench_rows(bench *b, int32_t rows, int64_t columns)
{
    static const struct {
        const char *name;
        void (*run)(bench *);
        int matrices;
    } all[] = { { "rmsnorm", run_rmsnorm, 2 },
                { "swiglu", run_swiglu, 3 },
                { "add", run_add, 3 },
                { "copy", run_copy, 2 },
                { "cosine", run_cosine, 2 } };
    b->rows = rows /= b->shrink;
    b->x = matrix(b, rows, columns, DLLM_BF16);
    b->more = matrix(b, rows, columns, DLLM_BF16);
    b->out = matrix(b, rows, columns, DLLM_BF16);
    b->other = matrix(b, 1, columns, DLLM_BF16);
    snprintf(b->name, sizeof b->name, "%d x %lld", (int)rows, (long long)columns);
    b->operations = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        b->bytes = 2.0 * all[i].matrices * rows * (double)columns;
        measure(b, all[i].name, all[i].run);
    }
    release(b);
}

static void run_predict(bench *b)
{
    b->d->ops->predict(b->d, b->ids, b->numbers, b->numbers + b->rows, b->x, b->rows, &b->how, b->keys, NULL, NULL);
}

static void bench_predict(bench *b, int32_t rows)
{
    b->rows = rows;
    b->x = matrix(b, rows, VOCAB / b->shrink, DLLM_F32);
    b->operations = 0;
    b->bytes = 4.0 * rows * (double)b->x.cols;
    b->how = (dllm_sampling){ .score = DLLM_SCORE_PROB, .top_p = 1, .gumbel = true };
    snprintf(b->name, sizeof b->name, "%d rows of %lld greedy", (int)rows, (long long)b->x.cols);
    measure(b, "predict", run_predict);
    b->how.temperature = 1;
    snprintf(b->name, sizeof b->name, "%d rows of %lld drawn", (int)rows, (long long)b->x.cols);
    measure(b, "predict", run_predict);
    release(b);
}

static void run_head(bench *b)
{
    b->d->ops->head_predict(b->d, b->ids, b->numbers, b->numbers + b->rows, b->x, first(b->rows), b->w[b->call % b->copies],
                            &b->how, b->keys);
}

static void run_pick(bench *b) { b->d->ops->pick(b->d, b->turned.rows, b->scores, b->picks, 1); }

static void run_turn(bench *b) { b->d->ops->turn(b->d, b->turned, b->scores, b->turns, b->rows, NULL); }

/* Of every window a quarter: what dLLM-Cache picks, and what turns under DyLLM. */
static void bench_choice(bench *b, int32_t windows)
{
    static float scores[WINDOWS * WINDOW];
    for (int32_t i = 0; i < WINDOWS * WINDOW; i++) scores[i] = (float)(i * 37 % 256);
    b->d->ops->copy_in(b->d, b->scores, scores, sizeof scores);
    for (int32_t i = 0; i < windows; i++) {
        const int32_t first = i * WINDOW;
        b->turns[i] = (dllm_turn){ .first = first, .n = WINDOW, .score = first, .limit = 64, .n_keys = WINDOW };
    }
    *b->picks = (dllm_pick){ .n = WINDOW, .take = WINDOW / 4 };
    b->rows = windows;
    b->operations = 0;
    b->bytes = 8.0 * windows * WINDOW;
    snprintf(b->name, sizeof b->name, "%d x %d scores", (int)windows, WINDOW);
    measure(b, "turn", run_turn);
    if (windows == 1) measure(b, "pick", run_pick);
}

/* What linear and predict do together, without logits in memory. */
static void bench_head(bench *b, int32_t rows)
{
    const int64_t vocab = VOCAB / b->shrink, columns = DIM / b->shrink;
    b->rows = rows;
    b->x = matrix(b, rows, columns, DLLM_BF16);
    b->w[b->copies++] = matrix(b, vocab, columns, DLLM_BF16);
    b->bytes = 2.0 * (double)columns * ((double)vocab + rows);
    b->operations = 2.0 * rows * (double)vocab * (double)columns;
    b->how = (dllm_sampling){ .score = DLLM_SCORE_PROB, .top_p = 1, .gumbel = true };
    for (int drawn = 0; drawn < 2; drawn++) {
        b->how.temperature = (float)drawn;
        snprintf(b->name, sizeof b->name, "%d rows by %lld x %lld %s", (int)rows, (long long)vocab, (long long)columns,
                 drawn ? "drawn" : "greedy");
        measure(b, "head_predict", run_head);
    }
    release(b);
}

static void take_scratch(bench *b)
{
    const dllm_config c = {
        .layers = 1, .heads = HEADS, .kv_heads = HEADS, .head_dim = DIM / HEADS, .dim = DIM, .ffn_dim = FFN, .vocab = VOCAB
    };
    b->d->scratch_bytes = b->d->ops->scratch(b->d, &c, DLLM_BF16, 4352, 4352);
    b->d->scratch = b->d->ops->alloc(b->d, b->d->scratch_bytes);
    check(b->d, b->d->scratch);
    b->count = on_device(b, sizeof *b->count);
    b->span = shared(b, sizeof *b->span);
    b->columns = shared(b, sizeof *b->columns);
    b->numbers = shared(b, 8704 * sizeof *b->numbers);
    b->ids = shared(b, 4352 * sizeof *b->ids);
    b->keys = shared(b, 64 * sizeof *b->keys);
    b->turns = shared(b, WINDOWS * sizeof *b->turns);
    b->picks = shared(b, sizeof *b->picks);
    b->scores = on_device(b, WINDOWS * WINDOW * sizeof *b->scores);
    b->turned.told = shared(b, WINDOWS * sizeof *b->turned.told);
    b->turned.rows = on_device(b, WINDOWS * WINDOW * sizeof *b->turned.rows);
    b->turned.rest = on_device(b, WINDOWS * WINDOW * sizeof *b->turned.rest);
    b->turned.count = on_device(b, 2 * sizeof *b->turned.count);
    b->turned.exact = on_device(b, WINDOWS * sizeof *b->turned.exact);
    b->turned.delta = on_device(b, WINDOWS * sizeof *b->turned.delta);
    b->turned.columns = on_device(b, WINDOWS * sizeof *b->turned.columns);
}

int main(int argc, char **argv)
{
    bench b = { .shrink = argc > 4 ? atoi(argv[4]) : 1 };
    char library[1024];
    if (argc < 4 || b.shrink < 1) return (fprintf(stderr, "gpu_kernels PLUGIN CUBLAS DEVICE [SHRINK]\n"), 2);
    if (strcmp(argv[1], "-")) check(NULL, (strncmp(argv[3], "cuda-sim", 8) ? dllm_cuda_load : dllm_cuda_sim_load)(argv[1]) > 0);
    const char *cublas = strcmp(argv[2], "system") ? argv[2] : NULL;
    if (strcmp(argv[2], "-")) check(NULL, dllm_cuda_library("cuda", cublas, library, sizeof library) == 0);
    check(NULL, dllm_device_open(&b.d, argv[3], 0) == 0);
    take_scratch(&b);
    static const int32_t rows[] = { 1, 8, 16, 32, 64, 96, 128, 192, 256, 512, 1280 };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bench_linear(&b, rows[i], DIM, DIM);
        bench_linear(&b, rows[i], FFN, DIM);
        bench_linear(&b, rows[i], DIM, FFN);
        if (rows[i] <= 64) bench_linear(&b, rows[i], VOCAB, DIM);
    }
    bench_attention(&b, 32, 1280);
    bench_attention(&b, 32, 4352);
    bench_attention(&b, 1280, 1280);
    bench_rows(&b, 32, DIM);
    bench_rows(&b, 4096, FFN);
    bench_choice(&b, 1);
    bench_choice(&b, WINDOWS);
    bench_predict(&b, 32);
    for (int32_t n = 8; n <= 64; n *= 2) bench_head(&b, n);
    return 0;
}
