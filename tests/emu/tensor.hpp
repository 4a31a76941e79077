/* SPDX-License-Identifier: MIT */
/*
 * Twins of the PTX wrappers of kernels/cuda/ptx.cuh.
 *
 * A copy by cp.async destroys what its target held at once and brings the new
 * bytes when the thread waits for its group, in any order within the group: so
 * a kernel that reads too early reads NaN. The target must be shared memory.
 */
#ifndef CUEMU_TENSOR_HPP
#define CUEMU_TENSOR_HPP

#include "tests/emu/engine.hpp"
#include "tests/emu/half.hpp"

namespace cuemu {

void copy_async(void *s, const void *g, unsigned int bytes, unsigned int size, struct place at);
void copy_commit();
void copy_wait(unsigned int groups);
void load_matrices(const char *op, uint32_t *r, const void *s, unsigned int n, bool trans,
		   struct place at);
uint32_t transpose(const char *op, uint32_t a, struct place at);
enum mma_type { MMA_F16, MMA_BF16 };
void mma(const char *op, float *d, const uint32_t *a, const uint32_t *b, unsigned int k,
	 enum mma_type type, struct place at);

} /* namespace cuemu */

CUEMU_FN void cq_cp_async16(void *s, const void *g, CUEMU_AT)
{
	cuemu::copy_async(s, g, 16, 16, CUEMU_HERE);
}
CUEMU_FN void cq_cp_async16_zfill(void *s, const void *g, unsigned int bytes, CUEMU_AT)
{
	cuemu::copy_async(s, g, bytes, 16, CUEMU_HERE);
}
CUEMU_FN void cq_cp_commit() { cuemu::copy_commit(); }
template <int groups> CUEMU_FN void cq_cp_wait() { cuemu::copy_wait(groups); }

#define CUEMU_LDMATRIX(n, what, trans) \
CUEMU_FN void cq_ldmatrix_x##n##what(uint32_t r[n], const void *s, CUEMU_AT) \
{ \
	cuemu::load_matrices("cq_ldmatrix_x" #n #what, r, s, n, trans, CUEMU_HERE); \
}
CUEMU_LDMATRIX(1, , false)
CUEMU_LDMATRIX(2, , false)
CUEMU_LDMATRIX(4, , false)
CUEMU_LDMATRIX(1, _trans, true)
CUEMU_LDMATRIX(2, _trans, true)
CUEMU_LDMATRIX(4, _trans, true)
#undef CUEMU_LDMATRIX

CUEMU_FN uint32_t cq_movmatrix_trans(uint32_t a, CUEMU_AT)
{
	return cuemu::transpose("cq_movmatrix_trans", a, CUEMU_HERE);
}
CUEMU_FN void cq_mma_16816_f32(float d[4], const uint32_t a[4], const uint32_t b[2], CUEMU_AT)
{
	cuemu::mma("cq_mma_16816_f32", d, a, b, 16, cuemu::MMA_F16, CUEMU_HERE);
}
CUEMU_FN void cq_mma_16816_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], CUEMU_AT)
{
	cuemu::mma("cq_mma_16816_bf16", d, a, b, 16, cuemu::MMA_BF16, CUEMU_HERE);
}
CUEMU_FN void cq_mma_1688_f32(float d[4], const uint32_t a[2], const uint32_t b[1], CUEMU_AT)
{
	cuemu::mma("cq_mma_1688_f32", d, a, b, 8, cuemu::MMA_F16, CUEMU_HERE);
}
#define CUEMU_MMA_SUM(name, k) \
CUEMU_FN void name(float d[4], const uint32_t a[k / 4], const uint32_t b[k / 8], \
		   const float c[4], CUEMU_AT) \
{ \
	memcpy(d, c, 4 * sizeof(*d)); \
	cuemu::mma(#name, d, a, b, k, cuemu::MMA_F16, CUEMU_HERE); \
}
CUEMU_MMA_SUM(cq_mma_16816_sum, 16)
CUEMU_MMA_SUM(cq_mma_1688_sum, 8)
#undef CUEMU_MMA_SUM

#endif /* CUEMU_TENSOR_HPP */
