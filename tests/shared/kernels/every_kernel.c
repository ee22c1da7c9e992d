/* Calls every kernel on fixed numbers and prints the results: a line `name number number ...` for each.
 *
 * Numbers are printed as the bits of float32, so that programs for different processors can be compared exactly. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

/* Of weights.h, without its vectors. */
int64_t prepared_bytes(const Weights *, int64_t);
int64_t most_prepared_bytes(int64_t, int64_t);

enum { THREADS = 2, NUMBERS = 1 << 16 };

/* Uniform in [-scale, scale), float32 or, truncated, bfloat16. The memory is never freed. Compilers evaluate arguments
 * in any order, so a call has at most one `made` among its arguments. */
static void *made(int half, float scale) {
  static uint64_t state = 88172645463325252u;
  float *floats = malloc(NUMBERS * sizeof(float));
  uint16_t *halves = malloc(NUMBERS * sizeof(uint16_t));
  for (int i = 0; i < NUMBERS; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    floats[i] = (float)((int64_t)(state >> 40) - (1 << 23)) / (1 << 23) * scale;
    uint32_t bits;
    memcpy(&bits, floats + i, sizeof bits);
    halves[i] = (uint16_t)(bits >> 16);
  }
  return half ? (void *)halves : (void *)floats;
}

static void print(const char *name, int64_t variant, const void *numbers, int64_t count, int half) {
  printf("%s-%d", name, (int)variant);
  for (int64_t i = 0; i < count; i++)
    printf(" %08x", half ? (uint32_t)((const uint16_t *)numbers)[i] << 16 : ((const uint32_t *)numbers)[i]);
  printf("\n");
}

static void products(void) {
  const int64_t rows[] = {1, 2, 3, 4, 5, 16, 37};
  for (int i = 0; i < 7; i++)
    for (int64_t out = 128; out <= 144; out += 16) {
      uint16_t *x = made(1, 1), *panels = made(1, 1), *y = made(1, 0);
      Weights weights = {panels, i % 2 ? made(0, 1) : NULL, 96, out, 16};
      linear(&weights, x, y, rows[i], THREADS);
      print("linear", rows[i] * 1000 + out, y, rows[i] * out, 1);
    }
}

static void quantised(int bits, int64_t rows) {
  enum { IN = 96, OUT = 48, BLOCKS = IN / 32, PANELS = OUT / 16 };
  uint16_t *x = made(1, 1), *y = made(1, 0), *panels = made(1, 1);
  for (int i = 0; i < PANELS * BLOCKS * 32 * (bits + 1); i++)
    if (i % (32 * (bits + 1)) < 32) panels[i] = (uint16_t)(0x2000 | (panels[i] * 2654435761u >> 20)); /* float16 */
  Weights weights = {panels, made(0, 1), IN, OUT, bits};
  linear(&weights, x, y, rows, THREADS);
  print("quantised", bits * 100 + rows, y, rows * OUT, 1);
}

static void elementwise(int half) {
  enum { ROWS = 3, WIDTH = 112 };
  void *x = made(half, 3), *other = made(half, 3), *dy = made(half, 1), *y = made(half, 0), *dx = made(half, 0);
  float *weight = made(0, 2), *scales = made(0, 0);
  rms_norm(x, weight, y, scales, ROWS, WIDTH, 1e-5f, half, THREADS);
  print("near_rms_norm", half, y, ROWS * WIDTH, half);
  rms_norm_backward(dy, x, weight, scales, dx, ROWS, WIDTH, half, THREADS);
  print("near_rms_norm_backward", half, dx, ROWS * WIDTH, half);
  x = made(half, 120), swiglu(x, other, y, ROWS, WIDTH, WIDTH, half, THREADS);
  print("swiglu", half, y, ROWS * WIDTH, half);
  swiglu_backward(x, other, dy, dx, ROWS * WIDTH, half, THREADS);
  print("swiglu_backward_gate", half, dx, ROWS * WIDTH, half);
  print("swiglu_backward_up", half, dy, ROWS * WIDTH, half);
  for (int backward = 0; backward < 2; backward++) {
    void *cos = made(half, 1), *sin = made(half, 1);
    rotate(x, 2 * 96, 96, cos, sin, y, ROWS, 2, 96, backward, half, THREADS);
    print(backward ? "rotate_backward" : "rotate", half, y, ROWS * 2 * 96, half);
  }
}

static void decode(int64_t width, int64_t heads, int64_t window) {
  enum { TOKENS = 5, KV_HEADS = 2, SLOTS = 40, MAX_ROWS = 3 };
  const int64_t rows[TOKENS] = {2, 2, 0, 1, 1}, positions[TOKENS] = {3, 4, 38, 0, 16};
  uint16_t *query = made(1, 2), *key = made(1, 2), *value = made(1, 1), *keys = made(1, 2), *values = made(1, 1);
  uint16_t *out = made(1, 0);
  cached_attention(query, key, value, keys, values, out, rows, positions, TOKENS, heads * KV_HEADS, KV_HEADS, width,
                   KV_HEADS * SLOTS * width, SLOTS * width, MAX_ROWS, SLOTS, window, 0.2f, THREADS);
  print("near_cached_attention", width * 100 + heads * 10 + window, out, TOKENS * heads * KV_HEADS * width, 1);
}

static void prefill(int64_t width, int64_t heads, int64_t window) {
  enum { TOKENS = 37, KV_HEADS = 1, SLOTS = 340, MAX_ROWS = 1, FIRST = 270 };
  int64_t rows[TOKENS] = {0}, positions[TOKENS];
  for (int i = 0; i < TOKENS; i++) positions[i] = FIRST + i;
  uint16_t *query = made(1, 2), *key = made(1, 2), *value = made(1, 1), *keys = made(1, 2), *values = made(1, 1);
  uint16_t *out = made(1, 0);
  cached_attention(query, key, value, keys, values, out, rows, positions, TOKENS, heads * KV_HEADS, KV_HEADS, width,
                   KV_HEADS * SLOTS * width, SLOTS * width, MAX_ROWS, SLOTS, window, 0.2f, THREADS);
  print("near_prefill", width * 100 + heads * 10 + (window > 0), out, TOKENS * heads * KV_HEADS * width, 1);
}

static Weights matrix(int64_t in, int64_t out, int biased) {
  uint16_t *panels = made(1, 0.3f);
  Weights weights = {panels, biased ? made(0, 1) : NULL, in, out, 16};
  return weights;
}

static void whole(int64_t tokens) {
  enum { HIDDEN = 112, HEADS = 4, KV_HEADS = 2, WIDTH = 32, INNER = 128, SLOTS = 40, MAX_ROWS = 3, VOCAB = 48 };
  const int64_t rows[] = {2, 2, 0, 1, 1}, positions[] = {3, 4, 38, 0, 16}, wanted[] = {4, 0};
  Layer layers[2];
  Norm none = {0};
  for (int i = 0; i < 2; i++) {
    Norm norms[4] = {{made(0, 2), 1e-5f}, {made(0, 2), 1e-5f}, {made(0, 2), 1e-5f}, {made(0, 2), 1e-5f}};
    Layer layer = {norms[0], i ? none : norms[1], i ? none : norms[2], norms[3]};
    layer.qkv = matrix(HIDDEN, (HEADS + 2 * KV_HEADS) * WIDTH, 1), layer.out = matrix(HEADS * WIDTH, HIDDEN, 0);
    layer.gate_up = matrix(HIDDEN, 2 * INNER, 0), layer.down = matrix(INNER, HIDDEN, 0);
    layer.keys = made(1, 2), layer.values = made(1, 1), layer.window = i * 7, layer.scale = 0.2f;
    layers[i] = layer;
  }
  Norm last = {made(0, 2), 1e-5f};
  Decoder decoder = {layers, 2, HIDDEN, HEADS, KV_HEADS, WIDTH, INNER, KV_HEADS * SLOTS * WIDTH, SLOTS * WIDTH,
                     MAX_ROWS, SLOTS, last, matrix(HIDDEN, VOCAB, 0)};
  uint16_t *hidden = made(1, 1), *cos = made(1, 1), *sin = made(1, 1), *logits = made(1, 0);
  int64_t num_wanted = tokens == 5 ? 2 : 0;
  decoder_step(&decoder, hidden, cos, sin, rows, positions, tokens, wanted, num_wanted, logits, THREADS);
  print("far_decoder_logits", tokens, num_wanted ? logits : hidden, num_wanted ? num_wanted * VOCAB : tokens * HIDDEN, 1);
  print("far_decoder_keys", tokens, layers[1].keys, KV_HEADS * SLOTS * WIDTH, 1);
}

static void train(int half, int64_t window) {
  enum { TOKENS = 33, HEADS = 6, KV_HEADS = 2, WIDTH = 32, SHARED = 5 };
  const int64_t items[2][5] = {{0, SHARED, 0, 2, 0}, {-1, 0, 2, 1, SHARED}}, rows[3][2] = {{5, 3}, {8, 17}, {25, 8}};
  PackedAttention call = {HEADS, KV_HEADS, WIDTH, window, half, 2, items[0], rows[0], 0.2f, THREADS};
  Heads query = {made(half, 2), HEADS * WIDTH, WIDTH}, key = {made(half, 2), KV_HEADS * WIDTH, WIDTH};
  Heads value = {made(half, 1), KV_HEADS * WIDTH, WIDTH}, grad = {made(half, 1), HEADS * WIDTH, WIDTH};
  void *out = made(half, 0), *dquery = made(half, 0), *dkey = made(half, 0), *dvalue = made(half, 0);
  float *log_sums = made(0, 0);
  packed_attention(&call, &query, &key, &value, NULL, out, log_sums, NULL, NULL, NULL);
  packed_attention(&call, &query, &key, &value, &grad, dquery, log_sums, dkey, dvalue, made(0, 0));
  int64_t variant = half * 100 + window, skipped = SHARED * HEADS * WIDTH * (half ? 2 : 4);
  print("near_packed_attention", variant, (char *)out + skipped, (TOKENS - SHARED) * HEADS * WIDTH, half);
  print("near_packed_attention_dquery", variant, (char *)dquery + skipped, (TOKENS - SHARED) * HEADS * WIDTH, half);
  print("near_packed_attention_dkey", variant, dkey, TOKENS * KV_HEADS * WIDTH, half);
  print("near_packed_attention_dvalue", variant, dvalue, TOKENS * KV_HEADS * WIDTH, half);
}

static void sample(int half) {
  enum { ROWS = 24, VOCAB = 5003 };
  Draw draws[ROWS];
  int64_t chosen[ROWS];
  uint32_t tokens[ROWS]; /* the bits of float32 */
  uint8_t *allowed = malloc(VOCAB);
  for (int i = 0; i < VOCAB; i++) allowed[i] = i % 7 < 3;
  const int64_t changed[] = {7, VOCAB - 1};
  const float changes[] = {8, 7};
  for (int i = 0; i < ROWS; i++) {
    draws[i] = (Draw){.logits = made(half, 8),
                      .allowed = i % 4 == 3 ? allowed : NULL,
                      .changed = changed,
                      .changes = changes,
                      .num_changed = i % 6 == 5 ? 2 : 0,
                      .half = half,
                      .top_k = i % 3 == 1 ? 40 * i : 0,
                      .top_p = i % 2 ? 0.9 : 1,
                      .min_p = i % 5 ? 0 : 0.01,
                      .number = (i + 0.5) / ROWS,
                      .scale = 1.8f};
  }
  choose_tokens(draws, chosen, ROWS, VOCAB, THREADS);
  for (int i = 0; i < ROWS; i++) {
    float token = (float)chosen[i];
    memcpy(tokens + i, &token, sizeof token);
  }
  print("choose_tokens", half, tokens, ROWS, 0);
}

/* Blocks that were dequantised, rounded to bfloat16, and are found again. */
static void found(int smallest) {
  enum { BLOCKS = 40, SIZE = BLOCKS * 32 };
  const float *scales = made(0, 0.1f), *random = made(0, 1);
  uint16_t weights[SIZE];
  uint8_t codes[SIZE];
  float numbers[BLOCKS * 2] = {0}, results[SIZE];
  for (int i = 0; i < SIZE; i++) {
    const int range = smallest == -128 ? 127 : 8, lowest = smallest ? -range : 0;
    int code = lowest + (int)((random[i] + 1) * range);
    if (i % 32 < 2) code = i % 32 ? lowest : smallest ? smallest == -8 ? 7 : 127 : 15; /* all of the range is used */
    const float scale = (float)(int)(scales[i / 32] * 16384) / 65536, least = smallest ? 0 : -scales[i / 32] * 0x1p-3f;
    float weight = (float)code * (smallest ? scale : fabsf(scale)) + (float)(int)(least * 16384) / 16384;
    uint32_t bits;
    memcpy(&bits, &weight, sizeof bits);
    weights[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  float count = (float)find_codes(weights, BLOCKS, smallest, codes, numbers, THREADS);
  for (int i = 0; i < SIZE; i++) results[i] = (float)codes[i] * numbers[i / 32 * 2] + numbers[i / 32 * 2 + 1];
  print("found", -smallest, &count, 1, 0);
  print("restored", -smallest, results, SIZE, 0);
}

#ifndef LIBRARY /* which exports neither function; the sanitizers' program tests them for its instruction set */
/* Memory for the inputs of any product is enough for narrower ones, which may have another form. */
static void sizes(void) {
  for (int64_t in = 16; in <= 128; in += 16)
    for (int64_t bits = in % 32 ? 16 : 4; bits <= 16; bits *= 2)
      for (int64_t rows = 1; rows < 200; rows += 53) {
        Weights weights = {NULL, NULL, in, 16, bits};
        if (prepared_bytes(&weights, rows) > most_prepared_bytes(rows, 128)) abort();
      }
}
#endif

int main(void) {
#ifndef LIBRARY
  sizes();
#endif
  for (int i = 0; i < 3; i++) found(i == 0 ? 0 : i == 1 ? -8 : -128);
  products();
  for (int64_t rows = 1; rows < 50; rows += 3 * rows) quantised(4, rows), quantised(8, rows);
  for (int64_t rows = 2; rows < 14; rows += 5) quantised(4, rows), quantised(8, rows);
  for (int half = 0; half < 2; half++) {
    elementwise(half);
    sample(half);
    for (int64_t window = 0; window < 8; window += 7) train(half, window);
  }
  whole(5), whole(1);
  for (int64_t width = 32; width <= 128; width += 32)
    for (int64_t heads = 1; heads <= 5; heads += 2) decode(width, heads, heads == 3 ? 7 : 0), prefill(width, heads, heads == 3 ? 70 : 0);
  return 0;
}
