/* threads.h: the one pool of worker threads of the process, started when first needed. */
#ifndef DLLM_THREADS_H
#define DLLM_THREADS_H
#ifdef __cplusplus
extern "C" {
#endif

/* Calls fn(arg, task, thread) once for every task in [0, tasks) and returns when all are done. At most `threads` threads take part,
 * the caller among them; `thread` in [0, threads) tells them apart, for scratch, and no result may depend on which one ran a task.
 * While another caller holds the pool, or from inside a task, everything runs on the caller as thread 0. */
void dllm_parallel(int threads, int tasks, void (*fn)(void *arg, int task, int thread), void *arg);

/* How many processors this process may use; at least 1. */
int dllm_threads_default(void);
#ifdef __cplusplus
}
#endif
#endif
