/* SPDX-License-Identifier: MIT */
/*
 * Vectors of CQK_VB bytes in the extension that gcc and clang share, and the
 * functions softmax needs. No intrinsics: one source for every width.
 */
#ifndef CQK_VEC_H
#define CQK_VEC_H

#include <math.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif
#include "kernels/attn.h"

#define VF (CQK_VB / 4)

/* Element alignment only: tiles are aligned, callers' tables need not be. */
typedef float vf __attribute__((vector_size(CQK_VB), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(CQK_VB), aligned(4), may_alias));

#define LD(p) (*(const vf *)(p))
#define ST(p, x) (*(vf *)(p) = (x))
#define INLINE static inline __attribute__((always_inline))

INLINE vf vf_pick(vi mask, vf a, vf b)
{
	return (vf)(((vi)a & mask) | ((vi)b & ~mask));
}

/* a > b ? a : b, for which compilers see no instruction in vf_pick() */
INLINE vf vf_max(vf a, vf b)
{
#if CQK_VB == 64 && defined(__AVX512F__)
	return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif CQK_VB == 32 && defined(__AVX2__)
	return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
	return vf_pick(a > b, a, b);
#endif
}

/* e^x for x <= 40, relative error below 3e-7; 2^-126 from there down. */
INLINE vf vf_exp(vf x)
{
	const vf magic = (vf){ 0 } + 12582912.0f;	/* 1.5 * 2^23 rounds */
	vf y = vf_max(x * 1.44269504088896341f, (vf){ 0 } - 126.0f);
	vf n = y + magic;
	vf f = y - (n - magic);
	vf p = f * 1.54035303933816e-4f + 1.33335581464284e-3f;

	p = p * f + 9.61812910762848e-3f;
	p = p * f + 5.55041086648216e-2f;
	p = p * f + 0.240226506959101f;
	p = p * f + 0.693147180559945f;
	p = p * f + 1.0f;
	return (vf)((vi)p + (((vi)n - (vi)magic) << 23));
}

/* cap * tanh(x / cap): its series near 0, where 1 - 2 / (e^y + 1) loses digits. */
INLINE vf vf_cap(vf x, float cap)
{
	vf y = x * (2.0f / cap), z = y * y * 0.25f;
	vf series = z * 2.18694885e-2f - 5.39682540e-2f;

	series = series * z + 0.133333333f;
	series = series * z - 0.333333333f;
	series = x + x * (series * z);
	y = vf_pick(y > (vf){ 0 } + 40.0f, (vf){ 0 } + 40.0f, y);
	return vf_pick(z < (vf){ 0 } + 0.0625f, series,
		       cap - 2.0f * cap / (vf_exp(y) + 1.0f));
}

/* All ones in the lanes whose bit is set. */
INLINE vi vi_mask(uint64_t bits)
{
	vi lane = { 0 };
	int i;

	for (i = 0; i < VF; i++)
		lane[i] = (int32_t)(1u << i);
	return (lane & (int32_t)(bits & ((1ull << VF) - 1))) == lane;
}

INLINE float vf_sum(vf x)
{
	float sum = 0.0f;
	int i;

	for (i = 0; i < VF; i++)
		sum += x[i];
	return sum;
}

INLINE float vf_top(vf x)
{
	float top = x[0];
	int i;

	for (i = 1; i < VF; i++)
		top = x[i] > top ? x[i] : top;
	return top;
}

#endif /* CQK_VEC_H */
