/* json.h: a strict JSON reader for config.json, shard indexes and safetensors headers, which may come from a stranger.
 *
 * A document becomes one array of values in the order of the text, held by a single allocation: a container is followed by
 * what is in it (an object by key, value, key, value, ...), and `span` steps over a value with everything inside. Nothing
 * recurses, so depth costs no stack; depth and number of values are limited. Duplicate keys are kept: whoever asks for a
 * key that is there twice is refused. */
#ifndef DLLM_JSON_H
#define DLLM_JSON_H
#include "error.h"

/* What is wrong with a stranger's file. */
#define REFUSE_IF(condition, ...) FAIL_IF(condition, DLLM_E_CHECKPOINT, __VA_ARGS__)

enum { DLLM_JSON_MAX_BYTES = 100000000, DLLM_JSON_MAX_VALUES = 8000000, DLLM_JSON_MAX_DEPTH = 64 };

typedef enum {
    DLLM_JSON_NULL,
    DLLM_JSON_FALSE,
    DLLM_JSON_TRUE,
    DLLM_JSON_NUMBER,
    DLLM_JSON_STRING,
    DLLM_JSON_ARRAY,
    DLLM_JSON_OBJECT,
} dllm_json_kind;

typedef struct {
    uint8_t kind;
    bool integral;    /* a number without fraction and exponent that fits: `integer` is exact; otherwise `number` holds it */
    uint32_t span;    /* 1 + the values inside */
    uint32_t at, len; /* where it stands in the text */
    union {
        const char *string; /* decoded, valid UTF-8, ends with a zero byte and holds no other */
        double number;      /* finite */
        int64_t integer;
    };
} dllm_json;

/* The root, to be freed with dllm_json_free. The text need not outlive the call. */
int dllm_json_parse(dllm_json **out, const char *text, size_t n);
void dllm_json_free(dllm_json *root);

/* for (v = dllm_json_first(c); v < dllm_json_next(c); v = dllm_json_next(v)) visits what is in the container c. */
static inline const dllm_json *dllm_json_first(const dllm_json *container) { return container + 1; }
static inline const dllm_json *dllm_json_next(const dllm_json *v) { return v + v->span; }

/* *out: the value of a key, NULL if it is not there. */
int dllm_json_get(const dllm_json **out, const dllm_json *object, const char *key);
#endif
