// SPDX-License-Identifier: MIT
/*
 * Portable encoder and decoder: the specification that every other
 * implementation is tested against, bit by bit.
 */
#include <string.h>
#include "kernels/attn.h"
#include "kernels/f16.h"
#include "kernels/long.h"

#define SOME 16		/* centroids that are looked at together */

/*
 * dist[k] = half_norm[k] - sum_j x_j * e_kj, in that order, each step rounded; planes
 * are @n floats apart
 */
static void distances(const float *half_norm, const float *planes, uint32_t n,
		      const float *x, uint32_t c, float *dist)
{
	float acc[SOME];	/* in registers: what is loaded from @planes waits for no store */
	uint32_t j, k;

	for (k = 0; k < SOME; k++)
		acc[k] = half_norm[k];
	for (j = 0; j < c; j++, planes += n)
		for (k = 0; k < SOME; k++)
			acc[k] -= x[j] * planes[k];
	memcpy(dist, acc, sizeof(acc));
}

/* Of @n centroids the lowest with the least distance; 0 if nothing compares. */
static uint32_t nearest(const float *half_norm, const float *planes, uint32_t n,
			const uint16_t *x, uint32_t c)
{
	float dist[SOME], y[CQ_MAX_HEAD_DIM], least = 0;
	uint32_t at, j, k, best = 0;

	for (j = 0; j < c; j++)
		y[j] = cqk_f16_to_f32(x[j]);
	for (at = 0; at < n; at += SOME) {
		distances(half_norm + at, planes + at, n, y, c, dist);
		for (k = 0; k < SOME; k++)
			if (at + k == 0 || dist[k] < least) {
				least = dist[k];
				best = at + k;
			}
	}
	return best;
}

/**
 * cqk_portable_encode() - see struct cqk_ops.encode
 */
void cqk_portable_encode(const struct cqk_codebook *cb, uint32_t kv_head,
			 const uint16_t *x, uint32_t first, uint32_t n,
			 uint8_t *codes)
{
	uint32_t d = cb->head_dim, c = cb->code.channels, g, t;
	uint32_t k = cqk_code_centroids(cb->code);

	if (cb->code.type == CQ_CODE_F16) {
		memcpy(codes + (size_t)first * d * 2, x, (size_t)n * d * 2);
		return;
	}
	for (g = 0; g < cb->n_groups; g++) {
		const float *norm = cb->half_norm +
			((size_t)kv_head * cb->n_groups + g) * k;
		const float *planes = cb->enc + ((size_t)kv_head * d + g * c) * k;

		for (t = 0; t < n; t++) {
			uint32_t best = nearest(norm, planes, k, x + (size_t)t * d + g * c, c);

			cq_code_put(codes, cb->code, cb->n_groups, g, first + t, best);
		}
	}
	cqk_pad_block(cb, codes);
}

static void decode_halves(const uint8_t *block, uint32_t d, uint32_t first,
			  uint32_t n, float *out)
{
	size_t i;

	block += (size_t)first * d * 2;
	for (i = 0; i < (size_t)n * d; i++) {
		uint16_t h;

		memcpy(&h, block + 2 * i, sizeof(h));
		out[i] = cqk_f16_to_f32(h);
	}
}

/**
 * cqk_portable_decode() - see struct cqk_ops.decode
 */
void cqk_portable_decode(const struct cqk_codebook *cb, uint32_t kv_head,
			 const uint8_t *codes, uint32_t first, uint32_t n,
			 float *out)
{
	uint32_t d = cb->head_dim, n_cen = cqk_code_centroids(cb->code), ch, t;

	if (cb->code.type == CQ_CODE_F16) {
		decode_halves(codes, d, first, n, out);
		return;
	}
	for (ch = 0; ch < d; ch++) {
		const float *plane = cb->f32 + ((size_t)kv_head * d + ch) * n_cen;
		uint32_t g = ch / cb->code.channels;

		for (t = 0; t < n; t++)
			out[(size_t)t * d + ch] = plane[cq_code_get(codes, cb->code,
								    cb->n_groups, g,
								    first + t)];
	}
}

static bool always(void)
{
	return true;
}

static void portable_attention(const struct cqk_attn *a)
{
	cqk_attn_long(a, &cqk_long_portable, &cqk_tile_portable);
}

static const char *portable_path(const struct cqk_attn *a)
{
	return cqk_long_portable.fits(a) ? "tables" : "tile";
}

static size_t portable_scratch_bytes(const struct cqk_model *model, uint32_t n_rows)
{
	return cqk_head_bytes(model, n_rows) + cqk_long_portable.bytes(model, n_rows);
}

const struct cqk_ops cqk_portable = {
	.name = "portable",
	.priority = 0,
	.usable = always,
	.encode = cqk_portable_encode,
	.decode = cqk_portable_decode,
	.scratch_bytes = portable_scratch_bytes,
	.attention = portable_attention,
	.path = portable_path,
};
