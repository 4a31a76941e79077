// SPDX-License-Identifier: MIT
/*
 * The order in which pages go: time to live, priority, frequency, recency; and
 * that every byte is counted, whatever was done before.
 */
#include "tests/unit/store_rig.h"

#define SLOT	12288u	/* of the rig's model; sinks take 8192 */

/* Room for @codes pages in one segment and as many sinks in another. */
static void pool(struct rig *r, unsigned int codes)
{
	rig_defaults(r);
	r->o.segment_min = codes * SLOT;
	r->o.segment_max = codes * SLOT;
	r->o.pool_bytes = codes * SLOT + MAX(codes * SLOT / 3, 8192);
	rig_start(r);
}

/* A page of @token below @parent, no longer pinned. */
static struct cqp_key put(struct rig *r, const struct cqp_key *parent, uint32_t token,
			  unsigned int priority, uint32_t ttl_s)
{
	struct cqd_seal_req q = { .arena = r->arena_id, .parent = *parent,
				  .sink_offset = UINT64_MAX, .ttl_s = ttl_s,
				  .priority = (uint8_t)priority };
	struct rig_wait w = { 0 };
	unsigned int i;

	for (i = 0; i < CQ_PAGE_TOKENS; i++)
		q.tokens[i] = token;
	if (!memcmp(parent, &r->root, sizeof(*parent)))
		q.sink_offset = 0;
	ASSERT_EQ(cqd_seal(r->cl, r->sh, &q, rig_on_seal, &w, &r->err), 0);
	rig_run(r, &w.done);
	if (w.ret)
		FAIL("token %u: %d %s", token, w.ret, w.err.text);
	ASSERT_EQ(cqd_release(r->cl, &w.res.page, 1, &r->err), 0);
	return w.res.key;
}

/* Is it there? Asking is no use. */
static bool there(struct rig *r, const struct cqp_key *key)
{
	return cqd_page_find(r->st, r->sh, key) != CQP_NONE;
}

static struct cqp_rec_page *rec(struct rig *r, const struct cqp_key *key)
{
	uint32_t p = cqd_page_find(r->st, r->sh, key);

	ASSERT(p != CQP_NONE);
	return &r->st->ix.pages[p];
}

/* A prompt read often outlives twice the pool of pages read once. */
TEST(a_scan_leaves_what_is_hot)
{
	struct cqp_key hot[4], cold, parent;
	struct rig r;
	uint32_t i;

	pool(&r, 16);
	parent = r.root;
	for (i = 0; i < 4; i++) {
		hot[i] = put(&r, &parent, i, 0, 0);
		parent = hot[i];
	}
	for (i = 0; i < 10; i++)
		ASSERT_EQ(rig_resident(&r, hot, 4), 4);
	ASSERT_EQ(rec(&r, &hot[0])->uses, 10);
	cold = put(&r, &hot[0], 99, 0, 0);
	for (i = 0; i < 32; i++)
		put(&r, &hot[0], 100 + i, 0, 0);
	ASSERT_GE(r.st->evictions, 20);
	ASSERT(!there(&r, &cold));
	for (i = 0; i < 4; i++)
		ASSERT(there(&r, &hot[i]));
	rig_stop(&r);
}

/* What was hot long ago counts half with each half-life, and goes. */
TEST(old_uses_fade)
{
	struct cqp_key hot, fresh;
	struct rig r;
	uint32_t i, p;

	pool(&r, 8);
	r.st->half_us = 20000;
	hot = put(&r, &r.root, 1, 0, 0);
	p = cqd_page_find(r.st, r.sh, &hot);
	for (i = 0; i < 300; i++)
		rig_resident(&r, &hot, 1);
	ASSERT_GT(rec(&r, &hot)->uses, 20);
	ASSERT_LE(rec(&r, &hot)->uses, CQD_MAX_USES);
	ASSERT_GT(r.st->pages[p].level, 3);
	usleep(20000 * 10);
	ASSERT_EQ(cqd_lru_uses(r.st, p, cqd_now_us()), 0);
	fresh = put(&r, &r.root, 2, 0, 0);
	/* one step each time a victim is chosen */
	ASSERT(cqd_evict_one(r.st, NULL, NULL));
	ASSERT(!there(&r, &hot));
	ASSERT(there(&r, &fresh));
	rig_stop(&r);
}

TEST(priority_beats_recency)
{
	struct cqp_key old, new[3];
	struct rig r;
	uint32_t i;

	pool(&r, 8);
	old = put(&r, &r.root, 1, 7, 0);
	for (i = 0; i < 3; i++) {
		new[i] = put(&r, &r.root, 2 + i, 6 - i, 0);
		rig_resident(&r, &new[i], 1);
	}
	for (i = 3; i-- > 0;) {
		ASSERT(cqd_evict_one(r.st, NULL, NULL));
		ASSERT(!there(&r, &new[i]));
	}
	ASSERT(there(&r, &old));
	ASSERT(cqd_evict_one(r.st, NULL, NULL));
	rig_stop(&r);
}

/* A hot page that has faded must not hide the other shards while it sinks. */
TEST(priority_over_shards_while_one_sinks)
{
	static const struct cqp_shard half = { .layer_end = 1 };
	struct cqp_key high, low;
	struct cqd_shard *other;
	struct rig r;
	uint32_t i;

	rig_defaults(&r);
	rig_start(&r);
	r.st->half_us = 20000;
	high = put(&r, &r.root, 1, 9, 0);
	for (i = 0; i < 20; i++)
		rig_resident(&r, &high, 1);
	other = r.sh;
	ASSERT_EQ(cqd_shard_get(r.cl, "m", &half, &r.sh, &r.info, &r.err), 0);
	ASSERT(r.sh != other);
	r.root = r.info.root;
	low = put(&r, &r.root, 2, 0, 0);
	usleep(20000 * 10);
	ASSERT(cqd_evict_one(r.st, NULL, r.ns));
	ASSERT(cqd_page_find(r.st, r.sh, &low) == CQP_NONE);
	ASSERT(cqd_page_find(r.st, other, &high) != CQP_NONE);
	ASSERT(cqd_evict_one(r.st, NULL, r.ns));
	ASSERT(!cqd_evict_one(r.st, NULL, r.ns));
	rig_stop(&r);
}

TEST(a_second_publisher_raises)
{
	struct cqp_key a, b;
	struct rig r;

	pool(&r, 8);
	a = put(&r, &r.root, 1, 1, 5);
	b = put(&r, &r.root, 2, 2, 0);
	put(&r, &r.root, 1, 3, 9);
	ASSERT_EQ(rec(&r, &a)->priority, 3);
	ASSERT_EQ(rec(&r, &a)->ttl_s, 9);
	put(&r, &r.root, 1, 0, 2);
	ASSERT_EQ(rec(&r, &a)->priority, 3);
	ASSERT_EQ(rec(&r, &a)->ttl_s, 9);
	ASSERT_EQ(r.st->wheel.n, 1);
	put(&r, &r.root, 1, 0, 0);
	ASSERT_EQ(rec(&r, &a)->ttl_s, 0);
	ASSERT_EQ(r.st->wheel.n, 0);
	ASSERT(cqd_evict_one(r.st, NULL, NULL));
	ASSERT(there(&r, &a));
	ASSERT(!there(&r, &b));
	rig_stop(&r);
}

/* Without any want of memory, children first, and nothing that is in use. */
TEST(what_has_expired_goes)
{
	struct cqp_key chain[3], kept, late, parent, held;
	struct cqp_page page, sink;
	long long end;
	bool filling;
	struct rig r;
	uint32_t i;

	pool(&r, 16);
	parent = r.root;
	for (i = 0; i < 3; i++) {
		chain[i] = put(&r, &parent, 1 + i, 9, 1);
		parent = chain[i];
	}
	kept = put(&r, &r.root, 20, 0, 0);
	late = put(&r, &r.root, 21, 0, 5000);
	held = put(&r, &r.root, 22, 0, 1);
	ASSERT_EQ(cqd_lookup(r.cl, r.sh, &held, 1, true, &page, &sink, &filling, &r.err), 1);
	ASSERT_EQ(r.st->wheel.n, 2);
	end = test_now_ms() + 8000;
	while (there(&r, &chain[0])) {
		ASSERT_LT(test_now_ms(), end);
		uv_run(&r.loop, UV_RUN_ONCE);
	}
	ASSERT(!there(&r, &chain[1]) && !there(&r, &chain[2]));
	ASSERT(there(&r, &kept) && there(&r, &late) && there(&r, &held));
	/* its time begins when nobody uses it any more */
	ASSERT_EQ(cqd_release(r.cl, &page, 1, &r.err), 0);
	ASSERT(there(&r, &held));
	while (there(&r, &held)) {
		ASSERT_LT(test_now_ms(), end);
		uv_run(&r.loop, UV_RUN_ONCE);
	}
	ASSERT_EQ(r.st->evictions, 4);
	rig_stop(&r);
}

/* Many at once: some per turn of the loop; before all others under pressure. */
TEST(expired_pages_turn_by_turn)
{
	struct cqp_key parent, other;
	uint64_t before, turns = 0;
	struct rig r;
	uint32_t i;

	rig_defaults(&r);
	rig_start(&r);
	parent = put(&r, &r.root, 0, 0, 0);
	other = put(&r, &parent, 5000, 0, 0);
	for (i = 0; i < 200; i++)
		put(&r, &parent, 1 + i, 255, 1);
	usleep(2100000);
	ASSERT(cqd_evict_one(r.st, NULL, NULL));
	ASSERT(there(&r, &other));
	cqd_evict_tick(r.st);
	while (r.st->evictions < 200) {
		before = r.st->evictions;
		uv_run(&r.loop, UV_RUN_NOWAIT);
		ASSERT_LE(r.st->evictions - before, 64);
		ASSERT_LT(turns++, 1000);
	}
	ASSERT(there(&r, &other));
	ASSERT_EQ(r.st->wheel.n, 0);
	rig_stop(&r);
}

/* A new daemon has the same order: what went first before goes first now. */
TEST(order_after_a_restart)
{
	struct cqp_key k[6], order[6];
	struct rig r;
	uint32_t i;

	mgr_start();
	rig_defaults(&r);
	r.o.push_fds = true;
	rig_start(&r);
	k[0] = put(&r, &r.root, 1, 0, 0);
	k[1] = put(&r, &r.root, 2, 0, 0);
	k[2] = put(&r, &r.root, 3, 4, 0);
	k[3] = put(&r, &r.root, 4, 4, 0);
	k[4] = put(&r, &r.root, 5, 4, 700);
	k[5] = put(&r, &r.root, 6, 0, 0);
	for (i = 0; i < 5; i++) {
		rig_resident(&r, &k[0], 1);
		rig_resident(&r, &k[2], 1);
	}
	order[0] = k[1];	/* no priority, never used; then the same, newer */
	order[1] = k[5];
	order[2] = k[0];	/* no priority, used five times */
	order[3] = k[3];
	order[4] = k[4];
	order[5] = k[2];
	mgr_sync();
	rig_close(&r);
	ASSERT_EQ(rig_open(&r), 0);
	rig_ns(&r);
	r.cl = rig_client(&r, 200, &r.arena_id);
	ASSERT_EQ(r.st->ix.t_pages.used, 6);
	ASSERT_EQ(r.st->wheel.n, 1);
	for (i = 0; i < 6; i++) {
		ASSERT(there(&r, &order[i]));
		ASSERT(cqd_evict_one(r.st, NULL, NULL));
		if (there(&r, &order[i]))
			FAIL("page %u of the order is still there", i);
	}
	rig_stop(&r);
	mgr_stop();
}

/* --- random use against a model --- */

#define MANY 48

struct known {
	struct cqp_key key;
	struct cqp_page page;
	uint32_t parent;	/* in the table, MANY: none */
	unsigned int pins;
	bool in;
};

static struct known tab[MANY];

static bool leaf(uint32_t i)
{
	uint32_t k;

	for (k = 0; k < MANY; k++)
		if (tab[k].in && tab[k].parent == i)
			return false;
	return true;
}

/* What must go next by the rules alone, from the records. */
static uint32_t expected(struct rig *r)
{
	const struct cqp_rec_page *a, *b = NULL;
	uint32_t i, best = MANY;

	for (i = 0; i < MANY; i++) {
		if (!tab[i].in || tab[i].pins || !leaf(i))
			continue;
		a = rec(r, &tab[i].key);
		if (!b || a->priority < b->priority ||
		    (a->priority == b->priority &&
		     (MIN(31 - __builtin_clz(a->uses + 1), 7) <
			      MIN(31 - __builtin_clz(b->uses + 1), 7) ||
		      (MIN(31 - __builtin_clz(a->uses + 1), 7) ==
			       MIN(31 - __builtin_clz(b->uses + 1), 7) &&
		       a->last_use_us < b->last_use_us)))) {
			best = i;
			b = a;
		}
	}
	return best;
}

/* Every figure of the store against a count from the table. */
static void check_figures(struct rig *r, uint64_t arenas)
{
	uint64_t pages = 0, sinks = 0, pins = 0, used = 0;
	uint32_t i;

	for (i = 0; i < MANY; i++) {
		if (!tab[i].in)
			continue;
		pages++;
		sinks += tab[i].parent == MANY;
		pins += tab[i].pins;
	}
	used = pages * SLOT + sinks * 8192;
	ASSERT_EQ(r->st->pool[0].used, used);
	ASSERT_EQ(r->ns->used_bytes, used + arenas);
	ASSERT_EQ(r->ns->pages, pages);
	ASSERT_EQ(r->ns->pins, pins);
	ASSERT_EQ(r->st->ix.t_pages.used, pages);
	ASSERT_LE(used + arenas, r->ns->quota_bytes);
}

static void drop_gone(struct rig *r)
{
	uint32_t i;

	for (i = 0; i < MANY; i++)
		if (tab[i].in && !there(r, &tab[i].key)) {
			ASSERT_EQ(tab[i].pins, 0);
			tab[i].in = false;
		}
	for (i = 0; i < MANY; i++)	/* never a parent before its child */
		if (tab[i].in && tab[i].parent != MANY)
			ASSERT(tab[tab[i].parent].in);
}

static void random_seal(struct rig *r, uint32_t i, uint32_t parent, uint64_t rng)
{
	struct cqd_seal_req q = {
		.arena = r->arena_id, .parent = parent == MANY ? r->root : tab[parent].key,
		.sink_offset = parent == MANY ? 0 : UINT64_MAX,
		.priority = (uint8_t)(rng >> 40) % 3,
	};
	struct rig_wait w = { 0 };
	uint32_t t;

	for (t = 0; t < CQ_PAGE_TOKENS; t++)
		q.tokens[t] = i;
	ASSERT_EQ(cqd_seal(r->cl, r->sh, &q, rig_on_seal, &w, &r->err), 0);
	rig_run(r, &w.done);
	drop_gone(r);
	if (w.ret) {
		ASSERT(w.ret == -EDQUOT || w.ret == -ENOSPC);
		return;
	}
	tab[i] = (struct known){ w.res.key, w.res.page, parent, 1, true };
}

static void random_evict(struct rig *r)
{
	uint32_t want = expected(r), i;

	ASSERT_EQ(cqd_evict_one(r->st, NULL, NULL), want != MANY);
	for (i = 0; i < MANY; i++)
		if (tab[i].in && there(r, &tab[i].key) != (i != want))
			FAIL("page %u %s, page %u had to go", i,
			     i == want ? "stayed" : "went", want);
	drop_gone(r);
}

static void random_step(struct rig *r, uint64_t rng, uint64_t *arenas)
{
	uint32_t i = (uint32_t)(rng >> 33) % MANY, other = (uint32_t)(rng >> 45) % MANY;
	static uint32_t extra;
	struct cqp_page page, sink;
	uint64_t now = cqd_now_us();
	bool filling;

	while (cqd_now_us() == now)	/* no two uses at the same time */
		;
	switch ((rng >> 20) % 8) {
	case 0:
	case 1:
	case 2:
		if (!tab[i].in)
			random_seal(r, i, other != i && tab[other].in ? other : MANY, rng);
		break;
	case 3:
		if (tab[i].in && cqd_lookup(r->cl, r->sh, &tab[i].key, 1, rng >> 60 & 1, &page,
					    &sink, &filling, &r->err) == 1 && rng >> 60 & 1)
			tab[i].pins++;
		break;
	case 4:
	case 5:
		if (tab[i].in && tab[i].pins) {
			ASSERT_EQ(cqd_release(r->cl, &tab[i].page, 1, &r->err), 0);
			tab[i].pins--;
		}
		break;
	case 6:
		random_evict(r);
		break;
	default:
		if (!extra) {
			if (!cqd_arena_offer(r->cl, r->sh, r->arena_fd, 100000, &extra, &r->err))
				*arenas += 100000;
			drop_gone(r);
		} else {
			ASSERT_EQ(cqd_arena_drop(r->cl, extra), 0);
			extra = 0;
			*arenas -= 100000;
		}
	}
}

TEST(every_byte_is_counted)
{
	uint64_t rng = 11, arenas = RIG_ARENA;
	struct cqd_ns_room room;
	struct rig r;
	unsigned int i;

	pool(&r, 40);
	r.st->half_us = 1ull << 50;	/* nothing fades: the rules are exact */
	cqd_ns_limit(r.ns, RIG_ARENA + 34 * SLOT, 0, 60);
	for (i = 0; i < 6000; i++) {
		rng = rng * 6364136223846793005ull + 1442695040888963407ull;
		random_step(&r, rng, &arenas);
		check_figures(&r, arenas);
	}
	ASSERT_GT(r.st->evictions, 300);
	cqd_ns_room_get(r.ns, &room);
	ASSERT_EQ(room.bytes, r.ns->used_bytes);
	/* all that is not pinned goes, whatever came before */
	cqd_pins_drop(r.cl);
	while (cqd_evict_one(r.st, NULL, NULL))
		;
	ASSERT_EQ(r.st->pool[0].used, 0);
	ASSERT_EQ(r.ns->used_bytes, arenas);
	ASSERT_EQ(r.ns->pages, 0);
	ASSERT(list_empty(&r.st->leafy));
	rig_stop(&r);
}
