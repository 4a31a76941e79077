/* SPDX-License-Identifier: MIT */
/* The protocol by hand: what libcq would never send can be sent with this. */
#ifndef TESTS_WIRE_H
#define TESTS_WIRE_H

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "proto/frame.h"

/* A request as @var; @body is of the type that @CASE and @field say. */
#define WIRE_MSG(var, CASE, field, body)					\
	Cqp__Msg var = {							\
		.base = PROTOBUF_C_MESSAGE_INIT(&cqp__msg__descriptor),		\
		.body_case = CQP__MSG__BODY_##CASE,				\
		.field = &(body),						\
	}

/* Connected socket, or -errno. */
static inline int wire_connect(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd, ret;

	if (strlen(path) >= sizeof(a.sun_path))
		return -ENAMETOOLONG;
	memcpy(a.sun_path, path, strlen(path));
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0)
		return fd;
	ret = -errno;
	close(fd);
	return ret;
}

/* As cqp_recv(), with a deadline: -ETIMEDOUT. */
static inline int wire_recv(int fd, struct cqp_frame *f, int ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	if (poll(&p, 1, ms) <= 0)
		return -ETIMEDOUT;
	return cqp_recv(fd, f, MSG_DONTWAIT);
}

/*
 * Send @msg under a fresh id and wait for its answer, which is to be freed with
 * cqp_free(). @f, if not NULL, receives the descriptors. NULL: the connection
 * ended, or 5 s went by.
 */
static inline Cqp__Msg *wire_call(int fd, Cqp__Msg *msg, const int *fds,
				  unsigned int n_fds, struct cqp_frame *f)
{
	static struct cqp_frame own;
	static uint64_t id;
	Cqp__Msg *reply;

	f = f ? f : &own;
	msg->id = ++id;
	if (cqp_send(fd, msg, fds, n_fds, 0))
		return NULL;
	while (wire_recv(fd, f, 5000) == 1) {
		reply = cqp_unpack(f->buf, f->len, NULL);
		if (reply && (reply->id == id || !reply->id)) {
			if (f == &own)
				cqp_frame_close(f);
			return reply;
		}
		cqp_free(reply);
		cqp_frame_close(f);
	}
	return NULL;
}

/* Error code of @reply, 0 if it is no Error, -ENOTCONN if there is none. Frees it. */
static inline int wire_code(Cqp__Msg *reply)
{
	int code = 0;

	if (!reply)
		return -ENOTCONN;
	if (reply->body_case == CQP__MSG__BODY_ERROR)
		code = reply->error->code ? reply->error->code : -EBADMSG;
	cqp_free(reply);
	return code;
}

/* Hello with the given version and namespace; 0, the daemon's code, or -ENOTCONN. */
static inline int wire_hello_as(int fd, uint32_t protocol, uint64_t incompat,
				const char *tenant)
{
	Cqp__Hello hello = CQP__HELLO__INIT;
	char name[] = "test", ns[64] = "";
	WIRE_MSG(msg, HELLO, hello, hello);

	hello.protocol = protocol;
	hello.incompat = incompat;
	hello.client = name;
	if (tenant) {
		strncat(ns, tenant, sizeof(ns) - 1);
		hello.tenant = ns;
	}
	return wire_code(wire_call(fd, &msg, NULL, 0, NULL));
}

static inline int wire_hello(int fd)
{
	return wire_hello_as(fd, CQP_VERSION, 0, NULL);
}

/* Connected and greeted, or -errno. */
static inline int wire_open(const char *path)
{
	int fd = wire_connect(path), ret;

	if (fd < 0)
		return fd;
	ret = wire_hello(fd);
	if (!ret)
		return fd;
	close(fd);
	return ret;
}

#endif /* TESTS_WIRE_H */
