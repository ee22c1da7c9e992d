/* Weights of 4 or 8 bits in blocks of 32 inputs, as in GGUF files.
 *
 * A weight is scale * code + least, with an unsigned code and two float16 numbers for each block and output: Q4_1 is that
 * form, Q4_0 has least = -8 scale, Q8_0 least = -128 scale.
 *
 * Layout. A panel holds the weights of 16 outputs: [in / 32][16 scales, 16 leasts, vectors of 16 words]. A 32-bit word
 * holds 8 codes of 4 bits or 4 codes of 8 bits of one output. For tiles, a word has codes of every second input, and the
 * words of a vector are those of 8 outputs, even and odd inputs side by side. For products of integers, a vector has a
 * word of each output, and a shift and a mask separate two codes, 16 bits apart: two inputs side by side. */
#pragma once
#include "simd.h"
#include "weights.h"

enum { BLOCK = 32, MAX_INPUTS = 32768 };

/* Products of integers (quantised.c); like `prepared_bytes`, `prepare` and `multiply_panels` of weights.h. */
HIDDEN int64_t block_bytes(int64_t rows, int64_t in);
HIDDEN void prepare_blocks(const uint16_t *x, void *prepared, int64_t rows, int64_t in, int64_t begin, int64_t end);
HIDDEN void multiply_blocks(const Weights *weights, const void *prepared, uint16_t *y, int64_t rows, int64_t first,
                            int64_t end);

/* LANES numbers of float16 to float32. */
INLINE vec from_float16(const uint16_t *values) {
#if LANES == 16
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)values));
#elif LANES == 8
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)values));
#elif defined(__aarch64__)
  return __builtin_convertvector(*(const __fp16 __attribute__((vector_size(8), aligned(2), may_alias)) *)values, vec);
#endif
}
