// SPDX-License-Identifier: MIT
/*
 * Publishing a sequence under a name: what it is beyond its shared pages is
 * described as a tail (proto/tail.h) that lies in pieces in the arena, where
 * most of it is already. cqd copies the pieces one behind the other.
 *
 * Nothing leaves that the sequence does not read: rows and codes of other tokens
 * in a block are cut off in a copy.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "client/gpu.h"
#include "proto/tail.h"

#define PUBLISH_FLAGS (CQ_PUBLISH_REPLACE | CQ_PUBLISH_ONCE | CQ_PUBLISH_PIN)

/*
 * struct draft - a tail being put together
 * @meta:  head, entries, ids, extra bytes
 * @unit:  [@n_units] blocks of the arena that are ours until cqd has copied
 */
struct draft {
	const struct cq_seq *seq;
	struct cqp_tail_head head;
	struct cqp_tail_entry entry[CQP_MAX_ENTRIES];
	struct cqp_extent extent[CQP_MAX_EXTENTS];
	uint32_t unit[CQP_MAX_EXTENTS];
	uint32_t n_extents, n_units;
	uint8_t *meta;
	uint64_t meta_bytes;
};

static uint32_t rows_of(const struct cq_seq *seq, uint32_t i)
{
	return (uint32_t)MIN(seq->len - (size_t)i * CQ_PAGE_TOKENS, (size_t)CQ_PAGE_TOKENS);
}

/* --- what there is --- */

static struct cqp_tail_entry describe(const struct cq_seq *seq, uint32_t i)
{
	const struct cqc_ent *ent = &seq->ents[i];
	struct cqp_tail_entry e = { .index = i, .n_coded = ent->pg->n_coded };

	if (ent->f16 != CQC_NONE)
		e.f16_mask = ent->f16_mask & cqc_low(rows_of(seq, i));
	if (e.f16_mask)
		e.parts |= CQP_TAIL_F16;
	if (!ent->pg->slot.word && e.n_coded)
		e.parts |= CQP_TAIL_CODES;
	if (e.parts & CQP_TAIL_CODES && !i && ent->pg->sink.data)
		e.parts |= CQP_TAIL_SINKS;
	return e;
}

static int describe_all(struct draft *d)
{
	const struct cq_seq *seq = d->seq;
	const struct cqk_model *m = &seq->model->m;
	struct cqp_tail_head *h = &d->head;
	uint32_t i, n = (uint32_t)((seq->len + CQ_PAGE_TOKENS - 1) / CQ_PAGE_TOKENS);
	uint64_t data = 0;

	for (i = 0; i < n; i++) {
		struct cqp_tail_entry e = describe(seq, i);

		if (!e.parts && rows_of(seq, i) == CQ_PAGE_TOKENS)
			continue;
		if (h->n_entries == CQP_MAX_ENTRIES)
			return cqc_fail(-EMSGSIZE, "more than %d pages differ from what is "
						   "published", CQP_MAX_ENTRIES);
		data += (e.parts & CQP_TAIL_F16 ? m->f16_block : 0) +
			(e.parts & CQP_TAIL_CODES ? m->payload : 0) +
			(e.parts & CQP_TAIL_SINKS ? m->sink_payload : 0);
		d->entry[h->n_entries++] = e;
	}
	h->magic = CQP_TAIL_MAGIC;
	h->version = CQP_TAIL_VERSION;
	memcpy(h->model_hash, m->hash, sizeof(h->model_hash));
	memcpy(h->root, seq->model->root.b, sizeof(h->root));
	h->tokens = seq->len;
	h->f16_block = m->f16_block;
	h->payload = m->payload;
	h->sink_bytes = m->sink_payload;
	h->position = seq->position;
	h->extra_len = seq->extra ? seq->extra->len : 0;
	d->meta_bytes = sizeof(*h) + h->n_entries * sizeof(d->entry[0]) + 4 * h->tokens +
		h->extra_len;
	h->bytes = d->meta_bytes + data;
	return 0;
}

/* --- where it lies --- */

static int extent_add(struct draft *d, uint64_t offset, uint64_t bytes)
{
	struct cqp_extent *last = &d->extent[d->n_extents ? d->n_extents - 1 : 0];

	if (d->n_extents && last->offset + last->bytes == offset) {
		last->bytes += bytes;
		return 0;
	}
	if (d->n_extents == CQP_MAX_EXTENTS)
		return cqc_fail(-EMSGSIZE, "the sequence is in more than %d pieces: use a new "
					   "arena", CQP_MAX_EXTENTS);
	d->extent[d->n_extents++] = (struct cqp_extent){ offset, bytes };
	return 0;
}

/* A block of the arena for @bytes of a copy; its place follows in the tail. */
static int unit_add(struct draft *d, uint64_t bytes, uint8_t **out)
{
	struct cqc_arena *a = &d->seq->model->arena;
	uint32_t u;

	if (d->n_units == CQP_MAX_EXTENTS)
		return cqc_fail(-EMSGSIZE, "the sequence needs more than %d blocks",
				CQP_MAX_EXTENTS);
	u = cqc_block_new(a);
	if (u == CQC_NONE)
		return cqc_fail(-ENOBUFS, "the arena is full: publishing needs some blocks of "
					  "it for a moment");
	d->unit[d->n_units++] = u;
	*out = (uint8_t *)cqc_block_ptr(a, u);
	return extent_add(d, a->unit * u, bytes);
}

static int put_meta(struct draft *d)
{
	const struct cq_seq *seq = d->seq;
	uint64_t at, n, unit = seq->model->arena.unit;
	uint8_t *p, *to;
	size_t i;
	int ret = 0;

	d->meta = malloc(d->meta_bytes);
	if (!d->meta)
		return cqc_fail(-ENOMEM, "out of memory to publish");
	p = d->meta;
	memcpy(p, &d->head, sizeof(d->head));
	p += sizeof(d->head);
	memcpy(p, d->entry, d->head.n_entries * sizeof(d->entry[0]));
	p += d->head.n_entries * sizeof(d->entry[0]);
	for (i = 0; i < seq->len; i++, p += 4)
		memcpy(p, &seq->ents[i / CQ_PAGE_TOKENS].pg->tokens[i % CQ_PAGE_TOKENS], 4);
	if (seq->extra)
		memcpy(p, seq->extra->bytes, seq->extra->len);
	for (at = 0; at < d->meta_bytes && !ret; at += n) {
		n = MIN(d->meta_bytes - at, unit);
		ret = unit_add(d, n, &to);
		if (!ret)
			memcpy(to, d->meta + at, n);
	}
	return ret;
}

/* Rows of @mask, all else 0. */
static void f16_cut(const struct cqk_model *m, const uint16_t *from, uint64_t mask, uint8_t *to)
{
	size_t row = m->geom.head_dim * 2u, i, n = m->f16_block / row;

	for (i = 0; i < n; i++) {
		if (mask >> i % CQ_PAGE_TOKENS & 1)
			memcpy(to + i * row, (const uint8_t *)from + i * row, row);
		else
			memset(to + i * row, 0, row);
	}
}

/* Codes of tokens from @n on become 0, in one block of 64. */
static void block_cut(const struct cqk_codebook *cb, uint32_t n, uint8_t *codes)
{
	uint32_t g, d = cb->head_dim;

	if (cb->code.type == CQ_CODE_F16) {
		memset(codes + (size_t)n * d * 2, 0, (size_t)(CQ_PAGE_TOKENS - n) * d * 2);
		return;
	}
	for (g = 0; g < cb->n_groups; g++)
		memset(codes + g * CQ_PAGE_TOKENS + n, 0, CQ_PAGE_TOKENS - n);
}

static void codes_cut(const struct cqk_model *m, uint32_t n, uint8_t *codes)
{
	uint32_t l, h;

	for (l = 0; l < m->geom.n_layers; l++)
		for (h = 0; h < m->geom.n_kv_heads; h++) {
			block_cut(&m->layers[l].k, n, codes + cqc_code_at(m, l, h, 0));
			block_cut(&m->layers[l].v, n, codes + cqc_code_at(m, l, h, 1));
		}
}

static int put_f16(struct draft *d, const struct cqp_tail_entry *e)
{
	const struct cq_model *model = d->seq->model;
	uint32_t block = d->seq->ents[e->index].f16;
	uint8_t *to;
	int ret;

	if (e->f16_mask == ~0ull)
		return extent_add(d, model->arena.unit * block, model->m.f16_block);
	ret = unit_add(d, model->m.f16_block, &to);
	if (!ret)
		f16_cut(&model->m, cqc_block_ptr(&model->arena, block), e->f16_mask, to);
	return ret;
}

static int put_codes(struct draft *d, const struct cqp_tail_entry *e)
{
	const struct cq_model *model = d->seq->model;
	const struct cq_pg *pg = d->seq->ents[e->index].pg;
	uint8_t *to;
	int ret;

	if (e->n_coded == CQ_PAGE_TOKENS)
		return extent_add(d, cqc_chunk_offset(&model->arena, pg->chunk),
				  model->m.payload);
	ret = unit_add(d, model->m.payload, &to);
	if (!ret) {
		memcpy(to, pg->codes, model->m.payload);
		codes_cut(&model->m, e->n_coded, to);
	}
	return ret;
}

static int put_all(struct draft *d)
{
	const struct cq_model *model = d->seq->model;
	uint32_t i;
	int ret = put_meta(d);

	for (i = 0; i < d->head.n_entries && !ret; i++) {
		const struct cqp_tail_entry *e = &d->entry[i];

		if (e->parts & CQP_TAIL_F16)
			ret = put_f16(d, e);
		if (!ret && e->parts & CQP_TAIL_CODES)
			ret = put_codes(d, e);
		if (!ret && e->parts & CQP_TAIL_SINKS)
			ret = extent_add(d, cqc_chunk_offset(&model->arena,
							     d->seq->ents[0].pg->sink_chunk),
					 model->m.sink_payload);
	}
	return ret;
}

static XXH128_hash_t sum(const struct draft *d)
{
	const struct cqc_arena *a = &d->seq->model->arena;
	XXH3_state_t *state = XXH3_createState();
	XXH128_hash_t h = { 0 };
	uint32_t i;

	if (!state)
		return h;	/* cqd finds that it is another: -EIO */
	XXH3_128bits_reset(state);
	for (i = 0; i < d->n_extents; i++)
		XXH3_128bits_update(state, a->base + d->extent[i].offset, d->extent[i].bytes);
	h = XXH3_128bits_digest(state);
	XXH3_freeState(state);
	return h;
}

/* --- the request --- */

static int ask(struct cq_model *model, Cqp__Publish *pub)
{
	struct cqc_call call = { .req.want = CQP__MSG__BODY_OK };
	Cqp__Msg msg = CQP__MSG__INIT;
	struct cq_ctx *ctx = model->ctx;
	int ret;

	msg.body_case = CQP__MSG__BODY_PUBLISH;
	msg.publish = pub;
	pthread_mutex_lock(&ctx->lock);
	ret = cqc_await_ready(model);
	if (ret) {
		cqc_fail(ret, "cqd at %s is away", ctx->path);
	} else {
		pub->shard = model->shard;
		pub->arena = model->arena_id;
		ret = cqc_call(ctx, &call, &msg, NULL, 0, ctx->conn_no);
	}
	pthread_mutex_unlock(&ctx->lock);
	return ret;
}

static void fill(Cqp__Publish *pub, const struct cq_seq *seq, const char *name,
		 const struct cq_publish_opts *o)
{
	uint32_t full = (uint32_t)(seq->len / CQ_PAGE_TOKENS);

	pub->name = (char *)(uintptr_t)name;
	pub->tokens = seq->len;
	pub->has_key = full > 0;
	if (full) {
		pub->key.data = seq->ents[full - 1].pg->key.b;
		pub->key.len = CQ_KEY_BYTES;
	}
	pub->has_arena = 1;
	pub->has_replace = 1;
	pub->replace = (o->flags & CQ_PUBLISH_REPLACE) != 0;
	pub->has_once = 1;
	pub->once = (o->flags & CQ_PUBLISH_ONCE) != 0;
	pub->has_ttl_s = 1;
	pub->ttl_s = o->ttl_s;
}

static int publish_tail(const struct cq_seq *seq, Cqp__Publish *pub)
{
	struct draft *d = calloc(1, sizeof(*d));
	XXH128_hash_t h;
	int ret;

	if (!d)
		return cqc_fail(-ENOMEM, "out of memory to publish");
	d->seq = seq;
	ret = describe_all(d);
	if (!ret)
		ret = put_all(d);
	if (!ret) {
		h = sum(d);
		pub->has_extents = 1;
		pub->extents.data = (uint8_t *)d->extent;
		pub->extents.len = d->n_extents * sizeof(d->extent[0]);
		pub->has_check_lo = 1;
		pub->check_lo = h.low64;
		pub->has_check_hi = 1;
		pub->check_hi = h.high64;
		ret = ask(seq->model, pub);
	}
	while (d->n_units)
		cqc_block_put(&seq->model->arena, d->unit[--d->n_units]);
	free(d->meta);
	free(d);
	return ret;
}

static int name_check(const char *name, const char *what)
{
	if (name && *name && strlen(name) < CQP_MAX_NAME)
		return 0;
	return cqc_fail(-EINVAL, "%s: a name has 1 to %d characters", what, CQP_MAX_NAME - 1);
}

static int publish_check(struct cq_seq *seq, const char *name,
			 const struct cq_publish_opts *opts, struct cq_publish_opts *o)
{
	int ret = cqc_seq_check(seq);

	if (!ret)
		ret = cqc_opts_in(o, sizeof(*o), opts, "cq_publish_opts");
	if (!ret)
		ret = name_check(name, "cq_publish");
	if (ret)
		return ret;
	if (o->flags & ~PUBLISH_FLAGS || (o->flags & CQ_PUBLISH_PIN && o->flags & CQ_PUBLISH_ONCE))
		return cqc_fail(-EINVAL, "cq_publish: flags 0x%x", o->flags);
	if (seq->model->gpu && !(o->flags & CQ_PUBLISH_PIN))
		return cqc_fail(-EOPNOTSUPP, "cq_publish: the tail is on GPU %s: only "
					     "CQ_PUBLISH_PIN is supported there",
				cqc_gpu_uuid(seq->model));
	if (seq->flags & CQ_SEQ_PRIVATE)
		return cqc_fail(-EINVAL, "cq_publish: the sequence is CQ_SEQ_PRIVATE; publish a "
					 "fork of it without that flag");
	if (seq->len < (o->flags & CQ_PUBLISH_PIN ? CQ_PAGE_TOKENS : 1))
		return cqc_fail(-EINVAL, "cq_publish: %zu tokens; %s", seq->len,
				o->flags & CQ_PUBLISH_PIN ? "a full page has 64" : "none");
	return cqc_seq_quiet(seq, "cq_publish");
}

CQ_API int cq_publish(struct cq_seq *seq, const char *name, const struct cq_publish_opts *opts)
{
	Cqp__Publish pub = CQP__PUBLISH__INIT;
	struct cq_publish_opts o;
	int ret = publish_check(seq, name, opts, &o);

	if (ret)
		return ret;
	/* Pages that a step reads privately go over to their slots. */
	cqc_steps_end(seq);
	ret = cq_seal(seq, (int)MIN(seq->model->ctx->timeout_ms, (uint32_t)INT32_MAX));
	if (ret)
		return ret;
	fill(&pub, seq, name, &o);
	return o.flags & CQ_PUBLISH_PIN ? ask(seq->model, &pub) : publish_tail(seq, &pub);
}

CQ_API int cq_unpublish(struct cq_ctx *ctx, const char *name)
{
	struct cqc_call call = { .req.want = CQP__MSG__BODY_OK };
	Cqp__Unpublish body = CQP__UNPUBLISH__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	int ret;

	if (!ctx)
		return cqc_fail(-EINVAL, "cq_unpublish: no context");
	ret = cqc_alive(ctx);
	if (!ret)
		ret = name_check(name, "cq_unpublish");
	if (ret)
		return ret;
	body.name = (char *)(uintptr_t)name;
	msg.body_case = CQP__MSG__BODY_UNPUBLISH;
	msg.unpublish = &body;
	pthread_mutex_lock(&ctx->lock);
	/* While it is coming back, Hello has not been answered yet. */
	while (!ret && ctx->link == CQC_HELLO)
		ret = cqc_wait(ctx, cqc_now_ms() + ctx->timeout_ms);
	if (!ret && ctx->link != CQC_READY)
		ret = -ENOTCONN;
	if (ret)
		cqc_fail(ret, "cqd at %s is away", ctx->path);
	else
		ret = cqc_call(ctx, &call, &msg, NULL, 0, ctx->conn_no);
	pthread_mutex_unlock(&ctx->lock);
	return ret;
}
