// SPDX-License-Identifier: MIT
/*
 * Attention with AVX2, FMA and F16C.
 *
 * Up to eight query vectors on a block (decoding: one row of a kv head's query
 * heads) go straight from the stored block: each centroid is loaded once,
 * widened to float and used for all of them; nothing is written but scores.
 * More vectors share a decoded tile. Codings fetch_avx2.h does not know take
 * the tile, too.
 */
#define CQK_VB 32
#define CQK_MR 6
#include "kernels/tile.h"
#include "kernels/few.h"
#include "kernels/x86/fetch_avx2.h"
#include "kernels/long.h"

/* Sums of eight accumulators, in order. */
INLINE __m256 sum8(const __m256 *a)
{
	__m256 x = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]),
				  _mm256_hadd_ps(a[2], a[3]));
	__m256 y = _mm256_hadd_ps(_mm256_hadd_ps(a[4], a[5]),
				  _mm256_hadd_ps(a[6], a[7]));

	return _mm256_add_ps(_mm256_permute2f128_ps(x, y, 0x20),
			     _mm256_permute2f128_ps(x, y, 0x31));
}

/* acc[r * tok + i] += q[r] x[i], eight channels */
INLINE void dot8(const int nq, const __m256 *x, const float *q, size_t dpad,
		 __m256 *acc)
{
	const int tok = FEW / nq;
	int r, i;

	for (r = 0; r < nq; r++) {
		__m256 y = _mm256_loadu_ps(q + r * dpad);

		for (i = 0; i < tok; i++)
			acc[r * tok + i] = _mm256_fmadd_ps(x[i], y, acc[r * tok + i]);
	}
}

/* Channels j.. and half + j.. of token t, turned by t. */
INLINE void turn8(const enum fetch_kind kind, const struct feed *f,
		  const struct cqk_rope *rope, size_t t, size_t j,
		  __m256 *lo, __m256 *hi)
{
	const float *cs = rope->in_page + t * 2 * rope->half + j;
	__m256 a = fetch8(kind, f, t, j), b = fetch8(kind, f, t, rope->half + j);
	__m256 c = _mm256_loadu_ps(cs), s = _mm256_loadu_ps(cs + rope->half);

	*lo = _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s));
	*hi = _mm256_fmadd_ps(a, s, _mm256_mul_ps(b, c));
}

/* Scores of 8 / nq tokens from @t on; beyond the last the last again. */
INLINE __m256 scores8(const enum fetch_kind kind, const int nq, const bool turn,
		      const struct cqk_chunk *c, const struct feed *f,
		      const struct cqk_rope *rope, size_t t)
{
	const int tok = FEW / nq;
	size_t ch = 0, last = c->tokens - 1, half = turn ? rope->half : 0;
	__m256 acc[FEW], x[FEW], y[FEW];
	int i;

	for (i = 0; i < FEW; i++)
		acc[i] = _mm256_setzero_ps();
	for (; turn && ch < half; ch += 8) {
		for (i = 0; i < tok; i++)
			turn8(kind, f, rope, MIN(t + i, last), ch, &x[i], &y[i]);
		dot8(nq, x, c->q + ch, c->dpad, acc);
		dot8(nq, y, c->q + half + ch, c->dpad, acc);
	}
	for (ch += half; ch < c->d; ch += 8) {
		for (i = 0; i < tok; i++)
			x[i] = fetch8(kind, f, MIN(t + i, last), ch);
		dot8(nq, x, c->q + ch, c->dpad, acc);
	}
	return sum8(acc);
}

/* Rows of V come by columns later: have them brought while K is worked on. */
INLINE void fetch_ahead(const struct feed *f, uint32_t t, uint32_t n)
{
	const uint8_t *at = f->ahead + t * f->ahead_row;
	const uint8_t *end = at + n * f->ahead_row;

	for (; at < end; at += 64)
		_mm_prefetch((const char *)at, _MM_HINT_T0);
}

INLINE void few_scores(const enum fetch_kind kind, const int nq, const bool turn,
		       const struct cqk_chunk *c, const struct feed *f,
		       const struct cqk_rope *rope)
{
	const int tok = FEW / nq;
	float got[FEW];
	uint32_t t;
	int r;

	for (t = 0; t < c->tokens; t += tok) {
		if (f->ahead)
			fetch_ahead(f, t, tok);
		_mm256_storeu_ps(got, scores8(kind, nq, turn, c, f, rope, t));
		for (r = 0; r < nq; r++)
			memcpy(c->s + r * CQK_T + t, got + r * tok, tok * sizeof(*got));
	}
}

/* o[nq][8 cv] += s[nq][t] v[t][8 cv] over the tokens in @live */
INLINE void accum_cols(const enum fetch_kind kind, const int nq, const int cv,
		       const struct cqk_chunk *c, const struct feed *f,
		       uint64_t live, size_t ch)
{
	__m256 acc[FEW], x[FEW];
	int r, i;

	for (r = 0; r < nq; r++)
		for (i = 0; i < cv; i++)
			acc[r * cv + i] = _mm256_loadu_ps(c->o[r] + ch + i * 8);
	for (; live; live &= live - 1) {
		size_t t = (size_t)__builtin_ctzll(live);

		for (i = 0; i < cv; i++)
			x[i] = fetch8(kind, f, t, ch + i * 8);
		for (r = 0; r < nq; r++) {
			__m256 p = _mm256_broadcast_ss(c->s + r * CQK_T + t);

			for (i = 0; i < cv; i++)
				acc[r * cv + i] = _mm256_fmadd_ps(p, x[i],
								  acc[r * cv + i]);
		}
	}
	for (r = 0; r < nq; r++)
		for (i = 0; i < cv; i++)
			_mm256_storeu_ps(c->o[r] + ch + i * 8, acc[r * cv + i]);
}

INLINE void few_accum(const enum fetch_kind kind, const int nq,
		      const struct cqk_chunk *c, const struct feed *f, uint64_t live)
{
	const int cv = FEW / nq;
	uint32_t ch;

	for (ch = 0; ch + cv * 8 <= c->d; ch += cv * 8)
		accum_cols(kind, nq, cv, c, f, live, ch);
	for (; ch < c->d; ch += 8)
		accum_cols(kind, nq, 1, c, f, live, ch);
}

typedef void (*scores_fn)(const struct cqk_chunk *, const struct feed *,
			  const struct cqk_rope *);
typedef void (*accum_fn)(const struct cqk_chunk *, const struct feed *, uint64_t);

#define FEW_FNS(kind, nq)							\
static void scores_##kind##_##nq(const struct cqk_chunk *c,			\
				 const struct feed *f,				\
				 const struct cqk_rope *rope)			\
{										\
	if (rope)								\
		few_scores(FETCH_##kind, nq, true, c, f, rope);			\
	else									\
		few_scores(FETCH_##kind, nq, false, c, f, rope);		\
}										\
static void accum_##kind##_##nq(const struct cqk_chunk *c,			\
				const struct feed *f, uint64_t live)		\
{										\
	few_accum(FETCH_##kind, nq, c, f, live);				\
}
#define FEW_KIND(kind)								\
	FEW_FNS(kind, 1) FEW_FNS(kind, 2) FEW_FNS(kind, 4) FEW_FNS(kind, 8)
FEW_KIND(ROW)
FEW_KIND(H8)
FEW_KIND(H4)
FEW_KIND(H2)
FEW_KIND(B8)
FEW_KIND(B4)
FEW_KIND(B2)
FEW_KIND(H8W)
FEW_KIND(B8W)

#define FEW_ROW(fn, kind)							\
	[FETCH_##kind] = { fn##_##kind##_1, fn##_##kind##_2,			\
			   fn##_##kind##_4, fn##_##kind##_8 }
#define FEW_TABLE(fn) {								\
	FEW_ROW(fn, ROW), FEW_ROW(fn, H8), FEW_ROW(fn, H4), FEW_ROW(fn, H2),	\
	FEW_ROW(fn, B8), FEW_ROW(fn, B4), FEW_ROW(fn, B2),			\
	FEW_ROW(fn, H8W), FEW_ROW(fn, B8W) }
static const scores_fn scores_table[][4] = FEW_TABLE(scores);
static const accum_fn accum_table[][4] = FEW_TABLE(accum);

static bool avx2_few(struct cqk_chunk *c, const struct cqk_src *k,
		     const struct cqk_src *v, const struct cqk_rope *rope)
{
	enum fetch_kind kind_k = feed_kind(k), kind_v = feed_kind(v);
	uint64_t live = 0;
	struct feed f;
	uint32_t r;
	int log;

	if (c->n > FEW || kind_k == FETCH_NONE || kind_v == FETCH_NONE ||
	    (rope && rope->half % 8))
		return false;
	if (rope && !rope->half)
		rope = NULL;
	log = pad_chunk(c);
	feed_init(&f, k);
	if (kind_v == FETCH_ROW) {
		f.ahead = v->data;
		f.ahead_row = (size_t)v->d * 2;
	}
	scores_table[kind_k][log](c, &f, rope);
	tile_softmax(c);
	clear_scores(c, log);
	for (r = 0; r < c->n; r++)
		live |= c->vis[r];
	feed_init(&f, v);
	accum_table[kind_v][log](c, &f, live);
	return true;
}

INLINE void rows8(const enum fetch_kind kind, const struct feed *f,
		  uint64_t live, float *out, size_t stride)
{
	size_t ch;

	for (; live; live &= live - 1) {
		size_t t = (size_t)__builtin_ctzll(live);

		for (ch = 0; ch < f->d; ch += 8)
			_mm256_storeu_ps(out + t * stride + ch,
					 fetch8(kind, f, t, ch));
	}
}

/* Token-major floats of the tokens in @live. */
static void load_rows(const struct cqk_src *src, uint64_t live, float *out,
		      size_t stride)
{
	struct feed f;

	feed_init(&f, src);
	switch (feed_kind(src)) {
	case FETCH_ROW: rows8(FETCH_ROW, &f, live, out, stride); break;
	case FETCH_H8: rows8(FETCH_H8, &f, live, out, stride); break;
	case FETCH_H4: rows8(FETCH_H4, &f, live, out, stride); break;
	case FETCH_H2: rows8(FETCH_H2, &f, live, out, stride); break;
	case FETCH_B8: rows8(FETCH_B8, &f, live, out, stride); break;
	case FETCH_B4: rows8(FETCH_B4, &f, live, out, stride); break;
	case FETCH_B2: rows8(FETCH_B2, &f, live, out, stride); break;
	case FETCH_H8W: rows8(FETCH_H8W, &f, live, out, stride); break;
	case FETCH_B8W: rows8(FETCH_B8W, &f, live, out, stride); break;
	case FETCH_NONE: break;
	}
}

/* out[8][64] = in[8][stride] transposed */
INLINE void transpose8(const float *in, size_t stride, float *out)
{
	__m256 x[8], y[8];
	int i;

	for (i = 0; i < 8; i++)
		x[i] = _mm256_loadu_ps(in + i * stride);
	for (i = 0; i < 8; i += 2) {
		y[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
		y[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
	}
	for (i = 0; i < 8; i += 4) {
		x[i] = _mm256_shuffle_ps(y[i], y[i + 2], 0x44);
		x[i + 1] = _mm256_shuffle_ps(y[i], y[i + 2], 0xee);
		x[i + 2] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0x44);
		x[i + 3] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0xee);
	}
	for (i = 0; i < 4; i++) {
		_mm256_storeu_ps(out + (size_t)i * CQK_T,
				 _mm256_permute2f128_ps(x[i], x[i + 4], 0x20));
		_mm256_storeu_ps(out + (size_t)(i + 4) * CQK_T,
				 _mm256_permute2f128_ps(x[i], x[i + 4], 0x31));
	}
}

static void avx2_load_k(const struct cqk_src *src, const struct cqk_rope *rope,
			float *k, float *tmp)
{
	size_t stride = ALIGN_UP(src->d, CQK_PAD), t, ch;
	uint64_t all = src->tokens < 64 ? (1ull << src->tokens) - 1 : ~0ull;

	if (feed_kind(src) == FETCH_NONE) {
		cqk_tile_portable.load_k(src, rope, k, tmp);
		return;
	}
	load_rows(src, all, tmp, stride);
	for (t = 0; t < src->tokens; t += 8)
		for (ch = 0; ch < src->d; ch += 8)
			transpose8(tmp + t * stride + ch, stride, k + ch * CQK_T + t);
	if (rope)
		tile_turn(k, rope);
}

static void avx2_load_v(const struct cqk_src *src, float *v, uint32_t dpad)
{
	uint32_t t;

	if (feed_kind(src) == FETCH_NONE) {
		cqk_tile_portable.load_v(src, v, dpad);
		return;
	}
	for (t = 0; t < src->tokens; t++) {
		float *row = v + (size_t)t * dpad;

		if (src->live >> t & 1)
			memset(row + src->d, 0, (dpad - src->d) * sizeof(*row));
		else
			memset(row, 0, dpad * sizeof(*row));
	}
	load_rows(src, src->live, v, dpad);
}

const struct cqk_tile_ops cqk_tile_avx2 = {
	.few = avx2_few,
	.load_k = avx2_load_k,
	.load_v = avx2_load_v,
	.scores = tile_scores,
	.softmax = tile_softmax,
	.accum = tile_accum,
};

static void avx2_attention(const struct cqk_attn *a)
{
	cqk_attn_long(a, &cqk_long_avx2, &cqk_tile_avx2);
}

static const char *avx2_path(const struct cqk_attn *a)
{
	if (!cqk_long_avx2.fits(a))
		return "tile";
	return cqk_turns_keys(a) ? "integers" : "tables";
}

static size_t avx2_scratch_bytes(const struct cqk_model *model, uint32_t n_rows)
{
	return cqk_head_bytes(model, n_rows) + cqk_long_avx2.bytes(model, n_rows);
}

const struct cqk_ops cqk_avx2 = {
	.name = "avx2",
	.priority = 10,
	.usable = cqk_cpu_has_avx2,
	.encode = cqk_avx2_encode,
	.decode = cqk_avx2_decode,
	.scratch_bytes = avx2_scratch_bytes,
	.attention = avx2_attention,
	.path = avx2_path,
};
