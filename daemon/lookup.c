// SPDX-License-Identifier: MIT
/* Looking pages up by key, and letting go of them. */
#include <errno.h>
#include "daemon/store_priv.h"

static struct cqp_page answer(struct cqd_store *st, uint32_t p, unsigned int kind)
{
	struct cqd_place at = cqd_page_place(st, p, kind);

	return cqd_place_page(at.seg, at.slot);
}

/* Resident pages in a row, each the parent of the next. */
static unsigned int walk(struct cqd_shard *sh, const struct cqp_key *keys,
			 unsigned int n, uint32_t *last, uint32_t *miss,
			 struct cqp_page *pages)
{
	struct cqd_store *st = sh->st;
	unsigned int i;
	uint32_t p;

	*last = CQP_NONE;
	*miss = CQP_NONE;
	for (i = 0; i < n; i++) {
		p = cqd_page_find(st, sh, &keys[i]);
		if (p == CQP_NONE || (i && st->pages[p].parent != *last))
			break;
		if (st->pages[p].state == CQP_FILLING) {
			*miss = p;
			break;
		}
		if (st->pages[p].state == CQP_EVICTING)
			cqd_evict_take_back(st, p);
		pages[i] = answer(st, p, CQD_CODES);
		*last = p;
	}
	return i;
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
 * cqd_lookup() - longest run of resident pages
 * @client: who asks; the pin is counted on it
 * @shard:  one that it opened
 * @keys:   [n] chained keys in order
 * @n:      number of keys
 * @pin:    pin the last page matched
 * @pages:  [n] filled up to the return value
 * @sink:   sink object of page 0 if @keys[0] is a page 0 that has one
 * @filling: the first page missing is being sealed by another client
 * @err:    text of the failure
 *
 * Return: pages matched; -EDQUOT, -ENOSPC no pin left.
 */
int cqd_lookup(struct cqd_client *client, struct cqd_shard *shard,
	       const struct cqp_key *keys, unsigned int n, bool pin,
	       struct cqp_page *pages, struct cqp_page *sink, bool *filling,
	       struct cq_err *err)
{
	struct cqd_store *st = shard->st;
	uint32_t last, miss;
	unsigned int got;
	int ret;

	got = walk(shard, keys, n, &last, &miss, pages);
	if (got && pin) {
		ret = cqd_pin(client, last, err);
		if (ret)
			return ret;
	}
	touch(st, last, got);
	*sink = cqd_place_page(NULL, 0);
	if (got) {
		uint32_t first = cqd_page_find(st, shard, &keys[0]);

		*sink = answer(st, first, CQD_SINKS);
	}
	*filling = miss != CQP_NONE && st->pages[miss].filler->client != client;
	st->hits += got;
	st->misses += n - got;
	return (int)got;
}

/* Page record that a client's entry names; CQP_NONE if it names none. */
static uint32_t named(struct cqd_client *cl, const struct cqp_page *page)
{
	struct cqd_segment *seg = cqd_segment_find(cl->st, page->segment);

	if (!seg || seg->shard->ns != cl->ns || seg->kind != CQD_CODES ||
	    page->slot >= seg->slots)
		return CQP_NONE;
	if (CQP_WORD_GEN(*cqd_segment_word(seg, page->slot)) !=
	    CQP_WORD_GEN(page->word))
		return CQP_NONE;
	return seg->owner[page->slot];
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
