/* Products of bfloat16 by AMX tiles, several times as fast as in vectors. A panel is in the order that the instruction
 * wants: 16 rows of a tile are 32 inputs of 16 outputs. Sums are float32; a row's do not depend on other rows. */
#pragma once
#include "amx.h"
#include "amx_blocks.h"
#include "weights.h"

/* Sums [rows][2 panels][16] of float32 that wait to be rounded and written to y. */
typedef struct {
  _Alignas(64) float sums[32 * 2 * PANEL];
  const float *bias;
  uint16_t *y;
  int64_t out, next, rows;
  int panels;
} Waiting;

/* Writes at most `count` more rows. */
INLINE void write_rows(Waiting *some, int64_t count) {
  for (; count > 0 && some->next < some->rows; count--, some->next++)
    write_row(some->sums + some->next * 2 * PANEL, some->bias, some->y + some->next * some->out, some->panels);
}

/* Up to 32 rows times one or two panels. While the tiles are busy, the sums in `before` are written, and for each input
 * tile some `lines` of the next weights are fetched into the second-level cache; the new sums wait in `now`. */
INLINE void two_by_two(int panels, const uint16_t *x, int64_t rows, const uint16_t *weights, int64_t in,
                       const char *next, int64_t lines, Waiting *now, Waiting *before) {
  const uint16_t *other = weights + PANEL * in, *below = x + 16 * in;
  zero_sums();
  for (int64_t at = 0; at < in; at += TILE_INPUTS) {
    _tile_loadd(4, x + at * 16, 64);
    _tile_loadd(6, weights + at * PANEL, 64);
    for (int64_t line = 0; line < lines; line++, next += 64) __builtin_prefetch(next, 0, 2);
    _tile_dpbf16ps(0, 4, 6);
    if (panels == 2) {
      _tile_loadd(7, other + at * PANEL, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (rows > 16) {
      _tile_loadd(5, below + at * 16, 64);
      _tile_dpbf16ps(2, 5, 6);
      if (panels == 2) _tile_dpbf16ps(3, 5, 7);
    }
    write_rows(before, 2);
  }
  write_rows(before, 32);
  _tile_stored(0, now->sums, 128);
  _tile_stored(1, now->sums + PANEL, 128);
  if (rows <= 16) return;
  _tile_stored(2, now->sums + 16 * 2 * PANEL, 128);
  _tile_stored(3, now->sums + 16 * 2 * PANEL + PANEL, 128);
}

/* Up to 16 rows times four panels: more streams of reads, because with few rows memory is the limit. A block is expanded
 * well before its tile is loaded, because a tile that was just stored is slow to load. */
INLINE void one_by_four(int bits, const uint16_t *x, int64_t rows, const uint8_t *from, const float *bias, uint16_t *y,
                        int64_t in, int64_t out) {
  int64_t size = block_size(bits), panel = in / TILE_INPUTS * size;
  _Alignas(64) uint16_t expanded[2][4][TILE_BYTES / sizeof(uint16_t)];
  zero_sums();
  if (bits != 16)
    for (int tile = 0; tile < 4; tile++) expand_block(from + tile * panel, bits, 4 * panel, expanded[0][tile]);
#define PANEL_OF(TILE, WEIGHTS)                                                                                        \
  _tile_loadd(WEIGHTS, bits == 16 ? (const void *)(from + TILE * panel) : expanded[turn][TILE], 64);                   \
  for (int line = 0; bits == 16 && line < TILE_BYTES; line += 64) __builtin_prefetch(next + TILE * panel + line);      \
  _tile_dpbf16ps(TILE, 4, WEIGHTS);
  for (int64_t at = 0; at < in; at += TILE_INPUTS, from += size) {
    const int turn = at / TILE_INPUTS & 1;
    const uint8_t *next = from + (ahead(at, in, 4) - at * PANEL) * (int64_t)sizeof(uint16_t);
    for (int tile = 0; bits != 16 && at + TILE_INPUTS < in && tile < 4; tile++)
      expand_block(from + size + tile * panel, bits, 4 * panel, expanded[!turn][tile]);
    _tile_loadd(4, x + at * 16, 64);
    PANEL_OF(0, 6)
    PANEL_OF(1, 7)
    PANEL_OF(2, 6)
    PANEL_OF(3, 7)
  }
  _Alignas(64) float sums[16 * 4 * PANEL];
  _tile_stored(0, sums, 256);
  _tile_stored(1, sums + PANEL, 256);
  _tile_stored(2, sums + 2 * PANEL, 256);
  _tile_stored(3, sums + 3 * PANEL, 256);
  for (int64_t row = 0; row < rows; row++)
    for (int64_t at = 0; at < 4 * PANEL; at += 2 * PANEL)
      write_row(sums + row * 4 * PANEL + at, bias ? bias + at : NULL, y + row * out + at, 2);
}

#define OF_BITS(BITS)                                                                                                  \
  static void one_by_four_##BITS(const uint16_t *x, int64_t rows, const uint8_t *from, const float *bias, uint16_t *y, \
                                 int64_t in, int64_t out) {                                                            \
    one_by_four(BITS, x, rows, from, bias, y, in, out);                                                                \
  }
OF_BITS(16)
OF_BITS(8)
OF_BITS(4)

/* Prepared rows times panels [first, end); in is a multiple of 32. */
static void multiply_tiles(const Weights *weights, const uint16_t *x, uint16_t *y, int64_t rows, int64_t first,
                           int64_t end) {
  int64_t in = weights->inputs, out = weights->outputs, bits = weights->bits, blocks = (rows + 31) / 32, shaped = 0;
  Waiting waiting[2];
  int turn = 0;
  waiting[0].next = waiting[0].rows = waiting[1].next = waiting[1].rows = 0;
  for (int64_t panel = first, panels; panel < end; panel += panels) {
    const float *bias = weights->bias ? weights->bias + panel * PANEL : NULL;
    const uint8_t *stored = (const uint8_t *)weights->panels + panel * (in / TILE_INPUTS) * block_size(bits);
    panels = rows <= 16 && panel + 4 <= end ? 4 : panel + 1 < end ? 2 : 1;
    if (panels == 4) {
      if (shaped != rows) shape_tiles(shaped = rows);
      (bits == 16  ? one_by_four_16
       : bits == 8 ? one_by_four_8
                   : one_by_four_4)(x, rows, stored, bias, y + panel * PANEL, in, out);
      continue;
    }
    const uint16_t *from = bits == 16 ? (const uint16_t *)stored : expand(weights, panel, panels);
    int64_t lines = bits == 16 ? (panels * TILE_BYTES / 64 + blocks - 1) / blocks : 0;
    const char *next = (const char *)(from + panels * PANEL * in);
    for (int64_t block = 0; block < blocks; block++, next += lines * 64 * (in / TILE_INPUTS)) {
      int64_t row = block * 32, count = rows - row < 32 ? rows - row : 32;
      if (count != shaped) shape_tiles(shaped = count);
      Waiting *now = waiting + turn, *before = waiting + (turn ^= 1);
      if (panels == 2)
        two_by_two(2, x + row * in, count, from, in, next, lines, now, before);
      else
        two_by_two(1, x + row * in, count, from, in, next, lines, now, before);
      now->bias = bias, now->y = y + row * out + panel * PANEL, now->out = out, now->next = 0, now->rows = count;
      now->panels = (int)panels;
    }
  }
  write_rows(waiting, 32);
  write_rows(waiting + 1, 32);
  _tile_release();
}
