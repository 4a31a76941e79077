/* SPDX-License-Identifier: MIT */
/*
 * AVX-512 intrinsics by SIMDe (MIT, simd-everywhere.github.io), and exact
 * twins in C of those that SIMDe 0.7.4 lacks. Test builds only.
 */
#ifndef SIMDE_FILL_H
#define SIMDE_FILL_H

#include <math.h>
#include <string.h>
#include <simde/x86/avx512.h>

static inline simde__m512i fill_loadu(const void *p)
{
	simde__m512i x;

	memcpy(&x, p, sizeof(x));
	return x;
}

static inline void fill_storeu(void *p, simde__m512i x)
{
	memcpy(p, &x, sizeof(x));
}

/* Nearest, ties to even; out of range and NaN give INT32_MIN. */
static inline simde__m512i fill_cvtps_epi32(float __attribute__((vector_size(64))) x)
{
	int32_t out[16];
	simde__m512i r;
	int i;

	for (i = 0; i < 16; i++)
		out[i] = fabsf(x[i]) < 2147483648.0f ?
			 (int32_t)lrintf(x[i]) : INT32_MIN;
	memcpy(&r, out, sizeof(r));
	return r;
}

/* The low byte of each lane. */
static inline __m128i fill_cvtepi32_epi8(simde__m512i x)
{
	int32_t in[16];
	uint8_t out[16];
	__m128i r;
	int i;

	memcpy(in, &x, sizeof(in));
	for (i = 0; i < 16; i++)
		out[i] = (uint8_t)(in[i] & 0xff);
	memcpy(&r, out, sizeof(r));
	return r;
}

/* Sixteen bytes with their sign. */
static inline simde__m512i fill_cvtepi8_epi32(__m128i x)
{
	int8_t in[16];
	int32_t out[16];
	simde__m512i r;
	int i;

	memcpy(in, &x, sizeof(in));
	for (i = 0; i < 16; i++)
		out[i] = in[i];
	memcpy(&r, out, sizeof(r));
	return r;
}

/* Sixteen halves. */
static inline float __attribute__((vector_size(64))) fill_cvtph_ps(__m256i x)
{
	__m256 half[2] = { _mm256_cvtph_ps(_mm256_castsi256_si128(x)),
			   _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)) };
	float __attribute__((vector_size(64))) out;

	memcpy(&out, half, sizeof(out));
	return out;
}

#define __mmask64 simde__mmask64
#define __mmask32 simde__mmask32
#undef _mm512_loadu_si512
#define _mm512_loadu_si512 fill_loadu
#undef _mm512_storeu_si512
#define _mm512_storeu_si512 fill_storeu
#undef _mm512_cvtph_ps
#define _mm512_cvtph_ps fill_cvtph_ps
#undef _mm512_sqrt_ps
#define _mm512_sqrt_ps simde_mm512_sqrt_ps
#undef __m512
#define __m512 simde__m512
#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32 fill_cvtps_epi32
#undef _mm512_permutex2var_epi8
#define _mm512_permutex2var_epi8 simde_mm512_permutex2var_epi8
#undef _mm512_permutex2var_epi16
#define _mm512_permutex2var_epi16 simde_mm512_permutex2var_epi16
#undef _mm512_mask_blend_epi16
#define _mm512_mask_blend_epi16 simde_mm512_mask_blend_epi16
#undef _mm512_movepi16_mask
#define _mm512_movepi16_mask simde_mm512_movepi16_mask
#undef _mm512_shuffle_epi8
#define _mm512_shuffle_epi8 simde_mm512_shuffle_epi8
#undef _mm512_mask_shuffle_epi8
#define _mm512_mask_shuffle_epi8 simde_mm512_mask_shuffle_epi8
#undef _mm512_madd_epi16
#define _mm512_madd_epi16 simde_mm512_madd_epi16
#undef _mm512_slli_epi16
#define _mm512_slli_epi16 simde_mm512_slli_epi16
#undef _mm512_srli_epi32
#define _mm512_srli_epi32 simde_mm512_srli_epi32
#undef _mm512_mask_blend_epi8
#define _mm512_mask_blend_epi8 simde_mm512_mask_blend_epi8
#undef _mm512_movepi8_mask
#define _mm512_movepi8_mask simde_mm512_movepi8_mask
#undef _mm512_set1_epi32
#define _mm512_set1_epi32 simde_mm512_set1_epi32
#undef _mm512_set1_epi16
#define _mm512_set1_epi16 simde_mm512_set1_epi16
#undef _mm512_setzero_si512
#define _mm512_setzero_si512 simde_mm512_setzero_si512
#undef _mm512_unpacklo_epi8
#define _mm512_unpacklo_epi8 simde_mm512_unpacklo_epi8
#undef _mm512_unpackhi_epi8
#define _mm512_unpackhi_epi8 simde_mm512_unpackhi_epi8
#undef _mm512_unpacklo_epi16
#define _mm512_unpacklo_epi16 simde_mm512_unpacklo_epi16
#undef _mm512_unpackhi_epi16
#define _mm512_unpackhi_epi16 simde_mm512_unpackhi_epi16
#undef _mm512_mulhrs_epi16
#define _mm512_mulhrs_epi16 simde_mm512_mulhrs_epi16
#undef _mm512_srai_epi16
#define _mm512_srai_epi16 simde_mm512_srai_epi16
#undef _mm512_add_epi16
#define _mm512_add_epi16 simde_mm512_add_epi16
#undef _mm512_sub_epi16
#define _mm512_sub_epi16 simde_mm512_sub_epi16
#undef _mm512_dpwssd_epi32
#define _mm512_dpwssd_epi32 simde_mm512_dpwssd_epi32
#undef _mm512_dpbusd_epi32
#define _mm512_dpbusd_epi32 simde_mm512_dpbusd_epi32
#undef _mm512_packus_epi32
#define _mm512_packus_epi32 simde_mm512_packus_epi32
#undef _mm512_packus_epi16
#define _mm512_packus_epi16 simde_mm512_packus_epi16
#undef _mm512_and_si512
#define _mm512_and_si512 simde_mm512_and_si512
#undef _mm512_srli_epi16
#define _mm512_srli_epi16 simde_mm512_srli_epi16
#undef _mm512_cvtepi32_epi8
#define _mm512_cvtepi32_epi8 fill_cvtepi32_epi8
#undef _mm512_cvtepi8_epi32
#define _mm512_cvtepi8_epi32 fill_cvtepi8_epi32
#undef _mm512_unpacklo_epi32
#define _mm512_unpacklo_epi32 simde_mm512_unpacklo_epi32
#undef _mm512_unpackhi_epi32
#define _mm512_unpackhi_epi32 simde_mm512_unpackhi_epi32
#undef _mm512_unpacklo_epi64
#define _mm512_unpacklo_epi64 simde_mm512_unpacklo_epi64
#undef _mm512_unpackhi_epi64
#define _mm512_unpackhi_epi64 simde_mm512_unpackhi_epi64
#undef _mm512_set_epi64
#define _mm512_set_epi64 simde_mm512_set_epi64
#undef _mm512_set1_epi8
#define _mm512_set1_epi8 simde_mm512_set1_epi8
#undef _mm512_srlv_epi16
#define _mm512_srlv_epi16 simde_mm512_srlv_epi16
#undef _mm512_broadcast_i32x4
#define _mm512_broadcast_i32x4 simde_mm512_broadcast_i32x4
#undef _mm512_castsi256_si512
#define _mm512_castsi256_si512 simde_mm512_castsi256_si512
#undef _mm512_inserti64x4
#define _mm512_inserti64x4 simde_mm512_inserti64x4

#endif /* SIMDE_FILL_H */
