// SPDX-License-Identifier: MIT
/* Binding a Unix socket: a path that a dead process left behind is taken over. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "daemon/bind.h"

static int address(struct sockaddr_un *sa, const char *path, struct cq_err *err)
{
	size_t len = strlen(path);

	if (!len || len >= sizeof(sa->sun_path))
		return cq_err_set(err, -ENAMETOOLONG, "socket path \"%s\": 1 to %zu characters",
				  path, sizeof(sa->sun_path) - 1);
	memset(sa, 0, sizeof(*sa));
	sa->sun_family = AF_UNIX;
	memcpy(sa->sun_path, path, len);
	return 0;
}

/* A socket that refuses connections was left behind by a process that is gone. */
static int remove_stale(const struct sockaddr_un *sa, int type, struct cq_err *err)
{
	struct stat st;
	int fd, ret;

	if (lstat(sa->sun_path, &st) < 0)
		return errno == ENOENT ? 0 :
		       cq_err_set(err, -errno, "%s: %s", sa->sun_path, strerror(errno));
	/* connect() says the same of a stale socket and of any other file */
	if (!S_ISSOCK(st.st_mode))
		return cq_err_set(err, -EADDRINUSE, "%s exists and is no socket",
				  sa->sun_path);
	fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return cq_err_set(err, -errno, "socket: %s", strerror(errno));
	ret = connect(fd, (const struct sockaddr *)sa, sizeof(*sa)) < 0 ? -errno : 0;
	close(fd);
	if (ret != -ECONNREFUSED)
		return cq_err_set(err, -EADDRINUSE, "%s is in use: %s", sa->sun_path,
				  ret == 0 || ret == -EAGAIN ? "another cqd answers there" :
				  strerror(-ret));
	if (unlink(sa->sun_path) < 0)
		return cq_err_set(err, -errno, "cannot remove the stale socket %s: %s",
				  sa->sun_path, strerror(errno));
	return 0;
}

/* The mode holds from the first moment: no second in which others can enter. */
static int bind_mode(int fd, const struct sockaddr_un *sa, uint32_t mode)
{
	mode_t old = umask(0777 & ~(mode_t)mode);
	int ret = bind(fd, (const struct sockaddr *)sa, sizeof(*sa)) < 0 ? -errno : 0;

	umask(old);
	return ret;
}

/**
 * cqd_bind_unix() - bind a socket and listen on it
 * @path:    of the socket; one that nobody answers on is replaced
 * @type:    SOCK_SEQPACKET or SOCK_STREAM
 * @mode:    permission bits
 * @backlog: as listen(2) takes it
 * @out:     the socket, set on success
 * @err:     text of the failure
 *
 * Return: 0; -EADDRINUSE somebody answers there; other -errno.
 */
int cqd_bind_unix(const char *path, int type, uint32_t mode, int backlog, int *out,
		  struct cq_err *err)
{
	struct sockaddr_un sa;
	int fd, ret;

	ret = address(&sa, path, err);
	if (!ret)
		ret = remove_stale(&sa, type, err);
	if (ret)
		return ret;
	fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return cq_err_set(err, -errno, "socket: %s", strerror(errno));
	ret = bind_mode(fd, &sa, mode);
	if (ret) {
		cq_err_set(err, ret, "cannot bind %s: %s; its directory must exist and be "
			   "writable, or choose another with --socket and --admin-socket",
			   path, strerror(-ret));
		goto err_close;
	}
	if (listen(fd, backlog) < 0) {
		ret = cq_err_set(err, -errno, "listen on %s: %s", path, strerror(errno));
		goto err_unlink;
	}
	*out = fd;
	return 0;

err_unlink:
	unlink(path);
err_close:
	close(fd);
	return ret;
}
