/* Which rows have the highest scores: a block a pick. The limit is found byte by byte, from the highest on; then every thread writes
 * what its own stretch of the scores has to give, behind what the threads before it give. */
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
