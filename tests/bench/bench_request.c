/* SPDX-License-Identifier: MIT */
/*
 * How long a request takes when many clients ask at a fixed rate, whether or
 * not earlier ones are answered (open loop): the latency counts from the moment
 * the request was due. Half are pings, half lookups of four resident pages.
 */
#define TESTS_BENCH
#include <sys/epoll.h>
#include "tests/system/sys.h"

#define CLIENTS		1000
#define RATE		20000
#define WARM_NS		500000000ull
#define MEASURE_NS	3000000000ull
#define DRAIN_NS	5000000000ull
#define KEYS		4
#define ARENA		(1u << 20)

static struct sys s;
static int fds[CLIENTS], epfd;
static double sample[RATE * 4];
static size_t n_samples, n_sent, n_failed;
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

static void connect_all(void)
{
	struct epoll_event ev = { .events = EPOLLIN };
	struct cqp_key keys[KEYS], parent;
	uint32_t ids[CQ_PAGE_TOKENS];
	struct wire_shard w = { 0 };
	int i;

	epfd = epoll_create1(EPOLL_CLOEXEC);
	ASSERT_SYS(epfd);
	for (i = 0; i < CLIENTS; i++) {
		fds[i] = wire_open(s.sock);
		ASSERT_OK(fds[i]);
		ASSERT_OK(wire_model_open(fds[i], "tiny", &w));
		ev.data.fd = fds[i];
		ASSERT_SYS(epoll_ctl(epfd, EPOLL_CTL_ADD, fds[i], &ev));
	}
	parent = w.root;
	for (i = 0; i < KEYS; i++) {
		synth_ids(ids, CQ_PAGE_TOKENS, (uint32_t)i);
		ASSERT_OK(cqp_key_page(&keys[i], &parent, ids, NULL, 0));
		parent = keys[i];
	}
	/* one model and shard: the id is the same on every connection */
	prepare(keys, w.shard);
}

/* The id is the time at which the request was due. */
static void send_due(uint64_t due)
{
	int fd = fds[n_sent % CLIENTS], second = n_sent / CLIENTS & 1;
	uint8_t *buf = second ? lookup : ping;

	memcpy(buf + 1, &due, sizeof(due));
	if (cqp_send_raw(fd, buf, second ? lookup_len : ping_len, NULL, 0, MSG_DONTWAIT))
		n_failed++;
	n_sent++;
}

static void receive(int fd, uint64_t from)
{
	static struct cqp_frame f;
	Cqp__Msg *m;
	int ret;

	while ((ret = cqp_recv(fd, &f, MSG_DONTWAIT)) == 1) {
		uint64_t now = bench_now_ns();

		m = cqp_unpack(f.buf, f.len, NULL);
		ASSERT(m);
		ASSERT(m->body_case == CQP__MSG__BODY_PONG ||
		       (m->body_case == CQP__MSG__BODY_LOOKUP_OK &&
			m->lookup_ok->matched == KEYS));
		if (m->id >= from && n_samples < ARRAY_SIZE(sample))
			sample[n_samples++] = (double)(now - m->id) / 1000;
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
		receive(ev[i].data.fd, from);
}

/* Returns how many requests were due in the measured time. */
static size_t load(void)
{
	uint64_t start = bench_now_ns(), due = start, now, end, from;
	size_t measured = 0;

	from = start + WARM_NS;
	end = from + MEASURE_NS;
	while (due < end) {
		for (now = bench_now_ns(); due <= now && due < end;
		     due += 1000000000ull / RATE) {
			send_due(due);
			measured += due >= from;
		}
		answers(0, from);	/* to sleep and wake would be measured, too */
	}
	/* those still under way */
	for (end = bench_now_ns() + DRAIN_NS; n_samples < measured && bench_now_ns() < end; )
		answers(1000000, from);
	return measured;
}

int main(void)
{
	static const struct sys_opts opts = {
		.daemon = "max_connections = 4096\nuid_connections = 4096\n"
			  "max_clients = 4096\n",
	};
	double p50, p99;
	size_t sent;
	int fd;

	prctl(PR_SET_TIMERSLACK, 1);
	sys_start(&s, &opts);
	fd = wire_open(s.sock);
	ASSERT_OK(fd);
	seal_pages(fd);
	connect_all();
	sent = load();
	ASSERT_EQ(n_failed, 0);
	ASSERT_EQ(n_samples, sent);	/* every request has its answer */
	p50 = bench_quantile(sample, n_samples, 0.5);
	p99 = bench_quantile(sample, n_samples, 0.99);
	printf("{\"bench\": \"request\", \"clients\": %d, \"rate\": %d, \"answers\": %zu, "
	       "\"p50_us\": %.1f, \"p99_us\": %.1f}\n", CLIENTS, RATE, n_samples, p50, p99);
	close(fd);
	sys_stop(&s);
	bench_clean();
	return 0;
}
