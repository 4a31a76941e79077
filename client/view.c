// SPDX-License-Identifier: MIT
/* The caller's strided views: are they fit for use, and their rows as halves. */
#include <errno.h>
#include <string.h>
#include "client/internal.h"
#include "kernels/f16.h"

#define STRIDE_MAX ((int64_t)1 << 40)

/**
 * cqc_view_check() - can a view be used
 * @v:     the caller's
 * @n:     tokens or rows
 * @heads: heads
 * @d:     channels
 * @what:  "k", "q", ... for the text
 *
 * Return: 0 or -EINVAL.
 */
int cqc_view_check(const struct cq_view *v, size_t n, uint32_t heads, uint32_t d,
		   const char *what)
{
	if (!v || !v->data)
		return cqc_fail(-EINVAL, "%s: no data", what);
	if (v->dtype > CQ_BF16 || v->pad)
		return cqc_fail(-EINVAL, "%s: dtype %u, pad %u; want CQ_F32, CQ_F16 or CQ_BF16 "
					 "and 0",
				what, v->dtype, v->pad);
	if ((uintptr_t)v->data % cqk_dtype_bytes(v->dtype))
		return cqc_fail(-EINVAL, "%s: data is not aligned to its type", what);
	if (v->stride_token > STRIDE_MAX || v->stride_token < -STRIDE_MAX ||
	    v->stride_head > STRIDE_MAX || v->stride_head < -STRIDE_MAX)
		return cqc_fail(-EINVAL, "%s: stride out of range", what);
	return 0;
}

/**
 * cqc_f32_to_f16() - round a row
 * @in:  [@d]
 * @d:   channels
 * @out: [@d] IEEE half, nearest even
 *
 * Return: index of the first value that is NaN, Inf or beyond fp16, or -1.
 */
int cqc_f32_to_f16(const float *in, uint32_t d, uint16_t *out)
{
	uint32_t i, bad = 0;

	for (i = 0; i < d; i++) {
		out[i] = cqk_f32_to_f16(in[i]);
		bad |= !cqk_f16_finite(out[i]);
	}
	if (!bad)
		return -1;
	for (i = 0; cqk_f16_finite(out[i]); i++)
		;
	return (int)i;
}

/**
 * cqc_row_to_f16() - load a row as halves
 * @v:    view
 * @row:  token
 * @head: head
 * @d:    channels, at most CQ_MAX_HEAD_DIM
 * @out:  [@d]
 *
 * Return: index of the first value that is NaN, Inf or beyond fp16, or -1.
 */
int cqc_row_to_f16(const struct cq_view *v, size_t row, uint32_t head,
		   uint32_t d, uint16_t *out)
{
	float tmp[CQ_MAX_HEAD_DIM];
	uint32_t i;

	if (v->dtype == CQ_F32)
		return cqc_f32_to_f16(cqk_row_at(v, row, head), d, out);
	if (v->dtype == CQ_F16) {
		memcpy(out, cqk_row_at(v, row, head), d * sizeof(*out));
		for (i = 0; i < d; i++)
			if (!cqk_f16_finite(out[i]))
				return (int)i;
		return -1;
	}
	cqk_row_to_f32(v, row, head, d, tmp);
	return cqc_f32_to_f16(tmp, d, out);
}
