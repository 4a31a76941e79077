// SPDX-License-Identifier: MIT
/*
 * Slots of segments: which are free, and what is done to get one. A slot's word
 * gets its new generation before anybody writes into it.
 */
#include <errno.h>
#include "daemon/store_priv.h"

/**
 * cqd_segment_free_list() - free list from the owners, low slots first
 * @seg: segment
 */
void cqd_segment_free_list(struct cqd_segment *seg)
{
	uint32_t i;

	seg->free_head = CQP_NONE;
	for (i = seg->slots; i-- > 0;) {
		if (seg->owner[i] != CQP_NONE)
			continue;
		seg->next_free[i] = seg->free_head;
		seg->free_head = i;
	}
	list_del(&seg->partial_node);
	if (seg->free_head != CQP_NONE && !seg->closed)
		list_add_tail(&seg->partial_node,
			      &seg->shard->kind[seg->kind].partial);
}

/* Off a free list: 0 or -EAGAIN. */
static int take(struct cqd_shard *sh, unsigned int kind, uint32_t owner, struct cqd_place *at)
{
	struct cqd_segment *seg;
	uint32_t slot;

	if (list_empty(&sh->kind[kind].partial))
		return -EAGAIN;
	seg = list_first(&sh->kind[kind].partial, struct cqd_segment, partial_node);
	slot = seg->free_head;
	seg->free_head = seg->next_free[slot];
	if (seg->free_head == CQP_NONE)
		list_del(&seg->partial_node);
	cqd_slot_adopt(seg, slot, owner);
	at->seg = seg;
	at->slot = slot;
	return 0;
}

/**
 * cqd_slot_get() - a free slot, whatever has to go for it
 * @sh:    shard
 * @kind:  CQD_CODES or CQD_SINKS
 * @owner: page record, or CQD_OWNER_LEASE
 * @evict: pages may go for it
 * @at:    set on success
 * @err:   text of the failure
 *
 * Return: 0; -EAGAIN there may be one when the shard is kicked; -ENOSPC; -ENODATA the
 * holder of such memory is not there; what the last creation of a segment failed with.
 */
int cqd_slot_get(struct cqd_shard *sh, unsigned int kind, uint32_t owner, bool evict,
		 struct cqd_place *at, struct cq_err *err)
{
	struct cqd_store *st = sh->st;
	int ret;

	ret = take(sh, kind, owner, at);
	if (!ret || sh->kind[kind].creating)
		return ret;
	if (!sh->pool->ready && sh->pool->ipc)
		return cqd_pool_unready(sh->pool, err);
	/* Right after a failure it would fail again, and again. */
	if (!sh->kind[kind].failed && !cqd_segment_grow(sh, kind, NULL))
		return -EAGAIN;
	if (sh->pool->destroying || (evict && cqd_evict_segment(st, sh)))
		return -EAGAIN;
	while (evict && cqd_evict_one(st, sh, NULL)) {
		if (!take(sh, kind, owner, at))
			return 0;
		if (cqd_closed_retire(st))
			return -EAGAIN;
	}
	if (sh->kind[kind].failed) {
		if (err)
			*err = sh->kind[kind].err;
		return sh->kind[kind].failed;
	}
	if (sh->pool->full_until > uv_now(st->loop))
		return cq_err_set(err, -ENOSPC, "%s", sh->pool->full.text);
	return cq_err_set(err, -ENOSPC, "no slot: pool_bytes = %llu are full of pages in use",
			  (unsigned long long)sh->pool->limit);
}

/**
 * cqd_slot_begin() - somebody is about to write into a slot
 * @at: taken
 */
void cqd_slot_begin(struct cqd_place at)
{
	uint64_t *word = cqd_segment_word(at.seg, at.slot);

	/*
	 * The new generation is out before the first byte of the new page is
	 * written. Pairs with the smp_rmb() of a reader that still looks at
	 * the old one and then reads the word again (client/attn.c).
	 */
	WRITE_ONCE(*word, CQP_WORD(CQP_WORD_GEN(*word) + 1, CQP_FILLING));
	smp_wmb();
}

/**
 * cqd_slot_adopt() - count a slot as used
 * @seg:   segment; the slot is in no free list
 * @slot:  slot
 * @owner: page record
 */
void cqd_slot_adopt(struct cqd_segment *seg, uint32_t slot, uint32_t owner)
{
	seg->owner[slot] = owner;
	seg->used++;
	cqd_pool_of(seg)->used += seg->slot_bytes;
}

/**
 * cqd_slot_free() - give a slot back; its word says FREE already
 * @at: place, seg NULL for none
 */
void cqd_slot_free(struct cqd_place at)
{
	struct cqd_segment *seg = at.seg;

	if (!seg)
		return;
	seg->owner[at.slot] = CQP_NONE;
	seg->next_free[at.slot] = seg->free_head;
	seg->free_head = at.slot;
	if (list_empty(&seg->partial_node) && !seg->leaving && !seg->closed)
		list_add_tail(&seg->partial_node, &seg->shard->kind[seg->kind].partial);
	cqd_pool_of(seg)->used -= seg->slot_bytes;
	if (--seg->used)
		return;
	seg->empty_since = uv_now(seg->st->loop);
	seg->last_use = 0;
	seg->top = 0;
}
