/* packed_attention: attention of a packed training batch, forward and backward.
 *
 * The rows of an item see the shared positions before them and, causally, themselves. A block of queries, from all
 * query heads of one key head, is multiplied with the shared keys and then the row's own keys in one product: one
 * softmax, no mask, no padding. Scores are powers of two. They are not kept: the backward pass recomputes them from the
 * logarithms of their sums, as FlashAttention does (Dao et al. 2022). Each item writes its gradient of shared keys and
 * values apart; they are then added in the order of the items, so no sum depends on the number of threads and a job
 * that resumes elsewhere takes the same steps.
 *
 * Tensors are bfloat16 if `half` is set, else float32; arithmetic is float32. */
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "product.h"

enum { BLOCK = 48, SHARED_START = 0, SHARED, FIRST_ROW, NUM_ROWS, PARTIAL, ITEM };

/* One thread's memory: keys and values [slots][width], their transposes [width][columns], scores [queries][columns]. */
typedef struct {
  int64_t columns, tokens; /* `tokens`: how many tokens' queries are one block */
  float *keys, *values, *transposed_keys, *transposed_values, *dkeys, *dvalues, *query, *grad, *result;
  float *scores, *slopes;
} Scratch;

static int64_t scratch_size(const PackedAttention *call, Scratch *scratch) {
  int64_t longest = 0, group = call->heads / call->kv_heads;
  for (const int64_t *item = call->items; item < call->items + call->num_items * ITEM; item += ITEM)
    for (int64_t row = item[FIRST_ROW]; row < item[FIRST_ROW] + item[NUM_ROWS]; row++)
      if (item[SHARED] + call->rows[2 * row + 1] > longest) longest = item[SHARED] + call->rows[2 * row + 1];
  /* One register more: `transpose` writes whole registers, from any column on. */
  scratch->columns = (longest + PANEL - 1) / PANEL * PANEL + PANEL;
  scratch->tokens = BLOCK / group ? BLOCK / group : 1;
  return scratch->columns * call->width * 6 + scratch->tokens * group * (call->width * 3 + scratch->columns * 2);
}

static void place(const PackedAttention *call, float *at, Scratch *scratch) {
  int64_t slots = scratch->columns * call->width, queries = scratch->tokens * (call->heads / call->kv_heads);
  float **by_slot[] = {&scratch->keys,  &scratch->values, &scratch->transposed_keys, &scratch->transposed_values,
                       &scratch->dkeys, &scratch->dvalues};
  float **by_query[] = {&scratch->query, &scratch->grad, &scratch->result};
  float **by_score[] = {&scratch->scores, &scratch->slopes};
  for (int i = 0; i < 6; i++, at += slots) *by_slot[i] = at;
  for (int i = 0; i < 3; i++, at += queries * call->width) *by_query[i] = at;
  for (int i = 0; i < 2; i++, at += queries * scratch->columns) *by_score[i] = at;
}

/* Copies `group` heads of some tokens, times `scale`, to [count][group][width]. */
static void gather(const PackedAttention *call, const Heads *from, int64_t start, int64_t count, int64_t head,
                          int64_t group, float scale, float *to) {
  for (int64_t token = start; token < start + count; token++)
    for (int64_t one = head * group; one < (head + 1) * group; one++)
      for (int64_t at = 0; at < call->width; at += LANES, to += LANES)
        store_floats(
            to, load(from->data, token * from->token_stride + one * from->head_stride + at, call->half) * scale);
}

/* The reverse of `gather`: writes [count][group][width] to [tokens][heads][width]. */
static void scatter(const PackedAttention *call, const float *from, int64_t start, int64_t count, int64_t head,
                           int64_t heads, int64_t group, void *to) {
  for (int64_t token = start; token < start + count; token++)
    for (int64_t at = 0; at < group * call->width; at += LANES, from += LANES)
      store(to, (token * heads + head * group) * call->width + at, load_floats(from), call->half);
}

/* Transposes slots [first, end) of [slots][width] into [width][columns]. */
static void transpose(const float *from, float *to, int64_t first, int64_t end, int64_t width, int64_t columns) {
  for (int64_t slot = first; slot < end; slot += LANES)
    for (int64_t at = 0; at < width; at++) {
      vec values = {0};
#pragma GCC unroll 16
      for (int lane = 0; lane < LANES; lane++)
        if (slot + lane < end) values[lane] = from[(slot + lane) * width + at];
      store_floats(to + at * columns + slot, values);
    }
}

/* Appends keys and values of `count` tokens behind the `first` slots. */
static void prepare(const PackedAttention *call, const Heads *key, const Heads *value, int64_t start, int64_t first,
                    int64_t count, int64_t head, int backward, Scratch *scratch) {
  int64_t width = call->width;
  gather(call, key, start, count, head, 1, 1, scratch->keys + first * width);
  gather(call, value, start, count, head, 1, 1, scratch->values + first * width);
  transpose(scratch->keys, scratch->transposed_keys, first, first + count, width, scratch->columns);
  if (!backward) return;
  transpose(scratch->values, scratch->transposed_values, first, first + count, width, scratch->columns);
  memset(scratch->dkeys + first * width, 0, (size_t)(count * width) * sizeof(float));
  memset(scratch->dvalues + first * width, 0, (size_t)(count * width) * sizeof(float));
}

/* Masks those of the LANES slots from `slot` on that lie in [begin, end). */
INLINE ivec seen(int64_t slot, int64_t begin, int64_t end) {
  ivec slots = lane_numbers() + (int)slot;
  return (slots >= (int)begin) & (slots < (int)end);
}

/* Turns scores [columns] into weights, zero outside [begin, end) and not yet divided by their sum. Returns the sum;
 * `highest` gets the highest score. */
INLINE float exponents(float *scores, int64_t begin, int64_t end, int64_t columns, float *highest) {
  vec top = broadcast(-INFINITY), sum = {0};
  for (int64_t slot = begin / LANES * LANES; slot < end; slot += LANES)
    top = choose(seen(slot, begin, end), larger(top, load_floats(scores + slot)), top);
  *highest = largest_of(top);
  for (int64_t slot = 0; slot < columns; slot += LANES) {
    vec weights = choose(seen(slot, begin, end), exp2_vector(load_floats(scores + slot) - *highest), (vec){0});
    sum = sum + weights;
    store_floats(scores + slot, weights);
  }
  return sum_of(sum);
}

/* Turns scores into weights p, and slopes, which hold dp, into ln(2) * p * (dp - sum(p * dp)). */
INLINE void softmax_backward(float *scores, float *slopes, int64_t begin, int64_t end, int64_t columns, float log_sum) {
  vec sum = {0};
  for (int64_t slot = 0; slot < columns; slot += LANES) {
    ivec mask = seen(slot, begin, end);
    vec weights = choose(mask, exp2_vector(load_floats(scores + slot) - log_sum), (vec){0});
    vec dweights = choose(mask, load_floats(slopes + slot), (vec){0});
    sum = weights * dweights + sum;
    store_floats(scores + slot, weights);
    store_floats(slopes + slot, dweights);
  }
  float mean = sum_of(sum);
  for (int64_t slot = 0; slot < columns; slot += LANES) {
    vec slope = load_floats(scores + slot) * (load_floats(slopes + slot) - mean) * (float)M_LN2;
    store_floats(slopes + slot, choose(seen(slot, begin, end), slope, (vec){0}));
  }
}

/* Tokens [first, first + count) of the row that starts at `start`, behind `shared` slots. */
typedef struct {
  int64_t start, first, count, shared;
} QueryBlock;

INLINE int64_t first_seen(const PackedAttention *call, int64_t slot) {
  return call->window && slot >= call->window ? slot - call->window + 1 : 0;
}

static void block_forward(const PackedAttention *call, const Heads *query, void *out, float *log_sums,
                                 QueryBlock block, int64_t head, Scratch *scratch) {
  int64_t group = call->heads / call->kv_heads, queries = block.count * group, width = call->width;
  int64_t token = block.start + block.first;
  int64_t limit = block.shared + block.first + block.count, columns = (limit + LANES - 1) / LANES * LANES;
  gather(call, query, token, block.count, head, group, call->scale * (float)M_LOG2E, scratch->query);
  product(queries, columns, width, scratch->query, width, 1, scratch->transposed_keys, scratch->columns,
          scratch->scores, scratch->columns, 0);
  for (int64_t i = 0; i < queries; i++) {
    int64_t slot = block.shared + block.first + i / group;
    float highest, *scores = scratch->scores + i * scratch->columns;
    float sum = exponents(scores, first_seen(call, slot), slot + 1, columns, &highest);
    log_sums[(token + i / group) * call->heads + head * group + i % group] = highest + log2f(sum);
    for (int64_t at = 0; at < columns; at += LANES)
      store_floats(scores + at, load_floats(scores + at) * (1 / sum));
  }
  product(queries, width, limit, scratch->scores, scratch->columns, 1, scratch->values, width, scratch->result, width,
          0);
  scatter(call, scratch->result, token, block.count, head, call->heads, group, out);
}

static void block_backward(const PackedAttention *call, const Heads *query, const Heads *grad,
                                  const float *log_sums, void *dquery, QueryBlock block, int64_t head,
                                  Scratch *scratch) {
  int64_t group = call->heads / call->kv_heads, queries = block.count * group, width = call->width;
  int64_t token = block.start + block.first;
  int64_t limit = block.shared + block.first + block.count, columns = (limit + LANES - 1) / LANES * LANES;
  int64_t ld = scratch->columns;
  float scale = call->scale * (float)M_LOG2E;
  gather(call, query, token, block.count, head, group, scale, scratch->query);
  gather(call, grad, token, block.count, head, group, 1, scratch->grad);
  product(queries, columns, width, scratch->query, width, 1, scratch->transposed_keys, ld, scratch->scores, ld, 0);
  product(queries, columns, width, scratch->grad, width, 1, scratch->transposed_values, ld, scratch->slopes, ld, 0);
  for (int64_t i = 0; i < queries; i++) {
    int64_t slot = block.shared + block.first + i / group;
    float log_sum = log_sums[(token + i / group) * call->heads + head * group + i % group];
    softmax_backward(scratch->scores + i * ld, scratch->slopes + i * ld, first_seen(call, slot), slot + 1, columns,
                     log_sum);
  }
  product(limit, width, queries, scratch->scores, 1, ld, scratch->grad, width, scratch->dvalues, width, 1);
  product(limit, width, queries, scratch->slopes, 1, ld, scratch->query, width, scratch->dkeys, width, 1);
  product(queries, width, limit, scratch->slopes, ld, 1, scratch->keys, width, scratch->result, width, 0);
  for (int64_t at = 0; at < queries * width; at += LANES)
    store_floats(scratch->result + at, load_floats(scratch->result + at) * scale);
  scatter(call, scratch->result, token, block.count, head, call->heads, group, dquery);
}

/* Sums the partial gradients of all items that share their positions with `item`, for one key head, and adds them to
 * dkey and dvalue. */
static void add_partials(const PackedAttention *call, int64_t item, int64_t head, float *partials, void *dkey,
                                void *dvalue) {
  const int64_t *first = call->items + item * ITEM;
  int64_t shared = first[SHARED], size = shared * call->width;
  float *total = partials + (first[PARTIAL] * call->kv_heads + head * shared) * 2 * call->width;
  for (int64_t other = item + 1;
       other < call->num_items && call->items[other * ITEM + SHARED_START] == first[SHARED_START]; other++) {
    const float *more =
        partials + (call->items[other * ITEM + PARTIAL] * call->kv_heads + head * shared) * 2 * call->width;
    for (int64_t at = 0; at < 2 * size; at += LANES)
      store_floats(total + at, load_floats(total + at) + load_floats(more + at));
  }
  for (int64_t slot = 0; slot < shared; slot++)
    for (int64_t at = 0; at < call->width; at += LANES) {
      int64_t to = ((first[SHARED_START] + slot) * call->kv_heads + head) * call->width + at;
      int64_t from = slot * call->width + at;
      store(dkey, to, load(dkey, to, call->half) + load_floats(total + from), call->half);
      store(dvalue, to, load(dvalue, to, call->half) + load_floats(total + size + from), call->half);
    }
}

/* Forward, if grad is null: writes out, like query, and log_sums [tokens][heads]. Backward: out receives dquery; dkey
 * and dvalue are [tokens][kv_heads][width]; partials holds [keys, values][shared][width] for each item and key head,
 * where PARTIAL is the sum of the shared lengths of the items before. Returns 0, or -1 if memory can't be allocated. */
int packed_attention(const PackedAttention *call, const Heads *query, const Heads *key, const Heads *value,
                     const Heads *grad, void *out, float *log_sums, void *dkey, void *dvalue, float *partials) {
  Scratch shape;
  int64_t size = scratch_size(call, &shape), width = call->width, parts = call->num_items * call->kv_heads;
  int backward = grad != NULL;
  float *memory = aligned_alloc(64, (size_t)(size * call->threads) * sizeof(float));
  if (!memory) return -1;
#pragma omp parallel num_threads(call->threads)
  {
    Scratch scratch = shape;
    place(call, memory + size * omp_get_thread_num(), &scratch);
#pragma omp for schedule(dynamic)
    for (int64_t part = 0; part < parts; part++) {
      const int64_t *item = call->items + part / call->kv_heads * ITEM;
      int64_t head = part % call->kv_heads;
      int64_t shared = item[SHARED];
      prepare(call, key, value, item[SHARED_START], 0, shared, head, backward, &scratch);
      for (int64_t row = item[FIRST_ROW]; row < item[FIRST_ROW] + item[NUM_ROWS]; row++) {
        int64_t start = call->rows[2 * row], length = call->rows[2 * row + 1];
        prepare(call, key, value, start, shared, length, head, backward, &scratch);
        for (int64_t first = 0; first < length; first += scratch.tokens) {
          QueryBlock block = {start, first, least(length - first, scratch.tokens), shared};
          if (backward)
            block_backward(call, query, grad, log_sums, out, block, head, &scratch);
          else
            block_forward(call, query, out, log_sums, block, head, &scratch);
        }
        if (!backward) continue;
        scatter(call, scratch.dkeys + shared * width, start, length, head, call->kv_heads, 1, dkey);
        scatter(call, scratch.dvalues + shared * width, start, length, head, call->kv_heads, 1, dvalue);
      }
      if (!backward) continue;
      float *partial = partials + (item[PARTIAL] * call->kv_heads + head * shared) * 2 * width;
      memcpy(partial, scratch.dkeys, (size_t)(shared * width) * sizeof(float));
      memcpy(partial + shared * width, scratch.dvalues, (size_t)(shared * width) * sizeof(float));
    }
#pragma omp for schedule(static)
    for (int64_t part = 0; part < (backward ? parts : 0); part++) {
      int64_t item = part / call->kv_heads;
      const int64_t *here = call->items + item * ITEM;
      int first = item == 0 || (here - ITEM)[SHARED_START] != here[SHARED_START];
      if (here[SHARED] && first) add_partials(call, item, part % call->kv_heads, partials, dkey, dvalue);
    }
  }
  free(memory);
  return 0;
}
