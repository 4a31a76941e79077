/* SPDX-License-Identifier: MIT */
/*
 * What the kernels that gpu-bench compares with are told, in C and in device code: as
 * kernels/cuda/params.h, of which they take plans and leave the last step to cqk_merge.
 */
#ifndef GPU_BASE_PARAMS_H
#define GPU_BASE_PARAMS_H

#include "kernels/cuda/params.h"

/**
 * struct cqbd_attn - attention over pages of halves or of e4m3
 * @a:       as of attention over codes; keys are rotated and codebooks not read.
 *           @a.few: items of at most so many vectors are base_fp8.cu's
 * @k_scale: [kv_head] f32, what a stored key is multiplied with; of e4m3 alone
 * @v_scale: the same of a value
 */
struct cqbd_attn {
	struct cqkd_attn a;
	uint64_t k_scale;
	uint64_t v_scale;
};

/* base_wide.cu: of @vecs vectors a block of threads has a warp for 16, or for 32. */
#define CQBD_WARPS(vecs)	((vecs) > 128 ? 8 : (vecs) / 16)
#define CQBD_WIDE_SHARED(d, bytes, vecs) \
	((vecs) * (CQKD_PITCH(d) * 2 + 16) + 16 +		/* queries */ \
	 CQBD_STAGES(bytes) * ((vecs) * 8 + CQBD_WARPS(vecs) * 8 + /* what they see */ \
	 2 * CQKD_TOKENS * CQKD_RING_PITCH(d, bytes)))		/* keys and values */
#define CQBD_STAGES(bytes)	((bytes) > 1 ? 2 : 3)		/* blocks of tokens */
/* base_wgmma.cu: 128 vectors, and blocks of tokens. */
#define CQBD_WGMMA_STAGES	4
#define CQBD_WGMMA_SHARED	CQKD_WGMMA_RING(CQBD_WGMMA_STAGES)
#define CQBD_FP8_STAGES		3	/* of base_fp8.cu, as CQKD_F16_STAGES */

CQKD_FROZEN(sizeof(struct cqbd_attn) == 368);

#endif /* GPU_BASE_PARAMS_H */
