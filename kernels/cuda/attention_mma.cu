/* Attention on tensor cores, for 16-bit dtypes and heads of 64 and 128 channels. A block takes one head of 64 queries of a span, a warp 16 of
 * them, and walks over the keys in tiles of 64 that stream through shared memory; sums are relative to the greatest score so far.
 *
 * The keys are cut into chunks, whose sums are joined in the order of the chunks. Where there are too few queries to fill a GPU every
 * chunk gets a block of its own and the last one joins; where there are many, one block takes all chunks: the same bits. Where only the
 * GPU knows how many queries there are, the grid has blocks for both, and they find out. */
#include "attention.h"
#include "mma.h"

enum { THREADS = 128, QUERIES = 64, KEYS = 64, CHUNK = 256, FILLS = 264 /* a GPU */ };
static constexpr int64_t MOST_PARTS = 4 * FILLS;

template <int HD> struct layout {
    union {
        uint16_t q[QUERIES * HD];     /* until every thread has its own in registers; */
        float total[HD / 2][THREADS]; /* what one block with all chunks has summed */
    };
    uint16_t k[2][KEYS * HD], v[2][KEYS * HD];
    int last;
};

/* One thread's share of a tile of queries: sums of channels for rows lane / 4 and 8 on, as mma leaves them; their greatest score, in base
 * 2, and sum of weights. */
template <int HD> struct state {
    float sum[HD / 8][4], highest[2], total[2];
};

template <dllm_dtype T, int HD, bool DELTA> struct task {
    const attention_job &job;
    layout<HD> *s;
    dllm_span span;
    dllm_columns columns;
    int32_t first, h, kv; /* first query, head, its key head */
    uint32_t q[HD / 16][4];
};

/* ---- tiles ----------------------------------------------------------------------------------------------------------------------- */
template <int HD> __device__ static void fetch_row(uint16_t *tile, int i, const char *row)
{
    constexpr int PIECES = HD / 8;
    fetch(tile + place(i / PIECES, i % PIECES, PIECES), (const uint16_t *)row, i % PIECES * 8, HD);
}

template <dllm_dtype T, int HD, bool DELTA> __device__ static void load_queries(task<T, HD, DELTA> *t)
{
    constexpr int PIECES = HD / 8;
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    for (int i = (int)threadIdx.x; i < QUERIES * PIECES; i += THREADS) {
        const int32_t r = t->first + i / PIECES, row = r < t->span.n_q ? dllm_row(t->job.rows, t->span.q_first + r) : 0;
        fetch_row<HD>(t->s->q, i, r < t->span.n_q ? head_at(t->job.q, row, t->h, HD) : nullptr);
    }
    close_group();
    wait_groups<0>();
    __syncthreads();
#pragma unroll
    for (int c = 0; c < HD / 16; c++) load_matrices(t->q[c], t->s->q + place(warp * 16 + lane % 16, 2 * c + lane / 16, PIECES));
}

/* Keys `at` and on of the span; or, of the columns that changed, keys and what their values moved. */
template <bool CHANGED, dllm_dtype T, int HD, bool DELTA>
__device__ static void fetch_tile(const task<T, HD, DELTA> &t, int stage, int32_t at)
{
    constexpr int PIECES = HD / 8;
    for (int i = (int)threadIdx.x; i < KEYS * PIECES; i += THREADS) {
        const int32_t r = at + i / PIECES;
        const bool there = r < (CHANGED ? t.columns.n : t.span.n_keys);
        const int64_t value = CHANGED ? t.columns.first + r : t.span.k_first + r;
        const int64_t key = CHANGED && there ? dllm_row(t.job.changed, (int32_t)value) : value;
        fetch_row<HD>(t.s->k[stage], i, there ? head_at(t.job.k, key, t.kv, HD) : nullptr);
        if (CHANGED || !DELTA) fetch_row<HD>(t.s->v[stage], i, there ? head_at(t.job.v, value, t.kv, HD) : nullptr);
    }
}

/* Scores of a tile in base 2; those of keys from n on are -inf. */
template <dllm_dtype T, int HD, bool DELTA>
__device__ static void score_tile(float (&p)[KEYS / 8][4], const task<T, HD, DELTA> &t, const uint16_t *keys, int32_t n)
{
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) p[i / 4][i % 4] = 0;
#pragma unroll
    for (int c = 0; c < HD / 16; c++) {
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++) {
            uint32_t b[4];
            load_matrices(b, keys + place(k * 16 + lane / 16 * 8 + lane % 8, 2 * c + lane / 8 % 2, HD / 8));
            mma<T>(p[2 * k], t.q[c], b[0], b[1]);
            mma<T>(p[2 * k + 1], t.q[c], b[2], b[3]);
        }
    }
    const float scale = t.job.scale * 1.44269504088896f;
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) p[i / 4][i % 4] = i / 4 * 8 + lane % 4 * 2 + i % 2 < n ? p[i / 4][i % 4] * scale : -INFINITY;
}

/* Scores to weights, relative to the greatest score so far: what was summed before fades. */
template <int HD> __device__ static void weigh(float (&p)[KEYS / 8][4], state<HD> *x)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float most = x->highest[r], total = 0;
#pragma unroll
        for (int i = 0; i < KEYS / 4; i++) most = fmaxf(most, p[i / 2][2 * r + i % 2]);
        most = fmaxf(most, across(most, 1));
        most = fmaxf(most, across(most, 2));
        const float fade = exp2f(x->highest[r] - most);
#pragma unroll
        for (int i = 0; i < KEYS / 4; i++) total += p[i / 2][2 * r + i % 2] = exp2f(p[i / 2][2 * r + i % 2] - most);
        x->total[r] = x->total[r] * fade + total;
        x->highest[r] = most;
#pragma unroll
        for (int i = 0; i < HD / 4; i++) x->sum[i / 2][2 * r + i % 2] *= fade;
    }
}

/* Adds the values of a tile, weighed; the weights are rounded as they enter. */
template <dllm_dtype T, int HD>
__device__ static void add_values(state<HD> *x, const float (&p)[KEYS / 8][4], const uint16_t *values)
{
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
        const uint32_t a[4] = { pack<T>(p[2 * k][0], p[2 * k][1]), pack<T>(p[2 * k][2], p[2 * k][3]),
                                pack<T>(p[2 * k + 1][0], p[2 * k + 1][1]), pack<T>(p[2 * k + 1][2], p[2 * k + 1][3]) };
#pragma unroll
        for (int c = 0; c < HD / 16; c++) {
            uint32_t b[4];
            load_matrices<true>(b, values + place(k * 16 + lane / 8 % 2 * 8 + lane % 8, 2 * c + lane / 16, HD / 8));
            mma<T>(x->sum[2 * c], a, b[0], b[1]);
            mma<T>(x->sum[2 * c + 1], a, b[2], b[3]);
        }
    }
}

/* ---- chunks ---------------------------------------------------------------------------------------------------------------------- */
/* Calls f(tile number, stage) for n tiles, while the next one is on its way. */
template <bool CHANGED, dllm_dtype T, int HD, bool DELTA, class F>
__device__ static void each_tile(const task<T, HD, DELTA> &t, int32_t at, int n, F f)
{
    if (n > 0) fetch_tile<CHANGED>(t, 0, at);
    close_group();
    for (int i = 0; i < n; i++) {
        if (i + 1 < n) fetch_tile<CHANGED>(t, (i + 1) % 2, at + (i + 1) * KEYS);
        close_group();
        wait_groups<1>();
        __syncthreads();
        f(i, i % 2);
        __syncthreads();
    }
    wait_groups<0>();
}

template <int HD> __device__ static void clear(state<HD> *x)
{
#pragma unroll
    for (int i = 0; i < HD / 2; i++) x->sum[i / 4][i % 4] = 0;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        x->highest[r] = -INFINITY;
        x->total[r] = 0;
    }
}

template <dllm_dtype T, int HD, bool DELTA> __device__ static void run_chunk(const task<T, HD, DELTA> &t, int chunk, state<HD> *x)
{
    const int32_t at = chunk * CHUNK, n = t.span.n_keys - at < CHUNK ? t.span.n_keys - at : CHUNK;
    clear(x);
    each_tile<false>(t, at, (n + KEYS - 1) / KEYS, [&](int i, int stage) {
        float p[KEYS / 8][4];
        score_tile(p, t, t.s->k[stage], n - i * KEYS);
        weigh(p, x);
        if (!DELTA) add_values<T>(x, p, t.s->v[stage]);
    });
#pragma unroll
    for (int r = 0; r < 2; r++) {
        x->total[r] += across(x->total[r], 1);
        x->total[r] += across(x->total[r], 2);
    }
}

/* What sums of chunks before, and of the next one, shrink by when they are joined; written so that no compiler fuses it in two ways. */
struct fading {
    float before[2], next[2];
};

__device__ static fading join(float (&highest)[2], float (&total)[2], const float (&next_highest)[2], const float (&next_total)[2])
{
    fading f;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float most = fmaxf(highest[r], next_highest[r]);
        f.before[r] = exp2f(highest[r] - most);
        f.next[r] = exp2f(next_highest[r] - most);
        total[r] = fmaf(total[r], f.before[r], next_total[r] * f.next[r]);
        highest[r] = most;
    }
    return f;
}

__device__ inline float join(float sum, float next, const fading &f, int i)
{
    return fmaf(sum, f.before[i % 4 / 2], next * f.next[i % 4 / 2]);
}

/* All chunks by one block: what is summed waits in shared memory. */
template <dllm_dtype T, int HD, bool DELTA> __device__ static void run_chunks(const task<T, HD, DELTA> &t, int n, state<HD> *x)
{
    float highest[2] = { -INFINITY, -INFINITY }, total[2] = { 0, 0 };
    __syncthreads(); /* nobody needs the queries there any more */
    for (int i = 0; i < HD / 2; i++) t.s->total[i][threadIdx.x] = 0;
    for (int chunk = 0; chunk < n; chunk++) {
        run_chunk(t, chunk, x);
        const fading f = join(highest, total, x->highest, x->total);
#pragma unroll
        for (int i = 0; i < HD / 2 && !DELTA; i++)
            t.s->total[i][threadIdx.x] = join(t.s->total[i][threadIdx.x], x->sum[i / 4][i % 4], f, i);
    }
#pragma unroll
    for (int i = 0; i < HD / 2; i++) x->sum[i / 4][i % 4] = t.s->total[i][threadIdx.x];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        x->highest[r] = highest[r];
        x->total[r] = total[r];
    }
}

/* One chunk by this block: leaves its sums in memory, [chunk][number][thread]; the last block to come joins all. Is this it? */
template <int HD>
__device__ static bool share_chunks(layout<HD> *s, float *parts, uint32_t *counter, int chunk, int n, state<HD> *x)
{
    enum { NUMBERS = HD / 2 + 4 };
    float *mine = parts + (int64_t)chunk * NUMBERS * THREADS + threadIdx.x;
#pragma unroll
    for (int i = 0; i < HD / 2; i++) mine[i * THREADS] = x->sum[i / 4][i % 4];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        mine[(HD / 2 + r) * THREADS] = x->highest[r];
        mine[(HD / 2 + 2 + r) * THREADS] = x->total[r];
    }
    if (!last_to_come(counter, (unsigned)n, &s->last)) return false;
    clear(x);
    for (int c = 0; c < n; c++) {
        const float *part = parts + (int64_t)c * NUMBERS * THREADS + threadIdx.x;
        const float highest[2] = { part[HD / 2 * THREADS], part[(HD / 2 + 1) * THREADS] };
        const float total[2] = { part[(HD / 2 + 2) * THREADS], part[(HD / 2 + 3) * THREADS] };
        const fading f = join(x->highest, x->total, highest, total);
#pragma unroll
        for (int i = 0; i < HD / 2; i++) x->sum[i / 4][i % 4] = join(x->sum[i / 4][i % 4], part[i * THREADS], f, i);
    }
    return true;
}

/* ---- a tile of queries ----------------------------------------------------------------------------------------------------------- */
/* The weights are known by now; only the columns that changed are looked at again. */
template <dllm_dtype T, int HD, bool DELTA> __device__ static void run_columns(const task<T, HD, DELTA> &t, state<HD> *x)
{
    each_tile<true>(t, 0, (t.columns.n + KEYS - 1) / KEYS, [&](int i, int stage) {
        float p[KEYS / 8][4];
        score_tile(p, t, t.s->k[stage], t.columns.n - i * KEYS);
#pragma unroll
        for (int j = 0; j < KEYS / 2; j++) p[j / 4][j % 4] = exp2f(p[j / 4][j % 4] - x->highest[j % 4 / 2]);
        add_values<T>(x, p, t.s->v[stage]);
    });
}

template <dllm_dtype T, int HD, bool DELTA> __device__ static void write(const task<T, HD, DELTA> &t, const state<HD> &x)
{
    const attention_job &job = t.job;
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const bool anything = DELTA ? t.columns.n > 0 : t.span.n_keys > 0;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int32_t i = t.first + warp * 16 + lane / 4 + 8 * r;
        if (i >= t.span.n_q) continue;
        void *to = (void *)head_at(job.out, dllm_row(job.rows, t.span.q_first + i), t.h, HD);
        const char *old = DELTA ? head_at(job.old, dllm_row(job.old_rows, t.span.q_first + i), t.h, HD) : nullptr;
#pragma unroll
        for (int j = 0; j < HD / 4; j++) {
            const int c = j / 2 * 8 + lane % 4 * 2 + j % 2;
            const float value = anything ? x.sum[j / 2][2 * r + j % 2] / x.total[r] : 0;
            put(to, T, c, DELTA ? get(old, T, c) + value : value);
        }
    }
}

__host__ __device__ static int tiles_of(int64_t queries) { return (int)((queries + QUERIES - 1) / QUERIES); }

/* Do so few tiles get a block for every chunk? most_parts: what sums of chunks there is room for. */
__host__ __device__ static bool share_out(int64_t items, int64_t chunks, int64_t most_parts)
{
    return chunks > 1 && items < FILLS && items * chunks <= most_parts;
}

/* Which tile of all heads and spans this block has, where only the GPU knows their queries: -1 if its block takes all chunks. */
__device__ static int find_shared(const attention_job &job, int tile, int chunks, int most_parts)
{
    int before = tile, all = 0;
    for (int z = 0; z < job.spans.n; z++) {
        const int n = tiles_of(job.spans.at[z].n_q);
        all += n;
        before += z < (int)blockIdx.z ? n : 0;
    }
    return share_out((int64_t)all * job.heads, chunks, most_parts) ? before * job.heads + (int)blockIdx.y : -1;
}

/* Block (tile of queries and, if they are shared out, chunk; head; span) */
template <dllm_dtype T, int HD, bool DELTA>
static __global__ void __launch_bounds__(THREADS)
    attend_tile(attention_job job, int shared_out, int most_parts, float *parts, uint32_t *counters)
{
    DLLM_SHARED(layout<HD>, s);
    const dllm_span span = job.spans.at[blockIdx.z];
    const dllm_columns columns = DELTA ? job.spans.columns[blockIdx.z] : dllm_columns{ 0, 0 };
    const int tile = (int)blockIdx.x / shared_out, chunk = (int)blockIdx.x % shared_out, chunks = (span.n_keys + CHUNK - 1) / CHUNK;
    task<T, HD, DELTA> t = {
        job, s, span, columns, tile * QUERIES, (int32_t)blockIdx.y, (int32_t)blockIdx.y / (job.heads / job.kv_heads), {}
    };
    const int n = DELTA && columns.n == 0 ? 0 : chunks; /* nothing moved: no weights are needed */
    if (t.first >= span.n_q || (chunk > 0 && chunk >= n)) return;
    int item = shared_out == 1 ? -1 : ((int)blockIdx.z * ((int)gridDim.x / shared_out) + tile) * job.heads + (int)blockIdx.y;
    if (item >= 0 && job.rows.count) item = find_shared(job, tile, shared_out, most_parts);
    if (item < 0 && chunk > 0) return;
    state<HD> x;
    load_queries(&t);
    if (n <= 1) run_chunk(t, 0, &x);
    else if (item < 0) run_chunks(t, n, &x);
    else {
        run_chunk(t, chunk, &x);
        if (!share_chunks(s, parts + (int64_t)item * shared_out * (HD / 2 + 4) * THREADS, counters + item, chunk, n, &x)) return;
    }
    if (DELTA) run_columns(t, &x);
    write(t, x);
}

/* What a chunk leaves of a tile. */
static int64_t part_bytes(int32_t head_dim) { return (int64_t)(head_dim / 2 + 4) * THREADS * (int64_t)sizeof(float); }

template <dllm_dtype T, int HD, bool DELTA> static void run(dllm_device *d, const char *name, const attention_job &job)
{
    static_assert(sizeof(layout<HD>) <= MOST_SHARED, "more than some GPUs have");
    const int tiles = tiles_of(job.spans.most_queries), chunks = (job.spans.most_keys + CHUNK - 1) / CHUNK;
    const int64_t room = ((int64_t)d->scratch_bytes - SCRATCH_COUNTERS) / part_bytes(HD),
                  most = room < MOST_PARTS ? room : MOST_PARTS;
    const bool shared =
        job.rows.count ? share_out(1, chunks, most) : share_out((int64_t)tiles * job.heads * job.spans.n, chunks, most);
    const int shared_out = shared ? chunks : 1;
    const dim3 grid((unsigned)(tiles * shared_out), (unsigned)job.heads, (unsigned)job.spans.n);
    launch(d, name, attend_tile<T, HD, DELTA>, grid, THREADS, sizeof(layout<HD>), job, shared_out, (int)most,
           (float *)((char *)d->scratch + SCRATCH_COUNTERS), (uint32_t *)d->scratch);
}

template <int HD> static void run_head(dllm_device *d, const attention_job &job, bool delta)
{
    const bool bf16 = job.q.dtype == DLLM_BF16;
    if (delta && bf16) run<DLLM_BF16, HD, true>(d, "attend_delta", job);
    else if (delta) run<DLLM_F16, HD, true>(d, "attend_delta", job);
    else if (bf16) run<DLLM_BF16, HD, false>(d, "attend", job);
    else run<DLLM_F16, HD, false>(d, "attend", job);
}

bool dllm_attend_mma(dllm_device *d, const attention_job &job, bool delta)
{
    if (job.q.dtype == DLLM_F32 || (job.head_dim != 64 && job.head_dim != 128)) return false;
    if (job.head_dim == 64) run_head<64>(d, job, delta);
    else run_head<128>(d, job, delta);
    return true;
}

size_t dllm_attend_scratch(int32_t heads, int32_t head_dim, int64_t rows, int64_t keys)
{
    const int64_t parts = (int64_t)heads * tiles_of(rows) * ((keys + CHUNK - 1) / CHUNK);
    return SCRATCH_COUNTERS + (size_t)((parts < MOST_PARTS ? parts : MOST_PARTS) * part_bytes(head_dim));
}
