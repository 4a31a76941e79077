/* SPDX-License-Identifier: MIT */
/*
 * Words and types of CUDA C++ for the CPU: our own declarations of what the
 * kernels use, so that no toolkit is needed.
 */
#ifndef CUEMU_TYPES_HPP
#define CUEMU_TYPES_HPP

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__ static
/* One block at a time on a thread of the OS, so this is the block's alone. */
#define __shared__ static thread_local
#define __align__(n) __attribute__((aligned(n)))
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__

#define CQ_DEVICE [[maybe_unused]] static inline
#define CUEMU_FN [[maybe_unused]] static inline

using std::max;
using std::min;

static constexpr int warpSize = 32;

struct uint3 { unsigned int x, y, z; };
struct int3 { int x, y, z; };
struct float3 { float x, y, z; };

struct dim3 {
	unsigned int x, y, z;

	constexpr dim3(unsigned int vx = 1, unsigned int vy = 1, unsigned int vz = 1)
		: x(vx), y(vy), z(vz) {}
};

#define CUEMU_VECTOR2(name, type) \
struct __align__(2 * sizeof(type)) name { type x, y; }; \
CUEMU_FN name make_##name(type x, type y) { return { x, y }; }
#define CUEMU_VECTOR4(name, type) \
struct __align__(sizeof(type) < 8 ? 4 * sizeof(type) : 16) name { type x, y, z, w; }; \
CUEMU_FN name make_##name(type x, type y, type z, type w) \
{ \
	return { x, y, z, w }; \
}

CUEMU_VECTOR2(char2, signed char)
CUEMU_VECTOR2(uchar2, unsigned char)
CUEMU_VECTOR2(short2, short)
CUEMU_VECTOR2(ushort2, unsigned short)
CUEMU_VECTOR2(int2, int)
CUEMU_VECTOR2(uint2, unsigned int)
CUEMU_VECTOR2(longlong2, long long)
CUEMU_VECTOR2(ulonglong2, unsigned long long)
CUEMU_VECTOR2(float2, float)
CUEMU_VECTOR2(double2, double)
CUEMU_VECTOR4(char4, signed char)
CUEMU_VECTOR4(uchar4, unsigned char)
CUEMU_VECTOR4(short4, short)
CUEMU_VECTOR4(ushort4, unsigned short)
CUEMU_VECTOR4(int4, int)
CUEMU_VECTOR4(uint4, unsigned int)
CUEMU_VECTOR4(float4, float)
#undef CUEMU_VECTOR2
#undef CUEMU_VECTOR4

static_assert(alignof(float4) == 16 && sizeof(float4) == 16, "as on the device");
static_assert(alignof(uint2) == 8 && alignof(ulonglong2) == 16, "as on the device");

#endif /* CUEMU_TYPES_HPP */
