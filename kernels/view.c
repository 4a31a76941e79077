// SPDX-License-Identifier: MIT
/* Rows of the caller's strided views, as kernels and libcq load and store them. */
#include <string.h>
#include "kernels/f16.h"
#include "kernels/view.h"

void cqk_halves_to_f32(const void *halves, size_t n, float *out)
{
	const uint8_t *from = halves;
	uint16_t h;
	size_t i;

	for (i = 0; i < n; i++) {
		memcpy(&h, from + 2 * i, sizeof(h));
		out[i] = cqk_f16_to_f32(h);
	}
}

void cqk_row_to_f32(const struct cq_view *v, size_t row, uint32_t head, uint32_t d,
		    float *out)
{
	const void *p = cqk_row_at(v, row, head);
	const uint16_t *h = p;
	uint32_t i;

	if (v->dtype == CQ_F32) {
		memcpy(out, p, d * sizeof(float));
	} else if (v->dtype == CQ_F16) {
		cqk_halves_to_f32(p, d, out);
	} else {
		for (i = 0; i < d; i++)
			out[i] = cqk_bf16_to_f32(h[i]);
	}
}

void cqk_row_from_f32(const struct cq_view *v, size_t row, uint32_t head, uint32_t d,
		      const float *in)
{
	void *p = cqk_row_at(v, row, head);
	uint16_t *h = p;
	uint32_t i;

	if (v->dtype == CQ_F32) {
		memcpy(p, in, d * sizeof(float));
	} else if (v->dtype == CQ_F16) {
		for (i = 0; i < d; i++)
			h[i] = cqk_f32_to_f16(in[i]);
	} else {
		for (i = 0; i < d; i++)
			h[i] = cqk_f32_to_bf16(in[i]);
	}
}
