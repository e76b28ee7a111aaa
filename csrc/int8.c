/* int8.c: int8 copies of a folder's matrices: made by all threads, one matrix after the other, in one block of memory; or mapped from a
 * file that keeps such a block. The file begins with a text that says what it was made of. Only a file with the very text that
 * would be written now is believed, so nothing in it has to be parsed. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "../kernels/int8.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../kernels/threads.h"
#include "checkpoint.h"
#include "safetensors.h"

struct dllm_int8 {
    dllm_weights weights;
    char *block; /* the matrices: anonymous, or in the file */
    size_t bytes;
    dllm_map file;
};

static const char magic[] = "dllm_fast int8 weights\n";
enum { LAYOUT = 1, PAGE = 4096, PARTS = 7 }; /* LAYOUT: number of kernels/int8.h's way to round and to lay out */

/* ---- the matrices ---------------------------------------------------------------------------------------------------------------- */
static const struct {
    const char *name;
    size_t at;
} parts[PARTS] = {
    { "q", offsetof(dllm_layer, q) },       { "k", offsetof(dllm_layer, k) },       { "v", offsetof(dllm_layer, v) },
    { "o", offsetof(dllm_layer, o) },       { "gate", offsetof(dllm_layer, gate) }, { "up", offsetof(dllm_layer, up) },
    { "down", offsetof(dllm_layer, down) },
};

static int count(const dllm_config *c) { return 1 + PARTS * c->layers; }

/* The head, then layer after layer. */
static dllm_mat *matrix(const dllm_weights *w, int i)
{
    if (i == 0) return (dllm_mat *)(uintptr_t)&w->head;
    return (dllm_mat *)(void *)((char *)&w->layers[(i - 1) / PARTS] + parts[(i - 1) % PARTS].at);
}

static size_t bytes_of(const dllm_mat *m) { return dllm_i8_tiles(m->rows, m->cols) + dllm_i8_scales(m->rows); }

static size_t total(const dllm_config *c, const dllm_weights *w)
{
    size_t bytes = 0;
    for (int i = 0; i < count(c); i++) bytes += bytes_of(matrix(w, i));
    return bytes;
}

/* Everything as in `from`, but the matrices in the block, each before its scales. */
static void place(dllm_int8 *q, const dllm_config *c, const dllm_weights *from)
{
    char *at = q->block;
    for (int i = 0; i < count(c); i++) {
        const dllm_mat *m = matrix(from, i);
        *matrix(&q->weights, i) = (dllm_mat){ .data = at,
                                              .rows = m->rows,
                                              .cols = m->cols,
                                              .stride = dllm_i8_stride(m->cols),
                                              .dtype = DLLM_I8,
                                              .scale = (const float *)(const void *)(at + dllm_i8_tiles(m->rows, m->cols)) };
        at += bytes_of(m);
    }
}

/* ---- rounding -------------------------------------------------------------------------------------------------------------------- */
typedef struct {
    const dllm_mat *from, *to;
    int8_t *rows;         /* one for each thread */
    atomic_llong spoiled; /* a row that is not finite, or -1 */
} rounding;

static void round_row(int8_t *row, const dllm_mat *from, int64_t r, dllm_i8_unit u)
{
    const void *x = dllm_at(*from, r); /* the dtype is a constant in every branch, so that loops become vectors */
    if (from->dtype == DLLM_F32) dllm_i8_round(row, x, DLLM_F32, from->cols, u);
    else if (from->dtype == DLLM_BF16) dllm_i8_round(row, x, DLLM_BF16, from->cols, u);
    else dllm_i8_round(row, x, DLLM_F16, from->cols, u);
}

static dllm_i8_unit measure_row(const dllm_mat *from, int64_t r)
{
    const void *x = dllm_at(*from, r);
    if (from->dtype == DLLM_F32) return dllm_i8_measure(x, DLLM_F32, from->cols);
    if (from->dtype == DLLM_BF16) return dllm_i8_measure(x, DLLM_BF16, from->cols);
    return dllm_i8_measure(x, DLLM_F16, from->cols);
}

/* Task: a panel. */
static void round_panel(void *arg, int task, int thread)
{
    rounding *j = arg;
    const int64_t first = (int64_t)task * DLLM_I8_PANEL, end = first + DLLM_I8_PANEL, stride = j->to->stride;
    int8_t *row = j->rows + thread * stride, *steps = j->to->data;
    float *scale = (float *)(uintptr_t)j->to->scale;
    for (int64_t r = first; r < end && r < j->from->rows; r++) {
        const dllm_i8_unit u = measure_row(j->from, r);
        if (u.inverse == 0) atomic_store(&j->spoiled, (long long)r);
        scale[r] = u.scale;
        round_row(row, j->from, r, u);
        for (int64_t k = 0; k < stride; k += 4) memcpy(steps + dllm_i8_at(stride, r, k), row + k, 4);
    }
}

static int round_matrix(const dllm_mat *from, const dllm_mat *to, int threads)
{
    rounding j = { .from = from, .to = to, .rows = calloc((size_t)threads, (size_t)to->stride) };
    FAIL_IF(!j.rows, DLLM_E_MEMORY, "int8 weights: out of memory for %d rows of %" PRId64 " bytes", threads, to->stride);
    atomic_init(&j.spoiled, -1);
    dllm_parallel(threads, (int)((from->rows + DLLM_I8_PANEL - 1) / DLLM_I8_PANEL), round_panel, &j);
    free(j.rows);
    const long long spoiled = atomic_load(&j.spoiled);
    FAIL_IF(spoiled >= 0, DLLM_E_CHECKPOINT, "row %lld has numbers that are not finite: they have no int8 form", spoiled);
    return 0;
}

static int named(int status, int i)
{
    if (i == 0) return dllm_fail(status, "int8 weights: head: %s", dllm_last_error());
    return dllm_fail(status, "int8 weights: layer %d, %s: %s", (i - 1) / PARTS, parts[(i - 1) % PARTS].name, dllm_last_error());
}

static int round_all(dllm_int8 *q, const dllm_checkpoint *files, int threads)
{
    const dllm_config *c = dllm_checkpoint_config(files);
    const dllm_weights *from = dllm_checkpoint_weights(files);
    q->bytes = total(c, from);
    void *block = mmap(NULL, q->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    FAIL_IF(block == MAP_FAILED, DLLM_E_MEMORY, "int8 weights: out of memory for %zu bytes", q->bytes);
    q->block = block;
    place(q, c, from);
    for (int i = 0; i < count(c); i++) {
        const dllm_mat *m = matrix(from, i);
        const int status = round_matrix(m, matrix(&q->weights, i), threads);
        dllm_checkpoint_let_go(files, m);
        if (status < 0) return named(status, i);
    }
    return 0;
}

/* ---- the file -------------------------------------------------------------------------------------------------------------------- */
/* What the file of this folder begins with, with zeros up to whole pages. */
typedef struct {
    char *text;
    size_t size;
} stamp;

static int make_stamp(stamp *s, const dllm_checkpoint *files)
{
    const dllm_config *c = dllm_checkpoint_config(files);
    const uint16_t one = 1;
    char *sources;
    TRY(dllm_checkpoint_sources(files, &sources));
    const size_t room = strlen(sources) + 1024;
    s->size = (size_t)dllm_i8_up((int64_t)room, PAGE);
    s->text = calloc(1, s->size);
    if (s->text)
        snprintf(
            s->text, room,
            "%slayout %d, %s-endian\nfamily %d, layers %d, heads %d, kv_heads %d, head_dim %d, dim %d, ffn_dim %d, vocab %d%s\n"
            "%zu bytes at %zu, made of\n%s",
            magic, LAYOUT, *(const uint8_t *)&one ? "little" : "big", (int)c->family, c->layers, c->heads, c->kv_heads, c->head_dim,
            c->dim, c->ffn_dim, c->vocab, c->tied_head ? ", tied" : "", total(c, dllm_checkpoint_weights(files)), s->size, sources);
    free(sources);
    FAIL_IF(!s->text, DLLM_E_MEMORY, "int8 weights: out of memory for %zu bytes", s->size);
    return 0;
}

/* 0: mapped. 1: there is none, or it is of something else and may be written anew. */
static int map_file(dllm_int8 *q, const dllm_checkpoint *files, const char *path, const stamp *s)
{
    if (access(path, F_OK) < 0 && errno == ENOENT) return 1;
    TRY(dllm_map_open(&q->file, path));
    const size_t seen = q->file.size < sizeof magic - 1 ? q->file.size : sizeof magic - 1;
    FAIL_IF(memcmp(q->file.data, magic, seen) != 0, DLLM_E_FILE,
            "%.800s is there and keeps no int8 weights: it is left alone; name another file", path);
    const size_t bytes = total(dllm_checkpoint_config(files), dllm_checkpoint_weights(files));
    if (q->file.size != s->size + bytes || memcmp(q->file.data, s->text, s->size) != 0) {
        dllm_map_close(&q->file);
        return 1;
    }
    q->block = (char *)(uintptr_t)q->file.data + s->size;
    q->bytes = bytes;
    place(q, dllm_checkpoint_config(files), dllm_checkpoint_weights(files));
    return 0;
}

static int write_bytes(int to, const char *from, size_t n)
{
    while (n > 0) {
        const ssize_t written = write(to, from, n < (1u << 30) ? n : (1u << 30));
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return -1;
        from += written;
        n -= (size_t)written;
    }
    return 0;
}

/* A new file beside the place of the old one, under a name that nobody has. */
static int open_beside(char name[PATH_MAX], const char *path)
{
    for (int i = 0; i < 1000; i++) {
        if (snprintf(name, PATH_MAX, "%s.%ld-%d", path, (long)getpid(), i) >= PATH_MAX) errno = ENAMETOOLONG;
        else {
            const int file = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
            if (file >= 0) return file;
        }
        if (errno != EEXIST) return -1;
    }
    return -1;
}

/* The file appears whole or not at all. */
static int write_file(const dllm_int8 *q, const char *path, const stamp *s)
{
    char name[PATH_MAX];
    const int file = open_beside(name, path);
    FAIL_IF(file < 0, DLLM_E_FILE, "%.800s: int8 weights cannot be kept here: %s", path, strerror(errno));
    bool fine = write_bytes(file, s->text, s->size) == 0 && write_bytes(file, q->block, q->bytes) == 0 && fsync(file) == 0;
    fine = (close(file) == 0) && fine && rename(name, path) == 0;
    if (fine) return 0;
    const int why = errno;
    unlink(name);
    return dllm_fail(DLLM_E_FILE, "%.800s: %zu bytes of int8 weights cannot be kept here: %s", path, s->size + q->bytes,
                     strerror(why));
}

static int map_or_make(dllm_int8 *q, const dllm_checkpoint *files, const char *path, int threads)
{
    stamp s;
    TRY(make_stamp(&s, files));
    int status = map_file(q, files, path, &s);
    if (status == 1) {
        status = round_all(q, files, threads);
        if (status == 0) status = write_file(q, path, &s);
    }
    free(s.text);
    return status;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------------------- */
static int open_int8(dllm_int8 *q, const dllm_checkpoint *files, const char *cache, int threads)
{
    const dllm_config *c = dllm_checkpoint_config(files);
    const dllm_weights *from = dllm_checkpoint_weights(files);
    for (int i = 0; i < count(c); i++) {
        const int64_t k = matrix(from, i)->cols;
        FAIL_IF(k > DLLM_I8_MAX_K, DLLM_E_CHECKPOINT, "int8 weights: rows of %" PRId64 "; sums of at most %d fit into 32 bits", k,
                DLLM_I8_MAX_K);
    }
    q->weights = *from;
    q->weights.layers = malloc((size_t)c->layers * sizeof *q->weights.layers);
    FAIL_IF(!q->weights.layers, DLLM_E_MEMORY, "int8 weights: out of memory: a list of %d layers", c->layers);
    memcpy(q->weights.layers, from->layers, (size_t)c->layers * sizeof *q->weights.layers);
    if (threads <= 0) threads = dllm_threads_default();
    return cache ? map_or_make(q, files, cache, threads) : round_all(q, files, threads);
}

int dllm_int8_open(dllm_int8 **out, const dllm_checkpoint *files, const char *cache, int threads)
{
    *out = NULL;
    dllm_int8 *q = calloc(1, sizeof *q);
    FAIL_IF(!q, DLLM_E_MEMORY, "int8 weights: out of memory for %zu bytes", sizeof *q);
    const int status = open_int8(q, files, cache, threads);
    if (status < 0) dllm_int8_close(q);
    else *out = q;
    return status;
}

void dllm_int8_close(dllm_int8 *q)
{
    if (!q) return;
    if (q->file.size == 0 && q->block) munmap(q->block, q->bytes);
    dllm_map_close(&q->file);
    free(q->weights.layers);
    free(q);
}

const dllm_weights *dllm_int8_weights(const dllm_int8 *q) { return &q->weights; }
