// SPDX-License-Identifier: MIT
/*
 * Leases: slots of the device that cqd lets this session write. The engine asks
 * for them ahead and hands them, mapped, to the caller's thread; what that has
 * no use for goes on its own stack. All go back when the model is closed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "client/gpu.h"

#define WANT_MIN 8u
#define WANT_FIRST 64u
#define WANT_MAX 1024u
#define WANT_SINKS 4u
#define RETRY_MIN_MS 20
#define RETRY_MAX_MS 1000
#define RETURN_MAX 128u	/* slots in one message */

static int pool_new(struct cqc_pool *p)
{
	p->stack = calloc(CQC_LEASES, sizeof(*p->stack));
	if (!p->stack || cqc_ring_init(&p->ring, CQC_LEASES))
		return -ENOMEM;
	list_init(&p->req.link);
	p->retry_ms = RETRY_MIN_MS;
	return 0;
}

/**
 * cqc_gpu_leases_new() - tables of leases
 * @model: with an arena
 *
 * Return: 0 or -ENOMEM with text.
 */
int cqc_gpu_leases_new(struct cq_model *model)
{
	struct cqc_gpu *g = model->gpu;

	g->leases = calloc(CQC_LEASES, sizeof(*g->leases));
	if (!g->leases || pool_new(&g->pool[0]) || pool_new(&g->pool[1]))
		return cqc_fail(-ENOMEM, "out of memory for leases");
	g->pool[0].want = MAX(MIN(model->arena.n_units, WANT_FIRST), WANT_MIN);
	g->pool[1].want = model->m.sinks ? WANT_SINKS : 0;
	return 0;
}

/**
 * cqc_gpu_leases_free() - undo that
 * @g: device
 */
void cqc_gpu_leases_free(struct cqc_gpu *g)
{
	uint32_t i;

	for (i = 0; i < 2; i++) {
		cqc_ring_free(&g->pool[i].ring);
		free(g->pool[i].stack);
	}
	free(g->leases);
}

static uint32_t waiting(const struct cqc_pool *p)
{
	/* Pairs with the release in cqc_ring_pop() or cqc_ring_push(). */
	return smp_load_acquire(&p->ring.head) - smp_load_acquire(&p->ring.tail);
}

/* --- the caller's thread --- */

/* The next one that cqd knows of; those that it has forgotten go back on the way. */
static uint32_t next(struct cq_model *model, uint32_t kind)
{
	struct cqc_gpu *g = model->gpu;
	struct cqc_pool *p = &g->pool[kind];
	struct cqc_order o = { .op = CQC_OP_LEASE };

	for (;;) {
		if (p->n)
			o.epoch = p->stack[--p->n];
		else if (!cqc_ring_pop(&p->ring, &o))
			return CQC_NONE;
		if (g->leases[o.epoch].epoch == READ_ONCE(g->epoch))
			return o.epoch;
		o.op = CQC_OP_LEASE;
		cqc_order_push(model, &o);
	}
}

static bool has_next(struct cq_model *model, uint32_t kind)
{
	struct cqc_pool *p = &model->gpu->pool[kind];
	uint32_t lease = next(model, kind);

	if (lease == CQC_NONE)
		return false;
	p->stack[p->n++] = lease;
	return true;
}

/**
 * cqc_gpu_take() - a leased slot; caller's thread
 * @model: model
 * @kind:  0 codes, 1 sinks
 *
 * Return: number of the lease; CQC_NONE: none is there, more are asked for.
 */
uint32_t cqc_gpu_take(struct cq_model *model, uint32_t kind)
{
	struct cqc_pool *p = &model->gpu->pool[kind];
	uint32_t lease = next(model, kind);

	if (lease != CQC_NONE)
		return lease;
	if (READ_ONCE(p->fed)) {
		WRITE_ONCE(p->fed, false);
		WRITE_ONCE(p->want, MIN(p->want * 2, WANT_MAX));
	}
	cqc_wake(model->ctx);
	return CQC_NONE;
}

/**
 * cqc_gpu_can_take() - could a page be taken now? caller's thread
 * @model: model
 *
 * Return: 0; -ENOBUFS, more are asked for; the error that the context was lost by;
 * with text.
 */
int cqc_gpu_can_take(struct cq_model *model)
{
	int ret = cqc_gpu_in(model->gpu);

	if (ret)
		return ret;
	cqc_gpu_out(model->gpu);
	if (has_next(model, 0) && (!model->gpu->pool[1].want || has_next(model, 1)))
		return 0;
	cqc_wake(model->ctx);
	return cqc_fail(-ENOBUFS, "no slot is leased yet; wait on cq_event_fd() or close a "
				  "sequence");
}

/**
 * cqc_gpu_pg_set() - a page is in slots of ours
 * @pg:    page object
 * @codes: lease
 * @sinks: lease or CQC_NONE
 */
void cqc_gpu_pg_set(struct cq_pg *pg, uint32_t codes, uint32_t sinks)
{
	const struct cqc_gpu *g = pg->model->gpu;
	const struct cqc_lease *l = &g->leases[codes];

	pg->chunk = codes;
	pg->sink_chunk = sinks;
	pg->codes = cqc_lease_ro(g, codes);
	pg->own.word = &l->seg->words[l->page.slot];
	pg->own.expect = l->page.word;
	pg->own.mask = CQP_WORD(UINT64_MAX, 0);
}

/**
 * cqc_gpu_pg_take() - slots for a page to come
 * @pg:   page object
 * @sink: page 0 of a model with sinks
 *
 * Return: false: none is there; more are asked for.
 */
bool cqc_gpu_pg_take(struct cq_pg *pg, bool sink)
{
	pg->chunk = cqc_gpu_take(pg->model, 0);
	if (pg->chunk == CQC_NONE)
		return false;
	if (sink) {
		pg->sink_chunk = cqc_gpu_take(pg->model, 1);
		if (pg->sink_chunk == CQC_NONE)
			return false;
	}
	cqc_gpu_pg_set(pg, pg->chunk, pg->sink_chunk);
	pg->born = pg->model->gpu->recorded + 1;
	pg->bad = pg->chunk;
	pg->tag = ++pg->model->gpu->tags;
	return true;
}

static void give(struct cq_model *model, uint32_t *lease, uint32_t kind)
{
	struct cqc_pool *p = &model->gpu->pool[kind];
	struct cqc_order o = { .op = CQC_OP_LEASE, .epoch = *lease };

	if (*lease == CQC_NONE)
		return;
	if (model->gpu->leases[*lease].used)
		cqc_order_push(model, &o);
	else
		p->stack[p->n++] = *lease;
	*lease = CQC_NONE;
}

/**
 * cqc_gpu_unused() - leases go back to who takes the next
 * @model: model
 * @codes: lease or CQC_NONE
 * @sinks: lease or CQC_NONE
 */
void cqc_gpu_unused(struct cq_model *model, uint32_t codes, uint32_t sinks)
{
	give(model, &codes, 0);
	give(model, &sinks, 1);
}

/**
 * cqc_gpu_pg_give() - a page needs its leases no more
 * @pg: page object
 *
 * What is still written there comes before what is written there next.
 */
void cqc_gpu_pg_give(struct cq_pg *pg)
{
	pg->model->gpu->last.seq = NULL;
	give(pg->model, &pg->chunk, 0);
	give(pg->model, &pg->sink_chunk, 1);
}

/* --- the engine --- */

/**
 * cqc_gpu_lease_over() - the caller's thread has no use for a lease
 * @model: model, lock held
 * @lease: used, or of an epoch that is over
 */
void cqc_gpu_lease_over(struct cq_model *model, uint32_t lease)
{
	memset(&model->gpu->leases[lease], 0, sizeof(model->gpu->leases[lease]));
}

static uint32_t lease_free(const struct cqc_gpu *g)
{
	uint32_t i;

	for (i = 0; i < CQC_LEASES; i++)
		if (!g->leases[i].state)
			break;
	return i;
}

static int lease_wrong(const struct cq_model *model, const struct cqp_page *page)
{
	return cqc_fail(-EPROTO, "GPU %s: cqd leases slot %u of segment %u, which cannot be: "
			"nothing is written there", model->gpu->uuid, page->slot, page->segment);
}

/* Is it leased to us already, and nothing was published there? */
static bool is_there(const struct cqc_gpu *g, const struct cqp_page *page)
{
	uint32_t i;

	for (i = 0; i < CQC_LEASES; i++)
		if (g->leases[i].state && g->leases[i].epoch == g->epoch &&
		    !memcmp(&g->leases[i].page, page, sizeof(*page)))
			return true;
	return false;
}

/* Slots of an answer into the table. */
static int leases_take(struct cq_model *model, const Cqp__LeaseOk *ok, uint32_t kind)
{
	struct cqc_gpu *g = model->gpu;
	size_t n = ok->slots.len / sizeof(struct cqp_page), i;
	struct cqp_page page;
	uint32_t at;

	if (!n || ok->slots.len % sizeof(page))
		return cqc_fail(-EPROTO, "cqd gave a malformed answer to Lease");
	for (i = 0; i < n; i++) {
		memcpy(&page, ok->slots.data + i * sizeof(page), sizeof(page));
		if (CQP_WORD_STATE(page.word) != CQP_FILLING || is_there(g, &page))
			return lease_wrong(model, &page);
		at = lease_free(g);
		if (at == CQC_LEASES)
			break;	/* goes back when the session is resumed, or ends */
		g->leases[at] = (struct cqc_lease){
			.page = page, .epoch = g->epoch, .kind = kind,
			.state = CQC_LEASE_MAPPING,
		};
	}
	return 0;
}

/* A slot of the segment, large enough, and by its word the one that was leased. */
static bool lease_good(const struct cq_model *model, const struct cqc_lease *l,
		       const struct cqc_seg *seg)
{
	uint64_t payload = l->kind ? model->m.sink_payload : model->m.payload;

	return l->page.slot < seg->slots &&
	       seg->slot_bytes >= sizeof(struct cq_page_hdr) + payload &&
	       smp_load_acquire(&seg->words[l->page.slot]) == l->page.word;
}

static void return_send(struct cq_ctx *ctx, const struct cqp_page *slots, uint32_t n,
			bool others)
{
	Cqp__LeaseReturn body = CQP__LEASE_RETURN__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;

	body.slots.data = (uint8_t *)(uintptr_t)slots;
	body.slots.len = n * sizeof(*slots);
	body.has_others = 1;
	body.others = others;
	msg.body_case = CQP__MSG__BODY_LEASE_RETURN;
	msg.lease_return = &body;
	cqc_tell(ctx, &msg);
}

static void retry_later(struct cqc_pool *p)
{
	p->retry_at = cqc_now_ms() + p->retry_ms;
	p->retry_ms = MIN(p->retry_ms * 2, RETRY_MAX_MS);
}

/**
 * cqc_gpu_seg_gone() - cqd has no such segment, or it cannot be mapped
 * @model:   model, lock held
 * @segment: segment that leases may wait for: its memory may have ended since
 *           they were given
 */
void cqc_gpu_seg_gone(struct cq_model *model, uint32_t segment)
{
	struct cqp_page slots[RETURN_MAX];
	struct cqc_gpu *g = model->gpu;
	bool late[2] = { false, false };
	uint32_t i, n = 0;

	for (i = 0; i < CQC_LEASES && n < RETURN_MAX; i++) {
		struct cqc_lease *l = &g->leases[i];

		if (l->state != CQC_LEASE_MAPPING || l->page.segment != segment)
			continue;
		slots[n++] = l->page;
		late[l->kind] = true;
		memset(l, 0, sizeof(*l));
	}
	if (n)
		return_send(model->ctx, slots, n, false);
	for (i = 0; i < 2; i++)
		if (late[i])
			retry_later(&g->pool[i]);
}

/*
 * Into the caller's hands, if its segment is there. 0; -EPROTO with text: a slot
 * that cannot be.
 */
static int lease_map(struct cq_model *model, uint32_t at)
{
	struct cqc_gpu *g = model->gpu;
	struct cqc_lease *l = &g->leases[at];
	struct cqc_order o = { .op = CQC_OP_LEASE, .epoch = at };
	struct cqc_seg *seg = cqc_seg_want(model, l->page.segment);
	uint32_t kind = l->kind;

	if (!seg || !seg->base)
		return 0;
	if (!lease_good(model, l, seg)) {
		lease_wrong(model, &l->page);
		memset(l, 0, sizeof(*l));
		return -EPROTO;
	}
	if (cqc_gpu_seg_rw(seg)) {
		return_send(model->ctx, &l->page, 1, false);
		memset(l, 0, sizeof(*l));
		retry_later(&g->pool[kind]);
		return 0;
	}
	l->seg = seg;
	l->state = CQC_LEASE_HELD;
	cqc_ring_push(&g->pool[kind].ring, &o);
	cqc_event(model->ctx);
	return 0;
}

/* Nothing may be written any more to slots that were leased so far. */
static void forget(struct cqc_gpu *g)
{
	uint32_t i;

	for (i = 0; i < CQC_LEASES; i++)
		if (g->leases[i].state == CQC_LEASE_MAPPING)
			memset(&g->leases[i], 0, sizeof(g->leases[i]));
	/* Pairs with the loads of the caller's thread. */
	smp_store_release(&g->epoch, g->epoch + 1);
}

static bool has_some(const struct cqc_gpu *g)
{
	uint32_t i;

	for (i = 0; i < CQC_LEASES; i++)
		if (g->leases[i].state && g->leases[i].epoch == g->epoch)
			return true;
	return false;
}

static void lease_done(struct cq_ctx *ctx, struct cqc_req *req, int ret, const Cqp__Msg *msg,
		       struct cqp_frame *f)
{
	struct cq_model *model = req->arg;
	struct cqc_pool *p = container_of(req, struct cqc_pool, req);

	p->asked = false;
	if (!ret)
		ret = leases_take(model, msg->lease_ok, (uint32_t)(p - model->gpu->pool));
	if (!ret) {
		p->retry_ms = RETRY_MIN_MS;
		WRITE_ONCE(p->fed, true);
		return;
	}
	if (ret == -ENODATA && has_some(model->gpu))
		forget(model->gpu);
	/* One that lies is met again from the start. */
	if (ret == -EPROTO)
		cqc_conn_drop(ctx, ret);
	retry_later(p);
}

static void lease_fill(const struct cq_model *model, uint32_t kind, uint32_t n, Cqp__Msg *msg,
		       Cqp__Lease *body)
{
	body->shard = model->shard;
	body->slots = n;
	body->has_sinks = 1;
	body->sinks = kind;
	msg->body_case = CQP__MSG__BODY_LEASE;
	msg->lease = body;
}

static void lease_ask(struct cq_model *model, uint32_t kind)
{
	struct cqc_pool *p = &model->gpu->pool[kind];
	Cqp__Lease body = CQP__LEASE__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	uint32_t have = waiting(p), want = READ_ONCE(p->want);

	if (p->asked || !model->ready || have > want / 2 || have >= want ||
	    cqc_now_ms() < p->retry_at)
		return;
	lease_fill(model, kind, want - have, &msg, &body);
	p->req.want = CQP__MSG__BODY_LEASE_OK;
	p->req.done = lease_done;
	p->req.arg = model;
	p->asked = !cqc_send(model->ctx, &p->req, &msg, NULL, 0);
}

static bool any_mapping(const struct cqc_gpu *g)
{
	uint32_t i;

	for (i = 0; i < CQC_LEASES; i++)
		if (g->leases[i].state == CQC_LEASE_MAPPING)
			return true;
	return false;
}

/**
 * cqc_gpu_leases_pump() - ask for slots before they are short
 * @model: model, lock held
 */
void cqc_gpu_leases_pump(struct cq_model *model)
{
	struct cqc_gpu *g = model->gpu;
	uint32_t i;

	if (any_mapping(g)) {
		for (i = 0; i < CQC_LEASES; i++)
			if (g->leases[i].state == CQC_LEASE_MAPPING && lease_map(model, i)) {
				cqc_conn_drop(model->ctx, -EPROTO);
				return;
			}
		if (any_mapping(g))
			return;
	}
	lease_ask(model, 0);
	if (g->pool[1].want)
		lease_ask(model, 1);
}

/**
 * cqc_gpu_leases_idle_ms() - when to ask again after a refusal
 * @model: model, lock held
 *
 * Return: milliseconds; -1: no need.
 */
int cqc_gpu_leases_idle_ms(const struct cq_model *model)
{
	const struct cqc_gpu *g = model->gpu;
	int64_t least = -1, left;
	uint32_t i;

	for (i = 0; i < 2; i++) {
		const struct cqc_pool *p = &g->pool[i];

		if (p->asked || !model->ready || waiting(p) > p->want / 2 || !p->want)
			continue;
		left = MAX(p->retry_at - cqc_now_ms(), (int64_t)0);
		if (least < 0 || left < least)
			least = left;
	}
	return (int)least;
}

/* --- open, close, come back --- */

static int first_take(struct cqc_call *call, const Cqp__Msg *msg, struct cqp_frame *f)
{
	struct cqc_pool *p = call->arg;
	struct cq_model *model = p->req.arg;
	int ret = leases_take(model, msg->lease_ok, (uint32_t)(p - model->gpu->pool));

	if (ret)
		call->err = *cqc_err();
	else
		p->fed = true;
	return ret;
}

/* A pool that is full is no reason not to read. */
static int first_ask(struct cq_model *model, uint32_t kind, uint64_t conn_no)
{
	struct cqc_pool *p = &model->gpu->pool[kind];
	struct cqc_call call = {
		.req.want = CQP__MSG__BODY_LEASE_OK, .take = first_take, .arg = p,
	};
	Cqp__Lease body = CQP__LEASE__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	int ret;

	p->req.arg = model;
	lease_fill(model, kind, p->want, &msg, &body);
	ret = cqc_call(model->ctx, &call, &msg, NULL, 0, conn_no);
	return ret == -ENOSPC || ret == -EDQUOT || ret == -ENOMEM ? 0 : ret;
}

static int first_map(struct cq_model *model)
{
	struct cqc_gpu *g = model->gpu;
	struct cqc_seg *seg;
	uint32_t i;
	int ret;

	for (i = 0; i < CQC_LEASES; i++) {
		if (g->leases[i].state != CQC_LEASE_MAPPING)
			continue;
		ret = cqc_seg_get(model, g->leases[i].page.segment, &seg);
		if (ret)
			return cqc_fail(ret, "GPU %s: a segment of cqd cannot be mapped: %s",
					g->uuid, strerror(-ret));
		ret = lease_map(model, i);
		if (ret)
			return ret;
	}
	return 0;
}

/**
 * cqc_gpu_join() - the first slots
 * @model:   model, lock held
 * @shard:   as answered
 * @conn_no: connection that it was answered on
 *
 * Return: 0 or -errno with text.
 */
int cqc_gpu_join(struct cq_model *model, uint32_t shard, uint64_t conn_no)
{
	int ret;

	model->shard = shard;
	ret = first_ask(model, 0, conn_no);
	if (!ret && model->gpu->pool[1].want)
		ret = first_ask(model, 1, conn_no);
	return ret ? ret : first_map(model);
}

/**
 * cqc_gpu_rejoin() - the model was opened again
 * @model: model, lock held
 */
void cqc_gpu_rejoin(struct cq_model *model)
{
	model->ready = true;
}

/* Is it still what we leased? A published one's word says so. */
static bool is_ours(const struct cqc_gpu *g, const struct cqc_lease *l)
{
	return l->state && l->epoch == g->epoch && !l->used &&
	       (!l->seg || smp_load_acquire(&l->seg->words[l->page.slot]) == l->page.word);
}

/**
 * cqc_lease_late() - slots for a model that was closed meanwhile
 * @ctx: context, lock held
 * @ok:  answer
 */
void cqc_lease_late(struct cq_ctx *ctx, const Cqp__LeaseOk *ok)
{
	if (ok->slots.len && ok->slots.len % sizeof(struct cqp_page) == 0)
		return_send(ctx, (const struct cqp_page *)(const void *)ok->slots.data,
			    (uint32_t)(ok->slots.len / sizeof(struct cqp_page)), false);
}

/**
 * cqc_gpu_leave() - slots go back
 * @model: model, lock held; nothing on the device writes there
 */
void cqc_gpu_leave(struct cq_model *model)
{
	struct cqp_page slots[RETURN_MAX];
	struct cqc_gpu *g = model->gpu;
	uint32_t i, n = 0;

	cqc_gpu_held_pump(model);
	if (model->ctx->link != CQC_READY || !g->leases)
		return;
	for (i = 0; i < CQC_LEASES; i++) {
		if (!is_ours(g, &g->leases[i]) || g->leases[i].sealing)
			continue;
		slots[n++] = g->leases[i].page;
		if (n == RETURN_MAX) {
			return_send(model->ctx, slots, n, false);
			n = 0;
		}
	}
	if (n)
		return_send(model->ctx, slots, n, false);
}

/* Every lease of the session that we know of; others may have been in lost answers. */
static void others_return(struct cq_ctx *ctx)
{
	static const uint32_t room = CQP_MAX_MSG / sizeof(struct cqp_page) - 16;
	struct cqp_page *slots = malloc(room * sizeof(*slots));
	struct list_head *pos;
	uint32_t n = 0, i;

	if (!slots)
		return;
	list_for_each(pos, &ctx->models) {
		const struct cqc_gpu *g = list_entry(pos, struct cq_model, link)->gpu;

		for (i = 0; g && i < CQC_LEASES && n < room; i++)
			if (is_ours(g, &g->leases[i]))
				slots[n++] = g->leases[i].page;
	}
	if (n < room)
		return_send(ctx, slots, n, true);
	free(slots);
}

static bool is_first(const struct cq_model *model)
{
	struct list_head *pos;

	list_for_each(pos, &model->ctx->models) {
		const struct cq_model *m = list_entry(pos, struct cq_model, link);

		if (m->gpu)
			return m == model;
	}
	return false;
}

/**
 * cqc_gpu_resume() - a connection came back
 * @model:   model, lock held
 * @resumed: with its session: leases go on; without nothing may be written there
 */
void cqc_gpu_resume(struct cq_model *model, bool resumed)
{
	if (!resumed)
		forget(model->gpu);
	else if (is_first(model))
		others_return(model->ctx);
}

/**
 * cqc_gpu_gone() - cqd says -ENODATA: the memory of the pool has ended
 * @model: model, lock held
 * @epoch: when what it said that of was leased
 *
 * Slots of a later memory, if there are any by now, stay.
 */
void cqc_gpu_gone(struct cq_model *model, uint32_t epoch)
{
	if (epoch == model->gpu->epoch)
		forget(model->gpu);
}
