/* SPDX-License-Identifier: MIT */
/* Inside the kernels only: attention of many query vectors with AVX-512. */
#ifndef CQK_MANY_AVX512_H
#define CQK_MANY_AVX512_H

#include "kernels/x86/isa_avx512.h"

#ifdef CQK_SIMDE	/* a test's own copy */
#define MANY_COPY(name) name##_simde
#else
#define MANY_COPY(name) ISA(name##_avx512)
#endif
#define cqk_many_fit MANY_COPY(cqk_many_fit)
#define cqk_many_bytes MANY_COPY(cqk_many_bytes)
#define cqk_many_head MANY_COPY(cqk_many_head)

/**
 * cqk_many_fit() - is a call for cqk_many_head()
 * @a: the call
 *
 * Return: true if there are more vectors than CQK_LANES, of no more than 256
 * channels.
 */
bool cqk_many_fit(const struct cqk_attn *a);

/* Scratch beyond cqk_head_bytes() for @n_rows rows and fewer. */
size_t cqk_many_bytes(const struct cqk_model *model, uint32_t n_rows);

/**
 * cqk_many_head() - one kv head of a call that fits
 * @a:    the call
 * @head: kv head
 * @ops:  decodes tiles of floats
 */
void cqk_many_head(const struct cqk_attn *a, uint32_t head,
		   const struct cqk_tile_ops *ops);

#endif /* CQK_MANY_AVX512_H */
