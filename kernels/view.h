/* SPDX-License-Identifier: MIT */
/* Rows of the caller's strided views as floats, and back. */
#ifndef CQK_VIEW_H
#define CQK_VIEW_H

#include <stddef.h>
#include <stdint.h>
#include "cq.h"

/* Bytes of an element; @dtype is one of enum cq_dtype. */
static inline size_t cqk_dtype_bytes(uint32_t dtype)
{
	return dtype == CQ_F32 ? 4 : 2;
}

/* Channel 0 of @head in row @row. */
static inline void *cqk_row_at(const struct cq_view *v, size_t row, uint32_t head)
{
	int64_t at = (int64_t)row * v->stride_token + (int64_t)head * v->stride_head;

	return (char *)v->data + at * (int64_t)cqk_dtype_bytes(v->dtype);
}

/**
 * cqk_halves_to_f32() - widen halves
 * @halves: [@n] IEEE halves, at any address
 * @n:      their number
 * @out:    [@n]
 */
void cqk_halves_to_f32(const void *halves, size_t n, float *out);

/**
 * cqk_row_to_f32() - load a row
 * @v:    view
 * @row:  token or row
 * @head: head
 * @d:    channels
 * @out:  [@d]
 */
void cqk_row_to_f32(const struct cq_view *v, size_t row, uint32_t head, uint32_t d,
		    float *out);

/**
 * cqk_row_from_f32() - store a row, rounded to nearest even
 * @v:    view
 * @row:  token or row
 * @head: head
 * @d:    channels
 * @in:   [@d]
 */
void cqk_row_from_f32(const struct cq_view *v, size_t row, uint32_t head, uint32_t d,
		      const float *in);

#endif /* CQK_VIEW_H */
