/* The functions that Python calls, and the structures that it passes to them. `library.py` reads this file: what it
 * declares here is declared nowhere else. Numbers are int64_t, int, float or double; everything else is a pointer or a
 * structure from above. What a function computes is said where it is defined. */
#pragma once
#include <stdint.h>

/* y = x W^T + bias, of x [rows][inputs] and y [rows][outputs]; bias [outputs] or null. `bits` is 16 for panels of
 * bfloat16 (linear.c) and 4 or 8 for panels of blocks (blocks.h). */
typedef struct {
  const void *panels;
  const float *bias;
  int64_t inputs, outputs, bits;
} Weights;

typedef struct {
  const float *weight; /* null: there is no such norm */
  float epsilon;
} Norm;

typedef struct {
  Norm norm, query_norm, key_norm, mlp_norm;
  Weights qkv, out, gate_up, down;
  uint16_t *keys, *values; /* of the cache, as in cached_attention.c */
  int64_t window;
  float scale;
} Layer;

typedef struct {
  const Layer *layers;
  int64_t num_layers, hidden, heads, kv_heads, width, inner;
  int64_t row_stride, head_stride, max_rows, max_length;
  Norm norm;
  Weights head; /* hidden states to logits */
} Decoder;

/* A view of [tokens][heads][width]; strides count numbers. */
typedef struct {
  void *data;
  int64_t token_stride, head_stride;
} Heads;

typedef struct {
  int64_t heads, kv_heads, width, window, half, num_items; /* window 0: no limit */
  /* [num_items][ITEM]; items with the same shared start are neighbours, -1 means none; PARTIAL: shared slots of the
   * items before. */
  const int64_t *items;
  const int64_t *rows; /* [rows][start, length] */
  float scale;
  int threads;
} PackedAttention;

/* How one row is sampled. `scale` is log2(e) / temperature; 0 takes the highest logit. */
typedef struct {
  const void *logits;     /* [vocab], bfloat16 if `half` is set, else float32 */
  const uint8_t *allowed; /* [vocab], 0 for impossible tokens; null: all tokens are possible */
  const int64_t *changed; /* [num_changed]: tokens with other logits than those above */
  const float *changes;
  int64_t num_changed, half, top_k;
  double top_p, min_p, number; /* number: uniform in [0, 1) */
  float scale;
} Draw;

int linear(const Weights *weights, const uint16_t *x, uint16_t *y, int64_t rows, int threads);
int expands_blocks(int64_t inputs);
int find_codes(const uint16_t *weights, int64_t blocks, int smallest, uint8_t *codes, float *numbers, int threads);
int cached_attention(const uint16_t *query, const uint16_t *new_keys, const uint16_t *new_values, uint16_t *keys,
                     uint16_t *values, uint16_t *out, const int64_t *rows, const int64_t *positions, int64_t tokens,
                     int64_t heads, int64_t kv_heads, int64_t width, int64_t row_stride, int64_t head_stride,
                     int64_t max_rows, int64_t max_length, int64_t window, float scale, int threads);
int decoder_step(const Decoder *decoder, uint16_t *hidden, const uint16_t *cos, const uint16_t *sin,
                 const int64_t *rows, const int64_t *positions, int64_t tokens, const int64_t *wanted,
                 int64_t num_wanted, uint16_t *logits, int threads);
int packed_attention(const PackedAttention *call, const Heads *query, const Heads *key, const Heads *value,
                     const Heads *grad, void *out, float *log_sums, void *dkey, void *dvalue, float *partials);
int choose_tokens(const Draw *draws, int64_t *chosen, int64_t rows, int64_t vocab, int threads);
void rms_norm(const void *x, const float *weight, void *y, float *scales, int64_t rows, int64_t width, float epsilon,
              int half, int threads);
void rms_norm_backward(const void *dy, const void *x, const float *weight, const float *scales, void *dx, int64_t rows,
                       int64_t width, int half, int threads);
void swiglu(const void *gate, const void *up, void *y, int64_t rows, int64_t width, int64_t stride, int half,
            int threads);
void swiglu_backward(const void *gate, const void *up, void *dy, void *dgate, int64_t count, int half, int threads);
void rotate(const void *x, int64_t token_stride, int64_t head_stride, const void *cos, const void *sin, void *y,
            int64_t tokens, int64_t heads, int64_t width, int backward, int half, int threads);
