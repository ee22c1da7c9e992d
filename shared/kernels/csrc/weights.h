/* Products of rows of bfloat16 with packed weights, in parts, so that threads can divide them: what linear.c,
 * quantised.c and decoder.c share. */
#pragma once
#include "kernels.h"
#include "simd.h"

/* Bytes of 32 inputs of a panel. */
static inline int64_t block_size(int64_t bits) { return PANEL * (bits == 16 ? 64 : 4 * (bits + 1)); }

/* Distance of a prefetch of weights: memory latency at the rate at which they are used. */
enum { PREFETCH_BYTES = 4096 };

/* Bytes of a prepared x; of the rows before row 16 i as well. The second: with any weights of at most `in` inputs. */
HIDDEN int64_t prepared_bytes(const Weights *weights, int64_t rows);
HIDDEN int64_t most_prepared_bytes(int64_t rows, int64_t in);

/* Columns [begin, end) of x in the form that `multiply_panels` reads; begin and end are multiples of 32, except for the
 * end of x. */
HIDDEN void prepare(const Weights *weights, const uint16_t *x, void *prepared, int64_t rows, int64_t begin, int64_t end);

/* Outputs of panels [first, end). */
HIDDEN void multiply_panels(const Weights *weights, const void *prepared, uint16_t *y, int64_t rows, int64_t first,
                            int64_t end);

/* How many rows of a prepared x, a multiple of 32, stay in the second-level cache while panels are read. */
static inline int64_t rows_in_cache(int64_t bytes_of_32_rows) {
  enum { CACHED_BYTES = 1 << 20 };
  return bytes_of_32_rows < CACHED_BYTES ? CACHED_BYTES / bytes_of_32_rows * 32 : 32;
}
