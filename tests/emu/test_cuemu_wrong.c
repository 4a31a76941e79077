// SPDX-License-Identifier: MIT
/*
 * Kernels that are wrong in one way each (wrong.cu, wrong90.cu): the emulation says so,
 * naming kernel, block and thread, and goes on with the next launch.
 */
#include "tests/harness.h"
#include "tests/emu/cuemu_rig.h"

#define EMU "libcuemu_demo.so"
#define RACE "libcuemu_demo_race.so"

/* Launch it in every way: the launch fails, with these words among its text. */
static void expect(const char *lib, const char *name, uint32_t n, uint32_t shared,
		   const char *words)
{
	_Alignas(16) uint32_t out[128] = { 0 };
	uint32_t *p = out, threads;
	void *params[] = { &p, &n };
	char who[64];
	size_t way;
	int ret;

	emu_load(lib);
	ASSERT(emu_find(name));
	threads = emu_find(name)->max_threads;
	snprintf(who, sizeof(who), "kernel %s, block (", name);
	for (way = 0; way < EMU_WAYS; way++) {
		ret = emu_run(name, way, 2, 1, threads, shared, params);
		if (ret != -EACCES)	/* which a trap of the CPU is */
			ASSERT_EQ(ret, -EFAULT);
		ASSERT_STRHAS(emu_error(), who);
		ASSERT_STRHAS(emu_error(), "thread (");
		ASSERT_STRHAS(emu_error(), words);
	}
	/* what is left of it is in nobody's way */
	ASSERT_EQ(emu_run(name, 0, 2, 1, threads + 1, shared, params), -EINVAL);
	ASSERT_OK(emu_run("right_syncwarp", 0, 1, 1, 64, 0, (void *[]){ &(uint32_t *){
		(uint32_t[192]){ 0 } } }));
	ASSERT_STREQ(emu_error(), "");
}

#define WRONG(name, n, shared, words) \
TEST(name) { expect(EMU, "wrong_" #name, n, shared, words); }

WRONG(divergent, 1, 0, "waits in another barrier, __syncthreads at tests/emu/wrong.cu:")
WRONG(deadlock, 1, 0, "deadlock: no thread of the block can go on")
WRONG(left, 0, 0, "left the kernel")
WRONG(lane, 1, 0, "__shfl_xor_sync: lane 0 reads lane 8, which takes no part")
WRONG(mask, 1, 0, "without the lane itself")
WRONG(mixed, 1, 0, "with mask ffffffff, but lane ")
WRONG(copy_target, 1, 1024, "which is not shared memory")
WRONG(copy_alignment, 1, 1024, "not aligned")
WRONG(row, 1, 1024, "not aligned to 16 bytes")
WRONG(beyond_shared, 1, 256, "access to byte 256 of 256 bytes of dynamic shared memory")
WRONG(below_shared, 1, 256, "wrote beside its dynamic shared memory")
WRONG(address, 1, 0, "block (1,0,0), thread (5,0,0): access to address 0x10")
WRONG(stack, 1, 0, "of stack")
WRONG(rank, 1, 512, "block 2 of a cluster of 2")
WRONG(far_beyond, 1, 512, "which is not shared memory of the cluster")
WRONG(far_alignment, 1, 512, "store of 8 bytes")
WRONG(far_global, 1, 512, "not in the block's dynamic shared memory")
WRONG(far_early, 1, 512, "before the cluster has met")
WRONG(far_late, 1, 512, "left the kernel")
WRONG(cluster_left, 1, 0, "left the kernel")
WRONG(cluster_half, 1, 0, "left the kernel between arrival and wait of the cluster")
WRONG(cluster_twice, 1, 0, "without a wait in between")
WRONG(cluster_wait, 1, 0, "without an arrival")
WRONG(cluster_deadlock, 1, 0, "no thread of the block can go on")
WRONG(cluster_static, 1, 0, "static shared memory in a kernel of clusters")

WRONG(barrier_zero, 1, 0, "0 is __syncthreads()")
WRONG(barrier_count, 1, 0, "not warps")
WRONG(barrier_mixed, 1, 0, "but others came to it as one of ")
WRONG(barrier_alone, 1, 0, "thread of the block can go on")
WRONG(barrier_left, 1, 0, "left the kernel when 96 of 128 threads have come to barrier 1")
WRONG(mbar_unset, 1, 64, "that nobody has set up")
WRONG(mbar_written, 1, 64, "the mbarrier has been written to")
WRONG(mbar_alone, 1, 64, "in cq_mbar_wait at tests/emu/wrong90.cu:")
WRONG(mbar_extra, 1, 64, "more arrivals than the mbarrier's 1")
WRONG(bulk_size, 1, 64, "no multiple of 16")
WRONG(bulk_alignment, 1, 64, "not aligned")
WRONG(bulk_target, 1, 64, "which is not shared memory")
WRONG(bulk_left, 1, 64, "nobody has waited for a copy in bulk")
WRONG(wgmma_no_fence, 1, 8192, "without cq_wgmma_fence() before it")
WRONG(wgmma_second, 1, 8192, "without cq_wgmma_fence() before it")
WRONG(wgmma_touched, 1, 8192, "written before they were waited for")
WRONG(wgmma_touched_between, 1, 8192, "have been touched since another product")
WRONG(wgmma_factor, 1, 8192, "has changed the first matrix")
WRONG(wgmma_matrix, 1, 8192, "the second matrix was written before")
WRONG(wgmma_swizzle, 2, 8192, "is not of 128-byte swizzle")
WRONG(wgmma_start, 1, 8192, "does not begin in the first row of a pattern")
WRONG(wgmma_beyond, 1, 8192, "leads out of shared memory")
WRONG(wgmma_differs, 1, 8192, "but another warp of the warpgroup has ")
WRONG(wgmma_left, 1, 8192, "has not waited for its products")
WRONG(wgmma_again, 1, 8000, "which is no multiple of 1024")

/* Far below: not the bytes that are looked at afterwards, but the guard page. */
TEST(far_below_shared)
{
	expect(EMU, "wrong_below_shared", 58400, 256, "bytes of dynamic shared memory");
}

#define RACES_IN(name, n, shared, words) \
TEST(race_##name) { expect(RACE, "wrong_" #name, n, shared, words); }
#define RACES(name, n, words) RACES_IN(name, n, 1024, words)

RACES(no_barrier, 1, "race: ")
RACES(no_syncwarp, 1, "race: ")
RACES(no_second_barrier, 2, "without a barrier in between")
RACES(one_syncwarp, 1, "without a barrier in between")
RACES(early, 1, "which a copy has not brought yet")
RACES(divergent, 1, "another barrier")
RACES(barrier_arrive, 1, "without a barrier in between")
RACES(barrier_others, 1, "without a barrier in between")
RACES(mbar_no_wait, 1, "without a barrier in between")
RACES(bulk_early, 1, "which a copy has not brought yet")

RACES_IN(wgmma_no_proxy, 1, 8192, "read by tensor cores at wrong90.cu")
RACES_IN(wgmma_late_proxy, 1, 8192, "written without a fence of the writer")
RACES_IN(wgmma_again, 1, 8192, "read without a barrier in between")
RACES(cluster_overrun, 2, " of the cluster at wrong90.cu:")
RACES(cluster_behind, 1, "without a barrier in between")
RACES(cluster_unmet, 1, "without a barrier in between")

/* Grids are made of whole clusters. */
TEST(cluster_of_a_grid)
{
	uint32_t out[128] = { 0 }, *p = out, n = 1;
	void *params[] = { &p, &n };

	emu_load(EMU);
	ASSERT_EQ(emu_run("wrong_cluster_wait", 0, 3, 1, 64, 0, params), -EINVAL);
	ASSERT_STRHAS(emu_error(), "3 blocks in x, not a multiple of clusters of 2");
}

TEST(race_names_both_lines)
{
	uint32_t out[128] = { 0 }, *p = out, n = 1;
	void *params[] = { &p, &n };

	emu_load(RACE);
	ASSERT_EQ(emu_run("wrong_no_barrier", 0, 1, 1, 64, 0, params), -EFAULT);
	ASSERT_STRHAS(emu_error(), "write at wrong.cu:");
	ASSERT_STRHAS(emu_error(), "read without a barrier in between by thread (31,0,0) at ");
	ASSERT_STRHAS(emu_error(), "of static shared memory");
	/* in a wrapper: the line of the kernel that called it */
	ASSERT_EQ(emu_run("wrong_early", 0, 1, 1, 64, 1024, params), -EFAULT);
	ASSERT_STRHAS(emu_error(), "begun by thread (0,0,0) at wrong.cu:");
}

/* Without a look at each access: what is read too early is no number. */
static void expect_poison(const char *name, uint32_t shared)
{
	_Alignas(16) uint32_t out[128] = { 0 };
	uint32_t *p = out, n = 1, i, bad = 0;
	void *params[] = { &p, &n };
	size_t way;

	emu_load(EMU);
	for (way = 0; way < EMU_WAYS; way++) {
		memset(out, 0, sizeof(out));
		ASSERT_OK(emu_run(name, way, 1, 1, emu_find(name)->max_threads, shared, params));
		for (bad = i = 0; i < 64; i++)
			bad += out[i] == UINT32_MAX;
		ASSERT_GT(bad, 0);
	}
}

TEST(poison_where_a_barrier_is_missing)
{
	expect_poison("wrong_no_barrier", 0);
}

TEST(poison_where_a_copy_has_not_come)
{
	expect_poison("wrong_early", 1024);
}

TEST(poison_where_a_bulk_copy_has_not_come)
{
	expect_poison("wrong_bulk_early", 1024);
}

TEST(poison_where_a_product_is_under_way)
{
	expect_poison("wrong_wgmma_early", 8192);
}
