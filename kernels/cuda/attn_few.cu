// SPDX-License-Identifier: MIT
/*
 * Attention of at most eight query vectors over pages, as in decoding: centroids go from
 * shared memory straight into the fragments of tensor cores (attn_few.cuh).
 *
 * A block of threads stays with one kv head. It copies the centroids of that head once and
 * takes item after item. Four warps have a page, 16 tokens each, for keys and for values;
 * warps meet once for three pages. Until then the codes of the next three have come and
 * queries have been turned to them; what is to be known of a page was looked up before that,
 * of six pages at a time.
 *
 * Keys turn in fp16, by cos and sin of their place in the page, which a lane keeps. Queries
 * turn in fp32, from page to page by the same angle as long as pages follow each other; at
 * times, and where they do not, by the tables.
 */
#include "kernels/cuda/attn_few.cuh"

#define WARPS CQKD_FEW_WARPS
#define PAGES CQKD_FEW_PAGES
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

template <int d>
struct few {
	__half book[2][CQKD_CENTROIDS][d];	/* of K and V */
	float step[d / 4][4];			/* cos, sin of STEP positions, of two pairs */
	struct vectors<d, WARPS> all;
	struct sight sights[CQKD_FEW_SIGHTS];
	uint32_t shares[8][4];			/* see shares_init() */
	struct cqkd_item item;			/* kept here, as registers are few */
	uint32_t next, pad;			/* which is next */
	union {
		struct {
			__half q[2][PAGES][d / 32 * PIECE_PITCH];	/* see query_at() */
			uint8_t codes[16];	/* [2][PAGES], K and V: CQKD_FEW_CODES() */
		};
		float o[4][VECS][d];		/* results of four warps at a time */
	};
};

/* What threads know of their work; up to @w the same for a block. */
struct turn {
	const struct cqkd_attn &p;
	struct work w;
	uint32_t slot;		/* which page of a stage */
	uint32_t tile;		/* which 16 tokens of it */
	uint32_t from, to;	/* of its first 16 bytes of codes: place in a page, in a stage */
};

/* A thread's part of the queries: two pairs that are neighbours, of each @n-th vector. */
template <int d>
struct pairs {
	static const int n = PAGE_THREADS / (d / 4);
	static const int vecs = VECS / n;
	float lo[vecs][2], hi[vecs][2];
	uint32_t next[vecs];	/* the position that a step turns them to */
};

/* All threads: the centroids of the head. */
template <int d>
CQ_DEVICE void books_load(const struct turn &t, struct few<d> *sh)
{
	constexpr int n = CQKD_CENTROIDS * d / 8;
	size_t from = (size_t)t.w.head * CQKD_CENTROIDS * d;
	const __half *k = cqkd_ptr<const __half>(t.p.at.k.rows) + from;
	const __half *v = cqkd_ptr<const __half>(t.p.at.v.rows) + from;
	int i;

	for (i = cq_keep(threadIdx.x); i < n; i += THREADS) {
		cq_cp_async16(&sh->book[0][0][0] + i * 8, k + (size_t)i * 8);
		cq_cp_async16(&sh->book[1][0][0] + i * 8, v + (size_t)i * 8);
	}
	cq_cp_commit();
}

/* Some warps look at the AHEAD pages from @first on: a lane at one, for one vector. */
template <int d>
CQ_DEVICE void look(const struct turn &t, struct few<d> *sh, uint32_t first)
{
	uint32_t thread = cq_keep(threadIdx.x), vec = thread % VECS, n = thread / VECS;
	struct sight &to = sh->sights[first / AHEAD % 2 * AHEAD + (n < AHEAD ? n : 0)];
	uint64_t vis = 0, live;
	struct cqkd_block b;
	int i;

	if (thread / 32 * 4 >= AHEAD)
		return;
	b = {};
	if (n < AHEAD && first + n < t.w.item.n_blocks)
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
	if (n < AHEAD)
		to.vis[vec] = vis;
	if (vec || n >= AHEAD)
		return;
	to.base = b.base;
	to.live = live;
	to.how = (b.kind ? b.tokens : 0) | (i == 0xff ? WHOLE : 0);
}

/* A thread's queries, turned to @pos by the tables. */
template <int d>
CQ_DEVICE void pairs_load(const struct turn &t, const float *q, uint32_t pos, float lo[2],
			  float hi[2])
{
	uint32_t j = cq_keep(threadIdx.x % (d / 4) * 2), i;

	for (i = 0; i < 2; i++) {
		struct cqkd_turn a = { 1, 0 };
		float x = q[j + i], y = q[j + i + d / 2];

		if (t.p.turn_k)
			a = cqkd_turn_at(t.p.rope, pos, j + i);
		lo[i] = x * a.c + y * a.s;
		hi[i] = y * a.c - x * a.s;
	}
}

/* They STEP positions on. */
CQ_DEVICE void pairs_turn(const float step[4], float lo[2], float hi[2])
{
	float4 a = *(const float4 *)step;
	float x0 = lo[0], x1 = lo[1];

	lo[0] = x0 * a.x + hi[0] * a.y;
	lo[1] = x1 * a.z + hi[1] * a.w;
	hi[0] = hi[0] * a.x - x0 * a.y;
	hi[1] = hi[1] * a.z - x1 * a.w;
}

/* Queries as halves for a page that begins where @at says, for each. */
template <int d, int kc>
CQ_DEVICE void queries_turn(const struct turn &t, const struct few<d> *sh, const struct sight &at,
			    __half *to, struct pairs<d> &q)
{
	/* not kept while a tile is computed, when registers are few */
	uint32_t thread = cq_keep(threadIdx.x % PAGE_THREADS), vec = thread / (d / 4);
	int i;

	to += query_at<d, kc>(thread / (d / 4), thread % (d / 4) * 2);
#pragma unroll
	for (i = 0; i < pairs<d>::vecs; i++) {
		uint32_t pos = at.pos[vec + i * pairs<d>::n];

		if (vec + i * pairs<d>::n >= t.w.item.n_vecs)
			break;
		if (pos == q.next[i] && pos % EXACT_EVERY >= STEP)
			pairs_turn(sh->step[threadIdx.x % (d / 4)], q.lo[i], q.hi[i]);
		else
			pairs_load<d>(t, sh->all.q[vec + i * pairs<d>::n], pos, q.lo[i], q.hi[i]);
		q.next[i] = pos + STEP;
		/* vectors are 4 x 8 halves apart, see query_at() */
		*(__half2 *)(to + i * pairs<d>::n * 32) =
			__floats2half2_rn(q.lo[i][0], q.lo[i][1]);
		*(__half2 *)(to + i * pairs<d>::n * 32 + d / 64 * PIECE_PITCH) =
			__floats2half2_rn(q.hi[i][0], q.hi[i][1]);
	}
}

/* Codes of a page on their way to a stage. K's blocks and V's follow each other. */
template <int d, int kc, int vc>
CQ_DEVICE void codes_load(const struct turn &t, uint64_t base, uint8_t *to)
{
	constexpr int pieces = (d / kc + d / vc) * 4;	/* of 16 bytes, at most */
	uint32_t n = d == 128 ? pieces : (t.p.at.k.groups + t.p.at.v.groups) * 4;
	const uint8_t *from = cqkd_ptr<const uint8_t>(base) + t.from;
	int i;

	to += t.to;
#pragma unroll
	for (i = 0; i < (pieces + PAGE_THREADS - 1) / PAGE_THREADS; i++)
		if (pieces % PAGE_THREADS == 0 && d == 128 ? true :
		    threadIdx.x % PAGE_THREADS + i * PAGE_THREADS < n)
			cq_cp_async16(to + i * (PAGE_THREADS / 4 * CQKD_FEW_STRIDE),
				      from + i * (PAGE_THREADS * 16));
}

/* A page of the item, by four warps: which it is, and where its things are. */
template <int d>
struct page {
	uint32_t i;
	const struct sight &at;
	uint8_t *codes;
	__half *q;
};

/* Bytes of a page's codes in a stage, and of its keys' there. */
template <int d, int kc, int vc>
CQ_DEVICE uint32_t codes_bytes(const struct cqkd_layer &at, bool k_only)
{
	uint32_t k = d == 128 ? d / kc : at.k.groups, v = d == 128 ? d / vc : at.v.groups;

	return CQKD_FEW_CODES(k_only ? k : k + v);
}

/* The page of some warps of those from @i on; @sight: where in the ring what is known is. */
template <int d, int kc, int vc>
CQ_DEVICE struct page<d> page_at(const struct turn &t, struct few<d> *sh, uint32_t i,
				 uint32_t sight, uint32_t buf)
{
	uint32_t stage = buf * PAGES + t.slot;

	return {
		i + t.slot, sh->sights[sight + t.slot],
		sh->codes + stage * codes_bytes<d, kc, vc>(t.p.at, false),
		sh->q[0][0] + stage * (d / 32 * PIECE_PITCH),
	};
}

/* Four warps get their page ready, if there is one. */
template <int d, int kc, int vc>
CQ_DEVICE void prepare(const struct turn &t, const struct few<d> *sh, const struct page<d> &pg,
		       struct pairs<d> &q)
{
	if (pg.i < t.w.item.n_blocks) {
		if (!(pg.at.how & HALVES))
			codes_load<d, kc, vc>(t, pg.at.base, pg.codes);
		/* what does not turn fills both buffers, once */
		if (t.p.turn_k || pg.i < 2 * PAGES)
			queries_turn<d, kc>(t, sh, pg.at, pg.q, q);
	}
	cq_cp_commit();
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

/* 16 tokens of a page, by one warp. */
template <int d, int kc, int vc>
CQ_DEVICE void tile_add(const struct turn &t, const struct few<d> *sh, const struct page<d> &pg,
			const struct frame<d, kc> &f, struct state<d> &st)
{
	uint32_t set, prob[SETS][2], how = pg.at.how, tokens = how & HALVES;
	bool two = t.w.item.n_vecs > SET;
	struct places to;
	float x[SETS][2];

	if (!reinterpret_cast<const uint16_t *>(&pg.at.live)[t.tile])
		return;
	places_init<d, kc>(cq_keep(threadIdx.x), to);
	{
		struct keys<d> k;

		if (tokens)
			keys_of_rows<d, kc>(rows_of<d>(t, pg.at, tokens), pg.at.live, t.tile, k);
		else
			keys_of_codes<d, kc>(t.p.at.k, sh->book[0][0], pg.codes + to.k, k);
		/* in every case, or registers would have to be put in order */
		if (t.p.turn_k)
			products_of<d, kc, true>(to, f, k, pg.q, two, x);
		else
			products_of<d, kc, false>(to, f, k, pg.q, two, x);
	}
	__syncwarp();	/* what comes next shall not take its registers yet */
#pragma unroll
	for (set = 0; set < SETS; set++) {
		if (set && !two)
			break;
		scores(t.p, sh->all.query, pg.at, how & WHOLE, t.tile,
		       threadIdx.x % 4 + set * SET, x[set]);
		softmax(x[set], st.r[set], prob[set]);
	}
	{
		struct values<d> v;
		uint4 share;

		if (tokens)
			values_of_rows<d, vc>(rows_of<d>(t, pg.at, tokens) + tokens * d,
					      pg.at.live, t.tile, v);
		else
			values_of_codes<d, vc>(t.p.at.v, sh->book[1][0], pg.codes + to.v +
					       codes_bytes<d, kc, vc>(t.p.at, true), v);
		share = *(const uint4 *)sh->shares[threadIdx.x % 8];
		values_add<d, vc>(v, prob[0], share, st.r[0]);
		if (two)
			values_add<d, vc>(v, prob[1], share, st.r[1]);
	}
}

/* Results of all warps to shared memory, four by four. */
template <int d, int vc>
CQ_DEVICE void gather(struct few<d> *sh, struct state<d> &st)
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
template <int d>
CQ_DEVICE void state_init(struct few<d> *sh, struct state<d> &st)
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

template <int d, int kc, int vc>
CQ_DEVICE void item(const struct turn &t, struct few<d> *sh, const struct frame<d, kc> &f,
		    struct pairs<d> &q)
{
	uint32_t i, n, buf = 0, sight = 0;
	struct state<d> st;
	struct work w;

#pragma unroll
	for (n = 0; n < pairs<d>::vecs; n++)
		q.next[n] = ~0u;
	queries_load(t.p, t.w, sh->all);
	__syncthreads();
	state_init(sh, st);
	look(t, sh, 0);
	/* once more than there are pages: what the first round would find is made in it */
#pragma unroll 1
	for (i = 0; i < t.w.item.n_blocks + PAGES; i += PAGES) {
		cq_cp_wait<0>();
		__syncthreads();
		if (sight == AHEAD - PAGES || sight == 2 * AHEAD - PAGES)
			look(t, sh, i + PAGES);
		prepare<d, kc, vc>(t, sh, page_at<d, kc, vc>(t, sh, i, sight, buf), q);
		buf ^= 1;
		if (i && i - PAGES + t.slot < t.w.item.n_blocks)
			tile_add<d, kc, vc>(t, sh, page_at<d, kc, vc>(t, sh, i - PAGES,
					    (sight ? sight : CQKD_FEW_SIGHTS) - PAGES, buf),
					    f, st);
		sight = sight + PAGES < CQKD_FEW_SIGHTS ? sight + PAGES : 0;
	}
	gather<d, vc>(sh, st);
	w = t.w;
	w.item.slot = sh->item.slot;
	result_store(t.p, w, sh->all, sh->o);
}

/* What a thread has to do with each page of the call. */
template <int d, int kc>
CQ_DEVICE void turn_init(struct turn &t)
{
	uint32_t i = threadIdx.x % PAGE_THREADS;

	t.w.head = t.p.head_begin + blockIdx.y;
	t.slot = threadIdx.x / PAGE_THREADS;
	t.tile = threadIdx.x / 32 % 4;
	t.from = cq_keep((uint32_t)(t.p.at.offset + t.w.head * (t.p.at.k_bytes + t.p.at.v_bytes)) +
			 i * 16);
	t.to = i / 4 * CQKD_FEW_STRIDE + i % 4 * 16;
}

/* What turns queries from page to page; nothing where keys do not turn. */
template <int d>
CQ_DEVICE void steps_init(const struct cqkd_attn &p, struct few<d> *sh)
{
	uint32_t j = cq_keep(threadIdx.x);
	struct cqkd_turn a = { 1, 0 };

	if (j >= d / 2)
		return;
	if (p.turn_k)
		a = cqkd_turn_at(p.rope, STEP, j);
	sh->step[j / 2][j % 2 * 2] = a.c;
	sh->step[j / 2][j % 2 * 2 + 1] = a.s;
}

template <int d, int kc, int vc>
CQ_DEVICE void attention(const struct cqkd_attn &p, struct few<d> *sh)
{
	const struct cqkd_plan *plan = cqkd_ptr<const struct cqkd_plan>(p.plan);
	struct turn t = { p, {}, 0, 0, 0, 0 };
	struct frame<d, kc> f = {};
	struct pairs<d> q = {};
	bool ready = false;
	uint32_t i;

	turn_init<d, kc>(t);
	for (i = plan->n_wide + blockIdx.x; i < plan->n_items; i = sh->next) {
		__syncthreads();	/* the item before has been stored */
		if (threadIdx.x == 0) {
			sh->item = part_of<struct cqkd_item>(p, &cqkd_plan::items)[i];
			sh->next = i + gridDim.x;
		}
		__syncthreads();
		t.w.item = sh->item;
		if (t.w.item.n_vecs > p.few)
			continue;
		if (!ready) {
			books_load(t, sh);
			steps_init(p, sh);
			shares_init<d, vc>(sh->shares);
			if (p.turn_k)
				frame_load(p.rope, t.tile, f);
		}
		ready = true;
		item<d, kc, vc>(t, sh, f, q);
	}
}

/* Grid: blocks that share the items of a kv head, kv heads of the call. */
#define ATTN_FEW(d, kc, vc) \
CQ_KERNEL_BLOCKS(THREADS, 1, cqk_attn_few_d##d##_k##kc##v##vc, (struct cqkd_attn p)) \
{ \
	static_assert(sizeof(struct few<d>) <= CQKD_FEW_SHARED(d, 1), "params.h"); \
	CQ_DYN_SHARED(struct few<d>, sh); \
\
	attention<d, kc, vc>(p, sh); \
}
ATTN_FEW(64, 2, 2)
ATTN_FEW(64, 2, 4)
ATTN_FEW(64, 4, 2)
ATTN_FEW(64, 4, 4)
ATTN_FEW(128, 2, 2)
ATTN_FEW(128, 2, 4)
ATTN_FEW(128, 4, 2)
ATTN_FEW(128, 4, 4)
ATTN_FEW(128, 8, 2)
ATTN_FEW(128, 8, 4)
ATTN_FEW(128, 2, 8)
ATTN_FEW(128, 4, 8)
ATTN_FEW(128, 8, 8)
