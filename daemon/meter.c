// SPDX-License-Identifier: MIT
/*
 * The loop's latency: how long a turn is busy is how long anybody may have to
 * wait. Callbacks of sockets run inside of libuv's poll, so the time between
 * two polls would not do: it is the time of a turn less what was slept in it.
 */
#include "daemon/server.h"

#define US 1000ull
#define MS 1000000ull

const uint64_t cqd_turn_bounds_ns[CQD_TURN_BOUNDS] = {
	50 * US, 100 * US, 250 * US, 500 * US, 1 * MS, 2500 * US, 5 * MS, 10 * MS,
	25 * MS, 50 * MS, 100 * MS, 250 * MS, 1000 * MS,
};

const uint64_t cqd_request_bounds_ns[CQD_REQUEST_BOUNDS] = {
	5 * US, 10 * US, 25 * US, 50 * US, 100 * US, 250 * US, 500 * US, 1 * MS,
	2500 * US, 10 * MS, 100 * MS, 1000 * MS,
};

static void on_prepare(uv_prepare_t *prepare)
{
	struct cqd_server *srv = prepare->data;
	struct cqd_meter *m = &srv->meter;
	uint64_t now, idle;

	cqd_events_flush(srv);
	now = uv_hrtime();
	idle = uv_metrics_idle_time(srv->loop);
	cqd_hist_add(&m->turns, cqd_turn_bounds_ns, CQD_TURN_BOUNDS,
		     now - m->last - MIN(now - m->last, idle - m->last_idle));
	m->last = now;
	m->last_idle = idle;
}

/**
 * cqd_meter_start() - measure every turn of the loop
 * @srv: server, its loop not run yet
 */
void cqd_meter_start(struct cqd_server *srv)
{
	uv_loop_configure(srv->loop, UV_METRICS_IDLE_TIME);
	uv_prepare_init(srv->loop, &srv->meter.prepare);
	srv->meter.prepare.data = srv;
	srv->meter.last = uv_hrtime();
	uv_prepare_start(&srv->meter.prepare, on_prepare);
	uv_unref((uv_handle_t *)&srv->meter.prepare);
}

/**
 * cqd_meter_close() - no more
 * @srv: server
 */
void cqd_meter_close(struct cqd_server *srv)
{
	uv_close((uv_handle_t *)&srv->meter.prepare, NULL);
}

/**
 * cqd_meter_request() - a request was answered
 * @m:     meter
 * @body:  number of Msg's body
 * @start: uv_hrtime() when it was read
 * @ret:   0 or -errno that it was answered with
 */
void cqd_meter_request(struct cqd_meter *m, unsigned int body, uint64_t start, int ret)
{
	struct cqd_request_count *r;

	if (body >= CQD_REQUESTS)
		return;
	r = &m->request[body];
	if (ret)
		r->failed++;
	else
		r->ok++;
	cqd_hist_add(&r->took, cqd_request_bounds_ns, CQD_REQUEST_BOUNDS,
		     uv_hrtime() - start);
}
