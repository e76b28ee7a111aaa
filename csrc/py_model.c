/* py_model.c: _core.Model. It owns whatever its weights lie in: a mapped checkpoint, or tensors of the caller's framework, in the host's
 * memory or on the GPU that it runs on. */
#include <string.h>

#include "../kernels/ops.h"
#include "py_module.h"

/* ---- opening -------------------------------------------------------------------------------------------------------------------- */
static int dtype_of(PyObject *module, const char *name, dllm_dtype fallback, dllm_dtype *out)
{
    *out = fallback;
    if (strcmp(name, "auto") == 0 || dllm_dtype_find(name, out)) return 0;
    PyErr_Format(PyExc_ValueError, "dtype '%s': 'auto', 'float32', 'bfloat16' or 'float16' expected", name);
    return -1;
}

static int open_device(PyObject *module, dllm_py_model *self, const char *device, int threads)
{
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = dllm_device_open(&self->device, strcmp(device, "auto") == 0 ? "cpu" : device, threads);
    Py_END_ALLOW_THREADS
    if (status < 0) dllm_py_raise(module, status);
    return status;
}

/* On its device, which is open. */
static int open_model(PyObject *module, dllm_py_model *self, const dllm_config *c, const dllm_weights *w, const char *dtype)
{
    dllm_dtype act;
    if (dtype_of(module, dtype, c->dtype, &act) < 0) return -1;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = dllm_model_open(&self->model, self->device, c, w, act);
    Py_END_ALLOW_THREADS
    if (status < 0) dllm_py_raise(module, status);
    return status;
}

static dllm_py_model *new_model(PyObject *module)
{
    const dllm_py_state *state = PyModule_GetState(module);
    return (dllm_py_model *)state->model->tp_alloc(state->model, 0);
}

/* The folder's weights, or int8 copies of them. */
static int open_weights(dllm_py_model *self, const char *folder, bool int8, const char *cache, int threads, const dllm_weights **w)
{
    int status = dllm_checkpoint_open(&self->files, folder);
    if (status == 0 && int8) status = dllm_int8_open(&self->copies, self->files, cache, threads);
    if (status == 0) *w = int8 ? dllm_int8_weights(self->copies) : dllm_checkpoint_weights(self->files);
    return status;
}

static PyObject *from_folder(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "folder", "dtype", "device", "threads", "weights", "int8_cache", NULL };
    PyObject *module = PyType_GetModule(type), *folder, *cache = NULL;
    const char *dtype = "auto", *device = "auto", *weights = "auto";
    int threads = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O&|$ssisO&", names, PyUnicode_FSConverter, &folder, &dtype, &device, &threads,
                                     &weights, PyUnicode_FSConverter, &cache))
        return NULL;
    const bool int8 = strcmp(weights, "int8") == 0;
    dllm_py_model *self = NULL;
    if (!int8 && strcmp(weights, "auto") != 0)
        PyErr_Format(PyExc_ValueError, "weights '%s': 'auto' (as they are stored) or 'int8' expected", weights);
    else if (cache && !int8) PyErr_Format(PyExc_ValueError, "int8_cache keeps int8 weights, but weights is '%s'", weights);
    else self = new_model(module);
    if (self) {
        int status;
        const dllm_weights *w = NULL;
        Py_BEGIN_ALLOW_THREADS
        status = open_weights(self, PyBytes_AS_STRING(folder), int8, cache ? PyBytes_AS_STRING(cache) : NULL, threads, &w);
        Py_END_ALLOW_THREADS
        if (status < 0) dllm_py_raise(module, status);
        else status = open_device(module, self, device, threads);
        if (status >= 0) status = open_model(module, self, dllm_checkpoint_config(self->files), w, dtype);
        if (status < 0) Py_CLEAR(self);
    }
    Py_DECREF(folder);
    Py_XDECREF(cache);
    return (PyObject *)self;
}

/* ---- weights from the caller's tensors --------------------------------------------------------------------------------------------- */
typedef struct {
    dllm_py_model *self;
    PyObject *tensors;
} tensor_source;

static int weight_dtype(const char *name, const dllm_py_tensor *t, dllm_dtype *out)
{
    const bool bf16 = t->code == DLPACK_BFLOAT && t->bits == 16, f16 = t->code == DLPACK_FLOAT && t->bits == 16;
    *out = bf16 ? DLLM_BF16 : f16 ? DLLM_F16 : DLLM_F32;
    if (bf16 || f16 || (t->code == DLPACK_FLOAT && t->bits == 32)) return 0;
    PyErr_Format(PyExc_TypeError, "tensor '%s' has DLPack dtype code %d with %d bits: float32, bfloat16 or float16 expected", name,
                 t->code, t->bits);
    return -1;
}

int dllm_py_matrix(const char *name, const dllm_py_tensor *t, dllm_mat *m)
{
    if (weight_dtype(name, t, &m->dtype) < 0) return -1;
    if (t->ndim < 1 || t->ndim > 2) {
        PyErr_Format(PyExc_ValueError, "tensor '%s' has %d dimensions: 1 or 2 expected", name, t->ndim);
        return -1;
    }
    m->data = t->data;
    m->rows = t->ndim == 2 ? t->shape[0] : 1;
    m->cols = t->shape[t->ndim - 1];
    m->stride = t->ndim == 2 && m->rows > 1 ? t->stride[0] : m->cols;
    if ((m->cols > 1 && t->stride[t->ndim - 1] != 1) || m->stride < m->cols) {
        PyErr_Format(PyExc_ValueError, "tensor '%s' is not row-major: pass a contiguous one", name);
        return -1;
    }
    return 0;
}

static int keep_tensor(dllm_py_model *self, const dllm_py_tensor *t)
{
    dllm_py_tensor *more = PyMem_Realloc(self->tensors, (size_t)(self->n_tensors + 1) * sizeof *more);
    if (!more) {
        PyErr_NoMemory();
        return -1;
    }
    self->tensors = more;
    self->tensors[self->n_tensors++] = *t;
    return 0;
}

static int find_tensor(void *arg, const char *name, dllm_mat *m)
{
    const tensor_source *from = arg;
    PyObject *found = PyMapping_GetItemString(from->tensors, name);
    if (!found) {
        if (!PyErr_ExceptionMatches(PyExc_KeyError)) return DLLM_E_CALLBACK;
        PyErr_Clear();
        return 1;
    }
    dllm_py_tensor t;
    int status = dllm_py_tensor_get(found, name, from->self->device, &t);
    Py_DECREF(found);
    if (status < 0) return DLLM_E_CALLBACK;
    status = dllm_py_matrix(name, &t, m);
    if (status == 0) status = keep_tensor(from->self, &t);
    if (status < 0) dllm_py_tensor_release(&t);
    return status < 0 ? DLLM_E_CALLBACK : 0;
}

/* A model on a GPU has copies of what lies in the host's memory. */
static void drop_copied(dllm_py_model *self)
{
    for (int i = 0; i < self->n_tensors && !dllm_is_host(self->device); i++)
        if (self->tensors[i].device_type != DLPACK_CUDA) dllm_py_tensor_release(&self->tensors[i]);
}

static PyObject *from_tensors(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "config", "tensors", "dtype", "device", "threads", NULL };
    PyObject *module = PyType_GetModule(type), *tensors;
    const char *json, *dtype = "auto", *device = "auto";
    Py_ssize_t n;
    int threads = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "s#O|$ssi", names, &json, &n, &tensors, &dtype, &device, &threads))
        return NULL;
    dllm_config c;
    int status = dllm_config_parse(&c, json, (size_t)n);
    if (status < 0) return dllm_py_raise(module, status);
    dllm_py_model *self = new_model(module);
    if (!self) return NULL;
    status = open_device(module, self, device, threads);
    if (status >= 0) {
        status = dllm_weights_bind(&self->bound, &c, find_tensor, &(tensor_source){ self, tensors });
        if (status < 0) dllm_py_raise(module, status);
        else c.dtype = self->bound.embed.dtype; /* what the tensors are, whatever the config says they once were */
    }
    if (status >= 0) status = open_model(module, self, &c, &self->bound, dtype);
    if (status < 0) Py_CLEAR(self);
    else drop_copied(self);
    return (PyObject *)self;
}

static void dealloc(dllm_py_model *self)
{
    PyTypeObject *type = Py_TYPE(self);
    dllm_model_close(self->model);
    dllm_weights_free(&self->bound);
    dllm_device_close(self->device);
    dllm_int8_close(self->copies);
    dllm_checkpoint_close(self->files);
    for (int i = 0; i < self->n_tensors; i++) dllm_py_tensor_release(&self->tensors[i]);
    PyMem_Free(self->tensors);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

/* ---- looking at it -------------------------------------------------------------------------------------------------------------------- */
static PyObject *get_config(dllm_py_model *self, void *unused)
{
    const dllm_config *c = dllm_model_config(self->model);
    return Py_BuildValue("{s:s,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:d,s:d,s:N,s:N,s:N,s:i,s:i,s:i,s:i,s:i,s:s}", "family",
                         c->family == DLLM_DREAM ? "dream" : "llada", "layers", c->layers, "heads", c->heads, "kv_heads",
                         c->kv_heads, "head_dim", c->head_dim, "dim", c->dim, "ffn_dim", c->ffn_dim, "vocab", c->vocab, "max_len",
                         c->max_len, "rope_theta", (double)c->rope_theta, "norm_eps", (double)c->norm_eps, "tied_head",
                         PyBool_FromLong(c->tied_head), "rope_f32", PyBool_FromLong(c->rope_f32), "shift_logits",
                         PyBool_FromLong(c->shift_logits), "mask_id", c->mask_id, "eos_id", c->eos_id, "eot_id", c->eot_id,
                         "pad_id", c->pad_id, "bos_id", c->bos_id, "dtype", dllm_dtype_name(c->dtype));
}

static PyObject *get_dtype(dllm_py_model *self, void *unused)
{
    return PyUnicode_FromString(dllm_dtype_name(dllm_model_dtype(self->model)));
}
static PyObject *get_weights(dllm_py_model *self, void *unused)
{
    return PyUnicode_FromString(dllm_dtype_name(dllm_model_weights(self->model)->head.dtype));
}
static PyObject *get_device(dllm_py_model *self, void *unused) { return PyUnicode_FromString(dllm_device_name(self->device)); }
static PyObject *get_backend(dllm_py_model *self, void *unused) { return PyUnicode_FromString(dllm_device_backend(self->device)); }
static PyObject *get_threads(dllm_py_model *self, void *unused) { return PyLong_FromLong(dllm_device_threads(self->device)); }
static PyObject *get_nbytes(dllm_py_model *self, void *unused) { return PyLong_FromSize_t(dllm_model_bytes(self->model)); }

static int add_pointer(PyObject *dict, const char *prefix, int layer, const char *name, dllm_mat m)
{
    char full[64];
    if (!m.data) return 0;
    if (layer < 0) PyOS_snprintf(full, sizeof full, "%s", name);
    else PyOS_snprintf(full, sizeof full, "%s.%d.%s", prefix, layer, name);
    PyObject *address = PyLong_FromVoidPtr(m.data);
    const int status = address ? PyDict_SetItemString(dict, full, address) : -1;
    Py_XDECREF(address);
    return status;
}

static PyObject *pointers(dllm_py_model *self, PyObject *unused)
{
    static const char *const parts[] = { "attn_norm", "q",      "k",        "v",    "o",  "q_bias",
                                         "k_bias",    "v_bias", "ffn_norm", "gate", "up", "down" };
    const dllm_weights *w = dllm_model_weights(self->model);
    PyObject *dict = PyDict_New();
    if (!dict) return NULL;
    int status = add_pointer(dict, "", -1, "embed", w->embed) | add_pointer(dict, "", -1, "norm", w->norm) |
                 add_pointer(dict, "", -1, "head", w->head);
    for (int l = 0; status == 0 && l < dllm_model_config(self->model)->layers; l++) {
        const dllm_layer *y = &w->layers[l];
        const dllm_mat mats[] = { y->attn_norm, y->q,      y->k,        y->v,    y->o,  y->q_bias,
                                  y->k_bias,    y->v_bias, y->ffn_norm, y->gate, y->up, y->down };
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) status |= add_pointer(dict, "layers", l, parts[i], mats[i]);
    }
    if (status < 0) Py_CLEAR(dict);
    return dict;
}

static PyObject *representation(dllm_py_model *self)
{
    const dllm_config *c = dllm_model_config(self->model);
    return PyUnicode_FromFormat("<%s model: %d layers, width %d, %s with %s weights on %s>",
                                c->family == DLLM_DREAM ? "Dream" : "LLaDA", c->layers, c->dim,
                                dllm_dtype_name(dllm_model_dtype(self->model)),
                                dllm_dtype_name(dllm_model_weights(self->model)->head.dtype), dllm_device_name(self->device));
}

static PyMethodDef methods[] = {
    { "from_folder", (PyCFunction)(void (*)(void))from_folder, METH_VARARGS | METH_KEYWORDS | METH_CLASS,
      "from_folder(folder, *, dtype='auto', device='auto', threads=0, weights='auto', int8_cache=...): a Hugging Face checkpoint "
      "folder, mapped into memory; or int8 copies of its matrices." },
    { "from_tensors", (PyCFunction)(void (*)(void))from_tensors, METH_VARARGS | METH_KEYWORDS | METH_CLASS,
      "from_tensors(config, tensors, *, dtype='auto', device='auto', threads=0): official parameter names to tensors; kept, not "
      "copied; but on a GPU those of the host's memory are copied, not kept." },
    { "pointers", (PyCFunction)(void (*)(void))pointers, METH_NOARGS, "Address of every weight." },
    { 0 },
};

static PyGetSetDef attributes[] = {
    { "config", (getter)get_config, NULL, "Fields of the model's configuration by name.", NULL },
    { "dtype", (getter)get_dtype, NULL, "dtype of the activations.", NULL },
    { "weights", (getter)get_weights, NULL, "dtype of the matrices.", NULL },
    { "device", (getter)get_device, NULL, "'cpu' or 'cuda:0'.", NULL },
    { "backend", (getter)get_backend, NULL, "Which kernels run.", NULL },
    { "threads", (getter)get_threads, NULL, "Threads that work on one kernel.", NULL },
    { "nbytes", (getter)get_nbytes, NULL, "Bytes of all weights.", NULL },
    { 0 },
};

static PyType_Slot slots[] = {
    { Py_tp_dealloc, dealloc },
    { Py_tp_repr, representation },
    { Py_tp_methods, methods },
    { Py_tp_getset, attributes },
    { Py_tp_doc, "Immutable weights on a device; may be shared by sessions and threads." },
    { 0, NULL },
};

PyType_Spec dllm_py_model_spec = {
    .name = "dllm_fast._core.Model",
    .basicsize = sizeof(dllm_py_model),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = slots,
};
