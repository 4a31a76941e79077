// SPDX-License-Identifier: MIT
/*
 * Leases and pages of a device over a restart of the daemon: what lasts, what is verified,
 * what a lost record costs.
 */
#include "tests/unit/lease_rig.h"

TEST(leases_last)
{
	struct cqd_client *other;
	struct lease_wait c, s, bye;
	struct rig_wait p0, w;
	struct rig r;

	start(&r, 1 << 20);
	p0 = page_0(&r, 1);
	c = lease_of(&r, r.cl, r.sh, 2, false);
	s = lease_of(&r, r.cl, r.sh, 1, true);
	other = client_on(&r, 101);
	bye = lease_of(&r, other, r.sh, 1, false);
	ASSERT(!cqd_client_bye(other));
	remote.adopts = 0;
	remote.creates = 0;
	again(&r);
	ASSERT(r.cl);
	ASSERT_STREQ(r.err.text, "");
	ASSERT_EQ(remote.adopts, 2);
	ASSERT_EQ(remote.creates, 0);
	ASSERT_EQ(r.ns->used_bytes, 4 * CODES + 2 * SINKS);
	ASSERT_EQ(r.ns->leases, 4);
	ASSERT_EQ(r.st->verify_pending, 0);
	ASSERT_EQ(state_of(&r, &bye.slot[0]), CQP_QUARANTINED);
	ASSERT_EQ(rig_resident(&r, &p0.res.key, 1), 1);
	/* The session names them as before. */
	ASSERT_EQ(cqd_lease_return(r.cl, s.slot, 1, &r.err), 0);
	ASSERT_EQ(seal_from(&r, r.cl, &p0.res.key, 2, &c.slot[0], NULL, &w), 0);
	ASSERT_EQ(w.ret, 0);
	ASSERT_EQ(w.res.page.slot, c.slot[0].slot);
	again(&r);
	ASSERT_EQ(r.ns->leases, 2);
	ASSERT_EQ(seal_from(&r, r.cl, &w.res.key, 3, &c.slot[1], NULL, &w), 0);
	ASSERT_EQ(w.ret, 0);
	stop(&r);
}

static unsigned int unchecked(struct rig *r, const struct cqp_key *keys, unsigned int n,
			      struct cqp_page *pages, struct cqd_found *found)
{
	struct cqp_page sink;

	ASSERT_EQ(cqd_match(r->cl, r->sh, keys, n, false, pages, &sink, found, &r->err), n);
	return found->n_unchecked;
}

/* Pages taken over are judged once, by the first checksum that a worker sends. */
TEST(checked)
{
	static const struct cqd_ns_opts wide = { .quota_bytes = 1 << 30 };
	struct cqd_check good[3] = { { 1, ~1ull }, { 2, ~2ull }, { 3, ~3ull } }, bad = { 9, ~2ull };
	struct cqp_page at[3], was[3];
	struct rig_wait w[3];
	struct lease_wait c;
	struct cqp_key keys[3];
	struct cqd_found found;
	struct cqd_client *foreign;
	struct cqd_ns *ns;
	uint8_t gone;
	struct rig r;
	int i;

	start(&r, 1 << 20);
	w[0] = page_0(&r, 1);
	c = lease_of(&r, r.cl, r.sh, 2, false);
	for (i = 1; i < 3; i++)
		ASSERT_EQ(seal_from(&r, r.cl, &w[i - 1].res.key, (uint32_t)i + 1, &c.slot[i - 1],
				    NULL, &w[i]), 0);
	for (i = 0; i < 3; i++)
		keys[i] = w[i].res.key;
	ASSERT_EQ(unchecked(&r, keys, 3, at, &found), 0);
	again(&r);
	ASSERT_EQ(r.st->unchecked, 3);
	ASSERT_EQ(unchecked(&r, keys, 3, at, &found), 3);
	ASSERT_EQ(found.unchecked[0], 7);
	memcpy(was, at, sizeof(at));
	/* Nobody else's to judge. */
	ASSERT_EQ(cqd_ns_get(r.st, "foreign", &wide, &ns, &r.err), 0);
	ASSERT_EQ(cqd_client_new(r.st, ns, 200, 7, 0, "f", &foreign, &r.err), 0);
	cqd_checked(foreign, at, &bad, 1, &gone);
	ASSERT_EQ(gone, 0);
	ASSERT_EQ(r.st->unchecked, 3);
	cqd_checked(r.cl, at, good, 1, &gone);
	ASSERT_EQ(gone, 0);
	ASSERT_EQ(unchecked(&r, keys, 3, at, &found), 2);
	ASSERT_EQ(found.unchecked[0], 6);
	cqd_checked(r.cl, at, &bad, 1, &gone);
	ASSERT_EQ(gone, 0);
	ASSERT_EQ(r.st->checksum_failures, 0);
	/* The second is wrong: the third goes with it. */
	cqd_checked(r.cl, at + 1, &bad, 1, &gone);
	ASSERT_EQ(gone, 1);
	ASSERT_EQ(r.st->checksum_failures, 1);
	ASSERT_EQ(r.st->unchecked, 0);
	ASSERT_EQ(rig_resident(&r, keys, 3), 1);
	cqd_checked(r.cl, was, good, 3, &gone);
	ASSERT_EQ(gone, 6);
	ASSERT_EQ(r.st->checksum_failures, 1);
	was[0].segment = UINT32_MAX;
	cqd_checked(r.cl, was, good, 1, &gone);
	ASSERT_EQ(gone, 1);
	stop(&r);
}

/* What a reader of the memory says is there, if it is what was sealed. */
static void see(const struct rig *r, const struct rig_wait *w, bool sink, struct cqp_seen *out)
{
	uint64_t lo = 77, hi = 78;
	const struct cqp_rec_page *rec;
	uint32_t p;

	p = cqd_page_find(r->st, r->sh, &w->res.key);
	ASSERT_NE(p, CQP_NONE);
	rec = &r->st->ix.pages[p];
	if (!sink) {
		lo = rec->check_lo;
		hi = rec->check_hi;
	}
	*out = (struct cqp_seen){
		.hdr = {
			.magic = CQ_PAGE_MAGIC, .version = CQ_PAGE_VERSION,
			.kind = sink ? CQ_PAGE_SINK : CQ_PAGE_CODES,
			.payload = r->sh->kind[sink ? CQD_SINKS : CQD_CODES].payload,
			.check_lo = lo, .check_hi = hi,
		}, .lo = lo, .hi = hi,
	};
	memcpy(out->hdr.key, w->res.key.b, sizeof(out->hdr.key));
}

/* The same of the administrator's reader: one pass over all that is there. */
TEST(looked_at)
{
	static struct cqd_look_batch b;
	struct cqd_look *l = NULL;
	struct cqp_seen seen[4];
	struct rig_wait w[2];
	struct lease_wait c;
	uint64_t wrong;
	struct rig r;

	start(&r, 1 << 20);
	w[0] = page_0(&r, 1);
	c = lease_of(&r, r.cl, r.sh, 1, false);
	ASSERT_EQ(seal_from(&r, r.cl, &w[0].res.key, 2, &c.slot[0], NULL, &w[1]), 0);
	ASSERT_EQ(cqd_look_new(r.st, "g1", false, &l, &r.err), -ENODEV);
	ASSERT_EQ(cqd_look_new(r.st, "host", false, &l, &r.err), -EINVAL);
	ASSERT(!l);
	ASSERT_EQ(cqd_look_new(r.st, "g0", false, &l, &r.err), 0);
	cqd_look_next(l, &b);
	ASSERT_EQ(b.n_slots, 0);
	cqd_look_free(l);
	again(&r);
	ASSERT_EQ(cqd_look_new(r.st, "g0", false, &l, &r.err), 0);
	cqd_look_next(l, &b);
	ASSERT_EQ(b.n_slots, 3);
	ASSERT_EQ(b.n_segs, 2);
	ASSERT_EQ(b.rate, r.o.verify_rate);
	ASSERT_STREQ(b.device, REMOTE_UUID);
	ASSERT_EQ(b.slots[0].payload, r.sh->kind[CQD_CODES].payload);
	ASSERT_EQ(b.slots[1].segment, 1);
	ASSERT_EQ(b.seg[1].kind, CQD_SINKS);
	see(&r, &w[0], false, &seen[0]);
	see(&r, &w[0], true, &seen[1]);
	see(&r, &w[1], false, &seen[2]);
	ASSERT_EQ(cqd_look_seen(l, seen, 2, &wrong, &r.err), -EINVAL);
	ASSERT_EQ(cqd_look_seen(l, seen, 4, &wrong, &r.err), -EINVAL);
	ASSERT_EQ(r.st->unchecked, 2);
	ASSERT_EQ(cqd_look_seen(l, seen, 3, &wrong, &r.err), 0);
	ASSERT_EQ(wrong, 0);
	ASSERT_EQ(r.st->unchecked, 0);
	cqd_look_next(l, &b);
	ASSERT_EQ(b.n_slots, 0);
	cqd_look_free(l);
	/* Another page's header; and of the second, which goes along, nothing counts. */
	ASSERT_EQ(cqd_look_new(r.st, "g0", true, &l, &r.err), 0);
	cqd_look_next(l, &b);
	ASSERT_EQ(b.n_slots, 3);
	ASSERT_EQ(b.rate, 0);
	seen[0].hdr.key[3] ^= 1;
	seen[2].lo++;
	ASSERT_EQ(cqd_look_seen(l, seen, 3, &wrong, &r.err), 0);
	ASSERT_EQ(wrong, 1);
	ASSERT_EQ(r.st->checksum_failures, 1);
	ASSERT_EQ(rig_resident(&r, &w[0].res.key, 1), 0);
	cqd_look_next(l, &b);
	ASSERT_EQ(b.n_slots, 0);
	cqd_look_free(l);
	stop(&r);
}

/* Wrong sinks spoil page 0; a page that went meanwhile is none of ours. */
TEST(looked_at_too_late)
{
	static struct cqd_look_batch b;
	struct cqp_seen seen[2];
	struct cqd_look *l;
	struct rig_wait w;
	uint64_t wrong;
	struct rig r;

	start(&r, 1 << 20);
	w = page_0(&r, 1);
	ASSERT_EQ(cqd_look_new(r.st, "g0", true, &l, &r.err), 0);
	cqd_look_next(l, &b);
	ASSERT_EQ(b.n_slots, 2);
	see(&r, &w, false, &seen[0]);
	see(&r, &w, true, &seen[1]);
	seen[1].hi++;
	ASSERT_EQ(cqd_look_seen(l, seen, 2, &wrong, &r.err), 0);
	ASSERT_EQ(wrong, 1);
	cqd_look_free(l);
	w = page_0(&r, 1);
	ASSERT_EQ(cqd_look_new(r.st, "g0", true, &l, &r.err), 0);
	cqd_look_next(l, &b);
	ASSERT_EQ(b.n_slots, 2);
	cqd_page_drop(r.st, cqd_page_find(r.st, r.sh, &w.res.key));
	w = page_0(&r, 1);
	ASSERT_EQ(cqd_look_seen(l, seen, 2, &wrong, &r.err), 0);
	ASSERT_EQ(wrong, 0);
	ASSERT_EQ(rig_resident(&r, &w.res.key, 1), 1);
	cqd_look_free(l);
	stop(&r);
}

/* Writes into the index while no daemon runs: as after a crash at a bad moment. */
static struct cqp_index_hdr *index_of(size_t *bytes)
{
	struct cqp_index_hdr *h = MAP_FAILED;
	struct stat sb;
	unsigned int i;

	for (i = 0; i < mgr.n; i++)
		if (!strcmp(mgr.names[i], "cq-index")) {
			fstat(mgr.fds[i], &sb);
			*bytes = (size_t)sb.st_size;
			h = mmap(NULL, *bytes, PROT_READ | PROT_WRITE, MAP_SHARED, mgr.fds[i], 0);
		}
	ASSERT(h != MAP_FAILED);
	return h;
}

static void spoil(void (*fn)(struct cqp_rec_pin *r))
{
	struct cqp_index_hdr *h;
	struct cqp_rec_pin *r;
	size_t bytes;
	uint32_t i;

	h = index_of(&bytes);
	r = (void *)((uint8_t *)h + h->off_pins);
	for (i = 0; i < h->high_pins; i++)
		if (CQP_WORD_STATE(r[i].word) == CQP_SEALED && r[i].page == CQP_NONE)
			fn(&r[i]);
	munmap(h, bytes);
}

static void no_record(struct cqp_rec_pin *r)
{
	r->word = CQP_WORD(1, CQP_FREE);
}

static void no_client(struct cqp_rec_pin *r)
{
	r->client = 0x7fffffff;
}

static void older(struct cqp_rec_pin *r)
{
	r->slot_gen--;
}

static void nonsense(struct cqp_rec_pin *r)
{
	r->count = 0xdeadbeefcafebabeull;
}

/* A slot that somebody may be writing, nobody knows who: it waits for all of them. */
TEST(lost_leases)
{
	static void (*const how[])(struct cqp_rec_pin *r) = {
		no_record, no_client, older, nonsense,
	};
	struct cqd_client *other;
	struct lease_wait c;
	unsigned int i;
	uint64_t id;
	struct rig r;
	pid_t pid;

	start(&r, 1 << 20);
	for (i = 0; i < ARRAY_SIZE(how); i++) {
		c = lease_of(&r, r.cl, r.sh, 1, false);
		other = client_on(&r, 101);
		id = cqd_client_session(r.cl);
		pid = cqd_client_pid(r.cl);
		rig_close(&r);
		mgr_sync();
		spoil(how[i]);
		if (rig_open(&r))
			FAIL("%s", r.err.text);
		rig_ns(&r);
		holds(&r);
		ASSERT_EQ(state_of(&r, &c.slot[0]), CQP_QUARANTINED);
		ASSERT_EQ(r.ns->lost, 1);
		ASSERT_EQ(r.ns->used_bytes, CODES);
		r.cl = cqd_client_resume(r.st, r.ns, id, pid, 7);
		ASSERT(r.cl);
		ASSERT_EQ(cqd_lease_return(r.cl, c.slot, 1, &r.err), -EINVAL);
		/* A newcomer does not matter; the two of before do. */
		other = client_on(&r, 102);
		cqd_client_end(r.cl);
		ASSERT_EQ(state_of(&r, &c.slot[0]), CQP_QUARANTINED);
		cqd_client_end(list_first(&r.st->clients, struct cqd_client, node));
		ASSERT_EQ(state_of(&r, &c.slot[0]), CQP_FREE);
		ASSERT_EQ(r.ns->used_bytes, 0);
		ASSERT_EQ(r.ns->lost, 0);
		holds(&r);
		r.cl = other;
	}
	stop(&r);
}

/* Nobody is left who could write. */
TEST(lost_with_everybody_gone)
{
	struct cqp_index_hdr *h;
	struct cqp_rec_client *cl;
	struct lease_wait c;
	size_t bytes;
	struct rig r;

	start(&r, 1 << 20);
	c = lease_of(&r, r.cl, r.sh, 1, false);
	rig_close(&r);
	mgr_sync();
	h = index_of(&bytes);
	cl = (void *)((uint8_t *)h + h->off_clients);
	cl[0].word = CQP_WORD(9, CQP_FREE);
	cl[1].word = CQP_WORD(9, CQP_FREE);
	munmap(h, bytes);
	if (rig_open(&r))
		FAIL("%s", r.err.text);
	rig_ns(&r);
	ASSERT_EQ(state_of(&r, &c.slot[0]), CQP_FREE);
	ASSERT_EQ(r.ns->used_bytes, 0);
	r.cl = client_on(&r, 105);
	stop(&r);
}
