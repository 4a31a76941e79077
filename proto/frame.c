/* SPDX-License-Identifier: MIT */
/*
 * Datagrams with file descriptors, and the parser in front of everything that
 * arrives.
 *
 * What comes in is a stranger's: bytes and descriptors are taken whole or not
 * at all, and parsing draws its memory from one small arena with a budget, so
 * that no message costs more than a fixed multiple of its size.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "cq/util.h"
#include "proto/frame.h"

/* Messages up to this size are packed on the stack. */
#define PACK_STACK	2048

/*
 * Memory for parsing: FIXED + FACTOR bytes per byte of the message. The most
 * that an honest one needs is a ListOk of short items (about 12 per byte).
 */
#define ARENA_FIXED	(16u << 10)
#define ARENA_FACTOR	32u
/* Bytes of the first chunk for small messages: served by malloc's own cache. */
#define ARENA_FIRST	1000u

union cmsg_fds {
	char buf[CMSG_SPACE(sizeof(int) * CQP_MAX_FDS)];
	struct cmsghdr align;
};

/*
 * struct chunk - piece of an arena; the first one holds the arena itself
 * @next: older chunk
 * @size: bytes behind this header
 * @used: of them
 */
struct chunk {
	struct chunk *next;
	size_t size;
	size_t used;
	size_t pad;
};

/*
 * struct arena - lies at the start of the first chunk's memory
 * @top:    chunk that allocations come from
 * @budget: bytes that may still be taken from malloc()
 * @msg:    the message: the first allocation, right behind this struct
 */
struct arena {
	struct chunk *top;
	size_t budget;
	uint8_t msg[] __attribute__((aligned(16)));
};

_Static_assert(sizeof(struct chunk) % 16 == 0, "allocations stay aligned");
_Static_assert(sizeof(struct arena) % 16 == 0, "allocations stay aligned");

static ssize_t send_retry(int sock, const struct msghdr *h, int flags)
{
	ssize_t n;

	do {
		n = sendmsg(sock, h, flags | MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	return n;
}

/**
 * cqp_send_raw() - send bytes already packed
 * @sock:  connected SOCK_SEQPACKET socket
 * @buf:   1 to CQP_MAX_MSG bytes; an empty datagram would look like the end
 * @len:   bytes of @buf
 * @fds:   go along, stay owned by the caller
 * @n_fds: at most CQP_MAX_FDS
 * @flags: MSG_DONTWAIT or 0
 *
 * Return: 0; -EAGAIN queue full; -EMSGSIZE; -EINVAL; -EPIPE; other -errno.
 * Thread-safe: a datagram is sent whole or not at all.
 */
int cqp_send_raw(int sock, const uint8_t *buf, size_t len, const int *fds,
		 unsigned int n_fds, int flags)
{
	struct iovec io = { .iov_len = len };
	struct msghdr h = { .msg_iov = &io, .msg_iovlen = 1 };
	union cmsg_fds control;
	struct cmsghdr *c;

	if (!len || n_fds > CQP_MAX_FDS)
		return -EINVAL;
	if (len > CQP_MAX_MSG)
		return -EMSGSIZE;
	/* iovec has no const; sendmsg() only reads */
	memcpy(&io.iov_base, &buf, sizeof(buf));
	if (n_fds) {
		memset(&control, 0, sizeof(control));
		h.msg_control = control.buf;
		h.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		c = CMSG_FIRSTHDR(&h);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * n_fds);
	}
	return send_retry(sock, &h, flags) < 0 ? -errno : 0;
}

/**
 * cqp_send() - send one message
 * @sock:  connected SOCK_SEQPACKET socket
 * @msg:   message
 * @fds:   go along, stay owned by the caller
 * @n_fds: at most CQP_MAX_FDS
 * @flags: MSG_DONTWAIT or 0
 *
 * Return: as cqp_send_raw(); -ENOMEM. Thread-safe.
 */
int cqp_send(int sock, const Cqp__Msg *msg, const int *fds, unsigned int n_fds,
	     int flags)
{
	uint8_t stack[PACK_STACK], *buf = stack;
	size_t len = cqp__msg__get_packed_size(msg);
	int ret;

	if (len > CQP_MAX_MSG)
		return -EMSGSIZE;
	if (len > sizeof(stack)) {
		buf = malloc(len);
		if (!buf)
			return -ENOMEM;
	}
	cqp__msg__pack(msg, buf);
	ret = cqp_send_raw(sock, buf, len, fds, n_fds, flags);
	if (buf != stack)
		free(buf);
	return ret;
}

/*
 * Move the descriptors of @h into @f. Those beyond CQP_MAX_FDS cannot be there,
 * for lack of room in the control buffer: the kernel drops them (MSG_CTRUNC).
 */
static void take_fds(struct cqp_frame *f, struct msghdr *h)
{
	struct cmsghdr *c;
	size_t n;

	for (c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		n = MIN(n, (size_t)(CQP_MAX_FDS - f->n_fds));
		memcpy(f->fds + f->n_fds, CMSG_DATA(c), n * sizeof(int));
		f->n_fds += (unsigned int)n;
	}
}

/**
 * cqp_recv() - receive one datagram
 * @sock:  connected SOCK_SEQPACKET socket
 * @f:     filled in on success; needs no preparation, and its old content is
 *         overwritten, not closed
 * @flags: MSG_DONTWAIT or 0
 *
 * An empty datagram, which no honest peer sends, counts as the end of file;
 * descriptors beside it are closed.
 *
 * Return: 1 got one; 0 end of file; -EAGAIN; -EMSGSIZE too long; -EBADMSG fds
 * cut or too many; other -errno. On failure the frame holds no fds.
 */
int cqp_recv(int sock, struct cqp_frame *f, int flags)
{
	struct iovec io = { .iov_base = f->buf, .iov_len = sizeof(f->buf) };
	union cmsg_fds control;
	struct msghdr h = {
		.msg_iov = &io,
		.msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	ssize_t n;
	int ret = 1;

	f->n_fds = 0;
	f->len = 0;
	do {
		n = recvmsg(sock, &h, flags | MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	take_fds(f, &h);
	if (h.msg_flags & MSG_CTRUNC)
		ret = -EBADMSG;
	else if (h.msg_flags & MSG_TRUNC)
		ret = -EMSGSIZE;
	else if (n == 0)
		ret = 0;
	if (ret <= 0)
		cqp_frame_close(f);
	else
		f->len = (size_t)n;
	return ret;
}

/**
 * cqp_frame_close() - close every fd still in the frame
 * @f: frame, holding none afterwards
 */
void cqp_frame_close(struct cqp_frame *f)
{
	unsigned int i;

	for (i = 0; i < f->n_fds; i++) {
		if (f->fds[i] >= 0)
			close(f->fds[i]);
		f->fds[i] = -1;
	}
	f->n_fds = 0;
}

/**
 * cqp_frame_take() - take an fd out of the frame
 * @f: frame
 * @i: which one
 *
 * Return: the fd, owned by the caller from now on; -1 if there is none.
 */
int cqp_frame_take(struct cqp_frame *f, unsigned int i)
{
	int fd;

	if (i >= f->n_fds)
		return -1;
	fd = f->fds[i];
	f->fds[i] = -1;
	return fd;
}

static struct chunk *chunk_new(struct chunk *next, size_t size)
{
	struct chunk *c = malloc(sizeof(*c) + size);

	if (!c)
		return NULL;
	c->next = next;
	c->size = size;
	c->used = 0;
	c->pad = 0;
	return c;
}

static uint8_t *chunk_data(struct chunk *c)
{
	return (uint8_t *)(c + 1);
}

static void *arena_alloc(void *data, size_t size)
{
	struct arena *a = data;
	struct chunk *c = a->top;
	size_t want;
	void *p;

	if (size > a->budget)
		return NULL;
	size = ALIGN_UP(size, 16);
	if (size > c->size - c->used) {
		/* Double, so that many small fields take few chunks. */
		want = MIN(MAX(size, c->size * 2), a->budget);
		if (want < size)
			return NULL;
		c = chunk_new(c, want);
		if (!c)
			return NULL;
		a->budget -= want;
		a->top = c;
	}
	p = chunk_data(c) + c->used;
	c->used += size;
	return p;
}

/* The arena goes as a whole. */
static void arena_free(void *data, void *p)
{
}

static struct arena *arena_new(size_t len)
{
	/* Fields are copied out: one chunk does for most messages. */
	size_t first = len < ARENA_FIRST / 4 ? ARENA_FIRST - sizeof(struct chunk) :
					       ALIGN_UP(len, 16) + ARENA_FIRST;
	struct chunk *c = chunk_new(NULL, first);
	struct arena *a;

	if (!c)
		return NULL;
	a = (struct arena *)(void *)chunk_data(c);
	a->top = c;
	a->budget = ARENA_FIXED + ARENA_FACTOR * len - first;
	c->used = sizeof(*a);
	return a;
}

static void arena_drop(struct arena *a)
{
	struct chunk *c, *next;

	for (c = a->top; c; c = next) {
		next = c->next;
		free(c);
	}
}

/**
 * cqp_unpack() - parse a datagram
 * @buf: bytes; everything the message refers to is copied out of it
 * @len: at most CQP_MAX_MSG
 * @err: text of the failure, may be NULL
 *
 * A message whose body this build does not know parses, with body_case
 * CQP__MSG__BODY__NOT_SET: its id is what an Error reply needs. Thread-safe.
 *
 * Return: message, to be freed with cqp_free(); NULL if malformed or out of
 * memory.
 */
Cqp__Msg *cqp_unpack(const uint8_t *buf, size_t len, struct cq_err *err)
{
	ProtobufCAllocator alloc = { .alloc = arena_alloc, .free = arena_free };
	struct arena *a;
	Cqp__Msg *msg;

	if (!len || len > CQP_MAX_MSG) {
		cq_err_set(err, -EMSGSIZE, "message of %zu bytes: a message has 1 to %d",
			   len, CQP_MAX_MSG);
		return NULL;
	}
	a = arena_new(len);
	if (!a) {
		cq_err_set(err, -ENOMEM, "out of memory for a message of %zu bytes", len);
		return NULL;
	}
	alloc.allocator_data = a;
	msg = cqp__msg__unpack(&alloc, len, buf);
	/* cqp_free() finds the arena by where the message lies. */
	if ((uint8_t *)msg != a->msg) {
		cq_err_set(err, -EBADMSG, "malformed message of %zu bytes: not a cq message, "
			   "or it needs more memory than one may take", len);
		arena_drop(a);
		return NULL;
	}
	return msg;
}

/**
 * cqp_free() - free a message made by cqp_unpack()
 * @msg: accepts NULL
 */
void cqp_free(Cqp__Msg *msg)
{
	if (msg)
		arena_drop(container_of(msg, struct arena, msg));
}
