/* Panels of blocks as panels of bfloat16 in the order of tiles (tiles.h): bit by bit the weights that were rounded to
 * bfloat16, so a product has the same bits, and from memory comes a third or half of the bytes. */
#pragma once
#include "blocks.h"

/* The lowest code of each lane as a number. */
INLINE vec lowest_codes(uvec lanes, int bits) {
  if (bits == 8) return __builtin_convertvector(lanes & 0xff, vec);
  return _mm512_permutexvar_ps((__m512i)lanes, __builtin_convertvector(lane_numbers(), vec));
}

/* A block of 16 outputs as a tile: 16 pairs of inputs. Products of a scale and a code are exact, so a weight is rounded
 * as if it had been computed in float32. The block `ahead` bytes further is fetched into the second-level cache. */
INLINE void expand_block(const uint8_t *block, int bits, int64_t ahead, uint16_t *tile) {
  const __m512i lower = (__m512i)(lane_numbers() >> 1), upper = _mm512_add_epi32(lower, _mm512_set1_epi32(8));
  vec scales = from_float16((const uint16_t *)block), leasts = from_float16((const uint16_t *)block + PANEL);
  vec lower_scales = _mm512_permutexvar_ps(lower, scales), lower_leasts = _mm512_permutexvar_ps(lower, leasts);
  vec upper_scales = _mm512_permutexvar_ps(upper, scales), upper_leasts = _mm512_permutexvar_ps(upper, leasts);
  const uint8_t *at = block + 2 * PANEL * sizeof(uint16_t);
#pragma GCC unroll 16
  for (int pair = 0; pair < TILE_INPUTS / 2; at += 2 * PANEL * 4) {
    uvec low = *(const loose_uvec *)at, high = *(const loose_uvec *)(at + PANEL * 4);
    __builtin_prefetch(at + ahead, 0, 2);
    __builtin_prefetch(at + ahead + PANEL * 4, 0, 2);
#pragma GCC unroll 8
    for (int code = 0; code < 32 / bits; code++, pair++, low >>= bits, high >>= bits) {
      vec first = lowest_codes(low, bits) * lower_scales + lower_leasts;
      vec second = lowest_codes(high, bits) * upper_scales + upper_leasts;
      _mm512_store_si512(tile + pair * 2 * PANEL, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
    }
  }
}

/* Panels [panel, panel + count), at most 2, of at most MAX_INPUTS inputs; valid until the thread's next call. */
static const uint16_t *expand(const Weights *weights, int64_t panel, int64_t count) {
  static _Thread_local _Alignas(64) uint16_t expanded[2 * PANEL * MAX_INPUTS];
  int64_t blocks = weights->inputs / BLOCK, size = block_size(weights->bits);
  const uint8_t *from = (const uint8_t *)weights->panels + panel * blocks * size;
  for (int64_t block = 0; block < count * blocks; block++)
    if (weights->bits == 4)
      expand_block(from + block * size, 4, PREFETCH_BYTES, expanded + block * BLOCK * PANEL);
    else
      expand_block(from + block * size, 8, PREFETCH_BYTES, expanded + block * BLOCK * PANEL);
  return expanded;
}
