// SPDX-License-Identifier: MIT
/*
 * Attention of at most eight query vectors over halves: pages that are not coded, and
 * blocks of fp16. It is what a coded cache is compared with, so it is to read as fast as
 * memory delivers.
 *
 * Each warp has a quarter of every block, 16 tokens, and a ring of them on their way into
 * shared memory; no barrier but those of a warp until the item is done. Fragments as in
 * attn_few.cu: tokens are the rows of Q.K, channels those of V.P.
 */
#include "kernels/cuda/attn_frag.cuh"

#define WARPS CQKD_F16_WARPS
#define STAGES CQKD_F16_STAGES

/* 16 tokens of a warp. */
template <int d>
struct stage {
	__half k[16][CQKD_PITCH(d)];
	__half v[16][CQKD_PITCH(d)];
};

template <int d>
struct f16 {
	union {
		struct stage<d> ring[WARPS][STAGES];
		float o[4][VECS][d];
	};
	__half q[VECS][CQKD_PITCH(d)];
	struct vectors<d, WARPS> all;
	uint64_t vis[WARPS][STAGES][VECS];
};

/* Where the tokens of a block begin; values follow @v bytes later. */
CQ_DEVICE const uint8_t *rows_of(const struct cqkd_attn &p, const struct work &w, uint32_t d,
				 size_t *v)
{
	const uint8_t *at = cqkd_ptr<const uint8_t>(w.block.base);

	if (w.block.kind) {
		*v = (size_t)w.block.tokens * d * 2;
		return at + ((size_t)p.layer * p.n_kv_heads + w.head) * 2 * *v;
	}
	*v = p.at.k_bytes;
	return at + p.at.offset + w.head * (p.at.k_bytes + p.at.v_bytes);
}

/* A warp's 16 tokens of block @i of the item on their way; tokens nobody sees are zero. */
template <int d>
CQ_DEVICE void fetch(const struct cqkd_attn &p, struct work &w, struct f16<d> *sh, uint32_t i)
{
	uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, vec = lane % VECS, at, j;
	struct stage<d> &to = sh->ring[warp][i % STAGES];
	const struct cqkd_span *spans;
	const uint8_t *from;
	uint64_t vis = 0, live;
	size_t v;

	if (i >= w.item.n_blocks) {
		cq_cp_commit();
		return;
	}
	w.block = part_of<struct cqkd_block>(p, &cqkd_plan::blocks)[w.item.block + i];
	spans = part_of<struct cqkd_span>(p, &cqkd_plan::spans) + w.block.span_first;
	if (vec < w.item.n_vecs)
		vis = visible(p, w.block, spans[sh->all.query[vec].span],
			      part_of<uint32_t>(p, &cqkd_plan::row_pos)[sh->all.query[vec].row]);
	if (lane < VECS)
		sh->vis[warp][i % STAGES][lane] = vis;
	live = (uint64_t)__reduce_or_sync(0xffffffffu, (uint32_t)(vis >> 32)) << 32 |
	       __reduce_or_sync(0xffffffffu, (uint32_t)vis);
	from = rows_of(p, w, d, &v);
#pragma unroll 4
	for (j = lane; j < 16 * d / 8; j += 32) {
		uint32_t t = j / (d / 8), part = j % (d / 8) * 8, token = warp * 16 + t;
		uint32_t bytes = live >> token & 1 ? 16 : 0;

		at = bytes ? token * d * 2 + part * 2 : 0;
		cq_cp_async16_zfill(&to.k[t][part], from + at, bytes);
		cq_cp_async16_zfill(&to.v[t][part], from + v + at, bytes);
	}
	cq_cp_commit();
}

/* Queries as halves, and as the fragments that a warp keeps for the item. */
template <int d>
CQ_DEVICE void fragments(struct f16<d> *sh, uint32_t q[d / 16][2])
{
	uint32_t lane = threadIdx.x % 32, i, r[4];

	for (i = threadIdx.x; i < VECS * d; i += WARPS * 32)
		sh->q[i / d][i % d] = __float2half_rn(sh->all.q[i / d][i % d]);
	__syncthreads();
#pragma unroll
	for (i = 0; i < d / 16; i += 2) {
		cq_ldmatrix_x4(r, &sh->q[lane % 8][i * 16 + lane / 8 * 8]);
		q[i][0] = r[0];
		q[i][1] = r[1];
		q[i + 1][0] = r[2];
		q[i + 1][1] = r[3];
	}
}

/* 16 tokens of a warp, of block @i. */
template <int d>
CQ_DEVICE void tile_add(const struct cqkd_attn &p, const struct f16<d> *sh, uint32_t i,
			const uint32_t q[d / 16][2], struct result<d> &r)
{
	uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, a[4], prob[2];
	const struct stage<d> &at = sh->ring[warp][i % STAGES];
	float s[4] = {};
	int n;

#pragma unroll
	for (n = 0; n < d / 16; n++) {
		cq_ldmatrix_x4(a, &at.k[lane % 16][n * 16 + lane / 16 * 8]);
		cq_mma_16816_f32(s, a, q[n]);
	}
	softmax(p, sh->all, sh->vis[warp][i % STAGES], warp, lane / 4, 8, s, r, prob);
#pragma unroll
	for (n = 0; n < d / 16; n++) {
		cq_ldmatrix_x4_trans(a, &at.v[lane / 16 * 8 + lane % 8][n * 16 + lane / 8 % 2 * 8]);
		cq_mma_16816_f32(r.o[n], a, prob);
	}
}

template <int d>
CQ_DEVICE void item(const struct cqkd_attn &p, struct work &w, struct f16<d> *sh)
{
	struct result<d> r = {};
	uint32_t q[d / 16][2], i;

	r.m[0] = r.m[1] = -CQKD_INF;
	__syncthreads();	/* the item before has been stored */
	queries_load(p, w, sh->all);
	__syncthreads();
	for (i = 0; i + 1 < STAGES; i++)
		fetch(p, w, sh, i);
	fragments(sh, q);
	for (i = 0; i < w.item.n_blocks; i++) {
		fetch(p, w, sh, i + STAGES - 1);
		cq_cp_wait<STAGES - 1>();
		__syncwarp();
		tile_add(p, sh, i, q, r);
		__syncwarp();	/* its place in the ring is fetched next */
	}
	cq_cp_wait<0>();
	__syncthreads();	/* the rings make room for results */
	gather(sh->all, sh->o, threadIdx.x % 32 / 4, 16, 8, r);
	result_store(p, w, sh->all, sh->o);
}

/* Grid: blocks that share the items of a kv head, kv heads of the call. */
#define ATTN_F16(d) \
CQ_KERNEL_BLOCKS(WARPS * 32, 2, cqk_attn_f16_d##d, (struct cqkd_attn p)) \
{ \
	const struct cqkd_plan *plan = cqkd_ptr<const struct cqkd_plan>(p.plan); \
	struct work w; \
	uint32_t i; \
\
	static_assert(sizeof(struct f16<d>) <= CQKD_F16_SHARED(d), "params.h"); \
	CQ_DYN_SHARED(struct f16<d>, sh); \
\
	w.head = p.head_begin + blockIdx.y; \
	for (i = plan->n_wide + blockIdx.x; i < plan->n_items; i += gridDim.x) { \
		w.item = part_of<struct cqkd_item>(p, &cqkd_plan::items)[i]; \
		if (w.item.n_vecs <= p.few) \
			item<d>(p, w, sh); \
	} \
}
ATTN_F16(64)
ATTN_F16(128)
