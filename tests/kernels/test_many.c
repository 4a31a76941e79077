// SPDX-License-Identifier: MIT
/*
 * Attention of many query vectors per kv head, where implementations share what
 * they decode: against double precision over the centroids as stored.
 */
#include "tests/kernels/scene.h"

/* The implementations to test: all compiled in, or one given at build time. */
static const struct cqk_ops *candidate(unsigned int i)
{
#ifdef ONLY_OPS
	return i ? NULL : ONLY_OPS;
#else
	return cqk_nth(i);
#endif
}

static void check_scene(struct scene *s)
{
	double *ref = scene_reference(s);
	unsigned int i;

	for (i = 0; candidate(i); i++) {
		const struct cqk_ops *ops = candidate(i);
		double e, bound = strcmp(ops->name, "portable") ? 1e-3 : 3e-5;

		if (!ops->usable())
			continue;
		scene_run(s, ops);
		e = scene_error_from(s, ref);
		if (getenv("SHOW"))
			printf("# %-12s %.2e\n", ops->name, e);
		if (!(e <= bound))
			FAIL("%s: d %u c %u/%u heads %u rows %u x %u: error %.3e",
			     ops->name, s->o.toy.d, s->o.toy.ck, s->o.toy.cv,
			     s->o.toy.n_heads, s->o.seqs, s->o.rows, e);
	}
	free(ref);
}

static void check(const struct scene_opts *o)
{
	struct scene *s = scene_new(o);

	check_scene(s);
	scene_free(s);
}

static struct scene_opts many(uint32_t d, uint32_t c, uint32_t gqa, uint32_t rows)
{
	return (struct scene_opts){
		.toy = { .n_layers = 2, .n_heads = 2 * gqa, .n_kv_heads = 2, .d = d,
			 .rope_dim = d, .ck = c, .cv = c, .i8 = true },
		.shared = 2, .layer = 1, .rows = rows,
	};
}

TEST(every_shape)
{
	static const uint32_t dims[] = { 6, 32, 80, 128, 250, 256 };
	static const uint32_t groups[] = { 1, 2, 3, 5, 8, 16 };
	uint32_t i, c, n = 0;

	for (i = 0; i < ARRAY_SIZE(dims); i++)
		for (c = 0; c < ARRAY_SIZE(groups); c++) {
			struct scene_opts o = many(dims[i], groups[c], 3, 4);

			if (dims[i] % groups[c])
				continue;
			check(&o);
			o.toy.rope_dim = dims[i] / 4 * 2;
			o.toy.i8 = n % 3;
			check(&o);
			o.toy.keys = CQK_KEYS_NONE;
			check(&o);
			n++;
		}
}

TEST(codes_of_ten_bits)
{
	uint32_t side, i8;

	for (side = 0; side < 3; side++)
		for (i8 = 0; i8 < 2; i8++) {
			struct scene_opts o = many(128, 8, 3, 4);

			o.toy.bk = side < 2 ? 10 : 8;
			o.toy.bv = side ? 10 : 8;
			o.toy.i8 = i8;
			check(&o);
			o.toy.keys = CQK_KEYS_NONE;
			check(&o);
		}
}

/* Registers of sixteen lanes: partly used, one, two, three, four, five. */
TEST(every_number_of_vectors)
{
	uint32_t n;

	for (n = 9; n <= 70; n += n % 16 == 14 ? 1 : 3) {
		struct scene_opts o = many(64, 4, 1, n);

		o.toy.i8 = n % 2;
		check(&o);
	}
	for (n = 2; n <= 17; n += 5) {
		struct scene_opts o = many(64, 8, 8, n);

		check(&o);
	}
}

/* Sequences that begin within a register, and see pages that others do not. */
TEST(sequences_with_pages_of_their_own)
{
	uint32_t seqs, rows;

	for (seqs = 3; seqs <= 17; seqs += 7)
		for (rows = 1; rows <= 2; rows++) {
			struct scene_opts o = many(32, 8, 4, rows);

			o.seqs = seqs;
			o.own = 1;
			o.tail = 5;
			o.sinks = 4;
			check(&o);
			o.holes = true;
			o.window = 100;
			o.shift = rows * 77;
			check(&o);
		}
}

TEST(caps_and_masks)
{
	static const float caps[] = { 0, 1e-3f, 5, 1e30f };
	uint32_t i, window;

	for (i = 0; i < ARRAY_SIZE(caps); i++)
		for (window = 0; window <= 140; window += 70) {
			struct scene_opts o = many(64, 4, 2, 20);

			o.soft_cap = caps[i];
			o.window = window;
			o.holes = i == 2;
			check(&o);
		}
}

TEST(scores_of_every_size)
{
	uint32_t size;

	for (size = 1; size <= 16; size *= 4) {
		struct scene_opts o = many(64, 8, 4, 4);

		o.toy.keys = CQK_KEYS_NONE;
		o.shared = 9;
		o.q_size = (float)size;
		check(&o);
		o.toy.v_size = 1e-4f;
		check(&o);
		o.toy.k_size = 1 / (float)size;
		o.toy.keys = CQK_KEYS_PRE_ROPE;
		check(&o);
	}
}

/* Every centroid as large as can be, every query along them. */
TEST(sums_of_integers_do_not_overflow)
{
	uint32_t rope, d, ch, i;

	for (d = 128; d <= 256; d += 128)
		for (rope = 0; rope <= d; rope += 64) {
			struct scene_opts o = many(d, 8, 4, 4);
			struct cqk_codebook *cb;
			struct scene *s;

			o.toy.rope_dim = rope;
			s = scene_new(&o);
			cb = &s->toy.m.layers[1].k;
			for (ch = 0; ch < 2 * d; ch++)
				((float *)(uintptr_t)cb->scale)[ch] = 0.002f;
			for (i = 0; i < 2 * d * 256; i++) {
				int8_t x = i / 8 % 2 ? 127 : -127;

				((int8_t *)(uintptr_t)cb->stored)[i] = x;
				x = i % 2 ? 127 : -127;
				cb->i8[i] = x;
				cb->f32[i] = (float)x * 0.002f;
			}
			for (i = 0; i < s->out_bytes / 4 - 1; i++)
				((float *)s->a.q.data)[i] = 1.0f;
			check_scene(s);
			scene_free(s);
		}
}

/* One token 9 to 13 above a thousand others, each lost beside it if p is rounded. */
TEST(one_score_above_equal_ones)
{
	uint32_t above, i, lane, ch, layer;

	for (above = 9; above <= 13; above++) {
		struct scene_opts o = many(64, 8, 1, 16);
		const struct cqk_codebook *cb;
		struct scene *s;

		o.toy.keys = CQK_KEYS_NONE;
		o.shared = 17;
		s = scene_new(&o);
		cb = &s->toy.m.layers[1].k;
		layer = (uint32_t)s->toy.m.layers[1].offset;
		for (i = 0; i < 17; i++) {	/* K of both heads */
			uint64_t head = cb->n_groups * 64 * 2;

			memset((uint8_t *)s->mem[i] + layer, 7, head / 2);
			memset((uint8_t *)s->mem[i] + layer + head, 7, head / 2);
		}
		for (i = 0; i < 8; i++)
			((uint8_t *)s->mem[9])[layer + i * 64 + 33] = 200;
		for (lane = 0; lane < 16; lane++) {
			float *q = (float *)s->a.q.data + lane * s->a.q.stride_token;
			double norm = 0;

			s->row_pos[lane] = 17 * 64;
			for (ch = 0; ch < 64; ch++) {
				q[ch] = cb->f32[ch * 256 + 200] - cb->f32[ch * 256 + 7];
				norm += (double)(q[ch] * q[ch]);
			}
			for (ch = 0; ch < 64; ch++)
				q[ch] *= (float)(above / norm / (double)s->a.scale);
		}
		check_scene(s);
		scene_free(s);
	}
}
