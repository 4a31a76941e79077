// SPDX-License-Identifier: MIT
/* Who has to go when memory is short, and who must not. */
#include <sys/stat.h>
#include "tests/unit/store_rig.h"

#define SLOT	12288u	/* of the rig's model; sinks take 8192 */

static struct cqd_stats stats(struct rig *r)
{
	struct cqd_stats s;

	cqd_store_stats(r->st, &s);
	return s;
}

/* Room for @codes pages in one segment and a few sinks in another. */
static void small_pool(struct rig *r, unsigned int codes)
{
	rig_defaults(r);
	r->o.segment_min = codes * SLOT;
	r->o.segment_max = codes * SLOT;
	r->o.pool_bytes = codes * SLOT + MAX(codes * SLOT / 3, 8192);
	rig_start(r);
	ASSERT_EQ(r->sh->kind[CQD_CODES].slot_bytes, SLOT);
}

static struct rig_wait leaf(struct rig *r, const struct cqp_key *parent, uint32_t token)
{
	struct rig_wait w = rig_seal(r, r->cl, r->arena_id, parent, token);

	if (w.ret)
		FAIL("token %u: %d %s", token, w.ret, w.err.text);
	return w;
}

static void unpin(struct rig *r, const struct rig_wait *w)
{
	ASSERT_EQ(cqd_release(r->cl, &w->res.page, 1, &r->err), 0);
}

/* page 0 with leaves; the one used least recently goes, page 0 stays. */
TEST(least_recently_used_leaf_goes)
{
	struct rig_wait w[8];
	unsigned int i;
	struct rig r;

	small_pool(&r, 8);
	w[0] = leaf(&r, &r.root, 0);
	for (i = 1; i < 8; i++)
		w[i] = leaf(&r, &w[0].res.key, i);
	for (i = 0; i < 8; i++)
		unpin(&r, &w[i]);
	/* 1 is used again: then 2 is the oldest leaf. */
	ASSERT_EQ(rig_resident(&r, &w[1].res.key, 1), 1);
	unpin(&r, (struct rig_wait[]){ leaf(&r, &w[0].res.key, 20) });
	ASSERT_EQ(rig_resident(&r, &w[2].res.key, 1), 0);
	ASSERT_EQ(rig_resident(&r, &w[0].res.key, 1), 1);
	ASSERT_EQ(rig_resident(&r, &w[1].res.key, 1), 1);
	unpin(&r, (struct rig_wait[]){ leaf(&r, &w[0].res.key, 21) });
	ASSERT_EQ(rig_resident(&r, &w[3].res.key, 1), 0);
	ASSERT_EQ(stats(&r).evictions, 2);
	rig_stop(&r);
}

/* A page whose last child went is as old as that child, not new. */
TEST(an_old_chain_goes_before_a_new_leaf)
{
	struct rig_wait old0, old1, fresh;
	struct rig r;

	small_pool(&r, 8);
	old0 = leaf(&r, &r.root, 1);
	old1 = leaf(&r, &old0.res.key, 2);
	unpin(&r, &old0);
	unpin(&r, &old1);
	fresh = leaf(&r, &r.root, 3);
	unpin(&r, &fresh);
	ASSERT(cqd_evict_one(r.st, NULL, NULL));
	ASSERT_EQ(rig_resident(&r, &old1.res.key, 1), 0);
	ASSERT(cqd_evict_one(r.st, NULL, NULL));
	ASSERT_EQ(r.st->ix.t_pages.used, 1);
	ASSERT_EQ(rig_resident(&r, &fresh.res.key, 1), 1);
	ASSERT(cqd_evict_one(r.st, NULL, NULL));
	ASSERT(!cqd_evict_one(r.st, NULL, NULL));
	rig_stop(&r);
}

TEST(a_pin_protects_ancestors)
{
	struct cqp_key keys[4];
	struct cqp_page pages[4];
	struct rig_wait w;
	unsigned int i;
	struct rig r;

	small_pool(&r, 4);
	rig_chain(&r, 1, 4, keys, pages);
	ASSERT_EQ(cqd_release(r.cl, pages, 3, &r.err), 0);
	ASSERT_EQ(stats(&r).pages_pinned, 1);
	w = rig_seal(&r, r.cl, r.arena_id, &keys[3], 9);
	ASSERT_EQ(w.ret, -ENOSPC);
	ASSERT_EQ(rig_resident(&r, keys, 4), 4);
	ASSERT_EQ(stats(&r).pages_filling, 0);
	/* Without the pin the chain goes from its end, one by one. */
	ASSERT_EQ(cqd_release(r.cl, &pages[3], 1, &r.err), 0);
	for (i = 0; i < 3; i++) {
		w = leaf(&r, &keys[0], 30 + i);
		ASSERT_EQ(rig_resident(&r, keys, 4), (int)(3 - i));
	}
	w = rig_seal(&r, r.cl, r.arena_id, &keys[0], 40);
	ASSERT_EQ(w.ret, -ENOSPC);
	rig_stop(&r);
}

/* The parent of a seal under way is unpinned and a leaf: it must stay. */
TEST(parent_of_a_seal_is_held)
{
	struct rig_wait a, w;
	struct rig r;

	small_pool(&r, 2);
	a = leaf(&r, &r.root, 1);
	unpin(&r, &a);
	w = leaf(&r, &a.res.key, 2);
	unpin(&r, &w);
	w = leaf(&r, &a.res.key, 3);
	ASSERT_EQ(rig_resident(&r, &a.res.key, 1), 1);
	ASSERT_EQ(stats(&r).evictions, 1);
	rig_stop(&r);
}

TEST(words_tell_the_reader)
{
	struct cqd_segment_info info;
	struct rig_wait a, b;
	const uint64_t *word;
	struct rig r;

	small_pool(&r, 1);
	a = leaf(&r, &r.root, 1);
	ASSERT_EQ(cqd_segment_get(r.cl, a.res.page.segment, &info), 0);
	word = mmap(NULL, r.info.state_words * 8, PROT_READ, MAP_SHARED,
		    r.info.state_fd, 0);
	ASSERT(word != MAP_FAILED);
	word += info.word_base + a.res.page.slot;
	ASSERT_EQ(*word, a.res.page.word);
	unpin(&r, &a);
	b = leaf(&r, &r.root, 2);
	ASSERT_EQ(b.res.page.slot, a.res.page.slot);
	ASSERT_EQ(*word, b.res.page.word);
	ASSERT_EQ(CQP_WORD_GEN(b.res.page.word), CQP_WORD_GEN(a.res.page.word) + 1);
	/* a release that comes too late names nothing */
	ASSERT_EQ(cqd_release(r.cl, &a.res.page, 1, &r.err), -EINVAL);
	rig_stop(&r);
}

TEST(watermarks_and_taking_back)
{
	struct cqp_page pages[1], sink;
	struct rig_wait w[12];
	struct cqd_stats s;
	unsigned int i, left = 0;
	bool filling;
	struct rig r;

	rig_defaults(&r);
	r.o.segment_min = 16 * SLOT;
	r.o.segment_max = 16 * SLOT;
	r.o.pool_bytes = 20 * SLOT;
	r.o.low = 30;
	r.o.high = 50;
	rig_start(&r);
	w[0] = leaf(&r, &r.root, 0);
	for (i = 1; i < 9; i++) {
		w[i] = leaf(&r, &w[0].res.key, i);
		unpin(&r, &w[i]);
	}
	ASSERT_EQ(stats(&r).evictions, 0);
	/* Crosses half of the pool: the oldest are marked, not gone yet. */
	w[9] = leaf(&r, &w[0].res.key, 9);
	s = stats(&r);
	ASSERT_EQ(s.evictions, 0);
	ASSERT_LT(s.pages_sealed, 10);
	ASSERT_EQ(cqd_lookup(r.cl, r.sh, &w[1].res.key, 1, true, pages, &sink, &filling,
			     &r.err), 1);
	ASSERT_EQ(CQP_WORD_STATE(pages[0].word), CQP_SEALED);
	ASSERT_EQ(stats(&r).pages_sealed, s.pages_sealed + 1);
	for (i = 0; i < 100; i++)
		uv_run(&r.loop, UV_RUN_NOWAIT);
	s = stats(&r);
	ASSERT_LE(s.pool_used, r.o.pool_bytes / 100 * 30);
	for (i = 1; i < 10; i++)
		left += (unsigned int)rig_resident(&r, &w[i].res.key, 1);
	ASSERT_EQ(left, s.pages_sealed - 1);
	ASSERT_EQ(rig_resident(&r, &w[1].res.key, 1), 1);
	ASSERT_EQ(rig_resident(&r, &w[2].res.key, 1), 0);
	rig_stop(&r);
}

/* A bad checksum higher up may hit pages that are victims already. */
TEST(victims_may_be_dropped)
{
	struct rig_wait w[10];
	unsigned int i;
	struct rig r;

	rig_defaults(&r);
	r.o.segment_min = 16 * SLOT;
	r.o.segment_max = 16 * SLOT;
	r.o.pool_bytes = 20 * SLOT;
	r.o.low = 30;
	r.o.high = 50;
	rig_start(&r);
	w[0] = leaf(&r, &r.root, 0);
	for (i = 1; i < 10; i++) {
		w[i] = leaf(&r, &w[0].res.key, i);
		if (i < 9)
			unpin(&r, &w[i]);
	}
	ASSERT(r.st->n_state[CQP_EVICTING] > 0);
	cqd_page_drop(r.st, cqd_page_find(r.st, r.sh, &w[0].res.key));
	ASSERT_EQ(r.st->n_state[CQP_EVICTING], 0);
	/* page 0 and the last leaf are pinned: kept until they are released */
	ASSERT_EQ(r.st->n_state[CQP_QUARANTINED], 2);
	for (i = 0; i < 20; i++)
		uv_run(&r.loop, UV_RUN_NOWAIT);
	unpin(&r, &w[0]);
	unpin(&r, &w[9]);
	ASSERT_EQ(stats(&r).pool_used, 0);
	ASSERT_EQ(r.st->ix.t_pages.used, 0);
	rig_stop(&r);
}

/* Another tenant's old, unread segment goes when a shard has nothing at all. */
TEST(memory_moves_between_tenants)
{
	struct cqd_ns_opts none = { .quota_bytes = 1 << 30 };
	struct cqp_key keys[4], first;
	struct cqp_page pages[4];
	struct cqd_client *cl;
	struct rig_wait w;
	uint32_t arena;
	struct rig r;

	small_pool(&r, 4);
	rig_chain(&r, 1, 4, keys, pages);
	first = r.root;
	ASSERT_EQ(cqd_ns_get(r.st, "other", &none, &r.ns, &r.err), 0);
	cl = rig_client(&r, 101, &arena);
	/* same model, no salt: the same keys, but never the same pages */
	ASSERT_MEMEQ(&first, &r.root, sizeof(first));
	w = rig_seal(&r, cl, arena, &r.root, 1);
	ASSERT_EQ(w.ret, -ENOSPC);
	ASSERT_EQ(cqd_release(r.cl, pages, 4, &r.err), 0);
	r.st->pool[0].last_look = 0;
	w = rig_seal(&r, cl, arena, &r.root, 1);
	ASSERT_EQ(w.ret, 0);
	ASSERT(!w.existing);
	ASSERT_EQ(stats(&r).pages_sealed, 1);
	ASSERT_LE(stats(&r).pool_reserved, r.o.pool_bytes);
	rig_stop(&r);
}

/* A shard that has an older leaf of its own gives that up instead. */
TEST(what_is_younger_elsewhere_stays)
{
	struct cqd_ns_opts other = { .quota_bytes = 1 << 30, .salt = "pepper" };
	struct cqp_key first;
	struct rig_wait mine, w;
	struct cqd_client *cl;
	uint32_t arena;
	struct rig r;

	rig_defaults(&r);
	/* codes and sinks of two tenants fill the pool, one page each */
	r.o.segment_min = SLOT;
	r.o.segment_max = SLOT;
	r.o.pool_bytes = 2 * (SLOT + 8192);
	rig_start(&r);
	mine = leaf(&r, &r.root, 1);
	unpin(&r, &mine);
	first = r.root;
	ASSERT_EQ(cqd_ns_get(r.st, "other", &other, &r.ns, &r.err), 0);
	cl = rig_client(&r, 101, &arena);
	ASSERT(memcmp(&first, &r.root, sizeof(first)));
	w = rig_seal(&r, cl, arena, &r.root, 2);
	ASSERT_EQ(w.ret, 0);
	ASSERT_EQ(cqd_release(cl, &w.res.page, 1, &r.err), 0);
	/* its page is newer than ours: ours makes room for ours */
	r.root = first;
	r.sh = cqd_shard_find(r.cl, 1);
	mine = leaf(&r, &r.root, 3);
	ASSERT_EQ(stats(&r).evictions, 1);
	ASSERT(cqd_page_find(r.st, cqd_shard_find(cl, 1), &w.res.key) != CQP_NONE);
	/* now it is the other way round */
	usleep(150000);
	unpin(&r, &mine);
	mine = leaf(&r, &r.root, 4);
	ASSERT_EQ(cqd_page_find(r.st, cqd_shard_find(cl, 1), &w.res.key), CQP_NONE);
	ASSERT_EQ(stats(&r).pages_sealed, 2);
	rig_stop(&r);
}

/* A page read until now keeps its ancestors, in whatever segments they are. */
TEST(what_descends_and_is_younger_stays)
{
	struct cqd_ns_opts other = { .quota_bytes = 1 << 30, .salt = "pepper" };
	struct rig_wait mine, a, b;
	struct cqd_client *cl;
	struct cqp_key first;
	uint32_t arena;
	struct rig r;

	rig_defaults(&r);
	/* each page has a segment of its own */
	r.o.segment_min = SLOT;
	r.o.segment_max = SLOT;
	r.o.pool_bytes = 3 * SLOT + 2 * 8192;
	rig_start(&r);
	first = r.root;
	ASSERT_EQ(cqd_ns_get(r.st, "other", &other, &r.ns, &r.err), 0);
	cl = rig_client(&r, 101, &arena);
	a = rig_seal(&r, cl, arena, &r.root, 1);
	b = rig_seal(&r, cl, arena, &a.res.key, 2);
	ASSERT_EQ(b.ret, 0);
	ASSERT_EQ(cqd_release(cl, &a.res.page, 1, &r.err), 0);
	r.root = first;
	r.sh = cqd_shard_find(r.cl, 1);
	mine = leaf(&r, &r.root, 3);
	unpin(&r, &mine);
	ASSERT_EQ(cqd_release(cl, &b.res.page, 1, &r.err), 0);
	leaf(&r, &r.root, 4);
	ASSERT_EQ(cqd_page_find(r.st, r.sh, &mine.res.key), CQP_NONE);
	ASSERT(cqd_page_find(r.st, cqd_shard_find(cl, 1), &b.res.key) != CQP_NONE);
	ASSERT_EQ(stats(&r).evictions, 1);
	rig_stop(&r);
}

TEST(empty_segments_are_given_back)
{
	struct cqp_key keys[3];
	struct cqp_page pages[3];
	struct cqd_segment_info info;
	struct stat sb;
	uint64_t born;
	uint32_t p;
	struct rig r;
	int kept;

	rig_defaults(&r);
	rig_start(&r);
	r.st->empty_ms = 0;
	rig_chain(&r, 1, 3, keys, pages);
	p = cqd_page_find(r.st, r.sh, &keys[0]);
	born = CQP_WORD_GEN(r.st->ix.pages[p].word);
	cqd_segment_tick(r.st);
	ASSERT_GT(stats(&r).pool_reserved, 0);
	ASSERT_EQ(cqd_segment_get(r.cl, pages[0].segment, &info), 0);
	kept = dup(info.fd);
	ASSERT_EQ(cqd_release(r.cl, pages, 3, &r.err), 0);
	while (cqd_evict_one(r.st, NULL, NULL))
		;
	ASSERT_EQ(stats(&r).pool_used, 0);
	cqd_segment_tick(r.st);
	while (stats(&r).pool_reserved)
		uv_run(&r.loop, UV_RUN_ONCE);
	/* also while a worker keeps the descriptor */
	ASSERT_SYS(fstat(kept, &sb));
	ASSERT_EQ(sb.st_blocks, 0);
	close(kept);
	/* and the words go on counting where they were */
	rig_chain(&r, 1, 1, keys, pages);
	ASSERT_EQ(CQP_WORD_GEN(pages[0].word), 2);
	ASSERT_EQ(cqd_page_find(r.st, r.sh, &keys[0]), p);
	ASSERT_EQ(CQP_WORD_GEN(r.st->ix.pages[p].word), born + 1);
	rig_stop(&r);
}

TEST(page_records_run_out)
{
	struct cqp_key keys[4];
	struct cqp_page pages[4];
	struct rig r;

	rig_defaults(&r);
	r.o.max_pages = 4;
	rig_start(&r);
	rig_chain(&r, 1, 4, keys, pages);
	ASSERT_EQ(rig_seal(&r, r.cl, r.arena_id, &keys[0], 50).ret, -ENOSPC);
	ASSERT_EQ(cqd_release(r.cl, &pages[3], 1, &r.err), 0);
	ASSERT_EQ(rig_seal(&r, r.cl, r.arena_id, &keys[0], 50).ret, 0);
	ASSERT_EQ(rig_resident(&r, keys, 4), 3);
	rig_stop(&r);
}

/* Random use against a plain list of what must be there. */
TEST(nothing_pinned_is_ever_lost)
{
	struct { struct cqp_key key; struct cqp_page page; bool held; } p[40] = { 0 };
	struct rig_wait w;
	uint64_t rng = 3;
	unsigned int i, k, n = 0;
	struct rig r;

	small_pool(&r, 16);
	for (i = 0; i < 2000; i++) {
		rng = rng * 6364136223846793005ull + 1442695040888963407ull;
		k = (unsigned int)(rng >> 33) % 40;
		if (p[k].held) {
			ASSERT_EQ(rig_resident(&r, &p[k].key, 1), 1);
			ASSERT_EQ(cqd_release(r.cl, &p[k].page, 1, &r.err), 0);
			p[k].held = false;
			n--;
		} else if (n < 8) {
			const struct cqp_key *parent = k && p[k - 1].held ? &p[k - 1].key :
						       &r.root;

			w = rig_seal(&r, r.cl, r.arena_id, parent, k);
			if (w.ret)
				FAIL("round %u: %d %s", i, w.ret, w.err.text);
			p[k].key = w.res.key;
			p[k].page = w.res.page;
			p[k].held = true;
			n++;
		}
		ASSERT_EQ(stats(&r).pages_pinned, n);
	}
	ASSERT_GT(stats(&r).evictions, 100);
	rig_stop(&r);
}
