/* py_dlpack.h: tensors of any framework in and out of Python, without a copy. */
#ifndef DLLM_PY_DLPACK_H
#define DLLM_PY_DLPACK_H
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

#include "dllm.h"
#include "dlpack.h"

enum { DLLM_PY_MAX_DIMS = 8 };

/* A tensor and whatever keeps it alive. `data` is the first element, aligned to its size. */
typedef struct {
    void *data; /* NULL only if some dimension is 0 */
    int ndim;
    int64_t shape[DLLM_PY_MAX_DIMS], stride[DLLM_PY_MAX_DIMS]; /* strides count elements and may be 0 or negative */
    int code, bits;                                            /* DLPACK_FLOAT and 16, DLPACK_BFLOAT and 16, ...: dlpack.h */
    int device_type, device_id;                                /* DLPACK_CPU, DLPACK_CUDA_HOST for pinned memory, or DLPACK_CUDA */
    bool read_only;
    dlpack_exchange *exchange; /* of the framework that lent it, if it has one */
    void *owner;               /* private: what release() is given */
    void (*release)(void *owner);
} dllm_py_tensor;

/* Takes a NumPy array, a tensor with DLPack's C exchange API, or any object with __dlpack__. what: the tensor's name for
 * messages, or NULL. The tensor lies in the host's memory or on `on`, a GPU whose stream then sees what it holds now; NULL: the host alone.
 * Returns 0, or -1 with an exception: TypeError for objects that are no tensors and dtypes that have no
 * NumPy counterpart, ValueError for tensors that require grad, have no data, or lie elsewhere. */
int dllm_py_tensor_get(PyObject *o, const char *what, dllm_device *on, dllm_py_tensor *out);
void dllm_py_tensor_release(dllm_py_tensor *t); /* needs the GIL; more than once does no harm */

/* Numbers that go out as a tensor of like's framework; owner keeps them alive. shape and strides are copied. */
PyObject *dllm_py_export(PyObject *module, PyObject *owner, const dlpack_tensor *t, PyObject *like);

/* to_numpy and from_numpy of the module; init() adds what they need to it. */
extern PyMethodDef dllm_py_dlpack_methods[];
int dllm_py_dlpack_init(PyObject *module);

/* What `on` is asked from now on comes after what the tensor's framework has asked of their GPU, if it can be asked. 0, or -1. */
int dllm_py_come_after(dlpack_exchange *framework, dllm_device *on);
/* Where o says it lies: 1 and the place, 0: it does not say, or -1 with an exception. */
int dllm_py_device_of(PyObject *o, dlpack_device *out);

/* ---- between py_dlpack.c and py_export.c ------------------------------------------------------------------------------------ */
/* These two look for what may be absent: 1 and what was found, 0, or -1 with an exception. */
int dllm_py_find_attribute(PyObject *o, const char *name, PyObject **value);
int dllm_py_find_exchange(PyTypeObject *type, dlpack_exchange **api);
/* The array as DLPack says it; shape and strides have room for DLLM_PY_MAX_DIMS. Fails on what DLPack cannot say. */
int dllm_py_describe(PyObject *array, dlpack_tensor *t, int64_t *shape, int64_t *strides, const char *what);
dlpack_dtype dllm_py_dtype_of(PyObject *array); /* code 255: DLPack has no word for it */
PyObject *dllm_py_from_numpy(PyObject *module, PyObject *args, PyObject *keywords);
#endif
