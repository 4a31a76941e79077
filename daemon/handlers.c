// SPDX-License-Identifier: MIT
/*
 * Requests: one row per message that a client may send. What a row does not
 * allow never reaches its handler; what reaches the store has sane lengths.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "cq/log.h"
#include "daemon/server.h"

#define H_ADMIN		(1u << 0)	/* on the admin socket */
#define H_TENANT	(1u << 1)	/* on the others */
#define H_ANY		(H_ADMIN | H_TENANT)
#define H_FIRST		(1u << 2)	/* before Hello and after Bye as well */

/*
 * struct cqd_handler - one request
 * @name:  for texts; NULL: no client sends this
 * @flags: H_*
 * @n_fds: descriptors that must come with it, exactly
 * @fn:    runs on the loop; has answered, or will, if it returns 0; else
 *         -errno with req->err set, and the caller answers
 */
struct cqd_handler {
	const char *name;
	unsigned int flags;
	unsigned int n_fds;
	int (*fn)(struct cqd_req *req);
};

static void reply(struct cqd_req *req, Cqp__Msg *msg, const int *fds, unsigned int n_fds)
{
	msg->id = req->msg->id;
	cqd_conn_send(req->conn, msg, fds, n_fds);
}

static struct cqd_client *client_of(const struct cqd_req *req)
{
	return req->conn->session->client;
}

static int shard_of(struct cqd_req *req, uint32_t id, struct cqd_shard **out)
{
	*out = cqd_shard_find(client_of(req), id);
	if (!*out)
		return cq_err_set(req->err, -EINVAL, "shard %u was not opened by this client",
				  id);
	return 0;
}

static int handle_hello(struct cqd_req *req)
{
	if (req->conn->greeted)
		return cq_err_set(req->err, -EINVAL, "Hello was said already");
	return cqd_session_hello(req->conn, req->msg, req->err);
}

static int handle_ping(struct cqd_req *req)
{
	struct cqd_server *srv = req->conn->srv;
	Cqp__Pong pong = CQP__PONG__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	char version[] = CQ_VERSION;
	uint8_t boot_id[16];

	memcpy(boot_id, cqd_store_boot_id(srv->store), sizeof(boot_id));
	pong.version = version;
	pong.boot_id.data = boot_id;
	pong.boot_id.len = sizeof(boot_id);
	pong.uptime_us = cqd_clock_us() - srv->started_us;
	pong.has_ready = true;
	pong.ready = cqd_server_ready(srv);
	pong.has_draining = true;
	pong.draining = srv->draining;
	msg.body_case = CQP__MSG__BODY_PONG;
	msg.pong = &pong;
	reply(req, &msg, NULL, 0);
	return 0;
}

static int handle_model_open(struct cqd_req *req)
{
	const Cqp__ModelOpen *open = req->msg->model_open;
	struct cqp_shard range = {
		.layer_begin = open->layer_begin, .layer_end = open->layer_end,
		.head_begin = open->head_begin, .head_end = open->head_end,
	};
	Cqp__ModelOk ok = CQP__MODEL_OK__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	struct cqd_shard_info info;
	struct cqd_shard *shard;
	int fds[2], ret;

	if (!cqd_name_ok(open->name))
		return cq_err_set(req->err, -EINVAL, "ModelOpen: bad model name");
	if (!cqd_session_model_ok(req->conn->session, open->name))
		return cq_err_set(req->err, -EACCES, "model \"%s\" is not among the models of "
				  "namespace \"%s\"", open->name,
				  cqd_ns_name(cqd_client_ns(client_of(req))));
	ret = cqd_shard_get_on(client_of(req), open->name, &range, open->device, &shard, &info,
			       req->err);
	if (ret)
		return ret;
	ok.shard = info.id;
	ok.has_backend = true;
	ok.backend = (Cqp__Backend)info.kind;
	ok.model_hash.data = info.hash;
	ok.model_hash.len = sizeof(info.hash);
	ok.root_key.data = info.root.b;
	ok.root_key.len = sizeof(info.root.b);
	ok.model_bytes = info.model_bytes;
	ok.state_words = info.state_words;
	msg.body_case = CQP__MSG__BODY_MODEL_OK;
	msg.model_ok = &ok;
	fds[0] = info.model_fd;
	fds[1] = info.state_fd;
	reply(req, &msg, fds, 2);
	return 0;
}

static int handle_arena_offer(struct cqd_req *req)
{
	const Cqp__ArenaOffer *offer = req->msg->arena_offer;
	Cqp__ArenaOk ok = CQP__ARENA_OK__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	struct cqd_shard *shard;
	uint32_t arena = 0;
	int ret;

	ret = shard_of(req, offer->shard, &shard);
	if (ret)
		return ret;
	ret = cqd_arena_offer(client_of(req), shard, req->frame->fds[0], offer->bytes, &arena,
			      req->err);
	if (ret)
		return ret;
	ok.arena = arena;
	msg.body_case = CQP__MSG__BODY_ARENA_OK;
	msg.arena_ok = &ok;
	reply(req, &msg, NULL, 0);
	return 0;
}

static int handle_arena_drop(struct cqd_req *req)
{
	uint32_t arena = req->msg->arena_drop->arena;
	int ret = cqd_arena_drop(client_of(req), arena);

	if (ret)
		return cq_err_set(req->err, ret, "arena %u: none of this session", arena);
	cqd_conn_ok(req->conn, req->msg->id);
	return 0;
}

static void lookup_ok(struct cqd_req *req, struct cqp_page *pages, unsigned int n,
		      struct cqp_page *sink, struct cqd_found *found)
{
	Cqp__LookupOk ok = CQP__LOOKUP_OK__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;

	ok.matched = n;
	ok.pages.data = (uint8_t *)pages;
	ok.pages.len = n * sizeof(*pages);
	ok.has_sink = sink->segment != CQP_NONE;
	ok.sink.data = (uint8_t *)sink;
	ok.sink.len = sizeof(*sink);
	ok.has_filling = true;
	ok.filling = found->filling;
	ok.has_split = found->split != 0;
	ok.split = found->split;
	ok.has_unchecked = found->n_unchecked != 0;
	ok.unchecked.data = found->unchecked;
	ok.unchecked.len = (n + 7) / 8;
	msg.body_case = CQP__MSG__BODY_LOOKUP_OK;
	msg.lookup_ok = &ok;
	reply(req, &msg, NULL, 0);
}

static int handle_lookup(struct cqd_req *req)
{
	/* 16 KiB: static, since the loop has one thread */
	static struct cqp_page pages[CQP_MAX_KEYS];
	const Cqp__Lookup *lookup = req->msg->lookup;
	struct cqp_page sink = { .segment = CQP_NONE };
	const struct cqp_key *keys;
	struct cqd_shard *shard;
	struct cqd_found found;
	size_t n = lookup->keys.len / sizeof(*keys);
	int ret;

	if (!n || lookup->keys.len % sizeof(*keys) || n > CQP_MAX_KEYS)
		return cq_err_set(req->err, -EINVAL, "Lookup: %zu bytes of keys; there must be 1 "
				  "to %d keys of 32 bytes", lookup->keys.len, CQP_MAX_KEYS);
	ret = shard_of(req, lookup->shard, &shard);
	if (ret)
		return ret;
	keys = (const struct cqp_key *)(const void *)lookup->keys.data;
	ret = cqd_match(client_of(req), shard, keys, (unsigned int)n, lookup->pin, pages,
			&sink, &found, req->err);
	if (ret < 0)
		return ret;
	lookup_ok(req, pages, (unsigned int)ret, &sink, &found);
	return 0;
}

static int handle_segment_get(struct cqd_req *req)
{
	uint32_t id = req->msg->segment_get->segment;
	Cqp__SegmentOk ok = CQP__SEGMENT_OK__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	struct cqd_segment_info info;
	uint8_t handle[CQD_HANDLE];
	unsigned int n = 0;
	int fds[2], ret;

	ret = cqd_segment_get(client_of(req), id, &info);
	if (ret == -ENODATA)
		return cq_err_set(req->err, ret, "segment %u: its memory is lost, compute again",
				  id);
	if (ret == -ENOMEM)
		return cq_err_set(req->err, ret, "cqd is out of memory");
	if (ret)
		return cq_err_set(req->err, ret, "segment %u: none that this namespace may "
				  "read", id);
	ok.segment = id;
	ok.bytes = info.bytes;
	ok.slot_bytes = info.slot_bytes;
	ok.slots = info.slots;
	ok.word_base = info.word_base;
	ok.has_state_words = info.state_fd >= 0;
	ok.state_words = info.state_words;
	ok.has_backend = true;
	ok.backend = (Cqp__Backend)info.kind;
	if (info.handle) {
		memcpy(handle, info.handle, sizeof(handle));
		ok.has_handle = true;
		ok.handle = (ProtobufCBinaryData){ sizeof(handle), handle };
	} else {
		fds[n++] = info.fd;
	}
	if (info.state_fd >= 0)
		fds[n++] = info.state_fd;
	msg.body_case = CQP__MSG__BODY_SEGMENT_OK;
	msg.segment_ok = &ok;
	reply(req, &msg, fds, n);
	return 0;
}

static void on_sealed(void *arg, int ret, const struct cqd_seal_result *res,
		      const struct cq_err *err)
{
	struct cqd_pending *p = arg;
	Cqp__SealOk ok = CQP__SEAL_OK__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	struct cqd_seal_result copy;

	if (ret) {
		cqd_conn_error(p->conn, p->id, ret, err ? err->text : strerror(-ret));
	} else {
		copy = *res;
		ok.key.data = copy.key.b;
		ok.key.len = sizeof(copy.key.b);
		ok.page.data = (uint8_t *)&copy.page;
		ok.page.len = sizeof(copy.page);
		ok.has_sink = copy.sink.segment != CQP_NONE;
		ok.sink.data = (uint8_t *)&copy.sink;
		ok.sink.len = sizeof(copy.sink);
		ok.existing = copy.existing;
		msg.id = p->id;
		msg.body_case = CQP__MSG__BODY_SEAL_OK;
		msg.seal_ok = &ok;
		cqd_conn_send(p->conn, &msg, NULL, 0);
	}
	cqd_pending_end(p, ret);
}

static int check_seal(const Cqp__Seal *seal, struct cq_err *err)
{
	if (seal->parent.len != CQ_KEY_BYTES)
		return cq_err_set(err, -EINVAL, "Seal: parent has %zu bytes, a key has %d",
				  seal->parent.len, CQ_KEY_BYTES);
	if (seal->tokens.len != CQ_PAGE_TOKENS * sizeof(uint32_t))
		return cq_err_set(err, -EINVAL, "Seal: tokens has %zu bytes, a page has %zu",
				  seal->tokens.len, CQ_PAGE_TOKENS * sizeof(uint32_t));
	if (seal->has_extra && seal->extra.len > CQP_MAX_EXTRA)
		return cq_err_set(err, -EINVAL, "Seal: extra has %zu bytes, at most %d",
				  seal->extra.len, CQP_MAX_EXTRA);
	if (seal->priority > UINT8_MAX)
		return cq_err_set(err, -EINVAL, "Seal: priority %u, at most %d", seal->priority,
				  UINT8_MAX);
	if (seal->has_sink_offset && seal->sink_offset == UINT64_MAX)
		return cq_err_set(err, -EINVAL, "Seal: sink_offset is outside every arena");
	if (!seal->has_slot && (seal->has_sink_slot || seal->has_checks))
		return cq_err_set(err, -EINVAL, "Seal: sink_slot and checks go with slot");
	return 0;
}

static int handle_seal(struct cqd_req *req)
{
	const Cqp__Seal *seal = req->msg->seal;
	struct cqd_seal_req r = {
		.arena = seal->arena,
		.extra = seal->has_extra ? seal->extra.data : NULL,
		.extra_len = seal->has_extra ? seal->extra.len : 0,
		.offset = seal->offset,
		.sink_offset = seal->has_sink_offset ? seal->sink_offset : UINT64_MAX,
	};
	struct cqp_page slots[2];
	struct cqd_pending *p;
	struct cqd_shard *shard;
	int ret;

	ret = check_seal(seal, req->err);
	if (!ret && seal->has_slot)
		ret = cqd_req_seal_slots(seal, slots, &r, req->err);
	if (ret)
		return ret;
	ret = shard_of(req, seal->shard, &shard);
	if (ret)
		return ret;
	memcpy(r.parent.b, seal->parent.data, sizeof(r.parent.b));
	memcpy(r.tokens, seal->tokens.data, sizeof(r.tokens));
	cqd_ns_terms(cqd_client_ns(client_of(req)), seal->has_priority ? &seal->priority : NULL,
		     seal->has_ttl_s ? &seal->ttl_s : NULL, &r);
	p = cqd_pending_new(req->conn, req->msg->id);
	if (!p)
		return cq_err_set(req->err, -ENOMEM, "cqd is out of memory");
	ret = cqd_seal(client_of(req), shard, &r, on_sealed, p, req->err);
	if (ret)
		cqd_pending_end(p, ret);
	return ret;
}

static int handle_release(struct cqd_req *req)
{
	static struct cqp_page pages[CQP_MAX_MSG / sizeof(struct cqp_page)];
	const Cqp__Release *release = req->msg->release;
	size_t n = release->pages.len / sizeof(*pages);
	int ret;

	if (!n || release->pages.len % sizeof(*pages) || n > ARRAY_SIZE(pages))
		return cq_err_set(req->err, -EINVAL, "Release: %zu bytes of pages; an entry has "
				  "%zu", release->pages.len, sizeof(*pages));
	memcpy(pages, release->pages.data, release->pages.len);
	ret = cqd_release(client_of(req), pages, (unsigned int)n, req->err);
	if (!ret)
		cqd_conn_ok(req->conn, req->msg->id);
	return ret;
}

static int handle_bye(struct cqd_req *req)
{
	if (req->conn->session)
		cqd_session_bye(req->conn->session);
	cqd_conn_ok(req->conn, req->msg->id);
	return 0;
}

/* By number of the body's field in cq.proto. */
static const struct cqd_handler handlers[] = {
	[CQP__MSG__BODY_HELLO] = { "Hello", H_ANY | H_FIRST, 0, handle_hello },
	[CQP__MSG__BODY_PING] = { "Ping", H_ANY | H_FIRST, 0, handle_ping },
	[CQP__MSG__BODY_MODEL_OPEN] = { "ModelOpen", H_TENANT, 0, handle_model_open },
	[CQP__MSG__BODY_ARENA_OFFER] = { "ArenaOffer", H_TENANT, 1, handle_arena_offer },
	[CQP__MSG__BODY_ARENA_DROP] = { "ArenaDrop", H_TENANT, 0, handle_arena_drop },
	[CQP__MSG__BODY_LOOKUP] = { "Lookup", H_TENANT, 0, handle_lookup },
	[CQP__MSG__BODY_SEGMENT_GET] = { "SegmentGet", H_TENANT, 0, handle_segment_get },
	[CQP__MSG__BODY_SEAL] = { "Seal", H_TENANT, 0, handle_seal },
	[CQP__MSG__BODY_LEASE] = { "Lease", H_TENANT, 0, cqd_req_lease },
	[CQP__MSG__BODY_LEASE_RETURN] = { "LeaseReturn", H_TENANT, 0, cqd_req_lease_return },
	[CQP__MSG__BODY_CHECKED] = { "Checked", H_TENANT, 0, cqd_req_checked },
	[CQP__MSG__BODY_RELEASE] = { "Release", H_TENANT, 0, handle_release },
	[CQP__MSG__BODY_PUBLISH] = { "Publish", H_TENANT, 0, cqd_req_publish },
	[CQP__MSG__BODY_ATTACH] = { "Attach", H_TENANT, 0, cqd_req_attach },
	[CQP__MSG__BODY_UNPUBLISH] = { "Unpublish", H_ANY, 0, cqd_req_unpublish },
	[CQP__MSG__BODY_PIN] = { "Pin", H_ADMIN, 0, cqd_admin_pin },
	[CQP__MSG__BODY_BYE] = { "Bye", H_ANY, 0, handle_bye },
	[CQP__MSG__BODY_STATUS] = { "Status", H_ADMIN, 0, cqd_admin_status },
	[CQP__MSG__BODY_LIST] = { "List", H_ADMIN, 0, cqd_admin_list },
	[CQP__MSG__BODY_LOAD] = { "Load", H_ADMIN, 1, cqd_admin_load },
	[CQP__MSG__BODY_UNLOAD] = { "Unload", H_ADMIN, 0, cqd_admin_unload },
	[CQP__MSG__BODY_SUBSCRIBE] = { "Subscribe", H_ANY, 0, cqd_subscribe },
	[CQP__MSG__BODY_METRICS] = { "Metrics", H_ADMIN, 0, cqd_admin_metrics },
	[CQP__MSG__BODY_VERIFY] = { "Verify", H_ADMIN, 0, cqd_admin_verify },
	[CQP__MSG__BODY_LOOK] = { "Look", H_ADMIN, 0, cqd_admin_look },
	[CQP__MSG__BODY_EVICT] = { "Evict", H_ADMIN, 0, cqd_admin_evict },
	[CQP__MSG__BODY_QUOTA] = { "Quota", H_ADMIN, 0, cqd_admin_quota },
	[CQP__MSG__BODY_SAVE] = { "Save", H_ADMIN, 1, cqd_admin_save },
	[CQP__MSG__BODY_RESTORE] = { "Restore", H_ADMIN, 1, cqd_admin_restore },
	[CQP__MSG__BODY_DRAIN] = { "Drain", H_ADMIN, 0, cqd_admin_drain },
};

_Static_assert(ARRAY_SIZE(handlers) <= CQD_REQUESTS, "each has its figures");

/**
 * cqd_request_name() - as metrics call it
 * @body: number of Msg's body
 *
 * Return: name of the request; NULL if there is none of that number.
 */
const char *cqd_request_name(unsigned int body)
{
	return body < ARRAY_SIZE(handlers) ? handlers[body].name : NULL;
}

/**
 * cqd_server_ready() - does cqd serve?
 * @srv: server
 *
 * Return: false while models of the configuration are loaded, and when it was
 * told to stop.
 */
bool cqd_server_ready(const struct cqd_server *srv)
{
	return !srv->loading && !srv->stopping;
}

static const struct cqd_handler *find(const Cqp__Msg *msg)
{
	unsigned int i = (unsigned int)msg->body_case;

	return i < ARRAY_SIZE(handlers) && handlers[i].name ? &handlers[i] : NULL;
}

static int check(const struct cqd_req *req, const struct cqd_handler *h)
{
	const struct cqd_conn *conn = req->conn;

	if (!h)
		return cq_err_set(req->err, -EOPNOTSUPP, "no request, or none that cqd "
				  CQ_VERSION " knows (body %d)", (int)req->msg->body_case);
	if (!conn->greeted && !(h->flags & H_FIRST))
		return cq_err_set(req->err, -EPROTO, "%s before Hello", h->name);
	if (!(h->flags & (conn->admin ? H_ADMIN : H_TENANT)))
		return cq_err_set(req->err, -EACCES, "%s is not for this socket: %s", h->name,
				  conn->admin ? "it is the admin socket" :
				  "use the admin socket");
	if (req->frame->n_fds != h->n_fds)
		return cq_err_set(req->err, -EINVAL, "%s came with %u descriptors, not %u",
				  h->name, req->frame->n_fds, h->n_fds);
	if (!conn->admin && conn->greeted && !conn->session && !(h->flags & H_FIRST))
		return cq_err_set(req->err, -ENOTCONN, "%s after Bye", h->name);
	return 0;
}

/**
 * cqd_dispatch() - parse and answer one datagram
 * @conn:  where it came from
 * @frame: datagram; descriptors that nobody took stay in it
 *
 * Return: 0; -errno if the peer is no client of ours, and was told so: garbage,
 * or no Hello first. The connection must be closed then.
 */
int cqd_dispatch(struct cqd_conn *conn, struct cqp_frame *frame)
{
	struct cq_err err = { "" };
	struct cqd_req req = { .conn = conn, .frame = frame, .err = &err };
	struct cqd_meter *m = &conn->srv->meter;
	uint64_t start = uv_hrtime();
	const struct cqd_handler *h;
	Cqp__Msg *msg;
	int ret;

	msg = cqp_unpack(frame->buf, frame->len, &err);
	if (!msg) {
		cqd_conn_error(conn, 0, -EBADMSG, err.text);
		return -EBADMSG;
	}
	req.msg = msg;
	h = find(msg);
	ret = check(&req, h);
	m->body = (unsigned int)msg->body_case;
	m->later = false;
	if (!ret)
		ret = h->fn(&req);
	if (ret)
		cqd_conn_error(conn, msg->id, ret, err.text[0] ? err.text : strerror(-ret));
	if (h && !m->later)
		cqd_meter_request(m, (unsigned int)msg->body_case, start, ret);
	cqp_free(msg);
	return ret && !conn->greeted ? ret : 0;
}
