// SPDX-License-Identifier: MIT
/*
 * Attention by decoded tiles: the driver of every implementation, and the
 * portable arithmetic. kernels/attn.h says how the parts meet.
 */
#define CQK_VB 16
#define CQK_MR 4
#include "kernels/tile.h"

/* @n channels of one group: a code is read once for them. */
INLINE void put_some(const uint32_t n, const float *plane, size_t centroids,
		     const uint16_t *code, float *out, size_t token, size_t channel)
{
	uint32_t t, j;

	for (t = 0; t < CQK_T; t++, out += token)
		for (j = 0; j < n; j++)
			out[j * channel] = plane[j * centroids + code[t]];
}

/* Centroids of a block's tokens, @token and @channel floats apart in @out. */
static void put_f32(const struct cqk_src *src, float *out, size_t token, size_t channel)
{
	const struct cqk_codebook *cb = src->cb;
	size_t k = cqk_code_centroids(cb->code);
	const float *plane = cb->f32 + (size_t)src->kv_head * src->d * k;
	uint32_t c = cb->code.channels, ch, n, t;
	uint16_t code[CQK_T];

	for (ch = 0; ch < src->d; ch += n) {
		const float *from = plane + ch * k;
		float *to = out + ch * channel;

		for (t = 0; ch % c == 0 && t < CQK_T; t++)
			code[t] = (uint16_t)cq_code_get(src->data, cb->code, cb->n_groups,
							ch / c, t);
		n = c - ch % c >= 4 ? 4 : c - ch % c >= 2 ? 2 : 1;
		if (n == 4)
			put_some(4, from, k, code, to, token, channel);
		else if (n == 2)
			put_some(2, from, k, code, to, token, channel);
		else
			put_some(1, from, k, code, to, token, channel);
	}
}

static float half_at(const struct cqk_src *src, uint32_t t, uint32_t ch)
{
	uint16_t h;

	memcpy(&h, src->data + ((size_t)t * src->d + ch) * 2, sizeof(h));
	return cqk_f16_to_f32(h);
}

static bool portable_few(struct cqk_chunk *c, const struct cqk_src *k,
			 const struct cqk_src *v, const struct cqk_rope *rope)
{
	return false;
}

static void portable_load_k(const struct cqk_src *src,
			    const struct cqk_rope *rope, float *k, float *tmp)
{
	uint32_t ch, t;

	if (src->cb)
		put_f32(src, k, 1, CQK_T);
	else
		for (t = 0; t < src->tokens; t++)
			for (ch = 0; ch < src->d; ch++)
				k[ch * CQK_T + t] = half_at(src, t, ch);
	if (rope)
		tile_turn(k, rope);
}

static void portable_load_v(const struct cqk_src *src, float *v, uint32_t dpad)
{
	uint32_t ch, t;

	for (t = 0; t < src->tokens; t++)
		memset(v + (size_t)t * dpad, 0, dpad * sizeof(*v));
	if (src->cb)
		put_f32(src, v, dpad, 1);
	for (t = 0; !src->cb && t < src->tokens; t++)
		for (ch = 0; src->live >> t & 1 && ch < src->d; ch++)
			v[(size_t)t * dpad + ch] = half_at(src, t, ch);
}

const struct cqk_tile_ops cqk_tile_portable = {
	.few = portable_few,
	.load_k = portable_load_k,
	.load_v = portable_load_v,
	.scores = tile_scores,
	.softmax = tile_softmax,
	.accum = tile_accum,
};
