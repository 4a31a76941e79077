/* SPDX-License-Identifier: MIT */
/* The service manager's socket, without waiting for room in it. */
#ifndef CQD_MANAGER_H
#define CQD_MANAGER_H

#include <sys/socket.h>
#include <sys/un.h>

/**
 * struct cqd_manager - somebody to tell
 * @fd:  socket, -1: nobody
 * @to:  address of the service manager, of @len bytes
 */
struct cqd_manager {
	int fd;
	struct sockaddr_un to;
	socklen_t len;
};

/* 0; -ENOTCONN there is no manager; -EINVAL an address cqd cannot send to; -errno. */
int cqd_manager_open(struct cqd_manager *m);
void cqd_manager_close(struct cqd_manager *m);
/* 0; -EAGAIN no room now; other -errno. */
int cqd_manager_send(const struct cqd_manager *m, const char *text, int fd);

#endif /* CQD_MANAGER_H */
