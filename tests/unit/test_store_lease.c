// SPDX-License-Identifier: MIT
/*
 * Slots that workers write themselves: leases, seals from them, what a lie gets. What lasts
 * over a restart is in test_lease_restart.c. The device is played (remote_mem.h).
 */
#include "tests/unit/lease_rig.h"

TEST(leased_sealed_found)
{
	struct cqd_segment_info info;
	struct cqp_page got, sink;
	struct rig_wait w;
	bool filling;
	struct rig r;

	start(&r, 1 << 20);
	w = page_0(&r, 1);
	ASSERT(!w.existing);
	ASSERT_EQ(r.st->pool[1].used, CODES + SINKS);
	ASSERT_EQ(r.st->pool[0].used, 0);
	ASSERT_EQ(r.st->pool[1].reserved % REMOTE_GRAIN, 0);
	ASSERT_EQ(r.ns->used_bytes, CODES + SINKS);
	ASSERT_EQ(r.ns->leases, 0);
	ASSERT_EQ(cqd_lookup(r.cl, r.sh, &w.res.key, 1, false, &got, &sink, &filling, &r.err), 1);
	ASSERT_MEMEQ(&got, &w.res.page, sizeof(got));
	ASSERT_MEMEQ(&sink, &w.res.sink, sizeof(sink));
	ASSERT_EQ(CQP_WORD_STATE(got.word), CQP_SEALED);
	ASSERT_EQ(r.st->ix.pages[0].check_lo, 1);
	ASSERT_EQ(r.st->ix.pages[0].check_hi, ~1ull);
	ASSERT_EQ(cqd_segment_get(r.cl, got.segment, &info), 0);
	ASSERT_EQ(info.kind, CQD_MEM_CUDA_VMM);
	ASSERT(fcntl(info.fd, F_GETFD) >= 0);
	/* The host's shard of the same range is another. */
	ASSERT_EQ(cqd_store_unreadable(r.st), 1);
	stop(&r);
}

TEST(existing_leaves_the_lease)
{
	struct lease_wait c, s;
	struct rig_wait w, first;
	struct rig r;

	start(&r, 1 << 20);
	first = page_0(&r, 1);
	c = lease_of(&r, r.cl, r.sh, 2, false);
	ASSERT_EQ(c.n, 2);
	s = lease_of(&r, r.cl, r.sh, 1, true);
	ASSERT_EQ(seal_from(&r, r.cl, &r.root, 1, &c.slot[0], &s.slot[0], &w), 0);
	rig_run(&r, &w.done);
	ASSERT_EQ(w.ret, 0);
	ASSERT(w.existing);
	ASSERT_MEMEQ(&w.res.page, &first.res.page, sizeof(w.res.page));
	ASSERT_EQ(r.ns->leases, 3);
	ASSERT_EQ(r.ns->used_bytes, 3 * CODES + 2 * SINKS);
	/* ... which can be used for something else. */
	ASSERT_EQ(seal_from(&r, r.cl, &first.res.key, 2, &c.slot[0], NULL, &w), 0);
	rig_run(&r, &w.done);
	ASSERT_EQ(w.ret, 0);
	ASSERT_EQ(cqd_lease_return(r.cl, &c.slot[1], 1, &r.err), 0);
	ASSERT_EQ(state_of(&r, &c.slot[1]), CQP_FREE);
	ASSERT_EQ(r.ns->leases, 1);
	ASSERT_EQ(r.ns->used_bytes, 2 * CODES + 2 * SINKS);
	stop(&r);
}

static void refused(struct rig *r, struct cqd_client *cl, struct cqd_shard *sh,
		    const struct cqp_key *parent, const struct cqp_page *slot,
		    const struct cqp_page *sink, int want, const char *text)
{
	struct cqd_shard *own = r->sh;
	struct rig_wait w;

	r->sh = sh;
	ASSERT_EQ(seal_from(r, cl, parent, 9, slot, sink, &w), want);
	r->sh = own;
	if (!strstr(r->err.text, text))
		FAIL("\"%s\" is not in \"%s\"", text, r->err.text);
	holds(r);
}

TEST(lies)
{
	static const struct cqp_shard half = { 0, 1, 0, 0 }, all;
	struct cqd_shard *part, *host;
	struct cqd_shard_info info;
	struct cqd_client *other;
	struct lease_wait c, s, foreign;
	struct cqp_page bad;
	struct rig_wait p0, w;
	struct rig r;
	uint32_t arena;

	start(&r, 1 << 20);
	p0 = page_0(&r, 1);
	ASSERT_EQ(cqd_shard_get_on(r.cl, "m", &half, REMOTE_UUID, &part, &info, &r.err), 0);
	ASSERT_EQ(cqd_shard_get(r.cl, "m", &all, &host, &info, &r.err), 0);
	ASSERT_EQ(info.kind, CQD_MEM_MEMFD);
	other = client_on(&r, 101);
	c = lease_of(&r, r.cl, r.sh, 1, false);
	s = lease_of(&r, r.cl, r.sh, 1, true);
	foreign = lease_of(&r, other, r.sh, 1, false);

	refused(&r, r.cl, r.sh, &p0.res.key, &foreign.slot[0], NULL, -EINVAL, "not leased");
	refused(&r, r.cl, part, &p0.res.key, &c.slot[0], NULL, -EINVAL, "of this shard");
	refused(&r, r.cl, host, &p0.res.key, &c.slot[0], NULL, -EINVAL, "of this shard");
	refused(&r, r.cl, r.sh, &r.root, &c.slot[0], NULL, -EINVAL, "needs its sink");
	refused(&r, r.cl, r.sh, &r.root, &s.slot[0], &c.slot[0], -EINVAL, "not for codes");
	refused(&r, r.cl, r.sh, &r.root, &c.slot[0], &c.slot[0], -EINVAL, "not for sinks");
	refused(&r, r.cl, r.sh, &p0.res.key, &c.slot[0], &s.slot[0], -EINVAL, "only page 0");
	refused(&r, r.cl, r.sh, &p0.res.key, &p0.res.page, NULL, -EINVAL, "not leased");
	bad = c.slot[0];
	bad.word += 1ull << 8;
	refused(&r, r.cl, r.sh, &p0.res.key, &bad, NULL, -EINVAL, "not leased");
	bad = c.slot[0];
	bad.word = CQP_WORD(CQP_WORD_GEN(bad.word), CQP_QUARANTINED);
	refused(&r, r.cl, r.sh, &p0.res.key, &bad, NULL, -EINVAL, "not leased");
	bad = c.slot[0];
	bad.slot = 1u << 30;
	refused(&r, r.cl, r.sh, &p0.res.key, &bad, NULL, -EINVAL, "not leased");
	bad.segment++;
	refused(&r, r.cl, r.sh, &p0.res.key, &bad, NULL, -EINVAL, "not leased");
	/* An arena is no way into the device, nor a lease into the host. */
	ASSERT_EQ(cqd_arena_offer(r.cl, r.sh, r.arena_fd, RIG_ARENA, &arena, &r.err), 0);
	ASSERT_EQ(rig_seal_start(&r, r.cl, arena, &p0.res.key, 5, &w), -EINVAL);
	ASSERT_EQ(cqd_lease(r.cl, host, 1, false, on_lease, &c, &r.err), -EINVAL);
	ASSERT_EQ(cqd_lease(r.cl, r.sh, 0, false, on_lease, &c, &r.err), -EINVAL);
	ASSERT_EQ(cqd_lease(r.cl, r.sh, CQD_MAX_LEASE + 1, false, on_lease, &c, &r.err), -EINVAL);
	/* What was given back, or used, is nobody's. */
	ASSERT_EQ(cqd_lease_return(other, &c.slot[0], 1, &r.err), -EINVAL);
	ASSERT_EQ(cqd_lease_return(r.cl, &c.slot[0], 1, &r.err), 0);
	ASSERT_EQ(cqd_lease_return(r.cl, &c.slot[0], 1, &r.err), -EINVAL);
	refused(&r, r.cl, r.sh, &p0.res.key, &c.slot[0], NULL, -EINVAL, "not leased");
	ASSERT_EQ(cqd_release(r.cl, &s.slot[0], 1, &r.err), -EINVAL);
	ASSERT_EQ(cqd_release(r.cl, &foreign.slot[0], 1, &r.err), -EINVAL);
	stop(&r);
}

/* A chain sealed in the wrong order: the second waits for nothing, it has no parent; and
 * a slot twice. */
TEST(failed_seals_leave_the_lease)
{
	struct cqp_key nowhere = { .b = { 9 } };
	struct lease_wait c;
	struct rig_wait w;
	struct rig r;

	start(&r, 1 << 20);
	c = lease_of(&r, r.cl, r.sh, 1, false);
	ASSERT_EQ(seal_from(&r, r.cl, &nowhere, 1, &c.slot[0], NULL, &w), 0);
	ASSERT(w.done);
	ASSERT_EQ(w.ret, -ENOENT);
	ASSERT_EQ(r.ns->leases, 1);
	ASSERT_EQ(r.ns->used_bytes, CODES);
	/* No pin left: the page was begun. */
	cqd_ns_limit(r.ns, 0, 0, 1);
	w = page_0(&r, 3);
	ASSERT_EQ(seal_from(&r, r.cl, &w.res.key, 4, &c.slot[0], NULL, &w), 0);
	ASSERT_EQ(w.ret, -EDQUOT);
	ASSERT_EQ(r.ns->leases, 1);
	ASSERT_EQ(r.ns->used_bytes, 2 * CODES + SINKS);
	cqd_ns_limit(r.ns, 0, 0, 0);
	stop(&r);
}

TEST(parked_seals)
{
	struct cqd_lease *l;
	struct lease_wait c;
	struct rig_wait w, twice, p0;
	struct rig r;
	uint32_t p;

	start(&r, 1 << 20);
	p0 = page_0(&r, 1);
	c = lease_of(&r, r.cl, r.sh, 1, false);
	/* As if the parent were being filled by somebody else. */
	p = cqd_page_find(r.st, r.sh, &p0.res.key);
	l = cqd_segment_find(r.st, c.slot[0].segment)->lease[c.slot[0].slot];
	ASSERT(l);
	l->op = (void *)l;
	ASSERT_EQ(seal_from(&r, r.cl, &p0.res.key, 2, &c.slot[0], NULL, &twice), -EBUSY);
	ASSERT_EQ(cqd_lease_return(r.cl, &c.slot[0], 1, &r.err), -EBUSY);
	l->op = NULL;
	ASSERT_EQ(r.st->pages[p].state, CQP_SEALED);
	ASSERT_EQ(seal_from(&r, r.cl, &p0.res.key, 2, &c.slot[0], NULL, &w), 0);
	ASSERT_EQ(w.ret, 0);
	stop(&r);
}

TEST(quota_and_limits)
{
	struct lease_wait w;
	struct rig r;

	start(&r, 1 << 20);
	cqd_ns_limit(r.ns, 3 * CODES, 0, 0);
	w = lease_of(&r, r.cl, r.sh, 8, false);
	ASSERT_EQ(w.ret, 0);
	ASSERT_EQ(w.n, 3);
	ASSERT_EQ(r.ns->used_bytes, 3 * CODES);
	w = lease_of(&r, r.cl, r.sh, 1, false);
	ASSERT_EQ(w.ret, -EDQUOT);
	cqd_ns_limit(r.ns, 0, 0, 0);
	r.cl->n_leases += CQD_LEASES_PER_CLIENT;
	w = lease_of(&r, r.cl, r.sh, 1, false);
	r.cl->n_leases -= CQD_LEASES_PER_CLIENT;
	ASSERT_EQ(w.ret, -EDQUOT);
	r.ns->leases += CQD_LEASES_PER_NS;
	w = lease_of(&r, r.cl, r.sh, 1, false);
	r.ns->leases -= CQD_LEASES_PER_NS;
	ASSERT_EQ(w.ret, -EDQUOT);
	stop(&r);
}

/* The pool is full of pages that may go, then of leases that may not. */
TEST(room)
{
	struct lease_wait w, all[8];
	unsigned int n = 0, i;
	struct rig_wait p;
	struct rig r;

	start(&r, 2 * REMOTE_GRAIN);
	for (i = 0; i < 20; i++) {
		p = page_0(&r, i);
		ASSERT_EQ(cqd_release(r.cl, &p.res.page, 1, &r.err), 0);
	}
	ASSERT_GT(r.st->evictions, 0);
	for (i = 0; i < 8; i++) {
		all[i] = lease_of(&r, r.cl, r.sh, 8, false);
		if (all[i].ret)
			break;
		n += all[i].n;
	}
	ASSERT_LT(i, 8);
	ASSERT_EQ(all[i].ret, -ENOSPC);
	ASSERT_GE(n, REMOTE_GRAIN / CODES);
	ASSERT_LE(r.st->pool[1].reserved, 2 * REMOTE_GRAIN);
	/* What somebody gives back goes on to who waits. */
	ASSERT_EQ(cqd_lease_return(r.cl, all[0].slot, 1, &r.err), 0);
	w = lease_of(&r, r.cl, r.sh, 1, false);
	ASSERT_EQ(w.ret, 0);
	ASSERT_EQ(w.slot[0].segment, all[0].slot[0].segment);
	ASSERT_EQ(CQP_WORD_GEN(w.slot[0].word), CQP_WORD_GEN(all[0].slot[0].word) + 1);
	stop(&r);
}

/* A device without memory is asked once, whoever waits, and not again at once. */
TEST(device_full)
{
	static const struct cqp_shard part = { 0, 1, 0, 0 };
	struct lease_wait w, a = { .n = 0 }, b = { .n = 0 };
	struct cqd_shard_info info;
	struct cqd_shard *other;
	struct rig r;

	start(&r, 1 << 20);
	ASSERT_EQ(cqd_shard_get_on(r.cl, "m", &part, REMOTE_UUID, &other, &info, &r.err), 0);
	remote.create = -ENOSPC;
	ASSERT_EQ(cqd_lease(r.cl, r.sh, 1, false, on_lease, &a, &r.err), 0);
	ASSERT_EQ(cqd_lease(r.cl, other, 1, true, on_lease, &b, &r.err), 0);
	ASSERT(!a.done && !b.done);
	rig_run(&r, &a.done);
	ASSERT_EQ(a.ret, -ENOSPC);
	ASSERT_STREQ(a.err.text, "the device is full");
	ASSERT(b.done);
	ASSERT_EQ(b.ret, -ENOSPC);
	ASSERT_STREQ(b.err.text, "the device is full");
	remote.create = 0;
	w = lease_of(&r, r.cl, r.sh, 1, false);
	ASSERT_EQ(w.ret, -ENOSPC);
	ASSERT_STREQ(w.err.text, "the device is full");
	ASSERT_EQ(remote.creates, 1);
	ASSERT_EQ(r.st->pool[1].reserved, 0);
	r.st->pool[1].full_until = 0;	/* a while later */
	ASSERT_EQ(lease_of(&r, r.cl, r.sh, 1, false).ret, 0);
	stop(&r);
}

/* One is made at a time; who waits for another gets it afterwards. */
TEST(one_at_a_time)
{
	struct lease_wait a = { .n = 0 }, b = { .n = 0 };
	struct rig r;

	start(&r, 1 << 20);
	ASSERT_EQ(cqd_lease(r.cl, r.sh, 1, false, on_lease, &a, &r.err), 0);
	ASSERT_EQ(cqd_lease(r.cl, r.sh, 1, true, on_lease, &b, &r.err), 0);
	rig_run(&r, &a.done);
	rig_run(&r, &b.done);
	ASSERT_EQ(a.ret, 0);
	ASSERT_EQ(b.ret, 0);
	ASSERT_EQ(remote.creates, 2);
	ASSERT(!remote.together);
	stop(&r);
}

TEST(empty_segments_go)
{
	struct lease_wait w;
	struct rig r;

	start(&r, 1 << 20);
	r.st->empty_ms = 0;
	w = lease_of(&r, r.cl, r.sh, 1, false);
	cqd_segment_tick(r.st);
	ASSERT_GT(r.st->pool[1].reserved, 0);
	ASSERT_EQ(cqd_lease_return(r.cl, w.slot, 1, &r.err), 0);
	cqd_segment_tick(r.st);
	while (r.st->pool[1].reserved)
		uv_run(&r.loop, UV_RUN_ONCE);
	stop(&r);
}

/* Of a process that is gone nothing writes; of one that said Bye something may. */
TEST(the_end_of_a_writer)
{
	struct cqd_client *other;
	struct lease_wait a, b;
	struct rig_wait w;
	struct rig r;

	start(&r, 1 << 20);
	other = client_on(&r, 101);
	a = lease_of(&r, other, r.sh, 2, false);
	cqd_client_end(other);
	ASSERT_EQ(state_of(&r, &a.slot[0]), CQP_FREE);
	ASSERT_EQ(r.ns->used_bytes, 0);

	other = client_on(&r, 102);
	b = lease_of(&r, other, r.sh, 2, false);
	ASSERT_EQ(cqd_client_pins(other), 2);
	ASSERT(!cqd_client_bye(other));
	ASSERT_EQ(state_of(&r, &b.slot[0]), CQP_QUARANTINED);
	ASSERT_EQ(gen_of(&r, &b.slot[0]), CQP_WORD_GEN(b.slot[0].word));
	ASSERT_EQ(cqd_lease_return(other, b.slot, 1, &r.err), -EINVAL);
	ASSERT_EQ(seal_from(&r, other, &r.root, 1, b.slot, NULL, &w), -EINVAL);
	ASSERT_EQ(r.ns->leases, 2);
	ASSERT_EQ(r.ns->used_bytes, 2 * CODES);
	holds(&r);
	cqd_client_end(other);
	ASSERT_EQ(state_of(&r, &b.slot[0]), CQP_FREE);
	ASSERT_EQ(r.ns->used_bytes, 0);

	other = client_on(&r, 103);
	ASSERT(cqd_client_bye(other));
	cqd_client_end(other);
	stop(&r);
}

/* A connection that broke: the leases stay, requests under way do not. */
TEST(orphans)
{
	struct lease_wait w, waiting = { .n = 0 };
	struct rig_wait s;
	struct rig r;

	start(&r, 1 << 20);
	w = lease_of(&r, r.cl, r.sh, 1, true);
	ASSERT_EQ(cqd_lease(r.cl, r.sh, 1, false, on_lease, &waiting, &r.err), 0);
	ASSERT(!waiting.done);
	cqd_client_set_orphan(r.cl, true);
	ASSERT(waiting.done);
	ASSERT_EQ(waiting.ret, -ECANCELED);
	ASSERT_EQ(state_of(&r, &w.slot[0]), CQP_FILLING);
	ASSERT_EQ(cqd_client_resume(r.st, r.ns, cqd_client_session(r.cl), 100, 7), r.cl);
	waiting = lease_of(&r, r.cl, r.sh, 1, false);
	ASSERT_EQ(seal_from(&r, r.cl, &r.root, 1, waiting.slot, w.slot, &s), 0);
	ASSERT_EQ(s.ret, 0);
	stop(&r);
}

/* A client that says what it knows of gives the rest back. */
TEST(keep)
{
	struct lease_wait a, b, foreign;
	struct cqd_client *other;
	struct rig r;

	start(&r, 1 << 20);
	other = client_on(&r, 101);
	foreign = lease_of(&r, other, r.sh, 1, false);
	a = lease_of(&r, r.cl, r.sh, 2, false);
	b = lease_of(&r, r.cl, r.sh, 2, true);
	ASSERT_EQ(cqd_lease_keep(r.cl, foreign.slot, 1, &r.err), -EINVAL);
	ASSERT_EQ(r.ns->leases, 5);
	ASSERT_EQ(cqd_lease_keep(r.cl, &a.slot[1], 1, &r.err), 0);
	ASSERT_EQ(r.ns->leases, 2);
	ASSERT_EQ(state_of(&r, &a.slot[0]), CQP_FREE);
	ASSERT_EQ(state_of(&r, &a.slot[1]), CQP_FILLING);
	ASSERT_EQ(state_of(&r, &b.slot[0]), CQP_FREE);
	ASSERT_EQ(state_of(&r, &foreign.slot[0]), CQP_FILLING);
	ASSERT_EQ(cqd_lease_keep(r.cl, NULL, 0, &r.err), 0);
	ASSERT_EQ(r.ns->leases, 1);
	/* What is left in quarantine is not the client's to give back. */
	ASSERT(!cqd_client_bye(other));
	ASSERT_EQ(cqd_lease_keep(other, NULL, 0, &r.err), 0);
	ASSERT_EQ(r.ns->leases, 1);
	stop(&r);
}

/* Its section is gone from cqd.conf: what was there goes, the host's stays. */
TEST(device_left_the_configuration)
{
	struct rig r;

	start(&r, 1 << 20);
	page_0(&r, 1);
	rig_close(&r);
	mgr_sync();
	r.o.n_pools = 0;
	if (rig_open(&r))
		FAIL("%s", r.err.text);
	ASSERT(strstr(r.err.text, "did not fit"));
	ASSERT_EQ(r.st->n_state[CQP_SEALED], 0);
	rig_ns(&r);
	stop(&r);
}

/* No driver: cqd serves, what it has from before included; only nothing new is made. */
TEST(no_driver)
{
	static const struct cqp_shard all;
	struct cqd_pool_figures f;
	struct cqd_segment_info info;
	struct rig_wait p0;
	struct rig r;

	start(&r, 1 << 20);
	p0 = page_0(&r, 1);
	remote.usable = -ENODEV;
	rig_close(&r);
	mgr_sync();
	if (rig_open(&r))
		FAIL("%s", r.err.text);
	rig_ns(&r);
	ASSERT_STREQ(r.err.text, "");
	ASSERT(cqd_pool_figures(r.st, 1, &f));
	ASSERT_STREQ(f.why, "no driver today");
	r.cl = list_first(&r.st->clients, struct cqd_client, node);
	ASSERT_EQ(cqd_segment_get(r.cl, p0.res.page.segment, &info), 0);
	ASSERT_EQ(cqd_shard_get_on(r.cl, "m", &all, REMOTE_UUID, &r.sh, &r.info, &r.err),
		  -ENODEV);
	ASSERT(strstr(r.err.text, "[gpu g0]: no driver today"));
	ASSERT_EQ(cqd_shard_get_on(r.cl, "m", &all, "GPU-1", &r.sh, &r.info, &r.err), -ENODEV);
	ASSERT_EQ(cqd_shard_get(r.cl, "m", &all, &r.sh, &r.info, &r.err), 0);
	stop(&r);
}

/* readable_by stops at a device: whoever has its memory can write it. */
TEST(readers)
{
	static const struct cqd_ns_opts wide = { .quota_bytes = 1 << 30 };
	static const struct cqp_shard all;
	struct cqd_segment_info info;
	struct cqp_page got, sink;
	struct cqd_found found;
	struct cqd_client *reader;
	struct rig_wait p0;
	struct cqd_shard *sh;
	struct cqd_shard_info si;
	struct cqd_ns *ns;
	struct rig r;
	int trust;

	start(&r, 1 << 20);
	p0 = page_0(&r, 1);
	ASSERT_EQ(cqd_ns_get(r.st, "reader", &wide, &ns, &r.err), 0);
	cqd_readers_begin(r.st);
	ASSERT_EQ(cqd_readers_add(r.ns, ns, &r.err), 0);
	cqd_readers_end(r.st);
	ASSERT_EQ(cqd_client_new(r.st, ns, 200, 7, 0, "r", &reader, &r.err), 0);
	ASSERT_EQ(cqd_shard_get_on(reader, "m", &all, REMOTE_UUID, &sh, &si, &r.err), 0);
	for (trust = 0; trust < 2; trust++) {
		r.st->pool[1].trust_readers = trust;
		ASSERT_EQ(cqd_match(reader, sh, &p0.res.key, 1, false, &got, &sink, &found,
				    &r.err), trust);
		ASSERT_EQ(cqd_segment_get(reader, p0.res.page.segment, &info),
			  trust ? 0 : -ENOENT);
	}
	stop(&r);
}

/* What cqd cannot read is neither checked nor saved, and both are told. */
static void on_verify(void *arg, uint64_t checked, uint64_t failed, uint64_t bytes)
{
	struct rig_wait *w = arg;

	w->done = true;
	w->checked = checked;
	w->failed = failed;
}

static void on_save(void *arg, int ret, uint64_t pages, uint64_t bytes,
		    const struct cq_err *err)
{
	struct rig_wait *w = arg;

	w->done = true;
	w->ret = ret;
	w->checked = pages;
}

TEST(unreadable)
{
	struct rig_wait w = { 0 }, s = { 0 };
	struct rig r;
	int fd;

	start(&r, 1 << 20);
	page_0(&r, 1);
	ASSERT_EQ(cqd_verify(r.st, on_verify, &w), 0);
	rig_run(&r, &w.done);
	ASSERT_EQ(w.checked, 0);
	fd = memfd_create("saved", MFD_CLOEXEC);
	ASSERT_EQ(cqd_save(r.st, fd, on_save, &s, &r.err), 0);
	rig_run(&r, &s.done);
	close(fd);
	ASSERT_EQ(s.ret, 0);
	ASSERT_EQ(s.checked, 0);
	ASSERT_EQ(cqd_store_unreadable(r.st), 1);
	stop(&r);
}

static void on_notice(void *arg, const struct cqd_notice *n)
{
	*(struct cqd_notice *)arg = *n;
}

TEST(events_name_the_pool)
{
	struct cqd_notice n = { .kind = CQD_N_NOTICES }, resident;
	uint32_t cursor = 0;
	struct rig r;

	start(&r, 1 << 20);
	cqd_store_watch(r.st, on_notice, &n);
	page_0(&r, 1);
	ASSERT_EQ(n.kind, CQD_NOTICE_SEALED);
	ASSERT_EQ(n.pool, 1);
	ASSERT(cqd_store_resident(r.st, NULL, &cursor, 16, &resident));
	ASSERT_EQ(resident.pool, 1);
	cqd_store_watch(r.st, NULL, NULL);
	stop(&r);
}

TEST(model_in_use)
{
	struct lease_wait c;
	struct rig r;

	start(&r, 1 << 20);
	c = lease_of(&r, r.cl, r.sh, 1, false);
	again(&r);
	cqd_client_set_orphan(r.cl, true);
	r.cl->n_shards = 0;	/* as after a restart that it has not come back from */
	r.sh->opens--;
	r.sh->model->opens--;
	ASSERT_EQ(cqd_model_unload(r.st, "m", &r.err), -EBUSY);
	ASSERT_EQ(state_of(&r, &c.slot[0]), CQP_FILLING);
	cqd_client_end(r.cl);
	ASSERT_EQ(cqd_model_unload(r.st, "m", &r.err), 0);
	r.cl = NULL;
	stop(&r);
}
