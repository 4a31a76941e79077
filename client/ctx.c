// SPDX-License-Identifier: MIT
/* Contexts: open, close, the own thread, cq_poll(). */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>
#include "client/internal.h"

#define GUARD_BYTES 4096
#define TIMEOUT_MS 5000

/* A page that fork() wipes: reading it tells a child without a system call. */
static int guard_new(struct cq_ctx *ctx)
{
	uint32_t *p = mmap(NULL, GUARD_BYTES, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return cqc_fail(-ENOMEM, "out of memory");
	if (madvise(p, GUARD_BYTES, MADV_WIPEONFORK) < 0) {
		munmap(p, GUARD_BYTES);
		return cqc_fail(-ENOSYS, "the kernel has no MADV_WIPEONFORK; Linux 4.14 is needed");
	}
	*p = 1;
	ctx->guard = p;
	return 0;
}

static int copy_name(char **out, const char *s, const char *what, size_t max)
{
	if (!s)
		return 0;
	if (!*s || strlen(s) >= max)
		return cqc_fail(-EINVAL, "%s: 1 to %zu bytes", what, max - 1);
	*out = strdup(s);
	return *out ? 0 : cqc_fail(-ENOMEM, "out of memory");
}

static int ctx_names(struct cq_ctx *ctx, const struct cq_open_opts *o)
{
	const char *path = o->socket;
	char own[CQP_MAX_NAME];
	int ret;

	if (!path)
		path = secure_getenv("CQ_SOCKET");
	ret = copy_name(&ctx->path, path ? path : CQP_DEFAULT_SOCKET, "socket", 108);
	snprintf(own, sizeof(own), "%s", program_invocation_short_name);
	if (!ret)
		ret = copy_name(&ctx->name, o->name ? o->name : own, "name", CQP_MAX_NAME);
	if (!ret)
		ret = copy_name(&ctx->tenant, o->tenant, "tenant", CQP_MAX_NAME);
	return ret;
}

static int ctx_locks(struct cq_ctx *ctx)
{
	pthread_condattr_t attr;
	int ret;

	ret = pthread_condattr_init(&attr);
	if (ret)
		return cqc_fail(-ret, "condition variable: %s", strerror(ret));
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	ret = pthread_cond_init(&ctx->cond, &attr);
	pthread_condattr_destroy(&attr);
	if (ret)
		return cqc_fail(-ret, "condition variable: %s", strerror(ret));
	pthread_mutex_init(&ctx->lock, NULL);
	return 0;
}

static int ctx_init(struct cq_ctx *ctx, const struct cq_open_opts *o)
{
	int ret;

	list_init(&ctx->models);
	list_init(&ctx->reqs);
	list_init(&ctx->jobs);
	list_init(&ctx->mapping);
	list_init(&ctx->hello.link);
	ctx->sock = -1;
	ctx->poll_mode = o->flags & CQ_OPEN_POLL;
	ctx->timeout_ms = o->timeout_ms ? o->timeout_ms : TIMEOUT_MS;
	ctx->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ctx->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ctx->event < 0 || ctx->wake < 0)
		return cqc_fail(-errno, "eventfd: %s", strerror(errno));
	ctx->frame = calloc(1, sizeof(*ctx->frame));
	if (!ctx->frame)
		return cqc_fail(-ENOMEM, "out of memory");
	ret = guard_new(ctx);
	return ret ? ret : ctx_names(ctx, o);
}

static void ctx_fds_close(struct cq_ctx *ctx)
{
	if (ctx->sock >= 0)
		close(ctx->sock);
	if (ctx->event >= 0)
		close(ctx->event);
	if (ctx->wake >= 0)
		close(ctx->wake);
}

static void ctx_free(struct cq_ctx *ctx)
{
	ctx_fds_close(ctx);
	if (ctx->guard)
		munmap((void *)(uintptr_t)ctx->guard, GUARD_BYTES);
	free(ctx->frame);
	free(ctx->releases);
	free(ctx->path);
	free(ctx->name);
	free(ctx->tenant);
	free(ctx);
}

static void *engine_thread(void *arg)
{
	struct cq_ctx *ctx = arg;
	bool want_out;
	int ms;

	pthread_mutex_lock(&ctx->lock);
	while (!ctx->stop) {
		cqc_conn_run(ctx);
		ms = cqc_conn_idle_ms(ctx);
		want_out = ctx->want_out;
		pthread_mutex_unlock(&ctx->lock);
		cqc_conn_poll(ctx, want_out, ms);
		pthread_mutex_lock(&ctx->lock);
	}
	pthread_mutex_unlock(&ctx->lock);
	return NULL;
}

static int thread_start(struct cq_ctx *ctx)
{
	sigset_t all, old;
	int ret;

	/* Signals are the program's business, not this thread's. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	ret = pthread_create(&ctx->thread, NULL, engine_thread, ctx);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (ret)
		return cqc_fail(-ret, "cannot start the sealing thread: %s", strerror(ret));
	pthread_setname_np(ctx->thread, "cq-seal");
	return 0;
}

CQ_API int cq_open(const struct cq_open_opts *opts, struct cq_ctx **out)
{
	struct cq_ctx *ctx;
	struct cq_open_opts o;
	bool poll_mode;
	int ret;

	ret = cqc_opts_in(&o, sizeof(o), opts, "cq_open_opts");
	if (ret)
		return ret;
	if (!out || o.flags & ~CQ_OPEN_POLL)
		return cqc_fail(-EINVAL, "cq_open: unknown flags 0x%x or no place for the result",
				o.flags);
	ctx = calloc(1, sizeof(*ctx));
	if (!ctx)
		return cqc_fail(-ENOMEM, "out of memory");
	ret = ctx_init(ctx, &o);
	if (ret)
		goto err_free;
	ret = ctx_locks(ctx);
	if (ret)
		goto err_free;
	poll_mode = ctx->poll_mode;
	ctx->poll_mode = true;		/* no thread yet: wait by ourselves */
	ret = cqc_conn_start(ctx);
	ctx->poll_mode = poll_mode;
	if (!ret && !poll_mode)
		ret = thread_start(ctx);
	if (ret)
		goto err_locks;
	*out = ctx;
	return 0;

err_locks:
	pthread_cond_destroy(&ctx->cond);
	pthread_mutex_destroy(&ctx->lock);
err_free:
	ctx_free(ctx);
	return ret;
}

static void bye(struct cq_ctx *ctx)
{
	Cqp__Bye body = CQP__BYE__INIT;
	struct cqc_req req = { .want = CQP__MSG__BODY_OK };
	Cqp__Msg msg = CQP__MSG__INIT;

	msg.body_case = CQP__MSG__BODY_BYE;
	msg.bye = &body;
	if (!cqc_send(ctx, &req, &msg, NULL, 0))
		list_del(&req.link);
}

CQ_API void cq_close(struct cq_ctx *ctx)
{
	if (!ctx)
		return;
	if (cqc_alive(ctx)) {
		/* A child's copy: the memory is its parent's, the fds hide the
		 * parent's death and can go. */
		ctx_fds_close(ctx);
		ctx->sock = ctx->event = ctx->wake = -1;
		return;
	}
	if (!ctx->poll_mode) {
		pthread_mutex_lock(&ctx->lock);
		ctx->stop = true;
		pthread_mutex_unlock(&ctx->lock);
		cqc_wake(ctx);
		pthread_join(ctx->thread, NULL);
	}
	ctx->poll_mode = true;
	while (!list_empty(&ctx->models))
		cq_model_close(list_first(&ctx->models, struct cq_model, link));
	bye(ctx);
	pthread_cond_destroy(&ctx->cond);
	pthread_mutex_destroy(&ctx->lock);
	ctx_free(ctx);
}

CQ_API int cq_poll(struct cq_ctx *ctx, int timeout_ms)
{
	int64_t deadline;
	int ret, n, idle;

	if (!ctx)
		return cqc_fail(-EINVAL, "cq_poll: no context");
	ret = cqc_alive(ctx);
	if (ret)
		return ret;
	if (!ctx->poll_mode)
		return cqc_fail(-EINVAL, "cq_poll: this context has its own thread; open it "
					 "with CQ_OPEN_POLL");
	deadline = timeout_ms < 0 ? INT64_MAX : cqc_now_ms() + timeout_ms;
	for (;;) {
		n = cqc_conn_run(ctx);
		if (n || cqc_now_ms() >= deadline)
			break;
		idle = cqc_conn_idle_ms(ctx);
		ret = deadline == INT64_MAX ? 1000 :
			(int)MIN(deadline - cqc_now_ms(), 1000);
		cqc_conn_poll(ctx, ctx->want_out, idle >= 0 && idle < ret ? idle : MAX(ret, 0));
	}
	if (!n && ctx->link == CQC_AWAY)
		return cqc_fail(-ENOTCONN, "cqd at %s is away: %s", ctx->path,
				strerror(-ctx->away_err));
	return n;
}

CQ_API int cq_event_fd(struct cq_ctx *ctx)
{
	int ret;

	if (!ctx)
		return cqc_fail(-EINVAL, "cq_event_fd: no context");
	ret = cqc_alive(ctx);
	return ret ? ret : ctx->event;
}
