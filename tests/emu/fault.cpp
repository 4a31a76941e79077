// SPDX-License-Identifier: MIT
/*
 * What a kernel did wrong, in words: misuse that the engine finds, and traps
 * of the CPU, which end the launch as an illegal address ends one on a device.
 */
#include <mutex>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "tests/emu/job.hpp"

#ifdef CUEMU_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace cuemu {

static const size_t TRAP_STACK = 64 << 10;

static std::once_flag trap_once;
static struct sigaction old_segv, old_bus;

/* "warp 3: 20 lanes wait in __shfl_sync (a.cu:12), 12 left", for each that waits. */
static size_t describe(const struct engine *eng, char *text, size_t size)
{
	size_t n = 0;

	for (uint32_t w = 0; w < eng->warps && n < size; w++) {
		const struct fiber *one = nullptr;
		uint32_t waits = 0, barrier = 0, left = 0;

		for (uint32_t i = w * 32; i < eng->threads && i < w * 32 + 32; i++) {
			const struct fiber *f = fiber_at(eng, i);

			left += f->state == LEFT;
			if (eng->warp[w].ready >> i % 32 & 1)
				continue;
			waits += f->state == IN_WARP;
			barrier += f->state == IN_BLOCK || f->state == IN_CLUSTER ||
				   f->state == AWAITS;
			if (f->state == IN_WARP || (barrier && !one))
				one = f;
		}
		if (one)
			n += (size_t)snprintf(text + n, size - n,
					      "\n  warp %u: %u wait for lanes, %u in a barrier, "
					      "%u left; lane %u in %s at %s:%u with mask %08x",
					      w, waits, barrier, left, one->lane, one->op,
					      one->at.file, one->at.line,
					      eng->warp[w].mask[one->lane]);
	}
	return n;
}

void report_fault(const struct fiber *f, const struct place *at, const char *text)
{
	const struct engine *eng = f->eng;
	struct job *j = eng->job;
	size_t n;

	if (j->failed.exchange(true))
		return;
	n = (size_t)snprintf(j->error, sizeof(j->error),
			     "kernel %s, block (%u,%u,%u), thread (%u,%u,%u)",
			     j->kernel->name, eng->block_idx.x, eng->block_idx.y,
			     eng->block_idx.z, f->tid.x, f->tid.y, f->tid.z);
	if (at)
		n += (size_t)snprintf(j->error + n, sizeof(j->error) - n, ", %s:%u",
				      at->file, at->line);
	n += (size_t)snprintf(j->error + n, sizeof(j->error) - n, ": %s", text);
	if (n < sizeof(j->error))
		describe(eng, j->error + n, sizeof(j->error) - n);
}

static bool within(uintptr_t at, const void *low, size_t size)
{
	return at - reinterpret_cast<uintptr_t>(low) < size;
}

static void explain(struct engine *eng, uintptr_t at, char *text, size_t size)
{
	uintptr_t slot = reinterpret_cast<uintptr_t>(eng->cur);

	if (within(at, reinterpret_cast<char *>(slot) + PAGE, PAGE))
		snprintf(text, size, "its local variables need more than %zu KiB of stack",
			 (FIBER_SLOT - 2 * PAGE) >> 10);
	else if (within(at, eng->dyn_map - PAGE, DYN_MAP + 2 * PAGE))
		snprintf(text, size, "access to byte %td of %u bytes of dynamic shared memory",
			 (ptrdiff_t)(at - reinterpret_cast<uintptr_t>(eng->dyn)),
			 eng->dyn_bytes);
	else
		snprintf(text, size, "access to address %#zx", (size_t)at);
}

static uintptr_t stack_pointer(const ucontext_t *uc)
{
#if defined(__x86_64__)
	return (uintptr_t)uc->uc_mcontext.gregs[REG_RSP];
#elif defined(__aarch64__)
	return uc->uc_mcontext.sp;
#else
	return 0;
#endif
}

/* A trap of a kernel leaves the block from here; on a stack of its own. */
static void leave_if_kernel(const void *context, const void *address)
{
	struct engine *eng = engine_of(stack_pointer(static_cast<const ucontext_t *>(context)));
	char text[128];

	if (!eng || !eng->cur)
		return;
	explain(eng, reinterpret_cast<uintptr_t>(address), text, sizeof(text));
	eng->job->trapped = true;
	report_fault(eng->cur, nullptr, text);
	lead(eng)->failed = true;
	leave_block(eng);
}

/* Not a kernel's: for whoever was there before, now or when it happens again. */
static void trap(int sig, siginfo_t *info, void *context)
{
	const struct sigaction *old = sig == SIGSEGV ? &old_segv : &old_bus;

	leave_if_kernel(context, info->si_addr);
	if (old->sa_flags & SA_SIGINFO)
		old->sa_sigaction(sig, info, context);
	else if (old->sa_handler != SIG_DFL && old->sa_handler != SIG_IGN)
		old->sa_handler(sig);
	else
		sigaction(sig, old, nullptr);
}

static void trap_install()
{
	struct sigaction sa = {};

	/* NODEFER: the handler is left without a return */
	sa.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
	sa.sa_sigaction = trap;
	sigaction(SIGSEGV, &sa, &old_segv);
	sigaction(SIGBUS, &sa, &old_bus);
}

void trap_begin(struct engine *eng)
{
	stack_t ss = {};

	std::call_once(trap_once, trap_install);
	if (!eng->trap_stack) {
		eng->trap_stack = map(TRAP_STACK);
		if (!eng->trap_stack)
			return;
	}
#ifdef CUEMU_ASAN
	__asan_unpoison_memory_region(eng->trap_stack, TRAP_STACK);
#endif
	ss.ss_sp = eng->trap_stack;
	ss.ss_size = TRAP_STACK;
	sigaltstack(&ss, &eng->old_stack);
}

void trap_end(struct engine *eng)
{
	if (eng->trap_stack)
		sigaltstack(&eng->old_stack, nullptr);
}

} /* namespace cuemu */

int cuemu_is_kernel(const void *context)
{
	using namespace cuemu;
	struct engine *eng = engine_of(stack_pointer(static_cast<const ucontext_t *>(context)));

	return eng && eng->cur;
}

void cuemu_trap(const void *context, const void *address)
{
	cuemu::leave_if_kernel(context, address);
}

void cuemu_no_handler(void)
{
	std::call_once(cuemu::trap_once, [] {});
}
