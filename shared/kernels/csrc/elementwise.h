/* Rows of RMSNorm, SwiGLU and the rotary embedding: what elementwise.c and decoder.c share. */
#pragma once
#include "simd.h"

/* One row of RMSNorm; returns the row's scale. */
INLINE float norm_row(const void *x, const float *weight, void *y, int64_t row, int64_t width, float epsilon,
                      int half) {
  vec squares = {0};
  for (int64_t at = 0; at < width; at += LANES) {
    vec values = load(x, row * width + at, half);
    squares = values * values + squares;
  }
  float scale = 1 / sqrtf(sum_of(squares) / (float)width + epsilon);
  for (int64_t at = 0; at < width; at += LANES)
    store(y, row * width + at, load(x, row * width + at, half) * scale * load_floats(weight + at), half);
  return scale;
}

INLINE vec sigmoid(vec x) { return 1 / (1 + exp2_vector(x * -(float)M_LOG2E)); }
INLINE vec silu(vec x) { return x * sigmoid(x); }

/* The rotary embedding of one head, or its transpose: x from index `from` on, y from `to` on, angles from `angle`
 * on. */
INLINE void rotate_head(const void *x, int64_t from, const void *cos, const void *sin, int64_t angle, void *y,
                        int64_t to, int64_t width, int backward, int half) {
  int64_t middle = width / 2;
  for (int64_t at = 0; at < middle; at += LANES) {
    vec x1 = load(x, from + at, half), x2 = load(x, from + at + middle, half);
    vec sin1 = load(sin, angle + at, half), sin2 = load(sin, angle + at + middle, half);
    vec cross1 = backward ? x2 * sin2 : -x2 * sin1, cross2 = backward ? -x1 * sin1 : x1 * sin2;
    store(y, to + at, x1 * load(cos, angle + at, half) + cross1, half);
    store(y, to + at + middle, x2 * load(cos, angle + at + middle, half) + cross2, half);
  }
}
