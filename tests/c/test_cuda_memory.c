/* Memory of a simulated GPU of the strict kind: whoever asks for some may be refused, at any time, and says who asked for how much; then
 * nothing is held that was not held before, and everything goes on. And who asks in vain is not the only one to give back.
 * Arguments: the simulator's library, then models. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "../../kernels/cuda/sim/probe.h"
#include "../../kernels/ops.h"
#include "expect.h"

enum { MOST_ROWS = 64, MOST_VOCAB = 512 };

/* ---- the simulator's side ---------------------------------------------------------------------------------------------------------- */
static struct {
    void (*held)(dllm_sim_count *out);
    void (*refuse)(long n);
    long (*until_refusal)(void);
} sim;

static bool find(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);
    memcpy(function, &symbol, sizeof symbol);
    return symbol != NULL;
}

static bool find_simulator(const char *path)
{
    void *library = dlopen(path, RTLD_NOW);
    return library && find(library, "dllm_sim_held", &sim.held) && find(library, "dllm_sim_refuse", &sim.refuse) &&
           find(library, "dllm_sim_until_refusal", &sim.until_refusal);
}

static dllm_sim_count held(void)
{
    dllm_sim_count now;
    sim.held(&now);
    return now;
}

static bool as_before(dllm_sim_count before)
{
    const dllm_sim_count now = held();
    return now.device_bytes == before.device_bytes && now.shared_bytes == before.shared_bytes && now.streams == before.streams &&
           now.events == before.events && now.graphs == before.graphs;
}

/* Who asked, and for how much; a stream has no size. */
static bool says_so(const char *who)
{
    const char *message = dllm_last_error();
    return strstr(message, who) && strstr(message, "out of memory") &&
           (strstr(message, " bytes") || strstr(message, "opening a stream"));
}

/* ---- refusals: something() is tried with the first request refused, then with the second, ... until nothing was -------------------- */
typedef struct {
    const dllm_checkpoint *files;
    dllm_model *model;
    dllm_params params;
    dllm_session *session;
    const char *where;
} scene;

static void refuse_each(scene *s, int (*something)(scene *s), const char *who, int at_least)
{
    int n = 0;
    for (bool refused = true; refused; n += refused) {
        const dllm_sim_count before = held();
        sim.refuse(n + 1);
        const int status = something(s);
        refused = sim.until_refusal() == 0;
        sim.refuse(0);
        if (!refused) {
            expect(status >= 0, "goes well when nothing is refused", s->where);
            break;
        }
        expect(status == DLLM_E_MEMORY && says_so(who), "says who was refused how much", s->where);
        expect(as_before(before), "a refusal leaves nothing behind", s->where);
    }
    expect(n >= at_least, "was refused often enough", s->where);
}

static int load(scene *s)
{
    dllm_device *d = NULL;
    dllm_model *m = NULL;
    int status = dllm_device_open(&d, "cuda-sim:3", 1);
    if (status >= 0) status = dllm_model_open(&m, d, dllm_checkpoint_config(s->files), dllm_checkpoint_weights(s->files), DLLM_F32);
    dllm_model_close(m);
    dllm_device_close(d);
    return status;
}

static const int32_t ids[] = { 5, 6, 7, 8, 9, 10, 11, 12, 13 };
static const dllm_prompt prompts[] = { { .ids = ids, .n = 4, .seed = 1 }, { .ids = ids, .n = 9, .stream = 1 } };

static int open_and_close(scene *s)
{
    dllm_session *session;
    const int status = dllm_session_open(&session, s->model, &s->params, prompts, 2);
    dllm_session_close(session);
    return status;
}

static float all_logits[MOST_ROWS * MOST_VOCAB];

static int ask_logits(scene *s)
{
    const int64_t rows = dllm_session_rows(s->session), vocab = dllm_model_config(s->model)->vocab;
    dllm_session *again; /* logits are taken once and stay */
    int status = dllm_session_open(&again, s->model, &s->params, prompts, 2);
    const dllm_mat out = { .data = all_logits, .rows = rows, .cols = vocab, .stride = vocab, .dtype = DLLM_F32 };
    if (status >= 0) status = dllm_session_logits(again, out, true);
    dllm_session_close(again);
    return status;
}

/* ---- giving back -------------------------------------------------------------------------------------------------------------------- */
static const void *no_numbers(void *arg, dllm_draw kind, const int64_t *shape, int ndim) { return NULL; }

/* Closed at the end, in the middle, right away, and after an error of a callback. */
static void open_and_close_often(scene *s)
{
    const dllm_sim_count before = held();
    for (int i = 0; i < 12; i++) {
        dllm_session *session;
        dllm_params p = s->params;
        if (i % 4 == 3) {
            p.temperature = 1;
            p.noise.draw = no_numbers;
        }
        expect(dllm_session_open(&session, s->model, &p, prompts, 2) == 0, "opens again", s->where);
        int left = 1;
        for (int step = 0; left > 0 && step < i % 4 * 100; step++) left = dllm_session_step(session);
        expect(i % 4 == 0 ? left == 1 : i % 4 == 3 ? left == DLLM_E_CALLBACK : left == 0, "ends as it should", s->where);
        dllm_session_close(session);
    }
    expect(as_before(before), "sessions give back what they took", s->where);
}

/* The nth request that a step makes of the GPU is refused; 0: none. Requests are made for graphs alone, and kernels go without. */
static bool generate(scene *s, long refused, int32_t *tokens)
{
    dllm_session *session;
    int left = dllm_session_open(&session, s->model, &s->params, prompts, 2) == 0;
    sim.refuse(refused);
    while (left > 0) left = dllm_session_step(session);
    const bool asked = sim.until_refusal() == 0;
    sim.refuse(0);
    expect(left == 0 && dllm_session_tokens(session, tokens, dllm_session_rows(session)) == 0, "generates", s->where);
    dllm_session_close(session);
    return asked;
}

/* How often the GPU was asked. */
static long check_graphs(scene *s)
{
    int32_t wanted[MOST_ROWS] = { 0 }, got[MOST_ROWS] = { 0 };
    const dllm_sim_count before = held();
    long n = 0;
    generate(s, 0, wanted);
    while (n < MOST_ROWS && generate(s, n + 1, got)) {
        expect(memcmp(got, wanted, sizeof got) == 0, "without a graph the tokens are the same", s->where);
        n++;
    }
    expect(as_before(before), "graphs are given back", s->where);
    return n;
}

static void check_sessions(scene *s, const char *folder)
{
    char where[600];
    long asked = 0;
    for (int i = 0; dllm_strategy_name(i); i++) {
        dllm_params_init(&s->params, dllm_model_config(s->model));
        dllm_params_use(&s->params, dllm_strategy_name(i));
        if (s->params.score == DLLM_SCORE_ORIGIN) s->params.score = DLLM_SCORE_ENTROPY;
        s->params.answer_len = s->params.steps = 8;
        s->params.block_len = 4;
        s->params.watch = i % 2;
        snprintf(where, sizeof where, "%s, %s", folder, dllm_strategy_name(i));
        s->where = where;
        refuse_each(s, open_and_close, "session:", 30);
        open_and_close_often(s);
        asked += check_graphs(s);
        s->params.cfg_scale = 0.7f;
        s->params.cfg_interval = 3;
        refuse_each(s, open_and_close, "session:", 30);
    }
    dllm_params_init(&s->params, dllm_model_config(s->model));
    s->params.answer_len = 0;
    s->where = folder;
    if (dllm_model_config(s->model)->layers >= 3) expect(asked >= 2, "asks for graphs", s->where);
    if (dllm_session_open(&s->session, s->model, &s->params, prompts, 2) < 0) return;
    refuse_each(s, ask_logits, "", 30);
    dllm_session_close(s->session);
}

/* ---- weights that are there already -------------------------------------------------------------------------------------------------- */
/* All matrices of a copied model are on the GPU: a model of these borrows them. */
static void check_borrowing(scene *s)
{
    dllm_device *d;
    dllm_model *second = NULL;
    const dllm_weights *w = dllm_model_weights(s->model);
    if (dllm_device_open(&d, "cuda-sim:3", 1) < 0) return expect(false, "opens", s->where);
    const dllm_sim_count before = held();
    expect(dllm_model_open(&second, d, dllm_model_config(s->model), w, DLLM_F32) == 0 && as_before(before), "borrows", s->where);
    expect(second && dllm_model_weights(second)->embed.data == w->embed.data, "is at the same place", s->where);
    dllm_model_close(second);
    dllm_device_close(d);
    if (dllm_device_open(&d, "cuda-sim:4", 1) < 0) return expect(false, "opens", s->where);
    expect(dllm_model_open(&second, d, dllm_model_config(s->model), w, DLLM_F32) == DLLM_E_VALUE && !second &&
               strstr(dllm_last_error(), "layer 0, attn_norm: on GPU 3, but the model is on cuda-sim:4"),
           "weights of another GPU are refused", s->where);
    dllm_device_close(d);
}

static void check_folder(const char *folder)
{
    dllm_checkpoint *files = NULL;
    dllm_device *device = NULL;
    scene s = { .where = folder };
    const dllm_sim_count nothing = held();
    bool ok = dllm_checkpoint_open(&files, folder) >= 0;
    s.files = files;
    if (ok) refuse_each(&s, load, "", 10);
    ok = ok && dllm_device_open(&device, "cuda-sim:3", 1) >= 0 &&
         dllm_model_open(&s.model, device, dllm_checkpoint_config(files), dllm_checkpoint_weights(files), DLLM_F32) >= 0;
    expect(ok, "opens", folder);
    if (ok) check_sessions(&s, folder);
    if (ok) check_borrowing(&s);
    dllm_model_close(s.model);
    dllm_device_close(device);
    dllm_checkpoint_close(files);
    expect(as_before(nothing), "a model gives back what it took", folder);
}

int main(int argc, char **argv)
{
    if (argc < 2 || dllm_cuda_sim_load(argv[1]) < 0 || !find_simulator(argv[1])) {
        printf("FAILED to open the simulator: %s\n", argc < 2 ? "no path" : dllm_last_error());
        return 1;
    }
    for (int i = 2; i < argc; i++) check_folder(argv[i]);
    return report();
}
