/* linear_amx_many.c: products of many rows on the AMX unit, where L2 sets the pace.
 *
 * Four tiles of C, two of A and two of B make a block of 32 x 32, so that every tile loaded is used twice. A piece of weights, 32
 * rows and some k, is copied to L1 and meets all blocks of tokens there: rows lie a power of two apart, too many for one set of the
 * cache. */
#include "linear.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,amx-tile,amx-bf16,prefer-vector-width=512")
#include "linear_amx.h"

enum {
    EDGE = 32,                   /* rows of weights in a panel, tokens in a block, k in a step */
    STEP = 2048,                 /* bytes of a step of a block: two tiles */
    STEPS = 16,                  /* of a piece: 32 KiB of weights in L1 */
    A_STRIDE = STEPS * 64 + 64,  /* of a copied row of weights: rows begin in different sets of L1 */
    EARLY = 8,                   /* rows of the next piece fetched while a piece is copied; the others come while it is used */
    PANELS = AMX_OUTPUTS / EDGE, /* that have homes for C */
    L2_BYTES = 1 << 20           /* of packed x that stay in L2, where half is left to C */
};

/* One pass over the weights. */
struct pass {
    const struct amx_pass *a;
    int64_t steps, pieces;                    /* of k */
    int64_t blocks, blocks_a_task, row_tasks; /* of tokens */
    int64_t panels, panels_a_task;
    int64_t range; /* pieces of k a task does for one panel before it turns to its next */
};

static bool halves(const struct pass *s, int64_t block) { return s->a->rows - block * EDGE > 16; }

static int64_t steps_of(const struct pass *s, int64_t piece) { return at_most(STEPS, s->steps - piece * STEPS); }

/* Packed x is [pieces][blocks][STEPS][STEP]. */
static char *packed_at(const struct pass *s, int64_t piece, int64_t block)
{
    return s->a->packed + (piece * STEPS * s->blocks + block * steps_of(s, piece)) * STEP;
}

/* Task: one block of tokens in one piece of k. */
static void pack(void *arg, int task, int thread)
{
    const struct pass *s = arg;
    const int64_t piece = task / s->blocks, block = task % s->blocks, steps = steps_of(s, piece);
    char *to = packed_at(s, piece, block);
    for (int64_t i = 0; i < steps; i++, to += STEP)
        for (int64_t half = 0; half <= halves(s, block); half++) {
            const int64_t row = block * EDGE + half * 16;
            pack_tile(to + half * AMX_TILE, s->a->p, s->a->first + row, s->a->rows - row, (piece * STEPS + i) * EDGE);
        }
}

/* A piece of a panel to rows of A_STRIDE bytes. Rows and k that are not there become zeros. */
static void copy_piece(char *to, const dllm_mat *w, int64_t panel, int64_t piece, int64_t steps, const struct ahead *ahead)
{
    const int64_t k = piece * STEPS * EDGE, whole = at_most(steps, (w->cols - k) / EDGE), rows = w->rows - panel * EDGE;
    const __mmask32 rest = whole < steps ? (1u << (w->cols - k) % EDGE) - 1 : 0;
    for (int64_t r = 0; r < EDGE; r++, to += A_STRIDE) {
        const uint16_t *from = (const uint16_t *)dllm_at(*w, panel * EDGE + at_most(r, rows - 1)) + k;
        const __mmask32 there = r < rows ? ~0u : 0;
        if (r % (EDGE / EARLY) == 0 && r / (EDGE / EARLY) < ahead->rows)
            for (int64_t i = 0; i < whole; i++) _mm_prefetch(ahead->w + r / (EDGE / EARLY) * ahead->stride + i * 64, _MM_HINT_T1);
        for (int64_t i = 0; i < whole; i++) _mm512_store_si512(to + i * 64, _mm512_maskz_loadu_epi16(there, from + i * EDGE));
        if (rest) _mm512_store_si512(to + whole * 64, _mm512_maskz_loadu_epi16(there & rest, from + whole * EDGE));
    }
    __asm__ volatile("" : : "r"(to) : "memory"); /* tile loads do not tell the compiler what they read */
}

/* C += A B over a piece. wide: there is a second B tile. B streams past A, which stays in L1: hence the hint in its loads. */
VEC void multiply(const char *a, const char *b, int64_t steps, struct ahead ahead, const bool wide)
{
    for (int64_t i = 0; i < steps; i++, a += 64, b += STEP, ahead.w += 64) {
        _tile_loadd(4, a, A_STRIDE);
        _tile_stream_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (wide) {
            _tile_stream_loadd(7, b + AMX_TILE, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        _tile_loadd(5, a + 16 * A_STRIDE, A_STRIDE);
        _tile_dpbf16ps(2, 5, 6);
        if (wide) _tile_dpbf16ps(3, 5, 7);
        for (int64_t r = 0; r < ahead.rows; r++) _mm_prefetch(ahead.w + r * ahead.stride, _MM_HINT_T1);
    }
}

/* The C tiles of a block to their places. */
static void store_block(const struct pass *s, const char *home, int64_t block, int64_t panel, float *sunk)
{
    for (int64_t half = 0; half <= halves(s, block); half++, home += AMX_TILE)
        store_pair(s->a, home, home + 2 * AMX_TILE, block * EDGE + half * 16, panel * EDGE, sunk);
}

/* A thread's memory: where the C tiles of blocks stay, and where a sink wants the outputs, or NULL. */
struct own {
    char *homes;
    float *sunk;
};

/* Blocks b0 ... b1 of one panel over one piece. */
static void run_piece(const struct pass *s, int64_t panel, int64_t piece, int64_t b0, int64_t b1, struct own own, struct ahead next)
{
    char copy[EDGE * A_STRIDE] __attribute__((aligned(64)));
    const int64_t steps = steps_of(s, piece), blocks = b1 - b0;
    const int64_t early = at_most(next.rows, EARLY);
    const bool last = piece + 1 == s->pieces;
    copy_piece(copy, &s->a->p->w, panel, piece, steps, &next);
    next = (struct ahead){ next.w + early * next.stride, next.stride, next.rows - early };
    for (int64_t i = 0; i < blocks; i++) {
        char *home = own.homes + i * HOME;
        const char *b = packed_at(s, piece, b0 + i);
        const int64_t row = next.rows * i / blocks, rows = next.rows * (i + 1) / blocks - row;
        const struct ahead ahead = { next.w + row * next.stride, next.stride, rows };
        turn_sums(i ? home - HOME : NULL, home, piece == 0);
        if (last && i) store_block(s, home - HOME, b0 + i - 1, panel, own.sunk);
        if (halves(s, b0 + i)) multiply(copy, b, steps, ahead, true);
        else multiply(copy, b, steps, ahead, false);
    }
    char *const home = own.homes + (blocks - 1) * HOME;
    turn_sums(home, NULL, true);
    if (last) store_block(s, home, b1 - 1, panel, own.sunk);
}

static struct ahead look(const struct pass *s, int64_t panel, int64_t piece)
{
    if (piece >= s->pieces) return (struct ahead){ .w = s->a->p->w.data };
    return (struct ahead){ .w = (const char *)dllm_at(s->a->p->w, panel * EDGE) + piece * STEPS * 64,
                           .stride = s->a->p->w.stride * 2,
                           .rows = at_most(EDGE, s->a->p->w.rows - panel * EDGE) };
}

/* Up to PANELS panels, some blocks of tokens. */
static void run_panels(const struct pass *s, int64_t p0, int64_t panels, int64_t b0, int64_t b1, struct own own)
{
    for (int64_t begin = 0; begin < s->pieces; begin += s->range) {
        const int64_t pieces = at_most(s->range, s->pieces - begin), count = panels * pieces;
        for (int64_t i = 0; i < count; i++) {
            const int64_t panel = i / pieces, j = i + 1;
            const struct ahead next = j < count ? look(s, p0 + j / pieces, begin + j % pieces) : look(s, p0, begin + pieces);
            const struct own mine = { own.homes + panel * (b1 - b0) * HOME, own.sunk };
            run_piece(s, p0 + panel, begin + i % pieces, b0, b1, mine, next);
        }
    }
}

/* Task: some panels and some blocks of tokens. */
static void run(void *arg, int task, int thread)
{
    const struct pass *s = arg;
    const struct sink *sink = s->a->p->sink;
    const int64_t p0 = task / s->row_tasks * s->panels_a_task, p1 = at_most(p0 + s->panels_a_task, s->panels);
    const int64_t b0 = task % s->row_tasks * s->blocks_a_task, b1 = at_most(b0 + s->blocks_a_task, s->blocks);
    const struct own own = { s->a->homes + thread * PANELS * s->blocks * HOME,
                             sink ? dllm_sink_space(sink, thread, s->a->rows) : NULL };
    configure_tiles();
    for (int64_t p = p0; p < p1; p += PANELS) run_panels(s, p, at_most(PANELS, p1 - p), b0, b1, own);
    _tile_release();
    if (sink)
        sink->take(sink, thread, own.sunk, s->a->first, s->a->rows, p0 * EDGE, at_most(p1 * EDGE, s->a->p->w.rows) - p0 * EDGE);
}

/* How the work is cut. None of it changes a result. */
static void plan(struct pass *s)
{
    const struct sink *sink = s->a->p->sink;
    const dllm_mat *w = &s->a->p->w;
    const int threads = s->a->threads;
    s->steps = ceil_div(w->cols, EDGE);
    s->blocks = ceil_div(s->a->rows, EDGE);
    s->pieces = ceil_div(s->steps, STEPS);
    s->range = at_least(1, L2_BYTES / 2 / (s->blocks * STEPS * STEP));
    s->panels = ceil_div(w->rows, EDGE);
    s->panels_a_task = sink ? sink->columns / EDGE : at_least(1, at_most(PANELS, s->panels / (threads * 4)));
    const int64_t columns = ceil_div(s->panels, s->panels_a_task);
    s->blocks_a_task = blocks_of_a_task(s->a->p, s->blocks, columns, threads);
    s->row_tasks = ceil_div(s->blocks, s->blocks_a_task);
}

void dllm_linear_amx_many(const struct amx_pass *a)
{
    struct pass s = { .a = a };
    plan(&s);
    dllm_parallel(a->threads, (int)(s.blocks * s.pieces), pack, &s);
    dllm_parallel(a->threads, (int)(ceil_div(s.panels, s.panels_a_task) * s.row_tasks), run, &s);
}
#endif
