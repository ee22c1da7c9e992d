/* linear: y = x W^T + b in bfloat16, computed in float32, in AMX tiles where there are some (tiles.h). Weights in blocks
 * of 4 or 8 bits are expanded to bfloat16 for tiles; without tiles they are multiplied as integers (quantised.c).
 *
 * Processors without AMX tiles multiply float32 faster than bfloat16 (measured on a Xeon with AVX512-BF16: 5.4e9 fused
 * multiply-adds of 16 numbers a second and core, against 1.3e9 dot products of 16 pairs), so every weight is widened in
 * a register. That costs one instruction for 16 weights, and 16 rows share it. The sum of a row does not depend on
 * other rows.
 *
 * Layout. A panel holds the weights of 16 outputs: [in / 2][16 outputs][2 inputs] of bfloat16, so one register holds
 * two inputs of 16 outputs, and a shift and a mask separate them. A block holds 16 rows of x: [in][16 rows] of float32,
 * one cache line for each input. If x has few rows, it stays [rows][in]. */
#include <omp.h>
#include <stdlib.h>

#include "blocks.h"
#include "weights.h"

enum { VECTORS = PANEL / LANES }; /* of a panel */

/* Which number of a panel to prefetch while input `at` is used. After the end of the panel come those that are read
 * together with it, and then the next. */
INLINE int64_t ahead(int64_t at, int64_t in, int panels) {
  int64_t number = at * PANEL + PREFETCH_BYTES / (int64_t)sizeof(uint16_t);
  return number < in * PANEL ? number : number + (panels - 1) * in * PANEL;
}

#ifdef __AMX_BF16__
#include "tiles.h"
static int in_tiles(int64_t in) { return has_tiles && in % TILE_INPUTS == 0; }
#else
static int in_tiles(int64_t in) { return in < 0; }
#define prepare_tiles(...)
#define multiply_tiles(...)
#endif

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

/* `rows` rows times `panels` panels, both constants at each call, so the sums stay in registers. Input `at` of a row is
 * x[row * x_row + at * x_input]. */
INLINE void tile(int rows, int panels, const float *x, int64_t x_row, int64_t x_input, const uint16_t *weights,
                 const float *bias, uint16_t *y, int64_t in, int64_t out) {
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
      if (v % VECTORS == 0) __builtin_prefetch(weights + v / VECTORS * in * PANEL + ahead(at, in, panels));
      widen_pairs(pairs, &first[v], &second[v]);
    }
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; v++) sums[row][v] = first[v] * x[row * x_row + at * x_input] + sums[row][v];
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; v++) sums[row][v] = second[v] * x[row * x_row + (at + 1) * x_input] + sums[row][v];
  }
#pragma GCC unroll 16
  for (int row = 0; row < rows; row++)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) narrow(y + row * out + v * LANES, sums[row][v]);
}

#define FEW_CASE(ROWS)                                                                                                 \
  case ROWS:                                                                                                           \
    if (panels == STREAMS)                                                                                             \
      tile(ROWS, STREAMS, x, in, 1, weights, bias, y, in, out);                                                        \
    else                                                                                                               \
      tile(ROWS, 1, x, in, 1, weights, bias, y, in, out);                                                              \
    break;
#define CASE(ROWS)                                                                                                     \
  case ROWS: tile(ROWS, 1, x, 1, PANEL, weights, bias, y, in, out); break;
#define FOUR_CASES(FIRST) CASE(FIRST) CASE(FIRST + 1) CASE(FIRST + 2) CASE(FIRST + 3)

/* With few rows memory is the limit: several panels at once are several streams of reads. */
static void few_rows(int64_t rows, int64_t panels, const float *x, const uint16_t *weights, const float *bias,
                     uint16_t *y, int64_t in, int64_t out) {
  switch (rows) {
    FEW_CASE(1)
    FEW_CASE(2)
#if FEW == 4
    FEW_CASE(3)
    FEW_CASE(4)
#endif
  }
}

static void one_panel(int64_t rows, const float *x, const uint16_t *weights, const float *bias, uint16_t *y, int64_t in,
                      int64_t out) {
  switch (rows) {
    FOUR_CASES(1)
#if TILE_ROWS == 16
    FOUR_CASES(5)
    FOUR_CASES(9)
    FOUR_CASES(13)
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

static int64_t float_bytes(int64_t rows, int64_t in) {
  int64_t size = in_tiles(in) ? sizeof(uint16_t) : sizeof(float);
  return (rows + PANEL - 1) / PANEL * PANEL * in * size;
}

int expands_blocks(int64_t in) { return in_tiles(in) && in <= MAX_INPUTS; }

/* Whether blocks are multiplied as integers. */
static int as_integers(const Weights *weights) { return weights->bits != 16 && !expands_blocks(weights->inputs); }

HIDDEN int64_t prepared_bytes(const Weights *weights, int64_t rows) {
  return as_integers(weights) ? block_bytes(rows, weights->inputs) : float_bytes(rows, weights->inputs);
}

HIDDEN int64_t most_prepared_bytes(int64_t rows, int64_t in) {
  int64_t whole = (in + BLOCK - 1) / BLOCK * BLOCK, blocks = block_bytes(rows, whole);
  int64_t floats = (rows + PANEL - 1) / PANEL * PANEL * in * (int64_t)sizeof(float); /* fewer inputs may not be in tiles */
  return floats > blocks ? floats : blocks;
}

HIDDEN void prepare(const Weights *weights, const uint16_t *x, void *prepared, int64_t rows, int64_t begin, int64_t end) {
  int64_t in = weights->inputs;
  if (as_integers(weights)) {
    prepare_blocks(x, prepared, rows, in, begin, end);
    return;
  }
  float *to = prepared;
  for (int64_t at = begin; in_tiles(in) && at < end; at += 32) prepare_tiles(x, prepared, rows, in, at);
  for (int64_t at = begin; !in_tiles(in) && at < end; at += PANEL)
    for (int64_t row = 0; row < rows; row += PANEL)
      if (rows > FEW)
        transpose(x + row * in, to + row * in, least(rows - row, PANEL), in, at);
      else
        for (int64_t some = at; some < rows * in; some += in)
          for (int lane = 0; lane < PANEL; lane += LANES) store_floats(to + some + lane, widen(x + some + lane));
}

static void multiply_floats(const Weights *weights, const float *x, uint16_t *y, int64_t rows, int64_t first,
                            int64_t end) {
  int64_t in = weights->inputs, out = weights->outputs;
  for (int64_t panel = first, panels; panel < end; panel += panels) {
    const uint16_t *from = (const uint16_t *)weights->panels + panel * PANEL * in;
    const float *bias = weights->bias ? weights->bias + panel * PANEL : NULL;
    panels = rows <= FEW && panel + STREAMS <= end ? STREAMS : 1;
    if (rows <= FEW)
      few_rows(rows, panels, x, from, bias, y + panel * PANEL, in, out);
    else
      for (int64_t row = 0; row < rows; row += TILE_ROWS)
        one_panel(least(rows - row, TILE_ROWS), x + row / PANEL * PANEL * in + row % PANEL, from, bias,
                  y + row * out + panel * PANEL, in, out);
  }
}

HIDDEN void multiply_panels(const Weights *weights, const void *prepared, uint16_t *y, int64_t rows, int64_t first,
                            int64_t end) {
  if (as_integers(weights))
    multiply_blocks(weights, prepared, y, rows, first, end);
  else if (in_tiles(weights->inputs))
    multiply_tiles(weights, prepared, y, rows, first, end);
  else
    multiply_floats(weights, prepared, y, rows, first, end);
}

/* x [rows][in], y [rows][out]. Returns 0, or -1 if memory can't be allocated. */
int linear(const Weights *weights, const uint16_t *x, uint16_t *y, int64_t rows, int threads) {
  if (rows == 0) return 0;
  char *prepared = aligned_alloc(64, (size_t)((prepared_bytes(weights, rows) + 63) / 64 * 64));
  if (!prepared) return -1;
  int64_t in = weights->inputs, out = weights->outputs, panels = out / PANEL, columns = (in + 31) / 32;
  int64_t cached = rows_in_cache(prepared_bytes(weights, 32)), groups = (rows + cached - 1) / cached;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t part = 0; part < groups * columns; part++) {
      int64_t row = part / columns * cached, at = part % columns * 32;
      prepare(weights, x + row * in, prepared + prepared_bytes(weights, row), least(rows - row, cached), at,
              least(at + 32, in));
    }
    for (int64_t row = 0; row < rows; row += cached) {
#pragma omp for schedule(static) nowait
      for (int64_t panel = 0; panel < panels; panel += STREAMS)
        multiply_panels(weights, prepared + prepared_bytes(weights, row), y + row * out, least(rows - row, cached), panel,
                        least(panel + STREAMS, panels));
    }
  }
  free(prepared);
  return 0;
}
