/* ops.h: what a backend is: one table of kernels. The core decides which rows to compute; a kernel computes them.
 *
 * kernels/c defines every member in plain loops, kernels/x86 and kernels/cuda answer the same questions faster, and
 * kernels/check compares them. Conventions:
 *   - Kernels return void. A failure is recorded in the device (the first one stays) and reported by sync().
 *   - Every kernel accepts 0 rows and then touches nothing. rmsnorm, linear, rope, replace and swiglu accept counts;
 *     attend and attend_delta go by their spans.
 *   - Kernels may run after the call returns, in the order of the calls; sync() waits for them. Matrices lie in memory of alloc(); weights, and
 *     logits of linear and copy, maybe in others' on the device, with gaps between rows and aligned to their numbers alone. What the
 *     host writes or reads, too, lies in memory of alloc_shared(): row numbers, held ones, too, ids, spans, columns, picks, turns, keys, noise, targets,
 *     and those results of cosine, importance, turn, predict and nll that it reads. It must stay as it is until the kernels that read it
 *     have run. Row numbers, counts, spans and columns that kernels write for others lie in memory of alloc().
 *   - Outputs do not overlap inputs unless the comment says "in place".
 *   - Activations are stored in one dtype T (float32, bfloat16 or float16). "-> T" marks where a value is rounded to T; everything
 *     between two marks is float32 or better. Weights may have another dtype than activations.
 *   - The result of a row depends on nothing but that row's inputs: not on how many rows there are, where they lie, or how many
 *     threads run; the one exception is linear on a device with a library. Ties go to the lowest index. */
#ifndef DLLM_OPS_H
#define DLLM_OPS_H
#include "../csrc/dllm.h"
#ifdef __CUDACC__
#define DLLM_INLINE static inline __host__ __device__ /* what kernels of every backend share */
#else
#define DLLM_INLINE static inline
#endif
#ifdef __cplusplus
extern "C" {
#endif

/* A set of rows: first + idx[0], first + idx[1], ... idx NULL: first, first + 1, ... (no gather). Where a kernel chose them, maybe only the
 * device knows how many there are: *count, at most n. Sets of one call that belong to each other have one count. */
typedef struct {
    const int32_t *idx;
    int32_t first, n;
    const int32_t *count; /* NULL: n. Tables of processors, whose host knows it, get none */
} dllm_rows;

/* Queries of one sequence and the keys they see: numbers q_first, q_first + 1, ... of the rows of a call read slots [k_first, k_first +
 * n_keys) of k, v. */
typedef struct {
    int32_t q_first, n_q, k_first, n_keys;
} dllm_span;

/* What of a packed list of changed slots belongs to one span. */
typedef struct {
    int32_t first, n;
} dllm_columns;

/* The spans of a call, and their columns for attend_delta. None has more queries or keys than the most of them. */
typedef struct {
    const dllm_span *at;
    const dllm_columns *columns;
    int32_t n, most_queries, most_keys;
} dllm_spans;

/* Of scores [first, first + n), less the n_gap from gap on (which counts from first; the others close up), the `take` highest or, with
 * lowest, the lowest. Each counts as much as the best of `pool` neighbours, of whom it is the middle one; 0: of itself. */
typedef struct {
    int32_t first, n, gap, n_gap, pool;
    bool lowest;
    int32_t take, to, add; /* out[to], out[to + 1], ... get their numbers, counted from first, plus add */
} dllm_pick;

/* Of rows first, first + 1, ... of a batch, whose scores lie from `score` on, those turned whose score is below limit, and the n_held that the list
 * of held ones has from `held` on, ascending; or all. Of rows from read_from on somebody will read the attention to slots [k_first,
 * k_first + n_keys). */
typedef struct {
    int32_t first, n, score;
    float limit;
    int32_t held, n_held, all, read_from, k_first, n_keys;
} dllm_turn;

/* Where turns go. rows, rest: rows that turned, and those of turns that are not about all rows that did not; ascending, turn after turn;
 * count: how many. A turn's spans: of rows and of rest, each from read_from on; its columns: of rows. */
typedef struct {
    int32_t *rows, *rest, *count; /* [2] */
    dllm_span *exact, *delta;
    dllm_columns *columns;
    int32_t (*told)[2]; /* for the host: how many rows of a turn turned, and of these from read_from on */
} dllm_turned;

/* How tokens are drawn from logits and scored. One per call: what differs between families and flags is data here. */
typedef struct {
    dllm_score score;
    bool gumbel, argmax;
    float temperature, top_p;
    int32_t top_k;
    int32_t banned[2], n_banned;     /* logits set to -inf before anything else */
    int32_t unscored[2], n_unscored; /* left out of the softmax that scores; score 0 if it is the token */
} dllm_sampling;

/* Where a row's random numbers come from: Philox keyed by (seed, stream), counted by (step, row). See rng.h. */
typedef struct {
    uint64_t seed, stream;
    uint32_t step, row;
} dllm_key;

struct dllm_ops {
    int abi;          /* DLLM_OPS_ABI */
    const char *name; /* "c", "avx2", ... */

    /* A copy of a device gets a queue of work of its own (on CUDA a stream): 0, or DLLM_E_* and d->why. close() waits for it and frees it. */
    int (*open)(dllm_device *d);
    void (*close)(dllm_device *d);
    /* Memory of the device: 64-byte aligned and zeroed, or NULL. The host reaches it by copies alone, which are done when they return and
     * come after everything that was asked before. */
    void *(*alloc)(dllm_device *d, size_t bytes);
    void (*free)(dllm_device *d, void *p);
    void (*copy_in)(dllm_device *d, void *to, const void *from_host, size_t bytes);
    void (*copy_out)(dllm_device *d, void *to_host, const void *from, size_t bytes);
    /* Memory that host and device address alike, aligned and zeroed as above: small, and slow for kernels that read it often. */
    void *(*alloc_shared)(dllm_device *d, size_t bytes);
    void (*free_shared)(dllm_device *d, void *p);
    int (*sync)(dllm_device *d); /* waits; 0, or the first failure since the last wait, which d->why explains */
    /* Bytes of scratch the kernels of one session need for at most `rows` rows a call, and `keys` keys a span or scores a
     * call. */
    size_t (*scratch)(const dllm_device *d, const dllm_config *c, dllm_dtype act, int64_t rows, int64_t keys);

    /* x[r] = table[ids[r]] -> T for r in rows. ids is indexed by row. */
    void (*embed)(dllm_device *d, dllm_mat x, dllm_rows rows, dllm_mat table, const int32_t *ids);

    /* out[out_rows_i] = x[rows_i] / sqrt(mean(x[rows_i]^2) + eps) -> T, times w -> T. */
    void (*rmsnorm)(dllm_device *d, dllm_mat out, dllm_rows out_rows, dllm_mat x, dllm_rows rows, dllm_mat w, float eps);

    /* out[out_rows_i] = x[in_rows_i] * Wt + bias -> dtype of out (T or float32). w [n, k]; bias.data NULL: none.
     * w int8: x[in_rows_i] is rounded to int8 too (int8.h), whole numbers are multiplied and summed exactly, and out_j =
     * sum * scale_j * scale of x + bias, each operation rounded to float32: every table gives the same bits. Tables of processors
     * alone. */
    void (*linear)(dllm_device *d, dllm_mat out, dllm_rows out_rows, dllm_mat x, dllm_rows in_rows, dllm_mat w, dllm_mat bias);

    /* In place: every head of x[x_rows_i] turned by row table_rows_i of cos and sin (float32, [*, head_dim / 2]): channel j pairs with
     * j + head_dim / 2. round_products: both products are rounded to T before the sum (the tables then hold values of T). */
    void (*rope)(dllm_device *d, dllm_mat x, dllm_rows x_rows, dllm_mat cos, dllm_mat sin, dllm_rows table_rows, int32_t head_dim,
                 bool round_products);

    /* Bidirectional attention, each span by itself. For row i of a span and head h: s_j = q.k_j / sqrt(head_dim) over the span's slots,
     * p_j = exp(s_j - max s) -> T, out[rows_i] = sum p_j v_j / sum p_j(unrounded) -> T. Query head h reads k/v head
     * h / (heads / kv_heads). q is [*, heads * head_dim], and its row rows_i asks. No keys: 0. */
    void (*attend)(dllm_device *d, dllm_mat out, dllm_mat q, dllm_rows rows, dllm_mat k, dllm_mat v, dllm_spans spans,
                   int32_t heads, int32_t kv_heads);

    /* The ΔV form, for rows whose own input stood still: out[rows_i] = old[old_rows_i] + sum over the span's columns c of p_c dv_c / sum p
     * -> T, where p is the softmax over all keys of the span, as above, and column c is key slot changed_c and row c of dv. A span's
     * columns name a part of changed; none: old. out may be old. */
    void (*attend_delta)(dllm_device *d, dllm_mat out, dllm_mat q, dllm_rows rows, dllm_mat old, dllm_rows old_rows, dllm_mat k,
                         dllm_mat dv, dllm_rows changed, dllm_spans spans, int32_t heads, int32_t kv_heads);

    /* dst[dst_rows_i] = src[src_rows_i]; one dtype. */
    void (*copy)(dllm_device *d, dllm_mat dst, dllm_rows dst_rows, dllm_mat src, dllm_rows src_rows);

    /* kept[rows_i] = v[i], and v[i] = v[i] - kept[rows_i] -> T: the old value goes, how far it moved stays. */
    void (*replace)(dllm_device *d, dllm_mat kept, dllm_rows rows, dllm_mat v);

    /* out[i] = cosine of a[a_rows_i] and b[b_rows_i], squared norms at least floor. */
    void (*cosine)(dllm_device *d, float *out, dllm_mat a, dllm_rows a_rows, dllm_mat b, dllm_rows b_rows, float floor);

    /* out[j] = mean over heads h and query rows i of q_ih . k_j, k_j of head h's group: unscaled, unnormalised. */
    void (*importance)(dllm_device *d, float *out, dllm_mat q, dllm_rows q_rows, dllm_mat k, dllm_rows k_rows, int32_t heads,
                       int32_t kv_heads);

    /* Which scores are the highest, for every pick: their numbers, ascending. Among equal ones the lowest number goes first; NaN counts as
     * less than any other. No pick takes more than there are; one that takes all reads no scores; otherwise picks of a call share none.
     * out lies in memory of the device: the row numbers are for kernels to read. */
    void (*pick)(dllm_device *d, int32_t *out, const float *score, const dllm_pick *picks, int n);

    /* What turned, of n turns. */
    void (*turn)(dllm_device *d, dllm_turned out, const float *score, const dllm_turn *turns, int n, const int32_t *held);

    /* out[rows_i] = (silu(gate[rows_i]) -> T) * up[rows_i] -> T. out may be gate. */
    void (*swiglu)(dllm_device *d, dllm_mat out, dllm_mat gate, dllm_mat up, dllm_rows rows);

    /* x[rows_i] = x[rows_i] + y[y_rows_i] -> T. In place. */
    void (*add)(dllm_device *d, dllm_mat x, dllm_rows rows, dllm_mat y, dllm_rows y_rows);

    /* logits = u + (scale + 1) * (c - u), all float32, in place on c, for the first n rows. */
    void (*guide)(dllm_device *d, dllm_mat c, dllm_mat u, int32_t n, float scale);

    /* Guidance that is not asked every step: what it moves is kept, kept[rows_i] = c[i] - u[i], and later moves other logits as far:
     * c[i] = c[i] - kept[rows_i] + (scale + 1) * kept[rows_i], in place. All float32. */
    void (*guide_keep)(dllm_device *d, dllm_mat kept, dllm_rows rows, dllm_mat c, dllm_mat u);
    void (*guide_again)(dllm_device *d, dllm_mat c, dllm_mat kept, dllm_rows rows, float scale);

    /* Tokens for the first n rows of float32 logits, which may be overwritten. keys[i] drives row i's randomness unless noise
     * is given: then row i reads noise row noise_rows[i] of `vocab` doubles (gumbel) or floats. See dllm_sampling. */
    void (*predict)(dllm_device *d, int32_t *token, float *score, float *prob, dllm_mat logits, int32_t n, const dllm_sampling *how,
                    const dllm_key *keys, const void *noise, const int32_t *noise_rows);

    /* predict, without noise, on the logits x[rows_i] * Wt, of which never more than a few columns exist. w [vocab, k]; `how` has no
     * filters (dllm_filters). The bits are those of linear and predict. NULL: this backend has no such kernel, and sessions give
     * predict logits. */
    void (*head_predict)(dllm_device *d, int32_t *token, float *score, float *prob, dllm_mat x, dllm_rows rows, dllm_mat w,
                         const dllm_sampling *how, const dllm_key *keys);

    /* out[i] = -log softmax(logits[i])[target[i]] for the first n rows of float32 logits. */
    void (*nll)(dllm_device *d, float *out, dllm_mat logits, const int32_t *target, int32_t n);
};
typedef struct dllm_ops dllm_ops;
enum { DLLM_OPS_ABI = 6 };

/* The execution context kernels get: whose threads, whose scratch. A session has its own, so that sessions never share scratch. */
struct dllm_device {
    const dllm_ops *ops;
    char name[24];
    bool library;  /* CUDA only: may products of many rows go to cuBLAS? open() clears it if there is none */
    int threads;   /* at most this many threads work on one kernel */
    void *scratch; /* scratch_bytes of device memory, for the kernel that is running */
    size_t scratch_bytes;
    void *stream;  /* CUDA only */
    int index;     /* CUDA only: the number of the GPU */
    int failed;    /* first failure since the last wait, as DLLM_E_*; */
    char why[256]; /* and its message */
    void *queue;   /* CUDA only: see cuda/queue.h */
    /* CUDA only: kernels handed to the GPU so far, and how often the host did that, with one or with many at once. */
    uint64_t kernels, launches;
};

extern const dllm_ops dllm_ops_c;
/* The table of a level ("c", "avx2", ...; "": the best there is); NULL: this processor does not have it. */
const dllm_ops *dllm_ops_cpu(const char *level);
/* Levels this processor has, best last: names[0] is "c". Returns how many. */
int dllm_cpu_levels(const char *const **names);
/* Rounds of multiply-adds of t between registers, as many at once as the table's level can make; returns the number of operations.
 * NULL: not a table of this processor. */
typedef uint64_t dllm_burst(int64_t rounds);
dllm_burst *dllm_cpu_burst(const dllm_ops *ops, dllm_dtype t);

/* Does a draw look at a whole row of logits to leave some out? */
DLLM_INLINE bool dllm_filters(const dllm_sampling *how, int64_t vocab)
{
    return !how->gumbel && (how->top_p < 1 || (how->top_k > 0 && how->top_k < vocab));
}

/* Is the device's memory the host's own? Then kernels are done when their calls return. */
DLLM_INLINE bool dllm_is_host(const dllm_device *d) { return d->ops->alloc == d->ops->alloc_shared; }

DLLM_INLINE int32_t dllm_there(dllm_rows r) { return r.count ? *r.count : r.n; }

DLLM_INLINE int32_t dllm_row(dllm_rows r, int32_t i) { return r.first + (r.idx ? r.idx[i] : i); }

/* n rows of the set, from the at-th on. */
DLLM_INLINE dllm_rows dllm_part(dllm_rows r, int32_t at, int32_t n)
{
    if (r.idx) r.idx += at;
    else r.first += at;
    r.n = n;
    return r;
}
#ifdef __cplusplus
}
#endif
#endif
