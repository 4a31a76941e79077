/* SPDX-License-Identifier: MIT */
/*
 * What kernels for at most eight query vectors have in common: each of their warps has
 * 16 tokens at a time, as rows of fragments whose columns are the vectors, and results of
 * its own, which are added up in the end.
 */
#ifndef CQK_CUDA_ATTN_FRAG_CUH
#define CQK_CUDA_ATTN_FRAG_CUH

#include "kernels/cuda/attn.cuh"

#define VECS CQKD_FEW_VECS

/**
 * struct query - one query vector: a head of a row
 * @size: factor that makes scores of products
 * @row:  query row
 * @span: its span of each block
 * @spoiled: the query is not finite or too large
 */
struct query {
	float size;
	uint32_t row, span;
	uint32_t spoiled;
};

/* Queries, and what warps have found of them. */
template <int d, int warps>
struct vectors {
	float q[VECS][CQKD_Q_PITCH(d)];
	struct query query[VECS];
	float ml[warps][VECS][2];	/* maximum and sum */
};

/* A warp loads a query, as query_read() says, and rotates it. */
template <int d, int warps>
CQ_DEVICE void query_load(const struct cqkd_attn &p, const struct work &w,
			  struct vectors<d, warps> &all, uint32_t i)
{
	uint32_t lane = threadIdx.x % 32, ch;
	struct cqkd_entry e;
	float unit = query_read<d>(p, w, i, &e, all.q[i]);
	bool bad = unit == 0;

	for (ch = lane; ch < d; ch += 32)
		all.q[i][ch] = bad ? 0.0f : all.q[i][ch] * unit;
	__syncwarp();
	if (p.turn_q)
		query_turn(p, e.row, all.q[i]);
	if (lane == 0) {
		float size = bad ? 0.0f : p.scale / unit;

		all.query[i] = { p.turn_k ? size / TURNED_SIZE : size, e.row, e.span, bad };
	}
}

template <int d, int warps>
CQ_DEVICE void queries_load(const struct cqkd_attn &p, const struct work &w,
			    struct vectors<d, warps> &all)
{
	uint32_t i, ch;

	for (i = threadIdx.x / 32; i < VECS; i += warps) {
		if (i < w.item.n_vecs) {
			query_load(p, w, all, i);
			continue;
		}
		for (ch = threadIdx.x % 32; ch < d; ch += 32)
			all.q[i][ch] = 0;
		if (threadIdx.x % 32 == 0)
			all.query[i] = {};
	}
}

/* Two halves as a word, and back: no instruction. */
CQ_DEVICE uint32_t h2_bits(__half2 x)
{
	uint32_t bits;

	memcpy(&bits, &x, sizeof(bits));
	return bits;
}

CQ_DEVICE __half2 h2_of(uint32_t bits)
{
	__half2 x;

	memcpy(&x, &bits, sizeof(x));
	return x;
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

/* Maximum over the warps, and the sum of what they have, of one vector. */
template <int d, int warps>
CQ_DEVICE float2 total(const struct vectors<d, warps> &all, uint32_t vec)
{
	float m = -CQKD_INF, l = 0;
	int i;

	for (i = 0; i < warps; i++)
		m = fmaxf(m, all.ml[i][vec][0]);
	for (i = 0; i < warps && m > -CQKD_INF; i++)
		l += all.ml[i][vec][1] * exp2f((all.ml[i][vec][0] - m) * LOG2E);
	return make_float2(m, l);
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

/* Results of the item to the workspace. */
template <int d, int warps>
CQ_DEVICE void result_store(const struct cqkd_attn &p, const struct work &w,
			    const struct vectors<d, warps> &all, const float (*from)[VECS][d])
{
	size_t slot = (size_t)(w.head - p.head_begin) * p.max_slots + w.item.slot;
	float *ml = cqkd_ptr<float>(p.part_ml) + slot * 2;
	float *o = cqkd_ptr<float>(p.part_o) + slot * d;
	uint32_t i = threadIdx.x;

	if (i < w.item.n_vecs) {
		float2 sum = total(all, i);

		ml[2 * i] = sum.x;
		ml[2 * i + 1] = all.query[i].spoiled ? __int_as_float(0x7fc00000) :
						       sum.y * P_UNIT;
	}
	for (; i < w.item.n_vecs * d; i += warps * 32)
		o[i] = ((from[0][i / d][i % d] + from[1][i / d][i % d]) +
			(from[2][i / d][i % d] + from[3][i / d][i % d])) * P_UNIT;
}

#endif /* CQK_CUDA_ATTN_FRAG_CUH */
