/* Which rows have the highest scores, and which have turned. */
#include "../pick.h"
#include "c.h"

/* The k-th largest of n numbers, by quickselect; x is shuffled. */
static uint32_t kth_largest(uint32_t *x, int32_t n, int32_t k)
{
    int32_t lo = 0, hi = n - 1;
    while (lo < hi) {
        const uint32_t pivot = x[lo + (hi - lo) / 2];
        int32_t i = lo, j = hi;
        while (i <= j) {
            while (x[i] > pivot) i++;
            while (x[j] < pivot) j--;
            if (i <= j) {
                const uint32_t t = x[i];
                x[i++] = x[j];
                x[j--] = t;
            }
        }
        if (k - 1 <= j) hi = j;
        else if (k - 1 >= i) lo = i;
        else break;
    }
    return x[k - 1];
}

/* key: room for two numbers a score. */
static void pick_one(int32_t *out, const float *score, const dllm_pick *p, uint32_t *key)
{
    const int32_t n = dllm_pick_count(p);
    uint32_t *shuffled = key + n, limit = 0;
    int32_t ties = p->take;
    if (p->take < n) {
        for (int32_t i = 0; i < n; i++) key[i] = shuffled[i] = dllm_pick_key(p, score, i);
        limit = kth_largest(shuffled, n, p->take);
        for (int32_t i = 0; i < n; i++) ties -= key[i] > limit;
    }
    for (int32_t i = 0; i < n; i++) {
        if (p->take < n && !(key[i] > limit) && !(key[i] == limit && ties-- > 0)) continue;
        *out++ = p->add + dllm_pick_index(p, i);
    }
}

void dllm_pick_c(dllm_device *d, int32_t *out, const float *score, const dllm_pick *picks, int n)
{
    for (int i = 0; i < n; i++) {
        if (picks[i].take > 0) pick_one(out + picks[i].to, score, &picks[i], d->scratch);
    }
}

/* Rows that turned and the others go behind those of the turns before it. */
static void turn_one(dllm_turned out, const float *score, const dllm_turn *t, int at, const int32_t *held)
{
    int32_t *rows = out.rows + out.count[0], *rest = out.rest + out.count[1];
    int32_t n = 0, n_rest = 0, read = 0, read_rest = 0;
    for (int32_t i = 0; i < t->n; i++) {
        const int32_t row = t->first + i, late = row >= t->read_from;
        if (dllm_turns(t, score, held, i)) {
            rows[n++] = row;
            read += late;
        } else {
            rest[n_rest++] = row;
            read_rest += late;
        }
    }
    out.exact[at] = (dllm_span){ out.count[0] + n - read, read, t->k_first, t->n_keys };
    out.delta[at] = (dllm_span){ out.count[1] + n_rest - read_rest, read_rest, t->k_first, t->n_keys };
    out.columns[at] = (dllm_columns){ out.count[0], n };
    out.told[at][0] = n;
    out.told[at][1] = read;
    out.count[0] += n;
    out.count[1] += n_rest;
}

void dllm_turn_c(dllm_device *d, dllm_turned out, const float *score, const dllm_turn *turns, int n, const int32_t *held)
{
    if (n) out.count[0] = out.count[1] = 0;
    for (int i = 0; i < n; i++) turn_one(out, score, &turns[i], i, held);
}
