// SPDX-License-Identifier: MIT
/*
 * Steps on a device: the tables of step.c become a plan, which one asynchronous
 * copy brings to a fixed place. Words of shared pages are read again when the
 * step's fence has been passed; what they say is told by a later step.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "client/gpu.h"

#define GROUPS 4u	/* runs of blocks with the same rows, for each sequence */
#define READS 4u	/* of them that a row reads; beyond: nothing is shared */

static uint64_t plan_room(const struct cq_batch *b, const struct cqk_cuda_limits *l,
			  uint64_t reads)
{
	uint64_t gqa = b->model->m.geom.n_heads / b->model->m.geom.n_kv_heads;

	return sizeof(struct cqkd_plan) +
	       ((uint64_t)l->items + l->wide) * sizeof(struct cqkd_item) +
	       reads * sizeof(struct cqkd_entry) +
	       (uint64_t)b->max_uses * (sizeof(struct cqkd_block) + sizeof(struct cqkd_span)) +
	       (2ull * b->max_rows + 1) * sizeof(uint32_t) +
	       l->slots / gqa * sizeof(uint32_t) + 8 * 16;
}

static int batch_memory(struct cq_batch *b)
{
	struct cqc_gpu_batch *gb = b->gpu;
	struct cqc_gpu *g = b->model->gpu;
	uint32_t heads = b->model->m.geom.n_kv_heads, i;
	void *p = NULL;
	int r;

	r = g->cu->cuMemAlloc(&gb->mem, gb->mem_bytes);
	if (!r)
		r = g->cu->cuMemAlloc(&gb->work, gb->work_head * heads);
	if (!r)
		r = g->cu->cuMemHostAlloc(&p, gb->mem_bytes * CQC_PASTS,
					  CQCU_MEMHOSTALLOC_PORTABLE);
	if (r)
		return cqc_gpu_fail(g, r, "memory for a batch");
	gb->host = p;
	for (i = 0; i < CQC_PASTS; i++) {
		gb->past[i].checks = calloc(b->max_uses, sizeof(struct cqc_check));
		if (!gb->past[i].checks)
			return cqc_fail(-ENOMEM, "out of memory for a batch");
	}
	return 0;
}

/**
 * cqc_gpu_batch_new() - memory of a batch on the device
 * @b: batch
 *
 * Return: 0 or -errno with text.
 */
int cqc_gpu_batch_new(struct cq_batch *b)
{
	const struct cqc_gpu *g = b->model->gpu;
	uint32_t heads = b->model->m.geom.n_kv_heads;
	uint32_t reads = b->max_seqs > 1 ? READS * b->max_rows : b->max_rows;
	struct cqc_gpu_batch *gb = calloc(1, sizeof(*gb));
	int ret;

	b->gpu = gb;
	if (!gb)
		return cqc_fail(-ENOMEM, "out of memory for a batch");
	cqk_cuda_limits_init(&gb->limits, g->kernels, g->tabs, b->max_rows,
			     GROUPS * b->max_seqs, reads, MAX(2 * (uint32_t)g->sms / heads, 1u));
	gb->work_head = cqk_cuda_workspace(g->tabs, &gb->limits, 1);
	gb->dests_max = b->max_rows / CQ_PAGE_TOKENS + 3 * b->max_seqs;
	gb->plan_at = ALIGN_UP(sizeof(struct cqc_dests) +
			       gb->dests_max * sizeof(struct cqkd_dest), 256);
	gb->mem_bytes = gb->plan_at + ALIGN_UP(plan_room(b, &gb->limits, reads), 256);
	ret = cqc_gpu_in(g);
	if (ret)
		return ret;
	ret = batch_memory(b);
	cqc_gpu_out(g);
	return ret;
}

/**
 * cqc_gpu_batch_free() - undo that, also half of it
 * @b: batch; the device waits for what uses it
 */
void cqc_gpu_batch_free(struct cq_batch *b)
{
	struct cqc_gpu_batch *gb = b->gpu;
	const struct cqc_gpu *g = b->model->gpu;
	uint32_t i;

	if (!gb)
		return;
	g->cu->cuCtxPushCurrent(g->ctx);
	g->cu->cuMemFree(gb->mem);
	g->cu->cuMemFree(gb->work);
	if (gb->host)
		g->cu->cuMemFreeHost(gb->host);
	cqc_gpu_out(g);
	for (i = 0; i < CQC_PASTS; i++)
		free(gb->past[i].checks);
	free(gb);
}

/**
 * cqc_gpu_batch_split() - not here: the kernels split every call as the device wants
 * @b:       batch
 * @n_parts: parts
 *
 * Return: -EOPNOTSUPP with text.
 */
int cqc_gpu_batch_split(struct cq_batch *b, uint32_t n_parts)
{
	return cqc_fail(-EOPNOTSUPP, "cq_batch_split: a GPU splits calls by itself");
}

/* One earlier step: 1 over, 0 not yet, -errno. */
static int past_check(struct cq_batch *b, uint32_t i, bool wait)
{
	struct cqc_gpu_batch *gb = b->gpu;
	int ret;

	if (!gb->past[i].waits)
		return 1;
	ret = cqc_gpu_passed(b->model->gpu, gb->past[i].fence, wait);
	if (ret <= 0)
		return ret;
	gb->past[i].waits = false;
	if (cqc_words_check(gb->past[i].checks, gb->past[i].n_checks))
		gb->stale = true;
	return 1;
}

/**
 * cqc_gpu_step_begin() - the step before ends
 * @b:    batch
 * @wait: for the device, until every earlier step is over
 *
 * Return: 0; -ESTALE of an earlier step, told once; -errno with text.
 */
int cqc_gpu_step_begin(struct cq_batch *b, bool wait)
{
	struct cqc_gpu_batch *gb = b->gpu;
	uint32_t i, at;
	int ret = 0;

	if (gb->used) {
		WRITE_ONCE(b->model->gpu->dirty, true);
		gb->past[gb->at].fence = cqc_gpu_fence(b->model);
		gb->past[gb->at].waits = true;
		gb->used = false;
		gb->at = (gb->at + 1) % CQC_PASTS;
	}
	/* The oldest first; its place is needed. */
	for (i = 0; i < CQC_PASTS && ret >= 0; i++) {
		at = (gb->at + i) % CQC_PASTS;
		ret = past_check(b, at, wait || !i);
	}
	if (ret >= 0)
		ret = READ_ONCE(b->model->gpu->lost);
	if (ret < 0)
		return ret;
	if (!gb->stale)
		return 0;
	gb->stale = false;
	return cqc_fail(-ESTALE, "a shared page was taken back while an earlier step read it: "
				 "what that gave is void; close its sequences and open them anew");
}

/* Where all rows go; none, if one of them cannot go there. */
static void dests_make(struct cq_batch *b, struct cqc_dests *t)
{
	uint32_t i, row = 0;
	int ret = 0;

	t->n = 0;
	for (i = 0; i < b->n_seqs && !ret; i++) {
		ret = cqc_gpu_dests(b->seqs[i], b->seqs[i]->len, b->rows[i], row, t);
		row += b->rows[i];
	}
	if (ret)
		t->n = 0;
	b->gpu->n_dests = t->n;
}

/* A launch that is captured serves later steps too. */
static bool captured(const struct cqc_gpu *g, struct cqcu_stream *stream)
{
	int how = CQCU_STREAM_CAPTURE_STATUS_NONE;

	return !g->cu->cuStreamIsCapturing(stream, &how) && how != CQCU_STREAM_CAPTURE_STATUS_NONE;
}

/**
 * cqc_gpu_step() - the plan, to its place
 * @b: batch with tables
 *
 * Return: 0; -ENOBUFS pages are shared in too many ways; -errno of the driver.
 */
int cqc_gpu_step(struct cq_batch *b)
{
	const struct cqk_geom *geom = &b->model->m.geom;
	struct cqc_gpu_batch *gb = b->gpu;
	struct cqc_gpu *g = b->model->gpu;
	struct cqk_cuda_step s = {
		.blocks = b->blocks, .n_blocks = b->n_blocks,
		.spans = b->spans, .n_spans = b->n_uses,
		.row_pos = b->row_pos, .n_rows = b->n_rows,
		.gqa = geom->n_heads / geom->n_kv_heads, .head_dim = geom->head_dim,
		.want = MAX(2 * (uint32_t)g->sms / geom->n_kv_heads, 1u),
	};
	uint8_t *out = gb->host + gb->at * gb->mem_bytes, *plan = out + gb->plan_at;
	const struct cqkd_plan *head;
	size_t used;
	int ret, r;

	dests_make(b, (struct cqc_dests *)(void *)out);
	ret = cqk_cuda_plan(&s, &gb->limits, plan, gb->mem_bytes - gb->plan_at, &used, cqc_err());
	if (!ret)
		ret = cqc_gpu_in(g);
	if (ret)
		return ret;
	head = (const struct cqkd_plan *)(const void *)plan;
	gb->n_wide = head->n_wide;
	gb->n_items = head->n_items - gb->n_wide;
	gb->few_only = head->vecs <= CQKD_FEW_VECS;
	r = g->cu->cuMemcpyHtoDAsync(gb->mem, out, gb->plan_at + used, g->stream);
	if (r)
		ret = cqc_gpu_fail(g, r, "copying a plan");
	WRITE_ONCE(g->dirty, true);
	cqc_gpu_out(g);
	if (ret)
		return ret;
	memcpy(gb->past[gb->at].checks, b->checks, b->n_checks * sizeof(*b->checks));
	gb->past[gb->at].n_checks = b->n_checks;
	gb->used = true;
	return 0;
}

/**
 * cqc_gpu_append_rows() - all rows of a step, in one launch
 * @b:    batch with a step
 * @a:    call, without a sequence
 * @opts: the caller's, checked
 *
 * Return: 0; -EINVAL a view is not of the device, or rows were appended already;
 * -ESTALE; -errno of the driver.
 */
int cqc_gpu_append_rows(struct cq_batch *b, const struct cqc_append *a,
			const struct cq_append_opts *opts)
{
	const struct cqc_gpu_batch *gb = b->gpu;
	struct cqc_gpu *g = b->model->gpu;
	struct cqcu_stream *stream = a->stream ? a->stream : g->stream;
	struct cqk_cuda_append k = {
		.layer = a->layer, .k = *a->k, .v = *a->v, .turn = a->turn, .status = g->status,
		.n_dests = gb->mem, .dests = gb->mem + offsetof(struct cqc_dests, dest),
		.max_dests = gb->n_dests, .tokens = b->n_rows,
	};
	bool counted = false, later;
	int ret;

	if (b->n_rows && !gb->n_dests)
		return cqc_fail(-ESTALE, "cqd has forgotten this worker's slots; close the "
					 "sequences and open them anew");
	ret = cqc_gpu_in(g);
	if (ret)
		return ret;
	later = captured(g, stream);
	if (later) {
		k.max_dests = gb->dests_max;
		k.tokens = b->max_rows;
	} else {
		ret = cqc_rows_count(b, a->layer);
	}
	counted = !later && !ret;
	WRITE_ONCE(g->dirty, true);
	if (!ret)
		ret = cqk_cuda_append(g->kernels, g->tabs, &k, stream, cqc_err());
	if (ret && counted)
		cqc_rows_uncount(b, a->layer);
	cqc_gpu_out(g);
	return ret;
}

/**
 * cqc_gpu_attention() - one layer
 * @b:  batch with a step
 * @at: call
 *
 * Return: 0; -EINVAL a view is not of the device; -errno of the driver.
 */
int cqc_gpu_attention(const struct cq_batch *b, const struct cqc_attend *at)
{
	const struct cqc_gpu_batch *gb = b->gpu;
	const struct cq_attn_opts *o = &at->opt;
	uint32_t heads = o->head_end - o->head_begin;
	struct cqc_gpu *g = b->model->gpu;
	struct cqcu_stream *stream = o->stream ? o->stream : g->stream;
	struct cqk_cuda_limits limits = gb->limits;
	struct cqk_cuda_attn a = {
		.layer = at->layer, .head_begin = o->head_begin, .head_end = o->head_end,
		.plan = gb->mem + gb->plan_at, .limits = &limits, .q = *at->q, .o = *at->o,
		.lse = (uintptr_t)o->lse, .lse_stride = o->lse_stride,
		.scale = o->scale, .soft_cap = o->soft_cap,
		.sliding_window = o->sliding_window, .flags = o->flags,
		/* for every kv head: calls on head ranges may run at once */
		.workspace = gb->work + gb->work_head * o->head_begin,
		.workspace_bytes = gb->work_head * heads,
	};
	int ret = cqc_gpu_in(g);

	if (ret)
		return ret;
	if (!captured(g, stream)) {
		limits.rows = b->n_rows;
		limits.items = gb->n_items;
		limits.wide = gb->n_wide;
		limits.few_only = gb->few_only;
	}
	WRITE_ONCE(g->dirty, true);
	ret = cqk_cuda_attention(g->kernels, g->tabs, &a, stream, cqc_err());
	cqc_gpu_out(g);
	return ret;
}

/**
 * cqc_gpu_merge() - nothing to merge where nothing is split by the caller
 * @m: call
 *
 * Return: -EOPNOTSUPP with text.
 */
int cqc_gpu_merge(const struct cqk_merge *m)
{
	return cqc_fail(-EOPNOTSUPP, "cq_merge: not on a GPU, which splits calls by itself");
}
