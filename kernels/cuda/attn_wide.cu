// SPDX-License-Identifier: MIT
/*
 * Attention of many query vectors over blocks that they all read, such as the
 * prefix of a batch: each block is decoded once for up to 256 vectors.
 *
 * Eight warps, each with every eighth tile of 16 vectors: scores,
 * probabilities and results of a tile stay in its warp's registers from one
 * block to the next, while keys and then values of the block at hand are in
 * shared memory. (More vectors than registers hold would have their results
 * read and written for every block: twice the bytes that decoding reads.)
 *
 * The host gives such an item only blocks that have one position for all who
 * read them. So keys are turned to their own position, and queries but once.
 */
#include "kernels/cuda/attn_wide.cuh"

#define WARPS (CQKD_WIDE_THREADS / 32)

template <int d>
struct wide {
	struct crowd<d, CQKD_WIDE_VECS(d), WARPS, 1> all;
	__half tile[CQKD_TOKENS][CQKD_PITCH(d)];
};

template <int d>
using wide_tiles = struct tiles<d, CQKD_WIDE_VECS(d), WARPS>;

template <int d>
CQ_DEVICE const uint8_t *rows_of(const struct wide<d> *sh)
{
	return reinterpret_cast<const uint8_t *>(sh->tile);
}

/* Keys of the tile to their positions from @pos on, and to TURNED_SIZE. */
template <int d>
CQ_DEVICE void keys_turn(const struct cqkd_attn &p, struct wide<d> *sh, uint32_t pos)
{
	uint32_t pairs = p.rope.half, left = d - 2 * pairs, i;

#pragma unroll 2
	for (i = threadIdx.x; i < CQKD_TOKENS * pairs; i += CQKD_WIDE_THREADS) {
		uint32_t t = i / pairs, j = i % pairs;
		struct cqkd_turn turn = cqkd_turn_at(p.rope, pos + t, j);
		float lo = __half2float(sh->tile[t][j]) * TURNED_SIZE;
		float hi = __half2float(sh->tile[t][j + pairs]) * TURNED_SIZE;

		sh->tile[t][j] = __float2half_rn(lo * turn.c - hi * turn.s);
		sh->tile[t][j + pairs] = __float2half_rn(lo * turn.s + hi * turn.c);
	}
	for (i = threadIdx.x; i < CQKD_TOKENS * left; i += CQKD_WIDE_THREADS) {
		__half *x = &sh->tile[i / left][2 * pairs + i % left];

		*x = __float2half_rn(__half2float(*x) * TURNED_SIZE);
	}
}

/* One block of tokens against all vectors of the item. */
template <int d>
CQ_DEVICE void block_add(const struct cqkd_attn &p, const struct work &w, struct wide<d> *sh,
			 wide_tiles<d> &r)
{
	uint64_t live = look(p, w, sh->all.see, 0);

	if (!live) {
		__syncthreads();	/* all have read what the next look() writes */
		return;
	}
	tile_load<d, CQKD_WIDE_THREADS>(p, w, false, live, sh->tile);
	if (p.turn_k) {
		uint32_t span = w.block.span_first + sh->all.see.query[0].span;

		__syncthreads();
		keys_turn(p, sh, part_of<struct cqkd_span>(p, &cqkd_plan::spans)[span].pos);
	}
	__syncthreads();
	tiles_scores<struct halves>(p, w, sh->all, 0, rows_of(sh), r);
	__syncthreads();
	tile_load<d, CQKD_WIDE_THREADS>(p, w, true, live, sh->tile);
	__syncthreads();
	tiles_values<struct halves>(w, rows_of(sh), r);
}

template <int d>
CQ_DEVICE void attention(const struct cqkd_attn &p, struct wide<d> *sh)
{
	wide_tiles<d> r;
	struct work w;
	uint32_t i;

	if (blockIdx.x >= cqkd_ptr<const struct cqkd_plan>(p.plan)->n_wide)
		return;
	w.item = part_of<struct cqkd_item>(p, &cqkd_plan::items)[blockIdx.x];
	w.head = p.head_begin + blockIdx.y;
	w.n_tiles = (w.item.n_vecs + 15) / 16;
	tiles_init(r);
	/* nothing is decoded yet */
	queries_load<struct halves>(p, w, sh->all, reinterpret_cast<float *>(sh->tile));
	__syncthreads();
	for (i = 0; i < w.item.n_blocks; i++) {
		w.block = part_of<struct cqkd_block>(p, &cqkd_plan::blocks)[w.item.block + i];
		block_add(p, w, sh, r);
	}
	result_store<struct halves>(p, w, sh->all.see, 1, r);
}

/* Grid: most wide items of a plan, kv heads of the call. */
#define ATTN_WIDE(d) \
CQ_KERNEL(CQKD_WIDE_THREADS, cqk_attn_wide_d##d, (struct cqkd_attn p)) \
{ \
	static_assert(sizeof(struct wide<d>) <= CQKD_WIDE_SHARED(d), "params.h"); \
	static_assert(WARPS * d * 4 <= sizeof(wide<d>::tile), "room for queries"); \
	CQ_DYN_SHARED(struct wide<d>, sh); \
\
	attention<d>(p, sh); \
}
ATTN_WIDE(64)
ATTN_WIDE(128)
ATTN_WIDE(256)
