/* SPDX-License-Identifier: MIT */
/*
 * Between the two halves of AVX2 attention over long contexts: long_avx2.c
 * (pages, softmax, values) and long_keys_avx2.c (scores).
 */
#ifndef CQK_LONG_KEYS_AVX2_H
#define CQK_LONG_KEYS_AVX2_H

#include "kernels/attn.h"

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
 * @q, @q16: queries, [lane][d]; @q scaled to integers for integer keys
 * @key_scale: [d] value of KEY_ONE, the same for both channels of a pair
 * @s:     [page][64][lanes] scores, then p
 * @mass:  [group][256][lanes] sums of p by code of V
 * @lut:   [group][256][lanes] q . centroid, or
 * @key:   [group][256][c] integer centroids
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
	int16_t q16[CQK_LANES][MAX_D];
	float s[BATCH * CQK_T * CQK_LANES];
	float *mass, *lut;
	int16_t *key;
};

/*
 * Builds @lut or @key from @q; @unit is 1 at first. False: integers would lose more
 * than they may (cqk_coarse()).
 */
bool cqk_keys_begin(struct long_head *x);

/* The page at position @pos is at hand, then @lane sees it. */
void cqk_keys_turn(struct long_head *x, uint32_t pos);
void cqk_keys_lane(struct long_head *x, uint32_t lane);

/* Scores of waiting page @page, while its lanes' queries are at hand, ... */
void cqk_keys_page(struct long_head *x, uint32_t page);
/* ... or of all pages waiting: each is computed in one of the two. */
void cqk_keys_batch(struct long_head *x);

#endif /* CQK_LONG_KEYS_AVX2_H */
