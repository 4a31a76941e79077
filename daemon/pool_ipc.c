// SPDX-License-Identifier: MIT
/*
 * Pools whose memory a holder has (sharing = ipc): its connection is watched, and when it
 * ends the holder is looked for again, at once and then every second.
 *
 *	the same holder		nothing is lost; the connection was
 *	another one, or none	everything in the pool is lost
 *	it cannot be said	pages stay, no new segment is made
 *
 * Looking for it may take seconds, so a worker thread does that.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "cq/log.h"
#include "daemon/ipc_link.h"
#include "daemon/msgid.h"
#include "daemon/store_priv.h"

#define AGAIN_MS 1000

/* On the connection; closed after it, so on the heap. */
struct watch {
	uv_poll_t poll;
	struct cqd_store *st;
	struct cqd_ipc *ipc;
};

/**
 * struct cqd_ipc - the holder of a pool
 * @boot:    which one has what is in the pool's segments, 0: none
 * @percent: of the device's memory are the limit, 0: it is fixed
 * @job:     looks for it; @next, @ret and @err are what was found
 * @looking: @job is under way, since @looked, loop time in ms
 */
struct cqd_ipc {
	struct cqd_store *st;
	struct cqd_pool *pool;
	struct cqd_ipc_link link;
	struct watch *watch;
	uint64_t boot;
	uint32_t percent;
	struct cqd_job job;
	struct cqd_ipc_peer next;
	struct cq_err err;
	int ret;
	bool looking;
	uint64_t looked;
};

/**
 * cqd_ipc_new() - a pool gets a link to its holder
 * @st:   store
 * @pool: its device's uuid is set
 * @o:    its options
 * @err:  text of the failure
 *
 * Return: 0; -ENOMEM.
 */
int cqd_ipc_new(struct cqd_store *st, struct cqd_pool *pool, const struct cqd_pool_opts *o,
		struct cq_err *err)
{
	struct cqd_ipc *ipc = calloc(1, sizeof(*ipc));

	if (!ipc)
		return cq_err_set(err, -ENOMEM, "no memory for the store");
	ipc->st = st;
	ipc->pool = pool;
	ipc->percent = o->bytes ? 0 : o->percent;
	ipc->next.fd = -1;
	cqd_ipc_link_init(&ipc->link, pool->name, o->holder, pool->dev.uuid);
	pool->ipc = ipc;
	pool->dev.link = &ipc->link;
	return 0;
}

/**
 * cqd_ipc_delete() - let the holder go; what it has stays with it
 * @pool: with or without a holder; no thread uses it any more
 */
void cqd_ipc_delete(struct cqd_pool *pool)
{
	if (!pool->ipc)
		return;
	cqd_ipc_link_set(&pool->ipc->link, NULL);
	pthread_mutex_destroy(&pool->ipc->link.lock);
	free(pool->ipc);
	pool->ipc = NULL;
}

/* --- what there was and is --- */

/* What the administrator has to know, once: pages are gone. */
static void say_lost(const struct cqd_pool *pool, uint64_t pages)
{
	char text[48] = "its pages are";

	if (pages)
		snprintf(text, sizeof(text), "%llu pages are", (unsigned long long)pages);
	cq_log_field("MESSAGE_ID", "%s", CQD_MSG_HOLDER_LOST);
	cq_log_field("CQ_POOL", "%s", pool->name);
	cq_err("[gpu %s] the holder of its memory ended, %s lost: workers compute them again; "
	       "see journalctl -u cq-holder@%s", pool->name, text, pool->name);
}

static void lose(struct cqd_ipc *ipc)
{
	bool any = ipc->pool->reserved != 0;
	uint64_t pages = cqd_pool_lose(ipc->st, ipc->pool);

	ipc->boot = 0;
	if (any)
		say_lost(ipc->pool, pages);
}

/**
 * cqd_ipc_adopted() - segments of the cqd before have what is theirs
 * @st: store, taken over or fresh; once, before it serves
 */
void cqd_ipc_adopted(struct cqd_store *st)
{
	struct cqd_pool *pool;
	unsigned int i;

	for (i = 1; i < st->n_pools; i++) {
		pool = &st->pool[i];
		if (!pool->ipc)
			continue;
		pool->ipc->boot = pool->ipc->link.peer.boot;
		if (pool->ipc->link.peer.fd >= 0)
			cqd_ipc_peer_sweep(&pool->ipc->link.peer);
		if (pool->lost)
			say_lost(pool, 0);
	}
}

/**
 * cqd_ipc_current() - is a new segment's memory still there?
 * @seg: segment, just made
 *
 * Return: false if its holder was lost meanwhile; true without a holder.
 */
bool cqd_ipc_current(const struct cqd_segment *seg)
{
	const struct cqd_pool *pool = cqd_pool_of(seg);

	return !pool->ipc || (pool->ready && seg->mem.boot == pool->ipc->boot);
}

/* --- the connection --- */

static void watch_closed(uv_handle_t *h)
{
	struct watch *w = container_of((uv_poll_t *)h, struct watch, poll);
	struct cqd_store *st = w->st;

	free(w);
	cqd_store_handle_gone(st);
}

static void unwatch(struct cqd_ipc *ipc)
{
	if (!ipc->watch)
		return;
	ipc->watch->ipc = NULL;
	uv_close((uv_handle_t *)&ipc->watch->poll, watch_closed);
	ipc->watch = NULL;
}

static void look(struct cqd_ipc *ipc);

/* At once, unless that was what ended the one before: two cqds may take it in turns. */
static void on_end(uv_poll_t *poll, int status, int events)
{
	struct watch *w = container_of(poll, struct watch, poll);
	struct cqd_ipc *ipc = w->ipc;

	if (!ipc)
		return;
	unwatch(ipc);
	cqd_ipc_link_set(&ipc->link, NULL);
	ipc->pool->ready = false;
	cq_err_set(&ipc->pool->why, -ENODATA, "the connection to its holder ended");
	if (uv_now(ipc->st->loop) - ipc->looked >= AGAIN_MS)
		look(ipc);
}

/* Without a watch its end is seen when a segment cannot be made. */
static void watch(struct cqd_ipc *ipc)
{
	struct watch *w = calloc(1, sizeof(*w));

	if (!w || uv_poll_init(ipc->st->loop, &w->poll, ipc->link.peer.fd)) {
		free(w);
		cq_warn("[gpu %s] cqd cannot watch the holder: no memory", ipc->pool->name);
		return;
	}
	w->st = ipc->st;
	w->ipc = ipc;
	ipc->watch = w;
	ipc->st->open_handles++;
	uv_poll_start(&w->poll, UV_DISCONNECT, on_end);
}

/* --- looking for it --- */

static void look_run(struct cqd_job *job)
{
	struct cqd_ipc *ipc = container_of(job, struct cqd_ipc, job);

	ipc->ret = cqd_ipc_reach(&ipc->link, &ipc->next, &ipc->err);
	/* No segment is in what another cqd left there. */
	if (!ipc->ret && ipc->next.boot != ipc->boot)
		cqd_ipc_peer_sweep(&ipc->next);
}

/* Has the same holder every segment still? Another cqd may have been there. */
static bool complete(struct cqd_ipc *ipc)
{
	const struct cqd_segment *seg;
	uint32_t i;

	for (i = 0; i < CQD_MAX_SEGMENTS; i++) {
		seg = ipc->st->segs[i];
		if (seg && cqd_pool_of(seg) == ipc->pool && !seg->lost &&
		    !cqd_ipc_peer_take(&ipc->next, seg->mem.id, seg->mem.bytes))
			return false;
	}
	return true;
}

/* What is left there is given back when it is found next. */
static void emptied(struct cqd_ipc *ipc)
{
	cqd_ipc_peer_close(&ipc->next);
	cq_err_set(&ipc->pool->why, -ENODATA, "another cqd used its holder: let only one have "
		   "this section");
	lose(ipc);
}

static void found(struct cqd_ipc *ipc)
{
	struct cqd_pool *pool = ipc->pool;

	if (ipc->boot == ipc->next.boot && !complete(ipc)) {
		emptied(ipc);
		return;
	}
	cqd_ipc_peer_forget(&ipc->next);
	if (ipc->boot && ipc->boot != ipc->next.boot)
		lose(ipc);
	ipc->boot = ipc->next.boot;
	pool->dev.bytes = ipc->next.bytes;
	if (ipc->percent)
		pool->limit = pool->dev.bytes / 100 * ipc->percent;
	pool->limit -= pool->limit % pool->dev.granularity;
	cqd_ipc_link_set(&ipc->link, &ipc->next);
	watch(ipc);
	pool->ready = true;
	pool->why.text[0] = '\0';
	pool->full_until = 0;
	cq_info("[gpu %s] the holder of its memory is there: %llu MiB for pages", pool->name,
		(unsigned long long)(pool->limit >> 20));
}

static void look_done(struct cqd_job *job)
{
	struct cqd_ipc *ipc = container_of(job, struct cqd_ipc, job);

	ipc->looking = false;
	if (ipc->st->closing) {
		cqd_ipc_peer_close(&ipc->next);
		return;
	}
	if (!ipc->ret) {
		found(ipc);
	} else {
		ipc->pool->why = ipc->err;
		if (ipc->ret == -ECONNREFUSED && ipc->boot)
			lose(ipc);
	}
	cqd_seal_kick_all(ipc->st);
}

static void look(struct cqd_ipc *ipc)
{
	if (ipc->looking || ipc->st->closing)
		return;
	ipc->looking = true;
	ipc->looked = uv_now(ipc->st->loop);
	ipc->job.run = look_run;
	ipc->job.done = look_done;
	cqd_job_queue(ipc->st, &ipc->job, true);
}

/**
 * cqd_ipc_tick() - look for holders that are not there
 * @st: store; called about once per second
 */
void cqd_ipc_tick(struct cqd_store *st)
{
	unsigned int i;

	for (i = 1; i < st->n_pools; i++)
		if (st->pool[i].ipc && !st->pool[i].ready)
			look(st->pool[i].ipc);
}

/**
 * cqd_ipc_start() - watch the holders that were found
 * @st: store with its loop's handles
 */
void cqd_ipc_start(struct cqd_store *st)
{
	unsigned int i;

	for (i = 1; i < st->n_pools; i++)
		if (st->pool[i].ipc && st->pool[i].ready)
			watch(st->pool[i].ipc);
}

/**
 * cqd_ipc_stop() - watch no holder any more
 * @st: store that closes
 */
void cqd_ipc_stop(struct cqd_store *st)
{
	unsigned int i;

	for (i = 1; i < st->n_pools; i++)
		if (st->pool[i].ipc)
			unwatch(st->pool[i].ipc);
}
