/* A graph costs the host one launch, however many kernels it has. Making one costs some hundred launches, and another argument for one of
 * its kernels about as much as launching it. But steps of one phase ask for almost the same: the same kernels and places, and here and
 * there another number of rows. So a queue remembers the latest lists of calls. One that comes again, but for a few calls, becomes a
 * graph, in which from then on only those calls are changed. */
#include <cstdlib>

#include "gpu.h"

enum {
    SHORTEST = 32, /* calls; fewer go one by one */
    KEPT = 8,      /* lists: phases of a method, rounds of the head */
    ALIKE = 2      /* half of the calls may differ: changing them costs no more than launching them */
};

struct call_list {
    kernel_call *calls;
    int n, room;
};

struct kept_list {
    call_list of;
    cudaGraph_t graph;
    cudaGraphExec_t ready; /* null: no graph yet */
    cudaGraphNode_t *nodes;
    uint64_t last_use; /* 0: none */
};

struct queue {
    call_list waiting;
    kept_list kept[KEPT];
    uint64_t uses;
    bool graphs; /* are there any? */
};

static cudaStream_t stream_of(const dllm_device *d) { return (cudaStream_t)d->stream; }

/* ---- opening and closing ----------------------------------------------------------------------------------------------------------- */
void dllm_queue_open(dllm_device *d)
{
    const char *wanted = getenv("DLLM_FAST_GRAPHS");
    cudaStream_t stream = nullptr;
    queue *q = (queue *)calloc(1, sizeof *q);
    if (q) q->graphs = !wanted || strcmp(wanted, "0") != 0;
    dllm_cuda_note(d, "opening a queue", q ? cudaSuccess : cudaErrorMemoryAllocation);
    if (!d->failed) dllm_cuda_note(d, "opening a stream", cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    cudaGetLastError();
    d->stream = stream;
    d->queue = q;
    if (d->failed) dllm_queue_close(d);
}

/* The list stays. */
static void drop_graph(kept_list *k)
{
    if (k->ready) cudaGraphExecDestroy(k->ready); /* CUDA lets it end if it runs */
    if (k->graph) cudaGraphDestroy(k->graph);
    free(k->nodes);
    k->ready = nullptr;
    k->graph = nullptr;
    k->nodes = nullptr;
}

void dllm_queue_close(dllm_device *d)
{
    queue *q = (queue *)d->queue;
    if (!q) return;
    if (d->stream) cudaStreamSynchronize(stream_of(d)); /* what still waits here is wanted by nobody */
    for (kept_list &k : q->kept) {
        drop_graph(&k);
        free(k.of.calls);
    }
    if (d->stream) cudaStreamDestroy(stream_of(d));
    free(q->waiting.calls);
    free(q);
    d->queue = d->stream = nullptr;
}

/* ---- lists of calls ------------------------------------------------------------------------------------------------------------------ */
static bool make_room(call_list *s, int n)
{
    if (n <= s->room) return true;
    const int room = n > 2 * s->room ? n : 2 * s->room;
    kernel_call *more = (kernel_call *)realloc(s->calls, (size_t)room * sizeof *more);
    if (!more) return false;
    s->calls = more;
    s->room = room;
    return true;
}

kernel_call *dllm_queue_call(dllm_device *d)
{
    call_list *s = &((queue *)d->queue)->waiting;
    if (!make_room(s, s->n + 1)) {
        dllm_cuda_note(d, "asking for a kernel", cudaErrorMemoryAllocation);
        return nullptr;
    }
    kernel_call *c = &s->calls[s->n++];
    c->n_args = c->bytes = 0;
    return c;
}

static bool same(const kernel_call &a, const kernel_call &b)
{
    return a.kernel == b.kernel && a.grid.x == b.grid.x && a.grid.y == b.grid.y && a.grid.z == b.grid.z && a.threads == b.threads &&
           a.shared_bytes == b.shared_bytes && a.bytes == b.bytes && memcmp(a.args, b.args, (size_t)a.bytes) == 0;
}

/* How many calls differ; what is more than `most` does not matter. */
static int differences(const call_list &a, const call_list &b, int most)
{
    if (a.n != b.n) return most + 1;
    int n = 0;
    for (int i = 0; i < a.n && n <= most; i++) n += !same(a.calls[i], b.calls[i]);
    return n;
}

/* NULL: none is like what waits. */
static kept_list *most_alike(queue *q)
{
    kept_list *found = nullptr;
    int most = q->waiting.n / ALIKE;
    for (kept_list &k : q->kept) {
        const int n = differences(k.of, q->waiting, most);
        if (n > most) continue;
        found = &k;
        most = n - 1;
    }
    if (found) found->last_use = ++q->uses;
    return found;
}

/* In the place of the one that was not used for longest. */
static void remember(queue *q)
{
    kept_list *oldest = q->kept;
    for (kept_list &k : q->kept) oldest = k.last_use < oldest->last_use ? &k : oldest;
    drop_graph(oldest);
    oldest->of.n = 0;
    if (!make_room(&oldest->of, q->waiting.n)) return; /* then it is seen again for the first time */
    memcpy(oldest->of.calls, q->waiting.calls, (size_t)q->waiting.n * sizeof *q->waiting.calls);
    oldest->of.n = q->waiting.n;
    oldest->last_use = ++q->uses;
}

/* ---- to the GPU ---------------------------------------------------------------------------------------------------------------------- */
static void arguments_of(kernel_call *c, void *(&out)[MOST_ARGS])
{
    for (int i = 0; i < c->n_args; i++) out[i] = c->args + c->at[i];
}

/* More shared memory than every kernel may have must be asked for. */
static cudaError_t allow_shared(const kernel_call &c)
{
    return c.shared_bytes <= 48 << 10
               ? cudaSuccess
               : cudaFuncSetAttribute(c.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)c.shared_bytes);
}

static void launch_each(dllm_device *d, call_list *s)
{
    for (int i = 0; i < s->n; i++) {
        kernel_call *c = &s->calls[i];
        void *args[MOST_ARGS];
        arguments_of(c, args);
        dllm_cuda_note(d, c->name, allow_shared(*c));
        dllm_cuda_note(d, c->name, cudaLaunchKernel(c->kernel, c->grid, dim3(c->threads), args, c->shared_bytes, stream_of(d)));
        d->launches++;
    }
    cudaGetLastError();
}

static cudaKernelNodeParams node_of(kernel_call *c, void *(&args)[MOST_ARGS])
{
    arguments_of(c, args);
    return { (void *)c->kernel, c->grid, dim3(c->threads), (unsigned)c->shared_bytes, args, nullptr };
}

/* One kernel after the other. */
static bool build(kept_list *k)
{
    void *args[MOST_ARGS];
    k->nodes = (cudaGraphNode_t *)calloc((size_t)k->of.n, sizeof *k->nodes);
    if (!k->nodes || cudaGraphCreate(&k->graph, 0)) return false;
    for (int i = 0; i < k->of.n; i++) {
        const cudaKernelNodeParams p = node_of(&k->of.calls[i], args);
        if (allow_shared(k->of.calls[i])) return false;
        if (cudaGraphAddKernelNode(&k->nodes[i], k->graph, i ? &k->nodes[i - 1] : nullptr, i ? 1 : 0, &p)) return false;
    }
    return cudaGraphInstantiate(&k->ready, k->graph, 0) == cudaSuccess;
}

/* The kept list, and its graph if there is one, become what waits. */
static bool bring_up_to_date(kept_list *k, const call_list &waiting)
{
    void *args[MOST_ARGS];
    for (int i = 0; i < waiting.n; i++) {
        if (same(k->of.calls[i], waiting.calls[i])) continue;
        k->of.calls[i] = waiting.calls[i];
        if (!k->ready) continue;
        const cudaKernelNodeParams p = node_of(&k->of.calls[i], args);
        if (allow_shared(k->of.calls[i]) || cudaGraphExecKernelNodeSetParams(k->ready, k->nodes[i], &p)) return false;
    }
    return true;
}

/* What comes for the first time is remembered, for the second time made a graph, while the GPU works on it kernel by kernel; then the
 * graph serves. A GPU that refuses one is asked for none any more. */
static void launch_list(dllm_device *d, queue *q)
{
    kept_list *k = most_alike(q);
    const bool fine = !k || bring_up_to_date(k, q->waiting);
    if (k && k->ready && fine && !cudaGraphLaunch(k->ready, stream_of(d))) {
        d->launches++;
        return;
    }
    launch_each(d, &q->waiting);
    if (!k) remember(q);
    else if (k->ready || !fine || !build(k)) {
        cudaGetLastError();
        drop_graph(k);
        q->graphs = false;
    }
}

void dllm_queue_flush(dllm_device *d)
{
    queue *q = (queue *)d->queue;
    if (!q || q->waiting.n == 0) return;
    const current_gpu gpu(d->index);
    dllm_cuda_note(d, "launching", gpu.error);
    d->kernels += (uint64_t)q->waiting.n;
    if (q->graphs && q->waiting.n >= SHORTEST) launch_list(d, q);
    else launch_each(d, &q->waiting);
    q->waiting.n = 0;
}

/* ---- waiting ------------------------------------------------------------------------------------------------------------------------- */
void dllm_queue_wait(dllm_device *d)
{
    dllm_queue_flush(d);
    dllm_cuda_note(d, "kernels", cudaStreamSynchronize(stream_of(d)));
}
