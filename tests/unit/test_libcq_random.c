// SPDX-License-Identifier: MIT
/*
 * Sequences of one worker opened, extended, forked, truncated, sealed, closed
 * and attended to in any order, in an arena that is too small for them, while
 * cqd comes and goes. Every token of every sequence must read as its fp16 row or
 * as the codes of it; at the end nothing may be left in the arena or pinned.
 */
#include "tests/unit/test_libcq.h"
#include "client/internal.h"

#define SEQS	10
#define TOKENS	2048
#define BLOCKS	24	/* fp16 blocks in the arena */

static const struct shape mixed = { .layers = 2, .heads = 2, .kv_heads = 1, .dim = 16,
				    .sinks = 4, .window = 128, .max_position = TOKENS,
				    .keys = CQK_KEYS_PRE_ROPE, .k = "4c8b", .v = "fp16" };

/* A sequence and what it should hold: the first @len of @ids, the rest to come. */
struct live {
	struct cq_seq *seq;
	uint32_t ids[TOKENS];
	size_t len;
};

static struct rig r;
static struct worker w, ref;	/* @ref encodes the same tokens, undisturbed */
static struct cq_batch *batch;
static struct live all[SEQS];
static uint64_t seed;

static uint32_t below(uint32_t n)
{
	seed = rig_mix(seed);
	return (uint32_t)(seed >> 20) % n;
}

/* One of four texts from @from on, so that prefixes meet. */
static void text(struct live *x, size_t from)
{
	uint32_t t = below(4);

	for (; from < TOKENS; from++)
		x->ids[from] = (uint32_t)(rig_mix((uint64_t)t << 32 | from) % 32000);
}

static void may_fail(int ret, const char *what)
{
	if (ret && ret != -ENOBUFS && ret != -ESTALE)
		FAIL("%s = %d: %s", what, ret, cq_last_error());
}

static void same_rows(struct live *x, struct cq_seq *coded, uint32_t what, uint32_t layer)
{
	float *raw = rig_rows(&w, x->ids, 0, x->len, what, layer);
	float *code = worker_read(&ref, coded, layer, x->len, what);
	float *got = calloc(x->len * mixed.dim, sizeof(*got));
	struct cq_view v = rig_view(&w, got, 1);
	size_t t, row = mixed.dim * sizeof(*got);
	int ret = cq_read(x->seq, layer, 0, x->len, what ? NULL : &v, what ? &v : NULL);

	may_fail(ret, "cq_read");
	for (t = 0; !ret && t < x->len; t++)
		if (memcmp(got + t * mixed.dim, raw + t * mixed.dim, row) &&
		    memcmp(got + t * mixed.dim, code + t * mixed.dim, row))
			FAIL("token %zu of %zu, layer %u, %s", t, x->len, layer, what ? "v" : "k");
	free(raw);
	free(code);
	free(got);
}

static void verify(struct live *x)
{
	struct cq_seq_opts o = { .sz = sizeof(o), .flags = CQ_SEQ_NOMATCH | CQ_SEQ_PRIVATE };
	struct cq_seq *coded;
	uint32_t i;

	ASSERT_EQ(cq_seq_length(x->seq), x->len);
	if (!x->len)
		return;
	CQ_OK(cq_seq_open(ref.model, NULL, 0, &o, &coded));
	worker_grow(&ref, coded, x->ids, x->len + mixed.window + CQ_PAGE_TOKENS);
	for (i = 0; i < 2 * mixed.layers; i++)
		same_rows(x, coded, i % 2, i / 2);
	cq_seq_close(coded);
}

static void do_open(struct live *x)
{
	struct cq_seq_opts o = { .sz = sizeof(o), .flags = below(4) ? 0 : CQ_SEQ_PRIVATE };
	size_t n = below(600);

	text(x, 0);
	CQ_OK(cq_seq_open(w.model, x->ids, n, &o, &x->seq));
	x->len = cq_seq_length(x->seq);
	ASSERT(x->len % CQ_PAGE_TOKENS == 0 && (!n || x->len < n));
}

static void do_grow(struct live *x)
{
	size_t to = x->len + below(150) + 1;

	if (to > TOKENS - 400)
		return;
	may_fail(worker_try_grow(&w, x->seq, x->ids, to, below(100) + 1), "grow");
	x->len = cq_seq_length(x->seq);
}

static void do_truncate(struct live *x, size_t n)
{
	int ret = cq_truncate(x->seq, n);

	may_fail(ret, "cq_truncate");
	if (ret)
		return;
	x->len = n;
	text(x, n);
}

static void do_fork(struct live *x, struct live *y)
{
	struct cq_seq_opts o = { .sz = sizeof(o), .flags = below(3) ? 0 : CQ_SEQ_PRIVATE };
	int ret;

	if (y->seq)
		return;
	ret = cq_fork(x->seq, below(2) ? NULL : &o, &y->seq);
	if (ret == -EBUSY) {	/* rows of an append that met a full arena */
		do_truncate(x, x->len);
		return;
	}
	may_fail(ret, "cq_fork");
	if (ret)
		return;
	memcpy(y->ids, x->ids, x->len * sizeof(*x->ids));
	y->len = x->len;
	text(y, y->len);
}

static void do_step(void)
{
	float in[8 * 2 * 16] = { 0 }, out[8 * 2 * 16];
	struct cq_view q = rig_view(&w, in, mixed.heads), o = rig_view(&w, out, mixed.heads);
	uint32_t rows[3] = { 1, 2, below(3) }, n = 0, i;
	struct cq_seq *seqs[3];
	int ret;

	if (!below(20)) {
		cq_batch_free(batch);
		CQ_OK(cq_batch_new(w.model, 3, 8, 0, &batch));
	}
	for (i = 0; i < SEQS && n < 3; i++)
		if (all[i].seq && below(2))
			seqs[n++] = all[i].seq;
	ret = cq_step(batch, seqs, rows, n);
	may_fail(ret, "cq_step");
	if (!ret)
		may_fail(cq_attention(batch, 0, &q, &o, NULL), "cq_attention");
}

static void do_one(void)
{
	struct live *x = &all[below(SEQS)];
	uint32_t op = below(100);

	if (!x->seq) {
		do_open(x);
	} else if (op < 40) {
		do_grow(x);
	} else if (op < 55) {
		do_truncate(x, below((uint32_t)x->len + 1));
	} else if (op < 70) {
		do_fork(x, &all[below(SEQS)]);
	} else if (op < 82) {
		cq_seq_close(x->seq);
		x->seq = NULL;
	} else if (op < 86) {
		cq_seal(x->seq, 5000);	/* may fail: what was published went with cqd */
	} else if (op < 96) {
		do_step();
	} else {
		verify(x);
	}
}

static uint32_t unsent(struct cq_ctx *ctx)
{
	uint32_t n;

	pthread_mutex_lock(&ctx->lock);
	n = ctx->n_releases + ctx->releasing;
	pthread_mutex_unlock(&ctx->lock);
	return n;
}

static void nothing_left(bool poll_mode)
{
	struct cq_pg *pg;
	uint64_t n = 0;
	int i;

	for (i = 0; i < 10000; i++) {
		if (worker_model(&w).arena_free == worker_model(&w).arena_bytes &&
		    !unsent(w.ctx))
			break;
		if (poll_mode)
			cq_poll(w.ctx, 1);
		else
			usleep(1000);
	}
	ASSERT_EQ(worker_model(&w).arena_free, worker_model(&w).arena_bytes);
	for (pg = w.model->free_pg; pg; pg = pg->next)
		n++;
	ASSERT_EQ(n, w.model->have_pg);
}

/* @kills: operations between the deaths of cqd, 0: it lives on */
static void run(uint32_t flags, const char *daemon, int ops, int kills)
{
	int i, k;

	seed = 1;
	rig_start(&r, &mixed, daemon);
	worker_open(&w, &mixed, r.sock, flags, BLOCKS);
	worker_open(&ref, &mixed, r.sock, CQ_OPEN_POLL, 256);
	CQ_OK(cq_batch_new(w.model, 3, 8, 0, &batch));
	for (i = 1; i <= ops; i++) {
		do_one();
		if (flags & CQ_OPEN_POLL)
			cq_poll(w.ctx, 0);
		if (!kills || i % kills)
			continue;
		rig_kill(&r);
		for (k = 0; k < 20; k++)
			do_one();
		rig_run(&r);
	}
	for (i = 0; i < SEQS; i++) {
		if (all[i].seq)
			verify(&all[i]);
		cq_seq_close(all[i].seq);
	}
	nothing_left(flags & CQ_OPEN_POLL);
	cq_close(w.ctx);
	cq_close(ref.ctx);
	rig_stop(&r);
}

TEST_LIMIT(any_order_with_a_thread, 120)
{
	run(0, NULL, 3000, 0);
}

TEST_LIMIT(any_order_in_poll_mode, 120)
{
	run(CQ_OPEN_POLL, NULL, 3000, 0);
}

TEST_LIMIT(any_order_in_a_full_pool, 120)
{
	run(0, "pool_bytes = 5M", 3000, 0);
}

TEST_LIMIT(any_order_while_cqd_dies, 120)
{
	run(0, NULL, 1500, 150);
}

TEST_LIMIT(any_order_while_cqd_dies_in_poll_mode, 120)
{
	run(CQ_OPEN_POLL, NULL, 1500, 150);
}
