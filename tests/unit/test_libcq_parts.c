// SPDX-License-Identifier: MIT
/* Parts of libcq that need no daemon: arena, ring, options, views, shards. */
#include "tests/unit/test_libcq.h"
#include "client/internal.h"

#define BLOCK 8192
#define CHUNK 1000	/* 8 to a block once rounded up to 1024 */

static void arena(struct cqc_arena *a, uint32_t units)
{
	struct cq_err err = { "" };

	memset(a, 0, sizeof(*a));
	if (cqc_arena_init(a, (uint64_t)units * BLOCK, BLOCK, CHUNK, &err))
		FAIL("%s", err.text);
	ASSERT_EQ(a->n_units, units);
	ASSERT_EQ(a->per_unit, 8);
}

TEST(arena_is_reserved_and_sealed)
{
	struct cqc_arena a;
	struct stat st;

	arena(&a, 16);
	ASSERT_SYS(fstat(a.fd, &st));
	ASSERT_EQ(st.st_size, 16 * BLOCK);
	ASSERT_GE(st.st_blocks * 512, 16 * BLOCK);
	ASSERT_EQ(fcntl(a.fd, F_GET_SEALS) & (F_SEAL_SHRINK | F_SEAL_GROW),
		  F_SEAL_SHRINK | F_SEAL_GROW);
	ASSERT(ftruncate(a.fd, 4096) < 0);
	ASSERT(fcntl(a.fd, F_GETFD) & FD_CLOEXEC);
	cqc_arena_fini(&a);
	cqc_arena_fini(&a);
}

TEST(arena_refuses_sizes)
{
	struct cqc_arena a = { 0 };
	struct cq_err err = { "" };

	ASSERT_EQ(cqc_arena_init(&a, 3 * BLOCK, BLOCK, CHUNK, &err), -EINVAL);
	ASSERT_STRHAS(err.text, "arena of 24576 bytes");
}

TEST(arena_blocks_are_counted)
{
	struct cqc_arena a;
	uint32_t b, c;

	arena(&a, 4);
	b = cqc_block_new(&a);
	ASSERT_NE(b, CQC_NONE);
	ASSERT_EQ(a.free_bytes, 3 * BLOCK);
	cqc_block_get(&a, b);
	cqc_block_put(&a, b);
	ASSERT_EQ(a.free_bytes, 3 * BLOCK);
	ASSERT_NE(cqc_block_new(&a), CQC_NONE);
	ASSERT_NE(cqc_block_new(&a), CQC_NONE);
	c = cqc_block_new(&a);
	ASSERT_NE(c, CQC_NONE);
	ASSERT_EQ(cqc_block_new(&a), CQC_NONE);
	ASSERT_EQ(cqc_chunk_new(&a), CQC_NONE);
	cqc_block_put(&a, b);
	ASSERT_EQ(cqc_block_new(&a), b);
	cqc_arena_fini(&a);
}

/* Random takes and gives: nothing is handed out twice, all comes back. */
TEST(arena_never_overlaps)
{
	uint32_t held[64], kind[64], n = 0, i;
	struct cqc_arena a;
	uint64_t rng = 3;
	int round;

	arena(&a, 8);
	for (round = 0; round < 20000; round++) {
		rng = rig_mix(rng);
		if (n < 64 && rng % 2) {
			kind[n] = (uint32_t)(rng >> 8) % 4 == 0;
			held[n] = kind[n] ? cqc_block_new(&a) : cqc_chunk_new(&a);
			if (held[n] == CQC_NONE)
				continue;
			memset(kind[n] ? (uint8_t *)cqc_block_ptr(&a, held[n]) :
			       cqc_chunk_ptr(&a, held[n]), (int)n + 1,
			       kind[n] ? BLOCK : CHUNK);
			n++;
		} else if (n) {
			n--;
			for (i = 0; i < CHUNK; i++)
				ASSERT_EQ((kind[n] ? (uint8_t *)cqc_block_ptr(&a, held[n]) :
					   cqc_chunk_ptr(&a, held[n]))[i], n + 1);
			if (kind[n])
				cqc_block_put(&a, held[n]);
			else
				cqc_chunk_free(&a, held[n]);
		}
	}
	while (n--)
		if (kind[n])
			cqc_block_put(&a, held[n]);
		else
			cqc_chunk_free(&a, held[n]);
	ASSERT_EQ(a.free_bytes, 8 * BLOCK);
	ASSERT_EQ(a.partial, CQC_NONE);
	for (i = 0; i < 8; i++)
		ASSERT_NE(cqc_block_new(&a), CQC_NONE);
	cqc_arena_fini(&a);
}

/* --- ring --- */

static void *consumer(void *arg)
{
	struct cqc_ring *r = arg;
	struct cqc_order o;
	uint32_t want = 0;

	while (want < 200000)
		if (cqc_ring_pop(r, &o)) {
			ASSERT_EQ(o.epoch, want);
			ASSERT_EQ(o.page.slot, ~want);
			want++;
		} else {
			sched_yield();
		}
	return NULL;
}

TEST(ring_keeps_order_across_threads)
{
	static struct cqc_ring r;	/* a sanitizer's stacks align less than it asks for */
	struct cqc_order o = { .op = CQC_OP_RELEASE };
	pthread_t thread;
	uint32_t i = 0;

	ASSERT_EQ(cqc_ring_init(&r, 100), 0);
	ASSERT_EQ(r.mask, 127);
	ASSERT_EQ(pthread_create(&thread, NULL, consumer, &r), 0);
	while (i < 200000) {
		o.epoch = i;
		o.page.slot = ~i;
		if (cqc_ring_push(&r, &o))
			i++;
		else
			sched_yield();
	}
	pthread_join(thread, NULL);
	ASSERT(!cqc_ring_pop(&r, &o));
	cqc_ring_free(&r);
}

TEST(ring_says_when_it_is_full)
{
	struct cqc_ring r = { 0 };
	struct cqc_order o = { .op = CQC_OP_RELEASE };
	int i;

	ASSERT_EQ(cqc_ring_init(&r, 4), 0);
	for (i = 0; i < 4; i++)
		ASSERT(cqc_ring_push(&r, &o));
	ASSERT(!cqc_ring_push(&r, &o));
	ASSERT(cqc_ring_pop(&r, &o));
	ASSERT(cqc_ring_push(&r, &o));
	cqc_ring_free(&r);
}

/* --- options --- */

TEST(options_of_other_versions)
{
	struct {
		struct cq_seq_opts o;
		uint8_t tail[16];
	} newer = { .o = { .sz = sizeof(newer), .position = 7 } };
	struct cq_seq_opts out, older = { .sz = offsetof(struct cq_seq_opts, extra),
					  .position = 5, .extra_len = 99 };

	ASSERT_EQ(cqc_opts_in(&out, sizeof(out), &newer, "x"), 0);
	ASSERT_EQ(out.position, 7);
	newer.tail[15] = 1;
	ASSERT_EQ(cqc_opts_in(&out, sizeof(out), &newer, "x"), -E2BIG);
	ASSERT_STRHAS(cq_last_error(), "newer libcq");
	ASSERT_EQ(cqc_opts_in(&out, sizeof(out), &older, "x"), 0);
	ASSERT_EQ(out.position, 5);
	ASSERT_EQ(out.extra_len, 0);
	older.sz = 0;
	ASSERT_EQ(cqc_opts_in(&out, sizeof(out), &older, "x"), -EINVAL);
	ASSERT_EQ(cqc_opts_in(&out, sizeof(out), NULL, "x"), 0);
	ASSERT_EQ(out.position, 0);
}

TEST(infos_of_other_versions)
{
	struct cq_seq_info in = { .tokens = 1, .matched = 2, .private_bytes = 3 };
	struct {
		struct cq_seq_info i;
		uint64_t tail;
	} newer = { .i.sz = sizeof(newer), .tail = 9 };
	struct cq_seq_info older = { .sz = offsetof(struct cq_seq_info, sealed),
				     .private_bytes = 77 };

	ASSERT_EQ(cqc_opts_out(&newer, &in, sizeof(in), "x"), 0);
	ASSERT_EQ(newer.i.sz, sizeof(newer));
	ASSERT_EQ(newer.i.private_bytes, 3);
	ASSERT_EQ(newer.tail, 0);
	ASSERT_EQ(cqc_opts_out(&older, &in, sizeof(in), "x"), 0);
	ASSERT_EQ(older.matched, 2);
	ASSERT_EQ(older.private_bytes, 77);
	ASSERT_EQ(cqc_opts_out(NULL, &in, sizeof(in), "x"), -EINVAL);
}

/* --- views --- */

TEST(views_of_every_type)
{
	/* [2 tokens][3 heads][4 channels], read as HND: strides say so */
	float f[24], out[4];
	uint16_t h[24], b[24], half[4];
	struct cq_view v = { .data = f, .dtype = CQ_F32, .stride_token = 4, .stride_head = 8 };
	int i;

	for (i = 0; i < 24; i++) {
		f[i] = (float)i / 4;
		h[i] = cqk_f32_to_f16(f[i]);
		b[i] = cqk_f32_to_bf16(f[i]);
	}
	for (i = 0; i < 3; i++) {
		v.dtype = (uint32_t)i;
		v.data = i == CQ_F32 ? (void *)f : i == CQ_F16 ? (void *)h : (void *)b;
		ASSERT_EQ(cqc_view_check(&v, 2, 3, 4, "k"), 0);
		cqk_row_to_f32(&v, 1, 2, 4, out);
		ASSERT_EQ(out[3] * 4, 23);
		ASSERT_EQ(cqc_row_to_f16(&v, 1, 1, 4, half), -1);
		ASSERT_EQ(half[0], h[12]);
		out[0] = 100;
		cqk_row_from_f32(&v, 0, 1, 4, out);
		cqk_row_to_f32(&v, 0, 1, 4, out);
		ASSERT_EQ(out[0], 100);
	}
	v.dtype = 3;
	ASSERT_EQ(cqc_view_check(&v, 2, 3, 4, "k"), -EINVAL);
	v.dtype = CQ_F32;
	v.data = (char *)f + 1;
	ASSERT_EQ(cqc_view_check(&v, 2, 3, 4, "k"), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "aligned");
	ASSERT_EQ(cqc_view_check(NULL, 2, 3, 4, "k"), -EINVAL);
}

TEST(views_find_what_is_not_a_number)
{
	float f[4] = { 1, 65519, -65519, 0 };
	uint16_t h[4] = { 0, 0x7bff, 0x7c00, 0 }, out[4];
	struct cq_view v = { .data = f, .dtype = CQ_F32 };

	ASSERT_EQ(cqc_row_to_f16(&v, 0, 0, 4, out), -1);
	ASSERT_EQ(out[1], 0x7bff);
	f[2] = 65520;
	ASSERT_EQ(cqc_row_to_f16(&v, 0, 0, 4, out), 2);
	f[1] = NAN;
	ASSERT_EQ(cqc_row_to_f16(&v, 0, 0, 4, out), 1);
	f[0] = -INFINITY;
	ASSERT_EQ(cqc_row_to_f16(&v, 0, 0, 4, out), 0);
	v.data = h;
	v.dtype = CQ_F16;
	ASSERT_EQ(cqc_row_to_f16(&v, 0, 0, 4, out), 2);
	h[2] = 0x7f80;		/* Inf in bf16 */
	v.dtype = CQ_BF16;
	ASSERT_EQ(cqc_row_to_f16(&v, 0, 0, 4, out), 1);
	h[1] = 0;
	ASSERT_EQ(cqc_row_to_f16(&v, 0, 0, 4, out), 2);
}

/* --- shards --- */

/* A shard encodes and decodes as the whole model does at the same place. */
static void check_shard(struct shape s)
{
	struct cqp_shard range = { .layer_begin = 1, .layer_end = 2,
				   .head_begin = 1, .head_end = 2 };
	const struct cqk_ops *ops = cqk_select("portable");
	struct cqk_model *whole, m;
	uint8_t a[64 * 64], b[64 * 64];
	uint16_t x[64 * 32];
	float fa[32], fb[32];
	size_t size, i;
	void *image = rig_image(&s, &size);

	ASSERT_OK(cqk_model_parse(image, size, &whole, NULL));
	ASSERT_EQ(cqc_shard_make(whole, &range, &m), 0);
	ASSERT_EQ(m.geom.n_layers, 1);
	ASSERT_EQ(m.geom.n_heads, 2);
	ASSERT_EQ(m.geom.n_kv_heads, 1);
	ASSERT_EQ(m.payload * 4, whole->payload);
	ASSERT_EQ(m.f16_block * 4, whole->f16_block);
	for (i = 0; i < ARRAY_SIZE(x); i++)
		x[i] = cqk_f32_to_f16(rig_value(i));
	ops->encode(&whole->layers[1].v, 1, x, 0, 64, a);
	ops->encode(&m.layers[0].v, 0, x, 0, 64, b);
	ASSERT_MEMEQ(a, b, m.layers[0].v_bytes);
	ops->decode(&whole->layers[1].v, 1, a, 9, 1, fa);
	ops->decode(&m.layers[0].v, 0, a, 9, 1, fb);
	ASSERT_MEMEQ(fa, fb, sizeof(fa));
	cqc_shard_free(&m);
	range.head_end = 3;
	ASSERT_EQ(cqc_shard_make(whole, &range, &m), -EINVAL);
	cqk_model_free(whole);
	free(image);
}

TEST(shards_are_cut_out_of_a_model)
{
	struct shape s = SHAPE_SMALL;

	check_shard(s);
	s.k = "8c10b";
	s.v = "8c10b";
	check_shard(s);
}
