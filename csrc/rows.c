/* rows.c: row sets. A set that is a range stays one, so that kernels need no gather. */
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
    case DLLM_SET_Q:
        return r->q;
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

int64_t dllm_layer_index(const dllm_session *s) { return (int64_t)s->branch * s->model->config.layers + s->layer; }

/* Where slot 0 of a sequence lies in keys and values: what layers keep comes first, then the rows that pass and are forgotten. */
int64_t dllm_first_slot(const dllm_session *s, int b)
{
    if (s->plans[b].store) return dllm_layer_index(s) * s->kept_slots + s->sequences[b].slot;
    return (int64_t)s->branches * s->model->config.layers * s->kept_slots + s->sequences[b].first;
}

/* Rows of the batch as slots, where every row has one that outlives the pass. */
static dllm_rows at_slots(const dllm_session *s, dllm_rows rows)
{
    rows.first += (int32_t)(dllm_layer_index(s) * s->kept_slots);
    return rows;
}

/* A sequence's set, as rows of the batch or as slots of keys and values. */
static dllm_rows set_at(const dllm_session *s, int b, dllm_set which, bool slots)
{
    dllm_rows set = set_of(&s->layer_rows[b], which);
    set.first += (int32_t)(slots ? dllm_first_slot(s, b) + s->plans[b].slot_shift : s->sequences[b].first);
    return set;
}

/* Do ranges touch, or row numbers that kernels wrote, and that the host cannot see, lie one behind the other? */
static bool goes_on(const dllm_session *s, dllm_rows a, dllm_rows b)
{
    if (b.idx && !dllm_is_picked(s, b)) return false;
    if (a.n == 0) return true;
    return a.idx ? b.idx == a.idx + a.n && b.first == a.first : !b.idx && b.first == a.first + a.n;
}

/* Sets of all sequences that the layer before, or for the feed-forward network this one, left to a kernel; or NULL. */
static const dllm_rows *turned_set(const dllm_session *s, dllm_set which)
{
    switch (which) {
    case DLLM_SET_V:
    case DLLM_SET_K:
    case DLLM_SET_EXACT:
        return s->follows ? &s->turned_rows : NULL;
    case DLLM_SET_DELTA:
        return s->follows ? &s->turned_rest : NULL;
    case DLLM_SET_FFN:
        return s->asks ? &s->turned_rows : NULL;
    default:
        return NULL;
    }
}

static dllm_rows pack(dllm_session *s, dllm_set which, bool slots)
{
    const dllm_rows *turned = turned_set(s, which);
    if (turned) return slots ? at_slots(s, *turned) : *turned;
    dllm_rows all = { 0 };
    bool whole = true;
    for (int b = 0; b < s->n_sequences; b++) {
        const dllm_rows set = set_at(s, b, which, slots);
        if (set.n == 0) continue;
        whole = whole && goes_on(s, all, set);
        if (all.n == 0) all = set;
        else all.n += set.n;
    }
    if (whole) return all;
    int32_t *const numbers = dllm_room(s, all.n), *next = numbers;
    for (int b = 0; b < s->n_sequences; b++) {
        const dllm_rows set = set_at(s, b, which, slots);
        for (int32_t i = 0; i < set.n; i++) *next++ = dllm_row(set, i);
    }
    return (dllm_rows){ .idx = numbers, .n = all.n };
}

dllm_rows dllm_pack(dllm_session *s, dllm_set which) { return pack(s, which, false); }

dllm_rows dllm_pack_slots(dllm_session *s, dllm_set which) { return pack(s, which, true); }

dllm_rows dllm_kept_rows(const dllm_session *s, dllm_rows packed, unsigned output)
{
    if (s->strategy->keeps & output) packed.first += (int32_t)(dllm_layer_index(s) * s->rows);
    return packed;
}
