/* SPDX-License-Identifier: MIT */
/*
 * Twins of the PTX wrappers of kernels/cuda/ptx90.cuh: barriers of some threads of a
 * block, copies in bulk, and products that tensor cores compute while threads go on.
 *
 * What is under way is finished as late as it may be. A copy destroys what its target
 * held at once, and lands when no thread can go on without it (or, with random order,
 * by chance); products are NaN until they are waited for. Matrices in shared memory are
 * read when a product begins and once more when it is waited for, and have to be the
 * same: nobody may have written them in between.
 */
#ifndef CUEMU_HOPPER_HPP
#define CUEMU_HOPPER_HPP

#include "tests/emu/engine.hpp"
#include "tests/emu/half.hpp"

namespace cuemu {

void barrier_come(const char *op, uint32_t id, uint32_t threads, bool wait, struct place at);
void mbarrier_init(uint64_t *bar, uint32_t count, struct place at);
void mbarrier_arrive(const char *op, uint64_t *bar, uint32_t bytes, struct place at);
void mbarrier_wait(uint64_t *bar, uint32_t parity, struct place at);
void bulk_load(void *s, const void *g, uint32_t bytes, uint64_t *bar, struct place at);
void fence_async();
uint32_t shared_address(const void *s, struct place at);
void check_dyn_alignment(uint32_t align, struct place at);

void wgmma_fence(struct place at);
void wgmma_commit(struct place at);
void wgmma_wait(uint32_t groups, struct place at);
void wgmma(const char *op, uint32_t n, bool trans, float *d, const uint32_t *a, uint64_t desc,
	   bool add, struct place at);

} /* namespace cuemu */

CUEMU_FN uint32_t cq_shared_addr(const void *s, CUEMU_AT)
{
	return cuemu::shared_address(s, CUEMU_HERE);
}

CUEMU_FN void cq_bar_sync(uint32_t id, uint32_t threads, CUEMU_AT)
{
	cuemu::barrier_come("cq_bar_sync", id, threads, true, CUEMU_HERE);
}
CUEMU_FN void cq_bar_arrive(uint32_t id, uint32_t threads, CUEMU_AT)
{
	cuemu::barrier_come("cq_bar_arrive", id, threads, false, CUEMU_HERE);
}

CUEMU_FN void cq_mbar_init(uint64_t *bar, uint32_t count, CUEMU_AT)
{
	cuemu::mbarrier_init(bar, count, CUEMU_HERE);
}
CUEMU_FN void cq_mbar_arrive(uint64_t *bar, CUEMU_AT)
{
	cuemu::mbarrier_arrive("cq_mbar_arrive", bar, 0, CUEMU_HERE);
}
CUEMU_FN void cq_mbar_expect(uint64_t *bar, uint32_t bytes, CUEMU_AT)
{
	cuemu::mbarrier_arrive("cq_mbar_expect", bar, bytes, CUEMU_HERE);
}
CUEMU_FN void cq_mbar_wait(uint64_t *bar, uint32_t parity, CUEMU_AT)
{
	cuemu::mbarrier_wait(bar, parity, CUEMU_HERE);
}
CUEMU_FN void cq_bulk_load(void *s, const void *g, uint32_t bytes, uint64_t *bar, CUEMU_AT)
{
	cuemu::bulk_load(s, g, bytes, bar, CUEMU_HERE);
}
CUEMU_FN void cq_fence_async() { cuemu::fence_async(); }

#define CUEMU_REGISTERS(name) \
template <int n> CUEMU_FN void name() \
{ \
	static_assert(n % 8 == 0 && n >= 24 && n <= 256, "what setmaxnreg takes"); \
}
CUEMU_REGISTERS(cq_registers_more)
CUEMU_REGISTERS(cq_registers_less)
#undef CUEMU_REGISTERS

CUEMU_FN void cq_wgmma_fence(CUEMU_AT) { cuemu::wgmma_fence(CUEMU_HERE); }
CUEMU_FN void cq_wgmma_commit(CUEMU_AT) { cuemu::wgmma_commit(CUEMU_HERE); }
template <int groups> CUEMU_FN void cq_wgmma_wait(CUEMU_AT)
{
	cuemu::wgmma_wait(groups, CUEMU_HERE);
}
#define CUEMU_WGMMA(name, n, trans) \
CUEMU_FN void name(float (&d)[n / 8][4], const uint32_t (&a)[4], uint64_t desc, bool add, \
		   CUEMU_AT) \
{ \
	cuemu::wgmma(#name, n, trans, d[0], a, desc, add, CUEMU_HERE); \
}
CUEMU_WGMMA(cq_wgmma_n64, 64, false)
CUEMU_WGMMA(cq_wgmma_n64_trans, 64, true)
#undef CUEMU_WGMMA
/* Here it is known by whom a register is written. */
template <int n> CUEMU_FN void cq_wgmma_hold(float (&)[n][4]) {}
#define CQ_WARPGROUPS 1

/* An address in another block of the cluster; as on a device, no pointer. */
struct cq_far {
	char *at;
};
CUEMU_FN struct cq_far operator+(struct cq_far p, uint32_t bytes) { return { p.at + bytes }; }
CUEMU_FN uint32_t cq_cluster_rank() { return cuemu::self()->eng->rank; }
CUEMU_FN void cq_cluster_arrive(CUEMU_AT) { cuemu::cluster_arrive(CUEMU_HERE); }
CUEMU_FN void cq_cluster_wait(CUEMU_AT) { cuemu::cluster_wait(CUEMU_HERE); }
CUEMU_FN struct cq_far cq_far_at(const void *s, uint32_t rank, CUEMU_AT)
{
	return { cuemu::cluster_map(s, rank, CUEMU_HERE) };
}
CUEMU_FN void cq_far_store(struct cq_far to, float2 x, CUEMU_AT)
{
	cuemu::cluster_store(to.at, &x, sizeof(x), CUEMU_HERE);
}

#endif /* CUEMU_HOPPER_HPP */
