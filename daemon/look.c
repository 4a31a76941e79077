// SPDX-License-Identifier: MIT
/*
 * Pages of a GPU, looked at by a process that can: "cqctl verify --gpu", over the admin
 * socket. It is given places, reads header and payload there, and tells what it found;
 * what that must be is judged here, as for pages of the host (verify.c).
 *
 * Nothing is held meanwhile: a page that went has another word, and what was seen of it
 * means nothing. Its memory stays readable, by the reader's own descriptor; behind a
 * handle it must not be freed, and the segment counts one importer more until the next
 * request. If that does not come, it counts so until cqd is started again.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/store_priv.h"

/*
 * struct cqd_look - one pass
 * @all:   also pages that were looked at before
 * @next:  first page record that was not considered yet
 * @asked: what the last answer was about, [@n]
 * @seg:   ids of the segments in it, [@n_segs]
 */
struct cqd_look {
	struct cqd_store *st;
	struct cqd_pool *pool;
	bool all;
	uint32_t next, n, n_segs;
	struct {
		uint64_t word;
		uint32_t page;
		bool sink;
	} asked[CQP_LOOK_PAGES];
	uint32_t seg[CQP_LOOK_SEGMENTS];
};

/**
 * cqd_look_new() - begin to look at a GPU's pages
 * @st:   store
 * @pool: name of its section
 * @all:  at all of them; else at what nobody looked at since cqd took it over
 * @out:  set on success; ended by cqd_look_free()
 * @err:  text of the failure
 *
 * Return: 0; -ENODEV no such pool; -EINVAL it is the host's; -ENOMEM.
 */
int cqd_look_new(struct cqd_store *st, const char *pool, bool all, struct cqd_look **out,
		 struct cq_err *err)
{
	struct cqd_look *l;
	uint32_t i;

	for (i = 0; i < st->n_pools && strcmp(st->pool[i].name, pool); i++)
		;
	if (i == st->n_pools)
		return cq_err_set(err, -ENODEV, "cqd has no pool \"%.64s\": name a section "
				  "[gpu NAME] of cqd.conf", pool);
	if (!st->pool[i].mem->remote)
		return cq_err_set(err, -EINVAL, "pool \"%.64s\" is in memory that cqd reads "
				  "itself", pool);
	l = calloc(1, sizeof(*l));
	if (!l)
		return cq_err_set(err, -ENOMEM, "cqd is out of memory");
	l->st = st;
	l->pool = &st->pool[i];
	l->all = all;
	*out = l;
	return 0;
}

/**
 * cqd_look_free() - end of a pass
 * @l: pass; or NULL
 */
void cqd_look_free(struct cqd_look *l)
{
	free(l);
}

/* The reader has closed what it was given last. */
static void batch_over(struct cqd_look *l)
{
	struct cqd_segment *seg;
	uint32_t i;

	for (i = 0; i < l->n_segs && l->pool->ipc; i++) {
		seg = cqd_segment_find(l->st, l->seg[i]);
		if (seg && seg->importers)
			seg->importers--;
	}
	l->n_segs = 0;
	l->n = 0;
}

/* Is page record @p still the page that was asked about? */
static bool same(const struct cqd_look *l, uint32_t i)
{
	uint32_t p = l->asked[i].page;

	return l->st->pages[p].state == CQP_SEALED &&
	       l->st->ix.pages[p].word == l->asked[i].word;
}

static bool right(const struct cqd_look *l, uint32_t p, const struct cqp_seen *seen, bool sink)
{
	const struct cqd_shard *sh = l->st->pages[p].shard;
	const struct cqp_rec_page *rec = &l->st->ix.pages[p];

	return cqd_slot_right(sh, rec, CQD_CODES, &seen[0].hdr, seen[0].lo, seen[0].hi) &&
	       (!sink || cqd_slot_right(sh, rec, CQD_SINKS, &seen[1].hdr, seen[1].lo,
					seen[1].hi));
}

/**
 * cqd_look_seen() - judge what the last answer was about
 * @l:     pass
 * @seen:  [@n] in the order of that answer
 * @n:     slots
 * @wrong: set: pages dropped, their descendants not counted
 * @err:   text of the failure
 *
 * Return: 0; -EINVAL it was about another number of slots.
 */
int cqd_look_seen(struct cqd_look *l, const struct cqp_seen *seen, uint32_t n, uint64_t *wrong,
		  struct cq_err *err)
{
	struct cqd_store *st = l->st;
	uint32_t i, p, slots = 0;

	*wrong = 0;
	for (i = 0; i < l->n; i++)
		slots += 1 + l->asked[i].sink;
	if (n != slots)
		return cq_err_set(err, -EINVAL, "Look: %u slots were seen, %u were asked for", n,
				  slots);
	for (i = 0; i < l->n; seen += 1 + l->asked[i].sink, i++) {
		p = l->asked[i].page;
		if (!same(l, i))
			continue;
		cqd_page_verified(st, p);
		if (right(l, p, seen, l->asked[i].sink))
			continue;
		++*wrong;
		cqd_page_bad(st, p, ++st->checked_bad);
	}
	return 0;
}

static bool due(const struct cqd_look *l, uint32_t p)
{
	const struct cqd_page *pg = &l->st->pages[p];

	return pg->shard && pg->state == CQP_SEALED && pg->shard->pool == l->pool &&
	       (l->all || pg->flags & CQD_PG_UNVERIFIED);
}

/* One segment of each kind goes with an answer. */
static bool add_segment(struct cqd_look *l, struct cqd_look_batch *b, unsigned int kind,
			struct cqd_segment *seg)
{
	uint32_t i;

	for (i = 0; i < b->n_segs; i++)
		if (b->seg[i].kind == kind)
			return l->seg[i] == seg->id;
	l->seg[b->n_segs] = seg->id;
	b->seg[b->n_segs++] = (struct cqd_look_segment){
		.kind = kind, .bytes = seg->mem.bytes, .fd = l->pool->ipc ? -1 : seg->mem.ro_fd,
		.handle = l->pool->ipc ? seg->mem.handle : NULL,
	};
	l->n_segs = b->n_segs;
	if (l->pool->ipc)
		seg->importers++;
	return true;
}

static void add_slot(struct cqd_look_batch *b, unsigned int kind, struct cqd_place at)
{
	struct cqp_look *s = &b->slots[b->n_slots++];

	*s = (struct cqp_look){
		.offset = at.slot * at.seg->slot_bytes,
		.payload = at.seg->shard->kind[kind].payload,
		.segment = b->n_segs > 1 && b->seg[1].kind == kind,
	};
}

/* False: it lies in another segment than those before it. */
static bool add_page(struct cqd_look *l, struct cqd_look_batch *b, uint32_t p)
{
	struct cqd_place code = cqd_page_place(l->st, p, CQD_CODES);
	struct cqd_place sink = cqd_page_place(l->st, p, CQD_SINKS);

	if (!add_segment(l, b, CQD_CODES, code.seg) ||
	    (sink.seg && !add_segment(l, b, CQD_SINKS, sink.seg)))
		return false;
	l->asked[l->n].page = p;
	l->asked[l->n].word = l->st->ix.pages[p].word;
	l->asked[l->n++].sink = sink.seg != NULL;
	add_slot(b, CQD_CODES, code);
	if (sink.seg)
		add_slot(b, CQD_SINKS, sink);
	return true;
}

/**
 * cqd_look_next() - what is to be looked at next
 * @l: pass
 * @b: filled; without slots: the pass is over. Descriptors and handles are the store's
 */
void cqd_look_next(struct cqd_look *l, struct cqd_look_batch *b)
{
	batch_over(l);
	memset(b, 0, sizeof(*b));
	b->device = l->pool->dev.uuid;
	b->rate = l->all ? 0 : l->st->o.verify_rate;
	for (; l->next < l->st->ix.t_pages.high && l->n < CQP_LOOK_PAGES; l->next++)
		if (due(l, l->next) && !add_page(l, b, l->next))
			break;
}
