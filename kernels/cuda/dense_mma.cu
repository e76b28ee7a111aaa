/* The matrix product on tensor cores. Weights are the left factor, 16 features by 16 columns; the rows of x are the right one, eight at a
 * time, so that few rows waste little. Tiles of 64 columns stream through shared memory by asynchronous copies.
 *
 * The columns are cut into slices, whose sums are added in the order of the slices. How many there are follows from the weights' shape
 * alone, so a row gets the same bits whether every slice has a block of its own (few rows: all of the GPU must read) or one block
 * takes all of them (many rows). */
#include "mma.h"
#include "panel.h"

enum { DEPTH = 64, PIECES = DEPTH / 8, FEW_ROWS = 64, FEATURES = PANEL, BLOCKS = 384, SHORTEST = 256 };

struct slicing {
    int64_t n;             /* slices */
    int64_t tiles, of_one; /* tiles of DEPTH columns in all and in a slice */
};

/* About BLOCKS blocks of FEATURES features, and slices of no fewer than SHORTEST columns. */
static slicing slice(int64_t features, int64_t columns)
{
    const int64_t blocks = (features + FEATURES - 1) / FEATURES, longest = columns / SHORTEST > 1 ? columns / SHORTEST : 1;
    const int64_t wanted = (BLOCKS + blocks / 2) / blocks, n = wanted < 1 ? 1 : wanted > longest ? longest : wanted;
    slicing s = { 0, (columns + DEPTH - 1) / DEPTH, 0 };
    s.of_one = (s.tiles + n - 1) / n;
    s.n = (s.tiles + s.of_one - 1) / s.of_one;
    return s;
}

size_t dllm_linear_scratch(int64_t features, int64_t columns)
{
    return SCRATCH_COUNTERS + (size_t)slice(features, columns).n * FEW_ROWS * (size_t)features * sizeof(float);
}

/* WF by WR warps, each MT times 16 features by NT times 8 rows */
template <int WF, int WR, int MT, int NT, int STAGES> struct layout {
    enum { F = WF * MT * 16, R = WR * NT * 8, THREADS = WF * WR * 32, N_STAGES = STAGES };
    uint16_t w[STAGES][F * DEPTH], x[STAGES][R * DEPTH];
    const uint16_t *rows[R];
    int last;

    __device__ static int first_feature_of_warp() { return (int)threadIdx.x / 32 % WF * MT * 16; }
    __device__ static int first_row_of_warp() { return (int)threadIdx.x / 32 / WF * NT * 8; }
};

template <class L> __device__ static void find_rows(L *s, const dense_job &job, int32_t rows, int32_t first_row)
{
    for (int r = (int)threadIdx.x; r < L::R; r += L::THREADS)
        s->rows[r] = first_row + r < rows ? (const uint16_t *)dllm_at(job.x, dllm_row(job.in_rows, first_row + r)) : nullptr;
    __syncthreads();
}

template <class L> __device__ static void fetch_tile(L *s, const dense_job &job, int64_t first_feature, int64_t tile)
{
    const int stage = (int)(tile % L::N_STAGES);
    const int64_t k = tile * DEPTH, n = job.w.cols;
    for (int i = (int)threadIdx.x; i < L::F * PIECES; i += L::THREADS) {
        const int f = i / PIECES, p = i % PIECES;
        const uint16_t *row = first_feature + f < job.w.rows ? (const uint16_t *)dllm_at(job.w, first_feature + f) : nullptr;
        fetch(s->w[stage] + place(f, p, PIECES), row, k + p * 8, n);
    }
    for (int i = (int)threadIdx.x; i < L::R * PIECES; i += L::THREADS)
        fetch(s->x[stage] + place(i / PIECES, i % PIECES, PIECES), s->rows[i / PIECES], k + i % PIECES * 8, n);
}

/* Only the first `there` of the warp's rows exist. Where they may be many fewer than a tile has, eights without any are left out. */
template <dllm_dtype T, int MT, int NT>
__device__ static void multiply_tile(float (&sum)[MT][NT][4], const uint16_t *w, const uint16_t *x, int f0, int r0, int there)
{
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < PIECES; k += 4) { /* 32 columns */
        uint32_t b[NT][4];
#pragma unroll
        for (int n = 0; n < NT; n++)
            if (NT < 8 || n * 8 < there) load_matrices(b[n], x + place(r0 + n * 8 + lane % 8, k + lane / 8, PIECES));
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int m = 0; m < MT; m++) {
                uint32_t a[4];
                load_matrices(a, w + place(f0 + m * 16 + lane % 16, k + 2 * half + lane / 16, PIECES));
#pragma unroll
                for (int n = 0; n < NT; n++)
                    if (NT < 8 || n * 8 < there) mma<T>(sum[m][n], a, b[n][2 * half], b[n][2 * half + 1]);
            }
        }
    }
}

/* Adds a slice's sums to those of the slices before it. */
template <int MT, int NT> __device__ static void fold(float (&total)[MT][NT][4], float (&sum)[MT][NT][4])
{
#pragma unroll
    for (int i = 0; i < MT * NT * 4; i++) {
        total[i / 4 / NT][i / 4 % NT][i % 4] += sum[i / 4 / NT][i / 4 % NT][i % 4];
        sum[i / 4 / NT][i / 4 % NT][i % 4] = 0;
    }
}

/* Calls f(row, feature, number) for what this thread has summed and somebody wants. */
template <int MT, int NT, class F>
__device__ static void each_sum(const dense_job &job, const float (&total)[MT][NT][4], int32_t rows, int32_t first_row,
                                int64_t first_feature, F f)
{
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < MT * NT * 4; i++) {
        const int64_t feature = first_feature + i / 4 / NT * 16 + lane / 4 + i % 4 / 2 * 8;
        const int32_t row = first_row + i / 4 % NT * 8 + lane % 4 * 2 + i % 2;
        if (row < rows && feature < job.w.rows) f(row, feature, total[i / 4 / NT][i / 4 % NT][i % 4]);
    }
}

/* The last block of a tile adds up what the slices left in memory, [slice][row][feature], in their order. */
template <class L>
__device__ static void add_slices(L *s, const dense_job &job, int32_t rows, int64_t first_feature, const float *parts,
                                  uint32_t *counter)
{
    if (!last_to_come(counter, gridDim.z, &s->last)) return;
    const int64_t n = (int64_t)rows * job.w.rows;
    for (int i = (int)threadIdx.x; i < L::F * rows; i += L::THREADS) {
        const int64_t feature = first_feature + i % L::F;
        const int32_t row = i / L::F;
        if (feature >= job.w.rows) continue;
        float sum = 0;
        for (unsigned part = 0; part < gridDim.z; part++) sum += parts[(int64_t)part * n + row * job.w.rows + feature];
        finish(job, row, feature, sum);
    }
}

/* Sums tiles [begin, end) of columns, slice by slice, for this warp's features and rows. */
template <dllm_dtype T, class L, int MT, int NT>
__device__ static void sum_tiles(float (&total)[MT][NT][4], L *s, const dense_job &job, const slicing &cut, int32_t rows,
                                 int32_t first_row, int64_t first_feature, int64_t begin, int64_t end)
{
    const int f0 = L::first_feature_of_warp(), r0 = L::first_row_of_warp();
    float sum[MT][NT][4] = {};
    find_rows(s, job, rows, first_row);
    for (int64_t t = begin; t < begin + L::N_STAGES - 1; t++) {
        if (t < end) fetch_tile(s, job, first_feature, t);
        close_group();
    }
    for (int64_t t = begin; t < end; t++) {
        wait_groups<L::N_STAGES - 2>();
        __syncthreads();
        if (t + L::N_STAGES - 1 < end) fetch_tile(s, job, first_feature, t + L::N_STAGES - 1);
        close_group();
        multiply_tile<T, MT, NT>(sum, s->w[t % L::N_STAGES], s->x[t % L::N_STAGES], f0, r0, rows - first_row - r0);
        if ((t + 1) % cut.of_one == 0 || t + 1 == end) fold(total, sum);
    }
    wait_groups<0>();
}

/* Block (rows, features, slice or all slices): those that read the same weights come one after the other. Where the device alone knows the
 * number of rows, the grid is for few and for many of them. */
template <dllm_dtype T, int WF, int WR, int MT, int NT, int STAGES>
static __global__ void __launch_bounds__(WF * WR * 32, WF *WR > 4 ? 1 : 3)
    stream(dense_job job, slicing cut, float *parts, uint32_t *counters)
{
    typedef layout<WF, WR, MT, NT, STAGES> L;
    DLLM_SHARED(L, s);
    const int32_t rows = dllm_there(job.in_rows), first_row = (int32_t)blockIdx.x * L::R, r0 = L::first_row_of_warp();
    const bool split = gridDim.z > 1 && rows <= FEW_ROWS;
    if (first_row >= rows || (blockIdx.z > 0 && !split)) return;
    const int64_t first_feature = (int64_t)blockIdx.y * L::F, begin = split ? blockIdx.z * cut.of_one : 0;
    const int64_t end = split && begin + cut.of_one < cut.tiles ? begin + cut.of_one : cut.tiles;
    const int64_t f0 = L::first_feature_of_warp();
    float total[MT][NT][4] = {};
    sum_tiles<T>(total, s, job, cut, rows, first_row, first_feature, begin, end);
    if (!split) {
        each_sum(job, total, rows, first_row + r0, first_feature + f0,
                 [&](int32_t row, int64_t feature, float x) { finish(job, row, feature, x); });
        return;
    }
    float *part = parts + (int64_t)blockIdx.z * rows * job.w.rows;
    each_sum(job, total, rows, first_row + r0, first_feature + f0,
             [&](int32_t row, int64_t feature, float x) { part[row * job.w.rows + feature] = x; });
    add_slices(s, job, rows, first_feature, parts, counters + blockIdx.y);
}

/* A block takes a panel of the vocabulary for all rows of a round, and reads its logits where the weights lay. */
template <dllm_dtype T, int NT> static __global__ void __launch_bounds__(128, 3) head_tile(dense_job job, slicing cut, reading r)
{
    typedef layout<4, 1, 1, NT, 4> L;
    static_assert((int)L::F == (int)PANEL && sizeof(float) * L::R * LINE <= sizeof(L::w), "a tile of logits has no room");
    DLLM_SHARED(L, s);
    const int64_t first_feature = (int64_t)blockIdx.x * PANEL;
    float total[1][NT][4] = {}, *logits = (float *)s->w;
    sum_tiles<T>(total, s, job, cut, job.in_rows.n, 0, first_feature, 0, cut.tiles);
    __syncthreads();
    each_sum(job, total, job.in_rows.n, L::first_row_of_warp(), first_feature + L::first_feature_of_warp(),
             [&](int32_t row, int64_t feature, float x) { logits[row * LINE + (feature - first_feature)] = x; });
    __syncthreads();
    read_tile(r, logits, L::R, first_feature, 0, job.in_rows.n);
}

template <dllm_dtype T, int WF, int WR, int MT, int NT, int STAGES>
static void run(dllm_device *d, const dense_job &job, bool split)
{
    typedef layout<WF, WR, MT, NT, STAGES> L;
    static_assert(sizeof(L) <= MOST_SHARED, "more than some GPUs have");
    const slicing cut = slice(job.w.rows, job.w.cols);
    const dim3 grid((unsigned)((job.in_rows.n + L::R - 1) / L::R), (unsigned)((job.w.rows + L::F - 1) / L::F),
                    split ? (unsigned)cut.n : 1);
    launch(d, "linear", stream<T, WF, WR, MT, NT, STAGES>, grid, L::THREADS, sizeof(L), job, cut,
           (float *)((char *)d->scratch + SCRATCH_COUNTERS), (uint32_t *)d->scratch);
}

template <dllm_dtype T> static void run_rows(dllm_device *d, const dense_job &job)
{
    const int32_t n = job.in_rows.n;
    if (n <= 8) run<T, 4, 1, 1, 1, 4>(d, job, true);
    else if (n <= 16) run<T, 4, 1, 1, 2, 4>(d, job, true);
    else if (n <= 32) run<T, 4, 1, 1, 4, 4>(d, job, true);
    else if (n <= FEW_ROWS || job.in_rows.count) run<T, 4, 1, 1, 8, 4>(d, job, true);
    else run<T, 4, 2, 2, 8, 3>(d, job, false);
}

void dllm_linear_mma(dllm_device *d, const dense_job &job)
{
    if (job.x.dtype == DLLM_BF16) run_rows<DLLM_BF16>(d, job);
    else run_rows<DLLM_F16>(d, job);
}

/* The head's vocabulary gives blocks enough without slices of their own. */
template <dllm_dtype T, int NT> static void run_head(dllm_device *d, const dense_job &job, const reading &r)
{
    const unsigned panels = (unsigned)((job.w.rows + PANEL - 1) / PANEL);
    launch(d, "head_predict", head_tile<T, NT>, panels, 128, sizeof(layout<4, 1, 1, NT, 4>), job, slice(job.w.rows, job.w.cols), r);
}

template <dllm_dtype T> static void run_head_rows(dllm_device *d, const dense_job &job, const reading &r)
{
    const int32_t n = job.in_rows.n;
    if (n <= 8) run_head<T, 1>(d, job, r);
    else if (n <= 16) run_head<T, 2>(d, job, r);
    else if (n <= 32) run_head<T, 4>(d, job, r);
    else run_head<T, 8>(d, job, r);
}

void dllm_head_tile(dllm_device *d, const dense_job &job, const reading &r)
{
    if (job.x.dtype == DLLM_BF16) run_head_rows<DLLM_BF16>(d, job, r);
    else run_head_rows<DLLM_F16>(d, job, r);
}
