/* SPDX-License-Identifier: MIT */
/*
 * Attention, first half: what a block of threads keeps in shared memory, its
 * queries, and the tile of 64 keys or values that is decoded into it.
 */
#ifndef CQK_CUDA_ATTN_CUH
#define CQK_CUDA_ATTN_CUH

#include "kernels/cuda/load.cuh"

#define WARPS (CQKD_THREADS / 32)
#define LOG2E 1.4426950408889634f
#define MAX_QUERY 1e15f		/* CQK_MAX_QUERY */
/*
 * Keys that are rotated here are kept at half their size: two channels of
 * 65504 would be beyond fp16 after a turn.
 */
#define TURNED_SIZE 0.5f

/**
 * struct vec - one query vector: a head of a row
 * @vis:  tokens of the block at hand that it sees
 * @m:    maximum of its scores so far
 * @l:    sum of its probabilities so far, NaN if the query is none
 * @fade: what the block at hand does to all before it
 * @size: factor that makes scores of products
 * @row:  query row
 * @span: its span of each block
 * @spoiled: the query is not finite or too large
 */
struct vec {
	uint64_t vis;
	float m, l, fade, size;
	uint32_t row, span;
	uint32_t spoiled;
	uint32_t pad;
};

template <int d, int vecs>
struct shared {
	float q[vecs][CQKD_Q_PITCH(d)];
	__half qh[vecs][CQKD_PITCH(d)];
	__half tile[CQKD_TOKENS][CQKD_PITCH(d)];
	float s[vecs][CQKD_S_PITCH];
	__half p[vecs][CQKD_P_PITCH];
	struct vec vec[vecs];
	uint32_t live[2][2];	/* by warp: tokens that some vector sees, low and high */
};

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

/*
 * A warp loads one query. It is kept as a number below 1 and a power of two,
 * so that fp16 holds it; sizes of keys and scores are the caller's affair.
 */
template <int d, int vecs>
CQ_DEVICE void query_load(const struct cqkd_attn &p, const struct work &w,
			  struct shared<d, vecs> *sh, uint32_t i)
{
	uint32_t at = w.item.vec + i, lane = threadIdx.x % 32, ch;
	struct cqkd_entry e = part_of<struct cqkd_entry>(p, &cqkd_plan::entries)
				[w.item.entry + at / p.gqa];
	int64_t from = cqkd_at(p.q, e.row, w.head * p.gqa + at % p.gqa);
	float top = 0, unit;
	bool bad = false;

#pragma unroll 2
	for (ch = lane; ch < d; ch += 32) {
		float x = cqkd_load(p.q, from + cqkd_given(p.rope, ch));

		if (ch < 2 * p.rope.half)
			x *= p.rope.factor;
		bad |= !(fabsf(x * p.scale) <= MAX_QUERY);
		top = fmaxf(top, fabsf(x));
		sh->q[i][ch] = x;
	}
	bad = __any_sync(0xffffffffu, bad);
	unit = bad ? 0.0f : unit_of(warp_max(top));
	for (ch = lane; ch < d; ch += 32)
		sh->q[i][ch] = bad ? 0.0f : sh->q[i][ch] * unit;
	if (lane == 0) {
		struct vec *v = &sh->vec[i];

		v->m = -CQKD_INF;
		v->l = 0;
		v->size = bad ? 0.0f : p.scale / unit;
		if (p.turn_k)
			v->size /= TURNED_SIZE;
		v->row = e.row;
		v->span = e.span;
		v->spoiled = bad;
	}
}

/* A warp rotates a query to its row's position, where it lies. */
template <int d, int vecs>
CQ_DEVICE void query_turn(const struct cqkd_attn &p, struct shared<d, vecs> *sh, uint32_t i)
{
	uint32_t pos = part_of<uint32_t>(p, &cqkd_plan::row_pos)[sh->vec[i].row], j;
	float *q = sh->q[i];

	for (j = threadIdx.x % 32; j < p.rope.half; j += 32) {
		struct cqkd_turn t = cqkd_turn_at(p.rope, pos, j);
		float lo = q[j], hi = q[j + p.rope.half];

		q[j] = lo * t.c - hi * t.s;
		q[j + p.rope.half] = lo * t.s + hi * t.c;
	}
}

/* A warp makes halves of a query, turned back by @pos if keys are turned here. */
template <int d, int vecs>
CQ_DEVICE void query_halves(const struct cqkd_attn &p, struct shared<d, vecs> *sh, uint32_t i,
			    uint32_t pos)
{
	uint32_t pairs = p.turn_k ? p.rope.half : 0, j;
	const float *q = sh->q[i];
	__half *out = sh->qh[i];

	for (j = threadIdx.x % 32; j < pairs; j += 32) {
		struct cqkd_turn t = cqkd_turn_at(p.rope, pos, j);
		float lo = q[j], hi = q[j + pairs];

		out[j] = __float2half_rn(lo * t.c + hi * t.s);
		out[j + pairs] = __float2half_rn(hi * t.c - lo * t.s);
	}
	for (j = 2 * pairs + threadIdx.x % 32; j < d; j += 32)
		out[j] = __float2half_rn(q[j]);
}

/* All queries of the item; the vectors that fill the last tile see nothing. */
template <int d, int vecs>
CQ_DEVICE void queries_load(const struct cqkd_attn &p, const struct work &w,
			    struct shared<d, vecs> *sh)
{
	uint32_t i, ch;

	for (i = threadIdx.x / 32; i < w.n_tiles * 16; i += WARPS) {
		if (i >= w.item.n_vecs) {
			for (ch = threadIdx.x % 32; ch < d; ch += 32)
				sh->qh[i][ch] = __float2half_rn(0.0f);
			continue;
		}
		query_load(p, w, sh, i);
		__syncwarp();
		if (p.turn_q)
			query_turn(p, sh, i);
		__syncwarp();
		if (!p.turn_k)
			query_halves(p, sh, i, 0);
	}
}

/* Queries into the frame of the block at hand. */
template <int d, int vecs>
CQ_DEVICE void queries_turn(const struct cqkd_attn &p, const struct work &w,
			    struct shared<d, vecs> *sh)
{
	const struct cqkd_span *s = part_of<struct cqkd_span>(p, &cqkd_plan::spans) +
				    w.block.span_first;
	uint32_t i;

	for (i = threadIdx.x / 32; i < w.item.n_vecs; i += WARPS)
		query_halves(p, sh, i, s[sh->vec[i].span].pos);
}

/* Codes of a group of @c channels to channels of the tile. */
template <int c, int d, int vecs>
CQ_DEVICE void tile_codes(const struct cqkd_book &b, uint32_t head, const uint8_t *codes,
			  struct shared<d, vecs> *sh)
{
	constexpr int n = d / c * CQKD_TOKENS;
	const __half *book = cqkd_ptr<const __half>(b.f16) + (size_t)head * d * CQKD_CENTROIDS;
	int i;

#pragma unroll 4
	for (i = threadIdx.x; i < n; i += CQKD_THREADS) {
		int g = i / CQKD_TOKENS, t = i % CQKD_TOKENS;
		const void *from = book + ((size_t)g * CQKD_CENTROIDS + __ldg(codes + i)) * c;
		void *to = &sh->tile[t][g * c];

		if (c == 8)
			*(uint4 *)to = __ldg((const uint4 *)from);
		else if (c == 4)
			*(uint2 *)to = __ldg((const uint2 *)from);
		else
			*(uint32_t *)to = __ldg((const uint32_t *)from);
	}
}

/* Rows of halves to the tile; rows that nobody sees become zero. */
template <int d, int vecs>
CQ_DEVICE void tile_halves(const uint8_t *rows, uint64_t live, struct shared<d, vecs> *sh)
{
	constexpr int per_row = d / 8;
	int i;

#pragma unroll 4
	for (i = threadIdx.x; i < CQKD_TOKENS * per_row; i += CQKD_THREADS) {
		int t = i / per_row, j = i % per_row;

		if (live >> t & 1)
			cq_cp_async16(&sh->tile[t][j * 8], rows + (size_t)i * 16);
		else
			*(uint4 *)&sh->tile[t][j * 8] = make_uint4(0, 0, 0, 0);
	}
	cq_cp_commit();
	cq_cp_wait<0>();
}

/* K or V of the block at hand. Others see it after the next barrier. */
template <int d, int vecs>
CQ_DEVICE void tile_load(const struct cqkd_attn &p, const struct work &w, bool v,
			 struct shared<d, vecs> *sh)
{
	const struct cqkd_book &b = v ? p.at.v : p.at.k;
	const uint8_t *at = cqkd_ptr<const uint8_t>(w.block.base);
	uint64_t live = sh->live[0][0] | sh->live[1][0] |
			(uint64_t)(sh->live[0][1] | sh->live[1][1]) << 32;

	if (w.block.kind) {
		size_t index = (size_t)p.layer * p.n_kv_heads + w.head;

		tile_halves(at + (index * 2 + v) * w.block.tokens * d * 2, live, sh);
		return;
	}
	at += p.at.offset + w.head * (p.at.k_bytes + p.at.v_bytes) + (v ? p.at.k_bytes : 0);
	if (b.channels == 8)
		tile_codes<8>(b, w.head, at, sh);
	else if (b.channels == 4)
		tile_codes<4>(b, w.head, at, sh);
	else if (b.channels == 2)
		tile_codes<2>(b, w.head, at, sh);
	else
		tile_halves(at, live, sh);
}

/* Keys of the tile by their offset in the block, and to TURNED_SIZE. */
template <int d, int vecs>
CQ_DEVICE void tile_turn(const struct cqkd_attn &p, struct shared<d, vecs> *sh)
{
	const float *table = cqkd_ptr<const float>(p.rope.in_page);
	uint32_t pairs = p.rope.half, left = d - 2 * pairs, i;

#pragma unroll 2
	for (i = threadIdx.x; i < CQKD_TOKENS * pairs; i += CQKD_THREADS) {
		uint32_t t = i / pairs, j = i % pairs;
		float c = __ldg(table + t * 2 * pairs + j) * TURNED_SIZE;
		float s = __ldg(table + t * 2 * pairs + pairs + j) * TURNED_SIZE;
		float lo = __half2float(sh->tile[t][j]);
		float hi = __half2float(sh->tile[t][j + pairs]);

		sh->tile[t][j] = __float2half_rn(lo * c - hi * s);
		sh->tile[t][j + pairs] = __float2half_rn(lo * s + hi * c);
	}
	for (i = threadIdx.x; i < CQKD_TOKENS * left; i += CQKD_THREADS) {
		__half *x = &sh->tile[i / left][2 * pairs + i % left];

		*x = __float2half_rn(__half2float(*x) * TURNED_SIZE);
	}
}

#endif /* CQK_CUDA_ATTN_CUH */
