/* attention_body.h: attention of any dtype and head size through float32, for the vectors that simd.h gives. 32 lanes at a time:
 * all their scores, softmax, then the values. Keys are turned once for all lanes, so that a vector holds one channel of as many
 * keys. */
#include <math.h>

#include "attention.h"
#include "simd.h"

enum { BLOCK = 2 * LANES }; /* keys or channels that a tile does at once */

struct work {
    const struct attention *a;
    const struct part *p;
    int64_t first, n; /* lanes of the part */
    int64_t keys, values, padded, dim;
    float *scores;  /* [32][padded]; then weights */
    float *queries; /* [32][dim] */
    float *block;   /* [dim][BLOCK], of keys */
    float totals[ATTENTION_LANES];
};

static size_t scratch(int64_t keys, int64_t head_dim)
{
    return (size_t)round_up(ATTENTION_LANES * (round_up(keys, BLOCK) + head_dim) + round_up(head_dim, LANES) * BLOCK, 16) *
           sizeof(float);
}

/* BLOCK keys from `first` on; those past the end are zeros. */
static void turn_keys(const struct work *w, int64_t first)
{
    const dllm_mat k = w->a->k;
    const char *rows = part_keys(w->a, w->p);
    const int64_t step = k.stride * (k.dtype == DLLM_F32 ? 4 : 2);
    for (int half = 0; half < BLOCK; half += LANES) {
        for (int64_t c = 0; c < w->dim; c += LANES) {
            vec r[LANES];
            for (int i = 0; i < LANES; i++) {
                const int64_t key = first + half + i;
                r[i] = key < w->keys ? vload(rows + key * step, k.dtype, c, w->dim - c) : vset(0);
            }
            vtranspose(r);
            for (int i = 0; i < LANES; i++) vput(w->block + (c + i) * BLOCK + half, r[i]);
        }
    }
}

/* Scores of m lanes against the block of keys. */
VEC void score_tile(const int m, const struct work *w, int64_t lane, int64_t first)
{
    const float *q = w->queries + lane * w->dim, *block = w->block;
    vec sum[8][2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) sum[i][0] = sum[i][1] = vset(0);
    for (int64_t c = 0; c < w->dim; c++, block += BLOCK) {
        const vec k0 = vget(block), k1 = vget(block + LANES);
#pragma GCC unroll 8
        for (int i = 0; i < m; i++) {
            const vec x = vset(q[i * w->dim + c]);
            sum[i][0] = vfma(x, k0, sum[i][0]);
            sum[i][1] = vfma(x, k1, sum[i][1]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) {
        float *to = w->scores + (lane + i) * w->padded + first;
        vput(to, sum[i][0]);
        vput(to + LANES, sum[i][1]);
    }
}

/* Weighted sums of BLOCK channels of the values for m lanes. whole: no channel of the block is missing. */
VEC void value_tile(const int m, const dllm_dtype t, const bool whole, const struct work *w, int64_t lane, int64_t channel)
{
    const dllm_mat v = w->a->v;
    const int64_t step = v.stride * (t == DLLM_F32 ? 4 : 2), left = whole ? BLOCK : w->dim - channel;
    const char *row = part_values(w->a, w->p);
    const float *weights = w->scores + lane * w->padded;
    vec sum[8][2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) sum[i][0] = sum[i][1] = vset(0);
    for (int64_t j = 0; j < w->values; j++, row += step) {
        const int64_t key = key_of(w->a, w->p, j);
        const vec v0 = vload(row, t, channel, left), v1 = vload(row, t, channel + LANES, left - LANES);
#pragma GCC unroll 8
        for (int i = 0; i < m; i++) {
            const vec x = vset(weights[i * w->padded + key]);
            sum[i][0] = vfma(x, v0, sum[i][0]);
            sum[i][1] = vfma(x, v1, sum[i][1]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) {
        char *to = lane_out(w->a, w->p, w->first + lane + i);
        const vec total = vset(w->totals[lane + i]);
        vec low = vdiv(sum[i][0], total), high = vdiv(sum[i][1], total);
        if (w->a->columns) {
            const char *old = lane_old(w->a, w->p, w->first + lane + i);
            low = vadd(vload(old, t, channel, left), low);
            high = vadd(vload(old, t, channel + LANES, left - LANES), high);
        }
        vstore(to, t, channel, left, low);
        vstore(to, t, channel + LANES, left - LANES, high);
    }
}

/* A tile's accumulators must be registers, so the number of lanes is a constant: 8 (4 where registers are few), 4, 2 or 1. */
enum { TILE = LANES / 2 };

static void score_lanes(const struct work *w, int64_t first)
{
    int64_t i = 0;
    for (; i + TILE <= w->n; i += TILE) score_tile(TILE, w, i, first);
    for (; i + 2 <= w->n; i += 2) score_tile(2, w, i, first);
    for (; i < w->n; i++) score_tile(1, w, i, first);
}

VEC void sum_lanes(const dllm_dtype t, const bool whole, const struct work *w, int64_t channel)
{
    int64_t i = 0;
    for (; i + TILE <= w->n; i += TILE) value_tile(TILE, t, whole, w, i, channel);
    for (; i + 2 <= w->n; i += 2) value_tile(2, t, whole, w, i, channel);
    for (; i < w->n; i++) value_tile(1, t, whole, w, i, channel);
}

VEC void sum_values(const dllm_dtype t, const struct work *w)
{
    int64_t c = 0;
    for (; c + BLOCK <= w->dim; c += BLOCK) sum_lanes(t, true, w, c);
    if (c < w->dim) sum_lanes(t, false, w, c);
}

/* Scores to weights of dtype t; returns the sum of what they were before rounding. */
static float soften(const struct work *w, float *s)
{
    vec highest = vset(-INFINITY), total = vset(0);
    for (int64_t j = w->keys; j < w->padded; j++) s[j] = -INFINITY;
    for (int64_t j = 0; j < w->padded; j += LANES) highest = vmax(highest, vget(s + j));
    const vec scale = vset(w->a->scale), shift = vmul(vset(-vhighest(highest)), scale);
    for (int64_t j = 0; j < w->padded; j += LANES) {
        const vec e = vexp2(vfma(vget(s + j), scale, shift));
        total = vadd(total, e);
        vput(s + j, vround(e, w->a->out.dtype));
    }
    return vsum(total);
}

static void attend_lanes(struct work *w)
{
    const dllm_dtype t = w->a->q.dtype;
    for (int64_t i = 0; i < w->n; i++) {
        const char *q = lane_query(w->a, w->p, w->first + i);
        for (int64_t c = 0; c < w->dim; c++) w->queries[i * w->dim + c] = dllm_get(q, t, c);
    }
    for (int64_t j = 0; j < w->padded; j += BLOCK) {
        turn_keys(w, j);
        score_lanes(w, j);
    }
    for (int64_t i = 0; i < w->n; i++) w->totals[i] = soften(w, w->scores + i * w->padded);
    if (t == DLLM_F32) sum_values(DLLM_F32, w);
    else if (t == DLLM_BF16) sum_values(DLLM_BF16, w);
    else sum_values(DLLM_F16, w);
}

static void run(const struct attention *a, const struct part *p, char *memory)
{
    struct work w = { .a = a, .p = p, .keys = p->span.n_keys, .dim = a->head_dim, .block = (float *)(void *)memory };
    w.values = part_count(a, p);
    w.padded = round_up(w.keys, BLOCK);
    w.scores = w.block + round_up(w.dim, LANES) * BLOCK;
    w.queries = w.scores + ATTENTION_LANES * w.padded;
    for (w.first = 0; w.first < p->n; w.first += ATTENTION_LANES) {
        w.n = p->n - w.first < ATTENTION_LANES ? p->n - w.first : ATTENTION_LANES;
        attend_lanes(&w);
    }
}
