/* wgmma: products of a warpgroup (128 threads) whose operands lie in shared memory, described by 64-bit descriptors.

   The product is computed at the wait that covers it.  Until then its results are NaNs that name the operation and
   the register, so a later wgmma may accumulate onto them, and nobody else can make use of them; its operands are held.
 */
#include "simt.h"
#include <stdlib.h>
#include <string.h>

enum {
  RING = 64,
  TAG = 0x7fe00000,
  THREADS = 128,
  BF16 = 0,
  F16 = 1,
  TF32 = 2,
  TRANSPOSE_A = 1,
  TRANSPOSE_B = 2,
  A_IN_REGISTERS = 4
};

typedef struct {
  uint32_t id, done, confirmed, n, kind, flags, accumulate, site;
  int group;
  uint64_t a, b;
  fiber *leader;
  uint32_t registers[THREADS][4], d[THREADS][128];
} product;

typedef struct {
  const uint32_t *in;
  uint32_t *out;
} operand;

typedef struct {
  product *ring[RING];
  uint32_t issued, site, arrived;
  uint64_t shape;
  operand operand[THREADS];
} warpgroup;

static warpgroup *GROUP[MAX_THREADS / THREADS];

static warpgroup *group_of(fiber *f, const char *what, uint32_t site) {
  M.report.site = site;
  if (M.per_block % THREADS)
    fail(E_DIVERGENCE, "%s: blocks of %d threads, not whole warpgroups of 128", what, M.per_block);
  warpgroup **g = &GROUP[f->id / THREADS];
  if (!*g) *g = calloc(1, sizeof **g);
  return *g;
}

/* The address of a row of 16 bytes of a core matrix: `mn` counts rows (or columns), `k` along the product's sum. */
static char *piece(char *base, uint64_t desc, int transposed, uint32_t mn, uint32_t k, uint32_t bytes) {
  static const uint8_t modes[] = {0, 3, 2, 1};
  uint32_t mode = modes[desc >> 62], width = 16 << mode, lead = (desc >> 16 & 0x3fff) << 4,
           stride = (desc >> 32 & 0x3fff) << 4, offset;
  if (transposed) {
    uint32_t q = mn * bytes / 16;
    if (mode) offset = q % (width / 16) * 16 + q / (width / 16) * lead + k % 8 * width + k / 8 * stride;
    else offset = q * stride + k % 8 * 16 + k / 8 * lead;
  } else {
    uint32_t q = k * bytes / 16;
    offset = mn / 8 * stride + mn % 8 * width + q * (mode ? 16 : lead);
  }
  uint64_t address = ((desc & 0x3fff) << 4) + offset;
  return base + ((address ^ swizzle(address, mode)) & (ARENA - 1));
}

static float element(const char *p, uint32_t i, uint32_t kind) {
  uint32_t u;
  uint16_t h;
  if (kind == TF32) {
    memcpy(&u, p + 4 * i, 4), u &= 0xffffe000;
    float f;
    memcpy(&f, &u, 4);
    return f;
  }
  memcpy(&h, p + 2 * i, 2);
  return kind == BF16 ? from_bf16(h) : from_f16(h);
}

/* The operand as floats (to != NULL); or a hold of its pieces that begins or ends; or (step 0) a note that they were
 * read. */
static void operand_pieces(product *p, int is_b, float *to, int step) {
  uint32_t bytes = p->kind == TF32 ? 4 : 2, depth = 32 / bytes, per = 16 / bytes, rows = is_b ? p->n : 64;
  int transposed = p->flags & (is_b ? TRANSPOSE_B : TRANSPOSE_A);
  char *base = M.region[p->leader->rank].base;
  uint32_t mn_step = transposed ? per : 1, k_step = transposed ? 1 : per;
  if (!is_b && p->flags & A_IN_REGISTERS) return;
  for (uint32_t mn = 0; mn < rows; mn += mn_step)
    for (uint32_t k = 0; k < depth; k += k_step) {
      char *at = piece(base, is_b ? p->b : p->a, transposed, mn, k, bytes);
      if (to)
        for (uint32_t i = 0; i < per; i++)
          to[(transposed ? mn + i : mn) * depth + (transposed ? k : k + i)] = element(at, i, p->kind);
      else if (step) {
        if (step > 0 && M.check) check_proxy(p->leader, at, 16, p->site);
        shared_hold(p->leader, at, 16, step, p->site);
      } else if (M.check) access_memory(p->leader, at, 16, 16, READ, p->site);
    }
}

static void operands(product *p, int step) {
  operand_pieces(p, 0, NULL, step);
  operand_pieces(p, 1, NULL, step);
}

static uint32_t resolved(warpgroup *g, uint32_t v) {
  if ((v & 0xffe00000) != TAG) return v;
  uint32_t id = v >> 7 & 0x3fff;
  product *p = g->ring[id % RING];
  int thread = M.current->id % THREADS;
  return p && p->done && (p->id & 0x3fff) == id ? p->d[thread][v & 127] : v;
}

static void compute(warpgroup *g, product *p) {
  static float a[64 * 16], b[256 * 16], transposed[16][256], sum[64][256];
  uint32_t depth = p->kind == TF32 ? 8 : 16;
  fiber *caller = M.current, *first = M.fiber + p->leader->id / THREADS * THREADS;
  if (p->flags & A_IN_REGISTERS) {
    for (int t = 0; t < THREADS; t++)
      for (int i = 0; i < 4; i++) {
        int row = t / 32 * 16 + t % 32 / 4 + i % 2 * 8;
        if (p->kind == TF32) a[row * depth + t % 4 + i / 2 * 4] = element((char *)&p->registers[t][i], 0, TF32);
        else
          for (int h = 0; h < 2; h++)
            a[row * depth + t % 4 * 2 + i / 2 * 8 + h] = element((char *)&p->registers[t][i], h, p->kind);
      }
  } else operand_pieces(p, 0, a, 0);
  operand_pieces(p, 1, b, 0);
  for (uint32_t j = 0; j < p->n; j++)
    for (uint32_t k = 0; k < depth; k++) transposed[k][j] = b[j * depth + k];
#define EACH(t, r, row, column)                                                                                        \
  for (uint32_t t = 0; t < THREADS; t++)                                                                               \
    for (uint32_t r = 0, row, column;                                                                                  \
         r < p->n / 2 && (row = t / 32 * 16 + t % 32 / 4 + r / 2 % 2 * 8, column = r / 4 * 8 + t % 4 * 2 + r % 2, 1);  \
         r++)
  EACH(t, r, row, column) {
    M.current = first + t;
    uint32_t v = p->accumulate ? resolved(g, p->d[t][r]) : 0;
    memcpy(&sum[row][column], &v, 4);
  }
  M.current = caller;
  for (int i = 0; i < 64; i++)
    for (uint32_t k = 0; k < depth; k++)
      for (uint32_t j = 0; j < p->n; j++) sum[i][j] += a[i * depth + k] * transposed[k][j];
  EACH(t, r, row, column) memcpy(&p->d[t][r], &sum[row][column], 4);
  p->done = 1;
  operands(p, -READER);
}

static void complete(fiber *f, warpgroup *g, int pending) {
  for (uint32_t i = g->issued > RING ? g->issued - RING : 0; i < g->issued; i++) {
    product *p = g->ring[i % RING];
    if (p->group + pending >= f->wgmma_groups) continue;
    if (!p->done) compute(g, p);
    if (p->leader == f && !p->confirmed)
      p->confirmed = 1, operands(p, 0); /* the reads end now: not when it was issued */
  }
}

/* in: n/2 accumulators, then 4 registers of A if it lies there; out: n/2. */
void simt_wgmma(uint32_t kind, uint32_t n, uint32_t flags, const uint32_t *in, uint64_t a, uint64_t b,
                uint32_t accumulate, uint32_t *out, uint32_t site) {
  fiber *f = M.current;
  warpgroup *g = group_of(f, "wgmma.mma_async", site);
  if (!f->wgmma_fence) fail(E_ASYNC, "wgmma.mma_async without a wgmma.fence since the last wait");
  uint64_t shape = (uint64_t)kind << 40 ^ (uint64_t)n << 32 ^ (uint64_t)flags << 48 ^ (a * 31 + b * 7 + accumulate);
  if (g->arrived && (g->site != site || g->shape != shape))
    fail(E_DIVERGENCE, "wgmma: threads of a warpgroup come with different operands or from different places");
  g->site = site, g->shape = shape;
  g->operand[f->id % THREADS] = (operand){in, out};
  if (++g->arrived < THREADS) {
    suspend(WAIT_WARP, "wgmma.mma_async", g, site);
    return;
  }
  g->arrived = 0;
  uint32_t id = g->issued++;
  product **slot = &g->ring[id % RING], *p = *slot;
  if (!p) p = *slot = malloc(sizeof *p);
  else if (id >= RING && !p->done) fail(E_INVALID, "more than %d wgmma in flight", RING);
  p->id = id, p->done = p->confirmed = 0, p->n = n, p->kind = kind, p->flags = flags, p->accumulate = accumulate,
  p->site = site;
  p->group = f->wgmma_groups, p->a = a, p->b = b, p->leader = M.fiber + f->id / THREADS * THREADS + THREADS - 1;
  for (int t = 0; t < THREADS; t++) {
    const operand *o = &g->operand[t];
    memcpy(p->d[t], o->in, 2 * n), memcpy(p->registers[t], o->in + n / 2, flags & A_IN_REGISTERS ? 16 : 0);
    for (uint32_t r = 0; r < n / 2; r++) o->out[r] = TAG | (id & 0x3fff) << 7 | r;
  }
  operands(p, READER);
  wake(WAIT_WARP, g);
}

void simt_wgmma_fence(void) { M.current->wgmma_fence = 1; }
void simt_wgmma_commit(void) { M.current->wgmma_groups++; }

/* The wait, and the accumulators as they are after it. */
void simt_wgmma_wait(uint32_t pending, uint32_t count, const uint32_t *in, uint32_t *out, uint32_t site) {
  fiber *f = M.current;
  warpgroup *g = group_of(f, "wgmma.wait_group", site);
  complete(f, g, pending);
  for (uint32_t i = 0; i < count; i++) out[i] = resolved(g, in[i]);
  f->wgmma_fence = 0;
}

void simt_wgmma_wait_group(uint64_t pending, uint32_t site) { simt_wgmma_wait(pending, 0, NULL, NULL, site); }

void wgmma_exit(fiber *f) {
  if (!f->wgmma_groups && !f->wgmma_fence) return;
  warpgroup *g = GROUP[f->id / THREADS];
  for (uint32_t i = 0; g && i < g->issued && i < RING; i++)
    if (!g->ring[i]->done) {
      M.report.site = g->ring[i]->site;
      fail(E_ASYNC, "the thread exits while a wgmma is in flight");
    }
}

void wgmma_reset(void) {
  for (int i = 0; i < MAX_THREADS / THREADS; i++)
    if (GROUP[i]) GROUP[i]->issued = GROUP[i]->arrived = 0;
}
