/* order.h: between scheduler and runtime of the simulator. */
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
void run_grid(const char *name, dim3 grid, unsigned threads, size_t shared_bytes, const std::function<void()> &body);
} // namespace sim
#endif
