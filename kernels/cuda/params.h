/* SPDX-License-Identifier: MIT */
/*
 * What the host hands to kernels: structs of one layout for C and for device
 * code. Addresses are 64-bit numbers and mean device memory, unless said
 * otherwise. Nothing here is stored or sent: layouts may change with the build.
 */
#ifndef CQK_CUDA_PARAMS_H
#define CQK_CUDA_PARAMS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define CQKD_FROZEN(cond) static_assert(cond, "host and device disagree")
#else
#define CQKD_FROZEN(cond) _Static_assert(cond, "host and device disagree")
#endif

#define CQKD_TOKENS	64	/* of a page or an fp16 block */
#define CQKD_CENTROIDS	256	/* of a group with codes of 8 bits */
#define CQKD_UPPER	16	/* bytes of a group's upper bits, with codes of 10 */
#define CQKD_THREADS	128	/* of a block of any kernel but the wide ones */
#define CQKD_CHUNK	4096	/* bytes under one XXH3-64 */
#define CQKD_CHECKS	16	/* of them per block of threads, eight lanes each */

/* Element types of a view, the numbers of enum cq_dtype. */
#define CQKD_F32	0
#define CQKD_F16	1
#define CQKD_BF16	2

/**
 * struct cqkd_view - [token][head][channel], as struct cq_view
 * @data:         first element, aligned to its type
 * @stride_token: elements between tokens
 * @stride_head:  elements between heads
 * @dtype:        CQKD_F32, CQKD_F16 or CQKD_BF16
 * @pad:          0
 */
struct cqkd_view {
	uint64_t data;
	int64_t stride_token;
	int64_t stride_head;
	uint32_t dtype;
	uint32_t pad;
};

/**
 * struct cqkd_book - codebook of K or V of one layer, all kv heads
 * @f16:      [kv_head][group][2^bits][channels] halves
 * @rows:     [kv_head][slice][2^bits][channels of a slice] halves: of all groups of a slice
 *            the centroids of one code side by side. Slices are of cqk_cuda_slice() channels
 *            that follow each other; of keys, half of them of either half of the head.
 *            attn_few.cu has one slice. 0: a head of which no kernel has use for it
 * @i8:       the shape of @f16, as stored; 0 where halves are what is stored
 * @scale:    [kv_head][d] f32 for @i8
 * @norm:     [kv_head][group][2^bits] f32, half the squared length
 * @metric:   [kv_head][d] f32, on the centroids when encoding; 0: none
 * @channels: of a group: 2, 4 or 8; 0: not coded, blocks are halves
 * @bits:     of a code: 8, with 8 channels also 10; 0: not coded
 * @groups:   d / channels
 */
struct cqkd_book {
	uint64_t f16;
	uint64_t rows;
	uint64_t i8;
	uint64_t scale;
	uint64_t norm;
	uint64_t metric;
	uint16_t channels;
	uint16_t bits;
	uint32_t groups;
};

/**
 * struct cqkd_layer - a layer of a model in device memory
 * @k:       codebook of keys
 * @v:       codebook of values
 * @offset:  of the layer in a page's payload
 * @k_bytes: of a kv head's K block
 * @v_bytes: of its V block, which follows
 */
struct cqkd_layer {
	struct cqkd_book k, v;
	uint64_t offset;
	uint64_t k_bytes, v_bytes;
};

/*
 * near.cuh: columns of the products that find candidates, and pairs of channels of which
 * these have the rest of a centroid, too.
 */
#define CQKD_NEAR_COLUMNS(channels)	((channels) > 4 ? 16 : 8)
#define CQKD_NEAR_REST(channels)	((channels) > 4 ? 3 : 1)

/**
 * struct cqkd_bound - of a group: how far its products can be from distances
 * @shift: halves by channel, whose product with |x| exceeds each |x.e|
 * @slack: the same; that product times @unit is twice the largest difference, but for
 * @fixed: what of it does not depend on x
 * @unit:  a power of two
 * @one:   two halves, the power of two by which @tail of struct cqkd_near is multiplied
 * @pad:   0
 */
struct cqkd_bound {
	uint16_t shift[8];
	uint16_t slack[8];
	float fixed;
	float unit;
	uint32_t one;
	uint32_t pad;
};

/**
 * struct cqkd_near - a codebook for tensor cores, which find candidates: see near.h
 * @top:   [kv_head][group][256][channels] halves: what x is multiplied with, times a power
 *         of two of the group, rounded. Of fp16 centroids without a metric their own
 * @rest:  [kv_head][group][256][CQKD_NEAR_REST()][2] halves: what @top lacks; 0: nothing
 * @tail:  [kv_head][group][256][2] halves: half the squared length, and what that lacks
 * @bound: [kv_head][group] struct cqkd_bound
 */
struct cqkd_near {
	uint64_t top;
	uint64_t rest;
	uint64_t tail;
	uint64_t bound;
};

/**
 * struct cqkd_rope - cos and sin, as struct cqk_rope
 * @base:    [n_base][2][half] f32
 * @in_page: [64][2][half] f32
 * @half:    pairs; 0: nothing is rotated
 * @n_base:  positions covered, by 64
 * @mixed:   leading channels of keys and queries whose pairs are neighbours in
 *           views, 2j and 2j + 1; as stored j and j + @mixed / 2. 0: none
 * @factor:  on the first 2 * @half channels of queries, or of keys that turn
 */
struct cqkd_rope {
	uint64_t base;
	uint64_t in_page;
	uint32_t half;
	uint32_t n_base;
	uint32_t mixed;
	float factor;
};

/**
 * struct cqkd_dest - where up to 64 appended tokens go
 * @f16:    fp16 block, [layer][kv_head][K|V][tokens][d], a multiple of 16; 0: none
 * @codes:  payload of a page, a multiple of 16; 0: none
 * @tokens: rows of the fp16 block: 64, or the number of sinks
 * @first:  index of the first token in the block and in the page
 * @count:  tokens
 * @row:    row of the views that is the first token
 * @pos:    position of the first token
 * @tag:    what @bad is raised to
 * @bad:    address of a u32 that tells of values no fp16 can hold; 0: none
 */
struct cqkd_dest {
	uint64_t f16;
	uint64_t codes;
	uint32_t tokens;
	uint32_t first;
	uint32_t count;
	uint32_t row;
	uint32_t pos;
	uint32_t tag;
	uint64_t bad;
};

/**
 * struct cqkd_append - encode and append
 * @k:       keys of the new tokens
 * @v:       values
 * @at:      the layer
 * @near_k:  codebook of keys for tensor cores
 * @near_v:  of values
 * @rope:    tables, if @turn; @mixed counts without them
 * @dests:   [*n_dests] struct cqkd_dest
 * @n_dests: address of their number, u32
 * @status:  address of a u64, see cqkd_bad_key(): raised, never lowered
 * @layer:   index of the layer
 * @n_kv_heads: kv heads
 * @d:       channels of a head
 * @turn:    keys: 1 rotate, -1 undo the rotation, 0 as they are
 */
struct cqkd_append {
	struct cqkd_view k, v;
	struct cqkd_layer at;
	struct cqkd_near near_k, near_v;
	struct cqkd_rope rope;
	uint64_t dests;
	uint64_t n_dests;
	uint64_t status;
	uint32_t layer;
	uint32_t n_kv_heads;
	uint32_t d;
	int32_t turn;
};

/*
 * Status word of appends: 0, or the complement of the least of these over all
 * values that no fp16 can hold: layer, row of the view, head, K or V, channel.
 */
#define CQKD_BAD_LAYER(key)	((uint32_t)((key) >> 48 & 0xff))
#define CQKD_BAD_ROW(key)	((uint32_t)((key) >> 16))
#define CQKD_BAD_HEAD(key)	((uint32_t)((key) >> 9 & 0x7f))
#define CQKD_BAD_V(key)		((uint32_t)((key) >> 8 & 1))
#define CQKD_BAD_CHANNEL(key)	((uint32_t)((key) & 0xff))

/**
 * struct cqkd_block - one block of tokens, as struct cqk_block
 * @base:       first byte, a multiple of 16
 * @kind:       enum cqk_block_kind
 * @tokens:     64 for codes; 1..64 for fp16
 * @span_first: first of its spans
 * @n_spans:    number of spans
 */
struct cqkd_block {
	uint64_t base;
	uint32_t kind;
	uint32_t tokens;
	uint32_t span_first;
	uint32_t n_spans;
};

/**
 * struct cqkd_span - one sequence's use of a block, as struct cqk_span
 * @mask:      tokens of the block that count
 * @row_first: first query row
 * @n_rows:    query rows
 * @pos:       position of token 0 of the block in this sequence
 * @pad:       0
 */
struct cqkd_span {
	uint64_t mask;
	uint32_t row_first;
	uint32_t n_rows;
	uint32_t pos;
	uint32_t pad;
};

/**
 * struct cqkd_entry - one query row of a group of blocks
 * @row:  query row
 * @span: which of the spans of each block of the group is its
 */
struct cqkd_entry {
	uint32_t row;
	uint32_t span;
};

/**
 * struct cqkd_item - what one block of threads does for one kv head
 * @block:    first block of tokens
 * @n_blocks: how many
 * @entry:    first entry of the group; its vectors are entry by entry, the
 *            query heads of the kv head in order
 * @vec:      first vector of the group that this item computes
 * @n_vecs:   how many
 * @slot:     where the partial result of vector @vec goes; the rest follows
 */
struct cqkd_item {
	uint32_t block;
	uint32_t n_blocks;
	uint32_t entry;
	uint32_t vec;
	uint32_t n_vecs;
	uint32_t slot;
};

/**
 * struct cqkd_plan - head of a plan; offsets are in bytes from here
 * @n_items:  items in use
 * @n_rows:   query rows in use
 * @items:    [n_items] struct cqkd_item, the wide ones first
 * @entries:  struct cqkd_entry
 * @blocks:   struct cqkd_block
 * @spans:    struct cqkd_span
 * @row_pos:  [n_rows] u32, position of each row
 * @row_refs: [n_rows + 1] u32, where a row's part of @refs begins
 * @refs:     u32: slot of the row's first query head in a partial result
 * @bytes:    of the whole plan
 * @n_wide:   items of more than CQKD_VECS() vectors
 * @vecs:     most vectors of an item that is not one of these
 * @pad:      0
 */
struct cqkd_plan {
	uint32_t n_items;
	uint32_t n_rows;
	uint32_t items;
	uint32_t entries;
	uint32_t blocks;
	uint32_t spans;
	uint32_t row_pos;
	uint32_t row_refs;
	uint32_t refs;
	uint32_t bytes;
	uint32_t n_wide;
	uint32_t vecs;
	uint32_t pad[4];
};

/**
 * struct cqkd_attn - attention of one layer
 * @q:         [n_rows][n_heads][d]
 * @o:         the same shape
 * @at:        the layer
 * @rope:      tables; half 0: nothing is rotated; @mixed counts without them
 * @plan:      struct cqkd_plan and what it names
 * @part_ml:   [kv head of the call][max_slots][2] f32: maximum and sum
 * @part_o:    [kv head of the call][max_slots][d] f32
 * @lse:       [n_rows] of @lse_stride f32, or 0
 * @lse_stride: floats between rows
 * @layer:     index of the layer
 * @n_kv_heads: kv heads of the model
 * @head_begin: first kv head of the call
 * @n_heads:   kv heads of the call
 * @gqa:       query heads of a kv head
 * @d:         channels of a head
 * @max_items: items that are not wide that there are blocks of threads for
 * @max_rows:  rows that there are warps for
 * @max_slots: of a kv head in @part_ml and @part_o
 * @turn_q:    queries are to be rotated to their row's position
 * @turn_k:    keys are stored before RoPE
 * @scale:     factor on q.k
 * @soft_cap:  > 0: s -> cap * tanh(s / cap)
 * @window:    sliding window, 0: none
 * @base2:     the lse is a logarithm to base 2
 * @few:       items of at most so many vectors are attn_few.cu's or those of another kernel
 *             for few; 0: none are
 * @tiles:     attn_books.cu: tiles that it has room for
 * @least:     and of so many at least, if another kernel has those of fewer
 * @lut:       words of a row of attn_lut.cu's table
 * @pad:       0
 */
struct cqkd_attn {
	struct cqkd_view q, o;
	struct cqkd_layer at;
	struct cqkd_rope rope;
	uint64_t plan;
	uint64_t part_ml;
	uint64_t part_o;
	uint64_t lse;
	uint64_t lse_stride;
	uint32_t layer;
	uint32_t n_kv_heads;
	uint32_t head_begin;
	uint32_t n_heads;
	uint32_t gqa;
	uint32_t d;
	uint32_t max_items;
	uint32_t max_rows;
	uint32_t max_slots;
	uint32_t turn_q;
	uint32_t turn_k;
	float scale;
	float soft_cap;
	uint32_t window;
	uint32_t base2;
	uint32_t few;
	uint32_t tiles;
	uint32_t least;
	uint32_t lut;
	uint32_t pad;
};

/*
 * Query vectors that a block of threads computes at once, and its pitches. A
 * wide block has its results in registers, which hold so many and no more.
 */
#define CQKD_WIDE_THREADS	256
#define CQKD_WIDE_VECS(d)	((d) > 128 ? 112 : 256)
#define CQKD_VECS(d)		((d) > 128 ? 32 : 64)
#define CQKD_PITCH(d)		((d) + 8)	/* halves between rows of d channels */
#define CQKD_Q_PITCH(d)		((d) + 4)	/* floats between queries */
#define CQKD_S_PITCH		(CQKD_TOKENS + 4)
#define CQKD_P_PITCH		(CQKD_TOKENS + 8)

/* Shared memory of cqk_append: rows of a destination. */
#define CQKD_APPEND_SHARED(d)	(CQKD_TOKENS * CQKD_PITCH(d) * 2)

/* Shared memory of cqk_attn_d*, in the order in which attn.cu lays it out. */
#define CQKD_ATTN_SHARED(d, vecs) \
	((vecs) * CQKD_Q_PITCH(d) * 4 +		/* q, f32 */ \
	 (vecs) * CQKD_PITCH(d) * 2 +		/* q, halves */ \
	 CQKD_TOKENS * CQKD_PITCH(d) * 2 +	/* K or V */ \
	 (vecs) * CQKD_S_PITCH * 4 +		/* scores */ \
	 (vecs) * CQKD_P_PITCH * 2 +		/* probabilities */ \
	 (vecs) * 40 + 64)			/* vectors, live tokens */

/* The same of cqk_attn_wide_d*. */
#define CQKD_WIDE_SHARED(d) \
	((CQKD_WIDE_VECS(d) + CQKD_TOKENS) * CQKD_PITCH(d) * 2 +	/* q; K or V */ \
	 CQKD_WIDE_VECS(d) * 24 + CQKD_WIDE_THREADS / 32 * 8)		/* vectors, live tokens */

/*
 * attn_few.cu: warps of a block, of which four take a page; query vectors at once; bytes
 * between a page's groups of codes in shared memory, of which 64 are codes: at this
 * distance four groups are in different banks.
 */
#define CQKD_FEW_WARPS		12
#define CQKD_FEW_PAGES		(CQKD_FEW_WARPS / 4)
#define CQKD_FEW_VECS		8
#define CQKD_FEW_STRIDE		80
#define CQKD_FEW_DIM		128	/* most channels of a head */
#define CQKD_FEW_SIGHTS		12	/* pages of which it is known what is to be read */

/*
 * Bytes of a page's codes there; of two stages of them and of queries as halves, where
 * results are added up too.
 */
#define CQKD_FEW_CODES(groups)	((groups) * CQKD_FEW_STRIDE)
#define CQKD_FEW_PAGE(d, groups) \
	(CQKD_FEW_VECS * (d) * 2 + CQKD_FEW_CODES(groups))
#define CQKD_FEW_STAGES(d, groups, pages) \
	(2 * (pages) * CQKD_FEW_PAGE(d, groups) > 4 * CQKD_FEW_VECS * (d) * 4 ? \
	 2 * (pages) * CQKD_FEW_PAGE(d, groups) : 4 * CQKD_FEW_VECS * (d) * 4)

/* Shared memory by @warps, with centroids of so many bytes a channel; @groups: K's and V's. */
#define CQKD_FEW_SHARED_BY(d, groups, warps, bytes) \
	(2 * CQKD_CENTROIDS * (d) * (bytes) +			/* centroids */ \
	 (d) * 4 +						/* turns */ \
	 CQKD_FEW_VECS * CQKD_Q_PITCH(d) * 4 +			/* queries */ \
	 CQKD_FEW_SIGHTS * (24 + CQKD_FEW_VECS * 12) +		/* what they see */ \
	 128 + 32 +						/* orders of values; item */ \
	 CQKD_FEW_VECS * 16 +					/* vectors */ \
	 (warps) * CQKD_FEW_VECS * 8 +				/* maxima and sums of warps */ \
	 CQKD_FEW_STAGES(d, groups, (warps) / 4))
#define CQKD_FEW_SHARED(d, groups) CQKD_FEW_SHARED_BY(d, groups, CQKD_FEW_WARPS, 2)

/* attn_bytes.cu: the same with centroids of a byte a channel, by fewer warps. */
#define CQKD_BYTES_WARPS	8
#define CQKD_BYTES_SHARED(d, groups) CQKD_FEW_SHARED_BY(d, groups, CQKD_BYTES_WARPS, 1)

/*
 * attn_lut.cu: most warps of a block, two of which take a page; query vectors at once;
 * tokens of a warp. Shared memory of cqk_attn_lut_d*, with a table of @words in a row, and
 * for each warp two tiles of codes, @groups: of K and V together.
 */
#define CQKD_LUT_WARPS		12
#define CQKD_LUT_WARPS_99K	8	/* with 128 channels, where blocks have 99 KiB */
#define CQKD_LUT_VECS		2
#define CQKD_LUT_TOKENS		(CQKD_TOKENS / 2)
#define CQKD_LUT_SHARED(d, words, warps, groups) \
	(CQKD_CENTROIDS * (d) * 2 +				/* centroids of V */ \
	 CQKD_LUT_VECS * (CQKD_Q_PITCH(d) * 4 + (d) * 2) +	/* queries */ \
	 CQKD_LUT_VECS * 16 + 16 +				/* vectors; their factors */ \
	 CQKD_LUT_WARPS * CQKD_LUT_VECS * 12 +			/* what warps have found */ \
	 CQKD_CENTROIDS * (words) * 4 + (warps) * 2 * CQKD_LUT_TOKENS * (groups))

/*
 * attn_books.cu: query vectors at once; shared memory with @groups of K and V together and
 * one tile (swizzle.cuh) or two.
 */
#define CQKD_BOOKS_VECS		128
#define CQKD_TILE_BYTES		(CQKD_TOKENS * 128 * 2)
#define CQKD_BOOKS_SHARED(groups, tiles) \
	(2 * CQKD_CENTROIDS * 128 * 2 +				/* centroids */ \
	 CQKD_BOOKS_VECS * 32 + CQKD_WIDE_THREADS / 32 * 16 +	/* vectors, live tokens */ \
	 2 * 256 +						/* positions */ \
	 2 * (groups) * CQKD_TOKENS +				/* codes */ \
	 (tiles) * CQKD_TILE_BYTES)

/*
 * attn_wgmma.cuh: warpgroups that multiply, 64 vectors each; threads with those that bring
 * pages; shared memory of @stages pages, a multiple of 1024.
 */
#define CQKD_WGMMA_READERS	2
#define CQKD_WGMMA_VECS		(CQKD_WGMMA_READERS * 64)
#define CQKD_WGMMA_THREADS	((CQKD_WGMMA_READERS + 1) * 128)
#define CQKD_WGMMA_RING(stages) \
	(((stages) * (2 * CQKD_TILE_BYTES +			/* keys and values */ \
		      CQKD_WGMMA_VECS * 8 + 32 + 16) +		/* live tokens; barriers */ \
	  CQKD_WGMMA_VECS * 16 + 1023) / 1024 * 1024)		/* vectors */

/*
 * attn_slices.cu: channels of a block, of heads of @d whose codes have at most @bits; blocks
 * of a cluster that have keys, and as many that have values; pages between two barriers of
 * the cluster; stages of them.
 */
#define CQKD_SLICE(d, bits)		((bits) > 8 ? 64 : 128)
#define CQKD_SLICES(d, bits)		((d) / CQKD_SLICE(d, bits))
#define CQKD_SLICES_PAGES(slices)	((slices) > 2 ? CQKD_FEW_PAGES : 2 * CQKD_FEW_PAGES)
#define CQKD_SLICES_STAGES		3
#define CQKD_SLICES_SIGHTS		5	/* rounds of which it is known what is to be read */

/*
 * Bytes of shared memory but for codes and centroids: queries as halves for keys, scores for
 * values and results share a place. Then those of a block whose codes have @bits.
 */
#define CQKD_SLICES_Q(w, pages)		(CQKD_SLICES_STAGES * (pages) * CQKD_FEW_VECS * (w) * 2)
#define CQKD_SLICES_SCORES(slices, pages) \
	(2 * (slices) * (pages) * CQKD_TOKENS * CQKD_FEW_VECS * 4)
#define CQKD_SLICES_FIXED(d, w, slices, pages) \
	((w) * 8 +						/* turns */ \
	 CQKD_FEW_VECS * CQKD_Q_PITCH(d) * 4 +			/* queries */ \
	 (CQKD_SLICES_SIGHTS * (pages) * (24 + CQKD_FEW_VECS * 12) + 15) / 16 * 16 + \
	 128 + 32 +						/* orders of values; item */ \
	 CQKD_FEW_VECS * 16 +					/* vectors */ \
	 CQKD_FEW_WARPS * CQKD_FEW_VECS * 8 +			/* maxima and sums of warps */ \
	 (CQKD_SLICES_SCORES(slices, pages) > CQKD_SLICES_Q(w, pages) ? \
	  CQKD_SLICES_SCORES(slices, pages) : CQKD_SLICES_Q(w, pages)))
#define CQKD_SLICES_BOOK(w, channels, bits, pages) \
	(CQKD_SLICES_STAGES * (pages) * CQKD_FEW_CODES((w) / (channels)) + (2 * (w) << (bits)))

/* Shared memory of cqk_attn_slices_d*: the largest codes and centroids of both. */
#define CQKD_SLICES_LARGER(a, b)	((a) > (b) ? (a) : (b))
#define CQKD_SLICES_SHARED_OF(d, w, slices, pages, kc, kb, vc, vb) \
	(CQKD_SLICES_FIXED(d, w, slices, pages) + \
	 CQKD_SLICES_LARGER(CQKD_SLICES_BOOK(w, kc, kb, pages), \
			    CQKD_SLICES_BOOK(w, vc, vb, pages)))
#define CQKD_SLICES_SHARED(d, bits, kc, kb, vc, vb) \
	CQKD_SLICES_SHARED_OF(d, CQKD_SLICE(d, bits), CQKD_SLICES(d, bits), \
			      CQKD_SLICES_PAGES(CQKD_SLICES(d, bits)), kc, kb, vc, vb)

/* attn_books_wgmma.cu: pages in its ring; shared memory with @groups of K and V together. */
#define CQKD_WGMMA_STAGES	2
#define CQKD_WGMMA_SHARED(groups) \
	((CQKD_WGMMA_RING(CQKD_WGMMA_STAGES) + \
	  2 * CQKD_CENTROIDS * 128 * 2 +			/* centroids */ \
	  2 * (groups) * CQKD_TOKENS +				/* codes */ \
	  2 * 256 + 24 + 1023) / 1024 * 1024)			/* positions; barriers */

/* attn_ring.cuh: warps of a block, 16 tokens each, and how many of these are on their way. */
#define CQKD_F16_WARPS		4
#define CQKD_F16_STAGES		3
#define CQKD_RING_PITCH(d, bytes)	((d) * (bytes) + 16)	/* between rows in shared memory */
#define CQKD_RING_SHARED(d, bytes, stages) \
	(CQKD_F16_WARPS * (stages) * 2 * 16 * CQKD_RING_PITCH(d, bytes) + \
	 CQKD_FEW_VECS * (CQKD_PITCH(d) * 2 + CQKD_Q_PITCH(d) * 4 + 16) + \
	 CQKD_F16_WARPS * CQKD_FEW_VECS * 8 * (1 + (stages)))
#define CQKD_F16_SHARED(d)	CQKD_RING_SHARED(d, 2, CQKD_F16_STAGES)

/**
 * struct cqkd_check - one payload to be hashed
 * @data:  first byte, a multiple of 8
 * @bytes: of the payload
 * @out:   [ceil(bytes / 4096)] u64, the XXH3-64 of each 4 KiB
 */
struct cqkd_check {
	uint64_t data;
	uint64_t bytes;
	uint64_t out;
};

/**
 * struct cqkd_checks - hash payloads
 * @jobs:   [*n_jobs] struct cqkd_check
 * @n_jobs: address of their number, u32
 */
struct cqkd_checks {
	uint64_t jobs;
	uint64_t n_jobs;
};

/**
 * struct cqkd_gather - page headers from many places
 * @from: [@n] u64, address of each header, 16-byte aligned
 * @to:   [@n] headers of CQKD_HEADER bytes, 16-byte aligned
 * @n:    headers
 */
struct cqkd_gather {
	uint64_t from;
	uint64_t to;
	uint64_t n;
};

#define CQKD_HEADER	64	/* sizeof(struct cq_page_hdr) */

CQKD_FROZEN(sizeof(struct cqkd_view) == 32);
CQKD_FROZEN(offsetof(struct cqkd_view, dtype) == 24);
CQKD_FROZEN(sizeof(struct cqkd_book) == 56);
CQKD_FROZEN(offsetof(struct cqkd_book, channels) == 48);
CQKD_FROZEN(offsetof(struct cqkd_book, groups) == 52);
CQKD_FROZEN(sizeof(struct cqkd_layer) == 136);
CQKD_FROZEN(offsetof(struct cqkd_layer, offset) == 112);
CQKD_FROZEN(sizeof(struct cqkd_rope) == 32);
CQKD_FROZEN(sizeof(struct cqkd_dest) == 48);
CQKD_FROZEN(offsetof(struct cqkd_dest, tokens) == 16);
CQKD_FROZEN(offsetof(struct cqkd_dest, bad) == 40);
CQKD_FROZEN(sizeof(struct cqkd_bound) == 48);
CQKD_FROZEN(sizeof(struct cqkd_near) == 32);
CQKD_FROZEN(sizeof(struct cqkd_append) == 336);
CQKD_FROZEN(offsetof(struct cqkd_append, dests) == 296);
CQKD_FROZEN(offsetof(struct cqkd_append, turn) == 332);
CQKD_FROZEN(sizeof(struct cqkd_block) == 24);
CQKD_FROZEN(offsetof(struct cqkd_block, n_spans) == 20);
CQKD_FROZEN(sizeof(struct cqkd_span) == 24);
CQKD_FROZEN(offsetof(struct cqkd_span, pos) == 16);
CQKD_FROZEN(sizeof(struct cqkd_entry) == 8);
CQKD_FROZEN(sizeof(struct cqkd_item) == 24);
CQKD_FROZEN(sizeof(struct cqkd_plan) == 64);
CQKD_FROZEN(sizeof(struct cqkd_attn) == 352);
CQKD_FROZEN(offsetof(struct cqkd_attn, plan) == 232);
CQKD_FROZEN(offsetof(struct cqkd_attn, layer) == 272);
CQKD_FROZEN(offsetof(struct cqkd_attn, base2) == 328);
/* What a block of threads can have on sm_86, 89 and 120: 99 KiB. */
CQKD_FROZEN(CQKD_ATTN_SHARED(64, CQKD_VECS(64)) <= 101376);
CQKD_FROZEN(CQKD_ATTN_SHARED(128, CQKD_VECS(128)) <= 101376);
CQKD_FROZEN(CQKD_ATTN_SHARED(256, CQKD_VECS(256)) <= 101376);
CQKD_FROZEN(CQKD_WIDE_SHARED(64) <= 101376);
CQKD_FROZEN(CQKD_WIDE_SHARED(128) <= 101376);
CQKD_FROZEN(CQKD_WIDE_SHARED(256) <= 101376);
CQKD_FROZEN(sizeof(struct cqkd_check) == 24);
CQKD_FROZEN(sizeof(struct cqkd_checks) == 16);
CQKD_FROZEN(sizeof(struct cqkd_gather) == 24);

#endif /* CQK_CUDA_PARAMS_H */
