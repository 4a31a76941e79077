// SPDX-License-Identifier: MIT
/*
 * Kernels that use each thing of hopper.hpp once, for test_cuemu to compare with what C
 * says.
 */
#include "kernels/cuda/dev.h"

/* Two warps hand words to two others, box by box. */
CQ_KERNEL(128, right_named, (uint32_t *out))
{
	__shared__ uint32_t box[2][64];
	uint32_t at = threadIdx.x % 64, i;

	for (i = 0; i < 5; i++) {
		if (threadIdx.x < 64) {
			if (i >= 2)
				cq_bar_sync(3 + i % 2, 128);	/* its box is empty */
			box[i % 2][at] = i * 100 + at;
			cq_bar_arrive(1 + i % 2, 128);
		} else {
			cq_bar_sync(1 + i % 2, 128);
			out[i * 64 + at] = box[i % 2][63 - at];
			if (i < 3)
				cq_bar_arrive(3 + i % 2, 128);
		}
	}
}

struct ring90 {
	uint4 words[2][64];
	uint64_t full[2], empty[2];
};

/* A thread fetches 64 words at a time, which three warps add up. */
CQ_KERNEL(128, right_bulk, (uint32_t *out, const uint4 *in, uint32_t n))
{
	CQ_DYN_SHARED(struct ring90, sh);
	uint32_t i, j, sum = 0;

	if (threadIdx.x == 0) {
		for (i = 0; i < 2; i++) {
			cq_mbar_init(&sh->full[i], 1);
			cq_mbar_init(&sh->empty[i], 96);
		}
		cq_fence_async();
	}
	__syncthreads();
	for (i = 0; i < n && threadIdx.x < 32; i++) {
		uint64_t *full = &sh->full[i % 2];

		if (threadIdx.x)
			continue;
		cq_mbar_wait(&sh->empty[i % 2], (i / 2 & 1) ^ 1);
		cq_mbar_expect(full, 1024);
		cq_bulk_load(sh->words[i % 2], in + i * 64, 512, full);
		cq_bulk_load(&sh->words[i % 2][32], in + i * 64 + 32, 512, full);
	}
	for (i = 0; i < n && threadIdx.x >= 32; i++) {
		cq_mbar_wait(&sh->full[i % 2], i / 2 & 1);
		for (j = threadIdx.x - 32; j < 64; j += 96)
			sum += sh->words[i % 2][j].x + sh->words[i % 2][j].w;
		cq_mbar_arrive(&sh->empty[i % 2]);
	}
	if (threadIdx.x >= 32)
		out[threadIdx.x - 32] = sum;
}

/* The first @k terms, then the others: one group each, and a third of other results. */
#define PRODUCT(name) \
template <typename Desc> \
CQ_DEVICE void product_##name(float *d, float *first, const uint32_t (&a)[4][4], Desc desc) \
{ \
	uint32_t row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2; \
	float x[8][4], y[8][4]; \
\
	for (uint32_t i = 0; i < 32; i++) \
		x[i / 4][i % 4] = 1; \
	cq_wgmma_fence(); \
	cq_wgmma_##name(y, a[0], desc(0), false); \
	cq_wgmma_commit(); \
	cq_wgmma_##name(x, a[0], desc(0), true); \
	cq_wgmma_##name(x, a[1], desc(1), true); \
	cq_wgmma_commit(); \
	cq_wgmma_##name(x, a[2], desc(2), true); \
	cq_wgmma_##name(x, a[3], desc(3), true); \
	cq_wgmma_commit(); \
	cq_wgmma_wait<2>(); \
	cq_wgmma_hold(y); \
	for (uint32_t i = 0; i < 32; i++) \
		first[(row + i % 4 / 2 * 8) * 64 + i / 4 * 8 + col + i % 2] = y[i / 4][i % 4]; \
	cq_wgmma_wait<0>(); \
	cq_wgmma_hold(x); \
	for (uint32_t i = 0; i < 32; i++) \
		d[(row + i % 4 / 2 * 8) * 64 + i / 4 * 8 + col + i % 2] = x[i / 4][i % 4]; \
}
#if CQ_WARPGROUPS
PRODUCT(n64)
PRODUCT(n64_trans)

/*
 * d (64 x 64) = a (64 x 64) b + 1, and of the first 16 terms alone. @b: of a column its 64
 * terms (@trans 0), or of a term its columns.
 */
CQ_KERNEL(128, right_wgmma, (float *d, float *first, const uint16_t *a, const uint16_t *b,
			     uint32_t trans))
{
	CQ_DYN_SHARED_ALIGNED(1024, uint16_t, tile);
	uint32_t lane = threadIdx.x % 32, at = cq_shared_addr(tile), i, fa[4][4];
	const uint32_t *rows = reinterpret_cast<const uint32_t *>(a);
	auto terms = [&](uint32_t k) { return cq_wgmma_desc(at + k * 32, 16, 1024); };
	auto columns = [&](uint32_t k) { return cq_wgmma_desc(at + k * 2048, 1024, 1024); };

	/* rows of 64 halves, 8 by 8 with the row's number */
	for (i = threadIdx.x; i < 64 * 64; i += 128) {
		uint32_t row = i / 64, in_row = i % 64;

		tile[row * 64 + ((in_row / 8) ^ (row % 8)) * 8 + in_row % 8] = b[i];
	}
	for (i = 0; i < 16; i++)
		fa[i / 4][i % 4] = rows[(threadIdx.x / 32 * 16 + lane / 4 + i % 2 * 8) * 32 +
					i / 4 * 8 + i % 4 / 2 * 4 + lane % 4];
	cq_fence_async();
	__syncthreads();
	if (trans)
		product_n64_trans(d, first, fa, columns);
	else
		product_n64(d, first, fa, terms);
}
#endif

/* Each block of a cluster of four sends to the next one; rounds go by two buffers. */
CQ_KERNEL_CLUSTER(64, 4, right_cluster, (float *out, uint32_t rounds))
{
#if CQ_CLUSTERS
	CQ_DYN_SHARED(float2, box);
	uint32_t rank = cq_cluster_rank(), me = threadIdx.x, i;
	float2 x = make_float2((float)rank, (float)me);
	cq_far to = cq_far_at(box + (me ^ 1), (rank + 1) % 4);

	for (i = 0; i < rounds; i++) {
		cq_cluster_arrive();
		cq_cluster_wait();
		cq_far_store(to + i % 2 * 64 * (uint32_t)sizeof(*box), x);
		cq_cluster_arrive();
		__syncthreads();
		cq_cluster_wait();
		x = box[i % 2 * 64 + me];
	}
	out[(blockIdx.x * 64 + me) * 2] = x.x;
	out[(blockIdx.x * 64 + me) * 2 + 1] = x.y;
#endif
}
