// SPDX-License-Identifier: MIT
/*
 * Memory that is gone: its holder ended. What lay there cannot be found any more from
 * now on; a page that somebody pins is quarantined until he lets go of it, and its
 * segment lasts as long, although there is nothing behind it.
 */
#include "daemon/store_priv.h"

static uint64_t lose_pages(struct cqd_store *st, struct cqd_segment *seg)
{
	uint64_t before = st->n_state[CQP_SEALED] + st->n_state[CQP_EVICTING];
	uint32_t i;

	for (i = 0; i < seg->slots; i++)
		if (seg->owner[i] < CQD_OWNER_LOST)
			cqd_page_drop(st, seg->owner[i]);
	return before - st->n_state[CQP_SEALED] - st->n_state[CQP_EVICTING];
}

/* No page goes there any more, and its bytes are the pool's again. */
static void close_segment(struct cqd_store *st, struct cqd_segment *seg)
{
	seg->lost = true;
	cqd_pool_of(seg)->reserved -= seg->mem.bytes;
	if (st->emptying == seg)
		st->emptying = NULL;
	seg->leaving = false;
	list_del(&seg->partial_node);
	if (seg->closed)
		return;
	seg->closed = true;
	st->n_closed++;
}

/**
 * cqd_pool_lose() - everything that is in a pool
 * @st:   store
 * @pool: its memory is gone
 *
 * Return: pages that were lost.
 */
uint64_t cqd_pool_lose(struct cqd_store *st, struct cqd_pool *pool)
{
	struct cqd_segment *seg;
	uint64_t pages = 0;
	uint32_t i;

	pool->lost = true;
	for (i = 0; i < CQD_MAX_SEGMENTS; i++) {
		seg = st->segs[i];
		if (seg && cqd_pool_of(seg) == pool && !seg->lost)
			close_segment(st, seg);
	}
	for (i = 0; i < CQD_MAX_SEGMENTS; i++) {
		seg = st->segs[i];
		if (!seg || !seg->lost || cqd_pool_of(seg) != pool)
			continue;
		pages += lose_pages(st, seg);
		cqd_leases_lose(seg);
	}
	cqd_closed_retire(st);
	return pages;
}

/**
 * cqd_client_lost() - may what a client names have been lost?
 * @cl: client
 *
 * Return: true if it has opened a shard in a pool that lost segments.
 */
bool cqd_client_lost(const struct cqd_client *cl)
{
	uint32_t i;

	for (i = 0; i < cl->n_shards; i++)
		if (cl->shards[i]->pool->lost)
			return true;
	return false;
}
