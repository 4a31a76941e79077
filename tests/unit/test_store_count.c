// SPDX-License-Identifier: MIT
/* Counters of namespaces, and what those hear who watch the store. */
#include "tests/unit/store_rig.h"

#define KEYS 16

/* What was heard; keys of resident pages as a watcher would know them. */
struct heard {
	unsigned int n[CQD_N_NOTICES], why[CQD_N_EVICT];
	struct cqd_notice last;
	struct cqp_key known[KEYS];
	unsigned int n_known;
};

static void know(struct heard *h, const struct cqp_key *key, bool there)
{
	unsigned int i;

	for (i = 0; i < h->n_known && memcmp(&h->known[i], key, sizeof(*key)); i++)
		;
	if (there && i == h->n_known) {
		ASSERT_LT(i, KEYS);
		h->known[h->n_known++] = *key;
	} else if (!there && i < h->n_known) {
		h->known[i] = h->known[--h->n_known];
	}
}

static void on_notice(void *arg, const struct cqd_notice *n)
{
	struct heard *h = arg;

	h->n[n->kind]++;
	h->last = *n;
	if (n->kind == CQD_NOTICE_GONE) {
		h->why[n->reason]++;
		know(h, &n->key, false);
	} else if (n->kind == CQD_NOTICE_SEALED) {
		know(h, &n->key, true);
	}
}

static void small_pool(struct rig *r, struct heard *h)
{
	*h = (struct heard){ .n_known = 0 };
	rig_defaults(r);
	r->o.segment_min = 8 * 12288;
	r->o.segment_max = 8 * 12288;
	r->o.pool_bytes = 11 * 12288;
	rig_start(r);
	cqd_store_watch(r->st, on_notice, h);
}

static struct cqp_key leaf(struct rig *r, const struct cqp_key *parent, uint32_t token)
{
	struct rig_wait w = rig_seal(r, r->cl, r->arena_id, parent, token);

	ASSERT_EQ(w.ret, 0);
	ASSERT_EQ(cqd_release(r->cl, &w.res.page, 1, &r->err), 0);
	return w.res.key;
}

/* Every way out of the store is counted and told once. */
TEST(each_page_goes_for_one_reason)
{
	struct cqp_key first, key;
	struct cqd_ns_counts *c;
	struct heard h;
	uint32_t i, sum;
	struct rig r;

	small_pool(&r, &h);
	c = &r.ns->counts;
	first = leaf(&r, &r.root, 0);
	for (i = 1; i < 8; i++)
		key = leaf(&r, &first, i);
	ASSERT_EQ(h.n[CQD_NOTICE_SEALED], 8);
	ASSERT_EQ(h.last.depth, 1);
	ASSERT_EQ(h.last.bytes, 12288);
	ASSERT_STREQ(h.last.tenant, "tenant");
	ASSERT_STREQ(h.last.name, "m");
	ASSERT(!memcmp(&h.last.parent, &first, sizeof(first)));
	ASSERT(!memcmp(&h.last.key, &key, sizeof(key)));
	ASSERT_EQ(c->seals, 8);
	ASSERT_EQ(c->state[CQP_SEALED], 8);
	ASSERT_EQ(c->sealing, 0);
	/* room for one more, then two by quota, then all by the model's end */
	leaf(&r, &first, 20);
	ASSERT_EQ(h.why[CQD_EVICT_ROOM], 1);
	ASSERT(cqd_evict_one(r.st, NULL, r.ns));
	ASSERT_EQ(h.why[CQD_EVICT_QUOTA], 1);
	ASSERT_EQ(c->age.n[0], 2);
	cqd_client_end(r.cl);
	ASSERT_EQ(h.n[CQD_NOTICE_LEFT], 1);
	ASSERT_EQ(h.last.pid, 100);
	ASSERT_EQ(cqd_model_unload(r.st, "m", &r.err), 0);
	ASSERT_EQ(h.n[CQD_NOTICE_UNLOADED], 1);
	ASSERT_EQ(h.why[CQD_EVICT_DROPPED], 7);
	for (i = sum = 0; i < CQD_N_EVICT; i++) {
		ASSERT_EQ(c->gone[i], h.why[i]);
		sum += h.why[i];
	}
	ASSERT_EQ(sum, h.n[CQD_NOTICE_SEALED]);
	ASSERT_EQ(h.n[CQD_NOTICE_GONE], sum);
	ASSERT_EQ(r.st->evictions, 2);
	for (i = 0; i < 5; i++)
		ASSERT_EQ(c->state[i], 0);
	ASSERT_EQ(c->clients, 0);
	rig_stop(&r);
}

/* cqd_page_drop() of a named page: it has that reason, its children have none. */
TEST(descendants_are_dropped)
{
	struct cqp_key a, b;
	struct heard h;
	struct rig r;
	uint32_t p;

	small_pool(&r, &h);
	a = leaf(&r, &r.root, 1);
	b = leaf(&r, &a, 2);
	leaf(&r, &b, 3);
	p = cqd_page_find(r.st, r.sh, &a);
	cqd_evicted(r.st, p, CQD_EVICT_ADMIN);
	cqd_page_drop(r.st, p);
	ASSERT_EQ(h.why[CQD_EVICT_ADMIN], 1);
	ASSERT_EQ(h.why[CQD_EVICT_DROPPED], 2);
	ASSERT(!memcmp(&h.last.parent, &r.root, sizeof(r.root)));
	ASSERT_EQ(h.n_known, 0);
	rig_stop(&r);
}

TEST(lookups_sessions_and_failures)
{
	struct cqp_key a, nobody = { { 9 } };
	struct cqd_ns_counts *c;
	struct cqd_client *cl;
	struct heard h;
	struct rig r;
	uint32_t arena;

	small_pool(&r, &h);
	c = &r.ns->counts;
	a = leaf(&r, &r.root, 1);
	ASSERT_EQ(rig_resident(&r, &a, 1), 1);
	ASSERT_EQ(rig_resident(&r, &nobody, 1), 0);
	ASSERT_EQ(c->lookups, 2);
	ASSERT_EQ(c->hits, 1);
	ASSERT_EQ(c->misses, 1);
	leaf(&r, &r.root, 1);
	ASSERT_EQ(c->seals_existing, 1);
	ASSERT_EQ(rig_seal(&r, r.cl, r.arena_id, &nobody, 2).ret, -ENOENT);
	ASSERT_EQ(c->seals_failed, 1);
	cl = rig_client(&r, 101, &arena);
	ASSERT_EQ(h.n[CQD_NOTICE_JOINED], 1);
	ASSERT_STREQ(h.last.name, "test");
	ASSERT_EQ(c->clients, 2);
	cqd_client_set_orphan(cl, true);
	ASSERT_EQ(c->orphans, 1);
	ASSERT(cqd_client_resume(r.st, r.ns, cqd_client_session(cl), 101, 7) == cl);
	ASSERT_EQ(c->orphans, 0);
	ASSERT_EQ(c->resumed, 1);
	cqd_client_set_orphan(cl, true);
	cqd_client_end(cl);
	ASSERT_EQ(c->orphans, 0);
	ASSERT_EQ(c->clients, 1);
	rig_stop(&r);
}

/* A snapshot in small steps, while pages come and go, and what is heard meanwhile. */
TEST(a_snapshot_misses_nothing)
{
	struct cqp_key first, keys[KEYS];
	struct cqd_notice n;
	struct heard h;
	struct rig r;
	uint32_t cursor = 0, i, turns = 0;

	small_pool(&r, &h);
	cqd_store_watch(r.st, NULL, NULL);
	first = leaf(&r, &r.root, 0);
	for (i = 1; i < 7; i++)
		leaf(&r, &first, i);
	cqd_store_watch(r.st, on_notice, &h);
	while (cursor != UINT32_MAX) {
		if (cqd_store_resident(r.st, r.ns, &cursor, 1, &n)) {
			ASSERT_EQ(n.kind, CQD_NOTICE_RESIDENT);
			know(&h, &n.key, true);
		}
		if (turns++ < 6)
			leaf(&r, &first, 30 + turns);
		if (turns == 3)
			ASSERT(cqd_evict_one(r.st, NULL, NULL));
	}
	for (i = 0, cursor = 0; cursor != UINT32_MAX;)
		if (cqd_store_resident(r.st, NULL, &cursor, 100, &n))
			keys[i++] = n.key;
	ASSERT_EQ(i, h.n_known);
	while (i)
		know(&h, &keys[--i], false);
	ASSERT_EQ(h.n_known, 0);
	/* of another namespace: nothing */
	cursor = 0;
	ASSERT(!cqd_store_resident(r.st, (void *)&r, &cursor, UINT32_MAX, &n));
	ASSERT_EQ(cursor, UINT32_MAX);
	rig_stop(&r);
}

TEST(histogram)
{
	static const uint64_t bounds[] = { 10, 20 };
	struct cqd_hist h = { .sum = 0 };

	cqd_hist_add(&h, bounds, 2, 0);
	cqd_hist_add(&h, bounds, 2, 10);
	cqd_hist_add(&h, bounds, 2, 11);
	cqd_hist_add(&h, bounds, 2, 21);
	ASSERT_EQ(h.n[0], 2);
	ASSERT_EQ(h.n[1], 1);
	ASSERT_EQ(h.n[2], 1);
	ASSERT_EQ(h.sum, 42);
}
