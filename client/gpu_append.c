// SPDX-License-Identifier: MIT
/*
 * Keys and values into a device's memory, in one launch: fp16 rows into blocks
 * of the arena, codes into the slots where the pages will be published.
 */
#include <errno.h>
#include <string.h>
#include "client/gpu.h"

#define PIECE_PAGES 256u	/* of one launch */
#define PART (CQC_DEST_RING / 4)

_Static_assert(sizeof(struct cqc_dests) + (PIECE_PAGES + 3) * sizeof(struct cqkd_dest) <= PART,
	       "a piece fits into a part of the ring");

static int copy(struct cqc_gpu *g, cqcu_ptr to, cqcu_ptr from, uint64_t bytes)
{
	int r = g->cu->cuMemcpyDtoDAsync(to, from, bytes, g->stream);

	return r ? cqc_gpu_fail(g, r, "copying a page") : 0;
}

/* What was refused in @from was refused in @to; @to is in a slot of its own. */
static int bad_copy(struct cq_pg *to, const struct cq_pg *from, uint32_t own)
{
	struct cqc_gpu *g = to->model->gpu;
	int ret = copy(g, g->bads + 4ull * own, g->bads + 4ull * from->bad, sizeof(uint32_t));

	if (ret)
		return ret;
	to->born = from->born;
	to->tag = from->tag;
	to->bad = own;
	return 0;
}

static bool is_current(const struct cq_model *model, uint32_t lease)
{
	const struct cqc_gpu *g = model->gpu;

	/* Pairs with the release in cqc_gpu_resume(). */
	return lease == CQC_NONE || g->leases[lease].epoch == smp_load_acquire(&g->epoch);
}

static int move_to(struct cq_pg *pg, uint32_t codes, uint32_t sinks)
{
	const struct cqk_model *m = &pg->model->m;
	struct cqc_gpu *g = pg->model->gpu;
	int ret;

	ret = copy(g, cqc_lease_rw(g, codes), (uintptr_t)pg->codes, m->payload);
	if (!ret && sinks != CQC_NONE)
		ret = copy(g, cqc_lease_rw(g, sinks),
			   (uintptr_t)cqc_lease_ro(g, pg->sink_chunk), m->sink_payload);
	if (!ret)
		ret = bad_copy(pg, pg, codes);
	if (ret)
		return ret;
	WRITE_ONCE(g->dirty, true);
	cqc_gpu_pg_give(pg);
	cqc_gpu_pg_set(pg, codes, sinks);
	if (pg->sink.data)
		pg->sink.data = cqc_lease_ro(g, sinks);
	pg->hash = CQC_HASH_NONE;
	return 0;
}

/*
 * A cqd that lost everything has left the slots of before to those who mapped
 * them: what is there is copied into new ones. One that only forgot this session
 * may give them to others.
 */
static int page_move(struct cq_pg *pg)
{
	uint32_t codes, sinks = CQC_NONE;
	struct cq_model *model = pg->model;
	int ret = -ENOBUFS;

	if (model->gpu->leases[pg->chunk].seg->epoch == READ_ONCE(model->ctx->boot_epoch))
		return cqc_fail(-ESTALE, "cqd has forgotten this worker's slots; close the "
					 "sequence and open it anew");
	codes = cqc_gpu_take(model, 0);
	if (pg->sink_chunk != CQC_NONE)
		sinks = cqc_gpu_take(model, 1);
	if (codes != CQC_NONE && (sinks != CQC_NONE || pg->sink_chunk == CQC_NONE))
		ret = move_to(pg, codes, sinks);
	else
		cqc_fail(ret, "no slot is leased yet for a page of before cqd was started anew; "
			      "wait on cq_event_fd()");
	if (ret)
		cqc_gpu_unused(model, codes, sinks);
	return ret;
}

/* A lease that cqd has forgotten is written no more. */
static int lease_check(struct cq_pg *pg)
{
	if (is_current(pg->model, pg->chunk) && is_current(pg->model, pg->sink_chunk))
		return 0;
	return page_move(pg);
}

/**
 * cqc_gpu_place() - let a full page be in slots that it can be sealed from
 * @pg: about to be ordered; if it cannot be moved the engine says so
 */
void cqc_gpu_place(struct cq_pg *pg)
{
	if (pg->chunk == CQC_NONE || cqc_gpu_in(pg->model->gpu))
		return;
	lease_check(pg);
	cqc_gpu_out(pg->model->gpu);
}

/* Tokens [@at, @at + @n) of entry @i, whose first row is @row. */
static void dest_add(const struct cq_seq *seq, uint32_t i, uint32_t first, uint32_t count,
		     uint32_t row, struct cqc_dests *t)
{
	const struct cq_model *model = seq->model;
	const struct cqc_ent *ent = &seq->ents[i];
	struct cqkd_dest d = {
		.f16 = (uintptr_t)cqc_block_ptr(&model->arena, ent->f16),
		.codes = cqc_lease_rw(model->gpu, ent->pg->chunk),
		.tokens = CQ_PAGE_TOKENS, .first = first, .count = count, .row = row,
		.pos = seq->position + i * CQ_PAGE_TOKENS + first,
		.bad = model->gpu->bads + 4ull * ent->pg->bad, .tag = ent->pg->tag,
	};

	t->dest[t->n++] = d;
	if (ent->pg->sink_chunk == CQC_NONE || first >= model->m.sinks)
		return;
	d.f16 = cqc_lease_rw(model->gpu, ent->pg->sink_chunk);
	d.codes = 0;
	d.tokens = model->m.sinks;
	d.count = MIN(count, model->m.sinks - first);
	t->dest[t->n++] = d;
}

static uint32_t dests_at(const struct cqc_gpu *g)
{
	return g->dests_part * PART + g->dests_used;
}

/* Room for a table of @pages; the part of the ring that it begins has been read. */
static int ring_take(struct cq_model *model, uint32_t pages, struct cqc_dests **out)
{
	uint32_t bytes = (uint32_t)(sizeof(**out) + (pages + 1) * sizeof(struct cqkd_dest));
	struct cqc_gpu *g = model->gpu;
	int ret;

	if (g->dests_used + bytes > PART) {
		WRITE_ONCE(g->dirty, true);
		g->dests_fence[g->dests_part] = cqc_gpu_fence(model);
		g->dests_part = (g->dests_part + 1) % 4;
		g->dests_used = 0;
		ret = cqc_gpu_passed(g, g->dests_fence[g->dests_part], true);
		if (ret < 0)
			return ret;
	}
	*out = (struct cqc_dests *)(void *)(g->dests_host + dests_at(g));
	(*out)->n = 0;
	return 0;
}

/**
 * cqc_gpu_dests() - destinations of new tokens, behind those that a table has
 * @seq: sequence, which has entries for them
 * @at:  first token
 * @n:   tokens
 * @row: row of the views that is the first
 * @t:   table with room for n / 64 + 3 more
 *
 * Return: 0; -ESTALE with text.
 */
int cqc_gpu_dests(const struct cq_seq *seq, size_t at, size_t n, uint32_t row,
		  struct cqc_dests *t)
{
	size_t end = at + n;
	int ret = 0;

	while (at < end && !ret) {
		uint32_t i = (uint32_t)(at / CQ_PAGE_TOKENS);
		uint32_t first = (uint32_t)(at % CQ_PAGE_TOKENS);
		uint32_t count = (uint32_t)MIN(end - at, (size_t)CQ_PAGE_TOKENS - first);

		ret = lease_check(seq->ents[i].pg);
		if (!ret)
			dest_add(seq, i, first, count, row, t);
		row += count;
		at += count;
	}
	return ret;
}

/* Destinations of tokens [@at, @at + @n), copied to the device. */
static int table_make(const struct cqc_append *a, size_t at, size_t n)
{
	struct cq_model *model = a->seq->model;
	struct cqc_gpu *g = model->gpu;
	struct cqc_dests *t;
	uint32_t bytes;
	int ret, r;

	ret = ring_take(model, (uint32_t)(n / CQ_PAGE_TOKENS) + 2, &t);
	if (!ret)
		ret = cqc_gpu_dests(a->seq, at, n, 0, t);
	if (ret)
		return ret;
	bytes = (uint32_t)(sizeof(*t) + t->n * sizeof(t->dest[0]));
	r = g->cu->cuMemcpyHtoDAsync(g->dests + dests_at(g), t, bytes,
				     a->stream ? a->stream : g->stream);
	if (r)
		return cqc_gpu_fail(g, r, "copying destinations");
	g->last.seq = a->seq;
	g->last.at = at;
	g->last.n = n;
	g->last.n_dests = t->n;
	g->last.epoch = READ_ONCE(g->epoch);
	g->last.table = g->dests + dests_at(g);
	g->dests_used += (uint32_t)ALIGN_UP(bytes, 16);
	return 0;
}

static struct cq_view view_from(const struct cq_view *v, size_t row)
{
	struct cq_view out = *v;
	int64_t bytes = v->dtype == CQ_F32 ? 4 : 2;

	out.data = (char *)v->data + (int64_t)row * v->stride_token * bytes;
	return out;
}

static int piece(const struct cqc_append *a, size_t at, size_t row, size_t n)
{
	struct cqc_gpu *g = a->seq->model->gpu;
	struct cqk_cuda_append k = {
		.layer = a->layer, .k = view_from(a->k, row), .v = view_from(a->v, row),
		.turn = a->turn, .status = g->status,
	};
	int ret = 0;

	/* The next layer's tokens go to the same places. */
	if (g->last.seq != a->seq || g->last.at != at || g->last.n != n ||
	    g->last.epoch != READ_ONCE(g->epoch))
		ret = table_make(a, at, n);
	if (ret)
		return ret;
	k.n_dests = g->last.table;
	k.dests = g->last.table + offsetof(struct cqc_dests, dest);
	k.max_dests = g->last.n_dests;
	k.tokens = (uint32_t)n;
	WRITE_ONCE(g->dirty, true);
	return cqk_cuda_append(g->kernels, g->tabs, &k, a->stream ? a->stream : g->stream,
			       cqc_err());
}

/**
 * cqc_gpu_append() - rows into blocks and slots
 * @a:  call
 * @at: token that is the first
 * @n:  tokens
 *
 * Return: 0; -EINVAL a view is not of the device; -ESTALE; -errno of the driver.
 */
int cqc_gpu_append(const struct cqc_append *a, size_t at, size_t n)
{
	size_t done = 0, some;
	int ret = cqc_gpu_in(a->seq->model->gpu);

	if (ret)
		return ret;
	while (done < n && !ret) {
		some = MIN(n - done, (size_t)(PIECE_PAGES - 1) * CQ_PAGE_TOKENS);
		ret = piece(a, at + done, done, some);
		done += some;
	}
	cqc_gpu_out(a->seq->model->gpu);
	return ret;
}

/**
 * cqc_gpu_fill() - a page is full
 * @seq: sequence
 * @i:   page
 *
 * Its codes and sinks are there already, or will be before the next fence.
 */
void cqc_gpu_fill(const struct cq_seq *seq, uint32_t i)
{
	struct cq_pg *pg = seq->ents[i].pg;

	if (!i && pg->sink_chunk != CQC_NONE)
		pg->sink.data = cqc_lease_ro(seq->model->gpu, pg->sink_chunk);
}

/* --- part-filled pages --- */

/* Sinks of page 0, [@tokens] of them, back into a block of 64. */
static int sinks_restore(struct cq_model *model, cqcu_ptr sink, uint32_t tokens, cqcu_ptr block)
{
	const struct cqk_model *m = &model->m;
	uint32_t l, h, kv;
	int ret = 0;

	for (l = 0; l < m->geom.n_layers; l++)
		for (h = 0; h < m->geom.n_kv_heads; h++)
			for (kv = 0; kv < 2 && !ret; kv++)
				ret = copy(model->gpu,
					   block + 2 * cqc_f16_at(m, CQ_PAGE_TOKENS, l, h, kv),
					   sink + 2 * cqc_f16_at(m, m->sinks, l, h, kv),
					   (uint64_t)tokens * m->geom.head_dim * 2);
	return ret;
}

/* Where a page's sinks are, published or not; 0: it has none. */
static cqcu_ptr sinks_of(const struct cq_model *model, const struct cq_pg *pg)
{
	if (pg->sink.data)
		return (uintptr_t)pg->sink.data;
	return pg->sink_chunk != CQC_NONE ? (uintptr_t)cqc_lease_ro(model->gpu, pg->sink_chunk) : 0;
}

static int part_copy(struct cq_model *model, const struct cqc_ent *from, uint32_t r, bool first,
		     struct cqc_ent *e)
{
	const struct cqk_model *m = &model->m;
	struct cqc_gpu *g = model->gpu;
	cqcu_ptr sinks = first ? sinks_of(model, from->pg) : 0;
	cqcu_ptr block = (uintptr_t)cqc_block_ptr(&model->arena, e->f16);
	int ret = 0;

	ret = copy(g, cqc_lease_rw(g, e->pg->chunk), (uintptr_t)from->pg->codes, m->payload);
	if (!ret && sinks && e->pg->sink_chunk != CQC_NONE)
		ret = copy(g, cqc_lease_rw(g, e->pg->sink_chunk), sinks, m->sink_payload);
	if (!ret && from->f16 != CQC_NONE) {
		ret = copy(g, block, (uintptr_t)cqc_block_ptr(&model->arena, from->f16),
			   m->f16_block);
	} else if (!ret && sinks && from->pg->sink.data) {
		ret = sinks_restore(model, sinks, MIN(m->sinks, r), block);
		e->f16_mask |= cqc_low(MIN(m->sinks, r));
	}
	return ret;
}

/**
 * cqc_gpu_part() - copy what a part-filled page keeps
 * @model: model
 * @from:  entry to begin like
 * @r:     tokens kept
 * @first: it is page 0
 * @e:     new entry; sinks that went back among its rows are set in its mask
 *
 * Tokens of a part-filled page have their codes already, beside their rows.
 *
 * Return: 0 or -errno with text.
 */
int cqc_gpu_part(struct cq_model *model, const struct cqc_ent *from, uint32_t r, bool first,
		 struct cqc_ent *e)
{
	struct cqc_gpu *g = model->gpu;
	int ret = cqc_gpu_in(g);

	if (ret)
		return ret;
	/* What was refused there may be in the copy, but not the other way round. */
	if (!from->pg->slot.word)
		ret = bad_copy(e->pg, from->pg, e->pg->chunk);
	if (!ret)
		ret = part_copy(model, from, r, first, e);
	WRITE_ONCE(g->dirty, true);
	cqc_gpu_out(g);
	return ret;
}
