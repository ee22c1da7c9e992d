/* RMSNorm, SwiGLU and the rotary embedding, forward and backward: one pass over memory each.
 *
 * Tensors are bfloat16 if `half` is set, else float32; arithmetic is float32. No sum depends on the number of threads.
 */
#include "elementwise.h"

#include "kernels.h"

/* RMSNorm (Zhang and Sennrich 2019): y = weight * x * scale with scale = 1 / sqrt(mean(x^2) + epsilon).
 * x and y [rows][width], scales [rows] or null; width is a multiple of 16. */
void rms_norm(const void *x, const float *weight, void *y, float *scales, int64_t rows, int64_t width, float epsilon,
              int half, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; row++) {
    float scale = norm_row(x, weight, y, row, width, epsilon, half);
    if (scales) scales[row] = scale;
  }
}

/* dx = scale * (g - unit * mean(g * unit)) with g = weight * dy and unit = x * scale. */
void rms_norm_backward(const void *dy, const void *x, const float *weight, const float *scales, void *dx, int64_t rows,
                       int64_t width, int half, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; row++) {
    float scale = scales[row];
    vec sum = {0};
    for (int64_t at = 0; at < width; at += LANES) {
      vec slope = load(dy, row * width + at, half) * load_floats(weight + at);
      sum = slope * (load(x, row * width + at, half) * scale) + sum;
    }
    float mean = sum_of(sum) / (float)width;
    for (int64_t at = 0; at < width; at += LANES) {
      vec slope = load(dy, row * width + at, half) * load_floats(weight + at);
      vec unit = load(x, row * width + at, half) * scale;
      store(dx, row * width + at, (slope - unit * mean) * scale, half);
    }
  }
}

/* SwiGLU (Shazeer 2020): y [rows][width] = silu(gate) * up, whose rows are `stride` numbers apart; width is a multiple
 * of 16. */
void swiglu(const void *gate, const void *up, void *y, int64_t rows, int64_t width, int64_t stride, int half,
            int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t at = 0; at < width; at += LANES) {
      vec gated = silu(load(gate, row * stride + at, half));
      store(y, row * width + at, gated * load(up, row * stride + at, half), half);
    }
}

/* Overwrites dy with the gradient of `up`. */
void swiglu_backward(const void *gate, const void *up, void *dy, void *dgate, int64_t count, int half, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t at = 0; at < count; at += LANES) {
    vec x = load(gate, at, half), grad = load(dy, at, half), part = sigmoid(x), silu = x * part;
    vec slope = silu * (1 - part) + part; /* silu' = s + x s (1 - s) */
    store(dgate, at, grad * load(up, at, half) * slope, half);
    store(dy, at, grad * silu, half);
  }
}

/* Rotary embedding (Su et al. 2021): y1 = x1 cos1 - x2 sin1, y2 = x2 cos2 + x1 sin2 for the two halves of each head;
 * backward is its transpose. x is a view of [tokens][heads][width] with the given strides, y [tokens][heads][width],
 * cos and sin [tokens][width]; width is a multiple of 32. */
void rotate(const void *x, int64_t token_stride, int64_t head_stride, const void *cos, const void *sin, void *y,
            int64_t tokens, int64_t heads, int64_t width, int backward, int half, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t token = 0; token < tokens; token++)
    for (int64_t head = 0; head < heads; head++)
      rotate_head(x, token * token_stride + head * head_stride, cos, sin, token * width, y,
                  (token * heads + head) * width, width, backward, half);
}
