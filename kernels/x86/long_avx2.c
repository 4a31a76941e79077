// SPDX-License-Identifier: MIT
/*
 * AVX2: up to eight query vectors over a long coded context. Keys to be turned
 * are integers: long_keys_avx2.c.
 */
#define CQK_VB 32
#define LONG_OPS cqk_long_avx2
#define LONG_PAGES 16
#define LONG_CHANNELS 4
#define LONG_KEY int16_t
#include "kernels/long_body.h"
#include "kernels/x86/long_keys_avx2.h"

static bool turned_fits(const struct cqk_geom *g, const struct cqk_codebook *k)
{
	uint32_t c = k->code.channels;

	return g->head_dim % 16 == 0 && g->rope_dim % 32 == 0 && (c == 4 || c == 8);
}

static bool turned_begin(struct long_head *x)
{
	return cqk_keys_begin(x);
}

static void turned_lane(struct long_head *x, uint32_t lane)
{
	cqk_keys_lane(x, lane);
}

static void turned_page(struct long_head *x, uint32_t page)
{
	cqk_keys_page(x, page);
}
