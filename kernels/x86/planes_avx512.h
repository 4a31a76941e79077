/* SPDX-License-Identifier: MIT */
/* Look-ups in 8-bit centroids as [channel][256], 64 tokens of a group at a time. */
#ifndef CQK_PLANES_AVX512_H
#define CQK_PLANES_AVX512_H

#include "kernels/x86/isa_avx512.h"

/*
 * struct codes64 - the codes of 64 tokens, ready for look-ups in any channel
 *
 * With VBMI: @byte as they are, @upper the tokens whose code has its highest bit.
 *
 * Without it a look-up is for words, 32 at a time of 64 that two registers hold,
 * for tokens of even place (0) and of odd place (1): a code without its lowest bit
 * is the number of a word, @word, and @pick the place of either byte in it.
 */
struct codes64 {
#if ISA_VBMI
	zi byte;
	__mmask64 upper;
#else
	zi word[2], pick;
	__mmask32 upper[2];
#endif
};

#if ISA_VBMI
INLINE struct codes64 codes_load(const uint8_t *codes)
{
	struct codes64 c;

	c.byte = _mm512_loadu_si512(codes);
	c.upper = _mm512_movepi8_mask(c.byte);
	return c;
}

/* 64 tokens of one channel: its 256 centroids are four registers. */
INLINE zi decode64(const int8_t *plane, struct codes64 c)
{
	zi a = _mm512_permutex2var_epi8(_mm512_loadu_si512(plane), c.byte,
					_mm512_loadu_si512(plane + 64));
	zi b = _mm512_permutex2var_epi8(_mm512_loadu_si512(plane + 128), c.byte,
					_mm512_loadu_si512(plane + 192));

	return _mm512_mask_blend_epi8(c.upper, a, b);
}
#else
INLINE struct codes64 codes_load(const uint8_t *codes)
{
	/* the first byte of each byte's word */
	const vi first = { 0x02020000, 0x06060404, 0x0a0a0808, 0x0e0e0c0c,
			   0x02020000, 0x06060404, 0x0a0a0808, 0x0e0e0c0c,
			   0x02020000, 0x06060404, 0x0a0a0808, 0x0e0e0c0c,
			   0x02020000, 0x06060404, 0x0a0a0808, 0x0e0e0c0c };
	zi x = _mm512_loadu_si512(codes);
	struct codes64 c;

	c.word[0] = _mm512_srli_epi16(x, 1);	/* bits beyond the sixth do not count */
	c.word[1] = _mm512_srli_epi16(x, 9);
	c.upper[0] = _mm512_movepi16_mask(_mm512_slli_epi16(x, 8));
	c.upper[1] = _mm512_movepi16_mask(x);
	c.pick = (zi)(((vi)x & 0x01010101) | first);
	return c;
}

/* The words that have the centroids of every second token. */
INLINE zi decode_words(const int8_t *plane, struct codes64 c, const int odd)
{
	zi a = _mm512_permutex2var_epi16(_mm512_loadu_si512(plane), c.word[odd],
					 _mm512_loadu_si512(plane + 64));
	zi b = _mm512_permutex2var_epi16(_mm512_loadu_si512(plane + 128), c.word[odd],
					 _mm512_loadu_si512(plane + 192));

	return _mm512_mask_blend_epi16(c.upper[odd], a, b);
}

/* 64 tokens of one channel. */
INLINE zi decode64(const int8_t *plane, struct codes64 c)
{
	zi even = _mm512_shuffle_epi8(decode_words(plane, c, 0), c.pick);

	return _mm512_mask_shuffle_epi8(even, 0xaaaaaaaaaaaaaaaaull,
					decode_words(plane, c, 1), c.pick);
}
#endif

#endif /* CQK_PLANES_AVX512_H */
