/* rows.c: row sets. A set that is a range stays one, so that kernels need no gather. */
#include "internal.h"
#include "strategy.h"

dllm_rows dllm_range(int32_t first, int32_t n) { return (dllm_rows){ .first = first, .n = n }; }

static dllm_rows set_of(const dllm_layer_rows *r, dllm_set which)
{
    switch (which) {
    case DLLM_SET_V: return r->v;
    case DLLM_SET_K: return r->k;
    case DLLM_SET_EXACT: return r->exact;
    case DLLM_SET_OUT: return r->out;
    default: return r->ffn;
    }
}

/* The sequences' sets one behind the other, each moved by base(sequence); a range if they touch. */
static dllm_rows pack(dllm_session *s, dllm_set which, int64_t (*base)(const dllm_session *s, int sequence))
{
    int32_t *const out = s->places + s->places_used;
    dllm_rows packed = { .idx = out };
    bool touching = true;
    for (int b = 0; b < s->n_sequences; b++) {
        const dllm_rows set = set_of(&s->layer_rows[b], which);
        if (set.n == 0) continue;
        const int32_t from = (int32_t)base(s, b);
        if (packed.n == 0) packed.first = from + set.first;
        touching &= !set.idx && from + set.first == packed.first + packed.n;
        for (int32_t i = 0; i < set.n; i++) out[packed.n++] = from + dllm_row(set, i);
    }
    if (touching) packed.idx = NULL;
    else s->places_used += packed.n;
    return packed;
}

static int64_t first_row(const dllm_session *s, int b) { return s->sequences[b].first; }

int64_t dllm_first_slot(const dllm_session *s, int b)
{
    const int layers = s->model->config.layers;
    const dllm_plan *p = &s->plans[b];
    const int64_t base = p->store ? (s->branch * layers + s->layer) * s->kept_slots + s->sequences[b].slot
                                  : s->branches * layers * s->kept_slots + s->sequences[b].first;
    return base + p->slot_shift;
}

dllm_rows dllm_pack_rows(dllm_session *s, dllm_set which) { return pack(s, which, first_row); }

dllm_rows dllm_pack_slots(dllm_session *s, dllm_set which) { return pack(s, which, dllm_first_slot); }
