/* The emulator of a GPU: what its parts share.  One fiber per GPU thread; one cluster of thread blocks at a time. */
#ifndef PULLBACK_SIMT_H
#define PULLBACK_SIMT_H
#include <stddef.h>
#include <stdint.h>

enum {
  MAX_THREADS = 2048,
  MAX_RANKS = 8,
  MAX_REGIONS = 256,
  ARENA = 1 << 18,
  ASYNC = MAX_THREADS,
  STACK = 1 << 20,
  GUARD = 4096
};

/* ---- errors: `kind` indexes KINDS of emulator.py --------------------------------------------------------- */
enum { E_RACE = 1, E_BOUNDS, E_UNINITIALISED, E_ASYNC, E_MISALIGNED, E_DIVERGENCE, E_DEADLOCK, E_SPIN, E_INVALID };

typedef struct {
  int32_t kind, region, other, thread; /* region: -1 none; other: the other thread of a race, or -1 */
  uint32_t block[3], site, other_site, size;
  int64_t offset;
  char text[6000];
} report;

/* ---- vector clocks: what a thread knows of the others; shared and never changed once handed out --------- */
typedef struct clocks {
  int refs;
  struct clocks *next;
  uint32_t v[MAX_THREADS + 1];
} clocks;

/* ---- a record of one access: block:27 | clock:20 | thread:12 | atomic:1 | mask:4 ------------------------- */
typedef uint64_t record;
typedef struct {
  record write, read[3]; /* the last reader; another lane of its warp; another warp */
  uint32_t write_site, read_site;
} cell;

/* Memory that a kernel may touch.  Shared memory has flags for each byte, global memory has none. */
typedef struct {
  char *base;
  uint64_t size;
  cell *cells;
  uint8_t *flags;
  uint32_t granule; /* log2 of the bytes of a cell */
  int32_t writable;
} region;

enum {
  ALLOCATED = 1,
  WRITTEN = 2,
  IN_FLIGHT = 4,
  MBARRIER = 8,
  READER = 16
}; /* flags; READER counts in the high half */

/* ---- fibers ---------------------------------------------------------------------------------------------- */
enum { READY, WAIT_WARP, WAIT_BARRIER, WAIT_MBARRIER, WAIT_POLL, WAIT_CLUSTER, DONE };

typedef struct {
  char *target;
  const char *source;
  uint32_t bytes, copied, site;
} copy;

typedef struct {
  copy *item;
  int items, capacity, ends[64], groups;
} copies;

typedef struct {
  void *sp;
  char *stack;
  int id, rank, warp, lane, state; /* warp: numbered through the cluster */
  uint32_t tid[3], clock, fenced;
  int fence_fresh, published, saw_atomic, polls, wgmma_fence, in_cluster_barrier, stores, store_group, wgmma_groups;
  clocks *know;
  void *args;
  const char *waits_in;
  void *waits_for;
  char *polled;
  uint32_t poll_site, counted;
  uint32_t site;
  copies copies;
} fiber;

/* Lanes that have come to an operation of these lanes; disjoint groups of a warp may be at different ones. */
typedef struct {
  uint32_t arrived, mask, qualifier, site;
  const char *op;
} gathering;

typedef struct {
  uint32_t exists, live;
  int gatherings;
  gathering gathering[32];
} warp;

typedef struct {
  int arrived, needed;
  clocks *sum, *merged;
  uint32_t predicates, lanes[32], site[32];
} barrier;

typedef struct {
  int threads, per_block, ranks, order;
  fiber *fiber;
  warp warp[MAX_THREADS / 32];
  barrier barrier[MAX_RANKS][16];
  int cluster_arrived;
  clocks *cluster_sum, *cluster_merged, *atomic_sum, *atomic_merged;
  fiber *current;
  void *scheduler;
  uint32_t grid[3], block[3], cluster[3], ctaid[MAX_RANKS][3];
  uint64_t number, first; /* of this cluster, and of the launch's first */
  uint32_t random, async_clock;
  int64_t fuel;
  int idle; /* rounds in which polling loops were all that ran */
  region region[MAX_REGIONS];
  int regions; /* the first `ranks` are the shared memories */
  uint8_t *released;
  int acquired;
  int check;
  report report;
} machine;

extern machine M;

/* fibers.c */
_Noreturn void fail(int kind, const char *format, ...) __attribute__((format(printf, 2, 3)));
void suspend(int state, const char *what, void *object, uint32_t site);
void wake(int state, void *object);
uint32_t next_random(void);
/* sync.c */
clocks *clocks_new(const clocks *from);
clocks *clocks_share(clocks *c);
void clocks_drop(clocks *c);
void release_into(clocks **sum, clocks **merged, fiber *f);
void acquire(fiber *f, clocks *c);
typedef void warp_operation(void **lanes, uint32_t mask);
void warp_lane_exits(fiber *f);
void sync_reset(void);
void rendezvous(const char *op, uint32_t qualifier, int aligned, uint32_t mask, void *args, warp_operation *run,
                uint32_t site);

/* memory.c */
enum { READ, WRITE, ATOMIC, ATOMIC_READ };
void access_memory(fiber *f, char *p, uint32_t size, uint32_t align, int kind, uint32_t site);
region *region_of(const char *p);
void shared_land(char *p, const char *source, uint32_t copied, uint32_t bytes, int thread, uint32_t clock,
                 uint32_t site);
void shared_expect(fiber *f, char *p, uint32_t bytes, const char *what, uint32_t site);
void shared_hold(fiber *f, char *p, uint32_t bytes, int step, uint32_t site);
void shared_flag(char *p, uint32_t bytes, uint8_t set, uint8_t clear);
void check_proxy(fiber *f, const char *p, uint32_t bytes, uint32_t site);

/* warp.c */
float from_bf16(uint16_t v);
float from_f16(uint16_t h);
/* async.c */
uint32_t swizzle(uint64_t address, uint32_t mode);
int land_one(void);
void async_reset(void);
void async_exit(fiber *f);
/* wgmma.c */
void wgmma_reset(void);
void wgmma_exit(fiber *f);
#endif
