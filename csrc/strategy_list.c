/* The only place that names the caching methods. */
#include <string.h>

#include "strategy.h"

static const dllm_strategy *const all[] = { &dllm_strategy_none };

const dllm_strategy *dllm_strategy_at(int i) { return i >= 0 && i < (int)(sizeof all / sizeof *all) ? all[i] : NULL; }

const dllm_strategy *dllm_strategy_find(const char *name)
{
    for (int i = 0; dllm_strategy_at(i); i++) {
        if (strcmp(dllm_strategy_at(i)->name, name) == 0) return dllm_strategy_at(i);
    }
    return NULL;
}
