// SPDX-License-Identifier: MIT
/*
 * Sequences: opening on a published prefix, entries and what they read from,
 * closing.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "client/backend.h"

#define SEQ_FLAGS (CQ_SEQ_NOMATCH | CQ_SEQ_PRIVATE)

/**
 * cqc_seq_check() - is it a sequence of this process
 * @seq: the caller's
 *
 * Return: 0; -EINVAL; -EOWNERDEAD.
 */
int cqc_seq_check(const struct cq_seq *seq)
{
	if (!seq || seq->magic != CQC_SEQ_MAGIC)
		return cqc_fail(-EINVAL, "not an open sequence");
	return cqc_alive(seq->model->ctx);
}

/**
 * cqc_seq_alloc() - an empty sequence
 * @model:    model
 * @position: of token 0, below max_position
 * @flags:    CQ_SEQ_*
 *
 * Return: it, ended with cqc_seq_free(); NULL out of memory, with text.
 */
struct cq_seq *cqc_seq_alloc(struct cq_model *model, uint32_t position, uint32_t flags)
{
	uint32_t tokens = model->m.geom.max_position - position;
	struct cq_seq *seq = calloc(1, sizeof(*seq));

	if (!seq)
		goto err_text;
	seq->max_ents = tokens / CQ_PAGE_TOKENS + (tokens % CQ_PAGE_TOKENS != 0);
	seq->ents = calloc(seq->max_ents, sizeof(*seq->ents));
	seq->appended = calloc(model->m.geom.n_layers, sizeof(*seq->appended));
	if (!seq->ents || !seq->appended || cqc_pg_reserve(model, seq->max_ents)) {
		free(seq->ents);
		free(seq->appended);
		free(seq);
		goto err_text;
	}
	seq->magic = CQC_SEQ_MAGIC;
	seq->flags = flags;
	seq->model = model;
	seq->position = position;
	list_add_tail(&seq->link, &model->seqs);
	return seq;

err_text:
	cqc_fail(-ENOMEM, "out of memory for a sequence");
	return NULL;
}

/**
 * cqc_ent_drop() - give up what an entry holds
 * @seq: sequence
 * @ent: entry of it
 */
void cqc_ent_drop(struct cq_seq *seq, struct cqc_ent *ent)
{
	if (ent->f16 != CQC_NONE)
		cqc_block_put(&seq->model->arena, ent->f16);
	cqc_pg_put(ent->pg);
	ent->f16 = CQC_NONE;
	ent->pg = NULL;
}

/**
 * cqc_orphans_mark() - jobs nobody would miss
 * @seq:   sequence
 * @first: entry; it and all behind it are about to be dropped
 *
 * The engine may give such a job up while cqd is away, and drops the pin of its
 * page by itself.
 */
void cqc_orphans_mark(struct cq_seq *seq, uint32_t first)
{
	uint32_t i;

	/* The device may still read what the engine would release. */
	if (seq->model->gpu)
		return;
	for (i = first; i < seq->n_ents; i++) {
		struct cq_pg *pg = seq->ents[i].pg;

		uint32_t ours = 2;	/* this entry's and the engine's */

		if (i + 1 < seq->n_ents && seq->ents[i + 1].pg->parent == pg)
			ours++;
		/* Pairs with the loads in job_end() and cqc_jobs_cancel(). */
		if (pg->ordered && pg->refs == ours)
			smp_store_release(&pg->orphan, true);
	}
}

/**
 * cqc_seq_free() - end a sequence, or half of one
 * @seq: as made by cqc_seq_alloc()
 */
void cqc_seq_free(struct cq_seq *seq)
{
	struct cq_model *model = seq->model;

	cqc_orphans_mark(seq, 0);
	while (seq->n_ents)
		cqc_ent_drop(seq, &seq->ents[--seq->n_ents]);
	cqc_pin_put(model, seq->pin);
	cqc_extra_put(seq->extra);
	cqc_pg_unreserve(model, seq->max_ents);
	list_del(&seq->link);
	seq->magic = 0;
	free(seq->ents);
	free(seq->appended);
	free(seq);
}

/**
 * cqc_await_ready() - wait until a model can be asked
 * @model: model; its context's lock is held
 *
 * A connection that is just coming back is waited for: a prompt that starts
 * right after a restart of cqd should find what is published. One that is gone,
 * or a daemon that has left a lookup unanswered, is not.
 *
 * Return: 0 or -ENOTCONN, without text.
 */
int cqc_await_ready(struct cq_model *model)
{
	struct cq_ctx *ctx = model->ctx;
	int64_t deadline = cqc_now_ms() + ctx->timeout_ms;
	int ret = 0;

	while (!ret && !ctx->stalled && cqc_model_returning(model))
		ret = cqc_wait(ctx, deadline);
	if (ret)
		ctx->stalled = true;
	return ctx->link == CQC_READY && model->ready && !ctx->stalled ? 0 : -ENOTCONN;
}

/**
 * cqc_extra_new() - extra key bytes, shared by pages
 * @bytes: [@len]
 * @len:   0: none
 * @out:   set on success, one reference or NULL
 *
 * Return: 0; -EINVAL; -ENOMEM.
 */
int cqc_extra_new(const void *bytes, size_t len, struct cqc_extra **out)
{
	struct cqc_extra *x = NULL;

	if (len && (!bytes || len > CQP_MAX_EXTRA))
		return cqc_fail(-EINVAL, "extra: %zu bytes; at most %d", len, CQP_MAX_EXTRA);
	if (len) {
		x = malloc(sizeof(*x) + len);
		if (!x)
			return cqc_fail(-ENOMEM, "out of memory");
		x->refs = 1;
		x->len = (uint32_t)len;
		memcpy(x->bytes, bytes, len);
	}
	*out = x;
	return 0;
}

/**
 * cqc_extra_get() - a page object gets the extra bytes of its sequence
 * @pg:    without any
 * @extra: or NULL
 */
void cqc_extra_get(struct cq_pg *pg, struct cqc_extra *extra)
{
	if (!extra)
		return;
	pg->extra = extra;
	extra->refs++;
}

/**
 * cqc_priority_check() - is a priority one?
 * @o: options
 *
 * Return: 0 or -EINVAL.
 */
int cqc_priority_check(const struct cq_seq_opts *o)
{
	if (o->priority <= UINT8_MAX)
		return 0;
	return cqc_fail(-EINVAL, "priority %u; at most %d", o->priority, UINT8_MAX);
}

static int open_check(struct cq_model *model, const uint32_t *ids, size_t n,
		      const struct cq_seq_opts *opts, struct cq_seq_opts *o)
{
	int ret = cqc_model_check(model);

	if (!ret)
		ret = cqc_opts_in(o, sizeof(*o), opts, "cq_seq_opts");
	if (ret)
		return ret;
	if (o->flags & ~SEQ_FLAGS)
		return cqc_fail(-EINVAL, "cq_seq_open: unknown flags 0x%x", o->flags & ~SEQ_FLAGS);
	if (n && !ids)
		return cqc_fail(-EINVAL, "cq_seq_open: no token ids");
	if (cqc_priority_check(o))
		return -EINVAL;
	if (o->position >= model->m.geom.max_position)
		return cqc_fail(-EINVAL, "position %u; the model has %u", o->position,
				model->m.geom.max_position);
	if (o->position && model->m.geom.keys == CQK_KEYS_ROTATED)
		return cqc_fail(-EINVAL, "position %u: this model's pages hold rotated keys "
					 "and fit only where they were made",
				o->position);
	return 0;
}

CQ_API int cq_seq_open(struct cq_model *model, const uint32_t *ids, size_t n,
		       const struct cq_seq_opts *opts, struct cq_seq **out)
{
	struct cqc_extra *extra = NULL;
	struct cq_seq_opts o;
	struct cq_seq *seq;
	int ret;

	if (!out)
		return cqc_fail(-EINVAL, "cq_seq_open: no place for the result");
	ret = open_check(model, ids, n, opts, &o);
	if (!ret)
		ret = cqc_extra_new(o.extra, o.extra_len, &extra);
	if (ret)
		return ret;
	cqc_results_apply(model);
	seq = cqc_seq_alloc(model, o.position, o.flags);
	if (!seq) {
		cqc_extra_put(extra);
		return -ENOMEM;
	}
	seq->extra = extra;
	seq->priority = o.priority;
	seq->ttl_s = o.ttl_s;
	if (n > CQ_PAGE_TOKENS && !(o.flags & CQ_SEQ_NOMATCH))
		ret = cqc_seq_match(seq, ids, (uint32_t)MIN((n - 1) / CQ_PAGE_TOKENS,
							    (size_t)seq->max_ents));
	if (ret) {
		cqc_seq_free(seq);
		return ret;
	}
	*out = seq;
	return 0;
}

CQ_API void cq_seq_close(struct cq_seq *seq)
{
	struct cq_model *model;

	if (!seq || cqc_seq_check(seq))
		return;
	model = seq->model;
	cqc_steps_end(seq);
	cqc_seq_free(seq);
	cqc_results_apply(model);
	cqc_wake(model->ctx);
}

/* --- entries --- */

static bool ent_new(struct cq_seq *seq)
{
	struct cq_model *model = seq->model;
	struct cqc_ent *ent = &seq->ents[seq->n_ents];

	ent->f16 = cqc_block_new(&model->arena);
	ent->f16_mask = ~0ull;
	if (ent->f16 == CQC_NONE)
		return false;
	ent->pg = cqc_pg_private(model, !seq->n_ents && model->m.sinks);
	if (!ent->pg) {
		cqc_block_put(&model->arena, ent->f16);
		ent->f16 = CQC_NONE;
		return false;
	}
	cqc_extra_get(ent->pg, seq->extra);
	seq->n_ents++;
	return true;
}

/**
 * cqc_seq_grow() - memory for tokens to come
 * @seq:    sequence
 * @tokens: tokens in all, committed ones included
 *
 * An entry is taken whole: fp16 block, codes and sinks, so that commit needs
 * nothing more.
 *
 * Return: 0; -ERANGE beyond max_position; -ENOBUFS arena full, nothing changed.
 */
int cqc_seq_grow(struct cq_seq *seq, size_t tokens)
{
	struct cq_model *model = seq->model;
	uint32_t before = seq->n_ents;
	size_t want;

	if (tokens > model->m.geom.max_position - seq->position)
		return cqc_fail(-ERANGE, "%zu tokens at position %u: the model has %u positions",
				tokens, seq->position, model->m.geom.max_position);
	want = (tokens + CQ_PAGE_TOKENS - 1) / CQ_PAGE_TOKENS;
	while (seq->n_ents < want) {
		if (ent_new(seq) || cqc_results_apply(model))
			continue;
		while (seq->n_ents > before)
			cqc_ent_drop(seq, &seq->ents[--seq->n_ents]);
		return cqc_fail(-ENOBUFS, seq->model->gpu && model->arena.free_bytes ?
				"no slot is leased yet (%llu of %llu bytes of the arena free); "
				"wait on cq_event_fd() or close a sequence" :
				"the arena is full (%llu of %llu bytes free); wait "
				"on cq_event_fd(), close a sequence or ask for more "
				"at cq_model_open()",
				(unsigned long long)model->arena.free_bytes,
				(unsigned long long)model->arena.bytes);
	}
	return 0;
}

/**
 * cqc_ent_parts() - the reading rule
 * @seq:  sequence
 * @i:    entry
 * @want: tokens of it
 *
 * Sidecar if listed there, else fp16 while the sequence holds it, else codes.
 *
 * Return: masks that do not overlap and together are @want.
 */
struct cqc_parts cqc_ent_parts(const struct cq_seq *seq, uint32_t i, uint64_t want)
{
	const struct cqc_ent *ent = &seq->ents[i];
	struct cqc_parts p = { 0 };

	if (!i && ent->pg->sink.data)
		p.sink = want & cqc_low(seq->model->m.sinks);
	if (ent->f16 != CQC_NONE)
		p.f16 = want & ent->f16_mask & ~p.sink;
	p.codes = want & ~p.sink & ~p.f16;
	return p;
}

/**
 * cqc_steps_end() - steps that name a sequence are over
 * @seq: about to change
 */
void cqc_steps_end(struct cq_seq *seq)
{
	struct list_head *pos;

	list_for_each(pos, &seq->model->batches) {
		struct cq_batch *b = list_entry(pos, struct cq_batch, link);
		uint32_t i;

		for (i = 0; b->valid && i < b->n_seqs; i++)
			if (b->seqs[i] == seq)
				cqc_batch_end_step(b);
	}
}

CQ_API size_t cq_seq_length(const struct cq_seq *seq)
{
	return cqc_seq_check(seq) ? 0 : seq->len;
}

CQ_API int cq_seq_get_info(struct cq_seq *seq, struct cq_seq_info *info)
{
	struct cq_seq_info s = { 0 };
	const struct cqk_model *m;
	uint32_t i, full;
	int ret = cqc_seq_check(seq);

	if (ret)
		return ret;
	cqc_results_apply(seq->model);
	m = &seq->model->m;
	s.tokens = seq->len;
	s.matched = seq->matched;
	full = (uint32_t)(seq->len / CQ_PAGE_TOKENS);
	s.pages = full;
	for (i = 0; i < seq->n_ents; i++) {
		const struct cqc_ent *e = &seq->ents[i];
		size_t first = (size_t)i * CQ_PAGE_TOKENS;
		size_t n = seq->len > first ? MIN(seq->len - first, (size_t)CQ_PAGE_TOKENS) : 0;
		uint64_t codes = cqc_ent_parts(seq, i, cqc_low((uint32_t)n)).codes;

		if (i < full && (e->pg->slot.word || e->pg->pinned))
			s.sealed += CQ_PAGE_TOKENS;
		s.coded += (uint64_t)__builtin_popcountll(codes);
		if (e->pg->slot.word)
			s.shared_bytes += m->slot_bytes;
		if (e->pg->sink.word)
			s.shared_bytes += m->sink_slot_bytes;
		s.private_bytes += e->f16 != CQC_NONE ? seq->model->arena.unit : 0;
		s.private_bytes += e->pg->chunk != CQC_NONE ? seq->model->arena.chunk : 0;
		s.private_bytes += e->pg->sink_chunk != CQC_NONE ? seq->model->arena.chunk : 0;
	}
	return cqc_opts_out(info, &s, sizeof(s), "cq_seq_info");
}
