/* safetensors.h: one file mapped into memory and its tensors, every claim of the header checked against the file. */
#ifndef DLLM_SAFETENSORS_H
#define DLLM_SAFETENSORS_H
#include "json.h"

/* A regular file, mapped read-only; nothing of it is read until somebody looks. */
typedef struct {
    const void *data;
    size_t size;
    int64_t changed; /* when, in nanoseconds since 1970 */
} dllm_map;
int dllm_map_open(dllm_map *out, const char *path);
void dllm_map_close(dllm_map *map);

typedef struct {
    const char *name, *dtype; /* dtype as the format spells it: "BF16" */
    const dllm_json *shape;   /* an array of non-negative integers */
    const void *data;
    size_t bytes;
} dllm_tensor;

typedef struct {
    dllm_map map;
    dllm_json *header;
    dllm_tensor *tensors; /* ascending names */
    size_t n;
} dllm_safetensors;
int dllm_safetensors_open(dllm_safetensors *out, const char *path);
void dllm_safetensors_close(dllm_safetensors *s);
int dllm_safetensors_parse(dllm_safetensors *out, const void *data, size_t size);      /* the same without a file; borrows data */
const dllm_tensor *dllm_safetensors_find(const dllm_safetensors *s, const char *name); /* NULL: there is none */

/* Refuses what is no float32, bfloat16 or float16 tensor of one or two dimensions, in place. */
int dllm_tensor_mat(dllm_mat *out, const dllm_tensor *t);
#endif
