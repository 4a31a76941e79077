/* SPDX-License-Identifier: MIT */
/*
 * Append and encode in one launch: keys and values of new tokens become rows
 * of fp16 blocks and codes of pages. A block of threads takes one destination
 * (up to 64 tokens), one kv head, and K or V.
 */
#ifndef CQK_CUDA_APPEND_CUH
#define CQK_CUDA_APPEND_CUH

#include "kernels/cuda/encode.cuh"

CQ_DEVICE void note_bad(const struct cqkd_append &p, const struct put &w, uint32_t row,
			uint32_t ch)
{
	uint64_t key = (uint64_t)p.layer << 48 | (uint64_t)row << 16 |
		       w.head << 9 | w.v << 8 | ch;

	atomicMax(cqkd_ptr<unsigned long long>(p.status), (unsigned long long)~key);
	if (w.to->bad)
		atomicMax(cqkd_ptr<unsigned int>(w.to->bad), w.to->tag);
}

CQ_DEVICE bool fits(float x)
{
	/* NaN compares false; 65520 is the first that rounds to infinity */
	return fabsf(x) < 65520.0f;
}

/*
 * A pair of channels, rotated, or rotated back. One that no half holds is reported by
 * itself, not by what it makes of the other.
 */
CQ_DEVICE void pair_load(const struct cqkd_append &p, const struct put &w, uint32_t t, uint32_t j,
			 __half *x)
{
	uint32_t row = w.to->row + t, from[2] = { cqkd_given(p.rope, j),
						 cqkd_given(p.rope, j + p.rope.half) };
	int64_t at = cqkd_at(*w.view, row, w.head);
	float lo = cqkd_load(*w.view, at + from[0]), hi = cqkd_load(*w.view, at + from[1]);
	struct cqkd_turn turn = cqkd_turn_at(p.rope, w.to->pos + t, j);
	bool good = fits(lo) && fits(hi);
	float c = __fmul_rn(turn.c, p.rope.factor);
	float s = __fmul_rn(p.turn < 0 ? -turn.s : turn.s, p.rope.factor);
	float a = __fsub_rn(__fmul_rn(lo, c), __fmul_rn(hi, s));
	float b = __fadd_rn(__fmul_rn(lo, s), __fmul_rn(hi, c));

	if (!fits(good ? a : lo))
		note_bad(p, w, row, from[0]);
	if (!fits(good ? b : hi))
		note_bad(p, w, row, from[1]);
	x[t * w.pitch + j] = __float2half_rn(a);
	x[t * w.pitch + j + p.rope.half] = __float2half_rn(b);
}

CQ_DEVICE void channel_load(const struct cqkd_append &p, const struct put &w, uint32_t t,
			    uint32_t ch, __half *x)
{
	uint32_t row = w.to->row + t, from = w.v ? ch : cqkd_given(p.rope, ch);
	float val = cqkd_load(*w.view, cqkd_at(*w.view, row, w.head) + from);

	if (!fits(val))
		note_bad(p, w, row, from);
	x[t * w.pitch + ch] = __float2half_rn(val);
}

/* Eight channels at once, of rows that are aligned and in stored order. */
CQ_DEVICE void channels_copy(const struct cqkd_append &p, const struct put &w, uint32_t t,
			     uint32_t ch, __half *x)
{
	uint32_t row = w.to->row + t, word[8], i;
	int64_t at = cqkd_at(*w.view, row, w.head) + ch;
	bool good = true;
	__half out[8];
	float val[8];

	if (w.view->dtype == CQKD_F32) {
		words_load<16>(cqkd_ptr<const float>(w.view->data) + at, word);
		words_load<16>(cqkd_ptr<const float>(w.view->data) + at + 4, word + 4);
		memcpy(val, word, sizeof(val));
	} else {
		words_load<16>(cqkd_ptr<const uint16_t>(w.view->data) + at, word);
#pragma unroll
		for (i = 0; i < 8; i += 2) {
			if (w.view->dtype == CQKD_F16) {
				half2_floats(word[i / 2], val + i);
				continue;
			}
			val[i] = __uint_as_float(word[i / 2] << 16);
			val[i + 1] = __uint_as_float(word[i / 2] & 0xffff0000u);
		}
	}
#pragma unroll
	for (i = 0; i < 8; i++) {
		good = good && fits(val[i]);
		out[i] = __float2half_rn(val[i]);
	}
#pragma unroll
	for (i = 0; i < 8; i++)
		if (!good && !fits(val[i]))
			note_bad(p, w, row, ch + i);
	memcpy(x + t * w.pitch + ch, out, sizeof(out));
}

/* Does each row of a head begin at a multiple of 16 bytes? */
CQ_DEVICE bool aligned(const struct cqkd_view &v)
{
	uint64_t size = v.dtype == CQKD_F32 ? 4 : 2;

	return ((v.data | (uint64_t)v.stride_token * size | (uint64_t)v.stride_head * size) &
		15) == 0;
}

/* The destination's rows as halves, in stored order. */
CQ_DEVICE void rows_load(const struct cqkd_append &p, const struct put &w, __half *x)
{
	uint32_t pairs = !w.v && p.turn ? p.rope.half : 0, left = p.d - 2 * pairs, i;

	for (i = threadIdx.x; i < w.to->count * pairs; i += CQKD_THREADS)
		pair_load(p, w, i / pairs, i % pairs, x);
	if (!pairs && (w.v || !p.rope.mixed) && aligned(*w.view)) {
		for (i = threadIdx.x; i < w.to->count * p.d / 8; i += CQKD_THREADS)
			channels_copy(p, w, i / (p.d / 8), i % (p.d / 8) * 8, x);
		return;
	}
	for (i = threadIdx.x; i < w.to->count * left; i += CQKD_THREADS)
		channel_load(p, w, i / left, 2 * pairs + i % left, x);
}

/* Rows to [token][d] halves, which begin at @out, a multiple of 16 bytes. */
CQ_DEVICE void rows_store(const struct put &w, const __half *x, uint32_t d, __half *out)
{
	uint32_t i;

	out += (size_t)w.to->first * d;
	for (i = threadIdx.x; i < w.to->count * d / 8; i += CQKD_THREADS) {
		uint4 piece = *(const uint4 *)(x + i / (d / 8) * w.pitch + i % (d / 8) * 8);

		*(uint4 *)(out + (size_t)i * 8) = piece;
	}
}

/*
 * A kernel, but for how codes are found: by How::encode() for all groups of a side that is
 * coded. Grid: destinations, kv heads times two. Shared: 64 rows.
 */
template <typename How>
CQ_DEVICE void append(const struct cqkd_append &p, __half *x)
{
	struct put w;
	uint32_t at;

	if (blockIdx.x >= *cqkd_ptr<const uint32_t>(p.n_dests))
		return;
	w.to = cqkd_ptr<const struct cqkd_dest>(p.dests) + blockIdx.x;
	w.head = blockIdx.y / 2;
	w.v = blockIdx.y % 2;
	w.view = w.v ? &p.v : &p.k;
	w.book = w.v ? &p.at.v : &p.at.k;
	w.near = w.v ? &p.near_v : &p.near_k;
	w.pitch = CQKD_PITCH(p.d);
	w.offset = p.at.offset;
	w.plain = !w.book->i8 && !w.book->metric;
	rows_load(p, w, x);
	__syncthreads();
	if (w.to->f16)
		rows_store(w, x, p.d, cqkd_ptr<__half>(w.to->f16) +
			   (((size_t)p.layer * p.n_kv_heads + w.head) * 2 + w.v) *
			   w.to->tokens * p.d);
	if (!w.to->codes)
		return;
	at = w.head * (uint32_t)(p.at.k_bytes + p.at.v_bytes) +
	     (w.v ? (uint32_t)p.at.k_bytes : 0);
	if (w.book->channels)
		How::encode(w, x, at + w.to->first);
	else
		rows_store(w, x, p.d, cqkd_ptr<__half>(w.to->codes + w.offset + at));
}

#endif /* CQK_CUDA_APPEND_CUH */
