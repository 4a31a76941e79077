// SPDX-License-Identifier: MIT
/*
 * What this CPU and its operating system can run.
 *
 * Own CPUID code: compilers differ in the names that __builtin_cpu_supports()
 * knows. A feature counts only if the OS saves the registers it uses (XCR0).
 */
#ifdef __x86_64__
#include <cpuid.h>
#include "kernels/attn.h"

/* CPUID.1:ECX */
#define ECX1_FMA	(1u << 12)
#define ECX1_OSXSAVE	(1u << 27)
#define ECX1_F16C	(1u << 29)
/* CPUID.7.0 */
#define EBX7_AVX2	(1u << 5)
#define EBX7_AVX512F	(1u << 16)
#define EBX7_AVX512DQ	(1u << 17)
#define EBX7_AVX512BW	(1u << 30)
#define EBX7_AVX512VL	(1u << 31)
#define ECX7_VBMI	(1u << 1)
#define ECX7_VNNI	(1u << 11)
/* XCR0: SSE and AVX state; opmask, upper halves, upper sixteen registers */
#define XCR0_AVX	0x06u
#define XCR0_AVX512	0xe6u

struct cpu_words {
	uint32_t ecx1, ebx7, ecx7, xcr0;
};

static void cpu_read(struct cpu_words *w)
{
	uint32_t a, b, c, d;

	*w = (struct cpu_words){ 0 };
	if (!__get_cpuid(1, &a, &b, &c, &d))
		return;
	w->ecx1 = c;
	if (!(c & ECX1_OSXSAVE))
		return;
	__asm__ volatile("xgetbv" : "=a"(w->xcr0), "=d"(d) : "c"(0));
	if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
		return;
	w->ebx7 = b;
	w->ecx7 = c;
}

static bool has(uint32_t word, uint32_t bits)
{
	return (word & bits) == bits;
}

/**
 * cqk_cpu_has_avx2() - AVX2, FMA and F16C
 *
 * Return: true if CPU and OS have all three.
 */
bool cqk_cpu_has_avx2(void)
{
	struct cpu_words w;

	cpu_read(&w);
	return has(w.ecx1, ECX1_FMA | ECX1_F16C) && has(w.ebx7, EBX7_AVX2) &&
	       has(w.xcr0, XCR0_AVX);
}

/* AVX-512 F, BW, VL, DQ and what of @ecx7. */
static bool has_avx512(uint32_t ecx7)
{
	struct cpu_words w;

	cpu_read(&w);
	return cqk_cpu_has_avx2() && has(w.xcr0, XCR0_AVX512) &&
	       has(w.ebx7, EBX7_AVX512F | EBX7_AVX512DQ | EBX7_AVX512BW |
		   EBX7_AVX512VL) &&
	       has(w.ecx7, ecx7);
}

/**
 * cqk_cpu_has_avx512bw() - AVX-512 F, BW, VL and DQ
 *
 * Return: true if CPU and OS have all of them (and what AVX2 needs).
 */
bool cqk_cpu_has_avx512bw(void)
{
	return has_avx512(0);
}

/**
 * cqk_cpu_has_avx512vnni() - VNNI beside them
 *
 * Return: true if CPU and OS have all of them.
 */
bool cqk_cpu_has_avx512vnni(void)
{
	return has_avx512(ECX7_VNNI);
}

/**
 * cqk_cpu_has_avx512() - VBMI and VNNI beside them
 *
 * Return: true if CPU and OS have all of them.
 */
bool cqk_cpu_has_avx512(void)
{
	return has_avx512(ECX7_VBMI | ECX7_VNNI);
}
#endif /* __x86_64__ */
