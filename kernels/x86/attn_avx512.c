// SPDX-License-Identifier: MIT
/*
 * Attention with AVX-512. isa_avx512.h and planes_avx512.h have what the rows of
 * the kernel table differ in; instructions named here are those of the last of them.
 *
 * With 8-bit centroids and up to eight query vectors a page is decoded
 * transposed: the 64 codes of a group are one register, a channel's 256
 * centroids are four, so two byte permutes and a blend decode 64 tokens of a
 * channel, whatever the group size; nothing is gathered. Codes of 10 bits load
 * centroids and transpose them (wide_avx512.h). Keys are turned by
 * their in-page offset in 16 bits with one table for all pages, and multiplied
 * with the query, turned back by the page's position, by vpdpwssd. Values meet
 * the probabilities of up to 16 pages in 16 bits, scaled to the largest of
 * them, by vpdpbusd, and go on in float. Tables are larger than L1, so each of
 * their parts does its work for all these pages at once. The next 16 pages
 * are fetched meanwhile.
 *
 * Halves take the rows of rows_avx512.h, more than eight vectors many_avx512.h,
 * all else the tile (tile.h, 64-byte vectors) or the AVX2 path.
 *
 * Tests compile this file a second time on SIMDe (CQK_SIMDE), which is how it
 * is checked on machines without AVX-512.
 */
#define CQK_VB 64
#define CQK_MR 8
#include "kernels/tile.h"
#include "kernels/x86/exact_avx512.h"
#include "kernels/x86/keys_avx512.h"
#include "kernels/x86/lut_avx512.h"
#include "kernels/x86/many_avx512.h"
#include "kernels/x86/rows_avx512.h"
#include "kernels/x86/values_avx512.h"

static void add_ahead(struct page_batch *b, const void *at, size_t bytes)
{
	b->ahead[b->n_ahead++] = (struct page_ahead){ at, (const uint8_t *)at + bytes };
}

/* K, and V after it, of up to BATCH coded blocks of @head from @i on. */
static void pages_ahead(struct page_batch *b, uint32_t head, uint32_t i)
{
	const struct cqk_attn *a = b->h->a;
	const struct cqk_layer *layer = &a->model->layers[a->layer];

	for (; i < a->n_blocks && b->n_ahead < BATCH; i++)
		if (a->blocks[i].kind == CQK_BLOCK_CODES)
			add_ahead(b, cqk_block_src(a, &a->blocks[i], head, false, 0).data,
				  layer->k_bytes + layer->v_bytes);
}

/* Centroids of @head. */
static void tables_ahead(struct page_batch *b, uint32_t head)
{
	add_ahead(b, look_up_of(b->k, head), (size_t)b->d << b->k->code.bits);
	add_ahead(b, look_up_of(b->v, head), (size_t)b->d << b->v->code.bits);
}

/* What comes after the pages waiting: pages of this head, then the next head. */
static void find_ahead(struct page_batch *b)
{
	/* fetch_some() is called so often, with keys and with values */
	uint32_t calls = (b->by_lut ? b->nq * b->n / 4 : b->n * b->np / SUM_PAIRS) +
			 b->d / 2 + 1;
	uint32_t head = b->h->head, lines = 0, i;

	b->n_ahead = b->fetched = 0;
	pages_ahead(b, head, b->after);
	if (b->n_ahead < BATCH && head + 1 < b->h->a->head_end) {
		pages_ahead(b, head + 1, 0);
		if (!b->tables)
			tables_ahead(b, head + 1);
		b->tables = true;
	}
	for (i = 0; i < b->n_ahead; i++)
		lines += (uint32_t)(b->ahead[i].end - b->ahead[i].at) / 64;
	b->ahead_step = lines / calls + 1;
}

/* The first pages and tables of a call, all at once. */
static void fetch_first(struct page_batch *b)
{
	tables_ahead(b, b->h->head);
	pages_ahead(b, b->h->head, 0);
	b->ahead_step = UINT32_MAX;
	fetch_some(b);
}

static void batch_flush(struct page_batch *b)
{
	uint32_t lane;

	if (!b->n)
		return;
	find_ahead(b);
	if (b->by_lut)
		lut_keys(b);
	else if (b->exact)
		exact_keys(b);
	else
		batch_keys(b);
	for (lane = 0; lane < b->lanes; lane++)
		lane_softmax(b, lane);
	batch_values(b);
	b->n = 0;
}

/* A page with the lanes that see something of it. */
static void batch_add(void *ctx, const struct cqk_block *blk, const uint64_t *vis)
{
	struct page_batch *b = ctx;
	const struct cqk_attn *a = b->h->a;
	uint32_t head = b->h->head;

	memcpy(b->vis[b->n], vis, sizeof(b->vis[b->n]));
	b->k_codes[b->n] = cqk_block_src(a, blk, head, false, ~0ull).data;
	b->v_codes[b->n] = cqk_block_src(a, blk, head, true, ~0ull).data;
	b->after = (uint32_t)(blk - a->blocks) + 1;
	if (++b->n == BATCH)
		batch_flush(b);
}

static const struct cqk_page_ops page_ops = {
	.turn = batch_turn,
	.lane = batch_lane,
	.page = batch_add,
};

static uint32_t vectors_of(const struct cqk_attn *a)
{
	return a->n_rows * (a->model->geom.n_heads / a->model->geom.n_kv_heads);
}

static uint32_t lanes_for(uint32_t nq)
{
	return nq > 4 ? 8 : nq > 2 ? 4 : nq;
}

/*
 * Making tables takes the time that they save in so many blocks, measured with
 * 128 channels.
 */
static bool worth_tables(const struct cqk_attn *a)
{
	const struct cqk_codebook *k = &a->model->layers[a->layer].k;
	uint32_t lanes = lanes_for(vectors_of(a)), least = 8 + 4 * lanes;

	if (k->code.channels < 8) {
		/* look-ups in words: two for each vector are more than one for all */
		if (!ISA_VBMI && lanes > 2)
			return false;
		least = least * 8 / 3;
	}
	return !cqk_turns_keys(a) && cqk_byte_codes(k) && k->code.channels >= 4 &&
	       k->n_groups <= LUT_GROUPS && a->n_blocks >= least;
}

static struct page_batch *batch_begin(struct cqk_head *h)
{
	const struct cqk_layer *layer = &h->a->model->layers[h->a->layer];
	uint32_t d = h->a->model->geom.head_dim, i;
	struct page_batch *b = h->extra;

	memset(b, 0, offsetof(struct page_batch, s));
	b->h = h;
	b->k = &layer->k;
	b->v = &layer->v;
	b->k_plane = look_up_of(b->k, h->head);
	b->v_plane = look_up_of(b->v, h->head);
	b->nq = h->nq;
	b->lanes = lanes_for(h->nq);
	b->d = d;
	b->half = cqk_turns_keys(h->a) ? h->a->rope->half : 0;
	b->np = d / 2;
	if (h->head == h->a->head_begin)
		fetch_first(b);
	for (i = 0; i < PAIRS; i++)
		b->turn[0][i] = 1.0f;
	for (i = 0; i < LANES; i++)
		b->m[i] = -INFINITY;
	b->by_lut = worth_tables(h->a);
	if (b->by_lut) {
		lut_queries(b);
		b->by_lut = !lut_coarse(b);
	}
	if (!b->by_lut)
		batch_queries(b);
	memset(b->o, 0, (size_t)d * b->lanes * 16 * sizeof(float));
	return b;
}

/* o = o * old + sums of the lane * own * scale */
static void merge_values(const struct page_batch *b, uint32_t lane, float old,
			 float own, float *o)
{
	const float *scale = b->v->scale + (size_t)b->h->head * b->d;
	const float *part = b->o + (size_t)lane * VF;
	uint32_t ch, i;
	vf sums[VF];

	for (ch = 0; ch + VF <= b->d; ch += VF) {
		for (i = 0; i < VF; i++)
			sums[i] = LD(part + (size_t)(ch + i) * b->lanes * VF);
		ST(o + ch, LD(o + ch) * old + sum16(sums) * (own * LD(scale + ch)));
	}
	for (; ch < b->d; ch++)
		o[ch] = o[ch] * old + own * scale[ch] *
			vf_sum(LD(part + (size_t)ch * b->lanes * VF));
}

/* Merge into the driver's state. */
static void batch_end(struct page_batch *b)
{
	struct cqk_head *h = b->h;
	uint32_t lane;

	batch_flush(b);
	for (lane = 0; lane < b->nq; lane++) {
		float m = larger(h->m[lane], b->m[lane]), old, own;

		if (!(b->m[lane] > -INFINITY))
			continue;
		old = expf(h->m[lane] - m);
		own = expf(b->m[lane] - m);
		merge_values(b, lane, old, own, h->o + (size_t)lane * h->dpad);
		h->l[lane] = h->l[lane] * old + b->l[lane] * own;
		h->m[lane] = m;
	}
}

static bool avx512_few(struct cqk_chunk *c, const struct cqk_src *k,
		       const struct cqk_src *v, const struct cqk_rope *rope)
{
	return rows_few(c, k, v, rope) || cqk_tile_avx2.few(c, k, v, rope);
}

static void avx512_load_k(const struct cqk_src *src, const struct cqk_rope *rope,
			  float *k, float *tmp)
{
	cqk_tile_avx2.load_k(src, NULL, k, tmp);
	if (rope)
		tile_turn(k, rope);
}

static void avx512_load_v(const struct cqk_src *src, float *v, uint32_t dpad)
{
	cqk_tile_avx2.load_v(src, v, dpad);
}

static const struct cqk_tile_ops tile_avx512 = {
	.few = avx512_few,
	.load_k = avx512_load_k,
	.load_v = avx512_load_v,
	.scores = tile_scores,
	.softmax = tile_softmax,
	.accum = tile_accum,
};

/* The transposed path takes the coded pages of this call. */
static bool transposed(const struct cqk_attn *a)
{
	const struct cqk_layer *layer = &a->model->layers[a->layer];
	const struct cqk_geom *g = &a->model->geom;

	return has_look_up(&layer->k) && has_look_up(&layer->v) &&
	       g->head_dim % 2 == 0 && g->head_dim <= 2 * PAIRS &&
	       a->n_rows && vectors_of(a) <= LANES;
}

static void avx512_head(const struct cqk_attn *a, uint32_t head)
{
	struct cqk_head *h = cqk_head_begin(a, head);
	struct page_batch *b = batch_begin(h);
	uint32_t i;

	for (i = 0; i < a->n_blocks; i++) {
		if (a->blocks[i].kind == CQK_BLOCK_CODES)
			cqk_head_page(h, &a->blocks[i], &page_ops, b);
		else
			cqk_head_block(h, &a->blocks[i], &tile_avx512);
	}
	batch_end(b);
	cqk_head_end(h);
}

static void avx512_attention(const struct cqk_attn *a)
{
	uint32_t head;

	if (cqk_many_fit(a)) {
		for (head = a->head_begin; head < a->head_end; head++)
			cqk_many_head(a, head, &tile_avx512);
		return;
	}
	if (!transposed(a)) {
		cqk_attn_tiled(a, &tile_avx512);
		return;
	}
	for (head = a->head_begin; head < a->head_end; head++)
		avx512_head(a, head);
}

/* Tables and integers that a query makes too coarse (lut_coarse(), lane_scale()) apart. */
static const char *avx512_path(const struct cqk_attn *a)
{
	if (cqk_many_fit(a))
		return "lanes";
	if (!transposed(a))
		return "tile";
	return worth_tables(a) ? "tables" : "transposed";
}

static size_t avx512_scratch_bytes(const struct cqk_model *model, uint32_t n_rows)
{
	/* Scratch for many rows serves calls of few rows too, which use batches. */
	return cqk_head_bytes(model, n_rows) +
	       MAX(ALIGN_UP(sizeof(struct page_batch), 64),
		   cqk_many_bytes(model, n_rows));
}

#ifdef CQK_SIMDE
const struct cqk_ops cqk_avx512_simde = {
	.name = ISA_TEXT "-simde",
	.usable = cqk_cpu_has_avx2,
#else
const struct cqk_ops ISA(cqk_avx512) = {
	.name = ISA_TEXT,
	.usable = ISA(cqk_cpu_has_avx512),
#endif
	.priority = ISA_PRIORITY,
	.encode = cqk_avx512_encode,
	.decode = cqk_avx2_decode,
	.scratch_bytes = avx512_scratch_bytes,
	.attention = avx512_attention,
	.path = avx512_path,
};
