/* SPDX-License-Identifier: MIT */
/* A small responder for GET /metrics and GET /health, and nothing else. */
#ifndef CQD_HTTP_H
#define CQD_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include "cq/err.h"

#define CQD_HTTP_REQUEST	8192	/* bytes of a request's head, at most */
#define CQD_HTTP_CONNS		16	/* at the same time; others wait to be accepted */
#define CQD_HTTP_MS		5000	/* from accepting to closing */

struct cqd_server;

enum cqd_http_what { CQD_HTTP_NONE, CQD_HTTP_METRICS, CQD_HTTP_HEALTH };

/**
 * struct cqd_http_req - a request's head
 * @what:   what is asked for, when it may be answered
 * @chunks: the peer takes a body in chunks (HTTP/1.1)
 */
struct cqd_http_req {
	enum cqd_http_what what;
	bool chunks;
};

/* 0: more bytes are needed; else the status to answer with: 200, 400, 404, 405,
 * 431 or 505. @out is set for 200. */
int cqd_http_parse(const char *buf, size_t len, struct cqd_http_req *out);

/* Stream socket at @path, mode socket_mode. 0 or -errno. */
int cqd_http_bind(struct cqd_server *srv, const char *path, struct cq_err *err);
/* TCP: "127.0.0.1:9464" or "[::1]:9464". 0 or -errno. */
int cqd_http_bind_tcp(struct cqd_server *srv, const char *address, struct cq_err *err);
/* Takes over a listening stream socket of the service manager. */
int cqd_http_bind_fd(struct cqd_server *srv, int fd, struct cq_err *err);
/* Connections and sockets; before the server's loop ends. */
void cqd_http_close(struct cqd_server *srv);

#endif /* CQD_HTTP_H */
