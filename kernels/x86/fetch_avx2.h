/* SPDX-License-Identifier: MIT */
/*
 * Eight channels of one token from a stored block, as floats, in a register.
 * The kind of storage is a compile-time constant of the caller's loop.
 */
#ifndef CQK_FETCH_AVX2_H
#define CQK_FETCH_AVX2_H

#include <immintrin.h>
#include <string.h>
#include "kernels/attn.h"

/*
 * FETCH_<type><channels per group>: what a group's centroid looks like; W: one of
 * 1,024, the code's upper bits are to be had behind the byte planes.
 */
enum fetch_kind {
	FETCH_NONE,		/* not here: decode to a tile instead */
	FETCH_ROW,		/* halves, no codes */
	FETCH_H8, FETCH_H4, FETCH_H2,
	FETCH_B8, FETCH_B4, FETCH_B2,
	FETCH_H8W, FETCH_B8W,
};

/**
 * struct feed - a block as the fetching loop needs it
 * @data:   codes or rows
 * @upper:  upper bits of wide codes
 * @stored: centroids of the kv head, [group][256 or 1,024][c], as stored
 * @scale:  [d] for i8
 * @d:      channels
 * @ahead:  what is read next, @ahead_row bytes for each token; NULL: nothing
 */
struct feed {
	const uint8_t *data;
	const uint8_t *upper;
	const uint8_t *stored;
	const float *scale;
	size_t d;
	const uint8_t *ahead;
	size_t ahead_row;
};

static inline enum fetch_kind feed_kind(const struct cqk_src *src)
{
	bool i8 = src->cb && src->cb->centroids == CQK_CENTROIDS_I8;

	if (src->d % 8)
		return FETCH_NONE;
	if (!src->cb)
		return FETCH_ROW;
	if (!cqk_byte_codes(src->cb))
		return src->cb->code.channels != 8 ? FETCH_NONE : i8 ? FETCH_B8W : FETCH_H8W;
	if (src->cb->code.channels == 8)
		return i8 ? FETCH_B8 : FETCH_H8;
	if (src->cb->code.channels == 4)
		return i8 ? FETCH_B4 : FETCH_H4;
	if (src->cb->code.channels == 2)
		return i8 ? FETCH_B2 : FETCH_H2;
	return FETCH_NONE;
}

static inline void feed_init(struct feed *f, const struct cqk_src *src)
{
	size_t at = (size_t)src->kv_head * src->d;

	*f = (struct feed){ .data = src->data, .d = src->d };
	if (!src->cb)
		return;
	f->upper = src->data + (size_t)src->cb->n_groups * CQK_T;
	f->stored = (const uint8_t *)src->cb->stored + at * cqk_code_centroids(src->cb->code) *
		    (src->cb->centroids == CQK_CENTROIDS_I8 ? 1 : 2);
	f->scale = src->cb->scale ? src->cb->scale + at : NULL;
}

static inline int32_t fetch_u32(const uint8_t *p)
{
	int32_t x;

	memcpy(&x, p, sizeof(x));
	return x;
}

static inline int32_t fetch_u16(const uint8_t *p)
{
	uint16_t x;

	memcpy(&x, p, sizeof(x));
	return x;
}

static inline long long fetch_u64(const uint8_t *p)
{
	long long x;

	memcpy(&x, p, sizeof(x));
	return x;
}

/* Four groups of @size bytes each, in order, as one vector of 4 * 32 bits. */
#define FETCH_FOUR(load, base, code, size)					\
	_mm_setr_epi32(load((base) + (size_t)(code)[0] * (size)),		\
		       load((base) + (CQK_CENTROIDS + (size_t)(code)[64]) * (size)), \
		       load((base) + (2 * CQK_CENTROIDS + (size_t)(code)[128]) * (size)), \
		       load((base) + (3 * CQK_CENTROIDS + (size_t)(code)[192]) * (size)))

static inline __attribute__((always_inline))
__m256 fetch_i8(__m128i x, const float *scale)
{
	return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)),
			     _mm256_loadu_ps(scale));
}

/* The same from one of 1,024 centroids. */
static inline __attribute__((always_inline))
__m256 fetch8_wide(const bool i8, const struct feed *f, size_t t, size_t ch)
{
	size_t upper = f->upper[ch / 8 * CQ_UPPER_BYTES + t % CQ_UPPER_BYTES];
	size_t k = f->data[ch / 8 * 64 + t] | (upper >> t / CQ_UPPER_BYTES * 2 & 3) << 8;
	const uint8_t *at = f->stored + (ch * CQK_CENTROIDS_10 + k * 8) * (i8 ? 1 : 2);

	if (i8)
		return fetch_i8(_mm_loadl_epi64((const __m128i *)(const void *)at),
				f->scale + ch);
	return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)at));
}

/* Channels @ch .. @ch + 7 of token @t. */
static inline __attribute__((always_inline))
__m256 fetch8(const enum fetch_kind kind, const struct feed *f, size_t t, size_t ch)
{
	const uint8_t *table = f->stored + ch * CQK_CENTROIDS * 2;
	const uint8_t *bytes = f->stored + ch * CQK_CENTROIDS;
	const uint8_t *code;
	__m128i x;

	if (kind == FETCH_H8W || kind == FETCH_B8W)
		return fetch8_wide(kind == FETCH_B8W, f, t, ch);
	if (kind == FETCH_ROW)
		return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)
				(const void *)(f->data + (t * f->d + ch) * 2)));
	if (kind == FETCH_H8 || kind == FETCH_B8) {
		size_t k = f->data[ch / 8 * 64 + t];

		if (kind == FETCH_B8)
			return fetch_i8(_mm_loadl_epi64((const __m128i *)
					(const void *)(bytes + k * 8)), f->scale + ch);
		return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)
				       (const void *)(table + k * 16)));
	}
	if (kind == FETCH_H4) {
		code = f->data + ch / 4 * 64 + t;
		x = _mm_set_epi64x(fetch_u64(table + (CQK_CENTROIDS + (size_t)code[64]) * 8),
				   fetch_u64(table + (size_t)code[0] * 8));
		return _mm256_cvtph_ps(x);
	}
	if (kind == FETCH_B4) {
		code = f->data + ch / 4 * 64 + t;
		x = _mm_setr_epi32(fetch_u32(bytes + (size_t)code[0] * 4),
				   fetch_u32(bytes + (CQK_CENTROIDS + (size_t)code[64]) * 4),
				   0, 0);
		return fetch_i8(x, f->scale + ch);
	}
	code = f->data + ch / 2 * 64 + t;
	if (kind == FETCH_H2)
		return _mm256_cvtph_ps(FETCH_FOUR(fetch_u32, table, code, 4));
	x = FETCH_FOUR(fetch_u16, bytes, code, 2);
	return fetch_i8(_mm_packus_epi32(x, x), f->scale + ch);
}

#endif /* CQK_FETCH_AVX2_H */
