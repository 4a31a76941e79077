// SPDX-License-Identifier: MIT
/*
 * Fuzzer of whole sessions: two workers and an administrator send requests in
 * any order, with any descriptors beside them, to the connection layer over a
 * real store. Afterwards the store holds together, and nothing is left open.
 *
 * Input: pieces of 8 bytes, each one request: who, what, how many descriptors
 * and of which kinds, and four bytes that fields are made from. Ids and keys are
 * those of earlier answers, so that much gets through. A piece may also be the
 * head of a raw datagram.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include "daemon/server.h"
#include "tests/fuzz/store_scene.h"
#include "tests/store_check.h"
#include "tests/system/wire.h"

#define STEP	8
#define PEERS	3
#define ADMIN	2
#define MAX_PIECES 64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/*
 * struct peer - one end of a connection, and what its answers said
 */
struct peer {
	int fd;
	uint64_t session;
	uint32_t shard, device, arena;	/* @device: shard on the played GPU */
	struct cqp_key root, key;
	struct cqp_page page, leased[2];	/* the last two answers to Lease, newest first */
};

static struct cqd_server srv;
static struct cqd_listener listeners[2];
static struct peer peers[PEERS];
static struct scene scene;
static struct cqp_frame frame;

/* --- descriptors of every kind --- */

static int memfd(off_t bytes, int seals)
{
	int fd = memfd_create("m", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	MUST(fd >= 0 && !ftruncate(fd, bytes) && !fcntl(fd, F_ADD_SEALS, seals));
	return fd;
}

static int other_end(int kind)
{
	int p[2];

	MUST(!(kind ? pipe2(p, O_CLOEXEC) :
	       socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p)));
	close(p[kind & 1]);
	return p[!(kind & 1)];
}

static int fd_of_kind(unsigned int kind)
{
	switch (kind % 14) {
	case 0: return memfd(SCENE_ARENA, F_SEAL_SHRINK);
	case 1: return memfd(SCENE_ARENA, 0);
	case 2: return memfd(100, F_SEAL_SHRINK);
	case 3: return memfd(SCENE_ARENA, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
	case 4: return memfd(0, F_SEAL_SHRINK);
	case 5: return other_end(0);
	case 6: return other_end(1);
	case 7: return other_end(2);
	case 8: return open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	case 9: return open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	case 10: return open("/dev/null", O_PATH | O_CLOEXEC);
	case 11: return eventfd(0, EFD_CLOEXEC);
	case 12: return open("/dev/zero", O_RDWR | O_CLOEXEC);
	default: return fcntl(scene_model(), F_DUPFD_CLOEXEC, 3);
	}
}

/* --- requests --- */

struct piece {
	struct peer *p;
	int fds[3];
	unsigned int n_fds;
	const uint8_t *v;	/* 4 bytes */
};

static void learn(struct peer *p, const Cqp__Msg *r)
{
	if (r->body_case == CQP__MSG__BODY_HELLO_OK) {
		p->session = r->hello_ok->session;
	} else if (r->body_case == CQP__MSG__BODY_MODEL_OK) {
		*(r->model_ok->backend ? &p->device : &p->shard) = r->model_ok->shard;
		memcpy(&p->root, r->model_ok->root_key.data, sizeof(p->root));
		p->key = p->root;
	} else if (r->body_case == CQP__MSG__BODY_LEASE_OK) {
		MUST(r->lease_ok->slots.len >= sizeof(p->leased[0]));
		p->leased[1] = p->leased[0];
		memcpy(&p->leased[0], r->lease_ok->slots.data, sizeof(p->leased[0]));
	} else if (r->body_case == CQP__MSG__BODY_ARENA_OK) {
		p->arena = r->arena_ok->arena;
	} else if (r->body_case == CQP__MSG__BODY_SEAL_OK) {
		memcpy(&p->key, r->seal_ok->key.data, sizeof(p->key));
		memcpy(&p->page, r->seal_ok->page.data, sizeof(p->page));
	}
}

static void hear(struct peer *p)
{
	Cqp__Msg *r;

	while (p->fd >= 0 && cqp_recv(p->fd, &frame, MSG_DONTWAIT) == 1) {
		r = cqp_unpack(frame.buf, frame.len, NULL);
		MUST(r);	/* the daemon speaks clearly */
		learn(p, r);
		cqp_free(r);
		cqp_frame_close(&frame);
	}
}

static void run(void)
{
	unsigned int i;

	do {
		for (i = 0; i < 4; i++)
			uv_run(&scene.loop, UV_RUN_NOWAIT);
		for (i = 0; i < PEERS; i++)
			hear(&peers[i]);
	} while (scene.st->jobs && !usleep(50));
}

static void say(struct piece *c, Cqp__Msg *msg)
{
	msg->id = c->v[3];
	(void)cqp_send(c->p->fd, msg, c->fds, c->n_fds, MSG_DONTWAIT);
}

static void say_hello(struct piece *c)
{
	Cqp__Hello body = CQP__HELLO__INIT;
	DECLARE_MSG(msg, HELLO, hello, body);
	static char names[3][16] = { "default", "nobody", "" };

	body.protocol = c->v[0] & 0x80 ? c->v[0] : CQP_VERSION;
	body.has_session = c->v[1] & 1;
	body.session = c->p->session + (c->v[1] >> 6);
	if (c->v[1] & 2)
		body.tenant = names[c->v[2] % 3];
	say(c, &msg);
}

static void say_open(struct piece *c)
{
	Cqp__ModelOpen body = CQP__MODEL_OPEN__INIT;
	DECLARE_MSG(msg, MODEL_OPEN, model_open, body);
	static char names[3][8] = { "m", "n", "/" };

	static char gpus[2][41] = { REMOTE_UUID, "GPU-ffffffff-ffff-ffff-ffff-ffffffffffff" };

	body.name = names[c->v[0] % 3];
	if (c->v[2])
		body.device = gpus[c->v[2] & 1 ? 0 : 1];
	if (c->v[1]) {
		body.layer_end = c->v[1] & 3;
		body.head_end = c->v[1] >> 2 & 3;
	}
	say(c, &msg);
}

static void say_arena(struct piece *c)
{
	Cqp__ArenaOffer body = CQP__ARENA_OFFER__INIT;
	Cqp__ArenaDrop drop = CQP__ARENA_DROP__INIT;
	DECLARE_MSG(msg, ARENA_OFFER, arena_offer, body);
	DECLARE_MSG(bye, ARENA_DROP, arena_drop, drop);

	body.shard = c->p->shard + (c->v[0] & 1);
	body.bytes = c->v[1] & 1 ? (uint64_t)c->v[2] << 56 : c->v[2] ? c->v[2] : SCENE_ARENA;
	drop.arena = c->p->arena;
	say(c, c->v[0] & 2 ? &bye : &msg);
}

static void say_seal(struct piece *c)
{
	static uint8_t tokens[CQ_PAGE_TOKENS * 4], extra[300];
	Cqp__Seal body = CQP__SEAL__INIT;
	DECLARE_MSG(msg, SEAL, seal, body);
	struct cqp_key parent = c->v[0] & 1 ? c->p->root : c->p->key;

	tokens[0] = c->v[1];
	body.shard = c->p->shard;
	body.arena = c->p->arena + (c->v[0] >> 7);
	body.parent = (ProtobufCBinaryData){ sizeof(parent) - (c->v[0] >> 6 & 1), parent.b };
	body.tokens = (ProtobufCBinaryData){ sizeof(tokens) - (c->v[0] >> 5 & 1), tokens };
	body.has_extra = c->v[0] >> 4 & 1;
	body.extra = (ProtobufCBinaryData){ c->v[2], extra };
	body.has_sink_offset = c->v[0] & 1;
	body.offset = c->v[0] & 8 ? UINT64_MAX - c->v[2] : c->v[2] * 512u;
	body.has_priority = c->v[0] >> 2 & 1;
	body.priority = c->v[2] * 2u;
	say(c, &msg);
}

static void say_lease(struct piece *c)
{
	Cqp__Lease body = CQP__LEASE__INIT;
	DECLARE_MSG(msg, LEASE, lease, body);

	body.shard = c->v[0] & 1 ? c->p->shard : c->p->device;
	body.slots = c->v[0] & 2 ? c->v[1] * 257u : c->v[1];
	body.has_sinks = c->v[2] & 1;
	body.sinks = c->v[2] >> 1 & 1;
	say(c, &msg);
}

static void say_lease_return(struct piece *c)
{
	Cqp__LeaseReturn body = CQP__LEASE_RETURN__INIT;
	DECLARE_MSG(msg, LEASE_RETURN, lease_return, body);
	struct cqp_page slots[3] = { c->p->leased[0], c->p->leased[1], c->p->page };

	slots[0].slot += c->v[1];
	slots[1].segment += c->v[2] & 15;
	body.slots = (ProtobufCBinaryData){ sizeof(slots[0]) * (c->v[0] & 3) + (c->v[0] >> 7),
					    (uint8_t *)slots };
	body.has_others = c->v[0] >> 2 & 1;
	body.others = c->v[0] >> 3 & 1;
	say(c, &msg);
}

/* Of a page whose payload is in a leased slot, or is said to be. */
static void say_seal_slot(struct piece *c)
{
	static uint8_t tokens[CQ_PAGE_TOKENS * 4], checks[33];
	Cqp__Seal body = CQP__SEAL__INIT;
	DECLARE_MSG(msg, SEAL, seal, body);
	bool first = c->v[0] & 1;
	struct cqp_key parent = first ? c->p->root : c->p->key;
	struct cqp_page slot = c->p->leased[first ? 1 : 0], sink = c->p->leased[0];

	tokens[0] = c->v[1];
	slot.slot += c->v[2] & 15;
	sink.word += c->v[2] >> 4;
	body.shard = c->v[0] & 2 ? c->p->shard : c->p->device;
	body.parent = (ProtobufCBinaryData){ sizeof(parent), parent.b };
	body.tokens = (ProtobufCBinaryData){ sizeof(tokens), tokens };
	body.has_slot = true;
	body.slot = (ProtobufCBinaryData){ sizeof(slot) - (c->v[0] >> 7), (uint8_t *)&slot };
	body.has_sink_slot = first != (c->v[0] >> 4 & 1);
	body.sink_slot = (ProtobufCBinaryData){ sizeof(sink) - (c->v[0] >> 6 & 1),
						(uint8_t *)&sink };
	body.has_checks = !(c->v[0] & 8);
	body.checks = (ProtobufCBinaryData){ (body.has_sink_slot ? 32 : 16) +
					     (c->v[0] >> 5 & 1), checks };
	say(c, &msg);
}

static void say_lookup(struct piece *c)
{
	Cqp__Lookup body = CQP__LOOKUP__INIT;
	DECLARE_MSG(msg, LOOKUP, lookup, body);
	struct cqp_key keys[4];
	unsigned int i;

	for (i = 0; i < 4; i++)
		keys[i] = i & c->v[2] ? c->p->root : c->p->key;
	body.shard = c->p->shard + (c->v[0] >> 7);
	body.keys = (ProtobufCBinaryData){ sizeof(keys[0]) * (c->v[1] % 5) + (c->v[1] >> 7),
					   keys[0].b };
	body.pin = c->v[0] & 1;
	say(c, &msg);
}

static void say_release(struct piece *c)
{
	Cqp__Release body = CQP__RELEASE__INIT;
	Cqp__SegmentGet get = CQP__SEGMENT_GET__INIT;
	DECLARE_MSG(msg, RELEASE, release, body);
	DECLARE_MSG(other, SEGMENT_GET, segment_get, get);
	struct cqp_page pages[3] = { c->p->page, c->p->page, c->p->page };

	pages[1].slot += c->v[1];
	pages[2].word += c->v[2];
	body.pages = (ProtobufCBinaryData){ sizeof(pages[0]) * (c->v[0] & 3) + (c->v[0] >> 7),
					    (uint8_t *)pages };
	get.segment = c->p->page.segment + (c->v[1] & 1);
	say(c, c->v[0] & 4 ? &other : &msg);
}

static void say_plain(struct piece *c)
{
	Cqp__Ping ping = CQP__PING__INIT;
	Cqp__Bye bye = CQP__BYE__INIT;
	Cqp__Ok ok = CQP__OK__INIT;
	DECLARE_MSG(a, PING, ping, ping);
	DECLARE_MSG(b, BYE, bye, bye);
	DECLARE_MSG(d, OK, ok, ok);

	say(c, c->v[0] % 3 == 0 ? &a : c->v[0] % 3 == 1 ? &b : &d);
}

static void say_admin(struct piece *c)
{
	Cqp__Status status = CQP__STATUS__INIT;
	Cqp__List list = CQP__LIST__INIT;
	Cqp__Verify verify = CQP__VERIFY__INIT;
	DECLARE_MSG(a, STATUS, status, status);
	DECLARE_MSG(b, LIST, list, list);
	DECLARE_MSG(d, VERIFY, verify, verify);

	list.kind = (Cqp__Kind)(c->v[1] % 6);
	list.has_cursor = c->v[2] != 0;
	list.cursor = c->v[2];
	say(c, c->v[0] % 3 == 0 ? &a : c->v[0] % 3 == 1 ? &b : &d);
}

static void say_load(struct piece *c)
{
	Cqp__Load load = CQP__LOAD__INIT;
	Cqp__Unload unload = CQP__UNLOAD__INIT;
	DECLARE_MSG(a, LOAD, load, load);
	DECLARE_MSG(b, UNLOAD, unload, unload);
	static char names[3][8] = { "m", "n", "" };

	load.name = names[c->v[1] % 3];
	unload.name = load.name;
	say(c, c->v[0] & 1 ? &b : &a);
}

/* @rest of the input as it is; an empty one would be an end of file. */
static void say_raw(struct piece *c, const uint8_t *rest, size_t n)
{
	struct iovec io = { .iov_base = (void *)(uintptr_t)rest, .iov_len = n };
	struct msghdr h = { .msg_iov = &io, .msg_iovlen = 1 };

	if (n)
		(void)sendmsg(c->p->fd, &h, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* --- one input --- */

static void connect_peer(unsigned int i)
{
	struct cqd_listener *l = &listeners[i == ADMIN];
	int s[2];

	if (peers[i].fd >= 0)
		close(peers[i].fd);
	MUST(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, s));
	peers[i].fd = s[0];
	/* refused: then the peer hears so */
	(void)cqd_conn_new(l, s[1]);
}

static void one(const uint8_t d[STEP], const uint8_t *rest, size_t n)
{
	static void (*const what[])(struct piece *c) = {
		say_hello, say_open, say_arena, say_seal, say_lookup, say_release, say_plain,
		say_admin, say_load, say_lease, say_lease_return, say_seal_slot,
	};
	struct piece c = { .p = &peers[d[0] % PEERS], .n_fds = d[2] & 3, .v = d + 4 };
	unsigned int i;

	for (i = 0; i < c.n_fds; i++)
		c.fds[i] = fd_of_kind(d[3] + i * (d[2] >> 2));
	if (d[1] == 255)
		connect_peer(d[0] % PEERS);
	else if (d[1] >= 250)
		say_raw(&c, rest, n);
	else
		what[d[1] % ARRAY_SIZE(what)](&c);
	while (c.n_fds)
		close(c.fds[--c.n_fds]);
	if (d[0] & 64)
		run();
}

static void start(void)
{
	unsigned int i;

	scene_start(&scene, NULL, NULL, 0);
	cqd_client_end(scene.cl);
	memset(&srv, 0, sizeof(srv));
	MUST(!cqd_config_load(NULL, &srv.config, NULL));
	srv.loop = &scene.loop;
	srv.store = scene.st;
	list_init(&srv.tenants);
	list_init(&srv.listeners);
	list_init(&srv.conns);
	list_init(&srv.waiting);
	list_init(&srv.sessions);
	for (i = 0; i < CQD_HASH; i++)
		list_init(&srv.uids[i]);
	cqd_processes_init(&srv);
	list_init(&srv.http.listeners);
	list_init(&srv.http.conns);
	cqd_events_init(&srv);
	uv_timer_init(srv.loop, &srv.tick);
	MUST(!cqd_tenants_apply(&srv, srv.config, NULL));
	for (i = 0; i < 2; i++)
		listeners[i] = (struct cqd_listener){ .srv = &srv, .fd = -1, .admin = i };
	memset(peers, 0, sizeof(peers));
	for (i = 0; i < PEERS; i++) {
		peers[i].fd = -1;
		connect_peer(i);
	}
}

static void end_client(struct cqd_client *cl, void *arg)
{
	cqd_client_end(cl);
}

static void check(void)
{
	const char *bad = store_check(scene.st);

	if (bad)
		fprintf(stderr, "%s\n", bad);
	MUST(!bad);
}

static void stop(void)
{
	unsigned int i;

	run();
	check();
	for (i = 0; i < PEERS; i++)
		close(peers[i].fd);
	cqd_conn_close_all(&srv);
	cqd_sessions_close_all(&srv);
	cqd_events_close(&srv);
	cqd_processes_close(&srv);
	cqd_client_for_each(scene.st, end_client, NULL);
	check();
	MUST(!scene.st->pages_pinned);
	uv_close((uv_handle_t *)&srv.tick, NULL);
	scene_stop(&scene);
	cqd_tenants_free(&srv);
	cqd_config_free(srv.config);
}

static int first_free(void)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	MUST(fd >= 0);
	close(fd);
	return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int before, tries = 0;
	size_t i;

	scene_model();
	before = first_free();
	start();
	for (i = 0; i + STEP <= size && i < MAX_PIECES * STEP; i += STEP)
		one(data + i, data + i + STEP, size - i - STEP);
	stop();
	/* some are closed by a thread */
	while (first_free() != before && tries++ < 2000)
		usleep(500);
	MUST(first_free() == before);
	return 0;
}
