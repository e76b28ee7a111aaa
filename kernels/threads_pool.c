/* threads_pool.c: our own pool. A caller opens as many seats as it wants helpers; a worker that comes in time takes one, draws tasks
 * until none is left and goes. The caller works too, then closes the seats and waits only for those taken: a worker that the system
 * has not woken yet delays nobody. Between calls workers look for seats for a moment, because kernels follow one another, then
 * sleep. */
#define _GNU_SOURCE
#include "threads_parts.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>

enum { SPIN_NS = 20000 };

static struct {
    int workers;
    void (*fn)(void *arg, int task, int thread);
    void *arg;
    unsigned tasks;
    atomic_uint next;    /* task to be drawn */
    atomic_int seats;    /* free ones; a seat's number is its holder's thread index */
    atomic_int left;     /* workers that took a seat and have gone */
    atomic_int asleep;   /* workers that need `wake` */
    atomic_bool waiting; /* the caller needs `done` */
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
} pool = { .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER };

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Waits a moment for *v to differ from `from`, or to reach it. */
static bool spin(atomic_int *v, int from, bool differ)
{
    const int64_t end = dllm_now() + SPIN_NS;
    do {
        for (int i = 0; i < 32; i++) {
            if ((atomic_load(v) != from) == differ) return true;
            relax();
        }
    } while (dllm_now() < end);
    return false;
}

static void draw(int thread)
{
    for (;;) {
        const unsigned task = atomic_fetch_add_explicit(&pool.next, 1, memory_order_relaxed);
        if (task >= pool.tasks) return;
        pool.fn(pool.arg, (int)task, thread);
    }
}

static void sleep_until_seats(void)
{
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.asleep, 1);
    while (atomic_load(&pool.seats) <= 0) pthread_cond_wait(&pool.wake, &pool.lock);
    atomic_fetch_sub(&pool.asleep, 1);
    pthread_mutex_unlock(&pool.lock);
}

static void *work(void *unused)
{
    for (;;) {
        if (!spin(&pool.seats, 0, true)) sleep_until_seats();
        int seat = atomic_load(&pool.seats);
        if (seat <= 0 || !atomic_compare_exchange_strong(&pool.seats, &seat, seat - 1)) continue;
        draw(seat);
        atomic_fetch_add(&pool.left, 1);
        if (atomic_load(&pool.waiting)) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.done);
            pthread_mutex_unlock(&pool.lock);
        }
    }
    return NULL;
}

void dllm_pool_forget(void)
{
    pool.workers = 0;
    atomic_store(&pool.seats, 0);
    atomic_store(&pool.asleep, 0);
    atomic_store(&pool.waiting, false);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_cond_init(&pool.done, NULL);
}

/* Workers take no signals: those belong to the program's threads. Fewer workers than asked for only means less help. */
static void hire(int workers)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    while (pool.workers < workers && pthread_create(&thread, NULL, work, NULL) == 0) {
        pthread_detach(thread);
        pool.workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void open_seats(int seats)
{
    atomic_store(&pool.next, 0);
    atomic_store(&pool.left, 0);
    atomic_store(&pool.seats, seats);
    if (atomic_load(&pool.asleep) == 0) return;
    pthread_mutex_lock(&pool.lock);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
}

static void close_seats(int seats)
{
    const int taken = seats - atomic_exchange(&pool.seats, 0);
    if (spin(&pool.left, taken, false)) return;
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.waiting, true);
    while (atomic_load(&pool.left) != taken) pthread_cond_wait(&pool.done, &pool.lock);
    atomic_store(&pool.waiting, false);
    pthread_mutex_unlock(&pool.lock);
}

void dllm_pool_parallel(int threads, int tasks, void (*fn)(void *arg, int task, int thread), void *arg)
{
    if (pool.workers < threads - 1) hire(threads - 1);
    pool.fn = fn;
    pool.arg = arg;
    pool.tasks = (unsigned)tasks;
    open_seats(threads - 1);
    draw(0);
    close_seats(threads - 1);
}
