/* Vector arithmetic for processors with AVX-512: the only file that all kernels include.
 *
 * A vector holds LANES numbers of float32. bfloat16 is the upper half of a float32, so widening is a shift. */
#pragma once
#include <immintrin.h>
#include <stdint.h>

enum { LANES = 16 };

#define AVX512 __attribute__((target("avx512f")))
#define INLINE __attribute__((target("avx512f"), always_inline)) static inline

INLINE __m512 broadcast(float value) { return _mm512_set1_ps(value); }

/* 16 numbers of bfloat16 to float32. */
INLINE __m512 widen(const uint16_t *values) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)values)), 16));
}

/* 32 numbers of bfloat16 to float32: those with even indices and those with odd ones. Takes half the instructions of
 * two `widen`. */
INLINE void widen_pairs(const uint16_t *values, __m512 *even, __m512 *odd) {
  __m512i both = _mm512_loadu_si512(values);
  *even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
  *odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)));
}

/* Rounds to bfloat16, to nearest with ties to even; NaN stays NaN. The result is in the upper halves; the lower halves
 * are undefined. */
INLINE __m512i round_to_bfloat16(__m512 values) {
  __m512i bits = _mm512_castps_si512(values);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  return _mm512_mask_mov_epi32(up, _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
}

/* 16 numbers of float32 to bfloat16. */
INLINE __m256i narrow(__m512 values) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_to_bfloat16(values), 16)); }

/* Reads 16 numbers from index `at` on: bfloat16 if `half` is set, else float32. */
INLINE __m512 load(const void *from, int64_t at, int half) {
  return half ? widen((const uint16_t *)from + at) : _mm512_loadu_ps((const float *)from + at);
}

/* Writes 16 numbers from index `at` on: bfloat16 if `half` is set, else float32. */
INLINE void store(void *to, int64_t at, __m512 values, int half) {
  if (half)
    _mm256_storeu_si256((__m256i *)((uint16_t *)to + at), narrow(values));
  else
    _mm512_storeu_ps((float *)to + at, values);
}

/* 2^x by the Taylor series around the nearest integer; the remainder is below float32's last bit. */
INLINE __m512 exp2_vector(__m512 x) {
  const float series[] = {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f,
                          2.4022651e-1f, 6.9314718e-1f, 1.0f};
  __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), part = _mm512_sub_ps(x, whole);
  __m512 power = broadcast(series[0]);
#pragma GCC unroll 6
  for (int term = 1; term < 7; term++) power = _mm512_fmadd_ps(power, part, broadcast(series[term]));
  return _mm512_scalef_ps(power, whole);
}
