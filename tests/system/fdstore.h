/* SPDX-License-Identifier: MIT */
/*
 * A service manager for one service, as small as tests need it: socket
 * activation, readiness, fd store, barrier, watchdog, restart. It does what
 * systemd does (sd_notify(3), sd_listen_fds(3)), so that restarts are tested
 * without root, without systemd and without containers. It runs in a
 * process forked by the test (sys.h):
 *
 *	fdstore -n NOTIFY -l NAME=PATH[=MODE]... [-u UID] [-m MAX] [-w USEC]
 *		[-r PRIORITY] [-N] [-o LOG] -- PROGRAM ARG...
 *
 *	-n	path of the notification socket
 *	-l	listening SOCK_SEQPACKET socket, handed over under NAME
 *	-u	uid and gid of the program
 *	-m	most descriptors kept; more are closed without a word, as in systemd
 *	-w	watchdog
 *	-r	SCHED_FIFO, reset on fork: CPUSchedulingPolicy= and its companions
 *	-N	no fd store: pushes are closed at once
 *	-o	file for the program's output
 *
 * Commands on stdin: "hold" (do not restart), "go", "quit"; its end is "quit".
 * What happens is told on stdout, one line each: "started PID", "ready PID",
 * "reloading PID", "status TEXT", "stored NAME COUNT", "removed NAME COUNT", "barrier",
 * "ended PID CODE", "killed PID SIGNAL".
 */
#ifndef TESTS_FDSTORE_H
#define TESTS_FDSTORE_H

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/close_range.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "cq/util.h"

#define MAX_LISTEN	8
#define MAX_STORE	512
#define MAX_MESSAGE	4096
#define NAME_BYTES	256	/* longest FDNAME */
#define FIRST_FD	3	/* SD_LISTEN_FDS_START */

struct fdstore_kept {
	int fd;
	bool poll;
	char name[NAME_BYTES];
};

static struct {
	struct fdstore_kept listen[MAX_LISTEN];
	unsigned int n_listen;
	struct fdstore_kept store[MAX_STORE];	/* oldest first */
	unsigned int n_store, max_store;
	char notify_path[108];
	int notify, signals;
	char *const *argv;
	const char *log;
	uid_t uid;
	int priority;
	bool has_uid, hold, quit, ready;
	uint64_t watchdog_us, fed_us;
	pid_t pid;
} fdstore;

/* One field of a notification, "" if it is not there. */
struct fdstore_fields {
	char text[MAX_MESSAGE + 1];
};

__attribute__((noreturn, format(printf, 1, 2)))
static void fdstore_die(const char *fmt, ...)
{
	va_list ap;

	fputs("fdstore: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, ": %s\n", strerror(errno));
	fflush(stderr);
	_exit(1);
}

__attribute__((format(printf, 1, 2)))
static void fdstore_tell(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	fflush(stdout);
}

static uint64_t fdstore_now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static struct sockaddr_un fdstore_address(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	if (strlen(path) >= sizeof(a.sun_path)) {
		errno = ENAMETOOLONG;
		fdstore_die("%s", path);
	}
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	return a;
}

static int fdstore_bound(const char *path, int type, mode_t mode)
{
	struct sockaddr_un a = fdstore_address(path);
	int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	unlink(path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 ||
	    chmod(path, mode) < 0)
		fdstore_die("%s", path);
	return fd;
}

static void fdstore_add_listen(const char *arg)
{
	char spec[NAME_BYTES], *path, *mode;
	struct fdstore_kept *k = &fdstore.listen[fdstore.n_listen++];

	if (fdstore.n_listen > MAX_LISTEN)
		fdstore_die("too many sockets");
	snprintf(spec, sizeof(spec), "%s", arg);
	path = strchr(spec, '=');
	if (!path)
		fdstore_die("-l %s: NAME=PATH", arg);
	*path++ = 0;
	mode = strchr(path, '=');
	if (mode)
		*mode++ = 0;
	snprintf(k->name, sizeof(k->name), "%s", spec);
	k->fd = fdstore_bound(path, SOCK_SEQPACKET,
		      mode ? (mode_t)strtoul(mode, NULL, 8) : 0666);
	if (listen(k->fd, 4096) < 0)
		fdstore_die("listen");
}

/* --- the fd store --- */

static bool fdstore_same_file(int a, int b)
{
	pid_t self = getpid();

	return syscall(SYS_kcmp, self, self, KCMP_FILE, a, b) == 0;
}

static void fdstore_drop(unsigned int i)
{
	close(fdstore.store[i].fd);
	memmove(&fdstore.store[i], &fdstore.store[i + 1],
		(fdstore.n_store - i - 1) * sizeof(fdstore.store[0]));
	fdstore.n_store--;
}

static void fdstore_store(int fd, const char *name, bool polled)
{
	struct fdstore_kept *k;
	unsigned int i;

	for (i = 0; i < fdstore.n_store; i++)
		if (fdstore_same_file(fdstore.store[i].fd, fd))
			break;
	if (i < fdstore.n_store || fdstore.n_store >= fdstore.max_store) {
		close(fd);
		return;
	}
	k = &fdstore.store[fdstore.n_store++];
	k->fd = fd;
	k->poll = polled;
	snprintf(k->name, sizeof(k->name), "%s", name[0] ? name : "stored");
	fdstore_tell("stored %s %u", k->name, fdstore.n_store);
}

static void fdstore_remove_name(const char *name)
{
	unsigned int i;

	for (i = fdstore.n_store; i-- > 0; )
		if (!strcmp(fdstore.store[i].name, name))
			fdstore_drop(i);
	fdstore_tell("removed %s %u", name, fdstore.n_store);
}

/* FDPOLL=1, the default: descriptors whose other end is gone are dropped. */
static void fdstore_sweep_store(void)
{
	struct pollfd p;
	unsigned int i;

	for (i = fdstore.n_store; i-- > 0; ) {
		p = (struct pollfd){ .fd = fdstore.store[i].fd };
		if (fdstore.store[i].poll && poll(&p, 1, 0) == 1)
			fdstore_drop(i);
	}
}

/* --- notifications --- */

static const char *fdstore_field(const char *text, const char *key, char out[NAME_BYTES])
{
	size_t n = strlen(key), len;

	out[0] = 0;
	while (text) {
		if (!strncmp(text, key, n) && text[n] == '=') {
			len = strcspn(text + n + 1, "\n");
			snprintf(out, NAME_BYTES, "%.*s", (int)len, text + n + 1);
			return out;
		}
		text = strchr(text, '\n');
		text = text ? text + 1 : NULL;
	}
	return out;
}

static void fdstore_notified(const char *text, int *fds, unsigned int n_fds)
{
	char v[NAME_BYTES], name[NAME_BYTES], polled[NAME_BYTES];
	unsigned int i;

	fdstore_field(text, "FDNAME", name);
	if (!strcmp(fdstore_field(text, "FDSTORE", v), "1")) {
		fdstore_field(text, "FDPOLL", polled);
		for (i = 0; i < n_fds; i++) {
			fdstore_store(fds[i], name, strcmp(polled, "0") != 0);
			fds[i] = -1;
		}
	}
	if (!strcmp(fdstore_field(text, "FDSTOREREMOVE", v), "1"))
		fdstore_remove_name(name);
	if (!strcmp(fdstore_field(text, "WATCHDOG", v), "1"))
		fdstore.fed_us = fdstore_now_us();
	if (fdstore_field(text, "STATUS", v)[0])
		fdstore_tell("status %s", v);
	if (!strcmp(fdstore_field(text, "RELOADING", v), "1"))
		fdstore_tell("reloading %d", (int)fdstore.pid);
	if (!strcmp(fdstore_field(text, "READY", v), "1")) {
		fdstore.ready = true;
		fdstore.fed_us = fdstore_now_us();
		fdstore_tell("ready %d", (int)fdstore.pid);
	}
	/* Answered by closing the descriptor, which the caller does. */
	if (!strcmp(fdstore_field(text, "BARRIER", v), "1"))
		fdstore_tell("barrier");
}

static unsigned int fdstore_collect(struct msghdr *h, int *fds, pid_t *sender)
{
	unsigned int n = 0;
	struct cmsghdr *c;
	struct ucred cred;
	size_t bytes;

	*sender = 0;
	for (c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c)) {
		bytes = c->cmsg_len - CMSG_LEN(0);
		if (c->cmsg_level != SOL_SOCKET)
			continue;
		if (c->cmsg_type == SCM_RIGHTS) {
			memcpy(fds, CMSG_DATA(c), bytes);
			n = (unsigned int)(bytes / sizeof(int));
		} else if (c->cmsg_type == SCM_CREDENTIALS) {
			memcpy(&cred, CMSG_DATA(c), sizeof(cred));
			*sender = cred.pid;
		}
	}
	return n;
}

static bool fdstore_take_notification(void)
{
	struct iovec io;
	struct fdstore_fields f;
	union {
		char b[CMSG_SPACE(sizeof(int) * 253) + CMSG_SPACE(sizeof(struct ucred))];
		struct cmsghdr align;
	} control;
	struct msghdr h = { .msg_iov = &io, .msg_iovlen = 1, .msg_control = control.b,
			    .msg_controllen = sizeof(control.b) };
	int fds[253];
	unsigned int n, i;
	pid_t sender;
	ssize_t len;

	io.iov_base = f.text;
	io.iov_len = MAX_MESSAGE;
	len = recvmsg(fdstore.notify, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (len < 0)
		return false;
	f.text[len] = 0;
	n = fdstore_collect(&h, fds, &sender);
	/* NotifyAccess=main */
	if (sender == fdstore.pid)
		fdstore_notified(f.text, fds, n);
	for (i = 0; i < n; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	return true;
}

/* --- the service --- */

static void fdstore_set_number_env(const char *key, long long v)
{
	char text[32];

	snprintf(text, sizeof(text), "%lld", v);
	setenv(key, text, 1);
}

/* Sockets first, then the store, newest first, as systemd hands them over. */
static unsigned int fdstore_pass_fds(char *names, size_t size)
{
	int from[MAX_LISTEN + MAX_STORE];
	unsigned int n = 0, i;
	size_t used = 0;

	for (i = 0; i < fdstore.n_listen + fdstore.n_store; i++) {
		const struct fdstore_kept *k = i < fdstore.n_listen ? &fdstore.listen[i] :
				       &fdstore.store[fdstore.n_store - 1 - (i - fdstore.n_listen)];

		/* out of the way of the numbers to be given */
		from[n] = fcntl(k->fd, F_DUPFD_CLOEXEC, FIRST_FD + MAX_LISTEN + MAX_STORE);
		if (from[n++] < 0)
			fdstore_die("dup (raise ulimit -n)");
		used += (size_t)snprintf(names + used, size - used, "%s%s",
					 i ? ":" : "", k->name);
		if (used >= size)
			fdstore_die("names too long");
	}
	for (i = 0; i < n; i++)
		if (dup2(from[i], FIRST_FD + (int)i) < 0)
			fdstore_die("dup2");
	return n;
}

static void fdstore_redirect_output(void)
{
	int fd;

	if (!fdstore.log)
		return;
	fd = open(fdstore.log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	if (fd < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0)
		fdstore_die("%s", fdstore.log);
}

__attribute__((noreturn))
static void fdstore_become_service(void)
{
	static char names[(MAX_LISTEN + MAX_STORE) * 64];
	sigset_t none;
	unsigned int n;
	int null, exe;

	/* Opened while we may: its folder can be closed to the program's uid. */
	exe = open(fdstore.argv[0], O_RDONLY | O_CLOEXEC);
	if (exe < 0)
		fdstore_die("%s", fdstore.argv[0]);
	exe = fcntl(exe, F_DUPFD_CLOEXEC, FIRST_FD + MAX_LISTEN + MAX_STORE);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	fdstore_redirect_output();
	null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (null < 0 || dup2(null, 0) < 0)
		fdstore_die("/dev/null");
	setenv("NOTIFY_SOCKET", fdstore.notify_path, 1);
	fdstore_set_number_env("LISTEN_PID", getpid());
	if (fdstore.watchdog_us) {
		fdstore_set_number_env("WATCHDOG_USEC", (long long)fdstore.watchdog_us);
		fdstore_set_number_env("WATCHDOG_PID", getpid());
	}
	n = fdstore_pass_fds(names, sizeof(names));
	fdstore_set_number_env("LISTEN_FDS", n);
	setenv("LISTEN_FDNAMES", names, 1);
	/* what the test itself was started with stays out of it */
	close_range(FIRST_FD + n, ~0u, CLOSE_RANGE_CLOEXEC);
	if (fdstore.priority && sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK,
			&(struct sched_param){ .sched_priority = fdstore.priority }))
		fdstore_die("real-time priority %d", fdstore.priority);
	if (fdstore.has_uid && (setgroups(0, NULL) || setgid(fdstore.uid) || setuid(fdstore.uid)))
		fdstore_die("uid %u", fdstore.uid);
	prctl(PR_SET_PDEATHSIG, SIGKILL);	/* setuid() clears it */
	fexecve(exe, fdstore.argv, environ);
	fdstore_die("%s", fdstore.argv[0]);
}

static void fdstore_start(void)
{
	pid_t pid = fork();

	if (pid < 0)
		fdstore_die("fork");
	if (!pid)
		fdstore_become_service();
	fdstore.pid = pid;
	fdstore.ready = false;
	fdstore_tell("started %d", (int)pid);
}

static void fdstore_reap(void)
{
	int status;

	while (fdstore.pid && waitpid(fdstore.pid, &status, WNOHANG) == fdstore.pid) {
		/* what it sent before it died still counts */
		while (fdstore_take_notification())
			;
		if (WIFSIGNALED(status))
			fdstore_tell("killed %d %d", (int)fdstore.pid, WTERMSIG(status));
		else
			fdstore_tell("ended %d %d", (int)fdstore.pid, WEXITSTATUS(status));
		if (WIFEXITED(status))
			fdstore.hold = true;	/* Restart=on-abnormal */
		fdstore.pid = 0;
		fdstore_sweep_store();
	}
}

static void fdstore_command(void)
{
	char buf[256];
	ssize_t n = read(0, buf, sizeof(buf) - 1);
	char *line, *save = NULL;

	if (n <= 0) {
		fdstore.quit = true;
		return;
	}
	buf[n] = 0;
	for (line = strtok_r(buf, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		if (!strcmp(line, "hold"))
			fdstore.hold = true;
		else if (!strcmp(line, "go"))
			fdstore.hold = false;
		else
			fdstore.quit = true;
	}
}

static void fdstore_stop(void)
{
	uint64_t end = fdstore_now_us() + 3000000;

	if (fdstore.pid)
		kill(fdstore.pid, SIGTERM);
	while (fdstore.pid) {
		struct pollfd p = { .fd = fdstore.signals, .events = POLLIN };
		struct signalfd_siginfo si;

		poll(&p, 1, 50);
		while (read(fdstore.signals, &si, sizeof(si)) > 0)
			;
		while (fdstore_take_notification())
			;
		fdstore_reap();
		if (fdstore.pid && fdstore_now_us() > end)
			kill(fdstore.pid, SIGKILL);
	}
}

/* Milliseconds until the watchdog is due, -1 if there is none (yet: not before READY=1). */
static int fdstore_watchdog(void)
{
	uint64_t now = fdstore_now_us();

	if (!fdstore.watchdog_us || !fdstore.pid || !fdstore.ready)
		return -1;
	if (now - fdstore.fed_us >= fdstore.watchdog_us) {
		kill(fdstore.pid, SIGABRT);
		fdstore.fed_us = now;
	}
	return (int)((fdstore.fed_us + fdstore.watchdog_us - now) / 1000) + 1;
}

static void fdstore_run(void)
{
	struct pollfd p[3] = { { .fd = 0, .events = POLLIN },
			       { .fd = fdstore.notify, .events = POLLIN },
			       { .fd = fdstore.signals, .events = POLLIN } };
	struct signalfd_siginfo si;

	while (!fdstore.quit) {
		if (!fdstore.pid && !fdstore.hold)
			fdstore_start();
		if (poll(p, 3, fdstore_watchdog()) < 0 && errno != EINTR)
			fdstore_die("poll");
		while (fdstore_take_notification())
			;
		while (read(fdstore.signals, &si, sizeof(si)) > 0)
			fdstore.quit |= si.ssi_signo != SIGCHLD;
		fdstore_reap();
		if (p[0].revents)
			fdstore_command();
	}
}

static void fdstore_setup(void)
{
	struct rlimit lim;
	sigset_t set;
	int on = 1;

	if (!getrlimit(RLIMIT_NOFILE, &lim)) {
		lim.rlim_cur = lim.rlim_max;
		setrlimit(RLIMIT_NOFILE, &lim);
	}
	fdstore.notify = fdstore_bound(fdstore.notify_path, SOCK_DGRAM, 0666);
	if (setsockopt(fdstore.notify, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)))
		fdstore_die("SO_PASSCRED");
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	fdstore.signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (fdstore.signals < 0)
		fdstore_die("signalfd");
}

static void fdstore_parse(int argc, char **argv)
{
	int c;

	fdstore.max_store = 512;
	while ((c = getopt(argc, argv, "+n:l:u:m:w:r:No:")) != -1) {
		if (c == 'n') {
			snprintf(fdstore.notify_path, sizeof(fdstore.notify_path), "%s", optarg);
		} else if (c == 'l') {
			fdstore_add_listen(optarg);
		} else if (c == 'u') {
			fdstore.uid = (uid_t)strtoul(optarg, NULL, 10);
			fdstore.has_uid = true;
		} else if (c == 'm') {
			fdstore.max_store = (unsigned int)strtoul(optarg, NULL, 10);
		} else if (c == 'w') {
			fdstore.watchdog_us = strtoull(optarg, NULL, 10);
		} else if (c == 'r') {
			fdstore.priority = (int)strtol(optarg, NULL, 10);
		} else if (c == 'N') {
			fdstore.max_store = 0;
		} else if (c == 'o') {
			fdstore.log = optarg;
		} else {
			_exit(2);
		}
	}
	fdstore.max_store = MIN(fdstore.max_store, (unsigned int)MAX_STORE);
	fdstore.argv = argv + optind;
	if (!fdstore.argv[0] || !fdstore.notify_path[0]) {
		fputs("fdstore: -n PATH and a program are needed\n", stderr);
		_exit(2);
	}
}

/* The whole life of a manager; does not return. */
__attribute__((noreturn))
static void fdstore_main(int argc, char **argv)
{
	fdstore_parse(argc, argv);
	fdstore_setup();
	fdstore_run();
	fdstore_stop();
	_exit(0);
}

#endif /* TESTS_FDSTORE_H */
