// SPDX-License-Identifier: MIT
/*
 * Counters of namespaces, and notices of events. The store calls in here where
 * something happens; nothing here changes what it does.
 */
#include <string.h>
#include "daemon/store_priv.h"

/* --- notices --- */

/**
 * cqd_store_watch() - hear of every event
 * @st:  store
 * @fn:  called on the loop, must not touch the store; NULL: nobody watches
 * @arg: passed to @fn
 */
void cqd_store_watch(struct cqd_store *st, cqd_watch_fn fn, void *arg)
{
	st->watch = fn;
	st->watch_arg = arg;
}

/* Names are at most CQP_MAX_NAME - 1 bytes, and the rest is zero. */
static void set_name(char to[CQP_MAX_NAME], const char *from)
{
	memcpy(to, from, strnlen(from, CQP_MAX_NAME - 1));
}

static void describe(const struct cqd_store *st, uint32_t p, struct cqd_notice *out)
{
	const struct cqd_page *pg = &st->pages[p];
	const struct cqp_rec_page *r = &st->ix.pages[p];

	memcpy(out->key.b, r->key, sizeof(out->key.b));
	/* Unknown: a root key that was not asked for since a restart, and whose page
	 * lies before one behind another namespace's. */
	out->has_parent = pg->parent != CQP_NONE || (pg->shard->has_root && !r->behind);
	if (pg->parent != CQP_NONE)
		memcpy(out->parent.b, st->ix.pages[pg->parent].key, sizeof(out->parent.b));
	else if (out->has_parent)
		out->parent = pg->shard->root;
	out->depth = r->depth;
	out->bytes = cqd_page_bytes(pg->shard, pg->flags & CQD_PG_SINK);
	out->range = pg->shard->range;
	out->pool = (uint8_t)(pg->shard->pool - st->pool);
	set_name(out->tenant, pg->shard->ns->name);
	set_name(out->name, pg->shard->model->name);
}

static void tell_page(struct cqd_store *st, uint32_t p, unsigned int kind,
		      unsigned int reason)
{
	struct cqd_notice n = { .kind = (uint8_t)kind, .reason = (uint8_t)reason };

	if (!st->watch)
		return;
	describe(st, p, &n);
	st->watch(st->watch_arg, &n);
}

/**
 * cqd_store_resident() - one page of a snapshot
 * @st:     store
 * @ns:     of this namespace, NULL: of all
 * @cursor: 0 at first; UINT32_MAX when the end was reached
 * @max:    records to look at, so that a call is short
 * @out:    filled on success
 *
 * Pages sealed and gone between calls are told to whoever watches, so that
 * snapshot and notices together miss nothing.
 *
 * Return: true; false if there was none among @max records.
 */
bool cqd_store_resident(struct cqd_store *st, const struct cqd_ns *ns,
			uint32_t *cursor, uint32_t max, struct cqd_notice *out)
{
	const struct cqd_page *pg;
	uint32_t p;

	for (; max && *cursor < st->ix.t_pages.high; max--) {
		p = (*cursor)++;
		pg = &st->pages[p];
		if (!pg->shard || (ns && pg->shard->ns != ns) ||
		    (pg->state != CQP_SEALED && pg->state != CQP_EVICTING))
			continue;
		*out = (struct cqd_notice){ .kind = CQD_NOTICE_RESIDENT };
		describe(st, p, out);
		return true;
	}
	if (*cursor >= st->ix.t_pages.high)
		*cursor = UINT32_MAX;
	return false;
}

/* --- pages --- */

/**
 * cqd_evicted() - a page is going to go
 * @st:     store
 * @p:      page in state SEALED or EVICTING
 * @reason: why
 *
 * To be called right before cqd_page_free() or cqd_page_drop(); descendants
 * that cqd_page_drop() takes along are CQD_EVICT_DROPPED, like every page that
 * goes without this call.
 */
void cqd_evicted(struct cqd_store *st, uint32_t p, enum cqd_evict_reason reason)
{
	st->leaving = p;
	st->leaving_why = reason;
}

/**
 * cqd_page_gone() - a sealed page cannot be found any more
 * @st: store
 * @p:  page, still in state SEALED or EVICTING
 */
void cqd_page_gone(struct cqd_store *st, uint32_t p)
{
	struct cqd_ns_counts *c = &st->pages[p].shard->ns->counts;
	enum cqd_evict_reason why = CQD_EVICT_DROPPED;
	uint64_t now = cqd_now_us(), used = st->ix.pages[p].last_use_us;

	if (st->leaving == p) {
		why = st->leaving_why;
		st->leaving = CQP_NONE;
	}
	c->gone[why]++;
	if (why != CQD_EVICT_DROPPED) {
		st->evictions++;
		cqd_hist_add(&c->age, cqd_age_bounds_us, CQD_AGE_BOUNDS,
			     now > used ? now - used : 0);
	}
	tell_page(st, p, CQD_NOTICE_GONE, why);
}

/**
 * cqd_looked_up() - a lookup was answered
 * @cl:     who asked
 * @sh:     where
 * @hits:   pages found
 * @misses: pages not found
 */
void cqd_looked_up(struct cqd_client *cl, struct cqd_shard *sh, unsigned int hits,
		   unsigned int misses)
{
	struct cqd_ns_counts *c = &sh->ns->counts;

	sh->st->hits += hits;
	sh->st->misses += misses;
	c->lookups++;
	c->hits += hits;
	c->misses += misses;
	cl->lookups++;
	cl->hits += hits;
	cl->misses += misses;
}

/**
 * cqd_page_sealed() - a page was published
 * @st:    store
 * @p:     page
 * @cl:    by this session
 * @saved: it came from a file: nobody sealed it
 */
void cqd_page_sealed(struct cqd_store *st, uint32_t p, struct cqd_client *cl, bool saved)
{
	struct cqd_ns_counts *c = &st->pages[p].shard->ns->counts;

	st->published++;
	if (saved) {
		st->restored++;
		c->restored++;
	} else {
		cl->sealed++;
		st->seals++;
		c->seals++;
	}
	tell_page(st, p, CQD_NOTICE_SEALED, 0);
}

/**
 * cqd_checksum_failed() - a page is not what was sealed
 * @st: store
 * @p:  page, about to be dropped
 */
void cqd_checksum_failed(struct cqd_store *st, uint32_t p)
{
	st->checksum_failures++;
	st->pages[p].shard->ns->counts.checksum_failures++;
	tell_page(st, p, CQD_NOTICE_CHECKSUM, 0);
}

/* --- models and clients --- */

/**
 * cqd_model_changed() - a model was loaded or unloaded
 * @m:      model
 * @loaded: it can be opened from now on
 */
void cqd_model_changed(struct cqd_model *m, bool loaded)
{
	struct cqd_notice n = {
		.kind = loaded ? CQD_NOTICE_LOADED : CQD_NOTICE_UNLOADED,
		.bytes = m->bytes,
	};

	if (!m->st->watch)
		return;
	set_name(n.name, m->name);
	m->st->watch(m->st->watch_arg, &n);
}

/**
 * cqd_client_changed() - a session began or ended
 * @cl:     session
 * @joined: it began
 */
void cqd_client_changed(struct cqd_client *cl, bool joined)
{
	const struct cqp_rec_client *r = &cl->st->ix.clients[cl->rec];
	struct cqd_notice n = {
		.kind = joined ? CQD_NOTICE_JOINED : CQD_NOTICE_LEFT,
		.pid = r->pid,
		.uid = r->uid,
	};

	if (!cl->st->watch)
		return;
	set_name(n.tenant, cl->ns->name);
	set_name(n.name, r->name);
	cl->st->watch(cl->st->watch_arg, &n);
}
