/* From logits to tokens: a block a row, which lies in the second-level cache after the first pass over it. Order of the official loops:
 * bans, temperature, top-p, top-k, draw, score. Sums of probabilities that decide what is kept are integers: they have no order. */
#include "../../csrc/rng.h"
#include "gpu.h"

struct predict_job {
    dllm_mat logits;
    int32_t *token;
    float *score, *prob;
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

enum { ROOM = 32 * 16, NOWHERE = INT_MAX, MOST_THREADS = 512 };

/* Calls f(column, logit) for this thread's columns, in ascending order. */
template <class F> __device__ inline void each(const columns &row, F f)
{
    for (int64_t j = (int64_t)threadIdx.x * 8; j < row.n; j += (int64_t)blockDim.x * 8) {
        const eight x = load8(row.z, DLLM_F32, j, row.n);
        for (int i = 0; i < 8 && j + i < row.n; i++) f((int32_t)(j + i), x.v[i]);
    }
}

/* ---- what the block knows of a row ----------------------------------------------------------------------------------------------- */
template <class T> struct candidate {
    T value;
    int32_t column;
};

template <class T> __device__ inline candidate<T> better(candidate<T> a, candidate<T> b)
{
    return b.value > a.value || (b.value == a.value && b.column < a.column) ? b : a;
}

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

struct two {
    float first, second;
};

__device__ inline two highest_two(two a, two b)
{
    return two{ fmaxf(a.first, b.first), fmaxf(fminf(a.first, b.first), fmaxf(a.second, b.second)) };
}

__device__ static float margin(const columns &row, float highest, double total)
{
    two mine = { -INFINITY, -INFINITY };
    each(row, [&](int32_t, float z) { mine = highest_two(mine, two{ z, -INFINITY }); });
    mine = block_reduce(mine, highest_two, (two *)row.room);
    return probability(mine.first, highest, total) - probability(mine.second, highest, total);
}

__device__ static float negative_entropy(const columns &row, float highest, double total)
{
    const float share = (float)(1 / total);
    double sum = 0;
    each(row, [&](int32_t, float z) {
        const float p = expf(z - highest) * share;
        if (p > 0) sum += (double)(p * logf(p));
    });
    return (float)block_reduce(sum, sum_of<double>, (double *)row.room);
}

/* ---- draws ----------------------------------------------------------------------------------------------------------------------- */
/* The random words of columns, for one that goes through them in order. */
struct words {
    dllm_key key;
    int64_t block;
    uint32_t w[4];
};

__device__ inline const uint32_t *words_at(words *r, int64_t block)
{
    if (r->block != block) dllm_random(r->w, &r->key, DLLM_USE_TOKEN, (uint32_t)(r->block = block));
    return r->w;
}

__device__ static double noisy(float z, int32_t j, double temperature, words *r, const double *noise)
{
    const uint32_t *w = noise ? nullptr : words_at(r, j / 2);
    const double u = noise ? noise[j] : dllm_uniform_of(w[j % 2 * 2], w[j % 2 * 2 + 1]);
    return (double)z - temperature * log(-log(u));
}

/* argmax of exp(z) / (-ln u)^T. -ln(-ln u) stays below 36.8 for every double u < 1, so next to the best logit's own number most columns
 * cannot win and need no random number. */
__device__ static int32_t draw_gumbel(const columns &row, double temperature, words r, const double *noise)
{
    const candidate<float> top = argmax(row);
    const double floor = noisy(top.value, top.column, temperature, &r, noise) - temperature * 36.8;
    candidate<double> mine = { -INFINITY, NOWHERE };
    each(row, [&](int32_t j, float z) {
        if ((double)z < floor) return;
        const double value = noisy(z, j, temperature, &r, noise);
        if (value > mine.value) mine = { value, j };
    });
    return best_of(row, mine).column;
}

__device__ static float ratio(float z, int32_t j, float highest, words *r, const float *noise)
{
    return expf(z - highest) / (noise ? noise[j] : dllm_exponential_of(words_at(r, j / 4)[j % 4]));
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
__device__ static void forbid(const columns &row, const int32_t *some, int n)
{
    const int i = (int)threadIdx.x; /* two may be the same column */
    if (i < n && (i == 0 || some[i] != some[0])) row.z[some[i]] = -INFINITY;
    __syncthreads();
}

__device__ static int32_t draw(const columns &row, const dllm_sampling &how, const dllm_key *key, const void *noise)
{
    words r = {};
    r.block = -1;
    if (how.temperature > 0 && !how.argmax && !noise) r.key = *key;
    if (how.gumbel)
        return how.temperature > 0 ? draw_gumbel(row, (double)how.temperature, r, (const double *)noise) : argmax(row).column;
    if (how.temperature > 0) {
        for (int64_t j = threadIdx.x; j < row.n; j += blockDim.x) row.z[j] /= how.temperature;
        __syncthreads();
    }
    if (how.top_p < 1 || (how.top_k > 0 && how.top_k < row.n)) filter(row, how);
    const candidate<float> top = argmax(row);
    return how.temperature > 0 && !how.argmax ? draw_categorical(row, top, r, (const float *)noise) : top.column;
}

static __global__ void __launch_bounds__(MOST_THREADS) predict(predict_job job)
{
    DLLM_SHARED(char, room);
    const int32_t i = (int32_t)blockIdx.x;
    const columns row = { (float *)dllm_at(job.logits, i), job.logits.cols, room };
    const char *noise = (const char *)job.noise;
    if (noise) noise += (int64_t)job.noise_rows[i] * row.n * (job.how.gumbel ? 8 : 4);
    forbid(row, job.how.banned, job.how.n_banned);
    const int32_t token = draw(row, job.how, &job.keys[i], noise);
    forbid(row, job.how.unscored, job.how.n_unscored);
    const float highest = argmax(row).value;
    const double total = sum_exp(row, highest);
    const float prob = probability(row.z[token], highest, total);
    float score = prob;
    if (job.how.score == DLLM_SCORE_MARGIN) score = margin(row, highest, total);
    if (job.how.score == DLLM_SCORE_ENTROPY) score = negative_entropy(row, highest, total);
    if (threadIdx.x) return;
    if (job.how.score == DLLM_SCORE_RANDOM) score = dllm_uniform(&job.keys[i], DLLM_USE_REMASK);
    job.token[i] = token;
    job.prob[i] = prob;
    job.score[i] = score;
}

static int threads_for_logits(int64_t n) { return n > 8192 ? MOST_THREADS : 128; }

void dllm_predict_cuda(dllm_device *d, int32_t *token, float *score, float *prob, dllm_mat logits, int32_t n,
                       const dllm_sampling *how, const dllm_key *keys, const void *noise, const int32_t *noise_rows)
{
    const predict_job job = { logits, token, score, prob, *how, keys, noise, noise_rows };
    const int threads = threads_for_logits(logits.cols);
    if (n) launch(d, "predict", predict, (unsigned)n, threads, ROOM + (size_t)threads * sizeof(uint32_t), job);
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
