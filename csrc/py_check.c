/* py_check.c: _core.check: every kernel of a level against its C twin. */
#include "py_module.h"

#include "../kernels/check/check.h"

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

PyMethodDef dllm_py_check_methods[] = {
    { "check", (PyCFunction)(void (*)(void))check, METH_VARARGS | METH_KEYWORDS,
      "check(level='', kernel='', seed=0, timing=False): every kernel of a level of the processor, or of a CUDA device, against "
      "its C "
      "twin, one dict a case." },
    { 0 },
};
