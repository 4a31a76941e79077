// SPDX-License-Identifier: MIT
/* Requests of the administrator: saved pages, and draining. */
#include <errno.h>
#include <string.h>
#include "cq/log.h"
#include "daemon/server.h"

static void on_saved(void *arg, int ret, uint64_t pages, uint64_t bytes,
		     const struct cq_err *err)
{
	struct cqd_pending *p = arg;
	Cqp__SaveOk ok = CQP__SAVE_OK__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;

	p->conn->transfer = NULL;
	if (ret) {
		cqd_conn_error(p->conn, p->id, ret, err->text);
	} else {
		ok.pages = pages;
		ok.bytes = bytes;
		ok.us = cqd_clock_us() - p->started_us;
		ok.skipped = cqd_store_unreadable(p->conn->srv->store);
		ok.has_skipped = ok.skipped != 0;
		msg.id = p->id;
		msg.body_case = CQP__MSG__BODY_SAVE_OK;
		msg.save_ok = &ok;
		cqd_conn_send(p->conn, &msg, NULL, 0);
	}
	cqd_pending_end(p, ret);
}

/* Begins what a connection has one of at a time; as before if @begin fails. */
static int transfer(struct cqd_req *req, int (*begin)(struct cqd_req *req, struct cqd_pending *p))
{
	struct cqd_pending *p = cqd_pending_new(req->conn, req->msg->id);
	const struct cqd_pending *other;
	int ret;

	if (!p)
		return cq_err_set(req->err, -ENOMEM, "cqd is out of memory");
	other = req->conn->transfer;
	req->conn->transfer = p;
	ret = begin(req, p);
	if (ret) {
		req->conn->transfer = other;
		cqd_pending_end(p, ret);
	}
	return ret;
}

static int save_begin(struct cqd_req *req, struct cqd_pending *p)
{
	return cqd_save(req->conn->srv->store, req->frame->fds[0], on_saved, p, req->err);
}

/**
 * cqd_admin_save() - Save: every sealed page to the file beside the message
 * @req: request
 *
 * Return: 0, answered later; -EBUSY; -EINVAL; -ENOMEM.
 */
int cqd_admin_save(struct cqd_req *req)
{
	return transfer(req, save_begin);
}

static void on_restored(void *arg, int ret, const struct cqd_restore_result *res,
			const struct cq_err *err)
{
	struct cqd_pending *p = arg;
	Cqp__RestoreOk ok = CQP__RESTORE_OK__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	char missing[sizeof(res->text)];

	p->conn->transfer = NULL;
	if (ret) {
		cqd_conn_error(p->conn, p->id, ret, err->text);
		cqd_pending_end(p, ret);
		return;
	}
	memcpy(missing, res->text, sizeof(missing));
	ok.restored = res->restored;
	ok.bytes = res->bytes;
	ok.existing = res->existing;
	ok.lost = res->lost;
	ok.bad = res->bad;
	ok.no_parent = res->no_parent;
	ok.no_model = res->no_model;
	ok.no_namespace = res->no_namespace;
	ok.no_room = res->no_room;
	ok.missing = missing[0] ? missing : NULL;
	ok.us = cqd_clock_us() - p->started_us;
	msg.id = p->id;
	msg.body_case = CQP__MSG__BODY_RESTORE_OK;
	msg.restore_ok = &ok;
	cqd_conn_send(p->conn, &msg, NULL, 0);
	cqd_pending_end(p, 0);
}

static int restore_begin(struct cqd_req *req, struct cqd_pending *p)
{
	return cqd_restore(req->conn->srv->store, req->frame->fds[0], on_restored, p, req->err);
}

/**
 * cqd_admin_restore() - Restore: pages of the file beside the message
 * @req: request
 *
 * Return: 0, answered later; -EBUSY; -EINVAL; -ENOMEM.
 */
int cqd_admin_restore(struct cqd_req *req)
{
	return transfer(req, restore_begin);
}

/**
 * cqd_admin_drain() - Drain: no new sessions, or again
 * @req: request
 *
 * Return: 0, answered.
 */
int cqd_admin_drain(struct cqd_req *req)
{
	struct cqd_server *srv = req->conn->srv;
	bool drain = !req->msg->drain->undo;
	Cqp__DrainOk ok = CQP__DRAIN_OK__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	struct cqd_stats st;

	if (drain != srv->draining)
		cq_info(drain ? "draining: no new sessions are admitted" :
			"no longer draining");
	srv->draining = drain;
	cqd_store_stats(srv->store, &st);
	ok.draining = drain;
	ok.clients = st.clients;
	ok.orphans = st.orphans;
	msg.id = req->msg->id;
	msg.body_case = CQP__MSG__BODY_DRAIN_OK;
	msg.drain_ok = &ok;
	cqd_conn_send(req->conn, &msg, NULL, 0);
	return 0;
}
