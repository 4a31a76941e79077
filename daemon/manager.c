// SPDX-License-Identifier: MIT
/*
 * The service manager's socket. sd_notify(3) waits while it is full, and on the
 * loop all clients would wait with it: here is what sends and does not wait.
 */
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "daemon/manager.h"

/**
 * cqd_manager_open() - a socket to the manager of the environment
 * @m: filled; fd is -1 on failure
 *
 * NOTIFY_SOCKET as sd_notify(3) reads it: a path, or a name that starts with "@".
 *
 * Return: 0; -ENOTCONN there is no manager; -EINVAL an address that cqd cannot send
 * to; other -errno.
 */
int cqd_manager_open(struct cqd_manager *m)
{
	const char *path = getenv("NOTIFY_SOCKET");
	size_t len = path ? strlen(path) : 0;

	*m = (struct cqd_manager){ .fd = -1, .to = { .sun_family = AF_UNIX } };
	if (!path)
		return -ENOTCONN;
	if (len < 2 || len >= sizeof(m->to.sun_path) || (path[0] != '/' && path[0] != '@'))
		return -EINVAL;
	memcpy(m->to.sun_path, path, len);
	m->len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
	if (path[0] == '@')
		m->to.sun_path[0] = '\0';
	else
		m->len++;
	m->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	return m->fd < 0 ? -errno : 0;
}

/**
 * cqd_manager_close() - nobody to tell any more
 * @m: possibly closed already
 */
void cqd_manager_close(struct cqd_manager *m)
{
	if (m->fd >= 0)
		close(m->fd);
	m->fd = -1;
}

/**
 * cqd_manager_send() - send a message, or do not
 * @m:    open
 * @text: as for sd_notify(3)
 * @fd:   descriptor that goes with it, -1: none
 *
 * Thread-safe.
 *
 * Return: 0; -EAGAIN there is no room now; other -errno.
 */
int cqd_manager_send(const struct cqd_manager *m, const char *text, int fd)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int))];
	} ctl = { 0 };
	/* sendmsg() changes neither, but takes no const. */
	struct iovec iov = { (void *)(uintptr_t)text, strlen(text) };
	struct msghdr mh = { .msg_name = (void *)(uintptr_t)&m->to, .msg_namelen = m->len,
			     .msg_iov = &iov, .msg_iovlen = 1 };
	struct cmsghdr *c;
	ssize_t ret;

	if (fd >= 0) {
		mh.msg_control = ctl.buf;
		mh.msg_controllen = sizeof(ctl.buf);
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(fd));
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	}
	do {
		ret = sendmsg(m->fd, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
	} while (ret < 0 && errno == EINTR);
	if (ret >= 0)
		return 0;
	return errno == ENOBUFS || errno == ENOMEM ? -EAGAIN : -errno;
}
