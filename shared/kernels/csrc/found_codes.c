/* find_codes: the codes of 4 or 8 bits, and the float16 numbers, from which weights in bfloat16 were dequantised.
 *
 * A weight is scale * code + least, rounded, so it lies between two bounds, and with a given `least` each weight bounds
 * the scale. `least` rounds to the block's smallest weight, as about eight numbers of float16 do: each is tried. */
#include <omp.h>

#include "blocks.h"
#include "kernels.h"

enum { VECTORS = BLOCK / LANES };

typedef struct {
  vec weights[VECTORS], lower[VECTORS], upper[VECTORS], codes[VECTORS], inverses[VECTORS];
} Found;

INLINE float smallest_of(vec v) { return -largest_of(-v); }

/* The nearest number of float16 to one that is not above its largest. */
static float to_float16(float value) {
  union {
    float value;
    int32_t bits;
  } step = {value};
  int32_t exponent = step.bits >> 23 & 0xff; /* 113 is that of float16's smallest normal number */
  step.bits = ((exponent < 113 ? 113 : exponent) - 10) << 23;
  return rintf(value / step.value) * step.value;
}

/* The next larger one: between half and one and a half steps are added, and rounded. */
static float next_float16(float value) { return to_float16(value + fmaxf(fabsf(value) * 0x1.4p-11f, 0x1.8p-25f)); }

/* Weights, and the bounds of the numbers that round to them. */
static void read_block(const uint16_t *from, Found *block) {
  for (int v = 0; v < VECTORS; v++) {
    vec weights = block->weights[v] = widen(from + v * LANES);
    vec outer = (vec)((ivec)weights + 0x8000), inner = choose(weights == 0, weights, (vec)((ivec)weights - 0x8000));
    block->lower[v] = choose(weights < 0, outer, inner);
    block->upper[v] = choose(weights < 0, inner, outer);
  }
}

static void set_codes(Found *block, float least, float step, float first, float last) {
  const float shift = 12582912; /* 1.5 * 2^23: adding it leaves no bits for a fraction */
  for (int v = 0; v < VECTORS; v++) {
    vec codes = (block->weights[v] - least) / (step == 0 ? 1 : step) + shift;
    block->codes[v] = smaller(larger(codes - shift, broadcast(first)), broadcast(last));
    block->inverses[v] = 1 / block->codes[v];
  }
}

/* Whether all weights are scale * code + least. */
static int is_same(const Found *block, float scale, float least) {
  ivec differs = {0};
  for (int v = 0; v < VECTORS; v++) {
    vec found = (vec)(round_to_bfloat16(block->codes[v] * scale + least) & 0xffff0000);
    differs |= ~(found == block->weights[v]);
  }
  int32_t any = 0;
  for (int lane = 0; lane < LANES; lane++) any |= differs[lane];
  return !any;
}

/* Sets the scale and returns 1, if there is one for these codes, none of them negative, and this `least`. */
static int find_scale(const Found *block, float least, float *scale) {
  vec low = broadcast(-INFINITY), high = broadcast(INFINITY);
  for (int v = 0; v < VECTORS; v++) {
    vec codes = block->codes[v], inverses = block->inverses[v];
    low = choose(codes == 0, low, larger((block->lower[v] - least) * inverses, low));
    high = choose(codes == 0, high, smaller((block->upper[v] - least) * inverses, high));
  }
  float from = largest_of(low), to = smallest_of(high), rounding = fabsf(to) * 0x1p-20f;
  /* At a bound, a weight may be rounded to either side. If all codes are 0, there is no bound. */
  const float tried[] = {(from + to) / 2, from, to, 0};
  for (int i = 0; i < 4 && from <= to + rounding; i++)
    if (*scale = to_float16(tried[i]), is_same(block, *scale, least)) return 1;
  return 0;
}

/* Rounding to bfloat16 changes no number by more than this part of it. */
#define ROUNDING 0x1p-8f

/* Codes from 0 to 15. */
static int find_from_zero(Found *block, float low, float high, float *scale, float *least) {
  set_codes(block, low, (high - low) / 15, 0, 15);
  float bound = low + fabsf(low) * ROUNDING;
  for (*least = to_float16(2 * low - bound); *least <= bound; *least = next_float16(*least))
    if (find_scale(block, *least, scale)) return 1;
  return 0;
}

/* Codes around 0: one of the extreme weights has an extreme code. */
static int find_around_zero(Found *block, float low, float high, int smallest, float *scale) {
  int largest = -1 - smallest, is_even = smallest == -128;
  const float steps[] = {fmaxf(high, -low) / (float)largest, low / (float)smallest, high / (float)smallest};
  for (int i = !is_even; i < (is_even ? 1 : 3); i++) {
    float bound = steps[i] + fabsf(steps[i]) * ROUNDING;
    for (*scale = to_float16(2 * steps[i] - bound); *scale <= bound; *scale = next_float16(*scale)) {
      set_codes(block, 0, *scale, (float)smallest, (float)largest);
      if (is_same(block, *scale, 0)) return 1;
    }
  }
  return 0;
}

/* weights [blocks][32]. Writes codes [blocks][32], counted from the smallest, and numbers [blocks][scale, least], all of
 * them numbers of float16. `smallest` is 0 (Q4_1), -8 (Q4_0) or -128 (Q8_0). Returns how many blocks were found. */
int find_codes(const uint16_t *weights, int64_t blocks, int smallest, uint8_t *codes, float *numbers, int threads) {
  int64_t num_found = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : num_found)
  for (int64_t at = 0; at < blocks; at++) {
    Found block;
    float scale = 0, least = 0, found[BLOCK];
    read_block(weights + at * BLOCK, &block);
    vec low = block.weights[0], high = low;
    for (int v = 1; v < VECTORS; v++) low = smaller(low, block.weights[v]), high = larger(high, block.weights[v]);
    int is_found = smallest == 0 ? find_from_zero(&block, smallest_of(low), largest_of(high), &scale, &least)
                                 : find_around_zero(&block, smallest_of(low), largest_of(high), smallest, &scale);
    if (!is_found) continue;
    num_found++;
    numbers[2 * at] = scale;
    numbers[2 * at + 1] = smallest == 0 ? least : scale * smallest;
    for (int v = 0; v < VECTORS; v++) store_floats(found + v * LANES, block.codes[v]);
    for (int i = 0; i < BLOCK; i++) codes[at * BLOCK + i] = (uint8_t)(found[i] - smallest);
  }
  return num_found == blocks;
}
