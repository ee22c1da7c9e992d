/* cached_attention: attention of new tokens over rows of the serving cache, in bfloat16, computed in float32.
 *
 * One call takes tokens of any rows: one token of each (decoding) or many (prefill). A token reads only the slots of
 * its own row, without mask or padding, and the query heads that share a key head read it once. Tokens that follow each
 * other in a row are computed together (tiled_attention.c). Scores are powers of two. */
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "attention.h"
#include "kernels.h"
#include "simd.h"

/* How many query heads read a key at once: their sums are in registers. */
enum { HEADS = LANES == 16 ? 4 : 2 };

/* Turns scores [padded], of which the first `slots` count, into weights; returns one over their sum. */
INLINE float softmax(float *scores, int64_t slots, int64_t padded) {
  for (int64_t slot = slots; slot < padded; slot++) scores[slot] = -INFINITY;
  vec most = broadcast(-INFINITY), sum = {0};
  for (int64_t slot = 0; slot < padded; slot += LANES) most = larger(most, load_floats(scores + slot));
  float highest = largest_of(most);
  for (int64_t slot = 0; slot < padded; slot += LANES) {
    vec weights = exp2_vector(load_floats(scores + slot) - highest);
    sum = sum + weights;
    store_floats(scores + slot, weights);
  }
  return 1 / sum_of(sum);
}

/* The sums of four vectors. */
INLINE quad four_sums(vec a, vec b, vec c, vec d) {
  quad w = sum_of_quads(a), x = sum_of_quads(b), y = sum_of_quads(c), z = sum_of_quads(d);
  quad wx = __builtin_shufflevector(w, x, 0, 4, 1, 5) + __builtin_shufflevector(w, x, 2, 6, 3, 7);
  quad yz = __builtin_shufflevector(y, z, 0, 4, 1, 5) + __builtin_shufflevector(y, z, 2, 6, 3, 7);
  return __builtin_shufflevector(wx, yz, 0, 1, 4, 5) + __builtin_shufflevector(wx, yz, 2, 3, 6, 7);
}

/* Some query heads of one key head: query and out [queries][width], keys and values [slots][width], scores
 * [queries][padded], where width is 32 x parts. `scale` includes a factor of log2(e), because weights are powers
 * of two. */
INLINE void attend(int queries, int width, const uint16_t *query, const uint16_t *keys, const uint16_t *values,
                   uint16_t *out, float *scores, int64_t slots, int64_t padded, float scale) {
  const int parts = width / (2 * LANES);
  vec rows[HEADS][MAX_WIDTH / LANES];
#pragma GCC unroll 4
  for (int head = 0; head < queries; head++)
#pragma GCC unroll 16
    for (int at = 0; at < parts; at++) {
      widen_pairs(query + head * width + at * 2 * LANES, &rows[head][2 * at], &rows[head][2 * at + 1]);
      rows[head][2 * at] = rows[head][2 * at] * scale;
      rows[head][2 * at + 1] = rows[head][2 * at + 1] * scale;
    }
  for (int64_t slot = 0; slot < slots; slot += 4) {
    vec sums[HEADS][4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      /* Past the end the last key is read again; `softmax` overwrites those scores. */
      const uint16_t *key = keys + (slot + i < slots ? slot + i : slots - 1) * width;
#pragma GCC unroll 16
      for (int at = 0; at < parts; at++) {
        vec even, odd;
        widen_pairs(key + at * 2 * LANES, &even, &odd);
#pragma GCC unroll 4
        for (int head = 0; head < queries; head++) {
          sums[head][i] = at ? rows[head][2 * at] * even + sums[head][i] : rows[head][0] * even;
          sums[head][i] = rows[head][2 * at + 1] * odd + sums[head][i];
        }
      }
    }
#pragma GCC unroll 4
    for (int head = 0; head < queries; head++)
      *(loose_quad *)(scores + head * padded + slot) =
          four_sums(sums[head][0], sums[head][1], sums[head][2], sums[head][3]);
  }
  float shares[HEADS];
#pragma GCC unroll 4
  for (int head = 0; head < queries; head++) {
    shares[head] = softmax(scores + head * padded, slots, padded);
#pragma GCC unroll 32
    for (int at = 0; at < 2 * parts; at++) rows[head][at] = (vec){0};
  }
  for (int64_t slot = 0; slot < slots; slot++) {
#pragma GCC unroll 16
    for (int at = 0; at < parts; at++) {
      vec even, odd;
      widen_pairs(values + slot * width + at * 2 * LANES, &even, &odd);
#pragma GCC unroll 4
      for (int head = 0; head < queries; head++) {
        float weight = scores[head * padded + slot];
        rows[head][2 * at] = even * weight + rows[head][2 * at];
        rows[head][2 * at + 1] = odd * weight + rows[head][2 * at + 1];
      }
    }
  }
#pragma GCC unroll 4
  for (int head = 0; head < queries; head++)
#pragma GCC unroll 16
    for (int at = 0; at < parts; at++)
      narrow_pairs(out + head * width + at * 2 * LANES, rows[head][2 * at] * shares[head],
                   rows[head][2 * at + 1] * shares[head]);
}

#define OF_WIDTH(WIDTH)                                                                                                \
  static void attend_##WIDTH(int64_t queries, const uint16_t *query, const uint16_t *keys, const uint16_t *values,     \
                             uint16_t *out, float *scores, int64_t slots, int64_t padded, float scale) {               \
    switch (queries) {                                                                                                 \
    case 1: attend(1, WIDTH, query, keys, values, out, scores, slots, padded, scale); break;                           \
    case 2: attend(2, WIDTH, query, keys, values, out, scores, slots, padded, scale); break;                           \
    MORE_HEADS(WIDTH)                                                                                                  \
    }                                                                                                                  \
  }
#if LANES == 16
#define MORE_HEADS(WIDTH)                                                                                              \
  case 3: attend(3, WIDTH, query, keys, values, out, scores, slots, padded, scale); break;                             \
  case 4: attend(4, WIDTH, query, keys, values, out, scores, slots, padded, scale); break;
#else
#define MORE_HEADS(WIDTH)
#endif
OF_WIDTH(32)
OF_WIDTH(64)
OF_WIDTH(96)
OF_WIDTH(128)

typedef void AttendHeads(int64_t, const uint16_t *, const uint16_t *, const uint16_t *, uint16_t *, float *, int64_t,
                         int64_t, float);

/* The smallest run that is tiled. Measured on an EPYC: tiles take 0.7 of the time with AVX2 from 16 tokens on. The choice
 * depends on nothing but the run, so it is the same at each start. */
enum { MIN_TILED = 16 };

HIDDEN int64_t attention_scratch(const CachedAttention *call, int64_t tokens, const int64_t *positions) {
  int64_t longest = 0, tiled = tile_scratch(call->heads / call->kv_heads, call->width);
  for (int64_t token = 0; token < tokens; token++)
    longest = positions[token] + 1 > longest ? positions[token] + 1 : longest;
  int64_t padded = (longest + PANEL - 1) / PANEL * PANEL, size = HEADS * padded > tiled ? HEADS * padded : tiled;
  return (size + PANEL - 1) / PANEL * PANEL;
}

HIDDEN int64_t divide_tokens(Part *parts, const int64_t *rows, const int64_t *positions, int64_t tokens,
                             int64_t group) {
  int64_t num = 0, together = tile_tokens(group);
  for (int64_t first = 0, end; first < tokens; first = end) {
    for (end = first + 1; end < tokens && rows[end] == rows[first] && positions[end] == positions[end - 1] + 1;) end++;
    int in_tiles = end - first >= MIN_TILED && positions[first] >= tile_begin();
    int64_t most = in_tiles ? together : 1;
    for (int64_t at = first; at < end; at += most) {
      Part part = {at, end - at < most ? end - at : most, rows[at], positions[at], in_tiles};
      parts[num++] = part;
    }
  }
  return num;
}

HIDDEN void attend_part(const CachedAttention *call, const Part *part, int64_t kv_head, float *scratch) {
  int64_t position = part->position, window = call->window, width = call->width, group = call->heads / call->kv_heads;
  int64_t begin = window && position >= window ? position - window + 1 : 0, slots = position + 1 - begin;
  int64_t head = part->row * call->row_stride + kv_head * call->head_stride, first_slot = head + begin * width;
  int64_t at = (part->first * call->heads + kv_head * group) * width;
  float scale = call->scale * (float)M_LOG2E;
  if (part->in_tiles) {
    Run run = {call->query + at, call->keys + head,   call->values + head, call->out + at, part->count,
               position,         group,               call->heads * width, width,          window,
               scale};
    attend_tile(&run, scratch);
    return;
  }
  AttendHeads *attend_heads = width == 32 ? attend_32 : width == 64 ? attend_64 : width == 96 ? attend_96 : attend_128;
  for (int64_t first = 0; first < group; first += HEADS, at += HEADS * width)
    attend_heads(group - first < HEADS ? group - first : HEADS, call->query + at, call->keys + first_slot,
                 call->values + first_slot, call->out + at, scratch, slots, (slots + LANES - 1) / LANES * LANES, scale);
}

/* Writes token i's key and value to slot positions[i] of row rows[i] of the cache; it attends to all slots up to there,
 * or to the last `window` of them if window is not 0. Tokens of one call see those of the same row before them.
 *
 * query and out [tokens][heads][width], new_keys and new_values [tokens][kv_heads][width]. In the cache's keys and
 * values, a row starts every `row_stride` numbers, a head every `head_stride` and a slot every `width`; width is 32,
 * 64, 96 or 128. Returns 0, -1 if memory can't be allocated, or -2, with nothing written, if a token lies outside
 * `max_rows` rows of `max_length` slots. */
int cached_attention(const uint16_t *query, const uint16_t *new_keys, const uint16_t *new_values, uint16_t *keys,
                     uint16_t *values, uint16_t *out, const int64_t *rows, const int64_t *positions, int64_t tokens,
                     int64_t heads, int64_t kv_heads, int64_t width, int64_t row_stride, int64_t head_stride,
                     int64_t max_rows, int64_t max_length, int64_t window, float scale, int threads) {
  if (outside(rows, positions, tokens, max_rows, max_length)) return -2;
  CachedAttention call = {query, keys, values, out, heads, kv_heads, width, row_stride, head_stride, window, scale};
  int64_t size = attention_scratch(&call, tokens, positions);
  float *scratch = aligned_alloc(64, (size_t)(threads * size) * sizeof(float));
  Part *parts = malloc((size_t)(tokens + 1) * sizeof *parts);
  if (!scratch || !parts) {
    free(scratch);
    free(parts);
    return -1;
  }
  int64_t num_parts = divide_tokens(parts, rows, positions, tokens, heads / kv_heads);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t item = 0; item < tokens * kv_heads; item++) {
      int64_t token = item / kv_heads, head = rows[token] * row_stride + item % kv_heads * head_stride;
      memcpy(keys + head + positions[token] * width, new_keys + item * width, (size_t)width * sizeof *keys);
      memcpy(values + head + positions[token] * width, new_values + item * width, (size_t)width * sizeof *values);
    }
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < num_parts * kv_heads; item++)
      attend_part(&call, parts + item / kv_heads, item % kv_heads, scratch + omp_get_thread_num() * size);
  }
  free(scratch);
  free(parts);
  return 0;
}
