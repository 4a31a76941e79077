// SPDX-License-Identifier: MIT
/*
 * Attention of at most eight query vectors where the centroids of a kv head are more than a
 * block of threads can have: a cluster of blocks has them, of each a slice of the channels of
 * keys or of values. Tensor cores get them as in attn_few.cu.
 *
 * All blocks of a cluster take the same items and walk the same pages. Those of keys send
 * their parts of the scores into the shared memory of those of values, which add them up in
 * one order, so that all of them have the same scores and maxima to the last bit. A slice of
 * keys has as many channels of the lower halves of pairs as of the upper ones.
 *
 * The cluster meets once in a round of three or six pages. Blocks of values are a round
 * behind those of keys, and what is sent has two buffers, so that in each round keys of the
 * next one are multiplied. Between its arrival and its wait a block gets ready what it needs
 * two rounds later: codes and queries of a round are in one of three stages.
 */
#include "kernels/cuda/attn_pages.cuh"

#if CQ_CLUSTERS
/**
 * struct slices - shared memory of a block
 * @d:  channels of a head
 * @w:  of the block
 * @n:  slices of keys, and of values
 */
template <int d, int w>
struct slices {
	static const int n = d / w;
	static const int pages = CQKD_SLICES_PAGES(n);	/* of a round */

	float step[2][w / 4][4];	/* cos, sin of two pairs: STEP on, twice that on */
	struct vectors<d, WARPS> all;
	struct sight sights[CQKD_SLICES_SIGHTS][pages];
	__align__(16) uint32_t shares[8][4];	/* see shares_init() */
	struct cqkd_item item;			/* kept here, as registers are few */
	uint32_t next, pad;			/* which is next */
	union {
		__half q[CQKD_SLICES_STAGES][pages][w / 32 * PIECE_PITCH];	/* of keys */
		float2 scores[2][n][pages][4][SETS][32];	/* of values: by slices of keys */
		float o[4][VECS][w];		/* results of four warps at a time */
	};
	uint8_t rest[16];			/* codes of each page of each stage; centroids */
};

/* The side of a head that a block has: keys or values. @c, @bits: of a code. */
template <int side_c, int side_bits, bool side_values>
struct side {
	static const int c = side_c, bits = side_bits;
	static const bool values = side_values;
};

/*
 * Codes of 10 bits: where a lane has what it looks up for its tokens, in bytes. Of keys first
 * and second are the sides, in the order of the lane; of values the units, of one group.
 * @group: low bits, from the first group's; @upper: upper ones from there, and how far they
 * are to be shifted; @at: centroids in a row
 */
struct wide {
	uint32_t group[2], at[2];
	uint32_t upper, shift;
};

/* What is a block's own, and in it a thread's. */
struct part {
	const struct cqkd_book &book;
	uint32_t slice;
	uint32_t from, to;	/* a thread's piece of codes: in a page, in a stage */
	bool loads;		/* there is one */
	struct places at;
	struct wide wide;
};

/* Where a thread has what it needs of a round, of the first page that its warps compute. */
struct view {
	const struct sight *at;
	const uint8_t *codes;	/* of its tokens, in the first group */
	const __half *q;
	float2 *scores;
};

/* Codes of a page of a stage; behind all of them come the centroids. */
template <int d, int w, typename side>
CQ_DEVICE uint8_t *codes_at(struct slices<d, w> *sh, uint32_t page)
{
	typedef struct slices<d, w> memory;

	return reinterpret_cast<uint8_t *>(sh) + offsetof(memory, rest) +
	       page * CQKD_FEW_CODES(w / side::c);
}

template <int d, int w, typename side>
CQ_DEVICE __half *book_of(struct slices<d, w> *sh)
{
	constexpr uint32_t stages = CQKD_SLICES_STAGES * slices<d, w>::pages;

	return reinterpret_cast<__half *>(codes_at<d, w, side>(sh, stages));
}

/* All threads: the centroids of the block's slice. */
template <int d, int w, typename side>
CQ_DEVICE void books_load(const struct turn &t, const struct part &part, struct slices<d, w> *sh)
{
	constexpr int n = (w << side::bits) / 8;
	const __half *from = cqkd_ptr<const __half>(part.book.rows) +
			     ((size_t)(t.w.head * (d / w) + part.slice) * n) * 8;
	__half *to = book_of<d, w, side>(sh);
	int i;

	for (i = cq_keep(threadIdx.x); i < n; i += THREADS)
		cq_cp_async16(to + i * 8, from + (size_t)i * 8);
	cq_cp_commit();
}

/* The group of a head that is group @g of a slice. */
template <int d, int w, typename side>
CQ_DEVICE uint32_t group_of(uint32_t slice, uint32_t g)
{
	constexpr uint32_t n = w / 2 / side::c;

	if (side::values)
		return slice * 2 * n + g;
	return slice * n + g % n + g / n * (d / 2 / side::c);
}

template <int w, typename side>
CQ_DEVICE void wide_init(const struct turn &t, struct wide &at)
{
	uint32_t lane = threadIdx.x % 32, i;

	for (i = 0; i < 2; i++) {
		uint32_t far = i ^ key_order<w, 8>();
		uint32_t group = side::values ? lane / 4 : lane % 4 + far * (w / 16);
		uint32_t unit = i ^ value_order<w, 8>();

		/* registers that are not computed again */
		at.group[i] = cq_keep(group * CQKD_FEW_STRIDE);
		at.at[i] = cq_keep(group * 16 + (side::values ? unit * 8 : 0));
	}
	at.upper = cq_keep(CQKD_TOKENS - t.tile * 16);
	at.shift = cq_keep(cqkd_upper_at(t.tile * 16));
}

/* Where the row of a code is: byte @i of its low bits and its upper ones. */
template <int w>
CQ_DEVICE uint32_t wide_row(uint32_t low, uint32_t upper, uint32_t i)
{
	return (__byte_perm(low, upper, i | (4 + i) << 4) & 0x3ff) * (2 * w);
}

template <int w>
CQ_DEVICE void keys_of_wide(const struct wide &at, const __half *book, const uint8_t *codes,
			    struct keys<w> &k)
{
	const uint8_t *rows = reinterpret_cast<const uint8_t *>(book);
	uint32_t i, h;

	static_assert(key<w, 8>::flip, "one unit of each side");
#pragma unroll
	for (i = 0; i < 2; i++) {
		const uint8_t *group = codes + at.group[i];
		uint32_t low = *(const uint16_t *)group;
		uint32_t upper = *(const uint16_t *)(group + at.upper) >> at.shift;

#pragma unroll
		for (h = 0; h < 2; h++)
			unit_load<4>(k.x[h][i], rows + wide_row<w>(low, upper, h) + at.at[i]);
	}
}

template <int w>
CQ_DEVICE void values_of_wide(const struct wide &at, const __half *book, const uint8_t *codes,
			      struct values<w> &v)
{
	const uint8_t *rows = reinterpret_cast<const uint8_t *>(book);
	const uint8_t *group = codes + at.group[0];
	uint32_t low = *(const uint32_t *)group;
	uint32_t upper = *(const uint32_t *)(group + at.upper) >> at.shift;
	uint32_t i, s;

	static_assert(value<w, 8>::sets == 2, "two units of one group");
#pragma unroll
	for (i = 0; i < 4; i++)
#pragma unroll
		for (s = 0; s < 2; s++)
			unit_load<2>(&v.x[i][2 * s], rows + wide_row<w>(low, upper, i) + at.at[s]);
}

/*
 * Which 16 bytes of a page's codes a thread copies, of a group's four or of its upper bits,
 * which come behind them. With 64 groups there is as much again for each thread: groups of
 * the upper halves, or 32 groups on.
 */
template <int d, int w, typename side>
CQ_DEVICE void part_init(const struct turn &t, struct part &part)
{
	constexpr uint32_t groups = w / side::c;
	uint32_t i = threadIdx.x % PAGE_THREADS, low = groups * 4, g = i / 4, at = i % 4 * 16;
	uint32_t base = (uint32_t)(t.p.at.offset + t.w.head * (t.p.at.k_bytes + t.p.at.v_bytes));

	base += side::values ? (uint32_t)t.p.at.k_bytes : 0;
	part.loads = i < low + (side::bits > 8 ? groups : 0);
	part.from = base + group_of<d, w, side>(part.slice, g) * CQKD_TOKENS + at;
	if (side::bits > 8 && i >= low) {
		g = i - low;
		at = CQKD_TOKENS;
		part.from = base + d / side::c * CQKD_TOKENS +
			    group_of<d, w, side>(part.slice, g) * CQKD_UPPER;
	}
	part.to = g * CQKD_FEW_STRIDE + at;
	places_init<w, side::c>(threadIdx.x, part.at);
	if (side::bits > 8)
		wide_init<w, side>(t, part.wide);
}

/* Codes of a page on their way to a stage. */
template <int d, int w, typename side>
CQ_DEVICE void codes_load(const struct part &part, uint64_t base, uint8_t *to)
{
	constexpr uint32_t more = w / side::c / 32;	/* rounds of 32 groups */
	const uint8_t *from = cqkd_ptr<const uint8_t>(base) + part.from;

	to += part.to;
	if (part.loads)
		cq_cp_async16(to, from);
	if (more > 1)
		cq_cp_async16(to + 32 * CQKD_FEW_STRIDE,
			      from + (group_of<d, w, side>(0, 32)) * CQKD_TOKENS);
}

/* Queries of the @nth page of four warps in a round. */
template <int d, int w, typename side>
CQ_DEVICE void queries_ready(const struct turn &t, const struct part &part,
			     struct slices<d, w> *sh, const struct sight &at, uint32_t nth,
			     __half *to, struct pairs<w> &q)
{
	/* those of four vectors are two warps' work: each two have a page of two */
	constexpr bool can = slices<d, w>::pages == 2 * PAGES && PAGE_THREADS == 2 * w;
	uint32_t thread = cq_keep(threadIdx.x % PAGE_THREADS), first = part.slice * (w / 2);

	if (can && t.w.item.n_vecs <= SET) {
		if (thread / w == nth)
			queries_turn<w, side::c, d, 2 * STEP>(t, sh, thread % w, sh->step[1],
							      first, at, to, q);
		return;
	}
	queries_turn<w, side::c, d, STEP>(t, sh, thread, sh->step[0], first, at, to, q);
}

/* Four warps get their pages of a round ready. */
template <int d, int w, typename side>
CQ_DEVICE void prepare(const struct turn &t, const struct part &part, struct slices<d, w> *sh,
		       uint32_t round, struct pairs<w> &q)
{
	constexpr uint32_t pages = slices<d, w>::pages;
	const struct sight *at = &sh->sights[round % CQKD_SLICES_SIGHTS][t.slot];
	uint32_t stage = round % CQKD_SLICES_STAGES, first = stage * pages + t.slot, i;

#pragma unroll
	for (i = 0; i < pages; i += PAGES) {
		if (round * pages + t.slot + i >= t.w.item.n_blocks)
			break;
		if (!(at[i].how & HALVES))
			codes_load<d, w, side>(part, at[i].base,
					       codes_at<d, w, side>(sh, first + i));
		/* what does not turn fills all stages, once */
		if (!side::values && (t.p.turn_k || round < CQKD_SLICES_STAGES))
			queries_ready<d, w, side>(t, part, sh, at[i], i / PAGES,
						  sh->q[stage][t.slot + i], q);
	}
	cq_cp_commit();
}

template <int d, int w, typename side>
CQ_DEVICE struct view view_of(const struct turn &t, const struct part &part,
			      struct slices<d, w> *sh, uint32_t round)
{
	uint32_t stage = round % CQKD_SLICES_STAGES;

	return {
		&sh->sights[round % CQKD_SLICES_SIGHTS][t.slot],
		codes_at<d, w, side>(sh, stage * slices<d, w>::pages + t.slot) +
			(side::values ? part.at.v : part.at.k),
		sh->q[stage][t.slot],
		&sh->scores[round % 2][side::values ? 0 : part.slice][t.slot][t.tile][0]
			   [threadIdx.x % 32],
	};
}

/* Keys and values of codes, by their bits. */
template <int w, int c>
CQ_DEVICE void keys_load(const struct part &part, const __half *book, const uint8_t *codes,
			 struct keys<w> &k, struct side<c, 8, false>)
{
	keys_of_codes<w, c, half_book<w>>(part.book, {}, book, codes, k);
}

template <int w>
CQ_DEVICE void keys_load(const struct part &part, const __half *book, const uint8_t *codes,
			 struct keys<w> &k, struct side<8, 10, false>)
{
	keys_of_wide(part.wide, book, codes, k);
}

template <int w, int c>
CQ_DEVICE void values_load(const struct part &part, const __half *book, const uint8_t *codes,
			   struct values<w> &v, struct side<c, 8, true>)
{
	values_of_codes<w, c, half_book<w>>(part.book, {}, book, codes, v);
}

template <int w>
CQ_DEVICE void values_load(const struct part &part, const __half *book, const uint8_t *codes,
			   struct values<w> &v, struct side<8, 10, true>)
{
	values_of_wide(part.wide, book, codes, v);
}

/* Products of 16 keys with the queries, to the blocks of values. */
template <int d, int w, typename side>
CQ_DEVICE void keys_send(const struct turn &t, const struct part &part, struct slices<d, w> *sh,
			 const struct frame<w, side::c> &f, const struct view &at)
{
	constexpr uint32_t n = slices<d, w>::n;
	uint32_t tokens = at.at->how & HALVES, set, i;
	bool two = t.w.item.n_vecs > SET;
	float x[SETS][2];

	{
		struct keys<w> k;

		if (tokens)
			keys_of_rows<w, side::c, d>(rows_of<d>(t, *at.at, tokens) +
						    part.slice * (w / 2), at.at->live, t.tile, k);
		else
			keys_load(part, book_of<d, w, side>(sh), at.codes, k, side());
		if (t.p.turn_k)
			products_of<w, side::c, true>(part.at, f, k, at.q, two, x);
		else
			products_of<w, side::c, false>(part.at, f, k, at.q, two, x);
	}
#pragma unroll
	for (set = 0; set < SETS; set++) {
		if (set && !two)
			break;
#pragma unroll
		for (i = 0; i < n; i++)
			cq_far_store(cq_far_at(at.scores + set * 32, n + i),
				     make_float2(x[set][0], x[set][1]));
	}
}

/* 16 values by the scores that have come. */
template <int d, int w, typename side>
CQ_DEVICE void values_take(const struct turn &t, const struct part &part, struct slices<d, w> *sh,
			   const struct view &at, struct state<w> &st)
{
	constexpr uint32_t n = slices<d, w>::n, next = sizeof(sh->scores[0][0]) / sizeof(float2);
	uint32_t set, i, prob[SETS][2], tokens = at.at->how & HALVES;
	bool two = t.w.item.n_vecs > SET;

#pragma unroll
	for (set = 0; set < SETS; set++) {
		float2 sum = at.scores[set * 32];
		float x[2];

		if (set && !two)
			break;
#pragma unroll
		for (i = 1; i < n; i++) {
			float2 more = at.scores[i * next + set * 32];

			sum = make_float2(sum.x + more.x, sum.y + more.y);
		}
		x[0] = sum.x;
		x[1] = sum.y;
		scores(t.p, sh->all.query, *at.at, at.at->how & WHOLE, t.tile,
		       threadIdx.x % 4 + set * SET, x);
		softmax(x, st.r[set], prob[set]);
	}
	{
		struct values<w> v;
		uint4 share;

		if (tokens)
			values_of_rows<w, side::c, d>(rows_of<d>(t, *at.at, tokens) + tokens * d +
						      part.slice * w, at.at->live, t.tile, v);
		else
			values_load(part, book_of<d, w, side>(sh), at.codes, v, side());
		share = *(const uint4 *)sh->shares[threadIdx.x % 8];
		values_add<w, side::c>(v, prob[0], share, st.r[0]);
		if (two)
			values_add<w, side::c>(v, prob[1], share, st.r[1]);
	}
}

/* A round of keys, or of values. */
template <int d, int w, typename side>
CQ_DEVICE void round_compute(const struct turn &t, const struct part &part,
			     struct slices<d, w> *sh, const struct frame<w, side::c> &f,
			     uint32_t round, struct state<w> &st)
{
	constexpr uint32_t codes = CQKD_FEW_CODES(w / side::c);
	struct view at = view_of<d, w, side>(t, part, sh, round);
	uint32_t i;

#pragma unroll
	for (i = 0; i < slices<d, w>::pages; i += PAGES) {
		const struct view mine = { at.at + i, at.codes + i * codes,
					   at.q + i * (w / 32 * PIECE_PITCH),
					   at.scores + i * (4 * SETS * 32) };

		/* of pages beyond the last, nothing */
		if (!reinterpret_cast<const uint16_t *>(&mine.at->live)[t.tile])
			continue;
		if constexpr (side::values)
			values_take<d, w, side>(t, part, sh, mine, st);
		else
			keys_send<d, w, side>(t, part, sh, f, mine);
	}
}

/*
 * An item. Round @i is seen, gets ready and is computed at turns @i - 2, @i and @i + 2 of keys;
 * all that of values is a turn later.
 */
template <int d, int w, typename side>
CQ_DEVICE void item(const struct turn &t, const struct part &part, struct slices<d, w> *sh,
		    const struct frame<w, side::c> &f, struct pairs<w> &q)
{
	constexpr uint32_t pages = slices<d, w>::pages;
	uint32_t turns = (t.w.item.n_blocks + pages - 1) / pages + 3, i;
	struct state<w> st;

	item_begin(t, sh, q, st);
	for (i = 0; i < 2; i++)
		look<pages>(t, sh, sh->sights[i], i * pages);
	cq_cluster_arrive();
#pragma unroll 1
	for (i = 0; i < turns; i++) {
		uint32_t round = side::values ? i - 1 : i;	/* which gets ready */

		cq_cluster_wait();
		if (i >= (side::values ? 3 : 2))
			round_compute<d, w, side>(t, part, sh, f, round - 2, st);
		cq_cp_wait<0>();
		cq_cluster_arrive();
		if (side::values && !i)
			continue;
		look<pages>(t, sh, sh->sights[(round + 2) % CQKD_SLICES_SIGHTS],
			    (round + 2) * pages);
		prepare<d, w, side>(t, part, sh, round, q);
	}
	cq_cluster_wait();
	if (side::values) {
		struct work out = t.w;

		gather<w, side::c>(sh, st);
		out.item.slot = sh->item.slot;
		result_store(t.p, out, sh->all, sh->o, part.slice * w);
	}
}

template <int d, int w, typename side>
CQ_DEVICE void attention(const struct cqkd_attn &p, uint32_t rank, struct slices<d, w> *sh)
{
	const struct cqkd_plan *plan = cqkd_ptr<const struct cqkd_plan>(p.plan);
	constexpr uint32_t n = slices<d, w>::n;
	struct part part = { side::values ? p.at.v : p.at.k, rank % n, 0, 0, false, {}, {} };
	uint32_t cluster = 2 * n, i;
	struct turn t = { p, {}, 0, 0, 0, 0 };
	struct frame<w, side::c> f = {};
	struct pairs<w> q = {};
	bool ready = false;

	t.w.head = p.head_begin + blockIdx.y;
	t.slot = threadIdx.x / PAGE_THREADS;
	t.tile = threadIdx.x / 32 % 4;
	part_init<d, w, side>(t, part);
	for (i = plan->n_wide + blockIdx.x / cluster; i < plan->n_items; i = sh->next) {
		__syncthreads();	/* the item before has been stored */
		if (threadIdx.x == 0) {
			sh->item = part_of<struct cqkd_item>(p, &cqkd_plan::items)[i];
			sh->next = i + gridDim.x / cluster;
		}
		__syncthreads();
		t.w.item = sh->item;
		if (t.w.item.n_vecs > p.few)
			continue;
		if (!ready) {
			books_load<d, w, side>(t, part, sh);
			steps_init<w>(p, sh->step[0], part.slice * (w / 2), STEP);
			steps_init<w>(p, sh->step[1], part.slice * (w / 2), 2 * STEP);
			shares_init<w, side::c>(sh->shares);
			if (p.turn_k && !side::values)
				frame_load<w, side::c, d>(p.rope, part.slice * (w / 2), t.tile, f);
		}
		ready = true;
		item<d, w, side>(t, part, sh, f, q);
	}
}

/* Blocks of keys, then those of values. */
template <int d, int w, int kc, int kb, int vc, int vb>
CQ_DEVICE void attention_slices(const struct cqkd_attn &p, struct slices<d, w> *sh)
{
	typedef struct slices<d, w> memory;
	uint32_t rank = cq_cluster_rank();

	static_assert(offsetof(memory, rest) <=
		      CQKD_SLICES_FIXED(d, w, d / w, CQKD_SLICES_PAGES(d / w)), "params.h");
	if (rank < d / w)
		attention<d, w, struct side<kc, kb, false>>(p, rank, sh);
	else
		attention<d, w, struct side<vc, vb, true>>(p, rank, sh);
}

/* Grid: clusters that share the items of a kv head, kv heads of the call. */
#define ATTN_SLICES(d, w, kc, kb, vc, vb) \
CQ_KERNEL_CLUSTER(THREADS, 2 * (d / w), cqk_attn_slices_d##d##_k##kc##b##kb##v##vc##b##vb, \
		  (struct cqkd_attn p)) \
{ \
	typedef struct slices<d, w> memory; \
	CQ_DYN_SHARED(memory, sh); \
\
	attention_slices<d, w, kc, kb, vc, vb>(p, sh); \
}
ATTN_SLICES(64, 64, 8, 10, 8, 10)
ATTN_SLICES(128, 64, 8, 10, 8, 10)
ATTN_SLICES(128, 64, 8, 10, 8, 8)
ATTN_SLICES(128, 64, 8, 10, 4, 8)
ATTN_SLICES(128, 64, 8, 10, 2, 8)
ATTN_SLICES(128, 64, 8, 8, 8, 10)
ATTN_SLICES(128, 64, 4, 8, 8, 10)
ATTN_SLICES(128, 64, 2, 8, 8, 10)
ATTN_SLICES(256, 64, 8, 10, 8, 10)
ATTN_SLICES(256, 128, 2, 8, 2, 8)
ATTN_SLICES(256, 128, 2, 8, 4, 8)
ATTN_SLICES(256, 128, 2, 8, 8, 8)
ATTN_SLICES(256, 128, 4, 8, 2, 8)
ATTN_SLICES(256, 128, 4, 8, 4, 8)
ATTN_SLICES(256, 128, 4, 8, 8, 8)
ATTN_SLICES(256, 128, 8, 8, 2, 8)
ATTN_SLICES(256, 128, 8, 8, 4, 8)
ATTN_SLICES(256, 128, 8, 8, 8, 8)
#endif /* CQ_CLUSTERS */
