/* Products with weights in blocks (blocks.h), on processors without tiles.
 *
 * A row of x is rounded to 16 bits for each block, relative to the block's largest number, which keeps all bits of almost
 * every bfloat16 number. So the products of a block are exact sums of integers, and only the sums over blocks are
 * rounded, in a fixed order: the bits are the same in any company of rows and on every processor. */
#include <string.h>

#include "blocks.h"

enum { PAIRS = BLOCK / 2, TILE = LANES == 8 ? 4 : 8, STRIPS = 2 };

#define LARGEST 32767.0f
#define TINY 1e-30f /* smaller numbers are 0: the inverse of the smallest would be infinite */

/* A block of a row of x: the numbers, and what turns sums of their products into floats. */
typedef struct {
  int32_t pairs[PAIRS]; /* two numbers of 16 bits each */
  float scale, sum;     /* the sum of the rounded numbers, times scale */
} Block;

/* sums + the products of both halves of each lane. */
INLINE ivec add_products(ivec sums, uvec codes, int32_t pair) {
#ifdef __AVX512VNNI__
  return (ivec)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)codes, _mm512_set1_epi32(pair));
#elif LANES == 16
  return sums + (ivec)_mm512_madd_epi16((__m512i)codes, _mm512_set1_epi32(pair));
#elif LANES == 8
  return sums + (ivec)_mm256_madd_epi16((__m256i)codes, _mm256_set1_epi32(pair));
#else
  sums = sums + (ivec)(codes & 0xffff) * (int32_t)(int16_t)pair;
  return sums + (ivec)(codes >> 16) * (pair >> 16);
#endif
}

/* `rows` rows times `strips` strips of LANES outputs, both constants at each call; the first strip begins at `lane` of the
 * panel. x is [blocks][stride]: a block's rows lie side by side. Two strips share each load of a row's numbers, which
 * takes longer than a product. Sums over blocks stay in memory, so that the registers hold the sums of one block. */
INLINE void tile(int rows, int strips, int bits, const Block *x, const uint8_t *panel, int lane, const float *bias,
                 float (*sums)[STRIPS][LANES], uint16_t *y, int64_t blocks, int64_t stride, int64_t out) {
  const int words = bits, shifts = 16 / bits; /* words of a block; pairs in a word */
  const uint32_t mask = bits == 4 ? 0x000f000f : 0x00ff00ff;
  const int64_t bytes_per_block = PANEL * 4 * (words + 1);
  const int64_t lanes_apart = LANES == PANEL ? 0 : LANES, bytes_apart = LANES == PANEL ? blocks * bytes_per_block : 0;
#pragma GCC unroll 8
  for (int row = 0; row < rows; row++)
#pragma GCC unroll 2
    for (int strip = 0; strip < strips; strip++)
      store_floats(sums[row][strip], bias ? load_floats(bias + lane + strip * LANES) : (vec){0});
  for (int64_t block = 0; block < blocks; block++, x += stride, panel += bytes_per_block) {
    ivec dots[TILE][STRIPS];
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 2
      for (int strip = 0; strip < strips; strip++) dots[row][strip] = (ivec){0};
#pragma GCC unroll 8
    for (int word = 0; word < words; word++) {
      uvec codes[STRIPS];
#pragma GCC unroll 2
      for (int strip = 0; strip < strips; strip++) {
        const uint8_t *at = panel + strip * bytes_apart + PANEL * 4 * (word + 1) + (lane + strip * lanes_apart) * 4;
        codes[strip] = *(const loose_uvec *)at;
        __builtin_prefetch(at + PREFETCH_BYTES);
      }
#pragma GCC unroll 4
      for (int shift = 0; shift < shifts; shift++)
#pragma GCC unroll 8
        for (int row = 0; row < rows; row++)
#pragma GCC unroll 2
          for (int strip = 0; strip < strips; strip++)
            dots[row][strip] = add_products(dots[row][strip], codes[strip] >> (shift * bits) & mask,
                                            x[row].pairs[word * shifts + shift]);
    }
#pragma GCC unroll 2
    for (int strip = 0; strip < strips; strip++) {
      const uint16_t *numbers = (const uint16_t *)(panel + strip * bytes_apart) + lane + strip * lanes_apart;
      vec scales = from_float16(numbers), leasts = from_float16(numbers + PANEL);
#pragma GCC unroll 8
      for (int row = 0; row < rows; row++) {
        const Block *here = x + row;
        vec sum = leasts * here->sum + load_floats(sums[row][strip]);
        store_floats(sums[row][strip], __builtin_convertvector(dots[row][strip], vec) * (scales * here->scale) + sum);
      }
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < rows; row++)
#pragma GCC unroll 2
    for (int strip = 0; strip < strips; strip++)
      narrow(y + row * out + strip * LANES, load_floats(sums[row][strip]));
}

#define OF_BITS(ROWS, COUNT, BITS) tile(ROWS, COUNT, BITS, x, panel, lane, bias, sums, y, blocks, stride, out)
#define CASE(ROWS)                                                                                                     \
  case ROWS:                                                                                                           \
    if (strips == STRIPS)                                                                                              \
      bits == 4 ? OF_BITS(ROWS, STRIPS, 4) : OF_BITS(ROWS, STRIPS, 8);                                                 \
    else                                                                                                               \
      bits == 4 ? OF_BITS(ROWS, 1, 4) : OF_BITS(ROWS, 1, 8);                                                           \
    break;

static void some_rows(int64_t rows, int strips, int bits, const Block *x, const uint8_t *panel, int lane,
                      const float *bias, float (*sums)[STRIPS][LANES], uint16_t *y, int64_t blocks, int64_t stride,
                      int64_t out) {
  switch (rows) {
    CASE(1)
    CASE(2)
    CASE(3)
    CASE(4)
#if LANES != 8
    CASE(5)
    CASE(6)
    CASE(7)
    CASE(8)
#endif
  }
}

INLINE float float_of(uint16_t bfloat16) {
  union {
    uint32_t bits;
    float number;
  } wide = {(uint32_t)bfloat16 << 16};
  return wide.number;
}

/* The loops have no branches and no order that matters, so that the compiler makes vectors of them. */
static void round_block(const uint16_t *x, Block *block) {
  uint16_t highest = 0; /* numbers without a sign are in the order of their bits, and NaN comes last */
  for (int at = 0; at < BLOCK; at++) {
    uint16_t magnitude = x[at] & 0x7fff;
    highest = magnitude > highest ? magnitude : highest;
  }
  memset(block, 0, sizeof *block);
  if (highest >= 0x7f80) block->scale = block->sum = NAN; /* and so are all results of the row */
  float largest = float_of(highest), factor = LARGEST / largest;
  if (highest >= 0x7f80 || largest < TINY) return;
  int16_t numbers[BLOCK];
  int32_t sum = 0;
  for (int at = 0; at < BLOCK; at++) {
    int32_t number = (int32_t)rintf(float_of(x[at]) * factor);
    numbers[at] = (int16_t)number;
    sum += number;
  }
  memcpy(block->pairs, numbers, sizeof numbers);
  block->scale = largest / LARGEST;
  block->sum = block->scale * (float)sum;
}

HIDDEN int64_t block_bytes(int64_t rows, int64_t in) { return rows * (in / BLOCK) * (int64_t)sizeof(Block); }

HIDDEN void prepare_blocks(const uint16_t *x, void *prepared, int64_t rows, int64_t in, int64_t begin, int64_t end) {
  for (int64_t row = 0; row < rows; row++)
    for (int64_t at = begin; at < end; at += BLOCK)
      round_block(x + row * in + at, (Block *)prepared + at / BLOCK * rows + row);
}

HIDDEN void multiply_blocks(const Weights *weights, const void *prepared, uint16_t *y, int64_t rows, int64_t first,
                            int64_t end) {
  _Alignas(64) float sums[TILE][STRIPS][LANES];
  int64_t blocks = weights->inputs / BLOCK, out = weights->outputs, bits = weights->bits;
  for (int64_t output = first * PANEL, strips; output < end * PANEL; output += strips * LANES) {
    strips = end * PANEL - output < STRIPS * LANES ? 1 : STRIPS;
    const uint8_t *panel = (const uint8_t *)weights->panels + output / PANEL * blocks * block_size(bits);
    for (int64_t row = 0; row < rows; row += TILE)
      some_rows(rows - row < TILE ? rows - row : TILE, (int)strips, (int)bits, (const Block *)prepared + row, panel,
                output % PANEL, weights->bias ? weights->bias + output / PANEL * PANEL : NULL, sums,
                y + row * out + output, blocks, rows, out);
  }
}
