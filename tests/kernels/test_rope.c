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
		ref_rope(y, &g, at[i]);
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

/* A kind of scaling with numbers of models that have it. */
static const struct cqk_rope_scaling scalings[] = {
	{ .type = CQK_SCALING_NONE },
	{ .type = CQK_SCALING_LINEAR, .factor = 4 },
	{ .type = CQK_SCALING_LLAMA3, .factor = 8, .original_max_position = 8192,
	  .low_freq_factor = 1, .high_freq_factor = 4 },
	{ .type = CQK_SCALING_YARN, .factor = 4, .original_max_position = 32768,
	  .beta_fast = 32, .beta_slow = 1, .attention_factor = 1.1386294361119891,
	  .truncate = 1 },
	{ .type = CQK_SCALING_YARN, .factor = 32, .original_max_position = 4096,
	  .beta_fast = 32, .beta_slow = 1, .attention_factor = 1.3465735902799727 },
};

static struct cqk_geom scaled(uint32_t kind, uint32_t dim, double theta)
{
	return (struct cqk_geom){ .head_dim = 128, .rope_dim = dim, .rope_theta = theta,
				  .keys = CQK_KEYS_PRE_ROPE, .rope_scaling = scalings[kind] };
}

TEST(frequencies_match_the_reference)
{
	static const uint32_t dims[] = { 2, 32, 64, 80, 128 };
	static const double thetas[] = { 1.5, 1e4, 1.5e5, 5e5, 1e6, 1e12 };
	double freq[CQ_MAX_HEAD_DIM / 2];
	uint32_t kind, d, t, j;

	for (kind = 0; kind < ARRAY_SIZE(scalings); kind++)
		for (d = 0; d < ARRAY_SIZE(dims); d++)
			for (t = 0; t < ARRAY_SIZE(thetas); t++) {
				struct cqk_geom g = scaled(kind, dims[d], thetas[t]);

				cqk_rope_freq(&g, freq);
				for (j = 0; j < dims[d] / 2; j++)
					if (!(fabs(freq[j] / ref_freq(&g, j) - 1) < 1e-12))
						FAIL("kind %u dim %u theta %g pair %u: %.17g, "
						     "not %.17g", kind, dims[d], thetas[t], j,
						     freq[j], ref_freq(&g, j));
			}
}

/*
 * Radians per position, from the published formulas by a Python script in
 * decimal arithmetic of 40 digits: Llama 3.1 8B, Qwen 2.5 7B with YaRN, gpt-oss.
 */
struct known {
	uint32_t pair;
	double freq;
};

static void check_known(const struct cqk_geom *g, const struct known *known, size_t n)
{
	double freq[CQ_MAX_HEAD_DIM / 2];
	size_t i;

	cqk_rope_freq(g, freq);
	for (i = 0; i < n; i++)
		if (!(fabs(freq[known[i].pair] / known[i].freq - 1) < 1e-13))
			FAIL("pair %u: %.17g, not %.17g", known[i].pair, freq[known[i].pair],
			     known[i].freq);
}

TEST(frequencies_of_known_models)
{
	static const struct known llama[] = {
		{ 0, 1.00000000000000000e+00 },
		{ 1, 8.14617233856544720e-01 },
		{ 27, 3.94227603011665633e-03 },
		{ 28, 3.21144599475259090e-03 },
		{ 29, 2.16657076350335867e-03 },
		{ 30, 1.37189356776113813e-03 },
		{ 32, 5.24846160992954681e-04 },
		{ 34, 1.78507812767996410e-04 },
		{ 35, 9.55621235396468327e-05 },
		{ 36, 7.78465527393244983e-05 },
		{ 48, 6.64786987118123540e-06 },
		{ 63, 3.06892598891451108e-07 },
	};
	static const struct known qwen[] = {
		{ 0, 1.00000000000000000e+00 },
		{ 20, 1.33352143216332406e-02 },
		{ 23, 6.97830584859866331e-03 },
		{ 24, 5.37532149079010188e-03 },
		{ 28, 1.84827656470687831e-03 },
		{ 32, 6.02941176470588210e-04 },
		{ 36, 1.79841155873954208e-04 },
		{ 39, 6.49039432083702928e-05 },
		{ 40, 4.44569852509730674e-05 },
		{ 41, 3.58253142559240685e-05 },
		{ 63, 3.10234440187929882e-07 },
	};
	static const struct known oss[] = {
		{ 0, 1.00000000000000000e+00 },
		{ 4, 2.25418000202870838e-01 },
		{ 8, 5.08132748154614747e-02 },
		{ 9, 3.17056961846637689e-02 },
		{ 12, 6.79495948973221804e-03 },
		{ 16, 4.56483919223240155e-04 },
		{ 17, 1.29318701245062734e-04 },
		{ 18, 3.83088123737533839e-05 },
		{ 20, 1.81883366816895597e-05 },
		{ 31, 3.02351142811921437e-07 },
	};
	struct cqk_geom g = scaled(2, 128, 5e5);

	check_known(&g, llama, ARRAY_SIZE(llama));
	g = scaled(3, 128, 1e6);
	check_known(&g, qwen, ARRAY_SIZE(qwen));
	g = scaled(4, 64, 1.5e5);
	check_known(&g, oss, ARRAY_SIZE(oss));
}

TEST(scaled_rotation_and_its_inverse)
{
	static const uint32_t at[] = { 0, 1, 63, 64, 4095, 131071 };
	struct cqk_rope rope;
	float x[128], z[128];
	uint32_t kind, i, j;
	double y[128];
	void *mem;

	for (kind = 0; kind < ARRAY_SIZE(scalings); kind++) {
		struct cqk_geom g = scaled(kind, 96, 5e5);

		mem = malloc(cqk_rope_bytes(&g, 131072));
		cqk_rope_init(&rope, &g, 131072, mem);
		for (i = 0; i < ARRAY_SIZE(at); i++) {
			for (j = 0; j < 128; j++)
				y[j] = (double)(z[j] = x[j] = toy_normal());
			cqk_rope_rotate(&rope, x, 1, 128, at[i], false);
			ref_rope(y, &g, at[i]);
			for (j = 0; j < 128; j++)
				ASSERT(fabs((double)x[j] - y[j]) < 3e-6);
			cqk_rope_rotate(&rope, x, 1, 128, at[i], true);
			for (j = 0; j < 128; j++)
				ASSERT(fabsf(x[j] - z[j]) < 3e-6f);
		}
		free(mem);
	}
}

/* @ref_stored() is written the other way round. */
TEST(places_of_channels)
{
	struct cqk_geom g = scaled(0, 96, 1e4);
	uint32_t pairs, ch;

	for (pairs = CQK_PAIRS_HALF; pairs <= CQK_PAIRS_INTERLEAVED; pairs++) {
		g.rope_pairs = pairs;
		for (ch = 0; ch < 128; ch++)
			ASSERT_EQ(ref_stored(&g, cqk_given_channel(&g, ch)), ch);
		ASSERT_EQ(cqk_given_channel(&g, 1), pairs ? 2 : 1);
		ASSERT_EQ(cqk_given_channel(&g, 48), pairs ? 1 : 48);
		ASSERT_EQ(cqk_given_channel(&g, 95), 95);
		ASSERT_EQ(cqk_given_channel(&g, 96), 96);
	}
}
