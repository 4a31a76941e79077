/* SPDX-License-Identifier: MIT */
/*
 * The only header that a kernel (a .cu file) includes beside params.h. nvcc
 * takes the wrappers of PTX from ptx.cuh; any other compiler takes the twin of
 * each from the emulation, so that the same file runs without a GPU.
 *
 *	CQ_KERNEL(128, cqk_foo, (float *y, const float *x, uint32_t n))
 *	{
 *		CQ_DYN_SHARED(float, tile);
 *		__shared__ float sum[4];
 *		...
 *	}
 *
 * Rules for kernels:
 * - The first word of CQ_KERNEL() is the most threads a block may have. The
 *   name is global and unlike that of any other kernel.
 * - Parameters are values of fixed layout: pointers, numbers, structs of them.
 * - Inline PTX only behind a wrapper below; dynamic shared memory only by
 *   CQ_DYN_SHARED(), once per kernel, 16 bytes aligned; or by
 *   CQ_DYN_SHARED_ALIGNED(), with a size that is a multiple of the alignment.
 * - No spin waits inside a block and no grid-wide waits: threads of a block
 *   take turns at barriers and warp collectives only.
 * - A kernel that has products of a warpgroup stands between #if CQ_WARPGROUPS and
 *   #endif, in a file named *_wgmma.cu, which is compiled for sm_90a in place of sm_90:
 *   elsewhere there is no such kernel, and who launches it asks for it by name.
 * - All threads of a block reach each __syncthreads(), none leaves before it.
 * - A kernel of clusters, CQ_KERNEL_CLUSTER(threads, blocks, ...), is for sm_90 and later and
 *   stands between #if CQ_CLUSTERS and #endif. It has dynamic shared memory only. All
 *   threads of a cluster arrive at each of its barriers and wait for it.
 * - What a lane hands to another goes through a collective or a barrier.
 *
 * Wrappers (pointers s are to shared memory, 16 bytes aligned):
 *	cq_cp_async16(s, g)		16 bytes, global to shared, asynchronous
 *	cq_cp_async16_zfill(s, g, n)	the same, but bytes n.. become zero
 *	cq_cp_commit()			closes this thread's group of copies
 *	cq_cp_wait<N>()			until at most N groups are under way
 *	cq_ldmatrix_x1/x2/x4(r, s)	8x8 matrices of 16-bit values, one row per lane
 *	cq_ldmatrix_..._trans(r, s)	the same, transposed
 *	cq_movmatrix_trans(a)		an 8x8 matrix of 16-bit values, transposed
 *	cq_mma_16816_f32(d, a, b)	d += a * b, f16, m16n8k16, row by column
 *	cq_mma_16816_bf16(d, a, b)	the same, bf16
 *	cq_mma_1688_f32(d, a, b)	f16, m16n8k8
 *	cq_e4m3_halves(x)		the low two bytes of x, of e4m3, as halves; sm_89 and later
 *	cq_mma_16816_sum(d, a, b, c), cq_mma_1688_sum(d, a, b, c)
 *					d = a * b + c, f16
 *	cq_least(a, b, c)		the least of three int
 *
 * On sm_90 and later (ptx90.cuh; barriers b are words of 64 bits in shared memory):
 *	cq_shared_addr(s)		the address in shared memory
 *	cq_bar_arrive(id, n)		comes to barrier 1..15, of n threads, whole warps
 *	cq_bar_sync(id, n)		the same, and waits until all n have come
 *	cq_mbar_init(b, n)		of n arrivals; then cq_fence_async() and a barrier
 *	cq_mbar_arrive(b)		one of them
 *	cq_mbar_expect(b, bytes)	the same, and so many bytes of copies are to come
 *	cq_mbar_wait(b, parity)		until the phase of that parity has ended: a new barrier
 *					is in phase 0
 *	cq_bulk_load(s, g, bytes, b)	copies multiples of 16 bytes, which b counts
 *	cq_fence_async()		what this thread has written to shared memory shall be
 *					seen by copies in bulk and by tensor cores; a barrier
 *					between writer and reader comes after it
 * and on sm_90a alone, where CQ_WARPGROUPS is set; all threads of four warps, the first
 * of which is a multiple of four:
 *	cq_registers_more<n>()		wait until threads of the warpgroup can have n registers
 *	cq_registers_less<n>()		give back what is beyond n
 *	cq_wgmma_n64(d, a, desc, add)
 *					d = a * b, + d where add; f16, m64k16, b in shared
 *					memory as desc says (cq_wgmma_desc), with terms side by
 *					side; asynchronous
 *	cq_wgmma_n64_trans()		the same with columns of b side by side
 *	cq_wgmma_fence()		before the first product, and where registers of one were
 *					touched
 *	cq_wgmma_commit()		closes the group of products begun
 *	cq_wgmma_wait<N>()		until at most N groups are under way; till then no d is
 *					there, and no a and no b may be written
 *	cq_wgmma_hold(d)		d is not touched before this, nor later
 *
 * In kernels of clusters:
 *	cq_cluster_rank()		which block of the cluster this is
 *	cq_cluster_arrive(), cq_cluster_wait()
 *					the halves of a barrier of the cluster: what was done
 *					before one is seen behind the other
 *	cq_far_at(s, rank)		where block @rank has what @s is here: a cq_far, to which
 *					bytes can be added
 *	cq_far_store(far, x)		a float2 there
 *
 *	cq_keep(x)			x; what is computed from it is not moved before it, such
 *					as out of a loop, where it would take registers
 */
#ifndef CQK_CUDA_DEV_H
#define CQK_CUDA_DEV_H

#ifdef __CUDACC__
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/ptx90.cuh"
#else
#include "tests/emu/cuemu.h"
#endif

/*
 * The descriptor of a matrix in shared memory with 128-byte swizzle, @at being its
 * cq_shared_addr(): PTX ISA, "Matrix Descriptor Format". The pattern of 8 rows of 128
 * bytes begins at a multiple of 1024. @leading: bytes from 64 columns to the next, where
 * columns lie side by side; else not looked at. @stride: from 8 rows to the next.
 */
CQ_DEVICE uint64_t cq_wgmma_desc(uint32_t at, uint32_t leading, uint32_t stride)
{
	return (uint64_t)1 << 62 | (uint64_t)(stride >> 4) << 32 | leading >> 4 << 16 |
	       (at & 0x3ffff) >> 4;
}

#endif /* CQK_CUDA_DEV_H */
