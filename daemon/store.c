// SPDX-License-Identifier: MIT
/* The store as a whole: beginning, end, figures. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include "daemon/store_priv.h"

#define TICK_MS		1000
#define HALF_LIFE_S	600	/* unless configured */

/**
 * cqd_random() - 64 random bits from the kernel
 *
 * Return: the bits. Early in boot it waits for the kernel's pool.
 */
uint64_t cqd_random(void)
{
	uint64_t v = 0;

	while (getrandom(&v, sizeof(v), 0) != (ssize_t)sizeof(v))
		;
	return v;
}

/*
 * In huge pages where the kernel has some: of 4 KiB each the faults take longer, at
 * a restart, than all that is done with what lies in them.
 */
static void *large(void *p, size_t bytes)
{
	/* With what malloc() put before it, or the first 2 MiB would not count. */
	uintptr_t before = (uintptr_t)p % 4096;

	if (p && bytes >= CQD_HUGE_BYTES)
		(void)madvise((char *)p - before, before + bytes, MADV_HUGEPAGE);
	return p;
}

static uint32_t *heads(uint32_t n, uint32_t *mask)
{
	uint32_t size = 1, *h;

	while (size < n)
		size *= 2;
	h = large(malloc(size * sizeof(*h)), size * sizeof(*h));
	if (!h)
		return NULL;
	memset(h, 0xff, size * sizeof(*h));	/* CQP_NONE */
	*mask = size - 1;
	return h;
}

/**
 * cqd_store_arrays() - arrays beside the index
 * @st: its index is there
 *
 * Return: 0 or -ENOMEM.
 */
int cqd_store_arrays(struct cqd_store *st)
{
	uint32_t i;

	st->hash_seed = cqd_random();
	for (i = 0; i < CQD_MAX_SEGMENTS; i++)
		st->seg_hash[i] = CQP_NONE;
	st->pages = large(calloc(st->ix.t_pages.n, sizeof(*st->pages)),
			  st->ix.t_pages.n * sizeof(*st->pages));
	st->pins = calloc(st->ix.t_pins.n, sizeof(*st->pins));
	st->client_at = calloc(st->ix.t_clients.n, sizeof(*st->client_at));
	st->page_hash = heads(st->ix.t_pages.n, &st->page_mask);
	st->pin_hash = heads(st->ix.t_pins.n, &st->pin_mask);
	st->session_hash = heads(st->ix.t_clients.n, &st->session_mask);
	if (!st->pages || !st->pins || !st->client_at ||
	    !st->page_hash || !st->pin_hash || !st->session_hash)
		return -ENOMEM;
	st->n_state[CQP_FREE] = st->ix.t_pages.n;
	return 0;
}

static void free_segments(struct cqd_store *st)
{
	uint32_t i;

	for (i = 0; i < CQD_MAX_SEGMENTS; i++) {
		if (!st->segs[i])
			continue;
		cqd_pool_of(st->segs[i])->mem->destroy(&st->segs[i]->mem);
		cqd_segment_release(st->segs[i]);
		st->segs[i] = NULL;
	}
}

/* Everything in memory. Records and the service manager's fds stay. */
static void store_free(struct cqd_store *st)
{
	while (!list_empty(&st->clients))
		cqd_client_free(list_first(&st->clients, struct cqd_client, node));
	cqd_names_free(st);
	free_segments(st);
	while (!list_empty(&st->shards))
		cqd_shard_free(list_first(&st->shards, struct cqd_shard, node));
	while (!list_empty(&st->models))
		cqd_model_free(list_first(&st->models, struct cqd_model, node));
	while (!list_empty(&st->namespaces))
		cqd_ns_free(list_first(&st->namespaces, struct cqd_ns, node));
	cqd_pools_free(st);
	cqd_persist_free(st);
	free(st->pages);
	free(st->pins);
	free(st->client_at);
	free(st->page_hash);
	free(st->pin_hash);
	free(st->session_hash);
	if (st->ix.hdr)
		cqd_index_close(&st->ix);
	cqd_fdstore_close(st);
	free(st);
}

/* --- beginning --- */

static void tick(uv_timer_t *timer)
{
	cqd_segment_tick(timer->data);
	cqd_evict_tick(timer->data);
	cqd_names_tick(timer->data);
	cqd_fdstore_kick(timer->data);
	cqd_ipc_tick(timer->data);
}

static int check_opts(const struct cqd_store_opts *o, struct cq_err *err)
{
	if (!o->segment_min || o->segment_min > o->segment_max)
		return cq_err_set(err, -EINVAL, "segment_min must be 1 to segment_max");
	if (o->low > 100 || o->high > 100 || o->low > o->high)
		return cq_err_set(err, -EINVAL,
				  "watermarks must be percent, low at most high");
	if (!o->pool_bytes)
		return cq_err_set(err, -EINVAL, "pool_bytes must be above 0");
	return 0;
}

static void handles(struct cqd_store *st)
{
	uv_timer_init(st->loop, &st->timer);
	uv_timer_init(st->loop, &st->verify_timer);
	uv_idle_init(st->loop, &st->idle);
	st->timer.data = st;
	st->verify_timer.data = st;
	st->idle.data = st;
	st->open_handles = 4;
	uv_timer_start(&st->timer, tick, TICK_MS, TICK_MS);
}

/**
 * cqd_store_new() - build the index, or re-adopt it from the fd store
 * @loop: runs timers and completions
 * @opts: copied, except the backend's name, which must live on; descriptors in
 *        it belong to the store from now on
 * @out:  set on success
 * @err:  text of the failure; on success it is empty, or one line about what
 *        was not taken over, which the caller should log
 *
 * Return: 0; -ENOMEM; -EINVAL; other -errno.
 */
int cqd_store_new(uv_loop_t *loop, const struct cqd_store_opts *opts,
		  struct cqd_store **out, struct cq_err *err)
{
	struct cqd_store *st = calloc(1, sizeof(*st));
	int ret;

	if (err)
		err->text[0] = '\0';
	if (!st)
		return cq_err_set(err, -ENOMEM, "no memory for the store");
	st->loop = loop;
	st->o = *opts;
	st->ix.fd = -1;
	st->empty_ms = CQD_EMPTY_MS;
	st->half_us = (opts->half_life_s ? opts->half_life_s : HALF_LIFE_S) * 1000000ull;
	cqd_ttl_init(st);
	list_init(&st->leafy);
	list_init(&st->evict_reqs);
	st->leaving = CQP_NONE;
	list_init(&st->namespaces);
	list_init(&st->models);
	list_init(&st->shards);
	list_init(&st->clients);
	list_init(&st->slow_queue);
	list_init(&st->verify_passes);
	list_init(&st->woken);
	cqd_names_init(st);
	ret = check_opts(opts, err);
	if (!ret)
		ret = cqd_pools_init(st, err);
	if (!ret && cqd_fdstore_open(st))
		ret = cq_err_set(err, -ENOMEM, "no memory for the store");
	if (!ret)
		ret = cqd_adopt(st, opts, err);
	if (!ret) {
		ret = cqd_jobs_open(st);
		if (ret)
			cq_err_set(err, ret, "worker threads: %s", strerror(-ret));
	}
	if (ret) {
		store_free(st);
		return ret;
	}
	handles(st);
	cqd_ipc_start(st);
	cqd_verify_background(st);
	*out = st;
	return 0;
}

/* --- end --- */

static void maybe_closed(struct cqd_store *st)
{
	void (*closed)(void *arg) = st->closed;
	void *arg = st->closed_arg;

	if (st->open_handles)
		return;
	store_free(st);
	closed(arg);
}

/**
 * cqd_store_handle_gone() - a handle of the store is closed
 * @st: store; freed here if it was the last one of a closing store
 */
void cqd_store_handle_gone(struct cqd_store *st)
{
	st->open_handles--;
	maybe_closed(st);
}

static void handle_closed(uv_handle_t *h)
{
	cqd_store_handle_gone(h->data);
}

/**
 * cqd_store_jobs_gone() - jobs are done
 * @st: store; if it is closing and they were the last, nothing comes any more
 */
void cqd_store_jobs_gone(struct cqd_store *st)
{
	if (st->closing && !st->jobs && st->back)
		cqd_jobs_close(st, handle_closed);
}

/**
 * cqd_store_close() - end background work and free the store
 * @st:   store
 * @done: called on the loop when nothing of it runs any more
 * @arg:  passed to @done
 *
 * Seals end with -ECANCELED. What is in the service manager's fd store stays:
 * index, segments, models and state words are found by the next daemon.
 */
void cqd_store_close(struct cqd_store *st, void (*done)(void *arg), void *arg)
{
	struct list_head *pos;

	st->closed = done;
	st->closed_arg = arg;
	st->closing = true;
	cqd_verify_stop(st);
	cqd_evict_stop(st);
	cqd_ipc_stop(st);
	cqd_persist_close(st);
	cqd_seal_cancel_waiting(st);
	list_for_each(pos, &st->clients) {
		cqd_lease_cancel_client(list_entry(pos, struct cqd_client, node));
		cqd_publish_cancel_client(list_entry(pos, struct cqd_client, node));
		cqd_arena_drop_all(list_entry(pos, struct cqd_client, node));
	}
	uv_close((uv_handle_t *)&st->timer, handle_closed);
	uv_close((uv_handle_t *)&st->verify_timer, handle_closed);
	uv_close((uv_handle_t *)&st->idle, handle_closed);
	cqd_store_jobs_gone(st);
}

/* --- figures --- */

/**
 * cqd_store_boot_id() - identity of the index
 * @st: store
 *
 * Return: 16 bytes, new whenever the index was built anew.
 */
const uint8_t *cqd_store_boot_id(const struct cqd_store *st)
{
	return st->ix.hdr->boot_id;
}

static uint64_t index_bytes(const struct cqd_index *ix)
{
	return sizeof(*ix->hdr) +
	       ix->t_ns.used * sizeof(struct cqp_rec_namespace) +
	       ix->t_models.used * sizeof(struct cqp_rec_model) +
	       ix->t_segs.used * sizeof(struct cqp_rec_segment) +
	       ix->t_clients.used * sizeof(struct cqp_rec_client) +
	       ix->t_pages.used * sizeof(struct cqp_rec_page) +
	       ix->t_pins.used * sizeof(struct cqp_rec_pin) +
	       ix->t_names.used * sizeof(struct cqp_rec_name);
}

/**
 * cqd_store_unreadable() - pages in memory that cqd cannot read
 * @st: store, or NULL: a request may end after the store was closed
 *
 * Return: how many there are, which are neither verified nor saved.
 */
uint64_t cqd_store_unreadable(const struct cqd_store *st)
{
	struct list_head *pos;
	uint64_t n = 0;

	if (!st)
		return 0;
	list_for_each(pos, &st->shards) {
		const struct cqd_shard *sh = list_entry(pos, struct cqd_shard, node);

		if (sh->pool->mem->remote)
			n += sh->pages;
	}
	return n;
}

/**
 * cqd_store_stats() - figures for cqctl status
 * @st:  store
 * @out: filled
 */
void cqd_store_stats(const struct cqd_store *st, struct cqd_stats *out)
{
	struct list_head *pos;

	*out = (struct cqd_stats){
		.pool_limit = st->pool[0].limit,
		.pool_reserved = st->pool[0].reserved,
		.pool_used = st->pool[0].used,
		.index_used = index_bytes(&st->ix),
		.pages_sealed = st->n_state[CQP_SEALED],
		.pages_filling = st->n_state[CQP_FILLING],
		.pages_pinned = st->pages_pinned,
		.hits = st->hits,
		.misses = st->misses,
		.seals = st->seals,
		.restored = st->restored,
		.evictions = st->evictions,
		.checksum_failures = st->checksum_failures,
		.verify_pending = st->verify_pending,
		.unchecked = st->unchecked,
		.clients = st->ix.t_clients.used,
		.orphans = st->orphans,
		.segments = st->ix.t_segs.used,
		.fdstore = __atomic_load_n(&st->fdstore, __ATOMIC_RELAXED),
		.transfer_done = st->transfer ? st->transfer_done : 0,
		.transfer_total = st->transfer ? st->transfer_total : 0,
		.persist_bytes = cqd_persist_bytes(st),
	};
	list_for_each(pos, &st->models)
		out->codebook_bytes += list_entry(pos, struct cqd_model, node)->bytes;
	list_for_each(pos, &st->namespaces)
		out->arena_bytes += list_entry(pos, struct cqd_ns, node)->arena_bytes;
}
