// SPDX-License-Identifier: MIT
/*
 * Rotary position embedding: tables, and rotation of vectors in float.
 *
 * A position p = 64 i + t is split, so that n / 64 + 64 entries replace n:
 * angles add, hence the rotation by p is the one by 64 i followed by the one
 * by t. Kernels use the second table for tokens of a page and the first for
 * the page itself.
 */
#include <math.h>
#include "kernels/kernels.h"

#define TABLE_ALIGN 64

static uint32_t rope_half(const struct cqk_geom *geom)
{
	return geom->keys == CQK_KEYS_NONE ? 0 : geom->rope_dim / 2;
}

static uint32_t rope_n_base(uint32_t positions)
{
	return positions / CQ_PAGE_TOKENS + (positions % CQ_PAGE_TOKENS != 0);
}

/**
 * cqk_rope_bytes() - memory for cqk_rope_init()
 * @geom:      model
 * @positions: positions 0 .. @positions - 1 are covered
 *
 * Return: bytes, never 0; any alignment of the memory will do.
 */
size_t cqk_rope_bytes(const struct cqk_geom *geom, uint32_t positions)
{
	size_t row = (size_t)2 * rope_half(geom) * sizeof(float);
	size_t rows = (size_t)rope_n_base(positions) + 2 * CQ_PAGE_TOKENS;
	size_t ints = (size_t)4 * rope_half(geom) * CQ_PAGE_TOKENS * sizeof(int16_t);

	return TABLE_ALIGN + row * rows + ints;
}

/* cos and sin of pos * freq[j] for every pair, reduced in double. */
static void fill_row(float *row, uint32_t half, const double *freq, double pos)
{
	uint32_t j;

	for (j = 0; j < half; j++) {
		double a = pos * freq[j];

		row[j] = (float)cos(a);
		row[half + j] = (float)sin(a);
	}
}

/* [64][2][half] -> [half][2][64] */
static void transpose_in_page(const float *in, uint32_t half, float *tmp)
{
	uint32_t j, part, t;

	for (t = 0; t < CQ_PAGE_TOKENS; t++)
		for (part = 0; part < 2; part++)
			for (j = 0; j < half; j++)
				tmp[(j * 2 + part) * CQ_PAGE_TOKENS + t] =
					in[(t * 2 + part) * half + j];
}

/* [half][2][64] to 14 bits, in the order struct cqk_rope gives. */
static void quantise_in_page(const float *in, uint32_t half, int16_t *out)
{
	uint32_t row, at;

	for (row = 0; row < 2 * half; row++)
		for (at = 0; at < CQ_PAGE_TOKENS; at++) {
			uint32_t h = at / 32, l = at / 8 % 4, i = at % 8;
			uint32_t t = 16 * l + 8 * h + i;

			out[row * CQ_PAGE_TOKENS + at] = (int16_t)lrintf(
				in[row * CQ_PAGE_TOKENS + t] * 16384.0f);
		}
}

/**
 * cqk_rope_init() - fill the tables
 * @rope:      set
 * @geom:      model; keys CQK_KEYS_NONE or rope_dim 0 give half = 0
 * @positions: as for cqk_rope_bytes()
 * @mem:       cqk_rope_bytes() bytes, owned by the caller, kept by @rope
 */
void cqk_rope_init(struct cqk_rope *rope, const struct cqk_geom *geom,
		   uint32_t positions, void *mem)
{
	uint32_t half = rope_half(geom);
	size_t row = (size_t)2 * half;
	float *in_page, *in_page_t, *base;
	double freq[CQ_MAX_HEAD_DIM / 2];
	int16_t *q14, *q15;
	uint32_t i;

	if (half)
		cqk_rope_freq(geom, freq);
	q14 = (int16_t *)ALIGN_UP((uintptr_t)mem, TABLE_ALIGN);
	q15 = q14 + row * CQ_PAGE_TOKENS;
	in_page_t = (float *)(void *)(q15 + row * CQ_PAGE_TOKENS);
	in_page = in_page_t + row * CQ_PAGE_TOKENS;
	base = in_page + row * CQ_PAGE_TOKENS;

	for (i = 0; i < CQ_PAGE_TOKENS; i++)
		fill_row(in_page + i * row, half, freq, i);
	transpose_in_page(in_page, half, in_page_t);
	quantise_in_page(in_page_t, half, q14);
	for (i = 0; i < row * CQ_PAGE_TOKENS; i++)
		q15[i] = (int16_t)lrintf(in_page[i] * 32767.0f);
	for (i = 0; i < rope_n_base(positions); i++)
		fill_row(base + i * row, half, freq, (double)i * CQ_PAGE_TOKENS);
	rope->half = half;
	rope->n_base = rope_n_base(positions);
	rope->factor = 1.0f;
	if (half && geom->rope_scaling.type == CQK_SCALING_YARN)
		rope->factor = (float)geom->rope_scaling.attention_factor;
	rope->base = base;
	rope->in_page = in_page;
	rope->in_page_t = in_page_t;
	rope->in_page_q14 = q14;
	rope->in_page_q15 = q15;
}

static void rotate_one(float *x, const float *base, const float *in_page,
		       uint32_t half, float sign, float factor)
{
	uint32_t j;

	for (j = 0; j < half; j++) {
		float c = base[j] * in_page[j] - base[half + j] * in_page[half + j];
		float s = base[half + j] * in_page[j] + base[j] * in_page[half + j];
		float lo = x[j], hi = x[half + j];

		c *= factor;
		s *= sign * factor;
		x[j] = lo * c - hi * s;
		x[half + j] = lo * s + hi * c;
	}
}

void cqk_rope_rotate(const struct cqk_rope *rope, float *x, size_t n,
		     size_t stride, uint32_t pos, bool inverse)
{
	size_t row = (size_t)2 * rope->half;
	const float *base = rope->base + pos / CQ_PAGE_TOKENS * row;
	const float *in_page = rope->in_page + pos % CQ_PAGE_TOKENS * row;
	float factor = inverse ? 1.0f / rope->factor : rope->factor;
	size_t i;

	if (!rope->half)
		return;
	for (i = 0; i < n; i++)
		rotate_one(x + i * stride, base, in_page, rope->half,
			   inverse ? -1.0f : 1.0f, factor);
}
