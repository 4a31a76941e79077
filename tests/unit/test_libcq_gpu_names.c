// SPDX-License-Identifier: MIT
/*
 * What the host sees of sequences on the emulated GPU: rows that are read back, and
 * tails that go from one worker to another, whose next rows are the same bit by bit.
 */
#include "tests/unit/test_libcq_gpu.h"
#include "tests/unit/test_libcq_tail.h"
#include "client/gpu.h"

static struct rig r;
static const struct shape small = GPU_SHAPE;
static uint32_t ids[1000];

static void begin_as(const struct shape *shape)
{
	gpu_env();
	rig_ids(ids, 1000, 1);
	rig_start(&r, shape, GPU_CONF);
}

static void begin(void)
{
	begin_as(&small);
}

/* --- reading --- */

static void same_rows(const struct worker *w, struct cq_seq *a, const struct worker *h,
		      struct cq_seq *b)
{
	size_t n = cq_seq_length(a), bytes = n * w->m.kv_heads * w->m.dim * sizeof(float);
	uint32_t l, what;

	ASSERT_EQ(cq_seq_length(b), n);
	for (l = 0; l < w->m.layers; l++)
		for (what = 0; what < 2; what++) {
			float *x = worker_read(w, a, l, n, what);
			float *y = worker_read(h, b, l, n, what);

			ASSERT_MEMEQ(x, y, bytes);
			free(x);
			free(y);
		}
}

/* Sinks, codes, window and the part-filled page are what the host's worker has. */
static void reads_as_the_host(const struct shape *shape)
{
	static const size_t n[] = { 1, 64, 100, 333 };
	struct cq_seq *a, *b;
	struct worker w, h;
	unsigned int i;

	begin_as(shape);
	worker_gpu_open(&w, shape, r.sock, 0, 32);
	worker_open(&h, shape, r.sock, 0, 32);
	a = worker_seq(&w, NULL, 0);
	b = worker_seq(&h, NULL, 0);
	for (i = 0; i < ARRAY_SIZE(n); i++) {
		gpu_grow(&w, a, ids, n[i]);
		worker_grow(&h, b, ids, n[i]);
		same_rows(&w, a, &h, b);
	}
	CQ_OK(cq_seal(a, 5000));
	CQ_OK(cq_seal(b, 5000));
	same_rows(&w, a, &h, b);
	CQ_OK(cq_truncate(a, 40));
	CQ_OK(cq_truncate(b, 40));
	same_rows(&w, a, &h, b);
	cq_close(w.ctx);
	cq_close(h.ctx);
	rig_stop(&r);
}

TEST(read_back)
{
	reads_as_the_host(&small);
}

TEST(read_rotated_interleaved)
{
	struct shape s = small;

	s.keys = CQK_KEYS_ROTATED;
	s.pairs = CQK_PAIRS_INTERLEAVED;
	reads_as_the_host(&s);
}

TEST(read_plain_halves)
{
	struct shape s = small;

	s.v = "fp16";
	s.sinks = 0;
	reads_as_the_host(&s);
}

TEST(read_wide_codes)
{
	struct shape s = small;

	s.k = "8c10b";
	reads_as_the_host(&s);
	s.v = "8c10b";
	s.window = 0;
	reads_as_the_host(&s);
}

/* Some tokens of some pages, keys alone; what is not asked for is not touched. */
TEST(read_a_part)
{
	size_t width = (size_t)small.kv_heads * small.dim;
	float *all, some[100 * 2 * 64] = { 0 };
	struct cq_view k;
	struct cq_seq *seq;
	struct worker w;

	begin();
	worker_gpu_open(&w, &small, r.sock, 0, 32);
	seq = worker_seq(&w, NULL, 0);
	gpu_grow(&w, seq, ids, 300);
	all = worker_read(&w, seq, 1, 300, 0);
	k = rig_view(&w, some, small.kv_heads);
	CQ_OK(cq_read(seq, 1, 50, 99, &k, NULL));
	ASSERT_MEMEQ(some, all + 50 * width, 99 * width * sizeof(*all));
	ASSERT(some[99 * width] == 0);
	CQ_OK(cq_read(seq, 1, 300, 0, &k, &k));
	CQ_FAILS(cq_read(seq, 1, 299, 2, &k, &k), -EINVAL);
	free(all);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* --- tails --- */

static void same_next(const struct worker *a, struct cq_seq *x, const struct worker *b,
		      struct cq_seq *y)
{
	size_t n = (size_t)small.heads * small.dim;
	float o[2][4 * 64], lse[2][4];
	struct cq_batch *ba, *bb;

	ASSERT_LE(n, ARRAY_SIZE(o[0]));
	CQ_OK(cq_batch_new(a->model, 1, 1, 0, &ba));
	CQ_OK(cq_batch_new(b->model, 1, 1, 0, &bb));
	CQ_OK(attend(a, ba, x, ids, 1, true, o[0], lse[0]));
	CQ_OK(attend(b, bb, y, ids, 1, true, o[1], lse[1]));
	cq_batch_free(ba);
	cq_batch_free(bb);
	ASSERT_MEMEQ(o[0], o[1], n * sizeof(float));
	ASSERT_MEMEQ(lse[0], lse[1], sizeof(lse[0]));
	same_rows(a, x, b, y);
}

/* Now, and while both grow past page and window. */
static void same_for_long(const struct worker *a, struct cq_seq *x, const struct worker *b,
			  struct cq_seq *y)
{
	size_t to, from = cq_seq_length(x);

	same_next(a, x, b, y);
	for (to = from + 37; to < from + 200; to += 61) {
		gpu_grow(a, x, ids, to);
		CQ_OK(cq_seal(x, 5000));
		gpu_grow(b, y, ids, to);
		CQ_OK(cq_seal(y, 5000));
		same_next(a, x, b, y);
	}
}

static void two_workers_as(const struct shape *shape, struct worker *a, struct worker *b)
{
	begin_as(shape);
	worker_gpu_open(a, shape, r.sock, 0, 32);
	worker_gpu_open(b, shape, r.sock, 0, 32);
}

static void two_workers(struct worker *a, struct worker *b)
{
	two_workers_as(&small, a, b);
}

static void end(struct worker *a, struct worker *b)
{
	ASSERT_EQ(worker_model(a).arena_free, worker_model(a).arena_bytes);
	ASSERT_EQ(worker_model(b).arena_free, worker_model(b).arena_bytes);
	cq_close(a->ctx);
	cq_close(b->ctx);
	rig_stop(&r);
}

TEST_LIMIT(attached_as_published, 120)
{
	static const size_t n[] = { 1, 3, 63, 64, 65, 128, 191, 300 };
	uint32_t got[300];
	struct cq_seq *x, *y;
	struct worker a, b;
	unsigned int i;

	two_workers(&a, &b);
	for (i = 0; i < ARRAY_SIZE(n); i++) {
		x = worker_seq(&a, NULL, 0);
		gpu_grow(&a, x, ids, n[i]);
		CQ_OK(cq_publish(x, "s", NULL));
		CQ_OK(cq_attach(b.model, "s", NULL, &y));
		ASSERT_EQ(cq_seq_length(y), n[i]);
		CQ_OK(cq_tokens(y, 0, n[i], got));
		ASSERT_MEMEQ(got, ids, n[i] * 4);
		ASSERT_EQ(worker_info(y).coded, worker_info(x).coded);
		same_for_long(&a, x, &b, y);
		CQ_OK(cq_unpublish(a.ctx, "s"));
		cq_seq_close(x);
		cq_seq_close(y);
	}
	end(&a, &b);
}

/* Codes, window and tail after truncation inside a page; extra bytes; position. */
static void hand_over_all(const struct shape *shape)
{
	struct cq_seq_opts o = { .sz = sizeof(o), .position = 77, .extra = "image",
				 .extra_len = 5 };
	static const size_t cut[] = { 300, 250, 100, 70, 64, 20, 2 };
	struct cq_seq *x, *y;
	struct worker a, b;
	unsigned int i;

	two_workers_as(shape, &a, &b);
	CQ_OK(cq_seq_open(a.model, NULL, 0, &o, &x));
	gpu_grow(&a, x, ids, 333);
	for (i = 0; i < ARRAY_SIZE(cut); i++)
		hand_over_cut(&a, x, &b, cut[i], same_next);
	CQ_OK(cq_attach(b.model, "cut", NULL, &y));
	same_for_long(&a, x, &b, y);
	cq_seq_close(x);
	cq_seq_close(y);
	end(&a, &b);
}

TEST_LIMIT(attached_with_all_that_a_sequence_has, 120)
{
	hand_over_all(&small);
}

TEST_LIMIT(attached_with_wide_codes, 120)
{
	struct shape s = small;

	s.k = "8c10b";
	hand_over_all(&s);
}

/* The page was there already, of other bytes: both read their own. */
TEST(private_pages_go_along)
{
	struct cq_seq_opts o = { .sz = sizeof(o), .flags = CQ_SEQ_NOMATCH };
	uint32_t other[1000], l;
	struct cq_seq *x, *y, *z;
	struct worker a, b;
	size_t at;

	two_workers(&a, &b);
	rig_ids(other, 1000, 8);
	x = worker_seq(&a, NULL, 0);
	for (at = 0; at < 200; at += 50) {
		for (l = 0; l < small.layers; l++)
			CQ_OK(gpu_append_layer(&a, x, other, 50, l));
		CQ_OK(cq_commit(x, ids + at, 50));
	}
	CQ_OK(cq_seal(x, 5000));
	CQ_OK(cq_seq_open(b.model, NULL, 0, &o, &y));
	gpu_grow(&b, y, ids, 200);
	CQ_OK(cq_publish(y, "mine", NULL));
	ASSERT_EQ(worker_info(y).shared_bytes, 0);
	CQ_OK(cq_attach(a.model, "mine", NULL, &z));
	same_for_long(&b, y, &a, z);
	cq_seq_close(x);
	cq_seq_close(y);
	cq_seq_close(z);
	end(&a, &b);
}

/* What no fp16 can hold is found before it leaves. */
TEST(no_bad_values)
{
	float inf = INFINITY;
	struct cq_view v;
	struct cq_seq *x, *y;
	struct worker a, b;

	two_workers(&a, &b);
	x = worker_seq(&a, NULL, 0);
	CQ_OK(gpu_append_layer(&a, x, ids, 10, 0));
	CU(cuStreamSynchronize(gpu.stream));
	CU(cuMemcpyHtoD(gpu.v + 4 * (5 * 128 + 64 + 9), &inf, 4));
	v = gpu_view(&a, gpu.v, small.kv_heads);
	CQ_OK(cq_append(x, 1, &v, &v, 10, NULL));
	CQ_OK(cq_commit(x, ids, 10));
	CQ_FAILS(cq_publish(x, "bad", NULL), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "page 0");
	CQ_FAILS(cq_attach(b.model, "bad", NULL, &y), -ENOENT);
	CQ_OK(cq_truncate(x, 5));
	CQ_OK(cq_publish(x, "bad", NULL));
	CQ_OK(cq_attach(b.model, "bad", NULL, &y));
	same_next(&a, x, &b, y);
	cq_seq_close(x);
	cq_seq_close(y);
	end(&a, &b);
}

/* A slot has the sinks of who was there before, until ours are written. */
TEST(sinks_of_nowhere)
{
	struct worker a, b;

	two_workers(&a, &b);
	tail_sinks_of_nowhere(&a, &b, ids);
	end(&a, &b);
}

/* Without a slot for its page a once-name stays. */
TEST(no_slot_takes_nothing)
{
	struct cq_publish_opts p = { .sz = sizeof(p), .flags = CQ_PUBLISH_ONCE };
	uint32_t taken[2048], n = 0;
	struct cq_seq *x, *y;
	struct worker a, b;

	begin();
	worker_gpu_open(&a, &small, r.sock, 0, 32);
	worker_gpu_open(&b, &small, r.sock, CQ_OPEN_POLL, 32);
	x = worker_seq(&a, NULL, 0);
	gpu_grow(&a, x, ids, 30);
	CQ_OK(cq_publish(x, "once", &p));
	while ((taken[n] = cqc_gpu_take(b.model, 0)) != CQC_NONE)
		n++;
	ASSERT_GT(n, 0);
	CQ_FAILS(cq_attach(b.model, "once", NULL, &y), -ENOBUFS);
	ASSERT_STRHAS(cq_last_error(), "leased");
	while (n)
		cqc_gpu_unused(b.model, taken[--n], CQC_NONE);
	CQ_OK(cqc_gpu_can_take(b.model));
	/* as when cqd has forgotten all that it leased */
	__atomic_fetch_add(&b.model->gpu->epoch, 1, __ATOMIC_RELEASE);
	CQ_FAILS(cq_attach(b.model, "once", NULL, &y), -ENOBUFS);
	__atomic_fetch_sub(&b.model->gpu->epoch, 1, __ATOMIC_RELEASE);
	while (cqc_gpu_can_take(b.model))
		cq_poll(b.ctx, 10);
	CQ_OK(cq_attach(b.model, "once", NULL, &y));
	same_next(&a, x, &b, y);
	cq_seq_close(x);
	cq_seq_close(y);
	end(&a, &b);
}

/* --- copies that fail --- */

/* A driver of which the @left-th copy fails that is none of a fence's. */
static struct {
	struct cqk_cuda table;
	const struct cqk_cuda *real;
	int left;
} fail;

static bool fails(size_t n)
{
	return n != sizeof(uint64_t) && --fail.left == 0;
}

static int fail_out(void *to, cqcu_ptr from, size_t n, struct cqcu_stream *s)
{
	return fails(n) ? CQCU_ERROR_OUT_OF_MEMORY :
		fail.real->cuMemcpyDtoHAsync(to, from, n, s);
}

static int fail_in(cqcu_ptr to, const void *from, size_t n, struct cqcu_stream *s)
{
	return fails(n) ? CQCU_ERROR_OUT_OF_MEMORY :
		fail.real->cuMemcpyHtoDAsync(to, from, n, s);
}

static void fail_setup(const struct worker *a, const struct worker *b)
{
	fail.real = a->model->gpu->cu;
	fail.table = *fail.real;
	fail.table.cuMemcpyDtoHAsync = fail_out;
	fail.table.cuMemcpyHtoDAsync = fail_in;
	a->model->gpu->cu = b->model->gpu->cu = &fail.table;
}

/* 1 if a call failed, and said why. */
static int told(int ret)
{
	ASSERT(!ret || strlen(cq_last_error()));
	return ret != 0;
}

static int all_three(const struct worker *a, struct cq_seq *x, const struct worker *b)
{
	struct cq_publish_opts p = { .sz = sizeof(p), .flags = CQ_PUBLISH_REPLACE };
	static float rows[200 * 2 * 64];
	struct cq_view v = rig_view(a, rows, small.kv_heads);
	struct cq_seq *y;
	int failed = told(cq_read(x, 1, 0, 200, &v, NULL)) + told(cq_publish(x, "s", &p)), ret;

	ret = cq_attach(b->model, "s", NULL, &y);
	if (!ret)
		cq_seq_close(y);
	return failed + told(ret);
}

/* The nth copy of reading, publishing and attaching fails, for n = 1, 2, ... */
TEST(copies_fail)
{
	struct cq_seq *x, *y;
	struct worker a, b;
	int n, failed;

	begin();
	worker_gpu_open(&a, &small, r.sock, CQ_OPEN_POLL, 32);
	worker_gpu_open(&b, &small, r.sock, CQ_OPEN_POLL, 32);
	x = worker_seq(&a, NULL, 0);
	gpu_grow(&a, x, ids, 200);
	CQ_OK(cq_publish(x, "s", NULL));
	fail_setup(&a, &b);
	for (n = 1, failed = 1; failed; n++) {
		fail.left = n;
		failed = all_three(&a, x, &b);
		ASSERT_EQ(failed, fail.left <= 0);
	}
	ASSERT_GT(n, 12);
	fail.left = 0;
	CQ_OK(cq_attach(b.model, "s", NULL, &y));
	same_next(&a, x, &b, y);
	cq_seq_close(x);
	cq_seq_close(y);
	end(&a, &b);
}

/* A context that is lost is told, and takes no name away. */
TEST(context_lost)
{
	struct cq_publish_opts p = { .sz = sizeof(p), .flags = CQ_PUBLISH_ONCE };
	struct cq_seq *x, *y;
	struct worker a, b;

	two_workers(&a, &b);
	x = worker_seq(&a, NULL, 0);
	gpu_grow(&a, x, ids, 70);
	CQ_OK(cq_publish(x, "once", &p));
	b.model->gpu->lost = -EIO;
	CQ_FAILS(cq_attach(b.model, "once", NULL, &y), -EIO);
	ASSERT_STRHAS(cq_last_error(), "new process");
	b.model->gpu->lost = 0;
	CQ_OK(cq_attach(b.model, "once", NULL, &y));
	same_next(&a, x, &b, y);
	cq_seq_close(x);
	cq_seq_close(y);
	end(&a, &b);
}
