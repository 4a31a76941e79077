// SPDX-License-Identifier: MIT
/*
 * Requests to a holder and their answers, from any thread, one at a time. What the
 * holder says is checked: a holder that breaks the protocol is cut off, which the loop
 * sees as its end (pool_ipc.c).
 *
 * Nobody waits for a holder for ever: an answer that comes too late is known by its
 * number, and the block that it brings was asked to be freed meanwhile.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "cq/util.h"
#include "daemon/ipc_link.h"

#define HELLO_MS	2000
#define ALLOC_MS	10000	/* the driver makes 1 GiB in a quarter of a second */
#define SEND_MS		1000

/* An answer with room for a whole list. */
struct answer {
	struct cqp_holder_ans a;
	struct cqp_holder_block block[CQP_HOLDER_LIST];
};

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* 0; -ETIMEDOUT. */
static int wait_for(int fd, short events, int64_t end)
{
	struct pollfd p = { .fd = fd, .events = events };
	int64_t left;
	int n;

	do {
		left = end - now_ms();
		n = poll(&p, 1, (int)MAX(left, (int64_t)0));
	} while (n < 0 && errno == EINTR);
	return n > 0 ? 0 : n < 0 ? -errno : -ETIMEDOUT;
}

static int put(int fd, const struct cqp_holder_req *r)
{
	int64_t end = now_ms() + SEND_MS;
	ssize_t n;
	int ret;

	for (;;) {
		n = send(fd, r, sizeof(*r), MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n >= 0)
			return 0;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return -errno;
		ret = wait_for(fd, POLLOUT, end);
		if (ret)
			return ret;
	}
}

/* Is it one at all, with as many blocks as it says? */
static bool sound(const struct cqp_holder_ans *a, size_t len)
{
	return len >= sizeof(*a) && a->error <= 0 && a->error > -4096 &&
	       a->n <= CQP_HOLDER_LIST &&
	       len == sizeof(*a) + a->n * sizeof(struct cqp_holder_block) && a->boot &&
	       memchr(a->uuid, '\0', sizeof(a->uuid)) &&
	       memchr(a->text, '\0', sizeof(a->text));
}

/* 1: the answer to @r; 0: one to an earlier request; else -errno. */
static int check(const struct cqp_holder_req *r, const struct cqp_holder_ans *a, size_t len,
		 struct cq_err *err)
{
	if (len < sizeof(*a) || a->magic != CQP_HOLDER_MAGIC)
		return cq_err_set(err, -EPROTO, "what answers is no cq-holder");
	if (a->version != CQP_HOLDER_VERSION)
		return cq_err_set(err, -EPROTO, "the holder speaks version %u, cqd %d: use "
				  "cq-holder and cqd of one version", a->version,
				  CQP_HOLDER_VERSION);
	if (!sound(a, len))
		return cq_err_set(err, -EPROTO, "the holder's answer makes no sense");
	if (a->seq != r->seq)
		return 0;
	if (a->op != r->op)
		return cq_err_set(err, -EPROTO, "the holder answers something else");
	return 1;
}

/* One answer of up to @size bytes. */
static int get(int fd, const struct cqp_holder_req *r, struct cqp_holder_ans *a, size_t size,
	       int ms, struct cq_err *err)
{
	struct iovec iov = { a, size };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };
	int64_t end = now_ms() + ms;
	ssize_t n;
	int ret;

	do {
		ret = wait_for(fd, POLLIN, end);
		if (ret)
			return cq_err_set(err, ret, "the holder does not answer: %s",
					  strerror(-ret));
		n = recvmsg(fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (n <= 0)
			return cq_err_set(err, -ECONNABORTED, "the holder hung up");
		/* The kernel closes descriptors that there is no room for. */
		if (mh.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
			return cq_err_set(err, -EPROTO, "the holder's answer is too long");
		ret = check(r, a, (size_t)n, err);
	} while (!ret);
	return MIN(ret, 0);
}

/* Asks and waits. -ECONNABORTED: it hung up; -EPROTO; -ETIMEDOUT; a->error otherwise. */
static int call(int fd, const struct cqp_holder_req *r, struct cqp_holder_ans *a, size_t size,
		int ms, struct cq_err *err)
{
	int ret = put(fd, r);

	if (ret == -ETIMEDOUT)
		return cq_err_set(err, ret, "the holder reads no requests");
	/* Why it hung up may be there to be read. */
	if (ret && ret != -EPIPE && ret != -ECONNRESET)
		return cq_err_set(err, ret, "asking the holder: %s", strerror(-ret));
	ret = get(fd, r, a, size, ms, err);
	if (!ret && a->error)
		return cq_err_set(err, a->error, "the holder: %s", a->text);
	return ret;
}

static struct cqp_holder_req request(enum cqp_holder_op op, uint64_t seq)
{
	return (struct cqp_holder_req){
		.magic = CQP_HOLDER_MAGIC, .version = CQP_HOLDER_VERSION, .op = (uint16_t)op,
		.seq = seq,
	};
}

/* --- reaching it --- */

/* Whoever is there must be one of us: others could hand out memory of theirs. */
static int of_our_uid(int fd, struct cq_err *err)
{
	struct ucred cred = { .uid = (uid_t)-1 };
	socklen_t len = sizeof(cred);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0 || cred.uid != geteuid())
		return cq_err_set(err, -EACCES, "the holder runs under uid %u, cqd under %u: they "
				  "must be the same", cred.uid, geteuid());
	return 0;
}

static int open_socket(const struct cqd_ipc_link *l, struct cq_err *err)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd, ret;

	if (strlen(l->path) >= sizeof(sa.sun_path))
		return cq_err_set(err, -ENAMETOOLONG, "%s: at most %zu characters", l->path,
				  sizeof(sa.sun_path) - 1);
	memcpy(sa.sun_path, l->path, strlen(l->path));
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return cq_err_set(err, -errno, "socket: %s", strerror(errno));
	if (connect(fd, (const struct sockaddr *)&sa, sizeof(sa)) == 0) {
		ret = of_our_uid(fd, err);
		if (!ret)
			return fd;
	} else if (errno == ENOENT || errno == ECONNREFUSED) {
		ret = cq_err_set(err, -ECONNREFUSED, "no holder answers at %s: systemctl enable "
				 "--now cq-holder@%s", l->path, l->name);
	} else {
		ret = cq_err_set(err, -errno, "%s: %s", l->path, strerror(errno));
	}
	close(fd);
	return ret;
}

static int hello(const struct cqd_ipc_link *l, struct cqd_ipc_peer *p, struct answer *got,
		 struct cq_err *err)
{
	const struct cqp_holder_req r = request(CQP_HOLDER_HELLO, 1);
	int ret = call(p->fd, &r, &got->a, sizeof(*got), HELLO_MS, err);

	if (ret)
		return ret;
	if (strcasecmp(got->a.uuid, l->uuid))
		return cq_err_set(err, -EINVAL, "the holder at %s has memory of %.47s: restart "
				  "cq-holder@%s", l->path, got->a.uuid, l->name);
	p->boot = got->a.boot;
	p->bytes = got->a.bytes;
	return 0;
}

/* One more piece of the list. 1: there is more. */
static int list_more(struct cqd_ipc_peer *p, struct answer *got, struct cq_err *err)
{
	struct cqp_holder_req r = request(CQP_HOLDER_LIST_FROM, 2 + p->n);
	unsigned int i;
	int ret;

	r.block = p->n ? p->list[p->n - 1].block + 1 : 0;
	ret = call(p->fd, &r, &got->a, sizeof(*got), HELLO_MS, err);
	if (ret)
		return ret;
	for (i = 0; i < got->a.n; i++) {
		if (got->block[i].block < r.block || p->n == CQP_HOLDER_BLOCKS)
			return cq_err_set(err, -EPROTO, "the holder's list is not in order");
		r.block = got->block[i].block + 1;
		p->list[p->n++] = got->block[i];
	}
	return got->a.n == CQP_HOLDER_LIST;
}

/**
 * cqd_ipc_reach() - find the holder and learn what it has
 * @l:   names it; its connection is left alone
 * @out: filled on success
 * @err: text of the failure
 *
 * Any thread; waits up to 2 s for each answer.
 *
 * Return: 0; -ECONNREFUSED nobody is there; -ECONNABORTED it hung up: it has ended
 * meanwhile, or another cqd took over, and to ask again tells which; -EACCES not of our
 * uid; -EINVAL of another device; -EPROTO; -ETIMEDOUT; -ENOMEM; other -errno.
 */
int cqd_ipc_reach(const struct cqd_ipc_link *l, struct cqd_ipc_peer *out, struct cq_err *err)
{
	struct cqd_ipc_peer p = { .fd = -1 };
	struct answer *got = malloc(sizeof(*got));
	int ret = -ENOMEM;

	p.list = malloc(CQP_HOLDER_BLOCKS * sizeof(*p.list));
	p.taken = calloc(CQP_HOLDER_BLOCKS, sizeof(*p.taken));
	if (!got || !p.list || !p.taken) {
		cq_err_set(err, ret, "no memory for the holder's list");
		goto out;
	}
	ret = open_socket(l, err);
	if (ret < 0)
		goto out;
	p.fd = ret;
	ret = hello(l, &p, got, err);
	if (!ret)
		do
			ret = list_more(&p, got, err);
		while (ret > 0);
out:
	free(got);
	if (ret)
		cqd_ipc_peer_close(&p);
	else
		*out = p;
	return ret;
}

/* --- what it had --- */

/**
 * cqd_ipc_peer_forget() - the list is not needed any more
 * @p: connection, or none
 */
void cqd_ipc_peer_forget(struct cqd_ipc_peer *p)
{
	free(p->list);
	free(p->taken);
	p->list = NULL;
	p->taken = NULL;
	p->n = 0;
}

/**
 * cqd_ipc_peer_close() - end a connection; the holder keeps its blocks
 * @p: connection, or none
 */
void cqd_ipc_peer_close(struct cqd_ipc_peer *p)
{
	if (p->fd >= 0)
		close(p->fd);
	p->fd = -1;
	cqd_ipc_peer_forget(p);
}

static void give_back(const struct cqd_ipc_peer *p, uint64_t block)
{
	struct cqp_holder_req r = request(CQP_HOLDER_FREE, 0);

	r.block = block;
	if (put(p->fd, &r))
		shutdown(p->fd, SHUT_RDWR);
}

/**
 * cqd_ipc_peer_sweep() - give back what no segment is in
 * @p: connection, used by nobody else at the moment
 */
void cqd_ipc_peer_sweep(struct cqd_ipc_peer *p)
{
	unsigned int i;

	for (i = 0; i < p->n; i++)
		if (!p->taken[i])
			give_back(p, p->list[i].block);
	cqd_ipc_peer_forget(p);
}

/**
 * cqd_ipc_peer_take() - a segment of the cqd before
 * @p:     connection with its list
 * @block: number
 * @bytes: size
 *
 * Return: the block, which belongs to the caller's segment now, until the list is
 * forgotten; NULL: there is none, it has another size, or it is taken.
 */
const struct cqp_holder_block *cqd_ipc_peer_take(struct cqd_ipc_peer *p, uint64_t block,
						 uint64_t bytes)
{
	unsigned int lo = 0, hi = p->n, mid;

	while (lo < hi) {
		mid = (lo + hi) / 2;
		if (p->list[mid].block < block)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (lo == p->n || p->list[lo].block != block || p->list[lo].bytes != bytes ||
	    p->taken[lo])
		return NULL;
	p->taken[lo] = true;
	return &p->list[lo];
}

/* --- the link --- */

/**
 * cqd_ipc_link_init() - nobody is connected yet
 * @l:    link
 * @name: of the section; all three live as long as the link
 * @path: of the socket
 * @uuid: of the device
 */
void cqd_ipc_link_init(struct cqd_ipc_link *l, const char *name, const char *path,
		       const char *uuid)
{
	*l = (struct cqd_ipc_link){ .peer = { .fd = -1 }, .seq = 1 << 20, .name = name,
				    .path = path, .uuid = uuid };
	pthread_mutex_init(&l->lock, NULL);
}

/**
 * cqd_ipc_link_set() - another connection
 * @l: link; a request under way on the one before ends first
 * @p: moved into the link, NULL: none
 */
void cqd_ipc_link_set(struct cqd_ipc_link *l, struct cqd_ipc_peer *p)
{
	pthread_mutex_lock(&l->lock);
	cqd_ipc_peer_close(&l->peer);
	if (p) {
		l->peer = *p;
		*p = (struct cqd_ipc_peer){ .fd = -1 };
	}
	pthread_mutex_unlock(&l->lock);
}

/* Under the lock. */
static int alloc(struct cqd_ipc_link *l, uint64_t block, uint64_t bytes,
		 struct cqp_holder_block *out, struct cq_err *err)
{
	struct cqp_holder_req r = request(CQP_HOLDER_ALLOC, ++l->seq);
	struct {
		struct cqp_holder_ans a;
		struct cqp_holder_block block;
	} got = { .a = { .n = 0 } };
	int ret;

	r.block = block;
	r.bytes = bytes;
	ret = call(l->peer.fd, &r, &got.a, sizeof(got), ALLOC_MS, err);
	if (!ret && (got.a.n != 1 || got.block.block != block || got.block.bytes != bytes ||
		     got.a.boot != l->peer.boot))
		ret = cq_err_set(err, -EPROTO, "the holder made another block");
	if (ret == -ETIMEDOUT)
		give_back(&l->peer, block);	/* behind what it is at */
	else if (ret == -EPROTO)
		shutdown(l->peer.fd, SHUT_RDWR);
	else if (ret == -ECONNABORTED)
		ret = -ENODATA;
	else if (!ret)
		*out = got.block;
	return ret;
}

/**
 * cqd_ipc_alloc() - a new block
 * @l:      link
 * @block:  its number, which no other has
 * @bytes:  a multiple of CQP_HOLDER_GRAIN
 * @handle: filled on success
 * @boot:   set on success: of the holder
 * @err:    text of the failure
 *
 * Any thread but the loop's: waits.
 *
 * Return: 0; -ENOMEM the device has no memory now; -ENODATA there is no holder;
 * -ETIMEDOUT; -EPROTO; other -errno of the holder.
 */
int cqd_ipc_alloc(struct cqd_ipc_link *l, uint64_t block, uint64_t bytes,
		  uint8_t handle[CQP_HOLDER_HANDLE], uint64_t *boot, struct cq_err *err)
{
	struct cqp_holder_block b;
	int ret = -ENODATA;

	pthread_mutex_lock(&l->lock);
	if (l->peer.fd >= 0)
		ret = alloc(l, block, bytes, &b, err);
	else
		cq_err_set(err, ret, "no holder at %s: systemctl status cq-holder@%s", l->path,
			   l->name);
	if (!ret) {
		memcpy(handle, b.handle, sizeof(b.handle));
		*boot = l->peer.boot;
	}
	pthread_mutex_unlock(&l->lock);
	return ret;
}

/**
 * cqd_ipc_free() - give a block back
 * @l:     link
 * @boot:  of the holder that made it; with another one it is gone already
 * @block: number
 *
 * Any thread. Not waited for: the holder does it before what it is asked next.
 */
void cqd_ipc_free(struct cqd_ipc_link *l, uint64_t boot, uint64_t block)
{
	pthread_mutex_lock(&l->lock);
	if (l->peer.fd >= 0 && l->peer.boot == boot)
		give_back(&l->peer, block);
	pthread_mutex_unlock(&l->lock);
}
