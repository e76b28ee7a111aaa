/* logits.c: logits of all rows, where the caller wants them: in the host's memory, 64 rows at a time, or on the session's GPU, where the head
 * writes them into the caller's matrix and nothing passes the host. */
#include <stdlib.h>
#include <string.h>

#include "session.h"

static void put_row(dllm_mat out, int64_t row, const float *from)
{
    void *to = dllm_at(out, row);
    for (int64_t j = 0; j < out.cols; j++) dllm_put(to, out.dtype, j, from[j]);
}

/* Which row of final goes to which row of the caller's, and behind them the rows of the caller's that get none. Kernels read both. */
typedef struct {
    int32_t *from, *to;
    int32_t n, all;
    bool straight; /* row i goes to row i */
} landing;

/* Rows [first, first + n) of the list. */
static dllm_rows part(const int32_t *list, int32_t first, int32_t n) { return (dllm_rows){ .idx = list + first, .n = n }; }

static int plan_landing(const dllm_session *s, landing *l, const int32_t *at, bool shifted)
{
    for (int32_t i = 0; i < l->all; i++) l->to[i] = -1; /* for a moment: what comes to each row of the caller's */
    for (int32_t i = 0; i < l->n; i++) {
        const int32_t r = at ? at[i] : i;
        FAIL_IF(r < 0 || r >= l->all, DLLM_E_VALUE, "row %d of logits goes to row %d of %d", i, r, l->all);
        FAIL_IF(l->to[r] >= 0, DLLM_E_VALUE, "rows %d and %d of logits both go to row %d", l->to[r], i, r);
        l->to[r] = i;
    }
    int32_t empty = l->n;
    for (int32_t r = 0; r < l->all; r++)
        if (l->to[r] < 0) l->from[empty++] = r;
    for (int32_t i = 0; i < l->n; i++) l->to[i] = at ? at[i] : i;
    for (int32_t i = l->n; i < l->all; i++) {
        l->to[i] = l->from[i];
        l->from[i] = l->from[l->n]; /* one of them is cleared, the others are copies of it */
    }
    for (int32_t i = 0; i < l->n; i++) l->from[i] = dllm_speaker(s, i, shifted);
    l->straight = !at && !(shifted && s->model->config.shift_logits);
    return 0;
}

static void land_on_host(dllm_session *s, dllm_mat out, const landing *l)
{
    for (int32_t at = 0; at < l->n; at += DLLM_HEAD_ROWS) {
        const int32_t n = l->n - at < DLLM_HEAD_ROWS ? l->n - at : DLLM_HEAD_ROWS;
        dllm_head(s, part(l->from, at, n));
        for (int32_t i = 0; i < n; i++) put_row(out, l->to[at + i], dllm_logits_row(s, i));
    }
    for (int32_t i = l->n; i < l->all; i++) memset(dllm_at(out, l->to[i]), 0, (size_t)out.cols * dllm_dtype_size(out.dtype));
}

/* The head writes where the caller wants it, all rows at once; guidance takes a few rows at a time from one place to the other. */
static void land_on_gpu(dllm_session *s, dllm_mat out, const landing *l)
{
    dllm_device *d = &s->device;
    for (int32_t at = 0; s->branches > 1 && at < l->n; at += DLLM_HEAD_ROWS) {
        const int32_t n = l->n - at < DLLM_HEAD_ROWS ? l->n - at : DLLM_HEAD_ROWS;
        dllm_head(s, part(l->from, at, n));
        d->ops->copy(d, out, part(l->to, at, n), s->logits[0], dllm_range(0, n));
    }
    if (s->branches > 1) return;
    const dllm_rows all = dllm_range(0, l->n);
    dllm_enter(s, DLLM_STAGE_HEAD);
    d->ops->linear(d, out, l->straight ? all : part(l->to, 0, l->n), s->final[0], l->straight ? all : part(l->from, 0, l->n),
                   s->model->weights.head, (dllm_mat){ 0 });
    dllm_count_head(s, l->n, true);
}

static int clear_on_gpu(dllm_session *s, dllm_mat out, const landing *l)
{
    dllm_device *d = &s->device;
    const size_t bytes = (size_t)out.cols * dllm_dtype_size(out.dtype);
    if (l->n == l->all) return 0;
    void *zeros = calloc(1, bytes);
    FAIL_IF(!zeros, DLLM_E_MEMORY, "logits: out of memory for a row of %zu bytes", bytes);
    d->ops->copy_in(d, dllm_at(out, l->to[l->n]), zeros, bytes);
    free(zeros);
    const int32_t others = l->all - l->n - 1;
    d->ops->copy(d, out, part(l->to, l->n + 1, others), out, part(l->from, l->n + 1, others));
    return 0;
}

static int land(dllm_session *s, dllm_mat out, landing *l, const int32_t *at, bool shifted)
{
    const int place = dllm_device_place(&s->device, out.data);
    const bool host = place < 0;
    FAIL_IF(!host && place != s->device.index, DLLM_E_VALUE, "logits: their place is on GPU %d, the session on %s", place,
            s->device.name);
    FAIL_IF(!host && s->branches > 1 && out.dtype != DLLM_F32, DLLM_E_TYPE, "guided logits on %s are float32, not %s",
            s->device.name, dllm_dtype_name(out.dtype));
    TRY(plan_landing(s, l, at, shifted));
    if (host || s->branches > 1) TRY(dllm_need_logits(s));
    TRY(dllm_pass(s));
    if (host) land_on_host(s, out, l);
    else land_on_gpu(s, out, l);
    if (!host) TRY(clear_on_gpu(s, out, l));
    s->n_candidates = 0;
    dllm_finish(s);
    return dllm_check_device(s);
}

int dllm_session_logits_at(dllm_session *s, dllm_mat out, const int32_t *at, bool shifted)
{
    const dllm_ops *op = s->device.ops;
    FAIL_IF(out.rows < s->rows || out.rows > INT32_MAX || out.cols != s->model->config.vocab, DLLM_E_VALUE,
            "logits [%lld, %lld] wanted, the session gives [%lld, %d]", (long long)out.rows, (long long)out.cols,
            (long long)s->rows, s->model->config.vocab);
    FAIL_IF(out.dtype != DLLM_F32 && out.dtype != s->model->act, DLLM_E_TYPE, "logits in %s: float32 or %s expected",
            dllm_dtype_name(out.dtype), dllm_dtype_name(s->model->act));
    const size_t bytes = 2 * (size_t)out.rows * sizeof(int32_t);
    landing l = { .from = op->alloc_shared(&s->device, bytes), .n = (int32_t)s->rows, .all = (int32_t)out.rows };
    FAIL_IF(!l.from, DLLM_E_MEMORY, "logits: out of memory for row numbers: %zu bytes", bytes);
    l.to = l.from + out.rows;
    const int status = land(s, out, &l, at, shifted);
    op->free_shared(&s->device, l.from);
    return status;
}

int dllm_session_logits(dllm_session *s, dllm_mat out, bool shifted)
{
    FAIL_IF(out.rows != s->rows, DLLM_E_VALUE, "logits [%lld, %lld] wanted, the session gives [%lld, %d]", (long long)out.rows,
            (long long)out.cols, (long long)s->rows, s->model->config.vocab);
    return dllm_session_logits_at(s, out, NULL, shifted);
}
