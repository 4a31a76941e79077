/* SPDX-License-Identifier: MIT */
/*
 * How a block runs: its threads are fibers on one thread of the OS. A fiber
 * runs until it has to wait for others, in a barrier or a collective of its
 * warp; then the engine picks another one that may run, in the order asked
 * for. What a device leaves undefined stops the launch with a message.
 *
 * The blocks of a cluster have an engine each, on one thread of the OS: where no
 * fiber of a block may run, those of another do. Its first engine is the one that
 * the launch knows. Such kernels have dynamic shared memory only.
 *
 * Each fiber has a slot of FIBER_SLOT bytes, aligned to that: its own state in
 * the first page, a guard page, then its stack. So the address of any local
 * variable leads to the running fiber, without a thread-local variable: those
 * are shared memory here, and filled with NaN when a block starts.
 */
#ifndef CUEMU_ENGINE_HPP
#define CUEMU_ENGINE_HPP

#include <signal.h>
#include <vector>

#include "tests/emu/cuemu_api.h"
#include "tests/emu/types.hpp"

namespace cuemu {

#if defined(__SANITIZE_ADDRESS__)
#define CUEMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUEMU_ASAN 1
#endif
#endif

/* The same in all objects of a library: a sanitizer wants larger ones. */
#ifndef CUEMU_FIBER_KIB
#define CUEMU_FIBER_KIB 64
#endif
static constexpr size_t FIBER_SLOT = CUEMU_FIBER_KIB << 10;

struct engine;

/* A place in a kernel's source, for messages and to tell barriers apart. */
struct place {
	const char *file;
	unsigned int line;
};

/* A copy of cp.async that is under way: it lands when its thread waits for it. */
struct copy {
	void *dst;
	const void *src;
	unsigned int bytes, zero;	/* bytes to copy, then zeros to write */
	unsigned int group;
};

/* Up to when one knows what each of the others did (race.cpp); empty: not watched. */
typedef std::vector<uint32_t> knowledge;

/* Barriers of some of a block's threads (async.cpp), but for the first, __syncthreads(). */
static constexpr uint32_t NAMED = 16;

struct named_barrier {
	uint32_t count, arrived;	/* threads */
	uint32_t round;			/* how often all have come */
	knowledge coming, come;
};

struct mbarrier {
	const uint64_t *at;
	uint32_t count, pending;	/* arrivals: of a phase, and still to come */
	int64_t bytes;			/* of copies, still to come */
	uint32_t phase;
	bool unseen;			/* copies have come and nobody has waited for them */
	knowledge coming, come;
};

/* A copy in bulk that is under way: it lands as late as it can. */
struct bulk {
	void *dst;
	const void *src;
	uint32_t bytes, mbarrier;
};

struct products;	/* of tensor cores, under way (wgmma.cpp) */

enum state {
	RUNS,
	IN_WARP,	/* waits for lanes of its warp */
	IN_BLOCK,	/* waits for all threads of the block */
	AWAITS,		/* waits for another barrier */
	IN_CLUSTER,	/* waits for all threads of the cluster */
	LEFT,		/* has left the kernel */
};

struct fiber {
	void *sp;
	struct engine *eng;
	uint3 tid;
	uint32_t index, lane, warp;
	enum state state;
	const char *op;			/* what it waits in */
	struct place at;
	void *fake_stack;		/* the sanitizer's */
	unsigned int group;		/* groups of copies closed so far */
	uint32_t arrives, waits;	/* barriers of the cluster, begun and passed */
};

/* What a lane brings to a collective and takes from it. */
union operand {
	uint64_t u;
	const void *row;
	uint32_t r[4];
	struct {
		uint32_t a[4], b[2];
		float d[4];
	} mma;
	struct {
		float *d;
		const uint32_t *a;
		uint64_t desc;
		bool add;
	} product;
};

struct warp {
	uint32_t live, ready, arrived;
	uint32_t mask[32];		/* the lanes that an arrived one waits for */
	const char *op[32];
	union operand lanes[32];
};

/* The engines of a cluster; a block without one is a cluster of its own. */
struct cluster {
	struct engine *at[CUEMU_MAX_CLUSTER];
	uint32_t n, live;		/* blocks; of them with threads */
	uint32_t threads, left;		/* of all blocks; of them that left */
	uint32_t arrived, phases;	/* at its barrier; barriers that all have reached */
};

struct engine {
	struct fiber *cur;
	char *slots;
	void *main_sp;
	void *main_stack, *main_fake;	/* the sanitizer's, of the thread below */
	size_t main_size;
	uint32_t threads, warps, live, at_barrier;
	struct fiber *first;		/* at the barrier */
	int votes, result;		/* of __syncthreads_or() and its like */
	uint3 block_idx;
	dim3 block_dim, grid_dim;
	struct cluster own, *cluster;	/* that of the first engine */
	uint32_t rank;			/* of the block in it */
	uint32_t touched;		/* barriers before its memory may go: others write it */
	char *dyn;
	uint32_t dyn_bytes;
	char *dyn_map;
	char *tls;			/* static shared memory of all kernels */
	size_t tls_bytes;
	uint64_t random;
	struct job *job;
	bool failed;
	char *trap_stack;
	stack_t old_stack;
	uint32_t prepared;		/* slots with a guard page */
	struct engine *next;
	struct race *race;		/* NULL: accesses are not watched */
	struct named_barrier named[NAMED];
	std::vector<struct mbarrier> mbarriers;
	std::vector<struct bulk> bulks;
	struct products *products;
	struct warp warp[CUEMU_MAX_THREADS / 32];
	std::vector<struct copy> copies[CUEMU_MAX_THREADS];	/* of each thread */
};

static inline struct fiber *fiber_at(const struct engine *eng, uint32_t i)
{
	return reinterpret_cast<struct fiber *>(eng->slots + i * FIBER_SLOT);
}

/* The running fiber. */
static inline struct fiber *self()
{
	uintptr_t frame = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));

	return reinterpret_cast<struct fiber *>(frame & ~(FIBER_SLOT - 1));
}

static inline struct warp *warp_of(const struct fiber *f)
{
	return &f->eng->warp[f->warp];
}

static inline union operand *operand_of(const struct fiber *f)
{
	return &warp_of(f)->lanes[f->lane];
}

/* Stop the launch; the text says what the running thread did, and where. */
[[noreturn]] void fault(const struct place *at, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* A number from the sequence of this block. */
uint32_t draw(struct engine *eng, uint32_t below);

/*
 * The three steps of a collective: join() says that the running lane is here;
 * gather() waits until the lane's result is
 * there (0) or until it is this lane's task to run the operation for all of a
 * group (the group's lanes); after that scatter() lets the others go on.
 */
void join(struct fiber *f, const char *op, uint32_t mask, struct place at);
uint32_t gather(struct fiber *f);
void scatter(struct fiber *f, uint32_t group);

/*
 * Run a collective: the operand of the lane is set, @run gets the warp and the
 * lanes that take part, and is called once, by the lane that came last.
 */
template <typename Run>
static inline void collective(const char *op, uint32_t mask, struct place at, Run run)
{
	struct fiber *f = self();
	uint32_t group;

	join(f, op, mask, at);
	group = gather(f);
	if (group) {
		run(warp_of(f), group);
		scatter(f, group);
	}
}

/* What launches know of the running cluster. */
static inline struct engine *lead(const struct engine *eng)
{
	return eng->cluster->at[0];
}

enum vote { VOTE_NONE, VOTE_OR, VOTE_AND, VOTE_COUNT };

/* A barrier of all threads of the block; the result of the vote, if there is one. */
int block_barrier(const char *op, enum vote vote, int value, struct place at);

/* The two halves of a barrier of all threads of the cluster, by whole warps. */
void cluster_arrive(struct place at);
void cluster_wait(struct place at);

/* Where another block of the cluster has what lies at @s in this one's shared memory. */
char *cluster_map(const void *s, uint32_t rank, struct place at);

/* Write there. */
void cluster_store(char *to, const void *from, size_t bytes, struct place at);

/* Let another thread run, if one can. */
void give_way();

/* Shared memory of the running block: all of @bytes from @p on? */
bool is_shared(const struct engine *eng, const void *p, size_t bytes);

} /* namespace cuemu */

#define threadIdx (cuemu::self()->tid)
#define blockIdx (cuemu::self()->eng->block_idx)
#define blockDim (cuemu::self()->eng->block_dim)
#define gridDim (cuemu::self()->eng->grid_dim)

/* The caller's place, as the last parameter of what waits. */
#define CUEMU_AT const char *file = __builtin_FILE(), unsigned int line = __builtin_LINE()
#define CUEMU_HERE (cuemu::place{ file, line })

CUEMU_FN void __syncthreads(CUEMU_AT)
{
	cuemu::block_barrier("__syncthreads", cuemu::VOTE_NONE, 0, CUEMU_HERE);
}

CUEMU_FN int __syncthreads_or(int v, CUEMU_AT)
{
	return cuemu::block_barrier("__syncthreads_or", cuemu::VOTE_OR, v, CUEMU_HERE);
}

CUEMU_FN int __syncthreads_and(int v, CUEMU_AT)
{
	return cuemu::block_barrier("__syncthreads_and", cuemu::VOTE_AND, v, CUEMU_HERE);
}

CUEMU_FN int __syncthreads_count(int v, CUEMU_AT)
{
	return cuemu::block_barrier("__syncthreads_count", cuemu::VOTE_COUNT, v, CUEMU_HERE);
}

CUEMU_FN void __syncwarp(unsigned int mask = ~0u, CUEMU_AT)
{
	cuemu::collective("__syncwarp", mask, CUEMU_HERE, [](struct cuemu::warp *, uint32_t) {});
}

#endif /* CUEMU_ENGINE_HPP */
