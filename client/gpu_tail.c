// SPDX-License-Identifier: MIT
/*
 * What the host sees of a sequence on a device: rows that are read back, and
 * tails, which lie in memory of the host's until cqd has copied them. All of it
 * goes over the model's stream, behind what was given to it before, and is
 * waited for.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "client/gpu.h"
#include "client/tail.h"

/* @bytes to the host; there when done() has returned. */
static int fetch(struct cqc_gpu *g, void *to, const void *from, uint64_t bytes)
{
	int r = g->cu->cuMemcpyDtoHAsync(to, (uintptr_t)from, bytes, g->stream);

	return r ? cqc_gpu_fail(g, r, "copying from the device") : 0;
}

static int bring(struct cqc_gpu *g, cqcu_ptr to, const void *from, uint64_t bytes)
{
	int r = g->cu->cuMemcpyHtoDAsync(to, from, bytes, g->stream);

	return r ? cqc_gpu_fail(g, r, "copying to the device") : 0;
}

static int done(struct cqc_gpu *g, int ret)
{
	return cqc_gpu_finish(g, g->stream, ret, "waiting for copies");
}

/* --- reading --- */

/**
 * cqc_gpu_fetch() - copy one layer of a page
 * @seq:   sequence
 * @i:     page
 * @layer: layer
 * @p:     what of it will be read
 * @buf:   [cqc_fetch_at().end]
 * @out:   filled, into @buf
 *
 * Return: 0 or -errno with text.
 */
int cqc_gpu_fetch(const struct cq_seq *seq, uint32_t i, uint32_t layer,
		  const struct cqc_parts *p, uint8_t *buf, struct cqc_fetched *out)
{
	const struct cq_model *model = seq->model;
	const struct cqk_model *m = &model->m;
	const struct cqc_ent *ent = &seq->ents[i];
	struct cqc_fetch_at at = cqc_fetch_at(m, layer);
	struct cqc_gpu *g = model->gpu;
	int ret = cqc_gpu_in(g);

	if (ret)
		return ret;
	out->codes = buf;
	out->f16 = (const uint16_t *)(const void *)(buf + at.f16);
	out->sink = (const uint16_t *)(const void *)(buf + at.sink);
	if (p->codes)
		ret = fetch(g, buf, ent->pg->codes + cqc_code_at(m, layer, 0, 0), at.codes);
	if (!ret && p->f16)
		ret = fetch(g, buf + at.f16, cqc_block_ptr(&model->arena, ent->f16) +
			    cqc_f16_at(m, CQ_PAGE_TOKENS, layer, 0, 0), at.sink - at.f16);
	if (!ret && p->sink)
		ret = fetch(g, buf + at.sink, ent->pg->sink.data +
			    2 * cqc_f16_at(m, m->sinks, layer, 0, 0), at.end - at.sink);
	ret = done(g, ret);
	cqc_gpu_out(g);
	return ret;
}

/* --- to cqd --- */

/* Copies of all entries behind the head; *at moves. */
static int entries_fetch(const struct cqc_draft *d, uint8_t *at)
{
	const struct cq_model *model = d->seq->model;
	const struct cqk_model *m = &model->m;
	struct cqc_gpu *g = model->gpu;
	uint32_t i;
	int ret = 0;

	for (i = 0; i < d->head.n_entries && !ret; i++) {
		const struct cqp_tail_entry *e = &d->entry[i];
		const struct cqc_ent *ent = &d->seq->ents[e->index];

		if (e->parts & CQP_TAIL_F16) {
			ret = fetch(g, at, cqc_block_ptr(&model->arena, ent->f16), m->f16_block);
			at += m->f16_block;
		}
		if (!ret && e->parts & CQP_TAIL_CODES) {
			ret = fetch(g, at, ent->pg->codes, m->payload);
			at += m->payload;
		}
		if (!ret && e->parts & CQP_TAIL_SINKS) {
			ret = fetch(g, at, ent->pg->sink.data, m->sink_payload);
			at += m->sink_payload;
		}
	}
	return ret;
}

/* A slot that cqd has forgotten may be another's by now. */
static int own_still(const struct cq_pg *pg)
{
	struct cqc_check c = cqc_slot_word(&pg->own);

	return cqc_words_check(&c, 1);
}

static int not_finite(const struct cqp_tail_entry *e)
{
	return cqc_fail(-EINVAL, "page %u has a value that is NaN, Inf or beyond fp16", e->index);
}

/* What nobody may see goes, and what nobody could take is refused. */
static int entries_cut(const struct cqc_draft *d, uint8_t *at)
{
	const struct cqk_model *m = &d->seq->model->m;
	uint32_t i;
	int ret = 0;

	for (i = 0; i < d->head.n_entries && !ret; i++) {
		const struct cqp_tail_entry *e = &d->entry[i];

		if (e->parts & CQP_TAIL_F16) {
			if (!cqc_rows_finite(m, at, e->f16_mask))
				return not_finite(e);
			cqc_f16_cut(m, at, e->f16_mask, at);
			at += m->f16_block;
		}
		if (e->parts & CQP_TAIL_CODES) {
			if (!cqc_codes_finite(m, e->n_coded, at))
				return not_finite(e);
			cqc_codes_cut(m, e->n_coded, at);
			at += m->payload;
			ret = own_still(d->seq->ents[e->index].pg);
		}
		if (e->parts & CQP_TAIL_SINKS) {
			if (!cqc_halves_finite(at, m->sink_payload / 2))
				return not_finite(e);
			at += m->sink_payload;
		}
	}
	return ret;
}

/**
 * cqc_gpu_tail_put() - a tail in memory of its own
 * @d: described; its memory and extent are filled in
 *
 * Return: 0; -EINVAL a value that no fp16 can hold; -ESTALE; -ENOMEM; -errno.
 */
int cqc_gpu_tail_put(struct cqc_draft *d)
{
	struct cqc_gpu *g = d->seq->model->gpu;
	uint64_t unit = ALIGN_UP(d->head.bytes / 4 + 1, 64);
	uint8_t *at;
	int ret = cqc_arena_init(&d->own, 4 * unit, unit, unit, cqc_err());

	if (!ret)
		ret = cqc_gpu_in(g);
	if (ret)
		return ret;
	memcpy(d->own.base, d->meta, d->meta_bytes);
	at = d->own.base + d->meta_bytes;
	ret = done(g, entries_fetch(d, at));
	cqc_gpu_out(g);
	d->extent[d->n_extents++] = (struct cqp_extent){ 0, d->head.bytes };
	return ret ? ret : entries_cut(d, at);
}

/* --- from there --- */

/*
 * A part-filled page on a device has codes of all its tokens and, of page 0, its
 * sinks, since they are made as tokens are appended.
 */
static int part_bring(const struct cq_model *model, struct cq_pg *pg, const struct cqc_piece *p)
{
	const struct cqk_model *m = &model->m;
	struct cqc_gpu *g = model->gpu;
	uint8_t *codes = calloc(1, ALIGN_UP(m->payload, 8) + m->sink_payload);
	uint16_t *f16 = malloc(m->f16_block);
	uint8_t *sinks;
	int ret = 0;

	if (!codes || !f16) {
		ret = cqc_fail(-ENOMEM, "out of memory for a page");
		goto out;
	}
	sinks = codes + ALIGN_UP(m->payload, 8);
	if (p->codes)
		memcpy(codes, p->codes, m->payload);
	if (p->f16) {
		memcpy(f16, p->f16, m->f16_block);
		cqc_codes_make(model, f16, pg->n_coded, codes);
	}
	if (p->f16 && pg->sink_chunk != CQC_NONE) {
		cqc_sinks_make(m, f16, sinks);
		ret = bring(g, cqc_lease_rw(g, pg->sink_chunk), sinks, m->sink_payload);
	}
	if (!ret)
		ret = bring(g, cqc_lease_rw(g, pg->chunk), codes, m->payload);
	ret = done(g, ret);
out:
	free(codes);
	free(f16);
	return ret;
}

static int full_bring(struct cqc_gpu *g, const struct cqk_model *m, struct cq_pg *pg,
		      const struct cqc_piece *p)
{
	int ret = bring(g, cqc_lease_rw(g, pg->chunk), p->codes, m->payload);

	if (ret || !p->sinks)
		return ret;
	pg->sink.data = cqc_lease_ro(g, pg->sink_chunk);
	return bring(g, cqc_lease_rw(g, pg->sink_chunk), p->sinks, m->sink_payload);
}

/**
 * cqc_gpu_tail_take() - what came for an entry, to the device
 * @seq: sequence; the entry has its page and block
 * @p:   what came
 *
 * Return: 0; -ENOMEM; -errno of the driver.
 */
int cqc_gpu_tail_take(struct cq_seq *seq, const struct cqc_piece *p)
{
	const struct cqc_ent *ent = &seq->ents[p->e->index];
	const struct cq_model *model = seq->model;
	struct cqc_gpu *g = model->gpu;
	int ret = cqc_gpu_in(g);

	if (ret)
		return ret;
	WRITE_ONCE(g->dirty, true);
	if (p->f16)
		ret = bring(g, (uintptr_t)cqc_block_ptr(&model->arena, ent->f16), p->f16,
			    model->m.f16_block);
	if (!ret && p->part)
		ret = part_bring(model, ent->pg, p);
	else if (!ret && p->codes)
		ret = full_bring(g, &model->m, ent->pg, p);
	ret = done(g, ret);
	cqc_gpu_out(g);
	return ret;
}
