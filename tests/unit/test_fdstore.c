// SPDX-License-Identifier: MIT
/*
 * A service manager that reads nothing: the loop does not wait for it, and what it
 * is told comes in order once it reads.
 */
#include "tests/harness.h"
#include <pthread.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "daemon/manager.h"
#include "daemon/store_priv.h"

static struct cqd_store st = { .o.push_fds = true };
static struct cq_err err;
static int sock = -1;

static void manager(void)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	char env[64];
	int n = snprintf(sa.sun_path + 1, sizeof(sa.sun_path) - 1, "cq-fdstore-%d", getpid());

	snprintf(env, sizeof(env), "@cq-fdstore-%d", getpid());
	setenv("NOTIFY_SOCKET", env, 1);
	sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	ASSERT(sock >= 0);
	ASSERT_EQ(bind(sock, (void *)&sa,
		       (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n)), 0);
	ASSERT_EQ(cqd_fdstore_open(&st), 0);
}

/* Messages of others until there is room for none. */
static unsigned int fill(void)
{
	struct cqd_manager m;
	unsigned int n = 0;

	ASSERT_EQ(cqd_manager_open(&m), 0);
	while (!cqd_manager_send(&m, "X", -1))
		n++;
	ASSERT_EQ(cqd_manager_send(&m, "X", -1), -EAGAIN);
	cqd_manager_close(&m);
	return n;
}

/* The next message; the descriptor that came with it, or -1. */
static int hear(char text[256])
{
	char ctl[CMSG_SPACE(sizeof(int))];
	struct iovec iov = { text, 255 };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = ctl,
			     .msg_controllen = sizeof(ctl) };
	ssize_t n = recvmsg(sock, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct cmsghdr *c;
	int fd = -1;

	ASSERT(n >= 0);
	text[n] = '\0';
	c = CMSG_FIRSTHDR(&mh);
	if (c)
		memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	return fd;
}

static void nothing_more(void)
{
	char c;

	ASSERT_EQ(recv(sock, &c, 1, MSG_DONTWAIT), -1);
	ASSERT_EQ(errno, EAGAIN);
}

static void end(void)
{
	cqd_fdstore_close(&st);
	close(sock);
}

static void skip(unsigned int n)
{
	char text[256];

	while (n--) {
		ASSERT_EQ(hear(text), -1);
		ASSERT_STREQ(text, "X");
	}
}

TEST(a_full_socket_is_not_waited_for)
{
	char text[256];
	unsigned int n;
	int fd;

	manager();
	n = fill();
	cqd_fdstore_remove(&st, "a");
	ASSERT_EQ(cqd_fdstore_push(&st, "b", sock, CQD_FD_LATER, &err), 0);
	cqd_fdstore_remove(&st, "c");
	cqd_fdstore_kick(&st);
	skip(n);
	nothing_more();
	cqd_fdstore_kick(&st);
	ASSERT_EQ(hear(text), -1);
	ASSERT_STREQ(text, "FDSTOREREMOVE=1\nFDNAME=a");
	fd = hear(text);
	ASSERT_STREQ(text, "FDSTORE=1\nFDPOLL=0\nFDNAME=b");
	ASSERT(fd >= 0);
	close(fd);
	ASSERT_EQ(hear(text), -1);
	ASSERT_STREQ(text, "FDSTOREREMOVE=1\nFDNAME=c");
	nothing_more();
	end();
}

static void *push_again(void *arg)
{
	ASSERT_EQ(cqd_fdstore_push(&st, "a", sock, CQD_FD_NOW, &err), 0);
	return NULL;
}

/* Else the manager would drop the descriptor that came last. */
TEST(a_push_does_not_overtake)
{
	char text[256];
	pthread_t thread;
	unsigned int n;
	int fd;

	manager();
	n = fill();
	cqd_fdstore_remove(&st, "a");
	/* it waits for room: first of all for the message before its own */
	ASSERT_EQ(pthread_create(&thread, NULL, push_again, NULL), 0);
	skip(n);
	pthread_join(thread, NULL);
	ASSERT_EQ(hear(text), -1);
	ASSERT_STREQ(text, "FDSTOREREMOVE=1\nFDNAME=a");
	fd = hear(text);
	ASSERT_STREQ(text, "FDSTORE=1\nFDPOLL=0\nFDNAME=a");
	ASSERT(fd >= 0);
	close(fd);
	nothing_more();
	end();
}

/* What was never sent costs no descriptor. */
TEST(closed_with_messages_left)
{
	unsigned int n;

	manager();
	n = fill();
	ASSERT_EQ(cqd_fdstore_push(&st, "b", sock, CQD_FD_LATER, &err), 0);
	cqd_fdstore_remove(&st, "c");
	cqd_fdstore_close(&st);
	skip(n);
	nothing_more();
	close(sock);
}

TEST(nobody_there)
{
	st.o.push_fds = false;
	ASSERT_EQ(cqd_fdstore_open(&st), 0);
	cqd_fdstore_remove(&st, "a");
	ASSERT_EQ(cqd_fdstore_push(&st, "a", 0, CQD_FD_SURE, &err), 0);
	cqd_fdstore_close(&st);
	st.o.push_fds = true;
	unsetenv("NOTIFY_SOCKET");
	ASSERT_EQ(cqd_fdstore_open(&st), 0);
	cqd_fdstore_remove(&st, "a");
	ASSERT_EQ(cqd_fdstore_push(&st, "a", 0, CQD_FD_NOW, &err), -ENOTCONN);
	cqd_fdstore_close(&st);
}
