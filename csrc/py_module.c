/* py_module.c: the extension module: its functions, exceptions and types. */
#define DLLM_PY_ARRAY_OWNER
#include "py_module.h"

#include <string.h>

#include "../kernels/ops.h"
#include "../kernels/threads.h"

/* ---- statuses as exceptions ------------------------------------------------------------------------------------------------- */
PyObject *dllm_py_raise(PyObject *module, int status)
{
    const dllm_py_state *state = PyModule_GetState(module);
    PyObject *const kinds[] = {
        [-DLLM_E_VALUE] = PyExc_ValueError,
        [-DLLM_E_TYPE] = PyExc_TypeError,
        [-DLLM_E_MEMORY] = PyExc_MemoryError,
        [-DLLM_E_FILE] = PyExc_FileNotFoundError,
        [-DLLM_E_CHECKPOINT] = state->checkpoint_error,
        [-DLLM_E_DEVICE] = state->device_error,
        [-DLLM_E_CALLBACK] = PyExc_RuntimeError,
    };
    if (PyErr_Occurred()) return NULL;       /* a callback's own exception goes first */
    const char *message = dllm_last_error(); /* may name a path that is no UTF-8 */
    PyObject *text = PyUnicode_DecodeUTF8(message, (Py_ssize_t)strlen(message), "replace");
    if (text) PyErr_SetObject(kinds[-status], text);
    Py_XDECREF(text);
    return NULL;
}

PyObject *dllm_py_raise_from(PyObject *self, int status) { return dllm_py_raise(PyType_GetModule(Py_TYPE(self)), status); }

PyObject *dllm_py_array(int type, int ndim, const int64_t *shape, const void *from)
{
    npy_intp dims[NPY_MAXDIMS];
    for (int i = 0; i < ndim; i++) dims[i] = (npy_intp)shape[i];
    PyObject *array = PyArray_SimpleNew(ndim, dims, type);
    if (array && from) memcpy(PyArray_DATA((PyArrayObject *)array), from, (size_t)PyArray_NBYTES((PyArrayObject *)array));
    return array;
}

static PyObject *py_cpu_levels(PyObject *module, PyObject *unused)
{
    const char *const *names;
    const int n = dllm_cpu_levels(&names);
    PyObject *list = PyList_New(n);
    for (int i = 0; list && i < n; i++) {
        PyObject *name = PyUnicode_FromString(names[i]);
        if (!name) Py_CLEAR(list);
        else PyList_SET_ITEM(list, i, name);
    }
    return list;
}

static PyObject *py_default_threads(PyObject *module, PyObject *unused) { return PyLong_FromLong(dllm_threads_default()); }
static PyObject *py_thread_runtime(PyObject *module, PyObject *unused) { return PyUnicode_DecodeFSDefault(dllm_threads_runtime()); }

static PyObject *py_use_threads(PyObject *module, PyObject *arg)
{
    const char *runtime = PyUnicode_AsUTF8(arg);
    if (!runtime) return NULL;
    const int status = dllm_threads_use(runtime);
    return status < 0 ? dllm_py_raise(module, status) : Py_NewRef(Py_None);
}

static PyObject *options_of(int method)
{
    PyObject *options = PyDict_New();
    const char *name, *help;
    double fallback;
    for (int i = 0; options && (name = dllm_strategy_option(method, i, &help, &fallback)); i++) {
        PyObject *about = Py_BuildValue("{s:d,s:s}", "default", fallback, "help", help);
        if (!about || PyDict_SetItemString(options, name, about) < 0) Py_CLEAR(options);
        Py_XDECREF(about);
    }
    return options;
}

static PyObject *py_strategies(PyObject *module, PyObject *unused)
{
    PyObject *all = PyDict_New();
    for (int i = 0; all && dllm_strategy_name(i); i++) {
        PyObject *options = options_of(i);
        if (!options || PyDict_SetItemString(all, dllm_strategy_name(i), options) < 0) Py_CLEAR(all);
        Py_XDECREF(options);
    }
    return all;
}

static PyObject *load(PyObject *module, PyObject *arg, int (*open)(const char *path))
{
    PyObject *path;
    if (!PyUnicode_FSConverter(arg, &path)) return NULL;
    int n;
    Py_BEGIN_ALLOW_THREADS
    n = open(PyBytes_AS_STRING(path));
    Py_END_ALLOW_THREADS
    Py_DECREF(path);
    return n < 0 ? dllm_py_raise(module, n) : PyLong_FromLong(n);
}

static PyObject *py_ceilings(PyObject *module, PyObject *args)
{
    const char *name;
    int threads;
    dllm_device *device;
    dllm_ceilings c;
    if (!PyArg_ParseTuple(args, "si", &name, &threads)) return NULL;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = dllm_device_open(&device, name, threads);
    if (status >= 0) status = dllm_device_ceilings(device, &c);
    dllm_device_close(device);
    Py_END_ALLOW_THREADS
    if (status < 0) return dllm_py_raise(module, status);
    return Py_BuildValue("{s:d,s:d,s:d,s:d}", "bytes", c.read, "float32", c.f32, "bfloat16", c.bf16, "int8", c.i8);
}

static PyObject *py_cuda_library(PyObject *module, PyObject *args)
{
    const char *device, *path;
    char found[1024];
    if (!PyArg_ParseTuple(args, "sz", &device, &path)) return NULL;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = dllm_cuda_library(device, path, found, sizeof found);
    Py_END_ALLOW_THREADS
    return status < 0 ? dllm_py_raise(module, status) : PyUnicode_FromString(found);
}

static PyObject *py_load_cuda(PyObject *module, PyObject *arg) { return load(module, arg, dllm_cuda_load); }

static PyObject *py_load_cuda_sim(PyObject *module, PyObject *arg) { return load(module, arg, dllm_cuda_sim_load); }

static PyMethodDef functions[] = {
    { "ceilings", py_ceilings, METH_VARARGS,
      "ceilings(device, threads): bytes read and operations of matrix products a second, at best; measured now." },
    { "cpu_levels", py_cpu_levels, METH_NOARGS, "Instruction-set levels this processor has, best last." },
    { "strategies", py_strategies, METH_NOARGS, "The caching methods: name to option to default and help." },
    { "default_threads", py_default_threads, METH_NOARGS, "How many processors this process may use." },
    { "thread_runtime", py_thread_runtime, METH_NOARGS, "\"own\", or the path of the OpenMP runtime that kernels run on." },
    { "use_threads", py_use_threads, METH_O, "use_threads(runtime): \"auto\" or \"own\"." },
    { "cuda_library", py_cuda_library, METH_VARARGS,
      "cuda_library(device, path): looks for cuBLAS, for devices \"cuda\" or \"cuda-sim\" opened later; what was found." },
    { "load_cuda", py_load_cuda, METH_O, "load_cuda(path): opens the CUDA plug-in; its device count." },
    { "load_cuda_sim", py_load_cuda_sim, METH_O, "load_cuda_sim(path): opens the GPU simulator; its device count." },
    { 0 },
};

/* ---- the module ----------------------------------------------------------------------------------------------------------------- */
static int add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **out)
{
    *out = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return *out ? PyModule_AddType(module, *out) : -1;
}

static int add_exception(PyObject *module, const char *name, const char *doc, PyObject *base, PyObject **out)
{
    char full[64];
    PyOS_snprintf(full, sizeof full, "dllm_fast.%s", name);
    *out = PyErr_NewExceptionWithDoc(full, doc, base, NULL);
    return *out ? PyModule_AddObjectRef(module, name, *out) : -1;
}

static int execute(PyObject *module)
{
    dllm_py_state *state = PyModule_GetState(module);
    if (PyArray_ImportNumPyAPI() < 0) return -1;
    if (add_exception(module, "CheckpointError", "A file or config that is there but is not a checkpoint this engine can run.",
                      PyExc_ValueError, &state->checkpoint_error) < 0 ||
        add_exception(module, "DeviceError", "The device is not there or failed.", PyExc_RuntimeError, &state->device_error) < 0 ||
        add_type(module, &dllm_py_model_spec, &state->model) < 0 || add_type(module, &dllm_py_session_spec, &state->session) < 0 ||
        PyModule_AddStringConstant(module, "__version__", dllm_version()) < 0 || PyModule_AddFunctions(module, functions) < 0 ||
        PyModule_AddFunctions(module, dllm_py_dlpack_methods) < 0 || PyModule_AddFunctions(module, dllm_py_check_methods) < 0 ||
        PyModule_AddFunctions(module, dllm_py_pieces_methods) < 0)
        return -1;
    return dllm_py_dlpack_init(module);
}

static int traverse(PyObject *module, visitproc visit, void *arg)
{
    dllm_py_state *state = PyModule_GetState(module);
    Py_VISIT(state->model);
    Py_VISIT(state->session);
    Py_VISIT(state->checkpoint_error);
    Py_VISIT(state->device_error);
    return 0;
}

static int clear(PyObject *module)
{
    dllm_py_state *state = PyModule_GetState(module);
    Py_CLEAR(state->model);
    Py_CLEAR(state->session);
    Py_CLEAR(state->checkpoint_error);
    Py_CLEAR(state->device_error);
    return 0;
}

static void free_module(void *module) { clear(module); }

static PyModuleDef_Slot slots[] = {
    { Py_mod_exec, execute },
#if PY_VERSION_HEX >= 0x030C0000
    { Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED },
#endif
    { 0, NULL },
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_core",
    .m_doc = "The C core of dllm_fast.",
    .m_size = sizeof(dllm_py_state),
    .m_slots = slots,
    .m_traverse = traverse,
    .m_clear = clear,
    .m_free = free_module,
};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }
