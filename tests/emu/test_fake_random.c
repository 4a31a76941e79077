// SPDX-License-Identifier: MIT
/*
 * Random calls with random arguments, good and bad: the fake driver answers
 * each of them, and neither it nor driver.c crashes or hangs. SEED=n repeats
 * one run. Output pointers are good or NULL: a driver writes where it is told.
 */
#include "tests/harness.h"
#include "tests/emu/fake_rig.h"

#define CALLS	3000
#define SLOTS	8

static uint64_t state;

static uint32_t draw(uint32_t below)
{
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)((state >> 33) % below);
}

/* What earlier calls gave, mixed with what no call ever gave. */
static struct {
	cqcu_ptr ptr[SLOTS];
	cqcu_mem mem[SLOTS];
	void *stream[SLOTS], *event[SLOTS], *graph[SLOTS], *exec[SLOTS], *func[SLOTS];
	void *module[SLOTS], *ctx[SLOTS];
	int fd[SLOTS];
} have;
static char host[65536];

static cqcu_ptr any_ptr(void)
{
	switch (draw(8)) {
	case 0: return 0;
	case 1: return (cqcu_ptr)(uintptr_t)host;
	case 2: return ((uint64_t)draw(~0u) << 32) | draw(~0u);
	case 3: return ~(cqcu_ptr)draw(5000);
	default: return have.ptr[draw(SLOTS)] + (draw(4) ? 0 : draw(5000));
	}
}

static size_t any_size(void)
{
	switch (draw(8)) {
	case 0: return 0;
	case 1: return ~(size_t)draw(10000);
	case 2: return (size_t)draw(~0u) << draw(32);
	case 3:
	case 4: return GRAN * (1 + draw(3));
	default: return draw(20000);
	}
}

/* Of host memory no more than there is. */
static size_t host_size(void)
{
	return draw(sizeof(host) + 1);
}

static void *any_handle(void **of)
{
	static const uintptr_t wild[] = { 0, 1, 2, 3, 0x1000, ~0ul, 0xdead0000beef };

	return draw(3) ? of[draw(SLOTS)] : (void *)wild[draw(7)];
}

static cqcu_mem any_mem(void)
{
	return draw(4) ? have.mem[draw(SLOTS)] : draw(~0u);
}

static struct cqcu_mem_prop any_prop(void)
{
	struct cqcu_mem_prop p = {
		.type = draw(8) ? 1 : (int)draw(9),
		.handle_types = draw(8) ? 1 : (int)draw(~0u),
		.location = { draw(8) ? 1 : (int)draw(9), draw(8) ? 0 : (int)draw(9) - 3 },
	};

	return p;
}

static int memory_call(int i)
{
	struct cqcu_access access = { { draw(8) ? 1 : (int)draw(5), draw(8) ? 0 : (int)draw(9) },
				      draw(8) ? (int)draw(4) : (int)draw(~0u) };
	struct cqcu_mem_prop prop = any_prop();
	unsigned long long flags;
	size_t a, b;
	cqcu_ptr p;
	void *v = NULL;

	switch (draw(24)) {
	case 0: return cu->cuMemGetInfo(&a, draw(8) ? &b : NULL);
	case 1: return cu->cuMemAlloc(draw(8) ? &have.ptr[i] : NULL, any_size());
	case 2: return cu->cuMemFree(any_ptr());
	case 3: return cu->cuMemGetAddressRange(&p, &a, any_ptr());
	case 4: return cu->cuPointerGetAttribute(host, (int)draw(20), any_ptr());
	case 5: return cu->cuMemcpyHtoDAsync(any_ptr(), host, host_size(), any_handle(have.stream));
	case 6: return cu->cuMemcpyDtoHAsync(host, any_ptr(), host_size(), any_handle(have.stream));
	case 7: return cu->cuMemcpyDtoDAsync(any_ptr(), any_ptr(), any_size(),
					     any_handle(have.stream));
	case 8: return cu->cuMemsetD8Async(any_ptr(), 1, any_size(), any_handle(have.stream));
	case 9: return cu->cuMemsetD32Async(any_ptr(), 1, any_size(), any_handle(have.stream));
	case 10: return cu->cuMemHostRegister(draw(2) ? host : (void *)(uintptr_t)any_ptr(),
					      draw(2) ? 4096 : any_size() % (1ul << 40), draw(20));
	case 11: return cu->cuMemHostUnregister(draw(2) ? host : (void *)(uintptr_t)any_ptr());
	case 12: return cu->cuMemCreate(&have.mem[i], any_size(), draw(9) ? &prop : NULL, !draw(9));
	case 13: return cu->cuMemRelease(any_mem());
	case 14: return cu->cuMemAddressReserve(&have.ptr[i], any_size(), draw(9) ? 0 : any_size(),
						any_ptr(), !draw(9));
	case 15: return cu->cuMemAddressFree(any_ptr(), any_size());
	case 16: return cu->cuMemMap(any_ptr(), any_size(), draw(3) ? 0 : any_size(), any_mem(), 0);
	case 17: return cu->cuMemUnmap(any_ptr(), any_size());
	case 18: return cu->cuMemSetAccess(any_ptr(), any_size(), draw(9) ? &access : NULL, 1);
	case 19: return cu->cuMemGetAccess(&flags, &access.location, any_ptr());
	case 20: return cu->cuMemRetainAllocationHandle(&have.mem[i],
							(void *)(uintptr_t)any_ptr());
	case 21: return cu->cuMemGetAllocationGranularity(&a, &prop, (int)draw(4) - 1);
	case 22: return cu->cuMemGetAllocationPropertiesFromHandle(&prop, any_mem());
	default:
		if (cu->cuMemHostAlloc(&v, any_size() % 100000, draw(10)))
			return 0;
		return cu->cuMemFreeHost(v);
	}
}

static int sharing_call(int i)
{
	struct cqcu_ipc_handle h = { { 0 } };
	int fd = -1;

	for (size_t k = 0; k < sizeof(h); k++)
		h.reserved[k] = (char)draw(256);
	switch (draw(5)) {
	case 0: return cu->cuIpcGetMemHandle(&h, any_ptr());
	case 1:
		if (draw(2))
			memcpy(&h, "cqi1\1", 4);
		return cu->cuIpcOpenMemHandle(&have.ptr[i], h, draw(3));
	case 2: return cu->cuIpcCloseMemHandle(any_ptr());
	case 3:
		if (cu->cuMemExportToShareableHandle(&fd, any_mem(), draw(9) ? 1 : (int)draw(9), 0))
			return 0;
		if (have.fd[i] > 2)
			close(have.fd[i]);
		have.fd[i] = fd;
		return 0;
	default:
		fd = draw(3) ? have.fd[draw(SLOTS)] : (int)draw(~0u);
		return cu->cuMemImportFromShareableHandle(&have.mem[i], (void *)(intptr_t)fd,
							  draw(9) ? 1 : (int)draw(9));
	}
}

static void nothing(void *arg)
{
}

static int stream_call(int i)
{
	float ms;

	switch (draw(16)) {
	case 0: return cu->cuStreamCreate((void *)&have.stream[i], draw(5));
	case 1: return cu->cuStreamDestroy(any_handle(have.stream));
	case 2: return cu->cuStreamSynchronize(any_handle(have.stream));
	case 3: return cu->cuStreamQuery(any_handle(have.stream));
	case 4: return cu->cuStreamWaitEvent(any_handle(have.stream), any_handle(have.event),
					     draw(4));
	case 5: return cu->cuStreamWriteValue64(any_handle(have.stream), any_ptr(), draw(~0u),
						draw(4));
	/* nothing below writes a negative number: nobody hangs */
	case 6: return cu->cuStreamWaitValue64(any_handle(have.stream), any_ptr(), 0,
					       draw(9) ? 0 : 77);
	case 7: return cu->cuLaunchHostFunc(any_handle(have.stream), draw(9) ? nothing : NULL,
					    NULL);
	case 8: return cu->cuEventCreate((void *)&have.event[i], draw(8));
	case 9: return cu->cuEventDestroy(any_handle(have.event));
	case 10:
	case 11: return cu->cuEventRecord(any_handle(have.event), any_handle(have.stream));
	case 12: return cu->cuEventQuery(any_handle(have.event));
	case 13: return cu->cuEventSynchronize(any_handle(have.event));
	case 14: return cu->cuEventElapsedTime(&ms, any_handle(have.event),
					       any_handle(have.event));
	default: return cu->cuStreamGetCtx(any_handle(have.stream), (void *)&have.ctx[i]);
	}
}

static int graph_call(int i)
{
	int mode = (int)draw(4);

	switch (draw(8)) {
	case 0: return cu->cuStreamBeginCapture(any_handle(have.stream), (int)draw(4));
	case 1: return cu->cuStreamEndCapture(any_handle(have.stream), (void *)&have.graph[i]);
	case 2: return cu->cuStreamIsCapturing(any_handle(have.stream), &mode);
	case 3: return cu->cuThreadExchangeStreamCaptureMode(&mode);
	case 4: return cu->cuGraphInstantiateWithFlags((void *)&have.exec[i],
						       any_handle(have.graph), draw(3));
	case 5: return cu->cuGraphLaunch(any_handle(have.exec), any_handle(have.stream));
	case 6: return cu->cuGraphExecDestroy(any_handle(have.exec));
	default: return cu->cuGraphDestroy(any_handle(have.graph));
	}
}

static int kernel_call(int i)
{
	static const char *const names[] = { "demo_fill", "demo_step", "demo_none", "" };
	/* as wide as the widest parameter of any kernel in their place */
	uint64_t n = draw(64), v = 1;
	cqcu_ptr p = any_ptr();
	void *params[] = { &p, &v, &n };
	char image[16] = "cq: x";
	int x;

	switch (draw(7)) {
	case 0:
		if (!draw(3))
			memset(image, (int)draw(256), sizeof(image));
		return cu->cuModuleLoadData((void *)&have.module[i], draw(9) ? image : NULL);
	case 1: return draw(9) ? 0 : cu->cuModuleUnload(any_handle(have.module));
	case 2: return cu->cuModuleGetFunction((void *)&have.func[i], any_handle(have.module),
					       names[draw(4)]);
	case 3: return cu->cuFuncGetAttribute(&x, (int)draw(20) - 2, any_handle(have.func));
	case 4: return cu->cuFuncSetAttribute(any_handle(have.func), (int)draw(20) - 2,
					      (int)draw(~0u));
	case 5: return cu->cuOccupancyMaxActiveBlocksPerMultiprocessor(&x, any_handle(have.func),
				(int)draw(2000) - 10, draw(2) ? 0 : any_size());
	default:
		/* rarely at a wild address, since that is the end of the context */
		if (draw(20))
			n = 0;
		return cu->cuLaunchKernel(any_handle(have.func), draw(4), draw(3), 1, draw(300),
					  draw(3), 1, draw(9) ? 0 : draw(~0u),
					  any_handle(have.stream), draw(9) ? params : NULL, NULL);
	}
}

static int device_call(int i)
{
	struct cqcu_uuid uuid;
	char text[64];
	int x;
	size_t n;

	switch (draw(9)) {
	case 0: return cu->cuDeviceGet(&x, (int)draw(9) - 4);
	case 1: return cu->cuDeviceGetName(text, (int)draw(64), (int)draw(9) - 4);
	case 2: return cu->cuDeviceGetUuid(&uuid, (int)draw(9) - 4);
	case 3: return cu->cuDeviceGetAttribute(&x, (int)draw(300) - 10, (int)draw(9) - 4);
	case 4: return cu->cuDeviceTotalMem(&n, (int)draw(9) - 4);
	case 5: return cu->cuCtxSetCurrent(any_handle(have.ctx));
	case 6: return cu->cuCtxSynchronize();
	case 7: return cqk_cuda_uuid((int)draw(9) - 4, text, NULL);
	default: return cu->cuDevicePrimaryCtxRetain((void *)&have.ctx[i], (int)draw(9) - 4);
	}
}

static void play(uint64_t seed)
{
	int good = 0, lost_at = CALLS, res;
	struct cqcu_ctx *ctx;

	state = seed;
	start();
	CU(cuCtxGetCurrent(&ctx));
	for (size_t i = 0; i < SLOTS; i++) {
		have.ctx[i] = ctx;
		have.fd[i] = -1;
	}
	for (int n = 0; n < CALLS; n++) {
		int (*const kinds[])(int i) = { memory_call, memory_call, sharing_call, stream_call,
						graph_call, kernel_call, device_call };
		char text[CQK_CUDA_TEXT];

		res = kinds[draw(7)]((int)draw(SLOTS));
		cqk_cuda_text(res, text);
		good += !res;
		if (cqk_cuda_fatal(res) && lost_at == CALLS)
			lost_at = n;
		/* most calls want one, and a random one may have taken it away */
		if (!draw(10))
			CU(cuCtxSetCurrent(ctx));
	}
	/* whatever was left: nothing hangs */
	cu->cuCtxSynchronize();
	printf("# seed %llu: %d of %d calls did something, lost after %d\n",
	       (unsigned long long)seed, good, CALLS, lost_at);
}

TEST_LIMIT(random_calls, 120)
{
	const char *text = getenv("SEED");
	uint64_t first = text ? strtoull(text, NULL, 0) : 1;

	knob("CQ_EMU_MEMORY", "67108864");
	for (uint64_t seed = first; seed < first + (text ? 1 : 20); seed++) {
		int status;
		pid_t pid = fork();

		ASSERT_LE(0, pid);
		if (!pid) {
			/* faults of kernels are said on stderr, and there are many */
			if (!text && !freopen("/dev/null", "w", stderr))
				_exit(2);
			play(seed);
			exit(0);
		}
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		if (status)
			FAIL("SEED=%llu: status %d", (unsigned long long)seed, status);
	}
}
