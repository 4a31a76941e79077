// SPDX-License-Identifier: MIT
/* Attention over a step. */
#include <errno.h>
#include <math.h>
#include "client/backend.h"

#define ATTN_FLAGS (CQ_ATTN_Q_ROTATED | CQ_ATTN_LSE_BASE2)

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

	/* Orders the kernels' reads before those of the words; pairs with the
	 * daemon's store of the word before it writes into a slot again. */
	smp_rmb();
	for (i = 0; i < n; i++)
		if ((smp_load_acquire(c[i].word) ^ c[i].expect) & c[i].mask)
			return cqc_fail(-ESTALE, "a shared page was taken back while it was "
						 "read; close the sequence and open it anew");
	return 0;
}

static int attn_opts(const struct cq_model *model, const struct cq_attn_opts *opts,
		     struct cq_attn_opts *o)
{
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
	if (o->scale == 0.0f)
		o->scale = 1.0f / sqrtf((float)g->head_dim);
	return 0;
}

/**
 * cqc_host_attention() - one layer
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
		.scratch = b->scratch + b->scratch_head * opt->head_begin,
	};

	b->model->ops->attention(&a);
	return cqc_words_check(b->checks, b->n_checks);
}

CQ_API int cq_attention(struct cq_batch *batch, uint32_t layer, const struct cq_view *q,
			const struct cq_view *o, const struct cq_attn_opts *opts)
{
	const struct cq_batch *b = batch;
	struct cqc_attend at = { .layer = layer, .q = q, .o = o };
	const struct cqk_geom *g;
	int ret;

	if (!b || b->magic != CQC_BATCH_MAGIC)
		return cqc_fail(-EINVAL, "not a batch");
	ret = cqc_alive(b->model->ctx);
	if (ret)
		return ret;
	g = &b->model->m.geom;
	ret = attn_opts(b->model, opts, &at.opt);
	if (!ret)
		ret = cqc_view_check(q, b->n_rows, g->n_heads, g->head_dim, "q");
	if (!ret)
		ret = cqc_view_check(o, b->n_rows, g->n_heads, g->head_dim, "o");
	if (ret)
		return ret;
	if (layer >= g->n_layers || !b->valid)
		return cqc_fail(-EINVAL, b->valid ? "cq_attention: layer %u of %u" :
				"cq_attention: layer %u of %u: no step, or it is over; call "
				"cq_step()",
				layer, g->n_layers);
	if (!b->n_rows)
		return 0;
	return b->model->be->attention(b, &at);
}
