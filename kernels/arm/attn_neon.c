// SPDX-License-Identifier: MIT
/*
 * Attention with NEON (Advanced SIMD), which every 64-bit ARM processor has.
 *
 * With 8-bit centroids and up to eight query vectors a page is decoded
 * transposed, 16 tokens of a channel at a time (planes_neon.h), turned and
 * multiplied in floats in registers; values meet the probabilities the same way.
 * More vectors share a decoded tile, which is made by the same look-ups. Halves are
 * widened by the processor; centroids that are halves take the portable tile.
 */
#define CQK_VB 16
#define CQK_MR 8
#include "kernels/tile.h"
#include "kernels/arm/planes_neon.h"
#include "kernels/few.h"

#define AT_ONCE 4	/* query vectors whose sums stay in registers */

/* acc[r][16 tokens] += x q[r] */
INLINE void dot16(const int nq, const vf *x, const float *q, size_t dpad, vf acc[][4])
{
	int r, i;

	for (r = 0; r < nq; r++)
		for (i = 0; i < 4; i++)
			acc[r][i] += x[i] * q[r * dpad];
}

/* Channels of a pair, times their scales, turned by the offsets of 16 tokens. */
INLINE void turn16(const float *cs, float first, float second, vf *x, vf *y)
{
	int i;

	for (i = 0; i < 4; i++) {
		vf c = LD(cs + 4 * i), s = LD(cs + CQK_T + 4 * i);
		vf a = x[i] * first, b = y[i] * second;

		x[i] = a * c - b * s;
		y[i] = a * s + b * c;
	}
}

/* Scores of @nq vectors and LOOK tokens from @t on. */
INLINE void keys16(const int nq, const bool turn, const float *q, size_t dpad,
		   const struct cqk_src *k, const struct cqk_rope *rope, uint32_t t, float *s)
{
	uint32_t half = turn ? rope->half : 0, ch;
	const float *scale = walk_scales(k);
	vf acc[AT_ONCE][4], x[4], y[4];
	struct walk lo, hi;
	int r, i;

	for (r = 0; r < nq; r++)
		acc[r][0] = acc[r][1] = acc[r][2] = acc[r][3] = (vf){ 0 };
	if (half) {
		lo = walk_from(k, 0, t);
		hi = walk_from(k, half, t);
	}
	for (ch = 0; ch < half; ch++) {
		walk_next(&lo, x);
		walk_next(&hi, y);
		turn16(rope->in_page_t + (size_t)ch * 2 * CQK_T + t, scale[ch],
		       scale[half + ch], x, y);
		dot16(nq, x, q + ch, dpad, acc);
		dot16(nq, y, q + half + ch, dpad, acc);
	}
	if (2 * half < k->d)
		lo = walk_from(k, 2 * half, t);
	for (ch = 2 * half; ch < k->d; ch++) {
		walk_next(&lo, x);
		dot16(nq, x, q + ch, dpad, acc);
	}
	for (r = 0; r < nq; r++)
		for (i = 0; i < 4; i++)
			ST(s + r * CQK_T + t + 4 * i, acc[r][i]);
}

/* Scales of channels that are not turned go to the query, the chunk's own copy. */
static void scale_queries(struct cqk_chunk *c, const struct cqk_src *k, uint32_t from)
{
	const float *scale = walk_scales(k);
	uint32_t d = c->d, r, ch;

	for (r = 0; r < c->n; r++) {
		float *q = c->q + (size_t)r * c->dpad;

		for (ch = from; ch + VF <= d; ch += VF)
			ST(q + ch, LD(q + ch) * LD(scale + ch));
		for (; ch < d; ch++)
			q[ch] *= scale[ch];
	}
}

/*
 * @part: [d][nq][4] sums of p v, each of every fourth token; LOOK tokens from @t on
 * are added, or are the @first.
 */
INLINE void values16(const int nq, const bool first, const float *s, const struct cqk_src *v,
		     uint32_t t, float *part)
{
	uint32_t ch, d = v->d;
	vf p[AT_ONCE][4], x[4], sum;
	struct walk w = walk_from(v, 0, t);
	int r, i;

	for (r = 0; r < nq; r++)
		for (i = 0; i < 4; i++)
			p[r][i] = LD(s + r * CQK_T + t + 4 * i);
	for (ch = 0; ch < d; ch++, part += 4 * nq) {
		walk_next(&w, x);
		for (r = 0; r < nq; r++) {
			sum = (vf){ 0 };
			if (!first)
				sum = LD(part + 4 * r);
			for (i = 0; i < 4; i++)
				sum += x[i] * p[r][i];
			ST(part + 4 * r, sum);
		}
	}
}

/* o[r] += what @part sums up to, times the scales. */
INLINE void add_values(const int nq, const float *part, const float *scale, uint32_t d,
		       float *const *o)
{
	uint32_t ch;
	int r;

	for (ch = 0; ch + 4 <= d; ch += 4)
		for (r = 0; r < nq; r++) {
			const float *at = part + (ch * nq + r) * 4;
			float32x4_t a = vpaddq_f32(vld1q_f32(at), vld1q_f32(at + 4 * nq));
			float32x4_t b = vpaddq_f32(vld1q_f32(at + 8 * nq),
						   vld1q_f32(at + 12 * nq));

			ST(o[r] + ch, LD(o[r] + ch) + (vf)vpaddq_f32(a, b) * LD(scale + ch));
		}
	for (; ch < d; ch++)
		for (r = 0; r < nq; r++)
			o[r][ch] += vaddvq_f32(vld1q_f32(part + (ch * nq + r) * 4)) * scale[ch];
}

INLINE void few_keys(const int nq, const struct cqk_chunk *c, uint32_t lane,
		     const struct cqk_src *k, const struct cqk_rope *rope)
{
	const float *q = c->q + (size_t)lane * c->dpad;
	float *s = c->s + (size_t)lane * CQK_T;
	uint32_t t;

	for (t = 0; t < CQK_T; t += LOOK)
		if (rope)
			keys16(nq, true, q, c->dpad, k, rope, t, s);
		else
			keys16(nq, false, q, c->dpad, k, rope, t, s);
}

INLINE void few_values(const int nq, const struct cqk_chunk *c, uint32_t lane,
		       const struct cqk_src *v)
{
	const float *s = c->s + (size_t)lane * CQK_T;
	uint32_t t;

	values16(nq, true, s, v, 0, c->v);
	for (t = LOOK; t < CQK_T; t += LOOK)
		values16(nq, false, s, v, t, c->v);
	add_values(nq, c->v, walk_scales(v), v->d, c->o + lane);
}

#define FEW_FNS(nq)								\
static void keys_##nq(const struct cqk_chunk *c, uint32_t lane,			\
		      const struct cqk_src *k, const struct cqk_rope *rope)	\
{										\
	few_keys(nq, c, lane, k, rope);						\
}										\
static void values_##nq(const struct cqk_chunk *c, uint32_t lane,		\
			const struct cqk_src *v)				\
{										\
	few_values(nq, c, lane, v);						\
}
FEW_FNS(1)
FEW_FNS(2)
FEW_FNS(4)

static bool neon_few(struct cqk_chunk *c, const struct cqk_src *k,
		     const struct cqk_src *v, const struct cqk_rope *rope)
{
	uint32_t lane, lanes;
	int log;

	if (c->n > FEW || !cqk_has_planes(k->cb) || !cqk_has_planes(v->cb))
		return false;
	if (rope && !rope->half)
		rope = NULL;
	log = pad_chunk(c);
	lanes = 1u << log;
	scale_queries(c, k, rope ? 2 * rope->half : 0);
	for (lane = 0; lane < lanes; lane += AT_ONCE)
		(lanes == 1 ? keys_1 : lanes == 2 ? keys_2 : keys_4)(c, lane, k, rope);
	tile_softmax(c);
	clear_scores(c, log);
	for (lane = 0; lane < lanes; lane += AT_ONCE)
		(lanes == 1 ? values_1 : lanes == 2 ? values_2 : values_4)(c, lane, v);
	return true;
}

/* Eight halves of a row from channel @ch on, fewer at its end, as floats. */
static uint32_t halves8(const struct cqk_src *src, uint32_t t, uint32_t ch, float *out)
{
	const uint8_t *at = src->data + ((size_t)t * src->d + ch) * 2;
	uint32_t n = MIN(src->d - ch, 8u);
	uint16_t h[8] = { 0 };
	float16x8_t x;

	memcpy(h, at, n * sizeof(*h));
	x = vreinterpretq_f16_u16(vld1q_u16(h));
	vst1q_f32(out, vcvt_f32_f16(vget_low_f16(x)));
	vst1q_f32(out + 4, vcvt_high_f32_f16(x));
	return n;
}

static void load_half_keys(const struct cqk_src *src, float *k)
{
	uint32_t t, ch, i, n;
	float x[8];

	for (t = 0; t < src->tokens; t++)
		for (ch = 0; ch < src->d; ch += 8) {
			n = halves8(src, t, ch, x);
			for (i = 0; i < n; i++)
				k[(size_t)(ch + i) * CQK_T + t] = x[i];
		}
}

static void neon_load_k(const struct cqk_src *src, const struct cqk_rope *rope,
			float *k, float *tmp)
{
	uint32_t t, ch;
	struct walk w;
	vf x[4];
	int i;

	if (src->cb && !cqk_has_planes(src->cb)) {
		cqk_tile_portable.load_k(src, rope, k, tmp);
		return;
	}
	if (!src->cb)
		load_half_keys(src, k);
	for (t = 0; src->cb && t < CQK_T; t += LOOK) {
		w = walk_from(src, 0, t);
		for (ch = 0; ch < src->d; ch++) {
			walk_next(&w, x);
			for (i = 0; i < 4; i++)
				ST(k + (size_t)ch * CQK_T + t + 4 * i,
				   x[i] * walk_scales(src)[ch]);
		}
	}
	if (rope)
		tile_turn(k, rope);
}

static void load_half_values(const struct cqk_src *src, float *v, uint32_t dpad)
{
	uint32_t t, ch;

	for (t = 0; t < src->tokens; t++)
		for (ch = 0; src->live >> t & 1 && ch < src->d; ch += 8)
			halves8(src, t, ch, v + (size_t)t * dpad + ch);
}

/* Channel @ch of 16 tokens, @x, to the rows of tokens from @v on. */
INLINE void put_column(const vf *x, float scale, float *v, size_t dpad, uint32_t ch)
{
	int i, k;

	for (i = 0; i < 4; i++)
		for (k = 0; k < 4; k++)
			v[(4 * i + k) * dpad + ch] = x[i][k] * scale;
}

static void neon_load_v(const struct cqk_src *src, float *v, uint32_t dpad)
{
	uint32_t t, ch;
	struct walk w;
	vf x[4];

	if (src->cb && !cqk_has_planes(src->cb)) {
		cqk_tile_portable.load_v(src, v, dpad);
		return;
	}
	for (t = 0; t < src->tokens; t++)
		memset(v + (size_t)t * dpad, 0, dpad * sizeof(*v));
	if (!src->cb)
		load_half_values(src, v, dpad);
	for (t = 0; src->cb && t < CQK_T; t += LOOK) {
		w = walk_from(src, 0, t);
		for (ch = 0; ch < src->d; ch++) {
			walk_next(&w, x);
			put_column(x, walk_scales(src)[ch], v + (size_t)t * dpad, dpad, ch);
		}
	}
}

static const struct cqk_tile_ops tile_neon = {
	.few = neon_few,
	.load_k = neon_load_k,
	.load_v = neon_load_v,
	.scores = tile_scores,
	.softmax = tile_softmax,
	.accum = tile_accum,
};

static void neon_attention(const struct cqk_attn *a)
{
	cqk_attn_tiled(a, &tile_neon);
}

static const char *neon_path(const struct cqk_attn *a)
{
	const struct cqk_layer *layer = &a->model->layers[a->layer];
	const struct cqk_geom *g = &a->model->geom;

	return cqk_has_planes(&layer->k) && cqk_has_planes(&layer->v) &&
	       a->n_rows * (g->n_heads / g->n_kv_heads) <= FEW ? "transposed" : "tile";
}

/* Advanced SIMD is part of what Linux asks of such a processor. */
static bool neon_usable(void)
{
	return true;
}

const struct cqk_ops cqk_neon = {
	.name = "neon",
	.priority = 10,
	.usable = neon_usable,
	.encode = cqk_neon_encode,
	.decode = cqk_portable_decode,
	.scratch_bytes = cqk_head_bytes,
	.attention = neon_attention,
	.path = neon_path,
};
