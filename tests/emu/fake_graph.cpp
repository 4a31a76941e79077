// SPDX-License-Identifier: MIT
/*
 * Stream capture and graphs. While a stream is captured its steps become nodes;
 * an event that was recorded there draws other streams in. A launch is one
 * step of the stream it is launched in and runs the nodes in an order that
 * their dependencies allow, chosen by chance: one that is missing shows.
 */
#include <algorithm>
#include <set>

#include "tests/emu/fake.hpp"

namespace fake {

struct node {
	std::function<int()> run;
	std::vector<size_t> after;
};

struct capture {
	std::vector<struct node> nodes;
	stream_ptr origin;
	std::vector<stream_ptr> all;	/* @origin and who joined */
	int mode;
	pthread_t thread;
	bool invalid;
};

/* Those under way; under big, like all of these. */
static auto &captures = *new std::vector<std::shared_ptr<struct capture>>;
static thread_local int thread_mode = CQCU_STREAM_CAPTURE_MODE_GLOBAL;

using nodes_ptr = std::shared_ptr<std::vector<struct node>>;
static auto &graphs = *new std::map<struct cqcu_graph *, nodes_ptr>;
static auto &execs = *new std::map<struct cqcu_exec *, nodes_ptr>;

/* Its streams are free again, but for @origin, which must still be ended. */
static void invalidate(struct capture *c)
{
	c->invalid = true;
	for (const stream_ptr &s : c->all) {
		s->tail.clear();
		s->invalid = true;
		if (s != c->origin)
			s->cap = nullptr;
	}
}

static void forget(const std::shared_ptr<struct capture> &c)
{
	for (const stream_ptr &s : c->all) {
		s->cap = nullptr;
		s->invalid = false;
		s->tail.clear();
	}
	c->all.clear();
	c->origin = nullptr;
	captures.erase(std::remove(captures.begin(), captures.end(), c), captures.end());
}

void capture_abandon(const stream_ptr &s)
{
	std::shared_ptr<struct capture> c = s->cap;

	if (!c)
		return;
	if (c->origin == s)
		forget(c);
	else
		invalidate(c.get());
}

/*
 * Calls that may wait for, or change, what a capture cannot know of. A thread
 * that captures globally forbids them to all, else only to itself; a thread
 * in relaxed mode is asked for nothing.
 */
bool capture_blocks()
{
	bool any = false;

	if (thread_mode == CQCU_STREAM_CAPTURE_MODE_RELAXED)
		return false;
	for (auto &c : captures) {
		bool mine = pthread_equal(c->thread, pthread_self());

		if (c->invalid || c->mode == CQCU_STREAM_CAPTURE_MODE_RELAXED ||
		    (!mine && (c->mode != CQCU_STREAM_CAPTURE_MODE_GLOBAL ||
			       thread_mode != CQCU_STREAM_CAPTURE_MODE_GLOBAL)))
			continue;
		invalidate(c.get());
		any = true;
	}
	return any;
}

/* The legacy stream would have to wait for a stream that only pretends to run. */
bool capture_implicit(struct cqcu_ctx *ctx)
{
	bool any = false;

	for (auto &c : captures) {
		bool blocking = false;

		for (const stream_ptr &s : c->all)
			blocking |= s->ctx == ctx && !(s->flags & CQCU_STREAM_NON_BLOCKING);
		if (blocking && !c->invalid) {
			invalidate(c.get());
			any = true;
		}
	}
	return any;
}

int capture_step(const stream_ptr &s, std::function<int()> run)
{
	std::shared_ptr<struct capture> c = s->cap;

	if (!c || c->invalid)
		return CQCU_ERROR_STREAM_CAPTURE_INVALIDATED;
	c->nodes.push_back({ std::move(run), s->tail });
	s->tail = { c->nodes.size() - 1 };
	return CQCU_SUCCESS;
}

int capture_join(const stream_ptr &s, const record_ptr &r)
{
	std::shared_ptr<struct capture> c = r->cap;

	if (s->invalid || (c && c->invalid))
		return CQCU_ERROR_STREAM_CAPTURE_INVALIDATED;
	if (!c || (s->cap && s->cap != c)) {
		/* an event from outside this capture */
		invalidate(s->cap.get());
		return c ? CQCU_ERROR_STREAM_CAPTURE_MERGE : CQCU_ERROR_STREAM_CAPTURE_ISOLATION;
	}
	if (!c->origin)		/* that capture has ended */
		return CQCU_ERROR_CAPTURED_EVENT;
	if (s == s->ctx->legacy)
		return CQCU_ERROR_STREAM_CAPTURE_IMPLICIT;
	if (!s->cap) {
		s->cap = c;
		s->tail.clear();
		c->all.push_back(s);
	}
	for (size_t n : r->tail)
		if (std::find(s->tail.begin(), s->tail.end(), n) == s->tail.end())
			s->tail.push_back(n);
	return CQCU_SUCCESS;
}

/* Does everything that was captured come before the end of the origin? */
static bool joined(const struct capture *c)
{
	std::set<size_t> seen;
	std::vector<size_t> left = c->origin->tail;

	while (!left.empty()) {
		size_t n = left.back();

		left.pop_back();
		if (!seen.insert(n).second)
			continue;
		left.insert(left.end(), c->nodes[n].after.begin(), c->nodes[n].after.end());
	}
	for (const stream_ptr &s : c->all)
		for (size_t n : s->tail)
			if (!seen.count(n))
				return false;
	return true;
}

/* One order of many: each node after those it depends on. */
static int run_nodes(const nodes_ptr &nodes, uint64_t seed)
{
	std::vector<bool> done(nodes->size());
	size_t left = nodes->size();

	while (left) {
		std::vector<size_t> ready;
		size_t pick;
		int res;

		for (size_t i = 0; i < nodes->size(); i++)
			if (!done[i] && std::all_of((*nodes)[i].after.begin(),
						    (*nodes)[i].after.end(),
						    [&](size_t n) { return done[n]; }))
				ready.push_back(i);
		pick = ready[next_random(&seed) % ready.size()];
		res = (*nodes)[pick].run();
		if (res)
			return res;
		done[pick] = true;
		left--;
	}
	return CQCU_SUCCESS;
}

namespace calls {

int cuStreamBeginCapture(struct cqcu_stream *s, int mode)
{
	std::lock_guard<std::mutex> hold(big);
	stream_ptr st = stream_get(s);

	if (!st)
		return CQCU_ERROR_INVALID_HANDLE;
	if (mode < 0 || mode > CQCU_STREAM_CAPTURE_MODE_RELAXED)
		return CQCU_ERROR_INVALID_VALUE;
	if (st == st->ctx->legacy)
		return CQCU_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	if (st->cap || st->invalid)
		return CQCU_ERROR_ILLEGAL_STATE;
	st->cap = std::make_shared<struct capture>();
	st->cap->origin = st;
	st->cap->all.push_back(st);
	st->cap->mode = mode;
	st->cap->thread = pthread_self();
	st->cap->invalid = false;
	st->tail.clear();
	captures.push_back(st->cap);
	return CQCU_SUCCESS;
}

int cuStreamEndCapture(struct cqcu_stream *s, struct cqcu_graph **g)
{
	std::lock_guard<std::mutex> hold(big);
	stream_ptr st = stream_get(s);
	std::shared_ptr<struct capture> c = st ? st->cap : nullptr;
	bool ok;

	if (!st)
		return CQCU_ERROR_INVALID_HANDLE;
	if (!g)
		return CQCU_ERROR_INVALID_VALUE;
	if (!c)
		return CQCU_ERROR_ILLEGAL_STATE;
	if (c->origin != st)
		return CQCU_ERROR_STREAM_CAPTURE_UNMATCHED;
	if (c->mode != CQCU_STREAM_CAPTURE_MODE_RELAXED &&
	    !pthread_equal(c->thread, pthread_self()))
		return CQCU_ERROR_STREAM_CAPTURE_WRONG_THREAD;
	*g = nullptr;
	if (c->invalid) {
		forget(c);
		return CQCU_ERROR_STREAM_CAPTURE_INVALIDATED;
	}
	ok = joined(c.get());
	forget(c);
	if (!ok)
		return CQCU_ERROR_STREAM_CAPTURE_UNJOINED;
	nodes_ptr nodes = std::make_shared<std::vector<struct node>>(std::move(c->nodes));

	*g = reinterpret_cast<struct cqcu_graph *>(nodes.get());
	graphs[*g] = nodes;
	return CQCU_SUCCESS;
}

int cuStreamIsCapturing(struct cqcu_stream *s, int *status)
{
	std::lock_guard<std::mutex> hold(big);
	stream_ptr st = stream_get(s);

	if (!st)
		return CQCU_ERROR_INVALID_HANDLE;
	if (!status)
		return CQCU_ERROR_INVALID_VALUE;
	if (st == st->ctx->legacy && capture_implicit(st->ctx))
		return CQCU_ERROR_STREAM_CAPTURE_IMPLICIT;
	*status = st->invalid ? CQCU_STREAM_CAPTURE_STATUS_INVALIDATED :
		  st->cap ? CQCU_STREAM_CAPTURE_STATUS_ACTIVE :
		  CQCU_STREAM_CAPTURE_STATUS_NONE;
	return CQCU_SUCCESS;
}

int cuThreadExchangeStreamCaptureMode(int *mode)
{
	if (!mode || *mode < 0 || *mode > CQCU_STREAM_CAPTURE_MODE_RELAXED)
		return CQCU_ERROR_INVALID_VALUE;
	std::swap(*mode, thread_mode);
	return CQCU_SUCCESS;
}

int cuGraphInstantiateWithFlags(struct cqcu_exec **x, struct cqcu_graph *g,
				unsigned long long flags)
{
	std::lock_guard<std::mutex> hold(big);
	auto i = graphs.find(g);

	if (!x || flags & ~15ull || i == graphs.end())
		return CQCU_ERROR_INVALID_VALUE;
	nodes_ptr nodes = std::make_shared<std::vector<struct node>>(*i->second);

	*x = reinterpret_cast<struct cqcu_exec *>(nodes.get());
	execs[*x] = nodes;
	return CQCU_SUCCESS;
}

/* Launches of one exec never overlap; here they would not even if they could. */
int cuGraphLaunch(struct cqcu_exec *x, struct cqcu_stream *s)
{
	static std::atomic<uint64_t> launches;
	std::lock_guard<std::mutex> hold(big);
	stream_ptr st = stream_get(s);
	auto i = execs.find(x);
	uint64_t seed = knobs.seed + launches++;

	if (i == execs.end())
		return CQCU_ERROR_INVALID_VALUE;
	if (!st)
		return CQCU_ERROR_INVALID_HANDLE;
	nodes_ptr nodes = i->second;

	return enqueue(st, [nodes, seed]() { return run_nodes(nodes, seed); });
}

int cuGraphExecDestroy(struct cqcu_exec *x)
{
	std::lock_guard<std::mutex> hold(big);

	return execs.erase(x) ? CQCU_SUCCESS : CQCU_ERROR_INVALID_VALUE;
}

int cuGraphDestroy(struct cqcu_graph *g)
{
	std::lock_guard<std::mutex> hold(big);

	return graphs.erase(g) ? CQCU_SUCCESS : CQCU_ERROR_INVALID_VALUE;
}

} /* namespace calls */
} /* namespace fake */
