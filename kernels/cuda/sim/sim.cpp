/* sim.cpp: the scheduler. A block's threads are fibers that run until they meet others at a barrier or in a warp operation. Which of
 * those that may run goes on is the order of the device: first come first served keeps all warps in step; last come first served
 * lets one warp run ahead as far as it can; or any. What no order of a real GPU may do is refused with a line that says where. */
#include "sim.h"
#undef threadIdx
#undef blockIdx

#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#include "order.h"
#include "tsan.h"

namespace sim {
fiber *running;
dim3 block, block_size, grid_size;
unsigned char *shared;

namespace {
enum { MAX_THREADS = 1024, STACK = 128 << 10 };

struct alignas(16) warp {
    slots table[2];
    int arrived, parity, line;
};
struct copy {
    void *to;
    const void *from;
    size_t bytes, zeros;
    int group;
};
struct copies {
    std::vector<copy> waiting;
    int group;
};

fiber fibers[MAX_THREADS], home;
warp warps[MAX_THREADS / WARP];
copies async[MAX_THREADS];
int ready[MAX_THREADS], first_ready, n_ready;
int n_threads, alive, at_barrier, barrier_line;
char *stacks;
const char *kernel_name;
const std::function<void()> *kernel;
#if defined(__SANITIZE_ADDRESS__)
const void *home_bottom;
size_t home_size;
#endif
bool from_home; /* the first fiber of a block learns where home's stack is */

/* ---- fibers ------------------------------------------------------------------------------------------------------------------------ */
#if !defined(__x86_64__)
#error "the simulator's switch from fiber to fiber is written for x86-64"
#endif
extern "C" void dllm_sim_switch(void **save, void *to);
asm(".text\n.type dllm_sim_switch,@function\ndllm_sim_switch:\n"
    " pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
    " movq %rsp,(%rdi)\n movq %rsi,%rsp\n"
    " popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n"
    ".size dllm_sim_switch,.-dllm_sim_switch\n");

int number(const fiber *f) { return (int)(f - fibers); }

[[noreturn]] void refuse(const char *what)
{
    fprintf(stderr, "simulated GPU: %s: kernel %s, block (%u, %u, %u)", what, kernel_name, block.x, block.y, block.z);
    if (running != &home) fprintf(stderr, ", thread %d", number(running));
    fprintf(stderr, "\n");
    for (int i = 0, shown = 0; i < n_threads && shown < 8; i++) {
        if (!fibers[i].line || fibers[i].done) continue;
        fprintf(stderr, "  thread %d waits at line %d\n", i, fibers[i].line);
        shown++;
    }
    abort();
}

void switch_to(fiber *to)
{
    fiber *from = running;
    if (to == from) return;
    running = to;
#if defined(__SANITIZE_ADDRESS__)
    const void *bottom = to == &home ? home_bottom : stacks + (size_t)number(to) * STACK;
    __sanitizer_start_switch_fiber(from->done ? nullptr : &from->fake, bottom, to == &home ? home_size : (size_t)STACK);
#endif
    tsan_switch(to->tsan);
    dllm_sim_switch(&from->stack, to->stack);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(from->fake, nullptr, nullptr);
#endif
}

void let_run(int i)
{
    fibers[i].line = 0;
    ready[(first_ready + n_ready++) % MAX_THREADS] = i;
}

int choose()
{
    int *last = &ready[(first_ready + n_ready - 1) % MAX_THREADS];
    if (order.kind == FIFO) {
        const int i = ready[first_ready];
        first_ready = (first_ready + 1) % MAX_THREADS;
        n_ready--;
        return i;
    }
    if (order.kind == RANDOM) {
        order.state = order.state * 6364136223846793005u + 1442695040888963407u;
        std::swap(*last, ready[(first_ready + (int)((order.state >> 33) % (unsigned)n_ready)) % MAX_THREADS]);
    }
    n_ready--;
    return *last;
}

void give_way()
{
    if (n_ready == 0 && alive) refuse("threads wait for each other for ever: a barrier or a warp operation that not all reach");
    switch_to(n_ready ? &fibers[choose()] : &home);
}

void open_barrier()
{
    at_barrier = 0;
    for (int i = 0; i < n_threads; i++) {
        if (!fibers[i].done && fibers[i].line && &fibers[i] != running) let_run(i);
    }
}

void enter()
{
#if defined(__SANITIZE_ADDRESS__)
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (from_home) {
        home_bottom = bottom;
        home_size = size;
        from_home = false;
    }
#endif
    tsan_acquire(&alive);
    (*kernel)();
    const int i = number(running);
    if (!async[i].waiting.empty()) refuse("a thread ends with copies that nobody waited for");
    if (warps[i / WARP].arrived) refuse("a lane ends while others of its warp wait for it");
    tsan_release(&home);
    fibers[i].done = true;
    alive--;
    if (at_barrier) refuse("a thread ends while others wait for it at a barrier");
    give_way();
    abort();
}

void begin(int i)
{
    void **top = (void **)(stacks + (size_t)(i + 1) * STACK) - 1; /* so that a function finds the stack as a call leaves it */
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region((char *)top - 4096, 4096); /* a fiber ends without leaving its first functions */
#endif
    *--top = (void *)enter;
    for (int r = 0; r < 6; r++) *--top = nullptr;
    void *const tsan = fibers[i].tsan ? fibers[i].tsan : tsan_create();
    fibers[i] = fiber{};
    fibers[i].stack = top;
    fibers[i].index = dim3((unsigned)i, 0, 0);
    fibers[i].tsan = tsan;
    async[i].group = 0;
    let_run(i);
}

void run_block(size_t shared_bytes)
{
    if (shared_bytes) memset(shared, 0xff, shared_bytes);
    first_ready = n_ready = at_barrier = 0;
    alive = n_threads;
    for (int w = 0; w < n_threads / WARP; w++) warps[w].arrived = 0;
    for (int i = 0; i < n_threads; i++) begin(i);
    home.tsan = tsan_current();
    home.done = false;
    running = &home;
    from_home = true;
    tsan_release(&alive);
    give_way();
    tsan_acquire(&home);
}
} // namespace

order_state order;

unsigned lane() { return (unsigned)number(running) % WARP; }

void barrier(int line)
{
    if (at_barrier && barrier_line != line) refuse("__syncthreads at two different lines");
    if (alive < n_threads) refuse("__syncthreads that a thread which has ended does not reach");
    barrier_line = line;
    tsan_release(&at_barrier);
    if (++at_barrier == n_threads) {
        open_barrier();
        if (order.kind == RANDOM) {
            let_run(number(running));
            give_way();
        }
    } else {
        running->line = line;
        give_way();
    }
    tsan_acquire(&at_barrier);
}

slots *meet(const void *mine, size_t n, void (*all)(slots *), int line)
{
    const int i = number(running), first = i / WARP * WARP;
    warp *w = &warps[i / WARP];
    if (w->arrived && w->line != line) refuse("lanes of a warp meet at two different lines");
    w->line = line;
    slots *table = &w->table[w->parity];
    const unsigned char *bytes = (const unsigned char *)mine;
    for (size_t b = 0; b < n; b++) (*table)[i % WARP][b] = bytes[b];
    if (++w->arrived == WARP) {
        if (all) all(table);
        w->arrived = 0;
        w->parity ^= 1;
        for (int k = first; k < first + WARP; k++) {
            if (k != i) let_run(k);
        }
    } else {
        running->line = line;
        give_way();
    }
    return table;
}

void sync_warp(int line)
{
    warp *w = &warps[number(running) / WARP];
    tsan_release(w);
    meet(nullptr, 0, nullptr, line);
    tsan_acquire(w);
}

static void take(void *to, const slots *table, unsigned lane, size_t bytes)
{
    for (size_t b = 0; b < bytes; b++) ((unsigned char *)to)[b] = (*table)[lane][b];
}

void exchange(void *value, size_t bytes, unsigned from, int line)
{
    if (bytes > SLOT) refuse("an exchange of more than a slot holds");
    take(value, meet(value, bytes, nullptr, line), from % WARP, bytes);
}

/* ---- cp.async ---------------------------------------------------------------------------------------------------------------------- */
void copy_later(void *to, const void *from, size_t bytes, size_t zeros)
{
    copies *c = &async[number(running)];
    if (((uintptr_t)to | (bytes ? (uintptr_t)from : 0)) % 16) refuse("cp.async: an address is no multiple of 16");
    c->waiting.push_back({ to, from, bytes, zeros, c->group });
}

void commit_copies() { async[number(running)].group++; }

void wait_copies(int groups_left)
{
    copies *c = &async[number(running)];
    size_t kept = 0;
    for (const copy &one : c->waiting) {
        if (one.group >= c->group - groups_left) {
            c->waiting[kept++] = one;
            continue;
        }
        tsan_write(one.to, 16);
        if (one.bytes) memcpy(one.to, one.from, one.bytes);
        memset((char *)one.to + one.bytes, 0, one.zeros);
    }
    c->waiting.resize(kept);
}

/* ---- a grid ------------------------------------------------------------------------------------------------------------------------ */
void run_grid(const char *name, dim3 grid, unsigned threads, size_t shared_bytes, const std::function<void()> &body)
{
    kernel_name = name;
    kernel = &body;
    n_threads = (int)threads;
    block_size = dim3(threads);
    grid_size = grid;
    if (!stacks) {
        void *p =
            mmap(nullptr, (size_t)MAX_THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) refuse("no memory for stacks");
        stacks = (char *)p;
    }
    void *bytes = nullptr;
    if (shared_bytes && posix_memalign(&bytes, 128, shared_bytes)) refuse("no memory for shared memory");
    shared = (unsigned char *)bytes;
    const size_t n = (size_t)grid.x * grid.y * grid.z;
    for (size_t i = 0; i < n; i++) {
        /* Blocks come in any order, too: forwards, backwards, or from the middle. */
        const size_t k = order.kind == FIFO ? i : order.kind == LIFO ? n - 1 - i : (i + n / 2) % n;
        block = dim3((unsigned)(k % grid.x), (unsigned)(k / grid.x % grid.y), (unsigned)(k / ((size_t)grid.x * grid.y)));
        run_block(shared_bytes);
    }
    free(shared);
    shared = nullptr;
}
} // namespace sim
