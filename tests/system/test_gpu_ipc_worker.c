// SPDX-License-Identifier: MIT
/*
 * Workers of libcq over memory that cq-holder has (sharing = ipc), on the emulated GPU:
 * they share pages behind handles, go on when cqd is killed, and compute anew what the
 * holder took with it.
 */
#include "tests/system/gpu_work.h"
#include "tests/system/holder.h"

static void begin(void)
{
	static char blue[1200];
	struct sys_opts o = { .blue = blue };

	gpu_env();
	hold_setup();
	/* three processes' buffers, and a pool that has ended and is open still */
	ASSERT_SYS(setenv("CQ_EMU_MEMORY", "268435456", 1));
	snprintf(blue, sizeof(blue), "%s", hold_section());
	work_model(blue, sizeof(blue));
	hold_start();
	sys_start(&s, &o);
	if (sys_root())
		ASSERT_SYS(chown(s.admin, SYS_CQD_UID, SYS_CQD_UID));
	sys_become(SYS_CQD_UID);
}

/*
 * Slots that the worker has at hand may have gone with the holder: it is told by
 * -ESTALE or -ENODATA, and begins anew.
 */
static struct cq_seq *published(const struct worker *w)
{
	struct cq_seq *seq;
	int again, ret;

	for (again = 0;; again++) {
		seq = worker_seq(w, ids, 1000);
		ASSERT_EQ(cq_seq_length(seq), 0);
		ret = feed_try(w, seq, 900);
		if (!ret)
			ret = cq_seal(seq, SYS_DEADLINE);
		if (!ret)
			break;
		if ((ret != -ESTALE && ret != -ENODATA) || again == 2)
			CQ_OK(ret);
		cq_seq_close(seq);
	}
	ASSERT_EQ(worker_info(seq).sealed, 896);
	return seq;
}

/* Publishes when told 'p', as often as that, and spoils page 5 when told 'b'. */
static void publisher(int fd, void *arg)
{
	struct cq_seq *seq;
	struct worker w;
	char told;

	worker_gpu_open(&w, &small, s.sock, 0, 64);
	while (read(fd, &told, 1) == 1 && told == 'p') {
		seq = published(&w);
		sys_say(fd, 'P');
		ASSERT_EQ(read(fd, &told, 1), 1);
		if (told == 'b') {
			spoil(&w, seq->ents[5].pg->codes + 8191);
			sys_say(fd, 'B');
			ASSERT_EQ(read(fd, &told, 1), 1);
		}
		ASSERT_EQ(told, 'c');
		cq_seq_close(seq);
		sys_say(fd, 'C');
	}
	ASSERT_EQ(told, 'e');
	cq_close(w.ctx);
}

static void publish(const struct sys_peer *p)
{
	sys_say(p->fd, 'p');
	sys_hear_ms(p->fd, 'P', 2 * SYS_DEADLINE);
}

static void read_it(void)
{
	struct sys_peer r;

	sys_spawn(&r, SYS_CQD_UID, reader, NULL);
	sys_join(&r);
}

static void drop(const struct sys_peer *p)
{
	sys_say(p->fd, 'c');
	sys_hear(p->fd, 'C');
}

static void finish(struct sys_peer *p)
{
	drop(p);
	sys_say(p->fd, 'e');
	sys_join(p);
	sys_stop(&s);
	hold_stop();
}

TEST_LIMIT(shared, 60)
{
	struct sys_peer p;

	begin();
	sys_spawn(&p, SYS_CQD_UID, publisher, NULL);
	publish(&p);
	read_it();
	sys_restart(&s);
	read_it();
	finish(&p);
}

TEST_LIMIT(holder_killed, 60)
{
	struct sys_peer p;

	begin();
	sys_spawn(&p, SYS_CQD_UID, publisher, NULL);
	publish(&p);
	hold_kill();
	while (sys_pool(&s, 1).reserved)
		usleep(500);
	drop(&p);
	hold_start();
	publish(&p);
	read_it();
	finish(&p);
}

/* Behind handles, which nobody but the helper has open in the end. */
TEST_LIMIT(verified_by_a_helper, 60)
{
	struct sys_peer p;
	char cmd[1000];

	begin();
	sys_spawn(&p, SYS_CQD_UID, publisher, NULL);
	publish(&p);
	sys_restart(&s);
	helper_finds("--pending", 14, 0);
	sys_say(p.fd, 'b');
	sys_hear(p.fd, 'B');
	sys_restart(&s);
	helper_finds("--pending", 14, 1);
	helper_finds("", 5, 0);
	drop(&p);
	sys_say(p.fd, 'e');
	sys_join(&p);
	SYS_UNTIL(&s, st.clients == 0);
	snprintf(cmd, sizeof(cmd), "'%s/cqctl' --socket '%s' evict --all >/dev/null",
		 sys_build(), s.admin);
	ASSERT_EQ(system(cmd), 0);
	while (sys_pool(&s, 1).reserved)
		usleep(500);
	sys_stop(&s);
	hold_stop();
}

/* --- a sequence under a name --- */

static void teller(int fd, void *arg)
{
	struct cq_seq *seq;
	struct worker w;

	worker_gpu_open(&w, &small, s.sock, 0, 64);
	seq = published(&w);
	CQ_OK(cq_publish(seq, "told", NULL));
	cq_close(w.ctx);
}

/* Has what a worker of the host computes, bit by bit. */
static void hearer(int fd, void *arg)
{
	size_t bytes = (size_t)900 * small.kv_heads * small.dim * sizeof(float);
	struct cq_seq *seq, *host;
	struct worker w, h;
	float *a, *b;
	uint32_t i;

	worker_gpu_open(&w, &small, s.sock, 0, 64);
	worker_open(&h, &small, s.sock, 0, 64);
	host = worker_seq(&h, NULL, 0);
	worker_grow(&h, host, ids, 900);
	CQ_OK(cq_attach(w.model, "told", NULL, &seq));
	ASSERT_EQ(cq_seq_length(seq), 900);
	for (i = 0; i < 2 * small.layers; i++) {
		a = worker_read(&w, seq, i / 2, 900, i % 2);
		b = worker_read(&h, host, i / 2, 900, i % 2);
		ASSERT_MEMEQ(a, b, bytes);
		free(a);
		free(b);
	}
	cq_close(w.ctx);
	cq_close(h.ctx);
}

/* With the holder the pages have gone, and that is said. */
static void lost(int fd, void *arg)
{
	long long end = test_now_ms() + SYS_DEADLINE;
	struct cq_seq *seq;
	struct worker w;
	int ret;

	/* until cqd has met the new one */
	while ((ret = worker_gpu_try(&w, &small, s.sock, 0, 64)) == -ENODATA &&
	       test_now_ms() < end) {
		cq_close(w.ctx);
		usleep(2000);
	}
	CQ_OK(ret);
	ret = cq_attach(w.model, "told", NULL, &seq);
	ASSERT(ret == -ENOENT || ret == -ENODATA);
	cq_close(w.ctx);
}

static void alone(void (*fn)(int fd, void *arg))
{
	struct sys_peer p;

	sys_spawn(&p, SYS_CQD_UID, fn, NULL);
	sys_join(&p);
}

TEST_LIMIT(named, 60)
{
	begin();
	alone(teller);
	alone(hearer);
	sys_restart(&s);
	alone(hearer);
	hold_kill();
	while (sys_pool(&s, 1).reserved)
		usleep(500);
	hold_start();
	alone(lost);
	sys_stop(&s);
	hold_stop();
}
