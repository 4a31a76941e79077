/* SPDX-License-Identifier: MIT */
/*
 * What attn_few.cu, attn_bytes.cu and attn_slices.cu have in common: blocks of WARPS that walk
 * the pages of an item, three at a time by twelve, two by eight; what there is to know of a
 * page is looked up before; queries turn from page to page.
 */
#ifndef CQK_CUDA_ATTN_PAGES_CUH
#define CQK_CUDA_ATTN_PAGES_CUH

#include "kernels/cuda/attn_few.cuh"

#ifndef WARPS
#define WARPS CQKD_FEW_WARPS
#endif
#define PAGES (WARPS / 4)
#define THREADS (WARPS * 32)
#define PAGE_THREADS 128	/* four warps */
#define AHEAD (CQKD_FEW_SIGHTS / 2)
#define STEP (PAGES * CQKD_TOKENS)
#define EXACT_EVERY 8192	/* positions; errors of turns add up until then */
#define WHOLE 256
#define HALVES (WHOLE - 1)

/*
 * What there is to know of a page: its block, and what the vectors see of it. @how: tokens of
 * a block of halves, or 0 of codes; and WHOLE if all of them see it all.
 */
struct sight {
	uint64_t base;
	uint64_t live;
	uint32_t how;
	uint32_t pad;
	uint64_t vis[VECS];
	uint32_t pos[VECS];
};

/* What threads know of their work; up to @w the same for a block. */
struct turn {
	const struct cqkd_attn &p;
	struct work w;
	uint32_t slot;		/* which page of a stage */
	uint32_t tile;		/* which 16 tokens of it */
	uint32_t from, to;	/* of its first 16 bytes of codes: place in a page, in a stage */
};

/*
 * A thread's part of the queries, of @d channels: two pairs that are neighbours, of each
 * @n-th vector.
 */
template <int d>
struct pairs {
	static const int n = PAGE_THREADS / (d / 4);
	static const int vecs = VECS / n;
	float lo[vecs][2], hi[vecs][2];
	uint32_t next[vecs];	/* the position that a step turns them to */
};

/*
 * Some warps look at the @ahead pages from @first on: a lane at one, for one vector. What
 * they see is in shared memory from @sights on.
 */
template <int ahead, typename S>
CQ_DEVICE void look(const struct turn &t, const S *sh, struct sight *sights, uint32_t first)
{
	uint32_t thread = cq_keep(threadIdx.x), vec = thread % VECS, n = thread / VECS;
	struct sight &to = sights[n < ahead ? n : 0];
	uint64_t vis = 0, live;
	struct cqkd_block b;
	int i;

	if (thread / 32 * 4 >= ahead)
		return;
	b = {};
	if (n < ahead && first + n < t.w.item.n_blocks)
		b = part_of<struct cqkd_block>(t.p, &cqkd_plan::blocks)[sh->item.block + first + n];
	if (b.base && vec < t.w.item.n_vecs) {
		const struct query &q = sh->all.query[vec];
		struct cqkd_span span = part_of<struct cqkd_span>(t.p, &cqkd_plan::spans)
					[b.span_first + q.span];

		vis = visible(t.p, b, span, part_of<uint32_t>(t.p, &cqkd_plan::row_pos)[q.row]);
		to.pos[vec] = span.pos;
	}
	live = vis;
	for (i = 1; i < VECS; i *= 2)
		live |= __shfl_xor_sync(0xffffffffu, live, i);
	i = __ballot_sync(0xffffffffu, vec >= t.w.item.n_vecs || vis == ~0ull);
	i = i >> (thread & 24) & 0xff;
	if (n < ahead)
		to.vis[vec] = vis;
	if (vec || n >= ahead)
		return;
	to.base = b.base;
	to.live = live;
	to.how = (b.kind ? b.tokens : 0) | (i == 0xff ? WHOLE : 0);
}

/*
 * A thread's queries, turned to @pos by the tables: those of @d channels, of a head of
 * @head, whose first pair is @first.
 */
template <int d, int head>
CQ_DEVICE void pairs_load(const struct turn &t, const float *q, uint32_t first, uint32_t pos,
			  float lo[2], float hi[2])
{
	uint32_t j = cq_keep(threadIdx.x % (d / 4) * 2) + first, i;

	for (i = 0; i < 2; i++) {
		struct cqkd_turn a = { 1, 0 };
		float x = q[j + i], y = q[j + i + head / 2];

		if (t.p.turn_k)
			a = cqkd_turn_at(t.p.rope, pos, j + i);
		lo[i] = x * a.c + y * a.s;
		hi[i] = y * a.c - x * a.s;
	}
}

/* They a step on. */
CQ_DEVICE void pairs_turn(const float step[4], float lo[2], float hi[2])
{
	float4 a = *(const float4 *)step;
	float x0 = lo[0], x1 = lo[1];

	lo[0] = x0 * a.x + hi[0] * a.y;
	lo[1] = x1 * a.z + hi[1] * a.w;
	hi[0] = hi[0] * a.x - x0 * a.y;
	hi[1] = hi[1] * a.z - x1 * a.w;
}

/*
 * Queries as halves for a page that begins where @at says, for each. @thread: of those that
 * the page has, whose last one was @positions before; @step: what turns by so many.
 */
template <int d, int kc, int head, uint32_t positions, typename S>
CQ_DEVICE void queries_turn(const struct turn &t, const S *sh, uint32_t thread,
			    const float (*step)[4], uint32_t first, const struct sight &at,
			    __half *to, struct pairs<d> &q)
{
	uint32_t vec = thread / (d / 4);
	/* from a lower half to its upper one */
	int far = d / 64 * PIECE_PITCH + (key<d, kc>::flip ? 32 - (int)(vec % 2 * 64) : 0);
	int i;

	to += query_at<d, kc>(thread / (d / 4), thread % (d / 4) * 2);
#pragma unroll
	for (i = 0; i < pairs<d>::vecs; i++) {
		uint32_t pos = at.pos[vec + i * pairs<d>::n];

		if (vec + i * pairs<d>::n >= t.w.item.n_vecs)
			break;
		if (pos == q.next[i] && pos % EXACT_EVERY >= positions)
			pairs_turn(step[threadIdx.x % (d / 4)], q.lo[i], q.hi[i]);
		else
			pairs_load<d, head>(t, sh->all.q[vec + i * pairs<d>::n], first, pos,
					    q.lo[i], q.hi[i]);
		q.next[i] = pos + positions;
		/* vectors are 4 x 8 halves apart, see query_at() */
		*(__half2 *)(to + i * pairs<d>::n * 32) =
			__floats2half2_rn(q.lo[i][0], q.lo[i][1]);
		*(__half2 *)(to + i * pairs<d>::n * 32 + far) =
			__floats2half2_rn(q.hi[i][0], q.hi[i][1]);
	}
}

/* Scores, to base 2, of what products @x have become; -inf of tokens that are not seen. */
CQ_DEVICE void scores(const struct cqkd_attn &p, const struct query *query, const struct sight &at,
		      bool whole, uint32_t tile, uint32_t vec, float x[2])
{
	float size = query[vec].size;
	int i;

	/* no product and sum in one: the largest is to be just what others are relative to */
#pragma unroll
	for (i = 0; i < 2; i++)
		x[i] = __fmul_rn(x[i], size);
	if (p.soft_cap > 0) {
		float cap = p.soft_cap * LOG2E;

#pragma unroll 1
		for (i = 0; i < 2; i++) {
			float y = cap * tanhf((i ? x[1] : x[0]) / cap);

			x[0] = i ? x[0] : y;
			x[1] = i ? y : x[1];
		}
	}
	if (!whole) {
		const uint16_t *tiles = reinterpret_cast<const uint16_t *>(&at.vis[vec]);
		uint32_t see = tiles[tile] >> threadIdx.x % 32 / 4 * 2;

#pragma unroll
		for (i = 0; i < 2; i++)
			x[i] = see >> i & 1 ? x[i] : -CQKD_INF;
	}
}

/* What a lane keeps while an item lasts. */
template <int d>
struct state {
	struct result<d> r[SETS];
};

/* Where an fp16 block has the keys of the head; values follow. */
template <int d>
CQ_DEVICE const __half *rows_of(const struct turn &t, const struct sight &at, uint32_t tokens)
{
	size_t head = (size_t)t.p.layer * t.p.n_kv_heads + t.w.head;

	return cqkd_ptr<const __half>(at.base) + head * 2 * tokens * d;
}

/* Products of keys with the sets of queries that there are, one or @two. */
template <int d, int kc, bool turned>
CQ_DEVICE void products_of(const struct places &at, const struct frame<d, kc> &f,
			   const struct keys<d> &k, const __half *q, bool two, float x[SETS][2])
{
	/* with more sums registers are too few for two sets at a time */
	constexpr int most = orders<d, kc>::sums > 2 ? 1 : 2;

	if (two && most == 2) {
		products<d, kc, turned, most>(f, k, q, at, x);
		return;
	}
	products<d, kc, turned, 1>(f, k, q, at, x);
	if (two)
		products<d, kc, turned, 1>(f, k, q + SET * 32, at, x + 1);
}

/* Results of all warps to shared memory, four by four. */
template <int d, int vc, typename S>
CQ_DEVICE void gather(S *sh, struct state<d> &st)
{
	uint32_t thread = cq_keep(threadIdx.x), lane = thread % 32, warp = thread / 32, four, set;
	int n;

#pragma unroll
	for (set = 0; set < SETS; set++) {
		struct result<d> &r = st.r[set];

		for (n = 4; n < 32; n *= 2)
			r.l += __shfl_xor_sync(0xffffffffu, r.l, n);
		if (lane < 4) {
			float *ml = sh->all.ml[warp][set * SET + lane];

			ml[0] = r.low > FLOOR ? (r.low + P_LIFT) / LOG2E : -CQKD_INF;
			ml[1] = r.l;
		}
	}
	__syncthreads();	/* and codes make room for results */
#pragma unroll 1
	for (four = 0; four < WARPS / 4; four++) {
#pragma unroll
		for (set = 0; set < SETS && warp / 4 == four; set++) {
			uint32_t vec = set * SET + lane % 4;
			float m = sh->all.ml[warp][vec][0], top = total(sh->all, vec).x;
			float f = m > -CQKD_INF ? exp2f((m - top) * LOG2E) : 0.0f;

			result_put<d, vc>(st.r[set], f, four, sh->o[warp % 4][vec]);
		}
		__syncthreads();
	}
}

/* Nothing found yet; scores of the item's vectors will be to base 2. */
template <int d, typename S>
CQ_DEVICE void state_init(S *sh, struct state<d> &st)
{
	uint32_t set;

#pragma unroll
	for (set = 0; set < SETS; set++) {
		st.r[set] = {};
		st.r[set].low = FLOOR;
	}
	if (threadIdx.x < VECS)
		sh->all.query[threadIdx.x].size *= LOG2E;
}

/* An item begins: its queries are loaded, no step has turned any, nothing is found. */
template <int d, typename S>
CQ_DEVICE void item_begin(const struct turn &t, S *sh, struct pairs<d> &q, struct state<d> &st)
{
	uint32_t n;

#pragma unroll
	for (n = 0; n < pairs<d>::vecs; n++)
		q.next[n] = ~0u;
	queries_load(t.p, t.w, sh->all);
	__syncthreads();
	state_init(sh, st);
}

/*
 * What turns queries by so many positions, of the @d / 2 pairs from @first on; nothing where
 * keys do not turn.
 */
template <int d>
CQ_DEVICE void steps_init(const struct cqkd_attn &p, float (*step)[4], uint32_t first,
			  uint32_t positions)
{
	uint32_t j = cq_keep(threadIdx.x);
	struct cqkd_turn a = { 1, 0 };

	if (j >= d / 2)
		return;
	if (p.turn_k)
		a = cqkd_turn_at(p.rope, positions, first + j);
	step[j / 2][j % 2 * 2] = a.c;
	step[j / 2][j % 2 * 2 + 1] = a.s;
}

#endif /* CQK_CUDA_ATTN_PAGES_CUH */
