// SPDX-License-Identifier: MIT
/*
 * Batches and steps: the one block of memory that tells the kernels what to
 * read. A page that several sequences of a step share is one block with
 * several spans, decoded once.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "client/backend.h"

#define MAX_SEQS (1u << 16)
#define MAX_ROWS (1u << 20)
#define MAX_USES (1u << 28)

/**
 * cqc_batch_check() - is it a batch of this process?
 * @b: the caller's
 *
 * Return: 0, -EINVAL or -EOWNERDEAD with text.
 */
int cqc_batch_check(const struct cq_batch *b)
{
	if (!b || b->magic != CQC_BATCH_MAGIC)
		return cqc_fail(-EINVAL, "not a batch");
	return cqc_alive(b->model->ctx);
}

/**
 * cqc_batch_stepped() - is it, and has it a step?
 * @b:    the caller's
 * @what: name of the call, for the text
 *
 * Return: 0, -EINVAL or -EOWNERDEAD with text.
 */
int cqc_batch_stepped(const struct cq_batch *b, const char *what)
{
	int ret = cqc_batch_check(b);

	if (!ret && !b->valid)
		ret = cqc_fail(-EINVAL, "%s: no step, or it is over; call cq_step()", what);
	return ret;
}

/**
 * cqc_batch_end_step() - a step is over
 * @b: its tables must not be read any more
 */
void cqc_batch_end_step(struct cq_batch *b)
{
	uint32_t i;

	for (i = 0; i < b->n_held; i++)
		b->held[i]->busy--;
	b->n_held = 0;
	b->valid = false;
}

static int batch_arrays(struct cq_batch *b)
{
	size_t uses = b->max_uses, table = 2;

	while (table < uses * 2)
		table *= 2;
	b->table_mask = (uint32_t)(table - 1);
	b->seqs = calloc(b->max_seqs, sizeof(*b->seqs));
	b->rows = calloc(b->max_seqs, sizeof(*b->rows));
	b->row_pos = calloc(b->max_rows, sizeof(*b->row_pos));
	b->blocks = calloc(uses, sizeof(*b->blocks));
	b->spans = calloc(uses, sizeof(*b->spans));
	b->tmp = calloc(uses, sizeof(*b->tmp));
	b->use = calloc(uses, sizeof(*b->use));
	b->checks = calloc(uses, sizeof(*b->checks));
	b->held = calloc(uses, sizeof(*b->held));
	b->check_of = calloc(uses, sizeof(*b->check_of));
	b->place = calloc(uses, sizeof(*b->place));
	b->table = calloc(table, sizeof(*b->table));
	return b->seqs && b->rows && b->row_pos && b->blocks && b->spans && b->tmp && b->use &&
		b->checks && b->held && b->check_of && b->place && b->table ? 0 : -ENOMEM;
}

static void batch_destroy(struct cq_batch *b)
{
	free(b->seqs);
	free(b->rows);
	free(b->row_pos);
	free(b->blocks);
	free(b->spans);
	free(b->tmp);
	free(b->use);
	free(b->checks);
	free(b->held);
	free(b->check_of);
	free(b->place);
	free(b->table);
	b->model->be->batch_free(b);
	free(b);
}

/* Spans that a step may have, 0 if that is too many; sets max_ents. */
static uint32_t batch_uses(struct cq_batch *b, uint64_t max_tokens)
{
	const struct cqk_geom *g = &b->model->m.geom;
	uint64_t uses;

	if (!max_tokens || max_tokens > g->max_position)
		max_tokens = g->max_position;
	b->max_ents = (uint32_t)((max_tokens + CQ_PAGE_TOKENS - 1) / CQ_PAGE_TOKENS);
	/* A page gives two spans at most (fp16 and codes), page 0 its sinks too. */
	uses = b->max_seqs * (2ull * b->max_ents + 1);
	if (b->max_seqs > MAX_SEQS || b->max_rows > MAX_ROWS || uses > MAX_USES)
		return 0;
	return (uint32_t)uses;
}

/**
 * cqc_host_batch_split() - scratch for every kv head and part: such calls may run at once
 * @b:       batch
 * @n_parts: parts
 *
 * Return: 0 or -ENOMEM with text.
 */
int cqc_host_batch_split(struct cq_batch *b, uint32_t n_parts)
{
	size_t head = ALIGN_UP(b->model->ops->scratch_bytes(&b->model->m, b->max_rows), 64);
	uint8_t *p = aligned_alloc(64, head * b->model->m.geom.n_kv_heads * n_parts);

	if (!p)
		return cqc_fail(-ENOMEM, "out of memory for a batch of %u rows in %u parts",
				b->max_rows, n_parts);
	free(b->scratch);
	b->scratch = p;
	b->scratch_head = head;
	b->n_parts = n_parts;
	return 0;
}

/**
 * cqc_host_batch_new() - memory of a batch
 * @b: batch
 *
 * Return: 0 or -ENOMEM with text.
 */
int cqc_host_batch_new(struct cq_batch *b)
{
	return cqc_host_batch_split(b, 1);
}

CQ_API int cq_batch_new(struct cq_model *model, uint32_t max_seqs, uint32_t max_rows,
			uint64_t max_tokens, struct cq_batch **out)
{
	struct cq_batch *b;
	int ret = cqc_model_check(model);

	if (ret)
		return ret;
	if (!out || !max_seqs || !max_rows)
		return cqc_fail(-EINVAL, "cq_batch_new: no sequences, no rows or no place for "
					 "the result");
	b = calloc(1, sizeof(*b));
	if (!b)
		return cqc_fail(-ENOMEM, "out of memory");
	b->magic = CQC_BATCH_MAGIC;
	b->model = model;
	b->n_parts = 1;
	b->max_seqs = max_seqs;
	b->max_rows = max_rows;
	b->max_uses = batch_uses(b, max_tokens);
	if (!b->max_uses) {
		ret = cqc_fail(-EINVAL, "cq_batch_new: %u sequences of %u pages, %u rows; "
			       "at most %u, %u pages in all and %u rows",
			       max_seqs, b->max_ents, max_rows, MAX_SEQS, MAX_USES / 2,
			       MAX_ROWS);
		goto err_free;
	}
	ret = batch_arrays(b);
	if (ret)
		cqc_fail(ret, "out of memory for a batch of %u sequences, %u rows", max_seqs,
			 max_rows);
	else
		ret = model->be->batch_new(b);
	if (ret)
		goto err_free;
	list_add_tail(&b->link, &model->batches);
	*out = b;
	return 0;

err_free:
	batch_destroy(b);
	return ret;
}

CQ_API int cq_batch_split(struct cq_batch *batch, uint32_t n_parts)
{
	int ret = cqc_batch_check(batch);

	if (ret)
		return ret;
	if (!n_parts || n_parts > CQ_MAX_PARTS)
		return cqc_fail(-EINVAL, "cq_batch_split: %u parts; 1 to %d", n_parts,
				CQ_MAX_PARTS);
	return batch->model->be->batch_split(batch, n_parts);
}

CQ_API void cq_batch_free(struct cq_batch *batch)
{
	if (!batch || cqc_batch_check(batch))
		return;
	cqc_batch_end_step(batch);
	list_del(&batch->link);
	batch->magic = 0;
	batch_destroy(batch);
}

/* --- building a step --- */

static uint32_t hash_ptr(const void *p)
{
	/* Fibonacci hashing (Knuth, TAOCP 3, 6.4); bases are 64-byte multiples
	 * apart. */
	return (uint32_t)(((uintptr_t)p >> 6) * 0x9e3779b97f4a7c15ull >> 32);
}

/* Block that begins at @base, a new one if there is none. */
static uint32_t block_get(struct cq_batch *b, const uint8_t *base, uint32_t kind,
			  uint32_t tokens, bool shared)
{
	uint32_t at = 0, n = b->n_blocks;

	if (shared) {
		at = hash_ptr(base) & b->table_mask;
		while (b->table[at]) {
			if (b->blocks[b->table[at] - 1].base == base)
				return b->table[at] - 1;
			at = (at + 1) & b->table_mask;
		}
		b->table[at] = n + 1;
	}
	b->place[n] = at;
	b->check_of[n] = 0;
	b->blocks[n] = (struct cqk_block){ .base = base, .kind = kind, .tokens = tokens };
	b->n_blocks++;
	return n;
}

static void check_add(struct cq_batch *b, uint32_t block, const struct cqc_slot *slot)
{
	uint32_t c = b->check_of[block];

	if (!slot || !slot->word)
		return;
	if (c && b->checks[c - 1].expect == slot->expect)
		return;
	b->checks[b->n_checks] = cqc_slot_word(slot);
	b->checks[b->n_checks].block = block;
	b->check_of[block] = ++b->n_checks;
}

struct use {
	const uint8_t *base;
	uint32_t kind, tokens, pos;
	uint64_t mask;
	const struct cqc_slot *slot;
};

static void use_add(struct cq_batch *b, const struct use *u, uint32_t row_first,
		    uint32_t n_rows)
{
	struct cqk_span *s = &b->tmp[b->n_uses];
	uint32_t block;

	if (!u->mask)
		return;
	block = block_get(b, u->base, u->kind, u->tokens, b->share);
	check_add(b, block, u->slot);
	b->blocks[block].n_spans++;
	s->mask = u->mask;
	s->row_first = row_first;
	s->n_rows = n_rows;
	s->pos = u->pos;
	s->pad = 0;
	b->use[b->n_uses++] = block;
}

static void ent_add(struct cq_batch *b, const struct cq_seq *seq, uint32_t i,
		    uint64_t want, uint32_t row_first, uint32_t n_rows)
{
	const struct cqc_ent *ent = &seq->ents[i];
	struct cqc_parts p = cqc_ent_parts(seq, i, want);
	struct use u = { .pos = seq->position + i * CQ_PAGE_TOKENS };

	u.base = ent->pg->sink.data;
	u.kind = CQK_BLOCK_F16;
	u.tokens = seq->model->m.sinks;
	u.mask = p.sink;
	u.slot = &ent->pg->sink;
	use_add(b, &u, row_first, n_rows);
	u.tokens = CQ_PAGE_TOKENS;
	if (p.f16) {
		u.base = (const uint8_t *)cqc_block_ptr(&seq->model->arena, ent->f16);
		u.mask = p.f16;
		u.slot = NULL;
		use_add(b, &u, row_first, n_rows);
	}
	u.base = ent->pg->codes;
	u.kind = CQK_BLOCK_CODES;
	u.mask = p.codes;
	u.slot = ent->pg->slot.word ? &ent->pg->slot : &ent->pg->own;
	use_add(b, &u, row_first, n_rows);
	if ((p.codes || p.sink) && !ent->pg->slot.word) {
		ent->pg->busy++;
		b->held[b->n_held++] = ent->pg;
	}
}

static void seq_add(struct cq_batch *b, const struct cq_seq *seq, uint32_t rows)
{
	size_t end = seq->len + rows, first;
	uint32_t i, r;

	for (i = 0; rows && (first = (size_t)i * CQ_PAGE_TOKENS) < end; i++)
		ent_add(b, seq, i, cqc_low((uint32_t)MIN(end - first, (size_t)CQ_PAGE_TOKENS)),
			b->n_rows, rows);
	for (r = 0; r < rows; r++)
		b->row_pos[b->n_rows++] = seq->position + (uint32_t)seq->len + r;
}

/* Spans in the order of their blocks; the hash table is empty again. */
static void spans_group(struct cq_batch *b)
{
	uint32_t i, at = 0;

	for (i = 0; i < b->n_blocks; i++) {
		b->blocks[i].span_first = at;
		at += b->blocks[i].n_spans;
		b->blocks[i].n_spans = 0;
		if (b->share)
			b->table[b->place[i]] = 0;
	}
	for (i = 0; i < b->n_uses; i++) {
		struct cqk_block *block = &b->blocks[b->use[i]];

		b->spans[block->span_first + block->n_spans++] = b->tmp[i];
	}
}

static int step_check(struct cq_batch *b, struct cq_seq *const *seqs,
		      const uint32_t *rows, uint32_t n)
{
	uint64_t sum = 0, mark;
	uint32_t i;
	int ret;

	if (n && (!seqs || !rows))
		return cqc_fail(-EINVAL, "cq_step: no sequences or rows");
	if (n > b->max_seqs)
		return cqc_fail(-ENOSPC, "cq_step: %u sequences; the batch was made for %u",
				n, b->max_seqs);
	mark = ++b->model->steps;
	for (i = 0; i < n; i++) {
		ret = cqc_seq_check(seqs[i]);
		if (ret)
			return ret;
		if (seqs[i]->model != b->model)
			return cqc_fail(-EINVAL, "cq_step: sequence %u is of another model", i);
		if (seqs[i]->mark == mark)
			return cqc_fail(-EINVAL, "cq_step: sequence %u is named twice", i);
		seqs[i]->mark = mark;
		sum += rows[i];
		if (sum > b->max_rows)
			return cqc_fail(-ENOSPC, "cq_step: more rows than the %u the batch was "
						 "made for",
					b->max_rows);
		if (seqs[i]->len + rows[i] > (uint64_t)b->max_ents * CQ_PAGE_TOKENS)
			return cqc_fail(-ENOSPC, "cq_step: sequence %u has %zu tokens; the "
						 "batch was made for %llu",
					i, seqs[i]->len + rows[i],
					(unsigned long long)b->max_ents * CQ_PAGE_TOKENS);
	}
	return 0;
}

static void shrink(struct cq_seq *seq, uint32_t n_ents)
{
	while (seq->n_ents > n_ents)
		cqc_ent_drop(seq, &seq->ents[--seq->n_ents]);
}

/* Arena memory for all rows, or for none. */
static int step_reserve(struct cq_batch *b, struct cq_seq *const *seqs,
			const uint32_t *rows, uint32_t n)
{
	uint32_t i;
	int ret = 0;

	/* @use is free until the step is built. */
	for (i = 0; i < n && !ret; i++) {
		b->use[i] = seqs[i]->n_ents;
		ret = cqc_seq_grow(seqs[i], seqs[i]->len + rows[i]);
	}
	if (ret)
		while (i--)
			shrink(seqs[i], b->use[i]);
	return ret;
}

/* @share: pages that several sequences read are one block each. */
static void tables_make(struct cq_batch *b, bool share)
{
	uint32_t i;

	b->share = share;
	b->n_rows = b->n_blocks = b->n_uses = b->n_checks = 0;
	for (i = 0; i < b->n_seqs; i++)
		seq_add(b, b->seqs[i], b->rows[i]);
	spans_group(b);
}

CQ_API int cq_step(struct cq_batch *batch, struct cq_seq *const *seqs,
		   const uint32_t *rows, uint32_t n)
{
	struct cq_batch *b = batch;
	int ret;

	ret = cqc_batch_check(b);
	if (!ret)
		ret = step_check(b, seqs, rows, n);
	if (!ret)
		ret = step_reserve(b, seqs, rows, n);
	if (ret)
		return ret;
	cqc_batch_end_step(b);
	ret = b->model->be->step_begin(b, !n);
	if (ret)
		return ret;
	cqc_results_apply(b->model);
	b->n_seqs = n;
	if (n) {
		memcpy(b->seqs, seqs, n * sizeof(*seqs));
		memcpy(b->rows, rows, n * sizeof(*rows));
	}
	tables_make(b, n > 1);
	ret = b->model->be->step(b);
	if (ret == -ENOBUFS && n > 1) {
		/* Pages that are shared in too many ways for the kernels' tables. */
		cqc_batch_end_step(b);
		tables_make(b, false);
		ret = b->model->be->step(b);
	}
	if (ret) {
		cqc_batch_end_step(b);
		return ret;
	}
	b->valid = true;
	return 0;
}
