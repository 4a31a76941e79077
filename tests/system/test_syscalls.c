/* SPDX-License-Identifier: MIT */
/*
 * The token loop makes no system call: the calling thread is traced over
 * 10,000 tokens, with one attention call each, or two of half the pages that are
 * merged. A futex or an eventfd write per
 * sealed page is all it may do.
 */
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include "tests/system/work.h"

#define TEXT	21
#define TOKENS	10000
#define PAGES	(TOKENS / CQ_PAGE_TOKENS)	/* 156 */
#define MARK	0x5ea1ull	/* marks the loop's begin and end: close(MARK) */

static struct sys s;
static const struct synth lean = { .layers = 1, .heads = 1, .kv_heads = 1, .dim = 64,
				   .sinks = 4, .window = 64, .max_position = 16384,
				   .code = "4c8b", .seed = 3 };

/* Rows of all tokens, made beforehand: the loop itself is cq's alone. */
static uint16_t *k_rows, *v_rows, *q_rows;
static uint32_t *ids;

static void make_rows(void)
{
	size_t n = (size_t)TOKENS * lean.dim;

	k_rows = malloc(n * 2);
	v_rows = malloc(n * 2);
	q_rows = malloc(n * 2);
	ids = malloc(TOKENS * sizeof(*ids));
	ASSERT(k_rows && v_rows && q_rows && ids);
	synth_rows(k_rows, &lean, TEXT, 0, 0, 0, TOKENS);
	synth_rows(v_rows, &lean, TEXT, 1, 0, 0, TOKENS);
	synth_rows(q_rows, &lean, TEXT, 2, 0, 0, TOKENS);
	synth_ids(ids, TOKENS, TEXT);
}

/* Half the pages at a time. */
static void attend_parts(struct work *w, struct cq_attn_opts *to, const struct cq_view *q,
			 const struct cq_view *o)
{
	static float mem[2][64], lse[2];
	struct cq_part p[2] = { { .o = *o, .lse = &lse[0] }, { .o = *o, .lse = &lse[1] } };

	to->n_parts = 2;
	for (; to->part < 2; to->part++) {
		p[to->part].o.data = mem[to->part];
		to->lse = &lse[to->part];
		WORK_OK(cq_attention(w->batch, 0, q, &p[to->part].o, to));
	}
	WORK_OK(cq_merge(w->batch, p, 2, o, NULL));
}

static void token(struct work *w, struct cq_seq *seq, size_t t)
{
	struct cq_append_opts ao = { .sz = sizeof(ao), .device = CQ_DEVICE_HOST };
	struct cq_attn_opts to = { .sz = sizeof(to), .device = CQ_DEVICE_HOST };
	struct cq_view k = synth_view(&lean, k_rows + t * lean.dim, 1);
	struct cq_view v = synth_view(&lean, v_rows + t * lean.dim, 1);
	struct cq_view q = synth_view(&lean, q_rows + t * lean.dim, 1);
	struct cq_view o = { .data = w->o, .dtype = CQ_F32, .stride_token = lean.dim,
			     .stride_head = lean.dim };
	uint32_t rows = 1;

	WORK_OK(cq_step(w->batch, &seq, &rows, 1));
	WORK_OK(cq_append(seq, 0, &k, &v, 1, &ao));
	if (t % 2)
		attend_parts(w, &to, &q, &o);
	else
		WORK_OK(cq_attention(w->batch, 0, &q, &o, &to));
	WORK_OK(cq_commit(seq, ids + t, 1));
}

static void worker(int fd, void *arg)
{
	struct cq_seq *seq;
	struct work w;
	size_t t;

	make_rows();
	/* room for every page, so that nothing is waited for */
	work_open(&w, &s, &lean, 0, 512);
	WORK_OK(cq_batch_split(w.batch, 2));
	seq = work_seq(&w, TEXT, 0);
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
	sys_say(fd, 'w');
	sys_hear(fd, 'g');
	syscall(SYS_close, MARK);
	for (t = 0; t < TOKENS; t++)
		token(&w, seq, t);
	syscall(SYS_close, MARK);
	WORK_OK(cq_seal(seq, SYS_DEADLINE));
	cq_seq_close(seq);
	/* this process and any other find every page */
	ASSERT_EQ(work_matched(&w, TEXT, TOKENS), PAGES * CQ_PAGE_TOKENS);
	work_close(&w);
	sys_say(fd, 'e');
}

struct seen {
	long futex, eventfd, other, marks;
	long long first_other;
};

static bool is_eventfd(pid_t pid, uint64_t fd)
{
	char path[64], name[64];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/fd/%llu", (int)pid, (unsigned long long)fd);
	n = readlink(path, name, sizeof(name) - 1);
	name[MAX(n, 0)] = 0;
	return n > 0 && strstr(name, "eventfd");
}

static void count_call(pid_t pid, struct seen *seen)
{
	struct __ptrace_syscall_info i;

	ASSERT(ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof(i), &i) > 0);
	if (i.op != PTRACE_SYSCALL_INFO_ENTRY)
		return;
	if (i.entry.nr == SYS_close && i.entry.args[0] == MARK)
		seen->marks++;
	else if (seen->marks != 1)
		return;
	else if (i.entry.nr == SYS_futex)
		seen->futex++;
	else if (i.entry.nr == SYS_write && i.entry.args[2] == 8 &&
		 is_eventfd(pid, i.entry.args[0]))
		seen->eventfd++;
	else if (!seen->other++)
		seen->first_other = (long long)i.entry.nr;
}

/* Trace one thread from mark to mark; its own threads are not followed. */
static void trace(pid_t pid, int fd, struct seen *seen)
{
	int status, sig = 0;

	memset(seen, 0, sizeof(*seen));
	if (ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACESYSGOOD))
		SKIP("cannot trace a process here: %s", strerror(errno));
	ASSERT_SYS(ptrace(PTRACE_INTERRUPT, pid, 0, 0));
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	sys_say(fd, 'g');
	while (seen->marks < 2) {
		ASSERT_SYS(ptrace(PTRACE_SYSCALL, pid, 0, sig));
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		if (!WIFSTOPPED(status))
			FAIL("worker ended with status %#x", (unsigned int)status);
		sig = 0;
		if (WSTOPSIG(status) == (SIGTRAP | 0x80))
			count_call(pid, seen);
		else if (status >> 16 == 0)
			sig = WSTOPSIG(status);
	}
	ASSERT_SYS(ptrace(PTRACE_DETACH, pid, 0, 0));
}

static void other_worker(int fd, void *arg)
{
	struct work w;

	work_open(&w, &s, &lean, 0, 0);
	ASSERT_EQ(work_matched(&w, TEXT, TOKENS), PAGES * CQ_PAGE_TOKENS);
	work_close(&w);
}

TEST_LIMIT(token_loop_makes_no_system_call, 120)
{
	static const struct sys_opts opts = { .model = &lean };
	struct sys_peer a, b;
	struct seen seen;

	sys_start(&s, &opts);
	sys_spawn(&a, SYS_UID_A, worker, NULL);
	sys_hear(a.fd, 'w');
	trace(a.pid, a.fd, &seen);
	printf("# %d tokens, %d pages: %ld futex, %ld eventfd writes, %ld others\n",
	       TOKENS, PAGES, seen.futex, seen.eventfd, seen.other);
	if (seen.other)
		FAIL("the calling thread made system call %lld", seen.first_other);
	ASSERT_LE(seen.eventfd, PAGES);
	/* a lock that libcq's own thread has just then is waited for */
	ASSERT_LE(seen.futex, PAGES / 8);
	/* the pages do have to be handed over somehow */
	ASSERT_GE(seen.futex + seen.eventfd, 1);
	sys_hear_ms(a.fd, 'e', 30000);
	sys_join(&a);
	sys_spawn(&b, SYS_UID_B, other_worker, NULL);
	sys_join(&b);
	sys_stop(&s);
}
