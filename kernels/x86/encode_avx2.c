// SPDX-License-Identifier: MIT
/*
 * Encoding and decoding with AVX2. No FMA here, neither by intrinsic nor by
 * contraction: codes must equal the portable encoder's bit for bit.
 */
#include "kernels/x86/fetch_avx2.h"
#include "kernels/f16.h"

#define TOK 4	/* tokens that share the loads of centroids */

struct best {
	__m256 dist;
	__m256i k;
};

static inline __attribute__((always_inline))
void keep_least(struct best *b, __m256 dist, __m256i k)
{
	__m256 less = _mm256_cmp_ps(dist, b->dist, _CMP_LT_OQ);

	b->dist = _mm256_blendv_ps(b->dist, dist, less);
	b->k = _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(b->k),
						    _mm256_castsi256_ps(k), less));
}

/* Among the lanes with the least distance the lowest k. */
static uint32_t least_lane(const struct best *b)
{
	float dist[8];
	int32_t k[8], i, at = 0;

	_mm256_storeu_ps(dist, b->dist);
	_mm256_storeu_si256((__m256i *)(void *)k, b->k);
	for (i = 1; i < 8; i++)
		if (dist[i] < dist[at] || (dist[i] == dist[at] && k[i] < k[at]))
			at = i;
	return (uint32_t)k[at];
}

/* Nearest of @n centroids for TOK tokens; @x is [c][TOK]. */
static void nearest4(const float *half_norm, const float *planes, uint32_t n,
		     const float *x, uint32_t c, struct best *best)
{
	__m256i k = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
	uint32_t at, j, t;

	for (t = 0; t < TOK; t++) {
		best[t].dist = _mm256_set1_ps(__builtin_inff());
		best[t].k = _mm256_setzero_si256();
	}
	for (at = 0; at < n; at += 8) {
		__m256 norm = _mm256_loadu_ps(half_norm + at);
		__m256 d0 = norm, d1 = norm, d2 = norm, d3 = norm;

		for (j = 0; j < c; j++) {
			__m256 p = _mm256_loadu_ps(planes + (size_t)j * n + at);
			const float *y = x + j * TOK;

			d0 = _mm256_sub_ps(d0, _mm256_mul_ps(_mm256_broadcast_ss(y), p));
			d1 = _mm256_sub_ps(d1, _mm256_mul_ps(_mm256_broadcast_ss(y + 1), p));
			d2 = _mm256_sub_ps(d2, _mm256_mul_ps(_mm256_broadcast_ss(y + 2), p));
			d3 = _mm256_sub_ps(d3, _mm256_mul_ps(_mm256_broadcast_ss(y + 3), p));
		}
		keep_least(&best[0], d0, k);
		keep_least(&best[1], d1, k);
		keep_least(&best[2], d2, k);
		keep_least(&best[3], d3, k);
		k = _mm256_add_epi32(k, _mm256_set1_epi32(8));
	}
}

/**
 * cqk_avx2_encode() - see struct cqk_ops.encode
 */
void cqk_avx2_encode(const struct cqk_codebook *cb, uint32_t kv_head,
		     const uint16_t *x, uint32_t first, uint32_t n, uint8_t *codes)
{
	uint32_t d = cb->head_dim, c = cb->code.channels, g, t, i, j;
	uint32_t k = cqk_code_centroids(cb->code);
	float y[CQK_MAX_CHANNELS * TOK];
	struct best best[TOK];

	if (cb->code.type == CQ_CODE_F16 || c > CQK_MAX_CHANNELS) {
		cqk_portable_encode(cb, kv_head, x, first, n, codes);
		return;
	}
	for (g = 0; g < cb->n_groups; g++) {
		size_t group = (size_t)kv_head * cb->n_groups + g;

		for (t = 0; t < n; t += TOK) {
			for (j = 0; j < c; j++)
				for (i = 0; i < TOK; i++)
					y[j * TOK + i] = cqk_f16_to_f32(
						x[(size_t)MIN(t + i, n - 1) * d + g * c + j]);
			nearest4(cb->half_norm + group * k, cb->enc + group * c * k, k, y, c,
				 best);
			for (i = 0; i < TOK && t + i < n; i++)
				cq_code_put(codes, cb->code, cb->n_groups, g, first + t + i,
					    least_lane(&best[i]));
		}
	}
	cqk_pad_block(cb, codes);
}

static inline __attribute__((always_inline))
void decode8(const enum fetch_kind kind, const struct feed *f, uint32_t first,
	     uint32_t n, float *out)
{
	size_t t, ch;

	for (t = 0; t < n; t++)
		for (ch = 0; ch < f->d; ch += 8)
			_mm256_storeu_ps(out + t * f->d + ch,
					 fetch8(kind, f, first + t, ch));
}

/**
 * cqk_avx2_decode() - see struct cqk_ops.decode
 */
void cqk_avx2_decode(const struct cqk_codebook *cb, uint32_t kv_head,
		     const uint8_t *codes, uint32_t first, uint32_t n, float *out)
{
	struct cqk_src src = {
		.data = codes, .kv_head = kv_head, .tokens = CQK_T,
		.d = cb->head_dim,
		.cb = cb->code.type == CQ_CODE_F16 ? NULL : cb,
	};
	struct feed f;

	feed_init(&f, &src);
	switch (feed_kind(&src)) {
	case FETCH_ROW: decode8(FETCH_ROW, &f, first, n, out); break;
	case FETCH_H8: decode8(FETCH_H8, &f, first, n, out); break;
	case FETCH_H4: decode8(FETCH_H4, &f, first, n, out); break;
	case FETCH_H2: decode8(FETCH_H2, &f, first, n, out); break;
	case FETCH_B8: decode8(FETCH_B8, &f, first, n, out); break;
	case FETCH_B4: decode8(FETCH_B4, &f, first, n, out); break;
	case FETCH_B2: decode8(FETCH_B2, &f, first, n, out); break;
	case FETCH_H8W: decode8(FETCH_H8W, &f, first, n, out); break;
	case FETCH_B8W: decode8(FETCH_B8W, &f, first, n, out); break;
	case FETCH_NONE:
		cqk_portable_decode(cb, kv_head, codes, first, n, out);
		break;
	}
}
