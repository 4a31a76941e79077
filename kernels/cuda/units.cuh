/* SPDX-License-Identifier: MIT */
/*
 * Units of channels: two, four or eight halves that are loaded, turned and stored together,
 * and where codebooks in shared memory have them. A head's table has a row per code, in which
 * the centroids of all groups lie beside each other (struct cqkd_book, @rows).
 */
#ifndef CQK_CUDA_UNITS_CUH
#define CQK_CUDA_UNITS_CUH

#include "kernels/cuda/dev.h"

/* Two halves as a word, and back: no instruction. */
CQ_DEVICE uint32_t h2_bits(__half2 x)
{
	uint32_t bits;

	memcpy(&bits, &x, sizeof(bits));
	return bits;
}

CQ_DEVICE __half2 h2_of(uint32_t bits)
{
	__half2 x;

	memcpy(&x, &bits, sizeof(x));
	return x;
}

template <int words>
CQ_DEVICE void unit_load(uint32_t *x, const void *from)
{
	if (words == 4) {
		uint4 four = *(const uint4 *)from;

		x[0] = four.x;
		x[words / 4] = four.y;
		x[words / 2] = four.z;
		x[words - 1] = four.w;
	} else if (words == 2) {
		uint2 two = *(const uint2 *)from;

		x[0] = two.x;
		x[words - 1] = two.y;
	} else {
		x[0] = *(const uint32_t *)from;
	}
}

template <int words>
CQ_DEVICE void unit_store(void *to, const uint32_t *x)
{
	if (words == 4)
		*(uint4 *)to = make_uint4(x[0], x[words / 4], x[words / 2], x[words - 1]);
	else if (words == 2)
		*(uint2 *)to = make_uint2(x[0], x[words - 1]);
	else
		*(uint32_t *)to = x[0];
}

/* Where byte @i of some codes has its centroids of channel @at, both in bytes. */
template <int d>
CQ_DEVICE uint32_t row_at(uint32_t codes, int i, uint32_t at)
{
	/* a row of 256 bytes: code and place are a byte each, in one instruction */
	if (d == 128)
		return __byte_perm(codes, at, 0x5504 | (i << 4));
	return ((i ? codes >> (8 * i - 7) : codes << 7) & 0x7f80) | at;
}

#endif /* CQK_CUDA_UNITS_CUH */
