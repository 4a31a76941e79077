/* SPDX-License-Identifier: MIT */
/*
 * Codes of a destination's rows, as the portable encoder has them, bit by bit: distances
 * are summed in its order, each step rounded, no fused multiply-add. Here all of a
 * group's are computed, of codes of 10 bits a quarter at a time; near.cuh has them for the
 * few centroids that can be the nearest.
 */
#ifndef CQK_CUDA_ENCODE_CUH
#define CQK_CUDA_ENCODE_CUH

#include "kernels/cuda/load.cuh"

#define WARPS (CQKD_THREADS / 32)
#define PER_LANE (CQKD_CENTROIDS / 32)
#define ALL_LANES 0xffffffffu

/* What one block of threads works on. */
struct put {
	const struct cqkd_view *view;
	const struct cqkd_book *book;
	const struct cqkd_near *near;
	const struct cqkd_dest *to;
	uint32_t head, v;
	uint32_t pitch;		/* halves between rows in shared memory */
	uint64_t offset;	/* of the layer in a page */
	bool plain;		/* x is multiplied with halves of the book as they are */
};

/* Where codes are, as a place of 32 bits: registers are few. */
CQ_DEVICE uint8_t *code_at(const struct put &w, uint32_t at)
{
	return cqkd_ptr<uint8_t>(w.to->codes) + w.offset + at;
}

CQ_DEVICE void code_store(const struct put &w, uint32_t at, uint32_t code)
{
	*code_at(w, at) = (uint8_t)code;
}

/* Numbers that are loaded at once. */
template <int bytes> struct wide;
template <> struct wide<16> { typedef uint4 type; };
template <> struct wide<8> { typedef uint2 type; };
template <> struct wide<4> { typedef uint32_t type; };
template <> struct wide<2> { typedef uint16_t type; };

/* The same as words, the last one perhaps not whole. */
template <int bytes>
CQ_DEVICE void words_load(const void *from, uint32_t *to)
{
	typename wide<bytes>::type got = *(const typename wide<bytes>::type *)from;

	to[0] = 0;
	memcpy(to, &got, bytes);
}

CQ_DEVICE void half2_floats(uint32_t bits, float *to)
{
	__half2 pair;

	memcpy(&pair, &bits, sizeof(pair));
	to[0] = __low2float(pair);
	to[1] = __high2float(pair);
}

/* The channels of a group of a row. */
template <int c>
CQ_DEVICE void channels_load(const __half *x, float *to)
{
	uint32_t word[c / 2];
	int j;

	words_load<2 * c>(x, word);
#pragma unroll
	for (j = 0; j < c; j += 2)
		half2_floats(word[j / 2], to + j);
}

/* Signed byte @i of a word of which all bytes had their top bit flipped. */
CQ_DEVICE float byte_float(uint32_t flipped, int i)
{
	/* 2^23 + byte + 128, and exact without them */
	return __fsub_rn(__uint_as_float(__byte_perm(flipped, 0x4b000000u, 0x7540 | i)),
			 8388736.0f);
}

/* What x is multiplied with, of centroid @k of all groups of all kv heads, which is @group's. */
template <int c, bool plain>
CQ_DEVICE void centroid_load(const struct cqkd_book &b, uint32_t group, uint32_t k, float *to)
{
	uint32_t at = k * c;
	const float *metric = cqkd_ptr<const float>(b.metric) + group * c;
	const float *scale = cqkd_ptr<const float>(b.scale) + group * c;
	uint32_t word[c / 2];
	int j;

	if (!plain && b.i8) {
		words_load<c>(cqkd_ptr<const int8_t>(b.i8) + at, word);
#pragma unroll
		for (j = 0; j < c; j++)
			to[j] = __fmul_rn(byte_float(word[j / 4] ^ 0x80808080u, j % 4),
					  __ldg(scale + j));
	} else {
		words_load<2 * c>(cqkd_ptr<const __half>(b.f16) + at, word);
#pragma unroll
		for (j = 0; j < c; j += 2)
			half2_floats(word[j / 2], to + j);
	}
	if (!plain && b.metric) {
#pragma unroll
		for (j = 0; j < c; j++)
			to[j] = __fmul_rn(to[j], __ldg(metric + j));
	}
}

/* norm - x.e */
template <int c>
CQ_DEVICE float distance(float norm, const float *x, const float *e)
{
	int j;

#pragma unroll
	for (j = 0; j < c; j++)
		norm = __fsub_rn(norm, __fmul_rn(x[j], e[j]));
	return norm;
}

/* Numbers that compare as the floats do, 0 and -0 alike. */
CQ_DEVICE uint32_t ordered(float x)
{
	uint32_t u = __float_as_uint(__fadd_rn(x, 0.0f));

	return u >> 31 ? ~u : u | 0x80000000u;
}

/* Lane l has l, l + 32, l + 64, ... of the 256 centroids that are looked at together. */
template <int c>
struct centroids {
	float norm[PER_LANE];
	float val[PER_LANE][c];
};

/* @first: that of them which lane 0 has, of all groups' centroids. */
template <int c, bool plain>
CQ_DEVICE void centroids_load(const struct put &w, uint32_t group, uint32_t first,
			      struct centroids<c> &k)
{
	const float *norm = cqkd_ptr<const float>(w.book->norm) + first;
	uint32_t i, lane = cq_keep(threadIdx.x % 32);

#pragma unroll
	for (i = 0; i < PER_LANE; i++) {
		k.norm[i] = __ldg(norm + lane + 32 * i);
		centroid_load<c, plain>(*w.book, group, first + lane + 32 * i, k.val[i]);
	}
}

/*
 * The least distance, as ordered() has it, above the lowest code that has it, in every lane:
 * of two such numbers the lower one has the code that counts. @from: code of centroid 0.
 */
template <int c>
CQ_DEVICE uint64_t nearest(const struct centroids<c> &k, uint32_t from, const __half *x)
{
	float least = CQKD_INF, to[c];
	uint32_t best = 0, key, top;
	int i;

	channels_load<c>(x, to);
#pragma unroll
	for (i = 0; i < PER_LANE; i++) {
		float acc = distance<c>(k.norm[i], to, k.val[i]);

		if (i == 0 || acc < least) {
			least = acc;
			best = threadIdx.x % 32 + 32 * i;
		}
	}
	key = ordered(least);
	top = __reduce_min_sync(ALL_LANES, key);
	best = __reduce_min_sync(ALL_LANES, key == top ? best : CQKD_CENTROIDS - 1u);
	return (uint64_t)top << 32 | (from + best);
}

/*
 * Upper bits of a group's codes, of which lane l has those of the destination's tokens l and
 * l + 32. A byte has bits of four tokens: it is one lane's, and those of tokens that are not
 * the destination's stay. Groups of 8 of 64, 128 or 256 channels leave nothing to be padded.
 */
CQ_DEVICE void upper_store(const struct put &w, uint32_t lo, uint32_t hi, uint32_t at)
{
	uint32_t mask = 0, bits = 0, lane = threadIdx.x % 32, t;

#pragma unroll
	for (t = lane % CQKD_UPPER; t < CQKD_TOKENS; t += CQKD_UPPER) {
		uint32_t i = t - w.to->first;
		uint32_t x = __shfl_sync(ALL_LANES, lo, i % 32);
		uint32_t y = __shfl_sync(ALL_LANES, hi, i % 32);

		if (i < w.to->count) {	/* no token before the first: i is huge */
			mask |= 3u << cqkd_upper_at(t);
			bits |= (i < 32 ? x : y) >> 8 << cqkd_upper_at(t);
		}
	}
	if (mask && lane < CQKD_UPPER)
		code_store(w, at + lane, (*code_at(w, at + lane) & ~mask) | bits);
}

/* Codes of a group: @x and @at are where those of the first token are, @upper all upper bits. */
template <int c, int bits>
CQ_DEVICE void group_encode(const struct put &w, uint32_t group, const __half *x, uint32_t at,
			    uint32_t upper)
{
	uint32_t lane = threadIdx.x % 32, from, t;
	uint64_t lo = ~0ull, hi = ~0ull;	/* of tokens lane and lane + 32 */
	struct centroids<c> k;

#pragma unroll 1
	for (from = 0; from < 1u << bits; from += CQKD_CENTROIDS) {
		if (w.plain)
			centroids_load<c, true>(w, group, (group << bits) + from, k);
		else
			centroids_load<c, false>(w, group, (group << bits) + from, k);
		for (t = 0; t < w.to->count; t++) {
			uint64_t best = nearest<c>(k, from, x + t * w.pitch);

			if (t == lane)
				lo = bits > 8 ? min(lo, best) : best;
			if (t == lane + 32)
				hi = bits > 8 ? min(hi, best) : best;
		}
	}
	if (lane < w.to->count)
		code_store(w, at + lane, (uint32_t)lo);
	if (lane + 32 < w.to->count)
		code_store(w, at + lane + 32, (uint32_t)hi);
	if (bits > 8)
		upper_store(w, (uint32_t)lo, (uint32_t)hi, upper);
}

#endif /* CQK_CUDA_ENCODE_CUH */
