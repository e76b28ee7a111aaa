/* internal.h: the bodies of model and session: the whole data model on one screen. */
#ifndef DLLM_INTERNAL_H
#define DLLM_INTERNAL_H
#include "../kernels/ops.h"
#include "error.h"

struct dllm_model {
    dllm_device *device;
    dllm_config config;
    dllm_weights weights; /* the array of layers is ours; the matrices are borrowed but for */
    void **copies;        /* those that were copied to the device's memory */
    int n_copies;
    dllm_dtype act;
};

/* Memory of the device, or, shared, of host and device. */
typedef struct {
    void *data;
    bool shared;
} dllm_block;

/* device.c: the number of the GPU whose memory p is in; -1: memory of the host */
int dllm_device_place(const dllm_device *d, const void *p);

typedef struct dllm_plan dllm_plan;
typedef struct dllm_layer_rows dllm_layer_rows;

enum {
    DLLM_BRANCHES = 2,   /* guidance runs the network twice: with the condition, and without */
    DLLM_HEAD_ROWS = 64, /* the head runs at most so many rows at a time */
};

/* What a sequence's rooms are for: a set while it is made or used, places of rows in it, and `fresh`. */
enum { DLLM_ROOM_SET, DLLM_ROOM_PLACES, DLLM_ROOM_FRESH, DLLM_ROOMS };

/* One timeline of a batch. Rows are local: 0 .. len - 1. */
typedef struct {
    int32_t index, first; /* its place in the batch, its first packed row */
    int32_t len, prompt;  /* rows in all, rows of the prompt */
    int32_t condition;    /* leading rows that guidance blanks out */
    int32_t fixed;        /* leading rows that no step can change */
    int32_t slot;         /* its first slot among the kept ones of a layer */
    uint64_t seed, stream;
    int32_t step;                  /* steps made */
    int32_t block, block_step;     /* the open block, steps made in it */
    int32_t lo, hi;                /* its rows; candidates lie below hi */
    int32_t masks;                 /* in [lo, hi) when the block opened */
    int32_t revealed;              /* rows that are no masks any more, of the answer */
    int32_t passes[DLLM_BRANCHES]; /* of the network, in each branch */
    int32_t carried;               /* row whose final state is remembered, -1: none yet */
    dllm_rows ask;                 /* rows whose logits are wanted */
    dllm_rows fresh;               /* rows whose ids changed and that no pass has seen as changed yet, ascending */
    int32_t *room[DLLM_ROOMS];     /* for `len` row numbers each */
    bool done;
} dllm_sequence;

/* How many rows the sets of a layer have. */
typedef struct {
    int32_t v, k, q, exact, out, ffn, norm, travel, keys;
    bool finished, compares;
    bool follows, asks; /* v, k and exact, or ffn, are what a kernel tells of the layer before, or of this one */
} dllm_layer_sizes;

/* Where the time of one call goes. */
typedef struct {
    double began;     /* the call */
    uint64_t entered; /* the stage; in ticks */
    dllm_stage stage;
    uint64_t ticks[DLLM_STAGES];
} dllm_clock;

struct dllm_session {
    dllm_model *model;
    dllm_device device; /* the model's, with a queue of work and scratch of this session's own */
    dllm_params params;
    dllm_sampling sampling;
    const dllm_strategy *strategy;

    int n_sequences, branches;
    int64_t rows; /* packed */
    dllm_sequence *sequences;
    dllm_plan *plans;            /* of the current pass, one a sequence */
    dllm_layer_rows *layer_rows; /* of the current layer, one a sequence */
    int layer, branch;           /* where the current pass is */
    bool everyone;               /* this pass takes finished sequences along */
    float *times;                /* [steps a block + 1], the time schedule */

    int32_t *ids[DLLM_BRANCHES]; /* [rows]; the second branch has its condition blanked */
    int32_t
        *places; /* arena of what the host writes for kernels: sets that are no range, spans, picks, turns; see dllm_make_room */
    int64_t places_used;
    int32_t *rooms;       /* [DLLM_ROOMS * rows], the sequences' */
    int32_t *picked;      /* [rows] what kernels pick, in memory of the device */
    int32_t *chosen_seen; /* [rows] the host's copy of what kernels chose, if somebody watches */

    /* Where contexts are compared. Only told is in memory of the host, too: of all layers, [branches * layers][n_sequences], but in turned
     * the current layer's. */
    dllm_turned turned;
    int32_t (*told)[2];
    dllm_rows turned_rows, turned_rest;
    bool asks;    /* does the current layer ask which rows turned? */
    bool follows; /* did the one before, so that its sets are those? */

    dllm_layer_sizes *sizes; /* [branches * layers][n_sequences]: of the latest pass, */
    int n_sizes, n_counted;  /* so many layers, of which the first ones are in stats */

    dllm_mat x, h;       /* [rows, dim]: residual stream; its norm */
    dllm_mat q, context; /* [rows, heads * head_dim], every row at its place */
    dllm_mat gate, up;   /* [rows, ffn_dim] */
    dllm_mat cos, sin;   /* [rows, head_dim / 2] float32, at every row's own position */
    /* What layers keep, branch after branch and layer after layer, then room for what passes: see rows.c. */
    dllm_mat keys, values;         /* [branches * layers * kept_slots + rows, kv_heads * head_dim] */
    dllm_mat attn, ffn;            /* [(kept: branches * layers) * rows, dim] */
    dllm_mat kept_context;         /* [branches * layers * rows, heads * head_dim], or nothing */
    dllm_mat new_values;           /* [rows, kv_heads * head_dim], for methods that compare them with the kept ones */
    int64_t kept_slots;            /* of one layer */
    float *similarity;             /* [rows]; the host sees it if somebody watches */
    dllm_mat final[DLLM_BRANCHES]; /* [rows + n_sequences, dim]: asked rows after the last norm, packed from 0; then carried ones */
    dllm_mat logits[DLLM_BRANCHES]; /* [head_rows, vocab] float32; nothing until logits are asked for, see dllm_need_logits */
    dllm_mat residual;              /* [rows, vocab] float32: what guidance added last, if it is not asked every step */
    char *hidden;                   /* where a pass leaves every layer's input, or NULL */
    float *logits_row;              /* [vocab] and */
    void *noise;                    /* [head_rows, vocab] recorded numbers, where the host's memory is not the device's */

    int32_t *ask; /* [rows] local rows, sequence after sequence */
    int64_t n_ask;
    int32_t *candidates; /* [rows] packed rows that may be revealed, ascending */
    int32_t *source;     /* of each: row of final that speaks for it; -1: the origin rule's coin left it out */
    int64_t n_candidates;
    /* Of the candidates that are drawn, one behind the other: which, by what row of final and of recorded numbers, by whose chance. */
    int32_t *drawn, *speaker, *noise_row;
    dllm_key *row_keys;
    int32_t *token; /* of each candidate */
    float *score, *prob;
    float *priority;   /* what the candidates of one sequence are ordered by */
    int32_t *order;    /* of one sequence, surest first */
    int32_t *revealed; /* packed rows of the latest step, surest first in each sequence */
    int64_t n_revealed;
    int64_t head_rows; /* DLLM_HEAD_ROWS, or all rows if there are fewer */
    bool forwarded;    /* forward() ran, decide() has not */

    int8_t *mode;    /* [branches * layers * n_sequences] what the method did in the latest step, or NULL: nobody watches */
    uint8_t *chosen; /* [branches * layers * rows] 1: the row was chosen */
    float *seen;     /* the same shape: what it was chosen by */

    dllm_block *blocks; /* every allocation, freed at the end */
    int n_blocks;
    dllm_clock clock;
    dllm_stats stats;
};
#endif
