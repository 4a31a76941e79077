// SPDX-License-Identifier: MIT
/*
 * Eviction: who goes when. The order is lru.c's, what has expired (ttl.c) goes
 * before it, whole segments are evict_segment.c's.
 *
 * Pages go at once when a seal needs their slot or record, or their namespace
 * is at its quota. Everything else is done from the idle handler, some pages
 * per turn of the loop: expired pages, what is above the watermarks or a
 * lowered quota, the administrator's requests, emptying segments. Above the
 * high watermark victims are marked EVICTING first, so that a lookup in
 * between can take one back.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include "daemon/store_priv.h"

#define PER_TURN	32	/* pages freed per turn of the loop */
#define LOOK		16	/* expired pages looked at for one victim */

struct evict_req {
	struct list_head node;
	const struct cqd_ns *ns;
	char model[CQP_MAX_NAME];
	uint64_t before, want;
	uint64_t pages, bytes;
	cqd_evict_cb done;
	void *arg;
};

/* --- victims --- */

static void victim_unlist(struct cqd_store *st, uint32_t p)
{
	struct cqd_page *pg = &st->pages[p];

	if (pg->lru_prev == CQP_NONE)
		pg->shard->pool->evicting = pg->lru_next;
	else
		st->pages[pg->lru_prev].lru_next = pg->lru_next;
	if (pg->lru_next != CQP_NONE)
		st->pages[pg->lru_next].lru_prev = pg->lru_prev;
}

static void victim_list(struct cqd_store *st, uint32_t p)
{
	struct cqd_page *pg = &st->pages[p];
	struct cqd_pool *pool = pg->shard->pool;

	cqd_lru_del(st, p);
	cqd_page_event(st, p, CQD_EV_EVICT);
	pg->lru_prev = CQP_NONE;
	pg->lru_next = pool->evicting;
	if (pool->evicting != CQP_NONE)
		st->pages[pool->evicting].lru_prev = p;
	pool->evicting = p;
}

static uint64_t bytes_of(const struct cqd_store *st, uint32_t p)
{
	return cqd_page_bytes(st->pages[p].shard, st->pages[p].flags & CQD_PG_SINK);
}

static void reclaim(struct cqd_store *st, uint32_t p, enum cqd_evict_reason why)
{
	victim_unlist(st, p);
	cqd_evicted(st, p, why);
	cqd_page_free(st, p, CQD_EV_RECLAIM);
}

static void evict(struct cqd_store *st, uint32_t p, enum cqd_evict_reason why)
{
	victim_list(st, p);
	reclaim(st, p, why);
}

/**
 * cqd_evict_take_back() - a victim is wanted again
 * @st: store
 * @p:  page in state EVICTING
 */
void cqd_evict_take_back(struct cqd_store *st, uint32_t p)
{
	victim_unlist(st, p);
	cqd_page_event(st, p, CQD_EV_TAKE_BACK);
	cqd_page_settle(st, p);
}

/* What has expired goes before everything else. */
static uint32_t choose(struct cqd_store *st, const struct cqd_lru_of *of)
{
	unsigned int work = LOOK;
	uint32_t p = cqd_ttl_due(st, &work);

	for (; p != CQP_NONE && work; p = st->pages[p].ttl_next, work--)
		if (cqd_lru_matches(st, p, of) && cqd_ttl_expired(st, p))
			return p;
	return cqd_lru_first(st, of);
}

/* The first of the victims that matches; CQP_NONE. */
static uint32_t marked(const struct cqd_store *st, const struct cqd_lru_of *of)
{
	uint32_t p = CQP_NONE;
	unsigned int i;

	for (i = 0; i < st->n_pools && p == CQP_NONE; i++)
		for (p = st->pool[i].evicting; p != CQP_NONE && !cqd_lru_matches(st, p, of);)
			p = st->pages[p].lru_next;
	return p;
}

/**
 * cqd_evict_one() - free one page now
 * @st: store
 * @sh: of this shard, or NULL
 * @ns: of this namespace, or NULL
 *
 * Pages marked as victims already go first.
 *
 * Return: false if none may go.
 */
bool cqd_evict_one(struct cqd_store *st, const struct cqd_shard *sh,
		   const struct cqd_ns *ns)
{
	const struct cqd_lru_of of = { .sh = sh, .ns = ns };
	uint32_t p = marked(st, &of);

	if (p == CQP_NONE) {
		p = choose(st, &of);
		if (p == CQP_NONE)
			return false;
		victim_list(st, p);
	}
	reclaim(st, p, ns ? CQD_EVICT_QUOTA : CQD_EVICT_ROOM);
	return true;
}

/* --- the idle handler's work: each does one step and tells if there may be more --- */

static bool step_expired(struct cqd_store *st)
{
	unsigned int work = PER_TURN;
	uint32_t p;

	while ((p = cqd_ttl_due(st, &work)) != CQP_NONE)
		evict(st, p, CQD_EVICT_TTL);
	return !work;
}

static bool above(const struct cqd_pool *pool, uint32_t percent, uint64_t less)
{
	return pool->used > less && pool->used - less > pool->limit / 100 * percent;
}

/* Marks victims; true if there are any. */
static bool mark(struct cqd_store *st, const struct cqd_pool *pool)
{
	const struct cqd_lru_of in_pool = { .pool = pool };
	uint64_t bytes = 0;
	unsigned int i;
	uint32_t p;

	for (i = 0; i < PER_TURN && above(pool, st->o.low, bytes); i++) {
		p = choose(st, &in_pool);
		if (p == CQP_NONE)
			break;
		bytes += bytes_of(st, p);
		victim_list(st, p);
	}
	return i > 0;
}

static bool drain(struct cqd_store *st, struct cqd_pool *pool)
{
	unsigned int i;

	if (!pool->draining)
		return false;
	for (i = 0; i < PER_TURN && pool->evicting != CQP_NONE; i++)
		reclaim(st, pool->evicting, CQD_EVICT_WATERMARK);
	if (pool->evicting == CQP_NONE)
		pool->draining = above(pool, st->o.low, 0) && mark(st, pool);
	return pool->draining;
}

static bool step_watermark(struct cqd_store *st)
{
	bool more = false;
	unsigned int i;

	for (i = 0; i < st->n_pools; i++)
		more |= drain(st, &st->pool[i]);
	return more;
}

/* A namespace whose limits were lowered: its own leaves, as far as they go. */
static bool shrink(struct cqd_ns *ns)
{
	unsigned int i;

	for (i = 0; i < PER_TURN; i++) {
		if (ns->used_bytes <= ns->quota_bytes && ns->pages <= ns->quota_pages)
			break;
		if (!cqd_evict_one(ns->st, NULL, ns))
			break;
	}
	ns->shrinking = i == PER_TURN;
	return ns->shrinking;
}

static bool step_quotas(struct cqd_store *st)
{
	struct list_head *pos;

	list_for_each(pos, &st->namespaces) {
		struct cqd_ns *ns = list_entry(pos, struct cqd_ns, node);

		if (ns->shrinking && shrink(ns))
			return true;
	}
	return false;
}

static void req_end(struct evict_req *req)
{
	list_del(&req->node);
	req->done(req->arg, req->pages, req->bytes);
	free(req);
}

/* True: it goes on in the next turn. */
static bool req_step(struct cqd_store *st, struct evict_req *req)
{
	struct cqd_lru_of of = { .ns = req->ns, .before = req->before };
	unsigned int i;
	uint32_t p;

	if (req->model[0]) {
		of.model = cqd_model_find(st, req->model);
		if (!of.model)
			return false;
	}
	for (i = 0; i < PER_TURN; i++) {
		if (req->want && req->bytes >= req->want)
			return false;
		p = choose(st, &of);
		if (p == CQP_NONE)
			return false;
		req->pages++;
		req->bytes += bytes_of(st, p);
		evict(st, p, CQD_EVICT_ADMIN);
	}
	return true;
}

static bool step_requests(struct cqd_store *st)
{
	struct evict_req *req;

	if (list_empty(&st->evict_reqs))
		return false;
	req = list_first(&st->evict_reqs, struct evict_req, node);
	if (!req_step(st, req)) {
		cqd_segment_trim(st, NULL);
		req_end(req);
	}
	return !list_empty(&st->evict_reqs);
}

/**
 * cqd_evict_idle() - one turn of the loop while there is something to evict
 * @idle: of the store
 */
void cqd_evict_idle(uv_idle_t *idle)
{
	static bool (*const steps[])(struct cqd_store *st) = {
		step_expired, step_watermark, step_quotas, step_requests,
		cqd_evict_segment_step,
	};
	struct cqd_store *st = idle->data;
	bool more = false;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(steps); i++)
		more |= steps[i](st);
	if (!more) {
		st->idling = false;
		uv_idle_stop(idle);
	}
}

/**
 * cqd_evict_start() - there is something for the idle handler
 * @st: store
 */
void cqd_evict_start(struct cqd_store *st)
{
	if (st->idling || st->closing)
		return;
	st->idling = true;
	uv_idle_start(&st->idle, cqd_evict_idle);
}

/**
 * cqd_evict_kick() - begin to evict in pools above their high watermark
 * @st: store; called after pages were added
 */
void cqd_evict_kick(struct cqd_store *st)
{
	struct cqd_pool *pool;
	unsigned int i;

	if (st->closing || !st->o.high || st->o.high >= 100)
		return;
	for (i = 0; i < st->n_pools; i++) {
		pool = &st->pool[i];
		if (pool->draining || !above(pool, st->o.high, 0) || !mark(st, pool))
			continue;
		pool->draining = true;
		cqd_evict_start(st);
	}
}

/**
 * cqd_evict_tick() - look for pages that have expired
 * @st: store; called about once per second
 */
void cqd_evict_tick(struct cqd_store *st)
{
	unsigned int work = PER_TURN;

	if (cqd_ttl_due(st, &work) != CQP_NONE || !work)
		cqd_evict_start(st);
}

/* --- the administrator --- */

/**
 * cqd_evict() - evict what the administrator wants gone
 * @st:   store
 * @opts: which pages; copied
 * @done: called on the loop, exactly once, when they are gone, unless an error
 *        is returned
 * @arg:  passed to @done
 * @err:  text of the failure
 *
 * Never what is in use. Segments left empty are given back at once.
 *
 * Return: 0; -ENOENT no such model; -ENOMEM.
 */
int cqd_evict(struct cqd_store *st, const struct cqd_evict_opts *opts,
	      cqd_evict_cb done, void *arg, struct cq_err *err)
{
	uint64_t now = cqd_now_us();
	struct evict_req *req;

	if (opts->model && !cqd_model_find(st, opts->model))
		return cq_err_set(err, -ENOENT, "no model '%s' is loaded", opts->model);
	req = calloc(1, sizeof(*req));
	if (!req)
		return cq_err_set(err, -ENOMEM, "cqd is out of memory");
	req->ns = opts->ns;
	if (opts->model)
		snprintf(req->model, sizeof(req->model), "%s", opts->model);
	if (opts->older_us)
		req->before = now > opts->older_us ? now - opts->older_us : 1;
	req->want = opts->bytes;
	req->done = done;
	req->arg = arg;
	list_add_tail(&req->node, &st->evict_reqs);
	cqd_evict_start(st);
	return 0;
}

/**
 * cqd_evict_stop() - end the administrator's requests as far as they have come
 * @st: store that closes
 */
void cqd_evict_stop(struct cqd_store *st)
{
	struct list_head *pos, *tmp;

	list_for_each_safe(pos, tmp, &st->evict_reqs)
		req_end(list_entry(pos, struct evict_req, node));
}
