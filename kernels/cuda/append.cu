// SPDX-License-Identifier: MIT
/* Appends of few tokens: distances from all centroids are computed as they are defined. */
#include "kernels/cuda/append.cuh"

struct all {
	template <int c>
	CQ_DEVICE void groups(const struct put &w, const __half *x, uint32_t at)
	{
		uint32_t g;

		for (g = threadIdx.x / 32; g < w.book->groups; g += WARPS)
			group_encode<c>(w, w.head * w.book->groups + g, x + g * c,
					at + g * CQKD_TOKENS);
	}

	CQ_DEVICE void encode(const struct put &w, const __half *x, uint32_t at)
	{
		if (w.book->channels == 2)
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
