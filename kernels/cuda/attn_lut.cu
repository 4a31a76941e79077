// SPDX-License-Identifier: MIT
/*
 * Attention of one or two query vectors over pages whose keys need no turning, by a table of
 * the products of query and centroid (attn_lut.cuh): of a token's keys it reads a word for
 * each group in place of all channels. The table is of centroids less that of code 0, whose
 * product is in no half: were it, all that keys have in common would be rounded anew with
 * each code, and a channel with a large bias would blur the scores.
 *
 * A block of threads stays with one kv head. It copies the values' centroids of that head
 * once, and makes the table of each item anew. Two warps have a page, half of its tokens
 * each, which come into a ring of the warp's own; no barrier but those of a warp until the
 * item is done. What is to be known of pages a warp looks up for 32 of them at a time, a
 * lane for each.
 */
#include "kernels/cuda/attn_lut.cuh"

#define WARPS CQKD_LUT_WARPS
#define STAGES 2
#define BATCH 32		/* pages that are looked at together */

template <int d>
struct lut {
	__half book[CQKD_CENTROIDS][d];		/* of V */
	struct vectors<d, WARPS, LUTS> all;
	__half q[LUTS][d];
	float top[WARPS][LUTS];			/* largest entries that warps have found */
	float2 line[LUTS];			/* scores of the table's sums: factor, then sum */
};

/* What a thread knows of its block: the table, the ring of its warp, which pages. */
struct turn {
	const struct cqkd_attn &p;
	struct work w;
	uint8_t *table, *ring;
	uint32_t from, to;	/* of its first 16 bytes of codes: place in a page, in a stage */
};

/*
 * The half of each page that is the warp's, the first of its pages in an item, and how far
 * apart they are: computed where they are needed, as registers are few.
 */
CQ_DEVICE uint32_t half_of_warp() { return cq_keep(threadIdx.x) / 32 % 2; }
CQ_DEVICE uint32_t first_of_warp() { return cq_keep(threadIdx.x) / 64; }
CQ_DEVICE uint32_t pages_apart() { return blockDim.x / 64; }

/* The page of a lane: its block, and what the vectors see of the warp's half of it. */
struct sight {
	uint64_t base;
	uint32_t tokens;	/* of a block of halves, or 0 of codes */
	uint32_t vis[LUTS];
};

/* Of some pages, a lane's each: which are of codes, and which do all vectors see whole. */
struct sights {
	struct sight mine;
	uint32_t codes, whole, live;
};

/* The pages from the @k-th of the warp on. */
CQ_DEVICE void look(const struct turn &t, const struct query *query, uint32_t k,
		    struct sights &to)
{
	uint32_t i = first_of_warp() + (k + threadIdx.x % 32) * pages_apart(), v, all = ~0u;
	struct cqkd_block b = {};

	if (i < t.w.item.n_blocks)
		b = part_of<struct cqkd_block>(t.p, &cqkd_plan::blocks)[t.w.item.block + i];
	to.mine = { b.base, b.kind ? b.tokens : 0, {} };
#pragma unroll
	for (v = 0; v < LUTS; v++) {
		if (!b.base || v >= t.w.item.n_vecs)
			continue;
		to.mine.vis[v] = (uint32_t)(visible(t.p, b,
			part_of<struct cqkd_span>(t.p, &cqkd_plan::spans)
				[b.span_first + query[v].span],
			part_of<uint32_t>(t.p, &cqkd_plan::row_pos)[query[v].row]) >>
			(half_of_warp() * TILE));
		all &= to.mine.vis[v];
	}
	v = to.mine.vis[0] | to.mine.vis[1];
	to.live = __ballot_sync(0xffffffffu, v != 0);
	to.codes = __ballot_sync(0xffffffffu, v && !to.mine.tokens);
	to.whole = __ballot_sync(0xffffffffu, v && all == ~0u);
}

/* Bytes of the codes of a tile. */
template <int d, int kc, int vc>
struct stage {
	static const int bytes = (d / kc + d / vc) * TILE;
};

/*
 * A tile's codes on their way: pieces of 16 bytes, half a group's. Four groups beside each
 * other have their first pieces, then their second ones, so that lanes which read at once,
 * of keys or values, are in different banks. K's blocks and V's follow each other.
 */
template <int d, int kc, int vc>
CQ_DEVICE void codes_load(const struct turn &t, uint64_t base, uint8_t *to)
{
	constexpr uint32_t bytes = stage<d, kc, vc>::bytes;
	const uint8_t *from = cqkd_ptr<const uint8_t>(base) + t.from;
	uint32_t i;

	to += t.to;
#pragma unroll
	for (i = 0; i < (bytes + 511) / 512; i++)
		if (bytes % 512 == 0 || i * 512 + threadIdx.x % 32 * 16 < bytes)
			cq_cp_async16(to + i * 512, from + i * 1024);
}

/* The @k-th page of those @at tells of, if there is one. */
template <int d, int kc, int vc>
CQ_DEVICE void fetch(const struct turn &t, const struct sights &at, uint32_t k)
{
	uint64_t base = __shfl_sync(0xffffffffu, at.mine.base, (int)(k % BATCH));

	if (k < BATCH && at.codes >> k & 1)
		codes_load<d, kc, vc>(t, base, t.ring + k % STAGES * stage<d, kc, vc>::bytes);
	cq_cp_commit();
}

/* All threads: the centroids of the head's values. */
template <int d>
CQ_DEVICE void book_load(const struct turn &t, struct lut<d> *sh)
{
	const __half *v = cqkd_ptr<const __half>(t.p.at.v.rows) +
			  (size_t)t.w.head * CQKD_CENTROIDS * d;
	uint32_t i;

	for (i = threadIdx.x; i < CQKD_CENTROIDS * d / 8; i += blockDim.x)
		cq_cp_async16(&sh->book[0][0] + i * 8, v + (size_t)i * 8);
	cq_cp_commit();
	cq_cp_wait<0>();
}

/* The product of a query and what a centroid differs by from that of code 0, @zero. */
template <int c>
CQ_DEVICE float entry_of(const __half *centroid, const float2 *zero, const float *q)
{
	uint32_t x[c / 2];
	float sum = 0;
	int i;

	unit_load<c / 2>(x, centroid);
#pragma unroll
	for (i = 0; i < c / 2; i++) {
		float2 two = __half22float2(h2_of(x[i]));

		sum += (two.x - zero[i].x) * q[2 * i];
		sum += (two.y - zero[i].y) * q[2 * i + 1];
	}
	return sum;
}

/* The centroids of the head's keys. */
template <int d>
CQ_DEVICE const __half *keys_of(const struct turn &t)
{
	return cqkd_ptr<const __half>(t.p.at.k.rows) + (size_t)t.w.head * CQKD_CENTROIDS * d;
}

/* A thread's entries of the table: of one word of a row, each so many codes. */
template <int d, int c>
struct entries {
	const __half *rows[2];	/* of keys, from the group of either half of the word on */
	float2 zero[2][c / 2];	/* of code 0 */
	float q[2][c];
	uint32_t word, first, step;
};

template <int d, int c, bool two>
CQ_DEVICE void entries_init(const struct turn &t, const struct lut<d> *sh, struct entries<d, c> &e)
{
	constexpr uint32_t words = row<d, c, two>::words;
	uint32_t x[c / 2], h, id = cq_keep(threadIdx.x);
	const __half *rows = keys_of<d>(t);
	int i;

	e.word = id % words;
	e.first = id / words;
	e.step = blockDim.x / words;
#pragma unroll
	for (h = 0; h < 2; h++) {
		uint32_t ch = (e.word + (two ? 0 : h * words)) * c;

		e.rows[h] = rows + ch;
		unit_load<c / 2>(x, rows + ch);
#pragma unroll
		for (i = 0; i < c / 2; i++)
			e.zero[h][i] = __half22float2(h2_of(x[i]));
#pragma unroll
		for (i = 0; i < c; i++)
			e.q[h][i] = sh->all.q[two ? h : 0][ch + i];
	}
}

/* What entries are multiplied with, for the largest to be at most 2^14: by half of a word. */
template <int d, int c, bool two>
CQ_DEVICE float2 entries_unit(const struct entries<d, c> &e, struct lut<d> *sh)
{
	uint32_t warp = threadIdx.x / 32, code, v;
	float top[2] = { 1e-30f, 1e-30f };	/* of less the factor would be infinite */

	for (code = e.first; code < CQKD_CENTROIDS; code += e.step)
#pragma unroll
		for (v = 0; v < 2; v++)
			top[v] = fmaxf(top[v], fabsf(entry_of<c>(e.rows[v] + code * d,
								 e.zero[v], e.q[v])));
#pragma unroll
	for (v = 0; v < 2; v++) {
		top[v] = warp_max(two ? top[v] : fmaxf(top[0], top[1]));
		if (threadIdx.x % 32 == 0)
			sh->top[warp][v] = top[v];
	}
	__syncthreads();
	for (warp = 0; warp < blockDim.x / 32; warp++)
#pragma unroll
		for (v = 0; v < 2; v++)
			top[v] = fmaxf(top[v], sh->top[warp][v]);
	return make_float2(unit_of(top[0]) * 16384.0f, unit_of(top[1]) * 16384.0f);
}

/* A warp each: the product of vector @v with code 0 of all groups. */
template <int d>
CQ_DEVICE float product_of_zero(const struct turn &t, const struct lut<d> *sh, uint32_t v)
{
	float sum = 0;
	uint32_t ch;

	for (ch = threadIdx.x % 32; ch < d; ch += 32)
		sum += __half2float(keys_of<d>(t)[ch]) * sh->all.q[v][ch];
	return warp_sum(sum);
}

/* All threads: the table of the item; how its sums become scores. */
template <int d, int c, bool two>
CQ_DEVICE void table_make(const struct turn &t, struct lut<d> *sh)
{
	uint32_t code, at, v = threadIdx.x / 32;
	struct entries<d, c> e;
	float2 unit;

	entries_init<d, c, two>(t, sh, e);
	unit = entries_unit<d, c, two>(e, sh);
	if (v < LUTS) {
		float zero = product_of_zero<d>(t, sh, v);

		if (threadIdx.x % 32 == 0) {
			float size = sh->all.query[v].size *= LOG2E;

			sh->line[v] = make_float2(size / (v ? unit.y : unit.x), zero * size);
		}
	}
	for (code = e.first; code < CQKD_CENTROIDS; code += e.step) {
		float x = entry_of<c>(e.rows[0] + code * d, e.zero[0], e.q[0]) * unit.x;
		float y = entry_of<c>(e.rows[1] + code * d, e.zero[1], e.q[1]) * unit.y;
		uint32_t both = h2_bits(__floats2half2_rn(x, y));

		for (at = e.word; at < t.p.lut; at += row<d, c, two>::words)
			((uint32_t *)t.table)[code * t.p.lut + at] = both;
	}
	for (at = threadIdx.x; at < LUTS * d; at += blockDim.x)
		sh->q[at / d][at % d] = __float2half_rn(sh->all.q[at / d][at % d]);
}

/* Where an fp16 block has the keys of the head, from the warp's half on; values follow. */
template <int d>
CQ_DEVICE const __half *rows_of(const struct turn &t, uint64_t base, uint32_t tokens)
{
	size_t head = (size_t)t.p.layer * t.p.n_kv_heads + t.w.head;

	return cqkd_ptr<const __half>(base) + (head * 2 * tokens + half_of_warp() * TILE) * d;
}

/* Probabilities of a tile times its values: of codes, or of rows. */
template <int d, int kc, int vc, bool coded, bool two>
CQ_DEVICE void values_add(const struct lut<d> *sh, const uint8_t *codes, const __half *rows,
			  uint32_t live, const uint32_t prob[LUTS][4], struct column col,
			  struct result<d> r[LUTS])
{
	uint32_t lane = vc > 2 ? threadIdx.x % 32 : cq_keep(threadIdx.x % 32);
	int i;

#pragma unroll
	for (i = 0; i < 4; i++) {
		struct pair<d> v;

		if (coded)
			values_of_codes<d, vc>((const uint8_t *)sh->book, codes + d / kc * TILE,
					       lane, i, v);
		else
			values_of_rows<d, vc>(rows, live, i, v);
		pair_add<d, vc>(v, prob[0][i], col, r[0]);
		if (two)
			pair_add<d, vc>(v, prob[1][i], col, r[1]);
	}
}

/* The tile of the @k-th page of the warp. */
template <int d, int kc, int vc, bool two>
CQ_DEVICE void tile_add(const struct turn &t, const struct lut<d> *sh, const struct sights &at,
			uint32_t k, const struct finding &f, struct column col,
			struct result<d> r[LUTS])
{
	const uint8_t *codes = t.ring + k % STAGES * stage<d, kc, vc>::bytes;
	uint32_t vis[LUTS] = { ~0u, ~0u }, prob[LUTS][4];
	int which = (int)(k % BATCH), i;
	bool whole = at.whole >> which & 1, coded = at.codes >> which & 1;
	const __half *rows = NULL;
	struct products s = {};
	uint32_t tokens = 0;

	if (!(at.live >> which & 1))
		return;
	if (!whole) {
#pragma unroll
		for (i = 0; i < LUTS; i++)
			vis[i] = __shfl_sync(0xffffffffu, at.mine.vis[i], which);
	}
	if (coded) {
		products_of_codes<d, kc, two>(f, codes, t.table, s);
	} else {
		tokens = __shfl_sync(0xffffffffu, at.mine.tokens, which);
		rows = rows_of<d>(t, __shfl_sync(0xffffffffu, at.mine.base, which), tokens);
		products_of_rows<d>(rows, vis[0] | vis[1], sh->q, s);
	}
#pragma unroll
	for (i = 0; i < 1 + two; i++)
		softmax(t.p, s, i,
			coded ? sh->line[i] : make_float2(sh->all.query[i].size, 0), whole,
			vis[i] >> threadIdx.x % 4 * 8, r[i], prob[i]);
	if (coded)
		values_add<d, kc, vc, true, two>(sh, codes, NULL, 0, prob, col, r);
	else
		values_add<d, kc, vc, false, two>(sh, NULL, rows + tokens * d, vis[0] | vis[1],
						  prob, col, r);
}

/* Results of all warps, each in its ring, to the workspace. */
template <int d, int vc>
CQ_DEVICE void results_store(const struct turn &t, struct lut<d> *sh, const uint8_t *rings,
			     uint32_t ring, struct result<d> r[LUTS])
{
	uint32_t warp = threadIdx.x / 32, i, v;
	size_t slot = (size_t)(t.w.head - t.p.head_begin) * t.p.max_slots + t.w.item.slot;
	float *ml = cqkd_ptr<float>(t.p.part_ml) + slot * 2;
	float *o = cqkd_ptr<float>(t.p.part_o) + slot * d;

#pragma unroll
	for (v = 0; v < LUTS; v++) {
		float sum = r[v].l;

		for (i = 1; i < 4; i *= 2)
			sum += __shfl_xor_sync(0xffffffffu, sum, i);
		if (threadIdx.x % 32 == 0) {
			sh->all.ml[warp][v][0] = r[v].low > FLOOR ? (r[v].low + P_LIFT) / LOG2E :
								    -CQKD_INF;
			sh->all.ml[warp][v][1] = sum;
		}
		result_put<d, vc>(r[v], (float *)t.ring + v * d);
	}
	__syncthreads();
	for (i = threadIdx.x; i < t.w.item.n_vecs * d; i += blockDim.x) {
		float top = total(sh->all, i / d).x, sum = 0;

		for (warp = 0; warp < blockDim.x / 32 && top > -CQKD_INF; warp++)
			sum += ((const float *)(rings + warp * ring))[i] *
			       exp2f((sh->all.ml[warp][i / d][0] - top) * LOG2E);
		o[i] = sum * P_UNIT;
	}
	if (threadIdx.x < t.w.item.n_vecs) {
		float2 sum = total(sh->all, threadIdx.x);

		ml[2 * threadIdx.x] = sum.x;
		ml[2 * threadIdx.x + 1] = sh->all.query[threadIdx.x].spoiled ?
					  __int_as_float(0x7fc00000) : sum.y * P_UNIT;
	}
}

/* The pages of a warp, some at a time. */
template <int d, int kc, int vc, bool two>
CQ_DEVICE void pages_add(const struct turn &t, const struct lut<d> *sh, struct result<d> r[LUTS])
{
	struct column col = column_of_lane();
	uint32_t k, batch, n = 0;
	struct sights at;
	struct finding f;

	finding_init<d, kc, two>(t.p.lut, f);
	if (t.w.item.n_blocks > first_of_warp())
		n = (t.w.item.n_blocks - first_of_warp() + pages_apart() - 1) / pages_apart();
#pragma unroll 1
	for (batch = 0; batch < n; batch += BATCH) {
		look(t, sh->all.query, batch, at);
		fetch<d, kc, vc>(t, at, 0);
#pragma unroll 1
		for (k = 0; k < min(n - batch, (uint32_t)BATCH); k++) {
			fetch<d, kc, vc>(t, at, k + 1);
			cq_cp_wait<1>();
			__syncwarp();
			tile_add<d, kc, vc, two>(t, sh, at, k, f, col, r);
			__syncwarp();	/* its place in the ring is fetched next */
		}
	}
	cq_cp_wait<0>();
	__syncwarp();
}

/* One or @two vectors of an item. */
template <int d, int kc, int vc, bool two>
CQ_DEVICE void item(const struct turn &t, struct lut<d> *sh, const uint8_t *rings)
{
	struct result<d> r[LUTS] = {};

	r[0].low = r[1].low = FLOOR;
	__syncthreads();	/* the item before has been stored */
	queries_load(t.p, t.w, sh->all);
	__syncthreads();
	table_make<d, kc, two>(t, sh);
	__syncthreads();
	pages_add<d, kc, vc, two>(t, sh, r);
	results_store<d, vc>(t, sh, rings, STAGES * stage<d, kc, vc>::bytes, r);
}

/* Which kv head, and where a thread has a part of its codes. */
CQ_DEVICE void turn_init(struct turn &t)
{
	uint32_t lane = threadIdx.x % 32, group = lane / 2, piece = lane % 2;

	t.w.head = t.p.head_begin + blockIdx.y;
	t.from = cq_keep((uint32_t)(t.p.at.offset + t.w.head * (t.p.at.k_bytes + t.p.at.v_bytes)) +
			 group * CQKD_TOKENS + half_of_warp() * TILE + piece * 16);
	t.to = cq_keep(group / 4 * 128 + piece * 64 + group % 4 * 16);
}

template <int d, int kc, int vc>
CQ_DEVICE void attention(const struct cqkd_attn &p, struct lut<d> *sh)
{
	const struct cqkd_plan *plan = cqkd_ptr<const struct cqkd_plan>(p.plan);
	uint32_t warp = threadIdx.x / 32, i, vec, most = p.lut < d / kc ? 1 : LUTS;
	uint8_t *table = (uint8_t *)(sh + 1), *rings = table + CQKD_CENTROIDS * p.lut * 4;
	struct turn t = { p, {}, table, rings + warp * STAGES * stage<d, kc, vc>::bytes, 0, 0 };
	bool ready = false;

	turn_init(t);
	/* warps that there are not have found nothing */
	for (i = threadIdx.x; i < WARPS * LUTS; i += blockDim.x) {
		sh->all.ml[i / LUTS][i % LUTS][0] = -CQKD_INF;
		sh->all.ml[i / LUTS][i % LUTS][1] = 0;
	}
	for (i = plan->n_wide + blockIdx.x, vec = 0; i < plan->n_items;) {
		/* read again for each pass: it would take registers */
		t.w.item = part_of<struct cqkd_item>(p, &cqkd_plan::items)[i];
		if (t.w.item.n_vecs > p.few || vec >= t.w.item.n_vecs) {
			i += gridDim.x;
			vec = 0;
			continue;
		}
		if (!ready)
			book_load(t, sh);
		ready = true;
		t.w.item.vec += vec;
		t.w.item.slot += vec;
		t.w.item.n_vecs = min(t.w.item.n_vecs - vec, most);
		vec += most;
		if (t.w.item.n_vecs > 1)
			item<d, kc, vc, true>(t, sh, rings);
		else
			item<d, kc, vc, false>(t, sh, rings);
	}
}

/* With 99 KiB no more than eight warps fit beside 128 channels: see cqk_cuda_variant_lut(). */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 800 && (__CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1200)
#define MOST_WARPS(d) ((d) > 64 ? CQKD_LUT_WARPS_99K : WARPS)
#else
#define MOST_WARPS(d) WARPS
#endif

/* Grid: blocks that share the items of a kv head, kv heads of the call. */
#define ATTN_LUT(d, kc, vc) \
CQ_KERNEL_BLOCKS(MOST_WARPS(d) * 32, 1, cqk_attn_lut_d##d##_k##kc##v##vc, (struct cqkd_attn p)) \
{ \
	static_assert(sizeof(struct lut<d>) <= CQKD_LUT_SHARED(d, 0, 0, 0), "params.h"); \
	CQ_DYN_SHARED(struct lut<d>, sh); \
\
	attention<d, kc, vc>(p, sh); \
}
#define ATTN_LUTS(d, kc) \
ATTN_LUT(d, kc, 2) \
ATTN_LUT(d, kc, 4) \
ATTN_LUT(d, kc, 8)
ATTN_LUTS(64, 2)
ATTN_LUTS(64, 4)
ATTN_LUTS(64, 8)
ATTN_LUTS(128, 2)
ATTN_LUTS(128, 4)
ATTN_LUTS(128, 8)
