/* py_dlpack.c: tensors that come in from Python: NumPy arrays, DLPack's C exchange API (one C call, torch 2.10 and later), and the
 * __dlpack__ method in its versioned and unversioned forms. Nothing is ever copied. There is no mutable state in this file. */
#define PY_SSIZE_T_CLEAN
#include "py_dlpack.h"

#include "../kernels/ops.h"

#define PY_ARRAY_UNIQUE_SYMBOL dllm_array_api
#define NO_IMPORT_ARRAY
#include <numpy/arrayobject.h>

/* ---- kinds of numbers ------------------------------------------------------------------------------------------------------ */
static const struct {
    uint8_t code, bits;
    int numpy;
} kinds[] = {
    { DLPACK_FLOAT, 32, NPY_FLOAT32 }, { DLPACK_FLOAT, 16, NPY_FLOAT16 }, { DLPACK_FLOAT, 64, NPY_FLOAT64 },
    { DLPACK_BFLOAT, 16, NPY_UINT16 }, { DLPACK_INT, 8, NPY_INT8 },       { DLPACK_INT, 16, NPY_INT16 },
    { DLPACK_INT, 32, NPY_INT32 },     { DLPACK_INT, 64, NPY_INT64 },     { DLPACK_UINT, 8, NPY_UINT8 },
    { DLPACK_UINT, 16, NPY_UINT16 },   { DLPACK_UINT, 32, NPY_UINT32 },   { DLPACK_UINT, 64, NPY_UINT64 },
    { DLPACK_BOOL, 8, NPY_BOOL },
};

static int numpy_kind(int code, int bits) /* -1: NumPy has none */
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (kinds[i].code == code && kinds[i].bits == bits) return kinds[i].numpy;
    return -1;
}

/* Three arguments for "%s%s%s". */
#define NAMED(what) (what) ? "tensor '" : "the tensor", (what) ? (what) : "", (what) ? "'" : ""

static int refuse_kind(dlpack_dtype t, const char *what)
{
    static const char *const names[] = { "int", "uint", "float", "handle", "bfloat", "complex", "bool" };
    if (t.code < sizeof names / sizeof *names && t.lanes == 1)
        PyErr_Format(PyExc_TypeError, "%s%s%s has dtype %s%d, which is not supported here", NAMED(what), names[t.code], t.bits);
    else
        PyErr_Format(PyExc_TypeError, "%s%s%s has a dtype that is not supported here (DLPack code %d, %d bits, %d lanes)",
                     NAMED(what), t.code, t.bits, t.lanes);
    return -1;
}

/* ml_dtypes.bfloat16, the one NumPy dtype that says so; nothing of that package is needed to recognise it. */
static bool is_bfloat16(PyArrayObject *array)
{
    PyArray_Descr *descr = PyArray_DESCR(array);
    return PyArray_ITEMSIZE(array) == 2 && descr->type_num >= NPY_USERDEF && strstr(descr->typeobj->tp_name, "bfloat16");
}

dlpack_dtype dllm_py_dtype_of(PyObject *o)
{
    PyArrayObject *array = (PyArrayObject *)o;
    const dlpack_dtype bfloat16 = { DLPACK_BFLOAT, 16, 1 }, none = { 255, 0, 1 };
    if (is_bfloat16(array)) return bfloat16;
    const char kind = PyArray_DESCR(array)->kind;
    const char *found = strchr("iufcb", kind);
    if (!kind || !found) return none;
    static const uint8_t codes[] = { DLPACK_INT, DLPACK_UINT, DLPACK_FLOAT, DLPACK_COMPLEX, DLPACK_BOOL };
    const npy_intp bits = PyArray_ITEMSIZE(array) * 8;
    return (dlpack_dtype){ codes[found - "iufcb"], (uint8_t)(bits < 255 ? bits : 0), 1 };
}

/* ---- into a dllm_py_tensor ------------------------------------------------------------------------------------------------- */
static void release_object(void *owner) { Py_DECREF((PyObject *)owner); }

static void release_managed(void *owner)
{
    dlpack_managed *m = owner;
    if (m->deleter) m->deleter(m);
}

static void release_versioned(void *owner)
{
    dlpack_versioned *m = owner;
    if (m->deleter) m->deleter(m);
}

void dllm_py_tensor_release(dllm_py_tensor *t)
{
    void (*release)(void *) = t->release;
    t->release = NULL;
    t->data = NULL;
    if (!release) return;
    PyObject *type, *value, *trace; /* a deleter may run Python code, which wants no exception to be pending */
    PyErr_Fetch(&type, &value, &trace);
    release(t->owner);
    PyErr_Restore(type, value, trace);
}

static bool is_on(dlpack_device device, const dllm_device *on)
{
    return on && !dllm_is_host(on) && device.type == DLPACK_CUDA && device.id == on->index;
}

static int check_device(dlpack_device device, const char *what, const dllm_device *on)
{
    const char *name = device.type == DLPACK_CUDA ? "cuda" : device.type == DLPACK_CUDA_MANAGED ? "managed memory of cuda" : NULL;
    if (device.type == DLPACK_CPU || device.type == DLPACK_CUDA_HOST || is_on(device, on)) return 0;
    if (device.type == DLPACK_ROCM) name = "rocm";
    if (name && on)
        PyErr_Format(PyExc_ValueError, "%s%s%s is on %s:%d, but the model is on %s: all must be on one device", NAMED(what), name,
                     device.id, on->name);
    else if (name) PyErr_Format(PyExc_ValueError, "%s%s%s is on %s:%d; pass its .cpu()", NAMED(what), name, device.id);
    else PyErr_Format(PyExc_ValueError, "%s%s%s is on DLPack device type %d, not on the CPU", NAMED(what), device.type);
    return -1;
}

static int check_dims(int ndim, const char *what)
{
    if (ndim >= 0 && ndim <= DLLM_PY_MAX_DIMS) return 0;
    PyErr_Format(PyExc_ValueError, "%s%s%s has %d dimensions; at most %d are supported", NAMED(what), ndim, DLLM_PY_MAX_DIMS);
    return -1;
}

static int set_shape(dllm_py_tensor *out, const dlpack_tensor *t, const char *what)
{
    if (check_dims(t->ndim, what) < 0) return -1;
    int64_t size = 1;
    out->ndim = t->ndim;
    for (int i = t->ndim - 1; i >= 0; i--) {
        out->shape[i] = t->shape[i];
        out->stride[i] = t->strides ? t->strides[i] : size;
        size *= t->shape[i];
    }
    if (size && !t->data) {
        PyErr_Format(PyExc_ValueError, "%s%s%s has no data; is it on the meta device?", NAMED(what));
        return -1;
    }
    out->data = size ? (char *)t->data + t->byte_offset : NULL;
    return 0;
}

/* Everything but the owner. */
static int set_view(dllm_py_tensor *out, const dlpack_tensor *t, bool read_only, const char *what, const dllm_device *on)
{
    if (t->dtype.lanes != 1 || numpy_kind(t->dtype.code, t->dtype.bits) < 0) return refuse_kind(t->dtype, what);
    if (check_device(t->device, what, on) < 0 || set_shape(out, t, what) < 0) return -1;
    if ((uintptr_t)out->data % (t->dtype.bits / 8u)) {
        PyErr_Format(PyExc_ValueError, "%s%s%s is not aligned to its %d-bit elements; pass a copy", NAMED(what), t->dtype.bits);
        return -1;
    }
    out->code = t->dtype.code;
    out->bits = t->dtype.bits;
    out->device_type = t->device.type;
    out->device_id = t->device.id;
    out->read_only = read_only;
    return 0;
}

int dllm_py_describe(PyObject *o, dlpack_tensor *t, int64_t *shape, int64_t *strides, const char *what)
{
    PyArrayObject *array = (PyArrayObject *)o;
    const npy_intp itemsize = PyArray_ITEMSIZE(array);
    *t = (dlpack_tensor){ PyArray_DATA(array), { DLPACK_CPU, 0 }, PyArray_NDIM(array), dllm_py_dtype_of(o), shape, strides, 0 };
    if (numpy_kind(t->dtype.code, t->dtype.bits) < 0) {
        PyErr_Format(PyExc_TypeError, "%s%s%s has dtype %S, which is not supported here", NAMED(what), PyArray_DESCR(array));
        return -1;
    }
    if (check_dims(t->ndim, what) < 0) return -1;
    bool plain = !PyArray_ISBYTESWAPPED(array);
    for (int i = 0; i < t->ndim; i++) {
        shape[i] = PyArray_DIM(array, i);
        strides[i] = PyArray_STRIDE(array, i) / itemsize;
        plain = plain && PyArray_STRIDE(array, i) % itemsize == 0;
    }
    if (plain) return 0;
    PyErr_Format(PyExc_ValueError, "%s%s%s has swapped bytes or strides of a fraction of an element; pass a copy", NAMED(what));
    return -1;
}

static int take_array(PyObject *array, const char *what, dllm_py_tensor *out)
{
    int64_t shape[DLLM_PY_MAX_DIMS], strides[DLLM_PY_MAX_DIMS];
    dlpack_tensor t;
    if (dllm_py_describe(array, &t, shape, strides, what) < 0 ||
        set_view(out, &t, !PyArray_ISWRITEABLE((PyArrayObject *)array), what, NULL) < 0)
        return -1;
    out->owner = Py_NewRef(array);
    out->release = release_object;
    return 0;
}

static int take_versioned(dlpack_versioned *m, const char *what, const dllm_device *on, dllm_py_tensor *out)
{
    out->owner = m;
    out->release = release_versioned;
    return set_view(out, &m->tensor, m->flags & DLPACK_READ_ONLY, what, on);
}

int dllm_py_find_attribute(PyObject *o, const char *name, PyObject **value)
{
    *value = PyObject_GetAttrString(o, name);
    if (*value) return 1;
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) return -1;
    PyErr_Clear();
    return 0;
}

/* Tables live as long as the process, so the capsule need not be kept. */
int dllm_py_find_exchange(PyTypeObject *type, dlpack_exchange **api)
{
    PyObject *capsule;
    const int found = dllm_py_find_attribute((PyObject *)type, "__dlpack_c_exchange_api__", &capsule);
    if (found <= 0) return found;
    dlpack_exchange_header *h =
        PyCapsule_IsValid(capsule, "dlpack_exchange_api") ? PyCapsule_GetPointer(capsule, "dlpack_exchange_api") : NULL;
    Py_DECREF(capsule);
    while (h && h->version.major != DLPACK_MAJOR) h = h->previous;
    *api = (dlpack_exchange *)h;
    return h != NULL;
}

/* Renaming the capsule is what tells its destructor that the tensor has a new owner. */
static int take_capsule(PyObject *capsule, const char *what, const dllm_device *on, dllm_py_tensor *out)
{
    if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
        dlpack_versioned *m = PyCapsule_GetPointer(capsule, "dltensor_versioned");
        if (m->version.major != DLPACK_MAJOR) {
            PyErr_Format(PyExc_BufferError, "%s%s%s speaks DLPack %u; version %d is understood here", NAMED(what), m->version.major,
                         DLPACK_MAJOR);
            return -1;
        }
        if (PyCapsule_SetName(capsule, "used_dltensor_versioned") < 0) return -1;
        return take_versioned(m, what, on, out);
    }
    if (PyCapsule_IsValid(capsule, "dltensor")) {
        dlpack_managed *m = PyCapsule_GetPointer(capsule, "dltensor");
        if (PyCapsule_SetName(capsule, "used_dltensor") < 0) return -1;
        out->owner = m;
        out->release = release_managed;
        return set_view(out, &m->tensor, false, what, on);
    }
    PyErr_Format(PyExc_TypeError, "%s%s%s: __dlpack__ gave no unused DLPack capsule", NAMED(what));
    return -1;
}

/* Our stream comes after another one of the GPU that the tensor is on. */
static int come_after(dllm_device *on, void *stream)
{
    if (dllm_device_after(on, stream) >= 0) return 0;
    PyErr_SetString(PyExc_RuntimeError, dllm_last_error());
    return -1;
}

int dllm_py_come_after(dlpack_exchange *framework, dllm_device *on)
{
    void *stream;
    if (!framework) return 0;
    return framework->current_stream(DLPACK_CUDA, on->index, &stream) < 0 ? -1 : come_after(on, stream);
}

/* On a GPU the producer makes the consumer's stream, which is ours, wait for what it has asked for. */
static PyObject *call_method(PyObject *method, const dllm_device *consumer)
{
    PyObject *none = PyTuple_New(0), *version = Py_BuildValue("{s(ii)}", "max_version", DLPACK_MAJOR, DLPACK_MINOR),
             *stream = consumer ? PyLong_FromVoidPtr(consumer->stream) : NULL, *capsule = NULL;
    bool fine = none && version && (!consumer || stream);
    if (fine && stream) fine = PyDict_SetItemString(version, "stream", stream) == 0;
    if (fine) capsule = PyObject_Call(method, none, version);
    if (fine && !capsule && PyErr_ExceptionMatches(PyExc_TypeError)) { /* a producer from before 1.0 */
        PyErr_Clear();
        if (PyDict_DelItemString(version, "max_version") == 0) capsule = PyObject_Call(method, none, version);
    }
    Py_XDECREF(none);
    Py_XDECREF(version);
    Py_XDECREF(stream);
    return capsule;
}

int dllm_py_device_of(PyObject *o, dlpack_device *out)
{
    PyObject *method;
    const int found = dllm_py_find_attribute(o, "__dlpack_device__", &method);
    if (found <= 0) return found;
    PyObject *said = PyObject_CallNoArgs(method), *pair = said ? PySequence_Tuple(said) : NULL;
    const int fine = pair && PyArg_ParseTuple(pair, "ii", &out->type, &out->id);
    Py_DECREF(method);
    Py_XDECREF(said);
    Py_XDECREF(pair);
    return fine ? 1 : -1;
}

/* Where it is on a GPU is asked first: whoever is not told a stream may refuse, or wait for the wrong one. */
static int take_method(PyObject *o, PyObject *method, const char *what, dllm_device *on, dllm_py_tensor *out)
{
    dlpack_device device;
    const int said = dllm_py_device_of(o, &device);
    if (said < 0 || (said && check_device(device, what, on) < 0)) return -1;
    const bool told = said && is_on(device, on);
    PyObject *capsule = call_method(method, told ? on : NULL);
    if (!capsule) return -1;
    int status = take_capsule(capsule, what, on, out);
    Py_DECREF(capsule);
    if (status == 0 && !told && out->device_type == DLPACK_CUDA) status = come_after(on, NULL);
    return status;
}

static int take_exchanged(dlpack_exchange *api, PyObject *o, const char *what, dllm_device *on, dllm_py_tensor *out)
{
    dlpack_versioned *m = NULL;
    if (api->from_object(o, &m) < 0 || take_versioned(m, what, on, out) < 0) return -1;
    out->exchange = api;
    return out->device_type == DLPACK_CUDA ? dllm_py_come_after(api, on) : 0;
}

/* 1: taken; 0: o is no DLPack tensor; -1. */
static int take_dlpack(PyObject *o, const char *what, dllm_device *on, dllm_py_tensor *out)
{
    dlpack_exchange *api;
    int found = dllm_py_find_exchange(Py_TYPE(o), &api);
    if (found < 0) return -1;
    if (found) return take_exchanged(api, o, what, on, out) < 0 ? -1 : 1;
    PyObject *method;
    found = dllm_py_find_attribute(o, "__dlpack__", &method);
    if (found <= 0) return found;
    const int status = take_method(o, method, what, on, out);
    Py_DECREF(method);
    return status < 0 ? -1 : 1;
}

/* The exchange API hands out tensors of a graph without a word, and results would silently leave autograd. And what torch says
 * about tensors on the meta device is long. */
static int check_usable(PyObject *o, const char *what)
{
    static const char *const attributes[] = { "requires_grad", "is_meta" };
    static const char *const words[] = { "requires grad; pass its .detach()", "is on the meta device and has no data" };
    for (int i = 0; i < 2; i++) {
        PyObject *value;
        const int found = dllm_py_find_attribute(o, attributes[i], &value);
        if (found < 0) return -1;
        if (!found) continue;
        const bool bad = value == Py_True;
        Py_DECREF(value);
        if (!bad) continue;
        PyErr_Format(PyExc_ValueError, "%s%s%s %s", NAMED(what), words[i]);
        return -1;
    }
    return 0;
}

/* Like take_dlpack, for arrays too. */
static int take_any(PyObject *o, const char *what, dllm_device *on, dllm_py_tensor *out)
{
    *out = (dllm_py_tensor){ 0 };
    if (PyArray_Check(o)) return take_array(o, what, out) < 0 ? -1 : 1;
    if (check_usable(o, what) < 0) return -1;
    const int taken = take_dlpack(o, what, on, out);
    if (taken < 0) dllm_py_tensor_release(out);
    return taken;
}

int dllm_py_tensor_get(PyObject *o, const char *what, dllm_device *on, dllm_py_tensor *out)
{
    const int taken = take_any(o, what, on, out);
    if (!taken)
        PyErr_Format(PyExc_TypeError,
                     "%s%s%s is of type %.100s; expected a torch tensor, a NumPy array, or another object with __dlpack__",
                     NAMED(what), Py_TYPE(o)->tp_name);
    return taken > 0 ? 0 : -1;
}

/* ---- to_numpy -------------------------------------------------------------------------------------------------------------- */
static void release_capsule(PyObject *capsule)
{
    dllm_py_tensor *t = PyCapsule_GetPointer(capsule, NULL);
    dllm_py_tensor_release(t);
    PyMem_Free(t);
}

/* Moves *t into an object that releases it. */
static PyObject *keeper(dllm_py_tensor *t)
{
    dllm_py_tensor *kept = PyMem_Malloc(sizeof *kept);
    if (!kept) return PyErr_NoMemory();
    *kept = *t;
    PyObject *capsule = PyCapsule_New(kept, NULL, release_capsule);
    if (!capsule) PyMem_Free(kept);
    else t->release = NULL;
    return capsule;
}

static PyObject *view_as_array(dllm_py_tensor *t)
{
    npy_intp shape[DLLM_PY_MAX_DIMS], strides[DLLM_PY_MAX_DIMS];
    const int kind = numpy_kind(t->code, t->bits);
    for (int i = 0; i < t->ndim; i++) {
        shape[i] = (npy_intp)t->shape[i];
        strides[i] = (npy_intp)(t->stride[i] * (t->bits / 8));
    }
    if (!t->data) return PyArray_SimpleNew(t->ndim, shape, kind); /* nothing to share */
    PyObject *owner = keeper(t);
    if (!owner) return NULL;
    PyObject *array =
        PyArray_New(&PyArray_Type, t->ndim, shape, kind, strides, t->data, 0, t->read_only ? 0 : NPY_ARRAY_WRITEABLE, NULL);
    if (!array) {
        Py_DECREF(owner);
        return NULL;
    }
    PyArray_UpdateFlags((PyArrayObject *)array, NPY_ARRAY_UPDATE_ALL);
    if (PyArray_SetBaseObject((PyArrayObject *)array, owner) == 0) return array; /* takes owner, also when it fails */
    Py_DECREF(array);
    return NULL;
}

static PyObject *array_from_list(PyObject *o)
{
    PyObject *array = PyArray_FROM_O(o);
    if (!array || strchr("biufc", PyArray_DESCR((PyArrayObject *)array)->kind)) return array;
    PyErr_Format(PyExc_TypeError, "an object of type %.100s cannot be read as an array of numbers", Py_TYPE(o)->tp_name);
    Py_DECREF(array);
    return NULL;
}

static PyObject *to_numpy(PyObject *module, PyObject *o)
{
    if (PyArray_Check(o) && !is_bfloat16((PyArrayObject *)o)) return Py_NewRef(o);
    if (PyArray_Check(o)) return PyArray_View((PyArrayObject *)o, PyArray_DescrFromType(NPY_UINT16), NULL);
    dllm_py_tensor t;
    const int taken = take_any(o, NULL, NULL, &t);
    if (taken < 0) return NULL;
    if (!taken) return array_from_list(o);
    PyObject *array = view_as_array(&t);
    dllm_py_tensor_release(&t);
    return array;
}

PyMethodDef dllm_py_dlpack_methods[] = {
    { "to_numpy", to_numpy, METH_O,
      "to_numpy(obj)\n--\n\nAny DLPack tensor, NumPy array, or nested list of numbers as an array; shares memory where it can." },
    { "from_numpy", (PyCFunction)(void (*)(void))dllm_py_from_numpy, METH_VARARGS | METH_KEYWORDS,
      "from_numpy(array, like, dtype=None)\n--\n\nThe array as a tensor of like's framework, on the CPU, sharing memory." },
    { NULL },
};
