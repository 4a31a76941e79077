/* SPDX-License-Identifier: MIT */
/*
 * Softmax and values of the transposed path of attn_avx512.c, its only user.
 *
 * Probabilities are 16-bit fractions of the largest one of the batch, split into
 * bytes, so that vpdpbusd takes them and 8-bit centroids as they are: 64 tokens
 * of a channel are two instructions per query vector. Sums of a batch stay below
 * 2^30: 4 * BATCH products of 127 and 65,535 per 32-bit lane.
 *
 * Without VNNI they are 15-bit fractions and centroids are widened to 16 bits:
 * vpmaddubsw would saturate from 8 bits of p on, and in two parts of 7 it takes
 * six instructions where vpmaddwd takes four.
 */
#ifndef CQK_VALUES_AVX512_H
#define CQK_VALUES_AVX512_H

#include "kernels/x86/keys_avx512.h"

#if ISA_VNNI
#define P_ONE 65534.0f		/* one more by rounding still fits */
#define P_PARTS 8		/* bits from one part of p to the other */

/* 64 fractions, as four registers of score_seen()'s order packed once: bytes. */
INLINE void p_store(zi w0, zi w1, uint8_t (*p)[CQK_T])
{
	const zi low = _mm512_set1_epi16(255);

	_mm512_storeu_si512(p[0], _mm512_packus_epi16(_mm512_and_si512(w0, low),
						      _mm512_and_si512(w1, low)));
	_mm512_storeu_si512(p[1], _mm512_packus_epi16(_mm512_srli_epi16(w0, 8),
						      _mm512_srli_epi16(w1, 8)));
}

/* Values as either part of p meets them. */
INLINE void p_values(zi bytes, zi *v)
{
	v[0] = v[1] = bytes;
}

INLINE vi p_dot(vi acc, zi p, zi v)
{
	return dot_bytes(acc, p, v);
}
#else
#define P_ONE 32766.0f
#define P_PARTS 0		/* the parts are tokens of even place, of odd place */

INLINE void p_store(zi w0, zi w1, uint8_t (*p)[CQK_T])
{
	const zi low = _mm512_set1_epi32(0xffff);

	_mm512_storeu_si512(p[0], _mm512_packus_epi32(_mm512_and_si512(w0, low),
						      _mm512_and_si512(w1, low)));
	_mm512_storeu_si512(p[1], _mm512_packus_epi32(_mm512_srli_epi32(w0, 16),
						      _mm512_srli_epi32(w1, 16)));
}

INLINE void p_values(zi bytes, zi *v)
{
	v[0] = _mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8);
	v[1] = _mm512_srai_epi16(bytes, 8);
}

INLINE vi p_dot(vi acc, zi p, zi v)
{
	return dot_words(acc, p, v);
}
#endif

/*
 * Which of 16 scores count: register @k of a page holds token 16 l + 4 k + i in
 * place 4 l + i, which is how unpacking bytes twice leaves them and how packing
 * twice wants them.
 */
INLINE vi score_seen(uint64_t vis, int k)
{
	uint64_t x = vis >> (4 * k) & 0x000f000f000f000full;

	return vi_mask((x | x >> 12 | x >> 24 | x >> 36) & 0xffff);
}

/* Scores from integers to what counts; returns the larger of each place and @top. */
INLINE vf lane_top(struct page_batch *b, uint32_t page, uint32_t lane, vf top)
{
	float cap = b->h->a->soft_cap, *s = b->s[page][lane];
	uint64_t vis = b->vis[page][lane];
	int k;

	for (k = 0; k < 4; k++) {
		vf x = LD(s + 16 * k) * b->unit[lane] + b->bias[lane];

		if (cap > 0.0f)
			x = vf_cap(x, cap);
		if (~vis)
			x = vf_pick(score_seen(vis, k), x, (vf){ 0 } - INFINITY);
		ST(s + 16 * k, x);
		top = vf_max(x, top);
	}
	return top;
}

/* Sums of a lane: of p, of p as rounded, and what rounding took. */
struct p_sums {
	vf exact, rounded, carry[4];
};

/*
 * p = e^(s - top), as fractions of P_ONE. What rounding takes from a token goes to
 * the next one of its place (@carry): thousands of tokens that are each below
 * half a unit would otherwise vanish beside one large one.
 */
INLINE void lane_exp(struct page_batch *b, uint32_t page, uint32_t lane, float top,
		     struct p_sums *sums)
{
	const float *s = b->s[page][lane];
	uint64_t vis = b->vis[page][lane];
	zi n[4];
	int k;

	for (k = 0; k < 4; k++) {
		vf p = vf_exp(LD(s + 16 * k) - top), want, got;

		if (~vis)
			p = (vf)((vi)p & score_seen(vis, k));
		want = p * P_ONE + sums->carry[k];
		n[k] = _mm512_cvtps_epi32(want);
		if (~vis)
			n[k] = (zi)((vi)n[k] & score_seen(vis, k));
		got = __builtin_convertvector((vi)n[k], vf);
		sums->carry[k] = want - got;
		sums->exact += p;
		sums->rounded += got;
	}
	p_store(_mm512_packus_epi32(n[0], n[1]), _mm512_packus_epi32(n[2], n[3]),
		b->p[page][lane]);
}

static void lane_nothing(struct page_batch *b, uint32_t lane)
{
	uint32_t page;

	b->grow[lane] = 1.0f;
	b->weight[lane] = 0.0f;
	for (page = 0; page < b->n; page++)
		memset(b->p[page][lane], 0, sizeof(b->p[page][lane]));
}

/* One lane of the batch; the values get the exact mass of p. */
static void lane_softmax(struct page_batch *b, uint32_t lane)
{
	struct p_sums sums = { .exact = (vf){ 0 } };
	vf tops = (vf){ 0 } - INFINITY;
	float top, sum, m;
	uint32_t page;

	for (page = 0; page < b->n; page++)
		tops = lane_top(b, page, lane, tops);
	top = vf_top(tops);
	if (!(top > -INFINITY)) {
		lane_nothing(b, lane);
		return;
	}
	for (page = 0; page < b->n; page++)
		lane_exp(b, page, lane, top, &sums);
	sum = vf_sum(sums.exact);
	m = larger(b->m[lane], top);
	b->grow[lane] = expf(b->m[lane] - m);
	b->weight[lane] = expf(top - m) * sum / vf_sum(sums.rounded);
	b->l[lane] = b->l[lane] * b->grow[lane] + expf(top - m) * sum;
	b->m[lane] = m;
}

/*
 * Values of @nch channels of a group over all pages waiting: p v in 16 partial
 * sums. @group is where the codes start; @wide: planes lie in the tile.
 */
INLINE void channel_values(const int nq, const int nch, const bool wide,
			   struct page_batch *b, uint32_t ch, size_t group)
{
	const int8_t *plane = b->v_plane + (size_t)ch * CQK_CENTROIDS;
	const int8_t *tile = b->tile[0][ch % WIDE_CHANNELS];
	float *o = b->o + (size_t)ch * nq * 16;
	vi lo[2][LANES], hi[2][LANES];
	zi v[2][2];
	uint32_t page;
	int r, j;

	for (j = 0; j < nch; j++)
		for (r = 0; r < nq; r++)
			lo[j][r] = hi[j][r] = (vi){ 0 };
	for (page = 0; page < b->n; page++) {
		struct codes64 codes = codes_load(b->v_codes[page] + group);

		for (j = 0; j < nch; j++)
			p_values(wide ? _mm512_loadu_si512(tile + j * CQK_T) :
				 decode64(plane + j * CQK_CENTROIDS, codes), v[j]);
		tile += sizeof(b->tile[0]);
		for (r = 0; r < nq; r++) {
			zi p_lo = _mm512_loadu_si512(b->p[page][r][0]);
			zi p_hi = _mm512_loadu_si512(b->p[page][r][1]);

			for (j = 0; j < nch; j++) {
				lo[j][r] = p_dot(lo[j][r], p_lo, v[j][0]);
				hi[j][r] = p_dot(hi[j][r], p_hi, v[j][1]);
			}
		}
	}
	for (j = 0; j < nch; j++)
		for (r = 0; r < nq; r++, o += 16) {
			vi sum = lo[j][r] + (hi[j][r] << P_PARTS);
			vf x = __builtin_convertvector(sum, vf);

			ST(o, LD(o) * b->grow[r] + x * b->weight[r]);
		}
}

/* Planes of a group of all pages waiting. */
static void wide_values(struct page_batch *b, uint32_t g)
{
	uint32_t page;

	for (page = 0; page < b->n; page++)
		wide_join(b->v, b->v_codes[page], g, b->words[page]);
	for (page = 0; page < b->n; page++)
		wide_planes(b->v_plane, g, b->words[page], b->tile[page]);
}

/* Two channels at a time where registers allow and the group has them. */
INLINE void all_values(const int nq, const bool wide, struct page_batch *b)
{
	uint32_t g, j, ch = 0, c = b->v->code.channels;

	for (g = 0; g < b->v->n_groups; g++) {
		if (wide)
			wide_values(b, g);
		for (j = 0; nq < 8 && j + 2 <= c; j += 2, ch += 2) {
			channel_values(nq, 2, wide, b, ch, (size_t)g * CQK_T);
			fetch_some(b);
		}
		for (; j < c; j++, ch++) {
			channel_values(nq, 1, wide, b, ch, (size_t)g * CQK_T);
			fetch_some(b);
		}
	}
}

#define WIDE_VALUES(lanes)							\
static void values_wide_##lanes(struct page_batch *b)				\
{										\
	all_values(lanes, true, b);						\
}
WIDE_VALUES(1)
WIDE_VALUES(2)
WIDE_VALUES(4)
WIDE_VALUES(8)

static void batch_values(struct page_batch *b)
{
	static void (*const wide[4])(struct page_batch *) = BY_LANES(values_wide);

	if (wide_codes(b->v))
		wide[__builtin_ctz(b->lanes)](b);
	else if (b->lanes == 1)
		all_values(1, false, b);
	else if (b->lanes == 2)
		all_values(2, false, b);
	else if (b->lanes == 4)
		all_values(4, false, b);
	else
		all_values(LANES, false, b);
}

#endif /* CQK_VALUES_AVX512_H */
