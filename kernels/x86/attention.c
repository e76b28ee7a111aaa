/* attention.c: attention on x86: which way it goes, and who does which part. */
#include "attention.h"

#if defined(__x86_64__)
#include <math.h>
#include <stdio.h>
#include <string.h>

/* No values to read: the definition says 0, on top of what was there. */
static void rest_lanes(const struct attention *a, const struct part *p)
{
    const size_t bytes = (size_t)a->head_dim * (a->out.dtype == DLLM_F32 ? 4 : 2);
    for (int64_t i = 0; i < p->n; i++) {
        if (a->spans.columns) memmove(lane_out(a, p, i), lane_old(a, p, i), bytes);
        else memset(lane_out(a, p, i), 0, bytes);
    }
}

struct job {
    const struct attention *a;
    const struct attention_way *way;
};

static int64_t parts_of(const struct attention *a, const dllm_span *s)
{
    return round_up((int64_t)s->n_q * a->group, a->lanes_a_task) / a->lanes_a_task;
}

static void run_task(void *arg, int task, int thread)
{
    const struct job *job = arg;
    const struct attention *a = job->a;
    const dllm_span *s = a->spans.at;
    int64_t left = task;
    for (; left >= parts_of(a, s) * a->kv_heads; s++) left -= parts_of(a, s) * a->kv_heads;
    const int64_t parts = parts_of(a, s), lanes = (int64_t)s->n_q * a->group;
    struct part p = { .span = *s, .kv_head = (int32_t)(left / parts), .first = left % parts * a->lanes_a_task };
    if (a->spans.columns) p.columns = a->spans.columns[s - a->spans.at];
    p.n = lanes - p.first < a->lanes_a_task ? lanes - p.first : a->lanes_a_task;
    if (part_count(a, &p) == 0) rest_lanes(a, &p);
    else job->way->run(a, &p, (char *)a->d->scratch + (size_t)thread * a->own_bytes);
}

/* Whole k/v heads if there are enough of them: what is packed of one is packed once then. */
static int64_t choose_part(const struct attention *a, int threads)
{
    int64_t most = 1, heads = 0;
    for (int i = 0; i < a->spans.n; i++) {
        const int64_t lanes = (int64_t)a->spans.at[i].n_q * a->group;
        if (lanes > most) most = lanes;
        if (lanes) heads += a->kv_heads;
    }
    const int64_t pieces = threads > 1 && heads ? (4 * threads + heads - 1) / heads : 1;
    return round_up((most + pieces - 1) / pieces, ATTENTION_LANES);
}

static void attend(struct attention *a, const struct attention_way *way)
{
    dllm_device *d = a->d;
    int threads = d->threads > 1 ? d->threads : 1;
    a->own_bytes = way->scratch(a->spans.most_keys, a->head_dim);
    while (threads > 1 && a->own_bytes * (size_t)threads > d->scratch_bytes) threads--;
    if (a->own_bytes > d->scratch_bytes) {
        if (!d->failed)
            snprintf(d->why, sizeof d->why, "attention needs %zu bytes of scratch, there are %zu", a->own_bytes, d->scratch_bytes);
        if (!d->failed) d->failed = DLLM_E_MEMORY;
        return;
    }
    a->lanes_a_task = choose_part(a, threads);
    int64_t tasks = 0;
    for (int i = 0; i < a->spans.n; i++) tasks += parts_of(a, &a->spans.at[i]) * a->kv_heads;
    dllm_parallel(threads, (int)tasks, run_task, &(struct job){ a, way });
}

static struct attention arguments(dllm_device *d, dllm_mat out, dllm_mat q, dllm_rows rows, dllm_mat k, dllm_mat v,
                                  dllm_spans spans, int32_t heads, int32_t kv_heads)
{
    struct attention a = { d, out, q, k, v, rows, spans, heads, kv_heads, .head_dim = (int32_t)(q.cols / heads) };
    a.group = heads / kv_heads;
    a.scale = (float)(1.4426950408889634 / sqrt(a.head_dim));
    return a;
}

static const struct attention_way *way_avx2(const struct attention *a) { return &dllm_attention_avx2; }

static const struct attention_way *way_avx512f(const struct attention *a) { return &dllm_attention_avx512f; }

/* Everything is bfloat16, and channels come in whole blocks of 32. */
static bool blocks_of_bf16(const struct attention *a)
{
    return a->head_dim % 32 == 0 && a->q.dtype == DLLM_BF16 && a->k.dtype == DLLM_BF16 && a->v.dtype == DLLM_BF16 &&
           a->out.dtype == DLLM_BF16 && (!a->spans.columns || a->old.dtype == DLLM_BF16);
}

static const struct attention_way *way_avx512bf16(const struct attention *a)
{
    return blocks_of_bf16(a) ? &dllm_attention_avx512bf16 : &dllm_attention_avx512f;
}

static const struct attention_way *way_amx(const struct attention *a)
{
    return blocks_of_bf16(a) ? &dllm_attention_amx : &dllm_attention_avx512f;
}

/* Both kernels of one level. */
#define KERNELS(level)                                                                                                             \
    static void attend_##level(dllm_device *d, dllm_mat out, dllm_mat q, dllm_rows rows, dllm_mat k, dllm_mat v, dllm_spans spans, \
                               int32_t heads, int32_t kv_heads)                                                                    \
    {                                                                                                                              \
        struct attention a = arguments(d, out, q, rows, k, v, spans, heads, kv_heads);                                             \
        a.spans.columns = NULL;                                                                                                    \
        attend(&a, way_##level(&a));                                                                                               \
    }                                                                                                                              \
    static void attend_delta_##level(dllm_device *d, dllm_mat out, dllm_mat q, dllm_rows rows, dllm_mat old, dllm_rows old_rows,   \
                                     dllm_mat k, dllm_mat dv, dllm_rows changed, dllm_spans spans, int32_t heads,                  \
                                     int32_t kv_heads)                                                                             \
    {                                                                                                                              \
        struct attention a = arguments(d, out, q, rows, k, dv, spans, heads, kv_heads);                                            \
        a.changed = changed;                                                                                                       \
        a.old = old;                                                                                                               \
        a.old_rows = old_rows;                                                                                                     \
        attend(&a, way_##level(&a));                                                                                               \
    }
KERNELS(avx2)
KERNELS(avx512f)
KERNELS(avx512bf16)
KERNELS(amx)

void dllm_x86_attention(dllm_ops *t, dllm_x86_level level)
{
    t->attend = level == DLLM_X86_AVX2         ? attend_avx2
                : level == DLLM_X86_AVX512F    ? attend_avx512f
                : level == DLLM_X86_AVX512BF16 ? attend_avx512bf16
                                               : attend_amx;
    t->attend_delta = level == DLLM_X86_AVX2         ? attend_delta_avx2
                      : level == DLLM_X86_AVX512F    ? attend_delta_avx512f
                      : level == DLLM_X86_AVX512BF16 ? attend_delta_avx512bf16
                                                     : attend_delta_amx;
}

size_t dllm_x86_attention_scratch(const dllm_device *d, const dllm_config *c, dllm_dtype act, int64_t rows, int64_t keys)
{
    const size_t plain = dllm_attention_avx512f.scratch(keys, c->head_dim), tiles = dllm_attention_amx.scratch(keys, c->head_dim);
    return (plain > tiles ? plain : tiles) * (size_t)(d->threads > 1 ? d->threads : 1);
}
#endif
