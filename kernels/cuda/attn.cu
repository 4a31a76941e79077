// SPDX-License-Identifier: MIT
/*
 * Attention over pages of codes and fp16 blocks.
 *
 * The host's plan (plan.h) splits the blocks of a step into items: a run of
 * blocks that the same query rows read. A block of threads takes one item for
 * one kv head, decodes each of its blocks once into shared memory, and
 * computes up to 64 query vectors against it with tensor cores. Its result,
 * not yet normalised, goes to the workspace; cqk_merge (merge.cu) adds up what
 * the items have of each row. Items of more vectors are attn_wide.cu's,
 * those of few, where it can compute them, attn_few.cu's.
 *
 * Per block: scores of 16 tokens per warp, softmax of a vector per warp, and
 * values of a quarter of the channels per warp. Online softmax: Dao et al.,
 * FlashAttention, arXiv 2205.14135, algorithm 1.
 */
#include "kernels/cuda/attn.cuh"

#define WARPS (CQKD_THREADS / 32)

/**
 * struct vec - one query vector: a head of a row
 * @vis:  tokens of the block at hand that it sees
 * @m:    maximum of its scores so far
 * @l:    sum of its probabilities so far, NaN if the query is none
 * @fade: what the block at hand does to all before it
 * @size: factor that makes scores of products
 * @row:  query row
 * @span: its span of each block
 * @spoiled: the query is not finite or too large
 */
struct vec {
	uint64_t vis;
	float m, l, fade, size;
	uint32_t row, span;
	uint32_t spoiled;
	uint32_t pad;
};

template <int d, int vecs>
struct shared {
	float q[vecs][CQKD_Q_PITCH(d)];
	__half qh[vecs][CQKD_PITCH(d)];
	__half tile[CQKD_TOKENS][CQKD_PITCH(d)];
	float s[vecs][CQKD_S_PITCH];
	__half p[vecs][CQKD_P_PITCH];
	struct vec vec[vecs];
	uint32_t live[2][2];	/* by warp: tokens that some vector sees, low and high */
};

/* A warp loads one query, times what query_read() says. */
template <int d, int vecs>
CQ_DEVICE void query_load(const struct cqkd_attn &p, const struct work &w,
			  struct shared<d, vecs> *sh, uint32_t i)
{
	uint32_t lane = threadIdx.x % 32, ch;
	struct cqkd_entry e;
	float unit = query_read<d>(p, w, i, &e, sh->q[i]);
	bool bad = unit == 0;

	for (ch = lane; ch < d; ch += 32)
		sh->q[i][ch] = bad ? 0.0f : sh->q[i][ch] * unit;
	if (lane == 0) {
		struct vec *v = &sh->vec[i];

		v->m = -CQKD_INF;
		v->l = 0;
		v->size = bad ? 0.0f : p.scale / unit;
		if (p.turn_k)
			v->size /= TURNED_SIZE;
		v->row = e.row;
		v->span = e.span;
		v->spoiled = bad;
	}
}

/* A warp makes halves of a query, turned back by @pos if keys are turned here. */
template <int d, int vecs>
CQ_DEVICE void query_halves(const struct cqkd_attn &p, struct shared<d, vecs> *sh, uint32_t i,
			    uint32_t pos)
{
	uint32_t pairs = p.turn_k ? p.rope.half : 0, j;
	const float *q = sh->q[i];
	__half *out = sh->qh[i];

	for (j = threadIdx.x % 32; j < pairs; j += 32) {
		struct cqkd_turn t = cqkd_turn_at(p.rope, pos, j);
		float lo = q[j], hi = q[j + pairs];

		out[j] = __float2half_rn(lo * t.c + hi * t.s);
		out[j + pairs] = __float2half_rn(hi * t.c - lo * t.s);
	}
	for (j = 2 * pairs + threadIdx.x % 32; j < d; j += 32)
		out[j] = __float2half_rn(q[j]);
}

/* All queries of the item; the vectors that fill the last tile see nothing. */
template <int d, int vecs>
CQ_DEVICE void queries_load(const struct cqkd_attn &p, const struct work &w,
			    struct shared<d, vecs> *sh)
{
	uint32_t i, ch;

	for (i = threadIdx.x / 32; i < w.n_tiles * 16; i += WARPS) {
		if (i >= w.item.n_vecs) {
			for (ch = threadIdx.x % 32; ch < d; ch += 32)
				sh->qh[i][ch] = __float2half_rn(0.0f);
			continue;
		}
		query_load(p, w, sh, i);
		__syncwarp();
		if (p.turn_q)
			query_turn(p, sh->vec[i].row, sh->q[i]);
		__syncwarp();
		if (!p.turn_k)
			query_halves(p, sh, i, 0);
	}
}

/* Queries into the frame of the block at hand. */
template <int d, int vecs>
CQ_DEVICE void queries_turn(const struct cqkd_attn &p, const struct work &w,
			    struct shared<d, vecs> *sh)
{
	const struct cqkd_span *s = part_of<struct cqkd_span>(p, &cqkd_plan::spans) +
				    w.block.span_first;
	uint32_t i;

	for (i = threadIdx.x / 32; i < w.item.n_vecs; i += WARPS)
		query_halves(p, sh, i, s[sh->vec[i].span].pos);
}

/* Keys of the tile by their offset in the block, and to TURNED_SIZE. */
template <int d, int vecs>
CQ_DEVICE void tile_turn(const struct cqkd_attn &p, struct shared<d, vecs> *sh)
{
	const float *table = cqkd_ptr<const float>(p.rope.in_page);
	uint32_t pairs = p.rope.half, left = d - 2 * pairs, i;

#pragma unroll 2
	for (i = threadIdx.x; i < CQKD_TOKENS * pairs; i += CQKD_THREADS) {
		uint32_t t = i / pairs, j = i % pairs;
		float c = __ldg(table + t * 2 * pairs + j) * TURNED_SIZE;
		float s = __ldg(table + t * 2 * pairs + pairs + j) * TURNED_SIZE;
		float lo = __half2float(sh->tile[t][j]);
		float hi = __half2float(sh->tile[t][j + pairs]);

		sh->tile[t][j] = __float2half_rn(lo * c - hi * s);
		sh->tile[t][j + pairs] = __float2half_rn(lo * s + hi * c);
	}
	for (i = threadIdx.x; i < CQKD_TOKENS * left; i += CQKD_THREADS) {
		__half *x = &sh->tile[i / left][2 * pairs + i % left];

		*x = __float2half_rn(__half2float(*x) * TURNED_SIZE);
	}
}

/* Who sees what of the block at hand. Returns whether anybody sees anything. */
template <int d, int vecs>
CQ_DEVICE bool look(const struct cqkd_attn &p, const struct work &w,
		    struct shared<d, vecs> *sh)
{
	const struct cqkd_span *spans = part_of<struct cqkd_span>(p, &cqkd_plan::spans);
	uint32_t i = threadIdx.x, warp = i / 32, lo, hi;
	uint64_t vis = 0;

	if (i < w.item.n_vecs) {
		struct vec *v = &sh->vec[i];

		vis = visible(p, w.block, spans[w.block.span_first + v->span],
			      part_of<uint32_t>(p, &cqkd_plan::row_pos)[v->row]);
	}
	if (i < vecs)
		sh->vec[i].vis = vis;
	lo = __reduce_or_sync(0xffffffffu, (uint32_t)vis);
	hi = __reduce_or_sync(0xffffffffu, (uint32_t)(vis >> 32));
	if (i % 32 == 0 && warp < 2) {
		sh->live[warp][0] = lo;
		sh->live[warp][1] = hi;
	}
	return __syncthreads_or(vis != 0);
}

/* Products of all queries with 16 tokens of the tile, those of this warp. */
template <int d, int vecs>
CQ_DEVICE void scores(const struct work &w, struct shared<d, vecs> *sh)
{
	uint32_t lane = threadIdx.x % 32, first = threadIdx.x / 32 * 16, i, n;
	const __half *keys = &sh->tile[first + lane / 16 * 8 + lane % 8][lane / 8 % 2 * 8];
	uint32_t b[4], a[4];
	int k;

#pragma unroll 1
	for (i = 0; i < w.n_tiles; i++) {
		const __half *q = &sh->qh[i * 16 + lane % 16][lane / 16 * 8];
		float acc[2][4] = {};

#pragma unroll
		for (k = 0; k < d; k += 16) {
			cq_ldmatrix_x4(b, keys + k);
			cq_ldmatrix_x4(a, q + k);
			cq_mma_16816_f32(acc[0], a, b);
			cq_mma_16816_f32(acc[1], a, b + 2);
		}
#pragma unroll
		for (n = 0; n < 2; n++) {
			uint32_t row = i * 16 + lane / 4, t = first + n * 8 + lane % 4 * 2;

			*(float2 *)&sh->s[row][t] = make_float2(acc[n][0], acc[n][1]);
			*(float2 *)&sh->s[row + 8][t] = make_float2(acc[n][2], acc[n][3]);
		}
	}
}

/* A warp turns the scores of a vector into probabilities. */
template <int d, int vecs>
CQ_DEVICE void softmax(const struct cqkd_attn &p, struct shared<d, vecs> *sh, uint32_t i)
{
	uint32_t lane = threadIdx.x % 32;
	struct vec *v = &sh->vec[i];
	float lo = score(p, sh->s[i][lane], v->size, v->vis >> lane & 1);
	float hi = score(p, sh->s[i][lane + 32], v->size, v->vis >> (lane + 32) & 1);
	float old = v->m, l = v->l, m, sum, fade;
	__half plo, phi;

	m = fmaxf(old, warp_max(fmaxf(lo, hi)));
	plo = __float2half_rn(prob(lo, m));
	phi = __float2half_rn(prob(hi, m));
	sh->p[i][lane] = plo;
	sh->p[i][lane + 32] = phi;
	/* what is added up is what V is multiplied with */
	sum = warp_sum(__half2float(plo) + __half2float(phi));
	fade = m > -CQKD_INF ? exp2f((old - m) * LOG2E) : 1.0f;
	__syncwarp();	/* all lanes have read what lane 0 now changes */
	if (lane == 0) {
		v->m = m;
		v->l = l * fade + sum;
		v->fade = fade;
	}
}

/* Vectors of a tile that the item does not have: nothing, and no harm. */
template <int d, int vecs>
CQ_DEVICE void softmax_none(struct shared<d, vecs> *sh, uint32_t i)
{
	sh->p[i][threadIdx.x % 32] = __float2half_rn(0.0f);
	sh->p[i][threadIdx.x % 32 + 32] = __float2half_rn(0.0f);
	if (threadIdx.x % 32 == 0)
		sh->vec[i].fade = 1;
}

template <int d, int vecs>
CQ_DEVICE void softmaxes(const struct cqkd_attn &p, const struct work &w,
			 struct shared<d, vecs> *sh)
{
	uint32_t i;

	for (i = threadIdx.x / 32; i < w.n_tiles * 16; i += WARPS)
		if (i < w.item.n_vecs)
			softmax(p, sh, i);
		else
			softmax_none(sh, i);
}

/* Results of all vectors in a quarter of the channels, in registers. */
template <int d, int vecs>
struct result {
	float at[vecs / 16][d / 32][4];
};

template <int d, int vecs>
CQ_DEVICE void result_fade(struct shared<d, vecs> *sh, uint32_t i, float (*acc)[4])
{
	uint32_t row = i * 16 + threadIdx.x % 32 / 4;
	float lo = sh->vec[row].fade, hi = sh->vec[row + 8].fade;
	int n;

#pragma unroll
	for (n = 0; n < d / 32; n++) {
		acc[n][0] *= lo;
		acc[n][1] *= lo;
		acc[n][2] *= hi;
		acc[n][3] *= hi;
	}
}

/* Probabilities times the values of the tile, added to the results. */
template <int d, int vecs>
CQ_DEVICE void values(const struct work &w, struct shared<d, vecs> *sh,
		      struct result<d, vecs> &r)
{
	uint32_t lane = threadIdx.x % 32, first = threadIdx.x / 32 * (d / 4), a[4], b[4];
	int i, n, k;

#pragma unroll
	for (i = 0; i < vecs / 16; i++)
		if (i < (int)w.n_tiles)
			result_fade(sh, i, r.at[i]);
#pragma unroll 1
	for (k = 0; k < CQKD_TOKENS; k += 16) {
		const __half *v = &sh->tile[k + lane % 16][first + lane / 16 * 8];

#pragma unroll
		for (i = 0; i < vecs / 16; i++) {
			if (i >= (int)w.n_tiles)
				break;
			cq_ldmatrix_x4(a, &sh->p[i * 16 + lane % 16][k + lane / 16 * 8]);
#pragma unroll
			for (n = 0; n < d / 32; n += 2) {
				cq_ldmatrix_x4_trans(b, v + n * 8);
				cq_mma_16816_f32(r.at[i][n], a, b);
				cq_mma_16816_f32(r.at[i][n + 1], a, b + 2);
			}
		}
	}
}

/* Tokens that some vector sees; after the barrier of look(). */
template <int d, int vecs>
CQ_DEVICE uint64_t live_tokens(const struct shared<d, vecs> *sh)
{
	return sh->live[0][0] | sh->live[1][0] |
	       (uint64_t)(sh->live[0][1] | sh->live[1][1]) << 32;
}

/* One block of tokens against all vectors of the item. */
template <int d, int vecs>
CQ_DEVICE void block_add(const struct cqkd_attn &p, const struct work &w,
			 struct shared<d, vecs> *sh, struct result<d, vecs> &r)
{
	if (!look(p, w, sh))
		return;
	tile_load<d, CQKD_THREADS>(p, w, false, live_tokens(sh), sh->tile);
	if (p.turn_k) {
		queries_turn(p, w, sh);
		__syncthreads();
		tile_turn(p, sh);
	}
	__syncthreads();
	scores(w, sh);
	__syncthreads();
	tile_load<d, CQKD_THREADS>(p, w, true, live_tokens(sh), sh->tile);
	softmaxes(p, w, sh);
	__syncthreads();
	values(w, sh, r);
	/* the next block writes the tile only after the barrier of look() */
}

/* Results of the item to the workspace. */
template <int d, int vecs>
CQ_DEVICE void result_store(const struct cqkd_attn &p, const struct work &w,
			    struct shared<d, vecs> *sh, const struct result<d, vecs> &r)
{
	uint32_t lane = threadIdx.x % 32, ch = threadIdx.x / 32 * (d / 4) + lane % 4 * 2;
	size_t slot = (size_t)(w.head - p.head_begin) * p.max_slots + w.item.slot;
	float *ml = cqkd_ptr<float>(p.part_ml) + slot * 2;
	float *o = cqkd_ptr<float>(p.part_o) + slot * d;
	int i, n, h;

	for (i = threadIdx.x; i < (int)w.item.n_vecs; i += CQKD_THREADS) {
		const struct vec *v = &sh->vec[i];

		ml[2 * i] = v->m;
		ml[2 * i + 1] = v->spoiled ? __int_as_float(0x7fc00000) : v->l * P_UNIT;
	}
#pragma unroll
	for (i = 0; i < vecs / 16; i++)
#pragma unroll
		for (h = 0; h < 2; h++) {
			uint32_t row = i * 16 + lane / 4 + h * 8;

			if (row >= w.item.n_vecs)
				continue;
#pragma unroll
			for (n = 0; n < d / 32; n++)
				*(float2 *)&o[(size_t)row * d + ch + n * 8] =
					make_float2(r.at[i][n][2 * h] * P_UNIT,
						    r.at[i][n][2 * h + 1] * P_UNIT);
		}
}

template <int d, int vecs>
CQ_DEVICE void attention(const struct cqkd_attn &p, struct shared<d, vecs> *sh)
{
	struct result<d, vecs> r = {};
	const struct cqkd_plan *plan = cqkd_ptr<const struct cqkd_plan>(p.plan);
	struct work w;
	uint32_t i;

	/* wide items come first: they are for attn_wide.cu */
	if (blockIdx.x >= plan->n_items - plan->n_wide)
		return;
	w.item = part_of<struct cqkd_item>(p, &cqkd_plan::items)[plan->n_wide + blockIdx.x];
	if (w.item.n_vecs <= p.few)
		return;
	w.head = p.head_begin + blockIdx.y;
	w.n_tiles = (w.item.n_vecs + 15) / 16;
	queries_load(p, w, sh);
	__syncthreads();
	for (i = 0; i < w.item.n_blocks; i++) {
		w.block = part_of<struct cqkd_block>(p, &cqkd_plan::blocks)[w.item.block + i];
		block_add(p, w, sh, r);
	}
	result_store(p, w, sh, r);
}

/* Grid: most items of a plan, kv heads of the call. */
#define ATTN(d) \
CQ_KERNEL(CQKD_THREADS, cqk_attn_d##d, (struct cqkd_attn p)) \
{ \
	using block = struct shared<d, CQKD_VECS(d)>; \
	static_assert(sizeof(block) <= CQKD_ATTN_SHARED(d, CQKD_VECS(d)), "params.h"); \
	CQ_DYN_SHARED(block, sh); \
\
	attention<d, CQKD_VECS(d)>(p, sh); \
}
ATTN(64)
ATTN(128)
ATTN(256)
