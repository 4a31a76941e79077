// SPDX-License-Identifier: MIT
/*
 * Appends of many tokens, whose codes are found by tensor cores: one kernel for each pair of
 * codings of K and V, so that each has as few registers as it needs. A side that is not
 * coded is in any of them.
 */
#include "kernels/cuda/append.cuh"
#include "kernels/cuda/near.cuh"

template <int kc, int vc>
struct many {
	template <int c>
	CQ_DEVICE void groups(const struct put &w, const __half *x, uint32_t at)
	{
		uint32_t g;

		for (g = threadIdx.x / 32; g < w.book->groups; g += WARPS)
			group_encode_many<c>(w, w.head * w.book->groups + g, x + g * c,
					     at + g * CQKD_TOKENS);
	}

	CQ_DEVICE void encode(const struct put &w, const __half *x, uint32_t at)
	{
		if constexpr (kc != vc)
			if (w.v)
				return groups<vc>(w, x, at);
		groups<kc>(w, x, at);
	}
};

/* As many on a multiprocessor as the compiler can do without spilling. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
#define AT_ONCE(kc, vc) 2
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define AT_ONCE(kc, vc) 3
#else
#define AT_ONCE(kc, vc) ((kc) == (vc) ? 4 : 3)
#endif

#define APPEND_MANY(kc, vc)							\
CQ_KERNEL_BLOCKS(CQKD_THREADS, AT_ONCE(kc, vc), cqk_append_k##kc##v##vc,		\
		 (struct cqkd_append p))						\
{										\
	CQ_DYN_SHARED(__half, x);						\
										\
	append<struct many<kc, vc>>(p, x);					\
}

APPEND_MANY(2, 2)
APPEND_MANY(2, 4)
APPEND_MANY(2, 8)
APPEND_MANY(4, 2)
APPEND_MANY(4, 4)
APPEND_MANY(4, 8)
APPEND_MANY(8, 2)
APPEND_MANY(8, 4)
APPEND_MANY(8, 8)
