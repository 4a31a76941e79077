/* SPDX-License-Identifier: MIT */
/*
 * Every store to the index and to state words, one by one.
 *
 * A program that includes this maps those memfds write-protected. A store to
 * them traps, the hook is called, one instruction is let through by the trap
 * flag, and the protection comes back. Nothing in the daemon takes part, so no
 * store can be forgotten, plain fields of records included: what a process that
 * is killed leaves behind is the memory at one of these moments.
 *
 * Only the loop's thread stores there; the kernel never does. x86-64 has the
 * flag; elsewhere STORES_WORK is 0. Sanitizers hold signals back or never
 * come to an end with them: 0 as well.
 */
#ifndef TESTS_STORES_H
#define TESTS_STORES_H

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define STORES_WORK 1
#else
#define STORES_WORK 0
#endif
#if defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#undef STORES_WORK
#define STORES_WORK 0
#endif
#endif

#define STORES_RANGES	32
#define STORES_TRAP	0x100	/* EFLAGS.TF */

struct stores_range {
	uint8_t *base;
	size_t len;
};

/**
 * struct stores - what is watched
 * @before: called before each store, in a signal handler that no lock and no
 *          allocation of the daemon surrounds; NULL: nothing is watched
 * @at:     where the store goes
 * @n:      stores so far
 */
static struct {
	void (*before)(uint64_t n);
	const void *at;
	uint64_t n;
	struct stores_range range[STORES_RANGES];
	struct stores_range *open;
} stores;

__attribute__((unused))
static void *stores_mmap(void *at, size_t len, int prot, int flags, int fd, off_t off)
{
	return (void *)syscall(SYS_mmap, at, len, prot, flags, fd, off);
}

#if STORES_WORK
static bool stores_named(int fd)
{
	char path[64], name[64] = "";

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return readlink(path, name, sizeof(name) - 1) > 0 &&
	       (!strncmp(name, "/memfd:cq-index", 15) || !strncmp(name, "/memfd:cq-state", 15));
}

static struct stores_range *stores_find(const void *at)
{
	const uint8_t *p = at;
	unsigned int i;

	for (i = 0; i < STORES_RANGES; i++)
		if (stores.range[i].base && p >= stores.range[i].base &&
		    p < stores.range[i].base + stores.range[i].len)
			return &stores.range[i];
	return NULL;
}

/* In place of libc's, for this program's own calls. */
void *mmap(void *at, size_t len, int prot, int flags, int fd, off_t off)
{
	void *p = stores_mmap(at, len, prot, flags, fd, off);
	int saved = errno;
	unsigned int i;

	if (p == MAP_FAILED || !stores.before || !(prot & PROT_WRITE) ||
	    !(flags & MAP_SHARED) || fd < 0 || !stores_named(fd)) {
		errno = saved;
		return p;
	}
	for (i = 0; i < STORES_RANGES && stores.range[i].base; i++)
		;
	if (i == STORES_RANGES || mprotect(p, len, PROT_READ))
		_exit(96);
	stores.range[i] = (struct stores_range){ p, len };
	return p;
}

int munmap(void *at, size_t len)
{
	struct stores_range *r = stores_find(at);

	if (r)
		r->base = NULL;
	return (int)syscall(SYS_munmap, at, len);
}

static void stores_on_fault(int sig, siginfo_t *si, void *context)
{
	ucontext_t *uc = context;
	struct stores_range *r = stores_find(si->si_addr);
	int saved = errno;

	if (!r) {	/* a real one: let it happen again */
		signal(sig, SIG_DFL);
		return;
	}
	stores.n++;
	stores.at = si->si_addr;
	if (stores.before)
		stores.before(stores.n);
	mprotect(r->base, r->len, PROT_READ | PROT_WRITE);
	/* with nobody watching any more it stays open */
	if (stores.before) {
		stores.open = r;
		uc->uc_mcontext.gregs[REG_EFL] |= STORES_TRAP;
	}
	errno = saved;
}

static void stores_on_step(int sig, siginfo_t *si, void *context)
{
	ucontext_t *uc = context;
	int saved = errno;

	mprotect(stores.open->base, stores.open->len, PROT_READ);
	uc->uc_mcontext.gregs[REG_EFL] &= ~STORES_TRAP;
	errno = saved;
}
#endif

/* Begin, before the memfds are mapped. */
__attribute__((unused))
static void stores_watch(void (*before)(uint64_t n))
{
#if STORES_WORK
	struct sigaction fault = { .sa_sigaction = stores_on_fault,
				   .sa_flags = SA_SIGINFO | SA_NODEFER };
	struct sigaction step = { .sa_sigaction = stores_on_step,
				  .sa_flags = SA_SIGINFO | SA_NODEFER };

	sigaction(SIGSEGV, &fault, NULL);
	sigaction(SIGTRAP, &step, NULL);
#endif
	stores.before = before;
	stores.n = 0;
}

#endif /* TESTS_STORES_H */
