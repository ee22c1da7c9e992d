/* decoder_step: one pass of a whole decoder of Llama's structure over some tokens, in bfloat16, by one call.
 *
 * A step of few tokens consists of hundreds of small operations. Called one by one, they cost more for starting and
 * for waking threads than for computing. Here, all threads go through the same list of phases. The items of a phase are
 * taken from a counter, and the next phase begins when all items are done, so nothing waits for a thread that has no
 * item: a thread that lost its core to another process only slows the item that it holds. Each number is computed and
 * rounded as by the separate kernels, so a step has the same bits as theirs. */
#include <limits.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

#include "attention.h"
#include "elementwise.h"
#include "kernels.h"
#include "weights.h"

enum {
  SPINS = 1500,   /* less than 100 microseconds; then a waiting thread sleeps */
  SLICE = 256,    /* columns of an item of an elementwise phase, a multiple of 32 */
  MIN_SLICE = 64, /* the same if there are many rows */
  MANY = 32,
  MAX_PANELS = 8, /* of an item of a product */
  ITEMS = 4       /* of a product, for each thread, if it is large enough */
};

/* The state of a phase, in a cache line of its own. */
typedef struct {
  _Alignas(64) int64_t next;
  int32_t done, sleepers; /* items that are done; whether threads may sleep until all are */
} Phase;

/* A thread's way through the phases. */
typedef struct {
  Phase *phase;
  int holds; /* it has an item */
} Walk;

INLINE void pause_briefly(void) {
#ifdef __x86_64__
  _mm_pause();
#else
  __asm__ volatile("yield");
#endif
}

/* Beside other busy processes, a thread that waits must leave its core to them without losing its turn, or both threads
 * of a step run at different times. Asleep it keeps its share of the core and runs as soon as it is woken; sched_yield
 * gives up a whole time slice in recent kernels (Linux 6.18). */
INLINE void sleep_while(const int32_t *word, int32_t value) {
#ifdef __linux__
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
#else
  (void)word, (void)value;
  sched_yield();
#endif
}

INLINE void wake_all(const int32_t *word) {
#ifdef __linux__
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
#else
  (void)word;
#endif
}

/* The next item of this phase, after the last one is done; -1 when all threads have done all of the phase's items. */
static int64_t next_item(Walk *walk, int64_t items) {
  Phase *phase = walk->phase;
  /* In one order for all threads: either the last one sees the sleeper, or the sleeper sees that all items are done. */
  if (walk->holds && __atomic_add_fetch(&phase->done, 1, __ATOMIC_SEQ_CST) == items &&
      __atomic_load_n(&phase->sleepers, __ATOMIC_SEQ_CST))
    wake_all(&phase->done);
  int64_t item = __atomic_fetch_add(&phase->next, 1, __ATOMIC_RELAXED);
  walk->holds = item < items;
  if (walk->holds) return item;
  int32_t done;
  for (int spins = 0; (done = __atomic_load_n(&phase->done, __ATOMIC_ACQUIRE)) < items; spins++) {
    if (spins < SPINS) {
      pause_briefly();
      continue;
    }
    __atomic_store_n(&phase->sleepers, 1, __ATOMIC_SEQ_CST);
    sleep_while(&phase->done, done);
  }
  walk->phase++;
  return -1;
}

/* The buffers of a step. */
typedef struct {
  uint16_t *normed, *product, *query, *attended, *inner; /* [tokens][...] */
  char *prepared;
  float *scratch; /* of each thread */
} Buffers;

/* y = x W^T + bias; with `residual`, that += y. */
static void multiply(Walk *walk, const Weights *weights, const uint16_t *x, char *prepared, uint16_t *y,
                     uint16_t *residual, int64_t rows, int64_t threads) {
  int64_t in = weights->inputs, out = weights->outputs, panels = out / PANEL;
  int64_t together = rows_in_cache(prepared_bytes(weights, 32)), groups = (rows + together - 1) / together;
  int64_t slice = rows < MANY ? SLICE : MIN_SLICE, slices = (in + slice - 1) / slice;
  for (int64_t item; (item = next_item(walk, groups * slices)) >= 0;) {
    int64_t row = item / slices * together, at = item % slices * slice;
    prepare(weights, x + row * in, prepared + prepared_bytes(weights, row), least(rows - row, together), at,
            least(at + slice, in));
  }
  int64_t some = panels / (threads * ITEMS);
  some = some > MAX_PANELS ? MAX_PANELS : some < 1 ? 1 : some < 4 ? some : some / 4 * 4; /* up to four are read at once */
  int64_t parts = (panels + some - 1) / some;
  for (int64_t item; (item = next_item(walk, groups * parts)) >= 0;) {
    int64_t begin = item / parts * together, end = least(begin + together, rows);
    int64_t first = item % parts * some, last = least(first + some, panels);
    multiply_panels(weights, prepared + prepared_bytes(weights, begin), y + begin * out, end - begin, first, last);
    for (int64_t row = begin; residual && row < end; row++)
      for (int64_t at = row * out + first * PANEL; at < row * out + last * PANEL; at += LANES)
        narrow(residual + at, widen(residual + at) + widen(y + at));
  }
}

/* The rows of an item of an elementwise phase. */
static int64_t rows_together(int64_t rows, int64_t threads) { return rows / (threads * 2 * ITEMS) + 1; }

static void normalise(Walk *walk, const Norm *norm, const uint16_t *x, uint16_t *y, int64_t rows, int64_t width,
                      int64_t threads) {
  int64_t some = rows_together(rows, threads);
  for (int64_t item; (item = next_item(walk, (rows + some - 1) / some)) >= 0;)
    for (int64_t row = item * some; row < least(item * some + some, rows); row++)
      norm_row(x, norm->weight, y, row, width, norm->epsilon, 1);
}

/* Some heads of a token: normalised if there is a norm, and rotated. */
static void rotate_heads(const Norm *norm, const uint16_t *x, const uint16_t *cos, const uint16_t *sin, uint16_t *y,
                         int64_t heads, int64_t width, int64_t stride) {
  uint16_t normed[MAX_WIDTH];
  for (int64_t head = 0; head < heads; head++, x += width, y += stride) {
    if (norm->weight) norm_row(x, norm->weight, normed, 0, width, norm->epsilon, 1);
    rotate_head(norm->weight ? normed : x, 0, cos, sin, 0, y, 0, width, 0, 1);
  }
}

/* Normalises and rotates a token's queries, which go to `use->query`, and keys, which go to the cache, like its values. */
static void place_token(const Decoder *decoder, const Layer *layer, const Buffers *use, const uint16_t *cos,
                        const uint16_t *sin, int64_t row, int64_t position, int64_t token) {
  int64_t heads = decoder->heads, kv_heads = decoder->kv_heads, width = decoder->width;
  const uint16_t *x = use->product + token * (heads + 2 * kv_heads) * width, *c = cos + token * width;
  const uint16_t *s = sin + token * width;
  int64_t slot = row * decoder->row_stride + position * width;
  rotate_heads(&layer->query_norm, x, c, s, use->query + token * heads * width, heads, width, width);
  x += heads * width;
  rotate_heads(&layer->key_norm, x, c, s, layer->keys + slot, kv_heads, width, decoder->head_stride);
  x += kv_heads * width;
  for (int64_t head = 0; head < kv_heads; head++)
    memcpy(layer->values + slot + head * decoder->head_stride, x + head * width, (size_t)width * sizeof *x);
}

/* Everything that follows: attention, and its product is added to `hidden`. */
static void attention(Walk *walk, const Decoder *decoder, const Layer *layer, const Buffers *use, uint16_t *hidden,
                      const uint16_t *cos, const uint16_t *sin, const int64_t *rows, const int64_t *positions,
                      int64_t tokens, const Part *parts, int64_t num_parts, float *scratch, int64_t threads) {
  int64_t heads = decoder->heads, kv_heads = decoder->kv_heads, width = decoder->width;
  normalise(walk, &layer->norm, hidden, use->normed, tokens, decoder->hidden, threads);
  multiply(walk, &layer->qkv, use->normed, use->prepared, use->product, NULL, tokens, threads);
  int64_t some = rows_together(tokens, threads);
  for (int64_t item; (item = next_item(walk, (tokens + some - 1) / some)) >= 0;)
    for (int64_t token = item * some; token < least(item * some + some, tokens); token++)
      place_token(decoder, layer, use, cos, sin, rows[token], positions[token], token);
  CachedAttention call = {use->query, layer->keys,         layer->values,        use->attended, heads,       kv_heads,
                          width,      decoder->row_stride, decoder->head_stride, layer->window, layer->scale};
  for (int64_t item; (item = next_item(walk, num_parts * kv_heads)) >= 0;)
    attend_part(&call, parts + item / kv_heads, item % kv_heads, scratch);
  multiply(walk, &layer->out, use->attended, use->prepared, use->product, hidden, tokens, threads);
}

/* The gated MLP; its result is added to `hidden`. */
static void feed_forward(Walk *walk, const Decoder *decoder, const Layer *layer, const Buffers *use, uint16_t *hidden,
                         int64_t tokens, int64_t threads) {
  int64_t inner = decoder->inner, slice = tokens < MANY ? SLICE : inner, slices = (inner + slice - 1) / slice;
  normalise(walk, &layer->mlp_norm, hidden, use->normed, tokens, decoder->hidden, threads);
  multiply(walk, &layer->gate_up, use->normed, use->prepared, use->product, NULL, tokens, threads);
  for (int64_t item; (item = next_item(walk, tokens * slices)) >= 0;) {
    int64_t token = item / slices, end = least((item % slices + 1) * slice, inner);
    const uint16_t *gate = use->product + token * 2 * inner;
    for (int64_t at = item % slices * slice; at < end; at += LANES)
      narrow(use->inner + token * inner + at, silu(widen(gate + at)) * widen(gate + inner + at));
  }
  multiply(walk, &layer->down, use->inner, use->prepared, use->product, hidden, tokens, threads);
}

/* `attention` has 7, `feed_forward` 6; then come a norm, the choice of tokens and a product. */
static int64_t num_phases(int64_t layers) { return 13 * layers + 4; }

/* Memory for a step of `tokens` tokens; 64-byte aligned parts. Returns the bytes; `use` gets the addresses if `base` is
 * not null. */
static int64_t lay_out(const Decoder *decoder, int64_t tokens, char *base, Buffers *use) {
  const Weights *most = &decoder->layers[0].qkv;
  int64_t attended = decoder->heads * decoder->width, inner = decoder->inner, hidden = decoder->hidden, used = 0;
  int64_t product = most->outputs > 2 * inner ? most->outputs : 2 * inner;
  if (hidden > product) product = hidden;
  int64_t in = inner > hidden ? inner : hidden;
  if (attended > in) in = attended;
  int64_t sizes[] = {hidden * tokens * 2, product * tokens * 2, attended * tokens * 2, attended * tokens * 2,
                     inner * tokens * 2,  most_prepared_bytes(tokens, in)};
  char *parts[sizeof sizes / sizeof *sizes];
  for (size_t part = 0; part < sizeof sizes / sizeof *sizes; part++) {
    parts[part] = base + used;
    used += (sizes[part] + 63) / 64 * 64;
  }
  if (use)
    *use = (Buffers){(uint16_t *)parts[0], (uint16_t *)parts[1], (uint16_t *)parts[2], (uint16_t *)parts[3],
                     (uint16_t *)parts[4], parts[5], (float *)(base + used)};
  return used;
}

/* hidden [tokens][hidden]: the embeddings, which become the states after the last norm. cos and sin [tokens][width].
 * Token i has the position positions[i] in row rows[i] of the cache, where its keys and values are written; it attends
 * to everything up to there. logits [num_wanted][head.outputs] are those of the tokens `wanted`.
 * Returns 0, -1 if memory can't be allocated, or -2, with nothing written, if a token lies outside the cache. */
int decoder_step(const Decoder *decoder, uint16_t *hidden, const uint16_t *cos, const uint16_t *sin,
                 const int64_t *rows, const int64_t *positions, int64_t tokens, const int64_t *wanted,
                 int64_t num_wanted, uint16_t *logits, int threads) {
  if (outside(rows, positions, tokens, decoder->max_rows, decoder->max_length)) return -2;
  CachedAttention shape = {.heads = decoder->heads, .kv_heads = decoder->kv_heads, .width = decoder->width};
  int64_t scratch = attention_scratch(&shape, tokens, positions), phases = num_phases(decoder->num_layers);
  int64_t most = tokens > num_wanted ? tokens : num_wanted, buffers = lay_out(decoder, most, NULL, NULL);
  char *memory = aligned_alloc(64, (size_t)(buffers + threads * scratch * (int64_t)sizeof(float)));
  Phase *list = aligned_alloc(64, (size_t)phases * sizeof *list);
  Part *parts = malloc((size_t)(tokens + 1) * sizeof *parts);
  if (!memory || !list || !parts) {
    free(memory);
    free(list);
    free(parts);
    return -1;
  }
  memset(list, 0, (size_t)phases * sizeof *list);
  Buffers use;
  lay_out(decoder, most, memory, &use);
  int64_t num_parts = divide_tokens(parts, rows, positions, tokens, decoder->heads / decoder->kv_heads);
#pragma omp parallel num_threads(threads)
  {
    Walk walk = {list, 0};
    float *own = use.scratch + omp_get_thread_num() * scratch;
    for (const Layer *layer = decoder->layers; layer < decoder->layers + decoder->num_layers; layer++) {
      attention(&walk, decoder, layer, &use, hidden, cos, sin, rows, positions, tokens, parts, num_parts, own, threads);
      feed_forward(&walk, decoder, layer, &use, hidden, tokens, threads);
    }
    normalise(&walk, &decoder->norm, hidden, hidden, tokens, decoder->hidden, threads);
    for (int64_t row; (row = next_item(&walk, num_wanted)) >= 0;)
      memcpy(use.normed + row * decoder->hidden, hidden + wanted[row] * decoder->hidden,
             (size_t)decoder->hidden * sizeof *hidden);
    multiply(&walk, &decoder->head, use.normed, use.prepared, logits, NULL, num_wanted, threads);
  }
  free(memory);
  free(list);
  free(parts);
  return 0;
}
