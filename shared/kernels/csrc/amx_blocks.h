/* Weights in blocks by AMX tiles. bfloat16 holds the codes exactly, as it does x, so a product of both needs no
 * rounding of x; sums over a block and over blocks are float32. Few rows are computed in vectors, with the order of
 * additions that tiles have, so a row has the same bits in any company. */
#pragma once
#include "amx.h"

enum { SIDE = 16, GROUP = 8, MOST_ROWS = 256, FEW_ROWS = 2 };

static int64_t whole_tiles(int64_t rows) { return (rows + SIDE - 1) / SIDE * SIDE; }

/* A prepared x is [rows / 16][blocks][16 rows][32 inputs] of bfloat16, or [rows][in] of float32 if rows are few, and then
 * the sums of blocks [blocks][rows]. Its rows are padded to 16. */
static float *sums_of_blocks(const void *prepared, int64_t rows, int64_t in) {
  return (float *)((uint16_t *)prepared + whole_tiles(rows) * in);
}

static void prepare_block(const uint16_t *x, void *prepared, int64_t row, int64_t rows, int64_t in, int64_t at) {
  vec first = widen(x), second = widen(x + LANES);
  sums_of_blocks(prepared, rows, in)[at / BLOCK * whole_tiles(rows) + row] = sum_of(first + second);
  if (rows <= FEW_ROWS) {
    store_floats((float *)prepared + row * in + at, first);
    store_floats((float *)prepared + row * in + at + LANES, second);
  } else
    memcpy((uint16_t *)prepared + row / SIDE * SIDE * in + at * SIDE + row % SIDE * BLOCK, x, BLOCK * sizeof *x);
}

/* Where codes are as numbers: the lowest bits of a lane are a code, and those 16 bits higher the next input's. */
INLINE uvec code_pairs(const uint8_t *panel, int bits, int pair) {
  const int shifts = 16 / bits, word = pair / shifts;
  const uint8_t *at = panel + PANEL * 4 * (word + 1);
  if (pair % shifts == 0) __builtin_prefetch(at + PREFETCH_BYTES);
  return *(const loose_uvec *)at >> (pair % shifts * bits);
}

/* The lowest code of each lane. */
INLINE vec lowest_codes(uvec lanes, int bits) {
  if (bits == 8) return __builtin_convertvector(lanes & 0xff, vec);
  return _mm512_permutexvar_ps((__m512i)lanes, __builtin_convertvector(lane_numbers(), vec));
}

/* The codes of a block of 16 outputs as a tile: 16 pairs of inputs. */
INLINE void unpack(const uint8_t *panel, int bits, uvec *tile) {
  /* 0 to 15, twice, because a lookup takes the lowest five bits. */
  static const uint64_t numbers[] = {0x404040003f800000, 0x40e040c040a04080, 0x4130412041104100, 0x4170416041504140};
  const __m512i table = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)numbers));
#pragma GCC unroll 16
  for (int pair = 0; pair < SIDE; pair++) {
    uvec codes = code_pairs(panel, bits, pair);
    if (bits == 4)
      tile[pair] = (uvec)_mm512_permutexvar_epi16((__m512i)codes, table);
    else
      tile[pair] = (uvec)lowest_codes(codes, bits) >> 16 | (uvec)lowest_codes(codes >> 16, bits);
  }
}

/* sum + scales * dots + leasts * the sum of x, for a block of a row. */
INLINE vec add_block(vec sum, vec dots, vec scales, vec leasts, float sum_of_x) {
  return dots * scales + (leasts * sum_of_x + sum);
}

INLINE void few_rows_of_blocks(int bits, int rows, const Weights *weights, const void *prepared, uint16_t *y,
                               int64_t panel) {
  int64_t in = weights->in, size = PANEL * 4 * (bits + 1), blocks = in / BLOCK;
  const uint8_t *from = (const uint8_t *)weights->panels + panel * blocks * size;
  const float *x = prepared, *sums_of_x = sums_of_blocks(prepared, rows, in);
  vec sums[FEW_ROWS];
  for (int row = 0; row < rows; row++)
    sums[row] = weights->bias ? load_floats(weights->bias + panel * PANEL) : (vec){0};
  for (int64_t block = 0; block < blocks; block++, from += size, x += BLOCK, sums_of_x += SIDE) {
    vec even[FEW_ROWS] = {{0}}, odd[FEW_ROWS] = {{0}};
#pragma GCC unroll 16
    for (int pair = 0; pair < SIDE; pair++) {
      uvec codes = code_pairs(from, bits, pair);
      vec first = lowest_codes(codes, bits), second = lowest_codes(codes >> 16, bits);
#pragma GCC unroll 2
      for (int row = 0; row < rows; row++) {
        even[row] = first * x[row * in + 2 * pair] + even[row];
        odd[row] = second * x[row * in + 2 * pair + 1] + odd[row];
      }
    }
    vec scales = from_float16((const uint16_t *)from), leasts = from_float16((const uint16_t *)from + PANEL);
#pragma GCC unroll 2
    for (int row = 0; row < rows; row++)
      sums[row] = add_block(sums[row], even[row] + odd[row], scales, leasts, sums_of_x[row]);
  }
  for (int row = 0; row < rows; row++) narrow(y + row * weights->out + panel * PANEL, sums[row]);
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
      sum = add_block(sum, group->dots[side][block][row], group->scales[block], group->leasts[block],
                      x[block * stride + row]);
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

#define OF_BITS(BITS)                                                                                                  \
  static void few_rows_##BITS(const Weights *weights, const void *prepared, uint16_t *y, int64_t rows,                 \
                              int64_t panel) {                                                                         \
    if (rows == 1)                                                                                                     \
      few_rows_of_blocks(BITS, 1, weights, prepared, y, panel);                                                        \
    else                                                                                                               \
      few_rows_of_blocks(BITS, 2, weights, prepared, y, panel);                                                        \
  }                                                                                                                    \
  static void one_panel_##BITS(const Weights *weights, const void *prepared, uint16_t *y, int64_t first,               \
                               int64_t count, int64_t rows, int64_t panel) {                                           \
    one_panel(BITS, weights, prepared, y, first, count, rows, panel);                                                  \
  }
OF_BITS(4)
OF_BITS(8)

static void multiply_blocks_in_tiles(const Weights *weights, const void *prepared, uint16_t *y, int64_t rows,
                                     int64_t first, int64_t end) {
  for (int64_t panel = first; rows <= FEW_ROWS && panel < end; panel++)
    (weights->bits == 4 ? few_rows_4 : few_rows_8)(weights, prepared, y, rows, panel);
  if (rows <= FEW_ROWS) return;
  shape_tiles(rows < SIDE ? rows : 2 * SIDE);
  for (int64_t panel = first; panel < end; panel++)
    for (int64_t row = 0; row < rows; row += MOST_ROWS)
      (weights->bits == 4 ? one_panel_4 : one_panel_8)(weights, prepared, y, row,
                                                       rows - row < MOST_ROWS ? rows - row : MOST_ROWS, rows, panel);
  _tile_release();
}
