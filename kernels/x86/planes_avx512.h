/* SPDX-License-Identifier: MIT */
/*
 * 8-bit centroids as [channel][256]; the including file defines zi (a 512-bit
 * integer) and includes tile.h.
 */
#ifndef CQK_PLANES_AVX512_H
#define CQK_PLANES_AVX512_H

/* 64 tokens of one channel: its 256 centroids are four registers. */
INLINE zi decode64(const int8_t *plane, zi codes, __mmask64 upper)
{
	zi a = _mm512_permutex2var_epi8(_mm512_loadu_si512(plane), codes,
					_mm512_loadu_si512(plane + 64));
	zi b = _mm512_permutex2var_epi8(_mm512_loadu_si512(plane + 128), codes,
					_mm512_loadu_si512(plane + 192));

	return _mm512_mask_blend_epi8(upper, a, b);
}

#endif /* CQK_PLANES_AVX512_H */
