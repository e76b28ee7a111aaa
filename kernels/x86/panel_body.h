/* panel_body.h: reads panels of logits with the vectors that simd.h gives. See panel.h. */
#include <math.h>

#include "../../csrc/rng.h"
#include "panel.h"
#include "simd.h"

/* Columns j, j + 1, ... of n; those behind the end are beaten by all others. */
VEC vec columns_at(const float *z, int64_t j, int64_t n)
{
    return n - j >= LANES ? vget(z + j) : vfirst(vload(z, DLLM_F32, j, n - j), n - j, -INFINITY);
}

static float highest_of(const float *z, int64_t n)
{
    vec m[4];
    for (int i = 0; i < 4; i++) m[i] = vset(-INFINITY);
    int64_t j = 0;
    for (; j + 4 * LANES <= n; j += 4 * LANES) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) m[i] = vmax(m[i], vget(z + j + i * LANES));
    }
    for (; j < n; j += LANES) m[0] = vmax(m[0], columns_at(z, j, n));
    return vhighest(vmax(vmax(m[0], m[1]), vmax(m[2], m[3])));
}

/* ---- the draw --------------------------------------------------------------------------------------------------------------- */
static void take_best(struct tally *t, const float *z, int64_t n, int32_t first)
{
    const float best = highest_of(z, n);
    t->lot = (double)best;
    t->token = first;
    for (int64_t j = 0; j < n; j += LANES) {
        const uint32_t same = vequal(columns_at(z, j, n), vset(best));
        if (!same) continue;
        t->token = first + (int32_t)j + __builtin_ctz(same);
        return;
    }
}

/* Philox for LANES blocks at once: out[i][l] is word i of block `block` + l. See dllm_random. */
static void random_blocks(uint32_t out[4][LANES], const dllm_key *key, uint64_t seed, uint32_t block)
{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    words c0 = wcount(block), c1 = wset(key->row), c2 = wset(key->step), c3 = wset(DLLM_USE_TOKEN);
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++) {
        words high0, high2;
        const words low0 = wproduct(c0, 0xd2511f53u, &high0), low2 = wproduct(c2, 0xcd9e8d57u, &high2);
        c0 = wxor(wxor(high2, c1), wset(k0));
        c2 = wxor(wxor(high0, c3), wset(k1));
        c1 = low2;
        c3 = low0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    wput(out[0], c0);
    wput(out[1], c1);
    wput(out[2], c2);
    wput(out[3], c3);
}

/* The lots of the columns that share a vector of blocks. LLaDA: z - T ln(-ln u), two words a column; Dream: ln(p / q) = z - ln q,
 * one word a column. */
struct lots {
    const dllm_sampling *how;
    int columns_a_block;
    uint32_t word[4][LANES];
};

static double lot_of(const struct lots *l, float z, int64_t j)
{
    const int64_t block = j / l->columns_a_block, at = j % l->columns_a_block;
    if (!l->how->gumbel) return (double)z - log((double)dllm_exponential_of(l->word[at][block]));
    return (double)z - (double)l->how->temperature * log(-log(dllm_uniform_of(l->word[2 * at][block], l->word[2 * at + 1][block])));
}

/* A lot reaches the bound only if -ln u <= exp((z - bound) / T); this is more than that for the highest z. Rounding errs to the safe
 * side. */
static float reach_of(const dllm_sampling *how, float highest, double bound)
{
    const float low = (float)bound - fabsf((float)bound) * 1e-6f, apart = highest - low;
    return 1.001f * expf(how->gumbel ? apart / how->temperature : apart);
}

/* Column i of every block. -ln u >= 1 - u >= (~word >> 5) 2^-27 with the leading word of u, so few columns need logarithms. */
static void draw_columns(struct tally *t, const struct lots *l, const float *z, int64_t n, int32_t first, int i, double *bound,
                         float reach)
{
    const vec needed = vmul(wfloat(wnot_shifted(l->word[l->how->gumbel ? 2 * i : i], 5)), vset(0x1p-27f));
    for (uint32_t may = vless(needed, vset(reach)); may; may &= may - 1) {
        const int64_t j = __builtin_ctz(may) * l->columns_a_block + i;
        if (j >= n) continue;
        const double lot = lot_of(l, z[j], j);
        const int32_t token = first + (int32_t)j;
        if (!(lot > t->lot || (lot == t->lot && token < t->token))) continue;
        t->lot = lot;
        t->token = token;
        if (lot > *bound) *bound = lot;
    }
}

static void draw(struct tally *t, const float *z, int64_t n, int32_t first, const dllm_sampling *how, const dllm_key *key,
                 double *bound)
{
    struct lots l = { .how = how, .columns_a_block = how->gumbel ? 2 : 4 };
    const int64_t columns = l.columns_a_block * LANES;
    const uint64_t seed = dllm_random_seed(key);
    const float highest = highest_of(z, n);
    t->lot = -INFINITY;
    t->token = first;
    /* no number is above 36.8: see draw_gumbel in kernels/c/sample.c */
    if (!(highest > -INFINITY) || (double)highest + (how->gumbel ? (double)how->temperature : 1) * 36.8 < *bound) return;
    double known = *bound;
    float reach = reach_of(how, highest, known);
    for (int64_t j = 0; j < n; j += columns) {
        random_blocks(l.word, key, seed, (uint32_t)((first + j) / l.columns_a_block));
        for (int i = 0; i < l.columns_a_block; i++) {
            draw_columns(t, &l, z + j, n - j < columns ? n - j : columns, first + (int32_t)j, i, bound, reach);
            if (*bound == known) continue;
            known = *bound;
            reach = reach_of(how, highest, known);
        }
    }
}

/* ---- the score -------------------------------------------------------------------------------------------------------------- */
static float second_of(const float *z, int64_t n)
{
    vec first = vset(-INFINITY), second = first;
    for (int64_t j = 0; j < n; j += LANES) {
        const vec x = columns_at(z, j, n);
        second = vmax(second, vmin(first, x));
        first = vmax(first, x);
    }
    float a[LANES], b[LANES];
    vput(a, first);
    vput(b, second);
    for (int i = 1; i < LANES; i++) {
        b[0] = fmaxf(fmaxf(b[0], b[i]), fminf(a[0], a[i]));
        a[0] = fmaxf(a[0], a[i]);
    }
    return b[0];
}

VEC void sum_up(struct tally *t, const float *z, int64_t n, const bool slope)
{
    const vec highest = vset(t->highest);
    vec sum = vset(0), sloping = vset(0);
    int equals = -1; /* one of the highest is not in the sum */
    for (int64_t j = 0; j < n; j += LANES) {
        const vec x = columns_at(z, j, n), below = vmax(vsub(x, highest), vset(-69)); /* where vexp has its floor */
        const vec e = vunless(vexp(below), x, highest);
        sum = vadd(sum, e);
        if (slope) sloping = vfma(e, below, sloping);
        equals += __builtin_popcount(vequal(x, highest));
    }
    t->rest = vsum(sum) + (float)equals;
    if (slope) t->slope = vsum(sloping);
}

static void weigh(struct tally *t, const float *z, int64_t n, dllm_score score)
{
    t->highest = highest_of(z, n);
    t->second = -INFINITY;
    t->rest = t->slope = 0;
    if (t->highest == -INFINITY) return;
    if (score == DLLM_SCORE_ENTROPY) sum_up(t, z, n, true);
    else sum_up(t, z, n, false);
    if (score == DLLM_SCORE_MARGIN) t->second = second_of(z, n);
}

static void strike(float *z, int64_t n, int32_t first, const int32_t *ids, int32_t n_ids)
{
    for (int32_t i = 0; i < n_ids; i++) {
        if (ids[i] >= first && ids[i] < first + n) z[ids[i] - first] = -INFINITY;
    }
}

static void read_panel(struct tally *t, float *z, int64_t n, int32_t first, const dllm_sampling *how, const dllm_key *key,
                       double *bound)
{
    strike(z, n, first, how->banned, how->n_banned);
    if (!how->gumbel && how->temperature > 0) {
        for (int64_t j = 0; j < n; j += LANES)
            vstore(z, DLLM_F32, j, n - j, vdiv(vload(z, DLLM_F32, j, n - j), vset(how->temperature)));
    }
    if (how->temperature > 0 && (how->gumbel || !how->argmax)) draw(t, z, n, first, how, key, bound);
    else take_best(t, z, n, first);
    strike(z, n, first, how->unscored, how->n_unscored);
    weigh(t, z, n, how->score);
    t->logit = z[t->token - first];
}
