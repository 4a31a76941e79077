// SPDX-License-Identifier: MIT
/*
 * Listening sockets: bound here, or handed over by the service manager.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "cq/log.h"
#include "daemon/bind.h"
#include "daemon/msgid.h"
#include "daemon/server.h"

#define BACKLOG		4096
#define ACCEPT_BURST	64	/* per wake-up, so that those inside are served too */
#define RETRY_MS	100

static void on_listen(uv_poll_t *poll, int status, int events);

static void on_retry(uv_timer_t *timer)
{
	struct cqd_listener *l = timer->data;

	uv_poll_start(&l->poll, UV_READABLE, on_listen);
}

/* Out of descriptors or memory: those waiting keep, others may leave meanwhile. */
static void pause_accept(struct cqd_listener *l, int code)
{
	cq_log_field("MESSAGE_ID", "%s", CQD_MSG_NO_DESCRIPTORS);
	cq_log_field("CQ_PATH", "%s", l->path);
	cq_log_field("ERRNO", "%d", -code);
	cq_err_limited("cannot accept on %s: %s; raise LimitNOFILE= or lower "
		       "max_connections (said once a minute)", l->path, strerror(-code));
	uv_poll_stop(&l->poll);
	uv_timer_start(&l->retry, on_retry, RETRY_MS, 0);
}

static void on_listen(uv_poll_t *poll, int status, int events)
{
	struct cqd_listener *l = poll->data;
	int i, fd;

	for (i = 0; i < ACCEPT_BURST; i++) {
		fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd >= 0) {
			cqd_conn_new(l, fd);
			continue;
		}
		if (errno == EINTR || errno == ECONNABORTED)
			continue;
		if (errno != EAGAIN)
			pause_accept(l, -errno);
		return;
	}
}

static int start(struct cqd_server *srv, int fd, const char *path, bool admin, bool own,
		 struct cq_err *err)
{
	struct cqd_listener *l = calloc(1, sizeof(*l));
	int ret;

	if (!l)
		return cq_err_set(err, -ENOMEM, "out of memory");
	l->srv = srv;
	l->fd = fd;
	l->admin = admin;
	l->own = own;
	snprintf(l->path, sizeof(l->path), "%s", path);
	ret = uv_poll_init(srv->loop, &l->poll, fd);
	if (ret) {
		free(l);
		return cq_err_set(err, ret, "cannot watch %s: %s", path, uv_strerror(ret));
	}
	uv_timer_init(srv->loop, &l->retry);
	l->poll.data = l;
	l->retry.data = l;
	uv_poll_start(&l->poll, UV_READABLE, on_listen);
	list_add_tail(&l->node, &srv->listeners);
	return 0;
}

/**
 * cqd_listen() - bind a socket and accept on it
 * @srv:   server
 * @path:  of the socket
 * @mode:  permission bits
 * @admin: it takes administrator's requests
 * @err:   text of the failure
 *
 * Return: 0; -EADDRINUSE somebody answers there; other -errno.
 */
int cqd_listen(struct cqd_server *srv, const char *path, uint32_t mode, bool admin,
	       struct cq_err *err)
{
	int fd, ret;

	ret = cqd_bind_unix(path, SOCK_SEQPACKET, mode, BACKLOG, &fd, err);
	if (ret)
		return ret;
	ret = start(srv, fd, path, admin, true, err);
	if (ret) {
		unlink(path);
		close(fd);
	}
	return ret;
}

static int getint(int fd, int option)
{
	socklen_t len = sizeof(int);
	int v = -1;

	return getsockopt(fd, SOL_SOCKET, option, &v, &len) < 0 ? -errno : v;
}

/**
 * cqd_listen_fd() - accept on a socket of the service manager
 * @srv:   server
 * @fd:    owned by the server on success
 * @admin: it takes administrator's requests
 * @err:   text of the failure
 *
 * Return: 0; -EINVAL not a listening SOCK_SEQPACKET Unix socket; other -errno.
 */
int cqd_listen_fd(struct cqd_server *srv, int fd, bool admin, struct cq_err *err)
{
	struct sockaddr_un sa = { 0 };
	socklen_t len = sizeof(sa) - 1;	/* leaves a NUL at the end */

	if (getint(fd, SO_DOMAIN) != AF_UNIX || getint(fd, SO_TYPE) != SOCK_SEQPACKET ||
	    getint(fd, SO_ACCEPTCONN) != 1)
		return cq_err_set(err, -EINVAL, "descriptor %d of the service manager is no "
				  "listening SOCK_SEQPACKET socket: use ListenSequentialPacket=",
				  fd);
	if (getsockname(fd, (struct sockaddr *)&sa, &len) < 0)
		return cq_err_set(err, -errno, "getsockname: %s", strerror(errno));
	return start(srv, fd, sa.sun_path, admin, false, err);
}

static void on_closed(uv_handle_t *handle)
{
	struct cqd_listener *l = handle->data;

	if (--l->closing == 0)
		free(l);
}

static void listener_close(struct cqd_listener *l)
{
	list_del(&l->node);
	l->closing = 2;
	uv_close((uv_handle_t *)&l->poll, on_closed);
	uv_close((uv_handle_t *)&l->retry, on_closed);
	close(l->fd);
	if (l->own && unlink(l->path) < 0 && errno != ENOENT)
		cq_warn("cannot remove %s: %s", l->path, strerror(errno));
}

/**
 * cqd_listen_close_all() - stop accepting
 * @srv: server; connections must be closed already, they point at listeners
 *
 * Sockets bound here are unlinked; those of the service manager stay.
 */
void cqd_listen_close_all(struct cqd_server *srv)
{
	struct list_head *pos, *tmp;

	list_for_each_safe(pos, tmp, &srv->listeners)
		listener_close(list_entry(pos, struct cqd_listener, node));
}
