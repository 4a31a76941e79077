// SPDX-License-Identifier: MIT
/* Inner loops of k-means with AVX2; no FMA, or the bits would differ. */
#include <immintrin.h>
#include <string.h>
#include "kernels/attn.h"
#include "kernels/kmeans_ops.h"

#define LANES 8
#define TOGETHER 16
typedef float vf __attribute__((vector_size(32), may_alias));
typedef int32_t vi __attribute__((vector_size(32), may_alias));
typedef vi vm;

static inline __attribute__((always_inline)) vm vf_less(vf a, vf b)
{
	return a < b;
}

static inline __attribute__((always_inline)) vf vf_pick(vm mask, vf a, vf b)
{
	return (vf)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)mask);
}

static inline __attribute__((always_inline)) vi vi_pick(vm mask, vi a, vi b)
{
	return (vi)vf_pick(mask, (vf)a, (vf)b);
}

#include "kernels/kmeans_tile.h"

const struct cqk_kmeans_ops cqk_kmeans_avx2 = {
	.name = "avx2",
	.usable = cqk_cpu_has_avx2,
	.assign = tile_assign,
	.spread = tile_spread,
};
