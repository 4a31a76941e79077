// SPDX-License-Identifier: MIT
/*
 * A crash before every single store of a lease's life: leased, sealed, given back, left at
 * Bye, its process gone. Each time the next cqd is started over copies of what the service
 * manager holds (tests/stores.h). It must know every slot that somebody may be writing, and
 * give none of them away; pages that were acknowledged are there.
 */
#include "tests/unit/store_crash.h"
#include "tests/unit/remote_mem.h"
#include "tests/store_check.h"

#define MAX_HELD 32	/* slots leased in all */

/*
 * struct held - a slot that a client was told of
 * @session: of the client
 * @moving:  something is being done to it: it may be over
 * @over:    nobody writes it any more
 */
struct held {
	struct cqp_page at;
	uint64_t session;
	bool moving, over;
};

static struct held held[MAX_HELD];
static unsigned int n_held;
static struct cqp_key acked[4];
static unsigned int n_acked;
static struct rig *script;
static uint64_t crashes;

static const struct cqd_pool_opts gpu = {
	.name = "g0", .uuid = REMOTE_UUID, .backend = "remote", .bytes = 1 << 20,
};

/* --- the child --- */

static void copy_all(void)
{
	static uint8_t buf[1 << 16];
	struct stat sb;
	unsigned int i;
	ssize_t n;
	off_t at;
	int fd;

	for (i = 0; i < mgr.n; i++) {
		if (!strncmp(mgr.names[i], "cq-model", 8)) {
			mgr.fds[i] = fcntl(mgr.fds[i], F_DUPFD_CLOEXEC, 3);
			continue;
		}
		fd = memfd_create(mgr.names[i], MFD_CLOEXEC | MFD_ALLOW_SEALING);
		ASSERT_SYS(fstat(mgr.fds[i], &sb));
		ASSERT_SYS(ftruncate(fd, sb.st_size));
		for (at = 0; (at = lseek(mgr.fds[i], at, SEEK_DATA)) >= 0; at += n) {
			n = pread(mgr.fds[i], buf, sizeof(buf), at);
			ASSERT_GT(n, 0);
			ASSERT_EQ(pwrite(fd, buf, (size_t)n, at), n);
		}
		ASSERT_SYS(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
		mgr.fds[i] = fd;
	}
}

static void check_whole(struct rig *r)
{
	const char *bad = store_check(r->st);

	if (bad)
		FAIL("after a crash: %s", bad);
}

static void check_held(struct cqd_store *st)
{
	const struct cqd_segment *seg;
	const struct cqd_lease *l;
	const struct held *h;
	uint64_t word;

	for (h = held; h < held + n_held; h++) {
		if (h->over || h->moving)
			continue;
		seg = cqd_segment_find(st, h->at.segment);
		ASSERT(seg && seg->lease);
		word = *cqd_segment_word(seg, h->at.slot);
		ASSERT_EQ(CQP_WORD_GEN(word), CQP_WORD_GEN(h->at.word));
		ASSERT(CQP_WORD_STATE(word) == CQP_FILLING ||
		       CQP_WORD_STATE(word) == CQP_QUARANTINED);
		l = seg->lease[h->at.slot];
		ASSERT(l && cqd_client_session(l->client) == h->session);
	}
}

/* A newcomer is given slots, none of which somebody may be writing. */
static void check_serves(struct rig *r)
{
	static const struct cqp_shard all;
	struct cqp_page got, sink;
	struct cqd_found found;
	const struct held *h;
	unsigned int i;
	uint32_t slot;

	rig_ns(r);
	if (!cqd_model_find(r->st, "m"))
		return;
	ASSERT_EQ(cqd_client_new(r->st, r->ns, 4711, 7, 0, "new", &r->cl, &r->err), 0);
	ASSERT_EQ(cqd_shard_get_on(r->cl, "m", &all, REMOTE_UUID, &r->sh, &r->info, &r->err), 0);
	for (i = 0; i < n_acked; i++)
		ASSERT_EQ(cqd_match(r->cl, r->sh, &acked[i], 1, false, &got, &sink, &found,
				    &r->err), 1);
	for (h = held; h < held + n_held; h++) {
		const struct cqd_segment *seg = cqd_segment_find(r->st, h->at.segment);

		if (h->over || h->moving)
			continue;
		for (slot = seg->free_head; slot != CQP_NONE; slot = seg->next_free[slot])
			ASSERT_NE(slot, h->at.slot);
	}
	cqd_client_end(r->cl);
	check_whole(r);
	/* With everybody gone nothing is left behind. */
	while (!list_empty(&r->st->clients))
		cqd_client_end(list_first(&r->st->clients, struct cqd_client, node));
	check_whole(r);
	ASSERT_EQ(r->ns->leases, 0);
	ASSERT_EQ(r->ns->lost, 0);
}

static void successor(void)
{
	struct rig r = *script;

	copy_all();
	r.st = NULL;
	r.o.push_fds = false;
	ASSERT_EQ(uv_loop_init(&r.loop), 0);
	if (rig_open(&r))
		FAIL("restart: %s", r.err.text);
	check_whole(&r);
	check_held(r.st);
	check_serves(&r);
}

static void on_store(uint64_t n)
{
	mgr_sync();
	pthread_mutex_lock(&mgr.lock);
	crash_before(n, successor);
	crashes++;
	pthread_mutex_unlock(&mgr.lock);
}

/* --- the script --- */

static bool leased;
static struct cqd_client *lessee;

/* The moment of the promise. */
static void on_lease(void *arg, int ret, const struct cqp_page *slots, unsigned int n,
		     const struct cq_err *err)
{
	unsigned int i;

	ASSERT_EQ(ret, 0);
	leased = true;
	for (i = 0; i < n; i++) {
		ASSERT_LT(n_held, MAX_HELD);
		held[n_held++] = (struct held){ slots[i], cqd_client_session(lessee),
						false, false };
	}
}

/* The first of those leased now. */
static struct held *lease(struct rig *r, struct cqd_client *cl, unsigned int n, bool sinks)
{
	unsigned int first = n_held;

	leased = false;
	lessee = cl;
	ASSERT_EQ(cqd_lease(cl, r->sh, n, sinks, on_lease, NULL, &r->err), 0);
	rig_run(r, &leased);
	ASSERT_EQ(n_held, first + n);
	return &held[first];
}

static void on_sealed(void *arg, int ret, const struct cqd_seal_result *res,
		      const struct cq_err *err)
{
	ASSERT_EQ(ret, 0);
	acked[n_acked++] = res->key;
}

static void seal(struct rig *r, struct cqd_client *cl, const struct cqp_key *parent,
		 uint32_t token, struct held *slot, struct held *sink)
{
	struct cqd_seal_req q = { .slot = &slot->at, .sink_slot = sink ? &sink->at : NULL,
				  .parent = *parent, .sink_offset = UINT64_MAX };
	unsigned int i, n = n_acked;

	for (i = 0; i < CQ_PAGE_TOKENS; i++)
		q.tokens[i] = token;
	slot->moving = true;
	if (sink)
		sink->moving = true;
	ASSERT_EQ(cqd_seal(cl, r->sh, &q, on_sealed, NULL, &r->err), 0);
	ASSERT_EQ(n_acked, n + 1);
	slot->over = true;
	if (sink)
		sink->over = true;
}

static void give_back(struct rig *r, struct cqd_client *cl, struct held *h)
{
	h->moving = true;
	ASSERT_EQ(cqd_lease_return(cl, &h->at, 1, &r->err), 0);
	h->over = true;
}

static void gone(struct cqd_client *cl)
{
	uint64_t session = cqd_client_session(cl);
	unsigned int i;

	for (i = 0; i < n_held; i++)
		if (held[i].session == session)
			held[i].over = true;	/* its process is */
	cqd_client_end(cl);
}

static struct cqd_client *client(struct rig *r, pid_t pid)
{
	static const struct cqp_shard all;
	struct cqd_client *cl;

	ASSERT_EQ(cqd_client_new(r->st, r->ns, pid, 7, 0, "test", &cl, &r->err), 0);
	ASSERT_EQ(cqd_shard_get_on(cl, "m", &all, REMOTE_UUID, &r->sh, &r->info, &r->err), 0);
	r->root = r->info.root;
	return cl;
}

static void life(struct rig *r)
{
	struct cqd_client *a = client(r, 100), *b = client(r, 101), *c = client(r, 102);
	struct held *codes = lease(r, a, 3, false), *sink = lease(r, a, 1, true);

	seal(r, a, &r->root, 1, &codes[0], sink);
	seal(r, a, &acked[0], 2, &codes[1], NULL);
	lease(r, b, 2, false);
	lease(r, c, 2, true);
	give_back(r, a, &codes[2]);
	ASSERT(!cqd_client_bye(b));
	gone(c);
	gone(b);
	lease(r, a, 2, false);
	gone(a);
}

TEST_LIMIT(before_every_store, 240)
{
	static struct cqd_pool_opts opts;
	struct rig r;

	if (!STORES_WORK)
		SKIP("stores cannot be watched one by one here");
	opts = gpu;
	ASSERT_EQ(cqd_mem_register(&remote_ops), 0);
	mgr_start();
	rig_defaults(&r);
	r.o.push_fds = true;
	r.o.pools = &opts;
	r.o.n_pools = 1;
	r.o.segment_min = 64 << 10;
	r.o.max_pages = 64;
	r.o.max_pins = 64;
	r.o.max_clients = 16;
	script = &r;
	stores.before = on_store;
	stores_watch(on_store);
	stores.before = NULL;
	rig_start(&r);
	cqd_client_end(r.cl);
	/* Maps what is there anew, watched. */
	rig_close(&r);
	mgr_sync();
	stores_watch(on_store);
	if (rig_open(&r))
		FAIL("%s", r.err.text);
	rig_ns(&r);
	life(&r);
	stores.before = NULL;
	printf("# %llu stores, %llu crashes\n", (unsigned long long)stores.n,
	       (unsigned long long)crashes);
	ASSERT_GT(crashes, 100);
	rig_stop(&r);
	mgr_stop();
}
