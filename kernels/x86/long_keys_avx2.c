// SPDX-License-Identifier: MIT
/*
 * Scores of up to eight query vectors over a long coded context, with AVX2, of
 * keys to be turned: centroids become 16-bit integers with one scale per pair
 * of channels; a token's key is put together, turned and multiplied with the
 * query (vpmaddwd), which is turned back by the page's position.
 */
#define CQK_VB 32
#include <immintrin.h>
#include <string.h>
#include "kernels/vec.h"
#include "kernels/x86/long_keys_avx2.h"

#define KEY_ONE 16256.0f	/* largest key: turned by less than 2^15 */

static float largest_in(const struct long_head *x, uint32_t ch)
{
	size_t at = (size_t)x->h->head * x->d + ch;
	const float *plane = x->k->f32 + at * K;
	float top = 0.0f;
	uint32_t k;

	if (x->k->scale)
		return 128.0f * fabsf(x->k->scale[at]);
	for (k = 0; k < K; k++)
		top = fmaxf(top, fabsf(plane[k]));
	return top;
}

static void scale_keys(struct long_head *x)
{
	uint32_t ch;

	for (ch = 0; ch < x->d; ch++)
		x->key_scale[ch] = largest_in(x, ch);
	for (ch = 0; ch < x->half; ch++) {
		float top = fmaxf(x->key_scale[ch], x->key_scale[x->half + ch]);

		x->key_scale[ch] = x->key_scale[x->half + ch] = top;
	}
}

/* Eight stored values from @at on. */
static __m256 stored8(const struct cqk_codebook *cb, size_t at)
{
	if (cb->centroids == CQK_CENTROIDS_I8)
		return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(
			(const __m128i *)(const void *)((const int8_t *)cb->stored + at))));
	return _mm256_cvtph_ps(_mm_loadu_si128(
		(const __m128i *)(const void *)((const uint16_t *)cb->stored + at)));
}

static void build_keys(struct long_head *x)
{
	uint32_t c = x->k->code.channels, ch, e, i;
	int16_t *key = x->key;
	size_t base = (size_t)x->h->head * x->d, at;

	scale_keys(x);
	for (ch = 0; ch < x->d; ch += c) {
		float f[8];
		__m256 factor;

		for (i = 0; i < 8; i++) {
			float top = x->key_scale[ch + i % c];

			f[i] = top > 0.0f ? KEY_ONE / top : 0.0f;
			if (x->k->scale)
				f[i] *= x->k->scale[base + ch + i % c];
		}
		factor = _mm256_loadu_ps(f);
		for (e = 0; e < K * c; e += 16) {
			__m256i a, b;

			at = (base + ch) * K + e;
			a = _mm256_cvtps_epi32(_mm256_mul_ps(stored8(x->k, at), factor));
			b = _mm256_cvtps_epi32(_mm256_mul_ps(stored8(x->k, at + 8), factor));
			a = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
			_mm256_storeu_si256((__m256i *)(void *)(key + ch * K + e), a);
		}
	}
}

/*
 * Scale a lane's query: no channel beyond 16 bits, no 32-bit sum beyond its
 * range. A sum takes every eighth pair of neighbours, a register's share.
 * Turning keeps the length of a pair of turned channels. True if integers lose more
 * than they may.
 */
static bool scale_query(struct long_head *x, uint32_t lane)
{
	float *q = x->q[lane], size[MAX_D], part[8] = { 0 };
	float most = 0.0f, worst = 0.0f, turned = 0.0f, up;
	uint32_t ch, i;

	for (ch = 0; ch < x->d; ch++) {
		q[ch] *= x->key_scale[ch] / (ch < 2 * x->half ? KEY_ONE * CQK_Q15_ONE : KEY_ONE);
		size[ch] = fabsf(q[ch]);
	}
	for (ch = 0; ch < x->half; ch++) {
		float square = q[ch] * q[ch] + q[x->half + ch] * q[x->half + ch];

		size[ch] = size[x->half + ch] = sqrtf(square);
		turned += square;
	}
	for (ch = 0; ch < x->d; ch++) {
		most = fmaxf(most, size[ch]);
		part[ch / 2 % 8] += size[ch];
	}
	for (i = 0; i < 8; i++)
		worst = fmaxf(worst, part[i]);
	up = fmaxf(most / 32700.0f, worst * (KEY_ONE * 1.4143f / 2.1e9f));
	x->unit[lane] = up;
	up = up > 0.0f ? 1.0f / up : 0.0f;
	for (ch = 0; ch < x->d; ch++)
		q[ch] *= up;
	/* the query, with keys a third of the largest; turned keys, each rounded thrice */
	return cqk_coarse(x->unit[lane] * (KEY_ONE / 3.0f), x->d) ||
	       cqk_coarse(sqrtf(turned), 3);
}

INLINE __m128i load64x2(const int16_t *a, const int16_t *b)
{
	__m128i x = _mm_loadl_epi64((const __m128i *)(const void *)a);

	return _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(x),
					     (const __m64 *)(const void *)b));
}

/* Sixteen channels of one token from @ch on. */
INLINE __m256i key16(const int c, const int16_t *key, const uint8_t *codes,
		     uint32_t ch, uint32_t t)
{
	const uint8_t *code = codes + ch / c * CQK_T + t;
	const int16_t *at = key + ch * K;
	__m128i lo, hi;

	if (c == 8) {
		lo = _mm_loadu_si128((const __m128i *)(const void *)(at + code[0] * 8));
		hi = _mm_loadu_si128((const __m128i *)(const void *)
				     (at + (K + code[64]) * 8));
	} else {
		lo = load64x2(at + code[0] * 4, at + (K + code[64]) * 4);
		hi = load64x2(at + (2 * K + code[128]) * 4, at + (3 * K + code[192]) * 4);
	}
	return _mm256_inserti128_si256(_mm256_castsi128_si256(lo), hi, 1);
}

INLINE __m256i load16(const int16_t *p)
{
	return _mm256_loadu_si256((const __m256i *)(const void *)p);
}

/* acc[i * lanes + lane] += a[i] . q[lane], sixteen channels from @ch on */
INLINE void dot16(const int lanes, const struct long_head *x, const __m256i *a,
		  uint32_t ch, __m256i *acc)
{
	int lane, i;

	for (lane = 0; lane < lanes; lane++) {
		__m256i q = load16(&x->q16[lane][ch]);

		for (i = 0; i < 8 / lanes; i++)
			acc[i * lanes + lane] = _mm256_add_epi32(acc[i * lanes + lane],
						_mm256_madd_epi16(a[i], q));
	}
}

INLINE void turn16(const int c, const struct long_head *x, const uint8_t *codes,
		   uint32_t j, uint32_t t, __m256i *a, __m256i *b)
{
	const int16_t *cs = x->h->a->rope->in_page_q15 + (size_t)t * 2 * x->half + j;
	__m256i lo = key16(c, x->key, codes, j, t);
	__m256i hi = key16(c, x->key, codes, x->half + j, t);
	__m256i co = load16(cs), si = load16(cs + x->half);

	*a = _mm256_sub_epi16(_mm256_mulhrs_epi16(lo, co), _mm256_mulhrs_epi16(hi, si));
	*b = _mm256_add_epi16(_mm256_mulhrs_epi16(lo, si), _mm256_mulhrs_epi16(hi, co));
}

/* Eight sums of 32-bit accumulators, as floats. */
INLINE __m256 sums8(const __m256i *acc)
{
	__m256 f[8], x, y;
	int i;

	for (i = 0; i < 8; i++)
		f[i] = _mm256_cvtepi32_ps(acc[i]);
	x = _mm256_hadd_ps(_mm256_hadd_ps(f[0], f[1]), _mm256_hadd_ps(f[2], f[3]));
	y = _mm256_hadd_ps(_mm256_hadd_ps(f[4], f[5]), _mm256_hadd_ps(f[6], f[7]));
	return _mm256_add_ps(_mm256_permute2f128_ps(x, y, 0x20),
			     _mm256_permute2f128_ps(x, y, 0x31));
}

INLINE void key_scores(const int c, const int lanes, const struct long_head *x,
		       uint32_t page, float *s)
{
	const uint8_t *codes = x->k_codes[page];
	const int tok = 8 / lanes;
	__m256i acc[8], a[2], b[2];
	uint32_t t, ch;
	int i;

	for (t = 0; t < CQK_T; t += tok, s += 8) {
		for (i = 0; i < 8; i++)
			acc[i] = _mm256_setzero_si256();
		for (ch = 0; ch < x->half; ch += 16) {
			for (i = 0; i < tok; i++)
				turn16(c, x, codes, ch, t + i, &a[i], &b[i]);
			dot16(lanes, x, a, ch, acc);
			dot16(lanes, x, b, x->half + ch, acc);
		}
		for (ch = 2 * x->half; ch < x->d; ch += 16) {
			for (i = 0; i < tok; i++)
				a[i] = key16(c, x->key, codes, ch, t + i);
			dot16(lanes, x, a, ch, acc);
		}
		_mm256_storeu_ps(s, sums8(acc));
	}
}

#define KEY_SCORES(c, lanes)							\
static void key_scores_##c##_##lanes(const struct long_head *x, uint32_t page,	\
				     float *s)					\
{										\
	key_scores(c, lanes, x, page, s);					\
}
KEY_SCORES(4, 4)
KEY_SCORES(8, 4)
KEY_SCORES(4, 8)
KEY_SCORES(8, 8)

bool cqk_keys_begin(struct long_head *x)
{
	bool coarse = false;
	uint32_t lane;

	build_keys(x);
	for (lane = 0; lane < x->h->nq; lane++)
		coarse |= scale_query(x, lane);
	return !coarse;
}

void cqk_keys_lane(struct long_head *x, uint32_t lane)
{
	float q[MAX_D];
	uint32_t ch;

	cqk_turn_query(x->turn, x->half, x->q[lane], x->d, q);
	for (ch = 0; ch < x->d; ch += 16) {
		__m256i a = _mm256_cvtps_epi32(_mm256_loadu_ps(q + ch));
		__m256i b = _mm256_cvtps_epi32(_mm256_loadu_ps(q + ch + 8));

		a = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
		_mm256_storeu_si256((__m256i *)(void *)&x->q16[lane][ch], a);
	}
}

void cqk_keys_page(struct long_head *x, uint32_t page)
{
	uint32_t c = x->k->code.channels;
	float *s = x->s + page * CQK_T * x->lanes;

	if (x->lanes == 4)
		(c == 8 ? key_scores_8_4 : key_scores_4_4)(x, page, s);
	else
		(c == 8 ? key_scores_8_8 : key_scores_4_8)(x, page, s);
}
