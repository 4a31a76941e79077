// SPDX-License-Identifier: MIT
/*
 * Device addresses. They are addresses of this process too, since emulated
 * kernels use them as they are; what keeps host code off them is a memory
 * protection key (kernels' threads open it for themselves) or, where the CPU
 * has none, mprotect(): a page is opened when a kernel touches it and closed
 * when no kernel runs. The driver's copies go through mappings of its own.
 *
 * A fault in a kernel ends that launch with ILLEGAL_ADDRESS. A fault in host
 * code is a crash, as it would be with a GPU, after a line that explains it.
 */
#include <cerrno>
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "tests/emu/fake.hpp"

namespace fake {

std::mutex space_lock;
std::map<cqcu_ptr, struct region> &regions = *new std::map<cqcu_ptr, struct region>;
struct traps traps;

static enum { OPEN, PKEY, MPROTECT } guard;
static int pkey = -1;
static unsigned int running;	/* kernels, under space_lock */
static struct sigaction before[2];

/*
 * What this thread is in the middle of, for the handler, which no compiler sees. A thread
 * has it from its start: else the handler would allocate it.
 */
static thread_local sigjmp_buf *volatile copy_exit __attribute__((tls_model("initial-exec")));

static int prot_of(int rights)
{
	return rights == CQCU_MEM_ACCESS_FLAGS_PROT_READWRITE ? PROT_READ | PROT_WRITE :
	       rights == CQCU_MEM_ACCESS_FLAGS_PROT_READ ? PROT_READ : PROT_NONE;
}

static bool wants_write(const ucontext_t *uc)
{
#ifdef __x86_64__
	return (uc->uc_mcontext.gregs[REG_ERR] & 2) != 0;
#else
	(void)uc;
	return true;
#endif
}

/* HOSTGUARD=mprotect: a kernel touches a page of @addr for the first time. */
static bool open_for_kernel(cqcu_ptr addr, bool write)
{
	std::lock_guard<std::mutex> hold(space_lock);
	struct region *r = space_find(addr);

	/* It may be open since another thread of the kernel met the same. */
	if (guard != MPROTECT || !r || !r->rights ||
	    (write && r->rights != CQCU_MEM_ACCESS_FLAGS_PROT_READWRITE))
		return false;
	r->open = true;
	return mprotect(at(r->map), r->map_size, prot_of(r->rights)) == 0;
}

static void say(const char *what, const void *addr)
{
	char text[160];
	int n = snprintf(text, sizeof(text), "fake driver: %s %p\n", what, addr);

	if (write(STDERR_FILENO, text, (size_t)n) < 0)
		return;
}

static void on_fault(int sig, siginfo_t *info, void *context)
{
	cqcu_ptr addr = reinterpret_cast<cqcu_ptr>(info->si_addr);
	int saved = errno;

	if (copy_exit)
		siglongjmp(*copy_exit, 1);
	if (traps.is_kernel && traps.is_kernel(context)) {
		if (!open_for_kernel(addr, wants_write(static_cast<ucontext_t *>(context))))
			traps.trap(context, info->si_addr);
		errno = saved;
		return;
	}
	if (space_has(addr, 1, true))
		say("host code touches the device address", info->si_addr);
	/* again, with who was there before */
	sigaction(sig, &before[sig == SIGBUS], nullptr);
	errno = saved;
}

void space_start()
{
	const char *how = getenv("CQ_EMU_HOSTGUARD");
	struct sigaction sa = {};

	if (!how || !strcmp(how, "pkey") || !strcmp(how, "1"))
		pkey = pkey_alloc(0, PKEY_DISABLE_ACCESS);
	guard = how && (!strcmp(how, "off") || !strcmp(how, "0")) ? OPEN :
		pkey >= 0 ? PKEY : MPROTECT;
	sa.sa_sigaction = on_fault;
	sa.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
	sigemptyset(&sa.sa_mask);
	sigaction(SIGSEGV, &sa, &before[0]);
	sigaction(SIGBUS, &sa, &before[1]);
}

static int protect(struct region *r, int prot)
{
	if (r->kind == PINNED || r->kind == REGISTERED)
		return 0;
	if (guard == PKEY)
		return pkey_mprotect(at(r->map), r->map_size, prot, pkey);
	if (guard == MPROTECT && !r->open)
		prot = PROT_NONE;
	return mprotect(at(r->map), r->map_size, prot);
}

int space_map(struct region *r, cqcu_ptr where)
{
	size_t from = r->offset / PAGE * PAGE;
	void *m;

	r->map_size = round_up(r->offset + r->size - from, PAGE);
	if (!phys_map(r->phys.get()))
		return CQCU_ERROR_OUT_OF_MEMORY;
	m = mmap(at(where), r->map_size, PROT_NONE, MAP_SHARED | MAP_FIXED, r->phys->fd,
		 (off_t)from);
	if (m == MAP_FAILED)
		return CQCU_ERROR_MAP_FAILED;
	r->map = where;
	r->base = where + r->offset - from;
	r->open = false;
	if (protect(r, prot_of(r->rights)))
		return CQCU_ERROR_MAP_FAILED;
	regions[r->base] = *r;
	return CQCU_SUCCESS;
}

/* The addresses stay reserved. */
void space_unmap(struct region *r)
{
	mmap(at(r->map), r->map_size, PROT_NONE,
	     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
	regions.erase(r->base);
}

int space_rights(struct region *r, int rights)
{
	r->rights = rights;
	return protect(r, prot_of(rights)) ? CQCU_ERROR_INVALID_VALUE : CQCU_SUCCESS;
}

/* Addresses with @guard bytes on either side that are never mapped; 0: none. */
cqcu_ptr space_reserve(size_t size, size_t align, size_t around)
{
	size_t all = size + 2 * around + align;
	void *m = mmap(nullptr, all, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	cqcu_ptr low = reinterpret_cast<cqcu_ptr>(m), p, end;

	if (m == MAP_FAILED)
		return 0;
	p = round_up(low + around, align);
	end = p + size + around;
	if (p - around > low)
		munmap(m, p - around - low);
	if (low + all > end)
		munmap(at(end), low + all - end);
	return p;
}

/*
 * Addresses that were reserved are not used again soon, so that a kernel which
 * goes on using them is caught. space_lock is held.
 */
void space_retire(cqcu_ptr p, size_t size)
{
	static const size_t MOST = (size_t)16 << 30;
	static auto &retired = *new std::deque<std::pair<cqcu_ptr, size_t>>;
	static size_t sum;

	retired.emplace_back(p, size);
	for (sum += size; sum > MOST && retired.size() > 1; retired.pop_front()) {
		munmap(at(retired.front().first), retired.front().second);
		sum -= retired.front().second;
	}
}

struct region *space_find(cqcu_ptr p)
{
	auto i = regions.upper_bound(p);

	if (i == regions.begin())
		return nullptr;
	--i;
	return p - i->first < i->second.size ? &i->second : nullptr;
}

/* Is all of it device memory, or (not @device_only) known host memory? */
bool space_has(cqcu_ptr p, size_t size, bool device_only)
{
	std::lock_guard<std::mutex> hold(space_lock);

	if (size > MAX_SIZE || p + size < p)
		return false;
	do {
		struct region *r = space_find(p);
		size_t n;

		if (!r || (device_only && (r->kind == PINNED || r->kind == REGISTERED)))
			return false;
		n = std::min<size_t>(size, r->base + r->size - p);
		p += n;
		size -= n;
	} while (size);
	return true;
}

static void kernel_begins()
{
	std::lock_guard<std::mutex> hold(space_lock);

	running++;
	if (guard == PKEY)
		pkey_set(pkey, 0);
}

static void kernel_ends()
{
	std::lock_guard<std::mutex> hold(space_lock);

	if (guard == PKEY)
		pkey_set(pkey, PKEY_DISABLE_ACCESS);
	if (--running || guard != MPROTECT)
		return;
	for (auto &i : regions) {
		if (!i.second.open)
			continue;
		i.second.open = false;
		mprotect(at(i.second.map), i.second.map_size, PROT_NONE);
	}
}

int space_run(const std::function<int()> &kernel)
{
	int res;

	kernel_begins();
	res = kernel();
	kernel_ends();
	return res;
}

bool safe_copy(void *to, const void *from, size_t n)
{
	sigjmp_buf here;
	volatile bool whole = false;

	if (!sigsetjmp(here, 1)) {
		copy_exit = &here;
		std::atomic_signal_fence(std::memory_order_seq_cst);
		memcpy(to, from, n);
		std::atomic_signal_fence(std::memory_order_seq_cst);
		whole = true;
	}
	copy_exit = nullptr;
	return whole;
}

bool safe_string(std::string *to, const char *from, size_t most)
{
	char c;

	to->clear();
	while (from && to->size() < most) {
		if (!safe_copy(&c, from + to->size(), 1))
			return false;
		if (!c)
			return true;
		to->push_back(c);
	}
	return false;
}

} /* namespace fake */
