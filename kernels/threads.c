/* threads.c: which threads a call runs on. A borrowed team is as good as our own pool where the machine has processors to spare, and
 * twice as good between operations of torch. But it waits for every one of its threads, even those that come when the work is done:
 * on a crowded machine that can take longer than the work. So what is lost that way is measured, and buys time with our own pool,
 * which waits for nobody. */
#define _GNU_SOURCE
#include "threads.h"
#include "threads_parts.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <time.h>

enum { MAX_THREADS = 256, LATE_NS = 100000, PRICE = 32 };

static atomic_bool held; /* by the caller that is at work */
static atomic_bool forbidden;
static _Atomic(int64_t) own_until; /* written by the holder */

int64_t dllm_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void forget(void)
{
    dllm_pool_forget();
    dllm_openmp_forget();
    atomic_store(&held, false);
}

static void add_fork_handler(void) { pthread_atfork(NULL, NULL, forget); }

static void watch_forks(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, add_fork_handler);
}

void dllm_threads_look(void)
{
    if (atomic_load(&forbidden) || dllm_openmp_found()) return;
    watch_forks();
    dllm_openmp_find();
}

void dllm_threads_allow_borrowing(bool allowed) { atomic_store(&forbidden, !allowed); }

const char *dllm_threads_borrowed(void) { return atomic_load(&forbidden) ? NULL : dllm_openmp_path(); }

/* A team of another size than the last one costs a new thread or the end of one, so its size is `threads` however few the tasks. */
static void borrow(int threads, int tasks, void (*fn)(void *arg, int task, int thread), void *arg)
{
    const int64_t late = dllm_openmp_parallel(threads, tasks, fn, arg);
    if (late > LATE_NS) atomic_store(&own_until, dllm_now() + PRICE * late);
}

void dllm_parallel(int threads, int tasks, void (*fn)(void *arg, int task, int thread), void *arg)
{
    if (threads <= 1 || tasks <= 1 || atomic_exchange(&held, true)) {
        for (int i = 0; i < tasks; i++) fn(arg, i, 0);
        return;
    }
    watch_forks();
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (dllm_openmp_found() && !atomic_load(&forbidden) && dllm_now() >= atomic_load(&own_until)) borrow(threads, tasks, fn, arg);
    else dllm_pool_parallel(threads < tasks ? threads : tasks, tasks, fn, arg);
    atomic_store(&held, false);
}
