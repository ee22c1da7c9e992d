/* AMX tiles: eight registers of 16 rows of 64 bytes, and products of pairs of bfloat16 with sums in float32. */
#pragma once
#include <sys/syscall.h>
#include <unistd.h>

#include "simd.h"

enum { ASK_FOR_TILES = 0x1023, TILE_DATA = 18 };

static int has_tiles;

/* Linux gives a process its tiles only when it asks. */
__attribute__((constructor)) static void ask_for_tiles(void) {
  has_tiles = syscall(SYS_arch_prctl, ASK_FOR_TILES, TILE_DATA) == 0;
}

typedef struct {
  uint8_t palette, start, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} Shapes;

/* Tiles 0 to 3 are sums, 4 and 5 the left sides of a product, 6 and 7 the right ones. `rows`, those of the left sides
 * together, is at most 32. */
static void shape_tiles(int64_t rows) {
  /* Of up to 16 rows, tiles 2 and 3 are the sums of two more right sides. */
  int64_t first = rows < 16 ? rows : 16, second = rows > 16 ? rows - 16 : rows;
  const int64_t found[8] = {first, first, second, second, first, second, 16, 16};
  _Alignas(64) Shapes shapes = {.palette = 1};
  for (int tile = 0; tile < 8; tile++) shapes.rows[tile] = (uint8_t)found[tile], shapes.row_bytes[tile] = 64;
  _tile_loadconfig(&shapes);
}
