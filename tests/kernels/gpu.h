/* SPDX-License-Identifier: MIT */
/*
 * A GPU for tests of kernels, which is the emulated one unless the machine's
 * driver comes first: a context, a stream, and device memory that a test
 * takes piece by piece and gives back as a whole.
 */
#ifndef TESTS_GPU_H
#define TESTS_GPU_H

#include "kernels/cuda/driver.h"
#include "kernels/cuda/launch.h"
/* Who has ASSERT() and FAIL() already is no program of the harness. */
#ifndef ASSERT
#include "tests/harness.h"
#endif

#define GPU_ARENA ((size_t)64 << 20)

struct gpu {
	const struct cqk_cuda *cu;
	cqcu_device dev;
	struct cqcu_ctx *ctx;
	struct cqcu_stream *stream;
	struct cqk_cuda_kernels *k;
	cqcu_ptr arena;
	size_t used;
	struct cq_err err;
};

#define CU(call) do { \
	int cu_r_ = (call); \
	char cu_text_[CQK_CUDA_TEXT]; \
	if (cu_r_) \
		FAIL("%s: %s", #call, cqk_cuda_text(cu_r_, cu_text_)); \
} while (0)

/* 0, or what cqk_cuda_kernels_load() says: nothing else may fail. */
static inline int gpu_open_on(struct gpu *g, cqcu_device device)
{
	memset(g, 0, sizeof(*g));
	if (cqk_cuda_get(&g->cu, &g->err))
		FAIL("no driver, not even the emulated one: %s", g->err.text);
	g->dev = device;
	CU(g->cu->cuDevicePrimaryCtxRetain(&g->ctx, g->dev));
	CU(g->cu->cuCtxSetCurrent(g->ctx));
	CU(g->cu->cuStreamCreate(&g->stream, CQCU_STREAM_NON_BLOCKING));
	CU(g->cu->cuMemAlloc(&g->arena, GPU_ARENA));
	return cqk_cuda_kernels_load(g->cu, &g->k, &g->err);
}

#ifdef HARNESS_H
/*
 * The first GPU; with CQ_TEST_GPU=1 the emulated one will not do. What a real
 * driver opens it keeps for the life of the process.
 */
static inline void gpu_open(struct gpu *g)
{
	const char *real = getenv("CQ_TEST_GPU");
	const struct cqk_cuda *cu;
	char name[128];
	bool emulated;
	cqcu_device device;
	int ret;

	if (cqk_cuda_get(&cu, &g->err))
		FAIL("no driver, not even the emulated one: %s", g->err.text);
	CU(cu->cuDeviceGet(&device, 0));
	CU(cu->cuDeviceGetName(name, sizeof(name), device));
	emulated = strstr(name, "emulated") != NULL;
	if (emulated && real && *real == '1')
		FAIL("a GPU is wanted, but only the emulated one is here");
	if (!emulated)
		test_allow_fds(1024);
	ret = gpu_open_on(g, device);
	if (ret == -EOPNOTSUPP && !emulated)
		SKIP("%s", g->err.text);
	if (ret)
		FAIL("%s", g->err.text);
}
#endif

static inline void gpu_close(struct gpu *g)
{
	cqk_cuda_kernels_free(g->k);
	CU(g->cu->cuMemFree(g->arena));
	CU(g->cu->cuStreamDestroy(g->stream));
	CU(g->cu->cuDevicePrimaryCtxRelease(g->dev));
}

/* Memory until the next gpu_reset(), filled with @fill. */
static inline cqcu_ptr gpu_alloc(struct gpu *g, size_t n, unsigned char fill)
{
	cqcu_ptr p = g->arena + g->used;

	g->used += ALIGN_UP(n + 1, 256);
	ASSERT(g->used <= GPU_ARENA);
	CU(g->cu->cuMemsetD8Async(p, fill, ALIGN_UP(n + 1, 256), g->stream));
	return p;
}

static inline cqcu_ptr gpu_put(struct gpu *g, const void *from, size_t n)
{
	cqcu_ptr p = gpu_alloc(g, n, 0);

	CU(g->cu->cuStreamSynchronize(g->stream));
	if (n)
		CU(g->cu->cuMemcpyHtoD(p, from, n));
	return p;
}

/* Waits for the stream and copies. */
static inline void gpu_get(struct gpu *g, void *to, cqcu_ptr p, size_t n)
{
	CU(g->cu->cuStreamSynchronize(g->stream));
	CU(g->cu->cuMemcpyDtoH(to, p, n));
}

static inline void gpu_reset(struct gpu *g)
{
	g->used = 0;
}

/* A model's tables on the device. */
static inline struct cqk_cuda_tables *gpu_tables(struct gpu *g, const struct cqk_model *m,
						 const struct cqk_rope *rope)
{
	struct cqk_cuda_tables *t;
	void *image;

	if (cqk_cuda_tables_new(m, rope, &t, &g->err))
		FAIL("%s", g->err.text);
	image = aligned_alloc(64, ALIGN_UP(t->bytes + 1, 64));
	cqk_cuda_tables_fill(t, image);
	cqk_cuda_tables_place(t, gpu_put(g, image, t->bytes));
	free(image);
	return t;
}

/* A view of host memory [@base, @base + @n), at @at on the device. */
static inline struct cq_view gpu_view(const struct cq_view *v, const void *base, cqcu_ptr at)
{
	struct cq_view out = *v;

	out.data = (void *)(uintptr_t)(at + (size_t)((const uint8_t *)v->data -
						     (const uint8_t *)base));
	return out;
}

#endif /* TESTS_GPU_H */
