/* The operations that the methods save at the papers' settings, counted from the rows that sessions of real size ask for, and the memory they take. The kernels of this
 * table compute nothing, so that LLaDA-8B and Dream-7B run here in seconds: what is counted is what the core asked them to do. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../kernels/c/c.h"

enum { SALIENT = 64 };

static void *alloc_lazily(dllm_device *d, size_t bytes) { return calloc(bytes ? bytes : 1, 1); }
static void free_it(dllm_device *d, void *p) { free(p); }
static int sync_nothing(dllm_device *d) { return 0; }
static void close_nothing(dllm_device *d) {}
static void copy_bytes(dllm_device *d, void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
static size_t scratch(const dllm_device *d, const dllm_config *c, dllm_dtype act, int64_t rows, int64_t keys) { return 64; }
static void embed(dllm_device *d, dllm_mat x, dllm_rows rows, dllm_mat table, const int32_t *ids) {}
static void rmsnorm(dllm_device *d, dllm_mat out, dllm_rows out_rows, dllm_mat x, dllm_rows rows, dllm_mat w, float eps) {}
static void linear(dllm_device *d, dllm_mat out, dllm_rows out_rows, dllm_mat x, dllm_rows in_rows, dllm_mat w, dllm_mat bias) {}
static void rope(dllm_device *d, dllm_mat x, dllm_rows x_rows, dllm_mat c, dllm_mat s, dllm_rows rows, int32_t head_dim, bool round)
{
}
static void attend(dllm_device *d, dllm_mat out, dllm_mat q, dllm_rows rows, dllm_mat k, dllm_mat v, dllm_spans spans, int32_t h,
                   int32_t g)
{
}
static void attend_delta(dllm_device *d, dllm_mat out, dllm_mat q, dllm_rows rows, dllm_mat old, dllm_rows old_rows, dllm_mat k,
                         dllm_mat dv, dllm_rows changed, dllm_spans spans, int32_t h, int32_t g)
{
}
static void copy(dllm_device *d, dllm_mat dst, dllm_rows dst_rows, dllm_mat src, dllm_rows src_rows) {}
static void replace(dllm_device *d, dllm_mat kept, dllm_rows rows, dllm_mat v) {}
static void importance(dllm_device *d, float *out, dllm_mat q, dllm_rows q_rows, dllm_mat k, dllm_rows k_rows, int32_t h, int32_t g)
{
}
static void pick(dllm_device *d, int32_t *out, const float *score, const dllm_pick *picks, int n) {}
static void swiglu(dllm_device *d, dllm_mat out, dllm_mat gate, dllm_mat up, dllm_rows rows) {}
static void add(dllm_device *d, dllm_mat x, dllm_rows rows, dllm_mat y, dllm_rows y_rows) {}
static void guide(dllm_device *d, dllm_mat c, dllm_mat u, int32_t n, float scale) {}
static void nll(dllm_device *d, float *out, dllm_mat logits, const int32_t *target, int32_t n) {}

/* The last rows turned: as many as the paper's cost model has salient ones. */
static void cosine(dllm_device *d, float *out, dllm_mat a, dllm_rows a_rows, dllm_mat b, dllm_rows b_rows, float floor)
{
    for (int32_t i = 0; i < a_rows.n; i++) out[i] = i >= a_rows.n - SALIENT ? 0 : 1;
}

static void predict(dllm_device *d, int32_t *token, float *score, float *prob, dllm_mat logits, int32_t n, const dllm_sampling *how,
                    const dllm_key *keys, const void *noise, const int32_t *noise_rows)
{
    for (int32_t i = 0; i < n; i++) {
        token[i] = 1;
        score[i] = prob[i] = 0.5f;
    }
}

static void head_predict(dllm_device *d, int32_t *token, float *score, float *prob, dllm_mat x, dllm_rows rows, dllm_mat w,
                         const dllm_sampling *how, const dllm_key *keys)
{
    predict(d, token, score, prob, x, rows.n, how, keys, NULL, NULL);
}

static const dllm_ops counting = { .abi = DLLM_OPS_ABI,
                                   .name = "counting",
                                   .open = sync_nothing,
                                   .close = close_nothing,
                                   .alloc = alloc_lazily,
                                   .free = free_it,
                                   .copy_in = copy_bytes,
                                   .copy_out = copy_bytes,
                                   .alloc_shared = alloc_lazily,
                                   .free_shared = free_it,
                                   .sync = sync_nothing,
                                   .scratch = scratch,
                                   .embed = embed,
                                   .rmsnorm = rmsnorm,
                                   .linear = linear,
                                   .rope = rope,
                                   .attend = attend,
                                   .attend_delta = attend_delta,
                                   .copy = copy,
                                   .replace = replace,
                                   .cosine = cosine,
                                   .importance = importance,
                                   .pick = pick,
                                   .turn = dllm_turn_c,
                                   .swiglu = swiglu,
                                   .add = add,
                                   .guide = guide,
                                   .predict = predict,
                                   .head_predict = head_predict,
                                   .nll = nll };

static const dllm_config llada = { .family = DLLM_LLADA,
                                   .layers = 32,
                                   .heads = 32,
                                   .kv_heads = 32,
                                   .head_dim = 128,
                                   .dim = 4096,
                                   .ffn_dim = 12288,
                                   .vocab = 126464,
                                   .max_len = 4096,
                                   .rope_theta = 5e5f,
                                   .norm_eps = 1e-5f,
                                   .rope_f32 = true,
                                   .mask_id = 126336,
                                   .eos_id = 126081,
                                   .eot_id = 126348 };
static const dllm_config dream = { .family = DLLM_DREAM,
                                   .layers = 28,
                                   .heads = 28,
                                   .kv_heads = 4,
                                   .head_dim = 128,
                                   .dim = 3584,
                                   .ffn_dim = 18944,
                                   .vocab = 152064,
                                   .max_len = 131072,
                                   .rope_theta = 1e6f,
                                   .norm_eps = 1e-6f,
                                   .shift_logits = true,
                                   .mask_id = 151666,
                                   .eos_id = 151643,
                                   .eot_id = -1 };

static int passed, failed;

static void note(bool good)
{
    if (good) passed++;
    else failed++;
}

static void expect(double ratio, double least, const char *what)
{
    printf("%s: %.2f x fewer operations, %.2f x published\n", what, ratio, least);
    note(ratio >= least);
}

/* One pass as the official codes make it: every row in every layer, the head on every row. attention: the papers' tables differ in that. */
static double official_pass(const dllm_config *c, double len, bool attention)
{
    const double d = c->dim, kv = (double)c->kv_heads * c->head_dim;
    const double layer = len * (4 * d * d + 4 * d * kv + 6 * d * c->ffn_dim) + (attention ? 4 * len * len * d : 0);
    return c->layers * layer + 2 * len * d * c->vocab;
}

/* Operations of steps [from, to) of a run. */
static double counted(const dllm_config *c, dllm_params *p, int32_t prompt_len, int from, int to)
{
    dllm_device d = { .ops = &counting, .threads = 1 };
    dllm_layer *layers = calloc((size_t)c->layers, sizeof *layers);
    int32_t *ids = calloc((size_t)prompt_len, sizeof *ids);
    const dllm_weights w = { .head = { .rows = c->vocab, .cols = c->dim, .dtype = DLLM_BF16 }, .layers = layers };
    const dllm_prompt prompt = { .ids = ids, .n = prompt_len };
    dllm_model *m = NULL;
    dllm_session *s = NULL;
    dllm_stats before = { 0 }, after = { 0 };
    if (dllm_model_open(&m, &d, c, &w, DLLM_BF16) < 0 || dllm_session_open(&s, m, p, &prompt, 1) < 0)
        printf("%s\n", dllm_last_error());
    for (int i = 0; s && i < to; i++) {
        if (i == from) dllm_session_stats(s, &before);
        dllm_session_step(s);
    }
    if (s) dllm_session_stats(s, &after);
    dllm_session_close(s);
    dllm_model_close(m);
    free(ids);
    free(layers);
    return after.flops > before.flops ? (double)(after.flops - before.flops) : 1e300;
}

static dllm_params request(const dllm_config *c, const char *method, int32_t answer, int32_t block)
{
    dllm_params p;
    dllm_params_init(&p, c);
    dllm_params_use(&p, method);
    p.answer_len = p.steps = answer;
    p.block_len = block;
    if (p.score == DLLM_SCORE_ORIGIN) p.score = DLLM_SCORE_ENTROPY;
    return p;
}

static void dllm_cache_hotpotqa(void)
{
    dllm_params p = request(&llada, "dllm-cache", 32, 32);
    dllm_params_set(&p, "prompt_interval_steps", 100);
    dllm_params_set(&p, "gen_interval_steps", 8);
    expect(32 * official_pass(&llada, 4096 + 32, false) / counted(&llada, &p, 4096, 0, 32), 9.1, "dLLM-Cache, HotpotQA setting");
}

static void sparse_dllm_block(void)
{
    dllm_params p = request(&llada, "sparse-dllm", 256, 32);
    expect(32 * official_pass(&llada, 1024, true) / counted(&llada, &p, 768, 0, 32), 11, "Sparse-dLLM, 1024 tokens, block 32");
}

/* Four partial steps, one of them whole, after the full ones. */
static void dyllm_partial(const dllm_config *c, double least, const char *what)
{
    dllm_params p = request(c, "dyllm", 256, 32);
    expect(4 * official_pass(c, 1280, true) / counted(c, &p, 1024, 4, 8), least, what);
}

/* ---- memory at 4096 tokens --------------------------------------------------------------------------------------------------- */
static double weight_bytes(const dllm_config *c)
{
    const double d = c->dim, kv = (double)c->kv_heads * c->head_dim;
    return 2 * (c->layers * (2 * d * d + 2 * d * kv + 3 * d * c->ffn_dim) + 2 * d * c->vocab);
}

/* What a session of the method keeps, and in *all what it takes beside the weights. */
static double kept_bytes(const dllm_config *c, const char *method, double *all)
{
    dllm_device d = { .ops = &counting, .threads = 1 };
    dllm_params p = request(c, method, 256, 32);
    dllm_layer *layers = calloc((size_t)c->layers, sizeof *layers);
    int32_t *ids = calloc(4096, sizeof *ids);
    const dllm_weights w = { .head = { .rows = c->vocab, .cols = c->dim, .dtype = DLLM_BF16 }, .layers = layers };
    const dllm_prompt prompt = { .ids = ids, .n = 4096 - 256 };
    dllm_model *m = NULL;
    dllm_session *s = NULL;
    dllm_stats st = { 0 };
    if (dllm_model_open(&m, &d, c, &w, DLLM_BF16) < 0 || dllm_session_open(&s, m, &p, &prompt, 1) < 0)
        printf("%s\n", dllm_last_error());
    else dllm_session_stats(s, &st);
    dllm_session_close(s);
    dllm_model_close(m);
    free(ids);
    free(layers);
    *all = (double)(st.cache_bytes + st.scratch_bytes);
    return (double)st.cache_bytes;
}

/* Keys, values, and two more numbers of every row and channel; of Sparse-dLLM the kept half's keys and values. */
static void check_memory(const dllm_config *c, const char *name, double sparse_most)
{
    const double kv = (double)c->kv_heads * c->head_dim, every_row = 2.0 * c->layers * 4096 * (2 * kv + 2 * c->dim);
    const double half = 2.0 * c->layers * (4096 - 32) / 2 * 2 * kv, weights = weight_bytes(c);
    const double formula[] = { 0, every_row, half, every_row };
    const char *const method[] = { "none", "dllm-cache", "sparse-dllm", "dyllm" };
    double uncached = 0;
    for (int i = 0; i < 4; i++) {
        double all;
        const double kept = kept_bytes(c, method[i], &all);
        if (i == 0) uncached = weights + all;
        printf("%s, %s: keeps %.0f MB (formula %.0f), peak %.3f x the uncached run's\n", name, method[i], kept / 1e6,
               formula[i] / 1e6, (weights + all) / uncached);
        note(kept >= formula[i] && kept <= 1.05 * formula[i]);
        if (i == 2) note(weights + all <= sparse_most * uncached);
    }
}

int main(void)
{
    dllm_cache_hotpotqa();
    sparse_dllm_block();
    dyllm_partial(&llada, 9.5, "DyLLM, LLaDA, 64 salient rows");
    dyllm_partial(&dream, 11, "DyLLM, Dream, 64 salient rows");
    check_memory(&dream, "Dream", 1.05);
    check_memory(&llada, "LLaDA", 1.07); /* half of its keys and values alone are 6.6 % of the weights */
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
