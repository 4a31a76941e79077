// SPDX-License-Identifier: MIT
/*
 * Attention of a batch over pages that many of its query vectors see, on the (emulated) GPU:
 * by eights, decoded once for all, or at positions that differ.
 */
#include "tests/harness.h"
#include "tests/kernels/gpu_scene.h"

/* Results of a scene as numbers, and the head of the plan they were made by. */
static float *results_of(struct gpu *g, struct scene *s, enum cqk_cuda_variant variant,
			 struct cqkd_plan *plan)
{
	float *out = malloc(s->out_bytes);
	struct run r;

	cqk_cuda_force(g->k, variant);
	run_new(g, s, &r);
	gpu_get(g, plan, r.plan, sizeof(*plan));
	run_launch(g, &r);
	run_get(g, s, &r);
	check_error(s);
	memcpy(out, s->out, s->out_bytes);
	/* again, into results that are other ones now */
	CU(g->cu->cuMemsetD8Async(r.o, 0xff, s->out_bytes, g->stream));
	CU(g->cu->cuMemsetD8Async(r.a.workspace, 0xff, r.a.workspace_bytes, g->stream));
	run_launch(g, &r);
	run_get(g, s, &r);
	ASSERT(!memcmp(out, s->out, s->out_bytes));
	run_free(g, &r);
	return out;
}

/*
 * A prefix that more than eight vectors see, by eights and decoded once for all: both are
 * near double precision and each other, and the same each time.
 */
TEST_LIMIT(a_prefix_by_eights, 120)
{
	static const uint32_t seqs[] = { 2, 4, 8, 16 }, gqa[] = { 1, 4, 8 }, codes[] = { 2, 4, 8 };
	struct cqkd_plan cut, once;
	struct gpu g;
	uint32_t i;
	size_t j;

	gpu_open(&g);
	for (i = 0; i < ARRAY_SIZE(seqs) * ARRAY_SIZE(gqa); i++) {
		struct scene_opts o = plain(i % 2 ? 128 : 64, codes[(i + i / 3) % 3]);
		uint32_t vecs = seqs[i / 3] * gqa[i % 3];
		float *few, *block;
		struct scene *s;

		o.toy.n_kv_heads = i == 4 ? 2 : 1;
		o.toy.n_heads = gqa[i % 3] * o.toy.n_kv_heads;
		o.toy.keys = i % 5 == 4 ? CQK_KEYS_ROTATED : CQK_KEYS_PRE_ROPE;
		o.seqs = seqs[i / 3];
		o.shared = 3 + i % 3 * 2;
		o.own = i % 2;
		o.tail = i % 4 * 9;
		o.sinks = i % 3 * 2;
		o.holes = i % 4 == 1;
		o.shift = i == 7 || i == 9 ? 77 : 0;
		o.window = i % 5 == 2 ? 150 : 0;
		s = scene_new(&o);
		few = results_of(&g, s, CQK_CUDA_FEW, &cut);
		block = results_of(&g, s, CQK_CUDA_BLOCK, &once);
		for (j = 0; j < s->a.n_rows * (size_t)o.toy.n_heads * o.toy.d; j++) {
			size_t row = j / o.toy.d / o.toy.n_heads, h = j / o.toy.d % o.toy.n_heads;
			size_t at = row * (size_t)s->a.o.stride_token +
				    h * (size_t)s->a.o.stride_head + j % o.toy.d + 1;

			ASSERT(fabsf(few[at] - block[at]) < 2e-3f);
		}
		if (getenv("CQ_TEST_GPU"))	/* which may have no such variant */
			cut.vecs = MIN(vecs, CQKD_FEW_VECS);
		ASSERT_EQ(cut.vecs, vecs > 64 ? MIN(gqa[i % 3], 64) : MIN(vecs, CQKD_FEW_VECS));
		ASSERT_EQ(once.vecs, vecs > 64 ? gqa[i % 3] : vecs);
		ASSERT_EQ(!cut.n_wide, vecs <= 64);
		free(few);
		free(block);
		scene_free(s);
	}
	gpu_close(&g);
}

/* So many vectors read the same pages that wide items decode them once for all. */
TEST_LIMIT(wide_batches, 60)
{
	static const struct { uint32_t d, ck, cv, heads, seqs, rows, keys, bits; } batch[] = {
		{ 64, 2, 4, 2, 33, 2, CQK_KEYS_PRE_ROPE, 8 },	/* 66 */
		{ 128, 8, 8, 4, 40, 1, CQK_KEYS_PRE_ROPE, 8 },	/* 160 */
		{ 128, 4, 0, 7, 5, 8, CQK_KEYS_ROTATED, 8 },	/* 280: two items */
		{ 256, 4, 8, 4, 9, 1, CQK_KEYS_PRE_ROPE, 8 },	/* 36 */
		{ 256, 8, 2, 8, 15, 1, CQK_KEYS_NONE, 8 },	/* 120: two items */
		{ 128, 8, 8, 4, 20, 1, CQK_KEYS_PRE_ROPE, 10 },	/* 80 */
		{ 64, 8, 8, 2, 33, 1, CQK_KEYS_ROTATED, 10 },	/* 66 */
	};
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	for (i = 0; i < ARRAY_SIZE(batch); i++) {
		struct scene_opts o = plain(batch[i].d, batch[i].ck);

		o.toy.cv = batch[i].cv;
		o.toy.bk = o.toy.bv = batch[i].bits;
		o.toy.keys = batch[i].keys;
		o.toy.n_kv_heads = 1;
		o.toy.n_heads = batch[i].heads;
		o.toy.rope_dim = i % 2 ? o.toy.d / 2 : o.toy.d;
		o.seqs = batch[i].seqs;
		o.rows = batch[i].rows;
		o.sinks = i;
		o.holes = i % 2;
		o.tail = 3;
		o.dtype = i % 3;
		o.window = i == 2 ? 90 : 0;
		o.soft_cap = i == 1 ? 3 : 0;
		check(&g, &o);
	}
	gpu_close(&g);
}

/* Many vectors by books in shared memory: what wide_batches does, and by how many at once. */
static const struct batch {
	uint32_t seqs, rows, heads, ck, cv, keys;
} books[] = {
	{ 3, 1, 3, 8, 8, CQK_KEYS_PRE_ROPE },		/* 9 vectors */
	{ 4, 1, 4, 4, 4, CQK_KEYS_PRE_ROPE },
	{ 17, 1, 1, 2, 2, CQK_KEYS_PRE_ROPE },
	{ 5, 1, 8, 8, 2, CQK_KEYS_PRE_ROPE },
	{ 1, 13, 5, 2, 8, CQK_KEYS_PRE_ROPE },		/* 65, of one sequence: halves, too */
	{ 16, 2, 4, 4, 8, CQK_KEYS_PRE_ROPE },		/* 128 */
	{ 3, 43, 1, 8, 4, CQK_KEYS_ROTATED },		/* 129: two items */
	{ 15, 1, 20, 4, 2, CQK_KEYS_NONE },		/* 300: three */
	{ 12, 1, 4, 2, 4, CQK_KEYS_ROTATED },
	{ 1, 33, 4, 8, 8, CQK_KEYS_ROTATED },
	{ 1, 12, 4, 4, 4, CQK_KEYS_PRE_ROPE },
	{ 1, 64, 2, 2, 2, CQK_KEYS_PRE_ROPE },
};

static struct scene_opts books_opts(uint32_t i)
{
	const struct batch *b = &books[i];
	struct scene_opts o = plain(128, b->ck);

	o.toy.cv = b->cv;
	o.toy.keys = b->keys;
	o.toy.n_kv_heads = 1 + i % 2;
	o.toy.n_heads = b->heads * o.toy.n_kv_heads;
	o.toy.i8 = i % 4 == 1;
	o.toy.pairs = i / 4 % 2;
	o.seqs = b->seqs;
	o.rows = b->rows;
	o.shared = 1 + i % 3 * 3;
	o.own = i % 4 == 3;
	o.tail = 5 + i % 5 * 13;
	o.sinks = i % 3 * 4;
	o.holes = i % 5 == 3;
	o.window = i % 6 == 5 ? 150 : 0;
	o.soft_cap = i % 6 == 4 ? 3 : 0;
	o.dtype = i % 3;
	o.want = i % 4 == 2 ? 1 : 0;
	return o;
}

/* Both launches of a scene by books, as one block of threads may get several items. */
static void check_books(struct gpu *g, uint32_t i, enum cqk_cuda_variant want)
{
	struct scene_opts o = books_opts(i);
	struct scene *s = scene_new(&o);
	struct cqkd_plan plan;
	struct run r;

	run_new(g, s, &r);
	gpu_get(g, &plan, r.plan, sizeof(plan));
	if (want == CQK_CUDA_BOOKS || !getenv("CQ_TEST_GPU")) {
		ASSERT_EQ(cqk_cuda_variant_wide(g->k, r.t, &r.a), want);
		ASSERT(want == CQK_CUDA_BLOCK || plan.n_wide);
	}
	run_launch(g, &r);
	run_get(g, s, &r);
	check_error(s);
	r.limits.few = 0;	/* one block of threads for each item */
	run_launch(g, &r);
	run_get(g, s, &r);
	check_error(s);
	run_free(g, &r);
	scene_free(s);
}

TEST_LIMIT(books_in_shared_memory, 120)
{
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	cqk_cuda_force(g.k, CQK_CUDA_BOOKS);
	for (i = 0; i < ARRAY_SIZE(books); i++)
		check_books(&g, i, CQK_CUDA_BOOKS);
	gpu_close(&g);
}

/* Less shared memory: one tile for keys and values, and none of it for small groups. */
TEST_LIMIT(books_with_one_tile, 120)
{
	struct gpu g;
	uint32_t i;

	setenv("CQ_EMU_ARCH", "80", 1);
	gpu_open(&g);
	cqk_cuda_force(g.k, CQK_CUDA_BOOKS);
	for (i = 0; i < ARRAY_SIZE(books); i++)
		check_books(&g, i, books[i].ck + books[i].cv > 4 ? CQK_CUDA_BOOKS :
						 CQK_CUDA_BLOCK);
	gpu_close(&g);
}

/* The same by products of warpgroups, in each order of threads. */
static void check_wgmma(const char *order)
{
	struct gpu g;
	uint32_t i;

	setenv("CQ_EMU_ORDER", order, 1);
	gpu_open(&g);
	cqk_cuda_force(g.k, CQK_CUDA_WGMMA);
	for (i = 0; i < ARRAY_SIZE(books); i++)
		check_books(&g, i, CQK_CUDA_WGMMA);
	gpu_close(&g);
}

TEST_LIMIT(books_by_warpgroups, 120) { check_wgmma("forward"); }
TEST_LIMIT(books_by_warpgroups_reversed, 120) { check_wgmma("reverse"); }
TEST_LIMIT(books_by_warpgroups_at_random, 120) { check_wgmma("random"); }

/* Pages and rows that see nothing, positions between pages, and a query that is no number. */
static void check_unseen(enum cqk_cuda_variant variant)
{
	struct scene_opts o = plain(128, 4);
	struct scene *s;
	struct gpu g;
	uint32_t i, h;

	gpu_open(&g);
	cqk_cuda_force(g.k, variant);
	o.rows = 40;
	o.shared = 5;
	o.want = 1;
	s = scene_new(&o);
	s->row_pos[7] = 0;
	for (i = 0; i < s->n_spans; i++)
		s->spans[i].pos += 1;
	s->spans[0].mask = s->spans[2].mask = 0;
	s->spans[3].mask = 1ull << 63;
	check_scene(&g, s);
	((float *)s->a.q.data)[9 * s->a.q.stride_token + 3 * s->a.q.stride_head + 5] = NAN;
	scene_gpu(&g, s);
	for (i = 0; i < o.rows; i++)
		for (h = 0; h < 4; h++)
			ASSERT_EQ(isnan(toy_load(&s->a.o, i, h, 11)), i == 9 && h == 3);
	((float *)s->a.q.data)[9 * s->a.q.stride_token + 3 * s->a.q.stride_head + 5] = 0;
	for (i = 0; i < s->n_spans; i++)
		s->spans[i].mask = 0;
	check_scene(&g, s);
	s->a.n_blocks = 0;
	check_scene(&g, s);
	scene_free(s);
	gpu_close(&g);
}

TEST_LIMIT(books_that_few_see, 60) { check_unseen(CQK_CUDA_BOOKS); }
TEST_LIMIT(books_by_warpgroups_that_few_see, 60) { check_unseen(CQK_CUDA_WGMMA); }

/* The rule takes them where there is enough to do, and if all layers can. */
TEST_LIMIT(books_by_rule, 60)
{
	static const struct { uint32_t seqs, shared, wide; } by[] = {
		{ 3, 80, 1 }, { 3, 79, 0 }, { 8, 14, 1 }, { 8, 13, 0 }, { 2, 100, 0 },
	};
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	for (i = 0; i < ARRAY_SIZE(by); i++) {
		struct scene_opts o = plain(128, 8);
		struct cqkd_plan plan;
		struct scene *s;
		struct run r;

		o.toy.n_kv_heads = 1;
		o.seqs = by[i].seqs;
		o.shared = by[i].shared;
		o.own = 1;
		s = scene_new(&o);
		run_new(&g, s, &r);
		gpu_get(&g, &plan, r.plan, sizeof(plan));
		if (!getenv("CQ_TEST_GPU"))
			ASSERT_EQ(plan.n_wide > 0, by[i].wide);
		run_launch(&g, &r);
		run_get(&g, s, &r);
		check_error(s);
		r.t->layers[0].v.bits = 10;
		cqk_cuda_limits_init(&r.limits, g.k, r.t, 4, 4, 4, WANT);
		ASSERT_EQ(r.limits.wide_from, 0);
		ASSERT_EQ(r.limits.wide_vecs, 0);
		run_free(&g, &r);
		scene_free(s);
	}
	gpu_close(&g);
}

/* The same rows at other positions cannot share decoded keys. */
TEST(many_rows_at_other_positions)
{
	struct scene_opts o = plain(64, 8);
	struct gpu g;

	gpu_open(&g);
	o.seqs = 10;
	o.rows = 4;
	o.shift = 77;
	check(&g, &o);
	gpu_close(&g);
}

/* Shared pages of a scene are seen by its first @seqs sequences alone, or by as many as before. */
static void share_among(struct scene *s, struct run *r, uint32_t seqs)
{
	uint32_t i;

	for (i = 0; i < s->o.shared; i++)
		s->blocks[i].n_spans = r->blocks[i].n_spans = seqs;
}

/*
 * One capture serves steps of other blocks, masks, positions and rows, and a prefix that no,
 * few or many vectors see: @seqs sequences of 4 vectors and less.
 */
static void check_graph(enum cqk_cuda_variant variant, uint32_t d, uint32_t seqs)
{
	struct scene_opts o = plain(d, 4);
	struct cqcu_graph *graph;
	struct cqcu_exec *exec;
	struct scene *s;
	struct run r;
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	cqk_cuda_force(g.k, variant);
	o.seqs = seqs;
	o.own = 1;
	o.rows = 2;
	if (variant == CQK_CUDA_BLOCK) {	/* values of 10 bits, too */
		o.toy.cv = 8;
		o.toy.bv = 10;
	}
	s = scene_new(&o);
	run_new(&g, s, &r);
	CU(g.cu->cuStreamSynchronize(g.stream));
	CU(g.cu->cuStreamBeginCapture(g.stream, CQCU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
	run_launch(&g, &r);
	CU(g.cu->cuStreamEndCapture(g.stream, &graph));
	CU(g.cu->cuGraphInstantiateWithFlags(&exec, graph, 0));
	for (i = 0; i < 4; i++) {
		CU(g.cu->cuGraphLaunch(exec, g.stream));
		run_get(&g, s, &r);
		check_error(s);
		s->spans[i].mask &= 0x0123456789abcdefull;
		s->row_pos[i] -= 30;
		s->a.n_blocks -= i / 2;
		share_among(s, &r, i == 1 ? seqs : seqs / (i + 2));
		put_plan(&g, s, &r);
	}
	CU(g.cu->cuGraphExecDestroy(exec));
	CU(g.cu->cuGraphDestroy(graph));
	run_free(&g, &r);
	scene_free(s);
	gpu_close(&g);
}

TEST_LIMIT(a_graph_serves_other_steps, 60)
{
	check_graph(CQK_CUDA_AUTO, 64, 3);
	check_graph(CQK_CUDA_FEW, 64, 9);
	check_graph(CQK_CUDA_AUTO, 64, 20);
	check_graph(CQK_CUDA_AUTO, 128, 20);
	check_graph(CQK_CUDA_BOOKS, 128, 9);
	check_graph(CQK_CUDA_WGMMA, 128, 9);
	check_graph(CQK_CUDA_BLOCK, 64, 9);
}
