/* queue.h: what a session asks of its GPU. Calls of kernels wait in its queue until somebody wants what they do; then they go to the GPU
 * together, as one graph if they came like that before, else one by one. */
#ifndef DLLM_CUDA_QUEUE_H
#define DLLM_CUDA_QUEUE_H

enum { MOST_ARGS = 10, ARG_BYTES = 384 };

struct kernel_call {
    const void *kernel;
    const char *name;
    dim3 grid;
    unsigned threads;
    size_t shared_bytes;
    int n_args, used; /* bytes of args */
    uint16_t at[MOST_ARGS];
    alignas(16) unsigned char args[ARG_BYTES];
};

void dllm_queue_open(dllm_device *d); /* its stream, too; a failure is in d */
void dllm_queue_close(dllm_device *d);
kernel_call *dllm_queue_add(dllm_device *d); /* NULL: no memory, which is in d */
void dllm_queue_flush(dllm_device *d);       /* before anything else is asked of the stream */
void dllm_queue_mark(dllm_device *d);
void dllm_queue_reach(dllm_device *d); /* waits for what was asked before the mark */

/* Bytes between arguments are 0, so that equal calls have equal bytes. */
template <class T> void add_argument(kernel_call *c, const T &value)
{
    const int at = (c->used + (int)alignof(T) - 1) / (int)alignof(T) * (int)alignof(T);
    memset(c->args + c->used, 0, (size_t)(at - c->used));
    memcpy(c->args + at, &value, sizeof value);
    c->at[c->n_args++] = (uint16_t)at;
    c->used = at + (int)sizeof value;
}
#endif
