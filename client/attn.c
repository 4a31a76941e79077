// SPDX-License-Identifier: MIT
/* Attention over a step, and reading keys and values back. */
#include <errno.h>
#include <math.h>
#include <string.h>
#include "client/gpu.h"
#include "kernels/f16.h"

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

/* --- reading back --- */

struct reader {
	const struct cq_seq *seq;
	uint32_t layer;
	const struct cq_view *view;
	uint32_t kv;
	size_t from;
};

static void row_out(const struct reader *r, size_t token, uint32_t head, float *x)
{
	const struct cq_model *model = r->seq->model;
	const struct cqk_geom *g = &model->m.geom;
	float y[CQ_MAX_HEAD_DIM];
	uint32_t d = g->head_dim, ch;

	if (!r->kv && g->keys == CQK_KEYS_ROTATED)
		cqk_rope_rotate(&model->rope, x, 1, d, r->seq->position + (uint32_t)token, true);
	if (r->kv || g->rope_pairs == CQK_PAIRS_HALF) {
		cqc_row_from_f32(r->view, token - r->from, head, d, x);
		return;
	}
	for (ch = 0; ch < d; ch++)
		y[cqk_given_channel(g, ch)] = x[ch];
	cqc_row_from_f32(r->view, token - r->from, head, d, y);
}

static void decode_token(const struct reader *r, const struct cqc_ent *ent,
			 uint32_t head, uint32_t t, float *x)
{
	const struct cq_model *model = r->seq->model;
	const struct cqk_layer *l = &model->m.layers[r->layer];
	const struct cqk_codebook *cb = r->kv ? &l->v : &l->k;
	const uint8_t *codes = ent->pg->codes + cqc_code_at(&model->m, r->layer, head, r->kv);
	uint16_t h;
	uint32_t i;

	if (cb->code.type == CQ_CODE_CQ) {
		model->ops->decode(cb, head, codes, t, 1, x);
		return;
	}
	for (i = 0; i < cb->head_dim; i++) {
		memcpy(&h, codes + ((size_t)t * cb->head_dim + i) * 2, sizeof(h));
		x[i] = cqk_f16_to_f32(h);
	}
}

static void load_f16(const uint16_t *row, uint32_t d, float *x)
{
	uint32_t i;

	for (i = 0; i < d; i++)
		x[i] = cqk_f16_to_f32(row[i]);
}

static void read_token(const struct reader *r, size_t token)
{
	const struct cq_model *model = r->seq->model;
	const struct cqk_model *m = &model->m;
	uint32_t i = (uint32_t)(token / CQ_PAGE_TOKENS), d = m->geom.head_dim, h;
	uint32_t t = (uint32_t)(token % CQ_PAGE_TOKENS);
	const struct cqc_ent *ent = &r->seq->ents[i];
	struct cqc_parts p = cqc_ent_parts(r->seq, i, 1ull << t);
	float x[CQ_MAX_HEAD_DIM];

	for (h = 0; h < m->geom.n_kv_heads; h++) {
		if (p.sink)
			load_f16((const uint16_t *)(const void *)ent->pg->sink.data +
				 cqc_f16_at(m, m->sinks, r->layer, h, r->kv) + t * d, d, x);
		else if (p.f16)
			load_f16(cqc_block_ptr(&model->arena, ent->f16) +
				 cqc_f16_at(m, CQ_PAGE_TOKENS, r->layer, h, r->kv) + t * d, d, x);
		else
			decode_token(r, ent, h, t, x);
		row_out(r, token, h, x);
	}
}

static int pages_check(const struct cq_seq *seq, size_t from, size_t n)
{
	size_t i, last = (from + n - 1) / CQ_PAGE_TOKENS;
	struct cqc_check c[2];
	int ret;

	for (i = from / CQ_PAGE_TOKENS; n && i <= last; i++) {
		const struct cq_pg *pg = seq->ents[i].pg;

		if (!pg->slot.word)
			continue;
		c[0].word = pg->slot.word;
		c[0].expect = pg->slot.expect;
		c[0].mask = c[1].mask = ~0ull;
		c[1].word = pg->sink.word ? pg->sink.word : pg->slot.word;
		c[1].expect = pg->sink.word ? pg->sink.expect : pg->slot.expect;
		ret = cqc_words_check(c, 2);
		if (ret)
			return ret;
	}
	return 0;
}

CQ_API int cq_read(struct cq_seq *seq, uint32_t layer, size_t from, size_t n,
		   const struct cq_view *k, const struct cq_view *v)
{
	struct reader r = { .seq = seq, .layer = layer, .from = from };
	const struct cqk_geom *g;
	size_t i;
	int ret = cqc_seq_check(seq);

	if (ret)
		return ret;
	if (seq->model->gpu)
		return cqc_fail(-EOPNOTSUPP, "cq_read: the sequence is on GPU %s; read there",
				cqc_gpu_uuid(seq->model));
	g = &seq->model->m.geom;
	if (layer >= g->n_layers || from > seq->len || n > seq->len - from)
		return cqc_fail(-EINVAL, "cq_read: layer %u of %u, tokens %zu + %zu of %zu",
				layer, g->n_layers, from, n, seq->len);
	if (k)
		ret = cqc_view_check(k, n, g->n_kv_heads, g->head_dim, "k");
	if (!ret && v)
		ret = cqc_view_check(v, n, g->n_kv_heads, g->head_dim, "v");
	if (ret)
		return ret;
	for (r.kv = 0; r.kv < 2; r.kv++) {
		r.view = r.kv ? v : k;
		for (i = 0; r.view && i < n; i++)
			read_token(&r, from + i);
	}
	return pages_check(seq, from, n);
}
