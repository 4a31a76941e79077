// SPDX-License-Identifier: MIT
/*
 * Descriptors that strangers send. To close one may take long: until a file
 * system that its owner serves has answered, until a connection has lingered,
 * until gigabytes are freed. So the loop neither does it, nor lets the kernel
 * do it in its name: datagrams are received with room for every descriptor
 * that one can carry, a socket is closed when nothing is left in it, and what
 * is not a memfd of moderate size goes to a thread that does nothing else.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include "daemon/server.h"

#define ROOM		253		/* descriptors of a datagram, by the kernel's limit */
#define QUICK_BYTES	(16ll << 20)	/* freed in a few milliseconds */

union control {
	char buf[CMSG_SPACE(sizeof(int) * ROOM) + CMSG_SPACE(sizeof(struct ucred))];
	struct cmsghdr align;
};

/*
 * struct gram - what a datagram carries besides its bytes
 * @flags: of recvmsg()
 * @any:   it came with control data
 */
struct gram {
	int flags;
	bool any;
	unsigned int n_fds;
	int fds[ROOM];
};

/* What waits for the thread: @n of @room descriptors. */
static struct {
	pthread_mutex_t lock;
	pthread_cond_t more;
	bool started;
	int *fd;
	size_t n, room;
} bin;

static void *bin_main(void *arg)
{
	const struct linger none = { 0 };
	int fd;

	for (;;) {
		pthread_mutex_lock(&bin.lock);
		while (!bin.n)
			pthread_cond_wait(&bin.more, &bin.lock);
		fd = bin.fd[--bin.n];
		pthread_mutex_unlock(&bin.lock);
		/* Fails if it is no socket, which is as well. */
		(void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof(none));
		close(fd);
	}
	return NULL;
}

/* By the loop. Never joined: what it waits for may be for ever. */
static bool bin_start(void)
{
	sigset_t all, old;
	pthread_t thread;

	if (bin.started)
		return true;
	pthread_mutex_init(&bin.lock, NULL);
	pthread_cond_init(&bin.more, NULL);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	bin.started = pthread_create(&thread, NULL, bin_main, NULL) == 0;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (bin.started)
		pthread_detach(thread);
	return bin.started;
}

static bool bin_put(int fd)
{
	size_t room = bin.room ? bin.room * 2 : ROOM;
	bool kept = false;
	int *p = bin.fd;

	if (!bin_start())
		return false;
	pthread_mutex_lock(&bin.lock);
	if (bin.n == bin.room)
		p = realloc(bin.fd, room * sizeof(*p));
	if (p && bin.n == bin.room)
		bin.room = room;
	if (p) {
		bin.fd = p;
		bin.fd[bin.n++] = fd;
		kept = true;
		pthread_cond_signal(&bin.more);
	}
	pthread_mutex_unlock(&bin.lock);
	return kept;
}

/* Nobody can make us wait for a memfd, except by its size. */
static bool quick(int fd)
{
	struct stat sb;

	return fcntl(fd, F_GET_SEALS) >= 0 && fstat(fd, &sb) == 0 &&
	       (long long)sb.st_blocks * 512 <= QUICK_BYTES;
}

static void drop(int fd)
{
	if (quick(fd) || !bin_put(fd))
		close(fd);
}

static void drop_all(const struct gram *g)
{
	unsigned int i;

	for (i = 0; i < g->n_fds; i++)
		drop(g->fds[i]);
}

static ssize_t receive(int sock, void *buf, size_t len, struct gram *g)
{
	struct iovec io = { .iov_base = buf, .iov_len = len };
	union control control;
	struct msghdr h = {
		.msg_iov = &io,
		.msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	struct cmsghdr *c;
	ssize_t n;

	g->n_fds = 0;
	do {
		n = recvmsg(sock, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	g->flags = h.msg_flags;
	g->any = h.msg_controllen > 0;
	for (c = CMSG_FIRSTHDR(&h); c; c = CMSG_NXTHDR(&h, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		g->n_fds = (unsigned int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(g->fds, CMSG_DATA(c), g->n_fds * sizeof(int));
	}
	return n;
}

/**
 * cqd_recv() - receive a datagram of a stranger without waiting for anything
 * @sock: connected SOCK_SEQPACKET socket
 * @f:    filled in on success, to be ended with cqd_frame_drop()
 *
 * Return: as cqp_recv().
 */
int cqd_recv(int sock, struct cqp_frame *f)
{
	struct gram g;
	ssize_t n;
	int ret = 1;

	f->n_fds = 0;
	f->len = 0;
	n = receive(sock, f->buf, sizeof(f->buf), &g);
	if (n < 0)
		return (int)n;
	if (g.flags & MSG_CTRUNC || g.n_fds > CQP_MAX_FDS)
		ret = -EBADMSG;
	else if (g.flags & MSG_TRUNC)
		ret = -EMSGSIZE;
	else if (n == 0)
		ret = 0;
	if (ret <= 0) {
		drop_all(&g);
		return ret;
	}
	memcpy(f->fds, g.fds, g.n_fds * sizeof(int));
	f->n_fds = g.n_fds;
	f->len = (size_t)n;
	return 1;
}

/**
 * cqd_frame_drop() - the end of a datagram's descriptors
 * @f: frame; those that were taken out stay
 */
void cqd_frame_drop(struct cqp_frame *f)
{
	unsigned int i;

	for (i = 0; i < f->n_fds; i++)
		if (f->fds[i] >= 0)
			drop(f->fds[i]);
	f->n_fds = 0;
}

/**
 * cqd_sock_close() - close a connection and what is left unread in it
 * @sock: connected socket
 *
 * A Unix socket closed with unread requests would also tell its peer
 * ECONNRESET before the peer has read the last reply.
 */
void cqd_sock_close(int sock)
{
	const int on = 1;
	struct gram g;
	char byte;

	/* From now on nothing comes in; replies sent can still be read. */
	shutdown(sock, SHUT_RDWR);
	/* Tells an empty datagram, which has credentials, from the end. */
	setsockopt(sock, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on));
	while (receive(sock, &byte, sizeof(byte), &g) >= 0 && g.any)
		drop_all(&g);
	close(sock);
}
