// SPDX-License-Identifier: MIT
/*
 * Attention over pages of codes and fp16 blocks.
 *
 * The host's plan (plan.h) splits the blocks of a step into items: a run of
 * blocks that the same query rows read. A block of threads takes one item for
 * one kv head, decodes each of its blocks once into shared memory, and
 * computes up to 64 query vectors against it with tensor cores. Its result,
 * not yet normalised, goes to the workspace; cqk_merge adds up what the items
 * have of each row.
 *
 * Per block: scores of 16 tokens per warp, softmax of a vector per warp, and
 * values of a quarter of the channels per warp. Online softmax: Dao et al.,
 * FlashAttention, arXiv 2205.14135, algorithm 1.
 */
#include "kernels/cuda/attn.cuh"

/*
 * Probabilities are kept times 2^10 in fp16: beside a token of probability 1,
 * thousands of small ones still count with all their bits.
 */
#define P_LIFT 10.0f
#define P_UNIT 0.0009765625f

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

/* The score of a product, -inf for a token that is not seen. */
CQ_DEVICE float score(const struct cqkd_attn &p, const struct vec *v, float product, uint32_t t)
{
	float x = product * v->size;

	if (p.soft_cap > 0)
		x = p.soft_cap * tanhf(x / p.soft_cap);
	return v->vis >> t & 1 ? x : -CQKD_INF;
}

CQ_DEVICE float prob(float x, float m)
{
	return x > -CQKD_INF ? exp2f((x - m) * LOG2E + P_LIFT) : 0.0f;
}

/* A warp turns the scores of a vector into probabilities. */
template <int d, int vecs>
CQ_DEVICE void softmax(const struct cqkd_attn &p, struct shared<d, vecs> *sh, uint32_t i)
{
	uint32_t lane = threadIdx.x % 32;
	struct vec *v = &sh->vec[i];
	float lo = score(p, v, sh->s[i][lane], lane);
	float hi = score(p, v, sh->s[i][lane + 32], lane + 32);
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

/* One block of tokens against all vectors of the item. */
template <int d, int vecs>
CQ_DEVICE void block_add(const struct cqkd_attn &p, const struct work &w,
			 struct shared<d, vecs> *sh, struct result<d, vecs> &r)
{
	if (!look(p, w, sh))
		return;
	tile_load(p, w, false, sh);
	if (p.turn_k) {
		queries_turn(p, w, sh);
		__syncthreads();
		tile_turn(p, sh);
	}
	__syncthreads();
	scores(w, sh);
	__syncthreads();
	tile_load(p, w, true, sh);
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
	struct work w;
	uint32_t i;

	if (blockIdx.x >= cqkd_ptr<const struct cqkd_plan>(p.plan)->n_items)
		return;
	w.item = part_of<struct cqkd_item>(p, &cqkd_plan::items)[blockIdx.x];
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

/* Maximum and sum of a row and head in item @ref, and how much they count. */
struct share {
	const float *ml, *o;
	float m;
};

CQ_DEVICE float weight(const struct share &s, uint32_t ref)
{
	float m = s.ml[2 * (size_t)ref];

	return m > -CQKD_INF ? exp2f((m - s.m) * LOG2E) : 0.0f;
}

CQ_DEVICE float merge_sum(const struct share &s, const uint32_t *refs, uint32_t n)
{
	float sum = 0;
	uint32_t i;

	for (i = 0; i < n; i++) {
		float w = weight(s, refs[i]);

		if (w > 0)	/* a spoiled one is NaN, but may see nothing */
			sum += w * s.ml[2 * (size_t)refs[i] + 1];
	}
	return sum;
}

CQ_DEVICE float merge_channel(const struct share &s, const uint32_t *refs, uint32_t n,
			      uint32_t d, uint32_t ch)
{
	float x = 0;
	uint32_t i;

	for (i = 0; i < n; i++) {
		float w = weight(s, refs[i]);

		if (w > 0)
			x += w * s.o[(size_t)refs[i] * d + ch];
	}
	return x;
}

/* Sum of the partial results of one row and head, by one warp. */
CQ_DEVICE void merge(const struct cqkd_attn &p, uint32_t row, uint32_t head)
{
	const uint32_t *at = part_of<uint32_t>(p, &cqkd_plan::row_refs) + row;
	const uint32_t *refs = part_of<uint32_t>(p, &cqkd_plan::refs) + at[0];
	size_t slot = (size_t)(head / p.gqa) * p.max_slots + head % p.gqa;
	uint32_t n = at[1] - at[0], out = p.head_begin * p.gqa + head, i;
	int64_t to = cqkd_at(p.o, row, out);
	struct share s;
	float sum, lse;

	s.ml = cqkd_ptr<const float>(p.part_ml) + slot * 2;
	s.o = cqkd_ptr<const float>(p.part_o) + slot * p.d;
	s.m = -CQKD_INF;
	for (i = 0; i < n; i++)
		s.m = fmaxf(s.m, s.ml[2 * (size_t)refs[i]]);
	sum = merge_sum(s, refs, n);
	for (i = threadIdx.x % 32; i < p.d; i += 32)
		cqkd_store(p.o, to + i, s.m > -CQKD_INF ?
			   merge_channel(s, refs, n, p.d, i) / sum : 0.0f);
	lse = s.m > -CQKD_INF ? s.m + logf(sum) : -CQKD_INF;
	if (p.lse && threadIdx.x % 32 == 0)
		cqkd_ptr<float>(p.lse)[row * p.lse_stride + out] = p.base2 ? lse * LOG2E : lse;
}

/* Grid: rows that a plan may have, query heads by the warps of a block. */
CQ_KERNEL(CQKD_THREADS, cqk_merge, (struct cqkd_attn p))
{
	uint32_t head = blockIdx.y * WARPS + threadIdx.x / 32;

	if (blockIdx.x < cqkd_ptr<const struct cqkd_plan>(p.plan)->n_rows &&
	    head < p.n_heads * p.gqa)
		merge(p, blockIdx.x, head);
}
