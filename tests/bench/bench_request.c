/* SPDX-License-Identifier: MIT */
/*
 * How long a request takes when many clients ask at a fixed rate, whether or
 * not earlier ones are answered (open loop): the latency counts from the moment
 * the request was due. Half are pings, half lookups of four resident pages.
 *
 * One line each for 1,000 clients, for 10,000 of whom 1,000 ask, and for these
 * with cqd's loop and the sender under SCHED_FIFO, on a processor each. What
 * is not the daemon's is said beside: how late the sender was (late), the
 * latency without that (served), and how late a thread woke up that does
 * nothing else (control).
 *
 * BENCH_CLIENTS=N instead of 10,000.
 */
#define TESTS_BENCH
#include <sys/epoll.h>
#include "tests/bench/own.h"

#define ACTIVE		1000
#define CLIENTS		10000
#define RATE		20000
#define WARM_NS		500000000ull
#define MEASURE_NS	3000000000ull
#define DRAIN_NS	5000000000ull
#define KEYS		4
#define ARENA		(1u << 20)
#define MAX_SAMPLES	(RATE * 4)

/**
 * struct samples - of one run, in us
 * @answered: from when the request was due
 * @served:   from when it was sent
 * @late:     between the two
 */
struct samples {
	double answered[MAX_SAMPLES], served[MAX_SAMPLES], late[MAX_SAMPLES];
	size_t n, n_late;
};

static struct sys s;
static int *fds, epfd;
static struct samples x;
static uint64_t sent_at[ACTIVE];	/* of the last request of each */
static size_t n_sent, n_failed;
static uint8_t ping[64], lookup[512];
static size_t ping_len, lookup_len;

/* Four resident pages, and the lookup that finds them. */
static void seal_pages(int fd)
{
	struct wire_shard w = { 0 };
	struct cqp_key keys[KEYS], parent;
	uint32_t ids[CQ_PAGE_TOKENS];
	struct cqp_page page;
	int i;

	ASSERT_OK(wire_model_open(fd, "tiny", &w));
	ASSERT_OK(wire_arena(fd, &w, ARENA));
	parent = w.root;
	for (i = 0; i < KEYS; i++) {
		synth_ids(ids, CQ_PAGE_TOKENS, (uint32_t)i);
		ASSERT_OK(wire_seal(fd, &w, parent, ids, 0, i ? UINT64_MAX : ARENA / 2,
				    &keys[i], &page));
		parent = keys[i];
	}
	ASSERT_EQ(wire_lookup(fd, w.shard, keys, KEYS), KEYS);
	wire_arena_close(&w);
}

/* Fill @ping and @lookup; only the id, bytes 1 to 8, differs between requests. */
static void prepare(const struct cqp_key *keys, uint32_t shard)
{
	Cqp__Ping p = CQP__PING__INIT;
	Cqp__Lookup l = CQP__LOOKUP__INIT;
	DECLARE_MSG(pm, PING, ping, p);
	DECLARE_MSG(lm, LOOKUP, lookup, l);
	uint8_t bytes[KEYS * sizeof(*keys)];

	memcpy(bytes, keys, sizeof(bytes));
	l.shard = shard;
	l.keys = (ProtobufCBinaryData){ sizeof(bytes), bytes };
	l.has_pin = 1;
	l.pin = 0;
	ping_len = cqp__msg__pack(&pm, ping);
	lookup_len = cqp__msg__pack(&lm, lookup);
	ASSERT(ping[0] == 0x09 && lookup[0] == 0x09);
}

/* Clients that ask. */
static void connect_active(void)
{
	struct epoll_event ev = { .events = EPOLLIN };
	struct cqp_key keys[KEYS], parent;
	uint32_t ids[CQ_PAGE_TOKENS];
	struct wire_shard w = { 0 };
	uint32_t i;

	epfd = epoll_create1(EPOLL_CLOEXEC);
	ASSERT_SYS(epfd);
	for (i = 0; i < ACTIVE; i++) {
		fds[i] = wire_open(s.sock);
		ASSERT_OK(fds[i]);
		ASSERT_OK(wire_model_open(fds[i], "tiny", &w));
		ev.data.u32 = i;
		ASSERT_SYS(epoll_ctl(epfd, EPOLL_CTL_ADD, fds[i], &ev));
	}
	parent = w.root;
	for (i = 0; i < KEYS; i++) {
		synth_ids(ids, CQ_PAGE_TOKENS, i);
		ASSERT_OK(cqp_key_page(&keys[i], &parent, ids, NULL, 0));
		parent = keys[i];
	}
	/* one model and shard: the id is the same on every connection */
	prepare(keys, w.shard);
}

/* The id is the time at which the request was due. */
static void send_due(uint64_t due, bool measured)
{
	size_t i = n_sent % ACTIVE;
	bool second = n_sent / ACTIVE & 1;
	uint8_t *buf = second ? lookup : ping;

	memcpy(buf + 1, &due, sizeof(due));
	sent_at[i] = bench_now_ns();
	if (measured)
		x.late[x.n_late++] = (double)(sent_at[i] - due) / 1000;
	if (cqp_send_raw(fds[i], buf, second ? lookup_len : ping_len, NULL, 0, MSG_DONTWAIT))
		n_failed++;
	n_sent++;
}

static void receive(uint32_t i, uint64_t from)
{
	static struct cqp_frame f;
	Cqp__Msg *m;
	int ret;

	while ((ret = cqp_recv(fds[i], &f, MSG_DONTWAIT)) == 1) {
		uint64_t now = bench_now_ns();

		m = cqp_unpack(f.buf, f.len, NULL);
		ASSERT(m);
		ASSERT(m->body_case == CQP__MSG__BODY_PONG ||
		       (m->body_case == CQP__MSG__BODY_LOOKUP_OK &&
			m->lookup_ok->matched == KEYS));
		if (m->id >= from && x.n < MAX_SAMPLES) {
			/* each asks every 50 ms: one request is under way */
			x.served[x.n] = (double)(now - MAX(sent_at[i], m->id)) / 1000;
			x.answered[x.n++] = (double)(now - m->id) / 1000;
		}
		cqp_free(m);
	}
	ASSERT_EQ(ret, -EAGAIN);
}

/* Take the answers that come within @ns. */
static void answers(uint64_t ns, uint64_t from)
{
	struct timespec wait = { .tv_sec = (time_t)(ns / 1000000000),
				 .tv_nsec = (long)(ns % 1000000000) };
	struct epoll_event ev[64];
	int n, i;

	n = epoll_pwait2(epfd, ev, 64, &wait, NULL);
	for (i = 0; i < n; i++)
		receive(ev[i].data.u32, from);
}

/*
 * Returns how many requests were due in the measured time. Without priority the
 * sender never sleeps: to wake it would be measured, too. With it, it has to:
 * the kernel stops real-time threads that never do.
 */
static size_t load(bool rt)
{
	uint64_t start = bench_now_ns(), due = start, now, end, from;
	size_t measured = 0;

	from = start + WARM_NS;
	end = from + MEASURE_NS;
	while (due < end) {
		for (now = bench_now_ns(); due <= now && due < end;
		     due += 1000000000ull / RATE) {
			send_due(due, due >= from);
			measured += due >= from;
		}
		now = bench_now_ns();
		answers(rt && due > now ? due - now : 0, from);
	}
	/* those still under way */
	for (end = bench_now_ns() + DRAIN_NS; x.n < measured && bench_now_ns() < end; )
		answers(1000000, from);
	return measured;
}

static void print(int clients, bool rt, double control_p99, double control_max)
{
	double p50 = bench_quantile(x.answered, x.n, 0.5);
	struct own own;

	own_read(&own, s.cqd);
	printf("{\"bench\": \"request\", \"clients\": %d, \"active\": %d, \"rate\": %d, "
	       "\"rt\": %s, \"answers\": %zu, \"p50_us\": %.1f, \"p99_us\": %.1f, "
	       "\"p999_us\": %.1f, \"max_us\": %.1f, \"served_p99_us\": %.1f, "
	       "\"late_p99_us\": %.1f, \"control_p99_us\": %.1f, \"control_max_us\": %.1f, "
	       "\"own_kib\": %ld}\n", clients, ACTIVE, RATE, rt ? "true" : "false", x.n, p50,
	       bench_quantile(x.answered, x.n, 0.99), bench_quantile(x.answered, x.n, 0.999),
	       x.answered[x.n - 1], bench_quantile(x.served, x.n, 0.99),
	       bench_quantile(x.late, x.n_late, 0.99), control_p99, control_max,
	       own_total(&own));
	fflush(stdout);
}

static void measure(int clients, bool rt)
{
	static struct own_control control;
	double p99, longest;
	size_t due;

	x.n = 0;
	x.n_late = 0;
	own_control_start(&control, rt);
	if (rt) {
		own_pin(0, 0);
		own_pin(s.cqd, 1);
		ASSERT_OK(own_realtime(s.cqd, true, OWN_PRIORITY));
		ASSERT_OK(own_realtime(0, true, OWN_PRIORITY));
	}
	due = load(rt);
	if (rt) {
		ASSERT_OK(own_realtime(0, false, 0));
		ASSERT_OK(own_realtime(s.cqd, false, 0));
	}
	longest = own_control_stop(&control, &p99);
	ASSERT_EQ(n_failed, 0);
	ASSERT_EQ(x.n, due);	/* every request has its answer */
	print(clients, rt, p99, longest);
}

static int connect_idle(int clients)
{
	int max = (int)own_nofile() - 128, n = MIN(clients, max), i;

	if (n < clients)
		fprintf(stderr, "ulimit -n allows %d clients, not %d\n", n, clients);
	for (i = ACTIVE; i < n; i++) {
		fds[i] = wire_open(s.sock);
		ASSERT_OK(fds[i]);
	}
	return n;
}

int main(void)
{
	static const struct sys_opts opts = {
		.daemon = "max_connections = 16384\nuid_connections = 16384\n"
			  "max_clients = 16384\n",
	};
	int fd, clients = (int)own_number("BENCH_CLIENTS", CLIENTS);

	ASSERT(clients >= ACTIVE);
	fds = calloc((size_t)clients, sizeof(*fds));
	ASSERT(fds);
	prctl(PR_SET_TIMERSLACK, 1);
	sys_start(&s, &opts);
	fd = wire_open(s.sock);
	ASSERT_OK(fd);
	seal_pages(fd);
	connect_active();
	measure(ACTIVE, false);
	clients = connect_idle(clients);
	measure(clients, false);
	if (own_realtime(0, true, 1) || own_realtime(0, false, 0) ||
	    sysconf(_SC_NPROCESSORS_ONLN) < 2)
		fprintf(stderr, "real-time priority: needs root and two processors\n");
	else
		measure(clients, true);
	close(fd);
	sys_stop(&s);
	bench_clean();
	return 0;
}
