/* cpu.c: which tables this processor can run. A level's table is the one below it with better kernels put in; all are built once.
 * */
#define _GNU_SOURCE
#include "../c/c.h"
#include "x86.h"

#include <pthread.h>
#include <string.h>

enum { LEVELS = 5 };

static struct {
    const char *names[LEVELS];
    const dllm_ops *tables[LEVELS];
    int n;
} cpu = { { "c" }, { &dllm_ops_c }, 1 };

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

static dllm_ops tables[LEVELS];

static bool has(unsigned leaf, unsigned sub, char reg, int bit)
{
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(leaf, sub, &a, &b, &c, &d)) return false;
    const unsigned r = reg == 'a' ? a : reg == 'b' ? b : reg == 'c' ? c : d;
    return r >> bit & 1;
}

/* The system saves these registers between threads. */
static bool saved(unsigned mask)
{
    if (!has(1, 0, 'c', 27)) return false;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & mask) == mask;
}

/* Linux gives a process the 8 KiB of tile registers only on request. */
static bool grant_tiles(void)
{
#if defined(__linux__)
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return saved(3u << 17) && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return false;
#endif
}

static bool has_vnni(void) { return has(7, 0, 'c', 11); }

static bool usable(dllm_x86_level level)
{
    switch (level) {
    case DLLM_X86_AVX2:
        return saved(0x6) && has(7, 0, 'b', 5) && has(1, 0, 'c', 12) && has(1, 0, 'c', 29);
    case DLLM_X86_AVX512F:
        return saved(0xe6) && has(7, 0, 'b', 16) && has(7, 0, 'b', 17) && has(7, 0, 'b', 30) && has(7, 0, 'b', 31);
    case DLLM_X86_AVX512BF16:
        return has(7, 1, 'a', 5) && has_vnni();
    case DLLM_X86_AMX:
        return has(7, 0, 'd', 22) && has(7, 0, 'd', 24) && has(7, 0, 'd', 25) && grant_tiles();
    }
    return false;
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

static size_t scratch(const dllm_device *d, const dllm_config *c, dllm_dtype act, int64_t rows, int64_t keys)
{
    const size_t x86 = larger(dllm_x86_linear_scratch(d, c, act, rows, keys), dllm_x86_attention_scratch(d, c, act, rows, keys));
    return larger(x86, dllm_ops_c.scratch(d, c, act, rows, keys));
}

static void build(void)
{
    static const char *const names[LEVELS] = { "c", "avx2", "avx512f", "avx512bf16", "amx" };
    for (int i = 1; i < LEVELS && usable((dllm_x86_level)i); i++, cpu.n++) {
        tables[i] = *cpu.tables[i - 1];
        tables[i].name = cpu.names[i] = names[i];
        tables[i].scratch = scratch;
        dllm_x86_rows(&tables[i], (dllm_x86_level)i);
        dllm_x86_keep(&tables[i], (dllm_x86_level)i);
        dllm_x86_linear(&tables[i], (dllm_x86_level)i, has_vnni());
        dllm_x86_attention(&tables[i], (dllm_x86_level)i);
        cpu.tables[i] = &tables[i];
    }
}

static dllm_burst *burst_of(int level, dllm_dtype t)
{
    return level ? dllm_x86_burst((dllm_x86_level)level, t, has_vnni()) : dllm_burst_c;
}
#else
static void build(void) {}
static dllm_burst *burst_of(int level, dllm_dtype t) { return dllm_burst_c; }
#endif

int dllm_cpu_levels(const char *const **names)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, build);
    *names = cpu.names;
    return cpu.n;
}

const dllm_ops *dllm_ops_cpu(const char *level)
{
    const char *const *names;
    const int n = dllm_cpu_levels(&names);
    if (!*level) return cpu.tables[n - 1];
    for (int i = 0; i < n; i++)
        if (strcmp(names[i], level) == 0) return cpu.tables[i];
    return NULL;
}

dllm_burst *dllm_cpu_burst(const dllm_ops *ops, dllm_dtype t)
{
    for (int i = 0; i < cpu.n; i++)
        if (cpu.tables[i] == ops) return burst_of(i, t);
    return NULL;
}
