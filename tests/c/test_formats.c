/* test_formats.c: JSON, safetensors headers and configs: what must parse parses, and everything hostile is refused by name. */
#include <math.h>
#include <stdlib.h>

#include "../../csrc/safetensors.h"
#include "refuse.h"

/* ---- JSON ------------------------------------------------------------------------------------------------------------------ */
static void test_json_values(void)
{
    static const char text[] =
        " {\"a\\u00e9\\ud83d\\ude00\\n\": [1, -2, 9223372036854775807, [], {}], \"b\":{\"c\" : null},\"d\":true } ";
    dllm_json *root;
    const dllm_json *v;
    if (!check(dllm_json_parse(&root, text, strlen(text)) == 0, "a document")) return;
    check(root->kind == DLLM_JSON_OBJECT && root->span == 14 && strcmp(root[1].string, "a\xc3\xa9\xf0\x9f\x98\x80\n") == 0,
          "escapes");
    check(root[2].span == 6 && root[3].integer == 1 && root[4].integer == -2 && root[5].integer == INT64_MAX, "integers");
    check(root[6].kind == DLLM_JSON_ARRAY && root[6].len == 2 && root[7].kind == DLLM_JSON_OBJECT && root[7].span == 1,
          "empty containers");
    check(dllm_json_get(&v, root, "b") == 0 && v == root + 9 && text[v->at] == '{' && text[v->at + v->len - 1] == '}', "a member");
    check(dllm_json_get(&v, root, "c") == 0 && v == NULL, "a member of a member is none");
    dllm_json_free(root);

    static const char *const numbers[] = { "0.0",
                                           "1e-05",
                                           "500000.0",
                                           "1e-06",
                                           "0.02",
                                           "1.7976931348623157e308",
                                           "-2.5E+3",
                                           "123456789012345678901234",
                                           "5e-324",
                                           "1e-400",
                                           "3.141592653589793238462643383279",
                                           "18446744073709551615",
                                           "0.1e1" };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        const double right = strtod(numbers[i], NULL);
        if (!check(dllm_json_parse(&root, numbers[i], strlen(numbers[i])) == 0, numbers[i])) continue;
        check(!root->integral && fabs(root->number - right) <= 4e-16 * fabs(right) + 5e-324, numbers[i]);
        dllm_json_free(root);
    }
}

static void test_json_refusals(void)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        { "", "at byte 0: a value expected" },
        { "{", "a key expected" },
        { "[1,]", "at byte 3: a value expected" },
        { "{\"a\":1,}", "a key expected" },
        { "[1 2]", "at byte 3: ',' or the end" },
        { "{\"a\" 1}", "':' expected" },
        { "[1}", "',' or the end" },
        { "[1]]", "text after the end" },
        { "01", "leading zero" },
        { "-", "a value expected" },
        { "1.", "a digit expected" },
        { "1e+", "a digit expected" },
        { ".5", "a value expected" },
        { "+1", "a value expected" },
        { "NaN", "a value expected" },
        { "-Infinity", "a value expected" },
        { "1e999", "too large" },
        { "nul", "a value expected" },
        { "\"a", "ends inside a string" },
        { "\"\\x\"", "unknown escape" },
        { "\"\\", "unknown escape" },
        { "\"\\u12g4\"", "four hexadecimal digits" },
        { "\"\\ud800\"", "surrogate" },
        { "\"\\ud800\\u0041\"", "surrogate" },
        { "\"\\udc00\"", "surrogate" },
        { "\"\\u0000\"", "zero character" },
        { "\"\n\"", "control character" },
        { "\"\xc0\x80\"", "not UTF-8" },
        { "\"\xed\xa0\x80\"", "not UTF-8" },
        { "\"\xf4\x90\x80\x80\"", "not UTF-8" },
        { "\"\xe2\x82\"", "not UTF-8" },
        { "\"\x80\"", "not UTF-8" },
        { "\xef\xbb\xbf{}", "a value expected" },
        { "{a:1}", "a key expected" },
    };
    dllm_json *root;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refuse(dllm_json_parse(&root, cases[i].text, strlen(cases[i].text)), DLLM_E_CHECKPOINT, cases[i].message, cases[i].text);
    refuse(dllm_json_parse(&root, "[1\0]", 4), DLLM_E_CHECKPOINT, "at byte 2", "a zero byte");

    char *deep = calloc(1, 1000000);
    memset(deep, '[', 1000000);
    refuse(dllm_json_parse(&root, deep, 1000000), DLLM_E_CHECKPOINT, "nested too deeply", "a million brackets");
    memset(deep + 64, ']', 64);
    check(dllm_json_parse(&root, deep, 128) == 0, "64 levels");
    dllm_json_free(root);
    free(deep);

    const dllm_json *v;
    check(dllm_json_parse(&root, "{\"a\":1,\"\\u0061\":2}", 18) == 0, "a key twice");
    refuse(dllm_json_get(&v, root, "a"), DLLM_E_CHECKPOINT, "\"a\" is there twice", "a key twice");
    dllm_json_free(root);
}

/* ---- safetensors ------------------------------------------------------------------------------------------------------------ */
typedef struct {
    unsigned char *bytes;
    size_t size;
} image;

/* Data bytes count up, so that it matters where a tensor begins. The header is padded as writers do. */
static image make_file(const char *header, size_t data)
{
    const size_t length = (strlen(header) + 7) / 8 * 8;
    image f = { malloc(8 + length + data), 8 + length + data };
    for (int i = 0; i < 8; i++) f.bytes[i] = (unsigned char)((uint64_t)length >> 8 * i);
    memset(f.bytes + 8, ' ', length);
    memcpy(f.bytes + 8, header, strlen(header));
    for (size_t i = 0; i < data; i++) f.bytes[8 + length + i] = (unsigned char)(i + 1);
    return f;
}

static void test_safetensors_refusals(void)
{
#define TENSOR(name, dtype, shape, begin, end)                                                                                     \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"
    static const struct {
        const char *header;
        size_t data;
        const char *message;
    } cases[] = {
        { "[]", 0, "does not start with '{'" },
        { " {}", 0, "does not start with '{'" },
        { "{\"a\":1", 0, "header: not valid JSON" },
        { "{\"\xff\":1}", 0, "header: not valid JSON at byte 2: not UTF-8" },
        { "{" TENSOR("x", "U8", "[1]", 0, 1) "," TENSOR("x", "U8", "[1]", 1, 2) "}", 2, "tensor x is there twice" },
        { "{" TENSOR("x", "U8", "[1]", 0, 1) "," TENSOR("\\u0078", "U8", "[1]", 1, 2) "}", 2, "tensor x is there twice" },
        { "{" TENSOR("x", "F33", "[1]", 0, 1) "}", 1, "tensor x has unknown dtype F33" },
        { "{" TENSOR("x", "F32", "[-1]", 0, 4) "}", 4, "tensor x: shape must hold non-negative integers" },
        { "{" TENSOR("x", "F32", "[1.0]", 0, 4) "}", 4, "shape must hold non-negative integers" },
        { "{" TENSOR("x", "F32", "[4611686018427387904,4]", 0, 4) "}", 4, "tensor x: shape overflows" },
        { "{" TENSOR("x", "F32", "[9223372036854775808]", 0, 4) "}", 4, "shape must hold non-negative integers" },
        { "{" TENSOR("x", "F4", "[3]", 0, 2) "}", 2, "tensor x: 12 bits of F4" },
        { "{" TENSOR("x", "F32", "[1]", 4, 0) "}", 4, "data_offsets [4, 0] do not lie in 4 bytes" },
        { "{" TENSOR("x", "F32", "[2]", 0, 8) "}", 4, "data_offsets [0, 8] do not lie in 4 bytes" },
        { "{" TENSOR("x", "F32", "[2]", 0, 4) "}", 4, "tensor x has 4 bytes; its dtype and shape ask for 8" },
        { "{" TENSOR("x", "F32", "[1]", -4, 0) "}", 4, "tensor x: data_offsets must be two non-negative integers" },
        { "{\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,1]}}", 1, "data_offsets must be two" },
        { "{\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[[0]]}}", 1, "data_offsets must be two" },
        { "{\"x\":{\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]}}", 1, "tensor x: shape is not an array" },
        { "{\"x\":{\"dtype\":8,\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "tensor x: dtype is not a string" },
        { "{\"x\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "tensor x has no dtype" },
        { "{\"x\":{\"dtype\":\"U8\",\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
          "tensor x: \"dtype\" is there twice" },
        { "{\"x\":7}", 0, "tensor x is not described by an object" },
        { "{\"__metadata__\":{\"a\":1}}", 0, "__metadata__ is not an object of strings" },
        { "{" TENSOR("x", "U8", "[4]", 0, 4) "," TENSOR("y", "U8", "[4]", 2, 6) "}", 6, "tensors x and y overlap" },
        { "{" TENSOR("x", "U8", "[4]", 0, 4) "," TENSOR("y", "U8", "[4]", 0, 4) "}", 4, "overlap" },
        { "{" TENSOR("y", "U8", "[4]", 5, 9) "," TENSOR("x", "U8", "[4]", 0, 4) "}", 9,
          "1 bytes before tensor y belong to no tensor" },
        { "{" TENSOR("x", "U8", "[4]", 0, 4) "}", 7, "3 bytes at the end belong to no tensor" },
        { "{}", 3, "3 bytes at the end belong to no tensor" },
    };
    dllm_safetensors s;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const image f = make_file(cases[i].header, cases[i].data);
        refuse(dllm_safetensors_parse(&s, f.bytes, f.size), DLLM_E_CHECKPOINT, cases[i].message, cases[i].header);
        free(f.bytes);
    }
    refuse(dllm_safetensors_parse(&s, "1234567", 7), DLLM_E_CHECKPOINT, "7 bytes are too few", "a short file");
    refuse(dllm_safetensors_parse(&s, "\x03\0\0\0\0\0\0\0{}", 10), DLLM_E_CHECKPOINT, "a header of 3 bytes in a file of 10",
           "a long header");
    refuse(dllm_safetensors_parse(&s, "\x01\xe1\xf5\x05\0\0\0\0{}", 10), DLLM_E_CHECKPOINT, "a header of 100000001 bytes",
           "a huge header");
    refuse(dllm_safetensors_parse(&s, "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10), DLLM_E_CHECKPOINT, "18446744073709551615",
           "all ones");
    refuse(dllm_safetensors_parse(&s, "\0\0\0\0\0\0\0\0", 8), DLLM_E_CHECKPOINT, "does not start with '{'", "no header");
}

static void test_safetensors_values(void)
{
    const image f =
        make_file("{\"__metadata__\":{\"format\":\"pt\"}," TENSOR("y", "BF16", "[2,3]", 8, 20) "," TENSOR(
                      "x", "I64", "[1]", 0, 8) "," TENSOR("s", "F32", "[]", 20, 24) "," TENSOR("e", "F16", "[0,5]", 20, 20) "}",
                  24);
    dllm_safetensors s;
    dllm_mat m;
    if (check(dllm_safetensors_parse(&s, f.bytes, f.size) == 0 && s.n == 4, "four tensors")) {
        check(dllm_tensor_mat(&m, dllm_safetensors_find(&s, "y")) == 0 && m.rows == 2 && m.cols == 3 && m.stride == 3 &&
                  m.dtype == DLLM_BF16 && ((unsigned char *)m.data)[0] == 9,
              "a matrix");
        check(dllm_tensor_mat(&m, dllm_safetensors_find(&s, "e")) == 0 && m.rows == 0 && m.cols == 5, "an empty matrix");
        check(!dllm_safetensors_find(&s, "z") && !dllm_safetensors_find(&s, "__metadata__"), "no such tensor");
        refuse(dllm_tensor_mat(&m, dllm_safetensors_find(&s, "x")), DLLM_E_CHECKPOINT,
               "tensor x has dtype I64; float32, bfloat16 or float16 expected", "integers");
        refuse(dllm_tensor_mat(&m, dllm_safetensors_find(&s, "s")), DLLM_E_CHECKPOINT, "tensor s has 0 dimensions", "a scalar");
        dllm_safetensors_close(&s);
    }
    free(f.bytes);
}

/* ---- configs ---------------------------------------------------------------------------------------------------------------- */
static const char llada[] =
    "\"model_type\":\"llada\",\"architectures\":[\"LLaDAModelLM\"],\"d_model\":4,\"n_layers\":1,\"n_heads\":2,\"n_kv_heads\":1,"
    "\"mlp_hidden_size\":6,\"vocab_size\":7,\"embedding_size\":8,\"rope\":true,\"block_type\":\"llama\",\"layer_norm_type\":"
    "\"rms\","
    "\"activation_type\":\"silu\",\"weight_tying\":false,\"rope_theta\":500000.0,\"mask_token_id\":3,\"eos_token_id\":2";
static const char dream[] =
    "\"model_type\":\"Dream\",\"hidden_size\":64,\"num_hidden_layers\":3,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
    "\"intermediate_size\":128,\"vocab_size\":320";

/* base with the member of that key replaced; where base has no such key, `member` comes in addition; member "": the key goes. */
static const char *edit(const char *base, const char *key, const char *member)
{
    static char text[4096];
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *at = strstr(base, quoted), *rest = at ? at + strcspn(at, ",") : base + strlen(base);
    const int before = at ? (int)(at - base) : (int)(rest - base);
    snprintf(text, sizeof text, "{%.*s%s%s%s%s}", before, base, at ? "" : ",", member, !*rest || *member ? "" : "\"gone\":0", rest);
    return text;
}

static void test_config_refusals(void)
{
    static const struct {
        const char *base, *key, *member, *message;
    } cases[] = {
        { llada, "block_type", "\"block_type\":\"sequential\"", "block_type = \"sequential\" is not supported; \"llama\" is" },
        { llada, "block_type", "", "block_type is absent, which means \"sequential\"" },
        { llada, "layer_norm_type", "\"layer_norm_type\":\"low_precision\"", "layer_norm_type = \"low_precision\"" },
        { llada, "layer_norm_type", "", "layer_norm_type is absent, which means \"default\"" },
        { llada, "rope", "\"rope\":false", "rope = false is not supported" },
        { llada, "rope", "", "rope is absent, which means false" },
        { llada, "alibi", "\"alibi\":true", "alibi = true is not supported; false is" },
        { llada, "block_group_size", "\"block_group_size\":2", "block_group_size = 2" },
        { llada, "activation_type", "\"activation_type\":\"gelu\"", "activation_type = \"gelu\"" },
        { llada, "attention_layer_norm", "\"attention_layer_norm\":true", "attention_layer_norm = true" },
        { llada, "include_bias", "\"include_bias\":true", "include_bias = true" },
        { llada, "bias_for_layer_norm", "\"bias_for_layer_norm\":true", "bias_for_layer_norm = true" },
        { llada, "input_emb_norm", "\"input_emb_norm\":true", "input_emb_norm = true" },
        { llada, "scale_logits", "\"scale_logits\":true", "scale_logits = true" },
        { llada, "layer_norm_with_affine", "\"layer_norm_with_affine\":false", "layer_norm_with_affine = false" },
        { llada, "quantization_config", "\"quantization_config\":{\"bits\" :  4}",
          "quantization_config = {\"bits\" : 4} is not supported" },
        { llada, "num_experts", "\"num_experts\":64",
          "mixture of experts is not supported: architectures = [\"LLaDAModelLM\"], num_experts = 64" },
        { llada, "architectures", "\"architectures\":[\"LLaDAMoEModelLM\"]",
          "mixture of experts is not supported: architectures = [\"LLaDAMoEModelLM\"]" },
        { llada, "architectures", "\"architectures\":[\"DreamModel\"]",
          "architectures = [\"DreamModel\"] with model_type \"llada\"" },
        { llada, "model_type", "\"model_type\":\"llada2_moe\"", "model_type = \"llada2_moe\" is not supported" },
        { llada, "model_type", "\"model_type\":\"bert\"", "model_type = \"bert\" is not supported; \"llada\" and \"Dream\" are" },
        { llada, "model_type", "", "no model_type" },
        { llada, "d_model", "", "no d_model" },
        { llada, "d_model", "\"d_model\":4.0", "d_model = 4.0; an integer from 1 to 1048576 expected" },
        { llada, "d_model", "\"d_model\":\"4\"", "d_model = \"4\"; an integer" },
        { llada, "d_model", "\"d_model\":5", "5 columns cannot be divided among 2 heads" },
        { llada, "d_model", "\"d_model\":2", "heads of 1 columns cannot be rotated" },
        { llada, "d_model", "\"d_model\":2097152", "d_model = 2097152; an integer from 1 to 1048576" },
        { llada, "n_layers", "\"n_layers\":0", "n_layers = 0; an integer from 1 to 1000" },
        { llada, "n_layers", "\"n_layers\":-9223372036854775807", "n_layers = -9223372036854775807" },
        { llada, "n_heads", "\"n_heads\":1025", "n_heads = 1025" },
        { llada, "n_kv_heads", "\"n_kv_heads\":3", "2 heads cannot share 3 key-value heads evenly" },
        { llada, "multi_query_attention", "\"multi_query_attention\":true,\"n_kv_heads\":2", "\"n_kv_heads\" is there twice" },
        { llada, "n_kv_heads", "\"multi_query_attention\":true,\"n_kv_heads\":2",
          "multi_query_attention = true with n_kv_heads = 2" },
        { llada, "embedding_size", "\"embedding_size\":6", "embedding_size = 6 is less than vocab_size = 7" },
        { llada, "vocab_size", "\"vocab_size\":16777217", "vocab_size = 16777217" },
        { llada, "rope_theta", "\"rope_theta\":0", "rope_theta = 0; a positive number" },
        { llada, "rope_theta", "\"rope_theta\":1e300", "rope_theta = 1e300; a positive number" },
        { llada, "rope_theta", "\"rope_theta\":NaN", "config.json: not valid JSON at byte" },
        { llada, "rms_norm_eps", "\"rms_norm_eps\":-1e-5", "rms_norm_eps = -1e-5" },
        { llada, "mask_token_id", "\"mask_token_id\":8", "mask_token_id = 8; a token of the 8 in the vocabulary" },
        { llada, "eos_token_id", "\"eos_token_id\":\"</s>\"", "eos_token_id = \"</s>\"" },
        { llada, "weight_tying", "\"weight_tying\":1", "weight_tying = 1; true or false" },
        { llada, "torch_dtype", "\"torch_dtype\":\"int8\"", "torch_dtype = \"int8\" is not supported" },
        { dream, "rope_scaling", "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0}",
          "rope_scaling = {\"type\":\"yarn\",\"factor\":4.0}" },
        { dream, "use_sliding_window", "\"use_sliding_window\":true", "use_sliding_window = true" },
        { dream, "use_mrope", "\"use_mrope\":true", "use_mrope = true" },
        { dream, "hidden_act", "\"hidden_act\":\"gelu\"", "hidden_act = \"gelu\"" },
        { dream, "architectures", "\"architectures\":[\"DreamForCausalLM\"]", "[\"DreamForCausalLM\"] is not supported" },
        { dream, "architectures", "\"architectures\":[\"LlamaForCausalLM\"]",
          "architectures = [\"LlamaForCausalLM\"] with model_type \"Dream\"" },
        { dream, "rope_parameters", "\"rope_parameters\":{\"rope_type\":\"yarn\",\"rope_theta\":1e6}",
          "rope_parameters: rope_type = \"yarn\"" },
        { dream, "head_dim", "\"head_dim\":15", "heads of 15 columns" },
    };
    dllm_config c;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *text = edit(cases[i].base, cases[i].key, cases[i].member);
        refuse(dllm_config_parse(&c, text, strlen(text)), DLLM_E_CHECKPOINT, cases[i].message, text);
    }
    refuse(dllm_config_parse(&c, "[]", 2), DLLM_E_CHECKPOINT, "config.json: a JSON object expected", "an array");
}

static bool parse(dllm_config *c, const char *text) { return check(dllm_config_parse(c, text, strlen(text)) == 0, text); }

static void test_config_values(void)
{
    dllm_config c;
    if (parse(&c, edit(llada, "z", "\"z\":[1]")))
        check(c.family == DLLM_LLADA && c.layers == 1 && c.heads == 2 && c.kv_heads == 1 && c.head_dim == 2 && c.dim == 4 &&
                  c.ffn_dim == 6 && c.vocab == 8 && c.max_len == 1024 && c.rope_theta == 5e5f && c.norm_eps == 1e-5f &&
                  !c.tied_head && c.rope_f32 && !c.shift_logits && c.mask_id == 3 && c.eos_id == 2 && c.eot_id == -1 &&
                  c.pad_id == -1 && c.bos_id == -1 && c.dtype == DLLM_F32,
              "LLaDA's fields");
    if (parse(&c, edit(llada, "mlp_hidden_size", "\"mlp_hidden_size\":null"))) check(c.ffn_dim == 16, "mlp_ratio is 4");
    if (parse(&c, edit(llada, "n_kv_heads", "\"n_kv_heads\":null"))) check(c.kv_heads == 2, "as many key-value heads as heads");
    if (parse(&c, edit(llada, "n_kv_heads", "\"multi_query_attention\":true"))) check(c.kv_heads == 1, "one key-value head");
    if (parse(&c, edit(llada, "embedding_size", "\"embedding_size\":null"))) check(c.vocab == 7, "embedding_size is vocab_size");
    if (parse(&c, edit(llada, "embedding_size", "\"embedding_size\":126464"))) check(c.eot_id == 126348, "LLaDA's end of turn");
    if (parse(&c, edit(llada, "weight_tying", ""))) check(c.tied_head, "LLaDA's class ties the head");
    if (parse(&c, edit(llada, "rope_theta", ""))) check(c.rope_theta == 1e4f, "LLaDA's class has theta 10000");
    if (parse(&c, edit(llada, "include_qkv_bias", "\"include_qkv_bias\":true"))) check(c.dim == 4, "biases are no obstacle");
    if (parse(&c, edit(llada, "eos_token_id", "\"eos_token_id\":null"))) check(c.eos_id == -1, "eos null");
    if (parse(&c, edit(dream, "eos_token_id", "\"eos_token_id\":[290,5]"))) check(c.eos_id == 290, "the first of a list");
    if (parse(&c, edit(dream, "torch_dtype", "\"torch_dtype\":\"bfloat16\"")))
        check(c.family == DLLM_DREAM && c.head_dim == 16 && c.kv_heads == 2 && c.shift_logits && !c.rope_f32 && !c.tied_head &&
                  c.norm_eps == 1e-6f && c.mask_id == -1 && c.eot_id == -1 && c.dtype == DLLM_BF16,
              "Dream's fields");
    if (parse(
            &c,
            edit(dream, "z",
                 "\"rope_parameters\":{\"rope_theta\":1000000.0,\"rope_type\":\"default\"},\"dtype\":\"float16\",\"head_dim\":32")))
        check(c.rope_theta == 1e6f && c.dtype == DLLM_F16 && c.head_dim == 32, "fields as transformers 5 writes them");
    if (parse(&c, edit(dream, "architectures", "\"architectures\":[\"DreamModelForMyTask\"]")))
        check(c.layers == 3, "a derived class");
    check(dllm_dtype_size(DLLM_F32) == 4 && dllm_dtype_size(DLLM_F16) == 2 && strcmp(dllm_dtype_name(DLLM_BF16), "bfloat16") == 0,
          "dtypes");
}

int main(void)
{
    test_json_values();
    test_json_refusals();
    test_safetensors_values();
    test_safetensors_refusals();
    test_config_values();
    test_config_refusals();
    return report();
}
