/* SPDX-License-Identifier: MIT */
/* Frames: whole or not at all, descriptors never leaked, memory bounded. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include "proto/frame.h"
#include "tests/harness.h"

static struct cqp_frame frame;

static void pair(int s[2])
{
	ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s), 0);
}

static void unpair(int s[2])
{
	close(s[0]);
	close(s[1]);
}

/* A datagram with @n copies of stdin, past the checks of cqp_send_raw(). */
static void send_fds(int s, const void *buf, size_t len, unsigned int n)
{
	struct iovec io = { .iov_len = len };
	struct msghdr h = { .msg_iov = &io, .msg_iovlen = 1 };
	union {
		char b[CMSG_SPACE(sizeof(int) * 253)];
		struct cmsghdr align;
	} control;
	struct cmsghdr *c;
	unsigned int i;
	int zero = 0;

	memcpy(&io.iov_base, &buf, sizeof(buf));
	if (n) {
		memset(&control, 0, sizeof(control));
		h.msg_control = control.b;
		h.msg_controllen = CMSG_SPACE(sizeof(int) * n);
		c = CMSG_FIRSTHDR(&h);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * n);
		for (i = 0; i < n; i++)
			memcpy(CMSG_DATA(c) + i * sizeof(int), &zero, sizeof(zero));
	}
	ASSERT_EQ(sendmsg(s, &h, 0), (long long)len);
}

static void ping(Cqp__Msg *msg, Cqp__Ping *body, uint64_t id)
{
	cqp__msg__init(msg);
	cqp__ping__init(body);
	msg->id = id;
	msg->body_case = CQP__MSG__BODY_PING;
	msg->ping = body;
}

TEST(message_round_trip)
{
	Cqp__Msg msg, *got;
	Cqp__Ping body;
	int s[2];

	pair(s);
	ping(&msg, &body, 0x1122334455667788ull);
	ASSERT_EQ(cqp_send(s[0], &msg, NULL, 0, 0), 0);
	ASSERT_EQ(cqp_recv(s[1], &frame, 0), 1);
	ASSERT_EQ(frame.n_fds, 0);
	got = cqp_unpack(frame.buf, frame.len, NULL);
	ASSERT(got);
	ASSERT(got->id == 0x1122334455667788ull);
	ASSERT_EQ(got->body_case, CQP__MSG__BODY_PING);
	cqp_free(got);
	cqp_free(NULL);
	unpair(s);
}

TEST(large_message_round_trip)
{
	static uint8_t keys[CQP_MAX_KEYS * 32];
	Cqp__Lookup body = CQP__LOOKUP__INIT;
	Cqp__Msg msg = CQP__MSG__INIT, *got;
	size_t i;
	int s[2];

	pair(s);
	for (i = 0; i < sizeof(keys); i++)
		keys[i] = (uint8_t)(i * 7);
	body.keys.data = keys;
	body.keys.len = sizeof(keys);
	msg.body_case = CQP__MSG__BODY_LOOKUP;
	msg.lookup = &body;
	ASSERT_EQ(cqp_send(s[0], &msg, NULL, 0, 0), 0);
	ASSERT_EQ(cqp_recv(s[1], &frame, 0), 1);
	got = cqp_unpack(frame.buf, frame.len, NULL);
	ASSERT(got && got->body_case == CQP__MSG__BODY_LOOKUP);
	ASSERT_EQ(got->lookup->keys.len, (long long)sizeof(keys));
	ASSERT(!memcmp(got->lookup->keys.data, keys, sizeof(keys)));
	ASSERT(got->lookup->pin);
	/* copied, not referring to the frame */
	memset(frame.buf, 0xaa, sizeof(frame.buf));
	ASSERT(!memcmp(got->lookup->keys.data, keys, sizeof(keys)));
	cqp_free(got);
	unpair(s);
}

TEST(fds_arrive_cloexec_and_are_taken_once)
{
	int s[2], p[2], fd, flags;
	uint8_t b = 1;

	pair(s);
	ASSERT_EQ(pipe2(p, O_CLOEXEC), 0);
	ASSERT_EQ(cqp_send_raw(s[0], &b, 1, p, 2, 0), 0);
	ASSERT_EQ(cqp_recv(s[1], &frame, 0), 1);
	ASSERT_EQ(frame.n_fds, 2);
	fd = cqp_frame_take(&frame, 1);
	ASSERT(fd >= 0);
	flags = fcntl(fd, F_GETFD);
	ASSERT(flags & FD_CLOEXEC);
	ASSERT_EQ(cqp_frame_take(&frame, 1), -1);
	ASSERT_EQ(cqp_frame_take(&frame, 2), -1);
	ASSERT_EQ(cqp_frame_take(&frame, ~0u), -1);
	ASSERT_EQ(write(fd, "x", 1), 1);
	ASSERT_EQ(read(p[0], &b, 1), 1);
	ASSERT_EQ(b, 'x');
	close(fd);
	cqp_frame_close(&frame);
	cqp_frame_close(&frame);
	unpair(p);
	unpair(s);
}

TEST(limit_of_fds)
{
	int fds[CQP_MAX_FDS + 1] = { 0 };
	uint8_t b = 1;
	int s[2];

	pair(s);
	ASSERT_EQ(cqp_send_raw(s[0], &b, 1, fds, CQP_MAX_FDS, 0), 0);
	ASSERT_EQ(cqp_recv(s[1], &frame, 0), 1);
	ASSERT_EQ(frame.n_fds, CQP_MAX_FDS);
	cqp_frame_close(&frame);
	ASSERT_EQ(cqp_send_raw(s[0], &b, 1, fds, CQP_MAX_FDS + 1, 0), -EINVAL);
	/* a peer that does not care about our limit */
	send_fds(s[0], &b, 1, CQP_MAX_FDS + 1);
	ASSERT_EQ(cqp_recv(s[1], &frame, 0), -EBADMSG);
	ASSERT_EQ(frame.n_fds, 0);
	send_fds(s[0], &b, 1, 253);
	ASSERT_EQ(cqp_recv(s[1], &frame, 0), -EBADMSG);
	/* and the connection goes on */
	ASSERT_EQ(cqp_send_raw(s[0], &b, 1, NULL, 0, 0), 0);
	ASSERT_EQ(cqp_recv(s[1], &frame, 0), 1);
	unpair(s);
}

TEST(receiver_out_of_fds)
{
	struct rlimit old, low;
	uint8_t b = 1;
	int s[2];

	pair(s);
	ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
	send_fds(s[0], &b, 1, 10);
	low = old;
	low.rlim_cur = (rlim_t)s[1] + 5;
	ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
	ASSERT_EQ(cqp_recv(s[1], &frame, 0), -EBADMSG);
	ASSERT_EQ(frame.n_fds, 0);
	ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &old), 0);
	unpair(s);
}

TEST(too_long_is_refused_with_its_fds)
{
	static uint8_t big[CQP_MAX_MSG + 1];
	uint8_t b = 1;
	int s[2];

	pair(s);
	ASSERT_EQ(cqp_send_raw(s[0], big, sizeof(big), NULL, 0, 0), -EMSGSIZE);
	send_fds(s[0], big, sizeof(big), 3);
	ASSERT_EQ(cqp_recv(s[1], &frame, 0), -EMSGSIZE);
	ASSERT_EQ(frame.n_fds, 0);
	ASSERT_EQ(cqp_send_raw(s[0], big, CQP_MAX_MSG, NULL, 0, 0), 0);
	ASSERT_EQ(cqp_recv(s[1], &frame, 0), 1);
	ASSERT_EQ(frame.len, CQP_MAX_MSG);
	ASSERT_EQ(cqp_send_raw(s[0], &b, 1, NULL, 0, 0), 0);
	ASSERT_EQ(cqp_recv(s[1], &frame, 0), 1);
	unpair(s);
}

TEST(message_too_long_to_send)
{
	static uint8_t pages[CQP_MAX_MSG];
	Cqp__Release body = CQP__RELEASE__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	int s[2];

	pair(s);
	body.pages.data = pages;
	body.pages.len = sizeof(pages);
	msg.body_case = CQP__MSG__BODY_RELEASE;
	msg.release = &body;
	ASSERT_EQ(cqp_send(s[0], &msg, NULL, 0, 0), -EMSGSIZE);
	unpair(s);
}

TEST(empty_datagram_is_the_end)
{
	int s[2];

	pair(s);
	ASSERT_EQ(cqp_send_raw(s[0], frame.buf, 0, NULL, 0, 0), -EINVAL);
	send_fds(s[0], "", 0, 0);
	ASSERT_EQ(cqp_recv(s[1], &frame, 0), 0);
	send_fds(s[0], "", 0, 2);
	ASSERT_EQ(cqp_recv(s[1], &frame, 0), 0);
	ASSERT_EQ(frame.n_fds, 0);
	unpair(s);
}

TEST(end_of_file_and_closed_peer)
{
	uint8_t b = 1;
	int s[2];

	pair(s);
	close(s[0]);
	ASSERT_EQ(cqp_recv(s[1], &frame, 0), 0);
	signal(SIGPIPE, SIG_DFL);	/* there must be none */
	ASSERT_EQ(cqp_send_raw(s[1], &b, 1, NULL, 0, 0), -EPIPE);
	close(s[1]);
	ASSERT_EQ(cqp_recv(s[1], &frame, 0), -EBADF);
}

TEST(queue_full_and_empty)
{
	uint8_t b[1024] = { 0 };
	int s[2], ret, n = 0;

	pair(s);
	ASSERT_EQ(cqp_recv(s[1], &frame, MSG_DONTWAIT), -EAGAIN);
	while (!(ret = cqp_send_raw(s[0], b, sizeof(b), NULL, 0, MSG_DONTWAIT)))
		n++;
	ASSERT_EQ(ret, -EAGAIN);
	ASSERT(n > 4);
	while (cqp_recv(s[1], &frame, MSG_DONTWAIT) == 1)
		n--;
	ASSERT_EQ(n, 0);
	unpair(s);
}

static int alarms;

static void on_alarm(int sig)
{
	uint8_t b = 1;

	if (++alarms == 3)
		cqp_send_raw(9, &b, 1, NULL, 0, 0);
}

TEST(interrupted_calls_go_on)
{
	struct itimerval every = { { 0, 2000 }, { 0, 2000 } };
	struct sigaction sa = { .sa_handler = on_alarm };
	int s[2];

	pair(s);
	ASSERT_EQ(dup2(s[0], 9), 9);
	ASSERT_EQ(sigaction(SIGALRM, &sa, NULL), 0);
	ASSERT_EQ(setitimer(ITIMER_REAL, &every, NULL), 0);
	ASSERT_EQ(cqp_recv(s[1], &frame, 0), 1);
	ASSERT(alarms >= 3);
	memset(&every, 0, sizeof(every));
	setitimer(ITIMER_REAL, &every, NULL);
	close(9);
	unpair(s);
}

TEST(malformed_is_refused_with_a_text)
{
	static const uint8_t garbage[] = { 0xff, 0xff, 0xff, 0xff, 0xff };
	/* id (field 1, fixed64) is required */
	static const uint8_t no_id[] = { 0x32, 0x00 };
	/* ping of 5 bytes, of which none is there */
	static const uint8_t cut[] = { 0x09, 1, 0, 0, 0, 0, 0, 0, 0, 0x32, 5 };
	static const uint8_t big[CQP_MAX_MSG + 1];
	struct cq_err err = { "" };

	ASSERT(!cqp_unpack(garbage, sizeof(garbage), &err));
	ASSERT(strstr(err.text, "malformed message of 5 bytes"));
	ASSERT(!cqp_unpack(no_id, sizeof(no_id), NULL));
	ASSERT(!cqp_unpack(cut, sizeof(cut), NULL));
	ASSERT(!cqp_unpack(cut, 0, &err));
	ASSERT(strstr(err.text, "message of 0 bytes"));
	ASSERT(!cqp_unpack(big, sizeof(big), &err));
}

TEST(unknown_body_still_has_its_id)
{
	/* id 7, then field 900, 2 bytes */
	static const uint8_t newer[] = {
		0x09, 7, 0, 0, 0, 0, 0, 0, 0, 0xa2, 0x38, 2, 1, 2
	};
	Cqp__Msg *m = cqp_unpack(newer, sizeof(newer), NULL);

	ASSERT(m);
	ASSERT_EQ(m->id, 7);
	ASSERT_EQ(m->body_case, CQP__MSG__BODY__NOT_SET);
	cqp_free(m);
}

/* 2 bytes each that cost as much as the parser ever takes for 2 bytes. */
static size_t bomb_items(uint8_t *buf)
{
	size_t body = CQP_MAX_MSG - 16, n = 0, i;

	memcpy(buf, "\x09\1\0\0\0\0\0\0\0", 9);
	n = 9;
	/* ListOk is field 23: tag 0xba 0x01, then its length */
	buf[n++] = 0xba;
	buf[n++] = 0x01;
	buf[n++] = (uint8_t)(body & 0x7f) | 0x80;
	buf[n++] = (uint8_t)((body >> 7) & 0x7f) | 0x80;
	buf[n++] = (uint8_t)(body >> 14);
	/* Item with an empty name: 4 bytes that become a struct of some 300 */
	for (i = 0; i + 4 <= body; i += 4)
		memcpy(buf + n + i, "\x0a\x02\x0a\x00", 4);
	return n + body;
}

static long peak_kib(void)
{
	struct rusage u;

	ASSERT_EQ(getrusage(RUSAGE_SELF, &u), 0);
	return u.ru_maxrss;
}

TEST(hostile_message_takes_bounded_memory)
{
	static uint8_t buf[CQP_MAX_MSG];
	size_t len = bomb_items(buf);
	struct cq_err err = { "" };
	long before = peak_kib();

	/* 64 KiB of items would be 5 MiB of structs; the promise is 2 */
	ASSERT(!cqp_unpack(buf, len, &err));
	ASSERT(strstr(err.text, "more memory"));
	ASSERT(peak_kib() - before < 3 * 1024);
}

TEST(full_listing_fits_the_budget)
{
	static char name[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
	enum { N = 400 };
	static Cqp__Item item[N], *items[N];
	Cqp__ListOk body = CQP__LIST_OK__INIT;
	Cqp__Msg msg = CQP__MSG__INIT, *got;
	int s[2], i;

	pair(s);
	for (i = 0; i < N; i++) {
		cqp__item__init(&item[i]);
		item[i].name = name;
		item[i].has_bytes = 1;
		item[i].bytes = 1;
		items[i] = &item[i];
	}
	body.n_items = N;
	body.items = items;
	msg.body_case = CQP__MSG__BODY_LIST_OK;
	msg.list_ok = &body;
	ASSERT_EQ(cqp_send(s[0], &msg, NULL, 0, 0), 0);
	ASSERT_EQ(cqp_recv(s[1], &frame, 0), 1);
	got = cqp_unpack(frame.buf, frame.len, NULL);
	ASSERT(got);
	ASSERT_EQ(got->list_ok->n_items, N);
	ASSERT(!strcmp(got->list_ok->items[N - 1]->name, name));
	cqp_free(got);
	unpair(s);
}

/* Every message type, cut at every length: refused or parsed, nothing leaked. */
TEST(cut_messages)
{
	Cqp__Seal body = CQP__SEAL__INIT;
	Cqp__Msg msg = CQP__MSG__INIT, *got;
	uint8_t bytes[512] = { 0 }, field[256] = { 0 }, *exact;
	size_t len, n;

	body.parent.data = field;
	body.parent.len = 32;
	body.tokens.data = field;
	body.tokens.len = 256;
	msg.body_case = CQP__MSG__BODY_SEAL;
	msg.seal = &body;
	len = cqp__msg__get_packed_size(&msg);
	ASSERT(len <= sizeof(bytes));
	cqp__msg__pack(&msg, bytes);
	for (n = 1; n <= len; n++) {
		exact = malloc(n);	/* so that a read beyond it is seen */
		ASSERT(exact);
		memcpy(exact, bytes, n);
		got = cqp_unpack(exact, n, NULL);
		ASSERT(n == len || !got || got->body_case != CQP__MSG__BODY_SEAL);
		ASSERT(n < len || got);
		cqp_free(got);
		free(exact);
	}
}
