// SPDX-License-Identifier: MIT
/*
 * The service manager's fd store: descriptors that outlive the daemon.
 *
 * FDPOLL=0: a memfd never hangs up, and the manager must not look for it.
 * The manager takes messages in order, so one barrier confirms every push
 * before it. It drops silently what exceeds FileDescriptorStoreMax=.
 *
 * The loop must not wait for a manager that is busy, and its messages must not be
 * overtaken: a descriptor may come under a name whose last one was just removed.
 * So they go into a queue. Whoever comes by sends what is in it, worker threads
 * before a message of their own, and they wait for room; the loop when there is
 * room, and once more every second.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>
#include "daemon/manager.h"
#include "daemon/store_priv.h"

#define BARRIER_US	(5 * 1000 * 1000ull)
#define TEXT_BYTES	128

/* A message that waits. @fd goes with it, -1: none. */
struct note {
	struct note *next;
	int fd;
	char text[TEXT_BYTES];
};

/*
 * struct cqd_fdstore - the way to the manager
 * @added:   newest first, pushed by any thread
 * @head:    oldest first, taken from there; under @sending
 * @end:     its last link
 * @sending: held by who sends; the loop does not wait for it
 */
struct cqd_fdstore {
	struct cqd_manager to;
	struct note *added, *head, **end;
	pthread_mutex_t sending;
};

/**
 * cqd_fdstore_open() - find the manager
 * @st: store; nothing is done without opts.push_fds
 *
 * Return: 0 or -ENOMEM. A manager that cannot be reached is said at the first push.
 */
int cqd_fdstore_open(struct cqd_store *st)
{
	struct cqd_fdstore *q;

	if (!st->o.push_fds)
		return 0;
	q = calloc(1, sizeof(*q));
	if (!q)
		return -ENOMEM;
	(void)cqd_manager_open(&q->to);
	q->end = &q->head;
	pthread_mutex_init(&q->sending, NULL);
	st->fdq = q;
	return 0;
}

static void note_free(struct note *n)
{
	if (n->fd >= 0)
		close(n->fd);
	free(n);
}

/* All that was added, behind what is there. */
static void collect(struct cqd_fdstore *q)
{
	/* Acquire, pairs with the release in add(): the text before its place. */
	struct note *n = __atomic_exchange_n(&q->added, NULL, __ATOMIC_ACQUIRE);
	struct note *next, *list = NULL, **end = n ? &n->next : NULL;

	for (; n; n = next) {
		next = n->next;
		n->next = list;
		list = n;
	}
	if (!list)
		return;
	*q->end = list;
	q->end = end;
}

static void add(struct cqd_fdstore *q, struct note *n)
{
	struct note *head = READ_ONCE(q->added);

	do {
		n->next = head;
	} while (!__atomic_compare_exchange_n(&q->added, &head, n, true, __ATOMIC_RELEASE,
					      __ATOMIC_RELAXED));
}

/* A message now. @wait: for room. */
static int say(const struct cqd_fdstore *q, const char *text, int fd, bool wait)
{
	int ret;

	if (!wait)
		return q->to.fd < 0 ? -ENOTCONN : cqd_manager_send(&q->to, text, fd);
	ret = fd < 0 ? sd_notify(0, text) : sd_pid_notify_with_fds(0, 0, text, &fd, 1);
	return ret ? MIN(ret, 0) : -ENOTCONN;
}

/* What waits, as far as there is room; under @sending. */
static void drain(struct cqd_fdstore *q, bool wait)
{
	struct note *n;

	for (;;) {
		collect(q);
		n = q->head;
		if (!n || say(q, n->text, n->fd, wait) == -EAGAIN)
			return;
		q->head = n->next;
		if (!q->head)
			q->end = &q->head;
		note_free(n);
	}
}

/**
 * cqd_fdstore_kick() - send what waits, if there is room
 * @st: store
 *
 * Thread-safe, never waits.
 */
void cqd_fdstore_kick(struct cqd_store *st)
{
	struct cqd_fdstore *q = st->fdq;

	/* Else somebody is at it. */
	if (!q || pthread_mutex_trylock(&q->sending))
		return;
	drain(q, false);
	pthread_mutex_unlock(&q->sending);
}

/**
 * cqd_fdstore_close() - what still waits is lost
 * @st: store in which no thread works any more
 *
 * As after a crash: what comes back without a record is removed then.
 */
void cqd_fdstore_close(struct cqd_store *st)
{
	struct cqd_fdstore *q = st->fdq;
	struct note *n;

	if (!q)
		return;
	cqd_fdstore_kick(st);
	while ((n = q->head) != NULL) {
		q->head = n->next;
		note_free(n);
	}
	cqd_manager_close(&q->to);
	pthread_mutex_destroy(&q->sending);
	free(q);
	st->fdq = NULL;
}

/* Behind what waits. @fd stays the caller's. */
static int later(struct cqd_store *st, const char *text, int fd)
{
	struct note *n = malloc(sizeof(*n));

	if (!n)
		return -ENOMEM;
	snprintf(n->text, sizeof(n->text), "%s", text);
	n->fd = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (fd >= 0 && n->fd < 0) {
		free(n);
		return -errno;
	}
	add(st->fdq, n);
	cqd_fdstore_kick(st);
	return 0;
}

/* Behind what waits, at once. */
static int now(struct cqd_store *st, const char *text, int fd)
{
	struct cqd_fdstore *q = st->fdq;
	int ret;

	pthread_mutex_lock(&q->sending);
	drain(q, true);
	ret = say(q, text, fd, true);
	pthread_mutex_unlock(&q->sending);
	return ret;
}

/* The manager has taken what was said so far. */
static int barrier(void)
{
	int ret = sd_notify_barrier(0, BARRIER_US);

	return ret ? MIN(ret, 0) : -ENOTCONN;
}

/**
 * cqd_fdstore_settle() - wait until what was pushed is kept
 * @st:  store; nothing is done without opts.push_fds
 * @err: text of the failure
 *
 * On worker threads: for memory that has no descriptor, but lies behind those that were
 * pushed CQD_FD_LATER.
 *
 * Return: 0; -ENOTCONN no notify socket; -ETIMEDOUT; other -errno.
 */
int cqd_fdstore_settle(struct cqd_store *st, struct cq_err *err)
{
	struct cqd_fdstore *q = st->fdq;
	int ret;

	if (!st->o.push_fds)
		return 0;
	pthread_mutex_lock(&q->sending);
	drain(q, true);
	pthread_mutex_unlock(&q->sending);
	ret = barrier();
	return ret ? cq_err_set(err, ret, "waiting for the service manager: %s",
				strerror(-ret)) : 0;
}

/**
 * cqd_fdstore_push() - keep a descriptor across restarts
 * @st:   store; nothing is done without opts.push_fds
 * @name: FDNAME
 * @fd:   stays the caller's
 * @how:  CQD_FD_LATER: when there is room, on the loop; CQD_FD_NOW: wait for room, at
 *        start; CQD_FD_SURE: and until the manager has taken it, on worker threads
 * @err:  text of the failure
 *
 * Thread-safe.
 *
 * Return: 0; -ENOTCONN no notify socket; -ETIMEDOUT; other -errno.
 */
int cqd_fdstore_push(struct cqd_store *st, const char *name, int fd, enum cqd_fd_push how,
		     struct cq_err *err)
{
	char text[TEXT_BYTES];
	int ret;

	if (!st->o.push_fds)
		return 0;
	snprintf(text, sizeof(text), "FDSTORE=1\nFDPOLL=0\nFDNAME=%s", name);
	ret = how == CQD_FD_LATER ? later(st, text, fd) : now(st, text, fd);
	if (!ret && how == CQD_FD_SURE)
		ret = barrier();
	if (ret < 0)
		return cq_err_set(err, ret, "handing %s to the service manager: %s",
				  name, strerror(-ret));
	__atomic_fetch_add(&st->fdstore, 1, __ATOMIC_RELAXED);
	return 0;
}

/**
 * cqd_fdstore_remove() - the manager may close its copy
 * @st:   store
 * @name: FDNAME; every descriptor of that name goes
 *
 * Thread-safe, does not wait while there is memory. A lost message costs memory until
 * the next start, when the descriptor comes back without a record and is removed.
 */
void cqd_fdstore_remove(struct cqd_store *st, const char *name)
{
	char text[TEXT_BYTES];

	if (!st->o.push_fds)
		return;
	snprintf(text, sizeof(text), "FDSTOREREMOVE=1\nFDNAME=%s", name);
	if (later(st, text, -1))
		now(st, text, -1);
	if (__atomic_load_n(&st->fdstore, __ATOMIC_RELAXED))
		__atomic_fetch_sub(&st->fdstore, 1, __ATOMIC_RELAXED);
}
