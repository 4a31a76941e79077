// SPDX-License-Identifier: MIT
/*
 * What a connection begins with: Hello, models opened again, arenas offered
 * again. A daemon that lost its index (another boot id) is met as a new one:
 * what is mapped stays readable, its pins no longer exist.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>
#include "client/gpu.h"

#define REOPEN_MIN_MS 20
#define REOPEN_MAX_MS 1000

/**
 * cqc_hello_fill() - Hello, resuming the session if there was one
 * @ctx:   context
 * @msg:   message to fill
 * @hello: its body
 */
void cqc_hello_fill(struct cq_ctx *ctx, Cqp__Msg *msg, Cqp__Hello *hello)
{
	hello->protocol = CQP_VERSION;
	hello->incompat = CQP_INCOMPAT_KNOWN;
	hello->compat = CQP_COMPAT_KNOWN;
	hello->client = ctx->name;
	hello->tenant = ctx->tenant;
	hello->has_session = ctx->greeted;
	hello->session = ctx->session;
	msg->body_case = CQP__MSG__BODY_HELLO;
	msg->hello = hello;
}

/**
 * cqc_hello_take() - check and keep the answer to Hello
 * @ctx: context, lock held
 * @msg: HelloOk
 *
 * Return: 0; -EPROTO another version, unknown features or a malformed answer.
 */
int cqc_hello_take(struct cq_ctx *ctx, const Cqp__Msg *msg)
{
	const Cqp__HelloOk *ok = msg->hello_ok;

	if (ok->protocol != CQP_VERSION || ok->incompat & ~CQP_INCOMPAT_KNOWN ||
	    ok->boot_id.len != sizeof(ctx->boot_id))
		return -EPROTO;
	if (ctx->greeted && memcmp(ctx->boot_id, ok->boot_id.data, sizeof(ctx->boot_id)))
		ctx->boot_epoch++;
	if (ctx->greeted && !ok->resumed) {
		ctx->pin_epoch++;
		ctx->n_releases = 0;	/* pins that no longer exist */
	}
	memcpy(ctx->boot_id, ok->boot_id.data, sizeof(ctx->boot_id));
	ctx->session = ok->session;
	ctx->link = CQC_READY;
	return 0;
}

static void hello_done(struct cq_ctx *ctx, struct cqc_req *req, int ret,
		       const Cqp__Msg *msg, struct cqp_frame *f)
{
	if (ret == -ENOTCONN)
		return;
	if (!ret)
		ret = cqc_hello_take(ctx, msg);
	if (ret)
		cqc_conn_drop(ctx, ret);
	else
		cqc_models_reopen(ctx, msg->hello_ok->resumed);
}

/**
 * cqc_hello_send() - Hello over a fresh connection
 * @ctx: context, lock held
 *
 * Return: as cqc_send().
 */
int cqc_hello_send(struct cq_ctx *ctx)
{
	Cqp__Hello hello = CQP__HELLO__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;

	cqc_hello_fill(ctx, &msg, &hello);
	ctx->hello.want = CQP__MSG__BODY_HELLO_OK;
	ctx->hello.done = hello_done;
	return cqc_send(ctx, &ctx->hello, &msg, NULL, 0);
}

/**
 * cqc_model_open_fill() - ModelOpen
 * @model: model; name and range count
 * @msg:   message to fill
 * @mo:    its body
 */
void cqc_model_open_fill(const struct cq_model *model, Cqp__Msg *msg, Cqp__ModelOpen *mo)
{
	const struct cqp_shard *r = &model->range;

	mo->name = model->name;
	mo->device = cqc_gpu_uuid(model);
	if (r->layer_end || r->head_end || r->layer_begin || r->head_begin) {
		mo->has_layer_begin = 1;
		mo->layer_begin = r->layer_begin;
		mo->has_layer_end = 1;
		mo->layer_end = r->layer_end;
		mo->has_head_begin = 1;
		mo->head_begin = r->head_begin;
		mo->has_head_end = 1;
		mo->head_end = r->head_end;
	}
	msg->body_case = CQP__MSG__BODY_MODEL_OPEN;
	msg->model_open = mo;
}

/**
 * cqc_reopen_later() - a model could not be opened again
 * @model: model, lock held
 * @why:   -errno
 *
 * A daemon that has just started may not have loaded its models yet, or may
 * have no room at the moment.
 */
void cqc_reopen_later(struct cq_model *model, int why)
{
	model->gone = why == -ENODATA ? why : 0;
	if (model->gone)
		return;
	model->reopen_at = cqc_now_ms() + model->reopen_ms;
	model->reopen_ms = MIN(model->reopen_ms * 2, REOPEN_MAX_MS);
}

static void arena_done(struct cq_ctx *ctx, struct cqc_req *req, int ret,
		       const Cqp__Msg *msg, struct cqp_frame *f)
{
	struct cq_model *model = req->arg;

	if (ret == -ENOTCONN)
		return;
	if (ret) {
		cqc_reopen_later(model, ret);
		return;
	}
	model->arena_id = msg->arena_ok->arena;
	model->ready = true;
}

/**
 * cqc_host_rejoin() - offer the arena again
 * @model: model, lock held
 */
void cqc_host_rejoin(struct cq_model *model)
{
	Cqp__ArenaOffer offer = CQP__ARENA_OFFER__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	int ret;

	offer.shard = model->shard;
	offer.bytes = model->arena.bytes;
	msg.body_case = CQP__MSG__BODY_ARENA_OFFER;
	msg.arena_offer = &offer;
	model->arena_req.want = CQP__MSG__BODY_ARENA_OK;
	model->arena_req.done = arena_done;
	model->arena_req.arg = model;
	ret = cqc_send(model->ctx, &model->arena_req, &msg, &model->arena.fd, 1);
	if (ret)
		cqc_conn_drop(model->ctx, ret);
}

static int model_same(struct cq_model *model, const Cqp__ModelOk *ok, struct cqp_frame *f)
{
	if (ok->model_hash.len != 32 || ok->root_key.len != CQ_KEY_BYTES || f->n_fds != 2)
		return -EPROTO;
	if (memcmp(ok->model_hash.data, model->m.hash, 32) ||
	    memcmp(ok->root_key.data, model->root.b, CQ_KEY_BYTES))
		return -ENODATA;	/* another model by that name */
	return cqc_state_map(model, f->fds[1], ok->state_words, &model->state, NULL);
}

static void open_done(struct cq_ctx *ctx, struct cqc_req *req, int ret,
		      const Cqp__Msg *msg, struct cqp_frame *f)
{
	struct cq_model *model = req->arg;

	if (ret == -ENOTCONN)
		return;
	if (!ret)
		ret = model_same(model, msg->model_ok, f);
	if (ret) {
		cqc_reopen_later(model, ret);
		return;
	}
	model->shard = msg->model_ok->shard;
	model->be->rejoin(model);
}

static int reopen(struct cq_model *model)
{
	Cqp__ModelOpen mo = CQP__MODEL_OPEN__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;

	model->reopen_at = 0;
	cqc_model_open_fill(model, &msg, &mo);
	model->open_req.want = CQP__MSG__BODY_MODEL_OK;
	model->open_req.done = open_done;
	model->open_req.arg = model;
	return cqc_send(model->ctx, &model->open_req, &msg, NULL, 0);
}

static void reopen_until(struct cq_ctx *ctx, int64_t now)
{
	struct list_head *pos;
	int ret;

	list_for_each(pos, &ctx->models) {
		struct cq_model *model = list_entry(pos, struct cq_model, link);

		if (!model->reopen_at || model->reopen_at > now)
			continue;
		ret = reopen(model);
		if (ret) {
			cqc_conn_drop(ctx, ret);
			return;
		}
	}
}

/**
 * cqc_models_reopen() - open every model on a new connection
 * @ctx:     context, lock held
 * @resumed: cqd knows the session: pins and leases are as before
 */
void cqc_models_reopen(struct cq_ctx *ctx, bool resumed)
{
	struct list_head *pos;

	list_for_each(pos, &ctx->models) {
		struct cq_model *model = list_entry(pos, struct cq_model, link);

		model->gone = 0;
		model->be->resume(model, resumed);
		model->reopen_ms = REOPEN_MIN_MS;
		model->reopen_at = 1;
	}
	reopen_until(ctx, 1);
}

/**
 * cqc_models_retry() - the same for models whose time has come
 * @ctx: context, lock held
 */
void cqc_models_retry(struct cq_ctx *ctx)
{
	if (ctx->link == CQC_READY)
		reopen_until(ctx, cqc_now_ms());
}

/**
 * cqc_models_retry_at() - when that is
 * @ctx: context, lock held
 *
 * Return: CLOCK_MONOTONIC, ms; INT64_MAX: never.
 */
int64_t cqc_models_retry_at(const struct cq_ctx *ctx)
{
	int64_t at = INT64_MAX;
	struct list_head *pos;

	list_for_each(pos, &ctx->models) {
		const struct cq_model *model = list_entry(pos, struct cq_model, link);

		if (model->reopen_at && model->reopen_at < at)
			at = model->reopen_at;
	}
	return at;
}

/**
 * cqc_model_returning() - is it about to be usable again
 * @model: model; its context's lock is held
 *
 * Return: true while answers to Hello, ModelOpen or ArenaOffer are awaited.
 */
bool cqc_model_returning(const struct cq_model *model)
{
	const struct cq_ctx *ctx = model->ctx;

	return ctx->link == CQC_HELLO ||
		(ctx->link == CQC_READY && !model->ready && !model->gone && !model->reopen_at);
}

/**
 * cqc_arena_drop() - cqd need not keep an arena any more
 * @ctx:   context, lock held
 * @arena: of this connection; if it cannot be said now, its end says it
 */
void cqc_arena_drop(struct cq_ctx *ctx, uint32_t arena)
{
	Cqp__ArenaDrop body = CQP__ARENA_DROP__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;

	body.arena = arena;
	msg.body_case = CQP__MSG__BODY_ARENA_DROP;
	msg.arena_drop = &body;
	cqc_tell(ctx, &msg);
}

/**
 * cqc_late() - an answer nobody waits for any more
 * @ctx: context, lock held
 * @msg: answer
 */
void cqc_late(struct cq_ctx *ctx, const Cqp__Msg *msg)
{
	struct cqp_page page;
	const Cqp__LookupOk *ok;
	size_t split;

	/* A lookup given up after a timeout, a seal or an arena of a closed model:
	 * what it took is given back. */
	if (msg->body_case == CQP__MSG__BODY_LOOKUP_OK) {
		ok = msg->lookup_ok;
		if (!ok->pages.len || ok->pages.len % sizeof(page))
			return;
		memcpy(&page, ok->pages.data + ok->pages.len - sizeof(page), sizeof(page));
		cqc_release_add(ctx, &page, ctx->pin_epoch);
		split = ok->has_split ? ok->split : 0;
		if (!split || split >= ok->pages.len / sizeof(page))
			return;
		memcpy(&page, ok->pages.data + (split - 1) * sizeof(page), sizeof(page));
		cqc_release_add(ctx, &page, ctx->pin_epoch);
	} else if (msg->body_case == CQP__MSG__BODY_SEAL_OK) {
		if (msg->seal_ok->page.len != sizeof(page))
			return;
		memcpy(&page, msg->seal_ok->page.data, sizeof(page));
		cqc_release_add(ctx, &page, ctx->pin_epoch);
	} else if (msg->body_case == CQP__MSG__BODY_ATTACH_OK) {
		if (!msg->attach_ok->has_page || msg->attach_ok->page.len != sizeof(page))
			return;
		memcpy(&page, msg->attach_ok->page.data, sizeof(page));
		cqc_release_add(ctx, &page, ctx->pin_epoch);
	} else if (msg->body_case == CQP__MSG__BODY_LEASE_OK) {
		cqc_lease_late(ctx, msg->lease_ok);
	} else if (msg->body_case == CQP__MSG__BODY_ARENA_OK) {
		cqc_arena_drop(ctx, msg->arena_ok->arena);
	}
}
