/* tiles.h: the AMX unit as everything here uses it: eight tiles of 16 rows x 64 bytes. Include under the AMX target. */
#ifndef DLLM_X86_TILES_H
#define DLLM_X86_TILES_H
#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { HOME = 4096 }; /* bytes of four tiles of sums where they stay outside the unit */

static inline void configure_tiles(void)
{
    static const struct __attribute__((packed)) {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } whole = { .palette = 1, .bytes = { 64, 64, 64, 64, 64, 64, 64, 64 }, .rows = { 16, 16, 16, 16, 16, 16, 16, 16 } };
    _tile_loadconfig(&whole);
}

/* Tiles 0 to 3 of one block go home and those of the next come, one by one, so that the unit never waits for all of them. */
static inline __attribute__((always_inline)) void exchange_sums(char *done, const char *next, const bool leave, const bool come)
{
#define EXCHANGE(tile)                                                                                                             \
    if (leave) _tile_stored(tile, done + tile * 1024, 64);                                                                         \
    if (come) _tile_loadd(tile, next + tile * 1024, 64);                                                                           \
    else _tile_zero(tile)
    EXCHANGE(0);
    EXCHANGE(1);
    EXCHANGE(2);
    EXCHANGE(3);
#undef EXCHANGE
}

/* done NULL: there is none. fresh: the next begins with zeros. */
static inline void turn_sums(char *done, const char *next, bool fresh)
{
    if (done && fresh) exchange_sums(done, next, true, false);
    else if (done) exchange_sums(done, next, true, true);
    else if (fresh) exchange_sums(done, next, false, false);
    else exchange_sums(done, next, false, true);
}
#endif
