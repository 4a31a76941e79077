// SPDX-License-Identifier: MIT
/*
 * Workers of libcq on the emulated GPU, and a cqd that is killed and adopted
 * between their calls: sessions are resumed, slots go on being theirs.
 */
#include "tests/system/gpu_work.h"

static void begin(void)
{
	static char blue[600];
	struct sys_opts o = { .blue = blue };

	gpu_env();
	snprintf(blue, sizeof(blue), "[gpu g0]\nuuid = " GPU_UUID "\npool_bytes = 32M\n");
	work_model(blue, sizeof(blue));
	sys_start(&s, &o);
}

static void until_used(uint64_t used)
{
	ASSERT_EQ(sys_pool(&s, 1).n, 2);
	sys_until_used(&s, 1, used);
}

/* Grows by 300 tokens for each 'g', up to 900; then 'e'. */
static void grower(int fd, void *arg)
{
	struct cq_seq *seq;
	struct worker w;
	size_t n;
	int ret;

	worker_gpu_open(&w, &small, s.sock, 0, 64);
	seq = worker_seq(&w, ids, 1000);
	for (n = 300; n <= 900; n += 300) {
		sys_hear(fd, 'g');
		feed(&w, seq, n);
		sys_say(fd, 'G');
	}
	sys_hear(fd, 's');
	while ((ret = cq_seal(seq, SYS_DEADLINE)) == -ENOTCONN)
		usleep(1000);
	CQ_OK(ret);
	ASSERT_EQ(worker_info(seq).sealed, 896);
	ASSERT_EQ(w.model->gpu->epoch, 0);
	sys_say(fd, 'S');
	sys_hear(fd, 'e');
	cq_close(w.ctx);
}

/* cqd is killed @restarts times while pages are on their way. */
static void over_restarts(int restarts)
{
	struct sys_peer g, rd;
	int i;

	begin();
	sys_spawn(&g, SYS_UID_A, grower, NULL);
	for (i = 0; i < 3; i++) {
		sys_say(g.fd, 'g');
		if (i < restarts)
			sys_restart(&s);
		sys_hear_ms(g.fd, 'G', 2 * SYS_DEADLINE);
	}
	sys_say(g.fd, 's');
	if (restarts > 3)
		sys_restart(&s);
	sys_hear_ms(g.fd, 'S', 2 * SYS_DEADLINE);
	sys_spawn(&rd, SYS_UID_B, reader, NULL);
	sys_join(&rd);
	sys_say(g.fd, 'e');
	sys_join(&g);
	/* 14 pages and the sinks of one: nothing is leased any more */
	until_used(14 * cq_slot_bytes(work_payload()) + cq_slot_bytes(4096));
	sys_stop(&s);
}

TEST_LIMIT(shared, 60)
{
	over_restarts(0);
}

TEST_LIMIT(cqd_killed, 60)
{
	over_restarts(4);
}

/* Keys of 10 bits, values of 8: every page is verified by its reader. */
TEST_LIMIT(cqd_killed_wide_codes, 60)
{
	small.k = "8c10b";
	over_restarts(4);
}

TEST_LIMIT(cqd_killed_slow_device, 90)
{
	ASSERT_SYS(setenv("CQ_EMU_DELAY_US", "2000", 1));
	over_restarts(4);
}

/* --- pages that cqd took over --- */

/* Publishes 14 pages, spoils page 5 when told 'p', the sinks when told 's'. */
static void spoiler(int fd, void *arg)
{
	struct cq_seq *seq;
	struct worker w;

	worker_gpu_open(&w, &small, s.sock, 0, 64);
	seq = worker_seq(&w, ids, 1000);
	feed(&w, seq, 900);
	CQ_OK(cq_seal(seq, SYS_DEADLINE));
	sys_say(fd, 'S');
	sys_hear(fd, 'p');
	spoil(&w, seq->ents[5].pg->codes + 8191);
	sys_say(fd, 'P');
	sys_hear(fd, 's');
	spoil(&w, seq->ents[0].pg->sink.data + 17);
	sys_say(fd, 'D');
	sys_hear(fd, 'e');
	cq_close(w.ctx);
}

static void finds(int fd, void *arg)
{
	size_t want = *(size_t *)arg;
	struct worker w;

	worker_gpu_open(&w, &small, s.sock, 0, 64);
	ASSERT_EQ(cq_seq_length(worker_seq(&w, ids, 900)), want);
	/* Looked at by then: found as before. */
	ASSERT_EQ(cq_seq_length(worker_seq(&w, ids, 900)), want);
	cq_close(w.ctx);
}

static void look(size_t want)
{
	struct sys_peer p;

	sys_spawn(&p, SYS_UID_B, finds, &want);
	sys_join(&p);
}

TEST_LIMIT(verified_after_a_restart, 60)
{
	Cqp__StatusOk st;
	struct sys_peer p;

	begin();
	sys_spawn(&p, SYS_UID_A, spoiler, NULL);
	sys_hear_ms(p.fd, 'S', 2 * SYS_DEADLINE);
	look(896);
	sys_restart(&s);
	look(896);
	sys_say(p.fd, 'p');
	sys_hear(p.fd, 'P');
	/* Nobody looks twice: what changes later is the next restart's. */
	look(896);
	sys_restart(&s);
	look(320);
	sys_status(&s, &st);
	ASSERT_EQ(st.checksum_failures, 1);
	sys_say(p.fd, 's');
	sys_hear(p.fd, 'D');
	sys_restart(&s);
	look(0);
	sys_say(p.fd, 'e');
	sys_join(&p);
	sys_stop(&s);
}

/* The same by a process that is no worker: whoever comes later finds nothing to look at. */
TEST_LIMIT(verified_by_a_helper, 60)
{
	Cqp__StatusOk st;
	struct sys_peer p;
	char out[600];

	begin();
	sys_spawn(&p, SYS_UID_A, spoiler, NULL);
	sys_hear_ms(p.fd, 'S', 2 * SYS_DEADLINE);
	helper_finds("--pending", 0, 0);
	helper_finds("", 14, 0);
	sys_restart(&s);
	helper_finds("--pending", 14, 0);
	helper_finds("--pending", 0, 0);
	sys_say(p.fd, 'p');
	sys_hear(p.fd, 'P');
	helper_finds("--pending", 0, 0);
	sys_restart(&s);
	/* Those behind page 5 go with it, looked at or not. */
	helper_finds("--pending", 14, 1);
	sys_status(&s, &st);
	ASSERT_EQ(st.checksum_failures, 1);
	helper_finds("", 5, 0);
	look(320);
	sys_status(&s, &st);
	ASSERT_EQ(st.checksum_failures, 1);
	sys_say(p.fd, 's');
	sys_hear(p.fd, 'D');
	helper_finds("", 5, 1);
	look(0);
	ASSERT_EQ(helper("", out, sizeof(out)), 0);
	sys_say(p.fd, 'e');
	sys_join(&p);
	sys_stop(&s);
}

/* No such pool, the host's, no driver: said, and cqd goes on. */
TEST_LIMIT(helper_refused, 60)
{
	struct sys_peer p;
	char out[600];

	begin();
	ASSERT_EQ(helper("--gpu g7", out, sizeof(out)), 1);
	ASSERT_STRHAS(out, "no pool \"g7\"");
	ASSERT_EQ(helper("--gpu host", out, sizeof(out)), 1);
	ASSERT_STRHAS(out, "cqd reads itself");
	sys_spawn(&p, SYS_UID_A, spoiler, NULL);
	sys_hear_ms(p.fd, 'S', 2 * SYS_DEADLINE);
	ASSERT_SYS(setenv("CQ_EMU_VERSION", "11080", 1));
	ASSERT_EQ(helper("", out, sizeof(out)), 1);
	ASSERT_STRHAS(out, "12.0 or newer is needed");
	ASSERT_SYS(unsetenv("CQ_EMU_VERSION"));
	ASSERT_SYS(setenv("CQ_EMU_FAIL", "cuMemcpyDtoH:3", 1));
	ASSERT_EQ(helper("", out, sizeof(out)), 1);
	ASSERT_STRHAS(out, "reading a page");
	ASSERT_SYS(unsetenv("CQ_EMU_FAIL"));
	helper_finds("", 14, 0);
	look(896);
	sys_say(p.fd, 'p');
	sys_hear(p.fd, 'P');
	sys_say(p.fd, 's');
	sys_hear(p.fd, 'D');
	sys_say(p.fd, 'e');
	sys_join(&p);
	sys_stop(&s);
}

/* Launched, committed, and killed before anything could be sealed. */
static void victim(int fd, void *arg)
{
	struct cq_seq *seq;
	struct worker w;

	ASSERT_SYS(setenv("CQ_EMU_DELAY_US", "20000", 1));
	worker_gpu_open(&w, &small, s.sock, CQ_OPEN_POLL, 64);
	seq = worker_seq(&w, ids, 300);
	CQ_OK(gpu_append_layer(&w, seq, ids, 200, 0));
	CQ_OK(gpu_append_layer(&w, seq, ids, 200, 1));
	CQ_OK(cq_commit(seq, ids, 200));
	cq_poll(w.ctx, 0);
	sys_say(fd, 'k');
	for (;;)
		pause();
}

TEST_LIMIT(worker_killed, 60)
{
	struct sys_peer v, g;
	int i;

	begin();
	sys_spawn(&v, SYS_UID_A, victim, NULL);
	sys_hear(v.fd, 'k');
	ASSERT_GT(gpu_used(), 0);
	sys_kill(&v);
	until_used(0);
	sys_spawn(&g, SYS_UID_A, grower, NULL);
	for (i = 0; i < 3; i++) {
		sys_say(g.fd, 'g');
		sys_hear(g.fd, 'G');
	}
	sys_say(g.fd, 's');
	sys_hear(g.fd, 'S');
	sys_say(g.fd, 'e');
	sys_join(&g);
	sys_stop(&s);
}

/* --- answers that are lost with their connection --- */

static void lose(struct worker *w)
{
	pthread_mutex_lock(&w->ctx->lock);
	cqc_conn_drop(w->ctx, -ECONNRESET);
	pthread_mutex_unlock(&w->ctx->lock);
}

/* SealOk: the page is there, and the slot no longer leased when it is named again. */
TEST_LIMIT(seal_answer_lost, 60)
{
	const struct cqc_slot *own;
	struct cq_seq *seq;
	struct worker w;
	struct cq_pg *pg;
	int ret;

	begin();
	worker_gpu_open(&w, &small, s.sock, CQ_OPEN_POLL, 32);
	seq = worker_seq(&w, ids, 1);
	gpu_grow(&w, seq, ids, 64);
	pg = seq->ents[0].pg;
	own = &pg->own;
	while (pg->eng != CQC_ENG_SENT) {
		cqc_conn_run(w.ctx);
		usleep(100);
	}
	while (CQP_WORD_STATE(smp_load_acquire(own->word)) != CQP_SEALED)
		usleep(1000);
	lose(&w);
	while ((ret = cq_seal(seq, SYS_DEADLINE)) == -ENOTCONN)
		cq_poll(w.ctx, 10);
	CQ_OK(ret);
	ASSERT_EQ(worker_info(seq).sealed, 64);
	ASSERT_EQ(w.model->gpu->epoch, 0);
	cq_close(w.ctx);
	until_used(cq_slot_bytes(8192) + cq_slot_bytes(4096));
	sys_stop(&s);
}

/* LeaseOk: slots that the worker never heard of go back. */
TEST_LIMIT(lease_answer_lost, 60)
{
	uint64_t sinks = 4 * cq_slot_bytes(4096);
	struct cqc_pool *p;
	struct worker w;

	begin();
	worker_gpu_open(&w, &small, s.sock, CQ_OPEN_POLL, 64);
	p = &w.model->gpu->pool[0];
	ASSERT_EQ(gpu_used(), 64 * cq_slot_bytes(8192) + sinks);
	p->want = 128;
	while (!p->asked)
		cqc_conn_run(w.ctx);
	until_used(128 * cq_slot_bytes(8192) + sinks);
	lose(&w);
	while (p->ring.head - p->ring.tail < 128)
		cq_poll(w.ctx, 10);
	until_used(128 * cq_slot_bytes(8192) + sinks);
	cq_close(w.ctx);
	until_used(0);
	sys_stop(&s);
}
