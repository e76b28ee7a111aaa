/* order.h: what the simulator's files ask of each other. */
#ifndef DLLM_SIM_ORDER_H
#define DLLM_SIM_ORDER_H
#include "sim.h"

namespace sim {
enum order_kind { FIFO, LIFO, RANDOM };
struct order_state {
    order_kind kind;
    uint64_t state; /* of the random order */
};
extern order_state order;

/* All lanes of a warp: each brings n bytes to its slot, the last one to come calls all() on the slots, and everyone gets them. They
 * stay as they are until the lanes meet again. */
enum { SLOT = 64 };
typedef unsigned char slots[WARP][SLOT];
slots *meet(const void *mine, size_t n, void (*all)(slots *), int line);

void run_grid(const char *name, dim3 grid, unsigned threads, size_t shared_bytes, const std::function<void()> &body);
} // namespace sim
#endif
