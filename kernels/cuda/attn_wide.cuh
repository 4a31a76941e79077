/* SPDX-License-Identifier: MIT */
/*
 * Attention of many query vectors, for attn_wide.cu and what gpu-bench compares with: tiles of
 * 16 vectors, of which a warp has scores, probabilities and results in registers from one
 * block of tokens to the next. Keys and values are in shared memory, as numbers of a type E
 * (attn_halves.cuh).
 */
#ifndef CQK_CUDA_ATTN_WIDE_CUH
#define CQK_CUDA_ATTN_WIDE_CUH

#include "kernels/cuda/attn.cuh"
#include "kernels/cuda/attn_halves.cuh"
#include "kernels/cuda/units.cuh"

/**
 * struct query - one query vector: a head of a row
 * @size: factor that makes scores of products
 * @row:  query row
 * @span: its span of each block
 * @spoiled: the query is not finite or too large
 */
struct query {
	float size;
	uint32_t row, span;
	uint32_t spoiled;
};

/* Up to @n vectors, in shared memory, and what they see of @stages blocks. */
template <int n, int warps, int stages>
struct sights {
	struct query query[n];
	uint64_t vis[stages][n];		/* tokens that a vector sees */
	uint32_t live[stages][warps][2];	/* that some vector sees, low and high */
};

/* The same with the vectors themselves. */
template <int d, int n, int warps, int stages>
struct crowd {
	__half q[n][CQKD_PITCH(d)];
	struct sights<n, warps, stages> see;
};

/* A tile of 16 vectors: what a lane has of two of them, 8 rows apart. */
template <int d>
struct tile {
	float o[d / 8][4];	/* results */
	float m[2], l[2];	/* maximum of the scores, this lane's sum */
	uint32_t p[4][4];	/* probabilities of the block at hand, by 16 tokens */
};

/* Channels of a query in @x to halves, turned to @pos if it comes unturned. */
template <typename E>
CQ_DEVICE void query_halves(const struct cqkd_attn &p, const float *x, float unit, uint32_t d,
			    uint32_t pos, __half *out)
{
	uint32_t pairs = p.turn_q ? p.rope.half : 0, j;

	for (j = threadIdx.x % 32; j < pairs; j += 32) {
		struct cqkd_turn t = cqkd_turn_at(p.rope, pos, j);
		float lo = x[j] * unit, hi = x[j + pairs] * unit;

		out[E::place(j)] = __float2half_rn(lo * t.c - hi * t.s);
		out[E::place(j + pairs)] = __float2half_rn(lo * t.s + hi * t.c);
	}
	for (j = 2 * pairs + threadIdx.x % 32; j < d; j += 32)
		out[E::place(j)] = __float2half_rn(x[j] * unit);
}

/*
 * A warp has read a query, or @none, and makes halves of it at @out; the size of its scores
 * contains a power of two. @x: room in shared memory.
 */
template <typename E, int d>
CQ_DEVICE struct query query_make(const struct cqkd_attn &p, const float y[d / 32], bool none,
				  const struct cqkd_entry &e, float *x, __half *out)
{
	float unit = query_put<d>(p, y, x), size;
	bool bad = unit == 0;
	uint32_t ch;

	for (ch = threadIdx.x % 32; bad && ch < d; ch += 32)
		x[ch] = 0;
	__syncwarp();
	query_halves<E>(p, x, unit, d, part_of<uint32_t>(p, &cqkd_plan::row_pos)[e.row], out);
	__syncwarp();	/* the next one takes the room of this one */
	size = none || bad ? 0.0f : p.scale / unit;
	return { p.turn_k ? size / TURNED_SIZE : size, e.row, e.span, bad };
}

/*
 * A warp loads four queries of the item, @first and every @step-th, so that it waits once. Their
 * halves are @pitch apart from @q on; those behind the last are zeros that see nothing.
 */
template <typename E, int d, int step>
CQ_DEVICE void queries_four(const struct cqkd_attn &p, const struct work &w, uint32_t first,
			    float *x, __half *q, uint32_t pitch, struct query *query)
{
	float y[4][d / 32] = {};
	struct cqkd_entry e[4] = {};
	int i;

#pragma unroll
	for (i = 0; i < 4; i++)
		if (first + i * step < w.item.n_vecs)
			e[i] = entry_of(p, w, first + i * step);
#pragma unroll
	for (i = 0; i < 4; i++)
		if (first + i * step < w.item.n_vecs)
			query_fetch<d>(p, w, first + i * step, e[i].row, y[i]);
#pragma unroll
	for (i = 0; i < 4; i++) {
		uint32_t vec = first + i * step;
		struct query one;

		if (vec >= w.n_tiles * 16)
			break;
		one = query_make<E, d>(p, y[i], vec >= w.item.n_vecs, e[i], x, q + vec * pitch);
		if (threadIdx.x % 32 == 0)
			query[vec] = one;
	}
}

/* All queries of the item. @room: for one query of each warp, in shared memory. */
template <typename E, int d, int n, int warps, int stages>
CQ_DEVICE void queries_load(const struct cqkd_attn &p, const struct work &w,
			    struct crowd<d, n, warps, stages> &all, float *room)
{
	float *x = room + threadIdx.x / 32 * d;
	uint32_t i;

#pragma unroll 1
	for (i = threadIdx.x / 32; i < w.n_tiles * 16; i += 4 * warps)
		queries_four<E, d, warps>(p, w, i, x, all.q[0], CQKD_PITCH(d), all.see.query);
}

/* What a thread's vector sees of @b, through @span, to stage @at; all threads. */
template <int n, int warps, int stages>
CQ_DEVICE void look_through(const struct cqkd_attn &p, const struct work &w,
			    const struct cqkd_block &b, const struct cqkd_span &span,
			    struct sights<n, warps, stages> &see, uint32_t at)
{
	uint32_t i = threadIdx.x, lo, hi;
	uint64_t vis = 0;

	if (i < w.item.n_vecs)
		vis = visible(p, b, span,
			      part_of<uint32_t>(p, &cqkd_plan::row_pos)[see.query[i].row]);
	if (i < n)
		see.vis[at][i] = vis;
	lo = __reduce_or_sync(0xffffffffu, (uint32_t)vis);
	hi = __reduce_or_sync(0xffffffffu, (uint32_t)(vis >> 32));
	if (i % 32 == 0) {
		see.live[at][i / 32][0] = lo;
		see.live[at][i / 32][1] = hi;
	}
}

/* Its span of that block. */
template <int n, int warps, int stages>
CQ_DEVICE struct cqkd_span span_of(const struct cqkd_attn &p, const struct work &w,
				   const struct cqkd_block &b,
				   const struct sights<n, warps, stages> &see)
{
	if (threadIdx.x >= w.item.n_vecs)
		return {};
	return part_of<struct cqkd_span>(p, &cqkd_plan::spans)
		[b.span_first + see.query[threadIdx.x].span];
}

/* Tokens of a stage that some vector sees. */
template <int n, int warps, int stages>
CQ_DEVICE uint64_t live_of(const struct sights<n, warps, stages> &see, uint32_t at)
{
	uint32_t lo = 0, hi = 0, from;

	for (from = 0; from < warps; from++) {
		lo |= see.live[at][from][0];
		hi |= see.live[at][from][1];
	}
	return (uint64_t)hi << 32 | lo;
}

/* Who sees what of the block at hand, which is of stage @at; its live tokens, 0 for none. */
template <int n, int warps, int stages>
CQ_DEVICE uint64_t look(const struct cqkd_attn &p, const struct work &w,
			struct sights<n, warps, stages> &see, uint32_t at)
{
	look_through(p, w, w.block, span_of(p, w, w.block, see), see, at);
	__syncthreads();
	return live_of(see, at);
}

/* Products of 16 vectors, from @first on, with all keys of a tile of E. */
template <typename E, int d, int n, int warps, int stages>
CQ_DEVICE void products(const struct crowd<d, n, warps, stages> &all, uint32_t first,
			const uint8_t *keys, float s[8][4])
{
	uint32_t lane = threadIdx.x % 32, a[2][4], b[2][4];
	constexpr uint32_t pitch = E::template pitch<d>();
	const __half *q = &all.q[first + lane % 16][lane / 16 * 8];
	int k, t, i;

#pragma unroll 1
	for (k = 0; k < d / 16; k += 2) {
		cq_ldmatrix_x4(a[0], q + k * 16);
		cq_ldmatrix_x4(a[1], q + k * 16 + 16);
#pragma unroll
		for (t = 0; t < 4; t++) {
			E::template keys<true>(b, keys + t * 16 * pitch, pitch, k);
#pragma unroll
			for (i = 0; i < 2; i++) {
				cq_mma_16816_f32(s[2 * t], a[i], b[i]);
				cq_mma_16816_f32(s[2 * t + 1], a[i], b[i] + 2);
			}
		}
	}
}

/* Products of one of a lane's two vectors, @h, to scores; all that is not seen to -inf. */
CQ_DEVICE void scores_of(const struct cqkd_attn &p, float size, const uint64_t *vis, bool whole,
			 float s[8][4], int h)
{
	uint32_t at = threadIdx.x % 4 * 2;
	uint64_t see;
	int n, i;

#pragma unroll
	for (n = 0; n < 8; n++)
#pragma unroll
		for (i = 2 * h; i < 2 * h + 2; i++)
			s[n][i] *= size;
	if (p.soft_cap > 0)
#pragma unroll
		for (n = 0; n < 8; n++)
#pragma unroll
			for (i = 2 * h; i < 2 * h + 2; i++)
				s[n][i] = p.soft_cap * tanhf(s[n][i] / p.soft_cap);
	if (whole)
		return;
	see = *vis >> at;
#pragma unroll
	for (n = 0; n < 8; n++)
#pragma unroll
		for (i = 0; i < 2; i++) {
			float *x = &s[n][2 * h + i];

			*x = see >> (n * 8 + i) & 1 ? *x : -CQKD_INF;
		}
}

/*
 * They become probabilities where they are: the lane and its three neighbours have all 64.
 * Returns by how much results so far fade.
 */
template <int d>
CQ_DEVICE float softmax(float s[8][4], int h, struct tile<d> &r)
{
	float m = r.m[h], old = m, low;
	int n, i;

#pragma unroll
	for (n = 0; n < 8; n++)
		m = fmaxf(m, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
	m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
	m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
	r.m[h] = m;
	/* -inf less -inf is no number; what nobody sees is -inf, and becomes 0 */
	low = m > -CQKD_INF ? m : 0.0f;
#pragma unroll
	for (n = 0; n < 8; n++)
#pragma unroll
		for (i = 2 * h; i < 2 * h + 2; i++)
			s[n][i] = cq_exp2((s[n][i] - low) * LOG2E + P_LIFT);
	return cq_exp2((old - low) * LOG2E);
}

/*
 * A stage's products of 16 vectors, from @first on, become probabilities; by how much a lane's
 * two vectors fade.
 */
template <int d, int n, int warps, int stages>
CQ_DEVICE float2 weights(const struct cqkd_attn &p, const struct sights<n, warps, stages> &see,
			 uint32_t at, uint32_t first, float s[8][4], struct tile<d> &r)
{
	uint32_t v = first + threadIdx.x % 32 / 4;
	const uint64_t *vis = &see.vis[at][v];
	bool whole = __all_sync(0xffffffffu, (vis[0] & vis[8]) == ~0ull);
	float2 fade;

	scores_of(p, see.query[v].size, vis, whole, s, 0);
	scores_of(p, see.query[v + 8].size, vis + 8, whole, s, 1);
	fade.x = softmax(s, 0, r);
	fade.y = softmax(s, 1, r);
	return fade;
}

/* They become halves that values are multiplied with, and these are added up; results fade. */
template <int d>
CQ_DEVICE void weights_take(const float s[8][4], float2 fade, struct tile<d> &r)
{
	int i, n;

	r.l[0] *= fade.x;
	r.l[1] *= fade.y;
#pragma unroll
	for (i = 0; i < 2; i++)
#pragma unroll
		for (n = 0; n < 8; n++) {
			__half2 two = __floats2half2_rn(s[n][2 * i], s[n][2 * i + 1]);

			r.l[i] += __low2float(two) + __high2float(two);
			r.p[n / 2][n % 2 * 2 + i] = h2_bits(two);
		}
	/* seldom: only where there is a new maximum */
	if (!__any_sync(0xffffffffu, fade.x < 1 || fade.y < 1))
		return;
#pragma unroll
	for (n = 0; n < d / 8; n++)
#pragma unroll
		for (i = 0; i < 4; i++)
			r.o[n][i] *= i < 2 ? fade.x : fade.y;
}

/* Probabilities of the 16 vectors from @first on, of their products @s with a stage's keys. */
template <int d, int n, int warps, int stages>
CQ_DEVICE void probabilities(const struct cqkd_attn &p, const struct sights<n, warps, stages> &see,
			     uint32_t at, uint32_t first, float s[8][4], struct tile<d> &r)
{
	float2 fade = weights(p, see, at, first, s, r);

	weights_take(s, fade, r);
}

/* Probabilities times values of a tile of E, for the first @count tiles of a warp. */
template <typename E, int count, int d>
CQ_DEVICE void values(const uint8_t *rows, struct tile<d> *r)
{
	constexpr uint32_t pitch = E::template pitch<d>();
	uint32_t b[2][4];
	int k, n, i, x;

#pragma unroll
	for (k = 0; k < 4; k++)
#pragma unroll
		for (n = 0; n < d / 8; n += 4) {
			E::template values<true>(b, rows + k * 16 * pitch, pitch, n / 2);
#pragma unroll
			for (i = 0; i < count; i++)
#pragma unroll
				for (x = 0; x < 2; x++) {
					float (*o)[4] = &r[i].o[n + 2 * x];

					cq_mma_16816_f32(o[0], r[i].p[k], b[x]);
					cq_mma_16816_f32(o[1], r[i].p[k], b[x] + 2);
				}
		}
}

/* The sum of a quad's four lanes. */
CQ_DEVICE float quad_sum(float x)
{
	x += __shfl_xor_sync(0xffffffffu, x, 1);
	return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/* One of a lane's two vectors of a tile to the workspace, results times @by. */
template <typename E, int d>
CQ_DEVICE void vec_store(const struct cqkd_attn &p, const struct work &w,
			 const struct query *query, uint32_t i, int h, float by,
			 const struct tile<d> &r)
{
	size_t slot = (size_t)(w.head - p.head_begin) * p.max_slots + w.item.slot + i;
	float *ml = cqkd_ptr<float>(p.part_ml) + slot * 2;
	float *o = cqkd_ptr<float>(p.part_o) + slot * d;
	float l = quad_sum(r.l[h]);
	int n;

	if (i >= w.item.n_vecs)
		return;
	if (threadIdx.x % 4 == 0) {
		ml[0] = r.m[h];
		ml[1] = query[i].spoiled ? __int_as_float(0x7fc00000) : l * P_UNIT;
	}
#pragma unroll
	for (n = 0; n < d / 8; n += 2)
		E::put(o + n * 8, &r.o[n][2 * h], &r.o[n + 1][2 * h], by * P_UNIT);
}

/* Tiles of a warp: of @n vectors every @warps-th. */
template <int d, int n, int warps>
struct tiles {
	static const int count = (n / 16 + warps - 1) / warps;
	struct tile<d> at[count];
};

template <int d, int n, int warps>
CQ_DEVICE void tiles_init(struct tiles<d, n, warps> &r)
{
	int i;

	r = {};
#pragma unroll
	for (i = 0; i < r.count; i++)
		r.at[i].m[0] = r.at[i].m[1] = -CQKD_INF;
}

/* Probabilities of a warp's tiles. */
template <typename E, int d, int n, int warps, int stages>
CQ_DEVICE void tiles_scores(const struct cqkd_attn &p, const struct work &w,
			    const struct crowd<d, n, warps, stages> &all, uint32_t at,
			    const uint8_t *keys, struct tiles<d, n, warps> &r)
{
	int i;

#pragma unroll
	for (i = 0; i < r.count; i++) {
		uint32_t t = threadIdx.x / 32 + i * warps;
		float s[8][4] = {};

		if (t >= w.n_tiles)
			continue;
		products<E>(all, t * 16, keys, s);
		probabilities(p, all.see, at, t * 16, s, r.at[i]);
	}
}

template <typename E, int d, int n, int warps>
CQ_DEVICE void tiles_values(const struct work &w, const uint8_t *rows,
			    struct tiles<d, n, warps> &r)
{
	constexpr int count = tiles<d, n, warps>::count;

	if (count > 1 && threadIdx.x / 32 + warps < w.n_tiles)
		values<E, count>(rows, r.at);
	else if (threadIdx.x / 32 < w.n_tiles)
		values<E, 1>(rows, r.at);
}

/* Results of all vectors, times @by. */
template <typename E, int d, int n, int warps, int stages>
CQ_DEVICE void result_store(const struct cqkd_attn &p, const struct work &w,
			    const struct sights<n, warps, stages> &see, float by,
			    const struct tiles<d, n, warps> &r)
{
	uint32_t row = threadIdx.x % 32 / 4;
	int i;

#pragma unroll
	for (i = 0; i < r.count; i++) {
		uint32_t v = (threadIdx.x / 32 + i * warps) * 16 + row;

		if (v - row < w.n_tiles * 16) {
			vec_store<E>(p, w, see.query, v, 0, by, r.at[i]);
			vec_store<E>(p, w, see.query, v + 8, 1, by, r.at[i]);
		}
	}
}

#endif /* CQK_CUDA_ATTN_WIDE_CUH */
