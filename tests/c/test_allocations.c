/* A session takes its memory when it opens: its steps allocate nothing. And any allocation of a model or a session that opens may fail:
 * the message says so, and nothing is lost (the sanitizers count). The linker sends every allocation of this program's own objects
 * here (see the Makefile); what the system's libraries do for themselves, when a thread starts, is not ours. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "expect.h"

static _Atomic long allocations, refused; /* which one gets nothing; 0: none */

#define COUNTED(type, name, arguments, values, nothing)                                                                            \
    type __real_##name arguments;                                                                                                  \
    type __wrap_##name arguments;                                                                                                  \
    type __wrap_##name arguments { return ++allocations == refused ? nothing : __real_##name values; }
COUNTED(void *, malloc, (size_t n), (n), NULL)
COUNTED(void *, calloc, (size_t n, size_t size), (n, size), NULL)
COUNTED(void *, realloc, (void *p, size_t n), (p, n), NULL)
COUNTED(void *, aligned_alloc, (size_t alignment, size_t n), (alignment, n), NULL)
COUNTED(int, posix_memalign, (void **p, size_t alignment, size_t n), (p, alignment, n), ENOMEM)

/* Opens with two prompts, then steps to the end. */
static void run(dllm_model *m, const dllm_params *p, const char *where)
{
    const int32_t ids[] = { 5, 6, 7, 8, 9, 10, 11 };
    const dllm_prompt prompts[] = { { .ids = ids, .n = 3 }, { .ids = ids, .n = 7, .stream = 1 } };
    dllm_session *s;
    const long before = allocations;
    expect(dllm_session_open(&s, m, p, prompts, 2) == 0, "opens", where);
    expect(allocations > before, "opening a session allocates, and is seen to", where);
    const long opened = allocations;
    int left = 1, steps = 0;
    for (; left > 0; steps++) left = dllm_session_step(s);
    expect(left == 0 && steps > 1 && allocations == opened, "no step allocates", where);
    dllm_session_close(s);
}

static void run_everything(dllm_model *m, const char *folder)
{
    for (int i = 0; dllm_strategy_name(i); i++) {
        char where[600];
        snprintf(where, sizeof where, "%s, %s", folder, dllm_strategy_name(i));
        dllm_params p;
        dllm_params_init(&p, dllm_model_config(m));
        if (p.score == DLLM_SCORE_ORIGIN) p.score = DLLM_SCORE_ENTROPY;
        p.answer_len = p.steps = 12;
        p.block_len = 6;
        dllm_params_use(&p, dllm_strategy_name(i));
        run(m, &p, where);
        p.cfg_scale = 0.7f;
        p.cfg_interval = 3;
        run(m, &p, where);
        p.cfg_scale = 0;
        p.temperature = 0.8f;
        p.top_p = 0.9f;
        p.top_k = 7;
        p.alg_temp = p.gumbel ? 0 : 0.5f;
        run(m, &p, where);
        p.threshold = 0.2f;
        run(m, &p, where);
    }
}

/* ---- refusals ------------------------------------------------------------------------------------------------------------------ */
typedef struct {
    const char *folder;
    dllm_checkpoint *files;
    dllm_device *device;
    dllm_model *model;
} scene;

static int read_files(scene *s)
{
    dllm_checkpoint *files;
    const int status = dllm_checkpoint_open(&files, s->folder);
    dllm_checkpoint_close(files);
    return status;
}

static int open_model(scene *s)
{
    dllm_device *d;
    dllm_model *m = NULL;
    int status = dllm_device_open(&d, "cpu", 2);
    if (status >= 0)
        status = dllm_model_open(&m, d, dllm_checkpoint_config(s->files), dllm_checkpoint_weights(s->files), DLLM_BF16);
    dllm_model_close(m);
    dllm_device_close(d);
    return status;
}

static int open_session(scene *s)
{
    const int32_t ids[] = { 5, 6, 7 };
    const dllm_prompt prompt = { .ids = ids, .n = 3 };
    dllm_params p;
    dllm_session *session;
    dllm_params_init(&p, dllm_model_config(s->model));
    p.answer_len = p.steps = p.block_len = 8;
    dllm_params_use(&p, "dllm-cache");
    p.watch = true;
    p.cfg_scale = 1;
    const int status = dllm_session_open(&session, s->model, &p, &prompt, 1);
    dllm_session_close(session);
    return status;
}

/* Without the first allocation, then without the second, ... until all are there. */
static void refuse_each(scene *s, int (*something)(scene *s), const char *what)
{
    char where[600];
    int status = -1;
    for (long n = 1; status < 0 && n < 10000; n++) {
        snprintf(where, sizeof where, "%s, %s, without allocation %ld", s->folder, what, n);
        const long before = allocations;
        refused = before + n;
        status = something(s);
        if (allocations < before + n) expect(status >= 0 && n > 2, "goes well when nothing is refused", where);
        else expect(status == DLLM_E_MEMORY && strstr(dllm_last_error(), "out of memory"), "says so", where);
        refused = 0;
    }
}

static void check_folder(const char *folder)
{
    dllm_checkpoint *files = NULL;
    dllm_device *device = NULL;
    dllm_model *model = NULL;
    const bool ok = dllm_checkpoint_open(&files, folder) >= 0 && dllm_device_open(&device, "cpu", 2) >= 0 &&
                    dllm_model_open(&model, device, dllm_checkpoint_config(files), dllm_checkpoint_weights(files), DLLM_BF16) >= 0;
    expect(ok, "opens", folder);
    if (ok) run_everything(model, folder);
    scene s = { folder, files, device, model };
    if (ok) refuse_each(&s, read_files, "reading files");
    if (ok) refuse_each(&s, open_model, "opening a model");
    if (ok) refuse_each(&s, open_session, "opening a session");
    dllm_model_close(model);
    dllm_device_close(device);
    dllm_checkpoint_close(files);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) check_folder(argv[i]);
    return report();
}
