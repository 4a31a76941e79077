/* SPDX-License-Identifier: MIT */
/* Views and rotations in device code, shared by the kernels. */
#ifndef CQK_CUDA_LOAD_CUH
#define CQK_CUDA_LOAD_CUH

#include "kernels/cuda/dev.h"
#include "kernels/cuda/params.h"

#define CQKD_INF __int_as_float(0x7f800000)

template <typename T>
CQ_DEVICE T *cqkd_ptr(uint64_t address)
{
	return reinterpret_cast<T *>(address);
}

/* First element of a head of a row. */
CQ_DEVICE int64_t cqkd_at(const struct cqkd_view &v, uint32_t row, uint32_t head)
{
	return (int64_t)row * v.stride_token + (int64_t)head * v.stride_head;
}

CQ_DEVICE float cqkd_load(const struct cqkd_view &v, int64_t at)
{
	if (v.dtype == CQKD_F32)
		return cqkd_ptr<const float>(v.data)[at];
	if (v.dtype == CQKD_F16)
		return __half2float(cqkd_ptr<const __half>(v.data)[at]);
	return __bfloat162float(cqkd_ptr<const __nv_bfloat16>(v.data)[at]);
}

CQ_DEVICE void cqkd_store(const struct cqkd_view &v, int64_t at, float x)
{
	if (v.dtype == CQKD_F32)
		cqkd_ptr<float>(v.data)[at] = x;
	else if (v.dtype == CQKD_F16)
		cqkd_ptr<__half>(v.data)[at] = __float2half_rn(x);
	else
		cqkd_ptr<__nv_bfloat16>(v.data)[at] = __float2bfloat16_rn(x);
}

/* Where a stored channel of a key or query is in a view. */
CQ_DEVICE uint32_t cqkd_given(const struct cqkd_rope &r, uint32_t ch)
{
	uint32_t pairs = r.mixed / 2;

	if (ch >= r.mixed)
		return ch;
	return ch < pairs ? 2 * ch : 2 * (ch - pairs) + 1;
}

/* Where the upper two bits of token @t's code are in their byte (include/cq/page.h). */
CQ_DEVICE uint32_t cqkd_upper_at(uint32_t t)
{
	return t / CQKD_UPPER * 2;
}

/* They, in their place in a code. */
CQ_DEVICE uint32_t cqkd_upper(uint32_t byte, uint32_t t)
{
	return (byte >> cqkd_upper_at(t) & 3) << 8;
}

struct cqkd_turn {
	float c, s;
};

/*
 * cos and sin of pair @j at @pos. Each step is rounded as on the host, where
 * no product is fused with a sum. Positions beyond the table cannot come from
 * a host that checked; they must not reach beyond its memory either.
 */
CQ_DEVICE struct cqkd_turn cqkd_turn_at(const struct cqkd_rope &r, uint32_t pos, uint32_t j)
{
	uint32_t far = min(pos / CQKD_TOKENS, r.n_base - 1), row = 2 * r.half;
	const float *b = cqkd_ptr<const float>(r.base) + (size_t)far * row + j;
	const float *t = cqkd_ptr<const float>(r.in_page) + pos % CQKD_TOKENS * row + j;
	float bc = __ldg(b), bs = __ldg(b + r.half), tc = __ldg(t), ts = __ldg(t + r.half);
	struct cqkd_turn out;

	out.c = __fsub_rn(__fmul_rn(bc, tc), __fmul_rn(bs, ts));
	out.s = __fadd_rn(__fmul_rn(bs, tc), __fmul_rn(bc, ts));
	return out;
}

#endif /* CQK_CUDA_LOAD_CUH */
