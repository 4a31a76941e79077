// SPDX-License-Identifier: MIT
/*
 * Kernels that use each thing the emulation has once, for test_cuemu to
 * compare with what C says.
 */
#include "kernels/cuda/dev.h"

/* One warp; 32 results of each of the operations in turn. */
CQ_KERNEL(32, right_lanes, (uint32_t *out, const uint32_t *in))
{
	uint32_t lane = threadIdx.x, v = in[lane], *o = out + lane;
	int all;

	o[0 * 32] = __shfl_sync(~0u, v, (int)lane + 3);
	o[1 * 32] = __shfl_xor_sync(~0u, v, 5);
	o[2 * 32] = __shfl_down_sync(~0u, v, 3);
	o[3 * 32] = __shfl_up_sync(~0u, v, 3);
	o[4 * 32] = __shfl_sync(~0u, v, 9, 8);
	o[5 * 32] = __shfl_down_sync(~0u, v, 3, 8);
	o[6 * 32] = __shfl_up_sync(~0u, v, 3, 8);
	o[7 * 32] = __ballot_sync(~0u, v & 1);
	o[8 * 32] = (uint32_t)__any_sync(~0u, lane == 7);
	o[8 * 32] |= (uint32_t)__all_sync(~0u, lane < 31) << 1;
	o[9 * 32] = __match_any_sync(~0u, v & 3);
	o[10 * 32] = __match_all_sync(~0u, v & 0, &all) + (uint32_t)all;
	o[11 * 32] = __reduce_add_sync(~0u, v);
	o[12 * 32] = (uint32_t)__reduce_min_sync(~0u, (int)v);
	o[13 * 32] = __reduce_max_sync(~0u, v);
	o[14 * 32] = __reduce_xor_sync(~0u, v);
	/* both halves of the warp, each in its own time */
	if (lane < 16)
		o[15 * 32] = __shfl_xor_sync(0x0000ffffu, v, 1);
	else
		o[15 * 32] = __ballot_sync(0xffff0000u, v & 1);
	o[16 * 32] = (uint32_t)(__shfl_xor_sync(~0u, (unsigned long long)v << 32, 1) >> 32);
	/* lane 1 is in two groups, one after the other */
	if (lane == 1 || lane == 2)
		__syncwarp(6);
	o[17 * 32] = lane < 2 ? __shfl_xor_sync(3, v, 1) : v;
}

/* Blocks and threads meet at one word; the last block says so. */
CQ_KERNEL(128, right_atomics, (uint32_t *words, float *sum, unsigned long long *wide))
{
	__shared__ uint32_t count;
	uint32_t id = blockIdx.x * blockDim.x + threadIdx.x;

	if (threadIdx.x == 0)
		count = 0;
	__syncthreads();
	atomicAdd(&count, 1);
	atomicAdd(words, id);
	atomicMax(words + 1, id);
	atomicMin(words + 2, id);
	atomicXor(words + 3, id);
	atomicOr(words + 4, id);
	atomicInc(words + 5, 99);
	atomicAdd(sum, 0.5f);
	atomicAdd(wide, 1ull << 33);
	__syncthreads();
	if (threadIdx.x == 0) {
		__threadfence();
		if (atomicAdd(words + 6, 1) == gridDim.x - 1)
			words[7] = count;
	}
}

/* Halves: all of what is computed with two of them and a third. */
CQ_KERNEL(64, right_halves, (uint16_t *out, float *wide, const uint16_t *in, const float *x, int n))
{
	int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);

	if (i >= n)
		return;
	__half a = __ushort_as_half(in[i]), b = __ushort_as_half(in[n + i]);
	__half c = __ushort_as_half(in[2 * n + i]);
	__half2 pair = __hfma2(__halves2half2(a, b), __halves2half2(b, a), __half2half2(c));
	uint16_t *o = out + 10 * i;

	o[0] = __half_as_ushort(__float2half_rn(x[i]));
	o[1] = __half_as_ushort(__hadd(a, b));
	o[2] = __half_as_ushort(__hmul(a, b));
	o[3] = __half_as_ushort(__hfma(a, b, c));
	o[4] = __half_as_ushort(__low2half(pair));
	o[5] = __half_as_ushort(__high2half(pair));
	o[6] = __half_as_ushort(__hmax(a, b));
	o[7] = __bfloat16_as_ushort(__float2bfloat16(x[i]));
	o[8] = __bfloat16_as_ushort(__hadd(__ushort_as_bfloat16(in[i]),
					   __ushort_as_bfloat16(in[n + i])));
	o[9] = __half_as_ushort(__float2half(__half22float2(pair).x));
	wide[2 * i] = __half2float(a);
	wide[2 * i + 1] = __bfloat162float(__ushort_as_bfloat16(in[i]));
}

/* d (16 x 8) = a (16 x k) b (k x 8) + d, as the fragments of one warp say. */
CQ_KERNEL(32, right_mma, (float *d, const uint16_t *a, const uint16_t *b, int k, int bf16))
{
	__shared__ __align__(16) uint16_t sa[16][24], sb[16][8];
	int lane = (int)threadIdx.x;
	uint32_t fa[4], fb[2];
	float acc[4], from[4], sum[4];

	for (int i = lane; i < 16 * k; i += 32)
		sa[i / k][i % k] = a[i];
	for (int i = lane; i < k * 8; i += 32)
		sb[i / 8][i % 8] = b[i];
	for (int i = 0; i < 4; i++)
		acc[i] = from[i] = d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2];
	__syncwarp();
	if (k == 16) {
		cq_ldmatrix_x4(fa, &sa[lane % 16][lane / 16 * 8]);
		cq_ldmatrix_x2_trans(fb, &sb[lane % 16][0]);
		if (bf16)
			cq_mma_16816_bf16(acc, fa, fb);
		else
			cq_mma_16816_f32(acc, fa, fb);
		cq_mma_16816_sum(sum, fa, fb, from);
	} else {
		cq_ldmatrix_x2(fa, &sa[lane % 16][0]);
		cq_ldmatrix_x1_trans(fb, &sb[lane % 8][0]);
		cq_mma_1688_f32(acc, fa, fb);
		cq_mma_1688_sum(sum, fa, fb, from);
	}
	for (int i = 0; i < 4 && !bf16; i++)	/* the same, to another place */
		acc[i] = sum[i] == acc[i] ? acc[i] : -1;
	for (int i = 0; i < 4; i++)
		d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = acc[i];
}

/* An 8 x 8 matrix and its transposed one. */
CQ_KERNEL(32, right_movmatrix, (uint16_t *out, const uint16_t *in))
{
	uint32_t at = threadIdx.x / 4 * 8 + threadIdx.x % 4 * 2;
	uint32_t r = cq_movmatrix_trans(in[at] | (uint32_t)in[at + 1] << 16);

	out[at] = (uint16_t)r;
	out[at + 1] = (uint16_t)(r >> 16);
}

/* Words of one table, reversed through shared memory, the odd ones zeroed by the copy. */
CQ_KERNEL(64, right_copies, (uint4 *out, const uint4 *in))
{
	CQ_DYN_SHARED(uint4, tile);
	uint32_t i = threadIdx.x;

	cq_cp_async16(tile + i, in + i);
	cq_cp_commit();
	cq_cp_async16_zfill(tile + 64 + i, in + i, i % 2 ? 0 : 16);
	cq_cp_commit();
	cq_cp_wait<1>();
	__syncthreads();
	out[i] = tile[63 - i];
	cq_cp_wait<0>();
	__syncthreads();
	out[64 + i] = tile[127 - i];
}

/* What lanes exchange through shared memory, with the barrier of a warp. */
CQ_KERNEL(64, right_syncwarp, (uint32_t *out))
{
	__shared__ uint32_t box[64];

	for (uint32_t i = 0; i < 3; i++) {
		box[threadIdx.x] = threadIdx.x + i;
		__syncwarp();
		out[i * 64 + threadIdx.x] = box[threadIdx.x ^ 7];
		__syncwarp();
	}
}

/* Our conversions, to be compared with NVIDIA's. */
CQ_KERNEL(64, right_conversions, (uint16_t *halves, uint16_t *bf16, uint16_t *doubles,
				  float *values, const float *x, int n))
{
	int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);

	if (i >= n)
		return;
	halves[i] = __half_as_ushort(__float2half_rn(x[i]));
	bf16[i] = __bfloat16_as_ushort(__float2bfloat16_rn(x[i]));
	doubles[i] = __half_as_ushort(__double2half((double)x[i] * (1 + 0x1p-40)));
	values[i] = __half2float(__ushort_as_half((uint16_t)i));
}

/* Who comes when: each thread of a block takes the next place of its row. */
CQ_KERNEL(64, right_order, (uint32_t *out))
{
	__shared__ uint32_t place;

	if (threadIdx.x == 0)
		place = 0;
	__syncthreads();
	out[blockIdx.x * 64 + atomicAdd(&place, 1)] = threadIdx.x;
}
