/* ceilings.c: what a device could do at best: how fast its threads read memory, and how fast they multiply and add between registers.
 * Rounds are short and the best one counts, because a busy machine gives the cores away after a few milliseconds. */
#define _GNU_SOURCE /* MADV_HUGEPAGE */
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../kernels/threads.h"
#include "session.h"

enum { PARTS = 16, SWEEPS = 4, REPEATS = 40 };
static const double LONG_ENOUGH = 1e-3; /* seconds of a round, beside which its start does not count */

/* ---- arithmetic ------------------------------------------------------------------------------------------------------------------ */
typedef struct {
    dllm_burst *burst;
    int64_t rounds;
    atomic_uint_least64_t operations;
} burst_job;

static void run_burst(void *arg, int task, int thread)
{
    burst_job *job = arg;
    atomic_fetch_add(&job->operations, job->burst(job->rounds));
}

static double peak_of(const dllm_device *d, dllm_dtype t)
{
    burst_job job = { .burst = dllm_cpu_burst(d->ops, t) };
    double best = 0, shortest = 0;
    for (job.rounds = 1 << 10; shortest < LONG_ENOUGH; job.rounds *= 2) {
        shortest = 1;
        for (int i = 0; i < REPEATS; i++) {
            atomic_store(&job.operations, 0);
            const double start = dllm_seconds();
            dllm_parallel(d->threads, d->threads, run_burst, &job);
            const double seconds = dllm_seconds() - start, rate = (double)atomic_load(&job.operations) / seconds;
            if (seconds < shortest) shortest = seconds;
            if (rate > best) best = rate;
        }
    }
    return best;
}

/* ---- memory: a part of a buffer that no cache holds, in as many shares as there are threads --------------------------------------- */
typedef struct {
    const uint64_t *from;
    size_t share; /* numbers */
    atomic_uint_least64_t bits;
} read_job;

static void read_share(void *arg, int task, int thread)
{
    enum { SIDE = 8 };
    read_job *job = arg;
    const uint64_t *p = job->from + (size_t)task * job->share;
    uint64_t bits[SIDE] = { 0 };
    for (size_t i = 0; i + SIDE <= job->share; i += SIDE)
        for (int j = 0; j < SIDE; j++) bits[j] |= p[i + j];
    for (int j = 0; j < SIDE; j++) atomic_fetch_or(&job->bits, bits[j]);
}

/* Four times the last cache where the system tells its size. */
static size_t buffer_bytes(void)
{
    const size_t least = (size_t)1 << 28, most = (size_t)1 << 30;
#if defined(_SC_LEVEL3_CACHE_SIZE)
    const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    const size_t wanted = cache > 0 ? 4 * (size_t)cache : 0;
    return wanted < least ? least : wanted > most ? most : wanted;
#else
    return least;
#endif
}

static double read_rate(const dllm_device *d, const uint64_t *memory, size_t bytes)
{
    const size_t share = bytes / PARTS / (size_t)d->threads / sizeof *memory;
    double best = 0;
    for (int i = 0; i < SWEEPS * PARTS; i++) {
        read_job job = { .from = memory + (size_t)(i % PARTS) * share * (size_t)d->threads, .share = share };
        const double start = dllm_seconds();
        dllm_parallel(d->threads, d->threads, read_share, &job);
        const double rate = (double)(share * (size_t)d->threads * sizeof *memory) / (dllm_seconds() - start);
        if (rate > best) best = rate;
    }
    return best;
}

/* Written once, so that the pages are there: large ones if the system has them, since looking up pages is no part of reading. */
static void *map_memory(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
#if defined(MADV_HUGEPAGE)
    madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return memset(memory, 1, bytes);
}

int dllm_device_ceilings(dllm_device *d, dllm_ceilings *out)
{
    FAIL_IF(!dllm_cpu_burst(d->ops, DLLM_F32), DLLM_E_DEVICE, "ceilings are measured on a CPU, not on %s", d->name);
    const size_t bytes = buffer_bytes();
    void *memory = map_memory(bytes);
    FAIL_IF(!memory, DLLM_E_MEMORY, "ceilings: out of memory for a buffer of %zu bytes", bytes);
    out->read = read_rate(d, memory, bytes);
    munmap(memory, bytes);
    out->f32 = peak_of(d, DLLM_F32);
    out->bf16 = peak_of(d, DLLM_BF16);
    out->i8 = peak_of(d, DLLM_I8);
    return 0;
}
