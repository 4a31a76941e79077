// SPDX-License-Identifier: MIT
/*
 * Events for routers and people. A subscriber may begin with a snapshot of all
 * resident pages, taken in small steps between turns of the loop. Pages that
 * come and go meanwhile are told in the same stream: who adds what is sealed or
 * resident and removes what is evicted, in the order of the stream, knows at
 * the snapshot's end and from then on what is there.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/server.h"

#define BATCH		128	/* events of one message: 34 KiB at most */
#define MESSAGES	8	/* to one subscriber in one turn */
#define STEP		4096	/* page records looked at in one turn */

/* Of the stream itself, beside enum cqd_notice_kind. */
enum { SUB_START = CQD_N_NOTICES, SUB_END, SUB_LOST };

struct entry {
	uint64_t seq;
	struct cqd_notice what;
};

/*
 * struct cqd_sub - a subscriber
 * @ns:      it hears of this namespace, NULL: of all
 * @id:      of its request
 * @seq:     number of the last event, lost ones included
 * @lost:    events dropped since the last one that is in the ring
 * @cursor:  of the snapshot, UINT32_MAX: none, or at its end
 * @blocked: its socket is full
 * @ring:    @n events from @head on
 */
struct cqd_sub {
	struct list_head node;
	struct cqd_conn *conn;
	struct cqd_ns *ns;
	uint64_t id, seq, lost;
	uint32_t cursor;
	bool blocked;
	unsigned int head, n;
	struct entry ring[CQD_SUB_RING];
};

/* --- the ring --- */

static void append(struct cqd_sub *s, const struct cqd_notice *what)
{
	struct entry *e = &s->ring[(s->head + s->n++) % CQD_SUB_RING];

	e->seq = s->seq;
	e->what = *what;
}

/* Says how many were lost, behind what came before them. */
static void append_lost(struct cqd_sub *s)
{
	struct cqd_notice lost = { .kind = SUB_LOST, .bytes = s->lost };

	append(s, &lost);
	s->lost = 0;
}

static void push(struct cqd_sub *s, const struct cqd_notice *what)
{
	if (s->lost && s->n + 2 <= CQD_SUB_RING)
		append_lost(s);
	s->seq++;
	if (!s->lost && s->n < CQD_SUB_RING) {
		append(s, what);
		return;
	}
	s->lost++;
	s->conn->srv->events.lost++;
}

static void push_mark(struct cqd_sub *s, unsigned int kind)
{
	struct cqd_notice mark = { .kind = (uint8_t)kind };

	push(s, &mark);
}

/* --- who hears what --- */

static bool hears(const struct cqd_sub *s, const struct cqd_notice *n)
{
	const struct cqd_conn *conn = s->conn;

	switch (n->kind) {
	case CQD_NOTICE_LOADED:
	case CQD_NOTICE_UNLOADED:
		return conn->admin ||
		       (conn->session && cqd_session_model_ok(conn->session, n->name));
	case CQD_NOTICE_RELOADED:
		return conn->admin;
	case CQD_NOTICE_JOINED:
	case CQD_NOTICE_LEFT:
		if (!conn->admin)
			return false;
		break;
	default:
		break;
	}
	return !s->ns || !strcmp(cqd_ns_name(s->ns), n->tenant);
}

static void on_notice(void *arg, const struct cqd_notice *n)
{
	struct cqd_server *srv = arg;
	struct list_head *pos;
	struct cqd_sub *s;

	list_for_each(pos, &srv->events.subs) {
		s = list_entry(pos, struct cqd_sub, node);
		if (hears(s, n))
			push(s, n);
	}
}

/**
 * cqd_events_tell() - an event of the whole daemon
 * @srv:  server
 * @kind: what happened
 */
void cqd_events_tell(struct cqd_server *srv, enum cqd_notice_kind kind)
{
	struct cqd_notice n = { .kind = (uint8_t)kind };

	on_notice(srv, &n);
}

/* --- messages --- */

static Cqp__EventKind kind_of(unsigned int kind)
{
	static const Cqp__EventKind kinds[] = {
		[CQD_NOTICE_SEALED] = CQP__EVENT_KIND__PAGE_SEALED,
		[CQD_NOTICE_GONE] = CQP__EVENT_KIND__PAGE_EVICTED,
		[CQD_NOTICE_LOADED] = CQP__EVENT_KIND__MODEL_LOADED,
		[CQD_NOTICE_UNLOADED] = CQP__EVENT_KIND__MODEL_UNLOADED,
		[CQD_NOTICE_JOINED] = CQP__EVENT_KIND__CLIENT_JOINED,
		[CQD_NOTICE_LEFT] = CQP__EVENT_KIND__CLIENT_LEFT,
		[CQD_NOTICE_CHECKSUM] = CQP__EVENT_KIND__CHECKSUM_FAILED,
		[CQD_NOTICE_RELOADED] = CQP__EVENT_KIND__CONFIG_RELOADED,
		[CQD_NOTICE_RESIDENT] = CQP__EVENT_KIND__PAGE_RESIDENT,
		[SUB_START] = CQP__EVENT_KIND__START,
		[SUB_END] = CQP__EVENT_KIND__SNAPSHOT_END,
		[SUB_LOST] = CQP__EVENT_KIND__LOST,
	};

	return kinds[kind];
}

static bool of_page(unsigned int kind)
{
	return kind == CQD_NOTICE_SEALED || kind == CQD_NOTICE_GONE ||
	       kind == CQD_NOTICE_RESIDENT || kind == CQD_NOTICE_CHECKSUM;
}

static void fill_page(Cqp__Event *to, struct cqd_notice *n)
{
	const struct cqp_shard *r = &n->range;

	to->has_key = true;
	to->key = (ProtobufCBinaryData){ sizeof(n->key.b), n->key.b };
	to->has_parent = n->has_parent;
	to->parent = (ProtobufCBinaryData){ sizeof(n->parent.b), n->parent.b };
	to->has_depth = true;
	to->depth = n->depth;
	to->has_layer_begin = to->has_layer_end = true;
	to->has_head_begin = to->has_head_end = true;
	to->layer_begin = r->layer_begin;
	to->layer_end = r->layer_end;
	to->head_begin = r->head_begin;
	to->head_end = r->head_end;
}

/* struct words - room for words, which protobuf-c wants writable */
struct words {
	char reason[16], device[CQD_UUID_TEXT];
};

static void fill(Cqp__Event *to, struct entry *e, const struct cqd_store *st,
		 struct words *words)
{
	struct cqd_notice *n = &e->what;
	bool client = n->kind == CQD_NOTICE_JOINED || n->kind == CQD_NOTICE_LEFT;
	struct cqd_pool_figures pool;

	cqp__event__init(to);
	to->seq = e->seq;
	to->kind = kind_of(n->kind);
	to->tenant = n->tenant[0] ? n->tenant : NULL;
	if (client)
		to->client = n->name;
	else
		to->model = n->name[0] ? n->name : NULL;
	to->has_pid = to->has_uid = client;
	to->pid = n->pid;
	to->uid = n->uid;
	to->has_lost = n->kind == SUB_LOST;
	to->lost = n->bytes;
	to->has_bytes = n->kind != SUB_LOST && n->bytes;
	to->bytes = n->bytes;
	if (of_page(n->kind))
		fill_page(to, n);
	if (n->kind == CQD_NOTICE_GONE) {
		snprintf(words->reason, sizeof(words->reason), "%s",
			 cqd_evict_reason_name(n->reason));
		to->reason = words->reason;
	}
	if (n->pool && cqd_pool_figures(st, n->pool, &pool)) {
		snprintf(words->device, sizeof(words->device), "%s", pool.uuid);
		to->device = words->device;
	}
}

/* One message of what the ring has. 0; -EAGAIN; else the connection is closed. */
static int send_batch(struct cqd_sub *s)
{
	/* 30 KiB: static, since the loop has one thread */
	static Cqp__Event event[BATCH];
	static Cqp__Event *ptr[BATCH];
	static struct words words[BATCH];
	Cqp__Events events = CQP__EVENTS__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	unsigned int i, n = MIN(s->n, BATCH);
	int ret;

	for (i = 0; i < n; i++) {
		fill(&event[i], &s->ring[(s->head + i) % CQD_SUB_RING], s->conn->srv->store,
		     &words[i]);
		ptr[i] = &event[i];
	}
	events.n_events = n;
	events.events = ptr;
	msg.id = s->id;
	msg.body_case = CQP__MSG__BODY_EVENTS;
	msg.events = &events;
	ret = cqd_conn_try(s->conn, &msg);
	if (ret)
		return ret;
	s->head = (s->head + n) % CQD_SUB_RING;
	s->n -= n;
	return 0;
}

/* --- the snapshot --- */

/* Half of the ring is left to what happens meanwhile. */
static void snapshot(struct cqd_sub *s)
{
	struct cqd_store *st = s->conn->srv->store;
	uint32_t before = s->cursor, end;
	struct cqd_notice n;

	while (s->cursor != UINT32_MAX && s->n < CQD_SUB_RING / 2 &&
	       s->cursor - before < STEP) {
		end = STEP - (s->cursor - before);
		if (cqd_store_resident(st, s->ns, &s->cursor, end, &n))
			push(s, &n);
	}
	if (before != UINT32_MAX && s->cursor == UINT32_MAX)
		push_mark(s, SUB_END);
}

/* True: there is more to do in the next turn. */
static bool serve(struct cqd_sub *s)
{
	unsigned int i;
	int ret = 0;

	if (s->blocked)
		return false;
	snapshot(s);
	for (i = 0; i < MESSAGES && !ret; i++) {
		if (!s->n && s->lost)
			append_lost(s);
		if (!s->n)
			break;
		ret = send_batch(s);
	}
	if (ret == -EAGAIN)
		s->blocked = true;
	return !ret && (s->n || s->cursor != UINT32_MAX);
}

static void on_idle(uv_idle_t *idle)
{
}

/**
 * cqd_events_flush() - send what has come together
 * @srv: server; called once per turn, before the loop may sleep
 */
void cqd_events_flush(struct cqd_server *srv)
{
	unsigned int n = srv->events.n;
	bool more = false;
	struct cqd_sub *s;

	if (!n)
		return;
	/* A connection that is closed here may take any other along. */
	for (; n && srv->events.n; n--) {
		s = list_first(&srv->events.subs, struct cqd_sub, node);
		list_del(&s->node);
		list_add_tail(&s->node, &srv->events.subs);
		more |= serve(s);
	}
	if (more)
		uv_idle_start(&srv->events.idle, on_idle);
	else
		uv_idle_stop(&srv->events.idle);
}

/**
 * cqd_events_writable() - a full socket takes more
 * @conn: connection, of a subscriber or not
 */
void cqd_events_writable(struct cqd_conn *conn)
{
	if (conn->sub)
		conn->sub->blocked = false;
}

/* --- coming and going --- */

static int admit(struct cqd_server *srv, const struct cqd_conn *conn,
		 const struct cqd_ns *ns, struct cq_err *err)
{
	unsigned int n = 0, tenants = 0;
	struct list_head *pos;

	if (conn->sub)
		return cq_err_set(err, -EALREADY, "this connection has subscribed already");
	list_for_each(pos, &srv->events.subs) {
		const struct cqd_sub *s = list_entry(pos, struct cqd_sub, node);

		tenants += !s->conn->admin;
		n += !s->conn->admin && s->ns == ns;
	}
	if (srv->events.n >= CQD_SUBS ||
	    (!conn->admin && (tenants >= CQD_SUBS - CQD_SUBS_ADMIN || n >= CQD_SUBS_NS)))
		return cq_err_set(err, -EUSERS, "too many subscribers: at most %d, %d of a "
				  "namespace", CQD_SUBS, CQD_SUBS_NS);
	return 0;
}

/* Its own namespace, whatever it asks for; the administrator's choice. */
static int choose_ns(const struct cqd_req *req, struct cqd_ns **out)
{
	const char *name = req->msg->subscribe->tenant;
	struct list_head *pos;

	*out = NULL;
	if (!req->conn->admin) {
		*out = cqd_client_ns(req->conn->session->client);
		return !name || !strcmp(name, cqd_ns_name(*out)) ? 0 :
		       cq_err_set(req->err, -EACCES, "events of another namespace: use the "
				  "admin socket");
	}
	if (!name)
		return 0;
	list_for_each(pos, &req->conn->srv->tenants) {
		*out = list_entry(pos, struct cqd_tenant, node)->ns;
		if (!strcmp(cqd_ns_name(*out), name))
			return 0;
	}
	return cq_err_set(req->err, -ENOENT, "there is no namespace \"%.63s\": see cqctl "
			  "list namespaces", name);
}

/**
 * cqd_subscribe() - handler of Subscribe
 * @req: request
 *
 * Return: 0, answered with events until the connection ends; -EALREADY;
 * -EUSERS; -EACCES, -ENOENT namespace; -ENOMEM.
 */
int cqd_subscribe(struct cqd_req *req)
{
	struct cqd_server *srv = req->conn->srv;
	struct cqd_ns *ns;
	struct cqd_sub *s;
	int ret;

	ret = choose_ns(req, &ns);
	if (!ret)
		ret = admit(srv, req->conn, ns, req->err);
	if (ret)
		return ret;
	s = calloc(1, sizeof(*s));
	if (!s)
		return cq_err_set(req->err, -ENOMEM, "cqd is out of memory");
	s->conn = req->conn;
	s->ns = ns;
	s->id = req->msg->id;
	s->cursor = req->msg->subscribe->snapshot ? 0 : UINT32_MAX;
	req->conn->sub = s;
	list_add_tail(&s->node, &srv->events.subs);
	srv->events.n++;
	cqd_store_watch(srv->store, on_notice, srv);
	push_mark(s, SUB_START);
	return 0;
}

/**
 * cqd_events_gone() - forget a subscriber
 * @conn: connection that ends, a subscriber's or not
 */
void cqd_events_gone(struct cqd_conn *conn)
{
	struct cqd_server *srv = conn->srv;

	if (!conn->sub)
		return;
	list_del(&conn->sub->node);
	free(conn->sub);
	conn->sub = NULL;
	if (--srv->events.n)
		return;
	if (srv->store)
		cqd_store_watch(srv->store, NULL, NULL);
	uv_idle_stop(&srv->events.idle);
}

/**
 * cqd_events_init() - before the first connection
 * @srv: server
 */
void cqd_events_init(struct cqd_server *srv)
{
	list_init(&srv->events.subs);
	uv_idle_init(srv->loop, &srv->events.idle);
}

/**
 * cqd_events_close() - the end
 * @srv: server, its connections closed
 */
void cqd_events_close(struct cqd_server *srv)
{
	uv_close((uv_handle_t *)&srv->events.idle, NULL);
}
