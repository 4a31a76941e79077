/* SPDX-License-Identifier: MIT */
/*
 * RoPE in double precision as models' own code has it: vectors in the model's
 * order, frequencies by wavelengths and masks, one vector at a time. To compare
 * with kernels/rope_freq.c and all that follows from it.
 */
#ifndef ROPE_REF_H
#define ROPE_REF_H

#include <math.h>
#include "kernels/model.h"

/* A kind of scaling, by enum cqk_scaling, with a short original context: @len. */
static inline struct cqk_rope_scaling ref_scaling(uint32_t type, double len)
{
	struct cqk_rope_scaling s = { .type = type };

	if (type != CQK_SCALING_NONE)
		s.factor = 4;
	if (type >= CQK_SCALING_LLAMA3)
		s.original_max_position = len;
	if (type == CQK_SCALING_LLAMA3) {
		s.low_freq_factor = 1;
		s.high_freq_factor = 4;
	} else if (type == CQK_SCALING_YARN) {
		s.beta_fast = 32;
		s.beta_slow = 1;
		s.attention_factor = 1.1386294361119891;	/* 0.1 ln 4 + 1 */
		s.truncate = 1;
	}
	return s;
}

/* As Llama 3.1 has it: bands of wavelengths. */
static inline double ref_llama3(const struct cqk_rope_scaling *s, double freq)
{
	double wavelen = 2 * M_PI / freq, smooth;

	if (wavelen < s->original_max_position / s->high_freq_factor)
		return freq;
	if (wavelen > s->original_max_position / s->low_freq_factor)
		return freq / s->factor;
	smooth = (s->original_max_position / wavelen - s->low_freq_factor) /
		 (s->high_freq_factor - s->low_freq_factor);
	return freq * (smooth + (1 - smooth) / s->factor);
}

/* As the authors of YaRN have it: a mask over pairs for what is extrapolated. */
static inline double ref_yarn(const struct cqk_geom *g, uint32_t j, double freq)
{
	const struct cqk_rope_scaling *s = &g->rope_scaling;
	double log_base = log10(g->rope_theta), dim = g->rope_dim, ramp;
	double low = dim / 2 * (log10(s->original_max_position) -
				log10(s->beta_fast * 2 * M_PI)) / log_base;
	double high = dim / 2 * (log10(s->original_max_position) -
				 log10(s->beta_slow * 2 * M_PI)) / log_base;

	if (s->truncate > 0) {
		low = floor(low);
		high = ceil(high);
	}
	low = fmax(low, 0);
	high = fmin(high, dim - 1);
	if (high == low)
		high += 0.001;
	ramp = fmin(fmax((j - low) / (high - low), 0), 1);
	return freq / s->factor * ramp + freq * (1 - ramp);
}

/* Radians per position of pair @j. */
static inline double ref_freq(const struct cqk_geom *g, uint32_t j)
{
	double freq = 1 / pow(g->rope_theta, 2.0 * j / g->rope_dim);

	switch (g->rope_scaling.type) {
	case CQK_SCALING_LINEAR:
		return freq / g->rope_scaling.factor;
	case CQK_SCALING_LLAMA3:
		return ref_llama3(&g->rope_scaling, freq);
	case CQK_SCALING_YARN:
		return ref_yarn(g, j, freq);
	default:
		return freq;
	}
}

static inline double ref_factor(const struct cqk_geom *g)
{
	return g->rope_scaling.type == CQK_SCALING_YARN ? g->rope_scaling.attention_factor : 1;
}

/* The channels that pair @j has, in the model's order. */
static inline uint32_t ref_first(const struct cqk_geom *g, uint32_t j)
{
	return g->rope_pairs == CQK_PAIRS_INTERLEAVED ? 2 * j : j;
}

static inline uint32_t ref_second(const struct cqk_geom *g, uint32_t j)
{
	return g->rope_pairs == CQK_PAIRS_INTERLEAVED ? 2 * j + 1 : j + g->rope_dim / 2;
}

/* Where channel @ch of the model is stored. */
static inline uint32_t ref_stored(const struct cqk_geom *g, uint32_t ch)
{
	if (g->rope_pairs != CQK_PAIRS_INTERLEAVED || ch >= g->rope_dim)
		return ch;
	return ch / 2 + ch % 2 * (g->rope_dim / 2);
}

/* What a model does to a query or key at @pos. */
static inline void ref_rope(double *x, const struct cqk_geom *g, double pos)
{
	uint32_t j;

	for (j = 0; j < g->rope_dim / 2; j++) {
		double a = pos * ref_freq(g, j);
		double c = ref_factor(g) * cos(a), s = ref_factor(g) * sin(a);
		double lo = x[ref_first(g, j)], hi = x[ref_second(g, j)];

		x[ref_first(g, j)] = lo * c - hi * s;
		x[ref_second(g, j)] = lo * s + hi * c;
	}
}

#endif /* ROPE_REF_H */
