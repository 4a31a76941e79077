/* SPDX-License-Identifier: MIT */
/*
 * Subscribers: connections that asked to hear of events. Each has a ring of
 * fixed size; what it is too slow for is counted and told as such. The loop
 * never waits for one, and one costs no more memory than its ring.
 */
#ifndef CQD_EVENTS_H
#define CQD_EVENTS_H

#include <uv.h>
#include "cq/list.h"
#include "daemon/count.h"

#define CQD_SUBS	64	/* subscribers */
#define CQD_SUBS_ADMIN	16	/* of them, kept for the admin socket */
#define CQD_SUBS_NS	8	/* of one namespace, on its sockets */
#define CQD_SUB_RING	1024	/* events of one that does not read */

struct cqd_server;
struct cqd_conn;
struct cqd_req;

/**
 * struct cqd_events - all subscribers
 * @subs: their list, @n of them
 * @lost: events that some were too slow for, since cqd started
 * @idle: keeps the loop turning while a snapshot goes on
 */
struct cqd_events {
	struct list_head subs;
	unsigned int n;
	uint64_t lost;
	uv_idle_t idle;
};

void cqd_events_init(struct cqd_server *srv);
void cqd_events_close(struct cqd_server *srv);
/* Handler of Subscribe. 0; -EALREADY; -EUSERS; -ENOENT; -ENOMEM. */
int cqd_subscribe(struct cqd_req *req);
/* Sends what has come together; once per turn of the loop. */
void cqd_events_flush(struct cqd_server *srv);
/* The socket of a subscriber that was full takes more. */
void cqd_events_writable(struct cqd_conn *conn);
/* The connection ends. */
void cqd_events_gone(struct cqd_conn *conn);
/* An event of the whole daemon. */
void cqd_events_tell(struct cqd_server *srv, enum cqd_notice_kind kind);

#endif /* CQD_EVENTS_H */
