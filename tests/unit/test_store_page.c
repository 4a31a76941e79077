// SPDX-License-Identifier: MIT
/* Pages from seal to release, on a real loop with real memfds. */
#include "tests/unit/store_rig.h"

static const uint8_t *slot_of(struct rig *r, const struct cqp_page *p)
{
	struct cqd_segment_info info;
	void *m;

	ASSERT_EQ(cqd_segment_get(r->cl, p->segment, &info), 0);
	ASSERT(p->slot < info.slots);
	m = mmap(NULL, info.bytes, PROT_READ, MAP_SHARED, info.fd, 0);
	ASSERT(m != MAP_FAILED);
	return (const uint8_t *)m + p->slot * info.slot_bytes;
}

static uint64_t word_of(struct rig *r, const struct cqp_page *p)
{
	struct cqd_segment_info info;
	uint64_t word;

	ASSERT_EQ(cqd_segment_get(r->cl, p->segment, &info), 0);
	ASSERT_EQ(pread(r->info.state_fd, &word, 8,
			(off_t)(info.word_base + p->slot) * 8), 8);
	return word;
}

TEST(publish_and_look_up)
{
	struct cqp_page pages[3], got[3], sink;
	struct cqp_key keys[3];
	const uint8_t *slot;
	struct cq_page_hdr h;
	bool filling;
	uint64_t i;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	rig_chain(&r, 1, 3, keys, pages);
	ASSERT_EQ(cqd_lookup(r.cl, r.sh, keys, 3, true, got, &sink, &filling, &r.err), 3);
	ASSERT(!memcmp(got, pages, sizeof(got)));
	ASSERT(sink.segment != CQP_NONE && sink.segment != pages[0].segment);
	ASSERT(!filling);
	for (i = 0; i < 3; i++)
		ASSERT_EQ(word_of(&r, &pages[i]), pages[i].word);
	ASSERT_EQ(CQP_WORD_STATE(pages[0].word), CQP_SEALED);
	slot = slot_of(&r, &pages[1]);
	memcpy(&h, slot, sizeof(h));
	ASSERT_EQ(h.magic, CQ_PAGE_MAGIC);
	ASSERT_EQ(h.kind, CQ_PAGE_CODES);
	ASSERT_EQ(h.payload, r.sh->kind[CQD_CODES].payload);
	ASSERT(!memcmp(h.key, keys[1].b, 16));
	for (i = 0; i < h.payload; i++)
		ASSERT_EQ(slot[64 + i], (uint8_t)(2 + i));
	ASSERT_EQ(cqd_release(r.cl, pages, 3, &r.err), 0);
	ASSERT_EQ(cqd_release(r.cl, &pages[2], 1, &r.err), 0);
	ASSERT_EQ(cqd_release(r.cl, &pages[2], 1, &r.err), -EINVAL);
	rig_stop(&r);
}

/* Keys that are all resident, but not each the parent of the next. */
/* A salt that comes later would give one model two kinds of root keys. */
TEST(salt_of_the_first_time)
{
	static const struct cqp_shard half = { .layer_end = 1 }, all = { 0 };
	struct cqd_ns_opts opts = { .salt = "pepper" };
	struct cqd_shard_info a, b;
	struct cqd_shard *sh;
	struct cqd_ns *plain;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	plain = r.ns;
	opts.salt = NULL;
	ASSERT_EQ(cqd_ns_get(r.st, "other", &opts, &r.ns, &r.err), 0);
	r.cl = rig_client(&r, 101, &r.arena_id);
	ASSERT_EQ(cqd_shard_get(r.cl, "m", &half, &sh, &a, &r.err), 0);
	opts.salt = "pepper";
	ASSERT_EQ(cqd_ns_get(r.st, "tenant", &opts, &plain, &r.err), 0);
	r.ns = plain;
	r.cl = rig_client(&r, 102, &r.arena_id);
	ASSERT_EQ(cqd_shard_get(r.cl, "m", &half, &sh, &b, &r.err), 0);
	ASSERT_MEMEQ(&a.root, &b.root, sizeof(a.root));
	ASSERT_EQ(cqd_shard_get(r.cl, "m", &all, &sh, &b, &r.err), 0);
	ASSERT(memcmp(&a.root, &b.root, sizeof(a.root)));
	rig_stop(&r);
}

TEST(a_gap_ends_the_match)
{
	struct cqp_page pages[3], got[3], sink;
	struct cqp_key keys[3], gap[2];
	bool filling;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	rig_chain(&r, 1, 3, keys, pages);
	gap[0] = keys[0];
	gap[1] = keys[2];
	ASSERT_EQ(cqd_lookup(r.cl, r.sh, gap, 2, false, got, &sink, &filling, &r.err), 1);
	/* from the middle on: no page 0, no sinks */
	ASSERT_EQ(cqd_lookup(r.cl, r.sh, keys + 1, 2, false, got, &sink, &filling,
			     &r.err), 2);
	ASSERT_EQ(sink.segment, CQP_NONE);
	gap[0].b[31] ^= 1;
	ASSERT_EQ(cqd_lookup(r.cl, r.sh, gap, 2, true, got, &sink, &filling, &r.err), 0);
	rig_stop(&r);
}

/* What cqctl lists, by cursor. */
TEST(listings)
{
	static const unsigned int want[] = { 1, 1, 2, 1, 3 };
	struct cqp_page pages[3];
	struct cqp_key keys[3];
	struct cqd_item it;
	uint64_t cursor;
	unsigned int kind, n;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	rig_chain(&r, 1, 3, keys, pages);
	for (kind = 0; kind < ARRAY_SIZE(want); kind++) {
		for (cursor = 0, n = 0; cqd_store_item(r.st, kind, &cursor, &it); n++)
			ASSERT(it.name && it.name[0]);
		ASSERT_EQ(n, want[kind]);
	}
	cursor = 0;
	ASSERT(!cqd_store_item(r.st, 5, &cursor, &it));
	ASSERT(cqd_store_item(r.st, 0, &cursor, &it));
	ASSERT_STREQ(it.name, "m");
	ASSERT_STREQ(it.k, "4c8b");
	ASSERT_EQ(it.pages, 3);
	cursor = 0;
	ASSERT(cqd_store_item(r.st, 1, &cursor, &it));
	ASSERT_STREQ(it.name, "tenant");
	ASSERT_EQ(it.bytes, RIG_ARENA + 3 * 12288 + 8192);
	ASSERT_EQ(it.pins, 3);
	cursor = UINT64_MAX - 1;
	ASSERT(!cqd_store_item(r.st, 4, &cursor, &it));
	rig_stop(&r);
}
