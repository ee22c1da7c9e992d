/* Attention over rows of the serving cache, in parts: what cached_attention.c, tiled_attention.c and decoder.c
 * share. */
#pragma once
#include "simd.h"

enum { MAX_WIDTH = 128 }; /* of a head */

/* Attention of some tokens: query and out [tokens][heads][width]. In keys and values, a row starts every `row_stride`
 * numbers, a head every `head_stride` and a slot every `width`. `window` 0: all slots up to the token's own. */
typedef struct {
  const uint16_t *query, *keys, *values;
  uint16_t *out;
  int64_t heads, kv_heads, width, row_stride, head_stride, window;
  float scale;
} CachedAttention;

/* Tokens [first, first + count), one or some that follow each other in a row, and the place of the first one. */
typedef struct {
  int64_t first, count, row, position;
  int in_tiles;
} Part;

/* Divides tokens; returns the number of parts, at most one for each token. */
HIDDEN int64_t divide_tokens(Part *parts, const int64_t *rows, const int64_t *positions, int64_t tokens, int64_t group);

/* Attention of a part's query heads of one key head, whose keys and values are written. */
HIDDEN void attend_part(const CachedAttention *call, const Part *part, int64_t kv_head, float *scratch);

/* Numbers of float32 that `attend_part` needs, a multiple of 16. */
HIDDEN int64_t attention_scratch(const CachedAttention *call, int64_t tokens, const int64_t *positions);

/* Whether a token lies outside the cache. */
static inline int outside(const int64_t *rows, const int64_t *positions, int64_t tokens, int64_t max_rows,
                          int64_t max_length) {
  for (int64_t token = 0; token < tokens; token++)
    if (rows[token] < 0 || rows[token] >= max_rows || positions[token] < 0 || positions[token] >= max_length) return 1;
  return 0;
}

/* A run of tokens of one row of the cache at consecutive positions, for one key head.
 *
 * query and out point to the first token's query heads of that key head; a token's next heads are `stride` numbers
 * away. keys and values [slots][width] point to slot 0 of the row. `scale` includes a factor of log2(e). */
typedef struct {
  const uint16_t *query, *keys, *values;
  uint16_t *out;
  int64_t count, position, group, stride, width, window;
  float scale;
} Run;

/* The smallest number of slots before a run for which `attend_tile` pays. */
HIDDEN int64_t tile_begin(void);

/* Tokens of a run that are computed together. */
HIDDEN int64_t tile_tokens(int64_t group);

/* Numbers of float32 that `attend_tile` needs. */
HIDDEN int64_t tile_scratch(int64_t group, int64_t width);

/* Attention of at most `tile_tokens` tokens. */
HIDDEN void attend_tile(const Run *run, float *scratch);
