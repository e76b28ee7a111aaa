/* The only place that names the caching methods. */
#include <string.h>

#include "strategy.h"

static const dllm_strategy *const all[] = { &dllm_strategy_none, &dllm_strategy_dllm_cache, &dllm_strategy_sparse_dllm, &dllm_strategy_dyllm };

const dllm_strategy *dllm_strategy_at(int i) { return i >= 0 && i < (int)(sizeof all / sizeof *all) ? all[i] : NULL; }

const dllm_strategy *dllm_strategy_find(const char *name)
{
    for (int i = 0; dllm_strategy_at(i); i++) {
        if (strcmp(dllm_strategy_at(i)->name, name) == 0) return dllm_strategy_at(i);
    }
    return NULL;
}

const char *dllm_strategy_name(int i) { return dllm_strategy_at(i) ? dllm_strategy_at(i)->name : NULL; }

const char *dllm_strategy_option(int i, int option, const char **help, double *fallback)
{
    const dllm_strategy *st = dllm_strategy_at(i);
    if (!st || option < 0 || option >= DLLM_MAX_OPTIONS) return NULL;
    *help = st->options[option].help;
    *fallback = st->options[option].fallback;
    return st->options[option].name;
}
