/* runtime.cpp: as much of the CUDA runtime as the plug-in calls. The machine has 24 simulated GPUs. Device i runs threads in order
 * i % 3 (first come first served, last come first served, any); those with i / 3 odd are strict: kernels and copies wait until the
 * host asks for what they do, and the host cannot touch device memory; i / 6 is the seed of the random order. The last six have
 * little memory. What is held is counted, and any request for more can be made to fail: probe.h. */
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#include "order.h"
#include "probe.h"

namespace sim {
enum { DEVICES = 24 };
struct stream {
    int device;
    std::deque<std::function<void()>> waiting;
};
/* A kernel with everything it needs to run. */
struct call {
    const char *name;
    dim3 grid;
    unsigned threads;
    size_t shared_bytes;
    std::function<void()> kernel;
};
struct graph_node {
    call what;
    std::vector<graph_node *> after;
};
typedef std::vector<std::unique_ptr<graph_node>> graph_nodes;
struct graph {
    std::shared_ptr<graph_nodes> nodes; /* of all who still need them */
};
struct graph_exec {
    std::shared_ptr<graph_nodes> nodes;
    std::vector<call> calls; /* of the nodes */
};
/* Where a stream was when it was last recorded. */
struct event {
    struct mark {
        stream *of; /* it is there as long as it has not passed */
        bool passed;
    };
    std::shared_ptr<mark> at;
};

namespace {
std::recursive_mutex lock; /* one kernel at a time, whoever asks */
thread_local int device;
thread_local cudaError_t last;
struct piece {
    size_t bytes;
    int device;
};
std::map<void *, piece> pieces; /* of device memory */
std::map<void *, size_t> pinned;
stream defaults[DEVICES]; /* the default stream of each, which does not wait for others */
int streams, events, graphs;
struct known {
    const char *name;
    caller call;
};
std::map<const void *, known> kernels;
long until_refusal; /* requests until one is refused; 0: none will be */
uint64_t launches;

bool refused() { return until_refusal && --until_refusal == 0; }

stream *actual(stream *s)
{
    if ((uintptr_t)s > 1) return s; /* 1 is another name of the default stream */
    defaults[device].device = device;
    return &defaults[device];
}

bool strict(int i) { return i / 3 % 2 == 1; }

size_t memory_of(int i)
{
    return i >= DEVICES - 6 ? (size_t)512 << 10 : (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
}

size_t taken(int i)
{
    size_t bytes = 0;
    for (const auto &p : pieces) bytes += p.second.device == i ? p.second.bytes : 0;
    return bytes;
}

/* The host cannot see memory of strict devices: whole pages, which mostly follow each other. */
void guard(int access)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *from = nullptr, *to = nullptr;
    for (const auto &p : pieces) {
        if (!strict(p.second.device)) continue;
        if (p.first != to) {
            if (from) mprotect(from, (size_t)(to - from), access);
            from = (char *)p.first;
        }
        to = (char *)p.first + (p.second.bytes + page - 1) / page * page;
    }
    if (from) mprotect(from, (size_t)(to - from), access);
}

void on_device(int on, const std::function<void()> &work)
{
    order = { (order_kind)(on % 3), (uint64_t)(on / 6) * 0x9e3779b97f4a7c15u + ++launches };
    work();
}

void do_next(stream *s)
{
    const std::function<void()> work = std::move(s->waiting.front());
    s->waiting.pop_front();
    on_device(s->device, work);
}

/* What waits is done, and sees guarded memory meanwhile. */
void finish(stream *s)
{
    if (s->waiting.empty()) return;
    guard(PROT_READ | PROT_WRITE);
    while (!s->waiting.empty()) do_next(s);
    guard(PROT_NONE);
}

/* Everything is asked of a stream; a strict one is in no hurry. */
void ask(stream *given, std::function<void()> work)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    stream *s = actual(given);
    if (strict(s->device)) s->waiting.push_back(std::move(work));
    else on_device(s->device, work);
}

cudaError_t failed(cudaError_t e) { return last = e; }

/* Streams, events and graphs are counted, and may be refused. */
template <class T> cudaError_t take(T **out, int *count, T made)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    if (refused()) return failed(cudaErrorMemoryAllocation);
    *out = new T(std::move(made));
    ++*count;
    return cudaSuccess;
}

template <class T> cudaError_t give_back(T *p, int *count)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    delete p;
    --*count;
    return cudaSuccess;
}
} // namespace

void later(stream *queue, std::function<void()> work) { ask(queue, std::move(work)); }

void know(const char *name, const void *kernel, const caller &call)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    kernels[kernel] = { name, call };
}

namespace {
/* False: no GPU could run it. */
bool make_call(call *c, const void *kernel, dim3 grid, dim3 block, void **args, size_t shared_bytes)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    const auto found = kernels.find(kernel);
    const bool fine = block.x && block.x <= 1024 && block.x % WARP == 0 && block.y == 1 && block.z == 1 &&
                      shared_bytes <= MAX_SHARED && grid.x && grid.x <= INT_MAX && grid.y && grid.y <= 65535 && grid.z &&
                      grid.z <= 65535;
    if (!fine || found == kernels.end()) return false;
    *c = { found->second.name, grid, block.x, shared_bytes, found->second.call(args) };
    return true;
}

void run(const call &c) { run_grid(c.name, c.grid, c.threads, c.shared_bytes, c.kernel); }

/* Nodes that wait for nobody run in any order: here the last one first. */
void run_graph(const graph_nodes &nodes, const std::vector<call> &calls)
{
    std::set<const graph_node *> done;
    while (done.size() < nodes.size()) {
        size_t i = nodes.size();
        const auto ready = [&](const graph_node *n) {
            return !done.count(n) && std::all_of(n->after.begin(), n->after.end(), [&](graph_node *a) { return done.count(a); });
        };
        while (!ready(nodes[--i].get())) {}
        run(calls[i]);
        done.insert(nodes[i].get());
    }
}
} // namespace
} // namespace sim

using sim::failed;

const char *cudaGetErrorName(cudaError_t e)
{
    return e == cudaErrorMemoryAllocation       ? "cudaErrorMemoryAllocation"
           : e == cudaErrorInvalidConfiguration ? "cudaErrorInvalidConfiguration"
           : e == cudaErrorInvalidDevice        ? "cudaErrorInvalidDevice"
                                                : "cudaErrorInvalidValue";
}
const char *cudaGetErrorString(cudaError_t e)
{
    return e == cudaErrorMemoryAllocation       ? "out of memory"
           : e == cudaErrorInvalidConfiguration ? "invalid configuration argument"
           : e == cudaErrorInvalidDevice        ? "invalid device ordinal"
                                                : "invalid argument";
}
cudaError_t cudaDriverGetVersion(int *v) { return *v = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *v) { return *v = 13000, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int *n) { return *n = sim::DEVICES, cudaSuccess; }

cudaError_t cudaGetLastError()
{
    const cudaError_t e = sim::last;
    sim::last = cudaSuccess;
    return e;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int i)
{
    static const char *const orders[] = { "fifo", "lifo", "random" };
    if (i < 0 || i >= sim::DEVICES) return failed(cudaErrorInvalidDevice);
    snprintf(p->name, sizeof p->name, "simulated GPU (%s%s)", orders[i % 3], sim::strict(i) ? ", strict" : "");
    p->major = 8;
    p->minor = 0;
    p->totalGlobalMem = sim::memory_of(i);
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int i)
{
    if (i < 0 || i >= sim::DEVICES) return failed(cudaErrorInvalidDevice);
    sim::device = i;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *i) { return *i = sim::device, cudaSuccess; }

/* ---- memory ------------------------------------------------------------------------------------------------------------------------ */
cudaError_t cudaMalloc(void **p, size_t bytes)
{
    std::lock_guard<std::recursive_mutex> hold(sim::lock);
    *p = nullptr;
    if (!bytes) bytes = 1;
    const size_t memory = sim::memory_of(sim::device);
    if (sim::refused() || bytes > memory || sim::taken(sim::device) > memory - bytes) return failed(cudaErrorMemoryAllocation);
    if (sim::strict(sim::device)) {
        void *m = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (m == MAP_FAILED) return failed(cudaErrorMemoryAllocation);
        *p = m;
    } else if (posix_memalign(p, 256, bytes)) {
        return failed(cudaErrorMemoryAllocation);
    } else {
        memset(*p, 0xff, bytes); /* device memory begins as anything: NaNs */
    }
    sim::pieces[*p] = { bytes, sim::device };
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    std::lock_guard<std::recursive_mutex> hold(sim::lock);
    const auto found = sim::pieces.find(p);
    if (found == sim::pieces.end()) return p ? failed(cudaErrorInvalidValue) : cudaSuccess;
    if (sim::strict(found->second.device)) munmap(p, found->second.bytes);
    else free(p);
    sim::pieces.erase(found);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned)
{
    std::lock_guard<std::recursive_mutex> hold(sim::lock);
    *p = nullptr;
    if (sim::refused() || bytes > SIZE_MAX / 2 || posix_memalign(p, 256, bytes ? bytes : 1))
        return failed(cudaErrorMemoryAllocation);
    sim::pinned[*p] = bytes ? bytes : 1;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *p)
{
    std::lock_guard<std::recursive_mutex> hold(sim::lock);
    if (p && !sim::pinned.erase(p)) return failed(cudaErrorInvalidValue);
    return free(p), cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *about, const void *p)
{
    std::lock_guard<std::recursive_mutex> hold(sim::lock);
    const auto after = sim::pieces.upper_bound((void *)p);
    const auto found = after == sim::pieces.begin() ? sim::pieces.end() : std::prev(after);
    const bool inside = found != sim::pieces.end() && (const char *)p < (const char *)found->first + found->second.bytes;
    *about = { inside ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered, inside ? found->second.device : -1 };
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s)
{
    return sim::ask(s, [=] { memset(p, value, bytes); }), cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t s)
{
    return sim::ask(s, [=] { memcpy(to, from, bytes); }), cudaSuccess;
}

/* ---- streams ----------------------------------------------------------------------------------------------------------------------- */
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) { return sim::take(s, &sim::streams, { sim::device, {} }); }

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    std::lock_guard<std::recursive_mutex> hold(sim::lock);
    sim::finish(sim::actual(s));
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    cudaStreamSynchronize(s);
    return sim::give_back(s, &sim::streams);
}

/* ---- events ------------------------------------------------------------------------------------------------------------------------ */
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) { return sim::take(e, &sim::events, {}); }

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    const auto mark = e->at = std::make_shared<sim::event::mark>(sim::event::mark{ sim::actual(s), false });
    return sim::ask(s, [=] { mark->passed = true; }), cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned)
{
    const auto mark = e->at;
    const auto wait = [=] {
        while (mark && !mark->passed) sim::do_next(mark->of);
    };
    return sim::ask(s, wait), cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t e) { return sim::give_back(e, &sim::events); }

/* ---- kernels, one by one and in graphs --------------------------------------------------------------------------------------------- */
cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **args, size_t shared_bytes, cudaStream_t s)
{
    sim::call c;
    if (!sim::make_call(&c, kernel, grid, block, args, shared_bytes)) return failed(cudaErrorInvalidConfiguration);
    return sim::ask(s, [=] { sim::run(c); }), cudaSuccess;
}

cudaError_t cudaGraphCreate(cudaGraph_t *g, unsigned)
{
    return sim::take(g, &sim::graphs, { std::make_shared<sim::graph_nodes>() });
}

cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t *node, cudaGraph_t g, const cudaGraphNode_t *after, size_t n_after,
                                   const cudaKernelNodeParams *p)
{
    auto made = std::make_unique<sim::graph_node>();
    if (!sim::make_call(&made->what, p->func, p->grid, p->block, p->kernelParams, p->sharedMemBytes))
        return failed(cudaErrorInvalidConfiguration);
    made->after.assign(after, after + n_after);
    *node = made.get();
    g->nodes->push_back(std::move(made));
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long)
{
    sim::graph_exec made = { g->nodes, {} };
    for (const auto &n : *g->nodes) made.calls.push_back(n->what);
    return sim::take(e, &sim::graphs, std::move(made));
}

cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t e, cudaGraphNode_t node, const cudaKernelNodeParams *p)
{
    for (size_t i = 0; i < e->calls.size(); i++) {
        if ((*e->nodes)[i].get() != node) continue;
        if (sim::make_call(&e->calls[i], p->func, p->grid, p->block, p->kernelParams, p->sharedMemBytes)) return cudaSuccess;
    }
    return failed(cudaErrorInvalidValue);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s)
{
    /* What it is given later does not reach what was launched before. */
    const auto nodes = e->nodes;
    const std::vector<sim::call> calls = e->calls;
    return sim::ask(s, [=] { sim::run_graph(*nodes, calls); }), cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) { return sim::give_back(e, &sim::graphs); }

cudaError_t cudaGraphDestroy(cudaGraph_t g) { return sim::give_back(g, &sim::graphs); }

/* ---- what tests ask ---------------------------------------------------------------------------------------------------------------- */
void dllm_sim_held(dllm_sim_count *out)
{
    std::lock_guard<std::recursive_mutex> hold(sim::lock);
    *out = { 0, 0, sim::streams, sim::events, sim::graphs };
    for (int i = 0; i < sim::DEVICES; i++) out->device_bytes += sim::taken(i);
    for (const auto &p : sim::pinned) out->shared_bytes += p.second;
}

void dllm_sim_refuse(long n)
{
    std::lock_guard<std::recursive_mutex> hold(sim::lock);
    sim::until_refusal = n;
}

long dllm_sim_until_refusal(void)
{
    std::lock_guard<std::recursive_mutex> hold(sim::lock);
    return sim::until_refusal;
}
