/* SPDX-License-Identifier: MIT */
/*
 * Keys of the transposed path of attn_avx512.c, its only user: integer scores of
 * 64 tokens at a time, queries turned back and scaled to match. The including
 * file defines zi (a 512-bit integer) and includes tile.h.
 *
 * Ranges: a turned key is at most 127 * 128 * sqrt(2) in size; queries are
 * scaled so that 16 pairs of channels cannot overflow 32 bits, and such sums
 * are added up in float.
 */
#ifndef CQK_KEYS_AVX512_H
#define CQK_KEYS_AVX512_H

#define LANES CQK_LANES
#define BATCH 4			/* pages that share a scale of p */
#define PAIRS 128		/* pairs of channels, d <= 256 */
#define SUM_PAIRS 16		/* pairs summed in 32 bits */
#define KEY_UNIT 128.0f		/* a turned key is its centroid times this, */
#define PLAIN_UNIT 1.0f		/* where no key is turned */

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

#endif /* CQK_KEYS_AVX512_H */
