/* SPDX-License-Identifier: MIT */
/* AVX2 attention of few query vectors over long contexts: long_avx2.c. */
#ifndef CQK_LONG_AVX2_H
#define CQK_LONG_AVX2_H

#include "kernels/attn.h"

/* Coded pages from which the tables of a call pay. */
#define CQK_LONG_PAGES 16

/* True if the call qualifies: shapes, codings, number of pages. */
bool cqk_long_fits(const struct cqk_attn *a);

/* Scratch beyond cqk_head_bytes(). */
size_t cqk_long_bytes(const struct cqk_model *model, uint32_t n_rows);

/* One kv head; blocks that are not codes go by @ops. */
void cqk_long_head(const struct cqk_attn *a, uint32_t head,
		   const struct cqk_tile_ops *ops);

#endif /* CQK_LONG_AVX2_H */
