// SPDX-License-Identifier: MIT
/*
 * What attn_books.cu does, by the tensor cores of sm_90a: 128 threads decode pages from
 * codebooks in shared memory to a ring of two stages, while two warpgroups of 64 vectors
 * each multiply (attn_wgmma.cuh). A block of threads has a multiprocessor for itself, stays
 * with one kv head and takes item after item.
 *
 * The codes of a page's keys and values follow each other and are one copy in bulk, a
 * page's time before they are needed; each codebook is another. Of the threads that decode,
 * the first orders these, and each finds out what its vector sees. Where a page begins is
 * known one page before, too.
 */
#include "kernels/cuda/attn_wgmma.cuh"
#include "kernels/cuda/books.cuh"

#define STAGES CQKD_WGMMA_STAGES
#define BOOK_BYTES (CQKD_CENTROIDS * BOOK_DIM * 2)

#if CQ_WARPGROUPS
template <int kc, int vc>
struct shop {
	/* of a page, K and V */
	static const uint32_t codes_bytes = (BOOK_DIM / kc + BOOK_DIM / vc) * CQKD_TOKENS;

	struct tile_ring<STAGES> ring;
	__half book[2][CQKD_CENTROIDS][BOOK_DIM];	/* of K and V */
	uint8_t codes[2][codes_bytes];
	struct book_base base[2];			/* positions of two pages */
	uint64_t books_here, codes_here[2];
};

/* The head's centroids on their way: one thread. */
template <int kc, int vc>
CQ_DEVICE void books_fetch(const struct cqkd_attn &p, uint32_t head, struct shop<kc, vc> *sh)
{
	size_t from = (size_t)head * BOOK_BYTES;

	cq_mbar_expect(&sh->books_here, 2 * BOOK_BYTES);
	cq_bulk_load(sh->book[0], cqkd_ptr<const uint8_t>(p.at.k.rows) + from, BOOK_BYTES,
		     &sh->books_here);
	cq_bulk_load(sh->book[1], cqkd_ptr<const uint8_t>(p.at.v.rows) + from, BOOK_BYTES,
		     &sh->books_here);
}

/* Likewise the codes of @page, which is @b; an fp16 block has none, and it is not waited. */
template <int kc, int vc>
CQ_DEVICE void codes_fetch(const struct cqkd_attn &p, const struct work &w,
			   const struct cqkd_block &b, uint32_t page, struct shop<kc, vc> *sh)
{
	uint64_t *here = &sh->codes_here[page % 2];

	if (b.kind) {
		cq_mbar_arrive(here);
		return;
	}
	cq_mbar_expect(here, sh->codes_bytes);
	cq_bulk_load(sh->codes[page % 2], book_codes_at(p, b, w.head), sh->codes_bytes, here);
}

/* What has to be known of a page before it is decoded, loaded early. */
struct outlook {
	struct cqkd_block block;
	struct cqkd_span span;	/* the thread's vector's */
	uint32_t pos;
};

CQ_DEVICE struct outlook outlook_of(const struct cqkd_attn &p, const struct work &w,
				    const struct tile_ring<STAGES> *ring, uint32_t i)
{
	struct outlook o = {};

	if (i >= w.item.n_blocks)
		return o;
	o.block = part_of<struct cqkd_block>(p, &cqkd_plan::blocks)[w.item.block + i];
	o.span = span_of(p, w, o.block, ring->see);
	if (p.turn_k)
		o.pos = part_of<struct cqkd_span>(p, &cqkd_plan::spans)
			[o.block.span_first + ring->see.query[0].span].pos;
	return o;
}

/* Cos and sin of a page's position, by the second half of the threads. */
template <int kc, int vc>
CQ_DEVICE void base_put(const struct cqkd_attn &p, const struct outlook &o, uint32_t page,
			struct shop<kc, vc> *sh)
{
	if (p.turn_k && threadIdx.x >= GROUP - BOOK_PAIRS)
		book_base_put(p.rope, o.pos, threadIdx.x - (GROUP - BOOK_PAIRS),
			      &sh->base[page % 2]);
}

/* Keys and values of a page to its stage. */
template <int kc, int vc>
CQ_DEVICE void page_decode(const struct cqkd_attn &p, const struct work &w,
			   const struct cqkd_block &b,
			   const struct book_frame<kc, GROUP> &f, uint32_t page,
			   struct shop<kc, vc> *sh)
{
	uint8_t (*tile)[TILE_BYTES] = sh->ring.tile[sh->ring.stage(page)];
	const struct book_base *base = &sh->base[page % 2];
	const uint8_t *codes = sh->codes[page % 2];
	/* where a thread's units are is found anew: kept, it would take registers */
	uint32_t thread = cq_keep(threadIdx.x);

	if (b.kind) {
		uint64_t live = live_of(sh->ring.see, sh->ring.stage(page));
		const __half *rows = book_rows_at(p, b, w.head);
		const struct book_rows k = { rows, live }, v = { rows + b.tokens * BOOK_DIM, live };

		book_keys(thread, k, p.turn_k, base, f, tile[0]);
		book_values<8, GROUP>(cq_keep(thread), v, tile[1]);
	} else {
		const struct book_codes k = { sh->book[0][0], codes };
		const struct book_codes v = { sh->book[1][0], codes + BOOK_DIM / kc * CQKD_TOKENS };

		book_keys(thread, k, p.turn_k, base, f, tile[0]);
		book_values<vc, GROUP>(cq_keep(thread), v, tile[1]);
	}
}

/*
 * All pages of an item, for the threads that bring them. Behind its barrier all of them have
 * decoded the page before, so that what was that one's can become the next one's.
 */
template <int kc, int vc>
CQ_DEVICE void item_bring(const struct cqkd_attn &p, const struct work &w,
			  const struct book_frame<kc, GROUP> &f, uint32_t page,
			  struct shop<kc, vc> *sh)
{
	struct tile_ring<STAGES> *ring = &sh->ring;
	struct outlook o, next;
	uint32_t i;

	bring_begin();
	next = outlook_of(p, w, ring, 0);
	if (threadIdx.x == 0)
		codes_fetch(p, w, next.block, page, sh);
	base_put(p, next, page, sh);
#pragma unroll 1
	for (i = 0; i < w.item.n_blocks; i++, page++) {
		o = next;
		ring_claim(ring, page);
		look_through(p, w, o.block, o.span, ring->see, ring->stage(page));
		cq_bar_sync(BAR_BRING, GROUP);
		next = outlook_of(p, w, ring, i + 1);
		if (i + 1 < w.item.n_blocks) {
			if (threadIdx.x == 0)
				codes_fetch(p, w, next.block, page + 1, sh);
			base_put(p, next, page + 1, sh);
		}
		cq_mbar_wait(&sh->codes_here[page % 2], page / 2 & 1);
		page_decode(p, w, o.block, f, page, sh);
		ring_filled(ring, page);
	}
}

template <int kc, int vc, bool brings>
CQ_DEVICE void items(const struct cqkd_attn &p, struct shop<kc, vc> *sh)
{
	const struct cqkd_plan *plan = cqkd_ptr<const struct cqkd_plan>(p.plan);
	struct book_frame<kc, GROUP> f = {};
	uint32_t page = 0, i;
	struct work w;

	w.head = p.head_begin + blockIdx.y;
	if (brings) {
		if (threadIdx.x == 0)
			books_fetch(p, w.head, sh);
		if (p.turn_k)
			book_frame_load(p.rope, threadIdx.x, f);
		cq_mbar_wait(&sh->books_here, 0);
	}
	for (i = blockIdx.x; i < plan->n_wide; i += gridDim.x) {
		w.item = part_of<struct cqkd_item>(p, &cqkd_plan::items)[i];
		w.n_tiles = ring_tiles(w.item.n_vecs);
		if (brings)
			item_bring(p, w, f, page, sh);
		else
			reader_item(p, w, &sh->ring, page);
		page += w.item.n_blocks;
	}
}

template <int kc, int vc>
CQ_DEVICE void attention(const struct cqkd_attn &p, struct shop<kc, vc> *sh)
{
	if (blockIdx.x >= cqkd_ptr<const struct cqkd_plan>(p.plan)->n_wide)
		return;
	ring_init(&sh->ring);
	if (threadIdx.x == 0) {
		cq_mbar_init(&sh->books_here, 1);
		cq_mbar_init(&sh->codes_here[0], 1);
		cq_mbar_init(&sh->codes_here[1], 1);
		cq_fence_async();
	}
	__syncthreads();
	if (threadIdx.x < GROUP) {
		cq_registers_less<136>();
		items<kc, vc, true>(p, sh);
	} else {
		cq_registers_more<184>();
		items<kc, vc, false>(p, sh);
	}
}

/* Grid: blocks that share the wide items of a kv head, kv heads of the call. */
#define ATTN_BOOKS(kc, vc) \
CQ_KERNEL_BLOCKS(RING_THREADS, 1, cqk_attn_books_wgmma_k##kc##v##vc, (struct cqkd_attn p)) \
{ \
	using room = struct shop<kc, vc>; \
\
	static_assert(sizeof(room) == CQKD_WGMMA_SHARED(BOOK_DIM / kc + BOOK_DIM / vc), \
		      "params.h"); \
	CQ_DYN_SHARED_ALIGNED(1024, room, sh); \
\
	attention<kc, vc>(p, sh); \
}
BOOK_KERNELS(ATTN_BOOKS)
#endif
