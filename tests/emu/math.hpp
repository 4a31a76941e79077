/* SPDX-License-Identifier: MIT */
/*
 * Intrinsics. What a device computes approximately is computed well here:
 * tests that compare need their bounds for the device, not for this.
 */
#ifndef CUEMU_MATH_HPP
#define CUEMU_MATH_HPP

#include <ctime>

#include "tests/emu/types.hpp"

/* One rounding each, never contracted to a fused one (-ffp-contract=off). */
CUEMU_FN float __fadd_rn(float a, float b) { return a + b; }
CUEMU_FN float __fsub_rn(float a, float b) { return a - b; }
CUEMU_FN float __fmul_rn(float a, float b) { return a * b; }
CUEMU_FN float __fdiv_rn(float a, float b) { return a / b; }
CUEMU_FN float __frcp_rn(float a) { return 1.0f / a; }
CUEMU_FN float __fsqrt_rn(float a) { return sqrtf(a); }
CUEMU_FN float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
CUEMU_FN double __dadd_rn(double a, double b) { return a + b; }
CUEMU_FN double __dsub_rn(double a, double b) { return a - b; }
CUEMU_FN double __dmul_rn(double a, double b) { return a * b; }
CUEMU_FN double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

CUEMU_FN float __fdividef(float a, float b) { return a / b; }
/* Macros, since the C library has functions of these names. */
#define __expf(x) expf(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __tanhf(x) tanhf(x)
#define __powf(x, y) powf(x, y)
#define __sincosf(x, s, c) sincosf(x, s, c)
CUEMU_FN float __saturatef(float x) { return x >= 0 ? (x <= 1 ? x : 1) : 0; }
CUEMU_FN void sincospif(float x, float *s, float *c)
{
	*s = (float)sin((double)x * M_PI);
	*c = (float)cos((double)x * M_PI);
}
CUEMU_FN float rsqrtf(float x) { return (float)(1.0 / sqrt((double)x)); }
CUEMU_FN float cq_exp2(float x) { return exp2f(x); }
CUEMU_FN int cq_least(int a, int b, int c) { return std::min(std::min(a, b), c); }
CUEMU_FN uint32_t cq_keep(uint32_t x) { return x; }

/* Conversions saturate, and NaN becomes zero. */
CUEMU_FN int __float2int_rn(float x)
{
	return x != x ? 0 : x >= 0x1p31f ? INT_MAX : x < -0x1p31f ? INT_MIN : (int)nearbyintf(x);
}
CUEMU_FN int __float2int_rz(float x) { return __float2int_rn(truncf(x)); }
CUEMU_FN int __float2int_rd(float x) { return __float2int_rn(floorf(x)); }
CUEMU_FN int __float2int_ru(float x) { return __float2int_rn(ceilf(x)); }
CUEMU_FN unsigned int __float2uint_rn(float x)
{
	return !(x > 0) ? 0 : x >= 0x1p32f ? UINT_MAX : (unsigned int)nearbyintf(x);
}
CUEMU_FN unsigned int __float2uint_rz(float x) { return __float2uint_rn(truncf(x)); }
CUEMU_FN float __int2float_rn(int x) { return (float)x; }
CUEMU_FN float __uint2float_rn(unsigned int x) { return (float)x; }

template <typename To, typename From> CUEMU_FN To cuemu_bits(From from)
{
	To to;

	static_assert(sizeof(To) == sizeof(From), "bits for bits");
	memcpy(&to, &from, sizeof(to));
	return to;
}
CUEMU_FN int __float_as_int(float x) { return cuemu_bits<int>(x); }
CUEMU_FN unsigned int __float_as_uint(float x) { return cuemu_bits<unsigned int>(x); }
CUEMU_FN float __int_as_float(int x) { return cuemu_bits<float>(x); }
CUEMU_FN float __uint_as_float(unsigned int x) { return cuemu_bits<float>(x); }
CUEMU_FN long long __double_as_longlong(double x) { return cuemu_bits<long long>(x); }
CUEMU_FN double __longlong_as_double(long long x) { return cuemu_bits<double>(x); }

CUEMU_FN int __popc(unsigned int x) { return __builtin_popcount(x); }
CUEMU_FN int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
CUEMU_FN int __ffs(int x) { return __builtin_ffs(x); }
CUEMU_FN int __ffsll(long long x) { return __builtin_ffsll(x); }
CUEMU_FN int __clz(int x) { return x ? __builtin_clz((unsigned int)x) : 32; }
CUEMU_FN int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
CUEMU_FN unsigned int __umulhi(unsigned int a, unsigned int b)
{
	return (unsigned int)((uint64_t)a * b >> 32);
}
CUEMU_FN unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
	__extension__ typedef unsigned __int128 wide;

	return (unsigned long long)((wide)a * b >> 64);
}
CUEMU_FN unsigned int __brev(unsigned int x)
{
	unsigned int r = 0;

	for (int i = 0; i < 32; i++)
		r |= (x >> i & 1) << (31 - i);
	return r;
}

/* Each nibble of @sel: a byte of y:x, or (bit 3) its sign eight times. */
CUEMU_FN unsigned int __byte_perm(unsigned int x, unsigned int y, unsigned int sel)
{
	uint64_t all = x | (uint64_t)y << 32;
	unsigned int r = 0;

	for (int i = 0; i < 4; i++) {
		unsigned int s = sel >> 4 * i & 15, byte = all >> 8 * (s & 7) & 0xff;

		r |= (s & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << 8 * i;
	}
	return r;
}
CUEMU_FN unsigned int __funnelshift_l(unsigned int lo, unsigned int hi, unsigned int by)
{
	return (unsigned int)(((uint64_t)hi << 32 | lo) << (by & 31) >> 32);
}
CUEMU_FN unsigned int __funnelshift_r(unsigned int lo, unsigned int hi, unsigned int by)
{
	return (unsigned int)(((uint64_t)hi << 32 | lo) >> (by & 31));
}

template <int lut> CUEMU_FN uint32_t cq_lop3(uint32_t a, uint32_t b, uint32_t c)
{
	uint32_t r = 0;

	for (int i = 0; i < 8; i++)
		if (lut >> i & 1)
			r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
	return r;
}

CUEMU_FN long long clock64()
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

/* Sums of four products of bytes. */
CUEMU_FN int __dp4a(int a, int b, int c)
{
	unsigned int sum = (unsigned int)c;

	for (int i = 0; i < 4; i++)
		sum += (unsigned int)((signed char)(a >> 8 * i) * (signed char)(b >> 8 * i));
	return (int)sum;
}

#endif /* CUEMU_MATH_HPP */
