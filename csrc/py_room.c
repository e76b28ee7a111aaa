/* py_room.c: room on a GPU for a result that goes out as a tensor of the caller's framework. Who has the C exchange API gives the room from
 * its own allocator, in the order of its current stream; for others it is ours, with whatever keeps it alive. */
#include <string.h>

#include "../kernels/ops.h"
#include "py_module.h"

typedef struct {
    char text[256];
} complaint;

static void hear(void *context, const char *kind, const char *message)
{
    complaint *c = context;
    PyOS_snprintf(c->text, sizeof c->text, "%.60s: %.180s", kind ? kind : "error", message ? message : "no reason given");
}

static PyObject *no_room(const dllm_py_room *r, const dllm_device *d, const char *why)
{
    const dllm_mat m = r->place;
    return PyErr_Format(PyExc_MemoryError, "%s: no room for %s: [%lld, %lld] in %s, %zu bytes%s%s", d->name, r->what,
                        (long long)m.rows, (long long)m.cols, dllm_dtype_name(m.dtype), dllm_mat_bytes(m), *why ? ": " : "", why);
}

/* ---- theirs -------------------------------------------------------------------------------------------------------------------------- */
static int take_theirs(dllm_py_room *r, dllm_device *d)
{
    complaint why = { "" };
    if (r->api->allocate(&r->tensor, &r->theirs, &why, hear) < 0) {
        r->theirs = NULL;
        PyErr_Clear();
        no_room(r, d, why.text);
        return -1;
    }
    r->place.data = (char *)r->theirs->tensor.data + r->theirs->tensor.byte_offset;
    return dllm_py_come_after(r->api, d); /* its last owner may still be at work there */
}

/* ---- ours: the capsule frees it, on the model's device, which is there as long as the model ------------------------------------------ */
static void free_ours(PyObject *capsule)
{
    dllm_py_model *model = PyCapsule_GetContext(capsule);
    model->device->ops->free(model->device, PyCapsule_GetPointer(capsule, NULL));
    Py_DECREF(model);
}

static int take_ours(dllm_py_room *r, dllm_device *d, dllm_py_model *model)
{
    r->place.data = d->ops->alloc(d, dllm_mat_bytes(r->place));
    if (!r->place.data) {
        no_room(r, d, "");
        return -1;
    }
    r->ours = PyCapsule_New(r->place.data, NULL, free_ours);
    if (!r->ours) {
        d->ops->free(d, r->place.data);
        return -1;
    }
    PyCapsule_SetContext(r->ours, Py_NewRef((PyObject *)model));
    r->tensor.data = r->place.data;
    return 0;
}

/* ---- both ---------------------------------------------------------------------------------------------------------------------------- */
int dllm_py_room_wanted(PyObject *like, const dllm_device *d)
{
    dlpack_device at;
    if (dllm_is_host(d)) return 0;
    const int said = dllm_py_device_of(like, &at);
    return said < 0 ? -1 : said && at.type == DLPACK_CUDA && at.id == d->index;
}

int dllm_py_room_open(dllm_py_room *r, const char *what, PyObject *like, dllm_device *d, dllm_py_model *model, dllm_mat shape)
{
    static const dlpack_dtype dtypes[] = { [DLLM_F32] = { DLPACK_FLOAT, 32, 1 },
                                           [DLLM_BF16] = { DLPACK_BFLOAT, 16, 1 },
                                           [DLLM_F16] = { DLPACK_FLOAT, 16, 1 } };
    *r = (dllm_py_room){
        .what = what, .like = like, .place = shape, .shape = { shape.rows, shape.cols }, .strides = { shape.cols, 1 }
    };
    r->tensor = (dlpack_tensor){ NULL, { DLPACK_CUDA, d->index }, 2, dtypes[shape.dtype], r->shape, r->strides, 0 };
    const int found = dllm_py_find_exchange(Py_TYPE(like), &r->api);
    const int status = found < 0 ? -1 : found ? take_theirs(r, d) : take_ours(r, d, model);
    if (status < 0) dllm_py_room_close(r);
    return status;
}

PyObject *dllm_py_room_give(dllm_py_room *r, PyObject *module)
{
    void *tensor = NULL;
    if (r->theirs) {
        dlpack_versioned *given = r->theirs;
        r->theirs = NULL;
        return r->api->to_object(given, &tensor) < 0 ? NULL : tensor;
    }
    PyObject *out = dllm_py_export(module, r->ours, &r->tensor, r->like);
    Py_CLEAR(r->ours);
    return out;
}

void dllm_py_room_close(dllm_py_room *r)
{
    PyObject *type, *value, *trace; /* a deleter may run Python code */
    PyErr_Fetch(&type, &value, &trace);
    if (r->theirs && r->theirs->deleter) r->theirs->deleter(r->theirs);
    r->theirs = NULL;
    Py_CLEAR(r->ours);
    PyErr_Restore(type, value, trace);
}
