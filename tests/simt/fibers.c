/* Fibers, their scheduler, warp operations, barriers, and who has heard of whose writes.

   A fiber runs until it must wait; the last lane to arrive runs a warp operation for all lanes.  Ordering between
   threads is kept as vector clocks: a barrier or mbarrier adds up what its arrivals know and hands the sum on. */
#define _GNU_SOURCE
#include "simt.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

machine M;
static void (*ENTRY[MAX_RANKS])(void **);
static void **ARGUMENTS;
static clocks *FREE;
static int LIVE, FAILED, LANDING;
static jmp_buf LANDED;

/* ---- the stack switch: the six registers that a callee must keep, and the stack pointer ------------------ */
void simt_switch(void **from, void *to);
__asm__(".text\n.globl simt_switch\n.hidden simt_switch\n.type simt_switch,@function\nsimt_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");

enum { STACK = 256 << 10, GUARD = 4096 };

void fail(int kind, const char *format, ...) {
  report *r = &M.report;
  if (!r->kind) {
    va_list a;
    va_start(a, format);
    vsnprintf(r->text, sizeof r->text, format, a);
    va_end(a);
    r->kind = kind;
    if (M.current) {
      r->thread = M.current->id % M.per_block;
      memcpy(r->block, M.ctaid[M.current->rank], sizeof r->block);
    }
  }
  FAILED = 1;
  if (LANDING) longjmp(LANDED, 1); /* on the scheduler's own stack */
  void *never;
  simt_switch(&never, M.scheduler);
  abort();
}

static void run(fiber *f) {
  M.current = f;
  M.fuel = 1 << 30;
  simt_switch(&M.scheduler, f->sp);
  M.current = NULL;
}

void suspend(int state, const char *what, void *object, uint32_t site) {
  fiber *f = M.current;
  f->state = state, f->waits_in = what, f->waits_for = object, f->site = site;
  simt_switch(&f->sp, M.scheduler);
}

void wake(int state, void *object) {
  for (int i = 0; i < M.threads; i++)
    if (M.fiber[i].state == state && (!object || M.fiber[i].waits_for == object)) M.fiber[i].state = READY;
}

uint32_t next_random(void) {
  M.random ^= M.random << 13, M.random ^= M.random >> 17, M.random ^= M.random << 5;
  return M.random;
}

/* ---- vector clocks --------------------------------------------------------------------------------------- */
clocks *clocks_new(const clocks *from) {
  clocks *c = FREE;
  if (c) FREE = c->next;
  else c = malloc(sizeof *c);
  c->refs = 1;
  if (from) {
    memcpy(c->v, from->v, sizeof(uint32_t) * M.threads);
    c->v[ASYNC] = from->v[ASYNC];
  } else {
    memset(c->v, 0, sizeof(uint32_t) * M.threads);
    c->v[ASYNC] = 0;
  }
  return c;
}

clocks *clocks_share(clocks *c) {
  c->refs++;
  return c;
}

void clocks_drop(clocks *c) {
  if (c && --c->refs == 0) c->next = FREE, FREE = c;
}

static void merge(clocks *to, const clocks *from) {
  for (int i = 0; i < M.threads; i++) to->v[i] = to->v[i] > from->v[i] ? to->v[i] : from->v[i];
  if (from->v[ASYNC] > to->v[ASYNC]) to->v[ASYNC] = from->v[ASYNC];
}

/* Add what f knows and did to *sum.  `merged` remembers whose knowledge went in last: lanes mostly share it. */
void release_into(clocks **sum, clocks **merged, fiber *f) {
  if (!*sum) {
    *sum = clocks_new(f->know);
    clocks_drop(*merged), *merged = clocks_share(f->know);
  } else if (*merged != f->know) {
    merge(*sum, f->know);
    clocks_drop(*merged), *merged = clocks_share(f->know);
  }
  (*sum)->v[f->id] = f->clock;
  if (++f->clock >> 20) fail(E_INVALID, "more than a million synchronisations of one thread");
}

/* f learns c.  Threads that knew the same share what they know afterwards. */
void acquire(fiber *f, clocks *c) {
  static clocks *before, *with, *after; /* the last join, kept alive by its references */
  f->fence_fresh = 0;
  if (f->know == c || !c) return;
  if (before != f->know || with != c) {
    clocks *sum = clocks_new(f->know);
    merge(sum, c);
    clocks_drop(before), clocks_drop(with), clocks_drop(after);
    before = clocks_share(f->know), with = clocks_share(c), after = sum;
  }
  clocks_drop(f->know), f->know = clocks_share(after);
}

static void learn(fiber *f, clocks *c) { /* c already holds all that f knows */
  f->fence_fresh = 0;
  clocks_drop(f->know), f->know = clocks_share(c);
}

/* ---- warp operations ------------------------------------------------------------------------------------- */
static int warp_base(const warp *w) {
  int index = w - M.warp, per = (M.per_block + 31) / 32;
  return index / per * M.per_block + index % per * 32;
}

static void gathering_complete(warp *w, gathering *g, warp_operation *operation) {
  void *lanes[32];
  uint32_t mask = g->arrived;
  fiber *first = M.fiber + warp_base(w);
  *g = w->gathering[--w->gatherings];
  for (int i = 0; i < 32; i++) lanes[i] = mask >> i & 1 ? first[i].args : NULL;
  operation(lanes, mask);
  for (int i = 0; i < 32; i++)
    if (mask >> i & 1 && first[i].state == WAIT_WARP) first[i].state = READY;
}

/* The last lane of the mask to come runs the operation for all. */
void rendezvous(const char *op, uint32_t qualifier, int aligned, uint32_t mask, void *args, warp_operation *operation, uint32_t site) {
  fiber *f = M.current;
  warp *w = &M.warp[f->warp];
  f->args = args, f->site = site;
  M.report.site = site;
  if (aligned && w->live != ~0u)
    fail(E_DIVERGENCE, "%s needs all 32 lanes of the warp; lanes %08x have exited or do not exist", op, ~w->live);
  mask &= w->exists;
  if (!(mask >> f->lane & 1)) fail(E_DIVERGENCE, "%s: lane %d is not in its own mask %08x", op, f->lane, mask);
  gathering *g = w->gathering, *end = g + w->gatherings;
  while (g < end && !(g->mask & mask)) g++;
  if (g == end) *g = (gathering){0, mask, qualifier, site, op}, w->gatherings++;
  else if (g->op != op || g->qualifier != qualifier || g->mask != mask || (aligned && g->site != site)) {
    M.report.other_site = g->site;
    fail(E_DIVERGENCE, "%s (mask %08x) while lanes %08x of the warp wait in %s (mask %08x)%s", op, mask, g->arrived, g->op, g->mask,
         g->op == op && g->site != site ? " elsewhere in the program" : "");
  }
  g->arrived |= 1u << f->lane;
  if (g->arrived == (g->mask & w->live)) gathering_complete(w, g, operation);
  else suspend(WAIT_WARP, op, (void *)operation, site);
}

static void warp_sync(void **lanes, uint32_t mask) {
  (void)mask;
  clocks *sum = NULL, *merged = NULL;
  for (int i = 0; i < 32; i++)
    if (lanes[i]) release_into(&sum, &merged, lanes[i]);
  for (int i = 0; i < 32; i++)
    if (lanes[i]) learn(lanes[i], sum);
  clocks_drop(sum), clocks_drop(merged);
}

void simt_warp_sync(uint32_t mask, uint32_t site) { rendezvous("bar.warp.sync", 0, 0, mask, M.current, warp_sync, site); }

/* ---- barriers of a block ---------------------------------------------------------------------------------- */
static void barrier_complete(barrier *b, int rank) {
  uint32_t counted = b->predicates;
  for (int w = 0, warps = (M.per_block + 31) / 32; w < warps; w++) {
    uint32_t exists = M.warp[rank * warps + w].exists;
    if (b->lanes[w] && b->lanes[w] != exists)
      fail(E_DIVERGENCE, "a barrier completes with lanes %08x of warp %d only: it needs whole warps", b->lanes[w], w);
    b->lanes[w] = 0;
  }
  for (int i = rank * M.per_block; i < (rank + 1) * M.per_block; i++) {
    fiber *f = &M.fiber[i];
    if (f->state == WAIT_BARRIER && f->waits_for == b) f->state = READY, f->counted = counted, learn(f, b->sum);
  }
  if (M.current->waits_for == b) M.current->counted = counted, learn(M.current, b->sum); /* the last to arrive */
  clocks_drop(b->sum), b->sum = NULL, clocks_drop(b->merged), b->merged = NULL;
  b->arrived = b->predicates = 0;
}

/* mode: 1 arrive only | 2 whole warps.  Gives how many of the threads came with a true predicate. */
uint32_t simt_barrier(uint32_t id, uint32_t count, uint32_t mode, uint32_t predicate, uint32_t site) {
  fiber *f = M.current;
  M.report.site = site;
  if (id > 15) fail(E_INVALID, "barrier %u: there are 16", id);
  if (count % 32 || count > (uint32_t)M.per_block) fail(E_INVALID, "barrier %u for %u of %d threads", id, count, M.per_block);
  barrier *b = &M.barrier[f->rank][id];
  int needed = count ? (int)count : M.per_block, w = f->id % M.per_block / 32;
  if (b->arrived && b->needed != needed)
    fail(E_DIVERGENCE, "barrier %u for %d threads, while %d threads wait there for %d", id, needed, b->arrived, b->needed);
  if (b->lanes[w] >> f->lane & 1) fail(E_INVALID, "barrier %u: a second arrival in the same phase", id);
  if (b->lanes[w] && b->site[w] != site && mode & 2) {
    M.report.other_site = b->site[w];
    fail(E_DIVERGENCE, "barrier %u: lanes %08x of this warp wait at another place in the program", id, b->lanes[w]);
  }
  b->needed = needed, b->site[w] = site, b->lanes[w] |= 1u << f->lane, b->arrived++, b->predicates += predicate;
  release_into(&b->sum, &b->merged, f);
  f->waits_for = mode & 1 ? NULL : b, f->site = site;
  if (b->arrived == needed) barrier_complete(b, f->rank);
  else if (!(mode & 1)) suspend(WAIT_BARRIER, "bar.sync", b, site);
  f->waits_for = NULL;
  return f->counted;
}

/* op: 0 how many, 1 all, 2 any */
uint32_t simt_barrier_reduce(uint32_t op, uint32_t mode, uint32_t id, uint32_t count, uint32_t predicate, uint32_t site) {
  uint32_t n = simt_barrier(id, count, mode, predicate, site);
  return op == 0 ? n : op == 1 ? n == (count ? count : (uint32_t)M.per_block) : n != 0;
}

void simt_cluster_arrive(uint32_t relaxed, uint32_t site) {
  fiber *f = M.current;
  M.report.site = site;
  if (f->in_cluster_barrier) fail(E_INVALID, "barrier.cluster.arrive twice without a wait");
  f->in_cluster_barrier = 1;
  if (!relaxed) release_into(&M.cluster_sum, &M.cluster_merged, f);
  if (++M.cluster_arrived < M.threads) return;
  M.cluster_arrived = 0;
  clocks *sum = M.cluster_sum;
  M.cluster_sum = NULL, clocks_drop(M.cluster_merged), M.cluster_merged = NULL;
  for (int i = 0; i < M.threads; i++) { /* all have arrived; those that do not wait yet find the phase done */
    if (sum) acquire(&M.fiber[i], sum);
    M.fiber[i].in_cluster_barrier = 0;
    if (M.fiber[i].state == WAIT_CLUSTER) M.fiber[i].state = READY;
  }
  clocks_drop(sum);
}

void simt_cluster_wait(uint32_t site) {
  if (M.current->in_cluster_barrier) suspend(WAIT_CLUSTER, "barrier.cluster.wait", &M.cluster_arrived, site);
}

/* ---- threads ---------------------------------------------------------------------------------------------- */
enum { TID = 0, NTID = 3, CTAID = 6, NCTAID = 9, CLUSTER_ID = 12, CLUSTER_COUNT = 15, IN_CLUSTER = 18, CLUSTER_DIM = 21, REST = 24 };

uint32_t simt_register(uint32_t r) {
  fiber *f = M.current;
  uint32_t axis = r % 3, x = M.ctaid[f->rank][axis];
  switch (r - axis) {
  case TID: return f->tid[axis];
  case NTID: return M.block[axis];
  case CTAID: return x;
  case NCTAID: return M.grid[axis];
  case CLUSTER_ID: return x / M.cluster[axis];
  case CLUSTER_COUNT: return M.grid[axis] / M.cluster[axis];
  case IN_CLUSTER: return x % M.cluster[axis];
  case CLUSTER_DIM: return M.cluster[axis];
  }
  uint32_t warp = f->id % M.per_block / 32;
  uint32_t rest[] = {f->lane, warp, 32, f->rank, M.ranks, 1u << f->lane, (1u << f->lane) - 1, ~0u << f->lane};
  return rest[r - REST];
}

uint32_t simt_active_mask(void) { return M.warp[M.current->warp].live; }

void simt_exit(void) {
  fiber *f = M.current;
  warp *w = &M.warp[f->warp];
  async_exit(f), wgmma_exit(f);
  f->state = DONE, LIVE--;
  w->live &= ~(1u << f->lane);
  for (int i = 0; i < w->gatherings; i++) { /* an operation waited for this lane, and need not any more */
    gathering *g = &w->gathering[i];
    if (g->arrived == (g->mask & w->live)) gathering_complete(w, g, M.fiber[warp_base(w) + __builtin_ctz(g->arrived)].waits_for), i--;
  }
  simt_switch(&f->sp, M.scheduler);
  abort();
}

void simt_yield(uint32_t site) { suspend(WAIT_POLL, "nanosleep", NULL, site); }

static void fiber_main(void) {
  ENTRY[M.current->rank](ARGUMENTS);
  simt_exit();
}

static void fiber_start(int i) {
  fiber *f = &M.fiber[i];
  if (!f->stack) { /* a guard page below; the distance keeps the stacks out of each other's cache sets */
    f->stack = mmap(NULL, STACK + GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    mprotect(f->stack, GUARD, PROT_NONE);
  }
  int t = i % M.per_block, x = M.block[0], y = M.block[1];
  f->id = i, f->rank = i / M.per_block, f->lane = t & 31, f->warp = f->rank * ((M.per_block + 31) / 32) + t / 32;
  f->tid[0] = t % x, f->tid[1] = t / x % y, f->tid[2] = t / x / y;
  f->state = READY, f->clock = 1, f->fenced = 0, f->fence_fresh = 0, f->wgmma_fence = f->published = f->saw_atomic = f->polls = 0, f->waits_for = NULL, f->in_cluster_barrier = 0;
  f->stores = f->store_group = f->wgmma_groups = 0, f->copies.items = f->copies.groups = 0;
  clocks_drop(f->know), f->know = NULL;
  warp *w = &M.warp[f->warp];
  w->exists |= 1u << f->lane, w->live |= 1u << f->lane;
  void **sp = (void **)(f->stack + STACK + GUARD - 64 - (i * 192 & 4095)) - 1;
  *--sp = (void *)fiber_main;
  for (int k = 0; k < 6; k++) *--sp = NULL;
  f->sp = sp;
}

/* ---- who waits where --------------------------------------------------------------------------------------- */
static int same_wait(const fiber *a, const fiber *b) {
  return a->state == b->state && a->rank == b->rank && (a->state == DONE || (a->site == b->site && a->waits_in == b->waits_in));
}

static void deadlock(void) {
  static uint8_t told[MAX_THREADS];
  report *r = &M.report;
  char *p = r->text, *end = p + sizeof r->text - 300;
  memset(told, 0, sizeof told);
  for (int i = 0; i < M.threads && p < end; i++) {
    fiber *f = &M.fiber[i];
    if (told[i]) continue;
    p += sprintf(p, "\n  ");
    if (M.ranks > 1) p += sprintf(p, "block %d of the cluster, ", f->rank);
    p += sprintf(p, "threads");
    for (int j = i, k, ranges = 0; j < M.threads; j = k + 1) {
      for (k = j; k < M.threads && same_wait(f, &M.fiber[k]); k++) told[k] = 1;
      if (k == j) continue;
      if (++ranges == 5) p += sprintf(p, " ...");
      else if (ranges < 5) p += sprintf(p, k == j + 1 ? " %d" : " %d-%d", j % M.per_block, (k - 1) % M.per_block);
    }
    if (f->state == DONE) p += sprintf(p, ": exited");
    else p += sprintf(p, ": wait in %s {site %u}", f->waits_in, f->site);
    if (f->state == WAIT_BARRIER) {
      barrier *b = f->waits_for;
      p += sprintf(p, " for barrier %d, %d of %d arrived", (int)(b - M.barrier[f->rank]), b->arrived, b->needed);
    }
    const warp *w = &M.warp[f->warp];
    for (const gathering *g = w->gathering; g < w->gathering + w->gatherings; g++)
      if (f->state == WAIT_WARP && g->arrived >> f->lane & 1) p += sprintf(p, ", lanes %08x of %08x arrived", g->arrived, g->mask);
  }
  r->kind = E_DEADLOCK, r->thread = -1;
  for (int i = 0; i + 1 < M.threads; i++)
    for (int a = i; a < i + 2; a++) /* a lane waits for its warp, and its neighbour is elsewhere */
      if ((M.fiber[a].state == WAIT_WARP || M.fiber[a].state == WAIT_BARRIER) && M.fiber[i].warp == M.fiber[i + 1].warp &&
          !same_wait(&M.fiber[i], &M.fiber[i + 1]))
        r->kind = E_DIVERGENCE;
  memcpy(r->block, M.ctaid[0], sizeof r->block);
}

/* ---- blocks and launches ----------------------------------------------------------------------------------- */
static void permute(int *order, int n) {
  for (int i = 0; i < n; i++) order[i] = M.order == 1 ? n - 1 - i : i;
  if (M.order == 2)
    for (int i = n - 1; i > 0; i--) {
      int j = next_random() % (i + 1), t = order[i];
      order[i] = order[j], order[j] = t;
    }
}

static int land(void) {
  if (setjmp(LANDED)) return LANDING = 0;
  LANDING = 1;
  int landed = land_one();
  LANDING = 0, M.current = NULL;
  return landed;
}

static void reset_sums(void) {
  for (int r = 0; r < M.ranks; r++)
    for (int i = 0; i < 16; i++) {
      barrier *b = &M.barrier[r][i];
      clocks_drop(b->sum), clocks_drop(b->merged);
      memset(b, 0, sizeof *b);
    }
  clocks_drop(M.cluster_sum), clocks_drop(M.cluster_merged), clocks_drop(M.atomic_sum), clocks_drop(M.atomic_merged);
  M.cluster_sum = M.cluster_merged = M.atomic_sum = M.atomic_merged = NULL, M.cluster_arrived = 0;
}

static void run_cluster(void) {
  static int order[MAX_THREADS];
  memset(M.warp, 0, sizeof M.warp);
  M.async_clock = 0, LIVE = M.threads, FAILED = 0;
  reset_sums(), async_reset(), wgmma_reset();
  for (int i = 0; i < M.threads; i++) fiber_start(i);
  clocks *nothing = clocks_new(NULL);
  for (int i = 0; i < M.threads; i++) M.fiber[i].know = clocks_share(nothing);
  clocks_drop(nothing);
  permute(order, M.threads);
  for (M.idle = 0; LIVE;) {
    int progress = 0, polls = 0;
    if (M.order == 2) permute(order, M.threads);
    for (int k = 0; k < M.threads; k++) {
      fiber *f = &M.fiber[order[k]];
      if (f->state == READY) {
        progress = 1, run(f);
        if (FAILED) return;
      } else polls += f->state == WAIT_POLL;
    }
    if (progress || !LIVE) continue;
    progress = land(); /* as late as can be: every fiber waits */
    if (FAILED) return;
    if (polls && (progress || M.idle++ < 4096)) wake(WAIT_POLL, NULL);
    else if (!progress) {
      deadlock();
      return;
    }
  }
  while (land()) {}
}

typedef struct {
  void (**entries)(void **);
  void **arguments;
  uint32_t grid[3], block[3], cluster[3];
  int32_t order;
  uint32_t seed;
  region *regions; /* the first are the shared memories, one per block of a cluster */
  int32_t n_regions, check;
  uint8_t *initial_flags; /* of shared memory at the start of a block */
  uint64_t shared_used, first;
  report *report;
} launch;

int simt_launch(const launch *l) {
  memcpy(M.grid, l->grid, 12), memcpy(M.block, l->block, 12), memcpy(M.cluster, l->cluster, 12);
  M.ranks = l->cluster[0] * l->cluster[1] * l->cluster[2];
  M.per_block = l->block[0] * l->block[1] * l->block[2];
  M.threads = M.ranks * M.per_block;
  M.order = l->order, M.random = l->seed * 2654435761u | 1, M.check = l->check, M.first = l->first;
  M.regions = l->n_regions;
  memcpy(M.region, l->regions, sizeof(region) * l->n_regions);
  ARGUMENTS = l->arguments;
  memcpy(ENTRY, l->entries, sizeof *ENTRY * M.ranks);
  if (!M.fiber) M.fiber = calloc(MAX_THREADS, sizeof(fiber));
  uint32_t clusters[3], n = 1;
  for (int a = 0; a < 3; a++) n *= clusters[a] = l->grid[a] / l->cluster[a];
  int *order = malloc(sizeof(int) * n);
  M.released = calloc(n + 1, 1);
  permute(order, n);
  memset(&M.report, 0, sizeof M.report);
  for (uint32_t i = 0; i < n && !M.report.kind; i++) {
    M.number = M.first + order[i], M.acquired = 0;
    uint32_t c[3] = {order[i] % clusters[0], order[i] / clusters[0] % clusters[1], order[i] / clusters[0] / clusters[1]};
    for (int r = 0; r < M.ranks; r++) {
      uint32_t in[3] = {r % M.cluster[0], r / M.cluster[0] % M.cluster[1], r / M.cluster[0] / M.cluster[1]};
      for (int a = 0; a < 3; a++) M.ctaid[r][a] = c[a] * M.cluster[a] + in[a];
      memset(M.region[r].base, 0xff, l->shared_used);
      memcpy(M.region[r].flags, l->initial_flags, l->shared_used);
    }
    M.report.region = M.report.other = M.report.thread = -1;
    run_cluster();
  }
  *l->report = M.report;
  free(order), free(M.released);
  return M.report.kind;
}
