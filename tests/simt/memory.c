/* Every load, store and atomic of a kernel comes here first: is it inside of an array, aligned, written before,
   and ordered with what other threads did to the same bytes (as vector clocks know it)?

   A cell remembers of 4 bytes (fewer where elements are smaller) the last write and up to three readers.  So a race
   is reported in every order of the threads, whether or not it changed a result; none is reported falsely. */
#include "simt.h"
#include <string.h>

static record record_of(const fiber *f, uint32_t mask, int atomic) {
  return (record)M.number << 37 | (record)f->clock << 17 | (record)f->id << 5 | (record)atomic << 4 | mask;
}
static uint32_t thread_of(record r) { return r >> 5 & 4095; }
static uint32_t clock_of(record r) { return r >> 17 & 0xfffff; }
static int atomic(record r) { return r >> 4 & 1; }
static int same_thread(record a, record b) { return !((a ^ b) >> 37) && !(((a ^ b) >> 5) & 4095); }

/* Has what r records happened before what f does now? */
static int before(const fiber *f, record r, int shared) {
  if (r >> 37 != M.number) return shared || !r || (M.acquired && M.released[(r >> 37) - M.first]);
  uint32_t t = thread_of(r);
  return t == (uint32_t)f->id || clock_of(r) <= f->know->v[t];
}

static _Noreturn void race(const fiber *f, const region *g, const char *p, uint32_t size, record r, uint32_t site,
                           uint32_t other_site, const char *what, const char *earlier) {
  M.report.region = g - M.region, M.report.offset = p - g->base, M.report.size = size, M.report.site = site,
  M.report.other_site = other_site;
  if (r >> 37 != M.number) fail(E_RACE, "%s what another block %s", what, earlier);
  uint32_t t = thread_of(r);
  if (t == ASYNC) fail(E_RACE, "%s what an asynchronous copy %s: it did not wait on the mbarrier", what, earlier);
  M.report.other = t % M.per_block;
  const char *where = (int)t / M.per_block == f->rank ? "" : " (in another block of the cluster)";
  fail(E_RACE, "%s what thread %d%s %s: nothing orders the two", what, M.report.other, where, earlier);
}

static void check_cell(fiber *f, const region *g, cell *c, uint32_t mask, int kind, const char *p, uint32_t size,
                       uint32_t site) {
  int shared = g->flags != NULL, is_atomic = kind >= ATOMIC;
  record w = c->write;
  if (w & mask && !before(f, w, shared) && !(is_atomic && atomic(w)))
    race(f, g, p, size, w, site, c->write_site, kind == READ || kind == ATOMIC_READ ? "reads" : "overwrites", "wrote");
  record me = record_of(f, mask, is_atomic);
  if (kind == READ || kind == ATOMIC_READ) {
    record r = c->read[0];
    if (!((r ^ me) >> 5)) { /* the same thread at the same time */
      c->read[0] = r | (me & 15);
      return;
    }
    if (r && r >> 37 == M.number && !same_thread(r, me)) c->read[thread_of(r) / 32 == thread_of(me) / 32 ? 1 : 2] = r;
    else if (r && r >> 37 != M.number) c->read[2] = r;
    c->read[0] = me, c->read_site = site;
    return;
  }
  for (int i = 0; i < 3; i++) {
    record r = c->read[i];
    if (r & mask && !before(f, r, shared) && !(is_atomic && atomic(r)))
      race(f, g, p, size, r, site, i ? 0 : c->read_site, "overwrites", "read");
  }
  if (mask == 15 || g->granule < 2) c->read[0] = c->read[1] = c->read[2] = 0;
  c->write = !((w ^ me) >> 5) ? w | mask : me;
  c->write_site = site;
}

static _Noreturn void bad(int kind, const region *g, const char *p, uint32_t size, uint32_t site, const char *text) {
  M.report.region = g ? g - M.region : -1, M.report.offset = g ? p - g->base : (int64_t)p, M.report.size = size,
  M.report.site = site;
  fail(kind, "%s", text);
}

region *region_of(const char *p) {
  static int last;
  uint64_t in = p - M.region[0].base;
  if (in < (uint64_t)M.ranks * ARENA) return &M.region[in / ARENA];
  if (last < M.regions && (uint64_t)(p - M.region[last].base) < M.region[last].size) return &M.region[last];
  for (int i = M.ranks; i < M.regions; i++)
    if ((uint64_t)(p - M.region[i].base) < M.region[i].size) return &M.region[last = i];
  return NULL;
}

/* The flags of shared memory, one byte each: allocated, written, in flight, an mbarrier, being read asynchronously. */
static void check_flags(const region *g, const char *p, uint32_t size, int writes, uint32_t site) {
  uint8_t *flag = g->flags + (p - g->base);
  for (uint32_t i = 0; i < size; i++) {
    uint8_t s = flag[i];
    if (s == (ALLOCATED | WRITTEN)) continue;
    if (!(s & ALLOCATED))
      bad(E_BOUNDS, g, p, size, site, writes ? "writes outside of shared arrays" : "reads outside of shared arrays");
    if (s & IN_FLIGHT)
      bad(E_ASYNC, g, p, size, site,
          writes ? "writes where an asynchronous copy has not been waited for"
                 : "reads what an asynchronous copy has not been waited for");
    if (s & MBARRIER) bad(E_INVALID, g, p, size, site, "touches an mbarrier as if it were data");
    if (writes && s >= READER) bad(E_ASYNC, g, p, size, site, "overwrites what an asynchronous operation still reads");
    if (!writes && !(s & WRITTEN)) bad(E_UNINITIALISED, g, p, size, site, "reads shared memory that was never written");
    if (writes) flag[i] = s | WRITTEN;
  }
}

void access_memory(fiber *f, char *p, uint32_t size, uint32_t align, int kind, uint32_t site) {
  if (--M.fuel < 0)
    bad(E_SPIN, NULL, p, size, site,
        "a billion accesses without a wait: does it wait for another block? (blocks run one after another)");
  if ((uint64_t)(p - f->stack) < STACK + GUARD) return; /* its own stack: local memory */
  f->polled = NULL, M.idle = 0;
  region *g = region_of(p);
  int writes = kind == WRITE || kind == ATOMIC;
  if (!g) bad(E_BOUNDS, NULL, p, size, site, writes ? "writes outside of every array" : "reads outside of every array");
  if ((uintptr_t)p & (align - 1))
    bad(E_MISALIGNED, g, p, size, site, "an address that is not aligned as the instruction says");
  uint64_t offset = p - g->base;
  if (offset + size > g->size) bad(E_BOUNDS, g, p, size, site, writes ? "writes past the end" : "reads past the end");
  if (g->flags) {
    uint8_t *flag = g->flags + offset;
    uint64_t two = 0x0303030303030303u, have;
    for (uint32_t i = 0; i < size; i += 8) {
      uint32_t n = size - i < 8 ? size - i : 8;
      have = two, memcpy(&have, flag + i, n);
      if (have != two) {
        check_flags(g, p, size, writes, site);
        break;
      }
    }
  } else if (writes && !g->writable) bad(E_BOUNDS, g, p, size, site, "writes to an array that is read-only");
  if (!g->cells) return;
  uint32_t s = g->granule, low = offset & ((1 << s) - 1);
  if (s == 2 && !low && !(size & 3)) {
    for (cell *c = g->cells + (offset >> 2), *end = c + (size >> 2); c < end; c++)
      check_cell(f, g, c, 15, kind, p, size, site);
    return;
  }
  for (uint64_t i = offset >> s, last = (offset + size - 1) >> s; i <= last; i++) {
    uint32_t mask = 0;
    for (uint32_t b = 0; b < 1u << s; b++) mask |= ((i << s) + b >= offset && (i << s) + b < offset + size) << b;
    check_cell(f, g, &g->cells[i], mask, kind, p, size, site);
  }
}

void simt_read(char *p, uint32_t size, uint32_t align, uint32_t site) {
  access_memory(M.current, p, size, align, READ, site);
}
void simt_write(char *p, uint32_t size, uint32_t align, uint32_t site) {
  access_memory(M.current, p, size, align, WRITE, site);
}

/* A thread that comes to the same atomic again and again without touching other memory polls: let the others run. */
static void atomic_access(char *p, uint32_t size, uint32_t align, int kind, uint32_t site) {
  fiber *f = M.current;
  if (f->polled != p || f->poll_site != site) f->polled = p, f->poll_site = site, f->polls = 0;
  else if (++f->polls % 8 == 0) suspend(WAIT_POLL, "a polling loop", p, site);
  f->saw_atomic = 1;
  access_memory(f, p, size, align, kind, site);
  f->polled = p;
}
void simt_atomic_read(char *p, uint32_t size, uint32_t align, uint32_t site) {
  atomic_access(p, size, align, ATOMIC_READ, site);
}

/* Atomics order nothing by themselves: a fence before one publishes what was done, a fence after one learns of it.
   (All atomics count as one place, so some races through them are missed, and none is invented.) */
void simt_atomic(char *p, uint32_t size, uint32_t align, uint32_t site) {
  fiber *f = M.current;
  atomic_access(p, size, align, ATOMIC, site);
  if (!f->published) return;
  release_into(&M.atomic_sum, &M.atomic_merged, f);
  if (f->published > 1) M.released[M.number - M.first] = 1;
}

void simt_fence(uint32_t device, uint32_t site) {
  fiber *f = M.current;
  M.report.site = site;
  if (f->saw_atomic) {
    acquire(f, M.atomic_sum);
    if (device) M.acquired = 1;
  }
  f->published = device ? 2 : f->published ? f->published : 1;
}

/* Lanes of a vector, those that are switched on. */
void simt_read_lanes(char *p, uint32_t size, uint64_t lanes, uint32_t align, uint32_t site) {
  for (; lanes; lanes &= lanes - 1)
    access_memory(M.current, p + __builtin_ctzll(lanes) * size, size, align < size ? align : size, READ, site);
}
void simt_write_lanes(char *p, uint32_t size, uint64_t lanes, uint32_t align, uint32_t site) {
  for (; lanes; lanes &= lanes - 1)
    access_memory(M.current, p + __builtin_ctzll(lanes) * size, size, align < size ? align : size, WRITE, site);
}

void simt_read_range(char *p, uint64_t size, uint32_t site) {
  for (uint64_t i = 0; i < size; i++) access_memory(M.current, p + i, 1, 1, READ, site);
}
void simt_write_range(char *p, uint64_t size, uint32_t site) {
  for (uint64_t i = 0; i < size; i++) access_memory(M.current, p + i, 1, 1, WRITE, site);
}

/* ---- asynchronous copies into shared memory, and asynchronous reads of it ----------------------------------- */
void shared_flag(char *p, uint32_t bytes, uint8_t set, uint8_t clear) {
  region *g = region_of(p);
  for (uint8_t *flag = g->flags + (p - g->base), *end = flag + bytes; flag < end; flag++)
    *flag = (*flag & ~clear) | set;
}

/* A copy into these bytes begins: whoever used them before must have been waited for; nobody may touch them now. */
void shared_expect(fiber *f, char *p, uint32_t bytes, const char *what, uint32_t site) {
  region *g = region_of(p);
  if (!g || !g->flags) bad(E_BOUNDS, g, p, bytes, site, what);
  access_memory(f, p, bytes, 1, WRITE, site);
  shared_flag(p, bytes, IN_FLIGHT, WRITTEN);
  memset(p, 0xff, bytes);
}

/* The copy arrives; from now on it counts as a write by `thread` (or by the engine of asynchronous copies). */
void shared_land(char *p, const char *source, uint32_t copied, uint32_t bytes, int thread, uint32_t clock,
                 uint32_t site) {
  region *g = region_of(p);
  memcpy(p, source, copied), memset(p + copied, 0, bytes - copied);
  for (uint8_t *flag = g->flags + (p - g->base), *end = flag + bytes; flag < end; flag++)
    *flag = (*flag & ~IN_FLIGHT) | WRITTEN;
  uint64_t first = (p - g->base) >> 2, last = (p - g->base + bytes - 1) >> 2;
  record r = (record)M.number << 37 | (record)clock << 17 | (record)thread << 5 | 15;
  for (uint64_t i = first; i <= last; i++) g->cells[i].write = r, g->cells[i].write_site = site;
}

/* An asynchronous read begins (step = READER) or ends (-READER): meanwhile nobody may write there. */
void shared_hold(fiber *f, char *p, uint32_t bytes, int step, uint32_t site) {
  region *g = region_of(p);
  if (!g || !g->flags) bad(E_BOUNDS, g, p, bytes, site, "an asynchronous read outside of shared memory");
  if (step > 0) access_memory(f, p, bytes, 1, READ, site);
  for (uint8_t *flag = g->flags + (p - g->base), *end = flag + bytes; flag < end; flag++) {
    if (step > 0 && *flag >= 0xf0) bad(E_INVALID, g, p, bytes, site, "more than 15 asynchronous reads at once");
    *flag += step;
  }
}

/* The asynchronous engine sees what ordinary stores wrote only past a fence.proxy.async: by the writer after its store,
   or by the thread that starts the operation, since it last learnt of others. */
void check_proxy(fiber *f, const char *p, uint32_t bytes, uint32_t site) {
  region *g = region_of(p);
  if (!g) return;
  for (uint64_t i = (p - g->base) >> 2, last = (p - g->base + bytes - 1) >> 2; i <= last; i++) {
    record w = g->cells[i].write;
    if (w >> 37 != M.number || thread_of(w) == ASYNC) continue;
    int own = thread_of(w) == (uint32_t)f->id;
    if (clock_of(w) > M.fiber[thread_of(w)].fenced && (own || !f->fence_fresh)) {
      M.report.other = thread_of(w) % M.per_block, M.report.other_site = g->cells[i].write_site;
      bad(E_ASYNC, g, p, bytes, site,
          "an asynchronous operation reads what an ordinary store wrote, without a fence.proxy.async in between");
    }
  }
}

void simt_fence_proxy(void) {
  fiber *f = M.current;
  f->fenced = f->clock, f->fence_fresh = 1;
  if (++f->clock >> 20) fail(E_INVALID, "more than a million synchronisations of one thread");
}
