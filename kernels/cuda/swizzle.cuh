/* SPDX-License-Identifier: MIT */
/*
 * A tile of keys or values of 128 channels as tensor cores of sm_90 read it from shared
 * memory, with "128-byte swizzle": two halves of 64 channels, each with a row of 128 bytes per
 * token, whose eight chunks of 16 bytes are exchanged by the token, so that eight rows of one
 * chunk are in all banks. Each half begins at a multiple of 1024 bytes.
 */
#ifndef CQK_CUDA_SWIZZLE_CUH
#define CQK_CUDA_SWIZZLE_CUH

#include "kernels/cuda/attn_halves.cuh"

#define TILE_ROW	128				/* bytes */
#define TILE_SIDE	(CQKD_TOKENS * TILE_ROW)	/* of a half */
#define TILE_BYTES	CQKD_TILE_BYTES

/* Where a tile has channel @ch of token @t, in bytes. */
CQ_DEVICE uint32_t tile_at(uint32_t t, uint32_t ch)
{
	return ch / 64 * TILE_SIDE + t * TILE_ROW + (ch / 8 ^ t) % 8 * 16 + ch % 8 * 2;
}

/* Such a tile as fragments of mma.sync: the second factors of products. */
struct swizzled : halves {
	/* Bytes between tokens. */
	template <int d>
	CQ_DEVICE constexpr uint32_t pitch() { return TILE_ROW; }

	/* 8 tokens, then the 8 after; 16 channels from 16 @n on, and the 16 after. */
	template <bool second>
	CQ_DEVICE void keys(uint32_t a[2][4], const uint8_t *rows, uint32_t, int n)
	{
		static_assert(second, "tokens are columns");
		cq_ldmatrix_x4(a[0], row_of_lane(false, rows, n));
		cq_ldmatrix_x4(a[1], row_of_lane(false, rows, n + 1));
	}

	/* The same with tokens as terms and channels as columns. */
	template <bool second>
	CQ_DEVICE void values(uint32_t a[2][4], const uint8_t *rows, uint32_t, int n)
	{
		static_assert(second, "channels are columns");
		cq_ldmatrix_x4_trans(a[0], row_of_lane(true, rows, n));
		cq_ldmatrix_x4_trans(a[1], row_of_lane(true, rows, n + 1));
	}

	/* The row of matrices that a lane names, of 16 channels, by tokens first or by channels. */
	CQ_DEVICE const uint8_t *row_of_lane(bool tokens, const uint8_t *rows, int n)
	{
		uint32_t lane = threadIdx.x % 32, far = lane / 16, near = lane / 8 % 2;
		uint32_t t = tokens ? near : far, chunk = tokens ? far : near;

		return rows + (t * 8 + lane % 8) * TILE_ROW + n / 4 * TILE_SIDE +
		       (chunk * 16 ^ lane % 8 * 16 ^ n % 4 * 32);
	}
};

#endif /* CQK_CUDA_SWIZZLE_CUH */
