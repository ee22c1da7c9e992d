/* linear: y = x W^T + b in bfloat16, computed in float32, in AMX tiles where there are some (tiles.h). Weights in blocks
 * of 4 or 8 bits are expanded to bfloat16 for tiles; without tiles they are multiplied as integers (quantised.c).
 *
 * Processors without AMX tiles multiply float32 faster than bfloat16 (measured on a Xeon with AVX512-BF16: 5.4e9 fused
 * multiply-adds of 16 numbers a second and core, against 1.3e9 dot products of 16 pairs), so every weight is widened in
 * a register. That costs one instruction for 16 weights, and 4 rows share it. The sum of a row does not depend on other
 * rows.
 *
 * Layout. A panel holds the weights of 16 outputs: [in / 2][16 outputs][2 inputs] of bfloat16, so one register holds
 * two inputs of 16 outputs, and a shift and a mask separate them. x is widened once, to [rows][in] of float32. */
#include <omp.h>
#include <stdlib.h>

#include "blocks.h"
#include "weights.h"

enum {
  VECTORS = PANEL / LANES, /* of a panel */
  TILE_ROWS = 4,
  MAX_VECTORS = LANES == PANEL ? 4 : 2 * VECTORS, /* of the panels of a tile */
  SHARE = 4                                       /* panels that a thread takes at once */
};

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

/* How many panels a tile spans. The sums stay in registers, beside the widened weights. Several panels are several
 * streams of reads, which few rows need, because memory is their limit; with 32 registers of 16 lanes, they also share
 * the loads of x among many rows. */
INLINE int panels_at_once(int64_t rows) { return LANES == PANEL ? 4 : rows <= 2 ? 2 : 1; }

/* `rows` rows of x [rows][in] times `panels` panels, both constants at each call. */
INLINE void tile(int rows, int panels, const float *x, const uint16_t *weights, const float *bias, uint16_t *y,
                 int64_t in, int64_t out) {
  const int vectors = panels * VECTORS;
  vec sums[TILE_ROWS][MAX_VECTORS];
#pragma GCC unroll 4
  for (int row = 0; row < rows; row++)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) sums[row][v] = bias ? load_floats(bias + v * LANES) : (vec){0};
  for (int64_t at = 0; at < in; at += 2) {
    vec first[MAX_VECTORS], second[MAX_VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) {
      const uint16_t *pairs = weights + (v / VECTORS * in + at) * PANEL + v % VECTORS * 2 * LANES;
      if (v % VECTORS == 0) __builtin_prefetch(weights + v / VECTORS * in * PANEL + ahead(at, in, panels));
      widen_pairs(pairs, &first[v], &second[v]);
    }
#pragma GCC unroll 4
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; v++) sums[row][v] = first[v] * x[row * in + at] + sums[row][v];
#pragma GCC unroll 4
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; v++) sums[row][v] = second[v] * x[row * in + at + 1] + sums[row][v];
  }
#pragma GCC unroll 4
  for (int row = 0; row < rows; row++)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) narrow(y + row * out + v * LANES, sums[row][v]);
}

#define CASE(ROWS)                                                                                                     \
  case ROWS:                                                                                                           \
    if (panels > 1)                                                                                                    \
      tile(ROWS, panels_at_once(ROWS), x, weights, bias, y, in, out);                                                  \
    else                                                                                                               \
      tile(ROWS, 1, x, weights, bias, y, in, out);                                                                     \
    break;

static void some_rows(int64_t rows, int panels, const float *x, const uint16_t *weights, const float *bias, uint16_t *y,
                      int64_t in, int64_t out) {
  switch (rows) {
    CASE(1)
    CASE(2)
    CASE(3)
    CASE(4)
  }
}

static int64_t float_bytes(int64_t rows, int64_t in) {
  if (in_tiles(in)) return (rows + PANEL - 1) / PANEL * PANEL * in * (int64_t)sizeof(uint16_t);
  return rows * in * (int64_t)sizeof(float);
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
  for (int64_t at = begin; in_tiles(in) && at < end; at += 32) prepare_tiles(x, prepared, rows, in, at);
  if (in_tiles(in)) return;
  for (int64_t row = 0; row < rows; row++)
    for (int64_t at = row * in + begin; at < row * in + end; at += LANES)
      store_floats((float *)prepared + at, widen(x + at));
}

static void multiply_floats(const Weights *weights, const float *x, uint16_t *y, int64_t rows, int64_t first,
                            int64_t end) {
  int64_t in = weights->inputs, out = weights->outputs;
  for (int64_t panel = first, panels; panel < end; panel += panels) {
    const uint16_t *from = (const uint16_t *)weights->panels + panel * PANEL * in;
    const float *bias = weights->bias ? weights->bias + panel * PANEL : NULL;
    panels = panels_at_once(rows) <= end - panel ? panels_at_once(rows) : 1;
    for (int64_t row = 0; row < rows; row += TILE_ROWS)
      some_rows(least(rows - row, TILE_ROWS), (int)panels, x + row * in, from, bias, y + row * out + panel * PANEL, in,
                out);
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
      for (int64_t panel = 0; panel < panels; panel += SHARE)
        multiply_panels(weights, prepared + prepared_bytes(weights, row), y + row * out, least(rows - row, cached), panel,
                        least(panel + SHARE, panels));
    }
  }
  free(prepared);
  return 0;
}
