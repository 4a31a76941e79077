// SPDX-License-Identifier: MIT
/*
 * Restart, second part: segments, pages, their tree and their order.
 *
 * Pages are believed one by one at first (place, generation, key), then hung
 * below each other: a page whose parent did not hold goes, and so does what
 * hangs on it. A depth that is not the parent's plus one ends every cycle.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/adopt.h"

/* --- segments --- */

/**
 * cqd_model_by_rec() - model of a record
 * @st:  store
 * @rec: number
 *
 * Return: the model or NULL.
 */
struct cqd_model *cqd_model_by_rec(struct cqd_store *st, uint32_t rec)
{
	struct list_head *pos;

	list_for_each(pos, &st->models)
		if (list_entry(pos, struct cqd_model, node)->rec == rec)
			return list_entry(pos, struct cqd_model, node);
	return NULL;
}

static bool sizes_hold(const struct cqp_rec_segment *r, const struct cqd_shard *sh,
		       unsigned int kind)
{
	uint64_t spare = MAX(CQD_HUGE_BYTES, sh->pool->dev.granularity);
	const struct cqd_ns *ns = sh->ns;

	return r->slots && sh->kind[kind].slot_bytes &&
	       r->slot_bytes == sh->kind[kind].slot_bytes &&
	       r->slots <= r->bytes / r->slot_bytes &&
	       r->bytes - r->slots * r->slot_bytes < spare &&
	       r->word_base <= ns->n_words && r->slots <= ns->n_words - r->word_base;
}

/* Onto the namespace's map of words; false if it overlaps another. */
static bool claim_words(struct cqd_segment *seg)
{
	struct list_head *pos;

	list_for_each(pos, &seg->shard->ns->segs) {
		const struct cqd_segment *s = list_entry(pos, struct cqd_segment, ns_node);

		if (s->word_base >= seg->word_base + seg->slots)
			break;
		if (s->word_base + s->slots > seg->word_base)
			return false;
	}
	list_add_tail(&seg->ns_node, pos);
	return true;
}

static struct cqd_segment *seg_object(struct cqd_shard *sh, unsigned int kind,
				      uint32_t rec, int fd)
{
	const struct cqp_rec_segment *r = &sh->st->ix.segs[rec];
	struct cqd_segment *seg = calloc(1, sizeof(*seg));

	if (!seg)
		return NULL;
	seg->st = sh->st;
	seg->shard = sh;
	seg->rec = rec;
	seg->kind = kind;
	seg->id = r->id;
	seg->slots = r->slots;
	seg->slot_bytes = r->slot_bytes;
	seg->word_base = r->word_base;
	seg->mem = (struct cqd_mem){ .bytes = r->bytes, .id = r->id, .fd = fd, .ro_fd = -1,
				     .dev = &sh->pool->dev };
	seg->live = true;
	seg->empty_since = uv_now(sh->st->loop);
	list_init(&seg->ns_node);
	list_init(&seg->partial_node);
	sh->pool->reserved += r->bytes;
	return seg;
}

/* The segment around @fd, or what its holder has; false leaves @fd alone. */
static bool segment_around(struct cqd_shard *sh, unsigned int kind, uint32_t rec, int fd)
{
	const struct cqd_mem_ops *mem = sh->pool->mem;
	struct cqd_segment *seg = seg_object(sh, kind, rec, fd);

	if (!seg)
		return false;
	if (!claim_words(seg) || mem->adopt(&seg->mem, NULL))
		goto err_seg;
	if (cqd_segment_arrays(seg))
		goto err_mem;
	cqd_segment_hash(seg);
	sh->kind[kind].segments++;
	return true;

err_mem:
	seg->mem.fd = -1;	/* stays the caller's */
	mem->destroy(&seg->mem);
err_seg:
	cqd_segment_release(seg);
	return false;
}

/**
 * cqd_adopt_segment() - a segment record and its descriptor
 * @ad: restart
 * @i:  record, SEALED
 *
 * Return: true if it holds.
 */
bool cqd_adopt_segment(struct cqd_adopt *ad, uint32_t i)
{
	struct cqd_store *st = ad->st;
	const struct cqp_rec_segment *r = &st->ix.segs[i];
	struct cqp_shard range = { r->layer_begin, r->layer_end, r->head_begin,
				   r->head_end };
	unsigned int kind = r->kind == CQ_PAGE_SINK ? CQD_SINKS : CQD_CODES;
	struct cqd_ns *ns = cqd_ns_by_rec(st, r->ns);
	struct cqd_model *m = cqd_model_by_rec(st, r->model);
	struct cqd_pool *pool = cqd_pool_recorded(st, r);
	struct cqd_shard *sh;
	char name[32];
	int fd;

	if (!ns || !m || !pool || (r->kind != CQ_PAGE_SINK && r->kind != CQ_PAGE_CODES) ||
	    !r->id || r->id == CQP_NONE || cqd_segment_find(st, r->id) ||
	    cqd_shard_make(ns, m, pool, &range, &sh, NULL))
		return false;
	if (pool->ipc) {
		if (sizes_hold(r, sh, kind) && segment_around(sh, kind, i, -1))
			return true;
		pool->lost = true;
		cqd_shard_put(sh);
		return false;
	}
	snprintf(name, sizeof(name), "cq-seg-%u", r->id);
	fd = sizes_hold(r, sh, kind) ? cqd_adopt_take(ad, name) : -1;
	if (fd >= 0 && segment_around(sh, kind, i, ad->fds[fd]))
		return true;
	if (fd >= 0)
		ad->taken[fd] = false;
	cqd_shard_put(sh);
	return false;
}

/* --- pages --- */

/* Does the slot hold generation @gen, and nobody else claim it? */
static bool place_holds(struct cqd_store *st, unsigned int kind, uint32_t segment,
			uint32_t slot, uint64_t gen)
{
	const struct cqd_segment *seg;
	unsigned int state;
	uint64_t word;

	if (segment >= CQD_MAX_SEGMENTS || !st->segs[segment])
		return false;
	seg = st->segs[segment];
	if (seg->kind != kind || slot >= seg->slots || seg->owner[slot] != CQP_NONE)
		return false;
	word = *cqd_segment_word(seg, slot);
	state = CQP_WORD_STATE(word);
	/* Died between the record's word and the slot's: at the end of a seal,
	 * or when a victim was taken back. */
	return CQP_WORD_GEN(word) == gen && (state == CQP_SEALED || state == CQP_FILLING ||
					     state == CQP_EVICTING);
}

static bool page_holds(struct cqd_store *st, const struct cqp_rec_page *r)
{
	bool first = !r->depth, sink = r->sink_segment != CQP_NONE;
	const struct cqd_shard *sh;

	if (!place_holds(st, CQD_CODES, r->segment, r->slot, r->slot_gen))
		return false;
	sh = st->segs[r->segment]->shard;
	/* Behind another namespace's pages there may be more than there are here. */
	if ((r->parent == CQP_NONE ? !first && !r->behind : first) || r->depth == UINT32_MAX ||
	    sink != (first && sh->kind[CQD_SINKS].slot_bytes))
		return false;
	return !sink || (place_holds(st, CQD_SINKS, r->sink_segment, r->sink_slot,
				     r->sink_gen) &&
			 st->segs[r->sink_segment]->shard == sh);
}

/* Most words are right already; what is not written stays clean memory. */
static void set_state(uint64_t *word, unsigned int state)
{
	if (CQP_WORD_STATE(*word) != state)
		cqd_word_state(word, state);
}

static void claim(struct cqd_store *st, uint32_t p, unsigned int kind)
{
	struct cqd_place at = cqd_page_place(st, p, kind);

	if (!at.seg)
		return;
	cqd_slot_adopt(at.seg, at.slot, p);
	set_state(cqd_segment_word(at.seg, at.slot), CQP_SEALED);
}

/**
 * cqd_adopt_page_soon() - the turn of a page record comes
 * @ad: restart
 * @i:  record CQD_ADOPT_AHEAD places on, possibly beyond the last
 */
void cqd_adopt_page_soon(struct cqd_adopt *ad, uint32_t i)
{
	struct cqd_store *st = ad->st;
	uint64_t *hash = &ad->hash[i % CQD_ADOPT_AHEAD];

	if (i < st->ix.t_pages.high)
		*hash = cqd_page_hash_soon(st, i);
	/* Its bucket was asked for half of the way ago. */
	if (i >= CQD_ADOPT_AHEAD / 2)
		cqd_page_find_soon(st, ad->hash[(i - CQD_ADOPT_AHEAD / 2) % CQD_ADOPT_AHEAD]);
}

static bool parent_holds(const struct cqd_store *st, uint32_t p)
{
	const struct cqp_rec_page *r = &st->ix.pages[p];

	if (r->parent == CQP_NONE)
		return true;
	return r->parent < st->ix.t_pages.high && st->pages[r->parent].shard &&
	       st->pages[r->parent].shard == st->pages[p].shard &&
	       st->ix.pages[r->parent].depth + 1 == r->depth;
}

/* Below its parent, which was most often made before it, and is near. */
static void hang(struct cqd_adopt *ad, uint32_t p)
{
	struct cqd_store *st = ad->st;

	if (parent_holds(st, p)) {
		cqd_page_link(st, p, st->ix.pages[p].parent);
	} else {
		st->pages[p].lru_next = ad->later;
		ad->later = p;
	}
}

/**
 * cqd_adopt_page() - a page record by itself
 * @ad: restart
 * @i:  record, SEALED
 *
 * Return: true if it holds; if its parent does not, it goes by cqd_adopt_tree().
 */
bool cqd_adopt_page(struct cqd_adopt *ad, uint32_t i)
{
	struct cqd_store *st = ad->st;
	struct cqp_rec_page *r = &st->ix.pages[i];
	bool sink = r->sink_segment != CQP_NONE;
	struct cqd_shard *sh;

	if (!page_holds(st, r))
		return false;
	sh = st->segs[r->segment]->shard;
	st->pages[i] = (struct cqd_page){
		.shard = sh, .child = CQP_NONE, .parent = CQP_NONE, .state = CQP_SEALED,
		.flags = CQD_PG_UNVERIFIED | (sink ? CQD_PG_SINK : 0),
	};
	if (!cqd_page_hash_new(st, i, sh, ad->hash[i % CQD_ADOPT_AHEAD])) {
		st->pages[i] = (struct cqd_page){ 0 };
		return false;
	}
	st->n_state[CQP_FREE]--;
	st->n_state[CQP_SEALED]++;
	sh->ns->counts.state[CQP_SEALED]++;
	(*cqd_unverified_of(st, sh))++;
	sh->pages++;
	sh->ns->pages++;
	sh->ns->used_bytes += cqd_page_bytes(sh, sink);
	if (r->last_use_us > ad->now)
		r->last_use_us = ad->now;
	if (r->parent != CQP_NONE && r->behind)
		r->behind = 0;	/* died while it got its parent */
	claim(st, i, CQD_CODES);
	claim(st, i, CQD_SINKS);
	cqd_lru_note(st, i);
	hang(ad, i);
	return true;
}

/* Words of slots that nobody owns any more. */
static void sweep(struct cqd_store *st)
{
	struct cqd_segment *seg;
	uint32_t i, slot;

	for (i = 0; i < CQD_MAX_SEGMENTS; i++) {
		seg = st->segs[i];
		for (slot = 0; seg && slot < seg->slots; slot++)
			if (seg->owner[slot] == CQP_NONE && !cqd_adopt_lost(seg, slot))
				set_state(cqd_segment_word(seg, slot), CQP_FREE);
		if (seg)
			cqd_segment_free_list(seg);
	}
}

/**
 * cqd_adopt_tree() - hang pages below parents whose records came after theirs
 * @ad: restart
 *
 * Those without a parent go, with what hangs on them. They are chained by their
 * LRU links, which nobody uses yet.
 */
void cqd_adopt_tree(struct cqd_adopt *ad)
{
	struct cqd_store *st = ad->st;
	uint32_t p, again = ad->later;
	uint64_t before = st->n_state[CQP_SEALED];

	ad->later = CQP_NONE;
	while (again != CQP_NONE) {
		p = again;
		again = st->pages[p].lru_next;
		hang(ad, p);
	}
	while (ad->later != CQP_NONE) {
		p = ad->later;
		ad->later = st->pages[p].lru_next;
		cqd_page_drop(st, p);
	}
	ad->lost_records += (unsigned int)(before - st->n_state[CQP_SEALED]);
	sweep(st);
}

/* --- order --- */

struct leaf {
	uint64_t use;
	uint32_t page;
};

static int by_use(const void *a, const void *b)
{
	const struct leaf *x = a, *y = b;

	return x->use < y->use ? -1 : x->use > y->use;
}

/**
 * cqd_adopt_order() - queues of what may go, as the records say
 * @ad: restart; pins are counted
 *
 * Return: 0 or -ENOMEM.
 */
int cqd_adopt_order(struct cqd_adopt *ad)
{
	struct cqd_store *st = ad->st;
	struct leaf *leaves = malloc(((size_t)st->ix.t_pages.high + 1) * sizeof(*leaves));
	uint32_t i, n = 0;

	if (!leaves)
		return -ENOMEM;
	for (i = 0; i < st->ix.t_pages.high; i++) {
		if (!st->pages[i].shard || st->pages[i].child != CQP_NONE)
			continue;
		leaves[n].use = st->ix.pages[i].last_use_us;
		leaves[n++].page = i;
	}
	qsort(leaves, n, sizeof(*leaves), by_use);
	for (i = 0; i < n; i++)
		cqd_page_settle(st, leaves[i].page);
	free(leaves);
	return 0;
}
