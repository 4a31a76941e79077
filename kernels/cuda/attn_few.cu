// SPDX-License-Identifier: MIT
/*
 * Attention of at most eight query vectors over pages, as in decoding: centroids go from
 * shared memory straight into the fragments of tensor cores (attn_few.cuh), as halves.
 */
#include "kernels/cuda/attn_few_items.cuh"

template <int d>
struct few_halves : half_book<d> {
	typedef __half channel;

	/* 16 bytes at a time, of K and of V. */
	CQ_DEVICE void load(const struct cqkd_layer &at, uint32_t head,
			    __half (*to)[CQKD_CENTROIDS][d])
	{
		constexpr int n = CQKD_CENTROIDS * d / 8;
		size_t from = (size_t)head * CQKD_CENTROIDS * d;
		const __half *k = cqkd_ptr<const __half>(at.k.rows) + from;
		const __half *v = cqkd_ptr<const __half>(at.v.rows) + from;
		int i;

		for (i = cq_keep(threadIdx.x); i < n; i += THREADS) {
			cq_cp_async16(&to[0][0][0] + i * 8, k + (size_t)i * 8);
			cq_cp_async16(&to[1][0][0] + i * 8, v + (size_t)i * 8);
		}
		cq_cp_commit();
	}

	CQ_DEVICE void init(const struct cqkd_layer &, uint32_t,
			    typename half_book<d>::lane &) {}
};

/* Grid: blocks that share the items of a kv head, kv heads of the call. */
#define ATTN_FEW(d, kc, vc) \
CQ_KERNEL_BLOCKS(THREADS, 1, cqk_attn_few_d##d##_k##kc##v##vc, (struct cqkd_attn p)) \
{ \
	typedef struct few<d, struct few_halves<d>> memory; \
\
	static_assert(sizeof(memory) <= CQKD_FEW_SHARED(d, 1), "params.h"); \
	CQ_DYN_SHARED(memory, sh); \
\
	attention<d, kc, vc>(p, sh); \
}
ATTN_FEW(64, 2, 2)
ATTN_FEW(64, 2, 4)
ATTN_FEW(64, 4, 2)
ATTN_FEW(64, 4, 4)
ATTN_FEW(128, 2, 2)
ATTN_FEW(128, 2, 4)
ATTN_FEW(128, 4, 2)
ATTN_FEW(128, 4, 4)
ATTN_FEW(128, 8, 2)
ATTN_FEW(128, 8, 4)
ATTN_FEW(128, 2, 8)
ATTN_FEW(128, 4, 8)
ATTN_FEW(128, 8, 8)
