/* SPDX-License-Identifier: MIT */
/*
 * Two namespaces on one daemon: the process of one is searched for what
 * belongs to the other, in every byte it maps and every descriptor it holds, and
 * it asks the daemon for it by hand.
 */
#include "proto/index.h"
#include "tests/system/search.h"
#include "tests/system/work.h"

#define RED_TEXT	11
#define BLUE_TEXT	12
#define RED_TOKENS	(64 * 12 + 1)
#define BLUE_TOKENS	(64 * 3 + 1)

static struct sys s;
static const struct synth small = SYNTH_SMALL;

/* Headers of pages: their key, and bytes of the codes behind them. */
static void take_marks(const uint8_t *p, size_t n, const char *where)
{
	struct cq_page_hdr h;
	size_t at;

	if (!strstr(where, "/memfd:"))
		return;
	for (at = 0; at + CQ_SLOT_ALIGN <= n; at += CQ_SLOT_ALIGN) {
		memcpy(&h, p + at, sizeof(h));
		if (h.magic != CQ_PAGE_MAGIC || n_marks + 2 > MAX_MARKS)
			continue;
		add_mark(h.key, sizeof(h.key));
		add_mark(p + at + sizeof(h) + 256, MARK_BYTES);
	}
}

static void red(int fd, void *arg)
{
	struct cq_seq *seq;
	struct work w;

	work_open(&w, &s, &small, 0, 0);
	work_publish(&w, RED_TEXT, RED_TOKENS);
	seq = work_seq(&w, RED_TEXT, RED_TOKENS);
	ASSERT_EQ(cq_seq_length(seq), RED_TOKENS - 1);
	sys_say(fd, 'r');
	sys_hear(fd, 'q');
	cq_seq_close(seq);
	work_close(&w);
}

/* Publishes a text of its own; after the search it asks for red's (and so has
 * computed its keys): that is not there. */
static void blue(int fd, void *arg)
{
	struct cq_seq *seq;
	struct work w;

	work_open(&w, &s, &small, 0, 0);
	work_publish(&w, BLUE_TEXT, BLUE_TOKENS);
	seq = work_seq(&w, BLUE_TEXT, BLUE_TOKENS);
	ASSERT_EQ(cq_seq_length(seq), BLUE_TOKENS - 1);
	sys_say(fd, 'b');
	sys_hear(fd, 'q');
	ASSERT_EQ(work_matched(&w, RED_TEXT, RED_TOKENS), 0);
	cq_seq_close(seq);
	work_close(&w);
}

/* Words of the state memfd that name a page, as process @pid maps them. */
static size_t words_used;

static void count_words(const uint8_t *p, size_t n, const char *where)
{
	uint64_t word;
	size_t i;

	for (i = 0; strstr(where, "/memfd:cq-state") && i + 8 <= n; i += 8) {
		memcpy(&word, p + i, sizeof(word));
		words_used += CQP_WORD_STATE(word) != CQP_FREE;
	}
}

static size_t state_words(pid_t pid)
{
	words_used = 0;
	each_byte(pid, count_words);
	return words_used;
}

TEST_LIMIT(nothing_of_the_other_namespace, 60)
{
	size_t red_pages = RED_TOKENS / 64, blue_pages = BLUE_TOKENS / 64, bytes;
	struct sys_peer a, b;

	if (!sys_root())
		SKIP("not root: namespaces are told apart by uid");
	if (getenv("SANITIZE") && strstr(getenv("SANITIZE"), "thread"))
		SKIP("reading all of TSan's shadow takes longer than the others wait");
	sys_start(&s, NULL);
	/* both are forked before this process learns any mark */
	sys_spawn(&b, SYS_UID_C, blue, NULL);
	sys_hear(b.fd, 'b');
	sys_spawn(&a, SYS_UID_A, red, NULL);
	sys_hear(a.fd, 'r');
	each_byte(a.pid, take_marks);
	/* key and codes of each page, and of the sink object */
	ASSERT_GE(n_marks, 2 * red_pages);
	ASSERT_GT(each_byte(a.pid, search), 1 << 20);
	ASSERT_GE(n_found, n_marks);	/* the search does find what is there */
	n_found = 0;
	bytes = each_byte(b.pid, search);
	ASSERT_GT(bytes, 1 << 20);
	bytes = each_file(b.pid, search);
	ASSERT_GT(bytes, blue_pages * 8192);
	ASSERT_EQ(n_found, 0);
	/* counts: its pages and its sink object, no word more */
	ASSERT_EQ(state_words(b.pid), blue_pages + 1);
	ASSERT_EQ(state_words(a.pid), red_pages + 1);
	sys_say(a.fd, 'q');
	sys_say(b.fd, 'q');
	sys_join(&a);
	sys_join(&b);
	sys_stop(&s);
}

/* --- by hand --- */

static struct cqp_key red_key[4];
static struct cqp_page red_page[4];

static int segment_code(int fd, uint32_t segment)
{
	Cqp__SegmentGet body = CQP__SEGMENT_GET__INIT;
	DECLARE_MSG(msg, SEGMENT_GET, segment_get, body);

	body.segment = segment;
	return wire_code(wire_call(fd, &msg, NULL, 0, NULL));
}

static int release_code(int fd, struct cqp_page page)
{
	Cqp__Release body = CQP__RELEASE__INIT;
	DECLARE_MSG(msg, RELEASE, release, body);

	body.pages = (ProtobufCBinaryData){ sizeof(page), (uint8_t *)&page };
	return wire_code(wire_call(fd, &msg, NULL, 0, NULL));
}

/* Knows red's keys and places, as if they had leaked: they open nothing. */
static void blue_by_hand(int fd, void *arg)
{
	struct wire_shard w = { 0 };
	struct cqp_page page;
	uint32_t ids[CQ_PAGE_TOKENS], i;
	struct cqp_key key;
	int sock = wire_open(s.sock);

	ASSERT_OK(sock);
	ASSERT_OK(wire_model_open(sock, "tiny", &w));
	ASSERT_OK(wire_arena(sock, &w, 1 << 20));
	ASSERT_EQ(wire_lookup(sock, w.shard, red_key, 4), 0);
	for (i = 0; i < 64; i++)
		ASSERT_EQ(segment_code(sock, i), -ENOENT);
	for (i = 0; i < 4; i++) {
		ASSERT_EQ(segment_code(sock, red_page[i].segment), -ENOENT);
		ASSERT_EQ(release_code(sock, red_page[i]), -EINVAL);
	}
	synth_ids(ids, CQ_PAGE_TOKENS, 99);
	/* a page behind one of red's would tell that it is there */
	ASSERT_EQ(wire_seal(sock, &w, red_key[3], ids, 0, UINT64_MAX, &key, &page), -ENOENT);
	wire_arena_close(&w);
	close(sock);
	sys_say(fd, 'b');
	sys_hear(fd, 'q');
}

/* Under a salt of its own a namespace has keys that no other can compute. */
TEST(keys_and_ids_open_nothing)
{
	static const struct sys_opts salted = { .red = "salt = s3cret" };
	struct wire_shard w = { 0 };
	uint32_t ids[CQ_PAGE_TOKENS], i;
	struct cqp_key parent;
	struct sys_peer b;
	int fd;

	if (!sys_root())
		SKIP("not root: namespaces are told apart by uid");
	sys_start(&s, &salted);
	fd = wire_open(s.sock);
	ASSERT_OK(fd);
	ASSERT_OK(wire_model_open(fd, "tiny", &w));
	ASSERT_OK(wire_arena(fd, &w, 1 << 20));
	parent = w.root;
	for (i = 0; i < 4; i++) {
		synth_ids(ids, CQ_PAGE_TOKENS, i);
		ASSERT_OK(wire_seal(fd, &w, parent, ids, 0, i ? UINT64_MAX : 1 << 19,
				    &red_key[i], &red_page[i]));
		parent = red_key[i];
	}
	ASSERT_EQ(wire_lookup(fd, w.shard, red_key, 4), 4);
	sys_spawn(&b, SYS_UID_C, blue_by_hand, NULL);
	sys_hear(b.fd, 'b');
	sys_say(b.fd, 'q');
	sys_join(&b);
	ASSERT_EQ(wire_lookup(fd, w.shard, red_key, 4), 4);
	wire_arena_close(&w);
	close(fd);
	sys_stop(&s);
}

/* Another salt, after a restart: other keys for the same text. The old ones are
 * none that anybody derives, until that salt is back. */
TEST(another_salt)
{
	static const struct sys_opts one = { .red = "salt = one" }, two = { .red = "salt = two" };
	const struct sys_opts *salt[] = { &one, &two, &one };
	struct wire_shard w = { 0 };
	struct cqp_key root, key[3];
	uint32_t ids[CQ_PAGE_TOKENS];
	struct cqp_page page;
	unsigned int i;
	int fd;

	sys_start(&s, &one);
	synth_ids(ids, CQ_PAGE_TOKENS, RED_TEXT);
	for (i = 0; i < 3; i++) {
		sys_write_conf(&s, salt[i]);
		sys_restart(&s);
		fd = wire_open(s.sock);
		ASSERT_OK(fd);
		ASSERT_OK(wire_model_open(fd, "tiny", &w));
		ASSERT_EQ(cqp_key_page(&key[i], &w.root, ids, NULL, 0), 0);
		/* found only by the third, with the first one's keys */
		ASSERT_EQ(wire_lookup(fd, w.shard, &key[i], 1), i == 2);
		if (i)
			ASSERT_EQ(!memcmp(&w.root, &root, sizeof(root)), i == 2);
		else
			root = w.root;
		ASSERT_OK(wire_arena(fd, &w, 1 << 20));
		ASSERT_OK(wire_seal(fd, &w, w.root, ids, 0, 1 << 19, &key[i], &page));
		wire_arena_close(&w);
		close(fd);
	}
	sys_stop(&s);
}
