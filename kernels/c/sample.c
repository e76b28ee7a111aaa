/* From logits to tokens: one row at a time. Order of the official loops: bans, temperature, top-p, top-k, draw, score. */
#include <float.h>
#include <math.h>

#include "../../csrc/rng.h"
#include "c.h"

static int32_t argmax(const float *z, int64_t n)
{
    int64_t best = 0;
    for (int64_t j = 1; j < n; j++) {
        if (z[j] > z[best]) best = j;
    }
    return (int32_t)best;
}

/* argmax of exp(z) / (-ln u)^T, in logarithms, which cannot overflow. -ln(-ln u) stays below 36.8 for every double u < 1, so most
 * columns cannot win and need no random number. */
static int32_t draw_gumbel(const float *z, int64_t n, double temperature, const dllm_key *key, const double *noise)
{
    double highest = -INFINITY;
    int64_t best = 0, block = -1;
    uint32_t w[4];
    for (int64_t j = 0; j < n; j++) {
        if ((double)z[j] + temperature * 36.8 < highest) continue;
        if (!noise && j / 2 != block) dllm_random(w, key, DLLM_USE_TOKEN, (uint32_t)(block = j / 2));
        const double u = noise ? noise[j] : dllm_uniform_of(w[j % 2 * 2], w[j % 2 * 2 + 1]);
        const double noisy = (double)z[j] - temperature * log(-log(u));
        if (noisy > highest) {
            highest = noisy;
            best = j;
        }
    }
    return (int32_t)best;
}

/* One sample of softmax(z): argmax of p / q, q ~ Exp(1). Our own q is at least 1.16e-10, e^-22.9, so here, too, most columns cannot
 * win. */
static int32_t draw_categorical(const float *z, int64_t n, float highest, const dllm_key *key, const float *noise)
{
    float most = -1, floor = highest - 104; /* where expf gives 0 */
    int64_t best = 0, block = -1;
    uint32_t w[4];
    for (int64_t j = 0; j < n; j++) {
        if (z[j] < floor) continue;
        if (!noise && j / 4 != block) dllm_random(w, key, DLLM_USE_TOKEN, (uint32_t)(block = j / 4));
        const float q = noise ? noise[j] : dllm_exponential_of(w[j % 4]);
        const float ratio = expf(z[j] - highest) / q;
        if (ratio > most) {
            most = ratio;
            best = j;
            if (!noise) floor = fmaxf(floor, highest + logf(ratio) - 23);
        }
    }
    return (int32_t)best;
}

/* ---- a heap of columns, largest logit on top, the lower column first among equals ------------------------------------------- */
static bool above(const float *z, int32_t a, int32_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); }

static void sink(const float *z, int32_t *heap, int64_t n, int64_t i)
{
    const int32_t moved = heap[i];
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && above(z, heap[child + 1], heap[child])) child++;
        if (above(z, moved, heap[child])) break;
        heap[i] = heap[child];
    }
    heap[i] = moved;
}

static int32_t pop(const float *z, int32_t *heap, int64_t *n)
{
    const int32_t top = heap[0];
    heap[0] = heap[--*n];
    if (*n > 0) sink(z, heap, *n, 0);
    heap[*n] = top; /* what was popped lies behind the heap, in order from the end */
    return top;
}

static double sum_exp(const float *z, int64_t n, float highest)
{
    double sum = 0;
    for (int64_t j = 0; j < n; j++) sum += (double)expf(z[j] - highest);
    return sum;
}

/* Pops columns not below `floor` until both filters are satisfied. Returns how many of the m in the heap are left; -1: none, and
 * not enough. */
static int64_t pop_kept(const float *z, int64_t n, const dllm_sampling *how, int32_t *heap, float floor, double total, int64_t *m)
{
    *m = 0;
    for (int64_t j = 0; j < n; j++) {
        if (!(z[j] < floor)) heap[(*m)++] = (int32_t)j; /* a NaN is kept */
    }
    for (int64_t j = *m / 2 - 1; j >= 0; j--) sink(z, heap, *m, j);
    int64_t left = *m;
    float reached = 0, last = z[heap[0]];
    const float highest = last;
    while (left > 0) {
        const int64_t kept = *m - left;
        if (how->top_p < 1 && reached > how->top_p) return left;
        if (how->top_k > 0 && kept >= how->top_k && z[heap[0]] < last) return left;
        last = z[pop(z, heap, &left)];
        reached += (float)((double)expf(last - highest) / total);
    }
    return *m == n || (how->top_p < 1 && reached > how->top_p) || (how->top_k > 0 && *m >= how->top_k) ? 0 : -1;
}

/* top-p then top-k: columns leave the heap from the largest down until both filters are satisfied; the rest become the lowest
 * finite number. The first column above p is kept, and so is everything equal to the k-th. The heap begins with the few columns
 * near the top. */
static void filter(float *z, int64_t n, const dllm_sampling *how, int32_t *heap)
{
    const float highest = z[argmax(z, n)];
    const double total = how->top_p < 1 ? sum_exp(z, n, highest) : 1;
    int64_t left = -1, m = 0;
    float floor = highest;
    for (float depth = 8; left < 0; depth *= 4) {
        floor = highest - depth;
        left = pop_kept(z, n, how, heap, floor, total, &m);
    }
    for (int64_t j = 0; j < left; j++) z[heap[j]] = -FLT_MAX;
    for (int64_t j = 0; j < n; j++) {
        if (z[j] < floor) z[j] = -FLT_MAX;
    }
}

/* ---- scores ----------------------------------------------------------------------------------------------------------------- */
static float margin(const float *z, int64_t n, float highest, double total)
{
    float first = -INFINITY, second = -INFINITY;
    for (int64_t j = 0; j < n; j++) {
        if (z[j] > first) {
            second = first;
            first = z[j];
        } else if (z[j] > second) {
            second = z[j];
        }
    }
    return (float)((double)expf(first - highest) / total) - (float)((double)expf(second - highest) / total);
}

static float negative_entropy(const float *z, int64_t n, float highest, double total)
{
    double sum = 0;
    for (int64_t j = 0; j < n; j++) {
        const double p = exp((double)z[j] - (double)highest) / total;
        if (p > 0) sum += p * log(p);
    }
    return (float)sum;
}

int32_t dllm_draw_c(float *z, int64_t n, const dllm_sampling *how, const dllm_key *key, const void *noise, int32_t *heap)
{
    if (how->gumbel) return how->temperature > 0 ? draw_gumbel(z, n, (double)how->temperature, key, noise) : argmax(z, n);
    if (how->temperature > 0) {
        for (int64_t j = 0; j < n; j++) z[j] /= how->temperature;
    }
    if (dllm_filters(how, n)) filter(z, n, how, heap);
    const int32_t best = argmax(z, n);
    return how->temperature > 0 && !how->argmax ? draw_categorical(z, n, z[best], key, noise) : best;
}

static float score_row(const float *z, int64_t n, const dllm_sampling *how, const dllm_key *key, float prob, float highest,
                       double total)
{
    switch (how->score) {
    case DLLM_SCORE_MARGIN:
        return margin(z, n, highest, total);
    case DLLM_SCORE_ENTROPY:
        return negative_entropy(z, n, highest, total);
    case DLLM_SCORE_RANDOM:
        return dllm_uniform(key, DLLM_USE_REMASK);
    default:
        return prob;
    }
}

void dllm_predict_c(dllm_device *d, int32_t *token, float *score, float *prob, dllm_mat logits, int32_t n, const dllm_sampling *how,
                    const dllm_key *keys, const void *noise, const int32_t *noise_rows)
{
    const int64_t vocab = logits.cols;
    for (int32_t i = 0; i < n; i++) {
        float *z = dllm_at(logits, i);
        const size_t skip = noise ? (size_t)noise_rows[i] * (size_t)vocab * (how->gumbel ? 8 : 4) : 0;
        for (int32_t b = 0; b < how->n_banned; b++) z[how->banned[b]] = -INFINITY;
        token[i] = dllm_draw_c(z, vocab, how, &keys[i], noise ? (const char *)noise + skip : NULL, d->scratch);
        for (int32_t b = 0; b < how->n_unscored; b++) z[how->unscored[b]] = -INFINITY;
        const float highest = z[argmax(z, vocab)];
        const double total = sum_exp(z, vocab, highest);
        prob[i] = (float)((double)expf(z[token[i]] - highest) / total);
        score[i] = score_row(z, vocab, how, &keys[i], prob[i], highest, total);
    }
}

/* Scratch: what linear and predict need, then one row of logits. */
void dllm_head_predict_c(dllm_device *d, int32_t *token, float *score, float *prob, dllm_mat x, dllm_rows rows, dllm_mat w,
                         const dllm_sampling *how, const dllm_key *keys)
{
    float *row = (float *)d->scratch + (x.cols > w.rows ? x.cols : w.rows);
    const dllm_mat logits = { .data = row, .rows = 1, .cols = w.rows, .stride = w.rows, .dtype = DLLM_F32 };
    for (int32_t i = 0; i < rows.n; i++) {
        const dllm_rows one = { .first = dllm_row(rows, i), .n = 1 };
        dllm_linear_c(d, logits, (dllm_rows){ .n = 1 }, x, one, w, (dllm_mat){ 0 });
        dllm_predict_c(d, token + i, score + i, prob + i, logits, 1, how, &keys[i], NULL, NULL);
    }
}

void dllm_nll_c(dllm_device *d, float *out, dllm_mat logits, const int32_t *target, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        const float *z = dllm_at(logits, i);
        const float highest = z[argmax(z, logits.cols)];
        out[i] = (float)(log(sum_exp(z, logits.cols, highest)) + (double)highest - (double)z[target[i]]);
    }
}
