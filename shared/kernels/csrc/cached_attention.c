/* cached_attention: attention of new tokens over rows of the serving cache, in bfloat16, computed in float32.
 *
 * One call takes tokens of any rows: one token of each (decoding) or many (prefill). A token reads only the slots of
 * its own row, without mask or padding, and the query heads that share a key head read it once. Scores are powers of
 * two. */
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "simd.h"

/* Turns scores [padded], of which the first `slots` count, into weights; returns one over their sum. */
INLINE float softmax(float *scores, int64_t slots, int64_t padded) {
  for (int64_t slot = slots; slot < padded; slot++) scores[slot] = -INFINITY;
  __m512 highest = broadcast(-INFINITY), sum = _mm512_setzero_ps();
  for (int64_t slot = 0; slot < padded; slot += LANES) highest = _mm512_max_ps(highest, _mm512_loadu_ps(scores + slot));
  highest = broadcast(_mm512_reduce_max_ps(highest));
  for (int64_t slot = 0; slot < padded; slot += LANES) {
    __m512 weights = exp2_vector(_mm512_sub_ps(_mm512_loadu_ps(scores + slot), highest));
    sum = _mm512_add_ps(sum, weights);
    _mm512_storeu_ps(scores + slot, weights);
  }
  return 1 / _mm512_reduce_add_ps(sum);
}

/* The sums of four registers. */
INLINE __m128 four_sums(__m512 a, __m512 b, __m512 c, __m512 d) {
  __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  __m512d ab_pairs = _mm512_castps_pd(ab), cd_pairs = _mm512_castps_pd(cd);
  __m512 abcd = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab_pairs, cd_pairs)),
                              _mm512_castpd_ps(_mm512_unpackhi_pd(ab_pairs, cd_pairs)));
  __m256 half =
      _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(abcd), 1)));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/* Some query heads of one key head: query and out [queries][width], keys and values [slots][width], scores
 * [queries][padded], where width is 32 x parts. `scale` includes a factor of log2(e), because weights are powers of
 * two. */
INLINE void attend(int queries, int parts, const uint16_t *query, const uint16_t *keys, const uint16_t *values,
                   uint16_t *out, float *scores, int64_t slots, int64_t padded, float scale) {
  const int64_t width = parts * 2 * LANES;
  __m512 rows[4][8];
#pragma GCC unroll 4
  for (int head = 0; head < queries; head++)
#pragma GCC unroll 4
    for (int at = 0; at < parts; at++) {
      widen_pairs(query + head * width + at * 2 * LANES, &rows[head][2 * at], &rows[head][2 * at + 1]);
      rows[head][2 * at] = _mm512_mul_ps(rows[head][2 * at], broadcast(scale));
      rows[head][2 * at + 1] = _mm512_mul_ps(rows[head][2 * at + 1], broadcast(scale));
    }
  for (int64_t slot = 0; slot < slots; slot += 4) {
    __m512 sums[4][4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      /* Past the end the last key is read again; `softmax` overwrites those scores. */
      const uint16_t *key = keys + (slot + i < slots ? slot + i : slots - 1) * width;
#pragma GCC unroll 4
      for (int at = 0; at < parts; at++) {
        __m512 even, odd;
        widen_pairs(key + at * 2 * LANES, &even, &odd);
#pragma GCC unroll 4
        for (int head = 0; head < queries; head++) {
          sums[head][i] =
              at ? _mm512_fmadd_ps(rows[head][2 * at], even, sums[head][i]) : _mm512_mul_ps(rows[head][0], even);
          sums[head][i] = _mm512_fmadd_ps(rows[head][2 * at + 1], odd, sums[head][i]);
        }
      }
    }
#pragma GCC unroll 4
    for (int head = 0; head < queries; head++)
      _mm_storeu_ps(scores + head * padded + slot,
                    four_sums(sums[head][0], sums[head][1], sums[head][2], sums[head][3]));
  }
  float shares[4];
#pragma GCC unroll 4
  for (int head = 0; head < queries; head++) {
    shares[head] = softmax(scores + head * padded, slots, padded);
#pragma GCC unroll 8
    for (int at = 0; at < 2 * parts; at++) rows[head][at] = _mm512_setzero_ps();
  }
  for (int64_t slot = 0; slot < slots; slot++) {
#pragma GCC unroll 4
    for (int at = 0; at < parts; at++) {
      __m512 even, odd;
      widen_pairs(values + slot * width + at * 2 * LANES, &even, &odd);
#pragma GCC unroll 4
      for (int head = 0; head < queries; head++) {
        __m512 weight = broadcast(scores[head * padded + slot]);
        rows[head][2 * at] = _mm512_fmadd_ps(weight, even, rows[head][2 * at]);
        rows[head][2 * at + 1] = _mm512_fmadd_ps(weight, odd, rows[head][2 * at + 1]);
      }
    }
  }
#pragma GCC unroll 4
  for (int head = 0; head < queries; head++)
#pragma GCC unroll 4
    for (int at = 0; at < parts; at++) {
      __m512i even = round_to_bfloat16(_mm512_mul_ps(rows[head][2 * at], broadcast(shares[head])));
      __m512i odd = round_to_bfloat16(_mm512_mul_ps(rows[head][2 * at + 1], broadcast(shares[head])));
      odd = _mm512_and_si512(odd, _mm512_set1_epi32((int)0xffff0000));
      _mm512_storeu_si512(out + head * width + at * 2 * LANES, _mm512_or_si512(odd, _mm512_srli_epi32(even, 16)));
    }
}

#define QUERIES(PARTS)                                                                                   \
  AVX512 static void attend_##PARTS(int64_t queries, const uint16_t *query, const uint16_t *keys,        \
                                    const uint16_t *values, uint16_t *out, float *scores, int64_t slots, \
                                    int64_t padded, float scale) {                                       \
    switch (queries) {                                                                                   \
      case 1: attend(1, PARTS, query, keys, values, out, scores, slots, padded, scale); break;           \
      case 2: attend(2, PARTS, query, keys, values, out, scores, slots, padded, scale); break;           \
      case 3: attend(3, PARTS, query, keys, values, out, scores, slots, padded, scale); break;           \
      case 4: attend(4, PARTS, query, keys, values, out, scores, slots, padded, scale); break;           \
    }                                                                                                    \
  }
QUERIES(1)
QUERIES(2)
QUERIES(3)
QUERIES(4)

typedef void AttendHeads(int64_t, const uint16_t *, const uint16_t *, const uint16_t *, uint16_t *, float *, int64_t,
                         int64_t, float);

/* Writes token i's key and value to slot positions[i] of row rows[i] of the cache; it attends to all slots up to there,
 * or to the last `window` of them if window is not 0. Tokens of one call see those of the same row before them.
 *
 * query and out [tokens][heads][width], new_keys and new_values [tokens][kv_heads][width]. In the cache's keys and
 * values, a row starts every `row_stride` numbers, a head every `head_stride` and a slot every `width`; width is 32,
 * 64, 96 or 128. Returns 0, -1 if memory can't be allocated, or -2, with nothing written, if a token lies outside
 * `max_rows` rows of `max_length` slots. */
int cached_attention(const uint16_t *query, const uint16_t *new_keys, const uint16_t *new_values, uint16_t *keys,
                     uint16_t *values, uint16_t *out, const int64_t *rows, const int64_t *positions, int64_t tokens,
                     int64_t heads, int64_t kv_heads, int64_t width, int64_t row_stride, int64_t head_stride,
                     int64_t max_rows, int64_t max_length, int64_t window, float scale, int threads) {
  int64_t longest = 0, group = heads / kv_heads, items = tokens * kv_heads;
  for (int64_t token = 0; token < tokens; token++) {
    if (rows[token] < 0 || rows[token] >= max_rows || positions[token] < 0 || positions[token] >= max_length) return -2;
    longest = positions[token] + 1 > longest ? positions[token] + 1 : longest;
  }
  int64_t padded = (longest + LANES - 1) / LANES * LANES;
  AttendHeads *attend_heads = width == 32 ? attend_1 : width == 64 ? attend_2 : width == 96 ? attend_3 : attend_4;
  float *scratch = aligned_alloc(64, (size_t)(threads * 4 * padded) * sizeof(float));
  if (!scratch) return -1;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t item = 0; item < items; item++) {
      int64_t token = item / kv_heads, head = rows[token] * row_stride + item % kv_heads * head_stride;
      memcpy(keys + head + positions[token] * width, new_keys + item * width, (size_t)width * sizeof *keys);
      memcpy(values + head + positions[token] * width, new_values + item * width, (size_t)width * sizeof *values);
    }
    float *scores = scratch + omp_get_thread_num() * 4 * padded;
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < items; item++) {
      int64_t token = item / kv_heads, kv_head = item % kv_heads, position = positions[token];
      int64_t begin = window && position >= window ? position - window + 1 : 0, slots = position + 1 - begin;
      int64_t first_slot = rows[token] * row_stride + kv_head * head_stride + begin * width;
      for (int64_t first = 0; first < group; first += 4) {
        int64_t queries = group - first < 4 ? group - first : 4, at = (token * heads + kv_head * group + first) * width;
        attend_heads(queries, query + at, keys + first_slot, values + first_slot, out + at, scores, slots,
                     (slots + LANES - 1) / LANES * LANES, scale * (float)M_LOG2E);
      }
    }
  }
  free(scratch);
  return 0;
}
