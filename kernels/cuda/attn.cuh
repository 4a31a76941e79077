/* SPDX-License-Identifier: MIT */
/*
 * What the kernels of attention have in common: what a query sees, and the
 * tile of 64 keys or values that is decoded into shared memory.
 */
#ifndef CQK_CUDA_ATTN_CUH
#define CQK_CUDA_ATTN_CUH

#include "kernels/cuda/load.cuh"

#define LOG2E 1.4426950408889634f
#define MAX_QUERY 1e15f		/* CQK_MAX_QUERY */
/*
 * Keys that are rotated here are kept at half their size: two channels of
 * 65504 would be beyond fp16 after a turn.
 */
#define TURNED_SIZE 0.5f
/*
 * Probabilities are kept times 2^10 in fp16: beside a token of probability 1,
 * thousands of small ones still count with all their bits.
 */
#define P_LIFT 10.0f
#define P_UNIT 0.0009765625f

/* What is the same for all threads of a block. */
struct work {
	struct cqkd_item item;
	struct cqkd_block block;
	uint32_t head;		/* kv head of the model */
	uint32_t n_tiles;	/* of 16 vectors */
};

/* A part of the plan, by the offset that its head has of it. */
template <typename T>
CQ_DEVICE const T *part_of(const struct cqkd_attn &p, uint32_t cqkd_plan::*where)
{
	return cqkd_ptr<const T>(p.plan + cqkd_ptr<const struct cqkd_plan>(p.plan)->*where);
}

CQ_DEVICE uint64_t bits_below(int64_t n)
{
	if (n <= 0)
		return 0;
	return n >= 64 ? ~0ull : (1ull << n) - 1;
}

/* Tokens of a block that a row at @row_pos sees through a span. */
CQ_DEVICE uint64_t visible(const struct cqkd_attn &p, const struct cqkd_block &b,
			   const struct cqkd_span &s, uint32_t row_pos)
{
	int64_t last = (int64_t)row_pos - s.pos;
	uint64_t vis = s.mask & bits_below(b.tokens) & bits_below(last + 1);

	if (p.window)
		vis &= ~bits_below(last - (int64_t)p.window + 1);
	return vis;
}

/* 2^-e with e such that x times it is in [0.5, 1), unless x is tiny or huge. */
CQ_DEVICE float unit_of(float x)
{
	int e = (int)(__float_as_uint(x) >> 23) - 126;

	e = x > 0 ? max(-120, min(120, e)) : 0;
	return __int_as_float((127 - e) << 23);
}

CQ_DEVICE float warp_max(float x)
{
	int flip;

	for (flip = 16; flip; flip /= 2)
		x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, flip));
	return x;
}

CQ_DEVICE float warp_sum(float x)
{
	int flip;

	for (flip = 16; flip; flip /= 2)
		x += __shfl_xor_sync(0xffffffffu, x, flip);
	return x;
}

/* The row of an item's vector @i, and its span. */
CQ_DEVICE struct cqkd_entry entry_of(const struct cqkd_attn &p, const struct work &w, uint32_t i)
{
	return part_of<struct cqkd_entry>(p, &cqkd_plan::entries)
		[w.item.entry + (w.item.vec + i) / p.gqa];
}

/* A warp's lanes read vector @i, which is of @row: every 32nd channel. */
template <int d>
CQ_DEVICE void query_fetch(const struct cqkd_attn &p, const struct work &w, uint32_t i,
			   uint32_t row, float y[d / 32])
{
	int64_t from = cqkd_at(p.q, row, w.head * p.gqa + (w.item.vec + i) % p.gqa);
	int n;

#pragma unroll
	for (n = 0; n < d / 32; n++)
		y[n] = cqkd_load(p.q, from + cqkd_given(p.rope, threadIdx.x % 32 + 32 * n));
}

/*
 * It goes to @x. Returns the power of two that makes it a number below 1, which fp16 holds, or
 * 0 if it is not finite or too large; sizes of keys and scores are the caller's affair.
 */
template <int d>
CQ_DEVICE float query_put(const struct cqkd_attn &p, const float y[d / 32], float *x)
{
	float top = 0;
	bool bad = false;
	int n;

#pragma unroll
	for (n = 0; n < d / 32; n++) {
		uint32_t ch = threadIdx.x % 32 + 32 * n;
		float z = ch < 2 * p.rope.half ? y[n] * p.rope.factor : y[n];

		bad |= !(fabsf(z * p.scale) <= MAX_QUERY);
		top = fmaxf(top, fabsf(z));
		x[ch] = z;
	}
	bad = __any_sync(0xffffffffu, bad);
	top = warp_max(top);
	return bad ? 0.0f : unit_of(top);
}

/* Both, of vector @i and the row that it is of. */
template <int d>
CQ_DEVICE float query_read(const struct cqkd_attn &p, const struct work &w, uint32_t i,
			   struct cqkd_entry *e, float *x)
{
	float y[d / 32];

	*e = entry_of(p, w, i);
	query_fetch<d>(p, w, i, e->row, y);
	return query_put<d>(p, y, x);
}

/* A warp rotates a query to its row's position, where it lies. */
CQ_DEVICE void query_turn(const struct cqkd_attn &p, uint32_t row, float *q)
{
	uint32_t pos = part_of<uint32_t>(p, &cqkd_plan::row_pos)[row], j;

	for (j = threadIdx.x % 32; j < p.rope.half; j += 32) {
		struct cqkd_turn t = cqkd_turn_at(p.rope, pos, j);
		float lo = q[j], hi = q[j + p.rope.half];

		q[j] = lo * t.c - hi * t.s;
		q[j + p.rope.half] = lo * t.s + hi * t.c;
	}
}

/* @product: of query and key, times @size; -inf unless the token is @seen. */
CQ_DEVICE float score(const struct cqkd_attn &p, float product, float size, bool seen)
{
	float x = product * size;

	if (p.soft_cap > 0)
		x = p.soft_cap * tanhf(x / p.soft_cap);
	return seen ? x : -CQKD_INF;
}

CQ_DEVICE float prob(float x, float m)
{
	return x > -CQKD_INF ? exp2f((x - m) * LOG2E + P_LIFT) : 0.0f;
}

/* Codes of a group of @c channels to channels of the tile; @bits as in cqkd_book. */
template <int c, int bits, int d, int threads>
CQ_DEVICE void tile_codes(const struct cqkd_book &b, uint32_t head, const uint8_t *codes,
			  __half (*tile)[CQKD_PITCH(d)])
{
	constexpr int n = d / c * CQKD_TOKENS;
	const __half *book = cqkd_ptr<const __half>(b.f16) + ((size_t)head * d << bits);
	int i;

#pragma unroll 4
	for (i = threadIdx.x; i < n; i += threads) {
		int g = i / CQKD_TOKENS, t = i % CQKD_TOKENS;
		uint32_t code = __ldg(codes + i);
		const void *from;
		void *to = &tile[t][g * c];

		if (bits > 8)
			code |= cqkd_upper(__ldg(codes + n + g * CQKD_UPPER + t % CQKD_UPPER), t);
		from = book + (((size_t)g << bits) + code) * c;

		if (c == 8)
			*(uint4 *)to = __ldg((const uint4 *)from);
		else if (c == 4)
			*(uint2 *)to = __ldg((const uint2 *)from);
		else
			*(uint32_t *)to = __ldg((const uint32_t *)from);
	}
}

/* Rows of halves to the tile; rows that nobody sees become zero. */
template <int d, int threads>
CQ_DEVICE void tile_halves(const uint8_t *rows, uint64_t live, __half (*tile)[CQKD_PITCH(d)])
{
	constexpr int per_row = d / 8;
	int i;

#pragma unroll 4
	for (i = threadIdx.x; i < CQKD_TOKENS * per_row; i += threads) {
		int t = i / per_row, j = i % per_row;

		if (live >> t & 1)
			cq_cp_async16(&tile[t][j * 8], rows + (size_t)i * 16);
		else
			*(uint4 *)&tile[t][j * 8] = make_uint4(0, 0, 0, 0);
	}
	cq_cp_commit();
	cq_cp_wait<0>();
}

/*
 * K or V of the block at hand; @live: tokens that somebody sees. Others see the tile after
 * the next barrier.
 */
template <int d, int threads>
CQ_DEVICE void tile_load(const struct cqkd_attn &p, const struct work &w, bool v, uint64_t live,
			 __half (*tile)[CQKD_PITCH(d)])
{
	const struct cqkd_book &b = v ? p.at.v : p.at.k;
	const uint8_t *at = cqkd_ptr<const uint8_t>(w.block.base);

	if (w.block.kind) {
		size_t index = (size_t)p.layer * p.n_kv_heads + w.head;

		tile_halves<d, threads>(at + (index * 2 + v) * w.block.tokens * d * 2, live, tile);
		return;
	}
	at += p.at.offset + w.head * (p.at.k_bytes + p.at.v_bytes) + (v ? p.at.k_bytes : 0);
	if (b.bits > 8)
		tile_codes<8, 10, d, threads>(b, w.head, at, tile);
	else if (b.channels == 8)
		tile_codes<8, 8, d, threads>(b, w.head, at, tile);
	else if (b.channels == 4)
		tile_codes<4, 8, d, threads>(b, w.head, at, tile);
	else if (b.channels == 2)
		tile_codes<2, 8, d, threads>(b, w.head, at, tile);
	else
		tile_halves<d, threads>(at, live, tile);
}

#endif /* CQK_CUDA_ATTN_CUH */
