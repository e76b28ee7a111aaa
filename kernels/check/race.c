/* race.c: the same matrix product from bfloat16 and from int8 weights, in turns, so that whatever else the machine does hits both. */
#include <math.h>
#include <stdlib.h>
#include <time.h>

#include "../int8.h"
#include "check.h"

enum { COLD_BYTES = 512 << 20, MAX_MATRICES = 64 }; /* so much is read before a weight is read again: no cache holds it */

typedef struct {
    dllm_device device;
    dllm_mat w[2][MAX_MATRICES], x, out;
    int matrices;
    float *scale;
} race;

static void *take(race *r, size_t bytes) { return r->device.ops->alloc(&r->device, bytes); }

/* What is in the weights takes no time to make and none to multiply. */
static void fill(void *p, size_t bytes, uint32_t and, uint32_t or)
{
    uint32_t *words = p, state = 1;
    for (size_t i = 0; i < bytes / 4; i++) words[i] = ((state = state * 1664525u + 1013904223u) & and) | or;
}

static bool open_race(race *r, int64_t n, int64_t k, int32_t rows, size_t scratch)
{
    const size_t bf16 = (size_t)(n * k) * 2, i8 = dllm_i8_tiles(n, k);
    r->matrices = (int)(COLD_BYTES / bf16) + 1 < MAX_MATRICES ? (int)(COLD_BYTES / bf16) + 1 : MAX_MATRICES;
    r->scale = take(r, dllm_i8_scales(n));
    r->x = (dllm_mat){ take(r, (size_t)(rows * k) * 2 + 4), rows, k, k, DLLM_BF16, NULL };
    r->out = (dllm_mat){ take(r, (size_t)(rows * n) * 2), rows, n, n, DLLM_BF16, NULL };
    r->device.scratch = take(r, scratch);
    r->device.scratch_bytes = scratch;
    bool fine = r->scale && r->x.data && r->out.data && r->device.scratch;
    if (fine) fill(r->x.data, (size_t)(rows * k) * 2, 0x80ff80ff, 0x3f003f00);
    for (int i = 0; fine && i < r->matrices; i++) {
        r->w[0][i] = (dllm_mat){ take(r, bf16), n, k, k, DLLM_BF16, NULL };
        r->w[1][i] = (dllm_mat){ take(r, i8), n, k, dllm_i8_stride(k), DLLM_I8, r->scale };
        fine = r->w[0][i].data && r->w[1][i].data;
        if (fine) fill(r->w[0][i].data, bf16, 0x80ff80ff, 0x3c003c00);
        if (fine) fill(r->w[1][i].data, i8, 0x7e7e7e7e, 0);
    }
    return fine;
}

static void close_race(race *r)
{
    dllm_device *d = &r->device;
    d->ops->free(d, r->scale);
    d->ops->free(d, r->x.data);
    d->ops->free(d, r->out.data);
    d->ops->free(d, d->scratch);
    for (int i = 0; i < r->matrices; i++) {
        d->ops->free(d, r->w[0][i].data);
        d->ops->free(d, r->w[1][i].data);
    }
}

static double lap(race *r, int which, int i)
{
    struct timespec from, to;
    const dllm_rows rows = { .n = (int32_t)r->x.rows };
    timespec_get(&from, TIME_UTC);
    r->device.ops->linear(&r->device, r->out, rows, r->x, rows, r->w[which][i % r->matrices], (dllm_mat){ 0 });
    r->device.ops->sync(&r->device);
    timespec_get(&to, TIME_UTC);
    return (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec);
}

bool dllm_race(const dllm_ops *ops, int64_t n, int64_t k, int32_t rows, int threads, int laps, double seconds[2])
{
    race *r = calloc(1, sizeof *r);
    if (!r) return false;
    r->device = (dllm_device){ .ops = ops, .threads = threads };
    const dllm_config c = {
        .layers = 1, .heads = 1, .kv_heads = 1, .head_dim = 1, .dim = (int32_t)k, .ffn_dim = 1, .vocab = (int32_t)n
    };
    const bool fine = open_race(r, n, k, rows, ops->scratch(&r->device, &c, DLLM_BF16, rows, 1));
    seconds[0] = seconds[1] = INFINITY;
    for (int i = 0; fine && i < laps; i++)
        for (int which = 0; which < 2; which++) seconds[which] = fmin(seconds[which], lap(r, which, i));
    close_race(r);
    free(r);
    return fine;
}
