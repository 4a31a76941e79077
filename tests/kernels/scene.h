/* SPDX-License-Identifier: MIT */
/*
 * A batch of sequences over shared and own blocks, built from a few numbers,
 * and its check against double precision.
 */
#ifndef SCENE_H
#define SCENE_H

/* Who has ASSERT() and FAIL() already is no program of the harness. */
#ifndef ASSERT
#include "tests/harness.h"
#endif
#include "tests/kernels/toy.h"

#define MAX_BLOCKS 600
#define MAX_SPANS 1200

/**
 * struct scene_opts - what to build
 * @toy:    the model
 * @seqs:   sequences (0: 1)
 * @rows:   query rows of each (0: 1), its last positions
 * @shared: pages that all sequences read
 * @own:    pages of each sequence's own
 * @tail:   tokens of each sequence's last block, fp16
 * @sinks:  fp16 tokens of a block that replaces the first tokens of page 0
 * @shift:  sequence i starts at position i * @shift
 * @q_size: factor on queries (0: 1)
 * @dtype:  of q and o
 * @hnd:    views are [head][row] rather than [row][head]
 * @layer:  attended
 * @holes:  knock random tokens out of the masks
 * @want:   items that a plan of a GPU aims at (0: WANT)
 */
struct scene_opts {
	struct toy_opts toy;
	uint32_t seqs, rows, shared, own, tail, sinks, shift;
	float q_size;
	float soft_cap;
	float scale;
	uint32_t window, flags, dtype, layer, want;
	bool holes, hnd;
};

struct scene {
	struct scene_opts o;
	struct toy toy;
	struct cqk_attn a;
	struct cqk_block blocks[MAX_BLOCKS];
	struct cqk_span spans[MAX_SPANS];
	void *mem[MAX_BLOCKS];
	uint32_t n_mem, n_spans;
	uint32_t *row_pos;
	uint8_t *q, *out;
	size_t out_bytes;
	float *lse;
	void *scratch;
};

static inline struct cqk_block *scene_block(struct scene *s, uint32_t kind,
					    uint32_t tokens)
{
	const struct cqk_geom *g = &s->toy.m.geom;
	struct cqk_block *b = &s->blocks[s->a.n_blocks++];
	size_t n = cq_f16_block_bytes(g->n_layers, g->n_kv_heads, g->head_dim, tokens);
	uint8_t *mem = toy_alloc(1 + (kind == CQK_BLOCK_F16 ? n : s->toy.m.payload));

	ASSERT(s->a.n_blocks <= MAX_BLOCKS);
	s->mem[s->n_mem++] = mem;
	if (kind == CQK_BLOCK_F16)
		toy_halves(mem, n / 2, 1.0f);
	else
		toy_payload(&s->toy, mem);
	*b = (struct cqk_block){ .base = mem, .kind = kind, .tokens = tokens,
				 .span_first = s->n_spans };
	return b;
}

static inline void scene_span(struct scene *s, struct cqk_block *b, uint32_t seq,
			      uint32_t pos, uint64_t mask)
{
	uint32_t t;

	for (t = 0; s->o.holes && t < 64; t++)
		if (toy_u32() % 4 == 0)
			mask &= ~(1ull << t);
	ASSERT(s->n_spans < MAX_SPANS);
	s->spans[s->n_spans++] = (struct cqk_span){
		.mask = mask, .row_first = seq * s->o.rows,
		.n_rows = s->o.rows, .pos = pos };
	b->n_spans++;
}

static inline uint64_t low_bits(uint32_t n)
{
	return n >= 64 ? ~0ull : (1ull << n) - 1;
}

/* Sinks, shared pages, own pages, tail; every sequence sees them in order. */
static inline void scene_blocks(struct scene *s)
{
	const struct scene_opts *o = &s->o;
	uint32_t p, i;

	if (o->sinks) {
		struct cqk_block *b = scene_block(s, CQK_BLOCK_F16, o->sinks);

		for (i = 0; i < o->seqs; i++)
			scene_span(s, b, i, i * o->shift, low_bits(o->sinks));
	}
	for (p = 0; p < o->shared; p++) {
		struct cqk_block *b = scene_block(s, CQK_BLOCK_CODES, 64);

		for (i = 0; i < o->seqs; i++)
			scene_span(s, b, i, i * o->shift + p * 64,
				   p ? ~0ull : ~low_bits(o->sinks));
	}
	for (i = 0; i < o->seqs; i++) {
		for (p = 0; p < o->own; p++)
			scene_span(s, scene_block(s, CQK_BLOCK_CODES, 64), i,
				   i * o->shift + (o->shared + p) * 64, ~0ull);
		if (o->tail)
			scene_span(s, scene_block(s, CQK_BLOCK_F16, o->tail), i,
				   i * o->shift + (o->shared + o->own) * 64,
				   low_bits(o->tail));
	}
}

static inline void scene_queries(struct scene *s)
{
	const struct scene_opts *o = &s->o;
	uint32_t heads = o->toy.n_heads, d = o->toy.d, i, j;
	uint32_t tokens = (o->shared + o->own) * 64 + o->tail;
	size_t size = o->dtype == CQ_F32 ? 4 : 2, n, at;

	/* strides with gaps, data at an odd multiple of the element size */
	s->a.q = (struct cq_view){ .dtype = o->dtype, .stride_head = d + 3,
				   .stride_token = (int64_t)heads * (d + 3) + 5 };
	n = (size_t)s->a.n_rows * (size_t)s->a.q.stride_token + 1;
	if (o->hnd) {
		s->a.q.stride_token = d + 7;
		s->a.q.stride_head = (int64_t)s->a.n_rows * (d + 7) + 1;
		n = heads * (size_t)s->a.q.stride_head + 1;
	}
	s->a.o = s->a.q;
	s->q = toy_alloc(n * size);
	s->out_bytes = n * size;
	s->out = toy_alloc(n * size);
	s->a.q.data = s->q + size;
	s->a.o.data = s->out + size;
	for (at = 0; at < n; at++) {
		float x = toy_normal() * (o->q_size > 0 ? o->q_size : 1.0f);
		uint16_t h = o->dtype == CQ_F16 ? cqk_f32_to_f16(x) : cqk_f32_to_bf16(x);

		memcpy(s->q + at * size, o->dtype == CQ_F32 ? (void *)&x : (void *)&h,
		       size);
	}
	for (i = 0; i < o->seqs; i++)
		for (j = 0; j < o->rows; j++)
			s->row_pos[i * o->rows + j] =
				i * o->shift + MAX(tokens, o->rows) - o->rows + j;
}

static inline struct scene *scene_new(const struct scene_opts *opts)
{
	struct scene *s = toy_alloc(sizeof(*s));
	uint32_t max;

	s->o = *opts;
	s->o.seqs = MAX(s->o.seqs, 1u);
	s->o.rows = MAX(s->o.rows, 1u);
	max = s->o.seqs * s->o.shift + (s->o.shared + s->o.own + 1) * 64 + s->o.rows;
	toy_init(&s->toy, &s->o.toy, max);
	s->a.n_rows = s->o.seqs * s->o.rows;
	s->row_pos = toy_alloc(s->a.n_rows * sizeof(*s->row_pos));
	scene_blocks(s);
	scene_queries(s);
	s->lse = toy_alloc((size_t)s->a.n_rows * (opts->toy.n_heads + 2) * 4);
	s->a.model = &s->toy.m;
	s->a.rope = &s->toy.rope;
	s->a.layer = opts->layer;
	s->a.head_end = opts->toy.n_kv_heads;
	s->a.blocks = s->blocks;
	s->a.spans = s->spans;
	s->a.row_pos = s->row_pos;
	s->a.lse = s->lse;
	s->a.lse_stride = opts->toy.n_heads + 2;
	s->a.scale = opts->scale > 0 ? opts->scale : 1.0f / sqrtf((float)opts->toy.d);
	s->a.soft_cap = opts->soft_cap;
	s->a.sliding_window = opts->window;
	s->a.flags = opts->flags;
	return s;
}

static inline void scene_free(struct scene *s)
{
	uint32_t i;

	for (i = 0; i < s->n_mem; i++)
		free(s->mem[i]);
	free(s->row_pos);
	free(s->q);
	free(s->out);
	free(s->lse);
	free(s->scratch);
	toy_free(&s->toy);
	free(s);
}

/* Runs @ops with a scratch of exactly the size asked for, outputs poisoned. */
static inline void scene_run(struct scene *s, const struct cqk_ops *ops)
{
	size_t n = ops->scratch_bytes(&s->toy.m, s->a.n_rows), i;
	uint8_t *scratch;

	free(s->scratch);
	s->scratch = scratch = aligned_alloc(64, ALIGN_UP(n, 64) + 64);
	memset(scratch, 0xff, ALIGN_UP(n, 64) + 64);
	memset(s->out, 0xff, s->out_bytes);
	s->a.scratch = scratch;
	ops->attention(&s->a);
	for (i = n; i < ALIGN_UP(n, 64) + 64; i++)
		if (scratch[i] != 0xff)
			FAIL("%s wrote beyond its scratch", ops->name);
}

/* Half the distance of numbers of a type beside @x: what storing a result there may err. */
static inline double half_step(double x, uint32_t dtype)
{
	int e;

	if (dtype == CQ_F32 || x == 0)
		return 0;
	frexp(x, &e);
	return dtype == CQ_BF16 ? ldexp(1, e - 9) : ldexp(1, MAX(e - 12, -25));
}

/* What double precision has, [row][head]: o, and the natural lse behind it; to be freed. */
static inline double *scene_reference(const struct scene *s)
{
	uint32_t heads = s->o.toy.n_heads, d = s->o.toy.d, group, kv, row, h;
	double *ref = toy_alloc(((size_t)s->a.n_rows * heads * (d + 1) + 1) * sizeof(*ref));
	struct toy_decoded y;

	group = heads / s->o.toy.n_kv_heads;
	for (kv = 0; kv < s->o.toy.n_kv_heads; kv++) {
		toy_decoded_init(&y, &s->a, kv);
		for (row = 0; row < s->a.n_rows; row++)
			for (h = kv * group; h < (kv + 1) * group; h++) {
				double *at = ref + ((size_t)row * heads + h) * (d + 1);

				at[d] = toy_attend(&y, row, h, at);
			}
		toy_decoded_free(&y);
	}
	return ref;
}

/* Relative error of one vector and its lse. */
static inline double scene_vector_error(const struct scene *s, uint32_t row, uint32_t h,
					const double *ref)
{
	double got = (double)s->a.lse[row * s->a.lse_stride + h], err = 0, norm = 0, e;
	uint32_t d = s->o.toy.d, ch;

	if (s->a.flags & CQ_ATTN_LSE_BASE2)
		got /= M_LOG2E;
	for (ch = 0; ch < d; ch++) {
		double x = toy_load(&s->a.o, row, h, ch);

		e = fmax(fabs(x - ref[ch]) -
			 half_step(fmax(fabs(x), fabs(ref[ch])), s->o.dtype), 0);
		ASSERT(!isnan(x));
		err += e * e;
		norm += ref[ch] * ref[ch];
	}
	e = norm > 0 ? sqrt(err / norm) : (err == 0 ? 0 : INFINITY);
	if (isinf(ref[d]))
		ASSERT(isinf(got) && got < 0);
	else
		e = fmax(e, fabs(got - ref[d]) / fmax(1, fabs(ref[d])));
	ASSERT(!isnan(e));
	return e;
}

/*
 * The worst error of a result, by the length of the vector, and of the lse. What storing in
 * 16 bits costs is left out: bf16 alone errs 2^-8 of a number, which is 1.6e-3 of a vector.
 */
static inline double scene_error_from(const struct scene *s, const double *ref)
{
	uint32_t heads = s->o.toy.n_heads, row, h;
	double worst = 0;

	for (row = 0; row < s->a.n_rows; row++)
		for (h = 0; h < heads; h++, ref += s->o.toy.d + 1)
			worst = fmax(worst, scene_vector_error(s, row, h, ref));
	return worst;
}

static inline double scene_error(const struct scene *s)
{
	double *ref = scene_reference(s), e = scene_error_from(s, ref);

	free(ref);
	return e;
}

/* Portable computes in float throughout; others may quantise p and q. */
static inline double scene_bound(const struct cqk_ops *ops, const struct scene *s)
{
	double eps = s->o.dtype == CQ_F32 ? 0 : s->o.dtype == CQ_F16 ? 4e-4 : 3e-3;

	return eps + (strcmp(ops->name, "portable") ? 1e-3 : 3e-5);
}

/* The implementations to test: all compiled in, or one given at build time. */
static inline const struct cqk_ops *scene_ops(unsigned int i)
{
#ifdef ONLY_OPS
	return i ? NULL : ONLY_OPS;
#else
	return cqk_nth(i);
#endif
}

/* A query along one token's key: its score is @above the rest. */
static inline void scene_aim(struct scene *s, uint32_t block, uint32_t t,
			     double above)
{
	const struct cqk_geom *g = &s->toy.m.geom;
	uint32_t h, ch;

	for (h = 0; h < g->n_heads; h++) {
		float *q = (float *)s->a.q.data + h * s->a.q.stride_head;
		struct cqk_src src = cqk_block_src(&s->a, &s->blocks[block],
				h / (g->n_heads / g->n_kv_heads), false, ~0ull);
		double norm = 0, k[256];

		for (ch = 0; ch < g->head_dim; ch++) {
			k[ch] = toy_value(&src, t, ch);
			norm += k[ch] * k[ch];
		}
		for (ch = 0; ch < g->head_dim; ch++)
			q[ch] = (float)(k[ch] / norm * above / (double)s->a.scale);
	}
}

#endif /* SCENE_H */
