/* SPDX-License-Identifier: MIT */
/*
 * Halves in shared memory as fragments of tensor cores. Kernels that read numbers as they are
 * stored take such a type; a product may have its terms and its rows in any order, and the
 * type says in which they come.
 */
#ifndef CQK_CUDA_ATTN_HALVES_CUH
#define CQK_CUDA_ATTN_HALVES_CUH

#include "kernels/cuda/dev.h"
#include "kernels/cuda/params.h"

/**
 * struct halves - fp16, in order
 * @bytes:  of a number
 * @stages: of 16 tokens of a warp on their way, where a block has four warps
 * @scaled: numbers are multiplied with something to be keys and values
 */
struct halves {
	static const int bytes = 2, stages = CQKD_F16_STAGES;
	static const bool scaled = false;

	/* Bytes between rows of @d numbers in shared memory. */
	template <int d>
	CQ_DEVICE constexpr uint32_t pitch() { return CQKD_RING_PITCH(d, bytes); }

	/* Where among the terms of Q.K a channel is. */
	CQ_DEVICE uint32_t place(uint32_t ch) { return ch; }

	/* The channel that row @row of each 16 rows of values is. */
	CQ_DEVICE uint32_t channel(uint32_t row) { return row; }

	/*
	 * Rows of 16 tokens, @pitch bytes apart: 16 channels from 16 @n on, and the 16 after.
	 * As the first factor of a product, with tokens as rows, or as the @second one: then
	 * two registers are of 8 tokens, and two of the others.
	 */
	template <bool second>
	CQ_DEVICE void keys(uint32_t a[2][4], const uint8_t *rows, uint32_t pitch, int n)
	{
		rows += at(second, pitch) + n * 32;
		cq_ldmatrix_x4(a[0], rows);
		cq_ldmatrix_x4(a[1], rows + 32);
	}

	/* The same with tokens as terms and channels as rows, or columns. */
	template <bool second>
	CQ_DEVICE void values(uint32_t a[2][4], const uint8_t *rows, uint32_t pitch, int n)
	{
		rows += at(!second, pitch) + n * 32;
		cq_ldmatrix_x4_trans(a[0], rows);
		cq_ldmatrix_x4_trans(a[1], rows + 32);
	}

	/* Of 16 channels at @o what a lane has of a vector, in two products of 8 columns. */
	CQ_DEVICE void put(float *o, const float x[2], const float y[2], float by)
	{
		o += threadIdx.x % 4 * 2;
		*(float2 *)o = make_float2(x[0] * by, x[1] * by);
		*(float2 *)(o + 8) = make_float2(y[0] * by, y[1] * by);
	}

	/* The row of matrices that a lane names, by tokens first or by channels. */
	CQ_DEVICE uint32_t at(bool channels, uint32_t pitch)
	{
		uint32_t lane = threadIdx.x % 32, far = lane / 16, near = lane / 8 % 2;

		return ((channels ? far : near) * 8 + lane % 8) * pitch +
		       (channels ? near : far) * 16;
	}
};

#endif /* CQK_CUDA_ATTN_HALVES_CUH */
