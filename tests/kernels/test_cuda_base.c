// SPDX-License-Identifier: MIT
/*
 * What gpu-bench compares attention over codes with, on the (emulated) GPU against double
 * precision over the numbers as stored: a baseline that is wrong would be no baseline.
 */
#include "tests/harness.h"
#include "tests/kernels/gpu_scene.h"
#include "tests/gpu/base.h"

#define HEADS 2		/* kv heads */

static const float k_scales[HEADS] = { 0.25f, 0.37f }, v_scales[HEADS] = { 0.5f, 1.7f };

/* Any number but NaN; of keys none above 7.5, as scores would be of one token. */
static uint8_t e4m3_random(bool key)
{
	uint32_t exponent = toy_u32() % (key ? 10 : 16), fraction = toy_u32() % 8;

	if (exponent == 15 && fraction == 7)
		fraction = 0;
	return (uint8_t)(toy_u32() % 2 << 7 | exponent << 3 | fraction);
}

/* The payload of a page becomes halves that e4m3 has, too; these are @out. */
static void page_make(const struct scene *s, uint8_t *payload, uint8_t *out)
{
	uint32_t block = 64 * s->o.toy.d;	/* K or V of a head */
	size_t i;

	for (i = 0; i < s->toy.m.payload / 2; i++)
		out[i] = e4m3_random(i / block % 2 == 0);
	base_e4m3_halves(out, s->toy.m.payload / 2, payload);
}

static void pages_make(struct gpu *g, struct scene *s, struct run *r, enum base_type type)
{
	uint8_t *page = toy_alloc(s->toy.m.payload);
	uint32_t i;

	for (i = 0; i < s->a.n_blocks && type != BASE_F16; i++) {
		page_make(s, (uint8_t *)(uintptr_t)s->blocks[i].base, page);
		r->blocks[i].base = (const uint8_t *)(uintptr_t)
			gpu_put(g, page, s->toy.m.payload / 2);
	}
	put_plan(g, s, r);
	free(page);
}

/* The worst error, of which a factor of keys is one of the scale and one of values is left. */
static double base_error(struct scene *s, enum base_type type)
{
	const struct cqk_geom *g = &s->toy.m.geom;
	struct cqk_attn a = s->a;
	double ref[256], worst = 0;
	uint32_t row, h, ch;

	for (row = 0; row < s->a.n_rows; row++)
		for (h = 0; h < g->n_heads; h++) {
			uint32_t kv = h / (g->n_heads / g->n_kv_heads);
			double by = type == BASE_F16 ? 1 : (double)v_scales[kv];
			double err = 0, norm = 0, lse;

			a.scale = s->a.scale * (type == BASE_F16 ? 1 : k_scales[kv]);
			lse = toy_reference(&a, row, h, ref);
			for (ch = 0; ch < g->head_dim; ch++) {
				double e = toy_load(&s->a.o, row, h, ch) - ref[ch] * by;

				ASSERT(!isnan(e));
				err += e * e;
				norm += ref[ch] * by * ref[ch] * by;
			}
			worst = fmax(worst, norm > 0 ? sqrt(err / norm) : err > 0 ? 1 : 0);
			err = (double)s->lse[row * s->a.lse_stride + h];
			if (isinf(lse))
				ASSERT(isinf(err) && err < 0);
			else
				worst = fmax(worst, fabs(err - lse) / fmax(1, fabs(lse)));
		}
	return worst;
}

/*
 * @most: vectors of an item, more than eight if a kernel of many is to be used; @groups: one
 * that multiplies by warpgroups.
 */
static void check_base(struct gpu *g, const struct base *b, struct scene_opts o,
		       enum base_type type, uint32_t most, bool groups)
{
	struct base_call c = { .type = type, .vecs = most > CQKD_FEW_VECS ? most : 0,
			       .groups = groups, .blocks = { 3, 3 } };
	float scales[2 * HEADS];
	struct scene *s;
	struct run r;
	double e;

	o.toy.keys = CQK_KEYS_ROTATED;
	o.flags = CQ_ATTN_Q_ROTATED;
	if (!b->few[type][o.toy.d > 64] ||
	    (c.vecs && base_wide_of(b, &c, o.toy.d) == BASE_WIDES)) {
		ASSERT(getenv("CQ_TEST_GPU"));	/* not all GPUs have the shared memory */
		return;
	}
	s = scene_new(&o);
	memcpy(scales, k_scales, sizeof(k_scales));
	memcpy(scales + o.toy.n_kv_heads, v_scales, sizeof(v_scales));
	run_new(g, s, &r);
	pages_make(g, s, &r, type);
	base_params(&c, r.t, &r.a, gpu_put(g, scales, sizeof(scales)));
	base_launch(b, &c, g->stream);
	run_get(g, s, &r);
	e = base_error(s, type);
	if (getenv("SHOW"))
		printf("# %.2e\n", e);
	if (!(e <= 2e-3))
		FAIL("type %u d %u, %u sequences, %u of %u heads: error %.3e", type, o.toy.d,
		     o.seqs, o.toy.n_kv_heads, o.toy.n_heads, e);
	run_free(g, &r);
	scene_free(s);
}

static struct scene_opts pages(uint32_t d, uint32_t heads, uint32_t seqs)
{
	return (struct scene_opts){
		.toy = { .n_layers = 2, .n_heads = heads, .n_kv_heads = HEADS, .d = d },
		.seqs = seqs, .shared = 3, .own = 2, .layer = 1,
	};
}

TEST_LIMIT(fp8_of_few_vectors, 60)
{
	struct base b;
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	base_open(&b, &g);
	for (i = 0; i < 12; i++) {
		enum base_type type = i / 2 % 2 ? BASE_FP8_BITS : BASE_FP8;
		struct scene_opts o = pages(i % 2 ? 128 : 64, HEADS * (1 + i % 4), 1 + i % 2);

		o.own = 1 + i * 2;
		o.holes = i % 3 == 2;
		o.window = i == 5 ? 100 : 0;
		o.soft_cap = i == 7 ? 3 : 0;
		o.dtype = i % 2 ? CQ_F16 : CQ_F32;
		if (type != BASE_FP8_BITS || !getenv("CQ_TEST_GPU"))
			check_base(&g, &b, o, type, CQKD_FEW_VECS, false);
	}
	base_close(&b);
	gpu_close(&g);
}

/* Each kernel, items that it fills and others, pages that some or none of the rows see. */
TEST_LIMIT(cascades, 60)
{
	static const struct { uint32_t d, gqa, seqs, most; } batch[] = {
		{ 64, 4, 4, 16 }, { 64, 3, 21, 63 }, { 128, 4, 8, 32 }, { 128, 1, 64, 64 },
		{ 128, 8, 8, 64 }, { 128, 4, 30, 128 }, { 128, 4, 40, 160 },
		{ 128, 4, 70, 144 },	/* 280 vectors: two items */
	};
	struct base b;
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	base_open(&b, &g);
	for (i = 0; i < 2 * ARRAY_SIZE(batch); i++) {
		uint32_t n = i / 2;
		struct scene_opts o = pages(batch[n].d, batch[n].gqa, batch[n].seqs);

		o.toy.n_kv_heads = 1;
		o.own = n % 2;
		o.shared = 2 + n * 2 % 7;
		o.want = n == 3 ? 1 : 0;
		o.holes = n % 3 == 1;
		o.window = n == 4 ? 100 : 0;
		o.dtype = CQ_F16;
		check_base(&g, &b, o, i % 2 ? BASE_FP8 : BASE_F16, batch[n].most, false);
	}
	base_close(&b);
	gpu_close(&g);
}

/* The same by products of warpgroups, which head_dim 128 and fp16 alone have. */
TEST_LIMIT(cascades_of_warpgroups, 120)
{
	static const struct { uint32_t gqa, seqs, shared; } batch[] = {
		{ 3, 3, 1 }, { 4, 8, 2 }, { 1, 64, 4 }, { 8, 9, 3 }, { 4, 32, 5 }, { 4, 30, 7 },
		{ 2, 64, 9 }, { 3, 5, 12 },
	};
	struct base b;
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	base_open(&b, &g);
	for (i = 0; i < ARRAY_SIZE(batch); i++) {
		struct scene_opts o = pages(128, batch[i].gqa, batch[i].seqs);

		o.toy.n_heads *= HEADS;
		o.own = i % 2;
		o.shared = batch[i].shared;
		o.want = i == 3 ? 1 : 0;
		o.holes = i % 3 == 1;
		o.window = i == 4 ? 100 : 0;
		o.soft_cap = i == 6 ? 3 : 0;
		o.dtype = CQ_F16;
		check_base(&g, &b, o, BASE_F16, CQKD_WGMMA_VECS, true);
	}
	base_close(&b);
	gpu_close(&g);
}
