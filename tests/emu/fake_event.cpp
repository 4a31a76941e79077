// SPDX-License-Identifier: MIT
/*
 * Events. What a record waits for is fixed when it is made: recording an event
 * again does not change what others already wait for.
 */
#include <ctime>

#include "tests/emu/fake.hpp"

namespace fake {

struct event {
	unsigned int flags;
	record_ptr last;
};

/* Under big. */
static auto &events = *new std::map<struct cqcu_event *, std::shared_ptr<struct event>>;

static std::shared_ptr<struct event> event_get(struct cqcu_event *e)
{
	auto i = events.find(e);

	return i == events.end() ? nullptr : i->second;
}

static double now_ms()
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec * 1e-6;
}

static int finish(struct record *r)
{
	std::lock_guard<std::mutex> hold(r->m);

	r->ms = now_ms();
	r->done = true;
	r->c.notify_all();
	return CQCU_SUCCESS;
}

/* Ends too when the context is lost, since then no record is ever finished. */
static int wait_record(struct record *r, struct cqcu_ctx *ctx)
{
	std::unique_lock<std::mutex> hold(r->m);

	while (!r->done && !ctx->sticky)
		r->c.wait_for(hold, std::chrono::milliseconds(5));
	return ctx->sticky;
}

namespace calls {

int cuEventCreate(struct cqcu_event **e, unsigned int flags)
{
	std::lock_guard<std::mutex> hold(big);

	if (!e || flags & ~7u)
		return CQCU_ERROR_INVALID_VALUE;
	if ((flags & CQCU_EVENT_INTERPROCESS))
		return CQCU_ERROR_NOT_SUPPORTED;
	auto made = std::make_shared<struct event>();

	made->flags = flags;
	*e = reinterpret_cast<struct cqcu_event *>(made.get());
	events[*e] = made;
	return CQCU_SUCCESS;
}

int cuEventDestroy(struct cqcu_event *e)
{
	std::lock_guard<std::mutex> hold(big);

	return events.erase(e) ? CQCU_SUCCESS : CQCU_ERROR_INVALID_HANDLE;
}

int cuEventRecord(struct cqcu_event *e, struct cqcu_stream *s)
{
	std::lock_guard<std::mutex> hold(big);
	auto event = event_get(e);
	stream_ptr st = stream_get(s);
	record_ptr r = std::make_shared<struct record>();
	int res;

	if (!event || !st)
		return CQCU_ERROR_INVALID_HANDLE;
	if (st->invalid)
		return CQCU_ERROR_STREAM_CAPTURE_INVALIDATED;
	if (st->cap) {
		r->cap = st->cap;
		r->tail = st->tail;
		event->last = r;
		return CQCU_SUCCESS;
	}
	res = enqueue(st, [r]() { return finish(r.get()); });
	if (!res)
		event->last = r;
	return res;
}

int cuEventQuery(struct cqcu_event *e)
{
	std::lock_guard<std::mutex> hold(big);
	auto event = event_get(e);

	if (!event)
		return CQCU_ERROR_INVALID_HANDLE;
	if (!event->last)
		return CQCU_SUCCESS;
	if (event->last->cap)
		return CQCU_ERROR_CAPTURED_EVENT;
	std::lock_guard<std::mutex> also(event->last->m);

	return event->last->done ? CQCU_SUCCESS : CQCU_ERROR_NOT_READY;
}

int cuEventSynchronize(struct cqcu_event *e)
{
	struct cqcu_ctx *ctx = current();
	record_ptr r;

	{
		std::lock_guard<std::mutex> hold(big);
		auto event = event_get(e);

		if (!event)
			return CQCU_ERROR_INVALID_HANDLE;
		r = event->last;
		if (!r)
			return CQCU_SUCCESS;
		if (r->cap)
			return CQCU_ERROR_CAPTURED_EVENT;
	}
	return wait_record(r.get(), ctx);
}

int cuEventElapsedTime(float *ms, struct cqcu_event *from, struct cqcu_event *to)
{
	std::lock_guard<std::mutex> hold(big);
	auto a = event_get(from), b = event_get(to);

	if (!ms)
		return CQCU_ERROR_INVALID_VALUE;
	if (!a || !b || !a->last || !b->last || a->last->cap || b->last->cap ||
	    (a->flags | b->flags) & CQCU_EVENT_DISABLE_TIMING)
		return CQCU_ERROR_INVALID_HANDLE;
	std::lock_guard<std::mutex> one(a->last->m);

	if (!a->last->done)
		return CQCU_ERROR_NOT_READY;
	if (a->last == b->last) {
		*ms = 0;
		return CQCU_SUCCESS;
	}
	std::lock_guard<std::mutex> two(b->last->m);

	if (!b->last->done)
		return CQCU_ERROR_NOT_READY;
	*ms = (float)(b->last->ms - a->last->ms);
	return CQCU_SUCCESS;
}

int cuStreamWaitEvent(struct cqcu_stream *s, struct cqcu_event *e, unsigned int flags)
{
	std::lock_guard<std::mutex> hold(big);
	stream_ptr st = stream_get(s);
	auto event = event_get(e);
	struct cqcu_ctx *ctx;
	record_ptr r;

	if (!st || !event)
		return CQCU_ERROR_INVALID_HANDLE;
	if (flags > 1)
		return CQCU_ERROR_INVALID_VALUE;
	r = event->last;
	if (!r)
		return CQCU_SUCCESS;
	if (r->cap || st->cap)
		return capture_join(st, r);
	ctx = st->ctx;
	return enqueue(st, [r, ctx]() { return wait_record(r.get(), ctx); });
}

} /* namespace calls */
} /* namespace fake */
