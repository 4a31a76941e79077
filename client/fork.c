// SPDX-License-Identifier: MIT
/* Fork and truncate: sequences that share pages, and that give tokens up. */
#include <errno.h>
#include <string.h>
#include "client/backend.h"

#define FORK_FLAGS (CQ_SEQ_NOMATCH | CQ_SEQ_PRIVATE)

/* Sinks of page 0, [tokens] of them, back into a block of 64. */
static void sinks_restore(const struct cqk_model *m, const uint8_t *sink,
			  uint32_t tokens, uint16_t *block)
{
	uint32_t l, h, kv;

	for (l = 0; l < m->geom.n_layers; l++)
		for (h = 0; h < m->geom.n_kv_heads; h++)
			for (kv = 0; kv < 2; kv++)
				memcpy(block + cqc_f16_at(m, CQ_PAGE_TOKENS, l, h, kv),
				       sink + 2 * cqc_f16_at(m, m->sinks, l, h, kv),
				       (size_t)tokens * m->geom.head_dim * 2);
}

/* 0, or -ESTALE: what was copied out of a shared page may be another's. */
static int slot_still(const struct cqc_slot *slot)
{
	if (!slot->word)
		return 0;
	smp_rmb();	/* pairs with the store of the word before the slot is reused */
	if (smp_load_acquire(slot->word) == slot->expect)
		return 0;
	return cqc_fail(-ESTALE, "a shared page was taken back; close the sequence and open it "
				 "anew");
}

/**
 * cqc_host_part() - copy what a part-filled page keeps
 * @model: model
 * @from:  entry to begin like
 * @r:     tokens kept
 * @first: it is page 0
 * @e:     new entry; sinks that went back among its rows are set in its mask
 *
 * Return: 0.
 */
int cqc_host_part(struct cq_model *model, const struct cqc_ent *from, uint32_t r, bool first,
		  struct cqc_ent *e)
{
	const struct cqk_model *m = &model->m;
	uint32_t sinks;

	if (e->pg->n_coded)
		memcpy(cqc_chunk_ptr(&model->arena, e->pg->chunk), from->pg->codes, m->payload);
	if (from->f16 != CQC_NONE) {
		memcpy(cqc_block_ptr(&model->arena, e->f16),
		       cqc_block_ptr(&model->arena, from->f16), m->f16_block);
	} else if (first && from->pg->sink.data) {
		sinks = MIN(m->sinks, r);
		sinks_restore(m, from->pg->sink.data, sinks,
			      cqc_block_ptr(&model->arena, e->f16));
		e->f16_mask |= cqc_low(sinks);
	}
	return 0;
}

/**
 * part_make() - a part-filled page that begins like another
 * @model: model
 * @from:  entry to begin like
 * @r:     tokens kept, 1..63
 * @first: it is page 0
 * @out:   filled: new page object and block
 *
 * Codes stay verbatim, fp16 rows that are there stay too, sinks go back among
 * them, so that they are there when the page is full again.
 *
 * Return: 0; -ENOBUFS; -ESTALE. Nothing changed on failure.
 */
static int part_make(struct cq_model *model, const struct cqc_ent *from, uint32_t r,
		     bool first, struct cqc_ent *out)
{
	const struct cqk_model *m = &model->m;
	struct cqc_ent e = { .f16 = cqc_block_new(&model->arena) };
	int ret;

	e.pg = cqc_pg_private(model, first && m->sinks);
	if (e.f16 == CQC_NONE || !e.pg) {
		ret = cqc_fail(-ENOBUFS, "the arena is full; close a sequence or ask for more "
					 "at cq_model_open()");
		goto err_put;
	}
	cqc_extra_get(e.pg, from->pg->extra);
	memcpy(e.pg->tokens, from->pg->tokens, r * sizeof(e.pg->tokens[0]));
	e.pg->n_coded = MIN(from->pg->n_coded, r);
	e.f16_mask = ~cqc_low(r);
	if (from->f16 != CQC_NONE)
		e.f16_mask |= from->f16_mask;
	ret = model->be->part(model, from, r, first, &e);
	if (!ret)
		ret = slot_still(&from->pg->slot);
	if (!ret)
		ret = slot_still(&from->pg->sink);
	if (ret)
		goto err_put;
	*out = e;
	return 0;

err_put:
	if (e.f16 != CQC_NONE)
		cqc_block_put(&model->arena, e.f16);
	cqc_pg_put(e.pg);
	return ret;
}

static void drop_from(struct cq_seq *seq, uint32_t n)
{
	while (seq->n_ents > n)
		cqc_ent_drop(seq, &seq->ents[--seq->n_ents]);
}

static int truncate_inside(struct cq_seq *seq, uint32_t p, uint32_t r)
{
	struct cqc_ent *ent = &seq->ents[p];
	struct cqc_ent part;
	int ret;

	if (ent->pg->n_coded < CQ_PAGE_TOKENS) {	/* ours alone already */
		ent->pg->n_coded = MIN(ent->pg->n_coded, r);
		ent->f16_mask |= ~cqc_low(r);
		return 0;
	}
	ret = part_make(seq->model, ent, r, !p, &part);
	if (ret)
		return ret;
	cqc_orphans_mark(seq, p);
	cqc_ent_drop(seq, ent);
	*ent = part;
	return 0;
}

CQ_API int cq_truncate(struct cq_seq *seq, size_t n)
{
	uint32_t p, r;
	int ret = cqc_seq_check(seq);

	if (ret)
		return ret;
	if (n > seq->len)
		return cqc_fail(-EINVAL, "cq_truncate: %zu tokens; the sequence has %zu",
				n, seq->len);
	cqc_steps_end(seq);
	cqc_results_apply(seq->model);
	p = (uint32_t)(n / CQ_PAGE_TOKENS);
	r = (uint32_t)(n % CQ_PAGE_TOKENS);
	if (r) {
		ret = truncate_inside(seq, p, r);
		if (ret)
			return ret;
	}
	seq->f16_lo = MIN(seq->f16_lo, p);
	p += r != 0;
	cqc_orphans_mark(seq, p);
	drop_from(seq, p);
	memset(seq->appended, 0, seq->model->m.geom.n_layers * sizeof(*seq->appended));
	seq->len = n;
	seq->matched = MIN(seq->matched, n);
	cqc_wake(seq->model->ctx);	/* pins of pages that went */
	return 0;
}

/**
 * cqc_seq_quiet() - has a sequence committed all that was appended?
 * @seq:  sequence
 * @what: for the text
 *
 * Return: 0 or -EBUSY.
 */
int cqc_seq_quiet(const struct cq_seq *seq, const char *what)
{
	uint32_t l;

	for (l = 0; l < seq->model->m.geom.n_layers; l++)
		if (seq->appended[l])
			return cqc_fail(-EBUSY, "%s: layer %u has %u tokens that are not "
						"committed",
					what, l, seq->appended[l]);
	return 0;
}

static int fork_check(const struct cq_seq *seq, const struct cq_seq_opts *opts,
		      struct cq_seq_opts *o)
{
	int ret = cqc_seq_check(seq);

	if (!ret)
		ret = cqc_opts_in(o, sizeof(*o), opts, "cq_seq_opts");
	if (!ret)
		ret = cqc_priority_check(o);
	if (ret)
		return ret;
	if (!opts) {
		o->flags = seq->flags;
		o->priority = seq->priority;
		o->ttl_s = seq->ttl_s;
	}
	if (o->flags & ~FORK_FLAGS || o->extra || o->extra_len)
		return cqc_fail(-EINVAL, "cq_fork: unknown flags 0x%x, or extra bytes (they "
					 "are inherited)",
				o->flags & ~FORK_FLAGS);
	if (o->position && o->position != seq->position)
		return cqc_fail(-EINVAL, "cq_fork: position %u; it is inherited, %u",
				o->position, seq->position);
	return cqc_seq_quiet(seq, "cq_fork");
}

static void ents_share(struct cq_seq *to, const struct cq_seq *from, uint32_t n)
{
	uint32_t i;

	for (i = 0; i < n; i++) {
		to->ents[i] = from->ents[i];
		cqc_pg_get(to->ents[i].pg);
		if (to->ents[i].f16 != CQC_NONE)
			cqc_block_get(&to->model->arena, to->ents[i].f16);
	}
	to->n_ents = n;
	to->f16_lo = MIN(from->f16_lo, n);
}

CQ_API int cq_fork(struct cq_seq *seq, const struct cq_seq_opts *opts, struct cq_seq **out)
{
	struct cq_seq_opts o;
	struct cq_seq *child;
	uint32_t full, r;
	int ret;

	if (!out)
		return cqc_fail(-EINVAL, "cq_fork: no place for the result");
	ret = fork_check(seq, opts, &o);
	if (ret)
		return ret;
	cqc_results_apply(seq->model);
	child = cqc_seq_alloc(seq->model, seq->position, o.flags);
	if (!child)
		return -ENOMEM;
	full = (uint32_t)(seq->len / CQ_PAGE_TOKENS);
	r = (uint32_t)(seq->len % CQ_PAGE_TOKENS);
	ents_share(child, seq, full);
	if (r) {
		ret = part_make(seq->model, &seq->ents[full], r, !full, &child->ents[full]);
		if (ret) {
			cqc_seq_free(child);
			return ret;
		}
		child->n_ents = full + 1;
	}
	child->len = seq->len;
	child->matched = seq->matched;
	child->priority = o.priority;
	child->ttl_s = o.ttl_s;
	child->extra = seq->extra;
	if (child->extra)
		child->extra->refs++;
	child->pin = seq->pin;
	if (child->pin)
		child->pin->refs++;
	/* A private sequence's pages are not published yet. */
	if (seq->flags & CQ_SEQ_PRIVATE && !(o.flags & CQ_SEQ_PRIVATE))
		cqc_pages_order(child, full);
	*out = child;
	return 0;
}
