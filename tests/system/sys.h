/* SPDX-License-Identifier: MIT */
/*
 * A cqd of the test's own, under the miniature service manager, with models
 * loaded and namespaces set up.
 *
 * As root cqd and the workers run under uids of their own; else all under the
 * one there is, and what needs others is skipped. Nothing waits for a time to
 * pass: conditions are polled, with a deadline.
 */
#ifndef TESTS_SYS_H
#define TESTS_SYS_H

#include <grp.h>
#include <poll.h>
#include <sys/resource.h>
#ifdef TESTS_BENCH
#include "tests/bench/rig.h"
#elif defined(TESTS_CHAOS)
#include "tests/chaos/rig.h"
#else
#include "tests/harness.h"
#endif
#include "tests/system/fdstore.h"
#include "tests/system/synth.h"
#include "tests/system/wire.h"

#define SYS_CQD_UID	64100
#define SYS_UID_A	64101	/* two workers of namespace "red" */
#define SYS_UID_B	64102
#define SYS_UID_C	64103	/* one of "blue" */
#define SYS_DEADLINE	10000	/* ms */

/**
 * struct sys_opts - what differs between tests
 * @daemon:  lines for [daemon], after the ones all tests share
 * @red, @blue: lines for the namespaces
 * @program: below the build folder; NULL: cqd
 * @model:   shape; NULL: SYNTH_SMALL
 * @manager: more options of fdstore
 */
struct sys_opts {
	const char *daemon, *red, *blue, *program;
	const struct synth *model;
	const char *manager[8];
};

/**
 * struct sys - a running daemon
 * @sock, @admin: sockets
 * @conf, @log, @model: files
 * @manager: pid of fdstore
 * @cqd:     pid, as told by the last "started"
 * @to, @from: pipes of the manager; @line what was read last from it
 */
struct sys {
	char sock[300], admin[300], conf[300], log[300], model[300], notify[300];
	pid_t manager, cqd;
	int to, from;
	char buf[4096], line[512];
	size_t len;
};

/* Where the programs under test are: make check says so. */
static inline const char *sys_build(void)
{
	const char *o = getenv("O");

	return o ? o : "build";
}

static inline bool sys_root(void)
{
	return geteuid() == 0;
}

/* Become a worker: every privilege is gone. Nothing to do without root. */
static inline void sys_become(uid_t uid)
{
	if (!sys_root())
		return;
	ASSERT_SYS(setgroups(0, NULL));
	ASSERT_SYS(setresgid(uid, uid, uid));
	ASSERT_SYS(setresuid(uid, uid, uid));
	/* /proc/self belongs to root otherwise, and nothing there can be opened */
	ASSERT_SYS(prctl(PR_SET_DUMPABLE, 1));
}

/* --- the manager's lines --- */

/* Next line into @s->line, -ETIMEDOUT, or -EPIPE when the manager is gone. */
static inline int sys_line(struct sys *s, int ms)
{
	struct pollfd p = { .fd = s->from, .events = POLLIN };
	long long end = test_now_ms() + ms;
	ssize_t n;
	char *nl;

	for (;;) {
		nl = memchr(s->buf, '\n', s->len);
		if (nl) {
			n = nl - s->buf;
			snprintf(s->line, sizeof(s->line), "%.*s", (int)n, s->buf);
			s->len -= (size_t)n + 1;
			memmove(s->buf, nl + 1, s->len);
			if (!strncmp(s->line, "started ", 8))
				s->cqd = (pid_t)strtol(s->line + 8, NULL, 10);
			return 0;
		}
		ms = (int)(end - test_now_ms());
		if (ms <= 0 || poll(&p, 1, ms) <= 0)
			return -ETIMEDOUT;
		n = read(s->from, s->buf + s->len, sizeof(s->buf) - s->len);
		if (n <= 0)
			return -EPIPE;
		s->len += (size_t)n;
	}
}

__attribute__((unused))
static void sys_show_log(const struct sys *s)
{
	FILE *f = fopen(s->log, "re");
	char line[512];

	while (f && fgets(line, sizeof(line), f))
		printf("# cqd: %s", line);
	if (f)
		fclose(f);
}

/* Read lines until one starts with @prefix. */
static inline void sys_expect(struct sys *s, const char *prefix)
{
	int ret;

	do {
		ret = sys_line(s, SYS_DEADLINE);
		if (ret) {
			sys_show_log(s);
			FAIL("no \"%s\" from the service manager: %s", prefix, strerror(-ret));
		}
		if (!strncmp(s->line, "ended ", 6) && strncmp(prefix, "ended ", 6)) {
			sys_show_log(s);
			FAIL("cqd ended: %s", s->line);
		}
	} while (strncmp(s->line, prefix, strlen(prefix)));
}

static inline void sys_tell(struct sys *s, const char *command)
{
	ASSERT_EQ(write(s->to, command, strlen(command)), strlen(command));
	ASSERT_EQ(write(s->to, "\n", 1), 1);
}

/* Kill cqd and wait until its successor is ready. */
static inline void sys_restart(struct sys *s)
{
	ASSERT_SYS(kill(s->cqd, SIGKILL));
	sys_expect(s, "killed ");
	sys_expect(s, "ready ");
}

/* --- start and stop --- */

static inline void sys_write_conf(const struct sys *s, const struct sys_opts *o)
{
	FILE *f = fopen(s->conf, "we");

	ASSERT(f);
	fprintf(f, "[daemon]\nsocket = %s\nadmin_socket = %s\n%s\n", s->sock, s->admin,
		o->daemon ? o->daemon : "");
	if (!o->daemon || !strstr(o->daemon, "segment_min"))
		fprintf(f, "segment_min = 1M\nsegment_max = 16M\n");
	if (!o->daemon || !strstr(o->daemon, "pool_bytes"))
		fprintf(f, "pool_bytes = 64M\n");
	fprintf(f, "[namespace red]\nuid = %d %d 0 %d\n%s\n", SYS_UID_A, SYS_UID_B,
		(int)getuid(), o->red ? o->red : "");
	fprintf(f, "[namespace blue]\nuid = %d\n%s\n", SYS_UID_C, o->blue ? o->blue : "");
	fprintf(f, "[model tiny]\npath = %s\n", s->model);
	fclose(f);
}

__attribute__((noreturn))
static inline void sys_run_manager(const struct sys *s, const struct sys_opts *o)
{
	char cqd[512], l1[400], l2[400], uid[16];
	const char *argv[32] = { "fdstore", "-n", s->notify, "-l", l1, "-l", l2, "-o", s->log };
	char *copy[32];
	int n = 9, i;

	snprintf(cqd, sizeof(cqd), "%s/%s", sys_build(), o->program ? o->program : "cqd");
	snprintf(l1, sizeof(l1), "cqd=%s=666", s->sock);
	snprintf(l2, sizeof(l2), "admin=%s=600", s->admin);
	snprintf(uid, sizeof(uid), "%d", SYS_CQD_UID);
	if (sys_root()) {
		argv[n++] = "-u";
		argv[n++] = uid;
	}
	for (i = 0; i < 8 && o->manager[i]; i++)
		argv[n++] = o->manager[i];
	argv[n++] = "--";
	argv[n++] = cqd;
	argv[n++] = "--config";
	argv[n++] = s->conf;
	argv[n] = NULL;
	memcpy(copy, argv, sizeof(copy));	/* getopt() has no const */
	fdstore_main(n, copy);
}

static inline void sys_paths(struct sys *s)
{
	const char *dir = test_dir();

	ASSERT_SYS(chmod(dir, 0755));
	snprintf(s->sock, sizeof(s->sock), "%s/cqd.sock", dir);
	snprintf(s->admin, sizeof(s->admin), "%s/admin.sock", dir);
	snprintf(s->notify, sizeof(s->notify), "%s/notify", dir);
	snprintf(s->conf, sizeof(s->conf), "%s/cqd.conf", dir);
	snprintf(s->log, sizeof(s->log), "%s/cqd.log", dir);
	snprintf(s->model, sizeof(s->model), "%s/tiny.cqm", dir);
}

/* A daemon that is ready, with model "tiny" loaded. */
static inline void sys_start(struct sys *s, const struct sys_opts *o)
{
	static const struct synth small = SYNTH_SMALL;
	static const struct sys_opts none;
	int in[2], out[2];
	struct cq_err err = { "" };

	memset(s, 0, sizeof(*s));
	o = o ? o : &none;
	sys_paths(s);
	if (synth_model(o->model ? o->model : &small, s->model, &err))
		FAIL("%s", err.text);
	sys_write_conf(s, o);
	ASSERT_SYS(pipe2(in, O_CLOEXEC));
	ASSERT_SYS(pipe2(out, O_CLOEXEC));
	fflush(stdout);
	s->manager = fork();
	ASSERT_SYS(s->manager);
	if (!s->manager) {
		if (dup2(in[0], 0) < 0 || dup2(out[1], 1) < 0)
			_exit(1);
		close(in[1]);
		close(out[0]);
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		sys_run_manager(s, o);
	}
	close(in[0]);
	close(out[1]);
	s->to = in[1];
	s->from = out[0];
	sys_expect(s, "ready ");
}

static inline void sys_stop(struct sys *s)
{
	int status;

	close(s->to);		/* the manager takes it as "quit" */
	ASSERT_EQ(waitpid(s->manager, &status, 0), s->manager);
	close(s->from);
	ASSERT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* --- what the daemon says --- */

/* Into @out, whose pointers are void. */
static inline void sys_status_on(int fd, Cqp__StatusOk *out)
{
	Cqp__Status body = CQP__STATUS__INIT;
	DECLARE_MSG(msg, STATUS, status, body);
	Cqp__Msg *r = wire_call(fd, &msg, NULL, 0, NULL);

	ASSERT(r && r->body_case == CQP__MSG__BODY_STATUS_OK);
	*out = *r->status_ok;
	cqp_free(r);
}

static inline void sys_status(struct sys *s, Cqp__StatusOk *out)
{
	int fd = wire_open(s->admin);

	ASSERT_OK(fd);
	sys_status_on(fd, out);
	close(fd);
}

/* Checksums of all pages, and counts that agree with each other; the pages that are pinned. */
static inline uint64_t sys_check_index(struct sys *s)
{
	Cqp__Verify body = CQP__VERIFY__INIT;
	DECLARE_MSG(msg, VERIFY, verify, body);
	int fd = wire_open(s->admin);
	Cqp__StatusOk st;
	Cqp__Msg *r;

	ASSERT_OK(fd);
	r = wire_call(fd, &msg, NULL, 0, NULL);
	ASSERT(r && r->body_case == CQP__MSG__BODY_VERIFY_OK);
	ASSERT_EQ(r->verify_ok->failed, 0);
	cqp_free(r);
	sys_status_on(fd, &st);
	ASSERT_EQ(st.checksum_failures, 0);
	ASSERT(st.pages_pinned <= st.pages_sealed && st.pool_used <= st.pool_reserved &&
	       st.pool_reserved <= st.pool_limit);
	close(fd);
	return st.pages_pinned;
}

/* Pool @i of the status, of @n in all. */
struct sys_pool {
	uint64_t reserved, used;
	size_t n;
	bool why;		/* it cannot be used */
};

static inline struct sys_pool sys_pool(struct sys *s, size_t i)
{
	Cqp__Status body = CQP__STATUS__INIT;
	DECLARE_MSG(msg, STATUS, status, body);
	int fd = wire_open(s->admin);
	struct sys_pool p;
	Cqp__Msg *r;

	ASSERT_OK(fd);
	r = wire_call(fd, &msg, NULL, 0, NULL);
	ASSERT(r && r->body_case == CQP__MSG__BODY_STATUS_OK && r->status_ok->n_pools > i);
	p.reserved = r->status_ok->pools[i]->reserved;
	p.used = r->status_ok->pools[i]->used;
	p.n = r->status_ok->n_pools;
	p.why = r->status_ok->pools[i]->why != NULL;
	cqp_free(r);
	close(fd);
	return p;
}

/* Until so much of it is in use. */
static inline void sys_until_used(struct sys *s, size_t i, uint64_t used)
{
	long long end = test_now_ms() + SYS_DEADLINE;

	while (sys_pool(s, i).used != used) {
		if (test_now_ms() > end) {
			sys_show_log(s);
			FAIL("%llu bytes in use, not %llu",
			     (unsigned long long)sys_pool(s, i).used, (unsigned long long)used);
		}
		usleep(500);
	}
}

/* Poll the status until @cond, an expression over "st". */
#define SYS_UNTIL(s, cond) do {							\
	long long _end = test_now_ms() + SYS_DEADLINE;				\
	Cqp__StatusOk st;							\
	int _fd = wire_open((s)->admin);					\
	ASSERT_OK(_fd);								\
	for (;;) {								\
		sys_status_on(_fd, &st);					\
		if (cond)							\
			break;							\
		if (test_now_ms() > _end) {					\
			sys_show_log(s);					\
			FAIL("never: %s (sealed %llu filling %llu pinned %llu "	\
			     "clients %llu orphans %llu)", #cond,		\
			     (unsigned long long)st.pages_sealed,		\
			     (unsigned long long)st.pages_filling,		\
			     (unsigned long long)st.pages_pinned,		\
			     (unsigned long long)st.clients,			\
			     (unsigned long long)st.orphans);			\
		}								\
		usleep(500);							\
	}									\
	close(_fd);								\
} while (0)

/* --- processes that play workers --- */

/* What a worker and its test say to each other: one byte each way. */
struct sys_peer {
	pid_t pid;
	int fd;
};

/* Fork a process that runs @fn under @uid; it talks over its descriptor. */
static inline void sys_spawn(struct sys_peer *p, uid_t uid, void (*fn)(int fd, void *arg),
			     void *arg)
{
	int s[2];

	ASSERT_SYS(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s));
	fflush(stdout);
	p->pid = fork();
	ASSERT_SYS(p->pid);
	if (!p->pid) {
		close(s[0]);
		sys_become(uid);
		fn(s[1], arg);
		fflush(stdout);
		_exit(0);
	}
	close(s[1]);
	p->fd = s[0];
}

static inline void sys_say(int fd, char c)
{
	ASSERT_EQ(send(fd, &c, 1, MSG_NOSIGNAL), 1);
}

/* Wait for the byte @c. */
static inline void sys_hear_ms(int fd, char c, int ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	char got = 0;

	if (poll(&p, 1, ms) <= 0)
		FAIL("the other process did not say '%c'", c);
	ASSERT_EQ(read(fd, &got, 1), 1);
	ASSERT_EQ(got, c);
}

static inline void sys_hear(int fd, char c)
{
	sys_hear_ms(fd, c, SYS_DEADLINE);
}

/* It ended as it should. */
static inline void sys_join(struct sys_peer *p)
{
	int status;

	close(p->fd);
	ASSERT_EQ(waitpid(p->pid, &status, 0), p->pid);
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		FAIL("worker ended with status %#x", (unsigned int)status);
}

static inline void sys_kill(struct sys_peer *p)
{
	int status;

	ASSERT_SYS(kill(p->pid, SIGKILL));
	ASSERT_EQ(waitpid(p->pid, &status, 0), p->pid);
	close(p->fd);
}

#endif /* TESTS_SYS_H */
