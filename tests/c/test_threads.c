/* test_threads.c: dllm_parallel on our own pool and on borrowed runtimes. Each runtime gets a process of its own, because one that is
 * found stays: test_threads LIBRARY [own|local|late|real], without the second argument all in turn. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../csrc/dllm.h"
#include "../../kernels/threads.h"

#if defined(__SANITIZE_THREAD__)
enum { UNDER_TSAN = 1 }; /* starts no threads in the child of a fork, and does not see the synchronisation of a real runtime */
#else
enum { UNDER_TSAN = 0 };
#endif

#define CHECK(condition)                                                                                                           \
    do {                                                                                                                           \
        if (!(condition)) {                                                                                                        \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, __func__, #condition);                                          \
            _exit(1);                                                                                                              \
        }                                                                                                                          \
    } while (0)

/* ---- the contract ------------------------------------------------------------------------------------------------------------- */
enum { MAX_TASKS = 1000, MAX_THREADS = 16 };
struct count {
    int threads, tasks, inner; /* inner: tasks that each task shares out again */
    atomic_int done[MAX_TASKS], busy[MAX_THREADS];
};

static atomic_bool many_callers; /* then nobody knows who gets help */

struct inner {
    bool alone; /* all on the caller */
    atomic_int done[8];
};

static void inner_task(void *arg, int task, int thread)
{
    struct inner *i = arg;
    CHECK(thread == 0 || !i->alone);
    atomic_fetch_add(&i->done[task], 1);
}

static void count_task(void *arg, int task, int thread)
{
    struct count *c = arg;
    CHECK(task >= 0 && task < c->tasks && thread >= 0 && thread < c->threads);
    CHECK(atomic_exchange(&c->busy[thread], 1) == 0);
    struct inner inner = { .alone = c->threads > 1 && c->tasks > 1 && !atomic_load(&many_callers) };
    dllm_parallel(4, c->inner, inner_task, &inner);
    for (int i = 0; i < c->inner; i++) CHECK(atomic_load(&inner.done[i]) == 1);
    atomic_fetch_add(&c->done[task], 1);
    atomic_store(&c->busy[thread], 0);
}

static void run_and_count(int threads, int tasks, int inner)
{
    struct count *c = calloc(1, sizeof *c);
    c->threads = threads > 0 ? threads : 1;
    c->tasks = tasks;
    c->inner = inner;
    dllm_parallel(threads, tasks, count_task, c);
    for (int i = 0; i < MAX_TASKS; i++) CHECK(atomic_load(&c->done[i]) == (i < tasks));
    free(c);
}

static void check_every_size(void)
{
    const int sizes[] = { 0, 1, 2, 3, 7, 64, MAX_TASKS };
    for (int threads = 0; threads <= MAX_THREADS; threads += threads < 4 ? 1 : 4)
        for (int i = 0; i < (int)(sizeof sizes / sizeof *sizes); i++) run_and_count(threads, sizes[i], 0);
    for (int i = 0; i < 20; i++) run_and_count(2, 1 + i, i % 8);
}

static void *call_often(void *unused)
{
    for (int i = 0; i < 50; i++) run_and_count(1 + i % 4, 1 + i, i % 3);
    return NULL;
}

static void check_many_callers(void)
{
    pthread_t callers[4];
    atomic_store(&many_callers, true);
    for (int i = 0; i < 4; i++) CHECK(pthread_create(&callers[i], NULL, call_often, NULL) == 0);
    for (int i = 0; i < 4; i++) pthread_join(callers[i], NULL);
    atomic_store(&many_callers, false);
}

/* In the child only our own pool is safe, and it must start again. */
static void check_child_of_fork(void)
{
    if (UNDER_TSAN) return;
    const pid_t child = fork();
    if (child == 0) {
        alarm(60); /* ends a child that hangs */
        CHECK(strcmp(dllm_threads_runtime(), "own") == 0);
        check_every_size();
        check_many_callers();
        _exit(0);
    }
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

static void check_contract(void)
{
    check_every_size();
    check_many_callers();
    check_child_of_fork();
    check_every_size();
}

/* ---- runtimes ----------------------------------------------------------------------------------------------------------------- */
static void check_own(void)
{
    CHECK(strcmp(dllm_threads_runtime(), "own") == 0);
    check_contract();
    CHECK(dllm_threads_use("elsewhere") == DLLM_E_VALUE && strstr(dllm_last_error(), "elsewhere"));
    CHECK(dllm_threads_use("own") == 0 && dllm_threads_use("auto") == 0);
}

static atomic_int *knob(void *library, const char *name)
{
    atomic_int *found = dlsym(library, name);
    CHECK(found);
    return found;
}

static void run_soon(int threads, int tasks)
{
    nanosleep(&(struct timespec){ .tv_nsec = 20000000 }, NULL);
    run_and_count(threads, tasks, 0);
}

/* As torch is loaded where nothing of it is global. Its names are found through its library, and it may send few threads. */
static void check_local(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    CHECK(library && !dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    atomic_int *calls = knob(library, "standin_calls"), *asked = knob(library, "standin_asked");
    run_and_count(2, 8, 0);
    CHECK(*calls == 0 && strcmp(dllm_threads_runtime(), path) == 0);
    check_contract();
    CHECK(*calls > 0);
    for (int team = 1; team <= 3; team++) {
        *knob(library, "standin_team") = team;
        check_every_size();
    }
    CHECK(dllm_threads_use("own") == 0 && strcmp(dllm_threads_runtime(), "own") == 0);
    const int before = *calls;
    check_every_size();
    CHECK(*calls == before && dllm_threads_use("auto") == 0 && strcmp(dllm_threads_runtime(), path) == 0);
    while (*calls == before) run_soon(8, 3);    /* a team that came late before may still be out of favour */
    CHECK(*calls == before + 1 && *asked == 8); /* not 3: a team keeps its size */
}

/* A team that comes late is left alone for a multiple of what it cost. */
static void check_late(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    CHECK(library && strcmp(dllm_threads_runtime(), path) == 0);
    atomic_int *calls = knob(library, "standin_calls");
    *knob(library, "standin_late_ms") = 100;
    run_and_count(2, 8, 0);
    CHECK(*calls == 1);
    int own = 0;
    for (; *calls == 1; own++) run_soon(2, 8);
    CHECK(own > 1 && *calls == 2);
}

static void nothing(void *arg) {}

/* The parent uses the runtime, as torch does, before and after anybody looks for it. */
static void check_real(void)
{
    void *library = UNDER_TSAN ? NULL : dlopen("libgomp.so.1", RTLD_NOW | RTLD_GLOBAL);
    if (!library) {
        printf("no OpenMP runtime here to borrow\n");
        return;
    }
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
    void *symbol = dlsym(library, "GOMP_parallel");
    CHECK(symbol);
    memcpy(&parallel, &symbol, sizeof parallel);
    parallel(nothing, NULL, 4, 0);
    check_child_of_fork();
    CHECK(strstr(dllm_threads_runtime(), "libgomp"));
    check_contract();
    parallel(nothing, NULL, 4, 0);
    check_contract();
}

/* ---- how many ----------------------------------------------------------------------------------------------------------------- */
static void write_file(const char *root, const char *name, const char *text)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", root, name);
    for (char *at = path + strlen(root) + 1; (at = strchr(at, '/')); *at++ = '/') {
        *at = '\0';
        mkdir(path, 0700);
    }
    FILE *file = fopen(path, "w");
    CHECK(file && fputs(text, file) >= 0 && fclose(file) == 0);
}

static int quota(const char *root, const char *membership)
{
    char path[512];
    snprintf(path, sizeof path, "%s/cgroup", root);
    write_file(root, "cgroup", membership);
    return dllm_threads_quota(path, root);
}

static void check_quotas(void)
{
    char root[] = "/tmp/quotas-XXXXXX", remove[64];
    CHECK(mkdtemp(root) && dllm_threads_quota("/nowhere", root) == 0);
    write_file(root, "a/b/c/cpu.max", "max 100000\n");
    CHECK(quota(root, "0::/a/b/c\n") == 0 && quota(root, "0::/\n") == 0 && quota(root, "") == 0);
    write_file(root, "a/cpu.max", "350000 100000\n");
    CHECK(quota(root, "0::/a/b/c\n") == 4 && quota(root, "0::/a\n") == 4 && quota(root, "0::/b\n") == 0);
    write_file(root, "a/b/c/cpu.max", "100 100000\n");
    CHECK(quota(root, "0::/a/b/c\n") == 1 && quota(root, "0::/a/b\n") == 4);
    write_file(root, "cpu.max", "200000 100000\n"); /* as in a container that sees the host's path */
    CHECK(quota(root, "0::/docker/0123\n") == 2);
    write_file(root, "cpu.max", "nonsense\n");
    write_file(root, "cpu/d/cpu.cfs_quota_us", "-1\n");
    write_file(root, "cpu/d/cpu.cfs_period_us", "100000\n");
    CHECK(quota(root, "3:cpuset:/a\n2:cpu,cpuacct:/d\n0::/\n") == 0);
    write_file(root, "cpu/d/cpu.cfs_quota_us", "600000\n");
    CHECK(quota(root, "2:cpuacct,cpu:/d\n") == 6 && quota(root, "2:cpuacct:/d\n3:cpuset:/d\n") == 0);
    CHECK(quota(root, "4:cpu:/d\n0::/a\n") == 4 && quota(root, "no colon\n:\n::\n0:cpu\n") == 0);
    CHECK(dllm_threads_default() >= 1);
    snprintf(remove, sizeof remove, "rm -r %s", root);
    CHECK(system(remove) == 0);
}

/* ---- every runtime in a process of its own ------------------------------------------------------------------------------------ */
static void run_alone(char *self, char *library, char *which)
{
    const pid_t child = fork();
    if (child == 0) {
        execv(self, (char *[]){ self, library, which, NULL });
        _exit(127);
    }
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

int main(int argc, char **argv)
{
    static char *const all[] = { "own", "local", "late", "real" };
    CHECK(argc == 2 || argc == 3);
    char *path = realpath(argv[1], NULL);
    CHECK(path);
    const char *which = argc == 3 ? argv[2] : "";
    if (argc == 3) alarm(300);
    if (argc == 2) check_quotas();
    for (int i = 0; argc == 2 && i < 4; i++) run_alone(argv[0], path, all[i]);
    if (strcmp(which, "own") == 0) check_own();
    if (strcmp(which, "local") == 0) check_local(path);
    if (strcmp(which, "late") == 0) check_late(path);
    if (strcmp(which, "real") == 0) check_real();
    free(path);
    return 0;
}
