/* Vector arithmetic for processors with AVX-512, AVX2 or NEON: the only file that all kernels include.
 *
 * A vector holds LANES numbers, one register of the instruction set that the compiler targets; GCC's operators
 * on vectors do the rest. `a * b + c` is one fused operation everywhere (-ffp-contract=fast), so a sum in a fixed order
 * has the same bits on every processor. bfloat16 is the upper half of a float32, so widening is a shift. */
#pragma once
#include <math.h>
#include <stdint.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#define REGISTERS 32
#elif defined(__AVX2__)
#define LANES 8
#define REGISTERS 16
#else
#define LANES 4
#define REGISTERS 32
#endif

enum { PANEL = 16 }; /* sizes are multiples of this, and layouts in memory are made of it, on every processor */

#define INLINE __attribute__((always_inline)) static inline
#define HIDDEN __attribute__((visibility("hidden"))) /* shared by files, not by the library */

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
typedef uint32_t uvec __attribute__((vector_size(LANES * 4)));
typedef uint16_t halves __attribute__((vector_size(LANES * 2)));
typedef float quad __attribute__((vector_size(16)));
/* The same at any address. */
typedef float loose_vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t loose_uvec __attribute__((vector_size(LANES * 4), aligned(2), may_alias));
typedef uint16_t loose_halves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef float loose_quad __attribute__((vector_size(16), aligned(4), may_alias));

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE vec broadcast(float value) { return value - (vec){0}; }
INLINE vec load_floats(const float *from) { return *(const loose_vec *)from; }
INLINE void store_floats(float *to, vec values) { *(loose_vec *)to = values; }
INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }
/* The larger and the smaller one; `a` if one is NaN. */
#if LANES == 16
INLINE vec larger(vec a, vec b) { return _mm512_max_ps(b, a); }
INLINE vec smaller(vec a, vec b) { return _mm512_min_ps(b, a); }
#elif LANES == 8
INLINE vec larger(vec a, vec b) { return _mm256_max_ps(b, a); }
INLINE vec smaller(vec a, vec b) { return _mm256_min_ps(b, a); }
#else
INLINE vec larger(vec a, vec b) { return choose(a < b, b, a); }
INLINE vec smaller(vec a, vec b) { return choose(a > b, b, a); }
#endif

INLINE ivec lane_numbers(void) {
  ivec numbers;
  for (int lane = 0; lane < LANES; lane++) numbers[lane] = lane;
  return numbers;
}

/* LANES numbers of bfloat16 to float32. */
INLINE vec widen(const uint16_t *values) {
  return (vec)(__builtin_convertvector(*(const loose_halves *)values, uvec) << 16);
}

/* 2 LANES numbers of bfloat16 to float32: those with even indices and those with odd ones. Takes half the instructions
 * of two `widen`. */
INLINE void widen_pairs(const uint16_t *values, vec *even, vec *odd) {
  uvec both = *(const loose_uvec *)values;
  *even = (vec)(both << 16);
  *odd = (vec)(both & 0xffff0000);
}

/* Rounds to bfloat16, to nearest with ties to even; NaN stays NaN. The result is in the upper halves; the lower halves
 * are undefined. */
INLINE uvec round_to_bfloat16(vec values) {
  uvec bits = (uvec)values, up = bits + ((bits >> 16 & 1) + 0x7fff);
#if LANES == 16
  return (uvec)_mm512_mask_mov_epi32((__m512i)up, _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q),
                                     _mm512_set1_epi32(0x7fc00000));
#endif
  return (uvec)choose(values != values, (vec)((uvec){0} + 0x7fc00000), (vec)up);
}

/* LANES numbers of float32 to bfloat16. */
INLINE void narrow(uint16_t *to, vec values) {
  *(loose_halves *)to = __builtin_convertvector(round_to_bfloat16(values) >> 16, halves);
}

/* The reverse of `widen_pairs`. */
INLINE void narrow_pairs(uint16_t *to, vec even, vec odd) {
  *(loose_uvec *)to = (round_to_bfloat16(odd) & 0xffff0000) | round_to_bfloat16(even) >> 16;
}

/* Reads LANES numbers from index `at` on: bfloat16 if `half` is set, else float32. */
INLINE vec load(const void *from, int64_t at, int half) {
  return half ? widen((const uint16_t *)from + at) : load_floats((const float *)from + at);
}

/* Writes LANES numbers from index `at` on: bfloat16 if `half` is set, else float32. */
INLINE void store(void *to, int64_t at, vec values, int half) {
  if (half)
    narrow((uint16_t *)to + at, values);
  else
    store_floats((float *)to + at, values);
}

/* The sums of those lanes whose numbers are equal modulo 4. */
INLINE quad sum_of_quads(vec v) {
#if LANES == 16
  __m256 half = _mm512_castps512_ps256(v) + _mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)v, 1));
  return _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
#elif LANES == 8
  return _mm256_castps256_ps128(v) + _mm256_extractf128_ps(v, 1);
#else
  return v;
#endif
}

INLINE float sum_of(vec v) {
  quad sums = sum_of_quads(v);
  return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

/* The largest lane; undefined if one is NaN. */
INLINE float largest_of(vec v) {
#if LANES == 16
  return _mm512_reduce_max_ps(v);
#endif
  float largest = v[0];
  for (int lane = 1; lane < LANES; lane++) largest = v[lane] > largest ? v[lane] : largest;
  return largest;
}

/* 2^x by the Taylor series around the nearest integer; the remainder is below float32's last bit. */
INLINE vec exp2_vector(vec x) {
  const float series[] = {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f,
                          2.4022651e-1f, 6.9314718e-1f, 1.0f};
  const float shift = 12582912; /* 1.5 * 2^23: adding it leaves no bits for a fraction */
  x = larger(smaller(x, broadcast(250)), broadcast(-250)); /* then 2^x is infinite or 0; NaN stays */
  vec shifted = x + shift, part = x - (shifted - shift), power = broadcast(series[0]);
#pragma GCC unroll 6
  for (int term = 1; term < 7; term++) power = power * part + series[term];
#if LANES == 16
  return _mm512_scalef_ps(power, shifted - shift);
#endif
  /* Two factors, because a float32's exponent holds only one half of the range. */
  ivec whole = (ivec)shifted - (ivec)broadcast(shift), half = whole >> 1;
  return power * (vec)((half + 127) << 23) * (vec)((whole - half + 127) << 23);
}
