// SPDX-License-Identifier: MIT
/*
 * Pages: the hash by key, the tree of prefixes, the words that tell the world.
 *
 * Order of the two words of a page (Documentation/memory-ordering.md): the
 * index record first, the state word second, at birth as at death. Whoever
 * sees a state word SEALED, finds a record; a record that died leaves at
 * worst a slot to sweep up.
 */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "daemon/store_priv.h"

/**
 * cqd_now_us() - clock of last_use_us; goes on over a restart of cqd
 *
 * Return: microseconds.
 */
uint64_t cqd_now_us(void)
{
	return uv_hrtime() / 1000;
}

/* --- hash --- */

static uint64_t hash_of(const struct cqd_store *st, const void *key)
{
	/* Seeded: who chooses tokens must not choose chains. */
	return XXH3_64bits_withSeed(key, CQ_KEY_BYTES, st->hash_seed);
}

static uint32_t *bucket(const struct cqd_store *st, uint64_t hash)
{
	return &st->page_hash[hash & st->page_mask];
}

/* Not of the bits that choose the bucket, unless there are very many. */
static uint16_t tag_of(uint64_t hash)
{
	return (uint16_t)(hash >> 48);
}

static bool has_key(const struct cqd_store *st, uint32_t p, const void *key, uint64_t hash)
{
	return st->pages[p].tag == tag_of(hash) &&
	       !memcmp(st->ix.pages[p].key, key, CQ_KEY_BYTES);
}

/**
 * cqd_page_chain() - pages that may have a key
 * @st:  store
 * @key: key
 *
 * Return: first page of the hash chain, linked by hash_next; CQP_NONE.
 */
uint32_t cqd_page_chain(struct cqd_store *st, const struct cqp_key *key)
{
	return *bucket(st, hash_of(st, key->b));
}

static uint32_t find(const struct cqd_store *st, const struct cqd_shard *sh, const void *key,
		     uint64_t hash)
{
	uint32_t p = *bucket(st, hash);

	while (p != CQP_NONE && (st->pages[p].shard != sh || !has_key(st, p, key, hash)))
		p = st->pages[p].hash_next;
	return p;
}

/**
 * cqd_page_find() - page of a shard by key
 * @st:  store
 * @sh:  shard
 * @key: key
 *
 * Return: page record in state FILLING, SEALED or EVICTING; CQP_NONE.
 */
uint32_t cqd_page_find(struct cqd_store *st, const struct cqd_shard *sh,
		       const struct cqp_key *key)
{
	return find(st, sh, key->b, hash_of(st, key->b));
}

/**
 * cqd_page_find_ns() - page of a namespace by key
 * @st:  store
 * @ns:  namespace
 * @key: key; names the shard too, so there is one at most
 *
 * Return: as cqd_page_find().
 */
uint32_t cqd_page_find_ns(struct cqd_store *st, const struct cqd_ns *ns,
			  const struct cqp_key *key)
{
	uint64_t hash = hash_of(st, key->b);
	uint32_t p = *bucket(st, hash);

	while (p != CQP_NONE && (st->pages[p].shard->ns != ns ||
				 !has_key(st, p, key->b, hash)))
		p = st->pages[p].hash_next;
	return p;
}

static void insert(struct cqd_store *st, uint32_t p, uint64_t hash)
{
	uint32_t *b = bucket(st, hash);

	st->pages[p].hash_next = *b;
	st->pages[p].tag = tag_of(hash);
	st->pages[p].flags |= CQD_PG_HASHED;
	*b = p;
}

/**
 * cqd_page_hash() - make a page findable
 * @st: store
 * @p:  page; its record's key is set
 */
void cqd_page_hash(struct cqd_store *st, uint32_t p)
{
	insert(st, p, hash_of(st, st->ix.pages[p].key));
}

/**
 * cqd_page_hash_soon() - a page will be looked for by its own key
 * @st: store
 * @p:  any page record
 *
 * Keys lead anywhere, and a scan would wait for memory at each of them.
 *
 * Return: hash of the key in its record.
 */
uint64_t cqd_page_hash_soon(struct cqd_store *st, uint32_t p)
{
	uint64_t hash = hash_of(st, st->ix.pages[p].key);

	__builtin_prefetch(bucket(st, hash), 1);
	return hash;
}

/**
 * cqd_page_find_soon() - the same, sooner: the first page of the chain
 * @st:   store
 * @hash: from cqd_page_hash_soon(), some time ago
 */
void cqd_page_find_soon(const struct cqd_store *st, uint64_t hash)
{
	uint32_t p = *bucket(st, hash);

	if (p != CQP_NONE)
		__builtin_prefetch(&st->pages[p]);
}

/**
 * cqd_page_hash_new() - make a page findable if no other has its key
 * @st:   store
 * @p:    page; its record's key is set
 * @sh:   shard it belongs to
 * @hash: from cqd_page_hash_soon()
 *
 * Return: false if the shard has a page of that key.
 */
bool cqd_page_hash_new(struct cqd_store *st, uint32_t p, const struct cqd_shard *sh,
		       uint64_t hash)
{
	if (find(st, sh, st->ix.pages[p].key, hash) != CQP_NONE)
		return false;
	insert(st, p, hash);
	return true;
}

static void unhash(struct cqd_store *st, uint32_t p)
{
	uint32_t *b;

	if (!(st->pages[p].flags & CQD_PG_HASHED))
		return;
	b = bucket(st, hash_of(st, st->ix.pages[p].key));
	if (st->pages[p].state != CQP_FILLING)
		cqd_page_gone(st, p);
	while (*b != p)
		b = &st->pages[*b].hash_next;
	*b = st->pages[p].hash_next;
	st->pages[p].flags &= (uint8_t)~CQD_PG_HASHED;
}

/* --- tree --- */

/**
 * cqd_page_link() - hang a page below its parent
 * @st:     store
 * @p:      page without parent
 * @parent: page, CQP_NONE for page 0
 */
void cqd_page_link(struct cqd_store *st, uint32_t p, uint32_t parent)
{
	struct cqd_page *pg = &st->pages[p], *up;

	pg->parent = parent;
	pg->sib_prev = CQP_NONE;
	pg->sib_next = CQP_NONE;
	if (parent == CQP_NONE)
		return;
	up = &st->pages[parent];
	pg->sib_next = up->child;
	if (up->child != CQP_NONE)
		st->pages[up->child].sib_prev = p;
	up->child = p;
	cqd_page_settle(st, parent);
}

static void unlink_page(struct cqd_store *st, uint32_t p)
{
	struct cqd_page *pg = &st->pages[p];
	uint32_t parent = pg->parent;

	if (parent == CQP_NONE)
		return;
	if (pg->sib_next != CQP_NONE)
		st->pages[pg->sib_next].sib_prev = pg->sib_prev;
	if (pg->sib_prev != CQP_NONE)
		st->pages[pg->sib_prev].sib_next = pg->sib_next;
	else
		st->pages[parent].child = pg->sib_next;
	pg->parent = CQP_NONE;
	/* Who used the child used its ancestors. */
	if (pg->state != CQP_FILLING)
		cqd_lru_used(st, parent, st->ix.pages[p].last_use_us, 0);
	cqd_page_settle(st, parent);
}

/* --- life --- */

/**
 * cqd_page_place() - where a page lies
 * @st:   store
 * @p:    page
 * @kind: CQD_CODES or CQD_SINKS
 *
 * Return: the place; seg NULL if it has none.
 */
struct cqd_place cqd_page_place(struct cqd_store *st, uint32_t p, unsigned int kind)
{
	const struct cqp_rec_page *r = &st->ix.pages[p];
	uint32_t seg = kind == CQD_SINKS ? r->sink_segment : r->segment;
	struct cqd_place at = { 0 };

	if (seg != CQP_NONE) {
		at.seg = st->segs[seg];
		at.slot = kind == CQD_SINKS ? r->sink_slot : r->slot;
	}
	return at;
}

static void count_state(struct cqd_store *st, const struct cqd_page *pg,
			unsigned int next)
{
	uint64_t *of_ns = pg->shard->ns->counts.state;

	st->n_state[pg->state]--;
	st->n_state[next]++;
	if (pg->state != CQP_FREE)
		of_ns[pg->state]--;
	if (next != CQP_FREE)
		of_ns[next]++;
}

/**
 * cqd_page_event() - change a page's state, its record's and slots' words
 * @st: store
 * @p:  page
 * @ev: what happened; must be possible in its state
 */
void cqd_page_event(struct cqd_store *st, uint32_t p, enum cqd_event ev)
{
	struct cqd_page *pg = &st->pages[p];
	int next = cqd_state_next(pg->state, ev);
	struct cqd_place at;
	unsigned int k;

	/* A broken invariant: better a restart, which loses nothing, than
	 * pages that say what is not so. */
	if (next < 0)
		abort();
	count_state(st, pg, (unsigned int)next);
	pg->state = (uint8_t)next;
	if (ev == CQD_EV_FILL) {
		cqd_word_born(&st->ix.pages[p].word, (unsigned int)next);
		return;
	}
	cqd_word_state(&st->ix.pages[p].word, (unsigned int)next);
	for (k = 0; k < CQD_N_KINDS; k++) {
		at = cqd_page_place(st, p, k);
		if (at.seg)
			cqd_word_state(cqd_segment_word(at.seg, at.slot),
				       (unsigned int)next);
	}
}

/**
 * cqd_page_bytes() - bytes of slots that a page takes
 * @sh:   shard
 * @sink: with a sink object
 *
 * Return: bytes.
 */
uint64_t cqd_page_bytes(const struct cqd_shard *sh, bool sink)
{
	return sh->kind[CQD_CODES].slot_bytes +
	       (sink ? sh->kind[CQD_SINKS].slot_bytes : 0);
}

/**
 * cqd_page_begin() - a page that is going to be filled
 * @sh:     shard
 * @key:    its key, not in use
 * @parent: page before, CQP_NONE for page 0
 * @sink:   it has a sink object
 * @op:     seal that fills it
 *
 * Return: page record, without slots; CQP_NONE if none is free.
 */
uint32_t cqd_page_begin(struct cqd_shard *sh, const struct cqp_key *key,
			uint32_t parent, bool sink, struct cqd_seal_op *op)
{
	struct cqd_store *st = sh->st;
	uint32_t p = cqd_tab_get(&st->ix.t_pages);
	struct cqp_rec_page *r;
	struct cqd_page *pg;

	if (p == CQP_NONE)
		return p;
	r = &st->ix.pages[p];
	pg = &st->pages[p];
	memcpy(r->key, key->b, sizeof(r->key));
	r->segment = CQP_NONE;
	r->sink_segment = CQP_NONE;
	*pg = (struct cqd_page){
		.shard = sh, .filler = op, .child = CQP_NONE, .state = CQP_FREE,
		.flags = sink ? CQD_PG_SINK : 0,
	};
	cqd_page_event(st, p, CQD_EV_FILL);
	cqd_page_hash(st, p);
	cqd_page_link(st, p, parent);
	sh->pages++;
	sh->ns->pages++;
	sh->ns->used_bytes += cqd_page_bytes(sh, sink);
	return p;
}

void cqd_page_verified(struct cqd_store *st, uint32_t p)
{
	if (st->pages[p].flags & CQD_PG_UNVERIFIED)
		(*cqd_unverified_of(st, st->pages[p].shard))--;
	st->pages[p].flags &= (uint8_t)~CQD_PG_UNVERIFIED;
}

/**
 * cqd_page_free() - the end of a page
 * @st: store
 * @p:  page without children
 * @ev: why
 */
void cqd_page_free(struct cqd_store *st, uint32_t p, enum cqd_event ev)
{
	struct cqd_page *pg = &st->pages[p];
	struct cqd_place code = cqd_page_place(st, p, CQD_CODES);
	struct cqd_place sink = cqd_page_place(st, p, CQD_SINKS);
	struct cqd_shard *sh = pg->shard;

	cqd_lru_del(st, p);
	unhash(st, p);
	unlink_page(st, p);
	cqd_page_event(st, p, ev);
	cqd_slot_free(code);
	cqd_slot_free(sink);
	cqd_page_verified(st, p);
	sh->pages--;
	sh->ns->pages--;
	sh->ns->used_bytes -= cqd_page_bytes(sh, pg->flags & CQD_PG_SINK);
	pg->shard = NULL;
	pg->flags = 0;
	cqd_tab_put(&st->ix.t_pages, p);
}

/* A page that cannot be kept, children gone already. */
static void drop_one(struct cqd_store *st, uint32_t p)
{
	struct cqd_page *pg = &st->pages[p];

	if (pg->state == CQP_FILLING) {
		/* Its seal ends it: a thread may be writing into the slot. */
		pg->filler->parent_lost = true;
		unlink_page(st, p);
		return;
	}
	if (pg->state == CQP_QUARANTINED)
		return;
	if (pg->state == CQP_EVICTING)
		cqd_evict_take_back(st, p);
	if (!pg->pins && !pg->holds) {
		cqd_page_free(st, p, CQD_EV_DROP);
		return;
	}
	cqd_lru_del(st, p);
	unhash(st, p);
	unlink_page(st, p);
	cqd_page_verified(st, p);
	cqd_page_event(st, p, CQD_EV_QUARANTINE);
}

/**
 * cqd_page_drop() - a page and its descendants must not be found any more
 * @st: store
 * @p:  page
 *
 * Freed at once, or, while somebody reads them, quarantined: the slot is not
 * written before the last pin is gone.
 */
void cqd_page_drop(struct cqd_store *st, uint32_t p)
{
	uint32_t at = p, up;

	for (;;) {
		while (st->pages[at].child != CQP_NONE)
			at = st->pages[at].child;
		up = st->pages[at].parent;
		drop_one(st, at);
		if (at == p)
			return;
		at = up;
	}
}

/**
 * cqd_page_settle() - put a page where its pins, holds and children say
 * @st: store
 * @p:  page
 */
void cqd_page_settle(struct cqd_store *st, uint32_t p)
{
	struct cqd_page *pg = &st->pages[p];
	bool unused = !pg->pins && !pg->holds;

	if (pg->state == CQP_QUARANTINED && unused)
		cqd_page_free(st, p, CQD_EV_UNUSED);
	else if (pg->state == CQP_SEALED && unused && pg->child == CQP_NONE)
		cqd_lru_add(st, p);
	else
		cqd_lru_del(st, p);
}

/**
 * cqd_page_touch() - a page was used once more
 * @st: store
 * @p:  page
 */
void cqd_page_touch(struct cqd_store *st, uint32_t p)
{
	cqd_lru_del(st, p);
	cqd_lru_used(st, p, cqd_now_us(), 1);
	cqd_page_settle(st, p);
}

/**
 * cqd_page_hold() - keep a page while a job reads it
 * @st: store
 * @p:  page
 */
void cqd_page_hold(struct cqd_store *st, uint32_t p)
{
	st->pages[p].holds++;
	cqd_page_settle(st, p);
}

/**
 * cqd_page_unhold() - undo cqd_page_hold(); may free a quarantined page
 * @st: store
 * @p:  page
 */
void cqd_page_unhold(struct cqd_store *st, uint32_t p)
{
	st->pages[p].holds--;
	cqd_page_settle(st, p);
}
