/* SPDX-License-Identifier: MIT */
/*
 * Codes of 10 bits and 8-bit centroids: planes of 64 tokens per channel, as
 * decode64() gives them for codes of 8 bits. The 8 channels of a centroid are 8
 * bytes as they are stored, one load a token; bytes are then unpacked four times.
 * Centroids of a group are 8 KiB, so they stay in L1 for all pages of a batch. The
 * same for all rows of isa_avx512.h: no VBMI is needed.
 *
 * In registers a channel would take eight vpermi2b, seven blends and sixteen
 * registers: measured, the same time, and 1.7 times as much for one page, which
 * loads these registers anew.
 */
#ifndef CQK_WIDE_AVX512_H
#define CQK_WIDE_AVX512_H

#include "kernels/x86/isa_avx512.h"

#define WIDE_CHANNELS 8u	/* of a group */
#define WIDE_WORDS 16		/* codes of a group, four to a word */

INLINE bool wide_codes(const struct cqk_codebook *cb)
{
	return !cqk_byte_codes(cb);
}

/* Look-ups here and decode64() take these centroids. NULL has none. */
INLINE bool has_look_up(const struct cqk_codebook *cb)
{
	return cqk_has_planes(cb) || (cqk_has_i8(cb) && cb->code.channels == WIDE_CHANNELS);
}

/* Centroids of a head: [channel][256], or [group][1024][8] for codes of 10 bits. */
INLINE const int8_t *look_up_of(const struct cqk_codebook *cb, uint32_t head)
{
	size_t at = (size_t)head * cb->head_dim * cqk_code_centroids(cb->code);

	return wide_codes(cb) ? (const int8_t *)cb->stored + at : cb->i8 + at;
}

/*
 * Codes of group @g of @block: word 8 h + 2 l + k has tokens 16 l + 8 h + 4 k to
 * 3 more. What is to load them comes some groups later: it does not wait then.
 */
INLINE void wide_join(const struct cqk_codebook *cb, const uint8_t *block, uint32_t g,
		      uint64_t *out)
{
	/* 16-bit shifts by 0, 2, 4, 6: what comes from the next byte is masked */
	const zi by = _mm512_set_epi64(0x0006000600060006, 0x0006000600060006,
				       0x0004000400040004, 0x0004000400040004,
				       0x0002000200020002, 0x0002000200020002, 0, 0);
	const uint8_t *upper = block + (size_t)cb->n_groups * CQK_T + (size_t)g * CQ_UPPER_BYTES;
	zi x = _mm512_loadu_si512(block + (size_t)g * CQK_T);
	zi y = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)upper));

	y = _mm512_and_si512(_mm512_srlv_epi16(y, by), _mm512_set1_epi8(3));
	_mm512_storeu_si512(out, _mm512_unpacklo_epi8(x, y));
	_mm512_storeu_si512(out + WIDE_WORDS / 2, _mm512_unpackhi_epi8(x, y));
}

/* Two centroids. */
INLINE __m128i wide_two(const int8_t *centroids, size_t a, size_t b)
{
	const void *first = centroids + a * WIDE_CHANNELS;
	const void *second = centroids + b * WIDE_CHANNELS;

	return _mm_castpd_si128(_mm_loadh_pd(_mm_castsi128_pd(_mm_loadl_epi64(first)),
					     second));
}

/* @x[0]: tokens 0 and 2 of a word, @x[1]: 1 and 3. */
INLINE void wide_four(const int8_t *centroids, uint64_t word, __m128i *x)
{
	uint32_t low = (uint32_t)word, high = (uint32_t)(word >> 32);

	x[0] = wide_two(centroids, (uint16_t)low, (uint16_t)high);
	x[1] = wide_two(centroids, low >> 16, high >> 16);
}

INLINE zi wide_zi(__m128i a, __m128i b, __m128i c, __m128i d)
{
	__m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
	__m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(c), d, 1);

	return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/* Four of each 16 tokens, two side by side: of every other word from @word on. */
INLINE void wide_pairs(const int8_t *centroids, const uint64_t *word, zi *x)
{
	__m128i a[2], b[2], c[2], d[2];
	zi even, odd;

	wide_four(centroids, word[0], a);
	wide_four(centroids, word[2], b);
	wide_four(centroids, word[4], c);
	wide_four(centroids, word[6], d);
	even = wide_zi(a[0], b[0], c[0], d[0]);
	odd = wide_zi(a[1], b[1], c[1], d[1]);
	x[0] = _mm512_unpacklo_epi8(even, odd);
	x[1] = _mm512_unpackhi_epi8(even, odd);
}

/*
 * Planes of group @g into @out[0 .. 7]. @centroids: of the head; @words: its
 * codes. Every step doubles the tokens that lie side by side, in each 16 of them.
 */
static void wide_planes(const int8_t *centroids, uint32_t g, const uint64_t *words,
			int8_t (*out)[CQK_T])
{
	zi x[8], y[8];
	int m, h;

	centroids += (size_t)g * CQK_CENTROIDS_10 * WIDE_CHANNELS;
	wide_pairs(centroids, words, x);
	wide_pairs(centroids, words + 1, x + 2);
	wide_pairs(centroids, words + 8, x + 4);
	wide_pairs(centroids, words + 9, x + 6);
	for (m = 0; m < 4; m++) {	/* channels 0 to 3, 4 to 7 */
		y[2 * m] = _mm512_unpacklo_epi16(x[2 * m], x[2 * m + 1]);
		y[2 * m + 1] = _mm512_unpackhi_epi16(x[2 * m], x[2 * m + 1]);
	}
	for (m = 0; m < 8; m += 4)	/* two channels each */
		for (h = 0; h < 2; h++) {
			x[m + 2 * h] = _mm512_unpacklo_epi32(y[m + h], y[m + 2 + h]);
			x[m + 2 * h + 1] = _mm512_unpackhi_epi32(y[m + h], y[m + 2 + h]);
		}
	for (m = 0; m < 4; m++) {
		_mm512_storeu_si512(out[2 * m], _mm512_unpacklo_epi64(x[m], x[4 + m]));
		_mm512_storeu_si512(out[2 * m + 1], _mm512_unpackhi_epi64(x[m], x[4 + m]));
	}
}

#endif /* CQK_WIDE_AVX512_H */
