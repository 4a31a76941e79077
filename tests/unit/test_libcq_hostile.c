// SPDX-License-Identifier: MIT
/*
 * libcq against a daemon that lies, loses its connections, falls silent or
 * takes pages back.
 */
#include "tests/unit/test_libcq_server.h"
#include "client/internal.h"

static uint32_t ids[202 * 64];

static void wait_for(const int *what, int n)
{
	int i;

	for (i = 0; i < 10000 && __atomic_load_n(what, __ATOMIC_RELAXED) < n; i++)
		usleep(1000);
	ASSERT_GE(*what, n);
}

static int try_open(struct cq_ctx **ctx, uint32_t timeout_ms)
{
	struct cq_open_opts o = { .sz = sizeof(o), .socket = s->path, .timeout_ms = timeout_ms };

	return cq_open(&o, ctx);
}

TEST(lies_at_hello)
{
	struct cq_ctx *ctx;
	int lie;

	start(HONEST);
	for (lie = HELLO_VERSION; lie <= HELLO_CODE_POSITIVE; lie++) {
		s->lie = lie;
		ASSERT(try_open(&ctx, 3000) < 0);
		if (lie != HELLO_GARBAGE)
			CQ_FAILS(try_open(&ctx, 3000), -EPROTO);
		for (const char *p = cq_last_error(); *p; p++)
			ASSERT(*p >= ' ');
	}
	s->lie = SILENT;
	CQ_FAILS(try_open(&ctx, 50), -ETIMEDOUT);
	ASSERT_STRHAS(cq_last_error(), "50 ms");
	stop();
}

TEST(lies_about_the_model)
{
	struct cq_model *model;
	struct cq_ctx *ctx;
	int lie;

	start(HONEST);
	CQ_OK(try_open(&ctx, 3000));
	for (lie = MODEL_NO_FDS; lie <= STATE_WORDS; lie++) {
		s->lie = lie;
		CQ_FAILS(cq_model_open(ctx, "toy", NULL, &model), -EPROTO);
	}
	s->lie = HONEST;
	CQ_OK(cq_model_open(ctx, "toy", NULL, &model));
	cq_close(ctx);
	stop();
}

/* Who refuses again and again is asked less and less often. */
TEST(refused_again_and_again)
{
	struct cq_ctx *ctx;
	long long begin;
	int hellos;

	start(HONEST);
	CQ_OK(try_open(&ctx, 3000));
	server_kill();
	s->lie = HELLO_VERSION;
	hellos = s->hellos;
	server_start();
	wait_for(&s->hellos, hellos + 1);
	begin = test_now_ms();
	wait_for(&s->hellos, hellos + 6);
	/* 20 + 40 + 80 + 160 + 320 ms */
	ASSERT_GE(test_now_ms() - begin, 500);
	cq_close(ctx);
	stop();
}

TEST(connection_lost_with_the_last_answer)
{
	struct cq_model *model;
	struct cq_ctx *ctx;
	int i, ret = -1;

	start(ARENA_DROP);
	CQ_OK(try_open(&ctx, 3000));
	CQ_FAILS(cq_model_open(ctx, "toy", NULL, &model), -ENOTCONN);
	s->lie = HONEST;
	for (i = 0; i < 3000 && ret; i++) {
		ret = cq_model_open(ctx, "toy", NULL, &model);
		if (ret)
			usleep(1000);
	}
	CQ_OK(ret);
	cq_close(ctx);
	stop();
}

/* Pages 0..4 of @ids, published through the honest server. */
static void publish(void)
{
	struct rig r = { .shape = shape };

	rig_ids(ids, 2000, 1);
	snprintf(r.sock, sizeof(r.sock), "%s", s->path);
	rig_publish(&r, ids, 330);
	ASSERT_EQ(s->n_pages, 5);
}

static void lookup_with(enum lie lie, size_t want)
{
	struct cq_seq *x;
	struct worker w;

	s->lie = HONEST;
	worker_open(&w, &shape, s->path, 0, 0);
	s->lie = (int)lie;
	x = worker_seq(&w, ids, 330);
	if (cq_seq_length(x) != want)
		FAIL("lie %d: %zu tokens matched, want %zu", (int)lie, cq_seq_length(x), want);
	s->lie = HONEST;
	/* Whatever it said: the sequence works, and so does the next. */
	worker_grow(&w, x, ids, 330);
	cq_seq_close(x);
	x = worker_seq(&w, ids, 330);
	worker_grow(&w, x, ids, 330);
	cq_close(w.ctx);
}

TEST(lies_about_matches)
{
	int lie;

	start(HONEST);
	publish();
	lookup_with(HONEST, 320);
	for (lie = LOOKUP_MORE; lie <= SEG_OTHER_ID; lie++)
		lookup_with((enum lie)lie, 0);
	stop();
}

TEST(lies_about_seals)
{
	static const int err[] = { -EPROTO, -EPROTO, -EPROTO, -EPROTO, -ENOSPC, -EPROTO };
	struct cq_seq *x, *y;
	struct worker w;
	int lie;

	start(HONEST);
	rig_ids(ids, 2000, 1);
	worker_open(&w, &shape, s->path, 0, 0);
	for (lie = SEAL_KEY; lie <= SEAL_WRONG; lie++) {
		rig_ids(ids, 2000, 50 + (uint32_t)lie);
		s->lie = lie;
		x = worker_seq(&w, NULL, 0);
		worker_grow(&w, x, ids, 200);
		CQ_FAILS(cq_seal(x, 5000), err[lie - SEAL_KEY]);
		ASSERT_EQ(worker_info(x).sealed, 0);
		s->lie = HONEST;
		CQ_OK(cq_seal(x, 5000));	/* it tries again */
		ASSERT_EQ(worker_info(x).sealed, 192);
		y = worker_seq(&w, ids, 200);
		ASSERT_EQ(cq_seq_length(y), 192);
		cq_seq_close(x);
		cq_seq_close(y);
	}
	cq_close(w.ctx);
	stop();
}

TEST(connection_lost_while_sealing)
{
	struct cq_seq *x;
	struct worker w;
	int i, j;

	start(DROP);
	rig_ids(ids, 2000, 1);
	worker_open(&w, &shape, s->path, 0, 0);
	s->resumed = 1;
	x = worker_seq(&w, NULL, 0);
	for (i = 0; i < 4; i++) {
		s->after = 1;
		worker_grow(&w, x, ids, cq_seq_length(x) + 200);
		/* Sent again without being asked to. */
		for (j = 0; j < 5000 && worker_info(x).sealed + 63 < cq_seq_length(x); j++)
			usleep(1000);
		ASSERT_EQ(worker_info(x).sealed, cq_seq_length(x) / 64 * 64);
	}
	ASSERT_GE(s->hellos, 4);
	cq_seq_close(x);
	cq_close(w.ctx);
	stop();
}

/* Until the engine has noted @n pins that it cannot drop now. */
static void await_releases(struct cq_ctx *ctx, uint32_t n)
{
	uint32_t got = 0;
	int i;

	for (i = 0; i < 10000 && got < n; i++) {
		pthread_mutex_lock(&ctx->lock);
		got = ctx->n_releases;
		pthread_mutex_unlock(&ctx->lock);
		usleep(1000);
	}
	ASSERT_EQ(got, n);
}

/* Pins of a daemon that did not resume the session are not released there. */
TEST(pins_are_released_where_they_are)
{
	struct cq_seq *x, *y, *z;
	struct worker w;
	int i;

	start(HONEST);
	publish();
	worker_open(&w, &shape, s->path, 0, 0);
	x = worker_seq(&w, ids, 330);
	y = worker_seq(&w, ids, 330);
	z = worker_seq(&w, ids, 330);
	cq_seq_close(x);
	for (i = 0; i < 1000 && s->releases < 1; i++)
		usleep(1000);
	ASSERT_EQ(s->releases, 1);
	server_kill();
	cq_seq_close(z);
	await_releases(w.ctx, 1);
	s->boot++;
	server_start();
	for (i = 0; i < 3000 && s->hellos < 3; i++)
		usleep(1000);
	ASSERT_EQ(s->hellos, 3);
	cq_seq_close(y);
	x = worker_seq(&w, ids, 330);	/* waits for the model to be open again */
	ASSERT_EQ(cq_seq_length(x), 320);
	cq_seq_close(x);
	for (i = 0; i < 1000 && s->releases < 2; i++)
		usleep(1000);
	usleep(50000);		/* a third would be here by now */
	ASSERT_EQ(s->releases, 2);
	cq_close(w.ctx);
	stop();
}

/* Bytes mapped of what has @name, at a multiple of 2 MiB; of reservations, @name "". */
static uint64_t mapped(const char *name)
{
	unsigned long long from, to;
	FILE *f = fopen("/proc/self/maps", "re");
	char line[512], prot[8];
	uint64_t sum = 0;

	ASSERT(f);
	while (fgets(line, sizeof(line), f)) {
		ASSERT_EQ(sscanf(line, "%llx-%llx %7s", &from, &to, prot), 3);
		if (!*name && !strcmp(prot, "---p") && !strchr(line, '/'))
			sum += to - from;
		if (!*name || !strstr(line, name))
			continue;
		ASSERT_STREQ(prot, "r--s");
		ASSERT_EQ(from % (2 << 20), 0);
		sum += to - from;
	}
	fclose(f);
	return sum;
}

/* Where the kernel can map huge pages; of the room for that nothing is left over. */
TEST(segments_are_aligned)
{
	uint64_t before, bytes;
	struct worker w;
	struct cq_seq *x;
	struct rig r;

	shape.dim = 64;
	shape.layers = 8;
	start(HONEST);
	bytes = SLOTS * s->slot_bytes;
	ASSERT_GE(bytes, 2 << 20);
	/* the server's own, inherited by the fork */
	munmap(s->seg, bytes);
	munmap(s->sinks, SLOTS * s->sink_slot_bytes);
	r.shape = shape;
	snprintf(r.sock, sizeof(r.sock), "%s", s->path);
	rig_ids(ids, 200, 1);
	rig_publish(&r, ids, 200);
	worker_open(&w, &shape, s->path, 0, 0);
	before = mapped("");
	x = worker_seq(&w, ids, 200);
	ASSERT_EQ(cq_seq_length(x), 192);
	ASSERT_EQ(mapped("memfd:seg"), bytes);
	ASSERT_LE(mapped(""), before);
	cq_close(w.ctx);
	ASSERT_EQ(mapped("memfd:seg"), 0);
	stop();
}

static void seal_with(const struct worker *w, uint32_t priority, uint32_t ttl_s)
{
	struct cq_seq_opts o = { .sz = sizeof(o), .priority = priority, .ttl_s = ttl_s };
	static uint32_t text = 7;
	struct cq_seq *x;

	rig_ids(ids, 64, text++);
	CQ_OK(cq_seq_open(w->model, NULL, 0, &o, &x));
	worker_grow(w, x, ids, 64);
	CQ_OK(cq_seal(x, 5000));
	cq_seq_close(x);
}

TEST(priority_and_time_to_live)
{
	struct worker w;

	start(HONEST);
	worker_open(&w, &shape, s->path, 0, 0);
	seal_with(&w, 200, 3600);
	ASSERT_EQ(s->priority, 200);
	ASSERT_EQ(s->ttl_s, 3600);
	seal_with(&w, 255, UINT32_MAX);
	ASSERT_EQ(s->priority, 255);
	ASSERT_EQ(s->ttl_s, UINT32_MAX);
	/* none: its namespace says what they are */
	seal_with(&w, 0, 0);
	ASSERT_EQ(s->priority, -1);
	ASSERT_EQ(s->ttl_s, -1);
	ASSERT_EQ(s->seals, 3);
	cq_close(w.ctx);
	stop();
}

/* Pages published after their sequence was closed, or truncated, are not held by
 * a worker that has nothing to do. */
TEST(pins_of_closed_sequences)
{
	struct cq_seq *x;
	struct worker w;

	start(HONEST);
	rig_ids(ids, 2000, 1);
	worker_open(&w, &shape, s->path, 0, 0);
	x = worker_seq(&w, NULL, 0);
	s->held = 1;
	worker_grow(&w, x, ids, 200);
	cq_seq_close(x);
	s->held = 0;
	wait_for(&s->releases, 3);
	ASSERT_EQ(s->seals, 3);
	x = worker_seq(&w, ids, 200);
	ASSERT_EQ(cq_seq_length(x), 192);
	rig_ids(ids, 2000, 2);
	x = worker_seq(&w, NULL, 0);
	s->held = 1;
	worker_grow(&w, x, ids, 200);
	CQ_OK(cq_truncate(x, 70));
	s->held = 0;
	wait_for(&s->releases, 5);
	wait_for(&s->seals, 6);
	CQ_OK(cq_seal(x, 5000));
	ASSERT_EQ(worker_info(x).sealed, 64);
	cq_close(w.ctx);
	ASSERT_EQ(s->releases, 5);
	stop();
}

/* A closed sequence whose last page is on its way holds all its pages: there are
 * enough for the next one all the same. */
TEST(pages_held_by_closed_sequences)
{
	struct cq_seq *x;
	struct worker w;
	struct rig r;
	pid_t pid;

	shape.max_position = 202 * 64;
	start(HONEST);
	r.shape = shape;
	snprintf(r.sock, sizeof(r.sock), "%s", s->path);
	rig_ids(ids, 202 * 64, 1);
	rig_publish(&r, ids, 200 * 64);
	worker_open(&w, &shape, s->path, 0, 5);
	x = worker_seq(&w, ids, 200 * 64 + 1);
	ASSERT_EQ(cq_seq_length(x), 200 * 64);
	s->held = 1;
	worker_grow(&w, x, ids, 201 * 64);
	wait_for(&s->seals, 201);
	cq_seq_close(x);
	fflush(stdout);
	pid = fork();
	ASSERT_SYS(pid);
	if (!pid) {	/* once the lookup is under way */
		usleep(100000);
		s->held = 0;
		_exit(0);
	}
	x = worker_seq(&w, ids, 200 * 64 + 1);
	ASSERT_EQ(cq_seq_length(x), 200 * 64);
	worker_grow(&w, x, ids, 201 * 64);
	cq_close(w.ctx);
	ASSERT_EQ(waitpid(pid, NULL, 0), pid);
	stop();
}

/* An answer that comes too late pins a page that nobody knows of. */
TEST(late_match_is_released)
{
	struct cq_open_opts o = { .sz = sizeof(o), .timeout_ms = 500 };
	struct cq_seq *x, *y;
	struct worker w = { .whole = shape, .m = shape };
	int i;

	start(HONEST);
	publish();
	o.socket = s->path;
	CQ_OK(cq_open(&o, &w.ctx));
	CQ_OK(cq_model_open(w.ctx, "toy", NULL, &w.model));
	s->held = 1;
	s->lookups = 0;
	x = worker_seq(&w, ids, 330);
	ASSERT_EQ(cq_seq_length(x), 0);
	ASSERT_EQ(s->releases, 0);
	y = worker_seq(&w, ids, 330);	/* silent once: not asked again */
	ASSERT_EQ(cq_seq_length(y), 0);
	ASSERT_EQ(s->lookups, 1);
	s->held = 0;
	for (i = 0; i < 1000 && s->releases < 1; i++)
		usleep(1000);
	ASSERT_EQ(s->releases, 1);
	y = worker_seq(&w, ids, 330);	/* it spoke */
	ASSERT_EQ(cq_seq_length(y), 320);
	ASSERT_EQ(s->lookups, 2);
	cq_close(w.ctx);
	stop();
}

/* --- pages taken back --- */

static int attend(const struct worker *w, struct cq_batch *b, struct cq_seq *x)
{
	float buf[2][4 * 32] = { { 0 } };
	struct cq_view q = rig_view(w, buf[0], 4), o = rig_view(w, buf[1], 4);
	uint32_t one = 1;

	CQ_OK(cq_step(b, &x, &one, 1));
	CQ_OK(worker_append_layer(w, x, ids, 1, 0));
	return cq_attention(b, 0, &q, &o, NULL);
}

/* The same in parts: how many of them read a page that was taken back? */
static uint32_t stale_parts(const struct worker *w, struct cq_batch *b, struct cq_seq *x,
			    uint32_t n)
{
	struct cq_attn_opts o = { .sz = sizeof(o), .device = CQ_DEVICE_HOST, .n_parts = n };
	float buf[2][4 * 32] = { { 0 } };
	struct cq_view q = rig_view(w, buf[0], 4), out = rig_view(w, buf[1], 4);
	uint32_t one = 1, stale = 0;
	int ret;

	CQ_OK(cq_batch_split(b, n));
	CQ_OK(cq_step(b, &x, &one, 1));
	for (; o.part < n; o.part++) {
		ret = cq_attention(b, 0, &q, &out, &o);
		if (ret && ret != -ESTALE)
			FAIL("%d: %s", ret, cq_last_error());
		stale += ret != 0;
	}
	return stale;
}

TEST(stale_pages_are_noticed)
{
	float *buf = malloc(400 * 2 * 32 * 4);
	struct cq_view v;
	struct cq_batch *b;
	struct cq_seq *x;
	struct worker w;
	uint64_t was;
	uint32_t n;
	int i;

	ASSERT(buf);
	start(HONEST);
	publish();
	worker_open(&w, &shape, s->path, 0, 0);
	CQ_OK(cq_batch_new(w.model, 1, 1, 0, &b));
	v = rig_view(&w, buf, 2);
	for (i = 0; i < 6; i++) {
		uint64_t *word = &s->words[i < 5 ? i : (int)SLOTS];	/* then the sinks' */

		x = worker_seq(&w, ids, 330);
		ASSERT_EQ(cq_seq_length(x), 320);
		CQ_OK(attend(&w, b, x));
		was = *word;
		*word = CQP_WORD(1, CQP_EVICTING);
		CQ_FAILS(attend(&w, b, x), -ESTALE);
		ASSERT_STRHAS(cq_last_error(), "open it anew");
		CQ_FAILS(cq_read(x, 0, 0, 320, &v, NULL), -ESTALE);
		for (n = 1; n < 9; n++)	/* there are 7 blocks */
			ASSERT_EQ(stale_parts(&w, b, x, n), 1);
		*word = CQP_WORD(2, CQP_SEALED);
		CQ_FAILS(attend(&w, b, x), -ESTALE);
		*word = was;
		ASSERT_EQ(stale_parts(&w, b, x, 3), 0);
		CQ_OK(attend(&w, b, x));
		CQ_OK(cq_read(x, 0, 0, 320, &v, NULL));
		*word = CQP_WORD(2, CQP_SEALED);
		if (i == 4)
			CQ_FAILS(cq_truncate(x, 300), -ESTALE);
		*word = was;
		cq_seq_close(x);
	}
	free(buf);
	cq_close(w.ctx);
	stop();
}

/* A page that changed between the answer and the look at it is no match. */
TEST(page_gone_before_it_is_mapped)
{
	struct cq_seq *x;
	struct worker w;

	start(HONEST);
	publish();
	worker_open(&w, &shape, s->path, 0, 0);
	s->held = 0;
	((struct cq_page_hdr *)(void *)(s->seg + 2 * s->slot_bytes))->incompat = 1;
	x = worker_seq(&w, ids, 330);
	ASSERT_EQ(cq_seq_length(x), 128);
	cq_close(w.ctx);
	stop();
}

/* A page that is taken back before its publisher reads it there: the publisher
 * goes on reading its own. */
TEST(page_gone_before_it_is_switched)
{
	struct cq_batch *b;
	struct cq_seq *x;
	struct worker w;
	uint64_t done = 0, n;
	int i;

	start(HONEST);
	rig_ids(ids, 2000, 1);
	worker_open(&w, &shape, s->path, 0, 0);
	CQ_OK(cq_batch_new(w.model, 1, 1, 0, &b));
	x = worker_seq(&w, NULL, 0);
	s->held = 1;
	worker_grow(&w, x, ids, 200);
	s->held = 0;
	for (i = 0; i < 10000 && done < 3; i++) {
		if (read(cq_event_fd(w.ctx), &n, sizeof(n)) == sizeof(n))
			done += n;
		usleep(1000);
	}
	ASSERT_EQ(done, 3);
	s->words[1] = CQP_WORD(1, CQP_QUARANTINED);
	s->words[SLOTS] = CQP_WORD(1, CQP_QUARANTINED);
	CQ_OK(attend(&w, b, x));
	ASSERT_EQ(worker_info(x).shared_bytes, s->slot_bytes);
	ASSERT_EQ(worker_info(x).sealed, 192);
	cq_close(w.ctx);
	stop();
}

/* The same key, other bytes: the publisher goes on reading its own. */
TEST(existing_page_with_other_bytes)
{
	struct cq_seq *x, *y;
	struct worker w;

	start(HONEST);
	publish();
	s->seg[2 * s->slot_bytes + 64] ^= 0xff;
	worker_open(&w, &shape, s->path, 0, 0);
	x = worker_seq(&w, NULL, 0);
	worker_grow(&w, x, ids, 330);
	CQ_OK(cq_seal(x, 5000));
	ASSERT_EQ(worker_info(x).sealed, 320);
	ASSERT_EQ(worker_info(x).shared_bytes, 4 * s->slot_bytes + s->sink_slot_bytes);
	y = worker_seq(&w, ids, 330);
	ASSERT_EQ(cq_seq_length(y), 320);
	ASSERT_EQ(worker_info(y).shared_bytes, 5 * s->slot_bytes + s->sink_slot_bytes);
	cq_close(w.ctx);
	stop();
}
