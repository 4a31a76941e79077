// SPDX-License-Identifier: MIT
/*
 * Append and encode in one launch: keys and values of new tokens become rows
 * of fp16 blocks and codes of pages. A block of threads takes one destination
 * (up to 64 tokens), one kv head, and K or V.
 *
 * Codes are those of the portable encoder, bit by bit: the distances are
 * summed in its order, each step rounded, no fused multiply-add.
 */
#include "kernels/cuda/load.cuh"

#define WARPS (CQKD_THREADS / 32)
#define PER_LANE (CQKD_CENTROIDS / 32)

/* What one block of threads works on. */
struct put {
	const struct cqkd_view *view;
	const struct cqkd_book *book;
	struct cqkd_dest to;
	uint32_t head, v;
};

CQ_DEVICE void note_bad(const struct cqkd_append &p, const struct put &w, uint32_t row,
			uint32_t ch)
{
	uint64_t key = (uint64_t)p.layer << 48 | (uint64_t)row << 16 |
		       w.head << 9 | w.v << 8 | ch;

	atomicMax(cqkd_ptr<unsigned long long>(p.status), (unsigned long long)~key);
	if (w.to.bad)
		atomicMax(cqkd_ptr<unsigned int>(w.to.bad), w.to.tag);
}

CQ_DEVICE bool fits(float x)
{
	/* NaN compares false; 65520 is the first that rounds to infinity */
	return fabsf(x) < 65520.0f;
}

/* The channel that turns with @ch. */
CQ_DEVICE uint32_t partner(const struct cqkd_append &p, uint32_t ch)
{
	return ch < p.rope.half ? ch + p.rope.half : ch - p.rope.half;
}

/* Channel @ch of the key at @at, rotated, or rotated back. */
CQ_DEVICE float turned(const struct cqkd_append &p, const struct cqkd_view &view, int64_t at,
		       uint32_t ch, uint32_t pos)
{
	uint32_t pairs = p.rope.half, j = ch < pairs ? ch : ch - pairs;
	struct cqkd_turn w = cqkd_turn_at(p.rope, pos, j);
	float lo = cqkd_load(view, at + cqkd_given(p.rope, j));
	float hi = cqkd_load(view, at + cqkd_given(p.rope, j + pairs));

	if (p.turn < 0)
		w.s = -w.s;
	w.c = __fmul_rn(w.c, p.rope.factor);
	w.s = __fmul_rn(w.s, p.rope.factor);
	if (ch < pairs)
		return __fsub_rn(__fmul_rn(lo, w.c), __fmul_rn(hi, w.s));
	return __fadd_rn(__fmul_rn(lo, w.s), __fmul_rn(hi, w.c));
}

/* The destination's rows as halves, [count][d], in stored order. */
CQ_DEVICE void rows_load(const struct cqkd_append &p, const struct put &w, __half *x)
{
	bool turn = !w.v && p.turn;
	uint32_t i;

	for (i = threadIdx.x; i < w.to.count * p.d; i += CQKD_THREADS) {
		uint32_t t = i / p.d, ch = i % p.d, row = w.to.row + t;
		uint32_t from = w.v ? ch : cqkd_given(p.rope, ch);
		int64_t at = cqkd_at(*w.view, row, w.head);
		float val = cqkd_load(*w.view, at + from);
		bool good = fits(val);

		if (turn && ch < 2 * p.rope.half) {
			val = turned(p, *w.view, at, ch, w.to.pos + t);
			/* a partner that is none is reported by its own channel */
			good = good && (fits(val) || !fits(cqkd_load(*w.view, at +
						cqkd_given(p.rope, partner(p, ch)))));
		}
		if (!good)
			note_bad(p, w, row, from);
		x[i] = __float2half_rn(val);
	}
}

/* Rows to [token][d] halves, which begin at @out. */
CQ_DEVICE void rows_store(const struct put &w, const __half *x, uint32_t d, __half *out)
{
	uint32_t i;

	out += (size_t)w.to.first * d;
	for (i = threadIdx.x; i < w.to.count * d; i += CQKD_THREADS)
		out[i] = x[i];
}

/* Lane l has the centroids l, l + 32, l + 64, ... of a group. */
template <int c>
struct centroids {
	float norm[PER_LANE];
	float val[PER_LANE][c];
};

template <int c>
CQ_DEVICE void centroids_load(const struct cqkd_append &p, const struct put &w, uint32_t g,
			      struct centroids<c> &k)
{
	size_t first = ((size_t)w.head * w.book->groups + g) * CQKD_CENTROIDS + threadIdx.x % 32;
	size_t ch = (size_t)w.head * p.d + g * c;
	const float *scale = cqkd_ptr<const float>(w.book->scale) + ch;
	const float *metric = cqkd_ptr<const float>(w.book->metric) + ch;
	int i, j;

#pragma unroll
	for (i = 0; i < PER_LANE; i++) {
		size_t at = first + 32 * i;

		k.norm[i] = __ldg(cqkd_ptr<const float>(w.book->norm) + at);
#pragma unroll
		for (j = 0; j < c; j++) {
			k.val[i][j] = w.book->i8 ?
				__fmul_rn((float)cqkd_ptr<const int8_t>(w.book->i8)[at * c + j],
					  scale[j]) :
				__half2float(cqkd_ptr<const __half>(w.book->f16)[at * c + j]);
			if (w.book->metric)
				k.val[i][j] = __fmul_rn(k.val[i][j], metric[j]);
		}
	}
}

/* Numbers that compare as the floats do, 0 and -0 alike. */
CQ_DEVICE uint32_t ordered(float x)
{
	uint32_t u = __float_as_uint(__fadd_rn(x, 0.0f));

	return u >> 31 ? ~u : u | 0x80000000u;
}

/* The lowest code with the least distance, in every lane. */
template <int c>
CQ_DEVICE uint32_t nearest(const struct centroids<c> &k, const __half *x)
{
	float least = CQKD_INF;
	uint32_t best = 0, key, top;
	int i, j;

#pragma unroll
	for (i = 0; i < PER_LANE; i++) {
		float acc = k.norm[i];

#pragma unroll
		for (j = 0; j < c; j++)
			acc = __fsub_rn(acc, __fmul_rn(__half2float(x[j]), k.val[i][j]));
		if (i == 0 || acc < least) {
			least = acc;
			best = threadIdx.x % 32 + 32 * i;
		}
	}
	key = ordered(least);
	top = __reduce_min_sync(0xffffffffu, key);
	return __reduce_min_sync(0xffffffffu, key == top ? best : CQKD_CENTROIDS - 1u);
}

template <int c>
CQ_DEVICE void encode(const struct cqkd_append &p, const struct put &w, const __half *x,
		      uint8_t *codes)
{
	uint32_t lane = threadIdx.x % 32, g, t;
	struct centroids<c> k;

	codes += w.to.first;
	for (g = threadIdx.x / 32; g < w.book->groups; g += WARPS) {
		uint32_t mine = 0;

		centroids_load<c>(p, w, g, k);
		for (t = 0; t < w.to.count; t++) {
			uint32_t code = nearest<c>(k, x + (size_t)t * p.d + g * c);

			if (t % 32 == lane)
				mine = code;
			if (t % 32 == 31)	/* a code per lane, in one store */
				codes[g * CQKD_TOKENS + t - 31 + lane] = (uint8_t)mine;
		}
		if (lane < t % 32)
			codes[g * CQKD_TOKENS + t / 32 * 32 + lane] = (uint8_t)mine;
	}
}

CQ_DEVICE void page_store(const struct cqkd_append &p, const struct put &w, const __half *x)
{
	uint8_t *out = cqkd_ptr<uint8_t>(w.to.codes) + p.at.offset +
		       w.head * (p.at.k_bytes + p.at.v_bytes) + (w.v ? p.at.k_bytes : 0);

	switch (w.book->channels) {
	case 2:
		encode<2>(p, w, x, out);
		break;
	case 4:
		encode<4>(p, w, x, out);
		break;
	case 8:
		encode<8>(p, w, x, out);
		break;
	default:
		rows_store(w, x, p.d, reinterpret_cast<__half *>(out));
	}
}

/* Grid: destinations, kv heads times two. Shared: 64 * d halves. */
CQ_KERNEL(CQKD_THREADS, cqk_append, (struct cqkd_append p))
{
	CQ_DYN_SHARED(__half, x);
	struct put w;

	if (blockIdx.x >= *cqkd_ptr<const uint32_t>(p.n_dests))
		return;
	w.to = cqkd_ptr<const struct cqkd_dest>(p.dests)[blockIdx.x];
	w.head = blockIdx.y / 2;
	w.v = blockIdx.y % 2;
	w.view = w.v ? &p.v : &p.k;
	w.book = w.v ? &p.at.v : &p.at.k;
	rows_load(p, w, x);
	__syncthreads();
	if (w.to.f16)
		rows_store(w, x, p.d, cqkd_ptr<__half>(w.to.f16) +
			   (((size_t)p.layer * p.n_kv_heads + w.head) * 2 + w.v) *
			   w.to.tokens * p.d);
	if (w.to.codes)
		page_store(p, w, x);
}
