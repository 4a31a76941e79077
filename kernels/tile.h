/* SPDX-License-Identifier: MIT */
/*
 * Tile arithmetic of attention, compiled once per instruction set.
 *
 * The including file defines CQK_VB (bytes of a vector, vec.h) and CQK_MR
 * (query rows per block, so that CQK_MR * 2 accumulators fit into the
 * registers) and has the compiler flags. Online softmax: Dao et al., FlashAttention, arXiv
 * 2205.14135, algorithm 1.
 */
#include <string.h>
#include "kernels/vec.h"
#include "kernels/f16.h"

#define STRIP (2 * VF)

static void scale_row(float *o, uint32_t dpad, float r)
{
	uint32_t i;

	for (i = 0; i < dpad; i += VF)
		ST(o + i, LD(o + i) * r);
}

static float softmax_top(float *s, uint64_t vis, float cap)
{
	vf top = (vf){ 0 } - INFINITY;
	int i;

	for (i = 0; i < CQK_T; i += VF) {
		vf x = LD(s + i);

		if (cap > 0.0f)
			x = vf_cap(x, cap);
		if (~vis)
			x = vf_pick(vi_mask(vis >> i), x, (vf){ 0 } - INFINITY);
		ST(s + i, x);
		top = vf_max(x, top);
	}
	return vf_top(top);
}

static float softmax_exp(float *s, uint64_t vis, float m)
{
	vf sum = (vf){ 0 };
	int i;

	for (i = 0; i < CQK_T; i += VF) {
		vf p = vf_exp(LD(s + i) - m);

		if (~vis)
			p = (vf)((vi)p & vi_mask(vis >> i));
		ST(s + i, p);
		sum += p;
	}
	return vf_sum(sum);
}

static void tile_softmax(struct cqk_chunk *c)
{
	uint32_t i;

	for (i = 0; i < c->n; i++) {
		float *s = c->s + i * CQK_T;
		float old = *c->m[i];
		float m = softmax_top(s, c->vis[i], c->soft_cap);

		if (m > old) {
			float r = expf(old - m);

			*c->m[i] = m;
			*c->l[i] *= r;
			scale_row(c->o[i], c->dpad, r);
		} else {
			m = old;
		}
		*c->l[i] += softmax_exp(s, c->vis[i], m);
	}
}

/* s[mr][STRIP] = q[mr][d] k[d][STRIP] */
INLINE void scores_block(const int mr, const float *q, size_t dpad,
			 const float *k, uint32_t d, float *s)
{
	vf acc[CQK_MR][2];
	uint32_t ch;
	int r;

	for (r = 0; r < mr; r++)
		acc[r][0] = acc[r][1] = (vf){ 0 };
	for (ch = 0; ch < d; ch++, k += CQK_T) {
		vf k0 = LD(k), k1 = LD(k + VF);

		for (r = 0; r < mr; r++) {
			acc[r][0] += k0 * q[r * dpad + ch];
			acc[r][1] += k1 * q[r * dpad + ch];
		}
	}
	for (r = 0; r < mr; r++) {
		ST(s + r * CQK_T, acc[r][0]);
		ST(s + r * CQK_T + VF, acc[r][1]);
	}
}

static void tile_scores(const struct cqk_chunk *c)
{
	uint32_t t, r;

	for (t = 0; t < c->tokens; t += STRIP) {
		const float *q = c->q, *k = c->k + t;
		float *s = c->s + t;

		for (r = 0; r + CQK_MR <= c->n; r += CQK_MR)
			scores_block(CQK_MR, q + r * c->dpad, c->dpad, k, c->d,
				     s + r * CQK_T);
		for (; r + 4 <= c->n; r += 4)
			scores_block(4, q + r * c->dpad, c->dpad, k, c->d,
				     s + r * CQK_T);
		for (; r + 2 <= c->n; r += 2)
			scores_block(2, q + r * c->dpad, c->dpad, k, c->d,
				     s + r * CQK_T);
		for (; r < c->n; r++)
			scores_block(1, q + r * c->dpad, c->dpad, k, c->d,
				     s + r * CQK_T);
	}
}

/* o[mr][STRIP] += s[mr][tokens] v[tokens][STRIP] */
INLINE void accum_block(const int mr, const struct cqk_chunk *c, uint32_t row,
			uint32_t ch)
{
	const float *v = c->v + ch;
	const float *s = c->s + row * CQK_T;
	vf acc[CQK_MR][2];
	uint32_t t;
	int r;

	for (r = 0; r < mr; r++) {
		acc[r][0] = LD(c->o[row + r] + ch);
		acc[r][1] = LD(c->o[row + r] + ch + VF);
	}
	for (t = 0; t < c->tokens; t++, v += c->dpad) {
		vf v0 = LD(v), v1 = LD(v + VF);

		for (r = 0; r < mr; r++) {
			acc[r][0] += v0 * s[r * CQK_T + t];
			acc[r][1] += v1 * s[r * CQK_T + t];
		}
	}
	for (r = 0; r < mr; r++) {
		ST(c->o[row + r] + ch, acc[r][0]);
		ST(c->o[row + r] + ch + VF, acc[r][1]);
	}
}

static void tile_accum(const struct cqk_chunk *c)
{
	uint32_t ch, r;

	for (ch = 0; ch < c->d; ch += STRIP) {
		for (r = 0; r + CQK_MR <= c->n; r += CQK_MR)
			accum_block(CQK_MR, c, r, ch);
		for (; r + 4 <= c->n; r += 4)
			accum_block(4, c, r, ch);
		for (; r + 2 <= c->n; r += 2)
			accum_block(2, c, r, ch);
		for (; r < c->n; r++)
			accum_block(1, c, r, ch);
	}
}

/* Keys by the in-page offset: channel j with channel half + j. */
static void tile_turn(float *k, const struct cqk_rope *rope)
{
	uint32_t j, t;

	for (j = 0; j < rope->half; j++) {
		const float *cs = rope->in_page_t + (size_t)j * 2 * CQK_T;
		float *lo = k + (size_t)j * CQK_T;
		float *hi = lo + (size_t)rope->half * CQK_T;

		for (t = 0; t < CQK_T; t += VF) {
			vf c = LD(cs + t), s = LD(cs + CQK_T + t);
			vf a = LD(lo + t), b = LD(hi + t);

			ST(lo + t, a * c - b * s);
			ST(hi + t, a * s + b * c);
		}
	}
}
