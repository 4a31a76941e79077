/* SPDX-License-Identifier: MIT */
/* Very many pages in little time: seals by hand, many under way. */
#ifndef BENCH_FILL_H
#define BENCH_FILL_H

#include "tests/system/sys.h"

#define FILL_WINDOW	64	/* seals under way */
#define FILL_DEPTH	64	/* pages of a text */
#define FILL_PATIENCE	60000	/* ms, for a segment on a machine that is busy */

/**
 * struct fill - texts being written
 * @w:    shard, with an arena that holds one payload
 * @pins: pages answered and not released yet
 */
struct fill {
	int fd;
	struct wire_shard w;
	struct cqp_page pins[FILL_WINDOW];
	uint32_t n_pins;
};

/* A connection with model "tiny" and an arena. */
static inline void fill_open(struct fill *f, const char *sock, uint64_t payload)
{
	memset(f, 0, sizeof(*f));
	f->fd = wire_open(sock);
	ASSERT_OK(f->fd);
	ASSERT_OK(wire_model_open(f->fd, "tiny", &f->w));
	ASSERT_OK(wire_arena(f->fd, &f->w, payload));
	memset(f->w.base, 0x5a, payload);
}

static inline void fill_send(struct fill *f, const struct cqp_key *parent,
			     const uint32_t *ids, uint64_t id)
{
	Cqp__Seal body = CQP__SEAL__INIT;
	DECLARE_MSG(msg, SEAL, seal, body);
	uint8_t tokens[CQ_PAGE_TOKENS * 4];
	struct cqp_key copy = *parent;

	memcpy(tokens, ids, sizeof(tokens));
	body.shard = f->w.shard;
	body.arena = f->w.arena;
	body.parent = (ProtobufCBinaryData){ sizeof(copy.b), copy.b };
	body.tokens = (ProtobufCBinaryData){ sizeof(tokens), tokens };
	msg.id = id;
	ASSERT_OK(cqp_send(f->fd, &msg, NULL, 0, 0));
}

/* Pins are for who reads: here nobody does. */
static inline void fill_release(struct fill *f)
{
	Cqp__Release body = CQP__RELEASE__INIT;
	DECLARE_MSG(msg, RELEASE, release, body);

	if (!f->n_pins)
		return;
	body.pages = (ProtobufCBinaryData){ f->n_pins * sizeof(f->pins[0]),
					    (uint8_t *)f->pins };
	ASSERT_OK(cqp_send(f->fd, &msg, NULL, 0, 0));
	f->n_pins = 0;
}

/* One answer; true if it was to a seal. */
static inline bool fill_answer(struct fill *f)
{
	static struct cqp_frame frame;
	bool sealed;
	Cqp__Msg *m;

	ASSERT_EQ(wire_recv(f->fd, &frame, FILL_PATIENCE), 1);
	m = cqp_unpack(frame.buf, frame.len, NULL);
	ASSERT(m);
	if (m->body_case == CQP__MSG__BODY_ERROR)
		FAIL("%s", m->error->text);
	sealed = m->body_case == CQP__MSG__BODY_SEAL_OK;
	if (sealed)
		memcpy(&f->pins[f->n_pins++], m->seal_ok->page.data, sizeof(f->pins[0]));
	cqp_free(m);
	if (f->n_pins == FILL_WINDOW)
		fill_release(f);
	return sealed;
}

/* Key of page @i % FILL_DEPTH of its text; @parent is updated. */
static inline void fill_key(uint32_t *ids, struct cqp_key *key, uint32_t i)
{
	struct cqp_key parent = *key;

	synth_ids(ids, CQ_PAGE_TOKENS, 1u << 30 | i);
	ASSERT_OK(cqp_key_page(key, &parent, ids, NULL, 0));
}

/* Pages [@from, @to). */
static inline void fill_pages(struct fill *f, uint32_t from, uint32_t to)
{
	uint32_t ids[CQ_PAGE_TOKENS], i, under_way = 0;
	struct cqp_key key = f->w.root, parent;

	ASSERT_EQ(from % FILL_DEPTH, 0);
	for (i = from; i < to; i++) {
		if (i % FILL_DEPTH == 0)
			key = f->w.root;
		parent = key;
		fill_key(ids, &key, i);
		fill_send(f, &parent, ids, i + 1);
		under_way++;
		while (under_way >= FILL_WINDOW)
			under_way -= fill_answer(f);
	}
	while (under_way)
		under_way -= fill_answer(f);
	fill_release(f);
}

static inline void fill_close(struct fill *f)
{
	wire_arena_close(&f->w);
	close(f->fd);
}

#endif /* BENCH_FILL_H */
