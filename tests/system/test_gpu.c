// SPDX-License-Identifier: MIT
/*
 * cqd with a GPU's memory, on the fake driver (tests/emu): real processes lease, write,
 * seal and are killed, and so is cqd. The fake driver's memory is files, so a worker that
 * writes them needs no context here.
 */
#include "tests/system/gpu.h"

#define UUID_1	"GPU-c9e00000-6661-6b65-8000-646576696301"
#define SECTION	"[gpu g0]\nuuid = " UUID "\npool_bytes = 16M\n"

static const struct sys_opts with_gpu = { .blue = SECTION };

/* The slot, mapped; its bytes in *@bytes. */
static uint8_t *map_slot(const struct peer *p, const struct cqp_page *page, size_t *bytes)
{
	Cqp__SegmentGet body = CQP__SEGMENT_GET__INIT;
	DECLARE_MSG(msg, SEGMENT_GET, segment_get, body);
	struct cqp_frame f;
	Cqp__Msg *r;
	uint8_t *at;

	body.segment = page->segment;
	r = wire_call(p->fd, &msg, NULL, 0, &f);
	ASSERT(r && r->body_case == CQP__MSG__BODY_SEGMENT_OK);
	ASSERT_EQ(r->segment_ok->backend, CQP__BACKEND__CUDA_VMM);
	ASSERT_EQ(r->segment_ok->bytes % (2 << 20), 0);
	ASSERT_EQ(f.n_fds, 1);
	*bytes = r->segment_ok->slot_bytes;
	at = mmap(NULL, *bytes, PROT_READ | PROT_WRITE, MAP_SHARED, f.fds[0],
		  (off_t)(page->slot * *bytes));
	ASSERT(at != MAP_FAILED);
	cqp_frame_close(&f);
	cqp_free(r);
	return at;
}

static size_t write_slot(const struct peer *p, const struct cqp_page *page, int byte)
{
	size_t n;
	uint8_t *at = map_slot(p, page, &n);

	memset(at, byte, n);
	munmap(at, n);
	return n;
}

static bool slot_is(const struct peer *p, const struct cqp_page *page, int byte)
{
	size_t n, i;
	uint8_t *at = map_slot(p, page, &n);

	for (i = 0; i < n && at[i] == byte; i++)
		;
	munmap(at, n);
	return i == n;
}

/* Page 0 of 64 tokens made of @token. */
static void publish(const struct peer *p, int token, struct cqp_key *key, struct cqp_page *page)
{
	struct cqp_page c, k;

	ASSERT_EQ(lease(p, 1, false, &c), 1);
	ASSERT_EQ(lease(p, 1, true, &k), 1);
	write_slot(p, &c, token);
	write_slot(p, &k, token + 1);
	ASSERT_OK(seal(p, &p->shard.root, (uint32_t)token, &c, &k, key, page));
}

/* --- tests --- */

/* What a worker wrote is there for another, and for both after cqd was killed. */
TEST_LIMIT(pages_outlive_cqd, 60)
{
	struct peer a = { .session = 0 }, b = { .session = 0 };
	struct cqp_key key, next;
	struct cqp_page page, left, second;
	uint64_t used;

	driver(true);
	sys_start(&s, &with_gpu);
	ASSERT_EQ(join_as(&a), 0);
	ASSERT_EQ(join_as(&b), 0);
	publish(&a, 5, &key, &page);
	ASSERT_EQ(lease(&a, 1, false, &left), 1);
	ASSERT_EQ(wire_lookup(b.fd, b.shard.shard, &key, 1), 1);
	ASSERT(slot_is(&b, &page, 5));
	used = gpu_pool().used;

	sys_restart(&s);
	ASSERT_EQ(gpu_pool().used, used);
	close(a.fd);
	close(b.fd);
	ASSERT_EQ(join_as(&a), 1);
	ASSERT_EQ(join_as(&b), 1);
	ASSERT_EQ(wire_lookup(b.fd, b.shard.shard, &key, 1), 1);
	ASSERT(slot_is(&b, &page, 5));
	/* The lease goes on; nobody else has it. */
	ASSERT_EQ(give_back(&b, &left, 1), -EINVAL);
	write_slot(&a, &left, 9);
	ASSERT_OK(seal(&a, &key, 9, &left, NULL, &next, &second));
	ASSERT_EQ(second.segment, left.segment);
	ASSERT_EQ(second.slot, left.slot);
	ASSERT(slot_is(&b, &second, 9));
	ASSERT_EQ(gpu_pool().used, used);
	close(a.fd);
	close(b.fd);
	sys_stop(&s);
}

/* Events say on which GPU a page is. */
TEST_LIMIT(events, 60)
{
	Cqp__Subscribe body = CQP__SUBSCRIBE__INIT;
	DECLARE_MSG(msg, SUBSCRIBE, subscribe, body);
	struct peer p = { .session = 0 };
	struct cqp_page page;
	struct cqp_key key;
	bool found = false;
	Cqp__Msg *r;
	size_t i;

	driver(true);
	sys_start(&s, &with_gpu);
	ASSERT_EQ(join_as(&p), 0);
	publish(&p, 5, &key, &page);
	body.has_snapshot = 1;
	body.snapshot = 1;
	for (r = wire_call(p.fd, &msg, NULL, 0, NULL); r && !found;) {
		static struct cqp_frame f;

		ASSERT_EQ(r->body_case, CQP__MSG__BODY_EVENTS);
		for (i = 0; i < r->events->n_events; i++) {
			const Cqp__Event *e = r->events->events[i];

			if (e->kind != CQP__EVENT_KIND__PAGE_RESIDENT)
				continue;
			ASSERT_STREQ(e->device, UUID);
			found = true;
		}
		cqp_free(r);
		r = NULL;
		if (!found && wire_recv(p.fd, &f, 5000) == 1)
			r = cqp_unpack(f.buf, f.len, NULL);
	}
	cqp_free(r);
	ASSERT(found);
	close(p.fd);
	sys_stop(&s);
}

/* Descriptors of the driver may look hung up: the service manager must keep them. */
TEST_LIMIT(descriptors_that_poll, 60)
{
	struct peer p = { .session = 0 };
	struct cqp_page c, k, page;
	struct cqp_key key;

	driver(true);
	ASSERT_SYS(setenv("CQ_EMU_FD_POLL", "1", 1));
	sys_start(&s, &with_gpu);
	ASSERT_EQ(join_as(&p), 0);
	ASSERT_EQ(lease(&p, 1, false, &c), 1);
	ASSERT_EQ(lease(&p, 1, true, &k), 1);
	ASSERT_OK(seal(&p, &p.shard.root, 3, &c, &k, &key, &page));
	sys_restart(&s);
	close(p.fd);
	ASSERT_EQ(join_as(&p), 1);
	ASSERT_EQ(wire_lookup(p.fd, p.shard.shard, &key, 1), 1);
	close(p.fd);
	sys_stop(&s);
}

/* Leases three slots, fills one, and waits to be killed. */
static void writer(int fd, void *arg)
{
	struct peer p = { .session = 0 };
	struct cqp_page slot[3];

	ASSERT_EQ(join_as(&p), 0);
	ASSERT_EQ(lease(&p, 3, false, slot), 3);
	write_slot(&p, &slot[0], 1);
	ASSERT_EQ(write(fd, slot, sizeof(slot)), sizeof(slot));
	sys_say(fd, 'w');
	for (;;)
		pause();
}

static void spawn_writer(struct sys_peer *w, struct cqp_page slot[3])
{
	sys_spawn(w, SYS_UID_A, writer, NULL);
	ASSERT_EQ(recv(w->fd, slot, 3 * sizeof(*slot), MSG_WAITALL), 3 * sizeof(*slot));
	sys_hear(w->fd, 'w');
}

/* Killed between lease and seal: nothing of it is seen, its slots are free once more. */
TEST_LIMIT(writer_killed, 60)
{
	struct peer p = { .session = 0 };
	struct cqp_page slot[3], again;
	struct sys_peer w;

	driver(true);
	sys_start(&s, &with_gpu);
	ASSERT_EQ(join_as(&p), 0);
	spawn_writer(&w, slot);
	ASSERT_GT(gpu_pool().used, 0);
	sys_kill(&w);
	until_used(0);
	ASSERT_EQ(lease(&p, 1, false, &again), 1);
	ASSERT_EQ(again.segment, slot[0].segment);
	ASSERT_GT(again.word >> 8, slot[0].word >> 8);
	close(p.fd);
	sys_stop(&s);
}

/* cqd is killed, then the writer: its slots wait until the next cqd has seen it gone. */
TEST_LIMIT(both_killed, 60)
{
	struct cqp_page slot[3];
	struct sys_peer w, alive;
	uint64_t used;

	driver(true);
	sys_start(&s, &with_gpu);
	spawn_writer(&alive, slot);
	used = gpu_pool().used;
	spawn_writer(&w, slot);
	ASSERT_EQ(gpu_pool().used, 2 * used);
	ASSERT_SYS(kill(s.cqd, SIGKILL));
	sys_kill(&w);
	sys_expect(&s, "killed ");
	sys_expect(&s, "ready ");
	/* What the one that lives may be writing stays. */
	until_used(used);
	sys_restart(&s);
	ASSERT_EQ(gpu_pool().used, used);
	sys_kill(&alive);
	until_used(0);
	sys_stop(&s);
}

/* Publishes a page and goes. */
static void publisher(int fd, void *arg)
{
	struct peer p = { .session = 0 };
	struct cqp_page page;
	struct cqp_key key;

	ASSERT_EQ(join_as(&p), 0);
	publish(&p, 5, &key, &page);
	close(p.fd);
}

/* What is empty goes back to the GPU: nobody's importing it keeps it with cqd. */
TEST_LIMIT(given_back, 60)
{
	Cqp__Evict body = CQP__EVICT__INIT;
	DECLARE_MSG(msg, EVICT, evict, body);
	struct sys_peer w;
	int fd;

	driver(true);
	sys_start(&s, &with_gpu);
	sys_spawn(&w, SYS_UID_A, publisher, NULL);
	sys_join(&w);
	SYS_UNTIL(&s, st.clients == 0);
	ASSERT_GT(gpu_pool().used, 0);
	fd = wire_open(s.admin);
	ASSERT_OK(fd);
	ASSERT_OK(wire_code(wire_call(fd, &msg, NULL, 0, NULL)));
	close(fd);
	until_used(0);
	while (gpu_pool().reserved)
		usleep(500);
	sys_stop(&s);
}

static void leaver(int fd, void *arg)
{
	struct peer p = { .session = 0 };
	Cqp__Bye body = CQP__BYE__INIT;
	DECLARE_MSG(msg, BYE, bye, body);
	struct cqp_page slot[2];

	ASSERT_EQ(join_as(&p), 0);
	ASSERT_EQ(lease(&p, 2, false, slot), 2);
	ASSERT_OK(give_back(&p, &slot[0], 1));
	ASSERT_OK(wire_code(wire_call(p.fd, &msg, NULL, 0, NULL)));
	sys_say(fd, 'b');
	sys_hear(fd, 'e');
	close(p.fd);
}

/* Bye is no promise about what runs on the device. */
TEST_LIMIT(bye_with_a_lease, 60)
{
	struct sys_peer w;
	uint64_t used;

	driver(true);
	sys_start(&s, &with_gpu);
	sys_spawn(&w, SYS_UID_A, leaver, NULL);
	sys_hear(w.fd, 'b');
	used = gpu_pool().used;
	ASSERT_GT(used, 0);
	sys_restart(&s);
	ASSERT_EQ(gpu_pool().used, used);
	sys_say(w.fd, 'e');
	sys_join(&w);
	until_used(0);
	sys_stop(&s);
}

/* Memory that is short is asked for again; short for long is said. */
TEST_LIMIT(out_of_memory, 60)
{
	struct peer p = { .session = 0 };
	struct cqp_page slot;

	driver(true);
	ASSERT_SYS(setenv("CQ_EMU_FAIL", "cuMemCreate:1", 1));
	sys_start(&s, &with_gpu);
	ASSERT_EQ(join_as(&p), 0);
	ASSERT_EQ(lease(&p, 1, false, &slot), 1);
	close(p.fd);
	sys_stop(&s);
}

TEST_LIMIT(no_memory_left, 60)
{
	struct peer p = { .session = 0 };
	struct cqp_page slot;

	driver(true);
	ASSERT_SYS(setenv("CQ_EMU_FAIL", "cuMemCreate:1+", 1));
	sys_start(&s, &with_gpu);
	ASSERT_EQ(join_as(&p), 0);
	ASSERT_EQ(lease(&p, 1, false, &slot), -ENOSPC);
	ASSERT_EQ(gpu_pool().reserved, 0);
	close(p.fd);
	sys_stop(&s);
}

/* The host is served, and the reason told. */
TEST_LIMIT(no_gpu, 60)
{
	struct cqp_key root;
	Cqp__Backend backend;
	uint32_t shard;
	int fd;

	driver(false);
	sys_start(&s, &with_gpu);
	ASSERT(gpu_pool().why);
	fd = wire_open(s.sock);
	ASSERT_OK(fd);
	ASSERT_EQ(open_on(fd, UUID, &shard, &root, &backend), -ENODEV);
	ASSERT_EQ(open_on(fd, "GPU-0", &shard, &root, &backend), -ENODEV);
	ASSERT_EQ(open_on(fd, "", &shard, &root, &backend), -ENODEV);
	ASSERT_OK(open_on(fd, NULL, &shard, &root, &backend));
	ASSERT_EQ(backend, CQP__BACKEND__MEMFD);
	close(fd);
	sys_stop(&s);
}

/* cqd says which UUIDs there are and which driver is needed, and serves the rest. */
static void told(const char *section, const char *text)
{
	const struct sys_opts o = { .blue = section };
	Cqp__Backend backend;
	struct cqp_key root;
	char line[600];
	bool said = false;
	uint32_t shard;
	FILE *f;
	int fd;

	driver(true);
	sys_start(&s, &o);
	ASSERT(gpu_pool().why);
	fd = wire_open(s.sock);
	ASSERT_OK(fd);
	ASSERT_NE(open_on(fd, UUID, &shard, &root, &backend), 0);
	ASSERT_OK(open_on(fd, NULL, &shard, &root, &backend));
	close(fd);
	f = fopen(s.log, "re");
	ASSERT(f);
	while (fgets(line, sizeof(line), f))
		said |= strstr(line, text) != NULL;
	fclose(f);
	ASSERT(said);
	sys_stop(&s);
}

TEST_LIMIT(unknown_uuid, 60)
{
	told("[gpu g1]\nuuid = " UUID_1 "\npool_bytes = 16M\n", UUID_1 " here, but " UUID);
}

TEST_LIMIT(old_driver, 60)
{
	ASSERT_SYS(setenv("CQ_EMU_VERSION", "11080", 1));
	told(SECTION, "12.0 or newer is needed");
}

/* Each GPU has a pool of its own, and neither finds the other's pages. */
TEST_LIMIT(two_gpus, 60)
{
	static const struct sys_opts two = { .blue = SECTION "[gpu g1]\nuuid = " UUID_1 "\n"
					     "pool_bytes = 50%\n" };
	struct peer p = { .session = 0 }, q = { .session = 0 };
	struct cqp_page page, other;
	struct cqp_key key, same;
	Cqp__Backend backend;

	driver(true);
	ASSERT_SYS(setenv("CQ_EMU_DEVICES", "2", 1));
	sys_start(&s, &two);
	ASSERT_EQ(join_as(&p), 0);
	q = p;
	ASSERT_OK(open_on(q.fd, UUID_1, &q.shard.shard, &q.shard.root, &backend));
	ASSERT_NE(p.shard.shard, q.shard.shard);
	publish(&p, 5, &key, &page);
	ASSERT_EQ(wire_lookup(q.fd, q.shard.shard, &key, 1), 0);
	publish(&q, 5, &same, &other);
	ASSERT_MEMEQ(&key, &same, sizeof(key));
	ASSERT_NE(page.segment, other.segment);
	ASSERT_EQ(wire_lookup(q.fd, q.shard.shard, &key, 1), 1);
	sys_restart(&s);
	close(p.fd);
	ASSERT_EQ(join_as(&p), 1);
	q.fd = p.fd;
	ASSERT_OK(open_on(q.fd, UUID_1, &q.shard.shard, &q.shard.root, &backend));
	ASSERT_EQ(wire_lookup(p.fd, p.shard.shard, &key, 1), 1);
	ASSERT_EQ(wire_lookup(q.fd, q.shard.shard, &key, 1), 1);
	ASSERT(slot_is(&p, &page, 5) && slot_is(&q, &other, 5));
	close(p.fd);
	sys_stop(&s);
}

/* Requests of a client that means no good; cqd and others are as before. */
TEST_LIMIT(hostile, 60)
{
	struct peer p = { .session = 0 }, q = { .session = 0 };
	struct cqp_key key;
	struct cqp_page c, k, page, bad;
	struct seal_bytes b;
	uint64_t used;

	driver(true);
	sys_start(&s, &with_gpu);
	ASSERT_EQ(join_as(&p), 0);
	ASSERT_EQ(join_as(&q), 0);
	ASSERT_EQ(lease(&p, 1, false, &c), 1);
	ASSERT_EQ(lease(&p, 1, true, &k), 1);
	used = gpu_pool().used;
	ASSERT_EQ(lease(&p, 0, false, &bad), -EINVAL);
	ASSERT_EQ(lease(&p, 1025, false, &bad), -EINVAL);
	ASSERT_EQ(seal(&q, &p.shard.root, 1, &c, &k, &key, &page), -EINVAL);
	ASSERT_EQ(seal(&p, &p.shard.root, 1, &k, &c, &key, &page), -EINVAL);
	ASSERT_EQ(seal(&p, &p.shard.root, 1, &c, NULL, &key, &page), -EINVAL);
	bad = c;
	bad.word += 256;
	ASSERT_EQ(seal(&p, &p.shard.root, 1, &bad, &k, &key, &page), -EINVAL);
	b = (struct seal_bytes){ &c, &k, 15, 16, 32 };
	ASSERT_EQ(seal_raw(&p, &p.shard.root, 1, &b, &key, &page), -EINVAL);
	b = (struct seal_bytes){ &c, &k, 16, 32, 32 };
	ASSERT_EQ(seal_raw(&p, &p.shard.root, 1, &b, &key, &page), -EINVAL);
	b = (struct seal_bytes){ &c, &k, 16, 16, 16 };
	ASSERT_EQ(seal_raw(&p, &p.shard.root, 1, &b, &key, &page), -EINVAL);
	b = (struct seal_bytes){ &c, &k, 16, 16, 0 };
	ASSERT_EQ(seal_raw(&p, &p.shard.root, 1, &b, &key, &page), -EINVAL);
	b = (struct seal_bytes){ NULL, &k, 0, 16, 0 };
	ASSERT_EQ(seal_raw(&p, &p.shard.root, 1, &b, &key, &page), -EINVAL);
	b = (struct seal_bytes){ NULL, NULL, 0, 0, 0 };
	ASSERT_EQ(seal_raw(&p, &p.shard.root, 1, &b, &key, &page), -EINVAL);
	ASSERT_EQ(give_back(&p, &c, 0), -EINVAL);
	ASSERT_EQ(give_back(&q, &c, 1), -EINVAL);
	ASSERT_EQ(gpu_pool().used, used);
	ASSERT_OK(seal(&p, &p.shard.root, 1, &c, &k, &key, &page));
	ASSERT_EQ(give_back(&p, &c, 1), -EINVAL);
	close(p.fd);
	close(q.fd);
	sys_stop(&s);
}

/* Slots to be looked at, all of them; or -errno. @wrong: pages dropped for what was seen. */
static int look(int fd, const char *pool, size_t seen_bytes, uint64_t *wrong)
{
	static uint8_t seen[4096];
	Cqp__Look body = CQP__LOOK__INIT;
	DECLARE_MSG(msg, LOOK, look, body);
	struct cqp_frame f;
	char name[16];
	Cqp__Msg *r;
	int n;

	snprintf(name, sizeof(name), "%s", pool);
	body.pool = name;
	body.has_all = true;
	body.all = true;
	body.has_seen = seen_bytes != 0;
	body.seen = (ProtobufCBinaryData){ seen_bytes, seen };
	r = wire_call(fd, &msg, NULL, 0, &f);
	if (!r || r->body_case != CQP__MSG__BODY_LOOK_OK)
		return wire_unexpected(r);
	n = (int)(r->look_ok->slots.len / sizeof(struct cqp_look));
	ASSERT_EQ(f.n_fds, r->look_ok->n_segments);
	ASSERT_EQ(r->look_ok->n_segments, n ? 2 : 0);
	cqp_frame_close(&f);
	*wrong = r->look_ok->wrong;
	cqp_free(r);
	return n;
}

/* Who looks at pages may leave in between, and is believed only what can be. */
TEST_LIMIT(looked_at, 60)
{
	struct peer p = { .session = 0 };
	struct cqp_page page;
	struct cqp_key key;
	uint64_t wrong;
	int fd;

	driver(true);
	sys_start(&s, &with_gpu);
	ASSERT_EQ(join_as(&p), 0);
	publish(&p, 1, &key, &page);
	ASSERT_EQ(look(p.fd, "g0", 0, &wrong), -EACCES);
	fd = wire_open(s.admin);
	ASSERT_OK(fd);
	ASSERT_EQ(look(fd, "g1", 0, &wrong), -ENODEV);
	ASSERT_EQ(look(fd, "host", 0, &wrong), -EINVAL);
	ASSERT_EQ(look(fd, "g0", sizeof(struct cqp_seen), &wrong), -EINVAL);
	ASSERT_EQ(look(fd, "g0", 0, &wrong), 2);
	ASSERT_EQ(look(fd, "g0", 0, &wrong), -EINVAL);
	ASSERT_EQ(look(fd, "g0", 79, &wrong), -EINVAL);
	ASSERT_EQ(look(fd, "g0", sizeof(struct cqp_seen), &wrong), -EINVAL);
	close(fd);
	ASSERT_EQ(wire_lookup(p.fd, p.shard.shard, &key, 1), 1);
	fd = wire_open(s.admin);
	ASSERT_OK(fd);
	ASSERT_EQ(look(fd, "g0", 0, &wrong), 2);
	ASSERT_EQ(look(fd, "g0", 2 * sizeof(struct cqp_seen), &wrong), 0);
	ASSERT_EQ(wrong, 1);
	ASSERT_EQ(wire_lookup(p.fd, p.shard.shard, &key, 1), 0);
	ASSERT_EQ(look(fd, "g0", 0, &wrong), 0);
	close(fd);
	close(p.fd);
	sys_stop(&s);
}
