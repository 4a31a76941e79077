// SPDX-License-Identifier: MIT
/* Seals: what is refused, what waits for what, and that failures leave nothing. */
#include "tests/unit/store_rig.h"

static struct cqd_stats stats(struct rig *r)
{
	struct cqd_stats s;

	cqd_store_stats(r->st, &s);
	return s;
}

TEST(duplicate_is_answered_with_the_first)
{
	struct rig_wait a, b, c;
	struct cqd_client *other;
	uint32_t arena;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	other = rig_client(&r, 101, &arena);
	/* Both under way at once, then one more after the end. */
	ASSERT_EQ(rig_seal_start(&r, r.cl, r.arena_id, &r.root, 5, &a), 0);
	ASSERT_EQ(rig_seal_start(&r, other, arena, &r.root, 5, &b), 0);
	rig_run(&r, &a.done);
	rig_run(&r, &b.done);
	c = rig_seal(&r, other, arena, &r.root, 5);
	ASSERT_EQ(a.ret | b.ret | c.ret, 0);
	ASSERT(!a.existing && b.existing && c.existing);
	ASSERT_MEMEQ(&a.res.page, &b.res.page, sizeof(a.res.page));
	ASSERT_MEMEQ(&a.res.sink, &c.res.sink, sizeof(a.res.sink));
	ASSERT_EQ(stats(&r).pages_sealed, 1);
	ASSERT_EQ(stats(&r).seals, 1);
	ASSERT_EQ(cqd_release(other, &b.res.page, 1, &r.err), 0);
	ASSERT_EQ(cqd_release(other, &b.res.page, 1, &r.err), 0);
	ASSERT_EQ(cqd_release(other, &b.res.page, 1, &r.err), -EINVAL);
	rig_stop(&r);
}

/* Key of the page after @parent whose 64 tokens are all @token. */
static struct cqp_key key_after(const struct cqp_key *parent, uint32_t token)
{
	uint32_t tokens[CQ_PAGE_TOKENS], i;
	struct cqp_key key;

	for (i = 0; i < CQ_PAGE_TOKENS; i++)
		tokens[i] = token;
	ASSERT_EQ(cqp_key_page(&key, parent, tokens, NULL, 0), 0);
	return key;
}

/* A chain may be handed over without waiting for each answer. */
TEST(a_chain_at_once)
{
	struct cqp_key key, keys[6];
	struct rig_wait w[6];
	unsigned int i;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	key = r.root;
	for (i = 0; i < 6; i++) {
		ASSERT_EQ(rig_seal_start(&r, r.cl, r.arena_id, &key, i, &w[i]), 0);
		key = key_after(&key, i);
		keys[i] = key;
	}
	for (i = 0; i < 6; i++) {
		rig_run(&r, &w[i].done);
		ASSERT_EQ(w[i].ret, 0);
		ASSERT_MEMEQ(&w[i].res.key, &keys[i], sizeof(key));
	}
	ASSERT_EQ(rig_resident(&r, keys, 6), 6);
	rig_stop(&r);
}

/*
 * Page 0 waits for a segment of sinks, which the manager does not confirm;
 * its child has been copied long ago and must not be seen before it.
 */
TEST(no_child_before_its_parent)
{
	struct rig_wait w, parent, child;
	struct cqp_key key;
	unsigned int i;
	struct rig r;

	mgr_start();
	rig_defaults(&r);
	r.o.push_fds = true;
	r.o.segment_min = 49152;	/* 4 slots of codes, 6 of sinks */
	r.o.segment_max = 49152;
	rig_start(&r);
	for (i = 0; i < 6; i++)
		ASSERT_EQ(rig_seal(&r, r.cl, r.arena_id, &r.root, 10 + i).ret, 0);
	pthread_mutex_lock(&mgr.lock);
	ASSERT_EQ(rig_seal_start(&r, r.cl, r.arena_id, &r.root, 1, &parent), 0);
	key = key_after(&r.root, 1);
	ASSERT_EQ(rig_seal_start(&r, r.cl, r.arena_id, &key, 2, &child), 0);
	for (i = 0; i < 50; i++) {
		uv_run(&r.loop, UV_RUN_NOWAIT);
		usleep(1000);
	}
	ASSERT(!parent.done && !child.done);
	ASSERT_EQ(stats(&r).pages_filling, 2);
	pthread_mutex_unlock(&mgr.lock);
	rig_run(&r, &child.done);
	ASSERT(parent.done);
	ASSERT_EQ(parent.ret | child.ret, 0);
	w = rig_seal(&r, r.cl, r.arena_id, &key, 2);
	ASSERT(w.existing);
	rig_stop(&r);
	mgr_stop();
}

/* The publisher of page 0 dies: what others hung on it has no parent. */
TEST(a_lost_parent_takes_its_children)
{
	struct cqp_key key0, key1;
	struct cqd_client *other;
	struct rig_wait w[4];
	uint32_t arena, i;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	other = rig_client(&r, 101, &arena);
	rig_seal(&r, other, arena, &r.root, 50);	/* segments are there */
	key0 = key_after(&r.root, 1);
	key1 = key_after(&key0, 2);
	ASSERT_EQ(rig_seal_start(&r, r.cl, r.arena_id, &r.root, 1, &w[0]), 0);
	ASSERT_EQ(rig_seal_start(&r, other, arena, &key0, 2, &w[1]), 0);
	ASSERT_EQ(rig_seal_start(&r, other, arena, &key1, 3, &w[2]), 0);
	ASSERT_EQ(rig_seal_start(&r, r.cl, r.arena_id, &key0, 2, &w[3]), 0);
	cqd_client_end(r.cl);
	for (i = 0; i < 4; i++)
		rig_run(&r, &w[i].done);
	ASSERT_EQ(w[0].ret, -ECANCELED);
	ASSERT_EQ(w[1].ret, -ENOENT);
	ASSERT_EQ(w[2].ret, -ENOENT);
	ASSERT_EQ(w[3].ret, -ECANCELED);
	ASSERT_EQ(stats(&r).pages_filling, 0);
	ASSERT_EQ(stats(&r).pages_sealed, 1);
	ASSERT_EQ(stats(&r).pool_used, 12288 + 8192);
	/* and it can all be done again */
	ASSERT_EQ(rig_seal(&r, other, arena, &r.root, 1).ret, 0);
	ASSERT_EQ(rig_seal(&r, other, arena, &key0, 2).ret, 0);
	rig_stop(&r);
}

TEST(filling_is_told_to_others)
{
	struct cqp_page pages[1], sink;
	struct cqp_key key;
	uint32_t tokens[CQ_PAGE_TOKENS], i, arena;
	struct cqd_client *other;
	struct rig_wait a;
	bool filling;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	other = rig_client(&r, 101, &arena);
	for (i = 0; i < CQ_PAGE_TOKENS; i++)
		tokens[i] = 9;
	ASSERT_EQ(cqp_key_page(&key, &r.root, tokens, NULL, 0), 0);
	ASSERT_EQ(rig_seal_start(&r, r.cl, r.arena_id, &r.root, 9, &a), 0);
	ASSERT_EQ(cqd_lookup(other, r.sh, &key, 1, true, pages, &sink, &filling, &r.err), 0);
	ASSERT(filling);
	ASSERT_EQ(cqd_lookup(r.cl, r.sh, &key, 1, true, pages, &sink, &filling, &r.err), 0);
	ASSERT(!filling);
	rig_run(&r, &a.done);
	ASSERT_EQ(cqd_lookup(other, r.sh, &key, 1, true, pages, &sink, &filling, &r.err), 1);
	rig_stop(&r);
}

TEST(refused)
{
	struct cqd_seal_req q = { .sink_offset = UINT64_MAX };
	struct rig_wait w = { 0 };
	uint64_t len;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	len = r.sh->kind[CQD_CODES].payload;
	q.parent = r.root;
	q.arena = r.arena_id;
	/* page 0 without its sinks */
	ASSERT_EQ(cqd_seal(r.cl, r.sh, &q, rig_on_seal, &w, &r.err), -EINVAL);
	q.sink_offset = RIG_ARENA;
	ASSERT_EQ(cqd_seal(r.cl, r.sh, &q, rig_on_seal, &w, &r.err), -EINVAL);
	q.sink_offset = 0;
	q.offset = RIG_ARENA - len + 1;
	ASSERT_EQ(cqd_seal(r.cl, r.sh, &q, rig_on_seal, &w, &r.err), -EINVAL);
	q.offset = UINT64_MAX - 10;
	ASSERT_EQ(cqd_seal(r.cl, r.sh, &q, rig_on_seal, &w, &r.err), -EINVAL);
	q.offset = 0;
	q.arena++;
	ASSERT_EQ(cqd_seal(r.cl, r.sh, &q, rig_on_seal, &w, &r.err), -EINVAL);
	q.arena--;
	q.extra = r.arena;
	q.extra_len = CQP_MAX_EXTRA + 1;
	ASSERT_EQ(cqd_seal(r.cl, r.sh, &q, rig_on_seal, &w, &r.err), -EINVAL);
	q.extra_len = 0;
	q.parent.b[0] ^= 1;	/* not the root: sinks must not be there */
	ASSERT_EQ(cqd_seal(r.cl, r.sh, &q, rig_on_seal, &w, &r.err), -EINVAL);
	ASSERT(!w.done);
	q.sink_offset = UINT64_MAX;
	ASSERT_EQ(cqd_seal(r.cl, r.sh, &q, rig_on_seal, &w, &r.err), 0);
	ASSERT(w.done);
	ASSERT_EQ(w.ret, -ENOENT);
	ASSERT_EQ(stats(&r).pages_filling, 0);
	ASSERT_EQ(stats(&r).pool_used, 0);
	rig_stop(&r);
}

TEST(client_ends_in_mid_seal)
{
	struct rig_wait w[4];
	struct cqd_client *other;
	struct cqd_stats s;
	uint32_t arena, i;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	other = rig_client(&r, 101, &arena);
	/* One copies after the first segment is there, the others wait. */
	rig_seal(&r, other, arena, &r.root, 1);
	s = stats(&r);
	ASSERT_EQ(rig_seal_start(&r, r.cl, r.arena_id, &r.root, 5, &w[0]), 0);
	ASSERT_EQ(rig_seal_start(&r, other, arena, &r.root, 5, &w[1]), 0);
	ASSERT_EQ(rig_seal_start(&r, r.cl, r.arena_id, &r.root, 6, &w[2]), 0);
	ASSERT_EQ(rig_seal_start(&r, r.cl, r.arena_id, &r.root, 6, &w[3]), 0);
	cqd_client_end(r.cl);
	for (i = 0; i < 4; i++)
		rig_run(&r, &w[i].done);
	ASSERT_EQ(w[0].ret, -ECANCELED);
	ASSERT_EQ(w[2].ret, -ECANCELED);
	ASSERT_EQ(w[3].ret, -ECANCELED);
	/* The other one wanted the page too and filled it itself. */
	ASSERT_EQ(w[1].ret, 0);
	ASSERT(!w[1].existing);
	ASSERT_EQ(stats(&r).pages_sealed, s.pages_sealed + 1);
	ASSERT_EQ(stats(&r).pages_filling, 0);
	ASSERT_EQ(stats(&r).pages_pinned, s.pages_pinned + 1);
	ASSERT_EQ(stats(&r).clients, 1);
	ASSERT_EQ(stats(&r).arena_bytes, RIG_ARENA);
	rig_stop(&r);
}

TEST(orphan_loses_seals_and_arenas_but_no_pins)
{
	struct rig_wait done, w;
	struct cqd_client *same;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	done = rig_seal(&r, r.cl, r.arena_id, &r.root, 1);
	ASSERT_EQ(rig_seal_start(&r, r.cl, r.arena_id, &r.root, 2, &w), 0);
	ASSERT(!cqd_client_resume(r.st, r.ns, cqd_client_session(r.cl), 100, 7));
	cqd_client_set_orphan(r.cl, true);
	rig_run(&r, &w.done);
	ASSERT_EQ(w.ret, -ECANCELED);
	ASSERT_EQ(stats(&r).pages_pinned, 1);
	ASSERT_EQ(stats(&r).arena_bytes, 0);
	ASSERT_EQ(stats(&r).orphans, 1);
	ASSERT(!cqd_client_resume(r.st, r.ns, cqd_client_session(r.cl), 100, 8));
	ASSERT(!cqd_client_resume(r.st, r.ns, cqd_client_session(r.cl), 101, 7));
	ASSERT(!cqd_client_resume(r.st, r.ns, cqd_client_session(r.cl) + 1, 100, 7));
	same = cqd_client_resume(r.st, r.ns, cqd_client_session(r.cl), 100, 7);
	ASSERT(same == r.cl);
	ASSERT_EQ(cqd_release(same, &done.res.page, 1, &r.err), 0);
	ASSERT_EQ(stats(&r).pages_pinned, 0);
	rig_stop(&r);
}

TEST(quotas)
{
	struct cqd_ns_opts q = { .quota_pages = 2, .quota_pins = 3 };
	struct cqp_key keys[2];
	struct cqp_page pages[2];
	struct rig_wait w;
	uint32_t id;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	ASSERT_EQ(cqd_ns_get(r.st, "tenant", &q, &r.ns, &r.err), 0);
	rig_chain(&r, 1, 2, keys, pages);
	w = rig_seal(&r, r.cl, r.arena_id, &keys[1], 3);
	ASSERT_EQ(w.ret, -EDQUOT);
	/* Unpinned, the leaf makes room: but it is the parent. */
	ASSERT_EQ(cqd_release(r.cl, &pages[1], 1, &r.err), 0);
	w = rig_seal(&r, r.cl, r.arena_id, &keys[1], 3);
	ASSERT_EQ(w.ret, -EDQUOT);
	w = rig_seal(&r, r.cl, r.arena_id, &keys[0], 3);
	ASSERT_EQ(w.ret, 0);
	ASSERT_EQ(rig_resident(&r, keys, 2), 1);
	/* pins: two held, one more is allowed */
	ASSERT_EQ(rig_seal(&r, r.cl, r.arena_id, &r.root, 1).ret, 0);
	ASSERT_EQ(rig_seal(&r, r.cl, r.arena_id, &r.root, 1).ret, -EDQUOT);
	/* bytes: the arena alone has a MiB */
	q = (struct cqd_ns_opts){ .quota_bytes = RIG_ARENA + 20480 };
	ASSERT_EQ(cqd_ns_get(r.st, "tenant", &q, &r.ns, &r.err), 0);
	ASSERT_EQ(rig_seal(&r, r.cl, r.arena_id, &keys[0], 77).ret, -EDQUOT);
	ASSERT_EQ(cqd_arena_offer(r.cl, r.sh, r.arena_fd, 1, &id, &r.err), -EDQUOT);
	rig_stop(&r);
}

TEST(arenas_and_the_quota)
{
	struct cqd_ns_opts q = { .quota_bytes = 2 * RIG_ARENA };
	struct cqp_page pages[2];
	struct cqp_key keys[2];
	uint32_t id;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	rig_chain(&r, 1, 2, keys, pages);
	ASSERT_EQ(cqd_release(r.cl, pages, 2, &r.err), 0);
	ASSERT_EQ(cqd_ns_get(r.st, "tenant", &q, &r.ns, &r.err), 0);
	/* fits if every page goes */
	ASSERT_EQ(cqd_arena_offer(r.cl, r.sh, r.arena_fd, RIG_ARENA, &id, &r.err), 0);
	ASSERT_EQ(stats(&r).pages_sealed, 0);
	cqd_client_set_orphan(r.cl, true);
	cqd_client_set_orphan(r.cl, false);
	ASSERT_EQ(cqd_arena_offer(r.cl, r.sh, r.arena_fd, RIG_ARENA, &r.arena_id,
				  &r.err), 0);
	rig_chain(&r, 1, 2, keys, pages);
	ASSERT_EQ(cqd_release(r.cl, pages, 2, &r.err), 0);
	/* never fits, so nobody has to go for it */
	q.quota_bytes = 2 * RIG_ARENA - 1;
	ASSERT_EQ(cqd_ns_get(r.st, "tenant", &q, &r.ns, &r.err), 0);
	ASSERT_EQ(cqd_arena_offer(r.cl, r.sh, r.arena_fd, RIG_ARENA, &id, &r.err), -EDQUOT);
	ASSERT_EQ(stats(&r).pages_sealed, 2);
	rig_stop(&r);
}

TEST(arenas_are_checked)
{
	int plain = memfd_create("plain", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	uint32_t id;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	ASSERT_EQ(ftruncate(plain, 4096), 0);
	ASSERT_EQ(cqd_arena_offer(r.cl, r.sh, plain, 4096, &id, &r.err), -EINVAL);
	ASSERT_EQ(fcntl(plain, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	ASSERT_EQ(cqd_arena_offer(r.cl, r.sh, plain, 4097, &id, &r.err), -EINVAL);
	ASSERT_EQ(cqd_arena_offer(r.cl, r.sh, plain, 0, &id, &r.err), -EINVAL);
	ASSERT_EQ(cqd_arena_offer(r.cl, r.sh, 0, 4096, &id, &r.err), -EINVAL);
	ASSERT_EQ(cqd_arena_offer(r.cl, r.sh, plain, 4096, &id, &r.err), 0);
	close(plain);
	rig_stop(&r);
}

/* To free a dead worker's gigabytes takes long: not on the loop. */
TEST(arenas_are_freed_by_a_thread)
{
	struct cqd_client *cl;
	uint32_t id, jobs;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	cl = rig_client(&r, 7, &id);
	jobs = r.st->jobs;
	cqd_client_end(cl);
	ASSERT_EQ(r.st->jobs, jobs + 1);
	ASSERT_EQ(stats(&r).arena_bytes, RIG_ARENA);	/* the rig's own is left */
	while (r.st->jobs > jobs)
		uv_run(&r.loop, UV_RUN_ONCE);
	rig_stop(&r);
}

TEST(release_of_what_is_not_ours)
{
	struct cqp_page p, bad;
	struct cqp_key key;
	struct cqd_client *other;
	struct cqd_segment_info info;
	struct cqd_ns_opts none = { 0 };
	struct cqd_ns *ns;
	uint32_t arena;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	rig_chain(&r, 1, 1, &key, &p);
	other = rig_client(&r, 101, &arena);
	ASSERT_EQ(cqd_release(other, &p, 1, &r.err), -EINVAL);
	bad = p;
	bad.slot = 1u << 30;
	ASSERT_EQ(cqd_release(r.cl, &bad, 1, &r.err), -EINVAL);
	bad = p;
	bad.segment++;
	ASSERT_EQ(cqd_release(r.cl, &bad, 1, &r.err), -EINVAL);
	bad = p;
	bad.word += 256;
	ASSERT_EQ(cqd_release(r.cl, &bad, 1, &r.err), -EINVAL);
	/* another tenant sees neither the segment nor the page */
	ASSERT_EQ(cqd_ns_get(r.st, "other", &none, &ns, &r.err), 0);
	r.ns = ns;
	other = rig_client(&r, 102, &arena);
	ASSERT_EQ(cqd_segment_get(other, p.segment, &info), -ENOENT);
	ASSERT_EQ(cqd_release(other, &p, 1, &r.err), -EINVAL);
	ASSERT_EQ(cqd_release(r.cl, &p, 1, &r.err), 0);
	rig_stop(&r);
}

TEST(close_ends_what_is_under_way)
{
	struct rig_wait w[3];
	unsigned int i;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	for (i = 0; i < 3; i++)
		ASSERT_EQ(rig_seal_start(&r, r.cl, r.arena_id, &r.root, i, &w[i]), 0);
	rig_close(&r);
	for (i = 0; i < 3; i++) {
		ASSERT(w[i].done);
		ASSERT_EQ(w[i].ret, -ECANCELED);
	}
	rig_stop(&r);
}

TEST(models)
{
	static const struct cqp_shard all, part = { .layer_begin = 1, .layer_end = 2,
						    .head_begin = 0, .head_end = 1 },
				      bad = { .layer_begin = 1, .layer_end = 9 };
	struct image im = rig_model(), other;
	struct cqd_shard_info info;
	struct cqd_shard *sh;
	struct rig_wait w;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	w = rig_load(&r, "m", im.buf, im.size);
	ASSERT_EQ(w.ret, 0);
	ASSERT(w.existing);
	other = image_model(small_geom(64), "8c8b", "4c8b", CQK_CENTROIDS_F16);
	ASSERT_EQ(rig_load(&r, "m", other.buf, other.size).ret, -EEXIST);
	ASSERT_EQ(rig_load(&r, "n", other.buf, other.size).ret, 0);
	ASSERT_NE(rig_load(&r, "o", other.buf, 100).ret, 0);
	ASSERT_EQ(cqd_shard_get(r.cl, "o", &all, &sh, &info, &r.err), -ENOENT);
	ASSERT_EQ(cqd_shard_get(r.cl, "m", &bad, &sh, &info, &r.err), -EINVAL);
	ASSERT_EQ(cqd_shard_get(r.cl, "m", &part, &sh, &info, &r.err), 0);
	ASSERT_EQ(sh->kind[CQD_CODES].payload, r.sh->kind[CQD_CODES].payload / 4);
	ASSERT(memcmp(&info.root, &r.root, sizeof(r.root)));
	ASSERT(cqd_shard_find(r.cl, info.id) == sh);
	ASSERT(!cqd_shard_find(r.cl, info.id + 1));
	ASSERT(!cqd_shard_find(r.cl, 0));
	ASSERT_EQ(rig_seal(&r, r.cl, r.arena_id, &r.root, 1).ret, 0);
	ASSERT_EQ(cqd_model_unload(r.st, "m", &r.err), -EBUSY);
	ASSERT_EQ(cqd_model_unload(r.st, "x", &r.err), -ENOENT);
	ASSERT_EQ(cqd_model_unload(r.st, "n", &r.err), 0);
	cqd_client_end(r.cl);
	ASSERT_EQ(cqd_model_unload(r.st, "m", &r.err), 0);
	ASSERT_EQ(stats(&r).pages_sealed, 0);
	while (stats(&r).pool_reserved)
		uv_run(&r.loop, UV_RUN_ONCE);
	ASSERT_EQ(stats(&r).codebook_bytes, 0);
	free(im.buf);
	free(other.buf);
	rig_stop(&r);
}
