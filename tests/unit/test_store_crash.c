// SPDX-License-Identifier: MIT
/*
 * A crash before every single store. A script goes through the life of pages:
 * models, sessions, seals, pins, eviction, quarantine, segments that come and
 * go. Before each store to the index or to a state word (tests/stores.h) the
 * process forks: the child takes copies of what the service manager holds at
 * that moment, starts a store over them, and checks it. The next cqd would find
 * just that memory.
 */
#include "tests/unit/store_crash.h"
#include "tests/store_check.h"

#define MAX_KNOWN	128
#define NESTED_EVERY	16	/* crashes whose restart crashes as well, at every store */

/*
 * struct known - a page as its publishers know it
 * @model:  by name
 * @pins:   of sessions that live, never more than there are; @most: never less
 * @at:     where it lay when it was acknowledged
 * @may_go: something may have been done to it that ends an unpinned page
 * @bad:    its checksum was broken on purpose
 */
struct known {
	struct cqp_key key;
	const char *model;
	uint32_t token, pins, most;
	struct cqp_page at;
	bool acked, may_go, bad;
};

static struct known known[MAX_KNOWN];
static unsigned int n_known;
static struct rig *script;
static uint64_t crashes, nested;

/* --- the child: another daemon over copies --- */

static void copy_bytes(int dst, int src, uint64_t size)
{
	static uint8_t buf[1 << 16];
	off_t at = 0, end;
	ssize_t n;

	while ((at = lseek(src, at, SEEK_DATA)) >= 0) {
		end = lseek(src, at, SEEK_HOLE);
		while (at < end) {
			n = pread(src, buf, MIN(sizeof(buf), (size_t)(end - at)), at);
			ASSERT_GT(n, 0);
			ASSERT_EQ(pwrite(dst, buf, (size_t)n, at), n);
			at += n;
		}
	}
}

/* Memory of its own, with the seals of the original; a model cannot change. */
static int copy_fd(const char *name, int src)
{
	struct stat sb;
	int fd;

	if (!strncmp(name, "cq-model", 8))
		return fcntl(src, F_DUPFD_CLOEXEC, 3);
	fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	ASSERT_SYS(fstat(src, &sb));
	ASSERT_SYS(ftruncate(fd, sb.st_size));
	copy_bytes(fd, src, (uint64_t)sb.st_size);
	ASSERT_SYS(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
	return fd;
}

/* From now on the manager's table is the child's own, and holds copies. */
static void copy_all(void)
{
	unsigned int i;

	for (i = 0; i < mgr.n; i++) {
		mgr.fds[i] = copy_fd(mgr.names[i], mgr.fds[i]);
		ASSERT_SYS(mgr.fds[i]);
	}
}

static void on_verified(void *arg, uint64_t checked, uint64_t failed, uint64_t bytes)
{
	struct rig_wait *w = arg;

	w->done = true;
	w->checked = checked;
	w->failed = failed;
}

static uint32_t find_page(struct cqd_store *st, const struct known *k)
{
	struct list_head *pos;
	uint32_t p = CQP_NONE;

	list_for_each(pos, &st->shards) {
		struct cqd_shard *sh = list_entry(pos, struct cqd_shard, node);

		if (p == CQP_NONE && !strcmp(sh->model->name, k->model))
			p = cqd_page_find(st, sh, &k->key);
	}
	return p;
}

/* Held or acknowledged: there, pinned as often, with the bytes that were sealed. */
static void check_known(struct cqd_store *st)
{
	const struct cqd_segment *seg;
	const uint8_t *payload;
	struct known *k;
	uint32_t p, i;

	for (k = known; k < known + n_known; k++) {
		p = find_page(st, k);
		if (p == CQP_NONE) {
			if (k->acked && !k->bad && (k->pins || !k->may_go))
				FAIL("page of token %u (%u pins) is lost", k->token, k->pins);
			continue;
		}
		ASSERT_GE(st->pages[p].pins, k->pins);
		ASSERT_LE(st->pages[p].pins, k->most);
		if (k->bad)
			continue;
		seg = cqd_page_place(st, p, CQD_CODES).seg;
		payload = (uint8_t *)seg->mem.base + st->ix.pages[p].slot * seg->slot_bytes +
			  sizeof(struct cq_page_hdr);
		for (i = 0; i < seg->shard->kind[CQD_CODES].payload; i++)
			if (payload[i] != (uint8_t)(k->token + i))
				FAIL("page of token %u: byte %u is of another page", k->token, i);
	}
}

/* What a worker can see as sealed outlives the crash. */
static void check_visible(struct cqd_store *st, struct cqd_store *old)
{
	struct cqd_place at;
	uint32_t p;

	for (p = 0; p < old->ix.t_pages.high; p++) {
		if (!old->pages[p].shard || old->pages[p].state != CQP_SEALED)
			continue;
		at = cqd_page_place(old, p, CQD_CODES);
		if (CQP_WORD_STATE(*cqd_segment_word(at.seg, at.slot)) == CQP_SEALED)
			ASSERT(st->pages[p].shard && st->pages[p].state == CQP_SEALED);
	}
}

/* A word says which page it was for ever: no place is given twice under one. */
static void check_reuse(const struct cqp_page *at, const struct known *of)
{
	const struct known *k;

	for (k = known; k < known + n_known; k++)
		ASSERT(k == of || !k->acked || memcmp(&k->at, at, sizeof(*at)));
}

/* Words that workers remember never come back. */
static void check_generations(struct cqd_store *st, struct cqd_store *old)
{
	struct list_head *pos, *p2;
	uint64_t i;

	list_for_each(pos, &old->namespaces) {
		const struct cqd_ns *was = list_entry(pos, struct cqd_ns, node), *is = NULL;

		list_for_each(p2, &st->namespaces)
			if (list_entry(p2, struct cqd_ns, node)->rec == was->rec)
				is = list_entry(p2, struct cqd_ns, node);
		for (i = 0; is && i < 256; i++)
			ASSERT_EQ(CQP_WORD_GEN(is->words[i]), CQP_WORD_GEN(was->words[i]));
	}
}

static void check_whole(struct rig *r)
{
	const char *bad = store_check(r->st);

	if (bad)
		FAIL("after a crash: %s", bad);
}

/* It goes on working: a session, a page, the rest of the pool. */
static void check_serves(struct rig *r)
{
	struct rig_wait w;

	rig_ns(r);
	if (!cqd_model_find(r->st, "m"))
		return;
	r->cl = rig_client(r, 4711, &r->arena_id);
	w = rig_seal(r, r->cl, r->arena_id, &r->root, 61);
	if (w.ret && w.ret != -ENOSPC)
		FAIL("sealing after a crash: %d %s", w.ret, w.err.text);
	if (!w.ret && !w.existing)
		check_reuse(&w.res.page, NULL);
	check_whole(r);
	cqd_client_end(r->cl);
	check_whole(r);
}

static void open_again(struct rig *r)
{
	*r = *script;
	r->st = NULL;
	r->o.push_fds = false;
	ASSERT_EQ(uv_loop_init(&r->loop), 0);
	if (rig_open(r))
		FAIL("restart: %s", r->err.text);
}

static void successor(void)
{
	struct cqd_store *old = script->st;
	struct rig_wait w = { 0 };
	unsigned int i, bad = 0;
	struct rig r;

	open_again(&r);
	check_whole(&r);
	if (old) {
		check_generations(r.st, old);
		check_visible(r.st, old);
	}
	for (i = 0; i < n_known; i++)
		bad += known[i].bad;
	ASSERT_EQ(cqd_verify(r.st, on_verified, &w), 0);
	rig_run(&r, &w.done);
	ASSERT_LE(w.failed, bad);
	check_whole(&r);
	check_known(r.st);
	check_serves(&r);
}

/* --- the fork --- */

static void copied_successor(void)
{
	copy_all();
	successor();
}

/* The successor crashes, too; its own successor finds all the same. */
static void on_adoption_store(uint64_t n)
{
	crash_before(stores.n, copied_successor);
}

static void crashing_successor(void)
{
	struct rig r;

	copy_all();
	stores_watch(on_adoption_store);
	open_again(&r);
	stores.before = NULL;
}

static void on_store(uint64_t n)
{
	/* What was sent to the manager has arrived: it outlives the sender. */
	mgr_sync();
	pthread_mutex_lock(&mgr.lock);
	crash_before(stores.n, copied_successor);
	crashes++;
	if (n % NESTED_EVERY == 0) {
		crash_before(stores.n, crashing_successor);
		nested++;
	}
	pthread_mutex_unlock(&mgr.lock);
}

/* --- the script --- */

static struct known *remember(const char *model, uint32_t token)
{
	struct known *k = &known[n_known++];

	ASSERT_LE(n_known, MAX_KNOWN);
	*k = (struct known){ .model = model, .token = token, .most = 1 };
	return k;
}

struct wait_known {
	struct known *k;
	bool done;
	int ret;
};

/* The moment of the promise: from here on the page must be there. */
static void on_acked(void *arg, int ret, const struct cqd_seal_result *res,
		     const struct cq_err *err)
{
	struct wait_known *w = arg;

	w->done = true;
	w->ret = ret;
	if (ret)
		return;
	check_reuse(&res->page, w->k);
	w->k->key = res->key;
	w->k->at = res->page;
	w->k->pins++;
	w->k->acked = true;
}

static void begin(struct rig *r, struct wait_known *w, const char *model,
		  const struct cqp_key *parent, uint32_t token)
{
	struct cqd_seal_req q = { .arena = r->arena_id, .parent = *parent,
				  .sink_offset = UINT64_MAX, .offset = token % 64 * 16384 };
	uint64_t i;

	*w = (struct wait_known){ .k = remember(model, token) };
	for (i = 0; i < CQ_PAGE_TOKENS; i++)
		q.tokens[i] = token;
	for (i = 0; i < r->sh->kind[CQD_CODES].payload; i++)
		r->arena[q.offset + i] = (uint8_t)(token + i);
	if (!memcmp(parent, &r->root, sizeof(*parent)))
		q.sink_offset = q.offset;
	ASSERT_EQ(cqd_seal(r->cl, r->sh, &q, on_acked, w, &r->err), 0);
}

static struct known *seal(struct rig *r, const char *model, const struct cqp_key *parent,
			  uint32_t token)
{
	struct wait_known w;

	begin(r, &w, model, parent, token);
	rig_run(r, &w.done);
	ASSERT_EQ(w.ret, 0);
	return w.k;
}

/* Unpinned pages are fair game for what follows. */
static void may_go(void)
{
	unsigned int i;

	for (i = 0; i < n_known; i++)
		known[i].may_go = true;
}

static void release(struct rig *r, struct known *k)
{
	uint32_t p = find_page(r->st, k);
	struct cqd_place at = cqd_page_place(r->st, p, CQD_CODES);
	struct cqp_page page = cqd_place_page(at.seg, at.slot);

	k->pins--;
	ASSERT_EQ(cqd_release(r->cl, &page, 1, &r->err), 0);
	k->most--;
}

static void lookup(struct rig *r, struct known *k)
{
	struct cqp_page page, sink;
	bool filling;

	k->most++;
	ASSERT_EQ(cqd_lookup(r->cl, r->sh, &k->key, 1, true, &page, &sink, &filling,
			     &r->err), 1);
	k->pins++;
}

/* Two chains with a common start; some pins stay, some go. */
static struct known *chains(struct rig *r)
{
	struct known *a[4], *b;
	unsigned int i;

	for (i = 0; i < 4; i++)
		a[i] = seal(r, "m", i ? &a[i - 1]->key : &r->root, 1 + i);
	b = seal(r, "m", &a[1]->key, 10);
	lookup(r, a[3]);
	lookup(r, a[3]);
	for (i = 0; i < 3; i++)
		release(r, a[i]);
	release(r, a[3]);
	release(r, b);
	return a[3];
}

/* More than the pool holds: each page needs the slot of another. */
static void overflow(struct rig *r)
{
	unsigned int i;

	for (i = 0; i < 12; i++) {
		may_go();
		release(r, seal(r, "m", &r->root, 20 + i));
	}
	ASSERT_GT(r->st->evictions, 4);
}

/* Marked as victims above the watermark; one is wanted again, the rest goes. */
static void watermarks(struct rig *r)
{
	uint32_t p, low = r->st->o.low, high = r->st->o.high;
	struct known *k = NULL;
	unsigned int i;

	may_go();
	r->st->o.low = 30;
	r->st->o.high = 40;
	release(r, seal(r, "m", &r->root, 40));
	for (i = 0; i < n_known; i++) {
		p = find_page(r->st, &known[i]);
		if (p != CQP_NONE && r->st->pages[p].state == CQP_EVICTING)
			k = &known[i];
	}
	ASSERT(k);
	may_go();
	lookup(r, k);
	while (r->st->pool[0].draining)
		uv_run(&r->loop, UV_RUN_NOWAIT);
	r->st->o.low = low;
	r->st->o.high = high;
	release(r, k);
}

/* A page that rots while it is pinned: quarantined, then free. */
static void rot(struct rig *r)
{
	struct rig_wait w = { 0 };
	struct cqd_place at;
	struct cqp_page page;
	struct known *k;

	may_go();
	k = seal(r, "m", &r->root, 50);
	at = cqd_page_place(r->st, find_page(r->st, k), CQD_CODES);
	page = cqd_place_page(at.seg, at.slot);
	k->bad = true;
	k->pins = 0;
	((uint8_t *)at.seg->mem.base)[at.slot * at.seg->slot_bytes + 100] ^= 1;
	ASSERT_EQ(cqd_verify(r->st, on_verified, &w), 0);
	rig_run(r, &w.done);
	ASSERT_EQ(w.failed, 1);
	page.word = CQP_WORD(CQP_WORD_GEN(page.word), CQP_SEALED);
	ASSERT_EQ(cqd_release(r->cl, &page, 1, &r->err), 0);
}

/* A session that ends with pins, an open chain of seals, and a parked one. */
static void sudden_end(struct rig *r, struct known *keep)
{
	struct wait_known w[3];
	unsigned int i;

	may_go();
	begin(r, &w[0], "m", &r->root, 55);
	begin(r, &w[1], "m", &keep->key, 56);
	begin(r, &w[2], "m", &keep->key, 57);
	for (i = 0; i < n_known; i++)
		known[i].pins = 0;
	cqd_client_end(r->cl);
	for (i = 0; i < 3; i++)
		rig_run(r, &w[i].done);
	r->cl = NULL;
	for (i = 0; i < n_known; i++)
		known[i].most = 0;
	while (r->st->jobs)
		uv_run(&r->loop, UV_RUN_ONCE);
}

/* Another model with a page, and away with both; then every empty segment. */
static void unload(struct rig *r)
{
	struct image im = image_model(small_geom(128), "4c8b", "4c8b", CQK_CENTROIDS_F16);
	static const struct cqp_shard all;
	struct cqd_shard *sh = r->sh;

	ASSERT_EQ(rig_load(r, "n", im.buf, im.size).ret, 0);
	free(im.buf);
	ASSERT_EQ(cqd_client_new(r->st, r->ns, 102, 7, 0, "two", &r->cl, &r->err), 0);
	ASSERT_EQ(cqd_shard_get(r->cl, "n", &all, &r->sh, &r->info, &r->err), 0);
	ASSERT_EQ(cqd_arena_offer(r->cl, r->sh, r->arena_fd, RIG_ARENA, &r->arena_id,
				  &r->err), 0);
	r->root = r->info.root;
	may_go();
	release(r, seal(r, "n", &r->root, 5));
	may_go();
	cqd_client_end(r->cl);
	ASSERT_EQ(cqd_model_unload(r->st, "n", &r->err), 0);
	r->sh = sh;
	while (cqd_evict_one(r->st, NULL, NULL))
		;
	r->st->empty_ms = 0;
	cqd_segment_tick(r->st);
	while (r->st->jobs)
		uv_run(&r->loop, UV_RUN_ONCE);
	ASSERT_EQ(r->st->pool[0].reserved, 0);
}

static void run_script(struct rig *r)
{
	struct known *keep;

	rig_start(r);
	keep = chains(r);
	overflow(r);
	watermarks(r);
	rot(r);
	sudden_end(r, keep);
	unload(r);
}

TEST_LIMIT(every_prefix_of_the_stores, 240)
{
	struct rig r;

	if (!STORES_WORK)
		SKIP("stores cannot be watched one by one here");
	mgr_start();
	rig_defaults(&r);
	r.o.push_fds = true;
	r.o.pool_bytes = 180 << 10;
	r.o.segment_min = 64 << 10;
	r.o.segment_max = 64 << 10;
	r.o.max_pages = 64;
	r.o.max_pins = 64;
	r.o.max_clients = 8;
	script = &r;
	r.st = NULL;
	stores_watch(on_store);
	run_script(&r);
	stores.before = NULL;
	printf("# %llu stores, %llu crashes, %llu restarts that crashed at each store\n",
	       (unsigned long long)stores.n, (unsigned long long)crashes,
	       (unsigned long long)nested);
	ASSERT_GT(crashes, 500);
	rig_stop(&r);
	mgr_stop();
}
