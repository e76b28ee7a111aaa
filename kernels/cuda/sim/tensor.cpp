/* tensor.cpp: what the tensor cores do, and how fragments get from shared memory to the lanes, as PTX defines it. */
#include "../../bits.h"
#include "order.h"
#include "tsan.h"

namespace sim {
namespace {
/* Lane 4 r + c holds a[r and r + 8][2c, 2c + 1 and 8 on], b[2c, 2c + 1 and 8 on][r], d[r and r + 8][2c, 2c + 1]. */
struct mma_lane {
    float d[4];
    uint32_t a[4], b[2];
};

float half_of(uint32_t word, int i, dllm_dtype t)
{
    const uint16_t bits = (uint16_t)(word >> i % 2 * 16);
    return t == DLLM_BF16 ? dllm_from_bf16(bits) : dllm_from_f16(bits);
}

template <dllm_dtype T> void multiply(slots *all)
{
    float a[16][16], b[8][16];
    for (int l = 0; l < WARP; l++) {
        const mma_lane *x = (const mma_lane *)(*all)[l];
        const int r = l / 4, c = l % 4 * 2;
        for (int i = 0; i < 8; i++) a[r + i / 2 % 2 * 8][c + i / 4 * 8 + i % 2] = half_of(x->a[i / 2], i, T);
        for (int i = 0; i < 4; i++) b[r][c + i / 2 * 8 + i % 2] = half_of(x->b[i / 2], i, T);
    }
    for (int l = 0; l < WARP; l++) {
        float *d = ((mma_lane *)(*all)[l])->d;
        for (int i = 0; i < 4; i++) {
            for (int k = 0; k < 16; k++) d[i] += a[l / 4 + i / 2 * 8][k] * b[l % 4 * 2 + i % 2][k];
        }
    }
}

/* Lane 8 m + r names row r of matrix m; register m of lane 4 r + c is [r][2c, 2c + 1] of matrix m, or [2c, 2c + 1][r]. */
template <bool TRANSPOSED> void load(slots *all)
{
    const uint16_t *rows[WARP];
    for (int l = 0; l < WARP; l++) {
        rows[l] = *(const uint16_t **)(*all)[l];
        tsan_read(rows[l], 16);
    }
    for (int l = 0; l < WARP; l++) {
        uint16_t *got = (uint16_t *)(*all)[l];
        for (int i = 0; i < 8; i++) {
            const int r = l / 4, c = l % 4 * 2 + i % 2, m = i / 2 * 8;
            got[i] = TRANSPOSED ? rows[m + c][r] : rows[m + r][c];
        }
    }
}
} // namespace

void mma(float *d, const uint32_t *a, const uint32_t *b, dllm_dtype t, int line)
{
    const mma_lane x = { { d[0], d[1], d[2], d[3] }, { a[0], a[1], a[2], a[3] }, { b[0], b[1] } };
    const slots *all = meet(&x, sizeof x, t == DLLM_BF16 ? multiply<DLLM_BF16> : multiply<DLLM_F16>, line);
    for (int i = 0; i < 4; i++) d[i] = ((const mma_lane *)(*all)[lane()])->d[i];
}

void load_matrices(uint32_t *r, const void *row, bool transposed, int line)
{
    const slots *all = meet(&row, sizeof row, transposed ? load<true> : load<false>, line);
    for (int i = 0; i < 4; i++) r[i] = ((const uint32_t *)(*all)[lane()])[i];
}
} // namespace sim
