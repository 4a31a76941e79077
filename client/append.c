// SPDX-License-Identifier: MIT
/* Keys and values of new tokens into the fp16 blocks of a sequence. */
#include <errno.h>
#include <string.h>
#include "client/backend.h"

static int bad_value(const struct cqc_append *p, const char *what, size_t row,
		     uint32_t head, int ch)
{
	return cqc_fail(-EINVAL, "%s: layer %u, head %u, token %zu, channel %d is NaN, Inf or "
				 "beyond fp16",
			what, p->layer, head, row, ch);
}

/**
 * cqc_key_to_f16() - load a key as halves, in the order that is stored
 * @g:    geometry
 * @v:    view, in the model's own order
 * @row:  token
 * @head: head
 * @out:  [head_dim]
 *
 * Return: the channel, in the caller's order, that no half can hold, or -1.
 */
int cqc_key_to_f16(const struct cqk_geom *g, const struct cq_view *v, size_t row,
		   uint32_t head, uint16_t *out)
{
	uint16_t x[CQ_MAX_HEAD_DIM];
	uint32_t ch;
	int bad;

	if (g->rope_pairs == CQK_PAIRS_HALF)
		return cqc_row_to_f16(v, row, head, g->head_dim, out);
	bad = cqc_row_to_f16(v, row, head, g->head_dim, x);
	for (ch = 0; ch < g->head_dim && bad < 0; ch++)
		out[ch] = x[cqk_given_channel(g, ch)];
	return bad;
}

/* Returns the channel, in the caller's order, that no half can hold, or -1. */
static int put_turned(const struct cqc_append *p, size_t row, uint32_t head, uint32_t pos,
		      uint16_t *out)
{
	const struct cq_model *model = p->seq->model;
	const struct cqk_geom *g = &model->m.geom;
	float x[CQ_MAX_HEAD_DIM], y[CQ_MAX_HEAD_DIM];
	uint32_t d = g->head_dim, ch;
	int bad;

	cqk_row_to_f32(p->k, row, head, d, x);
	/* A NaN would spread over its pair: name the channel that came. */
	bad = cqc_f32_to_f16(x, d, out);
	if (bad >= 0)
		return bad;
	for (ch = 0; ch < d; ch++)
		y[ch] = x[cqk_given_channel(g, ch)];
	cqk_rope_rotate(&model->rope, y, 1, d, pos, p->turn < 0);
	bad = cqc_f32_to_f16(y, d, out);
	return bad < 0 ? bad : (int)cqk_given_channel(g, (uint32_t)bad);
}

static int put_key(const struct cqc_append *p, size_t row, uint32_t head, uint32_t pos,
		   uint16_t *out)
{
	if (p->turn)
		return put_turned(p, row, head, pos, out);
	return cqc_key_to_f16(&p->seq->model->m.geom, p->k, row, head, out);
}

static int put_token(const struct cqc_append *p, size_t row, size_t token)
{
	const struct cq_seq *seq = p->seq;
	const struct cqk_model *m = &seq->model->m;
	uint32_t d = m->geom.head_dim, t = (uint32_t)(token % CQ_PAGE_TOKENS), h;
	uint16_t *base, *out;
	int bad;

	base = cqc_block_ptr(&seq->model->arena, seq->ents[token / CQ_PAGE_TOKENS].f16);
	for (h = 0; h < m->geom.n_kv_heads; h++) {
		out = base + cqc_f16_at(m, CQ_PAGE_TOKENS, p->layer, h, 0) + t * d;
		bad = put_key(p, row, h, seq->position + (uint32_t)token, out);
		if (bad >= 0)
			return bad_value(p, "k", row, h, bad);
		out = base + cqc_f16_at(m, CQ_PAGE_TOKENS, p->layer, h, 1) + t * d;
		bad = cqc_row_to_f16(p->v, row, h, d, out);
		if (bad >= 0)
			return bad_value(p, "v", row, h, bad);
	}
	return 0;
}

/**
 * cqc_key_turn() - what is done to keys that are appended
 * @g:     geometry
 * @flags: CQ_APPEND_*
 *
 * Return: -1 undo the rotation, 1 rotate, 0 as they are.
 */
int cqc_key_turn(const struct cqk_geom *g, uint32_t flags)
{
	if (g->keys == CQK_KEYS_PRE_ROPE)
		return flags & CQ_APPEND_ROTATED ? -1 : 0;
	if (g->keys == CQK_KEYS_ROTATED)
		return flags & CQ_APPEND_ROTATED ? 0 : 1;
	return 0;
}

/**
 * cqc_append_check() - layer, views and options of an append
 * @model: model
 * @p:     call
 * @n:     tokens
 * @o:     options
 *
 * Return: 0 or -EINVAL with text.
 */
int cqc_append_check(const struct cq_model *model, const struct cqc_append *p, size_t n,
		     const struct cq_append_opts *o)
{
	const struct cqk_geom *g = &model->m.geom;
	int ret;

	if (o->flags & ~CQ_APPEND_ROTATED)
		return cqc_fail(-EINVAL, "cq_append: unknown flags 0x%x", o->flags);
	if (p->layer >= g->n_layers)
		return cqc_fail(-EINVAL, "cq_append: layer %u of %u", p->layer, g->n_layers);
	ret = model->be->call(model, o->device, o->stream, "cq_append");
	if (!ret)
		ret = cqc_view_check(p->k, n, g->n_kv_heads, g->head_dim, "k");
	if (!ret)
		ret = cqc_view_check(p->v, n, g->n_kv_heads, g->head_dim, "v");
	return ret;
}

/**
 * cqc_host_append() - rows into fp16 blocks
 * @a:  call
 * @at: token that is the first
 * @n:  tokens
 *
 * Return: 0 or -EINVAL.
 */
int cqc_host_append(const struct cqc_append *a, size_t at, size_t n)
{
	size_t i;
	int ret = 0;

	/* Nobody reads these rows before the count says so: a row refused half
	 * way leaves nothing behind. */
	for (i = 0; i < n && !ret; i++)
		ret = put_token(a, i, at + i);
	return ret;
}

CQ_API int cq_append(struct cq_seq *seq, uint32_t layer, const struct cq_view *k,
		     const struct cq_view *v, size_t n, const struct cq_append_opts *opts)
{
	struct cqc_append p = { .seq = seq, .k = k, .v = v, .layer = layer };
	struct cq_append_opts o;
	size_t at;
	int ret = cqc_seq_check(seq);

	if (!ret)
		ret = cqc_opts_in(&o, sizeof(o), opts, "cq_append_opts");
	if (ret)
		return ret;
	if (!opts)
		o.device = seq->model->device;
	ret = cqc_append_check(seq->model, &p, n, &o);
	if (ret || !n)
		return ret;
	at = seq->len + seq->appended[layer];
	if (n > CQC_MAX_POSITIONS)
		return cqc_fail(-ERANGE, "cq_append: %zu tokens at once", n);
	ret = cqc_seq_grow(seq, at + n);
	if (ret)
		return ret;
	p.turn = cqc_key_turn(&seq->model->m.geom, o.flags);
	p.stream = o.stream;
	ret = seq->model->be->append(&p, at, n);
	if (ret)
		return ret;
	seq->appended[layer] += (uint32_t)n;
	return 0;
}
