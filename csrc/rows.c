/* rows.c: row sets. A set that is a range stays one, so that kernels need no gather. */
#include <math.h>
#include <string.h>

#include "session.h"

dllm_rows dllm_range(int32_t first, int32_t n) { return (dllm_rows){ .first = first, .n = n }; }

dllm_rows dllm_from(dllm_rows rows, int32_t first)
{
    int32_t gone = 0;
    while (gone < rows.n && dllm_row(rows, gone) < first) gone++;
    return dllm_part(rows, gone, rows.n - gone);
}

dllm_rows dllm_without(int32_t *space, dllm_rows all, dllm_rows some)
{
    dllm_rows rest = { .idx = space };
    for (int32_t i = 0, j = 0; i < all.n; i++) {
        const int32_t r = dllm_row(all, i);
        while (j < some.n && dllm_row(some, j) < r) j++;
        if (j == some.n || dllm_row(some, j) != r) space[rest.n++] = r;
    }
    return rest;
}

dllm_rows dllm_join(int32_t *space, dllm_rows a, dllm_rows b)
{
    dllm_rows both = { .idx = space };
    for (int32_t i = 0, j = 0; i < a.n || j < b.n;) {
        const int32_t x = i < a.n ? dllm_row(a, i) : INT32_MAX, y = j < b.n ? dllm_row(b, j) : INT32_MAX;
        space[both.n++] = x < y ? x : y;
        i += x <= y;
        j += y <= x;
    }
    return both;
}

/* The k-th largest of n numbers, by quickselect; x is shuffled. */
static float kth_largest(float *x, int32_t n, int32_t k)
{
    int32_t lo = 0, hi = n - 1;
    while (lo < hi) {
        const float pivot = x[lo + (hi - lo) / 2];
        int32_t i = lo, j = hi;
        while (i <= j) {
            while (x[i] > pivot) i++;
            while (x[j] < pivot) j--;
            if (i <= j) {
                const float t = x[i];
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

int32_t dllm_highest(int32_t *out, const float *score, int32_t n, int32_t k, float *space)
{
    if (k > n) k = n;
    if (k <= 0) return 0;
    memcpy(space, score, (size_t)n * sizeof *space);
    const float limit = kth_largest(space, n, k);
    int32_t ties = k, chosen = 0;
    for (int32_t i = 0; i < n; i++) ties -= score[i] > limit;
    for (int32_t i = 0; i < n; i++) {
        if (score[i] > limit || (score[i] == limit && ties-- > 0)) out[chosen++] = i;
    }
    return chosen;
}

/* ---- sets of all sequences, packed for a kernel --------------------------------------------------------------------------------------- */
static dllm_rows set_of(const dllm_layer_rows *r, dllm_set which)
{
    switch (which) {
    case DLLM_SET_NORM:
        return r->norm;
    case DLLM_SET_V:
        return r->v;
    case DLLM_SET_K:
        return r->k;
    case DLLM_SET_EXACT:
        return r->exact;
    case DLLM_SET_DELTA:
        return r->delta;
    case DLLM_SET_OUT:
        return r->out;
    case DLLM_SET_FFN:
        return r->ffn;
    default:
        return r->travel;
    }
}

/* Where slot 0 of a sequence lies in keys and values: what layers keep comes first, then the rows that pass and are forgotten. */
int64_t dllm_first_slot(const dllm_session *s, int b)
{
    const int64_t layers = s->model->config.layers;
    if (s->plans[b].store) return (s->branch * layers + s->layer) * s->kept_slots + s->sequences[b].slot;
    return s->branches * layers * s->kept_slots + s->sequences[b].first;
}

/* One set behind the other; where ranges touch, a range. */
static dllm_rows pack(dllm_session *s, dllm_set which, bool slots)
{
    int32_t *const out = dllm_room(s, 0);
    dllm_rows packed = { .idx = out };
    bool touching = true;
    for (int b = 0; b < s->n_sequences; b++) {
        const dllm_rows set = set_of(&s->layer_rows[b], which);
        if (set.n == 0) continue;
        const int32_t from = (int32_t)(slots ? dllm_first_slot(s, b) + s->plans[b].slot_shift : s->sequences[b].first);
        if (packed.n == 0) packed.first = from + set.first;
        touching &= !set.idx && from + set.first == packed.first + packed.n;
        for (int32_t i = 0; i < set.n; i++) out[packed.n++] = from + dllm_row(set, i);
    }
    if (touching) return dllm_range(packed.first, packed.n);
    dllm_room(s, packed.n);
    packed.first = 0;
    return packed;
}

dllm_rows dllm_pack(dllm_session *s, dllm_set which) { return pack(s, which, false); }

dllm_rows dllm_pack_slots(dllm_session *s, dllm_set which) { return pack(s, which, true); }

dllm_rows dllm_kept_rows(const dllm_session *s, dllm_rows packed, unsigned output)
{
    const int64_t layer = s->branch * (int64_t)s->model->config.layers + s->layer;
    if (s->strategy->keeps & output) packed.first += (int32_t)(layer * s->rows);
    return packed;
}
