// SPDX-License-Identifier: MIT
/*
 * Publishing a sequence under a name: what it is beyond its shared pages is
 * described as a tail (proto/tail.h) that lies in pieces in memory of the host's.
 * cqd copies the pieces one behind the other.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "client/tail.h"

#define PUBLISH_FLAGS (CQ_PUBLISH_REPLACE | CQ_PUBLISH_ONCE | CQ_PUBLISH_PIN)

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

static int describe_all(struct cqc_draft *d)
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

/* Head, entries, ids and extra bytes, one behind the other. */
static int meta_make(struct cqc_draft *d)
{
	const struct cq_seq *seq = d->seq;
	uint8_t *p;
	size_t i;

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
	return 0;
}

static XXH128_hash_t sum(const struct cqc_draft *d)
{
	const struct cqc_arena *a = d->own.base ? &d->own : &d->seq->model->arena;
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

/* @own: memory that the tail is in, if it is not the model's arena. */
static int ask(struct cq_model *model, Cqp__Publish *pub, const struct cqc_arena *own)
{
	struct cqc_call call = { .req.want = CQP__MSG__BODY_OK };
	Cqp__Msg msg = CQP__MSG__INIT;
	struct cq_ctx *ctx = model->ctx;
	uint64_t conn;
	int ret;

	msg.body_case = CQP__MSG__BODY_PUBLISH;
	msg.publish = pub;
	pthread_mutex_lock(&ctx->lock);
	ret = cqc_await_ready(model);
	if (ret) {
		cqc_fail(ret, "cqd at %s is away", ctx->path);
		goto out;
	}
	conn = ctx->conn_no;
	pub->shard = model->shard;
	pub->arena = model->arena_id;
	if (own)
		ret = cqc_arena_offer(ctx, model->shard, own, conn, &pub->arena);
	if (ret)
		goto out;
	ret = cqc_call(ctx, &call, &msg, NULL, 0, conn);
	if (own && ctx->conn_no == conn && ctx->link == CQC_READY)
		cqc_arena_drop(ctx, pub->arena);
out:
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
	struct cqc_draft *d = calloc(1, sizeof(*d));
	XXH128_hash_t h;
	int ret;

	if (!d)
		return cqc_fail(-ENOMEM, "out of memory to publish");
	d->seq = seq;
	ret = describe_all(d);
	if (!ret)
		ret = meta_make(d);
	if (!ret)
		ret = seq->model->be->tail_put(d);
	if (!ret) {
		h = sum(d);
		pub->has_extents = 1;
		pub->extents.data = (uint8_t *)d->extent;
		pub->extents.len = d->n_extents * sizeof(d->extent[0]);
		pub->has_check_lo = 1;
		pub->check_lo = h.low64;
		pub->has_check_hi = 1;
		pub->check_hi = h.high64;
		ret = ask(seq->model, pub, d->own.base ? &d->own : NULL);
	}
	while (d->n_units)
		cqc_block_put(&seq->model->arena, d->unit[--d->n_units]);
	cqc_arena_fini(&d->own);
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
	return o.flags & CQ_PUBLISH_PIN ? ask(seq->model, &pub, NULL) : publish_tail(seq, &pub);
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
