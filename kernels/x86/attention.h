/* attention.h: how attention is cut. A lane is one query head of one query row; the lanes of a span that read the same k/v head
 * make rows of a matrix, which tasks take in parts. A lane's result depends neither on its part nor on its neighbours in it. */
#ifndef DLLM_X86_ATTENTION_H
#define DLLM_X86_ATTENTION_H
#include "x86.h"
#if defined(__x86_64__)

/* The arguments of ops.attend or ops.attend_delta, and the cut. */
struct attention {
    dllm_device *d;
    dllm_mat out, q, k, v;
    dllm_rows rows;                           /* of out and q */
    dllm_spans spans;                         /* columns NULL: attend. Else v is dv, and only the changed slots' weights meet it. */
    int32_t heads, kv_heads, head_dim, group; /* group: query heads of one k/v head */
    int64_t lanes_a_task;
    float scale;      /* of a score, and from powers of e to powers of 2 */
    size_t own_bytes; /* of scratch, a thread's */
    dllm_rows changed, old_rows;
    dllm_mat old;
};

/* What a task does: lanes [first, first + n) of one k/v head of one span. */
struct part {
    dllm_span span;
    dllm_columns columns;
    int32_t kv_head;
    int64_t first, n;
};

/* A way to attend. scratch must be a multiple of 64. */
struct attention_way {
    void (*run)(const struct attention *a, const struct part *p, char *scratch);
    size_t (*scratch)(int64_t keys, int64_t head_dim);
};
extern const struct attention_way dllm_attention_avx2, dllm_attention_avx512f, dllm_attention_avx512bf16, dllm_attention_amx;

enum { ATTENTION_LANES = 32 }; /* parts are multiples of it */

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static inline char *head_at(dllm_mat m, int64_t row, int64_t head, int64_t head_dim)
{
    return (char *)dllm_at(m, row) + (size_t)(head * head_dim) * (m.dtype == DLLM_F32 ? 4 : 2);
}

/* Lane i of a part in a matrix of query heads. */
static inline char *lane_at(const struct attention *a, const struct part *p, dllm_mat m, dllm_rows rows, int64_t i)
{
    const int32_t row = p->span.q_first + (int32_t)((p->first + i) / a->group);
    return head_at(m, dllm_row(rows, row), p->kv_head * a->group + (p->first + i) % a->group, a->head_dim);
}

static inline const char *lane_query(const struct attention *a, const struct part *p, int64_t i)
{
    return lane_at(a, p, a->q, a->rows, i);
}

static inline char *lane_out(const struct attention *a, const struct part *p, int64_t i)
{
    return lane_at(a, p, a->out, a->rows, i);
}

/* What lane i's changes go on top of. */
static inline const char *lane_old(const struct attention *a, const struct part *p, int64_t i)
{
    return lane_at(a, p, a->old, a->old_rows, i);
}

/* The part's k/v head of its first key. */
static inline const char *part_keys(const struct attention *a, const struct part *p)
{
    return head_at(a->k, p->span.k_first, p->kv_head, a->head_dim);
}

/* And of its first value; how many values there are; and which of the part's keys value j belongs to. */
static inline const char *part_values(const struct attention *a, const struct part *p)
{
    return head_at(a->v, a->spans.columns ? p->columns.first : p->span.k_first, p->kv_head, a->head_dim);
}

static inline int32_t part_count(const struct attention *a, const struct part *p)
{
    return a->spans.columns ? p->columns.n : p->span.n_keys;
}

static inline int64_t key_of(const struct attention *a, const struct part *p, int64_t j)
{
    return a->spans.columns ? dllm_row(a->changed, p->columns.first + (int32_t)j) - p->span.k_first : j;
}
#endif
#endif
