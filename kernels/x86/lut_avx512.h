/* SPDX-License-Identifier: MIT */
/*
 * Keys that need no turning, part of attn_avx512.c: a table per query vector and
 * group has the product with each of 256 centroids, in 16 bits of one unit per
 * vector, as two planes of bytes. A token costs a look-up per group, whatever
 * the group size; tables are made once per call and kv head.
 */
#ifndef CQK_LUT_AVX512_H
#define CQK_LUT_AVX512_H

#include "kernels/x86/keys_avx512.h"

#define LUT_ONE 32766.0f	/* one more by rounding still fits */
#define LUT_MAKE 4		/* vectors whose products are made together */

/* Products of @n vectors from @lane on with the centroids of group @g. */
INLINE void lut_products(const int n, struct page_batch *b, uint32_t lane, uint32_t g,
			 float (*out)[LUT_GROUPS][CQK_CENTROIDS])
{
	const float *scale = b->k->scale + (size_t)b->h->head * b->d;
	uint32_t c = b->k->code.channels, ch, k;
	int r;

	for (k = 0; k < CQK_CENTROIDS; k += VF) {
		vf acc[LUT_MAKE];

		for (r = 0; r < n; r++)
			acc[r] = (vf){ 0 };
		for (ch = g * c; ch < (g + 1) * c; ch++) {
			const int8_t *plane = b->k_plane + (size_t)ch * CQK_CENTROIDS;
			vf x = plane_floats(plane + k) * scale[ch];

			for (r = 0; r < n; r++)
				acc[r] += x * b->h->q[(lane + (uint32_t)r) *
						      (size_t)b->h->dpad + ch];
		}
		for (r = 0; r < n; r++)
			ST(&out[r][g][k], acc[r]);
	}
}

/* Half the range of 256 products, and their middle. */
static float lut_range(const float *in, float *middle)
{
	vf top = LD(in), low = -top;
	uint32_t k;

	for (k = VF; k < CQK_CENTROIDS; k += VF) {
		top = vf_max(LD(in + k), top);
		low = vf_max(-LD(in + k), low);
	}
	*middle = 0.5f * (vf_top(top) - vf_top(low));
	return 0.5f * (vf_top(top) + vf_top(low));
}

/* 256 products to bytes. */
static void lut_bytes(const float *in, float middle, float inv, uint8_t (*out)[CQK_CENTROIDS])
{
	uint32_t k;

	for (k = 0; k < CQK_CENTROIDS; k += VF) {
		zi x = _mm512_cvtps_epi32((LD(in + k) - middle) * inv);

		put_bytes(&out[0][k], x);
		put_bytes(&out[1][k], (zi)((vi)x >> 8));
	}
}

/* One vector: its unit, what its middles add up to, its tables. */
static void lut_lane(struct page_batch *b, uint32_t lane,
		     float (*in)[CQK_CENTROIDS])
{
	float middle[LUT_GROUPS], most = 0.0f, inv;
	uint32_t g;

	b->bias[lane] = 0.0f;
	for (g = 0; g < b->k->n_groups; g++) {
		most = larger(lut_range(in[g], &middle[g]), most);
		b->bias[lane] += middle[g];
	}
	b->unit[lane] = most / LUT_ONE;
	inv = most > 0.0f ? LUT_ONE / most : 0.0f;
	for (g = 0; g < b->k->n_groups; g++)
		lut_bytes(in[g], middle[g], inv, b->lut[lane][g]);
}

/* Products of one group that hide those of others in the unit they share. */
static bool lut_coarse(const struct page_batch *b)
{
	uint32_t lane;

	for (lane = 0; lane < b->nq; lane++)
		if (cqk_coarse(b->unit[lane], b->k->n_groups))
			return true;
	return false;
}

/* Tables of all vectors, by way of b->o. */
static void lut_queries(struct page_batch *b)
{
	float (*tmp)[LUT_GROUPS][CQK_CENTROIDS] = (void *)b->o;
	uint32_t lane, g, i, n;

	_Static_assert(sizeof(b->o) >= LUT_MAKE * sizeof(*tmp), "room for products");
	for (lane = 0; lane < b->nq; lane += n) {
		n = b->nq - lane >= LUT_MAKE ? LUT_MAKE : 1;
		for (g = 0; g < b->k->n_groups; g++)
			if (n == LUT_MAKE)
				lut_products(LUT_MAKE, b, lane, g, tmp);
			else
				lut_products(1, b, lane, g, tmp);
		for (i = 0; i < n; i++)
			lut_lane(b, lane + i, tmp[i]);
	}
}

/* Scores of @n pages from @page on for one vector. */
INLINE void lut_scores(const int n, struct page_batch *b, uint32_t page, uint32_t lane)
{
	const zi even = _mm512_set1_epi32(1), odd = _mm512_set1_epi32(1 << 16);
	vi acc[4][4];
	uint32_t g;
	int i, k;

	for (i = 0; i < n; i++)
		for (k = 0; k < 4; k++)
			acc[i][k] = (vi){ 0 };
	for (g = 0; g < b->k->n_groups; g++) {
		const int8_t *lower = (const int8_t *)b->lut[lane][g][0];
		const int8_t *upper = (const int8_t *)b->lut[lane][g][1];

		for (i = 0; i < n; i++) {
			struct codes64 codes = codes_load(b->k_codes[page + i] + g * CQK_T);
			zi lo = decode64(lower, codes), hi = decode64(upper, codes);
			zi w0 = _mm512_unpacklo_epi8(lo, hi);
			zi w1 = _mm512_unpackhi_epi8(lo, hi);

			acc[i][0] = dot_words(acc[i][0], w0, even);
			acc[i][1] = dot_words(acc[i][1], w0, odd);
			acc[i][2] = dot_words(acc[i][2], w1, even);
			acc[i][3] = dot_words(acc[i][3], w1, odd);
		}
	}
	for (i = 0; i < n; i++)
		for (k = 0; k < 4; k += 2) {
			zi x = _mm512_unpacklo_epi32((zi)acc[i][k], (zi)acc[i][k + 1]);
			zi y = _mm512_unpackhi_epi32((zi)acc[i][k], (zi)acc[i][k + 1]);
			float *s = b->s[page + i][lane] + 16 * k;

			ST(s, __builtin_convertvector((vi)x, vf));
			ST(s + 16, __builtin_convertvector((vi)y, vf));
		}
}

/* Scores of all pages waiting; a table is loaded once for four of them. */
static void lut_keys(struct page_batch *b)
{
	uint32_t lane, page;

	for (lane = 0; lane < b->nq; lane++) {
		for (page = 0; page + 4 <= b->n; page += 4) {
			lut_scores(4, b, page, lane);
			fetch_some(b);
		}
		for (; page < b->n; page++)
			lut_scores(1, b, page, lane);
	}
}

#endif /* CQK_LUT_AVX512_H */
