/* What kernels for processors with AVX-512 share. Arithmetic is in float32; bfloat16 is the upper half of a float32. */
#pragma once
#include <immintrin.h>
#include <stdint.h>

enum { LANES = 16 };

#define AVX512 __attribute__((target("avx512f")))
#define INLINE __attribute__((target("avx512f"), always_inline)) static inline

INLINE __m512 wide(const uint16_t *values) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)values)), 16));
}

/* To bfloat16 in the upper halves: to nearest, ties to even; what is not a number stays none. The lower halves mean nothing. */
INLINE __m512i rounded(__m512 values) {
  __m512i bits = _mm512_castps_si512(values);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  return _mm512_mask_mov_epi32(up, _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
}

INLINE __m256i narrow(__m512 values) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded(values), 16)); }

/* 2^x; Taylor's series about the nearest whole number, whose rest is below a float's last bit. */
INLINE __m512 exp2_of(__m512 x) {
  const float series[] = {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f};
  __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), part = _mm512_sub_ps(x, whole);
  __m512 power = _mm512_set1_ps(series[0]);
#pragma GCC unroll 6
  for (int term = 1; term < 7; term++) power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(series[term]));
  return _mm512_scalef_ps(power, whole);
}
