/* Which rows have the highest scores, and which have turned: a block a pick or a turn.
 *
 * A pick's limit is found byte by byte, from the highest on; then every thread writes what its own stretch of the scores has to give, behind
 * what the threads before it give. A turn's rows go behind those of the turns before it, which its block counts once more. */
#include "../pick.h"
#include "gpu.h"

enum { THREADS = 256 }; /* one a value of a byte, too */

/* In shared memory. */
struct tallies {
    uint32_t count[THREADS], ties[THREADS];
    uint32_t limit;
    int32_t wanted;
};

/* The take-th highest key; of the keys equal to it `wanted` are among the highest. */
__device__ static void find_limit(tallies *t, const uint32_t *key, int32_t n, int32_t take)
{
    const uint32_t me = threadIdx.x;
    uint32_t limit = 0, left = (uint32_t)take;
    for (int shift = 24; shift >= 0; shift -= 8) {
        t->count[me] = 0;
        __syncthreads();
        for (int32_t i = (int32_t)me; i < n; i += THREADS) {
            if ((uint64_t)(key[i] ^ limit) >> (shift + 8) == 0) atomicAdd(&t->count[key[i] >> shift & 255], 1u);
        }
        __syncthreads();
        uint32_t above = 0;
        for (uint32_t byte = me + 1; byte < THREADS; byte++) above += t->count[byte];
        if (above < left && above + t->count[me] >= left) {
            t->limit = limit | me << shift;
            t->wanted = (int32_t)(left - above);
        }
        __syncthreads();
        limit = t->limit;
        left = (uint32_t)t->wanted;
        __syncthreads();
    }
}

__device__ static void write_highest(tallies *t, int32_t *out, const uint32_t *key, int32_t n, const dllm_pick &p)
{
    const int32_t me = (int32_t)threadIdx.x, each = (n + THREADS - 1) / THREADS, from = me * each < n ? me * each : n,
                  end = from + each < n ? from + each : n;
    const uint32_t limit = t->limit;
    uint32_t higher = 0, equal = 0;
    for (int32_t i = from; i < end; i++) {
        higher += key[i] > limit;
        equal += key[i] == limit;
    }
    t->count[me] = higher;
    t->ties[me] = equal;
    __syncthreads();
    int32_t before = 0, ties = t->wanted;
    for (int32_t i = 0; i < me; i++) {
        before += (int32_t)t->count[i];
        ties -= (int32_t)t->ties[i];
    }
    before += t->wanted - (ties > 0 ? ties : 0);
    for (int32_t i = from; i < end; i++) {
        if (key[i] > limit || (key[i] == limit && ties-- > 0)) out[before++] = p.add + dllm_pick_index(&p, i);
    }
}

static __global__ void pick(int32_t *out, const float *score, const dllm_pick *picks, uint32_t *keys)
{
    DLLM_SHARED(tallies, t);
    const dllm_pick p = picks[blockIdx.x];
    const int32_t n = dllm_pick_count(&p);
    uint32_t *key = keys + p.first;
    if (p.take >= n || p.take == 0) { /* nothing to find */
        for (int32_t i = (int32_t)threadIdx.x; i < p.take; i += THREADS) out[p.to + i] = p.add + dllm_pick_index(&p, i);
        return;
    }
    for (int32_t i = (int32_t)threadIdx.x; i < n; i += THREADS) key[i] = dllm_pick_key(&p, score, i);
    __syncthreads();
    find_limit(t, key, n, p.take);
    write_highest(t, out + p.to, key, n, p);
}

void dllm_pick_cuda(dllm_device *d, int32_t *out, const float *score, const dllm_pick *picks, int n)
{
    uint32_t *keys = (uint32_t *)((char *)d->scratch + SCRATCH_COUNTERS);
    if (n) launch(d, "pick", pick, (unsigned)n, THREADS, sizeof(tallies), out, score, picks, keys);
}

/* ---- turns ----------------------------------------------------------------------------------------------------------------------- */
/* How many rows turned, and the others; and of how many of both somebody reads the attention. */
struct turn_count {
    int32_t rows, rest, read, read_rest;
};

__device__ inline turn_count operator+(turn_count a, turn_count b)
{
    return turn_count{ a.rows + b.rows, a.rest + b.rest, a.read + b.read, a.read_rest + b.read_rest };
}

enum { TURNS = 32 };

/* In shared memory. Turns lie where reading is slow: they are read once. */
struct turn_room {
    dllm_turn turns[TURNS]; /* from one on whose number is a multiple of TURNS */
    turn_count warp[THREADS / 32];
    int32_t mine[THREADS]; /* rows that turned of those of the threads up to this one */
};

__device__ static void load_turns(turn_room *room, const dllm_turn *turns, int from)
{
    constexpr int WORDS = sizeof(dllm_turn) / sizeof(int32_t);
    const int n = (int)gridDim.x - from < TURNS ? (int)gridDim.x - from : TURNS;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < n * WORDS; i += THREADS) ((int32_t *)room->turns)[i] = ((const int32_t *)(turns + from))[i];
    __syncthreads();
}

/* This thread's rows of a turn. */
__device__ static turn_count count_turned(const dllm_turn &t, const float *score, const int32_t *held)
{
    turn_count c = {};
    for (int32_t i = (int32_t)threadIdx.x; i < t.n; i += THREADS) {
        const bool yes = dllm_turns(&t, score, held, i), read = t.first + i >= t.read_from;
        c = c + turn_count{ yes, !yes, yes && read, !yes && read };
    }
    return c;
}

/* Of THREADS rows from `at` on: every thread finds its row's place among those that turned by the places of the threads before it. */
__device__ static void list_turned(turn_room *room, const dllm_turn &t, const float *score, const int32_t *held, int32_t at,
                                   int32_t *rows, int32_t *rest)
{
    const int32_t me = (int32_t)threadIdx.x, i = at + me;
    const bool there = i < t.n, yes = there && dllm_turns(&t, score, held, i);
    int32_t before = yes;
    room->mine[me] = before;
    __syncthreads();
    for (int32_t step = 1; step < THREADS; step *= 2) {
        before += me >= step ? room->mine[me - step] : 0;
        __syncthreads();
        room->mine[me] = before;
        __syncthreads();
    }
    before -= yes;
    if (yes) rows[before] = t.first + i;
    else if (there) rest[me - before] = t.first + i;
}

static __global__ void turn(dllm_turned out, const float *score, const dllm_turn *turns, const int32_t *held)
{
    DLLM_SHARED(turn_room, room);
    const int me = (int)blockIdx.x;
    turn_count before = {};
    for (int b = 0; b <= me; b++) {
        if (b % TURNS == 0) load_turns(room, turns, b);
        if (b < me) before = before + count_turned(room->turns[b % TURNS], score, held);
    }
    const dllm_turn t = room->turns[me % TURNS];
    const turn_count mine = block_reduce(count_turned(t, score, held), sum_of<turn_count>, room->warp);
    before = block_reduce(before, sum_of<turn_count>, room->warp);
    for (int32_t at = 0, turned = 0; at < t.n; at += THREADS) {
        list_turned(room, t, score, held, at, out.rows + before.rows + turned, out.rest + before.rest + at - turned);
        turned += room->mine[THREADS - 1];
        __syncthreads();
    }
    if (threadIdx.x) return;
    out.exact[me] = dllm_span{ before.rows + mine.rows - mine.read, mine.read, t.k_first, t.n_keys };
    out.delta[me] = dllm_span{ before.rest + mine.rest - mine.read_rest, mine.read_rest, t.k_first, t.n_keys };
    out.columns[me] = dllm_columns{ before.rows, mine.rows };
    out.told[me][0] = mine.rows;
    out.told[me][1] = mine.read;
    if (me + 1 < (int)gridDim.x) return;
    out.count[0] = before.rows + mine.rows;
    out.count[1] = before.rest + mine.rest;
}

void dllm_turn_cuda(dllm_device *d, dllm_turned out, const float *score, const dllm_turn *turns, int n, const int32_t *held)
{
    if (n) launch(d, "turn", turn, (unsigned)n, THREADS, sizeof(turn_room), out, score, turns, held);
}
