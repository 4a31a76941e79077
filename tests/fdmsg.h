/* SPDX-License-Identifier: MIT */
/* Messages of fixed size between processes of a test, with or without a descriptor. */
#ifndef TESTS_FDMSG_H
#define TESTS_FDMSG_H

#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

/* As sendmsg(); @fd: -1 for none. */
static inline ssize_t fdmsg_send(int sock, int fd, const void *data, size_t n)
{
	union {
		char room[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} u = { { 0 } };
	struct iovec io = { (void *)(uintptr_t)data, n };
	struct msghdr msg = { .msg_iov = &io, .msg_iovlen = 1 };
	struct cmsghdr *c;

	if (fd >= 0) {
		msg.msg_control = u.room;
		msg.msg_controllen = sizeof(u.room);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	}
	return sendmsg(sock, &msg, MSG_NOSIGNAL);
}

/* As recvmsg(); @fd: the descriptor that came along, or -1. */
static inline ssize_t fdmsg_recv(int sock, int *fd, void *data, size_t n)
{
	union {
		char room[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} u;
	struct iovec io = { data, n };
	struct msghdr msg = { .msg_iov = &io, .msg_iovlen = 1, .msg_control = u.room,
			      .msg_controllen = sizeof(u.room) };
	ssize_t got = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	struct cmsghdr *c = got < 0 ? NULL : CMSG_FIRSTHDR(&msg);

	*fd = -1;
	if (c)
		memcpy(fd, CMSG_DATA(c), sizeof(*fd));
	return got;
}

#endif /* TESTS_FDMSG_H */
