// SPDX-License-Identifier: MIT
/*
 * The fake driver's memory: rights, guards, accounting, and what it refuses.
 */
#include "tests/harness.h"
#include "tests/emu/fake_rig.h"

/* What a GPU would answer with a fault is found at the next call, and stays. */
static void expect_lost(int want)
{
	cqcu_ptr p;

	CU_FAILS(want, cuCtxSynchronize());
	CU_FAILS(want, cuMemAlloc(&p, 4096));
	CU_FAILS(want, cuStreamSynchronize(NULL));
	ASSERT(cqk_cuda_fatal(want));
}

TEST(copies_and_fills)
{
	uint32_t in[1000], out[1000];
	size_t size, free0, free1, total;
	cqcu_ptr p, q, base;

	start();
	CU(cuMemGetInfo(&free0, &total));
	CU(cuMemAlloc(&p, sizeof(in)));
	CU(cuMemAlloc(&q, sizeof(in)));
	ASSERT_EQ(p % 256, 0);
	for (uint32_t i = 0; i < 1000; i++)
		in[i] = i * 7;
	CU(cuMemcpyHtoD(p, in, sizeof(in)));
	CU(cuMemcpyDtoD(q, p, sizeof(in)));
	CU(cuMemcpyDtoH(out, q, sizeof(out)));
	ASSERT_MEMEQ(out, in, sizeof(in));
	CU(cuMemsetD32Async(q + 4, 0xdeadbeef, 998, NULL));
	CU(cuMemsetD8(q, 5, 2));
	CU(cuMemcpyDtoH(out, q, sizeof(out)));
	ASSERT_EQ(out[0], 0x0505);
	ASSERT_EQ(out[1], 0xdeadbeefu);
	ASSERT_EQ(out[998], 0xdeadbeefu);
	ASSERT_EQ(out[999], in[999]);
	CU(cuMemGetAddressRange(&base, &size, p + 100));
	ASSERT_EQ(base, p);
	ASSERT_EQ(size, sizeof(in));
	CU(cuMemGetInfo(&free1, &total));
	ASSERT_EQ(free0 - free1, 8192);
	CU(cuMemFree(p));
	CU(cuMemFree(q));
	CU(cuMemGetInfo(&free1, &total));
	ASSERT_EQ(free0, free1);
}

TEST(wrong_pointers_are_refused_and_the_context_goes_on)
{
	char host[64] = "host";
	cqcu_ptr p, hp = (cqcu_ptr)(uintptr_t)host;
	uint32_t type;

	start();
	CU(cuMemAlloc(&p, 256));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemcpyHtoD(hp, host, 16));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemcpyDtoH(host, hp, 16));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemcpyHtoD(p, (void *)(uintptr_t)p, 16));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemcpyDtoH((void *)(uintptr_t)p, p, 16));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemcpyHtoD(p, NULL, 16));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemcpyDtoD(p, hp, 16));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemsetD8(hp, 0, 1));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemFree(p + 256));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemFree(hp));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemcpyHtoD(p + 200, host, 64));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemAlloc(&p, 0));
	CU_FAILS(CQCU_ERROR_OUT_OF_MEMORY, cuMemAlloc(&p, (size_t)1 << 60));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuPointerGetAttribute(&type,
		CQCU_POINTER_ATTRIBUTE_MEMORY_TYPE, hp));
	CU(cuPointerGetAttribute(&type, CQCU_POINTER_ATTRIBUTE_MEMORY_TYPE, p + 10));
	ASSERT_EQ(type, CQCU_MEMORYTYPE_DEVICE);
	poke(p, 77);
	ASSERT_EQ(peek(p), 77);
}

TEST(host_memory_that_the_device_uses)
{
	static uint32_t mine[2048];
	cqcu_ptr p;
	uint32_t type, *pinned;
	void *v;

	start();
	CU(cuMemHostAlloc(&v, 4096, 0));
	pinned = v;
	CU(cuMemHostGetDevicePointer(&p, v, 0));
	ASSERT_EQ(launch_fill(p, 9, 1024, NULL), 0);
	CU(cuCtxSynchronize());
	ASSERT_EQ(pinned[1023], 9);
	CU(cuPointerGetAttribute(&type, CQCU_POINTER_ATTRIBUTE_MEMORY_TYPE, p));
	ASSERT_EQ(type, CQCU_MEMORYTYPE_HOST);
	CU(cuMemFreeHost(v));
	CU(cuMemHostRegister(mine, sizeof(mine), 0));
	CU_FAILS(CQCU_ERROR_HOST_MEMORY_ALREADY_REGISTERED, cuMemHostRegister(mine, 64, 0));
	CU(cuMemHostUnregister(mine));
	CU_FAILS(CQCU_ERROR_HOST_MEMORY_NOT_REGISTERED, cuMemHostUnregister(mine));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemHostRegister((void *)4096, 4096, 0));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemHostGetDevicePointer(&p, mine, 0));
}

/* Past the end by one word: the page behind a block is nobody's. */
TEST(a_kernel_that_writes_behind_its_block)
{
	cqcu_ptr p;

	start();
	CU(cuMemAlloc(&p, 4096));
	ASSERT_EQ(launch_fill(p, 1, 1024, NULL), 0);
	CU(cuCtxSynchronize());
	ASSERT_EQ(launch_fill(p, 1, 1025, NULL), 0);
	expect_lost(CQCU_ERROR_ILLEGAL_ADDRESS);
}

TEST(a_kernel_that_writes_before_its_block)
{
	cqcu_ptr p;

	start();
	CU(cuMemAlloc(&p, 4096));
	ASSERT_EQ(launch_fill(p - 4, 1, 1, NULL), 0);
	expect_lost(CQCU_ERROR_ILLEGAL_ADDRESS);
}

TEST(a_kernel_that_uses_freed_memory)
{
	cqcu_ptr p;

	start();
	CU(cuMemAlloc(&p, 4096));
	CU(cuMemFree(p));
	ASSERT_EQ(launch_fill(p, 1, 1, NULL), 0);
	expect_lost(CQCU_ERROR_ILLEGAL_ADDRESS);
}

/* Several threads of the machine run the blocks of one launch. */
TEST(a_fault_in_one_of_many_blocks)
{
	uint32_t n = 5000, v = 1;
	cqcu_ptr p;
	void *params[] = { &p, &v, &n };

	knob("CQ_EMU_THREADS", "4");
	start();
	CU(cuMemAlloc(&p, 4096 * 4));
	CU(cuLaunchKernel(kernel("demo_fill"), 40, 1, 1, 32, 1, 1, 0, NULL, params, NULL));
	expect_lost(CQCU_ERROR_ILLEGAL_ADDRESS);
}

/* Two views of one memory: what is written through one is read through the other. */
TEST(two_mappings_with_different_rights)
{
	struct cqcu_access no = { { CQCU_MEM_LOCATION_TYPE_DEVICE, 0 }, 0 };
	unsigned long long flags;
	cqcu_ptr ro, rw, out;
	cqcu_mem h;

	start();
	h = mem_new(GRAN);
	rw = mem_map(h, GRAN, CQCU_MEM_ACCESS_FLAGS_PROT_READWRITE);
	ro = mem_map(h, GRAN, CQCU_MEM_ACCESS_FLAGS_PROT_READ);
	CU(cuMemRelease(h));
	CU(cuMemAlloc(&out, 64));
	ASSERT_EQ(launch_fill(rw + 8, 5, 1, NULL), 0);
	ASSERT_EQ(launch_step(out, ro + 8, 1, NULL), 0);
	ASSERT_EQ(peek(out), 16);
	ASSERT_EQ(peek(ro + 8), 5);
	CU(cuMemGetAccess(&flags, &no.location, ro));
	ASSERT_EQ(flags, CQCU_MEM_ACCESS_FLAGS_PROT_READ);
	ASSERT_EQ(launch_fill(ro, 1, 1, NULL), 0);
	expect_lost(CQCU_ERROR_ILLEGAL_ADDRESS);
	CU(cuMemUnmap(ro, GRAN));
	CU(cuMemUnmap(rw, GRAN));
}

TEST(a_copy_into_a_read_only_mapping)
{
	cqcu_ptr ro;
	cqcu_mem h;
	uint32_t v = 1;

	start();
	h = mem_new(GRAN);
	ro = mem_map(h, GRAN, CQCU_MEM_ACCESS_FLAGS_PROT_READ);
	CU(cuMemRelease(h));
	ASSERT_EQ(peek(ro), 0);
	CU_FAILS(CQCU_ERROR_ILLEGAL_ADDRESS, cuMemcpyHtoD(ro, &v, sizeof(v)));
	expect_lost(CQCU_ERROR_ILLEGAL_ADDRESS);
	CU(cuMemUnmap(ro, GRAN));
}

/* Host memory that is gone when the copy comes to it; a crash with some drivers. */
TEST(a_copy_from_nowhere)
{
	cqcu_ptr p;
	char *gone = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	start();
	CU(cuMemAlloc(&p, 64));
	CU(cuMemcpyHtoDAsync(p, gone, 64, NULL));
	expect_lost(CQCU_ERROR_ILLEGAL_ADDRESS);
}

TEST(a_mapping_without_access)
{
	cqcu_ptr p;
	cqcu_mem h;
	uint32_t v;

	start();
	h = mem_new(GRAN);
	CU(cuMemAddressReserve(&p, GRAN, 0, 0, 0));
	CU(cuMemMap(p, GRAN, 0, h, 0));
	CU_FAILS(CQCU_ERROR_ILLEGAL_ADDRESS, cuMemcpyDtoH(&v, p, sizeof(v)));
	CU(cuMemUnmap(p, GRAN));
	CU(cuMemRelease(h));
}

static void touch(cqcu_ptr p)
{
	int status;
	pid_t pid = fork();

	ASSERT_LE(0, pid);
	if (!pid) {
		*(volatile char *)(uintptr_t)p = 1;
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT(!WIFEXITED(status) || WEXITSTATUS(status));
}

/* With a key and without: no host code reads or writes device memory. */
TEST(host_code_has_no_access)
{
	cqcu_ptr p, q;
	cqcu_mem h;

	start();
	CU(cuMemAlloc(&p, 4096));
	h = mem_new(GRAN);
	q = mem_map(h, GRAN, CQCU_MEM_ACCESS_FLAGS_PROT_READWRITE);
	touch(p);
	ASSERT_EQ(launch_fill(p, 3, 1, NULL), 0);
	ASSERT_EQ(launch_fill(q, 4, 1, NULL), 0);
	CU(cuCtxSynchronize());
	touch(p);
	touch(q);
	ASSERT_EQ(peek(p), 3);
	ASSERT_EQ(peek(q), 4);
	CU(cuMemUnmap(q, GRAN));
	CU(cuMemRelease(h));
}

TEST(host_code_has_no_access_without_keys)
{
	cqcu_ptr p, ro;
	cqcu_mem h;

	knob("CQ_EMU_HOSTGUARD", "mprotect");
	start();
	CU(cuMemAlloc(&p, 4096));
	h = mem_new(GRAN);
	ro = mem_map(h, GRAN, CQCU_MEM_ACCESS_FLAGS_PROT_READ);
	touch(p);
	ASSERT_EQ(launch_fill(p, 3, 1, NULL), 0);
	ASSERT_EQ(launch_step(p + 4, ro, 8, NULL), 0);
	CU(cuCtxSynchronize());
	touch(p);
	touch(ro);
	ASSERT_EQ(peek(p), 3);
	ASSERT_EQ(peek(p + 4), 8);
	ASSERT_EQ(launch_fill(ro, 3, 1, NULL), 0);
	expect_lost(CQCU_ERROR_ILLEGAL_ADDRESS);
	CU(cuMemUnmap(ro, GRAN));
	CU(cuMemRelease(h));
}

TEST(out_of_memory)
{
	struct cqcu_mem_prop prop = { .type = CQCU_MEM_ALLOCATION_TYPE_PINNED,
				      .location = { CQCU_MEM_LOCATION_TYPE_DEVICE, 0 } };
	size_t left, total;
	cqcu_mem h[3], more;
	cqcu_ptr p;

	knob("CQ_EMU_MEMORY", "6291456");
	start();
	for (int i = 0; i < 3; i++)
		h[i] = mem_new(GRAN);
	CU_FAILS(CQCU_ERROR_OUT_OF_MEMORY, cuMemCreate(&more, GRAN, &prop, 0));
	CU_FAILS(CQCU_ERROR_OUT_OF_MEMORY, cuMemAlloc(&p, 1));
	CU(cuMemGetInfo(&left, &total));
	ASSERT_EQ(left, 0);
	ASSERT_EQ(total, 3 * GRAN);
	/* a mapping keeps the memory that its handle no longer does */
	p = mem_map(h[1], GRAN, CQCU_MEM_ACCESS_FLAGS_PROT_READWRITE);
	CU(cuMemRelease(h[1]));
	CU_FAILS(CQCU_ERROR_OUT_OF_MEMORY, cuMemCreate(&more, GRAN, &prop, 0));
	CU(cuMemUnmap(p, GRAN));
	CU(cuMemCreate(&more, GRAN, &prop, 0));
	CU(cuMemRelease(more));
	CU(cuMemAddressFree(p, GRAN));
	CU(cuMemRelease(h[0]));
	CU(cuMemRelease(h[2]));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemRelease(h[2]));
	CU(cuMemGetInfo(&left, &total));
	ASSERT_EQ(left, total);
}

TEST(arguments_of_virtual_memory)
{
	struct cqcu_mem_prop prop = { .type = CQCU_MEM_ALLOCATION_TYPE_PINNED,
				      .location = { CQCU_MEM_LOCATION_TYPE_DEVICE, 0 } };
	struct cqcu_access access = { { CQCU_MEM_LOCATION_TYPE_DEVICE, 0 }, 3 };
	cqcu_mem h, again;
	cqcu_ptr p;
	size_t size;
	int fd;

	start();
	CU(cuMemGetAllocationGranularity(&size, &prop, 0));
	ASSERT_EQ(size, GRAN);
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemCreate(&h, GRAN - 1, &prop, 0));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemCreate(&h, 0, &prop, 0));
	prop.location.id = 1;
	CU_FAILS(CQCU_ERROR_INVALID_DEVICE, cuMemCreate(&h, GRAN, &prop, 0));
	prop.location.id = 0;
	CU(cuMemCreate(&h, 2 * GRAN, &prop, 0));
	/* not asked for when it was made */
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemExportToShareableHandle(&fd, h, 1, 0));
	CU(cuMemAddressReserve(&p, 4 * GRAN, 0, 0, 0));
	ASSERT_EQ(p % GRAN, 0);
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemMap(p + 3 * GRAN, 2 * GRAN, 0, h, 0));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemMap(p, 3 * GRAN, 0, h, 0));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemMap(p, GRAN, 0, h + 1, 0));
	CU(cuMemMap(p, GRAN, GRAN, h, 0));
	CU(cuMemMap(p + GRAN, 2 * GRAN, 0, h, 0));
	CU_FAILS(CQCU_ERROR_ALREADY_MAPPED, cuMemMap(p + 2 * GRAN, 2 * GRAN, 0, h, 0));
	/* rights and unmapping of both at once, not of a part */
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemSetAccess(p, 2 * GRAN, &access, 1));
	CU(cuMemSetAccess(p, 3 * GRAN, &access, 1));
	CU(cuMemsetD8(p, 7, 3 * GRAN));
	poke(p + 3 * GRAN - 4, 99);
	ASSERT_EQ(peek(p + GRAN - 4), 99);	/* the same bytes, at offset GRAN */
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemAddressFree(p, 4 * GRAN));
	CU(cuMemRetainAllocationHandle(&again, (void *)(uintptr_t)(p + 17)));
	ASSERT_EQ(again, h);
	CU(cuMemRelease(again));
	CU(cuMemUnmap(p, 3 * GRAN));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemUnmap(p, 3 * GRAN));
	CU(cuMemAddressFree(p, 4 * GRAN));
	CU(cuMemRelease(h));
}

TEST(failures_on_demand)
{
	cqcu_ptr p[4];

	knob("CQ_EMU_FAIL", "cuMemAlloc:2,cuMemAlloc:4+:999,cuLaunchKernel:1");
	start();
	CU(cuMemAlloc(&p[0], 64));
	CU_FAILS(CQCU_ERROR_OUT_OF_MEMORY, cuMemAlloc(&p[1], 64));
	CU(cuMemAlloc(&p[2], 64));
	CU_FAILS(CQCU_ERROR_UNKNOWN, cuMemAlloc(&p[3], 64));
	CU_FAILS(CQCU_ERROR_UNKNOWN, cuMemAlloc(&p[3], 64));
	ASSERT_EQ(launch_fill(p[0], 1, 1, NULL), CQCU_ERROR_LAUNCH_OUT_OF_RESOURCES);
	ASSERT_EQ(launch_fill(p[0], 1, 1, NULL), 0);
	ASSERT_EQ(peek(p[0]), 1);
}

/* One context is lost, the other device's is not. */
TEST(devices_are_apart)
{
	struct cqcu_ctx *first, *second;
	size_t left, total;
	cqcu_ptr p, q;

	knob("CQ_EMU_DEVICES", "2");
	start();
	CU(cuCtxGetCurrent(&first));
	CU(cuDevicePrimaryCtxRetain(&second, 1));
	CU(cuMemAlloc(&p, 8 << 20));
	CU(cuCtxSetCurrent(second));
	CU(cuMemGetInfo(&left, &total));
	ASSERT_EQ(left, total);
	CU(cuMemAlloc(&q, 64));
	CU(cuCtxSetCurrent(first));
	ASSERT_EQ(launch_fill(p + (8 << 20), 1, 1, NULL), 0);
	expect_lost(CQCU_ERROR_ILLEGAL_ADDRESS);
	CU(cuCtxSetCurrent(second));
	poke(q, 3);
	ASSERT_EQ(launch_fill(q, 4, 1, NULL), 0);
	ASSERT_EQ(peek(q), 4);
}

/* What a kernel does against the rules of barriers is another error. */
TEST(a_launch_that_fails)
{
	uint32_t n = 1;
	cqcu_ptr p;
	void *params[] = { &p, &n };

	start();
	CU(cuMemAlloc(&p, 4096));
	CU(cuLaunchKernel(kernel("wrong_divergent"), 1, 1, 1, 64, 1, 1, 0, NULL, params, NULL));
	expect_lost(CQCU_ERROR_LAUNCH_FAILED);
}
