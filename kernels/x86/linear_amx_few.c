/* linear_amx_few.c: products of few rows on the AMX unit, where memory sets the pace.
 *
 * A strip of 16 weight rows is read where it lies, from end to end, which prefetchers understand, and up to six tiles of C, a
 * group, stay in the unit meanwhile. A second group of tokens finds the strip in L2, and fetches the next. Where packed x outgrows
 * L2, k is cut into ranges. */
#include "linear.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,amx-tile,amx-bf16,prefer-vector-width=512")
#include "linear_amx.h"

enum {
    EDGE = 16,                   /* rows of weights in a strip, tokens in a tile */
    STEP = 32,                   /* k in a step */
    WIDE = 6,                    /* tiles of C in the unit, beside one of A and one of B */
    STRIPS = AMX_OUTPUTS / EDGE, /* that have homes for C */
    PAIR = 2,                    /* strips are stored together */
    CHUNK = 16,                  /* steps that a task packs */
    PAGE = 64,                   /* steps: 4 KiB of a row of weights */
    L2_BYTES = 5 << 18           /* of packed x that stay in L2 */
};

/* One pass over the weights. */
struct pass {
    const struct amx_pass *a;
    int64_t tiles, groups; /* of tokens; group g has tiles [g * tiles / groups, (g + 1) * tiles / groups) */
    int64_t groups_a_task, group_tasks;
    int64_t steps, range, ranges; /* of k; steps of a range, and how many there are */
    int64_t strips, strips_a_task;
};

static int64_t begin_of(const struct pass *s, int64_t group) { return group * s->tiles / s->groups; }

static int64_t steps_of(const struct pass *s, int64_t range) { return at_most(s->range, s->steps - range * s->range); }

/* Packed x is [ranges][groups][steps of the range][tiles of the group][AMX_TILE]. */
static char *packed_at(const struct pass *s, int64_t range, int64_t group)
{
    return s->a->packed + (range * s->range * s->tiles + begin_of(s, group) * steps_of(s, range)) * AMX_TILE;
}

/* Task: some steps of one tile of tokens. */
static void pack(void *arg, int task, int thread)
{
    const struct pass *s = arg;
    const int64_t tile = task % s->tiles, from = task / s->tiles * CHUNK, to = at_most(from + CHUNK, s->steps);
    int64_t group = 0;
    while (begin_of(s, group + 1) <= tile) group++;
    const int64_t begin = begin_of(s, group), width = begin_of(s, group + 1) - begin;
    for (int64_t i = from; i < to; i++) {
        char *step = packed_at(s, i / s->range, group) + i % s->range * width * AMX_TILE;
        pack_tile(step + (tile - begin) * AMX_TILE, s->a->p, s->a->first + tile * EDGE, s->a->rows - tile * EDGE, i * STEP);
    }
}

/* Tiles are named by constants. */
#define EACH_TILE(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)

/* C += A B over some steps, for `width` tiles of tokens. */
VEC void multiply(const char *a, int64_t stride, const char *b, int64_t steps, struct ahead ahead, const int width)
{
#define MEET(tile)                                                                                                                 \
    if (width > tile) {                                                                                                            \
        _tile_loadd(7, b + tile * AMX_TILE, 64);                                                                                   \
        _tile_dpbf16ps(tile, 6, 7);                                                                                                \
    }
    for (int64_t i = 0; i < steps; i++, a += 64, b += width * AMX_TILE, ahead.w += 64) {
        _tile_loadd(6, a, stride);
        EACH_TILE(MEET)
        for (int64_t r = 0; r < ahead.rows; r++) _mm_prefetch(ahead.w + r * ahead.stride, _MM_HINT_T1);
    }
}

/* The tiles of C begin with zeros, or with what they left at home. */
VEC void begin_sums(const char *home, bool fresh, const int width)
{
#define BEGIN(tile)                                                                                                                \
    if (width > tile) {                                                                                                            \
        if (fresh) _tile_zero(tile);                                                                                               \
        else _tile_loadd(tile, home + tile * AMX_TILE, 64);                                                                        \
    }
    EACH_TILE(BEGIN)
}

VEC void end_sums(char *home, const int width)
{
#define END(tile)                                                                                                                  \
    if (width > tile) _tile_stored(tile, home + tile * AMX_TILE, 64);
    EACH_TILE(END)
}

/* A step of a strip that has no 16 rows or no 32 k, with zeros for what is not there. */
static void copy_step(char *to, const dllm_mat *w, int64_t strip, int64_t k)
{
    const int64_t rows = w->rows - strip * EDGE, left = w->cols - k;
    const __mmask32 m = left >= 32 ? ~0u : (1u << left) - 1;
    for (int64_t r = 0; r < EDGE; r++, to += 64)
        _mm512_store_si512(to, r < rows ? _mm512_maskz_loadu_epi16(m, (const uint16_t *)dllm_at(*w, strip * EDGE + r) + k)
                                        : _mm512_setzero_si512());
    __asm__ volatile("" : : "r"(to) : "memory"); /* tile loads do not tell the compiler what they read */
}

/* A strip over a range for one group of tokens, whose sums are at home before and after. */
VEC void run_group(const struct pass *s, int64_t strip, int64_t range, const char *b, char *home, struct ahead ahead,
                   const int width)
{
    const dllm_mat *w = &s->a->p->w;
    const int64_t from = range * s->range, steps = steps_of(s, range);
    const int64_t whole = (strip + 1) * EDGE <= w->rows ? at_most(steps, w->cols / STEP - from) : 0;
    begin_sums(home, range == 0, width);
    multiply((const char *)dllm_at(*w, strip * EDGE) + from * 64, w->stride * 2, b, whole, ahead, width);
    for (int64_t i = whole; i < steps; i++) {
        char step[AMX_TILE] __attribute__((aligned(64)));
        copy_step(step, w, strip, (from + i) * STEP);
        multiply(step, 64, b + i * width * AMX_TILE, 1, (struct ahead){ 0 }, width);
    }
    end_sums(home, width);
}

static void run_strip(const struct pass *s, int64_t strip, int64_t range, int64_t group, char *home, struct ahead ahead)
{
    const char *b = packed_at(s, range, group);
    switch (begin_of(s, group + 1) - begin_of(s, group)) {
#define WIDTH(n)                                                                                                                   \
    case n:                                                                                                                        \
        run_group(s, strip, range, b, home, ahead, n);                                                                             \
        break;
        WIDTH(1) WIDTH(2) WIDTH(3) WIDTH(4) WIDTH(5) WIDTH(6)
#undef WIDTH
    }
}

/* The part of the next strip that comes to L2 with a group: the first group reads its own from memory, and leaves that alone. */
static struct ahead look(const struct pass *s, int64_t strip, int64_t range, int64_t at, int64_t groups)
{
    const dllm_mat *w = &s->a->p->w;
    if (at == 0 || range >= s->ranges || (strip + 1) * EDGE > w->rows) return (struct ahead){ .w = w->data };
    const int64_t row = EDGE * at / groups, rows = EDGE * (at + 1) / groups - row;
    return (struct ahead){ (const char *)dllm_at(*w, strip * EDGE + row) + range * s->range * 64, w->stride * 2, rows };
}

/* The sums of a strip and of the one before it, if it is the second of a pair, or the last. */
static void store_strips(const struct pass *s, int64_t s0, int64_t strip, int64_t s1, int64_t g0, int64_t g1, const char *home,
                         float *sunk)
{
    const int64_t second = (strip - s0) % PAIR, hop = s->tiles * AMX_TILE;
    if (!second && strip + 1 < s1) return;
    const char *first = home - second * hop;
    for (int64_t tile = begin_of(s, g0); tile < begin_of(s, g1); tile++)
        store_pair(s->a, first + tile * AMX_TILE, first + hop + tile * AMX_TILE, tile * EDGE, (strip - second) * EDGE, sunk);
}

/* Up to STRIPS strips, some groups of tokens. */
static void run_strips(const struct pass *s, int64_t s0, int64_t s1, int64_t g0, int64_t g1, char *homes, float *sunk)
{
    for (int64_t range = 0; range < s->ranges; range++) {
        for (int64_t strip = s0; strip < s1; strip++) {
            const bool turn = strip + 1 == s1 && range + 1 < s->ranges;
            char *home = homes + (strip - s0) % (s->ranges > 1 ? STRIPS : PAIR) * s->tiles * AMX_TILE;
            for (int64_t g = g0; g < g1; g++) {
                const struct ahead next = look(s, turn ? s0 : strip + 1, range + turn, g - g0, g1 - g0);
                run_strip(s, strip, range, g, home + begin_of(s, g) * AMX_TILE, next);
            }
            if (range + 1 == s->ranges) store_strips(s, s0, strip, s1, g0, g1, home, sunk);
        }
    }
}

/* Task: some strips and some groups of tokens. */
static void run(void *arg, int task, int thread)
{
    const struct pass *s = arg;
    const struct sink *sink = s->a->p->sink;
    const int64_t s0 = task / s->group_tasks * s->strips_a_task, s1 = at_most(s0 + s->strips_a_task, s->strips);
    const int64_t g0 = task % s->group_tasks * s->groups_a_task, g1 = at_most(g0 + s->groups_a_task, s->groups);
    char *homes = s->a->homes + thread * STRIPS * s->tiles * AMX_TILE;
    float *sunk = sink ? dllm_sink_space(sink, thread, s->a->rows) : NULL;
    configure_tiles();
    for (int64_t strip = s0; strip < s1; strip += STRIPS) run_strips(s, strip, at_most(strip + STRIPS, s1), g0, g1, homes, sunk);
    _tile_release();
    if (sink) sink->take(sink, thread, sunk, s->a->first, s->a->rows, s0 * EDGE, at_most(s1 * EDGE, s->a->p->w.rows) - s0 * EDGE);
}

/* Steps whose packed x stays in L2. Of rows that are not read to their ends whole pages are, since prefetchers stop there. */
static int64_t range_of(int64_t steps, int64_t tiles)
{
    const int64_t range = ceil_div(steps, ceil_div(tiles * steps * AMX_TILE, L2_BYTES));
    return range < steps && range > PAGE ? range / PAGE * PAGE : range;
}

/* How the work is cut. None of it changes a result. */
static void plan(struct pass *s)
{
    const struct sink *sink = s->a->p->sink;
    const dllm_mat *w = &s->a->p->w;
    const int threads = s->a->threads;
    s->tiles = ceil_div(s->a->rows, EDGE);
    s->groups = ceil_div(s->tiles, WIDE);
    s->steps = ceil_div(w->cols, STEP);
    s->range = range_of(s->steps, s->tiles);
    s->ranges = ceil_div(s->steps, s->range);
    s->strips = ceil_div(w->rows, EDGE);
    s->strips_a_task = sink ? sink->columns / EDGE : at_most(STRIPS, ceil_div(s->strips, threads * 4 * PAIR) * PAIR);
    const int64_t columns = ceil_div(s->strips, s->strips_a_task);
    s->groups_a_task = blocks_of_a_task(s->a->p, s->groups, columns, threads);
    s->group_tasks = ceil_div(s->groups, s->groups_a_task);
}

void dllm_linear_amx_few(const struct amx_pass *a)
{
    struct pass s = { .a = a };
    plan(&s);
    dllm_parallel(a->threads, (int)(s.tiles * ceil_div(s.steps, CHUNK)), pack, &s);
    dllm_parallel(a->threads, (int)(ceil_div(s.strips, s.strips_a_task) * s.group_tasks), run, &s);
}
#endif
