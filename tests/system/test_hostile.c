/* SPDX-License-Identifier: MIT */
/* A stranger at the socket: nothing it sends harms the daemon or others. */
#include <netinet/in.h>
#include "tests/system/sys.h"

static struct sys s;
static struct cqp_frame frame;

/* Descriptors that cqd has open; 0 where that is not to be seen. */
static int cqd_fds(void)
{
	char path[64];
	int n = 0;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)s.cqd);
	d = opendir(path);
	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n;
}

static void ping_ok(int fd)
{
	Cqp__Ping ping = CQP__PING__INIT;
	DECLARE_MSG(msg, PING, ping, ping);
	Cqp__Msg *r = wire_call(fd, &msg, NULL, 0, NULL);

	ASSERT(r && r->body_case == CQP__MSG__BODY_PONG);
	ASSERT_EQ(r->pong->boot_id.len, 16);
	cqp_free(r);
}

/* At most @n of them, soon: a request's are closed after its answer. */
static void cqd_fds_at_most(int n)
{
	long long end = test_now_ms() + SYS_DEADLINE;

	while (cqd_fds() > n && test_now_ms() < end)
		usleep(500);
	ASSERT_LE(cqd_fds(), n);
}

/* The daemon lives, is the same process, and serves newcomers. */
static void still_served(void)
{
	int fd = wire_open(s.sock);

	ASSERT_OK(fd);
	ping_ok(fd);
	close(fd);
	ASSERT_SYS(kill(s.cqd, 0));
}

/* Text of the Error in @r, which names code @code. */
static void refused(Cqp__Msg *r, int code, const char *text)
{
	ASSERT(r);
	ASSERT_EQ(r->body_case, CQP__MSG__BODY_ERROR);
	if (r->error->code != code)
		FAIL("code %d (%s), want %d", r->error->code, r->error->text, code);
	ASSERT(r->error->text && r->error->text[0]);
	if (text)
		ASSERT_STRHAS(r->error->text, text);
	cqp_free(r);
}

TEST_LIMIT(garbage_datagrams, 60)
{
	uint8_t buf[2048];
	uint64_t x = 1;
	size_t len, i;
	int fd, friend, round;

	sys_start(&s, NULL);
	friend = wire_open(s.sock);
	ASSERT_OK(friend);
	for (round = 0; round < 300; round++) {
		fd = round & 1 ? wire_open(s.sock) : wire_connect(s.sock);
		ASSERT_OK(fd);
		x = synth_mix(x);
		len = 1 + x % (round % 3 ? 64 : sizeof(buf) - 1);
		for (i = 0; i < len; i++)
			buf[i] = (uint8_t)(x = synth_mix(x));
		/* half of them look like messages: an id, then noise */
		if (round & 2 && len > 9)
			buf[0] = 0x09;
		ASSERT_OK(cqp_send_raw(fd, buf, len, NULL, 0, 0));
		close(fd);
		if (round % 50 == 0)
			ping_ok(friend);
	}
	ping_ok(friend);
	close(friend);
	still_served();
	sys_stop(&s);
}

/* Each length of a good message, cut; then nothing must be left over. */
TEST(cut_requests_leave_nothing)
{
	Cqp__ModelOpen body = CQP__MODEL_OPEN__INIT;
	DECLARE_MSG(msg, MODEL_OPEN, model_open, body);
	char name[] = "tiny";
	uint8_t buf[64];
	size_t len, n;
	int fd, before, end;

	sys_start(&s, NULL);
	still_served();
	before = cqd_fds();
	body.name = name;
	len = cqp__msg__pack(&msg, buf);
	for (n = 1; n < len; n++) {
		fd = wire_open(s.sock);
		ASSERT_OK(fd);
		ASSERT_OK(cqp_send_raw(fd, buf, n, NULL, 0, 0));
		end = wire_recv(fd, &frame, 5000);
		ASSERT(end == 0 || end == 1 || end == -ECONNRESET);
		cqp_frame_close(&frame);
		close(fd);
	}
	/* each connection leaves an orphan, since this process lives: a pidfd */
	cqd_fds_at_most(before + (int)len);
	still_served();
	sys_stop(&s);
}

TEST(wrong_descriptors)
{
	Cqp__ArenaOffer offer = CQP__ARENA_OFFER__INIT;
	Cqp__ModelOpen open_body = CQP__MODEL_OPEN__INIT;
	Cqp__Ping ping = CQP__PING__INIT;
	Cqp__Load load = CQP__LOAD__INIT;
	char name[] = "tiny", other[] = "other";
	int zeros[28] = { 0 }, fd, admin, before;
	Cqp__Msg *r;

	sys_start(&s, NULL);
	fd = wire_open(s.sock);
	admin = wire_open(s.admin);
	ASSERT_OK(fd);
	ASSERT_OK(admin);
	{
		DECLARE_MSG(msg, MODEL_OPEN, model_open, open_body);

		open_body.name = name;
		refused(wire_call(fd, &msg, zeros, 1, NULL), -EINVAL, "descriptor");
		r = wire_call(fd, &msg, NULL, 0, &frame);
		ASSERT(r && r->body_case == CQP__MSG__BODY_MODEL_OK);
		ASSERT_EQ(frame.n_fds, 2);
		offer.shard = r->model_ok->shard;
		cqp_frame_close(&frame);
		cqp_free(r);
	}
	before = cqd_fds();
	{
		DECLARE_MSG(msg, PING, ping, ping);

		refused(wire_call(fd, &msg, zeros, 28, NULL), -EINVAL, "descriptor");
	}
	{
		DECLARE_MSG(msg, ARENA_OFFER, arena_offer, offer);

		offer.bytes = 1 << 20;
		refused(wire_call(fd, &msg, NULL, 0, NULL), -EINVAL, "descriptor");
		refused(wire_call(fd, &msg, zeros, 2, NULL), -EINVAL, "descriptor");
	}
	{
		DECLARE_MSG(msg, LOAD, load, load);

		load.name = other;
		refused(wire_call(admin, &msg, NULL, 0, NULL), -EINVAL, "descriptor");
		refused(wire_call(admin, &msg, zeros, 2, NULL), -EINVAL, "descriptor");
	}
	cqd_fds_at_most(before);
	ping_ok(fd);
	close(fd);
	close(admin);
	sys_stop(&s);
}

/* An arena has to be memory that cannot shrink under the daemon. */
TEST(arenas_that_are_none)
{
	Cqp__ModelOpen open_body = CQP__MODEL_OPEN__INIT;
	Cqp__ArenaOffer offer = CQP__ARENA_OFFER__INIT;
	DECLARE_MSG(msg, ARENA_OFFER, arena_offer, offer);
	DECLARE_MSG(omsg, MODEL_OPEN, model_open, open_body);
	char name[] = "tiny";
	int fd, p[2], file, memfd;
	Cqp__Msg *r;

	sys_start(&s, NULL);
	fd = wire_open(s.sock);
	ASSERT_OK(fd);
	open_body.name = name;
	r = wire_call(fd, &omsg, NULL, 0, NULL);
	ASSERT(r && r->body_case == CQP__MSG__BODY_MODEL_OK);
	offer.shard = r->model_ok->shard;
	cqp_free(r);
	offer.bytes = 1 << 20;
	ASSERT_SYS(pipe2(p, O_CLOEXEC));
	refused(wire_call(fd, &msg, p, 1, NULL), -EINVAL, NULL);
	file = open(s.log, O_RDONLY | O_CLOEXEC);
	ASSERT_SYS(file);
	refused(wire_call(fd, &msg, &file, 1, NULL), -EINVAL, NULL);
	memfd = memfd_create("arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	ASSERT_SYS(memfd);
	ASSERT_SYS(ftruncate(memfd, 1 << 20));
	refused(wire_call(fd, &msg, &memfd, 1, NULL), -EINVAL, NULL);
	ASSERT_SYS(fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK));
	offer.bytes = (1 << 20) + 4096;
	refused(wire_call(fd, &msg, &memfd, 1, NULL), -EINVAL, NULL);
	offer.bytes = 1 << 20;
	r = wire_call(fd, &msg, &memfd, 1, NULL);
	ASSERT(r && r->body_case == CQP__MSG__BODY_ARENA_OK);
	cqp_free(r);
	close(p[0]);
	close(p[1]);
	close(file);
	close(memfd);
	close(fd);
	sys_stop(&s);
}

/* A datagram over a limit ends the connection, and only that one. */
TEST(over_the_limits_of_a_datagram)
{
	static uint8_t big[CQP_MAX_MSG + 8];
	struct iovec io = { .iov_base = big, .iov_len = sizeof(big) };
	struct msghdr h = { .msg_iov = &io, .msg_iovlen = 1 };
	union {
		char b[CMSG_SPACE(sizeof(int) * 100)];
		struct cmsghdr align;
	} control = { { 0 } };
	struct cmsghdr *c;
	int fd, friend, before, ret;

	sys_start(&s, NULL);
	friend = wire_open(s.sock);
	ASSERT_OK(friend);
	before = cqd_fds();
	fd = wire_connect(s.sock);
	ASSERT_OK(fd);
	ASSERT_EQ(send(fd, big, sizeof(big), 0), sizeof(big));
	while ((ret = wire_recv(fd, &frame, 5000)) == 1)
		;
	ASSERT(ret == 0 || ret == -ECONNRESET);
	close(fd);
	fd = wire_connect(s.sock);
	ASSERT_OK(fd);
	io.iov_len = 8;
	h.msg_control = control.b;
	h.msg_controllen = sizeof(control.b);
	c = CMSG_FIRSTHDR(&h);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int) * 100);
	ASSERT_EQ(sendmsg(fd, &h, 0), 8);
	while ((ret = wire_recv(fd, &frame, 5000)) == 1)
		;
	ASSERT(ret == 0 || ret == -ECONNRESET);
	close(fd);
	ping_ok(friend);
	cqd_fds_at_most(before);
	close(friend);
	sys_stop(&s);
}

TEST(versions_and_features)
{
	Cqp__Hello hello = CQP__HELLO__INIT;
	DECLARE_MSG(msg, HELLO, hello, hello);
	int fd;

	sys_start(&s, NULL);
	fd = wire_connect(s.sock);
	ASSERT_OK(fd);
	hello.protocol = CQP_VERSION + 1;
	refused(wire_call(fd, &msg, NULL, 0, NULL), -EPROTO, "2");
	close(fd);
	fd = wire_connect(s.sock);
	hello.protocol = CQP_VERSION;
	hello.incompat = 1ull << 63;
	refused(wire_call(fd, &msg, NULL, 0, NULL), -EPROTO, NULL);
	close(fd);
	fd = wire_connect(s.sock);
	hello.incompat = 0;
	hello.compat = ~0ull;
	ASSERT_EQ(wire_code(wire_call(fd, &msg, NULL, 0, NULL)), 0);
	/* and only once */
	ASSERT_NE(wire_code(wire_call(fd, &msg, NULL, 0, NULL)), 0);
	close(fd);
	still_served();
	sys_stop(&s);
}

TEST(out_of_turn)
{
	static const uint8_t newer[] = { 0x09, 7, 0, 0, 0, 0, 0, 0, 0, 0xa2, 0x38, 2, 1, 2 };
	Cqp__ModelOpen open_body = CQP__MODEL_OPEN__INIT;
	Cqp__Status status = CQP__STATUS__INIT;
	Cqp__Pong pong = CQP__PONG__INIT;
	char name[] = "tiny";
	Cqp__Msg *r;
	int fd;

	sys_start(&s, NULL);
	fd = wire_connect(s.sock);
	ASSERT_OK(fd);
	open_body.name = name;
	{
		DECLARE_MSG(msg, MODEL_OPEN, model_open, open_body);

		refused(wire_call(fd, &msg, NULL, 0, NULL), -EPROTO, NULL);
	}
	close(fd);
	fd = wire_open(s.sock);
	ASSERT_OK(fd);
	{
		DECLARE_MSG(msg, STATUS, status, status);

		refused(wire_call(fd, &msg, NULL, 0, NULL), -EACCES, NULL);
	}
	{
		/* an answer is no request */
		DECLARE_MSG(msg, PONG, pong, pong);
		char version[] = "0";

		pong.version = version;
		refused(wire_call(fd, &msg, NULL, 0, NULL), -EOPNOTSUPP, NULL);
	}
	ASSERT_OK(cqp_send_raw(fd, newer, sizeof(newer), NULL, 0, 0));
	ASSERT_EQ(wire_recv(fd, &frame, 5000), 1);
	r = cqp_unpack(frame.buf, frame.len, NULL);
	ASSERT(r);
	ASSERT_EQ(r->id, 7);
	refused(r, -EOPNOTSUPP, NULL);
	ping_ok(fd);
	close(fd);
	sys_stop(&s);
}

TEST(namespaces_are_for_members)
{
	int fd;

	sys_start(&s, NULL);
	fd = wire_connect(s.sock);
	ASSERT_EQ(wire_hello_as(fd, CQP_VERSION, 0, "nowhere"), -EACCES);
	close(fd);
	fd = wire_connect(s.sock);
	ASSERT_EQ(wire_hello_as(fd, CQP_VERSION, 0, "blue"), -EACCES);
	close(fd);
	fd = wire_connect(s.sock);
	ASSERT_EQ(wire_hello_as(fd, CQP_VERSION, 0, "red"), 0);
	close(fd);
	sys_stop(&s);
}

static int lookup_code(int fd, uint32_t shard, size_t bytes)
{
	static uint8_t keys[CQP_MAX_KEYS * 32 + 64];
	Cqp__Lookup body = CQP__LOOKUP__INIT;
	DECLARE_MSG(msg, LOOKUP, lookup, body);

	body.shard = shard;
	body.keys.data = keys;
	body.keys.len = bytes;
	return wire_code(wire_call(fd, &msg, NULL, 0, NULL));
}

static int seal_code(int fd, uint32_t shard, uint32_t arena, uint64_t offset,
		     size_t token_bytes, size_t parent_bytes, size_t extra_bytes)
{
	static uint8_t bytes[4096];
	Cqp__Seal body = CQP__SEAL__INIT;
	DECLARE_MSG(msg, SEAL, seal, body);

	body.shard = shard;
	body.arena = arena;
	body.parent = (ProtobufCBinaryData){ parent_bytes, bytes };
	body.tokens = (ProtobufCBinaryData){ token_bytes, bytes };
	body.has_extra = extra_bytes > 0;
	body.extra = (ProtobufCBinaryData){ extra_bytes, bytes };
	body.offset = offset;
	return wire_code(wire_call(fd, &msg, NULL, 0, NULL));
}

static int open_code(int fd, const char *model, uint32_t lb, uint32_t le, uint32_t hb,
		     uint32_t he)
{
	Cqp__ModelOpen body = CQP__MODEL_OPEN__INIT;
	DECLARE_MSG(msg, MODEL_OPEN, model_open, body);
	char name[256];

	snprintf(name, sizeof(name), "%s", model);
	body.name = name;
	body.has_layer_begin = body.has_layer_end = 1;
	body.has_head_begin = body.has_head_end = 1;
	body.layer_begin = lb;
	body.layer_end = le;
	body.head_begin = hb;
	body.head_end = he;
	return wire_code(wire_call(fd, &msg, NULL, 0, NULL));
}

static void refuse_models(int fd)
{
	char long_name[200];

	memset(long_name, 'x', sizeof(long_name) - 1);
	long_name[sizeof(long_name) - 1] = 0;
	ASSERT_EQ(open_code(fd, "nothing", 0, 0, 0, 0), -ENOENT);
	ASSERT_NE(open_code(fd, long_name, 0, 0, 0, 0), 0);
	ASSERT_NE(open_code(fd, "", 0, 0, 0, 0), 0);
	ASSERT_EQ(open_code(fd, "tiny", 0, 3, 0, 0), -EINVAL);
	ASSERT_EQ(open_code(fd, "tiny", 1, 1, 0, 2), -EINVAL);
	ASSERT_EQ(open_code(fd, "tiny", 2, 1, 0, 2), -EINVAL);
	ASSERT_EQ(open_code(fd, "tiny", 0, 2, 0, 0xffffffff), -EINVAL);
	ASSERT_EQ(open_code(fd, "tiny", 0xffffffff, 0, 0, 0), -EINVAL);
}

TEST(fields_out_of_range)
{
	Cqp__SegmentGet get = CQP__SEGMENT_GET__INIT;
	DECLARE_MSG(gmsg, SEGMENT_GET, segment_get, get);
	Cqp__Release rel = CQP__RELEASE__INIT;
	DECLARE_MSG(rmsg, RELEASE, release, rel);
	struct cqp_page page = { 0 };
	uint32_t shard = 0;
	int fd, i;

	sys_start(&s, NULL);
	fd = wire_open(s.sock);
	ASSERT_OK(fd);
	/* no shard opened yet */
	for (i = -2; i < 3; i++)
		ASSERT_NE(lookup_code(fd, (uint32_t)i, 32), 0);
	refuse_models(fd);
	ASSERT_EQ(open_code(fd, "tiny", 0, 2, 0, 2), 0);
	while (lookup_code(fd, shard, 32) && shard < 16)
		shard++;
	ASSERT_LT(shard, 16);
	ASSERT_EQ(lookup_code(fd, shard, 31), -EINVAL);
	ASSERT_EQ(lookup_code(fd, shard, CQP_MAX_KEYS * 32), 0);
	ASSERT_EQ(lookup_code(fd, shard, CQP_MAX_KEYS * 32 + 32), -EINVAL);
	ASSERT_NE(seal_code(fd, shard, 0xffffffff, 0, 256, 32, 0), 0);
	ASSERT_EQ(seal_code(fd, shard, 0, 0, 255, 32, 0), -EINVAL);
	ASSERT_EQ(seal_code(fd, shard, 0, 0, 256, 31, 0), -EINVAL);
	ASSERT_EQ(seal_code(fd, shard, 0, 0, 256, 32, CQP_MAX_EXTRA + 1), -EINVAL);
	get.segment = 0;
	ASSERT_EQ(wire_code(wire_call(fd, &gmsg, NULL, 0, NULL)), -ENOENT);
	get.segment = 0xffffffff;
	ASSERT_EQ(wire_code(wire_call(fd, &gmsg, NULL, 0, NULL)), -ENOENT);
	rel.pages.data = (uint8_t *)&page;
	rel.pages.len = sizeof(page);
	ASSERT_EQ(wire_code(wire_call(fd, &rmsg, NULL, 0, NULL)), -EINVAL);
	rel.pages.len = sizeof(page) - 1;
	ASSERT_EQ(wire_code(wire_call(fd, &rmsg, NULL, 0, NULL)), -EINVAL);
	ping_ok(fd);
	close(fd);
	sys_stop(&s);
}

/* One that asks and never reads: others do not notice. */
TEST(a_client_that_never_reads)
{
	Cqp__List list = CQP__LIST__INIT;
	DECLARE_MSG(msg, LIST, list, list);
	int deaf, friend, i;

	sys_start(&s, NULL);
	deaf = wire_open(s.admin);
	ASSERT_OK(deaf);
	for (i = 0; i < 5000; i++) {
		msg.id = (uint64_t)i;
		if (cqp_send(deaf, &msg, NULL, 0, MSG_DONTWAIT) == -EAGAIN)
			break;
	}
	ASSERT_LT(i, 5000);	/* the daemon has stopped reading it */
	friend = wire_open(s.sock);
	ASSERT_OK(friend);
	for (i = 0; i < 100; i++)
		ping_ok(friend);
	close(friend);
	close(deaf);
	sys_stop(&s);
}

TEST(too_many_connections)
{
	static const struct sys_opts few = { .daemon = "max_connections = 8\n" };
	int fd[12], i, n = 0;

	sys_start(&s, &few);
	for (i = 0; i < 12; i++) {
		fd[i] = wire_connect(s.sock);
		ASSERT_OK(fd[i]);
		n += wire_hello(fd[i]) == 0;
	}
	ASSERT_EQ(n, 8);
	for (i = 0; i < 12; i++)
		close(fd[i]);
	for (i = 0; i < 2000; i++) {
		fd[0] = wire_open(s.sock);
		if (fd[0] >= 0)
			break;
		usleep(1000);
	}
	ASSERT_OK(fd[0]);
	close(fd[0]);
	sys_stop(&s);
}

/* A TCP connection whose last close() waits for a minute, and its other end. */
static int slow_to_close(int *other)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000001) };
	struct linger linger = { 1, 60 };
	static const char junk[65536];
	socklen_t len = sizeof(a);
	int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (l < 0 || fd < 0 || bind(l, (struct sockaddr *)&a, sizeof(a)) || listen(l, 1) ||
	    getsockname(l, (struct sockaddr *)&a, &len) ||
	    connect(fd, (struct sockaddr *)&a, sizeof(a)))
		SKIP("no IPv4 on the loopback interface");
	*other = accept4(l, NULL, NULL, SOCK_CLOEXEC);
	ASSERT_SYS(*other);
	close(l);
	while (send(fd, junk, sizeof(junk), MSG_DONTWAIT) > 0)
		;
	ASSERT_SYS(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)));
	return fd;
}

/* @n times the same descriptor beside one byte of garbage. */
static void send_fds(int sock, int fd, unsigned int n)
{
	struct iovec io = { .iov_base = &n, .iov_len = 1 };
	struct msghdr h = { .msg_iov = &io, .msg_iovlen = 1 };
	union {
		char b[CMSG_SPACE(sizeof(int) * 253)];
		struct cmsghdr align;
	} control = { { 0 } };
	struct cmsghdr *c;
	unsigned int i;

	h.msg_control = control.b;
	h.msg_controllen = CMSG_SPACE(sizeof(int) * n);
	c = CMSG_FIRSTHDR(&h);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int) * n);
	for (i = 0; i < n; i++)
		memcpy(CMSG_DATA(c) + i * sizeof(int), &fd, sizeof(fd));
	ASSERT_EQ(sendmsg(sock, &h, MSG_NOSIGNAL), 1);
}

/*
 * close() may wait for others: for a minute (here), or as long as the file
 * system of a stranger likes. The loop must not.
 */
TEST(descriptors_that_will_not_close)
{
	Cqp__Ping ping = CQP__PING__INIT;
	DECLARE_MSG(msg, PING, ping, ping);
	int friend, fd, slow, other[4], before, i;

	sys_start(&s, NULL);
	friend = wire_open(s.sock);
	ASSERT_OK(friend);
	fd = wire_open(s.sock);
	ASSERT_OK(fd);
	before = cqd_fds();
	/* beside a request that takes none */
	slow = slow_to_close(&other[0]);
	ASSERT_OK(cqp_send(fd, &msg, &slow, 1, 0));
	close(slow);
	ping_ok(friend);
	/* more of them than a message may carry */
	slow = slow_to_close(&other[1]);
	send_fds(fd, slow, 253);
	close(slow);
	ping_ok(friend);
	close(fd);
	/* behind garbage, so that nobody reads them */
	fd = wire_connect(s.sock);
	slow = slow_to_close(&other[2]);
	ASSERT_SYS(kill(s.cqd, SIGSTOP));
	ASSERT_OK(cqp_send_raw(fd, (const uint8_t *)"x", 1, NULL, 0, 0));
	ASSERT_EQ(send(fd, "", 0, 0), 0);
	send_fds(fd, slow, 1);
	close(slow);
	ASSERT_SYS(kill(s.cqd, SIGCONT));
	ping_ok(friend);
	close(fd);
	/* in a connection that its owner closed */
	fd = wire_connect(s.sock);
	slow = slow_to_close(&other[3]);
	ASSERT_SYS(kill(s.cqd, SIGSTOP));
	send_fds(fd, slow, 2);
	close(slow);
	close(fd);
	ASSERT_SYS(kill(s.cqd, SIGCONT));
	ping_ok(friend);
	cqd_fds_at_most(before);
	close(friend);
	for (i = 0; i < 4; i++)
		close(other[i]);
	sys_stop(&s);
}

/* Who takes replies with descriptors and never reads them keeps none from others. */
TEST(descriptors_in_flight_are_shared_out)
{
	Cqp__ModelOpen body = CQP__MODEL_OPEN__INIT;
	DECLARE_MSG(msg, MODEL_OPEN, model_open, body);
	struct rlimit rl = { 1200, 1200 };
	struct pollfd p;
	struct wire_shard w;
	char name[] = "tiny";
	int deaf[8], friend, i, n;

	ASSERT_SYS(setrlimit(RLIMIT_NOFILE, &rl));	/* cqd inherits it */
	sys_start(&s, NULL);
	body.name = name;
	for (i = 0; i < 8; i++) {
		deaf[i] = wire_open(s.sock);
		ASSERT_OK(deaf[i]);
		p = (struct pollfd){ .fd = deaf[i], .events = POLLOUT };
		for (n = 0; n < 2000; n++) {
			msg.id = 1;
			if (cqp_send(deaf[i], &msg, NULL, 0, MSG_DONTWAIT) == -EAGAIN &&
			    poll(&p, 1, 500) == 0)
				break;
		}
	}
	friend = wire_open(s.sock);
	ASSERT_OK(friend);
	for (i = 0; i < 50; i++)
		ASSERT_OK(wire_model_open(friend, "tiny", &w));
	close(friend);
	for (i = 0; i < 8; i++)
		close(deaf[i]);
	sys_stop(&s);
}
