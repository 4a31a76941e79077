// SPDX-License-Identifier: MIT
/*
 * A second store over the descriptors that the first one pushed, as after
 * SIGKILL: whole, damaged in every record, with descriptors missing.
 */
#include "tests/unit/store_rig.h"

#define PAGES 5

struct before {
	struct rig r;
	struct cqp_key keys[PAGES];
	struct cqp_page pages[PAGES], sink;
	uint8_t boot_id[16];
	uint64_t session;
};

static struct cqd_stats stats(struct rig *r)
{
	struct cqd_stats s;

	cqd_store_stats(r->st, &s);
	return s;
}

/* A chain of five; client 100 keeps pins on the last page (2) and the second. */
static void run_before(struct before *b)
{
	struct cqp_page got[PAGES];
	bool filling;
	struct rig *r = &b->r;

	mgr_start();
	rig_defaults(r);
	r->o.push_fds = true;
	rig_start(r);
	rig_chain(r, 1, PAGES, b->keys, b->pages);
	ASSERT_EQ(cqd_lookup(r->cl, r->sh, b->keys, PAGES, true, got, &b->sink, &filling,
			     &r->err), PAGES);
	ASSERT_EQ(cqd_release(r->cl, &b->pages[0], 1, &r->err), 0);
	ASSERT_EQ(cqd_release(r->cl, &b->pages[2], 2, &r->err), 0);
	memcpy(b->boot_id, cqd_store_boot_id(r->st), 16);
	b->session = cqd_client_session(r->cl);
	rig_close(r);
	mgr_sync();
}

/* The next daemon, without having opened anything yet. */
static void run_after(struct before *b)
{
	struct rig *r = &b->r;

	if (rig_open(r))
		FAIL("%s", r->err.text);
	r->cl = NULL;
}

static void run_end(struct before *b)
{
	rig_stop(&b->r);
	mgr_stop();
}

/* Back into its session, with the model open. */
static void resume(struct before *b)
{
	static const struct cqp_shard all;
	struct rig *r = &b->r;

	rig_ns(r);
	r->cl = cqd_client_resume(r->st, r->ns, b->session, 100, 7);
	ASSERT(r->cl);
	ASSERT_EQ(cqd_shard_get(r->cl, "m", &all, &r->sh, &r->info, &r->err), 0);
	ASSERT_MEMEQ(&r->root, &r->info.root, sizeof(r->root));
}

static int mgr_find(const char *start)
{
	unsigned int i;

	for (i = 0; i < mgr.n; i++)
		if (!strncmp(mgr.names[i], start, strlen(start)))
			return (int)i;
	return -1;
}

/* Waits until the manager's thread has seen everything. */
static unsigned int mgr_settled(const char *start)
{
	unsigned int i, n = 0;
	int tries;

	for (tries = 0; tries < 50; tries++) {
		usleep(2000);
		pthread_mutex_lock(&mgr.lock);
		for (i = 0, n = 0; i < mgr.n; i++)
			n += !strncmp(mgr.names[i], start, strlen(start));
		pthread_mutex_unlock(&mgr.lock);
	}
	return n;
}

/* The index as the manager holds it. */
static struct cqp_index_hdr *map_index(void)
{
	int i = mgr_find("cq-index");
	struct cqp_index_hdr h, *p;

	ASSERT_GE(i, 0);
	ASSERT_EQ(pread(mgr.fds[i], &h, sizeof(h), 0), (ssize_t)sizeof(h));
	p = mmap(NULL, h.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, mgr.fds[i], 0);
	ASSERT(p != MAP_FAILED);
	return p;
}

static void *table(struct cqp_index_hdr *h, uint64_t off)
{
	return (uint8_t *)h + off;
}

/* Page record of depth @depth. */
static struct cqp_rec_page *page_rec(struct cqp_index_hdr *h, uint32_t depth)
{
	struct cqp_rec_page *p = table(h, h->off_pages);
	uint32_t i;

	for (i = 0; i < h->n_pages; i++)
		if (CQP_WORD_STATE(p[i].word) == CQP_SEALED && p[i].depth == depth)
			return &p[i];
	FAIL("no page of depth %u", depth);
}

/* The parents that a watcher is told of: the root key once it was asked for. */
static void resident(struct rig *r, bool root)
{
	struct cqd_notice n;
	uint32_t cursor = 0;
	unsigned int seen = 0;

	while (cqd_store_resident(r->st, NULL, &cursor, 4096, &n)) {
		ASSERT_EQ(n.has_parent, n.depth || root);
		seen++;
	}
	ASSERT_EQ(seen, PAGES);
}

TEST(everything_is_there_again)
{
	struct cqp_page got[PAGES], sink;
	struct cqd_stats s;
	struct before b;
	bool filling;
	struct rig *r = &b.r;

	run_before(&b);
	run_after(&b);
	ASSERT_STREQ(r->err.text, "");
	ASSERT_MEMEQ(cqd_store_boot_id(r->st), b.boot_id, 16);
	s = stats(r);
	ASSERT_EQ(s.pages_sealed, PAGES);
	ASSERT_EQ(s.pages_pinned, 2);
	ASSERT_EQ(s.clients, 1);
	ASSERT_EQ(s.orphans, 1);
	ASSERT_EQ(s.fdstore, 5);	/* index, state, model, codes, sinks */
	ASSERT_EQ(s.verify_pending, PAGES);
	/* Pinned by an orphan: nothing may go. */
	ASSERT(!cqd_evict_one(r->st, NULL, NULL));
	resident(r, false);
	resume(&b);
	resident(r, true);
	ASSERT_EQ(cqd_lookup(r->cl, r->sh, b.keys, PAGES, false, got, &sink, &filling,
			     &r->err), PAGES);
	ASSERT_MEMEQ(got, b.pages, sizeof(got));
	ASSERT_MEMEQ(&sink, &b.sink, sizeof(sink));
	while (stats(r).verify_pending)
		uv_run(&r->loop, UV_RUN_ONCE);
	ASSERT_EQ(stats(r).checksum_failures, 0);
	/* Two pins on the last page, one on the second. */
	ASSERT_EQ(cqd_release(r->cl, &b.pages[4], 1, &r->err), 0);
	ASSERT_EQ(cqd_release(r->cl, &b.pages[4], 1, &r->err), 0);
	ASSERT_EQ(cqd_release(r->cl, &b.pages[4], 1, &r->err), -EINVAL);
	ASSERT_EQ(cqd_release(r->cl, &b.pages[1], 1, &r->err), 0);
	/* And it goes on working. */
	ASSERT_EQ(cqd_arena_offer(r->cl, r->sh, r->arena_fd, RIG_ARENA, &r->arena_id,
				  &r->err), 0);
	ASSERT_EQ(rig_seal(r, r->cl, r->arena_id, &b.keys[4], 99).ret, 0);
	run_end(&b);
}

TEST(ending_the_orphan_frees_its_pins)
{
	struct before b;

	run_before(&b);
	run_after(&b);
	cqd_client_end(list_first(&b.r.st->clients, struct cqd_client, node));
	ASSERT_EQ(stats(&b.r).pages_pinned, 0);
	ASSERT_EQ(stats(&b.r).pages_sealed, PAGES);
	run_end(&b);
}

TEST(three_restarts_in_a_row)
{
	struct before b;
	int i;

	run_before(&b);
	for (i = 0; i < 3; i++) {
		run_after(&b);
		ASSERT_EQ(stats(&b.r).pages_sealed, PAGES);
		ASSERT_EQ(stats(&b.r).fdstore, 5);
		rig_close(&b.r);
	}
	run_after(&b);
	resume(&b);
	ASSERT_EQ(rig_resident(&b.r, b.keys, PAGES), PAGES);
	run_end(&b);
}

/* What was in the making is free, and its slot is clean. */
TEST(half_made_pages_are_free)
{
	static const unsigned int states[] = { CQP_FILLING, CQP_EVICTING,
					       CQP_QUARANTINED, 77 };
	struct cqp_index_hdr *h;
	struct cqp_rec_page *p;
	struct before b;
	unsigned int i;

	run_before(&b);
	h = map_index();
	for (i = 0; i < ARRAY_SIZE(states); i++) {
		p = page_rec(h, PAGES - 1 - i);
		p->word = CQP_WORD(CQP_WORD_GEN(p->word), states[i]);
	}
	run_after(&b);
	ASSERT_EQ(stats(&b.r).pages_sealed, 1);
	ASSERT_EQ(stats(&b.r).pages_pinned, 0);
	ASSERT_EQ(stats(&b.r).pool_used, b.r.sh ? 12288 + 8192 : 0);
	run_end(&b);
}

/* Killed in mid-seal: the pin of a page that never was is no damage. */
TEST(a_seal_that_died_is_not_worth_a_word)
{
	struct cqp_rec_page *p;
	struct before b;

	run_before(&b);
	p = page_rec(map_index(), PAGES - 1);
	p->word = CQP_WORD(CQP_WORD_GEN(p->word), CQP_FILLING);
	run_after(&b);
	ASSERT_STREQ(b.r.err.text, "");
	ASSERT_EQ(stats(&b.r).pages_sealed, PAGES - 1);
	run_end(&b);
}

/* Died after the record's word and before the slot's: the page is whole. */
TEST(publication_is_finished)
{
	struct cqp_index_hdr *h;
	struct cqp_rec_segment *segs;
	struct cqp_rec_page *p;
	struct before b;
	uint64_t word;
	int state;
	off_t at;

	run_before(&b);
	h = map_index();
	p = page_rec(h, 4);
	segs = table(h, h->off_segments);
	state = mgr.fds[mgr_find("cq-state")];
	at = (off_t)(segs[p->segment].word_base + p->slot) * 8;
	ASSERT_EQ(pread(state, &word, 8, at), 8);
	word = CQP_WORD(CQP_WORD_GEN(word), CQP_FILLING);
	ASSERT_EQ(pwrite(state, &word, 8, at), 8);
	run_after(&b);
	ASSERT_EQ(stats(&b.r).pages_sealed, PAGES);
	ASSERT_EQ(pread(state, &word, 8, at), 8);
	ASSERT_EQ(word, b.pages[4].word);
	run_end(&b);
}

/* A segment that was given back leaves neither record nor descriptor. */
TEST(retired_segments_do_not_come_back)
{
	struct before b;

	run_before(&b);
	run_after(&b);
	b.r.st->empty_ms = 0;
	cqd_client_end(list_first(&b.r.st->clients, struct cqd_client, node));
	while (cqd_evict_one(b.r.st, NULL, NULL))
		;
	cqd_segment_tick(b.r.st);
	while (stats(&b.r).pool_reserved)
		uv_run(&b.r.loop, UV_RUN_ONCE);
	ASSERT_EQ(mgr_settled("cq-seg-"), 0);
	rig_close(&b.r);
	run_after(&b);
	ASSERT_STREQ(b.r.err.text, "");
	ASSERT_EQ(stats(&b.r).pool_reserved, 0);
	run_end(&b);
}

/* --- damaged records: each loses what hangs on it, and no more --- */

struct damage {
	const char *what;
	void (*hurt)(struct cqp_index_hdr *h);
	unsigned int left;	/* pages that hold */
};

static void bad_slot(struct cqp_index_hdr *h)
{
	page_rec(h, 3)->slot = 0x7fffffff;
}

static void bad_segment(struct cqp_index_hdr *h)
{
	page_rec(h, 3)->segment = 12345678;
}

static void stolen_slot(struct cqp_index_hdr *h)
{
	page_rec(h, 4)->slot = page_rec(h, 0)->slot;
}

static void old_generation(struct cqp_index_hdr *h)
{
	page_rec(h, 2)->slot_gen--;
}

static void bad_parent(struct cqp_index_hdr *h)
{
	page_rec(h, 2)->parent = 0xfffffff0;
}

static void own_parent(struct cqp_index_hdr *h)
{
	struct cqp_rec_page *all = table(h, h->off_pages), *p = page_rec(h, 2);

	p->parent = (uint32_t)(p - all);
}

static void deep(struct cqp_index_hdr *h)
{
	page_rec(h, 3)->depth = 0xffffffff;
}

static void no_parent(struct cqp_index_hdr *h)
{
	page_rec(h, 3)->parent = CQP_NONE;
}

static void same_key(struct cqp_index_hdr *h)
{
	memcpy(page_rec(h, 4)->key, page_rec(h, 1)->key, 32);
}

static void no_sink(struct cqp_index_hdr *h)
{
	page_rec(h, 0)->sink_segment = CQP_NONE;
}

static void sink_on_page_1(struct cqp_index_hdr *h)
{
	page_rec(h, 1)->sink_segment = page_rec(h, 0)->sink_segment;
}

static void seg_words(struct cqp_index_hdr *h)
{
	struct cqp_rec_segment *s = table(h, h->off_segments);

	s[page_rec(h, 0)->segment].word_base = UINT64_MAX - 2;
}

static void seg_overlap(struct cqp_index_hdr *h)
{
	struct cqp_rec_segment *s = table(h, h->off_segments);
	struct cqp_rec_page *p = page_rec(h, 0);

	s[MAX(p->segment, p->sink_segment)].word_base =
		s[MIN(p->segment, p->sink_segment)].word_base;
}

static void seg_slots(struct cqp_index_hdr *h)
{
	struct cqp_rec_segment *s = table(h, h->off_segments);

	s[page_rec(h, 0)->segment].slots = 0xffffffff;
}

static void seg_zero(struct cqp_index_hdr *h)
{
	struct cqp_rec_segment *s = table(h, h->off_segments);

	s[page_rec(h, 0)->segment].slot_bytes = 0;
}

static void seg_range(struct cqp_index_hdr *h)
{
	struct cqp_rec_segment *s = table(h, h->off_segments);

	s[page_rec(h, 0)->segment].layer_end = 1000;
}

static void seg_id(struct cqp_index_hdr *h)
{
	struct cqp_rec_segment *s = table(h, h->off_segments);

	s[page_rec(h, 0)->segment].id++;
}

static void model_hash(struct cqp_index_hdr *h)
{
	struct cqp_rec_model *m = table(h, h->off_models);

	m->hash[5] ^= 1;
}

static void ns_name(struct cqp_index_hdr *h)
{
	struct cqp_rec_namespace *n = table(h, h->off_namespaces);

	memset(n->name, 'x', sizeof(n->name));
}

static void ns_words(struct cqp_index_hdr *h)
{
	struct cqp_rec_namespace *n = table(h, h->off_namespaces);

	n->state_words = UINT64_MAX / 8;
}

static void low_mark(struct cqp_index_hdr *h)
{
	h->high_pages = 2;
}

static const struct damage damages[] = {
	{ "high mark too low", low_mark, 2 },
	{ "slot out of range", bad_slot, 3 },
	{ "segment out of range", bad_segment, 3 },
	{ "slot of another page", stolen_slot, 0 },
	{ "generation", old_generation, 2 },
	{ "parent out of range", bad_parent, 2 },
	{ "its own parent", own_parent, 2 },
	{ "depth out of range", deep, 3 },
	{ "no parent but depth", no_parent, 3 },
	{ "key twice", same_key, 0 },
	{ "sink missing", no_sink, 0 },
	{ "sink on page 1", sink_on_page_1, 1 },
	{ "words out of range", seg_words, 0 },
	{ "words twice", seg_overlap, 0 },
	{ "slots out of range", seg_slots, 0 },
	{ "slot size 0", seg_zero, 0 },
	{ "layers out of range", seg_range, 0 },
	{ "segment of another fd", seg_id, 0 },
	{ "model of another file", model_hash, 0 },
	{ "namespace without end", ns_name, 0 },
	{ "state words out of range", ns_words, 0 },
};

static void one_damage(const struct damage *d)
{
	struct cqp_index_hdr *h;
	struct before b;
	uint64_t got;

	run_before(&b);
	h = map_index();
	d->hurt(h);
	run_after(&b);
	got = stats(&b.r).pages_sealed;
	/* Two records that claim one thing: the first looked at wins. */
	if (d->left ? got != d->left : got >= PAGES)
		FAIL("%s: %llu pages left, want %u", d->what, (unsigned long long)got,
		     d->left);
	ASSERT_STRHAS(b.r.err.text, "did not fit together");
	/* And what was cleared stays cleared. */
	rig_close(&b.r);
	run_after(&b);
	ASSERT_EQ(stats(&b.r).pages_sealed, got);
	run_end(&b);
	munmap(h, h->bytes);
}

/* A count that no client can have is no pin. */
TEST(pins_out_of_range)
{
	static const uint64_t counts[] = { 0, 1ull << 32, UINT64_MAX };
	struct cqp_index_hdr *h;
	struct cqp_rec_pin *pins;
	struct before b;
	unsigned int i;

	run_before(&b);
	h = map_index();
	pins = table(h, h->off_pins);
	for (i = 0; i < h->high_pins; i++)
		pins[i].count = counts[i % ARRAY_SIZE(counts)];
	run_after(&b);
	ASSERT_EQ(stats(&b.r).pages_pinned, 0);
	ASSERT_EQ(stats(&b.r).pages_sealed, PAGES);
	ASSERT_EQ(b.r.st->ix.t_pins.used, 0);
	run_end(&b);
}

/* Two segments cannot have one range of words: one of them goes. */
TEST(overlapping_words)
{
	struct cqp_index_hdr *h;
	struct before b;
	unsigned int i, n = 0;

	run_before(&b);
	h = map_index();
	seg_overlap(h);
	run_after(&b);
	for (i = 0; i < CQD_MAX_SEGMENTS; i++)
		n += !!b.r.st->segs[i];
	ASSERT_EQ(n, 1);
	ASSERT_EQ(mgr_settled("cq-seg-"), 1);
	run_end(&b);
}

TEST(high_marks_out_of_range)
{
	struct cqp_index_hdr *h;
	struct before b;

	run_before(&b);
	h = map_index();
	h->high_pages = 0xffffffff;
	h->high_pins = 0xfffffffe;
	h->high_clients = 0x80000000;
	run_after(&b);
	ASSERT_EQ(stats(&b.r).pages_sealed, PAGES);
	ASSERT_EQ(stats(&b.r).pages_pinned, 2);
	run_end(&b);
}

static void in_child(void (*fn)(const struct damage *), const struct damage *d)
{
	pid_t pid = fork();
	int status;

	ASSERT_GE(pid, 0);
	if (!pid) {
		fn(d);
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	if (status)
		FAIL("%s: status %#x", d->what, (unsigned int)status);
}

TEST(damaged_records)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(damages); i++)
		in_child(one_damage, &damages[i]);
}

/* Any byte of the index may be anything: never a crash, never a bad answer. */
static void one_noise(const struct damage *d)
{
	uint64_t rng = (uint64_t)(uintptr_t)d->hurt * 0x9e3779b97f4a7c15ull + 1, off, n;
	struct cqp_index_hdr *h;
	struct before b;
	unsigned int i;

	run_before(&b);
	h = map_index();
	for (i = 0; i < 60; i++) {
		rng = rng * 6364136223846793005ull + 1442695040888963407ull;
		n = (rng >> 20) % 6;
		off = n == 0 ? h->off_namespaces : n == 1 ? h->off_models :
		      n == 2 ? h->off_segments : n == 3 ? h->off_clients :
		      n == 4 ? h->off_pages : h->off_pins;
		/* the first records of each table are the ones in use */
		((uint8_t *)h)[off + (rng >> 40) % 640] ^= (uint8_t)(1u << (rng >> 60) % 8);
	}
	run_after(&b);
	for (i = 0; i < 20; i++)
		uv_run(&b.r.loop, UV_RUN_NOWAIT);
	while (cqd_evict_one(b.r.st, NULL, NULL))
		;
	while (!list_empty(&b.r.st->clients))
		cqd_client_end(list_first(&b.r.st->clients, struct cqd_client, node));
	ASSERT_EQ(stats(&b.r).pages_pinned, 0);
	run_end(&b);
	munmap(h, h->bytes);
}

TEST_LIMIT(noise_in_records, 120)
{
	struct damage d = { .what = "noise" };
	uintptr_t i;

	for (i = 1; i <= 40; i++) {
		d.hurt = (void (*)(struct cqp_index_hdr *))i;
		in_child(one_noise, &d);
	}
}

/* --- descriptors --- */

TEST(lost_segment_takes_its_pages)
{
	struct before b;
	unsigned int i;

	run_before(&b);
	/* the sinks' or the codes': either way the chain is gone from page 0 */
	i = (unsigned int)mgr_find("cq-seg-");
	mgr_drop(i);
	run_after(&b);
	ASSERT_EQ(stats(&b.r).pages_sealed, 0);
	ASSERT_EQ(stats(&b.r).pages_pinned, 0);
	ASSERT_EQ(stats(&b.r).pool_used, 0);
	ASSERT_EQ(stats(&b.r).clients, 1);
	ASSERT_STRHAS(b.r.err.text, "did not fit together");
	run_end(&b);
}

TEST(lost_state_words_take_the_namespace)
{
	struct before b;

	run_before(&b);
	mgr_drop((unsigned int)mgr_find("cq-state-"));
	run_after(&b);
	ASSERT_EQ(stats(&b.r).pages_sealed, 0);
	/* Nobody resumes a session whose words it can no longer read. */
	ASSERT_EQ(stats(&b.r).clients, 0);
	ASSERT_EQ(mgr_settled("cq-seg-"), 0);
	ASSERT_EQ(mgr_settled("cq-model-"), 1);
	run_end(&b);
}

TEST(lost_model_takes_its_segments)
{
	struct before b;

	run_before(&b);
	mgr_drop((unsigned int)mgr_find("cq-model-"));
	run_after(&b);
	ASSERT_EQ(stats(&b.r).pages_sealed, 0);
	ASSERT_EQ(mgr_settled("cq-seg-"), 0);
	ASSERT_EQ(stats(&b.r).clients, 1);
	run_end(&b);
}

TEST(lost_index_starts_afresh)
{
	struct before b;

	run_before(&b);
	mgr_drop((unsigned int)mgr_find("cq-index"));
	run_after(&b);
	ASSERT_STRHAS(b.r.err.text, "holds no index");
	ASSERT(memcmp(cqd_store_boot_id(b.r.st), b.boot_id, 16));
	ASSERT_EQ(mgr_settled("cq-seg-"), 0);
	ASSERT_EQ(mgr_settled("cq-index"), 1);
	ASSERT_EQ(mgr_settled("cq-"), 1);
	run_end(&b);
}

static void drops_all(void (*hurt)(struct cqp_index_hdr *h), const char *text)
{
	struct cqp_index_hdr *h;
	struct before b;

	run_before(&b);
	h = map_index();
	hurt(h);
	run_after(&b);
	ASSERT_STRHAS(b.r.err.text, text);
	ASSERT(!strchr(b.r.err.text, '\n'));
	ASSERT_EQ(stats(&b.r).pages_sealed, 0);
	ASSERT_EQ(mgr_settled("cq-"), 1);
	/* once: the next start finds a good index */
	rig_close(&b.r);
	run_after(&b);
	ASSERT_STREQ(b.r.err.text, "");
	run_end(&b);
}

static void next_version(struct cqp_index_hdr *h)
{
	h->version++;
}

static void feature(struct cqp_index_hdr *h)
{
	h->incompat = 4;
}

static void counts(struct cqp_index_hdr *h)
{
	h->n_pages += 100000;
}

static void offset(struct cqp_index_hdr *h)
{
	h->off_pins = h->off_pages;
}

static void magic(struct cqp_index_hdr *h)
{
	h->magic = 0;
}

TEST(unknown_version)
{
	drops_all(next_version, "has version 3");
}

TEST(unknown_feature)
{
	drops_all(feature, "features 0x4");
}

TEST(damaged_counts)
{
	drops_all(counts, "is damaged");
}

TEST(damaged_offsets)
{
	drops_all(offset, "is damaged");
}

TEST(no_magic)
{
	drops_all(magic, "not an index of cq");
}

TEST(strangers_in_the_fd_store)
{
	struct before b;
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	run_before(&b);
	mgr.fds[mgr.n] = null;
	mgr.names[mgr.n++] = strdup("stranger");
	/* a second index: which of two of a name is meant, nobody knows */
	mgr.fds[mgr.n] = fcntl(null, F_DUPFD_CLOEXEC, 3);
	mgr.names[mgr.n++] = strdup("cq-index");
	run_after(&b);
	ASSERT_EQ(stats(&b.r).pages_sealed, PAGES);
	ASSERT_EQ(mgr_settled("stranger"), 0);
	run_end(&b);
}

/* --- checksums --- */

static void flip(const char *seg, off_t at)
{
	uint8_t c;
	int fd;

	mgr_sync();
	fd = mgr.fds[mgr_find(seg)];
	ASSERT_EQ(pread(fd, &c, 1, at), 1);
	c ^= 1;
	ASSERT_EQ(pwrite(fd, &c, 1, at), 1);
}

static void on_verify(void *arg, uint64_t checked, uint64_t failed, uint64_t bytes)
{
	struct rig_wait *w = arg;

	w->done = true;
	w->checked = checked;
	w->failed = failed;
}

/* Page 2 is bad: 2, 3 and 4 go; the pinned last one is quarantined first. */
TEST(background_verification_drops_descendants)
{
	struct cqp_page got[PAGES], sink;
	struct before b;
	bool filling;
	char seg[32];
	struct rig *r = &b.r;

	run_before(&b);
	snprintf(seg, sizeof(seg), "cq-seg-%u", b.pages[2].segment);
	flip(seg, b.pages[2].slot * 12288 + 64 + 8191);
	run_after(&b);
	resume(&b);
	/* served before it was looked at */
	ASSERT_EQ(rig_resident(r, b.keys, PAGES), PAGES);
	while (stats(r).verify_pending)
		uv_run(&r->loop, UV_RUN_ONCE);
	ASSERT_EQ(stats(r).checksum_failures, 1);
	ASSERT_EQ(cqd_lookup(r->cl, r->sh, b.keys, PAGES, false, got, &sink, &filling,
			     &r->err), 2);
	ASSERT_EQ(stats(r).pages_sealed, 2);
	/* two pins on the last page: its slot is not used before both are gone */
	ASSERT_EQ(r->st->n_state[CQP_QUARANTINED], 1);
	ASSERT_EQ(cqd_release(r->cl, &b.pages[4], 1, &r->err), 0);
	ASSERT_EQ(r->st->n_state[CQP_QUARANTINED], 1);
	ASSERT_EQ(cqd_release(r->cl, &b.pages[4], 1, &r->err), 0);
	ASSERT_EQ(r->st->n_state[CQP_QUARANTINED], 0);
	run_end(&b);
}

TEST(verify_all)
{
	struct rig_wait w = { 0 };
	struct before b;
	char seg[32];

	run_before(&b);
	run_after(&b);
	resume(&b);
	ASSERT_EQ(cqd_verify(b.r.st, on_verify, &w), 0);
	rig_run(&b.r, &w.done);
	ASSERT_EQ(w.checked, PAGES);
	ASSERT_EQ(w.failed, 0);
	/* the sinks of page 0 */
	snprintf(seg, sizeof(seg), "cq-seg-%u", b.sink.segment);
	flip(seg, b.sink.slot * 8192 + 64);
	w.done = false;
	ASSERT_EQ(cqd_verify(b.r.st, on_verify, &w), 0);
	rig_run(&b.r, &w.done);
	ASSERT_EQ(w.failed, 1);
	ASSERT_EQ(stats(&b.r).pages_sealed, 0);
	ASSERT_EQ(rig_resident(&b.r, b.keys, PAGES), 0);
	run_end(&b);
}

/* A model whose descriptor was not confirmed is not left behind under its name. */
TEST(a_late_answer_leaves_no_model_behind)
{
	struct image im = rig_model();
	unsigned int i;
	struct rig r;

	rig_defaults(&r);
	r.o.push_fds = true;
	mgr_start();
	rig_start(&r);
	mgr_mute(true);
	ASSERT_EQ(rig_load(&r, "n", im.buf, im.size).ret, -ETIMEDOUT);
	mgr_mute(false);
	mgr_sync();
	for (i = 0; i < mgr.n; i++)
		ASSERT(strcmp(mgr.names[i], "cq-model-1"));
	free(im.buf);
	rig_stop(&r);
	mgr_stop();
}

/* No manager, no confirmation: no pages. */
TEST(no_page_without_the_fd_store)
{
	struct image im = rig_model();
	struct rig r;

	rig_defaults(&r);
	ASSERT_EQ(uv_loop_init(&r.loop), 0);
	r.o.push_fds = true;
	unsetenv("NOTIFY_SOCKET");
	ASSERT_EQ(rig_open(&r), -ENOTCONN);
	ASSERT_STRHAS(r.err.text, "cq-index");
	ASSERT_EQ(uv_loop_close(&r.loop), 0);
	uv_library_shutdown();
	free(im.buf);
}
