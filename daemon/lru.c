// SPDX-License-Identifier: MIT
/*
 * The order in which pages go: lowest priority first, then the least often
 * used, then the least recently used.
 *
 * Each shard has the queues of MQ (Zhou, Philbin, Li: "The Multi-Queue
 * Replacement Algorithm for Second Level Buffer Caches", USENIX 2001) for each
 * priority: queue k holds pages that lookups matched 2^k - 1 to 2^(k+1) - 2
 * times, oldest first. A page met once never outlives one that is used again
 * and again, however many such pages pass. The counter is halved each half_us
 * microseconds (counted on one clock for all pages, when it is next looked
 * at), so what was hot long ago sinks; the old ends of the queues are looked
 * at whenever a victim is chosen, one step each, as in MQ.
 *
 * Only leaves without pins and holds are listed. A pinned page is no leaf's
 * business: its ancestors have a child.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/store_priv.h"

#define WALK	64	/* steps of a sorted insertion */
#define LOOK	64	/* shards compared for one victim */

/**
 * cqd_lru_make() - the queues of a shard
 * @sh: shard that gets a segment
 *
 * Return: 0, also if it has them; -ENOMEM.
 */
int cqd_lru_make(struct cqd_shard *sh)
{
	if (sh->lru)
		return 0;
	sh->lru = malloc(sizeof(*sh->lru));
	if (!sh->lru)
		return -ENOMEM;
	/* Of the queues only what is used is ever written. */
	memset(sh->lru->priorities, 0, sizeof(sh->lru->priorities));
	memset(sh->lru->levels, 0, sizeof(sh->lru->levels));
	return 0;
}

/* --- uses --- */

static uint64_t used_at(const struct cqd_store *st, uint32_t p)
{
	return st->ix.pages[p].last_use_us;
}

/**
 * cqd_lru_uses() - how often a page was used, old uses counting less
 * @st:  store
 * @p:   page
 * @now: in us, as cqd_now_us()
 *
 * Return: its counter as of @now.
 */
uint32_t cqd_lru_uses(const struct cqd_store *st, uint32_t p, uint64_t now)
{
	const struct cqp_rec_page *r = &st->ix.pages[p];
	uint64_t then = r->last_use_us / st->half_us, halvings;

	halvings = now / st->half_us > then ? now / st->half_us - then : 0;
	return MIN(r->uses, CQD_MAX_USES) >> MIN(halvings, 31u);
}

static unsigned int level_of(const struct cqd_store *st, uint32_t p, uint64_t now)
{
	uint32_t uses = cqd_lru_uses(st, p, now);

	return (unsigned int)MIN(31 - __builtin_clz(uses + 1), CQD_LEVELS - 1);
}

/**
 * cqd_lru_note() - what a page tells about its segments
 * @st: store
 * @p:  page with slots
 */
void cqd_lru_note(struct cqd_store *st, uint32_t p)
{
	const struct cqp_rec_page *r = &st->ix.pages[p];
	unsigned int k;

	for (k = 0; k < CQD_N_KINDS; k++) {
		struct cqd_segment *seg = cqd_page_place(st, p, k).seg;

		if (!seg)
			continue;
		seg->last_use = MAX(seg->last_use, r->last_use_us);
		seg->top = MAX(seg->top, r->priority);
	}
}

/**
 * cqd_lru_used() - a page was used
 * @st:   store
 * @p:    page
 * @at:   when, in us; nothing is done if it was used later
 * @uses: added to its counter
 *
 * Does not move it: see cqd_page_touch().
 */
void cqd_lru_used(struct cqd_store *st, uint32_t p, uint64_t at, uint32_t uses)
{
	struct cqp_rec_page *r = &st->ix.pages[p];

	if (at < r->last_use_us)
		return;
	r->uses = MIN(cqd_lru_uses(st, p, at) + uses, CQD_MAX_USES);
	r->last_use_us = at;
	cqd_lru_note(st, p);
}

/* --- lists --- */

/* After @prev, CQP_NONE: as the oldest. The queue is not empty. */
static void insert_after(struct cqd_store *st, uint32_t prev, uint32_t p)
{
	struct cqd_page *pg = &st->pages[p];
	struct cqd_lru *lru = pg->shard->lru;
	uint32_t *old = &lru->queue[pg->priority][pg->level].old;
	uint32_t *new = &lru->queue[pg->priority][pg->level].new;

	pg->lru_prev = prev;
	pg->lru_next = prev == CQP_NONE ? *old : st->pages[prev].lru_next;
	if (prev == CQP_NONE)
		*old = p;
	else
		st->pages[prev].lru_next = p;
	if (pg->lru_next == CQP_NONE)
		*new = p;
	else
		st->pages[pg->lru_next].lru_prev = p;
}

/*
 * A page just used goes to the new end. One that became a leaf because its
 * last child went is about as old as that child was, and one that sank is old:
 * the place of these is looked for from the old end. WALK bounds the work;
 * beyond it the order is approximate.
 */
static void insert_sorted(struct cqd_store *st, uint32_t p)
{
	const struct cqd_page *pg = &st->pages[p];
	const struct cqd_lru *lru = pg->shard->lru;
	uint32_t new = lru->queue[pg->priority][pg->level].new;
	uint32_t next = lru->queue[pg->priority][pg->level].old;
	uint32_t prev = CQP_NONE;
	unsigned int i;

	if (used_at(st, new) <= used_at(st, p)) {
		insert_after(st, new, p);
		return;
	}
	for (i = 0; i < WALK && next != CQP_NONE && used_at(st, next) <= used_at(st, p);
	     i++) {
		prev = next;
		next = st->pages[next].lru_next;
	}
	insert_after(st, prev, p);
}

static void insert(struct cqd_store *st, uint32_t p, unsigned int level)
{
	struct cqd_page *pg = &st->pages[p];
	struct cqd_lru *lru = pg->shard->lru;
	unsigned int priority = st->ix.pages[p].priority;

	pg->priority = (uint8_t)priority;
	pg->level = (uint8_t)level;
	if (lru->levels[priority] & 1u << level) {
		insert_sorted(st, p);
	} else {
		pg->lru_prev = CQP_NONE;
		pg->lru_next = CQP_NONE;
		lru->queue[priority][level].old = p;
		lru->queue[priority][level].new = p;
		lru->levels[priority] |= (uint8_t)(1u << level);
		lru->priorities[priority / 64] |= 1ull << priority % 64;
	}
}

/**
 * cqd_lru_add() - a page became evictable
 * @st: store
 * @p:  leaf without pins; nothing is done if it is listed already
 */
void cqd_lru_add(struct cqd_store *st, uint32_t p)
{
	struct cqd_shard *sh = st->pages[p].shard;

	if (st->pages[p].flags & CQD_PG_LRU)
		return;
	insert(st, p, level_of(st, p, cqd_now_us()));
	st->pages[p].flags |= CQD_PG_LRU;
	cqd_ttl_add(st, p);
	if (!list_empty(&sh->leafy))
		return;
	list_add_tail(&sh->leafy, &st->leafy);
	list_add_tail(&sh->ns_leafy, &sh->ns->leafy);
}

static bool none_left(const struct cqd_lru *lru)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(lru->priorities); i++)
		if (lru->priorities[i])
			return false;
	return true;
}

static void queue_empty(struct cqd_lru *lru, unsigned int priority, unsigned int level)
{
	lru->levels[priority] &= (uint8_t)~(1u << level);
	if (!lru->levels[priority])
		lru->priorities[priority / 64] &= ~(1ull << priority % 64);
}

static void take_out(struct cqd_store *st, uint32_t p)
{
	const struct cqd_page *pg = &st->pages[p];
	struct cqd_lru *lru = pg->shard->lru;
	unsigned int priority = pg->priority, level = pg->level;

	if (pg->lru_prev == CQP_NONE)
		lru->queue[priority][level].old = pg->lru_next;
	else
		st->pages[pg->lru_prev].lru_next = pg->lru_next;
	if (pg->lru_next == CQP_NONE)
		lru->queue[priority][level].new = pg->lru_prev;
	else
		st->pages[pg->lru_next].lru_prev = pg->lru_prev;
	if (pg->lru_prev == CQP_NONE && pg->lru_next == CQP_NONE)
		queue_empty(lru, priority, level);
}

/**
 * cqd_lru_del() - a page is not evictable any more
 * @st: store
 * @p:  page, listed or not
 */
void cqd_lru_del(struct cqd_store *st, uint32_t p)
{
	struct cqd_page *pg = &st->pages[p];

	if (!(pg->flags & CQD_PG_LRU))
		return;
	take_out(st, p);
	pg->flags &= (uint8_t)~CQD_PG_LRU;
	cqd_ttl_del(st, p);
	if (!none_left(pg->shard->lru))
		return;
	list_del(&pg->shard->leafy);
	list_del(&pg->shard->ns_leafy);
}

/* --- choosing --- */

/*
 * What has not been used for long sinks: the oldest of each queue is looked at.
 * The shard keeps its place among the others, which somebody is walking along.
 */
static void sink(struct cqd_store *st, struct cqd_lru *lru, unsigned int priority,
		 uint64_t now)
{
	unsigned int level, to;
	uint32_t p;

	for (level = 1; level < CQD_LEVELS; level++) {
		if (!(lru->levels[priority] & 1u << level))
			continue;
		p = lru->queue[priority][level].old;
		to = level_of(st, p, now);
		if (to == level)
			continue;
		take_out(st, p);
		insert(st, p, to);
	}
}

static unsigned int lowest(const struct cqd_lru *lru)
{
	unsigned int i = 0;

	while (!lru->priorities[i])
		i++;
	return i * 64 + (unsigned int)__builtin_ctzll(lru->priorities[i]);
}

/* The first page of a shard that has some. */
static uint32_t first_in(struct cqd_store *st, struct cqd_lru *lru, uint64_t now)
{
	unsigned int priority = lowest(lru);

	sink(st, lru, priority, now);
	return lru->queue[priority][__builtin_ctz(lru->levels[priority])].old;
}

/* The same among those last used before @before. */
static uint32_t first_before(const struct cqd_store *st, const struct cqd_lru *lru,
			     uint64_t before)
{
	unsigned int priority, level;

	for (priority = lowest(lru); priority < CQD_PRIORITIES; priority++)
		for (level = 0; level < CQD_LEVELS; level++)
			if (lru->levels[priority] & 1u << level &&
			    used_at(st, lru->queue[priority][level].old) < before)
				return lru->queue[priority][level].old;
	return CQP_NONE;
}

/* Does @a go before @b? */
static bool goes_before(const struct cqd_store *st, uint32_t a, uint32_t b)
{
	const struct cqd_page *x = &st->pages[a], *y = &st->pages[b];

	if (x->priority != y->priority)
		return x->priority < y->priority;
	if (x->level != y->level)
		return x->level < y->level;
	return used_at(st, a) < used_at(st, b);
}

/**
 * cqd_lru_before() - does something go before a page?
 * @st:       store
 * @priority: of what is asked for
 * @use:      when it was last used, in us
 * @p:        page, CQP_NONE: nothing that could go
 *
 * Return: true if @priority is lower or, being the same, @use is older.
 */
bool cqd_lru_before(const struct cqd_store *st, uint8_t priority, uint64_t use,
		    uint32_t p)
{
	if (p == CQP_NONE)
		return true;
	if (priority != st->ix.pages[p].priority)
		return priority < st->ix.pages[p].priority;
	return use < used_at(st, p);
}

static bool in_shard(const struct cqd_lru_of *of, const struct cqd_shard *sh)
{
	return (!of->model || sh->model == of->model) && (!of->pool || sh->pool == of->pool);
}

/**
 * cqd_lru_matches() - is a page among those asked for?
 * @st: store
 * @p:  page
 * @of: which
 */
bool cqd_lru_matches(const struct cqd_store *st, uint32_t p, const struct cqd_lru_of *of)
{
	const struct cqd_shard *sh = st->pages[p].shard;

	return (!of->sh || sh == of->sh) && (!of->ns || sh->ns == of->ns) &&
	       in_shard(of, sh) &&
	       (!of->before || used_at(st, p) < of->before);
}

static uint32_t better(struct cqd_store *st, struct cqd_shard *sh, uint32_t best,
		       const struct cqd_lru_of *of, uint64_t now)
{
	uint32_t p;

	p = of->before ? first_before(st, sh->lru, of->before) : first_in(st, sh->lru, now);
	if (p == CQP_NONE || (best != CQP_NONE && !goes_before(st, p, best)))
		return best;
	return p;
}

/* Among the shards of a namespace: not many, they take its quota. */
static uint32_t first_of_ns(struct cqd_store *st, const struct cqd_lru_of *of,
			    uint64_t now)
{
	uint32_t best = CQP_NONE;
	struct list_head *pos;

	list_for_each(pos, &of->ns->leafy) {
		struct cqd_shard *sh = list_entry(pos, struct cqd_shard, ns_leafy);

		if (in_shard(of, sh))
			best = better(st, sh, best, of, now);
	}
	return best;
}

/*
 * Among all shards: the best of LOOK, and the next LOOK at the next time, so
 * that many shards cost no more than some. An administrator's filter sees all.
 */
static uint32_t first_of_all(struct cqd_store *st, const struct cqd_lru_of *of,
			     uint64_t now)
{
	bool filter = of->model || of->before;
	uint32_t best = CQP_NONE;
	struct list_head *pos;
	unsigned int i = 0;

	list_for_each(pos, &st->leafy) {
		struct cqd_shard *sh = list_entry(pos, struct cqd_shard, leafy);

		if (!in_shard(of, sh))
			continue;
		if (!filter && i++ == LOOK)
			break;
		best = better(st, sh, best, of, now);
	}
	if (pos != &st->leafy) {
		list_del(&st->leafy);
		list_add_tail(&st->leafy, pos);
	}
	return best;
}

/**
 * cqd_lru_first() - the page that goes first
 * @st: store
 * @of: among which
 *
 * Return: page, still listed; CQP_NONE if none of them may go.
 */
uint32_t cqd_lru_first(struct cqd_store *st, const struct cqd_lru_of *of)
{
	uint64_t now = cqd_now_us();

	if (!of->sh)
		return of->ns ? first_of_ns(st, of, now) : first_of_all(st, of, now);
	if (list_empty(&of->sh->leafy))
		return CQP_NONE;
	return of->before ? first_before(st, of->sh->lru, of->before) :
			    first_in(st, of->sh->lru, now);
}
