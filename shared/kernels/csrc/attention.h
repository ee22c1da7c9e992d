/* What cached_attention.c and tiled_attention.c share. */
#pragma once
#include <stdint.h>

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

/* Tokens of a run that are computed together. */
int64_t tile_tokens(int64_t group);

/* Numbers of float32 that `attend_tile` needs. */
int64_t tile_scratch(int64_t group, int64_t width);

/* Attention of at most `tile_tokens` tokens. */
__attribute__((visibility("hidden"))) void attend_tile(const Run *run, float *scratch);
