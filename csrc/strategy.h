/* strategy.h: what a caching method is: data about which rows to recompute. Before every pass it plans; inside a layer its hooks may
 * narrow the row sets. forward.c obeys and never asks which method runs. A new method is one file and one line in strategy_list.c. */
#ifndef DLLM_STRATEGY_H
#define DLLM_STRATEGY_H
#include "internal.h"

/* What one sequence recomputes in one pass. Row sets are ascending and local to the sequence. */
struct dllm_plan {
    dllm_rows rows;     /* a range: they travel through the network */
    dllm_rows changed;  /* of these, input moved before the first layer. Empty: nothing moved; everything moved: rows */
    dllm_rows inspect;  /* their queries are wanted in the last layer too, for after_layer */
    int32_t slot_shift; /* row r lives in K/V slot r + slot_shift */
    int32_t n_keys;     /* attention reads slots 0 .. n_keys - 1 */
    bool store;         /* K and V go to the layer's cache, else to where they pass and are forgotten */
    bool full;          /* every row counts as changed in every layer: after_context is not asked */
    int32_t carry;      /* if this row travels, its final state is remembered for passes that leave it out; -1: none */
};

/* The row sets of one layer of one sequence. */
struct dllm_layer_rows {
    dllm_rows norm;     /* normed before attention: whatever v, k or q names */
    dllm_rows v, k;     /* values and keys computed */
    dllm_rows q;        /* queries computed */
    dllm_rows exact;    /* of these, attention computed */
    dllm_rows delta;    /* the others: attention corrected by what the values v moved */
    dllm_rows out, ffn; /* output projection and feed-forward computed */
    dllm_rows travel;   /* residual stream goes on, with what was computed now or kept from before */
    /* Of the last rows of v, a range, those join whose values moved most, `moved` of them. Which ones only the device knows. If there are any,
     * all sequences have k, q, exact, out and ffn alike: one range before them. */
    dllm_rows among;
    int32_t moved;
};

/* Which rows' FFN is due, and go on as changed into the next layer. */
typedef struct {
    double limit;   /* those whose context's cosine with the kept one is below it; all others keep what they had */
    dllm_rows held; /* and these in any case, ascending */
} dllm_due;

/* What a layer remembers between passes: one row a row of the sequence, except K and V, which have slots. Where values are compared with
 * those of the pass before, every row has a slot of its number. */
enum { DLLM_KEEP_CONTEXT = 1, DLLM_KEEP_ATTN = 2, DLLM_KEEP_FFN = 4, DLLM_COMPARE_VALUES = 8 };

typedef struct {
    const char *name, *help;
    double fallback, lowest, highest;
} dllm_option;

struct dllm_strategy {
    const char *name;
    unsigned keeps;
    dllm_option options[DLLM_MAX_OPTIONS];
    int (*check)(const dllm_params *p, const dllm_config *c);        /* may be NULL: refuses what does not fit */
    int32_t (*slots)(const dllm_session *s, const dllm_sequence *q); /* K/V slots of a layer that outlive a pass */
    void (*plan)(dllm_session *s, dllm_sequence *q, dllm_plan *p);
    /* The hooks of a layer, in order. Any may be NULL. Kernels that they ask read row numbers that lie in dllm_room() or that kernels
     * picked; what those write, the host reads after dllm_wait(), for which the device stands still. */
    void (*choose)(dllm_session *s, dllm_sequence *q, dllm_layer_rows *r); /* another start than "everything that changed" */
    /* By how much contexts turned. Which rows it is then only kernels know, so the sets of the next layer, but for ranges that travel, are
     * theirs: choose and after_layer are for other methods. Needs DLLM_KEEP_CONTEXT and DLLM_COMPARE_VALUES; full plans do not ask. */
    void (*after_context)(dllm_session *s, dllm_sequence *q, dllm_due *due);
    void (*after_layer)(dllm_session *s, dllm_sequence *q);
};

extern const dllm_strategy dllm_strategy_none;
const dllm_strategy *dllm_strategy_find(const char *name); /* NULL: no such method */
const dllm_strategy *dllm_strategy_at(int i);              /* NULL past the end */
#endif
