/* SPDX-License-Identifier: MIT */
/* Tails of a hostile publisher, which libcq would not make. */
#ifndef TEST_LIBCQ_TAIL_H
#define TEST_LIBCQ_TAIL_H

#include <xxhash.h>
#include "client/internal.h"
#include "proto/tail.h"
#include "tests/unit/test_libcq.h"

static inline void tail_ask(struct worker *evil, uint32_t arena, const uint8_t *tail, uint64_t n,
			    uint64_t tokens, const struct cqp_key *key)
{
	struct cqc_call call = { .req.want = CQP__MSG__BODY_OK };
	struct cqp_extent whole = { 0, n };
	XXH128_hash_t h = XXH3_128bits(tail, n);
	Cqp__Publish pub = CQP__PUBLISH__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	char name[] = "evil";

	pub.name = name;
	pub.tokens = tokens;
	pub.shard = evil->model->shard;
	pub.has_key = !!key;
	if (key) {
		pub.key.data = (uint8_t *)(uintptr_t)key->b;
		pub.key.len = CQ_KEY_BYTES;
	}
	pub.has_arena = 1;
	pub.arena = arena;
	pub.has_extents = 1;
	pub.extents.data = (uint8_t *)&whole;
	pub.extents.len = sizeof(whole);
	pub.has_check_lo = pub.has_check_hi = 1;
	pub.check_lo = h.low64;
	pub.check_hi = h.high64;
	pub.has_replace = pub.replace = 1;
	msg.body_case = CQP__MSG__BODY_PUBLISH;
	msg.publish = &pub;
	CQ_OK(cqc_call(evil->ctx, &call, &msg, NULL, 0, 0));
}

/* @n bytes of @tail under the name "evil", with a checksum that is right. */
static inline void tail_put(struct worker *evil, const uint8_t *tail, uint64_t n, uint64_t tokens,
			    const struct cqp_key *key)
{
	uint64_t unit = ALIGN_UP(n / 4 + 1, 64);
	struct cqc_arena own;
	uint32_t id = 0;

	CQ_OK(cqc_arena_init(&own, 4 * unit, unit, unit, NULL));
	memcpy(own.base, tail, n);
	pthread_mutex_lock(&evil->ctx->lock);
	CQ_OK(cqc_arena_offer(evil->ctx, evil->model->shard, &own, evil->ctx->conn_no, &id));
	tail_ask(evil, id, tail, n, tokens, key);
	cqc_arena_drop(evil->ctx, id);
	pthread_mutex_unlock(&evil->ctx->lock);
	cqc_arena_fini(&own);
}

/* A tail of page 0 alone, all 0 beside its ids. */
static inline uint8_t *tail_new(const struct worker *evil, const uint32_t *ids,
				const struct cqp_tail_entry *e, uint32_t tokens)
{
	const struct cqk_model *m = &evil->model->m;
	struct cqp_tail_head h = {
		.magic = CQP_TAIL_MAGIC, .version = CQP_TAIL_VERSION, .tokens = tokens,
		.f16_block = m->f16_block, .payload = m->payload,
		.sink_bytes = m->sink_payload, .n_entries = 1,
	};
	uint8_t *tail;

	memcpy(h.model_hash, m->hash, sizeof(h.model_hash));
	memcpy(h.root, evil->model->root.b, sizeof(h.root));
	h.bytes = sizeof(h) + sizeof(*e) + 4 * tokens +
		  (e->parts & CQP_TAIL_F16 ? m->f16_block : 0) +
		  (e->parts & CQP_TAIL_CODES ? m->payload : 0) +
		  (e->parts & CQP_TAIL_SINKS ? m->sink_payload : 0);
	tail = calloc(1, h.bytes);
	ASSERT(tail);
	memcpy(tail, &h, sizeof(h));
	memcpy(tail + sizeof(h), e, sizeof(*e));
	memcpy(tail + sizeof(h) + sizeof(*e), ids, 4 * tokens);
	return tail;
}

/* What comes of it; if @nan, a byte that far from its end is a NaN's upper one. */
static inline int tail_try(struct worker *evil, const struct worker *victim, const uint32_t *ids,
			   const struct cqp_tail_entry *e, uint32_t tokens, uint64_t nan)
{
	uint8_t *tail = tail_new(evil, ids, e, tokens);
	struct cqp_tail_head h;
	struct cqp_key key;
	struct cq_seq *seq;
	int ret;

	memcpy(&h, tail, sizeof(h));
	if (nan)
		tail[h.bytes - nan] = 0x7e;
	CQ_OK(cqp_key_page(&key, &evil->model->root, ids, NULL, 0));
	tail_put(evil, tail, h.bytes, tokens, tokens < CQ_PAGE_TOKENS ? NULL : &key);
	free(tail);
	ret = cq_attach(victim->model, "evil", NULL, &seq);
	if (!ret)
		cq_seq_close(seq);
	return ret;
}

/*
 * Sinks of page 0 would be rows that nobody wrote, in a block that another
 * sequence had before. @ids have no page 0 that is published.
 */
static inline void tail_sinks_of_nowhere(struct worker *evil, const struct worker *victim,
					 const uint32_t *ids)
{
	struct cqp_tail_entry e = { .parts = CQP_TAIL_CODES, .n_coded = 40 };
	uint64_t sinks = cqc_low(victim->model->m.sinks);

	CQ_FAILS(tail_try(evil, victim, ids, &e, 40, 0), -EPROTO);
	e.parts |= CQP_TAIL_F16;
	e.f16_mask = sinks & ~1ull;
	CQ_FAILS(tail_try(evil, victim, ids, &e, 40, 0), -EPROTO);
	e.f16_mask = sinks << 1 & ~sinks;
	CQ_FAILS(tail_try(evil, victim, ids, &e, 40, 0), -EPROTO);
	e.f16_mask = sinks;
	CQ_OK(tail_try(evil, victim, ids, &e, 40, 0));
	/* fewer tokens than sinks */
	e.n_coded = 2;
	e.f16_mask = 1;
	CQ_FAILS(tail_try(evil, victim, ids, &e, 2, 0), -EPROTO);
	e.f16_mask = 3;
	CQ_OK(tail_try(evil, victim, ids, &e, 2, 0));
}

#endif /* TEST_LIBCQ_TAIL_H */
