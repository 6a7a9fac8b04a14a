/* Asynchronous copies (cp.async, bulk copies, TMA) and mbarriers.

   A copy takes effect as late as the program allows: cp.async at the wait that covers it, a bulk copy when every fiber
   waits (or, for stores, at their wait).  Until then its target is poisoned and marked, its source protected. */
#include "simt.h"
#include <stdlib.h>
#include <string.h>

/* ---- cp.async ---------------------------------------------------------------------------------------------------- */
void simt_copy(uint32_t bytes, char *target, const char *source, uint32_t copied, uint32_t site) {
  fiber *f = M.current;
  M.report.site = site;
  if (((uintptr_t)target | (uintptr_t)source) & (bytes - 1))
    fail(E_MISALIGNED, "cp.async of %u bytes: an address is not a multiple", bytes);
  if (copied > bytes) fail(E_INVALID, "cp.async of %u bytes: %u to copy", bytes, copied);
  if (copied) access_memory(f, (char *)source, copied, 1, READ, site);
  shared_expect(f, target, bytes, "cp.async to an address outside of shared memory", site);
  copies *q = &f->copies;
  if (q->items == q->capacity) q->item = realloc(q->item, sizeof(copy) * (q->capacity = q->capacity * 2 + 64));
  q->item[q->items++] = (copy){target, source, bytes, copied, site};
}

void simt_copy_commit(uint32_t site) {
  copies *q = &M.current->copies;
  M.report.site = site;
  if (q->groups == 64) fail(E_INVALID, "more than 64 groups of cp.async in flight");
  q->ends[q->groups++] = q->items;
}

void simt_copy_wait(uint32_t pending) {
  fiber *f = M.current;
  copies *q = &f->copies;
  int done = q->groups - (int)pending;
  if (done <= 0) return;
  int end = q->ends[done - 1];
  for (copy *c = q->item; c < q->item + end; c++)
    shared_land(c->target, c->source, c->copied, c->bytes, f->id, f->clock, c->site);
  memmove(q->item, q->item + end, (q->items - end) * sizeof(copy)), q->items -= end;
  for (int i = done; i < q->groups; i++) q->ends[i - done] = q->ends[i] - end;
  q->groups -= done;
}

void simt_copy_wait_all(uint32_t site) {
  simt_copy_commit(site);
  simt_copy_wait(0);
}

/* ---- mbarriers: kept aside; the 8 bytes in shared memory only mark the place ----------------------------------------
 */
typedef struct {
  uint64_t *at;
  int64_t bytes;
  uint32_t expected, pending, phase;
  clocks *sum, *merged, *done;
} mbarrier;

enum { MBARRIERS = 512 };
static mbarrier MB[MBARRIERS];
static int N_MB;

static mbarrier *mbarrier_at(uint64_t *p, const char *what, uint32_t site) {
  M.report.site = site;
  for (int i = 0; i < N_MB; i++)
    if (MB[i].at == p) return &MB[i];
  fail(E_INVALID, "%s: no mbarrier was initialised here", what);
}

/* Using an mbarrier reads what its initialisation wrote. */
static mbarrier *mbarrier_used(uint64_t *p, const char *what, uint32_t site) {
  mbarrier *m = mbarrier_at(p, what, site);
  if (!M.check) return m;
  shared_flag((char *)p, 8, WRITTEN, MBARRIER);
  access_memory(M.current, (char *)p, 8, 8, ATOMIC_READ, site);
  shared_flag((char *)p, 8, MBARRIER, 0);
  return m;
}

void simt_mbarrier_init(uint64_t *p, uint32_t count, uint32_t site) {
  fiber *f = M.current;
  M.report.site = site;
  if (!count || count >> 20) fail(E_INVALID, "mbarrier.init for %u arrivals", count);
  for (int i = 0; i < N_MB; i++)
    if (MB[i].at == p) fail(E_INVALID, "mbarrier.init of an mbarrier that exists already");
  if (N_MB == MBARRIERS) fail(E_INVALID, "more than %d mbarriers", MBARRIERS);
  access_memory(f, (char *)p, 8, 8, WRITE, site);
  shared_flag((char *)p, 8, WRITTEN | MBARRIER, 0);
  MB[N_MB++] = (mbarrier){p, 0, count, count, 0, NULL, NULL, NULL};
}

static void mbarrier_free(mbarrier *m) { clocks_drop(m->sum), clocks_drop(m->merged), clocks_drop(m->done); }

void simt_mbarrier_invalidate(uint64_t *p, uint32_t site) {
  mbarrier *m = mbarrier_used(p, "mbarrier.inval", site);
  shared_flag((char *)p, 8, 0, MBARRIER | WRITTEN);
  mbarrier_free(m);
  *m = MB[--N_MB];
}

static void mbarrier_check(mbarrier *m) {
  if (m->pending || m->bytes) return;
  m->phase++, m->pending = m->expected;
  clocks_drop(m->done), m->done = m->sum, m->sum = NULL;
  clocks_drop(m->merged), m->merged = NULL;
  wake(WAIT_MBARRIER, m->at), wake(WAIT_POLL, NULL);
}

static uint64_t mbarrier_arrive(mbarrier *m, uint32_t count) {
  uint32_t phase = m->phase;
  if (m->pending < count) fail(E_INVALID, "mbarrier: %u arrivals where only %u are missing", count, m->pending);
  release_into(&m->sum, &m->merged, M.current);
  m->pending -= count;
  mbarrier_check(m);
  return phase;
}

uint64_t simt_mbarrier_arrive(uint64_t *p, uint32_t count, uint32_t site) {
  return mbarrier_arrive(mbarrier_used(p, "mbarrier.arrive", site), count);
}

uint64_t simt_mbarrier_drop(uint64_t *p, uint32_t count, uint32_t site) {
  mbarrier *m = mbarrier_used(p, "mbarrier.arrive.drop", site);
  m->expected -= count;
  return mbarrier_arrive(m, count);
}

void simt_mbarrier_expect(uint64_t *p, uint32_t bytes, uint32_t site) {
  mbarrier_used(p, "mbarrier.expect_tx", site)->bytes += bytes;
}

uint64_t simt_mbarrier_arrive_expect(uint64_t *p, uint32_t bytes, uint32_t site) {
  mbarrier *m = mbarrier_used(p, "mbarrier.arrive.expect_tx", site);
  m->bytes += bytes;
  return mbarrier_arrive(m, 1);
}

/* mode: 1 the state is a parity (else what arrive gave) | 2 may suspend */
uint32_t simt_mbarrier_wait(uint32_t mode, uint64_t *p, uint64_t state, uint32_t site) {
  mbarrier *m = mbarrier_used(p, "mbarrier.wait", site);
  for (int tried = 0;; tried++) {
    if (mode & 1 ? (m->phase ^ state) & 1 : m->phase != (uint32_t)state) break;
    if (tried && !(mode & 2)) return 0;
    suspend(mode & 2 ? WAIT_MBARRIER : WAIT_POLL, mode & 2 ? "mbarrier.try_wait" : "mbarrier.test_wait", p, site);
    m = mbarrier_at(p, "mbarrier.wait", site);
  }
  acquire(M.current, m->done);
  return 1;
}

/* ---- copies that land when every fiber waits
 * --------------------------------------------------------------------------- */
typedef struct {
  uint32_t rank, element, swizzle, magic;
  char *base;
  int64_t dim[5], stride[4]; /* of dimension 1 ..; in bytes */
  uint16_t box[5], tf32;
} tensor_map; /* the emulator's own contents of the 128 bytes */

typedef struct {
  enum { LOAD, BULK_LOAD, COPIES, STORE, BULK_STORE } what;
  fiber *by;
  char *shared, *global;
  uint64_t *mbarrier;
  const tensor_map *map;
  int32_t at[5], group;
  uint32_t bytes, site;
  copies copies;
} transfer;

static transfer *PENDING;
static int N_PENDING, CAPACITY;

static transfer *pend(transfer t) {
  if (N_PENDING == CAPACITY) PENDING = realloc(PENDING, sizeof(transfer) * (CAPACITY = CAPACITY * 2 + 64));
  PENDING[N_PENDING] = t;
  return &PENDING[N_PENDING++];
}

uint32_t swizzle(uint64_t address, uint32_t mode) { /* 0 none, 1: 32 bytes, 2: 64, 3: 128 */
  return mode ? (address >> 7 & ((1 << mode) - 1)) << 4 : 0;
}

static void complete(transfer *t, uint32_t bytes) {
  mbarrier *m = mbarrier_at(t->mbarrier, "an asynchronous copy completes", t->site);
  m->bytes -= bytes;
  if (!m->sum) m->sum = clocks_new(NULL);
  if (m->sum->v[ASYNC] < M.async_clock) m->sum->v[ASYNC] = M.async_clock;
  mbarrier_check(m);
}

static void round_tf32(char *p) { /* to nearest, halves to even; infinities and NaN as they are */
  uint32_t u;
  memcpy(&u, p, 4);
  if ((u & 0x7f800000) != 0x7f800000) u = (u + 0xfff + (u >> 13 & 1)) & 0xffffe000;
  memcpy(p, &u, 4);
}

/* Walk a box row by row (rows of dimension 0): in(side) elements from the array, the rest zeros. */
static void move_box(transfer *t) {
  const tensor_map *m = t->map;
  uint32_t row = m->box[0] * m->element;
  int64_t i[5] = {0};
  for (uint32_t offset = 0; offset < t->bytes; offset += row) {
    char *line = m->base;
    int inside = 1;
    for (uint32_t d = 1; d < m->rank; d++) {
      int64_t x = t->at[d] + i[d];
      inside &= x >= 0 && x < m->dim[d];
      line += x * m->stride[d - 1];
    }
    for (uint32_t piece = 0; piece < row; piece += 16) { /* a swizzle moves whole pieces of 16 bytes */
      uint64_t at = (uint64_t)t->shared + offset + piece;
      char *here = (char *)(at ^ swizzle(at, m->swizzle));
      uint32_t n = row - piece < 16 ? row - piece : 16, e = m->element;
      char buffer[16] = {0};
      int64_t x = t->at[0] + piece / e;
      for (uint32_t b = 0; b < n; b += e, x++)
        if (inside && x >= 0 && x < m->dim[0]) {
          if (t->what == LOAD) memcpy(buffer + b, line + x * e, e), m->tf32 ? round_tf32(buffer + b) : (void)0;
          else {
            if (M.check) access_memory(t->by, line + x * e, e, 1, WRITE, t->site);
            memcpy(line + x * e, here + b, e);
          }
        }
      if (t->what == LOAD) shared_land(here, buffer, n, n, ASYNC, M.async_clock, t->site);
    }
    for (uint32_t d = 1; d < m->rank && ++i[d] == m->box[d]; d++) i[d] = 0;
  }
}

static void land_transfer(int index) {
  transfer t = PENDING[index];
  memmove(&PENDING[index], &PENDING[index + 1], (--N_PENDING - index) * sizeof t);
  fiber *caller = M.current;
  M.current = t.by, M.async_clock++;
  switch (t.what) {
  case LOAD: move_box(&t), complete(&t, t.bytes); break;
  case BULK_LOAD:
    shared_land(t.shared, t.global, t.bytes, t.bytes, ASYNC, M.async_clock, t.site);
    complete(&t, t.bytes);
    break;
  case STORE: move_box(&t), shared_hold(t.by, t.shared, t.bytes, -READER, t.site), t.by->stores--; break;
  case BULK_STORE:
    if (M.check) access_memory(t.by, t.global, t.bytes, 16, WRITE, t.site);
    memcpy(t.global, t.shared, t.bytes);
    shared_hold(t.by, t.shared, t.bytes, -READER, t.site), t.by->stores--;
    break;
  case COPIES:
    for (copy *c = t.copies.item; c < t.copies.item + t.copies.items; c++)
      shared_land(c->target, c->source, c->copied, c->bytes, ASYNC, M.async_clock, c->site);
    free(t.copies.item);
    mbarrier *m = mbarrier_at(t.mbarrier, "cp.async.mbarrier.arrive", t.site);
    if (!m->sum) m->sum = clocks_new(NULL);
    m->sum->v[ASYNC] = M.async_clock, m->pending--;
    mbarrier_check(m);
  }
  M.current = caller;
}

int land_one(void) {
  if (!N_PENDING) return 0;
  land_transfer(M.order == 0 ? 0 : M.order == 1 ? N_PENDING - 1 : (int)(next_random() % N_PENDING));
  return 1;
}

void simt_copy_arrive(uint32_t increment, uint64_t *p,
                      uint32_t site) { /* arrives when this thread's cp.asyncs have landed */
  fiber *f = M.current;
  mbarrier *m = mbarrier_used(p, "cp.async.mbarrier.arrive", site);
  if (increment) m->pending++;
  pend((transfer){.what = COPIES, .by = f, .mbarrier = p, .site = site, .copies = f->copies});
  f->copies = (copies){0};
}

static uint32_t check_map(const tensor_map *m, uint32_t rank, const char *shared, uint32_t site) {
  M.report.site = site;
  if (m->magic != 0x50424d54) fail(E_INVALID, "TMA: this is not a tensor map of the emulator");
  if (m->rank != rank) fail(E_INVALID, "TMA of %u dimensions through a tensor map of %u", rank, m->rank);
  if ((uintptr_t)shared & 127) fail(E_MISALIGNED, "TMA: the address in shared memory is not a multiple of 128");
  uint32_t bytes = m->element;
  for (uint32_t d = 0; d < rank; d++) bytes *= m->box[d];
  return bytes;
}

void simt_tensor_load(uint32_t rank, char *shared, uint64_t *p, const tensor_map *m, const int32_t *at,
                      uint32_t multicast, uint32_t use, uint32_t site) {
  fiber *f = M.current;
  uint32_t bytes = check_map(m, rank, shared, site), own = region_of(shared) ? region_of(shared) - M.region : f->rank;
  uint32_t ranks = use ? multicast : 1u << own;
  if (ranks >> M.ranks) fail(E_INVALID, "TMA: multicast to blocks %x of a cluster of %d", ranks, M.ranks);
  for (int r = 0; r < M.ranks; r++)
    if (ranks >> r & 1) {
      int64_t shift = ((int64_t)r - own) * ARENA;
      transfer t = {.what = LOAD,
                    .by = f,
                    .shared = shared + shift,
                    .mbarrier = (uint64_t *)((char *)p + shift),
                    .map = m,
                    .bytes = bytes,
                    .site = site};
      mbarrier_used(t.mbarrier, "TMA", site);
      memcpy(t.at, at, 4 * rank);
      shared_expect(f, t.shared, bytes, "TMA to an address outside of shared memory", site);
      pend(t);
    }
}

void simt_tensor_store(uint32_t rank, char *shared, const tensor_map *m, const int32_t *at, uint32_t site) {
  fiber *f = M.current;
  transfer t = {.what = STORE,
                .by = f,
                .shared = shared,
                .map = m,
                .bytes = check_map(m, rank, shared, site),
                .site = site,
                .group = f->store_group};
  memcpy(t.at, at, 4 * rank);
  shared_hold(f, shared, t.bytes, READER, site);
  if (M.check) check_proxy(f, shared, t.bytes, site);
  f->stores++;
  pend(t);
}

void simt_bulk_load(char *shared, uint64_t *p, char *global, uint32_t bytes, uint32_t site) {
  M.report.site = site;
  if (((uintptr_t)shared | (uintptr_t)global | bytes) & 15)
    fail(E_MISALIGNED, "cp.async.bulk: addresses and size must be multiples of 16");
  mbarrier_used(p, "cp.async.bulk", site);
  access_memory(M.current, global, bytes, 16, READ, site);
  shared_expect(M.current, shared, bytes, "cp.async.bulk to an address outside of shared memory", site);
  pend((transfer){.what = BULK_LOAD,
                  .by = M.current,
                  .shared = shared,
                  .global = global,
                  .mbarrier = p,
                  .bytes = bytes,
                  .site = site});
}

void simt_bulk_store(char *global, char *shared, uint32_t bytes, uint32_t site) {
  M.report.site = site;
  if (((uintptr_t)shared | (uintptr_t)global | bytes) & 15)
    fail(E_MISALIGNED, "cp.async.bulk: addresses and size must be multiples of 16");
  shared_hold(M.current, shared, bytes, READER, site);
  if (M.check) check_proxy(M.current, shared, bytes, site);
  M.current->stores++;
  pend((transfer){.what = BULK_STORE,
                  .by = M.current,
                  .shared = shared,
                  .global = global,
                  .bytes = bytes,
                  .site = site,
                  .group = M.current->store_group});
}

void simt_bulk_commit(void) { M.current->store_group++; }

void simt_bulk_wait(uint32_t pending) { /* this thread's own stores, the youngest `pending` groups excepted */
  fiber *f = M.current;
  for (int i = 0; i < N_PENDING;)
    if (PENDING[i].by == f && PENDING[i].what >= STORE && PENDING[i].group + (int)pending < f->store_group)
      land_transfer(i);
    else i++;
}

void async_exit(fiber *f) {
  if (f->copies.items) {
    M.report.site = f->copies.item[0].site;
    fail(E_ASYNC, "the thread exits without waiting for its cp.async");
  }
  if (f->stores) fail(E_ASYNC, "the thread exits without waiting for its asynchronous stores");
}

void async_reset(void) {
  for (int i = 0; i < N_MB; i++) mbarrier_free(&MB[i]);
  N_MB = N_PENDING = 0;
}

/* The same place in the shared memory of another block of the cluster. */
uint64_t simt_map_rank(char *p, uint32_t rank, uint32_t site) {
  M.report.site = site;
  if (rank >= (uint32_t)M.ranks) fail(E_INVALID, "mapa: block %u of a cluster of %d", rank, M.ranks);
  region *g = region_of(p);
  if (!g || !g->flags) fail(E_BOUNDS, "mapa of an address outside of shared memory");
  return (uint64_t)(M.region[rank].base + (p - g->base));
}
