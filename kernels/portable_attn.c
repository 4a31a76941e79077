// SPDX-License-Identifier: MIT
/*
 * Attention by decoded tiles: the driver of every implementation, and the
 * portable arithmetic. kernels/attn.h says how the parts meet.
 */
#define CQK_VB 16
#define CQK_MR 4
#include "kernels/tile.h"

static void put_f32(float *k, const struct cqk_src *src)
{
	uint32_t ch, t;

	for (ch = 0; ch < src->d; ch++) {
		const float *plane = src->cb->f32 +
			((size_t)src->kv_head * src->d + ch) * CQK_CENTROIDS;
		const uint8_t *code = src->data +
			ch / src->cb->code.channels * CQK_T;

		for (t = 0; t < CQK_T; t++)
			k[ch * CQK_T + t] = plane[code[t]];
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
		put_f32(k, src);
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
	for (ch = 0; src->cb && ch < src->d; ch++) {
		const float *plane = src->cb->f32 +
			((size_t)src->kv_head * src->d + ch) * CQK_CENTROIDS;
		const uint8_t *code = src->data +
			ch / src->cb->code.channels * CQK_T;

		for (t = 0; t < CQK_T; t++)
			v[(size_t)t * dpad + ch] = plane[code[t]];
	}
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
