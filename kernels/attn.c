// SPDX-License-Identifier: MIT
/*
 * The driver of attention by tiles: which rows see which tokens, scratch,
 * queries in, results out. No arithmetic on tiles: that is tile.h.
 */
#include <math.h>
#include <string.h>
#include "kernels/attn.h"
#include "kernels/view.h"

static uint32_t pad_dim(const struct cqk_model *model)
{
	return (uint32_t)ALIGN_UP(model->geom.head_dim, CQK_PAD);
}

static size_t floats(size_t n)
{
	return ALIGN_UP(n * sizeof(float), 64);
}

size_t cqk_head_bytes(const struct cqk_model *model, uint32_t n_rows)
{
	size_t gqa = model->geom.n_heads / model->geom.n_kv_heads;
	size_t nq = n_rows * gqa, dpad = pad_dim(model);

	return ALIGN_UP(sizeof(struct cqk_head), 64) +
	       2 * floats(nq * dpad) + 2 * floats(nq) +		/* q o m l */
	       floats(model->geom.rope_dim) +			/* turn */
	       floats(CQK_CHUNK * dpad) + floats(CQK_CHUNK * CQK_T) +
	       2 * floats(CQK_T * dpad);			/* k v */
}

static float *carve(uint8_t **at, size_t n)
{
	float *p = (float *)(void *)*at;

	*at += floats(n);
	return p;
}

static void lay_out(struct cqk_head *h)
{
	uint8_t *at = (uint8_t *)h + ALIGN_UP(sizeof(*h), 64);
	size_t nq = h->nq, dpad = h->dpad;

	h->q = carve(&at, nq * dpad);
	h->o = carve(&at, nq * dpad);
	h->m = carve(&at, nq);
	h->l = carve(&at, nq);
	h->turn = carve(&at, h->a->model->geom.rope_dim);
	h->chunk.q = carve(&at, CQK_CHUNK * dpad);
	h->chunk.s = carve(&at, CQK_CHUNK * CQK_T);
	h->chunk.k = carve(&at, CQK_T * dpad);
	h->chunk.v = carve(&at, CQK_T * dpad);
	h->extra = at;
}

/* Query head of vector @i. */
static uint32_t query_head(const struct cqk_head *h, uint32_t i)
{
	return h->head * h->gqa + i % h->gqa;
}

/*
 * A query that no kernel can compute with: it goes on as zeros, so that scores
 * stay finite, and its sum starts as NaN, which ends up in all it gives.
 */
static void spoil_query(struct cqk_head *h, uint32_t i)
{
	memset(h->q + (size_t)i * h->dpad, 0, h->dpad * sizeof(float));
	h->l[i] = NAN;
}

/* From the model's order of channels to that of stored keys. */
static void order_query(const struct cqk_geom *g, float *q)
{
	float x[CQ_MAX_HEAD_DIM];
	uint32_t ch;

	memcpy(x, q, g->rope_dim * sizeof(*x));
	for (ch = 0; ch < g->rope_dim; ch++)
		q[ch] = x[cqk_given_channel(g, ch)];
}

/*
 * One query, scaled, in stored order. Keys that are stored before RoPE lack the
 * factor on what is rotated, so the query takes it over; its own comes with its
 * rotation. False: no kernel can compute with it.
 */
static bool load_query(const struct cqk_head *h, uint32_t i, float *q)
{
	const struct cqk_attn *a = h->a;
	const struct cqk_geom *g = &a->model->geom;
	float factor = cqk_turns_keys(a) ? a->rope->factor : 1.0f;
	bool fit = true;
	uint32_t ch;

	cqk_row_to_f32(&a->q, i / h->gqa, query_head(h, i), g->head_dim, q);
	for (ch = 0; ch < g->head_dim; ch++)
		q[ch] *= a->scale;
	if (g->rope_pairs != CQK_PAIRS_HALF)
		order_query(g, q);
	for (ch = 0; factor != 1.0f && ch < g->rope_dim; ch++)
		q[ch] *= factor;
	for (ch = 0; ch < g->head_dim; ch++)
		fit &= fabsf(q[ch]) <= CQK_MAX_QUERY;
	return fit;
}

static void load_queries(struct cqk_head *h)
{
	const struct cqk_attn *a = h->a;
	uint32_t d = a->model->geom.head_dim, i;
	bool turn = a->model->geom.keys != CQK_KEYS_NONE && a->rope &&
		    !(a->flags & CQ_ATTN_Q_ROTATED);

	for (i = 0; i < h->nq; i++) {
		float *q = h->q + (size_t)i * h->dpad;

		if (!load_query(h, i, q))
			spoil_query(h, i);
		memset(q + d, 0, (h->dpad - d) * sizeof(*q));
		if (turn)
			cqk_rope_rotate(a->rope, q, 1, d,
					a->row_pos[i / h->gqa], false);
	}
}

struct cqk_head *cqk_head_begin(const struct cqk_attn *a, uint32_t head)
{
	const struct cqk_geom *geom = &a->model->geom;
	struct cqk_head *h = a->scratch;
	uint32_t i;

	h->a = a;
	h->head = head;
	h->gqa = geom->n_heads / geom->n_kv_heads;
	h->nq = a->n_rows * h->gqa;
	h->dpad = pad_dim(a->model);
	h->chunk.n = 0;
	h->chunk.d = geom->head_dim;
	h->chunk.dpad = h->dpad;
	h->chunk.soft_cap = a->soft_cap;
	lay_out(h);
	memset(h->o, 0, (size_t)h->nq * h->dpad * sizeof(float));
	memset(h->l, 0, h->nq * sizeof(float));
	for (i = 0; i < h->nq; i++)
		h->m[i] = -INFINITY;
	load_queries(h);
	return h;
}

static uint64_t bits_below(int64_t n)
{
	if (n <= 0)
		return 0;
	return n >= 64 ? ~0ull : (1ull << n) - 1;
}

uint64_t cqk_visible(const struct cqk_attn *a, const struct cqk_block *b,
		     const struct cqk_span *s, uint32_t row_pos)
{
	int64_t last = (int64_t)row_pos - s->pos;	/* causal */
	uint64_t vis = s->mask & bits_below(b->tokens) & bits_below(last + 1);

	if (a->sliding_window)
		vis &= ~bits_below(last - (int64_t)a->sliding_window + 1);
	return vis;
}

struct cqk_src cqk_block_src(const struct cqk_attn *a, const struct cqk_block *b,
			     uint32_t head, bool v, uint64_t live)
{
	const struct cqk_layer *layer = &a->model->layers[a->layer];
	const struct cqk_codebook *cb = v ? &layer->v : &layer->k;
	uint32_t d = a->model->geom.head_dim;
	struct cqk_src src = {
		.kv_head = head, .tokens = b->tokens, .d = d, .live = live,
	};
	uint64_t index = (uint64_t)a->layer * a->model->geom.n_kv_heads + head;

	if (b->kind == CQK_BLOCK_F16) {
		src.data = b->base + (index * 2 + v) * b->tokens * d * 2;
		return src;
	}
	src.data = b->base + layer->offset +
		   head * (layer->k_bytes + layer->v_bytes) +
		   (v ? layer->k_bytes : 0);
	src.cb = cb->code.type == CQ_CODE_F16 ? NULL : cb;
	return src;
}

void cqk_turn_init(const struct cqk_rope *rope, uint32_t pos, float *out)
{
	uint32_t half = rope->half, j;
	size_t row = (size_t)2 * half;
	const float *b = rope->base + pos / CQK_T * row;
	const float *t = rope->in_page + pos % CQK_T * row;

	for (j = 0; j < half; j++) {
		out[j] = b[j] * t[j] - b[half + j] * t[half + j];
		out[half + j] = b[half + j] * t[j] + b[j] * t[half + j];
	}
}

void cqk_turn_query(const float *turn, uint32_t half, const float *q,
		    uint32_t d, float *out)
{
	uint32_t j;

	for (j = 0; j < half; j++) {
		float c = turn[j], s = turn[half + j];
		float lo = q[j], hi = q[half + j];

		out[j] = lo * c + hi * s;
		out[half + j] = hi * c - lo * s;
	}
	memcpy(out + 2 * half, q + 2 * half, (d - 2 * half) * sizeof(*out));
}

/* K that follows @b: of the next block, or of the next head. */
static const uint8_t *key_after(const struct cqk_head *h, const struct cqk_block *b)
{
	const struct cqk_attn *a = h->a;

	if (b + 1 < a->blocks + a->n_blocks)
		return cqk_block_src(a, b + 1, h->head, false, 0).data;
	if (h->head + 1 < a->head_end)
		return cqk_block_src(a, a->blocks, h->head + 1, false, 0).data;
	return NULL;
}

static void find_block(struct cqk_head *h, const struct cqk_block *b,
		       struct cqk_src *k, struct cqk_src *v)
{
	const struct cqk_attn *a = h->a;
	uint64_t live = 0;
	uint32_t i;

	for (i = 0; i < b->n_spans; i++)
		live |= a->spans[b->span_first + i].mask;
	*k = cqk_block_src(a, b, h->head, false, live);
	*v = cqk_block_src(a, b, h->head, true, live);
	k->next = v->data;
	v->next = key_after(h, b);
	h->chunk.tokens = b->tokens;
}

/* @last: no more vectors follow for this block. */
static void flush(struct cqk_head *h, const struct cqk_block *b,
		  const struct cqk_tile_ops *ops, bool last)
{
	const struct cqk_rope *rope = cqk_turns_keys(h->a) ? h->a->rope : NULL;
	struct cqk_chunk *c = &h->chunk;
	struct cqk_src k, v;

	if (!c->n)
		return;
	if (!h->loaded) {
		find_block(h, b, &k, &v);
		if (last && ops->few(c, &k, &v, rope)) {
			c->n = 0;
			return;
		}
		ops->load_k(&k, rope, c->k, c->v);
		ops->load_v(&v, c->v, h->dpad);
		h->loaded = true;
	}
	ops->scores(c);
	ops->softmax(c);
	ops->accum(c);
	c->n = 0;
}

static void add_vector(struct cqk_head *h, uint32_t i, uint64_t vis)
{
	struct cqk_chunk *c = &h->chunk;
	const float *q = h->q + (size_t)i * h->dpad;
	float *out = c->q + (size_t)c->n * h->dpad;

	if (cqk_turns_keys(h->a))
		cqk_turn_query(h->turn, h->a->rope->half, q, c->d, out);
	else
		memcpy(out, q, c->d * sizeof(*out));
	c->vis[c->n] = vis;
	c->o[c->n] = h->o + (size_t)i * h->dpad;
	c->m[c->n] = h->m + i;
	c->l[c->n] = h->l + i;
	c->n++;
}

static void add_span(struct cqk_head *h, const struct cqk_block *b,
		     const struct cqk_span *s, const struct cqk_tile_ops *ops)
{
	const struct cqk_attn *a = h->a;
	bool turned = false;
	uint32_t row, g;

	for (row = s->row_first; row < s->row_first + s->n_rows; row++) {
		uint64_t vis = cqk_visible(a, b, s, a->row_pos[row]);

		if (!vis)
			continue;
		if (!turned && cqk_turns_keys(a))
			cqk_turn_init(a->rope, s->pos, h->turn);
		turned = true;
		for (g = 0; g < h->gqa; g++) {
			add_vector(h, row * h->gqa + g, vis);
			if (h->chunk.n == CQK_CHUNK)
				flush(h, b, ops, false);
		}
	}
}

/* A row of @s waits in the chunk: a sequence that uses a page twice. */
static bool waiting(const struct cqk_head *h, const struct cqk_span *s)
{
	const float *from = h->o + (size_t)s->row_first * h->gqa * h->dpad;
	const float *to = from + (size_t)s->n_rows * h->gqa * h->dpad;
	uint32_t i;

	for (i = 0; i < h->chunk.n; i++)
		if (h->chunk.o[i] >= from && h->chunk.o[i] < to)
			return true;
	return false;
}

void cqk_head_block(struct cqk_head *h, const struct cqk_block *b,
		    const struct cqk_tile_ops *ops)
{
	uint32_t i;

	h->loaded = false;
	for (i = 0; i < b->n_spans; i++) {
		const struct cqk_span *s = &h->a->spans[b->span_first + i];

		if (waiting(h, s))
			flush(h, b, ops, false);
		add_span(h, b, s, ops);
	}
	flush(h, b, ops, true);
}

/* A row of @s is among the lanes that already see the page. */
static bool taken(const struct cqk_head *h, const struct cqk_span *s,
		  const uint64_t *vis)
{
	uint32_t i;

	for (i = 0; i < s->n_rows; i++)
		if (vis[(s->row_first + i) * h->gqa])
			return true;
	return false;
}

static uint64_t page_span(struct cqk_head *h, const struct cqk_block *b,
			  const struct cqk_span *s, const struct cqk_page_ops *ops,
			  void *ctx, uint64_t *vis)
{
	uint64_t any = 0;
	uint32_t row, g;

	for (row = s->row_first; row < s->row_first + s->n_rows; row++) {
		uint64_t seen = cqk_visible(h->a, b, s, h->a->row_pos[row]);

		if (!seen)
			continue;
		if (!any)
			ops->turn(ctx, s->pos);
		any |= seen;
		for (g = 0; g < h->gqa; g++) {
			vis[row * h->gqa + g] = seen;
			ops->lane(ctx, row * h->gqa + g);
		}
	}
	return any;
}

void cqk_head_page(struct cqk_head *h, const struct cqk_block *b,
		   const struct cqk_page_ops *ops, void *ctx)
{
	uint64_t vis[CQK_LANES] = { 0 }, any = 0;
	uint32_t i;

	for (i = 0; i < b->n_spans; i++) {
		const struct cqk_span *s = &h->a->spans[b->span_first + i];

		if (taken(h, s, vis)) {	/* a row may use a page twice */
			ops->page(ctx, b, vis);
			memset(vis, 0, sizeof(vis));
			any = 0;
		}
		any |= page_span(h, b, s, ops, ctx, vis);
	}
	if (any)
		ops->page(ctx, b, vis);
}

void cqk_head_end(struct cqk_head *h)
{
	const struct cqk_attn *a = h->a;
	uint32_t d = a->model->geom.head_dim, i, ch;

	for (i = 0; i < h->nq; i++) {
		float *o = h->o + (size_t)i * h->dpad;
		bool sees = h->m[i] > -INFINITY;
		float lse = h->m[i] + logf(h->l[i]);
		float inv = sees ? 1.0f / h->l[i] : 0.0f;

		for (ch = 0; ch < d; ch++)
			o[ch] *= inv;
		cqk_row_from_f32(&a->o, i / h->gqa, query_head(h, i), d, o);
		if (!a->lse)
			continue;
		if (a->flags & CQ_ATTN_LSE_BASE2)
			lse *= (float)M_LOG2E;
		a->lse[i / h->gqa * a->lse_stride + query_head(h, i)] =
			sees ? lse : -INFINITY;
	}
}

void cqk_attn_tiled(const struct cqk_attn *a, const struct cqk_tile_ops *ops)
{
	uint32_t head, i;

	for (head = a->head_begin; head < a->head_end; head++) {
		struct cqk_head *h = cqk_head_begin(a, head);

		for (i = 0; i < a->n_blocks; i++)
			cqk_head_block(h, &a->blocks[i], ops);
		cqk_head_end(h);
	}
}
