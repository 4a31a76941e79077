// SPDX-License-Identifier: MIT
/*
 * Races on shared memory. A library whose kernels were compiled for the thread
 * sanitizer (-fsanitize=thread) calls the functions below for each access; the
 * sanitizer itself is not linked. Two threads of a block may not touch the same
 * byte, one of them to write, without a barrier in between: __syncthreads(), or
 * __syncwarp() for lanes of one warp. As on a device, no other collective
 * orders memory. Atomics are in order with each other.
 *
 * What is known of each byte is when it was last written and read: the number
 * of barriers of the block so far (its epoch), and within a warp the clock of
 * the lane, which others learn of at a __syncwarp().
 */
#include <dlfcn.h>

#include "tests/emu/job.hpp"

namespace cuemu {

struct cell {
	uint64_t write_epoch, read_epoch;
	uint64_t pending;		/* the block that has a copy on its way */
	const void *write_pc, *read_pc, *other_pc;
	uint32_t write_clock, read_clock;
	uint32_t writer, reader;	/* threads of the block */
	uint32_t other;			/* a reader of another warp than the reader's */
	uint32_t read_warps;		/* which warps have read it in that epoch */
	uint32_t read_lanes;		/* lanes of the reader's warp that have */
	bool write_atomic, read_atomic;
};

struct race {
	uint64_t epoch;			/* never the same for two blocks */
	uint64_t block;			/* the first of the running block */
	struct cell *dyn, *tls;
	size_t tls_bytes;
	uint32_t clock[CUEMU_MAX_THREADS][32];	/* what a thread knows of its warp */
};

static const char WRITTEN[] = "written without a barrier in between";
static const char READ[] = "read without a barrier in between";

/* Set when a library is loaded that has such kernels. */
static bool watched;

void race_new(struct engine *eng)
{
	if (!watched)
		return;
	eng->race = reinterpret_cast<struct race *>(map(sizeof(struct race)));
	if (eng->race)
		eng->race->dyn = reinterpret_cast<struct cell *>(map(DYN_MAP *
								     sizeof(struct cell)));
}

void race_block(struct engine *eng)
{
	struct race *r = eng->race;

	if (!r)
		return;
	r->block = ++r->epoch;
	if (!r->tls && eng->tls_bytes) {
		r->tls = reinterpret_cast<struct cell *>(map(eng->tls_bytes *
							     sizeof(struct cell)));
		r->tls_bytes = r->tls ? eng->tls_bytes : 0;
	}
	memset(r->clock, 0, eng->threads * sizeof(r->clock[0]));
	for (uint32_t i = 0; i < eng->threads; i++)
		r->clock[i][i % 32] = 1;
}

void race_barrier(struct engine *eng)
{
	if (eng->race)
		eng->race->epoch++;
}

void race_warp(struct engine *eng, uint32_t warp, uint32_t group)
{
	uint32_t all[32] = {}, (*clock)[32];

	if (!eng->race)
		return;
	clock = &eng->race->clock[warp * 32];
	for (uint32_t i = 0; i < 32; i++)
		for (uint32_t j = 0; (group >> i & 1) && j < 32; j++)
			all[j] = max(all[j], clock[i][j]);
	for (uint32_t i = 0; i < 32; i++) {
		if (!(group >> i & 1))
			continue;
		memcpy(clock[i], all, sizeof(all));
		clock[i][i]++;
	}
}

static struct cell *cell_of(const struct engine *eng, const char *p, size_t size)
{
	if (p >= eng->dyn && p + size <= eng->dyn + eng->dyn_bytes)
		return eng->race->dyn + (p - eng->dyn);
	if (p >= eng->tls && p + size <= eng->tls + eng->race->tls_bytes)
		return eng->race->tls + (p - eng->tls);
	return nullptr;
}

/*
 * "file:line" of an address, by the tool that reads the debug information: of
 * the functions inlined there, the innermost that is not the emulation's.
 */
static void source_of(const void *pc, char *text, size_t size)
{
	char command[512], *end;
	FILE *pipe = nullptr;
	Dl_info info;

	snprintf(text, size, "%p", pc);
	if (!dladdr(pc, &info) || !info.dli_fname)
		return;
	snprintf(command, sizeof(command), "addr2line -s -i -e '%s' %#zx 2>/dev/null",
		 info.dli_fname, (size_t)(static_cast<const char *>(pc) - 1 -
					  static_cast<const char *>(info.dli_fbase)));
	pipe = popen(command, "re");
	if (pipe) {
		while (fgets(command, sizeof(command), pipe) && command[0] != '?') {
			end = strpbrk(command, " \n");
			if (end)
				*end = '\0';
			snprintf(text, size, "%.100s", command);
			if (!strstr(command, ".hpp:"))
				break;
		}
		pclose(pipe);
	}
}

/* @other says what of thread @thread is in the way, with its place. */
[[noreturn]] static void found(struct fiber *f, const char *p, const char *what, const void *pc,
			       const char *other, uint32_t thread, const void *other_pc)
{
	const struct engine *eng = f->eng;
	const struct fiber *o = fiber_at(eng, thread);
	bool dyn = p >= eng->dyn && p < eng->dyn + eng->dyn_bytes;
	char here[128], there[128];

	source_of(pc, here, sizeof(here));
	source_of(other_pc, there, sizeof(there));
	fault(nullptr, "race: %s at %s of byte %td of %s shared memory, %s by thread (%u,%u,%u) "
	      "at %s", what, here, dyn ? p - eng->dyn : p - eng->tls, dyn ? "dynamic" : "static",
	      other, o->tid.x, o->tid.y, o->tid.z, there);
}

/* Does thread @f know that thread @other came to @clock? */
static bool knows(const struct fiber *f, uint32_t other, uint32_t clock)
{
	return other == f->index ||
	       (other / 32 == f->warp && f->eng->race->clock[f->index][other % 32] >= clock);
}

static void check_write(struct fiber *f, const char *p, struct cell *c, bool atomic,
			const void *pc, const char *what)
{
	if (c->write_epoch == f->eng->race->epoch && !(atomic && c->write_atomic) &&
	    !knows(f, c->writer, c->write_clock))
		found(f, p, what, pc, WRITTEN, c->writer, c->write_pc);
}

static void check_reads(struct fiber *f, const char *p, struct cell *c, bool atomic,
			const void *pc)
{
	uint32_t lanes = c->read_lanes;

	if (c->read_epoch != f->eng->race->epoch || (atomic && c->read_atomic))
		return;
	if (c->reader / 32 != f->warp)
		found(f, p, "write", pc, READ, c->reader, c->read_pc);
	if (c->read_warps & ~(1u << f->warp))
		found(f, p, "write", pc, READ, c->other, c->other_pc);
	for (; lanes; lanes &= lanes - 1) {
		uint32_t o = f->warp * 32 + (uint32_t)__builtin_ctz(lanes);

		if (!knows(f, o, c->read_clock))
			found(f, p, "write", pc, READ, o, c->read_pc);
	}
}

static void note_read(struct fiber *f, struct cell *c, bool atomic, const void *pc)
{
	struct race *r = f->eng->race;

	if (c->read_epoch != r->epoch) {
		c->read_epoch = r->epoch;
		c->read_warps = c->read_lanes = 0;
		c->reader = f->index;
	}
	/* the lanes are known of one warp only: any reader of another is in the way */
	if (c->reader / 32 != f->warp) {
		c->read_lanes = 0;
		c->other = c->reader;
		c->other_pc = c->read_pc;
	}
	c->reader = f->index;
	c->read_warps |= 1u << f->warp;
	c->read_lanes |= 1u << f->lane;
	c->read_clock = r->clock[f->index][f->lane];
	c->read_atomic = atomic;
	c->read_pc = pc;
}

static void note_write(struct fiber *f, struct cell *c, bool atomic, const void *pc)
{
	struct race *r = f->eng->race;

	c->write_epoch = r->epoch;
	c->writer = f->index;
	c->write_clock = r->clock[f->index][f->lane];
	c->write_atomic = atomic;
	c->write_pc = pc;
	c->read_epoch = 0;
}

void race_access(struct fiber *f, const void *at, size_t size, bool write, bool atomic,
		 const void *pc)
{
	const char *p = static_cast<const char *>(at);
	struct cell *c;

	if (!f->eng->race)
		return;
	c = cell_of(f->eng, p, size);
	for (size_t i = 0; c && i < size; i++, c++) {
		if (c->pending == f->eng->race->block)
			found(f, p + i, write ? "write" : "read", pc,
			      "which cp.async has not brought yet, begun", c->writer, c->write_pc);
		check_write(f, p + i, c, atomic, pc, write ? "write" : "read");
		if (write) {
			check_reads(f, p + i, c, atomic, pc);
			note_write(f, c, atomic, pc);
		} else {
			note_read(f, c, atomic, pc);
		}
	}
}

void race_pending(struct fiber *f, const void *at, size_t size, bool pending)
{
	struct cell *c;

	if (!f->eng->race)
		return;
	c = cell_of(f->eng, static_cast<const char *>(at), size);
	for (size_t i = 0; c && i < size; i++)
		c[i].pending = pending ? f->eng->race->block : 0;
}

/* Called by a kernel, or by what runs when its library is loaded: not on a fiber. */
static void accessed(const void *at, size_t size, bool write, bool atomic, const void *pc)
{
	if (engine_of(reinterpret_cast<uintptr_t>(__builtin_frame_address(0))))
		race_access(self(), at, size, write, atomic, pc);
}

} /* namespace cuemu */

/* The sanitizer's interface, as far as compilers use it for kernels. */
#define PC __builtin_return_address(0)
#define HOOK extern "C" __attribute__((visibility("hidden"), used))

HOOK void __tsan_init(void) { cuemu::watched = true; }
HOOK void __tsan_func_entry(void *) {}
HOOK void __tsan_func_exit(void) {}
HOOK void __tsan_vptr_update(void **, void *) {}
HOOK void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

#define ACCESS(size) \
HOOK void __tsan_read##size(void *p) { cuemu::accessed(p, size, false, false, PC); } \
HOOK void __tsan_write##size(void *p) { cuemu::accessed(p, size, true, false, PC); } \
HOOK void __tsan_unaligned_read##size(void *p) { cuemu::accessed(p, size, false, false, PC); } \
HOOK void __tsan_unaligned_write##size(void *p) { cuemu::accessed(p, size, true, false, PC); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
HOOK void __tsan_read_range(void *p, size_t n) { cuemu::accessed(p, n, false, false, PC); }
HOOK void __tsan_write_range(void *p, size_t n) { cuemu::accessed(p, n, true, false, PC); }

HOOK void *__tsan_memcpy(void *to, const void *from, size_t n)
{
	cuemu::accessed(from, n, false, false, PC);
	cuemu::accessed(to, n, true, false, PC);
	return memcpy(to, from, n);
}
HOOK void *__tsan_memset(void *to, int c, size_t n)
{
	cuemu::accessed(to, n, true, false, PC);
	return memset(to, c, n);
}

#define ATOMIC(bits) \
HOOK uint##bits##_t __tsan_atomic##bits##_load(const uint##bits##_t *p, int) \
{ \
	cuemu::accessed(p, bits / 8, false, true, PC); \
	return __atomic_load_n(p, __ATOMIC_SEQ_CST); \
} \
HOOK void __tsan_atomic##bits##_store(uint##bits##_t *p, uint##bits##_t v, int) \
{ \
	cuemu::accessed(p, bits / 8, true, true, PC); \
	__atomic_store_n(p, v, __ATOMIC_SEQ_CST); \
} \
HOOK int __tsan_atomic##bits##_compare_exchange_strong(uint##bits##_t *p, uint##bits##_t *old, \
						       uint##bits##_t v, int, int) \
{ \
	cuemu::accessed(p, bits / 8, true, true, PC); \
	return __atomic_compare_exchange_n(p, old, v, false, __ATOMIC_SEQ_CST, \
					   __ATOMIC_SEQ_CST); \
}
ATOMIC(32)
ATOMIC(64)
