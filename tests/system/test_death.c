/* SPDX-License-Identifier: MIT */
/*
 * A worker killed in mid-append: what it held is free within 10 ms of the
 * moment its pidfd fires, and nobody else notices.
 */
#include <sys/syscall.h>
#include "tests/system/work.h"

#define TEXT_A	31
#define TEXT_B	32
#define TOKENS	(64 * 24)
#define ROUNDS	15
#define LIMIT_MS 10.0

static struct sys s;
static const struct synth small = SYNTH_SMALL;

/* Appends and seals without end; told apart by its round. */
static void victim(int fd, void *arg)
{
	uint32_t text = TEXT_A + 100 + (uint32_t)*(int *)arg;
	struct cq_seq *seq, *prefix;
	struct work w;
	int ret;

	work_open(&w, &s, &small, 0, 128);
	prefix = work_seq(&w, TEXT_B, TOKENS + 1);	/* holds pins on B's pages too */
	ASSERT_EQ(cq_seq_length(prefix), TOKENS);
	seq = work_seq(&w, text, 0);
	work_feed(&w, seq, text, 128);
	WORK_OK(cq_seal(seq, SYS_DEADLINE));
	sys_say(fd, 'a');
	for (;;) {
		ret = work_chunk(&w, seq, text, 7);
		if (ret == -ENOBUFS)
			work_wait(&w, 5);
		else if (ret == -ERANGE)
			pause();
		else
			WORK_OK(ret);
	}
}

/* Attends to its own prefix all the time: the result never changes. */
static void bystander(int fd, void *arg)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	struct cq_seq *seq;
	struct work w;
	float *first;

	work_open(&w, &s, &small, 0, 0);
	work_publish(&w, TEXT_B, TOKENS);
	seq = work_seq(&w, TEXT_B, TOKENS + 1);
	ASSERT_EQ(cq_seq_length(seq), TOKENS);
	first = malloc(work_row(&w));
	ASSERT(first);
	WORK_OK(work_attend(&w, seq, TEXT_B, first));
	sys_say(fd, 'b');
	while (poll(&p, 1, 0) == 0) {
		WORK_OK(work_attend(&w, seq, TEXT_B, w.o));
		ASSERT_MEMEQ(w.o, first, work_row(&w));
	}
	sys_hear(fd, 'q');
	free(first);
	cq_seq_close(seq);
	work_close(&w);
}

static double now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

/* Kill @a; milliseconds from its pidfd's firing until the daemon has let go. */
static double kill_one(struct sys_peer *a, int admin, const Cqp__StatusOk *before)
{
	int pidfd = (int)syscall(SYS_pidfd_open, a->pid, 0);
	struct pollfd p = { .fd = pidfd, .events = POLLIN };
	Cqp__StatusOk st;
	double fired, took;

	ASSERT_SYS(pidfd);
	ASSERT_SYS(kill(a->pid, SIGKILL));
	ASSERT_EQ(poll(&p, 1, SYS_DEADLINE), 1);
	fired = now_ms();
	do {
		sys_status_on(admin, &st);
		took = now_ms() - fired;
		if (took > SYS_DEADLINE)
			FAIL("clients %llu (before %llu) arenas %llu (%llu) pinned %llu (%llu)",
			     (unsigned long long)st.clients,
			     (unsigned long long)before->clients,
			     (unsigned long long)st.arena_bytes,
			     (unsigned long long)before->arena_bytes,
			     (unsigned long long)st.pages_pinned,
			     (unsigned long long)before->pages_pinned);
	} while (st.clients != before->clients || st.arena_bytes != before->arena_bytes ||
		 st.pages_pinned != before->pages_pinned || st.pages_filling);
	close(pidfd);
	sys_kill(a);
	return took;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

TEST_LIMIT(frees_within_10_ms_and_touches_nobody, 60)
{
	Cqp__StatusOk before, held;
	double took[ROUNDS], scale = getenv("TEST_TIMEOUT_SCALE") ? 5 : 1;
	struct sys_peer a, b;
	int i, admin;

	sys_start(&s, NULL);
	admin = wire_open(s.admin);
	ASSERT_OK(admin);
	sys_spawn(&b, SYS_UID_B, bystander, NULL);
	sys_hear(b.fd, 'b');
	SYS_UNTIL(&s, st.pages_filling == 0);
	sys_status_on(admin, &before);
	ASSERT_GE(before.pages_pinned, 1);
	for (i = 0; i < ROUNDS; i++) {
		sys_spawn(&a, SYS_UID_A, victim, &i);
		sys_hear(a.fd, 'a');
		usleep((useconds_t)(i * 700));	/* another moment each time */
		sys_status_on(admin, &held);
		ASSERT_EQ(held.clients, before.clients + 1);
		ASSERT_GT(held.arena_bytes, before.arena_bytes);
		ASSERT_GT(held.pages_pinned, before.pages_pinned);
		took[i] = kill_one(&a, admin, &before);
	}
	sys_say(b.fd, 'q');
	sys_join(&b);
	qsort(took, ROUNDS, sizeof(*took), compare);
	printf("# freed after %.2f ms (median), %.2f ms (worst of %d)\n",
	       took[ROUNDS / 2], took[ROUNDS - 1], ROUNDS);
	/* of a busy machine's scheduler the worst few are not the daemon's fault */
	ASSERT(took[ROUNDS * 3 / 4] <= LIMIT_MS * scale);
	close(admin);
	sys_stop(&s);
}

/* Pages that the victim had sealed are whole and go on serving others. */
static void heir(int fd, void *arg)
{
	struct work w;
	size_t n;
	int i;

	work_open(&w, &s, &small, 0, 0);
	for (i = 0; i < 3; i++) {
		n = work_matched(&w, TEXT_A + 100 + (uint32_t)i, 4096);
		ASSERT_GE(n, 128);
	}
	work_close(&w);
}

static uint64_t verify_failed(void)
{
	Cqp__Verify body = CQP__VERIFY__INIT;
	DECLARE_MSG(msg, VERIFY, verify, body);
	int fd = wire_open(s.admin);
	uint64_t failed;
	Cqp__Msg *r;

	ASSERT_OK(fd);
	r = wire_call(fd, &msg, NULL, 0, NULL);
	ASSERT(r && r->body_case == CQP__MSG__BODY_VERIFY_OK);
	ASSERT_GT(r->verify_ok->checked, 0);
	failed = r->verify_ok->failed;
	cqp_free(r);
	close(fd);
	return failed;
}

TEST(sealed_pages_outlive_their_writer)
{
	struct sys_peer a, b;
	int i;

	sys_start(&s, NULL);
	sys_spawn(&b, SYS_UID_B, bystander, NULL);
	sys_hear(b.fd, 'b');
	for (i = 0; i < 3; i++) {
		sys_spawn(&a, SYS_UID_A, victim, &i);
		sys_hear(a.fd, 'a');
		usleep(3000);
		sys_kill(&a);
	}
	SYS_UNTIL(&s, st.clients == 1 && st.pages_filling == 0);
	ASSERT_EQ(verify_failed(), 0);
	sys_spawn(&a, SYS_UID_A, heir, NULL);
	sys_join(&a);
	sys_say(b.fd, 'q');
	sys_join(&b);
	sys_stop(&s);
}
