// SPDX-License-Identifier: MIT
/*
 * Attention of at most eight query vectors over pages, as in decoding: centroids go from
 * shared memory straight into the fragments of tensor cores.
 *
 * A block of threads stays with one kv head. It copies the centroids of that head once
 * (K and V as rows of d channels, one per code, so that groups lie beside each other in
 * the banks) and takes item after item. Four warps have a page, 16 tokens each, for keys
 * and for values; warps meet once for three pages, when the codes of the next three have
 * come and queries have been turned to them.
 *
 * Fragments: tokens are the rows of Q.K, channels those of V.P, so that eight vectors fill
 * the columns. Which channel has which place in a sum is free, as long as keys and queries
 * agree: a lane takes units of channels, of one group each, such that one load has a unit.
 * Lanes that would meet in a bank load their units in an order of their own, and registers
 * are exchanged afterwards: bit by bit of that order, under a condition (untangle()).
 *
 * Keys turn in fp16, by cos and sin of their place in the page, which a lane keeps.
 */
#include "kernels/cuda/attn_frag.cuh"

#define WARPS CQKD_FEW_WARPS
#define PAGES CQKD_FEW_PAGES
#define THREADS (WARPS * 32)
#define PAGE_THREADS 128	/* four warps */

template <int d>
struct few {
	__half book[2][CQKD_CENTROIDS][d];	/* of K and V */
	__half q[2][PAGES][VECS * d];		/* see query_at() */
	struct vectors<d, WARPS> all;
	uint64_t vis[2][PAGES][VECS];		/* tokens that they see, */
	uint64_t live[2][PAGES];		/* and that some of them sees */
	union {
		uint8_t codes[16];		/* [2][PAGES], K and V: CQKD_FEW_CODES() */
		float o[4][VECS][d];		/* results of four warps at a time */
	};
};

/*
 * What a lane has of a token, l = lane % 4 and n = lane / 4, by units of @u channels: of a
 * key the units l + 4 s of each half, of a value units that follow each other.
 */
template <int d, int u>
struct unit {
	static const int words = u / 2;		/* registers */
	static const int sets = d / 8 / u;	/* of keys: units of one side */
	static const int of_v = d / 8 / u;
};

/* What threads know of their work; all but @page is the same for a block. */
struct turn {
	const struct cqkd_attn &p;
	struct work w;
	uint32_t slot;		/* which page of a stage */
	uint32_t tile;		/* which 16 tokens of it */
	uint32_t lo_at;		/* of the first query, where this thread's pair is */
};

/* Place of a query's channel: by lane of four, then in the order of the lane's keys. */
template <int d, int u>
CQ_DEVICE uint32_t query_at(uint32_t vec, uint32_t ch)
{
	uint32_t x = ch % (d / 2), l = x / u % 4;
	uint32_t at = ch / (d / 2) * (d / 8) + x / u / 4 * u + x % u;

	/* pieces of 16 bytes such that quarter warps find them in different banks */
	at = (at / 8 ^ ((l ^ vec) & (d / 32 - 1))) * 8 + at % 8;
	return (vec * 4 + l) * (d / 4) + at;
}

/* All threads: the centroids of the head. */
template <int d>
CQ_DEVICE void books_load(const struct turn &t, struct few<d> *sh)
{
	constexpr int n = CQKD_CENTROIDS * d / 8;
	size_t from = (size_t)t.w.head * CQKD_CENTROIDS * d;
	const __half *k = cqkd_ptr<const __half>(t.p.at.k.rows) + from;
	const __half *v = cqkd_ptr<const __half>(t.p.at.v.rows) + from;
	int i;

	for (i = threadIdx.x; i < n; i += THREADS) {
		cq_cp_async16(&sh->book[0][0][0] + i * 8, k + (size_t)i * 8);
		cq_cp_async16(&sh->book[1][0][0] + i * 8, v + (size_t)i * 8);
	}
	cq_cp_commit();
}

/* Queries as halves for the page at hand, whose first token is at @pos for each. */
template <int d, int u>
CQ_DEVICE void queries_turn(const struct turn &t, struct few<d> *sh, uint32_t buf, uint32_t n_vecs)
{
	const struct cqkd_span *spans = part_of<struct cqkd_span>(t.p, &cqkd_plan::spans) +
					t.w.block.span_first;
	uint32_t j = threadIdx.x % (d / 2), vec = threadIdx.x % PAGE_THREADS / (d / 2);
	uint32_t span = ~0u;
	struct cqkd_turn a = { 1, 0 };

#pragma unroll 1
	for (; vec < n_vecs; vec += PAGE_THREADS / (d / 2)) {
		float lo = sh->all.q[vec][j], hi = sh->all.q[vec][j + d / 2];
		/* query_at(): this differs with the vector, and d / 8 with the half */
		uint32_t flip = vec % (d / 32) * 8;
		__half *out = sh->q[buf][t.slot] + vec * d;

		if (t.p.turn_k && sh->all.query[vec].span != span) {
			span = sh->all.query[vec].span;
			a = cqkd_turn_at(t.p.rope, spans[span].pos, j);
		}
		out[t.lo_at ^ flip] = __float2half_rn(lo * a.c + hi * a.s);
		out[t.lo_at ^ flip ^ d / 8] = __float2half_rn(hi * a.c - lo * a.s);
	}
}

/* Codes of the page at hand on their way to a stage. */
CQ_DEVICE void codes_load(const struct turn &t, uint8_t *to)
{
	const struct cqkd_layer &at = t.p.at;
	const uint8_t *from = cqkd_ptr<const uint8_t>(t.w.block.base) + at.offset +
			      t.w.head * (at.k_bytes + at.v_bytes);
	uint32_t i, n = (at.k.groups + at.v.groups) * 4;

	for (i = threadIdx.x % PAGE_THREADS; i < n; i += PAGE_THREADS) {
		uint32_t g = i / 4, k = at.k.groups;
		const uint8_t *codes = g < k ? from + g * CQKD_TOKENS :
					       from + at.k_bytes + (g - k) * CQKD_TOKENS;

		cq_cp_async16(to + g * CQKD_FEW_STRIDE + i % 4 * 16, codes + i % 4 * 16);
	}
}

template <int d>
CQ_DEVICE uint8_t *stage_of(const struct turn &t, struct few<d> *sh, uint32_t buf)
{
	return sh->codes + (buf * PAGES + t.slot) *
			   CQKD_FEW_CODES(t.p.at.k.groups + t.p.at.v.groups);
}

CQ_DEVICE bool block_at(struct turn &t, uint32_t i)
{
	if (i >= t.w.item.n_blocks)
		return false;
	t.w.block = part_of<struct cqkd_block>(t.p, &cqkd_plan::blocks)[t.w.item.block + i];
	return true;
}

/* A warp: who sees what of the page at hand. */
template <int d>
CQ_DEVICE void look(const struct turn &t, struct few<d> *sh, uint32_t buf, uint32_t vec)
{
	const struct cqkd_span *spans = part_of<struct cqkd_span>(t.p, &cqkd_plan::spans) +
					t.w.block.span_first;
	uint64_t vis = 0;
	uint32_t lo, hi;

	if (vec < t.w.item.n_vecs)
		vis = visible(t.p, t.w.block, spans[sh->all.query[vec].span],
			      part_of<uint32_t>(t.p, &cqkd_plan::row_pos)[sh->all.query[vec].row]);
	lo = __reduce_or_sync(0xffffffffu, (uint32_t)vis);
	hi = __reduce_or_sync(0xffffffffu, (uint32_t)(vis >> 32));
	if (vec < VECS)
		sh->vis[buf][t.slot][vec] = vis;
	if (vec == 0)
		sh->live[buf][t.slot] = (uint64_t)hi << 32 | lo;
}

/* Four warps get their page ready, of those from block @i on; of no page, nothing. */
template <int d, int u>
CQ_DEVICE void prepare(struct turn &t, struct few<d> *sh, uint32_t i)
{
	uint32_t buf = i / PAGES % 2, vec = threadIdx.x % PAGE_THREADS;

	if (block_at(t, i + t.slot)) {
		if (t.w.block.kind == 0)
			codes_load(t, stage_of(t, sh, buf));
		/* both buffers once; then what has to turn */
		if (i < 2 * PAGES)
			queries_turn<d, u>(t, sh, buf, VECS);
		else if (t.p.turn_k)
			queries_turn<d, u>(t, sh, buf, t.w.item.n_vecs);
		if (vec < 32)
			look(t, sh, buf, vec);
	}
	cq_cp_commit();
}

/* Exchange registers of units whose place was exchanged with bit @bit of @order. */
template <int n, int words>
CQ_DEVICE void untangle(uint32_t (*x)[words], uint32_t order)
{
	int bit, i, w;

#pragma unroll
	for (bit = 1; bit < n; bit *= 2) {
		bool other = order & bit;

#pragma unroll
		for (i = 0; i < n; i++)
#pragma unroll
			for (w = 0; w < words; w++) {
				uint32_t a = x[i][w], b = x[i | bit][w];

				if (i & bit)
					continue;
				x[i][w] = other ? b : a;
				x[i | bit][w] = other ? a : b;
			}
	}
}

template <int words>
CQ_DEVICE void unit_load(uint32_t *x, const void *from)
{
	if (words == 2) {
		uint2 two = *(const uint2 *)from;

		x[0] = two.x;
		x[words - 1] = two.y;
	} else {
		x[0] = *(const uint32_t *)from;
	}
}

/* cos and sin, times TURNED_SIZE, of what a lane has of the keys 2 n and 2 n + 1. */
template <int d, int u>
struct frame {
	__half2 c[2][unit<d, u>::sets][u / 2], s[2][unit<d, u>::sets][u / 2];
};

template <int d, int u>
CQ_DEVICE void frame_load(const struct turn &t, struct frame<d, u> &f)
{
	uint32_t lane = threadIdx.x % 32, order = lane / 4 % unit<d, u>::sets;
	const float *table = cqkd_ptr<const float>(t.p.rope.in_page);
	int h, s, w;

#pragma unroll
	for (h = 0; h < 2; h++)
#pragma unroll
		for (s = 0; s < unit<d, u>::sets; s++)
#pragma unroll
			for (w = 0; w < u / 2; w++) {
				uint32_t token = t.tile * 16 + lane / 4 * 2 + h;
				const float *at = table + (size_t)token * d +
						  (lane % 4 + 4 * (s ^ order)) * u + 2 * w;

				f.c[h][s][w] = __floats2half2_rn(at[0] * TURNED_SIZE,
								 at[1] * TURNED_SIZE);
				f.s[h][s][w] = __floats2half2_rn(at[d / 2] * TURNED_SIZE,
								 at[d / 2 + 1] * TURNED_SIZE);
			}
}

/* Units of the keys of a lane's two tokens: both halves of their channels. */
template <int d, int u>
struct keys {
	uint32_t x[2][2][unit<d, u>::sets][u / 2];	/* [token][side] */
};

/* Where byte @i of some codes has its centroids of channel @at, both in bytes. */
template <int d>
CQ_DEVICE uint32_t row_at(uint32_t codes, int i, uint32_t at)
{
	/* a row of 256 bytes: code and place are a byte each, in one instruction */
	if (d == 128)
		return __byte_perm(codes, at, 0x5504 | (i << 4));
	return ((i ? codes >> (8 * i - 7) : codes << 7) & 0x7f80) | at;
}

/* The codes of a unit in a stage: its group's. */
template <int u>
CQ_DEVICE const uint8_t *codes_of(const uint8_t *stage, const struct cqkd_book &b, uint32_t x)
{
	/* a group is a unit, or two of them */
	return stage + (x >> (b.channels > u)) * CQKD_FEW_STRIDE;
}

template <int d, int u>
CQ_DEVICE void keys_of_codes(const struct turn &t, const struct few<d> *sh, const uint8_t *codes,
			     struct keys<d, u> &k)
{
	uint32_t lane = threadIdx.x % 32;
	uint32_t far = ((uint32_t)(d / 2 / u) >> (t.p.at.k.channels > u)) * CQKD_FEW_STRIDE;
	uint32_t first = lane % 4 | lane / 4 % unit<d, u>::sets * 4;
	const uint8_t *book = reinterpret_cast<const uint8_t *>(sh->book[0]);
	int s, h, side;

	codes += t.tile * 16 + lane / 4 * 2;
#pragma unroll
	for (s = 0; s < unit<d, u>::sets; s++) {
		const uint8_t *at = codes_of<u>(codes, t.p.at.k, first ^ 4 * s);
		uint32_t ch = first * 2 * u ^ 8 * s * u;	/* in bytes */

#pragma unroll
		for (side = 0; side < 2; side++) {
			uint32_t two = *(const uint16_t *)(at + side * far);

#pragma unroll
			for (h = 0; h < 2; h++)
				unit_load<u / 2>(k.x[h][side][s],
						 book + row_at<d>(two, h, ch) + side * d);
		}
	}
}

/* Rows of an fp16 block; tokens that nobody sees are zero. */
template <int d, int u>
CQ_DEVICE void keys_of_rows(const struct turn &t, const __half *rows, uint64_t live,
			    struct keys<d, u> &k)
{
	uint32_t lane = threadIdx.x % 32, order = lane / 4 % unit<d, u>::sets;
	int h, side, s, w;

#pragma unroll
	for (h = 0; h < 2; h++) {
		uint32_t token = t.tile * 16 + lane / 4 * 2 + h;

#pragma unroll
		for (s = 0; s < 2 * unit<d, u>::sets; s++) {
			side = s % 2;
			if (live >> token & 1)
				unit_load<u / 2>(k.x[h][side][s / 2], rows + (size_t)token * d +
						 side * (d / 2) +
						 (lane % 4 + 4 * (s / 2 ^ order)) * u);
			else
				for (w = 0; w < u / 2; w++)
					k.x[h][side][s / 2][w] = 0;
		}
	}
}

/* Keys by their place in the page, in fp16. */
template <int d, int u>
CQ_DEVICE void keys_turn(const struct frame<d, u> &f, struct keys<d, u> &k)
{
	int h, s, w;

#pragma unroll
	for (h = 0; h < 2; h++)
#pragma unroll
		for (s = 0; s < unit<d, u>::sets; s++)
#pragma unroll
			for (w = 0; w < u / 2; w++) {
				__half2 lo = h2_of(k.x[h][0][s][w]), hi = h2_of(k.x[h][1][s][w]);
				__half2 c = f.c[h][s][w], sn = f.s[h][s][w];

				k.x[h][0][s][w] = h2_bits(__hsub2(__hmul2(lo, c), __hmul2(hi, sn)));
				k.x[h][1][s][w] = h2_bits(__hadd2(__hmul2(lo, sn), __hmul2(hi, c)));
			}
}

/* Products of a tile's keys with the queries. */
template <int d, int u>
CQ_DEVICE void products(const __half *q, struct keys<d, u> &k, float s[4])
{
	constexpr int n = d / 16;	/* registers of half a token */
	uint32_t lane = threadIdx.x % 32, order = lane / 4 % unit<d, u>::sets;
	uint32_t vec = lane / 4, turn = (lane % 4 ^ vec) & (d / 32 - 1), x[2][2 * n];
	const __half *mine = q + lane * (d / 4);
	int h, side, i;

#pragma unroll
	for (h = 0; h < 2; h++)
#pragma unroll
		for (side = 0; side < 2; side++) {
			untangle<unit<d, u>::sets>(k.x[h][side], order);
#pragma unroll
			for (i = 0; i < n; i++)
				x[h][side * n + i] = k.x[h][side][i / (u / 2)][i % (u / 2)];
		}
#pragma unroll
	for (i = 0; i < d / 32; i++) {
		uint4 b = *(const uint4 *)(mine + (i ^ turn) * 8);
		uint32_t lo[2] = { b.x, b.y }, hi[2] = { b.z, b.w };
		uint32_t a0[4] = { x[0][4 * i], x[1][4 * i], x[0][4 * i + 1], x[1][4 * i + 1] };
		uint32_t a1[4] = { x[0][4 * i + 2], x[1][4 * i + 2], x[0][4 * i + 3],
				   x[1][4 * i + 3] };

		cq_mma_16816_f32(s, a0, lo);
		cq_mma_16816_f32(s, a1, hi);
	}
}

/* Units of the values of a lane's four tokens. */
template <int d, int u>
struct values {
	uint32_t x[4][unit<d, u>::of_v][u / 2];
};

/* The order in which a lane has its values: by bank, see above. */
template <int d, int u>
CQ_DEVICE uint32_t value_order()
{
	uint32_t lane = threadIdx.x % 32;

	return (lane % 4 | lane / 16 * 4) & (unit<d, u>::of_v - 1);
}

template <int d, int u>
CQ_DEVICE void values_of_codes(const struct turn &t, const struct few<d> *sh,
			       const uint8_t *codes, struct values<d, u> &v)
{
	uint32_t lane = threadIdx.x % 32;
	uint32_t first = lane / 4 * unit<d, u>::of_v | value_order<d, u>();
	const uint8_t *book = reinterpret_cast<const uint8_t *>(sh->book[1]);
	int s, i;

	codes += CQKD_FEW_CODES(t.p.at.k.groups) + t.tile * 16 + lane % 4 * 4;
#pragma unroll
	for (s = 0; s < unit<d, u>::of_v; s++) {
		uint32_t four = *(const uint32_t *)codes_of<u>(codes, t.p.at.v, first ^ s);
		uint32_t ch = first * 2 * u ^ 2 * s * u;

#pragma unroll
		for (i = 0; i < 4; i++)
			unit_load<u / 2>(v.x[i][s], book + row_at<d>(four, i, ch));
	}
}

template <int d, int u>
CQ_DEVICE void values_of_rows(const struct turn &t, const __half *rows, uint64_t live,
			      struct values<d, u> &v)
{
	uint32_t lane = threadIdx.x % 32, order = value_order<d, u>();
	int i, s, w;

#pragma unroll
	for (i = 0; i < 4; i++) {
		uint32_t token = t.tile * 16 + lane % 4 * 4 + i;

#pragma unroll
		for (s = 0; s < unit<d, u>::of_v; s++) {
			if (live >> token & 1)
				unit_load<u / 2>(v.x[i][s], rows + (size_t)token * d +
						 (lane / 4 * unit<d, u>::of_v + (s ^ order)) * u);
			else
				for (w = 0; w < u / 2; w++)
					v.x[i][s][w] = 0;
		}
	}
}

/* Probabilities of a tile times its values. */
template <int d, int u>
CQ_DEVICE void values_add(struct values<d, u> &v, const uint32_t prob[2], struct result<d> &r)
{
	int i;

#pragma unroll
	for (i = 0; i < 4; i++)
		untangle<unit<d, u>::of_v>(v.x[i], value_order<d, u>());
#pragma unroll
	for (i = 0; i < d / 16; i++) {
		int s = i / (u / 2), w = i % (u / 2);
		/* rows: a channel and the next; sums: tokens 0 and 2, 1 and 3 */
		uint32_t a[4] = {
			__byte_perm(v.x[0][s][w], v.x[2][s][w], 0x5410),
			__byte_perm(v.x[0][s][w], v.x[2][s][w], 0x7632),
			__byte_perm(v.x[1][s][w], v.x[3][s][w], 0x5410),
			__byte_perm(v.x[1][s][w], v.x[3][s][w], 0x7632),
		};

		cq_mma_16816_f32(r.o[i], a, prob);
	}
}

/* 16 tokens of the block at hand, by one warp. */
template <int d, int ku, int vu>
CQ_DEVICE void tile_add(const struct turn &t, struct few<d> *sh, uint32_t buf,
			const struct frame<d, ku> &f, struct result<d> &r)
{
	const uint64_t *vis = sh->vis[buf][t.slot];
	const uint8_t *codes = stage_of(t, sh, buf);
	size_t row = ((size_t)t.p.layer * t.p.n_kv_heads + t.w.head) * 2 * t.w.block.tokens * d;
	const __half *rows = cqkd_ptr<const __half>(t.w.block.base) + row;
	uint64_t live = sh->live[buf][t.slot];
	float s[4] = {};
	uint32_t prob[2];

	if (!(live >> t.tile * 16 & 0xffff))
		return;
	{
		struct keys<d, ku> k;

		if (t.w.block.kind)
			keys_of_rows(t, rows, live, k);
		else
			keys_of_codes(t, sh, codes, k);
		if (t.p.turn_k)
			keys_turn(f, k);
		__syncwarp();	/* what comes next shall not take its registers yet */
		products(sh->q[buf][t.slot], k, s);
	}
	softmax(t.p, sh->all, vis, t.tile, threadIdx.x % 32 / 4 * 2, 1, s, r, prob);
	{
		struct values<d, vu> v;

		if (t.w.block.kind)
			values_of_rows(t, rows + t.w.block.tokens * d, live, v);
		else
			values_of_codes(t, sh, codes, v);
		values_add(v, prob, r);
	}
}

template <int d, int ku, int vu>
CQ_DEVICE void item(struct turn &t, struct few<d> *sh, const struct frame<d, ku> &f)
{
	struct result<d> r = {};
	uint32_t i;

	r.m[0] = r.m[1] = -CQKD_INF;
	__syncthreads();	/* the item before has been stored */
	queries_load(t.p, t.w, sh->all);
	/* once more than there are pages: what the first round would find is made in it */
#pragma unroll 1
	for (i = 0; i < t.w.item.n_blocks + PAGES; i += PAGES) {
		cq_cp_wait<0>();
		__syncthreads();
		prepare<d, ku>(t, sh, i);
		if (i && block_at(t, i - PAGES + t.slot))
			tile_add<d, ku, vu>(t, sh, (i / PAGES - 1) % 2, f, r);
	}
	__syncthreads();	/* codes make room for results */
	gather(sh->all, sh->o, threadIdx.x % 32 / 4 * (d / 8), 2, 1, r);
	result_store(t.p, t.w, sh->all, sh->o);
}

template <int d, int ku, int vu>
CQ_DEVICE void attention(const struct cqkd_attn &p, struct few<d> *sh)
{
	const struct cqkd_plan *plan = cqkd_ptr<const struct cqkd_plan>(p.plan);
	const struct cqkd_item *items = part_of<struct cqkd_item>(p, &cqkd_plan::items);
	struct turn t = { p, {}, 0, 0, 0 };
	struct frame<d, ku> f = {};
	bool ready = false;
	uint32_t i;

	t.w.head = p.head_begin + blockIdx.y;
	t.slot = threadIdx.x / PAGE_THREADS;
	t.tile = threadIdx.x / 32 % 4;
	t.lo_at = query_at<d, ku>(0, threadIdx.x % (d / 2));
	for (i = plan->n_wide + blockIdx.x; i < plan->n_items; i += gridDim.x) {
		t.w.item = items[i];
		if (t.w.item.n_vecs > p.few)
			continue;
		if (!ready) {
			books_load(t, sh);
			if (p.turn_k)
				frame_load(t, f);
		}
		ready = true;
		item<d, ku, vu>(t, sh, f);
	}
}

/* Grid: blocks that share the items of a kv head, kv heads of the call. */
#define ATTN_FEW(d, ku, vu) \
CQ_KERNEL_BLOCKS(THREADS, 1, cqk_attn_few_d##d##_k##ku##v##vu, (struct cqkd_attn p)) \
{ \
	static_assert(sizeof(struct few<d>) <= CQKD_FEW_SHARED(d, 1), "params.h"); \
	CQ_DYN_SHARED(struct few<d>, sh); \
\
	attention<d, ku, vu>(p, sh); \
}
ATTN_FEW(64, 2, 2)
ATTN_FEW(64, 2, 4)
ATTN_FEW(64, 4, 2)
ATTN_FEW(64, 4, 4)
ATTN_FEW(128, 2, 2)
ATTN_FEW(128, 2, 4)
ATTN_FEW(128, 4, 2)
ATTN_FEW(128, 4, 4)
