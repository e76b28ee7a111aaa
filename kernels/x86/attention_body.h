/* attention_body.h: attention with the multiply-adds of the vectors that simd.h gives, 32 lanes at a time: all their scores, softmax,
 * then the values. Both products are words of lanes by words of a packed block: sums[lane][32] += a[lane][s] * b[s][32]. A word is a
 * float32, to which every dtype is widened for heads of any size; with PAIRS defined it is two bfloat16, of neighbouring channels and
 * of neighbouring values, for heads of whole blocks. Rows of a head lie far apart in memory, so keys and values are copied first:
 * keys turned, so that a vector holds one word of as many keys. */
#include <math.h>
#include <string.h>

#include "attention.h"
#include "simd.h"

enum {
    BLOCK = 2 * LANES, /* keys or channels that a tile does at once */
    TILE = LANES / 2,  /* and lanes: as many as its sums find registers for */
    CHUNK = 128,       /* values copied at a time */
    AHEAD = 16,        /* rows: the processor does not see what comes next when they lie far apart */
#ifdef PAIRS
    WORD = 2 /* numbers */
#else
    WORD = 1
#endif
};

struct work {
    const struct attention *a;
    const struct part *p;
    int64_t first, n; /* lanes of the part */
    int64_t keys, values, padded, dim, words;
    int64_t stride; /* of scores: lanes begin in different sets of the cache */
    float *scores;  /* [32][stride]; then words of weights, in the order of the values */
    float *queries; /* [32][words] */
    float *block;   /* [words][BLOCK] of keys; [dim / BLOCK][CHUNK / WORD][BLOCK] of values */
    float *sums;    /* [32][dim] */
    float *row;     /* [padded] */
    float totals[ATTENTION_LANES];
};

static int64_t stride_of(int64_t keys) { return round_up(keys, BLOCK) + 16; }

static size_t scratch(int64_t keys, int64_t head_dim)
{
    const int64_t dim = round_up(head_dim, BLOCK);
    return (size_t)round_up(ATTENTION_LANES * (stride_of(keys) + 2 * dim) + dim * CHUNK + round_up(keys, BLOCK), 16) *
           sizeof(float);
}

/* ---- the product ------------------------------------------------------------------------------------------------------------ */
VEC vec multiply_add(vec x, vec y, vec sum)
{
#ifdef PAIRS
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)y);
#else
    return vfma(x, y, sum);
#endif
}

/* A block of words, `stride` of them apart. */
struct block {
    const float *at;
    int64_t stride;
};

/* m lanes by one block. The sums must be registers, so m is a constant. */
VEC void multiply_tile(const int m, const float *a, int64_t stride, struct block b, int64_t steps, float *to, int64_t to_stride,
                       bool fresh)
{
    vec sum[8][2];
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) {
        sum[i][0] = fresh ? vset(0) : vget(to + i * to_stride);
        sum[i][1] = fresh ? vset(0) : vget(to + i * to_stride + LANES);
    }
    for (int64_t s = 0; s < steps; s++, b.at += b.stride) {
        const vec b0 = vget(b.at), b1 = vget(b.at + LANES);
#pragma GCC unroll 8
        for (int i = 0; i < m; i++) {
            const vec x = vset(a[i * stride + s]);
            sum[i][0] = multiply_add(x, b0, sum[i][0]);
            sum[i][1] = multiply_add(x, b1, sum[i][1]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) {
        vput(to + i * to_stride, sum[i][0]);
        vput(to + i * to_stride + LANES, sum[i][1]);
    }
}

/* All lanes by one block. fresh: sums begin with zeros. */
static void multiply(int64_t lanes, const float *a, int64_t stride, struct block b, int64_t steps, float *to, int64_t to_stride,
                     bool fresh)
{
    int64_t i = 0;
    for (; i + TILE <= lanes; i += TILE)
        multiply_tile(TILE, a + i * stride, stride, b, steps, to + i * to_stride, to_stride, fresh);
    for (; i + 2 <= lanes; i += 2) multiply_tile(2, a + i * stride, stride, b, steps, to + i * to_stride, to_stride, fresh);
    for (; i < lanes; i++) multiply_tile(1, a + i * stride, stride, b, steps, to + i * to_stride, to_stride, fresh);
}

/* ---- packing ---------------------------------------------------------------------------------------------------------------- */
static int64_t row_bytes(dllm_mat m) { return m.stride * (m.dtype == DLLM_F32 ? 4 : 2); }

VEC void fetch(const char *row, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch(row + i, _MM_HINT_T1);
}

static void copy_queries(const struct work *w)
{
    for (int64_t i = 0; i < w->n; i++) {
        const char *q = lane_query(w->a, w->p, w->first + i);
        float *to = w->queries + i * w->words;
        if (WORD == 2) memcpy(to, q, (size_t)w->words * sizeof *to);
        else
            for (int64_t c = 0; c < w->dim; c += LANES) {
                const vec x = vload(q, w->a->q.dtype, c, w->dim - c);
                vstore(to, DLLM_F32, c, w->dim - c, x);
            }
    }
}

/* Words of a key. */
VEC vec load_words(const struct work *w, const char *key, int64_t at)
{
    return WORD == 2 ? vget((const float *)(const void *)key + at) : vload(key, w->a->k.dtype, at, w->dim - at);
}

/* BLOCK keys from `first` on; those past the end are zeros. Meanwhile fetches the next ones. */
static void turn_keys(const struct work *w, int64_t first)
{
    const int64_t step = row_bytes(w->a->k), head_bytes = w->dim * (w->a->k.dtype == DLLM_F32 ? 4 : 2);
    const char *rows = part_keys(w->a, w->p);
    for (int half = 0; half < BLOCK; half += LANES) {
        for (int64_t i = 0; i < LANES; i++) fetch(rows + (first + half + i + BLOCK) * step, head_bytes);
        for (int64_t at = 0; at < w->words; at += LANES) {
            vec r[LANES];
            for (int i = 0; i < LANES; i++) {
                const int64_t key = first + half + i;
                r[i] = key < w->keys ? load_words(w, rows + key * step, at) : vset(0);
            }
            vtranspose(r);
            for (int i = 0; i < LANES; i++) vput(w->block + (at + i) * BLOCK + half, r[i]);
        }
    }
}

#ifdef PAIRS
/* 16 channels of two values. */
VEC vec pair_values(const char *even, const char *odd)
{
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)even));
    const __m512i high = odd ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)odd)) : _mm512_setzero_si512();
    return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

/* n values from `first` on. */
static void copy_values(const struct work *w, int64_t first, int64_t n)
{
    const int64_t step = row_bytes(w->a->v);
    const char *row = part_values(w->a, w->p) + first * step;
    for (int64_t j = 0; j < n; j += 2, row += 2 * step) {
        float *to = w->block + j / 2 * BLOCK;
        fetch(row + AHEAD * step, w->dim * 2);
        fetch(row + (AHEAD + 1) * step, w->dim * 2);
        for (int64_t c = 0; c < w->dim; c += LANES) {
            const vec pairs = pair_values(row + c * 2, j + 1 < n ? row + step + c * 2 : NULL);
            vput(to + c / BLOCK * (CHUNK / 2 * BLOCK) + c % BLOCK, pairs);
        }
    }
}
#else
VEC void widen_values(const dllm_dtype t, const struct work *w, int64_t first, int64_t n)
{
    const int64_t step = row_bytes(w->a->v), head_bytes = w->dim * (t == DLLM_F32 ? 4 : 2);
    const char *row = part_values(w->a, w->p) + first * step;
    for (int64_t j = 0; j < n; j++, row += step) {
        float *to = w->block + j * BLOCK;
        fetch(row + AHEAD * step, head_bytes);
        for (int64_t c = 0; c < w->dim; c += BLOCK, to += CHUNK * BLOCK) {
            vput(to, vload(row, t, c, w->dim - c));
            vput(to + LANES, vload(row, t, c + LANES, w->dim - c - LANES));
        }
    }
}

static void copy_values(const struct work *w, int64_t first, int64_t n)
{
    const dllm_dtype t = w->a->v.dtype;
    if (t == DLLM_F32) widen_values(DLLM_F32, w, first, n);
    else if (t == DLLM_BF16) widen_values(DLLM_BF16, w, first, n);
    else widen_values(DLLM_F16, w, first, n);
}
#endif

/* ---- softmax ---------------------------------------------------------------------------------------------------------------- */
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

/* A lane's weights of keys to words of weights of values. */
static void arrange(const struct work *w, float *s)
{
    if (w->a->spans.columns) {
        for (int64_t j = 0; j < w->values; j++) w->row[j] = s[key_of(w->a, w->p, j)];
        memcpy(s, w->row, (size_t)w->values * sizeof *s);
    }
#ifdef PAIRS
    for (int64_t j = 0; j < w->values; j += LANES)
        _mm256_storeu_si256((void *)((char *)s + j * 2), narrow_bf16(vfirst(vget(s + j), w->values - j, 0)));
#endif
}

/* ---- all of it -------------------------------------------------------------------------------------------------------------- */
/* Divides, adds what was there before, and rounds. */
static void store_lane(const struct work *w, int64_t lane)
{
    const dllm_dtype t = w->a->out.dtype;
    const char *old = w->a->spans.columns ? lane_old(w->a, w->p, w->first + lane) : NULL;
    const float *sums = w->sums + lane * round_up(w->dim, BLOCK);
    for (int64_t c = 0; c < w->dim; c += LANES) {
        const vec mean = vdiv(vget(sums + c), vset(w->totals[lane]));
        vstore(lane_out(w->a, w->p, w->first + lane), t, c, w->dim - c, old ? vadd(vload(old, t, c, w->dim - c), mean) : mean);
    }
}

/* n values from `first` on, which a tile of lanes meets where they lie, if it is the only one and there is nothing to widen. */
static struct block values_of(const struct work *w, int64_t first, int64_t n)
{
    const dllm_mat v = w->a->v;
    if (WORD == 1 && v.dtype == DLLM_F32 && w->dim % BLOCK == 0 && w->n <= TILE)
        return (struct block){ (const float *)(const void *)part_values(w->a, w->p) + first * v.stride, v.stride };
    copy_values(w, first, n);
    return (struct block){ w->block, BLOCK };
}

static void sum_values(const struct work *w)
{
    const int64_t dim = round_up(w->dim, BLOCK);
    for (int64_t j = 0; j < w->values; j += CHUNK) {
        const int64_t n = w->values - j < CHUNK ? w->values - j : CHUNK;
        struct block b = values_of(w, j, n);
        const int64_t next = b.at == w->block ? CHUNK / WORD * BLOCK : BLOCK;
        for (int64_t c = 0; c < dim; c += BLOCK, b.at += next)
            multiply(w->n, w->scores + j / WORD, w->stride, b, (n + WORD - 1) / WORD, w->sums + c, dim, j == 0);
    }
}

static void attend_lanes(struct work *w)
{
    copy_queries(w);
    for (int64_t j = 0; j < w->padded; j += BLOCK) {
        turn_keys(w, j);
        multiply(w->n, w->queries, w->words, (struct block){ w->block, BLOCK }, w->words, w->scores + j, w->stride, true);
    }
    for (int64_t i = 0; i < w->n; i++) {
        w->totals[i] = soften(w, w->scores + i * w->stride);
        arrange(w, w->scores + i * w->stride);
    }
    sum_values(w);
    for (int64_t i = 0; i < w->n; i++) store_lane(w, i);
}

static void run(const struct attention *a, const struct part *p, char *memory)
{
    struct work w = { .a = a, .p = p, .keys = p->span.n_keys, .dim = a->head_dim, .block = (float *)(void *)memory };
    w.values = part_count(a, p);
    w.padded = round_up(w.keys, BLOCK);
    w.words = w.dim / WORD;
    w.stride = stride_of(w.keys);
    w.scores = w.block + round_up(w.dim, BLOCK) * CHUNK;
    w.queries = w.scores + ATTENTION_LANES * w.stride;
    w.sums = w.queries + ATTENTION_LANES * round_up(w.dim, BLOCK);
    w.row = w.sums + ATTENTION_LANES * round_up(w.dim, BLOCK);
    for (w.first = 0; w.first < p->n; w.first += ATTENTION_LANES) {
        w.n = p->n - w.first < ATTENTION_LANES ? p->n - w.first : ATTENTION_LANES;
        attend_lanes(&w);
    }
}
