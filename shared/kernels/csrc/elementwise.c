/* RMSNorm, SwiGLU and the rotary embedding, forward and backward: one pass over memory each.
 *
 * Tensors are bfloat16 if `half` is set, else float32; arithmetic is float32. No sum depends on the number of threads.
 */
#include <math.h>

#include "simd.h"

/* RMSNorm (Zhang and Sennrich 2019): y = weight * x * scale with scale = 1 / sqrt(mean(x^2) + epsilon).
 * x and y [rows][width], scales [rows] or null; width is a multiple of 16. */
AVX512 void rms_norm(const void *x, const float *weight, void *y, float *scales, int64_t rows, int64_t width,
                     float epsilon, int half, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; row++) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t at = 0; at < width; at += LANES) {
      __m512 values = load(x, row * width + at, half);
      squares = _mm512_fmadd_ps(values, values, squares);
    }
    float scale = 1 / sqrtf(_mm512_reduce_add_ps(squares) / (float)width + epsilon);
    if (scales) scales[row] = scale;
    for (int64_t at = 0; at < width; at += LANES) {
      __m512 unit = _mm512_mul_ps(load(x, row * width + at, half), broadcast(scale));
      store(y, row * width + at, _mm512_mul_ps(unit, _mm512_loadu_ps(weight + at)), half);
    }
  }
}

/* dx = scale * (g - unit * mean(g * unit)) with g = weight * dy and unit = x * scale. */
AVX512 void rms_norm_backward(const void *dy, const void *x, const float *weight, const float *scales, void *dx,
                              int64_t rows, int64_t width, int half, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; row++) {
    __m512 scale = broadcast(scales[row]), sum = _mm512_setzero_ps();
    for (int64_t at = 0; at < width; at += LANES) {
      __m512 slope = _mm512_mul_ps(load(dy, row * width + at, half), _mm512_loadu_ps(weight + at));
      sum = _mm512_fmadd_ps(slope, _mm512_mul_ps(load(x, row * width + at, half), scale), sum);
    }
    __m512 mean = broadcast(_mm512_reduce_add_ps(sum) / (float)width);
    for (int64_t at = 0; at < width; at += LANES) {
      __m512 slope = _mm512_mul_ps(load(dy, row * width + at, half), _mm512_loadu_ps(weight + at));
      __m512 unit = _mm512_mul_ps(load(x, row * width + at, half), scale);
      store(dx, row * width + at, _mm512_mul_ps(_mm512_fnmadd_ps(unit, mean, slope), scale), half);
    }
  }
}

INLINE __m512 sigmoid(__m512 x) {
  __m512 power = exp2_vector(_mm512_mul_ps(x, broadcast(-(float)M_LOG2E)));
  return _mm512_div_ps(broadcast(1), _mm512_add_ps(broadcast(1), power));
}

/* SwiGLU (Shazeer 2020): y = silu(gate) * up, each of `count` numbers, a multiple of 16. */
AVX512 void swiglu(const void *gate, const void *up, void *y, int64_t count, int half, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t at = 0; at < count; at += LANES) {
    __m512 x = load(gate, at, half);
    store(y, at, _mm512_mul_ps(_mm512_mul_ps(x, sigmoid(x)), load(up, at, half)), half);
  }
}

/* Overwrites dy with the gradient of `up`. */
AVX512 void swiglu_backward(const void *gate, const void *up, void *dy, void *dgate, int64_t count, int half,
                            int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t at = 0; at < count; at += LANES) {
    __m512 x = load(gate, at, half), grad = load(dy, at, half), part = sigmoid(x), silu = _mm512_mul_ps(x, part);
    __m512 slope = _mm512_fmadd_ps(silu, _mm512_sub_ps(broadcast(1), part), part); /* silu' = s + x s (1 - s) */
    store(dgate, at, _mm512_mul_ps(_mm512_mul_ps(grad, load(up, at, half)), slope), half);
    store(dy, at, _mm512_mul_ps(grad, silu), half);
  }
}

/* Rotary embedding (Su et al. 2021): y1 = x1 cos1 - x2 sin1, y2 = x2 cos2 + x1 sin2 for the two halves of each head;
 * backward is its transpose. x is a view of [tokens][heads][width] with the given strides, y [tokens][heads][width],
 * cos and sin [tokens][width]; width is a multiple of 32. */
AVX512 void rotate(const void *x, int64_t token_stride, int64_t head_stride, const void *cos, const void *sin, void *y,
                   int64_t tokens, int64_t heads, int64_t width, int backward, int half, int threads) {
  int64_t middle = width / 2;
  __m512 zero = _mm512_setzero_ps();
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t token = 0; token < tokens; token++)
    for (int64_t head = 0; head < heads; head++)
      for (int64_t at = 0; at < middle; at += LANES) {
        int64_t from = token * token_stride + head * head_stride + at, angle = token * width + at;
        int64_t to = (token * heads + head) * width + at;
        __m512 x1 = load(x, from, half), x2 = load(x, from + middle, half);
        __m512 sin1 = load(sin, angle, half), sin2 = load(sin, angle + middle, half);
        __m512 cross1 = backward ? _mm512_mul_ps(x2, sin2) : _mm512_mul_ps(_mm512_sub_ps(zero, x2), sin1);
        __m512 cross2 = backward ? _mm512_mul_ps(_mm512_sub_ps(zero, x1), sin1) : _mm512_mul_ps(x1, sin2);
        store(y, to, _mm512_fmadd_ps(x1, load(cos, angle, half), cross1), half);
        store(y, to + middle, _mm512_fmadd_ps(x2, load(cos, angle + middle, half), cross2), half);
      }
}
