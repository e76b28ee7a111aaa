/* threads_default.c: how many processors this process may use. The number of processors of the machine says nothing in a container
 * or under a batch system. */
#define _GNU_SOURCE
#include "threads.h"

#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { PATH = 4096 };

/* The first numbers of <root><group>/<name>. Version 2 writes "max" for no limit, version 1 writes -1. */
static bool read_numbers(double *number, int n, const char *root, const char *group, const char *name)
{
    char path[PATH];
    const int length = snprintf(path, sizeof path, "%s%s/%s", root, group, name);
    FILE *file = length > 0 && length < PATH ? fopen(path, "re") : NULL;
    int found = 0;
    while (file && found < n && fscanf(file, "%lf", &number[found]) == 1) found++;
    if (file) fclose(file);
    return found == n;
}

/* Processors' worth of time that the group may use, rounded up; 0: no limit of its own. */
static int quota_of(const char *root, const char *group, bool unified)
{
    double time[2]; /* to run, on all processors together, in a period */
    if (unified ? !read_numbers(time, 2, root, group, "cpu.max")
                : !read_numbers(&time[0], 1, root, group, "cpu.cfs_quota_us") ||
                      !read_numbers(&time[1], 1, root, group, "cpu.cfs_period_us"))
        return 0;
    return time[0] > 0 && time[1] > 0 && time[0] < 1e6 * time[1] ? (int)ceil(time[0] / time[1]) : 0;
}

/* The least quota of the group and those above it. In a container the path may be the host's: what is not there limits nothing. */
static int least_quota(const char *root, char *group, bool unified)
{
    int least = 0;
    for (;;) {
        const int quota = quota_of(root, group, unified);
        if (quota && (!least || quota < least)) least = quota;
        char *slash = strrchr(group, '/');
        if (!slash) return least;
        *slash = '\0';
    }
}

/* Whether a list like "cpu,cpuacct" has cpu in it. */
static bool has_cpu(const char *controllers)
{
    for (const char *at = controllers; (at = strstr(at, "cpu")); at += 3)
        if ((at == controllers || at[-1] == ',') && (at[3] == '\0' || at[3] == ',')) return true;
    return false;
}

int dllm_threads_quota(const char *membership, const char *root)
{
    char line[PATH], cpu[PATH];
    int least = 0;
    FILE *file = fopen(membership, "re");
    snprintf(cpu, sizeof cpu, "%s/cpu", root);
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(++controllers, ':') : NULL;
        if (!group) continue;
        *group++ = '\0';
        const bool unified = !*controllers;
        if (!unified && !has_cpu(controllers)) continue;
        const int quota = least_quota(unified ? root : cpu, group, unified);
        if (quota && (!least || quota < least)) least = quota;
    }
    if (file) fclose(file);
    return least;
}

static int processors(void)
{
#if defined(__linux__)
    for (int cpus = 1024; cpus <= 1 << 20; cpus *= 2) { /* the kernel refuses a set smaller than its own */
        cpu_set_t *set = CPU_ALLOC(cpus);
        const size_t size = CPU_ALLOC_SIZE(cpus);
        const bool known = set && sched_getaffinity(0, size, set) == 0;
        const int n = known ? CPU_COUNT_S(size, set) : 0;
        CPU_FREE(set);
        if (n > 0) return n;
    }
#endif
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 1 ? (int)online : 1;
}

int dllm_threads_default(void)
{
    const int n = processors(), quota = dllm_threads_quota("/proc/self/cgroup", "/sys/fs/cgroup");
    return quota && quota < n ? quota : n;
}
