/* py_export.c: what goes out to Python as tensors of the framework that the caller uses: NumPy arrays, and results on a GPU; through the C
 * exchange API of its tensor type, else through its from_dlpack(). Memory is shared unless the framework could not live with it as it is. */
#define PY_SSIZE_T_CLEAN
#include "py_dlpack.h"
#define PY_ARRAY_UNIQUE_SYMBOL dllm_array_api
#define NO_IMPORT_ARRAY
#include <numpy/arrayobject.h>

/* A tensor on its way to a framework. Whichever of the two forms was handed out has this as its context. */
typedef struct {
    dlpack_managed managed;
    dlpack_versioned versioned;
    PyObject *owner; /* of the numbers */
    int64_t shape[DLLM_PY_MAX_DIMS], strides[DLLM_PY_MAX_DIMS];
} parcel;

/* Frameworks drop tensors on any thread, and some after the interpreter has gone: then there is nothing left to free. */
static void drop(parcel *p)
{
    if (!Py_IsInitialized()) return;
    const PyGILState_STATE gil = PyGILState_Ensure();
    Py_DECREF(p->owner);
    PyMem_Free(p);
    PyGILState_Release(gil);
}

static void drop_managed(dlpack_managed *m) { drop(m->context); }
static void drop_versioned(dlpack_versioned *m) { drop(m->context); }

static dlpack_tensor copy_shape(dlpack_tensor t, int64_t *shape, int64_t *strides)
{
    memcpy(shape, t.shape, (size_t)t.ndim * sizeof *shape);
    memcpy(strides, t.strides, (size_t)t.ndim * sizeof *strides);
    t.shape = shape;
    t.strides = strides;
    return t;
}

static parcel *pack(PyObject *owner, dlpack_tensor t)
{
    parcel *p = PyMem_Calloc(1, sizeof *p);
    if (!p) {
        PyErr_NoMemory();
        return NULL;
    }
    t = copy_shape(t, p->shape, p->strides);
    p->owner = Py_NewRef(owner);
    p->managed = (dlpack_managed){ t, p, drop_managed };
    p->versioned = (dlpack_versioned){ { DLPACK_MAJOR, DLPACK_MINOR }, p, drop_versioned, 0, t };
    return p;
}

/* What a framework's own from_dlpack() reads, for those without the exchange API. */
typedef struct {
    PyObject_HEAD
    PyObject *owner;
    dlpack_tensor tensor;
    int64_t shape[DLLM_PY_MAX_DIMS], strides[DLLM_PY_MAX_DIMS];
} export_object;

static void drop_capsule(PyObject *capsule)
{
    if (PyCapsule_IsValid(capsule, "dltensor_versioned"))
        drop(((dlpack_versioned *)PyCapsule_GetPointer(capsule, "dltensor_versioned"))->context);
    if (PyCapsule_IsValid(capsule, "dltensor")) drop(((dlpack_managed *)PyCapsule_GetPointer(capsule, "dltensor"))->context);
}

static PyObject *export_dlpack(PyObject *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "stream", "max_version", "dl_device", "copy", NULL };
    PyObject *stream = NULL, *max_version = Py_None, *device = NULL, *copy = NULL;
    unsigned major = 0, minor = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|$OOOO:__dlpack__", names, &stream, &max_version, &device, &copy))
        return NULL;
    if (max_version != Py_None && !PyArg_ParseTuple(max_version, "II", &major, &minor)) return NULL;
    const export_object *e = (export_object *)self;
    parcel *p = pack(e->owner, e->tensor);
    if (!p) return NULL;
    void *form = major ? (void *)&p->versioned : &p->managed;
    PyObject *capsule = PyCapsule_New(form, major ? "dltensor_versioned" : "dltensor", drop_capsule);
    if (!capsule) drop(p);
    return capsule;
}

static PyObject *export_device(PyObject *self, PyObject *none)
{
    const dlpack_device at = ((export_object *)self)->tensor.device;
    return Py_BuildValue("ii", at.type, at.id);
}

static void export_free(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_DECREF(((export_object *)self)->owner);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef export_methods[] = {
    { "__dlpack__", (PyCFunction)(void (*)(void))export_dlpack, METH_VARARGS | METH_KEYWORDS, NULL },
    { "__dlpack_device__", export_device, METH_NOARGS, NULL },
    { NULL },
};
static PyType_Slot export_slots[] = { { Py_tp_dealloc, export_free }, { Py_tp_methods, export_methods }, { 0, NULL } };
static PyType_Spec export_spec = {
    .name = "dllm_fast._core._Export",
    .basicsize = sizeof(export_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = export_slots,
};

/* from_dlpack of the framework that `like` belongs to: of its array namespace, or of the package that one of its types is from. */
static PyObject *find_importer(PyObject *like)
{
    PyObject *space, *importer = NULL;
    int found = dllm_py_find_attribute(like, "__array_namespace__", &space);
    if (found > 0) {
        PyObject *namespace = PyObject_CallNoArgs(space);
        Py_DECREF(space);
        importer = namespace ? PyObject_GetAttrString(namespace, "from_dlpack") : NULL;
        Py_XDECREF(namespace);
        return importer;
    }
    PyObject *types = Py_TYPE(like)->tp_mro;
    for (Py_ssize_t i = 0; found == 0 && i < PyTuple_GET_SIZE(types); i++) {
        PyObject *name = PyObject_GetAttrString(PyTuple_GET_ITEM(types, i), "__module__"), *dot = PyUnicode_FromString(".");
        PyObject *parts = name && dot ? PyUnicode_Partition(name, dot) : NULL;
        PyObject *package = parts ? PyImport_GetModule(PyTuple_GET_ITEM(parts, 0)) : NULL;
        found = package ? dllm_py_find_attribute(package, "from_dlpack", &importer) : PyErr_Occurred() ? -1 : 0;
        Py_XDECREF(name);
        Py_XDECREF(dot);
        Py_XDECREF(parts);
        Py_XDECREF(package);
    }
    if (found == 0) PyErr_Format(PyExc_TypeError, "found no from_dlpack() that makes a %.100s", Py_TYPE(like)->tp_name);
    return found > 0 ? importer : NULL;
}

static PyObject *export_by_method(PyObject *module, PyObject *owner, const dlpack_tensor *t, PyObject *like)
{
    PyObject *importer = find_importer(like), *result = NULL;
    PyTypeObject *type = importer ? (PyTypeObject *)PyObject_GetAttrString(module, "_Export") : NULL;
    export_object *e = type ? PyObject_New(export_object, type) : NULL;
    if (e) {
        e->owner = Py_NewRef(owner);
        e->tensor = copy_shape(*t, e->shape, e->strides);
        result = PyObject_CallOneArg(importer, (PyObject *)e);
    }
    Py_XDECREF((PyObject *)e);
    Py_XDECREF((PyObject *)type);
    Py_XDECREF(importer);
    return result;
}

PyObject *dllm_py_export(PyObject *module, PyObject *owner, const dlpack_tensor *t, PyObject *like)
{
    dlpack_exchange *api;
    const int found = dllm_py_find_exchange(Py_TYPE(like), &api);
    if (found < 0) return NULL;
    if (!found) return export_by_method(module, owner, t, like);
    parcel *p = pack(owner, *t);
    void *tensor = NULL;
    if (!p || api->to_object(&p->versioned, &tensor) < 0) return NULL; /* the parcel is theirs, also when they fail */
    return tensor;
}

/* The array itself if a framework may write to it and walk it forward, else a copy. */
static PyObject *exportable(PyObject *o)
{
    PyArrayObject *array = (PyArrayObject *)o;
    bool plain = PyArray_ISBEHAVED(array);
    for (int i = 0; i < PyArray_NDIM(array); i++)
        plain = plain && PyArray_STRIDE(array, i) >= 0 && PyArray_STRIDE(array, i) % PyArray_ITEMSIZE(array) == 0;
    if (plain) return Py_NewRef(o);
    return PyArray_FROM_OF(o, NPY_ARRAY_CARRAY | NPY_ARRAY_NOTSWAPPED | NPY_ARRAY_ENSURECOPY);
}

/* What the array holds if `name` is to be believed. */
static int parse_kind(PyObject *array, const char *name, dlpack_dtype *as)
{
    static const char *const names[] = { "float32", "float16", "bfloat16" };
    static const dlpack_dtype named[] = { { DLPACK_FLOAT, 32, 1 }, { DLPACK_FLOAT, 16, 1 }, { DLPACK_BFLOAT, 16, 1 } };
    const dlpack_dtype own = dllm_py_dtype_of(array);
    *as = own;
    if (!name) return 0;
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, names[i])) continue;
        const bool same = own.code == named[i].code && own.bits == named[i].bits;
        if (!same && (own.code != DLPACK_UINT || own.bits != 16 || named[i].bits != 16)) break;
        *as = named[i];
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "an array of dtype %S does not hold %s", PyArray_DESCR((PyArrayObject *)array), name);
    return -1;
}

static PyObject *export_array(PyObject *module, PyObject *array, PyObject *like, dlpack_dtype as)
{
    int64_t shape[DLLM_PY_MAX_DIMS], strides[DLLM_PY_MAX_DIMS];
    dlpack_tensor t;
    if (dllm_py_describe(array, &t, shape, strides, NULL) < 0) return NULL;
    t.dtype = as;
    return dllm_py_export(module, array, &t, like);
}

PyObject *dllm_py_from_numpy(PyObject *module, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "array", "like", "dtype", NULL };
    PyObject *given, *like, *method;
    const char *dtype = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!O|z:from_numpy", names, &PyArray_Type, &given, &like, &dtype)) return NULL;
    if (PyArray_Check(like)) return Py_NewRef(given);
    const int found = dllm_py_find_attribute(like, "__dlpack__", &method);
    if (found < 0) return NULL;
    if (!found) return Py_NewRef(given);
    Py_DECREF(method);
    dlpack_dtype as;
    PyObject *array = parse_kind(given, dtype, &as) < 0 ? NULL : exportable(given);
    if (!array) return NULL;
    PyObject *tensor = export_array(module, array, like, as);
    Py_DECREF(array);
    return tensor;
}

int dllm_py_dlpack_init(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &export_spec, NULL);
    if (!type) return -1;
    const int status = PyModule_AddObjectRef(module, "_Export", type);
    Py_DECREF(type);
    return status;
}
