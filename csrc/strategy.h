/* strategy.h: what a caching method is: data about which rows to recompute. Once a step it plans; inside a layer its hooks may narrow
 * the row sets. forward.c obeys and never asks which method runs. A new method is one file and one line in strategy_list.c. */
#ifndef DLLM_STRATEGY_H
#define DLLM_STRATEGY_H
#include "internal.h"

/* What one sequence recomputes in one step. Row sets are ascending and local to the sequence. */
struct dllm_plan {
    dllm_rows rows;     /* travel through the network */
    dllm_rows changed;  /* of these, input moved before the first layer. Empty: nothing moved; everything moved: rows */
    int32_t slot_shift; /* row r lives in slot r + slot_shift */
    int32_t n_keys;     /* attention reads slots 0 .. n_keys - 1 */
    bool store;         /* K and V go to the layer's cache, else to scratch that the next layer overwrites */
    bool last_whole;    /* the last layer is wanted for all rows, not for the asked ones alone */
};

/* The row sets of one layer of one sequence. */
struct dllm_layer_rows {
    dllm_rows v, k, exact; /* values, keys and queries computed; exact: attention recomputed */
    dllm_rows out, ffn;    /* output projection and feed-forward */
};

typedef struct {
    const char *name, *help;
    double fallback, lowest, highest;
} dllm_option;

struct dllm_strategy {
    const char *name;
    dllm_option options[DLLM_MAX_OPTIONS];
    /* K/V slots of a layer that outlive a forward; 0: nothing is kept */
    int32_t (*slots)(const dllm_session *s, const dllm_sequence *q);
    void (*plan)(dllm_session *s, dllm_sequence *q, dllm_plan *p);
};

extern const dllm_strategy dllm_strategy_none;
const dllm_strategy *dllm_strategy_find(const char *name); /* NULL: no such method */
const dllm_strategy *dllm_strategy_at(int i);              /* NULL past the end */
#endif
