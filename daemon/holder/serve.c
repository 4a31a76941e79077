// SPDX-License-Identifier: MIT
/*
 * Requests of cqd, one at a time. Only processes of our own uid may connect, and what
 * they say is checked like anybody's. A Hello takes over from whoever said it before: a
 * new cqd finds what its predecessor had.
 *
 * Nothing waits here but for the driver. A peer that breaks a rule, or does not read,
 * is disconnected, and the memory stays.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>
#include "cq/log.h"
#include "cq/util.h"
#include "daemon/holder/holder.h"

#define CTL_FDS	 28	/* as many as may come with a datagram, to be closed */
#define PAUSE_US 20000

/* An answer with room for a whole list. */
struct answer {
	struct cqp_holder_ans a;
	struct cqp_holder_block block[CQP_HOLDER_LIST];
};

/* --- connections --- */

static void hang_up(struct ch_server *s, int i)
{
	close(s->conn[i]);
	s->conn[i] = -1;
	if (s->cqd == i)
		s->cqd = -1;
}

static void refuse(struct ch_server *s, int i, const char *why)
{
	cq_err_limited("a peer is disconnected: %s (said once a minute)", why);
	hang_up(s, i);
}

/* A place; that of one that has not said Hello, if need be. */
static int place(struct ch_server *s)
{
	int i;

	for (i = 0; i < CH_CONNS; i++)
		if (s->conn[i] < 0)
			return i;
	i = s->cqd == 0 ? 1 : 0;
	hang_up(s, i);
	return i;
}

static void accept_one(struct ch_server *s)
{
	struct ucred cred = { .uid = (uid_t)-1 };
	socklen_t len = sizeof(cred);
	int fd = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0) {
		/* It is still there to be accepted: no turns in a hurry. */
		if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
			usleep(PAUSE_US);
		return;
	}
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0 || cred.uid != geteuid()) {
		cq_err_limited("uid %u may not connect: the holder and cqd run under one uid "
			       "(said once a minute)", cred.uid);
		close(fd);
		return;
	}
	s->conn[place(s)] = fd;
}

/* --- requests --- */

static void do_hello(struct ch_server *s, int i)
{
	if (s->cqd >= 0 && s->cqd != i) {
		cq_info("another cqd takes over");
		hang_up(s, s->cqd);
	}
	s->cqd = i;
}

static int check_alloc(struct ch_server *s, const struct cqp_holder_req *r, struct cq_err *err)
{
	if (!r->block || !r->bytes || r->bytes % CQP_HOLDER_GRAIN || r->bytes > s->dev.bytes)
		return cq_err_set(err, -EINVAL, "block %llu of %llu bytes: a number, and a "
				  "multiple of %u up to %llu", (unsigned long long)r->block,
				  (unsigned long long)r->bytes, CQP_HOLDER_GRAIN,
				  (unsigned long long)s->dev.bytes);
	if (ch_blocks_find(&s->blocks, r->block))
		return cq_err_set(err, -EEXIST, "block %llu is there already",
				  (unsigned long long)r->block);
	if (s->blocks.n == CQP_HOLDER_BLOCKS)
		return cq_err_set(err, -ENFILE, "%d blocks are there: raise segment_max",
				  CQP_HOLDER_BLOCKS);
	return 0;
}

static int do_alloc(struct ch_server *s, const struct cqp_holder_req *r, struct answer *out,
		    struct cq_err *err)
{
	struct ch_block b = { .b = { .block = r->block, .bytes = r->bytes } };
	int ret = check_alloc(s, r, err);

	if (!ret)
		ret = ch_device_alloc(&s->dev, r->bytes, &b.p, b.b.handle, err);
	if (ret)
		return ret;
	ch_blocks_add(&s->blocks, &b);
	out->block[0] = b.b;
	out->a.n = 1;
	return 0;
}

/* Of a block that is not there nothing is said: a cqd may ask twice. */
static int do_free(struct ch_server *s, const struct cqp_holder_req *r, struct cq_err *err)
{
	struct ch_block *b = ch_blocks_find(&s->blocks, r->block);
	cqcu_ptr p;
	int ret;

	if (!b)
		return 0;
	p = b->p;
	ch_blocks_remove(&s->blocks, b);
	ret = ch_device_free(&s->dev, p, err);
	if (ret)
		cq_err("%s", err->text);
	return ret;
}

static void do_list(const struct ch_server *s, const struct cqp_holder_req *r,
		    struct answer *out)
{
	unsigned int i = ch_blocks_from(&s->blocks, r->block);

	while (i < s->blocks.n && out->a.n < CQP_HOLDER_LIST)
		out->block[out->a.n++] = s->blocks.block[i++].b;
}

static void answer(struct ch_server *s, int i, struct answer *out)
{
	size_t len = sizeof(out->a) + out->a.n * sizeof(out->block[0]);

	if (send(s->conn[i], out, len, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)len)
		return;
	if (errno == EPIPE || errno == ECONNRESET)
		hang_up(s, i);
	else
		refuse(s, i, "it does not read its answers");
}

/* 0, or -EOWNERDEAD. */
static int request(struct ch_server *s, int i, const struct cqp_holder_req *r)
{
	static struct answer out;	/* large: not on the stack */
	struct cq_err err = { "" };
	int ret = 0;

	out.a = (struct cqp_holder_ans){
		.magic = CQP_HOLDER_MAGIC, .version = CQP_HOLDER_VERSION, .op = r->op,
		.seq = r->seq, .boot = s->boot, .bytes = s->dev.bytes,
	};
	memcpy(out.a.uuid, s->dev.uuid, sizeof(out.a.uuid));
	if (r->op == CQP_HOLDER_FREE)
		return do_free(s, r, &err) == -EOWNERDEAD ? -EOWNERDEAD : 0;
	if (r->op == CQP_HOLDER_HELLO)
		do_hello(s, i);
	else if (r->op == CQP_HOLDER_ALLOC)
		ret = do_alloc(s, r, &out, &err);
	else
		do_list(s, r, &out);
	out.a.error = ret;
	snprintf(out.a.text, sizeof(out.a.text), "%.*s", (int)sizeof(out.a.text) - 1, err.text);
	answer(s, i, &out);
	if (ret == -EOWNERDEAD)
		cq_err("%s: the context is lost", err.text);
	return ret == -EOWNERDEAD ? ret : 0;
}

/* Of another version: told, in ours, before it is hung up on. */
static void tell_version(const struct ch_server *s, int i, const struct cqp_holder_req *r)
{
	struct cqp_holder_ans a = {
		.magic = CQP_HOLDER_MAGIC, .version = CQP_HOLDER_VERSION, .op = r->op,
		.seq = r->seq, .boot = s->boot, .error = -EPROTO, .text = "another version",
	};

	(void)send(s->conn[i], &a, sizeof(a), MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Why it is no request, or NULL. */
static const char *bad(const struct ch_server *s, int i, const struct cqp_holder_req *r,
		       size_t len)
{
	if (len != sizeof(*r) || r->magic != CQP_HOLDER_MAGIC)
		return "what it sends is no request";
	if (r->version != CQP_HOLDER_VERSION) {
		tell_version(s, i, r);
		return "it speaks another version: use cqd and cq-holder of one version, and "
		       "restart the holder, which loses the pages";
	}
	if (r->op < CQP_HOLDER_HELLO || r->op > CQP_HOLDER_LIST_FROM)
		return "it asks for what there is not";
	if (s->cqd != i && r->op != CQP_HOLDER_HELLO)
		return "it has not said Hello";
	return NULL;
}

static unsigned int close_fds(struct msghdr *mh)
{
	unsigned int n, i, all = 0;
	struct cmsghdr *c;
	int fd;

	for (c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (unsigned int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(fd));
		for (i = 0; i < n; i++) {
			memcpy(&fd, CMSG_DATA(c) + i * sizeof(fd), sizeof(fd));
			close(fd);
		}
		all += n;
	}
	return all;
}

/* 0, or -EOWNERDEAD. */
static int readable(struct ch_server *s, int i)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(CTL_FDS * sizeof(int))];
	} ctl;
	struct cqp_holder_req r;
	struct iovec iov = { &r, sizeof(r) };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = ctl.buf,
			     .msg_controllen = sizeof(ctl.buf) };
	const char *why;
	ssize_t n;

	n = recvmsg(s->conn[i], &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0) {
		hang_up(s, i);
		return 0;
	}
	if (close_fds(&mh) || mh.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
		why = "it sends descriptors, or more than a request";
	else
		why = bad(s, i, &r, (size_t)n);
	if (why) {
		refuse(s, i, why);
		return 0;
	}
	return request(s, i, &r);
}

/* Those whose datagram, or end, was seen; one that took over may have closed others. */
static int serve_conns(struct ch_server *s, const struct pollfd *p)
{
	int i, ret = 0;

	for (i = 0; i < CH_CONNS && !ret; i++)
		if (p[i].revents && s->conn[i] == p[i].fd && s->conn[i] >= 0)
			ret = readable(s, i);
	return ret;
}

/**
 * ch_serve() - answer until told to end
 * @s: with its device, listener and signals
 *
 * Return: 0 a signal said so; -EOWNERDEAD the context is lost; other -errno.
 */
int ch_serve(struct ch_server *s)
{
	struct pollfd p[CH_CONNS + 2];
	int i, ret = 0;

	s->cqd = -1;
	for (i = 0; i < CH_CONNS; i++)
		s->conn[i] = -1;
	while (!ret) {
		for (i = 0; i < CH_CONNS; i++)
			p[i] = (struct pollfd){ .fd = s->conn[i], .events = POLLIN };
		p[CH_CONNS] = (struct pollfd){ .fd = s->listener, .events = POLLIN };
		p[CH_CONNS + 1] = (struct pollfd){ .fd = s->signals, .events = POLLIN };
		if (poll(p, ARRAY_SIZE(p), -1) < 0 && errno != EINTR)
			return -errno;
		if (p[CH_CONNS + 1].revents)
			break;
		ret = serve_conns(s, p);
		if (p[CH_CONNS].revents)
			accept_one(s);
	}
	for (i = 0; i < CH_CONNS; i++)
		if (s->conn[i] >= 0)
			close(s->conn[i]);
	return ret;
}
