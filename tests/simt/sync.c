/* How threads meet: operations of warps, barriers of blocks and clusters, and who has heard of whose writes.

   The last lane to arrive runs a warp operation for all lanes.  Order is kept as vector clocks: a barrier or mbarrier
   adds up what its arrivals know and hands the sum on. */
#include "simt.h"
#include <stdlib.h>
#include <string.h>

static clocks *FREE;

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
void rendezvous(const char *op, uint32_t qualifier, int aligned, uint32_t mask, void *args, warp_operation *operation,
                uint32_t site) {
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
    fail(E_DIVERGENCE, "%s (mask %08x) while lanes %08x of the warp wait in %s (mask %08x)%s", op, mask, g->arrived,
         g->op, g->mask, g->op == op && g->site != site ? " elsewhere in the program" : "");
  }
  g->arrived |= 1u << f->lane;
  if (g->arrived == (g->mask & w->live)) gathering_complete(w, g, operation);
  else suspend(WAIT_WARP, op, (void *)operation, site);
}

void warp_lane_exits(fiber *f) {
  warp *w = &M.warp[f->warp];
  w->live &= ~(1u << f->lane);
  for (int i = 0; i < w->gatherings; i++) { /* an operation waited for this lane, and need not any more */
    gathering *g = &w->gathering[i];
    if (g->arrived != (g->mask & w->live)) continue;
    gathering_complete(w, g, (warp_operation *)M.fiber[warp_base(w) + __builtin_ctz(g->arrived)].waits_for);
    i--;
  }
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

void simt_warp_sync(uint32_t mask, uint32_t site) {
  rendezvous("bar.warp.sync", 0, 0, mask, M.current, warp_sync, site);
}

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
  if (count % 32 || count > (uint32_t)M.per_block)
    fail(E_INVALID, "barrier %u for %u of %d threads", id, count, M.per_block);
  barrier *b = &M.barrier[f->rank][id];
  int needed = count ? (int)count : M.per_block, w = f->id % M.per_block / 32;
  if (b->arrived && b->needed != needed)
    fail(E_DIVERGENCE, "barrier %u for %d threads, while %d threads wait there for %d", id, needed, b->arrived,
         b->needed);
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
uint32_t simt_barrier_reduce(uint32_t op, uint32_t mode, uint32_t id, uint32_t count, uint32_t predicate,
                             uint32_t site) {
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

/* Forget everything between clusters. */
void sync_reset(void) {
  for (int r = 0; r < M.ranks; r++)
    for (int i = 0; i < 16; i++) {
      barrier *b = &M.barrier[r][i];
      clocks_drop(b->sum), clocks_drop(b->merged);
      memset(b, 0, sizeof *b);
    }
  clocks_drop(M.cluster_sum), clocks_drop(M.cluster_merged), clocks_drop(M.atomic_sum), clocks_drop(M.atomic_merged);
  M.cluster_sum = M.cluster_merged = M.atomic_sum = M.atomic_merged = NULL, M.cluster_arrived = 0;
}
