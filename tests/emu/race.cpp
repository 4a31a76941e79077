// SPDX-License-Identifier: MIT
/*
 * Races on shared memory. A library whose kernels were compiled for the thread
 * sanitizer (-fsanitize=thread) calls the functions below for each access; the
 * sanitizer itself is not linked. Two threads of a block may not touch the same
 * byte, one of them to write, without a barrier in between: __syncthreads(),
 * __syncwarp() for lanes of one warp, a named barrier or an mbarrier for those that
 * come to it. As on a device, no other collective orders memory. Atomics are in
 * order with each other. A barrier of the cluster orders what was done before a thread
 * arrived with what is done after another has waited, in all blocks; what another block
 * writes is in order with nothing else.
 *
 * Time counts what threads let others know of. Of each byte is known when it was
 * last written, and read by each warp; of each thread, up to when it knows what the
 * others did: what was before the last __syncthreads() all know. Copies in bulk are
 * done by nobody of the block: each mbarrier that counts them stands for one more.
 *
 * Tensor cores that read shared memory themselves do not see what threads have
 * stored (proxies: PTX ISA, "Memory Consistency Model") before the thread that wrote
 * has called cq_fence_async(), and the reader knows of that.
 */
#include <dlfcn.h>

#include "tests/emu/job.hpp"

namespace cuemu {

static const uint32_t OTHERS = 64;			/* mbarriers */
static const uint32_t WHO = CUEMU_MAX_THREADS + OTHERS;	/* that write */
static const uint32_t MAX_WARPS = CUEMU_MAX_THREADS / 32;

struct cell {
	uint64_t block;			/* in which the rest was set */
	const void *write_pc;
	uint32_t write_time;
	uint32_t writer;
	uint32_t thread;		/* that wrote, or began the copy */
	uint32_t arrives;		/* barriers of the cluster it had begun by then */
	uint32_t rank;			/* its block in the cluster */
	uint32_t read_warps;		/* which warps have read it since */
	bool pending;			/* a copy to it is on its way */
	bool by_copy;			/* written by one in bulk: tensor cores see it */
	bool write_atomic, read_atomic;
};

/* What a warp has read of a byte. */
struct reading {
	const void *pc;
	uint32_t time;			/* the last */
	uint32_t lanes;
	uint32_t arrives;		/* barriers of the cluster its lanes had begun, the most */
};

struct race {
	uint64_t block;			/* that is running */
	uint32_t now;
	uint32_t all;			/* all know what was before */
	bool across;			/* threads know more of other warps than that */
	struct cell *dyn, *tls;
	struct reading *dyn_reads, *tls_reads;	/* [byte][warp] */
	size_t tls_bytes;
	uint32_t known[CUEMU_MAX_THREADS][WHO];
	std::vector<uint32_t> *fences;	/* of each thread, when */
};

static const char WRITTEN[] = "written without a barrier in between";
static const char READ[] = "read without a barrier in between";

/* Set when a library is loaded that has such kernels. */
static bool watched;

template <typename T>
static T *map_of(size_t n)
{
	return reinterpret_cast<T *>(map(n * sizeof(T)));
}

void race_new(struct engine *eng)
{
	if (!watched)
		return;
	eng->race = map_of<struct race>(1);
	if (!eng->race)
		return;
	eng->race->dyn = map_of<struct cell>(DYN_MAP);
	eng->race->dyn_reads = map_of<struct reading>(DYN_MAP * MAX_WARPS);
	eng->race->fences = new std::vector<uint32_t>[CUEMU_MAX_THREADS];
}

void race_block(struct engine *eng)
{
	struct race *r = eng->race;

	if (!r)
		return;
	r->block++;
	r->all = ++r->now;
	r->across = false;
	if (!r->tls && eng->tls_bytes) {
		r->tls = map_of<struct cell>(eng->tls_bytes);
		r->tls_reads = map_of<struct reading>(eng->tls_bytes * MAX_WARPS);
		r->tls_bytes = r->tls && r->tls_reads ? eng->tls_bytes : 0;
	}
	for (uint32_t i = 0; i < eng->threads; i++)
		r->fences[i].clear();
}

/* All know what threads did, and of copies what one has waited for. */
void race_barrier(struct engine *eng)
{
	struct race *r = eng->race;
	uint32_t most, who, i;

	if (!r)
		return;
	r->all = ++r->now;
	for (who = CUEMU_MAX_THREADS; r->across && who < WHO; who++) {
		for (most = i = 0; i < eng->threads; i++)
			most = max(most, r->known[i][who]);
		for (i = 0; i < eng->threads; i++)
			r->known[i][who] = most;
	}
}

/* What lanes of a warp know of each other, and of others if there is more to know. */
void race_warp(struct engine *eng, uint32_t warp, uint32_t group)
{
	struct race *r = eng->race;
	uint32_t first, n, all[WHO] = {};

	if (!r)
		return;
	first = r->across ? 0 : warp * 32;
	n = r->across ? WHO : 32;
	r->now++;
	for (uint32_t i = 0; i < 32; i++)
		for (uint32_t j = 0; (group >> i & 1) && j < n; j++)
			all[j] = max(all[j], r->known[warp * 32 + i][first + j]);
	for (uint32_t i = 0; i < 32; i++)
		if (group >> i & 1)
			all[warp * 32 + i - first] = r->now;
	for (uint32_t i = 0; i < 32; i++)
		if (group >> i & 1)
			memcpy(&r->known[warp * 32 + i][first], all, n * sizeof(all[0]));
}

void race_release(struct fiber *f, knowledge *to)
{
	struct race *r = f->eng->race;

	if (!r)
		return;
	r->across = true;
	r->now++;
	to->resize(WHO);
	for (uint32_t i = 0; i < WHO; i++)
		(*to)[i] = max((*to)[i], r->known[f->index][i]);
	(*to)[f->index] = r->now;
}

void race_acquire(struct fiber *f, const knowledge &from)
{
	struct race *r = f->eng->race;

	for (uint32_t i = 0; r && i < from.size(); i++)
		r->known[f->index][i] = max(r->known[f->index][i], from[i]);
}

/* Tensor cores shall see what the thread has written. */
void race_fence(struct fiber *f)
{
	struct race *r = f->eng->race;

	if (r)
		r->fences[f->index].push_back(r->now++);
}

/* The cell of a byte, fresh in each block, and where its readers are; or NULL. */
static struct cell *cell_of(const struct engine *eng, const char *p, struct reading **reads)
{
	struct race *r = eng->race;
	struct cell *c = nullptr;
	ptrdiff_t at = p - eng->dyn;

	if (at >= 0 && at < (ptrdiff_t)eng->dyn_bytes) {
		c = r->dyn + at;
		*reads = r->dyn_reads + at * eng->warps;
	} else if (p >= eng->tls && p < eng->tls + r->tls_bytes) {
		at = p - eng->tls;
		c = r->tls + at;
		*reads = r->tls_reads + at * eng->warps;
	}
	if (c && c->block != r->block) {
		*c = {};
		c->block = r->block;
	}
	return c;
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

/* Whose shared memory that is. */
static const struct engine *owner_of(const struct fiber *f, const char *p)
{
	const struct cluster *c = f->eng->cluster;

	for (uint32_t r = 0; r < c->n; r++)
		if (p >= c->at[r]->dyn && p < c->at[r]->dyn + c->at[r]->dyn_bytes)
			return c->at[r];
	return f->eng;
}

/* @other says what of thread @thread of block @rank is in the way, with its place. */
[[noreturn]] static void found_of(struct fiber *f, const char *p, const char *what,
				  const void *pc, const char *other, uint32_t rank,
				  uint32_t thread, const void *other_pc)
{
	const struct engine *eng = owner_of(f, p);
	const struct fiber *o = fiber_at(f->eng->cluster->at[rank], thread);
	bool dyn = p >= eng->dyn && p < eng->dyn + eng->dyn_bytes;
	char here[128], there[128], block[48] = "";

	source_of(pc, here, sizeof(here));
	source_of(other_pc, there, sizeof(there));
	if (o->eng != f->eng)
		snprintf(block, sizeof(block), " of block %u of the cluster", rank);
	fault(nullptr, "race: %s at %s of byte %td of %s shared memory, %s by thread (%u,%u,%u)"
	      "%s at %s", what, here, dyn ? p - eng->dyn : p - eng->tls,
	      dyn ? "dynamic" : "static", other, o->tid.x, o->tid.y, o->tid.z, block, there);
}

[[noreturn]] static void found(struct fiber *f, const char *p, const char *what, const void *pc,
			       const char *other, uint32_t thread, const void *other_pc)
{
	found_of(f, p, what, pc, other, f->eng->rank, thread, other_pc);
}

/* Does thread @f know what @who did at @time? */
static bool knows(const struct fiber *f, uint32_t who, uint32_t time)
{
	const struct race *r = f->eng->race;

	if (who == f->index || time < r->known[f->index][who])
		return true;
	return who < CUEMU_MAX_THREADS && time < r->all;
}

static void check_write(struct fiber *f, const char *p, struct cell *c, bool atomic,
			const void *pc, const char *what)
{
	if (!c->write_time || c->arrives < f->waits)
		return;
	if (c->rank != f->eng->rank)
		found_of(f, p, what, pc, WRITTEN, c->rank, c->thread, c->write_pc);
	if (!(atomic && c->write_atomic) && !knows(f, c->writer, c->write_time))
		found(f, p, what, pc, WRITTEN, c->thread, c->write_pc);
}

static void check_reads(struct fiber *f, const char *p, struct cell *c,
			const struct reading *reads, bool atomic, const void *pc)
{
	if (atomic && c->read_atomic)
		return;
	for (uint32_t warps = c->read_warps; warps; warps &= warps - 1) {
		uint32_t w = (uint32_t)__builtin_ctz(warps);

		for (uint32_t lanes = reads[w].lanes; lanes; lanes &= lanes - 1) {
			uint32_t o = w * 32 + (uint32_t)__builtin_ctz(lanes);

			if (!knows(f, o, reads[w].time) && reads[w].arrives >= f->waits)
				found(f, p, "write", pc, READ, o, reads[w].pc);
		}
	}
}

static void note_read(struct fiber *f, struct cell *c, struct reading *reads, bool atomic,
		      const void *pc)
{
	struct reading *mine = &reads[f->warp];
	bool first = !(c->read_warps >> f->warp & 1);
	uint32_t arrives = first ? f->arrives : max(f->arrives, mine->arrives);

	if (first || mine->time < f->eng->race->all)
		mine->lanes = 0;
	c->read_warps |= 1u << f->warp;
	c->read_atomic = atomic;
	*mine = { pc, f->eng->race->now, mine->lanes | 1u << f->lane, arrives };
}

static void note_write(struct race *r, struct cell *c, uint32_t who, bool atomic, const void *pc)
{
	c->writer = who;
	c->write_time = r->now;
	c->write_atomic = atomic;
	c->write_pc = pc;
	c->by_copy = who >= CUEMU_MAX_THREADS;
	c->read_warps = 0;
}

void race_access(struct fiber *f, const void *at, size_t size, bool write, bool atomic,
		 const void *pc)
{
	const char *p = static_cast<const char *>(at);
	struct reading *reads;
	struct cell *c;

	for (size_t i = 0; f->eng->race && i < size; i++) {
		c = cell_of(f->eng, p + i, &reads);
		if (!c)
			return;
		if (c->pending)
			found(f, p + i, write ? "write" : "read", pc,
			      "which a copy has not brought yet, begun", c->thread, c->write_pc);
		check_write(f, p + i, c, atomic, pc, write ? "write" : "read");
		if (write) {
			check_reads(f, p + i, c, reads, atomic, pc);
			c->thread = f->index;
			c->arrives = f->arrives;
			c->rank = f->eng->rank;
			note_write(f->eng->race, c, f->index, atomic, pc);
		} else {
			note_read(f, c, reads, atomic, pc);
		}
	}
}

void race_far(struct fiber *f, struct engine *owner, const void *at, size_t size,
	      const void *pc)
{
	const char *p = static_cast<const char *>(at);
	struct reading *reads;

	for (size_t i = 0; owner->race && i < size; i++) {
		struct cell *c = cell_of(owner, p + i, &reads);
		bool mine = c->rank == f->eng->rank && c->thread == f->index;

		if (c->write_time && c->arrives >= f->waits && !mine)
			found_of(f, p + i, "write", pc, WRITTEN, c->rank, c->thread, c->write_pc);
		for (uint32_t left = c->read_warps; left; left &= left - 1) {
			uint32_t w = (uint32_t)__builtin_ctz(left);

			if (reads[w].arrives >= f->waits)
				found_of(f, p + i, "write", pc, READ, owner->rank,
					 w * 32 + (uint32_t)__builtin_ctz(reads[w].lanes),
					 reads[w].pc);
		}
		c->thread = f->index;
		c->arrives = f->arrives;
		c->rank = f->eng->rank;
		note_write(owner->race, c, f->index, false, pc);
	}
}

void race_pending(struct fiber *f, const void *at, size_t size, bool pending)
{
	const char *p = static_cast<const char *>(at);
	struct reading *reads;
	struct cell *c;

	for (size_t i = 0; f->eng->race && i < size; i++) {
		c = cell_of(f->eng, p + i, &reads);
		if (c)
			c->pending = pending;
	}
}

void race_landed(struct engine *eng, const void *at, size_t size, uint32_t mbarrier,
		 knowledge *to)
{
	const char *p = static_cast<const char *>(at);
	uint32_t who = CUEMU_MAX_THREADS + mbarrier % OTHERS;
	struct race *r = eng->race;
	struct reading *reads;

	if (!r)
		return;
	for (size_t i = 0; i < size; i++) {
		struct cell *c = cell_of(eng, p + i, &reads);

		if (!c)
			continue;
		c->pending = false;
		note_write(r, c, who, false, c->write_pc);
	}
	r->across = true;
	to->resize(WHO);
	(*to)[who] = ++r->now;
}

void race_by_tensor(struct fiber *f, const void *at, size_t size, const void *pc)
{
	const char *p = static_cast<const char *>(at);
	struct race *r = f->eng->race;
	struct reading *reads;

	race_access(f, at, size, false, false, pc);
	for (size_t i = 0; r && i < size; i++) {
		struct cell *c = cell_of(f->eng, p + i, &reads);

		if (!c || c->by_copy || !c->write_time)
			continue;
		const std::vector<uint32_t> &fences = r->fences[c->writer];
		auto fence = std::lower_bound(fences.begin(), fences.end(), c->write_time);

		if (fence == fences.end() || !knows(f, c->writer, *fence))
			found(f, p + i, "read by tensor cores", pc,
			      "written without a fence of the writer that the reader knows of",
			      c->thread, c->write_pc);
	}
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
