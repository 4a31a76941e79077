/* SPDX-License-Identifier: MIT */
/*
 * Models and batches made of random numbers, for tests and benchmarks of the
 * kernels. Built by hand, not through the model parser, so that every shape
 * and coding can be had.
 */
#ifndef TOY_H
#define TOY_H

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/attn.h"
#include "kernels/f16.h"
#include "tests/rope_ref.h"

struct toy_opts {
	uint32_t n_layers, n_heads, n_kv_heads, d;
	uint32_t keys, rope_dim;
	uint32_t ck, cv;	/* channels per group; 0: pass-through */
	uint32_t bk, bv;	/* bits per code; 0: 8 */
	bool i8;
	bool metric;		/* weights per channel when encoding */
	float k_size, v_size;	/* 0: 1 */
	double theta;		/* 0: 10000 */
	uint32_t pairs;
	struct cqk_rope_scaling scaling;
};

struct toy {
	struct cqk_model m;
	struct cqk_rope rope;
	void *rope_mem;
};

static uint64_t toy_state = 1;

static inline uint32_t toy_u32(void)
{
	toy_state = toy_state * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(toy_state >> 33);
}

/* Roughly normal, variance 1. */
static inline float toy_normal(void)
{
	float sum = 0.0f;
	int i;

	for (i = 0; i < 6; i++)
		sum += (float)toy_u32() / 2147483648.0f - 0.5f;
	return sum * 1.41421356f;
}

static inline void *toy_alloc(size_t n)
{
	void *p = aligned_alloc(64, ALIGN_UP(n + 1, 64));

	if (!p)
		abort();
	memset(p, 0, ALIGN_UP(n + 1, 64));
	return p;
}

/* After a change of the centroids: all that the encoder reads. */
static inline void toy_half_norm(struct cqk_codebook *cb)
{
	uint32_t c = cb->code.channels, n = cqk_code_centroids(cb->code), h, g, k, j;

	for (h = 0; h < cb->n_kv_heads; h++)
		for (g = 0; g < cb->n_groups; g++)
			for (k = 0; k < n; k++) {
				float sum = 0.0f;

				for (j = 0; j < c; j++) {
					size_t ch = (size_t)h * cb->head_dim + g * c + j;
					float x = cb->f32[ch * n + k];

					if (cb->metric)
						cb->enc[ch * n + k] = x * cb->metric[ch];
					sum += x * cb->enc[ch * n + k];
				}
				cb->half_norm[((size_t)h * cb->n_groups + g) * n + k] =
					sum / 2;
			}
}

static inline void toy_fill(struct cqk_codebook *cb, float size)
{
	size_t n_ch = (size_t)cb->n_kv_heads * cb->head_dim, ch, k;
	uint32_t c = cb->code.channels, n = cqk_code_centroids(cb->code);
	uint16_t *f16 = toy_alloc(n_ch * n * 2);
	int8_t *i8 = toy_alloc(n_ch * n);
	float *scale = toy_alloc(n_ch * 4);

	for (ch = 0; ch < n_ch; ch++) {
		scale[ch] = size * (0.5f + (float)(toy_u32() % 1000) / 1000) / 50;
		for (k = 0; k < n; k++) {
			size_t at = (ch / c * n + k) * c + ch % c;
			float x = toy_normal() * size;
			int q = (int)lrintf(x / scale[ch]);

			f16[at] = cqk_f32_to_f16(x);
			i8[at] = (int8_t)MAX(-127, MIN(127, q));
			cb->f32[ch * n + k] = cqk_f16_to_f32(f16[at]);
			if (cb->centroids == CQK_CENTROIDS_F16)
				continue;
			cb->f32[ch * n + k] = (float)i8[at] * scale[ch];
			cb->i8[ch * n + k] = i8[at];
		}
	}
	cb->stored = cb->centroids == CQK_CENTROIDS_F16 ? (void *)f16 : (void *)i8;
	cb->scale = cb->centroids == CQK_CENTROIDS_F16 ? NULL : scale;
	free(cb->centroids == CQK_CENTROIDS_F16 ? (void *)i8 : (void *)f16);
	if (cb->centroids == CQK_CENTROIDS_F16)
		free(scale);
}

static inline float *toy_metric(uint32_t n)
{
	float *m = toy_alloc(n * sizeof(*m));
	uint32_t i;

	for (i = 0; i < n; i++)
		m[i] = 0.01f * (float)(1 + toy_u32() % 1000);
	return m;
}

static inline void toy_codebook(struct cqk_codebook *cb, const struct toy_opts *o,
				uint32_t c, uint32_t bits, float size)
{
	size_t values = (size_t)o->n_kv_heads * o->d << (bits ? bits : 8);

	memset(cb, 0, sizeof(*cb));
	cb->head_dim = o->d;
	cb->n_kv_heads = o->n_kv_heads;
	if (!c) {
		cb->code.type = CQ_CODE_F16;
		return;
	}
	cb->code = (struct cq_code){ CQ_CODE_CQ, (uint8_t)c, (uint8_t)(bits ? bits : 8), 0 };
	cb->centroids = o->i8 ? CQK_CENTROIDS_I8 : CQK_CENTROIDS_F16;
	cb->n_groups = o->d / c;
	cb->f32 = toy_alloc(values * 4);
	cb->enc = o->metric ? toy_alloc(values * 4) : cb->f32;
	cb->half_norm = toy_alloc(values / c * 4);
	cb->i8 = o->i8 ? toy_alloc(values) : NULL;
	toy_fill(cb, size > 0 ? size : 1.0f);
	if (o->metric)
		cb->metric = toy_metric(o->n_kv_heads * o->d);
	toy_half_norm(cb);
}

static inline void toy_init(struct toy *t, const struct toy_opts *o,
			    uint32_t positions)
{
	uint32_t l;

	memset(t, 0, sizeof(*t));
	t->m.geom = (struct cqk_geom){
		.n_layers = o->n_layers, .n_heads = o->n_heads,
		.n_kv_heads = o->n_kv_heads, .head_dim = o->d,
		.max_position = positions, .keys = o->keys,
		.rope_dim = o->rope_dim,
		.rope_theta = o->theta > 0 ? o->theta : 1e4,
		.rope_pairs = o->pairs, .rope_scaling = o->scaling,
	};
	t->m.layers = toy_alloc(o->n_layers * sizeof(*t->m.layers));
	for (l = 0; l < o->n_layers; l++) {
		struct cqk_layer *y = &t->m.layers[l];

		toy_codebook(&y->k, o, o->ck, o->bk, o->k_size);
		toy_codebook(&y->v, o, o->cv, o->bv, o->v_size);
		y->k_bytes = cq_code_block_bytes(y->k.code, o->d);
		y->v_bytes = cq_code_block_bytes(y->v.code, o->d);
		y->offset = t->m.payload;
		t->m.payload += o->n_kv_heads * (y->k_bytes + y->v_bytes);
	}
	t->rope_mem = malloc(cqk_rope_bytes(&t->m.geom, positions));
	cqk_rope_init(&t->rope, &t->m.geom, positions, t->rope_mem);
}

static inline void toy_codebook_free(struct cqk_codebook *cb)
{
	free((void *)(uintptr_t)cb->stored);
	free((void *)(uintptr_t)cb->scale);
	if (cb->enc != cb->f32)
		free(cb->enc);
	free((void *)(uintptr_t)cb->metric);
	free(cb->f32);
	free(cb->half_norm);
	free(cb->i8);
}

static inline void toy_free(struct toy *t)
{
	uint32_t l;

	for (l = 0; l < t->m.geom.n_layers; l++) {
		toy_codebook_free(&t->m.layers[l].k);
		toy_codebook_free(&t->m.layers[l].v);
	}
	free(t->m.layers);
	free(t->rope_mem);
}

/* @n halves, normal, times @size */
static inline void toy_halves(uint8_t *out, size_t n, float size)
{
	size_t i;

	for (i = 0; i < n; i++) {
		uint16_t h = cqk_f32_to_f16(toy_normal() * size);

		memcpy(out + 2 * i, &h, 2);
	}
}

static inline void toy_payload(const struct toy *t, uint8_t *out)
{
	uint32_t l, h;
	size_t i;

	for (i = 0; i < t->m.payload; i++)
		out[i] = (uint8_t)(toy_u32() >> 11);
	for (l = 0; l < t->m.geom.n_layers; l++) {
		const struct cqk_layer *y = &t->m.layers[l];

		for (h = 0; h < t->m.geom.n_kv_heads; h++) {
			uint8_t *at = out + y->offset + h * (y->k_bytes + y->v_bytes);

			if (y->k.code.type == CQ_CODE_F16)
				toy_halves(at, y->k_bytes / 2, 1.0f);
			if (y->v.code.type == CQ_CODE_F16)
				toy_halves(at + y->k_bytes, y->v_bytes / 2, 1.0f);
		}
	}
}

/* A code as Documentation/formats.md has it, apart from include/cq/page.h. */
static inline uint32_t toy_code(const struct cqk_codebook *cb, const uint8_t *block,
				uint32_t g, uint32_t t)
{
	uint32_t upper = 0;

	if (cb->code.bits == 10)
		upper = block[cb->n_groups * 64 + g * 16 + t % 16] >> (t / 16) * 2 & 3;
	return upper * 256 + block[g * 64 + t];
}

/* One stored K or V value, in double, from the stored centroids. */
static inline double toy_value(const struct cqk_src *s, uint32_t t, uint32_t ch)
{
	size_t c, at;
	uint16_t h;

	if (!s->cb) {
		memcpy(&h, s->data + ((size_t)t * s->d + ch) * 2, 2);
		return (double)cqk_f16_to_f32(h);
	}
	c = s->cb->code.channels;
	at = ((size_t)s->kv_head * s->d + ch) / c * cqk_code_centroids(s->cb->code) +
	     toy_code(s->cb, s->data, (uint32_t)(ch / c), t);
	at = at * c + ch % c;
	if (s->cb->centroids == CQK_CENTROIDS_F16)
		return (double)cqk_f16_to_f32(((const uint16_t *)s->cb->stored)[at]);
	return (double)((float)((const int8_t *)s->cb->stored)[at] *
			s->cb->scale[(size_t)s->kv_head * s->d + ch]);
}

static inline double toy_load(const struct cq_view *v, uint32_t row, uint32_t head,
			      uint32_t ch)
{
	int64_t at = row * v->stride_token + head * v->stride_head + ch;

	if (v->dtype == CQ_F32)
		return (double)((const float *)v->data)[at];
	if (v->dtype == CQ_F16)
		return (double)cqk_f16_to_f32(((const uint16_t *)v->data)[at]);
	return (double)cqk_bf16_to_f32(((const uint16_t *)v->data)[at]);
}

/* cos and sin of @pos for every pair, and of one position more. */
struct toy_turn {
	double c[128], s[128], c1[128], s1[128];
};

static inline void toy_turn_init(struct toy_turn *r, const struct cqk_geom *g,
				 double pos)
{
	uint32_t j;

	for (j = 0; j < g->rope_dim / 2; j++) {
		double w = ref_freq(g, j);

		r->c[j] = cos(pos * w);
		r->s[j] = sin(pos * w);
		r->c1[j] = cos(w);
		r->s1[j] = sin(w);
	}
}

/* Turns @k, in the model's order, and goes on by one position. */
static inline void toy_turn_next(struct toy_turn *r, const struct cqk_geom *g, double *k)
{
	double f = ref_factor(g);
	uint32_t j;

	for (j = 0; j < g->rope_dim / 2; j++) {
		double *a = &k[ref_first(g, j)], *b = &k[ref_second(g, j)];
		double c = r->c[j], s = r->s[j], lo = *a * f, hi = *b * f;

		*a = lo * c - hi * s;
		*b = lo * s + hi * c;
		r->c[j] = c * r->c1[j] - s * r->s1[j];
		r->s[j] = s * r->c1[j] + c * r->s1[j];
	}
}

static inline bool toy_sees(const struct cqk_attn *a, const struct cqk_block *b,
			    const struct cqk_span *s, uint32_t row, uint32_t t)
{
	int64_t pos = (int64_t)s->pos + t, rp = a->row_pos[row];

	return t < b->tokens && s->mask >> t & 1 && pos <= rp &&
	       !(a->sliding_window && pos <= rp - (int64_t)a->sliding_window);
}

/*
 * K of each span, turned, and V of each block of one kv head, [token][channel]: what rows
 * and heads of a group share. Filled when first asked for.
 */
struct toy_decoded {
	const struct cqk_attn *a;
	uint32_t kv_head, n_spans;
	double **k, **v;
};

static inline void toy_decoded_init(struct toy_decoded *y, const struct cqk_attn *a,
				    uint32_t kv_head)
{
	uint32_t i;

	*y = (struct toy_decoded){ .a = a, .kv_head = kv_head };
	for (i = 0; i < a->n_blocks; i++)
		y->n_spans = MAX(y->n_spans, a->blocks[i].span_first + a->blocks[i].n_spans);
	y->k = toy_alloc(y->n_spans * sizeof(*y->k));
	y->v = toy_alloc(a->n_blocks * sizeof(*y->v));
}

static inline void toy_decoded_free(struct toy_decoded *y)
{
	uint32_t i;

	for (i = 0; i < y->n_spans; i++)
		free(y->k[i]);
	for (i = 0; i < y->a->n_blocks; i++)
		free(y->v[i]);
	free(y->k);
	free(y->v);
}

static inline const double *toy_keys(struct toy_decoded *y, const struct cqk_block *b,
				     uint32_t span)
{
	const struct cqk_geom *g = &y->a->model->geom;
	struct cqk_src src = cqk_block_src(y->a, b, y->kv_head, false, ~0ull);
	bool turn = g->keys == CQK_KEYS_PRE_ROPE && g->rope_dim;
	struct toy_turn r;
	uint32_t ch, t;
	double *k;

	if (y->k[span])
		return y->k[span];
	k = y->k[span] = toy_alloc((size_t)b->tokens * g->head_dim * sizeof(*k));
	if (turn)
		toy_turn_init(&r, g, y->a->spans[span].pos);
	for (t = 0; t < b->tokens; t++, k += g->head_dim) {
		for (ch = 0; ch < g->head_dim; ch++)
			k[ch] = toy_value(&src, t, ref_stored(g, ch));
		if (turn)
			toy_turn_next(&r, g, k);
	}
	return y->k[span];
}

static inline const double *toy_values(struct toy_decoded *y, const struct cqk_block *b)
{
	struct cqk_src src = cqk_block_src(y->a, b, y->kv_head, true, 0);
	uint32_t d = y->a->model->geom.head_dim, i;
	double **v = &y->v[b - y->a->blocks];

	if (*v)
		return *v;
	*v = toy_alloc((size_t)b->tokens * d * sizeof(**v));
	for (i = 0; i < b->tokens * d; i++)
		(*v)[i] = toy_value(&src, i / d, i % d);
	return *v;
}

/* Scores of a block; -inf for tokens the row does not see. */
static inline void toy_scores(struct toy_decoded *y, const struct cqk_block *b, uint32_t span,
			      uint32_t row, const double *q, double *out)
{
	const struct cqk_attn *a = y->a;
	uint32_t d = a->model->geom.head_dim, ch, t;
	const double *k = toy_keys(y, b, span);

	for (t = 0; t < b->tokens; t++, k += d) {
		double dot = 0;

		if (!toy_sees(a, b, &a->spans[span], row, t))
			continue;
		for (ch = 0; ch < d; ch++)
			dot += q[ch] * k[ch];
		dot *= (double)a->scale;
		if (a->soft_cap > 0)
			dot = (double)a->soft_cap * tanh(dot / (double)a->soft_cap);
		out[t] = dot;
	}
}

/* The blocks and spans a row belongs to, one use after the other. */
struct toy_use {
	const struct cqk_block *b;
	double s[64];
};

static inline uint32_t toy_uses(struct toy_decoded *y, uint32_t row, const double *q,
				struct toy_use *u)
{
	const struct cqk_attn *a = y->a;
	uint32_t n = 0, i, j, t;

	for (i = 0; i < a->n_blocks; i++)
		for (j = 0; j < a->blocks[i].n_spans; j++) {
			uint32_t span = a->blocks[i].span_first + j;
			const struct cqk_span *sp = &a->spans[span];

			if (row < sp->row_first || row >= sp->row_first + sp->n_rows)
				continue;
			u[n].b = &a->blocks[i];
			for (t = 0; t < 64; t++)
				u[n].s[t] = -INFINITY;
			toy_scores(y, u[n].b, span, row, q, u[n].s);
			n++;
		}
	return n;
}

/* One (row, head) of the kv head of @y in double: o[d], returns the natural lse. */
static inline double toy_attend(struct toy_decoded *y, uint32_t row, uint32_t head, double *o)
{
	const struct cqk_attn *a = y->a;
	const struct cqk_geom *g = &a->model->geom;
	uint32_t i, t, ch, n;
	double q[256], top = -INFINITY, sum = 0;
	struct toy_use *u = malloc((size_t)(2 * a->n_blocks + 1) * sizeof(*u));

	for (ch = 0; ch < g->head_dim; ch++)
		q[ch] = toy_load(&a->q, row, head, ch);
	if (g->keys != CQK_KEYS_NONE && !(a->flags & CQ_ATTN_Q_ROTATED))
		ref_rope(q, g, a->row_pos[row]);
	memset(o, 0, g->head_dim * sizeof(*o));
	n = toy_uses(y, row, q, u);
	for (i = 0; i < n; i++)
		for (t = 0; t < 64; t++)
			top = u[i].s[t] > top ? u[i].s[t] : top;
	for (i = 0; top > (double)-INFINITY && i < n; i++) {
		const double *v = toy_values(y, u[i].b);

		for (t = 0; t < u[i].b->tokens; t++, v += g->head_dim) {
			double p = exp(u[i].s[t] - top);

			sum += p;
			for (ch = 0; p > 0 && ch < g->head_dim; ch++)
				o[ch] += p * v[ch];
		}
	}
	for (ch = 0; sum > 0 && ch < g->head_dim; ch++)
		o[ch] /= sum;
	free(u);
	return sum > 0 ? top + log(sum) : (double)-INFINITY;
}

/* The same, of one alone. */
static inline double toy_reference(const struct cqk_attn *a, uint32_t row,
				   uint32_t head, double *o)
{
	const struct cqk_geom *g = &a->model->geom;
	struct toy_decoded y;
	double lse;

	toy_decoded_init(&y, a, head / (g->n_heads / g->n_kv_heads));
	lse = toy_attend(&y, row, head, o);
	toy_decoded_free(&y);
	return lse;
}

#endif /* TOY_H */
