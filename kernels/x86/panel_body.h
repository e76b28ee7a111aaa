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

/* Philox for LANES blocks at once, even ones apart from odd ones. keys: of every round two. See dllm_random. */
struct random {
    words even[4], odd[4];
};

VEC void random_words(words c[4], const uint32_t *keys)
{
#pragma GCC unroll 10
    for (int i = 0; i < 10; i++, keys += 2) {
        const words p0 = wproduct(c[0], 0xd2511f53u), p2 = wproduct(c[2], 0xcd9e8d57u);
        c[0] = wxor3(wupper(p2), c[1], wset(keys[0]));
        c[1] = p2;
        c[2] = wxor3(wupper(p0), c[3], wset(keys[1]));
        c[3] = p0;
    }
}

VEC struct random random_blocks(const dllm_key *key, const uint32_t *keys, uint32_t block)
{
    const words row = wset(key->row), step = wset(key->step), use = wset(DLLM_USE_TOKEN);
    struct random r = { { wcount(block), row, step, use }, { wcount(block + 1), row, step, use } };
    random_words(r.even, keys);
    random_words(r.odd, keys);
    return r;
}

/* What the draw of a panel knows. A block of random words serves two columns of LLaDA's, whose lots are z - T ln(-ln u), or four of
 * Dream's: ln(p / q) = z - ln q. */
struct draw {
    const dllm_sampling *how;
    int columns_a_block;
    float highest;
    double bound;            /* some column has this lot, */
    uint32_t least;          /* so that one whose leading word is less cannot win */
    uint32_t keys[20];       /* of Philox */
    uint32_t word[4][LANES]; /* of blocks that may win */
};

static void set_keys(struct draw *d, const dllm_key *key)
{
    const uint64_t seed = dllm_random_seed(key);
    for (uint32_t i = 0; i < 10; i++) {
        d->keys[2 * i] = (uint32_t)seed + i * 0x9e3779b9u;
        d->keys[2 * i + 1] = (uint32_t)(seed >> 32) + i * 0xbb67ae85u;
    }
}

static double lot_of(const struct draw *d, float z, int64_t j)
{
    const int64_t block = j / d->columns_a_block, at = j % d->columns_a_block;
    if (!d->how->gumbel) return (double)z - log((double)dllm_exponential_of(d->word[at][block]));
    return (double)z - (double)d->how->temperature * log(-log(dllm_uniform_of(d->word[2 * at][block], d->word[2 * at + 1][block])));
}

/* A lot reaches the bound only if -ln u <= exp((z - bound) / T), and less than `reach` for the highest z: rounding errs to the safe
 * side. And -ln u >= 1 - u >= (~word >> 5) 2^-27 with the leading word of u, so few columns need logarithms. */
static void set_bound(struct draw *d, double bound)
{
    const float low = (float)bound - fabsf((float)bound) * 1e-6f, apart = d->highest - low;
    const double reach = 0x1p27 * 1.001 * (double)expf(d->how->gumbel ? apart / d->how->temperature : apart);
    d->bound = bound;
    d->least = reach < 0x1p27 ? ~((uint32_t)reach << 5 | 31) : 0;
}

/* The columns that share a vector of blocks. */
static void draw_columns(struct draw *d, struct tally *t, const float *z, int64_t n, int32_t first)
{
    for (int i = 0; i < d->columns_a_block; i++) {
        double bound = d->bound;
        for (uint32_t may = watleast(wget(d->word[d->how->gumbel ? 2 * i : i]), d->least); may; may &= may - 1) {
            const int64_t j = __builtin_ctz(may) * d->columns_a_block + i;
            if (j >= n) continue;
            const double lot = lot_of(d, z[j], j);
            const int32_t token = first + (int32_t)j;
            if (!(lot > t->lot || (lot == t->lot && token < t->token))) continue;
            t->lot = lot;
            t->token = token;
            if (lot > bound) bound = lot;
        }
        if (bound > d->bound) set_bound(d, bound);
    }
}

VEC bool may_win(const struct draw *d, const struct random *r)
{
    words most = wmax(wmax(r->even[0], r->even[2]), wmax(r->odd[0], r->odd[2]));
    if (!d->how->gumbel) most = wmax(most, wmax(wmax(r->even[1], r->even[3]), wmax(r->odd[1], r->odd[3])));
    return watleast(most, d->least) & 0x5555;
}

static void draw(struct tally *t, const float *z, int64_t n, int32_t first, const dllm_sampling *how, const dllm_key *key,
                 double *bound)
{
    struct draw d = { .how = how, .columns_a_block = how->gumbel ? 2 : 4, .highest = highest_of(z, n) };
    const int64_t columns = d.columns_a_block * LANES;
    t->lot = -INFINITY;
    t->token = first;
    /* no number is above 36.8: see draw_gumbel in kernels/c/sample.c */
    if (!(d.highest > -INFINITY) || (double)d.highest + (how->gumbel ? (double)how->temperature : 1) * 36.8 < *bound) return;
    set_keys(&d, key);
    set_bound(&d, *bound);
    for (int64_t j = 0; j < n; j += columns) {
        const struct random r = random_blocks(key, d.keys, (uint32_t)((first + j) / d.columns_a_block));
        if (!may_win(&d, &r)) continue;
        for (int i = 0; i < 4; i++) wput(d.word[i], wlower(r.even[i], r.odd[i]));
        draw_columns(&d, t, z + j, n - j < columns ? n - j : columns, first + (int32_t)j);
    }
    *bound = d.bound;
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
