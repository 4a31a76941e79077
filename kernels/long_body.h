/* SPDX-License-Identifier: MIT */
/*
 * Up to eight query vectors over a long coded context, in floats.
 *
 * What does not depend on the token is done once per call and kv head. Values:
 * p is added up per code, [group][256][lane], and multiplied with the centroids
 * at the end; a token costs one addition per group. Keys that need no turning:
 * q . centroid is a table of the same shape, a score the sum of one entry per
 * group. Lanes lie next to each other: 4, or 8 for more than 4 query vectors.
 *
 * The including file defines CQK_VB, 16 or 32 (vec.h), and
 * LONG_OPS      name of the struct cqk_long that this file defines,
 * LONG_PAGES    coded pages from which the tables of a call pay,
 * LONG_CHANNELS least channels of a group for which they do,
 * LONG_KEY      type of centroids of keys to be turned,
 * and the functions turned_*() declared below.
 */
#include <string.h>
#include "kernels/vec.h"
#include "kernels/long.h"

#define RAISE 20.0f		/* p may reach e^20 before sums are rescaled */

/* Four lanes. Tables and scores are aligned to them. */
typedef float v4 __attribute__((vector_size(16), may_alias));

#define LD4(p) (*(const v4 *)(const void *)(p))
#define ST4(p, x) (*(v4 *)(void *)(p) = (x))

/* True if shapes and coding of keys that are turned are what follows can take. */
static bool turned_fits(const struct cqk_geom *g, const struct cqk_codebook *k);
/* Builds @key from @q; @unit is 1 at first. False: rather by tiles. */
static bool turned_begin(struct long_head *x);
/* The page at the position that @turn has is at hand, and @lane sees it. */
static void turned_lane(struct long_head *x, uint32_t lane);
/* Scores of waiting page @page, while its lanes' queries are at hand. */
static void turned_page(struct long_head *x, uint32_t page);

static uint32_t lanes_of(uint32_t nq)
{
	return nq > 4 ? 8 : 4;
}

INLINE void transpose4(v4 *r)
{
	v4 ab = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
	v4 cd = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
	v4 AB = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
	v4 CD = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);

	r[0] = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
	r[1] = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
	r[2] = __builtin_shufflevector(AB, CD, 0, 1, 4, 5);
	r[3] = __builtin_shufflevector(AB, CD, 2, 3, 6, 7);
}

/* out[VF][4] = four vectors, transposed; rows are @stride floats apart */
INLINE void tangle(const vf *in, float *out, size_t stride)
{
	_Alignas(32) float rows[4][VF];
	int i, e;

	for (i = 0; i < 4; i++)
		ST(rows[i], in[i]);
	for (e = 0; e < VF; e += 4) {
		v4 r[4];

		for (i = 0; i < 4; i++)
			r[i] = LD4(rows[i] + e);
		transpose4(r);
		for (i = 0; i < 4; i++)
			ST4(out + (size_t)(e + i) * stride, r[i]);
	}
}

/* Sums of four vectors. */
INLINE v4 sums4(const vf *in)
{
	_Alignas(32) float rows[VF][4];
	v4 sum;
	int e;

	tangle(in, rows[0], 4);
	sum = LD4(rows[0]);
	for (e = 1; e < VF; e++)
		sum += LD4(rows[e]);
	return sum;
}

/* Keys that are not turned: a table of q . centroid. */

/* Products of four lanes from @lane on with 2 VF centroids from @k on. */
INLINE void lut_block(struct long_head *x, const float *planes, uint32_t ch,
		      uint32_t k, int lane)
{
	uint32_t c = x->k->code.channels, j;
	float *out = x->lut + ((size_t)(ch / c) * K + k) * x->lanes + lane;
	vf dot[2][4] = { 0 };
	int i;

	for (j = ch; j < ch + c; j++) {
		vf a = LD(planes + (size_t)j * K + k), b = LD(planes + (size_t)j * K + k + VF);

		for (i = 0; i < 4; i++) {
			dot[0][i] += a * x->q[lane + i][j];
			dot[1][i] += b * x->q[lane + i][j];
		}
	}
	tangle(dot[0], out, (size_t)x->lanes);
	tangle(dot[1], out + (size_t)VF * x->lanes, (size_t)x->lanes);
}

static void build_lut(struct long_head *x)
{
	const float *planes = x->k->f32 + (size_t)x->h->head * x->d * K;
	uint32_t ch, k;
	int lane;

	for (ch = 0; ch < x->d; ch += x->k->code.channels)
		for (k = 0; k < K; k += 2 * VF)
			for (lane = 0; lane < x->lanes; lane += 4)
				lut_block(x, planes, ch, k, lane);
}

/* s[64][lanes] += entries of groups @g .. @g + n - 1 */
INLINE void add_entries(const int lanes, const int n, const float *lut,
			const uint8_t *codes, float *s)
{
	uint32_t t;
	int i, at;

	for (t = 0; t < CQK_T; t++, s += lanes) {
		if (lanes < VF || VF == 4) {
			for (at = 0; at < lanes; at += 4) {
				v4 sum = LD4(s + at);

				for (i = 0; i < n; i++)
					sum += LD4(lut + ((size_t)i * K + codes[i * CQK_T + t]) *
						   lanes + at);
				ST4(s + at, sum);
			}
		} else {
			vf sum = LD(s);

			for (i = 0; i < n; i++)
				sum += LD(lut + ((size_t)i * K + codes[i * CQK_T + t]) * lanes);
			ST(s, sum);
		}
	}
}

/* Four groups at a time over all waiting pages: their tables stay in L1. */
INLINE void lut_scores(const int lanes, struct long_head *x)
{
	uint32_t g, page, left;

	memset(x->s, 0, (size_t)x->n * CQK_T * lanes * sizeof(float));
	for (g = 0; g < x->k->n_groups; g += 4) {
		const float *lut = x->lut + (size_t)g * K * lanes;

		left = x->k->n_groups - g;
		for (page = 0; page < x->n; page++) {
			const uint8_t *codes = x->k_codes[page] + g * CQK_T;
			float *s = x->s + page * CQK_T * lanes;

			if (left >= 4)
				add_entries(lanes, 4, lut, codes, s);
			else if (left == 3)
				add_entries(lanes, 3, lut, codes, s);
			else if (left == 2)
				add_entries(lanes, 2, lut, codes, s);
			else
				add_entries(lanes, 1, lut, codes, s);
		}
	}
}

/* Values: p by code. */

INLINE void add_lanes(const int lanes, float *to, const float *p)
{
	int i;

	if (lanes < VF || VF == 4)
		for (i = 0; i < lanes; i += 4)
			ST4(to + i, LD4(to + i) + LD4(p + i));
	else
		ST(to, LD(to) + LD(p));
}

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

				add_lanes(lanes, at, p + t * lanes);
			}
		}
	}
}

/* [256][lanes] -> [lanes][256] */
static void untangle(const float *in, uint32_t lanes, float *out)
{
	uint32_t k, i, j;

	for (k = 0; k < K; k += 4)
		for (i = 0; i < lanes; i += 4) {
			v4 r[4];

			for (j = 0; j < 4; j++)
				r[j] = LD4(in + (size_t)(k + j) * lanes + i);
			transpose4(r);
			for (j = 0; j < 4; j++)
				ST4(out + (size_t)(i + j) * K + k, r[j]);
		}
}

/* Sums over 256 centroids of four lanes at once. */
static void weigh(const float *plane, const float *mass, float *sum)
{
	vf acc[4] = { 0 };
	uint32_t k;
	int i;

	for (k = 0; k < K; k += VF)
		for (i = 0; i < 4; i++)
			acc[i] += LD(plane + k) * LD(mass + i * K + k);
	ST4(sum, sums4(acc));
}

/* o[lane][ch] = sum over codes of mass and centroid */
static void values_of_mass(struct long_head *x)
{
	const float *planes = x->v->f32 + (size_t)x->h->head * x->d * K;
	uint32_t c = x->v->code.channels, ch, lane;
	float *mass = x->s;	/* [lanes][256]: scores are done with */
	_Alignas(16) float sum[CQK_LANES];

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

#define EIGHT (8 / VF)		/* vectors of eight floats: two tokens, or one */

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

/* @lanes values, twice if four: what eight floats of @s belong to. */
static void spread(const struct long_head *x, const float *lane, vf *out)
{
	float both[8];
	int i;

	for (i = 0; i < 8; i++)
		both[i] = lane[i % x->lanes];
	for (i = 0; i < EIGHT; i++)
		out[i] = LD(both + i * VF);
}

static void gather(const struct long_head *x, const vf *v, bool sum, float *lane)
{
	float f[8];
	int i;

	for (i = 0; i < EIGHT; i++)
		ST(f + i * VF, v[i]);
	for (i = 0; i < x->lanes; i++) {
		float a = f[i], b = f[(i + 4) % 8];

		lane[i] = x->lanes == 8 ? a : sum ? a + b : fmaxf(a, b);
	}
}

/* Units, cap, mask; largest score of each lane. */
static void tops(struct long_head *x, float *top)
{
	uint32_t n = x->n * CQK_T * (uint32_t)x->lanes / VF, i, page;
	float cap = x->h->a->soft_cap;
	vf most[EIGHT], unit[EIGHT];

	spread(x, x->unit, unit);
	for (i = 0; i < n; i++) {
		vf s = LD(x->s + i * VF) * unit[i % EIGHT];

		ST(x->s + i * VF, cap > 0.0f ? vf_cap(s, cap) : s);
	}
	for (page = 0; page < x->n; page++)
		hide(x, page);
	for (i = 0; i < EIGHT; i++)
		most[i] = (vf){ 0 } - INFINITY;
	for (i = 0; i < n; i++)
		most[i % EIGHT] = vf_max(LD(x->s + i * VF), most[i % EIGHT]);
	gather(x, most, false, top);
}

/* Let p = 1 stand for higher scores; all sums so far shrink. */
static void raise_to(struct long_head *x, const float *m)
{
	size_t n = (size_t)x->v->n_groups * K * x->lanes / VF, i;
	float r[CQK_LANES];
	vf shrink[EIGHT];
	int lane;

	for (lane = 0; lane < x->lanes; lane++) {
		r[lane] = m[lane] > x->m[lane] ? expf(x->m[lane] - m[lane]) : 1.0f;
		x->l[lane] *= r[lane];
		x->m[lane] = m[lane];
	}
	spread(x, r, shrink);
	for (i = 0; i < n; i++)
		ST(x->mass + i * VF, LD(x->mass + i * VF) * shrink[i % EIGHT]);
}

static void softmax(struct long_head *x)
{
	float top[CQK_LANES] = { 0 }, m[CQK_LANES] = { 0 }, sum[CQK_LANES];
	uint32_t n = x->n * CQK_T * (uint32_t)x->lanes / VF, i;
	vf total[EIGHT] = { 0 }, ref[EIGHT];
	bool raise = false;
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
	spread(x, m, ref);
	for (i = 0; i < n; i++) {
		vf s = LD(x->s + i * VF), p = vf_exp(s - ref[i % EIGHT]);

		p = (vf)((vi)p & (s > (vf){ 0 } - INFINITY));
		ST(x->s + i * VF, p);
		total[i % EIGHT] += p;
	}
	gather(x, total, true, sum);
	for (lane = 0; lane < x->lanes; lane++)
		x->l[lane] += sum[lane];
}

static void flush(struct long_head *x)
{
	if (!x->n)
		return;
	if (x->lut && x->lanes == 4)
		lut_scores(4, x);
	else if (x->lut)
		lut_scores(8, x);
	softmax(x);
	if (x->lanes == 4)
		add_mass(4, x);
	else
		add_mass(8, x);
	x->n = 0;
}

static void long_turn(void *ctx, uint32_t pos)
{
	struct long_head *x = ctx;

	if (x->key)
		cqk_turn_init(x->h->a->rope, pos, x->turn);
}

static void long_lane(void *ctx, uint32_t lane)
{
	struct long_head *x = ctx;

	if (x->key)
		turned_lane(x, lane);
}

static void long_page(void *ctx, const struct cqk_block *b, const uint64_t *vis)
{
	struct long_head *x = ctx;
	const struct cqk_attn *a = x->h->a;

	memcpy(x->vis[x->n], vis, sizeof(x->vis[x->n]));
	x->k_codes[x->n] = cqk_block_src(a, b, x->h->head, false, ~0ull).data;
	x->v_codes[x->n] = cqk_block_src(a, b, x->h->head, true, ~0ull).data;
	if (x->key)
		turned_page(x, x->n);
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
	x->key = x->half ? x->mass + n_mass : NULL;
	for (i = 0; i < CQK_LANES; i++) {
		x->m[i] = -INFINITY;
		x->unit[i] = 1.0f;
	}
	for (i = 0; i < h->nq; i++)
		memcpy(x->q[i], h->q + (size_t)i * h->dpad, x->d * sizeof(float));
	if (x->key)
		return turned_begin(x) ? x : NULL;
	build_lut(x);
	return x;
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

/* Groups of less are more table look-ups than products. */
static bool worth_tables(const struct cqk_codebook *cb)
{
	return cb->code.type == CQ_CODE_CQ && cb->code.channels >= LONG_CHANNELS &&
	       cqk_byte_codes(cb);
}

static bool long_fits(const struct cqk_attn *a)
{
	const struct cqk_layer *layer = &a->model->layers[a->layer];
	const struct cqk_geom *g = &a->model->geom;
	size_t nq = (size_t)a->n_rows * (g->n_heads / g->n_kv_heads);
	uint32_t i, pages = 0;

	if (!worth_tables(&layer->k) || !worth_tables(&layer->v) || !nq ||
	    nq > CQK_LANES)
		return false;
	if (cqk_turns_keys(a) && !turned_fits(g, &layer->k))
		return false;
	for (i = 0; i < a->n_blocks; i++)
		pages += a->blocks[i].kind == CQK_BLOCK_CODES;
	return pages >= LONG_PAGES;
}

/* Tables of @cb: one float per code and lane, or a LONG_KEY per channel and code. */
static size_t table_bytes(const struct cqk_codebook *cb, uint32_t d, uint32_t lanes)
{
	return K * MAX((size_t)cb->n_groups * lanes * sizeof(float), d * sizeof(LONG_KEY));
}

static size_t long_bytes(const struct cqk_model *model, uint32_t n_rows)
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

static void one_head(const struct cqk_attn *a, uint32_t head,
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

const struct cqk_long LONG_OPS = {
	.fits = long_fits,
	.bytes = long_bytes,
	.head = one_head,
};
