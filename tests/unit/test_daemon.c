// SPDX-License-Identifier: MIT
/* cqd as a program: options, sockets, sessions, limits, reload and its end. */
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sysexits.h>
#include "tests/harness.h"
#include "tests/system/wire.h"

static char conf[300], sock[300], admin[300], own[300], logfile[300], prog[300];
static struct cqp_frame frame;
static struct rlimit nofile;	/* of the next cqd, if set */

static void paths(void)
{
	const char *dir = test_dir(), *o = getenv("O");

	snprintf(prog, sizeof(prog), "%s/cqd", o ? o : "build");
	snprintf(conf, sizeof(conf), "%s/cqd.conf", dir);
	snprintf(sock, sizeof(sock), "%s/cqd.sock", dir);
	snprintf(admin, sizeof(admin), "%s/admin.sock", dir);
	snprintf(own, sizeof(own), "%s/own.sock", dir);
	snprintf(logfile, sizeof(logfile), "%s/log", dir);
}

static void write_conf(const char *daemon, const char *rest)
{
	FILE *f = fopen(conf, "we");

	ASSERT(f);
	fprintf(f, "[daemon]\nsocket = %s\nadmin_socket = %s\npool_bytes = 32M\n"
		"segment_min = 1M\nmax_pages = 1024\n%s\n%s\n", sock, admin, daemon, rest);
	fclose(f);
}

static pid_t spawn(const char *a, const char *b, const char *c)
{
	pid_t pid;
	int fd;

	fflush(stdout);
	pid = fork();
	ASSERT_SYS(pid);
	if (pid)
		return pid;
	fd = open(logfile, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (nofile.rlim_max && setrlimit(RLIMIT_NOFILE, &nofile) < 0)
		_exit(97);
	if (fd < 0 || dup2(fd, 2) < 0 || dup2(fd, 1) < 0)
		_exit(99);
	execl(prog, "cqd", a, b, c, (char *)NULL);
	_exit(98);
}

static int wait_exit(pid_t pid)
{
	int status;

	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void log_has(const char *text)
{
	static char buf[8192];
	int fd = open(logfile, O_RDONLY | O_CLOEXEC);
	ssize_t n = read(fd, buf, sizeof(buf) - 1);

	close(fd);
	ASSERT(n >= 0);
	buf[n] = '\0';
	ASSERT_STRHAS(buf, text);
}

/* Until somebody answers on the socket. */
static void wait_up(void)
{
	long long end = test_now_ms() + 10000;
	int fd;

	while ((fd = wire_open(sock)) < 0) {
		ASSERT_LT(test_now_ms(), end);
		usleep(2000);
	}
	close(fd);
}

static pid_t start(const char *daemon, const char *rest)
{
	pid_t pid;

	paths();
	write_conf(daemon, rest);
	pid = spawn("--config", conf, NULL);
	wait_up();
	return pid;
}

static void stop(pid_t pid)
{
	ASSERT_SYS(kill(pid, SIGTERM));
	ASSERT_EQ(wait_exit(pid), 0);
}

static int hello(int fd, const char *tenant, uint64_t session, Cqp__HelloOk *out,
		 char name[64])
{
	Cqp__Hello body = CQP__HELLO__INIT;
	DECLARE_MSG(msg, HELLO, hello, body);
	char ns[64];
	Cqp__Msg *r;

	body.protocol = CQP_VERSION;
	if (tenant) {
		snprintf(ns, sizeof(ns), "%s", tenant);
		body.tenant = ns;
	}
	body.has_session = session != 0;
	body.session = session;
	r = wire_call(fd, &msg, NULL, 0, NULL);
	if (!r || r->body_case != CQP__MSG__BODY_HELLO_OK)
		return wire_unexpected(r);
	*out = *r->hello_ok;
	snprintf(name, 64, "%s", r->hello_ok->tenant);
	cqp_free(r);
	return 0;
}

static uint64_t clients(int fd, uint64_t *orphans)
{
	Cqp__Status body = CQP__STATUS__INIT;
	DECLARE_MSG(msg, STATUS, status, body);
	Cqp__Msg *r = wire_call(fd, &msg, NULL, 0, NULL);
	uint64_t n;

	ASSERT(r && r->body_case == CQP__MSG__BODY_STATUS_OK);
	ASSERT_EQ(r->status_ok->boot_id.len, 16);
	n = r->status_ok->clients;
	if (orphans)
		*orphans = r->status_ok->orphans;
	cqp_free(r);
	return n;
}

static int ping(int fd)
{
	Cqp__Ping body = CQP__PING__INIT;
	DECLARE_MSG(msg, PING, ping, body);

	return wire_code(wire_call(fd, &msg, NULL, 0, NULL));
}

TEST(options)
{
	paths();
	ASSERT_EQ(wait_exit(spawn("--version", NULL, NULL)), 0);
	log_has("cqd 0.");
	ASSERT_EQ(wait_exit(spawn("--help", NULL, NULL)), 0);
	log_has("--admin-socket");
	ASSERT_EQ(wait_exit(spawn("--frobnicate", NULL, NULL)), EX_USAGE);
	ASSERT_EQ(wait_exit(spawn("extra", NULL, NULL)), EX_USAGE);
	write_conf("", "");
	ASSERT_EQ(wait_exit(spawn("--config", conf, "--check-config")), 0);
	write_conf("lo = 5", "");
	ASSERT_EQ(wait_exit(spawn("--config", conf, "--check-config")), EX_CONFIG);
	log_has("cqd.conf:7: unknown key \"lo\" in [daemon]");
	ASSERT_EQ(wait_exit(spawn("--config", "/nonexistent", NULL)), EX_CONFIG);
	log_has("/nonexistent");
	write_conf("backend = punchcards", "");
	ASSERT_EQ(wait_exit(spawn("--config", conf, NULL)), EXIT_FAILURE);
	log_has("punchcards");
	ASSERT(access(sock, F_OK) < 0 && access(admin, F_OK) < 0);
}

TEST(sockets)
{
	pid_t first = start("", ""), second;
	struct stat st;
	int fd;

	ASSERT_SYS(stat(sock, &st));
	ASSERT_EQ(st.st_mode & 07777, 0660);
	ASSERT_SYS(stat(admin, &st));
	ASSERT_EQ(st.st_mode & 07777, 0600);
	/* a live one is not pushed aside */
	second = spawn("--config", conf, NULL);
	ASSERT_EQ(wait_exit(second), EXIT_FAILURE);
	log_has("another cqd answers there");
	fd = wire_open(sock);
	ASSERT_OK(fd);
	ASSERT_OK(ping(fd));
	/* a stale one is */
	ASSERT_SYS(kill(first, SIGKILL));
	ASSERT_EQ(waitpid(first, NULL, 0), first);
	ASSERT_SYS(access(sock, F_OK));
	close(fd);
	first = spawn("--config", conf, NULL);
	wait_up();
	stop(first);
	ASSERT(access(sock, F_OK) < 0 && access(admin, F_OK) < 0);
}

TEST(a_file_is_no_stale_socket)
{
	int fd;

	paths();
	write_conf("", "");
	fd = open(sock, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	ASSERT_EQ(write(fd, "x", 1), 1);
	close(fd);
	ASSERT_EQ(wait_exit(spawn("--config", conf, NULL)), EXIT_FAILURE);
	ASSERT_SYS(access(sock, F_OK));
}

TEST(sessions)
{
	pid_t pid = start("", "");
	Cqp__HelloOk a, b;
	char name[64];
	int adm = wire_open(admin), fd = wire_connect(sock), status;
	uint64_t orphans, before;
	pid_t child;

	ASSERT_OK(adm);
	before = clients(adm, NULL);
	ASSERT_OK(hello(fd, NULL, 0, &a, name));
	ASSERT_STREQ(name, "default");
	ASSERT_EQ(a.protocol, CQP_VERSION);
	ASSERT(a.session && !a.resumed);
	ASSERT_EQ(clients(adm, NULL), before + 1);
	/* the connection breaks; the same process takes its session up again */
	close(fd);
	fd = wire_connect(sock);
	ASSERT_OK(hello(fd, NULL, a.session, &b, name));
	ASSERT(b.resumed);
	ASSERT_EQ(b.session, a.session);
	ASSERT_EQ(clients(adm, NULL), before + 1);
	close(fd);
	/* another process may not */
	child = fork();
	if (!child) {
		fd = wire_connect(sock);
		ASSERT_OK(hello(fd, NULL, a.session, &b, name));
		ASSERT(!b.resumed && b.session != a.session);
		_exit(0);
	}
	ASSERT_EQ(waitpid(child, &status, 0), child);
	ASSERT_EQ(status, 0);
	/* nor may it take one that is connected */
	fd = wire_connect(sock);
	ASSERT_OK(hello(fd, NULL, a.session, &a, name));
	ASSERT(a.resumed);
	status = wire_connect(sock);
	ASSERT_OK(hello(status, NULL, a.session, &b, name));
	ASSERT(!b.resumed);
	close(status);
	clients(adm, &orphans);
	ASSERT_GE(orphans, 1);
	close(fd);
	close(adm);
	stop(pid);
}

/* Everything of a process is gone at once when it is, also behind its socket. */
TEST(death_of_a_client)
{
	pid_t pid = start("", ""), child;
	int adm = wire_open(admin), p[2];
	uint64_t before = clients(adm, NULL);
	struct timespec t0, t1;
	pid_t heir;
	long us;

	ASSERT_SYS(pipe2(p, O_CLOEXEC));
	child = fork();
	if (!child) {
		ASSERT_OK(wire_open(sock));
		/* its own child keeps the socket open */
		heir = fork();
		if (!heir) {
			pause();
			_exit(0);
		}
		ASSERT_EQ(write(p[1], &heir, sizeof(heir)), sizeof(heir));
		pause();
	}
	close(p[1]);
	ASSERT_EQ(read(p[0], &heir, sizeof(heir)), sizeof(heir));
	ASSERT_EQ(clients(adm, NULL), before + 1);
	clock_gettime(CLOCK_MONOTONIC, &t0);
	ASSERT_SYS(kill(child, SIGKILL));
	while (clients(adm, NULL) > before) {
		clock_gettime(CLOCK_MONOTONIC, &t1);
		ASSERT_LT(t1.tv_sec - t0.tv_sec, 2);
	}
	clock_gettime(CLOCK_MONOTONIC, &t1);
	us = (t1.tv_sec - t0.tv_sec) * 1000000 + (t1.tv_nsec - t0.tv_nsec) / 1000;
	printf("# freed %ld us after the kill\n", us);
	waitpid(child, NULL, 0);
	ASSERT_SYS(kill(heir, SIGKILL));
	close(p[0]);
	close(adm);
	stop(pid);
}

TEST(bye)
{
	pid_t pid = start("", "");
	int adm = wire_open(admin), fd = wire_open(sock);
	uint64_t before = clients(adm, NULL);
	Cqp__Bye bye_body = CQP__BYE__INIT;
	DECLARE_MSG(msg, BYE, bye, bye_body);
	Cqp__SegmentGet get = CQP__SEGMENT_GET__INIT;
	DECLARE_MSG(after, SEGMENT_GET, segment_get, get);

	ASSERT_OK(wire_code(wire_call(fd, &msg, NULL, 0, NULL)));
	ASSERT_EQ(clients(adm, NULL), before - 1);
	ASSERT_EQ(wire_code(wire_call(fd, &after, NULL, 0, NULL)), -ENOTCONN);
	ASSERT_OK(ping(fd));
	ASSERT_OK(wire_code(wire_call(adm, &msg, NULL, 0, NULL)));
	close(fd);
	close(adm);
	stop(pid);
}

TEST(namespaces)
{
	char text[800], name[64];
	Cqp__HelloOk ok;
	pid_t pid;
	int fd, more;

	paths();
	snprintf(text, sizeof(text), "[namespace any]\nuid = *\n[namespace mine]\nuid = %d\n"
		 "connections = 1\n[namespace boxed]\nuid = *\nsocket = %s\n"
		 "[namespace other]\nuid = %d\n", (int)getuid(), own, (int)getuid() + 1);
	pid = start("", text);
	usleep(20000);	/* wait_up()'s connection has left */
	fd = wire_connect(sock);
	ASSERT_OK(hello(fd, NULL, 0, &ok, name));
	ASSERT_STREQ(name, "mine");		/* before the one for everybody */
	more = wire_connect(sock);
	ASSERT_EQ(hello(more, "mine", 0, &ok, name), -EUSERS);
	close(more);
	close(fd);
	fd = wire_connect(sock);
	ASSERT_OK(hello(fd, "any", 0, &ok, name));
	ASSERT_STREQ(name, "any");
	close(fd);
	fd = wire_connect(sock);
	ASSERT_EQ(hello(fd, "boxed", 0, &ok, name), -EACCES);
	close(fd);
	fd = wire_connect(sock);
	ASSERT_EQ(hello(fd, "other", 0, &ok, name), -EACCES);
	close(fd);
	fd = wire_connect(own);
	ASSERT_OK(hello(fd, NULL, 0, &ok, name));
	ASSERT_STREQ(name, "boxed");
	close(fd);
	fd = wire_connect(own);
	ASSERT_EQ(hello(fd, "any", 0, &ok, name), -EACCES);
	close(fd);
	stop(pid);
}

TEST(limit_of_a_uid)
{
	pid_t pid = start("uid_connections = 3", "");
	int fd[5], i, n = 0, adm;

	usleep(20000);
	for (i = 0; i < 5; i++) {
		fd[i] = wire_open(sock);
		n += fd[i] >= 0;
	}
	ASSERT_EQ(n, 3);
	ASSERT_EQ(fd[4], -EUSERS);
	adm = wire_open(admin);
	ASSERT_OK(adm);
	close(adm);
	for (i = 0; i < 3; i++)
		close(fd[i]);
	stop(pid);
}

/* A process that connects and leaves, again and again, fills no table. */
TEST(sessions_left_behind_are_bounded)
{
	pid_t pid = start("uid_connections = 4\nmax_clients = 8", "");
	int adm = wire_open(admin), fd, i;

	ASSERT_OK(adm);
	for (i = 0; i < 20; i++) {
		fd = wire_open(sock);
		ASSERT_OK(fd);
		close(fd);
		ASSERT_LE(clients(adm, NULL), 4);
	}
	close(adm);
	stop(pid);
}

/* With no descriptor left newcomers wait; those inside are served; then go on. */
TEST(out_of_descriptors)
{
	int fd[40], i, inside = 0;
	pid_t pid;

	nofile.rlim_cur = 40;
	nofile.rlim_max = 40;
	pid = start("", "");
	log_has("40 open files allowed");
	for (i = 0; i < 40; i++) {
		fd[i] = wire_connect(sock);
		ASSERT_OK(fd[i]);
	}
	usleep(100000);
	for (i = 0; i < 40; i++) {
		struct pollfd p = { .fd = fd[i], .events = POLLIN };
		Cqp__Ping body = CQP__PING__INIT;
		DECLARE_MSG(msg, PING, ping, body);

		msg.id = 1;
		ASSERT_OK(cqp_send(fd[i], &msg, NULL, 0, 0));
		inside += poll(&p, 1, inside > 4 ? 50 : 2000) == 1;
	}
	ASSERT_GT(inside, 4);
	ASSERT_LT(inside, 40);
	log_has("raise LimitNOFILE=");
	for (i = 0; i < 30; i++)
		close(fd[i]);
	for (i = 30; i < 40; i++)
		ASSERT_EQ(wire_recv(fd[i], &frame, 5000), 1);
	for (i = 30; i < 40; i++)
		close(fd[i]);
	ASSERT_SYS(kill(pid, 0));
	stop(pid);
}

TEST(reload)
{
	pid_t pid = start("", "[namespace one]\nuid = *\n");
	long long end = test_now_ms() + 5000;
	int fd;

	write_conf("nonsense = 1", "");
	ASSERT_SYS(kill(pid, SIGHUP));
	fd = wire_open(sock);
	ASSERT_OK(fd);
	close(fd);
	usleep(50000);
	log_has("unknown key \"nonsense\"");
	log_has("the configuration in force stays");
	fd = wire_connect(sock);
	ASSERT_EQ(wire_hello_as(fd, CQP_VERSION, 0, "two"), -EACCES);
	close(fd);
	write_conf("max_pins = 2048", "[namespace two]\nuid = *\n");
	ASSERT_SYS(kill(pid, SIGHUP));
	do {
		fd = wire_connect(sock);
		ASSERT_LT(test_now_ms(), end);
		if (wire_hello_as(fd, CQP_VERSION, 0, "two") == 0)
			break;
		close(fd);
	} while (1);
	close(fd);
	log_has("max_pins changed; that takes effect when cqd is restarted");
	fd = wire_connect(sock);
	ASSERT_EQ(wire_hello_as(fd, CQP_VERSION, 0, "one"), -EACCES);
	close(fd);
	stop(pid);
}

/* 300 clients: more than one reply holds. */
TEST(lists_go_on_with_a_cursor)
{
	pid_t pid = start("", "");
	Cqp__List body = CQP__LIST__INIT;
	DECLARE_MSG(msg, LIST, list, body);
	int fd[300], adm, i, replies = 0;
	size_t n = 0;
	Cqp__Msg *r;

	for (i = 0; i < 300; i++) {
		fd[i] = wire_open(sock);
		ASSERT_OK(fd[i]);
	}
	adm = wire_open(admin);
	body.kind = CQP__KIND__CLIENTS;
	do {
		r = wire_call(adm, &msg, NULL, 0, NULL);
		ASSERT(r && r->body_case == CQP__MSG__BODY_LIST_OK);
		for (i = 0; i < (int)r->list_ok->n_items; i++) {
			ASSERT(r->list_ok->items[i]->has_pid);
			ASSERT_EQ(r->list_ok->items[i]->pid, getpid());
			ASSERT_STREQ(r->list_ok->items[i]->tenant, "default");
		}
		n += r->list_ok->n_items;
		body.has_cursor = r->list_ok->has_cursor;
		body.cursor = r->list_ok->cursor;
		cqp_free(r);
		replies++;
	} while (body.has_cursor);
	ASSERT_EQ(n, 301);	/* and wait_up()'s, an orphan */
	ASSERT_EQ(replies, 2);
	body.kind = (Cqp__Kind)99;
	ASSERT_EQ(wire_code(wire_call(adm, &msg, NULL, 0, NULL)), -EINVAL);
	for (i = 0; i < 300; i++)
		close(fd[i]);
	close(adm);
	stop(pid);
}

/* Many requests before the first reply is read: every one answered, in order. */
TEST(pipelined)
{
	pid_t pid = start("", "");
	Cqp__Ping body = CQP__PING__INIT;
	DECLARE_MSG(msg, PING, ping, body);
	int fd = wire_open(sock), ret;
	uint64_t sent = 0, got = 0;
	Cqp__Msg *r;

	ASSERT_OK(fd);
	while (got < 3000) {
		while (sent < 3000) {
			msg.id = sent + 1;
			ret = cqp_send(fd, &msg, NULL, 0, MSG_DONTWAIT);
			if (ret == -EAGAIN)
				break;
			ASSERT_OK(ret);
			sent++;
		}
		ASSERT_EQ(wire_recv(fd, &frame, 5000), 1);
		r = cqp_unpack(frame.buf, frame.len, NULL);
		ASSERT(r && r->body_case == CQP__MSG__BODY_PONG);
		ASSERT_EQ(r->id, ++got);
		cqp_free(r);
	}
	close(fd);
	stop(pid);
}

static void wait_hangup(int fd, long long from, long long min, long long max)
{
	struct pollfd p = { .fd = fd, .events = POLLRDHUP };

	ASSERT_EQ(poll(&p, 1, 15000), 1);
	ASSERT_GE(test_now_ms() - from, min);
	ASSERT_LE(test_now_ms() - from, max);
}

/* Who says nothing, and who asks and never reads, is shown out after 10 s. */
TEST(deadlines)
{
	pid_t pid = start("", "");
	Cqp__Ping body = CQP__PING__INIT;
	DECLARE_MSG(msg, PING, ping, body);
	long long t0 = test_now_ms();
	int mute = wire_connect(sock), deaf = wire_open(sock), live = wire_open(sock);
	struct pollfd p = { .fd = deaf, .events = POLLOUT };
	int i;

	for (i = 0; i < 20000; i++) {
		if (cqp_send(deaf, &msg, NULL, 0, MSG_DONTWAIT) != -EAGAIN)
			continue;
		if (poll(&p, 1, 500) == 0)
			break;		/* the daemon has stopped reading */
	}
	ASSERT_LT(i, 20000);
	wait_hangup(mute, t0, 9000, 13000);
	ASSERT_EQ(cqp_recv(mute, &frame, MSG_DONTWAIT), 1);
	wait_hangup(deaf, t0, 9000, 13000);
	ASSERT_OK(ping(live));
	close(mute);
	close(deaf);
	close(live);
	stop(pid);
}
