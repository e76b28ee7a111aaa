/* Cases of pick: the rows of a trial are its picks. */
#include <math.h>

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
static void fill_scores(dllm_trial *t, int32_t values)
{
    static const double odd[] = { 0, -0.0, INFINITY, -INFINITY, NAN };
    for (int64_t r = 0; r < t->array[PICK_SCORES].rows; r++) {
        for (int64_t c = 0; c < t->array[PICK_SCORES].cols; c++) {
            const int32_t which = dllm_trial_below(t->checker, 20);
            const double x = (dllm_trial_below(t->checker, values) + 1) * 1.9 / values - 1;
            dllm_trial_set(t, PICK_SCORES, r, c, which < 5 ? odd[which] : x);
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
        fill_scores(&t, s->values);
        dllm_trial_end(&t);
    }
}
