/* A row of logits as choose_tokens reads it: types, changes of logits, and their weights. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"

#pragma GCC optimize("fp-contract=off")

enum { LANES = 16, BUCKETS = 1024, NOT_FINITE = -1, NOTHING_LEFT = -2 };

#define ALWAYS __attribute__((always_inline)) static inline

typedef float Floats __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t)), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t)), aligned(2)));
typedef float EightFloats __attribute__((vector_size(8 * sizeof(float)), aligned(4)));
typedef double Doubles __attribute__((vector_size(8 * sizeof(double)), aligned(8)));

typedef struct {
  int64_t count;
  double sum;
} Amount;

/* Tokens, by rising id, divided by their logits into buckets, highest first. */
typedef struct {
  int64_t count;
  int32_t *ids;
  uint16_t *buckets;
  Amount amounts[BUCKETS];
} Division;

typedef struct {
  int64_t vocab;
  float *logits, *weights; /* [vocab], padded to LANES with -inf and 0 */
  Division all, part;
} Row;

typedef struct {
  int32_t id;
  Amount through; /* of all tokens up to this one, in order */
} Place;

ALWAYS Floats blend(Ints mask, Floats yes, Floats no) {
  return (Floats)((mask & (Ints)yes) | (~mask & (Ints)no));
}

ALWAYS Floats fill(float value) { return value - (Floats){0}; }

ALWAYS int any(Ints mask) {
  int64_t pairs[LANES / 2], found = 0;
  memcpy(pairs, &mask, sizeof pairs);
  for (int i = 0; i < LANES / 2; i++) found |= pairs[i];
  return found != 0;
}

ALWAYS float highest_of(Floats values) {
  float highest = values[0];
  for (int lane = 1; lane < LANES; lane++) highest = values[lane] > highest ? values[lane] : highest;
  return highest;
}

/* Copies the logits as float32 and returns the highest; NaN if any is NaN. */
ALWAYS float read_logits(const Draw *draw, Row *row) {
  int64_t whole = row->vocab / LANES * LANES;
  Floats highest = fill(-INFINITY);
  Ints unordered = {0};
  for (int64_t at = 0; at < whole; at += LANES) {
    Floats values;
    if (draw->half)
      values = (Floats)(__builtin_convertvector(*(const Halves *)((const uint16_t *)draw->logits + at), Ints) << 16);
    else
      values = *(const Floats *)((const float *)draw->logits + at);
    *(Floats *)(row->logits + at) = values;
    highest = blend(values > highest, values, highest);
    unordered |= values != values;
  }
  float top = highest_of(highest);
  int wrong = any(unordered);
  for (int64_t at = whole; at < row->vocab; at++) {
    float value;
    uint32_t bits = draw->half ? (uint32_t)((const uint16_t *)draw->logits)[at] << 16 : 0;
    memcpy(&value, draw->half ? (const void *)&bits : (const float *)draw->logits + at, sizeof value);
    row->logits[at] = value;
    top = value > top ? value : top;
    wrong |= value != value;
  }
  for (int64_t at = row->vocab; at % LANES; at++) row->logits[at] = -INFINITY;
  return wrong ? NAN : top;
}

/* Changes logits, and those of impossible tokens to -inf; returns the highest. */
ALWAYS float change_logits(const Draw *draw, Row *row) {
  for (int64_t i = 0; i < draw->num_changed; i++) row->logits[draw->changed[i]] = draw->changes[i];
  for (int64_t at = 0; draw->allowed && at < row->vocab; at++)
    row->logits[at] = draw->allowed[at] ? row->logits[at] : -INFINITY;
  Floats highest = fill(-INFINITY);
  for (int64_t at = 0; at < row->vocab; at += LANES) {
    Floats values = *(Floats *)(row->logits + at);
    highest = blend(values > highest, values, highest);
  }
  return highest_of(highest);
}

/* 2^x for x in [-64, 0], rounded to a multiple of 2^-34. */
ALWAYS Floats weight(Floats x) {
  const float series[] = {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f,
                          2.4022651e-1f, 6.9314718e-1f, 1.0f};
  const float to_whole = 0x1.8p23f, to_quantum = 0x1.8p-11f;
  Floats whole = (x + to_whole) - to_whole, part = x - whole, power = fill(series[0]);
  for (int term = 1; term < 7; term++) power = power * part + series[term];
  Ints exponent = (__builtin_convertvector(whole, Ints) + 127) << 23;
  return (power * (Floats)exponent + to_quantum) - to_quantum;
}

ALWAYS double sum_of(Doubles low, Doubles high) {
  double sum = 0;
  for (int lane = 0; lane < 8; lane++) sum += low[lane] + high[lane];
  return sum;
}

/* Writes the weights and returns their sum. */
ALWAYS double weigh(Row *row, float highest, float scale) {
  Doubles low = {0}, high = {0};
  for (int64_t at = 0; at < row->vocab; at += LANES) {
    Floats x = (*(Floats *)(row->logits + at) - highest) * scale;
    Floats weights = weight(blend(x >= -64.0f, x, fill(-64.0f))); /* NaN, from inf - inf, becomes -64, too */
    *(Floats *)(row->weights + at) = weights;
    low += __builtin_convertvector(*(EightFloats *)(row->weights + at), Doubles);
    high += __builtin_convertvector(*(EightFloats *)(row->weights + at + 8), Doubles);
  }
  return sum_of(low, high);
}
