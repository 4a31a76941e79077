// SPDX-License-Identifier: MIT
/*
 * Kernels with one fault each, which test_cuemu expects to be told of. All
 * have the same parameters: a buffer, and a number that the compiler does not
 * know.
 */
#include "kernels/cuda/dev.h"

#define WRONG(name) CQ_KERNEL(64, wrong_##name, (uint32_t *out, uint32_t n))

/* Not all threads reach the first barrier. */
WRONG(divergent)
{
	if (threadIdx.x < 16)
		__syncthreads();
	out[threadIdx.x] = n;
	__syncthreads();
}

/* Some lanes wait for their warp, the others for the block. */
WRONG(deadlock)
{
	if (threadIdx.x < 16)
		__syncwarp();
	else
		__syncthreads();
	out[threadIdx.x] = n;
}

/* One thread leaves, the others wait for it. */
WRONG(left)
{
	if (threadIdx.x == n)
		return;
	__syncthreads();
	out[threadIdx.x] = n;
}

/* A value is read of a lane that does not bring one. */
WRONG(lane)
{
	if (threadIdx.x < 8)
		out[threadIdx.x] = __shfl_xor_sync(0xffu, n, 8);
}

/* A lane is not in its own mask. */
WRONG(mask)
{
	out[threadIdx.x] = __ballot_sync(0x7fffffffu, n == 1);
}

/* Lanes of one mask meet in two operations. */
WRONG(mixed)
{
	if (threadIdx.x % 32 < 16)
		out[threadIdx.x] = __shfl_sync(~0u, n, 1);
	else
		out[threadIdx.x] = __ballot_sync(~0u, n == 1);
}

/* A barrier is missing between the writes and the reads. */
WRONG(no_barrier)
{
	__shared__ uint32_t box[64];

	box[threadIdx.x] = n;
	out[threadIdx.x] = box[threadIdx.x ^ 63];
}

/* The same in a warp: a shuffle is no barrier for memory. */
WRONG(no_syncwarp)
{
	__shared__ uint32_t box[64];

	box[threadIdx.x] = n;
	n = __shfl_xor_sync(~0u, n, 1);
	out[threadIdx.x] = box[threadIdx.x ^ 1] + n;
}

/* The second round writes what others still read. */
WRONG(no_second_barrier)
{
	CQ_DYN_SHARED(uint32_t, box);

	for (uint32_t i = 0; i < n; i++) {
		box[threadIdx.x] = i;
		__syncthreads();
		out[threadIdx.x] = box[(threadIdx.x + 32) % 64];
	}
}

/* What is copied is read before it has come. */
WRONG(early)
{
	CQ_DYN_SHARED(uint32_t, tile);

	cq_cp_async16(tile + 4 * threadIdx.x, out + 64);
	cq_cp_commit();
	out[threadIdx.x] = tile[4 * threadIdx.x];
	cq_cp_wait<0>();
}

WRONG(copy_target)
{
	cq_cp_async16(out, out + 64);
	cq_cp_wait<0>();
}

WRONG(copy_alignment)
{
	CQ_DYN_SHARED(uint32_t, tile);

	cq_cp_async16(tile, out + n);
	cq_cp_wait<0>();
}

WRONG(row)
{
	CQ_DYN_SHARED(uint16_t, tile);
	uint32_t r[1];

	cq_ldmatrix_x1(r, tile + n * threadIdx.x);
	out[threadIdx.x] = r[0];
}

/* 64 words are asked for. */
WRONG(beyond_shared)
{
	CQ_DYN_SHARED(uint32_t, box);

	box[threadIdx.x + n] = n;
	out[threadIdx.x] = n;
}

WRONG(below_shared)
{
	CQ_DYN_SHARED(uint32_t, box);

	*(box - threadIdx.x - n) = n;
	out[threadIdx.x] = n;
}

WRONG(address)
{
	uint32_t *p = reinterpret_cast<uint32_t *>((uintptr_t)n * 16);

	if (blockIdx.x == 1 && threadIdx.x == 5)
		*p = n;
}

WRONG(stack)
{
	volatile uint32_t big[1 << 18];

	big[n] = n;
	out[threadIdx.x] = big[n];
}

/* One barrier of the warp, but none behind the reads. */
WRONG(one_syncwarp)
{
	__shared__ uint32_t box[64];

	box[threadIdx.x] = n;
	__syncwarp();
	out[threadIdx.x] = box[threadIdx.x ^ 1];
	box[threadIdx.x] = n + 1;
}
