/* SPDX-License-Identifier: MIT */
/*
 * The kernel table: one implementation of encode, decode and attention per
 * instruction set. Portable C is the specification; every other row is tested
 * against it. No I/O, no allocation, no system call in any callback.
 */
#ifndef CQK_KERNELS_H
#define CQK_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "cq.h"
#include "kernels/model.h"

/**
 * struct cqk_rope - cos/sin tables of one model, channel i with i + half
 * @half:    rope_dim / 2 pairs; 0 = no rotation at all
 * @n_base:  positions covered: 64 * n_base
 * @factor:  on what is rotated, for queries and keys alike; not in the tables,
 *           which only turn. 1 but for CQK_SCALING_YARN
 * @base:    [n_base][2][half]: cos then sin of (64 i) * freq[j]
 * @in_page: [64][2][half]: cos then sin of t * freq[j], t = 0..63
 * @in_page_t: the same values, [half][2][64]
 * @in_page_q14: [half][2][64] times 2^14, rounded; place 32 h + 8 l + i is token
 *           16 l + 8 h + i (the order of attn_avx512.c)
 * @in_page_q15: @in_page times 32767, rounded
 *
 * freq[] is from cqk_rope_freq(). Rotation at p = 64 i + t is the product of
 * both entries.
 */
struct cqk_rope {
	uint32_t half;
	uint32_t n_base;
	float factor;
	const float *base;
	const float *in_page;
	const float *in_page_t;
	const int16_t *in_page_q14;
	const int16_t *in_page_q15;
};

/**
 * enum cqk_block_kind - what a block of up to 64 tokens is stored as
 * @CQK_BLOCK_CODES: base = payload of a page ([layer][kv_head][K|V][block])
 * @CQK_BLOCK_F16:   base = [layer][kv_head][K|V][tokens][d] IEEE half
 */
enum cqk_block_kind {
	CQK_BLOCK_CODES = 0,
	CQK_BLOCK_F16 = 1,
};

/**
 * struct cqk_block - one block of tokens, decoded once for all its spans
 * @base:       first byte, all layers of the shard
 * @kind:       enum cqk_block_kind
 * @tokens:     64 for CQK_BLOCK_CODES; 1..64 for CQK_BLOCK_F16
 * @span_first: first of its spans in cqk_attn.spans
 * @n_spans:    number of spans
 */
struct cqk_block {
	const uint8_t *base;
	uint32_t kind;
	uint32_t tokens;
	uint32_t span_first;
	uint32_t n_spans;
};

/**
 * struct cqk_span - one sequence's use of a block
 * @mask:      bit t set: token t of the block counts for this sequence; memory
 *             of tokens that no span's mask has may hold anything, NaN too
 * @row_first: first query row of the sequence in the batch
 * @n_rows:    query rows
 * @pos:       position of token 0 of the block in this sequence
 *
 * Row r sees token t if the mask has it, @pos + t <= row_pos[r], and, with a
 * sliding window w > 0, @pos + t > row_pos[r] - w.
 */
struct cqk_span {
	uint64_t mask;
	uint32_t row_first;
	uint32_t n_rows;
	uint32_t pos;
	uint32_t pad;
};

/**
 * struct cqk_attn - one attention call: one layer, a range of kv heads
 * @model:      geometry and codebooks
 * @rope:       tables covering every row and token position; unused (may be
 *              NULL) unless the model's keys are CQK_KEYS_PRE_ROPE, or
 *              CQK_KEYS_ROTATED with a q that is not rotated yet
 * @layer:      layer of the shard
 * @head_begin: first kv head, @head_end one past the last
 * @blocks:     [n_blocks], in any order
 * @spans:      grouped by block
 * @row_pos:    [n_rows] position of each query row
 * @n_rows:     query rows in the batch
 * @q:          [n_rows][n_heads][d], f32/f16/bf16, in the model's order; head h
 *              reads kv head h / (n_heads / n_kv_heads). A vector with a channel
 *              that, times @scale, is NaN, infinite or beyond 1e15 gives NaN in
 *              @o and @lse
 * @o:          [n_rows][n_heads][d], f32/f16/bf16; rows that see no token get 0
 * @lse:        [n_rows][n_heads] f32 log-sum-exp of the scaled (and capped)
 *              scores, -inf for rows that see no token; NULL if not wanted
 * @lse_stride: floats between rows of @lse
 * @scale:      factor on q.k, usually 1/sqrt(d)
 * @soft_cap:   > 0: s -> cap * tanh(s / cap) (Gemma 2, arXiv 2408.00118, 2)
 * @sliding_window: tokens, 0 = none
 * @flags:      CQ_ATTN_* of cq.h
 * @scratch:    64-byte aligned, at least cqk_ops.scratch_bytes(model, n_rows)
 *
 * With head ranges that do not overlap and separate scratch, calls may run
 * concurrently.
 */
struct cqk_attn {
	const struct cqk_model *model;
	const struct cqk_rope *rope;
	uint32_t layer;
	uint32_t head_begin, head_end;
	const struct cqk_block *blocks;
	uint32_t n_blocks;
	const struct cqk_span *spans;
	const uint32_t *row_pos;
	uint32_t n_rows;
	struct cq_view q;
	struct cq_view o;
	float *lse;
	size_t lse_stride;
	float scale;
	float soft_cap;
	uint32_t sliding_window;
	uint32_t flags;
	void *scratch;
};

/**
 * cqk_attn_part() - leave a call the blocks of one part
 * @a:       the whole call; @blocks and @n_blocks are set, the rest is looked at
 *           as @attention does, without q, o, lse and scratch
 * @part:    0 to @n_parts - 1
 * @n_parts: parts of the call, at least 1
 *
 * The parts of a call have all its blocks between them, each a run of whole ones:
 * a page that several rows read is decoded once. They take about the same time,
 * as far as blocks and what rows see of them tell; some have no blocks at all if
 * there are few. Each part needs o, lse and scratch of its own and may run beside
 * the others; cqk_merge() makes one result of theirs. Thread-safe.
 */
void cqk_attn_part(struct cqk_attn *a, uint32_t part, uint32_t n_parts);

/**
 * struct cqk_merge - results of attention over parts of the tokens, to be made one
 * @geom:       shape of the model
 * @parts:      [@n_parts] of the same rows and heads; a stride of 0 is n_heads
 * @n_parts:    their number; of none the result is that of a row that sees nothing
 * @n_rows:     query rows
 * @head_begin: first kv head, @head_end one past the last
 * @o:          [n_rows][n_heads][d], f32/f16/bf16; may be the view of a part
 * @lse:        [n_rows][n_heads] f32, or NULL; may be that of the same part
 * @lse_stride: floats between rows of @lse; 0: n_heads
 * @flags:      CQ_ATTN_LSE_BASE2: of all lse, those of parts too
 */
struct cqk_merge {
	const struct cqk_geom *geom;
	const struct cq_part *parts;
	uint32_t n_parts;
	uint32_t n_rows;
	uint32_t head_begin, head_end;
	struct cq_view o;
	float *lse;
	size_t lse_stride;
	uint32_t flags;
};

/**
 * cqk_merge() - one result of attention over parts of the tokens
 * @m: see struct cqk_merge
 *
 * With l_i the log-sum-exp of part i, o = sum_i exp(l_i - l) o_i where
 * l = log(sum_i exp(l_i)): the split over keys of Flash-Decoding (Dao, Haziza,
 * Massa, Sizov, 2023), by the sums of the online softmax (Milakov and Gimelshein,
 * arXiv 1805.02867, section 3.1). In f32, relative to the largest l_i. Scores that
 * were capped need nothing else. A part with l_i = -inf does not count, one with
 * NaN makes the row NaN. Thread-safe.
 */
void cqk_merge(const struct cqk_merge *m);

/**
 * struct cqk_ops - one implementation of the kernel set
 * @name:      unique: "portable", "avx2", "avx512bw", "avx512vnni", "avx512", "neon"; also
 *             what CQ_KERNELS= takes
 * @priority:  higher is preferred
 * @usable:    true if this CPU and OS can run it; called once
 * @encode:    codes of @n tokens of one kv head. @x: [n][d] IEEE half, row
 *             stride d. @codes: the head's block, [group][64]; tokens >= @n are
 *             left as they are, @first is the index of the first token in the
 *             block. Nearest centroid under
 *             argmin_k(half_norm[k] - sum_j x_j * e_kj), e being the codebook's
 *             @enc (the centroids, times the metric if there is one), in f32 as
 *             acc = half_norm; acc = acc - x_j * e_kj for j ascending, product
 *             and difference each rounded (no FMA); ties: lowest k. Bit-exact
 *             between implementations. Input must be finite.
 * @decode:    out[n][d] f32 from the head's block (stored values exactly)
 * @scratch_bytes: scratch for @attention with that many rows
 * @attention: see struct cqk_attn. Cannot fail: the caller has validated.
 * @path:    how @attention goes about the coded pages of such a call: a static
 *           name out of the table "Which way a call takes" in
 *           Documentation/performance.md. Scratch and views are not looked at, so
 *           it is the way of queries whose scores integers can hold: of others
 *           "tables" become "transposed", "transposed" and "lanes" compute in
 *           floats, and "integers" become "tile"
 *
 * All callbacks are mandatory, thread-safe, and neither allocate nor make
 * system calls.
 */
struct cqk_ops {
	const char *name;
	int priority;
	bool (*usable)(void);
	void (*encode)(const struct cqk_codebook *cb, uint32_t kv_head,
		       const uint16_t *x, uint32_t first, uint32_t n,
		       uint8_t *codes);
	void (*decode)(const struct cqk_codebook *cb, uint32_t kv_head,
		       const uint8_t *codes, uint32_t first, uint32_t n,
		       float *out);
	size_t (*scratch_bytes)(const struct cqk_model *model, uint32_t n_rows);
	void (*attention)(const struct cqk_attn *a);
	const char *(*path)(const struct cqk_attn *a);
};

/**
 * cqk_select() - the implementation to use
 * @want: name, or NULL for the best usable one
 *
 * Return: a table, or NULL if @want names none or one this CPU cannot run.
 */
const struct cqk_ops *cqk_select(const char *want);

/* Implementations compiled in, best first, usable or not; NULL past the end. */
const struct cqk_ops *cqk_nth(unsigned int i);

/**
 * cqk_rope_freq() - how far each pair turns per position
 * @geom: model, checked
 * @freq: [rope_dim / 2] set, in radians
 *
 * Without scaling f_j = theta^(-2j / rope_dim): Su et al., RoFormer, arXiv
 * 2104.09864, section 3.2.2. Let L be original_max_position, s the factor and
 * r_j = L f_j / 2 pi the turns of a pair in the original context.
 *
 * linear: f_j / s (Chen et al., Position Interpolation, arXiv 2306.15595,
 * section 3.2).
 *
 * llama3: f_j if r_j is at least high_freq_factor, f_j / s if it is at most
 * low_freq_factor, and between them (1 - w) f_j / s + w f_j with
 * w = (r_j - low) / (high - low) (apply_scaling() of the Llama 3.1 release).
 *
 * yarn: (1 - w) f_j / s + w f_j as well ("NTK-by-parts", Peng et al., YaRN, arXiv
 * 2309.00071, section 3.2), where w falls linearly in j, from 1 at the pair that
 * makes beta_fast turns to 0 at the one that makes beta_slow: so in the authors'
 * code and in what was trained with it; the paper's ramp is linear in r_j. A pair
 * makes r turns at j = rope_dim ln(L / 2 pi r) / (2 ln theta). @truncate rounds
 * the first down and the second up. The factor on cos and sin is
 * cqk_rope.factor, sqrt(1 / t) in section 3.4.
 *
 * Thread-safe.
 */
void cqk_rope_freq(const struct cqk_geom *geom, double *freq);

/* Bytes of tables for @positions positions, and their filling. half = 0 is legal. */
size_t cqk_rope_bytes(const struct cqk_geom *geom, uint32_t positions);
void cqk_rope_init(struct cqk_rope *rope, const struct cqk_geom *geom,
		   uint32_t positions, void *mem);
/**
 * cqk_rope_rotate() - rotate vectors in place as the model does, or undo it
 * @rope:    tables that cover @pos
 * @x:       [n][stride] f32, one head each, in stored order
 * @n:       vectors
 * @stride:  floats between them
 * @pos:     position
 * @inverse: true undoes the rotation
 *
 * What is rotated is multiplied by @rope->factor, or divided by it.
 */
void cqk_rope_rotate(const struct cqk_rope *rope, float *x, size_t n,
		     size_t stride, uint32_t pos, bool inverse);

#endif /* CQK_KERNELS_H */
