// SPDX-License-Identifier: MIT
/*
 * Attention with AVX-512 (F, BW, VL, DQ, VBMI, VNNI).
 *
 * With 8-bit centroids and up to eight query vectors a page is decoded
 * transposed: the 64 codes of a group are one register, a channel's 256
 * centroids are four, so two byte permutes and a blend decode 64 tokens of a
 * channel, whatever the group size; nothing is gathered. Keys are turned by
 * their in-page offset in 16 bits with one table for all pages, and multiplied
 * with the query, turned back by the page's position, by vpdpwssd. Values
 * meet the probabilities of up to four pages in 16 bits, scaled to the largest
 * of them, and go on in float. All else takes the tile (tile.h, 64-byte
 * vectors) or the AVX2 path.
 *
 * Tests compile this file a second time on SIMDe (CQK_SIMDE), which is how it
 * is checked on machines without AVX-512.
 */
#ifdef CQK_SIMDE	/* the test has included SIMDe */
typedef simde__m512i zi;
#define OPS_NAME "avx512-simde"
#define OPS cqk_avx512_simde
#define OPS_LINKAGE static
#else
#include <immintrin.h>
typedef __m512i zi;
#define OPS_NAME "avx512"
#define OPS cqk_avx512
#define OPS_LINKAGE
#endif
#define CQK_VB 64
#define CQK_MR 8
#include "kernels/tile.h"
#include "kernels/x86/keys_avx512.h"
#include "kernels/x86/rows_avx512.h"

#define P_ONE 32766.0f		/* one more by rounding still fits */

/*
 * Values of one channel over all pages waiting: p v in 16 partial sums. @group
 * is where its codes start.
 */
INLINE void channel_values(const int nq, struct page_batch *b, uint32_t ch,
			   size_t group)
{
	const int8_t *plane = b->v_plane + (size_t)ch * CQK_CENTROIDS;
	float *o = b->o + (size_t)ch * nq * 16;
	zi acc[LANES];
	uint32_t page;
	int r;

	for (r = 0; r < nq; r++)
		acc[r] = _mm512_setzero_si512();
	for (page = 0; page < b->n; page++) {
		zi codes = _mm512_loadu_si512(b->v_codes[page] + group);
		zi v = decode64(plane, codes, _mm512_movepi8_mask(codes));
		zi v0 = _mm512_cvtepi8_epi16(_mm512_castsi512_si256(v));
		zi v1 = _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(v, 1));

		for (r = 0; r < nq; r++) {
			const int16_t *p = b->p[page][r];

			acc[r] = _mm512_dpwssd_epi32(acc[r], v0, _mm512_loadu_si512(p));
			acc[r] = _mm512_dpwssd_epi32(acc[r], v1,
						     _mm512_loadu_si512(p + 32));
		}
	}
	for (r = 0; r < nq; r++) {
		vf x = __builtin_convertvector((vi)acc[r], vf);

		ST(o + r * 16, LD(o + r * 16) * b->grow[r] + x * b->weight[r]);
	}
}

INLINE void all_values(const int nq, struct page_batch *b)
{
	uint32_t g, j, ch = 0, c = b->v->code.channels;

	for (g = 0; g < b->v->n_groups; g++)
		for (j = 0; j < c; j++)
			channel_values(nq, b, ch++, (size_t)g * CQK_T);
}

static void batch_values(struct page_batch *b)
{
	if (b->lanes == 1)
		all_values(1, b);
	else if (b->lanes == 2)
		all_values(2, b);
	else if (b->lanes == 4)
		all_values(4, b);
	else
		all_values(LANES, b);
}

/* Scores from integers to what softmax takes; returns their maximum. */
static float lane_top(struct page_batch *b, uint32_t page, uint32_t lane)
{
	float *s = b->s[page][lane];
	int i;

	for (i = 0; i < CQK_T; i += VF)
		ST(s + i, LD(s + i) * b->unit[lane]);
	return softmax_top(s, b->vis[page][lane], b->h->a->soft_cap);
}

/*
 * p = e^(s - top), as 16-bit fractions; sums of both. What rounding takes from
 * a token goes to the next one of its place (@carry): thousands of tokens that
 * are each below half a unit would otherwise vanish beside one large one.
 */
static void lane_exp(struct page_batch *b, uint32_t page, uint32_t lane, float top,
		     vf *carry, float *sum, float *sum_p)
{
	const float *s = b->s[page][lane];
	vf exact = (vf){ 0 }, rounded = (vf){ 0 };
	int i;

	for (i = 0; i < CQK_T; i += VF) {
		vi seen = vi_mask(b->vis[page][lane] >> i);
		vf p = (vf)((vi)vf_exp(LD(s + i) - top) & seen);
		vf want = p * P_ONE + *carry, got;
		vi n = (vi)_mm512_cvtps_epi32(want) & seen;

		got = __builtin_convertvector(n, vf);
		*carry = want - got;
		exact += p;
		rounded += got;
		_mm256_storeu_si256((__m256i *)(void *)&b->p[page][lane][i],
				    _mm512_cvtepi32_epi16((zi)n));
	}
	*sum += vf_sum(exact);
	*sum_p += vf_sum(rounded);
}

/* One lane of the batch; the values get the exact mass of p. */
static void lane_softmax(struct page_batch *b, uint32_t lane)
{
	float top = -INFINITY, sum = 0.0f, sum_p = 0.0f, m;
	vf carry = (vf){ 0 };
	uint32_t page;

	for (page = 0; page < b->n; page++)
		top = fmaxf(top, lane_top(b, page, lane));
	b->grow[lane] = 1.0f;
	b->weight[lane] = 0.0f;
	if (!(top > -INFINITY)) {
		for (page = 0; page < b->n; page++)
			memset(b->p[page][lane], 0, sizeof(b->p[page][lane]));
		return;
	}
	for (page = 0; page < b->n; page++)
		lane_exp(b, page, lane, top, &carry, &sum, &sum_p);
	m = fmaxf(b->m[lane], top);
	b->grow[lane] = expf(b->m[lane] - m);
	b->weight[lane] = expf(top - m) * sum / sum_p;
	b->l[lane] = b->l[lane] * b->grow[lane] + expf(top - m) * sum;
	b->m[lane] = m;
}

static void batch_flush(struct page_batch *b)
{
	uint32_t lane;

	if (!b->n)
		return;
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
	page_keys(b, b->n);
	if (++b->n == BATCH)
		batch_flush(b);
}

static const struct cqk_page_ops page_ops = {
	.turn = batch_turn,
	.lane = lane_query,
	.page = batch_add,
};

static struct page_batch *batch_begin(struct cqk_head *h)
{
	const struct cqk_layer *layer = &h->a->model->layers[h->a->layer];
	uint32_t d = h->a->model->geom.head_dim, i;
	size_t plane = (size_t)h->head * d * CQK_CENTROIDS;
	struct page_batch *b = h->extra;

	memset(b, 0, offsetof(struct page_batch, s));
	b->h = h;
	b->k = &layer->k;
	b->v = &layer->v;
	b->k_plane = layer->k.i8 + plane;
	b->v_plane = layer->v.i8 + plane;
	b->nq = h->nq;
	b->lanes = h->nq > 4 ? 8 : h->nq > 2 ? 4 : h->nq;
	b->d = d;
	b->half = cqk_turns_keys(h->a) ? h->a->rope->half : 0;
	b->np = d / 2;
	for (i = 0; i < PAIRS; i++)
		b->turn[0][i] = 1.0f;
	for (i = 0; i < LANES; i++)
		b->m[i] = -INFINITY;
	memset(b->o, 0, (size_t)d * b->lanes * 16 * sizeof(float));
	batch_queries(b);
	for (i = 0; i < b->nq; i++)
		lane_query(b, i);
	return b;
}

/* Merge into the driver's state. */
static void batch_end(struct page_batch *b)
{
	const float *scale = b->v->scale + (size_t)b->h->head * b->d;
	struct cqk_head *h = b->h;
	uint32_t lane, ch;

	batch_flush(b);
	for (lane = 0; lane < b->nq; lane++) {
		float *o = h->o + (size_t)lane * h->dpad;
		float m = fmaxf(h->m[lane], b->m[lane]), old, own;

		if (!(b->m[lane] > -INFINITY))
			continue;
		old = expf(h->m[lane] - m);
		own = expf(b->m[lane] - m);
		for (ch = 0; ch < b->d; ch++)
			o[ch] = o[ch] * old + own * scale[ch] *
				vf_sum(LD(b->o + ((size_t)ch * b->lanes + lane) * 16));
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

static bool has_planes(const struct cqk_codebook *cb)
{
	return cb->code.type == CQ_CODE_CQ && cb->i8 && cb->scale;
}

/* The transposed path takes the coded pages of this call. */
static bool transposed(const struct cqk_attn *a)
{
	const struct cqk_layer *layer = &a->model->layers[a->layer];
	const struct cqk_geom *g = &a->model->geom;

	return has_planes(&layer->k) && has_planes(&layer->v) &&
	       g->head_dim % 2 == 0 && g->head_dim <= 2 * PAIRS &&
	       (size_t)a->n_rows * (g->n_heads / g->n_kv_heads) <= LANES;
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

	if (!a->n_rows || !transposed(a)) {
		cqk_attn_tiled(a, &tile_avx512);
		return;
	}
	for (head = a->head_begin; head < a->head_end; head++)
		avx512_head(a, head);
}

static size_t avx512_scratch_bytes(const struct cqk_model *model, uint32_t n_rows)
{
	/* Scratch for many rows serves calls of few rows too, which use batches. */
	return cqk_head_bytes(model, n_rows) + ALIGN_UP(sizeof(struct page_batch), 64);
}

#ifdef CQK_SIMDE
static bool avx512_usable(void)
{
	return cqk_cpu_has_avx2();
}
#else
static bool avx512_usable(void)
{
	return cqk_cpu_has_avx512();
}
#endif

OPS_LINKAGE const struct cqk_ops OPS = {
	.name = OPS_NAME,
	.priority = 20,
	.usable = avx512_usable,
	.encode = cqk_avx2_encode,
	.decode = cqk_avx2_decode,
	.scratch_bytes = avx512_scratch_bytes,
	.attention = avx512_attention,
};
