// SPDX-License-Identifier: MIT
/*
 * Portable code: up to eight query vectors over a long coded context. Keys to be
 * turned are put together from rows of centroids, a token at a time, turned, and
 * multiplied with queries that are turned back by the page's position.
 */
#define CQK_VB 16
#define LONG_OPS cqk_long_portable
#define LONG_PAGES 8
#define LONG_CHANNELS 2
#define LONG_KEY float
#include "kernels/long_body.h"

static bool turned_fits(const struct cqk_geom *g, const struct cqk_codebook *k)
{
	return g->head_dim % 4 == 0 && g->rope_dim % 8 == 0 && k->code.channels % 4 == 0;
}

/* [group][256][c]: a centroid's channels lie together. */
static bool turned_begin(struct long_head *x)
{
	const float *plane = x->k->f32 + (size_t)x->h->head * x->d * K;
	uint32_t c = x->k->code.channels, ch, k;

	for (ch = 0; ch < x->d; ch++, plane += K) {
		float *key = (float *)x->key + (size_t)(ch - ch % c) * K + ch % c;

		for (k = 0; k < K; k++)
			key[(size_t)k * c] = plane[k];
	}
	return true;
}

static void turned_lane(struct long_head *x, uint32_t lane)
{
	cqk_turn_query(x->turn, x->half, x->q[lane], x->d, x->turned[lane]);
}

INLINE void key_row(const uint32_t c, const struct long_head *x,
		    const uint8_t *code, float *row)
{
	const float *key = x->key;
	uint32_t ch, j;

	for (ch = 0; ch < x->d; ch += c, key += c * K, code += CQK_T)
		for (j = 0; j < c; j += 4)
			ST4(row + ch + j, LD4(key + *code * c + j));
}

/* By the in-page offset: channel j with channel half + j. */
static void turn_row(const struct long_head *x, uint32_t t, float *row)
{
	const float *cs = x->h->a->rope->in_page + (size_t)t * 2 * x->half;
	uint32_t j;

	for (j = 0; j < x->half; j += 4) {
		v4 c = LD(cs + j), s = LD(cs + x->half + j);
		v4 a = LD4(row + j), b = LD4(row + x->half + j);

		ST4(row + j, a * c - b * s);
		ST4(row + x->half + j, a * s + b * c);
	}
}

/* Products of a key with four queries. */
static v4 dots4(const struct long_head *x, const float *row, int lane)
{
	const float *q = x->turned[lane];
	vf acc[4] = { 0 };
	uint32_t ch;
	int i;

	for (ch = 0; ch < x->d; ch += 4)
		for (i = 0; i < 4; i++)
			acc[i] += LD4(row + ch) * LD4(q + i * MAX_D + ch);
	return sums4(acc);
}

static void turned_page(struct long_head *x, uint32_t page)
{
	_Alignas(16) float row[MAX_D];
	float *s = x->s + page * CQK_T * x->lanes;
	uint32_t c = x->k->code.channels, t;
	int lane;

	for (t = 0; t < CQK_T; t++, s += x->lanes) {
		const uint8_t *code = x->k_codes[page] + t;

		if (c == 8)
			key_row(8, x, code, row);
		else if (c == 4)
			key_row(4, x, code, row);
		else
			key_row(c, x, code, row);
		turn_row(x, t, row);
		for (lane = 0; lane < x->lanes; lane += 4)
			ST4(s + lane, dots4(x, row, lane));
	}
}

void cqk_attn_long(const struct cqk_attn *a, const struct cqk_long *few,
		   const struct cqk_tile_ops *tile)
{
	uint32_t head;

	if (!few->fits(a)) {
		cqk_attn_tiled(a, tile);
		return;
	}
	for (head = a->head_begin; head < a->head_end; head++)
		few->head(a, head, tile);
}
