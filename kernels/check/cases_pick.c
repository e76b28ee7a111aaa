/* Cases of pick, whose picks are the rows of a trial, and of turn, whose turns are one row together. */
#include <math.h>
#include <string.h>

#include "trial.h"

enum { PICK_SCORES, PICK_JOBS, PICK_OUT, FIELDS = sizeof(dllm_pick) / sizeof(int32_t) };

/* `values` different scores: the fewer, the more are equal. */
typedef struct {
    int32_t picks, n, n_gap, pool, take, values;
    bool lowest;
} shape;
static const shape shapes[] = {
    { 0, 4, 0, 0, 1, 4, false },          { 1, 1, 0, 0, 1, 1, false },          { 2, 7, 0, 0, 0, 3, true },
    { 3, 7, 0, 0, 7, 3, false },          { 5, 12, 4, 3, 5, 100, false },       { 4, 33, 0, 0, 8, 1, true },
    { 3, 64, 8, 1, 28, 1000000, false },  { 6, 100, 0, 0, 25, 1000000, true },  { 2, 255, 0, 0, 254, 9, true },
    { 2, 257, 32, 5, 100, 12, false },    { 3, 300, 100, 999, 120, 50, false }, { 2, 1000, 0, 3, 1, 1000000, false },
    { 1, 2500, 32, 3, 1234, 60, false },  { 7, 600, 0, 0, 150, 1000000, true }, { 1, 1280, 32, 3, 624, 1000000, false },
    { 32, 256, 0, 0, 64, 1000000, true },
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes, N_TIMED = 2 };

/* The i-th pick has the i-th stretch of the scores and of the results; its gap, and what is added, are its own. */
static void run_pick(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    dllm_pick *picks = at[PICK_JOBS];
    for (int32_t i = 0; i < n; i++) {
        const int32_t row = first + i, scores = (int32_t)t->array[PICK_SCORES].cols, take = (int32_t)t->array[PICK_OUT].cols;
        picks[i] = (dllm_pick){ .first = row * scores,
                                .n = scores,
                                .gap = row * 7 % (scores - t->head_dim + 1),
                                .n_gap = t->head_dim,
                                .pool = t->heads,
                                .lowest = t->flag,
                                .take = take,
                                .to = row * take,
                                .add = 100 * row - 50 };
    }
    d->ops->pick(d, at[PICK_OUT], at[PICK_SCORES], picks, n);
}

/* Both zeros, both infinities, and what is no number at all, too. */
static void fill_scores(dllm_trial *t, int array, int32_t values)
{
    static const double odd[] = { 0, -0.0, INFINITY, -INFINITY, NAN };
    for (int64_t r = 0; r < t->array[array].rows; r++) {
        for (int64_t c = 0; c < t->array[array].cols; c++) {
            const int32_t which = dllm_trial_below(t->checker, 20);
            const double x = (dllm_trial_below(t->checker, values) + 1) * 1.9 / values - 1;
            dllm_trial_set(t, array, r, c, which < 5 ? odd[which] : x);
        }
    }
}

void dllm_check_pick(dllm_checker *k)
{
    for (int i = 0; i < N_SHAPES - (dllm_trial_timing(k) ? 0 : N_TIMED); i++) {
        const shape *s = &shapes[i];
        dllm_trial t;
        dllm_trial_begin(k, &t, "pick", s->picks);
        dllm_trial_name(&t, "picks %d of %d less %d pool %d take %d of %d values%s", (int)s->picks, (int)s->n, (int)s->n_gap,
                        (int)s->pool, (int)s->take, (int)s->values, s->lowest ? " lowest" : "");
        t.run = run_pick;
        t.heads = s->pool;
        t.head_dim = s->n_gap;
        t.flag = s->lowest;
        t.keys = (int64_t)s->picks * s->n;
        dllm_trial_add_shared(&t, TRIAL_IN, TRIAL_F32, s->picks, s->n);
        dllm_trial_add_shared(&t, TRIAL_WORK, TRIAL_I32, s->picks, FIELDS);
        dllm_trial_add(&t, TRIAL_OUT, TRIAL_I32, s->picks, s->take, 0);
        fill_scores(&t, PICK_SCORES, s->values);
        dllm_trial_end(&t);
    }
}

/* ---- turn ----------------------------------------------------------------------------------------------------------------------------- */
enum {
    TURN_SCORES,
    TURN_JOBS,
    TURN_HELD,
    TURN_ROWS,
    TURN_REST,
    TURN_COUNT,
    TURN_EXACT,
    TURN_DELTA,
    TURN_COLUMNS,
    TURN_TOLD,
    TURN_FIELDS = sizeof(dllm_turn) / sizeof(int32_t)
};

/* Turns of up to n rows, of which every every_all-th takes all; of its rows `held` are held. */
typedef struct {
    int32_t turns, n, every_all, held;
    float limit;
} turn_shape;
static const turn_shape turn_shapes[] = {
    { 0, 0, 1, 0, 0 },      { 1, 1, 9, 0, 0.5f },     { 1, 40, 9, 0, 0 },  { 1, 300, 9, 3, -0.9f },     { 1, 1280, 9, 0, 0.9f },
    { 2, 7, 2, 2, 0.1f },   { 3, 0, 3, 0, 0 },        { 5, 64, 9, 9, -2 }, { 4, 257, 9, 5, INFINITY },  { 6, 600, 3, 100, 0.2f },
    { 7, 30, 1, 0, -1.0f }, { 3, 1000, 9, 0, 0.95f }, { 40, 33, 9, 1, 0 }, { 2, 256, 9, 0, -INFINITY }, { 32, 256, 99, 0, 0.9f },
};
enum { N_TURN_SHAPES = sizeof turn_shapes / sizeof *turn_shapes };

static void run_turn(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n)
{
    const dllm_turned out = { .rows = at[TURN_ROWS],
                              .rest = at[TURN_REST],
                              .count = at[TURN_COUNT],
                              .exact = at[TURN_EXACT],
                              .delta = at[TURN_DELTA],
                              .columns = at[TURN_COLUMNS],
                              .told = at[TURN_TOLD] };
    d->ops->turn(d, out, at[TURN_SCORES], at[TURN_JOBS], n ? t->n_spans : 0, at[TURN_HELD]);
}

/* Every turn has the scores behind those of the turn before, and rows that begin a little further on; some are shorter. */
static void fill_turns(dllm_trial *t, const turn_shape *s)
{
    int32_t score = 0, held = 0, first = 3;
    for (int32_t i = 0; i < s->turns; i++) {
        const int32_t n = s->n - (i % 4 == 1 ? s->n / 3 : i % 4 == 3 ? s->n : 0), n_held = s->held < n ? s->held : n;
        const dllm_turn turn = {
            first, n, score, s->limit, held, n_held, i % s->every_all == s->every_all - 1, first + n / 3 * (i % 4), i * 7, n + 2 * i
        };
        int32_t fields[TURN_FIELDS];
        memcpy(fields, &turn, sizeof turn);
        for (int c = 0; c < TURN_FIELDS; c++) dllm_trial_set(t, TURN_JOBS, i, c, fields[c]);
        for (int32_t h = 0; h < n_held; h++) dllm_trial_set(t, TURN_HELD, 0, held + h, first + h * (n / n_held));
        score += n;
        held += n_held;
        first += n + i % 3;
    }
}

void dllm_check_turn(dllm_checker *k)
{
    for (int i = 0; i < N_TURN_SHAPES; i++) {
        const turn_shape *s = &turn_shapes[i];
        const int32_t some = s->turns > 0, n = s->turns > 0 ? s->turns : 1;
        dllm_trial t;
        dllm_trial_begin(k, &t, "turn", some);
        dllm_trial_name(&t, "turns %d of %d rows, %d held, all of every %d. limit %g", (int)s->turns, (int)s->n, (int)s->held,
                        (int)s->every_all, (double)s->limit);
        t.run = run_turn;
        t.n_spans = s->turns;
        dllm_trial_add(&t, TRIAL_IN, TRIAL_F32, 1, n * s->n, 0);
        dllm_trial_add_shared(&t, TRIAL_IN, TRIAL_I32, n, TURN_FIELDS);
        dllm_trial_add_shared(&t, TRIAL_IN, TRIAL_I32, 1, n * s->held);
        dllm_trial_add(&t, TRIAL_OUT, TRIAL_I32, some, n * s->n, 0);
        dllm_trial_add(&t, TRIAL_OUT, TRIAL_I32, some, n * s->n, 0);
        dllm_trial_add(&t, TRIAL_OUT, TRIAL_I32, some, 2, 0);
        for (int spans = 0; spans < 2; spans++)
            dllm_trial_add(&t, TRIAL_OUT, TRIAL_I32, some, n * (int64_t)(sizeof(dllm_span) / sizeof(int32_t)), 0);
        dllm_trial_add(&t, TRIAL_OUT, TRIAL_I32, some, n * (int64_t)(sizeof(dllm_columns) / sizeof(int32_t)), 0);
        dllm_trial_add_shared(&t, TRIAL_OUT, TRIAL_I32, some, 2 * n);
        fill_scores(&t, TURN_SCORES, 50);
        fill_turns(&t, s);
        dllm_trial_end(&t);
    }
}
