// SPDX-License-Identifier: MIT
/*
 * Attention of few query vectors on the (emulated) GPU, by each variant of kernels that there
 * is for it, against double precision over the centroids as stored.
 */
#include "tests/harness.h"
#include "tests/kernels/gpu_scene.h"

/* A check of what one variant computes; a GPU may have too little shared memory for it. */
static void check_scene_variant(struct gpu *g, struct scene *s, enum cqk_cuda_variant want)
{
	enum cqk_cuda_variant got;
	struct run r;

	run_new(g, s, &r);
	got = cqk_cuda_variant(g->k, r.t, &r.a);
	ASSERT(got == want || (got == CQK_CUDA_BLOCK && getenv("CQ_TEST_GPU")));
	run_launch(g, &r);
	run_get(g, s, &r);
	check_error(s);
	run_free(g, &r);
}

static void check_variant(struct gpu *g, const struct scene_opts *o, enum cqk_cuda_variant want)
{
	struct scene *s = scene_new(o);

	check_scene_variant(g, s, want);
	scene_free(s);
}

/* What attn_few.cu computes, by each of its kernels and by their blocks in turn. */
TEST_LIMIT(few_vectors, 60)
{
	static const uint32_t codes[] = { 2, 4, 8 };
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	cqk_cuda_force(g.k, CQK_CUDA_FEW);
	for (i = 0; i < 18; i++) {
		struct scene_opts o = plain(i % 2 ? 128 : 64, codes[i / 2 % 3]);

		o.toy.cv = codes[i / 6];
		o.toy.keys = i == 7 ? CQK_KEYS_NONE : i % 5 == 4 ? CQK_KEYS_ROTATED :
								CQK_KEYS_PRE_ROPE;
		o.toy.n_kv_heads = 1;
		o.toy.n_heads = 1 + i % 8;
		o.toy.i8 = i % 4 == 1;
		o.toy.pairs = i / 4 % 2;
		o.seqs = 1 + i % 2;
		o.shift = i == 9 ? 77 : 0;
		o.shared = i % 3 * 5;
		o.own = 1 + i % 4 * 3;
		o.sinks = i % 5;
		o.tail = i % 2 * 30;
		o.holes = i % 6 == 5;
		o.window = i == 12 ? 100 : 0;
		o.soft_cap = i == 13 ? 3 : 0;
		o.dtype = i % 3;
		check_variant(&g, &o, CQK_CUDA_FEW);
	}
	gpu_close(&g);
}

/* What attn_bytes.cu computes, by each of its kernels. */
static void by_bytes(bool little_shared)
{
	static const uint32_t codes[] = { 2, 4, 8 };
	bool rule = little_shared && !getenv("CQ_TEST_GPU");
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	for (i = 0; i < 18; i++) {
		struct scene_opts o = plain(128, codes[i % 3]);

		o.toy.cv = codes[i / 3 % 3];
		if (little_shared && (o.toy.ck < 4 || o.toy.cv < 4))
			continue;
		o.toy.keys = i == 7 ? CQK_KEYS_NONE : i % 5 == 4 ? CQK_KEYS_ROTATED :
								CQK_KEYS_PRE_ROPE;
		o.toy.n_kv_heads = 1 + i % 2;
		o.toy.n_heads = o.toy.n_kv_heads * (1 + i % 8);
		o.toy.i8 = true;
		o.toy.pairs = i / 4 % 2;
		o.seqs = 1 + i / 2 % 2;
		o.shift = i == 9 ? 77 : 0;
		o.shared = i % 4 * 5;
		o.own = 1 + i % 4 * 3;
		o.sinks = i % 5;
		o.tail = i / 2 % 2 * 30;
		o.holes = i % 6 == 5;
		o.window = i == 12 ? 100 : 0;
		o.soft_cap = i == 13 ? 3 : 0;
		o.dtype = i % 3;
		/* by the rule, where there is no room for halves; tables come first of few heads */
		cqk_cuda_force(g.k, rule && o.toy.keys == CQK_KEYS_PRE_ROPE ? CQK_CUDA_AUTO :
										CQK_CUDA_BYTES);
		check_variant(&g, &o, CQK_CUDA_BYTES);
	}
	gpu_close(&g);
}

TEST_LIMIT(few_vectors_by_bytes, 60)
{
	by_bytes(false);
}

/* With 99 KiB, as on sm_86, 89 and 120, for codes of groups of four channels and of eight. */
TEST_LIMIT(few_vectors_by_bytes_in_little_memory, 60)
{
	ASSERT_EQ(setenv("CQ_EMU_ARCH", "86", 1), 0);
	by_bytes(true);
}

/* Channel @ch of all centroids, which are bytes with a scale: times @by. */
static void scale_change(struct cqk_codebook *cb, uint32_t ch, float by)
{
	uint32_t n = cqk_code_centroids(cb->code), h, i;

	for (h = 0; h < cb->n_kv_heads; h++) {
		size_t at = (size_t)h * cb->head_dim + ch;

		((float *)(uintptr_t)cb->scale)[at] *= by;
		for (i = 0; i < n; i++)
			cb->f32[at * n + i] *= by;
	}
}

/* Scales that differ from channel to channel, up to what is a half still. */
TEST_LIMIT(bytes_of_many_sizes, 60)
{
	struct gpu g;
	uint32_t i, ch;

	gpu_open(&g);
	cqk_cuda_force(g.k, CQK_CUDA_BYTES);
	for (i = 0; i < 6; i++) {
		struct scene_opts o = plain(128, 2u << i % 3);
		struct scene *s;

		o.toy.keys = i % 2 ? CQK_KEYS_PRE_ROPE : CQK_KEYS_NONE;
		o.toy.i8 = true;
		s = scene_new(&o);
		for (ch = 0; ch < 128; ch++) {
			scale_change(&s->toy.m.layers[s->a.layer].k, ch,
				     ldexpf(1, (int)(ch % 5) - 4));
			scale_change(&s->toy.m.layers[s->a.layer].v, ch,
				     ldexpf(1, (int)(ch % 12) + (i < 3 ? -11 : 2)));
		}
		check_scene_variant(&g, s, CQK_CUDA_BYTES);
		scene_free(s);
	}
	gpu_close(&g);
}

/* What attn_lut.cu computes, by each of its kernels and by their blocks in turn. */
static void by_tables(bool little_shared)
{
	static const uint32_t codes[] = { 2, 4, 8 };
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	cqk_cuda_force(g.k, CQK_CUDA_LUT);
	for (i = 0; i < 36; i++) {
		struct scene_opts o = plain(i % 2 ? 128 : 64, codes[i / 2 % 3]);

		o.toy.cv = codes[i / 6 % 3];
		/* of others even the narrowest table is too large */
		if (little_shared && i % 2 && o.toy.ck < 8 && (o.toy.ck < 4 || o.toy.cv < 4))
			continue;
		o.toy.keys = i % 5 == 4 ? CQK_KEYS_NONE : CQK_KEYS_ROTATED;
		o.toy.n_kv_heads = 1;
		o.toy.n_heads = 1 + (i + i / 6) % 5;
		o.toy.i8 = i % 4 == 1;
		o.toy.pairs = i / 4 % 2;
		o.seqs = 1 + i % 2;
		o.shift = i % 9 == 1 ? 77 : 0;
		o.shared = i % 3 * 5;
		o.own = 1 + i % 4 * 3;
		o.sinks = i % 5;
		o.tail = i % 4 * 20;
		o.holes = i % 6 == 5;
		o.window = i % 12 == 7 ? 100 : 0;
		o.soft_cap = i % 13 == 6 ? 3 : 0;
		o.dtype = i % 3;
		check_variant(&g, &o, CQK_CUDA_LUT);
	}
	gpu_close(&g);
}

TEST_LIMIT(few_vectors_by_tables, 60)
{
	by_tables(false);
}

/* With 99 KiB, as on sm_86, 89 and 120, rows are narrower, and vectors come one by one. */
TEST_LIMIT(few_vectors_by_narrow_tables, 60)
{
	ASSERT_EQ(setenv("CQ_EMU_ARCH", "86", 1), 0);
	by_tables(true);
}

/* Channel @ch of all centroids of keys, which are fp16: times @size, @bias added. */
static void keys_change(struct scene *s, uint32_t ch, float size, float bias)
{
	struct cqk_codebook *k = &s->toy.m.layers[s->a.layer].k;
	uint32_t c = k->code.channels, n = cqk_code_centroids(k->code), h, i;
	uint16_t *f16 = (uint16_t *)(uintptr_t)k->stored;

	for (h = 0; h < k->n_kv_heads; h++)
		for (i = 0; i < n; i++) {
			size_t at = ((h * k->head_dim + ch) / c * n + i) * c + ch % c;

			f16[at] = cqk_f32_to_f16(cqk_f16_to_f32(f16[at]) * size + bias);
		}
}

/* Channel @ch of all queries, which are f32. */
static void queries_set(struct scene *s, uint32_t ch, float to)
{
	uint32_t row, h;

	for (row = 0; row < s->a.n_rows; row++)
		for (h = 0; h < s->o.toy.n_heads; h++)
			((float *)s->a.q.data)[row * s->a.q.stride_token +
					       h * s->a.q.stride_head + ch] = to;
}

/*
 * A channel of all keys is far from zero, where queries are large, as where keys have a bias:
 * scores of coded tokens are then some 100 above those of others. It is one that hardly turns.
 */
TEST_LIMIT(keys_with_a_bias_by_tables, 60)
{
	static const uint32_t codes[] = { 2, 4, 8 };
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	cqk_cuda_force(g.k, CQK_CUDA_LUT);
	for (i = 0; i < 12; i++) {
		struct scene_opts o = plain(i / 6 ? 128 : 64, codes[i % 3]);
		struct scene *s;

		o.toy.keys = i % 2 ? CQK_KEYS_NONE : CQK_KEYS_ROTATED;
		o.toy.n_heads = o.toy.n_kv_heads * (1 + i / 3 % 2);
		o.soft_cap = i % 5 == 3 ? 100 : 0;
		s = scene_new(&o);
		keys_change(s, o.toy.d - 1, 1, 100);
		queries_set(s, o.toy.d - 1, 10);
		check_scene_variant(&g, s, CQK_CUDA_LUT);
		scene_free(s);
	}
	gpu_close(&g);
}

/* Keys are zero where queries are not, or everywhere, or queries are almost zero. */
TEST_LIMIT(scores_of_almost_nothing_by_tables, 60)
{
	static const float q_size[] = { 1e-36f, 1, 1e-36f };
	struct gpu g;
	uint32_t i, ch;

	gpu_open(&g);
	cqk_cuda_force(g.k, CQK_CUDA_LUT);
	for (i = 0; i < 6; i++) {
		struct scene_opts o = plain(64, 8);
		struct scene *s;

		o.toy.keys = CQK_KEYS_NONE;
		o.toy.n_heads = o.toy.n_kv_heads * (1 + i / 3);
		o.q_size = q_size[i % 3];
		s = scene_new(&o);
		for (ch = 0; ch < (i % 3 ? 64 : 1) && i % 3 < 2; ch++)
			keys_change(s, ch, 0, 0);
		if (i % 3 == 0)
			queries_set(s, 0, 1);
		check_scene_variant(&g, s, CQK_CUDA_LUT);
		scene_free(s);
	}
	gpu_close(&g);
}

/* Items of so many pages that a warp looks at them more than once. */
TEST_LIMIT(few_vectors_by_tables_over_many_pages, 60)
{
	struct scene_opts o = plain(64, 8);
	struct gpu g;

	gpu_open(&g);
	cqk_cuda_force(g.k, CQK_CUDA_LUT);
	o.toy.keys = CQK_KEYS_NONE;
	o.toy.n_layers = o.toy.n_kv_heads = o.toy.n_heads = 1;
	o.layer = 0;
	o.shared = 2 * 192 + 5;
	o.want = 1;	/* all pages in one item */
	check_variant(&g, &o, CQK_CUDA_LUT);
	gpu_close(&g);
}

/*
 * Without force items of one or two vectors are attn_lut.cu's and those of more
 * attn_few.cu's, where both can: two sequences share pages, and have pages of their own.
 */
TEST(few_vectors_by_tables_and_by_centroids)
{
	uint32_t rows;
	struct gpu g;

	gpu_open(&g);
	for (rows = 1; rows < 4; rows++) {
		struct scene_opts o = plain(128, 8);

		o.toy.keys = CQK_KEYS_ROTATED;
		o.toy.n_heads = o.toy.n_kv_heads;
		o.rows = rows;
		o.seqs = 2;
		o.own = 3;
		check_variant(&g, &o, CQK_CUDA_LUT);
	}
	gpu_close(&g);
}

/* The same of centroids that stay bytes, as halves have no room. */
TEST(few_vectors_by_tables_and_by_bytes)
{
	uint32_t rows;
	struct gpu g;

	ASSERT_EQ(setenv("CQ_EMU_ARCH", "86", 1), 0);
	gpu_open(&g);
	for (rows = 1; rows < 5; rows++) {
		struct scene_opts o = plain(128, rows % 2 ? 8 : 4);

		o.toy.i8 = true;
		o.toy.keys = CQK_KEYS_ROTATED;
		o.toy.n_heads = o.toy.n_kv_heads;
		o.rows = rows;
		o.seqs = 2;
		o.own = 3;
		check_variant(&g, &o, CQK_CUDA_LUT);
	}
	gpu_close(&g);
}

/* Items of so many pages that what is looked up ahead takes its places again and again. */
TEST_LIMIT(few_vectors_over_many_pages, 60)
{
	static const uint32_t shift[] = { 0, 77, 8190 };
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	for (i = 0; i < 2 * ARRAY_SIZE(shift); i++) {
		bool sliced = i >= ARRAY_SIZE(shift);
		enum cqk_cuda_variant v = sliced ? CQK_CUDA_SLICES : CQK_CUDA_FEW;
		struct scene_opts o = plain(i % 2 ? 128 : sliced ? 256 : 64, 8);

		o.toy.bk = o.toy.bv = sliced && i % 2 ? 10 : 0;
		o.toy.keys = CQK_KEYS_PRE_ROPE;
		o.toy.n_kv_heads = 1;
		o.toy.n_heads = 1 + i;
		o.seqs = 2;
		o.shift = shift[i % ARRAY_SIZE(shift)];
		o.shared = 140;
		o.tail = 0;
		o.holes = i % 3 == 1;
		o.want = i % 4 == 3;
		cqk_cuda_force(g.k, v);
		check_variant(&g, &o, v);
	}
	gpu_close(&g);
}

/* The worst error of a scene of which pages @first to @first + 2 alone are seen. */
static double error_of_pages(struct gpu *g, struct scene *s, uint32_t first)
{
	uint32_t i;

	for (i = 0; i < s->n_spans; i++)
		s->spans[i].mask = i - first < 3 ? ~0ull : 0;
	scene_gpu(g, s);
	return scene_error(s);
}

/*
 * attn_few.cu turns queries from page to page by an angle of 192 positions, and by the tables
 * where a multiple of 8192 is passed; so does attn_slices.cu, with four vectors and 64 channels
 * by 384. With good tables 42 such turns leave no error; with an angle that is off by 0.01 they
 * do, and none is left from the multiple on.
 */
TEST_LIMIT(queries_turn_by_an_angle_and_by_tables, 120)
{
	static const struct {
		uint32_t d, bits, heads, pages;
	} by[] = { { 64, 0, 5, 3 }, { 128, 0, 5, 3 }, { 128, 10, 5, 3 }, { 128, 10, 4, 6 },
		   { 256, 0, 4, 3 } };
	struct gpu g;
	uint32_t i, j;

	gpu_open(&g);
	for (i = 0; i < ARRAY_SIZE(by); i++) {
		struct scene_opts o = plain(by[i].d, 8);
		struct scene *s;
		float *step;

		o.toy.keys = CQK_KEYS_PRE_ROPE;
		o.toy.n_layers = o.toy.n_kv_heads = 1;
		o.toy.n_heads = by[i].heads;
		o.toy.bk = o.toy.bv = by[i].bits;
		o.layer = 0;
		o.shared = 2 * 128 + 3;
		o.tail = 0;
		o.want = 1;	/* all pages in one item */
		s = scene_new(&o);
		cqk_cuda_force(g.k, i < 2 ? CQK_CUDA_FEW : CQK_CUDA_SLICES);
		ASSERT_LE(error_of_pages(&g, s, 125) * 1e6, 1000);
		ASSERT_LE(error_of_pages(&g, s, 253) * 1e6, 1000);
		step = (float *)(uintptr_t)&s->toy.rope.base[2 * (size_t)s->toy.rope.half *
							    by[i].pages];
		for (j = 0; j < s->toy.rope.half; j++) {
			double a = atan2((double)step[j + s->toy.rope.half], (double)step[j]);

			a += 0.01 * by[i].pages / 3;
			step[j] = (float)cos(a);
			step[j + s->toy.rope.half] = (float)sin(a);
		}
		ASSERT(error_of_pages(&g, s, 125) > 0.1);
		ASSERT_LE(error_of_pages(&g, s, 128) * 1e6, 1000);
		ASSERT_LE(error_of_pages(&g, s, 256) * 1e6, 1000);
		scene_free(s);
	}
	gpu_close(&g);
}

/* Pages that are not coded, read in place. */
TEST_LIMIT(few_vectors_over_halves, 60)
{
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	for (i = 0; i < 8; i++) {
		struct scene_opts o = plain(i % 2 ? 128 : 64, 0);

		o.toy.keys = i % 3 ? CQK_KEYS_ROTATED : CQK_KEYS_NONE;
		o.toy.n_kv_heads = 1;
		o.toy.n_heads = 1 + i;
		o.seqs = 1 + i % 3;
		o.shared = 1 + i % 4 * 3;
		o.own = i % 3 * 4;
		o.sinks = i % 5;
		o.tail = i % 2 * 30;
		o.holes = i % 3 == 2;
		o.window = i == 5 ? 100 : 0;
		o.dtype = i % 3;
		check_variant(&g, &o, CQK_CUDA_F16);
	}
	gpu_close(&g);
}

TEST(variants_are_chosen_by_rule_or_force)
{
	struct scene_opts o = plain(128, 8);
	struct scene *s = scene_new(&o);
	struct cq_err err;
	struct run r;
	struct gpu g;
	int ret;

	ASSERT_EQ(setenv("CQ_CUDA_VARIANT", "block", 1), 0);
	gpu_open(&g);
	run_new(&g, s, &r);
	ASSERT_EQ(cqk_cuda_variant(g.k, r.t, &r.a), CQK_CUDA_BLOCK);
	cqk_cuda_force(g.k, CQK_CUDA_FEW);
	/* a GPU with too little shared memory decodes block by block */
	ret = cqk_cuda_variant(g.k, r.t, &r.a);
	ASSERT(ret == CQK_CUDA_FEW || (ret == CQK_CUDA_BLOCK && getenv("CQ_TEST_GPU")));
	r.limits.few = 0;
	ASSERT_EQ(cqk_cuda_variant(g.k, r.t, &r.a), CQK_CUDA_BLOCK);
	run_free(&g, &r);
	cqk_cuda_kernels_free(g.k);
	setenv("CQ_CUDA_VARIANT", "fast", 1);
	ASSERT_EQ(cqk_cuda_kernels_load(g.cu, &g.k, &err), -EINVAL);
	ASSERT(strstr(err.text, "CQ_CUDA_VARIANT=fast") && strstr(err.text, "block"));
	unsetenv("CQ_CUDA_VARIANT");
	ASSERT_EQ(cqk_cuda_kernels_load(g.cu, &g.k, &err), 0);
	scene_free(s);
	gpu_close(&g);
}

/* What attn_slices.cu computes, by each of its kernels. */
TEST_LIMIT(few_vectors_of_sliced_heads, 240)
{
	static const struct {
		uint32_t d, kc, kb, vc, vb;
	} kernel[] = {
		{ 128, 8, 10, 8, 10 }, { 256, 8, 0, 8, 0 }, { 128, 8, 10, 8, 0 },
		{ 64, 8, 10, 8, 10 }, { 256, 4, 0, 2, 0 }, { 128, 4, 0, 8, 10 },
		{ 256, 8, 10, 8, 10 }, { 256, 2, 0, 4, 0 }, { 128, 2, 0, 8, 10 },
		{ 256, 2, 0, 2, 0 }, { 256, 2, 0, 8, 0 }, { 128, 8, 10, 2, 0 },
		{ 256, 4, 0, 4, 0 }, { 256, 4, 0, 8, 0 }, { 128, 8, 10, 4, 0 },
		{ 256, 8, 0, 2, 0 }, { 256, 8, 0, 4, 0 }, { 128, 8, 0, 8, 10 },
	};
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	for (i = 0; i < 2 * ARRAY_SIZE(kernel); i++) {
		uint32_t n = i % ARRAY_SIZE(kernel), again = i / ARRAY_SIZE(kernel);
		struct scene_opts o = plain(kernel[n].d, kernel[n].kc);

		o.toy.cv = kernel[n].vc;
		o.toy.bk = kernel[n].kb;
		o.toy.bv = kernel[n].vb;
		o.toy.keys = i % 7 == 5 ? CQK_KEYS_NONE : i % 5 == 4 ? CQK_KEYS_ROTATED :
								CQK_KEYS_PRE_ROPE;
		o.toy.n_kv_heads = 1 + i % 4 / 3;
		o.toy.n_heads = o.toy.n_kv_heads * (1 + (i + again) % 8);
		o.toy.i8 = i % 4 == 1;
		o.toy.pairs = i / 4 % 2;
		o.seqs = 1 + i % 2;
		o.shift = i % 9 == 4 ? 77 : 0;
		o.shared = i % 3 * 7;
		o.own = 1 + i % 4 * 3;
		o.sinks = i % 5;
		o.tail = i % 2 * 30;
		o.holes = i % 6 == 5;
		o.window = i % 11 == 6 ? 100 : 0;
		o.soft_cap = i % 11 == 3 ? 3 : 0;
		o.dtype = i % 3;
		o.want = i % 4 ? 0 : 1;
		cqk_cuda_force(g.k, i % 2 ? CQK_CUDA_AUTO : CQK_CUDA_SLICES);
		check_variant(&g, &o, CQK_CUDA_SLICES);
	}
	gpu_close(&g);
}

/* Codes of 10 bits, of keys, of values or both: their blocks are decoded where that is forced. */
TEST_LIMIT(few_vectors_of_wide_codes, 60)
{
	static const uint32_t other[] = { 2, 4, 8, 0 };
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	for (i = 0; i < 12; i++) {
		struct scene_opts o = plain(i % 2 ? 128 : 64, 8);

		o.toy.bk = i % 3 ? 10 : 0;
		o.toy.bv = i % 3 != 1 ? 10 : 0;
		if (!o.toy.bk)
			o.toy.ck = other[i / 3];
		if (!o.toy.bv)
			o.toy.cv = other[i / 3];
		o.toy.keys = i / 2 % 3;
		o.toy.n_kv_heads = 1;
		o.toy.n_heads = 1 + i % 8;
		o.toy.i8 = i / 2 % 2;
		o.seqs = 1 + i % 2;
		o.own = 1 + i % 4;
		o.sinks = i % 5;
		o.holes = i % 4 == 3;
		cqk_cuda_force(g.k, i / 3 % 2 ? CQK_CUDA_FEW : CQK_CUDA_BLOCK);
		check_variant(&g, &o, CQK_CUDA_BLOCK);
	}
	gpu_close(&g);
}

/* Where no item has more vectors, the kernel for many is not even launched. */
TEST(few_only)
{
	struct scene_opts o = plain(64, 8);
	struct scene *s = scene_new(&o);
	struct run r;
	struct gpu g;

	gpu_open(&g);
	cqk_cuda_force(g.k, CQK_CUDA_FEW);
	run_new(&g, s, &r);
	r.limits.few_only = 1;
	run_launch(&g, &r);
	run_get(&g, s, &r);
	check_error(s);
	cqk_cuda_force(g.k, CQK_CUDA_BLOCK);
	run_launch(&g, &r);
	run_get(&g, s, &r);
	check_error(s);
	run_free(&g, &r);
	scene_free(s);
	gpu_close(&g);
}
