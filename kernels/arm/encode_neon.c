// SPDX-License-Identifier: MIT
/*
 * Encoding with NEON. No FMA here, neither by intrinsic nor by contraction: codes
 * must equal the portable encoder's bit for bit.
 */
#include <arm_neon.h>
#include "kernels/attn.h"
#include "kernels/f16.h"

#define TOK 4	/* tokens that share the loads of centroids */

struct best {
	float32x4_t dist;
	uint32x4_t k;
};

/* Among the lanes with the least distance the lowest k. */
static uint8_t least_lane(const struct best *b)
{
	float dist[4];
	uint32_t k[4], i, at = 0;

	vst1q_f32(dist, b->dist);
	vst1q_u32(k, b->k);
	for (i = 1; i < 4; i++)
		if (dist[i] < dist[at] || (dist[i] == dist[at] && k[i] < k[at]))
			at = i;
	return (uint8_t)k[at];
}

/* Nearest of 256 centroids for TOK tokens, whose channels are [c][TOK]. */
static void nearest4(const float *half_norm, const float *planes, const float *x,
		     uint32_t c, struct best *best)
{
	uint32x4_t k = { 0, 1, 2, 3 };
	uint32_t at, j, t;

	for (t = 0; t < TOK; t++) {
		best[t].dist = vdupq_n_f32(__builtin_inff());
		best[t].k = vdupq_n_u32(0);
	}
	for (at = 0; at < CQK_CENTROIDS; at += 4) {
		float32x4_t d[TOK];

		for (t = 0; t < TOK; t++)
			d[t] = vld1q_f32(half_norm + at);
		for (j = 0; j < c; j++) {
			float32x4_t p = vld1q_f32(planes + (size_t)j * CQK_CENTROIDS + at);
			float32x4_t y = vld1q_f32(x + (size_t)j * TOK);

			d[0] = vsubq_f32(d[0], vmulq_laneq_f32(p, y, 0));
			d[1] = vsubq_f32(d[1], vmulq_laneq_f32(p, y, 1));
			d[2] = vsubq_f32(d[2], vmulq_laneq_f32(p, y, 2));
			d[3] = vsubq_f32(d[3], vmulq_laneq_f32(p, y, 3));
		}
		for (t = 0; t < TOK; t++) {
			uint32x4_t less = vcltq_f32(d[t], best[t].dist);

			best[t].dist = vbslq_f32(less, d[t], best[t].dist);
			best[t].k = vbslq_u32(less, k, best[t].k);
		}
		k = vaddq_u32(k, vdupq_n_u32(4));
	}
}

/**
 * cqk_neon_encode() - see struct cqk_ops.encode
 */
void cqk_neon_encode(const struct cqk_codebook *cb, uint32_t kv_head,
		     const uint16_t *x, uint32_t first, uint32_t n, uint8_t *codes)
{
	uint32_t d = cb->head_dim, c = cb->code.channels, g, t, i, j;
	float y[CQK_MAX_CHANNELS * TOK];
	struct best best[TOK];

	if (cb->code.type == CQ_CODE_F16 || !cqk_byte_codes(cb) || c > CQK_MAX_CHANNELS) {
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
			nearest4(cb->half_norm + group * CQK_CENTROIDS,
				 cb->enc + group * c * CQK_CENTROIDS, y, c, best);
			for (i = 0; i < TOK && t + i < n; i++)
				codes[g * CQK_T + first + t + i] = least_lane(&best[i]);
		}
	}
}
