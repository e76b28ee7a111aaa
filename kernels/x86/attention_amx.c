/* Attention of bfloat16 on the AMX unit, for head sizes that are multiples of 32.
 *
 * Scores come out turned, S^T = K Q^T: keys are the rows of A as they lie, and of Q^T, packed once in channel pairs, each tile of B
 * serves all keys. A vector then holds one key's scores for 16 lanes, so softmax needs nothing across a vector, and the lanes share
 * no arithmetic. Pairs of weights are turned back, as rows of A, and meet V in key pairs, out = P V. Two tiles by two make a step:
 * 32 lanes with 32 keys or 32 channels. Keys and values are copied first: as they lie, rows are so many bytes apart that they crowd
 * one set of the cache, and a tile row that straddles two of its lines costs six times the load. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16,prefer-vector-width=512")
#define LANES 16
#include <math.h>

#include "attention.h"
#include "simd.h"
#include "tiles.h"

enum { EDGE = 32, TILE = 1024, PAIR = 2 * TILE, AHEAD = 16 }; /* a pair of tiles, of so many bytes, is 32 x 32 bfloat16 */

struct work {
    const struct attention *a;
    const struct part *p;
    int64_t first, n;        /* lanes of the part */
    int64_t keys, blocks;    /* blocks of 32 keys */
    int64_t values, batches; /* batches of 32 values; attend has as many as keys */
    int64_t groups;          /* of 32 channels */
    char *queries;           /* [groups][2][TILE], channel pairs x lanes */
    char *k, *v;             /* [blocks][groups][2][TILE], [groups][batches][2][TILE]; one place if they are read once */
    float *scores;           /* [2][blocks * 32][16] */
    char *weights;           /* [2][batches][TILE] */
    float *sums;             /* [2 of lanes][2 of channels][16][16] */
    __m512 highest[2];       /* score of every lane */
    float share[EDGE];       /* one over the sum of a lane's weights */
    const char *query[EDGE]; /* of every lane */
    char *out[EDGE];
    const char *old[EDGE];
};

static size_t scratch(int64_t keys, int64_t head_dim)
{
    const int64_t blocks = round_up(keys, EDGE) / EDGE, groups = round_up(head_dim, EDGE) / EDGE;
    return (size_t)(PAIR * (groups + 2 * groups * blocks + 2 * blocks + blocks + 2));
}

/* Tile instructions do not tell the compiler which memory they read and write. */
VEC void settle(void) { __asm__ volatile("" : : : "memory"); }

VEC void zero_tiles(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

/* ---- packing ---------------------------------------------------------------------------------------------------------------- */
static void pack_queries(struct work *w)
{
    for (int64_t i = 0; i < w->n; i++) {
        w->query[i] = lane_query(w->a, w->p, w->first + i);
        w->out[i] = lane_out(w->a, w->p, w->first + i);
        w->old[i] = w->a->spans.columns ? lane_old(w->a, w->p, w->first + i) : NULL;
    }
    for (int64_t half = 0; half * 16 < w->n; half++) {
        for (int64_t c = 0; c < w->groups; c++) {
            __m512i r[16];
            for (int64_t i = 0; i < 16; i++) {
                const int64_t lane = half * 16 + i;
                r[i] = lane < w->n ? _mm512_loadu_si512(w->query[lane] + c * 64) : _mm512_setzero_si512();
            }
            transpose16(r);
            for (int64_t i = 0; i < 16; i++) _mm512_store_si512(w->queries + c * PAIR + half * TILE + i * 64, r[i]);
        }
    }
}

/* Rows of one head lie too far apart for the processor to see what comes next. */
VEC void fetch(const char *row, int64_t groups)
{
    for (int64_t c = 0; c < groups; c++) _mm_prefetch(row + c * 64, _MM_HINT_T1);
}

static void pack_keys(const struct work *w)
{
    const int64_t step = w->a->k.stride * 2;
    const char *row = part_keys(w->a, w->p);
    for (int64_t j = 0; j < w->blocks * EDGE; j++, row += step) {
        char *to = w->k + j / EDGE * w->groups * PAIR + j % EDGE * 64;
        fetch(row + AHEAD * step, w->groups);
        for (int64_t c = 0; c < w->groups; c++, to += PAIR)
            _mm512_store_si512(to, j < w->keys ? _mm512_loadu_si512(row + c * 64) : _mm512_setzero_si512());
    }
}

/* Two keys at a time: low words from one, high words from the other. Unpacking works within quarters of a vector, so of 32 channels
 * the first tile holds 0-3, 8-11, 16-19, 24-27, and the second tile the others. */
static void pack_values(const struct work *w)
{
    const int64_t step = w->a->v.stride * 2;
    const char *row = part_values(w->a, w->p);
    for (int64_t j = 0; j < w->batches * EDGE; j += 2, row += 2 * step) {
        char *to = w->v + j / EDGE * PAIR + j % EDGE * 32;
        fetch(row + AHEAD * step, w->groups);
        fetch(row + (AHEAD + 1) * step, w->groups);
        for (int64_t c = 0; c < w->groups; c++, to += w->batches * PAIR) {
            const __m512i even = j < w->values ? _mm512_loadu_si512(row + c * 64) : _mm512_setzero_si512();
            const __m512i odd = j + 1 < w->values ? _mm512_loadu_si512(row + step + c * 64) : _mm512_setzero_si512();
            _mm512_store_si512(to, _mm512_unpacklo_epi16(even, odd));
            _mm512_store_si512(to + TILE, _mm512_unpackhi_epi16(even, odd));
        }
    }
}

/* ---- the three passes ------------------------------------------------------------------------------------------------------- */
/* The greatest of 32 keys' scores and of what was the greatest before, for 16 lanes. */
VEC __m512 highest(const float *s, __m512 before)
{
    __m512 m[4] = { before, before, before, before };
#pragma GCC unroll 32
    for (int i = 0; i < EDGE; i++) m[i % 4] = _mm512_max_ps(m[i % 4], _mm512_load_ps(s + i * 16));
    return _mm512_max_ps(_mm512_max_ps(m[0], m[1]), _mm512_max_ps(m[2], m[3]));
}

/* wide: more than 16 lanes */
VEC void score_block(const struct work *w, const bool wide, int64_t block, float *to, float *other)
{
    const char *k = w->k + block * w->groups * PAIR, *q = w->queries;
    zero_tiles();
    for (int64_t c = 0; c < w->groups; c++, k += PAIR, q += PAIR) {
        _tile_loadd(4, k, 64);
        _tile_loadd(6, q, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, k + TILE, 64);
        _tile_dpbf16ps(1, 5, 6);
        if (!wide) continue;
        _tile_loadd(7, q + TILE, 64);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, to, 64);
    _tile_stored(1, to + 16 * 16, 64);
    if (!wide) return;
    _tile_stored(2, other, 64);
    _tile_stored(3, other + 16 * 16, 64);
}

/* Keys that are not there score -inf. The greatest score of a block is taken a block later: its stores have arrived by then. */
VEC void score(struct work *w, const bool wide)
{
    const int64_t half = w->blocks * EDGE * 16;
    float *to = w->scores;
    w->highest[0] = w->highest[1] = _mm512_set1_ps(-INFINITY);
    settle();
    for (int64_t b = 0; b < w->blocks; b++, to += EDGE * 16) {
        score_block(w, wide, b, to, to + half);
        settle();
        if (b == 0) continue;
        w->highest[0] = highest(to - EDGE * 16, w->highest[0]);
        if (wide) w->highest[1] = highest(to - EDGE * 16 + half, w->highest[1]);
    }
    for (int64_t j = w->keys; j < w->blocks * EDGE; j++) {
        _mm512_store_ps(w->scores + j * 16, _mm512_set1_ps(-INFINITY));
        _mm512_store_ps(w->scores + half + j * 16, _mm512_set1_ps(-INFINITY));
    }
    w->highest[0] = highest(to - EDGE * 16, w->highest[0]);
    if (wide) w->highest[1] = highest(to - EDGE * 16 + half, w->highest[1]);
}

/* Two keys' weights of 16 lanes as bfloat16 pairs. */
VEC __m512i pair(__m512 even, __m512 odd)
{
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                                20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(interleave, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

/* The score of value j's key. */
VEC __m512 score_of(const struct work *w, const bool delta, const float *s, int64_t j)
{
    if (!delta) return _mm512_load_ps(s + 16 * j);
    return j < w->values ? _mm512_load_ps(s + 16 * key_of(w->a, w->p, j)) : _mm512_set1_ps(-INFINITY);
}

/* Adds to total what the weights of all keys are before rounding, where not every key's weight is asked for. */
static void sum_weights(const struct work *w, const float *s, __m512 scale, __m512 shift, __m512 total[2])
{
    for (int64_t j = 0; j < w->blocks * EDGE; j += 8) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            total[i % 2] = _mm512_add_ps(total[i % 2], vexp2(_mm512_fmadd_ps(_mm512_load_ps(s + (j + i) * 16), scale, shift)));
    }
}

/* Scores of 16 lanes to weights of the values, as rows of A. */
VEC void soften(struct work *w, const bool delta, int64_t half)
{
    const float *s = w->scores + half * w->blocks * EDGE * 16;
    const __m512 scale = _mm512_set1_ps(w->a->scale);
    const __m512 shift = _mm512_mul_ps(_mm512_sub_ps(_mm512_setzero_ps(), w->highest[half]), scale);
    __m512 total[2] = { _mm512_setzero_ps(), _mm512_setzero_ps() };
    char *to = w->weights + half * w->batches * TILE;
    if (delta) sum_weights(w, s, scale, shift, total);
    for (int64_t b = 0; b < w->batches; b++, to += TILE) {
        __m512i r[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            const int64_t j = b * EDGE + 2 * i;
            const __m512 even = vexp2(_mm512_fmadd_ps(score_of(w, delta, s, j), scale, shift));
            const __m512 odd = vexp2(_mm512_fmadd_ps(score_of(w, delta, s, j + 1), scale, shift));
            r[i] = pair(even, odd);
            if (delta) continue;
            total[0] = _mm512_add_ps(total[0], even);
            total[1] = _mm512_add_ps(total[1], odd);
        }
        transpose16(r);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) _mm512_store_si512(to + i * 64, r[i]);
    }
    _mm512_storeu_ps(w->share + half * 16, _mm512_div_ps(_mm512_set1_ps(1), _mm512_add_ps(total[0], total[1])));
}

/* Divides, puts 32 channels in order, adds what was there before, and rounds. */
static void store_group(const struct work *w, int64_t group)
{
    const __m512i first = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    for (int64_t i = 0; i < w->n; i++) {
        const float *sums = w->sums + i / 16 * 512 + i % 16 * 16;
        const __m512 share = _mm512_set1_ps(w->share[i]);
        const __m512 lower = _mm512_mul_ps(_mm512_load_ps(sums), share), upper = _mm512_mul_ps(_mm512_load_ps(sums + 256), share);
        __m512 low = _mm512_permutex2var_ps(lower, first, upper), high = _mm512_permutex2var_ps(lower, second, upper);
        if (w->old[i]) {
            low = _mm512_add_ps(load16(w->old[i] + group * 64, DLLM_BF16, 0, 0xffff), low);
            high = _mm512_add_ps(load16(w->old[i] + group * 64, DLLM_BF16, 16, 0xffff), high);
        }
        _mm512_storeu_si512(w->out[i] + group * 64, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

VEC void sum_values(const struct work *w, const bool wide)
{
    for (int64_t c = 0; c < w->groups; c++) {
        const char *p = w->weights, *other = w->weights + w->batches * TILE, *v = w->v + c * w->batches * PAIR;
        settle();
        zero_tiles();
        for (int64_t b = 0; b < w->batches; b++, p += TILE, other += TILE, v += PAIR) {
            _tile_loadd(4, p, 64);
            _tile_loadd(6, v, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, v + TILE, 64);
            _tile_dpbf16ps(1, 4, 7);
            if (!wide) continue;
            _tile_loadd(5, other, 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, w->sums, 64);
        _tile_stored(1, w->sums + 256, 64);
        if (wide) {
            _tile_stored(2, w->sums + 512, 64);
            _tile_stored(3, w->sums + 768, 64);
        }
        settle();
        store_group(w, c);
    }
}

static void run(const struct attention *a, const struct part *p, char *memory)
{
    struct work w = {
        .a = a, .p = p, .keys = p->span.n_keys, .values = part_count(a, p), .groups = a->head_dim / EDGE, .queries = memory
    };
    const bool once = p->n <= EDGE; /* the values may then take the place of the keys, which keeps more of it in the cache */
    w.blocks = round_up(w.keys, EDGE) / EDGE;
    w.batches = round_up(w.values, EDGE) / EDGE;
    w.k = w.queries + w.groups * PAIR;
    w.v = once ? w.k : w.k + w.groups * w.blocks * PAIR;
    w.scores = (float *)(void *)(w.v + w.groups * w.blocks * PAIR);
    w.weights = (char *)w.scores + 2 * w.blocks * PAIR;
    w.sums = (float *)(void *)(w.weights + w.blocks * PAIR);
    configure_tiles();
    for (w.first = 0; w.first < p->n; w.first += EDGE) {
        w.n = p->n - w.first < EDGE ? p->n - w.first : EDGE;
        pack_queries(&w);
        if (w.first == 0) pack_keys(&w);
        if (w.n > 16) score(&w, true);
        else score(&w, false);
        for (int64_t half = 0; half * 16 < w.n; half++) {
            if (a->spans.columns) soften(&w, true, half);
            else soften(&w, false, half);
        }
        if (w.first == 0) pack_values(&w);
        if (w.n > 16) sum_values(&w, true);
        else sum_values(&w, false);
    }
    _tile_release();
}

const struct attention_way dllm_attention_amx = { run, scratch };
#endif
