// SPDX-License-Identifier: MIT
/*
 * Requests of the administrator (cqctl), taken on the admin socket only.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "cq/log.h"
#include "daemon/metrics.h"
#include "daemon/server.h"
#include "kernels/kernels.h"

#define LIST_ITEMS	256			/* of one reply, at most */
#define LIST_BYTES	(CQP_MAX_MSG - 256)	/* leaves room for the envelope */
#define METRICS_BYTES	32768			/* of one reply */
#define ITEM_OVERHEAD	8			/* tag and length of an entry */

/*
 * struct pool_text - one entry of StatusOk.pools
 */
struct pool_text {
	Cqp__Pool msg;
	char name[CQP_MAX_NAME], backend[CQP_MAX_NAME], uuid[CQD_UUID_TEXT];
	char why[CQ_ERR_TEXT];
};

/* Every pool into @ptr, at most @max. */
static size_t fill_pools(const struct cqd_store *st, struct pool_text *at, Cqp__Pool **ptr,
			 size_t max)
{
	struct cqd_pool_figures f;
	size_t n;

	for (n = 0; n < max && cqd_pool_figures(st, (uint32_t)n, &f); n++) {
		cqp__pool__init(&at[n].msg);
		snprintf(at[n].name, sizeof(at[n].name), "%s", f.name);
		snprintf(at[n].backend, sizeof(at[n].backend), "%s", f.backend);
		at[n].msg.name = at[n].name;
		at[n].msg.backend = at[n].backend;
		snprintf(at[n].uuid, sizeof(at[n].uuid), "%s", f.uuid);
		at[n].msg.device = f.uuid[0] ? at[n].uuid : NULL;
		snprintf(at[n].why, sizeof(at[n].why), "%s", f.why);
		at[n].msg.why = f.why[0] ? at[n].why : NULL;
		at[n].msg.limit = f.limit;
		at[n].msg.reserved = f.reserved;
		at[n].msg.used = f.used;
		ptr[n] = &at[n].msg;
	}
	return n;
}

/**
 * cqd_admin_status() - Status
 * @req: request
 *
 * Return: 0, answered.
 */
int cqd_admin_status(struct cqd_req *req)
{
	struct cqd_server *srv = req->conn->srv;
	const struct cqk_ops *ops = cqk_select(NULL);
	Cqp__StatusOk ok = CQP__STATUS_OK__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	char version[] = CQ_VERSION, kernels[CQP_MAX_NAME];
	/* Static, since the loop has one thread. */
	static struct pool_text pools[CQD_MAX_POOLS];
	static Cqp__Pool *pool_ptr[CQD_MAX_POOLS];
	uint8_t boot_id[16];
	struct cqd_stats st;

	cqd_store_stats(srv->store, &st);
	memcpy(boot_id, cqd_store_boot_id(srv->store), sizeof(boot_id));
	snprintf(kernels, sizeof(kernels), "%s", ops ? ops->name : "none");
	ok.version = version;
	ok.boot_id.data = boot_id;
	ok.boot_id.len = sizeof(boot_id);
	ok.uptime_us = cqd_clock_us() - srv->started_us;
	ok.pool_limit = st.pool_limit;
	ok.pool_reserved = st.pool_reserved;
	ok.pool_used = st.pool_used;
	ok.index_used = st.index_used;
	ok.codebook_bytes = st.codebook_bytes;
	ok.arena_bytes = st.arena_bytes;
	ok.pages_sealed = st.pages_sealed;
	ok.pages_filling = st.pages_filling;
	ok.pages_pinned = st.pages_pinned;
	ok.clients = st.clients;
	ok.orphans = st.orphans;
	ok.hits = st.hits;
	ok.misses = st.misses;
	ok.seals = st.seals;
	ok.has_restored = true;
	ok.restored = st.restored;
	ok.evictions = st.evictions;
	ok.checksum_failures = st.checksum_failures;
	ok.verify_pending = st.verify_pending;
	ok.kernels = kernels;
	ok.has_fdstore = true;
	ok.fdstore = st.fdstore;
	ok.has_transfer_done = st.transfer_total != 0;
	ok.transfer_done = st.transfer_done;
	ok.has_transfer_total = st.transfer_total != 0;
	ok.transfer_total = st.transfer_total;
	ok.has_persist_bytes = st.persist_bytes != 0;
	ok.persist_bytes = st.persist_bytes;
	ok.has_draining = true;
	ok.draining = srv->draining;
	ok.n_pools = fill_pools(srv->store, pools, pool_ptr, ARRAY_SIZE(pools));
	ok.pools = pool_ptr;
	msg.id = req->msg->id;
	msg.body_case = CQP__MSG__BODY_STATUS_OK;
	msg.status_ok = &ok;
	cqd_conn_send(req->conn, &msg, NULL, 0);
	return 0;
}

/* --- List --- */

/*
 * struct listing - one reply being put together
 * @src:  as the store gives them; @item point into them
 * @text: copies of strings that the store owns const
 */
struct listing {
	struct cqd_item src[LIST_ITEMS];
	Cqp__Item item[LIST_ITEMS];
	Cqp__Item *ptr[LIST_ITEMS];
	char text[LIST_ITEMS][6][80];
	uint8_t hash[LIST_ITEMS][32];
	size_t n;
};

static char *copy_text(char to[80], const char *from)
{
	if (!from)
		return NULL;
	snprintf(to, 80, "%s", from);
	return to;
}

static void fill_text(struct listing *l, Cqp__Item *it, const struct cqd_item *src)
{
	char (*text)[80] = l->text[l->n];

	it->name = copy_text(text[0], src->name ? src->name : "");
	it->tenant = copy_text(text[1], src->tenant);
	it->model = copy_text(text[2], src->model);
	it->state = copy_text(text[3], src->state);
	it->backend = copy_text(text[4], src->backend);
	it->pool = copy_text(text[5], src->pool);
	it->k = l->src[l->n].k[0] ? l->src[l->n].k : NULL;
	it->v = l->src[l->n].v[0] ? l->src[l->n].v : NULL;
	it->rope = l->src[l->n].rope[0] ? l->src[l->n].rope : NULL;
	if (!src->hash)
		return;
	memcpy(l->hash[l->n], src->hash, sizeof(l->hash[0]));
	it->has_hash = true;
	it->hash.data = l->hash[l->n];
	it->hash.len = sizeof(l->hash[0]);
}

/* Zero means "does not apply" in a struct cqd_item. */
#define FILL(field) do { it->field = src->field; it->has_##field = src->field != 0; } while (0)

static void fill_item(struct listing *l, Cqp__Item *it, const struct cqd_item *src)
{
	cqp__item__init(it);
	fill_text(l, it, src);
	FILL(id);
	FILL(bytes);
	FILL(limit);
	FILL(pages);
	FILL(pins);
	FILL(slots);
	FILL(pid);
	FILL(layers);
	FILL(heads);
	FILL(kv_heads);
	FILL(head_dim);
	FILL(age_us);
	FILL(depth);
	FILL(sinks);
	FILL(window);
	FILL(slot_bytes);
	FILL(tokens);
	FILL(left_us);
	FILL(lookups);
	FILL(hits);
	FILL(misses);
	FILL(seals);
	FILL(restored);
	FILL(evictions);
	it->uid = src->uid;
	it->has_uid = src->pid != 0;
}

/* Collect items from @cursor on. True: more follow, from the new @cursor. */
static bool collect(struct cqd_store *st, unsigned int kind, uint64_t *cursor,
		    struct listing *l)
{
	size_t total = 0, bytes;
	uint64_t before;

	for (l->n = 0; ; l->n++) {
		before = *cursor;
		if (l->n == LIST_ITEMS)
			return true;
		memset(&l->src[l->n], 0, sizeof(l->src[0]));
		if (!cqd_store_item(st, kind, cursor, &l->src[l->n]))
			return false;
		fill_item(l, &l->item[l->n], &l->src[l->n]);
		bytes = cqp__item__get_packed_size(&l->item[l->n]) + ITEM_OVERHEAD;
		if (total + bytes > LIST_BYTES) {
			*cursor = before;
			return true;
		}
		total += bytes;
		l->ptr[l->n] = &l->item[l->n];
	}
}

/**
 * cqd_admin_list() - List: as many items as fit, and where to go on
 * @req: request
 *
 * Return: 0, answered; -EINVAL; -ENOMEM.
 */
int cqd_admin_list(struct cqd_req *req)
{
	const Cqp__List *list = req->msg->list;
	uint64_t cursor = list->has_cursor ? list->cursor : 0;
	Cqp__ListOk ok = CQP__LIST_OK__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	struct listing *l;

	if ((unsigned int)list->kind > CQP__KIND__NAMES)
		return cq_err_set(req->err, -EINVAL, "List: unknown kind %d", (int)list->kind);
	l = malloc(sizeof(*l));
	if (!l)
		return cq_err_set(req->err, -ENOMEM, "cqd is out of memory");
	ok.has_cursor = collect(req->conn->srv->store, (unsigned int)list->kind, &cursor, l);
	ok.cursor = cursor;
	ok.n_items = l->n;
	ok.items = l->ptr;
	msg.id = req->msg->id;
	msg.body_case = CQP__MSG__BODY_LIST_OK;
	msg.list_ok = &ok;
	cqd_conn_send(req->conn, &msg, NULL, 0);
	free(l);
	return 0;
}

/* --- models --- */

static void on_loaded(void *arg, int ret, const uint8_t hash[32], bool existing,
		      const struct cq_err *err)
{
	struct cqd_pending *p = arg;
	Cqp__LoadOk ok = CQP__LOAD_OK__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	uint8_t copy[32];

	if (ret) {
		cqd_conn_error(p->conn, p->id, ret, err ? err->text : strerror(-ret));
	} else {
		memcpy(copy, hash, sizeof(copy));
		ok.hash.data = copy;
		ok.hash.len = sizeof(copy);
		ok.existing = existing;
		msg.id = p->id;
		msg.body_case = CQP__MSG__BODY_LOAD_OK;
		msg.load_ok = &ok;
		cqd_conn_send(p->conn, &msg, NULL, 0);
	}
	cqd_pending_end(p, ret);
}

/**
 * cqd_admin_load() - Load: a model file, beside the message
 * @req: request
 *
 * Return: 0, answered later; -EINVAL; -EEXIST; -ENOMEM.
 */
int cqd_admin_load(struct cqd_req *req)
{
	const char *name = req->msg->load->name;
	struct cqd_pending *p;
	int ret;

	if (!cqd_name_ok(name))
		return cq_err_set(req->err, -EINVAL, "Load: bad model name: 1 to 63 of A-Z a-z "
				  "0-9 . _ - not starting with . or -");
	p = cqd_pending_new(req->conn, req->msg->id);
	if (!p)
		return cq_err_set(req->err, -ENOMEM, "cqd is out of memory");
	ret = cqd_model_load(req->conn->srv->store, name, req->frame->fds[0], on_loaded, p,
			     req->err);
	if (ret)
		cqd_pending_end(p, ret);
	return ret;
}

/**
 * cqd_admin_unload() - Unload
 * @req: request
 *
 * Return: 0, answered; -EINVAL; -ENOENT; -EBUSY.
 */
int cqd_admin_unload(struct cqd_req *req)
{
	const char *name = req->msg->unload->name;
	int ret;

	if (!cqd_name_ok(name))
		return cq_err_set(req->err, -EINVAL, "Unload: bad model name");
	ret = cqd_model_unload(req->conn->srv->store, name, req->err);
	if (!ret)
		cqd_conn_ok(req->conn, req->msg->id);
	return ret;
}

/* --- Verify --- */

static void on_verified(void *arg, uint64_t checked, uint64_t failed, uint64_t bytes)
{
	struct cqd_pending *p = arg;
	Cqp__VerifyOk ok = CQP__VERIFY_OK__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;

	ok.skipped = cqd_store_unreadable(p->conn->srv->store);
	ok.has_skipped = ok.skipped != 0;
	ok.checked = checked;
	ok.failed = failed;
	ok.bytes = bytes;
	ok.us = cqd_clock_us() - p->started_us;
	msg.id = p->id;
	msg.body_case = CQP__MSG__BODY_VERIFY_OK;
	msg.verify_ok = &ok;
	cqd_conn_send(p->conn, &msg, NULL, 0);
	cqd_pending_end(p, 0);
}

/**
 * cqd_admin_verify() - Verify: checksums of all pages
 * @req: request
 *
 * Return: 0, answered later; -EBUSY; -ENOMEM.
 */
int cqd_admin_verify(struct cqd_req *req)
{
	struct cqd_pending *p = cqd_pending_new(req->conn, req->msg->id);
	int ret;

	if (!p)
		return cq_err_set(req->err, -ENOMEM, "cqd is out of memory");
	ret = cqd_verify(req->conn->srv->store, on_verified, p);
	if (!ret)
		return 0;
	cqd_pending_end(p, ret);
	return cq_err_set(req->err, ret, "cannot verify now: %s", strerror(-ret));
}

/* --- Metrics --- */

/**
 * cqd_admin_metrics() - Metrics: a piece of the text, and where to go on
 * @req: request
 *
 * Return: 0, answered.
 */
int cqd_admin_metrics(struct cqd_req *req)
{
	static char text[METRICS_BYTES];
	Cqp__Metrics metrics = CQP__METRICS__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	uint64_t cursor = req->msg->metrics->has_cursor ? req->msg->metrics->cursor : 0;
	size_t n = cqd_metrics_text(req->conn->srv, &cursor, text, sizeof(text));

	metrics.has_text = true;
	metrics.text = (ProtobufCBinaryData){ n, (uint8_t *)text };
	metrics.has_cursor = n > 0;
	metrics.cursor = cursor;
	msg.id = req->msg->id;
	msg.body_case = CQP__MSG__BODY_METRICS;
	msg.metrics = &metrics;
	cqd_conn_send(req->conn, &msg, NULL, 0);
	return 0;
}
