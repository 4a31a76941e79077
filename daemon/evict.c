// SPDX-License-Identifier: MIT
/*
 * Eviction: leaves only, least recently used first, never a pinned page. A
 * pinned page is no leaf's business: its ancestors have a child, so no list
 * holds them.
 *
 * Each shard has its list, oldest first. Above the high watermark victims are
 * marked EVICTING and freed from the idle handler, some per turn of the loop,
 * so that a lookup in between can take one back.
 */
#include "daemon/store_priv.h"

#define WALK		64	/* steps of a sorted insertion */
#define PER_TURN	32	/* pages freed per turn of the loop */
#define LOOK_US		100000

/* --- LRU --- */

static uint64_t used_at(const struct cqd_store *st, uint32_t p)
{
	return st->ix.pages[p].last_use_us;
}

/* After @prev, CQP_NONE: as the oldest. */
static void insert_after(struct cqd_store *st, struct cqd_shard *sh, uint32_t prev,
			 uint32_t p)
{
	struct cqd_page *pg = &st->pages[p];

	pg->lru_prev = prev;
	pg->lru_next = prev == CQP_NONE ? sh->lru_old : st->pages[prev].lru_next;
	if (prev == CQP_NONE)
		sh->lru_old = p;
	else
		st->pages[prev].lru_next = p;
	if (pg->lru_next == CQP_NONE)
		sh->lru_new = p;
	else
		st->pages[pg->lru_next].lru_prev = p;
	pg->flags |= CQD_PG_LRU;
}

/**
 * cqd_lru_add() - a page became evictable
 * @st: store
 * @p:  leaf without pins; nothing is done if it is listed already
 *
 * A page just used goes to the new end. One that became a leaf because its
 * last child went is about as old as that child was: its place is looked for
 * from the old end. WALK bounds the work; beyond it the order is approximate.
 */
void cqd_lru_add(struct cqd_store *st, uint32_t p)
{
	struct cqd_shard *sh = st->pages[p].shard;
	uint32_t prev = CQP_NONE, next = sh->lru_old;
	unsigned int i;

	if (st->pages[p].flags & CQD_PG_LRU)
		return;
	if (sh->lru_new != CQP_NONE && used_at(st, sh->lru_new) <= used_at(st, p)) {
		insert_after(st, sh, sh->lru_new, p);
		return;
	}
	for (i = 0; i < WALK && next != CQP_NONE && used_at(st, next) <= used_at(st, p);
	     i++) {
		prev = next;
		next = st->pages[next].lru_next;
	}
	insert_after(st, sh, prev, p);
}

/**
 * cqd_lru_del() - a page is not evictable any more
 * @st: store
 * @p:  page, listed or not
 */
void cqd_lru_del(struct cqd_store *st, uint32_t p)
{
	struct cqd_page *pg = &st->pages[p];
	struct cqd_shard *sh = pg->shard;

	if (!(pg->flags & CQD_PG_LRU))
		return;
	if (pg->lru_prev == CQP_NONE)
		sh->lru_old = pg->lru_next;
	else
		st->pages[pg->lru_prev].lru_next = pg->lru_next;
	if (pg->lru_next == CQP_NONE)
		sh->lru_new = pg->lru_prev;
	else
		st->pages[pg->lru_next].lru_prev = pg->lru_prev;
	pg->flags &= (uint8_t)~CQD_PG_LRU;
}

/* --- victims --- */

static void victim_unlist(struct cqd_store *st, uint32_t p)
{
	struct cqd_page *pg = &st->pages[p];

	if (pg->lru_prev == CQP_NONE)
		st->evicting = pg->lru_next;
	else
		st->pages[pg->lru_prev].lru_next = pg->lru_next;
	if (pg->lru_next != CQP_NONE)
		st->pages[pg->lru_next].lru_prev = pg->lru_prev;
}

static void victim_list(struct cqd_store *st, uint32_t p)
{
	struct cqd_page *pg = &st->pages[p];

	cqd_lru_del(st, p);
	cqd_page_event(st, p, CQD_EV_EVICT);
	pg->lru_prev = CQP_NONE;
	pg->lru_next = st->evicting;
	if (st->evicting != CQP_NONE)
		st->pages[st->evicting].lru_prev = p;
	st->evicting = p;
}

static void reclaim(struct cqd_store *st, uint32_t p)
{
	victim_unlist(st, p);
	cqd_page_free(st, p, CQD_EV_RECLAIM);
	st->evictions++;
}

/**
 * cqd_evict_take_back() - a victim is wanted again
 * @st: store
 * @p:  page in state EVICTING
 */
void cqd_evict_take_back(struct cqd_store *st, uint32_t p)
{
	victim_unlist(st, p);
	cqd_page_event(st, p, CQD_EV_TAKE_BACK);
	cqd_page_settle(st, p);
}

static bool wanted(const struct cqd_shard *sh, const struct cqd_shard *only,
		   const struct cqd_ns *ns)
{
	return (!only || sh == only) && (!ns || sh->ns == ns);
}

/* Oldest leaf among the shards asked for. */
static uint32_t oldest(struct cqd_store *st, const struct cqd_shard *only,
		       const struct cqd_ns *ns)
{
	uint32_t best = CQP_NONE;
	struct list_head *pos;

	list_for_each(pos, &st->shards) {
		const struct cqd_shard *sh = list_entry(pos, struct cqd_shard, node);

		if (!wanted(sh, only, ns) || sh->lru_old == CQP_NONE)
			continue;
		if (best == CQP_NONE || used_at(st, sh->lru_old) < used_at(st, best))
			best = sh->lru_old;
	}
	return best;
}

/**
 * cqd_evict_one() - free one page now
 * @st: store
 * @sh: of this shard, or NULL
 * @ns: of this namespace, or NULL
 *
 * Pages marked as victims already go first.
 *
 * Return: false if none may go.
 */
bool cqd_evict_one(struct cqd_store *st, struct cqd_shard *sh, struct cqd_ns *ns)
{
	uint32_t p = st->evicting;

	while (p != CQP_NONE && !wanted(st->pages[p].shard, sh, ns))
		p = st->pages[p].lru_next;
	if (p == CQP_NONE) {
		p = oldest(st, sh, ns);
		if (p == CQP_NONE)
			return false;
		victim_list(st, p);
	}
	reclaim(st, p);
	return true;
}

/* --- watermarks --- */

static bool above(const struct cqd_store *st, uint32_t percent, uint64_t less)
{
	return st->pool_used > less &&
	       st->pool_used - less > st->o.pool_bytes / 100 * percent;
}

/* Marks victims, oldest first; true if there are any. */
static bool mark(struct cqd_store *st)
{
	uint64_t marked = 0;
	unsigned int i;
	uint32_t p;

	for (i = 0; i < PER_TURN && above(st, st->o.low, marked); i++) {
		p = oldest(st, NULL, NULL);
		if (p == CQP_NONE)
			break;
		marked += cqd_page_bytes(st->pages[p].shard,
					 st->pages[p].flags & CQD_PG_SINK);
		victim_list(st, p);
	}
	return i > 0;
}

/**
 * cqd_evict_idle() - one turn of the loop while victims wait
 * @idle: of the store
 */
void cqd_evict_idle(uv_idle_t *idle)
{
	struct cqd_store *st = idle->data;
	unsigned int i;

	for (i = 0; i < PER_TURN && st->evicting != CQP_NONE; i++)
		reclaim(st, st->evicting);
	if (st->evicting != CQP_NONE)
		return;
	if (!above(st, st->o.low, 0) || !mark(st)) {
		st->draining = false;
		uv_idle_stop(idle);
	}
}

/**
 * cqd_evict_kick() - begin to evict if the pool is above its high watermark
 * @st: store; called after pages were added
 */
void cqd_evict_kick(struct cqd_store *st)
{
	if (st->draining || st->closing || !st->o.high || st->o.high >= 100 ||
	    !above(st, st->o.high, 0) || !mark(st))
		return;
	st->draining = true;
	uv_idle_start(&st->idle, cqd_evict_idle);
}

/* --- whole segments --- */

/* Marks every page that is in use or has a descendant in use. */
static void mark_busy(struct cqd_store *st)
{
	uint32_t i, p;

	for (i = 0; i < st->ix.t_pages.high; i++)
		st->pages[i].flags &= (uint8_t)~CQD_PG_BUSY;
	for (i = 0; i < st->ix.t_pages.high; i++) {
		const struct cqd_page *pg = &st->pages[i];

		if (!pg->shard || (!pg->pins && !pg->holds && pg->state != CQP_FILLING))
			continue;
		for (p = i; p != CQP_NONE && !(st->pages[p].flags & CQD_PG_BUSY);
		     p = st->pages[p].parent)
			st->pages[p].flags |= CQD_PG_BUSY;
	}
}

/* Newest use in a segment all of whose pages may go; UINT64_MAX if not. */
static uint64_t newest_use(const struct cqd_store *st, const struct cqd_segment *seg)
{
	uint64_t newest = 0;
	uint32_t i, p;

	for (i = 0; i < seg->slots; i++) {
		p = seg->owner[i];
		if (p == CQP_NONE)
			continue;
		if (st->pages[p].flags & CQD_PG_BUSY)
			return UINT64_MAX;
		newest = MAX(newest, used_at(st, p));
	}
	return newest;
}

/* The segment of another shard whose newest page is the oldest. */
static struct cqd_segment *coldest(struct cqd_store *st, const struct cqd_shard *not_of,
				   uint64_t older_than)
{
	struct cqd_segment *best = NULL;
	uint64_t age, best_age = older_than;
	uint32_t i;

	mark_busy(st);
	for (i = 0; i < CQD_MAX_SEGMENTS; i++) {
		if (!st->segs[i] || st->segs[i]->shard == not_of)
			continue;
		age = newest_use(st, st->segs[i]);
		if (age < best_age) {
			best = st->segs[i];
			best_age = age;
		}
	}
	return best;
}

/**
 * cqd_evict_segment() - give the memory of another shard's segment back
 * @st: store
 * @sh: shard that needs room
 *
 * Taken only if all of it is older than the oldest leaf of @sh (which would
 * have to go otherwise). Looks at every page, so no more than ten times per
 * second: between two looks the answer is no.
 *
 * Return: true if a segment is being destroyed.
 */
bool cqd_evict_segment(struct cqd_store *st, const struct cqd_shard *sh)
{
	uint64_t now = cqd_now_us();
	struct cqd_segment *best;
	uint32_t i;

	if (st->last_look && now - st->last_look < LOOK_US)
		return false;
	st->last_look = now;
	best = coldest(st, sh, sh->lru_old == CQP_NONE ? UINT64_MAX :
		       used_at(st, sh->lru_old));
	if (!best)
		return false;
	st->last_look = 0;
	for (i = 0; i < best->slots; i++) {
		if (best->owner[i] == CQP_NONE)
			continue;
		cqd_page_drop(st, best->owner[i]);
		st->evictions++;
	}
	return cqd_segment_retire(best);
}
