// SPDX-License-Identifier: MIT
/*
 * Fibers: the switch, who runs next, barriers and collectives, and faults.
 */
#include <cstdarg>

#include "tests/emu/job.hpp"

#ifdef CUEMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace cuemu {

#ifdef __x86_64__
/*
 * Callee-saved registers on the old stack, its pointer into *from; then the
 * same backwards from the new one. Nothing else survives a call.
 */
extern "C" void cuemu_switch(void **from, void *to);
asm(R"(
	.text
	.hidden	cuemu_switch
	.globl	cuemu_switch
	.type	cuemu_switch, @function
cuemu_switch:
	push	%rbp
	push	%rbx
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	mov	%rsp, (%rdi)
	mov	%rsi, %rsp
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbx
	pop	%rbp
	ret
	.size	cuemu_switch, . - cuemu_switch
)");

/* A stack on which cuemu_switch() returns into @entry. */
static void *new_stack(char *, char *top, void (*entry)())
{
	uintptr_t *sp = reinterpret_cast<uintptr_t *>(top);

	*--sp = 0;
	*--sp = reinterpret_cast<uintptr_t>(entry);
	for (int i = 0; i < 6; i++)
		*--sp = 0;
	return sp;
}
#else
/* Elsewhere a context at the upper end of the stack; slow, but portable. */
static void *new_stack(char *low, char *top, void (*entry)())
{
	ucontext_t *uc = reinterpret_cast<ucontext_t *>(
		(reinterpret_cast<uintptr_t>(top) - sizeof(*uc)) & ~(uintptr_t)63);

	getcontext(uc);
	uc->uc_stack.ss_sp = low;
	uc->uc_stack.ss_size = (size_t)(reinterpret_cast<char *>(uc) - low);
	uc->uc_link = nullptr;
	makecontext(uc, entry, 0);
	return uc;
}

static void cuemu_switch(void **from, void *to)
{
	ucontext_t here;

	*from = &here;
	swapcontext(&here, static_cast<ucontext_t *>(to));
}
#endif

static char *stack_low(struct fiber *f)
{
	return reinterpret_cast<char *>(f) + 2 * PAGE;
}

static char *stack_top(struct fiber *f)
{
	return reinterpret_cast<char *>(f) + FIBER_SLOT;
}

/* Tell the sanitizer of the switch, before it (@keep: where the old one's frames go). */
static void before_switch(void **keep, const void *low, size_t size)
{
#ifdef CUEMU_ASAN
	__sanitizer_start_switch_fiber(keep, low, size);
#else
	(void)keep, (void)low, (void)size;
#endif
}

static void after_switch(void *kept, struct engine *from_main)
{
#ifdef CUEMU_ASAN
	const void *low;
	size_t size;

	__sanitizer_finish_switch_fiber(kept, &low, &size);
	if (from_main && !from_main->main_stack) {
		from_main->main_stack = const_cast<void *>(low);
		from_main->main_size = size;
	}
#else
	(void)kept, (void)from_main;
#endif
}

static void run_fiber(struct engine *eng, struct fiber *next)
{
	struct fiber *f = eng->cur;

	if (next == f)
		return;
	next->eng->cur = next;
	before_switch(&f->fake_stack, stack_low(next),
		      (size_t)(stack_top(next) - stack_low(next)));
	cuemu_switch(&f->sp, next->sp);
	after_switch(f->fake_stack, nullptr);
}

/* Back to run_cluster(), for good. */
void leave_block(struct engine *eng)
{
	void *sp;

	eng = lead(eng);
	before_switch(nullptr, eng->main_stack, eng->main_size);
	cuemu_switch(&sp, eng->main_sp);
	__builtin_unreachable();
}

void fault(const struct place *at, const char *fmt, ...)
{
	struct fiber *f = self();
	struct engine *eng = f->eng;
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	report_fault(f, at, text);
	lead(eng)->failed = true;
	leave_block(eng);
}

uint32_t draw(struct engine *eng, uint32_t below)
{
	uint64_t x = eng->random += 0x9e3779b97f4a7c15u;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return (uint32_t)(((x ^ x >> 31) >> 32) * below >> 32);
}

static uint32_t nth_bit(uint32_t bits, uint32_t n)
{
	while (n--)
		bits &= bits - 1;
	return (uint32_t)__builtin_ctz(bits);
}

/* Who runs next: a lane of the same warp if one can, or of the next warp that has one. */
static struct fiber *pick_of(struct engine *eng)
{
	uint32_t start = eng->cur->warp, ready = 0, w = start, lane;

	if (eng->job->order == CUEMU_RANDOM)
		w = start = draw(eng, eng->warps);
	for (uint32_t i = 0; i < eng->warps; i++) {
		w = eng->job->order == CUEMU_REVERSE ? (start + eng->warps - i) % eng->warps :
						       (start + i) % eng->warps;
		ready = eng->warp[w].ready;
		if (ready)
			break;
	}
	if (!ready)
		return nullptr;
	if (eng->job->order == CUEMU_FORWARD)
		lane = (uint32_t)__builtin_ctz(ready);
	else if (eng->job->order == CUEMU_REVERSE)
		lane = 31 - (uint32_t)__builtin_clz(ready);
	else
		lane = nth_bit(ready, draw(eng, (uint32_t)__builtin_popcount(ready)));
	return fiber_at(eng, w * 32 + lane);
}

/* The same of a block of the cluster: of the same, if one there can. */
static struct fiber *pick(struct engine *eng)
{
	const struct cluster *c = eng->cluster;
	uint32_t first = eng->rank;
	struct fiber *f = nullptr;

	if (c->n > 1 && eng->job->order == CUEMU_RANDOM)
		first = draw(lead(eng), c->n);
	for (uint32_t i = 0; i < c->n && !f; i++)
		f = pick_of(c->at[eng->job->order == CUEMU_REVERSE ? (first + c->n - i) % c->n :
								     (first + i) % c->n]);
	return f;
}

/* A copy in bulk of the cluster lands; false: there is none. */
static bool land(struct engine *eng)
{
	const struct cluster *c = eng->cluster;

	for (uint32_t r = 0; r < c->n; r++)
		if (bulk_land(c->at[(eng->rank + r) % c->n]))
			return true;
	return false;
}

/* The next thread; copies in bulk land when no thread can go on without, or by chance. */
static struct fiber *pick_next(struct engine *eng)
{
	struct fiber *next;

	if (eng->job->order == CUEMU_RANDOM && !eng->bulks.empty() && !draw(eng, 1024))
		bulk_land(eng);
	do
		next = pick(eng);
	while (!next && land(eng));
	return next;
}

/* The running thread cannot go on; somebody else has to make it ready again. */
static void wait_for_others(struct fiber *f)
{
	struct fiber *next;

	warp_of(f)->ready &= ~(1u << f->lane);
	next = pick_next(f->eng);
	if (!next)
		fault(&f->at, "deadlock: no thread of the block can go on");
	run_fiber(f->eng, next);
}

void wait_awhile(struct fiber *f, const char *op, struct place at)
{
	f->op = op;
	f->at = at;
	f->state = AWAITS;
	wait_for_others(f);
	f->state = RUNS;
}

void wake(struct engine *eng)
{
	for (uint32_t i = 0; i < eng->threads; i++)
		if (fiber_at(eng, i)->state == AWAITS)
			eng->warp[i / 32].ready |= 1u << i % 32;
}

void give_way()
{
	struct fiber *f = self(), *next;
	struct warp *w = warp_of(f);

	w->ready &= ~(1u << f->lane);
	next = pick(f->eng);
	w->ready |= 1u << f->lane;
	if (next)
		run_fiber(f->eng, next);
}

void join(struct fiber *f, const char *op, uint32_t mask, struct place at)
{
	struct warp *w = warp_of(f);

	if (!(mask >> f->lane & 1))
		fault(&at, "%s with mask %08x, which is without the lane itself", op, mask);
	f->op = op;
	f->at = at;
	f->state = IN_WARP;
	w->op[f->lane] = op;
	w->mask[f->lane] = mask;
	w->arrived |= 1u << f->lane;
}

/*
 * The lanes of this lane's group if all that have not left are there, or 0.
 * Lanes that wait with another mask are of another group: they may come yet.
 */
static uint32_t complete(const struct fiber *f)
{
	const struct warp *w = warp_of(f);
	uint32_t group = w->mask[f->lane] & w->live, o;

	if ((w->arrived & group) != group)
		return 0;
	for (uint32_t left = group; left; left &= left - 1) {
		o = nth_bit(left, 0);
		if (w->mask[o] != w->mask[f->lane])
			return 0;
		if (w->op[o] != w->op[f->lane] && strcmp(w->op[o], w->op[f->lane]))
			fault(&f->at, "%s with mask %08x, but lane %u waits in %s with that mask",
			      f->op, w->mask[o], o, w->op[o]);
	}
	return group;
}

uint32_t gather(struct fiber *f)
{
	struct warp *w = warp_of(f);
	uint32_t group;

	while (w->arrived >> f->lane & 1) {
		group = complete(f);
		if (group)
			return group;
		wait_for_others(f);
	}
	f->state = RUNS;
	return 0;
}

void scatter(struct fiber *f, uint32_t group)
{
	struct warp *w = warp_of(f);

	w->arrived &= ~group;
	w->ready |= group;
	f->state = RUNS;
	if (!strcmp(f->op, "__syncwarp"))
		race_warp(f->eng, f->warp, group);
}

static void check_barrier(struct fiber *f, const char *op, struct place at)
{
	struct engine *eng = f->eng;
	struct fiber *o = nullptr;

	if (eng->live < eng->threads) {
		for (uint32_t i = 0; i < eng->threads; i++)
			if (fiber_at(eng, i)->state == LEFT)
				o = fiber_at(eng, i);
		fault(&at, "%s, but thread (%u,%u,%u) has left the kernel", op,
		      o->tid.x, o->tid.y, o->tid.z);
	}
	o = eng->first;
	if (eng->at_barrier && (o->at.line != at.line || strcmp(o->op, op) ||
				strcmp(o->at.file, at.file)))
		fault(&at, "%s, but thread (%u,%u,%u) waits in another barrier, %s at %s:%u",
		      op, o->tid.x, o->tid.y, o->tid.z, o->op, o->at.file, o->at.line);
}

int block_barrier(const char *op, enum vote vote, int value, struct place at)
{
	struct fiber *f = self();
	struct engine *eng = f->eng;

	check_barrier(f, op, at);
	if (!eng->at_barrier) {
		eng->first = f;
		eng->votes = 0;
	}
	eng->votes += !!value;
	f->op = op;
	f->at = at;
	f->state = IN_BLOCK;
	if (++eng->at_barrier < eng->live) {
		wait_for_others(f);
		f->state = RUNS;
		return eng->result;
	}
	eng->at_barrier = 0;
	race_barrier(eng);
	eng->result = vote == VOTE_OR ? eng->votes > 0 :
		      vote == VOTE_AND ? eng->votes == (int)eng->live : eng->votes;
	for (uint32_t i = 0; i < eng->warps; i++)
		eng->warp[i].ready = eng->warp[i].live;
	f->state = RUNS;
	return eng->result;
}

/*
 * A device does not wait for threads that left, nor keep what they may still be asked for;
 * here all threads of a cluster reach all of its barriers.
 */
static void check_cluster(const struct fiber *f, const char *op, const struct place *at)
{
	const struct cluster *c = f->eng->cluster;

	if (c->left)
		fault(at, "%s, but a thread of the cluster has left the kernel", op);
}

void cluster_arrive(struct place at)
{
	struct fiber *f = self();
	struct cluster *c = f->eng->cluster;

	collective("cq_cluster_arrive", ~0u, at, [&](struct warp *, uint32_t group) {
		if (group != ~0u)
			fault(&at, "cq_cluster_arrive by a warp of which lanes have left");
	});
	check_cluster(f, "cq_cluster_arrive", &at);
	if (f->arrives != f->waits)
		fault(&at, "cq_cluster_arrive a second time, without a wait in between");
	f->arrives++;
	if (++c->arrived < c->threads)
		return;
	c->arrived = 0;
	c->phases++;
	for (uint32_t r = 0; r < c->n; r++)
		for (uint32_t i = 0; i < c->at[r]->threads; i++)
			if (fiber_at(c->at[r], i)->state == IN_CLUSTER)
				c->at[r]->warp[i / 32].ready |= 1u << i % 32;
}

void cluster_wait(struct place at)
{
	struct fiber *f = self();

	if (f->arrives == f->waits)
		fault(&at, "cq_cluster_wait without an arrival");
	f->op = "cq_cluster_wait";
	f->at = at;
	if (f->eng->cluster->phases < f->arrives) {
		f->state = IN_CLUSTER;
		wait_for_others(f);
		f->state = RUNS;
	}
	f->waits++;
}

char *cluster_map(const void *s, uint32_t rank, struct place at)
{
	struct engine *eng = self()->eng;
	const char *p = static_cast<const char *>(s);

	if (rank >= eng->cluster->n)
		fault(&at, "block %u of a cluster of %u", rank, eng->cluster->n);
	if (p < eng->dyn || p > eng->dyn + eng->dyn_bytes)
		fault(&at, "%p is not in the block's dynamic shared memory", s);
	return eng->cluster->at[rank]->dyn + (p - eng->dyn);
}

void cluster_store(char *to, const void *from, size_t bytes, struct place at)
{
	struct fiber *f = self();
	struct cluster *c = f->eng->cluster;
	struct engine *o = nullptr;

	for (uint32_t r = 0; r < c->n && !o; r++)
		if (to >= c->at[r]->dyn && to + bytes <= c->at[r]->dyn + c->at[r]->dyn_bytes)
			o = c->at[r];
	if (!o)
		fault(&at, "store to %p, which is not shared memory of the cluster", to);
	if (reinterpret_cast<uintptr_t>(to) % bytes)
		fault(&at, "store of %zu bytes to %p: not aligned to that", bytes, to);
	if (!f->waits)
		fault(&at, "store to block %u before the cluster has met: it may not have begun",
		      o->rank);
	if (o->live < o->threads)
		fault(&at, "store to block %u, of which threads have left the kernel", o->rank);
	o->touched = max(o->touched, f->arrives + 1);
	race_far(f, o, to, bytes, __builtin_return_address(0));
	memcpy(to, from, bytes);
}

/* A thread leaves: whom it kept waiting may go on, or never will. */
[[noreturn]] static void leave_kernel(struct fiber *f)
{
	struct engine *eng = f->eng;
	struct cluster *c = eng->cluster;
	struct warp *w = warp_of(f);
	struct fiber *next;

	if (f->arrives != f->waits)
		fault(nullptr, "left the kernel between arrival and wait of the cluster");
	if (f->waits < eng->touched)
		fault(nullptr, "left the kernel, but another block wrote its memory after the "
			       "last barrier of the cluster");
	if (c->arrived)
		fault(nullptr, "left the kernel, but threads of the cluster wait for it");
	c->left++;
	w->live &= ~(1u << f->lane);
	w->ready &= ~(1u << f->lane);
	f->state = LEFT;
	eng->live--;
	if (!eng->live) {
		async_end(eng);
		products_end(eng);
		if (!--c->live)
			leave_block(eng);
	}
	if (eng->at_barrier)
		fault(nullptr, "left the kernel, but thread (%u,%u,%u) waits in %s at %s:%u",
		      eng->first->tid.x, eng->first->tid.y, eng->first->tid.z,
		      eng->first->op, eng->first->at.file, eng->first->at.line);
	/* one lane of each group that waited for this one last runs the operation */
	for (uint32_t left = w->arrived & ~w->ready; left; left &= left - 1) {
		struct fiber *o = fiber_at(eng, f->warp * 32 + nth_bit(left, 0));
		uint32_t group = complete(o);

		if (group && !(group & w->ready))
			w->ready |= 1u << o->lane;
	}
	next = pick_next(eng);
	if (!next)
		fault(nullptr, "left the kernel, and no other thread of the block can go on");
	next->eng->cur = next;
	before_switch(nullptr, stack_low(next), (size_t)(stack_top(next) - stack_low(next)));
	cuemu_switch(&f->sp, next->sp);
	__builtin_unreachable();
}

/* Where a fiber begins. */
static void fiber_main()
{
	struct fiber *f = self();

	after_switch(nullptr, lead(f->eng));
	f->eng->job->kernel->call(f->eng->job->params);
	leave_kernel(self());
}

static void start_fiber(struct engine *eng, uint32_t i)
{
	struct fiber *f = fiber_at(eng, i);
	/* not all tops alike: they would share few lines of the cache */
	char *top = stack_top(f) - 256 - (i & 15) * 128;

	f->eng = eng;
	f->index = i;
	f->lane = i % 32;
	f->warp = i / 32;
	f->tid.x = i % eng->block_dim.x;
	f->tid.y = i / eng->block_dim.x % eng->block_dim.y;
	f->tid.z = i / (eng->block_dim.x * eng->block_dim.y);
	f->state = RUNS;
	eng->copies[i].clear();
	f->group = 0;
	f->arrives = f->waits = 0;
#ifdef CUEMU_ASAN
	__asan_unpoison_memory_region(stack_low(f), (size_t)(stack_top(f) - stack_low(f)));
#endif
	f->sp = new_stack(stack_low(f), top, fiber_main);
}

static void start_block(struct engine *eng)
{
	eng->live = eng->threads;
	eng->at_barrier = 0;
	eng->touched = 0;
	race_block(eng);
	async_start(eng);
	products_start(eng);
	for (uint32_t i = 0; i < eng->threads; i++)
		start_fiber(eng, i);
	for (uint32_t i = 0; i < eng->warps; i++) {
		uint32_t n = min(eng->threads - i * 32, 32u);

		eng->warp[i].live = n == 32 ? ~0u : (1u << n) - 1;
		eng->warp[i].ready = eng->warp[i].live;
		eng->warp[i].arrived = 0;
	}
	eng->cur = fiber_at(eng, 0);
}

void run_cluster(struct engine *eng)
{
	struct cluster *c = eng->cluster;
	struct fiber *first;

	eng->failed = false;
	eng->main_stack = nullptr;
	c->live = c->n;
	c->threads = c->n * eng->threads;
	c->left = c->arrived = c->phases = 0;
	for (uint32_t r = 0; r < c->n; r++)
		start_block(c->at[r]);
	first = pick(eng);
	first->eng->cur = first;
	before_switch(&eng->main_fake, stack_low(first),
		      (size_t)(stack_top(first) - stack_low(first)));
	cuemu_switch(&eng->main_sp, first->sp);
	after_switch(eng->main_fake, nullptr);
	for (uint32_t r = 0; r < c->n; r++)
		c->at[r]->cur = nullptr;
}

} /* namespace cuemu */
