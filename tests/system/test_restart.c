/* SPDX-License-Identifier: MIT */
/*
 * cqd killed and started again by the service manager: pages, pins and index
 * survive in the fd store, and no worker ever computes with something else
 * than what it attached to: a result is right or -ESTALE.
 */
#include "tests/system/work.h"

#define TEXT_A	41
#define TEXT_B	500		/* and on */
#define PREFIX	(64 * 20)
#define KILLS	24

static struct sys s;
static const struct synth small = SYNTH_SMALL;

static uint64_t sealed(void)
{
	Cqp__StatusOk st;

	sys_status(&s, &st);
	return st.pages_sealed;
}

/* Publishes, goes away: the pages must not need it. */
static void publisher(int fd, void *arg)
{
	struct work w;

	work_open(&w, &s, &small, 0, 0);
	work_publish(&w, TEXT_A, PREFIX);
	work_close(&w);
}

static void attacher(int fd, void *arg)
{
	struct cq_seq *seq;
	struct work w;
	float *o;

	work_open(&w, &s, &small, 0, 0);
	seq = work_seq(&w, TEXT_A, PREFIX + 1);
	ASSERT_EQ(cq_seq_length(seq), PREFIX);
	o = malloc(work_row(&w));
	ASSERT(o);
	WORK_OK(work_attend(&w, seq, TEXT_A, o));
	ASSERT_EQ(write(fd, o, work_row(&w)), work_row(&w));
	free(o);
	cq_seq_close(seq);
	work_close(&w);
}

static void attach_result(float *o, size_t bytes)
{
	struct sys_peer p;
	size_t got = 0;
	ssize_t n;

	sys_spawn(&p, SYS_UID_B, attacher, NULL);
	while (got < bytes) {
		n = read(p.fd, (char *)o + got, bytes - got);
		ASSERT_GT(n, 0);
		got += (size_t)n;
	}
	sys_join(&p);
}

TEST(pages_survive_kill)
{
	size_t row = (size_t)small.heads * small.dim * sizeof(float);
	float *a = malloc(row), *b = malloc(row);
	struct sys_peer p;
	uint64_t n;
	int i;

	ASSERT(a && b);
	sys_start(&s, NULL);
	sys_spawn(&p, SYS_UID_A, publisher, NULL);
	sys_join(&p);
	attach_result(a, row);
	n = sealed();
	ASSERT_EQ(n, PREFIX / CQ_PAGE_TOKENS);
	for (i = 0; i < 3; i++) {
		sys_restart(&s);
		ASSERT_EQ(sealed(), n);
		attach_result(b, row);
		ASSERT_MEMEQ(b, a, row);
		sys_check_index(&s);
	}
	free(a);
	free(b);
	sys_stop(&s);
}

/* --- attention while the daemon is gone and the pool is being filled --- */

/*
 * Reads its prefix over and over. It drives cq_poll() itself and does not: so
 * it comes back to the new daemon last, if at all.
 */
static void reader(int fd, void *arg)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	long right = 0, stale = 0;
	struct cq_seq *seq;
	struct work w;
	float *first;
	int ret;

	work_open(&w, &s, &small, CQ_OPEN_POLL, 0);
	seq = work_seq(&w, TEXT_A, PREFIX + 1);
	ASSERT_EQ(cq_seq_length(seq), PREFIX);
	first = malloc(work_row(&w));
	ASSERT(first);
	WORK_OK(work_attend(&w, seq, TEXT_A, first));
	sys_say(fd, 'a');
	while (poll(&p, 1, 0) == 0) {
		memset(w.o, 0xff, work_row(&w));
		ret = work_attend(&w, seq, TEXT_A, w.o);
		if (ret == -ESTALE) {
			stale++;
			continue;
		}
		WORK_OK(ret);
		ASSERT_MEMEQ(w.o, first, work_row(&w));
		right++;
	}
	sys_hear(fd, 'q');
	printf("# attention during restart: %ld right, %ld stale\n", right, stale);
	ASSERT_GT(right, 0);
	/* its pins survived in the index: nobody could take the pages away */
	ASSERT_EQ(stale, 0);
	free(first);
	cq_seq_close(seq);
	work_close(&w);
}

/* Fills the pool as soon as there is a daemon, and until nothing goes any more. */
static void filler(int fd, void *arg)
{
	long long end = test_now_ms() + SYS_DEADLINE;
	struct cq_seq *seq[64];
	struct work w;
	int i, ret = 0;

	sys_hear(fd, 'g');
	work_open(&w, &s, &small, 0, 0);
	for (i = 0; i < 64 && !ret && test_now_ms() < end; i++) {
		seq[i] = work_seq(&w, TEXT_B + (uint32_t)i, 0);
		work_feed(&w, seq[i], TEXT_B + (uint32_t)i, 64 * 16);
		/* open sequences keep their pins: what is pinned is not evicted */
		ret = cq_seal(seq[i], 2000);
	}
	ASSERT(ret == -ENOSPC || ret == -EDQUOT);
	sys_say(fd, 'f');
	sys_hear(fd, 'q');
	while (i-- > 0)
		cq_seq_close(seq[i]);
	work_close(&w);
}

TEST_LIMIT(right_or_stale_while_the_pool_is_filled, 60)
{
	static const struct sys_opts tight = { .daemon = "pool_bytes = 4M\n",
					       .red = "quota_bytes = 64M" };
	struct sys_peer a, b, p;
	Cqp__StatusOk before, after;
	int i;

	sys_start(&s, &tight);
	sys_spawn(&p, SYS_UID_A, publisher, NULL);
	sys_join(&p);
	sys_spawn(&a, SYS_UID_A, reader, NULL);
	sys_hear(a.fd, 'a');
	sys_spawn(&b, SYS_UID_B, filler, NULL);
	sys_status(&s, &before);
	ASSERT_GE(before.pages_pinned, 1);
	sys_tell(&s, "hold");
	ASSERT_SYS(kill(s.cqd, SIGKILL));
	sys_expect(&s, "killed ");
	usleep(20000);		/* A goes on without a daemon */
	sys_tell(&s, "go");
	sys_expect(&s, "ready ");
	sys_status(&s, &after);
	ASSERT_EQ(after.pages_pinned, before.pages_pinned);
	ASSERT_EQ(after.orphans, 1);
	sys_say(b.fd, 'g');
	sys_hear_ms(b.fd, 'f', 20000);
	sys_check_index(&s);
	/* once more, with a full pool */
	sys_restart(&s);
	for (i = 0; i < 50; i++)
		usleep(1000);
	sys_say(a.fd, 'q');
	sys_join(&a);
	sys_say(b.fd, 'q');
	sys_join(&b);
	sys_stop(&s);
}

/* --- many kills --- */

/* Publishes text after text until told to stop; says how many. */
static void writer(int fd, void *arg)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	uint32_t text = (uint32_t)*(int *)arg, n = 0;
	struct cq_seq *seq;
	struct work w;
	int ret;

	work_open(&w, &s, &small, 0, 0);
	sys_say(fd, 'w');
	while (poll(&p, 1, 0) == 0 || n == 0) {
		seq = work_seq(&w, text + n, 0);
		work_feed(&w, seq, text + n, 64 * 3);
		do {
			ret = cq_seal(seq, 2000);
		} while (ret == -ENOTCONN || ret == -ETIMEDOUT);
		WORK_OK(ret);
		cq_seq_close(seq);
		n++;
	}
	sys_hear(fd, 'q');
	ASSERT_EQ(write(fd, &n, sizeof(n)), sizeof(n));
	work_close(&w);
}

struct texts {
	uint32_t first, n;
};

/* Every text that a writer was told is published is there, whole. */
static void inheritor(int fd, void *arg)
{
	const struct texts *t = arg;
	struct work w;
	uint32_t i;

	work_open(&w, &s, &small, 0, 0);
	for (i = 0; i < t->n; i++)
		ASSERT_EQ(work_matched(&w, t->first + i, 64 * 3 + 1), 64 * 3);
	work_close(&w);
}

static void check_texts(uint32_t first, uint32_t n)
{
	struct texts t = { first, n };
	struct sys_peer p;

	sys_spawn(&p, SYS_UID_B, inheritor, &t);
	sys_join(&p);
}

TEST_LIMIT(killed_at_any_moment, 120)
{
	static const struct sys_opts opts = { .daemon = "pool_bytes = 256M\n" };
	int first[2] = { 1000, 2000000 }, i;
	uint64_t x = 1, before;
	struct sys_peer w[2];
	uint32_t n[2];

	sys_start(&s, &opts);
	for (i = 0; i < 2; i++) {
		sys_spawn(&w[i], i ? SYS_UID_B : SYS_UID_A, writer, &first[i]);
		sys_hear(w[i].fd, 'w');
	}
	for (i = 0; i < KILLS; i++) {
		before = sealed();
		x = synth_mix(x);
		usleep((useconds_t)(x % 60000));
		sys_restart(&s);
		/* nothing that was published is lost; more may have come meanwhile */
		ASSERT_GE(sealed(), before);
	}
	for (i = 0; i < 2; i++) {
		sys_say(w[i].fd, 'q');
		ASSERT_EQ(read(w[i].fd, &n[i], sizeof(n[i])), sizeof(n[i]));
		sys_join(&w[i]);
	}
	printf("# %d kills, %u and %u texts published meanwhile\n", KILLS, n[0], n[1]);
	ASSERT_GT(n[0] + n[1], 10);
	SYS_UNTIL(&s, st.clients == 0 && st.pages_filling == 0);
	sys_check_index(&s);
	for (i = 0; i < 2; i++)
		check_texts((uint32_t)first[i], n[i]);
	sys_stop(&s);
}

/* A worker with its own thread finds the new daemon and goes on publishing. */
static void survivor(int fd, void *arg)
{
	struct cq_seq *seq;
	struct work w;

	work_open(&w, &s, &small, 0, 0);
	seq = work_seq(&w, TEXT_A, 0);
	work_feed(&w, seq, TEXT_A, 64 * 4);
	WORK_OK(cq_seal(seq, SYS_DEADLINE));
	sys_say(fd, 's');
	sys_hear(fd, 'g');	/* the daemon is gone now */
	work_feed(&w, seq, TEXT_A, 64 * 8 + 5);
	sys_say(fd, 'f');
	sys_hear(fd, 'b');	/* and back */
	while (cq_seal(seq, 1000) == -ENOTCONN)
		usleep(1000);
	WORK_OK(cq_seal(seq, SYS_DEADLINE));
	ASSERT_EQ(work_matched(&w, TEXT_A, PREFIX), 64 * 8);
	cq_seq_close(seq);
	work_close(&w);
}

TEST(tokens_go_on_without_a_daemon)
{
	struct sys_peer a;

	sys_start(&s, NULL);
	sys_spawn(&a, SYS_UID_A, survivor, NULL);
	sys_hear(a.fd, 's');
	sys_tell(&s, "hold");
	ASSERT_SYS(kill(s.cqd, SIGKILL));
	sys_expect(&s, "killed ");
	sys_say(a.fd, 'g');
	sys_hear(a.fd, 'f');
	sys_tell(&s, "go");
	sys_expect(&s, "ready ");
	sys_say(a.fd, 'b');
	sys_join(&a);
	sys_stop(&s);
}

/* Without a store, or with one that is full, a restart starts empty, and says so. */
TEST(without_a_store_nothing_is_kept_and_nothing_breaks)
{
	static const struct sys_opts none = { .manager = { "-N" } };
	static const struct sys_opts few = { .manager = { "-m", "3" } };
	const struct sys_opts *o[] = { &none, &few };
	struct sys_peer p;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(o); i++) {
		sys_start(&s, o[i]);
		sys_spawn(&p, SYS_UID_A, publisher, NULL);
		sys_join(&p);
		sys_restart(&s);
		ASSERT_EQ(sealed(), 0);
		sys_spawn(&p, SYS_UID_A, publisher, NULL);
		sys_join(&p);
		sys_stop(&s);
	}
}

/*
 * A worker for scripts that have no C (boot): with CQ_WORKER set to one of the
 * words below and CQ_WORKER_ARG to the socket, this program does that and nothing
 * else.
 *
 *	model	write the model to CQ_WORKER_ARG
 *	enter	connect, to namespace CQ_WORKER_TENANT if it is set
 *	count	say how many tokens of the text are published
 *	publish	write the text, and find it
 *	attach	find it
 *	hold	find it and keep it until a signal comes
 *	write	find it; nothing that is mapped may be opened for writing
 */
static void enter_only(const char *sock)
{
	const char *tenant = getenv("CQ_WORKER_TENANT");
	struct cq_open_opts oo = { .sz = sizeof(oo), .socket = sock, .name = "test" };
	struct cq_ctx *ctx;

	oo.tenant = tenant && tenant[0] ? tenant : NULL;
	if (cq_open(&oo, &ctx)) {
		fprintf(stderr, "%s\n", cq_last_error());
		_exit(1);
	}
	cq_close(ctx);
	_exit(0);
}

/* What cqd hands over, opened again: only its owner or root's power could. */
static void open_given(const char *sock)
{
	static struct cqp_frame f;
	Cqp__ModelOpen body = CQP__MODEL_OPEN__INIT;
	DECLARE_MSG(msg, MODEL_OPEN, model_open, body);
	char name[] = "tiny", path[64];
	int fd = wire_open(sock);
	unsigned int i;

	ASSERT_OK(fd);
	body.name = name;
	cqp_free(wire_call(fd, &msg, NULL, 0, &f));
	ASSERT_EQ(f.n_fds, 2);
	for (i = 0; i < f.n_fds; i++) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", f.fds[i]);
		ASSERT(open(path, O_RDWR | O_CLOEXEC) < 0 && errno == EACCES);
	}
	cqp_frame_close(&f);
	close(fd);
}

/* Through the kernel's links to what is mapped. */
static void open_mapped(void)
{
	char path[300];
	struct dirent *e;
	DIR *d = opendir("/proc/self/map_files");
	unsigned int n = 0;
	char to[256];
	ssize_t len;

	ASSERT(d);
	while ((e = readdir(d))) {
		snprintf(path, sizeof(path), "/proc/self/map_files/%s", e->d_name);
		len = readlink(path, to, sizeof(to) - 1);
		to[MAX(len, 0)] = 0;
		if (!strstr(to, "/memfd:cq-"))
			continue;
		n++;
		ASSERT(open(path, O_RDWR | O_CLOEXEC) < 0);
	}
	closedir(d);
	ASSERT_GE(n, 3);	/* codes, sinks, state words; and the model */
}

__attribute__((constructor))
static void run_as_worker(void)
{
	const char *what = getenv("CQ_WORKER"), *arg = getenv("CQ_WORKER_ARG");
	struct cq_err err = { "" };
	struct work w;

	if (!what || !arg)
		return;
	if (!strcmp(what, "model")) {
		if (synth_model(&small, arg, &err))
			FAIL("%s", err.text);
		_exit(0);
	}
	if (!strcmp(what, "enter"))
		enter_only(arg);
	snprintf(s.sock, sizeof(s.sock), "%s", arg);
	work_open(&w, &s, &small, 0, 0);
	if (!strcmp(what, "count")) {
		printf("%zu\n", work_matched(&w, TEXT_A, PREFIX + 1));
		fflush(stdout);
		_exit(0);
	}
	if (!strcmp(what, "publish"))
		work_publish(&w, TEXT_A, PREFIX);
	if (!strcmp(what, "hold")) {
		ASSERT_EQ(cq_seq_length(work_seq(&w, TEXT_A, PREFIX + 1)), PREFIX);
		pause();
	}
	ASSERT_EQ(work_matched(&w, TEXT_A, PREFIX + 1), PREFIX);
	if (!strcmp(what, "write")) {
		work_seq(&w, TEXT_A, PREFIX + 1);
		open_mapped();
		open_given(arg);
	}
	work_close(&w);
	_exit(0);
}

/* "watchdog" of the service manager: a daemon that hangs is replaced. */
TEST(watchdog)
{
	static const struct sys_opts opts = { .manager = { "-w", "500000" } };
	struct sys_peer p;

	sys_start(&s, &opts);
	sys_spawn(&p, SYS_UID_A, publisher, NULL);
	sys_join(&p);
	ASSERT_SYS(kill(s.cqd, SIGSTOP));
	/* SIGABRT stays pending in a stopped process: let it be delivered */
	usleep(700000);
	ASSERT_SYS(kill(s.cqd, SIGCONT));
	sys_expect(&s, "killed ");
	sys_expect(&s, "ready ");
	ASSERT_EQ(sealed(), PREFIX / CQ_PAGE_TOKENS);
	sys_stop(&s);
}
