// SPDX-License-Identifier: MIT
/*
 * The first half of a cascade: attention of all sequences of a batch over the pages that they
 * share, in fp16 or fp8. Blocks of tokens are read once for up to 256 query vectors and are on
 * their way while others are computed; what sequences have of their own is left to
 * attn_f16.cu or base_fp8.cu, and both are merged.
 */
#include "kernels/cuda/attn_wide.cuh"
#include "tests/gpu/base_params.h"
#include "tests/gpu/e4m3.cuh"

template <int d, int vecs, typename E>
struct base {
	static const int warps = CQBD_WARPS(vecs), stages = CQBD_STAGES(E::bytes);
	static const int pitch = E::template pitch<d>();

	__align__(16) uint8_t rows[stages][2][CQKD_TOKENS * pitch];	/* keys, values */
	struct crowd<d, vecs, warps, stages> all;
};

/* Block @i of the item, if there is one, on its way: keys, then values; zeros of unseen tokens. */
template <int d, int vecs, typename E>
CQ_DEVICE void fetch(const struct cqkd_attn &p, struct work &w, struct base<d, vecs, E> *sh,
		     uint32_t i)
{
	using B = struct base<d, vecs, E>;
	constexpr uint32_t row = d * E::bytes, parts = row / 16;
	const uint8_t *from;
	uint64_t live = 0;
	uint32_t tokens = 0, j, v;

	if (i < w.item.n_blocks) {
		w.block = part_of<struct cqkd_block>(p, &cqkd_plan::blocks)[w.item.block + i];
		tokens = CQKD_TOKENS;
		live = look(p, w, sh->all.see, i % B::stages);
	} else {
		__syncthreads();	/* as in look(): the stage is free */
	}
	from = cqkd_ptr<const uint8_t>(w.block.base) + p.at.offset +
	       w.head * (p.at.k_bytes + p.at.v_bytes);
	/* not unrolled further: registers are few */
#pragma unroll 1
	for (v = 0; v < 2; v++) {
		uint8_t *to = sh->rows[i % B::stages][v];

#pragma unroll 2
		for (j = cq_keep(threadIdx.x); j < tokens * parts; j += B::warps * 32) {
			uint32_t t = j / parts, part = j % parts * 16;
			uint32_t bytes = live >> t & 1 ? 16 : 0;

			cq_cp_async16_zfill(to + t * B::pitch + part,
					    from + (bytes ? t * row + part : 0), bytes);
		}
		from += p.at.k_bytes;
		cq_cp_commit();
	}
}

template <int d, int vecs, typename E>
CQ_DEVICE void item(const struct cqkd_attn &p, struct work &w, struct base<d, vecs, E> *sh,
		    float k_scale, float v_scale)
{
	using B = struct base<d, vecs, E>;
	constexpr int ahead = B::stages - 1;
	struct tiles<d, vecs, B::warps> r;
	uint32_t i;

	tiles_init(r);
	__syncthreads();	/* the item before has been stored */
	queries_load<E>(p, w, sh->all, reinterpret_cast<float *>(sh->rows));
	__syncthreads();
	for (i = threadIdx.x; E::scaled && i < w.item.n_vecs; i += B::warps * 32)
		sh->all.see.query[i].size *= k_scale;
	for (i = 0; i < ahead; i++)
		fetch(p, w, sh, i);
	for (i = 0; i < w.item.n_blocks; i++) {
		uint32_t at = i % B::stages;

		fetch(p, w, sh, i + ahead);
		cq_cp_wait<2 * ahead + 1>();
		__syncthreads();
		tiles_scores<E>(p, w, sh->all, at, sh->rows[at][0], r);
		cq_cp_wait<2 * ahead>();
		__syncthreads();
		tiles_values<E>(w, sh->rows[at][1], r);
	}
	cq_cp_wait<0>();
	result_store<E>(p, w, sh->all.see, E::scaled ? v_scale : 1, r);
}

template <int d, int vecs, typename E>
CQ_DEVICE void items(const struct cqbd_attn &b, struct base<d, vecs, E> *sh)
{
	const struct cqkd_plan *plan = cqkd_ptr<const struct cqkd_plan>(b.a.plan);
	float k_scale = 1, v_scale = 1;
	struct work w;
	uint32_t i;

	w.head = b.a.head_begin + blockIdx.y;
	if (E::scaled) {
		k_scale = cqkd_ptr<const float>(b.k_scale)[w.head];
		v_scale = cqkd_ptr<const float>(b.v_scale)[w.head];
	}
	for (i = blockIdx.x; i < plan->n_items; i += gridDim.x) {
		w.item = part_of<struct cqkd_item>(b.a, &cqkd_plan::items)[i];
		w.n_tiles = (w.item.n_vecs + 15) / 16;
		if (w.item.n_vecs > b.a.few)
			item(b.a, w, sh, k_scale, v_scale);
	}
}

/* Grid: items of more than @few vectors, which is @vecs at most; kv heads of the call. */
#define BASE_WIDE(type, E, d, vecs) \
CQ_KERNEL(CQBD_WARPS(vecs) * 32, cqb_wide_##type##_d##d##_v##vecs, (struct cqbd_attn b)) \
{ \
	using room = struct base<d, vecs, E>; \
\
	static_assert(sizeof(room) <= CQBD_WIDE_SHARED(d, E::bytes, vecs), "base_params.h"); \
	CQ_DYN_SHARED(room, sh); \
\
	items(b, sh); \
}
#define BASE_WIDE_ALL(type, E, d) \
BASE_WIDE(type, E, d, 32) \
BASE_WIDE(type, E, d, 64) \
BASE_WIDE(type, E, d, 128) \
BASE_WIDE(type, E, d, 256)
BASE_WIDE_ALL(f16, halves, 128)
BASE_WIDE_ALL(fp8, e4m3<false>, 128)
BASE_WIDE(f16, halves, 64, 64)
BASE_WIDE(fp8, e4m3<false>, 64, 64)
