// SPDX-License-Identifier: MIT
/*
 * Encoding with AVX-512: tokens are lanes, a centroid's channel is broadcast to
 * 32 of them, so that the nearest centroid needs no comparison across a
 * register, and among equals the lowest is the first met. No FMA (see
 * CFLAGS_encode_avx512.o): codes must equal the portable encoder's bit for bit.
 */
#include <immintrin.h>
#include "kernels/attn.h"

#define INLINE static inline __attribute__((always_inline))
#define LANES 16		/* floats in a register */
#define TOKENS 32		/* coded together: two registers */
#define FEW 8			/* tokens that AVX2 codes as fast */
#define AHEAD 16		/* floats in a line of the cache */

/* Rows to columns: 16 registers of 16 floats. */
INLINE void transpose16(__m512 *r)
{
	__m512 t[LANES];
	int i;

	for (i = 0; i < LANES; i += 2) {
		t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
		t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
	}
	for (i = 0; i < LANES; i += 4) {
		__m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 2]);
		__m512d c = _mm512_castps_pd(t[i + 1]), d = _mm512_castps_pd(t[i + 3]);

		r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
		r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
		r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
		r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
	}
	for (i = 0; i < 4; i++) {
		__m512 a = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x44);
		__m512 b = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xee);
		__m512 c = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x44);
		__m512 d = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xee);

		t[i] = _mm512_shuffle_f32x4(a, c, 0x88);
		t[i + 4] = _mm512_shuffle_f32x4(a, c, 0xdd);
		t[i + 8] = _mm512_shuffle_f32x4(b, d, 0x88);
		t[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
	}
	for (i = 0; i < LANES; i++)
		r[i] = t[i];
}

/* The first @n lanes, all if there are no more. */
INLINE __mmask16 lanes_below(uint32_t n)
{
	return (__mmask16)(0xffff >> (LANES - MIN(n, LANES)));
}

/*
 * Up to 16 channels from @ch on as y[channel][32]; lanes beyond the last token
 * hold the last again.
 */
static void load_channels(const uint16_t *x, uint32_t d, uint32_t ch, uint32_t n,
			  float (*y)[TOKENS])
{
	__mmask16 have = lanes_below(d - ch);
	__m512 r[LANES];
	uint32_t t, i;

	for (t = 0; t < n; t += LANES) {
		for (i = 0; i < LANES; i++) {
			const uint16_t *at = x + (size_t)MIN(t + i, n - 1) * d + ch;

			r[i] = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(have, at));
		}
		transpose16(r);
		for (i = 0; i < LANES; i++)
			_mm512_storeu_ps(&y[i][t], r[i]);
	}
}

/* One group's centroids, and where its codes go: bytes, or all of wider ones. */
struct group {
	const float *half_norm, *planes;
	uint32_t c;
	uint8_t *codes;
	uint16_t wide[TOKENS];
};

/* The next group's lines that correspond to centroids @k and following. */
INLINE void fetch_ahead(const int c, const int n_cen, const struct group *g, uint32_t k)
{
	const float *next = g->planes + (size_t)c * n_cen + k;
	int j;

	_mm_prefetch((const char *)(g->half_norm + n_cen + k), _MM_HINT_T0);
	for (j = 0; j < c; j++)
		_mm_prefetch((const char *)(next + j * n_cen), _MM_HINT_T0);
}

/* Codes of 16 @nz tokens, @n of which exist. */
INLINE void nearest(const int c, const int n_cen, const int nz, struct group *g,
		    float (*y)[TOKENS], uint32_t n)
{
	__m512i at[2], k = _mm512_setzero_si512();
	__m512 best[2], acc[2];
	uint32_t i, end;
	int j, z;

	for (z = 0; z < nz; z++) {
		best[z] = _mm512_set1_ps(__builtin_inff());
		at[z] = _mm512_setzero_si512();
	}
	for (i = 0; i < (uint32_t)n_cen; ) {
		fetch_ahead(c, n_cen, g, i);
		for (end = i + AHEAD; i < end; i++) {
			for (z = 0; z < nz; z++)
				acc[z] = _mm512_set1_ps(g->half_norm[i]);
			for (j = 0; j < c; j++) {
				__m512 p = _mm512_set1_ps(g->planes[j * n_cen + i]);

				for (z = 0; z < nz; z++)
					acc[z] = _mm512_sub_ps(acc[z], _mm512_mul_ps(p,
						_mm512_loadu_ps(&y[j][LANES * z])));
			}
			for (z = 0; z < nz; z++) {
				__mmask16 less = _mm512_cmp_ps_mask(acc[z], best[z],
								    _CMP_LT_OQ);

				at[z] = _mm512_mask_mov_epi32(at[z], less, k);
				best[z] = _mm512_min_ps(acc[z], best[z]);
			}
			k = _mm512_add_epi32(k, _mm512_set1_epi32(1));
		}
	}
	for (z = 0; z < nz; z++) {
		if (n_cen > CQK_CENTROIDS)
			_mm256_storeu_si256((__m256i *)(void *)(g->wide + LANES * z),
					    _mm512_cvtepi32_epi16(at[z]));
		else
			_mm512_mask_cvtepi32_storeu_epi8(g->codes + LANES * z,
				lanes_below(n - LANES * z), at[z]);
	}
}

INLINE void group_codes(const int c, struct group *g, float (*y)[TOKENS], uint32_t n)
{
	if (n > LANES)
		nearest(c, CQK_CENTROIDS, 2, g, y, n);
	else
		nearest(c, CQK_CENTROIDS, 1, g, y, n);
}

/* 8c10b. */
static void wide_codes(struct group *g, float (*y)[TOKENS], uint32_t n)
{
	if (n > LANES)
		nearest(8, CQK_CENTROIDS_10, 2, g, y, n);
	else
		nearest(8, CQK_CENTROIDS_10, 1, g, y, n);
}

static void encode_group(struct group *g, float (*y)[TOKENS], uint32_t n)
{
	switch (g->c) {
	case 1: group_codes(1, g, y, n); break;
	case 2: group_codes(2, g, y, n); break;
	case 4: group_codes(4, g, y, n); break;
	case 8: group_codes(8, g, y, n); break;
	default: group_codes((int)g->c, g, y, n); break;
	}
}

/* Groups @g .. @g + @some - 1 of @n tokens from @x on, at most 32: @first of @block. */
static void encode_some(const struct cqk_codebook *cb, uint32_t kv_head,
			uint32_t g, uint32_t some, const uint16_t *x, uint32_t first,
			uint32_t n, uint8_t *block)
{
	uint32_t c = cb->code.channels, n_cen = cqk_code_centroids(cb->code), i, t;
	float y[LANES][TOKENS];

	load_channels(x, cb->head_dim, g * c, n, y);
	for (i = 0; i < some && g + i < cb->n_groups; i++) {
		size_t at = (size_t)kv_head * cb->n_groups + g + i;
		struct group group = {
			.half_norm = cb->half_norm + at * n_cen,
			.planes = cb->enc + at * c * n_cen,
			.c = c,
			.codes = block + (size_t)(g + i) * CQK_T + first,
		};

		if (cqk_byte_codes(cb)) {
			encode_group(&group, y + i * c, n);
			continue;
		}
		wide_codes(&group, y + i * c, n);
		for (t = 0; t < n; t++)
			cq_code_put(block, cb->code, cb->n_groups, g + i, first + t,
				    group.wide[t]);
	}
}

/**
 * cqk_avx512_encode() - see struct cqk_ops.encode
 */
void cqk_avx512_encode(const struct cqk_codebook *cb, uint32_t kv_head,
		       const uint16_t *x, uint32_t first, uint32_t n, uint8_t *codes)
{
	uint32_t c = cb->code.channels, some, g, t;

	if (cb->code.type == CQ_CODE_F16 || c > LANES || n <= FEW ||
	    (!cqk_byte_codes(cb) && c != 8)) {
		cqk_avx2_encode(cb, kv_head, x, first, n, codes);
		return;
	}
	some = LANES / c;	/* groups that are loaded together */
	for (g = 0; g < cb->n_groups; g += some)
		for (t = 0; t < n; t += TOKENS)
			encode_some(cb, kv_head, g, some, x + (size_t)t * cb->head_dim,
				    first + t, MIN(n - t, TOKENS), codes);
	cqk_pad_block(cb, codes);
}
