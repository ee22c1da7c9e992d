/* Products of bfloat16 by AMX tiles, several times as fast as in vectors. A panel is in the order that the instruction
 * wants: 16 rows of a tile are 32 inputs of 16 outputs. Sums are float32; a row's do not depend on other rows. */
#pragma once
#include <string.h>

#include "amx.h"
#include "weights.h"

enum { TILE_INPUTS = 32, TILE_BYTES = 1024 };

/* Writes a tile of sums [rows][16]. */
static void narrow_sums(const float *sums, const float *bias, uint16_t *y, int64_t rows, int64_t out) {
  for (int64_t row = 0; row < rows; row++) {
    vec values = load_floats(sums + row * PANEL);
    narrow(y + row * out, bias ? values + load_floats(bias) : values);
  }
}

/* Prepares inputs [at, at + 32) of some rows: [rows / 16][in / 32][16 rows][32 inputs], so a tile lies in one piece. */
static void prepare_tiles(const uint16_t *x, uint16_t *prepared, int64_t rows, int64_t in, int64_t at) {
  for (int64_t row = 0; row < rows; row++)
    memcpy(prepared + row / 16 * 16 * in + at * 16 + row % 16 * TILE_INPUTS, x + row * in + at, 2 * TILE_INPUTS);
}

/* Up to 32 rows times one or two panels. */
INLINE void two_by_two(int panels, int prefetch, const uint16_t *x, int64_t rows, const uint16_t *weights,
                       const float *bias, uint16_t *y, int64_t in, int64_t out) {
  int64_t first = rows < 16 ? rows : 16, second = rows - first;
  const uint16_t *other = weights + PANEL * in, *below = x + 16 * in;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t at = 0; at < in; at += TILE_INPUTS) {
    _tile_loadd(4, x + at * 16, 64);
    _tile_loadd(6, weights + at * PANEL, 64);
    const char *next = (const char *)(weights + ahead(at, in, panels));
    for (int line = 0; prefetch && line < TILE_BYTES; line += 64) __builtin_prefetch(next + line);
    _tile_dpbf16ps(0, 4, 6);
    if (panels == 2) {
      _tile_loadd(7, other + at * PANEL, 64);
      next += PANEL * in * (int64_t)sizeof *weights;
      for (int line = 0; prefetch && line < TILE_BYTES; line += 64) __builtin_prefetch(next + line);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (second) {
      _tile_loadd(5, below + at * 16, 64);
      _tile_dpbf16ps(2, 5, 6);
      if (panels == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _Alignas(64) float sums[4][256];
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
  for (int panel = 0; panel < panels; panel++) {
    const float *here = bias ? bias + panel * PANEL : NULL;
    narrow_sums(sums[panel], here, y + panel * PANEL, first, out);
    narrow_sums(sums[2 + panel], here, y + 16 * out + panel * PANEL, second, out);
  }
}

/* Up to 16 rows times four panels: more streams of reads, because with few rows memory is the limit. */
static void one_by_four(const uint16_t *x, int64_t rows, const uint16_t *weights, const float *bias, uint16_t *y,
                        int64_t in, int64_t out) {
  int64_t panel = PANEL * in;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
#define PANEL_OF(TILE, WEIGHTS)                                                                                        \
  _tile_loadd(WEIGHTS, weights + TILE * panel + at * PANEL, 64);                                                       \
  for (int line = 0; line < TILE_BYTES; line += 64) __builtin_prefetch(next + TILE * panel * 2 + line);                \
  _tile_dpbf16ps(TILE, 4, WEIGHTS);
  for (int64_t at = 0; at < in; at += TILE_INPUTS) {
    const char *next = (const char *)(weights + ahead(at, in, 4));
    _tile_loadd(4, x + at * 16, 64);
    PANEL_OF(0, 6)
    PANEL_OF(1, 7)
    PANEL_OF(2, 6)
    PANEL_OF(3, 7)
  }
  _Alignas(64) float sums[4][256];
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
  for (int i = 0; i < 4; i++) narrow_sums(sums[i], bias ? bias + i * PANEL : NULL, y + i * PANEL, rows, out);
}

/* Prepared rows times panels [first, end); in is a multiple of 32. */
static void multiply_tiles(const Weights *weights, const uint16_t *x, uint16_t *y, int64_t rows, int64_t first,
                           int64_t end) {
  int64_t in = weights->in, out = weights->out, shaped = 0;
  for (int64_t panel = first, panels; panel < end; panel += panels) {
    panels = rows <= 16 && panel + 4 <= end ? 4 : 2;
    const uint16_t *from = (const uint16_t *)weights->panels + panel * PANEL * in;
    const float *bias = weights->bias ? weights->bias + panel * PANEL : NULL;
    for (int64_t row = 0; row < rows; row += 32) {
      int64_t count = rows - row < 32 ? rows - row : 32;
      if (count != shaped) shape_tiles(count);
      shaped = count;
      if (panels == 4)
        one_by_four(x, count, from, bias, y + panel * PANEL, in, out);
      else if (panel + 1 < end)
        two_by_two(2, row == 0, x + row * in, count, from, bias, y + row * out + panel * PANEL, in, out);
      else
        two_by_two(1, row == 0, x + row * in, count, from, bias, y + row * out + panel * PANEL, in, out);
    }
  }
  _tile_release();
}
