// SPDX-License-Identifier: MIT
/*
 * Page objects: counted, pooled, switched from private to shared memory when
 * the engine has published them. Caller's thread only.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "client/backend.h"

#define SLAB_MIN 64

/* One allocation of page objects; the first one is the slab's own link. */
static int slab_add(struct cq_model *model, uint64_t n)
{
	struct cq_pg *slab;
	uint64_t i;

	n = MAX(n, (uint64_t)SLAB_MIN);
	if (n > UINT32_MAX)
		return -ENOMEM;
	slab = calloc(n + 1, sizeof(*slab));
	if (!slab)
		return -ENOMEM;
	slab->next = model->slabs;
	model->slabs = slab;
	for (i = n; i >= 1; i--) {
		slab[i].next = model->free_pg;
		model->free_pg = &slab[i];
	}
	model->have_pg += n;
	return 0;
}

/**
 * cqc_pg_reserve() - let cqc_pg_new() find what it needs
 * @model: model
 * @n:     page objects more than before
 *
 * Return: 0 or -ENOMEM.
 */
int cqc_pg_reserve(struct cq_model *model, uint64_t n)
{
	uint64_t want = model->want_pg + n;
	int ret = 0;

	if (want > model->have_pg)
		ret = slab_add(model, want - model->have_pg);
	if (!ret)
		model->want_pg = want;
	return ret;
}

/**
 * cqc_pg_unreserve() - a sequence is gone
 * @model: model
 * @n:     as reserved
 */
void cqc_pg_unreserve(struct cq_model *model, uint64_t n)
{
	model->want_pg -= n;
}

/**
 * cqc_pg_new() - page object without memory
 * @model: model
 *
 * What was reserved lasts unless a closed sequence's last page is still on its
 * way to cqd: it holds its parents, which nobody reserves any more.
 *
 * Return: it, one reference; NULL: out of memory.
 */
struct cq_pg *cqc_pg_new(struct cq_model *model)
{
	struct cq_pg *pg;

	if (!model->free_pg && slab_add(model, SLAB_MIN))
		return NULL;
	pg = model->free_pg;
	model->free_pg = pg->next;
	memset(pg, 0, sizeof(*pg));
	pg->model = model;
	pg->refs = 1;
	pg->chunk = CQC_NONE;
	pg->sink_chunk = CQC_NONE;
	list_init(&pg->job);
	list_init(&pg->req.link);
	return pg;
}

/**
 * cqc_extra_put() - let go of extra key bytes
 * @extra: bytes or NULL
 */
void cqc_extra_put(struct cqc_extra *extra)
{
	if (extra && !--extra->refs)
		free(extra);
}

static void release(struct cq_model *model, const struct cqp_page *page, uint32_t epoch)
{
	struct cqc_order o = { .op = CQC_OP_RELEASE, .epoch = epoch, .page = *page };

	o.fence = model->be->fence(model);
	cqc_order_push(model, &o);
}

/**
 * cqc_pin_put() - let go of a matched prefix
 * @model: model
 * @pin:   pin or NULL
 */
void cqc_pin_put(struct cq_model *model, struct cqc_pin *pin)
{
	uint32_t i;

	if (!pin || --pin->refs)
		return;
	for (i = 0; i < pin->n; i++)
		release(model, &pin->at[i].page, pin->at[i].epoch);
	free(pin);
}

/**
 * cqc_pg_put() - let go of a page, and of parents nobody else holds
 * @pg: page or NULL
 */
void cqc_pg_put(struct cq_pg *pg)
{
	struct cq_pg *parent;

	/* A chain of pages may hang on the last reference. */
	for (; pg && !--pg->refs; pg = parent) {
		parent = pg->parent;
		pg->model->be->pg_give(pg);
		if (pg->pinned)
			release(pg->model, &pg->page, pg->pin_epoch);
		cqc_extra_put(pg->extra);
		pg->next = pg->model->free_pg;
		pg->model->free_pg = pg;
	}
}

/**
 * cqc_pg_private() - page object with memory for its codes
 * @model: model
 * @sink:  with memory for the sinks' fp16 copy too
 *
 * Return: it, one reference; NULL when the arena is full.
 */
struct cq_pg *cqc_pg_private(struct cq_model *model, bool sink)
{
	struct cq_pg *pg = cqc_pg_new(model);

	if (!pg || model->be->pg_take(pg, sink))
		return pg;
	cqc_pg_put(pg);
	return NULL;
}

/*
 * The daemon may have had the page already, from another publisher. It is
 * read instead of our copy only if it is the same: what a sequence reads does
 * not depend on when an answer arrives.
 */
static bool same_bytes(const struct cq_pg *pg)
{
	return !pg->res.existing || pg->model->be->same(pg);
}

/* One that was taken back meanwhile is no reason to give our copy up. */
static bool still_there(const struct cq_pg *pg)
{
	const struct cqc_slot *slot = &pg->res.slot, *sink = &pg->res.sink;

	smp_rmb();	/* the bytes first; pairs with the daemon's store of the word */
	return smp_load_acquire(slot->word) == slot->expect &&
	       (!pg->res.has_sink || smp_load_acquire(sink->word) == sink->expect);
}

/* From here on others can attach to it. True if it is to be read there. */
static bool result_note(struct cq_pg *pg)
{
	pg->ordered = false;
	pg->seal_err = pg->res.ret;
	if (pg->res.ret)
		return false;
	pg->pinned = true;
	pg->page = pg->res.page;
	pg->pin_epoch = pg->res.pin_epoch;
	if (!pg->res.existing && pg->model->be->in_place)
		return true;
	return same_bytes(pg) && still_there(pg);
}

/* Read the shared page; the engine's reference goes. */
static void page_switch(struct cq_pg *pg)
{
	pg->codes = pg->res.slot.data;
	pg->slot = pg->res.slot;
	if (pg->res.has_sink)
		pg->sink = pg->res.sink;
	pg->model->be->pg_give(pg);
	cqc_pg_put(pg);
}

static bool deferred_switch(struct cq_model *model)
{
	struct cq_pg *pg, **at = &model->deferred;
	bool any = false;

	while ((pg = *at)) {
		if (pg->busy) {
			at = &pg->next;
			continue;
		}
		*at = pg->next;
		page_switch(pg);
		any = true;
	}
	return any;
}

/**
 * cqc_results_apply() - take over what the engine has done
 * @model: model; caller's thread
 *
 * A page whose private copy is read by a step is switched when that is over.
 *
 * Return: true if there was anything.
 */
bool cqc_results_apply(struct cq_model *model)
{
	bool any = deferred_switch(model);
	struct cqc_order o;

	while (cqc_ring_pop(&model->results, &o)) {
		any = true;
		if (!result_note(o.pg)) {
			cqc_pg_put(o.pg);
		} else if (o.pg->busy) {
			o.pg->next = model->deferred;
			model->deferred = o.pg;
		} else {
			page_switch(o.pg);
		}
	}
	return any;
}
