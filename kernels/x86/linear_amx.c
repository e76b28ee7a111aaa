/* linear_amx.c: bfloat16 products on the AMX unit.
 *
 * A tile of A is 16 weight rows x 32 k. A tile of B is 32 k x 16 tokens in k pairs: x is packed so once a call. A tile of C is 16
 * outputs x 16 tokens of float32. Four of C, two of A and two of B make a block of 32 x 32, so that every tile loaded is used
 * twice. A piece of weights, 32 rows and some k, is copied to L1 and meets all blocks of tokens there: rows lie a power of two
 * apart, too many of them for one set of the cache. Sums run in ascending k whatever the blocking: C tiles that leave the unit
 * between two pieces come back unchanged. */
#include "linear.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,amx-tile,amx-bf16,prefer-vector-width=512")
#include "tiles.h"
#include "vec512.h"

enum {
    EDGE = 32,                  /* rows of weights in a panel, tokens in a block, k in a step */
    STEP = 2048,                /* bytes of a step of a block: two tiles */
    STEPS = 16,                 /* of a piece: 32 KiB of weights in L1 */
    A_STRIDE = STEPS * 64 + 64, /* of a copied row of weights: rows begin in different sets of L1 */
    EARLY = 8,                  /* rows of the next piece fetched while a piece is copied; the others come while it is used */
    MAX_ROWS = 512,             /* packed at a time: enough work for each weight read */
    PANELS = 8,                 /* of a task at most */
    L2_BYTES = 1 << 20          /* of packed x that stay in L2, where half is left to C */
};

/* One pass over the weights for up to MAX_ROWS rows. */
struct pass {
    const struct product *p;
    int64_t first, rows;                      /* of in_rows and out_rows */
    int64_t steps, pieces;                    /* of k */
    int64_t blocks, blocks_a_task, row_tasks; /* of tokens */
    int64_t panels, panels_a_task;
    int64_t range;        /* pieces of k a task does for one panel before it turns to its next */
    char *packed, *homes; /* [pieces][blocks][STEPS][STEP], [threads][PANELS][blocks][HOME] */
};

static bool halves(const struct pass *s, int64_t block) { return s->rows - block * EDGE > 16; }

static int64_t steps_of(const struct pass *s, int64_t piece) { return at_most(STEPS, s->steps - piece * STEPS); }

static char *packed_at(const struct pass *s, int64_t piece, int64_t block)
{
    return s->packed + (piece * STEPS * s->blocks + block * steps_of(s, piece)) * STEP;
}

/* 16 tokens x 32 k to 16 pairs of k x 16 tokens. */
static void pack_tile(char *to, const struct product *p, int64_t first, int64_t n, int64_t k)
{
    const int64_t left = p->x.cols - k;
    const __mmask32 m = left >= 32 ? ~0u : (1u << left) - 1;
    __m512i r[16];
    for (int64_t i = 0; i < 16; i++)
        r[i] = i < n ? _mm512_maskz_loadu_epi16(m, (const uint16_t *)dllm_at(p->x, dllm_row(p->in_rows, (int32_t)(first + i))) + k)
                     : _mm512_setzero_si512();
    transpose16(r);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) _mm512_store_si512(to + i * 64, r[i]);
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
            pack_tile(to + half * 1024, s->p, s->first + row, s->rows - row, (piece * STEPS + i) * EDGE);
        }
}

/* Rows of weights to be fetched to L2 while others are worked on. */
struct ahead {
    const char *w;
    int64_t stride, rows;
};

/* A piece of a panel to rows of A_STRIDE bytes. Rows and k that are not there become zeros. */
static void copy_piece(char *to, const struct product *p, int64_t panel, int64_t piece, int64_t steps, const struct ahead *ahead)
{
    const int64_t k = piece * STEPS * EDGE, whole = at_most(steps, (p->w.cols - k) / EDGE), rows = p->w.rows - panel * EDGE;
    const __mmask32 rest = whole < steps ? (1u << (p->w.cols - k) % EDGE) - 1 : 0;
    for (int64_t r = 0; r < EDGE; r++, to += A_STRIDE) {
        const uint16_t *from = (const uint16_t *)dllm_at(p->w, panel * EDGE + at_most(r, rows - 1)) + k;
        const __mmask32 there = r < rows ? ~0u : 0;
        if (r % (EDGE / EARLY) == 0 && r / (EDGE / EARLY) < ahead->rows)
            for (int64_t i = 0; i < whole; i++) _mm_prefetch(ahead->w + r / (EDGE / EARLY) * ahead->stride + i * 64, _MM_HINT_T1);
        for (int64_t i = 0; i < whole; i++) _mm512_store_si512(to + i * 64, _mm512_maskz_loadu_epi16(there, from + i * EDGE));
        if (rest) _mm512_store_si512(to + whole * 64, _mm512_maskz_loadu_epi16(there & rest, from + whole * EDGE));
    }
    __asm__ volatile("" : : "r"(to) : "memory"); /* tile loads do not tell the compiler what they read */
}

/* C += A B over a piece. wide: there is a second B tile. B streams past A, which stays in L1: hence the hint in its loads. */
VEC void multiply(const char *a, int64_t stride, const char *b, int64_t steps, struct ahead ahead, const bool wide)
{
    for (int64_t i = 0; i < steps; i++, a += 64, b += STEP, ahead.w += 64) {
        _tile_loadd(4, a, stride);
        _tile_stream_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (wide) {
            _tile_stream_loadd(7, b + 1024, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        _tile_loadd(5, a + 16 * stride, stride);
        _tile_dpbf16ps(2, 5, 6);
        if (wide) _tile_dpbf16ps(3, 5, 7);
        for (int64_t r = 0; r < ahead.rows; r++) _mm_prefetch(ahead.w + r * ahead.stride, _MM_HINT_T1);
    }
}

VEC void transpose_tile(char *to, const char *from)
{
    __m512i r[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) r[i] = _mm512_load_si512(from + i * 64);
    transpose16(r);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) _mm512_store_si512(to + i * 64, r[i]);
}

/* The C tiles of a block to their place in the output. */
static void store_block(const struct pass *s, const char *home, int64_t block, int64_t panel)
{
    const struct product *p = s->p;
    const int64_t first = panel * EDGE, tokens = at_most(EDGE, s->rows - block * EDGE);
    const __mmask16 m0 = lanes16(p->w.rows - first), m1 = lanes16(p->w.rows - first - 16);
    const dllm_mat *b = &p->bias;
    const __m512 bias0 = b->data ? load16(b->data, b->dtype, first, m0) : _mm512_setzero_ps();
    const __m512 bias1 = b->data ? load16(b->data, b->dtype, first + 16, m1) : _mm512_setzero_ps();
    char sums[EDGE * 64] __attribute__((aligned(64)));
    for (int64_t i = 0; i < tokens; i++) {
        if (i % 16 == 0) {
            transpose_tile(sums, home + i / 16 * 1024);
            transpose_tile(sums + 1024, home + i / 16 * 1024 + 2048);
        }
        void *row = dllm_at(p->out, dllm_row(p->out_rows, (int32_t)(s->first + block * EDGE + i)));
        const char *sum = sums + i % 16 * 64;
        store16(row, p->out.dtype, first, m0, _mm512_add_ps(_mm512_load_ps(sum), bias0));
        store16(row, p->out.dtype, first + 16, m1, _mm512_add_ps(_mm512_load_ps(sum + 1024), bias1));
    }
}

/* Where the unit reads a piece of weights. A single block meets it once, so it reads whole rows where they lie, which is as fast as
 * memory. */
struct piece {
    const char *a;
    int64_t stride;
    struct ahead ahead;
};

static struct piece take_piece(const struct pass *s, int64_t panel, int64_t piece, bool once, char *copy, struct ahead next)
{
    const dllm_mat *w = &s->p->w;
    const int64_t steps = steps_of(s, piece);
    if (once && (panel + 1) * EDGE <= w->rows && (piece * STEPS + steps) * EDGE <= w->cols)
        return (struct piece){ (const char *)dllm_at(*w, panel * EDGE) + piece * STEPS * 64, w->stride * 2, { .w = copy } };
    copy_piece(copy, s->p, panel, piece, steps, &next);
    const int64_t early = at_most(next.rows, EARLY);
    return (struct piece){ copy, A_STRIDE, { next.w + early * next.stride, next.stride, next.rows - early } };
}

/* Blocks b0 ... b1 of one panel over one piece. homes: where their C tiles stay. */
static void run_piece(const struct pass *s, int64_t panel, int64_t piece, int64_t b0, int64_t b1, char *homes, struct ahead next)
{
    char copy[EDGE * A_STRIDE] __attribute__((aligned(64)));
    const int64_t steps = steps_of(s, piece), blocks = b1 - b0;
    const struct piece w = take_piece(s, panel, piece, blocks == 1, copy, next);
    const bool last = piece + 1 == s->pieces;
    for (int64_t i = 0; i < blocks; i++) {
        char *home = homes + i * HOME;
        const char *b = packed_at(s, piece, b0 + i);
        const int64_t row = w.ahead.rows * i / blocks, rows = w.ahead.rows * (i + 1) / blocks - row;
        const struct ahead ahead = { w.ahead.w + row * w.ahead.stride, w.ahead.stride, rows };
        turn_sums(i ? home - HOME : NULL, home, piece == 0);
        if (last && i) store_block(s, home - HOME, b0 + i - 1, panel);
        if (halves(s, b0 + i)) multiply(w.a, w.stride, b, steps, ahead, true);
        else multiply(w.a, w.stride, b, steps, ahead, false);
    }
    turn_sums(homes + (blocks - 1) * HOME, NULL, true);
    if (last) store_block(s, homes + (blocks - 1) * HOME, b1 - 1, panel);
}

static struct ahead look(const struct pass *s, int64_t panel, int64_t piece)
{
    if (piece >= s->pieces) return (struct ahead){ .w = s->p->w.data };
    return (struct ahead){ .w = (const char *)dllm_at(s->p->w, panel * EDGE) + piece * STEPS * 64,
                           .stride = s->p->w.stride * 2,
                           .rows = at_most(EDGE, s->p->w.rows - panel * EDGE) };
}

/* Task: some panels and some blocks of tokens. */
static void run(void *arg, int task, int thread)
{
    const struct pass *s = arg;
    const int64_t p0 = task / s->row_tasks * s->panels_a_task, panels = at_most(s->panels_a_task, s->panels - p0);
    const int64_t b0 = task % s->row_tasks * s->blocks_a_task, b1 = at_most(b0 + s->blocks_a_task, s->blocks);
    char *homes = s->homes + thread * PANELS * s->blocks * HOME;
    configure_tiles();
    for (int64_t begin = 0; begin < s->pieces; begin += s->range) {
        const int64_t pieces = at_most(s->range, s->pieces - begin), count = panels * pieces;
        for (int64_t i = 0; i < count; i++) {
            const int64_t panel = i / pieces, j = i + 1;
            const struct ahead next = j < count ? look(s, p0 + j / pieces, begin + j % pieces) : look(s, p0, begin + pieces);
            run_piece(s, p0 + panel, begin + i % pieces, b0, b1, homes + panel * (b1 - b0) * HOME, next);
        }
    }
    _tile_release();
}

static int64_t packed_bytes(int64_t rows, int64_t k) { return ceil_div(at_most(rows, MAX_ROWS), EDGE) * ceil_div(k, EDGE) * STEP; }

static int64_t homes_bytes(int threads, int64_t rows)
{
    return (int64_t)threads * PANELS * ceil_div(at_most(rows, MAX_ROWS), EDGE) * HOME;
}

size_t dllm_linear_amx_scratch(int threads, int64_t rows, int64_t k)
{
    return (size_t)(packed_bytes(rows, k) + homes_bytes(threads, rows));
}

/* How the work is cut. None of it changes a result. */
static void plan(struct pass *s, int threads)
{
    s->steps = ceil_div(s->p->w.cols, EDGE);
    s->blocks = ceil_div(s->rows, EDGE);
    s->pieces = ceil_div(s->steps, STEPS);
    const int64_t piece_bytes = s->blocks * STEPS * STEP, all = s->blocks * s->steps * STEP;
    s->range = all <= L2_BYTES ? s->pieces : at_least(1, L2_BYTES / 2 / piece_bytes);
    s->panels = ceil_div(s->p->w.rows, EDGE);
    s->panels_a_task = at_least(1, at_most(PANELS, s->panels / (threads * 4)));
    const int64_t columns = ceil_div(s->panels, s->panels_a_task);
    s->row_tasks = at_least(1, at_most(s->blocks, 2 * threads / columns));
    s->blocks_a_task = ceil_div(s->blocks, s->row_tasks);
    s->row_tasks = ceil_div(s->blocks, s->blocks_a_task);
}

void dllm_linear_amx(const struct product *p)
{
    const int threads = p->d->threads > 1 ? p->d->threads : 1;
    const int64_t k = p->w.cols;
    if (p->in_rows.n <= 0) return;
    int64_t rows = at_most(p->in_rows.n, MAX_ROWS);
    while (rows > EDGE && dllm_linear_amx_scratch(threads, rows, k) > p->d->scratch_bytes) rows -= EDGE;
    const size_t needed = dllm_linear_amx_scratch(threads, rows, k);
    if (needed > p->d->scratch_bytes) {
        dllm_linear_refuse(p->d, needed);
        return;
    }
    for (int64_t first = 0; first < p->in_rows.n; first += rows) {
        struct pass s = { .p = p, .first = first, .rows = at_most(rows, p->in_rows.n - first), .packed = p->d->scratch };
        s.homes = s.packed + packed_bytes(s.rows, k);
        plan(&s, threads);
        dllm_parallel(threads, (int)(s.blocks * s.pieces), pack, &s);
        dllm_parallel(threads, (int)(ceil_div(s.panels, s.panels_a_task) * s.row_tasks), run, &s);
    }
}
#endif
