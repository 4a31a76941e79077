// SPDX-License-Identifier: MIT
/*
 * Plans of attention steps. Blocks are taken in the order given; a run of
 * blocks with the same rows is a group. A group is cut into items: tiles of
 * query vectors times stretches of blocks, so that all multiprocessors have
 * work. Partial results of one stretch lie together, vector by vector. Items of
 * one stretch follow each other: they are computed at about the same time, and
 * the second finds its blocks in the L2.
 */
#include <errno.h>
#include <string.h>
#include <sys/param.h>
#include "cq/util.h"
#include "kernels/cuda/params.h"
#include "kernels/cuda/plan.h"

_Static_assert(sizeof(struct cqk_block) == sizeof(struct cqkd_block) &&
	       offsetof(struct cqk_block, base) == offsetof(struct cqkd_block, base) &&
	       offsetof(struct cqk_block, kind) == offsetof(struct cqkd_block, kind) &&
	       offsetof(struct cqk_block, tokens) == offsetof(struct cqkd_block, tokens) &&
	       offsetof(struct cqk_block, span_first) ==
	       offsetof(struct cqkd_block, span_first) &&
	       offsetof(struct cqk_block, n_spans) == offsetof(struct cqkd_block, n_spans),
	       "copied as they are");
_Static_assert(sizeof(struct cqk_span) == sizeof(struct cqkd_span) &&
	       offsetof(struct cqk_span, mask) == offsetof(struct cqkd_span, mask) &&
	       offsetof(struct cqk_span, row_first) == offsetof(struct cqkd_span, row_first) &&
	       offsetof(struct cqk_span, n_rows) == offsetof(struct cqkd_span, n_rows) &&
	       offsetof(struct cqk_span, pos) == offsetof(struct cqkd_span, pos),
	       "copied as they are");
_Static_assert(CQKD_TOKENS == CQ_PAGE_TOKENS, "of the page format");

static uint64_t ceil_div(uint64_t a, uint64_t b)
{
	return (a + b - 1) / b;
}

/* Blocks that the same rows read. */
struct group {
	uint32_t block, n_blocks;
	uint32_t n_entries;	/* rows, span by span */
	bool one_pos;		/* each block has one position for all of them */
};

/* How much a cut makes of everything. */
struct cut {
	uint32_t stretch;	/* blocks of an item */
	uint64_t items, wide, slots, refs, entries;
	uint64_t vecs;		/* of the largest item that is not wide */
};

static int check_block(const struct cqk_cuda_step *s, uint32_t i, struct cq_err *err)
{
	const struct cqk_block *b = &s->blocks[i];
	uint32_t j;

	if (b->kind > CQK_BLOCK_F16 || !b->tokens || b->tokens > CQ_PAGE_TOKENS ||
	    (b->kind == CQK_BLOCK_CODES && b->tokens != CQ_PAGE_TOKENS))
		return cq_err_set(err, -EINVAL, "block %u of kind %u with %u tokens", i, b->kind,
				  b->tokens);
	if (!b->base || (uintptr_t)b->base % 16)
		return cq_err_set(err, -EINVAL, "block %u is not aligned to 16 bytes", i);
	if (b->span_first > s->n_spans || b->n_spans > s->n_spans - b->span_first)
		return cq_err_set(err, -EINVAL, "block %u has spans beyond the %u given", i,
				  s->n_spans);
	for (j = b->span_first; j < b->span_first + b->n_spans; j++)
		if (s->spans[j].row_first > s->n_rows ||
		    s->spans[j].n_rows > s->n_rows - s->spans[j].row_first)
			return cq_err_set(err, -EINVAL, "span %u has rows beyond the %u given", j,
					  s->n_rows);
	return 0;
}

static int check_step(const struct cqk_cuda_step *s, const struct cqk_cuda_limits *limits,
		      struct cq_err *err)
{
	uint32_t i;
	int ret;

	if (!s->gqa || s->gqa > CQ_MAX_HEADS || s->head_dim > CQ_MAX_HEAD_DIM)
		return cq_err_set(err, -EINVAL, "%u query heads per kv head, head_dim %u", s->gqa,
				  s->head_dim);
	if (s->n_rows > limits->rows)
		return cq_err_set(err, -ENOBUFS, "%u query rows, made for %u", s->n_rows,
				  limits->rows);
	for (i = 0; i < s->n_blocks; i++) {
		ret = check_block(s, i, err);
		if (ret)
			return ret;
	}
	return 0;
}

static bool same_rows(const struct cqk_cuda_step *s, const struct cqk_block *a,
		      const struct cqk_block *b)
{
	uint32_t i;

	if (a->n_spans != b->n_spans)
		return false;
	for (i = 0; i < a->n_spans; i++) {
		const struct cqk_span *x = &s->spans[a->span_first + i];
		const struct cqk_span *y = &s->spans[b->span_first + i];

		if (x->row_first != y->row_first || x->n_rows != y->n_rows)
			return false;
	}
	return true;
}

static bool one_pos(const struct cqk_cuda_step *s, const struct cqk_block *b)
{
	uint32_t i;

	for (i = 1; i < b->n_spans; i++)
		if (s->spans[b->span_first + i].pos != s->spans[b->span_first].pos)
			return false;
	return true;
}

/* The group that begins with block @at; false at the end. */
static bool group_at(const struct cqk_cuda_step *s, uint32_t at, struct group *g)
{
	const struct cqk_block *b = &s->blocks[at];
	uint32_t i;

	if (at >= s->n_blocks)
		return false;
	*g = (struct group){ .block = at, .n_blocks = 1, .one_pos = one_pos(s, b) };
	for (i = 0; i < b->n_spans; i++)
		g->n_entries += s->spans[b->span_first + i].n_rows;
	for (; at + g->n_blocks < s->n_blocks && same_rows(s, b, &b[g->n_blocks]); g->n_blocks++)
		g->one_pos = g->one_pos && one_pos(s, &b[g->n_blocks]);
	return true;
}

/* How the vectors of a group are shared out: @vecs to an item, the last less. */
struct share {
	uint32_t vecs, items;
	bool wide;
};

/* Whether limits->wide_from counts. */
static bool wide_pays(const struct cqk_cuda_step *s, const struct cqk_cuda_limits *limits)
{
	uint64_t work = 0;
	uint32_t at = 0, n;
	struct group g;

	if (!limits->wide_work)
		return true;
	for (; group_at(s, at, &g); at += g.n_blocks) {
		n = g.n_entries * s->gqa;
		if (g.one_pos && n > limits->wide_from && n > CQKD_FEW_VECS)
			work += (uint64_t)g.n_blocks * (n - CQKD_FEW_VECS);
	}
	return work >= limits->wide_work;
}

static struct share share_of(const struct cqk_cuda_step *s, const struct cqk_cuda_limits *limits,
			     const struct group *g)
{
	uint32_t few = CQKD_VECS(s->head_dim), n = g->n_entries * s->gqa;
	uint32_t many = limits->wide_vecs ? limits->wide_vecs : CQKD_WIDE_VECS(s->head_dim);
	uint32_t from = limits->wide_from ? limits->wide_from : MAX(few, limits->few_vecs);
	struct share sh = { .vecs = few };

	if (limits->wide && g->one_pos && n > from) {
		/* as many to each, in whole tiles of 16 */
		sh.wide = true;
		sh.vecs = (uint32_t)ALIGN_UP(ceil_div(n, ceil_div(n, many)), 16);
	} else if (n > CQKD_FEW_VECS && n <= limits->few_vecs) {
		sh.vecs = CQKD_FEW_VECS;
	}
	sh.items = (uint32_t)ceil_div(n, sh.vecs);
	return sh;
}

static void cut_count(const struct cqk_cuda_step *s, const struct cqk_cuda_limits *limits,
		      struct cut *c)
{
	uint32_t at = 0;
	struct group g;

	c->items = c->wide = c->slots = c->refs = c->entries = c->vecs = 0;
	for (; group_at(s, at, &g); at += g.n_blocks) {
		uint64_t n = (uint64_t)g.n_entries * s->gqa;
		uint64_t stretches = ceil_div(g.n_blocks, c->stretch);
		struct share sh = share_of(s, limits, &g);

		if (!sh.wide)
			c->vecs = MAX(c->vecs, MIN(sh.vecs, n));
		*(sh.wide ? &c->wide : &c->items) += stretches * sh.items;
		c->slots += stretches * n;
		c->refs += stretches * g.n_entries;
		c->entries += g.n_entries;
	}
}

/* The finest cut that aims at @want items and stays within the limits. */
static int cut_choose(const struct cqk_cuda_step *s, const struct cqk_cuda_limits *limits,
		      struct cut *c, struct cq_err *err)
{
	uint64_t work = 0;
	uint32_t at = 0;
	struct group g;

	for (; group_at(s, at, &g); at += g.n_blocks)
		work += (uint64_t)share_of(s, limits, &g).items * g.n_blocks;
	c->stretch = (uint32_t)MIN(ceil_div(work, MAX(s->want, 1u)), (uint64_t)1 << 30);
	c->stretch = MAX(c->stretch, 1u);
	for (;;) {
		cut_count(s, limits, c);
		if (limits->few_only && c->vecs > CQKD_FEW_VECS)
			return cq_err_set(err, -ENOBUFS, "an item of %llu query vectors, made for "
							 "%d (few_only)",
					  (unsigned long long)c->vecs, CQKD_FEW_VECS);
		if (c->items <= limits->items && c->wide <= limits->wide &&
		    c->slots <= limits->slots)
			return 0;
		if (c->stretch >= s->n_blocks)
			return cq_err_set(err, -ENOBUFS, "%llu items, %llu wide ones and %llu "
							 "slots, made for %u, %u and %u",
					  (unsigned long long)c->items,
					  (unsigned long long)c->wide,
					  (unsigned long long)c->slots, limits->items,
					  limits->wide, limits->slots);
		c->stretch *= 2;
	}
}

/* Offsets of a plan's parts; 0 if it has more than @size bytes. */
static size_t lay_out(const struct cqk_cuda_step *s, const struct cut *c,
		      struct cqkd_plan *head, size_t size)
{
	struct { uint32_t *at; uint64_t bytes; } part[] = {
		{ &head->items, (c->items + c->wide) * sizeof(struct cqkd_item) },
		{ &head->entries, c->entries * sizeof(struct cqkd_entry) },
		{ &head->blocks, s->n_blocks * sizeof(struct cqkd_block) },
		{ &head->spans, s->n_spans * sizeof(struct cqkd_span) },
		{ &head->row_pos, s->n_rows * sizeof(uint32_t) },
		{ &head->row_refs, ((uint64_t)s->n_rows + 1) * sizeof(uint32_t) },
		{ &head->refs, c->refs * sizeof(uint32_t) },
	};
	uint64_t at = sizeof(*head);
	uint32_t i;

	for (i = 0; i < ARRAY_SIZE(part); i++) {
		*part[i].at = (uint32_t)at;
		at = ALIGN_UP(at + part[i].bytes, 16);
		if (at > size || at > UINT32_MAX)
			return 0;
	}
	head->bytes = (uint32_t)at;
	head->n_items = (uint32_t)(c->items + c->wide);
	head->n_wide = (uint32_t)c->wide;
	head->vecs = (uint32_t)c->vecs;
	head->n_rows = s->n_rows;
	return at;
}

/* Where the parts of a plan are being written. */
struct writer {
	const struct cqk_cuda_step *s;
	const struct cqk_cuda_limits *limits;
	uint32_t stretch;
	struct cqkd_item *item, *wide;
	struct cqkd_entry *entry;
	uint32_t *row_refs, *refs;
	uint32_t n_entries, n_slots;
};

static void put_items(struct writer *w, const struct group *g)
{
	struct share sh = share_of(w->s, w->limits, g);
	struct cqkd_item **item = sh.wide ? &w->wide : &w->item;
	uint32_t n = g->n_entries * w->s->gqa, b, v;

	for (b = 0; b < g->n_blocks && n; b += w->stretch) {
		for (v = 0; v < n; v += sh.vecs)
			*(*item)++ = (struct cqkd_item){
				.block = g->block + b,
				.n_blocks = MIN(w->stretch, g->n_blocks - b),
				.entry = w->n_entries,
				.vec = v,
				.n_vecs = MIN(sh.vecs, n - v),
				.slot = w->n_slots + v,
			};
		w->n_slots += n;
	}
}

static void put_entries(struct writer *w, const struct group *g)
{
	const struct cqk_block *b = &w->s->blocks[g->block];
	uint32_t stretches = (uint32_t)ceil_div(g->n_blocks, w->stretch), i, r;

	for (i = 0; i < b->n_spans; i++) {
		const struct cqk_span *s = &w->s->spans[b->span_first + i];

		for (r = s->row_first; r < s->row_first + s->n_rows; r++) {
			w->entry[w->n_entries++] = (struct cqkd_entry){ r, i };
			w->row_refs[r + 1] += stretches;
		}
	}
}

/* Uses row_refs[r] as the place of the next reference of row r. */
static void put_refs(struct writer *w, const struct group *g)
{
	uint32_t b, i;

	for (b = 0; b < g->n_blocks; b += w->stretch)
		for (i = 0; i < g->n_entries; i++) {
			uint32_t row = w->entry[w->n_entries + i].row;

			w->refs[w->row_refs[row]++] = w->n_slots;
			w->n_slots += w->s->gqa;
		}
	w->n_entries += g->n_entries;
}

static void fill(struct writer *w)
{
	uint32_t n = w->s->n_rows, at = 0, r;
	struct group g;

	for (; group_at(w->s, at, &g); at += g.n_blocks) {
		put_items(w, &g);
		put_entries(w, &g);
	}
	for (r = 0; r < n; r++)
		w->row_refs[r + 1] += w->row_refs[r];
	w->n_entries = w->n_slots = 0;
	for (at = 0; group_at(w->s, at, &g); at += g.n_blocks)
		put_refs(w, &g);
	/* each place has moved to where the next row's begins */
	for (r = n; r > 0; r--)
		w->row_refs[r] = w->row_refs[r - 1];
	w->row_refs[0] = 0;
}

int cqk_cuda_plan(const struct cqk_cuda_step *step, const struct cqk_cuda_limits *limits,
		  void *out, size_t size, size_t *used, struct cq_err *err)
{
	struct cqkd_plan head = { 0 };
	struct cqk_cuda_limits now = *limits;
	struct writer w = { .s = step, .limits = &now };
	uint8_t *base = out;
	struct cut cut;
	int ret;

	ret = check_step(step, limits, err);
	if (ret)
		return ret;
	if (!wide_pays(step, limits))
		now.wide_from = 0;
	ret = cut_choose(step, &now, &cut, err);
	if (ret)
		return ret;
	if (!lay_out(step, &cut, &head, size))
		return cq_err_set(err, -ENOBUFS, "the plan has no room in %zu bytes", size);
	memset(base, 0, head.bytes);
	memcpy(base, &head, sizeof(head));
	if (step->n_blocks)
		memcpy(base + head.blocks, step->blocks, step->n_blocks * sizeof(*step->blocks));
	if (step->n_spans)
		memcpy(base + head.spans, step->spans, step->n_spans * sizeof(*step->spans));
	if (step->n_rows)
		memcpy(base + head.row_pos, step->row_pos, step->n_rows * sizeof(uint32_t));
	w.stretch = cut.stretch;
	w.wide = (struct cqkd_item *)(void *)(base + head.items);
	w.item = w.wide + head.n_wide;
	w.entry = (struct cqkd_entry *)(void *)(base + head.entries);
	w.row_refs = (uint32_t *)(void *)(base + head.row_refs);
	w.refs = (uint32_t *)(void *)(base + head.refs);
	fill(&w);
	*used = head.bytes;
	return 0;
}
