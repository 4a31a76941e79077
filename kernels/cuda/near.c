// SPDX-License-Identifier: MIT
/* Codebooks for tensor cores, and how far these may be from distances: see near.h. */
#include <math.h>
#include "cq/util.h"
#include "kernels/cuda/near.h"
#include "kernels/f16.h"

#define LEAST 0x1p-14		/* of normal halves */
#define FLUSHED 0x1p-18		/* of E_j, which a subnormal x has 16 of */
#define UNIT 0x1p-24		/* a step of fp32 errs at most so much */
#define MARGIN (1 + 0x1p-7)	/* for what is rounded in summing up bounds */

/* A group: planes of channels [c][256], and what is found of it. */
struct group {
	const float *enc, *norm;
	uint32_t c;
	bool plain;
	int up, one;			/* exponents of what numbers are multiplied by */
	double most[8], lack[8];	/* of each channel: E_j, and what is missing */
	double norm_most, norm_lack;
};

static double half_of(double x, uint16_t *h)
{
	*h = cqk_f32_to_f16((float)x);
	return (double)cqk_f16_to_f32(*h);
}

/* The same, but nothing that a unit could take for zero. */
static double normal_of(double x, uint16_t *h)
{
	double y = half_of(x, h);

	if (fabs(y) >= LEAST)
		return y;
	*h = 0;
	return 0;
}

/* The least half that is no less than @x >= 0. */
static uint16_t half_above(double x)
{
	uint16_t h;

	return half_of(x, &h) < x ? h + 1 : h;
}

static void find_scale(struct group *g)
{
	double most = 0, norm = 0;
	uint32_t i;

	for (i = 0; i < g->c * CQKD_CENTROIDS; i++)
		most = fmax(most, fabs((double)g->enc[i]));
	for (i = 0; i < CQKD_CENTROIDS; i++)
		norm = fmax(norm, (double)g->norm[i]);
	/* 2^12 leaves room above, and below for what is 2^-24 of it */
	g->up = g->plain || !(most > 0) || isinf(most) ? 0 : 12 - ilogb(most);
	norm = ldexp(norm, g->up);
	g->one = !(norm > 0) || isinf(norm) ? 0 : MAX(-14, MIN(15, ilogb(norm) - 13));
}

static void channel_at(struct group *g, uint32_t j, uint32_t k, uint16_t *top, uint16_t *rest)
{
	double x = ldexp((double)g->enc[j * CQKD_CENTROIDS + k], g->up), hi, lo = 0;
	uint16_t unused;

	if (g->plain) {
		hi = fabs(x) < LEAST ? 0 : x;
	} else {
		hi = normal_of(x, top);
		if (j / 2 < CQKD_NEAR_REST(g->c))
			lo = normal_of(x - hi, rest ? rest : &unused);
	}
	g->most[j] = fmax(g->most[j], fmax(fabs(hi) + fabs(lo), fabs(x)));
	g->lack[j] = fmax(g->lack[j], fabs(x - hi - lo));
}

static void norm_at(struct group *g, uint32_t k, uint16_t *tail)
{
	double x = ldexp((double)g->norm[k], g->up - g->one), hi, lo;

	hi = normal_of(x, &tail[0]);
	lo = normal_of(x - hi, &tail[1]);
	/* what is negative, or too large for two halves, is not computed so */
	if (!(x >= 0 && isfinite(hi) && isfinite(lo)))
		g->norm_lack = INFINITY;
	g->norm_most = fmax(g->norm_most, ldexp(x, g->one));
	g->norm_lack = fmax(g->norm_lack, ldexp(fabs(x - hi - lo), g->one));
}

static void find_bound(const struct group *g, struct cqkd_bound *b)
{
	double sum = (CQKD_NEAR_COLUMNS(g->c) + 4) * 0x1p-22, fp32 = (g->c + 1) * UNIT;
	double slack[8], most = 0, all = g->norm_most, fixed;
	int exponent;
	uint32_t j;

	memset(b, 0, sizeof(*b));
	for (j = 0; j < g->c; j++) {
		all += (double)CQK_F16_MAX * g->most[j];
		/* of what is zero in all centroids no column has anything to err in */
		if (!(g->most[j] > 0))
			continue;
		b->shift[j] = half_above(fmax(MARGIN * g->most[j], LEAST));
		/* errors of x.e, and of what the sum begins with */
		slack[j] = (sum + fp32 + FLUSHED) * g->most[j] + g->lack[j] +
			   MARGIN * sum * (double)cqk_f16_to_f32(b->shift[j]);
		most = fmax(most, slack[j]);
	}
	exponent = most > 0 && isfinite(most) ? MAX(-100, MIN(100, 12 - ilogb(most))) : 0;
	for (j = 0; j < g->c; j++)
		b->slack[j] = !b->shift[j] ? 0 :
			      half_above(fmax(ldexp(2 * MARGIN * slack[j], exponent), LEAST));
	fixed = (sum + fp32) * g->norm_most + g->norm_lack + ldexp(g->c * 0x1p-149, g->up);
	/* what leaves fp32 is not bounded */
	b->fixed = ldexp(all, -g->up) < 0x1p127 ? (float)(2 * MARGIN * fixed) : INFINITY;
	b->unit = ldexpf(1, -exponent);
	b->one = 0x10001u * cqk_f32_to_f16(ldexpf(1, g->one));
}

void cqk_near_fill(const struct cqk_codebook *cb, const struct cqk_near_tables *out)
{
	uint32_t c = cb->code.channels, words = CQKD_NEAR_REST(c), i, j, k;

	for (i = 0; i < cb->n_kv_heads * cb->n_groups; i++) {
		size_t first = (size_t)i * CQKD_CENTROIDS;
		struct group g = { .enc = cb->enc + first * c, .norm = cb->half_norm + first,
				   .c = c, .plain = cqk_near_plain(cb) };

		find_scale(&g);
		for (k = 0; k < CQKD_CENTROIDS; k++) {
			size_t at = first + k;

			for (j = 0; j < c; j++)
				channel_at(&g, j, k, g.plain ? NULL : out->top + at * c + j,
					   g.plain ? NULL : out->rest + at * words * 2 + j);
			norm_at(&g, k, out->tail + at * 2);
		}
		find_bound(&g, &out->bound[i]);
	}
}
