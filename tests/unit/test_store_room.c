// SPDX-License-Identifier: MIT
/* Limits of namespaces to the last byte, the administrator's evictions, and
 * memory given back to the machine. */
#include <sys/stat.h>
#include "tests/unit/store_rig.h"

#define SLOT	12288u	/* of the rig's model; sinks take 8192 */
#define SINK	8192u

static struct rig_wait seal(struct rig *r, const struct cqp_key *parent, uint32_t token)
{
	return rig_seal(r, r->cl, r->arena_id, parent, token);
}

static struct rig_wait sealed(struct rig *r, const struct cqp_key *parent, uint32_t token)
{
	struct rig_wait w = seal(r, parent, token);

	if (w.ret)
		FAIL("token %u: %d %s", token, w.ret, w.err.text);
	return w;
}

static void unpin(struct rig *r, const struct rig_wait *w)
{
	ASSERT_EQ(cqd_release(r->cl, &w->res.page, 1, &r->err), 0);
}

static bool there(struct rig *r, const struct rig_wait *w)
{
	return cqd_page_find(r->st, r->sh, &w->res.key) != CQP_NONE;
}

static void turns(struct rig *r, unsigned int n)
{
	while (n--)
		uv_run(&r->loop, UV_RUN_NOWAIT);
}

/* Exactly what fits gets in; sinks and arenas count. */
TEST(bytes_to_the_border)
{
	struct rig_wait w[4];
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	cqd_ns_limit(r.ns, RIG_ARENA + SINK + 3 * SLOT - 1, 0, 0);
	w[0] = sealed(&r, &r.root, 1);
	w[1] = sealed(&r, &w[0].res.key, 2);
	ASSERT_EQ(seal(&r, &w[0].res.key, 3).ret, -EDQUOT);
	ASSERT_EQ(r.ns->used_bytes, RIG_ARENA + SINK + 2 * SLOT);
	cqd_ns_limit(r.ns, RIG_ARENA + SINK + 3 * SLOT, 0, 0);
	w[2] = sealed(&r, &w[0].res.key, 3);
	ASSERT_EQ(r.ns->used_bytes, r.ns->quota_bytes);
	/* a leaf of its own that nobody uses makes room */
	unpin(&r, &w[1]);
	w[3] = sealed(&r, &w[0].res.key, 4);
	ASSERT(!there(&r, &w[1]) && there(&r, &w[2]));
	ASSERT_EQ(r.ns->used_bytes, r.ns->quota_bytes);
	rig_stop(&r);
}

TEST(arenas_to_the_border)
{
	struct rig_wait a;
	uint32_t id, other;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	a = sealed(&r, &r.root, 1);
	cqd_ns_limit(r.ns, RIG_ARENA + SINK + SLOT + 4096, 0, 0);
	ASSERT_EQ(cqd_arena_offer(r.cl, r.sh, r.arena_fd, 4097, &id, &r.err), -EDQUOT);
	ASSERT_EQ(cqd_arena_offer(r.cl, r.sh, r.arena_fd, 4096, &id, &r.err), 0);
	ASSERT_EQ(cqd_arena_offer(r.cl, r.sh, r.arena_fd, 1, &other, &r.err), -EDQUOT);
	ASSERT_EQ(cqd_arena_drop(r.cl, id), 0);
	/* an arena makes unused pages go */
	unpin(&r, &a);
	ASSERT_EQ(cqd_arena_offer(r.cl, r.sh, r.arena_fd, SINK + SLOT + 4096, &id, &r.err), 0);
	ASSERT_EQ(r.ns->pages, 0);
	ASSERT_EQ(r.ns->used_bytes, r.ns->quota_bytes);
	rig_stop(&r);
}

TEST(pages_and_pins_to_the_border)
{
	struct cqp_page page, sink;
	struct rig_wait w[3];
	bool filling;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	cqd_ns_limit(r.ns, 0, 2, 0);
	w[0] = sealed(&r, &r.root, 1);
	w[1] = sealed(&r, &w[0].res.key, 2);
	ASSERT_EQ(seal(&r, &w[0].res.key, 3).ret, -EDQUOT);
	cqd_ns_limit(r.ns, 0, 3, 3);
	w[2] = sealed(&r, &w[0].res.key, 3);
	ASSERT_EQ(r.ns->pins, 3);
	ASSERT_EQ(cqd_lookup(r.cl, r.sh, &w[0].res.key, 1, true, &page, &sink, &filling,
			     &r.err), -EDQUOT);
	ASSERT_EQ(r.ns->pins, 3);
	unpin(&r, &w[2]);
	ASSERT_EQ(cqd_lookup(r.cl, r.sh, &w[0].res.key, 1, true, &page, &sink, &filling,
			     &r.err), 1);
	ASSERT_EQ(cqd_lookup(r.cl, r.sh, &w[0].res.key, 1, true, &page, &sink, &filling,
			     &r.err), -EDQUOT);
	/* a seal that can have no pin leaves nothing behind */
	cqd_ns_limit(r.ns, 0, 0, 3);
	ASSERT_EQ(seal(&r, &w[0].res.key, 4).ret, -EDQUOT);
	ASSERT_EQ(r.ns->pages, 3);
	ASSERT_EQ(r.ns->used_bytes, RIG_ARENA + SINK + 3 * SLOT);
	rig_stop(&r);
}

/* Lowered below what is in use: that stays, the rest goes, nothing gets in. */
TEST(a_limit_is_lowered)
{
	struct cqd_ns_opts opts = { .quota_bytes = RIG_ARENA + SINK + 2 * SLOT };
	struct rig_wait w[100], page0;
	unsigned int i, in = 0;
	uint64_t before;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	page0 = sealed(&r, &r.root, 1000);
	for (i = 0; i < 100; i++) {
		w[i] = sealed(&r, &page0.res.key, i);
		if (i >= 3)
			unpin(&r, &w[i]);
	}
	ASSERT_EQ(cqd_ns_get(r.st, "tenant", &opts, &r.ns, &r.err), 0);
	before = r.st->evictions;
	turns(&r, 1);
	ASSERT_LE(r.st->evictions - before, 40);
	turns(&r, 20);
	for (i = 0; i < 100; i++)
		in += there(&r, &w[i]);
	ASSERT_EQ(in, 3);
	ASSERT(there(&r, &page0) && there(&r, &w[0]) && there(&r, &w[2]));
	ASSERT(!r.st->idling && !r.ns->shrinking);
	ASSERT_EQ(r.ns->used_bytes, RIG_ARENA + SINK + 4 * SLOT);
	ASSERT_EQ(seal(&r, &page0.res.key, 500).ret, -EDQUOT);
	unpin(&r, &w[0]);
	unpin(&r, &w[1]);
	ASSERT_EQ(seal(&r, &page0.res.key, 500).ret, -EDQUOT);
	unpin(&r, &w[2]);
	sealed(&r, &page0.res.key, 500);
	ASSERT_EQ(r.ns->used_bytes, r.ns->quota_bytes);
	rig_stop(&r);
}

/* --- the administrator --- */

struct went {
	bool done;
	uint64_t pages, bytes;
};

static void on_evicted(void *arg, uint64_t pages, uint64_t bytes)
{
	*(struct went *)arg = (struct went){ true, pages, bytes };
}

static struct went evict(struct rig *r, const struct cqd_evict_opts *o)
{
	struct went w = { 0 };

	ASSERT_EQ(cqd_evict(r->st, o, on_evicted, &w, &r->err), 0);
	rig_run(r, &w.done);
	return w;
}

TEST(the_administrator_evicts)
{
	struct cqd_evict_opts o = { 0 };
	struct rig_wait a, w[6];
	struct went went;
	unsigned int i;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	a = sealed(&r, &r.root, 1000);
	for (i = 0; i < 6; i++) {
		w[i] = sealed(&r, &a.res.key, i);
		unpin(&r, &w[i]);
		if (i == 2)
			usleep(300000);
	}
	o.model = "none";
	ASSERT_EQ(cqd_evict(r.st, &o, on_evicted, &went, &r.err), -ENOENT);
	o.model = "m";
	o.bytes = SLOT + 1;
	went = evict(&r, &o);
	ASSERT_EQ(went.pages, 2);
	ASSERT_EQ(went.bytes, 2 * SLOT);
	ASSERT(!there(&r, &w[0]) && !there(&r, &w[1]) && there(&r, &w[2]));
	o = (struct cqd_evict_opts){ .older_us = 150000, .ns = r.ns };
	went = evict(&r, &o);
	ASSERT_EQ(went.pages, 1);
	ASSERT(!there(&r, &w[2]) && there(&r, &w[3]));
	o = (struct cqd_evict_opts){ 0 };
	went = evict(&r, &o);
	ASSERT_EQ(went.pages, 3);
	ASSERT(there(&r, &a));
	unpin(&r, &a);
	went = evict(&r, &o);
	ASSERT_EQ(went.bytes, SLOT + SINK);
	/* and the segments with them, without the usual wait */
	while (r.st->pool[0].reserved)
		uv_run(&r.loop, UV_RUN_ONCE);
	ASSERT_EQ(r.st->pool[0].used, 0);
	rig_stop(&r);
}

/* A request under way when the store closes is answered. */
TEST(a_request_ends_with_the_store)
{
	struct cqd_evict_opts o = { 0 };
	struct rig_wait a;
	struct went w = { 0 };
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	a = sealed(&r, &r.root, 1);
	unpin(&r, &a);
	ASSERT_EQ(cqd_evict(r.st, &o, on_evicted, &w, &r.err), 0);
	rig_close(&r);
	ASSERT(w.done);
	rig_stop(&r);
}

/* --- memory for the machine --- */

/* Shared memory of this process: every memfd, touched or only reserved. */
static uint64_t shmem_kb(void)
{
	uint64_t blocks = 0;
	struct stat sb;
	int fd;

	for (fd = 3; fd < 256; fd++)
		if (fcntl(fd, F_GET_SEALS) >= 0 && !fstat(fd, &sb) &&
		    (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR)
			blocks += (uint64_t)sb.st_blocks;
	return blocks / 2;
}

/* Three segments of 256 pages: the last one nearly empty, one page in use. */
TEST(sparse_segments_go_first)
{
	const unsigned int slots = 256;
	struct rig_wait a, w;
	uint64_t before, reserved;
	unsigned int i;
	struct rig r;

	rig_defaults(&r);
	r.o.segment_min = slots * SLOT;
	r.o.segment_max = slots * SLOT;
	rig_start(&r);
	a = sealed(&r, &r.root, 1 << 20);
	for (i = 1; i < 2 * slots + 20; i++) {
		w = sealed(&r, &a.res.key, i);
		unpin(&r, &w);
	}
	before = shmem_kb();
	reserved = r.st->pool[0].reserved;
	ASSERT_EQ(r.sh->kind[CQD_CODES].segments, 3);
	/* 1/16 of it is less than a segment: one goes, the emptiest */
	cqd_store_squeeze(r.st);
	while (r.st->pool[0].reserved == reserved)
		uv_run(&r.loop, UV_RUN_ONCE);
	printf("# shared memory %llu kB, one of three segments back: %llu kB\n",
	       (unsigned long long)before, (unsigned long long)shmem_kb());
	ASSERT_EQ(reserved - r.st->pool[0].reserved, slots * SLOT);
	ASSERT_EQ(r.st->evictions, 20);
	ASSERT(there(&r, &a));
	ASSERT_LE(shmem_kb() + slots * SLOT / 1024, before);
	/* again: the first one has a page in use, the second goes */
	reserved = r.st->pool[0].reserved;
	cqd_store_squeeze(r.st);
	while (r.st->pool[0].reserved == reserved)
		uv_run(&r.loop, UV_RUN_ONCE);
	ASSERT_EQ(r.st->evictions, 20 + slots);
	ASSERT(there(&r, &a));
	/* and what is in use stays, however often */
	cqd_store_squeeze(r.st);
	turns(&r, 50);
	ASSERT(there(&r, &a));
	ASSERT(!r.st->squeeze && !r.st->emptying && !r.st->idling);
	printf("# shared memory in the end: %llu kB\n", (unsigned long long)shmem_kb());
	ASSERT_LE(shmem_kb() + 2 * slots * SLOT / 1024, before);
	rig_stop(&r);
}

/* A page wanted again while its segment is emptied: the rest stays. */
TEST(emptying_gives_up)
{
	const unsigned int slots = 128;
	struct cqp_page page, sink;
	struct rig_wait a, w[100];
	unsigned int i, in = 0;
	bool filling;
	struct rig r;

	rig_defaults(&r);
	r.o.segment_min = slots * SLOT;
	r.o.segment_max = slots * SLOT;
	rig_start(&r);
	a = sealed(&r, &r.root, 1 << 20);
	for (i = 0; i < 100; i++) {
		w[i] = sealed(&r, &a.res.key, i);
		unpin(&r, &w[i]);
	}
	unpin(&r, &a);
	cqd_store_squeeze(r.st);
	while (!r.st->evictions)
		uv_run(&r.loop, UV_RUN_NOWAIT);
	for (i = 99; i && !there(&r, &w[i]); i--)
		;
	ASSERT_GT(i, 1);
	ASSERT_EQ(cqd_lookup(r.cl, r.sh, &w[i].res.key, 1, true, &page, &sink, &filling,
			     &r.err), 1);
	turns(&r, 50);
	ASSERT(!r.st->emptying && !r.st->idling);
	ASSERT(there(&r, &w[i]) && there(&r, &a));
	for (i = 0; i < 100; i++)
		in += there(&r, &w[i]);
	ASSERT_GT(in, 1);
	/* its free slots are given out again */
	sealed(&r, &a.res.key, 5000);
	rig_stop(&r);
}
