// SPDX-License-Identifier: MIT
/* Attention over a step. */
#include <errno.h>
#include <math.h>
#include "client/backend.h"

#define ATTN_FLAGS (CQ_ATTN_Q_ROTATED | CQ_ATTN_LSE_BASE2)

static int word_check(const struct cqc_check *c)
{
	if ((smp_load_acquire(c->word) ^ c->expect) & c->mask)
		return cqc_fail(-ESTALE, "a shared page was taken back while it was read; close "
					 "the sequence and open it anew");
	return 0;
}

/**
 * cqc_words_check() - were shared pages taken back while they were read?
 * @c: [@n]
 * @n: words
 *
 * Return: 0 or -ESTALE with text.
 */
int cqc_words_check(const struct cqc_check *c, uint32_t n)
{
	uint32_t i;
	int ret = 0;

	/* Orders the kernels' reads before those of the words; pairs with the
	 * daemon's store of the word before it writes into a slot again. */
	smp_rmb();
	for (i = 0; i < n && !ret; i++)
		ret = word_check(&c[i]);
	return ret;
}

/* The same for what a call has read of a step's blocks. */
static int blocks_check(const struct cq_batch *b, const struct cqk_attn *a)
{
	uint32_t first = (uint32_t)(a->blocks - b->blocks), i;
	int ret = 0;

	smp_rmb();	/* as in cqc_words_check() */
	for (i = 0; i < b->n_checks && !ret; i++)
		if (b->checks[i].block - first < a->n_blocks)
			ret = word_check(&b->checks[i]);
	return ret;
}

static int attn_opts(const struct cq_batch *b, const struct cq_attn_opts *opts,
		     struct cq_attn_opts *o)
{
	const struct cq_model *model = b->model;
	const struct cqk_geom *g = &model->m.geom;
	int ret = cqc_opts_in(o, sizeof(*o), opts, "cq_attn_opts");

	if (ret)
		return ret;
	if (!opts)
		o->device = model->device;
	if (o->flags & ~ATTN_FLAGS || o->pad)
		return cqc_fail(-EINVAL, "cq_attention: unknown flags 0x%x or pad not 0",
				o->flags & ~ATTN_FLAGS);
	ret = model->be->call(model, o->device, o->stream, "cq_attention");
	if (ret)
		return ret;
	if (!isfinite(o->scale) || !isfinite(o->soft_cap) || o->soft_cap < 0)
		return cqc_fail(-EINVAL, "cq_attention: scale %g, soft cap %g",
				(double)o->scale, (double)o->soft_cap);
	if (!o->head_begin && !o->head_end)
		o->head_end = g->n_kv_heads;
	if (o->head_begin >= o->head_end || o->head_end > g->n_kv_heads)
		return cqc_fail(-EINVAL, "cq_attention: kv heads %u-%u of %u", o->head_begin,
				o->head_end, g->n_kv_heads);
	if (o->lse_stride && o->lse_stride < g->n_heads)
		return cqc_fail(-EINVAL, "cq_attention: lse_stride %zu is less than %u heads",
				o->lse_stride, g->n_heads);
	if (!o->lse_stride)
		o->lse_stride = g->n_heads;
	o->n_parts = MAX(o->n_parts, 1u);
	if (o->part >= o->n_parts || o->n_parts > b->n_parts)
		return cqc_fail(-EINVAL, "cq_attention: part %u of %u; cq_batch_split() made room "
					 "for %u",
				o->part, o->n_parts, b->n_parts);
	if (o->scale == 0.0f)
		o->scale = 1.0f / sqrtf((float)g->head_dim);
	return 0;
}

/**
 * cqc_host_attention() - one layer, or a part of it
 * @b:  batch with a step
 * @at: call
 *
 * Return: 0 or -ESTALE with text.
 */
int cqc_host_attention(const struct cq_batch *b, const struct cqc_attend *at)
{
	const struct cq_attn_opts *opt = &at->opt;
	struct cqk_attn a = {
		.model = &b->model->m, .rope = &b->model->rope, .layer = at->layer,
		.head_begin = opt->head_begin, .head_end = opt->head_end,
		.blocks = b->blocks, .n_blocks = b->n_blocks, .spans = b->spans,
		.row_pos = b->row_pos, .n_rows = b->n_rows, .q = *at->q, .o = *at->o,
		.lse = opt->lse, .lse_stride = opt->lse_stride,
		.scale = opt->scale, .soft_cap = opt->soft_cap,
		.sliding_window = opt->sliding_window, .flags = opt->flags,
		.scratch = b->scratch + b->scratch_head *
			   ((size_t)opt->part * b->model->m.geom.n_kv_heads + opt->head_begin),
	};

	if (opt->n_parts > 1)
		cqk_attn_part(&a, opt->part, opt->n_parts);
	b->model->ops->attention(&a);
	return blocks_check(b, &a);
}

/**
 * cqc_host_merge() - one result of parts
 * @m: call
 *
 * Return: 0.
 */
int cqc_host_merge(const struct cqk_merge *m)
{
	cqk_merge(m);
	return 0;
}

CQ_API int cq_attention(struct cq_batch *batch, uint32_t layer, const struct cq_view *q,
			const struct cq_view *o, const struct cq_attn_opts *opts)
{
	const struct cq_batch *b = batch;
	struct cqc_attend at = { .layer = layer, .q = q, .o = o };
	int ret = cqc_batch_stepped(b, "cq_attention");
	const struct cqk_geom *g;

	if (ret)
		return ret;
	g = &b->model->m.geom;
	ret = attn_opts(b, opts, &at.opt);
	if (!ret)
		ret = cqc_view_check(q, b->n_rows, g->n_heads, g->head_dim, "q");
	if (!ret)
		ret = cqc_view_check(o, b->n_rows, g->n_heads, g->head_dim, "o");
	if (!ret && layer >= g->n_layers)
		ret = cqc_fail(-EINVAL, "cq_attention: layer %u of %u", layer, g->n_layers);
	if (ret || !b->n_rows)
		return ret;
	return b->model->be->attention(b, &at);
}

static int parts_check(const struct cq_batch *b, const struct cq_part *parts, uint32_t n)
{
	const struct cqk_geom *g = &b->model->m.geom;
	uint32_t i;
	int ret = 0;

	if (!n || !parts)
		return cqc_fail(-EINVAL, "cq_merge: no parts");
	for (i = 0; i < n && !ret; i++) {
		ret = cqc_view_check(&parts[i].o, b->n_rows, g->n_heads, g->head_dim, "part");
		if (!ret && (!parts[i].lse ||
			     (parts[i].lse_stride && parts[i].lse_stride < g->n_heads)))
			ret = cqc_fail(-EINVAL, "cq_merge: part %u has no lse, or its stride is "
						"less than %u heads",
				       i, g->n_heads);
	}
	return ret;
}

CQ_API int cq_merge(struct cq_batch *batch, const struct cq_part *parts, uint32_t n,
		    const struct cq_view *o, const struct cq_attn_opts *opts)
{
	const struct cq_batch *b = batch;
	int ret = cqc_batch_stepped(b, "cq_merge");
	struct cqk_merge m = { .parts = parts, .n_parts = n };
	struct cq_attn_opts opt;

	if (!ret)
		ret = attn_opts(b, opts, &opt);
	if (!ret)
		ret = parts_check(b, parts, n);
	if (!ret)
		ret = cqc_view_check(o, b->n_rows, b->model->m.geom.n_heads,
				     b->model->m.geom.head_dim, "o");
	if (ret || !b->n_rows)
		return ret;
	m.geom = &b->model->m.geom;
	m.n_rows = b->n_rows;
	m.head_begin = opt.head_begin;
	m.head_end = opt.head_end;
	m.o = *o;
	m.lse = opt.lse;
	m.lse_stride = opt.lse_stride;
	m.flags = opt.flags;
	return b->model->be->merge(&m);
}
