// SPDX-License-Identifier: MIT
/* Pieces of tails, and where they lie in the memory of the host. */
#include <errno.h>
#include <string.h>
#include "client/tail.h"

/**
 * cqc_f16_cut() - copy an fp16 block without rows that are nobody's business
 * @m:    shard
 * @from: block
 * @mask: tokens that are copied; rows of others are 0
 * @to:   block, may be @from
 */
void cqc_f16_cut(const struct cqk_model *m, const uint8_t *from, uint64_t mask, uint8_t *to)
{
	size_t row = m->geom.head_dim * 2u, i, n = m->f16_block / row;

	for (i = 0; i < n; i++) {
		if (mask >> i % CQ_PAGE_TOKENS & 1)
			memmove(to + i * row, from + i * row, row);
		else
			memset(to + i * row, 0, row);
	}
}

/* Codes of tokens from @n on become 0, in one block of 64. */
static void block_cut(const struct cqk_codebook *cb, uint32_t n, uint8_t *codes)
{
	uint32_t g, t, d = cb->head_dim;

	if (cb->code.type == CQ_CODE_F16) {
		memset(codes + (size_t)n * d * 2, 0, (size_t)(CQ_PAGE_TOKENS - n) * d * 2);
		return;
	}
	for (g = 0; g < cb->n_groups; g++)
		for (t = n; t < CQ_PAGE_TOKENS; t++)
			cq_code_put(codes, cb->code, cb->n_groups, g, t, 0);
}

/**
 * cqc_codes_cut() - the same for codes
 * @m:     shard
 * @n:     tokens that stay
 * @codes: payload
 */
void cqc_codes_cut(const struct cqk_model *m, uint32_t n, uint8_t *codes)
{
	uint32_t l, h;

	for (l = 0; l < m->geom.n_layers; l++)
		for (h = 0; h < m->geom.n_kv_heads; h++) {
			block_cut(&m->layers[l].k, n, codes + cqc_code_at(m, l, h, 0));
			block_cut(&m->layers[l].v, n, codes + cqc_code_at(m, l, h, 1));
		}
}

/**
 * cqc_halves_finite() - are they what cq_append() may leave behind?
 * @p: [@n] halves, unaligned
 * @n: their number
 *
 * Return: false: one is NaN or Inf.
 */
bool cqc_halves_finite(const uint8_t *p, size_t n)
{
	uint16_t x;
	size_t i;

	for (i = 0; i < n; i++) {
		memcpy(&x, p + 2 * i, 2);
		if ((x & 0x7c00) == 0x7c00)
			return false;
	}
	return true;
}

/**
 * cqc_rows_finite() - the same of rows of a block
 * @m:     shard
 * @block: fp16 block, unaligned
 * @mask:  tokens to look at
 *
 * Return: false: one has a NaN or Inf.
 */
bool cqc_rows_finite(const struct cqk_model *m, const uint8_t *block, uint64_t mask)
{
	size_t row = m->geom.head_dim, i, n = m->f16_block / (2 * row);

	for (i = 0; i < n; i++)
		if (mask >> i % CQ_PAGE_TOKENS & 1 && !cqc_halves_finite(block + 2 * i * row, row))
			return false;
	return true;
}

static bool block_finite(const struct cqk_codebook *cb, uint32_t n, const uint8_t *codes)
{
	return cb->code.type != CQ_CODE_F16 || cqc_halves_finite(codes, (size_t)n * cb->head_dim);
}

/**
 * cqc_codes_finite() - the same of a page's codes that are halves
 * @m:     shard
 * @n:     tokens to look at
 * @codes: payload, unaligned
 *
 * Return: false: one has a NaN or Inf.
 */
bool cqc_codes_finite(const struct cqk_model *m, uint32_t n, const uint8_t *codes)
{
	uint32_t l, h;

	for (l = 0; l < m->geom.n_layers; l++)
		for (h = 0; h < m->geom.n_kv_heads; h++)
			if (!block_finite(&m->layers[l].k, n, codes + cqc_code_at(m, l, h, 0)) ||
			    !block_finite(&m->layers[l].v, n, codes + cqc_code_at(m, l, h, 1)))
				return false;
	return true;
}

/* --- to cqd --- */

static int extent_add(struct cqc_draft *d, uint64_t offset, uint64_t bytes)
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
static int unit_add(struct cqc_draft *d, uint64_t bytes, uint8_t **out)
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

static int put_meta(struct cqc_draft *d)
{
	uint64_t at, n, unit = d->seq->model->arena.unit;
	uint8_t *to;
	int ret = 0;

	for (at = 0; at < d->meta_bytes && !ret; at += n) {
		n = MIN(d->meta_bytes - at, unit);
		ret = unit_add(d, n, &to);
		if (!ret)
			memcpy(to, d->meta + at, n);
	}
	return ret;
}

static int put_f16(struct cqc_draft *d, const struct cqp_tail_entry *e)
{
	const struct cq_model *model = d->seq->model;
	uint32_t block = d->seq->ents[e->index].f16;
	uint8_t *to;
	int ret;

	if (e->f16_mask == ~0ull)
		return extent_add(d, model->arena.unit * block, model->m.f16_block);
	ret = unit_add(d, model->m.f16_block, &to);
	if (!ret)
		cqc_f16_cut(&model->m, (const uint8_t *)cqc_block_ptr(&model->arena, block),
			    e->f16_mask, to);
	return ret;
}

static int put_codes(struct cqc_draft *d, const struct cqp_tail_entry *e)
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
		cqc_codes_cut(&model->m, e->n_coded, to);
	}
	return ret;
}

/**
 * cqc_host_tail_put() - a tail in pieces, most of which are in the arena already
 * @d: described; its extents and blocks are filled in
 *
 * Nothing leaves that the sequence does not read: rows and codes of other tokens
 * in a block are cut off in a copy.
 *
 * Return: 0; -ENOBUFS; -EMSGSIZE.
 */
int cqc_host_tail_put(struct cqc_draft *d)
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

/* --- from there --- */

/**
 * cqc_host_tail_take() - what came for an entry
 * @seq: sequence; the entry has its page and block
 * @p:   what came
 *
 * Return: 0.
 */
int cqc_host_tail_take(struct cq_seq *seq, const struct cqc_piece *p)
{
	const struct cqc_ent *ent = &seq->ents[p->e->index];
	struct cqc_arena *a = &seq->model->arena;
	const struct cqk_model *m = &seq->model->m;
	uint8_t *sinks;

	if (p->f16)
		memcpy(cqc_block_ptr(a, ent->f16), p->f16, m->f16_block);
	if (p->codes)
		memcpy(cqc_chunk_ptr(a, ent->pg->chunk), p->codes, m->payload);
	if (!p->sinks)
		return 0;
	sinks = cqc_chunk_ptr(a, ent->pg->sink_chunk);
	memcpy(sinks, p->sinks, m->sink_payload);
	ent->pg->sink.data = sinks;
	return 0;
}
