/* Weights in blocks by AMX tiles. bfloat16 holds the codes exactly, as it does x, so a product of both needs no
 * rounding of x; the sums of a block are float32. A row's sums do not depend on other rows. */
#pragma once
#include "amx.h"

enum { SIDE = 16, MOST_ROWS = 256, GROUP = 8 };

static int64_t whole_tiles(int64_t rows) { return (rows + SIDE - 1) / SIDE * SIDE; }

/* A prepared x is [rows / 16][blocks][16 rows][32 inputs] of bfloat16, and then [blocks][rows]: the sums of blocks. */
static float *sums_of_blocks(const void *prepared, int64_t rows, int64_t in) {
  return (float *)((uint16_t *)prepared + whole_tiles(rows) * in);
}

static void prepare_block(const uint16_t *x, void *prepared, int64_t row, int64_t rows, int64_t in, int64_t at) {
  memcpy((uint16_t *)prepared + row / SIDE * SIDE * in + at * SIDE + row % SIDE * BLOCK, x, BLOCK * sizeof *x);
  sums_of_blocks(prepared, rows, in)[at / BLOCK * whole_tiles(rows) + row] = sum_of(widen(x) + widen(x + LANES));
}

/* The codes of a block of 16 outputs as a tile: 16 pairs of inputs. */
INLINE void unpack(const uint8_t *panel, int bits, uvec *tile) {
  /* 0 to 15, twice, because a lookup takes the lowest five bits. */
  static const uint64_t numbers[] = {0x404040003f800000, 0x40e040c040a04080, 0x4130412041104100, 0x4170416041504140};
  const __m512i table = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)numbers));
  const int words = bits, shifts = 16 / bits;
#pragma GCC unroll 8
  for (int word = 0; word < words; word++) {
    const uint8_t *at = panel + PANEL * 4 * (word + 1);
    uvec codes = *(const loose_uvec *)at;
    __builtin_prefetch(at + PREFETCH_BYTES);
#pragma GCC unroll 4
    for (int shift = 0; shift < shifts; shift++) {
      uvec pair = codes >> (shift * bits);
      if (bits == 4)
        tile[word * shifts + shift] = (uvec)_mm512_permutexvar_epi16((__m512i)pair, table);
      else
        tile[word * shifts + shift] = (uvec)__builtin_convertvector(pair & 0xff, vec) >> 16 |
                                      (uvec)__builtin_convertvector(pair >> 16 & 0xff, vec);
    }
  }
}

/* Some blocks of a panel. Their steps are done for all of them before the next step, because a tile that was just
 * stored is slow to load. */
typedef struct {
  uvec codes[GROUP][SIDE];
  vec scales[GROUP], leasts[GROUP], dots[2][GROUP][SIDE];
} Group;

/* sums [rows] += scales * dots + leasts * the sum of x, block by block. */
INLINE void add_blocks(vec *sums, const Group *group, int side, int64_t blocks, const float *x, int64_t stride,
                       int64_t rows) {
  for (int64_t row = 0; row < rows; row++) {
    vec sum = sums[row];
    for (int64_t block = 0; block < blocks; block++)
      sum = group->dots[side][block][row] * group->scales[block] + (group->leasts[block] * x[block * stride + row] + sum);
    sums[row] = sum;
  }
}

/* Rows [first, first + count), at most MOST_ROWS, times a panel. */
INLINE void one_panel(int bits, const Weights *weights, const void *prepared, uint16_t *y, int64_t first, int64_t count,
                      int64_t rows, int64_t panel) {
  int64_t in = weights->in, size = PANEL * 4 * (bits + 1), blocks = in / BLOCK, stride = whole_tiles(rows);
  const uint8_t *from = (const uint8_t *)weights->panels + panel * blocks * size;
  const uint16_t *x = (const uint16_t *)prepared + first * in;
  const float *sums_of_x = sums_of_blocks(prepared, rows, in) + first;
  const vec begin = weights->bias ? load_floats(weights->bias + panel * PANEL) : (vec){0};
  vec sums[MOST_ROWS];
  Group group;
  for (int64_t row = 0; row < count; row++) sums[row] = begin;
  for (int64_t block = 0; block < blocks; block += GROUP) {
    int64_t some = blocks - block < GROUP ? blocks - block : GROUP;
    for (int64_t i = 0; i < some; i++, from += size) {
      unpack(from, bits, group.codes[i]);
      group.scales[i] = from_float16((const uint16_t *)from);
      group.leasts[i] = from_float16((const uint16_t *)from + PANEL);
    }
    for (int64_t row = 0; row < count; row += 2 * SIDE) {
      int64_t left = count - row, upper = left < SIDE ? left : SIDE, lower = left < 2 * SIDE ? left - SIDE : SIDE;
      const uint16_t *here = x + row * in + block * SIDE * BLOCK;
      const float *sums_here = sums_of_x + block * stride + row;
      for (int64_t i = 0; i < some; i++, here += SIDE * BLOCK) {
        _tile_loadd(6, group.codes[i], 64);
        _tile_loadd(4, here, 64);
        _tile_zero(0);
        _tile_dpbf16ps(0, 4, 6);
        _tile_stored(0, group.dots[0][i], 64);
        if (lower <= 0) continue;
        _tile_loadd(5, here + SIDE * in, 64);
        _tile_zero(2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_stored(2, group.dots[1][i], 64);
      }
      add_blocks(sums + row, &group, 0, some, sums_here, stride, upper);
      add_blocks(sums + row + SIDE, &group, 1, some, sums_here + SIDE, stride, lower);
    }
  }
  for (int64_t row = 0; row < count; row++) narrow(y + (first + row) * weights->out + panel * PANEL, sums[row]);
}

static void one_panel_4(const Weights *weights, const void *prepared, uint16_t *y, int64_t first, int64_t count,
                        int64_t rows, int64_t panel) {
  one_panel(4, weights, prepared, y, first, count, rows, panel);
}

static void one_panel_8(const Weights *weights, const void *prepared, uint16_t *y, int64_t first, int64_t count,
                        int64_t rows, int64_t panel) {
  one_panel(8, weights, prepared, y, first, count, rows, panel);
}

static void multiply_blocks_in_tiles(const Weights *weights, const void *prepared, uint16_t *y, int64_t rows,
                                     int64_t first, int64_t end) {
  shape_tiles(rows < SIDE ? rows : 2 * SIDE);
  for (int64_t panel = first; panel < end; panel++)
    for (int64_t row = 0; row < rows; row += MOST_ROWS)
      (weights->bits == 4 ? one_panel_4 : one_panel_8)(weights, prepared, y, row,
                                                       rows - row < MOST_ROWS ? rows - row : MOST_ROWS, rows, panel);
  _tile_release();
}
