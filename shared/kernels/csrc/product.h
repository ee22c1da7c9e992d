/* Matrix products of operands in cache, in float32. */
#pragma once
#include "simd.h"

/* Size of a microkernel: its sums take 24 of 32 registers, or 12 of 16. */
enum { ROWS = 6, VECTORS = REGISTERS / 8 };

#define MICROKERNEL(M, N)                                                                                              \
  static void micro_##M##_##N(const float *a, int64_t a_row, int64_t a_column, const float *b, int64_t b_row,          \
                              float *c, int64_t c_row, int64_t depth, int add) {                                       \
    vec sums[M][N], right[N];                                                                                          \
    _Pragma("GCC unroll 6") for (int i = 0; i < M; i++) _Pragma("GCC unroll 4") for (int j = 0; j < N; j++)            \
        sums[i][j] = add ? load_floats(c + i * c_row + j * LANES) : (vec){0};                                          \
    for (int64_t p = 0; p < depth; p++) {                                                                              \
      _Pragma("GCC unroll 4") for (int j = 0; j < N; j++) right[j] = load_floats(b + p * b_row + j * LANES);           \
      _Pragma("GCC unroll 6") for (int i = 0; i < M; i++) _Pragma("GCC unroll 4") for (int j = 0; j < N; j++)          \
          sums[i][j] = right[j] * a[i * a_row + p * a_column] + sums[i][j];                                            \
    }                                                                                                                  \
    _Pragma("GCC unroll 6") for (int i = 0; i < M; i++) _Pragma("GCC unroll 4") for (int j = 0; j < N; j++)            \
        store_floats(c + i * c_row + j * LANES, sums[i][j]);                                                           \
  }
#if LANES == 8
#define MICROKERNELS(M) MICROKERNEL(M, 1) MICROKERNEL(M, 2)
#define OF_ROWS(M) {micro_##M##_1, micro_##M##_2}
#else
#define MICROKERNELS(M) MICROKERNEL(M, 1) MICROKERNEL(M, 2) MICROKERNEL(M, 3) MICROKERNEL(M, 4)
#define OF_ROWS(M) {micro_##M##_1, micro_##M##_2, micro_##M##_3, micro_##M##_4}
#endif
MICROKERNELS(1)
MICROKERNELS(2)
MICROKERNELS(3)
MICROKERNELS(4)
MICROKERNELS(5)
MICROKERNELS(6)

typedef void Microkernel(const float *, int64_t, int64_t, const float *, int64_t, float *, int64_t, int64_t, int);
static Microkernel *const microkernels[ROWS][VECTORS] = {OF_ROWS(1), OF_ROWS(2), OF_ROWS(3),
                                                         OF_ROWS(4), OF_ROWS(5), OF_ROWS(6)};

/* A matrix product of operands in cache: c [m][n] = a b, or c + a b if `add` is set; n is a multiple of LANES and
 * a(i, p) = a[i * a_row + p * a_column]. */
static void product(int64_t m, int64_t n, int64_t depth, const float *a, int64_t a_row, int64_t a_column,
                    const float *b, int64_t b_row, float *c, int64_t c_row, int add) {
  for (int64_t j = 0; j < n; j += VECTORS * LANES)
    for (int64_t i = 0; i < m; i += ROWS)
      microkernels[least(m - i, ROWS) - 1][least((n - j) / LANES, VECTORS) - 1](
          a + i * a_row, a_row, a_column, b + j, b_row, c + i * c_row + j, c_row, depth, add);
}
