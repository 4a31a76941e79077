// SPDX-License-Identifier: MIT
/*
 * Metrics over HTTP. A connection carries one request. Its answer is written in
 * pieces, each made when the one before has gone: a slow reader costs its
 * buffers and, after CQD_HTTP_MS, its connection.
 *
 *	READ	the request's head
 *	WRITE	the answer
 *	DRAIN	what the peer still sends is read and forgotten until it closes:
 *		closing a socket with unread bytes would take the answer back
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "cq/log.h"
#include "daemon/bind.h"
#include "daemon/http.h"
#include "daemon/metrics.h"
#include "daemon/server.h"

#define BACKLOG		32
#define TICK_MS		250
#define DRAIN_BYTES	65536
#define CHUNK_HEAD	6	/* "2000\r\n" */
#define OUT_BYTES	(CQD_METRICS_MIN + 512)

/* struct http_listener - a listening stream socket */
struct http_listener {
	struct list_head node;
	struct cqd_server *srv;
	uv_poll_t poll;
	int fd;
	bool own;
	char path[108];
};

enum http_state { HTTP_READ, HTTP_WRITE, HTTP_DRAIN };

/*
 * struct http_conn - one request
 * @deadline: loop time at which it is closed
 * @in:      head of the request, @in_len bytes so far; then bytes drained
 * @out:     [@sent, @out_len) is to be written
 * @cursor:  of the metrics, while there are @more
 */
struct http_conn {
	struct list_head node;
	struct cqd_server *srv;
	uv_poll_t poll;
	int fd;
	enum http_state state;
	uint64_t deadline, cursor;
	struct cqd_http_req req;
	bool more;
	size_t in_len, out_len, sent;
	char in[CQD_HTTP_REQUEST], out[OUT_BYTES];
};

static void on_event(uv_poll_t *poll, int status, int events);
static void on_listen(uv_poll_t *poll, int status, int events);

/* --- life --- */

static void on_conn_closed(uv_handle_t *handle)
{
	free(handle->data);
}

/* With a free place there is somebody to accept. */
static void listen_update(struct cqd_server *srv)
{
	struct list_head *pos;

	list_for_each(pos, &srv->http.listeners) {
		struct http_listener *l = list_entry(pos, struct http_listener, node);

		if (srv->http.n >= CQD_HTTP_CONNS)
			uv_poll_stop(&l->poll);
		else
			uv_poll_start(&l->poll, UV_READABLE, on_listen);
	}
}

static void conn_close(struct http_conn *c)
{
	list_del(&c->node);
	c->srv->http.n--;
	uv_close((uv_handle_t *)&c->poll, on_conn_closed);
	close(c->fd);
	listen_update(c->srv);
}

static void on_tick(uv_timer_t *timer)
{
	struct cqd_server *srv = timer->data;
	struct list_head *pos, *tmp;

	list_for_each_safe(pos, tmp, &srv->http.conns) {
		struct http_conn *c = list_entry(pos, struct http_conn, node);

		if (uv_now(srv->loop) >= c->deadline)
			conn_close(c);
	}
	/* Accepting may have been paused. */
	listen_update(srv);
	if (list_empty(&srv->http.conns))
		uv_timer_stop(timer);
}

static void tick_start(struct cqd_server *srv)
{
	if (!uv_is_active((uv_handle_t *)&srv->http.tick))
		uv_timer_start(&srv->http.tick, on_tick, TICK_MS, TICK_MS);
}

static void conn_new(struct cqd_server *srv, int fd)
{
	struct http_conn *c = calloc(1, sizeof(*c));

	if (!c || uv_poll_init(srv->loop, &c->poll, fd)) {
		free(c);
		close(fd);
		return;
	}
	c->srv = srv;
	c->fd = fd;
	c->poll.data = c;
	c->deadline = uv_now(srv->loop) + CQD_HTTP_MS;
	tick_start(srv);
	list_add_tail(&c->node, &srv->http.conns);
	srv->http.n++;
	uv_poll_start(&c->poll, UV_READABLE, on_event);
}

static void on_listen(uv_poll_t *poll, int status, int events)
{
	struct http_listener *l = poll->data;
	int fd;

	while (l->srv->http.n < CQD_HTTP_CONNS) {
		fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd >= 0) {
			conn_new(l->srv, fd);
			continue;
		}
		if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
			break;
		/* Out of descriptors or memory: they wait, and the loop sleeps. */
		uv_poll_stop(&l->poll);
		tick_start(l->srv);
		return;
	}
	listen_update(l->srv);
}

/* --- answers --- */

static const char *reason(int status)
{
	switch (status) {
	case 200:
		return "OK";
	case 400:
		return "Bad Request";
	case 404:
		return "Not Found";
	case 405:
		return "Method Not Allowed";
	case 431:
		return "Request Header Fields Too Large";
	case 503:
		return "Service Unavailable";
	default:
		return "HTTP Version Not Supported";
	}
}

/* A short answer, whole. */
static void answer(struct http_conn *c, int status, const char *body)
{
	c->out_len = (size_t)snprintf(c->out, sizeof(c->out), "HTTP/1.1 %d %s\r\n"
		"Content-Type: text/plain; charset=utf-8\r\nContent-Length: %zu\r\n"
		"%sConnection: close\r\n\r\n%s", status, reason(status), strlen(body),
		status == 405 ? "Allow: GET\r\n" : "", body);
}

/* The next piece of the metrics; in chunks where the peer knows them. */
static void refill(struct http_conn *c)
{
	char *at = c->out + (c->req.chunks ? CHUNK_HEAD : 0);
	size_t n = cqd_metrics_text(c->srv, &c->cursor, at, CQD_METRICS_MIN);
	char head[16];

	c->sent = 0;
	c->out_len = n;
	c->more = n > 0;
	if (!c->req.chunks)
		return;
	if (!n) {
		c->out_len = (size_t)snprintf(c->out, sizeof(c->out), "0\r\n\r\n");
		return;
	}
	snprintf(head, sizeof(head), "%04x\r\n", (unsigned int)n);
	memcpy(c->out, head, CHUNK_HEAD);
	memcpy(at + n, "\r\n", 2);
	c->out_len += CHUNK_HEAD + 2;
}

static void respond(struct http_conn *c, int status)
{
	bool ready = cqd_server_ready(c->srv);

	c->state = HTTP_WRITE;
	if (status != 200) {
		answer(c, status, "cqd has GET /metrics and GET /health\n");
	} else if (c->req.what == CQD_HTTP_HEALTH) {
		answer(c, ready ? 200 : 503, ready ? "ok\n" : "not ready\n");
	} else {
		c->more = true;
		c->out_len = (size_t)snprintf(c->out, sizeof(c->out), "HTTP/1.1 200 OK\r\n"
			"Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
			"%sConnection: close\r\n\r\n",
			c->req.chunks ? "Transfer-Encoding: chunked\r\n" : "");
	}
}

/* False: the connection is closed. */
static bool do_write(struct http_conn *c)
{
	ssize_t n;

	for (;;) {
		if (c->sent == c->out_len && c->more)
			refill(c);
		if (c->sent == c->out_len)
			break;
		n = send(c->fd, c->out + c->sent, c->out_len - c->sent,
			 MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0 && errno == EAGAIN) {
			uv_poll_start(&c->poll, UV_WRITABLE, on_event);
			return true;
		}
		if (n < 0 && errno != EINTR) {
			conn_close(c);
			return false;
		}
		c->sent += n < 0 ? 0 : (size_t)n;
	}
	c->state = HTTP_DRAIN;
	c->in_len = 0;
	shutdown(c->fd, SHUT_WR);
	uv_poll_start(&c->poll, UV_READABLE, on_event);
	return true;
}

/* --- requests --- */

static void do_read(struct http_conn *c)
{
	ssize_t n = recv(c->fd, c->in + c->in_len, sizeof(c->in) - c->in_len, MSG_DONTWAIT);
	int status;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		conn_close(c);
		return;
	}
	c->in_len += (size_t)n;
	status = cqd_http_parse(c->in, c->in_len, &c->req);
	if (!status)
		return;
	respond(c, status);
	do_write(c);
}

static void do_drain(struct http_conn *c)
{
	ssize_t n = recv(c->fd, c->in, sizeof(c->in), MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n > 0)
		c->in_len += (size_t)n;
	if (n <= 0 || c->in_len > DRAIN_BYTES)
		conn_close(c);
}

static void on_event(uv_poll_t *poll, int status, int events)
{
	struct http_conn *c = poll->data;

	if (status < 0)
		conn_close(c);
	else if (c->state == HTTP_READ)
		do_read(c);
	else if (c->state == HTTP_WRITE)
		do_write(c);
	else
		do_drain(c);
}

/* --- sockets --- */

static int add_listener(struct cqd_server *srv, int fd, const char *path, bool own,
			struct cq_err *err)
{
	struct http_listener *l = calloc(1, sizeof(*l));
	int ret;

	if (!l)
		return cq_err_set(err, -ENOMEM, "out of memory");
	l->srv = srv;
	l->fd = fd;
	l->own = own;
	snprintf(l->path, sizeof(l->path), "%s", path);
	l->poll.data = l;
	ret = uv_poll_init(srv->loop, &l->poll, fd);
	if (ret) {
		free(l);
		return cq_err_set(err, ret, "cannot watch the metrics socket: %s",
				  uv_strerror(ret));
	}
	list_add_tail(&l->node, &srv->http.listeners);
	uv_poll_start(&l->poll, UV_READABLE, on_listen);
	return 0;
}

/**
 * cqd_http_bind() - answer on a Unix stream socket
 * @srv:  server
 * @path: of the socket; one that nobody answers on is replaced
 * @err:  text of the failure
 *
 * Return: 0 or -errno.
 */
int cqd_http_bind(struct cqd_server *srv, const char *path, struct cq_err *err)
{
	int fd, ret;

	ret = cqd_bind_unix(path, SOCK_STREAM, srv->config->socket_mode, BACKLOG, &fd, err);
	if (ret)
		return ret;
	ret = add_listener(srv, fd, path, true, err);
	if (ret) {
		unlink(path);
		close(fd);
	}
	return ret;
}

/* The address was checked with the configuration. */
static int tcp_socket(const struct cqd_address *a, const char *text, int *out,
		      struct cq_err *err)
{
	const int on = 1;
	int fd, ret;

	fd = socket(a->sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return cq_err_set(err, -errno, "metrics_listen = %s: socket: %s", text,
				  strerror(errno));
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, (const struct sockaddr *)&a->sa, a->len) < 0 ||
	    listen(fd, BACKLOG) < 0) {
		ret = cq_err_set(err, -errno, "metrics_listen = %s: %s; under systemd use "
				 "cqd-metrics.socket", text, strerror(errno));
		close(fd);
		return ret;
	}
	*out = fd;
	return 0;
}

/**
 * cqd_http_bind_tcp() - answer on a TCP port
 * @srv:     server
 * @address: as cqd_value_address() takes it
 * @err:     text of the failure
 *
 * Return: 0 or -errno.
 */
int cqd_http_bind_tcp(struct cqd_server *srv, const char *address, struct cq_err *err)
{
	struct cqd_address a;
	int fd, ret;

	ret = cqd_value_address(address, &a, err);
	if (ret)
		return ret;
	ret = tcp_socket(&a, address, &fd, err);
	if (ret)
		return ret;
	ret = add_listener(srv, fd, "", false, err);
	if (ret)
		close(fd);
	return ret;
}

/**
 * cqd_http_bind_fd() - answer on a socket of the service manager
 * @srv: server
 * @fd:  owned by the server on success
 * @err: text of the failure
 *
 * Return: 0; -EINVAL not a listening stream socket; -ENOMEM.
 */
int cqd_http_bind_fd(struct cqd_server *srv, int fd, struct cq_err *err)
{
	socklen_t len = sizeof(int);
	int type = 0, listening = 0;

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || type != SOCK_STREAM ||
	    getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) < 0 || !listening)
		return cq_err_set(err, -EINVAL, "descriptor %d (cqd-metrics) is no listening "
				  "stream socket: use ListenStream=", fd);
	return add_listener(srv, fd, "", false, err);
}

static void on_listener_closed(uv_handle_t *handle)
{
	free(handle->data);
}

/**
 * cqd_http_close() - end connections and listening
 * @srv: server
 */
void cqd_http_close(struct cqd_server *srv)
{
	struct list_head *pos, *tmp;

	list_for_each_safe(pos, tmp, &srv->http.listeners) {
		struct http_listener *l = list_entry(pos, struct http_listener, node);

		list_del(&l->node);
		uv_close((uv_handle_t *)&l->poll, on_listener_closed);
		close(l->fd);
		if (l->own)
			unlink(l->path);
	}
	while (!list_empty(&srv->http.conns))
		conn_close(list_first(&srv->http.conns, struct http_conn, node));
	uv_close((uv_handle_t *)&srv->http.tick, NULL);
}
