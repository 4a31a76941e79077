// SPDX-License-Identifier: MIT
/*
 * Attention in parts of the pages, merged: every implementation that runs here, in
 * 1 to 5 parts, against double precision over all pages.
 */
#include "tests/kernels/scene.h"

#define MAX_PARTS 5

/* How pages are split: as callers have it, by their number, or one each to the last parts. */
enum { BY_WORK, BY_NUMBER, BY_ONE, N_WAYS };

/**
 * struct split - parts of a scene
 * @dtype: of what parts give
 * @way:   enum above
 * @in_place: the result replaces part 0's
 * @first: [@n + 1] first block of each part
 */
struct split {
	struct scene *s;
	uint32_t n, dtype, way;
	bool in_place;
	uint32_t first[MAX_PARTS + 1];
	struct cq_part parts[MAX_PARTS];
	float *lse[MAX_PARTS];
};

static uint32_t first_block(const struct split *x, uint32_t part)
{
	uint32_t blocks = x->s->a.n_blocks;

	return x->way == BY_NUMBER ? blocks * part / x->n :
	       part ? MAX(blocks + part, x->n) - x->n : 0;
}

/* Part @i of the call: runs of blocks, which follow each other. */
static struct cqk_attn part_of(struct split *x, uint32_t i)
{
	struct cqk_attn a = x->s->a;

	if (x->way == BY_WORK) {
		cqk_attn_part(&a, i, x->n);
	} else {
		a.blocks += first_block(x, i);
		a.n_blocks = (i + 1 == x->n ? x->s->a.n_blocks : first_block(x, i + 1)) -
			     first_block(x, i);
	}
	ASSERT_EQ(a.blocks - x->s->blocks, x->first[i]);
	x->first[i + 1] = x->first[i] + a.n_blocks;
	return a;
}

static void part_run(struct split *x, const struct cqk_ops *ops, uint32_t i)
{
	struct cqk_attn a = part_of(x, i);
	uint32_t d = x->s->o.toy.d, heads = x->s->o.toy.n_heads;
	size_t n = ALIGN_UP(ops->scratch_bytes(&x->s->toy.m, a.n_rows), 64);

	x->parts[i].o = (struct cq_view){
		.data = toy_alloc((size_t)a.n_rows * heads * (d + i) * sizeof(float)),
		.dtype = x->dtype, .stride_head = d + i, .stride_token = (int64_t)heads * (d + i),
	};
	x->parts[i].lse_stride = i % 2 ? heads + i : 0;
	x->lse[i] = toy_alloc((size_t)a.n_rows * (heads + i) * sizeof(float));
	x->parts[i].lse = x->lse[i];
	a.o = x->parts[i].o;
	a.lse = x->lse[i];
	a.lse_stride = i % 2 ? heads + i : heads;
	a.scratch = aligned_alloc(64, n);
	ASSERT(a.scratch);
	memset(a.scratch, 0xff, n);
	ops->attention(&a);
	free(a.scratch);
}

static struct cqk_merge merge_of(const struct split *x)
{
	const struct cqk_attn *a = &x->s->a;

	return (struct cqk_merge){
		.geom = &x->s->toy.m.geom, .parts = x->parts, .n_parts = x->n,
		.n_rows = a->n_rows, .head_begin = a->head_begin, .head_end = a->head_end,
		.o = a->o, .lse = a->lse, .lse_stride = a->lse_stride, .flags = a->flags,
	};
}

/* The merged result becomes the scene's. */
static void split_run(struct split *x, const struct cqk_ops *ops)
{
	struct cqk_attn *a = &x->s->a;
	struct cqk_merge m;
	uint32_t i;

	for (i = 0; i < x->n; i++)
		part_run(x, ops, i);
	ASSERT_EQ(x->first[x->n], a->n_blocks);
	memset(x->s->out, 0xff, x->s->out_bytes);
	m = merge_of(x);
	cqk_merge(&m);
	if (x->in_place) {
		x->s->a.o = m.o = x->parts[0].o;
		x->s->a.lse = m.lse = x->lse[0];
		x->s->a.lse_stride = m.lse_stride = x->s->o.toy.n_heads;
		cqk_merge(&m);
	}
}

static void split_free(struct split *x)
{
	uint32_t i;

	for (i = 0; i < x->n; i++) {
		free(x->parts[i].o.data);
		free(x->lse[i]);
	}
}

static void check_parts(struct split *x, const struct cqk_ops *ops, const double *ref)
{
	struct scene *s = x->s;
	double bound = scene_bound(ops, s) + (x->dtype ? 4e-3 : 0), e;
	struct cqk_attn whole = s->a;

	split_run(x, ops);
	e = scene_error_from(s, ref);
	if (getenv("SHOW"))
		printf("# %-12s %u parts %.2e\n", ops->name, x->n, e);
	if (!(e <= bound))
		FAIL("%s: d %u c %u/%u rows %u, %u parts of way %u: error %.3e", ops->name,
		     s->o.toy.d, s->o.toy.ck, s->o.toy.cv, s->o.rows, x->n, x->way, e);
	split_free(x);
	s->a = whole;
}

/* The scene in every number of parts. */
static void check_scene(struct scene *s)
{
	double *ref = scene_reference(s);
	const struct cqk_ops *ops;
	uint32_t n, way;
	unsigned int i;

	for (i = 0; (ops = scene_ops(i)); i++)
		for (n = 1; ops->usable() && n <= MAX_PARTS; n++)
			for (way = 0; way < N_WAYS; way++) {
				struct split x = { .s = s, .n = n, .way = way };

				check_parts(&x, ops, ref);
			}
	free(ref);
}

static void check(const struct scene_opts *o)
{
	struct scene *s = scene_new(o);

	check_scene(s);
	scene_free(s);
}

static struct scene_opts plain(uint32_t d, uint32_t c, bool i8)
{
	return (struct scene_opts){
		.toy = { .n_layers = 2, .n_heads = 8, .n_kv_heads = 2, .d = d,
			 .rope_dim = d, .ck = c, .cv = c, .i8 = i8 },
		.shared = 7, .tail = 21, .layer = 1,
	};
}

TEST(every_coding_of_few_rows_and_many)
{
	static const uint32_t codes[] = { 8, 4, 2, 0 }, rows[] = { 1, 3, 20 };
	uint32_t i;

	for (i = 0; i < 24; i++) {
		struct scene_opts o = plain(i % 2 ? 128 : 80, codes[i % 4], i / 4 % 2);

		o.rows = rows[i / 8];
		o.dtype = i % 3;
		o.hnd = i / 3 % 2;
		o.flags = i / 2 % 2 ? CQ_ATTN_LSE_BASE2 : 0;
		check(&o);
	}
}

TEST(masks_sinks_tails_caps)
{
	uint32_t i;

	for (i = 0; i < 18; i++) {
		struct scene_opts o = plain(64, i % 2 ? 8 : 4, i / 2 % 2);

		o.sinks = i % 5;
		o.tail = i * 11 % 65;
		o.shared = i % 4 * 2;
		o.holes = i % 3 > 0;
		o.soft_cap = i % 4 ? 0 : 1.5f;
		o.flags = i / 9 ? CQ_ATTN_LSE_BASE2 : 0;
		o.rows = 1 + i % 2;
		check(&o);
	}
}

/* Tables of products, and what goes to floats for one channel above the others. */
TEST(long_contexts)
{
	static const uint32_t c[] = { 8, 4 };
	uint32_t i;

	for (i = 0; i < 8; i++) {
		struct scene_opts o = plain(128, c[i % 2], true);
		struct scene *s;

		o.toy.n_heads = 4;
		o.toy.keys = i / 2 % 2 ? CQK_KEYS_NONE : CQK_KEYS_PRE_ROPE;
		o.shared = 90;
		s = scene_new(&o);
		if (i / 4)
			((float *)s->a.q.data)[9] = 60;
		check_scene(s);
		scene_free(s);
	}
}

/* Windows that leave the first parts nothing, one token of them, and one page. */
TEST(a_window_may_leave_a_part_nothing)
{
	static const uint32_t windows[] = { 1, 22, 86, 130, 300, 469 };
	uint32_t i;

	for (i = 0; i < 2 * ARRAY_SIZE(windows); i++) {
		struct scene_opts o = plain(64, 8, i % 2);

		o.window = windows[i / 2];
		o.rows = i % 3 ? 1 : 4;
		check(&o);
	}
}

TEST(sequences_of_a_batch)
{
	uint32_t rows;

	for (rows = 1; rows < 8; rows += 3) {
		struct scene_opts o = plain(128, 8, true);

		o.seqs = 5;
		o.rows = rows;
		o.shared = 2;
		o.own = 2;
		o.shift = 77;
		o.holes = true;
		check(&o);
	}
}

/* Every score is the same: each part has its share of the average. */
TEST(all_scores_equal)
{
	uint32_t i, keys;

	for (keys = CQK_KEYS_PRE_ROPE; keys <= CQK_KEYS_NONE; keys += 2) {
		struct scene_opts o = plain(64, 8, true);
		struct scene *s;

		o.toy.keys = keys;
		o.toy.rope_dim = 0;
		o.shared = 40;
		o.tail = 0;
		s = scene_new(&o);
		for (i = 0; i < o.shared; i++)	/* K and V of a head: 8 groups each */
			for (size_t h = 0; h < 2; h++)
				memset((uint8_t *)s->mem[i] + s->toy.m.layers[1].offset +
				       h * 16 * 64, 7, 8 * 64);
		check_scene(s);
		scene_free(s);
	}
}

/* The others are in other parts but one: each lost beside the largest if l is rounded. */
TEST_LIMIT(one_score_above_16384_others, 120)
{
	static const uint32_t at[] = { 0, 130, 256 };
	uint32_t above, i;

	for (above = 6; above <= 12; above += 3)
		for (i = 0; i < ARRAY_SIZE(at); i++) {
			struct scene_opts o = plain(64, 8, true);
			struct scene *s;

			o.toy.keys = i % 2 ? CQK_KEYS_NONE : CQK_KEYS_PRE_ROPE;
			o.toy.n_heads = 2;
			o.toy.n_kv_heads = 1;
			o.shared = 257;
			o.tail = 0;
			s = scene_new(&o);
			scene_aim(s, at[i], above * 5, above);
			check_scene(s);
			scene_free(s);
		}
}

/* Scores of parts that are far apart: what a weight of e^-100 and e^100 must survive. */
TEST(parts_far_apart)
{
	static const double above[] = { -200, -90, 90, 200 };
	uint32_t i;

	for (i = 0; i < ARRAY_SIZE(above); i++) {
		struct scene_opts o = plain(64, 8, true);
		struct scene *s;

		o.flags = i % 2 ? CQ_ATTN_LSE_BASE2 : 0;
		o.toy.keys = CQK_KEYS_NONE;
		o.tail = 0;
		s = scene_new(&o);
		scene_aim(s, 3, 40, above[i]);
		check_scene(s);
		scene_free(s);
	}
}

TEST(one_token_or_none)
{
	struct scene_opts o = plain(64, 4, true);
	struct scene *s = scene_new(&o);
	uint32_t i;

	for (i = 0; i < s->n_spans; i++)
		s->spans[i].mask = i == 5 ? 1ull << 37 : 0;
	check_scene(s);
	for (i = 0; i < s->n_spans; i++)
		s->spans[i].mask = 0;
	check_scene(s);
	s->a.n_blocks = 0;
	check_scene(s);
	scene_free(s);
}

/* Row 0 sees the first two pages, row 1 none, the others all. */
TEST(rows_that_see_nothing_in_some_parts_or_all)
{
	struct scene_opts o = plain(64, 4, true);
	struct scene *s;
	uint32_t i;

	o.rows = 4;
	s = scene_new(&o);
	for (i = 0; i < s->n_spans; i++)
		s->spans[i].pos += 1;
	s->row_pos[0] = 100;
	s->row_pos[1] = 0;
	check_scene(s);
	scene_free(s);
}

/* Head 5 of row 0 has the value: NaN there, if it sees anything, and nowhere else. */
static void check_spoiled(struct split *x, const struct cqk_ops *ops, bool sees)
{
	struct scene *s = x->s;
	uint32_t row, h, ch;

	split_run(x, ops);
	for (row = 0; row < s->a.n_rows; row++)
		for (h = 0; h < 8; h++) {
			bool bad = sees && !row && h == 5;

			for (ch = 0; ch < 64; ch++)
				ASSERT_EQ(isnan(toy_load(&s->a.o, row, h, ch)), bad);
			ASSERT_EQ(isnan(s->lse[row * s->a.lse_stride + h]), bad);
		}
	split_free(x);
}

TEST(queries_that_are_no_numbers_give_none)
{
	static const float bad[] = { NAN, INFINITY, 1e30f };
	struct scene_opts o = plain(64, 8, true);
	const struct cqk_ops *ops;
	uint32_t v, n;
	unsigned int i;

	o.rows = 3;
	for (v = 0; v < 2 * ARRAY_SIZE(bad); v++) {
		struct scene *s = scene_new(&o);

		((float *)s->a.q.data)[5 * s->a.q.stride_head + 9] = bad[v / 2];
		s->row_pos[0] = 70;	/* nothing of the last parts */
		for (i = 0; v % 2 && i < s->n_spans; i++)
			s->spans[i].pos += 71;
		for (i = 1; v % 2 && i < 3; i++)
			s->row_pos[i] += 71;
		for (i = 0; (ops = scene_ops(i)); i++)
			for (n = 1; ops->usable() && n <= MAX_PARTS; n++) {
				struct split x = { .s = s, .n = n, .way = BY_NUMBER };

				check_spoiled(&x, ops, !(v % 2));
			}
		scene_free(s);
	}
}

TEST(a_result_may_replace_a_part)
{
	struct scene_opts o = plain(64, 8, true);
	struct scene *s;
	double *ref;
	uint32_t n;

	o.rows = 2;
	s = scene_new(&o);
	ref = scene_reference(s);
	for (n = 1; n <= MAX_PARTS; n++) {
		struct split x = { .s = s, .n = n, .in_place = true };

		check_parts(&x, &cqk_portable, ref);
	}
	free(ref);
	scene_free(s);
}

TEST(parts_of_every_type)
{
	struct scene_opts o = plain(80, 4, true);
	uint32_t dtype;

	for (dtype = CQ_F32; dtype <= CQ_BF16; dtype++) {
		struct scene *s = scene_new(&o);
		struct split x = { .s = s, .n = 3, .dtype = dtype };
		double *ref = scene_reference(s);

		check_parts(&x, &cqk_portable, ref);
		free(ref);
		scene_free(s);
	}
}

TEST(merging_touches_only_its_heads)
{
	struct scene_opts o = plain(64, 4, true);
	struct scene *s = scene_new(&o);
	struct split x = { .s = s, .n = 2 };
	struct cqk_merge m;
	const uint8_t *out;
	uint32_t ch, h;

	split_run(&x, &cqk_portable);
	m = merge_of(&x);
	m.head_begin = 1;
	for (h = 0; h < 8; h++)
		s->lse[h] = 77;
	memset(s->out, 0xff, s->out_bytes);
	cqk_merge(&m);
	out = s->a.o.data;
	for (ch = 0; ch < 4 * 67 * 4; ch++)
		ASSERT(out[ch] == 0xff);
	ASSERT(out[4 * 67 * 4] != 0xff || out[4 * 67 * 4 + 1] != 0xff);
	for (h = 0; h < 8; h++)
		ASSERT_EQ(s->lse[h] == 77, h < 4);
	split_free(&x);
	scene_free(s);
}

/* What a part holds that saw nothing does not matter: other kernels may leave it as it was. */
TEST(parts_that_saw_nothing_have_no_say)
{
	float o[2][64], lse[2] = { -INFINITY, 1.5f }, out[64], all;
	struct cqk_geom g = { .n_heads = 1, .n_kv_heads = 1, .head_dim = 64 };
	struct cq_part p[2] = { { .o = { o[0], CQ_F32, 0, 64, 64 }, .lse = &lse[0] },
				{ .o = { o[1], CQ_F32, 0, 64, 64 }, .lse = &lse[1] } };
	struct cqk_merge m = { .geom = &g, .parts = p, .n_parts = 2, .n_rows = 1, .head_end = 1,
			       .o = { out, CQ_F32, 0, 64, 64 }, .lse = &all };
	uint32_t ch;

	for (ch = 0; ch < 64; ch++) {
		o[0][ch] = NAN;
		o[1][ch] = (float)ch;
	}
	cqk_merge(&m);
	for (ch = 0; ch < 64; ch++)
		ASSERT(out[ch] == (float)ch);
	ASSERT(all == 1.5f);
}

/* --- which blocks a part has --- */

/* Blocks of the part that the last row sees something of. */
static uint32_t seen_blocks(const struct scene *s, uint32_t part, uint32_t n)
{
	struct cqk_attn a = s->a;
	uint32_t i, seen = 0;

	cqk_attn_part(&a, part, n);
	for (i = 0; i < a.n_blocks; i++)
		seen += cqk_visible(&a, &a.blocks[i], &a.spans[a.blocks[i].span_first],
				    s->row_pos[s->a.n_rows - 1]) != 0;
	return seen;
}

static void check_even(const struct scene_opts *o, uint32_t blocks)
{
	struct scene *s = scene_new(o);
	uint32_t n, i, seen, sum;

	for (n = 1; n <= 64; n++) {
		for (sum = 0, i = 0; i < n; i++) {
			seen = seen_blocks(s, i, n);
			sum += seen;
			ASSERT_GE(seen + 1, blocks / n);
			ASSERT_LE(seen, blocks / n + 1);
		}
		ASSERT_EQ(sum, blocks);
	}
	scene_free(s);
}

TEST(parts_are_even)
{
	struct scene_opts o = plain(8, 4, true);

	o.shared = 100;
	o.tail = 0;
	check_even(&o, 100);
	o.rows = 30;
	check_even(&o, 100);
	o.toy.ck = 0;
	o.toy.cv = 0;
	o.tail = 64;	/* halves among halves count as much */
	check_even(&o, 101);
	o.shared = 3;
	check_even(&o, 4);
}

/* Pages outside the window take no time, so they do not count. */
TEST(parts_of_a_window_are_even)
{
	struct scene_opts o = plain(8, 4, true);

	o.shared = 100;
	o.tail = 0;
	o.window = 20 * 64;
	check_even(&o, 20);
	o.window = 64;
	check_even(&o, 1);
}

/* 32 sequences read one page, and one each of their own: it takes what 26 of these do. */
TEST(a_page_that_many_read_is_one_part)
{
	struct scene_opts o = plain(8, 4, true);
	struct scene *s;
	uint32_t i;

	o.seqs = 32;
	o.rows = 4;
	o.shared = 1;
	o.own = 1;
	o.tail = 0;
	s = scene_new(&o);
	for (i = 0; i < 2; i++) {
		struct cqk_attn a = s->a;

		cqk_attn_part(&a, i, 2);
		ASSERT_EQ(a.n_blocks, i ? 29 : 4);
		ASSERT_EQ(a.blocks[0].n_spans, i ? 1 : 32);
	}
	scene_free(s);
}
