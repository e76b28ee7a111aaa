/* weights.c: the official parameter names of every family, and the matrices behind them. The only place that spells the names. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "error.h"

/* Sizes in terms of the config. */
typedef enum { ONE, DIM, Q, KV, FFN, VOCAB, SIZES } size_name;

typedef struct {
    const char *name[2]; /* by family */
    size_t at;           /* where the dllm_mat is, in dllm_weights or dllm_layer */
    size_name rows, cols;
    bool optional;
} part;

enum { EMBED, NORM, HEAD };
static const part model_parts[] = {
    [EMBED] = { { "model.transformer.wte.weight", "model.embed_tokens.weight" }, offsetof(dllm_weights, embed), VOCAB, DIM },
    [NORM] = { { "model.transformer.ln_f.weight", "model.norm.weight" }, offsetof(dllm_weights, norm), ONE, DIM },
    [HEAD] = { { "model.transformer.ff_out.weight", "lm_head.weight" }, offsetof(dllm_weights, head), VOCAB, DIM },
};

static const char *const layer_names[] = { [DLLM_LLADA] = "model.transformer.blocks", [DLLM_DREAM] = "model.layers" };
static const part layer_parts[] = {
    { { "attn_norm.weight", "input_layernorm.weight" }, offsetof(dllm_layer, attn_norm), ONE, DIM },
    { { "q_proj.weight", "self_attn.q_proj.weight" }, offsetof(dllm_layer, q), Q, DIM },
    { { "k_proj.weight", "self_attn.k_proj.weight" }, offsetof(dllm_layer, k), KV, DIM },
    { { "v_proj.weight", "self_attn.v_proj.weight" }, offsetof(dllm_layer, v), KV, DIM },
    { { "attn_out.weight", "self_attn.o_proj.weight" }, offsetof(dllm_layer, o), DIM, Q },
    { { "q_proj.bias", "self_attn.q_proj.bias" }, offsetof(dllm_layer, q_bias), ONE, Q, true },
    { { "k_proj.bias", "self_attn.k_proj.bias" }, offsetof(dllm_layer, k_bias), ONE, KV, true },
    { { "v_proj.bias", "self_attn.v_proj.bias" }, offsetof(dllm_layer, v_bias), ONE, KV, true },
    { { "ff_norm.weight", "post_attention_layernorm.weight" }, offsetof(dllm_layer, ffn_norm), ONE, DIM },
    { { "ff_proj.weight", "mlp.gate_proj.weight" }, offsetof(dllm_layer, gate), FFN, DIM },
    { { "up_proj.weight", "mlp.up_proj.weight" }, offsetof(dllm_layer, up), FFN, DIM },
    { { "ff_out.weight", "mlp.down_proj.weight" }, offsetof(dllm_layer, down), DIM, FFN },
};

typedef struct {
    dllm_find find;
    void *arg;
    dllm_family family;
    int64_t sizes[SIZES];
} binder;

static int check(const dllm_mat *m, const char *name, int64_t rows, int64_t cols)
{
    FAIL_IF(!m->data, DLLM_E_CHECKPOINT, "tensor %.200s has no data", name);
    FAIL_IF((unsigned)m->dtype > DLLM_F16, DLLM_E_TYPE, "tensor %.200s: float32, bfloat16 or float16 expected", name);
    FAIL_IF(m->rows != rows || m->cols != cols, DLLM_E_CHECKPOINT,
            "tensor %.200s is [%" PRId64 ", %" PRId64 "]; [%" PRId64 ", %" PRId64 "] expected", name, m->rows, m->cols, rows, cols);
    FAIL_IF(rows > 1 && m->stride < cols, DLLM_E_VALUE, "tensor %.200s: rows of %" PRId64 " columns lie %" PRId64 " apart", name,
            cols, m->stride);
    /* No kernel expects a number at an address that its size does not divide; whoever writes tensors aligns them. */
    const size_t size = dllm_dtype_size(m->dtype);
    FAIL_IF((uintptr_t)m->data % size != 0, DLLM_E_CHECKPOINT, "tensor %.200s is not aligned to the %zu bytes of %s", name, size,
            dllm_dtype_name(m->dtype));
    return 0;
}

static int bind(const binder *b, const part *p, void *base, const char *name)
{
    dllm_mat *m = (dllm_mat *)((char *)base + p->at);
    *m = (dllm_mat){ 0 };
    const int status = b->find(b->arg, name, m);
    if (status < 0) return status;
    if (status == 0) return check(m, name, b->sizes[p->rows], b->sizes[p->cols]);
    FAIL_IF(!p->optional, DLLM_E_CHECKPOINT, "tensor %.200s is missing", name);
    return 0;
}

static int bind_layer(const binder *b, dllm_layer *layer, int index)
{
    char name[128];
    for (size_t i = 0; i < sizeof layer_parts / sizeof *layer_parts; i++) {
        snprintf(name, sizeof name, "%s.%d.%s", layer_names[b->family], index, layer_parts[i].name[b->family]);
        TRY(bind(b, &layer_parts[i], layer, name));
    }
    const int biases = !!layer->q_bias.data + !!layer->k_bias.data + !!layer->v_bias.data;
    FAIL_IF(biases != 0 && biases != 3, DLLM_E_CHECKPOINT, "%s.%d has biases for %d of query, key and value; all or none expected",
            layer_names[b->family], index, biases);
    return 0;
}

static int bind_model(const binder *b, dllm_weights *w, const dllm_config *c)
{
    TRY(bind(b, &model_parts[EMBED], w, model_parts[EMBED].name[b->family]));
    TRY(bind(b, &model_parts[NORM], w, model_parts[NORM].name[b->family]));
    if (c->tied_head) w->head = w->embed; /* some tied checkpoints hold a copy of it: not looked at */
    else TRY(bind(b, &model_parts[HEAD], w, model_parts[HEAD].name[b->family]));
    for (int i = 0; i < c->layers; i++) TRY(bind_layer(b, &w->layers[i], i));
    return 0;
}

int dllm_weights_bind(dllm_weights *out, const dllm_config *c, dllm_find find, void *arg)
{
    const binder b = { find,
                       arg,
                       c->family,
                       { [ONE] = 1,
                         [DIM] = c->dim,
                         [Q] = (int64_t)c->heads * c->head_dim,
                         [KV] = (int64_t)c->kv_heads * c->head_dim,
                         [FFN] = c->ffn_dim,
                         [VOCAB] = c->vocab } };
    *out = (dllm_weights){ .layers = calloc((size_t)c->layers, sizeof *out->layers) };
    FAIL_IF(!out->layers, DLLM_E_MEMORY, "out of memory: a list of %d layers", c->layers);
    const int status = bind_model(&b, out, c);
    if (status < 0) dllm_weights_free(out);
    return status;
}

void dllm_weights_free(dllm_weights *w)
{
    free(w->layers);
    *w = (dllm_weights){ 0 };
}
