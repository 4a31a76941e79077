// SPDX-License-Identifier: MIT
/*
 * Named barriers, mbarriers, and copies in bulk, which these count.
 */
#include "tests/emu/hopper.hpp"
#include "tests/emu/job.hpp"

namespace cuemu {

/* What an mbarrier's word holds: to be seen when somebody writes there. */
static const uint64_t MBARRIER = 0x7ff4cb0ba441e4ffu;

/* Where dynamic shared memory begins on a device: behind what the system has. */
static const uint32_t DYN_AT = 1024;

void async_start(struct engine *eng)
{
	for (struct named_barrier &b : eng->named)
		b = {};
	eng->mbarriers.clear();
	eng->bulks.clear();
}

void async_end(struct engine *eng)
{
	bool unseen = !eng->bulks.empty();

	for (const struct mbarrier &m : eng->mbarriers)
		unseen |= m.unseen;
	if (unseen)
		fault(nullptr, "left the kernel, and nobody has waited for a copy in bulk");
	for (uint32_t i = 1; i < NAMED; i++)
		if (eng->named[i].arrived)
			fault(nullptr, "left the kernel when %u of %u threads have come to barrier "
			      "%u", eng->named[i].arrived, eng->named[i].count, i);
}

/* A warp has come; all its lanes get the round of the barrier that it is in. */
static void warp_comes(struct engine *eng, struct warp *w, uint32_t first, uint32_t id,
		       uint32_t threads, struct place at)
{
	struct named_barrier *b = &eng->named[id];

	if (b->arrived && b->count != threads)
		fault(&at, "barrier %u of %u threads, but others came to it as one of %u", id,
		      threads, b->count);
	for (uint32_t i = 0; i < 32; i++) {
		race_release(fiber_at(eng, first + i), &b->coming);
		w->lanes[i].u = b->round;
	}
	b->count = threads;
	b->arrived += 32;
	if (b->arrived < threads)
		return;
	b->arrived = 0;
	b->round++;
	b->come.swap(b->coming);
	b->coming.clear();
	wake(eng);
}

void barrier_come(const char *op, uint32_t id, uint32_t threads, bool wait, struct place at)
{
	struct fiber *f = self();
	struct engine *eng = f->eng;
	uint64_t what = (uint64_t)id << 32 | threads;
	uint32_t round;

	if (!id || id >= NAMED)
		fault(&at, "%s of barrier %u: there are 1 to 15, and 0 is __syncthreads()", op, id);
	if (!threads || threads % 32 || threads > eng->threads)
		fault(&at, "%s of %u threads: not warps, or more than the block has", op, threads);
	operand_of(f)->u = what;
	collective(op, ~0u, at, [&](struct warp *w, uint32_t group) {
		if (group != ~0u)
			fault(&at, "%s by a warp of which lanes have left", op);
		for (uint32_t i = 0; i < 32; i++)
			if (w->lanes[i].u != what)
				fault(&at, "%s: lanes of a warp come to different barriers", op);
		warp_comes(eng, w, f->warp * 32, id, threads, at);
	});
	round = (uint32_t)operand_of(f)->u;
	while (wait && eng->named[id].round == round)
		wait_awhile(f, op, at);
	if (wait)
		race_acquire(f, eng->named[id].come);
}

static struct mbarrier *mbarrier_at(const char *op, const uint64_t *bar, struct place at)
{
	struct engine *eng = self()->eng;

	if (!is_shared(eng, bar, 8) || reinterpret_cast<uintptr_t>(bar) % 8)
		fault(&at, "%s: %p is no word of shared memory", op, bar);
	for (struct mbarrier &m : eng->mbarriers)
		if (m.at == bar) {
			race_access(self(), bar, 8, false, true, __builtin_return_address(0));
			if (*bar != MBARRIER)
				fault(&at, "%s: the mbarrier has been written to", op);
			return &m;
		}
	fault(&at, "%s of an mbarrier that nobody has set up", op);
}

void mbarrier_init(uint64_t *bar, uint32_t count, struct place at)
{
	struct engine *eng = self()->eng;

	if (!is_shared(eng, bar, 8) || reinterpret_cast<uintptr_t>(bar) % 8)
		fault(&at, "cq_mbar_init: %p is no word of shared memory", bar);
	if (!count || count >= 1u << 20)
		fault(&at, "cq_mbar_init of %u arrivals", count);
	for (const struct mbarrier &m : eng->mbarriers)
		if (m.at == bar)
			fault(&at, "cq_mbar_init of an mbarrier that is set up");
	race_access(self(), bar, 8, true, false, __builtin_return_address(0));
	*bar = MBARRIER;
	eng->mbarriers.push_back({ bar, count, count, 0, 0, false, {}, {} });
}

/* The phase ends when all have come and all bytes are there. */
static void mbarrier_step(struct engine *eng, struct mbarrier *m)
{
	if (m->pending || m->bytes)
		return;
	m->pending = m->count;
	m->phase++;
	m->come.swap(m->coming);
	m->coming.clear();
	wake(eng);
}

void mbarrier_arrive(const char *op, uint64_t *bar, uint32_t bytes, struct place at)
{
	struct fiber *f = self();
	struct mbarrier *m = mbarrier_at(op, bar, at);

	if (!m->pending)
		fault(&at, "%s: more arrivals than the mbarrier's %u, of which bytes are still to "
		      "come", op, m->count);
	race_release(f, &m->coming);
	m->bytes += bytes;
	m->pending--;
	mbarrier_step(f->eng, m);
}

void mbarrier_wait(uint64_t *bar, uint32_t parity, struct place at)
{
	struct fiber *f = self();
	size_t i = (size_t)(mbarrier_at("cq_mbar_wait", bar, at) - &f->eng->mbarriers[0]);

	while ((f->eng->mbarriers[i].phase & 1) == (parity & 1))
		wait_awhile(f, "cq_mbar_wait", at);
	f->eng->mbarriers[i].unseen = false;
	race_acquire(f, f->eng->mbarriers[i].come);
}

void bulk_load(void *s, const void *g, uint32_t bytes, uint64_t *bar, struct place at)
{
	struct fiber *f = self();
	struct mbarrier *m = mbarrier_at("cq_bulk_load", bar, at);

	if (!bytes || bytes % 16)
		fault(&at, "cq_bulk_load of %u bytes, which is no multiple of 16", bytes);
	if (!is_shared(f->eng, s, bytes))
		fault(&at, "cq_bulk_load to %p, which is not shared memory of the block", s);
	if (reinterpret_cast<uintptr_t>(s) % 16 || reinterpret_cast<uintptr_t>(g) % 16)
		fault(&at, "cq_bulk_load from %p to %p: not aligned to 16 bytes", g, s);
	race_access(f, s, bytes, true, false, __builtin_return_address(0));
	race_pending(f, s, bytes, true);
	memset(s, 0xff, bytes);
	f->eng->bulks.push_back({ s, g, bytes, (uint32_t)(m - &f->eng->mbarriers[0]) });
}

bool bulk_land(struct engine *eng)
{
	size_t n = eng->bulks.size(), i;

	if (!n)
		return false;
	i = draw(eng, (uint32_t)n);
	struct bulk c = eng->bulks[i];
	struct mbarrier *m = &eng->mbarriers[c.mbarrier];

	eng->bulks[i] = eng->bulks[n - 1];
	eng->bulks.pop_back();
	memcpy(c.dst, c.src, c.bytes);
	race_landed(eng, c.dst, c.bytes, c.mbarrier, &m->coming);
	m->bytes -= c.bytes;
	m->unseen = true;
	mbarrier_step(eng, m);
	return true;
}

void fence_async()
{
	race_fence(self());
}

uint32_t shared_address(const void *s, struct place at)
{
	const struct engine *eng = self()->eng;
	const char *p = static_cast<const char *>(s);

	if (p < eng->dyn || p >= eng->dyn + eng->dyn_bytes)
		fault(&at, "%p is not dynamic shared memory of the block", s);
	return DYN_AT + (uint32_t)(p - eng->dyn);
}

void check_dyn_alignment(uint32_t align, struct place at)
{
	if (reinterpret_cast<uintptr_t>(self()->eng->dyn) % align)
		fault(&at, "dynamic shared memory of %u bytes, which is no multiple of %u",
		      self()->eng->dyn_bytes, align);
}

} /* namespace cuemu */
