// SPDX-License-Identifier: MIT
/*
 * NVIDIA's own halves, for the test that compares ours with them. Built only
 * where their headers are installed; no toolkit is needed for the rest.
 */
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

static_assert(sizeof(__half2) == 4 && alignof(__half2) == 4 && alignof(__half) == 2, "as ours");
static_assert(sizeof(__nv_bfloat162) == 4 && alignof(__nv_bfloat162) == 4, "as ours");
static_assert(sizeof(float4) == 16 && alignof(float4) == 16 && alignof(float2) == 8, "as ours");
static_assert(alignof(uint4) == 16 && alignof(uint2) == 8 && alignof(ushort4) == 8, "as ours");
static_assert(alignof(uchar4) == 4 && alignof(ulonglong2) == 16 && sizeof(dim3) == 12, "as ours");

EXPORT unsigned short nvidia_half(float x)
{
	return static_cast<__half_raw>(__float2half_rn(x)).x;
}

EXPORT unsigned short nvidia_half_of_double(double x)
{
	return static_cast<__half_raw>(__double2half(x)).x;
}

EXPORT float nvidia_half_value(unsigned short bits)
{
	__half_raw raw;

	raw.x = bits;
	return __half2float(raw);
}

EXPORT unsigned short nvidia_bf16(float x)
{
	return static_cast<__nv_bfloat16_raw>(__float2bfloat16_rn(x)).x;
}

EXPORT float nvidia_bf16_value(unsigned short bits)
{
	__nv_bfloat16_raw raw;

	raw.x = bits;
	return __bfloat162float(raw);
}
