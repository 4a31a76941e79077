// SPDX-License-Identifier: MIT
/*
 * Attention, last step: partial results of a row's items, each with the maximum
 * and the sum of its scores, make the row's result.
 */
#include "kernels/cuda/attn.cuh"

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
	uint32_t head = blockIdx.y * (CQKD_THREADS / 32) + threadIdx.x / 32;

	if (blockIdx.x < cqkd_ptr<const struct cqkd_plan>(p.plan)->n_rows &&
	    head < p.n_heads * p.gqa)
		merge(p, blockIdx.x, head);
}
