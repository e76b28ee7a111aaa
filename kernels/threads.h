/* threads.h: the threads kernels run on: borrowed from the OpenMP runtime of the process where it has one, else a pool of our own. */
#ifndef DLLM_THREADS_H
#define DLLM_THREADS_H
#include <stdbool.h>
#ifdef __cplusplus
extern "C" {
#endif

/* Calls fn(arg, task, thread) once for every task in [0, tasks) and returns when all are done. At most `threads` threads take part,
 * the caller among them; `thread` in [0, threads) tells them apart, for scratch, and no result may depend on which one ran a task.
 * While another call is at work, as it is inside a task of a shared one, everything runs on the caller as thread 0. */
void dllm_parallel(int threads, int tasks, void (*fn)(void *arg, int task, int thread), void *arg);

/* How many processors this process may use: its affinity mask and the quotas of its control groups; at least 1. */
int dllm_threads_default(void);
/* The part of that which control groups decide, given a file like /proc/self/cgroup and the folder they are mounted in; 0: no limit. */
int dllm_threads_quota(const char *membership, const char *root);

/* Looks for a runtime to borrow until one is there. A few microseconds, so once a request and not once a kernel. */
void dllm_threads_look(void);
void dllm_threads_allow_borrowing(bool allowed); /* it is, at first */
const char *dllm_threads_borrowed(void);         /* the file of the runtime that kernels run on; NULL: our own pool */
#ifdef __cplusplus
}
#endif
#endif
