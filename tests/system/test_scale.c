/* SPDX-License-Identifier: MIT */
/*
 * 10,000 clients: they connect, ask, lose their connections, find their sessions
 * in the next cqd, and leave; a second crowd costs no descriptor and no memory
 * that the first did not.
 */
#include "tests/system/sys.h"

#define CLIENTS	10000
#define SPARE	1024		/* descriptors of the test's and cqd's own */
#define SLACK	1024		/* KiB that may differ between two crowds */

static struct sys s;
static int fds[CLIENTS];
static uint64_t sessions[CLIENTS];
static int n;

/* As many as may be open here and, each with a share of a pidfd, in cqd. */
static void limits(void)
{
	struct rlimit rl;

	ASSERT_SYS(getrlimit(RLIMIT_NOFILE, &rl));
	rl.rlim_cur = rl.rlim_max;
	ASSERT_SYS(setrlimit(RLIMIT_NOFILE, &rl));
	if (rl.rlim_cur < CLIENTS + SPARE)
		SKIP("%d clients need ulimit -n %d", CLIENTS, CLIENTS + SPARE);
}

static unsigned int open_fds(pid_t pid)
{
	char path[64];
	unsigned int count = 0;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	d = opendir(path);
	ASSERT(d);
	while (readdir(d))
		count++;
	closedir(d);
	return count;
}

static long rss_kib(pid_t pid)
{
	char path[64], line[128];
	long kb = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	f = fopen(path, "re");
	ASSERT(f);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "VmRSS: %ld kB", &kb) == 1)
			break;
	fclose(f);
	return kb;
}

/* Everybody connects; @resumed: to the session it had. */
static void connect_all(int resumed)
{
	for (n = 0; n < CLIENTS; n++) {
		fds[n] = wire_connect(s.sock);
		ASSERT_OK(fds[n]);
		ASSERT_EQ(wire_resume(fds[n], &sessions[n]), resumed);
	}
}

static void ask_all(void)
{
	Cqp__Ping body = CQP__PING__INIT;
	DECLARE_MSG(msg, PING, ping, body);
	int i;

	for (i = 0; i < CLIENTS; i++)
		ASSERT_OK(cqp_send(fds[i], &msg, NULL, 0, 0));
	for (i = 0; i < CLIENTS; i++) {
		static struct cqp_frame f;
		Cqp__Msg *m;

		ASSERT_EQ(wire_recv(fds[i], &f, SYS_DEADLINE), 1);
		m = cqp_unpack(f.buf, f.len, NULL);
		ASSERT(m && m->body_case == CQP__MSG__BODY_PONG);
		cqp_free(m);
	}
}

static void leave_all(void)
{
	Cqp__Bye body = CQP__BYE__INIT;
	DECLARE_MSG(msg, BYE, bye, body);
	int i;

	for (i = 0; i < CLIENTS; i++) {
		ASSERT_OK(cqp_send(fds[i], &msg, NULL, 0, 0));
		close(fds[i]);
	}
	memset(sessions, 0, sizeof(sessions));
	SYS_UNTIL(&s, st.clients == 0);
}

/* Half of them lose their connections, then all: cqd is killed. */
static void lose(void)
{
	Cqp__StatusOk now;
	int i;

	for (i = 0; i < CLIENTS; i += 2)
		close(fds[i]);
	SYS_UNTIL(&s, st.orphans == CLIENTS / 2 && st.clients == CLIENTS);
	sys_restart(&s);
	sys_status(&s, &now);
	ASSERT_EQ(now.clients, CLIENTS);
	ASSERT_EQ(now.orphans, CLIENTS);
	for (i = 1; i < CLIENTS; i += 2)
		close(fds[i]);
}

/* No more than @most; the connection that asked for the status ends a little later. */
static void fds_back(unsigned int most)
{
	long long end = test_now_ms() + SYS_DEADLINE;

	while (open_fds(s.cqd) > most && test_now_ms() < end)
		usleep(500);
	ASSERT_LE(open_fds(s.cqd), most);
}

TEST_LIMIT(ten_thousand_clients, 120)
{
	static const struct sys_opts opts = {
		.daemon = "max_connections = 12000\nuid_connections = 12000\n"
			  "max_clients = 12000\n",
	};
	const char *sanitizer = getenv("SANITIZE");
	unsigned int before;
	long first, second;

	limits();
	sys_start(&s, &opts);
	connect_all(0);
	ask_all();
	lose();
	connect_all(1);
	SYS_UNTIL(&s, st.orphans == 0 && st.clients == CLIENTS);
	ask_all();
	leave_all();
	before = open_fds(s.cqd);
	first = rss_kib(s.cqd);
	connect_all(0);
	ask_all();
	leave_all();
	second = rss_kib(s.cqd);
	fds_back(before);
	/* A sanitizer keeps for a while what was freed. */
	if (!sanitizer || !sanitizer[0])
		ASSERT_LE(second, first + SLACK);
	sys_stop(&s);
}
