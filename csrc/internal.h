/* internal.h: the bodies of model and session: the whole data model on one screen. */
#ifndef DLLM_INTERNAL_H
#define DLLM_INTERNAL_H
#include "../kernels/ops.h"
#include "error.h"

struct dllm_model {
    dllm_device *device;
    dllm_config config;
    dllm_weights weights; /* the matrices are borrowed, the array of layers is ours */
    dllm_dtype act;
};

typedef struct dllm_plan dllm_plan;
typedef struct dllm_layer_rows dllm_layer_rows;

/* One timeline of a batch. Rows are local: 0 .. len - 1. */
typedef struct {
    int32_t first;             /* its first packed row */
    int32_t len, prompt;       /* rows in all, rows of the prompt */
    int32_t condition;         /* leading rows that guidance blanks out */
    int32_t slot;              /* its first slot among the kept ones of a layer */
    uint64_t seed, stream;
    int32_t step;              /* steps made */
    int32_t block, block_step; /* the open block, steps made in it */
    int32_t lo, hi;            /* its rows; candidates lie below hi */
    int32_t masks;             /* in [lo, hi) when the block opened */
    dllm_rows ask;             /* rows whose logits are wanted */
    bool done;
} dllm_sequence;

enum {
    DLLM_BRANCHES = 2,   /* guidance runs the network twice: with the condition, and without */
    DLLM_HEAD_ROWS = 64, /* the head runs at most so many rows at a time: [rows, vocab] never exists */
};

struct dllm_session {
    dllm_model *model;
    dllm_device device; /* the model's, with scratch of this session's own */
    dllm_params params;
    dllm_sampling sampling;
    const dllm_strategy *strategy;

    int n_sequences, branches;
    int64_t rows; /* packed */
    dllm_sequence *sequences;
    dllm_plan *plans;            /* of the current forward, one a sequence */
    dllm_layer_rows *layer_rows; /* of the current layer, one a sequence */
    int layer, branch;           /* where the current forward is */
    float *times;                /* [steps a block + 1], the time schedule */

    int32_t *ids[DLLM_BRANCHES]; /* [rows]; the second branch has its condition blanked */
    int32_t *places;             /* arena of row numbers, for packed sets that are no range */
    int64_t places_used;
    dllm_span *spans;            /* [n_sequences] */

    dllm_mat x, h;               /* [rows, dim]: residual stream; its norm, or what is about to be added to it */
    dllm_mat q, context;         /* [rows, heads * head_dim] */
    dllm_mat gate, up;           /* [rows, ffn_dim] */
    dllm_mat cos, sin;           /* [rows, head_dim / 2] float32, at every row's own position */
    dllm_mat keys, values;       /* [branches * layers * kept_slots + rows, kv_heads * head_dim]: what is kept, then what passes */
    int64_t kept_slots;          /* of one layer */
    dllm_mat final[DLLM_BRANCHES];  /* [rows, dim]: asked rows after the last norm, packed from 0 */
    dllm_mat logits[DLLM_BRANCHES]; /* [DLLM_HEAD_ROWS, vocab] float32 */
    char *hidden;                /* where a forward leaves every layer's input, or NULL */

    int32_t *ask;                /* [rows] local rows, sequence after sequence */
    int64_t n_ask;
    int32_t *candidates;         /* [rows] packed rows that may be revealed, ascending */
    int32_t *source;             /* of each: which asked row speaks for it; -1: the origin rule's coin left it out */
    int64_t n_candidates;
    int32_t *token;              /* of each candidate */
    float *score, *prob;
    float *priority;             /* what the candidates of one sequence are ordered by */
    int32_t *order;              /* of one sequence, surest first */
    int32_t *revealed;           /* packed rows of the latest step, surest first in each sequence */
    int64_t n_revealed;
    dllm_key *row_keys;          /* [DLLM_HEAD_ROWS] */
    bool forwarded;              /* forward() ran, decide() has not */

    void **blocks;               /* every allocation, freed at the end */
    int n_blocks;
    dllm_stats stats;
};

/* rows.c: row-set algebra. A layer's sets are kept per sequence; kernels get them packed. */
typedef enum { DLLM_SET_V, DLLM_SET_K, DLLM_SET_EXACT, DLLM_SET_OUT, DLLM_SET_FFN } dllm_set;
dllm_rows dllm_range(int32_t first, int32_t n);
dllm_rows dllm_pack_rows(dllm_session *s, dllm_set which);  /* as packed rows */
dllm_rows dllm_pack_slots(dllm_session *s, dllm_set which); /* as rows of keys and values */
int64_t dllm_first_slot(const dllm_session *s, int sequence); /* row of keys and values of the slot of its row 0 */
#endif
