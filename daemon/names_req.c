// SPDX-License-Identifier: MIT
/* Requests about names: workers' and the administrator's. */
#include <errno.h>
#include <string.h>
#include <unistd.h>
#include "daemon/server.h"

static int shard_of(struct cqd_req *req, uint32_t id, struct cqd_shard **out)
{
	*out = cqd_shard_find(req->conn->session->client, id);
	if (!*out)
		return cq_err_set(req->err, -EINVAL, "shard %u was not opened by this client",
				  id);
	return 0;
}

static int bad_name(struct cqd_req *req, const char *what)
{
	return cq_err_set(req->err, -EINVAL, "%s: a name has 1 to %d characters", what,
			  CQP_MAX_NAME - 1);
}

static bool name_ok(const char *name)
{
	return name[0] && strlen(name) < CQP_MAX_NAME;
}

static void on_published(void *arg, int ret, const struct cq_err *err)
{
	struct cqd_pending *p = arg;

	if (ret)
		cqd_conn_error(p->conn, p->id, ret, err ? err->text : strerror(-ret));
	else
		cqd_conn_ok(p->conn, p->id);
	cqd_pending_end(p, ret);
}

static int check_publish(const Cqp__Publish *pub, struct cq_err *err)
{
	if (pub->has_key && pub->key.len != CQ_KEY_BYTES)
		return cq_err_set(err, -EINVAL, "Publish: key has %zu bytes, a key has %d",
				  pub->key.len, CQ_KEY_BYTES);
	if (pub->has_extents && (!pub->extents.len ||
				 pub->extents.len % sizeof(struct cqp_extent) ||
				 pub->extents.len / sizeof(struct cqp_extent) > CQP_MAX_EXTENTS))
		return cq_err_set(err, -EINVAL, "Publish: %zu bytes of extents; there must be 1 "
				  "to %d of %zu bytes", pub->extents.len, CQP_MAX_EXTENTS,
				  sizeof(struct cqp_extent));
	return 0;
}

/**
 * cqd_req_publish() - Publish
 * @req: request
 *
 * Return: 0, answered or to be; -errno as cqd_publish().
 */
int cqd_req_publish(struct cqd_req *req)
{
	/* 32 KiB: static, since the loop has one thread */
	static struct cqp_extent extents[CQP_MAX_EXTENTS];
	const Cqp__Publish *pub = req->msg->publish;
	struct cqd_publish_req r = {
		.name = pub->name, .tokens = pub->tokens, .arena = pub->arena,
		.check_lo = pub->check_lo, .check_hi = pub->check_hi,
		.ttl_s = pub->ttl_s, .replace = pub->replace, .once = pub->once,
	};
	struct cqd_pending *p;
	struct cqd_shard *shard;
	struct cqp_key key;
	int ret = check_publish(pub, req->err);

	if (ret)
		return ret;
	if (!name_ok(pub->name))
		return bad_name(req, "Publish");
	ret = shard_of(req, pub->shard, &shard);
	if (ret)
		return ret;
	if (pub->has_key) {
		memcpy(key.b, pub->key.data, sizeof(key.b));
		r.key = &key;
	}
	if (pub->has_extents) {
		memcpy(extents, pub->extents.data, pub->extents.len);
		r.extents = extents;
		r.n_extents = (unsigned int)(pub->extents.len / sizeof(*extents));
	}
	p = cqd_pending_new(req->conn, req->msg->id);
	if (!p)
		return cq_err_set(req->err, -ENOMEM, "cqd is out of memory");
	ret = cqd_publish(req->conn->session->client, shard, &r, on_published, p, req->err);
	if (ret)
		cqd_pending_end(p, ret);
	return ret;
}

/**
 * cqd_req_attach() - Attach
 * @req: request
 *
 * Return: 0, answered; -errno as cqd_attach().
 */
int cqd_req_attach(struct cqd_req *req)
{
	const Cqp__Attach *attach = req->msg->attach;
	Cqp__AttachOk ok = CQP__ATTACH_OK__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	struct cqd_attached a;
	struct cqd_shard *shard;
	int ret;

	if (!name_ok(attach->name))
		return bad_name(req, "Attach");
	ret = shard_of(req, attach->shard, &shard);
	if (!ret)
		ret = cqd_attach(req->conn->session->client, shard, attach->name,
				 attach->has_room ? attach->room : UINT64_MAX, &a, req->err);
	if (ret)
		return ret;
	ok.tokens = a.tokens;
	ok.bytes = a.bytes;
	ok.check_lo = a.check_lo;
	ok.check_hi = a.check_hi;
	ok.has_page = a.page.segment != CQP_NONE;
	ok.page.data = (uint8_t *)&a.page;
	ok.page.len = sizeof(a.page);
	msg.id = req->msg->id;
	msg.body_case = CQP__MSG__BODY_ATTACH_OK;
	msg.attach_ok = &ok;
	cqd_conn_send(req->conn, &msg, &a.fd, 1);
	close(a.fd);
	return 0;
}

static int tenant_of(struct cqd_req *req, const char *name, struct cqd_ns **out)
{
	*out = cqd_ns_find(req->conn->srv->store, name);
	if (!*out)
		return cq_err_set(req->err, -ENOENT, "there is no namespace \"%.63s\": see cqctl "
				  "list namespaces", name);
	return 0;
}

/**
 * cqd_req_unpublish() - Unpublish
 * @req: request; on the admin socket it names the namespace
 *
 * Return: 0, answered; -EINVAL; -EACCES; -ENOENT.
 */
int cqd_req_unpublish(struct cqd_req *req)
{
	const Cqp__Unpublish *un = req->msg->unpublish;
	struct cqd_ns *ns = NULL;
	int ret = 0;

	if (!name_ok(un->name))
		return bad_name(req, "Unpublish");
	if (req->conn->admin && !un->tenant)
		return cq_err_set(req->err, -EINVAL, "Unpublish: no namespace");
	if (!req->conn->admin && un->tenant)
		return cq_err_set(req->err, -EACCES, "Unpublish: a worker has one namespace and "
				  "names none");
	if (req->conn->admin)
		ret = tenant_of(req, un->tenant, &ns);
	else
		ns = cqd_client_ns(req->conn->session->client);
	if (!ret)
		ret = cqd_unpublish(ns, un->name, req->err);
	if (!ret)
		cqd_conn_ok(req->conn, req->msg->id);
	return ret;
}

/**
 * cqd_admin_pin() - Pin
 * @req: request
 *
 * Return: 0, answered; -EINVAL; -ENOENT; as cqd_publish().
 */
int cqd_admin_pin(struct cqd_req *req)
{
	const Cqp__Pin *pin = req->msg->pin;
	struct cqp_key key;
	struct cqd_ns *ns;
	int ret;

	if (!name_ok(pin->name))
		return bad_name(req, "Pin");
	if (pin->key.len != CQ_KEY_BYTES)
		return cq_err_set(req->err, -EINVAL, "Pin: key has %zu bytes, a key has %d",
				  pin->key.len, CQ_KEY_BYTES);
	memcpy(key.b, pin->key.data, sizeof(key.b));
	ret = tenant_of(req, pin->tenant, &ns);
	if (!ret)
		ret = cqd_name_pin(ns, pin->name, &key, pin->ttl_s, pin->replace, req->err);
	if (!ret)
		cqd_conn_ok(req->conn, req->msg->id);
	return ret;
}
