/* `attend_tile` in AMX tiles: products of bfloat16 with sums in float32, and weights that are rounded to bfloat16.
 *
 * Scores are [slots][queries], so keys are read as they lie in the cache, and a vector holds one slot's scores of 16
 * queries. Queries and values are transposed once, and results are [width][queries] until the end. */
#pragma once
#include <string.h>

#include "amx.h"
#include "attention.h"

enum {
  SIDE = 16,   /* queries, or numbers of a value, of a tile */
  DEPTH = 32,  /* numbers of a tile's row */
  BLOCK = 32,  /* queries that are computed together, and slots that are multiplied at a time */
  SLOTS = 64, /* of a tile of keys */
};

/* The parts of the scratch memory. A tile is 16 rows of 16 pairs of bfloat16. */
typedef struct {
  uvec *queries;  /* [queries / 16][width / 32][tile] */
  uvec *values;   /* [SLOTS / 32][width / 16][tile] */
  uvec *weights;  /* [SLOTS / 32][BLOCK / 16][tile] */
  vec *scores;    /* [SLOTS][BLOCK / 16] */
  vec *results;   /* [queries / 16][width] */
  vec *highest;   /* [queries / 16] */
  vec *sums;      /* [queries / 16] */
  ivec *positions; /* [queries / 16] */
  uint16_t *keys; /* [32][width]: the last slots, if they are fewer */
} Places;

/* Numbers of float32. */
static int64_t amx_scratch(int64_t queries, int64_t width) {
  return queries * (width / 2 + width + 3) + SLOTS * (width / 2 + BLOCK / 2 + BLOCK) + BLOCK * width / 2;
}

static Places divide(float *scratch, int64_t queries, int64_t width) {
  Places places;
  places.queries = (uvec *)scratch;
  places.values = places.queries + queries * width / 2 / LANES;
  places.weights = places.values + SLOTS * width / 2 / LANES;
  places.scores = (vec *)(places.weights + SLOTS * BLOCK / 2 / LANES);
  places.results = places.scores + SLOTS * BLOCK / LANES;
  places.highest = places.results + queries * width / LANES;
  places.sums = places.highest + queries / LANES;
  places.positions = (ivec *)(places.sums + queries / LANES);
  places.keys = (uint16_t *)(places.positions + queries / LANES);
  return places;
}

/* Transposes 16 rows of 16 numbers of 32 bits: in round i, numbers that are 2^i rows and columns apart change places. */
INLINE void transpose(uvec rows[SIDE]) {
#pragma GCC unroll 4
  for (int step = 1; step < SIDE; step *= 2) {
    uvec lane = (uvec)lane_numbers(), moves = (uvec)((lane & (uint32_t)step) != 0);
    uvec upper = (lane & ~moves) | ((16 + (lane ^ (uint32_t)step)) & moves);
    uvec lower = ((lane ^ (uint32_t)step) & ~moves) | ((16 + lane) & moves);
#pragma GCC unroll 16
    for (int row = 0; row < SIDE; row++) {
      if (row & step) continue;
      uvec above = rows[row], below = rows[row + step];
      rows[row] = __builtin_shuffle(above, below, upper);
      rows[row + step] = __builtin_shuffle(above, below, lower);
    }
  }
}

/* 16 queries from `first` on; those after the last one are 0. */
static void take_queries(const Run *run, int64_t first, uvec *to, ivec *positions) {
  for (int64_t at = 0; at < run->width; at += DEPTH, to += SIDE) {
    uvec rows[SIDE];
#pragma GCC unroll 16
    for (int64_t i = 0; i < SIDE; i++) {
      int64_t token = (first + i) / run->group, head = (first + i) % run->group;
      const uint16_t *from = run->query + token * run->stride + head * run->width + at;
      rows[i] = (uvec){0};
      if (token < run->count) rows[i] = *(const loose_uvec *)from;
    }
    transpose(rows);
    memcpy(to, rows, sizeof rows);
  }
  for (int i = 0; i < SIDE; i++) (*positions)[i] = (int32_t)(run->position + (first + i) / run->group);
}

/* The values of up to 32 slots, and 0 after them. */
static void take_values(const uint16_t *values, int64_t slots, int64_t width, uvec *to) {
  for (int64_t at = 0; at < width; at += SIDE, to += SIDE) {
    uvec pairs[SIDE];
#pragma GCC unroll 16
    for (int64_t pair = 0; pair < SIDE; pair++) {
      const uint16_t *from = values + 2 * pair * width + at;
      uvec even = {0}, odd = {0};
      if (2 * pair < slots) even = __builtin_convertvector(*(const loose_halves *)from, uvec);
      if (2 * pair + 1 < slots) odd = __builtin_convertvector(*(const loose_halves *)(from + width), uvec);
      pairs[pair] = even | odd << 16;
    }
    transpose(pairs);
    memcpy(to, pairs, sizeof pairs);
  }
}

/* Tiles in memory: rows `row` bytes apart, the next tile of a sum `step` bytes away, and the other side's `side` bytes. */
typedef struct {
  const void *first;
  int64_t row, step, side;
} Tiles;

/* sums [2][2] = left [2][depth] x right [depth][2], all in tiles; added to sums if `add` is set. The sums of the second
 * left tile are `side` bytes away, those of the second right tile `step` bytes. */
INLINE void multiply_sides(const Tiles *left, const Tiles *right, int64_t depth, const Tiles *sums, int add) {
  char *to = (char *)sums->first, *below = to + sums->side;
  const char *a = left->first, *b = right->first;
  if (add) {
    _tile_loadd(0, to, sums->row);
    _tile_loadd(1, to + sums->step, sums->row);
    _tile_loadd(2, below, sums->row);
    _tile_loadd(3, below + sums->step, sums->row);
  } else {
    zero_sums();
  }
  for (int64_t i = 0; i < depth; i++, a += left->step, b += right->step) {
    _tile_loadd(4, a, left->row);
    _tile_loadd(5, a + left->side, left->row);
    _tile_loadd(6, b, right->row);
    _tile_loadd(7, b + right->side, right->row);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, to, sums->row);
  _tile_stored(1, to + sums->step, sums->row);
  _tile_stored(2, below, sums->row);
  _tile_stored(3, below + sums->step, sums->row);
}

/* Scores of slots that 16 queries do not see become -infinity. */
static void hide(vec *scores, ivec positions, int64_t first, int64_t slots, int64_t window) {
  ivec before = positions - (int32_t)(window ? window : INT32_MAX);
  for (int64_t slot = 0; slot < slots; slot++) {
    int32_t place = (int32_t)(first + slot);
    vec *some = scores + slot * (BLOCK / SIDE);
    *some = choose((positions >= place) & (before < place), *some, broadcast(-INFINITY));
  }
}

/* 2^x for x <= 0, with a relative error below 4e-5: weights are rounded to bfloat16, whose last bit is 4e-3. */
INLINE vec weight_of(vec x) {
  const float shift = 12582912; /* as in `exp2_vector` */
  x = larger(x, broadcast(-250));
  vec whole = (x + shift) - shift, part = x - whole, power = broadcast(9.6181291e-3f);
  power = power * part + 5.5504109e-2f;
  power = power * part + 2.4022651e-1f;
  power = power * part + 6.9314718e-1f;
  power = power * part + 1;
  return _mm512_scalef_ps(power, whole);
}

/* Pairs of weights, rounded to bfloat16. If one is NaN, so is the sum of its query's weights. */
INLINE uvec pair_weights(vec even, vec odd) {
  return ((uvec)even + 0x8000) >> 16 | (((uvec)odd + 0x8000) & 0xffff0000);
}

/* Turns the scores of a block's queries into weights, pairs of slots side by side; scales the results so far down if a
 * score is higher than the highest before. */
static void weigh(const vec *scores, float scale, int64_t slots, uvec *weights, vec *highest, vec *sums, vec *results,
                  int64_t width) {
  enum { SIDES = BLOCK / SIDE };
  vec most[SIDES], total[SIDES];
#pragma GCC unroll 2
  for (int i = 0; i < SIDES; i++) most[i] = highest[i], total[i] = (vec){0};
  for (int64_t slot = 0; slot < slots; slot++)
#pragma GCC unroll 2
    for (int i = 0; i < SIDES; i++) most[i] = larger(most[i], scores[slot * SIDES + i] * scale);
  for (int64_t slot = 0; slot < slots; slot += 2)
#pragma GCC unroll 2
    for (int i = 0; i < SIDES; i++) {
      vec even = weight_of(scores[slot * SIDES + i] * scale - most[i]);
      vec odd = weight_of(scores[(slot + 1) * SIDES + i] * scale - most[i]);
      total[i] = total[i] + even;
      total[i] = total[i] + odd;
      weights[slot / DEPTH * SIDES * SIDE + i * SIDE + slot % DEPTH / 2] = pair_weights(even, odd);
    }
  for (int i = 0; i < SIDES; i++) {
    vec factor = exp2_vector(highest[i] - most[i]);
    highest[i] = most[i];
    sums[i] = sums[i] * factor + total[i];
    if (_mm512_cmpneq_ps_mask(factor, broadcast(1)))
      for (int64_t at = 0; at < width; at++) results[i * width + at] = results[i * width + at] * factor;
  }
}

/* One block of queries and the slots from `first` on that a tile of keys has. */
static void attend_block(const Run *run, const Places *use, int64_t block, int64_t first, int64_t slots) {
  int64_t width = run->width, side = block * (BLOCK / SIDE);
  int64_t seen = use->positions[side + BLOCK / SIDE - 1][SIDE - 1] + 1 - first;
  if (seen <= 0) return;
  int64_t used = ((seen < slots ? seen : slots) + DEPTH - 1) / DEPTH * DEPTH;
  Tiles queries = {use->queries + side * width / DEPTH * SIDE, 64, 1024, width / DEPTH * 1024};
  for (int64_t slot = 0; slot < used; slot += DEPTH) {
    const uint16_t *from = slot + DEPTH <= slots ? run->keys + (first + slot) * width : use->keys;
    Tiles keys = {from, width * 2, 64, SIDE * width * 2};
    Tiles scores = {use->scores + slot * (BLOCK / SIDE), 128, 64, SIDE * 128};
    multiply_sides(&keys, &queries, width / DEPTH, &scores, 0);
  }
  for (int64_t i = 0; i < BLOCK / SIDE; i++) {
    ivec positions = use->positions[side + i];
    if (first + used - 1 > positions[0] || (run->window && first <= positions[SIDE - 1] - run->window))
      hide(use->scores + i, positions, first, used, run->window);
  }
  weigh(use->scores, run->scale, used, use->weights, use->highest + side, use->sums + side,
        use->results + side * width, width);
  Tiles weights = {use->weights, 64, BLOCK / SIDE * 1024, 1024};
  for (int64_t at = 0; at < width; at += 2 * SIDE) {
    Tiles values = {use->values + at, 64, width / SIDE * 1024, 1024};
    Tiles results = {use->results + side * width + at, 64, width * 64, 1024};
    multiply_sides(&values, &weights, used / DEPTH, &results, 1);
  }
}

/* Writes the results of 16 queries from `first` on. */
static void give_results(const Run *run, int64_t first, const vec *results, vec sum) {
  for (int64_t at = 0; at < run->width; at += SIDE) {
    uvec rows[SIDE];
    for (int i = 0; i < SIDE; i++) rows[i] = (uvec)(results[at + i] * (1 / sum));
    transpose(rows);
    for (int64_t i = 0; i < SIDE && (first + i) / run->group < run->count; i++) {
      int64_t token = (first + i) / run->group, head = (first + i) % run->group;
      narrow(run->out + token * run->stride + head * run->width + at, (vec)rows[i]);
    }
  }
}

static void attend_in_tiles(const Run *run, float *scratch, int64_t queries) {
  Places use = divide(scratch, queries, run->width);
  int64_t width = run->width, sides = queries / SIDE, end = run->position + run->count;
  shape_tiles(BLOCK);
  for (int64_t side = 0; side < sides; side++) {
    take_queries(run, side * SIDE, use.queries + side * width / DEPTH * SIDE, use.positions + side);
    use.highest[side] = broadcast(-1e30f); /* finite: -infinity minus it is no NaN */
    use.sums[side] = (vec){0};
  }
  memset(use.results, 0, (size_t)(queries * width) * sizeof(float));
  int64_t begin = run->window && run->position >= run->window ? run->position - run->window + 1 : 0;
  for (int64_t first = begin / SLOTS * SLOTS; first < end; first += SLOTS) {
    int64_t slots = end - first < SLOTS ? end - first : SLOTS, rest = slots % DEPTH;
    for (int64_t slot = 0; slot < slots; slot += DEPTH)
      take_values(run->values + (first + slot) * width, slots - slot, width, use.values + slot / DEPTH * width);
    memset(use.keys, 0, (size_t)(DEPTH * width) * sizeof *use.keys);
    memcpy(use.keys, run->keys + (end - rest) * width, (size_t)(rest * width) * sizeof *use.keys);
    for (int64_t block = 0; block < sides / (BLOCK / SIDE); block++) attend_block(run, &use, block, first, slots);
  }
  _tile_release();
  for (int64_t side = 0; side < sides; side++)
    give_results(run, side * SIDE, use.results + side * width, use.sums[side]);
}
