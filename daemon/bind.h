/* SPDX-License-Identifier: MIT */
/* Unix sockets by path; of cqd and of cq-holder. */
#ifndef CQD_BIND_H
#define CQD_BIND_H

#include <stdint.h>
#include "cq/err.h"

/* Bound and listening at @path, with @mode from the first moment; a socket that nobody
 * answers on is replaced. 0; -EADDRINUSE; other -errno. */
int cqd_bind_unix(const char *path, int type, uint32_t mode, int backlog, int *out,
		  struct cq_err *err);

#endif /* CQD_BIND_H */
