// SPDX-License-Identifier: MIT
/*
 * Which process is behind a socket, and when it is gone: a pidfd, and the start
 * time that tells a process from a later one with the same pid.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "daemon/server.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77		/* Linux 6.5 */
#endif

#define START_TIME_FIELD 22	/* of /proc/<pid>/stat, proc(5) */

/**
 * cqd_start_time() - when a process started
 * @pid:        process
 * @start_time: clock ticks after boot
 *
 * Return: 0; -ESRCH no such process; other -errno.
 */
int cqd_start_time(pid_t pid, uint64_t *start_time)
{
	char path[32], buf[1024], *p;
	ssize_t n;
	int fd, i;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	n = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	if (n <= 0)
		return -ESRCH;
	buf[n] = '\0';
	/* Field 2 is the name in parentheses, and may hold any character. */
	p = strrchr(buf, ')');
	for (i = 2; p && i < START_TIME_FIELD; i++)
		p = strchr(p + 1, ' ');
	if (!p)
		return -EINVAL;
	*start_time = strtoull(p + 1, NULL, 10);
	return 0;
}

static int pidfd_open(pid_t pid)
{
	long fd = syscall(SYS_pidfd_open, pid, 0);

	return fd < 0 ? -errno : (int)fd;
}

static bool exited(int pidfd)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	return poll(&p, 1, 0) != 0;
}

/*
 * Start time of the process of @pidfd. It is read by pid, so it is that
 * process's only if the process is still there afterwards.
 */
static int start_time_of(int pidfd, pid_t pid, uint64_t *start_time)
{
	uint64_t t;
	int ret = cqd_start_time(pid, &t);

	if (ret)
		return ret;
	if (exited(pidfd))
		return -ESRCH;
	*start_time = t;
	return 0;
}

/*
 * Without SO_PEERPIDFD: by number. Between connect() and here the process may
 * have died and its pid been given away; then its end of the socket is closed,
 * unless a child still holds it, which no kernel before 6.5 can tell us.
 */
static int pidfd_by_number(int fd, pid_t pid)
{
	struct pollfd p = { .fd = fd, .events = POLLRDHUP };
	int pidfd = pidfd_open(pid);

	if (pidfd < 0)
		return pidfd;
	if (poll(&p, 1, 0) > 0 && p.revents & (POLLHUP | POLLRDHUP)) {
		close(pidfd);
		return -ESRCH;
	}
	return pidfd;
}

/**
 * cqd_peer_open() - hold on to the process that connected
 * @fd:         connected socket
 * @pid:        of SO_PEERCRED
 * @pidfd:      readable once the process is gone, owned by the caller
 * @start_time: its identity together with @pid
 * @err:        text of the failure
 *
 * Return: 0; -ESRCH it is gone already; -EACCES it is not visible from here;
 * other -errno.
 */
int cqd_peer_open(int fd, pid_t pid, int *pidfd, uint64_t *start_time,
		  struct cq_err *err)
{
	socklen_t len = sizeof(int);
	int pfd = -1, ret;

	if (pid <= 0)
		return cq_err_set(err, -EACCES, "the process that connected has no pid here: "
				  "cqd must run in a pid namespace that contains it");
	if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pfd, &len) < 0)
		pfd = errno == ENOPROTOOPT ? pidfd_by_number(fd, pid) : -errno;
	if (pfd < 0)
		return cq_err_set(err, pfd, "cannot watch process %d: %s", (int)pid,
				  strerror(-pfd));
	ret = start_time_of(pfd, pid, start_time);
	if (ret) {
		close(pfd);
		return cq_err_set(err, ret, "cannot identify process %d: %s", (int)pid,
				  strerror(-ret));
	}
	*pidfd = pfd;
	return 0;
}

/**
 * cqd_process_open() - find a process again after a restart
 * @pid:        process
 * @start_time: that it had
 * @pidfd:      owned by the caller
 *
 * Return: 0; -ESRCH it is gone, or the pid is somebody else's; other -errno.
 */
int cqd_process_open(pid_t pid, uint64_t start_time, int *pidfd)
{
	uint64_t t;
	int pfd = pidfd_open(pid), ret;

	if (pfd < 0)
		return pfd;
	ret = start_time_of(pfd, pid, &t);
	if (!ret && t != start_time)
		ret = -ESRCH;
	if (ret)
		close(pfd);
	else
		*pidfd = pfd;
	return ret;
}
