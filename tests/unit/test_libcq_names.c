// SPDX-License-Identifier: MIT
/*
 * Sequences handed from one process to another under a name: what the attacher
 * computes is what the publisher computes, bit for bit, whatever happens to
 * publisher and daemon in between; and a hostile publisher gets nowhere.
 */
#include "tests/unit/test_libcq.h"
#include "client/internal.h"
#include "proto/tail.h"

#define TOKENS 1000

static struct rig r;
static struct shape small = SHAPE_SMALL;
static uint32_t ids[TOKENS];

static void begin(void)
{
	rig_ids(ids, TOKENS, 7);
	rig_start(&r, &small, NULL);
}

static struct cq_publish_opts popts(uint32_t flags, uint32_t ttl_s)
{
	return (struct cq_publish_opts){ .sz = sizeof(struct cq_publish_opts), .flags = flags,
					 .ttl_s = ttl_s };
}

/*
 * Attention of the next row in every layer, [layers][heads][dim]; the row is
 * not committed. With the same sequence the same bits.
 */
static float *next_row(const struct worker *w, struct cq_seq *seq)
{
	size_t row = (size_t)w->m.heads * w->m.dim, i, n = cq_seq_length(seq);
	float *o = calloc(w->m.layers * row, sizeof(*o)), *q = malloc(row * sizeof(*q));
	struct cq_batch *b;
	uint32_t rows = 1, l;

	ASSERT(o && q);
	CQ_OK(cq_batch_new(w->model, 1, 1, 0, &b));
	CQ_OK(cq_step(b, &seq, &rows, 1));
	for (l = 0; l < w->m.layers; l++) {
		struct cq_view qv = rig_view(w, q, w->m.heads);
		struct cq_view ov = rig_view(w, o + l * row, w->m.heads);

		for (i = 0; i < row; i++)
			q[i] = rig_value(n << 20 | l << 16 | i | 1ull << 50);
		CQ_OK(worker_append_layer(w, seq, ids, 1, l));
		CQ_OK(cq_attention(b, l, &qv, &ov, NULL));
	}
	cq_batch_free(b);
	CQ_OK(cq_truncate(seq, n));
	free(q);
	return o;
}

static void same_next(const struct worker *a, struct cq_seq *x, const struct worker *b,
		      struct cq_seq *y)
{
	float *p = next_row(a, x), *q = next_row(b, y);

	ASSERT_EQ(cq_seq_length(x), cq_seq_length(y));
	ASSERT_MEMEQ(p, q, sizeof(*p) * a->m.layers * a->m.heads * a->m.dim);
	free(p);
	free(q);
}

/* Both read the same, now and while they grow past page and window. */
static void same_for_long(const struct worker *a, struct cq_seq *x, const struct worker *b,
			  struct cq_seq *y)
{
	size_t to;

	for (to = cq_seq_length(x) + 1; to < cq_seq_length(x) + 2; to++)
		same_next(a, x, b, y);
	for (to = cq_seq_length(x) + 37; to < TOKENS && to < cq_seq_length(x) + 300; to += 61) {
		worker_grow(a, x, ids, to);
		CQ_OK(cq_seal(x, 5000));
		worker_grow(b, y, ids, to);
		CQ_OK(cq_seal(y, 5000));
		same_next(a, x, b, y);
	}
}

static void hand_over(size_t n)
{
	uint32_t got[TOKENS];
	struct cq_seq *x, *y;
	struct worker a, b;

	worker_open(&a, &small, r.sock, 0, 0);
	worker_open(&b, &small, r.sock, 0, 0);
	x = worker_seq(&a, NULL, 0);
	worker_grow(&a, x, ids, n);
	CQ_OK(cq_publish(x, "s", NULL));
	CQ_OK(cq_attach(b.model, "s", NULL, &y));
	ASSERT_EQ(cq_seq_length(y), n);
	CQ_OK(cq_tokens(y, 0, n, got));
	ASSERT_MEMEQ(got, ids, n * 4);
	CQ_FAILS(cq_tokens(y, 1, n, got), -EINVAL);
	ASSERT_EQ(worker_info(y).coded, worker_info(x).coded);
	same_for_long(&a, x, &b, y);
	CQ_OK(cq_unpublish(a.ctx, "s"));
	cq_close(a.ctx);
	cq_close(b.ctx);
}

/* Less than a page, page 0 with and without its end, window, beyond it. */
TEST(attached_as_published)
{
	static const size_t n[] = { 1, 3, 63, 64, 65, 128, 191, 200, 256, 500 };
	unsigned int i;

	begin();
	for (i = 0; i < ARRAY_SIZE(n); i++)
		hand_over(n[i]);
	rig_stop(&r);
}

/* Codes, window and tail after truncation inside a coded page; fork; extra; position. */
static void hand_over_all(void)
{
	struct cq_seq_opts o = { .sz = sizeof(o), .position = 77, .extra = "image",
				 .extra_len = 5 };
	static const size_t cut[] = { 300, 250, 100, 70, 64, 20 };
	struct cq_seq *x, *y;
	struct worker a, b;
	unsigned int i;

	begin();
	worker_open(&a, &small, r.sock, 0, 0);
	worker_open(&b, &small, r.sock, 0, 0);
	CQ_OK(cq_seq_open(a.model, NULL, 0, &o, &x));
	worker_grow(&a, x, ids, 333);
	for (i = 0; i < ARRAY_SIZE(cut); i++)
		hand_over_cut(&a, x, &b, cut[i], same_next);
	CQ_OK(cq_attach(b.model, "cut", NULL, &y));
	same_for_long(&a, x, &b, y);
	cq_close(a.ctx);
	cq_close(b.ctx);
	rig_stop(&r);
}

TEST(attached_with_all_that_a_sequence_has)
{
	hand_over_all();
}

TEST(attached_with_wide_codes)
{
	small.k = "8c10b";
	hand_over_all();
}

/* The page was there already, of other bytes: both read their own. */
TEST(private_pages_go_along)
{
	struct cq_seq_opts o = { .sz = sizeof(o) };
	struct cq_seq *x, *y, *z;
	struct worker a, b;
	uint32_t other[TOKENS];

	begin();
	worker_open(&a, &small, r.sock, 0, 0);
	worker_open(&b, &small, r.sock, 0, 0);
	/* the same ids with other values: what a model with another dtype would make */
	rig_ids(other, TOKENS, 8);
	x = worker_seq(&a, NULL, 0);
	for (size_t at = 0; at < 300; at = cq_seq_length(x)) {
		uint32_t l;

		for (l = 0; l < a.m.layers; l++)
			CQ_OK(worker_append_layer(&a, x, other, 50, l));
		CQ_OK(cq_commit(x, ids + at, 50));
	}
	CQ_OK(cq_seal(x, 5000));
	o.flags = CQ_SEQ_NOMATCH;
	CQ_OK(cq_seq_open(b.model, NULL, 0, &o, &y));
	worker_grow(&b, y, ids, 300);
	CQ_OK(cq_publish(y, "mine", NULL));
	ASSERT_EQ(worker_info(y).shared_bytes, 0);
	CQ_OK(cq_attach(a.model, "mine", NULL, &z));
	same_for_long(&b, y, &a, z);
	cq_close(a.ctx);
	cq_close(b.ctx);
	rig_stop(&r);
}

/* --- names --- */

TEST(names_and_options)
{
	struct cq_publish_opts p = popts(1u << 9, 0);
	struct cq_seq_opts o = { .sz = sizeof(o), .flags = CQ_SEQ_NOMATCH };
	struct cq_seq *x, *y = (void *)8, *z;
	struct worker w, v;
	char longest[65];

	memset(longest, 'n', 64);
	longest[64] = '\0';
	begin();
	worker_open(&w, &small, r.sock, 0, 0);
	worker_open(&v, &small, r.sock, 0, 0);
	x = worker_seq(&w, NULL, 0);
	CQ_FAILS(cq_publish(x, "empty", NULL), -EINVAL);
	worker_grow(&w, x, ids, 100);
	CQ_FAILS(cq_publish(x, "a", &p), -EINVAL);
	CQ_FAILS(cq_publish(x, "", NULL), -EINVAL);
	CQ_FAILS(cq_publish(x, longest, NULL), -EINVAL);
	CQ_FAILS(cq_publish(x, "a b", NULL), -EINVAL);
	CQ_OK(worker_append_layer(&w, x, ids, 1, 0));
	CQ_FAILS(cq_publish(x, "a", NULL), -EBUSY);
	CQ_OK(cq_truncate(x, 100));
	CQ_OK(cq_publish(x, "a", NULL));
	CQ_FAILS(cq_publish(x, "a", NULL), -EEXIST);
	ASSERT_STRHAS(cq_last_error(), "replace");
	worker_grow(&w, x, ids, 150);
	p = popts(CQ_PUBLISH_REPLACE, 0);
	CQ_OK(cq_publish(x, "a", &p));
	CQ_FAILS(cq_attach(v.model, "b", NULL, &y), -ENOENT);
	CQ_FAILS(cq_attach(v.model, "a", &o, &y), -EINVAL);
	ASSERT(y == (void *)8);
	CQ_OK(cq_attach(v.model, "a", NULL, &y));
	ASSERT_EQ(cq_seq_length(y), 150);
	/* attached goes on when the name is gone */
	CQ_OK(cq_unpublish(v.ctx, "a"));
	CQ_FAILS(cq_unpublish(v.ctx, "a"), -ENOENT);
	same_next(&w, x, &v, y);
	/* once: the second finds nothing */
	p = popts(CQ_PUBLISH_ONCE, 0);
	CQ_OK(cq_publish(x, "once", &p));
	CQ_OK(cq_attach(v.model, "once", NULL, &z));
	CQ_FAILS(cq_attach(v.model, "once", NULL, &z), -ENOENT);
	/* private sequences are */
	o.flags = CQ_SEQ_PRIVATE;
	CQ_OK(cq_fork(x, &o, &z));
	CQ_FAILS(cq_publish(z, "p", NULL), -EINVAL);
	/* a pin has nothing to attach to */
	p = popts(CQ_PUBLISH_PIN, 0);
	CQ_OK(cq_publish(x, "pin", &p));
	CQ_FAILS(cq_attach(v.model, "pin", NULL, &z), -ENODATA);
	/* its time is over */
	p = popts(0, 1);
	CQ_OK(cq_publish(x, "short", &p));
	CQ_OK(cq_attach(v.model, "short", NULL, &z));
	usleep(1100000);
	CQ_FAILS(cq_attach(v.model, "short", NULL, &z), -ENOENT);
	cq_close(w.ctx);
	cq_close(v.ctx);
	rig_stop(&r);
}

/* An arena without room for the tail takes nothing: a once-name stays. */
TEST(no_room_takes_nothing)
{
	struct cq_publish_opts p = popts(CQ_PUBLISH_ONCE, 0);
	struct cq_seq *x, *y;
	struct worker a, b;

	begin();
	worker_open(&a, &small, r.sock, 0, 0);
	worker_open(&b, &small, r.sock, 0, 4);
	x = worker_seq(&a, NULL, 0);
	worker_grow(&a, x, ids, 250);
	CQ_OK(cq_publish(x, "big", &p));
	CQ_FAILS(cq_attach(b.model, "big", NULL, &y), -ENOBUFS);
	CQ_OK(cq_attach(a.model, "big", NULL, &y));
	same_next(&a, x, &a, y);
	cq_close(a.ctx);
	cq_close(b.ctx);
	rig_stop(&r);
}

/* Other extra bytes are another text. */
TEST(extra_bytes_keep_apart)
{
	struct cq_seq_opts o = { .sz = sizeof(o), .extra = "cat", .extra_len = 3 };
	struct cq_seq *x, *y;
	struct worker w;

	begin();
	worker_open(&w, &small, r.sock, 0, 0);
	CQ_OK(cq_seq_open(w.model, ids, 200, &o, &x));
	worker_grow(&w, x, ids, 200);
	CQ_OK(cq_seal(x, 5000));
	CQ_OK(cq_seq_open(w.model, ids, 200, &o, &y));
	ASSERT_EQ(cq_seq_length(y), 192);
	cq_seq_close(y);
	o.extra = "dog";
	CQ_OK(cq_seq_open(w.model, ids, 200, &o, &y));
	ASSERT_EQ(cq_seq_length(y), 0);
	cq_seq_close(y);
	y = worker_seq(&w, ids, 200);
	ASSERT_EQ(cq_seq_length(y), 0);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* --- deaths --- */

static void publish_and_die(size_t n)
{
	int status, pipes[2];
	struct cq_seq *x;
	struct worker w;
	char c;
	pid_t pid;

	ASSERT_SYS(pipe(pipes));
	fflush(stdout);
	pid = fork();
	ASSERT_SYS(pid);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		worker_open(&w, &small, r.sock, 0, 0);
		x = worker_seq(&w, NULL, 0);
		worker_grow(&w, x, ids, n);
		CQ_OK(cq_publish(x, "left", NULL));
		ASSERT_EQ(write(pipes[1], "x", 1), 1);
		pause();
	}
	ASSERT_EQ(read(pipes[0], &c, 1), 1);
	ASSERT_SYS(kill(pid, SIGKILL));
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	close(pipes[0]);
	close(pipes[1]);
}

TEST(publisher_dies)
{
	struct cq_seq_opts o = { .sz = sizeof(o), .flags = CQ_SEQ_NOMATCH };
	struct cq_seq *x, *y;
	struct worker w;

	begin();
	publish_and_die(450);
	worker_open(&w, &small, r.sock, 0, 0);
	CQ_OK(cq_attach(w.model, "left", NULL, &y));
	/* what the dead one would have computed */
	CQ_OK(cq_seq_open(w.model, NULL, 0, &o, &x));
	worker_grow(&w, x, ids, 450);
	CQ_OK(cq_seal(x, 5000));
	same_for_long(&w, x, &w, y);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* --- fork() --- */

static void in_child(struct worker *w, struct cq_seq *x)
{
	struct cq_seq *y = NULL;
	uint32_t id;

	CQ_FAILS(cq_publish(x, "child", NULL), -EOWNERDEAD);
	ASSERT_STRHAS(cq_last_error(), "before fork()");
	CQ_FAILS(cq_attach(w->model, "parent", NULL, &y), -EOWNERDEAD);
	CQ_FAILS(cq_unpublish(w->ctx, "parent"), -EOWNERDEAD);
	CQ_FAILS(cq_tokens(x, 0, 1, &id), -EOWNERDEAD);
	CQ_FAILS(cq_seal(x, 0), -EOWNERDEAD);
	CQ_FAILS(cq_fork(x, NULL, &y), -EOWNERDEAD);
	ASSERT(!y);
	cq_seq_close(x);
	cq_model_close(w->model);
	cq_close(w->ctx);
	/* open anew, as the text says */
	worker_open(w, &small, r.sock, 0, 0);
	CQ_OK(cq_attach(w->model, "parent", NULL, &y));
	cq_close(w->ctx);
}

TEST(children_own_nothing)
{
	struct cq_seq *x, *y;
	struct worker w;
	float *before, *after;
	int i, status;
	pid_t pid;

	begin();
	worker_open(&w, &small, r.sock, 0, 0);
	x = worker_seq(&w, NULL, 0);
	worker_grow(&w, x, ids, 300);
	CQ_OK(cq_publish(x, "parent", NULL));
	before = next_row(&w, x);
	for (i = 0; i < 3; i++) {
		fflush(stdout);
		pid = fork();
		ASSERT_SYS(pid);
		if (!pid) {
			in_child(&w, x);
			_exit(0);
		}
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		ASSERT_EQ(status, 0);
	}
	/* pins, arena and connection are the parent's as before */
	CQ_OK(cq_unpublish(w.ctx, "parent"));
	after = next_row(&w, x);
	ASSERT_MEMEQ(before, after, sizeof(float) * small.layers * small.heads * small.dim);
	worker_grow(&w, x, ids, 400);
	CQ_OK(cq_seal(x, 5000));
	CQ_OK(cq_publish(x, "parent", NULL));
	CQ_OK(cq_attach(w.model, "parent", NULL, &y));
	same_next(&w, x, &w, y);
	free(before);
	free(after);
	cq_close(w.ctx);
	rig_stop(&r);
}
