// SPDX-License-Identifier: MIT
/*
 * Whole segments: given back when another shard needs the memory, or the
 * machine does. A page cannot move while somebody may have it mapped, so a
 * segment is emptied by dropping what is in it, some pages per turn of the
 * loop.
 *
 * A segment may be chosen if nothing in it is in use, nor what descends from
 * it, if nobody must have closed it first (imports.c), and, when another shard
 * asks, if all of that goes before its own. That is looked at for a few
 * candidates only, and given up after CHECK pages: chains may be as long as
 * clients like.
 */
#include "daemon/store_priv.h"

#define PER_TURN	32	/* pages dropped per turn of the loop */
#define CANDIDATES	4
#define CHECK		8192
#define LOOK_US		100000
#define SQUEEZE		16	/* part of the pool given back at a time */

/* --- may it go? --- */

static bool busy(const struct cqd_page *pg)
{
	return pg->pins || pg->holds || pg->state == CQP_FILLING;
}

/* The page after @p in the tree below @top, children first; CQP_NONE. */
static uint32_t after(const struct cqd_store *st, uint32_t p, uint32_t top)
{
	if (st->pages[p].child != CQP_NONE)
		return st->pages[p].child;
	while (p != top && st->pages[p].sib_next == CQP_NONE)
		p = st->pages[p].parent;
	return p == top ? CQP_NONE : st->pages[p].sib_next;
}

/*
 * Nothing of @top and its descendants is in use, and all goes before page
 * @mine: those in other segments may be hotter than this one. Takes *@work down.
 */
static bool idle_below(const struct cqd_store *st, uint32_t top, uint32_t mine,
		       unsigned int *work)
{
	const struct cqp_rec_page *r;
	uint32_t p = top;

	do {
		r = &st->ix.pages[p];
		if (!*work || busy(&st->pages[p]) ||
		    !cqd_lru_before(st, r->priority, r->last_use_us, mine))
			return false;
		--*work;
		p = after(st, p, top);
	} while (p != CQP_NONE);
	return true;
}

/* Is it looked at as a descendant of another page of the segment? */
static bool covered(struct cqd_store *st, const struct cqd_segment *seg, uint32_t p)
{
	uint32_t parent = st->pages[p].parent;

	return parent != CQP_NONE && cqd_page_place(st, parent, seg->kind).seg == seg;
}

/* @mine: CQP_NONE: whatever is not in use may go. */
static bool may_go(struct cqd_store *st, const struct cqd_segment *seg, uint32_t mine)
{
	unsigned int work = CHECK;
	uint32_t i, p;

	if (seg->importers)
		return false;
	for (i = 0; i < seg->slots; i++) {
		p = seg->owner[i];
		if (p >= CQD_OWNER_LOST && p != CQP_NONE)
			return false;
		if (p != CQP_NONE && !covered(st, seg, p) &&
		    !idle_below(st, p, mine, &work))
			return false;
	}
	return true;
}

/* --- emptying --- */

static void begin(struct cqd_store *st, struct cqd_segment *seg, enum cqd_evict_reason why)
{
	seg->leaving = true;
	list_del(&seg->partial_node);
	st->emptying = seg;
	st->emptying_at = 0;
	st->emptying_why = why;
	cqd_evict_start(st);
}

/* Somebody uses one of its pages again: the rest stays as well. */
static void give_up(struct cqd_store *st, struct cqd_segment *seg)
{
	seg->leaving = false;
	st->emptying = NULL;
	if (seg->free_head != CQP_NONE && !seg->closed)
		list_add_tail(&seg->partial_node, &seg->shard->kind[seg->kind].partial);
	cqd_seal_kick_all(st);
}

/* Drops a page with its descendants, leaves first; false: one is in use. */
static bool drop(struct cqd_store *st, uint32_t p, unsigned int *work)
{
	uint32_t at = p, up;

	while (*work) {
		while (st->pages[at].child != CQP_NONE)
			at = st->pages[at].child;
		if (busy(&st->pages[at]))
			return false;
		up = st->pages[at].parent;
		cqd_evicted(st, at, st->emptying_why);
		cqd_page_drop(st, at);
		--*work;
		if (at == p)
			break;
		at = up;
	}
	return true;
}

static void step_emptying(struct cqd_store *st)
{
	struct cqd_segment *seg = st->emptying;
	unsigned int work = PER_TURN;
	uint32_t p;

	while (work && seg->used && st->emptying_at < seg->slots) {
		p = seg->owner[st->emptying_at];
		if (p == CQP_NONE) {
			st->emptying_at++;
		} else if (p >= CQD_OWNER_LOST || !drop(st, p, &work)) {
			give_up(st, seg);
			return;
		}
	}
	if (seg->used)
		return;
	if (seg->importers) {
		give_up(st, seg);
		return;
	}
	st->squeeze -= MIN(st->squeeze, st->emptying_why == CQD_EVICT_PRESSURE ?
			   seg->mem.bytes : 0);
	cqd_segment_retire(seg);
}

/* --- for another shard --- */

/* The segment of another shard in its pool that is the coldest, but none up to
 * @than. */
static struct cqd_segment *coldest(const struct cqd_store *st,
				   const struct cqd_shard *not_of,
				   const struct cqd_segment *than)
{
	struct cqd_segment *best = NULL, *seg;
	uint32_t i;

	for (i = 0; i < CQD_MAX_SEGMENTS; i++) {
		seg = st->segs[i];
		if (!seg || seg->shard == not_of || cqd_pool_of(seg) != not_of->pool ||
		    (than && seg->last_use <= than->last_use))
			continue;
		if (!best || seg->last_use < best->last_use)
			best = seg;
	}
	return best;
}

/**
 * cqd_evict_segment() - give the memory of another shard's segment back
 * @st: store
 * @sh: shard that needs room
 *
 * Taken only if all of it goes before the page of @sh that would have to go
 * otherwise. A look in vain is not repeated within LOOK_US.
 *
 * Return: true if a segment is on its way out.
 */
bool cqd_evict_segment(struct cqd_store *st, const struct cqd_shard *sh)
{
	const struct cqd_lru_of own = { .sh = sh };
	uint64_t now = cqd_now_us();
	struct cqd_segment *seg = NULL;
	unsigned int i;
	uint32_t mine;

	if (st->emptying)
		return true;
	if (sh->pool->last_look && now - sh->pool->last_look < LOOK_US)
		return false;
	sh->pool->last_look = now;
	mine = cqd_lru_first(st, &own);
	for (i = 0; i < CANDIDATES; i++) {
		seg = coldest(st, sh, seg);
		if (!seg)
			return false;
		if (!cqd_lru_before(st, seg->top, seg->last_use, mine) ||
		    !may_go(st, seg, mine))
			continue;
		sh->pool->last_look = 0;
		begin(st, seg, CQD_EVICT_SEGMENT);
		return true;
	}
	return false;
}

/* --- for the machine --- */

/* Does @a cost less than @b? Nearly empty ones first, then as pages go. */
static bool cheaper(const struct cqd_segment *a, const struct cqd_segment *b)
{
	bool sparse_a = a->used <= a->slots / 4, sparse_b = b->used <= b->slots / 4;

	if (sparse_a != sparse_b)
		return sparse_a;
	if (a->top != b->top)
		return a->top < b->top;
	return a->last_use < b->last_use;
}

static struct cqd_segment *cheapest(const struct cqd_store *st,
				    const struct cqd_segment *than)
{
	struct cqd_segment *best = NULL, *seg;
	uint32_t i;

	for (i = 0; i < CQD_MAX_SEGMENTS; i++) {
		seg = st->segs[i];
		if (!seg || !seg->used || cqd_pool_of(seg) != st->pool ||
		    (than && !cheaper(than, seg)))
			continue;
		if (!best || cheaper(seg, best))
			best = seg;
	}
	return best;
}

static bool squeeze_one(struct cqd_store *st)
{
	struct cqd_segment *seg = NULL;
	unsigned int i;

	for (i = 0; i < CANDIDATES; i++) {
		seg = cheapest(st, seg);
		if (!seg)
			return false;
		if (!may_go(st, seg, CQP_NONE))
			continue;
		begin(st, seg, CQD_EVICT_PRESSURE);
		return true;
	}
	return false;
}

/**
 * cqd_evict_segment_step() - one turn of the loop
 * @st: store
 *
 * Return: true if there is more to do.
 */
bool cqd_evict_segment_step(struct cqd_store *st)
{
	if (st->emptying)
		step_emptying(st);
	else if (st->squeeze && !squeeze_one(st))
		st->squeeze = 0;
	return st->emptying || st->squeeze;
}

/**
 * cqd_store_squeeze() - the machine is short of memory
 * @st: store
 *
 * Gives 1/SQUEEZE of the host's segments back, and again when it is called
 * again. Empty segments go at once, others are emptied turn by turn: nearly empty ones
 * first, then those of the lowest priority and the oldest use. What is in use
 * stays, so it may be less.
 */
void cqd_store_squeeze(struct cqd_store *st)
{
	uint64_t bytes = MAX(st->pool[0].reserved / SQUEEZE, 1);
	uint64_t empty = cqd_segment_trim(st, st->pool);

	st->squeeze = bytes - MIN(bytes, empty);
	if (st->squeeze)
		cqd_evict_start(st);
}
