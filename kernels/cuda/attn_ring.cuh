/* SPDX-License-Identifier: MIT */
/*
 * Attention of at most eight query vectors over keys and values as they are stored, read as
 * fast as memory delivers: attn_f16.cu, and what gpu-bench compares with.
 *
 * Each warp has a quarter of every block, 16 tokens, and a ring of them on their way into
 * shared memory; no barrier but those of a warp until the item is done. Fragments as in
 * attn_few.cu: tokens are the rows of Q.K, channels those of V.P. A type E of numbers
 * (attn_halves.cuh) says how many bytes one has and makes fragments of them.
 */
#ifndef CQK_CUDA_ATTN_RING_CUH
#define CQK_CUDA_ATTN_RING_CUH

#include "kernels/cuda/attn_frag.cuh"
#include "kernels/cuda/attn_halves.cuh"

#define WARPS CQKD_F16_WARPS

/* 16 tokens of a warp. */
template <int d, typename E>
struct stage {
	__align__(16) uint8_t k[16][CQKD_RING_PITCH(d, E::bytes)];
	__align__(16) uint8_t v[16][CQKD_RING_PITCH(d, E::bytes)];
};

template <int d, typename E>
struct ring {
	union {
		struct stage<d, E> at[WARPS][E::stages];
		float o[4][VECS][d];
	};
	__half q[VECS][CQKD_PITCH(d)];
	struct vectors<d, WARPS> all;
	uint64_t vis[WARPS][E::stages][VECS];
};

/* Where the tokens of a block begin, @row bytes each; values follow @v bytes later. */
template <int row>
CQ_DEVICE const uint8_t *rows_of(const struct cqkd_attn &p, const struct work &w, size_t *v)
{
	const uint8_t *at = cqkd_ptr<const uint8_t>(w.block.base);

	if (w.block.kind) {
		*v = (size_t)w.block.tokens * row;
		return at + ((size_t)p.layer * p.n_kv_heads + w.head) * 2 * *v;
	}
	*v = p.at.k_bytes;
	return at + p.at.offset + w.head * (p.at.k_bytes + p.at.v_bytes);
}

/* A warp's 16 tokens of block @i of the item on their way; tokens nobody sees are zero. */
template <int d, typename E>
CQ_DEVICE void fetch(const struct cqkd_attn &p, struct work &w, struct ring<d, E> *sh, uint32_t i)
{
	constexpr uint32_t row = d * E::bytes;
	uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, vec = lane % VECS, at, j;
	struct stage<d, E> &to = sh->at[warp][i % E::stages];
	const struct cqkd_span *spans;
	const uint8_t *from;
	uint64_t vis = 0, live;
	size_t v;

	if (i >= w.item.n_blocks) {
		cq_cp_commit();
		return;
	}
	w.block = part_of<struct cqkd_block>(p, &cqkd_plan::blocks)[w.item.block + i];
	spans = part_of<struct cqkd_span>(p, &cqkd_plan::spans) + w.block.span_first;
	if (vec < w.item.n_vecs)
		vis = visible(p, w.block, spans[sh->all.query[vec].span],
			      part_of<uint32_t>(p, &cqkd_plan::row_pos)[sh->all.query[vec].row]);
	if (lane < VECS)
		sh->vis[warp][i % E::stages][lane] = vis;
	live = (uint64_t)__reduce_or_sync(0xffffffffu, (uint32_t)(vis >> 32)) << 32 |
	       __reduce_or_sync(0xffffffffu, (uint32_t)vis);
	from = rows_of<row>(p, w, &v);
#pragma unroll 4
	for (j = lane; j < row; j += 32) {
		uint32_t t = j / (row / 16), part = j % (row / 16) * 16, token = warp * 16 + t;
		uint32_t bytes = live >> token & 1 ? 16 : 0;

		at = bytes ? token * row + part : 0;
		cq_cp_async16_zfill(&to.k[t][part], from + at, bytes);
		cq_cp_async16_zfill(&to.v[t][part], from + v + at, bytes);
	}
	cq_cp_commit();
}

/* Queries as halves, and as the fragments that a warp keeps for the item. */
template <int d, typename E>
CQ_DEVICE void fragments(struct ring<d, E> *sh, uint32_t q[d / 16][2])
{
	uint32_t lane = threadIdx.x % 32, i, r[4];

	for (i = threadIdx.x; i < VECS * d; i += WARPS * 32)
		sh->q[i / d][E::place(i % d)] = __float2half_rn(sh->all.q[i / d][i % d]);
	__syncthreads();
#pragma unroll
	for (i = 0; i < d / 16; i += 2) {
		cq_ldmatrix_x4(r, &sh->q[lane % 8][i * 16 + lane / 8 * 8]);
		q[i][0] = r[0];
		q[i][1] = r[1];
		q[i + 1][0] = r[2];
		q[i + 1][1] = r[3];
	}
}

/* A warp's results of all vectors so far: a lane has vectors 2 l and 2 l + 1. */
template <int d>
struct result {
	float o[d / 16][4];	/* [vector 2 l, the other] of a channel, then of the next */
	float m[2], l[2];
};

/* prob() by the unit for it, whose error is far below that of the half that it becomes. */
CQ_DEVICE float prob_fast(float x, float m)
{
	return x > -CQKD_INF ? cq_exp2((x - m) * LOG2E + P_LIFT) : 0.0f;
}

/*
 * Products become probabilities, returned as the fragment that values are multiplied with:
 * of the lane's tokens, the @at-th of the tile and that @next after it. What was there
 * before fades.
 */
template <int d, int warps>
CQ_DEVICE void softmax(const struct cqkd_attn &p, const struct vectors<d, warps> &all,
		       const uint64_t *vis, uint32_t tile, uint32_t at, uint32_t next, float s[4],
		       struct result<d> &r, uint32_t out[2])
{
	const uint16_t *tiles = reinterpret_cast<const uint16_t *>(vis) + tile;
	uint32_t lane = threadIdx.x % 32;
	float m[2], fade[2];
	__half x[4];
	int i, flip;

#pragma unroll
	for (i = 0; i < 2; i++) {
		uint32_t vec = lane % 4 * 2 + i;
		uint32_t see = tiles[vec * 4] >> at;
		float size = all.query[vec].size;

		s[i] = score(p, s[i], size, see & 1);
		s[i + 2] = score(p, s[i + 2], size, see >> next & 1);
		m[i] = fmaxf(r.m[i], fmaxf(s[i], s[i + 2]));
		for (flip = 4; flip < 32; flip *= 2)
			m[i] = fmaxf(m[i], __shfl_xor_sync(0xffffffffu, m[i], flip));
		fade[i] = m[i] > -CQKD_INF ? cq_exp2((r.m[i] - m[i]) * LOG2E) : 1.0f;
		x[i] = __float2half_rn(prob_fast(s[i], m[i]));
		x[i + 2] = __float2half_rn(prob_fast(s[i + 2], m[i]));
		r.l[i] = r.l[i] * fade[i] + __half2float(x[i]) + __half2float(x[i + 2]);
	}
	out[0] = cq_movmatrix_trans(h2_bits(__halves2half2(x[0], x[1])));
	out[1] = cq_movmatrix_trans(h2_bits(__halves2half2(x[2], x[3])));
	if (__any_sync(0xffffffffu, m[0] != r.m[0] || m[1] != r.m[1])) {
#pragma unroll
		for (i = 0; i < 4 * (d / 16); i++)
			r.o[i / 4][i % 4] *= fade[i % 2];
	}
	r.m[0] = m[0];
	r.m[1] = m[1];
}

/*
 * Results of all warps to @out: four by four. A lane's results are of channel @ch, each
 * second one of @next channels further on, and so on in steps of @step channels.
 */
template <int d, int warps>
CQ_DEVICE void gather(struct vectors<d, warps> &all, float (*out)[VECS][d], uint32_t ch,
		      uint32_t step, uint32_t next, struct result<d> &r)
{
	uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	int i, n, four;

#pragma unroll
	for (i = 0; i < 2; i++) {
		for (n = 4; n < 32; n *= 2)
			r.l[i] += __shfl_xor_sync(0xffffffffu, r.l[i], n);
		if (lane < 4) {
			all.ml[warp][lane * 2 + i][0] = r.m[i];
			all.ml[warp][lane * 2 + i][1] = r.l[i];
		}
	}
	__syncthreads();
	for (four = 0; four < warps / 4; four++) {
#pragma unroll
		for (i = 0; i < 2 && (int)warp / 4 == four; i++) {
			uint32_t vec = lane % 4 * 2 + i;
			float m = total(all, vec).x;
			float f = r.m[i] > -CQKD_INF ? exp2f((r.m[i] - m) * LOG2E) : 0.0f;
			float *o = out[warp % 4][vec] + ch;

#pragma unroll
			for (n = 0; n < d / 16; n++) {
				float *a = o + n * step, *b = a + next;

				*a = (four ? *a : 0) + f * r.o[n][i];
				*b = (four ? *b : 0) + f * r.o[n][i + 2];
			}
		}
		__syncthreads();
	}
}

/* 16 tokens of a warp, of block @i. */
template <int d, typename E>
CQ_DEVICE void tile_add(const struct cqkd_attn &p, const struct ring<d, E> *sh, uint32_t i,
			const uint32_t q[d / 16][2], struct result<d> &r)
{
	uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, a[2][4], prob[2];
	const struct stage<d, E> &at = sh->at[warp][i % E::stages];
	float s[4] = {};
	int n;

#pragma unroll
	for (n = 0; n < d / 16; n += 2) {
		E::template keys<false>(a, at.k[0], sizeof(at.k[0]), n);
		cq_mma_16816_f32(s, a[0], q[n]);
		cq_mma_16816_f32(s, a[1], q[n + 1]);
	}
	softmax(p, sh->all, sh->vis[warp][i % E::stages], warp, lane / 4, 8, s, r, prob);
#pragma unroll
	for (n = 0; n < d / 16; n += 2) {
		E::template values<false>(a, at.v[0], sizeof(at.v[0]), n);
		cq_mma_16816_f32(r.o[n], a[0], prob);
		cq_mma_16816_f32(r.o[n + 1], a[1], prob);
	}
}

/* What stored numbers are multiplied with to be keys and values. */
struct scales {
	float k, v;
};

template <int d, typename E>
CQ_DEVICE void item(const struct cqkd_attn &p, struct work &w, struct ring<d, E> *sh,
		    struct scales by)
{
	uint32_t q[d / 16][2], i, row = threadIdx.x % 32 / 4;
	struct result<d> r = {};

	r.m[0] = r.m[1] = -CQKD_INF;
	__syncthreads();	/* the item before has been stored */
	queries_load(p, w, sh->all);
	__syncthreads();
	if (E::scaled && threadIdx.x < VECS)
		sh->all.query[threadIdx.x].size *= by.k;
	for (i = 0; i + 1 < E::stages; i++)
		fetch(p, w, sh, i);
	fragments(sh, q);	/* and its barrier */
	for (i = 0; i < w.item.n_blocks; i++) {
		fetch(p, w, sh, i + E::stages - 1);
		cq_cp_wait<E::stages - 1>();
		__syncwarp();
		tile_add(p, sh, i, q, r);
		__syncwarp();	/* its place in the ring is fetched next */
	}
	cq_cp_wait<0>();
	if (E::scaled)
#pragma unroll
		for (i = 0; i < 4 * (d / 16); i++)
			r.o[i / 4][i % 4] *= by.v;
	__syncthreads();	/* the rings make room for results */
	gather(sh->all, sh->o, E::channel(row), 16, E::channel(row + 8) - E::channel(row), r);
	result_store(p, w, sh->all, sh->o);
}

/* The items of few vectors, shared by the blocks of threads of a kv head. */
template <int d, typename E>
CQ_DEVICE void items(const struct cqkd_attn &p, struct ring<d, E> *sh, struct scales by)
{
	const struct cqkd_plan *plan = cqkd_ptr<const struct cqkd_plan>(p.plan);
	struct work w;
	uint32_t i;

	w.head = p.head_begin + blockIdx.y;
	for (i = plan->n_wide + blockIdx.x; i < plan->n_items; i += gridDim.x) {
		w.item = part_of<struct cqkd_item>(p, &cqkd_plan::items)[i];
		if (w.item.n_vecs <= p.few)
			item(p, w, sh, by);
	}
}

#undef WARPS

#endif /* CQK_CUDA_ATTN_RING_CUH */
