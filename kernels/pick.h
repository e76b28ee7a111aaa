/* pick.h: by what the picks of every backend order scores, and which rows their turns call turned. */
#ifndef DLLM_PICK_H
#define DLLM_PICK_H
#include <string.h>

#include "ops.h"

/* Whole numbers in the order of x: NaN lowest, both zeros alike. */
DLLM_INLINE uint32_t dllm_pick_order(float x)
{
    uint32_t bits;
    if (x != x) return 0;
    x += 0.0f;
    memcpy(&bits, &x, sizeof bits);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* How many scores take part, and which is the i-th of them. */
DLLM_INLINE int32_t dllm_pick_count(const dllm_pick *p) { return p->n - p->n_gap; }

DLLM_INLINE int32_t dllm_pick_index(const dllm_pick *p, int32_t i) { return i < p->gap ? i : i + p->n_gap; }

/* What the i-th of them counts: the highest of its neighbours. */
DLLM_INLINE uint32_t dllm_pick_key(const dllm_pick *p, const float *score, int32_t i)
{
    const int32_t last = dllm_pick_count(p) - 1, half = p->pool / 2;
    uint32_t highest = 0;
    for (int32_t j = i > half ? i - half : 0; j <= (last - i > half ? i + half : last); j++) {
        const float x = score[p->first + dllm_pick_index(p, j)];
        const uint32_t key = dllm_pick_order(p->lowest ? -x : x);
        highest = key > highest ? key : highest;
    }
    return highest;
}

DLLM_INLINE bool dllm_is_held(const dllm_turn *t, const int32_t *held, int32_t row)
{
    int32_t lo = t->held, hi = t->held + t->n_held;
    while (lo < hi) {
        const int32_t middle = lo + (hi - lo) / 2;
        if (held[middle] < row) lo = middle + 1;
        else hi = middle;
    }
    return lo < t->held + t->n_held && held[lo] == row;
}

/* Did its i-th row turn? */
DLLM_INLINE bool dllm_turns(const dllm_turn *t, const float *score, const int32_t *held, int32_t i)
{
    return t->all || score[t->score + i] < t->limit || dllm_is_held(t, held, t->first + i);
}
#endif
