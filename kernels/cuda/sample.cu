/* From logits to tokens. Where a draw must see whole rows, because it leaves columns out or reads recorded numbers, a block goes through a
 * row and puts what it made of it back. Then, or at once, panels of columns are read side by side, and what is left of them is joined,
 * in an order that follows from their number alone. Order of the official loops: bans, temperature, top-p, top-k, draw, score. Sums
 * of probabilities that decide what is kept are integers: they have no order. */
#include "panel.h"

struct draw_job {
    dllm_mat logits;
    int32_t *token;
    dllm_sampling how;
    const dllm_key *keys;
    const void *noise;
    const int32_t *noise_rows;
};

struct columns {
    float *z;
    int64_t n;
    void *room; /* of reductions */
};

enum { ROOM = 32 * 16, MOST_THREADS = 512 };

/* Calls f(column, logit) for this thread's columns, in ascending order. */
template <class F> __device__ inline void each(const columns &row, F f)
{
    for (int64_t j = (int64_t)threadIdx.x * 8; j < row.n; j += (int64_t)blockDim.x * 8) {
        const eight x = load8(row.z, DLLM_F32, j, row.n);
        for (int i = 0; i < 8 && j + i < row.n; i++) f((int32_t)(j + i), x.v[i]);
    }
}

/* ---- what the block knows of a row ----------------------------------------------------------------------------------------------- */
template <class T> __device__ inline candidate<T> best_of(const columns &row, candidate<T> mine)
{
    mine = block_reduce(mine, better<T>, (candidate<T> *)row.room);
    if (mine.column == NOWHERE) mine.column = 0; /* nothing was above -inf */
    return mine;
}

__device__ static candidate<float> argmax(const columns &row)
{
    candidate<float> mine = { -INFINITY, NOWHERE };
    each(row, [&](int32_t j, float z) {
        if (z > mine.value) mine = { z, j };
    });
    return best_of(row, mine);
}

__device__ static double sum_exp(const columns &row, float highest)
{
    double sum = 0;
    each(row, [&](int32_t, float z) { sum += (double)expf(z - highest); });
    return block_reduce(sum, sum_of<double>, (double *)row.room);
}

__device__ static float probability(float z, float highest, double total) { return (float)((double)expf(z - highest) / total); }

/* ---- draws ----------------------------------------------------------------------------------------------------------------------- */
__device__ static double noisy(float z, double temperature, double u) { return (double)z - temperature * log(-log(u)); }

/* argmax of exp(z) / (-ln u)^T of recorded u. -ln(-ln u) stays below 36.8 for every double u < 1, so next to the best logit's own number
 * most columns cannot win. */
__device__ static int32_t draw_gumbel(const columns &row, double temperature, const double *noise)
{
    const candidate<float> top = argmax(row);
    const double floor = noisy(top.value, temperature, noise[top.column]) - temperature * 36.8;
    candidate<double> mine = { -INFINITY, NOWHERE };
    each(row, [&](int32_t j, float z) {
        if ((double)z < floor) return;
        const double value = noisy(z, temperature, noise[j]);
        if (value > mine.value) mine = { value, j };
    });
    return best_of(row, mine).column;
}

/* The random words of four columns, for one that goes through them in order. */
struct words {
    dllm_key key;
    int32_t block;
    uint32_t w[4];
};

__device__ inline uint32_t word_at(words *r, int32_t column)
{
    if (r->block != column / 4) dllm_random(r->w, &r->key, DLLM_USE_TOKEN, (uint32_t)(r->block = column / 4));
    const uint32_t even = column & 2 ? r->w[2] : r->w[0], odd = column & 2 ? r->w[3] : r->w[1];
    return column & 1 ? odd : even;
}

__device__ static float ratio(float z, int32_t j, float highest, words *r, const float *noise)
{
    return expf(z - highest) / (noise ? noise[j] : dllm_exponential_of(word_at(r, j)));
}

/* One sample of softmax(z): argmax of p / q, q ~ Exp(1). Our own q is at least 1.16e-10, e^-22.9. */
__device__ static int32_t draw_categorical(const columns &row, candidate<float> top, words r, const float *noise)
{
    const float own = ratio(top.value, top.column, top.value, &r, noise), zero = top.value - 104; /* where expf gives 0 */
    const float floor = noise ? zero : fmaxf(zero, top.value + logf(own) - 23);
    candidate<float> mine = { -1, NOWHERE };
    each(row, [&](int32_t j, float z) {
        if (z < floor) return;
        const float value = ratio(z, j, top.value, &r, noise);
        if (value > mine.value) mine = { value, j };
    });
    return best_of(row, mine).column;
}

/* ---- filters --------------------------------------------------------------------------------------------------------------------- */
struct share {
    uint64_t mass, count; /* mass: of probability, in units of 2^-52 */
};

struct limits {
    float highest;
    double total;
    uint64_t mass, count; /* kept until they hold more than this mass, or at least this count */
};

__device__ inline share join(share a, share b) { return share{ a.mass + b.mass, a.count + b.count }; }

/* Floats as integers of the same order. */
__device__ inline uint32_t rank_of(float z)
{
    const uint32_t u = __float_as_uint(z + 0.0f);
    return u >> 31 ? ~u : u | 0x80000000u;
}

__device__ inline uint64_t mass_of(float z, const limits &l)
{
    const float p = probability(z, l.highest, l.total);
    return p > 0 ? (uint64_t)(p * 0x1p52f) : 0;
}

/* Of all columns of rank `least` and above. */
__device__ static share share_above(const columns &row, uint32_t least, const limits &l)
{
    share mine = { 0, 0 };
    each(row, [&](int32_t, float z) {
        if (rank_of(z) >= least) mine = join(mine, share{ mass_of(z, l), 1 });
    });
    return block_reduce(mine, join, (share *)row.room);
}

/* Of the columns that rank just `edge` only the first `n` stay, and nothing below: the rest become the lowest finite number. */
__device__ static void cut(const columns &row, uint32_t edge, uint64_t n)
{
    uint32_t *equals = (uint32_t *)((char *)row.room + ROOM); /* before this thread's stretch of the row; [threads] */
    const int64_t stretch = (row.n + blockDim.x - 1) / blockDim.x, from = stretch * threadIdx.x;
    const int64_t end = from + stretch < row.n ? from + stretch : row.n;
    uint32_t mine = 0;
    for (int64_t j = from; j < end; j++) mine += rank_of(row.z[j]) == edge;
    equals[threadIdx.x] = mine;
    __syncthreads();
    uint64_t seen = 0;
    for (unsigned t = 0; t < threadIdx.x; t++) seen += equals[t];
    for (int64_t j = from; j < end; j++) {
        const uint32_t rank = rank_of(row.z[j]);
        seen += rank == edge;
        if (rank < edge || (rank == edge && seen > n)) row.z[j] = -FLT_MAX;
    }
    __syncthreads();
}

/* top-p then top-k: columns are kept from the largest down, the lower column first among equals, until one filter is satisfied. The first
 * column above p is kept, and so is everything equal to the k-th. */
__device__ static void filter(const columns &row, const dllm_sampling &how)
{
    limits l = { argmax(row).value, 1, UINT64_MAX, UINT64_MAX };
    if (how.top_p < 1) {
        l.total = sum_exp(row, l.highest);
        l.mass = (uint64_t)((double)how.top_p * 0x1p52);
    }
    if (how.top_k > 0) l.count = (uint64_t)how.top_k;
    uint32_t edge = 0; /* the highest rank above which there is enough */
    for (uint32_t bit = 0x80000000u; bit; bit /= 2) {
        const share s = share_above(row, edge | bit, l);
        if (s.mass > l.mass || s.count >= l.count) edge |= bit;
    }
    const share with = share_above(row, edge, l), above = edge == UINT32_MAX ? share{ 0, 0 } : share_above(row, edge + 1, l);
    uint64_t n = with.count - above.count;
    if (with.mass > l.mass && n) { /* p is reached among the equals of the edge */
        const uint64_t each_mass = (with.mass - above.mass) / n;
        n = (l.mass + 1 - above.mass + each_mass - 1) / each_mass;
    }
    cut(row, edge, n);
}

/* ---- a row ----------------------------------------------------------------------------------------------------------------------- */
__device__ static void forbid(const columns &row, const int32_t (&some)[2], int n)
{
    if (threadIdx.x == 0 && n > 0) row.z[some[0]] = -INFINITY;
    if (threadIdx.x == 0 && n > 1) row.z[some[1]] = -INFINITY;
    __syncthreads();
}

__device__ static int32_t draw_token(const columns &row, const dllm_sampling &how, const dllm_key *key, const void *noise)
{
    if (how.gumbel) return draw_gumbel(row, (double)how.temperature, (const double *)noise);
    if (how.temperature > 0) {
        for (int64_t j = threadIdx.x; j < row.n; j += blockDim.x) row.z[j] /= how.temperature;
        __syncthreads();
    }
    if (dllm_filters(&how, row.n)) filter(row, how);
    const candidate<float> top = argmax(row);
    if (how.temperature <= 0 || how.argmax) return top.column;
    words r = {};
    r.block = -1;
    if (!noise) r.key = *key;
    return draw_categorical(row, top, r, (const float *)noise);
}

static __global__ void __launch_bounds__(MOST_THREADS) draw(draw_job job)
{
    DLLM_SHARED(char, room);
    const int32_t i = (int32_t)blockIdx.x;
    const columns row = { (float *)dllm_at(job.logits, i), job.logits.cols, room };
    const char *noise = (const char *)job.noise;
    if (noise) noise += (int64_t)job.noise_rows[i] * row.n * (job.how.gumbel ? 8 : 4);
    forbid(row, job.how.banned, job.how.n_banned);
    const int32_t token = draw_token(row, job.how, &job.keys[i], noise);
    if (threadIdx.x == 0) job.token[i] = token;
}

static int threads_for_logits(int64_t n) { return n > 8192 ? MOST_THREADS : 128; }

/* ---- panels ---------------------------------------------------------------------------------------------------------------------- */
enum { READERS = 128, SETTLERS = 256 };

static __global__ void __launch_bounds__(READERS, 6) read_panels(dllm_mat logits, reading r)
{
    const int32_t row = (int32_t)blockIdx.y;
    const int64_t panel = (int64_t)blockIdx.x * (READERS / QUAD) + threadIdx.x / QUAD;
    const int64_t first = (panel < r.panels ? panel : r.panels - 1) * PANEL; /* lanes without a panel help with the last one */
    float z[MINE];
    load_panel(z, (const float *)dllm_at(logits, row) + first, r.vocab - first);
    read_panel(r, z, (int32_t)first, row, panel < r.panels);
}

/* What several panels have in common: the greatest lot, the highest logits, and whose the highest is. */
struct common {
    double lot;
    int32_t token;
    float logit, highest, second;
    int32_t panel;
};

__device__ inline common join_common(common a, common b)
{
    const bool drawn = b.lot > a.lot || (b.lot == a.lot && b.token < a.token);
    const bool higher = b.highest > a.highest || (b.highest == a.highest && b.panel < a.panel);
    const two top = highest_two(two{ a.highest, a.second }, two{ b.highest, b.second });
    common c;
    c.lot = drawn ? b.lot : a.lot;
    c.token = drawn ? b.token : a.token;
    c.logit = drawn ? b.logit : a.logit;
    c.highest = top.first;
    c.second = top.second;
    c.panel = higher ? b.panel : a.panel;
    return c;
}

/* Sums relative to the row's highest logit, which itself is not in them. */
struct total {
    double rest, slope;
};

__device__ inline total join_total(total a, total b) { return total{ a.rest + b.rest, a.slope + b.slope }; }

__device__ static total total_of(const tally &t, float highest, bool has_highest)
{
    if (!(t.highest > -INFINITY)) return total{ 0, 0 };
    const double apart = (double)t.highest - (double)highest, scale = exp(apart), all = 1 + (double)t.rest;
    return total{ scale * (has_highest ? (double)t.rest : all), scale * ((double)t.slope + apart * all) };
}

/* log1p keeps what little a sure row leaves to the others. */
static __global__ void __launch_bounds__(SETTLERS)
    settle(reading r, int32_t *token, float *score, float *prob, const dllm_key *keys)
{
    DLLM_SHARED(char, room);
    const tally *of_row = r.tallies + (int64_t)blockIdx.x * r.panels;
    common c = { -INFINITY, NOWHERE, -INFINITY, -INFINITY, -INFINITY, NOWHERE };
    for (int64_t i = threadIdx.x; i < r.panels; i += SETTLERS) {
        const tally t = of_row[i];
        c = join_common(c, common{ t.lot, t.token, t.logit, t.highest, t.second, (int32_t)i });
    }
    c = block_reduce(c, join_common, (common *)room);
    total sums = { 0, 0 };
    for (int64_t i = threadIdx.x; i < r.panels; i += SETTLERS)
        sums = join_total(sums, total_of(of_row[i], c.highest, i == c.panel));
    sums = block_reduce(sums, join_total, (total *)room);
    if (threadIdx.x) return;
    const int32_t row = (int32_t)blockIdx.x;
    const double whole = 1 + sums.rest, highest = (double)c.highest;
    float value = (float)(exp((double)c.logit - highest) / whole);
    prob[row] = value;
    if (r.how.score == DLLM_SCORE_MARGIN) value = (float)(1 / whole) - (float)(exp((double)c.second - highest) / whole);
    if (r.how.score == DLLM_SCORE_ENTROPY) value = (float)(sums.slope / whole - log1p(sums.rest));
    if (r.how.score == DLLM_SCORE_RANDOM) value = dllm_uniform(&keys[row], DLLM_USE_REMASK);
    score[row] = value;
    token[row] = c.token;
}

static size_t tallies_of(int64_t vocab) { return (size_t)ROUND * (size_t)((vocab + PANEL - 1) / PANEL) * sizeof(tally); }

size_t dllm_reading_scratch(int64_t vocab)
{
    return SCRATCH_COUNTERS + tallies_of(vocab) + ROUND * (sizeof(dllm_key) + sizeof(int32_t));
}

/* Keys come over once: every panel reads them, and they lie in the host's memory. */
static __global__ void __launch_bounds__(ROUND) bring_keys(dllm_key *near, const dllm_key *keys, int32_t n)
{
    if ((int32_t)threadIdx.x < n) near[threadIdx.x] = keys[threadIdx.x];
}

reading dllm_reading_begin(dllm_device *d, int64_t vocab, int32_t n, const dllm_sampling *how, const dllm_key *keys)
{
    char *at = (char *)d->scratch + SCRATCH_COUNTERS;
    dllm_key *near = (dllm_key *)(at + tallies_of(vocab));
    const reading r = { *how, near, nullptr, (tally *)at, vocab, (vocab + PANEL - 1) / PANEL };
    if (how->temperature > 0 && !how->argmax) launch(d, "random keys", bring_keys, 1, ROUND, 0, near, keys, n);
    return r;
}

void dllm_reading_settle(dllm_device *d, const reading &r, int32_t *token, float *score, float *prob, int32_t n,
                         const dllm_key *keys)
{
    launch(d, "settle", settle, (unsigned)n, SETTLERS, ROOM, r, token, score, prob, keys);
}

/* A round of rows. */
static void predict(dllm_device *d, int32_t *token, float *score, float *prob, dllm_mat logits, int32_t n, const dllm_sampling *how,
                    const dllm_key *keys, const void *noise, const int32_t *noise_rows)
{
    reading r = dllm_reading_begin(d, logits.cols, n, how, keys);
    if (dllm_filters(how, logits.cols) || (noise && how->temperature > 0 && !how->argmax)) {
        int32_t *tokens = (int32_t *)(r.keys + ROUND);
        const int threads = threads_for_logits(logits.cols);
        const draw_job job = { logits, tokens, *how, r.keys, noise, noise_rows };
        launch(d, "predict", draw, (unsigned)n, threads, ROOM + (size_t)threads * sizeof(uint32_t), job);
        r.tokens = tokens;
    }
    const unsigned blocks = (unsigned)((r.panels + READERS / QUAD - 1) / (READERS / QUAD));
    launch(d, "predict", read_panels, dim3(blocks, (unsigned)n), READERS, 0, logits, r);
    dllm_reading_settle(d, r, token, score, prob, n, keys);
}

void dllm_predict_cuda(dllm_device *d, int32_t *token, float *score, float *prob, dllm_mat logits, int32_t n,
                       const dllm_sampling *how, const dllm_key *keys, const void *noise, const int32_t *noise_rows)
{
    for (int32_t at = 0; at < n; at += ROUND) {
        dllm_mat some = logits;
        some.data = dllm_at(logits, at);
        predict(d, token + at, score + at, prob + at, some, n - at < ROUND ? n - at : ROUND, how, keys + at, noise,
                noise_rows ? noise_rows + at : nullptr);
    }
}

static __global__ void __launch_bounds__(MOST_THREADS) nll(float *out, dllm_mat logits, const int32_t *target)
{
    DLLM_SHARED(char, room);
    const columns row = { (float *)dllm_at(logits, blockIdx.x), logits.cols, room };
    const float highest = argmax(row).value;
    const double total = sum_exp(row, highest);
    if (threadIdx.x == 0) out[blockIdx.x] = (float)(log(total) + (double)highest - (double)row.z[target[blockIdx.x]]);
}

void dllm_nll_cuda(dllm_device *d, float *out, dllm_mat logits, const int32_t *target, int32_t n)
{
    if (n) launch(d, "nll", nll, (unsigned)n, threads_for_logits(logits.cols), ROOM, out, logits, target);
}
