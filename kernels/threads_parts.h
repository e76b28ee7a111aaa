/* threads_parts.h: what dllm_parallel chooses from. Both take one caller at a time. */
#ifndef DLLM_THREADS_PARTS_H
#define DLLM_THREADS_PARTS_H
#include <stdbool.h>
#include <stdint.h>

int64_t dllm_now(void); /* nanoseconds */

void dllm_pool_parallel(int threads, int tasks, void (*fn)(void *arg, int task, int thread), void *arg);
void dllm_pool_forget(void); /* in the child of a fork, which has this thread alone */

void dllm_openmp_find(void);        /* looks for the runtime */
bool dllm_openmp_found(void);       /* it is there, to be called */
const char *dllm_openmp_path(void); /* its file; NULL: not found */
void dllm_openmp_forget(void);      /* in the child of a fork: never again */
/* Nanoseconds from the end of the last task to the return. */
int64_t dllm_openmp_parallel(int threads, int tasks, void (*fn)(void *arg, int task, int thread), void *arg);
#endif
