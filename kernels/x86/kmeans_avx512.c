// SPDX-License-Identifier: MIT
/* Inner loops of k-means with AVX-512; no FMA, or the bits would differ. */
#include <immintrin.h>
#include <string.h>
#include "kernels/attn.h"
#include "kernels/kmeans_ops.h"

#define LANES 16
#define TOGETHER 64
typedef float vf __attribute__((vector_size(64), may_alias));
typedef int32_t vi __attribute__((vector_size(64), may_alias));
typedef __mmask16 vm;

static inline __attribute__((always_inline)) vm vf_less(vf a, vf b)
{
	return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ);
}

static inline __attribute__((always_inline)) vf vf_pick(vm mask, vf a, vf b)
{
	return (vf)_mm512_mask_mov_ps((__m512)b, mask, (__m512)a);
}

static inline __attribute__((always_inline)) vi vi_pick(vm mask, vi a, vi b)
{
	return (vi)_mm512_mask_mov_epi32((__m512i)b, mask, (__m512i)a);
}

#include "kernels/kmeans_tile.h"

const struct cqk_kmeans_ops cqk_kmeans_avx512 = {
	.name = "avx512",
	.usable = cqk_cpu_has_avx512bw,
	.assign = tile_assign,
	.spread = tile_spread,
};
