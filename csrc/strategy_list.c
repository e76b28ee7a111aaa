/* The only place that names the caching methods. */
#include <string.h>

#include "strategy.h"

/* strategy_<name>.c defines dllm_strategy_<name>. */
#define METHODS(X)                                                                                                                 \
    X(none)                                                                                                                        \
    X(dllm_cache)                                                                                                                  \
    X(sparse_dllm)                                                                                                                 \
    X(dyllm)

#define DECLARE(name) extern const dllm_strategy dllm_strategy_##name;
#define ADDRESS(name) &dllm_strategy_##name,

METHODS(DECLARE)

static const dllm_strategy *const all[] = { METHODS(ADDRESS) };

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
