/* SPDX-License-Identifier: MIT */
/*
 * Up to eight query vectors on a block of halves, part of attn_avx512.c: rows of
 * K and V ([tokens][d]) are read once, widened and used for all vectors. Nothing
 * but scores is written.
 *
 * Fetching is ahead by half a block: rows of V are asked for while the same
 * rows of K are worked on, rows of the next block's K meanwhile V is.
 */
#ifndef CQK_ROWS_AVX512_H
#define CQK_ROWS_AVX512_H

#include "kernels/few.h"
#include "kernels/x86/sum_avx512.h"

#define ROW_ACC 16	/* accumulators, as many as a register has floats */

INLINE vf row_load(const uint8_t *p)
{
	return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

INLINE void row_ahead(const uint8_t *p, size_t bytes)
{
	const uint8_t *end = p + bytes;

	for (; p < end; p += 64)
		__builtin_prefetch(p, 0, 3);
}

/* Scores of 16 / nq tokens from @t on; beyond the last the last again. */
INLINE vf rows_scores16(const int nq, const struct cqk_chunk *c,
			const struct cqk_src *k, uint32_t t)
{
	const int tok = ROW_ACC / nq;
	const uint8_t *row[ROW_ACC];
	vf acc[ROW_ACC], q[FEW];
	uint32_t ch;
	int r, i;

	for (i = 0; i < tok; i++)
		row[i] = k->data + (size_t)MIN(t + (uint32_t)i, c->tokens - 1) * c->d * 2;
	for (i = 0; i < ROW_ACC; i++)
		acc[i] = (vf){ 0 };
	for (ch = 0; ch < c->d; ch += VF) {
		for (r = 0; r < nq; r++)
			q[r] = LD(c->q + (size_t)r * c->dpad + ch);
		for (i = 0; i < tok; i++) {
			vf x = row_load(row[i] + 2 * (size_t)ch);

			for (r = 0; r < nq; r++)
				acc[r * tok + i] += x * q[r];
		}
	}
	return sum16(acc);
}

/* The same with keys turned by their offset; channels of no pair follow. */
INLINE vf rows_turned16(const int nq, const struct cqk_chunk *c,
			const struct cqk_src *k, const struct cqk_rope *rope,
			uint32_t t)
{
	const int tok = ROW_ACC / nq;
	uint32_t half = rope->half, ch, at;
	vf acc[ROW_ACC];
	int r, i;

	for (i = 0; i < ROW_ACC; i++)
		acc[i] = (vf){ 0 };
	for (ch = 0; ch < half; ch += VF)
		for (i = 0; i < tok; i++) {
			const uint8_t *row;
			const float *cs;
			vf lo, hi, x, y;

			at = MIN(t + (uint32_t)i, c->tokens - 1);
			row = k->data + ((size_t)at * c->d + ch) * 2;
			cs = rope->in_page + (size_t)at * 2 * half + ch;
			lo = row_load(row);
			hi = row_load(row + (size_t)half * 2);
			x = lo * LD(cs) - hi * LD(cs + half);
			y = lo * LD(cs + half) + hi * LD(cs);
			for (r = 0; r < nq; r++) {
				const float *q = c->q + (size_t)r * c->dpad + ch;

				acc[r * tok + i] += x * LD(q);
				acc[r * tok + i] += y * LD(q + half);
			}
		}
	for (ch = 2 * half; ch < c->d; ch += VF)
		for (i = 0; i < tok; i++) {
			vf x;

			at = MIN(t + (uint32_t)i, c->tokens - 1);
			x = row_load(k->data + ((size_t)at * c->d + ch) * 2);
			for (r = 0; r < nq; r++)
				acc[r * tok + i] += x * LD(c->q + (size_t)r * c->dpad + ch);
		}
	return sum16(acc);
}

INLINE void rows_scores(const int nq, const struct cqk_chunk *c,
			const struct cqk_src *k, const struct cqk_rope *rope)
{
	const int tok = ROW_ACC / nq;
	size_t bytes = (size_t)c->d * 2;
	float got[ROW_ACC];
	uint32_t t;
	int r;

	for (t = 0; t < c->tokens; t += tok) {
		if (k->next)
			row_ahead(k->next + t * bytes, tok * bytes);
		ST(got, rope ? rows_turned16(nq, c, k, rope, t) :
			       rows_scores16(nq, c, k, t));
		for (r = 0; r < nq; r++)
			memcpy(c->s + r * CQK_T + t, got + r * tok, tok * sizeof(*got));
	}
}

/* o[nq][16 cv] += s[nq][t] v[t][16 cv] over the tokens in @live */
INLINE void rows_columns(const int nq, const int cv, const struct cqk_chunk *c,
			 const struct cqk_src *v, uint64_t live, size_t ch)
{
	vf acc[ROW_ACC];
	int r, i;

	for (r = 0; r < nq; r++)
		for (i = 0; i < cv; i++)
			acc[r * cv + i] = LD(c->o[r] + ch + i * VF);
	for (; live; live &= live - 1) {
		size_t t = (size_t)__builtin_ctzll(live);
		size_t at = (t * c->d + ch) * 2;
		vf x[ROW_ACC / 2];

		if (v->next)
			row_ahead(v->next + at, (size_t)cv * VF * 2);
		for (i = 0; i < cv; i++)
			x[i] = row_load(v->data + at + (size_t)i * VF * 2);
		for (r = 0; r < nq; r++) {
			float p = c->s[r * CQK_T + t];

			for (i = 0; i < cv; i++)
				acc[r * cv + i] += x[i] * p;
		}
	}
	for (r = 0; r < nq; r++)
		for (i = 0; i < cv; i++)
			ST(c->o[r] + ch + i * VF, acc[r * cv + i]);
}

INLINE void rows_accum(const int nq, const struct cqk_chunk *c,
		       const struct cqk_src *v, uint64_t live)
{
	const int cv = MIN(ROW_ACC / nq, ROW_ACC / 2);
	size_t ch, d = c->d;

	for (ch = 0; ch + (size_t)cv * VF <= d; ch += (size_t)cv * VF)
		rows_columns(nq, cv, c, v, live, ch);
	if (cv > 4 && ch + 4 * VF <= d) {
		rows_columns(nq, 4, c, v, live, ch);
		ch += 4 * VF;
	}
	if (cv > 2 && ch + 2 * VF <= d) {
		rows_columns(nq, 2, c, v, live, ch);
		ch += 2 * VF;
	}
	if (ch < d)
		rows_columns(nq, 1, c, v, live, ch);
}

#define ROWS_FNS(nq)								\
static void rows_scores_##nq(const struct cqk_chunk *c, const struct cqk_src *k, \
			     const struct cqk_rope *rope)			\
{										\
	rows_scores(nq, c, k, rope);						\
}										\
static void rows_accum_##nq(const struct cqk_chunk *c, const struct cqk_src *v,	\
			    uint64_t live)					\
{										\
	rows_accum(nq, c, v, live);						\
}
ROWS_FNS(1)
ROWS_FNS(2)
ROWS_FNS(4)
ROWS_FNS(8)

/* struct cqk_tile_ops.few for halves; false if the shape does not fit. */
static bool rows_few(struct cqk_chunk *c, const struct cqk_src *k,
		     const struct cqk_src *v, const struct cqk_rope *rope)
{
	static void (*const scores[])(const struct cqk_chunk *, const struct cqk_src *,
				      const struct cqk_rope *) = {
		rows_scores_1, rows_scores_2, rows_scores_4, rows_scores_8 };
	static void (*const accum[])(const struct cqk_chunk *, const struct cqk_src *,
				     uint64_t) = {
		rows_accum_1, rows_accum_2, rows_accum_4, rows_accum_8 };
	uint64_t live = 0;
	uint32_t r;
	int log;

	if (c->n > FEW || k->cb || v->cb || c->d % VF || (rope && rope->half % VF))
		return false;
	log = pad_chunk(c);
	scores[log](c, k, rope && rope->half ? rope : NULL);
	tile_softmax(c);
	clear_scores(c, log);
	for (r = 0; r < c->n; r++)
		live |= c->vis[r];
	accum[log](c, v, live);
	return true;
}

#endif /* CQK_ROWS_AVX512_H */
