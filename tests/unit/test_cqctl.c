// SPDX-License-Identifier: MIT
/*
 * cqctl against daemons that are away, of another version, or not what they
 * seem; and its words, numbers and options.
 */
#include <sys/socket.h>
#include <sys/un.h>
#include "tests/harness.h"
#include "client/cqctl/cqctl.h"

static const struct ctl_command command = { "test", "A [B]", "summary", NULL, NULL };

/**
 * struct fake - answers of a pretended cqd, in order; NULL: it hangs up
 */
struct fake {
	const Cqp__Msg *answer[8];
	int n;
};

/* Before each answer but the first: the same to nobody, with descriptors. */
static bool strays;

static char path[300];

static void serve(int listener, const struct fake *fake)
{
	static struct cqp_frame frame;
	Cqp__Msg reply, *req;
	int sock = accept(listener, NULL, NULL), two[] = { sock, sock }, i;

	for (i = 0; i < fake->n; i++) {
		ASSERT_EQ(cqp_recv(sock, &frame, 0), 1);
		req = cqp_unpack(frame.buf, frame.len, NULL);
		ASSERT(req);
		if (!i)
			ASSERT_EQ(req->body_case, CQP__MSG__BODY_HELLO);
		if (!fake->answer[i])
			break;
		reply = *fake->answer[i];
		reply.id = req->id + 1;
		if (i && strays)
			ASSERT_OK(cqp_send(sock, &reply, two, 2, 0));
		reply.id--;
		cqp_free(req);
		ASSERT_OK(cqp_send(sock, &reply, NULL, 0, 0));
	}
	_exit(0);
}

/* A cqd in a child process, behind a socket at path. */
static void start(const struct fake *fake)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	pid_t pid;

	snprintf(path, sizeof(path), "%s/cqd.sock", test_dir());
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%.100s", path);
	unlink(path);
	ASSERT_SYS(bind(listener, (struct sockaddr *)&sa, sizeof(sa)));
	ASSERT_SYS(listen(listener, 1));
	fflush(stdout);
	pid = fork();
	if (!pid)
		serve(listener, fake);
	close(listener);
}

static struct ctl client(void)
{
	return (struct ctl){ .socket = path, .cmd = &command, .sock = -1, .next_id = 1 };
}

static Cqp__HelloOk hello_ok(void)
{
	static uint8_t boot[16];
	static char tenant[] = "";
	Cqp__HelloOk ok = CQP__HELLO_OK__INIT;

	ok.protocol = CQP_VERSION;
	ok.boot_id.data = boot;
	ok.boot_id.len = sizeof(boot);
	ok.tenant = tenant;
	return ok;
}

static Cqp__Msg hello_msg(Cqp__HelloOk *ok)
{
	Cqp__Msg msg = CQP__MSG__INIT;

	msg.body_case = CQP__MSG__BODY_HELLO_OK;
	msg.hello_ok = ok;
	return msg;
}

TEST(absent)
{
	struct ctl c = client();

	snprintf(path, sizeof(path), "%s/nobody", test_dir());
	ASSERT_EQ(ctl_connect(&c), -ENOENT);
	ASSERT_STRHAS(c.err.text, path);
	ASSERT_STRHAS(c.err.text, "--socket");
	memset(path, 'x', 200);
	ASSERT_EQ(ctl_connect(&c), -ENAMETOOLONG);
	ASSERT_EQ(c.sock, -1);
}

TEST(socket_of_the_environment)
{
	struct ctl c = client();

	c.socket = NULL;
	ASSERT_SYS(setenv("CQ_ADMIN_SOCKET", "/nowhere/in/env", 1));
	ASSERT_LT(ctl_connect(&c), 0);
	ASSERT_STRHAS(c.err.text, "/nowhere/in/env");
	ASSERT_SYS(unsetenv("CQ_ADMIN_SOCKET"));
	if (access(CQP_DEFAULT_ADMIN, F_OK)) {
		ASSERT_LT(ctl_connect(&c), 0);
		ASSERT_STRHAS(c.err.text, CQP_DEFAULT_ADMIN);
	}
}

TEST(versions)
{
	Cqp__HelloOk ok = hello_ok();
	Cqp__Msg msg = hello_msg(&ok);
	struct fake fake = { { &msg }, 1 };
	struct ctl c = client();

	start(&fake);
	ASSERT_OK(ctl_connect(&c));
	ctl_disconnect(&c);
	ok.protocol = 77;
	start(&fake);
	ASSERT_EQ(ctl_connect(&c), -EPROTO);
	ASSERT_STRHAS(c.err.text, "protocol 77");
	ASSERT_EQ(c.sock, -1);
	ok.protocol = CQP_VERSION;
	ok.incompat = 1ull << 40;
	start(&fake);
	ASSERT_EQ(ctl_connect(&c), -EPROTO);
	ASSERT_STRHAS(c.err.text, "0x10000000000");
	ok.incompat = 0;
	ok.compat = ~0ull;
	start(&fake);
	ASSERT_OK(ctl_connect(&c));
	ctl_disconnect(&c);
}

TEST(refusals)
{
	char text[] = "no such thing";
	Cqp__HelloOk ok = hello_ok();
	Cqp__Msg hello = hello_msg(&ok), error = CQP__MSG__INIT, req = CQP__MSG__INIT;
	Cqp__Error body = CQP__ERROR__INIT;
	Cqp__Ping ping = CQP__PING__INIT;
	struct fake fake = { { &hello, &error, &hello, NULL }, 4 };
	struct ctl c = client();
	int ret = 0;

	error.body_case = CQP__MSG__BODY_ERROR;
	error.error = &body;
	body.code = -EDOM;
	body.text = text;
	req.body_case = CQP__MSG__BODY_PING;
	req.ping = &ping;
	start(&fake);
	ASSERT(!ctl_call(&c, &req, -1, CQP__MSG__BODY_PONG, &ret));
	ASSERT_EQ(ret, -EDOM);
	ASSERT_STREQ(c.err.text, "no such thing");
	ASSERT(!ctl_call(&c, &req, -1, CQP__MSG__BODY_PONG, &ret));
	ASSERT_EQ(ret, -EPROTO);
	ASSERT_STRHAS(c.err.text, "another kind");
	ASSERT(!ctl_call(&c, &req, -1, CQP__MSG__BODY_PONG, &ret));
	ASSERT_EQ(ret, -ECONNRESET);
	ctl_disconnect(&c);
}

/* Descriptors are kept of the answer alone; the harness counts the others. */
TEST(descriptors_of_strays)
{
	Cqp__HelloOk ok = hello_ok();
	Cqp__Msg hello = hello_msg(&ok), pong = CQP__MSG__INIT, req = CQP__MSG__INIT;
	struct fake fake = { { &hello, &pong }, 2 };
	Cqp__Ping ping = CQP__PING__INIT;
	Cqp__Pong body = CQP__PONG__INIT;
	int ret = 0, fds[2] = { -1, -1 };
	struct ctl c = client();

	body.version = ok.tenant;
	body.boot_id = ok.boot_id;
	pong.body_case = CQP__MSG__BODY_PONG;
	pong.pong = &body;
	req.body_case = CQP__MSG__BODY_PING;
	req.ping = &ping;
	strays = true;
	start(&fake);
	ASSERT_OK(ctl_connect(&c));
	c.fds = fds;
	cqp_free(ctl_call(&c, &req, -1, CQP__MSG__BODY_PONG, &ret));
	ASSERT_OK(ret);
	ASSERT_EQ(fds[0], -1);
	ASSERT_EQ(fds[1], -1);
	ctl_disconnect(&c);
}

/* What a command prints, in a buffer. */
static int output_of(struct ctl *c, int (*run)(struct ctl *c, int argc, char **argv),
		     char *arg, char *out, size_t n)
{
	char file[320];
	char *argv[] = { arg };
	int fd, saved = dup(1), ret;
	ssize_t got;

	snprintf(file, sizeof(file), "%s/out", test_dir());
	fflush(stdout);
	fd = open(file, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	ASSERT_SYS(dup2(fd, 1));
	ret = run(c, arg ? 1 : 0, argv);
	fflush(stdout);
	ASSERT_SYS(dup2(saved, 1));
	got = pread(fd, out, n - 1, 0);
	out[got] = '\0';
	close(fd);
	close(saved);
	return ret;
}

/* Memory to be mapped, of which no slot is to be looked at. */
TEST(look_lies)
{
	char device[] = "GPU-1", gpu[] = "--gpu", *argv[] = { gpu, device };
	Cqp__LookSegment seg = CQP__LOOK_SEGMENT__INIT, *segs = &seg;
	Cqp__LookOk body = CQP__LOOK_OK__INIT;
	Cqp__HelloOk ok = hello_ok();
	Cqp__Msg hello = hello_msg(&ok), look = CQP__MSG__INIT;
	struct fake fake = { { &hello, &look }, 2 };
	static uint8_t handle[64];
	struct ctl c = client();

	look.body_case = CQP__MSG__BODY_LOOK_OK;
	look.look_ok = &body;
	body.device = device;
	body.segments = &segs;
	body.n_segments = 1;
	seg.bytes = sizeof(handle);
	seg.has_handle = true;
	seg.handle = (ProtobufCBinaryData){ sizeof(handle), handle };
	start(&fake);
	ASSERT_NE(ctl_cmd_verify(&c, 2, argv), 0);
	ASSERT_STRHAS(c.err.text, "malformed answer to Look");
	ctl_disconnect(&c);
}

TEST(lists_in_parts)
{
	char one[] = "one\x1b[31m", two[] = "two", k[] = "4c8b", out[4000], arg[] = "models";
	Cqp__HelloOk ok = hello_ok();
	Cqp__Msg hello = hello_msg(&ok), first = CQP__MSG__INIT, last;
	Cqp__ListOk part = CQP__LIST_OK__INIT, end = CQP__LIST_OK__INIT;
	Cqp__Item a = CQP__ITEM__INIT, b = CQP__ITEM__INIT, *at[2] = { &a, &b };
	struct fake fake = { { &hello, &first, &last }, 3 };
	struct ctl c = client();

	a.name = one;
	b.name = two;
	b.k = k;
	b.has_id = true;
	b.id = UINT64_MAX;
	part.n_items = end.n_items = 1;
	part.items = at;
	part.has_cursor = true;
	part.cursor = 5;
	end.items = at + 1;
	first.body_case = CQP__MSG__BODY_LIST_OK;
	last = first;
	first.list_ok = &part;
	last.list_ok = &end;
	start(&fake);
	ASSERT_EQ(output_of(&c, ctl_cmd_list, arg, out, sizeof(out)), CTL_OK);
	ASSERT_STRHAS(out, "NAME ");
	ASSERT_STRHAS(out, "one?[31m");
	ASSERT_STRHAS(out, "\ntwo       4c8b");
	ctl_disconnect(&c);
	c.json = true;
	start(&fake);
	ASSERT_EQ(output_of(&c, ctl_cmd_list, NULL, out, sizeof(out)), CTL_OK);
	/* a number is there when it is 0 if it belongs to what is listed */
	ASSERT_STRHAS(out, "{\"models\":[{\"name\":\"one\\u001B[31m\",\"bytes\":0,"
			   "\"pages\":0,\"layers\":0,\"heads\":0,\"head_dim\":0,\"sinks\":0,"
			   "\"window\":0,\"slot_bytes\":0},{\"name\":\"two\",\"k\":\"4c8b\",");
	ASSERT_STRHAS(out, ",\"id\":\"ffffffffffffffff\"}]}\n");
	ctl_disconnect(&c);
	/* a list that does not move on */
	end.has_cursor = true;
	end.cursor = 5;
	start(&fake);
	ASSERT_EQ(output_of(&c, ctl_cmd_list, NULL, out, sizeof(out)), CTL_FAILED);
	ASSERT_STRHAS(out, "\"error\":\"cqd's listing does not end\"");
	ctl_disconnect(&c);
}

TEST(status_is_all_there)
{
	Cqp__HelloOk ok = hello_ok();
	Cqp__StatusOk s = CQP__STATUS_OK__INIT;
	Cqp__Msg hello = hello_msg(&ok), msg = CQP__MSG__INIT;
	struct fake fake = { { &hello, &msg }, 2 };
	char version[] = "9.9", kernels[] = "abacus", out[4000], host[] = "host", g[] = "g0";
	char memfd[] = "memfd", vmm[] = "cuda-vmm";
	Cqp__Pool pool[2] = { CQP__POOL__INIT, CQP__POOL__INIT }, *pools[] = { pool, pool + 1 };
	struct ctl c = client();
	json_t *o;

	pool[0].name = host;
	pool[0].backend = memfd;
	pool[1].name = g;
	pool[1].backend = vmm;
	pool[1].reserved = 12 << 20;
	s.n_pools = 2;
	s.pools = pools;
	s.version = version;
	s.kernels = kernels;
	s.boot_id = ok.boot_id;
	s.pool_used = 28672;
	s.verify_pending = 1234;
	s.has_fdstore = true;
	s.fdstore = 17;
	s.has_transfer_done = true;
	s.has_transfer_total = true;
	s.has_draining = true;
	s.has_persist_bytes = true;
	s.has_restored = true;
	s.restored = 3;
	msg.body_case = CQP__MSG__BODY_STATUS_OK;
	msg.status_ok = &s;
	start(&fake);
	ASSERT_EQ(output_of(&c, ctl_cmd_status, NULL, out, sizeof(out)), CTL_OK);
	ASSERT_STRHAS(out, "28.0 KiB in use");
	ASSERT_STRHAS(out, "abacus");
	ASSERT_STRHAS(out, "1234 pages still");
	ASSERT_STRHAS(out, "pages from files 3,");
	ASSERT_STRHAS(out, "g0 (cuda-vmm)");
	ASSERT_STRHAS(out, "12.0 MiB reserved");
	ctl_disconnect(&c);
	c.json = true;
	start(&fake);
	ASSERT_EQ(output_of(&c, ctl_cmd_status, NULL, out, sizeof(out)), CTL_OK);
	o = json_loads(out, 0, NULL);
	ASSERT(o);
	/* every field of the message, and the boot id as text */
	ASSERT_EQ(json_object_size(o), cqp__status_ok__descriptor.n_fields);
	ASSERT_EQ(json_integer_value(json_object_get(o, "pool_used")), 28672);
	ASSERT_EQ(json_integer_value(json_object_get(o, "fdstore")), 17);
	ASSERT_EQ(json_integer_value(json_object_get(o, "restored")), 3);
	ASSERT_EQ(json_array_size(json_object_get(o, "pools")), 2);
	json_decref(o);
	ctl_disconnect(&c);
}

#define MANY 65536

/* Nanoseconds for each of @n items being found among all of them. */
static double find_ns(size_t n)
{
	static Cqp__Item items[MANY], like = CQP__ITEM__INIT;
	static Cqp__Item *at[MANY];
	char a[] = "a", b[] = "b", none[] = "c";
	struct ctl_items it = { .item = at, .n = n };
	struct timespec from, to;
	size_t i;

	for (i = 0; i < n; i++) {	/* two of each id, in no order */
		items[i].id = i * 2654435761u % MANY / 2;
		items[i].name = i * 2654435761u % 2 ? a : b;
		at[i] = &items[i];
	}
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
	ctl_items_order(&it);
	for (i = 0; i < n; i++)
		ASSERT(ctl_items_find(&it, &items[i]) == &items[i]);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to);
	like.name = none;
	ASSERT(!ctl_items_find(&it, &like));
	like.id = UINT64_MAX;
	like.name = a;
	ASSERT(!ctl_items_find(&it, &like));
	it.n = 0;
	ASSERT(!ctl_items_find(&it, &like));
	return ((double)(to.tv_sec - from.tv_sec) * 1e9 +
		(double)(to.tv_nsec - from.tv_nsec)) / (double)n;
}

/* Each of so many clients is looked for once a second by cqctl top. */
TEST(items_are_found_in_no_time)
{
	double few, many;

	find_ns(MANY / 64);	/* memory is there */
	few = find_ns(MANY / 64);
	many = find_ns(MANY);
	printf("# %.0f ns each among %d, %.0f among %d\n", few, MANY / 64, many, MANY);
	ASSERT(many < 16 * few);
}

TEST(options)
{
	struct ctl c = client();
	const char *pos[2], *value = NULL;
	bool flag = false;
	struct ctl_opt opts[] = {
		{ "out", 'o', &value, NULL }, { "fast", 0, NULL, &flag },
		{ NULL, 0, NULL, NULL },
	};
	static const struct {
		const char *arg[6];
		int ret;
	} use[] = {
		{ { "a" }, CTL_GO_ON },
		{ { "--fast", "a", "--out", "x", "b" }, CTL_GO_ON },
		{ { "a", "--out=x", "--json", "--socket=/s" }, CTL_GO_ON },
		{ { "-ox", "--", "-a" }, CTL_GO_ON },
		{ { "-" }, CTL_GO_ON },
		{ { "a", "--out" }, CTL_USAGE },
		{ { "a", "--ou", "x" }, CTL_USAGE },
		{ { "a", "--fast=1" }, CTL_USAGE },
		{ { "a", "--fastest" }, CTL_USAGE },
		{ { "a", "--outer", "x" }, CTL_USAGE },
		{ { "a", "-q" }, CTL_USAGE },
		{ { "a", "b", "c" }, CTL_USAGE },
		{ { NULL }, CTL_USAGE },
	};
	char *argv[6];
	size_t i;
	int n;

	for (i = 0; i < ARRAY_SIZE(use); i++) {
		for (n = 0; n < 6 && use[i].arg[n]; n++)
			argv[n] = strdup(use[i].arg[n]);
		value = NULL;
		flag = false;
		ASSERT_EQ(ctl_parse(&c, n, argv, opts, pos, 1, 2), use[i].ret);
		if (i == 1)
			ASSERT(flag && !strcmp(value, "x") && !strcmp(pos[1], "b"));
		if (i == 2)
			ASSERT(c.json && !strcmp(value, "x") &&
			       !strcmp(c.socket, "/s") && !pos[1]);
		if (i == 3)
			ASSERT(!strcmp(value, "x") && !strcmp(pos[0], "-a"));
		while (n)
			free(argv[--n]);
	}
}

TEST(numbers_and_words)
{
	char buf[65];
	uint64_t x = 0;

	ASSERT_OK(ctl_number("18446744073709551615", 0, UINT64_MAX, &x));
	ASSERT(x == UINT64_MAX);
	ASSERT_EQ(ctl_number("18446744073709551616", 0, UINT64_MAX, &x), -EINVAL);
	ASSERT_EQ(ctl_number("99999999999999999999", 0, UINT64_MAX, &x), -EINVAL);
	ASSERT_EQ(ctl_number("", 0, 9, &x), -EINVAL);
	ASSERT_EQ(ctl_number("-1", 0, 9, &x), -EINVAL);
	ASSERT_EQ(ctl_number("5 ", 0, 9, &x), -EINVAL);
	ASSERT_EQ(ctl_number("10", 0, 9, &x), -EINVAL);
	ASSERT_STREQ(ctl_bytes(1023, buf), "1023 B");
	ASSERT_STREQ(ctl_bytes(1024, buf), "1.0 KiB");
	ASSERT_STREQ(ctl_bytes((1 << 20) - 1, buf), "1.0 MiB");
	ASSERT_STREQ(ctl_bytes(UINT64_MAX, buf), "16.0 EiB");
	ASSERT_STREQ(ctl_time(999, buf), "999 us");
	ASSERT_STREQ(ctl_time(1500, buf), "1.5 ms");
	ASSERT_STREQ(ctl_time(59000000, buf), "59.0 s");
	ASSERT_STREQ(ctl_time(3661000000, buf), "1 h 1 min");
	ASSERT_STREQ(ctl_time(UINT64_MAX, buf), "213503982 d 8 h");
}
