// SPDX-License-Identifier: MIT
/*
 * Segments: one descriptor of memory, one entry in the fd store, slots of one size
 * for pages of one shard. Created and destroyed on worker threads.
 *
 * A segment gets its record, and thereby pages, only when the service manager
 * has confirmed its fd. When it dies its record goes first.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/store_priv.h"

static void seg_name(const struct cqd_segment *seg, char buf[32])
{
	snprintf(buf, 32, "cq-seg-%u", seg->id);
}

/* --- finding --- */

static uint32_t *bucket(struct cqd_store *st, uint32_t id)
{
	return &st->seg_hash[id % CQD_MAX_SEGMENTS];
}

/**
 * cqd_segment_hash() - make a segment findable by its id
 * @seg: segment with a record
 */
void cqd_segment_hash(struct cqd_segment *seg)
{
	uint32_t *b = bucket(seg->st, seg->id);

	seg->st->segs[seg->rec] = seg;
	seg->id_next = *b;
	*b = seg->rec;
}

static void unhash(struct cqd_segment *seg)
{
	uint32_t *b = bucket(seg->st, seg->id);

	while (*b != seg->rec)
		b = &seg->st->segs[*b]->id_next;
	*b = seg->id_next;
	seg->st->segs[seg->rec] = NULL;
}

/**
 * cqd_segment_find() - segment by id
 * @st: store
 * @id: any value
 *
 * Return: a live segment or NULL.
 */
struct cqd_segment *cqd_segment_find(struct cqd_store *st, uint32_t id)
{
	uint32_t i = *bucket(st, id);

	while (i != CQP_NONE && st->segs[i]->id != id)
		i = st->segs[i]->id_next;
	return i == CQP_NONE ? NULL : st->segs[i];
}

/* Random: a running number would tell a tenant how many others have. */
static uint32_t new_id(struct cqd_store *st)
{
	uint32_t id;

	do {
		id = (uint32_t)cqd_random();
	} while (!id || id == CQP_NONE || cqd_segment_find(st, id));
	return id;
}

/**
 * cqd_segment_word() - state word of a slot
 * @seg:  segment
 * @slot: below seg->slots
 *
 * Return: its address in the namespace's state memfd.
 */
uint64_t *cqd_segment_word(const struct cqd_segment *seg, uint32_t slot)
{
	return &seg->shard->ns->words[seg->word_base + slot];
}

/**
 * cqd_place_page() - a slot as clients see it
 * @seg:  segment, NULL for "none"
 * @slot: slot
 *
 * Return: word as of now, ids.
 */
struct cqp_page cqd_place_page(const struct cqd_segment *seg, uint32_t slot)
{
	struct cqp_page p = { .segment = CQP_NONE, .slot = CQP_NONE };

	if (seg) {
		p.word = *cqd_segment_word(seg, slot);
		p.segment = seg->id;
		p.slot = slot;
	}
	return p;
}

/**
 * cqd_segment_arrays() - owners and free list, every slot free; its shard's order
 * @seg: slots is set
 *
 * Return: 0 or -ENOMEM.
 */
int cqd_segment_arrays(struct cqd_segment *seg)
{
	uint32_t i;

	seg->owner = malloc(seg->slots * sizeof(*seg->owner));
	seg->next_free = malloc(seg->slots * sizeof(*seg->next_free));
	if (cqd_pool_of(seg)->mem->remote)
		seg->lease = calloc(seg->slots, sizeof(struct cqd_lease *));
	if (!seg->owner || !seg->next_free || cqd_lru_make(seg->shard) ||
	    (cqd_pool_of(seg)->mem->remote && !seg->lease))
		return -ENOMEM;
	for (i = 0; i < seg->slots; i++)
		seg->owner[i] = CQP_NONE;
	cqd_segment_free_list(seg);
	return 0;
}

/* --- creation --- */

/* What is not a descriptor is kept by its holder, behind its namespace's state words. */
static int keep(struct cqd_segment *seg)
{
	char name[32];

	if (cqd_pool_of(seg)->ipc)
		return cqd_fdstore_settle(seg->st, &seg->err);
	seg_name(seg, name);
	return cqd_fdstore_push(seg->st, name, seg->mem.fd, CQD_FD_SURE, &seg->err);
}

static void unkeep(const struct cqd_segment *seg)
{
	char name[32];

	if (cqd_pool_of(seg)->ipc)
		return;
	seg_name(seg, name);
	cqd_fdstore_remove(seg->st, name);
}

static void create_run(struct cqd_job *job)
{
	struct cqd_segment *seg = container_of(job, struct cqd_segment, job);
	const struct cqd_mem_ops *mem = cqd_pool_of(seg)->mem;
	struct cqd_ns *ns = seg->shard->ns;

	seg->ret = mem->create(&seg->mem, &seg->err);
	if (seg->ret)
		return;
	seg->ret = cqd_fallocate(ns->mem.fd, seg->word_base * 8, (uint64_t)seg->slots * 8);
	if (seg->ret)
		cq_err_set(&seg->err, seg->ret, "reserving state words: %s",
			   strerror(-seg->ret));
	else
		seg->ret = keep(seg);
	if (seg->ret)
		mem->discard(&seg->mem);
}

/* Its words may have belonged to a segment that was lost in a restart. */
static void words_free(const struct cqd_segment *seg)
{
	uint32_t i;

	for (i = 0; i < seg->slots; i++)
		cqd_word_state(cqd_segment_word(seg, i), CQP_FREE);
}

static void fill_record(const struct cqd_segment *seg)
{
	struct cqp_rec_segment *r = &seg->st->ix.segs[seg->rec];
	const struct cqd_shard *sh = seg->shard;

	r->id = seg->id;
	r->ns = sh->ns->rec;
	r->model = sh->model->rec;
	r->kind = seg->kind == CQD_SINKS ? CQ_PAGE_SINK : CQ_PAGE_CODES;
	r->layer_begin = sh->range.layer_begin;
	r->layer_end = sh->range.layer_end;
	r->head_begin = sh->range.head_begin;
	r->head_end = sh->range.head_end;
	r->bytes = seg->mem.bytes;
	r->slot_bytes = seg->slot_bytes;
	r->word_base = seg->word_base;
	r->slots = seg->slots;
	memset(r->given, 0, sizeof(r->given));
	cqd_pool_record(sh->pool, r);
	cqd_word_born(&r->word, CQP_SEALED);
}

/**
 * cqd_segment_release() - free the object; its memory must be gone already
 * @seg: segment, out of the hash
 */
void cqd_segment_release(struct cqd_segment *seg)
{
	list_del(&seg->ns_node);
	list_del(&seg->partial_node);
	cqd_imports_forget(seg);
	if (!seg->lost)
		cqd_pool_of(seg)->reserved -= seg->mem.bytes;
	free(seg->owner);
	free(seg->lease);
	free(seg->next_free);
	free(seg);
}

static void create_failed(struct cqd_segment *seg)
{
	struct cqd_shard_kind *k = &seg->shard->kind[seg->kind];

	unkeep(seg);
	cqd_pool_of(seg)->mem->destroy(&seg->mem);
	cqd_tab_put(&seg->st->ix.t_segs, seg->rec);
	k->failed = seg->ret;
	k->err = seg->err;
	cqd_segment_release(seg);
}

/*
 * A device that is out of memory lets the thread that asks wait, and there are few: one
 * at a time, and not again at once, whoever else asks.
 */
static void device_done(struct cqd_pool *pool, const struct cqd_segment *seg)
{
	pool->creating = false;
	pool->full_until = 0;
	if (seg->ret != -ENOSPC)
		return;
	pool->full_until = uv_now(seg->st->loop) + CQD_FULL_MS;
	pool->full = seg->err;
}

/* Its memory is there: what else a segment needs. */
static void arrange(struct cqd_segment *seg)
{
	if (seg->ret)
		return;
	if (!cqd_ipc_current(seg))
		seg->ret = cq_err_set(&seg->err, -ENODATA, "the holder ended: ask again");
	else if (cqd_segment_arrays(seg))
		seg->ret = cq_err_set(&seg->err, -ENOMEM, "no memory for a segment");
	if (seg->ret)
		cqd_pool_of(seg)->mem->discard(&seg->mem);
}

static void create_done(struct cqd_job *job)
{
	struct cqd_segment *seg = container_of(job, struct cqd_segment, job);
	struct cqd_shard *sh = seg->shard;
	struct cqd_shard_kind *k = &sh->kind[seg->kind];
	bool remote = sh->pool->mem->remote;
	struct cqd_store *st = seg->st;

	k->creating = false;
	k->failed = 0;
	if (remote)
		device_done(sh->pool, seg);
	arrange(seg);
	if (seg->ret) {
		create_failed(seg);
	} else {
		words_free(seg);
		fill_record(seg);
		seg->live = true;
		seg->empty_since = uv_now(seg->st->loop);
		cqd_segment_hash(seg);
		k->segments++;
	}
	sh->opens++;	/* stays while seals call back */
	cqd_seal_kick(sh);
	cqd_lease_kick(sh);
	sh->opens--;
	/* Asked once per failure: the next seal may try again. */
	k->failed = 0;
	cqd_shard_put(sh);
	if (remote)
		cqd_seal_kick_all(st);
}

/*
 * Doubling sizes, as far as the pool goes; sinks, few and small, take no more
 * than a quarter of what is left. 0: not one slot fits.
 */
static uint32_t slots_for(const struct cqd_shard *sh, const struct cqd_shard_kind *k,
			  unsigned int kind)
{
	const struct cqd_store *st = sh->st;
	const struct cqd_pool *pool = sh->pool;
	uint64_t want = st->o.segment_min, left;
	uint32_t i;

	for (i = 0; i < k->segments && want < st->o.segment_max; i++)
		want *= 2;
	left = pool->limit - MIN(pool->limit, pool->reserved);
	want = MIN(want, st->o.segment_max);
	if (kind == CQD_SINKS)
		want = MIN(want, left / 4);
	want = MAX(want, k->slot_bytes);
	if (pool->mem->remote) {
		want = ALIGN_UP(want, pool->dev.granularity);
		left -= left % pool->dev.granularity;
	}
	return (uint32_t)MIN(MIN(want, left) / k->slot_bytes, UINT32_MAX / 8);
}

/* Whole huge pages, if the rest of one is not much, and fits into the pool; of a
 * device what it gives. */
static uint64_t bytes_for(const struct cqd_shard *sh, uint64_t bytes)
{
	uint64_t whole = ALIGN_UP(bytes, CQD_HUGE_BYTES);

	if (sh->pool->mem->remote)
		return ALIGN_UP(bytes, sh->pool->dev.granularity);
	if (sh->st->o.policy.huge == CQD_HUGE_NEVER || bytes < 4ull * CQD_HUGE_BYTES ||
	    sh->pool->reserved + whole > sh->pool->limit)
		return bytes;
	return whole;
}

static struct cqd_segment *seg_new(struct cqd_shard *sh, unsigned int kind,
				   uint32_t slots)
{
	struct cqd_segment *seg = calloc(1, sizeof(*seg));

	if (!seg)
		return NULL;
	seg->st = sh->st;
	seg->shard = sh;
	seg->kind = kind;
	seg->slot_bytes = sh->kind[kind].slot_bytes;
	seg->mem.fd = -1;
	seg->mem.ro_fd = -1;
	list_init(&seg->partial_node);
	list_init(&seg->ns_node);
	while (slots && cqd_ns_words_get(sh->ns, seg, slots))
		slots /= 2;
	seg->slots = slots;
	seg->mem.bytes = bytes_for(sh, slots * seg->slot_bytes);
	seg->mem.policy = &sh->st->o.policy;
	seg->mem.dev = &sh->pool->dev;
	if (!slots) {
		free(seg);
		return NULL;
	}
	return seg;
}

/**
 * cqd_segment_grow() - start the creation of a segment
 * @sh:   shard; its waiting seals are tried again when it is done
 * @kind: CQD_CODES or CQD_SINKS
 * @err:  text of the failure
 *
 * Return: 0 under way; -ENOSPC the pool has no room for a slot.
 */
int cqd_segment_grow(struct cqd_shard *sh, unsigned int kind, struct cq_err *err)
{
	struct cqd_shard_kind *k = &sh->kind[kind];
	struct cqd_store *st = sh->st;
	uint32_t slots = slots_for(sh, k, kind);
	struct cqd_segment *seg;

	if (k->creating)
		return 0;
	if (sh->pool->creating)
		return 0;
	if (sh->pool->full_until > uv_now(st->loop))
		return cq_err_set(err, -ENOSPC, "%s", sh->pool->full.text);
	if (!sh->pool->ready)
		return cqd_pool_unready(sh->pool, err);
	if (!slots || st->closing)
		return cq_err_set(err, -ENOSPC, "pool_bytes = %llu are all in use",
				  (unsigned long long)sh->pool->limit);
	seg = seg_new(sh, kind, slots);
	if (!seg)
		return cq_err_set(err, -ENOSPC, "no memory or state words for a segment");
	seg->rec = cqd_tab_get(&st->ix.t_segs);
	if (seg->rec == CQP_NONE) {
		list_del(&seg->ns_node);
		free(seg);
		return cq_err_set(err, -ENOSPC, "%d segments exist: raise segment_max",
				  CQD_MAX_SEGMENTS);
	}
	seg->id = new_id(st);
	seg->mem.id = seg->id;
	sh->pool->reserved += seg->mem.bytes;
	k->creating = true;
	sh->pool->creating = sh->pool->mem->remote;
	seg->job.run = create_run;
	seg->job.done = create_done;
	cqd_job_queue(st, &seg->job, true);
	return 0;
}

/* --- the end --- */

static void destroy_run(struct cqd_job *job)
{
	struct cqd_segment *seg = container_of(job, struct cqd_segment, job);

	unkeep(seg);
	cqd_pool_of(seg)->mem->discard(&seg->mem);
	cqd_pool_of(seg)->mem->destroy(&seg->mem);
}

static void destroy_done(struct cqd_job *job)
{
	struct cqd_segment *seg = container_of(job, struct cqd_segment, job);
	struct cqd_store *st = seg->st;
	struct cqd_shard *sh = seg->shard;

	sh->pool->destroying--;
	sh->kind[seg->kind].segments--;
	cqd_tab_put(&st->ix.t_segs, seg->rec);
	cqd_segment_release(seg);
	cqd_shard_put(sh);
	cqd_seal_kick_all(st);
}

/**
 * cqd_segment_retire() - destroy an empty segment
 * @seg: segment
 *
 * Pages that a job reads are held, so an empty segment is nobody's business, but of those
 * who have it open where that must not be (imports.c).
 *
 * Return: true if it is on its way out.
 */
bool cqd_segment_retire(struct cqd_segment *seg)
{
	if (!seg->live || seg->used || (seg->importers && !seg->lost))
		return false;
	seg->live = false;
	if (seg->st->emptying == seg)
		seg->st->emptying = NULL;
	/* Record first: a new daemon must not find it without memory. */
	cqd_word_state(&seg->st->ix.segs[seg->rec].word, CQP_FREE);
	unhash(seg);
	list_del(&seg->partial_node);
	seg->st->n_closed -= seg->closed;
	seg->closed = false;
	cqd_pool_of(seg)->destroying++;
	seg->job.run = destroy_run;
	seg->job.done = destroy_done;
	cqd_job_queue(seg->st, &seg->job, true);
	return true;
}

/**
 * cqd_segment_tick() - destroy segments that have been empty for a while
 * @st: store; called about once per second
 */
void cqd_segment_tick(struct cqd_store *st)
{
	uint64_t now = uv_now(st->loop);
	struct cqd_segment *seg;
	uint32_t i;

	for (i = 0; i < CQD_MAX_SEGMENTS; i++) {
		seg = st->segs[i];
		if (seg && !seg->used && now - seg->empty_since >= st->empty_ms)
			cqd_segment_retire(seg);
	}
	cqd_closed_retire(st);
}

/**
 * cqd_segment_trim() - destroy every empty segment now
 * @st:   store
 * @pool: of this pool, NULL: of all
 *
 * Return: bytes that are given back.
 */
uint64_t cqd_segment_trim(struct cqd_store *st, const struct cqd_pool *pool)
{
	struct cqd_segment *seg;
	uint64_t bytes = 0;
	uint32_t i;

	for (i = 0; i < CQD_MAX_SEGMENTS; i++) {
		seg = st->segs[i];
		if (!seg || seg->used || (pool && cqd_pool_of(seg) != pool))
			continue;
		if (cqd_segment_retire(seg))
			bytes += seg->mem.bytes;
	}
	return bytes;
}

/**
 * cqd_segment_get() - what SegmentOk carries
 * @client: who asks
 * @id:     segment id
 * @info:   filled on success
 *
 * Return: 0; -ENOENT no such segment of a namespace that this client may read; -ENODATA
 * its memory is gone, or it may be one of those that are; -ENOMEM.
 */
int cqd_segment_get(struct cqd_client *client, uint32_t id,
		    struct cqd_segment_info *info)
{
	struct cqd_segment *seg = cqd_segment_find(client->st, id);
	struct cqd_ns *owner = seg ? seg->shard->ns : NULL;

	if (!seg || !cqd_ns_reads(client->ns, owner))
		return cqd_client_lost(client) ? -ENODATA : -ENOENT;
	if (owner != client->ns && !cqd_pool_readable(cqd_pool_of(seg)))
		return -ENOENT;
	if (seg->lost)
		return -ENODATA;
	if (cqd_pool_of(seg)->ipc && cqd_import(client, seg))
		return -ENOMEM;
	info->state_fd = -1;
	info->state_words = 0;
	if (owner != client->ns) {
		/* Before it leaves: a mapping cannot be taken back. */
		client->st->ix.segs[seg->rec].given[client->ns->rec / 8] |=
			(uint8_t)(1u << client->ns->rec % 8);
		info->state_fd = owner->mem.ro_fd;
		info->state_words = owner->n_words;
	}
	info->kind = cqd_pool_of(seg)->mem->kind;
	info->bytes = seg->mem.bytes;
	info->slot_bytes = seg->slot_bytes;
	info->word_base = seg->word_base;
	info->slots = seg->slots;
	info->fd = seg->mem.ro_fd;
	info->handle = cqd_pool_of(seg)->ipc ? seg->mem.handle : NULL;
	return 0;
}
