// SPDX-License-Identifier: MIT
/*
 * Attention of many query vectors over blocks that they all read, such as the
 * prefix of a batch: each block is decoded once for up to 256 vectors.
 *
 * Eight warps, each with every eighth tile of 16 vectors: scores,
 * probabilities and results of a tile stay in its warp's registers from one
 * block to the next, while keys and then values of the block at hand are in
 * shared memory. (More vectors than registers hold would have their results
 * read and written for every block: twice the bytes that decoding reads.)
 *
 * The host gives such an item only blocks that have one position for all who
 * read them. So keys are turned to their own position, and queries but once.
 */
#include "kernels/cuda/attn.cuh"

#define WARPS (CQKD_WIDE_THREADS / 32)

/**
 * struct query - one query vector: a head of a row
 * @vis:  tokens of the block at hand that it sees
 * @size: factor that makes scores of products
 * @row:  query row
 * @span: its span of each block
 * @spoiled: the query is not finite or too large
 */
struct query {
	uint64_t vis;
	float size;
	uint32_t row, span;
	uint32_t spoiled;
};

template <int d>
struct wide {
	__half q[CQKD_WIDE_VECS(d)][CQKD_PITCH(d)];
	__half tile[CQKD_TOKENS][CQKD_PITCH(d)];
	struct query query[CQKD_WIDE_VECS(d)];
	uint32_t live[WARPS][2];	/* tokens that some vector sees, low and high */
};

/* A tile of 16 vectors: what a lane has of two of them, 8 rows apart. */
template <int d>
struct tile {
	float o[d / 8][4];	/* results */
	float m[2], l[2];	/* maximum of the scores, this lane's sum */
	uint32_t p[4][4];	/* probabilities of the block at hand, by 16 tokens */
};

/* Tiles of a warp: every eighth of a full item. */
template <int d>
struct tiles {
	static const int count = (CQKD_WIDE_VECS(d) / 16 + WARPS - 1) / WARPS;
	struct tile<d> at[count];
};

/* Channels of a query in @x to halves, turned to @pos if it comes unturned. */
CQ_DEVICE void query_halves(const struct cqkd_attn &p, const float *x, float unit, uint32_t d,
			    uint32_t pos, __half *out)
{
	uint32_t pairs = p.turn_q ? p.rope.half : 0, j;

	for (j = threadIdx.x % 32; j < pairs; j += 32) {
		struct cqkd_turn t = cqkd_turn_at(p.rope, pos, j);
		float lo = x[j] * unit, hi = x[j + pairs] * unit;

		out[j] = __float2half_rn(lo * t.c - hi * t.s);
		out[j + pairs] = __float2half_rn(lo * t.s + hi * t.c);
	}
	for (j = 2 * pairs + threadIdx.x % 32; j < d; j += 32)
		out[j] = __float2half_rn(x[j] * unit);
}

/*
 * A warp loads one query: halves, and a power of two that goes into the scores.
 * @x: room for it in shared memory.
 */
template <int d>
CQ_DEVICE void query_load(const struct cqkd_attn &p, const struct work &w, struct wide<d> *sh,
			  uint32_t i, float *x)
{
	uint32_t lane = threadIdx.x % 32, ch;
	struct cqkd_entry e;
	float unit = query_read<d>(p, w, i, &e, x);
	bool bad = unit == 0;

	for (ch = lane; bad && ch < d; ch += 32)
		x[ch] = 0;
	__syncwarp();
	query_halves(p, x, unit, d, part_of<uint32_t>(p, &cqkd_plan::row_pos)[e.row], sh->q[i]);
	if (lane == 0) {
		float size = bad ? 0.0f : p.scale / unit;

		sh->query[i] = { 0, p.turn_k ? size / TURNED_SIZE : size, e.row, e.span, bad };
	}
	__syncwarp();	/* the next one takes the room of this one */
}

/* All queries of the item; the vectors that fill the last tile see nothing. */
template <int d>
CQ_DEVICE void queries_load(const struct cqkd_attn &p, const struct work &w, struct wide<d> *sh)
{
	/* nothing is decoded yet */
	float *x = reinterpret_cast<float *>(sh->tile) + threadIdx.x / 32 * d;
	uint32_t i, ch;

	for (i = threadIdx.x / 32; i < w.n_tiles * 16; i += WARPS) {
		if (i < w.item.n_vecs) {
			query_load(p, w, sh, i, x);
			continue;
		}
		for (ch = threadIdx.x % 32; ch < d; ch += 32)
			sh->q[i][ch] = __float2half_rn(0.0f);
		if (threadIdx.x % 32 == 0)
			sh->query[i] = {};
	}
}

/* Who sees what of the block at hand; its live tokens, 0 for none. */
template <int d>
CQ_DEVICE uint64_t look(const struct cqkd_attn &p, const struct work &w, struct wide<d> *sh)
{
	const struct cqkd_span *spans = part_of<struct cqkd_span>(p, &cqkd_plan::spans) +
					w.block.span_first;
	uint32_t i = threadIdx.x, lo, hi, n;
	uint64_t vis = 0;

	if (i < w.item.n_vecs) {
		struct query *v = &sh->query[i];

		vis = visible(p, w.block, spans[v->span],
			      part_of<uint32_t>(p, &cqkd_plan::row_pos)[v->row]);
		v->vis = vis;
	}
	lo = __reduce_or_sync(0xffffffffu, (uint32_t)vis);
	hi = __reduce_or_sync(0xffffffffu, (uint32_t)(vis >> 32));
	if (i % 32 == 0) {
		sh->live[i / 32][0] = lo;
		sh->live[i / 32][1] = hi;
	}
	__syncthreads();
	for (lo = hi = n = 0; n < WARPS; n++) {
		lo |= sh->live[n][0];
		hi |= sh->live[n][1];
	}
	return (uint64_t)hi << 32 | lo;
}

/* Keys of the tile to their positions from @pos on, and to TURNED_SIZE. */
template <int d>
CQ_DEVICE void keys_turn(const struct cqkd_attn &p, struct wide<d> *sh, uint32_t pos)
{
	uint32_t pairs = p.rope.half, left = d - 2 * pairs, i;

#pragma unroll 2
	for (i = threadIdx.x; i < CQKD_TOKENS * pairs; i += CQKD_WIDE_THREADS) {
		uint32_t t = i / pairs, j = i % pairs;
		struct cqkd_turn turn = cqkd_turn_at(p.rope, pos + t, j);
		float lo = __half2float(sh->tile[t][j]) * TURNED_SIZE;
		float hi = __half2float(sh->tile[t][j + pairs]) * TURNED_SIZE;

		sh->tile[t][j] = __float2half_rn(lo * turn.c - hi * turn.s);
		sh->tile[t][j + pairs] = __float2half_rn(lo * turn.s + hi * turn.c);
	}
	for (i = threadIdx.x; i < CQKD_TOKENS * left; i += CQKD_WIDE_THREADS) {
		__half *x = &sh->tile[i / left][2 * pairs + i % left];

		*x = __float2half_rn(__half2float(*x) * TURNED_SIZE);
	}
}

/* Products of 16 vectors, from @first on, with all keys of the tile. */
template <int d>
CQ_DEVICE void products(const struct wide<d> *sh, uint32_t first, float s[8][4])
{
	uint32_t lane = threadIdx.x % 32, a[4], b[4];
	const __half *q = &sh->q[first + lane % 16][lane / 16 * 8];
	const __half *keys = &sh->tile[lane / 16 * 8 + lane % 8][lane / 8 % 2 * 8];
	int k, n;

#pragma unroll 2
	for (k = 0; k < d; k += 16) {
		cq_ldmatrix_x4(a, q + k);
#pragma unroll
		for (n = 0; n < 4; n++) {
			cq_ldmatrix_x4(b, keys + n * 16 * CQKD_PITCH(d) + k);
			cq_mma_16816_f32(s[2 * n], a, b);
			cq_mma_16816_f32(s[2 * n + 1], a, b + 2);
		}
	}
}

/* Two probabilities as halves; adds to @sum what V will be multiplied with. */
CQ_DEVICE uint32_t prob2(float x, float y, float m, float *sum)
{
	__half px = __float2half_rn(prob(x, m)), py = __float2half_rn(prob(y, m));

	*sum += __half2float(px) + __half2float(py);
	return (uint32_t)__half_as_ushort(py) << 16 | __half_as_ushort(px);
}

/*
 * Products become probabilities of one of a lane's two vectors, @h: the lane
 * and its three neighbours have all 64 tokens. Results so far fade.
 */
template <int d>
CQ_DEVICE void softmax(const struct cqkd_attn &p, const struct query &v, float s[8][4], int h,
		       struct tile<d> &r)
{
	uint32_t at = threadIdx.x % 4 * 2;
	float old = r.m[h], m = old, sum = 0, fade;
	int n;

#pragma unroll
	for (n = 0; n < 8; n++) {
		uint64_t vis = v.vis >> (n * 8 + at);

		s[n][2 * h] = score(p, s[n][2 * h], v.size, vis & 1);
		s[n][2 * h + 1] = score(p, s[n][2 * h + 1], v.size, vis & 2);
		m = fmaxf(m, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
	}
	m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
	m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
	fade = m > -CQKD_INF ? exp2f((old - m) * LOG2E) : 1.0f;
#pragma unroll
	for (n = 0; n < 8; n++)
		r.p[n / 2][n % 2 * 2 + h] = prob2(s[n][2 * h], s[n][2 * h + 1], m, &sum);
	r.m[h] = m;
	r.l[h] = r.l[h] * fade + sum;
#pragma unroll
	for (n = 0; n < d / 8; n++) {
		r.o[n][2 * h] *= fade;
		r.o[n][2 * h + 1] *= fade;
	}
}

/* Probabilities of a warp's tiles. */
template <int d>
CQ_DEVICE void scores(const struct cqkd_attn &p, const struct work &w, const struct wide<d> *sh,
		      struct tiles<d> &r)
{
	uint32_t lane = threadIdx.x % 32;
	int i;

#pragma unroll
	for (i = 0; i < tiles<d>::count; i++) {
		uint32_t t = threadIdx.x / 32 + i * WARPS;

		if (t < w.n_tiles) {
			float s[8][4] = {};

			products(sh, t * 16, s);
			softmax(p, sh->query[t * 16 + lane / 4], s, 0, r.at[i]);
			softmax(p, sh->query[t * 16 + lane / 4 + 8], s, 1, r.at[i]);
		}
	}
}

/* Probabilities times values, for the first @count tiles of a warp. */
template <int count, int d>
CQ_DEVICE void values(const struct wide<d> *sh, struct tiles<d> &r)
{
	uint32_t lane = threadIdx.x % 32, b[4];
	int k, n, i;

#pragma unroll
	for (k = 0; k < 4; k++) {
		const __half *v = &sh->tile[k * 16 + lane % 16][lane / 16 * 8];

#pragma unroll
		for (n = 0; n < d / 8; n += 2) {
			cq_ldmatrix_x4_trans(b, v + n * 8);
#pragma unroll
			for (i = 0; i < count; i++) {
				cq_mma_16816_f32(r.at[i].o[n], r.at[i].p[k], b);
				cq_mma_16816_f32(r.at[i].o[n + 1], r.at[i].p[k], b + 2);
			}
		}
	}
}

/* One block of tokens against all vectors of the item. */
template <int d>
CQ_DEVICE void block_add(const struct cqkd_attn &p, const struct work &w, struct wide<d> *sh,
			 struct tiles<d> &r)
{
	uint64_t live = look(p, w, sh);

	if (!live) {
		__syncthreads();	/* all have read what the next look() writes */
		return;
	}
	tile_load<d, CQKD_WIDE_THREADS>(p, w, false, live, sh->tile);
	if (p.turn_k) {
		uint32_t span = w.block.span_first + sh->query[0].span;

		__syncthreads();
		keys_turn(p, sh, part_of<struct cqkd_span>(p, &cqkd_plan::spans)[span].pos);
	}
	__syncthreads();
	scores(p, w, sh, r);
	__syncthreads();
	tile_load<d, CQKD_WIDE_THREADS>(p, w, true, live, sh->tile);
	__syncthreads();
	if (tiles<d>::count > 1 && threadIdx.x / 32 + WARPS < w.n_tiles)
		values<tiles<d>::count>(sh, r);
	else if (threadIdx.x / 32 < w.n_tiles)
		values<1>(sh, r);
}

/* The sum of a quad's four lanes. */
CQ_DEVICE float quad_sum(float x)
{
	x += __shfl_xor_sync(0xffffffffu, x, 1);
	return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/* One of a lane's two vectors of a tile to the workspace. */
template <int d>
CQ_DEVICE void vec_store(const struct cqkd_attn &p, const struct work &w,
			 const struct wide<d> *sh, uint32_t i, int h, const struct tile<d> &r)
{
	size_t slot = (size_t)(w.head - p.head_begin) * p.max_slots + w.item.slot + i;
	float *ml = cqkd_ptr<float>(p.part_ml) + slot * 2;
	float *o = cqkd_ptr<float>(p.part_o) + slot * d + threadIdx.x % 4 * 2;
	float l = quad_sum(r.l[h]);
	int n;

	if (i >= w.item.n_vecs)
		return;
	if (threadIdx.x % 4 == 0) {
		ml[0] = r.m[h];
		ml[1] = sh->query[i].spoiled ? __int_as_float(0x7fc00000) : l * P_UNIT;
	}
#pragma unroll
	for (n = 0; n < d / 8; n++)
		*(float2 *)&o[n * 8] = make_float2(r.o[n][2 * h] * P_UNIT,
						   r.o[n][2 * h + 1] * P_UNIT);
}

template <int d>
CQ_DEVICE void result_store(const struct cqkd_attn &p, const struct work &w,
			    const struct wide<d> *sh, const struct tiles<d> &r)
{
	uint32_t row = threadIdx.x % 32 / 4;
	int i;

#pragma unroll
	for (i = 0; i < tiles<d>::count; i++) {
		uint32_t t = threadIdx.x / 32 + i * WARPS;

		if (t < w.n_tiles) {
			vec_store(p, w, sh, t * 16 + row, 0, r.at[i]);
			vec_store(p, w, sh, t * 16 + row + 8, 1, r.at[i]);
		}
	}
}

template <int d>
CQ_DEVICE void attention(const struct cqkd_attn &p, struct wide<d> *sh)
{
	struct tiles<d> r = {};
	struct work w;
	uint32_t i;

	if (blockIdx.x >= cqkd_ptr<const struct cqkd_plan>(p.plan)->n_wide)
		return;
	w.item = part_of<struct cqkd_item>(p, &cqkd_plan::items)[blockIdx.x];
	w.head = p.head_begin + blockIdx.y;
	w.n_tiles = (w.item.n_vecs + 15) / 16;
#pragma unroll
	for (i = 0; i < tiles<d>::count; i++)
		r.at[i].m[0] = r.at[i].m[1] = -CQKD_INF;
	queries_load(p, w, sh);
	__syncthreads();
	for (i = 0; i < w.item.n_blocks; i++) {
		w.block = part_of<struct cqkd_block>(p, &cqkd_plan::blocks)[w.item.block + i];
		block_add(p, w, sh, r);
	}
	result_store(p, w, sh, r);
}

/* Grid: most wide items of a plan, kv heads of the call. */
#define ATTN_WIDE(d) \
CQ_KERNEL(CQKD_WIDE_THREADS, cqk_attn_wide_d##d, (struct cqkd_attn p)) \
{ \
	static_assert(sizeof(struct wide<d>) <= CQKD_WIDE_SHARED(d), "params.h"); \
	static_assert(WARPS * d * 4 <= sizeof(wide<d>::tile), "room for queries"); \
	CQ_DYN_SHARED(struct wide<d>, sh); \
\
	attention<d>(p, sh); \
}
ATTN_WIDE(64)
ATTN_WIDE(128)
ATTN_WIDE(256)
