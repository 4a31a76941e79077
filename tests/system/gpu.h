/* SPDX-License-Identifier: MIT */
/*
 * Workers of a GPU's pool, by hand over the wire: they lease, seal and give back. How
 * they reach the memory is the test's. One cqd per test, "s".
 */
#ifndef TESTS_SYSTEM_GPU_H
#define TESTS_SYSTEM_GPU_H

#include "tests/system/sys.h"
#include "cq/page.h"
#include "proto/look.h"

#define UUID	"GPU-c9e00000-6661-6b65-8000-646576696300"
#define MODEL	"tiny"

static struct sys s;
/* What shards are in. */
static Cqp__Backend gpu_backend = CQP__BACKEND__CUDA_VMM;

/* A session of this process, and its shard of the GPU. */
struct peer {
	int fd;
	uint64_t session;
	struct wire_shard shard;
};

/* The driver that cqd is to find, or one without any device. */
static inline void driver(bool there)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/tests/emu", sys_build());
	ASSERT_SYS(setenv("LD_LIBRARY_PATH", path, 1));
	ASSERT_SYS(setenv("CQ_EMU_DEVICES", there ? "1" : "0", 1));
}

static inline struct sys_pool gpu_pool(void)
{
	return sys_pool(&s, 1);
}

static inline void until_used(uint64_t used)
{
	sys_until_used(&s, 1, used);
}

static inline int open_on(int fd, const char *device, uint32_t *shard, struct cqp_key *root,
			  Cqp__Backend *backend)
{
	Cqp__ModelOpen body = CQP__MODEL_OPEN__INIT;
	DECLARE_MSG(msg, MODEL_OPEN, model_open, body);
	char name[] = MODEL, dev[64] = "";
	Cqp__Msg *r;

	body.name = name;
	if (device) {
		strncat(dev, device, sizeof(dev) - 1);
		body.device = dev;
	}
	r = wire_call(fd, &msg, NULL, 0, NULL);
	if (!r || r->body_case != CQP__MSG__BODY_MODEL_OK)
		return wire_unexpected(r);
	*shard = r->model_ok->shard;
	*backend = r->model_ok->backend;
	memcpy(root->b, r->model_ok->root_key.data, sizeof(root->b));
	cqp_free(r);
	return 0;
}

/* 1: the session goes on. */
static inline int join_as(struct peer *p)
{
	Cqp__Backend backend;
	int resumed;

	p->fd = wire_connect(s.sock);
	ASSERT_OK(p->fd);
	resumed = wire_resume(p->fd, &p->session);
	ASSERT_OK(resumed);
	ASSERT_OK(open_on(p->fd, UUID, &p->shard.shard, &p->shard.root, &backend));
	ASSERT_EQ(backend, gpu_backend);
	return resumed;
}

/* Slots got, or -errno. */
static inline int lease(const struct peer *p, uint32_t n, bool sinks, struct cqp_page *out)
{
	Cqp__Lease body = CQP__LEASE__INIT;
	DECLARE_MSG(msg, LEASE, lease, body);
	Cqp__Msg *r;
	int got;

	body.shard = p->shard.shard;
	body.slots = n;
	body.has_sinks = 1;
	body.sinks = sinks;
	r = wire_call(p->fd, &msg, NULL, 0, NULL);
	if (!r || r->body_case != CQP__MSG__BODY_LEASE_OK)
		return wire_unexpected(r);
	got = (int)(r->lease_ok->slots.len / sizeof(*out));
	ASSERT(got >= 1 && got <= (int)n && r->lease_ok->slots.len % sizeof(*out) == 0);
	memcpy(out, r->lease_ok->slots.data, (size_t)got * sizeof(*out));
	cqp_free(r);
	return got;
}

static inline int give_back(const struct peer *p, const struct cqp_page *slots, unsigned int n)
{
	Cqp__LeaseReturn body = CQP__LEASE_RETURN__INIT;
	DECLARE_MSG(msg, LEASE_RETURN, lease_return, body);
	struct cqp_page copy[8];

	memcpy(copy, slots, n * sizeof(*slots));
	body.slots = (ProtobufCBinaryData){ n * sizeof(*slots), (uint8_t *)copy };
	return wire_code(wire_call(p->fd, &msg, NULL, 0, NULL));
}

struct seal_bytes {
	const void *slot, *sink;
	size_t slot_len, sink_len, checks_len;
};

static inline int seal_raw(const struct peer *p, const struct cqp_key *parent, uint32_t token,
			   const struct seal_bytes *b, struct cqp_key *key, struct cqp_page *page)
{
	uint8_t tokens[CQ_PAGE_TOKENS * 4], slot[64] = { 0 }, sink[64] = { 0 }, checks[64];
	struct cqp_key up = *parent;
	Cqp__Seal body = CQP__SEAL__INIT;
	DECLARE_MSG(msg, SEAL, seal, body);
	Cqp__Msg *r;

	memset(tokens, (int)token, sizeof(tokens));
	memset(checks, 7, sizeof(checks));
	if (b->slot)
		memcpy(slot, b->slot, MIN(b->slot_len, sizeof(struct cqp_page)));
	if (b->sink)
		memcpy(sink, b->sink, MIN(b->sink_len, sizeof(struct cqp_page)));
	body.shard = p->shard.shard;
	body.parent = (ProtobufCBinaryData){ sizeof(up.b), up.b };
	body.tokens = (ProtobufCBinaryData){ sizeof(tokens), tokens };
	body.has_slot = b->slot != NULL;
	body.slot = (ProtobufCBinaryData){ b->slot_len, slot };
	body.has_sink_slot = b->sink != NULL;
	body.sink_slot = (ProtobufCBinaryData){ b->sink_len, sink };
	body.has_checks = b->checks_len != 0;
	body.checks = (ProtobufCBinaryData){ b->checks_len, checks };
	r = wire_call(p->fd, &msg, NULL, 0, NULL);
	if (!r || r->body_case != CQP__MSG__BODY_SEAL_OK)
		return wire_unexpected(r);
	memcpy(key->b, r->seal_ok->key.data, sizeof(key->b));
	memcpy(page, r->seal_ok->page.data, sizeof(*page));
	cqp_free(r);
	return 0;
}

static inline int seal(const struct peer *p, const struct cqp_key *parent, uint32_t token,
		       const struct cqp_page *slot, const struct cqp_page *sink,
		       struct cqp_key *key, struct cqp_page *page)
{
	const struct seal_bytes b = { slot, sink, sizeof(*slot), sink ? sizeof(*sink) : 0,
				      sink ? 32 : 16 };

	return seal_raw(p, parent, token, &b, key, page);
}

#endif /* TESTS_SYSTEM_GPU_H */
