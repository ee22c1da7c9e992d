/* linear: y = x W^T + b in bfloat16, computed in float32.
 *
 * Processors without AMX tiles multiply float32 faster than bfloat16 (measured on a Xeon with AVX512-BF16: 5.4e9 fused
 * multiply-adds of 16 numbers a second and core, against 1.3e9 dot products of 16 pairs), so every weight is widened in
 * a register. That costs one instruction for 16 weights, and 16 rows share it. The sum of a row does not depend on
 * other rows.
 *
 * Layout. A panel holds the weights of 16 outputs: [in / 2][16 outputs][2 inputs] of bfloat16, so one register holds
 * two inputs of 16 outputs, and a shift and a mask separate them. A block holds 16 rows of x: [in][16 rows] of float32,
 * one cache line for each input. */
#include <omp.h>
#include <stdlib.h>

#include "simd.h"

enum {
  PREFETCH_BYTES = 2048,  /* distance of the prefetch: memory latency at the rate at which weights are used */
  CACHED_BYTES = 1 << 20, /* how much of x stays in the second-level cache while the panels are read */
};

/* `rows` rows of one block times `panels` panels. Both are constants at each call, so the sums stay in registers. */
INLINE void tile(int rows, int panels, const float *x, const uint16_t *weights, const float *bias, uint16_t *y,
                 int64_t in, int64_t out) {
  __m512 sums[LANES][4];
#pragma GCC unroll 16
  for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
    for (int panel = 0; panel < panels; panel++)
      sums[row][panel] = bias ? _mm512_loadu_ps(bias + panel * LANES) : _mm512_setzero_ps();
  for (int64_t at = 0; at < in; at += 2) {
    __m512 first[4], second[4];
#pragma GCC unroll 4
    for (int panel = 0; panel < panels; panel++) {
      const uint16_t *pairs = weights + (panel * in + at) * LANES;
      _mm_prefetch((const char *)pairs + PREFETCH_BYTES, _MM_HINT_T0);
      widen_pairs(pairs, &first[panel], &second[panel]);
    }
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
      for (int panel = 0; panel < panels; panel++)
        sums[row][panel] = _mm512_fmadd_ps(first[panel], broadcast(x[at * LANES + row]), sums[row][panel]);
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
      for (int panel = 0; panel < panels; panel++)
        sums[row][panel] = _mm512_fmadd_ps(second[panel], broadcast(x[(at + 1) * LANES + row]), sums[row][panel]);
  }
#pragma GCC unroll 16
  for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
    for (int panel = 0; panel < panels; panel++)
      _mm256_storeu_si256((__m256i *)(y + row * out + panel * LANES), narrow(sums[row][panel]));
}

#define CASE(ROWS, PANELS) \
  case ROWS: tile(ROWS, PANELS, x, weights, bias, y, in, out); break;
#define FOUR_CASES(FIRST, PANELS) \
  CASE(FIRST, PANELS) CASE(FIRST + 1, PANELS) CASE(FIRST + 2, PANELS) CASE(FIRST + 3, PANELS)

/* With few rows memory is the limit: four panels at once are four streams of reads. */
AVX512 static void four_panels(int64_t rows, const float *x, const uint16_t *weights, const float *bias, uint16_t *y,
                               int64_t in, int64_t out) {
  switch (rows) { FOUR_CASES(1, 4) }
}

AVX512 static void one_panel(int64_t rows, const float *x, const uint16_t *weights, const float *bias, uint16_t *y,
                             int64_t in, int64_t out) {
  switch (rows) {
    FOUR_CASES(1, 1)
    FOUR_CASES(5, 1)
    FOUR_CASES(9, 1)
    FOUR_CASES(13, 1)
  }
}

/* Transposes columns [at, at + 16) of some rows of x into a block. */
AVX512 static void transpose(const uint16_t *x, float *block, int64_t rows, int64_t in, int64_t at) {
  for (int64_t row = 0; row < rows; row++) {
    float values[LANES];
    _mm512_storeu_ps(values, widen(x + row * in + at));
    for (int lane = 0; lane < LANES; lane++) block[(at + lane) * LANES + row] = values[lane];
  }
}

/* x [rows][in], y [rows][out], bias [out] of float32 or null; in and out are multiples of 16. Returns 0, or -1 if
 * memory can't be allocated. */
int linear(const uint16_t *x, const uint16_t *weights, const float *bias, uint16_t *y, int64_t rows, int64_t in,
           int64_t out, int threads) {
  if (rows == 0) return 0;
  int64_t blocks = (rows + LANES - 1) / LANES, block_size = in * LANES;
  float *transposed = aligned_alloc(64, (size_t)(blocks * block_size) * sizeof(float));
  if (!transposed) return -1;
  int64_t panels = out / LANES, together = rows <= 4 && panels % 4 == 0 ? 4 : 1;
  int64_t cached = CACHED_BYTES / (block_size * (int64_t)sizeof(float));
  if (cached < 1) cached = 1;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t part = 0; part < blocks * (in / LANES); part++) {
      int64_t block = part / (in / LANES), row = block * LANES;
      transpose(x + row * in, transposed + block * block_size, rows - row < LANES ? rows - row : LANES, in,
                part % (in / LANES) * LANES);
    }
    for (int64_t begin = 0; begin < blocks; begin += cached) {
      int64_t end = begin + cached < blocks ? begin + cached : blocks;
#pragma omp for schedule(static) nowait
      for (int64_t group = 0; group < panels / together; group++) {
        int64_t column = group * together * LANES;
        for (int64_t block = begin; block < end; block++) {
          int64_t row = block * LANES, count = rows - row < LANES ? rows - row : LANES;
          (together == 4 ? four_panels : one_panel)(count, transposed + block * block_size, weights + column * in,
                                                    bias ? bias + column : NULL, y + row * out + column, in, out);
        }
      }
    }
  }
  free(transposed);
  return 0;
}
