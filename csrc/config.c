/* config.c: the text of config.json -> dllm_config.
 *
 * A field that is absent or null means what it means to the model's own config class, which is not always what the published
 * checkpoints say: LLaDA's class ties the head and has no rotary embedding unless told otherwise. What the engine does not run
 * is refused by name and value. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint.h"
#include "json.h"

static const char *const dtype_names[] = {
    [DLLM_F32] = "float32", [DLLM_BF16] = "bfloat16", [DLLM_F16] = "float16", [DLLM_I8] = "int8"
};

size_t dllm_dtype_size(dllm_dtype t) { return t == DLLM_F32 ? 4 : t == DLLM_I8 ? 1 : 2; }

const char *dllm_dtype_name(dllm_dtype t) { return (unsigned)t <= DLLM_I8 ? dtype_names[t] : "unknown dtype"; }

bool dllm_dtype_find(const char *name, dllm_dtype *out)
{
    for (*out = DLLM_F32; *out <= DLLM_F16; ++*out)
        if (strcmp(name, dtype_names[*out]) == 0) return true;
    return false;
}

/* ---- fields ---------------------------------------------------------------------------------------------------------------- */
typedef struct {
    const dllm_json *object;
    const char *text; /* for messages that show a value as it is written */
} reader;

/* As much of a value as a message needs, on one line. */
typedef struct {
    char text[80];
} shown;

static shown show(const reader *r, const dllm_json *v)
{
    shown s = { "" };
    size_t n = 0;
    for (uint32_t i = 0; i < v->len; i++) {
        const char c = r->text[v->at + i];
        const bool space = c == ' ' || c == '\n' || c == '\r' || c == '\t';
        if (space && n > 0 && s.text[n - 1] == ' ') continue;
        if (n == sizeof s.text - 4) {
            strcpy(s.text + n, "...");
            return s;
        }
        s.text[n++] = space ? ' ' : c;
    }
    return s;
}

/* NULL if the field is absent or null. */
static int get(const dllm_json **out, const reader *r, const char *key)
{
    TRY(dllm_json_get(out, r->object, key));
    if (*out && (*out)->kind == DLLM_JSON_NULL) *out = NULL;
    return 0;
}

static bool is_word(const reader *r, const dllm_json *v, const char *word)
{
    return v->len == strlen(word) && memcmp(r->text + v->at, word, v->len) == 0;
}

static int get_bool(bool *out, const reader *r, const char *key, bool otherwise)
{
    const dllm_json *v;
    TRY(get(&v, r, key));
    REFUSE_IF(v && v->kind != DLLM_JSON_TRUE && v->kind != DLLM_JSON_FALSE, "%s = %s; true or false expected", key,
              show(r, v).text);
    *out = v ? v->kind == DLLM_JSON_TRUE : otherwise;
    return 0;
}

enum { NEEDED = INT32_MIN }; /* as `otherwise`: the field must be there */

static int get_int(int32_t *out, const reader *r, const char *key, int32_t low, int32_t high, int32_t otherwise)
{
    const dllm_json *v;
    TRY(get(&v, r, key));
    REFUSE_IF(!v && otherwise == NEEDED, "no %s", key);
    REFUSE_IF(v && (v->kind != DLLM_JSON_NUMBER || !v->integral || v->integer < low || v->integer > high),
              "%s = %s; an integer from %d to %d expected", key, show(r, v).text, (int)low, (int)high);
    *out = v ? (int32_t)v->integer : otherwise;
    return 0;
}

static int get_float(float *out, const reader *r, const char *key, float otherwise)
{
    const dllm_json *v;
    TRY(get(&v, r, key));
    *out = !v ? otherwise : v->kind != DLLM_JSON_NUMBER ? 0 : v->integral ? (float)v->integer : (float)v->number;
    REFUSE_IF(!(*out > 0) || !isfinite(*out), "%s = %s; a positive number expected", key, show(r, v).text);
    return 0;
}

/* A token id; the first one of a list; -1 if it is not known. */
static int get_id(int32_t *out, const reader *r, const char *key, int32_t vocab)
{
    const dllm_json *v;
    TRY(get(&v, r, key));
    if (v && v->kind == DLLM_JSON_ARRAY) v = v->span > 1 ? dllm_json_first(v) : NULL;
    REFUSE_IF(v && (v->kind != DLLM_JSON_NUMBER || !v->integral || v->integer < -1 || v->integer >= vocab),
              "%s = %s; a token of the %d in the vocabulary expected", key, show(r, v).text, (int)vocab);
    *out = v ? (int32_t)v->integer : -1;
    return 0;
}

/* ---- what the engine does not run ------------------------------------------------------------------------------------------ */
/* Values as JSON spells them: the one we run, and the one an absent field means. */
typedef struct {
    const char *key, *ours, *absent;
} rule;

static const rule llada_rules[] = {
    { "block_type", "\"llama\"", "\"sequential\"" },
    { "layer_norm_type", "\"rms\"", "\"default\"" },
    { "activation_type", "\"silu\"", "\"swiglu\"" },
    { "rope", "true", "false" },
    { "alibi", "false", "false" },
    { "block_group_size", "1", "1" },
    { "attention_layer_norm", "false", "false" },
    { "layer_norm_with_affine", "true", "true" },
    { "bias_for_layer_norm", "false", "false" },
    { "include_bias", "false", "false" },
    { "input_emb_norm", "false", "false" },
    { "scale_logits", "false", "false" },
};

static const rule common_rules[] = {
    { "hidden_act", "\"silu\"", "\"silu\"" },  { "use_sliding_window", "false", "false" }, { "use_mrope", "false", "false" },
    { "qk_layernorm", "false", "false" },      { "use_qk_norm", "false", "false" },        { "rope_scaling", "null", "null" },
    { "quantization_config", "null", "null" },
};

static int check_rules(const reader *r, const rule *rules, size_t n)
{
    for (const rule *p = rules; p < rules + n; p++) {
        const dllm_json *v;
        TRY(get(&v, r, p->key));
        REFUSE_IF(!v && strcmp(p->absent, p->ours) != 0, "%s is absent, which means %s, and that is not supported; %s is", p->key,
                  p->absent, p->ours);
        REFUSE_IF(v && !is_word(r, v, p->ours), "%s = %s is not supported; %s is", p->key, show(r, v).text, p->ours);
    }
    return 0;
}

/* Before anything else: the dense and the sparse LLaDA share their model_type, and little more. */
static int refuse_experts(const reader *r)
{
    static const char *const keys[] = { "num_experts",         "num_local_experts",     "n_routed_experts",
                                        "num_experts_per_tok", "moe_intermediate_size", "expert_intermediate_size" };
    const dllm_json *architectures, *v;
    TRY(get(&architectures, r, "architectures"));
    const shown name = architectures ? show(r, architectures) : (shown){ "absent" };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        TRY(get(&v, r, keys[i]));
        REFUSE_IF(v, "mixture of experts is not supported: architectures = %s, %s = %s", name.text, keys[i], show(r, v).text);
    }
    REFUSE_IF(strstr(name.text, "MoE") || strstr(name.text, "Moe"), "mixture of experts is not supported: architectures = %s",
              name.text);
    return 0;
}

/* model_type says the family. Fine-tunes may have classes of their own, derived from the family's. */
static int read_family(dllm_family *out, const reader *r)
{
    static const char *const starts[] = { [DLLM_LLADA] = "LLaDAModel", [DLLM_DREAM] = "Dream" };
    const dllm_json *type, *architectures;
    TRY(get(&type, r, "model_type"));
    REFUSE_IF(!type, "no model_type; \"llada\" or \"Dream\" expected");
    REFUSE_IF(!is_word(r, type, "\"llada\"") && !is_word(r, type, "\"Dream\""),
              "model_type = %s is not supported; \"llada\" and \"Dream\" are", show(r, type).text);
    *out = is_word(r, type, "\"llada\"") ? DLLM_LLADA : DLLM_DREAM;

    TRY(get(&architectures, r, "architectures"));
    if (!architectures) return 0;
    const dllm_json *name = architectures->kind == DLLM_JSON_ARRAY && architectures->span > 1 ? architectures + 1 : architectures;
    REFUSE_IF(name->kind != DLLM_JSON_STRING || strncmp(name->string, starts[*out], strlen(starts[*out])) != 0,
              "architectures = %s with model_type %s is not supported; %s is", show(r, architectures).text, show(r, type).text,
              *out == DLLM_LLADA ? "LLaDAModelLM" : "DreamModel");
    /* Dream's reasoning variants: blocks of 32, and logits that stand where their tokens do. */
    REFUSE_IF(strcmp(name->string, "DreamForCausalLM") == 0,
              "architectures = %s is not supported: its logits are not shifted as those of DreamModel",
              show(r, architectures).text);
    return 0;
}

/* ---- the model ------------------------------------------------------------------------------------------------------------- */
enum { MAX_DIM = 1 << 20, MAX_HEADS = 1024, MAX_VOCAB = 1 << 24 };

/* dim over heads, unless the text says otherwise. */
static int read_head_dim(dllm_config *c, const reader *r)
{
    REFUSE_IF(c->heads % c->kv_heads != 0, "%d heads cannot share %d key-value heads evenly", c->heads, c->kv_heads);
    TRY(get_int(&c->head_dim, r, "head_dim", 2, 1 << 16, 0));
    if (c->head_dim == 0) {
        REFUSE_IF(c->dim % c->heads != 0, "%d columns cannot be divided among %d heads", c->dim, c->heads);
        c->head_dim = c->dim / c->heads;
    }
    REFUSE_IF(c->head_dim % 2 != 0, "heads of %d columns cannot be rotated: the number is odd", c->head_dim);
    return 0;
}

/* transformers 5 writes rope_parameters {"rope_theta": ..., "rope_type": "default"} in place of rope_theta. */
static int read_rope(dllm_config *c, const reader *r)
{
    const dllm_json *parameters, *type;
    TRY(get_float(&c->rope_theta, r, "rope_theta", 10000));
    TRY(get(&parameters, r, "rope_parameters"));
    if (!parameters) return 0;
    REFUSE_IF(parameters->kind != DLLM_JSON_OBJECT, "rope_parameters = %s; an object expected", show(r, parameters).text);
    const reader inside = { .object = parameters, .text = r->text };
    TRY(get(&type, &inside, "rope_type"));
    REFUSE_IF(type && !is_word(r, type, "\"default\""), "rope_parameters: rope_type = %s is not supported; \"default\" is",
              show(r, type).text);
    return get_float(&c->rope_theta, &inside, "rope_theta", c->rope_theta);
}

static int read_ids(dllm_config *c, const reader *r)
{
    enum { LLADA_EOT = 126348 }; /* <|eot_id|>, which no field names */
    c->eot_id = c->family == DLLM_LLADA && c->vocab > LLADA_EOT ? LLADA_EOT : -1;
    TRY(get_id(&c->mask_id, r, "mask_token_id", c->vocab));
    TRY(get_id(&c->eos_id, r, "eos_token_id", c->vocab));
    TRY(get_id(&c->pad_id, r, "pad_token_id", c->vocab));
    return get_id(&c->bos_id, r, "bos_token_id", c->vocab);
}

static int read_llada(dllm_config *c, const reader *r)
{
    bool one_kv_head;
    int32_t ratio, vocab;
    TRY(check_rules(r, llada_rules, sizeof llada_rules / sizeof *llada_rules));
    TRY(get_int(&c->layers, r, "n_layers", 1, 1000, NEEDED));
    TRY(get_int(&c->dim, r, "d_model", 1, MAX_DIM, NEEDED));
    TRY(get_int(&c->heads, r, "n_heads", 1, MAX_HEADS, NEEDED));
    TRY(get_bool(&one_kv_head, r, "multi_query_attention", false));
    TRY(get_int(&c->kv_heads, r, "n_kv_heads", 1, MAX_HEADS, one_kv_head ? 1 : c->heads));
    REFUSE_IF(one_kv_head && c->kv_heads != 1, "multi_query_attention = true with n_kv_heads = %d", c->kv_heads);

    TRY(get_int(&ratio, r, "mlp_ratio", 1, 1024, 4));
    TRY(get_int(&c->ffn_dim, r, "mlp_hidden_size", 1, MAX_DIM, 0));
    if (c->ffn_dim == 0) c->ffn_dim = ratio * c->dim;
    REFUSE_IF(c->ffn_dim > MAX_DIM, "mlp_ratio = %d times d_model = %d is more than %d", ratio, c->dim, MAX_DIM);

    TRY(get_int(&vocab, r, "vocab_size", 1, MAX_VOCAB, NEEDED));
    TRY(get_int(&c->vocab, r, "embedding_size", 1, MAX_VOCAB, vocab));
    REFUSE_IF(c->vocab < vocab, "embedding_size = %d is less than vocab_size = %d", c->vocab, vocab);
    TRY(get_int(&c->max_len, r, "max_sequence_length", 1, 1 << 30, 1024));
    TRY(get_float(&c->norm_eps, r, "rms_norm_eps", 1e-5f));
    TRY(get_bool(&c->tied_head, r, "weight_tying", true));
    return get_bool(&c->rope_f32, r, "rope_full_precision", true);
}

static int read_dream(dllm_config *c, const reader *r)
{
    c->shift_logits = true;
    TRY(get_int(&c->layers, r, "num_hidden_layers", 1, 1000, NEEDED));
    TRY(get_int(&c->dim, r, "hidden_size", 1, MAX_DIM, NEEDED));
    TRY(get_int(&c->heads, r, "num_attention_heads", 1, MAX_HEADS, NEEDED));
    TRY(get_int(&c->kv_heads, r, "num_key_value_heads", 1, MAX_HEADS, c->heads));
    TRY(get_int(&c->ffn_dim, r, "intermediate_size", 1, MAX_DIM, NEEDED));
    TRY(get_int(&c->vocab, r, "vocab_size", 1, MAX_VOCAB, NEEDED));
    TRY(get_int(&c->max_len, r, "max_position_embeddings", 1, 1 << 30, 32768));
    TRY(get_float(&c->norm_eps, r, "rms_norm_eps", 1e-6f));
    return get_bool(&c->tied_head, r, "tie_word_embeddings", false);
}

/* torch_dtype, which newer versions of transformers write as dtype. */
static int read_dtype(dllm_config *c, bool *has_dtype, const reader *r)
{
    const dllm_json *v;
    const char *key = "dtype";
    TRY(get(&v, r, key));
    if (!v) TRY(get(&v, r, key = "torch_dtype"));
    *has_dtype = v != NULL;
    c->dtype = DLLM_F32;
    REFUSE_IF(v && (v->kind != DLLM_JSON_STRING || !dllm_dtype_find(v->string, &c->dtype)),
              "%s = %s is not supported; float32, bfloat16 and float16 are", key, show(r, v).text);
    return 0;
}

static int read_config(dllm_config *c, bool *has_dtype, const reader *r)
{
    REFUSE_IF(r->object->kind != DLLM_JSON_OBJECT, "a JSON object expected");
    TRY(refuse_experts(r));
    TRY(read_family(&c->family, r));
    TRY(check_rules(r, common_rules, sizeof common_rules / sizeof *common_rules));
    TRY(c->family == DLLM_LLADA ? read_llada(c, r) : read_dream(c, r));
    TRY(read_head_dim(c, r));
    TRY(read_rope(c, r));
    TRY(read_ids(c, r));
    return read_dtype(c, has_dtype, r);
}

int dllm_config_read(dllm_config *out, bool *has_dtype, const char *json, size_t n)
{
    dllm_json *root;
    *out = (dllm_config){ 0 };
    TRY(dllm_json_parse(&root, json, n));
    const reader r = { .object = root, .text = json };
    const int status = read_config(out, has_dtype, &r);
    dllm_json_free(root);
    return status;
}

int dllm_config_parse(dllm_config *out, const char *json, size_t n)
{
    bool has_dtype;
    const int status = dllm_config_read(out, &has_dtype, json, n);
    return status < 0 ? dllm_fail(status, "config.json: %s", dllm_last_error()) : 0;
}
