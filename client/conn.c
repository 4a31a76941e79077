// SPDX-License-Identifier: MIT
/*
 * The engine's core: one socket, a table of requests, reconnecting.
 *
 * Everything here but the waiting runs with ctx->lock held, or in poll mode on
 * the only thread there is. A lost connection ends every request with -ENOTCONN
 * and is tried again with a growing delay; no failure of the daemon is ever more
 * than that.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "client/backend.h"

#define RETRY_MIN_MS 10
#define RETRY_MAX_MS 1000
#define RECV_BURST 64
#define ERRNO_MAX 4095

/**
 * cqc_now_ms() - the clock of all deadlines
 *
 * Return: milliseconds of CLOCK_MONOTONIC.
 */
int64_t cqc_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/**
 * cqc_wake() - make the own thread look at its orders
 * @ctx: context; nothing happens in poll mode
 */
void cqc_wake(struct cq_ctx *ctx)
{
	uint64_t one = 1;

	if (!ctx->poll_mode && write(ctx->wake, &one, sizeof(one)) < 0)
		return;	/* EAGAIN: the counter is full, it is awake */
}

static void retry_later(struct cq_ctx *ctx)
{
	ctx->retry_at = cqc_now_ms() + ctx->retry_ms;
	ctx->retry_ms = MIN(ctx->retry_ms * 2, RETRY_MAX_MS);
}

/**
 * cqc_conn_drop() - lose the connection
 * @ctx: context, lock held
 * @why: negative errno, shown until it is back
 *
 * Requests end with -ENOTCONN; pages they were about go back to the queue.
 */
void cqc_conn_drop(struct cq_ctx *ctx, int why)
{
	struct list_head *pos, *tmp, lost;
	struct cq_model *model;

	if (ctx->sock >= 0)
		close(ctx->sock);
	ctx->sock = -1;
	ctx->link = CQC_AWAY;
	ctx->away_err = why;
	ctx->want_out = false;
	ctx->events++;
	list_init(&lost);
	list_for_each_safe(pos, tmp, &ctx->reqs) {
		list_del(pos);
		list_add_tail(pos, &lost);
	}
	while (!list_empty(&lost)) {
		struct cqc_req *req = list_first(&lost, struct cqc_req, link);

		list_del(&req->link);
		req->done(ctx, req, -ENOTCONN, NULL, NULL);
	}
	list_for_each(pos, &ctx->models) {
		model = list_entry(pos, struct cq_model, link);
		model->ready = false;
		model->reopen_at = 0;
		cqc_segs_lost(model);
	}
	retry_later(ctx);
	pthread_cond_broadcast(&ctx->cond);
}

static int sock_connect(const char *path, int *out)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	size_t len = strlen(path);
	int sock, ret;

	if (len >= sizeof(sa.sun_path))
		return -ENAMETOOLONG;
	memcpy(sa.sun_path, path, len + 1);
	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (sock < 0)
		return -errno;
	if (connect(sock, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		ret = -errno;
		close(sock);
		return ret;
	}
	*out = sock;
	return 0;
}

static int conn_open(struct cq_ctx *ctx)
{
	int ret = sock_connect(ctx->path, &ctx->sock);

	if (ret) {
		ctx->sock = -1;
		return ret;
	}
	ctx->conn_no++;
	ctx->link = CQC_HELLO;
	return 0;
}

static void conn_retry(struct cq_ctx *ctx)
{
	int ret;

	if (ctx->sock >= 0 || !ctx->greeted || cqc_now_ms() < ctx->retry_at)
		return;
	ret = conn_open(ctx);
	if (ret) {
		ctx->away_err = ret;
		cqc_jobs_cancel(ctx);
		retry_later(ctx);
		return;
	}
	ret = cqc_hello_send(ctx);
	if (ret)
		cqc_conn_drop(ctx, ret);
}

/**
 * cqc_send() - send a request
 * @ctx:   context, lock held
 * @req:   its want and done are set; in the table on success
 * @msg:   its id is set here
 * @fds:   [@n_fds] go along, stay the caller's
 * @n_fds: descriptors
 *
 * Return: 0; -EAGAIN the socket is full, want_out is set; -ENOTCONN; -EMSGSIZE;
 * -ENOMEM.
 */
int cqc_send(struct cq_ctx *ctx, struct cqc_req *req, Cqp__Msg *msg,
	     const int *fds, unsigned int n_fds)
{
	int ret;

	if (ctx->sock < 0)
		return -ENOTCONN;
	msg->id = ++ctx->next_id;
	ret = cqp_send(ctx->sock, msg, fds, n_fds, MSG_DONTWAIT);
	if (ret == -EAGAIN) {
		ctx->want_out = true;
		return -EAGAIN;
	}
	/* cqd has closed: what it said before, and its end, are still to be read. */
	if (ret && ret != -EPIPE)
		return ret == -EMSGSIZE || ret == -ENOMEM ? ret : -ENOTCONN;
	req->id = msg->id;
	list_add_tail(&req->link, &ctx->reqs);
	return 0;
}

/**
 * cqc_tell() - send a request whose answer nobody waits for, if that can be now
 * @ctx: context, lock held
 * @msg: answered by Ok
 */
void cqc_tell(struct cq_ctx *ctx, Cqp__Msg *msg)
{
	struct cqc_req req = { .want = CQP__MSG__BODY_OK };

	if (!cqc_send(ctx, &req, msg, NULL, 0))
		list_del(&req.link);
}

static int reply_code(const struct cqc_req *req, const Cqp__Msg *msg)
{
	if (msg->body_case == req->want)
		return 0;
	if (msg->body_case != CQP__MSG__BODY_ERROR)
		return -EPROTO;
	if (msg->error->code >= 0 || msg->error->code < -ERRNO_MAX)
		return -EPROTO;
	return msg->error->code;
}

static void dispatch(struct cq_ctx *ctx, const Cqp__Msg *msg)
{
	struct list_head *pos;
	struct cqc_req *req;

	list_for_each(pos, &ctx->reqs) {
		req = list_entry(pos, struct cqc_req, link);
		/* A connection that is refused has no request that could be named. */
		if (req->id != msg->id && (msg->id || msg->body_case != CQP__MSG__BODY_ERROR))
			continue;
		list_del(&req->link);
		req->done(ctx, req, reply_code(req, msg), msg, ctx->frame);
		return;
	}
	cqc_late(ctx, msg);
}

/* 1: got one, 0: nothing there or the connection is gone. */
static int recv_one(struct cq_ctx *ctx)
{
	Cqp__Msg *msg;
	int ret;

	if (ctx->sock < 0)
		return 0;
	ret = cqp_recv(ctx->sock, ctx->frame, MSG_DONTWAIT);
	if (ret == -EAGAIN || ret == -EINTR)
		return 0;
	if (ret == -ECONNRESET)	/* said once; what was sent before can still be read */
		return 1;
	if (ret <= 0) {
		cqc_conn_drop(ctx, ret ? ret : -ECONNRESET);
		return 0;
	}
	msg = cqp_unpack(ctx->frame->buf, ctx->frame->len, NULL);
	if (msg) {
		dispatch(ctx, msg);
		cqp_free(msg);
	}
	cqp_frame_close(ctx->frame);
	if (!msg) {
		cqc_conn_drop(ctx, -EPROTO);
		return 0;
	}
	ctx->events++;
	if (ctx->link == CQC_READY)	/* not refused once more */
		ctx->retry_ms = RETRY_MIN_MS;
	ctx->stalled = false;
	return 1;
}

static void models_run(struct cq_ctx *ctx)
{
	struct list_head *pos;
	struct cq_model *model;

	list_for_each(pos, &ctx->models) {
		model = list_entry(pos, struct cq_model, link);
		model->be->run(model);
	}
}

/* The soonest of what their backends say, ms, -1: never. */
static int models_idle_ms(const struct cq_ctx *ctx)
{
	struct list_head *pos;
	int least = -1, ms;

	list_for_each(pos, &ctx->models) {
		const struct cq_model *model = list_entry(pos, struct cq_model, link);

		ms = model->be->idle_ms(model);
		if (ms >= 0 && (least < 0 || ms < least))
			least = ms;
	}
	return least;
}

/**
 * cqc_conn_run() - whatever can be done without waiting
 * @ctx: context, lock held
 *
 * Return: number of events.
 */
int cqc_conn_run(struct cq_ctx *ctx)
{
	uint32_t before = ctx->events;
	int burst = RECV_BURST;

	cqc_orders_drain(ctx);
	conn_retry(ctx);
	cqc_models_retry(ctx);
	while (burst-- && recv_one(ctx))
		;
	models_run(ctx);
	ctx->want_out = false;	/* whoever still cannot send says so again */
	cqc_jobs_pump(ctx);
	cqc_release_pump(ctx);	/* after the pages that lean on those released */
	if (ctx->events != before)
		pthread_cond_broadcast(&ctx->cond);
	return (int)(ctx->events - before);
}

/**
 * cqc_conn_idle_ms() - how long nothing needs to be done
 * @ctx: context, lock held
 *
 * Return: milliseconds; -1 for ever.
 */
int cqc_conn_idle_ms(struct cq_ctx *ctx)
{
	int64_t at = INT64_MAX, left;
	int ms = models_idle_ms(ctx);

	if (ctx->link == CQC_READY)
		at = cqc_models_retry_at(ctx);
	else if (ctx->sock < 0 && ctx->greeted)
		at = ctx->retry_at;
	if (at == INT64_MAX)
		return ms;
	left = at - cqc_now_ms();
	left = left < 0 ? 0 : MIN(left, (int64_t)RETRY_MAX_MS);
	return ms >= 0 && ms < left ? ms : (int)left;
}

/**
 * cqc_conn_poll() - wait for the socket or the wake fd
 * @ctx:        context; by the engine alone
 * @want_out:   wait for room in the socket too
 * @timeout_ms: at most; -1 for ever
 */
void cqc_conn_poll(struct cq_ctx *ctx, bool want_out, int timeout_ms)
{
	struct pollfd p[2] = {
		{ .fd = ctx->sock, .events = POLLIN },
		{ .fd = ctx->wake, .events = POLLIN },
	};
	uint64_t n;

	if (want_out)
		p[0].events |= POLLOUT;
	if (poll(p, 2, timeout_ms) > 0 && (p[1].revents & POLLIN) &&
	    read(ctx->wake, &n, sizeof(n)) < 0)
		return;	/* somebody else drained it */
}

/* What is left of a wait, for poll(). */
static int left_ms(int64_t deadline)
{
	int64_t left = deadline - cqc_now_ms();

	if (deadline == INT64_MAX)
		return 1000;
	return left < 0 ? 0 : (int)MIN(left, 1000);
}

/**
 * cqc_wait() - wait for the engine to do something
 * @ctx:         context, lock held
 * @deadline_ms: CLOCK_MONOTONIC; INT64_MAX: none
 *
 * Return: 0; -ETIMEDOUT.
 */
int cqc_wait(struct cq_ctx *ctx, int64_t deadline_ms)
{
	struct timespec ts;
	int64_t until;
	int ms, idle;

	if (deadline_ms <= cqc_now_ms())
		return -ETIMEDOUT;
	if (ctx->poll_mode) {
		idle = cqc_conn_idle_ms(ctx);
		ms = left_ms(deadline_ms);
		if (idle >= 0 && idle < ms)
			ms = idle;
		if (!cqc_conn_run(ctx)) {	/* orders first: they may be why we wait */
			cqc_conn_poll(ctx, ctx->want_out, ms);
			cqc_conn_run(ctx);
		}
		return 0;
	}
	cqc_wake(ctx);
	until = cqc_now_ms() + left_ms(deadline_ms);
	ts.tv_sec = until / 1000;
	ts.tv_nsec = until % 1000 * 1000000;
	pthread_cond_timedwait(&ctx->cond, &ctx->lock, &ts);
	return 0;
}

static void text_copy(struct cqc_call *call, int code, const char *text)
{
	size_t i, n;

	cq_err_set(&call->err, code, "cqd: %.200s", text ? text : strerror(-code));
	n = strlen(call->err.text);
	for (i = 0; i < n; i++)
		if ((unsigned char)call->err.text[i] < ' ' || call->err.text[i] == 127)
			call->err.text[i] = '?';
}

static void call_done(struct cq_ctx *ctx, struct cqc_req *req, int ret,
		      const Cqp__Msg *msg, struct cqp_frame *f)
{
	struct cqc_call *call = container_of(req, struct cqc_call, req);

	if (ret && msg && msg->body_case == CQP__MSG__BODY_ERROR)
		text_copy(call, ret, msg->error->text);
	else if (ret)
		cq_err_set(&call->err, ret, "%s: %s", ctx->path,
			   ret == -ENOTCONN ? "the connection to cqd was lost" :
			   "cqd gave an answer that does not fit the question");
	else if (call->take)
		ret = call->take(call, msg, f);
	call->ret = ret;
	call->over = true;
	pthread_cond_broadcast(&ctx->cond);
}

/**
 * cqc_call() - ask and wait for the answer
 * @ctx:     context, lock held
 * @call:    want and take are set
 * @msg:     request
 * @fds:     [@n_fds] go along
 * @n_fds:   descriptors
 * @conn_no: 0, or the connection it must go over
 *
 * Return: 0; the daemon's error; -ENOTCONN; -ETIMEDOUT; -EPROTO. The text is set.
 */
int cqc_call(struct cq_ctx *ctx, struct cqc_call *call, Cqp__Msg *msg,
	     const int *fds, unsigned int n_fds, uint64_t conn_no)
{
	int64_t deadline = cqc_now_ms() + ctx->timeout_ms;
	int ret;

	call->req.done = call_done;
	call->over = false;
	for (;;) {
		ret = conn_no && conn_no != ctx->conn_no ? -ENOTCONN :
			cqc_send(ctx, &call->req, msg, fds, n_fds);
		if (ret != -EAGAIN)
			break;
		ret = cqc_wait(ctx, deadline);
		if (ret)
			break;
	}
	if (ret)
		return cqc_fail(ret, "cannot ask cqd at %s: %s", ctx->path, strerror(-ret));
	while (!call->over) {
		ret = cqc_wait(ctx, deadline);
		if (ret && !call->over) {
			list_del(&call->req.link);
			return cqc_fail(ret, "cqd at %s did not answer within %u ms",
					ctx->path, ctx->timeout_ms);
		}
	}
	if (call->ret)
		return cqc_fail(call->ret, "%s", call->err.text);
	return 0;
}

static int hello_take(struct cqc_call *call, const Cqp__Msg *msg, struct cqp_frame *f)
{
	return cqc_hello_take(call->arg, msg);
}

/**
 * cqc_conn_start() - connect and say Hello
 * @ctx: new context
 *
 * Return: 0 or -errno with text.
 */
int cqc_conn_start(struct cq_ctx *ctx)
{
	struct cqc_call call = {
		.req.want = CQP__MSG__BODY_HELLO_OK,
		.take = hello_take,
		.arg = ctx,
	};
	Cqp__Hello hello = CQP__HELLO__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	int64_t deadline = cqc_now_ms() + ctx->timeout_ms;
	int ret;

	ctx->retry_ms = RETRY_MIN_MS;
	/* EAGAIN: cqd has too many callers waiting to be accepted. */
	while ((ret = conn_open(ctx)) == -EAGAIN && cqc_now_ms() < deadline)
		poll(NULL, 0, RETRY_MIN_MS);
	if (ret)
		return cqc_fail(ret, "cannot connect to cqd at %s: %s; %s", ctx->path,
				strerror(-ret), ret == -EACCES ?
				"join the group of that socket (cq)" : "is it running?");
	cqc_hello_fill(ctx, &msg, &hello);
	ret = cqc_call(ctx, &call, &msg, NULL, 0, 0);
	if (!ret)
		ctx->greeted = true;
	return ret;
}
