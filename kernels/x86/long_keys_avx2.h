/* SPDX-License-Identifier: MIT */
/* Integer scores of AVX2 attention over long contexts, for long_avx2.c. */
#ifndef CQK_LONG_KEYS_AVX2_H
#define CQK_LONG_KEYS_AVX2_H

#include "kernels/long.h"

/*
 * Builds @key from @q, and scales @q. False: integers would lose more than they may
 * (cqk_coarse()).
 */
bool cqk_keys_begin(struct long_head *x);

/* @lane sees the page at hand: @q16. */
void cqk_keys_lane(struct long_head *x, uint32_t lane);

/* Scores of waiting page @page, while its lanes' queries are at hand. */
void cqk_keys_page(struct long_head *x, uint32_t page);

#endif /* CQK_LONG_KEYS_AVX2_H */
