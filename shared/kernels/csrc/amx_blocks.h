/* Panels of blocks as panels of bfloat16 in the order of tiles (tiles.h): bit by bit the weights that were rounded to
 * bfloat16, so a product has the same bits, and from memory comes a third or half of the bytes. */
#pragma once
#include "blocks.h"

/* Codes of 16 outputs as numbers: the lowest bits of each lane. */
INLINE vec lowest_codes(uvec lanes, int bits) {
  if (bits == 8) return __builtin_convertvector(lanes & 0xff, vec);
  return _mm512_permutexvar_ps((__m512i)lanes, __builtin_convertvector(lane_numbers(), vec));
}

/* A block of 16 outputs as a tile: 16 pairs of inputs. Products of a scale and a code are exact, so a weight is rounded
 * as if it had been computed in float32. */
INLINE void expand_block(const uint8_t *block, int bits, uint16_t *tile) {
  const int shifts = 16 / bits;
  /* Lanes 0 and 16, 1 and 17 and so on, side by side. */
  const __m512i interleaved = _mm512_add_epi16(_mm512_set1_epi32(0x00100000), (__m512i)(lane_numbers() * 0x10001));
  vec scales = from_float16((const uint16_t *)block), leasts = from_float16((const uint16_t *)block + PANEL);
#pragma GCC unroll 8
  for (int word = 0; word < bits; word++) {
    const uint8_t *at = block + PANEL * 4 * (word + 1);
    uvec codes = *(const loose_uvec *)at;
    __builtin_prefetch(at + PREFETCH_BYTES);
#pragma GCC unroll 4
    for (int shift = 0; shift < shifts; shift++, codes >>= bits) {
      vec even = lowest_codes(codes, bits) * scales + leasts;
      vec odd = lowest_codes(codes >> 16, bits) * scales + leasts;
      __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
      _mm512_store_si512(tile + (word * shifts + shift) * 2 * PANEL, _mm512_permutexvar_epi16(interleaved, both));
    }
  }
}

/* Panels [panel, panel + count), at most 4, in bfloat16, of at most MAX_INPUTS inputs; valid until the thread's next
 * call. */
static const uint16_t *expand(const Weights *weights, int64_t panel, int64_t count) {
  static _Thread_local _Alignas(64) uint16_t expanded[4 * PANEL * MAX_INPUTS];
  int64_t bits = weights->bits, size = PANEL * 4 * (bits + 1), blocks = weights->in / BLOCK;
  const uint8_t *from = (const uint8_t *)weights->panels + panel * blocks * size;
  for (int64_t block = 0; block < count * blocks; block++)
    if (bits == 4)
      expand_block(from + block * size, 4, expanded + block * BLOCK * PANEL);
    else
      expand_block(from + block * size, 8, expanded + block * BLOCK * PANEL);
  return expanded;
}
