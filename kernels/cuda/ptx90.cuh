/* SPDX-License-Identifier: MIT */
/*
 * Wrappers of PTX that sm_90 brought, for nvcc; dev.h says what they do, and each has a
 * twin in tests/emu/hopper.hpp. Nothing is left out where an architecture lacks it: a kernel
 * that uses it does not assemble there.
 */
#ifndef CQK_CUDA_PTX90_CUH
#define CQK_CUDA_PTX90_CUH

#include "kernels/cuda/ptx.cuh"

/* Set where nvcc compiles for sm_90a, and where it looks at what the host is to know. */
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CQ_WARPGROUPS 1
#else
#define CQ_WARPGROUPS 0
#endif

/* Clusters of blocks; where there are none such a kernel is left out. */
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define CQ_CLUSTERS 1
#define CQ_KERNEL_CLUSTER(threads, cluster, name, params) \
	extern "C" __global__ void __cluster_dims__(cluster, 1, 1) \
	__launch_bounds__(threads, 1) name params
#else
#define CQ_CLUSTERS 0
#endif

CQ_DEVICE void cq_bar_sync(uint32_t id, uint32_t threads)
{
	asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory");
}

CQ_DEVICE void cq_bar_arrive(uint32_t id, uint32_t threads)
{
	asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(threads) : "memory");
}

CQ_DEVICE void cq_mbar_init(uint64_t *bar, uint32_t count)
{
	asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
		     :: "r"(cq_shared_addr(bar)), "r"(count) : "memory");
}

CQ_DEVICE void cq_mbar_arrive(uint64_t *bar)
{
	asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }"
		     :: "r"(cq_shared_addr(bar)) : "memory");
}

CQ_DEVICE void cq_mbar_expect(uint64_t *bar, uint32_t bytes)
{
	asm volatile("{ .reg .b64 state; "
		     "mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }"
		     :: "r"(cq_shared_addr(bar)), "r"(bytes) : "memory");
}

/* The label is the block's, between the braces. */
CQ_DEVICE void cq_mbar_wait(uint64_t *bar, uint32_t parity)
{
	asm volatile("{ .reg .pred done; again: "
		     "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; "
		     "@!done bra again; }"
		     :: "r"(cq_shared_addr(bar)), "r"(parity) : "memory");
}

CQ_DEVICE void cq_bulk_load(void *s, const void *g, uint32_t bytes, uint64_t *bar)
{
	asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
		     "[%0], [%1], %2, [%3];"
		     :: "r"(cq_shared_addr(s)), "l"(__cvta_generic_to_global(g)), "r"(bytes),
			"r"(cq_shared_addr(bar)) : "memory");
}

CQ_DEVICE void cq_fence_async()
{
	asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

template <int n>
CQ_DEVICE void cq_registers_more()
{
	asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(n));
}

template <int n>
CQ_DEVICE void cq_registers_less()
{
	asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(n));
}

CQ_DEVICE void cq_wgmma_fence()
{
	asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

CQ_DEVICE void cq_wgmma_commit()
{
	asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int groups>
CQ_DEVICE void cq_wgmma_wait()
{
	asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(groups) : "memory");
}

/* What the compiler would else move: it does not know that d is written until the wait. */
template <int n>
CQ_DEVICE void cq_wgmma_hold(float (&d)[n][4])
{
	int i;

#pragma unroll
	for (i = 0; i < n; i++)
		asm volatile("" : "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
			     :: "memory");
}

/* A row of d, as operands. */
#define CQ_D(i)		"+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define CQ_D4(i)	CQ_D(i), CQ_D(i + 1), CQ_D(i + 2), CQ_D(i + 3)

#define CQ_WGMMA_N64(name, trans) \
CQ_DEVICE void name(float (&d)[8][4], const uint32_t (&a)[4], uint64_t desc, bool add) \
{ \
	asm volatile("{ .reg .pred add; setp.ne.b32 add, %37, 0; " \
		     "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" \
		     "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
		     "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, " \
		     "{%32,%33,%34,%35}, %36, add, 1, 1, " trans "; }" \
		     : CQ_D4(0), CQ_D4(4) \
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(desc), "r"((int)add)); \
}
CQ_WGMMA_N64(cq_wgmma_n64, "0")
CQ_WGMMA_N64(cq_wgmma_n64_trans, "1")
#undef CQ_WGMMA_N64

#undef CQ_D4
#undef CQ_D

/* An address in the shared memory of another block of the cluster. */
typedef uint32_t cq_far;

CQ_DEVICE uint32_t cq_cluster_rank()
{
	uint32_t r;

	asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
	return r;
}

CQ_DEVICE void cq_cluster_arrive()
{
	asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

CQ_DEVICE void cq_cluster_wait()
{
	asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

CQ_DEVICE cq_far cq_far_at(const void *s, uint32_t rank)
{
	cq_far r;

	asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(cq_shared_addr(s)), "r"(rank));
	return r;
}

CQ_DEVICE void cq_far_store(cq_far to, float2 x)
{
	asm volatile("st.shared::cluster.v2.f32 [%0], {%1,%2};"
		     :: "r"(to), "f"(x.x), "f"(x.y) : "memory");
}

#endif /* CQK_CUDA_PTX90_CUH */
