/* SPDX-License-Identifier: MIT */
/*
 * Fuzzer of everything between a peer's sendmsg() and a parsed message.
 *
 * Input: one byte saying how many descriptors go along (0..63, so also more
 * than a frame may hold) and whether the datagram is stretched beyond the
 * limit, then the datagram. What parses is packed and sent again, and must
 * come back the same.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "proto/frame.h"

#define MUST(c) do { if (!(c)) { perror(#c); abort(); } } while (0)
#define STRETCH 64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int sock[2] = { -1, -1 };

static void setup(void)
{
	int bytes = 4 * CQP_MAX_MSG;

	MUST(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK,
			 0, sock));
	setsockopt(sock[0], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
}

/* As a hostile peer would: no limit is kept. */
static void send_hostile(const uint8_t *buf, size_t len, unsigned int n_fds)
{
	static uint8_t copy[CQP_MAX_MSG + STRETCH];
	struct iovec io = { .iov_base = copy, .iov_len = len };
	struct msghdr h = { .msg_iov = &io, .msg_iovlen = 1 };
	union {
		char b[CMSG_SPACE(sizeof(int) * 64)];
		struct cmsghdr align;
	} control;
	struct cmsghdr *c;
	unsigned int i;

	memcpy(copy, buf, len);
	if (n_fds) {
		memset(&control, 0, sizeof(control));
		h.msg_control = control.b;
		h.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		c = CMSG_FIRSTHDR(&h);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		for (i = 0; i < n_fds; i++)
			memcpy(CMSG_DATA(c) + i * sizeof(int), &sock[0], sizeof(int));
	}
	MUST(sendmsg(sock[0], &h, 0) == (ssize_t)len);
}

/* What was understood survives a second journey. */
static void again(const Cqp__Msg *msg)
{
	static struct cqp_frame f;
	Cqp__Msg *back;
	int fd = sock[0], ret;

	ret = cqp_send(sock[0], msg, &fd, 1, MSG_DONTWAIT);
	if (ret == -EMSGSIZE)
		return;
	MUST(!ret);
	MUST(cqp_recv(sock[1], &f, MSG_DONTWAIT) == 1);
	MUST(f.n_fds == 1);
	back = cqp_unpack(f.buf, f.len, NULL);
	/* packing adds defaults: only the budget may refuse it now */
	if (back)
		MUST(back->id == msg->id && back->body_case == msg->body_case);
	cqp_free(back);
	cqp_frame_close(&f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct cqp_frame f;
	static uint8_t big[CQP_MAX_MSG + STRETCH];
	struct cq_err err;
	unsigned int n_fds;
	Cqp__Msg *msg;
	size_t len;
	int ret, fd;

	if (sock[0] < 0)
		setup();
	if (size < 1 || size > CQP_MAX_MSG)
		return 0;
	n_fds = data[0] & 63;
	len = size - 1;
	memcpy(big, data + 1, len);
	if (data[0] & 128) {
		memset(big + len, 0, sizeof(big) - len);
		len = sizeof(big);
	}
	send_hostile(big, len, n_fds);
	ret = cqp_recv(sock[1], &f, MSG_DONTWAIT);
	MUST((ret == 1) == (len && len <= CQP_MAX_MSG && n_fds <= CQP_MAX_FDS));
	MUST(ret == 1 || !f.n_fds);
	if (ret != 1)
		return 0;
	MUST(f.n_fds == n_fds && f.len == len && !memcmp(f.buf, big, len));
	fd = cqp_frame_take(&f, data[0] & 7);
	if (fd >= 0) {
		MUST(fcntl(fd, F_GETFD) == FD_CLOEXEC);
		close(fd);
	}
	cqp_frame_close(&f);
	msg = cqp_unpack(f.buf, f.len, &err);
	if (msg)
		again(msg);
	cqp_free(msg);
	return 0;
}
