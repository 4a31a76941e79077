// SPDX-License-Identifier: MIT
/*
 * cqd with a GPU's memory that cq-holder has (sharing = ipc), on the fake driver: real
 * processes open handles, write, seal and are killed, and so are cqd and the holder.
 */
#include "tests/system/gpu.h"
#include "tests/system/holder.h"

static struct sys_opts opts;

static void start(bool holder)
{
	hold_setup();
	gpu_backend = CQP__BACKEND__CUDA_IPC;
	opts.blue = hold_section();
	if (holder)
		hold_start();
	sys_start(&s, &opts);
	if (sys_root())
		ASSERT_SYS(chown(s.admin, SYS_CQD_UID, SYS_CQD_UID));
}

/* cqd is told by, and this process becomes, the holder's uid. */
static void begin(bool holder)
{
	start(holder);
	sys_become(SYS_CQD_UID);
}

static void end(void)
{
	sys_stop(&s);
	if (hold.pid)
		hold_stop();
}

/* Until the pool can be used, or cannot. */
static void until_ready(bool ready)
{
	long long late = test_now_ms() + SYS_DEADLINE;

	while (gpu_pool().why == ready) {
		if (test_now_ms() > late) {
			sys_show_log(&s);
			FAIL("the pool is %sready", ready ? "not " : "");
		}
		usleep(500);
	}
}

/* The end of the connection comes first, then it is known that there is no holder. */
static void until_lost(void)
{
	until_ready(false);
	while (gpu_pool().reserved)
		usleep(500);
}

static unsigned int times_logged(const char *text)
{
	FILE *f = fopen(s.log, "re");
	unsigned int n = 0;
	char line[600];

	ASSERT(f);
	while (fgets(line, sizeof(line), f))
		n += strstr(line, text) != NULL;
	fclose(f);
	return n;
}

/* 0 and the handle of a segment; or -errno. */
static int handle_of(const struct peer *p, uint32_t segment, uint8_t handle[64], size_t *slot)
{
	Cqp__SegmentGet body = CQP__SEGMENT_GET__INIT;
	DECLARE_MSG(msg, SEGMENT_GET, segment_get, body);
	struct cqp_frame f;
	Cqp__Msg *r;

	body.segment = segment;
	r = wire_call(p->fd, &msg, NULL, 0, &f);
	if (!r || r->body_case != CQP__MSG__BODY_SEGMENT_OK)
		return wire_unexpected(r);
	ASSERT_EQ(r->segment_ok->backend, CQP__BACKEND__CUDA_IPC);
	ASSERT_EQ(r->segment_ok->bytes % (2 << 20), 0);
	ASSERT_EQ(f.n_fds, 0);
	ASSERT(r->segment_ok->has_handle && r->segment_ok->handle.len == 64);
	memcpy(handle, r->segment_ok->handle.data, 64);
	*slot = r->segment_ok->slot_bytes;
	cqp_free(r);
	return 0;
}

static void write_slot(const struct cqk_cuda *cu, const struct peer *p,
		       const struct cqp_page *page, int byte)
{
	uint8_t handle[64];
	size_t bytes;
	cqcu_ptr at;

	ASSERT_OK(handle_of(p, page->segment, handle, &bytes));
	ASSERT_OK(hold_import(cu, handle, &at));
	ASSERT_OK(cu->cuMemsetD8(at + page->slot * bytes, (unsigned char)byte, bytes));
	ASSERT_OK(cu->cuCtxSynchronize());
	ASSERT_OK(cu->cuIpcCloseMemHandle(at));
}

/* Page 0 of 64 tokens made of @token, written by nobody. */
static void publish(const struct peer *p, int token, struct cqp_key *key, struct cqp_page *page)
{
	struct cqp_page c, k;

	ASSERT_EQ(lease(p, 1, false, &c), 1);
	ASSERT_EQ(lease(p, 1, true, &k), 1);
	ASSERT_OK(seal(p, &p->shard.root, (uint32_t)token, &c, &k, key, page));
}

/* What a publisher and its test tell each other. */
struct made {
	struct cqp_key key;
	struct cqp_page page;
};

/* Leases, writes through the handle, seals, and waits. */
static void publisher(int fd, void *arg)
{
	const struct cqk_cuda *cu = hold_cuda();
	struct peer p = { .session = 0 };
	struct cqp_page c, k;
	struct made m;

	ASSERT_EQ(join_as(&p), 0);
	ASSERT_EQ(lease(&p, 1, false, &c), 1);
	ASSERT_EQ(lease(&p, 1, true, &k), 1);
	write_slot(cu, &p, &c, 5);
	write_slot(cu, &p, &k, 6);
	ASSERT_OK(seal(&p, &p.shard.root, 5, &c, &k, &m.key, &m.page));
	ASSERT_EQ(write(fd, &m, sizeof(m)), sizeof(m));
	sys_hear(fd, 'e');
	close(p.fd);
}

static struct made made_by(struct sys_peer *w)
{
	struct made m;

	sys_spawn(w, SYS_CQD_UID, publisher, NULL);
	ASSERT_EQ(recv(w->fd, &m, sizeof(m), MSG_WAITALL), sizeof(m));
	return m;
}

static void leave(struct sys_peer *w)
{
	sys_say(w->fd, 'e');
	sys_join(w);
}

/* Finds the page, opens its segment, reads. */
static void reader(int fd, void *arg)
{
	const struct cqk_cuda *cu = hold_cuda();
	struct peer p = { .session = 0 };
	struct made *m = arg;
	uint8_t handle[64], *got;
	size_t bytes, i;
	cqcu_ptr at;

	ASSERT_EQ(join_as(&p), 0);
	ASSERT_EQ(wire_lookup(p.fd, p.shard.shard, &m->key, 1), 1);
	ASSERT_OK(handle_of(&p, m->page.segment, handle, &bytes));
	ASSERT_OK(hold_import(cu, handle, &at));
	got = malloc(bytes);
	ASSERT(got);
	ASSERT_OK(cu->cuMemcpyDtoH(got, at + m->page.slot * bytes, bytes));
	for (i = 0; i < bytes && got[i] == 5; i++)
		;
	ASSERT_EQ(i, bytes);
	free(got);
	ASSERT_OK(cu->cuIpcCloseMemHandle(at));
	close(p.fd);
}

static void read_by_another(struct made *m)
{
	struct sys_peer r;

	sys_spawn(&r, SYS_CQD_UID, reader, m);
	sys_join(&r);
}

/* What a worker wrote is there for another, also when cqd was killed in between. */
TEST_LIMIT(pages_outlive_cqd, 60)
{
	struct peer p = { .session = 0 };
	struct cqp_page left, page;
	struct cqp_key next;
	struct sys_peer w;
	struct made m;
	uint64_t used;

	begin(true);
	m = made_by(&w);
	read_by_another(&m);
	ASSERT_EQ(join_as(&p), 0);
	ASSERT_EQ(lease(&p, 1, false, &left), 1);
	used = gpu_pool().used;
	ASSERT_GT(used, 0);
	sys_restart(&s);
	ASSERT_EQ(gpu_pool().used, used);
	ASSERT(!gpu_pool().why);
	read_by_another(&m);
	/* The lease goes on. */
	close(p.fd);
	ASSERT_EQ(join_as(&p), 1);
	ASSERT_OK(seal(&p, &m.key, 9, &left, NULL, &next, &page));
	ASSERT_EQ(times_logged("holder of its memory ended"), 0);
	close(p.fd);
	leave(&w);
	end();
}

static void late(int fd, void *arg)
{
	cqcu_ptr p;

	ASSERT_EQ(hold_import(hold_cuda(), arg, &p), CQCU_ERROR_MAP_FAILED);
}

/* With the holder go the pages, and everybody is told; with a new one it goes on. */
TEST_LIMIT(holder_killed, 60)
{
	struct peer p = { .session = 0 }, q = { .session = 0 };
	struct cqp_page left, page, slot;
	struct cqp_key key, root;
	uint8_t handle[64];
	Cqp__Backend backend;
	struct sys_peer w, l;
	struct made m;
	uint32_t shard;
	size_t bytes;

	begin(true);
	m = made_by(&w);
	ASSERT_EQ(join_as(&p), 0);
	ASSERT_EQ(wire_lookup(p.fd, p.shard.shard, &m.key, 1), 1);
	ASSERT_OK(handle_of(&p, m.page.segment, handle, &bytes));
	ASSERT_EQ(lease(&p, 1, false, &left), 1);
	hold_kill();
	until_lost();
	ASSERT_EQ(wire_lookup(p.fd, p.shard.shard, &m.key, 1), 0);
	ASSERT_EQ(handle_of(&p, m.page.segment, handle, &bytes), -ENODATA);
	ASSERT_EQ(lease(&p, 1, false, &slot), -ENODATA);
	ASSERT_EQ(give_back(&p, &left, 1), -ENODATA);
	ASSERT_EQ(seal(&p, &m.key, 9, &left, NULL, &key, &page), -ENODATA);
	ASSERT_EQ(open_on(p.fd, UUID, &shard, &root, &backend), -ENODATA);
	ASSERT_EQ(gpu_pool().reserved, 0);
	sys_spawn(&l, SYS_CQD_UID, late, handle);
	sys_join(&l);
	ASSERT_EQ(times_logged("holder of its memory ended"), 1);

	hold_start();
	until_ready(true);
	ASSERT_EQ(times_logged("holder of its memory ended"), 1);
	ASSERT_EQ(join_as(&q), 0);
	publish(&q, 5, &key, &page);
	ASSERT_MEMEQ(&key, &m.key, sizeof(key));
	ASSERT_NE(page.segment, m.page.segment);
	ASSERT_EQ(wire_lookup(p.fd, p.shard.shard, &key, 1), 1);
	close(p.fd);
	close(q.fd);
	leave(&w);
	end();
}

/* Neither was there when the next cqd came. */
TEST_LIMIT(holder_killed_meanwhile, 60)
{
	struct peer p = { .session = 0 };
	struct cqp_page page, slot;
	struct cqp_key key;
	struct sys_peer w;
	struct made m;

	begin(true);
	m = made_by(&w);
	ASSERT_EQ(join_as(&p), 0);
	ASSERT_SYS(kill(s.cqd, SIGSTOP));
	hold_kill();
	sys_restart(&s);
	ASSERT(gpu_pool().why);
	ASSERT_EQ(gpu_pool().used, 0);
	ASSERT_EQ(gpu_pool().reserved, 0);
	ASSERT_EQ(times_logged("holder of its memory ended"), 1);
	hold_start();
	until_ready(true);
	close(p.fd);
	ASSERT_EQ(join_as(&p), 1);
	ASSERT_EQ(wire_lookup(p.fd, p.shard.shard, &m.key, 1), 0);
	ASSERT_EQ(lease(&p, 1, false, &slot), 1);
	publish(&p, 7, &key, &page);
	close(p.fd);
	leave(&w);
	end();
}

/* The holder comes later than cqd. */
TEST_LIMIT(no_holder, 60)
{
	struct peer p = { .session = 0 };
	struct cqp_page page;
	Cqp__Backend backend;
	struct cqp_key key;
	uint32_t shard;
	int fd;

	begin(false);
	ASSERT(gpu_pool().why);
	fd = wire_open(s.sock);
	ASSERT_OK(fd);
	ASSERT_EQ(open_on(fd, UUID, &shard, &key, &backend), -ENODATA);
	ASSERT_OK(open_on(fd, NULL, &shard, &key, &backend));
	close(fd);
	hold_start();
	until_ready(true);
	ASSERT_EQ(times_logged("holder of its memory ended"), 0);
	ASSERT_EQ(join_as(&p), 0);
	publish(&p, 5, &key, &page);
	close(p.fd);
	end();
}

static void lessee(int fd, void *arg)
{
	struct peer p = { .session = 0 };
	struct cqp_page c;

	ASSERT_EQ(join_as(&p), 0);
	sys_say(fd, 'j');
	sys_hear(fd, 'l');
	ASSERT_EQ(lease(&p, 1, false, &c), 1);
	sys_say(fd, 'L');
	sys_hear(fd, 'e');
	close(p.fd);
}

/*
 * A segment has no descriptor, but its namespace's state words have one: no slot is given
 * out before the service manager has taken that, or a restart would lose what is sealed there.
 */
TEST_LIMIT(manager_first, 60)
{
	struct pollfd p = { .events = POLLIN };
	struct sys_peer l;

	start(true);
	sys_spawn(&l, SYS_CQD_UID, lessee, NULL);
	sys_hear(l.fd, 'j');
	ASSERT_SYS(kill(s.manager, SIGSTOP));
	sys_say(l.fd, 'l');
	p.fd = l.fd;
	ASSERT_EQ(poll(&p, 1, 300), 0);
	ASSERT_SYS(kill(s.manager, SIGCONT));
	sys_hear(l.fd, 'L');
	leave(&l);
	end();
}

/* A cqd that stands still does not take its holder back before the test has asked it. */
static void freeze_cqd(void)
{
	char path[40], state = '?';
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/stat", s.cqd);
	ASSERT_SYS(kill(s.cqd, SIGSTOP));
	while (state != 'T') {
		f = fopen(path, "re");
		ASSERT(f);
		ASSERT_EQ(fscanf(f, "%*d %*s %c", &state), 1);
		fclose(f);
	}
}

/* A block that no segment is in goes back; a connection that ends is none of the holder's. */
TEST_LIMIT(orphaned_block, 60)
{
	static struct hold_ans got;
	struct peer p = { .session = 0 };
	struct cqp_page page;
	struct cqp_key key;
	unsigned int i;
	int fd;

	begin(true);
	ASSERT_EQ(join_as(&p), 0);
	publish(&p, 5, &key, &page);
	freeze_cqd();
	fd = hold_open(&got);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, 1ull << 40, 2 << 20, &got), 0);
	sys_restart(&s);
	close(fd);
	ASSERT(!gpu_pool().why);
	freeze_cqd();
	fd = hold_open(&got);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_LIST_FROM, 0, 0, &got), 0);
	ASSERT_SYS(kill(s.cqd, SIGCONT));
	ASSERT_GT(got.a.n, 0);
	for (i = 0; i < got.a.n; i++)
		ASSERT_NE(got.block[i].block, 1ull << 40);
	close(fd);
	until_ready(true);
	close(p.fd);
	ASSERT_EQ(join_as(&p), 1);
	ASSERT_EQ(wire_lookup(p.fd, p.shard.shard, &key, 1), 1);
	ASSERT_EQ(times_logged("holder of its memory ended"), 0);
	close(p.fd);
	end();
}

static void evict_all(void)
{
	Cqp__Evict body = CQP__EVICT__INIT;
	DECLARE_MSG(msg, EVICT, evict, body);
	int fd = wire_open(s.admin);

	ASSERT_OK(fd);
	ASSERT_OK(wire_code(wire_call(fd, &msg, NULL, 0, NULL)));
	close(fd);
}

static void leaver(int fd, void *arg)
{
	struct peer p = { .session = 0 };
	Cqp__Bye body = CQP__BYE__INIT;
	DECLARE_MSG(msg, BYE, bye, body);
	struct made *m = arg;
	uint8_t handle[64];
	size_t bytes;

	ASSERT_EQ(join_as(&p), 0);
	ASSERT_OK(handle_of(&p, m->page.segment, handle, &bytes));
	ASSERT_OK(wire_code(wire_call(p.fd, &msg, NULL, 0, NULL)));
	sys_say(fd, 'b');
	sys_hear(fd, 'e');
	close(p.fd);
}

/* Freed while somebody has it open: that must not be, whatever he says. */
TEST_LIMIT(open_somewhere, 60)
{
	struct sys_peer w, l;
	struct made m;

	begin(true);
	m = made_by(&w);
	sys_spawn(&l, SYS_CQD_UID, leaver, &m);
	sys_hear(l.fd, 'b');
	leave(&w);
	SYS_UNTIL(&s, st.clients == 1);
	evict_all();
	until_used(0);
	ASSERT_GT(gpu_pool().reserved, 0);
	sys_restart(&s);
	evict_all();
	ASSERT_GT(gpu_pool().reserved, 0);
	leave(&l);
	SYS_UNTIL(&s, st.clients == 0);
	evict_all();
	while (gpu_pool().reserved)
		usleep(500);
	end();
}

/* Memory that is short is asked for again; short for long is said. */
TEST_LIMIT(out_of_memory, 60)
{
	struct peer p = { .session = 0 };
	struct cqp_page slot;

	ASSERT_SYS(setenv("CQ_EMU_FAIL", "cuMemAlloc:1", 1));
	begin(true);
	ASSERT_EQ(join_as(&p), 0);
	ASSERT_EQ(lease(&p, 1, false, &slot), 1);
	close(p.fd);
	end();
}

TEST_LIMIT(no_memory_left, 60)
{
	struct peer p = { .session = 0 };
	struct cqp_page slot;

	ASSERT_SYS(setenv("CQ_EMU_FAIL", "cuMemAlloc:1+", 1));
	begin(true);
	ASSERT_EQ(join_as(&p), 0);
	ASSERT_EQ(lease(&p, 1, false, &slot), -ENOSPC);
	ASSERT_EQ(gpu_pool().reserved, 0);
	close(p.fd);
	end();
}
