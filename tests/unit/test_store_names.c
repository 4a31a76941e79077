// SPDX-License-Identifier: MIT
/*
 * Names in the store: what they keep, what they count for, and that they are
 * found after a restart, whole or not at all.
 */
#include <xxhash.h>
#include "tests/unit/store_rig.h"

#define PAGES 5
#define TAIL 5000u
#define TAIL_AT (512u << 10)	/* in the arena */

static struct rig r;
static struct cqp_key keys[PAGES];
static struct cqp_page pages[PAGES];

static void begin(void)
{
	mgr_start();
	rig_defaults(&r);
	r.o.push_fds = true;
	rig_start(&r);
	rig_chain(&r, 1, PAGES, keys, pages);
	ASSERT_EQ(cqd_release(r.cl, pages, PAGES, &r.err), 0);
}

static void end(void)
{
	rig_stop(&r);
	mgr_stop();
}

static void again(void)
{
	mgr_sync();
	rig_close(&r);
	mgr_sync();
	r.err.text[0] = '\0';
	if (rig_open(&r))
		FAIL("%s", r.err.text);
	rig_ns(&r);
	r.cl = rig_client(&r, 101, &r.arena_id);
}

static bool kept(const char *start)
{
	unsigned int i;
	bool found = false;

	mgr_sync();
	for (i = 0; i < mgr.n; i++)
		found |= !strncmp(mgr.names[i], start, strlen(start));
	return found;
}

static void on_published(void *arg, int ret, const struct cq_err *err)
{
	struct rig_wait *w = arg;

	ASSERT(!w->done);
	w->done = true;
	w->ret = ret;
	if (err)
		w->err = *err;
}

/* Two pieces, the later one first. */
static struct cqp_extent pieces[2] = {
	{ TAIL_AT + 3000, TAIL - 2000 }, { TAIL_AT, 2000 },
};

static struct cqd_publish_req request(const char *name)
{
	static uint8_t tail[TAIL];
	XXH128_hash_t h;
	uint32_t i;

	for (i = 0; i < 8192; i++)
		r.arena[TAIL_AT + i] = (uint8_t)(i * 7 + i / 256);
	memcpy(tail, r.arena + pieces[0].offset, pieces[0].bytes);
	memcpy(tail + pieces[0].bytes, r.arena + pieces[1].offset, pieces[1].bytes);
	h = XXH3_128bits(tail, TAIL);
	return (struct cqd_publish_req){
		.name = name, .key = &keys[PAGES - 1], .tokens = 64 * PAGES + 3,
		.arena = r.arena_id, .extents = pieces, .n_extents = 2,
		.check_lo = h.low64, .check_hi = h.high64,
	};
}

static struct rig_wait publish(const struct cqd_publish_req *q)
{
	struct rig_wait w = { 0 };

	w.ret = cqd_publish(r.cl, r.sh, q, on_published, &w, &r.err);
	if (!w.ret)
		rig_run(&r, &w.done);
	else
		w.err = r.err;
	return w;
}

static void publish_ok(const char *name)
{
	struct cqd_publish_req q = request(name);
	struct rig_wait w = publish(&q);

	if (w.ret)
		FAIL("%d %s", w.ret, w.err.text);
}

static void check_tail(const char *name)
{
	struct cqd_attached a;
	uint8_t got[TAIL];

	ASSERT_EQ(cqd_attach(r.cl, r.sh, name, TAIL, &a, &r.err), 0);
	ASSERT_EQ(a.bytes, TAIL);
	ASSERT_EQ(a.tokens, 64 * PAGES + 3);
	ASSERT_EQ(a.page.segment, pages[PAGES - 1].segment);
	ASSERT_EQ(a.page.slot, pages[PAGES - 1].slot);
	ASSERT_EQ(pread(a.fd, got, TAIL, 0), TAIL);
	ASSERT_EQ(XXH3_128bits(got, TAIL).low64, a.check_lo);
	/* nobody changes it, whoever gets it */
	ASSERT_EQ(fcntl(a.fd, F_GETFL) & O_ACCMODE, O_RDONLY);
	ASSERT(fcntl(a.fd, F_GET_SEALS) & F_SEAL_WRITE);
	ASSERT(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, a.fd, 0) == MAP_FAILED);
	close(a.fd);
	ASSERT_EQ(cqd_release(r.cl, &a.page, 1, &r.err), 0);
}

static void evict_all(void)
{
	while (cqd_evict_one(r.st, NULL, NULL))
		;
}

TEST(a_name_keeps_the_prefix)
{
	struct cqd_publish_req q = { .name = "p", .key = &keys[2], .tokens = 192 };

	begin();
	ASSERT_EQ(publish(&q).ret, 0);
	ASSERT_EQ(r.ns->pins, 1);
	evict_all();
	ASSERT_EQ(rig_resident(&r, keys, PAGES), 3);
	/* its maker is nothing to it, nor is a restart */
	cqd_client_end(r.cl);
	evict_all();
	again();
	ASSERT_STREQ(r.err.text, "");
	evict_all();
	ASSERT_EQ(rig_resident(&r, keys, PAGES), 3);
	ASSERT_EQ(r.ns->pins, 1);
	ASSERT_EQ(cqd_model_unload(r.st, "m", &r.err), -EBUSY);
	ASSERT_EQ(cqd_unpublish(r.ns, "p", &r.err), 0);
	ASSERT_EQ(r.ns->pins, 0);
	evict_all();
	ASSERT_EQ(rig_resident(&r, keys, PAGES), 0);
	/* and it does not come back */
	again();
	ASSERT_EQ(cqd_unpublish(r.ns, "p", &r.err), -ENOENT);
	end();
}

TEST(the_administrator_pins)
{
	begin();
	ASSERT_EQ(cqd_name_pin(r.ns, "adm", &keys[1], 0, false, &r.err), 0);
	ASSERT_EQ(cqd_name_pin(r.ns, "adm", &keys[2], 0, false, &r.err), -EEXIST);
	ASSERT_EQ(cqd_name_pin(r.ns, "adm", &keys[2], 0, true, &r.err), 0);
	evict_all();
	ASSERT_EQ(rig_resident(&r, keys, PAGES), 3);
	ASSERT_EQ(cqd_name_pin(r.ns, "x", &keys[4], 0, false, &r.err), -ENOENT);
	ASSERT(cqd_ns_find(r.st, "tenant") == r.ns);
	ASSERT(!cqd_ns_find(r.st, "nobody"));
	end();
}

TEST(a_sequence_survives)
{
	uint64_t used;

	begin();
	publish_ok("s");
	check_tail("s");
	used = r.ns->used_bytes;
	ASSERT_EQ(r.ns->tail_bytes, TAIL);
	ASSERT(kept("cq-tail-"));
	again();
	ASSERT_STREQ(r.err.text, "");
	ASSERT_EQ(r.ns->tail_bytes, TAIL);
	ASSERT_EQ(r.ns->used_bytes, used);
	check_tail("s");
	again();
	check_tail("s");
	ASSERT_EQ(cqd_unpublish(r.ns, "s", &r.err), 0);
	ASSERT_EQ(r.ns->tail_bytes, 0);
	ASSERT(!kept("cq-tail-"));
	end();
}

TEST(replace_and_once)
{
	struct cqd_publish_req q;
	struct cqd_attached a;

	begin();
	publish_ok("s");
	q = request("s");
	ASSERT_EQ(publish(&q).ret, -EEXIST);
	q.replace = true;
	q.once = true;
	ASSERT_EQ(publish(&q).ret, 0);
	ASSERT_EQ(r.ns->tail_bytes, TAIL);
	ASSERT_EQ(r.ns->pins, 1);
	/* too large: stays */
	ASSERT_EQ(cqd_attach(r.cl, r.sh, "s", TAIL - 1, &a, &r.err), -ENOBUFS);
	again();
	check_tail("s");
	ASSERT_EQ(cqd_attach(r.cl, r.sh, "s", TAIL, &a, &r.err), -ENOENT);
	ASSERT_EQ(r.ns->tail_bytes, 0);
	ASSERT_EQ(r.ns->pins, 0);
	end();
}

TEST(time_to_live)
{
	struct cqd_publish_req q;
	struct cqd_attached a;

	begin();
	q = request("s");
	q.ttl_s = 1;
	ASSERT_EQ(publish(&q).ret, 0);
	check_tail("s");
	again();
	check_tail("s");
	usleep(1050000);
	ASSERT_EQ(cqd_attach(r.cl, r.sh, "s", TAIL, &a, &r.err), -ENOENT);
	q = request("t");
	q.ttl_s = 1;
	ASSERT_EQ(publish(&q).ret, 0);
	usleep(1050000);
	/* nobody asks for it */
	cqd_names_tick(r.st);
	ASSERT_EQ(r.ns->tail_bytes, 0);
	ASSERT_EQ(r.ns->pins, 0);
	end();
}

/* --- refused --- */

static void refused(const struct cqd_publish_req *q, int code)
{
	uint64_t used = r.ns->used_bytes;
	struct rig_wait w = publish(q);

	if (w.ret != code)
		FAIL("%d %s, want %d", w.ret, w.err.text, code);
	ASSERT_EQ(r.ns->used_bytes, used);
	ASSERT_EQ(r.ns->tail_bytes, 0);
	ASSERT_EQ(r.ns->pins, 0);
	ASSERT_EQ(r.st->ix.t_names.used, 0);
	ASSERT_EQ(r.sh->names, 0);
	ASSERT(!kept("cq-tail-"));
}

TEST(bad_requests)
{
	static const struct cqp_extent bad[] = {
		{ RIG_ARENA, 1 }, { 0, 0 }, { 0, RIG_ARENA + 1 }, { UINT64_MAX, 2 },
		{ 4, UINT64_MAX },
	};
	struct cqp_extent twice[3] = { { 0, RIG_ARENA }, { 0, RIG_ARENA }, { 0, 1 } };
	struct cqd_publish_req q;
	unsigned int i;

	begin();
	q = request("s p");
	refused(&q, -EINVAL);
	q = request("s");
	q.arena = 77;
	refused(&q, -EINVAL);
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		q = request("s");
		q.extents = &bad[i];
		q.n_extents = 1;
		refused(&q, -EINVAL);
	}
	q = request("s");
	q.extents = twice;
	q.n_extents = 3;
	refused(&q, -EINVAL);
	q = request("s");
	q.key = &r.root;
	refused(&q, -ENOENT);
	q = request("s");
	q.key = NULL;
	refused(&q, -EINVAL);
	q = request("s");
	q.tokens = 64 * PAGES - 1;	/* another page is its last */
	refused(&q, -EINVAL);
	q = request("s");
	q.tokens = 0;
	refused(&q, -EINVAL);
	q = request("s");
	q.check_hi ^= 1;
	refused(&q, -EIO);
	end();
}

TEST(quotas)
{
	struct cqd_ns_opts o = { .quota_bytes = 0, .quota_pins = 0 };
	struct cqd_publish_req q;
	struct cqd_attached a;

	begin();
	o.quota_bytes = r.ns->arena_bytes + TAIL - 1;
	ASSERT_EQ(cqd_ns_get(r.st, "tenant", &o, &r.ns, &r.err), 0);
	q = request("s");
	refused(&q, -EDQUOT);
	o.quota_bytes = 1 << 30;
	o.quota_pins = 1;
	ASSERT_EQ(cqd_ns_get(r.st, "tenant", &o, &r.ns, &r.err), 0);
	publish_ok("s");
	q = request("t");
	ASSERT_EQ(publish(&q).ret, -EDQUOT);
	ASSERT_EQ(cqd_attach(r.cl, r.sh, "s", TAIL, &a, &r.err), -EDQUOT);
	end();
}

/* The session ends, or the store closes, while a thread copies. */
TEST(cancelled)
{
	struct rig_wait w = { 0 };
	struct cqd_publish_req q;

	begin();
	q = request("s");
	ASSERT_EQ(cqd_publish(r.cl, r.sh, &q, on_published, &w, &r.err), 0);
	cqd_client_end(r.cl);
	rig_run(&r, &w.done);
	ASSERT_EQ(w.ret, -ECANCELED);
	ASSERT(!kept("cq-tail-"));
	ASSERT_EQ(r.ns->tail_bytes, 0);
	r.cl = rig_client(&r, 100, &r.arena_id);
	q = request("s");
	w.done = false;
	ASSERT_EQ(cqd_publish(r.cl, r.sh, &q, on_published, &w, &r.err), 0);
	again();
	ASSERT(w.done);
	ASSERT_EQ(w.ret, -ECANCELED);
	ASSERT_EQ(r.st->ix.t_names.used, 0);
	end();
}

/* Two at once: one wins, the other hears of it. */
TEST(at_once)
{
	struct rig_wait v = { 0 }, w = { 0 };
	struct cqd_publish_req q;

	begin();
	q = request("s");
	ASSERT_EQ(cqd_publish(r.cl, r.sh, &q, on_published, &v, &r.err), 0);
	ASSERT_EQ(cqd_publish(r.cl, r.sh, &q, on_published, &w, &r.err), 0);
	rig_run(&r, &v.done);
	rig_run(&r, &w.done);
	ASSERT_EQ(MIN(v.ret, w.ret), -EEXIST);
	ASSERT_EQ(MAX(v.ret, w.ret), 0);
	ASSERT_EQ(r.ns->tail_bytes, TAIL);
	check_tail("s");
	end();
}

/* --- restart over damaged records --- */

static struct cqp_rec_name *record(void)
{
	unsigned int i;
	struct cqp_index_hdr h, *p;

	mgr_sync();
	for (i = 0; i < mgr.n && strncmp(mgr.names[i], "cq-index", 8); i++)
		;
	ASSERT_EQ(pread(mgr.fds[i], &h, sizeof(h), 0), (ssize_t)sizeof(h));
	p = mmap(NULL, h.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, mgr.fds[i], 0);
	ASSERT(p != MAP_FAILED);
	return (void *)((uint8_t *)p + p->off_names);
}

static void no_end(struct cqp_rec_name *n)
{
	memset(n->name, 'x', sizeof(n->name));
}

static void no_name(struct cqp_rec_name *n)
{
	n->name[0] = '\0';
}

static void no_ns(struct cqp_rec_name *n)
{
	n->ns = 200;
}

static void no_model(struct cqp_rec_name *n)
{
	n->model = CQP_NONE;
}

static void layers(struct cqp_rec_name *n)
{
	n->layer_end = 99;
}

static void other_shard(struct cqp_rec_name *n)
{
	n->layer_end = 1;
}

static void no_page(struct cqp_rec_name *n)
{
	n->page = 0xfffffff0;
}

static void later_page(struct cqp_rec_name *n)
{
	n->slot_gen++;
}

static void no_tail(struct cqp_rec_name *n)
{
	n->id ^= 1;
}

static void no_id(struct cqp_rec_name *n)
{
	n->id = 0;
}

static void longer(struct cqp_rec_name *n)
{
	n->tail_bytes++;
}

static void empty(struct cqp_rec_name *n)
{
	n->tail_bytes = 0;
}

static void flags(struct cqp_rec_name *n)
{
	n->flags = 6;
}

static void filling(struct cqp_rec_name *n)
{
	n->word = CQP_WORD(9, CQP_FILLING);
}

static void one_damage(void (*hurt)(struct cqp_rec_name *))
{
	struct cqd_attached a;

	begin();
	publish_ok("s");
	hurt(record());
	again();
	ASSERT_EQ(cqd_attach(r.cl, r.sh, "s", TAIL, &a, &r.err), -ENOENT);
	ASSERT_EQ(r.st->ix.t_names.used, 0);
	ASSERT_EQ(r.ns->tail_bytes, 0);
	ASSERT_EQ(r.ns->pins, 0);
	ASSERT(!kept("cq-tail-"));
	ASSERT_EQ(rig_resident(&r, keys, PAGES), PAGES);
	publish_ok("s");
	check_tail("s");
	end();
}

TEST_LIMIT(damaged_names, 60)
{
	static void (*const damages[])(struct cqp_rec_name *) = {
		no_end, no_name, no_ns, no_model, layers, other_shard, no_page, later_page,
		no_tail, no_id, longer, empty, flags, filling,
	};
	unsigned int i;
	int status;
	pid_t pid;

	for (i = 0; i < ARRAY_SIZE(damages); i++) {
		fflush(stdout);
		pid = fork();
		ASSERT_GE(pid, 0);
		if (!pid) {
			one_damage(damages[i]);
			_exit(0);
		}
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		if (status)
			FAIL("damage %u: status %#x", i, (unsigned int)status);
	}
}

/* Killed between the new record and the end of the old one: the later counts. */
TEST(two_of_one_name)
{
	struct cqp_rec_name *n;
	struct cqd_publish_req q;
	uint32_t later;

	begin();
	publish_ok("a");
	q = request("b");
	ASSERT_EQ(publish(&q).ret, 0);
	n = record();
	later = n[1].id;
	snprintf(n[1].name, sizeof(n[1].name), "a");
	again();
	ASSERT_EQ(r.st->ix.t_names.used, 1);
	ASSERT_EQ(r.st->ix.names[cqd_name_find(r.ns, "a")].id, later);
	ASSERT_EQ(r.ns->tail_bytes, TAIL);
	ASSERT_EQ(r.ns->pins, 1);
	check_tail("a");
	end();
}

/* A page whose checksum is wrong takes its names along. */
TEST(a_lost_page_takes_the_name)
{
	struct cqd_attached a;

	begin();
	publish_ok("s");
	cqd_page_drop(r.st, cqd_page_find(r.st, r.sh, &keys[1]));
	ASSERT_EQ(cqd_attach(r.cl, r.sh, "s", TAIL, &a, &r.err), -ENOENT);
	ASSERT_EQ(r.ns->tail_bytes, 0);
	ASSERT_EQ(r.st->n_state[CQP_QUARANTINED], 0);
	ASSERT_EQ(r.st->n_state[CQP_SEALED], 1);
	end();
}

/* Names go along when the index changes its layout. */
TEST(names_move_with_the_index)
{
	begin();
	publish_ok("s");
	mgr_sync();
	rig_close(&r);
	r.o.max_pages = 64;
	mgr_sync();
	if (rig_open(&r))
		FAIL("%s", r.err.text);
	ASSERT_STREQ(r.err.text, "");
	ASSERT_EQ(r.st->ix.t_pages.n, 64);
	rig_ns(&r);
	r.cl = rig_client(&r, 101, &r.arena_id);
	check_tail("s");
	end();
}

/* As many as there may be, and no more. */
TEST(every_record)
{
	struct cqd_publish_req q = { .key = &keys[0], .tokens = 64 };
	char name[16];
	int i;

	begin();
	q.name = name;
	for (i = 0; i < CQD_MAX_NAMES; i++) {
		snprintf(name, sizeof(name), "n%d", i);
		ASSERT_EQ(publish(&q).ret, 0);
	}
	snprintf(name, sizeof(name), "one-more");
	ASSERT_EQ(publish(&q).ret, -ENOSPC);
	ASSERT_EQ(r.ns->pins, CQD_MAX_NAMES);
	again();
	ASSERT_EQ(r.ns->pins, CQD_MAX_NAMES);
	for (i = 0; i < CQD_MAX_NAMES; i++) {
		snprintf(name, sizeof(name), "n%d", i);
		ASSERT_EQ(cqd_unpublish(r.ns, name, &r.err), 0);
	}
	ASSERT_EQ(r.ns->pins, 0);
	end();
}
