/* SPDX-License-Identifier: MIT */
/*
 * Inside the kernels only: attention by decoded tiles, shared by every
 * implementation.
 *
 * The driver (portable_attn.c) walks blocks and spans, collects query vectors
 * that see something of a block and hands them to struct cqk_tile_ops in
 * chunks: scores, softmax, accumulation. A block is decoded at most once per
 * kv head, whatever number of spans and rows reads it. The arithmetic is
 * tile.h, compiled once per instruction set; an implementation may also take
 * a block for itself and use the driver's state (struct cqk_head).
 */
#ifndef CQK_ATTN_H
#define CQK_ATTN_H

#include <math.h>
#include <string.h>
#include "kernels/kernels.h"

#define CQK_T CQ_PAGE_TOKENS
/* Query vectors handled together: a multiple of every kernel's row block. */
#define CQK_CHUNK 48
/* Tile rows are padded to this many floats with zeros. */
#define CQK_PAD 32
/* Centroids of one group with codes of 8 bits, and the most there are. */
#define CQK_CENTROIDS 256
#define CQK_CENTROIDS_10 1024
/* Largest query channel times scale: squares and products with keys stay finite. */
#define CQK_MAX_QUERY 1e15f
/* Vector encoders take groups of up to this many channels. */
#define CQK_MAX_CHANNELS 32

/**
 * struct cqk_src - one block of one kv head, K or V, as it is stored
 * @data:    first byte
 * @cb:      codebook, or NULL: halves, [tokens][d]
 * @kv_head: head in @cb
 * @tokens:  tokens stored, 64 for codes
 * @d:       channels
 * @live:    tokens that some span reads; the others may be garbage
 * @next:    what is read after it, of the same layer; NULL: nothing known
 */
struct cqk_src {
	const uint8_t *data;
	const struct cqk_codebook *cb;
	uint32_t kv_head;
	uint32_t tokens;
	uint32_t d;
	uint64_t live;
	const uint8_t *next;
};

/**
 * struct cqk_chunk - query vectors against one tile
 * @n:     vectors, at most CQK_CHUNK
 * @d:     channels
 * @dpad:  floats between rows of @q, @v and of each @o
 * @q:     [n][dpad] scaled, turned into the block's frame
 * @k:     [d][64] keys, turned by the in-page offset
 * @v:     [64][dpad] values, 0 for tokens not read
 * @s:     [n][64] scores, then probabilities
 * @vis:   [n] tokens each vector sees, never 0
 * @o:     [n] output accumulators
 * @m:     [n] running maxima, -inf at first
 * @l:     [n] running sums
 * @soft_cap: 0 = none
 * @tokens: tokens of the block
 */
struct cqk_chunk {
	uint32_t n, d, dpad, tokens;
	float soft_cap;
	float *q, *k, *v, *s;
	uint64_t vis[CQK_CHUNK];
	float *o[CQK_CHUNK];
	float *m[CQK_CHUNK];
	float *l[CQK_CHUNK];
};

/**
 * struct cqk_tile_ops - arithmetic of one instruction set
 * @few:     all of it for a chunk that is its block's only one, straight from
 *           the stored block; false if it would rather have a tile
 * @load_k:  decode @src to [d][64], turned by the in-page offset if @rope;
 *           @tmp has room for [64][dpad]
 * @load_v:  decode @src to [64][dpad]; rows not in @src->live become 0
 * @scores:  chunk.s = q k
 * @softmax: cap, mask, running max and sum, chunk.s = exp(s - m), o rescaled
 * @accum:   chunk.o += s v
 */
struct cqk_tile_ops {
	bool (*few)(struct cqk_chunk *c, const struct cqk_src *k,
		    const struct cqk_src *v, const struct cqk_rope *rope);
	void (*load_k)(const struct cqk_src *src, const struct cqk_rope *rope,
		       float *k, float *tmp);
	void (*load_v)(const struct cqk_src *src, float *v, uint32_t dpad);
	void (*scores)(const struct cqk_chunk *c);
	void (*softmax)(struct cqk_chunk *c);
	void (*accum)(const struct cqk_chunk *c);
};

/**
 * struct cqk_head - state of one kv head during a call, in the scratch
 * @a:      the call
 * @head:   kv head
 * @gqa:    query heads per kv head; vector i is row i / gqa, head i % gqa
 * @nq:     vectors: rows * gqa
 * @q:      [nq][dpad], scaled; rotated to the row's position where keys are
 * @o, @m, @l: [nq][dpad], [nq], [nq] softmax state; @l is NaN for a query that
 *          is not finite or too large, its @q is 0 then
 * @turn:   [2][half] rotation by the position of the span at hand
 * @extra:  what the implementation asked for beyond cqk_head_bytes()
 * @loaded: the tile in @chunk is the block at hand
 */
struct cqk_head {
	const struct cqk_attn *a;
	uint32_t head, gqa, nq, dpad;
	float *q, *o, *m, *l;
	float *turn;
	void *extra;
	bool loaded;
	struct cqk_chunk chunk;
};

/* Scratch of the driver for @n_rows rows, a multiple of 64 bytes. */
size_t cqk_head_bytes(const struct cqk_model *model, uint32_t n_rows);

/* Starts a kv head: lays out the scratch, loads the queries. */
struct cqk_head *cqk_head_begin(const struct cqk_attn *a, uint32_t head);

/* Adds one block. */
void cqk_head_block(struct cqk_head *h, const struct cqk_block *b,
		    const struct cqk_tile_ops *ops);

/* Writes o and lse. */
void cqk_head_end(struct cqk_head *h);

/* The whole call by tiles: what a struct cqk_ops.attention may consist of. */
void cqk_attn_tiled(const struct cqk_attn *a, const struct cqk_tile_ops *ops);

/*
 * What a factor of 1 comes to where tables of 16 bits have 32767 for it: a share of
 * every score that is given back to the query.
 */
#define CQK_Q15_ONE (32767.0f / 32768.0f)

/* What rounding may cost a score: an output is off by a few times as much. */
#define CQK_SCORE_ERROR 2.5e-4f

/**
 * cqk_coarse() - do scores from integers lose more than they may?
 * @step: what one unit of what is rounded counts in a score
 * @n:    such roundings in a sum
 *
 * A rounding is off by 1/sqrt(12) units, rms. Queries of one large channel
 * among small ones, and large scores, come out coarse.
 *
 * Return: true if another way is to be taken. Thread-safe.
 */
static inline bool cqk_coarse(float step, uint32_t n)
{
	return step * 0.29f * sqrtf((float)n) > CQK_SCORE_ERROR;
}

/* Vectors that implementations with own page loops take: lanes. */
#define CQK_LANES 8

/**
 * struct cqk_page_ops - for an implementation with its own loop over pages
 * @turn: the lanes that follow see the page at position @pos
 * @lane: vector @lane sees something: prepare its query
 * @page: all lanes of one use of the page; @vis: [CQK_LANES], 0 = sees nothing
 */
struct cqk_page_ops {
	void (*turn)(void *ctx, uint32_t pos);
	void (*lane)(void *ctx, uint32_t lane);
	void (*page)(void *ctx, const struct cqk_block *b, const uint64_t *vis);
};

/* Calls @ops for each use of @b; at most CQK_LANES vectors in the call. */
void cqk_head_page(struct cqk_head *h, const struct cqk_block *b,
		   const struct cqk_page_ops *ops, void *ctx);

/* Tokens of @b that a row at @row_pos sees through @s. */
uint64_t cqk_visible(const struct cqk_attn *a, const struct cqk_block *b,
		     const struct cqk_span *s, uint32_t row_pos);

/* Where K (@v false) or V of a block lies, and how it is coded. */
struct cqk_src cqk_block_src(const struct cqk_attn *a, const struct cqk_block *b,
			     uint32_t head, bool v, uint64_t live);

/* Codes are bytes: most fast paths want that. */
static inline bool cqk_byte_codes(const struct cqk_codebook *cb)
{
	return cb->code.bits == CQ_LOW_BITS;
}

/* Its centroids are bytes with a scale per channel. NULL has none. */
static inline bool cqk_has_i8(const struct cqk_codebook *cb)
{
	return cb && cb->code.type == CQ_CODE_CQ && cb->i8 && cb->scale;
}

/* Its centroids lie as tables of 256 bytes: what look-ups want. NULL has none. */
static inline bool cqk_has_planes(const struct cqk_codebook *cb)
{
	return cqk_has_i8(cb) && cqk_byte_codes(cb);
}

/* What an encoder leaves behind the upper bits: pages of equal codes are equal bytes. */
static inline void cqk_pad_block(const struct cqk_codebook *cb, uint8_t *block)
{
	size_t at = (size_t)cb->n_groups * (CQ_PAGE_TOKENS + CQ_UPPER_BYTES);
	size_t end = cq_code_block_bytes(cb->code, cb->head_dim);

	if (!cqk_byte_codes(cb))
		memset(block + at, 0, end - at);
}

/* True if keys are turned by their position in the kernel. */
static inline bool cqk_turns_keys(const struct cqk_attn *a)
{
	return a->model->geom.keys == CQK_KEYS_PRE_ROPE &&
	       a->model->geom.rope_dim && a->rope;
}

/* Fill @out, [2][half], with cos and sin of position @pos. */
void cqk_turn_init(const struct cqk_rope *rope, uint32_t pos, float *out);

/* @out = @q turned by minus the position in @turn, [d] floats. */
void cqk_turn_query(const float *turn, uint32_t half, const float *q,
		    uint32_t d, float *out);

/* The portable encoder and decoder: for tails and codings others do not speed up. */
void cqk_portable_encode(const struct cqk_codebook *cb, uint32_t kv_head,
			 const uint16_t *x, uint32_t first, uint32_t n,
			 uint8_t *codes);
void cqk_portable_decode(const struct cqk_codebook *cb, uint32_t kv_head,
			 const uint8_t *codes, uint32_t first, uint32_t n,
			 float *out);

extern const struct cqk_tile_ops cqk_tile_portable;

extern const struct cqk_ops cqk_portable;
#ifdef __x86_64__
/* The AVX2 decoder serves AVX-512 machines as well, the encoder for few tokens. */
void cqk_avx2_encode(const struct cqk_codebook *cb, uint32_t kv_head,
		     const uint16_t *x, uint32_t first, uint32_t n, uint8_t *codes);
void cqk_avx2_decode(const struct cqk_codebook *cb, uint32_t kv_head,
		     const uint8_t *codes, uint32_t first, uint32_t n, float *out);

void cqk_avx512_encode(const struct cqk_codebook *cb, uint32_t kv_head,
		       const uint16_t *x, uint32_t first, uint32_t n, uint8_t *codes);

extern const struct cqk_tile_ops cqk_tile_avx2;
extern const struct cqk_ops cqk_avx2;
extern const struct cqk_ops cqk_avx512;
extern const struct cqk_ops cqk_avx512vnni;
extern const struct cqk_ops cqk_avx512bw;

bool cqk_cpu_has_avx2(void);
bool cqk_cpu_has_avx512bw(void);
bool cqk_cpu_has_avx512vnni(void);
bool cqk_cpu_has_avx512(void);
#endif
#ifdef __aarch64__
void cqk_neon_encode(const struct cqk_codebook *cb, uint32_t kv_head,
		     const uint16_t *x, uint32_t first, uint32_t n, uint8_t *codes);

extern const struct cqk_ops cqk_neon;
#endif

#endif /* CQK_ATTN_H */
