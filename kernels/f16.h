/* SPDX-License-Identifier: MIT */
/*
 * IEEE half and bfloat16 to and from float, in portable integer arithmetic.
 *
 * These are the specification: results are those of the hardware instructions
 * (F16C, AVX512-BF16 round modes) under round-to-nearest-even, subnormals
 * kept, so that a vector path and this one agree bit for bit. NaN becomes a
 * quiet NaN and keeps its sign.
 */
#ifndef CQK_F16_H
#define CQK_F16_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define CQK_F16_MAX 65504.0f

static inline uint32_t cqk_f32_bits(float x)
{
	uint32_t u;

	memcpy(&u, &x, sizeof(u));
	return u;
}

static inline float cqk_bits_f32(uint32_t u)
{
	float x;

	memcpy(&x, &u, sizeof(x));
	return x;
}

/**
 * cqk_f16_to_f32() - exact value of an IEEE half
 * @h: its bits
 *
 * Return: the value; every half is representable.
 */
static inline float cqk_f16_to_f32(uint16_t h)
{
	uint32_t sign = (uint32_t)(h & 0x8000) << 16;
	uint32_t mag = h & 0x7fff;

	if (mag >= 0x7c00)		/* Inf, NaN (made quiet) */
		return cqk_bits_f32(sign | 0x7f800000 | (mag & 0x3ff) << 13 |
				    (mag > 0x7c00 ? 0x400000 : 0));
	if (mag >= 0x0400)		/* normal: rebias 15 -> 127 */
		return cqk_bits_f32(sign | ((mag << 13) + (112u << 23)));
	/* subnormal: mag * 2^-24 is exact in float */
	return cqk_bits_f32(sign | cqk_f32_bits((float)mag * 0x1p-24f));
}

/**
 * cqk_f32_to_f16() - nearest IEEE half, ties to even
 * @x: value; beyond the range it becomes an infinity
 *
 * Return: the bits of the half.
 */
static inline uint16_t cqk_f32_to_f16(float x)
{
	uint32_t u = cqk_f32_bits(x);
	uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
	uint32_t mag = u & 0x7fffffff;
	uint32_t shift, man;

	if (mag > 0x7f800000)
		return (uint16_t)(sign | 0x7e00 | (mag >> 13 & 0x3ff));
	if (mag >= 0x477ff000)		/* 65520 and above round to Inf */
		return sign | 0x7c00;
	if (mag >= 0x38800000)		/* normal half; the carry may grow the exponent */
		return (uint16_t)(sign | ((mag - (112u << 23) + 0xfff +
					   (mag >> 13 & 1)) >> 13));
	if (mag <= 0x33000000)		/* 2^-25 and below round to zero */
		return sign;
	/* subnormal half: the unit is 2^-24 */
	shift = 126 - (mag >> 23);
	man = (mag & 0x7fffff) | 0x800000;
	return (uint16_t)(sign | ((man + (1u << (shift - 1)) - 1 +
				   (man >> shift & 1)) >> shift));
}

/* Neither NaN nor an infinity. */
static inline bool cqk_f16_finite(uint16_t h)
{
	return (h & 0x7c00) != 0x7c00;
}

static inline bool cqk_f32_finite(float x)
{
	return (cqk_f32_bits(x) & 0x7f800000) != 0x7f800000;
}

/* Exact value of a bfloat16. */
static inline float cqk_bf16_to_f32(uint16_t h)
{
	return cqk_bits_f32((uint32_t)h << 16);
}

/* Nearest bfloat16, ties to even. */
static inline uint16_t cqk_f32_to_bf16(float x)
{
	uint32_t u = cqk_f32_bits(x);

	if ((u & 0x7fffffff) > 0x7f800000)
		return (uint16_t)(u >> 16 | 0x40);
	return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

#endif /* CQK_F16_H */
