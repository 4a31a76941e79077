// SPDX-License-Identifier: MIT
/*
 * Reading keys and values back: one layer of a page at a time, from where the
 * host can read it.
 */
#include <errno.h>
#include <stdlib.h>
#include "client/backend.h"

/*
 * struct reader - a call under way
 * @buf: for copies of what the host cannot read, else NULL
 * @at:  the page
 */
struct reader {
	const struct cq_seq *seq;
	uint32_t layer;
	const struct cq_view *view[2];
	size_t from;
	uint8_t *buf;
	struct cqc_fetched at;
};

/**
 * cqc_fetch_at() - where the parts of a layer lie in a buffer
 * @m:     shard
 * @layer: layer
 *
 * Return: offsets of fp16 rows, of sinks, and their end; codes come first.
 */
struct cqc_fetch_at cqc_fetch_at(const struct cqk_model *m, uint32_t layer)
{
	const struct cqk_layer *l = &m->layers[layer];
	struct cqc_fetch_at at = { .codes = m->geom.n_kv_heads * (l->k_bytes + l->v_bytes) };

	at.f16 = ALIGN_UP(at.codes, 8);
	at.sink = at.f16 + 2 * cqc_f16_at(m, CQ_PAGE_TOKENS, 1, 0, 0);
	at.end = at.sink + 2 * cqc_f16_at(m, m->sinks, 1, 0, 0);
	return at;
}

/**
 * cqc_host_fetch() - one layer of a page, where it lies
 * @seq:   sequence
 * @i:     page
 * @layer: layer
 * @p:     what of it will be read
 * @buf:   not used
 * @out:   filled
 *
 * Return: 0.
 */
int cqc_host_fetch(const struct cq_seq *seq, uint32_t i, uint32_t layer,
		   const struct cqc_parts *p, uint8_t *buf, struct cqc_fetched *out)
{
	const struct cq_model *model = seq->model;
	const struct cqk_model *m = &model->m;
	const struct cqc_ent *ent = &seq->ents[i];

	if (p->sink)
		out->sink = (const uint16_t *)(const void *)ent->pg->sink.data +
			    cqc_f16_at(m, m->sinks, layer, 0, 0);
	if (p->f16)
		out->f16 = cqc_block_ptr(&model->arena, ent->f16) +
			   cqc_f16_at(m, CQ_PAGE_TOKENS, layer, 0, 0);
	if (p->codes)
		out->codes = ent->pg->codes + cqc_code_at(m, layer, 0, 0);
	return 0;
}

/**
 * cqc_key_from_f32() - store a key in the caller's order
 * @g:    geometry
 * @v:    view
 * @row:  token
 * @head: head
 * @in:   [head_dim], in the order that is stored
 */
void cqc_key_from_f32(const struct cqk_geom *g, const struct cq_view *v, size_t row,
		      uint32_t head, const float *in)
{
	float x[CQ_MAX_HEAD_DIM];
	uint32_t ch;

	if (g->rope_pairs != CQK_PAIRS_HALF) {
		for (ch = 0; ch < g->head_dim; ch++)
			x[cqk_given_channel(g, ch)] = in[ch];
		in = x;
	}
	cqk_row_from_f32(v, row, head, g->head_dim, in);
}

static void row_out(const struct reader *r, size_t token, uint32_t head, uint32_t kv, float *x)
{
	const struct cq_model *model = r->seq->model;
	const struct cqk_geom *g = &model->m.geom;
	const struct cq_view *v = r->view[kv];

	if (!kv && g->keys == CQK_KEYS_ROTATED)
		cqk_rope_rotate(&model->rope, x, 1, g->head_dim,
				r->seq->position + (uint32_t)token, true);
	if (kv)
		cqk_row_from_f32(v, token - r->from, head, g->head_dim, x);
	else
		cqc_key_from_f32(g, v, token - r->from, head, x);
}

static void decode_token(const struct reader *r, uint32_t head, uint32_t kv, uint32_t t, float *x)
{
	const struct cq_model *model = r->seq->model;
	const struct cqk_layer *l = &model->m.layers[r->layer];
	const struct cqk_codebook *cb = kv ? &l->v : &l->k;
	const uint8_t *codes = r->at.codes + head * (l->k_bytes + l->v_bytes) +
			       (kv ? l->k_bytes : 0);

	if (cb->code.type == CQ_CODE_CQ)
		model->ops->decode(cb, head, codes, t, 1, x);
	else
		cqk_halves_to_f32(codes + (size_t)t * cb->head_dim * 2, cb->head_dim, x);
}

static void read_token(const struct reader *r, const struct cqc_parts *p, size_t token,
		       uint32_t kv)
{
	const struct cqk_model *m = &r->seq->model->m;
	uint32_t t = (uint32_t)(token % CQ_PAGE_TOKENS), d = m->geom.head_dim, h;
	float x[CQ_MAX_HEAD_DIM];

	for (h = 0; h < m->geom.n_kv_heads; h++) {
		if (p->sink >> t & 1)
			cqk_halves_to_f32(r->at.sink + cqc_f16_at(m, m->sinks, 0, h, kv) + t * d,
					  d, x);
		else if (p->f16 >> t & 1)
			cqk_halves_to_f32(r->at.f16 + cqc_f16_at(m, CQ_PAGE_TOKENS, 0, h, kv) +
					  t * d, d, x);
		else
			decode_token(r, h, kv, t, x);
		row_out(r, token, h, kv, x);
	}
}

/* Tokens [@from, @to) of page @i. */
static int read_page(struct reader *r, uint32_t i, uint32_t from, uint32_t to)
{
	const struct cq_seq *seq = r->seq;
	struct cqc_parts p = cqc_ent_parts(seq, i, cqc_low(to) & ~cqc_low(from));
	uint32_t t, kv;
	int ret;

	ret = seq->model->be->fetch(seq, i, r->layer, &p, r->buf, &r->at);
	for (t = from; t < to && !ret; t++)
		for (kv = 0; kv < 2; kv++)
			if (r->view[kv])
				read_token(r, &p, (size_t)i * CQ_PAGE_TOKENS + t, kv);
	return ret;
}

/* A page on a device may have been in a slot that was given to somebody else. */
static int pages_check(const struct cq_seq *seq, size_t from, size_t n)
{
	size_t i, last = (from + n - 1) / CQ_PAGE_TOKENS;
	struct cqc_check c[2];
	int ret;

	for (i = from / CQ_PAGE_TOKENS; n && i <= last; i++) {
		const struct cq_pg *pg = seq->ents[i].pg;
		const struct cqc_slot *codes = pg->slot.word ? &pg->slot : &pg->own;
		const struct cqc_slot *sink = pg->sink.word ? &pg->sink : codes;
		struct cqc_parts p = cqc_ent_parts(seq, (uint32_t)i, ~0ull);

		if (!codes->word || (!pg->slot.word && !p.codes && !p.sink))
			continue;
		c[0] = cqc_slot_word(codes);
		c[1] = cqc_slot_word(sink);
		ret = cqc_words_check(c, 2);
		if (ret)
			return ret;
	}
	return 0;
}

static int read_all(struct reader *r, size_t from, size_t n)
{
	size_t at = from, end = from + n;
	int ret = 0;

	while (at < end && !ret) {
		uint32_t i = (uint32_t)(at / CQ_PAGE_TOKENS);
		size_t first = (size_t)i * CQ_PAGE_TOKENS;
		uint32_t to = (uint32_t)MIN(end - first, (size_t)CQ_PAGE_TOKENS);

		ret = read_page(r, i, (uint32_t)(at - first), to);
		at = first + to;
	}
	return ret ? ret : pages_check(r->seq, from, n);
}

CQ_API int cq_read(struct cq_seq *seq, uint32_t layer, size_t from, size_t n,
		   const struct cq_view *k, const struct cq_view *v)
{
	struct reader r = { .seq = seq, .layer = layer, .from = from, .view = { k, v } };
	const struct cqk_geom *g;
	int ret = cqc_seq_check(seq);

	if (ret)
		return ret;
	g = &seq->model->m.geom;
	if (layer >= g->n_layers || from > seq->len || n > seq->len - from)
		return cqc_fail(-EINVAL, "cq_read: layer %u of %u, tokens %zu + %zu of %zu",
				layer, g->n_layers, from, n, seq->len);
	if (k)
		ret = cqc_view_check(k, n, g->n_kv_heads, g->head_dim, "k");
	if (!ret && v)
		ret = cqc_view_check(v, n, g->n_kv_heads, g->head_dim, "v");
	if (ret || (!k && !v))
		return ret;
	if (seq->model->gpu) {
		r.buf = malloc(cqc_fetch_at(&seq->model->m, layer).end);
		if (!r.buf)
			return cqc_fail(-ENOMEM, "out of memory to read a page");
	}
	ret = read_all(&r, from, n);
	free(r.buf);
	return ret;
}
