/* choose_tokens: one token for each row of logits, without sorting the vocabulary.
 *
 * The result is a function of the row alone, the same bits on every processor and for every number of threads:
 *
 * - A weight is 2^((logit - highest) * scale), by a polynomial of float32 multiplications and additions that are never
 *   fused (see the pragma in logits.h), and rounded to a multiple of 2^-34. The highest weight is 1.
 * - Sums of such weights are exact in float64 for up to 2^19 tokens, so their order does not matter.
 * - Tokens are ordered by falling logit, then by rising id.
 *
 * `inference_service/engine/run/token_choice.py` computes the same in torch.
 *
 * A position in the order is found by division into buckets of equal width, as in a radix selection: the amounts of the
 * buckets show which one contains it, and then only that bucket is divided. */
#include <omp.h>
#include <stdlib.h>

#include "logits.h"

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
