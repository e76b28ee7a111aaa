/* py_module.h: what the extension's files share. Everything that knows Python lives in csrc/py_*. */
#ifndef DLLM_PY_MODULE_H
#define DLLM_PY_MODULE_H
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define PY_ARRAY_UNIQUE_SYMBOL dllm_array_api
#ifndef DLLM_PY_ARRAY_OWNER
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include "dllm.h"
#include "py_dlpack.h"

typedef struct {
    PyTypeObject *model, *session;
    PyObject *checkpoint_error, *device_error;
} dllm_py_state;

typedef struct {
    PyObject_HEAD
    dllm_device *device;
    dllm_checkpoint *files; /* weights of a folder, or */
    dllm_int8 *copies;      /* int8 copies of the folder's, or */
    dllm_weights bound;     /* of tensors, which are kept alive here */
    dllm_py_tensor *tensors;
    int n_tensors;
    dllm_model *model;
} dllm_py_model;

extern PyType_Spec dllm_py_model_spec, dllm_py_session_spec;
extern PyMethodDef dllm_py_check_methods[], dllm_py_pieces_methods[];
PyObject *dllm_py_raise(PyObject *module, int status);    /* the latest message as the status's exception; NULL */
PyObject *dllm_py_raise_from(PyObject *self, int status); /* the same for methods of the module's types */
int dllm_py_params(PyObject *module, PyObject *mapping, const dllm_config *c, dllm_params *p); /* 0, or -1 with an exception */
/* A tensor of one or two dimensions as the core's matrix; 0, or -1 with an exception that names it. */
int dllm_py_matrix(const char *name, const dllm_py_tensor *t, dllm_mat *m);
/* ---- py_room.c: room on the GPU of a device for a result that goes out as a tensor of like's framework ---- */
typedef struct {
    dllm_mat place; /* where the result is to go, in the order of the device's stream */
    const char *what;
    PyObject *like;
    dlpack_tensor tensor; /* the rest is private */
    int64_t shape[2], strides[2];
    dlpack_exchange *api;
    dlpack_versioned *theirs;
    PyObject *ours;
} dllm_py_room;
int dllm_py_room_wanted(PyObject *like, const dllm_device *d); /* 1: like lies on that GPU; 0; or -1 with an exception */
/* 0, or -1 with an exception. what: for messages. Then either of the other two. */
int dllm_py_room_open(dllm_py_room *r, const char *what, PyObject *like, dllm_device *d, dllm_py_model *model, dllm_mat shape);
PyObject *dllm_py_room_give(dllm_py_room *r, PyObject *module); /* the tensor, once all is there */
void dllm_py_room_close(dllm_py_room *r);
PyObject *dllm_py_array(int type, int ndim, const int64_t *shape, const void *from); /* a new array; from NULL: not filled */
#endif
