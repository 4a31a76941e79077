// SPDX-License-Identifier: MIT
/*
 * Events on real sockets: what a router that keeps an index of prefixes needs,
 * who may hear what, and what a subscriber that does not read costs.
 */
#include "tests/system/sys.h"

#define MAX_KEYS	8192
#define ARENA		(1u << 20)

static struct sys s;
static const struct synth model = { .layers = 1, .heads = 1, .kv_heads = 1, .dim = 64,
				    .window = 64, .max_position = 65536, .code = "4c8b",
				    .seed = 5 };

/*
 * struct index - what a subscriber knows
 * @n:    events by kind
 * @seq:  of the last event
 * @lost: events that were said to be lost
 * @no_parent: events of pages that name none
 */
struct index {
	int fd;
	struct cqp_key key[MAX_KEYS];
	size_t n_keys;
	unsigned int n[16], no_parent;
	uint64_t seq, lost;
	char tenant[64], reason[16];
};

static void know(struct index *ix, const ProtobufCBinaryData *key, bool there)
{
	size_t i;

	ASSERT_EQ(key->len, 32);
	for (i = 0; i < ix->n_keys && memcmp(ix->key[i].b, key->data, 32); i++)
		;
	if (there && i == ix->n_keys) {
		ASSERT_LT(i, MAX_KEYS);
		memcpy(ix->key[ix->n_keys++].b, key->data, 32);
	} else if (!there && i < ix->n_keys) {
		ix->key[i] = ix->key[--ix->n_keys];
	}
}

static void hear(struct index *ix, const Cqp__Event *e)
{
	ASSERT_LT(e->kind, 16);
	ix->n[e->kind]++;
	ix->no_parent += e->has_key && !e->has_parent;
	if (e->kind == CQP__EVENT_KIND__LOST) {
		ASSERT(e->has_lost && e->lost);
		ix->lost += e->lost;
		ASSERT_EQ(e->seq, ix->seq + e->lost);
	} else {
		ASSERT_EQ(e->seq, ix->seq + 1);
	}
	ix->seq = e->seq;
	if (e->tenant)
		snprintf(ix->tenant, sizeof(ix->tenant), "%s", e->tenant);
	if (e->reason)
		snprintf(ix->reason, sizeof(ix->reason), "%s", e->reason);
	if (e->kind == CQP__EVENT_KIND__PAGE_SEALED || e->kind == CQP__EVENT_KIND__PAGE_RESIDENT)
		know(ix, &e->key, true);
	else if (e->kind == CQP__EVENT_KIND__PAGE_EVICTED)
		know(ix, &e->key, false);
}

/* One message within @ms. False: none came. */
static bool take(struct index *ix, int ms)
{
	static struct cqp_frame f;
	Cqp__Msg *msg;
	size_t i;

	if (wire_recv(ix->fd, &f, ms) != 1)
		return false;
	msg = cqp_unpack(f.buf, f.len, NULL);
	ASSERT(msg && msg->body_case == CQP__MSG__BODY_EVENTS);
	for (i = 0; i < msg->events->n_events; i++)
		hear(ix, msg->events->events[i]);
	cqp_free(msg);
	return true;
}

#define TAKE_UNTIL(ix, cond) do {						\
	long long _end = test_now_ms() + SYS_DEADLINE;				\
	while (!(cond)) {							\
		take(ix, 50);							\
		if (test_now_ms() > _end)					\
			FAIL("never: %s (seq %llu, %zu keys, %llu lost)", #cond,	\
			     (unsigned long long)(ix)->seq, (ix)->n_keys,	\
			     (unsigned long long)(ix)->lost);			\
	}									\
} while (0)

/* 0 or the daemon's code. */
static int subscribe(int fd, struct index *ix, bool snapshot, char *tenant)
{
	Cqp__Subscribe body = CQP__SUBSCRIBE__INIT;
	DECLARE_MSG(msg, SUBSCRIBE, subscribe, body);
	Cqp__Msg *r;
	size_t i;

	memset(ix, 0, sizeof(*ix));
	ix->fd = fd;
	body.has_snapshot = true;
	body.snapshot = snapshot;
	body.tenant = tenant;
	r = wire_call(fd, &msg, NULL, 0, NULL);
	if (!r || r->body_case != CQP__MSG__BODY_EVENTS)
		return wire_unexpected(r);
	for (i = 0; i < r->events->n_events; i++)
		hear(ix, r->events->events[i]);
	ASSERT_EQ(ix->n[CQP__EVENT_KIND__START], 1);
	cqp_free(r);
	return 0;
}

/* A client that seals pages, each the child of the one before. */
struct sealer {
	int fd;
	struct wire_shard w;
	struct cqp_key last;
	uint32_t token;
};

static void sealer_open(struct sealer *p, uint32_t token)
{
	p->fd = wire_open(s.sock);
	ASSERT_OK(p->fd);
	ASSERT_OK(wire_model_open(p->fd, "tiny", &p->w));
	ASSERT_OK(wire_arena(p->fd, &p->w, ARENA));
	p->last = p->w.root;
	p->token = token;
}

static void seal(struct sealer *p, unsigned int n)
{
	uint32_t ids[CQ_PAGE_TOKENS];
	struct cqp_page page;
	size_t i;

	for (; n; n--) {
		p->token++;
		for (i = 0; i < CQ_PAGE_TOKENS; i++)
			ids[i] = p->token;
		ASSERT_OK(wire_seal(p->fd, &p->w, p->last, ids, 0, UINT64_MAX, &p->last,
				    &page));
	}
}

static void sealer_close(struct sealer *p)
{
	Cqp__Bye bye = CQP__BYE__INIT;
	DECLARE_MSG(msg, BYE, bye, bye);

	ASSERT_OK(wire_code(wire_call(p->fd, &msg, NULL, 0, NULL)));
	wire_arena_close(&p->w);
	close(p->fd);
}

static int admin_open(void)
{
	int fd = wire_open(s.admin);

	ASSERT_OK(fd);
	return fd;
}

/* Snapshot and stream agree with what is there, while pages come and go. */
TEST_LIMIT(an_index_from_snapshot_and_stream, 60)
{
	static const struct sys_opts opts = {
		.model = &model, .daemon = "pool_bytes = 4M",
	};
	static struct index all, late, fresh;
	struct sealer p;
	unsigned int i;
	size_t k;

	sys_start(&s, &opts);
	ASSERT_OK(subscribe(admin_open(), &all, true, NULL));
	for (i = 0; i < 12; i++) {
		sealer_open(&p, i * 1000);
		seal(&p, 150);
		if (i == 7)
			ASSERT_OK(subscribe(admin_open(), &late, true, NULL));
		sealer_close(&p);	/* its pins go, its pages may */
		SYS_UNTIL(&s, st.clients == 0);
		while (take(&all, 0) || (i >= 7 && take(&late, 0)))
			;
	}
	ASSERT_OK(subscribe(admin_open(), &fresh, true, NULL));
	TAKE_UNTIL(&fresh, fresh.n[CQP__EVENT_KIND__SNAPSHOT_END]);
	TAKE_UNTIL(&all, all.n[CQP__EVENT_KIND__CLIENT_LEFT] == 12);
	TAKE_UNTIL(&late, late.n[CQP__EVENT_KIND__CLIENT_LEFT] == 5);
	ASSERT_EQ(all.n[CQP__EVENT_KIND__PAGE_SEALED], 12 * 150);
	ASSERT_EQ(all.no_parent, 0);
	ASSERT_EQ(all.n[CQP__EVENT_KIND__CLIENT_JOINED], 12);
	ASSERT_GT(all.n[CQP__EVENT_KIND__PAGE_EVICTED], 0);
	ASSERT_EQ(all.lost + late.lost, 0);
	ASSERT_GT(late.n[CQP__EVENT_KIND__PAGE_RESIDENT], 0);
	printf("# %u sealed, %u evicted (%s), %zu resident\n",
	       all.n[CQP__EVENT_KIND__PAGE_SEALED], all.n[CQP__EVENT_KIND__PAGE_EVICTED],
	       all.reason, fresh.n_keys);
	ASSERT_EQ(fresh.n_keys, fresh.n[CQP__EVENT_KIND__PAGE_RESIDENT]);
	ASSERT_EQ(all.n_keys, fresh.n_keys);
	ASSERT_EQ(late.n_keys, fresh.n_keys);
	for (k = 0; k < fresh.n_keys; k++) {
		ProtobufCBinaryData key = { 32, fresh.key[k].b };

		know(&all, &key, false);
		know(&late, &key, false);
	}
	ASSERT_EQ(all.n_keys + late.n_keys, 0);
	close(all.fd);
	close(late.fd);
	close(fresh.fd);
	sys_stop(&s);
}

static void blue_worker(int fd, void *arg)
{
	static struct index own;
	struct sealer p;

	ASSERT_OK(subscribe(wire_open(s.sock), &own, true, NULL));
	sealer_open(&p, 500);
	seal(&p, 5);
	TAKE_UNTIL(&own, own.n[CQP__EVENT_KIND__PAGE_SEALED] == 5);
	ASSERT_STREQ(own.tenant, "blue");
	/* START, the snapshot's end, its five pages, and nothing of red */
	ASSERT_EQ(own.seq, 7);
	sys_say(fd, 'x');
	sys_hear(fd, 'q');
	sealer_close(&p);
	close(own.fd);
}

/* The root key of a shard that nobody has opened since a restart: none is told. */
TEST_LIMIT(no_parent_that_is_not_known, 30)
{
	static const struct sys_opts opts = { .model = &model };
	static struct index before, after;
	struct sealer p;

	sys_start(&s, &opts);
	sealer_open(&p, 0);
	seal(&p, 3);
	sealer_close(&p);
	sys_restart(&s);
	ASSERT_OK(subscribe(admin_open(), &before, true, NULL));
	TAKE_UNTIL(&before, before.n[CQP__EVENT_KIND__SNAPSHOT_END]);
	ASSERT_EQ(before.n[CQP__EVENT_KIND__PAGE_RESIDENT], 3);
	ASSERT_EQ(before.no_parent, 1);
	sealer_open(&p, 0);
	ASSERT_OK(subscribe(admin_open(), &after, true, NULL));
	TAKE_UNTIL(&after, after.n[CQP__EVENT_KIND__SNAPSHOT_END]);
	ASSERT_EQ(after.n[CQP__EVENT_KIND__PAGE_RESIDENT], 3);
	ASSERT_EQ(after.no_parent, 0);
	sealer_close(&p);
	close(before.fd);
	close(after.fd);
	sys_stop(&s);
}

TEST_LIMIT(a_tenant_hears_of_its_own, 30)
{
	static const struct sys_opts opts = { .model = &model };
	static struct index red, blue, all;
	char of_blue[] = "blue", of_red[] = "red", nobody[] = "nobody";
	struct sys_peer b;
	struct sealer p;

	if (!sys_root())
		SKIP("needs root: two uids");
	sys_start(&s, &opts);
	sealer_open(&p, 0);
	seal(&p, 3);
	ASSERT_OK(subscribe(wire_open(s.sock), &red, true, of_red));
	ASSERT_EQ(subscribe(wire_open(s.sock), &all, false, of_blue), -EACCES);
	close(all.fd);
	ASSERT_EQ(subscribe(admin_open(), &all, false, nobody), -ENOENT);
	close(all.fd);
	ASSERT_OK(subscribe(admin_open(), &all, false, NULL));
	ASSERT_OK(subscribe(admin_open(), &blue, false, of_blue));
	ASSERT_EQ(subscribe(blue.fd, &blue, false, NULL), -EALREADY);
	sys_spawn(&b, SYS_UID_C, blue_worker, NULL);
	sys_hear(b.fd, 'x');
	TAKE_UNTIL(&all, all.n[CQP__EVENT_KIND__PAGE_SEALED] == 5);
	ASSERT_EQ(all.n[CQP__EVENT_KIND__CLIENT_JOINED], 2);
	ASSERT_OK(kill(s.cqd, SIGHUP));
	TAKE_UNTIL(&all, all.n[CQP__EVENT_KIND__CONFIG_RELOADED] == 1);
	seal(&p, 2);
	TAKE_UNTIL(&red, red.n[CQP__EVENT_KIND__PAGE_SEALED] == 2);
	ASSERT_STREQ(red.tenant, "red");
	/* START, three of the snapshot, its end, two sealed: no gap, nothing of blue */
	ASSERT_EQ(red.seq, 7);
	sys_say(b.fd, 'q');
	sys_join(&b);
	close(red.fd);
	close(blue.fd);
	close(all.fd);
	sealer_close(&p);
	sys_stop(&s);
}

static uint64_t rss_kib(pid_t pid)
{
	unsigned long long all, rss = 0;
	char path[40];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/statm", (int)pid);
	f = fopen(path, "re");
	ASSERT(f && fscanf(f, "%llu %llu", &all, &rss) == 2);
	fclose(f);
	return rss * 4;
}

/* Nobody reads: bounded memory, the loop goes on, what was lost is counted. */
TEST_LIMIT(a_stalled_subscriber, 60)
{
	static const struct sys_opts opts = { .model = &model };
	static struct index st;
	uint64_t before, first;
	struct sealer p;

	sys_start(&s, &opts);
	sealer_open(&p, 0);
	ASSERT_OK(subscribe(admin_open(), &st, false, NULL));
	seal(&p, 10);
	before = rss_kib(s.cqd);
	seal(&p, 4000);
	/* a ring of 1,024 events, and the pages' own records */
	ASSERT_LT(rss_kib(s.cqd), before + 4096 + 32 * 1024);
	TAKE_UNTIL(&st, st.lost);
	first = st.seq;
	ASSERT_EQ(st.seq, 1 + st.n[CQP__EVENT_KIND__PAGE_SEALED] + st.lost);
	printf("# %u came, %llu were lost\n", st.n[CQP__EVENT_KIND__PAGE_SEALED],
	       (unsigned long long)st.lost);
	seal(&p, 3);
	TAKE_UNTIL(&st, st.seq == 1 + 4013);
	ASSERT_GE(first + 3, 4013);
	close(st.fd);
	sealer_close(&p);
	sys_stop(&s);
}

/* More subscribers than there is room for; one that leaves makes room. */
TEST_LIMIT(subscribers_are_counted, 30)
{
	static const struct sys_opts opts = { .model = &model };
	static struct index ix;
	int fd[9], i;

	sys_start(&s, &opts);
	for (i = 0; i < 8; i++) {
		fd[i] = wire_open(s.sock);
		ASSERT_OK(subscribe(fd[i], &ix, true, NULL));
	}
	fd[8] = wire_open(s.sock);
	ASSERT_EQ(subscribe(fd[8], &ix, false, NULL), -EUSERS);
	close(fd[0]);
	SYS_UNTIL(&s, st.orphans || st.clients == 8);
	while (subscribe(fd[8], &ix, false, NULL) == -EUSERS)
		usleep(1000);
	for (i = 1; i < 9; i++)
		close(fd[i]);
	sys_stop(&s);
}
