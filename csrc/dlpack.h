/* dlpack.h: the DLPack 1.x binary interface, as far as this project speaks it. The layouts are the public standard's; the
 * names are ours. Everything up to `flags` of the versioned tensor stays put in every later version. */
#ifndef DLLM_DLPACK_H
#define DLLM_DLPACK_H
#include <stdint.h>

enum { DLPACK_MAJOR = 1, DLPACK_MINOR = 3 };
enum { DLPACK_CPU = 1, DLPACK_CUDA = 2, DLPACK_CUDA_HOST = 3, DLPACK_ROCM = 10, DLPACK_CUDA_MANAGED = 13 };
enum { DLPACK_INT = 0, DLPACK_UINT = 1, DLPACK_FLOAT = 2, DLPACK_BFLOAT = 4, DLPACK_COMPLEX = 5, DLPACK_BOOL = 6 };
enum { DLPACK_READ_ONLY = 1, DLPACK_IS_COPIED = 2 }; /* flags */

typedef struct {
    uint32_t major, minor;
} dlpack_version;

typedef struct {
    int32_t type, id;
} dlpack_device;

typedef struct {
    uint8_t code, bits;
    uint16_t lanes;
} dlpack_dtype;

/* The first element is at data + byte_offset. strides count elements; NULL: row-major without gaps. */
typedef struct {
    void *data;
    dlpack_device device;
    int32_t ndim;
    dlpack_dtype dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} dlpack_tensor;

/* A tensor with an owner, as producers before 1.0 hand it out: capsule "dltensor", renamed "used_dltensor" by who takes it.
 * Whoever holds it calls deleter(self) once. */
typedef struct dlpack_managed {
    dlpack_tensor tensor;
    void *context;
    void (*deleter)(struct dlpack_managed *self);
} dlpack_managed;

/* The same since 1.0: capsule "dltensor_versioned", then "used_dltensor_versioned". */
typedef struct dlpack_versioned {
    dlpack_version version;
    void *context;
    void (*deleter)(struct dlpack_versioned *self);
    uint64_t flags;
    dlpack_tensor tensor;
} dlpack_versioned;

/* Since 1.3: the table in the capsule "dlpack_exchange_api" that a tensor type carries as __dlpack_c_exchange_api__. Functions
 * return 0, or -1 with a Python exception set; PyObjects are void * here. `previous` leads to tables of older major versions. */
typedef struct dlpack_exchange_header {
    dlpack_version version;
    struct dlpack_exchange_header *previous;
} dlpack_exchange_header;

typedef struct {
    dlpack_exchange_header header;
    int (*allocate)(dlpack_tensor *like, dlpack_versioned **out, void *context,
                    void (*error)(void *context, const char *kind, const char *message));
    int (*from_object)(void *object, dlpack_versioned **out);
    int (*to_object)(dlpack_versioned *stolen, void **object);
    int (*borrow)(void *object, dlpack_tensor *out); /* may be NULL */
    int (*current_stream)(int32_t device_type, int32_t device_id, void **out);
} dlpack_exchange;
#endif
