/* SPDX-License-Identifier: MIT */
/*
 * The rows of the kernel table that AVX-512 has. attn_avx512.c and many_avx512.c
 * are compiled once for each:
 *
 * - avx512: F, BW, VL, DQ, VBMI, VNNI (Ice Lake, Zen 4 and later)
 * - avx512vnni: the same without VBMI (Cascade Lake, Cooper Lake)
 * - avx512bw: without either (Skylake-X)
 *
 * What they differ in is here and in planes_avx512.h: how a byte is looked up in
 * 256, how products of neighbours are summed. BF16 is used by none of them. The
 * including file defines CQK_VB as 64.
 */
#ifndef CQK_ISA_AVX512_H
#define CQK_ISA_AVX512_H

#ifdef CQK_SIMDE	/* the test has included SIMDe */
typedef simde__m512i zi;
typedef simde__m512 zf;
#else
#include <immintrin.h>
typedef __m512i zi;
typedef __m512 zf;
#endif
#include "kernels/vec.h"

#if defined(CQK_AVX512_BW)
#define ISA(name) name##bw
#define ISA_TEXT "avx512bw"
#define ISA_PRIORITY 14
#define ISA_VBMI 0
#define ISA_VNNI 0
#elif defined(CQK_AVX512_VNNI)
#define ISA(name) name##vnni
#define ISA_TEXT "avx512vnni"
#define ISA_PRIORITY 16
#define ISA_VBMI 0
#define ISA_VNNI 1
#else
#define ISA(name) name
#define ISA_TEXT "avx512"
#define ISA_PRIORITY 20
#define ISA_VBMI 1
#define ISA_VNNI 1
#endif

/*
 * acc + products of neighbours: two of 16 bits each, or four bytes, @x unsigned.
 * Not by intrinsics: what they take and return has another type than a sum of
 * 32 bits, and gcc 12 then moves accumulators about, some to the stack.
 */
#if !ISA_VNNI
INLINE vi dot_words(vi acc, zi x, zi y)
{
	return acc + (vi)_mm512_madd_epi16(x, y);
}
#elif defined(CQK_SIMDE)
INLINE vi dot_words(vi acc, zi x, zi y)
{
	return (vi)_mm512_dpwssd_epi32((zi)acc, x, y);
}

INLINE vi dot_bytes(vi acc, zi x, zi y)
{
	return (vi)_mm512_dpbusd_epi32((zi)acc, x, y);
}
#else
INLINE vi dot_words(vi acc, zi x, zi y)
{
	__asm__("vpdpwssd %2, %1, %0" : "+v" (acc) : "v" (x), "v" (y));
	return acc;
}

INLINE vi dot_bytes(vi acc, zi x, zi y)
{
	__asm__("vpdpbusd %2, %1, %0" : "+v" (acc) : "v" (x), "v" (y));
	return acc;
}
#endif

#endif /* CQK_ISA_AVX512_H */
