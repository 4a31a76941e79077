// SPDX-License-Identifier: MIT
/*
 * Attention on the (emulated) GPU, against double precision over the
 * centroids as stored and against the portable kernels.
 */
#include "tests/harness.h"
#include "tests/kernels/gpu_scene.h"

/* Each pair of values of two settings in some scene. */
static void every_pair(enum cqk_cuda_variant variant)
{
	static const uint32_t dims[] = { 64, 128, 256 };
	static const uint32_t codes[] = { 2, 4, 8, 0, 8 }, bits[] = { 0, 0, 0, 0, 10 };
	static const uint32_t gqa[] = { 1, 2, 4, 7 }, rope[] = { 0, 2, 4 };
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	cqk_cuda_force(g.k, variant);
	for (i = 0; i < 30; i++) {
		struct scene_opts o = plain(dims[i % 3], codes[i % 5]);

		o.toy.cv = codes[(i / 5 + i) % 5];
		o.toy.bk = bits[i % 5];
		o.toy.bv = bits[(i / 5 + i) % 5];
		o.toy.keys = i / 3 % 3;
		o.toy.n_heads = 2 * gqa[(i / 2 + i / 8) % 4];
		o.toy.rope_dim = rope[(i + i / 3) % 3] ? o.toy.d / rope[(i + i / 3) % 3] * 2 : 0;
		o.toy.i8 = i / 5 % 2;
		o.dtype = (i + i / 6) % 3;
		o.flags = i / 7 % 2 ? CQ_ATTN_Q_ROTATED : 0;
		o.holes = i % 5 == 4;
		o.sinks = i % 6;
		check(&g, &o);
	}
	gpu_close(&g);
}

TEST_LIMIT(every_pair_of_settings, 60)
{
	every_pair(CQK_CUDA_AUTO);
}

TEST_LIMIT(every_pair_of_settings_decoded_block_by_block, 60)
{
	every_pair(CQK_CUDA_BLOCK);
}

/* Keys and queries rotated before and after, in each order of channels. */
TEST_LIMIT(every_scaling_and_pairing, 60)
{
	static const uint32_t dims[] = { 64, 128, 32 };
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	for (i = 0; i < 16; i++) {
		struct scene_opts o = plain(128, i % 3 ? 4 : 0);

		o.toy.pairs = i / 4 % 2;
		o.toy.scaling = ref_scaling(i % 4 ? i % 4 : 3, 100);
		o.toy.keys = (i / 8 + i) % 2 ? CQK_KEYS_ROTATED : CQK_KEYS_PRE_ROPE;
		o.toy.rope_dim = dims[i % 3];
		o.flags = i / 2 % 2 ? CQ_ATTN_Q_ROTATED : 0;
		o.sinks = i % 3;
		check(&g, &o);
	}
	gpu_close(&g);
}

TEST(no_tables_needed_when_keys_and_queries_come_rotated)
{
	struct scene_opts o = plain(64, 4);
	struct scene *s;
	struct gpu g;

	gpu_open(&g);
	o.toy.keys = CQK_KEYS_ROTATED;
	o.flags = CQ_ATTN_Q_ROTATED;
	for (o.toy.pairs = 0; o.toy.pairs <= CQK_PAIRS_INTERLEAVED; o.toy.pairs++) {
		s = scene_new(&o);
		s->a.rope = NULL;
		check_scene(&g, s);
		scene_free(s);
	}
	gpu_close(&g);
}

TEST(many_rows_are_causal)
{
	static const uint32_t rows[] = { 5, 33, 80, 70 };
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		struct scene_opts o = plain(64, 8);

		o.rows = rows[i];
		o.toy.bk = o.toy.bv = i < 3 ? 0 : 10;
		check(&g, &o);
	}
	gpu_close(&g);
}

/* More query heads than fit at once: 64 vectors, or 32. */
TEST(many_heads_share_a_kv_head)
{
	struct gpu g;
	uint32_t d;

	gpu_open(&g);
	for (d = 64; d <= 256; d *= 4) {
		struct scene_opts o = plain(d, 8);

		o.toy.n_kv_heads = 1;
		o.toy.n_heads = 71;
		o.rows = 2;
		o.shared = 1;
		check(&g, &o);
	}
	gpu_close(&g);
}

TEST(batches_share_pages_at_other_positions)
{
	struct gpu g;
	uint32_t rows;

	gpu_open(&g);
	for (rows = 1; rows < 5; rows += 3) {
		struct scene_opts o = plain(128, 8);

		o.seqs = 5;
		o.rows = rows;
		o.own = 1;
		o.shift = 77;
		o.holes = true;
		o.sinks = 4;
		check(&g, &o);
	}
	gpu_close(&g);
}

TEST(wide_rows_that_see_nothing_or_are_no_numbers)
{
	struct scene_opts o = plain(64, 4);
	struct scene *s;
	struct gpu g;
	uint32_t i, h;

	gpu_open(&g);
	o.rows = 40;
	s = scene_new(&o);
	s->row_pos[7] = 0;
	for (i = 0; i < s->n_spans; i++)
		s->spans[i].pos += 1;
	check_scene(&g, s);
	((float *)s->a.q.data)[9 * s->a.q.stride_token + 3 * s->a.q.stride_head + 5] = NAN;
	scene_gpu(&g, s);
	for (i = 0; i < o.rows; i++)
		for (h = 0; h < 4; h++)
			ASSERT_EQ(isnan(toy_load(&s->a.o, i, h, 11)), i == 9 && h == 3);
	scene_free(s);
	gpu_close(&g);
}

TEST(sinks_tails_masks)
{
	uint32_t tail;
	struct gpu g;

	gpu_open(&g);
	for (tail = 0; tail < 65; tail += 16) {
		struct scene_opts o = plain(64, 4);

		o.sinks = tail / 8;
		o.tail = tail;
		o.holes = true;
		check(&g, &o);
	}
	gpu_close(&g);
}

TEST(soft_cap_window_base2)
{
	static const float caps[] = { 1e-3f, 1.5f, 50, 1e30f };
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	for (i = 0; i < 4; i++) {
		struct scene_opts o = plain(64, 4);

		o.soft_cap = caps[i];
		o.window = 50 * i;
		o.flags = CQ_ATTN_LSE_BASE2;
		o.rows = i == 2 ? 20 : 1;
		check(&g, &o);
	}
	gpu_close(&g);
}

TEST(rows_that_see_nothing_give_zero)
{
	struct scene_opts o = plain(64, 4);
	struct scene *s;
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	o.rows = 4;
	s = scene_new(&o);
	for (i = 0; i < s->n_spans; i++)
		s->spans[i].pos += 1;	/* row 0 loses its last token only */
	s->row_pos[1] = 0;
	check_scene(&g, s);
	for (i = 0; i < s->n_spans; i++)
		s->spans[i].mask = 0;
	check_scene(&g, s);
	s->a.n_blocks = 0;
	check_scene(&g, s);
	scene_free(s);
	gpu_close(&g);
}

/* Heads of row 0 with the value give NaN, if they see anything; no other does. */
static void check_spoiled(struct gpu *g, struct scene *s)
{
	bool sees = s->a.n_blocks;
	uint32_t row, h, ch;

	scene_gpu(g, s);
	for (row = 0; row < s->a.n_rows; row++)
		for (h = 0; h < 4; h++) {
			bool bad = !row && h == 3;

			for (ch = 0; ch < 64; ch++) {
				double x = toy_load(&s->a.o, row, h, ch);

				ASSERT(sees ? isnan(x) == bad : x == 0);
			}
			ASSERT_EQ(isnan(s->lse[row * s->a.lse_stride + h]), bad && sees);
		}
}

TEST(queries_that_are_no_numbers_give_none)
{
	static const float bad[] = { NAN, -INFINITY, 1e30f, -1e17f };
	struct gpu g;
	uint32_t v, n;

	gpu_open(&g);
	for (v = 0; v < ARRAY_SIZE(bad); v++) {
		struct scene_opts o = plain(64, 8);
		struct scene *s;

		o.rows = 1 + v % 2 * 2;
		s = scene_new(&o);
		n = s->a.n_blocks;
		((float *)s->a.q.data)[3 * s->a.q.stride_head + 9] = bad[v];
		check_spoiled(&g, s);
		s->a.n_blocks = 0;
		check_spoiled(&g, s);
		s->a.n_blocks = n;
		scene_free(s);
	}
	gpu_close(&g);
}

TEST(strides_may_be_negative)
{
	struct scene_opts o = plain(64, 8);
	struct scene *s;
	struct gpu g;

	gpu_open(&g);
	o.rows = 3;
	s = scene_new(&o);
	s->a.q.data = (float *)s->a.q.data + 3 * s->a.q.stride_head;
	s->a.q.stride_head = -s->a.q.stride_head;
	s->a.o.data = (float *)s->a.o.data + 2 * s->a.o.stride_token;
	s->a.o.stride_token = -s->a.o.stride_token;
	check_scene(&g, s);
	scene_free(s);
	gpu_close(&g);
}

TEST(a_sequence_may_use_a_page_twice)
{
	struct scene_opts o = plain(64, 4);
	struct scene *s;
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	o.rows = 4;
	o.seqs = 2;
	o.tail = 0;
	s = scene_new(&o);
	for (i = 0; i < 2; i++) {	/* both spans to the first sequence */
		s->spans[2 * i + 1].row_first = 0;
		s->spans[2 * i + 1].pos += 64;
		s->spans[2 * i + 1].mask = 0x00ff00ff12345678ull;
	}
	for (i = 0; i < 4; i++)
		s->row_pos[i] = i < 2 ? 20 + 180 * i : 255;
	check_scene(&g, s);
	scene_free(s);
	gpu_close(&g);
}

TEST(head_ranges_touch_only_their_heads)
{
	struct scene_opts o = plain(64, 4);
	struct scene *s = scene_new(&o);
	const uint8_t *out = s->a.o.data;
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	s->a.head_begin = 1;
	scene_gpu(&g, s);
	for (i = 0; i < 2 * 67 * 4; i++)
		ASSERT(out[i] == 0xff);
	ASSERT(out[2 * 67 * 4] != 0xff || out[2 * 67 * 4 + 1] != 0xff);
	ASSERT(isnan(s->lse[1]) && !isnan(s->lse[2]));
	s->a.head_begin = 0;
	s->a.head_end = 1;
	scene_gpu(&g, s);
	for (i = 2 * 67 * 4; i < 4 * 67 * 4; i++)
		ASSERT(out[i] == 0xff);
	ASSERT(isnan(s->lse[2]) && !isnan(s->lse[1]));
	scene_free(s);
	gpu_close(&g);
}

TEST(large_and_tiny_sizes)
{
	static const float size[] = { 1e-4f, 1e-2f, 30.0f, 1000.0f, 10000.0f };
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	for (i = 0; i < ARRAY_SIZE(size); i++) {
		struct scene_opts o = plain(64, 8);

		o.tail = 0;
		o.toy.k_size = size[i];
		o.q_size = 1 / size[i];
		o.toy.v_size = size[i];
		check(&g, &o);
	}
	gpu_close(&g);
}

TEST(positions_far_out)
{
	struct scene_opts o = plain(128, 8);
	struct gpu g;

	gpu_open(&g);
	o.seqs = 2;
	o.shift = 100000;
	check(&g, &o);
	gpu_close(&g);
}

/* 4,159 tokens of one score, and one in page @at that is @above. */
static void check_above(struct gpu *g, uint32_t at, double above)
{
	struct scene_opts o = plain(64, 8);
	struct cqk_src src;
	double norm = 0;
	struct scene *s;
	uint32_t i, ch;

	o.toy.keys = CQK_KEYS_NONE;
	o.toy.n_heads = o.toy.n_kv_heads = 1;
	o.shared = 65;
	o.tail = 0;
	s = scene_new(&o);
	for (i = 0; i < 65; i++)	/* K of layer 1: 8 groups */
		memset((uint8_t *)s->mem[i] + s->toy.m.layers[1].offset, 7, 8 * 64);
	for (ch = 0; ch < 8; ch++)
		((uint8_t *)s->mem[at])[s->toy.m.layers[1].offset + ch * 64 + 33] = 200;
	src = cqk_block_src(&s->a, &s->blocks[at], 0, false, ~0ull);
	for (ch = 0; ch < 64; ch++)
		norm += toy_value(&src, 33, ch) * toy_value(&src, 33, ch);
	for (ch = 0; ch < 64; ch++)
		((float *)s->a.q.data)[ch] = (float)(toy_value(&src, 33, ch) / norm * above /
						     (double)s->a.scale);
	check_scene(g, s);
	scene_free(s);
}

/* Each of the others is lost beside the largest if p is rounded. */
TEST(one_score_above_equal_ones)
{
	uint32_t above;
	struct gpu g;

	gpu_open(&g);
	for (above = 9; above <= 13; above += 2)
		check_above(&g, 40, above);
	gpu_close(&g);
}

/*
 * What scores are relative to is far below the largest, or is it itself, before or after
 * all others. At 1.2e8 floats are 8 apart, and what is 10 below is rounded to 16.
 */
TEST_LIMIT(one_score_far_above, 60)
{
	static const double above[] = { 40, 1e4, 1.2e8, 1e12 };
	static const uint32_t at[] = { 0, 40, 64 };
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	for (i = 0; i < ARRAY_SIZE(above) * ARRAY_SIZE(at); i++)
		check_above(&g, at[i % 3], above[i / 3]);
	gpu_close(&g);
}

TEST(garbage_in_tokens_nobody_reads)
{
	struct scene_opts o = plain(64, 0);
	struct scene *s;
	struct gpu g;
	uint32_t i, b;

	gpu_open(&g);
	o.tail = 64;
	s = scene_new(&o);
	for (b = 1; b < 3; b++) {	/* a page of halves, and an fp16 block */
		s->spans[b].mask = low_bits(9);
		for (i = 0; i < s->o.toy.n_layers * 2 * 2; i++)
			memset((uint8_t *)s->mem[b] + (i * 64 + 9) * 64 * 2, 0xff, 55 * 64 * 2);
	}
	check_scene(&g, s);
	scene_free(s);
	gpu_close(&g);
}

/* Element of the scene's f32 results. */
static size_t out_at(const struct scene *s, uint32_t row, uint32_t h, uint32_t ch)
{
	int64_t at = row * s->a.o.stride_token + h * s->a.o.stride_head + ch;

	return (size_t)((uint8_t *)s->a.o.data - s->out) / sizeof(float) + (size_t)at;
}

TEST(agrees_with_the_portable_kernels)
{
	struct scene_opts o = plain(128, 8);
	uint32_t row, h, ch;
	float *want, *got;
	struct scene *s;
	struct gpu g;

	gpu_open(&g);
	o.toy.bv = 10;
	o.rows = 3;
	o.holes = true;
	s = scene_new(&o);
	scene_run(s, &cqk_portable);
	want = malloc(s->out_bytes);
	memcpy(want, s->out, s->out_bytes);
	scene_gpu(&g, s);
	got = (float *)(void *)s->out;
	for (row = 0; row < s->a.n_rows; row++)
		for (h = 0; h < 4; h++)
			for (ch = 0; ch < 128; ch++) {
				size_t at = out_at(s, row, h, ch);

				ASSERT(fabsf(want[at] - got[at]) < 2e-3f);
			}
	free(want);
	scene_free(s);
	gpu_close(&g);
}

static int refused(struct gpu *g, const struct run *r, const struct cqk_cuda_attn *bad)
{
	int ret = cqk_cuda_attention(g->k, r->t, bad, g->stream, &g->err);

	ASSERT(g->err.text[0]);
	run_launch(g, r);
	return ret;
}

TEST(bad_arguments)
{
	struct scene_opts o = plain(64, 4);
	struct scene *s = scene_new(&o);
	struct cqk_cuda_attn b;
	struct run r;
	struct gpu g;

	gpu_open(&g);
	run_new(&g, s, &r);
#define REFUSED(code, field, value) do { \
	b = r.a; \
	b.field = value; \
	ASSERT_EQ(refused(&g, &r, &b), code); \
} while (0)
	REFUSED(-EINVAL, layer, 2);
	REFUSED(-EINVAL, head_end, 3);
	REFUSED(-EINVAL, head_begin, 3);
	REFUSED(-EINVAL, flags, 4);
	REFUSED(-EINVAL, scale, NAN);
	REFUSED(-EINVAL, soft_cap, -1);
	REFUSED(-EINVAL, q.dtype, 3);
	REFUSED(-EINVAL, q.data, s->q);
	REFUSED(-EINVAL, o.data, (char *)r.a.o.data + 1);
	REFUSED(-EINVAL, o.stride_head, INT64_MAX);
	REFUSED(-EINVAL, plan, r.plan + 4);
	REFUSED(-EINVAL, plan, (uintptr_t)s->q);
	REFUSED(-EINVAL, lse, 3);
	REFUSED(-EINVAL, workspace, r.a.workspace + 16);
	REFUSED(-ENOBUFS, workspace_bytes, r.a.workspace_bytes - 1);
#undef REFUSED
	run_get(&g, s, &r);
	check_error(s);
	run_free(&g, &r);
	scene_free(s);
	gpu_close(&g);
}

TEST(what_gpus_lack_is_named)
{
	struct toy_opts o = plain(64, 4).toy;
	struct cqk_cuda_tables *t;
	struct cq_err err;
	struct toy toy;

	toy_init(&toy, &o, 64);
	toy.m.layers[1].v.code = (struct cq_code){ CQ_CODE_CQ, 4, 10, 0 };
	ASSERT_EQ(cqk_cuda_tables_new(&toy.m, &toy.rope, &t, &err), -EOPNOTSUPP);
	ASSERT(strstr(err.text, "layer 1") && strstr(err.text, "4c10b"));
	toy.m.layers[1].v.code = (struct cq_code){ CQ_CODE_CQ, 16, 8, 0 };
	ASSERT_EQ(cqk_cuda_tables_new(&toy.m, &toy.rope, &t, &err), -EOPNOTSUPP);
	ASSERT(strstr(err.text, "16c8b"));
	toy.m.layers[1].v.code = toy.m.layers[1].k.code;
	toy.m.geom.head_dim = 96;
	ASSERT_EQ(cqk_cuda_tables_new(&toy.m, &toy.rope, &t, &err), -EOPNOTSUPP);
	ASSERT(strstr(err.text, "96"));
	toy.m.geom.head_dim = 64;
	toy_free(&toy);
	o.i8 = true;
	o.k_size = 3e5f;
	toy_init(&toy, &o, 64);
	ASSERT_EQ(cqk_cuda_tables_new(&toy.m, &toy.rope, &t, &err), -EOPNOTSUPP);
	ASSERT(strstr(err.text, "beyond fp16"));
	toy_free(&toy);
}
