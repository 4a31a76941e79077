// SPDX-License-Identifier: MIT
/* Encoding and decoding: bit-exact between implementations. */
#include "tests/harness.h"
#include "tests/kernels/toy.h"

#define N 64

static struct toy_opts shape(uint32_t d, uint32_t c, bool i8)
{
	return (struct toy_opts){ .n_layers = 1, .n_heads = 2, .n_kv_heads = 2,
				  .d = d, .ck = c, .cv = c, .i8 = i8 };
}

/* The definition, one token and group at a time, from the stored values. */
static uint32_t nearest(const struct cqk_codebook *cb, uint32_t head, uint32_t g,
		       const uint16_t *x)
{
	uint32_t c = cb->code.channels, n = cqk_code_centroids(cb->code), k, j, best = 0;
	float least = 0;

	for (k = 0; k < n; k++) {
		size_t group = (size_t)head * cb->n_groups + g;
		volatile float acc = cb->half_norm[group * n + k];

		for (j = 0; j < c; j++) {
			size_t ch = (size_t)head * cb->head_dim + g * c + j;
			volatile float e = cb->f32[ch * n + k] *
					   (cb->metric ? cb->metric[ch] : 1.0f);
			volatile float prod = cqk_f16_to_f32(x[g * c + j]) * e;

			acc = acc - prod;
		}
		if (k == 0 || acc < least) {
			least = acc;
			best = k;
		}
	}
	return best;
}

static void check_codes(const struct cqk_codebook *cb, const uint16_t *x,
			uint32_t first, uint32_t n)
{
	size_t bytes = cq_code_block_bytes(cb->code, cb->head_dim), i;
	size_t used = (size_t)cb->n_groups * (cb->code.bits == 10 ? 80 : 64);
	uint8_t *got = malloc(bytes);
	uint32_t d = cb->head_dim, g, t;
	unsigned int o;

	for (o = 0; cqk_nth(o); o++) {
		if (!cqk_nth(o)->usable())
			continue;
		memset(got, 0xaa, bytes);
		cqk_nth(o)->encode(cb, 1, x, first, n, got);
		for (g = 0; g < cb->n_groups; g++)
			for (t = 0; t < 64; t++) {
				uint32_t want = cb->code.bits == 10 ? 0x2aa : 0xaa, k;

				if (t >= first && t < first + n)
					want = nearest(cb, 1, g, x + (t - first) * d);
				k = toy_code(cb, got, g, t);
				if (k != want)
					FAIL("%s d %u c %u group %u token %u: %u, want %u",
					     cqk_nth(o)->name, d, cb->code.channels,
					     g, t, k, want);
			}
		for (i = used; i < bytes; i++)
			ASSERT_EQ(got[i], 0);
	}
	free(got);
}

/* Nearest, ties to even, for both signs, with subnormals and overflow. */
TEST(halves_round_to_nearest)
{
	static const uint16_t sign[] = { 0, 0x8000 };
	float lo, hi, mid, away;
	uint32_t i;
	uint16_t h;

	for (i = 0; i < 2; i++)
		for (h = 0; h < 0x7c00; h++) {
			lo = cqk_f16_to_f32(sign[i] | h);
			hi = h < 0x7bff ? cqk_f16_to_f32(sign[i] | (h + 1)) :
			     i ? -65536.0f : 65536.0f;
			mid = lo / 2 + hi / 2;
			away = i ? -INFINITY : INFINITY;
			ASSERT(h == 0 || fabsf(lo) < fabsf(hi));
			ASSERT_EQ(cqk_f32_to_f16(lo), sign[i] | h);
			ASSERT_EQ(cqk_f32_to_f16(mid), sign[i] | (h + (h & 1)));
			ASSERT_EQ(cqk_f32_to_f16(nextafterf(mid, 0)), sign[i] | h);
			ASSERT_EQ(cqk_f32_to_f16(nextafterf(mid, away)),
				  sign[i] | (h + 1));
		}
	ASSERT(cqk_f16_to_f32(1) == 0x1p-24f && cqk_f16_to_f32(0x3c00) == 1);
	ASSERT_EQ(cqk_f32_to_f16(-NAN) & 0xfe00, 0xfe00);
	ASSERT_EQ(cqk_f32_to_f16(INFINITY), 0x7c00);
	ASSERT(isnan(cqk_f16_to_f32(0x7c01)) && cqk_f16_to_f32(0xfc00) < -1e30f);
}

TEST(codes_are_the_nearest_centroids)
{
	static const uint32_t dims[] = { 64, 80, 96, 112, 128, 256 };
	uint32_t i, c, i8;

	for (i = 0; i < ARRAY_SIZE(dims); i++)
		for (c = 1; c <= 16; c++)
			for (i8 = 0; i8 < 2 && dims[i] % c == 0; i8++) {
				struct toy_opts o = shape(dims[i], c, i8);
				uint8_t *x = toy_alloc((size_t)N * dims[i] * 2);
				struct toy t;

				o.metric = (c + i) % 2;
				toy_init(&t, &o, 64);
				toy_halves(x, (size_t)N * dims[i], 1.0f);
				check_codes(&t.m.layers[0].k, (uint16_t *)(void *)x,
					    c % 5, 17 + c);
				free(x);
				toy_free(&t);
			}
}

static struct toy_opts wide(uint32_t d, bool i8)
{
	struct toy_opts o = shape(d, 8, i8);

	o.bk = 10;
	o.bv = 10;
	return o;
}

/* Any tokens of a page, others keep both parts of their codes. */
TEST(wide_codes_are_the_nearest_centroids)
{
	static const uint32_t dims[] = { 64, 80, 128, 256 };
	static const uint32_t first[] = { 0, 15, 16, 33, 47, 60 };
	uint32_t i, k, n;

	for (i = 0; i < ARRAY_SIZE(dims); i++) {
		struct toy_opts o = wide(dims[i], i % 2);
		uint8_t *x = toy_alloc((size_t)N * dims[i] * 2);
		struct toy t;

		o.metric = i / 2 % 2;
		toy_init(&t, &o, 64);
		toy_halves(x, (size_t)N * dims[i], 1.0f);
		for (k = 0; k < ARRAY_SIZE(first); k++)
			for (n = 1; n <= N - first[k]; n += 1 + 11 * n)
				check_codes(&t.m.layers[0].k, (uint16_t *)(void *)x,
					    first[k], n);
		check_codes(&t.m.layers[0].v, (uint16_t *)(void *)x, 0, N);
		free(x);
		toy_free(&t);
	}
}

TEST(every_number_of_tokens)
{
	static const uint32_t groups[] = { 1, 2, 3, 4, 8, 16, 32 };
	uint32_t i, n;

	for (i = 0; i < ARRAY_SIZE(groups); i++) {
		struct toy_opts o = shape(96, groups[i], true);
		uint8_t *x = toy_alloc((size_t)N * 96 * 2);
		struct toy t;

		toy_init(&t, &o, 64);
		toy_halves(x, (size_t)N * 96, 1.0f);
		for (n = 1; n <= N; n += n % 16 < 2 ? 1 : 7)
			check_codes(&t.m.layers[0].k, (uint16_t *)(void *)x, N - n, n);
		free(x);
		toy_free(&t);
	}
}

TEST(ties_take_the_lowest_code)
{
	struct toy_opts o = shape(64, 4, true);
	struct cqk_codebook *cb;
	uint16_t x[64 * 4];
	struct toy t;
	size_t i, j;

	toy_init(&t, &o, 64);
	cb = &t.m.layers[0].k;
	for (i = 0; i < 2 * 64; i++)	/* every centroid four times */
		for (j = 64; j < 256; j += 64)
			memcpy(cb->f32 + i * 256 + j, cb->f32 + i * 256, 64 * 4);
	toy_half_norm(cb);
	toy_halves((uint8_t *)x, 64 * 4, 1.0f);
	check_codes(cb, x, 0, 4);
	memset(cb->f32, 0, (size_t)2 * 64 * 256 * 4);
	toy_half_norm(cb);
	for (i = 0; i < 64; i++)	/* 0 and -0 are the same distance */
		x[i] = i % 2 ? 0x8000 : 0;
	check_codes(cb, x, 60, 4);
	toy_free(&t);
}

TEST(ties_of_wide_codes_take_the_lowest)
{
	struct toy_opts o = wide(64, true);
	struct cqk_codebook *cb;
	uint16_t x[64 * 12];
	struct toy t;
	size_t i, j;

	toy_init(&t, &o, 64);
	cb = &t.m.layers[0].k;
	for (i = 0; i < 2 * 64; i++)	/* every centroid four times */
		for (j = 256; j < 1024; j += 256)
			memcpy(cb->f32 + i * 1024 + j, cb->f32 + i * 1024, 256 * 4);
	toy_half_norm(cb);
	toy_halves((uint8_t *)x, ARRAY_SIZE(x), 1.0f);
	check_codes(cb, x, 0, 12);
	for (i = 0; i < 2 * 64; i++)	/* those of a small norm are the last */
		for (j = 0; j < 768; j++)
			cb->f32[i * 1024 + j] += 100;
	toy_half_norm(cb);
	check_codes(cb, x, 5, 12);
	for (i = 0; i < ARRAY_SIZE(x); i++)
		x[i] = (uint16_t)((i % 2 ? 0x8000 : 0) | (i % 3 ? 0x7bff : i % 5));
	check_codes(cb, x, 0, 12);
	toy_free(&t);
}

TEST(extreme_inputs)
{
	struct toy_opts o = shape(64, 8, false);
	struct toy t;
	uint16_t x[64 * 4];
	size_t i;

	o.k_size = 3000.0f;
	toy_init(&t, &o, 64);
	for (i = 0; i < 256; i++)
		x[i] = (uint16_t)((i % 2 ? 0x8000 : 0) | (i % 3 ? 0x7bff : i % 5));
	check_codes(&t.m.layers[0].k, x, 0, 4);
	toy_free(&t);
}

TEST(a_codebook_of_nan_is_survived)
{
	struct toy_opts o = shape(64, 8, false);
	uint16_t x[64] = { 0x3c00 };
	uint8_t codes[8 * 64];
	struct toy t;
	unsigned int i;

	toy_init(&t, &o, 64);
	memset(t.m.layers[0].k.f32, 0xff, (size_t)2 * 64 * 256 * 4);
	memset(t.m.layers[0].k.half_norm, 0xff, 2 * 8 * 256 * 4);
	for (i = 0; cqk_nth(i); i++)
		if (cqk_nth(i)->usable())
			cqk_nth(i)->encode(&t.m.layers[0].k, 1, x, 0, 1, codes);
	toy_free(&t);
}

static void check_decode(uint32_t d, uint32_t c, bool i8, uint32_t bits)
{
	struct toy_opts o = shape(d, c, i8);
	const struct cqk_codebook *cb;
	struct cqk_src src = { .d = d, .kv_head = 1 };
	float *out = toy_alloc((size_t)65 * d * 4);
	uint8_t *page;
	uint32_t t, ch, n;
	struct toy toy;

	o.bk = bits;
	toy_init(&toy, &o, 64);
	page = toy_alloc(toy.m.payload);
	toy_payload(&toy, page);
	cb = &toy.m.layers[0].k;
	src.data = page + toy.m.layers[0].k_bytes + toy.m.layers[0].v_bytes;
	src.cb = c ? cb : NULL;
	for (n = 0; cqk_nth(n); n++) {
		if (!cqk_nth(n)->usable())
			continue;
		memset(out, 0xff, (size_t)65 * d * 4);
		cqk_nth(n)->decode(cb, 1, src.data, 5, 41, out);
		for (t = 0; t < 41; t++)
			for (ch = 0; ch < d; ch++)
				ASSERT((double)out[t * d + ch] ==
				       toy_value(&src, 5 + t, ch));
		ASSERT(isnan(out[41 * d]));
	}
	free(out);
	free(page);
	toy_free(&toy);
}

TEST(decoding_gives_the_stored_values)
{
	uint32_t c, i8;

	for (i8 = 0; i8 < 2; i8++)
		for (c = 0; c <= 16; c++)
			if (!c || 112 % c == 0) {
				check_decode(112, c, i8, 8);
				check_decode(112 * 2, c, i8, 8);
			}
	for (i8 = 0; i8 < 2; i8++) {
		check_decode(112, 8, i8, 10);
		check_decode(64, 8, i8, 10);
	}
}

TEST(pass_through_copies)
{
	struct toy_opts o = shape(64, 0, false);
	uint8_t x[64 * 3 * 2], out[64 * 64 * 2];
	struct toy t;
	unsigned int i;

	toy_init(&t, &o, 64);
	toy_halves(x, 64 * 3, 1.0f);
	for (i = 0; cqk_nth(i); i++) {
		if (!cqk_nth(i)->usable())
			continue;
		memset(out, 0, sizeof(out));
		cqk_nth(i)->encode(&t.m.layers[0].k, 0, (uint16_t *)(void *)x, 7, 3, out);
		ASSERT(!memcmp(out + 7 * 128, x, sizeof(x)));
		ASSERT(!out[7 * 128 - 1] && !out[10 * 128]);
	}
	toy_free(&t);
}
