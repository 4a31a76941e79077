// SPDX-License-Identifier: MIT
/*
 * Room: what the administrator evicts, and the limits of namespaces. Taken on
 * the admin socket only.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/server.h"

static void reply(struct cqd_conn *conn, uint64_t id, Cqp__RoomOk *ok)
{
	Cqp__Msg msg = CQP__MSG__INIT;

	msg.id = id;
	msg.body_case = CQP__MSG__BODY_ROOM_OK;
	msg.room_ok = ok;
	cqd_conn_send(conn, &msg, NULL, 0);
}

/* NULL: there is none, and the request says so. */
static struct cqd_tenant *tenant(struct cqd_req *req, const char *name)
{
	struct cqd_tenant *t = cqd_name_ok(name) ? cqd_tenant_find(req->conn->srv, name) :
						   NULL;

	if (!t)
		cq_err_set(req->err, -ENOENT, "there is no namespace \"%.63s\": see cqctl "
			   "list namespaces", name);
	return t;
}

static void on_evicted(void *arg, uint64_t pages, uint64_t bytes)
{
	struct cqd_pending *p = arg;
	Cqp__RoomOk ok = CQP__ROOM_OK__INIT;

	ok.pages = pages;
	ok.bytes = bytes;
	reply(p->conn, p->id, &ok);
	cqd_pending_end(p, 0);
}

/**
 * cqd_admin_evict() - Evict: pages that are not in use
 * @req: request
 *
 * Return: 0, answered later; -ENOENT; -EINVAL; -ENOMEM.
 */
int cqd_admin_evict(struct cqd_req *req)
{
	const Cqp__Evict *e = req->msg->evict;
	struct cqd_evict_opts opts = {
		.model = e->model,
		.older_us = e->has_older_us ? e->older_us : 0,
		.bytes = e->has_bytes ? e->bytes : 0,
	};
	struct cqd_tenant *t;
	struct cqd_pending *p;
	int ret;

	if (e->tenant) {
		t = tenant(req, e->tenant);
		if (!t)
			return -ENOENT;
		opts.ns = t->ns;
	}
	if (e->model && !cqd_name_ok(e->model))
		return cq_err_set(req->err, -EINVAL, "Evict: bad model name");
	p = cqd_pending_new(req->conn, req->msg->id);
	if (!p)
		return cq_err_set(req->err, -ENOMEM, "cqd is out of memory");
	ret = cqd_evict(req->conn->srv->store, &opts, on_evicted, p, req->err);
	if (ret)
		cqd_pending_end(p, ret);
	return ret;
}

/* UINT64_MAX, no limit, is 0 in a message. */
static uint64_t asked(bool has, uint64_t value, uint64_t now)
{
	return has ? value : now == UINT64_MAX ? 0 : now;
}

static void fill(const struct cqd_tenant *t, Cqp__RoomOk *ok)
{
	struct cqd_ns_room r;

	cqd_ns_room_get(t->ns, &r);
	ok->pages = r.pages;
	ok->bytes = r.bytes;
	ok->has_pins = true;
	ok->pins = r.pins;
	ok->has_connections = true;
	ok->connections = t->inside;
	ok->has_max_bytes = true;
	ok->max_bytes = r.max_bytes;
	ok->has_max_pages = r.max_pages != UINT64_MAX;
	ok->max_pages = r.max_pages;
	ok->has_max_pins = r.max_pins != UINT64_MAX;
	ok->max_pins = r.max_pins;
	ok->has_max_connections = t->connections != 0;
	ok->max_connections = t->connections;
}

/**
 * cqd_admin_quota() - Quota: limits of a namespace, until the next reload
 * @req: request
 *
 * Return: 0, answered; -ENOENT.
 */
int cqd_admin_quota(struct cqd_req *req)
{
	const Cqp__Quota *q = req->msg->quota;
	Cqp__RoomOk ok = CQP__ROOM_OK__INIT;
	struct cqd_ns_room r;
	struct cqd_tenant *t = tenant(req, q->tenant);

	if (!t)
		return -ENOENT;
	cqd_ns_room_get(t->ns, &r);
	if (q->has_bytes || q->has_pages || q->has_pins)
		cqd_ns_limit(t->ns, asked(q->has_bytes, q->bytes, r.max_bytes),
			     asked(q->has_pages, q->pages, r.max_pages),
			     asked(q->has_pins, q->pins, r.max_pins));
	if (q->has_connections)
		t->connections = q->connections;
	fill(t, &ok);
	reply(req->conn, req->msg->id, &ok);
	return 0;
}
