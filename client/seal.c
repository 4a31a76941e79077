// SPDX-License-Identifier: MIT
/*
 * The engine's work for pages: publishing them and dropping pins.
 *
 * A page is sent once its parent is sealed; if the parent failed, so does the
 * page. Lost connections put pages that were on their way back into the
 * queue: sealing is idempotent by key. SealOk is checked, the segment mapped,
 * and only then the result goes back to the caller's thread.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "client/backend.h"

#define SEALS_IN_FLIGHT 16

/* --- pins --- */

/**
 * cqc_release_add() - drop a pin with the next message
 * @ctx:   context, lock held
 * @page:  as given by the daemon
 * @epoch: pin epoch it was pinned in; pins of an older one no longer exist
 */
void cqc_release_add(struct cq_ctx *ctx, const struct cqp_page *page, uint32_t epoch)
{
	uint32_t n = ctx->max_releases ? ctx->max_releases * 2 : 256;
	struct cqp_page *p;

	if (epoch != ctx->pin_epoch)
		return;
	if (ctx->n_releases == ctx->max_releases) {
		p = realloc(ctx->releases, n * sizeof(*p));
		if (!p)
			return;	/* the pin stays until this process ends */
		ctx->releases = p;
		ctx->max_releases = n;
	}
	ctx->releases[ctx->n_releases++] = *page;
}

static void release_done(struct cq_ctx *ctx, struct cqc_req *req, int ret,
			 const Cqp__Msg *msg, struct cqp_frame *f)
{
	ctx->releasing = false;
}

/**
 * cqc_release_pump() - send Release if it is time
 * @ctx: context, lock held
 */
void cqc_release_pump(struct cq_ctx *ctx)
{
	Cqp__Release rel = CQP__RELEASE__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	uint32_t n = MIN(ctx->n_releases, CQC_RELEASE_MAX);

	if (!n || ctx->releasing || ctx->link != CQC_READY)
		return;
	rel.pages.data = (uint8_t *)ctx->releases;
	rel.pages.len = n * sizeof(*ctx->releases);
	msg.body_case = CQP__MSG__BODY_RELEASE;
	msg.release = &rel;
	ctx->release_req.want = CQP__MSG__BODY_OK;
	ctx->release_req.done = release_done;
	if (cqc_send(ctx, &ctx->release_req, &msg, NULL, 0))
		return;	/* again when there is room, or on the next connection */
	ctx->releasing = true;
	ctx->n_releases -= n;
	memmove(ctx->releases, ctx->releases + n, ctx->n_releases * sizeof(*ctx->releases));
}

/* --- orders --- */

static void order_take(struct cq_model *model, const struct cqc_order *o)
{
	struct cq_ctx *ctx = model->ctx;

	if (model->be->hold(model, o))
		return;
	if (o->op == CQC_OP_RELEASE) {
		cqc_release_add(ctx, &o->page, o->epoch);
		return;
	}
	o->pg->eng = CQC_ENG_QUEUED;
	list_add_tail(&o->pg->job, &ctx->jobs);
}

/**
 * cqc_orders_drain() - take orders out of the rings
 * @ctx: context, lock held
 */
void cqc_orders_drain(struct cq_ctx *ctx)
{
	struct list_head *pos;
	struct cqc_order o;

	list_for_each(pos, &ctx->models) {
		struct cq_model *model = list_entry(pos, struct cq_model, link);

		while (cqc_ring_pop(&model->orders, &o))
			order_take(model, &o);
	}
}

/**
 * cqc_order_push() - hand an order to the engine
 * @model: model
 * @o:     order; caller's thread, lock not held
 */
void cqc_order_push(struct cq_model *model, const struct cqc_order *o)
{
	struct cq_ctx *ctx = model->ctx;

	while (!cqc_ring_push(&model->orders, o)) {
		/* Full of releases: be the consumer for a moment. */
		pthread_mutex_lock(&ctx->lock);
		cqc_orders_drain(ctx);
		pthread_mutex_unlock(&ctx->lock);
	}
}

/* --- sealing --- */

/**
 * cqc_event() - let cq_event_fd() be readable
 * @ctx: context, lock held
 */
void cqc_event(struct cq_ctx *ctx)
{
	uint64_t one = 1;

	ctx->events++;
	if (write(ctx->event, &one, sizeof(one)) < 0)
		return;	/* full: it is readable, that is all it says */
}

/* Through with @pg: off every list, result to the caller's thread. */
static void job_end(struct cq_ctx *ctx, struct cq_pg *pg, int ret)
{
	struct cqc_order o = { .op = CQC_OP_DONE, .pg = pg };

	list_del(&pg->job);
	pg->eng = ret ? CQC_ENG_FAILED : CQC_ENG_SEALED;
	/* Published and not read here any more: the caller's thread may be idle
	 * for long. Pairs with the store in cqc_orphans_mark(). */
	if (!ret && smp_load_acquire(&pg->orphan)) {
		cqc_release_add(ctx, &pg->res.page, pg->res.pin_epoch);
		ret = -ECANCELED;
	}
	pg->res.ret = ret;
	/* Cannot be full: it holds every chunk of the arena, a page has one. */
	cqc_ring_push(&pg->model->results, &o);
	cqc_event(ctx);
}

static void job_unpin(struct cq_ctx *ctx, struct cq_pg *pg, int ret)
{
	cqc_release_add(ctx, &pg->res.page, pg->res.pin_epoch);
	job_end(ctx, pg, ret);
}

/* All segments there? Then check the slots and finish. */
static void job_map(struct cq_ctx *ctx, struct cq_pg *pg)
{
	struct cq_model *model = pg->model;
	struct cqc_seg *seg, *sink = NULL;
	int ret;

	if (pg->res.pin_epoch != ctx->pin_epoch) {
		list_del(&pg->job);	/* the pin is gone: ask again */
		list_add_tail(&pg->job, &ctx->jobs);
		pg->eng = CQC_ENG_QUEUED;
		return;
	}
	seg = cqc_seg_want(model, pg->res.page.segment);
	if (pg->res.has_sink)
		sink = cqc_seg_want(model, pg->res.sink_page.segment);
	if (!seg || (pg->res.has_sink && !sink))
		return;	/* asked again on the next event */
	if (!seg->base || (sink && !sink->base))
		return;
	ret = cqc_slot_check(model, seg, &pg->res.page, CQ_PAGE_CODES, &pg->key,
			     &pg->res.slot);
	if (!ret && sink)
		ret = cqc_slot_check(model, sink, &pg->res.sink_page, CQ_PAGE_SINK,
				     &pg->key, &pg->res.sink);
	if (ret)
		job_unpin(ctx, pg, ret);
	else
		job_end(ctx, pg, 0);
}

/**
 * cqc_jobs_mapped() - finish pages whose segments have arrived
 * @ctx: context, lock held
 */
void cqc_jobs_mapped(struct cq_ctx *ctx)
{
	struct list_head *pos, *tmp;

	list_for_each_safe(pos, tmp, &ctx->mapping)
		job_map(ctx, list_entry(pos, struct cq_pg, job));
}

static int seal_ok(struct cq_ctx *ctx, struct cq_pg *pg, const Cqp__SealOk *ok)
{
	bool sink = pg->sink_chunk != CQC_NONE;

	if (ok->page.len != sizeof(pg->res.page))
		return -EPROTO;
	memcpy(&pg->res.page, ok->page.data, sizeof(pg->res.page));
	pg->res.pin_epoch = ctx->pin_epoch;
	if (ok->key.len != CQ_KEY_BYTES || memcmp(ok->key.data, pg->key.b, CQ_KEY_BYTES) ||
	    (sink && (!ok->has_sink || ok->sink.len != sizeof(pg->res.sink_page))))
		return -EPROTO;
	pg->res.existing = ok->existing;
	pg->res.has_sink = sink;
	if (sink)
		memcpy(&pg->res.sink_page, ok->sink.data, sizeof(pg->res.sink_page));
	return 0;
}

static void seal_done(struct cq_ctx *ctx, struct cqc_req *req, int ret,
		      const Cqp__Msg *msg, struct cqp_frame *f)
{
	struct cq_pg *pg = req->arg;

	if (ret == -ENOTCONN) {
		pg->eng = CQC_ENG_QUEUED;
		list_add_tail(&pg->job, &ctx->jobs);
		return;
	}
	if (!ret)
		ret = seal_ok(ctx, pg, msg->seal_ok);
	ret = pg->model->be->sealed(pg, ret);
	list_add_tail(&pg->job, &ctx->mapping);
	if (ret) {
		job_end(ctx, pg, ret);
		return;
	}
	pg->eng = CQC_ENG_MAPPING;
	job_map(ctx, pg);
}

static int seal_send(struct cq_ctx *ctx, struct cq_pg *pg)
{
	struct cq_model *model = pg->model;
	const struct cqp_key *parent = pg->parent ? &pg->parent->key : &model->root;
	Cqp__Seal seal = CQP__SEAL__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	uint32_t le[CQ_PAGE_TOKENS], i;
	struct cqc_seal_buf buf;
	struct cqp_key parent_copy = *parent;

	for (i = 0; i < CQ_PAGE_TOKENS; i++)
		le[i] = htole32(pg->tokens[i]);
	seal.shard = model->shard;
	seal.parent.data = parent_copy.b;
	seal.parent.len = CQ_KEY_BYTES;
	seal.tokens.data = (uint8_t *)le;
	seal.tokens.len = sizeof(le);
	if (pg->extra) {
		seal.has_extra = 1;
		seal.extra.data = pg->extra->bytes;
		seal.extra.len = pg->extra->len;
	}
	model->be->seal(pg, &seal, &buf);
	seal.has_priority = pg->priority != 0;
	seal.priority = pg->priority;
	seal.has_ttl_s = pg->ttl_s != 0;
	seal.ttl_s = pg->ttl_s;
	msg.body_case = CQP__MSG__BODY_SEAL;
	msg.seal = &seal;
	pg->req.want = CQP__MSG__BODY_SEAL_OK;
	pg->req.done = seal_done;
	pg->req.arg = pg;
	return cqc_send(ctx, &pg->req, &msg, NULL, 0);
}

/* 0: go on with the next job; other: nothing more can be sent now. */
static int job_try(struct cq_ctx *ctx, struct cq_pg *pg, uint32_t *in_flight)
{
	int ret = pg->model->be->ready(pg);

	if (!ret)
		return 0;
	if (ret < 0) {
		job_end(ctx, pg, ret);
		return 0;
	}
	if (pg->parent && pg->parent->eng == CQC_ENG_FAILED) {
		job_end(ctx, pg, pg->parent->res.ret);
		return 0;
	}
	if (pg->model->gone) {
		job_end(ctx, pg, pg->model->gone);
		return 0;
	}
	if (!pg->model->ready || (pg->parent && pg->parent->eng != CQC_ENG_SEALED))
		return 0;
	if (*in_flight >= SEALS_IN_FLIGHT)
		return -EAGAIN;
	list_del(&pg->job);
	ret = seal_send(ctx, pg);
	if (!ret) {
		pg->eng = CQC_ENG_SENT;
		++*in_flight;
		return 0;
	}
	list_add(&pg->job, &ctx->jobs);
	if (ret == -EMSGSIZE || ret == -ENOMEM) {
		job_end(ctx, pg, ret);
		return 0;
	}
	return ret;
}

/**
 * cqc_jobs_pump() - send what can be sent
 * @ctx: context, lock held
 */
void cqc_jobs_pump(struct cq_ctx *ctx)
{
	struct list_head *pos, *tmp;
	uint32_t in_flight = 0;

	if (ctx->link != CQC_READY)
		return;
	cqc_jobs_mapped(ctx);
	list_for_each(pos, &ctx->reqs)
		in_flight += list_entry(pos, struct cqc_req, link)->want ==
			CQP__MSG__BODY_SEAL_OK;
	list_for_each_safe(pos, tmp, &ctx->jobs)
		if (job_try(ctx, list_entry(pos, struct cq_pg, job), &in_flight))
			break;
}

/**
 * cqc_jobs_cancel() - drop pages that only closed sequences had
 * @ctx: context, lock held; cqd is away
 */
void cqc_jobs_cancel(struct cq_ctx *ctx)
{
	struct list_head *pos, *tmp;

	list_for_each_safe(pos, tmp, &ctx->jobs) {
		struct cq_pg *pg = list_entry(pos, struct cq_pg, job);

		/* Pairs with the store in cqc_orphans_mark(). */
		if (smp_load_acquire(&pg->orphan))
			job_end(ctx, pg, -ECANCELED);
	}
}

static void forget_list(struct cq_ctx *ctx, struct list_head *list, struct cq_model *model)
{
	struct list_head *pos, *tmp;

	list_for_each_safe(pos, tmp, list) {
		struct cq_pg *pg = list_entry(pos, struct cq_pg, job);

		if (pg->model != model)
			continue;
		if (pg->eng == CQC_ENG_MAPPING)
			cqc_release_add(ctx, &pg->res.page, pg->res.pin_epoch);
		list_del(pos);
	}
}

/* Results that the caller's thread will not see any more. */
static void forget_results(struct cq_model *model)
{
	struct cqc_order o;

	while (cqc_ring_pop(&model->results, &o))
		if (!o.pg->res.ret)
			cqc_release_add(model->ctx, &o.pg->res.page, o.pg->res.pin_epoch);
}

/**
 * cqc_jobs_forget() - the engine lets go of a model
 * @model: about to be freed; lock held
 */
void cqc_jobs_forget(struct cq_model *model)
{
	struct cq_ctx *ctx = model->ctx;
	struct list_head *pos, *tmp;

	cqc_orders_drain(ctx);
	forget_list(ctx, &ctx->jobs, model);
	forget_list(ctx, &ctx->mapping, model);
	forget_results(model);
	list_for_each_safe(pos, tmp, &ctx->reqs) {
		struct cqc_req *req = list_entry(pos, struct cqc_req, link);
		bool ours = req == &model->open_req || req == &model->arena_req;

		if (req->want == CQP__MSG__BODY_LEASE_OK)
			ours = req->arg == model;
		if (req->want == CQP__MSG__BODY_SEAL_OK)
			ours = container_of(req, struct cq_pg, req)->model == model;
		if (req->want == CQP__MSG__BODY_SEGMENT_OK)
			ours = container_of(req, struct cqc_seg, req)->model == model;
		if (ours)
			list_del(pos);
	}
}
