/* session.h: what the files of a session ask of each other. */
#ifndef DLLM_SESSION_H
#define DLLM_SESSION_H
#include "../kernels/bits.h"
#include "strategy.h"

/* rows.c: row-set algebra; sets are ascending. */
dllm_rows dllm_range(int32_t first, int32_t n);
dllm_rows dllm_from(dllm_rows rows, int32_t first); /* without those below first */
dllm_rows dllm_without(int32_t *space, dllm_rows all, dllm_rows some);
dllm_rows dllm_join(int32_t *space, dllm_rows a, dllm_rows b);

/* A layer's sets are kept per sequence; kernels get them packed: as rows of a batch, or as slots of keys and values. */
typedef enum {
    DLLM_SET_NORM,
    DLLM_SET_V,
    DLLM_SET_K,
    DLLM_SET_Q,
    DLLM_SET_EXACT,
    DLLM_SET_DELTA,
    DLLM_SET_OUT,
    DLLM_SET_FFN,
    DLLM_SET_TRAVEL
} dllm_set;
dllm_rows dllm_pack(dllm_session *s, dllm_set which);
dllm_rows dllm_pack_slots(dllm_session *s, dllm_set which);
/* The current layer among those of all branches. */
int64_t dllm_layer_index(const dllm_session *s);
/* Packed rows in the pool of an output, one of DLLM_KEEP_*: what layers keep of it lies there, layer after layer. */
dllm_rows dllm_kept_rows(const dllm_session *s, dllm_rows packed, unsigned output);
int64_t dllm_first_slot(const dllm_session *s, int sequence); /* row of keys and values that is its slot 0 */

/* session.c */
bool dllm_keeps(const dllm_session *s);         /* does anything outlive a pass? */
bool dllm_decodes_fused(const dllm_session *s); /* do tokens come straight from the head, without logits? */
double dllm_seconds(void);                      /* monotonic */
/* An uncached pass over the current ids that wants every row; then: the packed row whose logits are that row's. */
int dllm_pass(dllm_session *s);
int32_t dllm_speaker(const dllm_session *s, int32_t row, bool shifted);
void dllm_rope_row(float *cos_row, float *sin_row, int32_t position, int32_t head_dim, float theta);

/* memory.c: what a session holds, where, and how it goes from here to there */
dllm_sequence *dllm_take_sequences(dllm_session *s); /* the first thing to take */
int dllm_take_memory(dllm_session *s);               /* everything else, once its rows are counted */
int dllm_need_logits(dllm_session *s);               /* room for logits, if decoding itself needed none */
void dllm_give_memory(dllm_session *s);
/* The host reads what kernels write only after one of these; all but the last leave a failure for that one to tell. */
void dllm_wait(dllm_session *s);
void dllm_abandon(dllm_session *s);     /* the same for a pass that nobody needs any more */
int dllm_check_device(dllm_session *s); /* 0, or the device's first failure; no kernel runs any more */
/* Numbers for kernels to read: room for n of them, which stay until the next dllm_make_room and as long as kernels may read them. Between
 * two of these lies what one layer asks for; its hooks together may take room for a number a row. A pass begins with the other one, when no
 * kernel reads what an earlier step left there. */
void dllm_make_room(dllm_session *s);
void dllm_make_branch_room(dllm_session *s);
int32_t *dllm_room(dllm_session *s, int64_t n);
void *dllm_room_for(dllm_session *s, int64_t n, size_t size); /* n structs of such numbers */
/* Row numbers that a kernel picked lie in s->picked, until the next pick: a session's own, in the order of the calls. */
bool dllm_is_picked(const dllm_session *s, dllm_rows rows);
dllm_rows dllm_read_chosen(dllm_session *s, dllm_rows rows); /* by a kernel: for the host to see, until the next call; waits */
void dllm_upload(dllm_session *s, dllm_mat to, int64_t row, const void *from, int64_t n); /* n whole rows */
void dllm_download(dllm_session *s, void *to, dllm_mat from, int64_t n);                  /* its first n rows */
const float *dllm_logits_row(dllm_session *s, int32_t i);                                 /* of logits[0]; until the next call */
/* Rows of recorded numbers for drawn candidates [from, from + n), where kernels can read them; noise_row then numbers those. */
const void *dllm_lend_noise(dllm_session *s, const void *noise, int64_t from, int32_t n);

/* account.c: what a session costs */
void dllm_begin(dllm_session *s, dllm_stage stage); /* a call that takes time starts */
void dllm_enter(dllm_session *s, dllm_stage stage); /* from here on its time goes to this stage */
void dllm_finish(dllm_session *s);                  /* it is over; the time of a call that fails is not kept */
void dllm_count_rows(dllm_session *s, dllm_stage stage, uint64_t n, int64_t width); /* n rows of activations moved */
void dllm_count_pass(dllm_session *s, int64_t embedded,
                     int64_t asked);                                 /* outside the layers: rows embedded, rows of the last norm */
void dllm_note_layer(dllm_session *s);                               /* the layer's sets are final, */
void dllm_count_layers(dllm_session *s);                             /* and their sizes known: no kernel runs any more */
void dllm_count_head(dllm_session *s, int64_t rows, bool to_memory); /* to_memory: its logits go there */
void dllm_count_logits(dllm_session *s, int64_t rows, int times);    /* so many passes over rows of logits */

/* watch.c: what a method did, for whoever asked to see it. Nothing happens if nobody did; else the host waits for the kernels. */
void dllm_watch_clear(dllm_session *s);
void dllm_watch_mode(dllm_session *s, const dllm_sequence *q, int mode);
void dllm_watch_chosen(dllm_session *s, const dllm_sequence *q, dllm_rows chosen);
void dllm_watch_seen(dllm_session *s, const dllm_sequence *q, dllm_rows rows, const float *values);

/* turned.c */
bool dllm_asks_contexts(const dllm_session *s); /* does any sequence ask how much its contexts turned? */
/* By s->similarity of the packed rows: theirs is the feed-forward of this layer, and they enter the next one as changed. */
void dllm_choose_turned(dllm_session *s, dllm_rows rows);
dllm_spans dllm_turned_spans(const dllm_session *s, dllm_set set); /* of the exact or the delta set that the layer before chose */

/* forward.c */
int32_t dllm_first_read(const dllm_session *s, int sequence, int layer); /* nobody reads what a layer leaves of rows before it */
void dllm_plan_branch(dllm_session *s, int branch); /* asks the method what every unfinished sequence recomputes */
void dllm_forward(dllm_session *s,
                  bool guided);                /* runs the planned branch 0, then branch 1 if guided; final holds the asked rows */
void dllm_head(dllm_session *s, dllm_rows at); /* guided float32 logits of rows of final into logits[0]; at most head_rows */
/* Tokens and scores of the n drawn candidates from `from` on, without logits, into their places in token, score and prob. */
void dllm_head_predict(dllm_session *s, int64_t from, int32_t n);
void dllm_keep_residual(dllm_session *s); /* of all asked rows, after a guided forward */

/* params.c */
int dllm_check_params(const dllm_params *p, const dllm_config *c);
int32_t dllm_block_len(const dllm_params *p);
int32_t dllm_block_steps(const dllm_params *p);
dllm_sampling dllm_sampling_of(const dllm_params *p);

/* ask.c: before a pass */
int dllm_ask(dllm_session *s); /* plans branch 0, and chooses candidates, the rows asked for them, and the source of each */
bool dllm_masked(const dllm_session *s, const dllm_sequence *q, int32_t r);
float dllm_share(const dllm_session *s, const dllm_sequence *q); /* of the masks, that the time schedule reveals in this step */
dllm_key dllm_key_of(const dllm_session *s, const dllm_sequence *q, int32_t packed_row);
int64_t dllm_longest(const dllm_session *s); /* rows of the longest sequence */
/* Recorded random numbers of shape a, [a, b] or [a, b, c]. */
int dllm_draw_noise(dllm_session *s, dllm_draw kind, int ndim, int64_t a, int64_t b, int64_t c, const void **out);

/* denoise.c */
void dllm_open_block(dllm_session *s, dllm_sequence *q);
void dllm_ids_changed(dllm_session *s, dllm_sequence *q, const int32_t *ids); /* a hook is about to set these packed ids */
#endif
