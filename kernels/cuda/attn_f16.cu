// SPDX-License-Identifier: MIT
/*
 * Attention of at most eight query vectors over halves: pages that are not coded, and
 * blocks of fp16. It is what a coded cache is compared with, so it is to read as fast as
 * memory delivers.
 */
#include "kernels/cuda/attn_ring.cuh"

/* Grid: blocks that share the items of a kv head, kv heads of the call. */
#define ATTN_F16(d) \
CQ_KERNEL_BLOCKS(CQKD_F16_WARPS * 32, 2, cqk_attn_f16_d##d, (struct cqkd_attn p)) \
{ \
	using room = struct ring<d, struct halves>; \
\
	static_assert(sizeof(room) <= CQKD_F16_SHARED(d), "params.h"); \
	CQ_DYN_SHARED(room, sh); \
\
	items(p, sh, { 1, 1 }); \
}
ATTN_F16(64)
ATTN_F16(128)
