/* Attention of many tokens of one row, for prefills: a tile of queries is multiplied with a tile of keys.
 *
 * Keys are read once for all queries of a tile, instead of once for each token. The softmax goes along with the tiles,
 * as in FlashAttention (Dao et al. 2022): with a new highest score, the sums so far are scaled down. Scores are
 * [slots][queries], so a vector holds one slot's scores of several queries, and no sum crosses lanes. Tiles of keys
 * begin at multiples of TILE, so a token's result does not depend on the tokens that are computed with it. */
#include <string.h>

#include "attention.h"
#include "product.h"

enum { TILE = 128, QUERIES = 48, AMX_QUERIES = 96 };

#ifdef __AMX_BF16__
#include "amx_attention.h"
#else
enum { has_tiles = 0 };
#define amx_scratch(...) 0
#define attend_in_tiles(...)
#endif

/* The smallest number of slots before a run that is tiled. With AVX-512, where four heads share a key, tiles pay only in
 * long rows, because a tile also multiplies what its first tokens do not see. */
int64_t tile_begin(void) { return LANES == 16 && !has_tiles ? 256 : 0; }

int64_t tile_tokens(int64_t group) {
  int64_t queries = has_tiles ? AMX_QUERIES : QUERIES;
  return group < queries ? queries / group : 1;
}

static int64_t padded_queries(int64_t queries) {
  int64_t unit = has_tiles ? 2 * PANEL : PANEL;
  return (queries + unit - 1) / unit * unit;
}

int64_t tile_scratch(int64_t group, int64_t width) {
  int64_t queries = padded_queries(tile_tokens(group) * group);
  return has_tiles ? amx_scratch(queries, width) : queries * (2 * width + 4 + TILE) + 2 * TILE * width;
}

/* Widens [count][width] of bfloat16. */
static void widen_all(const uint16_t *from, float *to, int64_t numbers) {
  for (int64_t at = 0; at < numbers; at += LANES) store_floats(to + at, widen(from + at));
}

/* The queries of a tile, times the scale, as [width][queries], and the position of each; the padding is zero. */
static void transpose_queries(const Run *run, float *to, int32_t *positions, int64_t queries) {
  memset(to, 0, (size_t)(queries * run->width) * sizeof *to);
  memset(positions, 0, (size_t)queries * sizeof *positions);
  for (int64_t query = 0; query < run->count * run->group; query++) {
    int64_t token = query / run->group;
    const uint16_t *from = run->query + token * run->stride + query % run->group * run->width;
    positions[query] = (int32_t)(run->position + token);
    for (int64_t at = 0; at < run->width; at += LANES) {
      float values[LANES];
      store_floats(values, widen(from + at) * run->scale);
      for (int lane = 0; lane < LANES; lane++) to[(at + lane) * queries + query] = values[lane];
    }
  }
}

/* Slots from `first` on that a query does not see get a score of -infinity. */
static void mask(float *scores, const int32_t *positions, int64_t first, int64_t slots, int64_t queries,
                 int64_t window) {
  for (int64_t at = 0; at < queries; at += LANES) {
    ivec last, before;
    memcpy(&last, positions + at, sizeof last);
    before = last - (int32_t)(window ? window : INT32_MAX);
    for (int64_t slot = 0; slot < slots; slot++) {
      float *some = scores + slot * queries + at;
      int32_t place = (int32_t)(first + slot);
      store_floats(some, choose((last >= place) & (before < place), load_floats(some), broadcast(-INFINITY)));
    }
  }
}

/* Turns scores [slots][queries] into weights; updates the highest scores and sums [queries], and returns in `factors`
 * by what earlier results are multiplied. */
static void softmax(float *scores, float *highest, float *sums, float *factors, int64_t slots, int64_t queries) {
  for (int64_t at = 0; at < queries; at += LANES) {
    vec old = load_floats(highest + at), most = old, sum = {0};
    for (int64_t slot = 0; slot < slots; slot++) most = larger(most, load_floats(scores + slot * queries + at));
    for (int64_t slot = 0; slot < slots; slot++) {
      vec weights = exp2_vector(load_floats(scores + slot * queries + at) - most);
      sum = sum + weights;
      store_floats(scores + slot * queries + at, weights);
    }
    vec factor = exp2_vector(old - most);
    store_floats(factors + at, factor);
    store_floats(sums + at, load_floats(sums + at) * factor + sum);
    store_floats(highest + at, most);
  }
}

__attribute__((visibility("hidden"))) void attend_tile(const Run *run, float *scratch) {
  int64_t width = run->width, used = run->count * run->group, queries = padded_queries(used);
  if (has_tiles) {
    attend_in_tiles(run, scratch, queries);
    return;
  }
  float *query = scratch, *result = query + queries * width, *highest = result + queries * width;
  float *sums = highest + queries, *factors = sums + queries, *scores = factors + queries;
  int32_t *positions = (int32_t *)(scores + queries * TILE);
  float *keys = scores + queries * (TILE + 1), *values = keys + TILE * width;
  transpose_queries(run, query, positions, queries);
  memset(result, 0, (size_t)(queries * width) * sizeof *result);
  for (int64_t i = 0; i < queries; i++) highest[i] = -1e30f, sums[i] = 0; /* finite: -infinity minus it is no NaN */
  int64_t begin = run->window && run->position >= run->window ? run->position - run->window + 1 : 0;
  int64_t end = run->position + run->count;
  for (int64_t first = begin; first < end; first = (first / TILE + 1) * TILE) {
    int64_t slots = least((first / TILE + 1) * TILE, end) - first;
    widen_all(run->keys + first * width, keys, slots * width);
    widen_all(run->values + first * width, values, slots * width);
    product(slots, queries, width, keys, width, 1, query, queries, scores, queries, 0);
    if (first + slots - 1 > run->position || (run->window && first < end - run->window))
      mask(scores, positions, first, slots, queries, run->window);
    softmax(scores, highest, sums, factors, slots, queries);
    for (int64_t i = 0; i < used; i++)
      for (int64_t at = 0; at < width; at += LANES)
        store_floats(result + i * width + at, load_floats(result + i * width + at) * factors[i]);
    product(used, width, slots, scores, 1, queries, values, width, result, width, 1);
  }
  for (int64_t i = 0; i < used; i++) {
    uint16_t *to = run->out + i / run->group * run->stride + i % run->group * width;
    for (int64_t at = 0; at < width; at += LANES) narrow(to + at, load_floats(result + i * width + at) * (1 / sums[i]));
  }
}
