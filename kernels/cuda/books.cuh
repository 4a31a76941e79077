/* SPDX-License-Identifier: MIT */
/*
 * Keys and values of a page from codebooks in shared memory to tiles (swizzle.cuh) there,
 * head_dim 128: what a group of 128 or 256 threads does for each page. No access has a bank
 * conflict but that of 256 threads to codes of two channels, which takes two passes
 * (scripts/gpu-model.py simulates them).
 *
 * A thread has two units of eight channels, x = lane % 8 and x + 8, which are the two sides of
 * the pairs that RoPE turns, of four tokens that follow each other (of two, if there are 256
 * threads). Which four is exchanged by x / 2, since codes lie as they are stored, 64 bytes for a
 * group: so lanes that read codes of an even group are in other banks than those that read
 * an odd one. Where a unit has two or four groups, lanes take them in another order, step s
 * being group s ^ o: o is another one for the lanes that would meet in a bank, with centroids
 * as well as in the tile. Nothing has to be put in order: what is stored knows its place, and
 * cos and sin are kept in that order.
 *
 * Keys turn in fp16. A thread keeps cos and sin of its tokens' places in the page; those of the
 * page's position are in shared memory, and both are multiplied for each page.
 */
#ifndef CQK_CUDA_BOOKS_CUH
#define CQK_CUDA_BOOKS_CUH

#include "kernels/cuda/attn.cuh"
#include "kernels/cuda/attn_halves.cuh"
#include "kernels/cuda/swizzle.cuh"
#include "kernels/cuda/units.cuh"

#define BOOK_DIM	128
#define BOOK_PAIRS	(BOOK_DIM / 2)

/**
 * struct book_share - how work is shared out; @c: channels of a group
 * @tokens: of a thread
 * @steps:  groups of a unit
 * @words:  registers of a group
 */
template <int c, int threads>
struct book_share {
	static const int tokens = CQKD_TOKENS * 8 / threads;
	static const int steps = 8 / c;
	static const int words = c / 2;
};

/* The first of a thread's tokens. */
template <int threads>
CQ_DEVICE uint32_t book_token(uint32_t thread)
{
	uint32_t four = thread / 32 ^ thread % 8 / 2;
	uint32_t piece = four * 4 + thread / 8 % 2 * 2 + thread / 16 % 2;

	return piece * book_share<8, threads>::tokens;
}

/* The group of its unit, and of all groups, that a thread takes at step @s. */
template <int c>
CQ_DEVICE uint32_t book_order(uint32_t thread, int s)
{
	uint32_t order = (thread / 8 ^ thread) & 1;

	if (c == 2)
		order |= thread / 8 & 2;
	return c == 8 ? 0 : order ^ s;
}

template <int c>
CQ_DEVICE uint32_t book_group(uint32_t thread, int s)
{
	return thread % 8 * (8 / c) + book_order<c>(thread, s);
}

/**
 * struct book_frame - cos and sin, times TURNED_SIZE, of a thread's places in a page
 * @co: [token][pair of pairs], in the order in which they are used
 * @si: the same
 */
template <int c, int threads>
struct book_frame {
	__half2 co[book_share<c, threads>::tokens][4], si[book_share<c, threads>::tokens][4];
};

/* Once per kernel; @rope has pairs. */
template <int c, int threads>
CQ_DEVICE void book_frame_load(const struct cqkd_rope &rope, uint32_t thread,
			       struct book_frame<c, threads> &f)
{
	using S = book_share<c, threads>;
	uint32_t token = book_token<threads>(thread);
	int i, w;

#pragma unroll
	for (i = 0; i < S::tokens; i++)
#pragma unroll
		for (w = 0; w < 4; w++) {
			uint32_t pair = book_group<c>(thread, w / S::words) * c + w % S::words * 2;
			const float *at = cqkd_ptr<const float>(rope.in_page) +
					  (token + i) * BOOK_DIM + pair;

			f.co[i][w] = __floats2half2_rn(at[0] * TURNED_SIZE, at[1] * TURNED_SIZE);
			f.si[i][w] = __floats2half2_rn(at[BOOK_PAIRS] * TURNED_SIZE,
						       at[BOOK_PAIRS + 1] * TURNED_SIZE);
		}
}

/**
 * struct book_base - cos and sin of a page's position, in shared memory
 * @co: of each pair
 * @si: the same
 */
struct __align__(16) book_base {
	__half co[BOOK_PAIRS], si[BOOK_PAIRS];
};

/* One thread for each pair; a barrier before they are used. */
CQ_DEVICE void book_base_put(const struct cqkd_rope &rope, uint32_t pos, uint32_t pair,
			     struct book_base *to)
{
	struct cqkd_turn t = cqkd_turn_at(rope, pos, pair);

	to->co[pair] = __float2half_rn(t.c);
	to->si[pair] = __float2half_rn(t.s);
}

/* What a thread has at a step: [side][token] registers of a group. */
template <int c, int threads>
struct book_units {
	uint32_t x[2][book_share<c, threads>::tokens][book_share<c, threads>::words];
};

/**
 * struct book_codes - where a page of codes has keys, or values
 * @book:  [256][128], shared memory
 * @codes: as they are stored, shared memory, 4-byte aligned
 */
struct book_codes {
	const __half *book;
	const uint8_t *codes;
};

/**
 * struct book_rows - where an fp16 block has them
 * @rows: [64][128], global memory
 * @live: tokens that somebody sees; others are zero
 */
struct book_rows {
	const __half *rows;
	uint64_t live;
};

template <int c, int threads>
CQ_DEVICE void book_units_load(uint32_t thread, int s, const struct book_codes &from,
			       struct book_units<c, threads> &u)
{
	using S = book_share<c, threads>;
	uint32_t group = book_group<c>(thread, s), ch = group * c * 2;
	const uint8_t *rows = reinterpret_cast<const uint8_t *>(from.book);
	const uint8_t *codes = from.codes + group * CQKD_TOKENS + book_token<threads>(thread);
	int side, i;

#pragma unroll
	for (side = 0; side < 2; side++) {
		const uint8_t *at = codes + side * (BOOK_PAIRS / c * CQKD_TOKENS);
		uint32_t of = S::tokens == 4 ? *(const uint32_t *)at : *(const uint16_t *)at;

#pragma unroll
		for (i = 0; i < S::tokens; i++)
			unit_load<S::words>(u.x[side][i],
					    rows + row_at<BOOK_DIM>(of, i, ch) + side * BOOK_DIM);
	}
}

template <int c, int threads>
CQ_DEVICE void book_units_load(uint32_t thread, int s, const struct book_rows &from,
			       struct book_units<c, threads> &u)
{
	using S = book_share<c, threads>;
	uint32_t token = book_token<threads>(thread), ch = book_group<c>(thread, s) * c;
	int side, i, w;

#pragma unroll
	for (i = 0; i < S::tokens; i++)
#pragma unroll
		for (side = 0; side < 2; side++) {
			if (from.live >> (token + i) & 1) {
				unit_load<S::words>(u.x[side][i],
						    from.rows + (token + i) * BOOK_DIM +
						    side * BOOK_PAIRS + ch);
				continue;
			}
#pragma unroll
			for (w = 0; w < S::words; w++)
				u.x[side][i][w] = 0;
		}
}

template <int c, int threads>
CQ_DEVICE void book_units_turn(uint32_t thread, int s, const struct book_base *base,
			       const struct book_frame<c, threads> &f,
			       struct book_units<c, threads> &u)
{
	using S = book_share<c, threads>;
	uint32_t ch = book_group<c>(thread, s) * c, bc[S::words], bs[S::words];
	int i, w;

	unit_load<S::words>(bc, base->co + ch);
	unit_load<S::words>(bs, base->si + ch);
#pragma unroll
	for (i = 0; i < S::tokens; i++)
#pragma unroll
		for (w = 0; w < S::words; w++) {
			__half2 c1 = h2_of(bc[w]), s1 = h2_of(bs[w]);
			__half2 c2 = f.co[i][s * S::words + w], s2 = f.si[i][s * S::words + w];
			__half2 co = __hfma2(__hneg2(s1), s2, __hmul2(c1, c2));
			__half2 si = __hfma2(s1, c2, __hmul2(c1, s2));
			__half2 lo = h2_of(u.x[0][i][w]), hi = h2_of(u.x[1][i][w]);

			u.x[0][i][w] = h2_bits(__hfma2(__hneg2(hi), si, __hmul2(lo, co)));
			u.x[1][i][w] = h2_bits(__hfma2(hi, co, __hmul2(lo, si)));
		}
}

template <int c, int threads>
CQ_DEVICE void book_units_store(uint32_t thread, int s, const struct book_units<c, threads> &u,
				uint8_t *tile)
{
	using S = book_share<c, threads>;
	uint32_t token = book_token<threads>(thread);
	uint32_t at = tile_at(token, book_group<c>(thread, s) * c);
	int side, i;

	/* tokens differ in bits that none of their first one has */
#pragma unroll
	for (i = 0; i < S::tokens; i++)
#pragma unroll
		for (side = 0; side < 2; side++)
			unit_store<S::words>(tile + (at ^ i * 16) + i * TILE_ROW +
					     side * TILE_SIDE, u.x[side][i]);
}

/**
 * book_keys() - keys of a page to a tile
 * @thread: of @threads
 * @from:   struct book_codes or struct book_rows
 * @turned: to be turned
 * @base:   if so, of the page's position
 * @f:      and the thread's own
 * @tile:   shared memory
 *
 * Nobody may use @tile before a barrier after it, or write what @from names.
 */
template <int c, int threads, typename From>
CQ_DEVICE void book_keys(uint32_t thread, const From &from, bool turned,
			 const struct book_base *base, const struct book_frame<c, threads> &f,
			 uint8_t *tile)
{
	int s;

#pragma unroll
	for (s = 0; s < book_share<c, threads>::steps; s++) {
		struct book_units<c, threads> u;

		book_units_load(thread, s, from, u);
		if (turned)
			book_units_turn(thread, s, base, f, u);
		book_units_store(thread, s, u, tile);
	}
}

/* Values, which nobody turns; rows may be of any @c. */
template <int c, int threads, typename From>
CQ_DEVICE void book_values(uint32_t thread, const From &from, uint8_t *tile)
{
	int s;

#pragma unroll
	for (s = 0; s < book_share<c, threads>::steps; s++) {
		struct book_units<c, threads> u;

		book_units_load(thread, s, from, u);
		book_units_store(thread, s, u, tile);
	}
}

/* Where a page of codes has keys of a kv head; values follow. */
CQ_DEVICE const uint8_t *book_codes_at(const struct cqkd_attn &p, const struct cqkd_block &b,
				       uint32_t head)
{
	return cqkd_ptr<const uint8_t>(b.base) + p.at.offset + head * (p.at.k_bytes + p.at.v_bytes);
}

/* The same of an fp16 block. */
CQ_DEVICE const __half *book_rows_at(const struct cqkd_attn &p, const struct cqkd_block &b,
				     uint32_t head)
{
	size_t index = (size_t)p.layer * p.n_kv_heads + head;

	return cqkd_ptr<const __half>(b.base) + index * 2 * b.tokens * BOOK_DIM;
}

/* A kernel for each pair of groups, of keys and of values. */
#define BOOK_KERNELS(kernel) \
	kernel(2, 2) kernel(2, 4) kernel(2, 8) \
	kernel(4, 2) kernel(4, 4) kernel(4, 8) \
	kernel(8, 2) kernel(8, 4) kernel(8, 8)

#endif /* CQK_CUDA_BOOKS_CUH */
