/* SPDX-License-Identifier: MIT */
/*
 * cqd is killed with 8 GiB of pages and started again: how long until it
 * answers a ping (ping_ms) and finds pages for an attach (attach_ms), both from
 * the signal on; the part before the new program's first line (exec_ms); how
 * long 10,000 clients take to come back (back_ms); the longest a token loop of
 * a worker stood still meanwhile (token_max_us), beside the longest in a time as
 * long without a restart (quiet_max_us) and that of a thread that only wakes up
 * (control_max_us); pings while pages are verified in the background (verify_*).
 *
 * Where that is allowed, cqd, its manager and the token loop have real-time
 * priority (rt), as Documentation/performance.md shows for cqd.service.
 *
 * BENCH_RESTART_GB=N instead of 8 (less if the machine has no room for it),
 * BENCH_CLIENTS=N instead of 10,000, BENCH_RESTARTS=N times instead of 5.
 */
#define TESTS_BENCH
#include "tests/bench/fill.h"
#include "tests/bench/own.h"
#include "tests/system/work.h"

#define PER_GB		32768		/* pages: a slot has 32 KiB */
#define TEXT		7
#define PREFIX		512
#define LIMIT		1024		/* tokens of the loop's sequence */
#define PAUSE_NS	2000000ull	/* between tokens: real-time threads must sleep */
#define WINDOW_NS	1000000000ull
#define PINGS		1000

/**
 * struct seen - what the token loop tells, in shared memory
 * @longest: ns, of what is one token, since it was last set to 0
 */
struct seen {
	uint64_t longest, tokens, stale;
};

static struct sys s;
static struct seen *seen;
static uint32_t n_pages;
static int n_clients, *fds;
static uint64_t *sessions;
static bool rt;
static const struct synth model = { .layers = 7, .heads = 4, .kv_heads = 2, .dim = 64,
				    .window = 64, .max_position = 32768, .code = "4c8b",
				    .seed = 4 };

/* --- the token loop --- */

static int token(struct work *w, struct cq_seq *seq, bool keep)
{
	struct cq_attn_opts to = { .sz = sizeof(to), .device = CQ_DEVICE_HOST };
	struct cq_view q = synth_view(&model, w->q, model.heads);
	struct cq_view o = { .data = w->o, .dtype = CQ_F32,
			     .stride_token = (int64_t)model.heads * model.dim,
			     .stride_head = model.dim };
	uint32_t rows = 1, l, id = 1;
	int ret = cq_step(w->batch, &seq, &rows, 1);

	for (l = 0; !ret && l < model.layers; l++) {
		ret = work_append(w, seq, TEXT, l, 1);
		if (!ret)
			ret = cq_attention(w->batch, l, &q, &o, &to);
	}
	if (!ret && keep)
		return cq_commit(seq, &id, 1);
	if (cq_truncate(seq, cq_seq_length(seq)))
		FAIL("%s", cq_last_error());
	return ret;
}

static void worker(int fd, void *arg)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	uint64_t due, now;
	struct cq_seq *seq;
	struct timespec ts;
	struct work w;
	int ret;

	prctl(PR_SET_TIMERSLACK, 1);
	work_open(&w, &s, &model, 0, 0);
	work_publish(&w, TEXT, PREFIX);
	seq = work_seq(&w, TEXT, PREFIX + 1);
	ASSERT_EQ(cq_seq_length(seq), PREFIX);
	synth_rows(w.q, &model, TEXT, 2, 0, PREFIX, 1);
	sys_say(fd, 'r');
	while (poll(&p, 1, 0) == 0) {
		due = bench_now_ns() + PAUSE_NS;
		ts.tv_sec = (time_t)(due / 1000000000);
		ts.tv_nsec = (long)(due % 1000000000);
		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL))
			;
		ret = token(&w, seq, cq_seq_length(seq) < LIMIT);
		if (ret == -ESTALE)
			seen->stale++;
		else if (ret)
			FAIL("token: %s", cq_last_error());
		seen->tokens++;
		now = bench_now_ns() - due;
		if (now > __atomic_load_n(&seen->longest, __ATOMIC_RELAXED))
			__atomic_store_n(&seen->longest, now, __ATOMIC_RELAXED);
	}
	cq_seq_close(seq);
	work_close(&w);
}

static void tokens_begin(void)
{
	__atomic_store_n(&seen->longest, 0, __ATOMIC_RELAXED);
}

static double tokens_longest_us(void)
{
	return (double)__atomic_load_n(&seen->longest, __ATOMIC_RELAXED) / 1000;
}

/* --- the restart --- */

/* Connected, greeted and answered; microseconds that cqd has been up for. */
static int first_ping(uint64_t *uptime_us)
{
	Cqp__Ping body = CQP__PING__INIT;
	DECLARE_MSG(msg, PING, ping, body);
	Cqp__Msg *r;
	int fd;

	for (;;) {
		fd = wire_open(s.sock);
		r = fd < 0 ? NULL : wire_call(fd, &msg, NULL, 0, NULL);
		if (r && r->body_case == CQP__MSG__BODY_PONG)
			break;
		cqp_free(r);
		if (fd >= 0)
			close(fd);	/* taken by the one that died */
	}
	*uptime_us = r->pong->uptime_us;
	cqp_free(r);
	return fd;
}

/* Everything that an attach asks for: the model, and resident pages. */
static void first_attach(int fd)
{
	struct wire_shard w = { 0 };
	uint32_t ids[CQ_PAGE_TOKENS], i;
	struct cqp_key keys[8], key;

	ASSERT_OK(wire_model_open(fd, "tiny", &w));
	key = w.root;
	for (i = 0; i < ARRAY_SIZE(keys); i++) {
		fill_key(ids, &key, n_pages - FILL_DEPTH + i);
		keys[i] = key;
	}
	ASSERT_EQ(wire_lookup(fd, w.shard, keys, ARRAY_SIZE(keys)), ARRAY_SIZE(keys));
}

static double ms_since(uint64_t start)
{
	return (double)(bench_now_ns() - start) / 1000000;
}

/* Each connects again and goes on with its session. */
static void come_back(void)
{
	int i, ret;

	for (i = 0; i < n_clients; i++) {
		close(fds[i]);
		fds[i] = wire_connect(s.sock);
		ASSERT_OK(fds[i]);
		ret = wire_resume(fds[i], &sessions[i]);
		if (ret != 1)
			FAIL("client %d did not find its session: %d", i, ret);
	}
}

static void pings(int fd, double *us)
{
	Cqp__Ping body = CQP__PING__INIT;
	DECLARE_MSG(msg, PING, ping, body);
	uint64_t start;
	int i;

	for (i = 0; i < PINGS; i++) {
		start = bench_now_ns();
		ASSERT_EQ(wire_code(wire_call(fd, &msg, NULL, 0, NULL)), 0);
		us[i] = (double)(bench_now_ns() - start) / 1000;
		usleep(1000);
	}
}

static void restart(void)
{
	static struct own_control control;
	double ping_ms, attach_ms, back_ms, quiet, longest, control_max, control_p99;
	static double us[PINGS];
	uint64_t start, up, begin = seen->tokens;
	Cqp__StatusOk st;
	int fd;

	tokens_begin();
	usleep(WINDOW_NS / 1000);
	quiet = tokens_longest_us();
	own_control_start(&control, rt);
	if (rt)		/* who waits for the answer must not be late either */
		ASSERT_OK(own_realtime(0, true, OWN_PRIORITY));
	tokens_begin();
	start = bench_now_ns();
	ASSERT_SYS(kill(s.cqd, SIGKILL));
	fd = first_ping(&up);
	ping_ms = ms_since(start);
	first_attach(fd);
	attach_ms = ms_since(start);
	come_back();
	back_ms = ms_since(start);
	while (bench_now_ns() < start + WINDOW_NS)
		usleep(1000);
	longest = tokens_longest_us();
	control_max = own_control_stop(&control, &control_p99);
	sys_expect(&s, "killed ");
	sys_expect(&s, "ready ");
	pings(fd, us);
	ASSERT_OK(own_realtime(0, false, 0));
	sys_status(&s, &st);
	ASSERT(seen->tokens > begin);
	printf("{\"bench\": \"restart\", \"pages\": %u, \"slot_bytes\": 32768, "
	       "\"clients\": %d, \"rt\": %s, "
	       "\"exec_ms\": %.1f, \"ping_ms\": %.1f, \"attach_ms\": %.1f, \"back_ms\": %.1f, "
	       "\"token_max_us\": %.1f, \"quiet_max_us\": %.1f, \"control_max_us\": %.1f, "
	       "\"stale\": %llu, \"verify_pending\": %llu, \"verify_ping_p50_us\": %.1f, "
	       "\"verify_ping_p99_us\": %.1f}\n", n_pages, n_clients, rt ? "true" : "false",
	       ping_ms - (double)up / 1000, ping_ms, attach_ms, back_ms, longest, quiet,
	       control_max, (unsigned long long)seen->stale,
	       (unsigned long long)st.verify_pending, bench_quantile(us, PINGS, 0.5),
	       bench_quantile(us, PINGS, 0.99));
	fflush(stdout);
	close(fd);
}

/* --- the whole --- */

/* What there is room for, so that nothing else on the machine has to go. */
static long gigabytes(void)
{
	long kb = 0, want = own_number("BENCH_RESTART_GB", 8), room;
	char line[128];
	FILE *f = fopen("/proc/meminfo", "re");

	ASSERT(f);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %ld kB", &kb) == 1)
			break;
	fclose(f);
	room = kb / 3 * 2 / 1048576;
	if (room < want)
		fprintf(stderr, "room for %ld GiB, not for %ld\n", room, want);
	return MAX(MIN(room, want), 1);
}

static void connect_all(int clients)
{
	n_clients = MIN(clients, (int)own_nofile() - 128);
	fds = calloc((size_t)n_clients + 1, sizeof(*fds));
	sessions = calloc((size_t)n_clients + 1, sizeof(*sessions));
	ASSERT(fds && sessions);
	for (int i = 0; i < n_clients; i++) {
		fds[i] = wire_connect(s.sock);
		ASSERT_OK(fds[i]);
		ASSERT_OK(wire_resume(fds[i], &sessions[i]));
	}
}

int main(void)
{
	long gb = gigabytes(), times = own_number("BENCH_RESTARTS", 5), i;
	static const char *const fifo[] = { "-r", "50" };
	struct sys_opts opts = { .model = &model };
	struct sys_peer p;
	char conf[512];
	struct fill f;

	snprintf(conf, sizeof(conf), "pool_bytes = %ldG\n"
		 "segment_min = 1M\nsegment_max = 512M\nmax_pages = %ld\nmax_connections = 16384\n"
		 "uid_connections = 16384\nmax_clients = 16384\n", gb + 1,
		 gb * PER_GB + 8192);
	opts.daemon = conf;
	n_pages = (uint32_t)(gb * PER_GB);
	seen = mmap(NULL, sizeof(*seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		    -1, 0);
	ASSERT(seen != MAP_FAILED);
	rt = !own_realtime(0, true, 1) && !own_realtime(0, false, 0);
	if (rt)
		memcpy(opts.manager, fifo, sizeof(fifo));
	sys_start(&s, &opts);
	if (rt)
		ASSERT_OK(own_realtime(s.manager, true, OWN_PRIORITY));
	fill_open(&f, s.sock, 32768);
	fill_pages(&f, 0, n_pages);
	fill_close(&f);
	sys_spawn(&p, SYS_UID_A, worker, NULL);
	sys_hear(p.fd, 'r');
	if (rt)
		ASSERT_OK(own_realtime(p.pid, true, OWN_PRIORITY));
	for (i = 0; i < times; i++)
		restart();
	connect_all((int)own_number("BENCH_CLIENTS", 10000));
	for (i = 0; i < times && n_clients; i++)
		restart();
	sys_say(p.fd, 'e');
	sys_join(&p);
	sys_stop(&s);
	bench_clean();
	return 0;
}
