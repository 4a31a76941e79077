// SPDX-License-Identifier: MIT
/*
 * Attention of every implementation that runs here, against double precision
 * over the centroids as stored.
 */
#include "tests/kernels/scene.h"

static void check_ops(struct scene *s, const struct cqk_ops *ops, const double *ref)
{
	double e;

	if (!ops->usable())
		return;
	scene_run(s, ops);
	e = scene_error_from(s, ref);
	if (getenv("SHOW"))
		printf("# %-12s %.2e\n", ops->name, e);
	if (!(e <= scene_bound(ops, s)))
		FAIL("%s: d %u c %u/%u i8 %d rows %u: error %.3e", ops->name,
		     s->o.toy.d, s->o.toy.ck, s->o.toy.cv, s->o.toy.i8,
		     s->o.rows, e);
}

/* One reference for all: it takes longer than they do. */
static void check_scene(struct scene *s)
{
	double *ref = scene_reference(s);
	unsigned int i;

	for (i = 0; scene_ops(i); i++)
		check_ops(s, scene_ops(i), ref);
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
		.shared = 3, .tail = 21, .layer = 1,
	};
}

TEST(every_head_dim_and_group_size)
{
	static const uint32_t dims[] = { 2, 6, 32, 64, 80, 96, 112, 128, 250, 256 };
	uint32_t i, c, i8;

	for (i = 0; i < ARRAY_SIZE(dims); i++)
		for (c = 1; c <= 16; c++)
			for (i8 = 0; i8 < 2 && dims[i] % c == 0; i8++) {
				struct scene_opts o = plain(dims[i], c, i8);

				check(&o);
			}
}

TEST(every_kind_of_keys)
{
	static const uint32_t flags[] = { 0, CQ_ATTN_Q_ROTATED };
	uint32_t keys, f, i8;

	for (keys = CQK_KEYS_PRE_ROPE; keys <= CQK_KEYS_NONE; keys++)
		for (f = 0; f < 2; f++)
			for (i8 = 0; i8 < 2; i8++) {
				struct scene_opts o = plain(128, 8, i8);

				o.toy.keys = keys;
				o.flags = flags[f];
				o.shared = 20;
				check(&o);
				o.toy.rope_dim = 32;
				check(&o);
				o.toy.rope_dim = 0;
				check(&o);
			}
}

/* One setting of RoPE with few and many pages, keys and queries each way. */
static void check_rope(struct scene_opts o)
{
	uint32_t i;

	o.toy.n_heads = 4;
	for (i = 0; i < 4; i++) {
		o.toy.keys = i / 2 ? CQK_KEYS_ROTATED : CQK_KEYS_PRE_ROPE;
		o.flags = i % 2 ? CQ_ATTN_Q_ROTATED : 0;
		o.shared = 2;
		o.rows = 5;
		check(&o);
		o.shared = 17;	/* where there are loops of their own for many pages */
		o.rows = 1;
		check(&o);
	}
}

TEST_LIMIT(every_scaling_and_pairing, 60)
{
	static const uint32_t dims[] = { 128, 96, 64, 32 }, codes[] = { 8, 4, 2, 0 };
	uint32_t type, pairs, i, n = 0;

	for (type = 0; type <= CQK_SCALING_YARN; type++)
		for (pairs = 0; pairs <= CQK_PAIRS_INTERLEAVED; pairs++)
			for (i = 0; i < 2; i++, n++) {
				struct scene_opts o = plain(128, codes[(n + n / 4) % 4], n % 3 > 0);

				o.toy.rope_dim = dims[n % 4];
				o.toy.theta = n % 2 ? 5e5 : 1e4;
				o.toy.pairs = pairs;
				o.toy.scaling = ref_scaling(type, n % 5 ? 300 : 8192);
				o.sinks = n % 3 * 2;
				check_rope(o);
			}
}

/* A large attention factor is in the scores, not in what need not be rotated. */
TEST(the_attention_factor_counts_once_for_each_side)
{
	static const double factor[] = { 0.125, 3, 8 };
	struct scene_opts o = plain(128, 8, true);
	uint32_t i;

	o.toy.scaling = ref_scaling(CQK_SCALING_YARN, 300);
	o.q_size = 0.02f;
	for (i = 0; i < ARRAY_SIZE(factor); i++) {
		o.toy.scaling.attention_factor = factor[i];
		o.toy.rope_dim = i == 1 ? 64 : 128;
		check_rope(o);
	}
}

TEST(no_tables_needed_when_keys_and_queries_come_rotated)
{
	struct scene_opts o = plain(64, 4, true);
	struct scene *s;

	o.toy.keys = CQK_KEYS_ROTATED;
	o.flags = CQ_ATTN_Q_ROTATED;
	for (o.toy.pairs = 0; o.toy.pairs <= CQK_PAIRS_INTERLEAVED; o.toy.pairs++) {
		s = scene_new(&o);
		s->a.rope = NULL;
		check_scene(s);
		scene_free(s);
	}
}

TEST(gqa_from_1_to_16)
{
	static const uint32_t gqa[] = { 1, 2, 3, 4, 7, 8, 16 };
	uint32_t i;

	for (i = 0; i < ARRAY_SIZE(gqa); i++) {
		struct scene_opts o = plain(128, 4, i % 2);

		o.toy.n_heads = 2 * gqa[i];
		check(&o);
		o.rows = 3;
		check(&o);
	}
}

TEST(many_rows_are_causal)
{
	static const uint32_t rows[] = { 2, 5, 16, 64, 97, 200 };
	uint32_t i;

	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		struct scene_opts o = plain(64, 8, i % 2);

		o.rows = rows[i];
		o.toy.n_heads = 4;
		check(&o);
	}
}

TEST(rows_that_see_nothing_give_zero)
{
	struct scene_opts o = plain(64, 4, true);
	struct scene *s;
	uint32_t i;

	o.rows = 4;
	s = scene_new(&o);
	for (i = 0; i < s->n_spans; i++)
		s->spans[i].pos += 1;	/* row 0 loses its last token only */
	s->row_pos[1] = 0;
	check_scene(s);
	for (i = 0; i < s->n_spans; i++)
		s->spans[i].mask = 0;
	check_scene(s);
	s->a.n_blocks = 0;
	check_scene(s);
	scene_free(s);
}

TEST(sinks_tails_masks)
{
	uint32_t sinks, tail, i8;

	for (i8 = 0; i8 < 2; i8++)
		for (sinks = 0; sinks <= 4; sinks += 4)
			for (tail = 0; tail < 65; tail += 8) {
				struct scene_opts o = plain(64, 4, i8);

				o.sinks = sinks;
				o.tail = tail;
				o.holes = true;
				check(&o);
			}
}

TEST(batches_share_pages_at_other_positions)
{
	uint32_t i8, rows;

	for (i8 = 0; i8 < 2; i8++)
		for (rows = 1; rows < 8; rows += 3) {
			struct scene_opts o = plain(128, 8, i8);

			o.seqs = 7;
			o.rows = rows;
			o.own = 1;
			o.shift = 77;
			o.holes = true;
			o.sinks = 4;
			check(&o);
		}
}

TEST(soft_cap_window_base2)
{
	uint32_t window, i8;

	for (i8 = 0; i8 < 2; i8++)
		for (window = 0; window <= 150; window += 50) {
			struct scene_opts o = plain(128, 4, i8);

			o.soft_cap = 1.5f;
			o.window = window;
			o.flags = CQ_ATTN_LSE_BASE2;
			check(&o);
			o.rows = 20;
			check(&o);
		}
}

/* A cap far above the scores leaves them as they are. */
/* Few rows and many, in every layout of views, with every kind of mask at once. */
TEST_LIMIT(views_and_masks_of_many_rows, 60)
{
	static const uint32_t rows[] = { 1, 3, 70 }, codes[] = { 8, 0, 4 };
	uint32_t i;

	for (i = 0; i < 36; i++) {
		struct scene_opts o = plain(i % 2 ? 128 : 80, codes[(i + i / 6) % 3], i / 3 % 2);

		o.toy.n_heads = i % 4 == 3 ? 6 : 2;
		o.rows = rows[i / 12];
		o.dtype = i % 3;
		o.hnd = i / 3 % 2;
		o.soft_cap = i / 6 % 2 ? 1.5f : 0;
		o.window = i % 4 ? 30 + i : 0;
		o.sinks = i % 5;
		o.holes = i % 7 == 6;
		o.toy.pairs = i / 2 % 2;
		check(&o);
	}
}

TEST(soft_caps_of_every_size)
{
	static const float caps[] = { 1e-3f, 0.5f, 5, 50, 1e3f, 1e5f, 1e30f, 3e38f };
	uint32_t i;

	for (i = 0; i < ARRAY_SIZE(caps); i++) {
		struct scene_opts o = plain(64, 8, i % 2);

		o.soft_cap = caps[i];
		check(&o);
		o.shared = 17;
		check(&o);
	}
}

/* Heads of row 0 with the value give NaN, if they see anything; no other does. */
static void check_spoiled(struct scene *s, const struct cqk_ops *ops)
{
	uint32_t row, h, ch;

	scene_run(s, ops);
	for (row = 0; row < s->a.n_rows; row++)
		for (h = 0; h < 8; h++) {
			bool bad = !row && h == 5, sees = s->a.n_blocks;

			for (ch = 0; ch < 64; ch++) {
				double x = toy_load(&s->a.o, row, h, ch);

				ASSERT(sees ? isnan(x) == bad : x == 0);
			}
			ASSERT_EQ(isnan(s->lse[row * s->a.lse_stride + h]),
				  bad && sees);
		}
}

TEST(queries_that_are_no_numbers_give_none)
{
	static const float bad[] = { NAN, INFINITY, -INFINITY, 1e30f, -1e17f };
	uint32_t v, shared, rows, n;
	unsigned int i;

	for (v = 0; v < ARRAY_SIZE(bad); v++)
		for (shared = 3; shared < 30; shared += 17)
			for (rows = 1; rows < 10; rows += 8) {
				struct scene_opts o = plain(64, 8, v % 2);
				struct scene *s;

				o.shared = shared;
				o.rows = rows;
				s = scene_new(&o);
				n = s->a.n_blocks;
				((float *)s->a.q.data)[5 * s->a.q.stride_head + 9] = bad[v];
				for (i = 0; scene_ops(i); i++) {
					if (!scene_ops(i)->usable())
						continue;
					check_spoiled(s, scene_ops(i));
					s->a.n_blocks = 0;
					check_spoiled(s, scene_ops(i));
					s->a.n_blocks = n;
				}
				scene_free(s);
			}
}

TEST(strides_may_be_negative)
{
	struct scene_opts o = plain(64, 8, true);
	struct scene *s;

	o.rows = 3;
	s = scene_new(&o);
	s->a.q.data = (float *)s->a.q.data + 7 * s->a.q.stride_head;
	s->a.q.stride_head = -s->a.q.stride_head;
	s->a.o.data = (float *)s->a.o.data + 2 * s->a.o.stride_token;
	s->a.o.stride_token = -s->a.o.stride_token;
	check_scene(s);
	scene_free(s);
}

TEST(views_of_every_type)
{
	uint32_t dtype;

	for (dtype = CQ_F32; dtype <= CQ_BF16; dtype++) {
		struct scene_opts o = plain(96, 4, true);

		o.dtype = dtype;
		check(&o);
		o.rows = 9;
		check(&o);
	}
}

TEST(a_sequence_may_use_a_page_twice)
{
	struct scene_opts o = plain(64, 4, true);
	struct scene *s;
	uint32_t i;

	o.toy.n_heads = 4;
	o.rows = 4;
	o.seqs = 2;
	o.tail = 0;
	s = scene_new(&o);
	for (i = 0; i < 3; i++) {	/* both spans to the first sequence */
		s->spans[2 * i + 1].row_first = 0;
		s->spans[2 * i + 1].pos += 64;
		s->spans[2 * i + 1].mask = 0x00ff00ff12345678ull;
	}
	for (i = 0; i < 4; i++)
		s->row_pos[i] = i < 2 ? 20 + 180 * i : 255;
	check_scene(s);
	s->a.n_rows = 2;		/* few enough vectors for page loops */
	for (i = 0; i < 6; i++)
		s->spans[i].n_rows = 2;
	check_scene(s);
	scene_free(s);
}

TEST(head_ranges_touch_only_their_heads)
{
	struct scene_opts o = plain(64, 4, true);
	struct scene *s = scene_new(&o);
	const uint8_t *out;
	unsigned int i;
	uint32_t ch;

	for (i = 0; scene_ops(i); i++) {
		if (!scene_ops(i)->usable())
			continue;
		s->a.head_begin = 1;
		scene_run(s, scene_ops(i));
		out = s->a.o.data;
		for (ch = 0; ch < 4 * 67 * 4; ch++)
			ASSERT(out[ch] == 0xff);
		ASSERT(out[4 * 67 * 4] != 0xff || out[4 * 67 * 4 + 1] != 0xff);
		s->a.head_begin = 0;
		s->a.head_end = 1;
		scene_run(s, scene_ops(i));
		for (ch = 4 * 67 * 4; ch < 8 * 67 * 4; ch++)
			ASSERT(out[ch] == 0xff);
		s->a.head_end = 2;
	}
	scene_free(s);
}

TEST(pass_through_pages)
{
	uint32_t which;

	for (which = 0; which < 4; which++) {
		struct scene_opts o = plain(128, 8, which > 1);

		if (which & 1)
			o.toy.cv = 0;
		else
			o.toy.ck = 0;
		check(&o);
		o.rows = 12;
		check(&o);
	}
}

/* Blocks without codes, for every number of query vectors and width. */
TEST(rows_of_halves)
{
	static const uint32_t dims[] = { 16, 48, 64, 80, 128, 208, 256 };
	uint32_t i, gqa, keys;

	for (i = 0; i < ARRAY_SIZE(dims); i++)
		for (gqa = 1; gqa <= 8; gqa++)
			for (keys = 0; keys <= CQK_KEYS_NONE; keys += 2) {
				struct scene_opts o = plain(dims[i], 0, false);

				o.toy.n_heads = 2 * gqa;
				o.toy.keys = keys;
				o.toy.rope_dim = gqa % 2 ? dims[i] : MIN(32u, dims[i]);
				o.holes = gqa % 3 == 0;
				o.tail = 1 + 5 * gqa;
				check(&o);
			}
}

/* Keys that need no turning, over enough pages for tables of products. */
TEST_LIMIT(tables_of_products, 120)
{
	static const uint32_t dims[] = { 32, 64, 128, 256 };
	uint32_t i, gqa, c;

	for (i = 0; i < ARRAY_SIZE(dims); i++)
		for (c = 4; c <= 16; c *= 2)
			for (gqa = 1; gqa <= 8; gqa += 1 + gqa / 3) {
				struct scene_opts o = plain(dims[i], c, true);

				o.toy.n_heads = 2 * gqa;
				o.toy.keys = CQK_KEYS_NONE;
				o.shared = gqa < 5 ? 70 : 110;
				o.holes = gqa % 2;
				o.soft_cap = gqa % 4 == 3 ? 2.0f : 0.0f;
				o.q_size = gqa == 4 ? 4.0f : 0.0f;
				check(&o);
			}
}

/*
 * One channel of the query is many times all others: few pages and many, few vectors and more.
 * Scores are large, and what integers round of either side counts with their size.
 */
TEST_LIMIT(one_channel_above_the_others, 120)
{
	static const float size[] = { 20, 40, 150 };
	static const uint32_t shared[] = { 3, 30 }, c[] = { 8, 4, 2, 8 }, heads[] = { 8, 16, 24 };
	uint32_t i, h, ch;

	for (i = 0; i < 72 * ARRAY_SIZE(size); i++) {
		struct scene_opts o = plain(128, c[i / 18 % 4], true);
		struct scene *s;

		o.toy.bk = o.toy.bv = i / 18 % 4 == 3 ? 10 : 8;
		o.toy.keys = i % 3 ? CQK_KEYS_PRE_ROPE : CQK_KEYS_NONE;
		o.toy.rope_dim = i % 3 == 1 ? 64 : 128;
		o.toy.n_heads = heads[i / 3 % 3];
		o.shared = shared[i / 9 % 2];
		s = scene_new(&o);
		for (h = 0; h < o.toy.n_heads; h++) {
			ch = h * (uint32_t)s->a.q.stride_head + (i % 2 ? 77 : h * 5);
			((float *)s->a.q.data)[ch] = size[i / 72];
		}
		check_scene(s);
		scene_free(s);
	}
}

/* The same size of scores from channels that are all alike. */
TEST_LIMIT(all_channels_large, 120)
{
	static const uint32_t shared[] = { 3, 30 }, c[] = { 8, 4, 2 }, heads[] = { 2, 8, 24 };
	uint32_t i;

	for (i = 0; i < 96; i++) {
		struct scene_opts o = plain(128, c[i % 3], true);

		o.toy.keys = i % 4 == 3 ? CQK_KEYS_NONE : CQK_KEYS_PRE_ROPE;
		o.toy.rope_dim = i % 4 == 1 ? 96 : 128;
		o.toy.n_heads = heads[i / 2 % 3];
		o.shared = shared[i / 12 % 2];
		o.q_size = 1.0f + 0.25f * (float)(i / 6);
		check(&o);
	}
}

TEST(different_codings_of_k_and_v)
{
	struct scene_opts o = plain(128, 2, true);

	o.toy.cv = 8;
	check(&o);
	o.toy.ck = 16;
	o.toy.cv = 1;
	check(&o);
}

/* 8c10b with itself, with 8-bit codes and halves; few rows, many, long contexts. */
TEST(codes_of_ten_bits)
{
	static const uint32_t other[] = { 8, 4, 2, 0 }, dims[] = { 128, 64, 80, 256 };
	uint32_t i, side, i8;

	for (i = 0; i < ARRAY_SIZE(other); i++)
		for (side = 0; side < 3; side++)
			for (i8 = 0; i8 < 2; i8++) {
				struct scene_opts o = plain(dims[i], 8, i8);

				o.toy.bk = side < 2 ? 10 : 8;
				o.toy.bv = side ? 10 : 8;
				o.toy.cv = side == 0 ? other[i] : 8;
				o.toy.ck = side == 2 ? other[i] : 8;
				o.toy.rope_dim -= side == 1 ? 28 : 0;	/* begin within groups */
				check(&o);
				o.rows = 5;
				o.toy.n_heads = 4;
				o.sinks = 3;
				check(&o);
				o.toy.keys = CQK_KEYS_NONE;
				o.rows = 1;
				o.shared = 18;
				o.holes = true;
				check(&o);
			}
}

TEST(large_and_tiny_scales)
{
	static const float size[] = { 1e-4f, 1e-2f, 30.0f, 1000.0f };
	uint32_t i, i8;

	for (i = 0; i < ARRAY_SIZE(size); i++)
		for (i8 = 0; i8 < 2; i8++) {
			struct scene_opts o = plain(128, 8, i8);

			o.tail = 0;
			o.toy.k_size = size[i];
			o.q_size = 1 / size[i];
			o.toy.v_size = size[i];
			check(&o);
			o.toy.bk = 10;
			o.toy.bv = 10;
			check(&o);
		}
}

TEST(positions_far_out)
{
	struct scene_opts o = plain(128, 8, true);

	o.seqs = 2;
	o.shift = 100000;
	check(&o);
}

TEST(one_score_above_16384_others)
{
	uint32_t above, i8, keys;

	for (keys = CQK_KEYS_PRE_ROPE; keys <= CQK_KEYS_NONE; keys += 2)
		for (i8 = 0; i8 < 2; i8++) {
			struct scene_opts o = plain(64, 8, i8);
			struct scene *s;

			o.toy.keys = keys;
			o.toy.n_heads = 2;
			o.toy.n_kv_heads = 1;
			o.shared = 257;
			o.tail = 0;
			s = scene_new(&o);
			for (above = 6; above <= 12; above += 2) {
				scene_aim(s, above * 20, above * 5, above);
				check_scene(s);
			}
			scene_free(s);
		}
}

/* 16,447 tokens of one score, each lost beside the largest if p is rounded. */
TEST(one_score_above_equal_ones)
{
	uint32_t above;

	for (above = 9; above <= 13; above++) {
		struct scene_opts o = plain(64, 8, true);
		struct scene *s;
		uint32_t i, ch;

		o.toy.keys = CQK_KEYS_NONE;
		o.toy.n_heads = 2;
		o.toy.n_kv_heads = 1;
		o.shared = 257;
		o.tail = 0;
		s = scene_new(&o);
		for (i = 0; i < 257; i++)	/* K of layer 1: 8 groups */
			memset((uint8_t *)s->mem[i] + s->toy.m.layers[1].offset, 7,
			       8 * 64);
		for (ch = 0; ch < 8; ch++)
			((uint8_t *)s->mem[100])[s->toy.m.layers[1].offset +
						 ch * 64 + 33] = 200;
		scene_aim(s, 100, 33, above);
		check_scene(s);
		scene_free(s);
	}
}

/* Enough pages for implementations that build tables per call. */
TEST(long_contexts)
{
	static const uint32_t dims[] = { 64, 96, 128, 256 };
	uint32_t i, c, keys, n = 0;

	for (i = 0; i < ARRAY_SIZE(dims); i++)
		for (c = 1; c <= 16; c *= 2)
			for (keys = 0; keys <= CQK_KEYS_NONE; keys += 2) {
				struct scene_opts o = plain(dims[i], c, n % 2);

				o.toy.keys = keys;
				o.toy.cv = c == 8 ? 4 : 2 * c % 31;
				o.toy.n_heads = 2 * (1 + n % 8);
				o.shared = 17 + n % 3;
				o.holes = n % 4 == 3;
				o.sinks = n % 5;
				o.soft_cap = n % 7 == 6 ? 2.0f : 0.0f;
				o.window = n % 6 == 5 ? 700 : 0;
				check(&o);
				n++;
			}
}

TEST(long_contexts_of_two_sequences)
{
	uint32_t i8, c;

	for (i8 = 0; i8 < 2; i8++)
		for (c = 2; c <= 8; c *= 2) {
			struct scene_opts o = plain(64, c, i8);

			o.shared = 16;
			o.own = 3;
			o.seqs = 2;
			o.shift = 1000;
			o.holes = true;
			check(&o);
			o.rows = 2;
			o.toy.n_heads = 4;
			o.toy.rope_dim = 32;
			check(&o);
		}
}

/* Maxima that grow by more than any guard between rescalings. */
TEST(long_contexts_of_large_scores)
{
	uint32_t size, i8;

	for (size = 4; size <= 64; size *= 4)
		for (i8 = 0; i8 < 2; i8++) {
			struct scene_opts o = plain(64, 8, i8);

			o.toy.keys = CQK_KEYS_NONE;
			o.shared = 40;
			o.tail = 0;
			o.q_size = (float)size;
			check(&o);
		}
}

/* Every centroid as large as can be, all of one sign: the largest sums. */
static void widest_keys(struct cqk_codebook *cb)
{
	size_t n = (size_t)cb->n_kv_heads * cb->head_dim * 256, ch, i;
	uint32_t c = cb->code.channels;

	for (ch = 0; ch < n / 256; ch++) {
		((float *)(uintptr_t)cb->scale)[ch] = 0.002f;
		for (i = 0; i < 256; i++) {
			int8_t x = i % 2 ? 127 : -127;

			((int8_t *)(uintptr_t)cb->stored)[(ch / c * 256 + i) * c + ch % c] = x;
			cb->i8[ch * 256 + i] = x;
			cb->f32[ch * 256 + i] = (float)x * 0.002f;
		}
	}
}

TEST(sums_of_integers_do_not_overflow)
{
	uint32_t rope, i, one;

	for (rope = 0; rope <= 128; rope += 32)
		for (one = 0; one < 2; one++) {
			struct scene_opts o = plain(128, 8, true);
			struct scene *s;

			o.toy.rope_dim = rope;
			o.shared = 17;
			o.tail = 0;
			s = scene_new(&o);
			widest_keys(&s->toy.m.layers[1].k);
			/* all channels alike, or one that hides the others */
			for (i = 0; i < s->out_bytes / 4 - 1; i++)
				((float *)s->a.q.data)[i] = !one ? 1.0f :
					i % 131 == 3 ? 80.0f : 0.01f;
			check_scene(s);
			scene_free(s);
		}
}

TEST(all_codes_equal_and_one_token)
{
	uint32_t i, i8;

	for (i8 = 0; i8 < 2; i8++) {
		struct scene_opts o = plain(128, 4, i8);
		struct scene *s = scene_new(&o);

		for (i = 0; i < 3; i++)
			memset(s->mem[i], 0x80, s->toy.m.payload);
		check_scene(s);
		for (i = 0; i < 3; i++)
			memset(s->mem[i], 0xff, s->toy.m.payload);
		check_scene(s);
		for (i = 0; i < s->n_spans; i++)
			s->spans[i].mask = i == 1 ? 1ull << 37 : 0;
		check_scene(s);
		memset(s->q, 0, 4 * (size_t)s->a.q.stride_token);
		check_scene(s);
		scene_free(s);
	}
}

TEST(blocks_at_odd_addresses)
{
	uint32_t i, i8;

	for (i8 = 0; i8 < 2; i8++) {
		struct scene_opts o = plain(112, 7, i8);
		struct scene *s = scene_new(&o);

		for (i = 0; i < s->a.n_blocks; i++) {
			uint8_t *mem = s->mem[i];

			memmove(mem + 1, mem, s->blocks[i].kind == CQK_BLOCK_CODES ?
				s->toy.m.payload :
				cq_f16_block_bytes(2, 2, 112, s->blocks[i].tokens));
			s->blocks[i].base = mem + 1;
		}
		check_scene(s);
		scene_free(s);
	}
}

TEST(garbage_in_tokens_nobody_reads)
{
	struct scene_opts o = plain(64, 4, true);
	struct scene *s;
	uint32_t i;

	o.tail = 64;
	s = scene_new(&o);
	s->spans[3].mask = low_bits(9);
	for (i = 0; i < s->o.toy.n_layers * 2 * 2; i++)
		memset((uint8_t *)s->mem[3] + (i * 64 + 9) * 64 * 2, 0xff, 55 * 64 * 2);
	check_scene(s);
	scene_free(s);
}

/* A batch reserves for its most rows, and is stepped with fewer. */
TEST(scratch_for_many_rows_does_for_few)
{
	struct scene_opts o = plain(64, 4, true);
	const struct cqk_ops *ops;
	struct scene *s;
	uint32_t i, rows;
	size_t last;

	s = scene_new(&o);
	for (i = 0; (ops = scene_ops(i)); i++) {
		last = 0;
		for (rows = 1; rows <= 512; rows++) {
			ASSERT_GE(ops->scratch_bytes(&s->toy.m, rows), last);
			last = ops->scratch_bytes(&s->toy.m, rows);
		}
	}
	scene_free(s);
}

static unsigned int loads;

static void counted_k(const struct cqk_src *src, const struct cqk_rope *rope,
		      float *k, float *tmp)
{
	loads++;
	cqk_tile_portable.load_k(src, rope, k, tmp);
}

static void counted_v(const struct cqk_src *src, float *v, uint32_t dpad)
{
	loads++;
	cqk_tile_portable.load_v(src, v, dpad);
}

TEST(a_block_is_decoded_once)
{
	struct scene_opts o = plain(64, 4, true);
	struct cqk_tile_ops ops = cqk_tile_portable;
	struct scene *s;

	o.seqs = 9;
	o.rows = 30;
	o.shift = 64;
	o.tail = 0;
	s = scene_new(&o);
	scene_run(s, &cqk_portable);
	ops.load_k = counted_k;
	ops.load_v = counted_v;
	cqk_attn_tiled(&s->a, &ops);
	ASSERT_EQ(loads, 3 * 2 * 2);	/* blocks, kv heads, K and V */
	ASSERT(scene_error(s) < 1e-5);
	scene_free(s);
}
