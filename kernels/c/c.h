/* c.h: the plain-C kernels, the definition of every member of the table. See ops.h for what each one means. */
#ifndef DLLM_C_H
#define DLLM_C_H
#include "../bits.h"
#include "../ops.h"

void dllm_embed_c(dllm_device *d, dllm_mat x, dllm_rows rows, dllm_mat table, const int32_t *ids);
void dllm_add_c(dllm_device *d, dllm_mat x, dllm_rows rows, dllm_mat y, dllm_rows y_rows);
void dllm_guide_c(dllm_device *d, dllm_mat c, dllm_mat u, int32_t n, float scale);
void dllm_guide_keep_c(dllm_device *d, dllm_mat kept, dllm_rows rows, dllm_mat c, dllm_mat u);
void dllm_guide_again_c(dllm_device *d, dllm_mat c, dllm_mat kept, dllm_rows rows, float scale);
void dllm_rmsnorm_c(dllm_device *d, dllm_mat out, dllm_rows out_rows, dllm_mat x, dllm_rows rows, dllm_mat w, float eps);
void dllm_linear_c(dllm_device *d, dllm_mat out, dllm_rows out_rows, dllm_mat x, dllm_rows in_rows, dllm_mat w, dllm_mat bias);
void dllm_rope_c(dllm_device *d, dllm_mat x, dllm_rows x_rows, dllm_mat cos, dllm_mat sin, dllm_rows table_rows, int32_t head_dim,
                 bool round_products);
void dllm_attend_c(dllm_device *d, dllm_mat out, dllm_mat q, dllm_rows rows, dllm_mat k, dllm_mat v, dllm_spans spans,
                   int32_t heads, int32_t kv_heads);
void dllm_attend_delta_c(dllm_device *d, dllm_mat out, dllm_mat q, dllm_rows rows, dllm_mat old, dllm_rows old_rows, dllm_mat k,
                         dllm_mat dv, dllm_rows changed, dllm_spans spans, int32_t heads, int32_t kv_heads);
void dllm_copy_c(dllm_device *d, dllm_mat dst, dllm_rows dst_rows, dllm_mat src, dllm_rows src_rows);
void dllm_replace_c(dllm_device *d, dllm_mat kept, dllm_rows rows, dllm_mat v);
void dllm_cosine_c(dllm_device *d, float *out, dllm_mat a, dllm_rows a_rows, dllm_mat b, dllm_rows b_rows, float floor);
void dllm_importance_c(dllm_device *d, float *out, dllm_mat q, dllm_rows q_rows, dllm_mat k, dllm_rows k_rows, int32_t heads,
                       int32_t kv_heads);
void dllm_pick_c(dllm_device *d, int32_t *out, const float *score, const dllm_pick *picks, int n);
void dllm_turn_c(dllm_device *d, dllm_turned out, const float *score, const dllm_turn *turns, int n, const int32_t *held);
void dllm_swiglu_c(dllm_device *d, dllm_mat out, dllm_mat gate, dllm_mat up, dllm_rows rows);
void dllm_predict_c(dllm_device *d, int32_t *token, float *score, float *prob, dllm_mat logits, int32_t n, const dllm_sampling *how,
                    const dllm_key *keys, const void *noise, const int32_t *noise_rows);
void dllm_head_predict_c(dllm_device *d, int32_t *token, float *score, float *prob, dllm_mat x, dllm_rows rows, dllm_mat w,
                         const dllm_sampling *how, const dllm_key *keys);
/* A row's token; bans are done, z may be overwritten. heap: n numbers of scratch, noise: the row's, or NULL. */
int32_t dllm_draw_c(float *z, int64_t n, const dllm_sampling *how, const dllm_key *key, const void *noise, int32_t *heap);
void dllm_nll_c(dllm_device *d, float *out, dllm_mat logits, const int32_t *target, int32_t n);
uint64_t dllm_burst_c(int64_t rounds);
#endif
