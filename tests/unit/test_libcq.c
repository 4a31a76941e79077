// SPDX-License-Identifier: MIT
/* libcq with a daemon of the test's own. */
#include "tests/unit/test_libcq.h"
#include "client/internal.h"

static struct rig r;
static const struct shape small = SHAPE_SMALL;
static uint32_t ids[70000];

TEST(open_says_what_is_wrong)
{
	struct cq_open_opts o = { .sz = sizeof(o), .socket = "/nonexistent/cqd.sock" };
	struct cq_model *model = (void *)8;
	struct cq_ctx *ctx = (void *)8;

	CQ_FAILS(cq_open(&o, &ctx), -ENOENT);
	ASSERT_STRHAS(cq_last_error(), "/nonexistent/cqd.sock");
	ASSERT(ctx == (void *)8);
	o.flags = 1u << 30;
	CQ_FAILS(cq_open(&o, &ctx), -EINVAL);
	rig_start(&r, &small, NULL);
	o.flags = 0;
	o.socket = r.sock;
	o.tenant = "other";
	CQ_FAILS(cq_open(&o, &ctx), -EACCES);
	o.tenant = NULL;
	CQ_OK(cq_open(&o, &ctx));
	CQ_FAILS(cq_model_open(ctx, "none", NULL, &model), -ENOENT);
	ASSERT_STRHAS(cq_last_error(), "none");
	ASSERT(model == (void *)8);
	CQ_FAILS(cq_model_open(ctx, "", NULL, &model), -EINVAL);
	CQ_FAILS(cq_poll(ctx, 0), -EINVAL);
	ASSERT_GE(cq_event_fd(ctx), 0);
	cq_close(ctx);
	rig_stop(&r);
}

TEST(model_info)
{
	struct cq_model_info i;
	struct worker w;

	rig_start(&r, &small, NULL);
	worker_open(&w, &small, r.sock, 0, 0);
	i = worker_model(&w);
	ASSERT_EQ(i.n_layers, 2);
	ASSERT_EQ(i.n_heads, 4);
	ASSERT_EQ(i.n_kv_heads, 2);
	ASSERT_EQ(i.head_dim, 32);
	ASSERT_EQ(i.window, 128);
	ASSERT_STREQ(i.k, "4c8b");
	ASSERT_EQ(i.arena_bytes, 256 * rig_block(&small));
	ASSERT_EQ(i.arena_free, i.arena_bytes);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* What B reads of a page is what A's encoder made of it; sinks are exact. */
static void check_attached(const struct worker *a, struct cq_seq *sa,
			   const struct worker *b, struct cq_seq *sb, size_t n)
{
	size_t width = (size_t)a->m.kv_heads * a->m.dim, i, old = n - 128 - 64;
	uint32_t l, what;

	for (l = 0; l < a->m.layers; l++)
		for (what = 0; what < 2; what++) {
			float *x = worker_read(a, sa, l, n, what);
			float *y = worker_read(b, sb, l, n, what);
			float *own = rig_rows(a, ids, 0, n, what, l);

			ASSERT_MEMEQ(x, own, a->m.sinks * width * 4);
			ASSERT_MEMEQ(y, own, a->m.sinks * width * 4);
			ASSERT_MEMEQ(x, y, old * width * 4);	/* both read codes */
			ASSERT(memcmp(x, own, old * width * 4));
			for (i = (n - 64) * width; i < n * width; i++)
				ASSERT(x[i] == own[i]);	/* A's window */
			free(x);
			free(y);
			free(own);
		}
}

/* A model that was closed leaves nothing with cqd. */
TEST(models_opened_in_turn)
{
	struct cq_model_opts o = { .sz = sizeof(o), .device = CQ_DEVICE_HOST,
				   .arena_bytes = 8 * rig_block(&small) };
	struct worker w;
	int i;

	rig_start(&r, &small, NULL);
	worker_connect(&w, &small, r.sock, 0);
	for (i = 0; i < 200; i++) {
		CQ_OK(cq_model_open(w.ctx, "toy", &o, &w.model));
		cq_model_close(w.model);
	}
	cq_close(w.ctx);
	rig_stop(&r);
}

TEST(publish_and_attach)
{
	struct cq_seq *sa, *sb;
	struct cq_seq_info i;
	struct worker a, b;

	rig_ids(ids, 700, 1);
	rig_start(&r, &small, NULL);
	worker_open(&a, &small, r.sock, 0, 0);
	sa = worker_seq(&a, ids, 700);
	ASSERT_EQ(cq_seq_length(sa), 0);
	worker_grow(&a, sa, ids, 700);
	CQ_OK(cq_seal(sa, 5000));
	i = worker_info(sa);
	ASSERT_EQ(i.tokens, 700);
	ASSERT_EQ(i.matched, 0);
	ASSERT_EQ(i.sealed, 640);
	ASSERT_EQ(i.pages, 10);
	worker_open(&b, &small, r.sock, 0, 0);
	sb = worker_seq(&b, ids, 641);
	ASSERT_EQ(cq_seq_length(sb), 640);
	i = worker_info(sb);
	ASSERT_EQ(i.matched, 640);
	ASSERT_EQ(i.coded, 636);
	ASSERT_EQ(i.private_bytes, 0);
	check_attached(&a, sa, &b, sb, 640);
	cq_seq_close(sb);
	sb = worker_seq(&b, ids, 640);	/* a row is left to compute */
	ASSERT_EQ(cq_seq_length(sb), 576);
	cq_close(b.ctx);
	cq_close(a.ctx);
	rig_stop(&r);
}

/* fp16 of the last @window tokens, in whole pages; codes before that. */
TEST(window_is_what_the_model_says)
{
	struct cq_seq *x;
	struct worker w;
	uint32_t n;

	rig_ids(ids, 600, 1);
	rig_start(&r, &small, NULL);
	worker_open(&w, &small, r.sock, 0, 0);
	x = worker_seq(&w, NULL, 0);
	for (n = 1; n < 400; n += 3) {
		worker_grow(&w, x, ids, n);
		ASSERT_EQ(worker_info(x).coded, n < 192 ? 0 : (n - 128) / 64 * 64 - 4);
	}
	cq_close(w.ctx);
	rig_stop(&r);
}

/* --- fork and truncate --- */

static void expect_same(const struct worker *w, struct cq_seq *x, struct cq_seq *y, size_t n)
{
	size_t bytes = n * w->m.kv_heads * w->m.dim * 4;
	uint32_t l, what;

	for (l = 0; l < w->m.layers; l++)
		for (what = 0; what < 2; what++) {
			float *a = worker_read(w, x, l, n, what);
			float *b = worker_read(w, y, l, n, what);

			ASSERT_MEMEQ(a, b, bytes);
			free(a);
			free(b);
		}
}

TEST(fork_shares_and_parts)
{
	static uint32_t other[500];
	struct cq_seq *x, *y, *z;
	uint64_t before, after;
	struct worker w;
	int i;

	rig_ids(ids, 500, 1);
	memcpy(other, ids, sizeof(other));
	rig_ids(other + 300, 200, 9);
	rig_start(&r, &small, NULL);
	worker_open(&w, &small, r.sock, 0, 0);
	x = worker_seq(&w, ids, 500);
	worker_grow(&w, x, ids, 300);
	CQ_OK(cq_seal(x, 5000));
	before = worker_model(&w).arena_free;
	CQ_OK(cq_fork(x, NULL, &y));
	after = worker_model(&w).arena_free;
	ASSERT_LT(before - after, 2 * rig_block(&small));
	ASSERT_EQ(cq_seq_length(y), 300);
	expect_same(&w, x, y, 300);
	worker_grow(&w, x, ids, 500);
	worker_grow(&w, y, other, 500);
	z = worker_seq(&w, NULL, 0);
	worker_grow(&w, z, ids, 500);
	expect_same(&w, x, z, 500);
	cq_seq_close(z);
	z = worker_seq(&w, NULL, 0);
	worker_grow(&w, z, other, 500);
	expect_same(&w, y, z, 500);
	cq_seq_close(x);
	expect_same(&w, y, z, 500);
	CQ_OK(worker_append_layer(&w, z, other, 0, 0));
	cq_seq_close(y);
	cq_seq_close(z);
	/* Pages on their way come back when they are published. */
	for (i = 0; i < 1000 && worker_model(&w).arena_free < 256 * rig_block(&small); i++)
		usleep(5000);
	ASSERT_EQ(worker_model(&w).arena_free, worker_model(&w).arena_bytes);
	cq_close(w.ctx);
	rig_stop(&r);
}

TEST(fork_refuses_what_is_not_committed)
{
	struct cq_seq *x, *y;
	struct worker w;

	rig_ids(ids, 10, 1);
	rig_start(&r, &small, NULL);
	worker_open(&w, &small, r.sock, 0, 0);
	x = worker_seq(&w, ids, 10);
	CQ_OK(worker_append_layer(&w, x, ids, 3, 1));
	CQ_FAILS(cq_fork(x, NULL, &y), -EBUSY);
	CQ_FAILS(cq_commit(x, ids, 3), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "layer 0");
	CQ_OK(worker_append_layer(&w, x, ids, 3, 0));
	CQ_OK(cq_commit(x, ids, 2));
	CQ_OK(cq_truncate(x, 2));
	CQ_OK(cq_fork(x, NULL, &y));
	cq_close(w.ctx);
	rig_stop(&r);
}

/* Old codes stay as they are, whoever reads them; new tokens get their own. */
static void check_truncate(const struct shape *s)
{
	static const size_t cuts[] = { 1, 3, 40, 63, 64, 100, 128, 250, 299, 320, 383 };
	static uint32_t other[500];
	struct worker w, b;
	struct cq_seq *x, *y;
	size_t i, l, width = 2 * 32;

	rig_ids(ids, 500, 1);
	rig_start(&r, s, NULL);
	rig_publish(&r, ids, 500);
	for (i = 0; i < ARRAY_SIZE(cuts); i++) {
		size_t n = cuts[i];
		float *was, *now;

		worker_open(&w, s, r.sock, 0, 0);
		memcpy(other, ids, n * sizeof(*ids));
		rig_ids(other + n, 500 - n, 100 + (uint32_t)i);
		x = worker_seq(&w, ids, 400);
		ASSERT_EQ(cq_seq_length(x), 384);
		was = worker_read(&w, x, 1, 384, 0);
		CQ_OK(cq_truncate(x, n));
		ASSERT_EQ(cq_seq_length(x), n);
		now = worker_read(&w, x, 1, n, 0);
		ASSERT_MEMEQ(was, now, n * width * 4);
		free(now);
		worker_grow(&w, x, other, 500);
		now = worker_read(&w, x, 1, 500, 0);
		ASSERT_MEMEQ(was, now, n * width * 4);
		free(was);
		CQ_OK(cq_seal(x, 5000));
		/* Somebody else attaches to it: the same, from the shared page. */
		worker_open(&b, s, r.sock, 0, 0);
		y = worker_seq(&b, other, 500);
		ASSERT_EQ(cq_seq_length(y), 448);
		was = worker_read(&b, y, 1, 448, 0);
		ASSERT_MEMEQ(was, now, n * width * 4);
		l = 320;	/* both read codes up to there */
		ASSERT_MEMEQ(was, now, l * width * 4);
		free(was);
		free(now);
		cq_close(b.ctx);
		cq_close(w.ctx);
	}
	CQ_FAILS(cq_truncate(NULL, 0), -EINVAL);
	rig_stop(&r);
}

TEST(truncate_inside_coded_pages)
{
	check_truncate(&small);
}

TEST(truncate_inside_pages_of_wide_codes)
{
	struct shape s = small;

	s.k = "8c10b";
	check_truncate(&s);
	s.v = "8c10b";
	check_truncate(&s);
}

/* In the window truncate keeps fp16 of what it keeps. */
TEST(truncate_inside_the_window)
{
	struct cq_seq *x, *y;
	struct worker w;

	rig_ids(ids, 300, 1);
	rig_start(&r, &small, NULL);
	worker_open(&w, &small, r.sock, 0, 0);
	x = worker_seq(&w, ids, 300);
	worker_grow(&w, x, ids, 200);
	y = worker_seq(&w, NULL, 0);
	worker_grow(&w, y, ids, 200);
	CQ_FAILS(cq_truncate(x, 201), -EINVAL);
	CQ_OK(cq_truncate(x, 150));
	expect_same(&w, x, y, 150);
	worker_grow(&w, x, ids, 200);
	expect_same(&w, x, y, 200);
	CQ_OK(cq_truncate(x, 0));
	ASSERT_EQ(cq_seq_length(x), 0);
	worker_grow(&w, x, ids, 300);
	worker_grow(&w, y, ids, 300);
	expect_same(&w, x, y, 300);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* --- limits --- */

TEST(append_names_what_is_bad)
{
	struct cq_view v;
	struct cq_seq *x;
	struct worker w;
	float *k;

	rig_ids(ids, 10, 1);
	rig_start(&r, &small, NULL);
	worker_open(&w, &small, r.sock, 0, 0);
	x = worker_seq(&w, ids, 10);
	k = rig_rows(&w, ids, 0, 10, 0, 0);
	v = rig_view(&w, k, 2);
	k[(7 * 2 + 1) * 32 + 5] = NAN;
	CQ_FAILS(cq_append(x, 1, &v, &v, 10, NULL), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "layer 1, head 1, token 7, channel 5");
	CQ_FAILS(cq_append(x, 2, &v, &v, 1, NULL), -EINVAL);
	CQ_FAILS(cq_append(x, 0, &v, NULL, 1, NULL), -EINVAL);
	CQ_FAILS(cq_append(x, 0, &v, &v, 9000, NULL), -ERANGE);
	CQ_OK(cq_append(x, 0, &v, &v, 7, NULL));
	CQ_FAILS(cq_commit(x, ids, 1), -EINVAL);
	free(k);
	cq_close(w.ctx);
	rig_stop(&r);
}

TEST(arena_full_changes_nothing)
{
	struct cq_seq_opts hidden = { .sz = sizeof(hidden), .flags = CQ_SEQ_PRIVATE };
	struct cq_batch *batch;
	struct cq_seq *x, *y;
	uint32_t rows = 64;
	struct worker w;
	size_t len;

	rig_ids(ids, 4000, 1);
	rig_start(&r, &small, NULL);
	worker_open(&w, &small, r.sock, 0, 8);
	CQ_OK(cq_batch_new(w.model, 1, 64, 0, &batch));
	CQ_OK(cq_seq_open(w.model, ids, 4000, &hidden, &x));
	CQ_FAILS(worker_try_grow(&w, x, ids, 4000, 16), -ENOBUFS);
	len = cq_seq_length(x);
	ASSERT_GT(len, 64 * 8);		/* codes take less room than fp16 */
	CQ_FAILS(cq_step(batch, &x, &rows, 1), -ENOBUFS);
	ASSERT_EQ(cq_seq_length(x), len);
	ASSERT_EQ(worker_info(x).sealed, 0);
	CQ_FAILS(cq_truncate(x, len - 200), -ENOBUFS);
	ASSERT_EQ(cq_seq_length(x), len);
	CQ_OK(cq_seq_open(w.model, NULL, 0, NULL, &y));
	CQ_FAILS(worker_append_layer(&w, y, ids, 64, 0), -ENOBUFS);
	cq_seq_close(x);
	worker_grow(&w, y, ids, 64);
	cq_close(w.ctx);
	rig_stop(&r);
}

TEST(step_checks)
{
	uint32_t rows[3] = { 1, 1, 1 };
	struct cq_seq *seqs[3];
	struct cq_batch *b;
	struct worker w;
	int i;

	rig_ids(ids, 300, 1);
	rig_start(&r, &small, NULL);
	worker_open(&w, &small, r.sock, 0, 0);
	CQ_FAILS(cq_batch_new(w.model, 0, 4, 128, &b), -EINVAL);
	CQ_OK(cq_batch_new(w.model, 2, 4, 128, &b));
	seqs[0] = worker_seq(&w, NULL, 0);
	seqs[1] = seqs[0];
	CQ_FAILS(cq_step(b, seqs, rows, 2), -EINVAL);
	seqs[1] = worker_seq(&w, NULL, 0);
	CQ_OK(cq_step(b, seqs, rows, 2));
	CQ_FAILS(cq_step(b, seqs, rows, 3), -ENOSPC);
	rows[0] = 4;
	CQ_FAILS(cq_step(b, seqs, rows, 2), -ENOSPC);
	rows[0] = 1;
	worker_grow(&w, seqs[0], ids, 128);
	CQ_FAILS(cq_step(b, seqs, rows, 2), -ENOSPC);
	cq_seq_close(seqs[0]);
	cq_batch_free(b);
	cq_batch_free(NULL);
	/* A batch where another one was: sequences do not take it for that one. */
	for (i = 0; i < 64; i++) {
		CQ_OK(cq_batch_new(w.model, 2, 4, 128, &b));
		CQ_OK(cq_step(b, &seqs[1], rows, 1));
		cq_batch_free(b);
	}
	cq_close(w.ctx);
	rig_stop(&r);
}

/* --- keys that come rotated --- */

/* Rotates [@n][2][32] as the model does, token 0 at 1000. */
static void rotate_rows(const struct shape *shape, float *k, uint32_t n)
{
	double out[32];
	uint32_t i, c;

	for (i = 0; i < 2 * n; i++) {
		ref_rotate(shape, k + i * 32, out, 1000 + i / 2);
		for (c = 0; c < 32; c++)
			k[i * 32 + c] = (float)out[c];
	}
}

static void rotation_undone(const struct shape *shape)
{
	struct cq_append_opts o = { .sz = sizeof(o), .flags = CQ_APPEND_ROTATED,
				    .device = CQ_DEVICE_HOST };
	struct cq_seq_opts so = { .sz = sizeof(so), .position = 1000 };
	float *k, *v, *back;
	struct cq_view kv, vv;
	struct worker w;
	struct cq_seq *x;
	uint32_t l, c;

	rig_ids(ids, 50, 1);
	rig_start(&r, shape, NULL);
	worker_open(&w, shape, r.sock, 0, 0);
	CQ_OK(cq_seq_open(w.model, NULL, 0, &so, &x));
	k = rig_rows(&w, ids, 0, 50, 0, 0);
	v = rig_rows(&w, ids, 0, 50, 1, 0);
	kv = rig_view(&w, k, 2);
	vv = rig_view(&w, v, 2);
	rotate_rows(shape, k, 50);
	for (l = 0; l < 2; l++)
		CQ_OK(cq_append(x, l, &kv, &vv, 50, &o));
	CQ_OK(cq_commit(x, ids, 50));
	back = worker_read(&w, x, 0, 50, 0);
	free(k);
	k = rig_rows(&w, ids, 0, 50, 0, 0);
	for (c = 0; c < 50 * 2 * 32; c++)
		ASSERT_NEAR(back[c], k[c], 2e-3);
	free(k);
	free(v);
	free(back);
	cq_close(w.ctx);
	rig_stop(&r);
}

TEST(rotation_is_undone)
{
	struct shape s = small;

	rotation_undone(&s);
	s.scaling = ref_scaling(CQK_SCALING_LLAMA3, 100);
	rotation_undone(&s);
	s.scaling = ref_scaling(CQK_SCALING_YARN, 100);
	s.pairs = CQK_PAIRS_INTERLEAVED;
	s.rope_dim = 24;
	rotation_undone(&s);
}

/* The caller's channel, though it is stored elsewhere, and the pair is rotated. */
TEST(a_bad_channel_is_named_as_it_came)
{
	struct cq_append_opts o = { .sz = sizeof(o), .device = CQ_DEVICE_HOST };
	struct shape s = small;
	struct cq_view kv, vv;
	struct worker w;
	struct cq_seq *x;
	float *k, *v;

	s.pairs = CQK_PAIRS_INTERLEAVED;
	rig_start(&r, &s, NULL);
	worker_open(&w, &s, r.sock, 0, 0);
	x = worker_seq(&w, NULL, 0);
	rig_ids(ids, 50, 1);
	k = rig_rows(&w, ids, 0, 2, 0, 0);
	v = rig_rows(&w, ids, 0, 2, 1, 0);
	kv = rig_view(&w, k, 2);
	vv = rig_view(&w, v, 2);
	k[(1 * 2 + 1) * 32 + 5] = NAN;
	CQ_FAILS(cq_append(x, 0, &kv, &vv, 2, &o), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "head 1, token 1, channel 5 ");
	o.flags = CQ_APPEND_ROTATED;
	CQ_FAILS(cq_append(x, 0, &kv, &vv, 2, &o), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "head 1, token 1, channel 5 ");
	/* halves, but not what the rotation back makes of them */
	k[(1 * 2 + 1) * 32 + 5] = 60000;
	k[(1 * 2 + 1) * 32 + 4] = -60000;
	CQ_FAILS(cq_append(x, 0, &kv, &vv, 2, &o), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "head 1, token 1, channel 5 ");
	free(k);
	free(v);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* --- shards --- */

TEST(shard_of_layers_and_heads)
{
	struct cq_model_opts o = { .sz = sizeof(o), .device = CQ_DEVICE_HOST,
				   .layer_begin = 1, .layer_end = 2,
				   .head_begin = 1, .head_end = 2 };
	struct cq_seq *part, *whole;
	size_t t;
	struct worker w, s;
	float *a, *b;

	rig_ids(ids, 400, 1);
	rig_start(&r, &small, NULL);
	worker_open(&w, &small, r.sock, 0, 0);
	whole = worker_seq(&w, ids, 400);
	worker_grow(&w, whole, ids, 400);
	worker_connect(&s, &small, r.sock, 0);
	s.m.layers = s.m.kv_heads = 1;
	s.m.heads = 2;
	s.layer0 = s.head0 = 1;
	CQ_OK(cq_model_open(s.ctx, "toy", &o, &s.model));
	part = worker_seq(&s, ids, 400);
	ASSERT_EQ(cq_seq_length(part), 0);	/* keys name the shard */
	worker_grow(&s, part, ids, 400);
	CQ_OK(cq_seal(part, 5000));
	cq_seq_close(part);
	part = worker_seq(&s, ids, 400);
	ASSERT_EQ(cq_seq_length(part), 384);
	a = worker_read(&w, whole, 1, 256, 1);
	b = worker_read(&s, part, 0, 256, 1);
	for (t = 0; t < 256; t++)
		ASSERT_MEMEQ(a + (t * 2 + 1) * 32, b + t * 32, 128);
	free(a);
	free(b);
	o.head_end = 9;
	CQ_FAILS(cq_model_open(s.ctx, "toy", &o, &s.model), -EINVAL);
	cq_close(s.ctx);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* --- without the own thread --- */

TEST(poll_mode)
{
	struct cq_seq *x, *y;
	struct worker w;
	int i;

	rig_ids(ids, 400, 1);
	rig_start(&r, &small, NULL);
	worker_open(&w, &small, r.sock, CQ_OPEN_POLL, 0);
	x = worker_seq(&w, ids, 400);
	worker_grow(&w, x, ids, 200);
	for (i = 0; i < 1000 && worker_info(x).sealed < 192; i++)
		ASSERT_GE(cq_poll(w.ctx, 10), 0);
	ASSERT_EQ(worker_info(x).sealed, 192);
	worker_grow(&w, x, ids, 400);
	CQ_OK(cq_seal(x, 5000));
	y = worker_seq(&w, ids, 400);
	ASSERT_EQ(cq_seq_length(y), 384);
	ASSERT_EQ(cq_poll(w.ctx, 0) >= 0, 1);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* --- a daemon that is away --- */

TEST_LIMIT(daemon_stopped, 60)
{
	struct cq_seq *x, *y;
	struct worker w;
	size_t len;

	rig_ids(ids, 8000, 1);
	rig_start(&r, &small, NULL);
	worker_open(&w, &small, r.sock, 0, 12);
	x = worker_seq(&w, ids, 8000);
	worker_grow(&w, x, ids, 100);
	ASSERT_SYS(kill(r.cqd, SIGSTOP));
	CQ_FAILS(worker_try_grow(&w, x, ids, 8000, 16), -ENOBUFS);
	len = cq_seq_length(x);
	ASSERT_GT(len, 12 * 64);
	CQ_FAILS(cq_seal(x, 50), -ETIMEDOUT);
	ASSERT_SYS(kill(r.cqd, SIGCONT));
	CQ_OK(cq_seal(x, 10000));
	worker_grow(&w, x, ids, len + 500);
	CQ_OK(cq_seal(x, 10000));
	y = worker_seq(&w, NULL, 0);
	worker_grow(&w, y, ids, 640);
	expect_same(&w, x, y, 512);	/* nothing lost, nothing mixed up */
	cq_seq_close(y);
	y = worker_seq(&w, ids, len + 500);
	ASSERT_GE(cq_seq_length(y), len);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* Pages of a daemon that is gone stay readable; new ones go to the next. */
TEST_LIMIT(daemon_killed, 60)
{
	static uint32_t other[700];
	struct cq_seq *x, *y, *z;
	struct worker w;
	int i;

	rig_ids(ids, 700, 1);
	rig_ids(other, 700, 2);
	rig_start(&r, &small, NULL);
	worker_open(&w, &small, r.sock, 0, 0);
	x = worker_seq(&w, ids, 700);
	worker_grow(&w, x, ids, 300);
	CQ_OK(cq_seal(x, 5000));
	rig_kill(&r);
	y = worker_seq(&w, ids, 700);
	ASSERT_EQ(cq_seq_length(y), 0);
	worker_grow(&w, y, other, 300);	/* ordered while nobody is there */
	worker_grow(&w, x, ids, 500);
	CQ_FAILS(cq_seal(y, 100), -ENOTCONN);
	rig_run(&r);
	for (i = 0; i < 500 && worker_info(y).sealed < 256; i++)
		usleep(10000);
	ASSERT_EQ(worker_info(y).sealed, 256);
	z = worker_seq(&w, other, 300);
	ASSERT_EQ(cq_seq_length(z), 256);
	cq_seq_close(z);
	/* Its parents are with the old daemon: private, and still right. */
	ASSERT(cq_seal(x, 5000) < 0);
	z = worker_seq(&w, NULL, 0);
	worker_grow(&w, z, ids, 500);
	expect_same(&w, x, z, 500);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* Nobody waits for the pages of closed sequences while nobody takes them. */
TEST_LIMIT(closed_sequences_leave_the_arena, 60)
{
	struct cq_seq *x, *y;
	struct worker w;
	int i;

	rig_ids(ids, 700, 1);
	rig_start(&r, &small, NULL);
	worker_open(&w, &small, r.sock, 0, 16);
	rig_kill(&r);
	x = worker_seq(&w, NULL, 0);
	worker_grow(&w, x, ids, 300);
	CQ_OK(cq_fork(x, NULL, &y));
	cq_seq_close(x);
	usleep(100000);
	ASSERT_EQ(worker_info(y).pages, 4);
	ASSERT_EQ(y->ents[3].pg->seal_err, 0);
	cq_seq_close(y);
	for (i = 0; i < 1000 && worker_model(&w).arena_free < 16 * rig_block(&small); i++)
		usleep(5000);
	ASSERT_EQ(worker_model(&w).arena_free, worker_model(&w).arena_bytes);
	cq_close(w.ctx);
}

/* --- fork() --- */

static void forked_child(struct worker *w, struct cq_seq *x, struct cq_batch *b)
{
	struct cq_seq_info i = { .sz = sizeof(i) };
	struct worker own;
	struct cq_seq *y;

	CQ_FAILS(worker_append_layer(w, x, ids, 1, 0), -EOWNERDEAD);
	CQ_FAILS(cq_commit(x, ids, 1), -EOWNERDEAD);
	CQ_FAILS(cq_seq_open(w->model, ids, 100, NULL, &y), -EOWNERDEAD);
	CQ_FAILS(cq_step(b, NULL, NULL, 0), -EOWNERDEAD);
	CQ_FAILS(cq_seq_get_info(x, &i), -EOWNERDEAD);
	CQ_FAILS(cq_event_fd(w->ctx), -EOWNERDEAD);
	cq_seq_close(x);
	cq_batch_free(b);
	cq_model_close(w->model);
	cq_close(w->ctx);
	/* without a thread: TSan allows none after a fork */
	worker_open(&own, &small, r.sock, CQ_OPEN_POLL, 0);
	y = worker_seq(&own, ids, 200);
	ASSERT_EQ(cq_seq_length(y), 192);
	cq_close(own.ctx);
	_exit(0);
}

TEST(forked_child_opens_anew)
{
	struct cq_batch *b;
	struct cq_seq *x;
	struct worker w;
	int status;
	pid_t pid;

	rig_ids(ids, 300, 1);
	rig_start(&r, &small, NULL);
	worker_open(&w, &small, r.sock, 0, 0);
	CQ_OK(cq_batch_new(w.model, 1, 1, 0, &b));
	x = worker_seq(&w, ids, 200);
	worker_grow(&w, x, ids, 200);
	CQ_OK(cq_seal(x, 5000));
	fflush(stdout);
	pid = fork();
	ASSERT_SYS(pid);
	if (!pid)
		forked_child(&w, x, b);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
	worker_grow(&w, x, ids, 300);
	CQ_OK(cq_seal(x, 5000));
	cq_close(w.ctx);
	rig_stop(&r);
}

/* --- long prefixes --- */

TEST_LIMIT(lookup_in_rounds, 60)
{
	struct shape s = small;
	struct cq_seq *x, *y;
	struct worker w;

	s.layers = s.kv_heads = s.heads = 1;
	s.dim = 8;
	s.sinks = s.window = 0;
	s.max_position = 70000;
	rig_ids(ids, 70000, 1);
	rig_start(&r, &s, NULL);
	worker_open(&w, &s, r.sock, 0, 0);
	x = worker_seq(&w, NULL, 0);
	while (cq_seq_length(x) < 67000) {
		CQ_OK(worker_try_grow(&w, x, ids, MIN(cq_seq_length(x) + 2000, (size_t)67000),
				      500));
		CQ_OK(cq_seal(x, 10000));
	}
	y = worker_seq(&w, ids, 70000);
	ASSERT_EQ(cq_seq_length(y), 66944);
	expect_same(&w, x, y, 66944);
	cq_close(w.ctx);
	rig_stop(&r);
}
