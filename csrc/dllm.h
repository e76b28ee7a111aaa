/* dllm.h: the C core of dllm_fast, masked diffusion language models on row sets.
 *
 *     dllm_checkpoint *files;                                   // config.json + *.safetensors, mapped, not copied
 *     if (dllm_checkpoint_open(&files, "LLaDA-8B-Instruct") < 0) die(dllm_last_error());
 *     dllm_device *cpu;   dllm_device_open(&cpu, "cpu", 0);      // 0 threads: as many as this process may use
 *     dllm_model *model;  dllm_model_open(&model, cpu, dllm_checkpoint_config(files), dllm_checkpoint_weights(files), DLLM_BF16);
 *
 *     dllm_params p;      dllm_params_init(&p, dllm_model_config(model));
 *     p.answer_len = p.steps = 128;  p.block_len = 32;
 *     dllm_prompt prompt = { .ids = ids, .n = n };
 *     dllm_session *s;    dllm_session_open(&s, model, &p, &prompt, 1);
 *     while (dllm_session_step(s) > 0) ;                        // or look at the ids after every step
 *     dllm_session_tokens(s, out, n + 128);
 *     dllm_session_close(s);  dllm_model_close(model);  dllm_device_close(cpu);  dllm_checkpoint_close(files);
 *
 * A model is immutable and may be shared by any number of sessions and threads. A session is one denoising timeline of a
 * batch: it takes all its memory when it opens, and one thread at a time may use it.
 *
 * Vocabulary. row: a position of a sequence. slot: a place in the K/V cache. step: one forward and what it reveals.
 * block: rows revealed together, left to right. keep: what a caching method remembers. reveal: write a token over a mask.
 * The sequences of a batch are packed: row r of sequence b is packed row offset[b] + r. They never see each other, and
 * every result of a sequence is bit for bit what the sequence gives alone.
 *
 * Functions return 0 or a count, or a negative DLLM_E_*; dllm_last_error() then says what was wrong, with the numbers, for
 * the calling thread. `_open` gives an object to be closed once with `_close`; `_close(NULL)` does nothing. Nothing here
 * prints, exits, aborts, or reads the environment. */
#ifndef DLLM_H
#define DLLM_H
#define DLLM_VERSION "0.1.0"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

/* ---- results ------------------------------------------------------------------------------------------------------------- */
enum {
    DLLM_E_VALUE = -1,      /* an argument or a combination of arguments that makes no sense */
    DLLM_E_TYPE = -2,       /* a dtype that is not supported here */
    DLLM_E_MEMORY = -3,     /* out of memory: the message names what asked for how much */
    DLLM_E_FILE = -4,       /* a file or folder that is not there or cannot be read */
    DLLM_E_CHECKPOINT = -5, /* a file that is there but is not a checkpoint this engine can run */
    DLLM_E_DEVICE = -6,     /* the device is not there or failed */
    DLLM_E_CALLBACK = -7,   /* a callback of the caller asked to stop with an error of its own */
};
const char *dllm_last_error(void); /* message of the calling thread's latest failure; never NULL */
#define DLLM_VERSION "0.1.0"       /* the one place that says it; setup.py reads it here */
const char *dllm_version(void);

/* ---- matrices ------------------------------------------------------------------------------------------------------------ */
typedef enum { DLLM_F32, DLLM_BF16, DLLM_F16, DLLM_I8 } dllm_dtype;
size_t dllm_dtype_size(dllm_dtype t);
const char *dllm_dtype_name(dllm_dtype t);               /* "float32", "bfloat16", "float16", "int8" */
bool dllm_dtype_find(const char *name, dllm_dtype *out); /* of those that activations may have: all but int8 */

/* A borrowed row-major matrix; row i starts at element i * stride. data NULL: there is no such matrix. A vector has rows 1.
 * DLLM_I8: weights of a matrix product, element (i, j) times scale[i]; they lie in tiles, as kernels/int8.h says. */
typedef struct {
    void *data;
    int64_t rows, cols, stride;
    dllm_dtype dtype;
    const float *scale; /* DLLM_I8 alone */
} dllm_mat;
size_t dllm_mat_bytes(dllm_mat m); /* of its numbers, scales among them */

/* ---- models -------------------------------------------------------------------------------------------------------------- */
typedef enum { DLLM_LLADA, DLLM_DREAM } dllm_family;

typedef struct {
    dllm_family family;
    int32_t layers, heads, kv_heads, head_dim, dim, ffn_dim;
    int32_t vocab;   /* columns of the logits: rows of the embedding, padding included */
    int32_t max_len; /* trained context; longer sequences run */
    float rope_theta, norm_eps;
    bool tied_head;    /* the head is the embedding */
    bool rope_f32;     /* rotate in float32 and round once; else round tables and products to the model's dtype */
    bool shift_logits; /* Dream: the logits of row p are computed at row p - 1 */
    int32_t mask_id, eos_id, eot_id, pad_id, bos_id; /* -1: not known */
    dllm_dtype dtype; /* what "auto" means for this checkpoint: its torch_dtype, else its weights' dtype */
} dllm_config;

/* y = x * Wt: matrices are [out, in] as in PyTorch. Biases have data NULL where the model has none. */
typedef struct {
    dllm_mat attn_norm;  /* [1, dim] */
    dllm_mat q, k, v, o; /* [heads * head_dim, dim], 2 x [kv_heads * head_dim, dim], [dim, heads * head_dim] */
    dllm_mat q_bias, k_bias, v_bias;
    dllm_mat ffn_norm;       /* [1, dim] */
    dllm_mat gate, up, down; /* 2 x [ffn_dim, dim], [dim, ffn_dim] */
} dllm_layer;

typedef struct {
    dllm_mat embed, norm, head; /* [vocab, dim], [1, dim], [vocab, dim] */
    dllm_layer *layers;
} dllm_weights;

/* Reads config.json's text. Refuses by name and value what the engine cannot run (MoE, alibi, ...). */
int dllm_config_parse(dllm_config *out, const char *json, size_t n);

/* Fills `out` by asking for every official parameter name of the family. find() returns 0 and sets *m (a 1-D tensor has
 * rows 1), 1 if there is no such tensor, or a negative status of its own. Checks every shape. out->layers is allocated:
 * free with dllm_weights_free. */
typedef int (*dllm_find)(void *arg, const char *name, dllm_mat *m);
int dllm_weights_bind(dllm_weights *out, const dllm_config *c, dllm_find find, void *arg);
void dllm_weights_free(dllm_weights *w);

/* A Hugging Face folder: config.json, and model.safetensors or the shards of model.safetensors.index.json, mapped into memory. */
typedef struct dllm_checkpoint dllm_checkpoint;
int dllm_checkpoint_open(dllm_checkpoint **out, const char *folder);
void dllm_checkpoint_close(dllm_checkpoint *c);
const dllm_config *dllm_checkpoint_config(const dllm_checkpoint *c);
const dllm_weights *dllm_checkpoint_weights(const dllm_checkpoint *c);
size_t dllm_checkpoint_bytes(const dllm_checkpoint *c); /* of all weights */

/* int8 copies of a folder's matrices: those of the layers and the head. Embedding, norms and biases stay the folder's, which must
 * outlive the copies; its pages are let go matrix by matrix. Numbers that are not finite are refused. threads 0: as a device.
 * cache, if not NULL, is a file that keeps the copies. It is mapped if it was made of these very files, by name, size and time, and
 * else written anew; a file that is something else is left alone: DLLM_E_FILE. */
typedef struct dllm_int8 dllm_int8;
int dllm_int8_open(dllm_int8 **out, const dllm_checkpoint *files, const char *cache, int threads);
void dllm_int8_close(dllm_int8 *q);
const dllm_weights *dllm_int8_weights(const dllm_int8 *q);

/* ---- devices ------------------------------------------------------------------------------------------------------------- */
/* A device is a table of kernels plus threads or a stream. name: "cpu" (the best this processor has), "cpu:c" (the plain C
 * kernels), "cpu:avx2", "cpu:avx512f", "cpu:avx512bf16", "cpu:amx" (that level and below, for tests), "cuda", "cuda:1",
 * "cuda:1:own" (without cuBLAS: see dllm_cuda_library). */
typedef struct dllm_device dllm_device;
int dllm_device_open(dllm_device **out, const char *name, int threads);
void dllm_device_close(dllm_device *d);
const char *dllm_device_name(const dllm_device *d);    /* "cpu" or "cuda:0" */
const char *dllm_device_backend(const dllm_device *d); /* which kernels run: "c", "avx2", "avx512bf16", "amx", "cuda" */
int dllm_device_threads(const dllm_device *d);
/* Which threads the kernels of all CPU devices run on. "auto", as it is at first: those of the OpenMP runtime that the process has
 * loaded, usually torch's, looked for whenever a session opens, else a small pool of our own. "own": our own pool. */
int dllm_threads_use(const char *runtime);
const char *dllm_threads_runtime(void); /* "own", or the path of the borrowed runtime */
/* What a CPU could do at best, measured now, in about a second: bytes read from memory, and operations of matrix products
 * (multiply-adds count 2) by dtype of both sides, all a second. */
typedef struct {
    double read, f32, bf16, i8;
} dllm_ceilings;
int dllm_device_ceilings(dllm_device *d, dllm_ceilings *out);
/* Opens the CUDA plug-in, libdllm_cuda.so beside this library if path is NULL: its device count, or DLLM_E_DEVICE and one line that
 * says why. Once open it stays open, and later paths are ignored. */
int dllm_cuda_load(const char *path);
/* The same for libdllm_cuda_sim.so, where the CUDA kernels run on the processor: devices "cuda-sim:0" and on, for tests. */
int dllm_cuda_sim_load(const char *path);
/* Looks for cuBLAS, to which devices "cuda" (or "cuda-sim") that are opened from then on give products of many rows: the copy that is
 * loaded, the one at path (NULL: none), the system's; for "cuda-sim" that at path alone. 0, and "cuBLAS 13.1 (PLACE)" in out, or
 * DLLM_E_DEVICE: our own kernels do everything. The last bits of a row then depend on how many rows its product has; on devices called
 * "cuda:own", "cuda:1:own", which have no library, they never do. */
int dllm_cuda_library(const char *device, const char *path, char *out, size_t bytes);

/* On a GPU a device and the device of every session have a stream of their own, of which other streams of the process know nothing. What
 * this one is asked from now on comes after what `stream` was asked until now: for memory that others write, or have had before.
 * stream: a cudaStream_t of the same GPU; NULL: CUDA's default stream there. On a processor it does nothing. */
int dllm_device_after(dllm_device *d, void *stream);

/* The model borrows the device and everything the weights point to: keep both until it is closed. On a GPU it borrows the matrices that
 * lie there, copies those that lie in the host's memory, which need not be kept, and refuses those on another GPU. act: the dtype of
 * activations; weights of any dtype go with any activations: exactly, or, with int8 weights, each row of activations rounded to int8. */
typedef struct dllm_model dllm_model;
int dllm_model_open(dllm_model **out, dllm_device *d, const dllm_config *c, const dllm_weights *w, dllm_dtype act);
void dllm_model_close(dllm_model *m);
const dllm_config *dllm_model_config(const dllm_model *m);
const dllm_weights *dllm_model_weights(const dllm_model *m);
dllm_dtype dllm_model_dtype(const dllm_model *m);
size_t dllm_model_bytes(const dllm_model *m); /* of all weights */

/* ---- what one request wants ------------------------------------------------------------------------------------------------ */
/* When to reveal how many rows. */
typedef enum {
    DLLM_RULE_QUOTA,  /* LLaDA: a block's masks divided evenly over its steps */
    DLLM_RULE_TIMES,  /* Dream: a time schedule from 1 down to eps */
    DLLM_RULE_FIRST,  /* Sparse-dLLM's Dream: a block's first row at its first step, then the time schedule */
    DLLM_RULE_STEADY, /* DyLLM: answer_len / steps rows a step, at most one block beyond what is complete; ends at EOS */
} dllm_rule;

/* Which rows first: those with the highest score. */
typedef enum {
    DLLM_SCORE_PROB,    /* probability of the token ("low_confidence", "maskgit_plus") */
    DLLM_SCORE_MARGIN,  /* probability of the best token minus that of the second ("topk_margin") */
    DLLM_SCORE_ENTROPY, /* negative entropy ("entropy") */
    DLLM_SCORE_RANDOM,  /* a uniform number ("random") */
    DLLM_SCORE_ORIGIN,  /* every row by its own coin ("origin"); only with DLLM_RULE_TIMES */
} dllm_score;

/* Dream under a cache: who speaks for the first row that travels, if the row before does not. */
typedef enum {
    DLLM_SHIFT_CARRY, /* the row before, as it was computed last */
    DLLM_SHIFT_OWN,   /* the row itself (Sparse-dLLM's own code) */
    DLLM_SHIFT_FLAT,  /* the row before it in the packed batch, whoever's it is (DyLLM's own code) */
} dllm_shift;

/* Recorded random numbers, asked for in the order of the official loops. draw() returns shape[0] * shape[1] * ... contiguous
 * numbers, valid until the next call: double for DLLM_DRAW_TOKEN_UNIFORM, float otherwise. NULL: stop with DLLM_E_CALLBACK. */
typedef enum { DLLM_DRAW_TOKEN_UNIFORM, DLLM_DRAW_UNIFORM, DLLM_DRAW_EXPONENTIAL } dllm_draw;
typedef struct {
    const void *(*draw)(void *arg, dllm_draw kind, const int64_t *shape, int ndim);
    void *arg;
} dllm_noise;

typedef struct dllm_strategy dllm_strategy; /* a caching method; see strategy.h */
enum { DLLM_MAX_OPTIONS = 8 };

typedef struct {
    int32_t answer_len; /* masks appended to every prompt; 0: only forward passes */
    int32_t block_len;  /* divides answer_len; 0: one block, for Dream with the prompt's masks in it */
    int32_t steps;      /* over all blocks, which divide it */
    dllm_rule rule;
    dllm_score score;
    bool gumbel;       /* LLaDA's sampling: noise on raw logits, score from clean ones; else Dream's: temperature, filters, draw */
    float temperature; /* 0: greedy */
    float top_p;       /* 1 or more: off */
    int32_t top_k;     /* 0: off */
    float alg_temp;    /* 0: take the highest scores; else draw rows with probability softmax(score / alg_temp) */
    float eps;         /* where the time schedule ends */
    bool argmax;       /* the token is always the best one; temperature only rescales scores */
    float cfg_scale;   /* classifier-free guidance: 0 off */
    int32_t cfg_interval; /* steps between passes without the condition, after the first five; what they add is kept in between */
    float threshold;      /* reveal every candidate whose probability reaches it, at least one; -INFINITY: off */
    float factor;         /* Fast-dLLM's factor rule: reveal the n surest with p_n >= 1 - factor / (n + 1); <= 0: off */
    bool early_stop;      /* a sequence ends once everything before its first EOS is fixed; the rest becomes EOS */
    bool logits_eos_inf, confidence_eos_eot_inf; /* LLaDA's two flags */
    int32_t mask_id, eos_id, eot_id;
    dllm_noise noise; /* draw NULL: Philox */
    dllm_shift shift;
    bool watch; /* record what the caching method does: dllm_session_watched; the last layer then keeps rows nobody asks, too */
    const dllm_strategy *strategy; /* NULL: no caching */
    double options[DLLM_MAX_OPTIONS];
} dllm_params;
void dllm_params_init(dllm_params *p, const dllm_config *c); /* the official defaults of the model's family */
/* Chooses a caching method by name, with its options' defaults; then options by name. */
int dllm_params_use(dllm_params *p, const char *strategy);
int dllm_params_set(dllm_params *p, const char *option, double value);
/* Names of the methods and of their options, for listings; NULL past the end. */
const char *dllm_strategy_name(int i);
const char *dllm_strategy_option(int i, int option, const char **help, double *fallback);

typedef struct {
    const int32_t *ids;
    const int32_t *positions; /* for rotary embedding; NULL: 0, 1, ... Answer rows continue from the last one */
    int32_t n;
    int32_t condition;     /* leading rows that guidance blanks out; 0: all n */
    uint64_t seed, stream; /* random numbers are a function of these, the step and the row alone */
} dllm_prompt;

/* ---- sessions -------------------------------------------------------------------------------------------------------------- */
/* What a step consists of. Everything a session does is one of these. */
typedef enum {
    DLLM_STAGE_PLAN, /* which rows to ask for and to compute */
    DLLM_STAGE_EMBED,
    DLLM_STAGE_NORM,
    DLLM_STAGE_V,
    DLLM_STAGE_K,
    DLLM_STAGE_Q,
    DLLM_STAGE_ROPE,
    DLLM_STAGE_ATTENTION,
    DLLM_STAGE_O,
    DLLM_STAGE_GATE,
    DLLM_STAGE_UP,
    DLLM_STAGE_SWIGLU,
    DLLM_STAGE_DOWN,
    DLLM_STAGE_ADD,   /* what a layer adds to the residual stream */
    DLLM_STAGE_CACHE, /* a caching method compares, chooses and keeps */
    DLLM_STAGE_HEAD,
    DLLM_STAGE_PREDICT, /* logits guided, tokens drawn and scored */
    DLLM_STAGE_DECIDE,  /* what is revealed, and on to the next step */
    DLLM_STAGES
} dllm_stage;
const char *dllm_stage_name(int stage); /* "plan", "embed", ...; NULL past the end */

/* flops: of matrix products and attention; multiply-adds count 2. bytes: the least that must move: weights once a call, rows in and
 * out, the keys and values that attention reads. */
typedef struct {
    double seconds;
    uint64_t flops, bytes;
} dllm_stage_cost;

typedef struct {
    uint64_t forwards, steps, tokens;                               /* network passes, steps, rows revealed */
    uint64_t rows_v, rows_k, rows_q, rows_out, rows_ffn, rows_head; /* rows computed, summed over layers and passes */
    uint64_t flops, flops_uncached; /* multiply-adds count 2; what an uncached run of the same steps costs, head on the same rows */
    size_t cache_bytes, scratch_bytes; /* kept between steps; everything else the session holds */
    size_t weight_bytes;
    dllm_stage_cost stages[DLLM_STAGES]; /* their flops add up to flops, their seconds to seconds */
    double seconds;                      /* inside the functions that run the network */
    uint64_t kernels, launches, waits;   /* kernels that a GPU ran; how often the host handed it some, and waited for it, */
    double waited;                       /* and for how many of the seconds */
} dllm_stats;

typedef struct dllm_session dllm_session;
int dllm_session_open(dllm_session **out, dllm_model *m, const dllm_params *p, const dllm_prompt *prompts, int n);
void dllm_session_close(dllm_session *s);
dllm_device *dllm_session_device(dllm_session *s); /* its own: on a GPU, of its own stream */

/* One step: forward, then decide. Returns the number of sequences still unfinished: 0 at the end. */
int dllm_session_step(dllm_session *s);
/* The two halves, for callers that look at the logits in between. decide() takes float32 logits [rows, vocab], already shifted,
 * in place of the model's own, and then needs no forward; data NULL: the model's own. They lie in the host's memory or on the session's
 * GPU. */
int dllm_session_forward(dllm_session *s);
int dllm_session_decide(dllm_session *s, dllm_mat logits);
/* Steps to the end. progress() may return false to stop early. Returns the number of unfinished sequences. */
int dllm_session_run(dllm_session *s, bool (*progress)(void *arg, dllm_session *s), void *arg);

int64_t dllm_session_rows(const dllm_session *s);                 /* packed rows of all sequences */
int64_t dllm_session_offset(const dllm_session *s, int sequence); /* its first packed row; sequence n gives the total */
int dllm_session_tokens(const dllm_session *s, int32_t *out, int64_t n);
int dllm_session_set_tokens(dllm_session *s, const int32_t *ids, int64_t n); /* a hook changed the ids */

/* The latest step's candidates in ascending packed row order: their token, score and probability. Returns how many; the
 * pointers stay valid until the next step. A candidate that the origin rule did not draw has token mask_id and score NaN. */
int64_t dllm_session_candidates(const dllm_session *s, const int32_t **rows, const int32_t **tokens, const float **scores,
                                const float **probs);
/* Rows revealed by the latest step, surest first in each sequence. */
int64_t dllm_session_revealed(const dllm_session *s, const int32_t **rows);

/* What the caching method did in the latest step, if params.watch: mode [layers, sequences] (-1: nothing), chosen [layers, rows] (1: recomputed,
 * kept or salient), seen [layers, rows] (what that was decided by; NaN: not looked at). With guidance a second set of layers follows.
 * Returns the number of layers in all; the pointers stay valid until the next step. */
int dllm_session_watched(const dllm_session *s, const int8_t **mode, const uint8_t **chosen, const float **seen);

/* What a layer keeps of one sequence, as views into the session: K and V by slot, then one row a row of the sequence. data NULL: not kept. */
typedef struct {
    dllm_mat k, v, context, attn, ffn;
} dllm_kept;
int dllm_session_kept(const dllm_session *s, int sequence, int branch, int layer, dllm_kept *out);
void dllm_session_read(dllm_session *s, void *out,
                       dllm_mat view); /* its numbers; the host cannot look into every device's memory */

/* Forward pass over the current ids without a step, for sessions without a cache: logits [rows, vocab] of every packed row, guided and, if `shifted`, moved as
 * the model family asks. out may be float32, or the model's dtype, in the host's memory or on the session's GPU, where nothing passes the
 * host then (and guided logits are float32). It is complete when the call returns, for every stream. */
int dllm_session_logits(dllm_session *s, dllm_mat out, bool shifted);
/* The same into a matrix that may have more rows: packed row i goes to row at[i], each to another one, and those that get none become 0. */
int dllm_session_logits_at(dllm_session *s, dllm_mat out, const int32_t *at, bool shifted);
/* Same pass: -log p(targets[i]) at packed rows[i], which are ascending. */
int dllm_session_nll(dllm_session *s, const int32_t *rows, const int32_t *targets, int64_t n, float *out);
/* Same pass: the input of every layer and the output of the final norm, [layers + 1, rows, dim] in the model's dtype. */
int dllm_session_hidden(dllm_session *s, void *out, size_t bytes);

void dllm_session_stats(const dllm_session *s, dllm_stats *out);

/* ---- pieces, for tests and for replaying the official loops by hand --------------------------------------------------------- */
void dllm_times(float *out, int steps, float eps); /* torch.linspace(1, eps, steps + 1) in float32, bit for bit */
/* What the session does with logits: float32 [n, vocab] -> token, score, probability of n rows. noise, if not NULL, holds n rows of vocab
 * doubles (p->gumbel: uniforms) or floats (exponentials). */
int dllm_predict(dllm_mat logits, const dllm_params *p, const void *noise, int32_t *token, float *score, float *prob);
#ifdef __cplusplus
}
#endif
#endif
