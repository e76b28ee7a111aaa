/* The head and its prediction in one: a product like linear's, whose tiles of logits are read where they are made, so that of [rows, vocab]
 * only a tally of every 64 columns gets to memory.
 *
 * The products are our own for any number of rows. A library would have to write its logits, panel after panel, for us to read, 8 bytes
 * for each; and it chooses its way by the number of rows, which a row's token must not depend on. What it could win is little:
 * a session asks for at most ROUND rows at a time, for which the weights' bytes, not their products, take the time. */
#include "panel.h"

void dllm_head_predict_cuda(dllm_device *d, int32_t *token, float *score, float *prob, dllm_mat x, dllm_rows rows, dllm_mat w,
                            const dllm_sampling *how, const dllm_key *keys)
{
    for (int32_t at = 0; at < rows.n; at += ROUND) {
        const int32_t n = rows.n - at < ROUND ? rows.n - at : ROUND;
        const dense_job job = { {}, x, w, {}, {}, dllm_part(rows, at, n) };
        const reading r = dllm_reading_begin(d, w.rows, n, how, keys + at);
        if (x.dtype == w.dtype && x.dtype != DLLM_F32) dllm_head_tile(d, job, r);
        else dllm_head_any(d, job, r);
        dllm_reading_settle(d, r, token + at, score + at, prob + at, n, keys + at);
    }
}
