// SPDX-License-Identifier: MIT
/*
 * Attention of at most eight query vectors over keys and values in fp8, e4m3 with a scale
 * for each kv head, as serving engines keep them: attn_f16.cu with half the bytes.
 */
#include "kernels/cuda/attn_ring.cuh"
#include "tests/gpu/base_params.h"
#include "tests/gpu/e4m3.cuh"

/* Grid: blocks that share the items of a kv head, kv heads of the call. */
#define BASE_FP8(name, d, bits) \
CQ_KERNEL_BLOCKS(CQKD_F16_WARPS * 32, 4, name, (struct cqbd_attn b)) \
{ \
	using room = struct ring<d, struct e4m3<bits>>; \
	uint32_t head = b.a.head_begin + blockIdx.y; \
\
	static_assert(sizeof(room) <= CQKD_RING_SHARED(d, 1, CQBD_FP8_STAGES), "base_params.h"); \
	CQ_DYN_SHARED(room, sh); \
\
	items(b.a, sh, { cqkd_ptr<const float>(b.k_scale)[head], \
			 cqkd_ptr<const float>(b.v_scale)[head] }); \
}
BASE_FP8(cqb_fp8_d64, 64, false)
BASE_FP8(cqb_fp8_d128, 128, false)
#ifndef __CUDACC__	/* what older GPUs compute, for tests */
BASE_FP8(cqb_fp8_bits_d64, 64, true)
BASE_FP8(cqb_fp8_bits_d128, 128, true)
#endif
