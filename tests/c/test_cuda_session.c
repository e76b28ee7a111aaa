/* Whole generations on a simulated GPU of the strict kind: the host cannot touch the device's memory, and kernels run no sooner than the
 * host waits for them, so that whatever it reads too early or changes too soon shows. Every step must give what the processor gives.
 * Arguments: the simulator's library, then models. */
#define _POSIX_C_SOURCE 200112L /* setenv */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/strategy.h"
#include "expect.h"

enum { GPU, CPU, PLACES, ROWS = 64, VOCAB = 512 };
static const char *const devices[PLACES] = { "cuda-sim:3", "cpu:c" };

static bool close_to(const float *a, const float *b, size_t n, float tolerance)
{
    for (size_t i = 0; i < n; i++) {
        if (!(fabsf(a[i] - b[i]) <= tolerance) && !(isnan(a[i]) && isnan(b[i]))) return false;
    }
    return true;
}

/* ---- generations -------------------------------------------------------------------------------------------------------------- */
static const int32_t prompt_ids[] = { 5, 6, 7, 8, 9, 10, 11, 12, 13 };
static const dllm_prompt prompts[] = { { .ids = prompt_ids, .n = 4, .seed = 1 }, { .ids = prompt_ids, .n = 9, .stream = 1 } };

/* What was computed, and what it cost, but for the time. */
static bool same_costs(dllm_session *const s[PLACES])
{
    dllm_stats is[PLACES];
    for (int i = 0; i < PLACES; i++) dllm_session_stats(s[i], &is[i]);
    const dllm_stats *a = &is[GPU], *b = &is[CPU];
    bool same = a->forwards == b->forwards && a->steps == b->steps && a->tokens == b->tokens && a->rows_v == b->rows_v &&
                a->rows_k == b->rows_k && a->rows_q == b->rows_q && a->rows_out == b->rows_out && a->rows_ffn == b->rows_ffn &&
                a->rows_head == b->rows_head && a->flops == b->flops && a->flops_uncached == b->flops_uncached;
    for (int i = 0; i < DLLM_STAGES; i++)
        same = same && a->stages[i].flops == b->stages[i].flops && a->stages[i].bytes == b->stages[i].bytes;
    return same;
}

/* What the method did in every layer, if it was watched. */
static bool same_watched(dllm_session *const s[PLACES])
{
    const int8_t *mode[PLACES];
    const uint8_t *chosen[PLACES];
    const float *seen[PLACES];
    int layers[PLACES];
    for (int i = 0; i < PLACES; i++) layers[i] = dllm_session_watched(s[i], &mode[i], &chosen[i], &seen[i]);
    if (layers[GPU] < 0) return layers[CPU] < 0;
    const size_t rows = (size_t)(layers[GPU] * dllm_session_rows(s[GPU]));
    return layers[GPU] == layers[CPU] && memcmp(mode[GPU], mode[CPU], (size_t)layers[GPU] * 2) == 0 &&
           memcmp(chosen[GPU], chosen[CPU], rows) == 0 && close_to(seen[GPU], seen[CPU], rows, 1e-4f);
}

static bool same_step(dllm_session *const s[PLACES])
{
    int32_t ids[PLACES][ROWS];
    const int32_t *rows[PLACES], *tokens[PLACES];
    const float *scores[PLACES], *probs[PLACES];
    int64_t n[PLACES];
    const int64_t all = dllm_session_rows(s[GPU]);
    for (int i = 0; i < PLACES; i++) {
        if (all > ROWS || dllm_session_tokens(s[i], ids[i], all) < 0) return false;
        n[i] = dllm_session_candidates(s[i], &rows[i], &tokens[i], &scores[i], &probs[i]);
    }
    const size_t bytes = (size_t)n[GPU] * sizeof **tokens;
    return same_costs(s) && same_watched(s) && memcmp(ids[GPU], ids[CPU], (size_t)all * sizeof **ids) == 0 && n[GPU] == n[CPU] &&
           memcmp(rows[GPU], rows[CPU], bytes) == 0 && memcmp(tokens[GPU], tokens[CPU], bytes) == 0 &&
           close_to(scores[GPU], scores[CPU], (size_t)n[GPU], 1e-4f) && close_to(probs[GPU], probs[CPU], (size_t)n[GPU], 1e-4f);
}

/* What the layers keep of the second sequence. */
static bool same_kept(dllm_session *const s[PLACES], int layers)
{
    static float numbers[PLACES][ROWS * VOCAB];
    for (int part = 0; part < 5 * layers; part++) {
        for (int i = 0; i < PLACES; i++) {
            dllm_kept k;
            if (dllm_session_kept(s[i], 1, 0, part / 5, &k) < 0) return false;
            const dllm_mat m[] = { k.k, k.v, k.context, k.attn, k.ffn };
            memset(numbers[i], 0, sizeof numbers[i]);
            if (m[part % 5].rows * m[part % 5].cols > ROWS * VOCAB) return false;
            dllm_session_read(s[i], numbers[i], m[part % 5]);
        }
        if (!close_to(numbers[GPU], numbers[CPU], ROWS * VOCAB, 2e-4f)) return false;
    }
    return true;
}

static void generate(dllm_model *const models[PLACES], const dllm_params *p, const char *where)
{
    dllm_session *s[PLACES] = { NULL };
    bool same = true;
    for (int i = 0; i < PLACES; i++) expect(dllm_session_open(&s[i], models[i], p, prompts, 2) == 0, "opens", where);
    int left = 1, steps = 0;
    for (; s[GPU] && s[CPU] && same && left > 0; steps++) {
        left = dllm_session_step(s[GPU]);
        same = dllm_session_step(s[CPU]) == left && left >= 0 && same_step(s);
    }
    expect(same && steps > 1, "every step is the processor's", where);
    if (steps > 1) expect(same_kept(s, dllm_model_config(models[GPU])->layers), "layers keep what they keep there", where);
    for (int i = 0; i < PLACES; i++) dllm_session_close(s[i]);
}

/* As many numbers as are asked for; they stay until the next call. */
static const void *draw(void *arg, dllm_draw kind, const int64_t *shape, int ndim)
{
    static double numbers[3 * ROWS * VOCAB];
    size_t n = 1;
    for (int i = 0; i < ndim; i++) n *= (size_t)shape[i];
    if (n > sizeof numbers / sizeof *numbers) return NULL;
    for (size_t i = 0; i < n; i++) {
        const double u = fmod((double)i * 0.6180339887498949 + 0.5, 1);
        if (kind == DLLM_DRAW_TOKEN_UNIFORM) numbers[i] = u;
        else ((float *)numbers)[i] = (float)u;
    }
    return numbers;
}

/* The same, but the nth time there are none. */
static int until_none;

static const void *draw_until_none(void *arg, dllm_draw kind, const int64_t *shape, int ndim)
{
    return --until_none == 0 ? NULL : draw(arg, kind, shape, ndim);
}

/* A step that fails for want of numbers is made again, and again, and what comes after it is the processor's. */
static void fail_and_go_on(dllm_model *const models[PLACES], dllm_params p, const char *where)
{
    dllm_session *s[PLACES] = { NULL };
    bool same = true;
    p.noise.draw = draw_until_none;
    for (int i = 0; i < PLACES; i++) expect(dllm_session_open(&s[i], models[i], &p, prompts, 2) == 0, "opens", where);
    int left = 1, refused = 0;
    for (int step = 0; s[GPU] && s[CPU] && same && left > 0; step++) {
        int status[PLACES];
        for (int i = 0; i < PLACES; i++) {
            until_none = step % 4 ? 1 : 0;
            status[i] = dllm_session_step(s[i]);
        }
        same = status[GPU] == status[CPU] && (status[GPU] < 0 ? same_costs(s) : same_step(s));
        refused += status[GPU] == DLLM_E_CALLBACK;
        if (status[GPU] >= 0) left = status[GPU];
    }
    expect(same && left == 0 && refused >= 3, "goes on after steps that failed", where);
    for (int i = 0; i < PLACES; i++) dllm_session_close(s[i]);
}

enum { FULL = 2 }; /* steps of DyLLM */

/* Short intervals, so that a few steps see every phase. */
static dllm_params params_of(const dllm_model *m, const char *method, int32_t answer_len)
{
    dllm_params p;
    dllm_params_init(&p, dllm_model_config(m));
    dllm_params_use(&p, method);
    if (p.score == DLLM_SCORE_ORIGIN) p.score = DLLM_SCORE_ENTROPY;
    p.answer_len = p.steps = answer_len;
    p.block_len = 4;
    if (strcmp(method, "dllm-cache") == 0) dllm_params_set(&p, "gen_interval_steps", 3);
    if (strcmp(method, "dyllm") == 0) dllm_params_set(&p, "full_steps", FULL);
    return p;
}

/* DyLLM, but the first sequence has a full pass where the second has a partial one. */
static void plan_unevenly(dllm_session *s, dllm_sequence *q, dllm_plan *p)
{
    dllm_strategy_find("dyllm")->plan(s, q, p);
    if (q->index > 0 || q->passes[s->branch] % 3 != 0) return;
    p->full = true;
    p->changed = p->rows;
}

/* Nothing turns, or everything does; all of one sequence, and some rows of the other. */
static void run_turns(dllm_model *const models[PLACES], const char *folder)
{
    char where[600];
    dllm_params p = params_of(models[GPU], "dyllm", 8);
    p.watch = true;
    for (int i = 0; i < 2; i++) {
        snprintf(where, sizeof where, "%s, dyllm, %s turns", folder, i ? "everything" : "nothing");
        dllm_params_set(&p, "tau", i ? INFINITY : -2);
        generate(models, &p, where);
    }
    dllm_strategy uneven = *p.strategy;
    uneven.plan = plan_unevenly;
    p.strategy = &uneven;
    dllm_params_set(&p, "tau", 0.9999);
    for (int i = 0; i < 2; i++) {
        snprintf(where, sizeof where, "%s, dyllm, unevenly%s", folder, i ? ", not watched" : "");
        p.watch = !i;
        generate(models, &p, where);
    }
}

static void run_method(dllm_model *const models[PLACES], const char *folder, const char *method)
{
    char where[600];
    dllm_params p = params_of(models[GPU], method, 8);
    snprintf(where, sizeof where, "%s, %s", folder, method);
    generate(models, &p, where);
    p.watch = true;
    p.cfg_scale = 0.7f;
    p.cfg_interval = 3;
    snprintf(where, sizeof where, "%s, %s, guided", folder, method);
    generate(models, &p, where);
    p.cfg_scale = 0;
    p.temperature = 0.8f;
    p.top_p = 0.9f;
    p.top_k = 7;
    p.alg_temp = p.gumbel ? 0 : 0.5f;
    snprintf(where, sizeof where, "%s, %s, drawn", folder, method);
    generate(models, &p, where);
    p.noise.draw = draw;
    snprintf(where, sizeof where, "%s, %s, recorded", folder, method);
    generate(models, &p, where);
    p.watch = false;
    fail_and_go_on(models, p, where);
}

/* ---- waiting ------------------------------------------------------------------------------------------------------------------ */
enum { STEPS = 12, ANSWER = 16 }; /* a block of eight takes six steps, which fill two masks or one */

/* The device's table, but what lets the host wait for the device counts. */
static const dllm_ops *table;
static dllm_ops counting;
static int waits;

static int sync_counted(dllm_device *d)
{
    waits++;
    return table->sync(d);
}

static void copy_in_counted(dllm_device *d, void *to, const void *from, size_t bytes)
{
    waits++;
    table->copy_in(d, to, from, bytes);
}

static void copy_out_counted(dllm_device *d, void *to, const void *from, size_t bytes)
{
    waits++;
    table->copy_out(d, to, from, bytes);
}

/* What a step asked of the host. */
typedef struct {
    int waits;
    uint64_t kernels, launches;
} step_count;

static int count_steps(dllm_model *m, const dllm_params *p, step_count counts[STEPS])
{
    dllm_session *s = NULL;
    int steps = 0;
    dllm_stats before, after;
    if (dllm_session_open(&s, m, p, prompts, 2) < 0) return 0;
    dllm_session_stats(s, &before);
    for (int left = 1; left > 0 && steps < STEPS; before = after) {
        waits = 0;
        left = dllm_session_step(s);
        dllm_session_stats(s, &after);
        if (left < 0) break;
        counts[steps++] = (step_count){ waits, after.kernels - before.kernels, after.launches - before.launches };
    }
    dllm_session_close(s);
    return steps;
}

/* A step waits once, for its tokens. What was asked for in the same way before goes to the device at once. */
static void run_counts(dllm_model *m, const char *folder)
{
    static const char *const methods[] = { "none", "dllm-cache", "sparse-dllm", "dyllm" };
    const int layers = dllm_model_config(m)->layers;
    for (int i = 0; i < 8; i++) {
        char where[600];
        step_count counts[STEPS];
        const bool guided = i % 2;
        dllm_params p = params_of(m, methods[i / 2], ANSWER);
        p.steps = STEPS;
        p.block_len = 8;
        p.cfg_scale = guided ? 0.5f : 0;
        p.rule = DLLM_RULE_QUOTA;
        snprintf(where, sizeof where, "%s, %s%s", folder, methods[i / 2], guided ? ", guided" : "");
        const int steps = count_steps(m, &p, counts);
        expect(steps == STEPS, "makes every step", where);
        for (int t = 0; t < steps; t++) {
            const step_count *c = &counts[t];
            expect(c->waits == 1, "waits once", where);
            expect(c->launches == c->kernels || c->launches == 1, "goes as a whole or one by one", where);
        }
        const int last = i / 2 == 3 ? 2 : 1; /* DyLLM's last step is one with the prompt, of which Dream has had too few */
        for (int t = 2; layers >= 3 && steps > 1 && t >= last; t--)
            expect(counts[steps - t].launches == 1, "goes as a whole", where);
        setenv("DLLM_FAST_GRAPHS", "0", 1);
        expect(count_steps(m, &p, counts) == steps, "makes every step without graphs", where);
        unsetenv("DLLM_FAST_GRAPHS");
        for (int t = 0; t < steps; t++) expect(counts[t].launches == counts[t].kernels, "one by one without graphs", where);
    }
}

static void check_waits(const char *folder)
{
    dllm_checkpoint *files = NULL;
    dllm_device *device = NULL;
    dllm_model *model = NULL;
    bool ok = dllm_checkpoint_open(&files, folder) >= 0 && dllm_device_open(&device, devices[GPU], 1) >= 0;
    if (ok) {
        table = device->ops;
        counting = *table;
        counting.sync = sync_counted;
        counting.copy_in = copy_in_counted;
        counting.copy_out = copy_out_counted;
        device->ops = &counting;
        ok = dllm_model_open(&model, device, dllm_checkpoint_config(files), dllm_checkpoint_weights(files), DLLM_F32) >= 0;
    }
    expect(ok, "opens", folder);
    if (ok) run_counts(model, folder);
    dllm_model_close(model);
    dllm_device_close(device);
    dllm_checkpoint_close(files);
}

/* ---- passes ------------------------------------------------------------------------------------------------------------------- */
static void run_passes(dllm_model *const models[PLACES], const char *where)
{
    static float logits[PLACES][ROWS * VOCAB], hidden[PLACES][4 * ROWS * VOCAB], nll[PLACES][3];
    static const int32_t rows[] = { 1, 4, 6 }, targets[] = { 3, 100, 7 };
    const dllm_config *c = dllm_model_config(models[GPU]);
    dllm_params p;
    dllm_params_init(&p, c);
    p.answer_len = 0;
    bool fine = true;
    int64_t all = 0;
    for (int i = 0; i < PLACES; i++) {
        dllm_session *s;
        fine = fine && dllm_session_open(&s, models[i], &p, prompts, 2) == 0;
        if (!fine) break;
        all = dllm_session_rows(s);
        const dllm_mat out = { .data = logits[i], .rows = all, .cols = c->vocab, .stride = c->vocab, .dtype = DLLM_F32 };
        fine = (c->layers + 1) * all * c->dim <= 4 * ROWS * VOCAB && all * c->vocab <= ROWS * VOCAB &&
               dllm_session_logits(s, out, true) == 0 && dllm_session_nll(s, rows, targets, 3, nll[i]) == 0 &&
               dllm_session_hidden(s, hidden[i], sizeof(float) * (size_t)((c->layers + 1) * all * c->dim)) == 0;
        dllm_session_close(s);
    }
    expect(fine, "passes run", where);
    if (!fine) return;
    expect(close_to(logits[GPU], logits[CPU], (size_t)(all * c->vocab), 2e-4f), "logits", where);
    expect(close_to(nll[GPU], nll[CPU], 3, 1e-4f), "likelihoods", where);
    expect(close_to(hidden[GPU], hidden[CPU], (size_t)((c->layers + 1) * all * c->dim), 2e-4f), "hidden states", where);
}

static void check_folder(const char *folder)
{
    dllm_checkpoint *files = NULL;
    dllm_device *device[PLACES] = { NULL };
    dllm_model *models[PLACES] = { NULL };
    bool ok = dllm_checkpoint_open(&files, folder) >= 0;
    for (int i = 0; i < PLACES; i++) {
        ok = ok && dllm_device_open(&device[i], devices[i], 1) >= 0 &&
             dllm_model_open(&models[i], device[i], dllm_checkpoint_config(files), dllm_checkpoint_weights(files), DLLM_F32) >= 0;
    }
    expect(ok, "opens", folder);
    if (ok) run_passes(models, folder);
    for (int i = 0; ok && dllm_strategy_name(i); i++) run_method(models, folder, dllm_strategy_name(i));
    if (ok) run_turns(models, folder);
    for (int i = 0; i < PLACES; i++) {
        dllm_model_close(models[i]);
        dllm_device_close(device[i]);
    }
    dllm_checkpoint_close(files);
}

int main(int argc, char **argv)
{
    if (argc < 2 || dllm_cuda_sim_load(argv[1]) < 0) {
        printf("FAILED to open the simulator: %s\n", argc < 2 ? "no path" : dllm_last_error());
        return 1;
    }
    for (int i = 2; i < argc; i++) {
        check_folder(argv[i]);
        check_waits(argv[i]);
    }
    return report();
}
