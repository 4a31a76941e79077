/* SPDX-License-Identifier: MIT */
/*
 * What a call of gpu_bench takes by the model of Documentation/gpu.md, if nothing waits: so
 * many clocks of a multiprocessor for each token, kv head and unit that works there, of which
 * the slowest is the wall. Include it once, after bench_rows.h.
 */
#ifndef BENCH_MODEL_H
#define BENCH_MODEL_H

enum wall {
	WALL_SHARED, WALL_ISSUE, WALL_ALU, WALL_TENSOR,
	WALL_CHAIN,	/* what one warp does after the other, or lookups in the L1 */
	WALLS, WALL_MEMORY = WALLS
};

static const char *const wall_names[] = {
	[WALL_SHARED] = "shared", [WALL_ISSUE] = "issue", [WALL_ALU] = "alu",
	[WALL_TENSOR] = "tensor", [WALL_CHAIN] = "chain", [WALL_MEMORY] = "memory",
};

/**
 * struct clocks - of a token and kv head, for items of a variant
 * @variant: whose
 * @config:  coding, whatever centroids are
 * @turned:  keys and queries are
 * @unit:    query vectors that are computed together
 * @most:    units of an item
 * @first:   clocks of an item without a unit
 * @each:    of each unit
 */
static const struct clocks {
	enum cqk_cuda_variant variant;
	const char *config;
	bool turned;
	uint32_t unit, most;
	float first[WALLS], each[WALLS];
} clocks[] = {
#include "tests/gpu/bench_clocks.h"
};

/* What an item of up to @vecs is computed by: what is made for the fewest, or the most. */
static inline const struct clocks *clocks_of(enum cqk_cuda_variant variant, const char *config,
					     bool turned, uint32_t vecs)
{
	const struct clocks *c, *best = NULL;

	for (c = clocks; c < clocks + ARRAY_SIZE(clocks); c++) {
		if (c->variant != variant || c->turned != turned ||
		    strncmp(c->config, config, strlen(c->config)))
			continue;
		if (!best || (best->unit * best->most < vecs ? c->unit > best->unit :
			      c->unit < best->unit && c->unit * c->most >= vecs))
			best = c;
	}
	return best;
}

/*
 * Clocks of @tokens that @vecs see; false: the model has none. It has none of what a variant
 * leaves to another one, and of tables that are narrow, as there is little shared memory.
 */
static inline bool clocks_add(double sum[WALLS], const struct rig *r, const struct row *row,
			      enum cqk_cuda_variant variant, uint32_t vecs, double tokens)
{
	bool small = r->arch != 80 && r->arch != 90 && r->arch != 100;
	/* products that are added up in f32: on some cards they take twice as long again */
	double slower = small ? 2 : 1;
	const struct clocks *c;
	uint32_t w, n, units;

	if (small && variant == CQK_CUDA_LUT)
		return false;
	for (; vecs; vecs -= n) {
		c = clocks_of(variant, row->c->config, row->keys == CQK_KEYS_PRE_ROPE, vecs);
		if (!c || (vecs > c->unit && (variant == CQK_CUDA_LUT ||
					      variant == CQK_CUDA_SLICES)))
			return false;
		n = MIN(vecs, c->unit * c->most);
		units = (n + c->unit - 1) / c->unit;
		for (w = 0; w < WALLS; w++)
			sum[w] += (w == WALL_TENSOR ? slower : 1) * tokens *
				  (double)(c->first[w] + (float)units * c->each[w]);
	}
	return true;
}

/**
 * struct forecast - of a call
 * @us:     at least; of a call that the model does not know, by memory alone
 * @clocks: of one multiprocessor after the other, by wall
 * @wall:   what takes @us, a name; NULL: the model does not know such a call
 */
struct forecast {
	double us, clocks[WALLS];
	const char *wall;
};

/*
 * What computes a prefix, which all vectors of a batch see: the call's variant if these are
 * wide items, else that of few vectors, again and again; and attn.cu where that is none.
 */
static inline bool prefix_add(struct forecast *f, const struct rig *r, const struct shape *s,
			      const struct row *row, const struct call *c, double tokens)
{
	uint32_t vecs = s->heads / s->kv * row->step.batch;
	bool many = c->variant == CQK_CUDA_BOOKS || c->variant == CQK_CUDA_WGMMA;
	bool eights = c->few == CQK_CUDA_FEW || c->few == CQK_CUDA_BYTES;

	if (c->wide ? !many && c->few != CQK_CUDA_BLOCK : !eights && c->few != CQK_CUDA_BLOCK)
		return false;
	return clocks_add(f->clocks, r, row, c->wide ? c->variant : c->few, vecs, tokens);
}

static inline struct forecast forecast(const struct rig *r, const struct shape *s,
				       const struct row *row, const struct call *c)
{
	const struct step *step = &row->step;
	double own = step->prefix ? 128 : step->context, per_us = r->sms * r->clock_hz * 1e-6;
	struct forecast f = { .us = c->bytes / r->copy_bytes_s * 1e6 };
	uint32_t w, wall = WALL_MEMORY;

	if (s->d != 128 || per_us <= 0 ||
	    !clocks_add(f.clocks, r, row, c->few, s->heads / s->kv, own * step->batch * s->kv) ||
	    (step->prefix && !prefix_add(&f, r, s, row, c, (step->context - own) * s->kv)))
		return f;
	for (w = 0; w < WALLS; w++)
		if (f.clocks[w] / per_us > f.us) {
			f.us = f.clocks[w] / per_us;
			wall = w;
		}
	f.wall = wall_names[wall];
	return f;
}

#endif /* BENCH_MODEL_H */
