/* AMX tiles: eight registers of 16 rows of 64 bytes, and products of pairs of bfloat16 with sums in float32. */
#pragma once
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "simd.h"

enum { TILE_INPUTS = 32, TILE_BYTES = 1024, ASK_FOR_TILES = 0x1023, TILE_DATA = 18 };

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

INLINE void zero_sums(void) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

/* Prepares inputs [at, at + 32) of some rows: [rows / 16][in / 32][16 rows][32 inputs], so a tile lies in one piece. */
INLINE void prepare_tiles(const uint16_t *x, uint16_t *prepared, int64_t rows, int64_t in, int64_t at) {
  for (int64_t row = 0; row < rows; row++)
    memcpy(prepared + row / 16 * 16 * in + at * 16 + row % 16 * TILE_INPUTS, x + row * in + at, 2 * TILE_INPUTS);
}

/* Rounds the sums [2 panels][16] of a row and writes one or two panels of y. */
INLINE void write_row(const float *sums, const float *bias, uint16_t *y, int panels) {
  vec first = load_floats(sums), second = load_floats(sums + PANEL);
  if (bias) first = first + load_floats(bias);
  if (bias && panels == 2) second = second + load_floats(bias + PANEL);
  if (panels == 2)
    _mm512_storeu_si512(y, (__m512i)_mm512_cvtne2ps_pbh(second, first));
  else
    _mm256_storeu_si256((__m256i_u *)y, (__m256i)_mm512_cvtneps_pbh(first));
}
