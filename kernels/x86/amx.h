/* amx.h: the tiles of the AMX unit as matrix products use them: eight of 16 rows of 64 bytes, the first four for sums. For files
 * whose target has amx-tile; include after the pragma. */
#ifndef DLLM_AMX_H
#define DLLM_AMX_H
#include "vec512.h"

enum { HOME = 4096 }; /* bytes of the four tiles of sums where they stay outside the unit */

static inline void configure(void)
{
    static const struct __attribute__((packed)) {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } whole = { .palette = 1, .bytes = { 64, 64, 64, 64, 64, 64, 64, 64 }, .rows = { 16, 16, 16, 16, 16, 16, 16, 16 } };
    _tile_loadconfig(&whole);
}

/* C tiles of one block go home and those of the next come, one by one, so that the unit never waits for all of them. */
VEC void exchange(char *done, const char *next, const bool leave, const bool come)
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
static inline void turn(char *done, char *next, bool fresh)
{
    if (done && fresh) exchange(done, next, true, false);
    else if (done) exchange(done, next, true, true);
    else if (fresh) exchange(done, next, false, false);
    else exchange(done, next, false, true);
}
#endif
