/* Kernels for a processor with AVX-512, bfloat16 in and out, all arithmetic in float32. `native_kernels.py` compiles and loads them.
 *
 * linear: y = x W^T + b. Processors without tiles for bfloat16 (AMX) multiply more in float32 than in bfloat16 (measured on a Xeon with
 * AVX512-BF16: 5.4e9 fused multiply-adds of 16 numbers a second and core, against 1.3e9 dot products of 16 pairs), so every weight is widened
 * in a register. That costs one instruction for 16 weights, and 16 rows share it. The sum of a row doesn't depend on the other rows.
 *
 * Layout. 16 outputs are a panel: [in / 2][16 outputs][2 inputs] of bfloat16, so that one register holds two inputs of 16 outputs, and a
 * shift and a mask part them. 16 rows of x are a block: [in][16 rows] of float32, one cache line for an input.
 *
 * rms_norm: torch's own takes nine passes, and as long as a product.
 *
 * attention: new tokens of any rows of the cache, one of each (decoding) or many (prefill). Each reads its own slots, without mask or
 * padding, and the query heads of one key head read them once.
 */
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "avx512.h"

enum {
  AHEAD = 2048, /* bytes between the weights in use and those asked for: the latency of memory, at the rate at which they are used */
  CACHED = 1 << 20, /* bytes of x that stay in the second-level cache while the panels go past */
};

/* `rows` rows of one block by `panels` panels: both are constants wherever this is inlined, and the sums live in registers. */
INLINE void tile(int rows, int panels, const float *x, const uint16_t *weights, const float *bias, uint16_t *y, int64_t in, int64_t out) {
  __m512 sums[LANES][4];
#pragma GCC unroll 16
  for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
    for (int panel = 0; panel < panels; panel++) sums[row][panel] = bias ? _mm512_loadu_ps(bias + panel * LANES) : _mm512_setzero_ps();
  for (int64_t at = 0; at < in; at += 2) {
    __m512 first[4], second[4];
#pragma GCC unroll 4
    for (int panel = 0; panel < panels; panel++) {
      const uint16_t *pairs = weights + (panel * in + at) * LANES;
      _mm_prefetch((const char *)pairs + AHEAD, _MM_HINT_T0);
      __m512i both = _mm512_loadu_si512(pairs);
      first[panel] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
      second[panel] = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)));
    }
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
      for (int panel = 0; panel < panels; panel++)
        sums[row][panel] = _mm512_fmadd_ps(first[panel], _mm512_set1_ps(x[at * LANES + row]), sums[row][panel]);
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
      for (int panel = 0; panel < panels; panel++)
        sums[row][panel] = _mm512_fmadd_ps(second[panel], _mm512_set1_ps(x[(at + 1) * LANES + row]), sums[row][panel]);
  }
#pragma GCC unroll 16
  for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
    for (int panel = 0; panel < panels; panel++)
      _mm256_storeu_si256((__m256i *)(y + row * out + panel * LANES), narrow(sums[row][panel]));
}

#define CASE(ROWS, PANELS) \
  case ROWS: tile(ROWS, PANELS, x, weights, bias, y, in, out); break;

/* Few rows wait for memory: four panels at once are four streams. */
AVX512 static void four_panels(int64_t rows, const float *x, const uint16_t *weights, const float *bias,
                                                            uint16_t *y, int64_t in, int64_t out) {
  switch (rows) { CASE(1, 4) CASE(2, 4) CASE(3, 4) CASE(4, 4) }
}

AVX512 static void one_panel(int64_t rows, const float *x, const uint16_t *weights, const float *bias,
                                                          uint16_t *y, int64_t in, int64_t out) {
  switch (rows) {
    CASE(1, 1) CASE(2, 1) CASE(3, 1) CASE(4, 1) CASE(5, 1) CASE(6, 1) CASE(7, 1) CASE(8, 1)
    CASE(9, 1) CASE(10, 1) CASE(11, 1) CASE(12, 1) CASE(13, 1) CASE(14, 1) CASE(15, 1) CASE(16, 1)
  }
}

/* Columns [at, at + 16) of some rows of x, turned round. */
AVX512 static void turn(const uint16_t *x, float *block, int64_t rows, int64_t in, int64_t at) {
  for (int64_t row = 0; row < rows; row++) {
    float values[LANES];
    _mm512_storeu_ps(values, wide(x + row * in + at));
    for (int lane = 0; lane < LANES; lane++) block[(at + lane) * LANES + row] = values[lane];
  }
}

/* x [rows][in], y [rows][out], bias [out] of float32 or null; in and out are multiples of 16. Returns 0, or -1 without memory. */
int linear(const uint16_t *x, const uint16_t *weights, const float *bias, uint16_t *y, int64_t rows, int64_t in, int64_t out, int threads) {
  if (rows == 0) return 0;
  int64_t blocks = (rows + LANES - 1) / LANES, block_size = in * LANES;
  float *turned = aligned_alloc(64, (size_t)(blocks * block_size) * sizeof(float));
  if (!turned) return -1;
  int64_t panels = out / LANES, together = rows <= 4 && panels % 4 == 0 ? 4 : 1;
  int64_t cached = CACHED / (block_size * (int64_t)sizeof(float));
  if (cached < 1) cached = 1;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t piece = 0; piece < blocks * (in / LANES); piece++) {
      int64_t block = piece / (in / LANES), row = block * LANES;
      turn(x + row * in, turned + block * block_size, rows - row < LANES ? rows - row : LANES, in, piece % (in / LANES) * LANES);
    }
    for (int64_t begin = 0; begin < blocks; begin += cached) {
      int64_t end = begin + cached < blocks ? begin + cached : blocks;
#pragma omp for schedule(static) nowait
      for (int64_t group = 0; group < panels / together; group++) {
        int64_t column = group * together * LANES;
        for (int64_t block = begin; block < end; block++) {
          int64_t row = block * LANES, count = rows - row < LANES ? rows - row : LANES;
          (together == 4 ? four_panels : one_panel)(count, turned + block * block_size, weights + column * in, bias ? bias + column : NULL,
                                                    y + row * out + column, in, out);
        }
      }
    }
  }
  free(turned);
  return 0;
}

/* y = weight * x / sqrt(mean(x^2) + epsilon), x and y [rows][width], width a multiple of 16. */
AVX512 void rms_norm(const uint16_t *x, const uint16_t *weight, uint16_t *y, int64_t rows, int64_t width, float epsilon) {
  for (int64_t row = 0; row < rows; row++, x += width, y += width) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t at = 0; at < width; at += LANES) squares = _mm512_fmadd_ps(wide(x + at), wide(x + at), squares);
    __m512 scale = _mm512_set1_ps(1 / sqrtf(_mm512_reduce_add_ps(squares) / (float)width + epsilon));
    for (int64_t at = 0; at < width; at += LANES)
      _mm256_storeu_si256((__m256i *)(y + at), narrow(_mm512_mul_ps(_mm512_mul_ps(wide(x + at), scale), wide(weight + at))));
  }
}

/* scores [padded] become weights, of which `slots` count; returns one over their sum. */
INLINE float softmax(float *scores, int64_t slots, int64_t padded) {
  for (int64_t slot = slots; slot < padded; slot++) scores[slot] = -INFINITY;
  __m512 highest = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
  for (int64_t slot = 0; slot < padded; slot += LANES) highest = _mm512_max_ps(highest, _mm512_loadu_ps(scores + slot));
  highest = _mm512_set1_ps(_mm512_reduce_max_ps(highest));
  for (int64_t slot = 0; slot < padded; slot += LANES) {
    __m512 weights = exp2_of(_mm512_sub_ps(_mm512_loadu_ps(scores + slot), highest));
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
  __m512 abcd = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab_pairs, cd_pairs)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab_pairs, cd_pairs)));
  __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(abcd), 1)));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/* 32 numbers into two registers, those with even numbers in the first: a dot product doesn't mind, and it is half the work of `wide`. */
INLINE void part(const uint16_t *values, __m512 *even, __m512 *odd) {
  __m512i both = _mm512_loadu_si512(values);
  *even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
  *odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)));
}

/* Some query heads of one key head: query and out [queries][width], keys and values [slots][width], scores [queries][padded], where width is
 * 32 x parts. Weights are powers of two, so scale has a factor of log2(e). */
INLINE void attend(int queries, int parts, const uint16_t *query, const uint16_t *keys, const uint16_t *values, uint16_t *out,
                   float *scores, int64_t slots, int64_t padded, float scale) {
  const int64_t width = parts * 2 * LANES;
  __m512 rows[4][8];
#pragma GCC unroll 4
  for (int head = 0; head < queries; head++)
#pragma GCC unroll 4
    for (int at = 0; at < parts; at++) {
      part(query + head * width + at * 2 * LANES, &rows[head][2 * at], &rows[head][2 * at + 1]);
      rows[head][2 * at] = _mm512_mul_ps(rows[head][2 * at], _mm512_set1_ps(scale));
      rows[head][2 * at + 1] = _mm512_mul_ps(rows[head][2 * at + 1], _mm512_set1_ps(scale));
    }
  for (int64_t slot = 0; slot < slots; slot += 4) {
    __m512 sums[4][4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const uint16_t *key = keys + (slot + i < slots ? slot + i : slots - 1) * width; /* what comes after the last is overwritten below */
#pragma GCC unroll 4
      for (int at = 0; at < parts; at++) {
        __m512 even, odd;
        part(key + at * 2 * LANES, &even, &odd);
#pragma GCC unroll 4
        for (int head = 0; head < queries; head++) {
          sums[head][i] = at ? _mm512_fmadd_ps(rows[head][2 * at], even, sums[head][i]) : _mm512_mul_ps(rows[head][0], even);
          sums[head][i] = _mm512_fmadd_ps(rows[head][2 * at + 1], odd, sums[head][i]);
        }
      }
    }
#pragma GCC unroll 4
    for (int head = 0; head < queries; head++)
      _mm_storeu_ps(scores + head * padded + slot, four_sums(sums[head][0], sums[head][1], sums[head][2], sums[head][3]));
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
      part(values + slot * width + at * 2 * LANES, &even, &odd);
#pragma GCC unroll 4
      for (int head = 0; head < queries; head++) {
        __m512 weight = _mm512_set1_ps(scores[head * padded + slot]);
        rows[head][2 * at] = _mm512_fmadd_ps(weight, even, rows[head][2 * at]);
        rows[head][2 * at + 1] = _mm512_fmadd_ps(weight, odd, rows[head][2 * at + 1]);
      }
    }
  }
#pragma GCC unroll 4
  for (int head = 0; head < queries; head++)
#pragma GCC unroll 4
    for (int at = 0; at < parts; at++) {
      __m512i even = rounded(_mm512_mul_ps(rows[head][2 * at], _mm512_set1_ps(shares[head])));
      __m512i odd = rounded(_mm512_mul_ps(rows[head][2 * at + 1], _mm512_set1_ps(shares[head])));
      odd = _mm512_and_si512(odd, _mm512_set1_epi32((int)0xffff0000));
      _mm512_storeu_si512(out + head * width + at * 2 * LANES, _mm512_or_si512(odd, _mm512_srli_epi32(even, 16)));
    }
}

#define QUERIES(PARTS) \
  AVX512 static void attend_##PARTS(int64_t queries, const uint16_t *query, const uint16_t *keys, const uint16_t *values, uint16_t *out, \
                                    float *scores, int64_t slots, int64_t padded, float scale) { \
    switch (queries) { \
      case 1: attend(1, PARTS, query, keys, values, out, scores, slots, padded, scale); break; \
      case 2: attend(2, PARTS, query, keys, values, out, scores, slots, padded, scale); break; \
      case 3: attend(3, PARTS, query, keys, values, out, scores, slots, padded, scale); break; \
      case 4: attend(4, PARTS, query, keys, values, out, scores, slots, padded, scale); break; \
    } \
  }
QUERIES(1)
QUERIES(2)
QUERIES(3)
QUERIES(4)

/* Token i goes to slot positions[i] of row rows[i] of the cache and attends to all slots up to there, or to the last `window` of them if
 * window is not 0; tokens of one call see one another.
 *
 * query and out [tokens][heads][width], new_keys and new_values [tokens][kv_heads][width], the cache's keys and values with a row every
 * `row_stride` numbers, a head every `head_stride` and a slot every `width`; width is 32, 64, 96 or 128. Returns 0, -1 without memory, or
 * -2, with nothing written, for what lies outside of `max_rows` rows of `max_length` slots.
 */
int attention(const uint16_t *query, const uint16_t *new_keys, const uint16_t *new_values, uint16_t *keys, uint16_t *values, uint16_t *out,
              const int64_t *rows, const int64_t *positions, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t width,
              int64_t row_stride, int64_t head_stride, int64_t max_rows, int64_t max_length, int64_t window, float scale, int threads) {
  int64_t longest = 0, group = heads / kv_heads, items = tokens * kv_heads;
  for (int64_t token = 0; token < tokens; token++) {
    if (rows[token] < 0 || rows[token] >= max_rows || positions[token] < 0 || positions[token] >= max_length) return -2;
    longest = positions[token] + 1 > longest ? positions[token] + 1 : longest;
  }
  int64_t padded = (longest + LANES - 1) / LANES * LANES;
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
        (width == 32 ? attend_1 : width == 64 ? attend_2 : width == 96 ? attend_3 : attend_4)(
            queries, query + at, keys + first_slot, values + first_slot, out + at, scores, slots, (slots + LANES - 1) / LANES * LANES,
            scale * (float)M_LOG2E);
      }
    }
  }
  free(scratch);
  return 0;
}
