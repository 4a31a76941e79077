// SPDX-License-Identifier: MIT
/* Plans of attention steps: all work is there, once, and the sums find it. */
#include <sys/param.h>
#include "tests/harness.h"
#include "tests/kernels/toy.h"
#include "kernels/cuda/params.h"
#include "kernels/cuda/plan.h"
#include "kernels/cuda/variant.h"

#define BLOCKS 40
#define SPANS 120
#define ROWS 12
#define SIZE 65536

struct rig {
	struct cqk_block blocks[BLOCKS];
	struct cqk_span spans[SPANS];
	uint32_t row_pos[ROWS];
	struct cqk_cuda_step step;
	struct cqk_cuda_limits limits;
	uint8_t *mem;		/* of the plan, aligned */
	size_t used;
	struct cq_err err;
};

static const void *part(const struct rig *r, uint32_t offset)
{
	return r->mem + offset;
}

/* Random runs of blocks with the same rows. */
static void rig_make(struct rig *r)
{
	uint32_t i, j, n = 0;

	memset(r, 0, sizeof(*r));
	r->mem = toy_alloc(SIZE);
	r->step = (struct cqk_cuda_step){
		.blocks = r->blocks, .spans = r->spans, .row_pos = r->row_pos,
		.n_rows = 1 + toy_u32() % ROWS, .n_blocks = toy_u32() % (BLOCKS + 1),
		.gqa = 1 + toy_u32() % 9, .head_dim = toy_u32() % 2 ? 128 : 256,
		.want = toy_u32() % 20,
	};
	for (i = 0; i < ROWS; i++)
		r->row_pos[i] = toy_u32();
	for (i = 0; i < r->step.n_blocks; i++) {
		struct cqk_block *b = &r->blocks[i];

		*b = (struct cqk_block){ .base = (uint8_t *)(uintptr_t)(16 * (i + 1)),
					 .tokens = 64, .span_first = n };
		b->n_spans = i && toy_u32() % 3 ? b[-1].n_spans : toy_u32() % 4;
		for (j = 0; j < b->n_spans; j++, n++) {
			struct cqk_span *s = &r->spans[n];

			s->row_first = toy_u32() % r->step.n_rows;
			s->n_rows = toy_u32() % (r->step.n_rows - s->row_first + 1);
			if (i && b[-1].n_spans == b->n_spans && toy_u32() % 3)
				*s = r->spans[b[-1].span_first + j];
			s->mask = toy_u32();
			s->pos = j && toy_u32() % 8 == 0 ? 64 : 0;
		}
	}
	r->step.n_spans = n;
	r->limits = (struct cqk_cuda_limits){ .rows = ROWS, .items = 100000, .slots = 100000,
					       .wide = toy_u32() % 2 * 100000,
					       .few_vecs = toy_u32() % 3 * 30 };
	if (toy_u32() % 2) {
		r->limits.wide_vecs = 32 + toy_u32() % 3 * 48;
		r->limits.wide_from = 8 + toy_u32() % 2 * 20;
		r->limits.wide_work = toy_u32() % 3 * 200;
	}
}

static int rig_plan(struct rig *r)
{
	return cqk_cuda_plan(&r->step, &r->limits, r->mem, SIZE, &r->used, &r->err);
}

/* The item that has @slot, or NULL. */
static const struct cqkd_item *item_of(const struct rig *r, uint32_t slot)
{
	const struct cqkd_plan *p = part(r, 0);
	const struct cqkd_item *items = part(r, p->items);
	uint32_t i;

	for (i = 0; i < p->n_items; i++)
		if (slot >= items[i].slot && slot < items[i].slot + items[i].n_vecs)
			return &items[i];
	return NULL;
}

/* Adds what the item with @slot computes for @row and head @h to @seen. */
static void see(const struct rig *r, uint32_t slot, uint32_t row, uint32_t h, uint8_t *seen)
{
	const struct cqkd_plan *p = part(r, 0);
	const struct cqkd_entry *entries = part(r, p->entries);
	const struct cqkd_item *it = item_of(r, slot);
	const struct cqkd_entry *e;
	uint32_t vec, i;

	ASSERT(it);
	vec = it->vec + slot - it->slot;
	e = &entries[it->entry + vec / r->step.gqa];
	ASSERT_EQ(vec % r->step.gqa, h);
	ASSERT_EQ(e->row, row);
	for (i = it->block; i < it->block + it->n_blocks; i++) {
		const struct cqk_span *s = &r->spans[r->blocks[i].span_first + e->span];

		ASSERT_LT(e->span, r->blocks[i].n_spans);
		ASSERT(row >= s->row_first && row < s->row_first + s->n_rows);
		seen[s - r->spans]++;
	}
}

/* Vectors that see a block. */
static uint32_t vecs_of(const struct rig *r, const struct cqk_block *b)
{
	uint32_t n = 0, i;

	for (i = 0; i < b->n_spans; i++)
		n += r->spans[b->span_first + i].n_rows;
	return n * r->step.gqa;
}

/* Vectors are cut by eights if there are few_vecs at most, and only then: @it, of all. */
static void check_eights(const struct rig *r, const struct cqkd_item *it)
{
	uint32_t n = vecs_of(r, &r->blocks[it->block]);

	if (n > r->limits.few_vecs)
		return;
	ASSERT_EQ(it->n_vecs, MIN(n - it->vec, (uint32_t)CQKD_FEW_VECS));
	ASSERT_EQ(it->vec % CQKD_FEW_VECS, 0);
}

/* Whether all that read a block read it at one position. */
static bool one_pos(const struct rig *r, const struct cqk_block *b)
{
	uint32_t j;

	for (j = 1; j < b->n_spans; j++)
		if (r->spans[b->span_first + j].pos != r->spans[b->span_first].pos)
			return false;
	return true;
}

/* More vectors than these are wide, by @r->limits. */
static uint32_t wide_from(const struct rig *r)
{
	uint32_t least = MAX((uint32_t)CQKD_VECS(r->step.head_dim), r->limits.few_vecs);
	const struct cqkd_plan *p = part(r, 0);
	const struct cqkd_item *it = part(r, p->items);
	uint32_t i, b, work = 0;

	if (!r->limits.wide_from)
		return least;
	/* an item's blocks are those of one run */
	for (i = 0; i < p->n_items; i++) {
		uint32_t n = vecs_of(r, &r->blocks[it[i].block]);
		bool one = true;

		for (b = it[i].block; b < it[i].block + it[i].n_blocks; b++)
			one = one && one_pos(r, &r->blocks[b]);
		if (one && !it[i].vec && n > r->limits.wide_from)
			work += it[i].n_blocks * (n - CQKD_FEW_VECS);
	}
	return work >= r->limits.wide_work ? r->limits.wide_from : least;
}

/*
 * Wide items come first; they have many vectors, more than are cut by eights unless that is
 * what is said, and one position for each block.
 */
static void check_items(const struct rig *r)
{
	const struct cqkd_plan *p = part(r, 0);
	const struct cqkd_item *it = part(r, p->items);
	uint32_t few = CQKD_VECS(r->step.head_dim), many = CQKD_WIDE_VECS(r->step.head_dim);
	uint32_t i, b, n, most = 0, from = wide_from(r);

	if (r->limits.wide_vecs)
		many = ALIGN_UP(r->limits.wide_vecs, 16);
	ASSERT_LE(p->n_wide, r->limits.wide);
	for (i = 0; i < p->n_items; i++, it++) {
		n = vecs_of(r, &r->blocks[it->block]);
		ASSERT_LE(it->n_vecs, i < p->n_wide ? many : few);
		if (i < p->n_wide)
			ASSERT(n > from);
		else
			check_eights(r, it);
		most = i < p->n_wide ? 0 : MAX(most, it->n_vecs);
		for (b = it->block; i < p->n_wide && b < it->block + it->n_blocks; b++)
			ASSERT(one_pos(r, &r->blocks[b]));
	}
	ASSERT_EQ(p->vecs, most);
}

static void check_plan(const struct rig *r)
{
	const struct cqkd_plan *p = part(r, 0);
	const uint32_t *row_refs = part(r, p->row_refs), *refs = part(r, p->refs);
	uint32_t row, h, i;

	check_items(r);
	ASSERT_EQ(p->bytes, r->used);
	ASSERT_EQ(p->n_rows, r->step.n_rows);
	ASSERT(!memcmp(part(r, p->blocks), r->blocks, r->step.n_blocks * sizeof(r->blocks[0])));
	ASSERT(!memcmp(part(r, p->spans), r->spans, r->step.n_spans * sizeof(r->spans[0])));
	ASSERT(!memcmp(part(r, p->row_pos), r->row_pos, r->step.n_rows * 4));
	for (row = 0; row < r->step.n_rows; row++)
		for (h = 0; h < r->step.gqa; h++) {
			uint8_t seen[SPANS] = { 0 };

			for (i = row_refs[row]; i < row_refs[row + 1]; i++)
				see(r, refs[i] + h, row, h, seen);
			for (i = 0; i < r->step.n_spans; i++)
				ASSERT_EQ(seen[i], row >= r->spans[i].row_first &&
					  row < r->spans[i].row_first + r->spans[i].n_rows);
		}
}

TEST(every_row_finds_each_block_once)
{
	struct rig r;
	uint32_t i;

	for (i = 0; i < 300; i++) {
		rig_make(&r);
		ASSERT_EQ(rig_plan(&r), 0);
		check_plan(&r);
		free(r.mem);
	}
}

/* Fewer items than wanted, down to the least that will do, and none below. */
TEST(limits_hold)
{
	uint32_t i, least;
	struct rig r;

	for (i = 0; i < 100; i++) {
		rig_make(&r);
		r.step.want = 100;
		r.limits.wide = 1000;
		for (least = 0; least < 1000; least++) {
			r.limits.items = least;
			if (!rig_plan(&r))
				break;
			ASSERT(strstr(r.err.text, "items"));
		}
		check_plan(&r);
		ASSERT_LE(((const struct cqkd_plan *)part(&r, 0))->n_items -
			  ((const struct cqkd_plan *)part(&r, 0))->n_wide, least);
		r.limits.items = 1000;
		for (least = 0; least < 10000; least++) {
			r.limits.slots = least;
			if (!rig_plan(&r))
				break;
		}
		check_plan(&r);
		free(r.mem);
	}
}

/* 12 rows of 20 heads, a prefix of 3 blocks: one item decodes them for all. */
TEST(a_batch_decodes_its_prefix_once)
{
	const struct cqkd_plan *p;
	struct rig r;
	uint32_t i;

	rig_make(&r);
	r.step.n_rows = ROWS;
	r.step.gqa = 20;
	r.step.head_dim = 128;
	r.step.want = 1;
	r.step.n_blocks = r.step.n_spans = 3;
	r.limits.wide = 3;
	r.limits.wide_vecs = r.limits.wide_from = 0;
	r.limits.few_vecs = 239;
	for (i = 0; i < 3; i++) {
		r.blocks[i] = (struct cqk_block){ .base = (uint8_t *)16, .tokens = 64,
						  .span_first = i, .n_spans = 1 };
		r.spans[i] = (struct cqk_span){ .mask = ~0ull, .n_rows = ROWS, .pos = 64 * i };
	}
	ASSERT_EQ(rig_plan(&r), 0);
	check_plan(&r);
	p = part(&r, 0);
	ASSERT_EQ(p->n_items, 1);
	ASSERT_EQ(p->n_wide, 1);
	r.step.gqa = 22;	/* 264 vectors: two halves, and not 256 and 8 */
	ASSERT_EQ(rig_plan(&r), 0);
	check_plan(&r);
	ASSERT_EQ(p->n_wide, 2);
	ASSERT_EQ(((const struct cqkd_item *)part(&r, p->items))->n_vecs, 144);
	r.limits.wide = 0;
	ASSERT_EQ(rig_plan(&r), 0);
	check_plan(&r);
	ASSERT_EQ(p->n_items, 5);
	free(r.mem);
}

/* A prefix of 4 blocks that @rows of 4 heads see, and a block of each row's own. */
static void rig_prefix(struct rig *r, uint32_t rows)
{
	uint32_t i, j, n = 0;

	r->step.n_rows = rows;
	r->step.gqa = 4;
	r->step.head_dim = 128;
	r->step.n_blocks = 4 + rows;
	for (i = 0; i < r->step.n_blocks; i++) {
		r->blocks[i] = (struct cqk_block){ .base = (uint8_t *)16, .tokens = 64,
						   .span_first = n,
						   .n_spans = i < 4 ? rows : 1 };
		for (j = 0; j < r->blocks[i].n_spans; j++)
			r->spans[n++] = (struct cqk_span){ .mask = ~0ull, .n_rows = 1,
							   .row_first = i < 4 ? j : i - 4,
							   .pos = 64 * MIN(i, 4u) };
	}
	r->step.n_spans = n;
	r->limits.items = 100;
	r->limits.wide = 0;
	r->limits.few_vecs = 24;
}

/* What wide_from says holds for blocks of one position, and if there is work enough. */
TEST(a_prefix_is_decoded_once_from_nine_vectors_on)
{
	const struct cqkd_plan *p;
	struct rig r;

	rig_make(&r);
	rig_prefix(&r, 5);	/* 20 vectors, 4 blocks */
	r.step.want = 1;
	r.limits.wide = 100;
	r.limits.wide_from = 19;
	r.limits.wide_vecs = 16;
	r.limits.wide_work = 4 * 12;
	ASSERT_EQ(rig_plan(&r), 0);
	check_plan(&r);
	p = part(&r, 0);
	ASSERT_EQ(p->n_wide, 2);	/* of 16 and 4 */
	ASSERT_EQ(p->n_items, 2 + 5);
	r.limits.wide_from = 20;
	ASSERT_EQ(rig_plan(&r), 0);
	check_plan(&r);
	ASSERT_EQ(p->n_wide, 0);
	r.limits.wide_from = 8;
	r.limits.wide_work++;
	ASSERT_EQ(rig_plan(&r), 0);
	check_plan(&r);
	ASSERT_EQ(p->n_wide, 0);
	ASSERT_EQ(p->n_items, 3 + 5);
	r.limits.wide_work--;
	r.spans[1].pos = 64;
	ASSERT_EQ(rig_plan(&r), 0);
	check_plan(&r);
	ASSERT_EQ(p->n_wide, 0);
	free(r.mem);
}

/* Items of one stretch follow each other: each eight vectors read its blocks. */
TEST(a_prefix_of_few_sequences_is_read_by_eights)
{
	const struct cqkd_plan *p;
	const struct cqkd_item *it;
	struct rig r;
	uint32_t i;

	rig_make(&r);
	for (i = 2; i <= 7; i++) {	/* 8 to 28 vectors */
		uint32_t each = i < 7 ? (i + 1) / 2 : 1;

		rig_prefix(&r, i);
		r.step.want = (4 * each + i) / 2;	/* stretches of 2, or of 3 */
		ASSERT_EQ(rig_plan(&r), 0);
		check_plan(&r);
		p = part(&r, 0);
		it = part(&r, p->items);
		ASSERT_EQ(p->n_items, 2 * each + i);
		ASSERT_EQ(p->vecs, i < 7 ? MIN(4 * i, 8) : 28);
		ASSERT_EQ(it[each - 1].block, 0);
		ASSERT_EQ(it[each - 1].vec, 8 * (each - 1));
		ASSERT_EQ(it[each].block, it[0].n_blocks);
		ASSERT_EQ(it[each].vec, 0);
		ASSERT_EQ(it[each].slot, 4 * i);
	}
	/* a launch that has no kernel for more */
	r.limits.few_only = 1;
	ASSERT_EQ(rig_plan(&r), -ENOBUFS);
	r.limits.few_vecs = 28;
	ASSERT_EQ(rig_plan(&r), 0);
	check_plan(&r);
	free(r.mem);
}

/* Launches without the kernel for many: an item that is not wide has few vectors. */
TEST(few_only_holds)
{
	struct rig r;
	uint32_t n;

	rig_make(&r);
	r.step.head_dim = 128;
	r.step.gqa = 2;
	r.step.n_blocks = r.step.n_spans = 1;
	r.blocks[0] = (struct cqk_block){ .base = (uint8_t *)16, .tokens = 64, .n_spans = 1 };
	r.limits.wide = r.limits.wide_vecs = r.limits.wide_from = 0;
	r.limits.few_vecs = 0;
	r.limits.few_only = 1;
	for (n = 1; n <= ROWS; n++) {
		r.step.n_rows = n;
		r.spans[0] = (struct cqk_span){ .mask = ~0ull, .n_rows = n };
		ASSERT_EQ(rig_plan(&r), 2 * n <= CQKD_FEW_VECS ? 0 : -ENOBUFS);
		if (2 * n <= CQKD_FEW_VECS)
			check_plan(&r);
		else
			ASSERT(strstr(r.err.text, "few_only"));
	}
	/* wide ones have a kernel of their own */
	r.step.gqa = 20;
	r.limits.wide = 1;
	ASSERT_EQ(rig_plan(&r), 0);
	check_plan(&r);
	free(r.mem);
}

TEST(no_room_for_the_plan)
{
	struct rig r;
	size_t used, n;

	do {
		rig_make(&r);
	} while (!r.step.n_spans);
	ASSERT_EQ(rig_plan(&r), 0);
	used = r.used;
	for (n = 0; n < used; n++) {
		uint8_t *mem = malloc(n + 1);

		ASSERT_EQ(cqk_cuda_plan(&r.step, &r.limits, mem, n, &r.used, &r.err), -ENOBUFS);
		free(mem);
	}
	ASSERT_EQ(cqk_cuda_plan(&r.step, &r.limits, r.mem, used, &r.used, &r.err), 0);
	free(r.mem);
}

TEST(bad_steps)
{
	struct rig r;

	do {
		rig_make(&r);
	} while (!r.step.n_spans || !r.blocks[0].n_spans);
#define REFUSED(code, field, value) do { \
	struct rig keep = r; \
	r.field = value; \
	ASSERT_EQ(rig_plan(&r), code); \
	ASSERT(r.err.text[0]); \
	r = keep; \
	ASSERT_EQ(rig_plan(&r), 0); \
} while (0)
	REFUSED(-EINVAL, blocks[0].kind, 2);
	REFUSED(-EINVAL, blocks[0].tokens, 63);
	REFUSED(-EINVAL, blocks[0].tokens, 0);
	REFUSED(-EINVAL, blocks[0].base, NULL);
	REFUSED(-EINVAL, blocks[0].base, (void *)8);
	REFUSED(-EINVAL, blocks[0].span_first, UINT32_MAX);
	REFUSED(-EINVAL, blocks[0].n_spans, r.step.n_spans + 1);
	REFUSED(-EINVAL, spans[0].row_first, r.step.n_rows + 1);
	REFUSED(-EINVAL, spans[0].n_rows, UINT32_MAX);
	REFUSED(-EINVAL, step.gqa, 0);
	REFUSED(-EINVAL, step.head_dim, 512);
	REFUSED(-ENOBUFS, limits.rows, r.step.n_rows - 1);
#undef REFUSED
	free(r.mem);
}

/* Clusters of blocks have slices of what is too large for one. */
TEST(rule_of_slices)
{
	static const struct {
		uint32_t d, kc, kb, vc, vb;
	} can[] = {
		{ 64, 8, 10, 8, 10 }, { 128, 8, 10, 8, 10 }, { 256, 8, 10, 8, 10 },
		{ 128, 8, 10, 2, 8 }, { 128, 4, 8, 8, 10 }, { 256, 2, 8, 8, 8 },
		{ 256, 2, 8, 2, 8 },
	}, cannot[] = {
		{ 64, 8, 10, 8, 8 }, { 256, 4, 8, 8, 10 }, { 128, 8, 8, 8, 8 },
		{ 256, 0, 0, 8, 8 }, { 256, 8, 8, 0, 0 },
	};
	struct cqk_cuda_shape s;
	uint32_t i;

	for (i = 0; i < ARRAY_SIZE(can) + ARRAY_SIZE(cannot); i++) {
		bool yes = i < ARRAY_SIZE(can);
		uint32_t n = yes ? i : i - (uint32_t)ARRAY_SIZE(can);

		s = (struct cqk_cuda_shape){
			.head_dim = yes ? can[n].d : cannot[n].d,
			.k_channels = yes ? can[n].kc : cannot[n].kc,
			.k_bits = yes ? can[n].kb : cannot[n].kb,
			.v_channels = yes ? can[n].vc : cannot[n].vc,
			.v_bits = yes ? can[n].vb : cannot[n].vb,
			.arch = 90, .shared = 227 << 10,
		};
		s.turned = i % 2 ? s.head_dim : 0;
		ASSERT_EQ(cqk_cuda_variant_can(CQK_CUDA_SLICES, &s), yes);
		if (!yes)
			continue;
		ASSERT_EQ(cqk_cuda_variant_choose(CQK_CUDA_AUTO, &s), CQK_CUDA_SLICES);
		ASSERT_EQ(cqk_cuda_variant_choose(CQK_CUDA_FEW, &s), CQK_CUDA_BLOCK);
		ASSERT_EQ(cqk_cuda_variant_vecs(CQK_CUDA_AUTO, &s), 0);
		s.turned = 32;
		ASSERT(!cqk_cuda_variant_can(CQK_CUDA_SLICES, &s));
		s.turned = 0;
		s.arch = 89;
		ASSERT(!cqk_cuda_variant_can(CQK_CUDA_SLICES, &s));
		s.arch = 90;
		s.shared = cqk_cuda_variant_shared(CQK_CUDA_SLICES, &s) - 1;
		ASSERT_EQ(cqk_cuda_variant_choose(CQK_CUDA_AUTO, &s), CQK_CUDA_BLOCK);
	}
}

TEST(rule_of_variants)
{
	struct cqk_cuda_shape s = { .head_dim = 128, .k_channels = 8, .v_channels = 4,
				    .k_bits = 8, .v_bits = 8, .turned = 128, .arch = 90,
				    .shared = 227 << 10 };
	enum cqk_cuda_variant v;
	struct cq_err err;
	uint32_t i, work;

	ASSERT_EQ(cqk_cuda_variant_choose(CQK_CUDA_AUTO, &s), CQK_CUDA_FEW);
	ASSERT_EQ(cqk_cuda_variant_choose(CQK_CUDA_BLOCK, &s), CQK_CUDA_BLOCK);
#define NEVER(field, value) do { \
	struct cqk_cuda_shape t = s; \
	t.field = value; \
	ASSERT_EQ(cqk_cuda_variant_choose(CQK_CUDA_AUTO, &t), CQK_CUDA_BLOCK); \
	ASSERT_EQ(cqk_cuda_variant_choose(CQK_CUDA_FEW, &t), CQK_CUDA_BLOCK); \
} while (0)
	NEVER(k_channels, 0);
	NEVER(v_channels, 0);
	NEVER(turned, 64);
	NEVER(shared, 99 << 10);
	NEVER(shared, cqk_cuda_variant_shared(CQK_CUDA_FEW, &s) - 1);
#undef NEVER
	/* the side of which fewer vectors are computed by eights decides */
	ASSERT_EQ(cqk_cuda_variant_vecs(CQK_CUDA_AUTO, &s), 40);
	s.v_channels = 8;
	ASSERT_EQ(cqk_cuda_variant_vecs(CQK_CUDA_AUTO, &s), 56);
	ASSERT_EQ(cqk_cuda_variant_vecs(CQK_CUDA_FEW, &s), CQKD_VECS(128));
	ASSERT_EQ(cqk_cuda_variant_vecs(CQK_CUDA_BLOCK, &s), 0);
	/* more than eight vectors, wherever books fit; a variant for few is none for these */
	ASSERT_EQ(cqk_cuda_variant_books(CQK_CUDA_AUTO, &s, &work), CQKD_FEW_VECS);
	ASSERT_EQ(work, 160);
	ASSERT_EQ(cqk_cuda_variant_books(CQK_CUDA_BOOKS, &s, &work), CQKD_FEW_VECS);
	ASSERT_EQ(work, 0);
	ASSERT_EQ(cqk_cuda_variant_books(CQK_CUDA_FEW, &s, &work), 0);
	ASSERT_EQ(cqk_cuda_variant_books(CQK_CUDA_BLOCK, &s, &work), 0);
	ASSERT_EQ(cqk_cuda_variant_choose(CQK_CUDA_BOOKS, &s), CQK_CUDA_FEW);
	ASSERT_EQ(cqk_cuda_variant_shared(CQK_CUDA_BOOKS, &s), CQKD_BOOKS_SHARED(32, 2));
	s.shared = CQKD_BOOKS_SHARED(32, 2) - 1;
	ASSERT_EQ(cqk_cuda_variant_shared(CQK_CUDA_BOOKS, &s), CQKD_BOOKS_SHARED(32, 1));
	ASSERT_EQ(cqk_cuda_variant_books(CQK_CUDA_AUTO, &s, &work), CQKD_FEW_VECS);
	/* by warpgroups on sm_90 alone, unless another one is asked for */
	s.shared = 227 << 10;
	ASSERT_EQ(cqk_cuda_variant_books(CQK_CUDA_WGMMA, &s, &work), CQKD_FEW_VECS);
	ASSERT_EQ(cqk_cuda_variant_choose(CQK_CUDA_WGMMA, &s), CQK_CUDA_FEW);
	ASSERT_EQ(cqk_cuda_variant_shared(CQK_CUDA_WGMMA, &s), CQKD_WGMMA_SHARED(32));
	ASSERT(cqk_cuda_variant_wgmma(CQK_CUDA_AUTO, &s));
	ASSERT(cqk_cuda_variant_wgmma(CQK_CUDA_WGMMA, &s));
	ASSERT(!cqk_cuda_variant_wgmma(CQK_CUDA_BOOKS, &s));
	s.arch = 100;
	ASSERT(!cqk_cuda_variant_wgmma(CQK_CUDA_WGMMA, &s));
	s.arch = 90;
	s.shared = CQKD_WGMMA_SHARED(32) - 1;
	ASSERT(!cqk_cuda_variant_wgmma(CQK_CUDA_WGMMA, &s));
	s.shared = CQKD_BOOKS_SHARED(32, 2) - 1;
#define NO_BOOKS(field, value) do { \
	struct cqk_cuda_shape t = s; \
	t.field = value; \
	ASSERT_EQ(cqk_cuda_variant_books(CQK_CUDA_BOOKS, &t, &work), 0); \
	ASSERT_EQ(cqk_cuda_variant_books(CQK_CUDA_AUTO, &t, &work), 0); \
} while (0)
	NO_BOOKS(head_dim, 64);
	NO_BOOKS(head_dim, 256);
	NO_BOOKS(k_bits, 10);
	NO_BOOKS(v_bits, 10);
	NO_BOOKS(turned, 64);
	NO_BOOKS(v_channels, 0);
	NO_BOOKS(arch, 75);
	NO_BOOKS(shared, CQKD_BOOKS_SHARED(32, 1) - 1);
#undef NO_BOOKS
	s.shared = 227 << 10;
	s.v_channels = 4;
	s.arch = 75;
	ASSERT_EQ(cqk_cuda_variant_choose(CQK_CUDA_AUTO, &s), CQK_CUDA_BLOCK);
	ASSERT_EQ(cqk_cuda_variant_vecs(CQK_CUDA_AUTO, &s), 0);
	s.turned = 0;
	ASSERT_EQ(cqk_cuda_variant_choose(CQK_CUDA_FEW, &s), CQK_CUDA_FEW);
	ASSERT_EQ(cqk_cuda_variant_choose(CQK_CUDA_LUT, &s), CQK_CUDA_LUT);
	s.arch = 80;
	s.shared = 112 << 10;
	s.k_channels = s.v_channels = s.k_bits = s.v_bits = 0;
	ASSERT_EQ(cqk_cuda_variant_choose(CQK_CUDA_AUTO, &s), CQK_CUDA_F16);
	s.turned = 128;
	ASSERT_EQ(cqk_cuda_variant_choose(CQK_CUDA_AUTO, &s), CQK_CUDA_BLOCK);
	for (i = 0; i < CQK_CUDA_VARIANTS; i++) {
		ASSERT_EQ(cqk_cuda_variant_of(cqk_cuda_variant_name(i), &v, &err), 0);
		ASSERT_EQ(v, i);
	}
	ASSERT_EQ(cqk_cuda_variant_of(NULL, &v, &err), 0);
	ASSERT_EQ(v, CQK_CUDA_AUTO);
	ASSERT_EQ(cqk_cuda_variant_of("?", &v, &err), -EINVAL);
	ASSERT(!strcmp(cqk_cuda_variant_name(CQK_CUDA_VARIANTS), "?"));
}

/* Centroids of bytes, where halves have no room. */
TEST(rule_of_bytes)
{
	static const struct {
		uint32_t shared, kc, vc;	/* KiB */
		uint32_t turned, gqa, eights;
		enum cqk_cuda_variant take;
	} cases[] = {
		{ 227, 8, 8, 128, 4, 56, CQK_CUDA_FEW }, { 227, 2, 2, 128, 4, 60, CQK_CUDA_FEW },
		{ 163, 8, 8, 128, 4, 56, CQK_CUDA_FEW },
		{ 163, 4, 4, 128, 4, 16, CQK_CUDA_BYTES },
		{ 163, 2, 2, 128, 1, 56, CQK_CUDA_BYTES },
		{ 163, 2, 4, 128, 4, 16, CQK_CUDA_BYTES },
		{ 99, 8, 8, 128, 4, 0, CQK_CUDA_BYTES }, { 99, 4, 8, 128, 4, 0, CQK_CUDA_BYTES },
		{ 99, 4, 4, 128, 8, 16, CQK_CUDA_BYTES },
		{ 99, 8, 2, 128, 4, 0, CQK_CUDA_BLOCK }, { 99, 2, 2, 128, 4, 0, CQK_CUDA_BLOCK },
		{ 88, 8, 8, 128, 4, 0, CQK_CUDA_BLOCK },
		/* tables of products only for few query heads, beside bytes or where these fail */
		{ 99, 4, 4, 0, 4, 16, CQK_CUDA_BYTES }, { 99, 4, 4, 0, 2, 16, CQK_CUDA_LUT },
		{ 99, 8, 2, 0, 4, 0, CQK_CUDA_LUT },
	};
	uint32_t i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		struct cqk_cuda_shape s = { .head_dim = 128, .k_channels = cases[i].kc,
					    .v_channels = cases[i].vc, .k_bits = 8, .v_bits = 8,
					    .bytes = true, .turned = cases[i].turned,
					    .gqa = cases[i].gqa, .arch = 80,
					    .shared = cases[i].shared << 10 };

		ASSERT_EQ(cqk_cuda_variant_choose(CQK_CUDA_AUTO, &s), cases[i].take);
		ASSERT_EQ(cqk_cuda_variant_vecs(CQK_CUDA_AUTO, &s), cases[i].eights);
		s.bytes = false;
		ASSERT(!cqk_cuda_variant_can(CQK_CUDA_BYTES, &s));
		s.bytes = true;
		s.head_dim = 64;
		s.turned = 0;
		ASSERT(!cqk_cuda_variant_can(CQK_CUDA_BYTES, &s));
	}
}

/* Tables of products: for few query heads, and where centroids of keys do not fit. */
TEST(rule_of_tables)
{
	static const struct {
		uint32_t shared, kc, vc, gqa;	/* KiB */
		uint32_t words, warps, vecs;	/* 0: not there */
		enum cqk_cuda_variant take;
	} cases[] = {
		{ 227, 8, 8, 1, 32, 12, 2, CQK_CUDA_LUT },
		{ 227, 4, 4, 2, 32, 12, 2, CQK_CUDA_LUT },
		{ 227, 4, 4, 4, 32, 12, 2, CQK_CUDA_FEW },
		{ 227, 2, 2, 1, 32, 12, 1, CQK_CUDA_LUT },
		{ 227, 2, 2, 2, 32, 12, 1, CQK_CUDA_FEW },
		{ 163, 2, 2, 8, 32, 8, 1, CQK_CUDA_LUT },
		{ 99, 8, 8, 8, 16, 8, 2, CQK_CUDA_LUT },
		{ 99, 8, 4, 1, 8, 8, 1, CQK_CUDA_LUT },
		{ 99, 4, 4, 4, 16, 4, 1, CQK_CUDA_LUT },
		{ 99, 2, 2, 1, 0, 0, 0, CQK_CUDA_BLOCK },
	};
	uint32_t i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		struct cqk_cuda_shape s = { .head_dim = 128, .k_channels = cases[i].kc,
					    .v_channels = cases[i].vc, .k_bits = 8, .v_bits = 8,
					    .gqa = cases[i].gqa, .arch = 80,
					    .shared = cases[i].shared << 10 };
		struct cqk_cuda_lut l;

		ASSERT_EQ(cqk_cuda_variant_lut(&s, &l), cases[i].words != 0);
		ASSERT_EQ(cqk_cuda_variant_choose(CQK_CUDA_AUTO, &s), cases[i].take);
		ASSERT(cqk_cuda_variant_shared(CQK_CUDA_LUT, &s) <= s.shared);
		if (!cases[i].words)
			continue;
		ASSERT_EQ(l.words, cases[i].words);
		ASSERT_EQ(l.warps, cases[i].warps);
		ASSERT_EQ(l.vecs, cases[i].vecs);
		s.turned = 128;
		ASSERT(!cqk_cuda_variant_lut(&s, &l));
		ASSERT(!cqk_cuda_variant_can(CQK_CUDA_LUT, &s));
	}
}
