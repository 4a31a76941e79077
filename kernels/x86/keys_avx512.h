/* SPDX-License-Identifier: MIT */
/*
 * Keys of the transposed path of attn_avx512.c, its only user: integer scores of
 * 64 tokens at a time, queries turned back and scaled to match. The including
 * file includes tile.h.
 *
 * Ranges: a turned key is at most 127 * 128 * sqrt(2) in size; queries are
 * scaled so that 16 pairs of channels cannot overflow 32 bits, and such sums
 * are added up in float.
 */
#ifndef CQK_KEYS_AVX512_H
#define CQK_KEYS_AVX512_H

#include "kernels/x86/planes_avx512.h"
#include "kernels/x86/wide_avx512.h"

#define LANES CQK_LANES
#define BATCH 16		/* pages that share tables in L1 and a scale of p */
#define PAIRS 128		/* pairs of channels, d <= 256 */
#define SUM_PAIRS 16		/* pairs summed in 32 bits */
#define KEY_UNIT 128.0f		/* a turned key is its centroid times this, */
#define PLAIN_UNIT 1.0f		/* where no key is turned */
#define LUT_GROUPS 32		/* groups of keys that tables are made for */
/* Groups of 8 channels that SUM_PAIRS may touch: first and second ones, plain ones. */
#define TILE_FIRST 0
#define TILE_SECOND 3
#define TILE_PLAIN 6
#define TILE_GROUPS 11

/* Memory to be fetched. */
struct page_ahead {
	const uint8_t *at, *end;
};

/**
 * struct page_batch - state of one kv head in the transposed path
 * @h:      the driver's state
 * @k, @v:  codebooks, 8-bit
 * @k_plane, @v_plane: centroids of this head as look_up_of() has them
 * @nq:     vectors; @lanes: the next of 1, 2, 4, 8
 * @np:     pairs; @half: of them turned ones, before the others
 * @by_lut: scores come from tables (lut_avx512.h)
 * @n:      pages waiting
 * @after:  index of the block after the last page
 * @ahead, @n_ahead: what comes next; @fetched: of these
 * @ahead_step: lines that fetch_some() takes
 * @tables: tables of the next head are among these, or have been
 * @m, @l:  [lane] running maximum and sum
 * @unit:   [lane] score of one; @bias: what is added to it
 * @grow, @weight: [lane] factors of sums so far and of this batch
 * @vis:    [page][lane]
 * @turn:   [2][np] cos and sin of the page at hand; 1 and 0 for unturned pairs
 * @qa, @qb: [lane][np] first and second channel of each pair, scaled to integers
 * @s:      [page][lane][64] scores, in the order of score_seen()
 * @p:      [page][lane][2][64] probabilities, lower and upper bytes
 * @tile:   planes of codes of 10 bits: of a page's keys, from TILE_FIRST,
 *          TILE_SECOND and TILE_PLAIN on; or [page] of a group of values
 * @words:  what they are of (wide_join()): keys of this page and the next, or [page]
 * @exact:  scores come from floats (exact_avx512.h)
 * @by:     [2][np] then: what a centroid of either channel of a pair is times
 * @pair:   [page][lane][np] (qa, qb) turned back, as 16-bit halves of a word;
 *          one page serves all where nothing is turned
 * @q:      [page][lane][2][np] the same in floats, where @exact
 * @cs:     [half][4][64] cos and sin of the offset times the first channel's
 *          scale, the same for the second; scales over the larger of both
 * @keys:   pairs of keys that the first four lanes are done with
 * @lut:    [lane][group] products with centroids, lower and upper bytes
 * @o:      [d][lanes][16] partial sums of p v
 */
struct page_batch {
	struct cqk_head *h;
	const struct cqk_codebook *k, *v;
	const int8_t *k_plane, *v_plane;
	uint32_t nq, lanes, np, half, d, n, after;
	uint32_t n_ahead, fetched, ahead_step;
	struct page_ahead ahead[BATCH + 2];
	float m[LANES], l[LANES], unit[LANES], bias[LANES];
	bool by_lut, tables, exact;
	float grow[LANES], weight[LANES];
	uint64_t vis[BATCH][LANES];
	const uint8_t *k_codes[BATCH], *v_codes[BATCH];
	float turn[2][PAIRS] __attribute__((aligned(64)));
	float qa[LANES][PAIRS], qb[LANES][PAIRS], by[2][PAIRS];
	float s[BATCH][LANES][CQK_T];
	uint8_t p[BATCH][LANES][2][CQK_T];
	int8_t tile[BATCH][WIDE_CHANNELS][CQK_T];
	uint64_t words[2 * TILE_GROUPS][WIDE_WORDS];
	union {
		struct {
			int32_t pair[BATCH][LANES][PAIRS];
			int16_t cs[PAIRS][4][CQK_T];
			int32_t keys[SUM_PAIRS][4][16];
		};
		float q[BATCH][LANES][2][PAIRS];
		uint8_t lut[LANES][LUT_GROUPS][2][CQK_CENTROIDS];
	};
	float o[2 * PAIRS * LANES * 16];
};

INLINE float larger(float a, float b)
{
	return a > b ? a : b;
}

/* A few lines of what comes next. */
INLINE void fetch_some(struct page_batch *b)
{
	uint32_t i;

	for (i = 0; i < b->ahead_step && b->fetched < b->n_ahead; i++) {
		struct page_ahead *p = &b->ahead[b->fetched];

		__builtin_prefetch(p->at, 0, 3);
		p->at += 64;
		if (p->at >= p->end)
			b->fetched++;
	}
}

/* 16 bytes as floats. */
INLINE vf plane_floats(const int8_t *p)
{
	zi x = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));

	return __builtin_convertvector((vi)x, vf);
}

/* The low byte of each of 16 integers. */
INLINE void put_bytes(uint8_t *p, zi x)
{
	_mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtepi32_epi8(x));
}

/* Channels in order; codes are loaded once per group, or planes lie in a tile. */
struct walk {
	const uint8_t *codes;
	const int8_t *plane;
	struct codes64 now;
	uint32_t left, c;
};

INLINE void walk_load(struct walk *w)
{
	w->now = codes_load(w->codes);
	w->codes += CQK_T;
}

/* From channel @ch on; @wide: it is in the group of the tile from @tile on. */
INLINE struct walk walk_from(const bool wide, const struct page_batch *b,
			     const uint8_t *codes, uint32_t ch, uint32_t tile)
{
	struct walk w = { .c = b->k->code.channels };

	if (wide) {
		w.plane = b->tile[tile][ch % WIDE_CHANNELS];
		return w;
	}
	w.codes = codes + ch / w.c * CQK_T;
	w.plane = b->k_plane + (size_t)ch * CQK_CENTROIDS;
	w.left = w.c - ch % w.c;
	walk_load(&w);
	return w;
}

INLINE zi walk_next(const bool wide, struct walk *w)
{
	zi x;

	if (wide) {
		x = _mm512_loadu_si512(w->plane);
		w->plane += CQK_T;
		return x;
	}
	if (!w->left) {
		walk_load(w);
		w->left = w->c;
	}
	x = decode64(w->plane, w->now);
	w->plane += CQK_CENTROIDS;
	w->left--;
	return x;
}

/* acc += (x, y) . (q of x, q of y), 16 tokens per register */
INLINE void dot_pair(const int nq, vi acc[][4], const zi *w, const int32_t *pair)
{
	int r, i;

	for (r = 0; r < nq; r++) {
		zi q = _mm512_set1_epi32(pair[r * PAIRS]);

		for (i = 0; i < 4; i++)
			acc[r][i] = dot_words(acc[r][i], w[i], q);
	}
}

/* (x, y) side by side, as dot_pair() takes them. */
INLINE void side_by_side(const zi *x, const zi *y, zi *w)
{
	int i;

	for (i = 0; i < 2; i++) {
		w[2 * i] = _mm512_unpacklo_epi16(x[i], y[i]);
		w[2 * i + 1] = _mm512_unpackhi_epi16(x[i], y[i]);
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

/* One pair turned by each token's offset, scaled. */
INLINE void turn_pair(zi lo, zi hi, const int16_t (*cs)[CQK_T], zi *a, zi *b)
{
	zi l[2], h[2];
	int i;

	widen(lo, l);
	widen(hi, h);
	for (i = 0; i < 2; i++) {
		zi lc = _mm512_loadu_si512(cs[0] + 32 * i);
		zi ls = _mm512_loadu_si512(cs[1] + 32 * i);
		zi hc = _mm512_loadu_si512(cs[2] + 32 * i);
		zi hs = _mm512_loadu_si512(cs[3] + 32 * i);

		a[i] = _mm512_sub_epi16(_mm512_mulhrs_epi16(l[i], lc),
					_mm512_mulhrs_epi16(h[i], hs));
		b[i] = _mm512_add_epi16(_mm512_mulhrs_epi16(l[i], ls),
					_mm512_mulhrs_epi16(h[i], hc));
	}
}

/* s = acc as floats, or s += acc */
INLINE void spill(const int nq, vi acc[][4], const bool add, float (*s)[CQK_T])
{
	int r, i;

	for (r = 0; r < nq; r++)
		for (i = 0; i < 4; i++) {
			vf x = __builtin_convertvector(acc[r][i], vf);

			if (add)
				x += LD(&s[r][16 * i]);
			ST(&s[r][16 * i], x);
		}
}

INLINE void clear(const int nq, vi acc[][4])
{
	int r;

	for (r = 0; r < nq; r++)
		acc[r][0] = acc[r][1] = acc[r][2] = acc[r][3] = (vi){ 0 };
}

/* Keys of a pair, ready for dot_pair(), for all lanes but the first four. */
INLINE void keep_keys(struct page_batch *b, uint32_t i, const zi *w)
{
	int k;

	for (k = 0; k < 4; k++)
		_mm512_storeu_si512(b->keys[i % SUM_PAIRS][k], w[k]);
}

/*
 * Integer scores of one page for the first @nq lanes from pairs @from .. @to: few
 * enough for 32 bits, and for tables that stay in L1 for all pages waiting.
 */
INLINE void some_scores(const int nq, const bool wide, const bool turned,
			const bool keep, struct page_batch *b, uint32_t page, uint32_t from,
			uint32_t to)
{
	const int32_t *pair = b->pair[turned ? page : 0][0];
	const uint8_t *codes = b->k_codes[page];
	uint32_t turns = turned ? MIN(to, b->half) : 0, i = from;
	struct walk lo, hi;
	zi x[2], y[2], w[4];
	vi acc[4][4];

	clear(nq, acc);
	if (i < turns) {
		lo = walk_from(wide, b, codes, i, TILE_FIRST);
		hi = walk_from(wide, b, codes, b->half + i, TILE_SECOND);
	}
	for (; i < turns; i++) {
		zi first = walk_next(wide, &lo);

		turn_pair(first, walk_next(wide, &hi), b->cs[i], x, y);
		side_by_side(x, y, w);
		if (keep)
			keep_keys(b, i, w);
		dot_pair(nq, acc, w, pair + i);
	}
	if (i < to)
		lo = walk_from(wide, b, codes, 2 * i, TILE_PLAIN);
	for (; i < to; i++) {
		zi first = walk_next(wide, &lo);

		plain_pair(first, walk_next(wide, &lo), !turned, x, y);
		side_by_side(x, y, w);
		if (keep)
			keep_keys(b, i, w);
		dot_pair(nq, acc, w, pair + i);
	}
	if (from)
		spill(nq, acc, true, b->s[page]);
	else
		spill(nq, acc, false, b->s[page]);
}

/* The same for the other four lanes, from the keys kept. */
INLINE void kept_scores(const bool turned, struct page_batch *b, uint32_t page,
			uint32_t from, uint32_t to)
{
	const int32_t *pair = b->pair[turned ? page : 0][4];
	vi acc[4][4];
	uint32_t i;
	zi w[4];
	int k;

	clear(4, acc);
	for (i = from; i < to; i++) {
		for (k = 0; k < 4; k++)
			w[k] = _mm512_loadu_si512(b->keys[i % SUM_PAIRS][k]);
		dot_pair(4, acc, w, pair + i);
	}
	if (from)
		spill(4, acc, true, &b->s[page][4]);
	else
		spill(4, acc, false, &b->s[page][4]);
}

/* What a tile of keys has: @group in place @at of it. */
struct wide_slot {
	uint32_t group, at;
};

/* Channels @ch .. @end, from place @at on; returns the new number. */
static uint32_t wide_run(struct wide_slot *slots, uint32_t n, uint32_t ch, uint32_t end,
			 uint32_t at)
{
	uint32_t g;

	for (g = ch / WIDE_CHANNELS; ch < end && g * WIDE_CHANNELS < end; g++)
		slots[n++] = (struct wide_slot){ g, at++ };
	return n;
}

static void wide_keys_join(struct page_batch *b, uint32_t page,
			   const struct wide_slot *slots, uint32_t n)
{
	uint64_t (*words)[WIDE_WORDS] = b->words + page % 2 * TILE_GROUPS;
	uint32_t i;

	for (i = 0; page < b->n && i < n; i++)
		wide_join(b->k, b->k_codes[page], slots[i].group, words[i]);
}

/* The tile that pairs @from .. @to of a page need; pages come in order from 0 on. */
static void wide_keys(struct page_batch *b, uint32_t page, uint32_t from, uint32_t to)
{
	const uint64_t (*words)[WIDE_WORDS] = b->words + page % 2 * TILE_GROUPS;
	uint32_t turns = MIN(to, b->half), n = 0, i;
	struct wide_slot slots[TILE_GROUPS];

	n = wide_run(slots, n, from, turns, TILE_FIRST);
	n = wide_run(slots, n, b->half + from, b->half + turns, TILE_SECOND);
	n = wide_run(slots, n, 2 * MAX(from, turns), 2 * to, TILE_PLAIN);
	if (!page)
		wide_keys_join(b, page, slots, n);
	wide_keys_join(b, page + 1, slots, n);
	for (i = 0; i < n; i++)
		wide_planes(b->k_plane, slots[i].group, words[i], b->tile[slots[i].at]);
}

INLINE void batch_keys_as(const int lanes, const bool wide, const bool turned,
			  struct page_batch *b)
{
	uint32_t page, from, to;

	for (from = 0; from < b->np; from += SUM_PAIRS)
		for (page = 0; page < b->n; page++) {
			to = MIN(from + SUM_PAIRS, b->np);
			if (wide)
				wide_keys(b, page, from, to);
			some_scores(MIN(lanes, 4), wide, turned, lanes > 4, b, page,
				    from, to);
			if (lanes > 4)
				kept_scores(turned, b, page, from, to);
			fetch_some(b);
		}
}

#define KEYS_FN(name, lanes, wide, turned)					\
static void name##_##lanes(struct page_batch *b)				\
{										\
	batch_keys_as(lanes, wide, turned, b);					\
}
#define KEYS_FNS(lanes)								\
	KEYS_FN(keys_turned, lanes, false, true)				\
	KEYS_FN(keys_plain, lanes, false, false)				\
	KEYS_FN(keys_wide_turned, lanes, true, true)				\
	KEYS_FN(keys_wide_plain, lanes, true, false)
KEYS_FNS(1)
KEYS_FNS(2)
KEYS_FNS(4)
KEYS_FNS(8)

/* Functions for 1, 2, 4 and 8 lanes. */
#define BY_LANES(name) { name##_1, name##_2, name##_4, name##_8 }

/* Of such functions: by width of codes, by whether keys are turned. */
static void by_lanes(void (*const (*fns)[2][4])(struct page_batch *), struct page_batch *b)
{
	fns[wide_codes(b->k)][b->half > 0][__builtin_ctz(b->lanes)](b);
}

/* Scores of all pages waiting. */
static void batch_keys(struct page_batch *b)
{
	static void (*const fns[2][2][4])(struct page_batch *) = {
		{ BY_LANES(keys_plain), BY_LANES(keys_turned) },
		{ BY_LANES(keys_wide_plain), BY_LANES(keys_wide_turned) },
	};

	by_lanes(fns, b);
}

/* cos and sin of position @pos for all pairs: cqk_turn_init() with wider vectors. */
static void batch_turn(void *ctx, uint32_t pos)
{
	struct page_batch *b = ctx;
	const struct cqk_rope *rope = b->h->a->rope;
	uint32_t half = b->half, j = 0;
	const float *base, *in_page;

	if (!half)
		return;
	base = rope->base + pos / CQK_T * (size_t)(2 * half);
	in_page = rope->in_page + pos % CQK_T * (size_t)(2 * half);
	for (; j + VF <= half; j += VF) {
		vf bc = LD(base + j), bs = LD(base + half + j);
		vf tc = LD(in_page + j), ts = LD(in_page + half + j);

		ST(b->turn[0] + j, bc * tc - bs * ts);
		ST(b->turn[1] + j, bs * tc + bc * ts);
	}
	for (; j < half; j++) {
		b->turn[0][j] = base[j] * in_page[j] - base[half + j] * in_page[half + j];
		b->turn[1][j] = base[half + j] * in_page[j] + base[j] * in_page[half + j];
	}
}

/* The lane's query in the frame of the page at hand, as pairs of 16-bit integers. */
static void lane_pairs(struct page_batch *b, uint32_t lane)
{
	float (*exact)[PAIRS] = b->q[b->n][lane];
	int32_t *pair = b->pair[b->n][lane];
	uint32_t i;

	for (i = 0; i < b->np; i += VF) {
		vf c = LD(&b->turn[0][i]), s = LD(&b->turn[1][i]);
		vf x = LD(&b->qa[lane][i]), y = LD(&b->qb[lane][i]);
		vf lo = x * c + y * s, hi = y * c - x * s;

		if (b->exact) {
			ST(&exact[0][i], lo);
			ST(&exact[1][i], hi);
			continue;
		}
		*(vi *)(void *)&pair[i] = ((vi)_mm512_cvtps_epi32((__m512)lo) & 0xffff) |
					  (vi)_mm512_cvtps_epi32((__m512)hi) << 16;
	}
}

static void batch_lane(void *ctx, uint32_t lane)
{
	struct page_batch *b = ctx;

	if (b->half)
		lane_pairs(b, lane);
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
 * 32. Turning keeps the length of a pair, so one scale holds for all pages. True if
 * integers lose more than they may.
 */
static bool lane_scale(struct page_batch *b, uint32_t lane)
{
	float unit = b->half ? KEY_UNIT : PLAIN_UNIT;
	float most = 0.0f, worst = 0.0f, up;
	vf turned = (vf){ 0 };
	uint32_t i;

	_Static_assert(SUM_PAIRS == VF, "pairs of a sum are one vector");
	for (i = 0; i < b->np; i += VF) {
		vf x = LD(&b->qa[lane][i]), y = LD(&b->qb[lane][i]);
		vf square = x * x + y * y;
		vf size = (vf)_mm512_sqrt_ps((__m512)square);
		/* unturned among turned: twice KEY_UNIT, plain_pair() */
		float twice = b->half && i + VF > b->half ? 2.0f : 1.0f;

		most = larger(most, vf_top(size));
		worst = larger(worst, vf_sum(size) * twice);
		if (i < b->half)
			turned += square;
	}
	/* a pair of keys is at most 127 * unit * sqrt(2) long */
	up = larger(most / 32700.0f, worst * (127 * unit * 1.4143f / 2.1e9f));
	b->unit[lane] = up / unit;
	up = up > 0.0f ? 1.0f / up : 0.0f;
	for (i = 0; i < b->np; i += VF) {
		ST(&b->qa[lane][i], LD(&b->qa[lane][i]) * up);
		ST(&b->qb[lane][i], LD(&b->qb[lane][i]) * up);
	}
	/* the query, with keys a third of the largest; turned keys, each rounded twice */
	return cqk_coarse(b->unit[lane] * unit * (127.0f / 3.0f), b->d) ||
	       cqk_coarse(sqrtf(vf_sum(turned)) / KEY_UNIT, 2);
}

/* In-page rotation of pair @i with the scales of both channels. */
static void pair_table(struct page_batch *b, uint32_t i, float first, float second)
{
	const int16_t *in = b->h->a->rope->in_page_q14 + (size_t)i * 2 * CQK_T;
	int16_t q15_first = (int16_t)lrintf(first * 32767.0f);
	int16_t q15_second = (int16_t)lrintf(second * 32767.0f);
	zi by_first = _mm512_set1_epi16(q15_first);
	zi by_second = _mm512_set1_epi16(q15_second);
	uint32_t j;

	for (j = 0; j < 2 * CQK_T; j += 32) {
		zi x = _mm512_loadu_si512(in + j);
		int16_t *out = b->cs[i][0] + j;

		_mm512_storeu_si512(out, _mm512_mulhrs_epi16(x, by_first));
		_mm512_storeu_si512(out + 2 * CQK_T, _mm512_mulhrs_epi16(x, by_second));
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
		b->by[0][i] = b->by[1][i] = b->half ? 2 * KEY_UNIT : PLAIN_UNIT;
		if (i < b->half) {
			float first = s > 0.0f ? sx / s : 0.0f;
			float second = s > 0.0f ? sy / s : 0.0f;

			pair_table(b, i, first, second);
			b->by[0][i] = first * (KEY_UNIT * CQK_Q15_ONE);
			b->by[1][i] = second * (KEY_UNIT * CQK_Q15_ONE);
			s /= CQK_Q15_ONE;
		}
		for (lane = 0; lane < b->nq; lane++) {
			const float *q = b->h->q + (size_t)lane * b->h->dpad;

			b->qa[lane][i] = q[x] * (i < b->half ? s : sx * plain);
			b->qb[lane][i] = q[y] * (i < b->half ? s : sy * plain);
		}
	}
	for (lane = 0; lane < b->nq; lane++) {
		b->bias[lane] = 0.0f;
		b->exact |= lane_scale(b, lane);	/* one vector's need is all lanes' */
	}
	for (lane = 0; !b->half && lane < b->nq; lane++)
		lane_pairs(b, lane);
}

#endif /* CQK_KEYS_AVX512_H */
