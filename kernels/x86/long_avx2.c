// SPDX-License-Identifier: MIT
/*
 * AVX2: up to eight query vectors over a long coded context.
 *
 * What does not depend on the token is done once per call and kv head. Values:
 * p is added up per code, [group][256][lane], and multiplied with the centroids
 * at the end; a token costs one addition per group. Keys: long_keys_avx2.c.
 * Lanes lie next to each other: 4, or 8 for more than 4 query vectors.
 */
#define CQK_VB 32
#include <immintrin.h>
#include <string.h>
#include "kernels/vec.h"
#include "kernels/x86/long_avx2.h"
#include "kernels/x86/long_keys_avx2.h"

#define RAISE 20.0f		/* p may reach e^20 before sums are rescaled */

static uint32_t lanes_of(uint32_t nq)
{
	return nq > 4 ? 8 : 4;
}

/* Values: p by code. */

INLINE void add_mass(const int lanes, struct long_head *x)
{
	uint32_t g, page, t;

	for (g = 0; g < x->v->n_groups; g++) {
		float *mass = x->mass + (size_t)g * K * lanes;

		for (page = 0; page < x->n; page++) {
			const uint8_t *codes = x->v_codes[page] + g * CQK_T;
			const float *p = x->s + page * CQK_T * lanes;

			for (t = 0; t < CQK_T; t++) {
				float *at = mass + (size_t)codes[t] * lanes;

				if (lanes == 4)
					_mm_storeu_ps(at, _mm_add_ps(_mm_loadu_ps(at),
						_mm_loadu_ps(p + t * 4)));
				else
					_mm256_storeu_ps(at, _mm256_add_ps(
						_mm256_loadu_ps(at),
						_mm256_loadu_ps(p + t * 8)));
			}
		}
	}
}

/* [256][lanes] -> [lanes][256] */
static void untangle(const float *in, uint32_t lanes, float *out)
{
	uint32_t k, i;

	for (k = 0; k < K; k += 4)
		for (i = 0; i < lanes; i += 4) {
			__m128 a = _mm_loadu_ps(in + (size_t)k * lanes + i);
			__m128 b = _mm_loadu_ps(in + (size_t)(k + 1) * lanes + i);
			__m128 c = _mm_loadu_ps(in + (size_t)(k + 2) * lanes + i);
			__m128 d = _mm_loadu_ps(in + (size_t)(k + 3) * lanes + i);

			_MM_TRANSPOSE4_PS(a, b, c, d);
			_mm_storeu_ps(out + (size_t)i * K + k, a);
			_mm_storeu_ps(out + (size_t)(i + 1) * K + k, b);
			_mm_storeu_ps(out + (size_t)(i + 2) * K + k, c);
			_mm_storeu_ps(out + (size_t)(i + 3) * K + k, d);
		}
}

/* Sums over 256 centroids of four lanes at once. */
static void weigh(const float *plane, const float *mass, float *sum)
{
	__m256 a = _mm256_setzero_ps(), b = a, c = a, d = a, x;
	uint32_t k;

	for (k = 0; k < K; k += 8) {
		x = _mm256_loadu_ps(plane + k);
		a = _mm256_fmadd_ps(x, _mm256_loadu_ps(mass + k), a);
		b = _mm256_fmadd_ps(x, _mm256_loadu_ps(mass + K + k), b);
		c = _mm256_fmadd_ps(x, _mm256_loadu_ps(mass + 2 * K + k), c);
		d = _mm256_fmadd_ps(x, _mm256_loadu_ps(mass + 3 * K + k), d);
	}
	x = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
	_mm_storeu_ps(sum, _mm_add_ps(_mm256_castps256_ps128(x),
				      _mm256_extractf128_ps(x, 1)));
}

/* o[lane][ch] = sum over codes of mass and centroid */
static void values_of_mass(struct long_head *x)
{
	const float *planes = x->v->f32 + (size_t)x->h->head * x->d * K;
	uint32_t c = x->v->code.channels, ch, lane;
	float *mass = x->s;	/* [lanes][256]: scores are done with */
	float sum[CQK_LANES];

	for (ch = 0; ch < x->d; ch++) {
		if (ch % c == 0)
			untangle(x->mass + (size_t)(ch / c) * K * x->lanes,
				 x->lanes, mass);
		weigh(planes + (size_t)ch * K, mass, sum);
		if (x->lanes == 8)
			weigh(planes + (size_t)ch * K, mass + 4 * K, sum + 4);
		for (lane = 0; lane < x->h->nq; lane++)
			x->q[lane][ch] = sum[lane];
	}
}

/* Softmax. */

static void hide(struct long_head *x, uint32_t page)
{
	float *s = x->s + page * CQK_T * x->lanes;
	uint32_t t;
	int lane;

	for (lane = 0; lane < x->lanes; lane++) {
		uint64_t vis = x->vis[page][lane];

		for (t = 0; ~vis && t < CQK_T; t++)
			if (!(vis >> t & 1))
				s[t * x->lanes + lane] = -INFINITY;
	}
}

/* @lanes values, twice if four: one vector of lanes. */
static vf spread(const struct long_head *x, const float *lane)
{
	float both[8];
	int i;

	for (i = 0; i < 8; i++)
		both[i] = lane[i % x->lanes];
	return LD(both);
}

static void gather(const struct long_head *x, vf v, bool sum, float *lane)
{
	int i;

	for (i = 0; i < x->lanes; i++) {
		float a = v[i], b = v[(i + 4) % 8];

		lane[i] = x->lanes == 8 ? a : sum ? a + b : fmaxf(a, b);
	}
}

/* Units, cap, mask; largest score of each lane. */
static void tops(struct long_head *x, float *top)
{
	vf most = (vf){ 0 } - INFINITY, unit = spread(x, x->unit);
	float cap = x->h->a->soft_cap;
	uint32_t i, page;

	for (i = 0; i < x->n * CQK_T * x->lanes; i += VF) {
		vf s = LD(x->s + i) * unit;

		ST(x->s + i, cap > 0.0f ? vf_cap(s, cap) : s);
	}
	for (page = 0; page < x->n; page++)
		hide(x, page);
	for (i = 0; i < x->n * CQK_T * x->lanes; i += VF)
		most = vf_max(LD(x->s + i), most);
	gather(x, most, false, top);
}

/* Let p = 1 stand for higher scores; all sums so far shrink. */
static void raise_to(struct long_head *x, const float *m)
{
	size_t n = (size_t)x->v->n_groups * K * x->lanes, i;
	float r[CQK_LANES];
	vf shrink;
	int lane;

	for (lane = 0; lane < x->lanes; lane++) {
		r[lane] = m[lane] > x->m[lane] ? expf(x->m[lane] - m[lane]) : 1.0f;
		x->l[lane] *= r[lane];
		x->m[lane] = m[lane];
	}
	shrink = spread(x, r);
	for (i = 0; i < n; i += VF)
		ST(x->mass + i, LD(x->mass + i) * shrink);
}

static void softmax(struct long_head *x)
{
	float top[CQK_LANES] = { 0 }, m[CQK_LANES] = { 0 }, sum[CQK_LANES];
	vf total = (vf){ 0 }, ref;
	bool raise = false;
	uint32_t i;
	int lane;

	tops(x, top);
	for (lane = 0; lane < x->lanes; lane++) {
		m[lane] = fmaxf(x->m[lane], top[lane]);
		if (top[lane] > x->m[lane] + RAISE || isinf(x->m[lane]))
			raise = raise || m[lane] > x->m[lane];
	}
	if (raise)
		raise_to(x, m);
	for (lane = 0; lane < x->lanes; lane++)
		m[lane] = isinf(x->m[lane]) ? 0.0f : x->m[lane];
	ref = spread(x, m);
	for (i = 0; i < x->n * CQK_T * x->lanes; i += VF) {
		vf s = LD(x->s + i), p = vf_exp(s - ref);

		p = (vf)((vi)p & (s > (vf){ 0 } - INFINITY));
		ST(x->s + i, p);
		total += p;
	}
	gather(x, total, true, sum);
	for (lane = 0; lane < x->lanes; lane++)
		x->l[lane] += sum[lane];
}

static void flush(struct long_head *x)
{
	if (!x->n)
		return;
	cqk_keys_batch(x);
	softmax(x);
	if (x->lanes == 4)
		add_mass(4, x);
	else
		add_mass(8, x);
	x->n = 0;
}

static void long_turn(void *ctx, uint32_t pos)
{
	cqk_keys_turn(ctx, pos);
}

static void long_lane(void *ctx, uint32_t lane)
{
	cqk_keys_lane(ctx, lane);
}

static void long_page(void *ctx, const struct cqk_block *b, const uint64_t *vis)
{
	struct long_head *x = ctx;
	const struct cqk_attn *a = x->h->a;

	memcpy(x->vis[x->n], vis, sizeof(x->vis[x->n]));
	x->k_codes[x->n] = cqk_block_src(a, b, x->h->head, false, ~0ull).data;
	x->v_codes[x->n] = cqk_block_src(a, b, x->h->head, true, ~0ull).data;
	cqk_keys_page(x, x->n);
	if (++x->n == BATCH)
		flush(x);
}

static const struct cqk_page_ops page_ops = {
	.turn = long_turn,
	.lane = long_lane,
	.page = long_page,
};

/* NULL: the tile does it better. */
static struct long_head *long_begin(struct cqk_head *h)
{
	const struct cqk_layer *layer = &h->a->model->layers[h->a->layer];
	struct long_head *x = h->extra;
	size_t n_mass;
	uint32_t i;

	memset(x, 0, offsetof(struct long_head, s));
	x->h = h;
	x->k = &layer->k;
	x->v = &layer->v;
	x->d = h->chunk.d;
	x->half = cqk_turns_keys(h->a) ? h->a->rope->half : 0;
	x->lanes = (int)lanes_of(h->nq);
	n_mass = (size_t)x->v->n_groups * K * x->lanes;
	x->mass = (float *)(void *)((uint8_t *)x + ALIGN_UP(sizeof(*x), 64));
	memset(x->mass, 0, n_mass * sizeof(float));
	x->lut = x->half ? NULL : x->mass + n_mass;
	x->key = x->half ? (int16_t *)(void *)(x->mass + n_mass) : NULL;
	for (i = 0; i < CQK_LANES; i++) {
		x->m[i] = -INFINITY;
		x->unit[i] = 1.0f;
	}
	for (i = 0; i < h->nq; i++)
		memcpy(x->q[i], h->q + (size_t)i * h->dpad, x->d * sizeof(float));
	return cqk_keys_begin(x) ? x : NULL;
}

/* Merge into the driver's state. */
static void long_end(struct long_head *x)
{
	struct cqk_head *h = x->h;
	uint32_t lane, ch;

	flush(x);
	values_of_mass(x);
	for (lane = 0; lane < h->nq; lane++) {
		float *o = h->o + (size_t)lane * h->dpad;
		float m = fmaxf(h->m[lane], x->m[lane]), old, own;

		if (isinf(x->m[lane]))
			continue;
		old = expf(h->m[lane] - m);
		own = expf(x->m[lane] - m);
		for (ch = 0; ch < x->d; ch++)
			o[ch] = o[ch] * old + x->q[lane][ch] * own;
		h->l[lane] = h->l[lane] * old + x->l[lane] * own;
		h->m[lane] = m;
	}
}

/* Groups of less are more table look-ups than products: not worth it. */
static bool worth_tables(const struct cqk_codebook *cb)
{
	return cb->code.type == CQ_CODE_CQ && cb->code.channels >= 4 && cqk_byte_codes(cb);
}

bool cqk_long_fits(const struct cqk_attn *a)
{
	const struct cqk_layer *layer = &a->model->layers[a->layer];
	const struct cqk_geom *g = &a->model->geom;
	size_t nq = (size_t)a->n_rows * (g->n_heads / g->n_kv_heads);
	uint32_t c = layer->k.code.channels, i, pages = 0;

	if (!worth_tables(&layer->k) || !worth_tables(&layer->v) || !nq ||
	    nq > CQK_LANES)
		return false;
	if (cqk_turns_keys(a) && (g->head_dim % 16 || g->rope_dim % 32 ||
				  (c != 4 && c != 8)))
		return false;
	for (i = 0; i < a->n_blocks; i++)
		pages += a->blocks[i].kind == CQK_BLOCK_CODES;
	return pages >= CQK_LONG_PAGES;
}

/* Tables of @cb: one float per code and lane, or 16 bits per channel and code. */
static size_t table_bytes(const struct cqk_codebook *cb, uint32_t d, uint32_t lanes)
{
	size_t per_code = (size_t)cb->n_groups * lanes * sizeof(float);

	return K * (per_code > 2 * d ? per_code : 2 * d);
}

size_t cqk_long_bytes(const struct cqk_model *model, uint32_t n_rows)
{
	const struct cqk_geom *g = &model->geom;
	size_t nq = (size_t)n_rows * (g->n_heads / g->n_kv_heads), most = 0, n;
	/* Scratch for many rows serves calls of few rows too, which come here. */
	uint32_t l, lanes = lanes_of((uint32_t)MIN(nq, CQK_LANES));

	for (l = 0; l < g->n_layers; l++) {
		n = table_bytes(&model->layers[l].k, g->head_dim, lanes) +
		    table_bytes(&model->layers[l].v, g->head_dim, lanes);
		most = n > most ? n : most;
	}
	return ALIGN_UP(sizeof(struct long_head), 64) + ALIGN_UP(most, 64);
}

void cqk_long_head(const struct cqk_attn *a, uint32_t head,
		   const struct cqk_tile_ops *ops)
{
	struct cqk_head *h = cqk_head_begin(a, head);
	struct long_head *x = long_begin(h);
	uint32_t i;

	for (i = 0; i < a->n_blocks; i++) {
		if (x && a->blocks[i].kind == CQK_BLOCK_CODES)
			cqk_head_page(h, &a->blocks[i], &page_ops, x);
		else
			cqk_head_block(h, &a->blocks[i], ops);
	}
	if (x)
		long_end(x);
	cqk_head_end(h);
}
