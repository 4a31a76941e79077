// SPDX-License-Identifier: MIT
/* RoPE tables and rotation against double precision. */
#include "tests/harness.h"
#include "tests/kernels/toy.h"

static void make(struct cqk_rope *rope, struct cqk_geom *g, uint32_t dim,
		 uint32_t positions, void **mem)
{
	*g = (struct cqk_geom){ .head_dim = 128, .rope_dim = dim,
				.rope_theta = 5e5, .keys = CQK_KEYS_PRE_ROPE };
	*mem = malloc(cqk_rope_bytes(g, positions));
	cqk_rope_init(rope, g, positions, *mem);
}

TEST(rotation_matches_double)
{
	static const uint32_t at[] = { 0, 1, 63, 64, 65, 1000, 131071 };
	struct cqk_rope rope;
	struct cqk_geom g;
	float x[128];
	double y[128];
	uint32_t i, j;
	void *mem;

	make(&rope, &g, 96, 131072, &mem);
	ASSERT_EQ(rope.half, 48);
	ASSERT_EQ(rope.n_base, 2048);
	for (i = 0; i < ARRAY_SIZE(at); i++) {
		for (j = 0; j < 128; j++)
			y[j] = (double)(x[j] = toy_normal());
		cqk_rope_rotate(&rope, x, 1, 128, at[i], false);
		toy_rotate(y, &g, at[i]);
		for (j = 0; j < 128; j++)
			ASSERT(fabs((double)x[j] - y[j]) < 2e-6);
	}
	free(mem);
}

TEST(inverse_undoes)
{
	struct cqk_rope rope;
	struct cqk_geom g;
	float x[3 * 128], y[3 * 128];
	uint32_t j;
	void *mem;

	make(&rope, &g, 128, 4096, &mem);
	for (j = 0; j < 3 * 128; j++)
		y[j] = x[j] = toy_normal();
	cqk_rope_rotate(&rope, x, 3, 128, 3333, false);
	ASSERT(fabsf(x[0] - y[0]) > 1e-3f);
	cqk_rope_rotate(&rope, x, 3, 128, 3333, true);
	for (j = 0; j < 3 * 128; j++)
		ASSERT(fabsf(x[j] - y[j]) < 2e-6f);
	free(mem);
}

TEST(tables_agree)
{
	struct cqk_rope rope;
	struct cqk_geom g;
	uint32_t t, part, j;
	void *mem;

	make(&rope, &g, 128, 100, &mem);
	ASSERT_EQ(rope.n_base, 2);
	for (t = 0; t < 64; t++)
		for (part = 0; part < 2; part++)
			for (j = 0; j < 64; j++)
				ASSERT(rope.in_page[(t * 2 + part) * 64 + j] ==
				       rope.in_page_t[(j * 2 + part) * 64 + t]);
	free(mem);
}

TEST(no_rotation_is_legal)
{
	struct cqk_rope rope;
	struct cqk_geom g;
	float x[128] = { 1, 2, 3 };
	void *mem;

	make(&rope, &g, 0, 0, &mem);
	ASSERT_EQ(rope.half, 0);
	cqk_rope_rotate(&rope, x, 1, 128, 77, false);
	ASSERT(x[0] == 1 && x[1] == 2 && x[2] == 3);
	free(mem);
	g.rope_dim = 64;
	g.keys = CQK_KEYS_NONE;
	mem = malloc(cqk_rope_bytes(&g, 10));
	cqk_rope_init(&rope, &g, 10, mem);
	ASSERT_EQ(rope.half, 0);
	free(mem);
}
