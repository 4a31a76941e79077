/* SPDX-License-Identifier: MIT */
/*
 * What the sources of the emulation share and kernels don't see: a launch
 * that is under way.
 */
#ifndef CUEMU_JOB_HPP
#define CUEMU_JOB_HPP

#include <atomic>

#include "tests/emu/engine.hpp"

namespace cuemu {

static constexpr size_t PAGE = 4096;
/* Room for dynamic shared memory, whose end is the end of the room. */
static constexpr size_t DYN_MAP = (CUEMU_MAX_SHARED + PAGE - 1) / PAGE * PAGE;

struct job {
	const struct cuemu_kernel *kernel;
	dim3 grid, block;
	uint32_t shared_bytes;
	enum cuemu_order order;
	uint64_t seed;
	void *const *params;
	std::atomic<uint64_t> next_block;
	std::atomic<bool> failed;
	std::atomic<bool> trapped;	/* the CPU said so */
	char error[1024];		/* of who set @failed first */
};

static_assert(sizeof(struct fiber) <= PAGE, "lies below the guard of its stack");

/* Run the cluster of blocks that @eng and the others of it are set to. */
void run_cluster(struct engine *eng);

/* Leave the running block for good, from one of its fibers. */
[[noreturn]] void leave_block(struct engine *eng);

/* Traps of the CPU on this thread are the kernel's, until the end. */
void trap_begin(struct engine *eng);
void trap_end(struct engine *eng);

/* Zeroed memory; NULL without any. */
char *map(size_t size);

/* The engine that has the fiber whose stack has that address, or NULL. */
struct engine *engine_of(uintptr_t address);

/* Watch accesses to shared memory, if the kernels were compiled for that. */
void race_new(struct engine *eng);
void race_block(struct engine *eng);
void race_barrier(struct engine *eng);
void race_warp(struct engine *eng, uint32_t warp, uint32_t group);
void race_access(struct fiber *f, const void *at, size_t size, bool write, bool atomic,
		 const void *pc);
/* The same of the memory of another block of the cluster, @owner: a write. */
void race_far(struct fiber *f, struct engine *owner, const void *at, size_t size,
	      const void *pc);
/* A copy to there is on its way: nobody may look, until it is not. */
void race_pending(struct fiber *f, const void *at, size_t size, bool pending);
/* Others come to know by @to what thread @f has done; it learns what came that way. */
void race_release(struct fiber *f, knowledge *to);
void race_acquire(struct fiber *f, const knowledge &from);
/* A copy in bulk is there, which who waits for the mbarrier of that index learns. */
void race_landed(struct engine *eng, const void *at, size_t size, uint32_t mbarrier,
		 knowledge *to);
/* What thread @f has stored tensor cores may read; and they do, for it. */
void race_fence(struct fiber *f);
void race_by_tensor(struct fiber *f, const void *at, size_t size, const void *pc);

/* A thread waits until others wake all that wait so; then it looks again. */
void wait_awhile(struct fiber *f, const char *op, struct place at);
void wake(struct engine *eng);

/* async.cpp, wgmma.cpp: a block begins; it ends, and nothing may be under way. */
void async_start(struct engine *eng);
void async_end(struct engine *eng);
void products_start(struct engine *eng);
void products_end(struct engine *eng);
/* Let a copy in bulk land; false: there is none. */
bool bulk_land(struct engine *eng);

/* Keep the text of a fault of thread @f, unless there is an earlier one. */
void report_fault(const struct fiber *f, const struct place *at, const char *text);

/* An engine for blocks of so many threads, NULL without memory; and give it back. */
struct engine *engine_get(uint32_t threads);
void engine_put(struct engine *eng);

/* Fill the shared memory with NaN; see whether something was written beside it. */
void shared_start(struct engine *eng, uint32_t dyn_bytes);
bool shared_intact(const struct engine *eng);
/* Was static shared memory left alone? Blocks of a cluster would share it here. */
bool static_untouched(const struct engine *eng);

} /* namespace cuemu */

#endif /* CUEMU_JOB_HPP */
