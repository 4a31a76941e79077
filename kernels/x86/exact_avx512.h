/* SPDX-License-Identifier: MIT */
/*
 * Scores in floats, part of attn_avx512.c: for queries whose scores integers would
 * make too coarse (lane_scale()). The walk over pages and pairs of channels is that
 * of keys_avx512.h; a centroid of 8 bits is exact in a float, and so is what is
 * left to round: nothing but sums.
 */
#ifndef CQK_EXACT_AVX512_H
#define CQK_EXACT_AVX512_H

#include "kernels/x86/keys_avx512.h"
#include "kernels/x86/sum_avx512.h"

#define EXACT_LANES 4u		/* vectors whose sums stay in registers */

/* acc[lane][16 tokens] += keys of pair @i, @x and @y, times the queries from @q on. */
INLINE void exact_pair(const int nq, const bool turned, const struct page_batch *b,
		       uint32_t i, zi x, zi y, const float (*q)[2][PAIRS], vf acc[][4])
{
	const float *cs = turned ? b->h->a->rope->in_page_t + (size_t)i * 2 * CQK_T : NULL;
	int8_t first[CQK_T], second[CQK_T];
	int r, k;

	_mm512_storeu_si512(first, x);
	_mm512_storeu_si512(second, y);
	for (k = 0; k < 4; k++) {
		vf lo = plane_floats(first + 16 * k) * b->by[0][i];
		vf hi = plane_floats(second + 16 * k) * b->by[1][i];

		if (turned) {
			vf c = LD(cs + 16 * k), s = LD(cs + CQK_T + 16 * k), was = lo;

			lo = lo * c - hi * s;
			hi = was * s + hi * c;
		}
		for (r = 0; r < nq; r++) {	/* two sums: each is one instruction */
			acc[r][k] += lo * q[r][0][i];
			acc[r][k] += hi * q[r][1][i];
		}
	}
}

/* The 16 lanes of 128 bits of four registers, @k the second index: the other way round. */
INLINE vf exact_turn(const vf *a, const int k)
{
	vf low, high;

	if (k < 2) {
		low = SHUFFLED(a[0], a[1], 0, 1, 2, 3, 16, 17, 18, 19,
			       4, 5, 6, 7, 20, 21, 22, 23);
		high = SHUFFLED(a[2], a[3], 0, 1, 2, 3, 16, 17, 18, 19,
				4, 5, 6, 7, 20, 21, 22, 23);
	} else {
		low = SHUFFLED(a[0], a[1], 8, 9, 10, 11, 24, 25, 26, 27,
			       12, 13, 14, 15, 28, 29, 30, 31);
		high = SHUFFLED(a[2], a[3], 8, 9, 10, 11, 24, 25, 26, 27,
				12, 13, 14, 15, 28, 29, 30, 31);
	}
	if (k % 2)
		return SHUFFLED(low, high, 8, 9, 10, 11, 12, 13, 14, 15,
				24, 25, 26, 27, 28, 29, 30, 31);
	return SHUFFLED(low, high, 0, 1, 2, 3, 4, 5, 6, 7,
			16, 17, 18, 19, 20, 21, 22, 23);
}

/* s = acc, or s += acc, in the order of score_seen(). */
INLINE void exact_spill(const int nq, vf acc[][4], const bool add, float (*s)[CQK_T])
{
	int r, k;

	for (r = 0; r < nq; r++)
		for (k = 0; k < 4; k++) {
			vf x = exact_turn(acc[r], k);

			if (add)
				x += LD(&s[r][16 * k]);
			ST(&s[r][16 * k], x);
		}
}

/* Scores of one page for @nq lanes from @lane on from pairs @from .. @to. */
INLINE void exact_scores(const int nq, const bool wide, const bool turned,
			 struct page_batch *b, uint32_t page, uint32_t lane,
			 uint32_t from, uint32_t to)
{
	const float (*q)[2][PAIRS] = &b->q[turned ? page : 0][lane];
	const uint8_t *codes = b->k_codes[page];
	uint32_t turns = turned ? MIN(to, b->half) : 0, i = from;
	vf acc[EXACT_LANES][4];
	struct walk lo, hi;
	zi first;
	int r;

	for (r = 0; r < nq; r++)
		acc[r][0] = acc[r][1] = acc[r][2] = acc[r][3] = (vf){ 0 };
	if (i < turns) {
		lo = walk_from(wide, b, codes, i, TILE_FIRST);
		hi = walk_from(wide, b, codes, b->half + i, TILE_SECOND);
	}
	for (; i < turns; i++) {
		first = walk_next(wide, &lo);
		exact_pair(nq, true, b, i, first, walk_next(wide, &hi), q, acc);
	}
	if (i < to)
		lo = walk_from(wide, b, codes, 2 * i, TILE_PLAIN);
	for (; i < to; i++) {
		first = walk_next(wide, &lo);
		exact_pair(nq, false, b, i, first, walk_next(wide, &lo), q, acc);
	}
	if (from)
		exact_spill(nq, acc, true, &b->s[page][lane]);
	else
		exact_spill(nq, acc, false, &b->s[page][lane]);
}

/* As batch_keys_as(): tables of some pairs stay in L1 for all pages waiting. */
INLINE void exact_keys_as(const uint32_t lanes, const bool wide, const bool turned,
			  struct page_batch *b)
{
	const uint32_t nq = MIN(lanes, EXACT_LANES);
	uint32_t page, from, to, lane;

	for (from = 0; from < b->np; from += SUM_PAIRS)
		for (page = 0; page < b->n; page++) {
			to = MIN(from + SUM_PAIRS, b->np);
			if (wide)
				wide_keys(b, page, from, to);
			for (lane = 0; lane < lanes; lane += nq)
				exact_scores((int)nq, wide, turned, b, page,
					     lane, from, to);
			fetch_some(b);
		}
}

#define EXACT_FN(name, lanes, wide, turned)					\
static void name##_##lanes(struct page_batch *b)				\
{										\
	exact_keys_as(lanes, wide, turned, b);					\
}
#define EXACT_FNS(lanes)							\
	EXACT_FN(exact_turned, lanes, false, true)				\
	EXACT_FN(exact_plain, lanes, false, false)				\
	EXACT_FN(exact_wide_turned, lanes, true, true)				\
	EXACT_FN(exact_wide_plain, lanes, true, false)
EXACT_FNS(1)
EXACT_FNS(2)
EXACT_FNS(4)
EXACT_FNS(8)

/* Scores of all pages waiting. */
static void exact_keys(struct page_batch *b)
{
	static void (*const fns[2][2][4])(struct page_batch *) = {
		{ BY_LANES(exact_plain), BY_LANES(exact_turned) },
		{ BY_LANES(exact_wide_plain), BY_LANES(exact_wide_turned) },
	};

	by_lanes(fns, b);
}

#endif /* CQK_EXACT_AVX512_H */
