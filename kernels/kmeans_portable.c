// SPDX-License-Identifier: MIT
/* Inner loops of k-means for any machine: four lanes of compiler vectors. */
#include <string.h>
#include "kernels/kmeans_ops.h"

#define LANES 4
#define TOGETHER 16
typedef float vf __attribute__((vector_size(16), may_alias));
typedef int32_t vi __attribute__((vector_size(16), may_alias));
typedef vi vm;

static inline __attribute__((always_inline)) vm vf_less(vf a, vf b)
{
	return a < b;
}

static inline __attribute__((always_inline)) vf vf_pick(vm mask, vf a, vf b)
{
	return (vf)(((vi)a & mask) | ((vi)b & ~mask));
}

static inline __attribute__((always_inline)) vi vi_pick(vm mask, vi a, vi b)
{
	return (vi)vf_pick(mask, (vf)a, (vf)b);
}

#include "kernels/kmeans_tile.h"

static bool portable_usable(void)
{
	return true;
}

const struct cqk_kmeans_ops cqk_kmeans_portable = {
	.name = "portable",
	.usable = portable_usable,
	.assign = tile_assign,
	.spread = tile_spread,
};
