/* SPDX-License-Identifier: MIT */
/*
 * What must hold in a store at any moment between two turns of its loop, right
 * after a restart too: words, records, owners, counts and lists agree.
 */
#ifndef TESTS_STORE_CHECK_H
#define TESTS_STORE_CHECK_H

#include <stdlib.h>
#include <string.h>
#include "daemon/store_priv.h"

struct check_sums {
	uint64_t state[5], pins, pinned, sealed, used, reserved;
};

static const char *check_place(struct cqd_store *st, uint32_t p, unsigned int kind,
			       uint64_t gen)
{
	struct cqd_place at = cqd_page_place(st, p, kind);
	const struct cq_page_hdr *h;
	uint64_t word;

	if (!at.seg)
		return "at.seg";
	if (at.slot >= at.seg->slots)
		return "at.slot < at.seg->slots";
	if (at.seg->kind != kind)
		return "at.seg->kind == kind";
	if (at.seg->shard != st->pages[p].shard)
		return "at.seg->shard == st->pages[p].shard";
	if (at.seg->owner[at.slot] != p)
		return "at.seg->owner[at.slot] == p";
	word = *cqd_segment_word(at.seg, at.slot);
	if (CQP_WORD_GEN(word) != gen)
		return "CQP_WORD_GEN(word) == gen";
	if (st->pages[p].state == CQP_FILLING)
		return NULL;
	if (CQP_WORD_STATE(word) != st->pages[p].state)
		return "CQP_WORD_STATE(word) == st->pages[p].state";
	if (st->pages[p].flags & CQD_PG_UNVERIFIED || st->pages[p].state == CQP_QUARANTINED)
		return NULL;
	if (!at.seg->mem.base)
		return NULL;
	h = (const void *)((uint8_t *)at.seg->mem.base + at.slot * at.seg->slot_bytes);
	if (h->magic != CQ_PAGE_MAGIC)
		return "h->magic == CQ_PAGE_MAGIC";
	if (memcmp(h->key, st->ix.pages[p].key, sizeof(h->key)))
		return "!memcmp(h->key, st->ix.pages[p].key, sizeof(h->key))";
	return NULL;
}

static const char *check_page(struct cqd_store *st, uint32_t p)
{
	const struct cqd_page *pg = &st->pages[p];
	const struct cqp_rec_page *r = &st->ix.pages[p];
	bool leaf = pg->child == CQP_NONE && !pg->pins && !pg->holds;
	const char *bad = NULL;

	if (CQP_WORD_STATE(r->word) != pg->state)
		return "CQP_WORD_STATE(r->word) == pg->state";
	if (pg->state == CQP_FREE)
		return "pg->state != CQP_FREE";
	if (!(!(pg->flags & CQD_PG_LRU) || (pg->state == CQP_SEALED && leaf)))
		return "!(pg->flags & CQD_PG_LRU) || (pg->state == CQP_SEALED && leaf)";
	if (!(pg->state != CQP_SEALED || leaf == !!(pg->flags & CQD_PG_LRU)))
		return "pg->state != CQP_SEALED || leaf == !!(pg->flags & CQD_PG_LRU)";
	if (pg->state == CQP_FILLING)
		return NULL;
	bad = check_place(st, p, CQD_CODES, r->slot_gen);
	if (!bad && (pg->flags & CQD_PG_SINK))
		bad = check_place(st, p, CQD_SINKS, r->sink_gen);
	if (bad || pg->state == CQP_QUARANTINED)
		return bad;
	if (pg->parent == CQP_NONE) {
		if (r->depth != 0)
			return "r->depth == 0";
		return NULL;
	}
	if (st->pages[pg->parent].shard != pg->shard)
		return "st->pages[pg->parent].shard == pg->shard";
	if (st->ix.pages[pg->parent].depth + 1 != r->depth)
		return "st->ix.pages[pg->parent].depth + 1 == r->depth";
	return NULL;
}

static const char *check_pages(struct cqd_store *st, struct check_sums *sum)
{
	const char *bad;
	uint32_t p;

	for (p = 0; p < st->ix.t_pages.high; p++) {
		if (!st->pages[p].shard) {
			if (CQP_WORD_STATE(st->ix.pages[p].word) != CQP_FREE)
				return "CQP_WORD_STATE(st->ix.pages[p].word) == CQP_FREE";
			continue;
		}
		bad = check_page(st, p);
		if (bad)
			return bad;
		sum->state[st->pages[p].state]++;
		sum->pins += st->pages[p].pins;
		sum->pinned += st->pages[p].pins > 0;
		sum->sealed++;
	}
	for (p = 1; p < 5; p++)
		if (sum->state[p] != st->n_state[p])
			return "sum->state[p] == st->n_state[p]";
	if (st->pages_pinned != sum->pinned)
		return "st->pages_pinned == sum->pinned";
	if (st->ix.t_pages.used != sum->sealed)
		return "st->ix.t_pages.used == sum->sealed";
	return NULL;
}

/* Owned slots belong to a page, all others are free, in word and list. */
static const char *check_segment(const struct cqd_segment *seg, struct check_sums *sum)
{
	uint32_t i, used = 0, listed = 0;

	for (i = 0; i < seg->slots; i++) {
		if (seg->owner[i] == CQD_OWNER_LEASE || seg->owner[i] == CQD_OWNER_LOST) {
			if (!seg->lease ||
			    (seg->owner[i] == CQD_OWNER_LEASE) != (seg->lease[i] != NULL))
				return "owner LEASE <=> a lease";
			used++;
			continue;
		}
		if (seg->owner[i] != CQP_NONE) {
			if (seg->st->pages[seg->owner[i]].shard != seg->shard)
				return "seg->st->pages[seg->owner[i]].shard == seg->shard";
			used++;
			continue;
		}
		if (CQP_WORD_STATE(*cqd_segment_word(seg, i)) != CQP_FREE)
			return "CQP_WORD_STATE(*cqd_segment_word(seg, i)) == CQP_FREE";
	}
	for (i = seg->free_head; i != CQP_NONE; i = seg->next_free[i]) {
		if (!(i < seg->slots && seg->owner[i] == CQP_NONE))
			return "i < seg->slots && seg->owner[i] == CQP_NONE";
		listed++;
		if (listed > seg->slots)
			return "listed <= seg->slots";
	}
	if (used != seg->used)
		return "used == seg->used";
	if (listed != seg->slots - used)
		return "listed == seg->slots - used";
	if (CQP_WORD_STATE(seg->st->ix.segs[seg->rec].word) != CQP_SEALED)
		return "CQP_WORD_STATE(seg->st->ix.segs[seg->rec].word) == CQP_SEALED";
	sum->used += used * seg->slot_bytes;
	sum->reserved += seg->lost ? 0 : seg->mem.bytes;
	return NULL;
}

static const char *check_segments(struct cqd_store *st, struct check_sums *sum)
{
	const char *bad;
	uint32_t i;

	for (i = 0; i < CQD_MAX_SEGMENTS; i++) {
		bad = st->segs[i] ? check_segment(st->segs[i], sum) : NULL;
		if (bad)
			return bad;
	}
	for (i = 0; i < st->n_pools; i++) {
		sum->used -= st->pool[i].used;
		sum->reserved -= st->pool[i].reserved;
	}
	if (sum->used)
		return "sum->used == used of all pools";
	if ((int64_t)sum->reserved > 0)
		return "sum->reserved <= reserved of all pools";
	return NULL;
}

static const char *check_pins(struct cqd_store *st, const struct check_sums *sum)
{
	uint64_t of_clients = 0, of_ns = 0, of_recs = 0, recs = 0, leases = 0;
	struct list_head *pos;
	uint32_t i;

	list_for_each(pos, &st->clients)
		of_clients += list_entry(pos, struct cqd_client, node)->n_pins;
	list_for_each(pos, &st->namespaces)
		of_ns += list_entry(pos, struct cqd_ns, node)->pins;
	for (i = 0; i < st->ix.t_pins.high; i++) {
		if (CQP_WORD_STATE(st->ix.pins[i].word) == CQP_FREE)
			continue;
		if (!st->client_at[st->ix.pins[i].client])
			return "st->client_at[st->ix.pins[i].client]";
		recs++;
		if (st->ix.pins[i].page == CQP_NONE) {
			leases++;
			continue;
		}
		if (!st->pages[st->ix.pins[i].page].shard)
			return "st->pages[st->ix.pins[i].page].shard";
		of_recs += st->ix.pins[i].count;
	}
	list_for_each(pos, &st->clients)
		leases -= list_entry(pos, struct cqd_client, node)->n_leases;
	if (leases)
		return "as many records as leases";
	if (!(of_clients == sum->pins && of_ns == sum->pins && of_recs == sum->pins))
		return "of_clients == sum->pins && of_ns == sum->pins && of_recs == sum->pins";
	if (st->ix.t_pins.used != recs)
		return "st->ix.t_pins.used == recs";
	return NULL;
}

/* NULL if everything holds, else what does not. */
__attribute__((unused))
static const char *store_check(struct cqd_store *st)
{
	struct check_sums sum = { .pins = 0 };
	const char *bad = check_pages(st, &sum);

	if (!bad)
		bad = check_segments(st, &sum);
	if (!bad)
		bad = check_pins(st, &sum);
	return bad;
}

#undef CHECK

#endif /* TESTS_STORE_CHECK_H */
