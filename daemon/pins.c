// SPDX-License-Identifier: MIT
/*
 * Pins: one record per (client, page) with a count, in the index, so that a
 * killed daemon comes back knowing who reads what. A pin on a page keeps its
 * ancestors too: they have a child.
 */
#include <errno.h>
#include "daemon/store_priv.h"

static uint32_t *bucket(struct cqd_store *st, uint32_t client, uint32_t page)
{
	uint64_t h = ((uint64_t)client << 32 | page) * 0x9e3779b97f4a7c15ull;

	return &st->pin_hash[(h >> 32) & st->pin_mask];
}

static uint32_t find(struct cqd_store *st, uint32_t client, uint32_t page)
{
	uint32_t i = *bucket(st, client, page);

	while (i != CQP_NONE && (st->ix.pins[i].client != client ||
				 st->ix.pins[i].page != page))
		i = st->pins[i].hash_next;
	return i;
}

static void page_up(struct cqd_store *st, struct cqd_ns *ns, uint32_t page, uint64_t n)
{
	struct cqd_page *pg = &st->pages[page];

	if (!pg->pins)
		st->pages_pinned++;
	pg->pins += (uint32_t)n;
	ns->pins += n;
}

static void page_down(struct cqd_store *st, struct cqd_ns *ns, uint32_t page, uint64_t n)
{
	struct cqd_page *pg = &st->pages[page];

	pg->pins -= (uint32_t)n;
	ns->pins -= n;
	if (pg->pins)
		return;
	st->pages_pinned--;
	cqd_lru_used(st, page, cqd_now_us(), 0);
	cqd_page_settle(st, page);
}

static void count_up(struct cqd_store *st, struct cqd_client *cl, uint32_t page,
		     uint64_t n)
{
	cl->n_pins += n;
	page_up(st, cl->ns, page, n);
}

static void count_down(struct cqd_store *st, struct cqd_client *cl, uint32_t page,
		       uint64_t n)
{
	cl->n_pins -= n;
	page_down(st, cl->ns, page, n);
}

static int pin_room(struct cqd_store *st, const struct cqd_ns *ns, uint32_t page,
		    struct cq_err *err)
{
	if (ns->pins < ns->quota_pins && st->pages[page].pins < UINT32_MAX)
		return 0;
	return cq_err_set(err, -EDQUOT,
			  "namespace '%s' holds %llu pins: release some or raise its quota",
			  ns->name, (unsigned long long)ns->pins);
}

/**
 * cqd_pin_named() - the pin of a name, which belongs to no client
 * @ns:   namespace of the page
 * @page: page record in state SEALED
 * @err:  text of the failure
 *
 * Return: 0; -EDQUOT.
 */
int cqd_pin_named(struct cqd_ns *ns, uint32_t page, struct cq_err *err)
{
	int ret = pin_room(ns->st, ns, page, err);

	if (ret)
		return ret;
	page_up(ns->st, ns, page, 1);
	cqd_page_settle(ns->st, page);
	return 0;
}

/**
 * cqd_pin_adopt_named() - the pin of a name after a restart
 * @ns:   namespace of the page
 * @page: page record
 */
void cqd_pin_adopt_named(struct cqd_ns *ns, uint32_t page)
{
	page_up(ns->st, ns, page, 1);
}

/**
 * cqd_unpin_named() - undo cqd_pin_named()
 * @ns:   namespace
 * @page: page record; may be freed here if it was quarantined
 */
void cqd_unpin_named(struct cqd_ns *ns, uint32_t page)
{
	page_down(ns->st, ns, page, 1);
}

/**
 * cqd_pin_exists() - does a client pin a page?
 * @cl:   client
 * @page: page record
 *
 * Return: true if it has a record for it.
 */
bool cqd_pin_exists(struct cqd_client *cl, uint32_t page)
{
	return find(cl->st, cl->rec, page) != CQP_NONE;
}

/**
 * cqd_pin_adopt() - put a filled record into hash and client's list
 * @st:  store
 * @cl:  its client
 * @pin: record with client, page and count
 */
void cqd_pin_adopt(struct cqd_store *st, struct cqd_client *cl, uint32_t pin)
{
	const struct cqp_rec_pin *r = &st->ix.pins[pin];
	uint32_t *b = bucket(st, r->client, r->page);
	struct cqd_pin *p = &st->pins[pin];

	p->hash_next = *b;
	*b = pin;
	p->prev = CQP_NONE;
	p->next = cl->pins;
	if (cl->pins != CQP_NONE)
		st->pins[cl->pins].prev = pin;
	cl->pins = pin;
	count_up(st, cl, r->page, r->count);
}

static void pin_free(struct cqd_store *st, struct cqd_client *cl, uint32_t pin)
{
	struct cqp_rec_pin *r = &st->ix.pins[pin];
	struct cqd_pin *p = &st->pins[pin];
	uint32_t *b = bucket(st, r->client, r->page);

	cqd_word_state(&r->word, CQP_FREE);
	while (*b != pin)
		b = &st->pins[*b].hash_next;
	*b = p->hash_next;
	if (p->prev == CQP_NONE)
		cl->pins = p->next;
	else
		st->pins[p->prev].next = p->next;
	if (p->next != CQP_NONE)
		st->pins[p->next].prev = p->prev;
	cqd_tab_put(&st->ix.t_pins, pin);
}

/**
 * cqd_pin() - one pin more
 * @cl:   client
 * @page: page record in state FILLING or SEALED
 * @err:  text of the failure
 *
 * Return: 0; -EDQUOT; -ENOSPC no pin record left.
 */
int cqd_pin(struct cqd_client *cl, uint32_t page, struct cq_err *err)
{
	struct cqd_store *st = cl->st;
	int ret = pin_room(st, cl->ns, page, err);
	struct cqp_rec_pin *r;
	uint32_t i;

	if (ret)
		return ret;
	i = find(st, cl->rec, page);
	if (i != CQP_NONE) {
		st->ix.pins[i].count++;
		count_up(st, cl, page, 1);
		cqd_page_settle(st, page);
		return 0;
	}
	i = cqd_tab_get(&st->ix.t_pins);
	if (i == CQP_NONE)
		return cq_err_set(err, -ENOSPC, "max_pins = %u are all in use",
				  st->ix.t_pins.n);
	r = &st->ix.pins[i];
	r->client = cl->rec;
	r->page = page;
	r->count = 1;
	cqd_word_born(&r->word, CQP_SEALED);
	cqd_pin_adopt(st, cl, i);
	cqd_page_settle(st, page);
	return 0;
}

/**
 * cqd_unpin() - one pin less
 * @cl:   client
 * @page: page record; may be freed here if it was quarantined
 *
 * Return: 0; -ENOENT the client has none on it.
 */
int cqd_unpin(struct cqd_client *cl, uint32_t page)
{
	struct cqd_store *st = cl->st;
	uint32_t i = find(st, cl->rec, page);

	if (i == CQP_NONE)
		return -ENOENT;
	if (--st->ix.pins[i].count == 0)
		pin_free(st, cl, i);
	count_down(st, cl, page, 1);
	return 0;
}

/**
 * cqd_pins_drop() - every pin of a client
 * @cl: client
 */
void cqd_pins_drop(struct cqd_client *cl)
{
	struct cqd_store *st = cl->st;
	uint32_t page;
	uint64_t n;

	while (cl->pins != CQP_NONE) {
		page = st->ix.pins[cl->pins].page;
		n = st->ix.pins[cl->pins].count;
		pin_free(st, cl, cl->pins);
		count_down(st, cl, page, n);
	}
}
