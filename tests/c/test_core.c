/* The core without Python: every model folder given is opened, run, and held to what a session promises. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/strategy.h"
#include "expect.h"

enum { ANSWER = 12, MOST = 64 };

typedef struct {
    dllm_checkpoint *files;
    dllm_int8 *copies;
    dllm_device *device;
    dllm_model *model;
} opened;

static bool open_model(opened *o, const char *folder, const char *device, int threads, dllm_dtype act, bool int8)
{
    *o = (opened){ 0 };
    if (dllm_checkpoint_open(&o->files, folder) < 0 || dllm_device_open(&o->device, device, threads) < 0) return false;
    if (int8 && dllm_int8_open(&o->copies, o->files, NULL, threads) < 0) return false;
    const dllm_weights *w = int8 ? dllm_int8_weights(o->copies) : dllm_checkpoint_weights(o->files);
    return dllm_model_open(&o->model, o->device, dllm_checkpoint_config(o->files), w, act) >= 0;
}

static void close_model(opened *o)
{
    dllm_model_close(o->model);
    dllm_device_close(o->device);
    dllm_int8_close(o->copies);
    dllm_checkpoint_close(o->files);
}

static void fill_prompt(int32_t *ids, int n, int seed)
{
    for (int i = 0; i < n; i++) ids[i] = (seed * 37 + i * 11 + 5) % 250;
}

static dllm_params params_of(const opened *o, float temperature)
{
    dllm_params p;
    dllm_params_init(&p, dllm_model_config(o->model));
    p.answer_len = ANSWER;
    p.block_len = ANSWER / 2;
    p.steps = ANSWER / 2;
    p.temperature = temperature;
    if (p.score == DLLM_SCORE_ORIGIN) p.score = DLLM_SCORE_ENTROPY;
    return p;
}

/* Runs prompts of 3, 8 and 5 ids (the set bits of `which`) and leaves sequence after sequence in out; how many ids. */
static int64_t generate(const opened *o, const dllm_params *p, int which, int32_t out[][MOST])
{
    static const int lengths[] = { 3, 8, 5 };
    int32_t ids[3][MOST], packed[3 * MOST];
    dllm_prompt prompts[3];
    int n = 0;
    for (int i = 0; i < 3; i++) {
        if (!(which >> i & 1)) continue;
        fill_prompt(ids[i], lengths[i], i);
        prompts[n++] = (dllm_prompt){ .ids = ids[i], .n = lengths[i], .seed = 7, .stream = (uint64_t)i };
    }
    dllm_session *s;
    if (dllm_session_open(&s, o->model, p, prompts, n) < 0) return -1;
    const int left = dllm_session_run(s, NULL, NULL);
    const int64_t rows = dllm_session_rows(s);
    dllm_session_tokens(s, packed, rows);
    for (int b = 0; b < n; b++) {
        const int64_t from = dllm_session_offset(s, b), to = dllm_session_offset(s, b + 1);
        memcpy(out[b], packed + from, (size_t)(to - from) * sizeof *packed);
    }
    dllm_session_close(s);
    return left == 0 ? rows : -1;
}

static void check_rows_alone(const opened *o, const char *where, float temperature)
{
    const dllm_params p = params_of(o, temperature);
    int32_t together[3][MOST], alone[3][MOST];
    expect(generate(o, &p, 7, together) == 3 + 8 + 5 + 3 * ANSWER, "a batch of three runs to its end", where);
    for (int i = 0; i < 3; i++) {
        const int64_t n = generate(o, &p, 1 << i, alone);
        expect(n > 0 && memcmp(alone[0], together[i], (size_t)n * sizeof(int32_t)) == 0, "a row of a batch equals the row alone",
               where);
    }
}

static void check_guidance_and_threshold(const opened *o, const char *where)
{
    int32_t out[3][MOST];
    dllm_params p = params_of(o, 0);
    p.cfg_scale = 0.5f;
    expect(generate(o, &p, 3, out) > 0, "guidance runs", where);
    p.cfg_scale = 0;
    p.threshold = 0.3f;
    expect(generate(o, &p, 3, out) > 0, "threshold decoding ends", where);
    p.threshold = -INFINITY;
    p.factor = 1;
    expect(generate(o, &p, 3, out) > 0, "factor decoding ends", where);
}

/* Every method: a row of a batch equals the row alone; and the settings that must equal the uncached model do, bit for bit. */
static void check_methods(const opened *o, const char *where)
{
    for (int i = 1; dllm_strategy_name(i); i++) {
        char named[600];
        snprintf(named, sizeof named, "%s, %s", where, dllm_strategy_name(i));
        dllm_params p = params_of(o, 0);
        p.steps = ANSWER; /* enough steps a block for every method to reach its cached phase */
        dllm_params_use(&p, dllm_strategy_name(i));
        int32_t together[3][MOST], alone[3][MOST];
        expect(generate(o, &p, 7, together) > 0, "a batch runs to its end", named);
        for (int b = 0; b < 3; b++) {
            const int64_t n = generate(o, &p, 1 << b, alone);
            expect(n > 0 && memcmp(alone[0], together[b], (size_t)n * sizeof(int32_t)) == 0,
                   "a row of a batch equals the row alone", named);
        }
        p.cfg_scale = 0.7f;
        p.cfg_interval = 3;
        expect(generate(o, &p, 7, together) > 0, "guidance runs", named);
        p.cfg_scale = 0;
        p.threshold = 0.2f;
        expect(generate(o, &p, 7, together) > 0, "threshold decoding ends", named);
    }
}

static void check_degenerate(const opened *o, const char *where, const char *method, const char *const options[],
                             const double values[], int n)
{
    dllm_params p = params_of(o, 0);
    p.steps = ANSWER;
    int32_t uncached[3][MOST], cached[3][MOST];
    expect(generate(o, &p, 7, uncached) > 0, "uncached runs", where);
    dllm_params_use(&p, method);
    for (int i = 0; i < n; i++) expect(dllm_params_set(&p, options[i], values[i]) == 0, options[i], where);
    expect(generate(o, &p, 7, cached) > 0, "degenerate cache runs", where);
    expect(memcmp(uncached[0], cached[0], (3 + ANSWER) * sizeof(int32_t)) == 0 &&
               memcmp(uncached[1], cached[1], (8 + ANSWER) * sizeof(int32_t)) == 0 &&
               memcmp(uncached[2], cached[2], (5 + ANSWER) * sizeof(int32_t)) == 0,
           "a degenerate setting equals the uncached run", method);
}

static void check_degenerates(const opened *o, const char *where)
{
    const char *const cache[] = { "prompt_interval_steps", "gen_interval_steps", "transfer_ratio" };
    check_degenerate(o, where, "dllm-cache", cache, (const double[]){ 1, 1, 0 }, 3);
    check_degenerate(o, where, "dllm-cache", cache, (const double[]){ 1, 7, 1 }, 3);
    check_degenerate(o, where, "dyllm", (const char *const[]){ "full_steps" }, (const double[]){ 1000 }, 1);
    check_degenerate(o, where, "dyllm", (const char *const[]){ "tau", "whole_interval", "seed_all", "full_steps" },
                     (const double[]){ INFINITY, 1, 1, 1 }, 4);
}

static void check_refusals(const opened *o, const char *where)
{
    const int32_t ids[] = { 1, 2, 3 }, bad[] = { 1, 1 << 29 };
    const dllm_prompt prompt = { .ids = ids, .n = 3 }, outside = { .ids = bad, .n = 2 };
    dllm_session *s;
    dllm_params p = params_of(o, 0);
    expect(dllm_session_open(&s, o->model, &p, &outside, 1) == DLLM_E_VALUE && strstr(dllm_last_error(), "536870912"),
           "an id outside is named", where);
    p.block_len = 5;
    expect(dllm_session_open(&s, o->model, &p, &prompt, 1) == DLLM_E_VALUE && strstr(dllm_last_error(), "5"), "blocks must divide",
           where);
    p = params_of(o, NAN);
    expect(dllm_session_open(&s, o->model, &p, &prompt, 1) == DLLM_E_VALUE, "temperature NaN", where);
    p = params_of(o, 0);
    p.answer_len = 1 << 30;
    p.block_len = 0;
    expect(dllm_session_open(&s, o->model, &p, &prompt, 1) < 0, "an absurd length", where);
    expect(dllm_session_open(&s, o->model, &p, &prompt, 0) == DLLM_E_VALUE, "no prompts", where);
}

static void check_order_of_calls(const opened *o, const char *where)
{
    const int32_t ids[] = { 1, 2, 3 };
    const dllm_prompt prompt = { .ids = ids, .n = 3 };
    const dllm_params p = params_of(o, 0);
    int32_t out[3 + ANSWER];
    dllm_session *s;
    expect(dllm_session_open(&s, o->model, &p, &prompt, 1) == 0, "opens", where);
    expect(dllm_session_decide(s, (dllm_mat){ 0 }) == DLLM_E_VALUE, "decide needs a forward or logits", where);
    expect(dllm_session_forward(s) == 0 && dllm_session_forward(s) == DLLM_E_VALUE, "forward needs a decide", where);
    expect(dllm_session_set_tokens(s, out, 3 + ANSWER) == DLLM_E_VALUE, "no ids in between", where);
    expect(dllm_session_tokens(s, out, 2) == DLLM_E_VALUE, "room for the ids", where);
    expect(dllm_session_decide(s, (dllm_mat){ 0 }) == 1, "the step goes on", where);
    dllm_stats st;
    dllm_session_stats(s, &st);
    expect(st.forwards == 1 && st.flops == st.flops_uncached && st.flops > 0, "an uncached step is counted as one", where);
    uint64_t flops = 0;
    bool cost = true;
    for (int i = 0; i < DLLM_STAGES; i++) {
        flops += st.stages[i].flops;
        const bool idle = i == DLLM_STAGE_CACHE; /* and the head leaves prediction nothing to read */
        const bool thinks = i == DLLM_STAGE_PLAN || i == DLLM_STAGE_PREDICT || i == DLLM_STAGE_DECIDE;
        cost &= (st.stages[i].bytes > 0) == (!idle && !thinks) && (idle || st.stages[i].seconds > 0);
    }
    expect(flops == st.flops && cost, "every stage of an uncached step costs something, and no more than the step", where);
    while (dllm_session_step(s) > 0) {}
    expect(dllm_session_step(s) == 0, "a finished session stays finished", where);
    dllm_session_close(s);
}

static void check_folder(const char *folder)
{
    static const dllm_dtype acts[] = { DLLM_F32, DLLM_BF16, DLLM_F16, DLLM_BF16 };
    for (int i = 0; i < 4; i++) {
        opened o;
        char where[512];
        const bool int8 = i == 3;
        snprintf(where, sizeof where, "%s in %s%s", folder, dllm_dtype_name(acts[i]), int8 ? " with int8 weights" : "");
        const bool ok = open_model(&o, folder, "cpu", 2, acts[i], int8);
        expect(ok, "opens", where);
        if (ok) {
            check_rows_alone(&o, where, 0);
            check_rows_alone(&o, where, 0.8f);
            check_guidance_and_threshold(&o, where);
            check_methods(&o, where);
            check_degenerates(&o, where);
            check_refusals(&o, where);
            check_order_of_calls(&o, where);
        }
        close_model(&o);
    }
}

/* What strategy.h asks of a method whose sets a kernel makes. */
static void check_promises(void)
{
    const unsigned needed = DLLM_KEEP_CONTEXT | DLLM_COMPARE_VALUES;
    for (int i = 0; dllm_strategy_name(i); i++) {
        const dllm_strategy *st = dllm_strategy_at(i);
        if (!st->after_context) continue;
        expect((st->keeps & needed) == needed, "keeps what after_context needs", st->name);
        expect(!st->choose && !st->after_layer, "leaves its sets to after_context alone", st->name);
    }
}

int main(int argc, char **argv)
{
    dllm_session_close(NULL);
    dllm_model_close(NULL);
    dllm_device_close(NULL);
    dllm_int8_close(NULL);
    dllm_checkpoint_close(NULL);
    if (argc == 2 && strcmp(argv[1], "--methods") == 0) {
        for (int i = 0; dllm_strategy_name(i); i++) printf("%s\n", dllm_strategy_name(i));
        return 0;
    }
    check_promises();
    for (int i = 1; i < argc; i++) check_folder(argv[i]);
    return report();
}
