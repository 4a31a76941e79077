// SPDX-License-Identifier: MIT
/*
 * Kernels for the tests of the fake driver: small, and of memory alone.
 */
#include "kernels/cuda/dev.h"

/* p[i] = v, i < n */
CQ_KERNEL(256, demo_fill, (uint32_t *p, uint32_t v, uint32_t n))
{
	for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
		p[i] = v;
}

/* *to = *from * 3 + v: no two orders of several give the same */
CQ_KERNEL(32, demo_step, (uint32_t *to, const uint32_t *from, uint32_t v))
{
	if (threadIdx.x == 0)
		*to = *from * 3 + v;
}
