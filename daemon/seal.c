// SPDX-License-Identifier: MIT
/*
 * Sealing: a worker's coded page is copied into a free slot, the copy is
 * checksummed, and one store makes it visible.
 *
 * A seal is a small machine, stepped on the loop:
 *
 *	NEW -> ON_PAGE	somebody is filling this page: again when that seal has
 *			ended
 *	    -> ON_SLOT	page record taken, its state FILLING; again when a
 *			segment was created or destroyed
 *	    -> COPY	on a worker thread
 *	    -> PARKED	copied, or in a leased slot, but the parent is still being filled: goes on
 *			when that seal has ended
 *	    -> the end	published, or everything undone
 *
 * So a client may hand over a chain without waiting: pages are copied side by
 * side and published parents first. A parent cannot go meanwhile: the page,
 * although not visible, is its child.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/seal.h"

static void conclude(struct cqd_seal_op *op);

/* Until the seal that fills page @p has ended. */
static void wait_for(struct cqd_seal_op *op, uint32_t p)
{
	list_add_tail(&op->wait_node, &op->st->pages[p].filler->waiters);
}

/* --- the end of a seal --- */

static void op_free(struct cqd_seal_op *op)
{
	if (op->arena)
		cqd_arena_put(op->arena);
	free(op);
}

/* Goes on with a seal that waited for another one. */
static void resume(struct cqd_seal_op *op)
{
	if (op->client->cancelling) {
		op->ret = cq_err_set(&op->err, -ECANCELED, "the session ended");
		conclude(op);
	} else if (op->where == CQD_SEAL_PARKED) {
		conclude(op);
	} else {
		cqd_seal_step(op);
	}
}

/*
 * Whoever waited for this seal goes on. A queue and not a recursion: chains
 * may be as long as clients like.
 */
static void wake(struct cqd_store *st, struct list_head *waiters)
{
	struct cqd_seal_op *op;

	while (!list_empty(waiters)) {
		op = list_first(waiters, struct cqd_seal_op, wait_node);
		list_del(&op->wait_node);
		list_add_tail(&op->wait_node, &st->woken);
	}
	if (st->waking)
		return;
	st->waking = true;
	while (!list_empty(&st->woken)) {
		op = list_first(&st->woken, struct cqd_seal_op, wait_node);
		list_del(&op->wait_node);
		resume(op);
	}
	st->waking = false;
}

static void count_end(const struct cqd_seal_op *op, int ret, bool existing)
{
	struct cqd_ns_counts *c = &op->shard->ns->counts;

	c->sealing--;
	if (op->saved)
		return;
	c->seals_failed += ret != 0;
	c->seals_existing += !ret && existing;
}

static void finish(struct cqd_seal_op *op, int ret, uint32_t p, bool existing)
{
	struct cqd_seal_result res = { .key = op->key, .existing = existing };
	struct cqd_store *st = op->st;
	struct cqd_place at;

	if (!ret) {
		at = cqd_page_place(st, p, CQD_CODES);
		res.page = cqd_place_page(at.seg, at.slot);
		at = cqd_page_place(st, p, CQD_SINKS);
		res.sink = cqd_place_page(at.seg, at.slot);
	}
	count_end(op, ret, existing);
	cqd_lease_unbusy(op);
	/* The callback may end the client, which ends every seal listed. */
	list_del(&op->client_node);
	if (op->client)
		op->client->n_seals--;
	op->done(op->arg, ret, ret ? NULL : &res, &op->err);
	wake(st, &op->waiters);
	op_free(op);
}

/* Slots that were taken before the record named them. */
static void drop_slots(struct cqd_seal_op *op)
{
	unsigned int k;

	for (k = 0; k < CQD_N_KINDS; k++) {
		if (!op->at[k].seg)
			continue;
		cqd_word_state(cqd_segment_word(op->at[k].seg, op->at[k].slot),
			       CQP_FREE);
		cqd_slot_free(op->at[k]);
	}
}

/**
 * cqd_seal_fail() - undo what a seal has begun; nothing of it was visible
 * @op:  seal, gone on return
 * @ret: why, with the text in @op->err
 */
void cqd_seal_fail(struct cqd_seal_op *op, int ret)
{
	struct cqd_store *st = op->st;
	uint32_t p = op->page;

	if (p != CQP_NONE) {
		if (op->client)
			cqd_unpin(op->client, p);
		if (st->ix.pages[p].segment == CQP_NONE)
			drop_slots(op);
		/* Children being filled: each fails when it comes to its end. */
		while (st->pages[p].child != CQP_NONE)
			cqd_page_drop(st, st->pages[p].child);
		cqd_page_free(st, p, CQD_EV_ABORT);
	}
	cqd_lease_lend(op, false);
	finish(op, ret, CQP_NONE, false);
}

/* The longest of what its publishers want counts; 0 is for ever. */
static void raise_page(struct cqd_store *st, uint32_t p, const struct cqd_seal_op *op)
{
	struct cqp_rec_page *r = &st->ix.pages[p];

	cqd_lru_del(st, p);
	r->priority = MAX(r->priority, op->priority);
	r->ttl_s = r->ttl_s && op->ttl_s ? MAX(r->ttl_s, op->ttl_s) : 0;
	cqd_lru_note(st, p);
	cqd_page_settle(st, p);
}

/* A page that was published behind another namespace's has its parent in its own
 * by now: the key that was just derived proves it to be that. */
static void below_parent(struct cqd_seal_op *op, uint32_t p)
{
	struct cqd_store *st = op->st;
	uint32_t parent;

	if (!st->ix.pages[p].behind)
		return;
	parent = cqd_page_find(st, op->shard, &op->parent_key);
	if (parent == CQP_NONE || st->pages[parent].state == CQP_FILLING ||
	    st->ix.pages[parent].depth + 1 != st->ix.pages[p].depth)
		return;
	if (st->pages[parent].state == CQP_EVICTING)
		cqd_evict_take_back(st, parent);
	cqd_page_link(st, p, parent);
	/* In this order: with a parent, the next cqd does not look at the other. */
	WRITE_ONCE(st->ix.pages[p].parent, parent);
	smp_wmb();
	WRITE_ONCE(st->ix.pages[p].behind, 0);
}

static void found(struct cqd_seal_op *op, uint32_t p)
{
	struct cqd_store *st = op->st;
	int ret;

	if (st->pages[p].state == CQP_EVICTING)
		cqd_evict_take_back(st, p);
	ret = cqd_pin(op->client, p, &op->err);
	if (ret) {
		cqd_seal_fail(op, ret);
		return;
	}
	below_parent(op, p);
	cqd_page_touch(st, p);
	raise_page(st, p, op);
	finish(op, 0, p, true);
}

/* --- the copy --- */

static int copy_one(struct cqd_seal_op *op, unsigned int kind, uint64_t src)
{
	const struct cqd_mem_ops *mem = op->shard->pool->mem;
	struct cqd_segment *seg = op->at[kind].seg;
	uint64_t len = op->shard->kind[kind].payload;
	uint64_t dst = op->at[kind].slot * seg->slot_bytes;
	struct cq_page_hdr h = {
		.magic = CQ_PAGE_MAGIC,
		.version = CQ_PAGE_VERSION,
		.kind = kind == CQD_SINKS ? CQ_PAGE_SINK : CQ_PAGE_CODES,
		.payload = len,
	};
	int ret;

	ret = mem->write(&seg->mem, dst + sizeof(h), op->arena->fd, src, len);
	if (ret)
		return ret;
	ret = mem->check(&seg->mem, dst + sizeof(h), len, &h.check_lo, &h.check_hi);
	if (ret)
		return ret;
	if (op->saved && (h.check_lo != op->want[kind][0] || h.check_hi != op->want[kind][1]))
		return -EBADMSG;
	memcpy(h.model_tag, op->shard->model->head->hash, sizeof(h.model_tag));
	memcpy(h.key, op->key.b, sizeof(h.key));
	if (kind == CQD_CODES) {
		op->lo = h.check_lo;
		op->hi = h.check_hi;
	}
	return mem->fill(&seg->mem, dst, &h, sizeof(h));
}

static void copy_run(struct cqd_job *job)
{
	struct cqd_seal_op *op = container_of(job, struct cqd_seal_op, job);

	op->ret = 0;
	if (op->sink_offset != UINT64_MAX)
		op->ret = copy_one(op, CQD_SINKS, op->sink_offset);
	if (!op->ret)
		op->ret = copy_one(op, CQD_CODES, op->offset);
	if (op->ret)
		cq_err_set(&op->err, op->ret,
			   "copying %llu bytes at %llu of arena %u: %s",
			   (unsigned long long)op->shard->kind[CQD_CODES].payload,
			   (unsigned long long)op->offset, op->arena->id,
			   strerror(-op->ret));
}

static void publish(struct cqd_seal_op *op)
{
	struct cqd_store *st = op->st;
	struct cqp_rec_page *r = &st->ix.pages[op->page];
	struct cqd_page *pg = &st->pages[op->page];

	r->check_lo = op->lo;
	r->check_hi = op->hi;
	r->last_use_us = cqd_now_us();
	r->uses = 0;
	r->ttl_s = op->ttl_s;
	r->priority = op->priority;
	r->parent = pg->parent;
	r->behind = pg->parent == CQP_NONE && op->depth;
	r->depth = pg->parent == CQP_NONE ? op->depth : st->ix.pages[pg->parent].depth + 1;
	pg->filler = NULL;
	if (op->lent)
		cqd_lease_place(op);
	cqd_lru_note(st, op->page);
	cqd_page_event(st, op->page, CQD_EV_PUBLISH);
	if (op->lent)
		cqd_lease_used(op);
	cqd_page_settle(st, op->page);
	cqd_page_sealed(st, op->page, op->client, op->saved);
}

static bool parent_filling(const struct cqd_seal_op *op)
{
	uint32_t parent = op->st->pages[op->page].parent;

	return parent != CQP_NONE && op->st->pages[parent].state == CQP_FILLING;
}

/* Copied, or not, and nothing more to wait for. */
static void conclude(struct cqd_seal_op *op)
{
	struct cqd_store *st = op->st;

	if (!op->ret && op->parent_lost)
		op->ret = cq_err_set(&op->err, -ENOENT,
				     "the parent page was lost: publish it again");
	if (!op->ret && op->lease[CQD_CODES] && op->lease[CQD_CODES]->at.seg->lost)
		op->ret = cq_err_set(&op->err, -ENODATA, "the slot's memory is lost: compute "
				     "again");
	if (op->ret) {
		cqd_seal_fail(op, op->ret);
		return;
	}
	publish(op);
	finish(op, 0, op->page, false);
	cqd_evict_kick(st);
}

/* The payload is in its slot, or cannot be. */
static void filled(struct cqd_seal_op *op)
{
	if (!op->ret && !op->parent_lost && parent_filling(op)) {
		op->where = CQD_SEAL_PARKED;
		wait_for(op, op->st->pages[op->page].parent);
		return;
	}
	conclude(op);
}

static void copy_done(struct cqd_job *job)
{
	struct cqd_seal_op *op = container_of(job, struct cqd_seal_op, job);

	if (!op->client)
		op->ret = cq_err_set(&op->err, -ECANCELED, "the session ended");
	filled(op);
}

/* --- slots --- */

/* 0; -EAGAIN wait; else why there is none. */
static int get_slot(struct cqd_seal_op *op, unsigned int kind)
{
	int ret = cqd_slot_get(op->shard, kind, op->page, !op->saved, &op->at[kind], &op->err);

	if (!ret)
		cqd_slot_begin(op->at[kind]);
	return ret;
}

static int get_slots(struct cqd_seal_op *op)
{
	int ret = 0;

	/* Sinks first: their segment must not find the pool taken by codes. */
	if (op->sink_offset != UINT64_MAX && !op->at[CQD_SINKS].seg)
		ret = get_slot(op, CQD_SINKS);
	if (!ret && !op->at[CQD_CODES].seg)
		ret = get_slot(op, CQD_CODES);
	return ret;
}

static void start_copy(struct cqd_seal_op *op)
{
	struct cqp_rec_page *r = &op->st->ix.pages[op->page];
	const struct cqd_place *at = op->at;
	unsigned int k;

	r->segment = at[CQD_CODES].seg->rec;
	r->slot = at[CQD_CODES].slot;
	r->slot_gen = CQP_WORD_GEN(*cqd_segment_word(at[0].seg, at[0].slot));
	k = CQD_SINKS;
	if (at[k].seg) {
		r->sink_segment = at[k].seg->rec;
		r->sink_slot = at[k].slot;
		r->sink_gen = CQP_WORD_GEN(*cqd_segment_word(at[k].seg, at[k].slot));
	}
	op->where = CQD_SEAL_COPY;
	op->job.run = copy_run;
	op->job.done = copy_done;
	cqd_job_queue(op->st, &op->job, op->saved);	/* disks are slow */
}

static void want_slots(struct cqd_seal_op *op)
{
	int ret = get_slots(op);

	if (ret == -EAGAIN) {
		op->where = CQD_SEAL_ON_SLOT;
		list_add_tail(&op->wait_node, &op->shard->waiting);
	} else if (ret) {
		cqd_seal_fail(op, ret);
	} else {
		start_copy(op);
	}
}

/**
 * cqd_seal_kick() - try the seals again that wait for a slot
 * @sh: shard
 */
void cqd_seal_kick(struct cqd_shard *sh)
{
	struct list_head again;
	struct cqd_seal_op *op;

	list_take(&again, &sh->waiting);
	while (!list_empty(&again)) {
		op = list_first(&again, struct cqd_seal_op, wait_node);
		list_del(&op->wait_node);
		if (op->parent_lost)
			cqd_seal_fail(op, cq_err_set(&op->err, -ENOENT,
						     "the parent page was lost"));
		else
			want_slots(op);
	}
}

/* Seals, then requests for leases. */
static void kick(struct cqd_shard *sh)
{
	sh->opens++;	/* stays while they call back */
	cqd_seal_kick(sh);
	cqd_lease_kick(sh);
	sh->opens--;
	cqd_shard_put(sh);
}

/**
 * cqd_seal_kick_all() - the same for every shard: the pool has more room
 * @st: store
 */
void cqd_seal_kick_all(struct cqd_store *st)
{
	struct list_head *pos;
	struct cqd_shard *sh;

	/* From the start after each: what a seal calls back may free shards. */
	st->kick++;
again:
	list_for_each(pos, &st->shards) {
		sh = list_entry(pos, struct cqd_shard, node);
		if ((list_empty(&sh->waiting) && list_empty(&sh->leasing)) ||
		    sh->kicked == st->kick)
			continue;
		sh->kicked = st->kick;
		kick(sh);
		goto again;
	}
}

/* --- the beginning --- */

/* Within the quota, and without making the pool evict if it is a saved page. */
static bool has_room(const struct cqd_seal_op *op, uint64_t bytes)
{
	const struct cqd_pool *pool = op->shard->pool;

	if (op->lease[CQD_CODES])
		bytes = 0;	/* counted already */
	if (!op->saved)
		return cqd_ns_room(op->shard->ns, bytes, 1);
	return cqd_ns_fits(op->shard->ns, bytes, 1) &&
	       pool->used + bytes <= pool->limit / 100 * op->st->o.high;
}

/* Page record and pin, the parent kept from eviction. */
static int begin(struct cqd_seal_op *op, uint32_t parent)
{
	struct cqd_shard *sh = op->shard;
	struct cqd_store *st = op->st;
	bool sink = op->sink_offset != UINT64_MAX || op->lease[CQD_SINKS];
	int ret = 0;

	if (parent != CQP_NONE)
		cqd_page_hold(st, parent);
	if (!has_room(op, cqd_page_bytes(sh, sink)))
		ret = cq_err_set(&op->err, -EDQUOT,
				 "quota of '%s' is in use (%llu of %llu bytes, "
				 "%llu pages): raise it",
				 sh->ns->name, (unsigned long long)sh->ns->used_bytes,
				 (unsigned long long)sh->ns->quota_bytes,
				 (unsigned long long)sh->ns->pages);
	while (!ret && op->page == CQP_NONE) {
		op->page = cqd_page_begin(sh, &op->key, parent, sink, op);
		if (op->page == CQP_NONE && (op->saved || !cqd_evict_one(st, NULL, NULL)))
			ret = cq_err_set(&op->err, -ENOSPC, "max_pages = %u are in use",
					 st->ix.t_pages.n);
	}
	if (parent != CQP_NONE)
		cqd_page_unhold(st, parent);
	if (ret)
		return ret;
	cqd_lease_lend(op, op->lease[CQD_CODES] != NULL);
	return cqd_pin(op->client, op->page, &op->err);
}

/*
 * The parent is a page that the client reads in another namespace: the new page
 * begins a tree of its own. Neither namespace then decides how long the other's
 * pages stay, and a lookup finds the two one behind the other by their keys.
 */
static bool behind_foreign(struct cqd_seal_op *op)
{
	struct cqd_store *st = op->st;
	uint32_t p = CQP_NONE;

	do {
		p = cqd_page_foreign(st, op->client->ns, op->shard, &op->parent_key, p);
	} while (p != CQP_NONE && st->pages[p].state == CQP_FILLING);
	if (p == CQP_NONE)
		return false;
	op->depth = st->ix.pages[p].depth + 1;
	return true;
}

/* CQP_NONE in *parent: page 0, or one behind another namespace's. The parent may
 * be in the making itself. */
static int find_parent(struct cqd_seal_op *op, uint32_t *parent)
{
	struct cqd_store *st = op->st;
	uint32_t p;

	*parent = CQP_NONE;
	if (!memcmp(&op->parent_key, &op->shard->root, sizeof(op->parent_key)))
		return 0;
	p = cqd_page_find(st, op->shard, &op->parent_key);
	if (p == CQP_NONE && behind_foreign(op))
		return 0;
	if (p == CQP_NONE)
		return cq_err_set(&op->err, -ENOENT,
				  "the parent page is not resident: publish it first");
	if (st->pages[p].state == CQP_EVICTING)
		cqd_evict_take_back(st, p);
	*parent = p;
	return 0;
}

/**
 * cqd_seal_step() - go on with a seal that is new, or waited for a page
 * @op: seal, possibly gone on return
 */
void cqd_seal_step(struct cqd_seal_op *op)
{
	uint32_t p = cqd_page_find(op->st, op->shard, &op->key), parent;
	int ret;

	if (p != CQP_NONE && op->st->pages[p].state == CQP_FILLING) {
		op->where = CQD_SEAL_ON_PAGE;
		wait_for(op, p);
		return;
	}
	if (p != CQP_NONE) {
		found(op, p);
		return;
	}
	ret = find_parent(op, &parent);
	if (!ret)
		ret = begin(op, parent);
	if (ret)
		cqd_seal_fail(op, ret);
	else if (op->lent)
		filled(op);
	else
		want_slots(op);
}
