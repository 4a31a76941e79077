// SPDX-License-Identifier: MIT
/*
 * Attention with AVX-512 (F, BW, VL, DQ, VBMI, VNNI).
 *
 * With 8-bit centroids and up to eight query vectors a page is decoded
 * transposed: the 64 codes of a group are one register, a channel's 256
 * centroids are four, so two byte permutes and a blend decode 64 tokens of a
 * channel, whatever the group size; nothing is gathered. Keys are turned by
 * their in-page offset in 16 bits with one table for all pages, and multiplied
 * with the query, turned back by the page's position, by vpdpwssd. Values
 * meet the probabilities of up to four pages in 16 bits, scaled to the largest
 * of them, and go on in float. All else takes the tile (tile.h, 64-byte
 * vectors) or the AVX2 path.
 *
 * Ranges: a turned key is at most 127 * 128 * sqrt(2) in size; queries are
 * scaled so that 16 pairs of channels cannot overflow 32 bits, and such sums
 * are added up in float.
 *
 * Tests compile this file a second time on SIMDe (CQK_SIMDE), which is how it
 * is checked on machines without AVX-512.
 */
#ifdef CQK_SIMDE	/* the test has included SIMDe */
typedef simde__m512i zi;
#define OPS_NAME "avx512-simde"
#define OPS cqk_avx512_simde
#define OPS_LINKAGE static
#else
#include <immintrin.h>
typedef __m512i zi;
#define OPS_NAME "avx512"
#define OPS cqk_avx512
#define OPS_LINKAGE
#endif
#define CQK_VB 64
#define CQK_MR 8
#include "kernels/tile.h"

#define LANES CQK_LANES
#define BATCH 4			/* pages that share a scale of p */
#define PAIRS 128		/* pairs of channels, d <= 256 */
#define SUM_PAIRS 16		/* pairs summed in 32 bits */
#define KEY_UNIT 128.0f		/* a turned key is its centroid times this, */
#define PLAIN_UNIT 1.0f		/* where no key is turned */
#define P_ONE 32766.0f		/* one more by rounding still fits */

/**
 * struct page_batch - state of one kv head in the transposed path
 * @h:      the driver's state
 * @k, @v:  codebooks, 8-bit
 * @k_plane, @v_plane: [d][256] of this head
 * @nq:     vectors; @np: pairs; @half: of them turned ones, before the others
 * @n:      pages waiting
 * @qa, @qb: [nq][np] first and second channel of each pair, scaled to integers
 * @turn:   [2][np] cos and sin of the page at hand; 1 and 0 for unturned pairs
 * @ratio:  [np][2] centroid scale of both channels over the larger, Q15
 * @pair:   [nq][np] (qa, qb) turned back, as 16-bit halves of a word
 * @unit:   [nq] score of one
 * @m, @l:  [nq] running maximum and sum
 * @vis:    [page][lane]
 * @s, @p:  [page][lane][64] scores, probabilities
 * @o:      [d][lanes][16] partial sums of p v
 */
struct page_batch {
	struct cqk_head *h;
	const struct cqk_codebook *k, *v;
	const int8_t *k_plane, *v_plane;
	uint32_t nq, lanes, np, half, d, n;
	float m[LANES], l[LANES], unit[LANES];
	float grow[LANES], weight[LANES];
	uint64_t vis[BATCH][LANES];
	const uint8_t *k_codes[BATCH], *v_codes[BATCH];
	int16_t ratio[PAIRS][2];
	float turn[2][PAIRS] __attribute__((aligned(64)));
	float qa[LANES][PAIRS], qb[LANES][PAIRS];
	int32_t pair[LANES][PAIRS];
	float s[BATCH][LANES][CQK_T];
	int16_t p[BATCH][LANES][CQK_T];
	float o[2 * PAIRS * LANES * 16];
};

/* Codes of one group so ordered that two unpacks give tokens in order. */
INLINE zi load_codes_k(const uint8_t *codes)
{
	const zi order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2,
					  13, 9, 5, 1, 12, 8, 4, 0);

	return _mm512_permutexvar_epi32(order, _mm512_loadu_si512(codes));
}

/* 64 tokens of one channel. */
INLINE zi decode64(const int8_t *plane, zi codes, __mmask64 upper)
{
	zi a = _mm512_permutex2var_epi8(_mm512_loadu_si512(plane), codes,
					_mm512_loadu_si512(plane + 64));
	zi b = _mm512_permutex2var_epi8(_mm512_loadu_si512(plane + 128), codes,
					_mm512_loadu_si512(plane + 192));

	return _mm512_mask_blend_epi8(upper, a, b);
}

/* Channels in order; codes are loaded once per group. */
struct walk {
	const uint8_t *codes;
	const int8_t *plane;
	zi now;
	__mmask64 upper;
	uint32_t left, c;
};

INLINE void walk_load(struct walk *w)
{
	w->now = load_codes_k(w->codes);
	w->upper = _mm512_movepi8_mask(w->now);
	w->codes += CQK_T;
}

INLINE struct walk walk_from(const struct page_batch *b, const uint8_t *codes,
			     uint32_t ch)
{
	struct walk w = { .c = b->k->code.channels };

	w.codes = codes + ch / w.c * CQK_T;
	w.plane = b->k_plane + (size_t)ch * CQK_CENTROIDS;
	w.left = w.c - ch % w.c;
	walk_load(&w);
	return w;
}

INLINE zi walk_next(struct walk *w)
{
	zi x;

	if (!w->left) {
		walk_load(w);
		w->left = w->c;
	}
	x = decode64(w->plane, w->now, w->upper);
	w->plane += CQK_CENTROIDS;
	w->left--;
	return x;
}

/* acc += (x, y) . (q of x, q of y), 16 tokens per register, in order */
INLINE void dot_pair(const int nq, zi acc[][4], const zi *x, const zi *y,
		     const int32_t *pair)
{
	zi w[4];
	int r, i;

	for (i = 0; i < 2; i++) {
		w[2 * i] = _mm512_unpacklo_epi16(x[i], y[i]);
		w[2 * i + 1] = _mm512_unpackhi_epi16(x[i], y[i]);
	}
	for (r = 0; r < nq; r++) {
		zi q = _mm512_set1_epi32(pair[r * PAIRS]);

		for (i = 0; i < 4; i++)
			acc[r][i] = _mm512_dpwssd_epi32(acc[r][i], w[i], q);
	}
}

/* Centroids in the upper byte of 16 bits: 256 times their value. */
INLINE void widen(zi x, zi *w)
{
	w[0] = _mm512_unpacklo_epi8(_mm512_setzero_si512(), x);
	w[1] = _mm512_unpackhi_epi8(_mm512_setzero_si512(), x);
}

/* A pair as it is: small keys where all are, else twice KEY_UNIT. */
INLINE void plain_pair(zi x, zi y, const bool small, zi *a, zi *b)
{
	int i;

	widen(x, a);
	widen(y, b);
	for (i = 0; small && i < 2; i++) {
		a[i] = _mm512_srai_epi16(a[i], 8);
		b[i] = _mm512_srai_epi16(b[i], 8);
	}
}

/* One pair turned by each token's offset. */
INLINE void turn_pair(zi lo, zi hi, const int16_t *ratio, const int16_t *cs,
		      zi *a, zi *b)
{
	zi r_lo = _mm512_set1_epi16(ratio[0]), r_hi = _mm512_set1_epi16(ratio[1]);
	zi l[2], h[2];
	int i;

	widen(lo, l);
	widen(hi, h);
	for (i = 0; i < 2; i++) {
		zi c = _mm512_loadu_si512(cs + 32 * i);
		zi s = _mm512_loadu_si512(cs + CQK_T + 32 * i);

		l[i] = _mm512_mulhrs_epi16(l[i], r_lo);
		h[i] = _mm512_mulhrs_epi16(h[i], r_hi);
		a[i] = _mm512_sub_epi16(_mm512_mulhrs_epi16(l[i], c),
					_mm512_mulhrs_epi16(h[i], s));
		b[i] = _mm512_add_epi16(_mm512_mulhrs_epi16(l[i], s),
					_mm512_mulhrs_epi16(h[i], c));
	}
}

/* s += acc as floats; acc = 0 */
INLINE void spill(const int nq, zi acc[][4], float (*s)[CQK_T])
{
	int r, i;

	for (r = 0; r < nq; r++)
		for (i = 0; i < 4; i++) {
			vf x = __builtin_convertvector((vi)acc[r][i], vf);

			ST(&s[r][16 * i], LD(&s[r][16 * i]) + x);
			acc[r][i] = _mm512_setzero_si512();
		}
}

/* Integer scores of one page for lanes @at .. @at + nq - 1. */
INLINE void page_scores(const int nq, const bool turned, struct page_batch *b,
			uint32_t page, uint32_t at)
{
	const int16_t *table = turned ? b->h->a->rope->in_page_q14 : NULL;
	float (*s)[CQK_T] = &b->s[page][at];
	struct walk lo = walk_from(b, b->k_codes[page], 0), hi = lo;
	zi acc[4][4], x[2], y[2];
	uint32_t i;
	int r;

	memset(s, 0, (size_t)nq * sizeof(*s));
	for (r = 0; r < nq; r++)
		acc[r][0] = acc[r][1] = acc[r][2] = acc[r][3] = _mm512_setzero_si512();
	if (turned)
		hi = walk_from(b, b->k_codes[page], b->half);
	for (i = 0; i < b->np; i++) {
		zi first;

		if (turned && i == b->half)
			lo = hi;
		first = walk_next(&lo);
		if (turned && i < b->half)
			turn_pair(first, walk_next(&hi), b->ratio[i],
				  table + (size_t)i * 2 * CQK_T, x, y);
		else
			plain_pair(first, walk_next(&lo), !turned, x, y);
		dot_pair(nq, acc, x, y, &b->pair[at][i]);
		if (i % SUM_PAIRS == SUM_PAIRS - 1)
			spill(nq, acc, s);
	}
	spill(nq, acc, s);
}

INLINE void page_keys_as(const bool turned, struct page_batch *b, uint32_t page)
{
	uint32_t at;

	if (b->lanes == 1)
		page_scores(1, turned, b, page, 0);
	else if (b->lanes == 2)
		page_scores(2, turned, b, page, 0);
	for (at = 0; b->lanes >= 4 && at < b->lanes; at += 4)
		page_scores(4, turned, b, page, at);
}

static void page_keys(struct page_batch *b, uint32_t page)
{
	if (b->half)
		page_keys_as(true, b, page);
	else
		page_keys_as(false, b, page);
}

/*
 * Values of one channel over all pages waiting: p v in 16 partial sums. @group
 * is where its codes start.
 */
INLINE void channel_values(const int nq, struct page_batch *b, uint32_t ch,
			   size_t group)
{
	const int8_t *plane = b->v_plane + (size_t)ch * CQK_CENTROIDS;
	float *o = b->o + (size_t)ch * nq * 16;
	zi acc[LANES];
	uint32_t page;
	int r;

	for (r = 0; r < nq; r++)
		acc[r] = _mm512_setzero_si512();
	for (page = 0; page < b->n; page++) {
		zi codes = _mm512_loadu_si512(b->v_codes[page] + group);
		zi v = decode64(plane, codes, _mm512_movepi8_mask(codes));
		zi v0 = _mm512_cvtepi8_epi16(_mm512_castsi512_si256(v));
		zi v1 = _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(v, 1));

		for (r = 0; r < nq; r++) {
			const int16_t *p = b->p[page][r];

			acc[r] = _mm512_dpwssd_epi32(acc[r], v0, _mm512_loadu_si512(p));
			acc[r] = _mm512_dpwssd_epi32(acc[r], v1,
						     _mm512_loadu_si512(p + 32));
		}
	}
	for (r = 0; r < nq; r++) {
		vf x = __builtin_convertvector((vi)acc[r], vf);

		ST(o + r * 16, LD(o + r * 16) * b->grow[r] + x * b->weight[r]);
	}
}

INLINE void all_values(const int nq, struct page_batch *b)
{
	uint32_t g, j, ch = 0, c = b->v->code.channels;

	for (g = 0; g < b->v->n_groups; g++)
		for (j = 0; j < c; j++)
			channel_values(nq, b, ch++, (size_t)g * CQK_T);
}

static void batch_values(struct page_batch *b)
{
	if (b->lanes == 1)
		all_values(1, b);
	else if (b->lanes == 2)
		all_values(2, b);
	else if (b->lanes == 4)
		all_values(4, b);
	else
		all_values(LANES, b);
}

/* Scores from integers to what softmax takes; returns their maximum. */
static float lane_top(struct page_batch *b, uint32_t page, uint32_t lane)
{
	float *s = b->s[page][lane];
	int i;

	for (i = 0; i < CQK_T; i += VF)
		ST(s + i, LD(s + i) * b->unit[lane]);
	return softmax_top(s, b->vis[page][lane], b->h->a->soft_cap);
}

/*
 * p = e^(s - top), as 16-bit fractions; sums of both. What rounding takes from
 * a token goes to the next one of its place (@carry): thousands of tokens that
 * are each below half a unit would otherwise vanish beside one large one.
 */
static void lane_exp(struct page_batch *b, uint32_t page, uint32_t lane, float top,
		     vf *carry, float *sum, float *sum_p)
{
	const float *s = b->s[page][lane];
	vf exact = (vf){ 0 }, rounded = (vf){ 0 };
	int i;

	for (i = 0; i < CQK_T; i += VF) {
		vi seen = vi_mask(b->vis[page][lane] >> i);
		vf p = (vf)((vi)vf_exp(LD(s + i) - top) & seen);
		vf want = p * P_ONE + *carry, got;
		vi n = (vi)_mm512_cvtps_epi32(want) & seen;

		got = __builtin_convertvector(n, vf);
		*carry = want - got;
		exact += p;
		rounded += got;
		_mm256_storeu_si256((__m256i *)(void *)&b->p[page][lane][i],
				    _mm512_cvtepi32_epi16((zi)n));
	}
	*sum += vf_sum(exact);
	*sum_p += vf_sum(rounded);
}

/* One lane of the batch; the values get the exact mass of p. */
static void lane_softmax(struct page_batch *b, uint32_t lane)
{
	float top = -INFINITY, sum = 0.0f, sum_p = 0.0f, m;
	vf carry = (vf){ 0 };
	uint32_t page;

	for (page = 0; page < b->n; page++)
		top = fmaxf(top, lane_top(b, page, lane));
	b->grow[lane] = 1.0f;
	b->weight[lane] = 0.0f;
	if (!(top > -INFINITY)) {
		for (page = 0; page < b->n; page++)
			memset(b->p[page][lane], 0, sizeof(b->p[page][lane]));
		return;
	}
	for (page = 0; page < b->n; page++)
		lane_exp(b, page, lane, top, &carry, &sum, &sum_p);
	m = fmaxf(b->m[lane], top);
	b->grow[lane] = expf(b->m[lane] - m);
	b->weight[lane] = expf(top - m) * sum / sum_p;
	b->l[lane] = b->l[lane] * b->grow[lane] + expf(top - m) * sum;
	b->m[lane] = m;
}

static void batch_flush(struct page_batch *b)
{
	uint32_t lane;

	if (!b->n)
		return;
	for (lane = 0; lane < b->lanes; lane++)
		lane_softmax(b, lane);
	batch_values(b);
	b->n = 0;
}

/* cos and sin of position @pos for all pairs. */
static void batch_turn(void *ctx, uint32_t pos)
{
	struct page_batch *b = ctx;
	const struct cqk_rope *rope = b->h->a->rope;
	float tmp[2 * PAIRS];

	if (!b->half)
		return;
	cqk_turn_init(rope, pos, tmp);
	memcpy(b->turn[0], tmp, b->half * sizeof(float));
	memcpy(b->turn[1], tmp + b->half, b->half * sizeof(float));
}

/* The lane's query in the frame of a page, as pairs of 16-bit integers. */
static void lane_query(void *ctx, uint32_t lane)
{
	struct page_batch *b = ctx;
	uint32_t i;

	for (i = 0; i < b->np; i += VF) {
		vf c = LD(&b->turn[0][i]), s = LD(&b->turn[1][i]);
		vf x = LD(&b->qa[lane][i]), y = LD(&b->qb[lane][i]);
		zi lo = _mm512_cvtps_epi32(x * c + y * s);
		zi hi = _mm512_cvtps_epi32(y * c - x * s);
		vi w = ((vi)lo & 0xffff) | ((vi)hi << 16);

		*(vi *)(void *)&b->pair[lane][i] = w;
	}
}

/* A page with the lanes that see something of it. */
static void batch_add(void *ctx, const struct cqk_block *blk, const uint64_t *vis)
{
	struct page_batch *b = ctx;
	const struct cqk_attn *a = b->h->a;
	uint32_t head = b->h->head;

	memcpy(b->vis[b->n], vis, sizeof(b->vis[b->n]));
	b->k_codes[b->n] = cqk_block_src(a, blk, head, false, ~0ull).data;
	b->v_codes[b->n] = cqk_block_src(a, blk, head, true, ~0ull).data;
	page_keys(b, b->n);
	if (++b->n == BATCH)
		batch_flush(b);
}

static const struct cqk_page_ops page_ops = {
	.turn = batch_turn,
	.lane = lane_query,
	.page = batch_add,
};

static float larger(float a, float b)
{
	return a > b ? a : b;
}

/* Channels of pair @i and the scale their integers share. */
static void pair_of(const struct page_batch *b, uint32_t i, uint32_t *first,
		    uint32_t *second)
{
	*first = i < b->half ? i : 2 * i;
	*second = i < b->half ? b->half + i : 2 * i + 1;
}

/*
 * Scale a lane's query: no channel beyond 16 bits, no sum of SUM_PAIRS beyond
 * 32. Turning keeps the length of a pair, so one scale holds for all pages.
 */
static void lane_scale(struct page_batch *b, uint32_t lane)
{
	float unit = b->half ? KEY_UNIT : PLAIN_UNIT;
	float most = 0.0f, sum = 0.0f, worst = 0.0f, up;
	uint32_t i;

	for (i = 0; i < b->np; i++) {
		float x = b->qa[lane][i], y = b->qb[lane][i];
		float size = sqrtf(x * x + y * y);

		if (i % SUM_PAIRS == 0)
			sum = 0.0f;
		/* unturned among turned: twice KEY_UNIT, plain_pair() */
		sum += b->half && i >= b->half ? 2 * size : size;
		most = larger(most, size);
		worst = larger(worst, sum);
	}
	/* a pair of keys is at most 127 * unit * sqrt(2) long */
	up = larger(most / 32700.0f, worst * (127 * unit * 1.4143f / 2.1e9f));
	b->unit[lane] = up / unit;
	up = up > 0.0f ? 1.0f / up : 0.0f;
	for (i = 0; i < b->np; i++) {
		b->qa[lane][i] *= up;
		b->qb[lane][i] *= up;
	}
}

static void batch_queries(struct page_batch *b)
{
	const float *scale = b->k->scale + (size_t)b->h->head * b->d;
	float plain = b->half ? 0.5f : 1.0f;	/* plain_pair() */
	uint32_t i, lane, x, y;

	for (i = 0; i < b->np; i++) {
		float sx, sy, s;

		pair_of(b, i, &x, &y);
		sx = scale[x];
		sy = scale[y];
		s = larger(fabsf(sx), fabsf(sy));
		b->ratio[i][0] = (int16_t)(s > 0.0f ? lrintf(sx / s * 32767.0f) : 0);
		b->ratio[i][1] = (int16_t)(s > 0.0f ? lrintf(sy / s * 32767.0f) : 0);
		for (lane = 0; lane < b->nq; lane++) {
			const float *q = b->h->q + (size_t)lane * b->h->dpad;

			b->qa[lane][i] = q[x] * (i < b->half ? s : sx * plain);
			b->qb[lane][i] = q[y] * (i < b->half ? s : sy * plain);
		}
	}
	for (lane = 0; lane < b->nq; lane++)
		lane_scale(b, lane);
}

static struct page_batch *batch_begin(struct cqk_head *h)
{
	const struct cqk_layer *layer = &h->a->model->layers[h->a->layer];
	uint32_t d = h->a->model->geom.head_dim, i;
	size_t plane = (size_t)h->head * d * CQK_CENTROIDS;
	struct page_batch *b = h->extra;

	memset(b, 0, offsetof(struct page_batch, s));
	b->h = h;
	b->k = &layer->k;
	b->v = &layer->v;
	b->k_plane = layer->k.i8 + plane;
	b->v_plane = layer->v.i8 + plane;
	b->nq = h->nq;
	b->lanes = h->nq > 4 ? 8 : h->nq > 2 ? 4 : h->nq;
	b->d = d;
	b->half = cqk_turns_keys(h->a) ? h->a->rope->half : 0;
	b->np = d / 2;
	for (i = 0; i < PAIRS; i++)
		b->turn[0][i] = 1.0f;
	for (i = 0; i < LANES; i++)
		b->m[i] = -INFINITY;
	memset(b->o, 0, (size_t)d * b->lanes * 16 * sizeof(float));
	batch_queries(b);
	for (i = 0; i < b->nq; i++)
		lane_query(b, i);
	return b;
}

/* Merge into the driver's state. */
static void batch_end(struct page_batch *b)
{
	const float *scale = b->v->scale + (size_t)b->h->head * b->d;
	struct cqk_head *h = b->h;
	uint32_t lane, ch;

	batch_flush(b);
	for (lane = 0; lane < b->nq; lane++) {
		float *o = h->o + (size_t)lane * h->dpad;
		float m = fmaxf(h->m[lane], b->m[lane]), old, own;

		if (!(b->m[lane] > -INFINITY))
			continue;
		old = expf(h->m[lane] - m);
		own = expf(b->m[lane] - m);
		for (ch = 0; ch < b->d; ch++)
			o[ch] = o[ch] * old + own * scale[ch] *
				vf_sum(LD(b->o + ((size_t)ch * b->lanes + lane) * 16));
		h->l[lane] = h->l[lane] * old + b->l[lane] * own;
		h->m[lane] = m;
	}
}

static bool avx512_few(struct cqk_chunk *c, const struct cqk_src *k,
		       const struct cqk_src *v, const struct cqk_rope *rope)
{
	return cqk_tile_avx2.few(c, k, v, rope);
}

static void avx512_load_k(const struct cqk_src *src, const struct cqk_rope *rope,
			  float *k, float *tmp)
{
	cqk_tile_avx2.load_k(src, NULL, k, tmp);
	if (rope)
		tile_turn(k, rope);
}

static void avx512_load_v(const struct cqk_src *src, float *v, uint32_t dpad)
{
	cqk_tile_avx2.load_v(src, v, dpad);
}

static const struct cqk_tile_ops tile_avx512 = {
	.few = avx512_few,
	.load_k = avx512_load_k,
	.load_v = avx512_load_v,
	.scores = tile_scores,
	.softmax = tile_softmax,
	.accum = tile_accum,
};

static bool has_planes(const struct cqk_codebook *cb)
{
	return cb->code.type == CQ_CODE_CQ && cb->i8 && cb->scale;
}

/* The transposed path takes the coded pages of this call. */
static bool transposed(const struct cqk_attn *a)
{
	const struct cqk_layer *layer = &a->model->layers[a->layer];
	const struct cqk_geom *g = &a->model->geom;

	return has_planes(&layer->k) && has_planes(&layer->v) &&
	       g->head_dim % 2 == 0 && g->head_dim <= 2 * PAIRS &&
	       (size_t)a->n_rows * (g->n_heads / g->n_kv_heads) <= LANES;
}

static void avx512_head(const struct cqk_attn *a, uint32_t head)
{
	struct cqk_head *h = cqk_head_begin(a, head);
	struct page_batch *b = batch_begin(h);
	uint32_t i;

	for (i = 0; i < a->n_blocks; i++) {
		if (a->blocks[i].kind == CQK_BLOCK_CODES)
			cqk_head_page(h, &a->blocks[i], &page_ops, b);
		else
			cqk_head_block(h, &a->blocks[i], &tile_avx512);
	}
	batch_end(b);
	cqk_head_end(h);
}

static void avx512_attention(const struct cqk_attn *a)
{
	uint32_t head;

	if (!a->n_rows || !transposed(a)) {
		cqk_attn_tiled(a, &tile_avx512);
		return;
	}
	for (head = a->head_begin; head < a->head_end; head++)
		avx512_head(a, head);
}

static size_t avx512_scratch_bytes(const struct cqk_model *model, uint32_t n_rows)
{
	/* Scratch for many rows serves calls of few rows too, which use batches. */
	return cqk_head_bytes(model, n_rows) + ALIGN_UP(sizeof(struct page_batch), 64);
}

#ifdef CQK_SIMDE
static bool avx512_usable(void)
{
	return cqk_cpu_has_avx2();
}
#else
static bool avx512_usable(void)
{
	return cqk_cpu_has_avx512();
}
#endif

OPS_LINKAGE const struct cqk_ops OPS = {
	.name = OPS_NAME,
	.priority = 20,
	.usable = avx512_usable,
	.encode = cqk_avx2_encode,
	.decode = cqk_avx2_decode,
	.scratch_bytes = avx512_scratch_bytes,
	.attention = avx512_attention,
};
