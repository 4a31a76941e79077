// SPDX-License-Identifier: MIT
/*
 * AVX2: up to eight query vectors over a long coded context.
 *
 * What does not depend on the token is done once per call and kv head:
 * - values: p is added up per code, [group][256][lane], and multiplied with the
 *   centroids at the end; a token costs one addition per group;
 * - keys that need no turning: q . centroid is a table of the same shape, a
 *   score is the sum of one entry per group;
 * - keys to be turned: centroids become 16-bit integers with one scale per
 *   pair of channels; a token's key is put together, turned and multiplied
 *   with the query (vpmaddwd), which is turned back by the page's position.
 * Lanes lie next to each other: 4, or 8 for more than 4 query vectors.
 */
#define CQK_VB 32
#include <immintrin.h>
#include <string.h>
#include "kernels/f16.h"
#include "kernels/vec.h"
#include "kernels/x86/long_avx2.h"

#define BATCH 8			/* pages whose scores wait for one softmax */
#define MAX_D CQ_MAX_HEAD_DIM
#define KEY_ONE 16256.0f	/* largest key: turned by less than 2^15 */
#define RAISE 20.0f		/* p may reach e^20 before sums are rescaled */
#define K CQK_CENTROIDS

/**
 * struct long_head - state of one kv head
 * @lanes: 4 or 8
 * @n:     pages waiting
 * @m:     score of p = 1, at most RAISE below the running maximum
 * @l:     sums of p
 * @unit:  score of one, for integer keys
 * @turn:  [2][half] cos and sin of the page at hand
 * @q, @q16: queries, [lane][d]; @q scaled to integers for integer keys
 * @key_scale: [d] value of KEY_ONE, the same for both channels of a pair
 * @s:     [page][64][lanes] scores, then p
 * @mass:  [group][256][lanes] sums of p by code of V
 * @lut:   [group][256][lanes] q . centroid, or
 * @key:   [group][256][c] integer centroids
 */
struct long_head {
	struct cqk_head *h;
	const struct cqk_codebook *k, *v;
	uint32_t d, half, n;
	int lanes;
	float m[CQK_LANES], l[CQK_LANES], unit[CQK_LANES];
	uint64_t vis[BATCH][CQK_LANES];
	const uint8_t *k_codes[BATCH], *v_codes[BATCH];
	float turn[MAX_D], key_scale[MAX_D];
	float q[CQK_LANES][MAX_D];
	int16_t q16[CQK_LANES][MAX_D];
	float s[BATCH * CQK_T * CQK_LANES];
	float *mass, *lut;
	int16_t *key;
};

static uint32_t lanes_of(uint32_t nq)
{
	return nq > 4 ? 8 : 4;
}

/* Values: p by code. */

INLINE void add_mass(const int lanes, struct long_head *x)
{
	uint32_t g, page, t;

	for (g = 0; g < x->v->n_groups; g++) {
		float *mass = x->mass + (size_t)g * K * lanes;

		for (page = 0; page < x->n; page++) {
			const uint8_t *codes = x->v_codes[page] + g * CQK_T;
			const float *p = x->s + page * CQK_T * lanes;

			for (t = 0; t < CQK_T; t++) {
				float *at = mass + (size_t)codes[t] * lanes;

				if (lanes == 4)
					_mm_storeu_ps(at, _mm_add_ps(_mm_loadu_ps(at),
						_mm_loadu_ps(p + t * 4)));
				else
					_mm256_storeu_ps(at, _mm256_add_ps(
						_mm256_loadu_ps(at),
						_mm256_loadu_ps(p + t * 8)));
			}
		}
	}
}

/* [256][lanes] -> [lanes][256] */
static void untangle(const float *in, uint32_t lanes, float *out)
{
	uint32_t k, i;

	for (k = 0; k < K; k += 4)
		for (i = 0; i < lanes; i += 4) {
			__m128 a = _mm_loadu_ps(in + (size_t)k * lanes + i);
			__m128 b = _mm_loadu_ps(in + (size_t)(k + 1) * lanes + i);
			__m128 c = _mm_loadu_ps(in + (size_t)(k + 2) * lanes + i);
			__m128 d = _mm_loadu_ps(in + (size_t)(k + 3) * lanes + i);

			_MM_TRANSPOSE4_PS(a, b, c, d);
			_mm_storeu_ps(out + (size_t)i * K + k, a);
			_mm_storeu_ps(out + (size_t)(i + 1) * K + k, b);
			_mm_storeu_ps(out + (size_t)(i + 2) * K + k, c);
			_mm_storeu_ps(out + (size_t)(i + 3) * K + k, d);
		}
}

/* Sums over 256 centroids of four lanes at once. */
static void weigh(const float *plane, const float *mass, float *sum)
{
	__m256 a = _mm256_setzero_ps(), b = a, c = a, d = a, x;
	uint32_t k;

	for (k = 0; k < K; k += 8) {
		x = _mm256_loadu_ps(plane + k);
		a = _mm256_fmadd_ps(x, _mm256_loadu_ps(mass + k), a);
		b = _mm256_fmadd_ps(x, _mm256_loadu_ps(mass + K + k), b);
		c = _mm256_fmadd_ps(x, _mm256_loadu_ps(mass + 2 * K + k), c);
		d = _mm256_fmadd_ps(x, _mm256_loadu_ps(mass + 3 * K + k), d);
	}
	x = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
	_mm_storeu_ps(sum, _mm_add_ps(_mm256_castps256_ps128(x),
				      _mm256_extractf128_ps(x, 1)));
}

/* o[lane][ch] = sum over codes of mass and centroid */
static void values_of_mass(struct long_head *x)
{
	const float *planes = x->v->f32 + (size_t)x->h->head * x->d * K;
	uint32_t c = x->v->code.channels, ch, lane;
	float *mass = x->s;	/* [lanes][256]: scores are done with */
	float sum[CQK_LANES];

	for (ch = 0; ch < x->d; ch++) {
		if (ch % c == 0)
			untangle(x->mass + (size_t)(ch / c) * K * x->lanes,
				 x->lanes, mass);
		weigh(planes + (size_t)ch * K, mass, sum);
		if (x->lanes == 8)
			weigh(planes + (size_t)ch * K, mass + 4 * K, sum + 4);
		for (lane = 0; lane < x->h->nq; lane++)
			x->q[lane][ch] = sum[lane];
	}
}

/* Keys that are not turned: a table of q . centroid. */

/* out[8][4] = four vectors of eight, transposed */
static void tangle(const __m256 *in, float *out, size_t stride)
{
	__m256 ab = _mm256_unpacklo_ps(in[0], in[1]), AB = _mm256_unpackhi_ps(in[0], in[1]);
	__m256 cd = _mm256_unpacklo_ps(in[2], in[3]), CD = _mm256_unpackhi_ps(in[2], in[3]);
	__m256 r[4];
	int i;

	r[0] = _mm256_shuffle_ps(ab, cd, 0x44);
	r[1] = _mm256_shuffle_ps(ab, cd, 0xee);
	r[2] = _mm256_shuffle_ps(AB, CD, 0x44);
	r[3] = _mm256_shuffle_ps(AB, CD, 0xee);
	for (i = 0; i < 4; i++) {
		_mm_storeu_ps(out + i * stride, _mm256_castps256_ps128(r[i]));
		_mm_storeu_ps(out + (i + 4) * stride, _mm256_extractf128_ps(r[i], 1));
	}
}

static void build_lut(struct long_head *x)
{
	const float *planes = x->k->f32 + (size_t)x->h->head * x->d * K;
	uint32_t c = x->k->code.channels, ch, k;
	int lane, i;

	for (ch = 0; ch < x->d; ch += c)
		for (k = 0; k < K; k += 8)
			for (lane = 0; lane < x->lanes; lane += 4) {
				__m256 dot[4] = { 0 };
				uint32_t j;

				for (j = ch; j < ch + c; j++)
					for (i = 0; i < 4; i++)
						dot[i] = _mm256_fmadd_ps(
							_mm256_broadcast_ss(&x->q[lane + i][j]),
							_mm256_loadu_ps(planes + (size_t)j * K + k),
							dot[i]);
				tangle(dot, x->lut + ((size_t)(ch / c) * K + k) *
				       x->lanes + lane, x->lanes);
			}
}

/* s[64][lanes] += entries of groups @g .. @g + n - 1 */
INLINE void add_entries(const int lanes, const int n, const float *lut,
			const uint8_t *codes, float *s)
{
	uint32_t t;
	int i;

	for (t = 0; t < CQK_T; t++, s += lanes) {
		if (lanes == 4) {
			__m128 sum = _mm_loadu_ps(s);

			for (i = 0; i < n; i++)
				sum = _mm_add_ps(sum, _mm_loadu_ps(lut +
					((size_t)i * K + codes[i * CQK_T + t]) * 4));
			_mm_storeu_ps(s, sum);
		} else {
			__m256 sum = _mm256_loadu_ps(s);

			for (i = 0; i < n; i++)
				sum = _mm256_add_ps(sum, _mm256_loadu_ps(lut +
					((size_t)i * K + codes[i * CQK_T + t]) * 8));
			_mm256_storeu_ps(s, sum);
		}
	}
}

/* Four groups at a time over all waiting pages: their tables stay in L1. */
INLINE void lut_scores(const int lanes, struct long_head *x)
{
	uint32_t g, page, left;

	memset(x->s, 0, (size_t)x->n * CQK_T * lanes * sizeof(float));
	for (g = 0; g < x->k->n_groups; g += 4) {
		const float *lut = x->lut + (size_t)g * K * lanes;

		left = x->k->n_groups - g;
		for (page = 0; page < x->n; page++) {
			const uint8_t *codes = x->k_codes[page] + g * CQK_T;
			float *s = x->s + page * CQK_T * lanes;

			if (left >= 4)
				add_entries(lanes, 4, lut, codes, s);
			else if (left == 3)
				add_entries(lanes, 3, lut, codes, s);
			else if (left == 2)
				add_entries(lanes, 2, lut, codes, s);
			else
				add_entries(lanes, 1, lut, codes, s);
		}
	}
}

/* Keys to be turned: integers. */

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
			_mm256_storeu_si256((__m256i *)(void *)(x->key + ch * K + e), a);
		}
	}
}

/*
 * Scale a lane's query: no channel beyond 16 bits, no 32-bit sum beyond its
 * range. A sum takes every eighth pair of neighbours, a register's share.
 * Turning keeps the length of a pair of turned channels.
 */
static void scale_query(struct long_head *x, uint32_t lane)
{
	float *q = x->q[lane], size[MAX_D], part[8] = { 0 };
	float most = 0.0f, worst = 0.0f, up;
	uint32_t ch, i;

	for (ch = 0; ch < x->d; ch++) {
		q[ch] *= x->key_scale[ch] / KEY_ONE;
		size[ch] = fabsf(q[ch]);
	}
	for (ch = 0; ch < x->half; ch++)
		size[ch] = size[x->half + ch] =
			sqrtf(q[ch] * q[ch] + q[x->half + ch] * q[x->half + ch]);
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

static void integer_scores(struct long_head *x, uint32_t page)
{
	uint32_t c = x->k->code.channels;
	float *s = x->s + page * CQK_T * x->lanes;

	if (x->lanes == 4)
		(c == 8 ? key_scores_8_4 : key_scores_4_4)(x, page, s);
	else
		(c == 8 ? key_scores_8_8 : key_scores_4_8)(x, page, s);
}

/* Softmax. */

static void hide(struct long_head *x, uint32_t page)
{
	float *s = x->s + page * CQK_T * x->lanes;
	uint32_t t;
	int lane;

	for (lane = 0; lane < x->lanes; lane++) {
		uint64_t vis = x->vis[page][lane];

		for (t = 0; ~vis && t < CQK_T; t++)
			if (!(vis >> t & 1))
				s[t * x->lanes + lane] = -INFINITY;
	}
}

/* @lanes values, twice if four: one vector of lanes. */
static vf spread(const struct long_head *x, const float *lane)
{
	float both[8];
	int i;

	for (i = 0; i < 8; i++)
		both[i] = lane[i % x->lanes];
	return LD(both);
}

static void gather(const struct long_head *x, vf v, bool sum, float *lane)
{
	int i;

	for (i = 0; i < x->lanes; i++) {
		float a = v[i], b = v[(i + 4) % 8];

		lane[i] = x->lanes == 8 ? a : sum ? a + b : fmaxf(a, b);
	}
}

/* Units, cap, mask; largest score of each lane. */
static void tops(struct long_head *x, float *top)
{
	vf most = (vf){ 0 } - INFINITY, unit = spread(x, x->unit);
	float cap = x->h->a->soft_cap;
	uint32_t i, page;

	for (i = 0; i < x->n * CQK_T * x->lanes; i += VF) {
		vf s = LD(x->s + i) * unit;

		ST(x->s + i, cap > 0.0f ? vf_cap(s, cap) : s);
	}
	for (page = 0; page < x->n; page++)
		hide(x, page);
	for (i = 0; i < x->n * CQK_T * x->lanes; i += VF)
		most = vf_max(LD(x->s + i), most);
	gather(x, most, false, top);
}

/* Let p = 1 stand for higher scores; all sums so far shrink. */
static void raise_to(struct long_head *x, const float *m)
{
	size_t n = (size_t)x->v->n_groups * K * x->lanes, i;
	float r[CQK_LANES];
	vf shrink;
	int lane;

	for (lane = 0; lane < x->lanes; lane++) {
		r[lane] = m[lane] > x->m[lane] ? expf(x->m[lane] - m[lane]) : 1.0f;
		x->l[lane] *= r[lane];
		x->m[lane] = m[lane];
	}
	shrink = spread(x, r);
	for (i = 0; i < n; i += VF)
		ST(x->mass + i, LD(x->mass + i) * shrink);
}

static void softmax(struct long_head *x)
{
	float top[CQK_LANES] = { 0 }, m[CQK_LANES] = { 0 }, sum[CQK_LANES];
	vf total = (vf){ 0 }, ref;
	bool raise = false;
	uint32_t i;
	int lane;

	tops(x, top);
	for (lane = 0; lane < x->lanes; lane++) {
		m[lane] = fmaxf(x->m[lane], top[lane]);
		if (top[lane] > x->m[lane] + RAISE || isinf(x->m[lane]))
			raise = raise || m[lane] > x->m[lane];
	}
	if (raise)
		raise_to(x, m);
	for (lane = 0; lane < x->lanes; lane++)
		m[lane] = isinf(x->m[lane]) ? 0.0f : x->m[lane];
	ref = spread(x, m);
	for (i = 0; i < x->n * CQK_T * x->lanes; i += VF) {
		vf s = LD(x->s + i), p = vf_exp(s - ref);

		p = (vf)((vi)p & (s > (vf){ 0 } - INFINITY));
		ST(x->s + i, p);
		total += p;
	}
	gather(x, total, true, sum);
	for (lane = 0; lane < x->lanes; lane++)
		x->l[lane] += sum[lane];
}

static void flush(struct long_head *x)
{
	if (!x->n)
		return;
	if (x->lut && x->lanes == 4)
		lut_scores(4, x);
	else if (x->lut)
		lut_scores(8, x);
	softmax(x);
	if (x->lanes == 4)
		add_mass(4, x);
	else
		add_mass(8, x);
	x->n = 0;
}

static void long_turn(void *ctx, uint32_t pos)
{
	struct long_head *x = ctx;

	if (x->key)
		cqk_turn_init(x->h->a->rope, pos, x->turn);
}

static void long_lane(void *ctx, uint32_t lane)
{
	struct long_head *x = ctx;
	float q[MAX_D];
	uint32_t ch;

	if (!x->key)
		return;
	cqk_turn_query(x->turn, x->half, x->q[lane], x->d, q);
	for (ch = 0; ch < x->d; ch += 16) {
		__m256i a = _mm256_cvtps_epi32(_mm256_loadu_ps(q + ch));
		__m256i b = _mm256_cvtps_epi32(_mm256_loadu_ps(q + ch + 8));

		a = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
		_mm256_storeu_si256((__m256i *)(void *)&x->q16[lane][ch], a);
	}
}

static void long_page(void *ctx, const struct cqk_block *b, const uint64_t *vis)
{
	struct long_head *x = ctx;
	const struct cqk_attn *a = x->h->a;

	memcpy(x->vis[x->n], vis, sizeof(x->vis[x->n]));
	x->k_codes[x->n] = cqk_block_src(a, b, x->h->head, false, ~0ull).data;
	x->v_codes[x->n] = cqk_block_src(a, b, x->h->head, true, ~0ull).data;
	if (x->key)
		integer_scores(x, x->n);
	if (++x->n == BATCH)
		flush(x);
}

static const struct cqk_page_ops page_ops = {
	.turn = long_turn,
	.lane = long_lane,
	.page = long_page,
};

static struct long_head *long_begin(struct cqk_head *h)
{
	const struct cqk_layer *layer = &h->a->model->layers[h->a->layer];
	struct long_head *x = h->extra;
	size_t n_mass;
	uint32_t i;

	memset(x, 0, offsetof(struct long_head, s));
	x->h = h;
	x->k = &layer->k;
	x->v = &layer->v;
	x->d = h->chunk.d;
	x->half = cqk_turns_keys(h->a) ? h->a->rope->half : 0;
	x->lanes = (int)lanes_of(h->nq);
	n_mass = (size_t)x->v->n_groups * K * x->lanes;
	x->mass = (float *)(void *)((uint8_t *)x + ALIGN_UP(sizeof(*x), 64));
	memset(x->mass, 0, n_mass * sizeof(float));
	x->lut = x->half ? NULL : x->mass + n_mass;
	x->key = x->half ? (int16_t *)(void *)(x->mass + n_mass) : NULL;
	for (i = 0; i < CQK_LANES; i++) {
		x->m[i] = -INFINITY;
		x->unit[i] = 1.0f;
	}
	for (i = 0; i < h->nq; i++)
		memcpy(x->q[i], h->q + (size_t)i * h->dpad, x->d * sizeof(float));
	if (!x->key) {
		build_lut(x);
		return x;
	}
	build_keys(x);
	for (i = 0; i < h->nq; i++)
		scale_query(x, i);
	return x;
}

/* Merge into the driver's state. */
static void long_end(struct long_head *x)
{
	struct cqk_head *h = x->h;
	uint32_t lane, ch;

	flush(x);
	values_of_mass(x);
	for (lane = 0; lane < h->nq; lane++) {
		float *o = h->o + (size_t)lane * h->dpad;
		float m = fmaxf(h->m[lane], x->m[lane]), old, own;

		if (isinf(x->m[lane]))
			continue;
		old = expf(h->m[lane] - m);
		own = expf(x->m[lane] - m);
		for (ch = 0; ch < x->d; ch++)
			o[ch] = o[ch] * old + x->q[lane][ch] * own;
		h->l[lane] = h->l[lane] * old + x->l[lane] * own;
		h->m[lane] = m;
	}
}

/* Groups of less are more table look-ups than products: not worth it. */
static bool worth_tables(const struct cqk_codebook *cb)
{
	return cb->code.type == CQ_CODE_CQ && cb->code.channels >= 4;
}

bool cqk_long_fits(const struct cqk_attn *a)
{
	const struct cqk_layer *layer = &a->model->layers[a->layer];
	const struct cqk_geom *g = &a->model->geom;
	size_t nq = (size_t)a->n_rows * (g->n_heads / g->n_kv_heads);
	uint32_t c = layer->k.code.channels, i, pages = 0;

	if (!worth_tables(&layer->k) || !worth_tables(&layer->v) || !nq ||
	    nq > CQK_LANES)
		return false;
	if (cqk_turns_keys(a) && (g->head_dim % 16 || g->rope_dim % 32 ||
				  (c != 4 && c != 8)))
		return false;
	for (i = 0; i < a->n_blocks; i++)
		pages += a->blocks[i].kind == CQK_BLOCK_CODES;
	return pages >= CQK_LONG_PAGES;
}

/* Tables of @cb: one float per code and lane, or 16 bits per channel and code. */
static size_t table_bytes(const struct cqk_codebook *cb, uint32_t d, uint32_t lanes)
{
	size_t per_code = (size_t)cb->n_groups * lanes * sizeof(float);

	return K * (per_code > 2 * d ? per_code : 2 * d);
}

size_t cqk_long_bytes(const struct cqk_model *model, uint32_t n_rows)
{
	const struct cqk_geom *g = &model->geom;
	size_t nq = (size_t)n_rows * (g->n_heads / g->n_kv_heads), most = 0, n;
	/* Scratch for many rows serves calls of few rows too, which come here. */
	uint32_t l, lanes = lanes_of((uint32_t)MIN(nq, CQK_LANES));

	for (l = 0; l < g->n_layers; l++) {
		n = table_bytes(&model->layers[l].k, g->head_dim, lanes) +
		    table_bytes(&model->layers[l].v, g->head_dim, lanes);
		most = n > most ? n : most;
	}
	return ALIGN_UP(sizeof(struct long_head), 64) + ALIGN_UP(most, 64);
}

void cqk_long_head(const struct cqk_attn *a, uint32_t head,
		   const struct cqk_tile_ops *ops)
{
	struct cqk_head *h = cqk_head_begin(a, head);
	struct long_head *x = long_begin(h);
	uint32_t i;

	for (i = 0; i < a->n_blocks; i++) {
		if (a->blocks[i].kind == CQK_BLOCK_CODES)
			cqk_head_page(h, &a->blocks[i], &page_ops, x);
		else
			cqk_head_block(h, &a->blocks[i], ops);
	}
	long_end(x);
	cqk_head_end(h);
}
