/* standin_openmp.c: an OpenMP runtime as the core sees one, built as libtorch_cpu.so. Unlike a real one it can be told to send few
 * threads or to return late, it counts, and sanitizers see all of it. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

enum { MAX_TEAM = 64 };
atomic_int standin_calls, standin_asked, standin_team = MAX_TEAM, standin_late_ms;

struct team {
    void (*fn)(void *arg);
    void *arg;
};

static void *member(void *arg)
{
    struct team *t = arg;
    t->fn(t->arg);
    return NULL;
}

void GOMP_parallel(void (*fn)(void *arg), void *arg, unsigned threads, unsigned flags)
{
    struct team t = { fn, arg };
    pthread_t others[MAX_TEAM];
    const unsigned limit = (unsigned)atomic_load(&standin_team), n = (threads < limit ? threads : limit) - 1;
    atomic_fetch_add(&standin_calls, 1);
    atomic_store(&standin_asked, (int)threads);
    for (unsigned i = 0; i < n; i++) pthread_create(&others[i], NULL, member, &t);
    fn(arg);
    for (unsigned i = 0; i < n; i++) pthread_join(others[i], NULL);
    const int late = atomic_load(&standin_late_ms);
    if (late) nanosleep(&(struct timespec){ .tv_nsec = late * 1000000L }, NULL);
}
