// SPDX-License-Identifier: MIT
/*
 * The connection: Hello first, then one request at a time.
 *
 * cqd is trusted no more than any peer: what it answers is parsed with the
 * limits of proto/ and checked to be the answer to what was asked.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>
#include "client/cqctl/cqctl.h"

#define TIMEOUT_MS 10000
#define TICK_MS		1000

static const char *socket_path(const struct ctl *c)
{
	const char *env = getenv("CQ_ADMIN_SOCKET");

	if (c->socket)
		return c->socket;
	return env && env[0] ? env : CQP_DEFAULT_ADMIN;
}

static int connect_error(struct ctl *c, const char *path, int code)
{
	switch (code) {
	case -ENOENT:
	case -ECONNREFUSED:
	case -ENOTDIR:
		return cq_err_set(&c->err, code, "no cqd at %s: %s (start it, or name "
				  "its admin socket with --socket or CQ_ADMIN_SOCKET)",
				  path, strerror(-code));
	case -EACCES:
	case -EPERM:
		return cq_err_set(&c->err, code, "no permission for %s: the admin "
				  "socket is open to cqd's user and root, that of the "
				  "workers to group cq", path);
	default:
		return cq_err_set(&c->err, code, "cannot connect to %s: %s", path,
				  strerror(-code));
	}
}

/* What was asked for with --timeout, else @ms; 0: none. */
static struct timeval timeout(const struct ctl *c, uint64_t ms)
{
	if (c->timeout_ms)
		ms = c->timeout_ms;
	return (struct timeval){
		.tv_sec = (time_t)(ms / 1000), .tv_usec = (suseconds_t)(ms % 1000 * 1000),
	};
}

static int open_socket(struct ctl *c, const char *path)
{
	struct timeval tv = timeout(c, TIMEOUT_MS);
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	size_t n = strlen(path);
	int sock, ret;

	if (!n)
		return cq_err_set(&c->err, -EINVAL, "--socket needs the path of a socket");
	if (n >= sizeof(sa.sun_path))
		return connect_error(c, path, -ENAMETOOLONG);
	memcpy(sa.sun_path, path, n + 1);
	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return connect_error(c, path, -errno);
	/* Connecting waits when cqd is stopped and its backlog full. */
	setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
	if (connect(sock, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		ret = -errno;
		close(sock);
		return connect_error(c, path, ret);
	}
	c->sock = sock;
	return 0;
}

static void set_recv_timeout(struct ctl *c, uint64_t ms)
{
	struct timeval tv = timeout(c, ms);

	setsockopt(c->sock, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
}

/* Before a read that a signal could not end: 0, or -errno as from one. */
static int wait_readable(struct ctl *c)
{
	struct pollfd p = { .fd = c->sock, .events = POLLIN };
	int ret = c->watch ? ctl_wait(&p, 1, c->timeout_ms ? c->timeout_ms : TIMEOUT_MS) : 1;

	return ret ? MIN(ret, 0) : -EAGAIN;
}

/* A connection that is refused has no request that could be named. */
static bool answers(const Cqp__Msg *msg, uint64_t id)
{
	return msg->id == id || (!msg->id && msg->body_case == CQP__MSG__BODY_ERROR);
}

/* The answer with id @id; others, if any, are none of ours. */
static Cqp__Msg *receive(struct ctl *c, uint64_t id, int *ret)
{
	static struct cqp_frame frame;
	Cqp__Msg *msg;
	bool mine;

	for (;;) {
		*ret = wait_readable(c);
		if (!*ret)
			*ret = cqp_recv(c->sock, &frame, 0);
		/* A reset is said once; what was sent before can still be read. */
		if (*ret == -ECONNRESET || (*ret == -EINTR && !ctl_stopped()))
			continue;
		if (*ret == -EAGAIN)
			*ret = cq_err_set(&c->err, -ETIMEDOUT, "cqd at %s does not "
					  "answer: is it stopped or busy?",
					  socket_path(c));
		else if (*ret == 0)
			*ret = cq_err_set(&c->err, -ECONNRESET, "cqd closed the "
					  "connection; see its log");
		else if (*ret < 0)
			cq_err_set(&c->err, *ret, "lost the connection to cqd: %s",
				   strerror(-*ret));
		if (*ret < 0)
			return NULL;
		msg = cqp_unpack(frame.buf, frame.len, &c->err);
		mine = msg && answers(msg, id);
		if (mine && c->fds) {
			c->fds[0] = cqp_frame_take(&frame, 0);
			c->fds[1] = cqp_frame_take(&frame, 1);
		}
		cqp_frame_close(&frame);
		if (!msg) {
			*ret = -EPROTO;
			return NULL;
		}
		if (mine)
			return msg;
		cqp_free(msg);
	}
}

static int send_msg(struct ctl *c, Cqp__Msg *msg, int fd)
{
	int ret = cqp_send(c->sock, msg, &fd, fd >= 0 ? 1 : 0, 0);

	/* cqd has closed: why may still be there to be read. */
	if (!ret || ret == -EPIPE)
		return 0;
	return cq_err_set(&c->err, ret, "cannot send to cqd at %s: %s", socket_path(c),
			  strerror(-ret));
}

/* Until there is something to read; receive() tells what. */
static void wait_ticking(struct ctl *c)
{
	struct pollfd p = { .fd = c->sock, .events = POLLIN };

	while (c->tick && poll(&p, 1, TICK_MS) == 0)
		c->tick(c);
}

Cqp__Msg *ctl_next(struct ctl *c, uint64_t id, Cqp__Msg__BodyCase want, int *ret)
{
	Cqp__Msg *reply = receive(c, id, ret);

	if (!reply)
		return NULL;
	*ret = 0;
	if (reply->body_case == want)
		return reply;
	if (reply->body_case == CQP__MSG__BODY_ERROR)
		*ret = cq_err_set(&c->err, reply->error->code < 0 ? reply->error->code :
				  -EPROTO, "%s", reply->error->text ?
				  reply->error->text : strerror(-reply->error->code));
	else
		*ret = cq_err_set(&c->err, -EPROTO, "cqd gave an answer of another kind "
				  "(%d): use cqctl and cqd of one version",
				  (int)reply->body_case);
	cqp_free(reply);
	return NULL;
}

/* Request and answer on an open connection. */
static Cqp__Msg *exchange(struct ctl *c, Cqp__Msg *msg, int fd, Cqp__Msg__BodyCase want,
			  int *ret)
{
	msg->id = c->next_id++;
	*ret = send_msg(c, msg, fd);
	if (*ret)
		return NULL;
	wait_ticking(c);
	return ctl_next(c, msg->id, want, ret);
}

static int greet(struct ctl *c)
{
	Cqp__Hello hello = CQP__HELLO__INIT;
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	char name[] = "cqctl", tenant[CQP_MAX_NAME];
	int ret;

	hello.protocol = CQP_VERSION;
	hello.incompat = CQP_INCOMPAT_KNOWN;
	hello.compat = CQP_COMPAT_KNOWN;
	hello.client = name;
	if (c->tenant) {
		snprintf(tenant, sizeof(tenant), "%s", c->tenant);
		hello.tenant = tenant;
	}
	msg.body_case = CQP__MSG__BODY_HELLO;
	msg.hello = &hello;
	reply = exchange(c, &msg, -1, CQP__MSG__BODY_HELLO_OK, &ret);
	if (!reply)
		return ret;
	if (reply->hello_ok->protocol != CQP_VERSION)
		ret = cq_err_set(&c->err, -EPROTO, "cqd at %s speaks protocol %u, cqctl "
				 CQ_VERSION " speaks %d: use both of one version",
				 socket_path(c), reply->hello_ok->protocol, CQP_VERSION);
	else if (reply->hello_ok->incompat & ~CQP_INCOMPAT_KNOWN)
		ret = cq_err_set(&c->err, -EPROTO, "cqd at %s needs features 0x%llx that "
				 "cqctl " CQ_VERSION " does not know: use both of one "
				 "version", socket_path(c),
				 (unsigned long long)(reply->hello_ok->incompat &
						      ~CQP_INCOMPAT_KNOWN));
	cqp_free(reply);
	return ret;
}

int ctl_connect(struct ctl *c)
{
	int ret;

	if (c->sock >= 0)
		return 0;
	ret = open_socket(c, socket_path(c));
	if (ret)
		return ret;
	set_recv_timeout(c, TIMEOUT_MS);
	ret = greet(c);
	if (ret) {
		ctl_disconnect(c);
		return ret;
	}
	/* Loading and verifying take as long as they take. */
	set_recv_timeout(c, 0);
	return 0;
}

void ctl_disconnect(struct ctl *c)
{
	if (c->sock >= 0)
		close(c->sock);
	c->sock = -1;
}

Cqp__Msg *ctl_call(struct ctl *c, Cqp__Msg *msg, int fd, Cqp__Msg__BodyCase want,
		   int *ret)
{
	*ret = ctl_connect(c);
	return *ret ? NULL : exchange(c, msg, fd, want, ret);
}
