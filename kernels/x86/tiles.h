/* tiles.h: the AMX unit as everything here uses it: eight tiles of 16 rows x 64 bytes. Include under the AMX target. */
#ifndef DLLM_X86_TILES_H
#define DLLM_X86_TILES_H
#include <immintrin.h>
#include <stdint.h>

static inline void configure_tiles(void)
{
    static const struct __attribute__((packed)) {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } whole = { .palette = 1, .bytes = { 64, 64, 64, 64, 64, 64, 64, 64 }, .rows = { 16, 16, 16, 16, 16, 16, 16, 16 } };
    _tile_loadconfig(&whole);
}
#endif
