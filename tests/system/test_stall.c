/* SPDX-License-Identifier: MIT */
/*
 * cqd stands still for 10 s in the middle of a prefill: the token loop goes on
 * until the arena is full, then gets -ENOBUFS, and afterwards nothing is lost.
 */
#include "tests/system/work.h"

#define TEXT	61
#define TOKENS	(64 * 600)
#define BLOCKS	40
#define STALL_MS 10000

static struct sys s;
static const struct synth model = { .layers = 1, .heads = 1, .kv_heads = 1, .dim = 64,
				    .sinks = 4, .window = 64, .max_position = 65536,
				    .code = "4c8b", .seed = 5 };

/* What the sequence holds, read back: exact for codes, which never change. */
static uint64_t digest(struct work *w, struct cq_seq *seq, size_t n)
{
	struct cq_view k = synth_view(&w->m, w->k, 1), v = synth_view(&w->m, w->v, 1);
	uint64_t d = 0;
	size_t t, i;

	for (t = 0; t < n; t += CQ_PAGE_TOKENS) {
		WORK_OK(cq_read(seq, 0, t, CQ_PAGE_TOKENS, &k, &v));
		for (i = 0; i < CQ_PAGE_TOKENS * w->m.dim; i++)
			d = synth_mix(d ^ w->k[i] ^ (uint64_t)w->v[i] << 16);
	}
	return d;
}

/* Sizes at which the prefill stood still, and how it went on. */
struct went {
	size_t full_at;
	long refused;
	long long slowest_ms;
};

/* Prefill until the arena is full and says so. */
static void until_full(struct work *w, struct cq_seq *seq, struct went *went)
{
	struct cq_seq_info info = { .sz = sizeof(info) };
	long long t;
	int ret = 0;

	while (!ret && cq_seq_length(seq) < TOKENS) {
		t = test_now_ms();
		ret = work_chunk(w, seq, TEXT, CQ_PAGE_TOKENS);
		t = test_now_ms() - t;
		went->slowest_ms = MAX(went->slowest_ms, t);
	}
	if (ret != -ENOBUFS)
		FAIL("%d (%s) instead of a full arena at %zu tokens", ret, cq_last_error(),
		     cq_seq_length(seq));
	went->full_at = cq_seq_length(seq);
	/* refused means unchanged */
	for (; went->refused < 100; went->refused++) {
		ASSERT_EQ(work_chunk(w, seq, TEXT, CQ_PAGE_TOKENS), -ENOBUFS);
		ASSERT_EQ(cq_seq_length(seq), went->full_at);
	}
	WORK_OK(cq_seq_get_info(seq, &info));
	ASSERT_EQ(info.tokens, went->full_at);
	/* what is there can be attended to all the while */
	WORK_OK(cq_read(seq, 0, 0, CQ_PAGE_TOKENS,
			&(struct cq_view){ w->k, CQ_F16, 0, model.dim, model.dim }, NULL));
}

static void worker(int fd, void *arg)
{
	struct went went = { 0 };
	struct cq_seq *seq, *again;
	struct work w;

	work_open(&w, &s, &model, 0, BLOCKS);
	seq = work_seq(&w, TEXT, 0);
	work_feed(&w, seq, TEXT, CQ_PAGE_TOKENS * 30);
	sys_say(fd, 'r');
	sys_hear(fd, 's');		/* cqd stands still from here */
	until_full(&w, seq, &went);
	ASSERT_LT(went.slowest_ms, 1000);	/* never waits for it */
	sys_say(fd, 'f');
	sys_hear_ms(fd, 'c', STALL_MS + SYS_DEADLINE);
	work_feed(&w, seq, TEXT, TOKENS);
	ASSERT_GT(cq_seq_length(seq), went.full_at);
	WORK_OK(cq_seal(seq, 2 * SYS_DEADLINE));
	printf("# full at %zu tokens, then %ld times -ENOBUFS; slowest call %lld ms\n",
	       went.full_at, went.refused, went.slowest_ms);
	/* every page is published, and reads as it does here */
	again = work_seq(&w, TEXT, TOKENS + 1);
	ASSERT_EQ(cq_seq_length(again), TOKENS);
	ASSERT(digest(&w, seq, TOKENS - 2 * 64) == digest(&w, again, TOKENS - 2 * 64));
	cq_seq_close(again);
	cq_seq_close(seq);
	work_close(&w);
	sys_say(fd, 'e');
}

/* The same text without any stall, in a namespace that has none of it. */
static void undisturbed(int fd, void *arg)
{
	size_t n = *(size_t *)arg;
	struct cq_seq_opts so = { .sz = sizeof(so), .flags = CQ_SEQ_NOMATCH | CQ_SEQ_PRIVATE };
	struct cq_seq *seq, *pub;
	struct work w;

	work_open(&w, &s, &model, 0, 256);
	WORK_OK(cq_seq_open(w.model, NULL, 0, &so, &seq));
	work_feed(&w, seq, TEXT, n);
	pub = work_seq(&w, TEXT, n + 1);
	ASSERT_EQ(cq_seq_length(pub), n);
	/* beyond the window both read the same codes */
	ASSERT(digest(&w, seq, n - 2 * 64) == digest(&w, pub, n - 2 * 64));
	cq_seq_close(pub);
	cq_seq_close(seq);
	work_close(&w);
}

TEST_LIMIT(prefill_over_a_stall_of_10_s, 90)
{
	static const struct sys_opts opts = { .model = &model };
	size_t n = 64 * 200;
	struct sys_peer a, b;
	long long stopped;

	sys_start(&s, &opts);
	sys_spawn(&a, SYS_UID_A, worker, NULL);
	sys_hear(a.fd, 'r');
	ASSERT_SYS(kill(s.cqd, SIGSTOP));
	stopped = test_now_ms();
	sys_say(a.fd, 's');
	sys_hear_ms(a.fd, 'f', STALL_MS);
	while (test_now_ms() < stopped + STALL_MS)
		usleep(10000);
	ASSERT_SYS(kill(s.cqd, SIGCONT));
	sys_say(a.fd, 'c');
	sys_hear_ms(a.fd, 'e', 3 * SYS_DEADLINE);
	sys_join(&a);
	sys_spawn(&b, SYS_UID_B, undisturbed, &n);
	sys_join(&b);
	sys_stop(&s);
}
