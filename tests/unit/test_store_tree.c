// SPDX-License-Identifier: MIT
/*
 * Pages after a restart whose records lie in any order: most of them before those
 * of their parents, with free ones in between.
 */
#include "tests/unit/store_rig.h"
#include "tests/store_check.h"

#define PAGES	100
#define HOLES	37		/* records between them that are free */
#define RECORDS	(PAGES + HOLES)

static struct rig r;
static struct cqp_key keys[PAGES];
static struct cqp_page pages[PAGES];

/* The index as the manager holds it. */
static struct cqp_index_hdr *map_index(void)
{
	struct cqp_index_hdr h, *p;
	unsigned int i;

	for (i = 0; i < mgr.n && strcmp(mgr.names[i], "cq-index"); i++)
		;
	ASSERT_LT(i, mgr.n);
	ASSERT_EQ(pread(mgr.fds[i], &h, sizeof(h), 0), (ssize_t)sizeof(h));
	p = mmap(NULL, h.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, mgr.fds[i], 0);
	ASSERT(p != MAP_FAILED);
	return p;
}

static struct cqp_rec_page *records(struct cqp_index_hdr *h)
{
	return (void *)((uint8_t *)h + h->off_pages);
}

/* A text of PAGES pages, without pins; then its daemon is gone. */
static void before(void)
{
	mgr_start();
	rig_defaults(&r);
	r.o.push_fds = true;
	rig_start(&r);
	rig_chain(&r, 1, PAGES, keys, pages);
	cqd_client_end(r.cl);
	rig_close(&r);
	mgr_sync();
}

/* Places of page i: every one of RECORDS at most once. */
static void shuffle(uint32_t *place, uint64_t seed)
{
	uint32_t all[RECORDS], i, j, tmp;

	for (i = 0; i < RECORDS; i++)
		all[i] = i;
	for (i = RECORDS - 1; i; i--) {
		j = (uint32_t)(cqk_random(&seed) % (i + 1));
		tmp = all[i];
		all[i] = all[j];
		all[j] = tmp;
	}
	memcpy(place, all, PAGES * sizeof(*place));
}

/* Moves page i, which has record i, to record place[i]. */
static void move(struct cqp_index_hdr *h, const uint32_t *place)
{
	struct cqp_rec_page *rec = records(h), old[PAGES];
	uint32_t i;

	memcpy(old, rec, sizeof(old));
	memset(rec, 0, RECORDS * sizeof(*rec));
	for (i = 0; i < PAGES; i++) {
		ASSERT_EQ(old[i].depth, i);
		rec[place[i]] = old[i];
		if (i)
			rec[place[i]].parent = place[i - 1];
	}
	h->high_pages = RECORDS;
}

/* Every free record can be had, each once. */
static void all_free(void)
{
	struct cqd_tab *t = &r.st->ix.t_pages;
	uint32_t n = t->n - t->used, i;
	bool *seen = calloc(t->n, sizeof(*seen));

	ASSERT(seen);
	while (n--) {
		i = cqd_tab_get(t);
		ASSERT(i < t->n && !seen[i] && !r.st->pages[i].shard);
		seen[i] = true;
	}
	ASSERT_EQ(cqd_tab_get(t), CQP_NONE);
	free(seen);
}

/* The next daemon finds the first @left pages, and nothing else. */
static void after(uint32_t left)
{
	static const struct cqp_shard all;
	const char *bad;

	if (rig_open(&r))
		FAIL("%s", r.err.text);
	bad = store_check(r.st);
	if (bad)
		FAIL("%s", bad);
	ASSERT_EQ(r.st->n_state[CQP_SEALED], left);
	rig_ns(&r);
	ASSERT_EQ(cqd_client_new(r.st, r.ns, 100, 7, 0, "test", &r.cl, &r.err), 0);
	ASSERT_EQ(cqd_shard_get(r.cl, "m", &all, &r.sh, &r.info, &r.err), 0);
	ASSERT_EQ(rig_resident(&r, keys, PAGES), left);
	all_free();
	rig_stop(&r);
	mgr_stop();
}

TEST(parents_come_later)
{
	uint32_t place[PAGES], i;
	struct cqp_index_hdr *h;

	before();
	for (i = 0; i < PAGES; i++)
		place[i] = PAGES - 1 - i;
	h = map_index();
	move(h, place);
	munmap(h, h->bytes);
	after(PAGES);
}

TEST(any_order)
{
	uint32_t place[PAGES];
	struct cqp_index_hdr *h;

	before();
	shuffle(place, 5);
	h = map_index();
	move(h, place);
	munmap(h, h->bytes);
	after(PAGES);
}

/* What hangs on a page that is not there goes, wherever its records are. */
TEST(one_in_the_middle_is_lost)
{
	uint32_t place[PAGES];
	struct cqp_index_hdr *h;

	before();
	shuffle(place, 6);
	h = map_index();
	move(h, place);
	records(h)[place[41]].slot_gen++;
	munmap(h, h->bytes);
	after(41);
}

/* Of two records with one key the first stays, and the other's children go. */
TEST(a_key_twice)
{
	uint32_t place[PAGES], i;
	struct cqp_index_hdr *h;

	before();
	for (i = 0; i < PAGES; i++)
		place[i] = i + HOLES;
	h = map_index();
	move(h, place);
	memcpy(records(h)[place[70]].key, records(h)[place[20]].key, CQ_KEY_BYTES);
	munmap(h, h->bytes);
	after(70);
}
