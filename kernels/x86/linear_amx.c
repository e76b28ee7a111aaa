/* linear_amx.c: bfloat16 products on the AMX unit.
 *
 * A tile of A is 16 weight rows x 32 k, loaded from where the weights lie. A tile of B is 32 k x 16 tokens in k pairs: x is packed so
 * once a call. A tile of C is 16 outputs x 16 tokens of float32. Four of C, two of A and two of B make a block of 32 x 32, so that every
 * tile loaded is used twice. Sums run in ascending k whatever the blocking: a C tile that leaves the unit between two ranges of k comes
 * back unchanged. */
#include "linear.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,amx-tile,amx-bf16,prefer-vector-width=512")
#include "vec512.h"

enum {
    EDGE = 32,                /* rows of weights in a panel, tokens in a block, k in a step */
    MAX_ROWS = 512,           /* packed at a time: enough work for each weight read */
    PANELS = 8,               /* that share one pass over the packed x */
    HOME = EDGE * EDGE * 4,   /* bytes of a block's C tiles */
    A_STEPS = 16,             /* k steps whose panel of weights stays in L1 while all blocks of x pass */
    B_BYTES = 1 << 20,        /* of packed x that stay in L2 */
};

/* One pass over the weights for up to MAX_ROWS rows. */
struct pass {
    const struct product *p;
    int64_t first, rows;            /* of in_rows and out_rows */
    int64_t steps, range;           /* k steps, and how many of them are done in one go */
    int64_t blocks;                 /* of tokens */
    int64_t panels, panels_a_task;
    int64_t blocks_a_task, row_tasks;
    char *packed, *homes;           /* [ranges][blocks][step of range][2 halves][1 KiB], [threads][panels_a_task][blocks][HOME] */
};

struct __attribute__((packed)) config {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

/* Tiles 0-3: C of (A tile, B tile) 00, 01, 10, 11; 4, 5: A; 6, 7: B. `width` weight rows: nothing beyond them is read. */
static void configure(int64_t width)
{
    struct config c = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        const bool second = t == 2 || t == 3 || t == 5;
        c.bytes[t] = 64;
        c.rows[t] = (uint8_t)(t >= 6 ? 16 : second ? at_least(width - 16, 1) : at_most(width, 16));
    }
    __asm__ volatile("" : : "r"(&c) : "memory"); /* the intrinsic names only 8 bytes as its input */
    _tile_loadconfig(&c);
}

static bool halves(const struct pass *s, int64_t block) { return s->rows - block * EDGE > 16; }

static char *packed_at(const struct pass *s, int64_t range, int64_t block)
{
    const int64_t steps = at_most(s->range, s->steps - range * s->range);
    return s->packed + (range * s->range * s->blocks + block * steps) * 2048;
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

/* Task: one block of tokens in one range of k. */
static void pack(void *arg, int task, int thread)
{
    const struct pass *s = arg;
    const int64_t range = task / s->blocks, block = task % s->blocks;
    const int64_t steps = at_most(s->range, s->steps - range * s->range);
    char *to = packed_at(s, range, block);
    for (int64_t i = 0; i < steps; i++, to += 2048)
        for (int64_t half = 0; half <= halves(s, block); half++) {
            const int64_t row = block * EDGE + half * 16;
            pack_tile(to + half * 1024, s->p, s->first + row, s->rows - row, (range * s->range + i) * EDGE);
        }
}

/* A piece of a panel: the rows of A for some k, and the piece to be fetched meanwhile. */
struct piece {
    const char *a, *ahead;
    int64_t stride, second; /* bytes between rows; from the first A tile to the second */
    int64_t steps, ahead_rows;
};

/* C += A B over the piece. wide: there is a second B tile. */
VEC void multiply(const struct piece *w, const char *b, const bool wide)
{
    const char *a = w->a, *ahead = w->ahead;
    for (int64_t i = 0; i < w->steps; i++, a += 64, b += 2048, ahead += 64) {
        _tile_loadd(4, a, w->stride);
        _tile_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (wide) {
            _tile_loadd(7, b + 1024, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        _tile_loadd(5, a + w->second, w->stride);
        _tile_dpbf16ps(2, 5, 6);
        if (wide) _tile_dpbf16ps(3, 5, 7);
        for (int64_t r = 0; r < w->ahead_rows; r++) _mm_prefetch(ahead + r * w->stride, _MM_HINT_T1);
    }
}

static void load_home(const char *home)
{
    _tile_loadd(0, home, 64);
    _tile_loadd(1, home + 1024, 64);
    _tile_loadd(2, home + 2048, 64);
    _tile_loadd(3, home + 3072, 64);
}

static void store_home(char *home)
{
    _tile_stored(0, home, 64);
    _tile_stored(1, home + 1024, 64);
    _tile_stored(2, home + 2048, 64);
    _tile_stored(3, home + 3072, 64);
}

static void zero_tiles(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

/* One C tile to its place in the output: outputs first ... of tokens token ... */
static void store_tile(const struct pass *s, const char *c, int64_t token, int64_t first)
{
    const struct product *p = s->p;
    const __mmask16 m = lanes16(p->w.rows - first);
    const __m512 bias = p->bias.data ? load16(p->bias.data, p->bias.dtype, first, m) : _mm512_setzero_ps();
    __m512i r[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) r[i] = _mm512_load_si512(c + i * 64);
    transpose16(r);
    for (int64_t i = 0; i < 16 && token + i < s->rows; i++) {
        void *row = dllm_at(p->out, dllm_row(p->out_rows, (int32_t)(s->first + token + i)));
        const __m512 sum = _mm512_castsi512_ps(r[i]);
        store16(row, p->out.dtype, first, m, p->bias.data ? _mm512_add_ps(sum, bias) : sum);
    }
}

static void store_block(const struct pass *s, const char *home, int64_t block, int64_t panel)
{
    for (int64_t a = 0; a < 2; a++)
        for (int64_t b = 0; b <= halves(s, block); b++)
            if (panel * EDGE + a * 16 < s->p->w.rows)
                store_tile(s, home + (a * 2 + b) * 1024, block * EDGE + b * 16, panel * EDGE + a * 16);
}

/* The last k of a panel's rows, filled up with zeros: a tile row is always read whole. */
static void copy_tail(const struct product *p, int64_t panel, int64_t width, char *to)
{
    const int64_t k = p->w.cols / EDGE * EDGE;
    const __mmask32 m = (1u << (p->w.cols - k)) - 1;
    for (int64_t r = 0; r < width; r++) {
        const uint16_t *row = dllm_at(p->w, panel * EDGE + r);
        _mm512_store_si512(to + r * 64, _mm512_maskz_loadu_epi16(m, row + k));
    }
}

/* Blocks b0 ... b1 of one panel over one range of k. homes: where their C tiles stay. next: the piece of weights used after this. */
static void run_panel(const struct pass *s, int64_t panel, int64_t range, int64_t b0, int64_t b1, char *homes, const char *next)
{
    const struct product *p = s->p;
    const int64_t width = at_most(EDGE, p->w.rows - panel * EDGE), stride = p->w.stride * 2;
    const int64_t begin = range * s->range, steps = at_most(s->range, s->steps - begin), blocks = b1 - b0;
    const bool last = begin + steps == s->steps, tail = last && p->w.cols % EDGE != 0, alone = s->range >= s->steps;
    char copy[EDGE * 64] __attribute__((aligned(64)));
    if (tail) copy_tail(p, panel, width, copy);
    struct piece piece = {.stride = stride, .second = width > 16 ? 16 * stride : 0, .steps = steps - tail};
    const struct piece end = {.a = copy, .ahead = copy, .stride = 64, .second = width > 16 ? 1024 : 0, .steps = tail};
    piece.a = (const char *)dllm_at(p->w, panel * EDGE) + begin * 64;
    configure(width);
    for (int64_t i = 0; i < blocks; i++) {
        char *home = alone ? homes : homes + i * HOME;
        const char *b = packed_at(s, range, b0 + i);
        const int64_t row = EDGE * i / blocks;
        piece.ahead = next ? next + row * stride : piece.a;
        piece.ahead_rows = next ? EDGE * (i + 1) / blocks - row : 0;
        if (range) load_home(home);
        else zero_tiles();
        if (halves(s, b0 + i)) {
            multiply(&piece, b, true);
            multiply(&end, b + piece.steps * 2048, true);
        } else {
            multiply(&piece, b, false);
            multiply(&end, b + piece.steps * 2048, false);
        }
        store_home(home);
        if (last) store_block(s, home, b0 + i, panel);
    }
}

/* Task: some panels and some blocks of tokens. */
static void run(void *arg, int task, int thread)
{
    const struct pass *s = arg;
    const int64_t p0 = task / s->row_tasks * s->panels_a_task, p1 = at_most(p0 + s->panels_a_task, s->panels);
    const int64_t b0 = task % s->row_tasks * s->blocks_a_task, b1 = at_most(b0 + s->blocks_a_task, s->blocks);
    const int64_t ranges = ceil_div(s->steps, s->range), full = s->p->w.rows / EDGE;
    char *homes = s->homes + thread * s->panels_a_task * s->blocks * HOME;
    for (int64_t range = 0; range < ranges; range++)
        for (int64_t panel = p0; panel < p1; panel++) {
            const bool turn = panel + 1 == p1;
            const int64_t then = turn ? p0 : panel + 1, k = (range + turn) * s->range * EDGE;
            const bool fetch = range + turn < ranges && then < full;
            const char *next = fetch ? (const char *)dllm_at(s->p->w, then * EDGE) + k * 2 : NULL;
            run_panel(s, panel, range, b0, b1, homes + (panel - p0) * (b1 - b0) * HOME, next);
        }
    _tile_release();
}

static int64_t larger_packing(int64_t rows, int64_t k) { return ceil_div(at_most(rows, MAX_ROWS), EDGE) * ceil_div(k, EDGE) * 2048; }

static int64_t homes_bytes(int threads, int64_t rows)
{
    return (int64_t)threads * PANELS * ceil_div(at_most(rows, MAX_ROWS), EDGE) * HOME;
}

size_t dllm_linear_amx_scratch(int threads, int64_t rows, int64_t k)
{
    return (size_t)(larger_packing(rows, k) + homes_bytes(threads, rows));
}

/* How the work is cut. None of it changes a result. */
static void plan(struct pass *s, int threads)
{
    s->steps = ceil_div(s->p->w.cols, EDGE);
    s->blocks = ceil_div(s->rows, EDGE);
    s->range = s->blocks > 4 ? A_STEPS : at_most(s->steps, B_BYTES / 2048 / s->blocks);
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
        struct pass s = {.p = p, .first = first, .rows = at_most(rows, p->in_rows.n - first), .packed = p->d->scratch};
        s.homes = s.packed + larger_packing(s.rows, k);
        plan(&s, threads);
        dllm_parallel(threads, (int)(s.blocks * ceil_div(s.steps, s.range)), pack, &s);
        dllm_parallel(threads, (int)(ceil_div(s.panels, s.panels_a_task) * s.row_tasks), run, &s);
    }
}
#endif
