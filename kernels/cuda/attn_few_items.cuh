/* SPDX-License-Identifier: MIT */
/*
 * Attention by fragments from the codebooks of a kv head, all of which a block of threads has
 * in its shared memory: as halves (attn_few.cu) or as bytes (attn_bytes.cu).
 *
 * A block of threads stays with one kv head. It copies the centroids of that head once and
 * takes item after item. Four warps have a page, 16 tokens each, for keys and for values;
 * warps meet once for as many pages as they have at a time. Until then the codes of the next
 * ones have come and queries have been turned to them; what is to be known of a page was looked
 * up before that, of six pages at a time.
 *
 * Keys turn in fp16, by cos and sin of their place in the page, which a lane keeps. Queries
 * turn in fp32, from page to page by the same angle as long as pages follow each other; at
 * times, and where they do not, by the tables.
 *
 * B is a book as in attn_few.cuh, which also says what a channel of a centroid is, how all
 * threads load a head's (load()), and what lanes keep of keys and of values (init()).
 */
#ifndef CQK_CUDA_ATTN_FEW_ITEMS_CUH
#define CQK_CUDA_ATTN_FEW_ITEMS_CUH

#include "kernels/cuda/attn_pages.cuh"

template <int d, typename B>
struct few {
	typename B::channel book[2][CQKD_CENTROIDS][d];	/* of K and V */
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
template <int d, int kc, int vc, typename B>
CQ_DEVICE struct page<d> page_at(const struct turn &t, struct few<d, B> *sh, uint32_t i,
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
template <int d, int kc, int vc, typename B>
CQ_DEVICE void prepare(const struct turn &t, const struct few<d, B> *sh,
		       const struct page<d> &pg, struct pairs<d> &q)
{
	if (pg.i < t.w.item.n_blocks) {
		if (!(pg.at.how & HALVES))
			codes_load<d, kc, vc>(t, pg.at.base, pg.codes);
		/* what does not turn fills both buffers, once */
		if (t.p.turn_k || pg.i < 2 * PAGES)
			/* not kept while a tile is computed, when registers are few */
			queries_turn<d, kc, d, STEP>(t, sh, cq_keep(threadIdx.x % PAGE_THREADS),
						     sh->step, 0, pg.at, pg.q, q);
	}
	cq_cp_commit();
}

/* 16 tokens of a page, by one warp. */
template <int d, int kc, int vc, typename B>
CQ_DEVICE void tile_add(const struct turn &t, const struct few<d, B> *sh,
			const typename B::lane &lanes, const struct page<d> &pg,
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
			keys_of_codes<d, kc, B>(t.p.at.k, lanes, sh->book[0], pg.codes + to.k, k);
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
			values_of_codes<d, vc, B>(t.p.at.v, lanes, sh->book[1], pg.codes + to.v +
						  codes_bytes<d, kc, vc>(t.p.at, true), v);
		share = *(const uint4 *)sh->shares[threadIdx.x % 8];
		values_add<d, vc>(v, prob[0], share, st.r[0]);
		if (two)
			values_add<d, vc>(v, prob[1], share, st.r[1]);
	}
}

template <int d, int kc, int vc, typename B>
CQ_DEVICE void item(const struct turn &t, struct few<d, B> *sh, const typename B::lane &lanes,
		    const struct frame<d, kc> &f, struct pairs<d> &q)
{
	uint32_t i, buf = 0, sight = 0;
	struct state<d> st;
	struct work w;

	item_begin(t, sh, q, st);
	look<AHEAD>(t, sh, sh->sights, 0);
	/* once more than there are pages: what the first round would find is made in it */
#pragma unroll 1
	for (i = 0; i < t.w.item.n_blocks + PAGES; i += PAGES) {
		cq_cp_wait<0>();
		__syncthreads();
		if (sight == AHEAD - PAGES || sight == 2 * AHEAD - PAGES)
			look<AHEAD>(t, sh, sh->sights + (i + PAGES) / AHEAD % 2 * AHEAD,
				    i + PAGES);
		prepare<d, kc, vc>(t, sh, page_at<d, kc, vc>(t, sh, i, sight, buf), q);
		buf ^= 1;
		if (i && i - PAGES + t.slot < t.w.item.n_blocks)
			tile_add<d, kc, vc>(t, sh, lanes, page_at<d, kc, vc>(t, sh, i - PAGES,
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

template <int d, int kc, int vc, typename B>
CQ_DEVICE void attention(const struct cqkd_attn &p, struct few<d, B> *sh)
{
	const struct cqkd_plan *plan = cqkd_ptr<const struct cqkd_plan>(p.plan);
	struct turn t = { p, {}, 0, 0, 0, 0 };
	struct frame<d, kc> f = {};
	struct pairs<d> q = {};
	bool ready = false;
	typename B::lane lanes;
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
		if (t.w.item.n_vecs > p.few || t.w.item.n_vecs < p.least)
			continue;
		if (!ready) {
			B::load(t.p.at, t.w.head, sh->book);
			B::init(t.p.at, t.w.head, lanes);
			steps_init<d>(p, sh->step, 0, STEP);
			shares_init<d, vc>(sh->shares);
			if (p.turn_k)
				frame_load(p.rope, 0, t.tile, f);
		}
		ready = true;
		item<d, kc, vc>(t, sh, lanes, f, q);
	}
}

#endif /* CQK_CUDA_ATTN_FEW_ITEMS_CUH */
