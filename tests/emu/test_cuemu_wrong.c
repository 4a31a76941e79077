// SPDX-License-Identifier: MIT
/*
 * Kernels that are wrong in one way each (wrong.cu): the emulation says so,
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
	uint32_t out[128] = { 0 };
	uint32_t *p = out;
	void *params[] = { &p, &n };
	char who[64];
	size_t way;
	int ret;

	emu_load(lib);
	snprintf(who, sizeof(who), "kernel %s, block (", name);
	for (way = 0; way < EMU_WAYS; way++) {
		ret = emu_run(name, way, 2, 1, 64, shared, params);
		if (ret != -EACCES)	/* which a trap of the CPU is */
			ASSERT_EQ(ret, -EFAULT);
		ASSERT_STRHAS(emu_error(), who);
		ASSERT_STRHAS(emu_error(), "thread (");
		ASSERT_STRHAS(emu_error(), words);
	}
	/* what is left of it is in nobody's way */
	ASSERT_EQ(emu_run(name, 0, 2, 1, 65, shared, params), -EINVAL);
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

/* Far below: not the bytes that are looked at afterwards, but the guard page. */
TEST(far_below_shared)
{
	expect(EMU, "wrong_below_shared", 58400, 256, "bytes of dynamic shared memory");
}

#define RACES(name, n, words) \
TEST(race_##name) { expect(RACE, "wrong_" #name, n, 1024, words); }

RACES(no_barrier, 1, "race: ")
RACES(no_syncwarp, 1, "race: ")
RACES(no_second_barrier, 2, "without a barrier in between")
RACES(one_syncwarp, 1, "without a barrier in between")
RACES(early, 1, "which cp.async has not brought yet")
RACES(divergent, 1, "another barrier")

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
	uint32_t out[128] = { 0 }, *p = out, n = 1, i, bad = 0;
	void *params[] = { &p, &n };
	size_t way;

	emu_load(EMU);
	for (way = 0; way < EMU_WAYS; way++) {
		memset(out, 0, sizeof(out));
		ASSERT_OK(emu_run(name, way, 1, 1, 64, shared, params));
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
