/* SPDX-License-Identifier: MIT */
/*
 * What a warp has found so far, for kernels whose probabilities are relative to a number that
 * is seldom raised (attn_few.cuh, attn_lut.cuh).
 */
#ifndef CQK_CUDA_ATTN_RESULT_CUH
#define CQK_CUDA_ATTN_RESULT_CUH

#include "kernels/cuda/attn.cuh"

#define FLOOR -3e38f		/* below every score */
#define EXACT 1e6f		/* larger numbers are not lowered by P_LIFT exactly */

/* Of a vector, or of the set whose vector l a lane has: some of its channels. */
template <int d>
struct result {
	float o[d / 32][4];
	/* what probabilities are relative to, to base 2; their sum in this lane */
	float low, l;
};

/*
 * Results fade where scores exceed what they are relative to. The lanes that have scores of
 * one vector differ in the bits of their numbers from @first on, below @end.
 */
template <int first, int end, int d>
CQ_DEVICE void result_fade(float top, struct result<d> &r)
{
	float fade;
	int i;

	for (i = first; i < end; i *= 2)
		top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, i));
	top = fmaxf(r.low, fabsf(top) < EXACT ? top - P_LIFT : top);
	fade = cq_exp2(r.low - top);
	r.low = top;
	r.l *= fade;
#pragma unroll
	for (i = 0; i < 4 * (d / 32); i++)
		r.o[i / 4][i % 4] *= fade;
}

#endif /* CQK_CUDA_ATTN_RESULT_CUH */
