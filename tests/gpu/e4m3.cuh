/* SPDX-License-Identifier: MIT */
/*
 * Keys and values in fp8, as fragments of tensor cores: numbers of e4m3, a byte each, that
 * become halves in registers. An 8x8 matrix of 16 bits has two of them in each place, so a
 * load brings a lane four neighbours of a key, of which it makes two terms of a product here
 * and two 8 further on; and of a value two tokens of an even and of an odd channel.
 */
#ifndef GPU_E4M3_CUH
#define GPU_E4M3_CUH

#include "kernels/cuda/dev.h"
#include "tests/gpu/base_params.h"

/*
 * The same as cq_e4m3_halves(), for GPUs without it. Fields of a half are where those of
 * e4m3 are if it is shifted by 7; its exponent counts from 8 less. NaN is not kept.
 */
CQ_DEVICE uint32_t e4m3_by_bits(uint32_t x)
{
	uint32_t high = __byte_perm(x, 0, 0x1404);
	uint32_t bits = (high & 0x80008000) | (high >> 1 & 0x3f803f80);
	__half2 h;

	memcpy(&h, &bits, sizeof(h));
	h = __hmul2(h, __floats2half2_rn(256, 256));
	memcpy(&bits, &h, sizeof(h));
	return bits;
}

/* @bits: without the instruction, also where there is one. */
template <bool bits>
struct e4m3 {
	static const int bytes = 1, stages = CQBD_FP8_STAGES;
	static const bool scaled = true;

	template <int d>
	CQ_DEVICE constexpr uint32_t pitch() { return CQKD_RING_PITCH(d, bytes); }

	CQ_DEVICE uint32_t place(uint32_t ch)
	{
		return (ch & ~15u) | ch / 4 % 4 * 2 | ch % 2 | ch / 2 % 2 * 8;
	}

	CQ_DEVICE uint32_t channel(uint32_t row) { return row % 8 * 2 + row / 8; }

	CQ_DEVICE uint32_t halves_of(uint32_t x)
	{
#if defined(__CUDACC__) && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 890)
		return e4m3_by_bits(x);
#else
		return bits ? e4m3_by_bits(x) : cq_e4m3_halves(x);
#endif
	}

	template <bool second>
	CQ_DEVICE void keys(uint32_t a[2][4], const uint8_t *rows, uint32_t pitch, int n)
	{
		uint32_t lane = threadIdx.x % 32, r[4];
		int i;

		cq_ldmatrix_x4(r, rows + lane % 16 * pitch + lane / 16 * 16 + n * 16);
#pragma unroll
		for (i = 0; i < 2; i++) {
			a[i][0] = halves_of(r[2 * i]);
			a[i][second ? 2 : 1] = halves_of(r[2 * i + 1]);
			a[i][second ? 1 : 2] = halves_of(r[2 * i] >> 16);
			a[i][3] = halves_of(r[2 * i + 1] >> 16);
		}
	}

	template <bool second>
	CQ_DEVICE void values(uint32_t a[2][4], const uint8_t *rows, uint32_t pitch, int n)
	{
		uint32_t lane = threadIdx.x % 32, r[4];
		int i;

		cq_ldmatrix_x4_trans(r, rows + lane % 16 * pitch + lane / 16 * 16 + n * 16);
#pragma unroll
		for (i = 0; i < 2; i++) {
			uint32_t x = __byte_perm(r[2 * i], 0, 0x3120);
			uint32_t y = __byte_perm(r[2 * i + 1], 0, 0x3120);

			a[i][0] = halves_of(x);
			a[i][second ? 2 : 1] = halves_of(x >> 16);
			a[i][second ? 1 : 2] = halves_of(y);
			a[i][3] = halves_of(y >> 16);
		}
	}

	CQ_DEVICE void put(float *o, const float x[2], const float y[2], float by)
	{
		*(float4 *)(o + threadIdx.x % 4 * 4) =
			make_float4(x[0] * by, y[0] * by, x[1] * by, y[1] * by);
	}
};

#endif /* GPU_E4M3_CUH */
