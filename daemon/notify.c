// SPDX-License-Identifier: MIT
/*
 * What the service manager is told: readiness, a status line, the watchdog.
 * Without one (NOTIFY_SOCKET unset) every call here does nothing.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include "cq/log.h"
#include "daemon/server.h"

#define STATUS_MS 5000

/*
 * struct cqd_notify - the service manager's view
 * @watchdog: it wants to hear from the loop
 */
struct cqd_notify {
	struct cqd_server *srv;
	uv_timer_t timer;
	bool watchdog;
};

/**
 * cqd_clock_us() - microseconds of CLOCK_MONOTONIC
 */
uint64_t cqd_clock_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static void send_status(struct cqd_notify *n, const char *state)
{
	struct cqd_stats st;

	cqd_store_stats(n->srv->store, &st);
	sd_notifyf(0, "%sSTATUS=%" PRIu64 " pages in %" PRIu64 " of %" PRIu64
		   " MiB, %" PRIu64 " clients, %" PRIu64 " orphaned", state, st.pages_sealed,
		   st.pool_used >> 20, st.pool_limit >> 20, st.clients, st.orphans);
}

/* From the loop, so that a loop that hangs is noticed. */
static void on_timer(uv_timer_t *timer)
{
	struct cqd_notify *n = timer->data;

	send_status(n, n->watchdog ? "WATCHDOG=1\n" : "");
}

/**
 * cqd_notify_new() - start the watchdog's timer, if one is wanted
 * @srv: server, with its store
 *
 * Return: handle, ended with cqd_notify_close(); NULL: out of memory.
 */
struct cqd_notify *cqd_notify_new(struct cqd_server *srv)
{
	struct cqd_notify *n = calloc(1, sizeof(*n));
	uint64_t usec = 0, ms = STATUS_MS;

	if (!n)
		return NULL;
	n->srv = srv;
	n->watchdog = sd_watchdog_enabled(0, &usec) > 0;
	if (n->watchdog)
		ms = MAX(1, MIN(ms, usec / 2000));
	uv_timer_init(srv->loop, &n->timer);
	n->timer.data = n;
	if (getenv("NOTIFY_SOCKET"))
		uv_timer_start(&n->timer, on_timer, ms, ms);
	return n;
}

static void on_closed(uv_handle_t *handle)
{
	free(handle->data);
}

/**
 * cqd_notify_close() - stop the timer
 * @n: freed when the loop runs on; accepts NULL
 */
void cqd_notify_close(struct cqd_notify *n)
{
	if (n)
		uv_close((uv_handle_t *)&n->timer, on_closed);
}

/**
 * cqd_notify_ready() - started, or reloaded
 * @n: handle
 */
void cqd_notify_ready(struct cqd_notify *n)
{
	send_status(n, "READY=1\n");
}

/**
 * cqd_notify_reloading() - SIGHUP was received
 * @n: handle
 *
 * The time tells the service manager which reload this answers.
 */
void cqd_notify_reloading(struct cqd_notify *n)
{
	sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64, cqd_clock_us());
}

/**
 * cqd_notify_stopping() - SIGTERM was received
 * @n: handle
 */
void cqd_notify_stopping(struct cqd_notify *n)
{
	sd_notify(0, "STOPPING=1\nSTATUS=stopping");
}
