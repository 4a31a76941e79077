// SPDX-License-Identifier: MIT
/*
 * Frequencies of RoPE and their scaling, in double. kernels.h has the formulas
 * and their sources.
 */
#include <math.h>
#include "cq/util.h"
#include "kernels/kernels.h"

/* @w = 1: the pair keeps its frequency; 0: it is slowed down by the factor. */
static double mix(double freq, double factor, double w)
{
	return (1 - w) * freq / factor + w * freq;
}

static double llama3_freq(const struct cqk_rope_scaling *s, double freq)
{
	double turns = s->original_max_position * freq / (2 * M_PI);
	double w = (turns - s->low_freq_factor) / (s->high_freq_factor - s->low_freq_factor);

	return mix(freq, s->factor, MAX(0.0, MIN(1.0, w)));
}

/* The pair, as a real number, that makes @turns in the original context. */
static double yarn_pair(const struct cqk_geom *g, double turns)
{
	double len = g->rope_scaling.original_max_position;

	return g->rope_dim * log(len / (2 * M_PI * turns)) / (2 * log(g->rope_theta));
}

static void yarn_ramp(const struct cqk_geom *g, double *from, double *to)
{
	const struct cqk_rope_scaling *s = &g->rope_scaling;

	*from = yarn_pair(g, s->beta_fast);
	*to = yarn_pair(g, s->beta_slow);
	if (s->truncate > 0) {
		*from = floor(*from);
		*to = ceil(*to);
	}
	/* The limits of the authors' code: channels, though the ramp counts pairs. */
	*from = MAX(*from, 0.0);
	*to = MIN(*to, g->rope_dim - 1.0);
	if (*from == *to)
		*to += 0.001;
}

void cqk_rope_freq(const struct cqk_geom *geom, double *freq)
{
	const struct cqk_rope_scaling *s = &geom->rope_scaling;
	uint32_t half = geom->rope_dim / 2, j;
	double from = 0, to = 1, w;

	if (s->type == CQK_SCALING_YARN)
		yarn_ramp(geom, &from, &to);
	for (j = 0; j < half; j++) {
		freq[j] = pow(geom->rope_theta, -(double)j / half);
		if (s->type == CQK_SCALING_LINEAR)
			freq[j] /= s->factor;
		else if (s->type == CQK_SCALING_LLAMA3)
			freq[j] = llama3_freq(s, freq[j]);
		else if (s->type == CQK_SCALING_YARN) {
			w = 1 - (j - from) / (to - from);
			freq[j] = mix(freq[j], s->factor, MAX(0.0, MIN(1.0, w)));
		}
	}
}
