// SPDX-License-Identifier: MIT
/*
 * libcq against a daemon that lies, loses its connections, falls silent or
 * takes pages back: a small server of the test's own, in a process beside it.
 */
#include <endian.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "tests/unit/test_libcq.h"
#include "proto/frame.h"
#include "proto/index.h"
#include "proto/key.h"

#define SLOTS 64u
#define CODES 1u		/* segment ids */
#define SINKS 2u

enum lie {
	HONEST,
	HELLO_VERSION, HELLO_FEATURE, HELLO_BOOT_SHORT, HELLO_WRONG, HELLO_GARBAGE,
	HELLO_CODE_POSITIVE,
	MODEL_NO_FDS, MODEL_BYTES, MODEL_UNSEALED, MODEL_HASH, MODEL_ROOT, STATE_WORDS,
	LOOKUP_MORE, LOOKUP_LENGTH, LOOKUP_SLOT, LOOKUP_SEGMENT, LOOKUP_OTHER_PAGE,
	LOOKUP_WORD, LOOKUP_NO_SINK, LOOKUP_SINK_LENGTH,
	SEG_BYTES, SEG_WORDS, SEG_WORD_WRAP, SEG_SLOT_BYTES, SEG_SLOTS, SEG_NO_FD,
	SEG_UNSEALED, SEG_OTHER_ID,
	SEAL_KEY, SEAL_SLOT, SEAL_PAGE_LENGTH, SEAL_NO_SINK, SEAL_ERROR, SEAL_WRONG,
	SILENT, DROP,
	LIES,
};

/**
 * struct server - shared between test and server process
 * @lie:   enum lie, in force now
 * @after: honest answers to seals before a lie about them
 * @boot:  first byte of the boot id
 * @held:  hold answers to lookups back until it is 0 again
 */
struct server {
	int lie, after, boot, held, resumed;
	int releases, seals, hellos, byes, lookups;
	uint32_t n_pages;
	struct cqp_key keys[SLOTS];
	uint64_t payload, sink_payload, slot_bytes, sink_slot_bytes;
	uint8_t hash[32];
	struct cqp_key root;
	size_t image_bytes;
	int model_fd, state_fd, seg_fd, sink_fd, plain_fd;
	uint64_t *words;
	uint8_t *seg, *sinks;
	char path[100];
	pid_t pid;
};

static struct server *s;
static struct shape shape = SHAPE_SMALL;
static uint32_t ids[2000];

/* --- the server --- */

static int sealed_fd(const char *name, size_t bytes, void **map)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

	ASSERT_SYS(fd);
	ASSERT_SYS(ftruncate(fd, (off_t)bytes));
	*map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT(*map != MAP_FAILED);
	ASSERT_SYS(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
	return fd;
}

static bool lies(enum lie what)
{
	return s->lie == (int)what;
}

static void reply(int sock, uint64_t id, Cqp__Msg *m, const int *fds, unsigned int n)
{
	int ret;

	m->id = id;
	ret = cqp_send(sock, m, fds, n, 0);
	if (ret && ret != -EPIPE)	/* it may have had enough */
		FAIL("send: %s", strerror(-ret));
}

static void reply_error(int sock, uint64_t id, int code, char *text)
{
	Cqp__Error e = CQP__ERROR__INIT;
	Cqp__Msg m = CQP__MSG__INIT;

	e.code = code;
	e.text = text;
	m.body_case = CQP__MSG__BODY_ERROR;
	m.error = &e;
	reply(sock, id, &m, NULL, 0);
}

static void reply_ok(int sock, uint64_t id)
{
	Cqp__Ok ok = CQP__OK__INIT;
	Cqp__Msg m = CQP__MSG__INIT;

	m.body_case = CQP__MSG__BODY_OK;
	m.ok = &ok;
	reply(sock, id, &m, NULL, 0);
}

static void on_hello(int sock, const Cqp__Msg *in)
{
	Cqp__HelloOk ok = CQP__HELLO_OK__INIT;
	Cqp__Msg m = CQP__MSG__INIT;
	uint8_t boot[16] = { (uint8_t)s->boot };
	char tenant[] = "default", text[] = "\033[31mno";

	s->hellos++;
	if (lies(HELLO_GARBAGE)) {
		ASSERT_EQ(send(sock, boot, sizeof(boot), 0), sizeof(boot));
		return;
	}
	if (lies(HELLO_WRONG)) {
		reply_ok(sock, in->id);
		return;
	}
	if (lies(HELLO_CODE_POSITIVE)) {
		reply_error(sock, in->id, 5, text);
		return;
	}
	ok.protocol = CQP_VERSION + lies(HELLO_VERSION);
	ok.incompat = lies(HELLO_FEATURE) ? 1 : 0;
	ok.boot_id.data = boot;
	ok.boot_id.len = lies(HELLO_BOOT_SHORT) ? 15 : 16;
	ok.session = 7;
	ok.tenant = tenant;
	ok.resumed = s->resumed;
	m.body_case = CQP__MSG__BODY_HELLO_OK;
	m.hello_ok = &ok;
	reply(sock, in->id, &m, NULL, 0);
}

static void on_model(int sock, const Cqp__Msg *in)
{
	Cqp__ModelOk ok = CQP__MODEL_OK__INIT;
	Cqp__Msg m = CQP__MSG__INIT;
	uint8_t hash[32], root[32];
	int fds[2] = { lies(MODEL_UNSEALED) ? s->plain_fd : s->model_fd, s->state_fd };

	memcpy(hash, s->hash, 32);
	memcpy(root, s->root.b, 32);
	hash[0] ^= lies(MODEL_HASH);
	ok.shard = 3;
	ok.model_hash.data = hash;
	ok.model_hash.len = 32;
	ok.root_key.data = root;
	ok.root_key.len = lies(MODEL_ROOT) ? 31 : 32;
	ok.model_bytes = s->image_bytes + (lies(MODEL_BYTES) ? 4096 : 0);
	ok.state_words = lies(STATE_WORDS) ? 1ull << 61 : 2 * SLOTS;
	m.body_case = CQP__MSG__BODY_MODEL_OK;
	m.model_ok = &ok;
	reply(sock, in->id, &m, fds, lies(MODEL_NO_FDS) ? 0 : 2);
}

static void on_arena(int sock, const Cqp__Msg *in)
{
	Cqp__ArenaOk ok = CQP__ARENA_OK__INIT;
	Cqp__Msg m = CQP__MSG__INIT;

	ok.arena = 1;
	m.body_case = CQP__MSG__BODY_ARENA_OK;
	m.arena_ok = &ok;
	reply(sock, in->id, &m, NULL, 0);
}

static struct cqp_page page_of(uint32_t i, uint32_t segment)
{
	return (struct cqp_page){ .word = s->words[segment == SINKS ? SLOTS + i : i],
				  .segment = segment, .slot = i };
}

static uint32_t key_find(const uint8_t *key)
{
	uint32_t i;

	for (i = 0; i < s->n_pages; i++)
		if (!memcmp(s->keys[i].b, key, 32))
			break;
	return i;
}

static void lookup_lie(struct cqp_page *pages, Cqp__LookupOk *ok, uint32_t n)
{
	struct cqp_page swap = pages[0];

	if (lies(LOOKUP_MORE))
		ok->matched = 1000;
	if (lies(LOOKUP_LENGTH))
		ok->pages.len -= 3;
	if (lies(LOOKUP_SLOT))
		pages[0].slot = 0xfffffff0;
	if (lies(LOOKUP_SEGMENT))
		pages[0].segment = 99;
	if (lies(LOOKUP_WORD))
		pages[0].word = CQP_WORD(1, CQP_FILLING);
	if (lies(LOOKUP_OTHER_PAGE) && n > 1) {
		pages[0] = pages[1];
		pages[1] = swap;
	}
	if (lies(LOOKUP_NO_SINK))
		ok->has_sink = 0;
	if (lies(LOOKUP_SINK_LENGTH))
		ok->sink.len = 8;
}

static void on_lookup(int sock, const Cqp__Msg *in)
{
	Cqp__LookupOk ok = CQP__LOOKUP_OK__INIT;
	struct cqp_page pages[SLOTS], sink;
	Cqp__Msg m = CQP__MSG__INIT;
	uint32_t n, at = 0;

	s->lookups++;
	for (n = 0; n < in->lookup->keys.len / 32 && n < SLOTS; n++) {
		at = key_find(in->lookup->keys.data + 32 * n);
		if (at == s->n_pages)
			break;
		pages[n] = page_of(at, CODES);
	}
	ok.matched = n;
	ok.pages.data = (uint8_t *)pages;
	ok.pages.len = n * sizeof(*pages);
	if (n) {
		sink = page_of(pages[0].slot, SINKS);
		ok.has_sink = 1;
		ok.sink.data = (uint8_t *)&sink;
		ok.sink.len = sizeof(sink);
		lookup_lie(pages, &ok, n);
	}
	m.body_case = CQP__MSG__BODY_LOOKUP_OK;
	m.lookup_ok = &ok;
	while (s->held)
		usleep(1000);
	reply(sock, in->id, &m, NULL, 0);
}

static void on_segment(int sock, const Cqp__Msg *in)
{
	Cqp__SegmentOk ok = CQP__SEGMENT_OK__INIT;
	Cqp__Msg m = CQP__MSG__INIT;
	bool sink = in->segment_get->segment == SINKS;
	int fd = lies(SEG_UNSEALED) ? s->plain_fd : sink ? s->sink_fd : s->seg_fd;

	if (in->segment_get->segment > SINKS) {
		reply_error(sock, in->id, -ENOENT, NULL);
		return;
	}
	ok.segment = in->segment_get->segment + lies(SEG_OTHER_ID);
	ok.slot_bytes = sink ? s->sink_slot_bytes : s->slot_bytes;
	ok.slots = SLOTS;
	ok.bytes = SLOTS * ok.slot_bytes;
	ok.word_base = sink ? SLOTS : 0;
	if (lies(SEG_BYTES))
		ok.bytes += 4096;
	if (lies(SEG_WORDS))
		ok.word_base = SLOTS + 1;
	if (lies(SEG_WORD_WRAP))
		ok.word_base = UINT64_MAX - 4;
	if (lies(SEG_SLOT_BYTES))
		ok.slot_bytes = 0;
	if (lies(SEG_SLOTS))
		ok.slots = 0;
	m.body_case = CQP__MSG__BODY_SEGMENT_OK;
	m.segment_ok = &ok;
	reply(sock, in->id, &m, &fd, lies(SEG_NO_FD) ? 0 : 1);
}

static void slot_fill(uint8_t *slot, uint32_t kind, uint64_t payload,
		      const struct cqp_key *key, int arena, uint64_t offset)
{
	struct cq_page_hdr h = { .magic = CQ_PAGE_MAGIC, .version = CQ_PAGE_VERSION,
				 .kind = (uint16_t)kind, .payload = payload };

	memcpy(h.model_tag, s->hash, 8);
	memcpy(h.key, key->b, 16);
	memcpy(slot, &h, sizeof(h));
	ASSERT_EQ(pread(arena, slot + sizeof(h), payload, (off_t)offset), payload);
}

/* Slot of the page, filled if it is new. */
static uint32_t seal_do(const Cqp__Seal *seal, int arena, struct cqp_key *key)
{
	uint32_t tokens[64], i;
	struct cqp_key parent;

	ASSERT_EQ(seal->tokens.len, sizeof(tokens));
	memcpy(tokens, seal->tokens.data, sizeof(tokens));
	for (i = 0; i < 64; i++)
		tokens[i] = le32toh(tokens[i]);
	memcpy(parent.b, seal->parent.data, 32);
	ASSERT_OK(cqp_key_page(key, &parent, tokens, seal->extra.data, seal->extra.len));
	i = key_find(key->b);
	if (i < s->n_pages)
		return i;
	ASSERT_LT(i, SLOTS);
	slot_fill(s->seg + i * s->slot_bytes, CQ_PAGE_CODES, s->payload, key, arena,
		  seal->offset);
	if (seal->has_sink_offset)
		slot_fill(s->sinks + i * s->sink_slot_bytes, CQ_PAGE_SINK,
			  s->sink_payload, key, arena, seal->sink_offset);
	s->keys[i] = *key;
	__atomic_store_n(&s->words[i], CQP_WORD(1, CQP_SEALED), __ATOMIC_RELEASE);
	__atomic_store_n(&s->words[SLOTS + i], CQP_WORD(1, CQP_SEALED), __ATOMIC_RELEASE);
	s->n_pages++;
	return i;
}

static void on_seal(int sock, const Cqp__Msg *in, int arena)
{
	Cqp__SealOk ok = CQP__SEAL_OK__INIT;
	struct cqp_page page, sink;
	Cqp__Msg m = CQP__MSG__INIT;
	uint32_t before = s->n_pages, i;
	struct cqp_key key;
	char text[] = "pool full";

	s->seals++;
	if (lies(SEAL_ERROR)) {
		reply_error(sock, in->id, -ENOSPC, text);
		return;
	}
	if (lies(SEAL_WRONG)) {
		reply_ok(sock, in->id);
		return;
	}
	i = seal_do(in->seal, arena, &key);
	page = page_of(i, CODES);
	sink = page_of(i, SINKS);
	ok.existing = i < before;
	if (lies(SEAL_KEY))
		key.b[31] ^= 1;
	if (lies(SEAL_SLOT))
		page.slot = SLOTS;
	ok.key.data = key.b;
	ok.key.len = 32;
	ok.page.data = (uint8_t *)&page;
	ok.page.len = lies(SEAL_PAGE_LENGTH) ? 15 : sizeof(page);
	ok.has_sink = in->seal->has_sink_offset && !lies(SEAL_NO_SINK);
	ok.sink.data = (uint8_t *)&sink;
	ok.sink.len = sizeof(sink);
	m.body_case = CQP__MSG__BODY_SEAL_OK;
	m.seal_ok = &ok;
	reply(sock, in->id, &m, NULL, 0);
}

/* False: this connection is over. */
static bool serve(int sock, const Cqp__Msg *in, struct cqp_frame *f, int *arena)
{
	if (lies(SILENT))
		return true;
	switch ((int)in->body_case) {
	case CQP__MSG__BODY_HELLO:
		on_hello(sock, in);
		break;
	case CQP__MSG__BODY_MODEL_OPEN:
		on_model(sock, in);
		break;
	case CQP__MSG__BODY_ARENA_OFFER:
		if (*arena >= 0)
			close(*arena);
		*arena = cqp_frame_take(f, 0);
		on_arena(sock, in);
		break;
	case CQP__MSG__BODY_LOOKUP:
		on_lookup(sock, in);
		break;
	case CQP__MSG__BODY_SEGMENT_GET:
		on_segment(sock, in);
		break;
	case CQP__MSG__BODY_SEAL:
		if (lies(DROP) && !s->after--)
			return false;
		on_seal(sock, in, *arena);
		break;
	case CQP__MSG__BODY_RELEASE:
		s->releases += (int)(in->release->pages.len / sizeof(struct cqp_page));
		reply_ok(sock, in->id);
		break;
	case CQP__MSG__BODY_BYE:
		s->byes++;
		reply_ok(sock, in->id);
		break;
	default:
		FAIL("message of type %d", (int)in->body_case);
	}
	return true;
}

static void serve_connection(int sock)
{
	static struct cqp_frame f;
	int arena = -1;
	bool more = true;
	Cqp__Msg *m;

	while (more && cqp_recv(sock, &f, 0) == 1) {
		m = cqp_unpack(f.buf, f.len, NULL);
		ASSERT(m);
		more = serve(sock, m, &f, &arena);
		cqp_free(m);
		cqp_frame_close(&f);
	}
	if (arena >= 0)
		close(arena);
	close(sock);
}

static void listen_on(int *out)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", s->path);
	unlink(s->path);
	*out = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	ASSERT_SYS(*out);
	ASSERT_SYS(bind(*out, (struct sockaddr *)&sa, sizeof(sa)));
	ASSERT_SYS(listen(*out, 8));
}

static void server_start(void)
{
	int lfd, sock;
	pid_t pid;

	listen_on(&lfd);
	fflush(stdout);
	pid = fork();
	ASSERT_SYS(pid);
	if (pid) {
		s->pid = pid;
		close(lfd);
		return;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		sock = accept4(lfd, NULL, NULL, SOCK_CLOEXEC);
		ASSERT_SYS(sock);
		serve_connection(sock);
	}
}

static void server_model(void)
{
	void *image = rig_image(&shape, &s->image_bytes), *map;
	struct cqk_model *m;

	ASSERT_OK(cqk_model_parse(image, s->image_bytes, &m, NULL));
	s->payload = m->payload;
	s->sink_payload = m->sink_payload;
	s->slot_bytes = m->slot_bytes;
	s->sink_slot_bytes = m->sink_slot_bytes;
	memcpy(s->hash, m->hash, 32);
	cqk_model_free(m);
	s->model_fd = sealed_fd("model", s->image_bytes, &map);
	memcpy(map, image, s->image_bytes);
	free(image);
}

/* A server with @lie; its memory outlives it. */
static void start(enum lie lie)
{
	void *map;

	s = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT(s != MAP_FAILED);
	snprintf(s->path, sizeof(s->path), "%s/cqd.sock", test_dir());
	s->lie = (int)lie;
	server_model();
	s->state_fd = sealed_fd("state", 2 * SLOTS * 8, &map);
	s->words = map;
	s->seg_fd = sealed_fd("seg", SLOTS * s->slot_bytes, &map);
	s->seg = map;
	s->sink_fd = sealed_fd("sink", SLOTS * s->sink_slot_bytes, &map);
	s->sinks = map;
	s->plain_fd = memfd_create("plain", MFD_CLOEXEC);
	ASSERT_SYS(ftruncate(s->plain_fd, 16 << 20));
	server_start();
}

static void server_kill(void)
{
	ASSERT_SYS(kill(s->pid, SIGKILL));
	ASSERT_EQ(waitpid(s->pid, NULL, 0), s->pid);
}

static void stop(void)
{
	server_kill();
	close(s->model_fd);
	close(s->state_fd);
	close(s->seg_fd);
	close(s->sink_fd);
	close(s->plain_fd);
}

/* --- tests --- */

static int try_open(struct cq_ctx **ctx, uint32_t timeout_ms)
{
	struct cq_open_opts o = { .sz = sizeof(o), .socket = s->path, .timeout_ms = timeout_ms };

	return cq_open(&o, ctx);
}

TEST(lies_at_hello)
{
	struct cq_ctx *ctx;
	int lie;

	start(HONEST);
	for (lie = HELLO_VERSION; lie <= HELLO_CODE_POSITIVE; lie++) {
		s->lie = lie;
		ASSERT(try_open(&ctx, 500) < 0);
		if (lie != HELLO_GARBAGE)
			CQ_FAILS(try_open(&ctx, 500), -EPROTO);
		for (const char *p = cq_last_error(); *p; p++)
			ASSERT(*p >= ' ');
	}
	s->lie = SILENT;
	CQ_FAILS(try_open(&ctx, 50), -ETIMEDOUT);
	ASSERT_STRHAS(cq_last_error(), "50 ms");
	stop();
}

TEST(lies_about_the_model)
{
	struct cq_model *model;
	struct cq_ctx *ctx;
	int lie;

	start(HONEST);
	CQ_OK(try_open(&ctx, 500));
	for (lie = MODEL_NO_FDS; lie <= STATE_WORDS; lie++) {
		s->lie = lie;
		CQ_FAILS(cq_model_open(ctx, "toy", NULL, &model), -EPROTO);
	}
	s->lie = HONEST;
	CQ_OK(cq_model_open(ctx, "toy", NULL, &model));
	cq_close(ctx);
	stop();
}

/* Pages 0..4 of @ids, published through the honest server. */
static void publish(void)
{
	struct rig r = { .shape = shape };

	rig_ids(ids, 2000, 1);
	snprintf(r.sock, sizeof(r.sock), "%s", s->path);
	rig_publish(&r, ids, 330);
	ASSERT_EQ(s->n_pages, 5);
}

static void lookup_with(enum lie lie, size_t want)
{
	struct cq_seq *x;
	struct worker w;

	s->lie = HONEST;
	worker_open(&w, &shape, s->path, 0, 0);
	s->lie = (int)lie;
	x = worker_seq(&w, ids, 330);
	if (cq_seq_length(x) != want)
		FAIL("lie %d: %zu tokens matched, want %zu", (int)lie, cq_seq_length(x), want);
	s->lie = HONEST;
	/* Whatever it said: the sequence works, and so does the next. */
	worker_grow(&w, x, ids, 330);
	cq_seq_close(x);
	x = worker_seq(&w, ids, 330);
	worker_grow(&w, x, ids, 330);
	cq_close(w.ctx);
}

TEST(lies_about_matches)
{
	int lie;

	start(HONEST);
	publish();
	lookup_with(HONEST, 320);
	for (lie = LOOKUP_MORE; lie <= SEG_OTHER_ID; lie++)
		lookup_with((enum lie)lie, 0);
	stop();
}

TEST(lies_about_seals)
{
	static const int err[] = { -EPROTO, -EPROTO, -EPROTO, -EPROTO, -ENOSPC, -EPROTO };
	struct cq_seq *x, *y;
	struct worker w;
	int lie;

	start(HONEST);
	rig_ids(ids, 2000, 1);
	worker_open(&w, &shape, s->path, 0, 0);
	for (lie = SEAL_KEY; lie <= SEAL_WRONG; lie++) {
		rig_ids(ids, 2000, 50 + (uint32_t)lie);
		s->lie = lie;
		x = worker_seq(&w, NULL, 0);
		worker_grow(&w, x, ids, 200);
		CQ_FAILS(cq_seal(x, 5000), err[lie - SEAL_KEY]);
		ASSERT_EQ(worker_info(x).sealed, 0);
		s->lie = HONEST;
		CQ_OK(cq_seal(x, 5000));	/* it tries again */
		ASSERT_EQ(worker_info(x).sealed, 192);
		y = worker_seq(&w, ids, 200);
		ASSERT_EQ(cq_seq_length(y), 192);
		cq_seq_close(x);
		cq_seq_close(y);
	}
	cq_close(w.ctx);
	stop();
}

TEST(connection_lost_while_sealing)
{
	struct cq_seq *x;
	struct worker w;
	int i, j;

	start(DROP);
	rig_ids(ids, 2000, 1);
	worker_open(&w, &shape, s->path, 0, 0);
	s->resumed = 1;
	x = worker_seq(&w, NULL, 0);
	for (i = 0; i < 4; i++) {
		s->after = 1;
		worker_grow(&w, x, ids, cq_seq_length(x) + 200);
		/* Sent again without being asked to. */
		for (j = 0; j < 5000 && worker_info(x).sealed + 63 < cq_seq_length(x); j++)
			usleep(1000);
		ASSERT_EQ(worker_info(x).sealed, cq_seq_length(x) / 64 * 64);
	}
	ASSERT_GE(s->hellos, 4);
	cq_seq_close(x);
	cq_close(w.ctx);
	stop();
}

/* Pins of a daemon that did not resume the session are not released there. */
TEST(pins_are_released_where_they_are)
{
	struct cq_seq *x, *y;
	struct worker w;
	int i;

	start(HONEST);
	publish();
	worker_open(&w, &shape, s->path, 0, 0);
	x = worker_seq(&w, ids, 330);
	y = worker_seq(&w, ids, 330);
	cq_seq_close(x);
	for (i = 0; i < 1000 && s->releases < 1; i++)
		usleep(1000);
	ASSERT_EQ(s->releases, 1);
	server_kill();
	s->boot++;
	server_start();
	for (i = 0; i < 3000 && s->hellos < 3; i++)
		usleep(1000);
	ASSERT_EQ(s->hellos, 3);
	cq_seq_close(y);
	x = worker_seq(&w, ids, 330);	/* waits for the model to be open again */
	ASSERT_EQ(cq_seq_length(x), 320);
	cq_seq_close(x);
	for (i = 0; i < 1000 && s->releases < 2; i++)
		usleep(1000);
	usleep(50000);		/* a third would be here by now */
	ASSERT_EQ(s->releases, 2);
	cq_close(w.ctx);
	stop();
}

/* An answer that comes too late pins a page that nobody knows of. */
TEST(late_match_is_released)
{
	struct cq_open_opts o = { .sz = sizeof(o), .timeout_ms = 50 };
	struct cq_seq *x, *y;
	struct worker w = { .whole = shape, .m = shape };
	int i;

	start(HONEST);
	publish();
	o.socket = s->path;
	CQ_OK(cq_open(&o, &w.ctx));
	CQ_OK(cq_model_open(w.ctx, "toy", NULL, &w.model));
	s->held = 1;
	s->lookups = 0;
	x = worker_seq(&w, ids, 330);
	ASSERT_EQ(cq_seq_length(x), 0);
	ASSERT_EQ(s->releases, 0);
	y = worker_seq(&w, ids, 330);	/* silent once: not asked again */
	ASSERT_EQ(cq_seq_length(y), 0);
	ASSERT_EQ(s->lookups, 1);
	s->held = 0;
	for (i = 0; i < 1000 && s->releases < 1; i++)
		usleep(1000);
	ASSERT_EQ(s->releases, 1);
	y = worker_seq(&w, ids, 330);	/* it spoke */
	ASSERT_EQ(cq_seq_length(y), 320);
	ASSERT_EQ(s->lookups, 2);
	cq_close(w.ctx);
	stop();
}

/* --- pages taken back --- */

static int attend(const struct worker *w, struct cq_batch *b, struct cq_seq *x)
{
	float buf[2][4 * 32] = { { 0 } };
	struct cq_view q = rig_view(w, buf[0], 4), o = rig_view(w, buf[1], 4);
	uint32_t one = 1;

	CQ_OK(cq_step(b, &x, &one, 1));
	CQ_OK(worker_append_layer(w, x, ids, 1, 0));
	return cq_attention(b, 0, &q, &o, NULL);
}

TEST(stale_pages_are_noticed)
{
	float *buf = malloc(400 * 2 * 32 * 4);
	struct cq_view v;
	struct cq_batch *b;
	struct cq_seq *x;
	struct worker w;
	uint64_t was;
	int i;

	ASSERT(buf);
	start(HONEST);
	publish();
	worker_open(&w, &shape, s->path, 0, 0);
	CQ_OK(cq_batch_new(w.model, 1, 1, 0, &b));
	v = rig_view(&w, buf, 2);
	for (i = 0; i < 6; i++) {
		uint64_t *word = &s->words[i < 5 ? i : (int)SLOTS];	/* then the sinks' */

		x = worker_seq(&w, ids, 330);
		ASSERT_EQ(cq_seq_length(x), 320);
		CQ_OK(attend(&w, b, x));
		was = *word;
		*word = CQP_WORD(1, CQP_EVICTING);
		CQ_FAILS(attend(&w, b, x), -ESTALE);
		ASSERT_STRHAS(cq_last_error(), "open it anew");
		CQ_FAILS(cq_read(x, 0, 0, 320, &v, NULL), -ESTALE);
		*word = CQP_WORD(2, CQP_SEALED);
		CQ_FAILS(attend(&w, b, x), -ESTALE);
		*word = was;
		CQ_OK(attend(&w, b, x));
		CQ_OK(cq_read(x, 0, 0, 320, &v, NULL));
		*word = CQP_WORD(2, CQP_SEALED);
		if (i == 4)
			CQ_FAILS(cq_truncate(x, 300), -ESTALE);
		*word = was;
		cq_seq_close(x);
	}
	free(buf);
	cq_close(w.ctx);
	stop();
}

/* A page that changed between the answer and the look at it is no match. */
TEST(page_gone_before_it_is_mapped)
{
	struct cq_seq *x;
	struct worker w;

	start(HONEST);
	publish();
	worker_open(&w, &shape, s->path, 0, 0);
	s->held = 0;
	((struct cq_page_hdr *)(void *)(s->seg + 2 * s->slot_bytes))->incompat = 1;
	x = worker_seq(&w, ids, 330);
	ASSERT_EQ(cq_seq_length(x), 128);
	cq_close(w.ctx);
	stop();
}

/* The same key, other bytes: the publisher goes on reading its own. */
TEST(existing_page_with_other_bytes)
{
	struct cq_seq *x, *y;
	struct worker w;

	start(HONEST);
	publish();
	s->seg[2 * s->slot_bytes + 64] ^= 0xff;
	worker_open(&w, &shape, s->path, 0, 0);
	x = worker_seq(&w, NULL, 0);
	worker_grow(&w, x, ids, 330);
	CQ_OK(cq_seal(x, 5000));
	ASSERT_EQ(worker_info(x).sealed, 320);
	ASSERT_EQ(worker_info(x).shared_bytes, 4 * s->slot_bytes + s->sink_slot_bytes);
	y = worker_seq(&w, ids, 330);
	ASSERT_EQ(cq_seq_length(y), 320);
	ASSERT_EQ(worker_info(y).shared_bytes, 5 * s->slot_bytes + s->sink_slot_bytes);
	cq_close(w.ctx);
	stop();
}
