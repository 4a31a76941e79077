// SPDX-License-Identifier: MIT
/*
 * A call of attention split by pages: which blocks a part takes, and one result
 * of the results of all parts.
 */
#include <math.h>
#include <string.h>
#include "kernels/attn.h"
#include "kernels/view.h"

/* Decoding takes as long as some four query vectors do, halves twice what codes take. */
#define DECODE 4

/* Sums of costs on the way, so that few blocks are looked at twice. */
#define MARKS 64

/*
 * struct costs - of the blocks of a call
 * @gqa:  query heads per kv head
 * @coded: pages are codes: halves take longer
 * @all:  of all blocks
 * @step: blocks between marks
 * @mark: [@n_marks] of the blocks before i * @step
 */
struct costs {
	uint32_t gqa;
	bool coded;
	uint64_t all;
	uint32_t step, n_marks;
	uint64_t mark[MARKS];
};

/*
 * What a block takes, in units of a token and vector, about as measured
 * (Documentation/performance.md). A block that no row sees takes nothing.
 */
static uint64_t block_cost(const struct cqk_attn *a, const struct costs *c,
			   const struct cqk_block *b)
{
	bool halves = b->kind == CQK_BLOCK_F16 && c->coded;
	uint64_t rows = 0;
	uint32_t i, r;

	for (i = 0; i < b->n_spans; i++) {
		const struct cqk_span *s = &a->spans[b->span_first + i];

		for (r = 0; r < s->n_rows; r++)
			rows += cqk_visible(a, b, s, a->row_pos[s->row_first + r]) != 0;
	}
	return rows ? ((uint64_t)b->tokens << halves) * (DECODE + rows * c->gqa) : 0;
}

static void costs_init(const struct cqk_attn *a, struct costs *c)
{
	uint32_t i, end;

	c->gqa = a->model->geom.n_heads / a->model->geom.n_kv_heads;
	c->coded = a->model->layers[a->layer].k.code.type == CQ_CODE_CQ;
	c->all = 0;
	c->step = a->n_blocks / MARKS + 1;
	c->n_marks = 0;
	for (i = 0; i < a->n_blocks; i = end) {
		c->mark[c->n_marks++] = c->all;
		for (end = i; end < a->n_blocks && end < i + c->step; end++)
			c->all += block_cost(a, c, &a->blocks[end]);
	}
}

/*
 * The first block of a part. A block goes where the middle of its cost lies: a part
 * has at most one block's more than its share, or less.
 */
static uint32_t part_first(const struct cqk_attn *a, const struct costs *c, uint32_t part,
			   uint32_t n_parts)
{
	double share = (double)c->all * part;
	uint32_t m = 0, i;
	uint64_t before;

	if (part == n_parts || !c->n_marks)
		return a->n_blocks;
	while (m + 1 < c->n_marks && (double)c->mark[m + 1] * n_parts < share)
		m++;
	before = c->mark[m];
	for (i = m * c->step; part && i < a->n_blocks; i++) {
		uint64_t cost = block_cost(a, c, &a->blocks[i]);

		if (((double)before + (double)cost / 2) * n_parts >= share)
			break;
		before += cost;
	}
	return i;
}

void cqk_attn_part(struct cqk_attn *a, uint32_t part, uint32_t n_parts)
{
	uint32_t first, end;
	struct costs c;

	costs_init(a, &c);
	first = part_first(a, &c, part, n_parts);
	end = part_first(a, &c, part + 1, n_parts);
	a->blocks += first;
	a->n_blocks = end - first;
}

static size_t lse_at(const struct cqk_merge *m, size_t stride, uint32_t row, uint32_t head)
{
	return row * (stride ? stride : m->geom->n_heads) + head;
}

static float part_lse(const struct cqk_merge *m, uint32_t i, uint32_t row, uint32_t head)
{
	const struct cq_part *p = &m->parts[i];

	return p->lse[lse_at(m, p->lse_stride, row, head)];
}

/* A part that saw nothing has no say, whatever its @o holds; NaN goes through. */
static void merge_vector(const struct cqk_merge *m, uint32_t row, uint32_t head)
{
	bool base2 = m->flags & CQ_ATTN_LSE_BASE2;
	float o[CQ_MAX_HEAD_DIM], x[CQ_MAX_HEAD_DIM];
	float top = -INFINITY, sum = 0, inv;
	uint32_t d = m->geom->head_dim, i, ch;

	for (i = 0; i < m->n_parts; i++) {
		float lse = part_lse(m, i, row, head);

		top = lse > top ? lse : top;
	}
	memset(o, 0, d * sizeof(*o));
	for (i = 0; i < m->n_parts; i++) {
		float lse = part_lse(m, i, row, head), w;

		if (lse == -INFINITY)
			continue;
		w = base2 ? exp2f(lse - top) : expf(lse - top);
		sum += w;
		cqk_row_to_f32(&m->parts[i].o, row, head, d, x);
		for (ch = 0; ch < d; ch++)
			o[ch] += w * x[ch];
	}
	inv = sum == 0 ? 0 : 1 / sum;
	for (ch = 0; ch < d; ch++)
		o[ch] *= inv;
	cqk_row_from_f32(&m->o, row, head, d, o);
	if (m->lse)
		m->lse[lse_at(m, m->lse_stride, row, head)] =
			top + (base2 ? log2f(sum) : logf(sum));
}

void cqk_merge(const struct cqk_merge *m)
{
	uint32_t gqa = m->geom->n_heads / m->geom->n_kv_heads, row, head;

	for (row = 0; row < m->n_rows; row++)
		for (head = m->head_begin * gqa; head < m->head_end * gqa; head++)
			merge_vector(m, row, head);
}
