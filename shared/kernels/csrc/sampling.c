/* choose_tokens: one token for each row of logits, without sorting the vocabulary.
 *
 * The result is a function of the row alone, the same bits on every processor and for every number of threads:
 *
 * - A weight is 2^((logit - highest) * scale), by a polynomial of float32 multiplications and additions that are never
 *   fused (see the pragma), and rounded to a multiple of 2^-34. The highest weight is 1.
 * - Sums of such weights are exact in float64 for up to 2^19 tokens, so their order does not matter.
 * - Tokens are ordered by falling logit, then by rising id.
 *
 * `inference_service/engine/run/token_choice.py` computes the same in torch.
 *
 * A position in the order is found by division into buckets of equal width, as in a radix selection: the amounts of the
 * buckets show which one contains it, and then only that bucket is divided. */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#pragma GCC optimize("fp-contract=off")

enum { LANES = 16, BUCKETS = 1024, NOT_FINITE = -1, NOTHING_LEFT = -2 };

#define ALWAYS __attribute__((always_inline)) static inline

typedef float Floats __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t)), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t)), aligned(2)));
typedef float EightFloats __attribute__((vector_size(8 * sizeof(float)), aligned(4)));
typedef double Doubles __attribute__((vector_size(8 * sizeof(double)), aligned(8)));

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

/* The first token, by rising id, through which the weights exceed `target`; else the last with a weight. */
ALWAYS int64_t pick_by_id(const Row *row, double target) {
  const int64_t stride = 1024;
  int64_t at = 0, last = -1;
  double before = 0;
  for (; at < row->vocab; at += stride) {
    int64_t end = at + stride < row->vocab ? at + stride : row->vocab;
    Doubles low = {0}, high = {0};
    for (int64_t i = at; i < end; i += LANES) {
      low += __builtin_convertvector(*(EightFloats *)(row->weights + i), Doubles);
      high += __builtin_convertvector(*(EightFloats *)(row->weights + i + 8), Doubles);
    }
    double through = before + sum_of(low, high);
    if (through > target) break;
    before = through;
  }
  for (; at < row->vocab; at++) {
    before += row->weights[at];
    if (before > target) return at;
  }
  for (at = 0; at < row->vocab; at++)
    if (row->weights[at] > 0) last = at;
  return last;
}

/* Divides the tokens of `division` between the logits `high` and `low`. */
static void divide(const Row *row, Division *division, float high, float low) {
  double factor = (BUCKETS - 1) / ((double)high - (double)low);
  memset(division->amounts, 0, sizeof division->amounts);
  for (int64_t i = 0; i < division->count; i++) {
    int32_t id = division->ids[i];
    double distance = ((double)high - row->logits[id]) * factor;
    int bucket = distance < BUCKETS - 1 ? (int)distance : BUCKETS - 1;
    division->buckets[i] = (uint16_t)bucket;
    division->amounts[bucket].count++;
    division->amounts[bucket].sum += row->weights[id];
  }
}

/* The first token in order through which there are `count` tokens or a weight of at least `sum`; else the last. */
static Place find(Row *row, int64_t count, double sum) {
  Division *from = &row->all, *part = &row->part;
  Place place = {-1, {0, 0}};
  Amount before = {0, 0};
  for (;;) {
    int bucket = -1, last = 0;
    for (int i = 0; i < BUCKETS && bucket < 0; i++) {
      if (!from->amounts[i].count) continue;
      last = i;
      if (before.count + from->amounts[i].count >= count || before.sum + from->amounts[i].sum >= sum)
        bucket = i;
      else {
        before.count += from->amounts[i].count;
        before.sum += from->amounts[i].sum;
      }
    }
    if (bucket < 0) { /* never reached: go to the end of the last bucket */
      bucket = last;
      before.count -= from->amounts[last].count;
      before.sum -= from->amounts[last].sum;
    }
    int64_t members = 0;
    float high = -INFINITY, low = INFINITY;
    for (int64_t i = 0; i < from->count; i++) {
      if (from->buckets[i] != bucket) continue;
      float logit = row->logits[from->ids[i]];
      high = logit > high ? logit : high;
      low = logit < low ? logit : low;
      part->ids[members++] = from->ids[i];
    }
    part->count = members;
    if (high == low) {
      place.through = before;
      for (int64_t i = 0; i < members; i++) {
        place.id = part->ids[i];
        place.through.count++;
        place.through.sum += row->weights[place.id];
        if (place.through.count >= count || place.through.sum >= sum) break;
      }
      return place;
    }
    divide(row, part, high, low);
    from = part;
  }
}

/* Collects the tokens with a weight above `least`, where each of 16 neighbours is usually below it. */
ALWAYS void collect(Row *row, float least) {
  int64_t count = 0;
  for (int64_t at = 0; at < row->vocab; at += LANES) {
    Ints above = *(Floats *)(row->weights + at) > least;
    if (!any(above)) continue;
    for (int lane = 0; lane < LANES; lane++) {
      row->all.ids[count] = (int32_t)(at + lane);
      count += row->weights[at + lane] > least;
    }
  }
  row->all.count = count;
}

/* Whether the token comes after the place. */
static int is_after(const Row *row, int32_t id, Place place) {
  float logit = row->logits[id], bound = row->logits[place.id];
  return logit < bound || (logit == bound && id > place.id);
}

/* A logit slightly below the one with this weight; 0 stands for the smallest weight. */
static float logit_of(float weight, float highest, float scale) {
  float low = highest - ((weight > 0x1p-35f ? -log2f(weight) : 35.0f) + 1) / scale;
  return low < highest ? low : nextafterf(highest, -INFINITY);
}

/* A weight below that of each of the first `count` tokens: the highest logits of blocks of tokens belong to different
 * tokens, so the one at position `count` among them is not above the token at that position among all. */
ALWAYS float least_of_first(Row *row, int64_t count, float highest, float scale) {
  int64_t blocks = 0;
  for (int64_t at = 0; at < row->vocab; at += LANES) {
    int64_t best = at;
    for (int64_t i = at + 1; i < at + LANES; i++) best = row->logits[i] > row->logits[best] ? i : best;
    row->all.ids[blocks] = (int32_t)best;
    blocks += row->weights[best] > 0;
  }
  if (blocks < count) return 0;
  row->all.count = blocks;
  divide(row, &row->all, highest, logit_of(0, highest, scale));
  return row->weights[find(row, count, INFINITY).id] * 0.999f;
}

/* top_k, then top_p of the weight that top_k leaves, and min_p; the first token always remains. */
ALWAYS int64_t pick_truncated(Row *row, const Draw *draw, float highest, double total) {
  /* A token that top_p keeps weighs, with all after it, more than 1 - top_p of the total, so it weighs more than that
   * share divided by their number. The factor covers rounding. */
  float least = 0;
  if (draw->top_k)
    least = least_of_first(row, draw->top_k, highest, draw->scale);
  else {
    if (draw->top_p < 1) least = (float)((total - draw->top_p * total) / (double)row->vocab * 0.999);
    if (draw->min_p * 0.999 > least) least = (float)(draw->min_p * 0.999);
  }
  collect(row, least);
  if (!row->all.count) return -1;
  float low = logit_of(least, highest, draw->scale);
  divide(row, &row->all, highest, low);
  int64_t most = draw->top_k ? draw->top_k : INT64_MAX;
  double left = total;
  if (draw->top_k) left = find(row, most, INFINITY).through.sum;
  Place end = find(row, most, draw->top_p < 1 ? draw->top_p * left : INFINITY);
  double kept = end.through.sum;
  if (draw->min_p > 0) {
    int64_t count = 0;
    kept = 0;
    for (int64_t i = 0; i < row->all.count; i++) {
      int32_t id = row->all.ids[i];
      if (is_after(row, id, end) || (row->weights[id] < draw->min_p && row->logits[id] < highest)) continue;
      row->all.ids[count++] = id;
      kept += row->weights[id];
    }
    row->all.count = count;
    divide(row, &row->all, highest, low);
  }
  Place found = find(row, INT64_MAX, nextafter(draw->number * kept, INFINITY));
  return is_after(row, found.id, end) ? end.id : found.id;
}

ALWAYS int64_t choose(const Draw *draw, Row *row) {
  float highest = read_logits(draw, row);
  if (!(highest < INFINITY)) return NOT_FINITE;
  if (draw->allowed || draw->num_changed) highest = change_logits(draw, row);
  if (highest == -INFINITY) return NOTHING_LEFT;
  if (draw->scale > 0) {
    double total = weigh(row, highest, draw->scale);
    int whole = !draw->top_k && draw->top_p >= 1 && draw->min_p <= 0;
    int64_t found = whole ? pick_by_id(row, draw->number * total) : pick_truncated(row, draw, highest, total);
    if (found >= 0) return found;
  }
  int64_t at = 0;
  while (!any(*(Floats *)(row->logits + at) == highest)) at += LANES;
  while (row->logits[at] != highest) at++;
  return at;
}

/* Writes a token for each of `rows` draws to `chosen`, or NOT_FINITE if a logit is NaN or positive infinity, or
 * NOTHING_LEFT if all are negative infinity. Returns 0, or -1 if memory can't be allocated. */
int choose_tokens(const Draw *draws, int64_t *chosen, int64_t rows, int64_t vocab, int threads) {
  int64_t padded = (vocab + LANES - 1) / LANES * LANES, sizes = 4 * sizeof(float) + 2 * sizeof(uint16_t);
  if (threads > rows) threads = (int)rows;
  int status = 0;
#pragma omp parallel num_threads(threads)
  {
    Row *row = malloc(sizeof *row);
    char *memory = aligned_alloc(64, (size_t)(padded * sizes + 63) / 64 * 64);
    if (row && memory) {
      row->vocab = vocab;
      row->logits = (float *)memory;
      row->weights = row->logits + padded;
      row->all.ids = (int32_t *)(row->weights + padded);
      row->part.ids = row->all.ids + padded;
      row->all.buckets = (uint16_t *)(row->part.ids + padded);
      row->part.buckets = row->all.buckets + padded;
    } else {
#pragma omp atomic write
      status = -1;
    }
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < rows; i++)
      if (row && memory) chosen[i] = choose(draws + i, row);
    free(memory);
    free(row);
  }
  return status;
}
