// SPDX-License-Identifier: MIT
/*
 * As wrong.cu, one fault in the use of hopper.hpp each.
 */
#include "kernels/cuda/dev.h"

#define WRONG(name) CQ_KERNEL(128, wrong_##name, (uint32_t *out, uint32_t n))

WRONG(barrier_zero)
{
	cq_bar_sync(n - 1, 128);
	out[threadIdx.x] = n;
}

WRONG(barrier_count)
{
	cq_bar_sync(n, 48);
	out[threadIdx.x] = n;
}

/* Warps do not agree how many shall come. */
WRONG(barrier_mixed)
{
	cq_bar_sync(n, threadIdx.x < 64 ? 128 : 96);
	out[threadIdx.x] = n;
}

/* One warp does not come. */
WRONG(barrier_alone)
{
	if (threadIdx.x < 96)
		cq_bar_sync(n, 128);
	out[threadIdx.x] = n;
}

/* Nobody waits, and not all have come. */
WRONG(barrier_left)
{
	if (threadIdx.x < 96)
		cq_bar_arrive(n, 128);
	out[threadIdx.x] = n;
}

/* A warp that does not wait reads what another writes. */
WRONG(barrier_arrive)
{
	__shared__ uint32_t box[128];

	box[threadIdx.x] = n;
	if (threadIdx.x < 64)
		cq_bar_arrive(n, 128);
	else
		cq_bar_sync(n, 128);
	out[threadIdx.x] = box[threadIdx.x ^ 64];
}

/* The barrier is of other threads than those that read. */
WRONG(barrier_others)
{
	__shared__ uint32_t box[128];

	box[threadIdx.x] = n;
	cq_bar_sync(1 + threadIdx.x / 64, 64);
	out[threadIdx.x] = box[threadIdx.x ^ 64];
}

WRONG(mbar_unset)
{
	CQ_DYN_SHARED(uint64_t, bar);

	cq_mbar_wait(bar, n & 1);
	out[threadIdx.x] = n;
}

/* An mbarrier for @count, which all know. */
CQ_DEVICE uint64_t *mbar_of(uint32_t count)
{
	CQ_DYN_SHARED(uint64_t, bar);

	if (threadIdx.x == 0) {
		cq_mbar_init(bar, count);
		cq_fence_async();
	}
	__syncthreads();
	return bar;
}

WRONG(mbar_written)
{
	uint64_t *bar = mbar_of(128);

	if (threadIdx.x == 0)
		*bar = n;
	__syncthreads();
	cq_mbar_arrive(bar);
	out[threadIdx.x] = n;
}

/* The phase that is awaited does not end: one thread does not come. */
WRONG(mbar_alone)
{
	uint64_t *bar = mbar_of(128);

	if (threadIdx.x)
		cq_mbar_arrive(bar);
	cq_mbar_wait(bar, n - 1);
	out[threadIdx.x] = n;
}

WRONG(mbar_extra)
{
	uint64_t *bar = mbar_of(n);

	cq_mbar_expect(bar, 16);
	out[threadIdx.x] = n;
}

/* Who comes does not know what others did who come. */
WRONG(mbar_no_wait)
{
	__shared__ uint32_t box[128];
	uint64_t *bar = mbar_of(128);

	box[threadIdx.x] = n;
	cq_mbar_arrive(bar);
	if (threadIdx.x < 64)
		cq_mbar_wait(bar, 0);
	out[threadIdx.x] = box[threadIdx.x ^ 64];
}

WRONG(bulk_size)
{
	uint64_t *bar = mbar_of(1);

	if (threadIdx.x == 0)
		cq_bulk_load(bar + 2, out, 8 * n, bar);
}

WRONG(bulk_alignment)
{
	uint64_t *bar = mbar_of(1);

	if (threadIdx.x == 0)
		cq_bulk_load(bar + 2, out + n, 16, bar);
}

WRONG(bulk_target)
{
	uint64_t *bar = mbar_of(n);

	if (threadIdx.x == 0)
		cq_bulk_load(out, out + 64, 16, bar);
}

WRONG(bulk_left)
{
	uint64_t *bar = mbar_of(n);

	if (threadIdx.x == 0)
		cq_bulk_load(bar + 2, out, 16, bar);
}

/* What is copied is read before it has come. */
WRONG(bulk_early)
{
	uint64_t *bar = mbar_of(n);
	const uint32_t *copy = reinterpret_cast<uint32_t *>(bar + 2);

	if (threadIdx.x == 0) {
		cq_mbar_expect(bar, 512);
		cq_bulk_load(bar + 2, out, 512, bar);
	}
	__syncthreads();
	n = copy[threadIdx.x];
	cq_mbar_wait(bar, 0);
	out[threadIdx.x] = n;
}

/* A tile of ones that is there for tensor cores to read, and what a product needs. */
struct tile90 {
	uint32_t a[4];
	float d[8][4];
	uint16_t *tile;
};

CQ_DEVICE void tile_make(struct tile90 *t)
{
	CQ_DYN_SHARED_ALIGNED(1024, uint16_t, tile);
	uint32_t i;

	for (i = threadIdx.x; i < 64 * 64; i += 128)
		tile[i] = 0x3c00;
	for (i = 0; i < 32; i++)
		t->d[i / 4][i % 4] = 0;
	for (i = 0; i < 4; i++)
		t->a[i] = 0x3c003c00;
	t->tile = tile;
}

CQ_DEVICE void tile_ready(struct tile90 *t)
{
	tile_make(t);
	cq_fence_async();
	__syncthreads();
}

CQ_DEVICE uint64_t desc_of(const struct tile90 *t)
{
	return cq_wgmma_desc(cq_shared_addr(t->tile), 16, 1024);
}

#define PRODUCT(name, before, desc, between, after) \
WRONG(wgmma_##name) \
{ \
	struct tile90 t; \
\
	tile_ready(&t); \
	before; \
	cq_wgmma_n64(t.d, t.a, desc, true); \
	cq_wgmma_commit(); \
	between; \
	cq_wgmma_wait<0>(); \
	after; \
	out[threadIdx.x] = __float_as_uint(t.d[n][0]); \
}
PRODUCT(no_fence, , desc_of(&t), , )
PRODUCT(second, cq_wgmma_fence(), desc_of(&t), ,
	cq_wgmma_n64(t.d, t.a, desc_of(&t), true))
PRODUCT(touched, cq_wgmma_fence(), desc_of(&t), t.d[n][1] = 1, )
PRODUCT(touched_between, cq_wgmma_fence(), desc_of(&t), t.d[n][1] = 1;
	cq_wgmma_n64(t.d, t.a, desc_of(&t), true), )
PRODUCT(factor, cq_wgmma_fence(), desc_of(&t), t.a[n] = 5, )
PRODUCT(matrix, cq_wgmma_fence(), desc_of(&t), t.tile[threadIdx.x] = (uint16_t)n, )
PRODUCT(swizzle, cq_wgmma_fence(), desc_of(&t) & ~0ull >> n, , )
PRODUCT(start, cq_wgmma_fence(), desc_of(&t) + 8 * n, , )
PRODUCT(beyond, cq_wgmma_fence(), desc_of(&t) + 1024 * n, , )
PRODUCT(differs, cq_wgmma_fence(), desc_of(&t) + (threadIdx.x / 64 == n ? 2 : 0), , )

WRONG(wgmma_left)
{
	struct tile90 t;

	tile_ready(&t);
	cq_wgmma_fence();
	cq_wgmma_n64(t.d, t.a, desc_of(&t), true);
	cq_wgmma_commit();
	out[threadIdx.x] = n;
}

/* Results are read before they are waited for. */
WRONG(wgmma_early)
{
	struct tile90 t;

	tile_ready(&t);
	cq_wgmma_fence();
	cq_wgmma_n64(t.d, t.a, desc_of(&t), true);
	cq_wgmma_commit();
	cq_wgmma_n64(t.d, t.a, desc_of(&t), true);
	cq_wgmma_commit();
	cq_wgmma_wait<1>();	/* the first group alone */
	out[threadIdx.x] = __float_as_uint(t.d[n][0]);
	cq_wgmma_wait<0>();
}

/* What was stored is not there for tensor cores: no fence at all, or one too late. */
#define STORES(name, before, behind) \
WRONG(wgmma_##name) \
{ \
	struct tile90 t; \
\
	tile_make(&t); \
	before; \
	__syncthreads(); \
	behind; \
	cq_wgmma_fence(); \
	cq_wgmma_n64(t.d, t.a, desc_of(&t), true); \
	cq_wgmma_commit(); \
	cq_wgmma_wait<0>(); \
	out[threadIdx.x] = __float_as_uint(t.d[n][0]); \
}
STORES(no_proxy, , )
STORES(late_proxy, , cq_fence_async())

/* The tile is written again while others may still read it. */
WRONG(wgmma_again)
{
	struct tile90 t;

	tile_ready(&t);
	cq_wgmma_fence();
	cq_wgmma_n64(t.d, t.a, desc_of(&t), true);
	cq_wgmma_commit();
	cq_wgmma_wait<0>();
	t.tile[threadIdx.x] = 0x3c00;
	out[threadIdx.x] = __float_as_uint(t.d[n][0]);
}

#if CQ_CLUSTERS
/* Kernels of clusters of two blocks. */
#define WRONG_CLUSTER(name) CQ_KERNEL_CLUSTER(64, 2, wrong_##name, (uint32_t *out, uint32_t n))

CQ_DEVICE void meet()
{
	cq_cluster_arrive();
	cq_cluster_wait();
}

/* There are two blocks only. */
WRONG_CLUSTER(rank)
{
	CQ_DYN_SHARED(float2, box);

	meet();
	cq_far_store(cq_far_at(box, n + 1), make_float2(1, 2));
	meet();
}

/* 64 pairs are asked for. */
WRONG_CLUSTER(far_beyond)
{
	CQ_DYN_SHARED(float2, box);

	meet();
	cq_far_store(cq_far_at(box, n) + 64 * 8 * n, make_float2(1, 2));
	meet();
}

WRONG_CLUSTER(far_alignment)
{
	CQ_DYN_SHARED(float2, box);

	meet();
	cq_far_store(cq_far_at(box, n) + 4 * n, make_float2(1, 2));
	meet();
}

/* What is mapped has to be shared memory. */
WRONG_CLUSTER(far_global)
{
	meet();
	cq_far_store(cq_far_at(out, n), make_float2(1, 2));
	meet();
}

/* Nobody knows whether the other block is there yet. */
WRONG_CLUSTER(far_early)
{
	CQ_DYN_SHARED(float2, box);

	cq_far_store(cq_far_at(box + threadIdx.x, cq_cluster_rank() ^ n), make_float2(1, 2));
	meet();
}

/* Or whether it is there still. */
WRONG_CLUSTER(far_late)
{
	CQ_DYN_SHARED(float2, box);

	meet();
	if (cq_cluster_rank())
		cq_far_store(cq_far_at(box + threadIdx.x, n - 1), make_float2(1, 2));
}

/* One block leaves, the other waits for it. */
WRONG_CLUSTER(cluster_left)
{
	if (cq_cluster_rank() == n)
		return;
	meet();
}

WRONG_CLUSTER(cluster_half)
{
	cq_cluster_arrive();
	out[threadIdx.x] = n;
}

WRONG_CLUSTER(cluster_twice)
{
	cq_cluster_arrive();
	cq_cluster_arrive();
	cq_cluster_wait();
}

WRONG_CLUSTER(cluster_wait)
{
	cq_cluster_wait();
	out[threadIdx.x] = n;
}

/* One block is in a barrier of the cluster, the other in one of its own. */
WRONG_CLUSTER(cluster_deadlock)
{
	if (cq_cluster_rank())
		meet();
	else if (threadIdx.x < 32)
		__syncthreads();
	else
		meet();
}

WRONG_CLUSTER(cluster_static)
{
	__shared__ uint32_t box[64];

	box[threadIdx.x] = n;
	meet();
	out[threadIdx.x] = box[threadIdx.x ^ 1];
}

/* The second round is sent while the first may still be read. */
WRONG_CLUSTER(cluster_overrun)
{
	CQ_DYN_SHARED(float2, box);
	cq_far to = cq_far_at(box + threadIdx.x, cq_cluster_rank() ^ 1);
	float sum = 0;
	uint32_t i;

	meet();
	for (i = 0; i < n; i++) {
		cq_far_store(to, make_float2(1, 2));
		meet();
		sum += box[threadIdx.x].x;
	}
	out[threadIdx.x] = (uint32_t)sum;
}

/* A block's own write behind its arrival is not seen by whoever has waited. */
WRONG_CLUSTER(cluster_behind)
{
	CQ_DYN_SHARED(uint32_t, box);

	cq_cluster_arrive();
	box[threadIdx.x] = n;
	cq_cluster_wait();
	out[threadIdx.x] = box[threadIdx.x ^ 32];
}

/* What another block sends is read before the cluster has met again. */
WRONG_CLUSTER(cluster_unmet)
{
	CQ_DYN_SHARED(float2, box);

	meet();
	cq_far_store(cq_far_at(box + threadIdx.x, cq_cluster_rank() ^ n), make_float2(1, 2));
	__syncthreads();
	out[threadIdx.x] = (uint32_t)box[threadIdx.x].x;
	meet();
}
#endif
