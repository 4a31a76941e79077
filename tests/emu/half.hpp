/* SPDX-License-Identifier: MIT */
/*
 * __half, __nv_bfloat16 and pairs of them, rounded as the device rounds: to
 * nearest even, NaN becomes the device's one NaN (0x7fff). + - * / are done in
 * float, which has bits enough that rounding twice is rounding once; sums of
 * three go through double.
 */
#ifndef CUEMU_HALF_HPP
#define CUEMU_HALF_HPP

#include "kernels/f16.h"
#include "tests/emu/types.hpp"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace cuemu {

static inline float half_value(uint16_t bits)
{
	if ((bits & 0x7fff) > 0x7c00)
		return cqk_bits_f32(0x7fffffff);
#ifdef __F16C__
	return _cvtsh_ss(bits);
#else
	return cqk_f16_to_f32(bits);
#endif
}

static inline uint16_t half_bits(float x)
{
	if (x != x)
		return 0x7fff;
#ifdef __F16C__
	return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
#else
	return cqk_f32_to_f16(x);
#endif
}

static inline float bf16_value(uint16_t bits)
{
	return cqk_bf16_to_f32(bits);
}

static inline uint16_t bf16_bits(float x)
{
	return x != x ? 0x7fff : cqk_f32_to_bf16(x);
}

/*
 * Nearest float of @x, but to odd where it is not exact: a second rounding to
 * a shorter type then gives what one rounding of @x would have given.
 */
static inline float to_odd(double x)
{
	float f = (float)x;
	uint32_t u = cqk_f32_bits(f);

	if ((double)f == x || x != x || std::isinf(f) || (u & 1))
		return f;
	/* towards zero first, then the lowest bit set */
	if (std::fabs((double)f) > std::fabs(x))
		u--;
	return cqk_bits_f32(u | 1);
}

/* The same for a sum; the error of one in double is itself a double. */
static inline double sum_to_odd(double a, double b)
{
	double sum = a + b, part = sum - a, err = (a - (sum - part)) + (b - part);
	uint64_t u;

	memcpy(&u, &sum, sizeof(u));
	if (err == 0 || err != err || (u & 1))
		return sum;
	u = (err > 0) == (sum > 0) ? u + 1 : u - 1;
	memcpy(&sum, &u, sizeof(u));
	return sum;
}

} /* namespace cuemu */

/* One type of 16 bits: value() and bits() convert to float and back. */
#define CUEMU_SHORT_FLOAT(type, value_of, bits_of) \
struct __align__(2) type { \
	uint16_t raw; \
	type() = default; \
	type(float x) : raw(cuemu::bits_of(x)) {} \
	type(double x) : raw(cuemu::bits_of(cuemu::to_odd(x))) {} \
	type(int x) : type((double)x) {} \
	type(unsigned int x) : type((double)x) {} \
	static type of_bits(uint16_t bits) \
	{ \
		type r; \
\
		r.raw = bits; \
		return r; \
	} \
	operator float() const { return cuemu::value_of(raw); } \
	type &operator+=(type b) { return *this = type((float)*this + (float)b); } \
	type &operator-=(type b) { return *this = type((float)*this - (float)b); } \
	type &operator*=(type b) { return *this = type((float)*this * (float)b); } \
	type &operator/=(type b) { return *this = type((float)*this / (float)b); } \
	type operator-() const { return of_bits(raw ^ 0x8000); } \
}; \
CUEMU_FN type operator+(type a, type b) { return a += b; } \
CUEMU_FN type operator-(type a, type b) { return a -= b; } \
CUEMU_FN type operator*(type a, type b) { return a *= b; } \
CUEMU_FN type operator/(type a, type b) { return a /= b; } \
CUEMU_FN bool operator<(type a, type b) { return (float)a < (float)b; } \
CUEMU_FN bool operator>(type a, type b) { return (float)a > (float)b; } \
CUEMU_FN bool operator<=(type a, type b) { return (float)a <= (float)b; } \
CUEMU_FN bool operator>=(type a, type b) { return (float)a >= (float)b; } \
CUEMU_FN bool operator==(type a, type b) { return (float)a == (float)b; } \
CUEMU_FN bool operator!=(type a, type b) { return (float)a != (float)b; } \
struct __align__(4) type##2 { \
	type x, y; \
	type##2() = default; \
	type##2(type a, type b) : x(a), y(b) {} \
}; \
CUEMU_FN type __hadd(type a, type b) { return a + b; } \
CUEMU_FN type __hsub(type a, type b) { return a - b; } \
CUEMU_FN type __hmul(type a, type b) { return a * b; } \
CUEMU_FN type __hdiv(type a, type b) { return a / b; } \
CUEMU_FN type __hneg(type a) { return -a; } \
CUEMU_FN type __habs(type a) { return type::of_bits(a.raw & 0x7fff); } \
CUEMU_FN bool __hisnan(type a) { return std::isnan((float)a); } \
CUEMU_FN int __hisinf(type a) { return std::isinf((float)a) ? (a.raw >> 15 ? -1 : 1) : 0; } \
CUEMU_FN bool __hlt(type a, type b) { return a < b; } \
CUEMU_FN bool __hle(type a, type b) { return a <= b; } \
CUEMU_FN bool __hgt(type a, type b) { return a > b; } \
CUEMU_FN bool __hge(type a, type b) { return a >= b; } \
CUEMU_FN bool __heq(type a, type b) { return a == b; } \
CUEMU_FN bool __hne(type a, type b) { return a != b; } \
CUEMU_FN type __hmax(type a, type b) { return type(fmaxf((float)a, (float)b)); } \
CUEMU_FN type __hmin(type a, type b) { return type(fminf((float)a, (float)b)); } \
CUEMU_FN type __hfma(type a, type b, type c) \
{ \
	return type(cuemu::sum_to_odd((double)(float)a * (double)(float)b, (double)(float)c)); \
} \
CUEMU_FN type##2 __hadd2(type##2 a, type##2 b) { return { a.x + b.x, a.y + b.y }; } \
CUEMU_FN type##2 __hsub2(type##2 a, type##2 b) { return { a.x - b.x, a.y - b.y }; } \
CUEMU_FN type##2 __hmul2(type##2 a, type##2 b) { return { a.x * b.x, a.y * b.y }; } \
CUEMU_FN type##2 __h2div(type##2 a, type##2 b) { return { a.x / b.x, a.y / b.y }; } \
CUEMU_FN type##2 __hneg2(type##2 a) { return { -a.x, -a.y }; } \
CUEMU_FN type##2 __habs2(type##2 a) { return { __habs(a.x), __habs(a.y) }; } \
CUEMU_FN type##2 __hmax2(type##2 a, type##2 b) { return { __hmax(a.x, b.x), __hmax(a.y, b.y) }; } \
CUEMU_FN type##2 __hmin2(type##2 a, type##2 b) { return { __hmin(a.x, b.x), __hmin(a.y, b.y) }; } \
CUEMU_FN type##2 __hlt2(type##2 a, type##2 b) \
{ \
	return { type(a.x < b.x ? 1.0f : 0), type(a.y < b.y ? 1.0f : 0) }; \
} \
CUEMU_FN type##2 __hfma2(type##2 a, type##2 b, type##2 c) \
{ \
	return { __hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y) }; \
} \
CUEMU_FN float __low2float(type##2 v) { return (float)v.x; } \
CUEMU_FN float __high2float(type##2 v) { return (float)v.y; }

CUEMU_SHORT_FLOAT(__half, half_value, half_bits)
CUEMU_SHORT_FLOAT(__nv_bfloat16, bf16_value, bf16_bits)
#undef CUEMU_SHORT_FLOAT

/* NVIDIA's names of these differ between the two types. */
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
typedef __half half;
typedef __half2 half2;

CUEMU_FN float __half2float(__half h) { return (float)h; }
CUEMU_FN __half __float2half(float x) { return __half(x); }
CUEMU_FN __half __float2half_rn(float x) { return __half(x); }
CUEMU_FN __half __double2half(double x) { return __half(x); }
CUEMU_FN __half __int2half_rn(int x) { return __half(x); }
CUEMU_FN __half __uint2half_rn(unsigned int x) { return __half(x); }
CUEMU_FN unsigned short __half_as_ushort(__half h) { return h.raw; }
CUEMU_FN __half __ushort_as_half(unsigned short u) { return __half::of_bits(u); }
CUEMU_FN __half2 __half2half2(__half h) { return { h, h }; }
CUEMU_FN __half2 __float2half2_rn(float x) { return { __half(x), __half(x) }; }
CUEMU_FN __half2 __floats2half2_rn(float x, float y) { return { __half(x), __half(y) }; }
CUEMU_FN __half2 __float22half2_rn(float2 v) { return { __half(v.x), __half(v.y) }; }
CUEMU_FN __half2 __halves2half2(__half a, __half b) { return { a, b }; }
CUEMU_FN __half2 make_half2(__half a, __half b) { return { a, b }; }
CUEMU_FN float2 __half22float2(__half2 v) { return { (float)v.x, (float)v.y }; }
CUEMU_FN __half __low2half(__half2 v) { return v.x; }
CUEMU_FN __half __high2half(__half2 v) { return v.y; }
CUEMU_FN __half2 __low2half2(__half2 v) { return { v.x, v.x }; }
CUEMU_FN __half2 __high2half2(__half2 v) { return { v.y, v.y }; }
CUEMU_FN __half2 __lows2half2(__half2 a, __half2 b) { return { a.x, b.x }; }
CUEMU_FN __half2 __highs2half2(__half2 a, __half2 b) { return { a.y, b.y }; }
CUEMU_FN __half2 __lowhigh2highlow(__half2 v) { return { v.y, v.x }; }

CUEMU_FN float __bfloat162float(__nv_bfloat16 h) { return (float)h; }
CUEMU_FN __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
CUEMU_FN __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
CUEMU_FN unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.raw; }
CUEMU_FN __nv_bfloat16 __ushort_as_bfloat16(unsigned short u)
{
	return __nv_bfloat16::of_bits(u);
}
CUEMU_FN __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 h) { return { h, h }; }
CUEMU_FN __nv_bfloat162 __floats2bfloat162_rn(float x, float y)
{
	return { __nv_bfloat16(x), __nv_bfloat16(y) };
}
CUEMU_FN __nv_bfloat162 __float22bfloat162_rn(float2 v)
{
	return __floats2bfloat162_rn(v.x, v.y);
}
CUEMU_FN __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b)
{
	return { a, b };
}
CUEMU_FN float2 __bfloat1622float2(__nv_bfloat162 v) { return { (float)v.x, (float)v.y }; }
CUEMU_FN __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
CUEMU_FN __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }

/* Sign, four bits of exponent, three of fraction; of all ones, which is NaN, no infinity. */
CUEMU_FN unsigned short cuemu_e4m3_half(unsigned int byte)
{
	int exponent = (int)(byte >> 3 & 15), fraction = (int)(byte & 7);
	double x = exponent ? ldexp(8 + fraction, exponent - 10) : ldexp(fraction, -9);

	if ((byte & 0x7f) == 0x7f)
		return 0x7fff;
	return __half_as_ushort(__half((float)(byte & 0x80 ? -x : x)));
}
CUEMU_FN uint32_t cq_e4m3_halves(uint32_t x)
{
	return cuemu_e4m3_half(x & 0xff) | (uint32_t)cuemu_e4m3_half(x >> 8 & 0xff) << 16;
}

#endif /* CUEMU_HALF_HPP */
