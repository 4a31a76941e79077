// SPDX-License-Identifier: MIT
/* Looking pages up by key, and letting go of them. */
#include <errno.h>
#include <string.h>
#include "daemon/store_priv.h"

static struct cqp_page answer(struct cqd_store *st, uint32_t p, unsigned int kind)
{
	struct cqd_place at = cqd_page_place(st, p, kind);

	return cqd_place_page(at.seg, at.slot);
}

/*
 * struct run - resident pages in a row, each the parent of the next
 * @n:    pages
 * @last: the last of them
 * @miss: the page behind it, if it is being sealed; else CQP_NONE
 */
struct run {
	unsigned int n;
	uint32_t last, miss;
};

/* @pages: filled, and victims of eviction among them taken back; NULL: only
 * count. */
static struct run walk(const struct cqd_shard *sh, const struct cqp_key *keys,
		       unsigned int n, struct cqp_page *pages)
{
	struct run r = { .last = CQP_NONE, .miss = CQP_NONE };
	struct cqd_store *st = sh->st;
	uint32_t p;

	for (r.n = 0; r.n < n; r.n++) {
		p = cqd_page_find(st, sh, &keys[r.n]);
		if (p == CQP_NONE || (r.n && st->pages[p].parent != r.last))
			break;
		if (st->pages[p].state == CQP_FILLING) {
			r.miss = p;
			break;
		}
		if (pages) {
			if (st->pages[p].state == CQP_EVICTING)
				cqd_evict_take_back(st, p);
			pages[r.n] = answer(st, p, CQD_CODES);
		}
		r.last = p;
	}
	return r;
}

/* Shard of a readable namespace that has more of @keys than @own; NULL: none. */
static const struct cqd_shard *longer(struct cqd_client *client, const struct cqd_shard *sh,
				      const struct cqp_key *keys, unsigned int n,
				      struct run own)
{
	const struct cqd_shard *best = NULL;
	uint32_t p = CQP_NONE;
	struct run r;

	if (own.n == n || !client->ns->n_reads)
		return NULL;
	while ((p = cqd_page_foreign(sh->st, client->ns, sh, keys, p)) != CQP_NONE) {
		r = walk(sh->st->pages[p].shard, keys, n, NULL);
		if (r.n <= own.n)
			continue;
		own = r;
		best = sh->st->pages[p].shard;
	}
	return best;
}

/*
 * What members of the own namespace have published behind the first run, which
 * is another namespace's, or was when they did.
 */
static struct run behind(const struct cqd_shard *sh, bool foreign, unsigned int skip,
			 const struct cqp_key *keys, unsigned int n, struct cqp_page *pages)
{
	const struct cqd_store *st = sh->st;
	uint32_t p = CQP_NONE;

	if (skip && skip < n)
		p = cqd_page_find(sh->st, sh, &keys[skip]);
	if (p == CQP_NONE ||
	    (!foreign && !st->ix.pages[p].behind))
		return (struct run){ .last = CQP_NONE, .miss = CQP_NONE };
	return walk(sh, keys + skip, n - skip, pages + skip);
}

/* Which of the @n pages that end with @last nobody has checked; the first is number @at. */
static void note_unchecked(const struct cqd_store *st, uint32_t last, unsigned int at,
			   unsigned int n, struct cqd_found *found)
{
	unsigned int i;
	uint32_t p = last;

	if (!st->unchecked || !n || !st->pages[last].shard->pool->mem->remote)
		return;
	for (i = at + n; i-- > at; p = st->pages[p].parent)
		if (st->pages[p].flags & CQD_PG_UNVERIFIED) {
			found->unchecked[i / 8] |= (uint8_t)(1u << i % 8);
			found->n_unchecked++;
		}
}

/* The last page of each run, which holds those before it. */
static int pin_runs(struct cqd_client *client, const struct run *first,
		    const struct run *then, struct cq_err *err)
{
	int ret = first->n ? cqd_pin(client, first->last, err) : 0;

	if (ret || !then->n)
		return ret;
	ret = cqd_pin(client, then->last, err);
	if (ret)
		cqd_unpin(client, first->last);
	return ret;
}

static bool filled_by_another(const struct cqd_store *st, uint32_t p,
			      const struct cqd_client *client)
{
	return p != CQP_NONE && st->pages[p].filler->client != client;
}

/* Every page of a run was used, the last one @p; the others are no leaves. */
static void touch(struct cqd_store *st, uint32_t p, unsigned int n)
{
	uint64_t now = cqd_now_us();

	if (!n)
		return;
	cqd_page_touch(st, p);
	while (--n) {
		p = st->pages[p].parent;
		cqd_lru_used(st, p, now, 1);
	}
}

/**
 * cqd_match() - longest run of resident pages
 * @client: who asks; pins are counted on it
 * @shard:  one that it opened
 * @keys:   [n] chained keys in order
 * @n:      number of keys
 * @pin:    pin the last page matched
 * @pages:  [n] filled up to the return value
 * @sink:   sink object of page 0 if @keys[0] is a page 0 that has one
 * @found:  set
 * @err:    text of the failure
 *
 * The client's own namespace first. If it lacks a page, the readable namespace
 * that has the most of them from the first on, and then again its own for what
 * its members have published behind that.
 *
 * Return: pages matched; -EDQUOT, -ENOSPC no pin left.
 */
int cqd_match(struct cqd_client *client, struct cqd_shard *shard,
	      const struct cqp_key *keys, unsigned int n, bool pin,
	      struct cqp_page *pages, struct cqp_page *sink, struct cqd_found *found,
	      struct cq_err *err)
{
	struct run first = walk(shard, keys, n, pages), then;
	const struct cqd_shard *of = longer(client, shard, keys, n, first);
	struct cqd_store *st = shard->st;
	unsigned int got;
	int ret;

	if (of)
		first = walk(of, keys, n, pages);
	then = behind(shard, of != NULL, first.n, keys, n, pages);
	ret = pin ? pin_runs(client, &first, &then, err) : 0;
	if (ret)
		return ret;
	got = first.n + then.n;
	touch(st, first.last, first.n);
	touch(st, then.last, then.n);
	*sink = cqd_place_page(NULL, 0);
	if (got)
		*sink = answer(st, cqd_page_find(st, of ? of : shard, &keys[0]), CQD_SINKS);
	memset(found, 0, sizeof(*found));
	note_unchecked(st, first.last, 0, first.n, found);
	note_unchecked(st, then.last, first.n, then.n, found);
	found->filling = filled_by_another(st, then.n || then.miss != CQP_NONE ? then.miss :
					   first.miss, client);
	found->split = then.n ? first.n : 0;
	cqd_looked_up(client, shard, got, n - got);
	return (int)got;
}

/* Page record that a client's entry names; CQP_NONE if it names none. */
static uint32_t named(struct cqd_client *cl, const struct cqp_page *page)
{
	struct cqd_segment *seg = cqd_segment_find(cl->st, page->segment);
	uint32_t p;

	/* Of whatever namespace: a pin may outlive the permission. */
	if (!seg || seg->kind != CQD_CODES || page->slot >= seg->slots)
		return CQP_NONE;
	if (CQP_WORD_GEN(*cqd_segment_word(seg, page->slot)) !=
	    CQP_WORD_GEN(page->word))
		return CQP_NONE;
	p = seg->owner[page->slot];
	return p < cl->st->ix.t_pages.n ? p : CQP_NONE;
}

/* Of this client's own namespace, and waiting to be checked by a worker? */
static bool unchecked(const struct cqd_client *cl, uint32_t p)
{
	const struct cqd_page *pg = &cl->st->pages[p];

	return pg->flags & CQD_PG_UNVERIFIED && pg->shard->ns == cl->ns &&
	       pg->shard->pool->mem->remote;
}

/**
 * cqd_checked() - a worker has computed checksums that cqd cannot
 * @client: who; pages of other namespaces are not its to judge, and stay as they are
 * @pages:  [n] as answered
 * @checks: [n] their checksums
 * @n:      entries
 * @gone:   [n / 8, rounded up] bit i set: page i must not be used; its checksum is
 *          wrong, and it was dropped with its descendants, or it went before
 *
 * The index tells what a checksum must be. A page is judged once, by the first who
 * sends its checksum after cqd took it over.
 */
void cqd_checked(struct cqd_client *client, const struct cqp_page *pages,
		 const struct cqd_check *checks, unsigned int n, uint8_t *gone)
{
	struct cqd_store *st = client->st;
	const struct cqp_rec_page *r;
	unsigned int i;
	uint32_t p;

	memset(gone, 0, (n + 7) / 8);
	for (i = 0; i < n; i++) {
		p = named(client, &pages[i]);
		if (p == CQP_NONE || st->pages[p].state == CQP_QUARANTINED) {
			gone[i / 8] |= (uint8_t)(1u << i % 8);
			continue;
		}
		if (!unchecked(client, p))
			continue;
		r = &st->ix.pages[p];
		cqd_page_verified(st, p);
		if (checks[i].lo == r->check_lo && checks[i].hi == r->check_hi)
			continue;
		gone[i / 8] |= (uint8_t)(1u << i % 8);
		cqd_page_bad(st, p, ++st->checked_bad);
	}
}

/**
 * cqd_release() - drop one pin per entry
 * @client: who pinned them
 * @pages:  [n] as answered; a page quarantined meanwhile is taken too
 * @n:      entries
 * @err:    text of the failure
 *
 * Return: 0; -EINVAL an entry names no page pinned by this client (entries
 * before it are done).
 */
int cqd_release(struct cqd_client *client, const struct cqp_page *pages,
		unsigned int n, struct cq_err *err)
{
	unsigned int i;
	uint32_t p;

	for (i = 0; i < n; i++) {
		p = named(client, &pages[i]);
		if (p == CQP_NONE || cqd_unpin(client, p))
			return cq_err_set(err, -EINVAL,
					  "entry %u (segment %u, slot %u): not pinned by you",
					  i, pages[i].segment, pages[i].slot);
	}
	return 0;
}
