/* Operations of a whole warp: shuffles, votes, matrix loads and stores, mma; and numbers of 16 bits. */
#include "simt.h"
#include <math.h>
#include <string.h>

/* ---- numbers ----------------------------------------------------------------------------------------------- */
static float float_of(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static uint32_t bits_of(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}
float from_bf16(uint16_t v) { return float_of((uint32_t)v << 16); }

float from_f16(uint16_t h) {
  uint32_t sign = (h & 0x8000u) << 16, e = h >> 10 & 31, m = h & 1023;
  if (e == 31) return float_of(sign | 0x7f800000 | m << 13);
  if (e) return float_of(sign | (e + 112) << 23 | m << 13);
  return sign ? -(float)m * 0x1p-24f : (float)m * 0x1p-24f;
}

static uint16_t to_bf16(float f) {
  uint32_t u = bits_of(f);
  if ((u & 0x7fffffff) > 0x7f800000) return u >> 16 | 64;
  return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

static uint16_t to_f16(float f) {
  uint32_t u = bits_of(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
  if (a > 0x7f800000) return sign | 0x7e00 | (a >> 13 & 0x3ff);
  if (a >= 0x477ff000) return sign | 0x7c00;
  if (a < 0x38800000) return sign | (uint16_t)bits_of(float_of(a) + 0.5f); /* subnormal: the sum rounds to 2^-24 */
  return sign | (a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13;
}

static float round_odd(double d) { /* so that rounding once more rounds right */
  float f = (float)d;
  uint32_t u = bits_of(f);
  if ((double)f == d || f != f || u & 1) return f;
  return float_of(fabs((double)f) > fabs(d) ? u - 1 : u + 1);
}

/* What LLVM calls where x86 lacks the conversion; 16-bit numbers travel in the low half of an xmm register. */
float simt_truncsfbf2(float f) { return float_of(to_bf16(f)); }
float simt_truncdfbf2(double d) { return float_of(to_bf16(round_odd(d))); }
float simt_truncsfhf2(float f) { return float_of(to_f16(f)); }
float simt_truncdfhf2(double d) { return float_of(to_f16(round_odd(d))); }
float simt_extendhfsf2(float f) { return from_f16((uint16_t)bits_of(f)); }

uint32_t simt_to_tf32(uint32_t u) { /* to the nearest of 10 bits of mantissa, halves away from zero */
  return (u & 0x7f800000) == 0x7f800000 ? u : (u + 0x1000) & 0xffffe000;
}

uint32_t simt_permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  uint64_t both = (uint64_t)b << 32 | a;
  uint32_t r = 0;
  for (int i = 0; i < 4; i++) {
    uint32_t s = selector >> 4 * i & 15, byte = both >> 8 * (s & 7) & 255;
    if (s & 8) byte = byte & 128 ? 255 : 0;
    r |= byte << 8 * i;
  }
  return r;
}

/* ---- shuffles and votes -------------------------------------------------------------------------------------- */
typedef struct {
  uint32_t value, with, bounds, result, predicate, mode;
} exchange;

static void shuffle(void **lanes, uint32_t mask) {
  (void)mask;
  for (int l = 0; l < 32; l++) {
    exchange *x = lanes[l];
    if (!x) continue;
    int clamp = x->bounds & 31, segment = x->bounds >> 8 & 31, b = x->with & 31;
    int high = (l & segment) | (clamp & ~segment), low = l & segment, from;
    switch (x->mode) {
    case 0: from = l - b, x->predicate = from >= high; break;
    case 1: from = l + b, x->predicate = from <= high; break;
    case 2: from = l ^ b, x->predicate = from <= high; break;
    default: from = low | (b & ~segment), x->predicate = from <= high;
    }
    if (!x->predicate) from = l;
    exchange *other = lanes[from];
    x->result = other ? other->value : 0xffffffff; /* a lane outside of the mask: undefined, so NaN */
  }
}

void simt_shuffle(uint32_t mode, uint32_t mask, uint32_t value, uint32_t with, uint32_t bounds, uint32_t *out,
                  uint32_t site) {
  static const char *const name[] = {"shfl.sync.up", "shfl.sync.down", "shfl.sync.bfly", "shfl.sync.idx"};
  exchange x = {value, with, bounds, 0, 0, mode};
  rendezvous(name[mode], mode, 0, mask, &x, shuffle, site);
  out[0] = x.result, out[1] = x.predicate;
}

enum { ADD, OR, AND, XOR, SMAX, SMIN, UMAX, UMIN, BALLOT, ANY, ALL, UNIFORM };

static void vote(void **lanes, uint32_t mask) {
  int first = __builtin_ctz(mask);
  uint32_t mode = ((exchange *)lanes[first])->mode, r = ((exchange *)lanes[first])->value, v, ballot = 0;
  for (int l = first; l < 32; l++)
    if (lanes[l]) {
      v = ((exchange *)lanes[l])->value;
      if (v) ballot |= 1u << l;
      if (l == first) continue;
      switch (mode) {
      case ADD: r += v; break;
      case OR: r |= v; break;
      case AND: r &= v; break;
      case XOR: r ^= v; break;
      case SMAX: r = (int32_t)v > (int32_t)r ? v : r; break;
      case SMIN: r = (int32_t)v < (int32_t)r ? v : r; break;
      case UMAX: r = v > r ? v : r; break;
      case UMIN: r = v < r ? v : r; break;
      }
    }
  if (mode == BALLOT) r = ballot;
  if (mode == ANY) r = ballot != 0;
  if (mode == ALL) r = ballot == mask;
  if (mode == UNIFORM) r = ballot == mask || !ballot;
  for (int l = 0; l < 32; l++)
    if (lanes[l]) ((exchange *)lanes[l])->result = r;
}

uint32_t simt_vote(uint32_t mode, uint32_t value, uint32_t mask, uint32_t site) {
  exchange x = {value, 0, 0, 0, 0, mode};
  rendezvous(mode < BALLOT ? "redux.sync" : "vote.sync", mode, 0, mask, &x, vote, site);
  return x.result;
}

static void match(void **lanes, uint32_t mask) {
  for (int l = 0; l < 32; l++) {
    exchange *x = lanes[l];
    if (!x) continue;
    uint32_t same = 0;
    for (int o = 0; o < 32; o++)
      if (lanes[o] && ((exchange *)lanes[o])->value == x->value) same |= 1u << o;
    x->predicate = same == mask, x->result = x->mode && !x->predicate ? 0 : same;
  }
}

void simt_match(uint32_t all, uint32_t mask, uint32_t value, uint32_t *out, uint32_t site) {
  exchange x = {value, 0, 0, 0, 0, all};
  rendezvous(all ? "match.all.sync" : "match.any.sync", all, 0, mask, &x, match, site);
  out[0] = x.result, out[1] = x.predicate;
}

static void nothing(void **lanes, uint32_t mask) { (void)lanes, (void)mask; }

void simt_elect(uint32_t mask, uint32_t *out, uint32_t site) {
  rendezvous("elect.sync", 0, 0, mask, NULL, nothing, site);
  uint32_t leader = __builtin_ctz(mask & M.warp[M.current->warp].exists);
  out[0] = leader, out[1] = M.current->lane == (int)leader;
}

/* ---- matrices of 8 x 8 16-bit elements: lane 8k + r gives the address of row r of matrix k ---------------------- */
typedef struct {
  uint16_t *row;
  uint32_t *values, count, transposed, stores, site;
} matrices;

static void move_matrices(void **lanes, uint32_t mask) {
  (void)mask;
  matrices *any = lanes[0];
  fiber *first = M.current - M.current->lane;
  for (uint32_t k = 0; k < any->count; k++)
    for (int r = 0; r < 8; r++) {
      uint16_t *row = ((matrices *)lanes[k * 8 + r])->row;
      if (M.check) access_memory(first + k * 8 + r, (char *)row, 16, 16, any->stores ? WRITE : READ, any->site);
      for (int c = 0; c < 8; c++) {
        int lane = any->transposed ? c * 4 + r / 2 : r * 4 + c / 2, half = any->transposed ? r & 1 : c & 1;
        uint16_t *value = (uint16_t *)(((matrices *)lanes[lane])->values + k) + half;
        if (any->stores) row[c] = *value;
        else *value = row[c];
      }
    }
}

void simt_ldmatrix(uint32_t count, uint32_t transposed, char *row, uint32_t *out, uint32_t site) {
  matrices m = {(uint16_t *)row, out, count, transposed, 0, site};
  rendezvous("ldmatrix", count * 2 + transposed, 1, ~0u, &m, move_matrices, site);
}

void simt_stmatrix(uint32_t count, uint32_t transposed, char *row, uint32_t *values, uint32_t site) {
  matrices m = {(uint16_t *)row, values, count, transposed, 1, site};
  rendezvous("stmatrix", count * 2 + transposed, 1, ~0u, &m, move_matrices, site);
}

/* ---- mma: D[16,8] = A[16,K] B[K,8] + C, products exact, one f32 accumulator in the order of k -------------------- */
enum { BF16, F16, TF32, F16_F16 };
typedef struct {
  const uint32_t *in;
  uint32_t *out, kind, k;
} product;

typedef float row8 __attribute__((vector_size(32), aligned(4)));

static inline float half_of(uint32_t pair, int high, int kind) {
  if (kind == BF16) return float_of(high ? pair & 0xffff0000 : pair << 16);
  return from_f16(high ? pair >> 16 : pair);
}

static inline __attribute__((always_inline)) void mma_of(void **lanes, int kind, int K) {
  float a[16][16];
  row8 b[16], c[16];
  int na = kind == TF32 ? K / 2 : K / 4, nb = na / 2;
  for (int l = 0; l < 32; l++) {
    const uint32_t *in = ((product *)lanes[l])->in, *acc = in + na + nb;
    int g = l >> 2, t = l & 3;
    for (int i = 0; i < na; i++) {
      float *row = a[g + (i & 1) * 8];
      if (kind == TF32) row[t + (i >> 1) * 4] = float_of(in[i] & 0xffffe000);
      else
        for (int h = 0; h < 2; h++) row[t * 2 + (i >> 1) * 8 + h] = half_of(in[i], h, kind);
    }
    for (int i = 0; i < nb; i++) {
      if (kind == TF32) b[t + i * 4][g] = float_of(in[na + i] & 0xffffe000);
      else
        for (int h = 0; h < 2; h++) b[t * 2 + i * 8 + h][g] = half_of(in[na + i], h, kind);
    }
    for (int i = 0; i < 4; i++)
      c[g + i / 2 * 8][t * 2 + i % 2] = kind == F16_F16 ? half_of(acc[i / 2], i % 2, kind) : float_of(acc[i]);
  }
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < K; k++) c[i] += a[i][k] * b[k];
  for (int l = 0; l < 32; l++) {
    uint32_t *out = ((product *)lanes[l])->out;
    int g = l >> 2, t = l & 3;
    for (int i = 0; i < 4; i++) {
      float v = c[g + i / 2 * 8][t * 2 + i % 2];
      if (kind != F16_F16) out[i] = bits_of(v);
      else if (i % 2) out[i / 2] |= (uint32_t)to_f16(v) << 16;
      else out[i / 2] = to_f16(v);
    }
  }
}

static void mma(void **lanes, uint32_t mask) {
  (void)mask;
  product *any = lanes[0];
  if (any->kind == BF16 && any->k == 16) mma_of(lanes, BF16, 16); /* the common case, with its loops unrolled */
  else mma_of(lanes, any->kind, any->k);
}

void simt_mma(uint32_t kind, uint32_t k, const uint32_t *in, uint32_t *out, uint32_t site) {
  product p = {in, out, kind, k};
  rendezvous("mma.sync", kind * 32 + k, 1, ~0u, &p, mma, site);
}
