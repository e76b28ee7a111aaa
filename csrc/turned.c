/* turned.c: rows that go on as changed because their attention contexts turned. A kernel finds them; the host asks for everything that is
 * done with them without knowing which they are, nor, where the device's memory is not its own, how many. */
#include <math.h>

#include "session.h"

/* Does a sequence ask how much its contexts turned? */
static bool asks(const dllm_session *s, int b)
{
    return s->strategy->after_context && s->layer_rows[b].out.n > 0 && !s->plans[b].full;
}

bool dllm_asks_contexts(const dllm_session *s)
{
    for (int b = 0; b < s->n_sequences; b++)
        if (asks(s, b)) return true;
    return false;
}

/* A set that a kernel wrote: at most n rows, of which the host knows the number only where it can see it. */
static dllm_rows written_set(const dllm_session *s, const int32_t *idx, int32_t n, const int32_t *count)
{
    if (dllm_is_host(&s->device)) return (dllm_rows){ .idx = idx, .n = *count };
    return (dllm_rows){ .idx = idx, .n = n, .count = count };
}

/* The least that is not below x: the same floats are below both. */
static float least_float(double x)
{
    const float f = (float)x;
    return (double)f < x ? nextafterf(f, INFINITY) : f;
}

/* What a sequence has to say about its rows, whose comparisons begin at `score`, for the next layer. */
static dllm_turn turn_of(dllm_session *s, int b, int32_t score, int32_t *held, int32_t *n_held)
{
    dllm_sequence *q = &s->sequences[b];
    const dllm_plan *p = &s->plans[b];
    const dllm_rows rows = s->layer_rows[b].out; /* a range */
    dllm_due due = { .limit = INFINITY };
    if (asks(s, b)) s->strategy->after_context(s, q, &due);
    const dllm_turn t = { .first = q->first + rows.first,
                          .n = rows.n,
                          .score = score,
                          .limit = least_float(due.limit),
                          .held = *n_held,
                          .n_held = due.held.n,
                          .all = p->full,
                          .read_from = q->first + dllm_first_read(s, b, s->layer + 1),
                          .k_first = (int32_t)(dllm_first_slot(s, b) + s->kept_slots),
                          .n_keys = p->n_keys };
    for (int32_t i = 0; i < due.held.n; i++) held[(*n_held)++] = q->first + dllm_row(due.held, i);
    return t;
}

static void watch(dllm_session *s)
{
    if (!s->chosen) return;
    dllm_wait(s);
    for (int32_t b = 0, at = 0, score = 0; b < s->n_sequences; b++) {
        const dllm_sequence *q = &s->sequences[b];
        const int32_t n = s->turned.told[b][0];
        if (asks(s, b)) {
            dllm_watch_chosen(s, q, (dllm_rows){ .idx = s->turned.rows + at, .first = -q->first, .n = n });
            dllm_watch_seen(s, q, s->layer_rows[b].out, s->similarity + score);
        }
        at += n;
        score += s->layer_rows[b].out.n;
    }
}

void dllm_choose_turned(dllm_session *s, dllm_rows rows)
{
    dllm_turn *turns = dllm_room_for(s, s->n_sequences, sizeof *turns);
    int32_t *held = dllm_room(s, s->rows), n_held = 0;
    for (int32_t b = 0, score = 0; b < s->n_sequences; b++) {
        turns[b] = turn_of(s, b, score, held, &n_held);
        score += turns[b].n;
    }
    s->turned.told = s->told + dllm_layer_index(s) * s->n_sequences;
    s->device.ops->turn(&s->device, s->turned, s->similarity, turns, s->n_sequences, held);
    s->turned_rows = written_set(s, s->turned.rows, rows.n, &s->turned.count[0]);
    s->turned_rest = written_set(s, s->turned.rest, rows.n, &s->turned.count[1]);
    watch(s);
}

dllm_spans dllm_turned_spans(const dllm_session *s, dllm_set set)
{
    dllm_spans all = { .at = set == DLLM_SET_DELTA ? s->turned.delta : s->turned.exact, .columns = s->turned.columns };
    all.n = s->n_sequences;
    for (int b = 0; b < s->n_sequences; b++) {
        const int32_t queries = s->layer_rows[b].q.n, keys = s->plans[b].n_keys;
        if (queries > all.most_queries) all.most_queries = queries;
        if (keys > all.most_keys) all.most_keys = keys;
    }
    return all;
}
