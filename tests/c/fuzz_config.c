/* fuzz_config.c: any bytes as JSON and as config.json. An accepted document is a well-formed array of values; an accepted config
 * has only sizes that the engine can multiply without overflow. */
#include <math.h>

#include "../../csrc/json.h"
#include "fuzz_replay.h"

static void check_value(const dllm_json *v, size_t size)
{
    MUST(v->span >= 1 && (size_t)v->at + v->len <= size && v->len >= 1);
    if (v->kind == DLLM_JSON_NUMBER && !v->integral) MUST(isfinite(v->number));
    if (v->kind == DLLM_JSON_STRING) MUST(strlen(v->string) <= v->len - 2);
    if (v->kind != DLLM_JSON_ARRAY && v->kind != DLLM_JSON_OBJECT) {
        MUST(v->span == 1);
        return;
    }
    size_t n = 0;
    const dllm_json *inside = dllm_json_first(v);
    for (; inside < dllm_json_next(v); inside = dllm_json_next(inside), n++)
        if (v->kind == DLLM_JSON_OBJECT && n % 2 == 0) MUST(inside->kind == DLLM_JSON_STRING);
    MUST(inside == dllm_json_next(v) && (v->kind == DLLM_JSON_ARRAY || n % 2 == 0));
}

static bool in_range(int64_t x, int64_t low, int64_t high) { return low <= x && x <= high; }

static void check_config(const dllm_config *c)
{
    MUST(in_range(c->family, DLLM_LLADA, DLLM_DREAM) && in_range(c->dtype, DLLM_F32, DLLM_F16));
    MUST(in_range(c->layers, 1, 1000) && in_range(c->heads, 1, 1024) && in_range(c->kv_heads, 1, c->heads));
    MUST(c->heads % c->kv_heads == 0 && c->head_dim % 2 == 0 && in_range(c->head_dim, 2, 1 << 20));
    MUST(in_range(c->dim, 1, 1 << 20) && in_range(c->ffn_dim, 1, 1 << 20) && in_range(c->vocab, 1, 1 << 24) && c->max_len > 0);
    MUST(isfinite(c->rope_theta) && c->rope_theta > 0 && isfinite(c->norm_eps) && c->norm_eps > 0);
    MUST(in_range(c->mask_id, -1, c->vocab - 1) && in_range(c->eos_id, -1, c->vocab - 1) && in_range(c->eot_id, -1, c->vocab - 1));
    MUST(in_range(c->pad_id, -1, c->vocab - 1) && in_range(c->bos_id, -1, c->vocab - 1));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    dllm_json *root;
    dllm_config c;
    const int status = dllm_json_parse(&root, (const char *)data, size);
    if (status == 0) {
        for (uint32_t i = 0; i < root->span; i++) check_value(&root[i], size);
        dllm_json_free(root);
    }
    if (dllm_config_parse(&c, (const char *)data, size) == 0) {
        MUST(status == 0);
        check_config(&c);
    }
    return 0;
}
