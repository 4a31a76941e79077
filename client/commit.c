// SPDX-License-Identifier: MIT
/*
 * Commit: tokens become part of a sequence, full pages are encoded and handed
 * over for sealing. And cq_seal(), which waits for that.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "client/backend.h"

static bool published(const struct cq_pg *pg)
{
	return pg->slot.word || pg->pinned;
}

/* Hand a full page to the engine. */
static void page_order(const struct cq_seq *seq, struct cq_pg *pg)
{
	struct cqc_order o = { .op = CQC_OP_SEAL, .pg = cqc_pg_get(pg) };

	pg->ordered = true;
	pg->seal_err = 0;
	pg->orphan = false;
	pg->priority = (uint8_t)seq->priority;
	pg->ttl_s = seq->ttl_s;
	pg->model->be->place(pg);
	pg->fence = pg->model->be->fence(pg->model);
	cqc_order_push(pg->model, &o);
}

static void encode_block(const struct cqk_ops *ops, const struct cqk_codebook *cb,
			 uint32_t head, const uint16_t *x, uint32_t first, uint8_t *codes)
{
	uint32_t d = cb->head_dim, n = CQ_PAGE_TOKENS - first;

	if (cb->code.type == CQ_CODE_F16)
		memcpy(codes + (size_t)first * d * 2, x + (size_t)first * d, (size_t)n * d * 2);
	else
		ops->encode(cb, head, x + (size_t)first * d, first, n, codes);
}

/**
 * cqc_codes_make() - codes of tokens that have none yet
 * @model: model
 * @f16:   block of the page
 * @first: token; those before it keep theirs
 * @codes: payload
 */
void cqc_codes_make(const struct cq_model *model, const uint16_t *f16, uint32_t first,
		    uint8_t *codes)
{
	const struct cqk_model *m = &model->m;
	uint32_t l, h;

	for (l = 0; l < m->geom.n_layers; l++)
		for (h = 0; h < m->geom.n_kv_heads; h++) {
			encode_block(model->ops, &m->layers[l].k, h,
				     f16 + cqc_f16_at(m, CQ_PAGE_TOKENS, l, h, 0),
				     first, codes + cqc_code_at(m, l, h, 0));
			encode_block(model->ops, &m->layers[l].v, h,
				     f16 + cqc_f16_at(m, CQ_PAGE_TOKENS, l, h, 1),
				     first, codes + cqc_code_at(m, l, h, 1));
		}
}

/**
 * cqc_sinks_make() - the sinks' fp16 rows, which go beside page 0
 * @m:   shard
 * @f16: block of page 0
 * @to:  [layer][head][K|V][sinks][d] halves
 */
void cqc_sinks_make(const struct cqk_model *m, const uint16_t *f16, uint8_t *to)
{
	uint32_t l, h, kv;

	for (l = 0; l < m->geom.n_layers; l++)
		for (h = 0; h < m->geom.n_kv_heads; h++)
			for (kv = 0; kv < 2; kv++)
				memcpy(to + 2 * cqc_f16_at(m, m->sinks, l, h, kv),
				       f16 + cqc_f16_at(m, CQ_PAGE_TOKENS, l, h, kv),
				       (size_t)m->sinks * m->geom.head_dim * 2);
}

/**
 * cqc_host_fill() - codes and sinks of a full page
 * @seq: sequence
 * @i:   page
 */
void cqc_host_fill(const struct cq_seq *seq, uint32_t i)
{
	const struct cq_model *model = seq->model;
	struct cq_pg *pg = seq->ents[i].pg;
	const uint16_t *f16 = cqc_block_ptr(&model->arena, seq->ents[i].f16);
	uint8_t *sinks;

	cqc_codes_make(model, f16, pg->n_coded, cqc_chunk_ptr(&model->arena, pg->chunk));
	if (i || pg->sink_chunk == CQC_NONE)
		return;
	sinks = cqc_chunk_ptr(&model->arena, pg->sink_chunk);
	cqc_sinks_make(&model->m, f16, sinks);
	pg->sink.data = sinks;
}

/* Keys of the pages [@from, @to), whose tokens are complete. */
static int pages_key(struct cq_seq *seq, uint32_t from, uint32_t to)
{
	const struct cqp_key *parent;
	uint32_t i;
	int ret;

	for (i = from; i < to; i++) {
		struct cq_pg *pg = seq->ents[i].pg;

		parent = i ? &seq->ents[i - 1].pg->key : &seq->model->root;
		ret = cqp_key_page(&pg->key, parent, pg->tokens,
				   pg->extra ? pg->extra->bytes : NULL,
				   pg->extra ? pg->extra->len : 0);
		if (ret)
			return cqc_fail(ret, "out of memory for the key of page %u", i);
	}
	return 0;
}

/* fp16 blocks of pages that are older than the window go. */
static void window_drop(struct cq_seq *seq)
{
	size_t window = seq->model->m.window;
	size_t old = seq->len > window ? (seq->len - window) / CQ_PAGE_TOKENS : 0;

	for (; seq->f16_lo < old; seq->f16_lo++) {
		struct cqc_ent *ent = &seq->ents[seq->f16_lo];

		if (ent->f16 != CQC_NONE)
			cqc_block_put(&seq->model->arena, ent->f16);
		ent->f16 = CQC_NONE;
		ent->f16_mask = 0;
	}
}

static void pages_fill(struct cq_seq *seq, uint32_t from, uint32_t to)
{
	uint32_t i;

	for (i = from; i < to; i++) {
		struct cqc_ent *ent = &seq->ents[i];

		if (i && !ent->pg->parent)
			ent->pg->parent = cqc_pg_get(seq->ents[i - 1].pg);
		seq->model->be->fill(seq, i);
		ent->pg->n_coded = CQ_PAGE_TOKENS;
		if (!(seq->flags & CQ_SEQ_PRIVATE))
			page_order(seq, ent->pg);
	}
	if (from < to && !(seq->flags & CQ_SEQ_PRIVATE))
		cqc_wake(seq->model->ctx);
}

CQ_API int cq_commit(struct cq_seq *seq, const uint32_t *ids, size_t n)
{
	uint32_t l, from, to;
	size_t i;
	int ret = cqc_seq_check(seq);

	if (ret || !n)
		return ret;
	if (!ids)
		return cqc_fail(-EINVAL, "cq_commit: no token ids");
	for (l = 0; l < seq->model->m.geom.n_layers; l++)
		if (seq->appended[l] < n)
			return cqc_fail(-EINVAL, "cq_commit: %zu tokens, but layer %u has %u "
						 "appended",
					n, l, seq->appended[l]);
	for (i = 0; i < n; i++) {
		size_t t = seq->len + i;

		seq->ents[t / CQ_PAGE_TOKENS].pg->tokens[t % CQ_PAGE_TOKENS] = ids[i];
	}
	from = (uint32_t)(seq->len / CQ_PAGE_TOKENS);
	to = (uint32_t)((seq->len + n) / CQ_PAGE_TOKENS);
	ret = pages_key(seq, from, to);
	if (ret)
		return ret;
	cqc_steps_end(seq);
	pages_fill(seq, from, to);
	seq->len += n;
	for (l = 0; l < seq->model->m.geom.n_layers; l++)
		seq->appended[l] -= (uint32_t)n;
	window_drop(seq);
	cqc_results_apply(seq->model);
	return 0;
}

/**
 * cqc_pages_order() - order what is not published and not on its way
 * @seq:  sequence
 * @full: its full pages; parents come first
 */
void cqc_pages_order(struct cq_seq *seq, uint32_t full)
{
	uint32_t i;

	for (i = 0; i < full; i++) {
		struct cq_pg *pg = seq->ents[i].pg;

		if (!published(pg) && !pg->ordered)
			page_order(seq, pg);
	}
	cqc_wake(seq->model->ctx);
}

/* 1: some pages are on their way; else the first failure, or 0. */
static int seal_state(const struct cq_seq *seq, uint32_t full)
{
	int ret = 0;
	uint32_t i;

	for (i = 0; i < full; i++) {
		const struct cq_pg *pg = seq->ents[i].pg;

		if (pg->ordered)
			return 1;
		if (!published(pg) && !ret)
			ret = pg->seal_err ? pg->seal_err : -ECANCELED;
	}
	return ret;
}

static int seal_wait(struct cq_seq *seq, uint32_t full, int64_t deadline)
{
	struct cq_model *model = seq->model;
	struct cq_ctx *ctx = model->ctx;
	int ret, wait = 0;

	for (;;) {
		cqc_results_apply(model);
		ret = seal_state(seq, full);
		if (ret <= 0 || wait)
			return ret <= 0 ? ret : wait;
		pthread_mutex_lock(&ctx->lock);
		cqc_orders_drain(ctx);
		if (ctx->link == CQC_AWAY)
			wait = -ENOTCONN;
		else if (smp_load_acquire(&model->results.head) == model->results.tail)
			wait = cqc_wait(ctx, deadline);
		pthread_mutex_unlock(&ctx->lock);
	}
}

CQ_API int cq_seal(struct cq_seq *seq, int timeout_ms)
{
	int64_t deadline;
	uint32_t full;
	int ret = cqc_seq_check(seq);

	if (ret)
		return ret;
	cqc_results_apply(seq->model);
	full = (uint32_t)(seq->len / CQ_PAGE_TOKENS);
	if (seq->flags & CQ_SEQ_PRIVATE || !full)
		return 0;
	deadline = timeout_ms < 0 ? INT64_MAX : cqc_now_ms() + timeout_ms;
	cqc_pages_order(seq, full);
	ret = seal_wait(seq, full, deadline);
	if (!ret)
		return 0;
	return cqc_fail(ret, "not every page is published: %s; %s", strerror(-ret),
			ret == -ENOTCONN || ret == -ETIMEDOUT ?
			"they are, once cqd answers" : "they stay private and usable");
}
