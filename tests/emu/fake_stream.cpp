// SPDX-License-Identifier: MIT
/*
 * Streams: each has a thread that takes one step after another. Order between
 * streams is what the caller asked for by events, and what the legacy stream
 * implies: each step in it comes after all earlier ones of every stream that
 * is not CU_STREAM_NON_BLOCKING, and before all later ones of those.
 *
 * Handles are looked up, never followed: a stale one is an error.
 */
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <pthread.h>
#include <unistd.h>

#include "tests/emu/fake.hpp"

namespace fake {

static auto &streams = *new std::map<struct cqcu_stream *, stream_ptr>;	/* under big */
static std::atomic<bool> exiting;

static bool is_blocking(const stream_ptr &s)
{
	return !(s->flags & CQCU_STREAM_NON_BLOCKING);
}

static void hesitate(struct stream *s)
{
	if (knobs.delay_us)
		usleep((useconds_t)(next_random(&s->random) % (knobs.delay_us + 1)));
}

static void wait_done(const stream_ptr &s, uint64_t last)
{
	std::unique_lock<std::mutex> hold(s->m);

	s->c.wait(hold, [&] { return s->done >= last; });
}

static void take_step(struct stream *s, const struct step &step)
{
	int res;

	for (auto &a : step.after)
		wait_done(a.first, a.second);
	hesitate(s);
	/* a context that is lost does nothing more, but everything ends */
	if (s->ctx->sticky || exiting)
		return;
	res = step.run();
	if (res) {
		int none = CQCU_SUCCESS;

		s->ctx->sticky.compare_exchange_strong(none, res);
	}
}

static void *stream_main(void *arg)
{
	stream_ptr *handed = static_cast<stream_ptr *>(arg), s = *handed;

	delete handed;
	for (;;) {
		std::unique_lock<std::mutex> hold(s->m);
		struct step step;

		s->c.wait(hold, [&] { return s->stop || !s->queue.empty(); });
		if (s->queue.empty())
			return nullptr;
		step = std::move(s->queue.front());
		s->queue.pop_front();
		hold.unlock();
		take_step(s.get(), step);
		step = {};
		hold.lock();
		s->done++;
		s->c.notify_all();
	}
}

static stream_ptr stream_new(struct cqcu_ctx *ctx, unsigned int flags)
{
	static std::atomic<uint64_t> index;
	stream_ptr s = std::make_shared<struct stream>();
	stream_ptr *handed = new stream_ptr(s);
	sigset_t all, before;
	pthread_attr_t attr;
	pthread_t id;
	int ret;

	s->ctx = ctx;
	s->flags = flags;
	s->random = knobs.seed * 1000003 + index++;
	/* the process's signals are for its own threads, but faults are ours */
	sigfillset(&all);
	for (int sig : { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT })
		sigdelset(&all, sig);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	ret = pthread_create(&id, &attr, stream_main, handed);
	pthread_attr_destroy(&attr);
	pthread_sigmask(SIG_SETMASK, &before, nullptr);
	if (ret) {
		delete handed;
		return nullptr;
	}
	return s;
}

static void stream_end(const stream_ptr &s)
{
	std::lock_guard<std::mutex> hold(s->m);

	s->stop = true;
	s->c.notify_all();
}

static stream_ptr legacy_of(struct cqcu_ctx *ctx)
{
	if (!ctx->legacy)
		ctx->legacy = stream_new(ctx, CQCU_STREAM_DEFAULT);
	return ctx->legacy;
}

static stream_ptr blocking_new(struct cqcu_ctx *ctx, unsigned int flags)
{
	stream_ptr s = stream_new(ctx, flags);

	if (s && is_blocking(s))
		ctx->streams.push_back(s);
	return s;
}

/* CU_STREAM_PER_THREAD: one for each thread and context. */
static stream_ptr per_thread(struct cqcu_ctx *ctx)
{
	struct mine {
		std::map<struct cqcu_ctx *, stream_ptr> of;
		~mine()
		{
			for (auto &i : of)
				stream_end(i.second);
		}
	};
	static thread_local struct mine mine;
	stream_ptr &s = mine.of[ctx];

	if (!s)
		s = blocking_new(ctx, CQCU_STREAM_DEFAULT);
	return s;
}

stream_ptr stream_get(struct cqcu_stream *s)
{
	if (!s || s == CQCU_STREAM_LEGACY)
		return legacy_of(current());
	if (s == CQCU_STREAM_PER_THREAD)
		return per_thread(current());
	auto i = streams.find(s);

	return i == streams.end() ? nullptr : i->second;
}

static void add_after(struct step *step, const stream_ptr &s)
{
	std::lock_guard<std::mutex> hold(s->m);

	if (s->done < s->pushed)
		step->after.emplace_back(s, s->pushed);
}

static uint64_t push(const stream_ptr &s, struct step step)
{
	struct cqcu_ctx *ctx = s->ctx;

	if (s == ctx->legacy) {
		for (const stream_ptr &other : ctx->streams)
			add_after(&step, other);
	} else if (is_blocking(s) && ctx->legacy) {
		add_after(&step, ctx->legacy);
	}
	std::lock_guard<std::mutex> hold(s->m);

	s->queue.push_back(std::move(step));
	s->c.notify_all();
	return ++s->pushed;
}

int enqueue(const stream_ptr &s, std::function<int()> run)
{
	struct step step;

	if (s->ctx->sticky)
		return s->ctx->sticky;
	if (s->cap || s->invalid)
		return capture_step(s, std::move(run));
	if (s == s->ctx->legacy && capture_implicit(s->ctx))
		return CQCU_ERROR_STREAM_CAPTURE_IMPLICIT;
	step.run = std::move(run);
	push(s, std::move(step));
	return CQCU_SUCCESS;
}

int wait_idle(const stream_ptr &s, uint64_t last)
{
	wait_done(s, last);
	return s->ctx->sticky;
}

/* A step that does nothing, but whose end says that all before it are done. */
static uint64_t push_mark(const stream_ptr &s)
{
	struct step step;

	step.run = [] { return CQCU_SUCCESS; };
	return push(s, std::move(step));
}

int sync_all(struct cqcu_ctx *ctx)
{
	std::vector<std::pair<stream_ptr, uint64_t>> all;

	{
		std::lock_guard<std::mutex> hold(big);
		stream_ptr legacy = legacy_of(ctx);

		if (!legacy)
			return CQCU_ERROR_OUT_OF_MEMORY;
		all.emplace_back(legacy, push_mark(legacy));
		for (auto &i : streams)
			if (i.second->ctx == ctx && !is_blocking(i.second))
				all.emplace_back(i.second, push_mark(i.second));
	}
	for (auto &a : all)
		wait_done(a.first, a.second);
	return ctx->sticky;
}

int run_sync(std::function<int()> run)
{
	uint64_t last;
	stream_ptr s;
	int res;

	{
		std::lock_guard<std::mutex> hold(big);

		s = legacy_of(current());
		if (!s)
			return CQCU_ERROR_OUT_OF_MEMORY;
		res = enqueue(s, std::move(run));
		if (res)
			return res;
		last = s->pushed;
	}
	return wait_idle(s, last);
}

/* Before the process ends: no step begins any more, and those under way end soon. */
void streams_quiesce()
{
	std::vector<stream_ptr> all;

	exiting = true;
	{
		std::lock_guard<std::mutex> hold(big);

		for (auto &i : streams)
			all.push_back(i.second);
	}
	for (auto &s : all) {
		std::unique_lock<std::mutex> hold(s->m);

		s->c.wait_for(hold, std::chrono::milliseconds(200),
			      [&] { return s->done >= s->pushed; });
	}
}

static bool holds(uint64_t value, uint64_t want, unsigned int how)
{
	return how == CQCU_STREAM_WAIT_VALUE_GEQ ? (int64_t)(value - want) >= 0 :
	       how == CQCU_STREAM_WAIT_VALUE_EQ ? value == want : (value & want) != 0;
}

/* The memory is another process's too: there is nobody who would wake us. */
static int wait_value(struct cqcu_ctx *ctx, cqcu_ptr p, uint64_t want, unsigned int how)
{
	uint64_t value;
	int res;

	for (;;) {
		res = copy_out(&value, p, sizeof(value));
		if (res || holds(value, want, how) || exiting || ctx->sticky)
			return res;
		usleep(50);
	}
}

static int write_value(cqcu_ptr p, uint64_t value)
{
	std::atomic_thread_fence(std::memory_order_release);
	return copy_in(p, &value, sizeof(value));
}

namespace calls {

int cuStreamCreate(struct cqcu_stream **s, unsigned int flags)
{
	return cuStreamCreateWithPriority(s, flags, 0);
}

int cuStreamCreateWithPriority(struct cqcu_stream **s, unsigned int flags, int)
{
	std::lock_guard<std::mutex> hold(big);
	stream_ptr made;

	if (!s || flags & ~1u)
		return CQCU_ERROR_INVALID_VALUE;
	made = blocking_new(current(), flags);
	if (!made)
		return CQCU_ERROR_OUT_OF_MEMORY;
	*s = reinterpret_cast<struct cqcu_stream *>(made.get());
	streams[*s] = made;
	return CQCU_SUCCESS;
}

/* What is queued still runs, as with a GPU; the thread ends after it. */
int cuStreamDestroy(struct cqcu_stream *s)
{
	std::lock_guard<std::mutex> hold(big);
	auto i = streams.find(s);

	if (i == streams.end())
		return CQCU_ERROR_INVALID_HANDLE;
	stream_ptr gone = i->second;
	auto &list = gone->ctx->streams;

	capture_abandon(gone);
	list.erase(std::remove(list.begin(), list.end(), gone), list.end());
	streams.erase(i);
	stream_end(gone);
	return CQCU_SUCCESS;
}

int cuStreamSynchronize(struct cqcu_stream *s)
{
	stream_ptr st;
	uint64_t last;

	{
		std::lock_guard<std::mutex> hold(big);

		st = stream_get(s);
		if (!st)
			return CQCU_ERROR_INVALID_HANDLE;
		if (st->cap) {
			capture_blocks();
			return CQCU_ERROR_STREAM_CAPTURE_UNSUPPORTED;
		}
		last = push_mark(st);
	}
	return wait_idle(st, last);
}

int cuStreamQuery(struct cqcu_stream *s)
{
	std::lock_guard<std::mutex> hold(big);
	stream_ptr st = stream_get(s);
	struct step all;

	if (!st)
		return CQCU_ERROR_INVALID_HANDLE;
	if (st->cap) {
		capture_blocks();
		return CQCU_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	}
	add_after(&all, st);
	if (st == st->ctx->legacy)
		for (const stream_ptr &other : st->ctx->streams)
			add_after(&all, other);
	return all.after.empty() ? (int)st->ctx->sticky : CQCU_ERROR_NOT_READY;
}

int cuStreamGetCtx(struct cqcu_stream *s, struct cqcu_ctx **ctx)
{
	std::lock_guard<std::mutex> hold(big);
	stream_ptr st = stream_get(s);

	if (!ctx)
		return CQCU_ERROR_INVALID_VALUE;
	if (!st)
		return CQCU_ERROR_INVALID_HANDLE;
	*ctx = st->ctx;
	return CQCU_SUCCESS;
}

int cuStreamWaitValue64(struct cqcu_stream *s, cqcu_ptr p, uint64_t value, unsigned int flags)
{
	std::lock_guard<std::mutex> hold(big);
	stream_ptr st = stream_get(s);
	struct cqcu_ctx *ctx;

	if (!st)
		return CQCU_ERROR_INVALID_HANDLE;
	if (p % 8 || flags > CQCU_STREAM_WAIT_VALUE_AND || !space_has(p, 8, false))
		return CQCU_ERROR_INVALID_VALUE;
	ctx = st->ctx;
	return enqueue(st, [=]() { return wait_value(ctx, p, value, flags); });
}

int cuStreamWriteValue64(struct cqcu_stream *s, cqcu_ptr p, uint64_t value, unsigned int flags)
{
	std::lock_guard<std::mutex> hold(big);
	stream_ptr st = stream_get(s);

	if (!st)
		return CQCU_ERROR_INVALID_HANDLE;
	if (p % 8 || flags > 1 || !space_has(p, 8, false))
		return CQCU_ERROR_INVALID_VALUE;
	return enqueue(st, [=]() { return write_value(p, value); });
}

int cuLaunchHostFunc(struct cqcu_stream *s, cqcu_host_fn fn, void *arg)
{
	std::lock_guard<std::mutex> hold(big);
	stream_ptr st = stream_get(s);

	if (!st)
		return CQCU_ERROR_INVALID_HANDLE;
	if (!fn)
		return CQCU_ERROR_INVALID_VALUE;
	return enqueue(st, [=]() {
		fn(arg);
		return CQCU_SUCCESS;
	});
}

} /* namespace calls */
} /* namespace fake */
