/* panel.h: a row of logits in panels of columns, so that many blocks share a row and the head need not keep it. Four lanes read a panel;
 * what is left of it, a tally, is joined with the others of its row in a fixed order (settle, in sample.cu). predict reads panels of
 * logits in memory, head_predict those of a tile of its product. Both give the same bits: the code is the same, and sums that a compiler
 * might contract with a product here and not there are written as fma or as __fadd_rn. */
#ifndef DLLM_CUDA_PANEL_H
#define DLLM_CUDA_PANEL_H
#include "../../csrc/rng.h"
#include "dense.h"

enum { PANEL = 64, QUAD = 4, MINE = PANEL / QUAD, NOWHERE = INT_MAX };
enum {
    LINE = PANEL + 16
}; /* numbers from row to row of a tile of logits in shared memory: few conflicts, whole pieces of 16 bytes */

/* What is left of a panel. Sums are relative to the panel's highest logit, which itself is not in them: where one logit towers above
 * the others, what those add would drown in its 1. */
struct alignas(16) tally {
    double lot; /* what the token was drawn by: the greatest wins, the lowest token among equals */
    int32_t token;
    float logit;           /* the token's, as the score sees it */
    float highest, second; /* as the score sees them */
    float rest, slope;     /* sum of exp(z - highest), and of exp(z - highest) (z - highest) */
};

/* How panels of a round of rows are read. */
struct reading {
    dllm_sampling how;
    const dllm_key *keys;  /* in memory of the device, where numbers are drawn */
    const int32_t *tokens; /* NULL: they are yet to be drawn; else logits are what the draw made of them */
    tally *tallies;        /* [rows][panels] */
    int64_t vocab, panels;
};

enum { ROUND = 64 }; /* rows at a time: what a session's head asks for, and what tallies there is room for */

/* Host: makes ready to read at most ROUND rows, and makes results of what was read. */
reading dllm_reading_begin(dllm_device *d, int64_t vocab, int32_t n, const dllm_sampling *how, const dllm_key *keys);
void dllm_reading_settle(dllm_device *d, const reading &r, int32_t *token, float *score, float *prob, int32_t n,
                         const dllm_key *keys);
size_t dllm_reading_scratch(int64_t vocab);
/* The product of one round whose sums are read where they are made: on tensor cores, and of any dtypes. */
void dllm_head_tile(dllm_device *d, const dense_job &job, const reading &r);
void dllm_head_any(dllm_device *d, const dense_job &job, const reading &r);

template <class T> struct candidate {
    T value;
    int32_t column;
};

template <class T> __device__ inline candidate<T> better(candidate<T> a, candidate<T> b)
{
    return b.value > a.value || (b.value == a.value && b.column < a.column) ? b : a;
}

struct two {
    float first, second;
};

__device__ inline two highest_two(two a, two b)
{
    return two{ fmaxf(a.first, b.first), fmaxf(fminf(a.first, b.first), fmaxf(a.second, b.second)) };
}

/* ---- four lanes and a panel ------------------------------------------------------------------------------------------------------ */
template <class T, class F> __device__ inline T quad_reduce(T x, F combine)
{
    x = combine(x, across(x, 1));
    return combine(x, across(x, 2));
}

/* This lane's columns of a panel that begins at `first`: four of every sixteen, which share blocks of random words. */
__device__ inline int32_t column_of(int32_t first, int i) { return first + i / 4 * 16 + (int)threadIdx.x % QUAD * 4 + i % 4; }

/* This lane's logits of a panel at z, of which there are n; behind them there is what all others beat. */
__device__ inline void load_panel(float (&mine)[MINE], const float *z, int64_t n)
{
#pragma unroll
    for (int i = 0; i < MINE; i += 4) {
        const int32_t at = column_of(0, i);
        if (at + 4 <= n && (uintptr_t)(z + at) % 16 == 0) {
            const uint4 four = *(const uint4 *)(z + at);
            mine[i] = __uint_as_float(four.x);
            mine[i + 1] = __uint_as_float(four.y);
            mine[i + 2] = __uint_as_float(four.z);
            mine[i + 3] = __uint_as_float(four.w);
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++) mine[i + k] = at + k < n ? z[at + k] : -INFINITY;
        }
    }
}

__device__ inline void strike(float (&z)[MINE], int32_t first, const int32_t (&ids)[2], int n)
{
#pragma unroll
    for (int k = 0; k < 2; k++) {
        if (k >= n || ids[k] < first || ids[k] >= first + PANEL) continue;
#pragma unroll
        for (int i = 0; i < MINE; i++) {
            if (column_of(first, i) == ids[k]) z[i] = -INFINITY;
        }
    }
}

/* z[i], from registers. */
__device__ inline float pick(const float (&z)[MINE], int i)
{
    float x = z[0];
#pragma unroll
    for (int k = 1; k < MINE; k++) x = k == i ? z[k] : x;
    return x;
}

/* ---- draws ----------------------------------------------------------------------------------------------------------------------- */
/* What a column is drawn by: z - T ln(-ln u), or, for argmax of p / q with q ~ Exp(1), its logarithm z - ln q. */
__device__ inline double lot_of(float z, int32_t column, const dllm_sampling &how, const dllm_key &key)
{
    uint32_t w[4];
    dllm_random(w, &key, DLLM_USE_TOKEN, (uint32_t)(how.gumbel ? column / 2 : column / 4));
    const uint32_t even = column & (how.gumbel ? 1 : 2) ? w[2] : w[0], odd = column & (how.gumbel ? 1 : 2) ? w[3] : w[1];
    const double q = how.gumbel ? -log(dllm_uniform_of(even, odd)) : (double)dllm_exponential_of(column & 1 ? odd : even);
    return fma(how.gumbel ? -(double)how.temperature : -1.0, log(q), (double)z);
}

/* The words that lead the random numbers of four columns. */
__device__ inline void leading_words(uint32_t (&lead)[4], int32_t column, bool gumbel, const dllm_key &key)
{
    uint32_t w[4];
    dllm_random(w, &key, DLLM_USE_TOKEN, (uint32_t)(gumbel ? column / 2 : column / 4));
    lead[0] = w[0];
    lead[1] = gumbel ? w[2] : w[1];
    lead[2] = w[2];
    lead[3] = w[3];
    if (!gumbel) return;
    dllm_random(w, &key, DLLM_USE_TOKEN, (uint32_t)(column / 2 + 1));
    lead[2] = w[0];
    lead[3] = w[2];
}

/* Bounds of the lots from their leading words: -ln u >= 1 - u, and 1 - u >= (~word >> 5) 2^-27 of a 53-bit u. One logarithm in float32
 * instead of two in float64, which few columns then need. */
__device__ inline void bound_lots(float (&most)[MINE], const float (&z)[MINE], int32_t first, const dllm_sampling &how,
                                  const dllm_key &key)
{
#pragma unroll
    for (int i = 0; i < MINE; i += 4) {
        uint32_t lead[4];
        leading_words(lead, column_of(first, i), how.gumbel, key);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if (how.gumbel) most[i + k] = z[i + k] - how.temperature * logf((float)(~lead[k] >> 5) * 0x1p-27f);
            else most[i + k] = z[i + k] - logf(((float)~lead[k] + 0.5f) * 0x1p-32f);
        }
    }
}

/* The columns that may reach `least`, as bits. */
__device__ inline uint32_t open_columns(const float (&most)[MINE], float least)
{
    uint32_t open = 0;
#pragma unroll
    for (int i = 0; i < MINE; i++) open |= (uint32_t)(most[i] >= least) << i;
    return open;
}

__device__ inline float highest_of(const float (&z)[MINE])
{
    float highest = z[0];
#pragma unroll
    for (int i = 1; i < MINE; i++) highest = fmaxf(highest, z[i]);
    return highest;
}

/* Each lane's likeliest column has its lot drawn, then every column that may beat the best of them. A column that reaches the bound lies
 * at most 80 T below the highest logit (ln(-ln u) is between -36.8 and 3.7), and float32 errs by less than 1e-6 of such numbers. */
__device__ inline candidate<double> best_lot(const float (&z)[MINE], int32_t first, const dllm_sampling &how, const dllm_key &key)
{
    float most[MINE];
    bound_lots(most, z, first, how, key);
    const float highest = quad_reduce(highest_of(z), larger),
                slack = 1e-6f * (fabsf(highest) + 80 * (how.gumbel ? how.temperature : 1));
    uint32_t open = open_columns(most, highest_of(most)), drawn = open;
    candidate<double> best = { -INFINITY, NOWHERE };
#pragma unroll 1
    for (int round = 0; round < 2; round++) {
        for (; open; open &= open - 1) {
            const int i = __ffs((int)open) - 1;
            const int32_t column = column_of(first, i);
            best = better(best, candidate<double>{ lot_of(pick(z, i), column, how, key), column });
        }
        best = quad_reduce(best, better<double>);
        open = open_columns(most, (float)best.value - slack) & ~drawn;
    }
    return best;
}

__device__ inline candidate<double> best_logit(const float (&z)[MINE], int32_t first)
{
    candidate<float> best = { -INFINITY, NOWHERE };
#pragma unroll
    for (int i = 0; i < MINE; i++) {
        if (z[i] > best.value) best = { z[i], column_of(first, i) };
    }
    best = quad_reduce(best, better<float>);
    return candidate<double>{ (double)best.value, best.column };
}

/* Bans, temperature and draw. */
__device__ inline candidate<double> draw_panel(float (&z)[MINE], int32_t first, const reading &r, int32_t row)
{
    const float temperature = r.how.temperature;
    strike(z, first, r.how.banned, r.how.n_banned);
    if (!r.how.gumbel && temperature > 0) {
#pragma unroll
        for (int i = 0; i < MINE; i++) z[i] /= temperature;
    }
    candidate<double> drawn;
    if (temperature > 0 && !r.how.argmax) drawn = best_lot(z, first, r.how, r.keys[row]);
    else drawn = best_logit(z, first);
    if (drawn.column == NOWHERE) drawn.column = first; /* nothing was above -inf */
    return drawn;
}

/* ---- scores ---------------------------------------------------------------------------------------------------------------------- */
struct weights {
    float rest, slope, equals;
};

__device__ inline weights heavier(weights a, weights b)
{
    return weights{ a.rest + b.rest, a.slope + b.slope, a.equals + b.equals };
}

__device__ inline void weigh(tally *t, const float (&z)[MINE])
{
    two top = { -INFINITY, -INFINITY };
#pragma unroll
    for (int i = 0; i < MINE; i++) top = highest_two(top, two{ z[i], -INFINITY });
    top = quad_reduce(top, highest_two);
    weights all = {};
#pragma unroll
    for (int i = 0; i < MINE; i++) {
        const float below = fmaxf(z[i] - top.first, -104), e = expf(below); /* 0 there */
        if (z[i] == top.first) {
            all.equals += 1;
        } else {
            all.rest = __fadd_rn(all.rest, e);
            all.slope = fmaf(e, below, all.slope);
        }
    }
    all = quad_reduce(all, heavier);
    const bool any = top.first > -INFINITY;
    t->highest = top.first;
    t->second = top.second;
    t->rest = any ? all.rest + (all.equals - 1) : 0; /* one of the highest is not in the sum */
    t->slope = any ? all.slope : 0;
}

/* The logits z of columns first, first + 1, ... of a row of the round. Every lane of the warp comes along, four a panel; those that are
 * not wanted for a tally of their own keep it to themselves. */
__device__ inline void read_panel(const reading &r, float (&z)[MINE], int32_t first, int32_t row, bool wanted)
{
    tally t;
    candidate<double> drawn;
    if (r.tokens) {
        const int32_t token = r.tokens[row];
        drawn = { token >= first && token < first + PANEL ? 0.0 : -INFINITY, token };
    } else {
        drawn = draw_panel(z, first, r, row);
    }
    strike(z, first, r.how.unscored, r.how.n_unscored);
    weigh(&t, z);
    float logit = -INFINITY;
#pragma unroll
    for (int i = 0; i < MINE; i++) {
        if (column_of(first, i) == drawn.column) logit = z[i];
    }
    t.logit = quad_reduce(logit, larger);
    t.lot = drawn.value;
    t.token = drawn.column;
    if (wanted && threadIdx.x % QUAD == 0) r.tallies[row * r.panels + first / PANEL] = t;
}

/* A block of warps reads rows of one panel, eight a warp, from a tile in shared memory: [rows][LINE]. */
__device__ inline void read_tile(const reading &r, const float *tile, int rows, int64_t first, int32_t first_row, int32_t n)
{
    for (int at = (int)threadIdx.x / 32 * 8; at < rows; at += (int)blockDim.x / 32 * 8) {
        const int mine = at + (int)threadIdx.x % 32 / QUAD, last = n - first_row - 1;
        const int line = mine < last ? mine : last; /* lanes without a row help with the last one */
        float z[MINE];
        load_panel(z, tile + line * LINE, r.vocab - first);
        read_panel(r, z, (int32_t)first, first_row + line, mine <= last);
    }
}
#endif
