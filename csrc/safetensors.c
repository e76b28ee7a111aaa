/* safetensors.c: 8 bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data.
 *
 * The header is a stranger's word. Accepted is only a file whose tensors have sizes that follow from dtype and shape, and lie
 * side by side, without gaps and overlaps, from the first byte of the data to the last. */
#define _POSIX_C_SOURCE 200809L /* O_CLOEXEC */
#include "safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct {
    const char *name;
    unsigned bits;
} dtypes[] = {
    { "BF16", 16 },   { "F16", 16 },    { "F32", 32 },        { "F64", 64 },        { "I8", 8 },      { "I16", 16 },
    { "I32", 32 },    { "I64", 64 },    { "U8", 8 },          { "U16", 16 },        { "U32", 32 },    { "U64", 64 },
    { "BOOL", 8 },    { "C64", 64 },    { "F4", 4 },          { "F6_E2M3", 6 },     { "F6_E3M2", 6 }, { "F8_E4M3", 8 },
    { "F8_E5M2", 8 }, { "F8_E8M0", 8 }, { "F8_E4M3FNUZ", 8 }, { "F8_E5M2FNUZ", 8 },
};

/* ---- files ----------------------------------------------------------------------------------------------------------------- */
static int map_descriptor(dllm_map *out, int descriptor, const char *path)
{
    struct stat info;
    FAIL_IF(fstat(descriptor, &info) < 0, DLLM_E_FILE, "%s: %s", path, strerror(errno));
    FAIL_IF(!S_ISREG(info.st_mode), DLLM_E_FILE, "%s: not a file", path);
    const int64_t changed = (int64_t)info.st_mtim.tv_sec * 1000000000 + info.st_mtim.tv_nsec;
    *out = (dllm_map){ .data = "", .size = (size_t)info.st_size, .changed = changed };
    if (out->size == 0) return 0;
    void *data = mmap(NULL, out->size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    FAIL_IF(data == MAP_FAILED, errno == ENOMEM ? DLLM_E_MEMORY : DLLM_E_FILE, "%s: cannot map %zu bytes: %s", path, out->size,
            strerror(errno));
    out->data = data;
    return 0;
}

int dllm_map_open(dllm_map *out, const char *path)
{
    *out = (dllm_map){ 0 };
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* O_NONBLOCK: a pipe shall not make us wait */
    FAIL_IF(descriptor < 0, DLLM_E_FILE, "%s: %s", path, strerror(errno));
    const int status = map_descriptor(out, descriptor, path);
    close(descriptor);
    if (status < 0) *out = (dllm_map){ 0 };
    return status;
}

void dllm_map_close(dllm_map *map)
{
    if (map->size > 0) munmap((void *)(uintptr_t)map->data, map->size);
    *map = (dllm_map){ 0 };
}

/* ---- header entries -------------------------------------------------------------------------------------------------------- */
static int get_field(const dllm_json **out, const dllm_json *key, const char *field, dllm_json_kind kind)
{
    const int status = dllm_json_get(out, key + 1, field);
    if (status < 0) return dllm_fail(status, "tensor %.200s: %s", key->string, dllm_last_error());
    REFUSE_IF(!*out, "tensor %.200s has no %s", key->string, field);
    REFUSE_IF((*out)->kind != kind, "tensor %.200s: %s is not %s", key->string, field,
              kind == DLLM_JSON_STRING ? "a string" : "an array");
    return 0;
}

static bool is_size(const dllm_json *v) { return v->kind == DLLM_JSON_NUMBER && v->integral && v->integer >= 0; }

/* Bytes that dtype and shape ask for. */
static int measure(size_t *bytes, const char *name, const char *dtype, const dllm_json *shape)
{
    size_t i = 0, bits = 0;
    while (i < sizeof dtypes / sizeof *dtypes && strcmp(dtypes[i].name, dtype) != 0) i++;
    REFUSE_IF(i == sizeof dtypes / sizeof *dtypes, "tensor %.200s has unknown dtype %.50s", name, dtype);
    bits = dtypes[i].bits;
    for (const dllm_json *v = dllm_json_first(shape); v < dllm_json_next(shape); v = dllm_json_next(v)) {
        REFUSE_IF(!is_size(v), "tensor %.200s: shape must hold non-negative integers", name);
        REFUSE_IF(__builtin_mul_overflow(bits, (uint64_t)v->integer, &bits), "tensor %.200s: shape overflows at dimension %lld",
                  name, (long long)v->integer);
    }
    REFUSE_IF(bits % 8 != 0, "tensor %.200s: %zu bits of %s are no whole bytes", name, bits, dtype);
    *bytes = bits / 8;
    return 0;
}

static int read_tensor(dllm_tensor *t, const dllm_json *key, const unsigned char *data, size_t size)
{
    const dllm_json *dtype, *offsets;
    REFUSE_IF(key[1].kind != DLLM_JSON_OBJECT, "tensor %.200s is not described by an object", key->string);
    t->name = key->string;
    TRY(get_field(&dtype, key, "dtype", DLLM_JSON_STRING));
    TRY(get_field(&t->shape, key, "shape", DLLM_JSON_ARRAY));
    TRY(get_field(&offsets, key, "data_offsets", DLLM_JSON_ARRAY));
    t->dtype = dtype->string;
    TRY(measure(&t->bytes, t->name, t->dtype, t->shape));

    const dllm_json *first = dllm_json_first(offsets);
    REFUSE_IF(offsets->span != 3 || !is_size(first) || !is_size(first + 1),
              "tensor %.200s: data_offsets must be two non-negative integers", t->name);
    const uint64_t begin = (uint64_t)first->integer, end = (uint64_t)first[1].integer;
    REFUSE_IF(begin > end || end > size, "tensor %.200s: data_offsets [%llu, %llu] do not lie in %zu bytes of data", t->name,
              (unsigned long long)begin, (unsigned long long)end, size);
    REFUSE_IF(end - begin != t->bytes, "tensor %.200s has %llu bytes; its dtype and shape ask for %zu", t->name,
              (unsigned long long)(end - begin), t->bytes);
    t->data = data + begin;
    return 0;
}

/* ---- the whole header ------------------------------------------------------------------------------------------------------ */
static int compare_names(const void *a, const void *b)
{
    return strcmp(((const dllm_tensor *)a)->name, ((const dllm_tensor *)b)->name);
}

/* By place; an empty tensor comes before the one that begins where it lies. */
static int compare_places(const void *a, const void *b)
{
    const dllm_tensor *s = a, *t = b;
    if (s->data != t->data) return (uintptr_t)s->data < (uintptr_t)t->data ? -1 : 1;
    return s->bytes < t->bytes ? -1 : s->bytes > t->bytes;
}

static int check_places(dllm_safetensors *s, const unsigned char *data, size_t size)
{
    const unsigned char *end = data;
    qsort(s->tensors, s->n, sizeof *s->tensors, compare_places);
    for (size_t i = 0; i < s->n; i++) {
        const dllm_tensor *t = &s->tensors[i];
        const unsigned char *begin = t->data;
        REFUSE_IF(begin < end, "tensors %.200s and %.200s overlap", s->tensors[i - 1].name, t->name);
        REFUSE_IF(begin > end, "%zu bytes before tensor %.200s belong to no tensor", (size_t)(begin - end), t->name);
        end = begin + t->bytes;
    }
    REFUSE_IF(end != data + size, "%zu bytes at the end belong to no tensor", (size_t)(data + size - end));
    return 0;
}

static int sort_names(dllm_safetensors *s)
{
    qsort(s->tensors, s->n, sizeof *s->tensors, compare_names);
    for (size_t i = 1; i < s->n; i++)
        REFUSE_IF(strcmp(s->tensors[i - 1].name, s->tensors[i].name) == 0, "tensor %.200s is there twice", s->tensors[i].name);
    return 0;
}

static int check_metadata(const dllm_json *metadata)
{
    bool strings = metadata->kind == DLLM_JSON_OBJECT;
    for (const dllm_json *k = dllm_json_first(metadata); strings && k < dllm_json_next(metadata); k = dllm_json_next(k + 1))
        strings = k[1].kind == DLLM_JSON_STRING;
    REFUSE_IF(!strings, "__metadata__ is not an object of strings");
    return 0;
}

static int read_tensors(dllm_safetensors *s, const unsigned char *data, size_t size)
{
    const dllm_json *end = dllm_json_next(s->header), *metadata;
    TRY(dllm_json_get(&metadata, s->header, "__metadata__"));
    if (metadata) TRY(check_metadata(metadata));
    size_t members = 0;
    for (const dllm_json *k = dllm_json_first(s->header); k < end; k = dllm_json_next(k + 1)) members++;
    s->tensors = calloc(members + 1, sizeof *s->tensors);
    FAIL_IF(!s->tensors, DLLM_E_MEMORY, "out of memory: a list of %zu tensors", members);
    for (const dllm_json *k = dllm_json_first(s->header); k < end; k = dllm_json_next(k + 1))
        if (k + 1 != metadata) TRY(read_tensor(&s->tensors[s->n++], k, data, size));
    TRY(check_places(s, data, size));
    return sort_names(s);
}

static int read_file(dllm_safetensors *s, const unsigned char *file, size_t size)
{
    uint64_t length = 0;
    REFUSE_IF(size < 8, "%zu bytes are too few for a safetensors file", size);
    for (int i = 7; i >= 0; i--) length = length << 8 | file[i];
    REFUSE_IF(length > DLLM_JSON_MAX_BYTES, "a header of %llu bytes; at most %d are read", (unsigned long long)length,
              DLLM_JSON_MAX_BYTES);
    REFUSE_IF(length > size - 8, "a header of %llu bytes in a file of %zu bytes", (unsigned long long)length, size);
    REFUSE_IF(length == 0 || file[8] != '{', "the header does not start with '{'");
    const int status = dllm_json_parse(&s->header, (const char *)file + 8, (size_t)length);
    if (status < 0) return dllm_fail(status, "header: %s", dllm_last_error());
    return read_tensors(s, file + 8 + length, size - 8 - (size_t)length);
}

int dllm_safetensors_parse(dllm_safetensors *out, const void *data, size_t size)
{
    *out = (dllm_safetensors){ 0 };
    const int status = read_file(out, data, size);
    if (status < 0) dllm_safetensors_close(out);
    return status;
}

int dllm_safetensors_open(dllm_safetensors *out, const char *path)
{
    dllm_map map;
    *out = (dllm_safetensors){ 0 };
    TRY(dllm_map_open(&map, path));
    const int status = dllm_safetensors_parse(out, map.data, map.size);
    if (status < 0) {
        dllm_map_close(&map);
        return dllm_fail(status, "%.400s: %s", path, dllm_last_error());
    }
    out->map = map;
    return 0;
}

void dllm_safetensors_close(dllm_safetensors *s)
{
    free(s->tensors);
    dllm_json_free(s->header);
    dllm_map_close(&s->map);
    *s = (dllm_safetensors){ 0 };
}

/* ---- tensors --------------------------------------------------------------------------------------------------------------- */
const dllm_tensor *dllm_safetensors_find(const dllm_safetensors *s, const char *name)
{
    const dllm_tensor wanted = { .name = name };
    return s->n > 0 ? bsearch(&wanted, s->tensors, s->n, sizeof wanted, compare_names) : NULL;
}

int dllm_tensor_mat(dllm_mat *out, const dllm_tensor *t)
{
    static const char *const names[] = { [DLLM_F32] = "F32", [DLLM_BF16] = "BF16", [DLLM_F16] = "F16" };
    int dtype = DLLM_F32;
    while (dtype <= DLLM_F16 && strcmp(names[dtype], t->dtype) != 0) dtype++;
    REFUSE_IF(dtype > DLLM_F16, "tensor %.200s has dtype %s; float32, bfloat16 or float16 expected", t->name, t->dtype);
    const uint32_t dimensions = t->shape->span - 1;
    REFUSE_IF(dimensions < 1 || dimensions > 2, "tensor %.200s has %u dimensions; 1 or 2 expected", t->name, dimensions);
    const dllm_json *shape = dllm_json_first(t->shape);
    const int64_t rows = dimensions == 2 ? shape[0].integer : 1, cols = shape[dimensions - 1].integer;
    *out = (dllm_mat){ .data = (void *)(uintptr_t)t->data, .rows = rows, .cols = cols, .stride = cols, .dtype = (dllm_dtype)dtype };
    return 0;
}
