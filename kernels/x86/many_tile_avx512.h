/* SPDX-License-Identifier: MIT */
/*
 * Tiles of many_avx512.c, its only user: a page decoded to 16-bit integers, two
 * to a word as vpdpwssd takes them, and queries to match.
 *
 * Keys are turned to their absolute position, so that queries stay as they are
 * for all pages: once by their offset in the page, with the model's table, once
 * by the page's position. A turned key is at most 127 * MANY_UNIT * sqrt(2) in
 * size; queries are scaled so that MANY_SUM pairs of channels cannot overflow 32
 * bits. Without turning keys are the 8-bit centroids themselves, no sum of 256
 * channels can overflow, and the scale of a centroid is in the query.
 */
#ifndef CQK_MANY_TILE_AVX512_H
#define CQK_MANY_TILE_AVX512_H

#include "kernels/x86/planes_avx512.h"
#include "kernels/x86/wide_avx512.h"

#define MANY_PAIRS 128		/* pairs of channels, d <= 256 */
#define MANY_CHUNK 64		/* vectors that meet a tile together */
#define MANY_SUM 32		/* pairs of turned channels summed in 32 bits */
#define MANY_UNIT 128.0f	/* a turned key is its centroid times this */
#define MANY_ONE 32767.0f	/* a cosine of 1, a ratio of 1 */

/**
 * struct many_chunk - state of 64 query vectors, one per lane
 * @m:    what sums are scaled to, near the running maxima, in units of log 2
 * @l:    running sums
 * @unit: score of one
 * @q:    [np][64] pairs of channels, 16 bits each
 * @f:    [d][64] the same as floats, in units of log 2 unless scores are capped
 * @o:    [d, a multiple of 16][64] sums of p v
 */
struct many_chunk {
	float m[MANY_CHUNK], l[MANY_CHUNK], unit[MANY_CHUNK];
	int32_t *q;
	float *f;
	float *o;
};

/**
 * struct many - state of one kv head
 * @h:      the driver's state
 * @ops:    decodes tiles of floats, into @h->chunk
 * @k, @v:  codebooks
 * @coarse: a query's integers lose more than they may: all is done in floats
 * @src_k, @src_v: the block at hand; @ints: both have 8-bit centroids, not @coarse
 * @tokens: of the block
 * @d, @np: channels, pairs; @half: of them turned ones, before the others
 * @chunks: [n_chunks]
 * @vis:    [n_chunks][64] tokens of the page at hand each vector sees
 * @first, @last: vectors with something in @vis; none if @first >= @last
 * @k_pos:  position @key is turned to
 * @has_raw, @has_k, @has_v: @raw, @key, @value are of the page at hand
 * @ratio:  [np][2] centroid scale of both channels over the larger, Q15
 * @turn:   [2][half] cos and sin of @k_pos
 * @v_scale: [d] scales of 8-bit values, zeros beyond
 * @raw:    [d][64] centroids of a page
 * @words:  [group] codes of 10 bits at hand (wide_join())
 * @key:    [4][np][16] pairs of channels; token 16 l + 4 w + i is word 4 l + i of w
 * @value:  [d, a multiple of 16][32] pairs of tokens of a channel
 * @s:      [64][64] scores of a token's lanes
 * @p:      [32][64] probabilities of a pair of tokens
 * @top, @grow, @weight: [64] of the page: maximum, factors on old and new sums
 */
struct many {
	struct cqk_head *h;
	const struct cqk_tile_ops *ops;
	const struct cqk_codebook *k, *v;
	struct cqk_src src_k, src_v;
	uint32_t tokens;
	bool ints, coarse;
	uint32_t d, np, half, n_chunks;
	struct many_chunk *chunks;
	uint64_t *vis;
	uint32_t first, last;
	uint32_t k_pos;
	bool has_raw, has_k, has_v;
	int16_t ratio[MANY_PAIRS][2];
	float turn[2 * MANY_PAIRS], v_scale[2 * MANY_PAIRS + 16];
	float top[MANY_CHUNK], grow[MANY_CHUNK], weight[MANY_CHUNK];
	int8_t raw[2 * MANY_PAIRS][CQK_T] __attribute__((aligned(64)));
	uint64_t words[2 * MANY_PAIRS / WIDE_CHANNELS][WIDE_WORDS];
	int32_t key[4][MANY_PAIRS][16];
	int32_t value[2 * MANY_PAIRS][CQK_T / 2];
	float s[CQK_T][MANY_CHUNK];
	int32_t p[CQK_T / 2][MANY_CHUNK];
};

INLINE void many_store(void *p, zi x)
{
	*(vi *)p = (vi)x;
}

/* Codes of 10 bits of a block. */
static void many_join(struct many *x, const struct cqk_codebook *cb, const uint8_t *codes)
{
	uint32_t g;

	for (g = 0; g < cb->n_groups; g++)
		wide_join(cb, codes, g, x->words[g]);
}

/* Centroids of all channels. */
static void many_load_raw(struct many *x)
{
	const int8_t *plane = look_up_of(x->k, x->h->head);
	const uint8_t *codes = x->src_k.data;
	uint32_t g, j, ch = 0;

	if (wide_codes(x->k)) {
		many_join(x, x->k, codes);
		for (g = 0; g < x->k->n_groups; g++)
			wide_planes(plane, g, x->words[g], x->raw + (size_t)g * WIDE_CHANNELS);
		return;
	}
	for (g = 0; g < x->k->n_groups; g++, codes += CQK_T) {
		struct codes64 now = codes_load(codes);

		for (j = 0; j < x->k->code.channels; j++, plane += CQK_CENTROIDS)
			many_store(x->raw[ch++], decode64(plane, now));
	}
}

/* Channels of pair @i. */
static void many_pair(const struct many *x, uint32_t i, uint32_t *a, uint32_t *b)
{
	*a = i < x->half ? i : 2 * i;
	*b = i < x->half ? x->half + i : 2 * i + 1;
}

/* Centroids in the upper byte of 16 bits: 256 times their value. */
INLINE void many_widen(const int8_t *raw, zi *w)
{
	zi x = _mm512_loadu_si512(raw);

	w[0] = _mm512_unpacklo_epi8(_mm512_setzero_si512(), x);
	w[1] = _mm512_unpackhi_epi8(_mm512_setzero_si512(), x);
}

/* (a, b) turned by angles with cosines @c and sines @s. */
INLINE void many_rotate(zi *a, zi *b, zi c, zi s)
{
	zi x = *a, y = *b;

	*a = _mm512_sub_epi16(_mm512_mulhrs_epi16(x, c), _mm512_mulhrs_epi16(y, s));
	*b = _mm512_add_epi16(_mm512_mulhrs_epi16(x, s), _mm512_mulhrs_epi16(y, c));
}

/* One pair, turned by each token's offset and by the page's position. */
INLINE void many_turn_pair(const struct many *x, uint32_t i, zi *a, zi *b)
{
	const int16_t *cs = x->h->a->rope->in_page_q14 + (size_t)i * 2 * CQK_T;
	zi ra = _mm512_set1_epi16(x->ratio[i][0]), rb = _mm512_set1_epi16(x->ratio[i][1]);
	zi c = _mm512_set1_epi16((int16_t)lrintf(x->turn[i] * MANY_ONE));
	zi s = _mm512_set1_epi16((int16_t)lrintf(x->turn[x->half + i] * MANY_ONE));
	int k;

	for (k = 0; k < 2; k++) {
		a[k] = _mm512_mulhrs_epi16(a[k], ra);
		b[k] = _mm512_mulhrs_epi16(b[k], rb);
		many_rotate(&a[k], &b[k], _mm512_loadu_si512(cs + 32 * k),
			    _mm512_loadu_si512(cs + CQK_T + 32 * k));
		many_rotate(&a[k], &b[k], c, s);
	}
}

/* The keys' tile: of @x->raw, turned to @x->k_pos. */
static void many_load_keys(struct many *x)
{
	const int plain = x->half ? 1 : 8;	/* 256 to MANY_UNIT, or to 1 */
	uint32_t i, ca, cb;
	zi a[2], b[2];
	int k;

	for (i = 0; i < x->np; i++) {
		many_pair(x, i, &ca, &cb);
		many_widen(x->raw[ca], a);
		many_widen(x->raw[cb], b);
		if (i < x->half)
			many_turn_pair(x, i, a, b);
		for (k = 0; k < 2; k++) {
			if (i >= x->half) {
				a[k] = _mm512_srai_epi16(a[k], plain);
				b[k] = _mm512_srai_epi16(b[k], plain);
			}
			many_store(x->key[2 * k][i], _mm512_unpacklo_epi16(a[k], b[k]));
			many_store(x->key[2 * k + 1][i],
				   _mm512_unpackhi_epi16(a[k], b[k]));
		}
	}
}

/* cos and sin of the block's position. */
static void many_load_turn(struct many *x, uint32_t pos)
{
	cqk_turn_init(x->h->a->rope, pos, x->turn);
	x->k_pos = pos;
}

/* The values' tile: 64 tokens in order are 32 pairs as they come. */
static void many_load_values(struct many *x)
{
	const int8_t *plane = look_up_of(x->v, x->h->head);
	const uint8_t *codes = x->src_v.data;
	const bool wide = wide_codes(x->v);
	int8_t tile[WIDE_CHANNELS][CQK_T];
	uint32_t g, j, ch = 0;

	if (wide)
		many_join(x, x->v, codes);
	for (g = 0; g < x->v->n_groups; g++, codes += CQK_T) {
		struct codes64 now = codes_load(codes);

		if (wide)
			wide_planes(plane, g, x->words[g], tile);
		for (j = 0; j < x->v->code.channels; j++, ch++) {
			zi v = wide ? _mm512_loadu_si512(tile[j]) :
				      decode64(plane + (size_t)ch * CQK_CENTROIDS, now);

			many_store(x->value[ch],
				_mm512_cvtepi8_epi16(_mm512_castsi512_si256(v)));
			many_store(x->value[ch] + 16,
				_mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(v, 1)));
		}
	}
}

static float many_larger(float a, float b)
{
	return a > b ? a : b;
}

/* Both channels of all pairs, zeros beyond the last. */
struct many_pairs {
	float a[MANY_PAIRS], b[MANY_PAIRS];
};

/* Factors on the query, and the ratios left to keys. */
static void many_scales(struct many *x, struct many_pairs *by)
{
	const float *scale = x->k->scale + (size_t)x->h->head * x->d;
	uint32_t i, ca, cb;

	for (i = 0; i < x->np; i++) {
		float s;

		many_pair(x, i, &ca, &cb);
		by->a[i] = scale[ca];
		by->b[i] = scale[cb];
		if (i >= x->half)
			continue;
		s = many_larger(fabsf(scale[ca]), fabsf(scale[cb]));
		x->ratio[i][0] = (int16_t)(s > 0.0f ? lrintf(scale[ca] / s * MANY_ONE) : 0);
		x->ratio[i][1] = (int16_t)(s > 0.0f ? lrintf(scale[cb] / s * MANY_ONE) : 0);
		/* two tables on the way: the ratio's, the position's */
		by->a[i] = by->b[i] = s / (CQK_Q15_ONE * CQK_Q15_ONE);
	}
}

/*
 * Turned keys are rounded twice per channel for each of two turns, the first of
 * which, and the ratio before it, leave less: do scores of @q lose too much by it?
 */
static bool many_coarse_keys(const struct many *x, const struct many_pairs *q)
{
	float sum = 0.0f;
	uint32_t i;

	for (i = 0; i < x->half; i++)
		sum += q->a[i] * q->a[i] + q->b[i] * q->b[i];
	return cqk_coarse(sqrtf(sum) / MANY_UNIT, 4);
}

/* Units of a query: no channel beyond 16 bits, no sum of MANY_SUM pairs beyond 32. */
static float many_query_unit(const struct many *x, const struct many_pairs *q)
{
	const float reach = x->half ? 127 * MANY_UNIT * 1.4143f / 2.1e9f : 0.0f;
	vf most = (vf){ 0 };
	float worst = 0.0f;
	uint32_t i, k;

	for (i = 0; i < x->np; i += MANY_SUM) {
		vf sum = (vf){ 0 };

		for (k = i; k < i + MANY_SUM; k += VF) {
			vf a = LD(q->a + k), b = LD(q->b + k);
			vf size = (vf)_mm512_sqrt_ps((zf)(a * a + b * b));

			sum += size;
			most = vf_max(size, most);
		}
		worst = many_larger(worst, vf_sum(sum));
	}
	return many_larger(vf_top(most) / 32700.0f, worst * reach);
}

/* Vector @v of the call, each pair of channels times @by. */
static void many_get_query(const struct many *x, uint32_t v,
			   const struct many_pairs *by, struct many_pairs *out)
{
	const float *q = x->h->q + (size_t)v * x->h->dpad;
	uint32_t i;

	memset(out, 0, sizeof(*out));
	for (i = 0; i < x->half; i++) {
		out->a[i] = q[i] * by->a[i];
		out->b[i] = q[x->half + i] * by->b[i];
	}
	for (; i < x->np; i++) {
		out->a[i] = q[2 * i] * by->a[i];
		out->b[i] = q[2 * i + 1] * by->b[i];
	}
}

/* Vector @v of the call into its lane, @log2e times. */
static void many_load_query(struct many *x, uint32_t v, const struct many_pairs *by,
			    float log2e)
{
	struct many_chunk *c = &x->chunks[v / MANY_CHUNK];
	uint32_t lane = v % MANY_CHUNK, i, k;
	struct many_pairs q;
	int32_t words[VF];
	float up;

	many_get_query(x, v, by, &q);
	up = many_query_unit(x, &q);
	x->coarse |= cqk_coarse(up * (127.0f / 3.0f), x->d) ||	/* a third of the largest key */
		     many_coarse_keys(x, &q);
	c->unit[lane] = (x->half ? up / MANY_UNIT : up) * log2e;
	up = up > 0.0f ? 1.0f / up : 0.0f;
	for (i = 0; i < x->np; i += VF) {
		zi lo = _mm512_cvtps_epi32((zf)(LD(q.a + i) * up));
		zi hi = _mm512_cvtps_epi32((zf)(LD(q.b + i) * up));

		many_store(words, (zi)(((vi)lo & 0xffff) | ((vi)hi << 16)));
		for (k = i; k < MIN(i + VF, x->np); k++)
			c->q[k * MANY_CHUNK + lane] = words[k - i];
	}
}

static void many_load_float_query(struct many *x, uint32_t v, float log2e)
{
	float *f = x->chunks[v / MANY_CHUNK].f + v % MANY_CHUNK;
	const float *q = x->h->q + (size_t)v * x->h->dpad;
	uint32_t ch;

	for (ch = 0; ch < x->d; ch++)
		f[(size_t)ch * MANY_CHUNK] = q[ch] * log2e;
}

/* The tiles that are not of the block at hand yet. */
static void many_load_ints(struct many *x)
{
	if (!x->has_raw)
		many_load_raw(x);
	if (!x->has_k)
		many_load_keys(x);
	if (!x->has_v)
		many_load_values(x);
	x->has_raw = x->has_k = x->has_v = true;
}

/* Keys that are turned by their offset, turned by the block's position. */
static void many_turn_floats(struct many *x)
{
	uint32_t i, t;

	for (i = 0; i < x->half; i++) {
		float *a = x->h->chunk.k + (size_t)i * CQK_T;
		float *b = a + (size_t)x->half * CQK_T;
		float c = x->turn[i], s = x->turn[x->half + i];

		for (t = 0; t < CQK_T; t += VF) {
			vf lo = LD(a + t), hi = LD(b + t);

			ST(a + t, lo * c - hi * s);
			ST(b + t, lo * s + hi * c);
		}
	}
}

static void many_load_floats(struct many *x)
{
	const struct cqk_rope *rope = x->half ? x->h->a->rope : NULL;
	struct cqk_chunk *c = &x->h->chunk;

	if (!x->has_k) {
		/* values have no use for their room yet, or are loaded again */
		x->ops->load_k(&x->src_k, rope, c->k, c->v);
		many_turn_floats(x);
		x->has_v = false;
	}
	if (!x->has_v)
		x->ops->load_v(&x->src_v, c->v, x->h->dpad);
	x->has_k = x->has_v = true;
}

#endif /* CQK_MANY_TILE_AVX512_H */
