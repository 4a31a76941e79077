// SPDX-License-Identifier: MIT
/*
 * Namespaces that may read each other: what a lookup finds where, whose pin
 * holds what, what a withdrawn permission leaves.
 */
#include "tests/unit/store_rig.h"

#define LONG	6u	/* pages of the owner */
#define MORE	3u	/* of the reader, behind them */

/* Two namespaces on one rig: @r.ns owns, @ns reads. */
struct two {
	struct rig r;
	struct cqd_ns *ns;
	struct cqd_client *cl;
	struct cqd_shard *sh;
	struct cqd_shard_info info;
	uint32_t arena;
	struct cqp_key keys[LONG + MORE];
	struct cqp_page pages[LONG + MORE];
};

static struct two t;

static void allow(bool on)
{
	cqd_readers_begin(t.r.st);
	if (on)
		ASSERT_EQ(cqd_readers_add(t.r.ns, t.ns, &t.r.err), 0);
	cqd_readers_end(t.r.st);
}

/* The other namespace's client, whose shard the rig does not know. */
static void reader_open(pid_t pid)
{
	static const struct cqp_shard all;
	static const struct cqd_ns_opts opts = { .quota_bytes = 1 << 30, .quota_pins = 2 };

	ASSERT_EQ(cqd_ns_get(t.r.st, "reader", &opts, &t.ns, &t.r.err), 0);
	ASSERT_EQ(cqd_client_new(t.r.st, t.ns, pid, 7, 0, "reader", &t.cl, &t.r.err), 0);
	ASSERT_EQ(cqd_shard_get(t.cl, "m", &all, &t.sh, &t.info, &t.r.err), 0);
	ASSERT_EQ(cqd_arena_offer(t.cl, t.sh, t.r.arena_fd, RIG_ARENA, &t.arena, &t.r.err), 0);
}

static void two_start(void)
{
	rig_defaults(&t.r);
	rig_start(&t.r);
	reader_open(101);
	rig_chain(&t.r, 0, LONG, t.keys, t.pages);
	ASSERT_EQ(cqd_release(t.r.cl, t.pages, LONG, &t.r.err), 0);
}

static int reader_looks(unsigned int n, bool pin, struct cqp_page *pages,
			struct cqd_found *found)
{
	struct cqp_page sink;
	int got = cqd_match(t.cl, t.sh, t.keys, n, pin, pages, &sink, found, &t.r.err);

	/* page 0 of a model with sinks comes with them, whosever it is */
	ASSERT(got <= 0 || sink.segment != CQP_NONE);
	return got;
}

static int reader_finds(unsigned int n)
{
	struct cqp_page pages[LONG + MORE];
	struct cqd_found found;

	return reader_looks(n, false, pages, &found);
}

/* Page @i of the chain, published by the reader into its own namespace. */
static struct rig_wait reader_seals(unsigned int i)
{
	struct cqd_shard *own = t.r.sh;
	struct rig_wait w;

	t.r.sh = t.sh;
	w = rig_seal(&t.r, t.cl, t.arena, i ? &t.keys[i - 1] : &t.info.root, i);
	t.r.sh = own;
	return w;
}

TEST(only_whom_it_names)
{
	two_start();
	ASSERT_EQ(reader_finds(LONG), 0);
	allow(true);
	ASSERT_EQ(reader_finds(LONG), LONG);
	/* and not the other way round */
	ASSERT_EQ(reader_seals(0).ret, 0);
	allow(false);
	ASSERT_EQ(reader_finds(LONG), 1);
	rig_stop(&t.r);
}

TEST(pins_are_the_readers)
{
	struct cqp_page pages[LONG];
	struct cqd_found found;
	unsigned int i;

	two_start();
	allow(true);
	ASSERT_EQ(reader_looks(LONG, true, pages, &found), LONG);
	ASSERT_EQ(found.split, 0);
	ASSERT_EQ(t.ns->pins, 1);
	ASSERT_EQ(t.r.ns->pins, 0);
	ASSERT_EQ(t.r.ns->pages, LONG);
	ASSERT_EQ(t.ns->pages, 0);
	/* the owner can make no room of them */
	ASSERT(!cqd_evict_one(t.r.st, NULL, NULL));
	/* strict: two are allowed */
	ASSERT_EQ(reader_looks(LONG, true, pages, &found), LONG);
	ASSERT_EQ(reader_looks(LONG, true, pages, &found), -EDQUOT);
	/* they outlive the permission, and can be given back without it */
	allow(false);
	ASSERT(!cqd_evict_one(t.r.st, NULL, NULL));
	for (i = 0; i < 2; i++)
		ASSERT_EQ(cqd_release(t.cl, &pages[LONG - 1], 1, &t.r.err), 0);
	ASSERT_EQ(cqd_release(t.cl, &pages[LONG - 1], 1, &t.r.err), -EINVAL);
	ASSERT_EQ(t.ns->pins, 0);
	for (i = 0; i < LONG; i++)
		ASSERT(cqd_evict_one(t.r.st, NULL, t.r.ns));
	rig_stop(&t.r);
}

TEST(segments_with_their_own_words)
{
	struct cqd_segment_info info;

	two_start();
	ASSERT_EQ(cqd_segment_get(t.cl, t.pages[0].segment, &info), -ENOENT);
	allow(true);
	ASSERT_EQ(cqd_segment_get(t.cl, t.pages[0].segment, &info), 0);
	ASSERT_EQ(info.state_fd, t.r.info.state_fd);
	ASSERT_EQ(info.state_words, t.r.info.state_words);
	ASSERT_EQ(cqd_segment_get(t.r.cl, t.pages[0].segment, &info), 0);
	ASSERT_EQ(info.state_fd, -1);
	allow(false);
	ASSERT_EQ(cqd_segment_get(t.cl, t.pages[0].segment, &info), -ENOENT);
	rig_stop(&t.r);
}

/* What the reader adds lies in its own namespace, and needs nothing there. */
TEST(own_pages_behind_foreign_ones)
{
	struct cqp_page pages[LONG + MORE];
	struct cqd_found found;
	struct cqd_notice n;
	struct rig_wait w;
	uint32_t cursor = 0;
	unsigned int i;

	two_start();
	ASSERT_EQ(reader_seals(LONG).ret, -ENOENT);	/* would tell that they are there */
	allow(true);
	for (i = LONG; i < LONG + MORE; i++) {
		w = reader_seals(i);
		ASSERT_EQ(w.ret, 0);
		t.keys[i] = w.res.key;
		ASSERT_EQ(cqd_release(t.cl, &w.res.page, 1, &t.r.err), 0);
	}
	ASSERT_EQ(t.ns->pages, MORE);
	ASSERT_EQ(t.r.ns->pages, LONG);
	/* whose page the first of them is behind is nobody's business */
	while (cqd_store_resident(t.r.st, t.ns, &cursor, 4096, &n))
		ASSERT_EQ(n.has_parent, n.depth > LONG);
	ASSERT_EQ(reader_looks(LONG + MORE, true, pages, &found), LONG + MORE);
	ASSERT_EQ(found.split, LONG);
	ASSERT_EQ(t.ns->pins, 2);
	ASSERT(!cqd_evict_one(t.r.st, NULL, NULL));
	/* both, or none */
	ASSERT_EQ(reader_looks(LONG + MORE, true, pages, &found), -EDQUOT);
	ASSERT_EQ(t.ns->pins, 2);
	ASSERT_EQ(cqd_release(t.cl, &pages[LONG - 1], 1, &t.r.err), 0);
	ASSERT_EQ(cqd_release(t.cl, &pages[LONG + MORE - 1], 1, &t.r.err), 0);
	/* the owner's room is the owner's: nobody else's pages keep it */
	for (i = 0; i < LONG; i++)
		ASSERT(cqd_evict_one(t.r.st, NULL, t.r.ns));
	ASSERT_EQ(t.r.ns->pages, 0);
	ASSERT_EQ(t.ns->pages, MORE);
	ASSERT_EQ(reader_finds(LONG + MORE), 0);
	rig_stop(&t.r);
}

/* Published by the reader as well: then they hang together in its namespace. */
TEST(behind_its_own_in_the_end)
{
	struct cqp_page pages[LONG + MORE];
	struct cqd_found found;
	struct rig_wait w;
	unsigned int i;

	two_start();
	allow(true);
	w = reader_seals(LONG);
	t.keys[LONG] = w.res.key;
	ASSERT_EQ(cqd_release(t.cl, &w.res.page, 1, &t.r.err), 0);
	allow(false);
	for (i = 0; i < LONG; i++) {
		w = reader_seals(i);
		ASSERT_EQ(w.ret, 0);
		ASSERT_EQ(cqd_release(t.cl, &w.res.page, 1, &t.r.err), 0);
	}
	ASSERT_EQ(reader_looks(LONG + 1, true, pages, &found), LONG + 1);
	ASSERT_EQ(found.split, LONG);
	ASSERT_EQ(cqd_release(t.cl, &pages[LONG - 1], 1, &t.r.err), 0);
	w = reader_seals(LONG);
	ASSERT(w.existing);
	ASSERT_EQ(cqd_release(t.cl, &w.res.page, 1, &t.r.err), 0);
	ASSERT_EQ(reader_looks(LONG + 1, false, pages, &found), LONG + 1);
	ASSERT_EQ(found.split, 0);
	/* one pin holds them all */
	ASSERT_EQ(t.ns->pins, 1);
	ASSERT(!cqd_evict_one(t.r.st, NULL, t.ns));
	rig_stop(&t.r);
}

/* Who read once keeps the mapping: what is sealed later must not go there. */
TEST(nothing_new_where_a_former_reader_looks)
{
	struct cqd_segment_info info;
	uint32_t given = 0, later;
	struct rig_wait w;

	two_start();
	given = t.pages[0].segment;
	allow(true);
	ASSERT_EQ(cqd_segment_get(t.cl, given, &info), 0);
	allow(true);
	w = rig_seal(&t.r, t.r.cl, t.r.arena_id, &t.keys[LONG - 1], 20);
	ASSERT_EQ(w.ret, 0);
	ASSERT_EQ(w.res.page.segment, given);
	allow(false);
	w = rig_seal(&t.r, t.r.cl, t.r.arena_id, &t.keys[LONG - 1], 21);
	ASSERT_EQ(w.ret, 0);
	later = w.res.page.segment;
	ASSERT_NE(later, given);
	ASSERT_EQ(rig_resident(&t.r, t.keys, LONG), LONG);
	/* also when it may read again, and after its slots came free */
	allow(true);
	ASSERT(cqd_segment_find(t.r.st, given));
	ASSERT_EQ(t.r.st->n_closed, 1);
	cqd_page_drop(t.r.st, cqd_page_find(t.r.st, t.r.sh, &t.keys[1]));
	w = rig_seal(&t.r, t.r.cl, t.r.arena_id, &t.keys[0], 22);
	ASSERT_EQ(w.res.page.segment, later);
	rig_stop(&t.r);
}

/* A full pool: the closed segment's memory is used again, as another segment. */
TEST(closed_segments_make_room)
{
	struct cqd_segment_info info;
	struct rig_wait w;
	unsigned int i;

	rig_defaults(&t.r);
	t.r.o.segment_min = t.r.o.segment_max = 8 * 12288;
	t.r.o.pool_bytes = 8 * 12288 + 4 * 8192;
	rig_start(&t.r);
	reader_open(101);
	rig_chain(&t.r, 0, 1, t.keys, t.pages);
	ASSERT_EQ(cqd_release(t.r.cl, t.pages, 1, &t.r.err), 0);
	allow(true);
	ASSERT_EQ(cqd_segment_get(t.cl, t.pages[0].segment, &info), 0);
	allow(false);
	for (i = 0; i < 12; i++) {
		w = rig_seal(&t.r, t.r.cl, t.r.arena_id, &t.r.root, 10 + i);
		if (w.ret)
			FAIL("page %u: %s", i, w.err.text);
		ASSERT_NE(w.res.page.segment, t.pages[0].segment);
		ASSERT_EQ(cqd_release(t.r.cl, &w.res.page, 1, &t.r.err), 0);
	}
	ASSERT_EQ(t.r.st->n_closed, 0);
	rig_stop(&t.r);
}

/* Permissions are the configuration's, the rest is in the index. */
TEST(over_a_restart)
{
	struct cqp_page pages[LONG + MORE];
	struct cqd_segment_info info;
	struct cqd_found found;
	struct rig_wait w;

	mgr_start();
	rig_defaults(&t.r);
	t.r.o.push_fds = true;
	rig_start(&t.r);
	reader_open(101);
	rig_chain(&t.r, 0, LONG, t.keys, t.pages);
	allow(true);
	w = reader_seals(LONG);
	t.keys[LONG] = w.res.key;
	ASSERT_EQ(cqd_release(t.cl, &w.res.page, 1, &t.r.err), 0);
	ASSERT_EQ(reader_looks(LONG + 1, true, pages, &found), LONG + 1);
	ASSERT_EQ(cqd_segment_get(t.cl, pages[0].segment, &info), 0);
	mgr_sync();
	rig_close(&t.r);
	ASSERT_EQ(rig_open(&t.r), 0);
	ASSERT_EQ(t.r.err.text[0], 0);
	rig_ns(&t.r);
	t.r.cl = rig_client(&t.r, 100, &t.r.arena_id);
	reader_open(102);
	ASSERT_EQ(t.ns->pins, 2);		/* of the session that was there */
	ASSERT_EQ(reader_finds(LONG + 1), 0);
	allow(true);
	ASSERT_EQ(t.r.st->n_closed, 0);
	ASSERT_EQ(reader_looks(LONG + 1, false, pages, &found), LONG + 1);
	ASSERT_EQ(found.split, LONG);
	/* gone while cqd was away, as far as it can tell */
	allow(false);
	ASSERT_EQ(t.r.st->n_closed, 1);
	rig_stop(&t.r);
	mgr_stop();
}

static void again(void)
{
	mgr_sync();
	rig_close(&t.r);
	ASSERT_EQ(rig_open(&t.r), 0);
	ASSERT_EQ(t.r.err.text[0], 0);
	rig_ns(&t.r);
	t.r.cl = rig_client(&t.r, 100, &t.r.arena_id);
	reader_open(102);
}

/* Killed between the two stores that hang a page below its parent. */
TEST(killed_while_it_gets_its_parent)
{
	struct rig_wait w;
	unsigned int i;
	uint32_t p;

	mgr_start();
	rig_defaults(&t.r);
	t.r.o.push_fds = true;
	rig_start(&t.r);
	reader_open(101);
	rig_chain(&t.r, 0, LONG, t.keys, t.pages);
	allow(true);
	w = reader_seals(LONG);
	t.keys[LONG] = w.res.key;
	for (i = 0; i <= LONG; i++) {
		w = reader_seals(i);
		ASSERT_EQ(w.ret, 0);
		ASSERT_EQ(cqd_release(t.cl, &w.res.page, 1, &t.r.err), 0);
	}
	p = cqd_page_find(t.r.st, t.sh, &t.keys[LONG]);
	ASSERT(t.r.st->ix.pages[p].parent != CQP_NONE);
	ASSERT_EQ(t.r.st->ix.pages[p].behind, 0);
	t.r.st->ix.pages[p].behind = 1;
	again();
	ASSERT_EQ(reader_finds(LONG + 1), LONG + 1);
	ASSERT_EQ(t.r.st->ix.pages[p].behind, 0);
	ASSERT(t.r.st->pages[p].parent != CQP_NONE);
	rig_stop(&t.r);
	mgr_stop();
}

/* What it lay behind is gone, and its depth is more than there are pages. */
TEST(deep_behind_nothing)
{
	struct rig_wait w;

	mgr_start();
	rig_defaults(&t.r);
	t.r.o.push_fds = true;
	rig_start(&t.r);
	reader_open(101);
	rig_chain(&t.r, 0, LONG, t.keys, t.pages);
	allow(true);
	w = reader_seals(LONG);
	ASSERT_EQ(w.ret, 0);
	ASSERT_EQ(cqd_release(t.r.cl, t.pages, LONG, &t.r.err), 0);
	while (cqd_evict_one(t.r.st, NULL, t.r.ns))
		;
	ASSERT_EQ(t.r.st->n_state[CQP_SEALED], 1);
	t.r.o.max_pages /= 2;		/* records are numbered anew */
	again();
	ASSERT(cqd_page_find(t.r.st, t.sh, &w.res.key) != CQP_NONE);
	ASSERT_EQ(t.ns->pins, 1);
	rig_stop(&t.r);
	mgr_stop();
}
