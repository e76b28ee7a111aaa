/* py_check.c: _core.check: every kernel of a level against its C twin. */
#include "py_module.h"

#include "../kernels/check/check.h"
#include "../kernels/int8.h"
#include "../kernels/threads.h"

/* Results arrive while the GIL is away: each is one dict in the list. */
typedef struct {
    PyObject *list;
    bool failed;
} results;

static void collect(void *arg, const dllm_check_result *r)
{
    results *to = arg;
    const PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *row =
        Py_BuildValue("{s:s,s:s,s:d,s:d,s:N,s:s,s:d,s:d}", "kernel", r->kernel, "case", r->name, "error", r->error, "tolerance",
                      r->tolerance, "ok", PyBool_FromLong(r->ok), "why", r->why, "seconds", r->seconds, "seconds_c", r->seconds_c);
    if (!row || PyList_Append(to->list, row) < 0) to->failed = true;
    Py_XDECREF(row);
    PyGILState_Release(gil);
}

static PyObject *check(PyObject *module, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "level", "kernel", "seed", "timing", NULL };
    const char *level = "", *kernel = "";
    unsigned long long seed = 0;
    int timing = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|ssKp", names, &level, &kernel, &seed, &timing)) return NULL;
    char name[64];
    const bool gpu = strncmp(level, "cuda", 4) == 0;
    PyOS_snprintf(name, sizeof name, "%s%s%s", gpu ? "" : "cpu", gpu || !*level ? "" : ":", level);
    dllm_device *device;
    int status = dllm_device_open(&device, name, 0);
    if (status < 0) return dllm_py_raise(module, status);
    results to = { .list = PyList_New(0) };
    if (!to.list) return (dllm_device_close(device), NULL);
    Py_BEGIN_ALLOW_THREADS
    status = dllm_check(device, kernel, seed, timing, collect, &to);
    dllm_device_close(device);
    Py_END_ALLOW_THREADS
    if (status >= 0 && !to.failed) return to.list;
    Py_DECREF(to.list);
    return to.failed ? NULL : dllm_py_raise(module, status);
}

static PyObject *race(PyObject *module, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "n", "k", "rows", "laps", "threads", "level", NULL };
    const char *level = "";
    long long n, k;
    int rows, laps, threads = 0;
    double seconds[2];
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "LLii|is", names, &n, &k, &rows, &laps, &threads, &level)) return NULL;
    const dllm_ops *ops = dllm_ops_cpu(level);
    if (!ops) return PyErr_Format(PyExc_ValueError, "this processor has no level '%s'", level);
    if (n < 1 || k < 1 || rows < 1 || n > INT32_MAX || k > DLLM_I8_MAX_K)
        return PyErr_Format(PyExc_ValueError, "[%d, %lld] with [%lld, %lld] is no product that can run", rows, k, n, k);
    bool fine;
    Py_BEGIN_ALLOW_THREADS
    fine = dllm_race(ops, n, k, rows, threads > 0 ? threads : dllm_threads_default(), laps, seconds);
    Py_END_ALLOW_THREADS
    return fine ? Py_BuildValue("dd", seconds[0], seconds[1]) : PyErr_NoMemory();
}

PyMethodDef dllm_py_check_methods[] = {
    { "check", (PyCFunction)(void (*)(void))check, METH_VARARGS | METH_KEYWORDS,
      "check(level='', kernel='', seed=0, timing=False): every kernel of a level of the processor, or of a CUDA device, against "
      "its C "
      "twin, one dict a case." },
    { "race", (PyCFunction)(void (*)(void))race, METH_VARARGS | METH_KEYWORDS,
      "race(n, k, rows, laps, threads=0, level=''): best seconds of a product with bfloat16 and with int8 weights, in turns." },
    { 0 },
};
