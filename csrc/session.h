/* session.h: what session.c, forward.c and denoise.c ask of each other. */
#ifndef DLLM_SESSION_H
#define DLLM_SESSION_H
#include "../kernels/bits.h"
#include "strategy.h"

/* session.c */
int dllm_check_device(dllm_session *s); /* 0, or the device's first failure */
double dllm_seconds(void);              /* monotonic */
void dllm_rope_row(float *cos_row, float *sin_row, int32_t position, int32_t head_dim, float theta);

/* forward.c */
void dllm_forward(dllm_session *s);            /* runs every branch over the plans; final then holds the asked rows */
void dllm_head(dllm_session *s, dllm_rows at); /* guided float32 logits of rows of final into logits[0]; at most DLLM_HEAD_ROWS */

/* params.c */
int dllm_check_params(const dllm_params *p, const dllm_config *c);
int32_t dllm_block_len(const dllm_params *p);
int32_t dllm_block_steps(const dllm_params *p);
dllm_sampling dllm_sampling_of(const dllm_params *p);

/* denoise.c */
void dllm_open_block(dllm_session *s, dllm_sequence *q);
#endif
