// SPDX-License-Identifier: MIT
/*
 * Attention of nine and more query vectors over pages that they all read at one position: what
 * attn_wide.cu does, but codebooks stay in shared memory (books.cuh), head_dim 128.
 *
 * A block of threads stays with one kv head, copies the codebooks of that head once and takes
 * item after item. All eight warps decode; each has 16 vectors, of which queries,
 * probabilities and results are in its registers. Where there is room for two tiles, keys of
 * the next page are decoded while values of this one are multiplied, and values while keys
 * are: warps meet twice for a page. With one tile they meet four times. Codes are on their
 * way for a page's time, and what is seen of a page is found out one page before.
 */
#include "kernels/cuda/attn_wide.cuh"
#include "kernels/cuda/books.cuh"

#define DIM BOOK_DIM
#define THREADS CQKD_WIDE_THREADS
#define WARPS (THREADS / 32)
#define VECS CQKD_BOOKS_VECS

struct books {
	__half book[2][CQKD_CENTROIDS][DIM];	/* of K and V */
	struct sights<VECS, WARPS, 2> see;
	struct book_base base[2];		/* positions of this page and the next */
	/* then: codes of two pages, K and V; one tile, or two */
};

/* What a warp keeps while an item lasts. */
struct held {
	uint32_t q[DIM / 16][4];	/* its queries, as fragments */
	struct tiles<DIM, VECS, WARPS> r;
};

/* What is the same for all threads. */
struct shop {
	const struct cqkd_attn &p;
	struct work w;
	struct books *sh;
	uint8_t *k, *v;			/* tiles, or one */
	bool one;
};

/* Bytes of a page's codes. */
template <int kc, int vc>
CQ_DEVICE constexpr uint32_t codes_bytes() { return (DIM / kc + DIM / vc) * CQKD_TOKENS; }

template <int kc, int vc>
CQ_DEVICE uint8_t *codes_of(const struct shop &t, uint32_t page)
{
	return reinterpret_cast<uint8_t *>(t.sh + 1) + page % 2 * codes_bytes<kc, vc>();
}

/* The centroids of the head. */
CQ_DEVICE void books_load(const struct shop &t)
{
	constexpr int n = CQKD_CENTROIDS * DIM / 8;
	size_t from = (size_t)t.w.head * CQKD_CENTROIDS * DIM;
	const __half *k = cqkd_ptr<const __half>(t.p.at.k.rows) + from;
	const __half *v = cqkd_ptr<const __half>(t.p.at.v.rows) + from;
	int i;

	for (i = threadIdx.x; i < n; i += THREADS) {
		cq_cp_async16(&t.sh->book[0][0][0] + i * 8, k + (size_t)i * 8);
		cq_cp_async16(&t.sh->book[1][0][0] + i * 8, v + (size_t)i * 8);
	}
	cq_cp_commit();
}

/*
 * A warp's queries, by way of the tiles, which have room for those of all warps, or of four if
 * there is one; floats where codes will be.
 */
template <int kc, int vc>
CQ_DEVICE void queries_hold(const struct shop &t, struct held &h)
{
	uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, turn, i;
	float *x = reinterpret_cast<float *>(t.sh + 1) + warp * DIM;
	__half *rows = reinterpret_cast<__half *>(t.k) + (t.one ? warp % 4 : warp) * 16 * DIM;
	int k;

	static_assert(2 * codes_bytes<kc, vc>() >= WARPS * DIM * 4, "room for queries");
	static_assert(WARPS / 2 * 16 * DIM * 2 <= CQKD_TILE_BYTES, "room for halves");
#pragma unroll 1
	for (turn = 0; turn < 2; turn++) {
		if (warp / 4 == turn && warp < t.w.n_tiles) {
#pragma unroll 1
			for (i = 0; i < 16; i += 4)
				queries_four<struct swizzled, DIM, 1>(t.p, t.w, warp * 16 + i, x,
								      rows - warp * 16 * DIM, DIM,
								      t.sh->see.query);
			/* once for an item: its conflicts do not matter */
#pragma unroll
			for (k = 0; k < DIM / 16; k++)
				cq_ldmatrix_x4(h.q[k], rows + lane % 16 * DIM + k * 16 +
						       lane / 16 * 8);
		}
		if (t.one)
			__syncthreads();
	}
}

/* Block @i of the item; past the end, one that nobody reads. */
CQ_DEVICE struct cqkd_block block_at(const struct shop &t, uint32_t i)
{
	if (i >= t.w.item.n_blocks)
		return {};
	return part_of<struct cqkd_block>(t.p, &cqkd_plan::blocks)[t.w.item.block + i];
}

/* Codes of page @i on their way, if it has any. K's and V's follow each other. */
template <int kc, int vc>
CQ_DEVICE void codes_load(const struct shop &t, const struct cqkd_block &b, uint32_t i)
{
	constexpr int n = codes_bytes<kc, vc>() / 16;
	const uint8_t *from = book_codes_at(t.p, b, t.w.head);
	uint8_t *to = codes_of<kc, vc>(t, i);
	int at;

	for (at = threadIdx.x; b.base && !b.kind && at < n; at += THREADS)
		cq_cp_async16(to + at * 16, from + at * 16);
	cq_cp_commit();
}

/* Keys of page @i, which is @b, to their tile. */
template <int kc, int vc>
CQ_DEVICE void keys_make(const struct shop &t, const struct book_frame<kc, THREADS> &f,
			 const struct cqkd_block &b, uint64_t live, uint32_t i)
{
	const struct book_base *base = &t.sh->base[i % 2];
	const struct book_rows rows = { book_rows_at(t.p, b, t.w.head), live };
	const struct book_codes codes = { t.sh->book[0][0], codes_of<kc, vc>(t, i) };

	if (b.kind)
		book_keys(threadIdx.x, rows, t.p.turn_k, base, f, t.k);
	else
		book_keys(threadIdx.x, codes, t.p.turn_k, base, f, t.k);
}

template <int kc, int vc>
CQ_DEVICE void values_make(const struct shop &t, const struct cqkd_block &b, uint64_t live,
			   uint32_t i)
{
	const struct book_rows rows = { book_rows_at(t.p, b, t.w.head) + b.tokens * DIM, live };
	const struct book_codes codes = { t.sh->book[1][0],
					  codes_of<kc, vc>(t, i) + DIM / kc * CQKD_TOKENS };

	if (b.kind)
		book_values<8, THREADS>(threadIdx.x, rows, t.v);
	else
		book_values<vc, THREADS>(threadIdx.x, codes, t.v);
}

/* Products of a warp's vectors with the tile's keys, and their probabilities. */
CQ_DEVICE void scores(const struct shop &t, uint32_t i, struct held &h)
{
	uint32_t warp = threadIdx.x / 32, b[2][4];
	float s[8][4] = {};
	int k, n, x;

	if (warp >= t.w.n_tiles)
		return;
#pragma unroll
	for (k = 0; k < DIM / 16; k += 2)
#pragma unroll
		for (n = 0; n < 4; n++) {
			swizzled::keys<true>(b, t.k + n * 16 * TILE_ROW, TILE_ROW, k);
#pragma unroll
			for (x = 0; x < 2; x++) {
				cq_mma_16816_f32(s[2 * n], h.q[k + x], b[x]);
				cq_mma_16816_f32(s[2 * n + 1], h.q[k + x], b[x] + 2);
			}
		}
	probabilities(t.p, t.sh->see, i % 2, warp * 16, s, h.r.at[0]);
}

/*
 * What has to be known of page @i, in two steps, so that it is loaded while others decode: who
 * sees it, by the first threads, and how its keys turn, by the last.
 */
struct outlook {
	struct cqkd_span span;
	uint32_t pos;
};

CQ_DEVICE struct outlook outlook_begin(const struct shop &t, const struct cqkd_block &b)
{
	struct outlook o = {};

	if (!b.base)
		return o;
	o.span = span_of(t.p, t.w, b, t.sh->see);
	if (t.p.turn_k && threadIdx.x >= THREADS - BOOK_PAIRS)
		o.pos = part_of<struct cqkd_span>(t.p, &cqkd_plan::spans)
			[b.span_first + t.sh->see.query[0].span].pos;
	return o;
}

CQ_DEVICE void outlook_end(const struct shop &t, const struct cqkd_block &b,
			   const struct outlook &o, uint32_t i)
{
	look_through(t.p, t.w, b, o.span, t.sh->see, i % 2);
	if (t.p.turn_k && threadIdx.x >= THREADS - BOOK_PAIRS)
		book_base_put(t.p.rope, o.pos, threadIdx.x - (THREADS - BOOK_PAIRS),
			      &t.sh->base[i % 2]);
}

/* All pages of the item. */
template <int kc, int vc>
CQ_DEVICE void pages(const struct shop &t, const struct book_frame<kc, THREADS> &f,
		     struct held &h)
{
	struct cqkd_block b = block_at(t, 0), next = block_at(t, 1);
	uint64_t live;
	uint32_t i;

	codes_load<kc, vc>(t, b, 0);
	codes_load<kc, vc>(t, next, 1);
	outlook_end(t, b, outlook_begin(t, b), 0);
	cq_cp_wait<1>();
	__syncthreads();
	live = live_of(t.sh->see, 0);
	if (live)
		keys_make<kc, vc>(t, f, b, live, 0);
	__syncthreads();
#pragma unroll 1
	for (i = 0; i < t.w.item.n_blocks; i++) {
		struct outlook o = outlook_begin(t, next);
		uint64_t was = live;

		if (was)
			scores(t, i, h);
		if (t.one)
			__syncthreads();
		if (was)
			values_make<kc, vc>(t, b, was, i);
		outlook_end(t, next, o, i + 1);
		cq_cp_wait<0>();
		__syncthreads();
		live = live_of(t.sh->see, (i + 1) % 2);
		b = next;
		next = block_at(t, i + 2);
		codes_load<kc, vc>(t, next, i + 2);
		if (was)
			tiles_values<struct swizzled>(t.w, t.v, h.r);
		if (t.one)
			__syncthreads();
		if (live)
			keys_make<kc, vc>(t, f, b, live, i + 1);
		__syncthreads();
	}
}

template <int kc, int vc>
CQ_DEVICE void attention(const struct cqkd_attn &p, struct books *sh)
{
	const struct cqkd_plan *plan = cqkd_ptr<const struct cqkd_plan>(p.plan);
	struct book_frame<kc, THREADS> f = {};
	struct shop t = { p, {}, sh, nullptr, nullptr, p.tiles < 2 };
	struct held h;
	uint32_t i;

	if (blockIdx.x >= plan->n_wide)
		return;
	t.k = codes_of<kc, vc>(t, 1) + codes_bytes<kc, vc>();
	t.v = t.one ? t.k : t.k + CQKD_TILE_BYTES;
	t.w.head = p.head_begin + blockIdx.y;
	books_load(t);
	if (p.turn_k)
		book_frame_load(p.rope, threadIdx.x, f);
	for (i = blockIdx.x; i < plan->n_wide; i += gridDim.x) {
		t.w.item = part_of<struct cqkd_item>(p, &cqkd_plan::items)[i];
		t.w.n_tiles = (t.w.item.n_vecs + 15) / 16;
		tiles_init(h.r);
		queries_hold<kc, vc>(t, h);
		__syncthreads();
		pages<kc, vc>(t, f, h);
		result_store<struct swizzled>(p, t.w, sh->see, 1, h.r);
		__syncthreads();	/* all have read what the next item writes */
	}
}

/* Grid: blocks that share the wide items of a kv head, kv heads of the call. */
#define ATTN_BOOKS(kc, vc) \
CQ_KERNEL_BLOCKS(THREADS, 1, cqk_attn_books_k##kc##v##vc, (struct cqkd_attn p)) \
{ \
	static_assert(sizeof(struct books) + 2 * codes_bytes<kc, vc>() + CQKD_TILE_BYTES == \
		      CQKD_BOOKS_SHARED(DIM / kc + DIM / vc, 1), "params.h"); \
	CQ_DYN_SHARED(struct books, sh); \
\
	attention<kc, vc>(p, sh); \
}
BOOK_KERNELS(ATTN_BOOKS)
