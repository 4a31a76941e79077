/* SPDX-License-Identifier: MIT */
/*
 * A small cqd of the test's own, in a process beside it, that lies, loses its
 * connections, falls silent or takes pages back when it is told to.
 */
#ifndef TEST_LIBCQ_SERVER_H
#define TEST_LIBCQ_SERVER_H

#include <endian.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "tests/unit/test_libcq.h"
#include "proto/frame.h"
#include "proto/index.h"
#include "proto/key.h"

#define SLOTS 256u
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
	SILENT, DROP, ARENA_DROP,
	LIES,
};

/**
 * struct server - shared between test and server process
 * @lie:   enum lie, in force now
 * @after: honest answers to seals before a lie about them
 * @boot:  first byte of the boot id
 * @priority, @ttl_s: of the last seal, -1: it named none
 * @held:  hold answers to lookups and seals back until it is 0 again
 */
struct server {
	int lie, after, boot, held, resumed;
	int releases, seals, hellos, byes, lookups;
	int64_t priority, ttl_s;
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

/* --- the server --- */

static inline int sealed_fd(const char *name, size_t bytes, void **map)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

	ASSERT_SYS(fd);
	ASSERT_SYS(ftruncate(fd, (off_t)bytes));
	*map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT(*map != MAP_FAILED);
	ASSERT_SYS(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
	return fd;
}

static inline bool lies(enum lie what)
{
	return s->lie == (int)what;
}

static inline void reply(int sock, uint64_t id, Cqp__Msg *m, const int *fds, unsigned int n)
{
	int ret;

	m->id = id;
	ret = cqp_send(sock, m, fds, n, 0);
	if (ret && ret != -EPIPE && ret != -ECONNRESET)	/* it may have had enough */
		FAIL("send: %s", strerror(-ret));
}

static inline void reply_error(int sock, uint64_t id, int code, char *text)
{
	Cqp__Error e = CQP__ERROR__INIT;
	Cqp__Msg m = CQP__MSG__INIT;

	e.code = code;
	e.text = text;
	m.body_case = CQP__MSG__BODY_ERROR;
	m.error = &e;
	reply(sock, id, &m, NULL, 0);
}

static inline void reply_ok(int sock, uint64_t id)
{
	Cqp__Ok ok = CQP__OK__INIT;
	Cqp__Msg m = CQP__MSG__INIT;

	m.body_case = CQP__MSG__BODY_OK;
	m.ok = &ok;
	reply(sock, id, &m, NULL, 0);
}

static inline void on_hello(int sock, const Cqp__Msg *in)
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

static inline void on_model(int sock, const Cqp__Msg *in)
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

static inline void on_arena(int sock, const Cqp__Msg *in)
{
	Cqp__ArenaOk ok = CQP__ARENA_OK__INIT;
	Cqp__Msg m = CQP__MSG__INIT;

	ok.arena = 1;
	m.body_case = CQP__MSG__BODY_ARENA_OK;
	m.arena_ok = &ok;
	reply(sock, in->id, &m, NULL, 0);
}

static inline struct cqp_page page_of(uint32_t i, uint32_t segment)
{
	return (struct cqp_page){ .word = s->words[segment == SINKS ? SLOTS + i : i],
				  .segment = segment, .slot = i };
}

static inline uint32_t key_find(const uint8_t *key)
{
	uint32_t i;

	for (i = 0; i < s->n_pages; i++)
		if (!memcmp(s->keys[i].b, key, 32))
			break;
	return i;
}

static inline void lookup_lie(struct cqp_page *pages, Cqp__LookupOk *ok, uint32_t n)
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

static inline void on_lookup(int sock, const Cqp__Msg *in)
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

static inline void on_segment(int sock, const Cqp__Msg *in)
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

static inline void slot_fill(uint8_t *slot, uint32_t kind, uint64_t payload,
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
static inline uint32_t seal_do(const Cqp__Seal *seal, int arena, struct cqp_key *key)
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

static inline void on_seal(int sock, const Cqp__Msg *in, int arena)
{
	Cqp__SealOk ok = CQP__SEAL_OK__INIT;
	struct cqp_page page, sink;
	Cqp__Msg m = CQP__MSG__INIT;
	uint32_t before = s->n_pages, i;
	struct cqp_key key;
	char text[] = "pool full";

	s->priority = in->seal->has_priority ? (int64_t)in->seal->priority : -1;
	s->ttl_s = in->seal->has_ttl_s ? (int64_t)in->seal->ttl_s : -1;
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
	while (s->held)
		usleep(1000);
	reply(sock, in->id, &m, NULL, 0);
}

/* False: this connection is over. */
static inline bool serve(int sock, const Cqp__Msg *in, struct cqp_frame *f, int *arena)
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
		/* The answer and the end of the connection arrive at once. */
		if (lies(ARENA_DROP))
			ASSERT_SYS(kill(getppid(), SIGSTOP));
		on_arena(sock, in);
		return !lies(ARENA_DROP);
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
	case CQP__MSG__BODY_ARENA_DROP:
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

static inline void serve_connection(int sock)
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
	if (lies(ARENA_DROP))
		ASSERT_SYS(kill(getppid(), SIGCONT));
}

static inline void listen_on(int *out)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", s->path);
	unlink(s->path);
	*out = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	ASSERT_SYS(*out);
	ASSERT_SYS(bind(*out, (struct sockaddr *)&sa, sizeof(sa)));
	ASSERT_SYS(listen(*out, 8));
}

static inline void server_start(void)
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

static inline void server_model(void)
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
static inline void start(enum lie lie)
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

static inline void server_kill(void)
{
	ASSERT_SYS(kill(s->pid, SIGKILL));
	ASSERT_EQ(waitpid(s->pid, NULL, 0), s->pid);
}

static inline void stop(void)
{
	server_kill();
	close(s->model_fd);
	close(s->state_fd);
	close(s->seg_fd);
	close(s->sink_fd);
	close(s->plain_fd);
}

#endif /* TEST_LIBCQ_SERVER_H */
