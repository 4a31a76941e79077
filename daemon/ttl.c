// SPDX-License-Identifier: MIT
/*
 * Time to live: pages that may go and have one are on a timing wheel (Varghese
 * and Lauck, "Hashed and hierarchical timing wheels", SOSP 1987), by the second
 * at which they expire. What expires later than the wheel reaches lies in its
 * last slot and is put there again when its turn comes.
 */
#include "daemon/store_priv.h"

#define SEC	1000000ull
#define FIRST	0x80000000u	/* no page has such a number */

/**
 * cqd_ttl_init() - an empty wheel, as of now
 * @st: store
 */
void cqd_ttl_init(struct cqd_store *st)
{
	unsigned int i;

	for (i = 0; i < CQD_WHEEL; i++)
		st->wheel.slot[i] = CQP_NONE;
	st->wheel.at = cqd_now_us() / SEC;
	st->wheel.n = 0;
}

static uint64_t expires(const struct cqd_store *st, uint32_t p)
{
	return st->ix.pages[p].last_use_us + st->ix.pages[p].ttl_s * SEC;
}

/* Slot by the second after which the page has expired. */
static uint32_t slot_of(struct cqd_store *st, uint32_t p)
{
	struct cqd_wheel *w = &st->wheel;
	uint64_t second = (expires(st, p) + SEC - 1) / SEC;

	second = MAX(w->at, MIN(second, w->at + CQD_WHEEL - 1));
	return (uint32_t)(second % CQD_WHEEL);
}

/* The first page of a slot has the slot's number where others have a page's. */
static void put(struct cqd_store *st, uint32_t p)
{
	struct cqd_wheel *w = &st->wheel;
	struct cqd_page *pg = &st->pages[p];
	uint32_t slot = slot_of(st, p);

	pg->ttl_prev = FIRST | slot;
	pg->ttl_next = w->slot[slot];
	if (pg->ttl_next != CQP_NONE)
		st->pages[pg->ttl_next].ttl_prev = p;
	w->slot[slot] = p;
}

static void take_out(struct cqd_store *st, uint32_t p)
{
	struct cqd_page *pg = &st->pages[p];

	if (pg->ttl_prev & FIRST)
		st->wheel.slot[pg->ttl_prev & ~FIRST] = pg->ttl_next;
	else
		st->pages[pg->ttl_prev].ttl_next = pg->ttl_next;
	if (pg->ttl_next != CQP_NONE)
		st->pages[pg->ttl_next].ttl_prev = pg->ttl_prev;
}

/**
 * cqd_ttl_add() - a page that may go begins to wait for its end
 * @st: store
 * @p:  page; nothing is done if it lives for ever
 */
void cqd_ttl_add(struct cqd_store *st, uint32_t p)
{
	struct cqd_wheel *w = &st->wheel;

	if (!st->ix.pages[p].ttl_s)
		return;
	if (!w->n++)
		w->at = cqd_now_us() / SEC;
	put(st, p);
	st->pages[p].flags |= CQD_PG_TTL;
}

/**
 * cqd_ttl_del() - a page is used or gone
 * @st: store
 * @p:  page, on the wheel or not
 */
void cqd_ttl_del(struct cqd_store *st, uint32_t p)
{
	if (!(st->pages[p].flags & CQD_PG_TTL))
		return;
	take_out(st, p);
	st->pages[p].flags &= (uint8_t)~CQD_PG_TTL;
	st->wheel.n--;
}

/**
 * cqd_ttl_expired() - was a page unused for as long as it may live?
 * @st: store
 * @p:  page with a time to live
 */
bool cqd_ttl_expired(const struct cqd_store *st, uint32_t p)
{
	return expires(st, p) <= cqd_now_us();
}

/**
 * cqd_ttl_due() - a page that has expired
 * @st:   store
 * @work: pages that may be looked at, taken down by those that were
 *
 * Return: page, still listed; CQP_NONE if none has expired or *@work is 0.
 */
uint32_t cqd_ttl_due(struct cqd_store *st, unsigned int *work)
{
	struct cqd_wheel *w = &st->wheel;
	uint64_t now = cqd_now_us();
	uint32_t p;

	while (w->n && *work) {
		p = w->slot[w->at % CQD_WHEEL];
		if (p == CQP_NONE) {
			if (w->at >= now / SEC)
				break;
			w->at++;
			continue;
		}
		--*work;
		if (expires(st, p) <= now)
			return p;
		/* It was farther away than the wheel reaches. */
		take_out(st, p);
		put(st, p);
	}
	return CQP_NONE;
}
