/* Bidirectional attention of packed sequences, for any dtype and head: a warp takes one head of one query and walks over the keys, 32 at
 * a time, a lane a key. What it knows is always relative to the greatest score so far. */
#include "attention.h"

enum { LANES = 32 };

/* In shared memory: the query, what is summed, the weights of 32 keys. */
struct head_state {
    float *q, *sum, *p;
    float highest, total; /* total: this lane's share */
};

__device__ static float score(const attention_job &job, const head_state &s, const char *key)
{
    float dot = 0;
    for (int32_t c = 0; c < job.head_dim; c += 8) {
        const eight k = load8(key, job.k.dtype, c, job.head_dim);
        for (int i = 0; i < 8 && c + i < job.head_dim; i++) dot += s.q[c + i] * k.v[i];
    }
    return dot * job.scale;
}

/* Takes up the scores of the next 32 keys: the lane's weight, before rounding; *fade is what earlier sums shrink by. */
__device__ static float weigh(head_state *s, float x, bool there, float *fade)
{
    const float before = s->highest;
    s->highest = fmaxf(before, warp_reduce(there ? x : -INFINITY, larger));
    *fade = expf(before - s->highest);
    const float e = there ? expf(x - s->highest) : 0;
    s->total = s->total * *fade + e;
    return e;
}

/* Adds p_j v_j of n keys, whose values are rows `first` and on of v. */
__device__ static void add_values(const attention_job &job, head_state *s, int64_t first, int n, int32_t kv_head, float fade)
{
    for (int32_t c = (int32_t)threadIdx.x; c < job.head_dim; c += LANES) {
        float sum = s->sum[c] * fade;
        for (int j = 0; j < n; j++) sum += s->p[j] * get(head_at(job.v, first + j, kv_head, job.head_dim), job.v.dtype, c);
        s->sum[c] = sum;
    }
}

__device__ static head_state begin(const attention_job &job, float *room, int32_t row, int32_t h)
{
    const head_state s = { room, room + job.head_dim, room + 2 * job.head_dim, -INFINITY, 0 };
    const char *q = head_at(job.q, row, h, job.head_dim);
    for (int32_t c = (int32_t)threadIdx.x; c < job.head_dim; c += LANES) {
        s.q[c] = get(q, job.q.dtype, c);
        s.sum[c] = 0;
    }
    __syncwarp();
    return s;
}

/* Block (query, head, span) */
static __global__ void attend_any(attention_job job)
{
    DLLM_SHARED(float, room);
    const dllm_span span = job.spans.at[blockIdx.z];
    if ((int32_t)blockIdx.x >= span.n_q) return;
    const int32_t row = dllm_row(job.rows, span.q_first + (int32_t)blockIdx.x), h = (int32_t)blockIdx.y,
                  kv = h / (job.heads / job.kv_heads);
    head_state s = begin(job, room, row, h);
    for (int32_t first = 0; first < span.n_keys; first += LANES) {
        const int32_t key = first + (int32_t)threadIdx.x, n = span.n_keys - first < LANES ? span.n_keys - first : LANES;
        const bool there = key < span.n_keys;
        float fade;
        const float x = there ? score(job, s, head_at(job.k, span.k_first + key, kv, job.head_dim)) : 0;
        s.p[threadIdx.x] = round_to(weigh(&s, x, there, &fade), job.q.dtype);
        __syncwarp();
        add_values(job, &s, (int64_t)span.k_first + first, n, kv, fade);
        __syncwarp();
    }
    const float total = warp_reduce(s.total, sum_of<float>);
    void *to = (void *)head_at(job.out, row, h, job.head_dim);
    for (int32_t c = (int32_t)threadIdx.x; c < job.head_dim; c += LANES)
        put(to, job.out.dtype, c, span.n_keys ? s.sum[c] / total : 0);
}

/* First over all keys, for the greatest score and the sum of weights; then over the changed ones alone. */
static __global__ void attend_delta_any(attention_job job)
{
    DLLM_SHARED(float, room);
    const dllm_span span = job.spans.at[blockIdx.z];
    const dllm_columns columns = job.spans.columns[blockIdx.z];
    if ((int32_t)blockIdx.x >= span.n_q) return;
    const int32_t i = span.q_first + (int32_t)blockIdx.x, row = dllm_row(job.rows, i), h = (int32_t)blockIdx.y,
                  kv = h / (job.heads / job.kv_heads);
    head_state s = begin(job, room, row, h);
    float fade;
    for (int32_t first = 0; columns.n && first < span.n_keys; first += LANES) {
        const int32_t key = first + (int32_t)threadIdx.x;
        const bool there = key < span.n_keys;
        weigh(&s, there ? score(job, s, head_at(job.k, span.k_first + key, kv, job.head_dim)) : 0, there, &fade);
    }
    for (int32_t first = 0; first < columns.n; first += LANES) {
        const int32_t at = columns.first + first, n = columns.n - first < LANES ? columns.n - first : LANES;
        if ((int32_t)threadIdx.x < n) {
            const int32_t slot = dllm_row(job.changed, at + (int32_t)threadIdx.x);
            const float e = expf(score(job, s, head_at(job.k, slot, kv, job.head_dim)) - s.highest);
            s.p[threadIdx.x] = round_to(e, job.q.dtype);
        }
        __syncwarp();
        add_values(job, &s, at, n, kv, 1);
        __syncwarp();
    }
    const float total = warp_reduce(s.total, sum_of<float>);
    const char *old = head_at(job.old, dllm_row(job.old_rows, i), h, job.head_dim);
    void *to = (void *)head_at(job.out, row, h, job.head_dim);
    for (int32_t c = (int32_t)threadIdx.x; c < job.head_dim; c += LANES)
        put(to, job.out.dtype, c, get(old, job.old.dtype, c) + (columns.n ? s.sum[c] / total : 0));
}

static void run(dllm_device *d, attention_job job, bool delta)
{
    job.head_dim = (int32_t)(job.q.cols / job.heads);
    job.scale = (float)(1 / sqrt((double)job.head_dim));
    if (job.spans.n == 0 || job.spans.most_queries == 0 || dllm_attend_mma(d, job, delta)) return;
    const dim3 grid((unsigned)job.spans.most_queries, (unsigned)job.heads, (unsigned)job.spans.n);
    const size_t room = (size_t)(2 * job.head_dim + LANES) * sizeof(float);
    if (delta) launch(d, "attend_delta", attend_delta_any, grid, LANES, room, job);
    else launch(d, "attend", attend_any, grid, LANES, room, job);
}

void dllm_attend_cuda(dllm_device *d, dllm_mat out, dllm_mat q, dllm_rows rows, dllm_mat k, dllm_mat v, dllm_spans spans,
                      int32_t heads, int32_t kv_heads)
{
    attention_job job = {};
    job.out = out, job.q = q, job.k = k, job.v = v, job.rows = rows;
    job.spans = spans, job.heads = heads, job.kv_heads = kv_heads;
    run(d, job, false);
}

void dllm_attend_delta_cuda(dllm_device *d, dllm_mat out, dllm_mat q, dllm_rows rows, dllm_mat old, dllm_rows old_rows, dllm_mat k,
                            dllm_mat dv, dllm_rows changed, dllm_spans spans, int32_t heads, int32_t kv_heads)
{
    attention_job job = {};
    job.out = out, job.old = old, job.q = q, job.k = k, job.v = dv;
    job.rows = rows, job.old_rows = old_rows, job.changed = changed;
    job.spans = spans, job.heads = heads, job.kv_heads = kv_heads;
    run(d, job, true);
}
