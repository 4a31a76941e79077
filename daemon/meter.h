/* SPDX-License-Identifier: MIT */
/*
 * How busy the loop is and how long requests take.
 *
 * The turn of the loop is also where events collected meanwhile go out.
 */
#ifndef CQD_METER_H
#define CQD_METER_H

#include <stdint.h>
#include <uv.h>
#include "daemon/count.h"

#define CQD_REQUESTS		96	/* numbers of Msg's body are below */
#define CQD_TURN_BOUNDS		13
#define CQD_REQUEST_BOUNDS	12

/* Nanoseconds. */
extern const uint64_t cqd_turn_bounds_ns[CQD_TURN_BOUNDS];
extern const uint64_t cqd_request_bounds_ns[CQD_REQUEST_BOUNDS];

/**
 * struct cqd_request_count - one kind of request
 * @ok:     answered with what was asked for
 * @failed: answered with an Error
 * @took:   nanoseconds from reading it to its answer
 */
struct cqd_request_count {
	uint64_t ok, failed;
	struct cqd_hist took;
};

/**
 * struct cqd_meter - figures of the loop and of requests
 * @turns:   nanoseconds that turns of the loop were busy
 * @request: by number of the body
 * @body:    of the request being handled
 * @later:   it is answered later, by cqd_pending_end()
 */
struct cqd_meter {
	struct cqd_hist turns;
	struct cqd_request_count request[CQD_REQUESTS];
	unsigned int body;
	bool later;
	uv_prepare_t prepare;
	uint64_t last, last_idle;
};

struct cqd_server;

/* Before the loop runs. The handle does not keep the loop alive. */
void cqd_meter_start(struct cqd_server *srv);
void cqd_meter_close(struct cqd_server *srv);
/* A request of @body took from @start (uv_hrtime()) until now. */
void cqd_meter_request(struct cqd_meter *m, unsigned int body, uint64_t start, int ret);

#endif /* CQD_METER_H */
