// SPDX-License-Identifier: MIT
/*
 * Kernels as one writes them: a reduction, a product of matrices on the tensor
 * cores, and parameters of all kinds.
 */
#include "kernels/cuda/dev.h"

CQ_DEVICE float warp_sum(float v)
{
	for (int flip = 16; flip; flip >>= 1)
		v += __shfl_xor_sync(~0u, v, flip);
	return v;
}

/* One row per block: y = x / sqrt(mean(x^2) + eps) * gain. */
CQ_KERNEL(256, demo_rmsnorm, (__half *y, const __half *x, const __half *gain, int n, float eps))
{
	__shared__ float part[8];
	const __half *row = x + (size_t)blockIdx.x * n;
	float sum = 0, scale;

	for (int i = threadIdx.x; i < n; i += blockDim.x)
		sum += __half2float(row[i]) * __half2float(row[i]);
	sum = warp_sum(sum);
	if (threadIdx.x % 32 == 0)
		part[threadIdx.x / 32] = sum;
	__syncthreads();
	sum = 0;
	for (int i = 0; i < (int)blockDim.x / 32; i++)
		sum += part[i];
	scale = rsqrtf(sum / n + eps);
	for (int i = threadIdx.x; i < n; i += blockDim.x)
		y[(size_t)blockIdx.x * n + i] =
			__float2half(__half2float(row[i]) * scale * __half2float(gain[i]));
}

/*
 * c (m x n, f32) = a (m x k) * b (k x n), of halves, rows in order: a tile of
 * 64 x 64 per block of four warps, two stages of cp.async, ldmatrix and mma.
 */
static const int TILE = 64, STEP = 32, ROW_A = STEP + 8, ROW_B = TILE + 8;

CQ_DEVICE void load_tiles(__half *sa, __half *sb, const __half *a, const __half *b, int n,
			  int k)
{
	for (int i = threadIdx.x; i < TILE * STEP / 8; i += 128) {
		int row_a = i / (STEP / 8), col_a = i % (STEP / 8) * 8;
		int row_b = i / (TILE / 8), col_b = i % (TILE / 8) * 8;

		cq_cp_async16(sa + row_a * ROW_A + col_a, a + (size_t)row_a * k + col_a);
		cq_cp_async16(sb + row_b * ROW_B + col_b, b + (size_t)row_b * n + col_b);
	}
	cq_cp_commit();
}

CQ_KERNEL(128, demo_gemm, (float *c, const __half *a, const __half *b, int m, int n, int k))
{
	CQ_DYN_SHARED(__half, shared);
	__half *sa[2] = { shared, shared + TILE * ROW_A };
	__half *sb[2] = { sa[1] + TILE * ROW_A, sa[1] + TILE * ROW_A + STEP * ROW_B };
	int lane = threadIdx.x % 32, warp = threadIdx.x / 32, stage = 0;
	float acc[8][4] = {};

	a += (size_t)blockIdx.y * TILE * k;
	b += blockIdx.x * TILE;
	c += (size_t)blockIdx.y * TILE * n + blockIdx.x * TILE;
	load_tiles(sa[0], sb[0], a, b, n, k);
	for (int at = 0; at < k; at += STEP, stage ^= 1) {
		if (at + STEP < k) {
			load_tiles(sa[stage ^ 1], sb[stage ^ 1], a + at + STEP,
				   b + (size_t)(at + STEP) * n, n, k);
			cq_cp_wait<1>();
		} else {
			cq_cp_wait<0>();
		}
		__syncthreads();
		for (int i = 0; i < STEP; i += 16) {
			uint32_t fa[4], fb[2];

			cq_ldmatrix_x4(fa, sa[stage] + (warp * 16 + lane % 16) * ROW_A + i +
				       lane / 16 * 8);
			for (int j = 0; j < 8; j++) {
				cq_ldmatrix_x2_trans(fb, sb[stage] + (i + lane % 16) * ROW_B +
						     j * 8);
				cq_mma_16816_f32(acc[j], fa, fb);
			}
		}
		__syncthreads();
	}
	for (int j = 0; j < 8; j++)
		for (int i = 0; i < 4; i++)
			c[(size_t)(warp * 16 + lane / 4 + i / 2 * 8) * n + j * 8 +
			  lane % 4 * 2 + i % 2] = acc[j][i];
}

struct demo_args {
	float *out;
	uint16_t a;
	double b;
};

/* What a launch hands over, whatever its layout. */
CQ_KERNEL(32, demo_params, (char first, struct demo_args args, short third))
{
	if (threadIdx.x == 0) {
		args.out[0] = first;
		args.out[1] = args.a;
		args.out[2] = (float)args.b;
		args.out[3] = third;
	}
}
