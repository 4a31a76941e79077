// SPDX-License-Identifier: MIT
/*
 * Connections: datagrams in, replies out, and what happens when a client does
 * not read them. A connection is served from its poll callback and answered at
 * once; only what the socket does not take is copied into a queue.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>
#include "cq/log.h"
#include "daemon/server.h"

#define TICK_MS		100	/* deadlines, and replies short of descriptors */
#define FD_COST		32768	/* what a descriptor counts in the queue */
#define FDS_IN_FLIGHT	64	/* descriptors that a client has not read yet */

static void on_event(uv_poll_t *poll, int status, int events);
static void flush(struct cqd_conn *conn);

static void conn_release(struct kref *ref)
{
	free(container_of(ref, struct cqd_conn, ref));
}

/* --- deadlines --- */

static void on_deadline(struct cqd_conn *conn)
{
	if (!conn->greeted)
		cqd_conn_error(conn, 0, -ETIMEDOUT, "no Hello within 10 s");
	cqd_conn_close(conn);
}

static void on_tick(uv_timer_t *timer)
{
	struct cqd_server *srv = timer->data;
	uint64_t now = uv_now(srv->loop);
	struct list_head end, *pos;
	struct cqd_conn *conn;

	/* One that is closed may take any other along: see cqd_conn_close_all(). */
	list_add_tail(&end, &srv->waiting);
	while ((pos = srv->waiting.next) != &end) {
		list_del(pos);
		list_add_tail(pos, &srv->waiting);
		conn = list_entry(pos, struct cqd_conn, wait);
		if (conn->deadline && now >= conn->deadline) {
			on_deadline(conn);
		} else if (conn->starved) {
			conn->starved = false;
			flush(conn);
		}
	}
	list_del(&end);
	if (list_empty(&srv->waiting)) {
		uv_timer_stop(timer);
		srv->ticking = false;
	}
}

/* On the list while a deadline runs or descriptors are short. */
static void wait_update(struct cqd_conn *conn)
{
	struct cqd_server *srv = conn->srv;
	bool want = !conn->closed && (conn->deadline || conn->starved);

	if (want == !list_empty(&conn->wait))
		return;
	list_del(&conn->wait);
	if (!want)
		return;
	list_add_tail(&conn->wait, &srv->waiting);
	if (!srv->ticking) {
		srv->tick.data = srv;
		uv_timer_start(&srv->tick, on_tick, TICK_MS, TICK_MS);
		srv->ticking = true;
	}
}

/**
 * cqd_conn_deadline() - close the connection when time is up
 * @conn: connection
 * @ms:   from now; 0: no deadline
 */
void cqd_conn_deadline(struct cqd_conn *conn, uint64_t ms)
{
	conn->deadline = ms ? uv_now(conn->srv->loop) + ms : 0;
	wait_update(conn);
}

/* --- replies --- */

static bool paused(const struct cqd_conn *conn)
{
	return conn->stalled || conn->pending >= CQD_MAX_PENDING;
}

/**
 * cqd_conn_update() - recompute what the poll handle waits for
 * @conn: connection
 */
void cqd_conn_update(struct cqd_conn *conn)
{
	int want = UV_DISCONNECT;

	if (conn->closed)
		return;
	if (!paused(conn))
		want |= UV_READABLE;
	/* Room in the socket is no help to one that is starved. */
	if ((!list_empty(&conn->queue) || conn->want_write) && !conn->starved)
		want |= UV_WRITABLE;
	if (want == conn->events)
		return;
	conn->events = want;
	uv_poll_start(&conn->poll, want, on_event);
}

static size_t reply_cost(const struct cqd_reply *r)
{
	return sizeof(*r) + r->len + (size_t)r->n_fds * FD_COST;
}

static void reply_free(struct cqd_conn *conn, struct cqd_reply *r)
{
	unsigned int i;

	conn->queued -= reply_cost(r);
	list_del(&r->node);
	for (i = 0; i < r->n_fds; i++)
		close(r->fds[i]);
	free(r);
}

/* The caller's descriptors may be closed before the client reads: duplicates. */
static int enqueue(struct cqd_conn *conn, const uint8_t *buf, size_t len,
		   const int *fds, unsigned int n_fds)
{
	struct cqd_reply *r = malloc(sizeof(*r) + len);
	int fd;

	if (!r)
		return -ENOMEM;
	if (n_fds > ARRAY_SIZE(r->fds)) {
		free(r);
		return -EINVAL;
	}
	memcpy(r->buf, buf, len);
	r->len = len;
	for (r->n_fds = 0; r->n_fds < n_fds; r->n_fds++) {
		fd = fcntl(fds[r->n_fds], F_DUPFD_CLOEXEC, 0);
		if (fd < 0)
			goto err_close;
		r->fds[r->n_fds] = fd;
	}
	list_add_tail(&r->node, &conn->queue);
	conn->queued += reply_cost(r);
	if (conn->queued > CQD_QUEUE_BYTES && !conn->stalled) {
		conn->stalled = true;
		cqd_conn_deadline(conn, CQD_STALL_MS);
	}
	return 0;

err_close:
	while (r->n_fds)
		close(r->fds[--r->n_fds]);
	free(r);
	return -EMFILE;
}

/* True: not now. -ETOOMANYREFS: too many descriptors under way to others. */
static bool again(struct cqd_conn *conn, int ret)
{
	if (ret != -ETOOMANYREFS)
		return ret == -EAGAIN || ret == -ENOBUFS;
	conn->starved = true;
	wait_update(conn);
	return true;
}

/*
 * The kernel counts descriptors on their way to all clients together: one that
 * does not read must not use up what is there for the others. An empty socket
 * says that everything was read.
 */
static bool may_fly(struct cqd_conn *conn, unsigned int n_fds)
{
	int unread = 1;

	if (!n_fds || conn->in_flight + n_fds <= FDS_IN_FLIGHT)
		return true;
	if (ioctl(conn->fd, SIOCOUTQ, &unread) < 0 || unread)
		return false;
	conn->in_flight = 0;
	return true;
}

static int transmit(struct cqd_conn *conn, const uint8_t *buf, size_t len, const int *fds,
		    unsigned int n_fds)
{
	int ret = -ETOOMANYREFS;

	if (may_fly(conn, n_fds))
		ret = cqp_send_raw(conn->fd, buf, len, fds, n_fds, MSG_DONTWAIT);
	if (!ret)
		conn->in_flight += n_fds;
	return ret;
}

/* The peer has closed: nobody wants replies, but what it sent before counts. */
static void drop_queue(struct cqd_conn *conn)
{
	while (!list_empty(&conn->queue))
		reply_free(conn, list_first(&conn->queue, struct cqd_reply, node));
}

static void flush(struct cqd_conn *conn)
{
	struct cqd_reply *r;
	int ret;

	while (!list_empty(&conn->queue)) {
		r = list_first(&conn->queue, struct cqd_reply, node);
		ret = transmit(conn, r->buf, r->len, r->fds, r->n_fds);
		if (ret && again(conn, ret))
			break;
		if (ret == -EPIPE) {
			drop_queue(conn);
			break;
		}
		if (ret) {
			cqd_conn_close(conn);
			return;
		}
		reply_free(conn, r);
	}
	if (conn->stalled && conn->queued <= CQD_QUEUE_BYTES) {
		conn->stalled = false;
		cqd_conn_deadline(conn, 0);
	}
	wait_update(conn);
	cqd_conn_update(conn);
}

/**
 * cqd_conn_send() - send a reply, or queue it
 * @conn:  connection; nothing happens if it is closed already
 * @msg:   reply, its id set
 * @fds:   go along, stay the caller's
 * @n_fds: at most 2
 *
 * A connection that can take the reply neither way is closed: a request
 * without its answer would hang the client. One that the peer has closed is
 * read to its end: a Bye may be in it.
 */
void cqd_conn_send(struct cqd_conn *conn, const Cqp__Msg *msg, const int *fds,
		   unsigned int n_fds)
{
	struct cqd_server *srv = conn->srv;
	int ret = -EAGAIN;
	size_t len;

	if (conn->closed)
		return;
	len = cqp__msg__get_packed_size(msg);
	if (len > sizeof(srv->tx)) {
		cqd_conn_error(conn, msg->id, -EMSGSIZE, "the reply exceeds one message");
		return;
	}
	cqp__msg__pack(msg, srv->tx);
	if (list_empty(&conn->queue))
		ret = transmit(conn, srv->tx, len, fds, n_fds);
	if (!ret || ret == -EPIPE)
		return;
	if (again(conn, ret) && !enqueue(conn, srv->tx, len, fds, n_fds))
		cqd_conn_update(conn);
	else
		cqd_conn_close(conn);
}

/**
 * cqd_conn_try() - send a message that nobody waits for
 * @conn: connection; closed when its peer is gone
 * @msg:  without descriptors
 *
 * Return: 0; -EAGAIN not now: cqd_events_writable() says when; else the
 * connection is closed.
 */
int cqd_conn_try(struct cqd_conn *conn, const Cqp__Msg *msg)
{
	struct cqd_server *srv = conn->srv;
	size_t len = cqp__msg__get_packed_size(msg);
	int ret = -EAGAIN;

	if (len > sizeof(srv->tx))
		return -EMSGSIZE;
	cqp__msg__pack(msg, srv->tx);
	if (list_empty(&conn->queue))
		ret = transmit(conn, srv->tx, len, NULL, 0);
	if (!ret)
		return 0;
	if (ret != -EAGAIN && ret != -ENOBUFS) {
		cqd_conn_close(conn);
		return ret;
	}
	conn->want_write = true;
	cqd_conn_update(conn);
	return -EAGAIN;
}

/**
 * cqd_conn_error() - answer a request with a failure
 * @conn: connection
 * @id:   of the request, 0 if it could not be read
 * @code: negative errno
 * @text: what, where, remedy
 */
void cqd_conn_error(struct cqd_conn *conn, uint64_t id, int code, const char *text)
{
	Cqp__Error error = CQP__ERROR__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	char copy[CQ_ERR_TEXT];

	snprintf(copy, sizeof(copy), "%s", text);
	error.code = code;
	error.text = copy;
	msg.id = id;
	msg.body_case = CQP__MSG__BODY_ERROR;
	msg.error = &error;
	cqd_conn_send(conn, &msg, NULL, 0);
}

/**
 * cqd_conn_ok() - answer a request that returns nothing
 * @conn: connection
 * @id:   of the request
 */
void cqd_conn_ok(struct cqd_conn *conn, uint64_t id)
{
	Cqp__Ok ok = CQP__OK__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;

	msg.id = id;
	msg.body_case = CQP__MSG__BODY_OK;
	msg.ok = &ok;
	cqd_conn_send(conn, &msg, NULL, 0);
}

/**
 * cqd_pending_new() - a request whose reply comes later
 * @conn: connection
 * @id:   of the request
 *
 * Return: handle, ended with cqd_pending_end(); NULL: out of memory.
 */
struct cqd_pending *cqd_pending_new(struct cqd_conn *conn, uint64_t id)
{
	struct cqd_pending *p = malloc(sizeof(*p));

	if (!p)
		return NULL;
	p->conn = conn;
	p->id = id;
	p->started_us = cqd_clock_us();
	p->started_ns = uv_hrtime();
	p->body = conn->srv->meter.body;
	conn->srv->meter.later = true;
	kref_get(&conn->ref);
	conn->pending++;
	cqd_conn_update(conn);
	return p;
}

/**
 * cqd_pending_end() - the reply was sent, or is not needed
 * @p:   freed
 * @ret: 0 or -errno that it was answered with
 */
void cqd_pending_end(struct cqd_pending *p, int ret)
{
	struct cqd_conn *conn = p->conn;

	cqd_meter_request(&conn->srv->meter, p->body, p->started_ns, ret);
	conn->pending--;
	cqd_conn_update(conn);
	kref_put(&conn->ref, conn_release);
	free(p);
}

/* --- requests --- */

static void conn_fail(struct cqd_conn *conn, int code, const char *text)
{
	cqd_conn_error(conn, 0, code, text);
	cqd_conn_close(conn);
}

/* One datagram. False: nothing more to read now, or ever. */
static bool read_one(struct cqd_conn *conn)
{
	struct cqp_frame *f = &conn->srv->frame;
	int ret = cqd_recv(conn->fd, f);

	switch (ret) {
	case 1:
		ret = cqd_dispatch(conn, f);
		cqd_frame_drop(f);
		if (ret < 0)
			cqd_conn_close(conn);
		return ret >= 0;
	case -EAGAIN:
		return false;
	case -ECONNRESET:	/* said once; what was sent before can still be read */
		return true;
	case -EMSGSIZE:
		conn_fail(conn, ret, "message too long: one message is one datagram of at "
			  "most 65536 bytes");
		return false;
	case -EBADMSG:
		conn_fail(conn, ret, "too many descriptors: at most 28 go with a message");
		return false;
	default:
		cqd_conn_close(conn);
		return false;
	}
}

static void on_writable(struct cqd_conn *conn)
{
	if (conn->closed || !conn->want_write || !list_empty(&conn->queue))
		return;
	conn->want_write = false;
	cqd_conn_update(conn);
	cqd_events_writable(conn);
}

static void on_event(uv_poll_t *poll, int status, int events)
{
	struct cqd_conn *conn = poll->data;
	int i;

	if (status == 0 && events & UV_WRITABLE) {
		flush(conn);
		on_writable(conn);
	}
	if (status < 0 || events & UV_READABLE) {
		for (i = 0; i < CQD_BURST; i++)
			if (conn->closed || paused(conn) || !read_one(conn))
				break;
	} else if (events & UV_DISCONNECT) {
		cqd_conn_close(conn);
	}
	/* libuv has stopped polling a socket with an error. */
	if (status < 0)
		cqd_conn_close(conn);
}

/* --- life --- */

/* Answer a connection that is not let in; it has no struct cqd_conn. */
static void refuse(int fd, int code, char *text)
{
	Cqp__Error error = CQP__ERROR__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;

	error.code = code;
	error.text = text;
	msg.body_case = CQP__MSG__BODY_ERROR;
	msg.error = &error;
	cqp_send(fd, &msg, NULL, 0, MSG_DONTWAIT);
	cqd_sock_close(fd);
}

/*
 * Limits do not hold for the administrator, who must get in when all is full.
 * NULL: not now, and *@ret says why.
 */
static struct cqd_uid *admit(struct cqd_listener *l, uid_t uid, int *ret, struct cq_err *err)
{
	struct cqd_server *srv = l->srv;
	struct cqd_uid *u;

	if (!l->admin && srv->n_conns >= srv->config->max_connections) {
		*ret = cq_err_set(err, -EUSERS, "cqd has %u connections, its max_connections",
				  srv->n_conns);
		return NULL;
	}
	u = cqd_uid_get(srv, uid);
	if (!u) {
		*ret = cq_err_set(err, -ENOMEM, "cqd is out of memory");
		return NULL;
	}
	if (!l->admin && u->conns >= srv->config->uid_connections) {
		*ret = cq_err_set(err, -EUSERS, "uid %u has %u connections, its uid_connections",
				  (unsigned int)uid, u->conns);
		return NULL;
	}
	u->conns++;
	return u;
}

static struct cqd_conn *conn_alloc(struct cqd_listener *l, int fd)
{
	struct cqd_conn *conn = calloc(1, sizeof(*conn));

	if (!conn)
		return NULL;
	if (uv_poll_init(l->srv->loop, &conn->poll, fd)) {
		free(conn);
		return NULL;
	}
	kref_init(&conn->ref);
	list_init(&conn->wait);
	list_init(&conn->queue);
	conn->poll.data = conn;
	conn->srv = l->srv;
	conn->listener = l;
	conn->admin = l->admin;
	conn->fd = fd;
	return conn;
}

/**
 * cqd_conn_new() - serve an accepted socket
 * @l:  where it came from
 * @fd: taken over in any case
 *
 * Return: connection; NULL: refused, with a reply that says why where one can
 * be sent.
 */
struct cqd_conn *cqd_conn_new(struct cqd_listener *l, int fd)
{
	struct cqd_server *srv = l->srv;
	struct ucred cred;
	socklen_t len = sizeof(cred);
	struct cqd_conn *conn;
	struct cqd_uid *u;
	struct cq_err err = { "" };
	int ret = 0;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0) {
		cqd_sock_close(fd);
		return NULL;
	}
	u = admit(l, cred.uid, &ret, &err);
	if (!u) {
		refuse(fd, ret, err.text);
		return NULL;
	}
	conn = conn_alloc(l, fd);
	if (!conn) {
		u->conns--;
		cqd_uid_put(u);
		cq_err_set(&err, -ENOMEM, "cqd is out of memory");
		refuse(fd, -ENOMEM, err.text);
		return NULL;
	}
	conn->cred = cred;
	conn->uid = u;
	list_add_tail(&conn->node, &srv->conns);
	srv->n_conns++;
	cqd_conn_deadline(conn, CQD_HELLO_MS);
	cqd_conn_update(conn);
	return conn;
}

static void on_closed(uv_handle_t *handle)
{
	struct cqd_conn *conn = handle->data;

	kref_put(&conn->ref, conn_release);
}

/**
 * cqd_conn_close() - end a connection
 * @conn: may be closed already; its memory stays until the loop runs on and the
 *        last pending request has ended
 *
 * Its session, if any, becomes an orphan.
 */
void cqd_conn_close(struct cqd_conn *conn)
{
	struct list_head *pos, *tmp;

	if (conn->closed)
		return;
	conn->closed = true;
	list_del(&conn->node);
	wait_update(conn);
	conn->srv->n_conns--;
	conn->uid->conns--;
	cqd_uid_put(conn->uid);
	list_for_each_safe(pos, tmp, &conn->queue)
		reply_free(conn, list_entry(pos, struct cqd_reply, node));
	if (conn->session)
		cqd_session_orphan(conn->session);
	conn->session = NULL;
	cqd_events_gone(conn);
	if (conn->transfer)
		cqd_transfer_gone(conn->srv->store, conn->transfer);
	cqd_look_free(conn->look);
	conn->look = NULL;
	uv_close((uv_handle_t *)&conn->poll, on_closed);
	cqd_sock_close(conn->fd);
}

/**
 * cqd_conn_close_all() - end every connection
 * @srv: server
 */
void cqd_conn_close_all(struct cqd_server *srv)
{
	/* One may take another along: its seals end, and others waited for them. */
	while (!list_empty(&srv->conns))
		cqd_conn_close(list_first(&srv->conns, struct cqd_conn, node));
}
