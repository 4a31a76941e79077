// SPDX-License-Identifier: MIT
/*
 * Fences: events on a model's stream, numbered. The caller's thread records
 * them, the engine sees them pass; what may not happen before is kept back.
 */
#include <errno.h>
#include <stdlib.h>
#include "client/gpu.h"

/**
 * cqc_gpu_fences_new() - events and the status words that they pass by
 * @g: device, its context is current
 *
 * Return: 0 or -errno with text.
 */
int cqc_gpu_fences_new(struct cqc_gpu *g)
{
	void *p = NULL;
	uint32_t i;
	int r = 0;

	for (i = 0; i < CQC_FENCES && !r; i++)
		r = g->cu->cuEventCreate(&g->event[i], CQCU_EVENT_DISABLE_TIMING);
	if (!r)
		r = g->cu->cuMemHostAlloc(&p, CQC_FENCES * sizeof(*g->seen),
					  CQCU_MEMHOSTALLOC_PORTABLE);
	if (r)
		return cqc_gpu_fail(g, r, "making events");
	g->seen = p;
	return 0;
}

/**
 * cqc_gpu_fences_free() - undo that
 * @g: device, its context is current
 */
void cqc_gpu_fences_free(struct cqc_gpu *g)
{
	uint32_t i;

	for (i = 0; i < CQC_FENCES; i++)
		if (g->event[i])
			g->cu->cuEventDestroy(g->event[i]);
	if (g->seen)
		g->cu->cuMemFreeHost(g->seen);
	free(g->held);
}

/* A graph with a step's launches may be launched as long as that lasts. */
static bool steps_last(const struct cq_model *model)
{
	struct list_head *pos;

	list_for_each(pos, &model->batches)
		if (list_entry(pos, struct cq_batch, link)->valid)
			return true;
	return false;
}

/* The event of @id was another fence's before: that one must have been seen. */
static int event_free(struct cq_model *model, uint64_t id)
{
	struct cqc_gpu *g = model->gpu;
	int ret = 0;

	while (id > CQC_FENCES && smp_load_acquire(&g->done) < id - CQC_FENCES && !ret) {
		ret = cqc_gpu_passed(g, id - CQC_FENCES, true);
		if (ret < 0)
			return ret;
		pthread_mutex_lock(&model->ctx->lock);
		cqc_gpu_fences_poll(g);
		pthread_mutex_unlock(&model->ctx->lock);
		ret = READ_ONCE(g->lost);
	}
	return ret;
}

static int record(struct cqc_gpu *g, uint64_t id)
{
	const struct cqk_cuda *cu = g->cu;
	int r;

	r = cu->cuMemcpyDtoHAsync(&g->seen[id % CQC_FENCES], g->status, sizeof(uint64_t),
				  g->stream);
	if (!r)
		r = cu->cuMemsetD8Async(g->status, 0, sizeof(uint64_t), g->stream);
	if (!r)
		r = cu->cuEventRecord(g->event[id % CQC_FENCES], g->stream);
	return r;
}

/**
 * cqc_gpu_fence() - a fence behind all that was launched
 * @model: model; caller's thread
 *
 * Waits for the device if it is CQC_FENCES behind. Without a fence nothing that
 * comes later can be known to be safe: a failure counts as a lost context.
 *
 * Return: its number.
 */
uint64_t cqc_gpu_fence(struct cq_model *model)
{
	struct cqc_gpu *g = model->gpu;
	uint64_t id = g->recorded + 1;
	int r;

	if (READ_ONCE(g->lost) || (!READ_ONCE(g->dirty) && !steps_last(model)))
		return g->recorded;
	if (cqc_gpu_in(g))
		return g->recorded;
	if (!event_free(model, id)) {
		r = record(g, id);
		if (r) {
			cqc_gpu_fail(g, r, "recording an event");
			WRITE_ONCE(g->lost, -EIO);
		}
		WRITE_ONCE(g->dirty, false);
		/* Pairs with the load in cqc_gpu_fences_poll(): it was recorded. */
		smp_store_release(&g->recorded, id);
	}
	cqc_gpu_out(g);
	return g->recorded;
}

/**
 * cqc_gpu_passed() - is all work before a fence done?
 * @g:     device; caller's thread
 * @fence: recorded
 * @wait:  until it is
 *
 * Return: 1; 0 not yet; -errno with text.
 */
int cqc_gpu_passed(struct cqc_gpu *g, uint64_t fence, bool wait)
{
	struct cqcu_event *e = g->event[fence % CQC_FENCES];
	int ret, r;

	if (fence <= smp_load_acquire(&g->done) || fence + CQC_FENCES <= g->recorded)
		return 1;
	ret = cqc_gpu_in(g);
	if (ret)
		return ret;
	r = wait ? g->cu->cuEventSynchronize(e) : g->cu->cuEventQuery(e);
	cqc_gpu_out(g);
	if (r == CQCU_ERROR_NOT_READY)
		return 0;
	return r ? cqc_gpu_fail(g, r, "waiting for an event") : 1;
}

/**
 * cqc_gpu_fences_poll() - which fences have been passed?
 * @g: device, its context is current; lock held
 */
void cqc_gpu_fences_poll(struct cqc_gpu *g)
{
	uint64_t id;
	int r;

	while (!READ_ONCE(g->lost) && g->done < smp_load_acquire(&g->recorded)) {
		id = g->done + 1;
		r = g->cu->cuEventQuery(g->event[id % CQC_FENCES]);
		if (r == CQCU_ERROR_NOT_READY)
			return;
		if (r) {
			WRITE_ONCE(g->lost, cqk_cuda_errno(r));
			return;
		}
		if (READ_ONCE(g->seen[id % CQC_FENCES])) {
			g->bad = id;
			g->bad_status = g->seen[id % CQC_FENCES];
		}
		/* Pairs with the loads of the caller's thread, which may use the
		 * event anew. */
		smp_store_release(&g->done, id);
	}
}

/* --- releases that wait --- */

static bool passed(const struct cqc_gpu *g, uint64_t fence)
{
	return fence <= g->done || READ_ONCE(g->lost);
}

static bool held_grow(struct cqc_gpu *g)
{
	uint32_t max = g->held_max ? g->held_max * 2 : 256, i;
	struct cqc_held *h = malloc(max * sizeof(*h));

	if (!h)
		return false;
	for (i = 0; i < g->held_n; i++)
		h[i] = g->held[(g->held_at + i) % g->held_max];
	free(g->held);
	g->held = h;
	g->held_max = max;
	g->held_at = 0;
	return true;
}

/**
 * cqc_gpu_hold() - keep a release back until its fence has been passed
 * @model: model, lock held
 * @o:     order
 *
 * Return: true: taken care of.
 */
bool cqc_gpu_hold(struct cq_model *model, const struct cqc_order *o)
{
	struct cqc_gpu *g = model->gpu;

	if (o->op == CQC_OP_LEASE) {
		cqc_gpu_lease_over(model, o->epoch);
		return true;
	}
	if (o->op != CQC_OP_RELEASE || (!g->held_n && passed(g, o->fence)))
		return false;
	if (g->held_n == g->held_max && !held_grow(g))
		return true;	/* the pin stays until this process ends */
	g->held[(g->held_at + g->held_n++) % g->held_max] = (struct cqc_held){
		.page = o->page, .epoch = o->epoch, .fence = o->fence,
	};
	return true;
}

/**
 * cqc_gpu_held_pump() - release what may be
 * @model: model, lock held
 */
void cqc_gpu_held_pump(struct cq_model *model)
{
	struct cqc_gpu *g = model->gpu;

	while (g->held_n && passed(g, g->held[g->held_at].fence)) {
		const struct cqc_held *h = &g->held[g->held_at];

		cqc_release_add(model->ctx, &h->page, h->epoch);
		g->held_at = (g->held_at + 1) % g->held_max;
		g->held_n--;
	}
}
