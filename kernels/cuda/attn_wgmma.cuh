/* SPDX-License-Identifier: MIT */
/*
 * Attention by the tensor cores of sm_90a, for attn_books_wgmma.cu and what gpu-bench compares
 * with: head_dim 128, 64 vectors for each of two warpgroups. A third one, of the first threads,
 * brings keys and values to tiles (swizzle.cuh) that the two multiply from shared memory,
 * each warp with 16 vectors, whose queries, probabilities and results are in registers.
 *
 * Products of queries and the next page's keys are begun with those of probabilities and this
 * page's values, and what of the softmax needs no result of these may be done meanwhile (ptxas
 * puts most of it behind them); the other warpgroup's products fill the rest.
 *
 * A stage of the ring has a page's keys and values. Two mbarriers say when it is full, for
 * which all threads that bring it come, and when it is empty: each warp that reads it comes.
 */
#ifndef CQK_CUDA_ATTN_WGMMA_CUH
#define CQK_CUDA_ATTN_WGMMA_CUH

#include "kernels/cuda/attn_wide.cuh"
#include "kernels/cuda/swizzle.cuh"

#define GROUP		128			/* threads of a warpgroup */
#define GROUP_VECS	64
#define READERS		CQKD_WGMMA_READERS	/* warpgroups that multiply */
#define RING_DIM	128
#define RING_VECS	CQKD_WGMMA_VECS
#define RING_THREADS	CQKD_WGMMA_THREADS

/* Barriers of some threads; 0 is __syncthreads(). */
#define BAR_ITEM	1	/* all */
#define BAR_BRING	2	/* the threads that bring pages */

/**
 * struct tile_ring - pages on their way, in shared memory
 * @tile:  of each stage, keys and values
 * @full:  a page is there
 * @empty: it has been read
 * @see:   who sees what of it
 */
template <int stages>
struct __align__(1024) tile_ring {
	uint8_t tile[stages][2][TILE_BYTES];
	struct sights<RING_VECS, GROUP / 32, stages> see;
	uint64_t full[stages], empty[stages];

	CQ_DEVICE uint32_t stage(uint32_t page) { return page % stages; }

	/* The parity of the phase in which a stage is filled with a page. */
	CQ_DEVICE uint32_t phase(uint32_t page) { return page / stages & 1; }
};

/* Before anything else; a barrier of all threads after it. */
template <int stages>
CQ_DEVICE void ring_init(struct tile_ring<stages> *ring)
{
	int i;

	if (threadIdx.x)
		return;
	for (i = 0; i < stages; i++) {
		cq_mbar_init(&ring->full[i], GROUP);
		cq_mbar_init(&ring->empty[i], READERS * GROUP / 32);
	}
	cq_fence_async();
}

/* For who brings pages: a stage is free. */
template <int stages>
CQ_DEVICE void ring_claim(struct tile_ring<stages> *ring, uint32_t page)
{
	cq_mbar_wait(&ring->empty[ring->stage(page)], ring->phase(page) ^ 1);
}

/* A thread's part of a page is there: tensor cores shall see it. */
template <int stages>
CQ_DEVICE void ring_filled(struct tile_ring<stages> *ring, uint32_t page)
{
	cq_fence_async();
	cq_mbar_arrive(&ring->full[ring->stage(page)]);
}

template <int stages>
CQ_DEVICE void ring_wait(struct tile_ring<stages> *ring, uint32_t page)
{
	cq_mbar_wait(&ring->full[ring->stage(page)], ring->phase(page));
}

/* A warp has read a page. */
template <int stages>
CQ_DEVICE void ring_done(struct tile_ring<stages> *ring, uint32_t page)
{
	__syncwarp();
	if (threadIdx.x % 32 == 0)
		cq_mbar_arrive(&ring->empty[ring->stage(page)]);
}

/* Who reads, of warpgroup 1 or 2: what a thread keeps while an item lasts. */
struct reader {
	uint32_t q[RING_DIM / 16][4];	/* queries of its warp, as fragments */
	struct tile<RING_DIM> r;
};

/* Tiles of 16 vectors of an item: all of a warpgroup that has any; what is no vector is 0. */
CQ_DEVICE uint32_t ring_tiles(uint32_t n_vecs)
{
	return (n_vecs + GROUP_VECS - 1) / GROUP_VECS * (GROUP_VECS / 16);
}

/* The first vector of a warp that reads. */
CQ_DEVICE uint32_t reader_vec()
{
	return (threadIdx.x - GROUP) / 32 * 16;
}

/* Queries of a warp; its room in the ring, of which no stage is in use. */
template <int stages>
CQ_DEVICE void reader_begin(const struct cqkd_attn &p, const struct work &w,
			    struct tile_ring<stages> *ring, struct reader &h)
{
	uint32_t lane = threadIdx.x % 32, warp = reader_vec() / 16, i;
	float *x = reinterpret_cast<float *>(ring->tile[1][0]) + warp * RING_DIM;
	__half *rows = reinterpret_cast<__half *>(ring->tile[0][0]);
	int k;

	static_assert(RING_VECS * RING_DIM * 2 <= 2 * TILE_BYTES, "room for rows");
#pragma unroll 1
	for (i = 0; i < 16; i += 4)
		queries_four<struct swizzled, RING_DIM, 1>(p, w, warp * 16 + i, x, rows, RING_DIM,
							   ring->see.query);
	rows += (warp * 16 + lane % 16) * RING_DIM + lane / 16 * 8;
#pragma unroll
	for (k = 0; k < RING_DIM / 16; k++)	/* once for an item: its conflicts do not matter */
		cq_ldmatrix_x4(h.q[k], rows + k * 16);
	h.r = {};
	h.r.m[0] = h.r.m[1] = -CQKD_INF;
}

/*
 * Products with 64 keys begin. 16 channels of a token are 32 bytes of its row, and the second
 * 64 channels are the second half of the tile: K-major, 8 tokens 1024 bytes apart.
 */
CQ_DEVICE void scores_begin(const struct reader &h, uint32_t keys, float (&s)[8][4])
{
	int k;

#pragma unroll
	for (k = 0; k < RING_DIM / 16; k++)
		cq_wgmma_n64(s, h.q[k], cq_wgmma_desc(keys + k / 4 * TILE_SIDE + k % 4 * 32, 16,
						      8 * TILE_ROW), k > 0);
	cq_wgmma_commit();
}

/*
 * Probabilities times values begin. 16 tokens are 16 rows; channels lie side by side: MN-major.
 * Each half of the tile has products of its own, of 64 channels, which one pattern of the
 * swizzle has: so the only step there is is that from 8 tokens to the next, 1024 bytes, and
 * both fields of the descriptor that could mean it say so.
 */
CQ_DEVICE void values_begin(struct reader &h, uint32_t values)
{
	int k, side;

#pragma unroll
	for (k = 0; k < CQKD_TOKENS / 16; k++)
#pragma unroll
		for (side = 0; side < 2; side++) {
			uint32_t at = values + side * TILE_SIDE + k * 16 * TILE_ROW;
			float (&o)[8][4] = reinterpret_cast<float (&)[8][4]>(h.r.o[side * 8]);

			cq_wgmma_n64_trans(o, h.r.p[k],
					   cq_wgmma_desc(at, 8 * TILE_ROW, 8 * TILE_ROW), true);
		}
	cq_wgmma_commit();
}

/* @n pages from @page on. */
template <int stages>
CQ_DEVICE void reader_pages(const struct cqkd_attn &p, struct tile_ring<stages> *ring,
			    uint32_t page, uint32_t n, struct reader &h)
{
	uint32_t tiles = cq_shared_addr(ring->tile), end = page + n;
	float s[8][4];
	float2 fade;

	ring_wait(ring, page);
	cq_wgmma_fence();
	scores_begin(h, tiles + page % stages * 2 * TILE_BYTES, s);
	cq_wgmma_wait<0>();
	cq_wgmma_hold(s);
	probabilities(p, ring->see, page % stages, reader_vec(), s, h.r);
#pragma unroll 1
	for (; page + 1 < end; page++) {
		ring_wait(ring, page + 1);
		cq_wgmma_hold(h.r.o);
		cq_wgmma_fence();
		scores_begin(h, tiles + (page + 1) % stages * 2 * TILE_BYTES, s);
		values_begin(h, tiles + (page % stages * 2 + 1) * TILE_BYTES);
		cq_wgmma_wait<1>();
		cq_wgmma_hold(s);
		fade = weights(p, ring->see, (page + 1) % stages, reader_vec(), s, h.r);
		cq_wgmma_wait<0>();
		cq_wgmma_hold(h.r.o);
		ring_done(ring, page);
		weights_take(s, fade, h.r);	/* registers that are free only now */
	}
	cq_wgmma_hold(h.r.o);
	cq_wgmma_fence();
	values_begin(h, tiles + (page % stages * 2 + 1) * TILE_BYTES);
	cq_wgmma_wait<0>();
	cq_wgmma_hold(h.r.o);
	ring_done(ring, page);
}

/*
 * An item, for the threads of a warpgroup that reads: @page: the first of its pages, as counted
 * since the kernel began. A warpgroup without vectors only lets them pass.
 */
template <int stages>
CQ_DEVICE void reader_item(const struct cqkd_attn &p, const struct work &w,
			   struct tile_ring<stages> *ring, uint32_t page)
{
	uint32_t v = reader_vec() + threadIdx.x % 32 / 4, i;
	struct reader h;

	cq_bar_sync(BAR_ITEM, RING_THREADS);	/* the item before is done with */
	if (reader_vec() < w.n_tiles * 16)
		reader_begin(p, w, ring, h);
	cq_bar_sync(BAR_ITEM, RING_THREADS);	/* what the queries are is known */
	if (reader_vec() >= w.n_tiles * 16) {
		for (i = 0; i < w.item.n_blocks; i++) {
			ring_wait(ring, page + i);
			ring_done(ring, page + i);
		}
		return;
	}
	reader_pages(p, ring, page, w.item.n_blocks, h);
	vec_store<struct swizzled>(p, w, ring->see.query, v, 0, 1, h.r);
	vec_store<struct swizzled>(p, w, ring->see.query, v + 8, 1, 1, h.r);
}

/* The same for the threads that bring pages: then they may begin. */
CQ_DEVICE void bring_begin()
{
	cq_bar_sync(BAR_ITEM, RING_THREADS);
	cq_bar_sync(BAR_ITEM, RING_THREADS);
}

#endif /* CQK_CUDA_ATTN_WGMMA_CUH */
