/* queue.h: what a session asks of its GPU. Calls of kernels wait in its queue until somebody wants what they do; then they go to the GPU
 * together, as one graph if they came like that before, else one by one. */
#ifndef DLLM_CUDA_QUEUE_H
#define DLLM_CUDA_QUEUE_H

enum { MOST_ARGS = 10, ARG_BYTES = 512 };

struct kernel_call {
    const void *kernel;
    const char *name;
    dim3 grid;
    unsigned threads;
    size_t shared_bytes;
    int n_args, bytes;
    uint16_t at[MOST_ARGS];
    alignas(16) unsigned char args[ARG_BYTES];
};

void dllm_queue_open(dllm_device *d); /* its stream, too; a failure is in d */
void dllm_queue_close(dllm_device *d);
kernel_call *dllm_queue_call(dllm_device *d); /* a call that is to be filled in; NULL: no memory, which is in d */
void dllm_queue_flush(dllm_device *d);        /* before anything else is asked of the stream */
void dllm_queue_wait(dllm_device *d);

/* Equal calls have equal bytes: between arguments, and in the holes of structs where the compiler can clear them, are zeros. */
template <class T> void add_argument(kernel_call *c, T value)
{
#if defined(__has_builtin)
#if __has_builtin(__builtin_clear_padding)
    __builtin_clear_padding(&value);
#endif
#endif
    const int at = (c->bytes + (int)alignof(T) - 1) / (int)alignof(T) * (int)alignof(T);
    memset(c->args + c->bytes, 0, (size_t)(at - c->bytes));
    memcpy(c->args + at, &value, sizeof value);
    c->at[c->n_args++] = (uint16_t)at;
    c->bytes = at + (int)sizeof value;
}
#endif
