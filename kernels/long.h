/* SPDX-License-Identifier: MIT */
/*
 * Attention of few query vectors over long coded contexts, in floats: what is
 * done once per call and kv head. long_body.h has the arithmetic, compiled once
 * per instruction set; keys that have to be turned are left to the file that
 * includes it.
 */
#ifndef CQK_LONG_H
#define CQK_LONG_H

#include "kernels/attn.h"

/**
 * struct cqk_long - the way of one instruction set
 * @fits:  true if the call qualifies: shapes, codings, number of pages
 * @bytes: scratch beyond cqk_head_bytes()
 * @head:  one kv head; blocks that are not codes go by @tile
 */
struct cqk_long {
	bool (*fits)(const struct cqk_attn *a);
	size_t (*bytes)(const struct cqk_model *model, uint32_t n_rows);
	void (*head)(const struct cqk_attn *a, uint32_t head,
		     const struct cqk_tile_ops *tile);
};

extern const struct cqk_long cqk_long_portable;
#ifdef __x86_64__
extern const struct cqk_long cqk_long_avx2;
#endif

/* The whole call: by @few if it fits, else by tiles. */
void cqk_attn_long(const struct cqk_attn *a, const struct cqk_long *few,
		   const struct cqk_tile_ops *tile);

#define BATCH 8			/* pages whose scores wait for one softmax */
#define MAX_D CQ_MAX_HEAD_DIM
#define K CQK_CENTROIDS

/**
 * struct long_head - state of one kv head
 * @lanes: 4 or 8
 * @n:     pages waiting
 * @m:     score of p = 1, at most RAISE below the running maximum
 * @l:     sums of p
 * @unit:  score of one, for integer keys
 * @turn:  [2][half] cos and sin of the page at hand
 * @key_scale: [d] value of KEY_ONE, the same for both channels of a pair
 * @q:     queries, [lane][d]; scaled to integers for integer keys
 * @turned: queries turned to the page at hand, for keys of floats
 * @q16:   the same in integers, for integer keys
 * @s:     [page][64][lanes] scores, then p
 * @mass:  [group][256][lanes] sums of p by code of V
 * @lut:   [group][256][lanes] q . centroid, or
 * @key:   [group][256][c] centroids of keys to be turned, int16_t or float
 */
struct long_head {
	struct cqk_head *h;
	const struct cqk_codebook *k, *v;
	uint32_t d, half, n;
	int lanes;
	float m[CQK_LANES], l[CQK_LANES], unit[CQK_LANES];
	uint64_t vis[BATCH][CQK_LANES];
	const uint8_t *k_codes[BATCH], *v_codes[BATCH];
	float turn[MAX_D], key_scale[MAX_D];
	float q[CQK_LANES][MAX_D];
	_Alignas(64) float turned[CQK_LANES][MAX_D];
	int16_t q16[CQK_LANES][MAX_D];
	_Alignas(64) float s[BATCH * CQK_T * CQK_LANES];
	float *mass, *lut;
	void *key;
};

#endif /* CQK_LONG_H */
