/* SPDX-License-Identifier: MIT */
/*
 * The fake driver: libcuda.so.1 for machines without a GPU. Device memory is
 * files in shared memory, streams are threads, kernels are those of
 * libcqk_emu.so. What it promises beyond the calls of kernels/cuda/abi.h is
 * strictness: what a GPU punishes, or leaves undefined, is an error here.
 *
 * Knobs, from the environment when cuInit() is called:
 *	CQ_EMU_DEVICES=n	devices (1); 0 = none
 *	CQ_EMU_MEMORY=bytes	of each device (4 GiB), shared by all processes of
 *	CQ_EMU_STATE=name	one name (a process alone without it)
 *	CQ_EMU_KERNELS=path	library of kernels (libcqk_emu.so beside this one)
 *	CQ_EMU_THREADS=n	of the machine, for each launch (2)
 *	CQ_EMU_ARCH=n		compute capability, and shared memory of a block with it (90)
 *	CQ_EMU_ORDER=forward|reverse|random	of the threads of a warp or block
 *	CQ_EMU_DELAY_US=n	at most so long a stream hesitates before each step
 *	CQ_EMU_SEED=n		of delays, orders, and of the order of graph nodes
 *	CQ_EMU_FAIL=call:n[+][:result],...	the nth call (and later ones) fails, or with a
 *					result of -1 does not return
 *	CQ_EMU_VERSION=n	what cuDriverGetVersion() says (13000)
 *	CQ_EMU_HOSTGUARD=pkey|mprotect|off	host code may not touch device
 *				addresses (pkey where the CPU has it, else mprotect)
 *	CQ_EMU_FD_POLL=1	exported fds poll as POLLERR|POLLHUP
 *	CQ_EMU_GARBAGE=1	new memory has somebody's bytes in it
 *	CUDA_VISIBLE_DEVICES	indices or UUIDs, as with a real driver
 *
 * Tables are references to what is never deleted: threads of streams may run
 * until the process ends, after its static objects are gone.
 *
 * Locks, in the order they are taken: big (handles, contexts, what is queued),
 * then space_lock (addresses), then those of one stream or event. A thread that
 * waits for a stream holds none.
 */
#ifndef FAKE_HPP
#define FAKE_HPP

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/abi.h"

namespace fake {

static constexpr int MAX_DEVICES = 8;
static constexpr size_t PAGE = 4096;
static constexpr size_t GRAN = 2 << 20;
static constexpr size_t MAX_SIZE = (size_t)1 << 44;	/* more than any request */

static inline size_t round_up(size_t n, size_t to)
{
	return (n + to - 1) / to * to;
}

static inline void *at(cqcu_ptr p)
{
	return reinterpret_cast<void *>(p);
}

/* fake_knobs.cpp */
struct knobs {
	int devices, version;
	size_t memory;
	std::string state, kernels;
	unsigned int threads, order, delay_us, arch;
	uint64_t seed;
	bool fd_poll, garbage;
	int visible[MAX_DEVICES], num_visible;	/* ordinal -> device */
};
extern struct knobs knobs;
void knobs_read();
int shared_of_block();		/* that a kernel can ask for */
/* The result that call @index must fail with, or CQCU_SUCCESS. */
int inject(size_t index, const char *name);
uint64_t next_random(uint64_t *state);
void device_uuid(int dev, struct cqcu_uuid *uuid);
const char *result_text(int result);

/* fake_state.cpp: memory as files, counted over all processes of one name */
struct phys {
	int fd = -1;
	size_t size = 0, pad = 0;	/* of a block: first byte within the file */
	int dev = 0;
	bool shareable = false;
	char *alias = nullptr;		/* the driver's own view of it */
	std::string name;
	~phys();
};
using phys_ptr = std::shared_ptr<struct phys>;
int phys_create(phys_ptr *out, int dev, size_t size, size_t pad, bool shareable);
int phys_open(phys_ptr *out, int fd);		/* takes @fd in any case */
int phys_open_named(phys_ptr *out, const char *name);
bool phys_map(struct phys *p);			/* set @alias */
void phys_close(struct phys *p);		/* no further mapping is needed */
void phys_retire(struct phys *p);		/* nobody may open it by name any more */
size_t state_used(int dev);
void state_sweep();

/* fake_space.cpp: device addresses */
enum kind { BLOCK, OPENED, MAPPED, PINNED, REGISTERED };
struct region {
	cqcu_ptr base;
	size_t size;
	enum kind kind;
	int dev, rights;	/* CQCU_MEM_ACCESS_FLAGS_PROT_* */
	phys_ptr phys;
	size_t offset;		/* of @base in the memory */
	cqcu_ptr map;		/* what is mapped: whole pages */
	size_t map_size;
	bool open;		/* HOSTGUARD=mprotect: until no kernel runs */
	unsigned int refs;	/* of an IPC handle opened several times */
};
extern std::mutex space_lock;
extern std::map<cqcu_ptr, struct region> &regions;
void space_start();
/* Map @r (all but .map given); 0 or a result. space_lock is held by the caller. */
int space_map(struct region *r, cqcu_ptr where);
void space_unmap(struct region *r);
int space_rights(struct region *r, int rights);
cqcu_ptr space_reserve(size_t size, size_t align, size_t guard);
void space_retire(cqcu_ptr p, size_t size);
struct region *space_find(cqcu_ptr p);
bool space_has(cqcu_ptr p, size_t size, bool device_only);
/* Run @kernel with device addresses accessible; its result. */
int space_run(const std::function<int()> &kernel);
/* memcpy() that survives a bad address: false. */
bool safe_copy(void *to, const void *from, size_t n);
bool safe_string(std::string *to, const char *from, size_t most);
/* Of the library of kernels, for the handler of faults (tests/emu/cuemu_api.h). */
extern struct traps {
	int (*is_kernel)(const void *ucontext);
	void (*trap)(const void *ucontext, const void *address);
} traps;

/* fake_copy.cpp: these run on a stream's thread */
int copy_in(cqcu_ptr to, const void *from, size_t n);
int copy_out(void *to, cqcu_ptr from, size_t n);
int copy_within(cqcu_ptr to, cqcu_ptr from, size_t n);
int fill(cqcu_ptr p, const void *pattern, size_t width, size_t n);

/* fake_device.cpp */
extern std::mutex big;
struct stream;
using stream_ptr = std::shared_ptr<struct stream>;
extern std::atomic<bool> started;
struct cqcu_ctx *current();
int ctx_device(const struct cqcu_ctx *c);	/* not the ordinal */
int ordinal_of(int dev);
int device_of(int ordinal);			/* -1: none */

/* fake_stream.cpp */
struct step {
	std::function<int()> run;
	std::vector<std::pair<stream_ptr, uint64_t>> after;
};
struct capture;
struct stream {
	struct ::cqcu_ctx *ctx;
	unsigned int flags;
	std::mutex m;
	std::condition_variable c;
	std::deque<struct step> queue;
	uint64_t pushed = 0, done = 0;	/* steps */
	uint64_t random = 0;
	bool stop = false;
	/* while it is captured, under big */
	std::shared_ptr<struct capture> cap;
	std::vector<size_t> tail;
	bool invalid = false;		/* was captured, and that failed */
};
/* The stream of a handle, NULL if there is none. big is held. */
stream_ptr stream_get(struct cqcu_stream *s);
/* Queue (or capture) a step; 0 or a result. big is held. */
int enqueue(const stream_ptr &s, std::function<int()> run);
/* Wait for all that is queued; the context's state. big is not held. */
int wait_idle(const stream_ptr &s, uint64_t last);
int sync_all(struct cqcu_ctx *ctx);
/* A step on the legacy stream, waited for. */
int run_sync(std::function<int()> run);
void streams_quiesce();

/* fake_event.cpp */
struct record {
	std::mutex m;
	std::condition_variable c;
	bool done = false;
	double ms = 0;
	std::shared_ptr<struct capture> cap;	/* recorded in a capture */
	std::vector<size_t> tail;
};
using record_ptr = std::shared_ptr<struct record>;

/* fake_graph.cpp; big is held */
bool capture_blocks();		/* a call that no capture survives: end them */
int capture_step(const stream_ptr &s, std::function<int()> run);
int capture_join(const stream_ptr &s, const record_ptr &r);
bool capture_implicit(struct cqcu_ctx *ctx);
void capture_abandon(const stream_ptr &s);	/* it is destroyed */

} /* namespace fake */

struct cqcu_ctx {
	int dev;
	unsigned int refs, flags;
	std::atomic<int> sticky;	/* result of all later calls */
	fake::stream_ptr legacy;
	std::vector<fake::stream_ptr> streams;	/* those that wait for legacy too */
};

/* What each call is made of; fake_api.cpp wraps and exports them. */
namespace fake {
namespace calls {
#define FAKE_DECLARE(name, version, params) int name params;
CQCU_CALLS(FAKE_DECLARE)
#undef FAKE_DECLARE
}
}

#endif /* FAKE_HPP */
