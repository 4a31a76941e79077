/* SPDX-License-Identifier: MIT */
/*
 * Wrappers of PTX, for nvcc. Each has a twin in tests/emu; dev.h says what
 * they do. All that is here runs on sm_80 and later.
 */
#ifndef CQK_CUDA_PTX_CUH
#define CQK_CUDA_PTX_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#define CQ_KERNEL(threads, name, params) \
	extern "C" __global__ void __launch_bounds__(threads) name params
/* The compiler shall keep registers few enough for that many blocks at once. */
#define CQ_KERNEL_BLOCKS(threads, blocks, name, params) \
	extern "C" __global__ void __launch_bounds__(threads, blocks) name params

#define CQ_DYN_SHARED_ALIGNED(align, type, name) \
	extern __shared__ __align__(align) unsigned char cq_dyn_shared_##align[]; \
	type *const name = reinterpret_cast<type *>(cq_dyn_shared_##align)
#define CQ_DYN_SHARED(type, name)	CQ_DYN_SHARED_ALIGNED(16, type, name)

#define CQ_DEVICE static __device__ __forceinline__

CQ_DEVICE unsigned int cq_shared_addr(const void *s)
{
	return static_cast<unsigned int>(__cvta_generic_to_shared(s));
}

CQ_DEVICE void cq_cp_async16(void *s, const void *g)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
		     :: "r"(cq_shared_addr(s)), "l"(g) : "memory");
}

CQ_DEVICE void cq_cp_async16_zfill(void *s, const void *g, unsigned int bytes)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
		     :: "r"(cq_shared_addr(s)), "l"(g), "r"(bytes) : "memory");
}

CQ_DEVICE void cq_cp_commit()
{
	asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int groups>
CQ_DEVICE void cq_cp_wait()
{
	asm volatile("cp.async.wait_group %0;" :: "n"(groups) : "memory");
}

#define CQ_LDMATRIX(what, ptx) \
CQ_DEVICE void cq_ldmatrix_x1##what(uint32_t r[1], const void *s) \
{ \
	asm volatile("ldmatrix.sync.aligned.m8n8.x1" ptx ".shared.b16 {%0}, [%1];" \
		     : "=r"(r[0]) : "r"(cq_shared_addr(s)) : "memory"); \
} \
CQ_DEVICE void cq_ldmatrix_x2##what(uint32_t r[2], const void *s) \
{ \
	asm volatile("ldmatrix.sync.aligned.m8n8.x2" ptx ".shared.b16 {%0,%1}, [%2];" \
		     : "=r"(r[0]), "=r"(r[1]) : "r"(cq_shared_addr(s)) : "memory"); \
} \
CQ_DEVICE void cq_ldmatrix_x4##what(uint32_t r[4], const void *s) \
{ \
	asm volatile("ldmatrix.sync.aligned.m8n8.x4" ptx ".shared.b16 {%0,%1,%2,%3}, [%4];" \
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) \
		     : "r"(cq_shared_addr(s)) : "memory"); \
}
CQ_LDMATRIX(, "")
CQ_LDMATRIX(_trans, ".trans")
#undef CQ_LDMATRIX

/* An 8x8 matrix of 16-bit values, two of row lane / 4 in each lane, transposed. */
CQ_DEVICE uint32_t cq_movmatrix_trans(uint32_t a)
{
	uint32_t d;

	asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(a));
	return d;
}

#define CQ_MMA_16816(what, type) \
CQ_DEVICE void cq_mma_16816_##what(float d[4], const uint32_t a[4], const uint32_t b[2]) \
{ \
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 " \
		     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
		     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) \
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); \
}
CQ_MMA_16816(f32, "f16")
CQ_MMA_16816(bf16, "bf16")
#undef CQ_MMA_16816

CQ_DEVICE void cq_mma_1688_f32(float d[4], const uint32_t a[2], const uint32_t b[1])
{
	asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
		     "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
		     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
		     : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

CQ_DEVICE void cq_mma_16816_sum(float d[4], const uint32_t a[4], const uint32_t b[2],
				const float c[4])
{
	asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
	    "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
	    : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
	    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]),
	      "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

CQ_DEVICE void cq_mma_1688_sum(float d[4], const uint32_t a[2], const uint32_t b[1],
			       const float c[4])
{
	asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
	    "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"
	    : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
	    : "r"(a[0]), "r"(a[1]), "r"(b[0]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

/* The least of three: one instruction on sm_90 and sm_100. */
CQ_DEVICE int cq_least(int a, int b, int c)
{
	return __vimin3_s32(a, b, c);
}

/* One result bit per row of the table @lut, looked up by the bits of a, b, c. */
template <int lut>
CQ_DEVICE uint32_t cq_lop3(uint32_t a, uint32_t b, uint32_t c)
{
	uint32_t r;

	asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(a), "r"(b), "r"(c), "n"(lut));
	return r;
}

/* ex2.approx: 2^x, absolute error of the result about 2^-22. */
CQ_DEVICE float cq_exp2(float x)
{
	float r;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
	return r;
}

#if __CUDA_ARCH__ >= 890
/* Two numbers of e4m3, the low bytes of @x, as halves. */
CQ_DEVICE uint32_t cq_e4m3_halves(uint32_t x)
{
	uint32_t r;

	asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"((uint16_t)x));
	return r;
}
#endif

/* The same number, of which the compiler knows nothing. */
CQ_DEVICE uint32_t cq_keep(uint32_t x)
{
	asm volatile("" : "+r"(x));
	return x;
}

#endif /* CQK_CUDA_PTX_CUH */
