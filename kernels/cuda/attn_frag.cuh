/* SPDX-License-Identifier: MIT */
/*
 * What kernels for at most eight query vectors have in common: each of their warps has
 * 16 tokens at a time, as rows of fragments whose columns are the vectors, and results of
 * its own, which are added up in the end.
 */
#ifndef CQK_CUDA_ATTN_FRAG_CUH
#define CQK_CUDA_ATTN_FRAG_CUH

#include "kernels/cuda/attn.cuh"
#include "kernels/cuda/units.cuh"

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
template <int d, int warps, int vecs = VECS>
struct vectors {
	float q[vecs][CQKD_Q_PITCH(d)];
	struct query query[vecs];
	float ml[warps][vecs][2];	/* maximum and sum */
};

/* A warp loads a query, as query_read() says, and rotates it. */
template <int d, int warps, int vecs>
CQ_DEVICE void query_load(const struct cqkd_attn &p, const struct work &w,
			  struct vectors<d, warps, vecs> &all, uint32_t i)
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

template <int d, int warps, int vecs>
CQ_DEVICE void queries_load(const struct cqkd_attn &p, const struct work &w,
			    struct vectors<d, warps, vecs> &all)
{
	uint32_t i, ch;

	for (i = cq_keep(threadIdx.x / 32); i < vecs; i += warps) {
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

/* Maximum over the warps, and the sum of what they have, of one vector. */
template <int d, int warps, int vecs>
CQ_DEVICE float2 total(const struct vectors<d, warps, vecs> &all, uint32_t vec)
{
	float m = -CQKD_INF, l = 0;
	int i;

	for (i = 0; i < warps; i++)
		m = fmaxf(m, all.ml[i][vec][0]);
	for (i = 0; i < warps && m > -CQKD_INF; i++)
		l += all.ml[i][vec][1] * exp2f((all.ml[i][vec][0] - m) * LOG2E);
	return make_float2(m, l);
}

/* Results of the item to the workspace: @n channels from @first on. */
template <int d, int warps, int n>
CQ_DEVICE void result_store(const struct cqkd_attn &p, const struct work &w,
			    const struct vectors<d, warps> &all, const float (*from)[VECS][n],
			    uint32_t first = 0)
{
	size_t slot = (size_t)(w.head - p.head_begin) * p.max_slots + w.item.slot;
	float *ml = cqkd_ptr<float>(p.part_ml) + slot * 2;
	float *o = cqkd_ptr<float>(p.part_o) + slot * d + first;
	uint32_t i = threadIdx.x;

	if (i < w.item.n_vecs && !first) {
		float2 sum = total(all, i);

		ml[2 * i] = sum.x;
		ml[2 * i + 1] = all.query[i].spoiled ? __int_as_float(0x7fc00000) :
						       sum.y * P_UNIT;
	}
	for (; i < w.item.n_vecs * n; i += warps * 32)
		o[i / n * d + i % n] = ((from[0][i / n][i % n] + from[1][i / n][i % n]) +
					(from[2][i / n][i % n] + from[3][i / n][i % n])) * P_UNIT;
}

#endif /* CQK_CUDA_ATTN_FRAG_CUH */
