/* threads_openmp.c: the OpenMP runtime that is in the process already, usually torch's. Its workers spin for a while after every
 * parallel region, so next to them workers of our own would wait for a processor, while its own are there at once. It is found by
 * name and never linked: a second copy of such a library in the process would be one more team that spins. */
#define _GNU_SOURCE
#include "threads_parts.h"

#include <dlfcn.h>
#include <link.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

/* The entry that the runtimes of GCC, LLVM and Intel share. */
typedef void openmp_entry(void (*fn)(void *), void *arg, unsigned threads, unsigned flags);

typedef struct {
    void (*fn)(void *arg, int task, int thread);
    void *arg;
    int threads;
    unsigned tasks;
    atomic_uint next;          /* task to be drawn */
    atomic_int seated;         /* threads that have come; a seat's number is its holder's thread index */
    _Atomic(int64_t) finished; /* when a thread was last done with its tasks */
} job;

static _Atomic(openmp_entry *) entry;
static atomic_bool refused;

/* GCC's runtime hangs in the child of a fork if the parent used it, and nobody can ask whether it did. */
static bool is_child_of_fork(void)
{
    enum { FORKED_WITHOUT_EXEC = 0x40 };
    char stat[512] = "";
    FILE *file = fopen("/proc/self/stat", "re");
    if (!file) return false;
    const size_t n = fread(stat, 1, sizeof stat - 1, file);
    fclose(file);
    stat[n] = '\0';
    const char *after_name = strrchr(stat, ')');
    unsigned flags = 0;
    return after_name && sscanf(after_name + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) == 1 && flags & FORKED_WITHOUT_EXEC;
}

static int open_torch(struct dl_phdr_info *object, size_t size, void *out)
{
    const char *slash = object->dlpi_name ? strrchr(object->dlpi_name, '/') : NULL;
    if (!slash || strcmp(slash, "/libtorch_cpu.so") != 0) return 0;
    *(void **)out = dlopen(object->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
    return 1;
}

/* What torch calls: names that are global in the process come first, then those of the libraries it was linked with. A runtime
 * that another library keeps to itself is left alone, for torch may come later and bring its own. */
static void *look_up(void)
{
    void *found = dlsym(RTLD_DEFAULT, "GOMP_parallel"), *torch = NULL;
    if (found) return found;
    dl_iterate_phdr(open_torch, &torch);
    if (!torch) return NULL;
    found = dlsym(torch, "GOMP_parallel");
    dlclose(torch);
    return found;
}

void dllm_openmp_find(void)
{
    void *found = atomic_load(&refused) ? NULL : look_up();
    Dl_info home;
    if (!found || !dladdr(found, &home)) return;
    if (is_child_of_fork()) {
        atomic_store(&refused, true);
        return;
    }
    dlopen(home.dli_fname, RTLD_LAZY | RTLD_NOLOAD); /* one more reference, so that it stays */
    openmp_entry *call;
    memcpy(&call, &found, sizeof call); /* ISO C has no cast from void * to a function */
    atomic_store(&entry, call);
}

bool dllm_openmp_found(void) { return atomic_load(&entry); }

const char *dllm_openmp_path(void)
{
    openmp_entry *call = atomic_load(&entry);
    void *address;
    memcpy(&address, &call, sizeof address);
    Dl_info home;
    return call && dladdr(address, &home) ? home.dli_fname : NULL;
}

void dllm_openmp_forget(void)
{
    atomic_store(&refused, true);
    atomic_store(&entry, NULL);
}

/* What a thread of the team does. The runtime may send fewer threads than were asked for. */
static void draw(void *arg)
{
    job *j = arg;
    const int thread = atomic_fetch_add(&j->seated, 1);
    if (thread >= j->threads) return;
    unsigned task = atomic_fetch_add_explicit(&j->next, 1, memory_order_relaxed);
    if (task >= j->tasks) return;
    do {
        j->fn(j->arg, (int)task, thread);
        task = atomic_fetch_add_explicit(&j->next, 1, memory_order_relaxed);
    } while (task < j->tasks);
    atomic_store(&j->finished, dllm_now());
}

int64_t dllm_openmp_parallel(int threads, int tasks, void (*fn)(void *arg, int task, int thread), void *arg)
{
    job j = { .fn = fn, .arg = arg, .threads = threads, .tasks = (unsigned)tasks };
    atomic_load (&entry)(draw, &j, (unsigned)threads, 0);
    return dllm_now() - atomic_load(&j.finished);
}
