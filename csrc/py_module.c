/* py_module.c: the extension module: its functions, exceptions and types. */
#define DLLM_PY_ARRAY_OWNER
#include "py_module.h"

#include <string.h>

#include "../kernels/ops.h"
#include "session.h"

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
    if (PyErr_Occurred()) return NULL; /* a callback's own exception goes first */
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

/* ---- pieces ------------------------------------------------------------------------------------------------------------------- */
static PyObject *py_times(PyObject *module, PyObject *args)
{
    int steps;
    float eps;
    if (!PyArg_ParseTuple(args, "if", &steps, &eps)) return NULL;
    if (steps < 0 || steps > 1 << 24) return PyErr_Format(PyExc_ValueError, "%d steps", steps);
    const int64_t shape[] = { steps + 1 };
    PyObject *out = dllm_py_array(NPY_FLOAT32, 1, shape, NULL);
    if (out) dllm_times(PyArray_DATA((PyArrayObject *)out), steps, eps);
    return out;
}

static PyObject *py_rope_table(PyObject *module, PyObject *args)
{
    PyObject *given;
    int head_dim;
    float theta;
    if (!PyArg_ParseTuple(args, "Oif", &given, &head_dim, &theta)) return NULL;
    if (head_dim < 2 || head_dim > 1 << 16) return PyErr_Format(PyExc_ValueError, "head_dim %d", head_dim);
    PyArrayObject *positions = (PyArrayObject *)PyArray_FROMANY(given, NPY_INT32, 1, 1, NPY_ARRAY_IN_ARRAY);
    if (!positions) return NULL;
    const int64_t shape[] = { PyArray_SIZE(positions), head_dim / 2 };
    PyObject *c = dllm_py_array(NPY_FLOAT32, 2, shape, NULL), *s = dllm_py_array(NPY_FLOAT32, 2, shape, NULL);
    for (npy_intp i = 0; c && s && i < shape[0]; i++) {
        dllm_rope_row(PyArray_GETPTR2((PyArrayObject *)c, i, 0), PyArray_GETPTR2((PyArrayObject *)s, i, 0),
                      *(int32_t *)PyArray_GETPTR1(positions, i), head_dim, theta);
    }
    Py_DECREF(positions);
    PyObject *out = c && s ? PyTuple_Pack(2, c, s) : NULL;
    Py_XDECREF(c);
    Py_XDECREF(s);
    return out;
}

/* The numbers of a recorded draw, in the type that the sampling rule reads; NULL with an exception if they are not [rows, vocab]. */
static PyArrayObject *recorded_draw(PyObject *given, bool gumbel, int64_t rows, int64_t vocab)
{
    PyArrayObject *a = (PyArrayObject *)PyArray_FROMANY(given, gumbel ? NPY_FLOAT64 : NPY_FLOAT32, 2, 2, NPY_ARRAY_IN_ARRAY);
    if (a && (PyArray_DIM(a, 0) != rows || PyArray_DIM(a, 1) != vocab)) {
        PyErr_Format(PyExc_ValueError, "noise [%zd, %zd] for logits [%lld, %lld]", (Py_ssize_t)PyArray_DIM(a, 0),
                     (Py_ssize_t)PyArray_DIM(a, 1), (long long)rows, (long long)vocab);
        Py_CLEAR(a);
    }
    return a;
}

static PyObject *predict_array(PyObject *module, PyArrayObject *logits, const dllm_params *p, PyObject *given_noise)
{
    const int64_t rows = PyArray_DIM(logits, 0), vocab = PyArray_DIM(logits, 1);
    PyArrayObject *noise = given_noise == Py_None ? NULL : recorded_draw(given_noise, p->gumbel, rows, vocab);
    if (given_noise != Py_None && !noise) return NULL;
    PyObject *token = dllm_py_array(NPY_INT32, 1, &rows, NULL), *score = dllm_py_array(NPY_FLOAT32, 1, &rows, NULL);
    PyObject *prob = dllm_py_array(NPY_FLOAT32, 1, &rows, NULL), *out = NULL;
    if (token && score && prob) {
        const dllm_mat m = { PyArray_DATA(logits), rows, vocab, vocab, DLLM_F32 };
        const int status = dllm_predict(m, p, noise ? PyArray_DATA(noise) : NULL, PyArray_DATA((PyArrayObject *)token),
                                        PyArray_DATA((PyArrayObject *)score), PyArray_DATA((PyArrayObject *)prob));
        out = status < 0 ? dllm_py_raise(module, status) : PyTuple_Pack(3, token, score, prob);
    }
    Py_XDECREF(token);
    Py_XDECREF(score);
    Py_XDECREF(prob);
    Py_XDECREF(noise);
    return out;
}

static PyObject *py_predict(PyObject *module, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "logits", "params", "noise", NULL };
    PyObject *given, *mapping, *noise = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO|O", names, &given, &mapping, &noise)) return NULL;
    /* A copy: the kernel works in place. */
    PyArrayObject *logits =
        (PyArrayObject *)PyArray_FROMANY(given, NPY_FLOAT32, 2, 2, NPY_ARRAY_DEFAULT | NPY_ARRAY_ENSURECOPY);
    if (!logits) return NULL;
    const dllm_config c = { .family = DLLM_LLADA, .vocab = (int32_t)PyArray_DIM(logits, 1), .mask_id = -1, .eos_id = -1, .eot_id = -1 };
    dllm_params p;
    PyObject *out = dllm_py_params(module, mapping, &c, &p) < 0 ? NULL : predict_array(module, logits, &p, noise);
    Py_DECREF(logits);
    return out;
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

static PyObject *py_load_cuda(PyObject *module, PyObject *arg)
{
    PyObject *path;
    if (!PyUnicode_FSConverter(arg, &path)) return NULL;
    int n;
    Py_BEGIN_ALLOW_THREADS n = dllm_cuda_load(PyBytes_AS_STRING(path));
    Py_END_ALLOW_THREADS Py_DECREF(path);
    return n < 0 ? dllm_py_raise(module, n) : PyLong_FromLong(n);
}

static PyMethodDef functions[] = {
    { "times", py_times, METH_VARARGS, "times(steps, eps): torch.linspace(1, eps, steps + 1) in float32, bit for bit." },
    { "rope_table", py_rope_table, METH_VARARGS, "rope_table(positions, head_dim, theta): (cos, sin), each [positions, head_dim / 2]." },
    { "predict", (PyCFunction)(void (*)(void))py_predict, METH_VARARGS | METH_KEYWORDS,
      "predict(logits, params, noise=None): (token, score, probability) of every row, as a session would choose them." },
    { "cpu_levels", py_cpu_levels, METH_NOARGS, "Instruction-set levels this processor has, best last." },
    { "load_cuda", py_load_cuda, METH_O, "load_cuda(path): opens the CUDA plug-in; its device count." },
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
        PyModule_AddFunctions(module, dllm_py_dlpack_methods) < 0 || PyModule_AddFunctions(module, dllm_py_check_methods) < 0)
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
