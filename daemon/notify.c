// SPDX-License-Identifier: MIT
/*
 * What the service manager is told: readiness, a status line, the watchdog.
 * Without one (NOTIFY_SOCKET unset) every call here does nothing.
 *
 * Nobody waits for room in its socket (manager.c): what finds none is what there
 * is to say, brought up to date, a little later. The order is kept, and only a
 * loop that turns feeds the watchdog.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include "cq/log.h"
#include "daemon/manager.h"
#include "daemon/server.h"

#define STATUS_MS	5000
#define RETRY_MS	100	/* the manager's socket was full */

/*
 * struct cqd_notify - the service manager's view
 * @to:        its socket
 * @ms:        between two status lines
 * @watchdog:  it wants to hear from the loop
 * @ready, @reload_us: to be said: started or reloaded; a reload began then, or 0
 */
struct cqd_notify {
	struct cqd_server *srv;
	uv_timer_t timer;
	struct cqd_manager to;
	uint64_t ms, reload_us;
	bool watchdog, ready;
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

/* False: no room now. A manager that is not there cannot be told that. */
static bool tell(const struct cqd_notify *n, const char *text)
{
	return cqd_manager_send(&n->to, text, -1) != -EAGAIN;
}

static bool tell_reload(struct cqd_notify *n)
{
	char text[64];

	if (!n->reload_us)
		return true;
	snprintf(text, sizeof(text), "RELOADING=1\nMONOTONIC_USEC=%" PRIu64, n->reload_us);
	if (!tell(n, text))
		return false;
	n->reload_us = 0;
	return true;
}

static bool tell_status(struct cqd_notify *n)
{
	struct cqd_stats st;
	char text[256];

	cqd_store_stats(n->srv->store, &st);
	snprintf(text, sizeof(text), "%s%sSTATUS=%" PRIu64 " pages in %" PRIu64 " of %" PRIu64
		 " MiB, %" PRIu64 " clients, %" PRIu64 " orphaned", n->ready ? "READY=1\n" : "",
		 n->watchdog ? "WATCHDOG=1\n" : "", st.pages_sealed, st.pool_used >> 20,
		 st.pool_limit >> 20, st.clients, st.orphans);
	if (!tell(n, text))
		return false;
	n->ready = false;
	return true;
}

static void on_timer(uv_timer_t *timer);

/* All there is to say, in order; the rest of it when there may be room. */
static void say(struct cqd_notify *n)
{
	bool all;

	if (n->to.fd < 0)
		return;
	all = tell_reload(n) && tell_status(n);
	uv_timer_start(&n->timer, on_timer, all ? n->ms : MIN(n->ms, RETRY_MS), 0);
}

/* From the loop, so that a loop that hangs is noticed. */
static void on_timer(uv_timer_t *timer)
{
	say(timer->data);
}

static void open_manager(struct cqd_notify *n)
{
	int ret = cqd_manager_open(&n->to);

	if (ret == -EINVAL)
		cq_warn("NOTIFY_SOCKET=%s: not an address that cqd can send to",
			getenv("NOTIFY_SOCKET"));
	else if (ret && ret != -ENOTCONN)
		cq_warn("the service manager will hear nothing of cqd: socket: %s",
			strerror(-ret));
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
	uint64_t usec = 0;

	if (!n)
		return NULL;
	n->srv = srv;
	n->ms = STATUS_MS;
	open_manager(n);
	n->watchdog = sd_watchdog_enabled(0, &usec) > 0;
	if (n->watchdog)
		n->ms = MAX(1, MIN(n->ms, usec / 2000));
	uv_timer_init(srv->loop, &n->timer);
	n->timer.data = n;
	if (n->to.fd >= 0)
		uv_timer_start(&n->timer, on_timer, n->ms, 0);
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
	if (!n)
		return;
	cqd_manager_close(&n->to);
	uv_close((uv_handle_t *)&n->timer, on_closed);
}

/**
 * cqd_notify_ready() - started, or reloaded
 * @n: handle
 */
void cqd_notify_ready(struct cqd_notify *n)
{
	n->ready = true;
	say(n);
}

/**
 * cqd_notify_reloading() - SIGHUP was received
 * @n: handle
 *
 * The time tells the service manager which reload this answers.
 */
void cqd_notify_reloading(struct cqd_notify *n)
{
	n->ready = false;	/* of the reload before: this one's follows */
	n->reload_us = cqd_clock_us();
	if (n->to.fd >= 0)
		tell_reload(n);	/* or with what is said next */
}

/**
 * cqd_notify_stopping() - SIGTERM was received
 * @n: handle; NULL: stopped before it served
 *
 * Once: whoever asked does not wait for a manager that reads nothing.
 */
void cqd_notify_stopping(struct cqd_notify *n)
{
	if (n && n->to.fd >= 0)
		tell(n, "STOPPING=1\nSTATUS=stopping");
}
