/* SPDX-License-Identifier: MIT */
/* Chunks of up to eight query vectors: loops are made for 1, 2, 4 and 8. */
#ifndef CQK_FEW_H
#define CQK_FEW_H

#include <string.h>
#include "kernels/attn.h"

#define FEW 8

/* Lanes up to the next power of two: queries 0, nobody reads their scores. */
static inline int pad_chunk(struct cqk_chunk *c)
{
	int log = c->n > 4 ? 3 : c->n > 2 ? 2 : c->n > 1;
	uint32_t r;

	for (r = c->n; r < 1u << log; r++) {
		memset(c->q + (size_t)r * c->dpad, 0, c->d * sizeof(float));
		c->o[r] = c->q + (size_t)r * c->dpad;
	}
	return log;
}

static inline void clear_scores(struct cqk_chunk *c, int log)
{
	uint32_t r;

	for (r = c->n; r < 1u << log; r++)
		memset(c->s + (size_t)r * CQK_T, 0, CQK_T * sizeof(float));
}

#endif /* CQK_FEW_H */
