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
 *   CQ_DYN_SHARED(), once per kernel, 16 bytes aligned.
 * - No spin waits inside a block and no grid-wide waits: threads of a block
 *   take turns at barriers and warp collectives only.
 * - All threads of a block reach each __syncthreads(), none leaves before it.
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
 *	cq_keep(x)			x; what is computed from it is not moved before it, such
 *					as out of a loop, where it would take registers
 */
#ifndef CQK_CUDA_DEV_H
#define CQK_CUDA_DEV_H

#ifdef __CUDACC__
#include "kernels/cuda/ptx.cuh"
#else
#include "tests/emu/cuemu.h"
#endif

#endif /* CQK_CUDA_DEV_H */
