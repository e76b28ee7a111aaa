/* probe.h: what tests ask of the simulator beside running kernels: what is held, refusals of memory, and memory and streams of somebody
 * else's on the same GPUs, as another framework would have them. Exported by libdllm_cuda_sim.so. */
#ifndef DLLM_SIM_PROBE_H
#define DLLM_SIM_PROBE_H
#include <stddef.h>
#define DLLM_SIM_EXPORT __attribute__((visibility("default")))
#ifdef __cplusplus
extern "C" {
#endif

/* What was taken and not given back, on all GPUs. */
typedef struct {
    size_t device_bytes, shared_bytes;
    int streams, events, graphs;
} dllm_sim_count;
DLLM_SIM_EXPORT void dllm_sim_held(dllm_sim_count *out);

/* The nth request for memory, a stream, an event or a graph from now on is refused, and no other; 0: none. And how many are still to come until
 * then, that one included; 0: it was refused. */
DLLM_SIM_EXPORT void dllm_sim_refuse(long n);
DLLM_SIM_EXPORT long dllm_sim_until_refusal(void);

/* NULL: there is none. */
DLLM_SIM_EXPORT void *dllm_sim_alloc(int device, size_t bytes);
DLLM_SIM_EXPORT void dllm_sim_free(void *p);
DLLM_SIM_EXPORT void *dllm_sim_stream(int device);
DLLM_SIM_EXPORT void dllm_sim_close_stream(void *stream);
/* In the order of the stream, and on strict GPUs no sooner than somebody waits for it: both places must stay until then. */
DLLM_SIM_EXPORT void dllm_sim_copy(void *to, const void *from, size_t bytes, void *stream);
DLLM_SIM_EXPORT void dllm_sim_order(int device, void *later, void *earlier); /* streams, as cuda.h has it */
DLLM_SIM_EXPORT void dllm_sim_sync(void *stream);
DLLM_SIM_EXPORT int dllm_sim_current(void); /* the GPU that is the calling thread's current one */
#ifdef __cplusplus
}
#endif
#endif
