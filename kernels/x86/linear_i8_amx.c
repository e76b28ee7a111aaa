/* linear_i8_amx.c: int8 weights on the AMX unit.
 *
 * Tiles of A are 16 rows of x x 64 k, tiles of B 64 k x 16 outputs, both as they were packed. Two of A and two of B meet in four of
 * C. A piece of a panel, 32 KiB, stays in L1 while all rows of x pass; a whole panel does in L2, if there are few. */
#include "linear_i8.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,amx-tile,amx-int8,prefer-vector-width=512")
#include "tiles.h"
#include "vec512.h"

enum {
    STEPS = 16,        /* of a piece */
    L2_BYTES = 1 << 19 /* of x that leave room for a whole panel in L2 */
};

/* C += A B over a piece. both: there is a second tile of A. A streams past B, which stays in L1: hence the hint in its loads. */
VEC void multiply(const char *x, int64_t x_hop, const char *w, int64_t steps, struct i8_ahead ahead, const bool both)
{
    for (int64_t i = 0; i < steps; i++, x += DLLM_I8_TILE, w += I8_STEP_BYTES) {
        _tile_stream_loadd(4, x, 64);
        _tile_loadd(6, w, 64);
        _tile_dpbssd(0, 4, 6);
        if (both) {
            _tile_stream_loadd(5, x + x_hop, 64);
            _tile_dpbssd(2, 5, 6);
        }
        _tile_loadd(7, w + DLLM_I8_TILE, 64);
        _tile_dpbssd(1, 4, 7);
        if (both) _tile_dpbssd(3, 5, 7);
        for (int64_t line = 0; line < ahead.lines; line++, ahead.w += 64) _mm_prefetch(ahead.w, _MM_HINT_T1);
    }
}

/* Sums of up to 32 rows from tile `tile` on to their places. */
static void store_block(const struct i8_pass *s, const char *home, int64_t tile, int64_t panel, float *sunk)
{
    __asm__ volatile("" : : "r"(home) : "memory"); /* tile stores do not tell the compiler what they write */
    for (int64_t r = tile * 16; r < at_most(tile * 16 + 32, s->rows); r++) {
        int32_t sums[DLLM_I8_PANEL] __attribute__((aligned(64)));
        const char *from = home + (r / 16 - tile) * 2048 + r % 16 * 64;
        _mm512_store_si512(sums, _mm512_load_si512(from));
        _mm512_store_si512(sums + 16, _mm512_load_si512(from + 1024));
        i8_store(s, r, panel, sums, sunk);
    }
}

/* Tiles t0 ... t1 of x against one piece of a panel. next: the piece after it; a part of it comes with each block of two tiles. */
static void run_piece(const struct i8_pass *s, int64_t panel, int64_t step, int64_t steps, int64_t t0, int64_t t1, char *homes,
                      const char *next, float *sunk)
{
    const char *w = i8_panel(&s->p->w, panel) + step * I8_STEP_BYTES, *end = next + steps * I8_STEP_BYTES;
    const int64_t hop = s->steps * DLLM_I8_TILE, lines = ceil_div(I8_STEP_LINES, ceil_div(t1 - t0, 2));
    const bool last = step + steps == s->steps;
    char *home = homes;
    for (int64_t t = t0; t < t1; t += 2, home += HOME, next += lines * steps * 64) {
        const char *x = s->x + (t * s->steps + step) * DLLM_I8_TILE;
        const struct i8_ahead ahead = { next, next < end ? lines : 0 };
        turn_sums(t > t0 ? home - HOME : NULL, home, step == 0);
        if (last && t > t0) store_block(s, home - HOME, t - 2, panel, sunk);
        if (t * 16 + 16 < s->rows) multiply(x, hop, w, steps, ahead, true);
        else multiply(x, hop, w, steps, ahead, false);
    }
    turn_sums(home - HOME, NULL, true);
    if (last) store_block(s, home - HOME, t0 + (t1 - t0 - 1) / 2 * 2, panel, sunk);
}

void dllm_i8_run_amx(void *pass, int task, int thread)
{
    const struct i8_pass *s = pass;
    const int64_t p0 = task / s->row_tasks * s->panels_a_task, p1 = at_most(p0 + s->panels_a_task, s->panels);
    const int64_t t0 = task % s->row_tasks * s->tiles_a_task, t1 = at_most(t0 + s->tiles_a_task, s->tiles);
    const int64_t piece = t1 - t0 > 2 && (t1 - t0) * s->steps * DLLM_I8_TILE > L2_BYTES ? STEPS : s->steps;
    const char *end = i8_panel(&s->p->w, s->panels);
    float *sunk = i8_sunk(s, thread);
    configure_tiles();
    for (int64_t panel = p0; panel < p1; panel++) {
        for (int64_t step = 0; step < s->steps; step += piece) {
            const int64_t steps = at_most(piece, s->steps - step);
            const char *next = i8_panel(&s->p->w, panel) + (step + steps) * I8_STEP_BYTES;
            run_piece(s, panel, step, steps, t0, t1, s->homes + thread * s->own_bytes, next < end ? next : s->p->w.data, sunk);
        }
    }
    _tile_release();
    i8_take(s, thread, sunk, p0, p1);
}
#endif
