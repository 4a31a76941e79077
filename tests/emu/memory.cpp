// SPDX-License-Identifier: MIT
/*
 * Memory of a block: stacks of its threads, its shared memory, and what lies
 * around them so that a write beside them is noticed.
 */
#include <link.h>
#include <mutex>
#include <new>
#include <sys/mman.h>

#include "tests/emu/job.hpp"

namespace cuemu {

static const unsigned char NAN_BYTE = 0xff;	/* NaN in every format, -1 as an integer */
static const unsigned char CANARY = 0xa5;

static std::mutex free_lock;
static struct engine *free_engines;

/*
 * The stacks of all engines lie side by side, so that an address says whether
 * it is on one of them, and on whose. Only what is used is backed by memory.
 */
static const uint32_t MAX_ENGINES = 64;
static const size_t ENGINE_SPAN = CUEMU_MAX_THREADS * FIBER_SLOT;
static struct engine *engines[MAX_ENGINES];
static uint32_t num_engines;
static std::atomic<uintptr_t> arena;

/* The guards below the stacks of as many threads. */
static bool prepare(struct engine *eng, uint32_t threads)
{
	for (; eng->prepared < threads; eng->prepared++) {
		struct fiber *f = new (eng->slots + eng->prepared * FIBER_SLOT) fiber();

		if (mprotect(reinterpret_cast<char *>(f) + PAGE, PAGE, PROT_NONE) < 0)
			return false;
	}
	return true;
}

char *map(size_t size)
{
	void *p = mmap(nullptr, size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? nullptr : static_cast<char *>(p);
}

static struct engine *engine_new()
{
	struct engine *eng = new (std::nothrow) engine();
	char *dyn = map(DYN_MAP + 2 * PAGE);
	char *stacks;

	if (!eng || !dyn || num_engines == MAX_ENGINES)
		return nullptr;
	if (!arena) {
		stacks = map(MAX_ENGINES * ENGINE_SPAN + FIBER_SLOT);
		if (!stacks)
			return nullptr;
		arena = (reinterpret_cast<uintptr_t>(stacks) + FIBER_SLOT - 1) & ~(FIBER_SLOT - 1);
	}
	eng->slots = reinterpret_cast<char *>(arena + num_engines * ENGINE_SPAN);
	mprotect(dyn, PAGE, PROT_NONE);
	mprotect(dyn + PAGE + DYN_MAP, PAGE, PROT_NONE);
	eng->dyn_map = dyn + PAGE;
	race_new(eng);
	engines[num_engines++] = eng;
	return eng;
}

struct engine *engine_of(uintptr_t address)
{
	uintptr_t low = arena;

	if (!low || address - low >= MAX_ENGINES * ENGINE_SPAN)
		return nullptr;
	return engines[(address - low) / ENGINE_SPAN];
}

/* They are kept for later launches: guards are many calls of the system. */
struct engine *engine_get(uint32_t threads)
{
	struct engine *eng;

	{
		std::lock_guard<std::mutex> guard(free_lock);

		eng = free_engines;
		if (eng)
			free_engines = eng->next;
		else
			eng = engine_new();
	}
	if (eng && !prepare(eng, threads)) {
		engine_put(eng);
		return nullptr;
	}
	return eng;
}

void engine_put(struct engine *eng)
{
	std::lock_guard<std::mutex> guard(free_lock);

	eng->next = free_engines;
	free_engines = eng;
}

/* Of the library that this is in, the thread_local variables of this thread. */
static int find_tls(struct dl_phdr_info *info, size_t, void *arg)
{
	struct engine *eng = static_cast<struct engine *>(arg);
	uintptr_t here = reinterpret_cast<uintptr_t>(&find_tls);
	size_t bytes = 0;
	bool mine = false;

	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *ph = &info->dlpi_phdr[i];

		if (ph->p_type == PT_TLS)
			bytes = ph->p_memsz;
		if (ph->p_type == PT_LOAD &&
		    here - info->dlpi_addr - ph->p_vaddr < ph->p_memsz)
			mine = true;
	}
	if (!mine)
		return 0;
	eng->tls = static_cast<char *>(info->dlpi_tls_data);
	eng->tls_bytes = eng->tls ? bytes : 0;
	return 1;
}

/* So that the block of thread_local variables exists when it is looked for. */
static thread_local char tls_touch;

void shared_start(struct engine *eng, uint32_t dyn_bytes)
{
	size_t room = (dyn_bytes + 15u) & ~(size_t)15;

	*const_cast<volatile char *>(&tls_touch) = 0;
	eng->tls = nullptr;
	dl_iterate_phdr(find_tls, eng);
	if (eng->tls)
		memset(eng->tls, NAN_BYTE, eng->tls_bytes);

	/* its end is at the guard page, 16 bytes being all that is promised */
	eng->dyn = eng->dyn_map + DYN_MAP - room;
	eng->dyn_bytes = dyn_bytes;
	memset(eng->dyn, NAN_BYTE, dyn_bytes);
	memset(eng->dyn + dyn_bytes, CANARY, room - dyn_bytes);
	if (room <= DYN_MAP - PAGE)
		memset(eng->dyn - PAGE, CANARY, PAGE);
}

bool shared_intact(const struct engine *eng)
{
	const char *low = eng->dyn_map + DYN_MAP - eng->dyn <= (ptrdiff_t)(DYN_MAP - PAGE) ?
		eng->dyn - PAGE : eng->dyn;

	for (const char *p = low; p < eng->dyn; p++)
		if ((unsigned char)*p != CANARY)
			return false;
	for (const char *p = eng->dyn + eng->dyn_bytes; p < eng->dyn_map + DYN_MAP; p++)
		if ((unsigned char)*p != CANARY)
			return false;
	return true;
}

bool static_untouched(const struct engine *eng)
{
	for (size_t i = 0; i < eng->tls_bytes; i++)
		if ((unsigned char)eng->tls[i] != NAN_BYTE)
			return false;
	return true;
}

bool is_shared(const struct engine *eng, const void *p, size_t bytes)
{
	const char *at = static_cast<const char *>(p);

	return (at >= eng->dyn && at + bytes <= eng->dyn + eng->dyn_bytes) ||
	       (at >= eng->tls && at + bytes <= eng->tls + eng->tls_bytes);
}

} /* namespace cuemu */
