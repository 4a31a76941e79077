// SPDX-License-Identifier: MIT
/*
 * Appends of few tokens, or with codes of 10 bits: distances from all centroids are computed
 * as they are defined.
 */
#include "kernels/cuda/append.cuh"

struct all {
	template <int c, int bits = 8>
	CQ_DEVICE void groups(const struct put &w, const __half *x, uint32_t at)
	{
		uint32_t upper = at - w.to->first + w.book->groups * CQKD_TOKENS, g;

		for (g = threadIdx.x / 32; g < w.book->groups; g += WARPS)
			group_encode<c, bits>(w, w.head * w.book->groups + g, x + g * c,
					      at + g * CQKD_TOKENS, upper + g * CQKD_UPPER);
	}

	CQ_DEVICE void encode(const struct put &w, const __half *x, uint32_t at)
	{
		if (w.book->bits > 8)
			groups<8, 10>(w, x, at);
		else if (w.book->channels == 2)
			groups<2>(w, x, at);
		else if (w.book->channels == 4)
			groups<4>(w, x, at);
		else
			groups<8>(w, x, at);
	}
};

CQ_KERNEL_BLOCKS(CQKD_THREADS, 4, cqk_append, (struct cqkd_append p))
{
	CQ_DYN_SHARED(__half, x);

	append<struct all>(p, x);
}
