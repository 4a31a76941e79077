// SPDX-License-Identifier: MIT
/*
 * The first half of a cascade as base_wide.cu has it, in fp16 by the tensor cores of sm_90a:
 * up to 128 query vectors of an item by two warpgroups (attn_wgmma.cuh), while the third
 * copies pages to swizzled tiles, three of them on their way.
 */
#include "kernels/cuda/attn_wgmma.cuh"
#include "tests/gpu/base_params.h"

#define STAGES CQBD_WGMMA_STAGES
#define AHEAD (STAGES - 1)	/* pages on their way */

#if CQ_WARPGROUPS
/* Keys and values of a page to its stage; zeros of tokens that nobody sees. */
CQ_DEVICE void page_copy(const struct cqkd_attn &p, const struct work &w,
			 struct tile_ring<STAGES> *ring, uint32_t page, uint64_t live)
{
	const uint8_t *from = cqkd_ptr<const uint8_t>(w.block.base) + p.at.offset +
			      w.head * (p.at.k_bytes + p.at.v_bytes);
	uint32_t v, j;

#pragma unroll
	for (v = 0; v < 2; v++) {
		uint8_t *to = ring->tile[ring->stage(page)][v];

#pragma unroll
		for (j = threadIdx.x; j < CQKD_TOKENS * RING_DIM / 8; j += GROUP) {
			uint32_t t = j / (RING_DIM / 8), bytes = live >> t & 1 ? 16 : 0;

			cq_cp_async16_zfill(to + tile_at(t, j % (RING_DIM / 8) * 8),
					    from + (bytes ? j * 16 : 0), bytes);
		}
		from += p.at.k_bytes;
	}
	cq_cp_commit();
}

/* All pages of an item, for the threads that bring them. */
CQ_DEVICE void item_bring(const struct cqkd_attn &p, struct work &w,
			  struct tile_ring<STAGES> *ring, uint32_t page)
{
	uint32_t i;

	bring_begin();
#pragma unroll 1
	for (i = 0; i < w.item.n_blocks; i++) {
		uint32_t at = ring->stage(page + i);

		w.block = part_of<struct cqkd_block>(p, &cqkd_plan::blocks)[w.item.block + i];
		struct cqkd_span span = span_of(p, w, w.block, ring->see);

		ring_claim(ring, page + i);
		look_through(p, w, w.block, span, ring->see, at);
		cq_bar_sync(BAR_BRING, GROUP);
		page_copy(p, w, ring, page + i, live_of(ring->see, at));
		if (i < AHEAD - 1)
			continue;
		cq_cp_wait<AHEAD - 1>();
		ring_filled(ring, page + i - (AHEAD - 1));
	}
	cq_cp_wait<0>();
	for (i = i < AHEAD - 1 ? 0 : i - (AHEAD - 1); i < w.item.n_blocks; i++)
		ring_filled(ring, page + i);
}

template <bool brings>
CQ_DEVICE void items(const struct cqkd_attn &p, struct tile_ring<STAGES> *ring)
{
	const struct cqkd_plan *plan = cqkd_ptr<const struct cqkd_plan>(p.plan);
	uint32_t page = 0, i;
	struct work w;

	w.head = p.head_begin + blockIdx.y;
	for (i = blockIdx.x; i < plan->n_items; i += gridDim.x) {
		w.item = part_of<struct cqkd_item>(p, &cqkd_plan::items)[i];
		w.n_tiles = ring_tiles(w.item.n_vecs);
		if (w.item.n_vecs <= p.few)
			continue;
		if (brings)
			item_bring(p, w, ring, page);
		else
			reader_item(p, w, ring, page);
		page += w.item.n_blocks;
	}
}

/* Grid: items of more than @few vectors, which is 128 at most; kv heads of the call. */
CQ_KERNEL_BLOCKS(RING_THREADS, 1, cqb_wgmma_f16_d128_v128, (struct cqbd_attn b))
{
	static_assert(sizeof(struct tile_ring<STAGES>) == CQBD_WGMMA_SHARED, "base_params.h");
	CQ_DYN_SHARED_ALIGNED(1024, struct tile_ring<STAGES>, ring);

	ring_init(ring);
	__syncthreads();
	if (threadIdx.x < GROUP) {
		cq_registers_less<56>();
		items<true>(b.a, ring);
	} else {
		cq_registers_more<224>();
		items<false>(b.a, ring);
	}
}
#endif
