/* panel.h: a row of logits in panels of columns, so that the head need not keep the row: each panel is read while it lies in the
 * cache, and what is left of it is joined in ascending order. predict reads its rows the same way, so both give the same bits. */
#ifndef DLLM_X86_PANEL_H
#define DLLM_X86_PANEL_H
#include "x86.h"
#if defined(__x86_64__)

enum { PANEL = 384 }; /* columns: whole tiles of every product, whole blocks of random numbers */

/* What is left of one panel. Sums are relative to the panel's highest logit, which itself is not in them: where one logit towers
 * above the others, what those add would drown in its 1. */
struct tally {
    double lot; /* what the token was drawn by: the greatest wins */
    int32_t token;
    float logit;           /* the token's, as the score sees it */
    float highest, second; /* as the score sees them */
    float rest, slope;     /* sum of exp(z - highest), and of exp(z - highest) (z - highest) */
};

/* The same of all panels so far. Starts as DLLM_NO_PANELS. */
struct row_tally {
    double lot, rest, slope;
    int32_t token;
    float logit, highest, second;
};
#define DLLM_NO_PANELS ((struct row_tally){ .token = -1, .highest = -INFINITY, .second = -INFINITY })

void dllm_panel_join(struct row_tally *row, const struct tally *t);
/* Token, score and probability once all panels are joined. */
void dllm_panel_settle(const struct row_tally *row, const dllm_sampling *how, const dllm_key *key, int32_t *token, float *score,
                       float *prob);

/* Bans, temperature, draw and scores of n logits, those of columns first, first + 1, ..., which are overwritten. `how` has no
 * filters. *bound is a lot that some column of this row has; columns that cannot beat it may be passed over. */
typedef void dllm_panel_reader(struct tally *t, float *z, int64_t n, int32_t first, const dllm_sampling *how, const dllm_key *key,
                               double *bound);
dllm_panel_reader dllm_panel_read_avx2, dllm_panel_read_avx512f;
#endif
#endif
