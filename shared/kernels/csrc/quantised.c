/* quantised_linear: y = x W^T + b in bfloat16, with weights of 4 or 8 bits in blocks of 32 inputs, as in GGUF files.
 *
 * A weight is scale * code + least, with an unsigned code and two float16 numbers for each block and output: Q4_1 is that
 * form, Q4_0 has least = -8 scale, Q8_0 least = -128 scale. A row of x is rounded to 16 bits for each block, relative to
 * the block's largest number, which keeps all bits of almost every bfloat16 number. So the products of a block are exact
 * sums of integers, and only the sums over blocks are rounded, in a fixed order: the bits are the same in any company of
 * rows and on every processor.
 *
 * Layout. A panel holds the weights of 16 outputs: [in / 32][16 scales, 16 leasts, words of 16 outputs]. A 32-bit word
 * holds 8 codes of 4 bits or 4 codes of 8 bits of one output. A shift and a mask separate two codes, 16 bits apart: the
 * two inputs that one instruction multiplies and adds. */
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "simd.h"
#include "weights.h"

enum { BLOCK = 32, PAIRS = BLOCK / 2, TILE = LANES == 8 ? 4 : 8, VECTORS = PANEL / LANES, PREFETCH_BYTES = 4096 };

#define LARGEST 32767.0f
#define TINY 1e-30f /* smaller numbers are 0: the inverse of the smallest would be infinite */

/* A block of a row of x: the numbers, and what turns sums of their products into floats. */
typedef struct {
  int32_t pairs[PAIRS]; /* two numbers of 16 bits each */
  float scale, sum;     /* the sum of the rounded numbers, times scale */
} Block;

/* LANES numbers of float16 to float32. */
INLINE vec from_float16(const uint16_t *values) {
#if LANES == 16
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)values));
#elif LANES == 8
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)values));
#elif defined(__aarch64__)
  return __builtin_convertvector(*(const __fp16 __attribute__((vector_size(8), aligned(2), may_alias)) *)values, vec);
#endif
}

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

/* `rows` rows, a constant at each call, times LANES outputs, of which the panel's first is `lane`. x is
 * [blocks][stride]: a block's rows lie side by side. */
INLINE void tile(int rows, int bits, const Block *x, const uint8_t *panel, int lane, const float *bias, uint16_t *y,
                 int64_t blocks, int64_t stride, int64_t out) {
  const int words = bits, shifts = 16 / bits; /* words of a block; pairs in a word */
  const uint32_t mask = bits == 4 ? 0x000f000f : 0x00ff00ff;
  vec sums[TILE];
#pragma GCC unroll 8
  for (int row = 0; row < rows; row++) sums[row] = bias ? load_floats(bias + lane) : (vec){0};
  for (int64_t block = 0; block < blocks; block++, x += stride, panel += PANEL * 4 * (words + 1)) {
    ivec dots[TILE];
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++) dots[row] = (ivec){0};
#pragma GCC unroll 8
    for (int word = 0; word < words; word++) {
      const uint8_t *at = panel + PANEL * 4 * (word + 1) + lane * 4;
      uvec codes = *(const loose_uvec *)at;
      __builtin_prefetch(at + PREFETCH_BYTES);
#pragma GCC unroll 4
      for (int shift = 0; shift < shifts; shift++)
#pragma GCC unroll 8
        for (int row = 0; row < rows; row++)
          dots[row] = add_products(dots[row], codes >> (shift * bits) & mask,
                                   x[row].pairs[word * shifts + shift]);
    }
    vec scales = from_float16((const uint16_t *)panel + lane);
    vec leasts = from_float16((const uint16_t *)panel + PANEL + lane);
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++) {
      const Block *here = x + row;
      sums[row] = leasts * here->sum + sums[row];
      sums[row] = __builtin_convertvector(dots[row], vec) * (scales * here->scale) + sums[row];
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < rows; row++) narrow(y + row * out, sums[row]);
}

#define CASE(ROWS)                                                                                                     \
  case ROWS:                                                                                                           \
    if (bits == 4)                                                                                                     \
      tile(ROWS, 4, x, panel, lane, bias, y, blocks, stride, out);                                                     \
    else                                                                                                               \
      tile(ROWS, 8, x, panel, lane, bias, y, blocks, stride, out);                                                     \
    break;

static void some_rows(int64_t rows, int bits, const Block *x, const uint8_t *panel, int lane, const float *bias,
                      uint16_t *y, int64_t blocks, int64_t stride, int64_t out) {
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

static void round_block(const uint16_t *x, Block *block) {
  float values[BLOCK], largest = 0;
  int finite = 1;
  for (int at = 0; at < BLOCK; at += LANES) store_floats(values + at, widen(x + at));
  for (int at = 0; at < BLOCK; at++) {
    largest = fabsf(values[at]) > largest ? fabsf(values[at]) : largest;
    finite &= fabsf(values[at]) < INFINITY;
  }
  memset(block, 0, sizeof *block);
  if (!finite) block->scale = block->sum = NAN; /* and so are all results of the row */
  if (!finite || largest < TINY) return;
  int32_t sum = 0;
  for (int pair = 0; pair < PAIRS; pair++) {
    int32_t first = (int32_t)rintf(values[2 * pair] * (LARGEST / largest));
    int32_t second = (int32_t)rintf(values[2 * pair + 1] * (LARGEST / largest));
    block->pairs[pair] = (int32_t)((uint32_t)second << 16 | (first & 0xffff));
    sum += first + second;
  }
  block->scale = largest / LARGEST;
  block->sum = block->scale * (float)sum;
}

#ifdef __AMX_BF16__
#include "amx_blocks.h"
#else
enum { has_tiles = 0 };
#define whole_tiles(...) 0
#define prepare_block(...)
#define multiply_blocks_in_tiles(...)
#endif

HIDDEN int64_t block_bytes(int64_t rows, int64_t in) {
  if (has_tiles) return whole_tiles(rows) * (in * (int64_t)sizeof(uint16_t) + in / BLOCK * (int64_t)sizeof(float));
  return rows * (in / BLOCK) * (int64_t)sizeof(Block);
}

HIDDEN void prepare_blocks(const uint16_t *x, void *prepared, int64_t rows, int64_t in, int64_t begin, int64_t end) {
  for (int64_t row = 0; row < rows; row++)
    for (int64_t at = begin; at < end; at += BLOCK)
      if (has_tiles)
        prepare_block(x + row * in + at, prepared, row, rows, in, at);
      else
        round_block(x + row * in + at, (Block *)prepared + at / BLOCK * rows + row);
}

HIDDEN void multiply_blocks(const Weights *weights, const void *prepared, uint16_t *y, int64_t rows, int64_t first,
                            int64_t end) {
  if (has_tiles) {
    multiply_blocks_in_tiles(weights, prepared, y, rows, first, end);
    return;
  }
  int64_t blocks = weights->in / BLOCK, out = weights->out, bits = weights->bits;
  for (int64_t panel = first; panel < end; panel++)
    for (int64_t row = 0; row < rows; row += TILE)
      for (int lane = 0; lane < PANEL; lane += LANES)
        some_rows(rows - row < TILE ? rows - row : TILE, (int)bits, (const Block *)prepared + row,
                  (const uint8_t *)weights->panels + panel * blocks * PANEL * 4 * (bits + 1), lane,
                  weights->bias ? weights->bias + panel * PANEL : NULL, y + row * out + panel * PANEL + lane, blocks,
                  rows, out);
}

/* x [rows][in], panels as above, y [rows][out], bias [out] of float32 or null; bits is 4 or 8, in a multiple of 32, out
 * of 16. Returns 0, or -1 if memory can't be allocated. */
int quantised_linear(const uint16_t *x, const uint8_t *panels, const float *bias, uint16_t *y, int64_t rows,
                     int64_t in, int64_t out, int bits, int threads) {
  if (rows == 0) return 0;
  Weights weights = {panels, bias, in, out, bits};
  void *prepared = malloc((size_t)block_bytes(rows, in));
  if (!prepared) return -1;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t at = 0; at < in; at += BLOCK) prepare_blocks(x, prepared, rows, in, at, at + BLOCK);
#pragma omp for schedule(static) nowait
    for (int64_t panel = 0; panel < out / PANEL; panel += 2)
      multiply_blocks(&weights, prepared, y, rows, panel, panel + 2 < out / PANEL ? panel + 2 : out / PANEL);
  }
  free(prepared);
  return 0;
}
