// SPDX-License-Identifier: MIT
/*
 * A sequence handed over while processes die: its publisher is killed, cqd is
 * killed and started again by the service manager, and who attaches then
 * computes what the publisher would have, bit for bit.
 */
#include "tests/system/work.h"

#define TEXT	71
#define TOKENS	(64 * 20 + 37)

static struct sys s;
static const struct synth small = SYNTH_SMALL;

/* Publishes, says what it computes next, and waits for its end. */
static void publisher(int fd, void *arg)
{
	struct cq_seq *seq;
	struct work w;

	work_open(&w, &s, &small, 0, 0);
	seq = work_seq(&w, TEXT, 0);
	work_feed(&w, seq, TEXT, TOKENS);
	WORK_OK(cq_publish(seq, "live", NULL));
	WORK_OK(work_attend(&w, seq, TEXT, w.o));
	ASSERT_EQ(write(fd, w.o, work_row(&w)), work_row(&w));
	pause();
}

static void attacher(int fd, void *arg)
{
	struct cq_seq *seq;
	struct work w;

	work_open(&w, &s, &small, 0, 0);
	WORK_OK(cq_attach(w.model, "live", NULL, &seq));
	ASSERT_EQ(cq_seq_length(seq), TOKENS);
	WORK_OK(work_attend(&w, seq, TEXT, w.o));
	ASSERT_EQ(write(fd, w.o, work_row(&w)), work_row(&w));
	/* and goes on: pages that it fills are published like any other's */
	work_feed(&w, seq, TEXT, TOKENS + 100);
	WORK_OK(cq_seal(seq, SYS_DEADLINE));
	cq_seq_close(seq);
	work_close(&w);
}

static void take(int fd, float *o, size_t bytes)
{
	size_t got = 0;
	ssize_t n;

	while (got < bytes) {
		n = read(fd, (char *)o + got, bytes - got);
		ASSERT_GT(n, 0);
		got += (size_t)n;
	}
}

static void attach_result(float *o, size_t bytes)
{
	struct sys_peer p;

	sys_spawn(&p, SYS_UID_B, attacher, NULL);
	take(p.fd, o, bytes);
	sys_join(&p);
}

TEST_LIMIT(handed_over_across_deaths, 60)
{
	size_t row = (size_t)small.heads * small.dim * sizeof(float);
	float *a = malloc(row), *b = malloc(row);
	struct sys_peer p;
	int i;

	ASSERT(a && b);
	sys_start(&s, NULL);
	sys_spawn(&p, SYS_UID_A, publisher, NULL);
	take(p.fd, a, row);
	ASSERT_SYS(kill(p.pid, SIGKILL));
	ASSERT_EQ(waitpid(p.pid, NULL, 0), p.pid);
	close(p.fd);
	for (i = 0; i < 3; i++) {
		attach_result(b, row);
		ASSERT_MEMEQ(b, a, row);
		sys_restart(&s);
	}
	attach_result(b, row);
	ASSERT_MEMEQ(b, a, row);
	free(a);
	free(b);
	sys_stop(&s);
}
