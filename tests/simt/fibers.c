/* Fibers and their scheduler: a launch runs its clusters one after another, each thread until it must wait. */
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
static int LIVE, FAILED, LANDING;
static jmp_buf LANDED;

/* ---- the stack switch: the six registers that a callee must keep, and the stack pointer ------------------ */
void simt_switch(void **from, void *to);
__asm__(".text\n.globl simt_switch\n.hidden simt_switch\n.type simt_switch,@function\nsimt_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");

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

/* ---- threads ---------------------------------------------------------------------------------------------- */
enum {
  TID = 0,
  NTID = 3,
  CTAID = 6,
  NCTAID = 9,
  CLUSTER_ID = 12,
  CLUSTER_COUNT = 15,
  IN_CLUSTER = 18,
  CLUSTER_DIM = 21,
  REST = 24
};

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
  async_exit(f), wgmma_exit(f);
  f->state = DONE, LIVE--;
  warp_lane_exits(f);
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
  f->state = READY, f->clock = 1, f->fenced = 0, f->fence_fresh = 0,
  f->wgmma_fence = f->published = f->saw_atomic = f->polls = 0, f->waits_for = NULL, f->in_cluster_barrier = 0;
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
  return a->state == b->state && a->rank == b->rank &&
         (a->state == DONE || (a->site == b->site && a->waits_in == b->waits_in));
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
      if (f->state == WAIT_WARP && g->arrived >> f->lane & 1)
        p += sprintf(p, ", lanes %08x of %08x arrived", g->arrived, g->mask);
  }
  r->kind = E_DEADLOCK, r->thread = -1;
  for (int i = 0; i + 1 < M.threads; i++)
    for (int a = i; a < i + 2; a++) /* a lane waits for its warp, and its neighbour is elsewhere */
      if ((M.fiber[a].state == WAIT_WARP || M.fiber[a].state == WAIT_BARRIER) &&
          M.fiber[i].warp == M.fiber[i + 1].warp && !same_wait(&M.fiber[i], &M.fiber[i + 1]))
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

static void run_cluster(void) {
  static int order[MAX_THREADS];
  memset(M.warp, 0, sizeof M.warp);
  M.async_clock = 0, LIVE = M.threads, FAILED = 0;
  sync_reset(), async_reset(), wgmma_reset();
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
  while (land()) {
  }
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
    uint32_t c[3] = {order[i] % clusters[0], order[i] / clusters[0] % clusters[1],
                     order[i] / clusters[0] / clusters[1]};
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
