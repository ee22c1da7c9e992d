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
  VECTORS = PANEL / LANES /* of a panel */
};

/* The sums of a tile are in registers: at most TILE_ROWS rows of one panel, or FEW rows of STREAMS panels. */
#if LANES == 16
#define TILE_ROWS 16
#define STREAMS 4
#define FEW 4
#else
#define TILE_ROWS 4
#define STREAMS 2
#define FEW 2
#endif

/* `rows` rows of one block times `panels` panels. Both are constants at each call, so the sums stay in registers. */
INLINE void tile(int rows, int panels, const float *x, const uint16_t *weights, const float *bias, uint16_t *y,
                 int64_t in, int64_t out) {
  const int vectors = panels * VECTORS;
  vec sums[TILE_ROWS][STREAMS * VECTORS];
#pragma GCC unroll 16
  for (int row = 0; row < rows; row++)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) sums[row][v] = bias ? load_floats(bias + v * LANES) : (vec){0};
  for (int64_t at = 0; at < in; at += 2) {
    vec first[STREAMS * VECTORS], second[STREAMS * VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) {
      const uint16_t *pairs = weights + (v / VECTORS * in + at) * PANEL + v % VECTORS * 2 * LANES;
      if (v % VECTORS == 0) __builtin_prefetch((const char *)pairs + PREFETCH_BYTES);
      widen_pairs(pairs, &first[v], &second[v]);
    }
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; v++) sums[row][v] = first[v] * x[at * PANEL + row] + sums[row][v];
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; v++) sums[row][v] = second[v] * x[(at + 1) * PANEL + row] + sums[row][v];
  }
#pragma GCC unroll 16
  for (int row = 0; row < rows; row++)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) narrow(y + row * out + v * LANES, sums[row][v]);
}

#define CASE(ROWS, PANELS)                                                                                             \
  case ROWS: tile(ROWS, PANELS, x, weights, bias, y, in, out); break;
#define FOUR_CASES(FIRST, PANELS)                                                                                      \
  CASE(FIRST, PANELS) CASE(FIRST + 1, PANELS) CASE(FIRST + 2, PANELS) CASE(FIRST + 3, PANELS)

/* With few rows memory is the limit: several panels at once are several streams of reads. */
static void few_rows(int64_t rows, const float *x, const uint16_t *weights, const float *bias, uint16_t *y, int64_t in,
                     int64_t out) {
  switch (rows) {
    CASE(1, STREAMS)
    CASE(2, STREAMS)
#if FEW == 4
    CASE(3, STREAMS)
    CASE(4, STREAMS)
#endif
  }
}

static void one_panel(int64_t rows, const float *x, const uint16_t *weights, const float *bias, uint16_t *y, int64_t in,
                      int64_t out) {
  switch (rows) {
    FOUR_CASES(1, 1)
#if TILE_ROWS == 16
    FOUR_CASES(5, 1)
    FOUR_CASES(9, 1)
    FOUR_CASES(13, 1)
#endif
  }
}

/* Transposes columns [at, at + 16) of some rows of x into a block. */
static void transpose(const uint16_t *x, float *block, int64_t rows, int64_t in, int64_t at) {
  for (int64_t row = 0; row < rows; row++) {
    float values[PANEL];
    for (int lane = 0; lane < PANEL; lane += LANES) store_floats(values + lane, widen(x + row * in + at + lane));
    for (int lane = 0; lane < PANEL; lane++) block[(at + lane) * PANEL + row] = values[lane];
  }
}

/* x [rows][in], y [rows][out], bias [out] of float32 or null; in and out are multiples of 16. Returns 0, or -1 if
 * memory can't be allocated. */
int linear(const uint16_t *x, const uint16_t *weights, const float *bias, uint16_t *y, int64_t rows, int64_t in,
           int64_t out, int threads) {
  if (rows == 0) return 0;
  int64_t blocks = (rows + PANEL - 1) / PANEL, block_size = in * PANEL;
  float *transposed = aligned_alloc(64, (size_t)(blocks * block_size) * sizeof(float));
  if (!transposed) return -1;
  int64_t panels = out / PANEL, together = rows <= FEW && panels % STREAMS == 0 ? STREAMS : 1;
  int64_t cached = CACHED_BYTES / (block_size * (int64_t)sizeof(float));
  if (cached < 1) cached = 1;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t part = 0; part < blocks * (in / PANEL); part++) {
      int64_t block = part / (in / PANEL), row = block * PANEL;
      transpose(x + row * in, transposed + block * block_size, rows - row < PANEL ? rows - row : PANEL, in,
                part % (in / PANEL) * PANEL);
    }
    for (int64_t begin = 0; begin < blocks; begin += cached) {
      int64_t end = begin + cached < blocks ? begin + cached : blocks;
#pragma omp for schedule(static) nowait
      for (int64_t group = 0; group < panels / together; group++) {
        int64_t column = group * together * PANEL;
        for (int64_t row = begin * PANEL; row < end * PANEL && row < rows; row += TILE_ROWS) {
          int64_t count = rows - row < TILE_ROWS ? rows - row : TILE_ROWS;
          (together == 1 ? one_panel : few_rows)(count, transposed + row / PANEL * block_size + row % PANEL,
                                                 weights + column * in, bias ? bias + column : NULL,
                                                 y + row * out + column, in, out);
        }
      }
    }
  }
  free(transposed);
  return 0;
}
